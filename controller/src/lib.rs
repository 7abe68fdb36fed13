//! The controller: places work on nodes, collects what they tell, and serves AWX's API.

pub mod store;

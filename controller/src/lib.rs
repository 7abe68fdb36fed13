//! The controller: places work on nodes, collects what they tell, and serves AWX's API.

pub mod dispatch;
pub mod fleet;
pub mod payload;
pub mod schedule;
pub mod store;

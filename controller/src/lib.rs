//! The controller: places work on nodes, collects what they tell, and serves AWX's API.

pub mod auth;
pub mod config;
pub mod dispatch;
pub mod fleet;
pub mod https;
pub mod payload;
pub mod registry;
pub mod schedule;
pub mod store;
pub mod vault;

//! The controller: places work on nodes, collects what they tell, and serves AWX's API.

pub mod auth;
pub mod config;
pub mod http;
pub mod https;
pub mod inventory;
pub mod job;
pub mod project;
pub mod registry;
pub mod store;
pub mod vault;

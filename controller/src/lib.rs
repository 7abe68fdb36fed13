//! The controller: places work on nodes, collects what they tell, and serves AWX's API.

pub mod auth;
pub mod config;
pub mod crash;
pub mod debug;
pub mod dispatch;
pub mod enrolment;
mod event_kind;
pub mod fleet;
mod grep;
pub mod http;
pub mod https;
pub mod ingest;
pub mod inventory;
pub mod job;
pub mod live;
pub mod outcome;
pub mod payload;
pub mod project;
pub mod reconcile;
pub mod registry;
pub mod schedule;
pub mod service;
pub mod shown_mesh;
pub mod store;
pub mod stream;
pub mod survey;
pub mod vault;

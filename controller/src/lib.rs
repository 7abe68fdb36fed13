//! The controller: places work, collects events, serves the API.

pub mod crash;
pub mod debug;
pub mod ingest;
pub mod store;
pub mod stream;

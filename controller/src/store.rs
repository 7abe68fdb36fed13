//! The databases. `core` holds everything people name and configure; events have files of their own.

pub mod core;
pub mod events;
pub mod instances;
pub mod units;

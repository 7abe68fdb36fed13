//! The database, one file per family of tables.

pub mod events;

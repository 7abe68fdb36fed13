//! The databases. `core` holds everything people name and configure; events have a place of their own.
//!
//! There are two engines with one code above them: SQLite, in files below the data directory, and PostgreSQL, on a
//! server. Statements are made by the builder and turned into an engine's words in `sql`; what only one engine has
//! (PRAGMAs, schemas, locks, how a connection is made) stands in a module named after it.

pub mod core;
pub mod dependencies;
pub mod events;
pub mod groups;
pub mod instances;
pub mod postgres;
pub mod retention;
mod sql;
pub mod strays;
#[cfg(test)]
pub(crate) mod testing;
pub mod units;
pub mod updates;

pub use self::sql::{Engine, spelled};

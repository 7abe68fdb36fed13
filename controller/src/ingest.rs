//! Records in, acknowledgements out.

pub mod artifacts;

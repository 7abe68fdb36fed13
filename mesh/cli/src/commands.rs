//! One module for each verb.

pub(crate) mod ca;
pub(crate) mod job;
pub(crate) mod nodes;
pub(crate) mod ping;
pub(crate) mod status;
pub(crate) mod trace;

#[cfg(test)]
mod fixture;

//! One module for each verb.

pub(crate) mod ca;
pub(crate) mod completion;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod forward;
pub(crate) mod job;
pub(crate) mod links;
pub(crate) mod man;
pub(crate) mod netcheck;
pub(crate) mod node;
pub(crate) mod nodes;
pub(crate) mod ping;
pub(crate) mod reload;
pub(crate) mod routes;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod trace;
pub(crate) mod work;

#[cfg(test)]
mod fixture;

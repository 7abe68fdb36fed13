//! Whole nodes in one process, on real sockets: a controller and an execution node that each know only the hop
//! between them.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod enrol;
mod forwarding;
mod hostile;
mod intruder;
mod links;
mod mallory;
mod probes;
mod streams;
mod trouble;
mod trust;
mod world;

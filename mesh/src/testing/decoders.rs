//! Decoders of foreign bytes that only the crate itself can reach, for fuzzing.

pub use crate::identity::decoders::certificates;
pub use crate::link::decoders::{datagrams, proxy_answer, sealed_packet, slots, tcp_frames};
pub use crate::netcheck::decoders::netcheck;

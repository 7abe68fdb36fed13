//! The measured settings of both QUIC layers, with the reason beside each figure.
//!
//! *Outer* is the connection of two neighbours and carries overlay packets as QUIC DATAGRAMs. *Inner* is the
//! end-to-end connection of two nodes and travels in those packets.

use std::sync::Arc;
use std::time::Duration;

use plexus_proto::packet::{Class, HEADER_LEN};
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::batch::ROOM;
use crate::congestion::{Kick, LinkControllers, SessionControllers};

/// ALPN of a link. A new number only for what the hello cannot negotiate.
pub(crate) const LINK_ALPN: &[u8] = b"plexus-link/1";
/// ALPN of an end-to-end session.
pub(crate) const SESSION_ALPN: &[u8] = b"plexus-session/1";
/// TLS wants a name; ours are in the certificates' URIs and checked there.
pub(crate) const SERVER_NAME: &str = "plexus.invalid";

/// Smallest overlay packet that every link must carry: QUIC's 1200 and our header.
pub(crate) const PACKET_FLOOR: usize = 1200 + HEADER_LEN;
/// The same as a sealed packet: on a path of 1280 bytes, the least of IPv6, it fits.
pub(crate) const SEALED_FLOOR: usize = PACKET_FLOOR + ROOM;
/// Largest inner packet: near the 16 KiB of a TLS record, for paths of TCP links. On others the search finds less.
pub(crate) const INNER_MTU_CEILING: u16 = 15_000;
/// How often the search for the inner path MTU begins anew: a route may have changed to a wider one.
const INNER_MTU_AGAIN: Duration = Duration::from_secs(60);

/// Longest silence of an outer connection. Whether the neighbour lives is `liveness`'s to find out, much sooner where
/// it matters; the connection only must not end under packets that leave sealed beside it.
pub(crate) const LINK_IDLE: Duration = Duration::from_secs(60);
/// Longer than routers are quiet: their digests each half a minute keep the connection by themselves.
const LINK_KEEPALIVE: Duration = Duration::from_secs(40);
/// The same on TCP, whose writer also measures the round trip with it.
pub(crate) const TCP_IDLE: Duration = Duration::from_secs(30);
pub(crate) const TCP_KEEPALIVE: Duration = Duration::from_secs(10);
/// Longest silence that an end-to-end connection survives: a hop may be gone for the time of its restart, and open
/// streams go on when it is back.
pub(crate) const SESSION_IDLE: Duration = Duration::from_secs(60);
/// A peer that started again is noticed in this time even if nothing else is said to it.
const SESSION_KEEPALIVE: Duration = Duration::from_secs(10);
/// First guess of a round trip. The standard's 333 ms means a second until a lost first packet is sent again.
pub(crate) const FIRST_RTT: Duration = Duration::from_millis(100);

/// Space for datagrams inside quinn, in front of which our own queues order by class. First in, first out, so control
/// waits behind what is here: 50 ms at 10 Mbit/s. Four times as much gives nothing.
pub(crate) const DATAGRAM_SEND_BUFFER: usize = 64 * 1024;
/// Datagrams received and not yet taken. Only a reader starved of CPU lets it fill.
const DATAGRAM_RECEIVE_BUFFER: usize = 2 * 1024 * 1024;
/// Bytes that may stand unsent in the kernel behind a TCP link. Control waits for them.
pub(crate) const TCP_UNSENT: u32 = 64 * 1024;
/// Kernel buffers of an outer socket; larger ones are standing queues for a few per cent more peak.
pub(crate) const SOCKET_BUFFER: usize = 1024 * 1024;

/// Streams that a session permits its peer at first; quinn allocates for each that it permits.
pub(crate) const SESSION_STREAMS: u32 = 64;
/// Streams that it permits at most: a node's running units have one each, and a job is a fork at least.
pub(crate) const SESSION_STREAMS_MAX: u32 = 4096;

/// Transport of a link on which UDP payloads of up to `mtu` bytes are tried.
pub(crate) fn link(mtu: u16) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        // One control stream; quinn allocates for every stream it permits.
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle(LINK_IDLE)))
        .keep_alive_interval(Some(LINK_KEEPALIVE))
        .initial_rtt(FIRST_RTT)
        .initial_mtu(1200)
        .min_mtu(1200)
        .mtu_discovery_config(Some(mtu_discovery(mtu)))
        .stream_receive_window(VarInt::from_u32(512 * 1024))
        .receive_window(VarInt::from_u32(1024 * 1024))
        .send_window(1024 * 1024)
        .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
        .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
        .ack_frequency_config(Some(acknowledge_every(32)))
        .congestion_controller_factory(Arc::new(LinkControllers));
    config
}

/// Bytes that the peer of a session of `class` may send before we have read them.
pub(crate) fn session_window(class: Class) -> u32 {
    match class {
        Class::Bulk => 32 << 20,
        Class::Control | Class::Probe => 8 << 20,
    }
}

/// Transport of an end-to-end session of `class`.
pub(crate) fn session(class: Class, kick: &Kick) -> TransportConfig {
    // A reader that stops must not stop the others: one stream gets a small part of the connection's window.
    let (stream, send) = match class {
        Class::Bulk => (4 << 20, 8 << 20),
        Class::Control | Class::Probe => (512 << 10, 2 << 20),
    };
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(SESSION_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle(SESSION_IDLE)))
        .keep_alive_interval(Some(SESSION_KEEPALIVE))
        .initial_rtt(FIRST_RTT)
        .initial_mtu(1200)
        .min_mtu(1200)
        .mtu_discovery_config(Some(inner_mtu_discovery()))
        .stream_receive_window(VarInt::from_u32(stream))
        .receive_window(VarInt::from_u32(session_window(class)))
        .send_window(send)
        .datagram_receive_buffer_size(None)
        .ack_frequency_config(Some(acknowledge_every(16)))
        .congestion_controller_factory(Arc::new(SessionControllers { kick: kick.clone() }));
    config
}

/// Fewer acknowledgements: on both layers together they save 15 % of the CPU time of a transfer over one hop. Nobody
/// waits for one longer than 5 ms, which is a fifth of what the standard allows.
fn acknowledge_every(packets: u32) -> AckFrequencyConfig {
    let mut config = AckFrequencyConfig::default();
    config
        .ack_eliciting_threshold(VarInt::from_u32(packets))
        .max_ack_delay(Some(Duration::from_millis(5)))
        .reordering_threshold(VarInt::from_u32(3));
    config
}

fn mtu_discovery(ceiling: u16) -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    config.upper_bound(ceiling).minimum_change(4);
    config
}

fn inner_mtu_discovery() -> MtuDiscoveryConfig {
    let mut config = mtu_discovery(INNER_MTU_CEILING);
    config.interval(INNER_MTU_AGAIN);
    config
}

fn idle(timeout: Duration) -> IdleTimeout {
    timeout.try_into().expect("a minute fits into a QUIC varint of milliseconds")
}

//! How a direction of a wire is: pure data.

use std::time::Duration;

/// One direction of a wire. The default changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Time on the way.
    pub delay: Duration,
    /// The delay varies by up to this much either way; packets keep their order.
    pub jitter: Duration,
    /// Part of the packets that is lost, 0 to 1.
    pub loss: f64,
    /// Mean number of packets lost together; 1 makes losses independent of each other.
    pub burst: f64,
    /// Part of the packets that arrives late, behind those sent after it.
    pub reorder: f64,
    /// Part of the packets that arrives twice.
    pub duplicate: f64,
    /// Part of the packets that arrives with one bit turned.
    pub corrupt: f64,
    /// Bytes per second that pass.
    pub rate: Option<u64>,
    /// Longest wait in front of a narrow wire; what would wait longer is lost.
    pub queue: Duration,
    /// Largest datagram that passes, in bytes of UDP payload. Larger ones vanish without a word.
    pub mtu: Option<usize>,
    /// Nothing passes.
    pub cut: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: 1.0,
            reorder: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            rate: None,
            queue: Duration::from_millis(200),
            mtu: None,
            cut: false,
        }
    }
}

/// Names of the profiles, from good to bad.
pub const PROFILES: [&str; 8] =
    ["lan", "wan", "congested", "weak-4g", "slow-3g", "bad-cell", "satellite", "absurd"];

impl Shape {
    /// A usual network by name, as each of its two directions is: half the round trip, the loss of one way.
    ///
    /// | name | round trip | loss, together | rate |
    /// |---|---|---|---|
    /// | lan | 0.1 ms | – | – |
    /// | wan | 40 ms | 0.1 % | – |
    /// | congested | 40 ± 12 ms | 1 %, 6 | – |
    /// | weak-4g | 90 ms | 2 %, 8 | 8 Mb/s |
    /// | slow-3g | 200 ms | 3 % | 3 Mb/s |
    /// | bad-cell | 450 ms | 8 %, 20 | 0.8 Mb/s |
    /// | satellite | 600 ms | 1.5 % | 25 Mb/s |
    /// | absurd | 800 ms | 25 %, 40 | 256 kb/s |
    pub fn profile(name: &str) -> Option<Self> {
        let (rtt_us, jitter_ms, loss, burst, kbit) = match name {
            "lan" => (100, 0, 0.0, 1.0, None),
            "wan" => (40_000, 0, 0.001, 1.0, None),
            "congested" => (40_000, 12, 0.01, 6.0, None),
            "weak-4g" => (90_000, 0, 0.02, 8.0, Some(8_000)),
            "slow-3g" => (200_000, 0, 0.03, 1.0, Some(3_000)),
            "bad-cell" => (450_000, 0, 0.08, 20.0, Some(800)),
            "satellite" => (600_000, 0, 0.015, 1.0, Some(25_000)),
            "absurd" => (800_000, 0, 0.25, 40.0, Some(256)),
            _ => return None,
        };
        Some(Self {
            delay: Duration::from_micros(rtt_us / 2),
            jitter: Duration::from_millis(jitter_ms) / 2,
            loss,
            burst,
            rate: kbit.map(|kbit: u64| kbit * 1000 / 8),
            ..Self::default()
        })
    }
}

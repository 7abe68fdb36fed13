//! Congestion control of inner connections: BBR with a bounded flight, and a way past a full window when the route
//! has just changed.
//!
//! What is in flight stands in queues along the path, so its bound is the latency of everything behind it: with
//! 1 MiB a loaded request over a hop takes a tenth of the time that it takes without, at the same throughput.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Flight always allowed: it fills 80 ms of 100 Mbit/s.
const FLIGHT_FLOOR: u64 = 1024 * 1024;
/// Packets that may leave after a kick whatever the window says: enough for an acknowledgement to come of it.
const KICK_PACKETS: u32 = 8;
/// A measured bandwidth-delay product stays good for this long.
const PRODUCT_MEMORY: Duration = Duration::from_secs(10);

/// Lets the connections of one session send at once, although their window is full of packets that died with a route.
///
/// Without it a connection that lost its whole flight waits for its probe timer, which has doubled all through the
/// outage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kick(Arc<AtomicU32>);

impl Kick {
    /// Opens the window for the next few packets.
    pub(crate) fn kick(&self) {
        self.0.store(KICK_PACKETS, Ordering::Relaxed);
    }

    fn armed(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn spend(&self) {
        // Packets of both classes and threads may race here; a few more or less do no harm, wrapping around would.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    }
}

/// Builds the controllers of one session's connections.
#[derive(Debug, Clone)]
pub(crate) struct BoundedConfig {
    pub(crate) kick: Kick,
    pub(crate) inner: Arc<BbrConfig>,
}

impl ControllerFactory for BoundedConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Bounded {
            inner: self.inner.clone().build(now, current_mtu),
            kick: self.kick.clone(),
            bound: FlightBound::new(now),
        })
    }
}

struct Bounded {
    inner: Box<dyn Controller>,
    kick: Kick,
    bound: FlightBound,
}

impl Controller for Bounded {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        if self.kick.armed() {
            self.kick.spend();
        }
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.bound.on_ack(now, bytes, rtt.min());
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.kick.armed() {
            return u64::MAX / 2;
        }
        self.inner.window().min(self.bound.bytes())
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), kick: self.kick.clone(), bound: self.bound.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// How much may be in flight: twice what the path holds by measurement, 1 MiB at least.
///
/// The product of delivery rate and least round trip is measured over rounds of one round trip, and the best of the
/// last ten seconds counts, so a far and fast path opens up by doubling while a near one never leaves the floor.
#[derive(Debug, Clone)]
struct FlightBound {
    round_start: Instant,
    round_bytes: u64,
    best: u64,
    best_at: Instant,
}

impl FlightBound {
    fn new(now: Instant) -> Self {
        Self { round_start: now, round_bytes: 0, best: 0, best_at: now }
    }

    fn bytes(&self) -> u64 {
        FLIGHT_FLOOR.max(2 * self.best)
    }

    fn on_ack(&mut self, now: Instant, bytes: u64, rtt_min: Duration) {
        self.round_bytes += bytes;
        let elapsed = now.saturating_duration_since(self.round_start);
        // Below a millisecond a batch of acknowledgements would pass for a rate.
        if elapsed < rtt_min.max(Duration::from_millis(1)) {
            return;
        }
        let product = (self.round_bytes as f64 * rtt_min.as_secs_f64() / elapsed.as_secs_f64()) as u64;
        if product >= self.best || now.saturating_duration_since(self.best_at) > PRODUCT_MEMORY {
            (self.best, self.best_at) = (product, now);
        }
        (self.round_start, self.round_bytes) = (now, 0);
    }
}

/// BBR as both transports start it.
pub(crate) fn bbr() -> Arc<BbrConfig> {
    Arc::new(BbrConfig::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledges `rate` bytes per second over a path of `rtt` for `length`, and returns the bound then.
    fn bound_after(rate: u64, rtt: Duration, length: Duration) -> u64 {
        let start = Instant::now();
        let mut bound = FlightBound::new(start);
        let step = Duration::from_micros(200);
        let mut at = Duration::ZERO;
        while at < length {
            at += step;
            bound.on_ack(start + at, (rate as f64 * step.as_secs_f64()) as u64, rtt);
        }
        bound.bytes()
    }

    #[test]
    fn a_near_path_keeps_the_floor() {
        let bound = bound_after(500_000_000, Duration::from_micros(80), Duration::from_secs(1));
        assert_eq!(bound, FLIGHT_FLOOR);
    }

    #[test]
    fn a_far_fast_path_may_hold_twice_its_product() {
        let bound = bound_after(100_000_000, Duration::from_millis(100), Duration::from_secs(2));
        assert!((18_000_000..=22_000_000).contains(&bound), "{bound}");
    }

    #[test]
    fn an_old_product_is_forgotten() {
        let start = Instant::now();
        let mut bound = FlightBound::new(start);
        let rtt = Duration::from_millis(100);
        bound.on_ack(start + rtt, 10_000_000, rtt);
        assert_eq!(bound.bytes(), 20_000_000);
        bound.on_ack(start + rtt * 2, 1000, rtt);
        assert_eq!(bound.bytes(), 20_000_000, "one slow round does not shrink it");
        bound.on_ack(start + rtt * 2 + PRODUCT_MEMORY * 2, 1000, rtt);
        assert_eq!(bound.bytes(), FLIGHT_FLOOR);
    }

    #[test]
    fn a_kick_opens_a_full_window_for_a_few_packets() {
        let now = Instant::now();
        let kick = Kick::default();
        let config = Arc::new(BoundedConfig { kick: kick.clone(), inner: bbr() });
        let mut controller = config.build(now, 1200);
        let normal = controller.window();
        kick.kick();
        for number in 0..u64::from(KICK_PACKETS) {
            assert!(controller.window() > u64::from(u32::MAX), "open before packet {number}");
            controller.on_sent(now, 1200, number);
        }
        assert_eq!(controller.window(), normal);
        controller.on_sent(now, 1200, 100);
        assert_eq!(controller.window(), normal, "credit does not wrap around");
    }
}

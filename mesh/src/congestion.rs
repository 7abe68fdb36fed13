//! Congestion control of both layers.
//!
//! An *inner* connection runs BBR with a bounded flight: what is in flight stands in queues along the path, so its
//! bound is the latency of everything behind it. With 1 MiB a loaded request over a hop takes a tenth of the time that
//! it takes without, at the same throughput. And it can be let past a full window when its route has just changed.
//!
//! A *link* carries inner connections that are controlled already. It only has to keep its queue at this end, in
//! front of the slowest piece of wire, where control overtakes bulk. For that it allows what the wire carries in two
//! round trips, and looks at losses not at all. BBR here too gives the same on a lossy path and costs a quarter of the
//! throughput on a fast one.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Flight always allowed from end to end: it fills 80 ms of 100 Mbit/s.
const SESSION_FLOOR: u64 = 1024 * 1024;
/// Flight always allowed on a link: 50 ms of 10 Mbit/s.
const LINK_FLOOR: u64 = 64 * 1024;
/// Round trip that a link has at least: the other end may wait this long for its turn on a busy machine.
const LINK_ROUND: Duration = Duration::from_millis(5);
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

/// Builds the controllers of links.
#[derive(Debug)]
pub(crate) struct LinkControllers;

impl ControllerFactory for LinkControllers {
    fn build(self: Arc<Self>, now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(OfLink { product: Product::new(now) })
    }
}

#[derive(Debug, Clone)]
struct OfLink {
    product: Product,
}

impl Controller for OfLink {
    fn on_ack(&mut self, now: Instant, _sent: Instant, bytes: u64, _app_limited: bool, rtt: &RttEstimator) {
        self.product.on_ack(now, bytes, rtt.min().max(LINK_ROUND));
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        LINK_FLOOR.max(2 * self.product.best)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        LINK_FLOOR
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Builds the controllers of one session's connections.
#[derive(Debug)]
pub(crate) struct SessionControllers {
    pub(crate) kick: Kick,
}

impl ControllerFactory for SessionControllers {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let bbr = Arc::new(BbrConfig::default()).build(now, current_mtu);
        Box::new(OfSession { bbr, kick: self.kick.clone(), product: Product::new(now) })
    }
}

struct OfSession {
    bbr: Box<dyn Controller>,
    kick: Kick,
    product: Product,
}

impl Controller for OfSession {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        if self.kick.armed() {
            self.kick.spend();
        }
        self.bbr.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.product.on_ack(now, bytes, rtt.min());
        self.bbr.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.bbr.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.bbr.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.bbr.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.kick.armed() {
            return u64::MAX / 2;
        }
        self.bbr.window().min(SESSION_FLOOR.max(2 * self.product.best))
    }

    fn metrics(&self) -> ControllerMetrics {
        self.bbr.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { bbr: self.bbr.clone_box(), kick: self.kick.clone(), product: self.product.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.bbr.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// What a path holds: delivery rate times least round trip, measured over rounds of one round trip. The best of the
/// last ten seconds counts, so a far and fast path opens up by doubling, and one that has become slow closes.
#[derive(Debug, Clone)]
struct Product {
    round_start: Instant,
    round_bytes: u64,
    best: u64,
    best_at: Instant,
}

impl Product {
    fn new(now: Instant) -> Self {
        Self { round_start: now, round_bytes: 0, best: 0, best_at: now }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledges `rate` bytes per second over a path of `rtt` for `length`, and returns the product then.
    fn product_after(rate: u64, rtt: Duration, length: Duration) -> u64 {
        let start = Instant::now();
        let mut product = Product::new(start);
        let step = Duration::from_micros(200);
        let mut at = Duration::ZERO;
        while at < length {
            at += step;
            product.on_ack(start + at, (rate as f64 * step.as_secs_f64()) as u64, rtt);
        }
        product.best
    }

    #[test]
    fn the_product_is_rate_times_round_trip() {
        let near = product_after(500_000_000, Duration::from_micros(80), Duration::from_secs(1));
        assert!((38_000..=42_000).contains(&near), "{near}");
        let far = product_after(100_000_000, Duration::from_millis(100), Duration::from_secs(2));
        assert!((9_000_000..=11_000_000).contains(&far), "{far}");
    }

    #[test]
    fn an_old_product_is_forgotten() {
        let start = Instant::now();
        let mut product = Product::new(start);
        let rtt = Duration::from_millis(100);
        product.on_ack(start + rtt, 10_000_000, rtt);
        assert_eq!(product.best, 10_000_000);
        product.on_ack(start + rtt * 2, 1000, rtt);
        assert_eq!(product.best, 10_000_000, "one slow round does not shrink it");
        product.on_ack(start + rtt * 2 + PRODUCT_MEMORY * 2, 1000, rtt);
        assert!(product.best < 1000);
    }

    #[test]
    fn windows_have_a_floor() {
        let now = Instant::now();
        assert_eq!(Arc::new(LinkControllers).build(now, 1252).window(), LINK_FLOOR);
        let session = Arc::new(SessionControllers { kick: Kick::default() }).build(now, 1200);
        assert!(session.window() <= SESSION_FLOOR);
    }

    #[test]
    fn a_kick_opens_a_full_window_for_a_few_packets() {
        let now = Instant::now();
        let kick = Kick::default();
        let mut controller = Arc::new(SessionControllers { kick: kick.clone() }).build(now, 1200);
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

//! The cap on what may be sent over a link: a token bucket.

use std::time::{Duration, Instant};

/// What may leave at once: long enough that timers of a millisecond do not cost rate.
const BURST: Duration = Duration::from_millis(5);
/// Least burst: a batch.
const BURST_BYTES: f64 = 16_384.0;

#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes per second.
    rate: f64,
    burst: f64,
    /// Below zero after a batch that was larger than what was there.
    level: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1) as f64;
        let burst = (rate * BURST.as_secs_f64()).max(BURST_BYTES);
        Self { rate, burst, level: burst, at: now }
    }

    /// Whether something may leave now, or when it may.
    pub(super) fn due(&mut self, now: Instant) -> Result<(), Instant> {
        let passed = now.saturating_duration_since(self.at);
        self.level = (self.level + self.rate * passed.as_secs_f64()).min(self.burst);
        self.at = now;
        if self.level > 0.0 {
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.level) / self.rate))
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.level -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_in_a_second_is_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10_000_000, start);
        let (mut now, mut sent) = (start, 0);
        while now < start + Duration::from_secs(1) {
            match bucket.due(now) {
                Ok(()) => {
                    bucket.spend(14_000);
                    sent += 14_000;
                }
                Err(until) => {
                    assert!(until > now);
                    now = until;
                }
            }
        }
        assert!((9_900_000..=10_200_000).contains(&sent), "{sent}");
    }

    #[test]
    fn silence_earns_one_burst_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10_000_000, start);
        let late = start + Duration::from_secs(60);
        let sent = std::iter::from_fn(|| bucket.due(late).ok().map(|()| bucket.spend(1000))).count();
        assert_eq!(sent, 50);
    }
}

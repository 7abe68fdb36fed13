//! How far a neighbour's clock is from ours: for people, who wonder about times that do not fit. Nothing decides by it.
//!
//! Each digest tells when it left; half a round trip later it is here. What waits behind a lost packet comes late, which
//! makes a clock look slow by as much as a second; people are told of several.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use plexus_proto::link::{LinkMessage, LinkMessageKind};

/// Never measured.
const UNKNOWN: i64 = i64::MIN;

/// Milliseconds by which the neighbour's clock is ahead.
#[derive(Debug)]
pub(crate) struct Skew(AtomicI64);

impl Default for Skew {
    fn default() -> Self {
        Self(AtomicI64::new(UNKNOWN))
    }
}

impl Skew {
    /// Takes note of what the neighbour's clock showed when a message left that is here at `now`; 0: it does not tell.
    pub(crate) fn heard(&self, clock_ms: u64, rtt: Duration, now: Timestamp) {
        let Ok(theirs) = i64::try_from(clock_ms) else { return };
        if theirs == 0 {
            return;
        }
        let way = i64::try_from(rtt.as_millis() / 2).unwrap_or(i64::MAX);
        let skew = theirs.saturating_add(way).saturating_sub(now.as_millisecond());
        self.0.store(skew.max(UNKNOWN + 1), Ordering::Relaxed);
    }

    /// Milliseconds by which it is ahead, once that is known.
    pub(crate) fn millis(&self) -> Option<f64> {
        let skew = self.0.load(Ordering::Relaxed);
        (skew != UNKNOWN).then_some(skew as f64)
    }
}

/// Writes the time on what tells it.
pub(crate) fn stamp(message: &mut LinkMessage, now: Timestamp) {
    if let Some(LinkMessageKind::Digest(digest)) = &mut message.kind {
        digest.clock_ms = now.as_millisecond().try_into().unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use plexus_proto::link::Digest;

    use super::*;

    #[test]
    fn a_stamp_that_arrives_tells_how_far_clocks_are_apart() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let check = |theirs: i64, rtt, ours: i64| {
            let mut message = LinkMessage { kind: Some(LinkMessageKind::Digest(Digest::default())) };
            stamp(&mut message, at(theirs));
            let Some(LinkMessageKind::Digest(digest)) = message.kind else { panic!("another message") };
            let skew = Skew::default();
            skew.heard(digest.clock_ms, Duration::from_millis(rtt), at(ours));
            skew.millis()
        };
        assert_eq!(check(1_000_000, 20, 1_000_010), Some(0.0));
        assert_eq!(check(1_600_000, 20, 1_000_010), Some(600_000.0), "ahead");
        assert_eq!(check(940_000, 20, 1_000_010), Some(-60_000.0), "behind");
        assert_eq!(check(-5, 20, 1_000_010), None, "before 1970 nobody tells");
    }

    #[test]
    fn what_nobody_told_is_not_known_and_lies_do_no_harm() {
        let skew = Skew::default();
        skew.heard(0, Duration::ZERO, Timestamp::UNIX_EPOCH);
        skew.heard(u64::MAX, Duration::ZERO, Timestamp::UNIX_EPOCH);
        assert_eq!(skew.millis(), None);
        skew.heard(i64::MAX as u64, Duration::MAX, Timestamp::MIN);
        assert!(skew.millis().is_some());
    }
}

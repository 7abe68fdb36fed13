//! Whether a socket is busy, so that packets to send are gathered where that pays and nowhere else.
//!
//! quinn keeps room for all the packets it may hand over at once, for each connection and for as long as that lives: ten
//! packets are 15 to 90 KB. A connection that is told it may hand over one keeps room for one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long is looked back.
const WINDOW: Duration = Duration::from_millis(10);

/// What a socket has sent in this window and whether the last one was busy. Races cost a wrong guess for one window.
#[derive(Debug)]
pub(crate) struct Busy {
    /// Packets within a window from which on a socket is busy.
    from: u64,
    start: Instant,
    window: AtomicU64,
    packets: AtomicU64,
    before: AtomicBool,
}

impl Busy {
    pub(crate) fn new(from: u64, now: Instant) -> Self {
        Self {
            from,
            start: now,
            window: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            before: AtomicBool::new(false),
        }
    }

    /// Notes what quinn hands over: `length` bytes in packets of `segment`.
    ///
    /// Packets count, not bytes: each connection looks for jumbo frames when it is new, with packets of many KB.
    pub(crate) fn sent(&self, length: usize, segment: Option<usize>) {
        let packets = segment.map_or(1, |segment| length.div_ceil(segment.max(1)));
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// Whether gathering pays now.
    pub(crate) fn is(&self, now: Instant) -> bool {
        let window = (now.saturating_duration_since(self.start).as_micros() / WINDOW.as_micros()) as u64;
        let known = self.window.swap(window, Ordering::Relaxed);
        if known != window {
            let packets = self.packets.swap(0, Ordering::Relaxed);
            self.before.store(known + 1 == window && packets >= self.from, Ordering::Relaxed);
        }
        self.before.load(Ordering::Relaxed) || self.packets.load(Ordering::Relaxed) >= self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_within_a_window_is_busy_until_a_window_of_less() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let busy = Busy::new(1000, start);
        assert!(!busy.is(at(1)));
        busy.sent(999, Some(1));
        assert!(!busy.is(at(2)));
        busy.sent(1, Some(1));
        assert!(busy.is(at(3)), "at once");
        assert!(busy.is(at(12)), "the last window was");
        assert!(!busy.is(at(21)), "the last window was not");
        for ms in 30..60 {
            busy.sent(200, Some(1));
            assert_eq!(busy.is(at(ms)), ms >= 35, "{ms}");
        }
        assert!(!busy.is(at(90)), "silence since");
    }

    #[test]
    fn a_little_for_long_is_not_busy() {
        let start = Instant::now();
        let busy = Busy::new(1000, start);
        for ms in 0..500 {
            busy.sent(90, Some(1));
            assert!(!busy.is(start + Duration::from_millis(ms)));
        }
    }
}

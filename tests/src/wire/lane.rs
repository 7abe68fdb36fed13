//! What happens to the packets of one direction: pure. A packet and `now` go in, packets come out when their time has come.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::shape::Shape;

/// A packet that arrives out of order is late by this much at least, so that others can overtake it.
const LATE: Duration = Duration::from_millis(5);

/// Draws that depend on nothing but the seed (xorshift64*).
#[derive(Debug, Clone)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give neighbouring draws, and zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 up to 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are kept, which is what a double holds")]
    pub(super) fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn happens(&mut self, chance: f64) -> bool {
        // Nothing is drawn for what is switched off: switching it on elsewhere does not change these draws.
        chance > 0.0 && self.part() < chance
    }
}

/// One direction. `T` says where a packet belongs.
#[derive(Debug)]
pub(super) struct Lane<T> {
    draws: Draws,
    /// In a burst of losses.
    losing: bool,
    /// When the narrow part has passed on what it has.
    free_at: Instant,
    /// When the last packet in order arrives; none after it arrives before.
    last: Instant,
    under_way: BTreeMap<(Instant, u64), (T, Vec<u8>)>,
    entered: u64,
}

impl<T: Copy> Lane<T> {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            draws: Draws::new(seed),
            losing: false,
            free_at: now,
            last: now,
            under_way: BTreeMap::new(),
            entered: 0,
        }
    }

    /// Takes a packet; returns how many of it are on their way now: none, one or two.
    pub(super) fn enter(&mut self, shape: &Shape, tag: T, packet: &[u8], now: Instant) -> usize {
        if shape.cut || shape.mtu.is_some_and(|mtu| packet.len() > mtu) || self.loses(shape) {
            return 0;
        }
        let Some(passed) = self.passes(shape, packet.len(), now) else { return 0 };
        let mut bytes = packet.to_vec();
        if self.draws.happens(shape.corrupt) && !bytes.is_empty() {
            let bit = self.draws.next();
            let at = usize::try_from(bit >> 3).unwrap_or(usize::MAX) % bytes.len();
            bytes[at] ^= 1 << (bit & 7);
        }
        let mut arrives = passed + shape.delay;
        if !shape.jitter.is_zero() {
            arrives += shape.jitter.mul_f64(2.0 * self.draws.part());
            arrives = arrives.checked_sub(shape.jitter).unwrap_or(arrives).max(passed);
        }
        if self.draws.happens(shape.reorder) {
            arrives += LATE.max(shape.delay / 2);
        } else {
            arrives = arrives.max(self.last);
            self.last = arrives;
        }
        let copies = if self.draws.happens(shape.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            self.entered += 1;
            self.under_way.insert((arrives, self.entered), (tag, bytes.clone()));
        }
        copies
    }

    /// The next packet whose time has come.
    pub(super) fn leave(&mut self, now: Instant) -> Option<(T, Vec<u8>)> {
        let first = self.under_way.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// When the next packet arrives.
    pub(super) fn next(&self) -> Option<Instant> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    /// Two states, good and losing, so that losses come `burst` together and `loss` of all in the long run.
    fn loses(&mut self, shape: &Shape) -> bool {
        if shape.loss <= 0.0 || shape.burst <= 1.0 {
            self.losing = false;
            return self.draws.happens(shape.loss);
        }
        let ends = 1.0 / shape.burst;
        let begins = ends * shape.loss / (1.0 - shape.loss).max(1e-9);
        let changes = if self.losing { ends } else { begins };
        if self.draws.happens(changes) {
            self.losing = !self.losing;
        }
        self.losing
    }

    /// When the packet is through the narrow part; `None` when its queue is full.
    #[expect(clippy::cast_precision_loss, reason = "rates and lengths are far below 2^52")]
    fn passes(&mut self, shape: &Shape, length: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = shape.rate else { return Some(now) };
        let begins = self.free_at.max(now);
        if begins - now > shape.queue {
            return None;
        }
        self.free_at = begins + Duration::from_secs_f64(length as f64 / rate.max(1) as f64);
        Some(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `count` numbered packets of `length` bytes, one each `every`, and returns (number, arrival, bytes intact).
    fn sent(
        shape: &Shape,
        seed: u64,
        count: u32,
        length: usize,
        every: Duration,
    ) -> Vec<(u32, Duration, bool)> {
        let start = Instant::now();
        let mut lane = Lane::new(seed, start);
        let mut out = Vec::new();
        let packet = |number: u32| {
            let mut packet = vec![0xa5; length];
            packet[..4].copy_from_slice(&number.to_be_bytes());
            packet
        };
        for number in 0..count {
            lane.enter(shape, number, &packet(number), start + every * number);
        }
        while let Some(at) = lane.next() {
            let (number, bytes) = lane.leave(at).unwrap();
            out.push((number, at - start, bytes == packet(number)));
        }
        out
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_plain_wire_changes_nothing() {
        let arrived = sent(&Shape::default(), 1, 1000, 100, MS);
        assert_eq!(arrived.len(), 1000);
        for (index, (number, at, intact)) in arrived.into_iter().enumerate() {
            assert_eq!((number as usize, at, intact), (index, MS * number, true));
        }
    }

    #[test]
    fn delay_is_exact_and_jitter_stays_within_its_bounds_and_in_order() {
        let shape = Shape { delay: 50 * MS, ..Shape::default() };
        assert!(sent(&shape, 1, 100, 100, MS).iter().all(|(number, at, _)| *at == MS * *number + 50 * MS));
        let shape = Shape { jitter: 12 * MS, ..shape };
        let arrived = sent(&shape, 1, 1000, 100, 30 * MS);
        let delays: Vec<Duration> = arrived.iter().map(|(number, at, _)| *at - 30 * MS * *number).collect();
        assert!(delays.iter().all(|delay| (38 * MS..=62 * MS).contains(delay)), "{delays:?}");
        assert!(delays.iter().any(|delay| *delay < 41 * MS) && delays.iter().any(|delay| *delay > 59 * MS));
        assert!(sent(&shape, 1, 1000, 100, MS).is_sorted_by_key(|(number, ..)| *number), "order is kept");
    }

    #[test]
    fn loss_is_as_told_alone_and_in_bursts() {
        for burst in [1.0, 6.0, 20.0] {
            let shape = Shape { loss: 0.08, burst, ..Shape::default() };
            let arrived = sent(&shape, 7, 200_000, 8, MS);
            let lost = 1.0 - arrived.len() as f64 / 200_000.0;
            assert!((0.07..0.09).contains(&lost), "burst {burst}: {lost}");
            let gaps = arrived.windows(2).filter(|pair| pair[1].0 != pair[0].0 + 1).count();
            let mean = lost * 200_000.0 / gaps as f64;
            assert!((burst * 0.85..burst * 1.2).contains(&mean), "burst {burst}: mean {mean}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_wire() {
        let shape =
            Shape { loss: 0.1, burst: 3.0, reorder: 0.1, duplicate: 0.1, corrupt: 0.1, ..Shape::default() };
        assert_eq!(sent(&shape, 3, 5000, 64, MS), sent(&shape, 3, 5000, 64, MS));
        assert_ne!(sent(&shape, 3, 5000, 64, MS), sent(&shape, 4, 5000, 64, MS));
    }

    #[test]
    fn packets_are_doubled_broken_and_overtaken_as_often_as_told() {
        let shape =
            Shape { duplicate: 0.05, corrupt: 0.02, reorder: 0.1, delay: 10 * MS, ..Shape::default() };
        let arrived = sent(&shape, 5, 50_000, 64, MS);
        let part = |count: usize| count as f64 / 50_000.0;
        let doubled = part(arrived.len() - 50_000);
        let broken = part(arrived.iter().filter(|(.., intact)| !intact).count());
        let late = part(arrived.iter().filter(|(number, at, _)| *at > MS * *number + 10 * MS).count());
        assert!((0.045..0.055).contains(&doubled), "{doubled}");
        assert!((0.017..0.024).contains(&broken), "{broken}");
        assert!((0.09..0.12).contains(&late), "{late}");
        assert!(!arrived.is_sorted_by_key(|(number, ..)| *number), "some are overtaken");
    }

    #[test]
    fn a_narrow_wire_passes_its_rate_and_drops_what_its_queue_cannot_hold() {
        // 100 kB/s: a packet of 1000 bytes takes 10 ms, and the queue holds 200 ms.
        let shape = Shape { rate: Some(100_000), ..Shape::default() };
        let arrived = sent(&shape, 1, 1000, 1000, MS);
        let last = arrived.last().unwrap().1;
        assert!((95..=125).contains(&arrived.len()), "{}", arrived.len());
        assert!(last <= 1220 * MS, "{last:?}");
        assert!(arrived.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 10 * MS));
        let slow_enough = sent(&shape, 1, 100, 1000, 10 * MS);
        assert_eq!(slow_enough.len(), 100, "nothing is lost at the rate of the wire");
    }

    #[test]
    fn cut_and_too_large_pass_nothing() {
        let passes = |shape: &Shape, length| sent(shape, 1, 10, length, MS).len();
        assert_eq!(passes(&Shape { cut: true, ..Shape::default() }, 10), 0);
        let small = Shape { mtu: Some(1280), ..Shape::default() };
        assert_eq!((passes(&small, 1280), passes(&small, 1281)), (10, 0));
    }
}

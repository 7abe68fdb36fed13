//! What a neighbor has and we lack, asked for a batch at a time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use plexus_proto::id::Address;
use plexus_proto::link::Want;

use super::ORIGINS_MAX;

/// Announcements asked for at a time, so that a large map crosses a link, and floods on, at a pace that queues bear.
pub(super) const WANT_BATCH: usize = 512;
/// When what was asked for is taken as lost, should the neighbor say again that it has it.
pub(super) const WANT_PATIENCE: Duration = Duration::from_secs(10);
/// What we lack and the neighbor has.
#[derive(Debug, Default)]
pub(super) struct Wants {
    /// Asked for, not here yet.
    asked: BTreeSet<u32>,
    asked_at: Option<Instant>,
    /// Asked for next.
    next: BTreeSet<u32>,
}

impl Wants {
    /// Notes what the neighbor has; what to ask for now, if nothing is under way.
    pub(super) fn add(&mut self, lacking: impl Iterator<Item = u32>, now: Instant) -> Option<Want> {
        if self.asked_at.is_some_and(|at| at + WANT_PATIENCE <= now) {
            self.asked.clear();
        }
        for origin in lacking.filter(|origin| !self.asked.contains(origin)) {
            if self.next.len() >= ORIGINS_MAX {
                break;
            }
            self.next.insert(origin);
        }
        self.ask(now)
    }

    /// Notes that `origin` came; what to ask for next, if that was the last of what was asked.
    pub(super) fn arrived(&mut self, origin: Address, now: Instant) -> Option<Want> {
        self.next.remove(&origin.0);
        if self.asked.remove(&origin.0) { self.ask(now) } else { None }
    }

    fn ask(&mut self, now: Instant) -> Option<Want> {
        if !self.asked.is_empty() || self.next.is_empty() {
            return None;
        }
        let rest = self.next.iter().nth(WANT_BATCH).copied();
        let rest = rest.map_or_else(BTreeSet::new, |first| self.next.split_off(&first));
        self.asked = std::mem::replace(&mut self.next, rest);
        self.asked_at = Some(now);
        Some(Want { origins: self.asked.iter().copied().collect() })
    }
}

//! What all spools of this node hold together, and what follows from it for each.
//!
//! Beyond the limit every unit's quota is the smallest that works: whoever holds more waits, and whoever holds less goes on,
//! because the newest piece of a spool is at work and cannot be deleted, whatever is acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tracing::{info, warn};

use super::Supervisor;
use super::unit::Request;
use crate::config::{SPOOL_QUOTA_MIN, WorkSection};
use crate::shim::protocol::Quota;

/// The share of the limit that must be free again before units are let go: they would else be held and let go in turn.
const AIR: u64 = 16;

/// The sum of all spools.
#[derive(Debug)]
pub(super) struct Spools {
    each: u64,
    /// 0: none.
    limit: u64,
    held: AtomicU64,
    over: watch::Sender<bool>,
}

impl Spools {
    pub(super) fn new(work: &WorkSection) -> Self {
        Self {
            each: work.spool_quota_mib << 20,
            limit: work.spool_total_mib << 20,
            held: AtomicU64::new(0),
            over: watch::Sender::new(false),
        }
    }

    /// A spool of `before` bytes now has `after`.
    pub(super) fn changed(&self, before: u64, after: u64) {
        // Wrapping is what makes a smaller spool a subtraction.
        let change = after.wrapping_sub(before);
        let held = self.held.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        let (limit, air) = (self.limit, self.limit / AIR);
        let news = self.over.send_if_modified(|over| {
            let now = limit > 0 && held >= if *over { limit - air } else { limit };
            std::mem::replace(over, now) != now
        });
        if news && self.is_over() {
            warn!(held, limit, "the spools of this node are full together; their units are held");
        } else if news {
            info!(held, limit, "there is room for the output of units again");
        }
    }

    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// What a unit's spool may hold.
    pub(super) fn quota(&self) -> Quota {
        match self.is_over() {
            true => Quota { bytes: self.each.min(SPOOL_QUOTA_MIN), shared: true },
            false => Quota { bytes: self.each, shared: false },
        }
    }
}

impl Supervisor {
    /// Tells every unit when its quota is another.
    pub(super) async fn pass_on_quotas(&self) {
        let mut over = self.0.spools.over.subscribe();
        while over.changed().await.is_ok() {
            let units: Vec<_> = self.0.units().values().map(|unit| unit.requests.clone()).collect();
            for requests in units {
                requests.send(Box::new(Request::Quota)).await.ok(); // forgotten meanwhile
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_held_at_the_limit_and_let_go_with_some_air() {
        let spools = Spools::new(&WorkSection { spool_total_mib: 160, ..WorkSection::default() });
        let (mib, free) = (1 << 20, Quota { bytes: 4096 << 20, shared: false });
        spools.changed(0, 100 * mib);
        assert_eq!(spools.quota(), free);
        spools.changed(0, 60 * mib);
        assert_eq!(spools.quota(), Quota { bytes: 16 * mib, shared: true });
        spools.changed(100 * mib, 95 * mib);
        assert!(spools.is_over());
        spools.changed(60 * mib, 0);
        assert_eq!(spools.quota(), free);
        let without = Spools::new(&WorkSection { spool_total_mib: 0, ..WorkSection::default() });
        without.changed(0, u64::MAX / 2);
        assert_eq!(without.quota(), free);
    }
}

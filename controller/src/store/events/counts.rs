//! What became of records and events since the start: every drop, gap, retry and fence has its number.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Numbers that only rise, shared by all who work on the store.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: Counter,)* }

        /// The numbers at a moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Records that sessions were given.
    records_received,
    /// Of these, stored: with their events, or in carry and staging.
    records_stored,
    /// Of these, stored before: acknowledged once more and passed over.
    records_repeated,
    /// Of these, refused: sent by a node at fault, or sealed with another key; never acknowledged.
    records_refused,
    /// Of these, taken and not stored after all: their session opens again and goes on from the cursor.
    undone,
    /// Records that never came and are a named gap.
    records_missing,
    /// Events stored.
    events_stored,
    /// Gaps named.
    gaps_named,
    /// Transactions committed.
    commits,
    /// Times a transaction was tried again: a lock, a full disk, a server that was down.
    retries,
    /// Units left out of a transaction because somebody else owns them by now.
    fenced,
    /// Units that their node forgot, every record that it had of them being stored or a named gap.
    units_balanced,
    /// Units of which their node had more or fewer records than are stored or a named gap. There are none.
    units_unbalanced,
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

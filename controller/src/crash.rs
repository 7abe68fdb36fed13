//! Numbered points at which a test can kill the process: from a record's arrival to its acknowledgement, and from a
//! token's arrival to the certificate that it is redeemed for.
//!
//! Only in builds with the feature `crash-points`; otherwise [`Point::hit`] is nothing. `PLEXUS_CRASH_AT=before-commit`
//! kills at the first passage, `PLEXUS_CRASH_AT=before-commit:3` at the third. The process dies by SIGKILL to itself, as
//! if the power had gone: no destructor runs, nothing is flushed.

/// A place in the code where dying is interesting. Later points are appended; names stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A sealed record came from a node.
    RecordReceived,
    /// Its seal is open.
    Unsealed,
    /// Its items are read; nothing is stored.
    Parsed,
    /// It waits for the writer of its month.
    Queued,
    /// The writer began a transaction.
    InTransaction,
    /// Everything is written, nothing committed.
    BeforeCommit,
    /// Committed; nobody knows.
    AfterCommit,
    /// The session was told, the node was not.
    Acknowledgeable,
    /// The acknowledgement went to the node.
    AckSent,
    /// A machine asks with a token that is good; nothing is written.
    TokenChecked,
    /// Its certificate is made; nobody knows.
    Certified,
    /// The token's use, the certificate and the member are written, nothing committed.
    EnrolmentWritten,
    /// Committed; the machine has no answer.
    Enrolled,
}

impl Point {
    /// Those of a redeemed token, in order.
    pub const ENROLMENT: [Self; 4] =
        [Self::TokenChecked, Self::Certified, Self::EnrolmentWritten, Self::Enrolled];

    /// Those of a record, in order.
    pub const RECORD: [Self; 9] = [
        Self::RecordReceived,
        Self::Unsealed,
        Self::Parsed,
        Self::Queued,
        Self::InTransaction,
        Self::BeforeCommit,
        Self::AfterCommit,
        Self::Acknowledgeable,
        Self::AckSent,
    ];

    /// The name used in `PLEXUS_CRASH_AT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RecordReceived => "record-received",
            Self::Unsealed => "unsealed",
            Self::Parsed => "parsed",
            Self::Queued => "queued",
            Self::InTransaction => "in-transaction",
            Self::BeforeCommit => "before-commit",
            Self::AfterCommit => "after-commit",
            Self::Acknowledgeable => "acknowledgeable",
            Self::AckSent => "ack-sent",
            Self::TokenChecked => "token-checked",
            Self::Certified => "certified",
            Self::EnrolmentWritten => "enrolment-written",
            Self::Enrolled => "enrolled",
        }
    }

    /// Every point.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::RECORD.into_iter().chain(Self::ENROLMENT)
    }

    /// Passes the point, or dies there.
    #[inline]
    pub fn hit(self) {
        #[cfg(feature = "crash-points")]
        armed::hit(self);
    }
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Point;

    struct Armed {
        point: Point,
        /// Passages still to survive, and the last one.
        left: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let text = std::env::var("PLEXUS_CRASH_AT").ok()?;
        let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
        let point = Point::all().find(|point| point.name() == name);
        let nth = nth.parse().ok().filter(|&nth| nth > 0);
        match (point, nth) {
            (Some(point), Some(nth)) => Some(Armed { point, left: AtomicU64::new(nth) }),
            // A test that arms a point which is not there would pass without testing anything.
            _ => panic!("PLEXUS_CRASH_AT={text} names no crash point"),
        }
    });

    pub(super) fn hit(point: Point) {
        let Some(armed) = &*ARMED else { return };
        if armed.point == point && armed.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way; nothing more may happen in between.
            loop {
                std::thread::park();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Point;

    #[test]
    fn names_are_distinct() {
        let names: std::collections::BTreeSet<_> = Point::all().map(Point::name).collect();
        assert_eq!(names.len(), Point::all().count());
    }
}

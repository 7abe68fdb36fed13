//! Numbered points at which a test can kill agent or shim, from a unit's submit to the end of its directory.
//!
//! Only in builds with the feature `crash-points`; otherwise [`Point::hit`] is nothing. `PLEXUS_CRASH_AT=marked` kills at
//! the first passage, `PLEXUS_CRASH_AT=ack-heard:3` at the third; a shim inherits the variable from its agent. The process
//! writes the point's name to the file `PLEXUS_CRASH_NOTE`, if one is named, and dies by SIGKILL to itself: no destructor
//! runs, nothing is flushed.

/// A place in the code where dying is interesting. Later points are appended; names stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Agent: a new unit was submitted; nothing is stored.
    SubmitHeard,
    /// Agent: its intent is synced; nobody was told.
    IntentStored,
    /// Agent: it has a shim without anything to run.
    ShimTaken,
    /// Agent: its private block lies on tmpfs.
    LaidOut,
    /// Agent: marked as started, synced; the shim does not know.
    Marked,
    /// Agent: the launch is on its way to the shim.
    LaunchSent,
    /// Shim: it has its launch, and no spool.
    LaunchHeard,
    /// Shim: the spool is there, the worker is not.
    SpoolBegun,
    /// Shim: the worker runs; no record says so.
    Spawned,
    /// Shim: the started record is written; the agent does not know.
    StartedWritten,
    /// Agent: it was told that the worker runs.
    StartedHeard,
    /// Shim: a record is written, not synced.
    RecordWritten,
    /// Shim: records are synced.
    Synced,
    /// Shim: the agent was told of records.
    Reported,
    /// Agent: records are read from the spool, not sent.
    RecordRead,
    /// Agent: records are sent.
    RecordSent,
    /// Agent: an acknowledgement came; nothing is deleted.
    AckHeard,
    /// Agent: what was acknowledged is deleted.
    Trimmed,
    /// Agent: a cancel came.
    CancelHeard,
    /// Agent: the cancel is on its way to the shim.
    CancelPassed,
    /// Shim: the worker was signalled.
    Signalled,
    /// Shim: the worker ended.
    WorkerEnded,
    /// Shim: nothing of its tree is left.
    TreeGone,
    /// Shim: nothing private is left; the end record is not written.
    PrivateRemoved,
    /// Shim: the end record is written, not synced.
    EndWritten,
    /// Shim: the end record is synced; the agent does not know.
    EndSynced,
    /// Shim: the agent was told of the end.
    EndReported,
    /// Agent: it was told of the end; nothing is stored.
    EndHeard,
    /// Agent: the outcome is synced.
    OutcomeStored,
    /// Agent: the unit's directory on tmpfs is gone.
    PrivateWiped,
    /// Agent: a unit may be forgotten; nothing is stored.
    ForgetHeard,
    /// Agent: its name is stored among those that never start again.
    Buried,
    /// Agent: its directory has a name to be deleted by.
    Renamed,
}

impl Point {
    /// All points, in the order of a unit's life.
    pub const ALL: [Self; 33] = [
        Self::SubmitHeard,
        Self::IntentStored,
        Self::ShimTaken,
        Self::LaidOut,
        Self::Marked,
        Self::LaunchSent,
        Self::LaunchHeard,
        Self::SpoolBegun,
        Self::Spawned,
        Self::StartedWritten,
        Self::StartedHeard,
        Self::RecordWritten,
        Self::Synced,
        Self::Reported,
        Self::RecordRead,
        Self::RecordSent,
        Self::AckHeard,
        Self::Trimmed,
        Self::CancelHeard,
        Self::CancelPassed,
        Self::Signalled,
        Self::WorkerEnded,
        Self::TreeGone,
        Self::PrivateRemoved,
        Self::EndWritten,
        Self::EndSynced,
        Self::EndReported,
        Self::EndHeard,
        Self::OutcomeStored,
        Self::PrivateWiped,
        Self::ForgetHeard,
        Self::Buried,
        Self::Renamed,
    ];

    /// The name used in `PLEXUS_CRASH_AT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SubmitHeard => "submit-heard",
            Self::IntentStored => "intent-stored",
            Self::ShimTaken => "shim-taken",
            Self::LaidOut => "laid-out",
            Self::Marked => "marked",
            Self::LaunchSent => "launch-sent",
            Self::LaunchHeard => "launch-heard",
            Self::SpoolBegun => "spool-begun",
            Self::Spawned => "spawned",
            Self::StartedWritten => "started-written",
            Self::StartedHeard => "started-heard",
            Self::RecordWritten => "record-written",
            Self::Synced => "synced",
            Self::Reported => "reported",
            Self::RecordRead => "record-read",
            Self::RecordSent => "record-sent",
            Self::AckHeard => "ack-heard",
            Self::Trimmed => "trimmed",
            Self::CancelHeard => "cancel-heard",
            Self::CancelPassed => "cancel-passed",
            Self::Signalled => "signalled",
            Self::WorkerEnded => "worker-ended",
            Self::TreeGone => "tree-gone",
            Self::PrivateRemoved => "private-removed",
            Self::EndWritten => "end-written",
            Self::EndSynced => "end-synced",
            Self::EndReported => "end-reported",
            Self::EndHeard => "end-heard",
            Self::OutcomeStored => "outcome-stored",
            Self::PrivateWiped => "private-wiped",
            Self::ForgetHeard => "forget-heard",
            Self::Buried => "buried",
            Self::Renamed => "renamed",
        }
    }

    /// True where the shim dies, false where the agent does.
    pub const fn is_in_shim(self) -> bool {
        match self {
            Self::LaunchHeard
            | Self::SpoolBegun
            | Self::Spawned
            | Self::StartedWritten
            | Self::RecordWritten
            | Self::Synced
            | Self::Reported
            | Self::Signalled
            | Self::WorkerEnded
            | Self::TreeGone
            | Self::PrivateRemoved
            | Self::EndWritten
            | Self::EndSynced
            | Self::EndReported => true,
            Self::SubmitHeard
            | Self::IntentStored
            | Self::ShimTaken
            | Self::LaidOut
            | Self::Marked
            | Self::LaunchSent
            | Self::StartedHeard
            | Self::RecordRead
            | Self::RecordSent
            | Self::AckHeard
            | Self::Trimmed
            | Self::CancelHeard
            | Self::CancelPassed
            | Self::EndHeard
            | Self::OutcomeStored
            | Self::PrivateWiped
            | Self::ForgetHeard
            | Self::Buried
            | Self::Renamed => false,
        }
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
        let point = Point::ALL.into_iter().find(|point| point.name() == name);
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
            if let Some(note) = std::env::var_os("PLEXUS_CRASH_NOTE") {
                std::fs::write(note, point.name()).ok();
            }
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
        let names: std::collections::BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }
}

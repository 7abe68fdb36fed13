//! Numbered points at which a test can kill agent or shim, from a unit's submit to the end of its directory.
//!
//! Only in builds with the feature `crash-points`; otherwise [`Point::hit`] is nothing. See [`plexus_mesh::crash`].

plexus_mesh::crash_points! {
    /// Agent: a new unit was submitted; nothing is stored.
    SubmitHeard = "submit-heard",
    /// Agent: its intent is synced; nobody was told.
    IntentStored = "intent-stored",
    /// Agent: it has a shim without anything to run.
    ShimTaken = "shim-taken",
    /// Agent: its private block lies on tmpfs.
    LaidOut = "laid-out",
    /// Agent: marked as started, synced; the shim does not know.
    Marked = "marked",
    /// Agent: the launch is on its way to the shim.
    LaunchSent = "launch-sent",
    /// Shim: it has its launch, and no spool.
    LaunchHeard = "launch-heard",
    /// Shim: the spool is there, the worker is not.
    SpoolBegun = "spool-begun",
    /// Shim: the worker runs; no record says so.
    Spawned = "spawned",
    /// Shim: the started record is written; the agent does not know.
    StartedWritten = "started-written",
    /// Agent: it was told that the worker runs.
    StartedHeard = "started-heard",
    /// Shim: a record is written, not synced.
    RecordWritten = "record-written",
    /// Shim: records are synced.
    Synced = "synced",
    /// Shim: the agent was told of records.
    Reported = "reported",
    /// Agent: records are read from the spool, not sent.
    RecordRead = "record-read",
    /// Agent: records are sent.
    RecordSent = "record-sent",
    /// Agent: an acknowledgement came; nothing is deleted.
    AckHeard = "ack-heard",
    /// Agent: what was acknowledged is deleted.
    Trimmed = "trimmed",
    /// Agent: a cancel came.
    CancelHeard = "cancel-heard",
    /// Agent: the cancel is on its way to the shim.
    CancelPassed = "cancel-passed",
    /// Shim: the worker was signalled.
    Signalled = "signalled",
    /// Shim: the worker ended.
    WorkerEnded = "worker-ended",
    /// Shim: nothing of its tree is left.
    TreeGone = "tree-gone",
    /// Shim: nothing private is left; the end record is not written.
    PrivateRemoved = "private-removed",
    /// Shim: the end record is written, not synced.
    EndWritten = "end-written",
    /// Shim: the end record is synced; the agent does not know.
    EndSynced = "end-synced",
    /// Shim: the agent was told of the end.
    EndReported = "end-reported",
    /// Agent: it was told of the end; nothing is stored.
    EndHeard = "end-heard",
    /// Agent: the outcome is synced.
    OutcomeStored = "outcome-stored",
    /// Agent: the unit's directory on tmpfs is gone.
    PrivateWiped = "private-wiped",
    /// Agent: a unit may be forgotten; nothing is stored.
    ForgetHeard = "forget-heard",
    /// Agent: its name is stored among those that never start again.
    Buried = "buried",
    /// Agent: its directory has a name to be deleted by.
    Renamed = "renamed",
}

impl Point {
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

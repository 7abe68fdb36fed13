//! Numbered points at which a test can kill the process: from a record's arrival to its acknowledgement, from a
//! token's arrival to the certificate that it is redeemed for, at the end of a project's update, and in an inventory's.
//!
//! Only in builds with the feature `crash-points`; otherwise [`Point::hit`] is nothing. See [`plexus_mesh::crash`].

plexus_mesh::crash_points! {
    /// A sealed record came from a node.
    RecordReceived = "record-received",
    /// Its seal is open.
    Unsealed = "unsealed",
    /// Its items are read; nothing is stored.
    Parsed = "parsed",
    /// It waits for the writer of its month.
    Queued = "queued",
    /// The writer began a transaction.
    InTransaction = "in-transaction",
    /// Everything is written, nothing committed.
    BeforeCommit = "before-commit",
    /// Committed; nobody knows.
    AfterCommit = "after-commit",
    /// The session was told, the node was not.
    Acknowledgeable = "acknowledgeable",
    /// The acknowledgement went to the node.
    AckSent = "ack-sent",
    /// A machine asks with a token that is good; nothing is written.
    TokenChecked = "token-checked",
    /// Its certificate is made; nobody knows.
    Certified = "certified",
    /// The token's use, the certificate and the member are written, nothing committed.
    EnrolmentWritten = "enrolment-written",
    /// Committed; the machine has no answer.
    Enrolled = "enrolled",
    /// The tree that an update brought is on the disk; no row names it.
    TreeKept = "tree-kept",
    /// Its row does; the update is not over.
    TreeNoted = "tree-noted",
    /// A part of an import is committed; more is to come.
    ImportPart = "import-part",
    /// All of an import is committed; its job is not over.
    ImportWhole = "import-whole",
}

impl Point {
    /// Those of a record, in order.
    pub fn of_a_record() -> impl ExactSizeIterator<Item = Self> {
        let (of_a_record, _) = Self::ALL.split_at(Self::TokenChecked as usize);
        of_a_record.iter().copied()
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

//! The safety lines, and the tests that guard them.

use std::fmt;

/// Tests of the packages that are built: those whose name contains `filter`, in their libraries or in one file of `tests/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tests {
    /// A file of `tests/`, without its extension; none for tests of the libraries.
    pub(super) file: Option<&'static str>,
    /// Part of the tests' names.
    pub(super) filter: &'static str,
}

/// One line taken away.
#[derive(Debug)]
pub(super) struct Mutant {
    /// What is missing.
    pub(super) name: &'static str,
    /// Source file, from the top of the repository.
    pub(super) file: &'static str,
    /// Text that stands there exactly once.
    pub(super) old: &'static str,
    /// What stands there instead.
    pub(super) new: &'static str,
    /// What must fail.
    pub(super) tests: Tests,
}

impl fmt::Display for Tests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.file.unwrap_or("lib"), self.filter)
    }
}

const fn lib(filter: &'static str) -> Tests {
    Tests { file: None, filter }
}

const fn file(file: &'static str, filter: &'static str) -> Tests {
    Tests { file: Some(file), filter }
}

/// Every one of them must turn its tests red.
pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "sync of the end record",
        file: "node/src/spool/writer.rs",
        old: "        self.sync()?;\n        Ok(number)",
        new: "        Ok(number)",
        tests: lib("spool::tests::what_is_told_is_on_the_disk"),
    },
    Mutant {
        name: "sync of a full segment",
        file: "node/src/spool/writer.rs",
        old: "            self.sync()?;\n            let header",
        new: "            let header",
        tests: lib("spool::tests::what_is_told_is_on_the_disk"),
    },
    Mutant {
        name: "group sync of records",
        file: "node/src/shim/syncer.rs",
        old: "file.sync_data().is_ok()",
        new: "file.metadata().is_ok()",
        tests: lib("shim::syncer"),
    },
    Mutant {
        name: "sync of the intent",
        file: "node/src/unit_dir.rs",
        old: "    file.write_all(content)?;\n    file.sync_data()\n",
        new: "    file.write_all(content)\n",
        tests: lib("unit_dir::tests::what_is_stored_is_on_the_disk"),
    },
    Mutant {
        name: "sync of what replaces an intent",
        file: "node/src/unit_dir.rs",
        old: "write_synced(create(&fresh)?, &text)",
        new: "create(&fresh)?.write_all(&text)",
        tests: lib("unit_dir::tests::what_replaces_an_intent_is_on_the_disk_before_it_has_its_name"),
    },
    Mutant {
        name: "sync of a mark, and of an outcome",
        file: "node/src/unit_dir.rs",
        old: "written.and_then(|()| file.sync_data())",
        new: "written",
        tests: lib("unit_dir::tests::what_is_stored_is_on_the_disk"),
    },
    Mutant {
        name: "sync of tombstones",
        file: "node/src/supervisor/tombstones.rs",
        old: "        file.sync_data()?;\n",
        new: "",
        tests: lib("tombstones::tests::a_buried_name_is_on_the_disk"),
    },
    Mutant {
        name: "sync of incarnations",
        file: "node/src/supervisor/incarnations.rs",
        old: "        file.sync_all()?;\n",
        new: "",
        tests: lib("an_incarnation_is_on_the_disk_before_it_is_answered"),
    },
    Mutant {
        name: "mark before the start",
        file: "node/src/supervisor/unit/start.rs",
        old: "dir.mark_starting(slot.as_deref())",
        new: "Ok::<(), crate::unit_dir::Error>(drop(dir))",
        tests: file("trouble", "a_shim_killed_while_no_agent_lives_is_found_lost_and_never_run_again"),
    },
    Mutant {
        name: "epoch of a verb",
        file: "node/src/work.rs",
        old: "if epoch < held.epoch || (epoch == held.epoch && caller.node != held.node) {",
        new: "if epoch == held.epoch && caller.node != held.node {",
        tests: lib("work::tests"),
    },
    Mutant {
        name: "two holders of one epoch",
        file: "node/src/work.rs",
        old: "if epoch < held.epoch || (epoch == held.epoch && caller.node != held.node) {",
        new: "if epoch < held.epoch {",
        tests: lib("work::tests"),
    },
    Mutant {
        name: "cluster of the caller",
        file: "node/src/work.rs",
        old: "if caller.cluster == self.owner.cluster {",
        new: "if true {",
        tests: lib("work::tests"),
    },
    Mutant {
        name: "forget only what is settled",
        file: "node/src/work.rs",
        old: "        if self.is_settled() {\n            return Ok(vec![Effect::Bury]);",
        new: "        if true {\n            return Ok(vec![Effect::Bury]);",
        tests: lib("work::tests"),
    },
    Mutant {
        name: "acks of an older stream",
        file: "node/src/supervisor/unit.rs",
        old: "if attachment == self.attachment && epoch == self.unit.owner().epoch {",
        new: "if true {",
        tests: file("units", "a_newer_attach_ends_the_older_and_takes_the_acks"),
    },
    Mutant {
        name: "store of an attempt",
        file: "node/src/supervisor.rs",
        old: "if StoreId::from_slice(&request.store_id) != Ok(own) {",
        new: "if false {",
        tests: file("units", "submit_is_refused_for_another_store_an_older_epoch_and_a_second_attempt"),
    },
    Mutant {
        name: "names that never start again",
        file: "node/src/supervisor.rs",
        old: "        if self.0.tombstones.holds(attempt) {\n            return Err(forgotten",
        new: "        if false {\n            return Err(forgotten",
        tests: file("trouble", "a_controller_from_a_backup_cannot_run_again_what_ran_and_was_forgotten"),
    },
    Mutant {
        name: "incarnation of a cluster",
        file: "node/src/supervisor/incarnations.rs",
        old: "known.filter(|known| *known > epoch.incarnation)",
        new: "known.filter(|_| false)",
        tests: lib("incarnations::tests"),
    },
    Mutant {
        name: "delete only what is acknowledged",
        file: "node/src/spool.rs",
        old: "if pair[1] <= acked.saturating_add(1) {",
        new: "if pair[1] <= u64::MAX {",
        tests: lib("spool::tests"),
    },
    Mutant {
        name: "checksum of a frame",
        file: "node/src/spool/segment.rs",
        old: "if check(&[&bytes[4..5], &body]) != bytes[5..FRAME_HEADER_LEN] {",
        new: "if false {",
        tests: lib("spool::tests"),
    },
    Mutant {
        name: "cut of a torn tail",
        file: "node/src/spool/repair.rs",
        old: "        cut(dir, segment, length)?;\n    }\n    if let Some(closing)",
        new: "        let _ = (segment, length, cut);\n    }\n    if let Some(closing)",
        tests: lib("spool::tests"),
    },
    Mutant {
        name: "one spool for one key",
        file: "node/src/spool/writer.rs",
        old: "if !segments(dir)?.is_empty() {",
        new: "if false {",
        tests: lib("spool::tests"),
    },
    Mutant {
        name: "end of the whole tree",
        file: "node/src/shim/drive.rs",
        old: "if processes::kill_descendants() == 0 {",
        new: "if std::process::id() > 0 {",
        tests: file("trouble", "cancel_ends_setsid_children_that_ignore_sigterm_once_the_grace_is_over"),
    },
    Mutant {
        name: "grace runs from the first cancel",
        file: "node/src/shim/ending.rs",
        old: "        if self.cause.is_none() {\n            self.cause = Some(cause);",
        new: "        if self.cause.is_none() || cause == Cause::Cancel {\n            self.cause = Some(cause);",
        tests: lib("shim::ending"),
    },
    Mutant {
        name: "nothing private after the end",
        file: "node/src/supervisor/unit.rs",
        old: "        let wiped = self.wipe_runtime_dir().await;\n        Point::PrivateWiped.hit();\n",
        new: "        let wiped = true;\n        Point::PrivateWiped.hit();\n",
        tests: file("trouble", "a_killed_shim_means_lost_with_everything_written_so_far"),
    },
    Mutant {
        name: "number and attempt in the seal",
        file: "proto/src/seal.rs",
        old: "    bytes[16..20].copy_from_slice(&attempt.number.to_be_bytes());\n    bytes[20..]",
        new: "    bytes[20..]",
        tests: lib("seal::tests"),
    },
    Mutant {
        name: "place in the seal of the carry",
        file: "controller/src/ingest/seal.rs",
        old: "        bytes[20..].copy_from_slice(&place.bytes());\n",
        new: "        let _ = place.bytes();\n",
        tests: lib("ingest::seal"),
    },
    Mutant {
        name: "epoch in the transaction",
        file: "controller/src/store/events/commit.rs",
        old: "Some((epoch, record)) if *epoch == unit.epoch && *record == unit.previous => {}\n            Some((epoch, _)) if *epoch != unit.epoch => {",
        new: "Some((_, record)) if *record == unit.previous => {}\n            Some((epoch, _)) if *epoch != unit.epoch => {",
        tests: lib("an_epoch_written_by_somebody_else_stops_the_session"),
    },
    Mutant {
        name: "epoch at the open",
        file: "controller/src/store/events/commit.rs",
        old: "if current > open.epoch {",
        new: "if false {",
        tests: lib("ingest::tests"),
    },
    Mutant {
        name: "ack rule",
        file: "controller/src/store/events/commit.rs",
        old: "    Point::InTransaction.hit();\n",
        new: "    Point::InTransaction.hit();\n    bundle.units.iter().for_each(|unit| unit.commits.stored(unit.record));\n",
        tests: lib("after_a_write_that_failed_for_good_sessions_go_on_from_the_cursor"),
    },
    Mutant {
        name: "cursor in the transaction",
        file: "controller/src/store/events/commit.rs",
        old: "    insert_units(&mut transaction, &units).await?;\n",
        new: "    let _ = insert_units;\n",
        tests: lib("a_restart_after_any_record_loses_and_doubles_nothing"),
    },
    Mutant {
        name: "unique key of an event",
        file: "controller/src/store/events/schema.rs",
        old: "            EVENT,\n            &[\"job\", \"counter\"],\n",
        new: "            EVENT,\n            &[\"job\", \"counter\", \"kind\"],\n",
        tests: lib("a_number_of_a_job_is_given_to_one_event"),
    },
    Mutant {
        name: "hash of the end record",
        file: "controller/src/ingest/take.rs",
        old: "} else if end.rolling_hash[..] != self.carry.hash[..] {",
        new: "} else if false {",
        tests: lib("an_end_record_that_does_not_match_is_a_named_gap"),
    },
    Mutant {
        name: "sync of a commit",
        file: "controller/src/store/events/sqlite.rs",
        old: ".synchronous(SqliteSynchronous::Full)",
        new: ".synchronous(SqliteSynchronous::Off)",
        tests: lib("what_is_committed_is_on_the_disk"),
    },
    Mutant {
        name: "sync of a commit of the core",
        file: "controller/src/store/core.rs",
        old: "        self.core.settle().await?;\n",
        new: "",
        tests: lib("what_is_committed_here_is_on_the_disk"),
    },
    Mutant {
        name: "source address of a packet",
        file: "mesh/src/forward.rs",
        old: "if leaf.is_some_and(|leaf| leaf != header.source) || header.source == self.address {",
        new: "if header.source == self.address {",
        tests: lib("forward::tests::a_leaf_speaks_for_itself_only"),
    },
    Mutant {
        name: "own address on a packet from elsewhere",
        file: "mesh/src/forward.rs",
        old: "if leaf.is_some_and(|leaf| leaf != header.source) || header.source == self.address {",
        new: "if leaf.is_some_and(|leaf| leaf != header.source) {",
        tests: lib("forward::tests::a_leaf_speaks_for_itself_only"),
    },
    Mutant {
        name: "hop limit",
        file: "mesh/src/forward.rs",
        old: "        batch.set_hop_limit(header.hop_limit - 1);\n",
        new: "        batch.set_hop_limit(header.hop_limit);\n",
        tests: lib("forward::tests::a_packet_in_a_circle_ends_at_the_hop_limit"),
    },
    Mutant {
        name: "replay window of a link",
        file: "mesh/src/link/seal.rs",
        old: "if !epoch.window.is_new(counter) {",
        new: "if false {",
        tests: lib("link::seal::tests::what_was_sealed_opens_once"),
    },
    Mutant {
        name: "revocation of a certificate",
        file: "mesh/src/identity/verifier.rs",
        old: "self.revoked.load().since(&identity, &fingerprint(leaf.public_key())) {",
        new: "self.revoked.load().since(&identity, &fingerprint(leaf.public_key())).filter(|_| false) {",
        tests: lib("a_revoked_key_is_refused_and_another_of_the_name_is_not"),
    },
    Mutant {
        name: "range of addresses of an authority",
        file: "mesh/src/identity/verifier.rs",
        old: "if !scope.holds(identity.address) {",
        new: "if false {",
        tests: lib("identity::tests"),
    },
    Mutant {
        name: "who may revoke",
        file: "mesh/src/revocation.rs",
        old: "if signer.role != Role::Controller || signer.cluster != *cluster {",
        new: "if false {",
        tests: lib("only_controllers_revoke_and_only_in_their_cluster"),
    },
    Mutant {
        name: "number of a list of what is revoked",
        file: "mesh/src/revocation.rs",
        old: "known.is_some_and(|known| known >= list.number) || ",
        new: "",
        tests: lib("revocation::tests::the_highest_number_counts"),
    },
    Mutant {
        name: "what the table of roles does not know",
        file: "mesh/src/authorization.rs",
        old: "row.map_or(Verdict::Refused,",
        new: "row.map_or(Verdict::Taken,",
        tests: lib("what_is_not_in_the_table_is_refused"),
    },
    Mutant {
        name: "messages that a role may not say",
        file: "mesh/src/link.rs",
        old: "match authorization::verdict(Sent::Message(name), self.neighbor.role) {",
        new: "match Some(authorization::verdict(Sent::Message(name), self.neighbor.role)).filter(|_| false).unwrap_or(Verdict::Taken) {",
        tests: file("overlay", "every_message_of_every_role_meets_the_verdict_of_the_table"),
    },
    Mutant {
        name: "roles that may open a service",
        file: "mesh/src/authorization.rs",
        old: " && row.by.contains(&peer.role))",
        new: ")",
        tests: lib("authorization::tests"),
    },
    Mutant {
        name: "who announces",
        file: "mesh/src/routing/announcement.rs",
        old: "if origin != identity.address {",
        new: "if false {",
        tests: lib("routing::tests"),
    },
];

use std::time::Duration;

use bytes::Bytes;
use plexus_proto::work::{Finished, Outcome, Output, Record, RecordKind, Stream};
use proptest::prelude::*;

use super::take::STDERR_MAX;
use super::testing::{Spool, attempt, captured, cases, context, job};
use super::*;
use crate::debug::tally;
use crate::store::Engine;
use crate::store::events::{Event, EventQuery, EventSummary};
use crate::store::testing::{Place, on_each_engine};

const EPOCH: OwnerEpoch = OwnerEpoch { incarnation: 1, counter: 1 };

fn epoch(counter: u64) -> OwnerEpoch {
    OwnerEpoch { incarnation: 1, counter }
}

async fn session(store: &EventStore, unit: UnitContext, epoch: OwnerEpoch) -> Session {
    Ingest::new(store.clone()).open(unit, epoch).await.unwrap()
}

/// Pushes what the session wants of these, and waits until all of it is stored.
async fn feed(session: &mut Session, records: &[SealedRecord]) {
    let next = session.next_record();
    for record in records.iter().filter(|record| record.number >= next) {
        session.push(record.clone()).await.unwrap();
    }
    stored(session).await;
}

async fn stored(session: &Session) {
    let last = session.next_record() - 1;
    let mut acked = session.acked();
    let waiting = acked.wait_for(|&stored| stored >= last);
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("stored in time")
        .expect("not failed");
}

async fn all_events(store: &EventStore, id: i64) -> Vec<Event> {
    store.events(job(id), EventQuery { limit: 10_000, ..EventQuery::default() }).await.unwrap().events
}

/// An event without its job, as text.
fn shown(event: &Event) -> String {
    format!("{:?}", Event { job: 0, ..event.clone() })
}

/// Stores a whole attempt in one go: what all others are compared with.
async fn reference(place: &Place, stdout: &[u8]) -> (Vec<String>, EventSummary) {
    let place = Place::new(place.engine());
    let store = place.events().await;
    let mut session = session(&store, context(1, 1), EPOCH).await;
    feed(&mut session, &Spool::whole(attempt(1, 1), stdout, 1 << 20)).await;
    let answer =
        (all_events(&store, 1).await.iter().map(shown).collect(), store.summary(job(1)).await.unwrap());
    drop(session);
    store.close().await;
    answer
}

async fn every_captured_stream_is_stored_as_its_index_says(place: Place) {
    let store = place.events().await;
    for (id, case) in (1..).zip(cases()) {
        let stdout = captured(&case);
        let expected = tally::report([&stdout[..]]);
        let unit = context(id, id as i64);
        let mut session = session(&store, unit.clone(), EPOCH).await;
        feed(&mut session, &Spool::lines(unit.attempt, &stdout, 3)).await;
        let result = session.result().await.unwrap();
        assert_eq!(result.events, expected.event_count, "{case}");
        assert_eq!(result.eof, expected.eof, "{case}");
        assert_eq!(
            result.last_status.map(|status| status.as_str().to_owned()),
            expected.statuses.last().cloned(),
            "{case}"
        );
        assert_eq!(result.rc, expected.rc_file.as_deref().and_then(Rc::parse), "{case}");
        assert_eq!(result.artifacts, expected.artifacts, "{case}");
        assert_eq!(result.noise_lines, expected.other_lines, "{case}");
        let summary = store.summary(unit.job).await.unwrap();
        assert_eq!(summary.events, expected.event_count, "{case}");
        let by_kind: std::collections::BTreeMap<_, _> =
            expected.events.into_iter().map(|(kind, count)| (kind.replace("(none)", ""), count)).collect();
        assert_eq!(summary.by_kind, by_kind, "{case}");
        assert_eq!(summary.gaps, [], "{case}");
        let events = all_events(&store, unit.job.id).await;
        let mut line = 0;
        for (event, number) in events.iter().zip(1..) {
            assert_eq!(
                (event.counter, event.runner_counter, event.start_line),
                (number, Some(number), line),
                "{case}"
            );
            line = event.end_line;
        }
        assert_eq!((events.len() as u64, line), (summary.events, summary.last_line), "{case}");
    }
    store.close().await;
}

async fn results_say_what_the_playbook_did(place: Place) {
    let store = place.events().await;
    let mut session = session(&store, context(1, 1), EPOCH).await;
    assert!(matches!(session.result().await, Err(Error::Unfinished { .. })));
    feed(&mut session, &Spool::lines(attempt(1, 1), &captured("flow"), 1)).await;
    let result = session.result().await.unwrap();
    assert_eq!(result.host_summaries.len(), 1);
    assert!(
        result.host_summaries.values().any(|host| host.rescued > 0 && host.ok > 0),
        "{:?}",
        result.host_summaries
    );
    assert!(result.artifact_data.is_some());
    assert_eq!(result.started.unwrap().args[0], "ansible-playbook");
    assert_eq!(result.finished.unwrap().exit_code, Some(0));
    store.discard_staging(job(1), attempt(1, 1)).await.unwrap();
    assert_eq!(session.result().await.unwrap().rc, None, "staging is gone");
}

async fn a_restart_after_any_record_loses_and_doubles_nothing(place: Place) {
    for (case, size) in
        [("ok-2-hosts", 611), ("unicode-binary", 1999), ("debug-noise", 300), ("child-killed", 100)]
    {
        let stdout = captured(case);
        let expected = reference(&place, &stdout).await;
        let records = Spool::whole(attempt(1, 1), &stdout, size);
        let place = Place::new(place.engine());
        for (record, turn) in records.iter().zip(1..) {
            let store = place.events().await;
            let mut session = session(&store, context(1, 1), epoch(turn)).await;
            assert_eq!(session.next_record(), record.number, "{case}");
            session.push(record.clone()).await.unwrap();
            stored(&session).await;
            drop(session);
            store.close().await;
        }
        let store = place.events().await;
        let session = session(&store, context(1, 1), epoch(1 << 40)).await;
        let events: Vec<_> = all_events(&store, 1).await.iter().map(shown).collect();
        assert_eq!((events, store.summary(job(1)).await.unwrap()), expected, "{case}");
        let result = session.result().await.unwrap();
        let tally = tally::report([&stdout[..]]);
        assert_eq!(
            (result.eof, result.rc),
            (tally.eof, tally.rc_file.as_deref().and_then(Rc::parse)),
            "{case}"
        );
        assert_eq!(result.artifacts, tally.artifacts, "{case}");
        store.close().await;
    }
}

async fn a_session_dropped_at_any_moment_goes_on_from_the_cursor(place: Place) {
    let stdout = captured("flow");
    let expected = reference(&place, &stdout).await;
    let records = Spool::whole(attempt(1, 1), &stdout, 701);
    let store = place.events().await;
    let (mut turn, mut next) = (0, 1);
    while next <= records.len() as u64 {
        turn += 1;
        let mut session = session(&store, context(1, 1), epoch(turn)).await;
        next = session.next_record();
        // Some records, more each time; none of them waited for.
        for record in records.iter().skip(next as usize - 1).take(turn as usize) {
            session.push(record.clone()).await.unwrap();
        }
    }
    let events: Vec<_> = all_events(&store, 1).await.iter().map(shown).collect();
    assert_eq!((events, store.summary(job(1)).await.unwrap()), expected);
    store.close().await;
}

async fn records_taken_before_are_passed_over(place: Place) {
    let store = place.events().await;
    let records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 2);
    let mut session = session(&store, context(1, 1), EPOCH).await;
    for _ in 0..3 {
        for record in &records {
            session.push(record.clone()).await.unwrap();
        }
    }
    stored(&session).await;
    assert_eq!(store.summary(job(1)).await.unwrap().events, 18);
    assert_eq!(store.summary(job(1)).await.unwrap().gaps, []);
}

async fn two_sessions_of_an_attempt_never_both_write(place: Place) {
    let store = place.events().await;
    let records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 2);
    let mut older = session(&store, context(1, 1), epoch(1)).await;
    feed(&mut older, &records[..3]).await;
    let mut newer = session(&store, context(1, 1), epoch(2)).await;
    assert_eq!(newer.next_record(), 4);
    let mut acked = older.acked();
    let error = loop {
        match older.push(records[older.next_record() as usize - 1].clone()).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(error.is_fenced() && error.to_string().contains("cannot store"), "{error:?}");
    assert!(acked.wait_for(|&stored| stored > 3).await.is_err(), "the older session is told no more");
    feed(&mut newer, &records).await;
    assert_eq!(store.summary(job(1)).await.unwrap().events, 18);
    let refused = Ingest::new(store.clone()).open(context(1, 1), epoch(1)).await.unwrap_err();
    assert!(refused.is_fenced(), "{refused:?}");
}

async fn an_epoch_written_by_somebody_else_stops_the_session(place: Place) {
    let store = place.events().await;
    let records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 2);
    let mut ours = session(&store, context(1, 1), epoch(1)).await;
    feed(&mut ours, &records[..3]).await;
    // Another process, which this one's memory knows nothing of.
    let other = place.events().await;
    let mut theirs = session(&other, context(1, 1), epoch(2)).await;
    ours.push(records[3].clone()).await.unwrap();
    assert!(ours.acked().wait_for(|&stored| stored > 3).await.is_err());
    let error = ours.push(records[4].clone()).await.unwrap_err();
    assert!(error.is_fenced(), "{error:?}");
    feed(&mut theirs, &records).await;
    assert_eq!(other.summary(job(1)).await.unwrap().events, 18);
    drop((ours, theirs));
    other.close().await;
    store.close().await;
}

async fn missing_records_are_a_named_gap(place: Place) {
    let store = place.events().await;
    let mut records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 1);
    records.drain(5..8);
    let mut session = session(&store, context(1, 1), EPOCH).await;
    feed(&mut session, &records).await;
    let summary = store.summary(job(1)).await.unwrap();
    assert_eq!(summary.events, 15);
    let gaps: Vec<_> = summary.gaps.iter().map(|gap| (gap.kind, gap.detail.as_str())).collect();
    assert_eq!(
        gaps,
        [
            (GapKind::Records, "3 records are missing, 6 to 8"),
            (GapKind::RunnerCounter, "the runner counts from 2 to 6: 3 to 5 are missing"),
        ]
    );
    let events = all_events(&store, 1).await;
    assert!(events.iter().zip(1..).all(|(event, number)| event.counter == number), "ours have no holes");
    assert_eq!(events[2].runner_counter, Some(6));
}

async fn an_end_record_that_does_not_match_is_a_named_gap(place: Place) {
    let hash = |spool: &Spool| {
        let mut hash = RollingHash::default();
        spool.records.iter().for_each(|record| hash.update(record.number, &record.sealed));
        hash.value()
    };
    for (case, records, flip) in [(1u128, 2, 0), (2, 2, 1), (3, 9, 0)] {
        let place = Place::new(place.engine());
        let store = place.events().await;
        let mut spool = Spool::new(attempt(case, 1));
        spool.stdout(b"{\"status\": \"starting\"}\n");
        let mut value = hash(&spool);
        value[0] ^= flip;
        let finished = Finished {
            outcome: Outcome::Failed.into(),
            exit_code: Some(1),
            signal: None,
            reason: "x".into(),
        };
        spool.end_with(records, value, finished);
        let mut session = session(&store, context(case, 1), EPOCH).await;
        feed(&mut session, &spool.records).await;
        let kinds: Vec<_> = session.result().await.unwrap().gaps.iter().map(|gap| gap.kind).collect();
        let expected: &[GapKind] = if case == 1 { &[] } else { &[GapKind::EndMismatch] };
        assert_eq!(kinds, expected, "case {case}");
    }
}

async fn a_lost_shim_ends_the_attempt(place: Place) {
    let store = place.events().await;
    let mut spool = Spool::new(attempt(1, 1));
    spool.stdout(&captured("ok-2-hosts")[..9000]);
    spool.lost("shim died");
    let mut session = session(&store, context(1, 1), EPOCH).await;
    feed(&mut session, &spool.records).await;
    assert!(session.is_complete());
    let result = session.result().await.unwrap();
    assert_eq!((result.lost.as_deref(), result.finished, result.eof), (Some("shim died"), None, false));
    assert_eq!(result.gaps.iter().map(|gap| gap.kind).collect::<Vec<_>>(), [GapKind::Lost]);
    assert!(result.events > 0 && result.last_status == Some(RunnerStatus::Running));
}

async fn a_header_stands_before_the_first_event_and_shifts_the_lines(place: Place) {
    let store = place.events().await;
    for (unit, case) in [(1u128, "ok-2-hosts"), (2, "bad-option")] {
        let id = unit as i64;
        let context =
            UnitContext { header: Some("Execution environment: \"ee\"".into()), ..context(unit, id) };
        let records = Spool::lines(context.attempt, &captured(case), 1);
        // Opened anew before each record: the header still comes once.
        for (record, turn) in records.iter().zip(1..) {
            let mut session = session(&store, context.clone(), epoch(turn)).await;
            session.push(record.clone()).await.unwrap();
            stored(&session).await;
        }
        let events = all_events(&store, id).await;
        let first = events[0].stdout.split("\r\n").collect::<Vec<_>>();
        assert_eq!(first[0], "Execution environment: \"ee\"");
        assert_eq!((events[0].start_line, events[1].start_line), (0, events[0].end_line));
        let (plain, summary) = reference(&place, &captured(case)).await;
        assert_eq!(events.len(), plain.len());
        assert_eq!(store.summary(job(id)).await.unwrap().last_line, summary.last_line + 1);
    }
}

async fn standard_error_is_kept_apart_and_bounded(place: Place) {
    let store = place.events().await;
    let mut spool = Spool::new(attempt(1, 1));
    for number in 0..40 {
        spool.stderr(format!("{number}: {}\n", "x".repeat(5000)).as_bytes());
    }
    spool.stderr(b"Traceback: the end\n");
    spool.end();
    // Opened anew before each record.
    for (record, turn) in spool.records.iter().zip(1..) {
        let mut session = session(&store, context(1, 1), epoch(turn)).await;
        session.push(record.clone()).await.unwrap();
        stored(&session).await;
    }
    let session = session(&store, context(1, 1), epoch(100)).await;
    let result = session.result().await.unwrap();
    assert_eq!(result.stderr_tail.len(), STDERR_MAX);
    assert!(result.stderr_tail.ends_with("x\nTraceback: the end\n"));
    assert_eq!((result.events, result.noise_lines, result.last_status), (0, 0, None));
}

async fn secrets_are_masked_and_nothing_readable_lies_in_the_file(place: Place) {
    let store = place.events().await;
    let context = UnitContext { masks: vec!["s3cret-value".into()], ..context(1, 1) };
    let mut session = session(&store, context, EPOCH).await;
    let mut spool = Spool::new(attempt(1, 1));
    spool.stdout(
        b"{\"status\": \"starting\", \"command\": [\"ansible-playbook\", \"-e\", \"{\\\"p\\\": \\\"s3cret-value\\\"}\"], \
          \"env\": {\"PATH\": \"/bin\", \"MY_TOKEN\": \"t0ken-value\", \"URL\": \"https://u:ur1-pass@h/\"}, \"cwd\": \"/runner\"}\n",
    );
    spool.stdout(b"{\"status\": \"running\", \"half\": \"s3cret-value");
    spool.stderr(b"s3cret-value");
    feed(&mut session, &spool.records).await;
    // While it runs: carry, half a line, standard error.
    let bytes = place.bytes().await;
    for secret in ["s3cret-value", "t0ken-value", "ur1-pass"] {
        assert!(memchr::memmem::find(&bytes, secret.as_bytes()).is_none(), "{secret} lies in the file");
    }
    spool.stdout(b"\"}\n");
    spool.end();
    feed(&mut session, &spool.records).await;
    let started = session.result().await.unwrap().started.unwrap();
    assert_eq!(started.args[2], format!("{{\"p\": \"{MASK}\"}}"));
    assert_eq!(started.env["MY_TOKEN"], MASK);
    assert_eq!(started.env["URL"], format!("https://u:{MASK}@h/"));
    assert_eq!((started.env["PATH"].as_str(), started.cwd.as_str()), ("/bin", "/runner"));
}

async fn a_wrong_key_acknowledges_nothing_and_a_broken_record_is_a_gap(place: Place) {
    let store = place.events().await;
    let mut records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 1);
    let wrong = UnitContext { key: SpoolKey::new([9; 32]), ..context(1, 1) };
    let mut session = session(&store, wrong.clone(), epoch(1)).await;
    let error = session.push(records[0].clone()).await.unwrap_err();
    assert!(matches!(error, Error::WrongKey { .. }), "{error:?}");
    assert_eq!(*session.acked().borrow(), 0);
    let mut session = self::session(&store, context(1, 1), epoch(2)).await;
    let mut flipped = records[4].sealed.to_vec();
    flipped[3] ^= 1;
    records[4].sealed = flipped.into();
    feed(&mut session, &records).await;
    let kinds: Vec<_> = session.result().await.unwrap().gaps.iter().map(|gap| gap.kind).collect();
    assert_eq!(kinds, [GapKind::BrokenRecord, GapKind::RunnerCounter, GapKind::EndMismatch]);
    assert_eq!(store.summary(job(1)).await.unwrap().events, 17);
    drop(session);
    let error = Ingest::new(store).open(wrong, epoch(3)).await.unwrap_err();
    assert!(matches!(error, Error::Carry { .. }), "{error:?}");
}

async fn an_unsealed_record_may_only_say_that_the_rest_is_lost(place: Place) {
    let store = place.events().await;
    let mut session = session(&store, context(1, 1), EPOCH).await;
    let output = Output { stream: Stream::Stdout.into(), data: Bytes::from_static(b"forged\n"), fragment: 0 };
    let plain = Some(Record { kind: Some(RecordKind::Output(output)) });
    let forged = SealedRecord { number: 1, sealed: Bytes::new(), plain };
    assert!(matches!(session.push(forged).await, Err(Error::Invalid { .. })));
    for number in [0, 1 << 63, u64::MAX] {
        let impossible = SealedRecord { number, ..SealedRecord::default() };
        assert!(matches!(session.push(impossible).await, Err(Error::Invalid { .. })));
    }
}

async fn no_acknowledgement_waits_for_the_end_of_a_line(place: Place) {
    let store = place.events().await;
    let mut spool = Spool::new(attempt(1, 1));
    spool.stdout(b"{\"uuid\": \"u\", \"counter\": 1, \"stdout\": \"");
    for _ in 0..20 {
        spool.stdout(&vec![b'x'; 1 << 20]);
    }
    spool.stdout(b"\", \"event\": \"verbose\"}\n{\"uuid\": \"v\", \"counter\": 2, \"event\": \"verbose\", \"stdout\": \"y\"}\n");
    spool.end();
    // Opened anew before each record: the beginning of the line comes from staging.
    for (record, turn) in spool.records.iter().zip(1..) {
        let mut session = session(&store, context(1, 1), epoch(turn)).await;
        assert_eq!(session.next_record(), record.number);
        session.push(record.clone()).await.unwrap();
        stored(&session).await;
    }
    let events = all_events(&store, 1).await;
    assert_eq!(events.len(), 2);
    assert!(events[0].cut && events[0].stdout.len() > 15 << 20 && events[0].uuid == "u");
    assert_eq!((events[1].stdout.as_str(), events[1].uuid.as_str()), ("y", "v"));
    let kinds: Vec<_> = store.summary(job(1)).await.unwrap().gaps.iter().map(|gap| gap.kind).collect();
    assert_eq!(kinds, [GapKind::CutLine]);
    store.close().await;
}

async fn two_attempts_of_a_job_share_its_numbers(place: Place) {
    let store = place.events().await;
    let stdout = captured("ok-2-hosts");
    for number in [1, 2] {
        let context = UnitContext { attempt: attempt(1, number), ..context(1, 1) };
        let mut session = session(&store, context, epoch(number.into())).await;
        feed(&mut session, &Spool::lines(attempt(1, number), &stdout, 4)).await;
    }
    let events = all_events(&store, 1).await;
    assert!(events.iter().zip(1..).all(|(event, number)| event.counter == number));
    let runner: Vec<_> = events.iter().filter_map(|event| event.runner_counter).collect();
    assert_eq!(runner, (1..=18).chain(1..=18).collect::<Vec<_>>());
    assert_eq!(events[18].start_line, events[17].end_line);
    assert_eq!(store.summary(job(1)).await.unwrap().gaps, []);
}

on_each_engine![
    every_captured_stream_is_stored_as_its_index_says,
    results_say_what_the_playbook_did,
    a_restart_after_any_record_loses_and_doubles_nothing,
    a_session_dropped_at_any_moment_goes_on_from_the_cursor,
    records_taken_before_are_passed_over,
    two_sessions_of_an_attempt_never_both_write,
    an_epoch_written_by_somebody_else_stops_the_session,
    missing_records_are_a_named_gap,
    an_end_record_that_does_not_match_is_a_named_gap,
    a_lost_shim_ends_the_attempt,
    a_header_stands_before_the_first_event_and_shifts_the_lines,
    standard_error_is_kept_apart_and_bounded,
    secrets_are_masked_and_nothing_readable_lies_in_the_file,
    a_wrong_key_acknowledges_nothing_and_a_broken_record_is_a_gap,
    an_unsealed_record_may_only_say_that_the_rest_is_lost,
    no_acknowledgement_waits_for_the_end_of_a_line,
    two_attempts_of_a_job_share_its_numbers,
    many_jobs_at_once_are_all_stored,
];

/// Something a node may send.
#[derive(Debug, Clone)]
enum Sent {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// A record that never comes.
    Missing,
    /// A record that does not open.
    Broken,
    Lost,
    End,
}

fn sent() -> impl Strategy<Value = Sent> {
    let event = |counter: u32| {
        format!(
            "{{\"uuid\": \"u{counter}\", \"counter\": {counter}, \"event\": \"verbose\", \"stdout\": \"x\\r\\ny\"}}\n"
        )
    };
    let piece = prop_oneof![
        (1u32..9).prop_map(move |counter| event(counter).into_bytes()),
        (1u32..9, 1usize..60).prop_map(move |(counter, cut)| event(counter).into_bytes()[..cut].to_vec()),
        Just(b"{\"status\": \"starting\", \"command\": [\"a\"], \"env\": {\"KEY\": \"v\"}}\n".to_vec()),
        Just(b"{\"status\": \"failed\"}\n{\"zipfile\": 9}\n".to_vec()),
        Just(b"YWJjZGVm".to_vec()),
        Just(b"{\"eof\": true}\n".to_vec()),
        Just(b"\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..30),
    ];
    prop_oneof![
        8 => prop::collection::vec(piece, 1..4).prop_map(|pieces| Sent::Stdout(pieces.concat())),
        2 => prop::collection::vec(any::<u8>(), 0..9).prop_map(Sent::Stderr),
        1 => Just(Sent::Missing),
        1 => Just(Sent::Broken),
        1 => prop_oneof![Just(Sent::Lost), Just(Sent::End)],
    ]
}

/// What became of these records, with a new session before each one that `reopen` says.
async fn outcome(engine: Engine, records: &[SealedRecord], reopen: &[bool]) -> String {
    let place = Place::new(engine);
    let store = place.events().await;
    let mut turn = 1;
    let mut session = self::session(&store, context(1, 1), epoch(turn)).await;
    for (record, reopen) in records.iter().zip(reopen.iter().chain(std::iter::repeat(&false))) {
        if *reopen {
            stored(&session).await;
            turn += 1;
            session = self::session(&store, context(1, 1), epoch(turn)).await;
        }
        session.push(record.clone()).await.unwrap();
        assert!(session.next_record() > record.number);
    }
    stored(&session).await;
    let events = all_events(&store, 1).await;
    assert!(events.iter().zip(1..).all(|(event, number)| event.counter == number));
    let summary = store.summary(job(1)).await.unwrap();
    let result = if session.is_complete() { Some(session.result().await.unwrap()) } else { None };
    store.close().await;
    format!("{events:?}\n{summary:?}\n{result:?}")
}

fn sessions_anywhere_make_no_difference(engine: Engine, sent: &[Sent], reopen: &[bool]) {
    let mut spool = Spool::new(attempt(1, 1));
    let mut skipped = std::collections::BTreeSet::new();
    for sent in sent {
        let number = spool.records.len() as u64 + 1;
        match sent {
            Sent::Stdout(data) => spool.stdout(data),
            Sent::Stderr(data) => spool.stderr(data),
            Sent::Missing => {
                spool.stdout(b"never seen");
                skipped.insert(number);
            }
            Sent::Broken => {
                spool.stdout(b"damaged");
                if let Some(record) = spool.records.last_mut() {
                    record.sealed = record.sealed.slice(1..);
                }
            }
            Sent::Lost => spool.lost("gone"),
            Sent::End => spool.end(),
        }
    }
    let records: Vec<_> =
        spool.records.into_iter().filter(|record| !skipped.contains(&record.number)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let whole = runtime.block_on(outcome(engine, &records, &[]));
    assert_eq!(runtime.block_on(outcome(engine, &records, reopen)), whole);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn sessions_anywhere_make_no_difference_on_sqlite(
        sent in prop::collection::vec(sent(), 1..25),
        reopen in prop::collection::vec(any::<bool>(), 25),
    ) {
        sessions_anywhere_make_no_difference(Engine::Sqlite, &sent, &reopen);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn sessions_anywhere_make_no_difference_on_postgres(
        sent in prop::collection::vec(sent(), 1..25),
        reopen in prop::collection::vec(any::<bool>(), 25),
    ) {
        sessions_anywhere_make_no_difference(Engine::Postgres, &sent, &reopen);
    }
}

async fn many_jobs_at_once_are_all_stored(place: Place) {
    let store = place.events().await;
    let expected = reference(&place, &captured("flow")).await;
    let tasks: Vec<_> = (1..=20u128)
        .map(|unit| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut session = session(&store, context(unit, unit as i64), EPOCH).await;
                feed(&mut session, &Spool::lines(attempt(unit, 1), &captured("flow"), unit as usize)).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for id in 1..=20 {
        let events: Vec<_> = all_events(&store, id).await.iter().map(shown).collect();
        assert_eq!(events, expected.0, "job {id}");
    }
    store.close().await;
}

//! What the store does, on every engine: each test runs on a store that its engine's opener made.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use tempfile::TempDir;

use super::*;
use crate::ingest::testing::{Spool, attempt, captured, context, job};
use crate::ingest::{Ingest, Session, UnitContext};
use crate::store::Engine as SqlEngine;
use crate::store::testing::{Place, cut};

const EPOCH: OwnerEpoch = OwnerEpoch { incarnation: 1, counter: 1 };

/// Runs a test on each engine there is.
macro_rules! on_every_engine {
    ($($(#[$doc:meta])* async fn $name:ident($store:ident: EventStore) $body:block)*) => {
        $(async fn $name($store: EventStore) $body)*
        mod sqlite_engine {
            use super::*;
            $($(#[$doc])* #[tokio::test] async fn $name() { run(SqlEngine::Sqlite, super::$name).await; })*
        }
        mod postgres_engine {
            use super::*;
            $($(#[$doc])* #[tokio::test] async fn $name() { run(SqlEngine::Postgres, super::$name).await; })*
        }
    };
}

async fn run<T: Future<Output = ()>>(engine: SqlEngine, test: fn(EventStore) -> T) {
    let place = Place::new(engine);
    let store = place.events().await;
    test(store.clone()).await;
    store.close().await;
}

async fn open(store: &EventStore, unit: u128, id: i64) -> Session {
    Ingest::new(store.clone()).open(context(unit, id), EPOCH).await.unwrap()
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

/// Stores a captured case as job `id`, so many lines a record.
async fn fill(store: &EventStore, id: i64, case: &str, lines: usize) {
    let unit = id as u128;
    let mut session = open(store, unit, id).await;
    for record in Spool::lines(attempt(unit, 1), &captured(case), lines) {
        session.push(record).await.unwrap();
        if lines == 1 {
            stored(&session).await;
        }
    }
    stored(&session).await;
}

async fn counters(store: &EventStore, id: i64, query: EventQuery) -> (Vec<i64>, Option<u64>) {
    let page = store.events(job(id), query).await.unwrap();
    (page.events.iter().map(|event| event.counter).collect(), page.total)
}

async fn text(store: &EventStore, id: i64, lines: std::ops::Range<i64>) -> String {
    store.stdout(job(id), lines).try_collect::<Vec<String>>().await.unwrap().concat()
}

fn all() -> EventQuery {
    EventQuery { limit: 1000, ..EventQuery::default() }
}

on_every_engine! {
    async fn a_job_without_events_is_empty(store: EventStore) {
        assert_eq!(counters(&store, 1, all()).await, (vec![], Some(0)));
        assert!(store.event(job(1), 1).await.unwrap().is_none());
        assert_eq!(store.summary(job(1)).await.unwrap(), EventSummary::default());
        assert_eq!(text(&store, 1, 0..i64::MAX).await, "");
        fill(&store, 1, "in-no-kwargs", 1).await;
        assert_eq!(counters(&store, 1, all()).await, (vec![], Some(0)));
        assert_eq!(counters(&store, 2, all()).await, (vec![], Some(0)));
        assert_eq!(text(&store, 1, 0..i64::MAX).await, "");
    }

    async fn an_event_comes_back_as_the_runner_wrote_it(store: EventStore) {
        fill(&store, 7, "flow", 10).await;
        let lines = captured("flow");
        let lines = lines.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok());
        let mut count = 0;
        for (line, counter) in lines.filter(|line| line.get("uuid").is_some()).zip(1..) {
            let event = store.event(job(7), counter).await.unwrap().unwrap();
            let of = |key: &str| line[key].as_str().unwrap_or("").to_owned();
            let data = |key: &str| line["event_data"][key].as_str().unwrap_or("").to_owned();
            assert_eq!((event.job, event.counter, event.runner_counter), (7, counter, Some(counter)));
            assert_eq!(EventId::parse(event.id()), Some(EventId { job: 7, counter }));
            assert_eq!((&event.event, &event.uuid, &event.stdout), (&of("event"), &of("uuid"), &of("stdout")));
            assert_eq!(event.parent_uuid.clone().unwrap_or_default(), of("parent_uuid"));
            assert_eq!((&event.host_name, &event.task, &event.play), (&data("host"), &data("task"), &data("play")));
            assert_eq!((&event.role, &event.playbook), (&data("role"), &data("playbook")));
            assert_eq!(serde_json::from_str::<serde_json::Value>(event.event_data.get()).unwrap(), line["event_data"]);
            assert_eq!(event.created.unwrap(), of("created").parse().unwrap());
            assert_eq!((event.start_line, event.end_line), (line["start_line"].as_i64().unwrap(), line["end_line"].as_i64().unwrap()));
            count += 1;
        }
        assert_eq!(count, 65);
        assert!(store.event(job(7), 66).await.unwrap().is_none());
        assert!(store.event(job(7), i64::MAX).await.unwrap().is_none());
        assert!(store.event(job(8), 1).await.unwrap().is_none());
    }

    async fn pages_follow_each_other_in_both_directions(store: EventStore) {
        fill(&store, 1, "ten-hosts", 50).await;
        for order in [Order::Ascending, Order::Descending] {
            let mut seen = Vec::new();
            for page in 0.. {
                let query = EventQuery { order, limit: 100, offset: page * 100, ..EventQuery::default() };
                let (counters, total) = counters(&store, 1, query).await;
                assert_eq!(total, Some(423));
                if counters.is_empty() {
                    break;
                }
                seen.extend(counters);
            }
            let mut expected: Vec<_> = (1..=423).collect();
            if order == Order::Descending {
                expected.reverse();
            }
            assert_eq!(seen, expected);
        }
        let bounds = |from, to| Numbers { from: Some(from), to: Some(to) };
        let query = |counter| EventQuery { counter, ..all() };
        assert_eq!(counters(&store, 1, query(bounds(10, 12))).await, (vec![10, 11, 12], Some(3)));
        assert_eq!(counters(&store, 1, query(bounds(423, i64::MAX))).await, (vec![423], Some(1)));
        assert_eq!(counters(&store, 1, query(bounds(i64::MAX, i64::MAX))).await, (vec![], Some(0)));
        assert_eq!(counters(&store, 1, query(bounds(i64::MIN, 1))).await, (vec![1], Some(1)));
        let far = EventQuery { offset: u64::MAX, ..all() };
        assert_eq!(counters(&store, 1, far).await, (vec![], Some(423)));
    }

    async fn filters_choose_what_they_say(store: EventStore) {
        fill(&store, 1, "flow", 7).await;
        // Another job with the same names.
        fill(&store, 2, "failed-task", 7).await;
        let events = store.events(job(1), all()).await.unwrap().events;
        let matching = |wanted: &dyn Fn(&Event) -> bool| {
            let counters: Vec<_> = events.iter().filter(|event| wanted(event)).map(|event| event.counter).collect();
            assert!(!counters.is_empty() && counters.len() < events.len());
            let total = Some(counters.len() as u64);
            (counters, total)
        };
        let names = |names: &[&str]| Some(TextMatch::In(names.iter().map(|&name| name.to_owned()).collect()));
        let is_fifth = |e: &Event| e.uuid == events[4].uuid;
        let is_of_the_play = |e: &Event| e.parent_uuid.as_ref() == Some(&events[1].uuid);
        type Wanted<'a> = &'a dyn Fn(&Event) -> bool;
        let checks: Vec<(EventQuery, Wanted<'_>)> = vec![
            (EventQuery { kind: names(&["runner_on_ok", "runner_on_failed"]), ..all() }, &|e| matches!(e.event.as_str(), "runner_on_ok" | "runner_on_failed")),
            (EventQuery { kind: Some(TextMatch::StartsWith("runner_item".into())), ..all() }, &|e| e.event.starts_with("runner_item")),
            (EventQuery { not_kind: names(&["runner_on_start"]), ..all() }, &|e| e.event != "runner_on_start"),
            (EventQuery { host: names(&["web1"]), ..all() }, &|e| e.host_name == "web1"),
            (EventQuery { task: Some(TextMatch::ContainsIgnoringCase("LOOP".into())), ..all() }, &|e| e.task.to_lowercase().contains("loop")),
            (EventQuery { task: Some(TextMatch::Contains("Loop".into())), ..all() }, &|e| e.task.contains("Loop")),
            (EventQuery { failed: Some(true), ..all() }, &|e| e.failed),
            (EventQuery { failed: Some(false), ..all() }, &|e| !e.failed),
            (EventQuery { changed: Some(true), ..all() }, &|e| e.changed),
            (EventQuery { start_line: Numbers { from: Some(20), to: None }, ..all() }, &|e| e.start_line >= 20),
            (EventQuery { end_line: Numbers { from: None, to: Some(20) }, ..all() }, &|e| e.end_line <= 20),
            (EventQuery { uuid: Some(vec![events[4].uuid.clone(), "no such".into()]), ..all() }, &is_fifth),
            (EventQuery { parent_uuid: Some(vec![events[1].uuid.clone()]), ..all() }, &is_of_the_play),
            (EventQuery { failed: Some(true), host: names(&["web1"]), counter: Numbers { from: Some(9), to: None }, ..all() }, &|e| e.failed && e.host_name == "web1" && e.counter >= 9),
        ];
        for (query, wanted) in checks {
            assert_eq!(counters(&store, 1, query.clone()).await, matching(wanted), "{query:?}");
        }
        for part in ["Loop", "LOOP", "%", "_", "' OR 1=1 --", "\\"] {
            for matching in [TextMatch::Contains(part.into()), TextMatch::StartsWith(part.into())] {
                let query = EventQuery { task: Some(matching), ..all() };
                let expected = events.iter().filter(|e| e.task.contains(part)).count();
                assert_eq!(counters(&store, 1, query).await.0.len(), expected, "{part}");
            }
        }
        let none = EventQuery { kind: names(&[]), ..all() };
        assert_eq!(counters(&store, 1, none).await, (vec![], Some(0)));
        let (last, total) = counters(&store, 1, EventQuery { failed: Some(true), order: Order::Descending, limit: 1, total: false, ..all() }).await;
        assert_eq!((last.len(), total), (1, None));
    }

    async fn sparse_pages_find_their_bodies(store: EventStore) {
        fill(&store, 1, "ten-hosts", 50).await;
        let query = EventQuery { kind: Some(TextMatch::In(vec!["playbook_on_task_start".into(), "playbook_on_stats".into()])), ..all() };
        let events = store.events(job(1), query).await.unwrap().events;
        assert_eq!(events.len(), 21);
        assert!(events.iter().all(|event| event.event_data.get().contains(&event.uuid)));
    }

    async fn output_comes_as_the_terminal_had_it(store: EventStore) {
        for (id, case) in [(1, "flow"), (2, "bad-option"), (3, "passwords"), (4, "ten-hosts")] {
            fill(&store, id, case, 9).await;
            let mut expected = String::new();
            let mut line = 0;
            for event in store.events(job(id), all()).await.unwrap().events {
                let text = event.stdout.replace("\r\n", "\n");
                expected.push_str(&text);
                line += text.matches('\n').count() as i64;
                while line < event.end_line {
                    expected.push('\n');
                    line += 1;
                }
            }
            assert_eq!(text(&store, id, 0..i64::MAX).await, expected, "{case}");
            assert_eq!(expected.matches('\n').count() as i64, store.summary(job(id)).await.unwrap().last_line, "{case}");
            let lines: Vec<_> = expected.split_inclusive('\n').collect();
            let count = lines.len() as i64;
            for (from, to) in [(0, 1), (1, 3), (7, 19), (count - 1, count), (count - 1, i64::MAX), (count, count + 5), (5, 5), (9, 2), (-4, 2)] {
                let start = from.clamp(0, count) as usize;
                let end = to.clamp(start as i64, count) as usize;
                assert_eq!(text(&store, id, from..to).await, lines[start..end].concat(), "{case} {from}..{to}");
            }
        }
    }

    async fn a_summary_counts_what_there_is(store: EventStore) {
        fill(&store, 1, "failed-task", 3).await;
        let summary = store.summary(job(1)).await.unwrap();
        let events = store.events(job(1), all()).await.unwrap().events;
        assert_eq!(summary.events, 16);
        assert_eq!(summary.failed, events.iter().filter(|event| event.failed).count() as u64);
        assert_eq!(summary.changed, events.iter().filter(|event| event.changed).count() as u64);
        assert_eq!(summary.by_kind["runner_on_start"], 5);
        assert_eq!(summary.by_kind.values().sum::<u64>(), 16);
        assert_eq!(summary.stats, Some(16));
        let hosts: std::collections::BTreeSet<_> = events.iter().map(|event| &event.host_name).filter(|host| !host.is_empty()).collect();
        assert_eq!(summary.hosts, hosts.len() as u64);
    }

    async fn jobs_of_other_months_are_elsewhere(store: EventStore) {
        let key_of = |created: &str| JobKey { id: 1, created: created.parse().unwrap() };
        for (unit, created) in [(1u128, "2026-11-30T23:59:59Z"), (2, "2026-12-01T00:30:00+01:00"), (3, "2026-12-01T00:00:00Z")] {
            let context = UnitContext { job: key_of(created), ..context(unit, 1) };
            let mut session = Ingest::new(store.clone()).open(context, EPOCH).await.unwrap();
            for record in Spool::lines(attempt(unit, 1), &captured("missing-playbook"), 50) {
                session.push(record).await.unwrap();
            }
            stored(&session).await;
        }
        assert_eq!(store.summary(key_of("2026-11-01T00:00:00Z")).await.unwrap().events, 2, "the second is November in UTC");
        assert_eq!(store.summary(key_of("2026-12-31T23:59:59Z")).await.unwrap().events, 1);
        assert_eq!(store.summary(key_of("2027-01-01T00:00:00Z")).await.unwrap().events, 0);
    }

    async fn a_page_leaves_out_what_would_not_fit_in_memory(store: EventStore) {
        let mut session = open(&store, 1, 1).await;
        let mut spool = Spool::new(attempt(1, 1));
        for counter in 1..=12 {
            spool.stdout(format!("{{\"uuid\": \"u\", \"counter\": {counter}, \"event\": \"verbose\", \"stdout\": \"").as_bytes());
            (0..7).for_each(|_| spool.stdout(&vec![b'x'; 1 << 20]));
            spool.stdout(b"\"}\n");
        }
        for record in spool.records {
            session.push(record).await.unwrap();
        }
        stored(&session).await;
        let events = store.events(job(1), all()).await.unwrap().events;
        let left_out: Vec<_> = events.iter().map(|event| event.left_out).collect();
        assert_eq!(left_out, [vec![false; 10], vec![true; 2]].concat());
        assert!(events.iter().all(|event| event.stdout.is_empty() == event.left_out));
        assert_eq!(store.event(job(1), 12).await.unwrap().unwrap().stdout.len(), 7 << 20);
    }

    async fn a_unit_belongs_to_one_job(store: EventStore) {
        drop(open(&store, 1, 1).await);
        let refused = Ingest::new(store.clone()).open(context(1, 2), EPOCH).await.unwrap_err();
        assert!(std::error::Error::source(&refused).unwrap().to_string().contains("belongs to job 1"), "{refused:?}");
    }

    async fn a_closed_store_takes_nothing(store: EventStore) {
        let mut session = open(&store, 1, 1).await;
        let records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 2);
        session.push(records[0].clone()).await.unwrap();
        store.close().await;
        assert_eq!(*session.acked().borrow(), 1, "what was taken is stored");
        assert!(session.push(records[1].clone()).await.is_err());
        assert!(Ingest::new(store.clone()).open(context(1, 1), EPOCH).await.is_err());
    }
}

/// A SQLite file as somebody else has it open.
async fn other_process(dir: &Path) -> sqlx::SqliteConnection {
    use sqlx::ConnectOptions;
    sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("2026-11.sqlite")).connect().await.unwrap()
}

async fn execute(connection: &mut sqlx::SqliteConnection, sql: &'static str) {
    sqlx::query(sql).execute(connection).await.unwrap();
}

#[tokio::test]
async fn slow_jobs_fill_their_last_block() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    // A commit for each event.
    fill(&store, 1, "ten-hosts", 1).await;
    let mut connection = other_process(dir.path()).await;
    let (blocks, rows): (i64, i64) =
        sqlx::query_as("SELECT (SELECT count(*) FROM block), (SELECT count(*) FROM event)")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!((blocks, rows), (7, 423), "423 events are seven blocks of 64");
    assert_eq!(store.events(job(1), all()).await.unwrap().events.len(), 423);
    store.close().await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    drop(open(&store, 1, 1).await);
    store.close().await;
    let mut other = other_process(dir.path()).await;
    execute(&mut other, "PRAGMA user_version = 99").await;
    sqlx::Connection::close(other).await.unwrap();
    let error = EventStore::open(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("have schema version 99, this program knows up to 1"), "{error}");
    // One that came up while the store was open.
    std::fs::rename(dir.path().join("2026-11.sqlite"), dir.path().join("newer")).unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    std::fs::rename(dir.path().join("newer"), dir.path().join("2026-11.sqlite")).unwrap();
    assert!(matches!(store.summary(job(1)).await, Err(Error::Newer { version: 99, .. })));
    let error = Ingest::new(store).open(context(1, 1), EPOCH).await.unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("newer version"), "{error:?}");
}

#[tokio::test]
async fn a_file_of_something_else_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    std::fs::write(
        dir.path().join("2026-11.sqlite"),
        b"not a database, though long enough to have a header of one: 100 bytes are what it has, and more",
    )
    .unwrap();
    let error = Ingest::new(store).open(context(1, 1), EPOCH).await.unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("2026-11.sqlite"), "{error:?}");
    assert!(matches!(EventStore::open(dir.path()).await, Err(Error::Foreign { .. })));
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), b"").unwrap();
    let error = EventStore::open(&dir.path().join("file").join("events")).await.unwrap_err();
    assert!(error.to_string().contains("cannot use event directory"), "{error}");
}

#[tokio::test]
async fn a_locked_file_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    let mut session = open(&store, 1, 1).await;
    let mut other = other_process(dir.path()).await;
    execute(&mut other, "BEGIN IMMEDIATE").await;
    let records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 2);
    for record in &records {
        session.push(record.clone()).await.unwrap();
    }
    // Longer than a statement waits for a lock.
    let mut acked = session.acked();
    let early =
        tokio::time::timeout(sqlite::BUSY + Duration::from_secs(1), acked.wait_for(|&stored| stored > 0));
    assert!(early.await.is_err(), "nothing is acknowledged while the file is locked");
    assert!(store.summary(job(1)).await.unwrap().events == 0, "readers do not wait");
    execute(&mut other, "COMMIT").await;
    stored(&session).await;
    assert_eq!(store.summary(job(1)).await.unwrap().events, 18);
    store.close().await;
}

#[tokio::test]
async fn a_number_of_a_job_is_given_to_one_event() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    fill(&store, 1, "ok-2-hosts", 4).await;
    let mut other = other_process(dir.path()).await;
    execute(&mut other, "CREATE TEMP TABLE twin AS SELECT * FROM event WHERE job = 1 AND counter = 1").await;
    execute(&mut other, "UPDATE twin SET kind = kind + 1").await;
    let doubled = sqlx::query("INSERT INTO event SELECT * FROM twin").execute(&mut other).await;
    assert!(doubled.unwrap_err().to_string().contains("UNIQUE"));
    store.close().await;
}

#[tokio::test]
async fn what_is_committed_is_on_the_disk() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    fill(&store, 1, "ok-2-hosts", 4).await;
    let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let log = files.filter(|path| path.to_string_lossy().ends_with("-wal")).collect::<Vec<_>>();
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(cut(&log[0]), 0, "a loss of power would have taken it");
}

#[tokio::test]
async fn after_a_write_that_failed_for_good_sessions_go_on_from_the_cursor() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    let mut session = open(&store, 1, 1).await;
    let mut bystander = open(&store, 2, 2).await;
    let records = Spool::lines(attempt(1, 1), &captured("flow"), 4);
    let theirs = Spool::lines(attempt(2, 1), &captured("failed-task"), 4);
    session.push(records[0].clone()).await.unwrap();
    session.push(records[1].clone()).await.unwrap();
    bystander.push(theirs[0].clone()).await.unwrap();
    stored(&session).await;
    stored(&bystander).await;
    let mut other = other_process(dir.path()).await;
    execute(&mut other, "ALTER TABLE event RENAME TO away").await;
    for record in &records[2..5] {
        // The failure may come as early as the second.
        let _ = session.push(record.clone()).await;
    }
    assert!(session.acked().wait_for(|&stored| stored > 2).await.is_err());
    let error = session.push(records[5].clone()).await.unwrap_err();
    assert!(
        !error.is_fenced() && format!("{:?}", std::error::Error::source(&error)).contains("no such table"),
        "{error:?}"
    );
    execute(&mut other, "ALTER TABLE away RENAME TO event").await;
    for (unit, records) in [(1, &records), (2, &theirs)] {
        let mut session = open(&store, unit, unit as i64).await;
        assert_eq!(session.next_record(), if unit == 1 { 3 } else { 2 });
        for record in &records[session.next_record() as usize - 1..] {
            session.push(record.clone()).await.unwrap();
        }
        stored(&session).await;
    }
    for (id, case, count) in [(1, "flow", 65), (2, "failed-task", 16)] {
        let events = store.events(job(id), all()).await.unwrap().events;
        assert_eq!(events.len(), count);
        let lines = captured(case);
        for event in &events {
            // Names are right: none made for what was not stored came in between.
            let said = memchr::memmem::find(&lines, format!("\"uuid\": \"{}\"", event.uuid).as_bytes());
            assert!(
                said.is_some()
                    && lines
                        .windows(event.task.len() + 2)
                        .any(|w| w == format!("\"{}\"", event.task).as_bytes())
            );
            assert_eq!(event.event_data.get().contains("\"host\": "), !event.host_name.is_empty());
        }
        assert_eq!(store.summary(job(id)).await.unwrap().events, count as u64);
    }
    store.close().await;
}

#[tokio::test]
async fn damage_is_an_error_and_no_panic() {
    let dir = TempDir::new().unwrap();
    let store = EventStore::open(dir.path()).await.unwrap();
    fill(&store, 1, "ok-2-hosts", 4).await;
    let mut other = other_process(dir.path()).await;
    execute(&mut other, "UPDATE block SET data = x'00010203'").await;
    assert!(matches!(store.events(job(1), all()).await, Err(Error::Damaged(_))));
    assert!(matches!(store.stdout(job(1), 0..9).try_collect::<Vec<_>>().await, Err(Error::Damaged(_))));
    execute(&mut other, "DELETE FROM block").await;
    assert!(matches!(store.event(job(1), 1).await, Err(Error::Damaged(_))));
    store.close().await;
    let store = EventStore::open(dir.path()).await.unwrap();
    assert!(
        Ingest::new(store.clone()).open(context(1, 1), EPOCH).await.is_err(),
        "counts and events do not agree"
    );
    store.close().await;
}

//! What goes wrong around ingest, and what comes of it: on every engine nothing is lost, nothing is stored twice, and the
//! counts of what was sent and what became of it agree.

use std::process::Command;
use std::time::Duration;

use plexus_proto::id::OwnerEpoch;
use plexus_proto::work::SealedRecord;

use super::testing::{Spool, attempt, captured, context, job};
use super::{Ingest, Session, UnitContext};
use crate::store::Engine;
use crate::store::events::{Event, EventQuery, EventStore, GapKind, JobKey, Numbers, TextMatch};
use crate::store::testing::{Place, on_each_engine};

/// Longest wait for something that must come, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn epoch(counter: u64) -> OwnerEpoch {
    OwnerEpoch { incarnation: 1, counter }
}

async fn open(store: &EventStore, unit: UnitContext, counter: u64) -> Session {
    Ingest::new(store.clone()).open(unit, epoch(counter)).await.unwrap()
}

async fn feed(session: &mut Session, records: &[SealedRecord]) {
    for record in records {
        session.push(record.clone()).await.unwrap();
    }
    let last = session.next_record() - 1;
    let mut acked = session.acked();
    let waiting = acked.wait_for(|&stored| stored >= last);
    tokio::time::timeout(PATIENCE, waiting).await.expect("stored in time").expect("not failed");
}

async fn events(store: &EventStore, key: JobKey) -> Vec<Event> {
    store.events(key, EventQuery { limit: 10_000, ..EventQuery::default() }).await.unwrap().events
}

/// Every record that a session was given is accounted for.
fn check_balance(store: &EventStore) {
    let counts = store.counts();
    let fates = counts.records_stored + counts.records_repeated + counts.records_refused + counts.undone;
    assert_eq!(counts.records_received, fates, "{counts:?}");
}

fn spool(lines: &[&[u8]]) -> Vec<SealedRecord> {
    let mut spool = Spool::new(attempt(1, 1));
    for line in lines {
        spool.stdout(line);
        spool.stdout(b"\n");
    }
    spool.end();
    spool.records
}

async fn odd_bytes_are_stored_as_they_came(place: Place) {
    let store = place.events().await;
    let mut session = open(&store, context(1, 1), 1).await;
    let lines: [&[u8]; 5] = [
        br#"{"uuid": "a", "counter": 1, "event": "runner_on_ok", "stdout": "x\u0000y", "event_data": {"host": "web\u00001", "task": "a\u0000b", "res": {"msg": "z\u0000"}}}"#,
        br#"{"uuid": "b", "counter": 2, "event": "runner_on_ok", "stdout": "\ud800", "event_data": {"host": "web2", "res": {"msg": "\udc00\ud800"}}}"#,
        br#"{"uuid": "c", "counter": 3, "event": "runner_on_ok", "stdout": "n", "event_data": {"host": "web3", "res": {"delta": NaN, "far": -Infinity}}}"#,
        b"{\"uuid\": \"d\", \"counter\": 4, \"event\": \"runner_on_ok\", \"stdout\": \"raw \x00 \xff\", \"event_data\": {}}",
        // Again, so that names are found again.
        br#"{"uuid": "e", "counter": 5, "event": "runner_on_ok", "stdout": "x", "event_data": {"host": "web\u00001", "task": "a\u0000b"}}"#,
    ];
    feed(&mut session, &spool(&lines)).await;
    let events = events(&store, job(1)).await;
    assert_eq!(events.len(), 5, "{events:?}");
    assert_eq!((events[0].host_name.as_str(), events[0].task.as_str()), ("web\u{fffd}1", "a\u{fffd}b"));
    assert_eq!(events[0].host_name, events[4].host_name);
    assert_eq!(events[0].stdout, "x\u{fffd}y");
    assert!(events[0].normalised && events[1].normalised && events[2].normalised && events[3].normalised);
    let query = EventQuery { host: Some(TextMatch::Contains("web\u{0}1".into())), ..EventQuery::default() };
    // A NUL in a question is no error; what it finds is the engine's affair.
    store.events(job(1), query).await.unwrap();
    assert_eq!(store.summary(job(1)).await.unwrap().gaps, []);
    check_balance(&store);
    store.close().await;
}

async fn counters_of_the_runner_that_jump_repeat_and_restart_are_noted(place: Place) {
    let store = place.events().await;
    let mut session = open(&store, context(1, 1), 1).await;
    let line = |counter: i64| {
        format!(
            "{{\"uuid\": \"u{counter}\", \"counter\": {counter}, \"event\": \"verbose\", \"stdout\": \"x\"}}"
        )
    };
    let lines: Vec<_> = [1, 2, 7, 7, 1, 2, 1_000_000_000_000_000_000, 3].map(line).to_vec();
    let lines: Vec<_> = lines.iter().map(String::as_bytes).collect();
    feed(&mut session, &spool(&lines)).await;
    let events = events(&store, job(1)).await;
    let ours: Vec<_> = events.iter().map(|event| event.counter).collect();
    assert_eq!(ours, [1, 2, 3, 4, 5, 6, 7, 8], "ours have no holes, whatever the runner's do");
    let theirs: Vec<_> = events.iter().filter_map(|event| event.runner_counter).collect();
    assert_eq!(theirs, [1, 2, 7, 7, 1, 2, 1_000_000_000_000_000_000, 3]);
    let gaps = store.summary(job(1)).await.unwrap().gaps;
    assert!(gaps.len() >= 3 && gaps.iter().all(|gap| gap.kind == GapKind::RunnerCounter), "{gaps:?}");
    assert_eq!(store.counts().gaps_named, gaps.len() as u64);
    check_balance(&store);
    // A client that asks for a counter nobody has.
    for counter in [1_000_000_000_000_000_000, i64::MAX, i64::MIN, -1, 0] {
        assert!(store.event(job(1), counter).await.unwrap().is_none());
        let counter = Numbers { from: Some(counter.max(9)), to: None };
        let page = store.events(job(1), EventQuery { counter, ..EventQuery::default() }).await.unwrap();
        assert!(page.events.is_empty());
    }
    store.close().await;
}

async fn an_event_of_fifty_megabytes_is_cut_and_named(place: Place) {
    let store = place.events().await;
    let mut session = open(&store, context(1, 1), 1).await;
    let mut spool = Spool::new(attempt(1, 1));
    spool.stdout(b"{\"uuid\": \"u\", \"counter\": 1, \"event\": \"verbose\", \"stdout\": \"");
    let piece = vec![b'x'; 1 << 20];
    (0..50).for_each(|_| spool.stdout(&piece));
    spool.stdout(b"\"}\n{\"uuid\": \"v\", \"counter\": 2, \"event\": \"verbose\", \"stdout\": \"y\"}\n");
    spool.end();
    feed(&mut session, &spool.records).await;
    let events = events(&store, job(1)).await;
    assert_eq!((events.len(), events[0].cut, events[1].cut), (2, true, false));
    let gaps = store.summary(job(1)).await.unwrap().gaps;
    assert_eq!(gaps.iter().map(|gap| gap.kind).collect::<Vec<_>>(), [GapKind::CutLine]);
    check_balance(&store);
    store.close().await;
}

async fn a_clock_ten_years_off_changes_nothing(place: Place) {
    let store = place.events().await;
    let mut far = Vec::new();
    for (unit, created) in
        [(1, "2036-12-31T23:59:59Z"), (2, "2016-01-01T00:00:00Z"), (3, "2026-11-20T16:00:00Z")]
    {
        let key = JobKey { id: unit as i64, created: created.parse().unwrap() };
        let mut session = open(&store, UnitContext { job: key, ..context(unit, key.id) }, 1).await;
        let line = |counter: i64, created: &str| {
            format!(
                "{{\"uuid\": \"u{counter}\", \"counter\": {counter}, \"event\": \"verbose\", \"stdout\": \"x\", \"created\": \"{created}\"}}"
            )
        };
        let lines = [
            line(1, "2026-11-20T16:00:00+00:00"),
            line(2, "2036-11-20T16:00:00+00:00"),
            line(3, "2016-01-01T00:00:00+00:00"),
            line(4, "no time at all"),
        ];
        let mut spool = Spool::new(attempt(unit, 1));
        lines.iter().for_each(|line| spool.stdout(format!("{line}\n").as_bytes()));
        spool.end();
        feed(&mut session, &spool.records).await;
        far.push(key);
    }
    for key in far {
        let counters: Vec<_> = events(&store, key).await.iter().map(|event| event.counter).collect();
        assert_eq!(counters, [1, 2, 3, 4]);
    }
    assert_eq!(store.months().await.unwrap().len(), 3);
    store.close().await;
}

async fn a_month_that_ends_in_mid_job_divides_nothing(place: Place) {
    let store = place.events().await;
    let key = JobKey { id: 1, created: "2026-11-30T23:59:59.999999Z".parse().unwrap() };
    let next = JobKey { id: 2, created: "2026-12-01T00:00:00Z".parse().unwrap() };
    let records = Spool::lines(attempt(1, 1), &captured("flow"), 5);
    let mut session = open(&store, UnitContext { job: key, ..context(1, 1) }, 1).await;
    feed(&mut session, &records[..4]).await;
    // A job of the new month comes between, and a controller that starts in it.
    let mut other = open(&store, UnitContext { job: next, ..context(2, 2) }, 1).await;
    feed(&mut other, &Spool::lines(attempt(2, 1), &captured("flow"), 5)).await;
    drop(session);
    let mut session = open(&store, UnitContext { job: key, ..context(1, 1) }, 2).await;
    feed(&mut session, &records[4..]).await;
    for key in [key, next] {
        let counters: Vec<_> = events(&store, key).await.iter().map(|event| event.counter).collect();
        assert!(counters.iter().copied().eq(1..=65), "{counters:?}");
    }
    assert_eq!(store.months().await.unwrap().len(), 2);
    check_balance(&store);
    store.close().await;
}

async fn watchers_hear_of_what_is_stored_and_of_nothing_else(place: Place) {
    let store = place.events().await;
    let mut session = open(&store, context(1, 1), 1).await;
    let mut watching = store.head(job(1)).await.unwrap();
    assert_eq!(*watching.borrow_and_update(), 0);
    let reader = store.clone();
    let watcher = tokio::spawn(async move {
        let mut told = Vec::new();
        while told.last() != Some(&65) {
            watching.changed().await.unwrap();
            let counter = *watching.borrow_and_update();
            assert!(reader.event(job(1), counter).await.unwrap().is_some(), "told and not stored");
            told.push(counter);
        }
        told
    });
    feed(&mut session, &Spool::lines(attempt(1, 1), &captured("flow"), 3)).await;
    let told = tokio::time::timeout(PATIENCE, watcher).await.unwrap().unwrap();
    assert!(told.is_sorted() && !told.is_empty(), "{told:?}");
    assert_eq!(*store.head(job(1)).await.unwrap().borrow(), 65, "who comes late hears it at once");
    assert_eq!(*store.head(job(2)).await.unwrap().borrow(), 0);
    store.close().await;
}

async fn one_job_can_go_alone(place: Place) {
    let store = place.events().await;
    for unit in [1, 2] {
        let mut session = open(&store, context(unit, unit as i64), 1).await;
        feed(&mut session, &Spool::lines(attempt(unit, 1), &captured("flow"), 5)).await;
    }
    store.delete_job(job(1)).await.unwrap();
    assert_eq!(store.summary(job(1)).await.unwrap(), crate::store::events::EventSummary::default());
    assert!(events(&store, job(1)).await.is_empty());
    assert_eq!(events(&store, job(2)).await.len(), 65);
    // A job nobody knows, and one of a month that is not there.
    store.delete_job(job(99)).await.unwrap();
    store.delete_job(JobKey { id: 1, created: "2001-01-01T00:00:00Z".parse().unwrap() }).await.unwrap();
    // It can begin anew: nothing of its cursor is left.
    let mut session = open(&store, context(1, 1), 1).await;
    assert_eq!(session.next_record(), 1);
    feed(&mut session, &Spool::lines(attempt(1, 1), &captured("flow"), 5)).await;
    assert_eq!(events(&store, job(1)).await.len(), 65);
    // A session that is open while its job goes is told.
    let mut session = open(&store, context(3, 3), 1).await;
    let records = Spool::lines(attempt(3, 1), &captured("flow"), 5);
    feed(&mut session, &records[..3]).await;
    store.delete_job(job(3)).await.unwrap();
    let mut acked = session.acked();
    let _ = session.push(records[3].clone()).await;
    let told = tokio::time::timeout(PATIENCE, acked.wait_for(|&stored| stored > 3)).await.unwrap();
    assert!(told.is_err(), "nothing of it is stored any more");
    check_balance(&store);
    store.close().await;
}

async fn what_is_sent_again_is_counted_and_stored_once(place: Place) {
    let store = place.events().await;
    let mut records = Spool::lines(attempt(1, 1), &captured("flow"), 2);
    let missing = records.drain(7..10).count() as u64;
    let mut session = open(&store, context(1, 1), 1).await;
    for _ in 0..3 {
        feed(&mut session, &records).await;
    }
    let sent = 3 * records.len() as u64;
    let counts = store.counts();
    assert_eq!((counts.records_received, counts.records_stored), (sent, sent / 3));
    assert_eq!((counts.records_repeated, counts.records_missing), (sent / 3 * 2, missing));
    assert_eq!(counts.events_stored, store.summary(job(1)).await.unwrap().events);
    check_balance(&store);
    // A newer owner: what the older one still hands over is not stored, and is counted.
    let mut newer = open(&store, context(1, 1), 2).await;
    let mut acked = session.acked();
    let late = SealedRecord { number: session.next_record(), ..records[0].clone() };
    let _ = session.push(late).await;
    assert!(acked.wait_for(|&stored| stored > u64::MAX / 2).await.is_err());
    feed(&mut newer, &records).await;
    check_balance(&store);
    assert_eq!(store.counts().records_stored, sent / 3);
    store.close().await;
}

async fn what_a_node_had_is_compared_with_what_is_stored(place: Place) {
    let store = place.events().await;
    let mut records = Spool::lines(attempt(1, 1), &captured("flow"), 2);
    let had = records.len() as u64;
    drop(records.drain(7..10)); // a named gap
    let mut session = open(&store, context(1, 1), 1).await;
    feed(&mut session, &records[..5]).await;
    let balance = async |attempt, sent| {
        store.balance(job(1), attempt, sent, false).await.unwrap();
        (store.counts().units_balanced, store.counts().units_unbalanced)
    };
    assert_eq!(balance(attempt(1, 1), had).await, (0, 1), "only five are stored");
    feed(&mut session, &records).await;
    assert_eq!(balance(attempt(1, 1), had).await, (1, 1));
    assert_eq!(balance(attempt(1, 1), had + 1).await, (1, 2));
    assert_eq!(balance(attempt(1, 1), had - 1).await, (1, 3), "a whole spool does not shrink");
    store.balance(job(1), attempt(1, 1), had - 1, true).await.unwrap();
    store.balance(job(1), attempt(1, 1), had + 1, true).await.unwrap();
    let counts = store.counts();
    assert_eq!(
        (counts.units_balanced, counts.units_unbalanced),
        (2, 4),
        "damage excuses what is stored, not what is not"
    );
    assert_eq!(balance(attempt(1, 2), 7).await, (2, 4), "nothing is known of this attempt");
    store.close().await;
}

on_each_engine![
    what_a_node_had_is_compared_with_what_is_stored,
    odd_bytes_are_stored_as_they_came,
    counters_of_the_runner_that_jump_repeat_and_restart_are_noted,
    an_event_of_fifty_megabytes_is_cut_and_named,
    a_clock_ten_years_off_changes_nothing,
    a_month_that_ends_in_mid_job_divides_nothing,
    watchers_hear_of_what_is_stored_and_of_nothing_else,
    one_job_can_go_alone,
    what_is_sent_again_is_counted_and_stored_once,
];

#[tokio::test]
async fn a_server_that_is_locked_is_waited_for() {
    let place = Place::new(Engine::Postgres);
    let store = place.events().await;
    let mut session = open(&store, context(1, 1), 1).await;
    // Somebody else has the table for himself.
    let mut other =
        sqlx::ConnectOptions::connect(&place.server().options_in("events_2026_11")).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE event IN ACCESS EXCLUSIVE MODE").execute(&mut other).await.unwrap();
    let records = Spool::lines(attempt(1, 1), &captured("ok-2-hosts"), 2);
    for record in &records {
        session.push(record.clone()).await.unwrap();
    }
    let mut acked = session.acked();
    let early = tokio::time::timeout(Duration::from_secs(3), acked.wait_for(|&stored| stored > 1));
    assert!(early.await.is_err(), "nothing is acknowledged while the table is locked");
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    feed(&mut session, &[]).await;
    assert_eq!(store.summary(job(1)).await.unwrap().events, 18);
    store.close().await;
}

#[tokio::test]
async fn a_connection_that_is_cut_in_mid_ingest_is_made_anew() {
    let place = Place::new(Engine::Postgres);
    let store = place.events().await;
    let mut other = sqlx::ConnectOptions::connect(&place.server().options()).await.unwrap();
    let records = Spool::lines(attempt(1, 1), &captured("flow"), 1);
    let mut turn = 1;
    let mut session = open(&store, context(1, 1), turn).await;
    while !session.is_complete() {
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let next = session.next_record() as usize;
        let mut whole = true;
        for record in &records[next - 1..records.len().min(next + 9)] {
            whole &= session.push(record.clone()).await.is_ok();
        }
        sqlx::query(cut).execute(&mut other).await.unwrap();
        let mut acked = session.acked();
        let last = session.next_record() - 1;
        whole &=
            tokio::time::timeout(PATIENCE, acked.wait_for(|&stored| stored >= last)).await.unwrap().is_ok();
        if !whole {
            // The connection was cut under a name that was being looked up, say. The session goes on from the cursor.
            turn += 1;
            session = loop {
                match Ingest::new(store.clone()).open(context(1, 1), epoch(turn)).await {
                    Ok(session) => break session,
                    Err(_) => turn += 1,
                }
                assert!(turn < 10_000, "it never opens again");
            };
        }
    }
    assert_eq!(events(&store, job(1)).await.len(), 65);
    assert_eq!(store.summary(job(1)).await.unwrap().gaps, []);
    check_balance(&store);
    store.close().await;
}

const FULL: &str = "PLEXUS_TEST_FULL_DISK";

/// Not a test of its own: runs where a small file system is mounted.
#[tokio::test]
async fn full_disk_child() {
    let Some(dir) = std::env::var_os(FULL).map(std::path::PathBuf::from) else { return };
    let store = EventStore::open(&dir.join("events")).await.unwrap();
    let mut session = open(&store, context(1, 1), 1).await;
    // Noise, which nothing compresses: more than fits beside the ballast, less than fits without it.
    let mut spool = Spool::new(attempt(1, 1));
    let mut noise = 1_u64;
    for counter in 1..=60 {
        let text: String = (0..100_000)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                char::from(b'0' + (noise >> 32) as u8 % 64)
            })
            .map(|letter| if matches!(letter, '"' | '\\') { '_' } else { letter })
            .collect();
        let event = format!(
            "{{\"uuid\": \"u\", \"counter\": {counter}, \"event\": \"verbose\", \"stdout\": \"{text}\"}}\n"
        );
        spool.stdout(event.as_bytes());
    }
    spool.end();
    let records = spool.records;
    feed(&mut session, &records[..3]).await;
    // Ballast takes what is left.
    let ballast = dir.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write(&mut file, &[7; 4096]).is_ok_and(|written| written > 0) {}
    drop(file); // open, it would keep its room when it is removed
    let last = records.len() as u64;
    for record in &records[3..] {
        // What cannot even be read for want of room may end the session.
        if session.push(record.clone()).await.is_err() {
            break;
        }
    }
    let mut acked = session.acked();
    let early = tokio::time::timeout(Duration::from_secs(2), acked.wait_for(|&stored| stored == last)).await;
    assert!(!matches!(early, Ok(Ok(_))), "acknowledged on a full disk");
    let counts = store.counts();
    assert!(counts.retries + counts.undone > 0, "{counts:?}");
    std::fs::remove_file(&ballast).unwrap();
    // With room again it goes on by itself, or from the cursor.
    let mut turn = 1;
    loop {
        let next = session.next_record() as usize - 1;
        for record in &records[next..] {
            if session.push(record.clone()).await.is_err() {
                break;
            }
        }
        let mut acked = session.acked();
        let waiting = acked.wait_for(|&stored| stored == last);
        if tokio::time::timeout(PATIENCE, waiting).await.unwrap().is_ok() {
            break;
        }
        turn += 1;
        assert!(turn < 100, "it never goes on");
        session = open(&store, context(1, 1), turn).await;
    }
    assert_eq!(events(&store, job(1)).await.len(), 60);
    check_balance(&store);
    store.close().await;
    println!("survived a full disk");
}

#[test]
fn a_full_disk_is_waited_for() {
    let dir = tempfile::TempDir::new().unwrap();
    // A mount of its own, seen by nobody else and gone with its process.
    let script = r#"mount -t tmpfs -o size=32m none "$1" && exec "$2" --exact --nocapture ingest::trouble_tests::full_disk_child"#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "bash", "-c", script, "full"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(FULL, dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("survived a full disk"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

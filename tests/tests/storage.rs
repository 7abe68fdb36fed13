//! The controller's disk in trouble while a job's output comes in: locked by somebody else, and full.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plexus_tests::{Api, Replay, Seen, is_verify, wait_for};
use reqwest::Method;
use serde_json::json;

/// The captured stream: 423 events, of which about half come before the gate.
const CASE: &str = "ten-hosts";
const LINES: u64 = 202;
const DEADLINE: Duration = Duration::from_secs(60);

/// Another process that has databases for itself until it is told to let go.
struct Locker(Child);

impl Locker {
    fn lock(files: &[&Path]) -> Self {
        let script = "import sqlite3, sys\n\
            held = [sqlite3.connect(path, isolation_level=None, timeout=30) for path in sys.argv[1:]]\n\
            for one in held: one.execute('BEGIN EXCLUSIVE')\n\
            print('locked', flush=True)\n\
            sys.stdin.read()\n\
            for one in held: one.execute('ROLLBACK')\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut word).unwrap();
        assert_eq!(word, "locked\n");
        Self(child)
    }

    fn release(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

async fn metric(api: &Api, name: &str) -> f64 {
    let text = api.get("/metrics").await.unwrap();
    let found = text.as_str().unwrap().lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    found.unwrap_or_else(|| panic!("there is no {name}")).parse().unwrap()
}

/// The API goes on showing what is stored, and says of the rest why not.
async fn blocked(api: &Api) {
    wait_for("the metrics to say that nothing is stored", DEADLINE, async || {
        let for_seconds = metric(api, "plexus_event_store_blocked_seconds").await;
        let retries = metric(api, "plexus_event_commit_retries_total").await;
        Seen::when(for_seconds > 0.0 && retries > 0.0, || {
            format!("for {for_seconds} seconds, {retries} retries")
        })
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn databases_locked_by_another_process_are_waited_for_and_the_api_says_so() {
    let held = Duration::from_secs(if is_verify() { 30 } else { 7 });
    let replay = Replay::start("locked", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();

    let data = replay.cluster.layout.data_dir("controller");
    let months: Vec<_> =
        std::fs::read_dir(data.join("events")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let month = months.iter().find(|path| path.extension().is_some_and(|suffix| suffix == "sqlite")).unwrap();
    let locker = Locker::lock(&[&data.join("core.sqlite"), month]);
    let until = tokio::time::Instant::now() + held;
    replay.open_gate().unwrap();
    let api = replay.api();
    blocked(api).await;
    let refused =
        api.send(Method::POST, "labels/", Some(&json!({"name": "late", "organization": 1}))).await.unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body["detail"].as_str().unwrap().contains("locked by another process"), "{refused:?}");
    tokio::time::sleep_until(until).await;
    assert_eq!(
        api.event_count(job).await.unwrap(),
        LINES - 2,
        "what is stored is shown, and no more is stored"
    );
    assert_eq!(api.job(job).await.unwrap()["status"], "running");
    locker.release();

    assert_eq!(replay.successful(job).await.unwrap(), expected);
    assert!(metric(replay.api(), "plexus_event_store_blocked_seconds").await == 0.0);
    replay.cluster.clean().await.unwrap();
    wait_for("both units to balance", DEADLINE, async || {
        let balanced = metric(replay.api(), "plexus_units_balanced_total").await;
        Seen::when(balanced == 2.0, || format!("{balanced} balance"))
    })
    .await
    .unwrap();
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_under_the_databases_is_waited_for_and_the_api_says_so() {
    let replay = Replay::start_on_small_disk(64, "full", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();

    let ballast = replay.cluster.controller_data().unwrap().join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write(&[7; 4096]).is_ok_and(|written| written > 0) {}
    drop(file);
    // What the logs of the databases hold already is room of theirs: writes go on for a while.
    let api = replay.api();
    let mut number = 0;
    let refused = wait_for("a write that does not fit", DEADLINE, async || {
        number += 1;
        let body = json!({"name": format!("label {number} {}", "x".repeat(400)), "organization": 1});
        let answer = api.send(Method::POST, "labels/", Some(&body)).await.unwrap();
        if answer.status == 201 { Seen::NotYet(format!("{number} labels fit")) } else { Seen::Yes(answer) }
    })
    .await
    .unwrap();
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body["detail"].as_str().unwrap().contains("no disk space left"), "{refused:?}");
    replay.open_gate().unwrap();
    blocked(api).await;
    assert!(api.event_count(job).await.unwrap() >= LINES - 2);
    assert_eq!(api.job(job).await.unwrap()["status"], "running");
    std::fs::remove_file(&ballast).unwrap();

    assert_eq!(replay.successful(job).await.unwrap(), expected);
    let body = json!({"name": "with room again", "organization": 1});
    replay.api().create("labels/", &body).await.unwrap();
    replay.finish().await.unwrap();
}

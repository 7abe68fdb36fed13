//! Agent and shim killed at each numbered point of a unit's life: the job ends once and visibly, nothing is doubled,
//! nothing lingers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_node::crash::Point;
use plexus_tests::{Replay, Seen, essence, wait_for};
use reqwest::Method;
use serde_json::Value;

/// The captured stream: 423 events, of which about half come before the gate.
const CASE: &str = "ten-hosts";
const LINES: u64 = 202;
/// Longest time until a point is reached, and until its job is over.
const LIFE: Duration = Duration::from_secs(60);

/// What a job may come to when agent or shim dies at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// Nothing is lost: success with every event.
    Whole,
    /// The outcome is unknown: an error that says so, and a beginning of the events.
    Lost,
    /// One or the other, as the race between death and message ends.
    WholeOrLost,
    /// A job that was canceled is.
    Canceled,
}

/// What each point promises. A new point does not compile until somebody has thought about it.
fn promise(point: Point) -> Promise {
    match point {
        Point::SubmitHeard
        | Point::IntentStored
        | Point::ShimTaken
        | Point::LaidOut
        | Point::StartedHeard
        | Point::RecordRead
        | Point::RecordSent
        | Point::AckHeard
        | Point::Trimmed
        | Point::EndWritten
        | Point::EndSynced
        | Point::EndReported
        | Point::EndHeard
        | Point::OutcomeStored
        | Point::PrivateWiped
        | Point::ForgetHeard
        | Point::Buried
        | Point::Renamed => Promise::Whole,
        Point::LaunchSent => Promise::WholeOrLost,
        Point::Marked
        | Point::LaunchHeard
        | Point::SpoolBegun
        | Point::Spawned
        | Point::StartedWritten
        | Point::RecordWritten
        | Point::Synced
        | Point::Reported
        | Point::Signalled
        | Point::WorkerEnded
        | Point::TreeGone
        | Point::PrivateRemoved => Promise::Lost,
        Point::CancelHeard | Point::CancelPassed => Promise::Canceled,
    }
}

#[tokio::test]
async fn a_unit_survives_the_death_of_its_agent_at_every_numbered_point_of_its_start() {
    sweep("agent-start", |point| !point.is_in_shim() && is_of_the_start(point)).await;
}

#[tokio::test]
async fn a_unit_survives_the_death_of_its_agent_at_every_numbered_point_of_its_end() {
    sweep("agent-end", |point| !point.is_in_shim() && !is_of_the_start(point)).await;
}

#[tokio::test]
async fn a_unit_ends_visibly_when_its_shim_dies_at_any_numbered_point_of_its_start() {
    sweep("shim-start", |point| point.is_in_shim() && is_of_the_start(point)).await;
}

#[tokio::test]
async fn a_unit_ends_visibly_when_its_shim_dies_at_any_numbered_point_of_its_end() {
    sweep("shim-end", |point| point.is_in_shim() && !is_of_the_start(point)).await;
}

/// The first half of a unit's life.
fn is_of_the_start(point: Point) -> bool {
    Point::ALL.iter().copied().take_while(|&other| other != Point::AckHeard).any(|other| other == point)
}

async fn sweep(who: &str, is_mine: impl Fn(Point) -> bool) {
    let mut replay = Replay::start(&format!("crash-points-{who}"), CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    // Points that records pass again and again are tried at later passages too.
    let passages = if plexus_tests::is_verify() { 1..=3 } else { 1..=1 };
    let (mut survived, mut wrong) = (0, Vec::new());
    for point in Point::ALL.iter().copied().filter(|&point| is_mine(point)) {
        for passage in passages.clone().take_while(|&n| n == 1 || is_passed_often(point)) {
            match crash_at(&mut replay, point, passage, &expected).await {
                Ok(()) => survived += 1,
                Err(error) => wrong.push(format!("{}:{passage}: {error:#}", point.name())),
            }
        }
    }
    let all = survived + wrong.len();
    // Not println!, which the test harness keeps to itself when all is well.
    let said = format!("{survived}/{all} crash points survived ({who})\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert!(wrong.is_empty(), "{said}{}", wrong.join("\n"));
    let starts = replay.starts();
    let distinct: BTreeSet<_> = starts.iter().collect();
    assert_eq!(starts.len(), distinct.len(), "an attempt started twice: {starts:?}");
    replay.finish().await.unwrap();
}

/// Points that even a small job passes three times.
fn is_passed_often(point: Point) -> bool {
    matches!(point, Point::RecordWritten)
}

/// One job during which agent or shim dies at a point.
async fn crash_at(replay: &mut Replay, point: Point, passage: u32, expected: &[Value]) -> anyhow::Result<()> {
    let note = tempfile::tempdir()?;
    let note = note.path().join("note");
    let starts = replay.starts().len();
    arm(replay, point, passage, &note)?;
    let is_cancel = matches!(point, Point::CancelHeard | Point::CancelPassed | Point::Signalled);
    // A sync comes some time after its record: a quick job would be over by then.
    if is_cancel || point == Point::Synced {
        replay.close_gate();
    } else {
        replay.open_gate()?;
    }
    let job = replay.launch().await?;
    if is_cancel {
        replay.at_gate(job).await?;
        let answer = replay.api().send(Method::POST, &format!("jobs/{job}/cancel/"), None).await?;
        ensure!(answer.status == 202, "cancel was answered {}", answer.status);
    }
    wait_for("the point to be reached", LIFE, async || {
        Seen::when(note.exists(), || format!("{point:?} not reached"))
    })
    .await?;
    if !is_cancel {
        replay.open_gate()?;
    }
    if point.is_in_shim() {
        // The agent that armed the shim sees it die, and says what that means.
        replay.api().finished(job, LIFE).await?;
    } else {
        let status = replay.cluster.node.exited(LIFE).await?;
        ensure!(!status.success(), "the agent ended in order");
    }
    disarm(replay)?;
    let done = replay.api().finished(job, LIFE).await?;
    replay.cluster.node_ready().await?;
    let events = replay.api().events(job).await?.iter().map(essence).collect::<Vec<_>>();
    let started = replay.starts().len() - starts;
    judge(promise(point), &done, &events, expected, started)?;
    replay.cluster.clean().await.context("something lingers")
}

fn arm(replay: &mut Replay, point: Point, passage: u32, note: &Path) -> anyhow::Result<()> {
    let node = &mut replay.cluster.node;
    node.kill();
    node.set_env("PLEXUS_CRASH_AT", &format!("{}:{passage}", point.name()));
    node.set_env("PLEXUS_CRASH_NOTE", note.to_str().context("a path that is no text")?);
    node.start()
}

fn disarm(replay: &mut Replay) -> anyhow::Result<()> {
    let node = &mut replay.cluster.node;
    node.kill();
    node.unset_env("PLEXUS_CRASH_AT");
    node.unset_env("PLEXUS_CRASH_NOTE");
    node.start()
}

fn judge(
    promise: Promise,
    done: &Value,
    events: &[Value],
    expected: &[Value],
    started: usize,
) -> anyhow::Result<()> {
    let (status, why) = (&done["status"], done["job_explanation"].as_str().unwrap_or_default());
    let whole = status == "successful" && events == expected && started == 1;
    let begins = expected.starts_with(events) && started <= 1;
    let lost = status == "error" && !why.is_empty() && begins;
    let kept = match promise {
        Promise::Whole => whole,
        Promise::Lost => lost,
        Promise::WholeOrLost => whole || lost,
        Promise::Canceled => status == "canceled" && begins,
    };
    ensure!(
        kept,
        "promised {promise:?}; it is {status} ({why}) with {} of {} events, started {started} times",
        events.len(),
        expected.len()
    );
    Ok(())
}

#[test]
fn the_judge_tells_each_bad_end_from_a_good_one() {
    let (expected, ok) = ([Value::from(1), Value::from(2)], serde_json::json!({"status": "successful"}));
    let lost = serde_json::json!({"status": "error", "job_explanation": "unknown"});
    let check = |promise, done: &Value, events: &[Value], started| {
        judge(promise, done, events, &expected, started).is_ok()
    };
    assert!(check(Promise::Whole, &ok, &expected, 1));
    assert!(!check(Promise::Whole, &ok, &expected[..1], 1), "an event is missing");
    assert!(!check(Promise::Whole, &ok, &expected, 2), "a second start");
    assert!(!check(Promise::Whole, &lost, &expected, 1), "what is promised whole is not lost");
    assert!(check(Promise::Lost, &lost, &expected[..1], 0));
    assert!(!check(Promise::Lost, &lost, &expected[1..], 1), "a gap");
    assert!(!check(Promise::Lost, &ok, &expected, 1), "an unknown end is no success");
    assert!(check(Promise::WholeOrLost, &ok, &expected, 1) && check(Promise::WholeOrLost, &lost, &[], 0));
    assert!(!check(Promise::Canceled, &ok, &expected, 1));
}

//! Hop, controller and agent killed in mid-job: the job goes on, and what it stored is exactly what an undisturbed one stores.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use plexus_tests::{Cluster, JobOptions, Recap, Replay, Samples, demo_image};
use serde_json::json;

/// The captured stream: 423 events, of which about half come before the gate.
const CASE: &str = "ten-hosts";
const LINES: u64 = 202;
/// Longest time until a crash point is reached: a start of the controller and one job.
const CRASH: Duration = Duration::from_secs(30);
/// Passages of a point that come in every run.
const SURE: i32 = 2;
/// Longest time from the end of a job until what follows it, the last acknowledgement and the forgetting, is done.
const LATE: Duration = Duration::from_secs(3);
/// The variable that names the crash point.
const CRASH_AT: &str = "PLEXUS_CRASH_AT";

#[tokio::test]
async fn job_goes_on_when_a_killed_hop_is_back() {
    let mut replay = Replay::start("hop-killed", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();

    replay.cluster.hop.kill();
    // The job goes on meanwhile; the node keeps what it prints.
    replay.open_gate().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let running = replay.api().job(job).await.unwrap();
    assert_eq!(running["status"], "running", "{running}");
    replay.cluster.hop.start().unwrap();

    assert_eq!(replay.successful(job).await.unwrap(), expected);
    replay.cluster.clean().await.unwrap();
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn controller_killed_in_mid_job_finishes_it_when_started_again() {
    let mut replay = Replay::start("controller-killed", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();

    replay.cluster.controller.kill();
    replay.open_gate().unwrap();
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();

    assert_eq!(replay.successful(job).await.unwrap(), expected);
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn agent_killed_in_mid_job_finishes_it_when_started_again() {
    let mut replay = Replay::start("agent-killed", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();

    replay.cluster.node.kill();
    // The shim owns the job: it runs to its end while there is no agent.
    replay.open_gate().unwrap();
    replay.cluster.node.start().unwrap();

    assert_eq!(replay.successful(job).await.unwrap(), expected);
    replay.finish().await.unwrap();
}

/// At each point once for each passage: the first record to come by, the second, and in the longer proofs six more. How
/// many transactions a job takes depends on how its records arrive, so a later passage may not come; the first two must.
#[tokio::test]
async fn controller_survives_a_crash_at_every_numbered_point() {
    let passages = if plexus_tests::is_verify() { 1..=8 } else { 1..=2 };
    sweep(Replay::start("crash-points", CASE, LINES).await.unwrap(), passages).await;
}

async fn sweep(mut replay: Replay, passages: std::ops::RangeInclusive<i32>) {
    let points = crash_points(&replay.cluster);
    let expected = replay.undisturbed().await.unwrap();
    let (mut survived, mut absent, mut wrong) = (0, 0, Vec::new());
    for point in &points {
        for passage in passages.clone() {
            let at = format!("{point}:{passage}");
            match crash_at(&mut replay, &at).await {
                Ok((crashed, events)) if events == expected => match crashed {
                    true => survived += 1,
                    false if passage > SURE => absent += 1,
                    false => wrong.push(format!("{at}: never reached")),
                },
                Ok((_, events)) => {
                    wrong.push(format!("{at}: {} events stored, or not the same ones", events.len()))
                }
                Err(error) => wrong.push(format!("{at}: {error:#}")),
            }
        }
    }
    let all = survived + wrong.len();
    // Not println!, which the test harness keeps to itself when all is well.
    let said = format!(
        "crash points survived: {survived}/{all} (points: {}; later passages that did not come: {absent})\n",
        points.len()
    );
    std::io::stderr().write_all(said.as_bytes()).unwrap();
    assert!(wrong.is_empty(), "{survived}/{all} crash points survived\n{}", wrong.join("\n"));
    replay.finish().await.unwrap();
}

/// Names of the points, in their order from record to ack.
fn crash_points(cluster: &Cluster) -> Vec<String> {
    let output =
        Command::new(cluster.layout.binaries.controller()).args(["debug", "crash-points"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let points: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    assert!(!points.is_empty(), "the controller knows no crash point");
    points
}

/// One job during which the controller dies at a point, and is started again without it. False when the job came to its
/// end and the point did not.
async fn crash_at(replay: &mut Replay, point: &str) -> anyhow::Result<(bool, Vec<serde_json::Value>)> {
    replay.close_gate();
    let controller = &mut replay.cluster.controller;
    controller.kill();
    controller.set_env(CRASH_AT, point);
    controller.start()?;
    replay.cluster.api_up().await?;
    replay.cluster.node_ready().await?;
    let job = replay.launch().await?;
    let (api, half) = (replay.api().clone(), replay.before_gate(job));
    // Half of the job is stored before the rest comes, so that it takes two transactions at least.
    let early = tokio::select! {
        status = replay.cluster.controller.exited(CRASH) => Some(status?),
        stored = half => stored.map(|()| None)?,
    };
    // Points of the end come only when the job may end.
    replay.open_gate()?;
    let exited = match early {
        Some(status) => Some(status),
        None => tokio::select! {
            status = replay.cluster.controller.exited(CRASH) => Some(status?),
            _ = api.finished(job, CRASH) => replay.cluster.controller.exited(LATE).await.ok(),
        },
    };
    let crashed = exited.is_some();
    anyhow::ensure!(exited.is_none_or(|status| !status.success()), "the controller ended in order");
    let controller = &mut replay.cluster.controller;
    controller.unset_env(CRASH_AT);
    if crashed {
        controller.start()?;
        replay.cluster.api_up().await?;
    }
    Ok((crashed, replay.successful(job).await?))
}

#[tokio::test]
async fn job_in_a_container_survives_the_death_of_all_three_in_turn() {
    let mut cluster = Cluster::builder("three-deaths").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api().clone();
    let loaded = samples.load(&api).await.unwrap();
    let inventory = samples.load_inventory(&api, loaded, "ten-hosts.ini").await.unwrap();
    let options = JobOptions { tags: Some("tiny".into()), ..JobOptions::default() };
    let template = samples.template(&api, loaded, "chatty", "chatty.yml", inventory, &options).await.unwrap();
    let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();

    // Each death once some more of the output is stored, so that it comes in mid-job.
    for (victim, events) in [("node", 20), ("controller", 60), ("hop", 100)] {
        plexus_tests::wait_for(&format!("{events} events"), Duration::from_secs(60), async || {
            let count = api.event_count(job).await.unwrap_or(0);
            plexus_tests::Seen::when(count >= events, || format!("{count} events"))
        })
        .await
        .unwrap();
        let daemon = match victim {
            "node" => &mut cluster.node,
            "controller" => &mut cluster.controller,
            _ => &mut cluster.hop,
        };
        daemon.kill();
        daemon.start().unwrap();
    }
    let done = api.finished(job, Duration::from_secs(120)).await.unwrap();
    assert_eq!(done["status"], "successful", "{done}");
    let counters: Vec<u64> =
        api.events(job).await.unwrap().iter().filter_map(|event| event["counter"].as_u64()).collect();
    assert_eq!(counters, (1..=423).collect::<Vec<_>>());
    let recap = Recap::parse(&api.stdout(job, "txt").await.unwrap());
    assert_eq!(recap.0.len(), 10);
    assert!(recap.0.values().all(|host| host["ok"] == 20 && host["failed"] == 0), "{recap:?}");
    cluster.finish().await.unwrap();
}

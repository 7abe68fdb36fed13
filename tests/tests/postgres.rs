//! The controller on PostgreSQL: jobs in containers as on SQLite, and a server that goes down in the middle.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::time::Duration;

use plexus_tests::{Cluster, JobOptions, Postgres, Recap, Replay, Samples, demo_image};
use serde_json::json;

#[tokio::test]
async fn a_playbook_runs_across_the_hop() {
    let server = Postgres::start();
    let database = server.database();
    let cluster = Cluster::builder("postgresql").database(database).start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let inventory = samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    let template = samples
        .template(api, loaded, "webapp", "webapp.yml", inventory, &JobOptions::default())
        .await
        .unwrap();
    let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
    let done = api.finished(job, Duration::from_secs(300)).await.unwrap();
    assert_eq!(done["status"], "successful", "{done}");
    let counters: Vec<u64> =
        api.events(job).await.unwrap().iter().filter_map(|event| event["counter"].as_u64()).collect();
    assert_eq!(counters, (1..=60).collect::<Vec<_>>());
    let recap = Recap::parse(&api.stdout(job, "txt").await.unwrap());
    assert_eq!(recap, Recap::expected("web1: ok=9 changed=5; web2: ok=9 changed=5"));
    // Nothing lies in files beside the server.
    assert!(!cluster.layout.data_dir("controller").join("core.sqlite").exists());
    assert!(!cluster.layout.data_dir("controller").join("events").exists());
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn a_server_restarted_as_by_a_power_cut_in_mid_ingest_loses_and_doubles_nothing() {
    let mut server = Postgres::start();
    let replay = Replay::start_on(server.database(), "pg-restarted", "ten-hosts", 202).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();

    // Restarted while the job stands still, and goes on while the controller finds its way back.
    replay.close_gate();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    server.restart();
    replay.open_gate().unwrap();
    assert_eq!(replay.successful(job).await.unwrap(), expected);

    // Down while records come, and up again later.
    replay.close_gate();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    server.stop();
    replay.open_gate().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    server.restart();
    assert_eq!(replay.successful(job).await.unwrap(), expected);

    // Restarted at once, and again, at whatever record that is.
    for _ in 0..5 {
        let job = replay.launch().await.unwrap();
        server.restart();
        assert_eq!(replay.successful(job).await.unwrap(), expected);
    }
    replay.finish().await.unwrap();
}

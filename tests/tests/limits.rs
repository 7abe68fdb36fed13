//! Limits of time on real jobs: the runner keeps to them in the execution environment, and the node behind it.

use std::fs;
use std::time::Duration;

use plexus_tests::{Cluster, JobOptions, Samples, Seen, demo_image, wait_for};
use serde_json::json;

/// Longest life of a job of seconds, on a machine that also compiles.
const JOB: Duration = Duration::from_secs(120);

/// Sleeps without a word for so many seconds.
const PLAYBOOK: &str = "- hosts: all\n  gather_facts: false\n  tasks:\n    - command: sleep {{ seconds }}\n";

#[tokio::test]
async fn jobs_end_at_their_limits_and_say_so() {
    let cluster = Cluster::builder("limits").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    let projects = cluster.layout.projects();
    samples.copy_project(&projects).unwrap();
    fs::write(projects.join("samples/nap.yml"), PLAYBOOK).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let inventory = samples.load_here(api, loaded).await.unwrap();
    let template =
        samples.template(api, loaded, "nap", "nap.yml", inventory, &JobOptions::default()).await.unwrap();
    let launch = async |timeout: i64, seconds: u32| {
        let change = json!({"timeout": timeout, "extra_vars": json!({"seconds": seconds}).to_string()});
        api.change(&format!("job_templates/{template}/"), &change).await.unwrap();
        api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap()
    };
    let ended_by_limit = async |job: i64| {
        let done = api.finished(job, JOB).await.unwrap();
        let how = (&done["status"], &done["failed"], &done["job_explanation"]);
        assert_eq!(how, (&json!("failed"), &json!(true), &json!("Job terminated due to timeout")), "{done}");
        assert!(api.stdout(job, "txt").await.unwrap().contains("TASK [command]"), "it ran until then");
        cluster.clean().await.unwrap();
    };

    // The template's own: in the runner, and behind it in the node.
    let job = launch(2, 300).await;
    assert_eq!(limit_of_the_node(&cluster).await, 62);
    ended_by_limit(job).await;

    // Nothing is heard of it for too long.
    api.change("settings/jobs/", &json!({"DEFAULT_JOB_IDLE_TIMEOUT": 3})).await.unwrap();
    let job = launch(0, 300).await;
    assert_eq!(limit_of_the_node(&cluster).await, 0, "silence is the runner's to notice");
    ended_by_limit(job).await;

    // The setting is for templates that say nothing; less than 0 says that there is no limit.
    let limits = json!({"DEFAULT_JOB_IDLE_TIMEOUT": 0, "DEFAULT_JOB_TIMEOUT": 2});
    api.change("settings/jobs/", &limits).await.unwrap();
    ended_by_limit(launch(0, 300).await).await;
    let done = api.finished(launch(-1, 4).await, JOB).await.unwrap();
    assert_eq!((&done["status"], &done["job_explanation"]), (&json!("successful"), &json!("")), "{done}");
    cluster.finish().await.unwrap();
}

/// Seconds after which the node ends its one unit, as it noted them.
async fn limit_of_the_node(cluster: &Cluster) -> u64 {
    wait_for("the unit to be at its node", JOB, async || {
        let noted = cluster.layout.noted_unit("node-1").unwrap_or_default();
        match noted["spec"]["timeout_seconds"].as_u64() {
            Some(seconds) => Seen::Yes(seconds),
            None => Seen::NotYet(noted.to_string()),
        }
    })
    .await
    .expect("a unit")
}

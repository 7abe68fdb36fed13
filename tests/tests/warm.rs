//! A job in a container that waited for it, and the death of agent or shim around the moment it is taken.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_node::crash::Point;
use plexus_tests::{Cluster, JobOptions, Samples, Seen, demo_image, podman_command, wait_for};
use serde_json::json;

const LIFE: Duration = Duration::from_secs(90);

/// Ends of a job when agent or shim dies at a point.
const POINTS: [(Point, &[&str]); 7] = [
    (Point::Marked, &["error"]),
    (Point::ShimTaken, &["successful"]),
    (Point::LaidOut, &["successful"]),
    (Point::LaunchSent, &["successful", "error"]),
    (Point::LaunchHeard, &["error"]),
    (Point::SpoolBegun, &["error"]),
    (Point::Spawned, &["error"]),
];

/// Containers of the node that wait, or waited.
fn slots(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let store = std::fs::read_to_string(cluster.layout.data_dir("node-1").join("store_id"))?;
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let store = format!("label=plexus.store={}", store.trim());
    let words = ["ps", "--filter", &store, "--filter", "label=plexus.slot", "--format", "{{.Names}}"];
    let output = Command::new(program).args(first).args(words).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

async fn one_waits(cluster: &Cluster) -> anyhow::Result<String> {
    wait_for("a container to wait", LIFE, async || match slots(cluster).unwrap_or_default().as_slice() {
        [one] => Seen::Yes(one.clone()),
        others => Seen::NotYet(format!("{others:?}")),
    })
    .await
}

#[tokio::test]
async fn a_job_takes_a_container_that_waits_and_survives_deaths_around_that_as_any_other() {
    let entry = format!("\n[[work.warm]]\nimage = {:?}\norganization = \"1\"\ncount = 1\n", demo_image());
    let mut cluster = Cluster::builder("warm").podman(&entry).start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let loaded = samples.load(cluster.api()).await.unwrap();
    assert_eq!(loaded.organization, 1);
    let inventory = samples.load_inventory(cluster.api(), loaded, "two-hosts.ini").await.unwrap();
    let options = JobOptions::default();
    let template =
        samples.template(cluster.api(), loaded, "warm", "facts.yml", inventory, &options).await.unwrap();

    // The job that takes it is as any other, its project and all, and it is not used again.
    let first = one_waits(&cluster).await.unwrap();
    let job = cluster.api().launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
    let done = cluster.api().finished(job, LIFE).await.unwrap();
    assert_eq!(done["status"], "successful", "{done}");
    assert_ne!(one_waits(&cluster).await.unwrap(), first);

    let points = if plexus_tests::is_verify() { &POINTS[..] } else { &POINTS[..2] };
    let mut wrong = Vec::new();
    for (point, ends) in points {
        if let Err(error) = crash_at(&mut cluster, template, *point, ends).await {
            wrong.push(format!("{}: {error:#}", point.name()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // An agent that stops in order takes what waits with it.
    cluster.node.stop().await.unwrap();
    assert_eq!(slots(&cluster).unwrap(), Vec::<String>::new());

    // A node without the section has none, and nothing is left of those that waited.
    let config = cluster.layout.config("node-1");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains(&entry));
    std::fs::write(&config, text.replace(&entry, "\n")).unwrap();
    cluster.node.start().unwrap();
    cluster.node_ready().await.unwrap();
    cluster.clean().await.unwrap();
    cluster.finish().await.unwrap();
}

async fn crash_at(cluster: &mut Cluster, template: i64, point: Point, ends: &[&str]) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let note = dir.path().join("note");
    arm(cluster, Some((point, &note)))?;
    cluster.node_ready().await?;
    let taken = one_waits(cluster).await?;
    let job = cluster.api().launch(template, &json!({})).await?["id"].as_i64().context("no id")?;
    wait_for("the point to be reached", LIFE, async || {
        Seen::when(note.exists(), || format!("{point:?} not reached"))
    })
    .await?;
    if !point.is_in_shim() {
        cluster.node.exited(LIFE).await?;
        if [Point::ShimTaken, Point::LaidOut, Point::Marked].contains(&point) {
            // Without a launch it goes with its agent: the next one finds nothing that it could give to anybody.
            wait_for("the container that was taken to go", LIFE, async || {
                let left = slots(cluster).unwrap_or_else(|_| vec![taken.clone()]);
                Seen::when(!left.contains(&taken), || format!("{left:?}"))
            })
            .await?;
        }
        arm(cluster, None)?;
    }
    let done = cluster.api().finished(job, LIFE).await?;
    if point.is_in_shim() {
        arm(cluster, None)?;
    }
    let status = done["status"].as_str().unwrap_or_default();
    ensure!(ends.contains(&status), "it ended {status}: {}", done["job_explanation"]);
    cluster.node_ready().await?;
    // What it took is gone, and another one waits.
    let fresh = one_waits(cluster).await?;
    ensure!(fresh != taken, "{taken} was taken and waits again");
    Ok(())
}

/// Starts the node anew, to die at a point or to live.
fn arm(cluster: &mut Cluster, at: Option<(Point, &Path)>) -> anyhow::Result<()> {
    let node = &mut cluster.node;
    node.kill();
    match at {
        Some((point, note)) => {
            node.set_env("PLEXUS_CRASH_AT", point.name());
            node.set_env("PLEXUS_CRASH_NOTE", note.to_str().context("a path that is no text")?);
        }
        None => {
            node.unset_env("PLEXUS_CRASH_AT");
            node.unset_env("PLEXUS_CRASH_NOTE");
        }
    }
    node.start()
}

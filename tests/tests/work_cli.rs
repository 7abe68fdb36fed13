//! `plexus work` against a real controller and its node, under users' names.

use std::process::Output;
use std::time::Duration;

use plexus_tests::{Replay, Seen, wait_for};
use serde_json::{Value, json};

/// The captured stream: 423 events, of which about half come before the gate.
const CASE: &str = "ten-hosts";
const LINES: u64 = 202;
const LIFE: Duration = Duration::from_secs(60);

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn as_user(replay: &Replay, name: &str, args: &[&str]) -> Output {
    let layout = &replay.cluster.layout;
    let mut command = tokio::process::Command::new(layout.binaries.cli());
    command.args(["--controller", &format!("http://127.0.0.1:{}", layout.http_port)]).args(args);
    command.env("CONTROLLER_USERNAME", name).env("CONTROLLER_PASSWORD", "Chalk-and-cheese-7");
    command.env_remove("CONTROLLER_OAUTH_TOKEN").output().await.expect("plexus runs")
}

#[tokio::test]
async fn work_is_listed_shown_followed_canceled_and_abandoned_under_a_users_name() {
    let mut replay = Replay::start("work-cli", CASE, LINES).await.unwrap();
    let user = json!({"username": "eve", "password": "Chalk-and-cheese-7"});
    replay.api().create("users/", &user).await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let id = job.to_string();

    let list = said(&replay.cluster.plexus_as_admin(&["work", "list"]).await.unwrap());
    let line = list.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("{list}"));
    assert!(line.contains("running") && line.contains("node-1"), "{line}");
    let status = said(&replay.cluster.plexus_as_admin(&["-o", "json", "work", "status", &id]).await.unwrap());
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["id"], &status["execution_node"]), (&json!(job), &json!("node-1")));

    // A user without any role sees none of it and ends none of it.
    assert!(!said(&as_user(&replay, "eve", &["work", "list"]).await).contains("running"));
    for verb in [["work", "status", &id], ["work", "cancel", &id], ["work", "abandon", &id]] {
        let refused = as_user(&replay, "eve", &verb).await;
        assert!(!refused.status.success(), "{verb:?}");
    }
    assert_eq!(replay.api().job(job).await.unwrap()["status"], "running");

    // Follow: what is stored, then what comes, to the end.
    let follow = ["work", "results", &id, "--follow"];
    let (followed, ()) = tokio::join!(replay.cluster.plexus_as_admin(&follow), async {
        replay.open_gate().unwrap();
    });
    let followed = said(&followed.unwrap());
    assert!(followed.contains("PLAY [") && followed.contains("PLAY RECAP"), "{followed}");
    assert_eq!(said(&replay.cluster.plexus_as_admin(&follow[..3]).await.unwrap()), followed);

    replay.close_gate();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let id = job.to_string();
    said(&replay.cluster.plexus_as_admin(&["work", "cancel", &id]).await.unwrap());
    assert_eq!(replay.api().finished(job, LIFE).await.unwrap()["status"], "canceled");
    let again = replay.cluster.plexus_as_admin(&["work", "cancel", &id]).await.unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing to cancel"));

    // The node is gone and stays gone: the operator gives the job up. When it is back, what lived there ends.
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let id = job.to_string();
    replay.cluster.node.kill();
    said(&replay.cluster.plexus_as_admin(&["work", "abandon", &id]).await.unwrap());
    let over = replay.api().job(job).await.unwrap();
    assert_eq!(over["status"], "error");
    assert!(over["job_explanation"].as_str().unwrap().contains("by admin"), "{over}");
    replay.cluster.node.start().unwrap();
    replay.cluster.clean().await.unwrap();
    assert_eq!(replay.api().job(job).await.unwrap()["job_explanation"], over["job_explanation"]);
    wait_for("every unit to be forgotten", LIFE, async || {
        let live = replay.cluster.plexus_as_admin(&["work", "list"]).await;
        let text = live.map(|output| said(&output)).unwrap_or_default();
        Seen::when(text == "no jobs\n", || text.clone())
    })
    .await
    .unwrap();
    replay.finish().await.unwrap();
}

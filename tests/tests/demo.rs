//! `make demo`, without the build: the same program on the binaries of this build.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use plexus_tests::{Api, Binaries, Leftovers, Recap, Seen, plain, runtime_root, wait_for};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Longest demo on a machine that also compiles.
const DEMO: Duration = Duration::from_secs(120);

fn demo(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(Binaries::of_this_build().unwrap().xtask());
    command.args(["demo", "--dir"]).arg(dir).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("plexus-demo-test-").tempdir().unwrap()
}

fn nothing_is_left(dir: &Path) {
    let found = Leftovers::find(&[dir], &runtime_root().join("plexus-demo-none"), true);
    assert!(found.processes.is_empty(), "{found:?}");
}

#[tokio::test]
async fn demo_once_runs_a_playbook_across_the_hop_and_ends_with_one_line_of_json() {
    let scratch = scratch();
    let dir = scratch.path().join("demo");
    let output = tokio::time::timeout(DEMO, demo(&dir, &["--once"]).output()).await.unwrap().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        Recap::parse(&stdout),
        Recap::expected("web1: ok=9 changed=5; web2: ok=9 changed=5"),
        "{stdout}"
    );
    assert!(stdout.contains('\u{1b}'), "Ansible's colours are gone");
    assert!(plain(&stdout).contains("controller → hop-1 → node-1"), "{stdout}");
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["status"], &last["events"]), (&Value::from("successful"), &Value::from(60)), "{last}");
    assert_eq!(last["path"], serde_json::json!(["controller", "hop-1", "node-1"]));
    for time in ["submit_to_start_ms", "submit_to_first_event_ms", "total_ms"] {
        assert!(last[time].as_u64().is_some_and(|ms| ms > 0), "{time} in {last}");
    }
    nothing_is_left(&dir);
}

#[tokio::test]
async fn demo_once_of_a_failing_playbook_fails() {
    let scratch = scratch();
    let dir = scratch.path().join("demo");
    let output = tokio::time::timeout(DEMO, demo(&dir, &["--once", "--playbook", "failing.yml"]).output())
        .await
        .unwrap()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["status"], &last["events"]), (&Value::from("failed"), &Value::from(16)), "{last}");
}

#[tokio::test]
async fn serving_demo_can_be_used_from_its_env_file_and_stopped_from_anywhere() {
    let scratch = scratch();
    let dir = scratch.path().join("demo");
    let mut serving: Child = demo(&dir, &["--serve"]).spawn().unwrap();
    let env = dir.join("env");
    wait_for("the demo to be up", DEMO, async || {
        if let Ok(Some(status)) = serving.try_wait() {
            return Seen::NotYet(format!("it ended: {status}"));
        }
        let host = std::fs::read_to_string(&env).unwrap_or_default();
        let Some(host) = value(&host, "CONTROLLER_HOST") else { return Seen::NotYet("no env file".into()) };
        let password = value(&std::fs::read_to_string(&env).unwrap_or_default(), "CONTROLLER_PASSWORD")
            .unwrap_or_default();
        match Api::new(&host, "admin", &password).unwrap().get("job_templates/?name=Demo").await {
            Ok(list) if list["count"] == 1 => Seen::Yes(()),
            other => Seen::NotYet(format!("{other:?}")),
        }
    })
    .await
    .unwrap();

    // A second one refuses, politely.
    let second = demo(&dir, &["--serve"]).output().await.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("already running") && message.contains("make demo-stop"), "{message}");

    // After `. .demo/env`, `plexus` and `awx` just work.
    let script = format!(". '{}' && plexus trace node-1 && awx me", env.display());
    let used = Command::new("sh").args(["-c", &script]).output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&used.stdout), String::from_utf8_lossy(&used.stderr));
    assert!(used.status.success(), "{out}\n{err}");
    assert!(out.contains("hop-1") && out.contains("\"username\": \"admin\""), "{out}");

    let stop = Command::new(Binaries::of_this_build().unwrap().xtask())
        .args(["demo-stop", "--dir"])
        .arg(&dir)
        .output()
        .await
        .unwrap();
    assert!(stop.status.success(), "{}", String::from_utf8_lossy(&stop.stderr));
    let ended =
        tokio::time::timeout(Duration::from_secs(10), serving.wait_with_output()).await.unwrap().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    nothing_is_left(&dir);
}

/// Value of an `export NAME=VALUE` line, without quotes.
fn value(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")))?;
    Some(line.trim_matches('\'').to_owned())
}

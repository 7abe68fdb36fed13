//! What people type: `plexus` at every daemon's socket and through the controller's API, and the daemons' own commands.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::path::Path;
use std::process::{Command, Output};

use plexus_tests::{Binaries, Cluster};
use serde_json::Value;

fn run(program: &Path, args: &[&str]) -> Output {
    run_with(program, args, &[])
}

fn run_with(program: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(program);
    for name in [
        "PLEXUS_SOCKET",
        "CONTROLLER_HOST",
        "CONTROLLER_USERNAME",
        "CONTROLLER_PASSWORD",
        "CONTROLLER_OAUTH_TOKEN",
    ] {
        command.env_remove(name);
    }
    command.envs(env.iter().copied()).args(args).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", err(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {}", out(output)))
}

fn names(nodes: &Value) -> Vec<&str> {
    let mut names: Vec<&str> =
        nodes["nodes"].as_array().unwrap().iter().filter_map(|node| node["node"].as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn every_daemon_and_the_controller_tell_the_same_mesh() {
    let cluster = Cluster::builder("cli").process(vec!["/bin/true".into()]).start().await.unwrap();
    let cli = cluster.layout.binaries.cli();
    let socket = |name: &str| cluster.layout.socket(name).display().to_string();
    let everybody = ["controller", "hop-1", "node-1"];

    for daemon in everybody {
        let socket = socket(daemon);
        let nodes = json(&run(&cli, &["--socket", &socket, "-o", "json", "nodes"]));
        assert_eq!(names(&nodes), everybody, "as {daemon} sees it");
        let status = run(&cli, &["--socket", &socket, "status"]);
        assert!(status.status.success() && out(&status).contains(daemon), "{}{}", out(&status), err(&status));
    }

    // The way is what packets took: controller and node know only the hop.
    let socket = socket("node-1");
    let trace = json(&run_with(&cli, &["-o", "json", "trace", "controller"], &[("PLEXUS_SOCKET", &socket)]));
    let path: Vec<&str> =
        trace["hops"].as_array().unwrap().iter().filter_map(|hop| hop["node"].as_str()).collect();
    assert_eq!(path, ["hop-1", "controller"]);
    let ping = json(&run(&cli, &["--socket", &socket, "-o", "json", "ping", "controller", "--count", "1"]));
    assert_eq!((&ping["node"], &ping["hops"]), (&Value::from("controller"), &Value::from(2)), "{ping}");

    // Through the controller's API, from anywhere.
    let host = format!("https://127.0.0.1:{}", cluster.layout.https_port);
    let env = [
        ("CONTROLLER_HOST", host.as_str()),
        ("CONTROLLER_USERNAME", cluster.api().user()),
        ("CONTROLLER_PASSWORD", cluster.api().password()),
        ("CONTROLLER_VERIFY_SSL", "false"),
    ];
    assert_eq!(names(&json(&run_with(&cli, &["-o", "json", "nodes"], &env))), everybody);
    let trace = json(&run_with(&cli, &["-o", "json", "trace", "node-1"], &env));
    assert_eq!(trace["reached"], true, "{trace}");
    let unknown = run_with(&cli, &["ping", "node-9", "--count", "1"], &env);
    assert_eq!(unknown.status.code(), Some(4), "{}", err(&unknown));
    let wrong = run_with(&cli, &["nodes"], &[env[0], env[1], ("CONTROLLER_PASSWORD", "wrong"), env[3]]);
    assert_eq!(wrong.status.code(), Some(5), "{}", err(&wrong));
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn configurations_are_checked_without_a_start() {
    let cluster = Cluster::builder("check-config").process(vec!["/bin/true".into()]).prepare().unwrap();
    let binaries = &cluster.layout.binaries;
    for name in ["hop-1", "node-1"] {
        let file = cluster.layout.config(name);
        let checked = run(&binaries.node(), &["check-config", &file.display().to_string()]);
        assert!(checked.status.success(), "{}", err(&checked));
    }
    let file = cluster.layout.config("controller");
    let checked = run(&binaries.controller(), &["check-config", &file.display().to_string()]);
    assert!(checked.status.success(), "{}", err(&checked));
    let missing = run(&binaries.node(), &["check-config", "/nonexistent/node.toml"]);
    assert!(
        !missing.status.success() && err(&missing).contains("/nonexistent/node.toml"),
        "{}",
        err(&missing)
    );
    cluster.finish().await.unwrap();
}

#[test]
fn debug_stream_tells_what_the_index_says_of_every_captured_case() {
    let binaries = Binaries::of_this_build().unwrap();
    let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runner-streams");
    let index: Value = serde_json::from_slice(&std::fs::read(streams.join("index.json")).unwrap()).unwrap();
    let cases = index.as_object().unwrap();
    assert!(cases.len() > 50, "only {} cases", cases.len());
    for (case, expected) in cases {
        let file = streams.join(case).join("worker.bin").display().to_string();
        let told = json(&run(&binaries.controller(), &["debug", "stream", &file, "--json"]));
        for field in ["statuses", "events", "event_count", "keepalives", "rc_file", "eof"] {
            assert_eq!(told[field], expected[field], "{field} of {case}");
        }
    }
}

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

/// What an operator does on a bad day, against real daemons: look, ask the network, reload, forward a port, see what
/// happened when the hop went.
#[tokio::test]
async fn an_operator_sees_and_tends_the_mesh() {
    let mut cluster = Cluster::builder("cli-tend").process(vec!["/bin/true".into()]).prepare().unwrap();
    let file = cluster.layout.config("node-1");
    let before = std::fs::read_to_string(&file).unwrap();
    let allow = "\n[forward]\nallow = [{ from = \"controller\", to = [\"127.0.0.1:*\"] }]\n";
    std::fs::write(&file, before + allow).unwrap();
    cluster.hop.start().unwrap();
    cluster.controller.start().unwrap();
    cluster.node.start().unwrap();
    cluster.api_up().await.unwrap();
    cluster.node_ready().await.unwrap();

    let cli = cluster.layout.binaries.cli();
    let socket = cluster.layout.socket("controller").display().to_string();
    let plexus = |args: &[&str]| run(&cli, &[&["--socket", &socket], args].concat());
    let links = json(&plexus(&["links", "-o", "json"]));
    let pairs: Vec<_> = links["links"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| (link["node"].as_str().unwrap(), link["peer"].as_str().unwrap(), link["up"] == true))
        .collect();
    assert_eq!(pairs, [("controller", "hop-1", true), ("hop-1", "node-1", true)]);
    assert_eq!(out(&plexus(&["routes", "-o", "name"])), "hop-1\nnode-1\n");
    let trace = json(&plexus(&["trace", "node-1", "-o", "json", "--count", "5"]));
    let hops = trace["hops"].as_array().unwrap();
    assert!(hops.iter().all(|hop| hop["answered"].as_u64() >= Some(5)), "{trace}");
    let wide = out(&plexus(&["status", "-o", "wide"]));
    assert!(wide.contains("KEY EXCHANGE") && wide.contains("hop-1"), "{wide}");

    // Root alone acts; the tests may run as somebody else.
    let root = rustix::process::geteuid().is_root();
    let reload = plexus(&["reload"]);
    if !root {
        assert_eq!(reload.status.code(), Some(5), "{}", err(&reload));
        return cluster.finish().await.unwrap();
    }
    assert_eq!(
        (out(&reload).as_str(), reload.status.code()),
        ("nothing has changed\n", Some(0)),
        "{}",
        err(&reload)
    );
    let checked = plexus(&["netcheck", "node-1", "hop-1"]);
    assert!(out(&checked).contains("UDP works at 127.0.0.1:"), "{}{}", out(&checked), err(&checked));
    forward_a_port(&cli, &socket);
    let refused = plexus(&["forward", "0", "node-1:192.0.2.1:80"]);
    assert_eq!(refused.status.code(), Some(5), "{}", err(&refused));
    assert!(err(&refused).contains("does not allow 192.0.2.1:80"), "{}", err(&refused));

    // The hop goes: what happened, what is wrong, what to do.
    cluster.hop.kill();
    let told =
        plexus_tests::wait_for("the link to be missed", std::time::Duration::from_secs(60), async || {
            let events = out(&run(&cli, &["--socket", &socket, "events", "--since", "10m"]));
            if events.contains("link_down") && events.contains("node-1 cannot be reached") {
                plexus_tests::Seen::Yes(events)
            } else {
                plexus_tests::Seen::NotYet(events)
            }
        });
    told.await.unwrap();
    let status = plexus(&["status"]);
    let text = out(&status);
    assert_eq!(status.status.code(), Some(3), "{text}");
    assert!(text.contains("node_unreachable") && text.contains("    do: "), "{text}");
    cluster.hop.start().unwrap();
    cluster.node_ready().await.unwrap();
    cluster.finish().await.unwrap();
}

/// `plexus forward` as a process of its own: a server behind the node answers through it, each direction's end kept.
fn forward_a_port(cli: &Path, socket: &str) {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{Shutdown, TcpListener, TcpStream};

    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("node-1:{}", server.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut connection, _) = server.accept().unwrap();
        let mut asked = String::new();
        connection.read_to_string(&mut asked).unwrap();
        connection.write_all(asked.to_uppercase().as_bytes()).unwrap();
    });
    let mut command = Command::new(cli);
    command.args(["--socket", socket, "forward", "0", &target]).stdout(std::process::Stdio::piped());
    let mut forwarding = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(forwarding.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (listen, rest) = line.split_once(' ').unwrap();
    assert_eq!(rest, format!("leads to {target}; Ctrl-C ends it\n"));
    let mut connection = TcpStream::connect(listen).unwrap();
    connection.write_all(b"half a conversation").unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "HALF A CONVERSATION");
    serving.join().unwrap();
    forwarding.kill().unwrap();
    forwarding.wait().unwrap();
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

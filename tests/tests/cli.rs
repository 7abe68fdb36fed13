//! What people type: `plexus` at every daemon's socket and through the controller's API, and the daemons' own commands.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::path::Path;
use std::process::{Command, Output};

use plexus_tests::{Binaries, Cluster, Daemon, ReservedPort};
use rustix::process::Signal;
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
    let pages = async |name: &str| {
        let page = cluster.api().get(&format!("/api/plexus/v1/mesh/{name}/")).await.unwrap();
        assert_eq!(page["schema_version"], 1, "{name}: {page}");
        page
    };
    let status = pages("status").await;
    assert_eq!((&status["node"], &status["role"]), (&Value::from("controller"), &Value::from("controller")));
    assert_eq!((names(&status), &status["links"][0]["peer"]), (everybody.to_vec(), &Value::from("hop-1")));
    assert_eq!(status["links"][0]["key_exchange"], "X25519MLKEM768", "{status}");
    let list = |page: &Value, key: &str| page[key].as_array().unwrap().clone();
    let links: Vec<_> = list(&pages("links").await, "links")
        .iter()
        .map(|link| (link["node"].clone(), link["peer"].clone(), link["up"] == true))
        .collect();
    let pair = |a: &str, b: &str| (Value::from(a), Value::from(b), true);
    assert_eq!(links, [pair("controller", "hop-1"), pair("hop-1", "node-1")]);
    let routes: Vec<_> = list(&pages("routes").await, "routes")
        .iter()
        .map(|route| (route["node"].clone(), route["next_hop"].clone(), route["reachable"] == true))
        .collect();
    assert_eq!(routes, [pair("hop-1", "hop-1"), pair("node-1", "hop-1")]);
    let events =
        list(&cluster.api().get("/api/plexus/v1/mesh/events/?after=0&wait_ms=0").await.unwrap(), "events");
    let linked = |event: &&Value| event["event"] == "link_up" && event["node"] == "hop-1";
    let at = events.iter().find(linked).unwrap_or_else(|| panic!("{events:?}"))["number"].as_u64().unwrap();
    let later = format!("/api/plexus/v1/mesh/events/?after={at}&wait_ms=0");
    let later = list(&cluster.api().get(&later).await.unwrap(), "events");
    assert!(later.iter().all(|event| event["number"].as_u64() > Some(at)), "{later:?}");
    let asked = serde_json::json!({ "from": "node-1", "to": "hop-1" });
    let checked = cluster.api().post("/api/plexus/v1/mesh/netcheck/", &asked).await.unwrap();
    assert_eq!((&checked["from"], &checked["to"]), (&Value::from("node-1"), &Value::from("hop-1")));
    assert!(list(&checked, "paths").iter().any(|path| path["udp"]["reachable"] == true), "{checked}");
    assert!(checked["findings"][0].as_str().unwrap().starts_with("UDP works at 127.0.0.1:"), "{checked}");
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
    let wide = out(&plexus(&["status", "--wide"]));
    assert!(wide.contains("KEY EXCHANGE") && wide.contains("X25519MLKEM768"), "{wide}");

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
    for daemon in [&cluster.controller, &cluster.node] {
        reads_again(&cluster, daemon).await;
    }
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

/// A running daemon is given a further peer by SIGHUP, loses it by `plexus reload`, and takes nothing of a file that is
/// wrong. Its link to the hop stays the one it was.
async fn reads_again(cluster: &Cluster, daemon: &Daemon) {
    let name = daemon.name();
    let (file, socket) = (cluster.layout.config(name), cluster.layout.socket(name).display().to_string());
    let cli = cluster.layout.binaries.cli();
    let plexus = |args: &[&str]| run(&cli, &[&["--socket", &socket], args].concat());
    // What it is told to dial, and since when it is linked with the hop. A peer that does not answer is a problem, hence
    // the exit code.
    let state = || -> (Vec<String>, String) {
        let status: Value = serde_json::from_slice(&plexus(&["status", "-o", "json"]).stdout).unwrap();
        let peers = status["peers"].as_array().unwrap().iter();
        let link = status["links"].as_array().unwrap().iter().find(|link| link["peer"] == "hop-1");
        let since =
            link.unwrap_or_else(|| panic!("{name} has no link to the hop: {status}"))["since"].clone();
        (peers.map(|peer| peer["address"].as_str().unwrap().to_owned()).collect(), since.to_string())
    };
    let deadline = std::time::Duration::from_secs(60);
    let good = std::fs::read_to_string(&file).unwrap();
    let (dialed, since) = state();
    // Nobody listens there: that it is dialed is what shows.
    let port = ReservedPort::new().unwrap();
    let other = format!("127.0.0.1:{}", port.port());
    let more = format!("{good}\n[[mesh.peers]]\naddress = \"{other}\"\n");
    std::fs::write(&file, &more).unwrap();
    daemon.signal(Signal::HUP).unwrap();
    let both = [dialed.clone(), vec![other.clone()]].concat();
    plexus_tests::wait_for(&format!("{name} to dial {other}"), deadline, async || {
        let (now, _) = state();
        plexus_tests::Seen::when(now == both, || format!("{now:?}"))
    })
    .await
    .unwrap();
    assert_eq!(state(), (both.clone(), since.clone()), "{name}");

    // A file that is wrong, by itself and only for this daemon: the whole of it is left.
    for wrong in [
        format!("{good}\nnonsense = \n"),
        format!("{good}\n[nobody]\nknows = \"this\"\n"),
        good.replace("identity_dir = \"", "identity_dir = \"/nonexistent"),
    ] {
        assert_ne!(wrong, good);
        std::fs::write(&file, &wrong).unwrap();
        let seen = daemon.log_size();
        daemon.signal(Signal::HUP).unwrap();
        let said = "settings not reloaded, the old ones stay";
        plexus_tests::wait_for(&format!("{name} to refuse"), deadline, async || {
            let log = daemon.log();
            plexus_tests::Seen::when(log[seen..].contains(said), || daemon.log_tail(5))
        })
        .await
        .unwrap();
        let refused = plexus(&["reload"]);
        assert_eq!((refused.status.code(), out(&refused).as_str()), (Some(1), ""), "{}", err(&refused));
        assert_eq!(state(), (both.clone(), since.clone()), "{name}");
    }

    std::fs::write(&file, &good).unwrap();
    let reloaded = plexus(&["reload"]);
    assert_eq!(out(&reloaded), format!("changed: no longer dialing {other}\n"), "{}", err(&reloaded));
    assert_eq!(state(), (dialed, since), "{name}");
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

//! Machines that join and are revoked, as real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use plexus_proto::id::Role;
use plexus_tests::net::{Net, PeerOptions};
use plexus_tests::{Api, Cluster, Daemon, Newcomer, Replay, ReservedPort, Seen, wait_for};
use reqwest::Method;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const CASE: &str = "ok-2-hosts";
const LINES: u64 = 4;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn well(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

#[track_caller]
fn refused(output: &Output, reason: &str) {
    let said = text(output);
    assert!(!output.status.success() && said.contains(reason), "{reason:?} in {said}");
}

/// A fresh machine joins by token through the hop, runs a job, and is revoked.
#[tokio::test]
async fn a_fresh_node_joins_through_a_hop_runs_a_job_and_is_revoked() {
    let mut replay = Replay::start_without_node("join", CASE, LINES).await.unwrap();
    let cluster = &replay.cluster;
    let token = cluster.token(&["--role", "execution", "--name", "fresh-*"]).await.unwrap();
    let mut fresh = Newcomer::new(cluster, "fresh-1").unwrap();
    let said = well(&fresh.join(&token, &["--name", "fresh-1"]).await.unwrap());
    let next = "next: plexus-node run --config";
    for part in ["joining mesh demo.plexus as execution fresh-1", "certified as", next] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    assert!(!said.contains(&token), "the token is not repeated");
    fresh.check_modes().unwrap();

    // The same again is no trouble; another machine is refused, with the reason.
    well(&fresh.join(&token, &["--name", "fresh-1"]).await.unwrap());
    let other = Newcomer::new(cluster, "fresh-2").unwrap();
    let late = other.join(&token, &["--name", "fresh-2"]).await.unwrap();
    refused(&late, "the token was used by another machine");

    fresh.start().unwrap();
    ready(cluster, &fresh, "fresh-1", "ready").await;
    replay.open_gate().unwrap();
    let job = replay.launch().await.unwrap();
    assert!(!replay.successful(job).await.unwrap().is_empty());

    // Its links end at once; it is refused from then on, whoever starts again.
    well(&cluster.plexus_as_admin(&["node", "revoke", "fresh-1"]).await.unwrap());
    ready(cluster, &fresh, "fresh-1", "unavailable").await;
    let seen = fresh.daemon.log_size();
    fresh.daemon.kill();
    fresh.start().unwrap();
    fresh.daemon.logged("link refused", seen, DEADLINE).await.unwrap();

    // Also by a controller that was killed and started again, and with the hop that kept the list started anew.
    replay.cluster.controller.kill();
    replay.cluster.hop.kill();
    replay.cluster.hop.start().unwrap();
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();
    let seen = fresh.daemon.log_size();
    fresh.daemon.kill();
    fresh.start().unwrap();
    fresh.daemon.logged("link refused", seen, DEADLINE).await.unwrap();
    ready(&replay.cluster, &fresh, "fresh-1", "unavailable").await;
    fresh.daemon.stop().await.unwrap();
    replay.finish().await.unwrap();
}

/// The controller dies at each step of redeeming a token: whatever was done by then, the machine that asked gets in with
/// the same token and the same key when it asks again, and no other machine does.
#[tokio::test]
async fn a_token_is_redeemed_once_whatever_step_the_controller_dies_at() {
    let mut cluster = Cluster::builder("join-crash").process(vec!["/bin/true".into()]).start().await.unwrap();
    for point in ["token-checked", "certified", "enrolment-written", "enrolled"] {
        let token = cluster.token(&["--role", "execution", "--name", &format!("{point}-*")]).await.unwrap();
        let (first, other) = (format!("{point}-1"), format!("{point}-2"));
        let (machine, late) =
            (Newcomer::new(&cluster, &first).unwrap(), Newcomer::new(&cluster, &other).unwrap());
        cluster.controller.kill();
        cluster.controller.set_env("PLEXUS_CRASH_AT", point);
        cluster.controller.start().unwrap();
        linked(&mut cluster).await;
        // The machine goes down with it, instead of waiting for its answer.
        let args = ["--name", first.as_str()];
        let ended = tokio::select! {
            ended = cluster.controller.exited(DEADLINE) => ended.unwrap(),
            said = machine.join(&token, &args) => panic!("{point}: {}", text(&said.unwrap())),
        };
        assert!(!ended.success(), "{point}: the controller ended with {ended}");
        cluster.controller.unset_env("PLEXUS_CRASH_AT");
        cluster.controller.start().unwrap();
        linked(&mut cluster).await;
        well(&machine.join(&token, &["--name", &first]).await.unwrap());
        let said = late.join(&token, &["--name", &other]).await.unwrap();
        refused(&said, "the token was used by another machine");
    }
    // One address each, none given twice, and the members are those who got in.
    let list = cluster.plexus_as_admin(&["-o", "json", "token", "requests"]).await.unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let issued: Vec<_> = list["results"].as_array().unwrap().iter().map(|one| &one["node"]).collect();
    assert_eq!(issued.len(), 4, "{list}");
    cluster.finish().await.unwrap();
}

/// The controller's API is up, and then its link to the hop, which may take a moment longer.
async fn linked(cluster: &mut Cluster) {
    cluster.api_up().await.expect("the API is up");
    let seen = wait_for("the controller's link", DEADLINE, async || {
        match cluster.api().get("/api/plexus/v1/mesh/links/").await {
            Ok(page) if page["links"].as_array().is_some_and(|links| !links.is_empty()) => Seen::Yes(()),
            other => Seen::NotYet(format!("{other:?}")),
        }
    });
    seen.await.expect("a link");
}

/// A machine that cannot reach the mesh yet: its request is carried to the authority and the answer back by hand.
#[tokio::test]
async fn a_request_that_was_carried_by_hand_makes_a_member() {
    let net = Net::new("offline").unwrap();
    let mut hop = net.hop("hop-1", &[]).unwrap();
    hop.start().await.unwrap();
    let (etc, machine, signed) = (net.of("etc"), net.of("far"), net.of("signed"));
    let run = async |program: PathBuf, args: &[&str]| {
        let output = tokio::process::Command::new(program).args(args).output().await.unwrap();
        well(&output)
    };
    let path = |path: &Path| path.display().to_string();
    let csr = path(&net.of("far.csr"));
    run(net.binaries().node(), &["csr", "--name", "far", "--config-dir", &path(&etc), "--out", &csr]).await;
    std::fs::rename(etc.join("node"), &machine).unwrap();
    let ca = path(&net.of("ca"));
    let out = path(&signed);
    let said = run(
        net.binaries().dir().join("plexus"),
        &["ca", "sign", "--ca", &ca, "--role", "execution", &csr, "--out", &out],
    )
    .await;
    assert!(said.contains("signed spiffe://proof/main/execution/far"), "{said}");
    assert!(!signed.join("node.key").exists(), "the key never left the machine");
    for name in ["ca.pem", "node.pem"] {
        std::fs::copy(signed.join(name), machine.join(name)).unwrap();
    }
    let config = net.configure("far", Role::Execution, None, &[hop.address()], "").unwrap();
    let args = vec!["run".into(), "--config".into(), config.into()];
    let mut daemon = Daemon::new("far", net.binaries().node(), args, net.of("far").join("log"));
    daemon.start().unwrap();
    let options = PeerOptions { peers: &[hop.address()], ..PeerOptions::default() };
    let mut controller = net.peer(Role::Controller, "controller", &options).await.unwrap();
    controller.reach("far", true).await.unwrap();
    let traced = controller.trace("far").await.unwrap();
    assert_eq!(traced, ["hop-1", "far"]);
    daemon.stop().await.unwrap();
}

/// A site of its own: its hop joins by token and listens, and its node joins through that hop.
#[tokio::test]
async fn a_hop_joins_by_token_and_others_join_through_it() {
    let cluster = Cluster::builder("join-hop").process(vec!["/bin/true".into()]).start().await.unwrap();
    let port = ReservedPort::new().unwrap();
    let at = format!("127.0.0.1:{}", port.port());
    let token = cluster.token(&["--role", "hop", "--name", "site-hop"]).await.unwrap();
    let mut hop = Newcomer::new(&cluster, "site-hop").unwrap();
    let said = well(&hop.join(&token, &["--name", "site-hop", "--listen", &at]).await.unwrap());
    for part in
        ["joining mesh demo.plexus as hop site-hop", "certified as spiffe://demo.plexus/main/hop/site-hop"]
    {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    hop.check_modes().unwrap();
    // A token for one role is none for another.
    let node_token = cluster.token(&["--role", "execution", "--name", "site-hop"]).await.unwrap();
    let other = Newcomer::new(&cluster, "other").unwrap();
    refused(&other.join(&node_token, &["--name", "site-hop"]).await.unwrap(), "is enrolled with role hop");

    hop.daemon.start().unwrap();
    hop.daemon.logged("mesh started", 0, DEADLINE).await.unwrap();
    let token = cluster.token(&["--role", "execution", "--name", "site-1"]).await.unwrap();
    let mut node = Newcomer::new(&cluster, "site-1").unwrap();
    // The hop has to have found the controller before it can ask one.
    wait_for("site-1 to join", DEADLINE, async || {
        let joined = node.join(&token, &["--name", "site-1", "--via", &at]).await.unwrap();
        Seen::when(joined.status.success(), || text(&joined))
    })
    .await
    .unwrap();
    node.start().unwrap();
    ready(&cluster, &node, "site-1", "ready").await;
    let trace = cluster.plexus_json("controller", &["trace", "site-1"]).await.unwrap();
    let way: Vec<_> = trace["hops"].as_array().unwrap().iter().map(|hop| &hop["node"]).collect();
    assert_eq!(way, ["hop-1", "site-hop", "site-1"], "{trace}");
    node.daemon.stop().await.unwrap();
    hop.daemon.stop().await.unwrap();
    cluster.finish().await.unwrap();
}

/// A second controller beside the first: its identity comes by token, or by an intermediate of its own for a cluster of its
/// own, which it then admits machines to.
#[tokio::test]
async fn further_controllers_join_by_token_or_have_an_intermediate_of_their_own() {
    let cluster =
        Cluster::builder("join-controller").process(vec!["/bin/true".into()]).start().await.unwrap();
    let token = cluster.token(&["--role", "controller", "--name", "second"]).await.unwrap();
    let joining = Newcomer::new(&cluster, "joining").unwrap();
    let said = well(&joining.join(&token, &["--name", "second"]).await.unwrap());
    let next = format!("set identity_dir = \"{}\"", joining.identity_dir().display());
    for part in
        ["note: this token is for a controller", "joining mesh demo.plexus as controller second", &next]
    {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    let second = Controller::start(&cluster, "second", &joining.identity_dir(), None).await;
    second.sees(&["controller", "hop-1", "node-1", "second"]).await;
    let wanted = json!({"role": "execution", "name": "x"});
    let nothing = second.api.send(Method::POST, TOKENS, Some(&wanted)).await.unwrap();
    assert!(nothing.status >= 400, "it has no authority: {nothing:?}");

    let layout = &cluster.layout;
    let path = |path: &Path| path.display().to_string();
    let (ca, own) = (path(&layout.ca_dir()), layout.dir.join("ca-2"));
    layout.plexus(&["ca", "intermediate", "--ca", &ca, "--cluster", "other", "--out", &path(&own)]).unwrap();
    let again =
        layout.plexus(&["ca", "intermediate", "--ca", &ca, "--cluster", "other", "--out", &path(&own)]);
    assert!(format!("{:#}", again.unwrap_err()).contains("already holds a certificate authority"));
    layout.issue(&own, "controller", "third", &layout.identity_dir("third")).unwrap();
    let third = Controller::start(&cluster, "third", &layout.identity_dir("third"), Some(&own)).await;
    third.sees(&["controller", "hop-1", "node-1", "second", "third"]).await;
    let wanted = json!({
        "role": "execution", "name": "theirs", "addresses": [format!("127.0.0.1:{}", layout.mesh_port)],
    });
    let made = third.api.send(Method::POST, TOKENS, Some(&wanted)).await.unwrap();
    let token = made.body["token"].as_str().unwrap_or_else(|| panic!("{made:?}")).to_owned();
    let mut machine = Newcomer::new(&cluster, "theirs").unwrap();
    let said = well(&machine.join(&token, &["--name", "theirs"]).await.unwrap());
    // The second range of addresses, and the second cluster.
    let certified = "certified as spiffe://demo.plexus/other/execution/theirs, address 002";
    assert!(said.contains(certified), "{said}");
    machine.start().unwrap();
    third.sees(&["controller", "hop-1", "node-1", "second", "theirs", "third"]).await;
    machine.daemon.stop().await.unwrap();
    second.stop().await;
    third.stop().await;
    cluster.finish().await.unwrap();
}

/// Join tokens, as the API has them.
const TOKENS: &str = "/api/plexus/v1/mesh/tokens/";

/// A controller beside that of a cluster, with data of its own.
struct Controller {
    daemon: Daemon,
    api: Api,
    cli: PathBuf,
    socket: PathBuf,
    _ports: [ReservedPort; 2],
}

impl Controller {
    /// Starts it with the configuration of the cluster's, but for what is its own.
    async fn start(cluster: &Cluster, name: &str, identity: &Path, ca: Option<&Path>) -> Self {
        let layout = &cluster.layout;
        let ports = [(); 2].map(|()| ReservedPort::new().expect("a free port"));
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let mut text =
            std::fs::read_to_string(layout.config("controller")).expect("the controller's configuration");
        let port = |port: u16| format!("\"127.0.0.1:{port}\"");
        for (old, new) in [
            (quoted(&layout.data_dir("controller")), quoted(&layout.data_dir(name))),
            (quoted(&layout.socket("controller")), quoted(&layout.socket(name))),
            (quoted(&layout.identity_dir("controller")), quoted(identity)),
            (port(layout.https_port), port(ports[0].port())),
            (port(layout.http_port), port(ports[1].port())),
        ] {
            assert!(text.contains(&old), "{old} in {text}");
            text = text.replace(&old, &new);
        }
        let authority = format!("[enrolment]\nca_dir = {}\n", quoted(&layout.ca_dir()));
        assert!(text.contains(&authority), "{text}");
        let own = ca.map(|ca| format!("[enrolment]\nca_dir = {}\n", quoted(ca))).unwrap_or_default();
        let config = layout.config(name);
        std::fs::write(&config, text.replace(&authority, &own)).expect("a configuration");
        let args = vec!["run".into(), "--config".into(), config.into()];
        let mut daemon = Daemon::new(name, layout.binaries.controller(), args, layout.log(name));
        daemon.set_env("PLEXUS_CONTROLLER_ADMIN_PASSWORD", cluster.api().password());
        daemon.start().expect("a second controller");
        let base = format!("http://127.0.0.1:{}", ports[1].port());
        let api = Api::new(&base, cluster.api().user(), cluster.api().password()).expect("a client");
        api.up(DEADLINE).await.unwrap_or_else(|error| panic!("{error:#}\n{}", daemon.log_tail(20)));
        Self { daemon, api, cli: layout.binaries.cli(), socket: layout.socket(name), _ports: ports }
    }

    /// Waits until it reaches these nodes, itself included, and no other.
    async fn sees(&self, expected: &[&str]) {
        wait_for("the mesh as the further controller sees it", DEADLINE, async || {
            let mut command = tokio::process::Command::new(&self.cli);
            command.arg("--socket").arg(&self.socket).args(["nodes", "-o", "json"]);
            let asked = command.output().await.expect("plexus runs");
            let nodes: Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
            let mut reached: Vec<&str> = nodes["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|node| node["reachable"] == true)
                .filter_map(|node| node["node"].as_str())
                .collect();
            reached.sort_unstable();
            Seen::when(reached == expected, || text(&asked))
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.daemon.log_tail(20)));
    }

    async fn stop(mut self) {
        self.daemon.stop().await.expect("an orderly end");
    }
}

/// Waits until the controller shows `node` in `state`.
async fn ready(cluster: &Cluster, newcomer: &Newcomer, node: &str, state: &str) {
    wait_for(&format!("{node} to be {state}"), DEADLINE, async || {
        match cluster.api().get(&format!("instances/?hostname={node}")).await {
            Ok(list) if list["results"][0]["node_state"] == state => Seen::Yes(()),
            Ok(list) => {
                let log = newcomer.daemon.log_tail(20);
                Seen::NotYet(format!("{}; its log ends with\n{log}", list["results"]))
            }
            Err(error) => Seen::NotYet(format!("{error:#}")),
        }
    })
    .await
    .unwrap();
}

/// Every trouble that can be met while joining has a message of its own.
#[tokio::test]
async fn each_trouble_of_joining_has_its_own_message() {
    let mut cluster =
        Cluster::builder("join-trouble").process(vec!["/bin/true".into()]).start().await.unwrap();
    let machine = Newcomer::new(&cluster, "m").unwrap();
    let join = async |token: &str, args: &[&str]| machine.join(token, args).await.unwrap();

    refused(&join("plexus1-nonsense", &[]).await, "this is no Plexus token");
    let good = cluster.token(&["--role", "execution", "--name", "m"]).await.unwrap();
    refused(&join(&good[..good.len() - 5], &[]).await, "only part of one");
    refused(&join(&good, &["--name", "other"]).await, "the token is for names like m, not for other");
    refused(&join(&good, &["--via", "127.0.0.1:9"]).await, "no member of the mesh answered: 127.0.0.1:9");
    refused(&join(&good, &["--via", "no-such-host.invalid:7323"]).await, "cannot resolve");

    let short = cluster.token(&["--role", "execution", "--name", "m", "--ttl", "1s"]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    refused(&join(&short, &[]).await, "the token expired at");

    let revoked = cluster.token(&["--role", "execution", "--name", "m"]).await.unwrap();
    let list = cluster.plexus_as_admin(&["-o", "json", "token", "list"]).await.unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let id = list["results"][0]["id"].to_string();
    well(&cluster.plexus_as_admin(&["token", "revoke", &id]).await.unwrap());
    refused(&join(&revoked, &[]).await, "the token was revoked");

    // Another mesh at the address that the token names.
    let elsewhere = Cluster::builder("join-other").process(vec!["/bin/true".into()]).start().await.unwrap();
    let theirs = format!("127.0.0.1:{}", elsewhere.layout.mesh_port);
    refused(&join(&good, &["--via", &theirs]).await, "does not belong to mesh demo.plexus");
    elsewhere.finish().await.unwrap();

    // A hop without a controller behind it.
    cluster.controller.stop().await.unwrap();
    wait_for("the hop to miss its controller", DEADLINE, async || {
        let nodes = cluster.plexus_json("hop-1", &["nodes"]).await.unwrap();
        let gone = nodes["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|node| node["node"] == "controller" && node["reachable"] == false);
        Seen::when(gone, || nodes.to_string())
    })
    .await
    .unwrap();
    refused(&join(&good, &[]).await, "no controller can be reached through");
    cluster.controller.start().unwrap();
    cluster.api_up().await.unwrap();

    // Approval: turned away, and confirmed.
    let token =
        cluster.token(&["--role", "execution", "--name", "w*", "--uses", "2", "--approve"]).await.unwrap();
    for (name, verb) in [("w1", "reject"), ("w2", "approve")] {
        let machine = Newcomer::new(&cluster, name).unwrap();
        refused(
            &machine.join(&token, &["--name", name, "--wait", "0"]).await.unwrap(),
            "no operator has approved",
        );
        let list = cluster.plexus_as_admin(&["-o", "json", "token", "requests"]).await.unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
        let request =
            list["results"].as_array().unwrap().iter().find(|request| request["node"] == name).unwrap();
        assert_eq!(request["state"], "pending");
        well(&cluster.plexus_as_admin(&["token", verb, &request["id"].to_string()]).await.unwrap());
        let outcome = machine.join(&token, &["--name", name, "--wait", "30"]).await.unwrap();
        match verb {
            "approve" => drop(well(&outcome)),
            _ => refused(&outcome, "an operator has turned this machine away"),
        }
    }
    cluster.finish().await.unwrap();
}

/// A machine that was cloned with its identity and data: as soon as the controller has heard both, the name gets no new
/// work, until somebody has stopped the copy and says so. Its agents are asked once a minute, hence only at length.
#[tokio::test]
async fn a_cloned_machine_gets_no_new_work_until_somebody_looks() {
    if !plexus_tests::is_verify() {
        return;
    }
    let cluster = Cluster::builder("clone").process(vec!["/bin/true".into()]).start().await.unwrap();
    let token = cluster.token(&["--role", "execution", "--name", "twin"]).await.unwrap();
    let mut machine = Newcomer::new(&cluster, "twin").unwrap();
    well(&machine.join(&token, &["--name", "twin"]).await.unwrap());
    machine.start().unwrap();
    ready(&cluster, &machine, "twin", "ready").await;
    // Killed and started again: no copy.
    machine.daemon.kill();
    machine.start().unwrap();
    ready(&cluster, &machine, "twin", "ready").await;
    machine.daemon.kill();
    let mut copy = machine.cloned(&cluster, "copy").unwrap();
    machine.start().unwrap();
    ready(&cluster, &machine, "twin", "ready").await;
    copy.start().unwrap();
    let found = wait_for("the copy to be noticed", DEADLINE * 10, async || {
        let list = cluster.api().get("instances/?hostname=twin").await.unwrap();
        let one = list["results"][0].clone();
        if one["enabled"] == false { Seen::Yes(one) } else { Seen::NotYet(one.to_string()) }
    })
    .await
    .unwrap();
    assert!(found["errors"].as_str().unwrap().starts_with("twin runs twice"), "{found}");

    copy.daemon.stop().await.unwrap();
    well(&cluster.plexus_as_admin(&["node", "uncordon", "twin"]).await.unwrap());
    wait_for("the node to be in use again", DEADLINE * 3, async || {
        let list = cluster.api().get("instances/?hostname=twin").await.unwrap();
        let one = &list["results"][0];
        Seen::when(one["enabled"] == true && one["errors"] == "", || one.to_string())
    })
    .await
    .unwrap();
    machine.daemon.stop().await.unwrap();
    cluster.finish().await.unwrap();
}

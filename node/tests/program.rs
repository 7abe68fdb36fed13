//! The program itself: what it says when it cannot start, and whole nodes in a mesh.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_mesh::local::{Action, LocalClient};
use plexus_mesh::{Credentials, Mesh, MeshReader, MeshWriter, Peer, grpc};
use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::id::{NodeId, Role};
use plexus_proto::packet::Class;
use plexus_proto::work::*;
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;

const DAY: Duration = Duration::from_secs(86_400);

/// An authority and a place for the files of nodes.
struct World {
    dir: tempfile::TempDir,
    shm: tempfile::TempDir,
    ca: CertificateAuthority,
}

impl World {
    fn new() -> Self {
        plexus_mesh::install_crypto_provider();
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::init(
            &dir.path().join("ca"),
            &"test".parse().unwrap(),
            &"main".parse().unwrap(),
        )
        .unwrap();
        Self { dir, shm: tempfile::tempdir_in("/dev/shm").unwrap(), ca }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, role: Role, name: &str) -> PathBuf {
        let dir = self.path(&format!("{name}/identity"));
        self.ca.issue(role, &name.parse().unwrap(), &dir, DAY).unwrap();
        dir
    }

    /// Writes the configuration of a node; `more` goes before the tables.
    fn config(&self, name: &str, mesh: &str, rest: &str) -> PathBuf {
        let home = self.path(name);
        fs::create_dir_all(&home).unwrap();
        let text = format!(
            "data_dir = \"{home}/data\"\nruntime_dir = \"{shm}/{name}\"\nsocket = \"{shm}/{name}.sock\"\n\
             identity_dir = \"{home}/identity\"\n[mesh]\n{mesh}\n{rest}",
            home = home.display(),
            shm = self.shm.path().display(),
        );
        let path = home.join("node.toml");
        fs::write(&path, text).unwrap();
        path
    }
}

/// A running `plexus-node`, killed when dropped.
struct Daemon {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
    seen: String,
}

impl Daemon {
    fn start(config: &Path) -> Self {
        Self::start_with(config, &[])
    }

    fn start_with(config: &Path, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plexus-node"))
            .arg("run")
            .arg("--config")
            .arg(config)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log, seen: String::new() }
    }

    /// Reads the log up to a line with `word`.
    fn wait_for(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "ended before {word:?}: {}", self.seen);
            self.seen.push_str(&line);
            if line.contains(word) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Waits for its end; exit code and everything it said.
    fn end(&mut self) -> (Option<i32>, String) {
        self.log.read_to_string(&mut self.seen).unwrap();
        (self.child.wait().unwrap().code(), self.seen.clone())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Starts a node that must fail; what it says to people.
fn refused(config: &Path) -> String {
    let (code, text) = Daemon::start(config).end();
    assert_eq!(code, Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn check(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} in {text:?}");
    }
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_key() {
    let world = World::new();
    let config = world.config("node-1", "listen = [\"127.0.0.1:0\"]\nlisten_on = 1", "");
    check(&refused(&config), &["node-1/node.toml, line 7: unknown field `listen_on`"]);
    let output =
        Command::new(env!("CARGO_BIN_EXE_plexus-node")).arg("check-config").arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    check(&String::from_utf8(output.stderr).unwrap(), &["line 7", "`listen_on`"]);
    check(&refused(&world.path("missing.toml")), &["cannot read configuration", "missing.toml"]);
}

#[test]
fn a_node_without_usable_identity_says_which_file_and_why() {
    let world = World::new();
    let config = world.config("node-1", "listen = [\"127.0.0.1:0\"]", "");
    check(&refused(&config), &["no usable identity", "node-1/identity", "No such file"]);

    world.issue(Role::Controller, "node-2");
    let config = world.config("node-2", "listen = [\"127.0.0.1:0\"]", "");
    check(&refused(&config), &["certificate of a controller"]);
}

#[test]
fn directories_and_ports_that_cannot_be_had_are_named_with_the_remedy() {
    let world = World::new();
    world.issue(Role::Execution, "node-1");
    let config = world.config("node-1", "listen = [\"127.0.0.1:0\"]", "[work]\nallow_swap = true");
    fs::write(world.path("node-1/data"), "a file").unwrap();
    check(
        &refused(&config),
        &["cannot write to data_dir", "node-1/data", "owned by user", "data_dir in the configuration"],
    );
    fs::remove_file(world.path("node-1/data")).unwrap();

    let text = fs::read_to_string(&config).unwrap();
    let on_disk = world.path("node-1/run");
    let shm = format!("{}/node-1\"", world.shm.path().display());
    fs::write(&config, text.replacen(&shm, &format!("{}\"", on_disk.display()), 1)).unwrap();
    if !rustix::fs::statfs(world.dir.path()).is_ok_and(|fs| fs.f_type as u64 == 0x0102_1994) {
        check(&refused(&config), &["runtime_dir", "is not on tmpfs", "node-1/run", "mount -t tmpfs"]);
    }

    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = [\"{}\"]", taken.local_addr().unwrap());
    let config = world.config("node-1", &listen, "[work]\nallow_swap = true");
    check(&refused(&config), &["cannot listen on udp", &taken.local_addr().unwrap().to_string(), "in use"]);

    let config = world.config("node-1", "listen = [\"127.0.0.1:0\"]", "[work]\nallow_swap = true");
    let mut first = Daemon::start(&config);
    first.wait_for("node ready");
    check(&refused(&config), &["data_dir", "used by another plexus-node"]);
    first.signal(Signal::TERM);
    let (code, log) = first.end();
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn a_shim_is_not_for_people() {
    let output = Command::new(env!("CARGO_BIN_EXE_plexus-node")).args(["shim", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    check(&String::from_utf8(output.stderr).unwrap(), &["not by hand"]);
}

#[test]
fn systemd_is_told_of_start_reload_life_and_end() {
    let world = World::new();
    world.issue(Role::Execution, "node-1");
    let work = |more: &str| {
        let text = format!("[work]\nruntime = \"process\"\nallow_swap = true\n{more}");
        world.config("node-1", "listen = [\"127.0.0.1:0\"]", &text)
    };
    let config = work("");
    let path = world.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "200000")];
    let mut node = Daemon::start_with(&config, &env);
    let hear = || {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).expect("systemd is told something");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let hear_other = || loop {
        let said = hear();
        if said != "WATCHDOG=1" {
            break said;
        }
    };
    assert_eq!(hear(), "READY=1\nSTATUS=");
    for _ in 0..3 {
        assert_eq!(hear(), "WATCHDOG=1");
    }

    node.signal(Signal::HUP);
    assert!(hear_other().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert_eq!(hear_other(), "READY=1\nSTATUS=");
    // What only a start can change is named, and nothing else of that file is taken over either.
    work("cache_mib = 5\n[log]\nlevel = \"debug\"");
    node.signal(Signal::HUP);
    assert!(hear_other().starts_with("RELOADING=1"));
    let why = "only a restart changes work.cache_mib, log; nothing was taken over";
    assert_eq!(hear_other(), format!("READY=1\nSTATUS=not reloaded: {why}"));
    work("");
    node.signal(Signal::HUP);
    assert!(hear_other().starts_with("RELOADING=1"));
    assert_eq!(hear_other(), "READY=1\nSTATUS=");

    // A shim, which a container's client may be started by, has no way to systemd.
    let shims: Vec<_> = children(node.child.id());
    assert!(!shims.is_empty());
    for shim in shims {
        let env = fs::read(format!("/proc/{shim}/environ")).unwrap();
        let env = String::from_utf8_lossy(&env).into_owned();
        assert!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG"), "{env}");
    }

    // One that is stopped says nothing more: the watchdog's time runs out.
    node.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(50));
    manager.set_nonblocking(true).unwrap();
    while manager.recv(&mut [0; 64]).is_ok() {}
    std::thread::sleep(Duration::from_millis(500));
    assert!(manager.recv(&mut [0; 64]).is_err());
    manager.set_nonblocking(false).unwrap();
    node.signal(Signal::CONT);
    node.signal(Signal::TERM);
    assert_eq!(hear_other(), "STOPPING=1");
    let (code, log) = node.end();
    assert_eq!(code, Some(0), "{log}");
    check(&log, &["settings not reloaded", why]);
}

fn children(parent: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut found: Vec<u32> = list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // Those of other threads stand with these.
    for task in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found
}

/// A controller's end of the mesh.
struct Controller {
    mesh: Mesh,
    node: NodeId,
}

impl Controller {
    async fn start(world: &World, hop: SocketAddr) -> Self {
        let identity = world.issue(Role::Controller, "controller");
        let mesh = Mesh::start(plexus_mesh::Config {
            peers: vec![Peer::new(hop.to_string())],
            ..plexus_mesh::Config::new(
                Credentials::load(&identity).unwrap(),
                world.path("controller/state"),
                "test",
            )
        })
        .await
        .unwrap();
        Self { mesh, node: "node-1".parse().unwrap() }
    }

    fn verbs(&self) -> WorkClient<Channel> {
        WorkClient::new(grpc::channel(&self.mesh, &self.node, "work"))
    }

    async fn reachable(&self) {
        let mut view = self.mesh.watch();
        let node = self.node.clone();
        let seen = view.wait_for(|view| view.nodes.get(&node).is_some_and(|node| node.reachable));
        tokio::time::timeout(PATIENCE, seen).await.expect("node-1 comes").unwrap();
    }

    async fn open(&self, service: &str) -> (FrameReader<MeshReader>, FrameWriter<MeshWriter>) {
        let opened =
            wait_for(|| self.mesh.connect(&self.node, service, Class::Bulk), |stream| stream.is_ok());
        let (reader, writer) = opened.await.unwrap().into_split();
        (FrameReader::new(reader), FrameWriter::new(writer))
    }

    async fn payload(&self, job: &Job) {
        let (mut reader, mut writer) = self.open("payload").await;
        let open = PayloadOpen {
            unit: Some(job.attempt.into()),
            epoch: Some(job.epoch.into()),
            ..PayloadOpen::default()
        };
        writer.send(&PayloadMessage { kind: Some(PayloadMessageKind::Open(open)) }).await.unwrap();
        let need = reader.next::<PayloadMessage>(WORK_FRAME_MAX).await.unwrap().unwrap().kind.unwrap();
        assert!(matches!(need, PayloadMessageKind::Need(PayloadNeed { private: true, .. })), "{need:?}");
        writer.send(&PayloadMessage { kind: Some(PayloadMessageKind::Private(job.block())) }).await.unwrap();
        let done = reader.next::<PayloadMessage>(WORK_FRAME_MAX).await.unwrap().unwrap().kind.unwrap();
        assert!(matches!(done, PayloadMessageKind::Done(_)), "{done:?}");
    }

    /// Acknowledges all records up to `up_to`, and waits until the node has heard it.
    async fn ack(&self, job: &Job, up_to: u64) {
        let (mut reader, mut writer) = self.open("records").await;
        let attach =
            Attach { unit: Some(job.attempt.into()), epoch: Some(job.epoch.into()), from_record: up_to + 1 };
        let ack = Ack { epoch: Some(job.epoch.into()), up_to };
        for kind in [RecordMessageKind::Attach(attach), RecordMessageKind::Ack(ack)] {
            writer.send(&RecordMessage { kind: Some(kind) }).await.unwrap();
        }
        writer.finish().await.unwrap();
        while reader.next::<RecordMessage>(WORK_FRAME_MAX).await.unwrap().is_some() {}
    }

    /// Attaches and takes records from `from` on until `enough`; `None` when the stream broke before.
    async fn records(
        &self,
        job: &Job,
        from: u64,
        got: &mut Vec<RecordKind>,
        enough: impl Fn(&[RecordKind]) -> bool,
    ) -> Option<()> {
        let (mut reader, mut writer) = self.open("records").await;
        let attach =
            Attach { unit: Some(job.attempt.into()), epoch: Some(job.epoch.into()), from_record: from };
        writer.send(&RecordMessage { kind: Some(RecordMessageKind::Attach(attach)) }).await.ok()?;
        while !enough(got) {
            let next = tokio::time::timeout(PATIENCE, reader.next::<RecordMessage>(WORK_FRAME_MAX));
            match next.await.expect("something comes").ok()??.kind.unwrap() {
                RecordMessageKind::Record(record) => {
                    assert_eq!(record.number, got.len() as u64 + 1);
                    let plain = job.key.open(job.attempt, record.number, &record.sealed).unwrap();
                    got.push(plexus_proto::work::Record::decode(plain.as_slice()).unwrap().kind.unwrap());
                }
                RecordMessageKind::Attached(_) | RecordMessageKind::Status(_) => {}
                RecordMessageKind::Refusal(refusal) => panic!("{}", refusal.message),
                other => panic!("{other:?}"),
            }
        }
        Some(())
    }
}

/// A controller, a hop and an execution node that knows only the hop.
struct Chain {
    world: World,
    hop: Daemon,
    node: Daemon,
    node_config: PathBuf,
    controller: Controller,
}

impl Chain {
    async fn start() -> Self {
        let world = World::new();
        world.issue(Role::Hop, "hop-1");
        world.issue(Role::Execution, "node-1");
        let address: SocketAddr = format!("127.0.0.1:{}", free_port()).parse().unwrap();
        let mut hop = Daemon::start(&world.config("hop-1", &format!("listen = [\"{address}\"]"), ""));
        check(&hop.wait_for("node ready"), &[&address.port().to_string()]);
        let work = "[work]\nruntime = \"process\"\nallow_swap = true\n[work.process]\ncommand = [\"sh\", \"{dir}/script\"]";
        let node_config = world.config("node-1", &format!("[[mesh.peers]]\naddress = \"{address}\""), work);
        let mut node = Daemon::start(&node_config);
        node.wait_for("node ready");
        let controller = Controller::start(&world, address).await;
        controller.reachable().await;
        Self { world, hop, node, node_config, controller }
    }
}

fn text(records: &[RecordKind]) -> String {
    let data = records.iter().filter_map(|kind| match kind {
        RecordKind::Output(output) => Some(String::from_utf8(output.data.to_vec()).unwrap()),
        _ => None,
    });
    data.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_comes_back_over_the_hop_with_its_unit() {
    let Chain { world, hop, mut node, node_config, controller } = Chain::start().await;
    check(&hop.seen, &["hop-1", "role=hop"]);
    check(&node.seen, &["node-1", "role=execution"]);
    let mut verbs = controller.verbs();
    let info = verbs.info(InfoRequest::default()).await.unwrap().into_inner();
    assert_eq!((info.runtime.as_str(), info.store_id.len()), ("process", 16));
    let job = Job::script("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.01; done");
    let request = SubmitRequest {
        unit: Some(job.attempt.into()),
        epoch: Some(job.epoch.into()),
        store_id: info.store_id,
        spec: Some(job.spec.clone()),
    };
    let reply = verbs.submit(request.clone()).await.unwrap().into_inner();
    assert!(matches!(status(reply).state, Some(UnitStatusState::Pending(_))));
    controller.payload(&job).await;
    let mut got = Vec::new();
    controller.records(&job, 1, &mut got, |got| text(got).contains("line 30\n")).await.unwrap();

    node.child.kill().unwrap();
    node.child.wait().unwrap();
    let mut node = Daemon::start(&node_config);
    node.wait_for("node ready");
    let ended = |got: &[RecordKind]| matches!(got.last(), Some(RecordKind::End(_)));
    // The session of the dead agent may take a moment to be noticed.
    while controller.records(&job, got.len() as u64 + 1, &mut got, ended).await.is_none() {}
    let expected: String = (1..=300).map(|number| format!("line {number}\n")).collect();
    assert_eq!(text(&got), expected);

    // The channel's stream died with the agent; the call after that opens another.
    let again = wait_for(
        || {
            let (mut verbs, request) = (verbs.clone(), request.clone());
            async move { verbs.submit(request).await }
        },
        Result::is_ok,
    );
    let again = status(again.await.unwrap().into_inner());
    assert_eq!(finished(&again).unwrap().outcome(), Outcome::Succeeded);

    // The hop has no such services at all.
    let mut hop_verbs = WorkClient::new(grpc::channel(&controller.mesh, &"hop-1".parse().unwrap(), "work"));
    assert!(hop_verbs.info(InfoRequest::default()).await.is_err());
    let socket = world.shm.path().join("node-1.sock");
    let mut local = plexus_mesh::local::LocalClient::connect(&socket).await.unwrap();
    check(&local.status().await.unwrap(), &["node-1", "hop-1"]);
    controller.mesh.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_node_takes_nothing_new_and_a_drained_one_has_nothing_left() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may cordon a node at its socket");
        return;
    }
    let Chain { world, hop: _hop, mut node, node_config, controller } = Chain::start().await;
    let mut verbs = controller.verbs();
    let store_id = verbs.info(InfoRequest::default()).await.unwrap().into_inner().store_id;
    let submit = |job: &Job| SubmitRequest {
        unit: Some(job.attempt.into()),
        epoch: Some(job.epoch.into()),
        store_id: store_id.clone(),
        spec: Some(job.spec.clone()),
    };
    let go = world.path("go");
    let job = Job::script(&format!("while [ ! -e {} ]; do sleep 0.05; done; echo done", go.display()));
    status(verbs.submit(submit(&job)).await.unwrap().into_inner());
    controller.payload(&job).await;

    let socket = world.shm.path().join("node-1.sock");
    let act = async |action: Action| {
        let mut door = LocalClient::connect(&socket).await.unwrap();
        let said: serde_json::Value = serde_json::from_str(&door.act(&action).await.unwrap()).unwrap();
        (said["cordoned"].as_bool().unwrap(), said["running"].as_u64().unwrap())
    };
    assert_eq!(act(Action::Cordon { reason: Some("new disk".into()) }).await, (true, 1));
    let late = Job::script("echo never");
    let refused = |reply: UnitReply| match reply.result {
        Some(UnitReplyResult::Refusal(refusal)) => {
            assert!(refusal.not_taken, "its owner may give it to another node: {refusal:?}");
            (refusal.code(), refusal.message)
        }
        other => panic!("{other:?}"),
    };
    let words = "node node-1 is cordoned and takes no new units: new disk";
    let reply = verbs.submit(submit(&late)).await.unwrap().into_inner();
    assert_eq!(refused(reply), (RefusalCode::NodeFull, words.to_owned()));
    // What it had taken before goes on, and is answered for.
    status(verbs.submit(submit(&job)).await.unwrap().into_inner());
    let info = verbs.info(InfoRequest::default()).await.unwrap().into_inner();
    assert_eq!(info.cordoned.as_deref(), Some("new disk"));
    assert!(info.free_disk_bytes > 0);
    let shown = LocalClient::connect(&socket).await.unwrap().status().await.unwrap();
    check(&shown, &["this node is cordoned and takes no new units: new disk"]);

    // The next agent goes by it too.
    node.child.kill().unwrap();
    node.child.wait().unwrap();
    let mut node = Daemon::start(&node_config);
    node.wait_for("node ready");
    let again = wait_for(
        || {
            let (mut verbs, request) = (verbs.clone(), submit(&late));
            async move { verbs.submit(request).await }
        },
        Result::is_ok,
    );
    assert_eq!(refused(again.await.unwrap().into_inner()), (RefusalCode::NodeFull, words.to_owned()));
    let drain = |deadline_ms| Action::Drain { deadline_ms, reason: None };
    assert_eq!(act(drain(Some(1))).await, (true, 1));

    // It is not drained while the controller lacks a byte of what ran there.
    fs::write(&go, "").unwrap();
    let mut got = Vec::new();
    let ended = |got: &[RecordKind]| matches!(got.last(), Some(RecordKind::End(_)));
    while controller.records(&job, got.len() as u64 + 1, &mut got, ended).await.is_none() {}
    assert_eq!(act(drain(Some(1))).await, (true, 1));
    let (drained, ()) = tokio::join!(act(drain(None)), controller.ack(&job, got.len() as u64));
    assert_eq!(drained, (true, 0));

    assert_eq!(act(Action::Uncordon).await, (false, 0));
    assert!(matches!(
        status(verbs.submit(submit(&late)).await.unwrap().into_inner()).state,
        Some(UnitStatusState::Pending(_))
    ));
    controller.mesh.shutdown().await;
}

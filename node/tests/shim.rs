//! The shim alone, spoken to as an agent would.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use plexus_node::shim::protocol::{
    Cancel, Ended, FRAME_MAX, FromShim, Heard, Held, Hello, Launch, Order, Quota, Ready, Report, SOCKET,
    Started, ToShim, Trimmed, VERSION, Warm, Written, order, report,
};
use plexus_proto::frame;
use plexus_proto::work::{Finished, Outcome};

struct Agent {
    stream: UnixStream,
    received: BytesMut,
}

impl Agent {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, received: BytesMut::new() }
    }

    /// The next report; `None` once the shim hung up.
    fn hear(&mut self) -> Option<Report> {
        loop {
            if let Some(message) = frame::decode::<FromShim>(&mut self.received, FRAME_MAX).unwrap() {
                return message.report;
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).expect("the shim says something in time") {
                0 => return None,
                count => self.received.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn ended(&mut self) -> Ended {
        loop {
            if let Report::Ended(ended) = self.hear().expect("an end") {
                return ended;
            }
        }
    }
}

/// Starts a shim that works in `dir`.
fn start(dir: &Path) -> (Child, Agent) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_plexus-node"))
        .arg("shim")
        .current_dir(dir)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (child, Agent::new(ours))
}

fn launch(dir: &Path, script: &str) -> Order {
    Order::Launch(Box::new(Launch {
        version: VERSION,
        unit: vec![7; 16].into(),
        attempt: 1,
        spool_dir: dir.join("spool").display().to_string(),
        spool_key: vec![1; 32].into(),
        spool_quota: 1 << 30,
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        cwd: dir.display().to_string(),
        grace_seconds: 1,
        runtime: "process".to_owned(),
        private_dir: dir.join("private").display().to_string(),
        ..Launch::default()
    }))
}

/// What each version of the conversation had to say for the first time, as it is said: these bytes come from shims and agents
/// that live, so they are never changed once released; a new field gets a new sample beside the old one. A missing file is
/// written by `PLEXUS_BLESS=1 cargo test -p plexus-node --test shim` and then committed.
#[test]
fn what_any_version_said_is_said_and_understood_alike() {
    let launch = Launch {
        version: 1,
        unit: vec![7; 16].into(),
        attempt: 2,
        spool_dir: "/var/lib/plexus/units/u/spool".to_owned(),
        spool_key: vec![1; 32].into(),
        spool_key_id: 0x0102_0304_0506_0708,
        spool_quota: 1 << 30,
        argv: ["podman", "run", "image"].map(str::to_owned).to_vec(),
        env: [("A", "1"), ("PATH", "/usr/bin:/bin")].map(|(name, value)| (name.into(), value.into())).into(),
        cwd: "/run/plexus/u".to_owned(),
        stdin: vec![b'{', b'}'].into(),
        grace_seconds: 10,
        timeout_seconds: 3600,
        end_argv: ["podman", "rm"].map(str::to_owned).to_vec(),
        runtime: "podman".to_owned(),
        image: "registry/ee:1".to_owned(),
        pull: 2,
        private_dir: "/run/plexus/u/private".to_owned(),
        owner_deadline_seconds: 0,
    };
    let finished = Finished {
        outcome: Outcome::Failed.into(),
        exit_code: Some(2),
        signal: None,
        reason: "worker ended with 2".to_owned(),
    };
    let guarded = Launch { version: 2, owner_deadline_seconds: 60, ..launch.clone() };
    let warm = Warm {
        argv: launch.argv.clone(),
        env: launch.env.clone(),
        cwd: launch.cwd.clone(),
        end_argv: launch.end_argv.clone(),
    };
    for (name, said) in [
        ("shim-1-launch", Order::Launch(Box::new(launch))),
        ("shim-1-cancel", Order::Cancel(Cancel { now: false })),
        ("shim-1-cancel-now", Order::Cancel(Cancel { now: true })),
        ("shim-1-trimmed", Order::Trimmed(Trimmed {})),
        ("shim-2-launch", Order::Launch(Box::new(guarded))),
        ("shim-2-heard", Order::Heard(Heard {})),
        ("shim-3-warm", Order::Warm(Box::new(warm))),
        ("shim-4-quota", Order::Quota(Quota { bytes: 16 << 20, shared: true })),
    ] {
        let saved = golden(name, &order(said.clone()));
        let read = frame::decode::<ToShim>(&mut BytesMut::from(&saved[..]), FRAME_MAX).unwrap();
        assert!(read.unwrap().order == Some(said), "{name}");
    }
    for (name, said) in [
        ("shim-1-hello", Report::Hello(Hello { version: 1, pid: 7 })),
        ("shim-1-started", Report::Started(Started { pid: 9 })),
        ("shim-1-written", Report::Written(Written { records: 3, bytes: 0 })),
        ("shim-1-ended", Report::Ended(Ended { finished: Some(finished), records: 4 })),
        ("shim-3-ready", Report::Ready(Ready {})),
        ("shim-4-written", Report::Written(Written { records: 3, bytes: 4096 })),
        ("shim-4-held", Report::Held(Held { why: "its spool is full".to_owned() })),
    ] {
        let saved = golden(name, &report(said.clone()));
        let read = frame::decode::<FromShim>(&mut BytesMut::from(&saved[..]), FRAME_MAX).unwrap();
        assert_eq!(read.unwrap().report, Some(said), "{name}");
    }
    assert_eq!(VERSION, 4, "a new version has samples of its own here");
}

/// The saved bytes, which must be those that this build writes.
fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
    if !path.exists() && std::env::var_os("PLEXUS_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{hex}\n")).unwrap();
    }
    let saved = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(hex, saved.trim(), "{name}: this build writes other bytes than the saved ones");
    written.to_vec()
}

#[test]
fn a_cancel_in_one_piece_with_the_launch_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut agent) = start(dir.path());
    let mut piece = order(launch(dir.path(), "sleep 300")).to_vec();
    piece.extend_from_slice(&order(Order::Cancel(Cancel { now: false })));
    agent.stream.write_all(&piece).unwrap();
    assert_eq!(agent.ended().finished.unwrap().outcome(), Outcome::Canceled);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_shim_without_work_ends_with_its_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut agent) = start(dir.path());
    assert!(matches!(agent.hear(), Some(Report::Hello(hello)) if hello.pid == child.id()));
    agent.stream.write_all(&order(launch(dir.path(), "echo ran > ran"))[..20]).unwrap();
    drop(agent);
    assert!(child.wait().unwrap().success());
    assert!(!dir.path().join("ran").exists());
    assert!(!dir.path().join("spool").exists());
}

#[test]
fn a_second_agent_hears_where_things_stand_and_nonsense_only_hangs_up() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut agent) = start(dir.path());
    let script = "echo one; while [ ! -e go ]; do sleep 0.01; done; echo two";
    agent.stream.write_all(&order(launch(dir.path(), script))).unwrap();
    while !matches!(agent.hear(), Some(Report::Written(written)) if written.records == 2) {}
    drop(agent);

    let mut nonsense = Agent::new(UnixStream::connect(dir.path().join(SOCKET)).unwrap());
    assert!(matches!(nonsense.hear(), Some(Report::Hello(_))));
    nonsense.stream.write_all(&[0xff; 64]).unwrap();
    while nonsense.hear().is_some() {}

    let mut agent = Agent::new(UnixStream::connect(dir.path().join(SOCKET)).unwrap());
    assert!(matches!(agent.hear(), Some(Report::Hello(_))));
    assert!(matches!(agent.hear(), Some(Report::Started(_))));
    assert!(matches!(agent.hear(), Some(Report::Written(written)) if written.records == 2));
    std::fs::write(dir.path().join("go"), "").unwrap();
    let ended = agent.ended();
    assert_eq!((ended.finished.unwrap().outcome(), ended.records), (Outcome::Succeeded, 4));
    assert!(child.wait().unwrap().success());
}

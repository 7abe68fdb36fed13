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
    Cancel, FRAME_MAX, FromShim, Launch, Order, Report, SOCKET, VERSION, order,
};
use plexus_proto::frame;
use plexus_proto::work::Outcome;

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

    fn ended(&mut self) -> plexus_node::shim::protocol::Ended {
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

//! What rest costs, and a thousand nodes.

use std::ffi::OsString;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use plexus_proto::id::Role;
use plexus_tests::net::{Hop, Net, PeerOptions};
use plexus_tests::{Daemon, ReservedPort};
use tokio::task::JoinSet;

use super::Measured;
use crate::bench::machine::private_mb;

/// Rest before anything is read, and how long it is watched.
const SETTLE: Duration = Duration::from_secs(15);
const WATCH: Duration = Duration::from_secs(60);
/// Links added to a hop.
const LINKS: usize = 64;
/// Nodes that join at once, and the hops before them.
const NODES: usize = 1000;
const HOPS: usize = 10;

/// A hop at rest.
pub(super) struct Rest {
    private_mb: f64,
    link_kb: f64,
    wakeups_s: f64,
    cpu_pct: f64,
}

impl Rest {
    pub(super) fn row(&self, name: &str) -> anyhow::Result<Measured> {
        let (value, how) = match name {
            "rss_hop_mb" => (self.private_mb, "private pages of plexus-node as hop with two idle links"),
            "rss_link_kb" => {
                (self.link_kb, "further private pages for each of 64 more idle links; 10^3 bytes")
            }
            "idle_wakeups_s" => (self.wakeups_s, "context switches of all threads of that hop, over 60 s"),
            "idle_cpu_pct" => (self.cpu_pct, "CPU time of all threads of that hop, over 60 s"),
            _ => bail!("nobody measures it"),
        };
        Ok(Measured::new(value, vec![value], how))
    }
}

/// Measures a hop with two links, then with many.
pub(super) async fn rest() -> anyhow::Result<Rest> {
    let net = Net::new("bench-rest")?;
    let mut hop = net.hop("hop-1", &[])?;
    hop.start().await?;
    let at = [hop.address()];
    let options = PeerOptions { peers: &at, ..PeerOptions::default() };
    let mut a = net.peer(Role::Controller, "a", &options).await?;
    let _b = net.peer(Role::Execution, "b", &options).await?;
    a.reach("b", true).await?;
    let pid = hop.daemon.pid().context("no hop")?;
    tokio::time::sleep(SETTLE).await;
    let before = activity(pid)?;
    tokio::time::sleep(WATCH).await;
    let after = activity(pid)?;
    let seconds = WATCH.as_secs_f64();
    let two = private_mb(pid).context("no memory to read")?;
    let names: Vec<String> = (1..LINKS).map(|number| format!("n-{number}")).collect();
    let crowd = PeerOptions { peers: &at, crowd: &names, ..PeerOptions::default() };
    let _crowd = net.peer(Role::Execution, "n-0", &crowd).await?;
    for name in names.iter().map(String::as_str).chain(["n-0"]) {
        a.reach(name, true).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let many = private_mb(pid).context("no memory to read")?;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    Ok(Rest {
        private_mb: two,
        link_kb: (many - two) * 1e3 / LINKS as f64,
        wakeups_s: (after.0 - before.0) / seconds,
        cpu_pct: (after.1 - before.1) / seconds * 100.0,
    })
}

/// Context switches and CPU seconds of a process so far.
fn activity(pid: u32) -> anyhow::Result<(f64, f64)> {
    let (mut switches, mut cpu) = (0.0, 0.0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("no tasks")?.flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        switches += status
            .lines()
            .filter(|line| line.contains("ctxt_switches"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
            .sum::<f64>();
        let times = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        cpu += times.split(' ').next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
    }
    Ok((switches, cpu))
}

/// A thousand nodes at once.
pub(super) struct Join {
    seconds: f64,
    controller_mb: Option<f64>,
}

impl Join {
    pub(super) fn row(&self, name: &str) -> anyhow::Result<Measured> {
        let how =
            "1,000 execution nodes, each with a key and a link of its own, 100 to a process, behind 10 hops";
        let value = match name {
            "join_1000_s" => self.seconds,
            _ => self.controller_mb.context("the controller's memory could not be read")?,
        };
        Ok(Measured::new(value, vec![value], how))
    }
}

/// Starts a controller, its hops, and then all nodes at once.
pub(super) async fn join() -> anyhow::Result<Join> {
    let net = Arc::new(Net::new("bench-join")?);
    let mut hops: Vec<Hop> = Vec::new();
    for number in 0..HOPS {
        let mut hop = net.hop(&format!("hop-{number}"), &[])?;
        hop.start().await?;
        hops.push(hop);
    }
    let at: Vec<_> = hops.iter().map(Hop::address).collect();
    let names = |hop: usize| (0..NODES / HOPS).map(move |number| format!("n-{hop}-{number}"));
    for name in (0..HOPS).flat_map(names) {
        net.certify(Role::Execution, &name)?;
    }
    let mut watcher =
        net.peer(Role::Controller, "watcher", &PeerOptions { peers: &at, ..PeerOptions::default() }).await?;
    for number in 0..HOPS {
        watcher.reach(&format!("hop-{number}"), true).await?;
    }
    let (controller, _ports) = controller(&net, &at)?;
    let began = Instant::now();
    let mut starting = JoinSet::new();
    for (hop, &at) in at.iter().enumerate() {
        let net = net.clone();
        starting.spawn(async move {
            let all: Vec<String> = names(hop).collect();
            let (first, crowd) = all.split_first().context("no nodes")?;
            net.peer(Role::Execution, first, &PeerOptions { peers: &[at], crowd, ..PeerOptions::default() })
                .await
        });
    }
    let mut crowds = Vec::new();
    while let Some(crowd) = starting.join_next().await {
        crowds.push(crowd.context("a start was lost")??);
    }
    for name in (0..HOPS).flat_map(names) {
        watcher.reach(&name, true).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    let controller_mb = controller.pid().and_then(private_mb);
    Ok(Join { seconds, controller_mb })
}

/// A `plexus-controller` that dials all hops.
fn controller(net: &Net, hops: &[std::net::SocketAddr]) -> anyhow::Result<(Daemon, Vec<ReservedPort>)> {
    let identity = net.certify(Role::Controller, "controller")?;
    let ports = vec![ReservedPort::new()?, ReservedPort::new()?];
    let peers: String =
        hops.iter().map(|address| format!("\n[[mesh.peers]]\naddress = \"{address}\"\n")).collect();
    let config = format!(
        "data_dir = {:?}\nsocket = {:?}\nidentity_dir = {identity:?}\n\n[mesh]\nlisten = []\n{peers}\n[http]\nhttps = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n",
        identity.join("data"),
        identity.join("sock"),
        ports[0].port(),
        ports[1].port(),
    );
    let path = identity.join("config.toml");
    fs::write(&path, config).context("cannot write a configuration")?;
    let args: Vec<OsString> = vec!["run".into(), "--config".into(), path.into()];
    let mut daemon = Daemon::new("controller", net.binaries().controller(), args, identity.join("log"));
    daemon.set_env("PLEXUS_CONTROLLER_ADMIN_PASSWORD", "only-for-tests");
    daemon.start()?;
    Ok((daemon, ports))
}

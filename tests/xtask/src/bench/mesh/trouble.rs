//! What a lost hop costs, and a start.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_proto::id::Role;
use plexus_tests::Daemon;
use plexus_tests::net::{Flow, Net, PeerOptions};
use rustix::process::Signal;

use super::{Measured, quantile};
use crate::bench::median;

/// Hops lost; the bar wants a hundred at least.
const LOSSES: usize = 100;
const STARTS: usize = 15;
/// Between two starts: a hop may sign the loss of one node and the coming of the next at once.
const REST: Duration = Duration::from_millis(600);

/// Longest silence of a flow whose hop is killed, or stops without a word, while a second hop is there.
pub(super) async fn gap(kill: bool) -> anyhow::Result<Measured> {
    let net = Net::new("bench-gap")?;
    let mut hops = [net.hop("hop-1", &[])?, net.hop("hop-2", &[])?];
    for hop in &mut hops {
        hop.start().await?;
    }
    let peers = [hops[0].address(), hops[1].address()];
    let options = PeerOptions { peers: &peers, ..PeerOptions::default() };
    let mut a = net.peer(Role::Controller, "a", &options).await?;
    let mut b = net.peer(Role::Execution, "b", &options).await?;
    for node in ["hop-1", "hop-2"] {
        a.reach(node, true).await?;
        b.reach(node, true).await?;
    }
    a.reach("b", true).await?;
    b.reach("a", true).await?;
    let flow = Flow { class: "bulk", pull: true, block: 1000, pause: Duration::from_millis(2), blocks: 0 };
    a.flow(1, "b", &flow).await?;
    let mut samples = Vec::new();
    for _ in 0..LOSSES {
        a.moves(1, 100_000).await?;
        let used = usize::from(b.next("a").await?.as_deref() == Some("hop-2"));
        a.progress(1, true).await?;
        if kill {
            hops[used].daemon.kill();
        } else {
            hops[used].daemon.signal(Signal::STOP)?;
        }
        // Long enough for everything held back to come, and for a second silence to show.
        samples.push(a.moves(1, 200_000).await?.gap_ms);
        if kill {
            hops[used].start().await?;
        } else {
            hops[used].daemon.signal(Signal::CONT)?;
        }
        let name = format!("hop-{}", used + 1);
        a.reach(&name, true).await?;
        b.reach(&name, true).await?;
    }
    let blocks = a.ends(1, true, Duration::from_secs(60)).await?;
    let what = if kill { "killed" } else { "stopped (SIGSTOP)" };
    let how = format!(
        "{LOSSES} times the hop in use {what}, a second one there; one stream throughout, 1 kB each 2 ms, all {blocks} \
         blocks exact; p99; p50 {:.0} ms",
        median(&samples)
    );
    Ok(Measured::new(quantile(&samples, 0.99), samples, &how))
}

/// From exec of an execution node until a controller behind the hop can reach it.
pub(super) async fn start() -> anyhow::Result<Measured> {
    let net = Net::new("bench-start")?;
    let mut hop = net.hop("hop-1", &[])?;
    hop.start().await?;
    let at = [hop.address()];
    let mut a =
        net.peer(Role::Controller, "a", &PeerOptions { peers: &at, ..PeerOptions::default() }).await?;
    a.reach("hop-1", true).await?;
    let mut samples = Vec::new();
    for number in 0..STARTS {
        let name = format!("n-{number}");
        let config = net.configure(&name, Role::Execution, None, &at, "")?;
        let args: Vec<OsString> = vec!["run".into(), "--config".into(), config.into()];
        let mut node = Daemon::new(&name, net.binaries().node(), args, net.of(&name).join("log"));
        let began = Instant::now();
        node.start()?;
        a.reach(&name, true).await.context("it never came")?;
        samples.push(began.elapsed().as_secs_f64() * 1e3);
        node.kill();
        // A hop whose links come and go more often than that is taken for flapping, and tells of it four times a second.
        tokio::time::sleep(REST).await;
    }
    ensure!(!samples.is_empty(), "no start");
    let how = "plexus-node as execution node, exec until the controller behind its hop reaches it; p50";
    Ok(Measured::new(median(&samples), samples, how))
}

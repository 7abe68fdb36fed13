//! The mesh as real processes on bad networks: hops are `plexus-node`, ends are `mesh-peer`, wires lie between. What flows is
//! numbered and checksummed, so it arrives exactly or the test fails. The seed of every wire is in the test; `SEED` adds to it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_proto::id::Role;
use plexus_tests::net::{Flow, Hop, Net, Peer, PeerOptions};
use plexus_tests::wire::{Direction, Namespace, Shape, Wire};
use plexus_tests::{Seen, is_verify, wait_for};
use rustix::process::Signal;

/// Longest life of one flow; the slowest profile needs a minute for what it is given.
const FLOW: Duration = Duration::from_secs(300);

/// `SEED` of the environment shifts all seeds; printed, so that a failure can be run again.
fn seed(own: u64) -> u64 {
    let shift: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    println!("seed {own} + SEED {shift}");
    own.wrapping_add(shift)
}

/// Controller, one hop, execution node; the controller's link to the hop is the wire.
struct Line {
    a: Peer,
    b: Peer,
    hop: Hop,
    wire: Wire,
    _net: Net,
}

impl Line {
    async fn new(name: &str, shape: Shape, seed: u64) -> anyhow::Result<Self> {
        let net = Net::new(name)?;
        let mut hop = net.hop("hop-1", &[])?;
        hop.start().await?;
        let wire = Wire::to(hop.address(), shape, seed)?;
        let near = PeerOptions { peers: &[wire.address()], ..PeerOptions::default() };
        let far = PeerOptions { peers: &[hop.address()], ..PeerOptions::default() };
        let mut a = net.peer(Role::Controller, "a", &near).await?;
        let mut b = net.peer(Role::Execution, "b", &far).await?;
        a.reach("b", true).await?;
        b.reach("a", true).await?;
        Ok(Self { a, b, hop, wire, _net: net })
    }
}

fn bulk(pull: bool, blocks: u64) -> Flow {
    Flow { class: "bulk", pull, block: 16 * 1024, pause: Duration::ZERO, blocks }
}

fn steady(pull: bool) -> Flow {
    Flow { class: "bulk", pull, block: 1000, pause: Duration::from_millis(2), blocks: 0 }
}

/// Flows of both directions over the profile arrive exactly.
async fn profile(name: &'static str, own: u64) -> anyhow::Result<()> {
    let mut shape = Shape::profile(name).context("no such profile")?;
    if name == "congested" {
        // A tunnel lies on the way as well: what does not fit vanishes, and nobody says so.
        shape.mtu = Some(1280);
    }
    // Half a minute of a narrow wire, or 16 MiB of a wide one.
    let blocks = shape.rate.map_or(512, |rate| (rate * 10 / (16 * 1024)).clamp(16, 512));
    let mut line = Line::new(name, shape, seed(own)).await?;
    line.a.flow(1, "b", &bulk(true, blocks)).await?;
    line.a.flow(2, "b", &bulk(false, blocks)).await?;
    for id in [1, 2] {
        let arrived = line.a.ends(id, false, FLOW).await.with_context(|| format!("{name}, flow {id}"))?;
        ensure!(arrived == blocks, "{name}: {arrived} of {blocks} blocks");
    }
    Ok(())
}

#[tokio::test]
async fn streams_are_exact_over_lan_and_congested_wan() -> anyhow::Result<()> {
    profile("lan", 1).await?;
    profile("congested", 2).await
}

#[tokio::test]
async fn streams_are_exact_over_every_profile_up_to_satellite() -> anyhow::Result<()> {
    // Minutes of narrow wires; the others are enough for every day.
    let all = ["wan", "weak-4g", "slow-3g", "bad-cell", "satellite"];
    for (number, name) in all.into_iter().enumerate().take(if is_verify() { all.len() } else { 1 }) {
        profile(name, 10 + number as u64).await?;
    }
    Ok(())
}

#[tokio::test]
async fn streams_are_exact_over_a_wire_that_reorders_doubles_and_breaks() -> anyhow::Result<()> {
    let shape = Shape {
        delay: Duration::from_millis(5),
        reorder: 0.02,
        duplicate: 0.02,
        corrupt: 0.01,
        ..Shape::default()
    };
    let mut line = Line::new("noise", shape, seed(20)).await?;
    for (id, pull) in [(1, true), (2, false)] {
        line.a.flow(id, "b", &bulk(pull, 256)).await?;
    }
    for id in [1, 2] {
        ensure!(line.a.ends(id, false, FLOW).await? == 256);
    }
    Ok(())
}

#[tokio::test]
async fn a_rebinding_nat_ends_no_stream() -> anyhow::Result<()> {
    let mut line = Line::new("nat", Shape::default(), seed(30)).await?;
    line.a.flow(1, "b", &steady(true)).await?;
    line.a.flow(2, "b", &steady(false)).await?;
    for _ in 0..3 {
        line.a.moves(1, 50_000).await?;
        line.wire.rebind();
        line.a.moves(1, 50_000).await?;
    }
    for id in [1, 2] {
        ensure!(line.a.ends(id, true, FLOW).await? > 100);
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_either_way_ends_no_stream() -> anyhow::Result<()> {
    let mut line = Line::new("cut", Shape::default(), seed(40)).await?;
    line.a.flow(1, "b", &steady(true)).await?;
    for direction in [Direction::There, Direction::Back] {
        line.a.moves(1, 20_000).await?;
        line.wire.change_one(direction, |shape| shape.cut = true);
        // Both ends know, not only the one that hears nothing.
        line.a.reach("b", false).await?;
        line.b.reach("a", false).await?;
        line.wire.cut(false);
        line.a.reach("b", true).await?;
        line.a.moves(1, 20_000).await?;
    }
    ensure!(line.a.ends(1, true, FLOW).await? > 40);
    Ok(())
}

#[tokio::test]
async fn a_restarted_hop_ends_no_stream() -> anyhow::Result<()> {
    let mut line = Line::new("restart", Shape::default(), seed(50)).await?;
    line.a.flow(1, "b", &steady(true)).await?;
    line.a.moves(1, 20_000).await?;
    line.hop.daemon.kill();
    line.hop.start().await?;
    line.a.moves(1, 50_000).await?;
    // kill -9 and a start make no copy of it.
    for end in [&mut line.a, &mut line.b] {
        let status = end.status().await?;
        let problems = status["problems"].as_array().context("no problems in the status")?;
        ensure!(problems.iter().all(|problem| problem["code"] != "clone"), "{problems:?}");
    }
    ensure!(line.a.ends(1, true, FLOW).await? > 40);
    Ok(())
}

#[tokio::test]
async fn blocked_udp_falls_back_to_tcp_and_streams_go_on() -> anyhow::Result<()> {
    let mut line = Line::new("blocked", Shape::default(), seed(60)).await?;
    line.a.flow(1, "b", &steady(true)).await?;
    line.a.moves(1, 20_000).await?;
    // Blocked in the life of a link; from the start it is the same, less the silence that has to be noticed.
    line.wire.block_udp(true);
    let began = Instant::now();
    let kind = wait_for("a link on TCP", Duration::from_secs(60), async || match line.a.status().await {
        Ok(status) => {
            match status["links"].as_array().into_iter().flatten().find(|link| link["kind"] == "tcp") {
                Some(link) => Seen::Yes(link["peer"].clone()),
                None => Seen::NotYet(status["links"].to_string()),
            }
        }
        Err(error) => Seen::NotYet(format!("{error:#}")),
    });
    ensure!(kind.await? == "hop-1");
    let linked = began.elapsed();
    line.a.moves(1, 100_000).await?;
    println!("on TCP {linked:?} after UDP was blocked, moved on after {:?}", began.elapsed());
    if is_verify() {
        ensure!(linked <= Duration::from_secs(3), "linked {linked:?} after UDP was blocked");
    }
    ensure!(line.a.ends(1, true, FLOW).await? > 40);
    Ok(())
}

/// Two hops between controller and execution node: what happens to the one in use is made up for by the other.
async fn trouble_of_one_hop(name: &str, rounds: usize, kill: bool) -> anyhow::Result<()> {
    let net = Net::new(name)?;
    let mut hops = [net.hop("hop-1", &[])?, net.hop("hop-2", &[])?];
    for hop in &mut hops {
        hop.start().await?;
    }
    let peers = [hops[0].address(), hops[1].address()];
    let options = PeerOptions { peers: &peers, ..PeerOptions::default() };
    let mut a = net.peer(Role::Controller, "a", &options).await?;
    let mut b = net.peer(Role::Execution, "b", &options).await?;
    for hop in ["hop-1", "hop-2"] {
        a.reach(hop, true).await?;
        b.reach(hop, true).await?;
    }
    a.reach("b", true).await?;
    b.reach("a", true).await?;
    a.flow(1, "b", &steady(true)).await?;
    for _ in 0..rounds {
        a.moves(1, 20_000).await?;
        let next = b.next("a").await?;
        let used = usize::from(next.as_deref() == Some("hop-2"));
        a.progress(1, true).await?;
        if kill {
            hops[used].daemon.kill();
        } else {
            hops[used].daemon.signal(Signal::STOP)?;
        }
        let state = a.moves(1, 20_000).await?;
        println!("hop-{} gone: longest silence {:.0} ms", used + 1, state.gap_ms);
        if kill {
            hops[used].start().await?;
        } else {
            hops[used].daemon.signal(Signal::CONT)?;
        }
        let name = format!("hop-{}", used + 1);
        a.reach(&name, true).await?;
        b.reach(&name, true).await?;
    }
    ensure!(a.ends(1, true, FLOW).await? > 40);
    Ok(())
}

#[tokio::test]
async fn a_killed_hop_is_left_for_the_other() -> anyhow::Result<()> {
    trouble_of_one_hop("kill", if is_verify() { 20 } else { 2 }, true).await
}

#[tokio::test]
async fn a_stopped_hop_is_left_for_the_other() -> anyhow::Result<()> {
    trouble_of_one_hop("stop", if is_verify() { 20 } else { 1 }, false).await
}

/// A host that dials, a router, and a host that listens, on networks of their own.
struct Abroad {
    dialer: Namespace,
    router: Namespace,
    listener: Namespace,
}

/// The dialer's network; its router is number 1.
const NEAR: &str = "fd97:1::";
/// The listener's network; its router is number 1.
const FAR: &str = "fd97:2::";

fn at(network: &str, number: u16) -> IpAddr {
    format!("{network}{number:x}").parse().expect("networks here end with two colons")
}

impl Abroad {
    fn new() -> anyhow::Result<Self> {
        let all = Self { dialer: Namespace::new()?, router: Namespace::new()?, listener: Namespace::new()? };
        all.dialer.join(&all.router, "near", &[at(NEAR, 2)], &[at(NEAR, 1)])?;
        all.router.join(&all.listener, "far", &[at(FAR, 1)], &[at(FAR, 2)])?;
        all.router.forward()?;
        all.dialer.route(&format!("{FAR}/64"), at(NEAR, 1))?;
        all.listener.route(&format!("{NEAR}/64"), at(FAR, 1))?;
        Ok(all)
    }
}

/// Over IPv6 through a router, whose further network shrinks from 1500 to 1300 bytes, and from an address that changes.
#[tokio::test]
async fn a_smaller_path_and_another_address_end_no_stream_over_ipv6() -> anyhow::Result<()> {
    for kinds in [&["quic"][..], &["quic", "sealed"], &["tcp"]] {
        let abroad = Abroad::new()?;
        let net = Net::new("abroad")?;
        let listen = [SocketAddr::new(at(FAR, 2), 7323)];
        let hop =
            PeerOptions { listen: &listen, kinds, host: Some(&abroad.listener), ..PeerOptions::default() };
        let mut hop = net.peer(Role::Hop, "hop", &hop).await?;
        let end = PeerOptions { peers: &listen, kinds, host: Some(&abroad.dialer), ..PeerOptions::default() };
        let mut a = net.peer(Role::Controller, "a", &end).await?;
        a.reach("hop", true).await?;
        hop.reach("a", true).await?;
        a.flow(1, "hop", &bulk(true, 0)).await.context("pull")?;
        a.flow(2, "hop", &bulk(false, 0)).await.context("push")?;
        for id in [1, 2] {
            a.moves(id, 1 << 20).await?;
        }
        for (space, name) in [(&abroad.router, "far"), (&abroad.listener, "far")] {
            space.set_mtu(name, 1300)?;
        }
        for id in [1, 2] {
            a.moves(id, 1 << 20).await.with_context(|| format!("{kinds:?}, after the path shrank"))?;
        }
        // The old one goes first: what is under way to it is lost.
        abroad.dialer.remove_address("near", at(NEAR, 2))?;
        abroad.dialer.add_address("near", at(NEAR, 3))?;
        for id in [1, 2] {
            a.moves(id, 1 << 20).await.with_context(|| format!("{kinds:?}, under another address"))?;
        }
        for id in [1, 2] {
            ensure!(a.ends(id, true, FLOW).await? > 64, "{kinds:?}");
        }
    }
    Ok(())
}

//! What bytes and requests cost.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use plexus_proto::id::Role;
use plexus_tests::Binaries;
use plexus_tests::net::{Flow, Hop, Net, Peer, PeerOptions};
use plexus_tests::wire::{Shape, Wire};
use serde_json::Value;

use super::{Measured, example, json_of, quantile};
use crate::bench::median;

/// Transfers of each kind.
const RUNS: &str = "5";
/// Requests that warm sessions, and that count.
const WARM: u32 = 300;
const REQUESTS: u32 = 3000;
/// Requests beside a full wire, and the pause between two.
const LOADED: u32 = 400;
const PAUSE: Duration = Duration::from_millis(10);
/// 100 Mbit/s.
const NARROW: u64 = 12_500_000;

/// CPU time of all nodes over that of bare quinn, in turn with it.
pub(super) fn cpu(link: &str, hops: &str) -> anyhow::Result<Measured> {
    let program = example(Binaries::of_this_build()?.dir(), "throughput")?;
    let args = ["--link", link, "--hops", hops, "--mib", "256", "--runs", RUNS, "--json"];
    let report = json_of(Command::new(program).args(args))?;
    let of = |who: &str, what: &str| -> anyhow::Result<Vec<f64>> {
        let runs = report[who].as_array().with_context(|| format!("no {who} in {report}"))?;
        runs.iter().map(|run| run[what].as_f64().with_context(|| format!("no {what}"))).collect()
    };
    Ok(Measured {
        value: report["cpu_ratio"].as_f64().context("no cpu_ratio")?,
        samples: of("mesh", "cpu_s_gb")?,
        baseline: of("direct", "cpu_s_gb")?,
        conditions: format!(
            "256 MiB; samples in CPU-s/GB, all nodes together; value: median of the ratios of neighbours; MB/s: ours {:.0}, bare {:.0}",
            median(&of("mesh", "mb_s")?),
            median(&of("direct", "mb_s")?)
        ),
    })
}

/// A line of real processes.
struct Chain {
    a: Peer,
    _b: Peer,
    _hops: Vec<Hop>,
    _wire: Option<Wire>,
    _net: Net,
}

impl Chain {
    /// With `narrow` bytes per second between the first two hops.
    async fn new(count: usize, narrow: Option<u64>) -> anyhow::Result<Self> {
        let net = Net::new("bench")?;
        let mut hops: Vec<Hop> = Vec::new();
        let mut wire = None;
        for number in 1..=count {
            let mut before: Vec<_> = hops.last().map(Hop::address).into_iter().collect();
            if let (2, Some(rate), Some(at)) = (number, narrow, before.first_mut()) {
                let laid = Wire::to(*at, Shape { rate: Some(rate), ..Shape::default() }, 1)?;
                *at = laid.address();
                wire = Some(laid);
            }
            let mut hop = net.hop(&format!("hop-{number}"), &before)?;
            hop.start().await?;
            hops.push(hop);
        }
        let any = ["127.0.0.1:0".parse().context("bad address")?];
        let first: Vec<_> = hops.first().map(Hop::address).into_iter().collect();
        let near = PeerOptions {
            listen: if count == 0 { &any } else { &[] },
            peers: &first,
            ..PeerOptions::default()
        };
        let mut a = net.peer(Role::Controller, "a", &near).await?;
        let last = hops.last().map_or_else(|| a.listen().to_vec(), |hop| vec![hop.address()]);
        let far = PeerOptions { peers: &last, ..PeerOptions::default() };
        let mut b = net.peer(Role::Execution, "b", &far).await?;
        a.reach("b", true).await?;
        b.reach("a", true).await?;
        Ok(Self { a, _b: b, _hops: hops, _wire: wire, _net: net })
    }
}

/// Request and reply on a new stream, one at a time.
pub(super) async fn rtt(hops: usize) -> anyhow::Result<Measured> {
    let mut chain = Chain::new(hops, None).await?;
    chain.a.requests("b", WARM, Duration::ZERO).await?;
    let samples = chain.a.requests("b", REQUESTS, Duration::ZERO).await?;
    let p99 = quantile(&samples, 0.99);
    let how = format!("200 B there and back on a new stream, {REQUESTS} times; p50; p99 {p99:.0} us");
    Ok(Measured::new(median(&samples), samples, &how))
}

/// What a full narrow wire adds to a request.
pub(super) async fn control_loaded() -> anyhow::Result<Measured> {
    let mut chain = Chain::new(3, Some(NARROW)).await?;
    chain.a.requests("b", WARM, Duration::ZERO).await?;
    let quiet = chain.a.requests("b", LOADED, PAUSE).await?;
    let flow = Flow { class: "bulk", pull: true, block: 16 * 1024, pause: Duration::ZERO, blocks: 0 };
    chain.a.flow(1, "b", &flow).await?;
    chain.a.moves(1, 5_000_000).await?;
    let began = std::time::Instant::now();
    let before = chain.a.progress(1, false).await?.bytes;
    let loaded = chain.a.requests("b", LOADED, PAUSE).await?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of seconds fit 52 bits")]
    let moved = (chain.a.progress(1, false).await?.bytes - before) as f64 / began.elapsed().as_secs_f64();
    chain.a.ends(1, true, Duration::from_secs(60)).await?;
    let value = (quantile(&loaded, 0.99) - quantile(&quiet, 0.99)) / 1e3;
    Ok(Measured {
        value,
        samples: loaded,
        baseline: quiet,
        conditions: format!(
            "three hops, 100 Mb/s between the first two; samples in us, baseline without load; bulk moved {:.0} Mb/s meanwhile",
            moved * 8.0 / 1e6
        ),
    })
}

/// Throughput over a far, lossy wire.
pub(super) fn lossy() -> anyhow::Result<Measured> {
    let program = example(Binaries::of_this_build()?.dir(), "throughput")?;
    let measure = |what: &str| -> anyhow::Result<f64> {
        let report: Value = json_of(Command::new(&program).args([what, "128", "50", "1"]))?;
        report["mb_s"].as_f64().with_context(|| format!("no mb_s in {report}"))
    };
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..5 {
        if round % 2 == 0 {
            ours.push(measure("far-mesh")?);
            bare.push(measure("far-direct")?);
        } else {
            bare.push(measure("far-direct")?);
            ours.push(measure("far-mesh")?);
        }
    }
    Ok(Measured {
        value: median(&ours) / median(&bare),
        samples: ours,
        baseline: bare,
        conditions:
            "128 MiB over one hop, 50 ms, 1 % loss each way; samples in MB/s; baseline: bare quinn with BBR"
                .into(),
    })
}

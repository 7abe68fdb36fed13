//! How long a mesh of a given size takes to agree, and what that costs.

use std::time::{Duration, Instant};

use plexus_proto::id::Role;

use super::World;
use crate::routing::DIGEST_PERIOD;

/// What was measured of one mesh. Times are virtual but for `cpu`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Report {
    /// Nodes, and how many of them are hops and controllers.
    pub nodes: usize,
    /// See `nodes`.
    pub hops: usize,
    /// See `nodes`.
    pub controllers: usize,
    /// Cables between them.
    pub links: usize,
    /// Longest shortest latency between two hops.
    pub diameter: Duration,
    /// From the start of all nodes within a second until no route changed any more, and the messages it took.
    pub start: Took,
    /// The same after one execution node joined.
    pub join: Took,
    /// After one execution node left, counted from the moment at which its neighbours noticed.
    pub leave: Took,
    /// After one hop left, likewise.
    pub hop_leave: Took,
    /// After one node in a hundred left and came back within ten seconds.
    pub churn: Took,
    /// After a cut through the middle, a minute long, was mended.
    pub heal: Took,
    /// Bytes of routing messages on each link each second, both directions together, when nothing happens.
    pub idle_bytes_per_link_second: f64,
    /// Time all of this took, looking at the routes included.
    pub wall: Duration,
}

/// One change until everybody agrees.
#[derive(Debug, Clone, Copy, Default)]
pub struct Took {
    /// Until the last route changed.
    pub time: Duration,
    /// Messages delivered by then.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Real time that it took to compute all of it, of all nodes together.
    pub cpu: Duration,
}

/// How soon a cut is noticed in measurements: at once, for detection is no matter of routing.
const AT_ONCE: (usize, usize) = (0, 1);
/// Longest that anything takes to settle here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures a mesh of `nodes`, of which one in fifty is a hop and one in a thousand a controller; execution nodes and
/// controllers are linked to two hops each, hops to four on average. After the start and after the heal every route is
/// looked at: what is quick and wrong is no measurement.
///
/// # Errors
/// What is not right then, in words.
pub fn measure(seed: u64, nodes: usize) -> Result<Report, String> {
    let begun = Instant::now();
    let mut world = World::new(seed);
    let mut report = world.build(nodes);
    report.start = world.took(|world| {
        for node in 0..nodes {
            world.boot(node, false);
        }
    });
    world.run(DIGEST_PERIOD * 2);
    world.check_some().map_err(|error| format!("after the start: {error}"))?;
    let before = world.counts();
    let span = DIGEST_PERIOD * 10;
    world.run(span);
    let bytes = world.counts().bytes - before.bytes;
    report.idle_bytes_per_link_second = bytes as f64 / report.links as f64 / span.as_secs_f64();

    let last = nodes - 1;
    report.leave = world.took(|world| world.kill(last, AT_ONCE));
    report.join = world.took(|world| world.boot(last, false));
    let hop = report.hops / 2;
    report.hop_leave = world.took(|world| world.kill(hop, AT_ONCE));
    world.took(|world| world.boot(hop, false));
    report.churn = world.took(|world| {
        let some: Vec<usize> = (0..nodes.div_ceil(100)).map(|_| world.random.below(nodes)).collect();
        for &node in &some {
            world.kill(node, AT_ONCE);
            world.run(Duration::from_millis(5000 / some.len() as u64));
        }
        // Settling counts from the last of them.
        for &node in &some {
            world.run(Duration::from_millis(5000 / some.len() as u64));
            world.boot(node, false);
        }
    });
    report.heal = world.heal(report.hops);
    world.check_some().map_err(|error| format!("after the heal: {error}"))?;
    report.wall = begun.elapsed();
    Ok(report)
}

/// Nodes whose routes are all looked at; of a larger mesh so many, evenly spread.
const CHECKED: usize = 1000;

impl World {
    fn check_some(&self) -> Result<(), String> {
        self.check_of((0..self.nodes.len()).step_by(self.nodes.len().div_ceil(CHECKED)))
    }

    /// Hops first, then controllers, then execution nodes.
    fn build(&mut self, nodes: usize) -> Report {
        let hops = (nodes / 50).max(3);
        let controllers = (nodes / 1000).max(1);
        for node in 0..nodes {
            let role = match node {
                node if node < hops => Role::Hop,
                node if node < hops + controllers => Role::Controller,
                _ => Role::Execution,
            };
            self.add(role);
        }
        for hop in 1..hops {
            // A tree that is no chain, and as many cables again.
            let uplink = hop - 1 - self.random.below(hop.min(8));
            let other = self.random.below(hops);
            for (other, always) in [(uplink, true), (other, false)] {
                let known = self.nodes[hop].cables.iter().any(|&c| self.other_end(c, hop) == other);
                if always || (other != hop && !known) {
                    let latency = self.random.millis(1, 30);
                    self.lay(hop, other, 10, latency, 2);
                }
            }
        }
        for node in hops..nodes {
            let first = self.random.below(hops);
            let second = (first + 1 + self.random.below(hops - 1)) % hops;
            for hop in [first, second] {
                let latency = self.random.millis(1, 30);
                self.lay(node, hop, 10, latency, 2);
            }
        }
        let diameter = self.diameter(hops);
        Report { nodes, hops, controllers, links: self.cables.len(), diameter, ..Report::default() }
    }

    /// Longest of the shortest latencies between hops, jitter included.
    fn diameter(&self, hops: usize) -> Duration {
        let mut longest = Duration::ZERO;
        for from in 0..hops {
            let mut best = vec![None; hops];
            let mut open = std::collections::BTreeSet::from([(Duration::ZERO, from)]);
            while let Some((at, hop)) = open.pop_first() {
                if best[hop].is_some() {
                    continue;
                }
                best[hop] = Some(at);
                longest = longest.max(at);
                for &cable in &self.nodes[hop].cables {
                    let other = self.other_end(cable, hop);
                    if other < hops && best[other].is_none() {
                        let Self { cables, .. } = self;
                        let jitter = Duration::from_millis(cables[cable].jitter_ms as u64);
                        open.insert((at + cables[cable].latency + jitter, other));
                    }
                }
            }
        }
        longest
    }

    /// Does something and waits until no route changes any more.
    fn took(&mut self, change: impl FnOnce(&mut Self)) -> Took {
        let begun = Instant::now();
        let before = self.counts();
        change(self);
        let from = self.now;
        self.run(PATIENCE);
        let after = self.counts();
        Took {
            time: self.changed.saturating_sub(from),
            messages: after.messages - before.messages,
            bytes: after.bytes - before.bytes,
            cpu: begun.elapsed(),
        }
    }

    fn heal(&mut self, hops: usize) -> Took {
        let middle = |node: usize| node < hops / 2;
        let crossing: Vec<usize> = (0..self.cables.len())
            .filter(|&cable| {
                let ends = self.cables[cable].ends;
                ends.iter().all(|&end| end < hops) && middle(ends[0]) != middle(ends[1])
            })
            .collect();
        crossing.iter().for_each(|&cable| self.cut(cable, AT_ONCE));
        self.run(Duration::from_secs(60));
        self.took(|world| crossing.iter().for_each(|&cable| world.join(cable)))
    }
}

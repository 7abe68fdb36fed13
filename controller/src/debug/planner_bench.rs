//! Placements a second of the planner alone: a fleet made from nodes and groups, and every pending job placed on it.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::schedule::{Candidate, Fleet, Group};

const JOBS: usize = 100_000;
const NODES: usize = 10_000;
const GROUPS: usize = 100;
/// Forks of a node: together they take all jobs and are then nearly full.
const CAPACITY: u32 = 64;
const ROUNDS: usize = 7;

pub(super) fn run() -> anyhow::Result<()> {
    let (mut whole, mut tenths) = (Vec::new(), vec![0.0_f64; 10]);
    for _ in 0..ROUNDS {
        let (nodes, groups) = declared()?;
        let began = Instant::now();
        let mut fleet = Fleet::new(nodes, groups);
        for (tenth, fastest) in tenths.iter_mut().enumerate() {
            let part = Instant::now();
            for number in tenth * (JOBS / 10)..(tenth + 1) * (JOBS / 10) {
                let (first, second) = (number % GROUPS, (number * 7 + 1) % GROUPS);
                let impact = 2 + u32::try_from(number % 7)?;
                let placed = fleet.place(impact, &[i64::try_from(first)?, i64::try_from(second)?]);
                ensure!(placed.is_ok(), "job {number} found no place: {placed:?}");
            }
            *fastest = fastest.max(per_second(JOBS / 10, part));
        }
        whole.push(per_second(JOBS, began));
    }
    let report = serde_json::json!({"per_second": whole, "tenths": tenths});
    writeln!(std::io::stdout().lock(), "{report}").context("cannot print")
}

type Declared = (BTreeMap<plexus_proto::id::NodeId, Candidate>, BTreeMap<i64, Group>);

fn declared() -> anyhow::Result<Declared> {
    let mut nodes = BTreeMap::new();
    let mut groups: BTreeMap<i64, Group> = BTreeMap::new();
    for number in 0..NODES {
        let name: plexus_proto::id::NodeId =
            format!("node-{number:05}").parse().context("this is a name of a node")?;
        let group = i64::try_from(number % GROUPS)?;
        let entry = groups.entry(group).or_default();
        entry.name = format!("group-{group}");
        entry.nodes.insert(name.clone());
        let idle = Candidate { reachable: true, enabled: true, closed: None, capacity: CAPACITY, busy: 0 };
        nodes.insert(name, idle);
    }
    Ok((nodes, groups))
}

fn per_second(count: usize, since: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "some hundred thousand")]
    let count = count as f64;
    count / since.elapsed().as_secs_f64()
}

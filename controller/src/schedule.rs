//! Which node takes a job. Pure: demand and what the nodes have come in, a placement or the reason for none goes out.

use std::collections::BTreeMap;

use plexus_proto::id::NodeId;

/// Forks that Ansible uses when nobody says otherwise.
const DEFAULT_FORKS: u32 = 5;
/// Forks a whole core can drive; AWX's SYSTEM_TASK_FORKS_CPU.
const FORKS_PER_CORE: u32 = 4;
/// Bytes a fork needs; AWX's SYSTEM_TASK_FORKS_MEM, 100 MB.
const BYTES_PER_FORK: u64 = 100 * 1024 * 1024;

/// Forks a job will keep busy at once: no more than it has hosts, and one for Ansible itself.
pub fn impact(forks: i64, hosts: usize) -> u32 {
    let forks = u32::try_from(forks).ok().filter(|&forks| forks > 0).unwrap_or(DEFAULT_FORKS);
    forks.min(u32::try_from(hosts.max(1)).unwrap_or(u32::MAX)).saturating_add(1)
}

/// Forks a node can keep busy: the smaller of what its cores and its memory allow, at least one.
pub fn capacity(cpu_millis: u32, memory_bytes: u64) -> u32 {
    let by_cpu = u64::from(cpu_millis) * u64::from(FORKS_PER_CORE) / 1000;
    let by_memory = memory_bytes / BYTES_PER_FORK;
    u32::try_from(by_cpu.min(by_memory).max(1)).unwrap_or(u32::MAX)
}

/// An execution node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// A route is known and the node has answered.
    pub reachable: bool,
    /// Nobody has switched it off.
    pub enabled: bool,
    /// Forks it can keep busy.
    pub capacity: u32,
    /// Forks that its units keep busy now.
    pub busy: u32,
}

/// Why a job waits. The text is what people read on the job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// Nobody ever enrolled one.
    #[error("waiting: no execution node has joined yet")]
    NoNodes,
    /// None can be reached.
    #[error("waiting: no execution node can be reached ({0} offline)")]
    Offline(String),
    /// All that can be reached are switched off.
    #[error("waiting: every execution node that can be reached is disabled")]
    Disabled,
    /// None has room.
    #[error("waiting: needs {impact} forks of capacity, {best} are free on {node}")]
    Full {
        /// Forks the job needs.
        impact: u32,
        /// Most forks free on one node.
        best: u32,
        /// That node.
        node: NodeId,
    },
}

/// Chooses the node with most free capacity; the first by name among equals. A job larger than any node's whole
/// capacity still runs, on a node that is idle.
///
/// # Errors
/// [`Wait`], with the words that explain it.
pub fn place(impact: u32, nodes: &BTreeMap<NodeId, Candidate>) -> Result<NodeId, Wait> {
    if nodes.is_empty() {
        return Err(Wait::NoNodes);
    }
    if !nodes.values().any(|node| node.reachable) {
        let names: Vec<_> = nodes.keys().take(5).map(NodeId::as_str).collect();
        return Err(Wait::Offline(names.join(", ")));
    }
    let usable = nodes.iter().filter(|(_, node)| node.reachable && node.enabled);
    let free = |node: &Candidate| node.capacity.saturating_sub(node.busy);
    let best = usable.min_by_key(|(name, node)| (std::cmp::Reverse(free(node)), (*name).clone()));
    let Some((name, node)) = best else { return Err(Wait::Disabled) };
    if free(node) >= impact || node.busy == 0 {
        return Ok(name.clone());
    }
    Err(Wait::Full { impact, best: free(node), node: name.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(impact: u32, nodes: &[(&str, bool, bool, u32, u32)]) -> Result<String, String> {
        let nodes = nodes
            .iter()
            .map(|&(name, reachable, enabled, capacity, busy)| {
                (name.parse().unwrap(), Candidate { reachable, enabled, capacity, busy })
            })
            .collect();
        place(impact, &nodes).map(|node| node.to_string()).map_err(|wait| wait.to_string())
    }

    #[test]
    fn most_free_capacity_wins_and_ties_go_by_name() {
        assert_eq!(check(3, &[("b", true, true, 8, 0), ("a", true, true, 8, 0)]).unwrap(), "a");
        assert_eq!(check(3, &[("a", true, true, 8, 4), ("b", true, true, 8, 0)]).unwrap(), "b");
    }

    #[test]
    fn a_job_larger_than_any_node_runs_on_an_idle_one() {
        assert_eq!(check(100, &[("a", true, true, 8, 0)]).unwrap(), "a");
        assert!(check(100, &[("a", true, true, 8, 1)]).unwrap_err().contains("7 are free on a"));
    }

    #[test]
    fn every_wait_says_why() {
        assert!(check(1, &[]).unwrap_err().contains("no execution node has joined"));
        assert!(check(1, &[("a", false, true, 8, 0)]).unwrap_err().contains("a offline"));
        assert!(check(1, &[("a", true, false, 8, 0)]).unwrap_err().contains("disabled"));
    }

    #[test]
    fn impact_and_capacity_follow_the_known_rule() {
        assert_eq!(impact(0, 2), 3);
        assert_eq!(impact(0, 10), 6);
        assert_eq!(impact(50, 10), 11);
        assert_eq!(capacity(2000, 24 << 30), 8);
        assert_eq!(capacity(2000, 200 << 20), 2);
        assert_eq!(capacity(10, 1), 1);
    }
}

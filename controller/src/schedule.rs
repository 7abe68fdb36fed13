//! Which node takes a job. Pure: demand and what nodes and groups have come in, a placement or the reason for none goes
//! out. Which nodes belong to which group is decided in [`policy`].
//!
//! Each group keeps its usable nodes in order of what is free on them, so that a placement costs the same however many
//! nodes there are, and whether they are empty or full.

pub mod policy;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use plexus_proto::id::NodeId;

/// Forks that Ansible uses when nobody says otherwise.
const DEFAULT_FORKS: u32 = 5;
/// Forks a whole core can drive; AWX's SYSTEM_TASK_FORKS_CPU.
const FORKS_PER_CORE: u32 = 4;
/// Bytes a fork needs; AWX's SYSTEM_TASK_FORKS_MEM, 100 MB. The 2 GiB that AWX takes off a machine first are for its own web and
/// task services, which run on no execution node here.
const BYTES_PER_FORK: u64 = 100 * 1024 * 1024;

/// Forks a job will keep busy at once: no more than it has hosts, and one for Ansible itself.
pub fn impact(forks: i64, hosts: usize) -> u32 {
    let forks = u32::try_from(forks).ok().filter(|&forks| forks > 0).unwrap_or(DEFAULT_FORKS);
    forks.min(u32::try_from(hosts.max(1)).unwrap_or(u32::MAX)).saturating_add(1)
}

/// Forks a node can keep busy, by each of what limits it; at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// By its cores.
    pub cpu: u32,
    /// By its memory.
    pub memory: u32,
}

impl Capacity {
    /// What so many thousandths of a core and so many bytes allow.
    pub fn of(cpu_millis: u32, memory_bytes: u64) -> Self {
        let forks = |forks: u64| u32::try_from(forks.max(1)).unwrap_or(u32::MAX);
        Self {
            cpu: forks(u64::from(cpu_millis) * u64::from(FORKS_PER_CORE) / 1000),
            memory: forks(memory_bytes / BYTES_PER_FORK),
        }
    }

    /// AWX's rule: the smaller of the two at 0, the larger at 1, in between what lies in between.
    pub fn adjusted(self, adjustment: f64) -> u32 {
        let (least, most) = (self.cpu.min(self.memory), self.cpu.max(self.memory));
        let more = f64::from(most - least) * adjustment.clamp(0.0, 1.0);
        least.saturating_add(more as u32)
    }
}

/// An execution node as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// A route is known and the node has answered.
    pub reachable: bool,
    /// Nobody has switched it off.
    pub enabled: bool,
    /// Why it takes no new work, in its own words: it was cordoned on its machine, or has just refused some.
    pub closed: Option<String>,
    /// Forks it can keep busy.
    pub capacity: u32,
    /// Forks that its units keep busy now.
    pub busy: u32,
}

impl Candidate {
    fn free(&self) -> u32 {
        self.capacity.saturating_sub(self.busy)
    }

    fn usable(&self) -> bool {
        self.reachable && self.enabled && self.closed.is_none()
    }
}

/// An instance group as it is declared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The nodes in it.
    pub nodes: BTreeSet<NodeId>,
    /// Most jobs at once; 0: no limit.
    pub max_jobs: u32,
    /// Most forks at once; 0: no limit.
    pub max_forks: u32,
}

/// Why a job waits. The text is what people read on the job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Wait {
    /// Nobody ever enrolled one.
    #[error("waiting: no execution node has joined yet")]
    NoNodes,
    /// The group it may run in has none.
    #[error("waiting: instance group {0} has no execution node")]
    Empty(String),
    /// None can be reached.
    #[error("waiting: no execution node can be reached ({0} offline)")]
    Offline(String),
    /// All that can be reached are switched off.
    #[error("waiting: every execution node that can be reached is disabled")]
    Disabled,
    /// None that can be reached and is switched on takes new work; their words.
    #[error("waiting: no execution node takes new jobs: {0}")]
    Closed(String),
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
    /// The group takes no more jobs.
    #[error("waiting: instance group {group} runs {limit} jobs, as many as it may at once")]
    Jobs {
        /// The group.
        group: String,
        /// Its limit.
        limit: u32,
    },
    /// The group takes no more forks.
    #[error(
        "waiting: needs {impact} forks, instance group {group} has {left} left of the {limit} it may use at once"
    )]
    Forks {
        /// Forks the job needs.
        impact: u32,
        /// The group.
        group: String,
        /// Forks left of the limit.
        left: u32,
        /// Its limit.
        limit: u32,
    },
    /// Something that it depends on runs first; what, in words.
    #[error("waiting: {0} comes first")]
    Needs(String),
    /// This other job of its template comes first. Its number is not in the words: they would change for every job that
    /// waits, whenever one ends.
    #[error(
        "waiting: another job of the same template comes first, and the template does not allow simultaneous jobs"
    )]
    Behind(i64),
    /// Its inventory is being updated.
    #[error("waiting: its inventory is changed by inventory update {0}")]
    Changing(i64),
    /// It may run in several groups, and none takes it.
    #[error("{}", several(.0))]
    Several(Vec<(String, Wait)>),
}

fn several(waits: &[(String, Wait)]) -> String {
    let reason = |(group, wait): &(String, Wait)| {
        let words = wait.to_string();
        format!("in instance group {group}: {}", words.strip_prefix("waiting: ").unwrap_or(&words))
    };
    format!("waiting: {}", waits.iter().map(reason).collect::<Vec<_>>().join("; "))
}

/// Where a job goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The node.
    pub node: NodeId,
    /// The instance group it was found in.
    pub group: i64,
}

/// A node's place among all, in the order of names: so that ties go by name.
type Place = u32;

struct Pool {
    group: Group,
    /// Jobs and forks that run in it.
    jobs: u32,
    forks: u32,
    /// Usable nodes, the one with most free capacity first.
    free: BTreeSet<(Reverse<u32>, Place)>,
    /// Usable nodes without work, the largest first.
    idle: BTreeSet<(Reverse<u32>, Place)>,
}

/// Everything that jobs are placed on.
pub struct Fleet {
    nodes: Vec<(NodeId, Candidate, Vec<i64>)>,
    places: BTreeMap<NodeId, Place>,
    pools: BTreeMap<i64, Pool>,
}

impl Fleet {
    /// A fleet of these nodes in these groups, with nothing running but what the candidates say.
    pub fn new(nodes: BTreeMap<NodeId, Candidate>, groups: BTreeMap<i64, Group>) -> Self {
        let mut fleet = Self { nodes: Vec::new(), places: BTreeMap::new(), pools: BTreeMap::new() };
        for (place, (name, candidate)) in (0..).zip(nodes) {
            fleet.places.insert(name.clone(), place);
            fleet.nodes.push((name, candidate, Vec::new()));
        }
        for (id, group) in groups {
            let mut pool = Pool { jobs: 0, forks: 0, free: BTreeSet::new(), idle: BTreeSet::new(), group };
            for name in &pool.group.nodes {
                let Some(&place) = fleet.places.get(name) else { continue };
                let Some((_, node, of)) = fleet.nodes.get_mut(place as usize) else { continue };
                of.push(id);
                if node.usable() {
                    pool.free.insert((Reverse(node.free()), place));
                    if node.busy == 0 {
                        pool.idle.insert((Reverse(node.capacity), place));
                    }
                }
            }
            fleet.pools.insert(id, pool);
        }
        fleet
    }

    /// Counts a job that has its node already, in the group that it was placed by.
    pub fn occupy(&mut self, node: &NodeId, group: Option<i64>, impact: u32) {
        if let Some(pool) = group.and_then(|group| self.pools.get_mut(&group)) {
            pool.jobs = pool.jobs.saturating_add(1);
            pool.forks = pool.forks.saturating_add(impact);
        }
        let Some(&place) = self.places.get(node) else { return };
        let Some((_, node, of)) = self.nodes.get_mut(place as usize) else { return };
        let before = (Reverse(node.free()), place);
        let idle = (Reverse(node.capacity), place);
        node.busy = node.busy.saturating_add(impact);
        let after = (Reverse(node.free()), place);
        let usable = node.usable();
        for group in of.iter() {
            let Some(pool) = self.pools.get_mut(group) else { continue };
            pool.idle.remove(&idle);
            pool.free.remove(&before);
            if usable {
                pool.free.insert(after);
            }
        }
    }

    /// Chooses a node from the first of these groups that has room, and counts the job there. Within a group it is the
    /// node with most free capacity, the first by name among equals; a job larger than any node's whole capacity runs on
    /// one that is idle.
    ///
    /// # Errors
    /// [`Wait`], with the words that explain it.
    pub fn place(&mut self, impact: u32, groups: &[i64]) -> Result<Placed, Wait> {
        let mut waits = Vec::new();
        for id in groups {
            let Some(pool) = self.pools.get(id) else { continue };
            match self.choose(pool, impact) {
                Ok(node) => {
                    self.occupy(&node, Some(*id), impact);
                    return Ok(Placed { node, group: *id });
                }
                Err(wait) => waits.push((pool.group.name.clone(), wait)),
            }
        }
        if self.nodes.is_empty() {
            return Err(Wait::NoNodes);
        }
        match waits.len() {
            0 => Err(Wait::Empty("of this job".to_owned())),
            1 => Err(waits.swap_remove(0).1),
            _ => Err(Wait::Several(waits)),
        }
    }

    fn choose(&self, pool: &Pool, impact: u32) -> Result<NodeId, Wait> {
        let Group { name, max_jobs, max_forks, .. } = &pool.group;
        if *max_jobs > 0 && pool.jobs >= *max_jobs {
            return Err(Wait::Jobs { group: name.clone(), limit: *max_jobs });
        }
        // A job that is larger than the whole limit still runs, alone.
        let left = max_forks.saturating_sub(pool.forks);
        if *max_forks > 0 && left < impact && pool.forks > 0 {
            return Err(Wait::Forks { impact, group: name.clone(), left, limit: *max_forks });
        }
        let at = |place: Place| self.nodes.get(place as usize);
        if let Some((Reverse(free), place)) = pool.free.first()
            && let Some((best, ..)) = at(*place)
        {
            if *free >= impact {
                return Ok(best.clone());
            }
            if let Some((idle, ..)) = pool.idle.first().and_then(|(_, place)| at(*place)) {
                return Ok(idle.clone());
            }
            return Err(Wait::Full { impact, best: *free, node: best.clone() });
        }
        let known: Vec<_> = pool.group.nodes.iter().filter(|name| self.places.contains_key(name)).collect();
        if known.is_empty() {
            return Err(Wait::Empty(name.clone()));
        }
        let reachable = |name: &NodeId| {
            self.places.get(name).and_then(|place| at(*place)).is_some_and(|(_, node, _)| node.reachable)
        };
        if known.iter().any(|name| reachable(name)) {
            let closed = known.iter().filter_map(|name| {
                let (_, node, _) = self.places.get(name).and_then(|place| at(*place))?;
                node.closed.as_deref().filter(|_| node.reachable && node.enabled)
            });
            let closed: Vec<_> = closed.take(5).collect();
            return Err(if closed.is_empty() { Wait::Disabled } else { Wait::Closed(closed.join("; ")) });
        }
        let names: Vec<_> = known.iter().take(5).map(|name| name.as_str()).collect();
        Err(Wait::Offline(names.join(", ")))
    }
}

/// The groups a job may run in, most wanted first, by AWX's rule: what was chosen at launch alone; otherwise those of
/// the template, of its inventory and of its organization, where a template or an inventory may stop the search; and if
/// that comes to none, the `default` group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Chosen at launch.
    pub chosen: Vec<i64>,
    /// The template's.
    pub template: Vec<i64>,
    /// The template says: look no further.
    pub template_stops: bool,
    /// The inventory's.
    pub inventory: Vec<i64>,
    /// The inventory says: look no further.
    pub inventory_stops: bool,
    /// The organization's.
    pub organization: Vec<i64>,
}

impl Wanted {
    /// The groups in order, each once.
    pub fn groups(&self, default: Option<i64>) -> Vec<i64> {
        if !self.chosen.is_empty() {
            return self.chosen.clone();
        }
        let mut groups: Vec<i64> = Vec::new();
        for (own, stops) in [
            (&self.template, self.template_stops),
            (&self.inventory, self.inventory_stops),
            (&self.organization, false),
        ] {
            for group in own {
                if !groups.contains(group) {
                    groups.push(*group);
                }
            }
            if stops {
                break;
            }
        }
        if groups.is_empty() {
            groups.extend(default);
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Node<'n> = (&'n str, bool, bool, u32, u32);

    fn fleet(nodes: &[Node<'_>], groups: &[(i64, &[&str], u32, u32)]) -> Fleet {
        let nodes = nodes
            .iter()
            .map(|&(name, reachable, enabled, capacity, busy)| {
                (name.parse().unwrap(), Candidate { reachable, enabled, capacity, busy, closed: None })
            })
            .collect();
        let groups = groups.iter().map(|&(id, nodes, max_jobs, max_forks)| {
            let nodes = nodes.iter().map(|name| name.parse().unwrap()).collect();
            (id, Group { name: format!("g{id}"), nodes, max_jobs, max_forks })
        });
        Fleet::new(nodes, groups.collect())
    }

    fn check(impact: u32, nodes: &[Node<'_>]) -> Result<String, String> {
        let names: Vec<&str> = nodes.iter().map(|node| node.0).collect();
        let placed = fleet(nodes, &[(1, &names, 0, 0)]).place(impact, &[1]);
        placed.map(|placed| placed.node.to_string()).map_err(|wait| wait.to_string())
    }

    #[test]
    fn most_free_capacity_wins_and_ties_go_by_name() {
        assert_eq!(check(3, &[("b", true, true, 8, 0), ("a", true, true, 8, 0)]).unwrap(), "a");
        assert_eq!(check(3, &[("a", true, true, 8, 4), ("b", true, true, 8, 0)]).unwrap(), "b");
    }

    #[test]
    fn a_job_larger_than_any_node_runs_on_an_idle_one() {
        assert_eq!(check(100, &[("a", true, true, 8, 0)]).unwrap(), "a");
        assert_eq!(check(100, &[("a", true, true, 8, 0), ("b", true, true, 20, 9)]).unwrap(), "a");
        assert!(check(100, &[("a", true, true, 8, 1)]).unwrap_err().contains("7 are free on a"));
    }

    #[test]
    fn every_wait_says_why() {
        assert!(check(1, &[]).unwrap_err().contains("no execution node has joined"));
        assert!(check(1, &[("a", false, true, 8, 0)]).unwrap_err().contains("a offline"));
        assert!(check(1, &[("a", true, false, 8, 0)]).unwrap_err().contains("disabled"));
        let mut two = fleet(
            &[("a", true, true, 4, 4), ("b", false, true, 4, 0)],
            &[(1, &["a"], 0, 0), (2, &["b"], 0, 0), (3, &[], 0, 0)],
        );
        let words = two.place(2, &[1, 2]).unwrap_err().to_string();
        let expected = "waiting: in instance group g1: needs 2 forks of capacity, 0 are free on a; in instance group g2: \
                        no execution node can be reached (b offline)";
        assert_eq!(words, expected);
        assert_eq!(two.place(2, &[3]).unwrap_err(), Wait::Empty("g3".to_owned()));
    }

    #[test]
    fn a_node_that_takes_nothing_new_is_left_out_and_its_words_are_told() {
        let node = |name: &str, enabled, closed: Option<&str>| {
            let closed = closed.map(str::to_owned);
            (name.parse().unwrap(), Candidate { reachable: true, enabled, closed, capacity: 8, busy: 0 })
        };
        let place = |nodes: [(NodeId, Candidate); 2]| {
            let group = Group {
                name: "g".into(),
                nodes: nodes.iter().map(|n| n.0.clone()).collect(),
                ..Group::default()
            };
            let placed = Fleet::new(nodes.into(), [(1, group)].into()).place(1, &[1]);
            placed.map(|placed| placed.node.to_string()).map_err(|wait| wait.to_string())
        };
        let words = Some("a is cordoned: new disk");
        assert_eq!(place([node("a", true, words), node("b", true, None)]).unwrap(), "b");
        let waits = place([node("a", true, words), node("b", false, None)]).unwrap_err();
        assert_eq!(waits, "waiting: no execution node takes new jobs: a is cordoned: new disk");
        // What people here have switched off needs no other reason.
        assert!(place([node("a", false, words), node("b", false, None)]).unwrap_err().contains("disabled"));
    }

    #[test]
    fn a_group_keeps_its_limits_and_the_next_one_takes_over() {
        let nodes = [("a", true, true, 100, 0), ("b", true, true, 100, 0)];
        let mut fleet = fleet(&nodes, &[(1, &["a"], 2, 0), (2, &["b"], 0, 10)]);
        let mut to =
            |impact| fleet.place(impact, &[1, 2]).map(|placed| (placed.node.to_string(), placed.group));
        assert_eq!(to(3).unwrap(), ("a".to_owned(), 1));
        assert_eq!(to(3).unwrap(), ("a".to_owned(), 1));
        assert_eq!(to(6).unwrap(), ("b".to_owned(), 2));
        let words = to(6).unwrap_err().to_string();
        assert!(words.contains("g1 runs 2 jobs") && words.contains("g2 has 4 left of the 10"), "{words}");
        assert_eq!(to(4).unwrap(), ("b".to_owned(), 2));
    }

    #[test]
    fn nodes_in_two_groups_are_full_in_both() {
        let mut fleet = fleet(&[("a", true, true, 6, 0)], &[(1, &["a"], 0, 0), (2, &["a"], 0, 0)]);
        assert_eq!(fleet.place(4, &[1]).unwrap().group, 1);
        assert!(matches!(fleet.place(4, &[2]), Err(Wait::Full { best: 2, .. })));
        fleet.occupy(&"gone".parse().unwrap(), Some(9), 3);
    }

    #[test]
    fn what_is_chosen_goes_before_template_inventory_and_organization() {
        let wanted = Wanted {
            chosen: vec![],
            template: vec![3, 1],
            inventory: vec![1, 2],
            organization: vec![4],
            ..Wanted::default()
        };
        assert_eq!(wanted.groups(Some(9)), [3, 1, 2, 4]);
        assert_eq!(Wanted { inventory_stops: true, ..wanted.clone() }.groups(Some(9)), [3, 1, 2]);
        assert_eq!(Wanted { template_stops: true, ..wanted.clone() }.groups(Some(9)), [3, 1]);
        assert_eq!(Wanted { chosen: vec![7], ..wanted }.groups(Some(9)), [7]);
        assert_eq!(Wanted::default().groups(Some(9)), [9]);
    }

    #[test]
    fn a_hundred_thousand_jobs_are_placed_as_fast_at_the_end_as_at_the_start() {
        let name = |number: usize| -> NodeId { format!("node-{number}").parse().unwrap() };
        let idle = Candidate { reachable: true, enabled: true, closed: None, capacity: 40, busy: 0 };
        let nodes = (0..2000).map(|n| (name(n), idle.clone()));
        let groups = (0..20_i64).map(|id| {
            let nodes = (0..2000).filter(|n| n % 20 == id as usize || id == 0).map(name).collect();
            (id, Group { name: format!("g{id}"), nodes, ..Group::default() })
        });
        let mut fleet = Fleet::new(nodes.collect(), groups.collect());
        let placed = (0..100_000_i64).filter(|job| fleet.place(2, &[job % 20]).is_ok()).count();
        // 2,000 nodes of 20 such jobs each; nothing is placed twice, and nothing is left over.
        assert_eq!(placed, 40_000);
    }

    #[test]
    fn impact_and_capacity_follow_the_known_rule() {
        assert_eq!(impact(0, 2), 3);
        assert_eq!(impact(0, 10), 6);
        assert_eq!(impact(50, 10), 11);
        let capacity = |cpu, memory, adjustment| Capacity::of(cpu, memory).adjusted(adjustment);
        assert_eq!(capacity(2000, 24 << 30, 0.0), 8);
        assert_eq!(capacity(2000, 200 << 20, 0.0), 2);
        assert_eq!(capacity(2000, 200 << 20, 0.5), 5);
        assert_eq!(capacity(2000, 200 << 20, 1.0), 8);
        assert_eq!(capacity(10, 1, 0.7), 1);
        assert_eq!(capacity(u32::MAX, u64::MAX, f64::NAN), Capacity::of(u32::MAX, 0).cpu);
    }
}

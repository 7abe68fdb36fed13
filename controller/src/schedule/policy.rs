//! Which nodes belong to which instance group, by the groups' policies. Pure.
//!
//! By AWX's rule: a group has the nodes on its list; then as many more as its minimum says; then as many as its
//! percentage of all says, each time the nodes that are in fewest groups first. Nodes that are not managed by policy come
//! by the list only.

use std::collections::{BTreeMap, BTreeSet};

/// The policy of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Id of the group.
    pub group: i64,
    /// The group of the control plane: it takes controllers, the others take execution nodes.
    pub control: bool,
    /// Names of nodes that belong to it whatever the numbers say.
    pub list: Vec<String>,
    /// Nodes it has at least.
    pub minimum: u32,
    /// Nodes it has of all that could be in it, in percent.
    pub percentage: u32,
}

/// A node as policies see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// It runs jobs of people.
    pub executes: bool,
    /// It is a controller.
    pub controls: bool,
    /// Numbers may move it; if not, lists alone do.
    pub by_policy: bool,
}

/// The nodes of each group.
pub fn members(policies: &[Policy], nodes: &[Node]) -> BTreeMap<i64, BTreeSet<i64>> {
    let mut members: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    for policy in policies {
        let listed = nodes.iter().filter(|node| policy.list.contains(&node.name)).map(|node| node.id);
        members.insert(policy.group, listed.collect());
    }
    // How many groups each node came into by numbers.
    let mut used: BTreeMap<i64, usize> = BTreeMap::new();
    let fits = |policy: &Policy, node: &Node| {
        node.by_policy && if policy.control { node.controls } else { node.executes }
    };
    for by_percentage in [false, true] {
        let mut order: Vec<&Policy> =
            policies.iter().filter(|policy| policy.minimum > 0 || policy.percentage > 0).collect();
        order.sort_by_key(|policy| members.get(&policy.group).map_or(0, BTreeSet::len));
        for policy in order {
            let mut pool: Vec<&Node> = nodes.iter().filter(|node| fits(policy, node)).collect();
            let all = pool.len();
            pool.sort_by_key(|node| used.get(&node.id).copied().unwrap_or(0));
            let Some(own) = members.get_mut(&policy.group) else { continue };
            for node in pool {
                let enough = if by_percentage {
                    100 * own.len() >= policy.percentage as usize * all
                } else {
                    own.len() >= policy.minimum as usize
                };
                if enough {
                    break;
                }
                if own.insert(node.id) {
                    *used.entry(node.id).or_default() += 1;
                }
            }
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: i64) -> Node {
        Node { id, name: format!("node-{id}"), executes: true, controls: false, by_policy: true }
    }

    fn policy(group: i64, list: &[&str], minimum: u32, percentage: u32) -> Policy {
        let list = list.iter().map(|name| (*name).to_owned()).collect();
        Policy { group, control: false, list, minimum, percentage }
    }

    #[test]
    fn lists_minimums_and_percentages_follow_each_other() {
        let nodes: Vec<Node> = (1..=4).map(node).collect();
        let of = |policies: &[Policy]| members(policies, &nodes);
        assert_eq!(of(&[policy(1, &[], 0, 100)])[&1], BTreeSet::from([1, 2, 3, 4]));
        assert_eq!(of(&[policy(1, &["node-3", "gone"], 0, 0)])[&1], BTreeSet::from([3]));
        assert_eq!(of(&[policy(1, &[], 2, 0)])[&1].len(), 2);
        assert_eq!(of(&[policy(1, &[], 0, 50)])[&1].len(), 2);
        assert_eq!(of(&[policy(1, &[], 0, 51)])[&1].len(), 3);
        assert!(of(&[policy(1, &[], 0, 0)])[&1].is_empty());
        // Two groups with a minimum of two each share four nodes without overlap.
        let both = of(&[policy(1, &[], 2, 0), policy(2, &[], 2, 0)]);
        assert!(both[&1].is_disjoint(&both[&2]), "{both:?}");
    }

    #[test]
    fn numbers_move_only_what_may_be_moved_and_fits() {
        let mut nodes: Vec<Node> = (1..=3).map(node).collect();
        nodes[0].by_policy = false;
        nodes[1].executes = false;
        nodes[1].controls = true;
        let control = Policy { control: true, ..policy(2, &[], 0, 100) };
        let found = members(&[policy(1, &[], 0, 100), control, policy(3, &["node-1"], 0, 0)], &nodes);
        assert_eq!(found[&1], BTreeSet::from([3]));
        assert_eq!(found[&2], BTreeSet::from([2]));
        assert_eq!(found[&3], BTreeSet::from([1]));
    }
}

//! Two copies of one execution node: a machine that was cloned with its identity and data, or a store that was brought
//! back from a backup while work went on.
//!
//! Each start of an agent has a nonce of its own, and a number on its store that only grows. So there are two agents
//! where a start is heard again after a later one, or where two starts have one number; and a store is an old one
//! where its number goes back. An agent that was killed and started again has a new nonce and the next number.

use std::collections::{HashMap, VecDeque};

use plexus_proto::id::{NodeId, StoreId};

/// Starts of a node that are remembered.
const STARTS: usize = 8;

/// One start of an agent, as it tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) store: StoreId,
    /// Zero: an agent that does not tell.
    pub(super) nonce: u64,
    /// On that store, from 1.
    pub(super) number: u64,
}

/// Why a node gets no more work until somebody has looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// Two agents live under its name.
    Twice,
    /// Its store is older than what was heard of it.
    Back { from: u64, to: u64 },
}

impl Doubt {
    /// What happened and what to do, for people.
    pub(super) fn text(self, node: &NodeId) -> String {
        let what = match self {
            Self::Twice => format!(
                "{node} runs twice: two agents have its name and key. Stop the copy and delete its identity and data; if you \
                 cannot tell which is the copy, revoke {node} and let both join anew"
            ),
            Self::Back { from, to } => format!(
                "the data directory of {node} is an old one: it counts {to} starts and had counted {from}. See that it was \
                 restored on purpose and runs nowhere else. Work that it was given since that copy is lost"
            ),
        };
        format!("{what}. It gets no new work until it is enabled again: plexus node uncordon {node}")
    }
}

/// Starts by node, the latest first.
#[derive(Debug, Default)]
pub(super) struct Copies(HashMap<NodeId, VecDeque<Start>>);

impl Copies {
    /// Takes note of a start; says what is wrong with it, once for each time that it shows.
    pub(super) fn hear(&mut self, node: &NodeId, start: Start) -> Option<Doubt> {
        if start.nonce == 0 {
            return None;
        }
        let starts = self.0.entry(node.clone()).or_default();
        let known = starts.iter().position(|known| known.nonce == start.nonce);
        let before = starts.iter().filter(|known| known.store == start.store && known.nonce != start.nonce);
        let most = before.map(|known| known.number).max();
        let doubt = match (known, most) {
            (Some(0), _) => None,
            (Some(_), _) => Some(Doubt::Twice),
            (None, Some(most)) if most == start.number => Some(Doubt::Twice),
            (None, Some(most)) if most > start.number => Some(Doubt::Back { from: most, to: start.number }),
            (None, _) => None,
        };
        if let Some(Doubt::Back { .. }) = doubt {
            // What it counts from now on is what counts.
            starts.retain(|known| known.store != start.store);
        }
        starts.retain(|known| known.nonce != start.nonce);
        starts.push_front(start);
        starts.truncate(STARTS);
        doubt
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn node() -> NodeId {
        "node-1".parse().unwrap()
    }

    fn start(store: u128, nonce: u64, number: u64) -> Start {
        Start { store: StoreId(Uuid::from_u128(store)), nonce, number }
    }

    #[test]
    fn an_agent_that_is_killed_and_started_again_is_no_copy() {
        let mut copies = Copies::default();
        for number in 1..100 {
            assert_eq!(copies.hear(&node(), start(1, number * 7, number)), None);
            assert_eq!(copies.hear(&node(), start(1, number * 7, number)), None, "the next heartbeat");
        }
        assert_eq!(copies.hear(&node(), start(2, 5, 1)), None, "a data directory that was made anew");
        assert!(copies.0[&node()].len() <= STARTS);
    }

    #[test]
    fn a_copied_data_directory_shows_by_its_number() {
        let mut copies = Copies::default();
        assert_eq!(copies.hear(&node(), start(1, 10, 4)), None);
        // Both were started after the copy, the fifth time each.
        assert_eq!(copies.hear(&node(), start(1, 11, 5)), None);
        assert_eq!(copies.hear(&node(), start(1, 12, 5)), Some(Doubt::Twice));
        assert_eq!(
            copies.hear(&node(), start(1, 11, 5)),
            Some(Doubt::Twice),
            "each time that they take turns"
        );
        assert_eq!(copies.hear(&node(), start(1, 11, 5)), None, "the other one was stopped");
        assert_eq!(copies.hear(&node(), start(1, 13, 6)), None, "and this one started again");
        assert_eq!(copies.hear(&"node-2".parse().unwrap(), start(1, 12, 5)), None, "another node");
    }

    #[test]
    fn a_copied_identity_shows_by_turns_also_with_a_store_of_its_own() {
        let mut copies = Copies::default();
        assert_eq!(copies.hear(&node(), start(1, 10, 4)), None);
        assert_eq!(copies.hear(&node(), start(2, 20, 1)), None, "it might be a new machine");
        assert_eq!(copies.hear(&node(), start(1, 10, 4)), Some(Doubt::Twice));
    }

    #[test]
    fn a_store_from_a_backup_is_told_once() {
        let mut copies = Copies::default();
        assert_eq!(copies.hear(&node(), start(1, 10, 9)), None);
        let back = Doubt::Back { from: 9, to: 4 };
        assert_eq!(copies.hear(&node(), start(1, 11, 4)), Some(back));
        assert_eq!(copies.hear(&node(), start(1, 11, 4)), None);
        assert_eq!(copies.hear(&node(), start(1, 12, 5)), None, "it goes on from there");
        assert!(back.text(&node()).contains("plexus node uncordon node-1"));
    }

    #[test]
    fn an_older_agent_that_does_not_tell_is_believed() {
        let mut copies = Copies::default();
        assert_eq!(copies.hear(&node(), start(1, 0, 0)), None);
        assert_eq!(copies.hear(&node(), start(1, 0, 0)), None);
        assert!(copies.0.is_empty());
    }
}

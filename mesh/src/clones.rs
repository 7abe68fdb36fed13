//! Two copies of one node: the same key and certificate in two processes that live at the same time.
//!
//! Each process draws a nonce at its start, and a process that ended never comes back. So whoever was followed by a
//! newer start and is heard again lives beside it. A node that was killed and started again is no clone: its old nonce
//! is never heard again.

use std::collections::{HashMap, VecDeque};

use plexus_proto::id::Address;

/// Starts of a neighbour that are remembered.
const STARTS: usize = 8;
/// Neighbours that are remembered.
const NEIGHBORS: usize = 4096;

/// Starts of neighbours by overlay address, newest first.
#[derive(Debug, Default)]
pub(crate) struct Starts(HashMap<Address, VecDeque<u64>>);

impl Starts {
    /// Takes note of the start that a neighbour's hello names. True if another start came after it: then both live.
    pub(crate) fn is_clone(&mut self, neighbor: Address, nonce: u64) -> bool {
        if self.0.len() >= NEIGHBORS && !self.0.contains_key(&neighbor) {
            self.0.clear();
        }
        let starts = self.0.entry(neighbor).or_default();
        let known = starts.iter().position(|&start| start == nonce);
        if let Some(at) = known {
            starts.remove(at);
        }
        starts.push_front(nonce);
        starts.truncate(STARTS);
        known.is_some_and(|at| at > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Address = Address(7);

    #[test]
    fn starting_again_and_again_and_linking_twice_is_no_clone() {
        let mut starts = Starts::default();
        for nonce in 0..100 {
            assert!(!starts.is_clone(NODE, nonce));
            assert!(!starts.is_clone(NODE, nonce), "a second link of the same process");
        }
    }

    #[test]
    fn a_start_that_is_heard_after_a_newer_one_is_a_clone() {
        let mut starts = Starts::default();
        assert!(!starts.is_clone(NODE, 1));
        assert!(!starts.is_clone(NODE, 2));
        assert!(!starts.is_clone(Address(8), 1), "another node");
        assert!(starts.is_clone(NODE, 1));
        assert!(starts.is_clone(NODE, 2), "each time that they take turns");
        assert!(!starts.is_clone(NODE, 3), "the operator has started the right one anew");
    }

    #[test]
    fn memory_is_bounded() {
        let mut starts = Starts::default();
        for nonce in 0..3 * NEIGHBORS as u32 {
            starts.is_clone(Address(nonce), 1);
        }
        for nonce in 0..100 {
            starts.is_clone(NODE, nonce);
        }
        assert!(starts.0.len() <= NEIGHBORS);
        assert!(starts.0[&NODE].len() <= STARTS);
    }
}

//! A troubled life with a quiet end, and what must be true then.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plexus_proto::id::Role;
use plexus_proto::packet::HOP_LIMIT;

use super::{Cable, Weather, World};
use crate::routing::{DIGEST_PERIOD, Input, LinkId};

/// How trouble is noticed: some at once, some by silence.
const NOTICED: (usize, usize) = (50, 1500);

/// Lives the life of `seed` with `size` nodes and so many rounds of trouble, then quiet.
///
/// # Errors
/// What is not right in the end, in words.
pub fn live(seed: u64, size: usize, rounds: usize) -> Result<World, String> {
    let mut world = World::new(seed);
    world.found(size);
    world.weather = Weather { lost: 30, doubled: 20, late: 20, forged: 10 };
    world.run(Duration::from_secs(5));
    for _ in 0..rounds {
        world.trouble()?;
        let span = world.random.millis(0, 4000);
        world.run(span);
    }
    // The end: whoever is down stays so now and then, most cables are joined, and everything stays as it is.
    for cable in 0..world.cables.len() {
        for end in 0..2 {
            if world.cables[cable].deaf[end] {
                world.undeafen(cable, end);
            }
        }
        if world.random.permille(850) { world.join(cable) } else { world.cut(cable, NOTICED) }
    }
    world.weather = Weather::default();
    // What was late comes within seconds; a repair may uncover another, one hop further; digests come once a period.
    world.run(DIGEST_PERIOD * 6);
    world.check()?;
    // Quiet is quiet: digests agree, and nobody has news.
    let announcements = world.counts.announcements;
    world.run(DIGEST_PERIOD * 2);
    if world.counts.announcements != announcements {
        return Err(format!("{} announcements in quiet", world.counts.announcements - announcements));
    }
    Ok(world)
}

impl World {
    /// A tree of `size` nodes, then some more cables; now and then a second one between the same two.
    fn found(&mut self, size: usize) {
        for index in 0..size {
            let role = match self.random.below(10) {
                0..5 => Role::Hop,
                5..8 => Role::Execution,
                _ => Role::Controller,
            };
            self.add(role);
            for _ in 0..1 + self.random.below(3) {
                if index > 0 {
                    let other = self.random.below(index);
                    let cost = 1 + self.random.below(20) as u32;
                    let latency = self.random.millis(1, 60);
                    self.lay(other, index, cost, latency, 20);
                }
            }
        }
        for node in 0..size {
            self.boot(node, false);
        }
    }

    fn trouble(&mut self) -> Result<(), String> {
        match self.random.below(14) {
            0..4 => {
                let cable = self.random.below(self.cables.len());
                if self.cables[cable].live.is_some() { self.cut(cable, NOTICED) } else { self.join(cable) }
            }
            4..6 => {
                let side: Vec<bool> = self.nodes.iter().map(|_| self.random.permille(500)).collect();
                let across = |ends: [usize; 2]| side[ends[0]] != side[ends[1]];
                let crossing: Vec<usize> =
                    (0..self.cables.len()).filter(|&c| across(self.cables[c].ends)).collect();
                crossing.iter().for_each(|&cable| self.cut(cable, NOTICED));
                let span = self.random.millis(100, 40_000);
                self.run(span);
                crossing.iter().for_each(|&cable| self.join(cable));
            }
            6..9 => {
                let node = self.random.below(self.nodes.len());
                self.kill(node, NOTICED);
                let span = self.random.millis(10, 3000);
                self.run(span);
                let epoch_lost = self.random.permille(300);
                self.boot(node, epoch_lost);
            }
            9..11 => {
                let (cable, end) = (self.random.below(self.cables.len()), self.random.below(2));
                self.deafen(cable, end);
                let span = self.random.millis(10, 6000);
                self.run(span);
                // Silence that lasts ends the link.
                if self.random.permille(500) { self.undeafen(cable, end) } else { self.cut(cable, NOTICED) }
            }
            11 => {
                let node = self.random.below(self.nodes.len());
                self.nodes[node].ahead += self.random.millis(1, 4 * 3600 * 1000);
                self.nodes[node].timer = None;
                self.set_timer(node);
            }
            12 => self.sample_walks()?,
            _ => self.replay(),
        }
        Ok(())
    }

    /// A neighbour passes on something old as if it were news.
    fn replay(&mut self) {
        let live: Vec<(LinkId, [usize; 2])> =
            self.cables.iter().filter_map(|cable| Some((cable.live?, cable.ends))).collect();
        if live.is_empty() {
            return;
        }
        let (link, ends) = live[self.random.below(live.len())];
        let announcement = self.said[self.random.below(self.said.len())].clone();
        let node = ends[self.random.below(2)];
        self.input(node, Input::Announcement { link, announcement });
    }

    /// In trouble packets may circle for a moment, by whatever tables they meet: never through a node that is no hop, and
    /// neither a way nor a circle is longer than the hop limit, or packets on it would be lost to that alone.
    fn sample_walks(&mut self) -> Result<(), String> {
        for _ in 0..20 {
            let (from, to) = (self.random.below(self.nodes.len()), self.random.below(self.nodes.len()));
            self.follow(from, to)?;
        }
        Ok(())
    }

    /// Follows next hops from `from` as far as they lead: to `to`, to where nobody knows on, or once around a circle.
    fn follow(&self, from: usize, to: usize) -> Result<(), String> {
        let (mut at, mut way) = (from, vec![from]);
        while at != to && (at == from || self.transits(at)) {
            let Some(router) = self.router(at) else { return Ok(()) };
            let Some(route) = router.routes().get(self.address(to)) else { return Ok(()) };
            let Some(&cable) = self.by_link.get(&route.next.link) else { return Ok(()) };
            at = self.other_end(cable, at);
            if at != to && !self.transits(at) {
                return Err(format!(
                    "a packet from n{from} to n{to} was sent through n{at}, which is no hop"
                ));
            }
            if let Some(seen) = way.iter().position(|&seen| seen == at) {
                let circle = way.len() - seen;
                return match circle > usize::from(HOP_LIMIT) {
                    true => Err(format!("packets from n{from} to n{to} circle through {circle} nodes")),
                    false => Ok(()),
                };
            }
            way.push(at);
        }
        match way.len() - 1 > usize::from(HOP_LIMIT) {
            true => Err(format!("a packet from n{from} to n{to} has to cross {} links", way.len() - 1)),
            false => Ok(()),
        }
    }

    /// Cost of the best way from `from` to each node it can reach: Bellman and Ford, to share nothing with the
    /// router.
    fn truth(&self, from: usize) -> BTreeMap<usize, u64> {
        if self.router(from).is_none() {
            return BTreeMap::new();
        }
        let well: Vec<&Cable> =
            (0..self.cables.len()).filter(|&c| self.is_well(c)).map(|c| &self.cables[c]).collect();
        let mut best: Vec<Option<u64>> = vec![None; self.nodes.len()];
        best[from] = Some(0);
        loop {
            let mut better = false;
            for cable in &well {
                for [a, b] in [cable.ends, [cable.ends[1], cable.ends[0]]] {
                    let Some(cost) = best[a].filter(|_| a == from || self.transits(a)) else { continue };
                    let cost = cost + u64::from(cable.cost);
                    if best[b].is_none_or(|known| cost < known) {
                        best[b] = Some(cost);
                        better = true;
                    }
                }
            }
            if !better {
                best[from] = None;
                return best.into_iter().enumerate().filter_map(|(to, cost)| Some((to, cost?))).collect();
            }
        }
    }

    /// Whether `from` should know a way to `to`, if there is one: without a map that is controllers and neighbours.
    fn should_know(&self, from: usize, to: usize) -> bool {
        let role = |node: usize| self.nodes[node].identity.role;
        let linked = |cable: &usize| self.is_well(*cable) && self.other_end(*cable, from) == to;
        role(from) != Role::Execution
            || role(to) == Role::Controller
            || self.nodes[from].cables.iter().any(linked)
    }

    /// Everybody reaches whom it should, by the shortest way, and holds the newest of all it reaches.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_of(0..self.nodes.len())
    }

    /// The same as far as these nodes know.
    pub(super) fn check_of(&self, nodes: impl IntoIterator<Item = usize>) -> Result<(), String> {
        for from in nodes {
            let Some(router) = self.router(from) else { continue };
            let mut truth = self.truth(from);
            truth.retain(|&to, _| self.should_know(from, to));
            let reached: BTreeSet<usize> =
                router.routes().iter().map(|(address, _)| self.by_address[&address]).collect();
            let expected: BTreeSet<usize> = truth.keys().copied().collect();
            if reached != expected {
                return Err(format!("n{from} reaches {reached:?} and should {expected:?}"));
            }
            for (&to, &cost) in &truth {
                let route = router.routes().get(self.address(to));
                let known = route.map(|route| u64::from(route.next.cost));
                // Without a map a neighbour that nobody tells of is reached by its link, be it the shortest way or not.
                let least = router.keeps_map() || self.nodes[to].identity.role == Role::Controller;
                if !least {
                    self.walk(from, to)
                        .map_err(|error| format!("from n{from} to its neighbour n{to}: {error}"))?;
                    continue;
                }
                if known != Some(cost) {
                    return Err(format!("n{from} takes {known:?} for the cost to n{to}, which is {cost}"));
                }
                match self.walk(from, to) {
                    Ok(walked) if walked == cost => self.follow(from, to)?,
                    other => {
                        return Err(format!("the way from n{from} to n{to} costs {cost}; walked: {other:?}"));
                    }
                }
            }
            let current = |known: &crate::routing::KnownNode<'_>| {
                let origin = self.by_address[&known.identity.address];
                let own = self.router(origin)?.nodes().next()?;
                Some((known.version, known.links) == (own.version, own.links))
            };
            for known in router.nodes().filter(|known| known.reachable && router.keeps_map()) {
                if current(&known) != Some(true) {
                    return Err(format!("n{from} is behind about {}", known.identity.node));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of hops, one longer than a packet may cross, all of whose routes are right.
    #[test]
    fn a_way_beyond_the_hop_limit_is_found() {
        for (hops, fine) in [(HOP_LIMIT, true), (HOP_LIMIT + 1, false)] {
            let mut world = World::new(1);
            for node in 0..=usize::from(hops) {
                world.add(Role::Hop);
                if node > 0 {
                    world.lay(node - 1, node, 1, Duration::from_millis(1), 0);
                }
            }
            (0..=usize::from(hops)).for_each(|node| world.boot(node, false));
            world.run(DIGEST_PERIOD * 2);
            assert_eq!(world.walk(0, usize::from(hops)), Ok(u64::from(hops)));
            assert_eq!(world.follow(0, usize::from(hops)).is_ok(), fine, "{hops}");
        }
    }

    #[test]
    fn a_packet_through_a_node_that_is_no_hop_is_found() {
        let mut world = World::new(1);
        let roles = [Role::Hop, Role::Execution, Role::Hop];
        let [a, b, c] = roles.map(|role| world.add(role));
        world.lay(a, b, 1, Duration::from_millis(1), 0);
        world.lay(b, c, 1, Duration::from_millis(1), 0);
        [a, b, c].into_iter().for_each(|node| world.boot(node, false));
        world.run(DIGEST_PERIOD * 2);
        assert!(world.router(a).unwrap().routes().get(world.address(c)).is_none(), "leaves carry nothing");
        assert!(world.check().is_ok() && world.follow(a, c).is_ok());
        // A router that takes the leaf for a hop would send through it.
        world.nodes[b].identity.role = Role::Hop;
        assert!(world.check().is_err());
    }
}

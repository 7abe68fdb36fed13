//! Many real routers in one seeded world: virtual clock, latency, lost messages, links that come and go,
//! partitions, restarts (also with the epoch lost), replays of old announcements. Then quiet, and the invariants.
//!
//! `PLEXUS_SIM_SEED=n` runs that seed alone, `PLEXUS_SIM_SEEDS=n` so many of them.

#![expect(clippy::unwrap_used, reason = "a broken world should stop the test where it broke")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use plexus_mesh::routing::{DIGEST_PERIOD, Effect, Input, LinkId, Router, VerifiedAnnouncement};
use plexus_proto::id::{Address, Identity, Role};
use plexus_proto::link::{LinkMessageKind, SignedAnnouncement};

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }
}

struct Node {
    identity: Identity,
    epoch: u64,
    /// `None` while the process is down.
    router: Option<Router>,
}

/// Two nodes that may be linked, at this cost.
struct Cable {
    ends: [usize; 2],
    cost: u32,
    latency: Duration,
    /// Incarnation of the link, which is its id at both ends; `None` while it is cut.
    live: Option<LinkId>,
    /// When the last message arrives at each end: order is kept.
    last: [Duration; 2],
}

enum Event {
    Up { cable: usize, link: LinkId, node: usize },
    Down { link: LinkId, node: usize },
    Message { cable: usize, link: LinkId, node: usize, message: LinkMessageKind },
}

struct World {
    random: Random,
    start: Instant,
    now: Duration,
    nodes: Vec<Node>,
    cables: Vec<Cable>,
    queue: BTreeMap<(Duration, u64), Event>,
    serial: u64,
    /// Percent of messages that a full queue swallows.
    loss: usize,
    /// Everything ever signed.
    said: Vec<VerifiedAnnouncement>,
    /// Where in `said`.
    bodies: HashMap<Bytes, usize>,
    /// Ends of links that their nodes know to be up.
    up: BTreeSet<(LinkId, usize)>,
    /// Messages delivered, and a hash of their order.
    delivered: u64,
    announcements: u64,
    trace: u64,
}

impl World {
    fn new(seed: u64, size: usize) -> Self {
        let mut world = Self {
            random: Random(seed),
            start: Instant::now(),
            now: Duration::ZERO,
            nodes: vec![],
            cables: vec![],
            queue: BTreeMap::new(),
            serial: 0,
            loss: 3,
            said: vec![],
            bodies: HashMap::new(),
            up: BTreeSet::new(),
            delivered: 0,
            announcements: 0,
            trace: 0,
        };
        for index in 0..size {
            let role = match world.random.below(10) {
                0..6 => Role::Hop,
                6..9 => Role::Execution,
                _ => Role::Controller,
            };
            let identity = Identity {
                mesh: "sim".parse().unwrap(),
                cluster: "main".parse().unwrap(),
                role,
                node: format!("n{index}").parse().unwrap(),
                address: Address(100 + index as u32),
            };
            world.nodes.push(Node { identity, epoch: 0, router: None });
            world.boot(index, false);
            // A tree, then some more; now and then a second cable between the same two.
            for _ in 0..1 + world.random.below(3) {
                if index > 0 {
                    let other = world.random.below(index);
                    let cost = 1 + world.random.below(20) as u32;
                    let latency = world.random.millis(1, 60);
                    let ends = [other, index];
                    world.cables.push(Cable { ends, cost, latency, live: None, last: [Duration::ZERO; 2] });
                }
            }
        }
        world
    }

    fn boot(&mut self, node: usize, epoch_lost: bool) {
        let at = self.start + self.now;
        let node_state = &mut self.nodes[node];
        node_state.epoch = if epoch_lost { 1 } else { node_state.epoch + 1 };
        let identity = node_state.identity.clone();
        node_state.router = Some(Router::new(identity, node_state.epoch, "sim".into(), at));
        self.drain(node);
        let cables: Vec<usize> =
            (0..self.cables.len()).filter(|&c| self.cables[c].ends.contains(&node)).collect();
        for cable in cables {
            self.join(cable);
        }
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].router = None;
        for cable in 0..self.cables.len() {
            if self.cables[cable].ends.contains(&node) {
                self.cut(cable);
            }
        }
    }

    /// Links the two ends of `cable`, which hear of it one after the other.
    fn join(&mut self, cable: usize) {
        let Cable { ends, live: None, .. } = self.cables[cable] else { return };
        if ends.iter().any(|&end| self.nodes[end].router.is_none()) {
            return;
        }
        self.serial += 1;
        let link = LinkId(self.serial);
        self.cables[cable].live = Some(link);
        for node in ends {
            let after = self.random.millis(0, 50);
            self.schedule(after, Event::Up { cable, link, node });
        }
    }

    /// Cuts `cable`; each end notices in its own time. What is under way is lost.
    fn cut(&mut self, cable: usize) {
        let Some(link) = self.cables[cable].live.take() else { return };
        for node in self.cables[cable].ends {
            // Later than any `Up` of this link that is still under way.
            let after = self.random.millis(50, 1500);
            self.schedule(after, Event::Down { link, node });
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    fn schedule_at(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        self.queue.insert((at, self.serial), event);
    }

    fn input(&mut self, node: usize, input: Input) {
        let at = self.start + self.now;
        if let Some(router) = &mut self.nodes[node].router {
            router.handle(input, at);
            self.drain(node);
        }
    }

    fn drain(&mut self, node: usize) {
        let at = self.start + self.now;
        loop {
            let Some(router) = &mut self.nodes[node].router else { return };
            match router.poll_effect() {
                None => return,
                Some(Effect::Routes(routes)) => assert_eq!(*routes, *router.routes()),
                Some(Effect::Sign { body }) => {
                    let signed = SignedAnnouncement { body: body.into(), ..Default::default() };
                    let announcement =
                        VerifiedAnnouncement::new(self.nodes[node].identity.clone(), signed).unwrap();
                    self.bodies.insert(announcement.signed().body.clone(), self.said.len());
                    self.said.push(announcement.clone());
                    let router = self.nodes[node].router.as_mut().unwrap();
                    router.handle(Input::Signed { announcement }, at);
                }
                Some(Effect::Send { link, message }) => self.send(node, link, message),
            }
        }
    }

    fn send(&mut self, from: usize, link: LinkId, message: LinkMessageKind) {
        if self.random.chance(self.loss) {
            return;
        }
        let Some(cable) = self.cables.iter().position(|cable| cable.live == Some(link)) else { return };
        let jitter = self.random.millis(0, 20);
        let Cable { ends, latency, last, .. } = &mut self.cables[cable];
        let to = usize::from(ends[0] == from);
        let at = (self.now + *latency + jitter).max(last[to]);
        last[to] = at;
        let node = ends[to];
        self.schedule_at(at, Event::Message { cable, link, node, message });
    }

    /// Lets `span` of virtual time pass.
    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let message = self.queue.keys().next().map(|&(at, _)| at);
            let timer = (0..self.nodes.len())
                .filter_map(|n| Some((self.nodes[n].router.as_ref()?.poll_timeout()? - self.start, n)))
                .min();
            match (message, timer) {
                (Some(at), timer) if at <= end && timer.is_none_or(|(due, _)| at <= due) => {
                    self.now = self.now.max(at);
                    let (_, event) = self.queue.pop_first().unwrap();
                    self.happen(event);
                }
                (_, Some((due, node))) if due <= end => {
                    self.now = self.now.max(due);
                    let at = self.start + self.now;
                    self.nodes[node].router.as_mut().unwrap().handle_timeout(at);
                    self.drain(node);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up { cable, link, node } => {
                let Cable { ends, cost, live, .. } = &self.cables[cable];
                if *live == Some(link) {
                    let (cost, peer) = (*cost, ends[usize::from(ends[0] == node)]);
                    let peer = self.nodes[peer].identity.clone();
                    self.up.insert((link, node));
                    self.input(node, Input::LinkUp { link, peer, cost });
                }
            }
            Event::Down { link, node } => self.input(node, Input::LinkDown { link }),
            Event::Message { cable, link, node, message } => {
                if self.cables[cable].live != Some(link) {
                    return;
                }
                if !self.up.contains(&(link, node)) {
                    // The shell reads nothing from a link before it is up at this end.
                    let after = Duration::from_millis(5);
                    self.schedule(after, Event::Message { cable, link, node, message });
                    return;
                }
                self.delivered += 1;
                let kind = match &message {
                    LinkMessageKind::Announcement(_) => 1,
                    LinkMessageKind::Digest(_) => 2,
                    _ => 3,
                };
                let stamp = self.now.as_nanos() as u64 ^ (node as u64) << 48 ^ kind;
                self.trace = (self.trace ^ stamp).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
                let input = match message {
                    LinkMessageKind::Announcement(signed) => {
                        self.announcements += 1;
                        let announcement = self.verify(signed);
                        Input::Announcement { link, announcement }
                    }
                    LinkMessageKind::Digest(digest) => Input::Digest { link, digest },
                    LinkMessageKind::Want(want) => Input::Want { link, want },
                    other => panic!("a router does not send {other:?}"),
                };
                self.input(node, input);
            }
        }
    }

    /// The shell's part: whose is it? (Only what was said can be heard, so the signature is right.)
    fn verify(&self, signed: SignedAnnouncement) -> VerifiedAnnouncement {
        let signer = self.said[self.bodies[&signed.body]].identity().clone();
        VerifiedAnnouncement::new(signer, signed).unwrap()
    }

    fn trouble(&mut self, rounds: usize) {
        for _ in 0..rounds {
            match self.random.below(10) {
                0..4 => {
                    let cable = self.random.below(self.cables.len());
                    if self.cables[cable].live.is_some() { self.cut(cable) } else { self.join(cable) }
                }
                4..6 => {
                    let side: Vec<bool> = self.nodes.iter().map(|_| self.random.chance(50)).collect();
                    let across = |c: &Cable| side[c.ends[0]] != side[c.ends[1]];
                    let crossing: Vec<usize> =
                        (0..self.cables.len()).filter(|&c| across(&self.cables[c])).collect();
                    crossing.iter().for_each(|&cable| self.cut(cable));
                    let span = self.random.millis(100, 40_000);
                    self.run(span);
                    crossing.iter().for_each(|&cable| self.join(cable));
                }
                6..8 => {
                    let node = self.random.below(self.nodes.len());
                    self.kill(node);
                    let span = self.random.millis(10, 3000);
                    self.run(span);
                    let epoch_lost = self.random.chance(30);
                    self.boot(node, epoch_lost);
                }
                _ => self.replay(),
            }
            let span = self.random.millis(0, 4000);
            self.run(span);
        }
    }

    /// A neighbor passes on something old as if it were news.
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

    /// Cost of the best way from `from` to each node it can reach: Bellman and Ford, to share nothing with the
    /// router.
    fn truth(&self, from: usize) -> BTreeMap<usize, u64> {
        let mut best = BTreeMap::from([(from, 0)]);
        loop {
            let mut better = false;
            for cable in self.cables.iter().filter(|cable| cable.live.is_some()) {
                for (a, b) in [(0, 1), (1, 0)] {
                    let (a, b) = (cable.ends[a], cable.ends[b]);
                    let transits = a == from || self.nodes[a].identity.role == Role::Hop;
                    let Some(cost) =
                        best.get(&a).filter(|_| transits).map(|&c: &u64| c + u64::from(cable.cost))
                    else {
                        continue;
                    };
                    if best.get(&b).is_none_or(|&known| cost < known) {
                        best.insert(b, cost);
                        better = true;
                    }
                }
            }
            if !better {
                best.remove(&from);
                return best;
            }
        }
    }

    fn router(&self, node: usize) -> &Router {
        self.nodes[node].router.as_ref().expect("every process runs in the end")
    }

    fn index(&self, address: Address) -> usize {
        self.nodes.iter().position(|node| node.identity.address == address).unwrap()
    }

    /// Follows next hops from `from` to `to`; the cost of the cables on the way.
    fn walk(&self, from: usize, to: usize) -> Result<u64, String> {
        let (mut at, mut cost, mut seen) = (from, 0, BTreeSet::from([from]));
        while at != to {
            if at != from && self.nodes[at].identity.role != Role::Hop {
                return Err(format!("transits n{at}, which is no hop"));
            }
            let address = self.nodes[to].identity.address;
            let route = self.router(at).routes().get(address).ok_or(format!("no route at n{at}"))?;
            let cable = self.cables.iter().find(|c| c.live == Some(route.next.link) && c.ends.contains(&at));
            let cable = cable.ok_or(format!("n{at} uses a dead link"))?;
            if let Some(second) = route.second
                && (second.link == route.next.link || second.cost < route.next.cost)
            {
                return Err(format!("n{at} keeps {second:?} beside {:?}", route.next));
            }
            cost += u64::from(cable.cost);
            at = cable.ends[usize::from(cable.ends[0] == at)];
            if !seen.insert(at) {
                return Err(format!("loops at n{at}"));
            }
        }
        Ok(cost)
    }

    fn check(&self, seed: u64) {
        for from in 0..self.nodes.len() {
            let truth = self.truth(from);
            let routes = self.router(from).routes();
            let reached: BTreeSet<usize> = routes.iter().map(|(address, _)| self.index(address)).collect();
            assert_eq!(reached, truth.keys().copied().collect(), "seed {seed}: what n{from} reaches");
            for (&to, &cost) in &truth {
                let route = routes.get(self.nodes[to].identity.address).unwrap();
                assert_eq!(u64::from(route.next.cost), cost, "seed {seed}: cost from n{from} to n{to}");
                assert_eq!(self.walk(from, to), Ok(cost), "seed {seed}: walk from n{from} to n{to}");
            }
            for known in self.router(from).nodes().filter(|known| known.reachable) {
                let origin = self.index(known.identity.address);
                let own = self.router(origin).nodes().next().unwrap();
                assert_eq!(known.version, own.version, "seed {seed}: n{from} is behind about n{origin}");
                assert_eq!(known.links, own.links, "seed {seed}: n{from} errs about n{origin}");
            }
        }
    }
}

/// A troubled life, then quiet; returns the trace.
fn live(seed: u64, size: usize, rounds: usize) -> u64 {
    println!("seed {seed}");
    let mut world = World::new(seed, size);
    (0..world.cables.len()).for_each(|cable| world.join(cable));
    world.run(Duration::from_secs(5));
    world.trouble(rounds);

    // The end: most cables are joined, and stay so.
    for cable in 0..world.cables.len() {
        if world.random.chance(85) {
            world.join(cable);
        } else {
            world.cut(cable);
        }
    }
    world.loss = 0;
    // A repair may uncover another, one hop further; digests come once a period.
    world.run(DIGEST_PERIOD * 6);
    world.check(seed);

    // Quiet is quiet: digests agree, and nobody has news.
    let announcements = world.announcements;
    world.run(DIGEST_PERIOD * 2);
    assert_eq!(world.announcements, announcements, "seed {seed}: announcements in quiet");
    world.trace
}

#[test]
fn routers_agree_after_trouble() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match number("PLEXUS_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PLEXUS_SIM_SEEDS").unwrap_or(100),
    };
    for seed in seeds {
        live(seed, 4 + (seed % 12) as usize, 9);
    }
}

#[test]
fn a_seed_gives_one_life() {
    assert_eq!(live(7, 12, 15), live(7, 12, 15));
    assert_ne!(live(7, 12, 15), live(8, 12, 15));
}

#[test]
fn without_loss_news_need_no_digest() {
    let mut world = World::new(3, 30);
    world.loss = 0;
    (0..world.cables.len()).for_each(|cable| world.join(cable));
    // Far less than a digest period; thirty nodes are at most a few seconds of latency across.
    world.run(DIGEST_PERIOD / 4);
    world.check(3);
}

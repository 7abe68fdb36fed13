//! Thousands of real routers in one deterministic world: a seed, a virtual clock, and whatever can go wrong between
//! them. Only the routers are real; what their shells do (sign, verify, carry, notice a dead neighbour) is played.
//!
//! * [`World`] is nodes, cables between them, and time.
//! * [`life`] is a troubled life with a quiet end, after which every route must be right.
//! * [`decoders`] are what fuzzing reaches and others do not.
//! * [`measure`] is how long a mesh of a given size takes to agree, and what that costs.
//!
//! The same seed gives the same world, message by message; [`World::trace`] is the hash that shows it.

pub mod decoders;
pub mod life;
pub mod measure;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use plexus_proto::id::{Address, Identity, Role};
use plexus_proto::link::{LinkMessage, LinkMessageKind, SignedAnnouncement};
use prost::Message;

use crate::routing::{Effect, Input, LinkId, Router, VerifiedAnnouncement};

/// SplitMix64: small, and the same everywhere.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.bits() % bound as u64) as usize
    }

    /// True in so many of a thousand cases.
    pub fn permille(&mut self, of_thousand: usize) -> bool {
        self.below(1000) < of_thousand
    }

    /// A time in milliseconds, `from` included, `to` not.
    pub fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }
}

/// How often something happens to a message, in a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// A full queue swallows it.
    pub lost: usize,
    /// It arrives twice.
    pub doubled: usize,
    /// It is overtaken.
    pub late: usize,
    /// A copy arrives that somebody altered.
    pub forged: usize,
}

/// One node of the world.
#[derive(Debug)]
struct Node {
    identity: Identity,
    epoch: u64,
    /// `None` while the process is down.
    router: Option<Router>,
    /// By how much its clock is ahead.
    ahead: Duration,
    /// When its timer is set to go off.
    timer: Option<Duration>,
    cables: Vec<usize>,
}

/// Two nodes that may be linked.
#[derive(Debug)]
struct Cable {
    ends: [usize; 2],
    cost: u32,
    latency: Duration,
    jitter_ms: usize,
    /// Incarnation of the link, which is its id at both ends; `None` while it is cut.
    live: Option<LinkId>,
    /// Which ends know the link to be up.
    up: [bool; 2],
    /// Whether what is for that end is lost on the way.
    deaf: [bool; 2],
    /// When the last message arrives at each end: order is kept.
    last: [Duration; 2],
}

#[derive(Debug)]
enum Event {
    Up { cable: usize, link: LinkId, end: usize },
    Down { link: LinkId, node: usize },
    Silent { cable: usize, link: LinkId, end: usize, silent: bool },
    Message { cable: usize, link: LinkId, end: usize, message: LinkMessageKind },
    Timer { node: usize },
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Messages delivered, and their bytes with framing.
    pub messages: u64,
    /// See `messages`.
    pub bytes: u64,
    /// Those of them that were announcements.
    pub announcements: u64,
    /// Routes that changed, at all nodes together.
    pub routes: u64,
    /// Altered copies that were found out.
    pub forgeries: u64,
}

/// Nodes, cables and time.
#[derive(Debug)]
pub struct World {
    random: Random,
    start: Instant,
    now: Duration,
    nodes: Vec<Node>,
    cables: Vec<Cable>,
    by_address: HashMap<Address, usize>,
    by_link: HashMap<LinkId, usize>,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: HashMap<u64, Event>,
    serial: u64,
    weather: Weather,
    /// What is certified, by the signed bytes: verifying again gives the same.
    verified: HashMap<Bytes, VerifiedAnnouncement>,
    /// Some of what was ever signed, to be said again.
    said: Vec<VerifiedAnnouncement>,
    counts: Counts,
    /// When a route changed last.
    changed: Duration,
    trace: u64,
    /// What stands in for the certificates of a chain.
    chain: Bytes,
}

/// Announcements kept to be replayed.
const SAID_MAX: usize = 4096;
/// Bytes that the two certificates of an announcement have.
const CHAIN_BYTES: usize = 1100;

impl World {
    /// An empty world.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            start: Instant::now(),
            now: Duration::ZERO,
            nodes: vec![],
            cables: vec![],
            by_address: HashMap::new(),
            by_link: HashMap::new(),
            queue: BinaryHeap::new(),
            events: HashMap::new(),
            serial: 0,
            weather: Weather::default(),
            verified: HashMap::new(),
            said: vec![],
            counts: Counts::default(),
            changed: Duration::ZERO,
            trace: 0,
            chain: Bytes::from(vec![7; CHAIN_BYTES]),
        }
    }

    /// Hash of all that was delivered, when and to whom.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    /// What has happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds a node, which is down; its index.
    ///
    /// # Panics
    /// Never: the names made here are valid.
    pub fn add(&mut self, role: Role) -> usize {
        let index = self.nodes.len();
        let identity = Identity {
            mesh: "sim".parse().expect("a valid name"),
            cluster: "main".parse().expect("a valid name"),
            role,
            node: format!("n{index}").parse().expect("a valid name"),
            address: Address(100 + index as u32),
        };
        self.by_address.insert(identity.address, index);
        let node =
            Node { identity, epoch: 0, router: None, ahead: Duration::ZERO, timer: None, cables: vec![] };
        self.nodes.push(node);
        index
    }

    /// Lays a cable, which is cut; its index.
    pub fn lay(&mut self, a: usize, b: usize, cost: u32, latency: Duration, jitter_ms: usize) -> usize {
        let index = self.cables.len();
        self.cables.push(Cable {
            ends: [a, b],
            cost,
            latency,
            jitter_ms,
            live: None,
            up: [false; 2],
            deaf: [false; 2],
            last: [Duration::ZERO; 2],
        });
        self.nodes[a].cables.push(index);
        self.nodes[b].cables.push(index);
        index
    }

    /// Starts the process of a node, with the epoch of its first start if it lost its disk. It links at once with
    /// whoever lives.
    pub fn boot(&mut self, node: usize, epoch_lost: bool) {
        let state = &mut self.nodes[node];
        state.epoch = if epoch_lost { 1 } else { state.epoch + 1 };
        let at = self.start + self.now + state.ahead;
        state.router = Some(Router::new(state.identity.clone(), state.epoch, "sim".into(), at));
        state.timer = None;
        self.drain(node);
        for cable in self.nodes[node].cables.clone() {
            self.join(cable);
        }
    }

    /// Ends the process of a node; its neighbours notice after `noticed` milliseconds.
    pub fn kill(&mut self, node: usize, noticed: (usize, usize)) {
        self.nodes[node].router = None;
        for cable in self.nodes[node].cables.clone() {
            self.cut(cable, noticed);
        }
    }

    /// Links the two ends of `cable`, which hear of it one after the other.
    pub fn join(&mut self, cable: usize) {
        let Cable { ends, live: None, .. } = self.cables[cable] else { return };
        if ends.iter().any(|&end| self.nodes[end].router.is_none()) {
            return;
        }
        self.serial += 1;
        let link = LinkId(self.serial);
        let state = &mut self.cables[cable];
        (state.live, state.up, state.deaf) = (Some(link), [false; 2], [false; 2]);
        self.by_link.insert(link, cable);
        for end in 0..2 {
            let after = self.random.millis(0, 50);
            self.schedule(after, Event::Up { cable, link, end });
        }
    }

    /// Cuts `cable`; each end notices in its own time, later than any news of the link that is still under way.
    pub fn cut(&mut self, cable: usize, noticed: (usize, usize)) {
        let Some(link) = self.cables[cable].live.take() else { return };
        self.by_link.remove(&link);
        for node in self.cables[cable].ends {
            let after = self.random.millis(noticed.0, noticed.1);
            self.schedule(after, Event::Down { link, node });
        }
    }

    /// Loses what is for one end of `cable`, which that end notices as silence, until it is mended or cut.
    pub fn deafen(&mut self, cable: usize, end: usize) {
        let Some(link) = self.cables[cable].live else { return };
        self.cables[cable].deaf[end] = true;
        let after = self.random.millis(300, 1500);
        self.schedule(after, Event::Silent { cable, link, end, silent: true });
    }

    /// Lets that end hear again.
    pub fn undeafen(&mut self, cable: usize, end: usize) {
        let Some(link) = self.cables[cable].live else { return };
        self.cables[cable].deaf[end] = false;
        let after = self.random.millis(1500, 2000);
        self.schedule(after, Event::Silent { cable, link, end, silent: false });
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    fn schedule_at(&mut self, at: Duration, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((at, self.serial)));
        self.events.insert(self.serial, event);
    }

    fn input(&mut self, node: usize, input: Input) {
        let at = self.start + self.now + self.nodes[node].ahead;
        if let Some(router) = &mut self.nodes[node].router {
            router.handle(input, at);
            self.drain(node);
        }
    }

    fn drain(&mut self, node: usize) {
        let at = self.start + self.now + self.nodes[node].ahead;
        loop {
            let Some(router) = &mut self.nodes[node].router else { return };
            match router.poll_effect() {
                None => break,
                Some(Effect::Routes(changes)) => {
                    debug_assert!(
                        changes.iter().all(|(to, route)| router.routes().get(*to) == route.as_ref())
                    );
                    self.counts.routes += changes.len() as u64;
                    self.changed = self.now;
                }
                Some(Effect::Sign { body }) => {
                    let announcement = self.sign(node, body);
                    if let Some(router) = &mut self.nodes[node].router {
                        router.handle(Input::Signed { announcement }, at);
                    }
                }
                Some(Effect::Send { link, message }) => self.send(node, link, message),
                Some(Effect::Doubt { .. } | Effect::Unknown(_)) => {}
            }
        }
        self.set_timer(node);
    }

    fn set_timer(&mut self, node: usize) {
        let state = &self.nodes[node];
        let Some(due) = state.router.as_ref().and_then(Router::poll_timeout) else { return };
        let due = due.saturating_duration_since(self.start + state.ahead).max(self.now);
        if state.timer.is_none_or(|set| due < set || set < self.now) {
            self.nodes[node].timer = Some(due);
            self.schedule_at(due, Event::Timer { node });
        }
    }

    /// The shell's part: a signature that nobody else can make, for who cannot alter `verified`.
    fn sign(&mut self, node: usize, body: Vec<u8>) -> VerifiedAnnouncement {
        let signature = Bytes::from(vec![9; 64]);
        let signed = SignedAnnouncement { body: body.into(), signature, chain: vec![self.chain.clone()] };
        let announcement = VerifiedAnnouncement::new(self.nodes[node].identity.clone(), signed)
            .expect("a router says what a router takes");
        self.verified.insert(announcement.signed().body.clone(), announcement.clone());
        let at = if self.said.len() < SAID_MAX { self.said.len() } else { self.random.below(SAID_MAX) };
        match self.said.get_mut(at) {
            Some(old) => *old = announcement.clone(),
            None => self.said.push(announcement.clone()),
        }
        announcement
    }

    fn send(&mut self, from: usize, link: LinkId, message: LinkMessageKind) {
        let Some(&cable) = self.by_link.get(&link) else { return };
        let end = usize::from(self.cables[cable].ends[0] == from);
        let Weather { lost, doubled, late, forged } = self.weather;
        if lost + doubled + late + forged > 0 {
            if self.random.permille(lost) {
                return;
            }
            if self.random.permille(doubled) {
                self.carry(cable, link, end, message.clone(), true);
            }
            if self.random.permille(late) {
                return self.carry(cable, link, end, message, true);
            }
            if let LinkMessageKind::Announcement(signed) = &message
                && self.random.permille(forged)
            {
                let mut body = signed.body.to_vec();
                let at = self.random.below(body.len());
                body[at] ^= 1 << self.random.below(8);
                let altered = SignedAnnouncement { body: body.into(), ..signed.clone() };
                self.carry(cable, link, end, LinkMessageKind::Announcement(altered), false);
            }
        }
        self.carry(cable, link, end, message, false);
    }

    fn carry(&mut self, cable: usize, link: LinkId, end: usize, message: LinkMessageKind, late: bool) {
        let jitter_ms = self.cables[cable].jitter_ms;
        let jitter = if jitter_ms > 0 { self.random.millis(0, jitter_ms) } else { Duration::ZERO };
        let delay = if late { self.random.millis(1, 3000) } else { Duration::ZERO };
        let Cable { latency, last, .. } = &mut self.cables[cable];
        let at = if late {
            self.now + *latency + jitter + delay
        } else {
            last[end] = (self.now + *latency + jitter).max(last[end]);
            last[end]
        };
        self.schedule_at(at, Event::Message { cable, link, end, message });
    }

    /// Lets `span` of virtual time pass.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(&Reverse((at, serial))) = self.queue.peek().filter(|Reverse((at, _))| *at <= end) {
            self.queue.pop();
            self.now = self.now.max(at);
            if let Some(event) = self.events.remove(&serial) {
                self.happen(event);
            }
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Up { cable, link, end } => {
                if self.cables[cable].live == Some(link) {
                    self.cables[cable].up[end] = true;
                    let Cable { ends, cost, .. } = &self.cables[cable];
                    let (node, cost, peer) = (ends[end], *cost, ends[1 - end]);
                    let peer = self.nodes[peer].identity.clone();
                    self.input(node, Input::LinkUp { link, peer, cost });
                }
            }
            Event::Down { link, node } => self.input(node, Input::LinkDown { link }),
            Event::Silent { cable, link, end, silent } => {
                let Cable { ends, live, deaf, .. } = &self.cables[cable];
                if *live == Some(link) && deaf[end] == silent {
                    self.input(ends[end], Input::LinkSilent { link, silent });
                }
            }
            Event::Message { cable, link, end, message } => self.deliver(cable, link, end, message),
            Event::Timer { node } => {
                if self.nodes[node].timer == Some(self.now) {
                    self.nodes[node].timer = None;
                    let at = self.start + self.now + self.nodes[node].ahead;
                    if let Some(router) = &mut self.nodes[node].router {
                        router.handle_timeout(at);
                        self.drain(node);
                    }
                }
            }
        }
    }

    fn deliver(&mut self, cable: usize, link: LinkId, end: usize, message: LinkMessageKind) {
        let Cable { ends, live, up, deaf, .. } = &self.cables[cable];
        if *live != Some(link) || deaf[end] {
            return;
        }
        let node = ends[end];
        if !up[end] {
            // The shell reads nothing from a link before it is up at this end.
            let after = Duration::from_millis(5);
            return self.schedule(after, Event::Message { cable, link, end, message });
        }
        let message = LinkMessage { kind: Some(message) };
        let bytes = message.encoded_len() + 4;
        let Some(kind) = message.kind else { return };
        self.counts.messages += 1;
        self.counts.bytes += bytes as u64;
        let stamp = self.now.as_nanos() as u64 ^ (node as u64) << 48 ^ (bytes as u64) << 40;
        self.trace = (self.trace ^ stamp).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
        let input = match kind {
            LinkMessageKind::Announcement(signed) => {
                self.counts.announcements += 1;
                match self.verified.get(&signed.body) {
                    Some(announcement) => {
                        Some(Input::Announcement { link, announcement: announcement.clone() })
                    }
                    None => {
                        self.counts.forgeries += 1;
                        None
                    }
                }
            }
            other => Input::heard(link, other),
        };
        if let Some(input) = input {
            self.input(node, input);
        }
    }

    fn router(&self, node: usize) -> Option<&Router> {
        self.nodes[node].router.as_ref()
    }

    fn other_end(&self, cable: usize, node: usize) -> usize {
        let ends = self.cables[cable].ends;
        ends[usize::from(ends[0] == node)]
    }

    fn address(&self, node: usize) -> Address {
        self.nodes[node].identity.address
    }

    fn transits(&self, node: usize) -> bool {
        self.nodes[node].identity.role == Role::Hop
    }

    /// Whether the ends of `cable` are linked and hear each other.
    fn is_well(&self, cable: usize) -> bool {
        let Cable { live, deaf, .. } = &self.cables[cable];
        live.is_some() && *deaf == [false; 2]
    }

    /// Follows next hops from `from` to `to`; the nodes on the way and the cost of the cables, or where it ended.
    fn walk(&self, from: usize, to: usize) -> Result<u64, String> {
        let (mut at, mut cost, mut seen) = (from, 0, BTreeSet::from([from]));
        let address = self.address(to);
        while at != to {
            if at != from && !self.transits(at) {
                return Err(format!("transits n{at}, which is no hop"));
            }
            let router = self.router(at).ok_or(format!("n{at} is down"))?;
            let route = router.routes().get(address).ok_or(format!("no route at n{at}"))?;
            let cable = self.by_link.get(&route.next.link).filter(|c| self.cables[**c].ends.contains(&at));
            let &cable = cable.ok_or(format!("n{at} uses a dead link"))?;
            if route.backup.is_some_and(|backup| backup.link == route.next.link) {
                return Err(format!("n{at} has no other way out in {route:?}"));
            }
            cost += u64::from(self.cables[cable].cost);
            at = self.other_end(cable, at);
            if !seen.insert(at) {
                return Err(format!("loops at n{at}"));
            }
        }
        Ok(cost)
    }
}

//! What is known of the mesh, and where to forward: a link-state router as a pure state machine.
//!
//! The [`Router`] owns the map (the newest announcement of every origin, as the bytes that were signed) and the
//! table of routes derived from it. It knows no socket, clock, randomness or cryptography. A shell feeds it
//! [`Input`]s together with the time, drains [`Effect`]s after each, and calls
//! [`handle_timeout`](Router::handle_timeout) when [`poll_timeout`](Router::poll_timeout) says so.
//!
//! * A node announces its own links only, signed, versioned by epoch (persisted, one higher at each start) and
//!   sequence. Hops and controllers keep the newest of everybody; hops pass it on once, to hops and controllers. Who
//!   sends an older one is sent the newer. Should an origin lose its epoch and give one version twice, the greater
//!   bytes count until it meets its earlier self and goes above it.
//! * What a flood missed is repaired by digests, when a link comes up, soon after somebody new came within reach, and
//!   every [`DIGEST_PERIOD`]: a sum first, and only where sums differ what they are of. A digest covers only
//!   origins that can be reached, so nothing that left the mesh is handed around for ever.
//! * A link counts when both its ends announce it. Only hops transit.
//! * Execution nodes keep no map: hops tell them what controllers cost, and whom else they ask for.
//! * A link that fell silent counts as one of the greatest cost: it is left at once if there is any other way, and
//!   nobody becomes unreachable because a machine was busy. For [`PRESUMED`] the neighbour behind it is presumed
//!   dead, for nobody else may have noticed yet.
//!
//! After quiet all maps are equal where they matter, and costs are positive: each step of a route brings its
//! packet strictly nearer, so there are no loops.

mod announcement;
mod by_address;
mod digest;
mod graph;
mod links;
mod table;
mod told;
mod wants;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plexus_proto::id::Role;
use plexus_proto::id::{Address, Identity, NodeId};
use plexus_proto::link::{Ask, Digest, LinkMessageKind, SignedAnnouncement, Told, Want};

pub use announcement::{AnnouncementError, LINKS_MAX, VerifiedAnnouncement, Version};
use announcement::{COST_MAX, clamp_cost, clamp_software};
pub(crate) use by_address::ByAddress;
use digest::Islands;
use graph::{Graph, Length, Tree};
use links::{Link, Links};
pub use table::{NextHop, Route, RouteChange, Routes};
use told::{Asked, Telling};
use wants::{WANT_BATCH, Wants};

/// How often neighbors compare what they hold. A flood that was lost on a full queue is repaired within it.
pub const DIGEST_PERIOD: Duration = Duration::from_secs(30);
/// How soon they compare after somebody new came within reach: a digest sent a moment earlier left it out.
const DIGEST_SOON: Duration = Duration::from_millis(250);
/// How long an origin is remembered that cannot be reached.
pub const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);
/// How long a neighbor is taken for dead whose link was lost or fell silent: until its other neighbors have noticed,
/// who look at once when they hear of it.
pub const PRESUMED: Duration = Duration::from_secs(1);
/// Origins kept at most. Strangers cannot fill it: each origin is a certified node.
const ORIGINS_MAX: usize = 1 << 16;
/// Own announcements that may go out at once; a start with a few links, or a change of several, waits for nothing.
const SIGN_BURST: u32 = 8;
/// Then one in this time: a link that flaps must not flood the mesh.
const SIGN_PERIOD: Duration = Duration::from_millis(250);

/// One live link of this process: several may lead to one neighbor. Never used again in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What happens to a router.
#[derive(Debug, Clone)]
pub enum Input {
    /// A link to the certified `peer` is up.
    LinkUp {
        /// Its id from now on.
        link: LinkId,
        /// Who is at the other end.
        peer: Identity,
        /// Agreed cost; taken as at least 1 and at most 65,536.
        cost: u32,
    },
    /// A link is gone.
    LinkDown {
        /// Which.
        link: LinkId,
    },
    /// A link that is up has fallen silent, or is heard again.
    LinkSilent {
        /// Which.
        link: LinkId,
        /// Whether nothing is heard.
        silent: bool,
    },
    /// A neighbor passed on an announcement; the shell has verified it.
    Announcement {
        /// From where.
        link: LinkId,
        /// What.
        announcement: VerifiedAnnouncement,
    },
    /// A neighbor passed on what is held already, see [`Router::holds`].
    Repeated {
        /// From where.
        link: LinkId,
        /// What.
        signed: SignedAnnouncement,
    },
    /// A neighbor says what it holds.
    Digest {
        /// From where.
        link: LinkId,
        /// What.
        digest: Digest,
    },
    /// A neighbor asks for announcements.
    Want {
        /// From where.
        link: LinkId,
        /// Which.
        want: Want,
    },
    /// Who asks what this node has would hear something new.
    News,
    /// Our certificate was renewed: what we announced is to be signed anew, with the new chain beside it.
    Renewed,
    /// A hop tells a node without a map the way.
    Told {
        /// From where.
        link: LinkId,
        /// What.
        told: Told,
    },
    /// A node without a map asks for it.
    Ask {
        /// From where.
        link: LinkId,
        /// For whom.
        ask: Ask,
    },
    /// Somebody here wants to reach nodes that are not known. Where a map is kept there is nothing more to know.
    Lookup {
        /// By address.
        addresses: Vec<Address>,
        /// By name; what becomes of each is an announcement or [`Effect::Unknown`].
        names: Vec<NodeId>,
    },
    /// The body of an [`Effect::Sign`], signed.
    Signed {
        /// Our own announcement.
        announcement: VerifiedAnnouncement,
    },
}

impl Input {
    /// The input that a neighbor's message is; none if it is not for the router, or an announcement, which has to be
    /// verified first.
    pub fn heard(link: LinkId, message: LinkMessageKind) -> Option<Self> {
        match message {
            LinkMessageKind::Digest(digest) => Some(Self::Digest { link, digest }),
            LinkMessageKind::Want(want) => Some(Self::Want { link, want }),
            LinkMessageKind::Told(told) => Some(Self::Told { link, told }),
            LinkMessageKind::Ask(ask) => Some(Self::Ask { link, ask }),
            _ => None,
        }
    }
}

/// What a router wants done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Send to a neighbor. May be dropped when that link's queue is full: digests repair it.
    Send {
        /// Where to.
        link: LinkId,
        /// What.
        message: LinkMessageKind,
    },
    /// Sign these bytes as our announcement and hand it back as [`Input::Signed`].
    Sign {
        /// Encoded announcement.
        body: Vec<u8>,
    },
    /// These routes are others now.
    Routes(Vec<RouteChange>),
    /// Somebody else has lost the neighbor at the end of this link: see at once whether it lives.
    Doubt {
        /// Which link.
        link: LinkId,
    },
    /// No hop knows this name.
    Unknown(NodeId),
}

/// A node that announced itself, or this one.
#[derive(Debug, Clone, Copy)]
pub struct KnownNode<'a> {
    /// Who it is.
    pub identity: &'a Identity,
    /// What it runs, as it says.
    pub software: &'a str,
    /// Services that it offers, as it says.
    pub services: &'a [String],
    /// Its newest announcement.
    pub version: Version,
    /// How often it had news in this epoch, as it says.
    pub news: u64,
    /// Neighbors that it announces, with cost; the other end may not agree.
    pub links: &'a BTreeMap<Address, u32>,
    /// Whether there is a way to it; true for this node itself.
    pub reachable: bool,
    /// The way to it; none to this node itself.
    pub route: Option<Route>,
    /// Since when it has been reachable, or not.
    pub since: Instant,
}

#[derive(Debug)]
struct Origin {
    newest: VerifiedAnnouncement,
    reachable: bool,
    since: Instant,
    /// When its newest announcement came.
    heard: Instant,
}

/// The router of one node.
#[derive(Debug)]
pub struct Router {
    me: Identity,
    software: String,
    started: Instant,
    links: Links,
    /// When the youngest of them came up.
    newest_link: Instant,
    /// The newest announcement of every other node, or where no map is kept of those that matter here.
    origins: BTreeMap<Address, Origin>,
    own: Own,
    /// Neighbors taken for dead until then.
    presumed: BTreeMap<Address, Instant>,
    graph: Graph,
    /// By neighboring hop.
    trees: BTreeMap<Address, Tree>,
    /// Destinations whose routes are to be looked at again, or all of them.
    stale: BTreeSet<Address>,
    all_stale: bool,
    own_edges_changed: bool,
    /// Counts rounds of computing, and changes of what digests are about.
    generation: u32,
    revision: u64,
    routes: Routes,
    islands: Islands,
    /// Origins that every node without a map is told of.
    controllers: BTreeSet<Address>,
    /// Who is asked for by which links.
    askers: BTreeMap<Address, BTreeSet<LinkId>>,
    asked: Asked,
    digest_at: Instant,
    effects: VecDeque<Effect>,
}

/// Our own announcement.
#[derive(Debug)]
struct Own {
    /// The newest version that was given out, be it signed yet or not.
    version: Version,
    /// What it says.
    links: BTreeMap<Address, u32>,
    /// What is true now; what we count with ourselves.
    now: BTreeMap<Address, u32>,
    /// That version, once it came back signed.
    signed: Option<VerifiedAnnouncement>,
    /// How often there was news.
    news: u64,
    /// Another one is due: something changed since.
    stale: bool,
    tokens: u32,
    refilled: Instant,
}

impl Router {
    /// A router that knows only itself. `epoch` is higher than at any earlier start of this node; should it be
    /// lost, the router goes above what the mesh remembers of it.
    pub fn new(me: Identity, epoch: u64, software: String, now: Instant) -> Self {
        let own = Own {
            version: Version { epoch, sequence: 0 },
            links: BTreeMap::new(),
            now: BTreeMap::new(),
            signed: None,
            news: 0,
            stale: true,
            tokens: SIGN_BURST,
            refilled: now,
        };
        let mut router = Self {
            me,
            software: clamp_software(software),
            started: now,
            links: Links::default(),
            newest_link: now,
            origins: BTreeMap::new(),
            own,
            presumed: BTreeMap::new(),
            graph: Graph::default(),
            trees: BTreeMap::new(),
            stale: BTreeSet::new(),
            all_stale: false,
            own_edges_changed: false,
            generation: 0,
            revision: 1,
            routes: Routes::default(),
            islands: Islands::default(),
            controllers: BTreeSet::new(),
            askers: BTreeMap::new(),
            asked: Asked::default(),
            digest_at: now + DIGEST_PERIOD,
            effects: VecDeque::new(),
        };
        router.sign_if_due(now);
        router
    }

    /// Takes one input. Messages of links that are not up are ignored.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::LinkUp { link, peer, cost } => self.on_link_up(link, peer, cost, now),
            Input::LinkDown { link } => self.on_link_down(link, now),
            Input::LinkSilent { link, silent } => self.on_link_silent(link, silent, now),
            Input::Announcement { link, announcement } => self.on_announcement(link, announcement, now),
            Input::Repeated { link, signed } => self.on_repeated(link, &signed, now),
            Input::Digest { link, digest } => self.on_digest(link, &digest, now),
            Input::Want { link, want } => self.on_want(link, &want),
            Input::Told { link, told } => self.on_told(link, &told),
            Input::Ask { link, ask } => self.on_ask(link, &ask),
            Input::Lookup { addresses, names } => self.on_lookup(&addresses, &names),
            Input::News => (self.own.news, self.own.stale) = (self.own.news + 1, true),
            Input::Renewed => self.own.stale = true,
            Input::Signed { announcement } => self.on_signed(announcement),
        }
        self.sign_if_due(now);
        self.compute_if_stale(now);
    }

    /// Does what is due at `now`; harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.revive(now);
        if now >= self.digest_at {
            self.digest_at = now + DIGEST_PERIOD;
            self.forget(now);
            let links: Vec<LinkId> = self.links.keys().copied().collect();
            for link in links {
                self.send_digest(link);
            }
        }
        self.sign_if_due(now);
        self.compute_if_stale(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sign_at = self.own.stale.then(|| self.own.refilled + SIGN_PERIOD);
        [Some(self.digest_at), sign_at, self.presumed.values().min().copied()].into_iter().flatten().min()
    }

    /// The next thing to do. Drained until `None` after every call that takes the time.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The table as it is.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Whether this node keeps the map of the mesh; hops and controllers do.
    pub fn keeps_map(&self) -> bool {
        self.me.role != Role::Execution
    }

    /// Whether `signed` is what is held already; then there is nothing in it to verify, and [`Input::Repeated`] says that
    /// it came.
    pub fn holds(&self, signed: &SignedAnnouncement) -> bool {
        announcement::origin(signed)
            .and_then(|origin| self.origins.get(&origin))
            .is_some_and(|known| known.newest.signed.body == signed.body)
    }

    /// This node, then every node whose announcement is kept, by address. A node without a map lists its neighbors
    /// too, whom it knows from their links.
    pub fn nodes(&self) -> impl Iterator<Item = KnownNode<'_>> {
        let me = KnownNode {
            identity: &self.me,
            software: &self.software,
            services: &[],
            version: self.own.version,
            news: self.own.news,
            links: &self.own.links,
            reachable: true,
            route: None,
            since: self.started,
        };
        let others = self.origins.iter().map(|(&address, origin)| KnownNode {
            identity: &origin.newest.identity,
            software: &origin.newest.software,
            services: &origin.newest.services,
            version: origin.newest.version,
            news: origin.newest.news,
            links: &origin.newest.links,
            reachable: origin.reachable,
            route: self.routes.get(address).copied(),
            since: origin.since,
        });
        std::iter::once(me).chain(others).chain(self.neighbors_met())
    }

    fn neighbors_met(&self) -> impl Iterator<Item = KnownNode<'_>> {
        static NO_LINKS: BTreeMap<Address, u32> = BTreeMap::new();
        let mut met: BTreeMap<Address, &Link> = BTreeMap::new();
        for link in self.links.values().filter(|_| !self.keeps_map()) {
            if !self.origins.contains_key(&link.peer.address) {
                met.entry(link.peer.address).or_insert(link);
            }
        }
        met.into_iter().map(|(address, link)| KnownNode {
            identity: &link.peer,
            software: "",
            services: &[],
            version: Version { epoch: 0, sequence: 0 },
            news: 0,
            links: &NO_LINKS,
            reachable: true,
            route: self.routes.get(address).copied(),
            since: link.since,
        })
    }

    /// The node of that name; the reachable one, should an earlier holder of the name be remembered too.
    pub fn find(&self, node: &NodeId) -> Option<KnownNode<'_>> {
        self.nodes().filter(|known| known.identity.node == *node).max_by_key(|known| known.reachable)
    }

    fn on_link_up(&mut self, link: LinkId, peer: Identity, cost: u32, now: Instant) {
        if peer.address == self.me.address {
            return; // A link to ourselves leads nowhere.
        }
        let role = peer.role;
        let new = Link {
            peer: peer.clone(),
            cost: clamp_cost(cost),
            silent: false,
            wants: Wants::default(),
            telling: Telling::default(),
            since: now,
        };
        let neighbor = peer.address;
        self.links.insert(link, new);
        self.newest_link = now;
        if self.presumed.remove(&neighbor).is_some() {
            self.weigh_all(neighbor);
        }
        self.links_changed(&peer);
        self.compute_if_stale(now);
        // The neighbor is told what we are as soon as that is signed anew, or now if nothing changed.
        if let Some(own) = self.own.signed.as_ref().map(|own| Arc::clone(&own.signed))
            && !self.own.stale
            && self.shows_own(role)
        {
            self.send_announcement(link, &own);
        }
        if self.compares_islands(link) {
            self.send_digest(link);
        }
        self.ask_again(link);
    }

    fn on_link_down(&mut self, link: LinkId, now: Instant) {
        let Some(gone) = self.links.remove(link) else { return };
        self.unask(link, &gone.telling);
        self.presume_dead(&gone.peer, now);
        self.links_changed(&gone.peer);
    }

    fn on_link_silent(&mut self, link: LinkId, silent: bool, now: Instant) {
        let Some(known) = self.links.get_mut(&link).filter(|known| known.silent != silent) else { return };
        known.silent = silent;
        let peer = known.peer.clone();
        if silent {
            self.presume_dead(&peer, now);
        } else if self.presumed.remove(&peer.address).is_some() {
            self.weigh_all(peer.address);
        }
        self.links_changed(&peer);
    }

    /// Takes a hop for dead to which no live link is left.
    fn presume_dead(&mut self, peer: &Identity, now: Instant) {
        let lives = self.links.to(peer.address).any(|(_, link)| !link.silent);
        if peer.role == Role::Hop && self.keeps_map() && !lives {
            self.presumed.insert(peer.address, now + PRESUMED);
            self.weigh_all(peer.address);
        }
    }

    fn revive(&mut self, now: Instant) {
        let over: Vec<Address> =
            self.presumed.iter().filter(|(_, until)| **until <= now).map(|(&hop, _)| hop).collect();
        for hop in over {
            self.presumed.remove(&hop);
            self.weigh_all(hop);
        }
    }

    /// A link to `peer` came, went, or costs something else.
    fn links_changed(&mut self, peer: &Identity) {
        let least = self.links.to(peer.address).map(|(_, link)| link.cost_now()).min();
        let before = match least {
            Some(cost) => self.own.now.insert(peer.address, cost),
            None => self.own.now.remove(&peer.address),
        };
        if self.own.now != self.own.links {
            self.own.stale = true;
        }
        if before != least && self.keeps_map() {
            self.weigh(self.me.address, peer.address);
        }
        self.own_edge_changed(peer.address, peer.role == Role::Hop);
    }

    /// A link of this node to `other` has changed. What does not transit concerns nobody else's route.
    fn own_edge_changed(&mut self, other: Address, transits: bool) {
        self.own_edges_changed = true;
        if transits || !self.keeps_map() {
            self.all_stale = true;
        } else {
            self.stale.insert(other);
        }
    }

    fn on_announcement(&mut self, link: LinkId, new: VerifiedAnnouncement, now: Instant) {
        let Some(from) = self.links.get_mut(&link) else { return };
        let address = new.identity.address;
        if let Some(want) = from.wants.arrived(address, now) {
            self.effects.push_back(Effect::Send { link, message: LinkMessageKind::Want(want) });
        }
        if address == self.me.address {
            self.on_own_announcement(link, &new);
            return;
        }
        let held = self.origins.get(&address).map(|known| &known.newest);
        match held.map(|held| (new.order().cmp(&held.order()), Arc::clone(&held.signed))) {
            Some((Ordering::Equal, _)) => return,
            Some((Ordering::Less, newer)) => {
                if self.keeps_map() {
                    self.send_announcement(link, &newer);
                }
                return;
            }
            Some((Ordering::Greater, _)) => {}
            None if !self.keeps_map() && !self.cares_for(&new.identity) => return,
            None if self.make_room() => {}
            None => return,
        }
        self.pass_on(&new.signed, link);
        self.keep(new, now);
    }

    fn on_repeated(&mut self, link: LinkId, signed: &SignedAnnouncement, now: Instant) {
        let Some(from) = self.links.get_mut(&link) else { return };
        let Some(origin) = announcement::origin(signed) else { return };
        if let Some(want) = from.wants.arrived(origin, now) {
            self.send(link, LinkMessageKind::Want(want));
        }
    }

    fn keep(&mut self, new: VerifiedAnnouncement, now: Instant) {
        let address = new.identity.address;
        let role = new.identity.role;
        if self.origins.get(&address).is_some_and(|known| known.newest.identity.role != role) {
            self.drop_origin(address); // Enrolled anew as something else.
        }
        self.revision += 1;
        if role == Role::Controller {
            self.controllers.insert(address);
        }
        let origin = Origin { newest: new, reachable: false, since: now, heard: now };
        match self.origins.insert(address, origin) {
            Some(before) => {
                if let Some(known) = self.origins.get_mut(&address) {
                    (known.reachable, known.since) = (before.reachable, before.since);
                }
                self.weigh_differences(address, &before.newest.links);
                if self.me.role == Role::Hop {
                    self.retell(std::iter::once(address));
                }
            }
            None => {
                self.weigh_differences(address, &BTreeMap::new());
                self.stale.insert(address);
                if !self.keeps_map()
                    && self.routes.get(address).is_some()
                    && let Some(known) = self.origins.get_mut(&address)
                {
                    known.reachable = true;
                }
            }
        }
    }

    /// Somebody remembers us. What is above our own version, or the same with other content, was said by an
    /// earlier process whose epoch we have lost: go above it.
    fn on_own_announcement(&mut self, link: LinkId, met: &VerifiedAnnouncement) {
        if met.identity != self.me {
            return;
        }
        match (met.version.cmp(&self.own.version), &self.own.signed) {
            (Ordering::Less, None) => {}
            (Ordering::Equal, Some(own)) if own.signed.body == met.signed.body => {}
            (Ordering::Less, Some(own)) => {
                let newer = Arc::clone(&own.signed);
                self.send_announcement(link, &newer);
            }
            (Ordering::Equal | Ordering::Greater, _) => {
                self.own.version = met.version;
                self.own.signed = None;
                self.own.stale = true;
            }
        }
    }

    fn on_signed(&mut self, announcement: VerifiedAnnouncement) {
        if announcement.identity != self.me
            || announcement.version != self.own.version
            || self.own.signed.is_some()
        {
            return; // Overtaken by a newer one, which is being signed.
        }
        let signed = Arc::clone(&announcement.signed);
        self.own.signed = Some(announcement);
        self.revision += 1;
        let links: Vec<LinkId> = self.links.keepers().map(|(id, _)| id).collect();
        for link in links {
            self.send_announcement(link, &signed);
        }
    }

    /// Whether a neighbor of that role keeps our announcement. Nodes without a map know their neighbors by their
    /// links, and of controllers behind a hop they are told.
    fn shows_own(&self, role: Role) -> bool {
        role != Role::Execution
    }

    fn on_want(&mut self, link: LinkId, want: &Want) {
        if !self.links.contains_key(&link) {
            return;
        }
        // A set: naming one origin a thousand times gets it once.
        let wanted: BTreeSet<u32> = want.origins.iter().copied().collect();
        for origin in wanted.into_iter().take(WANT_BATCH) {
            let held = if origin == self.me.address.0 {
                self.own.signed.as_ref()
            } else {
                self.origins.get(&Address(origin)).map(|known| &known.newest)
            };
            if let Some(signed) = held.map(|held| Arc::clone(&held.signed)) {
                self.send_announcement(link, &signed);
            }
        }
    }

    fn want(&mut self, link: LinkId, lacking: impl Iterator<Item = u32>, now: Instant) {
        let Some(from) = self.links.get_mut(&link) else { return };
        if let Some(want) = from.wants.add(lacking, now) {
            self.send(link, LinkMessageKind::Want(want));
        }
    }

    fn forget(&mut self, now: Instant) {
        let forgotten = |o: &Origin| !o.reachable && now.saturating_duration_since(o.since) >= FORGET_AFTER;
        let gone: Vec<Address> = self
            .origins
            .iter()
            .filter(|(_, origin)| forgotten(origin))
            .map(|(&address, _)| address)
            .collect();
        gone.into_iter().for_each(|address| self.drop_origin(address));
    }

    /// Room for one more origin: at the limit, whoever has been unreachable longest is forgotten.
    fn make_room(&mut self) -> bool {
        if self.origins.len() < ORIGINS_MAX {
            return true;
        }
        let gone = self.origins.iter().filter(|(_, o)| !o.reachable).min_by_key(|(_, o)| o.since);
        let Some(gone) = gone.map(|(&address, _)| address) else { return false };
        self.drop_origin(gone);
        true
    }

    fn drop_origin(&mut self, address: Address) {
        let Some(gone) = self.origins.remove(&address) else { return };
        let hop = gone.newest.identity.role == Role::Hop;
        for &other in gone.newest.links.keys() {
            match (hop, self.is_hop(other)) {
                (true, true) => self.graph.link_hops(address, other, Length::NONE),
                (true, false) => self.graph.link_leaf(other, address, Length::NONE),
                (false, true) => self.graph.link_leaf(address, other, Length::NONE),
                (false, false) => {}
            }
        }
        self.controllers.remove(&address);
        self.stale.insert(address);
        self.revision += 1;
    }

    /// Puts the links of `node`, somebody else, into the graph that are not as in `before`.
    fn weigh_differences(&mut self, node: Address, before: &BTreeMap<Address, u32>) {
        if !self.keeps_map() {
            return;
        }
        let empty = BTreeMap::new();
        let now = self.origins.get(&node).map_or(&empty, |known| &known.newest.links);
        let changed = differences(before, now);
        let lost: Vec<Address> = changed
            .iter()
            .filter(|at| now.get(at).is_none_or(|cost| *cost == COST_MAX) && before.contains_key(at))
            .copied()
            .collect();
        changed.into_iter().for_each(|other| self.weigh(node, other));
        if self.is_hop(node) {
            lost.into_iter().for_each(|hop| self.doubt(hop));
        }
    }

    /// Somebody else has lost `neighbor`.
    fn doubt(&mut self, neighbor: Address) {
        let links: Vec<LinkId> = self.links.to(neighbor).map(|(id, _)| id).collect();
        links.into_iter().for_each(|link| self.effects.push_back(Effect::Doubt { link }));
    }

    /// Puts every link of `node` into the graph again.
    fn weigh_all(&mut self, node: Address) {
        let others: Vec<Address> =
            self.origins.get(&node).map_or(vec![], |known| known.newest.links.keys().copied().collect());
        others.into_iter().for_each(|other| self.weigh(node, other));
        self.all_stale = true;
    }

    fn weigh(&mut self, a: Address, b: Address) {
        let length = self.edge(a, b);
        match (self.is_hop(a), self.is_hop(b)) {
            (true, true) => self.graph.link_hops(a, b, length),
            (true, false) => self.graph.link_leaf(b, a, length),
            (false, true) => self.graph.link_leaf(a, b, length),
            (false, false) => {}
        }
        if a == self.me.address || b == self.me.address {
            let other = if a == self.me.address { b } else { a };
            let transits = |(_, link): (LinkId, &Link)| link.peer.role == Role::Hop;
            self.own_edge_changed(other, self.is_hop(other) || self.links.to(other).any(transits));
        }
    }

    fn is_hop(&self, node: Address) -> bool {
        let role = |known: &Origin| known.newest.identity.role;
        let role =
            if node == self.me.address { Some(self.me.role) } else { self.origins.get(&node).map(role) };
        role == Some(Role::Hop)
    }

    /// Length of a link: the dearer of what its ends say, so that both directions take the same way; none unless
    /// both announce it.
    fn edge(&self, a: Address, b: Address) -> Length {
        match (self.says(a, b), self.says(b, a)) {
            (Some(there), Some(back)) => self.presumption(a, b).plus(Length::link(there.max(back))),
            _ => Length::NONE,
        }
    }

    fn presumption(&self, a: Address, b: Address) -> Length {
        let dead = self.presumed.contains_key(&a) || self.presumed.contains_key(&b);
        if dead { Length::told(COST_MAX, 0) } else { Length::ZERO }
    }

    /// What `node` says that its link to `other` costs.
    fn says(&self, node: Address, other: Address) -> Option<u32> {
        if node == self.me.address {
            return self.own.now.get(&other).copied();
        }
        self.origins.get(&node)?.newest.links.get(&other).copied()
    }

    /// Length of the first step over `link`, if both ends announce it.
    fn first(&self, link: LinkId) -> Option<Length> {
        let known = self.links.get(&link)?;
        let back = self.says(known.peer.address, self.me.address)?;
        let cost = known.cost_now().max(back);
        Some(self.presumption(self.me.address, known.peer.address).plus(Length::link(cost)))
    }

    /// Passes news on, which is a hop's to do.
    fn pass_on(&mut self, signed: &Arc<SignedAnnouncement>, from: LinkId) {
        if self.me.role != Role::Hop {
            return;
        }
        let others: Vec<LinkId> = self.links.keepers().map(|(id, _)| id).filter(|id| *id != from).collect();
        for link in others {
            self.send_announcement(link, signed);
        }
    }

    fn send_announcement(&mut self, link: LinkId, signed: &SignedAnnouncement) {
        // The bytes inside are shared, not copied.
        self.send(link, LinkMessageKind::Announcement(signed.clone()));
    }

    fn send(&mut self, link: LinkId, message: LinkMessageKind) {
        self.effects.push_back(Effect::Send { link, message });
    }

    fn sign_if_due(&mut self, now: Instant) {
        if !self.own.stale || !self.own.take_token(now) {
            return;
        }
        self.own.stale = false;
        self.own.links = self.own.now.clone();
        self.own.version = self.own.version.next();
        self.own.signed = None;
        let Own { version, links, news, .. } = &self.own;
        let body = announcement::encode(self.me.address, *version, links, &self.software, *news);
        self.effects.push_back(Effect::Sign { body });
    }

    fn compute_if_stale(&mut self, now: Instant) {
        if self.all_stale || !self.stale.is_empty() || self.graph.has_changed() {
            self.compute(now);
        }
    }
}

/// Keys of entries that are not the same in both.
fn differences(a: &BTreeMap<Address, u32>, b: &BTreeMap<Address, u32>) -> Vec<Address> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut differ = Vec::new();
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return differ,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let left = if order.is_le() { a.next() } else { None };
        let right = if order.is_ge() { b.next() } else { None };
        if left != right {
            differ.extend(left.or(right).map(|(at, _)| *at));
        }
    }
}

impl Own {
    fn take_token(&mut self, now: Instant) -> bool {
        while self.tokens < SIGN_BURST && self.refilled + SIGN_PERIOD <= now {
            self.tokens += 1;
            self.refilled += SIGN_PERIOD;
        }
        if self.tokens == SIGN_BURST {
            self.refilled = now;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests;

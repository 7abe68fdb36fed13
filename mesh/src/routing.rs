//! What is known of the mesh, and where to forward: a link-state router as a pure state machine.
//!
//! The [`Router`] owns the map (the newest announcement of every origin, as the bytes that were signed) and the
//! table of routes derived from it. It knows no socket, clock, randomness or cryptography. A shell feeds it
//! [`Input`]s together with the time, drains [`Effect`]s after each, and calls
//! [`handle_timeout`](Router::handle_timeout) when [`poll_timeout`](Router::poll_timeout) says so.
//!
//! * A node announces its own links only, signed, versioned by epoch (persisted, one higher at each start) and
//!   sequence. Newer announcements are kept and passed on once to all other links; who sends an older one is
//!   sent the newer. Should an origin lose its epoch and give one version twice, the greater bytes count until it
//!   meets its earlier self and goes above it.
//! * What a flood missed is repaired by digests, when a link comes up, soon after somebody new came within reach,
//!   and every [`DIGEST_PERIOD`]: a neighbor asks for what it holds older or not at all. A digest names only origins that its sender can reach, so nothing that
//!   left the mesh is handed around for ever.
//! * A link counts when both its ends announce it. Only hops transit.
//! * In this form every node keeps the whole map.
//!
//! After quiet all maps are equal where they matter, and costs are positive: each step of a route brings its
//! packet strictly nearer, so there are no loops.

mod announcement;
mod paths;
mod wants;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plexus_proto::id::{Address, Identity, NodeId};
use plexus_proto::link::{Digest, DigestEntry, LinkMessageKind, SignedAnnouncement, Want};

pub use announcement::{AnnouncementError, LINKS_MAX, VerifiedAnnouncement, Version};
use announcement::{clamp_cost, clamp_software};
use wants::{WANT_BATCH, Wants};

/// How often neighbors compare what they hold. A flood that was lost on a full queue is repaired within it.
pub const DIGEST_PERIOD: Duration = Duration::from_secs(30);
/// How soon they compare after somebody new came within reach: a digest sent a moment earlier left it out.
const DIGEST_SOON: Duration = Duration::from_millis(250);
/// How long an origin is remembered that cannot be reached.
pub const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);
/// Entries in one digest: a frame between neighbors holds 256 KiB, an entry at most 34 bytes.
const DIGEST_BATCH: usize = 4096;
/// Origins kept at most. Strangers cannot fill it: each origin is a certified node.
const ORIGINS_MAX: usize = 1 << 16;
/// Own announcements that may go out at once; a start with a few links, or a change of several, waits for nothing.
const SIGN_BURST: u32 = 8;
/// Then one in this time: a link that flaps must not flood the mesh.
const SIGN_PERIOD: Duration = Duration::from_millis(250);
/// Time between computations of all routes, per origin known. Computing takes well below a tenth of it.
const COMPUTE_PER_ORIGIN: Duration = Duration::from_micros(10);

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
    /// A neighbor passed on an announcement; the shell has verified it.
    Announcement {
        /// From where.
        link: LinkId,
        /// What.
        announcement: VerifiedAnnouncement,
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
    /// Our certificate was renewed: what we announced is to be signed anew, with the new chain beside it.
    Renewed,
    /// The body of an [`Effect::Sign`], signed.
    Signed {
        /// Our own announcement.
        announcement: VerifiedAnnouncement,
    },
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
    /// The table changed; this is the new one.
    Routes(Arc<Routes>),
}

/// One way out towards a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The link to send on.
    pub link: LinkId,
    /// Sum of the costs on the way, at most `u32::MAX`.
    pub cost: u32,
    /// Links crossed on the way.
    pub hops: u32,
}

/// How to reach a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The cheapest way.
    pub next: NextHop,
    /// The cheapest way that leaves by another link, if there is one. It may lead through nodes that would
    /// send the packet back; the hop limit ends that.
    pub second: Option<NextHop>,
}

/// The forwarding table: every node that can be reached, but not this one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    table: BTreeMap<Address, Route>,
}

impl Routes {
    /// How to reach `destination`; `None` when no live way is known.
    pub fn get(&self, destination: Address) -> Option<&Route> {
        self.table.get(&destination)
    }

    /// Every route, by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Address, &Route)> {
        self.table.iter().map(|(&address, route)| (address, route))
    }

    /// How many nodes can be reached.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nobody can be reached.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
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
struct Link {
    peer: Identity,
    cost: u32,
    wants: Wants,
}

#[derive(Debug)]
struct Origin {
    newest: VerifiedAnnouncement,
    reachable: bool,
    since: Instant,
}

/// The router of one node.
#[derive(Debug)]
pub struct Router {
    me: Identity,
    software: String,
    started: Instant,
    links: BTreeMap<LinkId, Link>,
    /// Every other node's newest announcement.
    origins: BTreeMap<Address, Origin>,
    own: Own,
    routes: Arc<Routes>,
    computed: Instant,
    /// When routes are due to be computed again; `None` while they are right.
    compute_at: Option<Instant>,
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
    /// That version, once it came back signed.
    signed: Option<VerifiedAnnouncement>,
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
            signed: None,
            stale: true,
            tokens: SIGN_BURST,
            refilled: now,
        };
        let mut router = Self {
            me,
            software: clamp_software(software),
            started: now,
            links: BTreeMap::new(),
            origins: BTreeMap::new(),
            own,
            routes: Arc::default(),
            computed: now,
            compute_at: None,
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
            Input::Announcement { link, announcement } => self.on_announcement(link, announcement, now),
            Input::Digest { link, digest } => self.on_digest(link, &digest, now),
            Input::Want { link, want } => self.on_want(link, &want),
            Input::Renewed => self.own.stale = true,
            Input::Signed { announcement } => self.on_signed(announcement),
        }
        self.sign_if_due(now);
        self.compute_if_due(now);
    }

    /// Does what is due at `now`; harmless when nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now >= self.digest_at {
            self.digest_at = now + DIGEST_PERIOD;
            self.origins.retain(|_, o| o.reachable || now.saturating_duration_since(o.since) < FORGET_AFTER);
            let links: Vec<LinkId> = self.links.keys().copied().collect();
            for link in links {
                self.send_digest(link);
            }
        }
        self.sign_if_due(now);
        self.compute_if_due(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sign_at = self.own.stale.then(|| self.own.refilled + SIGN_PERIOD);
        [Some(self.digest_at), sign_at, self.compute_at].into_iter().flatten().min()
    }

    /// The next thing to do. Drained until `None` after every call that takes the time.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The table as it is.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// This node, then every node whose announcement is kept, by address.
    pub fn nodes(&self) -> impl Iterator<Item = KnownNode<'_>> {
        let me = KnownNode {
            identity: &self.me,
            software: &self.software,
            services: &[],
            version: self.own.version,
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
            links: &origin.newest.links,
            reachable: origin.reachable,
            route: self.routes.get(address).copied(),
            since: origin.since,
        });
        std::iter::once(me).chain(others)
    }

    /// The node of that name; the reachable one, should an earlier holder of the name be remembered too.
    pub fn find(&self, node: &NodeId) -> Option<KnownNode<'_>> {
        self.nodes().filter(|known| known.identity.node == *node).max_by_key(|known| known.reachable)
    }

    fn on_link_up(&mut self, link: LinkId, peer: Identity, cost: u32, now: Instant) {
        if peer.address == self.me.address {
            return; // A link to ourselves leads nowhere.
        }
        self.links.insert(link, Link { peer, cost: clamp_cost(cost), wants: Wants::default() });
        self.send_digest(link);
        self.links_changed(now);
    }

    fn on_link_down(&mut self, link: LinkId, now: Instant) {
        if self.links.remove(&link).is_some() {
            self.links_changed(now);
        }
    }

    fn links_changed(&mut self, now: Instant) {
        if self.neighbors() != self.own.links {
            self.own.stale = true;
        }
        // No packet may wait for, nor go to, a link that has just changed.
        self.compute_at = Some(now);
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
                self.send_announcement(link, &newer);
                return;
            }
            Some((Ordering::Greater, _)) => {}
            None if self.make_room() => {}
            None => return,
        }
        self.flood(&new.signed, Some(link));
        let graph_changed = match self.origins.get_mut(&address) {
            Some(known) => {
                let changed =
                    known.newest.links != new.links || known.newest.identity.role != new.identity.role;
                known.newest = new;
                changed
            }
            None => {
                self.origins.insert(address, Origin { newest: new, reachable: false, since: now });
                true
            }
        };
        if graph_changed {
            self.compute_soon(now);
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
        self.flood(&announcement.signed, None);
        self.own.signed = Some(announcement);
    }

    fn on_digest(&mut self, link: LinkId, digest: &Digest, now: Instant) {
        let Some(from) = self.links.get_mut(&link) else { return };
        let differs = |entry: &&DigestEntry| {
            let theirs = Version { epoch: entry.epoch, sequence: entry.sequence };
            let (ours, check) = if entry.origin == self.me.address.0 {
                (self.own.version, self.own.signed.as_ref().map(|own| own.check))
            } else {
                match self.origins.get(&Address(entry.origin)) {
                    Some(known) => (known.newest.version, Some(known.newest.check)),
                    None => return true,
                }
            };
            ours < theirs || ours == theirs && check != Some(entry.check)
        };
        let lacking = digest.entries.iter().filter(differs).map(|entry| entry.origin);
        if let Some(want) = from.wants.add(lacking, now) {
            self.effects.push_back(Effect::Send { link, message: LinkMessageKind::Want(want) });
        }
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

    /// Room for one more origin: at the limit, whoever has been unreachable longest is forgotten.
    fn make_room(&mut self) -> bool {
        if self.origins.len() < ORIGINS_MAX {
            return true;
        }
        let gone = self.origins.iter().filter(|(_, o)| !o.reachable).min_by_key(|(_, o)| o.since);
        let gone = gone.map(|(&address, _)| address);
        gone.is_some_and(|address| self.origins.remove(&address).is_some())
    }

    /// Least cost to each neighbor, over all links to it.
    fn neighbors(&self) -> BTreeMap<Address, u32> {
        let mut neighbors = BTreeMap::new();
        for link in self.links.values() {
            let least = neighbors.entry(link.peer.address).or_insert(link.cost);
            *least = link.cost.min(*least);
        }
        neighbors
    }

    fn flood(&mut self, signed: &Arc<SignedAnnouncement>, except: Option<LinkId>) {
        let links: Vec<LinkId> = self.links.keys().copied().filter(|&link| Some(link) != except).collect();
        for link in links {
            self.send_announcement(link, signed);
        }
    }

    fn send_announcement(&mut self, link: LinkId, signed: &SignedAnnouncement) {
        // The bytes inside are shared, not copied.
        let message = LinkMessageKind::Announcement(signed.clone());
        self.effects.push_back(Effect::Send { link, message });
    }

    fn send_digest(&mut self, link: LinkId) {
        let reachable = self.origins.values().filter(|known| known.reachable).map(|known| &known.newest);
        let entries: Vec<DigestEntry> =
            self.own.signed.iter().chain(reachable).map(|held| held.entry()).collect();
        for entries in entries.chunks(DIGEST_BATCH) {
            let message = LinkMessageKind::Digest(Digest { entries: entries.to_vec() });
            self.effects.push_back(Effect::Send { link, message });
        }
    }

    fn sign_if_due(&mut self, now: Instant) {
        if !self.own.stale || !self.own.take_token(now) {
            return;
        }
        self.own.stale = false;
        self.own.links = self.neighbors();
        self.own.version = self.own.version.next();
        self.own.signed = None;
        let body = announcement::encode(self.me.address, self.own.version, &self.own.links, &self.software);
        self.effects.push_back(Effect::Sign { body });
    }

    /// Routes follow at once after quiet, and at a measured pace while a large map is pouring in.
    fn compute_soon(&mut self, now: Instant) {
        let pause = COMPUTE_PER_ORIGIN * u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
        let due = (self.computed + pause).max(now);
        self.compute_at = Some(self.compute_at.map_or(due, |at| at.min(due)));
    }

    fn compute_if_due(&mut self, now: Instant) {
        if self.compute_at.is_none_or(|at| now < at) {
            return;
        }
        self.compute_at = None;
        self.computed = now;
        let table = paths::Map { me: &self.me, links: &self.links, origins: &self.origins }.routes();
        for (address, origin) in &mut self.origins {
            let reachable = table.contains_key(address);
            if reachable != origin.reachable {
                origin.reachable = reachable;
                origin.since = now;
                if reachable {
                    self.digest_at = self.digest_at.min(now + DIGEST_SOON);
                }
            }
        }
        if table != self.routes.table {
            self.routes = Arc::new(Routes { table });
            self.effects.push_back(Effect::Routes(Arc::clone(&self.routes)));
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

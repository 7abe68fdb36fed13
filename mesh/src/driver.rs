//! The task that owns the router: feeds it what happens, does what it wants, and publishes what comes of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use plexus_proto::enrol::{NextCertificate, SignedRevocations};
use plexus_proto::id::{Address, NodeId};
use plexus_proto::link::{LinkMessageKind, SignedAnnouncement};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clones::Starts;
use crate::events::{EventKind, Journal};
use crate::forward::{Exit, Overlay};
use crate::identity::{self, Credentials, Verifier, key_fingerprint};
use crate::link::{LinkHandle, code, message};
use crate::liveness::Notice;
use crate::routing::{Effect, Input, LinkId, NextHop, Route, RouteChange, Router, VerifiedAnnouncement};
use crate::session::Sessions;
use crate::trust::{Took, Trust};
use crate::view::{Directory, NodeView, View};
use crate::vouch::Vouched;

/// Events that may wait for the driver. It fills when neighbours announce faster than signatures can be checked; their
/// control streams then wait.
const INBOX: usize = 256;
/// Events handled before what came of them is published.
const BATCH: usize = 256;

/// Pause between two publications of the map, per node in it: making one takes about a tenth of it.
const SHOW_PER_NODE: Duration = Duration::from_micros(20);

/// What happens to a node's routing.
#[derive(Debug)]
pub(crate) enum Event {
    /// A link has said hello.
    LinkUp(Arc<LinkHandle>),
    /// A link is gone, and why.
    LinkDown(LinkId, String),
    /// A neighbour's router speaks.
    Heard(LinkId, LinkMessageKind),
    /// Somebody here wants to reach a node that is not known. The sender is dropped when it can be looked up again, be it
    /// found or not.
    Lookup(Sought, oneshot::Sender<()>),
    /// A program of this node has signed a list of revocations; told when it is in force.
    Revoke(SignedRevocations, oneshot::Sender<()>),
    /// Somebody wants to know whether this task lives; told by the sender's end.
    Alive(oneshot::Sender<()>),
    /// Who asks what this node has would hear something new.
    News,
    /// Our own certificate was renewed.
    Renewed,
    /// Our certificate, or whom we trust, is another.
    Credentials(Box<Credentials>),
}

/// A node to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sought {
    Name(NodeId),
    Address(Address),
}

/// Sends events to the driver.
#[derive(Debug, Clone)]
pub(crate) struct DriverHandle {
    events: mpsc::Sender<Event>,
    /// Overtakes events. Unbounded, for a link speaks here a few times in a second at most.
    silence: mpsc::UnboundedSender<(LinkId, bool)>,
}

impl DriverHandle {
    /// Asks who has that address, unless the inbox is full.
    pub(crate) fn seek(&self, address: Address) {
        let (reply, _) = oneshot::channel();
        let _ = self.events.try_send(Event::Lookup(Sought::Address(address), reply));
    }

    /// A link has fallen silent, or is heard again.
    pub(crate) fn silent(&self, link: LinkId, silent: bool) {
        let _ = self.silence.send((link, silent));
    }

    /// Waits while the inbox is full. After the driver's end events go nowhere.
    pub(crate) async fn send(&self, event: Event) {
        // A place first: the task of each link would hold the event twice.
        if let Ok(place) = self.events.reserve().await {
            place.send(event);
        }
    }
}

/// The receiving end for [`Driver::run`].
pub(crate) struct Inbox {
    events: mpsc::Receiver<Event>,
    silence: mpsc::UnboundedReceiver<(LinkId, bool)>,
}

pub(crate) fn channel() -> (DriverHandle, Inbox) {
    let (sender, events) = mpsc::channel(INBOX);
    let (silent, silence) = mpsc::unbounded_channel();
    (DriverHandle { events: sender, silence: silent }, Inbox { events, silence })
}

/// Live links by id, for status.
pub(crate) type Links = BTreeMap<LinkId, Arc<LinkHandle>>;

/// What the driver publishes.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) directory: Arc<ArcSwap<Directory>>,
    pub(crate) links: Arc<ArcSwap<Links>>,
    pub(crate) journal: Arc<Journal>,
    /// To the watch over links.
    pub(crate) notices: mpsc::UnboundedSender<Notice>,
}

pub(crate) struct Driver {
    router: Router,
    credentials: Credentials,
    verifier: Arc<Verifier>,
    trust: Trust,
    vouched: Vouched,
    overlay: Arc<Overlay>,
    sessions: Arc<Sessions>,
    published: Published,
    links: Links,
    /// Starts of neighbours, to tell a restart from a second copy.
    starts: Starts,
    /// The way that packets take to each node, and since when.
    routed: HashMap<Address, (NextHop, u32, Instant)>,
    /// Nodes looked up, and who waits for each.
    sought: Vec<(Sought, oneshot::Sender<()>)>,
    /// Something that the view shows has changed.
    stale: bool,
    /// When it was published last.
    shown: Instant,
    /// The same moment by both clocks: makes times of the router readable.
    anchor: (Instant, Timestamp),
}

impl Driver {
    pub(crate) fn new(
        credentials: Credentials,
        trust: Trust,
        epoch: u64,
        software: String,
        overlay: Arc<Overlay>,
        sessions: Arc<Sessions>,
        published: Published,
    ) -> Self {
        let now = Instant::now();
        Self {
            router: Router::new(credentials.identity().clone(), epoch, software, now),
            verifier: credentials.verifier(),
            credentials,
            trust,
            vouched: Vouched::default(),
            overlay,
            sessions,
            published,
            links: BTreeMap::new(),
            starts: Starts::default(),
            routed: HashMap::new(),
            sought: Vec::new(),
            stale: true,
            shown: now,
            anchor: (now, Timestamp::now()),
        }
    }

    /// Runs until `cancel`.
    pub(crate) async fn run(mut self, mut inbox: Inbox, cancel: CancellationToken) {
        loop {
            let due = [self.router.poll_timeout(), self.settle()].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some((link, silent)) = inbox.silence.recv() => self.fall_silent(link, silent),
                () = sleep_until(due) => self.router.handle_timeout(Instant::now()),
                event = inbox.events.recv() => {
                    let Some(event) = event else { break };
                    self.handle(event);
                    for _ in 1..BATCH {
                        let Ok(event) = inbox.events.try_recv() else { break };
                        self.handle(event);
                        while let Ok((link, silent)) = inbox.silence.try_recv() {
                            self.fall_silent(link, silent);
                        }
                    }
                }
                () = tokio::time::sleep(self.until_expiry()) => self.expire(),
            }
        }
        self.overlay.close();
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let input = match event {
            Event::LinkUp(link) => {
                self.sessions.stir();
                self.supersede(&link);
                let text = format!("link to {} at {} is up", link.neighbor.node, link.remote_address());
                let peer = link.neighbor.node.clone();
                self.published.journal.record(EventKind::LinkUp, Some(peer), text);
                if self.starts.is_clone(link.neighbor.address, link.boot_nonce) {
                    let peer = link.neighbor.node.clone();
                    warn!(%peer, remote = %link.remote_address(), "two processes live under this neighbour's name and key; revoke it and enrol both anew, under names of their own");
                    let text = format!(
                        "{peer} runs twice: a copy of it at {} has its name and key",
                        link.remote_address()
                    );
                    self.published.journal.record(EventKind::CloneSuspected, Some(peer), text);
                }
                let input = Input::LinkUp { link: link.id, peer: link.neighbor.clone(), cost: link.cost };
                // A neighbour that was away may not have heard whom it must not talk to.
                self.trust.lists().into_iter().for_each(|list| link.send(message(list)));
                self.notice(Notice::Up(link.clone()));
                self.links.insert(link.id, link);
                self.stale = true;
                input
            }
            Event::LinkDown(link, why) => {
                self.sessions.stir();
                self.notice(Notice::Down(link));
                if let Some(gone) = self.links.remove(&link) {
                    let peer = gone.neighbor.node.clone();
                    let text = format!("link to {peer} is down: {why}");
                    self.published.journal.record(EventKind::LinkDown, Some(peer), text);
                }
                self.stale = true;
                Input::LinkDown { link }
            }
            Event::Heard(link, LinkMessageKind::Announcement(signed)) if self.router.holds(&signed) => {
                Input::Repeated { link, signed }
            }
            Event::Heard(link, LinkMessageKind::Announcement(signed)) => {
                match self.vouched.verify(&self.verifier, signed, now) {
                    Ok(announcement) => {
                        let leaf = announcement.signed().chain.first().cloned().unwrap_or_default();
                        self.trust.saw(announcement.identity(), &leaf);
                        self.stale = true;
                        Input::Announcement { link, announcement }
                    }
                    Err(error) => {
                        // Not the neighbour's fault: it may pass on a node that expired a moment ago.
                        debug!(?link, error = &error as &dyn std::error::Error, "announcement not believed");
                        return;
                    }
                }
            }
            Event::Heard(link, LinkMessageKind::Revocations(signed)) => {
                return self.revoke(Some(link), signed);
            }
            Event::Heard(link, LinkMessageKind::NextCertificate(next)) => {
                return self.next_certificate(link, &next);
            }
            Event::Revoke(signed, done) => {
                self.revoke(None, signed);
                let _ = done.send(());
                return;
            }
            Event::Alive(told) => {
                let _ = told.send(());
                return;
            }
            Event::News => Input::News,
            Event::Renewed => {
                let until = self.credentials.expires();
                let text = format!("certificate of this node renewed until {until}");
                self.published.journal.record(EventKind::Certificate, None, text);
                let chain: Vec<_> = self.credentials.chain().iter().map(|der| der.to_vec().into()).collect();
                for link in self.links.values() {
                    let next = NextCertificate { chain: chain.clone() };
                    link.send(message(LinkMessageKind::NextCertificate(next)));
                }
                Input::Renewed
            }
            Event::Heard(link, kind) => match Input::heard(link, kind) {
                Some(input) => input,
                None => return,
            },
            // There is nobody to ask who knows more.
            Event::Lookup(..) if self.router.keeps_map() => return,
            Event::Lookup(sought, reply) => {
                let (mut addresses, mut names) = (Vec::new(), Vec::new());
                match sought.clone() {
                    Sought::Name(name) => names.push(name),
                    Sought::Address(address) => addresses.push(address),
                }
                self.sought.retain(|(_, reply)| !reply.is_closed());
                self.sought.push((sought, reply));
                self.stale = true;
                Input::Lookup { addresses, names }
            }
            Event::Credentials(credentials) => {
                self.verifier = credentials.verifier();
                self.trust.judge_by(credentials.verifier());
                self.vouched = Vouched::default();
                self.credentials = *credentials;
                return;
            }
        };
        self.router.handle(input, now);
        self.apply(now);
    }

    /// Puts a list of revocations in force: links and sessions of whom it names end now.
    fn revoke(&mut self, from: Option<LinkId>, signed: SignedRevocations) {
        let passed_on = LinkMessageKind::Revocations(signed.clone());
        match self.trust.take(signed) {
            Took::New => {}
            Took::Older(newer) => {
                if let Some(link) = from.and_then(|from| self.links.get(&from)) {
                    newer.into_iter().for_each(|list| link.send(message(list)));
                }
                return;
            }
            Took::Known | Took::Refused => return,
        }
        self.vouched.forget();
        for link in self.links.values() {
            if self.trust.is_revoked(&link.neighbor, &link.key) {
                let peer = link.neighbor.node.clone();
                let text = format!("link to {peer} closed: its certificate was revoked");
                self.published.journal.record(EventKind::Revoked, Some(peer), text);
                link.close(code::REVOKED, "certificate was revoked");
            } else if Some(link.id) != from {
                link.send(message(passed_on.clone()));
            }
        }
        self.sessions.recheck();
    }

    /// A neighbour shows the certificate that follows the one of its handshake.
    fn next_certificate(&mut self, link: LinkId, next: &NextCertificate) {
        let Some(link) = self.links.get_mut(&link) else { return };
        let chain: Vec<CertificateDer<'_>> =
            next.chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
        let same_key = |chain: &[CertificateDer<'_>]| {
            chain.first().and_then(identity::public_key).is_some_and(|key| key_fingerprint(&key) == link.key)
        };
        match self.verifier.verify(&chain, UnixTime::now()) {
            Ok(found) if found == link.neighbor && same_key(&chain) => {
                if let Ok(expires) = identity::expires(&chain[0]) {
                    Arc::make_mut(link).expires = expires;
                }
            }
            Ok(_) => link.close(code::PROTOCOL, "certificate of somebody else"),
            Err(error) => debug!(error = &error as &dyn std::error::Error, "next certificate not believed"),
        }
    }

    /// Ends links on which either end's certificate has expired: they come up again to renew, and for nothing else.
    fn expire(&mut self) {
        let now = Timestamp::now();
        let own = self.credentials.expires() <= now;
        for link in self.links.values().filter(|link| own || link.expires <= now) {
            link.close(code::EXPIRED, "certificate has expired");
        }
    }

    /// How long until [`expire`](Self::expire) may find something; at most a minute, for clocks are put forward.
    fn until_expiry(&self) -> Duration {
        let soonest = self.links.values().map(|link| link.expires).chain([self.credentials.expires()]).min();
        let left = soonest.map_or(SignedDuration::MAX, |at| at.duration_since(Timestamp::now()));
        Duration::try_from(left).unwrap_or_default().clamp(Duration::from_secs(1), Duration::from_secs(60))
    }

    /// A neighbour that has started anew has left its old links behind, even if they do not know it yet.
    fn fall_silent(&mut self, link: LinkId, silent: bool) {
        let now = Instant::now();
        self.router.handle(Input::LinkSilent { link, silent }, now);
        self.apply(now);
        self.stale = true;
    }

    fn supersede(&mut self, link: &LinkHandle) {
        let stale = |known: &&Arc<LinkHandle>| {
            known.neighbor.address == link.neighbor.address && known.boot_nonce != link.boot_nonce
        };
        for known in self.links.values().filter(stale) {
            known.close(code::SUPERSEDED, "neighbour has started anew");
        }
        let this = self.credentials.identity().address;
        for duplicate in self.links.values().filter_map(|known| link.duplicate(known, this)) {
            duplicate.close(code::DUPLICATE, "both ends dialed");
        }
    }

    fn apply(&mut self, now: Instant) {
        while let Some(effect) = self.router.poll_effect() {
            match effect {
                Effect::Send { link, message: kind } => {
                    if let Some(link) = self.links.get(&link) {
                        link.send(message(kind));
                    }
                }
                Effect::Sign { body } => self.sign(body, now),
                Effect::Routes(changes) => self.reroute(changes, now),
                Effect::Doubt { link } => self.notice(Notice::Doubt(link)),
                Effect::Unknown(node) => {
                    self.sought.retain(|(sought, _)| *sought != Sought::Name(node.clone()))
                }
            }
        }
    }

    fn notice(&self, notice: Notice) {
        // The watch ends with the node.
        let _ = self.published.notices.send(notice);
    }

    fn sign(&mut self, body: Vec<u8>, now: Instant) {
        let signature = self.credentials.sign(&body).into();
        let chain = self.credentials.chain().iter().map(|der| der.to_vec().into()).collect();
        let signed = SignedAnnouncement { body: body.into(), signature, chain };
        match VerifiedAnnouncement::new(self.credentials.identity().clone(), signed) {
            Ok(announcement) => self.router.handle(Input::Signed { announcement }, now),
            Err(error) => debug_assert!(false, "own announcement refused: {error}"),
        }
    }

    /// Puts new routes to use, and makes sessions whose way has changed send at once.
    fn reroute(&mut self, changes: Vec<RouteChange>, now: Instant) {
        let exit = |route: Route| {
            let link = self.links.get(&route.next.link)?;
            let backup = route.backup.and_then(|backup| self.links.get(&backup.link));
            Some(Exit { next: link.egress.clone(), backup: backup.map(|link| link.egress.clone()) })
        };
        let exits = changes.iter().map(|&(address, route)| (address, route.and_then(exit))).collect();
        self.overlay.route(exits);
        self.stale = true;
        for (address, route) in changes {
            let Some(route) = route else {
                self.routed.remove(&address);
                continue;
            };
            let before = self.routed.insert(address, (route.next, route.path, now));
            match before {
                Some((next, path, since)) if (next, path) == (route.next, route.path) => {
                    self.routed.insert(address, (next, path, since));
                }
                _ => self.sessions.kick(address),
            }
        }
    }

    /// Does what is left to do and publishes, when something has changed; says when to come back. A large map that
    /// changes all the time is published at a measured pace.
    fn settle(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.apply(now);
        if !self.stale {
            return None;
        }
        let pause =
            SHOW_PER_NODE * u32::try_from(self.published.view.borrow().nodes.len()).unwrap_or(u32::MAX);
        let due = self.shown + pause;
        if now < due {
            return Some(due);
        }
        (self.stale, self.shown) = (false, now);
        let view = self.view();
        self.published.directory.store(Arc::new(self.directory()));
        self.published.links.store(Arc::new(self.links.clone()));
        let known = self.published.directory.load();
        self.sought.retain(|(sought, _)| match sought {
            // Who asks for a name goes there at once, and the announcement of a node comes before the way to it.
            Sought::Name(name) => {
                known.by_name(name).is_none_or(|found| self.router.routes().get(found.address).is_none())
            }
            Sought::Address(address) => known.by_address(*address).is_none(),
        });
        self.published.view.send_if_modified(|current| {
            let changed = **current != view;
            if changed {
                tell_changes(current, &view, &self.published.journal);
                *current = Arc::new(view);
            }
            changed
        });
        None
    }

    fn directory(&self) -> Directory {
        // Reachable ones last: they win a name that an earlier holder has left behind.
        let (reachable, gone): (Vec<_>, Vec<_>) = self.router.nodes().partition(|known| known.reachable);
        Directory::new(gone.into_iter().chain(reachable).map(|known| known.identity.clone()))
    }

    fn view(&self) -> View {
        let mut view = View::default();
        let names: HashMap<Address, &NodeId> =
            self.router.nodes().map(|known| (known.identity.address, &known.identity.node)).collect();
        for known in self.router.nodes() {
            let taken = view.nodes.get(&known.identity.node).is_some_and(|other: &NodeView| other.reachable);
            if taken && !known.reachable {
                continue;
            }
            let name = |(address, &cost): (&Address, &u32)| Some(((*names.get(address)?).clone(), cost));
            let next = known.route.map(|route| route.next);
            let neighbor = |next: NextHop| Some(self.links.get(&next.link)?.neighbor.node.clone());
            let backup = known.route.and_then(|route| route.backup);
            let software = match known.software {
                "" => self.links.values().find(|link| link.neighbor == *known.identity),
                _ => None,
            };
            let software = software.map_or(known.software, |link| &link.software);
            let node = NodeView {
                identity: known.identity.clone(),
                reachable: known.reachable,
                cost: next.map(|next| next.cost),
                hops: next.map(|next| next.hops),
                next_hop: next.and_then(neighbor),
                backup: backup.and_then(|backup| Some((neighbor(backup)?, backup.cost))),
                routed_since: self.routed.get(&known.identity.address).map(|(.., at)| self.timestamp(*at)),
                news: (known.version.epoch, known.news),
                software: software.to_owned(),
                since: self.timestamp(known.since),
                neighbors: known.links.iter().filter_map(name).collect(),
            };
            view.nodes.insert(known.identity.node.clone(), node);
        }
        view
    }

    fn timestamp(&self, at: Instant) -> Timestamp {
        let since_start = at.saturating_duration_since(self.anchor.0);
        self.anchor.1.checked_add(since_start).unwrap_or(self.anchor.1)
    }
}

/// Logs and writes down who came, who went, and whose way changed.
fn tell_changes(before: &View, after: &View, journal: &Journal) {
    for (node, now) in &after.nodes {
        let known = before.nodes.get(node);
        let via = || now.next_hop.as_ref().map_or_else(String::new, |next| format!(" through {next}"));
        let (kind, text) = match (known.is_some_and(|known| known.reachable), now.reachable) {
            (false, true) => {
                info!(%node, cost = now.cost, "node reachable");
                (EventKind::NodeReachable, format!("{node} can be reached{}", via()))
            }
            (true, false) => {
                info!(%node, "node unreachable");
                (EventKind::NodeUnreachable, format!("{node} cannot be reached any more"))
            }
            (true, true) if known.is_some_and(|known| known.next_hop != now.next_hop) => {
                (EventKind::RouteChanged, format!("the way to {node} leads{}", via()))
            }
            _ => continue,
        };
        journal.record(kind, Some(node.clone()), text);
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

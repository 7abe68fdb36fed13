//! The task that owns the router: feeds it what happens, does what it wants, and publishes what comes of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use plexus_proto::id::{Address, NodeId};
use plexus_proto::link::{LinkMessageKind, SignedAnnouncement};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::events::{EventKind, Journal};
use crate::forward::{Overlay, Table};
use crate::identity::{Credentials, Verifier};
use crate::link::{LinkHandle, code, message};
use crate::routing::{Effect, Input, LinkId, Router, Routes, VerifiedAnnouncement};
use crate::session::Sessions;
use crate::view::{Directory, NodeView, View};
use crate::vouch::Vouched;

/// Events that may wait for the driver. It fills when neighbours announce faster than signatures can be checked; their
/// control streams then wait.
const INBOX: usize = 256;
/// Events handled before what came of them is published.
const BATCH: usize = 256;

/// What happens to a node's routing.
#[derive(Debug)]
pub(crate) enum Event {
    /// A link has said hello.
    LinkUp(Box<LinkHandle>),
    /// A link is gone, and why.
    LinkDown(LinkId, String),
    /// A neighbour's router speaks.
    Heard(LinkId, LinkMessageKind),
    /// Our certificate, or whom we trust, is another.
    Credentials(Box<Credentials>),
}

/// Sends events to the driver.
#[derive(Debug, Clone)]
pub(crate) struct DriverHandle(mpsc::Sender<Event>);

impl DriverHandle {
    /// Waits while the inbox is full. After the driver's end events go nowhere.
    pub(crate) async fn send(&self, event: Event) {
        let _ = self.0.send(event).await;
    }
}

/// The receiving end for [`Driver::run`].
pub(crate) struct Inbox(mpsc::Receiver<Event>);

pub(crate) fn channel() -> (DriverHandle, Inbox) {
    let (sender, receiver) = mpsc::channel(INBOX);
    (DriverHandle(sender), Inbox(receiver))
}

/// Live links by id, for status.
pub(crate) type Links = BTreeMap<LinkId, LinkHandle>;

/// What the driver publishes.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) view: watch::Sender<Arc<View>>,
    pub(crate) directory: Arc<ArcSwap<Directory>>,
    pub(crate) links: Arc<ArcSwap<Links>>,
    pub(crate) journal: Arc<Journal>,
}

pub(crate) struct Driver {
    router: Router,
    credentials: Credentials,
    verifier: Arc<Verifier>,
    vouched: Vouched,
    overlay: Arc<Overlay>,
    sessions: Arc<Sessions>,
    published: Published,
    links: Links,
    routes: Arc<Routes>,
    /// Something that the view shows has changed.
    stale: bool,
    /// The same moment by both clocks: makes times of the router readable.
    anchor: (Instant, Timestamp),
}

impl Driver {
    pub(crate) fn new(
        credentials: Credentials,
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
            vouched: Vouched::default(),
            overlay,
            sessions,
            published,
            links: BTreeMap::new(),
            routes: Arc::default(),
            stale: true,
            anchor: (now, Timestamp::now()),
        }
    }

    /// Runs until `cancel`.
    pub(crate) async fn run(mut self, mut inbox: Inbox, cancel: CancellationToken) {
        loop {
            self.settle();
            let due = self.router.poll_timeout();
            tokio::select! {
                () = cancel.cancelled() => break,
                event = inbox.0.recv() => {
                    let Some(event) = event else { break };
                    self.handle(event);
                    for _ in 1..BATCH {
                        let Ok(event) = inbox.0.try_recv() else { break };
                        self.handle(event);
                    }
                }
                () = sleep_until(due) => self.router.handle_timeout(Instant::now()),
            }
        }
        self.overlay.route(Table::default());
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        let input = match event {
            Event::LinkUp(link) => {
                self.supersede(&link);
                let text = format!("link to {} at {} is up", link.neighbor.node, link.remote_address());
                let peer = link.neighbor.node.clone();
                self.published.journal.record(EventKind::LinkUp, Some(peer), text);
                let input = Input::LinkUp { link: link.id, peer: link.neighbor.clone(), cost: link.cost };
                self.links.insert(link.id, *link);
                self.stale = true;
                input
            }
            Event::LinkDown(link, why) => {
                if let Some(gone) = self.links.remove(&link) {
                    let peer = gone.neighbor.node;
                    let text = format!("link to {peer} is down: {why}");
                    self.published.journal.record(EventKind::LinkDown, Some(peer), text);
                }
                self.stale = true;
                Input::LinkDown { link }
            }
            Event::Heard(link, LinkMessageKind::Announcement(signed)) => {
                match self.vouched.verify(&self.verifier, signed, now) {
                    Ok(announcement) => {
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
            Event::Heard(link, LinkMessageKind::Digest(digest)) => Input::Digest { link, digest },
            Event::Heard(link, LinkMessageKind::Want(want)) => Input::Want { link, want },
            Event::Heard(..) => return,
            Event::Credentials(credentials) => {
                self.verifier = credentials.verifier();
                self.vouched = Vouched::default();
                self.credentials = *credentials;
                return;
            }
        };
        self.router.handle(input, now);
        self.apply(now);
    }

    /// A neighbour that has started anew has left its old links behind, even if they do not know it yet.
    fn supersede(&mut self, link: &LinkHandle) {
        let stale = |known: &&LinkHandle| {
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
                Effect::Routes(routes) => self.reroute(routes),
            }
        }
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
    fn reroute(&mut self, routes: Arc<Routes>) {
        let mut table = Table::default();
        let mut changed: Vec<Address> = Vec::new();
        for (address, route) in routes.iter() {
            let Some(link) = self.links.get(&route.next.link) else { continue };
            table.next.insert(address, link.egress.clone());
            if self.routes.get(address).is_none_or(|before| before.next != route.next) {
                changed.push(address);
            }
        }
        self.overlay.route(table);
        self.routes = routes;
        self.stale = true;
        changed.into_iter().for_each(|address| self.sessions.kick(address));
    }

    /// Does what is left to do and publishes, when something has changed.
    fn settle(&mut self) {
        self.apply(Instant::now());
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let view = self.view();
        self.published.directory.store(Arc::new(self.directory()));
        self.published.links.store(Arc::new(self.links.clone()));
        self.published.view.send_if_modified(|current| {
            let changed = **current != view;
            if changed {
                tell_changes(current, &view, &self.published.journal);
                *current = Arc::new(view);
            }
            changed
        });
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
            let neighbor =
                next.and_then(|next| self.links.get(&next.link)).map(|link| link.neighbor.node.clone());
            let node = NodeView {
                identity: known.identity.clone(),
                reachable: known.reachable,
                cost: next.map(|next| next.cost),
                hops: next.map(|next| next.hops),
                next_hop: neighbor,
                software: known.software.to_owned(),
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

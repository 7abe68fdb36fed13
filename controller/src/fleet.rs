//! Live nodes: who of this cluster can be reached, and what each said of itself.
//!
//! One task owns the picture. It wakes when the mesh's view changes, asks a node that appeared for its store and
//! capacity, asks again when it has announced news and every minute, and publishes a snapshot; `instances` rows follow. Others hold a
//! [`watch::Receiver`].

mod copies;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::{Mesh, View};
use plexus_proto::id::{Identity, NodeId, Role, StoreId};
use plexus_proto::work::{ImageInfo, NodeInfo};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use copies::{Copies, Doubt, Start};

use crate::dispatch::{CallError, NodeClient};
use crate::store::core::CoreDb;
use crate::store::instances::{self, Info, Seen};

/// How often a node that answers is asked again: AWX's heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(60);
/// How soon a node that is reachable but did not answer is asked again; doubles up to [`HEARTBEAT`].
const RETRY: Duration = Duration::from_secs(1);

/// Least time between two questions to one node, however often it has news.
const PACE: Duration = Duration::from_secs(1);

/// Nodes that are asked at once. A call takes memory while it lasts, and a thousand nodes may all be due together.
const AT_ONCE: usize = 64;

/// Pause for a node that refused a unit and shows no reason for that: nothing is placed there meanwhile.
const REST: Duration = Duration::from_secs(5);
/// Refusals on their way to the fleet's task; when it is busy, drivers wait.
const REFUSALS: usize = 64;

/// An execution node of this cluster.
#[derive(Debug, Clone)]
pub struct LiveNode {
    /// A route to it is known.
    pub reachable: bool,
    /// What it said of itself; `None` until it answered once.
    pub info: Option<Info>,
    refused: Option<Refused>,
}

impl LiveNode {
    /// A node of which no more is known.
    pub fn new(reachable: bool, info: Option<Info>) -> Self {
        Self { reachable, info, refused: None }
    }

    /// Why it refused a unit, until it has said anew what it has.
    pub fn refused(&self) -> Option<String> {
        self.refused.as_ref().map(|refused| refused.words.clone())
    }

    /// Takes what it says of itself. How soon it is asked again: after a refusal that this does not explain, it rests first.
    fn hear(&mut self, info: Info, now: Instant) -> Duration {
        let explained =
            info.cordoned.is_some() || self.info.as_ref().is_some_and(|known| known.store != info.store);
        self.info = Some(info);
        self.refused = self.refused.take().filter(|refused| !explained && now < refused.until);
        self.refused.as_ref().map_or(HEARTBEAT, |refused| refused.until - now)
    }
}

#[derive(Debug, Clone)]
struct Refused {
    words: String,
    /// The end of its rest.
    until: Instant,
}

/// Tells the fleet what nodes refused.
#[derive(Debug, Clone)]
pub struct Refusals(mpsc::Sender<Refusal>);

#[derive(Debug)]
struct Refusal {
    node: NodeId,
    words: String,
    published: oneshot::Sender<()>,
}

impl Refusals {
    /// Says that `node` did not take a unit, in its words. It is asked anew what it has, and gets nothing until it has said so;
    /// everybody sees that when this returns.
    pub async fn tell(&self, node: &NodeId, words: &str) {
        let (published, seen) = oneshot::channel();
        let refusal = Refusal { node: node.clone(), words: words.to_owned(), published };
        if self.0.send(refusal).await.is_ok() {
            let _ = seen.await; // an error: the controller stops
        }
    }
}

/// Execution nodes of this cluster by name.
pub type Nodes = BTreeMap<NodeId, LiveNode>;

struct Asked {
    due: Instant,
    /// When it was asked last.
    began: Option<Instant>,
    /// The news of it that was seen last, and whether that is still to be asked for.
    news: (u64, u64),
    stale: bool,
    under_way: bool,
    /// Pause after the next time that it does not answer.
    retry: Duration,
}

impl Asked {
    fn new(now: Instant, news: (u64, u64)) -> Self {
        Self { due: now, began: None, news, stale: false, under_way: false, retry: RETRY }
    }

    fn see(&mut self, news: (u64, u64)) {
        self.stale |= std::mem::replace(&mut self.news, news) != news;
    }

    /// When it is to be asked; `None` while it is being asked.
    fn due(&self) -> Option<Instant> {
        let soon = self.began.filter(|_| self.stale).map_or(self.due, |began| self.due.min(began + PACE));
        (!self.under_way).then_some(soon)
    }

    fn begin(&mut self, now: Instant) {
        (self.began, self.stale, self.under_way) = (Some(now), false, true);
    }
}

struct Fleet {
    mesh: Mesh,
    core: CoreDb,
    nodes: Nodes,
    asked: BTreeMap<NodeId, Asked>,
    calls: JoinSet<(NodeId, Result<NodeInfo, CallError>)>,
    copies: Copies,
    /// Stores that show fewer starts than were heard of, until their nodes have given them up.
    outgrown: BTreeMap<NodeId, (StoreId, u64)>,
    refusals: mpsc::Receiver<Refusal>,
    /// Who waits until all see what was refused.
    published: Vec<oneshot::Sender<()>>,
}

/// Starts the task; it ends with `shutdown`.
pub fn spawn(
    mesh: Mesh,
    core: CoreDb,
    shutdown: CancellationToken,
) -> (watch::Receiver<Arc<Nodes>>, Refusals, tokio::task::JoinHandle<()>) {
    let (publish, nodes) = watch::channel(Arc::new(Nodes::new()));
    let (tell, refusals) = mpsc::channel(REFUSALS);
    let fleet = Fleet {
        mesh,
        core,
        nodes: Nodes::new(),
        asked: BTreeMap::new(),
        calls: JoinSet::new(),
        copies: Copies::default(),
        outgrown: BTreeMap::new(),
        refusals,
        published: Vec::new(),
    };
    (nodes, Refusals(tell), tokio::spawn(fleet.run(publish, shutdown)))
}

impl Fleet {
    async fn run(mut self, publish: watch::Sender<Arc<Nodes>>, shutdown: CancellationToken) {
        let mut view = self.mesh.watch();
        loop {
            let now = view.borrow_and_update().clone();
            self.look(&now);
            self.ask().await;
            self.record(&now).await;
            publish.send_replace(Arc::new(self.nodes.clone()));
            for waiting in self.published.drain(..) {
                let _ = waiting.send(()); // an error: its driver was dropped
            }
            let due = self.asked.values().filter_map(Asked::due).min();
            // Who is due while nobody more can be asked is asked when an answer comes.
            let due =
                due.filter(|_| self.calls.len() < AT_ONCE).unwrap_or_else(|| Instant::now() + HEARTBEAT);
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                Some(done) = self.calls.join_next() => {
                    // All that have answered: each round writes down what is known of all nodes.
                    let mut next = Some(done);
                    while let Some(done) = next {
                        if let Ok((node, answer)) = done {
                            self.answered(node, answer).await;
                        }
                        next = self.calls.try_join_next();
                    }
                }
                Some(refusal) = self.refusals.recv() => {
                    let mut next = Some(refusal);
                    while let Some(refusal) = next {
                        self.on_refused(refusal);
                        next = self.refusals.try_recv().ok();
                    }
                }
                () = tokio::time::sleep_until(due) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    fn on_refused(&mut self, refusal: Refusal) {
        let Refusal { node, words, published } = refusal;
        let now = Instant::now();
        if let Some(known) = self.nodes.get_mut(&node) {
            known.refused = Some(Refused { words, until: now + REST });
        }
        if let Some(asked) = self.asked.get_mut(&node) {
            asked.due = now;
        }
        self.published.push(published);
    }

    fn ours(&self, identity: &Identity) -> bool {
        identity.role == Role::Execution && identity.cluster == self.mesh.identity().cluster
    }

    fn look(&mut self, view: &View) {
        for node in self.nodes.values_mut() {
            node.reachable = false;
        }
        for (name, seen) in &view.nodes {
            if !self.ours(&seen.identity) {
                continue;
            }
            let node = self.nodes.entry(name.clone()).or_insert_with(|| LiveNode::new(false, None));
            node.reachable = seen.reachable;
            if !seen.reachable {
                self.asked.remove(name);
            } else {
                let new = || Asked::new(Instant::now(), seen.news);
                self.asked.entry(name.clone()).or_insert_with(new).see(seen.news);
            }
        }
    }

    async fn ask(&mut self) {
        let now = Instant::now();
        if !self.asked.values().filter_map(Asked::due).any(|due| due <= now) {
            return;
        }
        // A node that is told too late holds containers for nothing until the next heartbeat.
        let decided = instances::decided(&self.core).await.unwrap_or_default();
        let is_due = |asked: &Asked| asked.due().is_some_and(|due| due <= now);
        let mut due: Vec<_> = self.asked.iter_mut().filter(|(_, asked)| is_due(asked)).collect();
        // Whoever waits for longest comes first.
        due.sort_by_key(|(_, asked)| asked.due());
        for (name, asked) in due.into_iter().take(AT_ONCE.saturating_sub(self.calls.len())) {
            let resting = decided.get(name).is_some_and(|decided| !decided.enabled);
            asked.begin(now);
            // For one call: a channel that waits a minute for the next takes 28 KB here and as much there.
            let (name, client) = (name.clone(), NodeClient::new(&self.mesh, name));
            let outgrown = self.outgrown.get(&name).copied();
            self.calls.spawn(async move {
                let answer = client.info(resting, outgrown).await;
                (name, answer)
            });
        }
    }

    async fn answered(&mut self, name: NodeId, answer: Result<NodeInfo, CallError>) {
        let mut start = None;
        let info = answer.map_err(|error| error.to_string()).and_then(|info| {
            let store = StoreId::from_slice(&info.store_id).map_err(|error| error.to_string())?;
            start = Some(Start { store, nonce: info.start, number: info.starts });
            let heard = jiff::Timestamp::now();
            Ok(Info {
                store,
                cpu_millis: info.cpu_millis,
                memory: info.memory_bytes,
                free_disk: info.free_disk_bytes,
                images: info.images.into_iter().map(named).collect(),
                cordoned: info.cordoned,
                heard,
            })
        });
        let retry = self.asked.get(&name).map_or(RETRY, |asked| asked.retry);
        let (mut again, retry) = match info {
            Ok(info) => {
                let node = self.nodes.get_mut(&name);
                (node.map_or(HEARTBEAT, |node| node.hear(info, Instant::now())), RETRY)
            }
            Err(error) => {
                tracing::warn!(node = %name, error, "node did not say what it has");
                (retry, (retry * 2).min(HEARTBEAT))
            }
        };
        if let Some(start) = start {
            if self.outgrown.get(&name).is_some_and(|(store, _)| *store != start.store) {
                self.outgrown.remove(&name);
            }
            if let Some(doubt) = self.copies.hear(&name, start) {
                if let Doubt::Back { from, .. } = doubt {
                    // The node is told at once, and gives the store up: work that was bound to it since is lost.
                    self.outgrown.insert(name.clone(), (start.store, from));
                    again = Duration::ZERO;
                }
                self.hold(&name, doubt).await;
            }
        }
        if let Some(asked) = self.asked.get_mut(&name) {
            (asked.due, asked.under_way, asked.retry) = (Instant::now() + again, false, retry);
        }
    }

    /// Gives a node no more work until an operator has looked.
    async fn hold(&self, name: &NodeId, doubt: Doubt) {
        let text = doubt.text(name);
        tracing::error!(node = %name, "{text}");
        if let Err(error) = instances::hold(&self.core, name, &text).await {
            tracing::error!(node = %name, error = &error as &dyn std::error::Error, "cannot hold the node");
        }
    }

    async fn record(&self, view: &View) {
        let mut seen: Vec<Seen> = Vec::new();
        for (name, node) in &view.nodes {
            seen.push(Seen {
                identity: node.identity.clone(),
                reachable: node.reachable,
                version: node.software.clone(),
                info: self.nodes.get(name).and_then(|node| node.info.clone()),
            });
        }
        if let Err(error) = instances::record(&self.core, &seen).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot record what the mesh shows");
        }
    }
}

/// What people call an image: its first name, or its id if it has none.
fn named(image: ImageInfo) -> String {
    image.names.into_iter().next().unwrap_or(image.id)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_node_with_news_is_asked_at_once_and_at_a_measured_pace() {
        let now = Instant::now();
        let mut asked = Asked::new(now, (1, 0));
        assert_eq!(asked.due(), Some(now), "it has just appeared");
        let answered = |asked: &mut Asked, at| (asked.due, asked.under_way) = (at + HEARTBEAT, false);
        asked.begin(now);
        asked.see((1, 1));
        assert_eq!(asked.due(), None, "it is being asked");
        answered(&mut asked, now);
        assert_eq!(asked.due(), Some(now + PACE), "the answer may be older than the news");
        let later = now + PACE;
        asked.begin(later);
        answered(&mut asked, later);
        asked.see((1, 1));
        assert_eq!(asked.due(), Some(later + HEARTBEAT), "nothing is new");
        for news in [(1, 2), (2, 0)] {
            asked.see(news);
            assert_eq!(asked.due(), Some(later + PACE), "{news:?}");
            asked.begin(later);
            answered(&mut asked, later);
        }
    }

    #[test]
    fn a_node_that_refused_rests_unless_what_it_says_explains_it() {
        let info = |store, cordoned: Option<&str>| Info {
            store: StoreId(Uuid::from_u128(store)),
            cpu_millis: 1000,
            memory: 1 << 30,
            free_disk: 0,
            images: Arc::default(),
            cordoned: cordoned.map(str::to_owned),
            heard: jiff::Timestamp::UNIX_EPOCH,
        };
        let now = Instant::now();
        let until = now + REST;
        let check = |said: Info, at: Instant, refused: bool, again: Duration| {
            let refusal = Refused { words: "full".into(), until };
            let mut node = LiveNode { reachable: true, info: Some(info(1, None)), refused: Some(refusal) };
            assert_eq!(node.hear(said, at), again);
            assert_eq!(node.refused().is_some(), refused);
        };
        check(info(1, None), now, true, REST);
        check(info(1, None), until, false, HEARTBEAT);
        check(info(1, Some("")), now, false, HEARTBEAT);
        check(info(2, None), now, false, HEARTBEAT);
    }
}

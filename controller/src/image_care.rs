//! Has nodes remove the images of execution environments that are gone.
//!
//! A node removes only what it pulled for units, and never what is in use; which images are still wanted it cannot know. It is told
//! when an image is wanted no more, five minutes after it was first seen, for what went while it or this controller was away, and
//! every three hours, for what was still in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_proto::id::NodeId;
use plexus_proto::work::TidyImagesReply;
use sea_query::Query;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::dispatch::{CallError, NodeClient};
use crate::fleet::Nodes;
use crate::store::core::{CoreDb, Error};

/// Pause between two looks at the execution environments.
const PERIOD: Duration = Duration::from_secs(10);
/// How long after a node was first seen it is told for the first time: a controller that starts has more urgent things to say.
const FIRST: Duration = Duration::from_secs(300);
/// How long after it was told it is told again.
const LATER: Duration = Duration::from_secs(3 * 3600);
/// Pause after a node did not answer, or its engine did not.
const AGAIN: Duration = Duration::from_secs(600);
/// Nodes that are told at a time.
const AT_ONCE: usize = 8;

/// Images by name.
type Names = BTreeSet<String>;

/// What a node was told last, or would have been; and when it is told whatever that was.
#[derive(Debug)]
struct Told {
    wanted: Arc<Names>,
    due: Instant,
}

/// Starts the task; it ends with `shutdown`.
pub fn spawn(
    mesh: Mesh,
    core: CoreDb,
    nodes: watch::Receiver<Arc<Nodes>>,
    shutdown: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        shutdown.run_until_cancelled(run(mesh, core, nodes)).await;
    })
}

async fn run(mesh: Mesh, core: CoreDb, mut nodes: watch::Receiver<Arc<Nodes>>) {
    let mut told: BTreeMap<NodeId, Told> = BTreeMap::new();
    let mut calls = JoinSet::new();
    let mut looks = tokio::time::interval(PERIOD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            // What goes from the moment on in which a node is known is what it is told.
            alive = nodes.changed() => {
                if alive.is_err() {
                    return;
                }
                if here(&nodes.borrow_and_update()).all(|name| told.contains_key(name)) {
                    continue;
                }
            }
            Some(done) = calls.join_next() => {
                if let Ok((name, said)) = done {
                    heard(&mut told, &name, said);
                }
                continue;
            }
        }
        let wanted = match wanted(&core).await {
            Ok(wanted) => Arc::new(wanted),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot read images");
                continue;
            }
        };
        let live = nodes.borrow().clone();
        let here = here(&live).cloned().collect();
        for name in due(&mut told, &here, &wanted, Instant::now(), AT_ONCE - calls.len()) {
            let (client, wanted) = (NodeClient::new(&mesh, &name), wanted.iter().cloned().collect());
            calls.spawn(async move {
                let said = client.tidy_images(wanted).await;
                (name, said)
            });
        }
    }
}

fn here(live: &Nodes) -> impl Iterator<Item = &NodeId> {
    live.iter().filter(|(_, node)| node.reachable && node.info.is_some()).map(|(name, _)| name)
}

fn heard(told: &mut BTreeMap<NodeId, Told>, name: &NodeId, said: Result<TidyImagesReply, CallError>) {
    let problem = match said {
        Ok(reply) => {
            if !reply.removed.is_empty() {
                tracing::info!(node = %name, images = ?reply.removed, "images that nobody wants removed");
            }
            reply.problem
        }
        Err(error) => error.to_string(),
    };
    if !problem.is_empty() {
        tracing::debug!(node = %name, problem, "images are not cleaned up");
        if let Some(told) = told.get_mut(name) {
            told.due = Instant::now() + AGAIN;
        }
    }
}

/// Whom to tell now, `room` of them at most: who was told, or first seen, when more was wanted, and who is due anyway.
fn due(
    told: &mut BTreeMap<NodeId, Told>,
    here: &BTreeSet<NodeId>,
    wanted: &Arc<Names>,
    now: Instant,
    room: usize,
) -> Vec<NodeId> {
    let mut chosen = Vec::new();
    for name in here {
        let new = || Told { wanted: wanted.clone(), due: now + FIRST };
        let known = told.entry(name.clone()).or_insert_with(new);
        if known.wanted.is_subset(wanted) && known.due > now {
            known.wanted = wanted.clone();
        } else if chosen.len() < room {
            *known = Told { wanted: wanted.clone(), due: now + LATER };
            chosen.push(name.clone());
        }
    }
    chosen
}

async fn wanted(core: &CoreDb) -> Result<Names, Error> {
    let mut query = Query::select();
    query.column("image").from("execution_environments");
    core.all(&query).await?.iter().map(|row| row.at::<String>(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_told_what_went_and_once_after_it_came() {
        let names = |names: &[&str]| Arc::new(names.iter().map(|&name| name.to_owned()).collect::<Names>());
        let here: BTreeSet<NodeId> = ["a", "b"].map(|name| name.parse().expect("a name")).into();
        let (mut told, start) = (BTreeMap::new(), Instant::now());
        let mut at = |here: &BTreeSet<NodeId>, seconds, wanted: &[&str], room| {
            let now = start + Duration::from_secs(seconds);
            let due = due(&mut told, here, &names(wanted), now, room);
            due.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(at(&here, 0, &["x", "y"], 8).is_empty(), "a controller that starts has other things to say");
        assert!(at(&here, 10, &["x", "y", "z"], 8).is_empty(), "one more is no reason");
        assert_eq!(at(&here, 20, &["x", "z"], 1), ["a"], "one went, and there is room for one");
        assert_eq!(at(&here, 30, &["x", "z"], 1), ["b"]);
        assert!(at(&here, 400, &["x", "z"], 8).is_empty(), "both heard of it");
        // One that was away when an image went, and one that is new.
        let away: BTreeSet<NodeId> = ["b", "c"].map(|name| name.parse().expect("a name")).into();
        assert_eq!(at(&away, 410, &["x"], 8), ["b"]);
        assert_eq!(at(&here, 420, &["x"], 8), ["a"]);
        let all = here.union(&away).cloned().collect();
        assert!(at(&all, 709, &["x"], 8).is_empty());
        assert_eq!(at(&all, 710, &["x"], 8), ["c"], "what went while it was away");
        assert!(at(&all, 11_000, &["x"], 8).is_empty());
        assert_eq!(at(&all, 11_510, &["x"], 8), ["a", "b", "c"], "what was in use may not be any more");
    }
}

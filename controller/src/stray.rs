//! Looks for units that nodes hold and this database does not know.
//!
//! After a database was restored from a backup, nodes may still run, or hold the output of, what was placed since. Such a unit is
//! listed for an operator to adopt or discard ([`strays`]); nothing else is ever done with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_proto::id::{Attempt, NodeId, StoreId};
use plexus_proto::work::{UnitStatus, UnitStatusState};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dispatch::NodeClient;
use crate::fleet::Nodes;
use crate::store::core::CoreDb;
use crate::store::strays::{self, Stray};

/// How often a node that stays reachable is looked at.
const PERIOD: Duration = Duration::from_secs(60);

/// Why a look came to nothing; the next one may not.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Call(#[from] crate::dispatch::CallError),
    #[error(transparent)]
    Store(#[from] crate::store::core::Error),
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
    let mut due: BTreeMap<NodeId, Instant> = BTreeMap::new();
    loop {
        let live = nodes.borrow_and_update().clone();
        // One that comes back may hold what it did not before.
        due.retain(|name, _| live.get(name).is_some_and(|node| node.reachable));
        for (name, node) in live.iter().filter(|(_, node)| node.reachable) {
            let Some(store) = node.info.as_ref().map(|info| info.store) else { continue };
            if due.get(name).is_some_and(|at| *at > Instant::now()) {
                continue;
            }
            if let Err(error) = look(&core, name, store, &NodeClient::new(&mesh, name)).await {
                tracing::debug!(node = %name, %error, "cannot look for stray units");
            }
            due.insert(name.clone(), Instant::now() + PERIOD);
        }
        let next = due.values().min().copied().unwrap_or_else(|| Instant::now() + PERIOD);
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

async fn look(core: &CoreDb, node: &NodeId, store: StoreId, client: &NodeClient) -> Result<(), Error> {
    // In this order: a unit is stored before its node hears of it.
    let held = client.list().await?;
    let held: Vec<Stray> = held.iter().filter_map(|status| stray(node, store, status)).collect();
    let ids: Vec<_> = held.iter().map(|unit| unit.attempt.unit.0).collect();
    let known = strays::known(core, &ids).await?;
    let mut found: Vec<Stray> =
        held.into_iter().filter(|unit| !known.contains(&unit.attempt.unit.0)).collect();
    found.sort_by_key(|unit| unit.attempt);
    let written: Vec<Stray> =
        strays::all(core).await?.into_iter().filter(|stray| stray.node == *node).collect();
    if found == written {
        return Ok(());
    }
    for unit in found.iter().filter(|unit| !written.iter().any(|other| other.attempt == unit.attempt)) {
        tracing::warn!(
            %node,
            unit = %unit.attempt,
            label = unit.label,
            state = unit.state,
            "the node holds a unit that this database does not know; plexus work list --stray"
        );
    }
    strays::record(core, node, &found).await?;
    Ok(())
}

fn stray(node: &NodeId, store: StoreId, status: &UnitStatus) -> Option<Stray> {
    let attempt = Attempt::try_from(status.unit.as_ref()).ok()?;
    let state = match status.state.as_ref()? {
        UnitStatusState::Pending(_) => "pending",
        UnitStatusState::Preparing(_) | UnitStatusState::Running(_) => "running",
        UnitStatusState::Finished(_) => "finished",
    };
    Some(Stray {
        attempt,
        node: node.clone(),
        store,
        label: status.label.chars().take(200).collect(),
        state: state.to_owned(),
        records: i64::try_from(status.records).unwrap_or(i64::MAX),
        counter: i64::try_from(status.epoch.as_ref().map_or(0, |epoch| epoch.counter))
            .unwrap_or(i64::MAX - 1),
    })
}

#[cfg(test)]
mod tests {
    use plexus_proto::id::UnitId;
    use plexus_proto::work::{Finished, OwnerEpoch, Pending};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_a_node_says_of_a_unit_is_bounded_and_may_be_nothing() {
        let node: NodeId = "node-1".parse().unwrap();
        let store = StoreId(Uuid::from_u128(1));
        let attempt = Attempt { unit: UnitId(Uuid::from_u128(7)), number: 2 };
        let status = UnitStatus {
            unit: Some(attempt.into()),
            epoch: Some(OwnerEpoch { incarnation: 3, counter: u64::MAX }),
            state: Some(UnitStatusState::Finished(Finished::default())),
            records: u64::MAX,
            label: "x".repeat(1000),
            ..UnitStatus::default()
        };
        let found = stray(&node, store, &status).unwrap();
        assert_eq!((found.attempt, found.state.as_str(), found.label.len()), (attempt, "finished", 200));
        assert!(found.counter < i64::MAX && found.records == i64::MAX);
        let pending =
            UnitStatus { state: Some(UnitStatusState::Pending(Pending::default())), ..status.clone() };
        assert_eq!(stray(&node, store, &pending).unwrap().state, "pending");
        assert!(stray(&node, store, &UnitStatus { unit: None, ..status.clone() }).is_none());
        assert!(stray(&node, store, &UnitStatus { state: None, ..status }).is_none());
    }
}

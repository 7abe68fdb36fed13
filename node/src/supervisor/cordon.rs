//! A node that takes no new units for a while, because root of its machine said so.
//!
//! It is a file in the data directory, so it outlives the agent: a machine that is drained for a new kernel must not get
//! work in the moment between two reboots.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use plexus_mesh::local::{ActError, Action};
use plexus_mesh::status::QueryError;
use plexus_proto::work::{Refusal, RefusalCode};
use serde_json::{Value, json};
use tracing::info;

use super::{Supervisor, View};
use crate::store_id::write_synced;
use crate::work::refusal;

const FILE: &str = "cordon";
/// Longest reason that is kept, in characters: one line for people.
const REASON_MAX: usize = 200;
/// Pause for the task of a forgotten unit, which takes it off the list as its last act.
const TAKEN_OFF: Duration = Duration::from_millis(10);

/// Whether this node takes units.
#[derive(Debug)]
pub(super) struct Cordon {
    path: PathBuf,
    /// Why it takes none; empty when nobody said. `None`: it does.
    reason: Mutex<Option<String>>,
}

impl Cordon {
    /// As an earlier agent left it.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let reason = match fs::read(&path) {
            Ok(text) => Some(one_line(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { path, reason: Mutex::new(reason) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.reason.lock().expect("no code panics under this lock")
    }

    pub(super) fn reason(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Stores it, synced, and then goes by it. Blocks.
    fn set(&self, reason: Option<String>) -> io::Result<()> {
        let mut held = self.lock();
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        match &reason {
            Some(reason) => write_synced(dir, &self.path, &format!("{reason}\n"))?,
            None => match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::File::open(dir)?.sync_all()?,
            },
        }
        *held = reason;
        Ok(())
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_MAX).collect()
}

impl Supervisor {
    /// Why this node takes no new units: what was given as reason, perhaps nothing. `None` when it takes them.
    pub fn cordoned(&self) -> Option<String> {
        self.0.cordon.reason()
    }

    /// Cordon, uncordon or drain. The answer is `{"schema_version":1,"node":"node-7","cordoned":true,"reason":"new disk",
    /// "running":2}`; `running` counts the units of which something is still here: a process, or output that the controller
    /// has not stored.
    ///
    /// # Errors
    /// Another action; a disk that does not keep the decision; a drain that outlives the agent.
    pub async fn tend(&self, action: Action) -> Result<Value, ActError> {
        match action {
            Action::Cordon { reason } => self.decide(Some(reason.unwrap_or_default())).await?,
            Action::Uncordon => self.decide(None).await?,
            Action::Drain { deadline_ms, reason } => {
                // A drain asked for again, without a word, keeps the words there are.
                let reason = reason.or_else(|| self.cordoned()).unwrap_or_default();
                self.decide(Some(reason)).await?;
                match deadline_ms.map(Duration::from_millis) {
                    Some(limit) => drop(tokio::time::timeout(limit, self.drained()).await),
                    None => self.drained().await,
                }
                if self.0.cancel.is_cancelled() {
                    return Err(QueryError::ShuttingDown.into());
                }
            }
            other => return Err(ActError::NotOffered(other.name())),
        }
        let cordoned = self.cordoned();
        Ok(json!({
            "schema_version": plexus_mesh::status::SCHEMA_VERSION,
            "node": self.0.options.node.as_str(),
            "cordoned": cordoned.is_some(),
            "reason": cordoned.unwrap_or_default(),
            "running": self.unsettled().len(),
        }))
    }

    async fn decide(&self, reason: Option<String>) -> Result<(), ActError> {
        let reason = reason.as_deref().map(one_line);
        if reason == self.cordoned() {
            return Ok(());
        }
        info!(cordoned = reason.is_some(), reason, "told whether to take units");
        let (inner, wanted) = (self.0.clone(), reason.is_some());
        let stored = self.0.blocking(move || inner.cordon.set(reason)).await;
        stored.map_err(|error| ActError::Failed(format!("cannot store that in data_dir: {error}")))?;
        // Containers that wait for units go with the first word, and come back with the next heartbeat of a controller.
        self.0.pool.rest(wanted);
        self.0.news.notify_one();
        Ok(())
    }

    /// Waits until nothing is left that a controller does not have; ends early with the agent.
    async fn drained(&self) {
        while let Some(mut view) = self.unsettled().pop() {
            // An error: it was forgotten.
            let settled = async { drop(view.wait_for(View::is_settled).await) };
            if self.0.cancel.run_until_cancelled(settled).await.is_none() || self.0.cancel.is_cancelled() {
                return;
            }
            tokio::time::sleep(TAKEN_OFF).await;
        }
    }

    fn unsettled(&self) -> Vec<tokio::sync::watch::Receiver<View>> {
        let units = self.0.units();
        units.values().filter(|unit| !unit.view.borrow().is_settled()).map(|unit| unit.view.clone()).collect()
    }

    /// The words for a controller whose unit came after the cordon: it goes elsewhere, or waits.
    pub(super) fn check_cordon(&self) -> Result<(), Refusal> {
        let Some(reason) = self.cordoned() else { return Ok(()) };
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let message = format!("node {} is cordoned and takes no new units{why}", self.0.options.node);
        Err(refusal(RefusalCode::NodeFull, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cordon_outlives_the_agent_and_its_reason_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let reason = || Cordon::open(dir.path()).unwrap().reason();
        assert_eq!(reason(), None);
        Cordon::open(dir.path()).unwrap().set(Some("new disk".into())).unwrap();
        assert_eq!(reason().as_deref(), Some("new disk"));
        Cordon::open(dir.path()).unwrap().set(Some(String::new())).unwrap();
        assert_eq!(reason().as_deref(), Some(""));
        fs::write(dir.path().join(FILE), b"two\nlines \xff").unwrap();
        assert_eq!(reason().as_deref(), Some("two lines \u{fffd}"));
        let cordon = Cordon::open(dir.path()).unwrap();
        cordon.set(None).unwrap();
        cordon.set(None).unwrap();
        assert_eq!((cordon.reason(), reason()), (None, None));
        assert_eq!(one_line(&"x".repeat(900)).len(), REASON_MAX);
    }
}

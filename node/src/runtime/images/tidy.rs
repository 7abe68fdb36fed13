//! Care for the disk: only what this node pulled for units is ever removed by name, and never while in use or needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use plexus_proto::id::ClusterId;
use serde::{Deserialize, Serialize};
use tracing::{debug, info};

use super::super::{Error, Kind};
use super::Inner;

/// Images that this node pulled for units, by name.
type Ledger = BTreeMap<String, Pulled>;

/// What is known of an image that this node pulled.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Pulled {
    /// Seconds of the last use.
    used: u64,
    /// Whose units used it, of clusters that still want it.
    clusters: BTreeSet<ClusterId>,
}

impl Inner {
    /// Notes that this node pulled an image.
    pub(super) fn note(&self, name: &str) {
        self.change(|ledger| ledger.entry(name.to_owned()).or_default().used = now());
    }

    /// Notes that units of a cluster use an image, if it was pulled by this node: it stays for as long as that one wants it.
    pub(super) fn note_cluster(&self, name: &str, cluster: &ClusterId) {
        if self.ledger().get(name).is_some_and(|pulled| !pulled.clusters.contains(cluster)) {
            self.change(|ledger| {
                if let Some(pulled) = ledger.get_mut(name) {
                    pulled.clusters.insert(cluster.clone());
                }
            });
        }
    }

    /// Notes the use of an image, if it was pulled by this node.
    pub(super) fn used(&self, name: &str) {
        let due = |used: u64| now().saturating_sub(used) > 3600;
        // Once an hour is exact enough, and spares a write for every job.
        if self.ledger().get(name).is_some_and(|pulled| due(pulled.used)) {
            self.note(name);
        }
    }

    fn ledger(&self) -> Ledger {
        fs::read(&self.ledger).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut Ledger)) {
        let _one_at_a_time = self.found.lock().expect("no code panics under this lock");
        let mut ledger = self.ledger();
        change(&mut ledger);
        let fresh = self.ledger.with_extension("new");
        let text = serde_json::to_vec(&ledger).unwrap_or_default();
        if let Err(error) = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &self.ledger)) {
            // Then the image is nobody's, and stays.
            debug!(error = &error as &dyn std::error::Error, "cannot note a pulled image");
        }
    }
}

pub(super) fn tidy(
    inner: &Arc<Inner>,
    wanted: Option<(&ClusterId, &[String])>,
    needed: impl Fn() -> BTreeSet<String>,
) -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    if inner.section.prune_dangling {
        // The engine itself spares what a container uses.
        let mut words = vec!["image", "prune", "--force"];
        if inner.engine.kind == Kind::Docker {
            words.extend(["--filter", "dangling=true"]);
        }
        inner.engine.call(&words)?;
    }
    let ledger = inner.ledger();
    if ledger.is_empty() {
        return Ok(removed);
    }
    let images = inner.list()?;
    let of = |name: &str| {
        let full = inner.find(name);
        full.and_then(|full| images.iter().find(|image| image.id == full.id))
    };
    let mut ours: Vec<(&String, &Pulled)> = ledger.iter().collect();
    ours.sort_by_key(|(_, pulled)| pulled.used);
    let sizes: BTreeMap<_, _> =
        ours.iter().filter_map(|(name, _)| of(name)).map(|image| (&image.id, image.size)).collect();
    let mut held: u64 = sizes.values().sum(); // an image of two names lies here once
    let quota = inner.section.quota_mib << 20;
    for (name, pulled) in ours {
        let Some(image) = of(name) else {
            inner.change(|ledger| {
                ledger.remove(name);
            }); // somebody else removed it
            continue;
        };
        let given_up = wanted.filter(|(_, wanted)| !wanted.contains(name)).map(|(cluster, _)| cluster);
        if let Some(cluster) = given_up.filter(|cluster| pulled.clusters.contains(*cluster)) {
            inner.change(|ledger| {
                if let Some(pulled) = ledger.get_mut(name) {
                    pulled.clusters.remove(cluster);
                }
            });
        }
        let unwanted = given_up.is_some_and(|cluster| pulled.clusters.iter().all(|other| other == cluster));
        let too_much = quota > 0 && held > quota;
        if image.in_use > 0 || !(unwanted || too_much) {
            continue;
        }
        // A unit is known before it asks for its image, and gets no answer while one is removed: it is seen here, or finds it gone.
        let _none_is_found = inner.removal.write().expect("no code panics under this lock");
        if needed().contains(name) || inner.pulls.lock().expect("no code panics under this lock").has(name) {
            continue;
        }
        // Without force: a container that began just now keeps it.
        match inner.engine.call(&["image", "rm", "--", name]) {
            Ok(said) => {
                inner.found.lock().expect("no code panics under this lock").remove(name);
                // Both engines say so once the last name is gone.
                if said.contains("Deleted: ") {
                    held = held.saturating_sub(image.size);
                }
                info!(image = name, reason = if unwanted { "unwanted" } else { "quota" }, "image removed");
                inner.change(|ledger| {
                    ledger.remove(name);
                });
                removed.push(name.clone());
            }
            Err(error) => debug!(image = name, error = &error as &dyn std::error::Error, "image stays"),
        }
    }
    Ok(removed)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

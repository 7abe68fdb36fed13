//! Spare shims before units, and what units leave behind after them.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{info, warn};

use super::shims::{self, Spare};
use super::{Inner, Supervisor};
use crate::runtime::{self, Kind};
use crate::unit_dir::{self, UnitDir};
use crate::{cgroup, kept};

/// Folder of shims that wait for a unit, below the runtime directory.
const SPARES: &str = "spares";
/// Shims that wait for units: so many may come within the 20 ms that a new one takes to be ready. Each takes 0.7 MB.
const SPARES_KEPT: usize = 2;
/// Longest wait for a spare shim of an earlier life to be gone; it was told when its agent died.
const SPARE_LIMIT: Duration = Duration::from_secs(1);
/// How often leftovers are looked for.
const REAP_PERIOD: Duration = Duration::from_secs(60);

/// What a look for leftovers found.
struct Reaped {
    containers: usize,
    /// Directories of shims that live and belong to no living unit.
    shims: Vec<PathBuf>,
}

impl Inner {
    /// Starts a shim that waits for a launch, in a directory of its own.
    pub(super) fn spawn_spare(&self) -> std::io::Result<Spare> {
        let name = format!("{}.{}", self.mark, uuid::Uuid::new_v4());
        let group = (self.runtime.kind() == Kind::Process).then_some(name.as_str());
        shims::spawn(&self.options.shim_binary, self.spares_dir().join(&name), group)
    }

    /// Where shims without a unit are.
    pub(super) fn spares_dir(&self) -> PathBuf {
        self.options.runtime_dir.join(SPARES)
    }

    /// The shim that waits for longest.
    pub(super) fn take_spare(&self) -> Option<Spare> {
        self.spares.lock().expect("no code panics under this lock").pop_front()
    }

    /// Sees to it that the next units find a shim waiting: starting one takes longer than starting a worker.
    pub(super) fn keep_spares(&self) {
        let mut spares = self.spares.lock().expect("no code panics under this lock");
        while spares.len() < SPARES_KEPT && !self.cancel.is_cancelled() {
            match self.spawn_spare() {
                Ok(fresh) => spares.push_back(fresh),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "spare shim cannot be started");
                    return;
                }
            }
        }
    }

    /// Removes what spare shims of an earlier life left. They ended with their agent.
    pub(super) fn remove_spares(&self) {
        let dir = self.spares_dir();
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if let Some(group) = cgroup::noted(&entry.path().join(cgroup::NOTE)) {
                cgroup::end(&group, SPARE_LIMIT);
            }
        }
        if let Err(error) = self.runtime.remove_tree(&dir) {
            warn!(error = &error as &dyn std::error::Error, "spare shims of an earlier life left something");
        }
    }

    /// Removes kept directories whose time is up. Blocks.
    fn remove_kept(&self) {
        for path in kept::expired(&self.kept()) {
            match self.runtime.remove_tree(&path) {
                Ok(()) => kept::forget(&path),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "a kept directory cannot be removed");
                }
            }
        }
    }

    /// Looks for leftovers and removes them. Blocks.
    fn reap(&self) -> Result<Reaped, runtime::Error> {
        let containers = self.runtime.reap(&|holder| self.is_stale_holder(holder))?;
        let mut shims = Vec::new();
        for attempt in unit_dir::list(&self.runtime_units()).unwrap_or_default() {
            let dir = self.runtime_units().join(attempt.to_string());
            if !self.is_stale(attempt) {
                continue;
            }
            if shims::is_alive(&dir) {
                shims.push(dir);
            } else {
                self.runtime.end(attempt, &dir)?;
                self.runtime.remove_tree(&dir)?;
            }
        }
        for attempt in unit_dir::list(&self.units_dir()).unwrap_or_default() {
            let dir = UnitDir::new(&self.units_dir(), attempt);
            // One that is to be collected goes with its unit.
            let is_kept = || dir.load().is_ok_and(|found| found.is_some_and(|(_, spec)| spec.collect));
            for copy in [dir.project(), dir.stage()] {
                if self.is_stale(attempt) && copy.exists() && !is_kept() {
                    self.runtime.remove_tree(&copy)?;
                }
            }
        }
        if let Err(error) = self.cache.settle() {
            warn!(error = &error as &dyn std::error::Error, "tree cache cannot be synced");
        }
        if self.payloads.load(Ordering::SeqCst) == 0
            && let Err(error) = self.cache.trim(self.options.work.cache_mib << 20)
        {
            warn!(error = &error as &dyn std::error::Error, "tree cache cannot be trimmed");
        }
        Ok(Reaped { containers, shims })
    }
}

impl Supervisor {
    /// Ends containers and removes directories that belong to no living unit.
    pub async fn reap(&self) {
        self.0.dirty.store(false, Ordering::SeqCst);
        let inner = self.0.clone();
        match self.0.blocking(move || inner.reap()).await {
            Ok(reaped) => {
                if reaped.containers > 0 {
                    info!(containers = reaped.containers, "leftover containers removed");
                }
                for dir in reaped.shims {
                    // Its unit is unknown here: whoever submitted it got another store id since.
                    self.0.dirty.store(true, Ordering::SeqCst);
                    warn!(dir = %dir.display(), "ending a shim whose unit is unknown");
                    shims::abort(&dir).await;
                }
            }
            Err(error) => {
                self.0.dirty.store(true, Ordering::SeqCst);
                warn!(error = &error as &dyn std::error::Error, "leftovers cannot be removed; trying again");
            }
        }
    }

    pub(super) async fn reap_for_ever(&self) {
        let mut tick = tokio::time::interval(REAP_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            cgroup::sweep(&self.0.mark.to_string());
            let inner = self.0.clone();
            self.0.blocking(move || inner.remove_kept()).await;
            // An idle node starts no engine every minute.
            if self.0.dirty.load(Ordering::SeqCst) {
                self.reap().await;
            }
        }
    }
}

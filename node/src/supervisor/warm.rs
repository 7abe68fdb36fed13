//! Containers that wait for units, their worker already started.
//!
//! ```text
//! wanted ──▶ waiting ──▶ taken by a unit ──▶ gone with it
//!               └──▶ gone: its worker ended, its image changed, the node rests or stops
//! ```
//!
//! Each has a shim of its own, whose agent is this one: when the agent goes, so do its waiting containers, and what a shim
//! that was killed leaves is reaped by label. A unit takes one by a synced file in its own directory
//! ([`UnitDir::has_claimed`]), and from then on it is the unit's like any other container. None is used twice.
//!
//! What a unit brings comes to the container from outside: its private files are moved into the directory that is mounted at
//! `/runner`, and its project is mounted (or moved) into the one at `/runner/project`. The agent follows no link in there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use plexus_mesh::framed::FrameReader;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::shims::Spare;
use super::{Inner, Supervisor};
use crate::config::WarmSection;
use crate::runtime::{Holder, SLOT_NOTE, Slot};
use crate::shim::protocol::{FromShim, Order, Report, Warm, order};
use crate::tree::working;
use crate::unit_dir::{self, UnitDir};
use crate::work::Caller;

/// Folder of the places for projects, below the data directory.
const STAGES: &str = "warm";
/// Pause before another container takes the place of one that was taken: the unit that took it starts first.
const REFILL: Duration = Duration::from_secs(1);
/// Pause after one that ended by itself, or could not be started: its image may be missing, or no execution environment.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest wait for waiting containers to go when their agent stops.
const END_LIMIT: Duration = Duration::from_secs(15);
/// Longest report of a shim that has no unit.
const REPORT_MAX: usize = 1 << 10;
/// Longest start of a container.
const START_LIMIT: Duration = Duration::from_secs(120);

/// What waits, and what should.
pub(super) struct Pool {
    wanted: Vec<WarmSection>,
    state: Mutex<State>,
    changed: Notify,
    /// No unit is to come here: nothing waits.
    resting: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    waiting: Vec<Waiting>,
    /// Names of all that live or may live and are no unit's yet.
    held: BTreeSet<String>,
    /// Those of them that were told to go.
    retired: BTreeSet<String>,
    /// Before when no container of an entry is started, by the entry's index.
    not_before: Vec<Option<Instant>>,
}

struct Waiting {
    name: String,
    entry: usize,
    /// Id of its image.
    image: String,
    spare: Spare,
}

/// A waiting container that a unit is taking. Its name is held until this goes.
pub(super) struct Claim {
    pub(super) name: String,
    /// `None` once it was adopted.
    pub(super) spare: Option<Spare>,
    /// Where its project will be shown, still in the pool's folder.
    pub(super) stage: PathBuf,
    inner: Arc<Inner>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.pool.lock().held.remove(&self.name);
    }
}

impl Pool {
    pub(super) fn new(wanted: Vec<WarmSection>) -> Self {
        let state = State { not_before: vec![None; wanted.len()], ..State::default() };
        Self { wanted, state: Mutex::new(state), changed: Notify::new(), resting: watch::channel(false).0 }
    }

    /// Lets containers wait or go; true when that is news.
    pub(super) fn rest(&self, resting: bool) -> bool {
        if self.wanted.is_empty() {
            return false;
        }
        let news = self.resting.send_if_modified(|now| std::mem::replace(now, resting) != resting);
        if news {
            self.changed.notify_one();
        }
        news
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics under this lock")
    }

    /// Containers that wait, or should: each counts as one fork against the node's capacity.
    pub(super) fn weight(&self) -> u32 {
        if *self.resting.borrow() { 0 } else { self.wanted.iter().map(|entry| u32::from(entry.count)).sum() }
    }

    /// Whether a unit of this organization may find one of this image, by its name.
    pub(super) fn offers(&self, image: &str, organization: &str) -> bool {
        let state = self.lock();
        let fits = |waiting: &Waiting| {
            let entry = &self.wanted[waiting.entry];
            entry.image == image && entry.organization == organization
        };
        state.waiting.iter().any(fits)
    }

    /// The entries that lack a container, and when the next one may be started if none may now.
    fn missing(&self) -> (Vec<usize>, Option<Instant>) {
        let state = self.lock();
        let now = Instant::now();
        let (mut due, mut later) = (Vec::new(), None::<Instant>);
        for (index, entry) in self.wanted.iter().enumerate() {
            let waiting = state.waiting.iter().filter(|waiting| waiting.entry == index).count();
            if waiting >= usize::from(entry.count) {
                continue;
            }
            match state.not_before.get(index).copied().flatten().filter(|at| *at > now) {
                Some(at) => later = Some(later.map_or(at, |other| other.min(at))),
                None => due.push(index),
            }
        }
        (due, later)
    }

    fn put_off(&self, entry: usize, pause: Duration) {
        if let Some(at) = self.lock().not_before.get_mut(entry) {
            *at = Some(Instant::now() + pause);
        }
        self.changed.notify_one();
    }

    /// Takes every waiting one out; dropping them ends them.
    fn empty(&self) -> Vec<Waiting> {
        std::mem::take(&mut self.lock().waiting)
    }
}

impl Inner {
    fn stages(&self) -> PathBuf {
        self.options.data_dir.join(STAGES)
    }

    /// A waiting container of this image for a unit of this organization.
    pub(super) fn claim(self: &Arc<Self>, image: &str, organization: &str) -> Option<Claim> {
        let pool = &self.pool;
        let mut state = pool.lock();
        let fits = |waiting: &Waiting| {
            waiting.image == image && pool.wanted[waiting.entry].organization == organization
        };
        let at = state.waiting.iter().position(fits)?;
        let Waiting { name, entry, spare, .. } = state.waiting.remove(at);
        drop(state);
        pool.put_off(entry, REFILL);
        Some(Claim { stage: self.stages().join(&name), name, spare: Some(spare), inner: self.clone() })
    }

    /// True for a container that neither waits nor is a living unit's.
    pub(super) fn is_stale_holder(&self, holder: &Holder) -> bool {
        let slot = match holder {
            Holder::Unit(attempt) => return self.is_stale(*attempt),
            Holder::Slot(slot) => slot,
        };
        // In this order: a name leaves the pool once the unit's file is there.
        if self.cancel.is_cancelled() || self.pool.lock().held.contains(slot) {
            return false;
        }
        let alive = self.unfinished();
        !alive.into_iter().any(|attempt| UnitDir::new(&self.units_dir(), attempt).has_claimed(slot))
    }

    /// Removes the places of containers that waited in an earlier life. They ended with their agent.
    pub(super) fn remove_stages(&self) {
        if let Err(error) = self.runtime.remove_tree(&self.stages()) {
            warn!(error = &error as &dyn std::error::Error, "containers that waited left something");
        }
    }

    /// Removes the places of a container that never was a unit's.
    pub(super) async fn clean_slot(self: &Arc<Self>, name: &str) {
        let (inner, name) = (self.clone(), name.to_owned());
        let cleaned = self.blocking(move || {
            for entry in fs::read_dir(inner.spares_dir()).into_iter().flatten().flatten() {
                let is_it = fs::read_to_string(entry.path().join(SLOT_NOTE)).is_ok_and(|note| note == name);
                if is_it {
                    inner.runtime.remove_tree(&entry.path())?;
                }
            }
            inner.runtime.remove_tree(&inner.stages().join(&name))
        });
        if let Err(error) = cleaned.await {
            warn!(error = &error as &dyn std::error::Error, "a container that waited left something");
        }
    }

    /// Ends what waits, and waits for that for a while: an agent that stops in order leaves nothing behind.
    pub(super) async fn empty_pool(&self) {
        let mut ending = self.pool.empty();
        for waiting in &mut ending {
            waiting.spare.stream().shutdown().await.ok(); // its shim takes that as the end
        }
        let gone = async {
            for waiting in &mut ending {
                let mut said = [0; 64];
                while waiting.spare.stream().read(&mut said).await.is_ok_and(|count| count > 0) {}
            }
        };
        if tokio::time::timeout(END_LIMIT, gone).await.is_err() {
            warn!("a container that waited does not end; the next agent finds it by its label");
        }
        for waiting in &ending {
            self.runtime.remove_tree(waiting.spare.dir()).ok(); // else the next agent does
        }
        self.remove_stages();
    }
}

impl Supervisor {
    /// Whether units of the caller's cluster come to this node at present: while none do, no container waits for them.
    pub fn rest(&self, caller: &Caller, resting: bool) {
        if self.0.pool.rest(resting || self.cordoned().is_some()) {
            info!(resting, cluster = %caller.cluster, "told whether units come here");
        }
    }

    /// Containers that wait for a unit.
    pub fn waiting_containers(&self) -> Vec<String> {
        self.0.pool.lock().waiting.iter().map(|waiting| waiting.name.clone()).collect()
    }

    /// Keeps as many containers waiting as the configuration says.
    pub(super) async fn keep_warm(self) {
        let pool = &self.0.pool;
        loop {
            let mut later = None;
            if *pool.resting.borrow() {
                for mut waiting in pool.empty() {
                    pool.lock().retired.insert(waiting.name);
                    // Its shim takes the end of the conversation as the end; one that is gone is what was wanted.
                    waiting.spare.stream().shutdown().await.ok();
                }
            } else {
                let (due, next) = pool.missing();
                later = next;
                for entry in &due {
                    if let Err(reason) = self.start_waiting(*entry).await {
                        debug!(image = pool.wanted[*entry].image, reason, "no container waits yet");
                        pool.put_off(*entry, PAUSE);
                    }
                }
                if !due.is_empty() {
                    continue; // one for each entry at a time
                }
            }
            tokio::select! {
                () = pool.changed.notified() => {}
                () = sleep_until(later.unwrap_or_else(Instant::now)), if later.is_some() => {}
            }
        }
    }

    async fn start_waiting(&self, entry: usize) -> Result<(), String> {
        let inner = &self.0;
        let wanted = &inner.pool.wanted[entry];
        let images = self.images().engine().map_err(|error| error.to_string())?;
        let image = images.find(&wanted.image).await.ok_or("its image is not on this node")?;
        let name = uuid::Uuid::new_v4().simple().to_string();
        inner.pool.lock().held.insert(name.clone());
        let started = self.start_slot(&name, &image.id).await;
        match started {
            Ok(spare) => {
                self.watch_waiting(&name, entry, &spare);
                let waiting = Waiting { name, entry, image: image.id, spare };
                inner.pool.lock().waiting.push(waiting);
                Ok(())
            }
            Err(error) => {
                inner.clean_slot(&name).await;
                inner.pool.lock().held.remove(&name);
                Err(error.to_string())
            }
        }
    }

    async fn start_slot(&self, name: &str, image: &str) -> io::Result<Spare> {
        let mut spare = self.0.spawn_spare()?;
        let (inner, dir) = (self.0.clone(), spare.dir().to_owned());
        let (slot, image) = (name.to_owned(), image.to_owned());
        let command = self.0.blocking(move || {
            fs::write(dir.join(SLOT_NOTE), &slot)?;
            let (private, project) = (dir.join("private"), inner.stages().join(&slot).join("tree"));
            for path in [&private, &private.join("project")] {
                fs::DirBuilder::new().mode(0o700).create(path)?;
            }
            let mounts = inner.cache.has_overlay();
            working::stage(&project, mounts).map_err(io::Error::other)?;
            let places = Slot {
                name: &slot,
                image: &image,
                runtime_dir: &dir,
                private: &private,
                project: &project,
                mounts,
            };
            inner.runtime.warm(&places).map_err(io::Error::other)
        });
        let command = command.await?;
        let stream = spare.stream();
        let warm = Warm {
            argv: command.argv,
            env: command.env,
            cwd: command.cwd.to_string_lossy().into_owned(),
            end_argv: command.end_argv,
        };
        stream.write_all(&order(Order::Warm(Box::new(warm)))).await?;
        // Its greeting, and that the container runs; then the shim says nothing more until a unit comes or it ends.
        let mut reports = FrameReader::new(&mut *stream);
        let ready = async {
            while let Some(said) = reports.next::<FromShim>(REPORT_MAX).await.map_err(io::Error::other)? {
                if matches!(said.report, Some(Report::Ready(_))) {
                    return Ok(());
                }
            }
            Err(io::Error::other("its container did not start"))
        };
        tokio::time::timeout(START_LIMIT, ready).await??;
        Ok(spare)
    }

    /// Takes a container out of the pool when its shim ends, and removes what is left of it.
    fn watch_waiting(&self, name: &str, entry: usize, spare: &Spare) {
        let Ok(stream) = spare.second_stream() else { return };
        let (watcher, name) = (self.clone(), name.to_owned());
        let cancel = self.0.cancel.clone();
        self.0.tasks.spawn(async move {
            let gone = cancel.run_until_cancelled(until_it_speaks(stream)).await;
            if gone.is_none() {
                return;
            }
            // What was taken is the unit's, and speaks to it.
            let pool = &watcher.0.pool;
            let ended = {
                let mut state = pool.lock();
                let at = state.waiting.iter().position(|waiting| waiting.name == name);
                let retired = state.retired.remove(&name);
                at.map(|at| state.waiting.remove(at)).is_some() || retired
            };
            if ended {
                debug!(name, "a waiting container ended");
                watcher.0.clean_slot(&name).await;
                pool.lock().held.remove(&name);
                watcher.0.dirty.store(true, Ordering::SeqCst);
                pool.put_off(entry, PAUSE);
            }
        });
    }
}

/// Waits for the stream to say something, or end.
async fn until_it_speaks(stream: UnixStream) {
    stream.ready(Interest::READABLE).await.ok();
}

impl Claim {
    /// Makes it the unit's: its shim's directory and its place for the project get the unit's names. `None` when it ended
    /// meanwhile. Blocks.
    pub(super) fn adopt(
        &mut self,
        runtime_dir: &std::path::Path,
        stage: &std::path::Path,
    ) -> io::Result<Option<UnixStream>> {
        let Some(spare) = self.spare.take() else { return Ok(None) };
        let Some(stream) = spare.adopt(runtime_dir)? else { return Ok(None) };
        unit_dir::remove_tree(stage).map_err(io::Error::other)?;
        fs::rename(&self.stage, stage)?;
        Ok(Some(stream))
    }
}

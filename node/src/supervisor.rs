//! Owns all units of this node, one task for each.
//!
//! A [`Supervisor`] is a cheap handle. Each verb finds the unit's task and waits for its answer; the task
//! (module `unit`) alone touches the unit's state, disk and shim. At start every unit on disk gets its task back, and
//! finds its shim again if it has one. Every minute [`reap`](Supervisor::reap) looks for what should be gone.

mod about;
mod ahead;
mod cordon;
pub mod images;
mod incarnations;
mod leftovers;
mod news;
mod shims;
mod spools;
mod tombstones;
mod unit;
mod warm;

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use plexus_proto::id::{Attempt, NodeId, OwnerEpoch, StoreId};
use plexus_proto::work::{
    AbandonRequest, CancelRequest, ForgetRequest, ListReply, PrivateBlock, PullPolicy, Refusal, RefusalCode,
    SealedRecord, StatusRequest, SubmitRequest, UnitReply, UnitReplyResult, UnitSpec, UnitStatus,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error, info, info_span, warn};

use crate::cgroup;
use crate::config::WorkSection;
use crate::private;
use crate::runtime::{Images, Kind, Place, Runtime, choice};
use crate::store_id::Store;
use crate::tree::{self, Cache, Digest};
use crate::unit_dir::{self, UnitDir};
use crate::work::{Caller, Unit, refusal};

use cordon::Cordon;
use incarnations::Incarnations;
use shims::Spare;
use spools::Spools;
use tombstones::{Tombstones, today};
pub use unit::View;
use unit::{Request, Task};

/// Units a node remembers: a thousand times what it can run, and still little memory.
const UNITS_MAX: usize = 10_000;
/// Requests that wait for one unit's task. It fills when the disk stalls; callers then wait.
const REQUESTS: usize = 64;
/// Longest wait, at shutdown, for shims whose units have ended to be gone, and the pause between two looks.
const SHIMS_LIMIT: Duration = Duration::from_millis(200);
const SHIMS_PAUSE: Duration = Duration::from_millis(5);

/// What a supervisor is told.
#[derive(Debug)]
pub struct Options {
    /// Durable: units, spools, cache.
    pub data_dir: PathBuf,
    /// On tmpfs: private data and sockets.
    pub runtime_dir: PathBuf,
    /// This program, to be started as shim.
    pub shim_binary: PathBuf,
    /// This node's certified name.
    pub node: NodeId,
    /// How units run.
    pub work: WorkSection,
}

/// The node cannot run units.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] crate::store_id::Error),
    /// The runtime directory, or swap.
    #[error(transparent)]
    Private(#[from] private::Error),
    /// The tree cache.
    #[error("cannot open the tree cache")]
    Cache(#[from] tree::Error),
    /// The incarnations of clusters.
    #[error(transparent)]
    Incarnations(#[from] incarnations::Error),
    /// The attempts that never start again.
    #[error(transparent)]
    Tombstones(#[from] tombstones::Error),
    /// Whether units are taken.
    #[error("cannot read cordon in data_dir")]
    Cordon(#[source] std::io::Error),
    /// The units on disk.
    #[error("cannot open the units on disk")]
    Units(#[from] unit_dir::Error),
}

/// A payload stream's permission.
#[derive(Debug)]
pub struct Opened {
    /// The unit as it stands.
    pub status: UnitStatus,
    /// What the stream must deliver; `None` when nothing is wanted any more.
    pub wanted: Option<Wanted>,
}

/// What a payload stream must deliver.
#[derive(Debug)]
pub struct Wanted {
    /// Names this stream: a later one takes its place.
    pub ticket: u64,
    /// The project tree, if the unit has one, and the bytes of its manifest.
    pub tree: Option<(Digest, u64)>,
    /// Where to lay the working copy out.
    pub copy: PathBuf,
    /// It is collected in the end, so it is one directory of its own, and no layers.
    pub collect: bool,
    /// The image it runs in, and when to pull it; none where units need no image.
    pub image: Option<(String, PullPolicy)>,
}

/// A records stream's permission.
#[derive(Debug)]
pub struct Attachment {
    /// Names this stream: a later one takes its place.
    pub id: u64,
    /// Which attempt.
    pub attempt: Attempt,
    /// The unit as it stands.
    pub status: UnitStatus,
    /// First record that will come.
    pub first_record: u64,
    /// The unit from now on.
    pub view: watch::Receiver<View>,
    /// Where its records are.
    pub spool: PathBuf,
    /// The lost record, renumbered, when the spool ends before the record that is waited for.
    pub tail: Option<SealedRecord>,
}

/// Handle of all units. Dropping the last one leaves the tasks to [`Supervisor::shutdown`].
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    options: Options,
    store: Mutex<StoreId>,
    /// By which the system knows its containers and groups, whatever the store is called now.
    mark: StoreId,
    /// Nonce of this start, and its number on the store.
    start: (u64, u64),
    /// Keeps other agents out until shutdown.
    lock: Mutex<Option<Store>>,
    runtime: Arc<dyn Runtime>,
    /// None where units need no image.
    images: Option<Images>,
    runtime_version: tokio::sync::OnceCell<String>,
    cache: Arc<Cache>,
    incarnations: Incarnations,
    tombstones: Tombstones,
    cordon: Cordon,
    /// Raised when what this node says of itself has changed.
    news: Notify,
    spools: Spools,
    units: Mutex<BTreeMap<Attempt, Handle>>,
    serial: AtomicU64,
    /// Shims that wait for the next units.
    spares: Mutex<VecDeque<Spare>>,
    /// Directories that wait for units, and whether more are being made.
    ahead: Mutex<Vec<PathBuf>>,
    making_ahead: AtomicBool,
    /// Containers that wait for units.
    pool: warm::Pool,
    /// Something ended since leftovers were last looked for.
    dirty: AtomicBool,
    /// Payloads under way: the cache must not be trimmed then.
    payloads: AtomicU64,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Clone)]
struct Handle {
    /// Boxed: a channel keeps room for 32 at least, and a node may know ten thousand units.
    requests: mpsc::Sender<Box<Request>>,
    view: watch::Receiver<View>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Inner {
    fn units(&self) -> MutexGuard<'_, BTreeMap<Attempt, Handle>> {
        self.units.lock().expect("no code panics under this lock")
    }

    fn units_dir(&self) -> PathBuf {
        self.options.data_dir.join("units")
    }

    fn runtime_units(&self) -> PathBuf {
        self.options.runtime_dir.join("units")
    }

    /// Where private directories of ended units are kept for a while.
    fn kept(&self) -> PathBuf {
        self.options.runtime_dir.join("kept")
    }

    fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Moves file system work off the threads that carry streams. Once begun it comes to its end, and shutdown
    /// waits for that, even when nobody waits for the result any more.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let token = self.tasks.token();
        let tracked = move || {
            let value = work();
            drop(token);
            value
        };
        match tokio::task::spawn_blocking(tracked).await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Stores, synced, that an attempt never starts again.
    async fn bury(self: &Arc<Self>, attempt: Attempt) -> Result<(), Refusal> {
        let inner = self.clone();
        let buried = self.blocking(move || inner.tombstones.bury(attempt, today())).await;
        buried.map_err(|error| {
            refusal(
                RefusalCode::NodeFull,
                format!("this node cannot store the end of unit {attempt}: {error}"),
            )
        })
    }

    /// Attempts that are not over.
    fn unfinished(&self) -> Vec<Attempt> {
        let units = self.units();
        units.iter().filter(|(_, unit)| !unit.view.borrow().is_finished()).map(|(name, _)| *name).collect()
    }

    /// True for an attempt that has no business in a container or on tmpfs any more.
    fn is_stale(&self, attempt: Attempt) -> bool {
        // What is there when an agent goes belongs to the next one.
        !self.cancel.is_cancelled()
            && self.units().get(&attempt).is_none_or(|unit| unit.view.borrow().is_finished())
    }
}

impl Supervisor {
    /// Opens the directories, takes up the units of an earlier life, and removes what a crash left behind.
    ///
    /// # Errors
    /// See [`StartError`]; each text says what to do.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let store = Store::open(&options.data_dir)?;
        private::check_runtime_dir(&options.runtime_dir)?;
        private::check_swap(options.work.allow_swap)?;
        let cache = Arc::new(Cache::open(&options.data_dir.join("cache"))?);
        let incarnations = Incarnations::open(&options.data_dir)?;
        let tombstones = Tombstones::open(&options.data_dir, today())?;
        let cordon = Cordon::open(&options.data_dir).map_err(StartError::Cordon)?;
        let place = Place { node: options.node.clone(), store: store.first_id };
        let work = options.work.clone();
        let kind = tokio::task::spawn_blocking(move || choice::choose(&work)).await.unwrap_or(Kind::Podman);
        info!(runtime = kind.as_str(), "units run here");
        let runtime: Arc<dyn Runtime> = choice::runtime(&options.work, kind, place).into();
        let images = choice::engine(&options.work, kind).map(|engine| {
            let (private, ledger) = (options.runtime_dir.join("pulls"), options.data_dir.join("images.json"));
            Images::new(engine, options.work.images.clone(), private, ledger)
        });
        let pool = warm::Pool::new(if kind.is_container() { options.work.warm.clone() } else { Vec::new() });
        let spools = Spools::new(&options.work);
        let supervisor = Self(Arc::new(Inner {
            options,
            pool,
            store: Mutex::new(store.id),
            mark: store.first_id,
            start: (store.start, store.starts),
            lock: Mutex::new(Some(store)),
            runtime,
            images,
            runtime_version: tokio::sync::OnceCell::new(),
            cache,
            incarnations,
            tombstones,
            cordon,
            news: Notify::new(),
            spools,
            units: Mutex::default(),
            serial: AtomicU64::new(0),
            spares: Mutex::default(),
            ahead: Mutex::default(),
            making_ahead: AtomicBool::new(false),
            dirty: AtomicBool::new(true),
            payloads: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
        }));
        for dir in [supervisor.0.units_dir(), supervisor.0.ahead_dir()] {
            unit_dir::make_parent(&dir)?;
        }
        supervisor.recover()?;
        supervisor.0.remove_spares();
        supervisor.0.remove_stages();
        supervisor.0.remove_ahead();
        supervisor.0.keep_spares();
        supervisor.0.keep_ahead();
        let (warmer, cancel) = (supervisor.clone(), supervisor.0.cancel.clone());
        supervisor.0.tasks.spawn(async move {
            cancel.run_until_cancelled(warmer.keep_warm()).await;
        });
        let (quotas, cancel) = (supervisor.clone(), supervisor.0.cancel.clone());
        supervisor.0.tasks.spawn(async move {
            cancel.run_until_cancelled(quotas.pass_on_quotas()).await;
        });
        let (watcher, cancel) = (supervisor.clone(), supervisor.0.cancel.clone());
        supervisor.0.tasks.spawn(async move {
            cancel.run_until_cancelled(watcher.watch_news()).await;
        });
        let reaper = supervisor.clone();
        let cancel = supervisor.0.cancel.clone();
        supervisor.0.tasks.spawn(async move {
            cancel.run_until_cancelled(reaper.reap_for_ever()).await;
        });
        let (tidier, cancel) = (supervisor.images(), supervisor.0.cancel.clone());
        supervisor.0.tasks.spawn(async move {
            cancel.run_until_cancelled(tidier.tidy_for_ever()).await;
        });
        if let Ok(images) = supervisor.images().engine() {
            let cancel = supervisor.0.cancel.clone();
            supervisor.0.tasks.spawn(async move {
                cancel.run_until_cancelled(images.watch()).await;
            });
        }
        Ok(supervisor)
    }

    /// The tree cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.0.cache
    }

    /// Comes to its end if this supervisor can still act: its lock is free, and work on the disk's threads gets its turn.
    /// For a watchdog; a disk that stalls does not count, for another agent would wait for it as well.
    pub async fn answers(&self) {
        drop(self.0.units());
        self.0.blocking(|| ()).await;
    }

    /// Ends all tasks. Shims and workers stay, and are found again by the next supervisor.
    pub async fn shutdown(&self) {
        self.0.cancel.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        self.0.remove_ahead();
        while self.0.take_spare().is_some() {} // each ends when its agent hangs up
        self.0.empty_pool().await;
        // What shims left that ended or were killed; one that lives keeps its group.
        let living = self.0.units().values().filter(|unit| !unit.view.borrow().is_finished()).count();
        let give_up = Instant::now() + SHIMS_LIMIT;
        while cgroup::sweep(&self.0.mark.to_string()) > living && Instant::now() < give_up {
            tokio::time::sleep(SHIMS_PAUSE).await;
        }
        // Streams may hold this supervisor for a while yet; the directory is the next one's from now on.
        self.0.lock.lock().expect("no code panics under this lock").take();
    }

    fn recover(&self) -> Result<(), StartError> {
        let units = self.0.units_dir();
        let mut found = Vec::new();
        for entry in fs::read_dir(&units).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(unit::ERASED) {
                self.0.runtime.remove_tree(&entry.path()).ok();
            }
        }
        for attempt in unit_dir::list(&units)? {
            let dir = UnitDir::new(&units, attempt);
            if self.0.tombstones.holds(attempt) {
                // A crash came between the note of its end and the end of its directory.
                self.0.runtime.remove_tree(dir.path()).ok();
                continue;
            }
            match unit::load(&dir) {
                Ok(Some((unit, spec))) => {
                    let spooled = crate::spool::held_bytes(&dir.spool()).unwrap_or(0);
                    self.0.spools.changed(0, spooled);
                    found.push((unit, spec, dir, spooled));
                }
                // Nothing was promised about it, and nothing was started.
                Ok(None) => self.0.runtime.remove_tree(dir.path()).unwrap_or_else(|error| {
                    warn!(unit = %attempt, error = &error as &dyn std::error::Error, "leftover directory stays");
                }),
                Err(error) => {
                    error!(unit = %attempt, error = &error as &dyn std::error::Error, "unit cannot be read; left alone");
                }
            }
        }
        if !found.is_empty() {
            info!(units = found.len(), "units of an earlier life taken up");
        }
        // All spools are counted before any shim is told what its own may hold.
        for (unit, spec, dir, spooled) in found {
            self.adopt(&mut self.0.units(), unit, spec, dir, spooled);
        }
        Ok(())
    }

    /// Gives a unit its task. `spooled` bytes of its spool have been counted.
    fn adopt(
        &self,
        units: &mut BTreeMap<Attempt, Handle>,
        unit: Unit,
        spec: UnitSpec,
        dir: UnitDir,
        spooled: u64,
    ) -> Handle {
        let attempt = unit.attempt();
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let (task, view) = Task::new(self.0.clone(), unit, spec, (dir, spooled), requests.downgrade());
        let handle = Handle { requests, view };
        units.insert(attempt, handle.clone());
        let (cancel, inner) = (self.0.cancel.clone(), self.0.clone());
        let run = async move {
            if cancel.run_until_cancelled(task.run(inbox)).await.is_some() {
                inner.units().remove(&attempt);
            }
        };
        self.0.tasks.spawn(run.instrument(info_span!("unit", id = %attempt)));
        handle
    }

    /// Accepts a unit, or says again what became of it.
    pub async fn submit(&self, caller: &Caller, request: SubmitRequest) -> UnitReply {
        reply(self.try_submit(caller, request).await)
    }

    /// The same, with its refusal apart.
    ///
    /// # Errors
    /// Everything that speaks against taking the unit.
    pub async fn try_submit(&self, caller: &Caller, request: SubmitRequest) -> Result<UnitStatus, Refusal> {
        let attempt = parse_attempt(request.unit.as_ref())?;
        let epoch = parse_epoch(request.epoch)?;
        let handle = self.take(caller, attempt, epoch, request).map_err(|refusal| {
            let known = self.handle(attempt).is_some() || self.0.tombstones.holds(attempt);
            Refusal { not_taken: !known, ..refusal }
        })?;
        ask(&handle.requests, attempt, |answer| Request::Submit { caller: caller.clone(), epoch, answer })
            .await?
    }

    /// The unit that is submitted, known or new. Nothing is kept of one that is refused here.
    fn take(
        &self,
        caller: &Caller,
        attempt: Attempt,
        epoch: OwnerEpoch,
        request: SubmitRequest,
    ) -> Result<Handle, Refusal> {
        let own = self.store_id();
        if StoreId::from_slice(&request.store_id) != Ok(own) {
            let message = format!("unit {attempt} is bound to another store than this node's {own}");
            return Err(refusal(RefusalCode::OtherStore, message));
        }
        if self.0.cancel.is_cancelled() {
            return Err(shutting_down());
        }
        self.0.incarnations.check(&caller.cluster, epoch)?;
        if let Some(handle) = self.handle(attempt) {
            return Ok(handle);
        }
        if self.0.tombstones.holds(attempt) {
            return Err(forgotten(attempt));
        }
        let spec = request.spec.ok_or_else(|| refusal(RefusalCode::Invalid, "submit has no spec"))?;
        self.check_spec(attempt, &spec)?;
        self.check_cordon()?;
        self.accept(attempt, caller, epoch, spec)
    }

    fn check_spec(&self, attempt: Attempt, spec: &UnitSpec) -> Result<(), Refusal> {
        let invalid = |message: String| Err(refusal(RefusalCode::Invalid, message));
        if attempt.number == 0 {
            return invalid("attempts count from 1".to_owned());
        }
        if spec.tree.as_ref().is_some_and(|tree| !tree.digest.is_empty() && tree.digest.len() != 32) {
            return invalid(format!("unit {attempt} names a tree by something that is no digest"));
        }
        if self.0.runtime.kind().is_container() && spec.image.is_empty() {
            return invalid(format!("unit {attempt} names no image, and this node runs units in containers"));
        }
        Ok(())
    }

    fn accept(
        &self,
        attempt: Attempt,
        caller: &Caller,
        epoch: OwnerEpoch,
        spec: UnitSpec,
    ) -> Result<Handle, Refusal> {
        let mut units = self.0.units();
        // Another caller may have submitted it a moment ago.
        if let Some(handle) = units.get(&attempt) {
            return Ok(handle.clone());
        }
        if units.len() >= UNITS_MAX {
            let message = format!("this node remembers {UNITS_MAX} units already");
            return Err(refusal(RefusalCode::NodeFull, message));
        }
        let other = units.iter().find(|(other, handle)| {
            other.unit == attempt.unit
                && other.number != attempt.number
                && !handle.view.borrow().is_finished()
        });
        if let Some((other, _)) = other {
            let message = format!("attempt {} of unit {} is not finished", other.number, attempt.unit);
            return Err(refusal(RefusalCode::Invalid, message));
        }
        let owner = crate::work::Owner { cluster: caller.cluster.clone(), node: caller.node.clone(), epoch };
        let unit = Unit::new(attempt, owner, crate::work::State::Pending, 0, 0);
        let dir = UnitDir::new(&self.0.units_dir(), attempt);
        Ok(self.adopt(&mut units, unit, spec, dir, 0))
    }

    /// Asks a unit to end.
    pub async fn cancel(&self, caller: &Caller, request: CancelRequest) -> UnitReply {
        let verb = |epoch, answer| Request::Cancel { caller: caller.clone(), epoch, answer };
        reply(self.act(caller, request.unit.as_ref(), request.epoch, verb).await)
    }

    /// Drops a finished, fully acknowledged unit. One that is unknown is forgotten already.
    pub async fn forget(&self, caller: &Caller, request: ForgetRequest) -> UnitReply {
        let verb = |epoch, answer| Request::Forget { caller: caller.clone(), epoch, answer };
        reply(self.act(caller, request.unit.as_ref(), request.epoch, verb).await)
    }

    /// Gives a unit up: kills what lives of it, and sees to it that it never starts, even if it is not known yet.
    pub async fn abandon(&self, caller: &Caller, request: AbandonRequest) -> UnitReply {
        reply(self.try_abandon(caller, request).await)
    }

    async fn try_abandon(&self, caller: &Caller, request: AbandonRequest) -> Result<UnitStatus, Refusal> {
        let (attempt, epoch) = (parse_attempt(request.unit.as_ref())?, parse_epoch(request.epoch)?);
        self.0.incarnations.check(&caller.cluster, epoch)?;
        if let Some(handle) = self.handle(attempt) {
            let verb = |answer| Request::Abandon { caller: caller.clone(), epoch, answer };
            return ask(&handle.requests, attempt, verb).await?;
        }
        // Its submit may still be on the way.
        self.0.bury(attempt).await?;
        Err(forgotten(attempt))
    }

    async fn act(
        &self,
        caller: &Caller,
        unit: Option<&plexus_proto::work::UnitRef>,
        epoch: Option<plexus_proto::work::OwnerEpoch>,
        verb: impl FnOnce(OwnerEpoch, Answer<UnitStatus>) -> Request,
    ) -> Result<UnitStatus, Refusal> {
        let (attempt, epoch) = (parse_attempt(unit)?, parse_epoch(epoch)?);
        self.0.incarnations.check(&caller.cluster, epoch)?;
        let handle = self.known(attempt)?;
        ask(&handle.requests, attempt, |answer| verb(epoch, answer)).await?
    }

    /// One unit, for its cluster.
    pub async fn status(&self, caller: &Caller, request: StatusRequest) -> UnitReply {
        let status = async {
            let attempt = parse_attempt(request.unit.as_ref())?;
            let view = self.known(attempt)?.view.borrow().clone();
            if view.cluster != caller.cluster {
                return Err(refusal(
                    RefusalCode::NotOwner,
                    format!("unit {attempt} belongs to another cluster"),
                ));
            }
            Ok(view.status)
        };
        reply(status.await)
    }

    /// All units of the caller's cluster.
    pub fn list(&self, caller: &Caller) -> ListReply {
        let units = self.0.units();
        let views = units.values().map(|handle| handle.view.borrow().clone());
        ListReply {
            units: views
                .filter(|view| view.cluster == caller.cluster)
                .map(|view| UnitStatus { label: view.label.to_string(), ..view.status })
                .collect(),
        }
    }

    /// Lets a payload stream begin.
    ///
    /// # Errors
    /// Unknown unit, or a caller that may not act on it.
    pub async fn open_payload(
        &self,
        caller: &Caller,
        attempt: Attempt,
        epoch: OwnerEpoch,
    ) -> Result<Opened, Refusal> {
        self.0.incarnations.check(&caller.cluster, epoch)?;
        let handle = self.known(attempt)?;
        let verb = |answer| Request::OpenPayload { caller: caller.clone(), epoch, answer };
        ask(&handle.requests, attempt, verb).await?
    }

    /// Where the tree lies that an ended unit left behind.
    ///
    /// # Errors
    /// Not the caller's, unknown, not ended, or it left none.
    pub async fn open_collect(
        &self,
        caller: &Caller,
        attempt: Attempt,
        epoch: OwnerEpoch,
    ) -> Result<PathBuf, Refusal> {
        self.0.incarnations.check(&caller.cluster, epoch)?;
        let handle = self.known(attempt)?;
        let verb = |answer| Request::OpenCollect { caller: caller.clone(), epoch, answer };
        ask(&handle.requests, attempt, verb).await?
    }

    /// Hands over a complete payload; `image` is the id of the image it runs in. Returns once the unit's start is certain or has failed.
    ///
    /// # Errors
    /// A later stream took the place of this one.
    pub async fn start_unit(
        &self,
        attempt: Attempt,
        ticket: u64,
        block: PrivateBlock,
        image: Option<String>,
    ) -> Result<UnitStatus, Refusal> {
        let handle = self.known(attempt)?;
        ask(&handle.requests, attempt, |answer| Request::Payload { ticket, block, image, answer }).await?
    }

    /// Says that the payload of a unit can never be laid out here.
    ///
    /// # Errors
    /// A later stream took the place of this one.
    pub async fn fail_unit(
        &self,
        attempt: Attempt,
        ticket: u64,
        reason: String,
    ) -> Result<UnitStatus, Refusal> {
        let handle = self.known(attempt)?;
        ask(&handle.requests, attempt, |answer| Request::Unprepared { ticket, reason, answer }).await?
    }

    /// Lets a records stream begin; every older one of the unit ends.
    ///
    /// # Errors
    /// Unknown unit, or a caller that may not act on it.
    pub async fn attach(
        &self,
        caller: &Caller,
        attempt: Attempt,
        epoch: OwnerEpoch,
        from_record: u64,
    ) -> Result<Attachment, Refusal> {
        self.0.incarnations.check(&caller.cluster, epoch)?;
        let handle = self.known(attempt)?;
        let view = handle.view.clone();
        let verb = |answer| Request::Attach { caller: caller.clone(), epoch, from_record, view, answer };
        ask(&handle.requests, attempt, verb).await?
    }

    /// Takes an acknowledgement from a records stream; one from an older stream, or with an older epoch, is void.
    pub async fn ack(&self, attempt: Attempt, attachment: u64, epoch: OwnerEpoch, up_to: u64) {
        if let Some(handle) = self.handle(attempt) {
            handle.requests.send(Box::new(Request::Ack { attachment, epoch, up_to })).await.ok();
        }
    }

    /// Says that a unit's spool cannot be read.
    pub async fn damaged(&self, attempt: Attempt, why: String) {
        if let Some(handle) = self.handle(attempt) {
            handle.requests.send(Box::new(Request::Damaged { why })).await.ok();
        }
    }

    /// The unit as it is from now on.
    ///
    /// # Errors
    /// Unknown unit.
    pub fn watch(&self, attempt: Attempt) -> Result<watch::Receiver<View>, Refusal> {
        Ok(self.known(attempt)?.view)
    }

    /// Marks a payload as under way while the guard lives.
    pub fn payload_guard(&self) -> PayloadGuard {
        self.0.payloads.fetch_add(1, Ordering::SeqCst);
        PayloadGuard(self.0.clone())
    }

    /// Removes a working copy that was never used.
    pub async fn discard(&self, dir: PathBuf) {
        let runtime = self.0.runtime.clone();
        if let Err(error) = self.0.blocking(move || runtime.remove_tree(&dir)).await {
            warn!(error = &error as &dyn std::error::Error, "unused working copy stays");
        }
    }

    fn handle(&self, attempt: Attempt) -> Option<Handle> {
        self.0.units().get(&attempt).cloned()
    }

    fn known(&self, attempt: Attempt) -> Result<Handle, Refusal> {
        self.handle(attempt).ok_or_else(|| unknown(attempt))
    }
}

/// See [`Supervisor::payload_guard`].
#[derive(Debug)]
pub struct PayloadGuard(Arc<Inner>);

impl Drop for PayloadGuard {
    fn drop(&mut self) {
        self.0.payloads.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Where a task's answer goes.
type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// Sends a request to a unit's task and waits for the answer.
async fn ask<T>(
    requests: &mpsc::Sender<Box<Request>>,
    attempt: Attempt,
    request: impl FnOnce(Answer<T>) -> Request,
) -> Result<Result<T, Refusal>, Refusal> {
    let (answer, waiting) = oneshot::channel();
    if requests.send(Box::new(request(answer))).await.is_err() {
        return Err(unknown(attempt)); // forgotten a moment ago
    }
    waiting.await.map_err(|_| shutting_down())
}

fn reply(result: Result<UnitStatus, Refusal>) -> UnitReply {
    UnitReply {
        result: Some(match result {
            Ok(status) => UnitReplyResult::Status(status),
            Err(refusal) => UnitReplyResult::Refusal(refusal),
        }),
    }
}

fn parse_attempt(unit: Option<&plexus_proto::work::UnitRef>) -> Result<Attempt, Refusal> {
    Attempt::try_from(unit).map_err(|error| refusal(RefusalCode::Invalid, error.to_string()))
}

fn parse_epoch(epoch: Option<plexus_proto::work::OwnerEpoch>) -> Result<OwnerEpoch, Refusal> {
    epoch.map(OwnerEpoch::from).ok_or_else(|| refusal(RefusalCode::Invalid, "message has no epoch"))
}

fn unknown(attempt: Attempt) -> Refusal {
    refusal(RefusalCode::UnknownUnit, format!("unit {attempt} is not known on this node"))
}

fn forgotten(attempt: Attempt) -> Refusal {
    let message =
        format!("unit {attempt} ended here or was given up, and was forgotten: it never starts again");
    refusal(RefusalCode::Forgotten, message)
}

fn shutting_down() -> Refusal {
    refusal(RefusalCode::ShuttingDown, "node is shutting down")
}

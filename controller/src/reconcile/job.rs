//! Drives one placed unit to its end: submit, payload, records, last word.
//!
//! The driver may be dropped at any await and started again elsewhere: it asks the node where the unit stands and
//! goes on from there. What cannot be reached is tried again for as long as it takes, and the job says so; what the
//! node refuses for good ends the job.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use plexus_mesh::MeshStream;
use plexus_mesh::framed::{self, FrameReader, FrameWriter};
use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::id::{Attempt, NodeId, OwnerEpoch};
use plexus_proto::packet::Class;
use plexus_proto::work::{
    Ack, Attach, Finished, Outcome, RecordMessage, RecordMessageKind, Refusal, RefusalCode, SubmitRequest,
    UnitSpec, UnitStatus, UnitStatusState,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::sleep;

use super::{CancelSignal, Context, imports, load};
use crate::dispatch::{self, CallError, NodeClient, collect, payload};
use crate::http::settings;
use crate::ingest::{self, Session, UnitContext, UnitResult};
use crate::kind::Kind;
use crate::outcome;
use crate::store::core::Error as StoreError;
use crate::store::events::{EventQuery, JobKey, Order, TextMatch};
use crate::store::instances;
use crate::store::units::{self, Final, Unit, UnitState};
use crate::store::updates;
use crate::{project, project_update};

/// Seconds between SIGTERM and the end of the whole process tree: the runner looks every 0.5 s, then packs artifacts.
const GRACE_SECONDS: u32 = 10;
/// Time for which a private data directory is kept where people asked for that: a day.
const KEEP_SECONDS: u32 = 24 * 3600;
/// Longest wait for the node to say where.
const KEPT: Duration = Duration::from_secs(10);
/// First pause after a node could not be reached; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause. A node that comes back is noticed sooner, by the mesh.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pause between two words of progress: each is a write to the database.
const PROGRESS: Duration = Duration::from_millis(500);

/// Longest wait for the node to end a stream of records that we ended: a round trip on a bad day. The job is over
/// meanwhile for all who look at its events; its status waits for this.
const HANG_UP: Duration = Duration::from_secs(2);

/// Why a step did not lead on.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    /// It may work later.
    #[error("{0}")]
    Passing(String),
    /// It never will: the job ends with this.
    #[error("{0}")]
    Fatal(String),
    /// Another controller owns the unit now.
    #[error("another controller has taken the unit over")]
    Outranked,
    /// The node has nothing of the unit and never had: the job may go to another.
    #[error("{words}")]
    NotTaken {
        /// Why it does not take it.
        words: String,
        /// Under which it was asked.
        epoch: OwnerEpoch,
    },
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Passing(chain(&error))
    }
}

impl From<load::Error> for Trouble {
    fn from(error: load::Error) -> Self {
        if error.is_passing() { Self::Passing(chain(&error)) } else { Self::Fatal(chain(&error)) }
    }
}

impl From<ingest::Error> for Trouble {
    fn from(error: ingest::Error) -> Self {
        if error.is_fenced() { Self::Outranked } else { Self::Passing(chain(&error)) }
    }
}

impl From<framed::Error> for Trouble {
    fn from(error: framed::Error) -> Self {
        Self::Passing(chain(&error))
    }
}

impl From<CallError> for Trouble {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { refusal, .. } => refused(&refusal),
            CallError::Unreachable { .. } | CallError::Empty { .. } => Self::Passing(error.to_string()),
        }
    }
}

impl From<payload::Error> for Trouble {
    fn from(error: payload::Error) -> Self {
        match error {
            payload::Error::Refused(refusal) => refused(&refusal),
            payload::Error::Tree(crate::payload::tree::Error::Changed(_)) => Self::Passing(error.to_string()),
            payload::Error::Tree(_) => Self::Fatal(chain(&error)),
            _ => Self::Passing(chain(&error)),
        }
    }
}

impl From<collect::Error> for Trouble {
    fn from(error: collect::Error) -> Self {
        match error {
            collect::Error::Refused(refusal) => refused(&refusal),
            collect::Error::Store(cause) if !cause.is_disk() => Self::Fatal(chain(&cause)),
            _ => Self::Passing(chain(&error)),
        }
    }
}

fn refused(refusal: &Refusal) -> Trouble {
    match refusal.code() {
        RefusalCode::OlderEpoch => Trouble::Outranked,
        // Nothing is decided by a controller whose database is not the latest: everything waits for its operator.
        RefusalCode::PastIncarnation => {
            Trouble::Passing(format!("{}; run plexus-controller db recovered", refusal.message))
        }
        RefusalCode::NodeFull | RefusalCode::ShuttingDown => Trouble::Passing(refusal.message.clone()),
        _ => Trouble::Fatal(refusal.message.clone()),
    }
}

/// What a submit that was refused leads to. `alone`: nobody but its caller ever submitted the unit, and no submit before was left
/// without an answer: the node may have taken that one.
fn submit_refused(error: payload::Error, alone: bool, epoch: OwnerEpoch) -> Trouble {
    let elsewhere = |refusal: &Refusal| {
        let code = refusal.code();
        alone
            && refusal.not_taken
            && matches!(code, RefusalCode::NodeFull | RefusalCode::ShuttingDown | RefusalCode::OtherStore)
    };
    match error {
        payload::Error::Refused(refusal) if elsewhere(&refusal) => {
            Trouble::NotTaken { words: refusal.message, epoch }
        }
        error => error.into(),
    }
}

/// The whole chain of causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Brings the unit to its end and the job to its last word. Returns when that is stored, or when another controller
/// has taken over. `settled` turns true once a placement of just now is on the disk: what it leads to is read before, and nobody
/// hears of it.
pub(super) async fn drive(
    context: Context,
    unit: Unit,
    kind: Kind,
    created: Timestamp,
    cancel: watch::Receiver<CancelSignal>,
    settled: watch::Receiver<bool>,
) {
    let job = JobKey { id: unit.job, created };
    let client = NodeClient::new(&context.mesh, &unit.node);
    let alone = unit.epoch.is_some();
    let said = AtomicBool::new(false);
    let mut driver = Driver { client, context, unit, kind, job, cancel, settled, said, alone };
    let mut pause = PAUSE_MIN;
    loop {
        let mut last = match driver.attempt().await {
            Ok(last) => last,
            Err(Trouble::Fatal(words)) => outcome::without_unit("error", words),
            Err(Trouble::Outranked) => {
                tracing::warn!("another controller has taken the unit over");
                return;
            }
            Err(Trouble::NotTaken { words, epoch }) => {
                driver.alone = true; // it was refused unseen
                match driver.give_back(&words, epoch).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "cannot place the job again"
                        );
                    }
                }
                driver.pause(&mut pause).await;
                continue;
            }
            Err(Trouble::Passing(words)) => {
                tracing::info!(reason = words, "will try again");
                driver.explain(&words).await;
                driver.pause(&mut pause).await;
                continue;
            }
        };
        if let Err(error) = imports::bring_in(&driver.context.core, driver.unit.job, &mut last).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot store what an inventory update brought"
            );
            driver.explain("waiting: the database takes no hosts at the moment").await;
            driver.pause(&mut pause).await;
            continue;
        }
        match units::finish(&driver.context.core, driver.unit.job, &last).await {
            Ok(()) => {
                tracing::info!(status = last.status, "job is over");
                driver.clear().await;
                return;
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot store the end of the job");
                driver.pause(&mut pause).await;
            }
        }
    }
}

/// Lets the node drop what it still holds. Pauses when it cannot be reached, so that the caller may simply repeat.
pub(super) async fn forget(context: &Context, unit: Unit, created: Timestamp) {
    let client = NodeClient::new(&context.mesh, &unit.node);
    let forgotten = async {
        let epoch = units::take(&context.core, unit.attempt).await?;
        if unit.state == UnitState::Abandoned {
            // The node is back: what still lives of the unit ends now. What it printed is stored below, late.
            match client.abandon(unit.attempt, epoch).await {
                Err(CallError::Refused { refusal, .. })
                    if matches!(refusal.code(), RefusalCode::Forgotten | RefusalCode::OtherStore) => {}
                status => drop(status?),
            }
        }
        let last = match client.forget(unit.attempt, epoch).await {
            Err(CallError::Refused { refusal, .. })
                if matches!(refusal.code(), RefusalCode::UnknownUnit | RefusalCode::OtherStore) =>
            {
                None
            }
            Err(CallError::Refused { refusal, .. }) if refusal.code() == RefusalCode::NotFinished => {
                settle(context, &unit, created, epoch).await?;
                Some(client.forget(unit.attempt, epoch).await?)
            }
            status => Some(status?),
        };
        if let Some(last) = last {
            let key = JobKey { id: unit.job, created };
            let lost =
                matches!(&last.state, Some(UnitStatusState::Finished(end)) if end.outcome() == Outcome::Lost);
            if let Err(error) = context.events.balance(key, unit.attempt, last.records, lost).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot see whether the records of a unit balance"
                );
            }
        }
        Ok::<_, Trouble>(units::forgotten(&context.core, unit.attempt).await?)
    };
    if let Err(trouble) = forgotten.await {
        tracing::debug!(unit = %unit.attempt, reason = %trouble, "node has not forgotten the unit yet");
        let mut nodes = context.nodes.clone();
        nodes.mark_unchanged();
        tokio::select! {
            () = sleep(PAUSE_MAX) => {}
            _ = nodes.changed() => {} // it may be back
        }
    }
}

/// Stores what the node still holds of a job that is over, and acknowledges it all. The last acknowledgement may have
/// been lost on the way, or may have died with the controller that owed it.
async fn settle(
    context: &Context,
    unit: &Unit,
    created: Timestamp,
    epoch: OwnerEpoch,
) -> Result<(), Trouble> {
    let session = open_session(context, unit, JobKey { id: unit.job, created }, epoch).await?;
    let stream = open_stream(context, &unit.node, dispatch::RECORDS).await?;
    if session.is_complete() {
        acknowledge(stream, unit.attempt, epoch, session.next_record()).await
    } else {
        read_records(stream, session, unit.attempt, epoch, &watch::Sender::new(None)).await.map(drop)
    }
}

async fn open_session(
    context: &Context,
    unit: &Unit,
    job: JobKey,
    epoch: OwnerEpoch,
) -> Result<Session, Trouble> {
    let shown = load::shown(context, unit.job).await?;
    let (key, _) = context.vault.spool_key(unit.attempt, unit.store);
    let unit = UnitContext {
        attempt: unit.attempt,
        job,
        key,
        header: shown.image.map(|image| format!("Execution environment: {image}")),
        masks: shown.secrets,
    };
    Ok(context.ingest.open(unit, epoch).await?)
}

async fn open_stream(context: &Context, node: &NodeId, service: &str) -> Result<MeshStream, Trouble> {
    let opened = context.mesh.connect(node, service, Class::Bulk).await;
    opened.map_err(|error| Trouble::Passing(format!("node {node} cannot be reached: {}", chain(&error))))
}

struct Driver {
    context: Context,
    client: NodeClient,
    unit: Unit,
    kind: Kind,
    job: JobKey,
    cancel: watch::Receiver<CancelSignal>,
    /// Whether the placement is on the disk.
    settled: watch::Receiver<bool>,
    /// Something stands in the job's explanation that is to go when it is over.
    said: AtomicBool,
    /// Nobody else ever submitted the unit, and each submit of this driver was refused unseen.
    alone: bool,
}

impl Driver {
    /// One go at the rest of the unit's life, under an epoch of its own.
    async fn attempt(&mut self) -> Result<Final, Trouble> {
        let epoch = match self.unit.epoch.take() {
            Some(placed) => placed,
            None => units::take(&self.context.core, self.unit.attempt).await?,
        };
        if !self.is_started(epoch).await? {
            if self.cancel.borrow().is_some() {
                self.until_settled().await?;
                // It may have been submitted without our knowing; a canceled unit never starts.
                match self.client.cancel(self.unit.attempt, epoch).await {
                    Err(CallError::Refused { refusal, .. }) if refusal.code() == RefusalCode::UnknownUnit => {
                    }
                    status => drop(status?),
                }
                return Ok(outcome::without_unit("canceled", ""));
            }
            self.begin(epoch).await?;
        }
        self.follow(epoch).await
    }

    /// Whether the node has all it needs for the unit and has gone on from there.
    async fn is_started(&self, epoch: OwnerEpoch) -> Result<bool, Trouble> {
        if self.unit.state == UnitState::Placed && epoch.counter == 1 {
            return Ok(false); // nobody has said a word to the node yet
        }
        match self.client.status(self.unit.attempt).await {
            Err(CallError::Refused { refusal, .. }) if refusal.code() == RefusalCode::UnknownUnit => {
                if self.unit.state == UnitState::Placed {
                    return Ok(false); // a node keeps the names of all it ever started: this one never started there
                }
                // It did start there, so one of the two disks is not what it was. Submitting it could run it again.
                Err(Trouble::Fatal(format!(
                    "The job's end is unknown: node {} does not know what it had started, so its disk was set up anew or set back \
                     to an earlier state, or this controller's database was set back. What the job printed until then is \
                     stored.",
                    self.unit.node
                )))
            }
            status => Ok(!needs_payload(&status?)),
        }
    }

    /// Submits the unit and sends its payload; the node has started it when this returns.
    async fn begin(&mut self, epoch: OwnerEpoch) -> Result<(), Trouble> {
        // On the heap: it is large, and is moved more than once.
        let everything = Box::pin(load::everything(&self.context, self.unit.job));
        let loaded = async {
            let mut loaded = everything.await?;
            let tree = loaded.tree().await?;
            Ok::<_, Trouble>((loaded, tree))
        };
        let cleans_up = async { Ok(settings::cleans_up(&self.context.core).await?) };
        let ready = async { tokio::try_join!(loaded, cleans_up, self.open(dispatch::PAYLOAD)) };
        let (ready, settled) = tokio::join!(ready, self.until_settled());
        settled?;
        let ((loaded, tree), cleans_up, stream) = ready?;
        let (key, key_id) = self.context.vault.spool_key(self.unit.attempt, self.unit.store);
        let spec = UnitSpec {
            label: format!("{} {}", self.kind.as_str().replace('_', " "), self.unit.job),
            image: loaded.image.clone(),
            pull: loaded.pull.into(),
            tree: Some(tree.reference()),
            grace_seconds: GRACE_SECONDS,
            timeout_seconds: loaded.run.limits.hard(),
            env: Default::default(),
            organization: loaded.organization.clone(),
            keep_seconds: if cleans_up { 0 } else { KEEP_SECONDS },
            collect: self.kind.collects(),
            // A unit outlives the silence of its controller for as long as that takes; an operator may abandon it.
            owner_deadline_seconds: 0,
        };
        let waited = Timestamp::now().duration_since(self.job.created).as_secs_f64() * 1e3;
        tracing::debug!(waited_ms = waited, "unit goes to its node");
        let submit = SubmitRequest {
            unit: Some(self.unit.attempt.into()),
            epoch: Some(epoch.into()),
            store_id: self.unit.store.0.as_bytes().to_vec().into(),
            spec: Some(spec),
        };
        let block = loaded.run.block(loaded.registry, &key, key_id);
        let (progress, said) = watch::channel(String::new());
        let tell = move |line: String| drop(progress.send_replace(line));
        // Unless it is refused, the node may have taken it.
        let alone = std::mem::take(&mut self.alone);
        let done = tokio::select! {
            sent = payload::send(stream, submit, Arc::clone(&tree), block, tell) => {
                sent.map_err(|error| submit_refused(error, alone, epoch))?
            }
            trouble = self.pass_on_cancels(epoch) => return Err(trouble),
            never = self.tell_progress(said) => match never {},
        };
        if let Some(image) = done.image {
            let digest = if image.digest.is_empty() { image.id } else { image.digest };
            units::ran_in(&self.context.core, self.unit.job, &digest).await?;
        }
        units::started(&self.context.core, self.unit.job, self.unit.attempt).await?;
        self.unit.state = UnitState::Started;
        Ok(())
    }

    /// Waits until the placement is on the disk: neither a node nor people hear before what follows from it.
    async fn until_settled(&self) -> Result<(), Trouble> {
        if self.settled.clone().wait_for(|settled| *settled).await.is_err() {
            self.context.core.settle().await?; // whoever stored it gave up; this says why
        }
        Ok(())
    }

    /// Shows what the node is busy with before the job can start, at most twice a second.
    async fn tell_progress(&self, mut said: watch::Receiver<String>) -> std::convert::Infallible {
        while said.changed().await.is_ok() {
            let line = said.borrow_and_update().clone();
            self.say(&format!("pulling the execution environment: {line}")).await;
            sleep(PROGRESS).await;
        }
        std::future::pending().await // the payload is through, or broke; its sender says which
    }

    /// Shows why output is held on the node, and when it is not any more; and that a node which could not be reached is there
    /// again.
    async fn tell_held(&self, mut held: watch::Receiver<Option<String>>) -> std::convert::Infallible {
        while held.changed().await.is_ok() {
            let why = held.borrow_and_update().clone().unwrap_or_default();
            if !why.is_empty() {
                self.say(&format!("waiting: output is held on node {}: {why}", self.unit.node)).await;
            } else if self.said.load(Ordering::Relaxed) && self.cancel.borrow().is_none() {
                self.say("").await;
            }
            sleep(PROGRESS).await;
        }
        std::future::pending().await // the stream is at its end; its reader says why
    }

    async fn open(&self, service: &str) -> Result<MeshStream, Trouble> {
        open_stream(&self.context, &self.unit.node, service).await
    }

    /// Reads records until the last one is stored, then says what became of the job.
    async fn follow(&self, epoch: OwnerEpoch) -> Result<Final, Trouble> {
        let session = open_session(&self.context, &self.unit, self.job, epoch).await?;
        let result = if session.is_complete() {
            session.result().await?
        } else {
            let stream = self.open(dispatch::RECORDS).await?;
            let (tell, held) = watch::channel(None);
            tokio::select! {
                result = read_records(stream, session, self.unit.attempt, epoch, &tell) => result?,
                never = self.tell_held(held) => match never {},
                trouble = self.pass_on_cancels(epoch) => return Err(trouble),
            }
        };
        let mut last = outcome::of(&result, self.cancel.borrow().is_some());
        if self.kind.collects() && last.status == "successful" {
            self.gather(epoch, &last.artifacts).await?;
        }
        if self.kind == Kind::ProjectUpdate && last.status == "failed" && last.explanation.is_empty() {
            last.explanation = self.trouble().await?;
        }
        if !settings::cleans_up(&self.context.core).await?
            && let Some(path) = self.kept().await
        {
            let node = &self.unit.node;
            outcome::push_sentence(
                &mut last.explanation,
                &format!("The private data directory is kept on node {node} for a day: {path}"),
            );
        }
        Ok(last)
    }

    /// Takes in the tree that the unit left behind. Nothing of it counts before the job's end does; until then it may be done
    /// again, by this controller or the next, and the node keeps it.
    async fn gather(&self, epoch: OwnerEpoch, artifacts: &str) -> Result<(), Trouble> {
        let artifacts: serde_json::Value = serde_json::from_str(artifacts).unwrap_or_default();
        let revision = artifacts["scm_revision"].as_str().unwrap_or_default();
        let (stream, store) = (self.open(dispatch::COLLECT).await?, Arc::clone(&self.context.store));
        let digest = collect::fetch(stream, self.unit.attempt, epoch, Arc::clone(&store)).await?;
        crate::crash::Point::TreeKept.hit();
        let listed = tokio::task::spawn_blocking(move || project::listed(&store, &digest)).await;
        let listed = listed.map_err(|error| Trouble::Passing(error.to_string()))?;
        let listed = listed.map_err(collect::Error::Store)?;
        let tree = plexus_tree::store::hex(&digest);
        updates::gathered(&self.context.core, self.unit.job, &tree, revision, &listed).await?;
        crate::crash::Point::TreeNoted.hit();
        Ok(())
    }

    /// What went wrong in an update, in one sentence, from what its last failed task said.
    async fn trouble(&self) -> Result<String, Trouble> {
        let query = EventQuery {
            kind: Some(TextMatch::In(vec!["runner_on_failed".to_owned()])),
            order: Order::Descending,
            limit: 1,
            total: false,
            ..EventQuery::default()
        };
        let page = self.context.events.events(self.job, query).await;
        let page = page.map_err(|error| Trouble::Passing(chain(&error)))?;
        let said = page.events.first().map(|event| event.event_data.get().to_owned());
        let Some(said) = said else { return Ok(String::new()) };
        let image = load::shown(&self.context, self.unit.job).await?.image.unwrap_or_default();
        Ok(project_update::explain(&said, &image))
    }

    /// Where the node keeps the unit's private directory. It moves it when the unit has ended, a moment after the last record.
    async fn kept(&self) -> Option<String> {
        let give_up = tokio::time::Instant::now() + KEPT;
        while tokio::time::Instant::now() < give_up {
            let status = self.client.status(self.unit.attempt).await.ok()?;
            if matches!(status.state, Some(UnitStatusState::Finished(_))) {
                return Some(status.kept).filter(|path| !path.is_empty());
            }
            sleep(PAUSE_MIN).await;
        }
        None
    }

    /// Passes every request to cancel on to the node, the standing one first. Ends only when the unit is not ours
    /// any more.
    async fn pass_on_cancels(&self, epoch: OwnerEpoch) -> Trouble {
        let mut cancel = self.cancel.clone();
        loop {
            let wanted = *cancel.borrow_and_update();
            let mut pause = PAUSE_MIN;
            while let Some(since) = wanted {
                match self.client.cancel(self.unit.attempt, epoch).await {
                    Ok(_) => break,
                    // It is on its way there.
                    Err(CallError::Refused { refusal, .. }) if refusal.code() == RefusalCode::UnknownUnit => {
                    }
                    Err(error) => match Trouble::from(error) {
                        Trouble::Outranked => return Trouble::Outranked,
                        trouble => self.say_pending(since, &trouble.to_string()).await,
                    },
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            if cancel.changed().await.is_err() {
                std::future::pending::<()>().await; // the reconciler is shutting down; so will this driver
            }
        }
    }

    /// Drops what was kept only for the last word.
    async fn clear(&self) {
        if let Err(error) = self.context.events.discard_staging(self.job, self.unit.attempt).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot drop what was kept of the output"
            );
        }
    }

    /// Has the job placed again, unless somebody else has decided on it: its unit is not this driver's any more.
    async fn give_back(&self, words: &str, epoch: OwnerEpoch) -> Result<(), StoreError> {
        // First, so that whoever places it knows.
        self.context.refusals.tell(&self.unit.node, words).await;
        let unit = (self.unit.attempt, self.unit.job);
        let again = units::unplace(&self.context.core, unit, epoch, &format!("waiting: {words}")).await?;
        tracing::info!(
            reason = words,
            again,
            "the node did not take the unit; the job is to be placed again"
        );
        Ok(())
    }

    async fn explain(&self, words: &str) {
        let since = *self.cancel.borrow();
        match since {
            Some(since) => self.say_pending(since, words).await,
            None => self.say(&format!("waiting: {words}")).await,
        }
    }

    async fn say_pending(&self, asked: Timestamp, words: &str) {
        let node = &self.unit.node;
        let reachable = self.context.nodes.borrow().get(node).is_some_and(|node| node.reachable);
        let seen = match reachable {
            true => None,
            false => instances::last_seen(&self.context.core, node).await.unwrap_or_default(),
        };
        self.say(&outcome::cancel_pending(node, asked, seen, words)).await;
    }

    async fn say(&self, words: &str) {
        self.said.store(!words.is_empty(), Ordering::Relaxed);
        if let Err(error) = units::explain(&self.context.core, self.unit.job, words).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot say why the job waits");
        }
    }

    /// Waits before the next try: shorter when the node's reachability changes.
    async fn pause(&mut self, pause: &mut Duration) {
        let mut nodes = self.context.nodes.clone();
        nodes.mark_unchanged();
        tokio::select! {
            () = sleep(*pause) => {}
            _ = nodes.changed() => {}
        }
        *pause = (*pause * 2).min(PAUSE_MAX);
    }
}

fn needs_payload(status: &UnitStatus) -> bool {
    matches!(&status.state, Some(UnitStatusState::Pending(pending)) if pending.needs_payload)
}

/// How the unit ended, when the node says so and there is no further record to read: a unit that was canceled or
/// failed before its worker wrote anything has none.
fn ended_without_records(status: &UnitStatus, next_record: u64) -> Option<Finished> {
    match &status.state {
        Some(UnitStatusState::Finished(finished)) if status.records < next_record => Some(finished.clone()),
        _ => None,
    }
}

/// Feeds records to the session and acknowledges what it has stored, until the unit's last record is.
async fn read_records(
    stream: MeshStream,
    mut session: Session,
    attempt: Attempt,
    epoch: OwnerEpoch,
    held: &watch::Sender<Option<String>>,
) -> Result<UnitResult, Trouble> {
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let from_record = session.next_record();
    let attach = Attach { unit: Some(attempt.into()), epoch: Some(epoch.into()), from_record };
    writer.send(&RecordMessage { kind: Some(RecordMessageKind::Attach(attach)) }).await?;
    let mut stored = session.acked();
    loop {
        tokio::select! {
            message = reader.next::<RecordMessage>(WORK_FRAME_MAX) => {
                let Some(message) = message? else {
                    return Err(Trouble::Passing("the node closed the stream of records".to_owned()));
                };
                let status = match message.kind {
                    Some(RecordMessageKind::Record(record)) => {
                        session.push(record).await?;
                        continue;
                    }
                    Some(RecordMessageKind::Attached(attached)) => attached.status,
                    Some(RecordMessageKind::Status(status)) => Some(status),
                    Some(RecordMessageKind::Refusal(refusal)) => return Err(refused(&refusal)),
                    _ => return Err(Trouble::Passing("the node spoke out of turn".to_owned())),
                };
                if let Some(status) = &status {
                    let news = Some(status.held.clone());
                    held.send_if_modified(|now| *now != news && { *now = news; true });
                }
                let ended = status.and_then(|status| ended_without_records(&status, session.next_record()));
                if let Some(finished) = ended.filter(|_| !session.is_complete()) {
                    return Ok(UnitResult { finished: Some(finished), ..UnitResult::default() });
                }
            }
            changed = stored.changed() => {
                if changed.is_err() {
                    return Ok(session.result().await?); // the writer ended: this says why
                }
                let up_to = *stored.borrow_and_update();
                let ack = Ack { epoch: Some(epoch.into()), up_to };
                writer.send(&RecordMessage { kind: Some(RecordMessageKind::Ack(ack)) }).await?;
                crate::crash::Point::AckSent.hit();
                // The last record may be taken and not stored yet: its own acknowledgement is still to come.
                if session.is_complete() && up_to + 1 == session.next_record() {
                    hang_up(&mut reader, &mut writer).await;
                    return Ok(session.result().await?);
                }
            }
        }
    }
}

/// Acknowledges every record before `next_record`, all of which are stored. It asks for the last of them once more: to ask a
/// lost unit for the one after it is to say that its end is not known here, and the unit would get another.
async fn acknowledge(
    stream: MeshStream,
    attempt: Attempt,
    epoch: OwnerEpoch,
    next_record: u64,
) -> Result<(), Trouble> {
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let last = next_record - 1;
    let attach = Attach { unit: Some(attempt.into()), epoch: Some(epoch.into()), from_record: last };
    writer.send(&RecordMessage { kind: Some(RecordMessageKind::Attach(attach)) }).await?;
    let ack = Ack { epoch: Some(epoch.into()), up_to: last };
    writer.send(&RecordMessage { kind: Some(RecordMessageKind::Ack(ack)) }).await?;
    hang_up(&mut reader, &mut writer).await;
    Ok(())
}

/// Ends the stream in order and waits for the node to end it too: it has then taken the last acknowledgement. A stream
/// that is dropped instead is reset, and what is on its way may be lost; the node would hold its spool for longer.
async fn hang_up<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) {
    let ended = async {
        writer.finish().await?;
        while reader.next::<RecordMessage>(WORK_FRAME_MAX).await?.is_some() {}
        Ok::<_, framed::Error>(())
    };
    if !matches!(tokio::time::timeout(HANG_UP, ended).await, Ok(Ok(()))) {
        tracing::debug!("the last acknowledgement may not have arrived");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_goes_elsewhere_only_where_its_node_never_had_it() {
        let epoch = OwnerEpoch { incarnation: 1, counter: 1 };
        let check = |code: RefusalCode, not_taken, alone| {
            let refusal =
                Refusal { code: code.into(), message: "no".into(), not_taken, ..Refusal::default() };
            match submit_refused(payload::Error::Refused(refusal), alone, epoch) {
                Trouble::NotTaken { words, epoch: under } => {
                    (words == "no" && under == epoch).then_some("elsewhere")
                }
                Trouble::Passing(_) => Some("waits"),
                Trouble::Fatal(_) => Some("ends"),
                Trouble::Outranked => None,
            }
        };
        for code in [RefusalCode::NodeFull, RefusalCode::ShuttingDown, RefusalCode::OtherStore] {
            assert_eq!(check(code, true, true), Some("elsewhere"), "{code:?}");
        }
        // A submit before had no answer, or the node may keep something.
        for (not_taken, alone) in [(true, false), (false, true), (false, false)] {
            assert_eq!(check(RefusalCode::NodeFull, not_taken, alone), Some("waits"));
            assert_eq!(check(RefusalCode::ShuttingDown, not_taken, alone), Some("waits"));
            assert_eq!(check(RefusalCode::OtherStore, not_taken, alone), Some("ends"));
        }
        // No node would take it, or an operator has to act first.
        assert_eq!(check(RefusalCode::Invalid, true, true), Some("ends"));
        assert_eq!(check(RefusalCode::PastIncarnation, true, true), Some("waits"));
        assert!(matches!(submit_refused(payload::Error::Ended, true, epoch), Trouble::Passing(_)));
    }
}

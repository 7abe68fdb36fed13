//! One unit's task: carries out what its state machine decides.

mod start;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use plexus_proto::id::{ClusterId, OwnerEpoch};
use plexus_proto::work::{
    Finished, LostRecord, Outcome, PrivateBlock, Record, RecordKind, Refusal, RefusalCode, SealedRecord,
    UnitSpec, UnitStatus, UnitStatusState,
};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::shims::{self, Found, News, Shim};
use super::{Answer, Attachment, Inner, Opened, Wanted, unknown};
use crate::crash::Point;
use crate::shim::protocol::{Cancel, Heard, Order, Report, Trimmed};
use crate::spool::{self, Closing};
use crate::tree::cache::digest_of;
use crate::tree::working;
use crate::unit_dir::{self, Ended, UnitDir};
use crate::work::{Caller, Effect, State, Unit, refusal};
use crate::{cgroup, kept};

/// Begins the name of a unit's directory that is being deleted.
pub(super) const ERASED: &str = ".gone-";
/// Shortest time between two words to a shim that its owner lives. Deadlines count minutes.
const HEARD_PERIOD: Duration = Duration::from_secs(1);
/// How long until a spool that could not be closed is tried again.
const CLOSE_AGAIN: Duration = Duration::from_secs(1);

/// What others ask of the task.
#[derive(Debug)]
pub(super) enum Request {
    Submit {
        caller: Caller,
        epoch: OwnerEpoch,
        answer: Answer<UnitStatus>,
    },
    Cancel {
        caller: Caller,
        epoch: OwnerEpoch,
        answer: Answer<UnitStatus>,
    },
    Forget {
        caller: Caller,
        epoch: OwnerEpoch,
        answer: Answer<UnitStatus>,
    },
    Abandon {
        caller: Caller,
        epoch: OwnerEpoch,
        answer: Answer<UnitStatus>,
    },
    OpenPayload {
        caller: Caller,
        epoch: OwnerEpoch,
        answer: Answer<Opened>,
    },
    OpenCollect {
        caller: Caller,
        epoch: OwnerEpoch,
        answer: Answer<PathBuf>,
    },
    Payload {
        ticket: u64,
        block: PrivateBlock,
        image: Option<String>,
        answer: Answer<UnitStatus>,
    },
    Unprepared {
        ticket: u64,
        reason: String,
        answer: Answer<UnitStatus>,
    },
    Attach {
        caller: Caller,
        epoch: OwnerEpoch,
        from_record: u64,
        view: watch::Receiver<View>,
        answer: Answer<Attachment>,
    },
    Ack {
        attachment: u64,
        epoch: OwnerEpoch,
        up_to: u64,
    },
    Damaged {
        why: String,
    },
    /// The quota of its spool may be another.
    Quota,
    Shim {
        conversation: u64,
        news: News,
    },
}

/// The unit as everyone else sees it.
#[derive(Debug, Clone)]
pub struct View {
    /// As it goes to its owner.
    pub status: UnitStatus,
    /// Whose it is.
    pub cluster: ClusterId,
    /// The records stream that is served; all others end.
    pub attachment: u64,
    /// What it is for people.
    pub label: Arc<str>,
}

impl View {
    /// True when the unit ended and its owner holds every record of it.
    pub fn is_settled(&self) -> bool {
        self.is_finished() && self.status.acked >= self.status.records
    }

    /// True when the unit ended.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.state, Some(UnitStatusState::Finished(_)))
    }
}

/// The task's state.
pub(super) struct Task {
    inner: Arc<Inner>,
    unit: Unit,
    spec: UnitSpec,
    dir: UnitDir,
    runtime_dir: PathBuf,
    /// Where its private directory goes when it ends, if it is kept.
    kept: PathBuf,
    /// For news of shims. Weak, so that the task ends when nobody can ask it any more.
    requests: mpsc::WeakSender<Box<Request>>,
    view: watch::Sender<View>,
    shim: Option<Shim>,
    /// When the shim was last told that the owner lives.
    heard_at: Option<Instant>,
    /// Tells the news of the current conversation from those of an earlier one.
    conversation: u64,
    /// The launch was sent: from here on the end of the shim is the end of the unit.
    launched: bool,
    /// The outcome is on disk.
    stored: bool,
    ticket: u64,
    attachment: u64,
    /// The owner was stored at least once in this life, or read from disk.
    persisted: bool,
    /// Nothing of it lies on tmpfs, and no working copy in its directory.
    clean: bool,
    /// A spool that could not be closed when its shim was gone: the disk was full, say.
    unclosed: Option<Unclosed>,
    /// Bytes of its spool, as counted in the node's sum.
    spooled: u64,
    /// Why its output is held; empty: it is not.
    held: Box<str>,
}

/// What is tried again.
struct Unclosed {
    at: Instant,
    reason: String,
    replace: bool,
}

/// Waits until there is something to try again; with nothing, for ever.
async fn due(unclosed: Option<&Unclosed>) {
    match unclosed {
        Some(unclosed) => tokio::time::sleep_until(unclosed.at.into()).await,
        None => std::future::pending().await,
    }
}

/// Reads a unit from disk; `None` when nothing was promised about it.
pub(super) fn load(dir: &UnitDir) -> Result<Option<(Unit, UnitSpec)>, unit_dir::Error> {
    let Some((owner, spec)) = dir.load()? else { return Ok(None) };
    let firsts = spool::segments(&dir.spool()).unwrap_or_default();
    let unit = match dir.load_outcome()? {
        Some(Ended { finished, records }) => {
            let acked = firsts.first().map_or(records, |first| first - 1);
            Unit::new(dir.attempt(), owner, State::Finished(finished), records, acked)
        }
        None if dir.is_marked() => {
            let acked = firsts.first().map_or(0, |first| first - 1);
            let state = State::Preparing { step: "looking for its shim" };
            Unit::new(dir.attempt(), owner, state, acked, acked)
        }
        None => Unit::new(dir.attempt(), owner, State::Pending, 0, 0),
    };
    Ok(Some((unit, spec)))
}

impl Task {
    pub(super) fn new(
        inner: Arc<Inner>,
        unit: Unit,
        spec: UnitSpec,
        (dir, spooled): (UnitDir, u64),
        requests: mpsc::WeakSender<Box<Request>>,
    ) -> (Box<Self>, watch::Receiver<View>) {
        let runtime_dir = inner.runtime_units().join(unit.attempt().to_string());
        let kept = inner.kept().join(unit.attempt().to_string());
        let cluster = unit.owner().cluster.clone();
        let (view, seen) = watch::channel(View {
            status: unit.status(),
            cluster,
            attachment: 0,
            label: spec.label.as_str().into(),
        });
        let stored = matches!(unit.state(), State::Finished(_));
        let launched = matches!(unit.state(), State::Preparing { .. });
        let persisted = dir.path().exists();
        // A future keeps its arguments twice, so this one is a pointer.
        let task = Box::new(Self {
            inner,
            unit,
            spec,
            dir,
            runtime_dir,
            kept,
            requests,
            view,
            shim: None,
            heard_at: None,
            conversation: 0,
            launched,
            stored,
            ticket: 0,
            attachment: 0,
            persisted,
            clean: !persisted,
            unclosed: None,
            spooled,
            held: Box::default(),
        });
        (task, seen)
    }

    /// Serves requests until the unit is forgotten. What it does in answer is in memory of its own (`Box::pin`): a unit that
    /// waits, as most do, holds none for that.
    pub(super) async fn run(mut self: Box<Self>, mut inbox: mpsc::Receiver<Box<Request>>) {
        Box::pin(self.take_up()).await;
        while !self.unit.is_erased() {
            let request = tokio::select! {
                request = inbox.recv() => match request {
                    Some(request) => Some(request),
                    None => return,
                },
                () = due(self.unclosed.as_ref()) => None,
            };
            match request {
                Some(request) => Box::pin(self.handle(*request)).await,
                None => Box::pin(self.close_again()).await,
            }
            self.publish();
        }
    }

    /// What an earlier life of the agent left to do.
    async fn take_up(&mut self) {
        match self.unit.state() {
            State::Preparing { .. } => self.find_shim().await,
            // Private data of an earlier life: the key to it is gone, so it comes again.
            State::Pending if self.persisted => self.clean_up().await,
            State::Pending | State::Running { .. } | State::Finished(_) => {}
        }
    }

    /// Its spool has so many bytes now.
    fn spools(&mut self, bytes: u64) {
        self.inner.spools.changed(std::mem::replace(&mut self.spooled, bytes), bytes);
    }

    /// Tells the shim what its spool may hold. Before the launch there is none, and the launch says it too.
    async fn tell_quota(&self) {
        if let Some(shim) = self.shim.as_ref().filter(|_| self.launched) {
            shim.order(Order::Quota(self.inner.spools.quota())).await;
        }
    }

    async fn close_again(&mut self) {
        if let Some(Unclosed { reason, replace, .. }) = self.unclosed.take() {
            self.close_lost(reason, replace).await;
        }
    }

    async fn handle(&mut self, request: Request) {
        match request {
            Request::Submit { caller, epoch, answer } => {
                let result = self.on_submit(&caller, epoch).await;
                answer.send(result).ok();
            }
            Request::Cancel { caller, epoch, answer } => {
                let result = self.on_cancel(&caller, epoch).await;
                answer.send(result).ok();
            }
            Request::Forget { caller, epoch, answer } => {
                let result = self.on_forget(&caller, epoch).await;
                answer.send(result).ok();
            }
            Request::Abandon { caller, epoch, answer } => {
                let result = self.on_abandon(&caller, epoch).await;
                answer.send(result).ok();
            }
            Request::OpenPayload { caller, epoch, answer } => {
                let result = self.on_open_payload(&caller, epoch).await;
                answer.send(result).ok();
            }
            Request::OpenCollect { caller, epoch, answer } => {
                let result = self.on_open_collect(&caller, epoch).await;
                answer.send(result).ok();
            }
            Request::Payload { ticket, block, image, answer } => {
                let result = self.on_payload(ticket, block, image).await;
                answer.send(result).ok();
            }
            Request::Unprepared { ticket, reason, answer } => {
                let result = self.on_unprepared(ticket, reason).await;
                answer.send(result).ok();
            }
            Request::Attach { caller, epoch, from_record, view, answer } => {
                let result = self.on_attach(&caller, epoch, from_record, view).await;
                answer.send(result).ok();
            }
            Request::Ack { attachment, epoch, up_to } => {
                if attachment == self.attachment && epoch == self.unit.owner().epoch {
                    Point::AckHeard.hit();
                    self.heard().await;
                    let effects = self.unit.on_ack(up_to);
                    self.carry_out(effects).await.ok();
                }
            }
            Request::Damaged { why } => self.on_damaged(why).await,
            Request::Quota => self.tell_quota().await,
            Request::Shim { conversation, news } if conversation == self.conversation => {
                self.on_news(news).await
            }
            Request::Shim { .. } => {}
        }
    }

    async fn on_submit(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<UnitStatus, Refusal> {
        self.claim(caller, epoch).await?;
        if !self.persisted {
            Point::SubmitHeard.hit();
            // If that fails, nothing was promised; the next submit tries again.
            self.carry_out(vec![Effect::StoreOwner]).await?;
            Point::IntentStored.hit();
            info!(label = %self.spec.label, "unit accepted");
        }
        Ok(self.unit.status())
    }

    async fn on_cancel(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<UnitStatus, Refusal> {
        self.claim(caller, epoch).await?;
        Point::CancelHeard.hit();
        let effects = self.unit.on_cancel();
        self.carry_out(effects).await?;
        Point::CancelPassed.hit();
        Ok(self.unit.status())
    }

    async fn on_forget(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<UnitStatus, Refusal> {
        self.claim(caller, epoch).await?;
        let status = self.unit.status();
        let effects = self.unit.on_forget()?;
        Point::ForgetHeard.hit();
        self.carry_out(effects).await?;
        Point::Buried.hit();
        let effects = self.unit.on_buried();
        self.carry_out(effects).await?;
        Ok(status)
    }

    async fn on_abandon(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<UnitStatus, Refusal> {
        self.claim(caller, epoch).await?;
        let effects = self.unit.on_abandon();
        self.carry_out(effects).await?;
        Ok(self.unit.status())
    }

    /// Tells the shim that the owner lives, where that matters, and no more often than it must be told.
    async fn heard(&mut self) {
        let due = self.heard_at.is_none_or(|at| at.elapsed() >= HEARD_PERIOD);
        if let Some(shim) = self.shim.as_ref().filter(|_| due && self.spec.owner_deadline_seconds > 0) {
            self.heard_at = Some(Instant::now());
            shim.order(Order::Heard(Heard {})).await;
        }
    }

    async fn on_open_payload(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<Opened, Refusal> {
        if !self.persisted {
            return Err(unknown(self.unit.attempt()));
        }
        self.claim(caller, epoch).await?;
        if !self.unit.needs_payload() {
            return Ok(Opened { status: self.unit.status(), wanted: None });
        }
        self.ticket = self.inner.next_serial();
        let fresh = std::mem::take(&mut self.clean);
        // Its start overlaps with the payload's way here.
        if self.shim.is_none()
            && !self.inner.pool.offers(&self.spec.image, &self.spec.organization)
            && let Err(error) = self.take_shim(fresh).await
        {
            debug!(error = &error as &dyn std::error::Error, "shim cannot be started yet");
        }
        let wanted = Wanted {
            ticket: self.ticket,
            tree: self.spec.tree.as_ref().and_then(|tree| Some((digest_of(&tree.digest)?, tree.size))),
            copy: self.dir.path().join(format!("project.{}", self.ticket)),
            collect: self.spec.collect,
            image: self
                .inner
                .runtime
                .kind()
                .is_container()
                .then(|| (self.spec.image.clone(), self.spec.pull())),
        };
        Ok(Opened { status: self.unit.status(), wanted: Some(wanted) })
    }

    async fn on_open_collect(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<PathBuf, Refusal> {
        self.claim(caller, epoch).await?;
        if !matches!(self.unit.state(), State::Finished(_)) {
            return Err(refusal(RefusalCode::NotFinished, "the unit has not ended yet"));
        }
        let tree = working::collected(&self.dir.project());
        tree.filter(|_| self.spec.collect)
            .ok_or_else(|| refusal(RefusalCode::Invalid, "the unit left no tree behind on this node"))
    }

    async fn on_payload(
        &mut self,
        ticket: u64,
        block: PrivateBlock,
        image: Option<String>,
    ) -> Result<UnitStatus, Refusal> {
        self.check_ticket(ticket)?;
        for effect in self.unit.on_payload() {
            debug_assert_eq!(effect, Effect::Start, "a payload starts the unit and nothing else");
            self.publish();
            if let Err(reason) = self.start(ticket, &block, image.as_deref()).await {
                warn!(reason, "unit cannot be started");
                let effects = self.unit.on_unprepared(reason);
                self.carry_out(effects).await?;
            }
        }
        Ok(self.unit.status())
    }

    async fn on_unprepared(&mut self, ticket: u64, reason: String) -> Result<UnitStatus, Refusal> {
        self.check_ticket(ticket)?;
        if self.unit.needs_payload() {
            let effects = self.unit.on_unprepared(reason);
            self.carry_out(effects).await?;
        }
        Ok(self.unit.status())
    }

    async fn on_attach(
        &mut self,
        caller: &Caller,
        epoch: OwnerEpoch,
        from_record: u64,
        view: watch::Receiver<View>,
    ) -> Result<Attachment, Refusal> {
        self.claim(caller, epoch).await?;
        let from_record = from_record.max(1);
        let held = self.unit.records();
        self.unit.on_attach(from_record);
        let tail = self.tail(held, from_record);
        self.attachment = self.inner.next_serial();
        self.publish();
        let spool = self.dir.spool();
        let first = spool::segments(&spool).unwrap_or_default().first().copied();
        // With all records acknowledged and deleted, the next one would be the first.
        let first = first.unwrap_or(if self.unit.is_settled() { self.unit.records() + 1 } else { 1 });
        Ok(Attachment {
            id: self.attachment,
            attempt: self.unit.attempt(),
            status: self.unit.status(),
            first_record: from_record.max(first),
            view,
            spool,
            tail,
        })
    }

    /// The lost record with the number that a controller waits for, if the spool ends before it.
    fn tail(&self, held: u64, from_record: u64) -> Option<SealedRecord> {
        let State::Finished(finished) = self.unit.state() else { return None };
        if self.unit.records() == held || from_record <= held {
            return None;
        }
        let lost = LostRecord { records: held.saturating_sub(1), reason: finished.reason.clone() };
        let plain = Some(Record { kind: Some(RecordKind::Lost(lost)) });
        Some(SealedRecord { number: from_record, sealed: Default::default(), plain })
    }

    async fn on_damaged(&mut self, why: String) {
        if self.unit.is_settled() {
            return; // it was deleted while somebody read it, for all of it is acknowledged
        }
        warn!(why, "spool is damaged");
        match (self.unit.state(), &self.shim) {
            (State::Finished(_), _) => self.close_lost(why, true).await,
            // What its worker still writes could never be served.
            (_, Some(shim)) => shim.order(Order::Cancel(Cancel { now: true })).await,
            (_, None) => {}
        }
    }

    async fn on_news(&mut self, news: News) {
        match news {
            News::Report(Report::Hello(hello)) => {
                debug!(pid = hello.pid, version = hello.version, "shim connected");
                self.tell_quota().await;
                if self.unit.is_canceled()
                    && let Some(shim) = &self.shim
                {
                    shim.order(Order::Cancel(Cancel { now: self.unit.is_abandoned() })).await;
                }
            }
            News::Report(Report::Started(started)) => {
                Point::StartedHeard.hit();
                info!(pid = started.pid, "unit started");
                let effects = self.unit.on_started(started.pid);
                self.carry_out(effects).await.ok();
                self.inner.keep_spares();
                self.inner.keep_ahead();
            }
            News::Report(Report::Ready(_)) => {}
            News::Report(Report::Written(written)) => {
                self.unit.on_records(written.records);
                if written.bytes > 0 {
                    self.spools(written.bytes);
                }
            }
            News::Report(Report::Held(held)) => self.held = held.why.into(),
            News::Report(Report::Ended(ended)) => {
                Point::EndHeard.hit();
                let finished = ended.finished.unwrap_or_default();
                self.finish(finished, ended.records).await;
            }
            News::Gone => {
                self.shim = None;
                self.held = Box::default();
                if self.launched && !matches!(self.unit.state(), State::Finished(_)) {
                    self.find_shim().await;
                }
            }
        }
    }

    /// Finds the shim of a started unit, or concludes what its end means.
    async fn find_shim(&mut self) {
        match shims::find(&self.runtime_dir).await {
            Found::Alive(stream) => self.talk(stream),
            Found::Deaf => {
                let dir = self.runtime_dir.clone();
                self.inner.blocking(move || shims::kill(&dir)).await;
                self.close_lost(
                    "the unit's shim lived, but listened to no agent; it was killed".to_owned(),
                    false,
                )
                .await;
            }
            Found::Dead => {
                let reason = self.why_lost();
                self.close_lost(reason, false).await;
            }
        }
    }

    /// What can be told of a shim that is dead and said no end.
    fn why_lost(&self) -> String {
        if let Some(words) = shims::last_words(&self.runtime_dir) {
            return format!("the unit's shim died: {words}");
        }
        if !self.runtime_dir.exists() {
            return "the node was restarted while the unit ran".to_owned();
        }
        // A shim begins its spool before it starts anything, and what it wrote outlives it while the node is up.
        let began = spool::segments(&self.dir.spool()).map_or(true, |firsts| !firsts.is_empty());
        let reason = if began {
            "the unit's shim was killed"
        } else {
            "nothing of the unit ran: its shim ended before it was told to start it"
        };
        reason.to_owned()
    }

    /// Ends what a dead shim left, closes its spool, and takes the outcome from there: the end that the shim still
    /// wrote, or lost.
    async fn close_lost(&mut self, reason: String, replace: bool) {
        let (runtime, attempt) = (self.inner.runtime.clone(), self.unit.attempt());
        let (runtime_dir, spool) = (self.runtime_dir.clone(), self.dir.spool());
        let why = reason.clone();
        let closed = self.inner.blocking(move || {
            if let Err(error) = runtime.end(attempt, &runtime_dir) {
                // The reaper tries again; the outcome is lost either way.
                warn!(error = &error as &dyn std::error::Error, "what the shim left cannot be ended yet");
            }
            spool::close_lost(&spool, attempt, &why)
        });
        match closed.await {
            Ok((records, Closing::End(finished))) => self.finish(finished, records).await,
            Ok((records, Closing::Lost(reason))) => {
                let finished = Finished { outcome: Outcome::Lost.into(), reason, ..Finished::default() };
                if replace {
                    self.unit.on_damaged();
                }
                self.finish(finished, records).await;
            }
            Err(error) => {
                // Without a closed spool nothing can be concluded.
                warn!(error = &error as &dyn std::error::Error, "spool of a dead shim cannot be closed yet");
                self.unclosed = Some(Unclosed { at: Instant::now() + CLOSE_AGAIN, reason, replace });
            }
        }
    }

    async fn finish(&mut self, finished: Finished, records: u64) {
        info!(outcome = finished.outcome().as_str_name(), records, reason = finished.reason, "unit ended");
        let effects = self.unit.on_finished(finished, records);
        self.carry_out(effects).await.ok();
    }

    /// Checks the caller and stores a higher epoch.
    async fn claim(&mut self, caller: &Caller, epoch: OwnerEpoch) -> Result<(), Refusal> {
        let effects = self.unit.claim(caller, epoch)?;
        self.heard().await;
        if !effects.is_empty() {
            self.carry_out(effects).await?;
            // Streams of the older epoch are served no longer.
            self.attachment = self.inner.next_serial();
            self.publish();
        }
        Ok(())
    }

    fn check_ticket(&self, ticket: u64) -> Result<(), Refusal> {
        if ticket == self.ticket {
            return Ok(());
        }
        Err(refusal(RefusalCode::Invalid, "a later payload stream took the place of this one"))
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) -> Result<(), Refusal> {
        for effect in effects {
            match effect {
                Effect::StoreOwner => self.store_owner().await?,
                Effect::Start => debug_assert!(false, "carried out where the payload is"),
                Effect::SignalShim => {
                    if let Some(shim) = &self.shim {
                        shim.order(Order::Cancel(Cancel { now: false })).await;
                    }
                }
                Effect::KillShim => {
                    if let Some(shim) = &self.shim {
                        shim.order(Order::Cancel(Cancel { now: true })).await;
                    }
                }
                Effect::Bury => self.inner.bury(self.unit.attempt()).await?,
                Effect::Conclude => self.conclude().await,
                Effect::Trim => self.trim().await,
                Effect::Erase => self.erase().await,
            }
        }
        Ok(())
    }

    async fn store_owner(&mut self) -> Result<(), Refusal> {
        let (dir, owner, spec) = (self.dir.clone(), self.unit.owner().clone(), self.spec.clone());
        let ahead = if self.persisted { None } else { self.inner.take_ahead() };
        match self.inner.blocking(move || dir.store_in(ahead.as_deref(), &owner, &spec)).await {
            Ok(()) => {
                self.persisted = true;
                Ok(())
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "unit cannot be stored");
                Err(refusal(
                    RefusalCode::NodeFull,
                    format!("this node cannot store the unit: {}", chain(&error)),
                ))
            }
        }
    }

    /// Stores the outcome, then removes what only a living unit needs. The end is told when nothing private is left.
    async fn conclude(&mut self) {
        self.store_outcome().await;
        Point::OutcomeStored.hit();
        self.inner.dirty.store(true, Ordering::SeqCst);
        self.shim = None; // a shim that waits for a launch that will not come ends with this
        if self.spec.keep_seconds > 0 {
            self.keep().await;
        }
        if self.clean {
            return;
        }
        let wiped = self.wipe_runtime_dir().await;
        Point::PrivateWiped.hit();
        self.publish();
        if !self.spec.collect {
            self.clean = self.remove_copies().await && wiped; // otherwise it goes with the unit
        }
    }

    async fn clean_up(&mut self) {
        let wiped = self.wipe_runtime_dir().await;
        self.clean = self.remove_copies().await && wiped;
    }

    /// Removes working copies of the project; false if one stays. Of those of an earlier life the numbers would come again.
    async fn remove_copies(&mut self) -> bool {
        let (runtime, path) = (self.inner.runtime.clone(), self.dir.path().to_owned());
        let removed = self.inner.blocking(move || {
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with("project") {
                    runtime.remove_tree(&entry.path())?;
                }
            }
            Ok::<_, crate::runtime::Error>(())
        });
        let removed = removed.await;
        if let Err(error) = &removed {
            warn!(error = error as &dyn std::error::Error, "working copy stays for now");
        }
        removed.is_ok()
    }

    /// Keeps the private directory for whoever looks for a fault, without what is secret.
    async fn keep(&self) {
        let (from, to) = (self.runtime_dir.clone(), self.kept.clone());
        let time = Duration::from_secs(self.spec.keep_seconds.into()).min(kept::LONGEST);
        if let Err(error) = self.inner.blocking(move || kept::keep(&from, &to, time)).await {
            debug!(error = &error as &dyn std::error::Error, "private directory is not kept");
        }
    }

    async fn store_outcome(&mut self) {
        let State::Finished(finished) = self.unit.state().clone() else { return };
        let (dir, ended) = (self.dir.clone(), Ended { finished, records: self.unit.records() });
        match self.inner.blocking(move || dir.store_outcome(&ended)).await {
            Ok(()) => self.stored = true,
            Err(error) => warn!(error = &error as &dyn std::error::Error, "outcome cannot be stored yet"),
        }
    }

    /// Deletes acknowledged segments; the whole spool once the unit is settled and its outcome stored elsewhere.
    async fn trim(&mut self) {
        let (spool, acked) = (self.dir.spool(), self.unit.acked());
        if self.unit.is_settled() && !self.stored {
            self.store_outcome().await;
        }
        let whole = self.unit.is_settled() && self.stored;
        let trimmed = self.inner.blocking(move || {
            if whole {
                unit_dir::remove_tree(&spool).ok();
                return Ok(Some(0));
            }
            Ok(spool::trim(&spool, acked)?.then(|| spool::held_bytes(&spool).unwrap_or(0)))
        });
        match trimmed.await {
            Ok(Some(bytes)) => {
                Point::Trimmed.hit();
                self.spools(bytes);
                if let Some(shim) = &self.shim {
                    shim.order(Order::Trimmed(Trimmed {})).await;
                }
            }
            Ok(None) => {}
            Err::<_, spool::Error>(error) => {
                warn!(error = &error as &dyn std::error::Error, "spool cannot be trimmed")
            }
        }
    }

    async fn erase(&mut self) {
        self.spools(0);
        if !self.clean {
            self.wipe_runtime_dir().await;
        }
        let (runtime, path) = (self.inner.runtime.clone(), self.dir.path().to_owned());
        let name = format!("{ERASED}{}", self.unit.attempt());
        let erased = self.inner.blocking(move || {
            let gone = path.with_file_name(name);
            // One step: after a crash there is the whole unit, or none of it. And out of the way of a payload stream that still
            // makes the unit's working copy, beside which the directory would not become empty.
            match fs::rename(&path, &gone) {
                Ok(()) => {
                    Point::Renamed.hit();
                    runtime.remove_tree(&gone)
                }
                Err(_) => runtime.remove_tree(&path),
            }
        });
        if let Err(error) = erased.await {
            warn!(error = &error as &dyn std::error::Error, "remains of a forgotten unit stay for now");
        }
        info!("unit forgotten");
    }

    /// Removes its directory on tmpfs; false if something stays.
    async fn wipe_runtime_dir(&mut self) -> bool {
        let (runtime, dir) = (self.inner.runtime.clone(), self.runtime_dir.clone());
        let wiped = self.inner.blocking(move || {
            if let Some(group) = cgroup::noted(&dir.join(cgroup::NOTE)) {
                fs::remove_dir(group).ok(); // in use while the shim is still going; the kernel's tree is small
            }
            runtime.remove_tree(&dir)
        });
        let wiped = wiped.await;
        if let Err(error) = &wiped {
            warn!(error = error as &dyn std::error::Error, "private data stays for now");
        }
        wiped.is_ok()
    }

    fn talk(&mut self, stream: tokio::net::UnixStream) {
        let Some(requests) = self.requests.upgrade() else { return };
        self.conversation = self.inner.next_serial();
        let conversation = self.conversation;
        self.shim =
            Some(Shim::talk(stream, requests, move |news| Box::new(Request::Shim { conversation, news })));
    }

    /// Shows the unit's state to everyone who watches.
    fn publish(&self) {
        let mut status = self.unit.status();
        if self.spec.keep_seconds > 0 && self.stored && self.kept.exists() {
            status.kept = self.kept.display().to_string();
        }
        if !matches!(self.unit.state(), State::Finished(_)) {
            status.held = self.held.to_string();
        }
        self.view.send_if_modified(|view| {
            let changed = view.status != status || view.attachment != self.attachment;
            view.status = status;
            view.attachment = self.attachment;
            changed
        });
    }
}

/// An error and its causes, for people.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

//! The shim's loop: one thread, all state.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plexus_proto::id::{Attempt, UnitId};
use plexus_proto::seal::SpoolKey;
use plexus_proto::work::{Finished, Outcome, Output, PullPolicy, RecordKind, Starting, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, wait};
use uuid::Uuid;

use super::ending::{Action, Ending, Exit, conclude};
use super::link::Link;
use super::memory::Kills;
use super::protocol::{Ended, Held, Launch, Order, Quota, Report, Started, Written};
use super::syncer::Syncer;
use super::worker::{Got, Process, Worker};
use super::{MARKER, WALK_PAUSE, processes};
use crate::cgroup;
use crate::crash::Point;
use crate::runtime::engine::{ENGINE_FAILED, has_lost_container};
use crate::runtime::{Kind, explain};
use crate::spool::{self, Writer};
use crate::unit_dir::remove_tree;

/// How long a full spool waits before it tries the disk again; a trim wakes it sooner.
const FULL_RETRY: Duration = Duration::from_millis(250);
/// How long output is held until that is said: a busy job stands at its quota for a moment now and then.
const HELD_SAID: Duration = Duration::from_secs(1);
/// Longest wait for the container engine to remove a container before its processes are killed one by one.
const ENGINE_LIMIT: Duration = Duration::from_secs(20);
/// Longest wait, after the end, for the engine's own helpers to finish their cleaning.
const LINGER_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks for orphans of an engine's client that ended: `conmon` above all. Nothing tells of them.
const ORPHANS_PERIOD: Duration = Duration::from_secs(5);
/// Standard error kept for the end record.
const TAIL_BYTES: usize = 4 << 10;
/// Bytes read from the worker at a time: about what one record holds.
const READ_BYTES: usize = 64 << 10;

/// A unit's shim, from launch to end record.
pub(super) struct Shim {
    /// What the kernel counts while the worker runs.
    kills: Kills,
    private_dir: PathBuf,
    output: Sink,
    syncer: Syncer,
    listener: UnixListener,
    agent: Option<Link>,
    worker: Worker,
    kind: Kind,
    image: String,
    pull: PullPolicy,
    program: String,
    end_argv: Vec<String>,
    ending: Ending,
    killing: Killing,
    /// When orphans that ended are collected next.
    orphans_at: Option<Instant>,
    stderr_tail: Vec<u8>,
    /// The worker has written to its standard output.
    spoke: bool,
    ended: Option<Ended>,
    buffer: Vec<u8>,
}

/// The spool, and what waits to get into it.
struct Sink {
    spool: Writer,
    dir: PathBuf,
    quota: u64,
    /// Bytes on disk, as far as known.
    held: u64,
    /// Records that found the disk full or the quota used up. While there is one, nothing is read from the worker.
    waiting: VecDeque<RecordKind>,
    retry_at: Option<Instant>,
    /// The quota is what it is because all spools of the node are full together.
    shared: bool,
    /// Why records wait, and since when.
    full: Option<(&'static str, Instant)>,
}

/// The forced end of what the worker left.
enum Killing {
    No,
    /// The container engine removes the container.
    Engine {
        helper: Process,
        give_up: Instant,
    },
    /// SIGKILL to all descendants until there is none.
    Walk {
        next: Instant,
    },
    Done,
}

/// What woke the loop.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Agent,
    Child,
    Stdin,
    Output(Stream),
    Synced,
}

impl Shim {
    /// `warm` is a worker that was started ahead and waits for its input.
    pub(super) fn begin(
        mut launch: Launch,
        warm: Option<Worker>,
        listener: UnixListener,
        agent: Link,
    ) -> anyhow::Result<Self> {
        Point::LaunchHeard.hit();
        let unit = Uuid::from_slice(&launch.unit).context("launch names no unit")?;
        let attempt = Attempt { unit: UnitId(unit), number: launch.attempt };
        let key = SpoolKey::from_slice(&launch.spool_key).context("launch has no spool key")?;
        let dir = PathBuf::from(&launch.spool_dir);
        let spool = Writer::create(&dir, attempt, key, launch.spool_key_id)?;
        Point::SpoolBegun.hit();
        let kind = Kind::parse(&launch.runtime).context("launch names no runtime")?;
        launch.env.insert(MARKER.to_owned(), attempt.to_string());
        let ending = Ending::new(
            Instant::now(),
            Duration::from_secs(launch.grace_seconds.into()),
            Duration::from_secs(launch.timeout_seconds),
        )
        .with_silence(Duration::from_secs(launch.owner_deadline_seconds), Instant::now());
        let quota = launch.spool_quota;
        let group = cgroup::noted(Path::new(cgroup::NOTE)).filter(|_| kind == Kind::Process);
        let worker = warm.unwrap_or_else(|| Worker::spawn(&launch.argv, &launch.env, &launch.cwd));
        let mut shim = Self {
            // The counter of a whole machine takes a while to read, and a worker that has just begun takes no memory yet.
            kills: Kills::begin(group.as_deref()),
            private_dir: PathBuf::from(&launch.private_dir),
            output: Sink {
                spool,
                dir,
                quota,
                held: 0,
                waiting: VecDeque::new(),
                retry_at: None,
                shared: false,
                full: None,
            },
            syncer: Syncer::default(),
            listener,
            agent: Some(agent),
            kind,
            image: launch.image.clone(),
            pull: PullPolicy::try_from(launch.pull).unwrap_or_default(),
            program: launch.argv.first().cloned().unwrap_or_default(),
            end_argv: std::mem::take(&mut launch.end_argv),
            worker,
            ending,
            killing: Killing::No,
            stderr_tail: Vec::new(),
            spoke: false,
            orphans_at: None,
            ended: None,
            buffer: vec![0; READ_BYTES],
        };
        shim.worker.feed(std::mem::take(&mut launch.stdin));
        Point::Spawned.hit();
        if let Some(pid) = shim.worker.pid() {
            shim.output.push(RecordKind::Starting(Starting { pid }))?;
            Point::StartedWritten.hit();
            if let Some(agent) = &mut shim.agent {
                agent.say(Report::Started(Started { pid }));
            }
        }
        Ok(shim)
    }

    /// Acts on what is due, waits for one of everything, repeats until the end record is written and told.
    pub(super) fn drive(&mut self) -> anyhow::Result<()> {
        self.on_agent(); // a cancel may have come in one piece with the launch
        loop {
            let now = Instant::now();
            self.output.retry(now)?;
            if let Some(action) = self.ending.poll(now) {
                self.act(action);
            }
            self.advance_killing(now);
            self.look_for_orphans(now);
            self.try_end()?;
            self.syncer.push(&mut self.output.spool, now)?;
            self.report();
            if self.ended.is_some() {
                return Ok(());
            }
            for source in self.wait()? {
                self.handle(source)?;
            }
        }
    }

    /// True while an agent is connected.
    pub(super) fn has_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// After the end: lets the container engine's helpers finish, for a while.
    pub(super) fn linger(self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return, // no child is left
            }
        }
        let (gone, told) = mpsc::channel();
        // Blocks until the last child is collected; the process ends without it if that takes too long.
        std::thread::spawn(move || {
            while wait(WaitOptions::empty()).is_ok() {}
            gone.send(()).ok();
        });
        if told.recv_timeout(LINGER_LIMIT).is_err() {
            processes::kill_descendants();
        }
    }

    fn wait(&self) -> anyhow::Result<Vec<Source>> {
        let deadline = [
            self.ending.deadline(),
            self.output.retry_at,
            self.syncer.deadline(),
            self.orphans_at,
            match &self.killing {
                Killing::Engine { give_up, .. } => Some(*give_up),
                Killing::Walk { next } => Some(*next),
                Killing::No | Killing::Done => None,
            },
        ]
        .into_iter()
        .flatten()
        .min();
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::with_capacity(8);
        watched.push((Source::Listener, self.listener.as_fd(), PollFlags::IN));
        watched.extend(self.syncer.fd().map(|fd| (Source::Synced, fd, PollFlags::IN)));
        if let Some(agent) = &self.agent {
            let flags = if agent.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            watched.push((Source::Agent, agent.fd(), flags));
        }
        watched.extend(self.worker.ended_fd().map(|fd| (Source::Child, fd, PollFlags::IN)));
        if let Killing::Engine { helper, .. } = &self.killing {
            watched.push((Source::Child, helper.ended_fd(), PollFlags::IN));
        }
        watched.extend(self.worker.stdin.as_ref().map(|pipe| (Source::Stdin, pipe.fd(), PollFlags::OUT)));
        if self.output.waiting.is_empty() {
            let pipes = [(Stream::Stdout, &self.worker.stdout), (Stream::Stderr, &self.worker.stderr)];
            for (stream, pipe) in pipes {
                watched.extend(pipe.as_ref().map(|pipe| (Source::Output(stream), pipe.fd(), PollFlags::IN)));
            }
        }
        let mut fds: Vec<_> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error)).context("cannot wait"),
        }
        let ready = watched.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn handle(&mut self, source: Source) -> anyhow::Result<()> {
        match source {
            Source::Listener => self.on_connect(),
            Source::Agent => self.on_agent(),
            Source::Child => self.collect(),
            Source::Stdin => {
                if self.worker.stdin.as_mut().is_some_and(|pipe| pipe.push()) {
                    self.worker.stdin = None;
                }
            }
            Source::Output(stream) => self.on_output(stream)?,
            Source::Synced => {
                self.syncer.on_done()?;
                Point::Synced.hit();
            }
        }
        Ok(())
    }

    /// A new agent: it takes the place of the old one, which is dead or should be.
    fn on_connect(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let Ok(mut link) = Link::new(stream) else { return };
        if let Some(pid) = self.worker.pid() {
            link.say(Report::Started(Started { pid }));
        }
        if link.make_nonblocking().is_ok() {
            self.agent = Some(link);
        }
    }

    fn on_agent(&mut self) {
        let Some(agent) = &mut self.agent else { return };
        let Ok(orders) = agent.orders() else {
            self.agent = None;
            return;
        };
        for order in orders {
            match order {
                Order::Launch(_) | Order::Warm(_) => {} // it has one
                Order::Cancel(cancel) => {
                    // A runner that still waits for its input ignores SIGTERM, and has nothing to end in order. Its first
                    // line says that it has read it.
                    let now = cancel.now || !self.spoke;
                    if let Some(action) = self.ending.on_cancel(now, Instant::now()) {
                        self.act(action);
                    }
                }
                Order::Heard(_) => self.ending.on_heard(Instant::now()),
                Order::Quota(Quota { bytes, shared }) => {
                    (self.output.quota, self.output.shared) = (bytes, shared);
                    self.output.retry_at = self.output.retry_at.map(|_| Instant::now());
                }
                Order::Trimmed(_) => {
                    self.output.recount();
                    self.output.retry_at = self.output.retry_at.map(|_| Instant::now());
                }
            }
        }
    }

    fn on_output(&mut self, stream: Stream) -> anyhow::Result<()> {
        let slot = match stream {
            Stream::Stderr => &mut self.worker.stderr,
            Stream::Stdout | Stream::Unspecified => &mut self.worker.stdout,
        };
        let mut pieces = Vec::new();
        match slot.as_mut().map(|pipe| (pipe.read(&mut self.buffer), &mut pipe.cutter)) {
            Some((Got::Data(data), cutter)) => {
                match stream {
                    Stream::Stderr => keep_tail(&mut self.stderr_tail, data),
                    Stream::Stdout | Stream::Unspecified => self.spoke = true,
                }
                cutter.push(data, |piece| pieces.push(piece));
            }
            Some((Got::End, cutter)) => {
                pieces.extend(cutter.finish());
                *slot = None;
            }
            Some((Got::Nothing, _)) | None => {}
        }
        for piece in pieces {
            let output =
                Output { stream: stream.into(), data: piece.data.into(), fragment: piece.fragment.into() };
            self.output.push(RecordKind::Output(output))?;
        }
        Ok(())
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Terminate => {
                self.worker.signal(Signal::TERM);
                Point::Signalled.hit();
            }
            Action::Kill => {
                if matches!(self.killing, Killing::No) {
                    self.killing = self.kill();
                }
            }
        }
    }

    /// Begins to end everything by force: the container by its engine if there is one, the rest by signal.
    fn kill(&self) -> Killing {
        if let Some((program, args)) = self.end_argv.split_first() {
            let helper = Command::new(program)
                .args(args)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .and_then(|child| Process::new(child.id()));
            match helper {
                Ok(helper) => return Killing::Engine { helper, give_up: Instant::now() + ENGINE_LIMIT },
                Err(error) => eprintln!("cannot run {program}: {error}"),
            }
        }
        Killing::Walk { next: Instant::now() }
    }

    fn advance_killing(&mut self, now: Instant) {
        match &self.killing {
            Killing::Engine { give_up, .. } if *give_up <= now => {
                eprintln!("{:?} did not end in {ENGINE_LIMIT:?}", self.end_argv);
                self.killing = Killing::Walk { next: now };
            }
            Killing::Walk { next } if *next <= now => {
                self.collect();
                self.killing = if processes::kill_descendants() == 0 {
                    Point::TreeGone.hit();
                    Killing::Done
                } else {
                    Killing::Walk { next: Instant::now() + WALK_PAUSE }
                };
                self.collect();
            }
            Killing::No | Killing::Engine { .. } | Killing::Walk { .. } | Killing::Done => {}
        }
    }

    /// Collects orphans from time to time, and often while the engine removes a container: it takes a process that nobody
    /// has collected for one that lives.
    fn look_for_orphans(&mut self, now: Instant) {
        if self.orphans_at.is_some_and(|at| at <= now) {
            self.collect();
        }
        let pause = match &self.killing {
            Killing::Engine { .. } => WALK_PAUSE,
            Killing::No if self.kind.is_container() && self.worker.exit.is_none() => ORPHANS_PERIOD,
            Killing::No | Killing::Walk { .. } | Killing::Done => {
                self.orphans_at = None;
                return;
            }
        };
        let due = now + pause;
        self.orphans_at = Some(self.orphans_at.filter(|at| *at > now).map_or(due, |at| at.min(due)));
    }

    /// Collects every child that ended: the worker, helpers, and orphans that came to this shim.
    fn collect(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.on_child(pid, status);
        }
    }

    fn on_child(&mut self, pid: Pid, status: WaitStatus) {
        if let Killing::Engine { helper, .. } = &self.killing
            && helper.pid() == pid
        {
            self.killing = Killing::Walk { next: Instant::now() };
        }
        if !self.worker.is(pid) || self.worker.exit.is_some() {
            // An orphan of the engine's client: `conmon`, or after its end the container itself.
            let hurt = status.terminating_signal().is_some() && self.worker.exit.is_none();
            if hurt && self.kind.is_container() && matches!(self.killing, Killing::No) {
                self.ending.on_engine_hurt(Instant::now());
            }
            return;
        }
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => return, // stopped or continued
        };
        self.worker.exit = Some(exit);
        Point::WorkerEnded.hit();
        self.worker.stdin = None;
        // What a plain worker left running dies with it, as it would in a container. A container's client leaves
        // only the engine's helpers, which clean up; unless it did not end by itself.
        let by_force = self.kind == Kind::Process
            || self.ending.cause().is_some()
            || matches!(exit, Exit::Signal(_) | Exit::Code(ENGINE_FAILED));
        if by_force && matches!(self.killing, Killing::No) {
            self.killing = self.kill();
        }
    }

    /// Writes the end record once worker and tree are gone and all output is in the spool.
    fn try_end(&mut self) -> anyhow::Result<()> {
        let killing = matches!(self.killing, Killing::Engine { .. } | Killing::Walk { .. });
        if killing || !self.worker.is_over() || !self.output.waiting.is_empty() || self.ended.is_some() {
            return Ok(());
        }
        if !self.private_dir.as_os_str().is_empty() {
            remove_tree(&self.private_dir).ok(); // files of another user stay for the agent, which has the means
        }
        Point::PrivateRemoved.hit();
        let finished = self.finished();
        match self.output.spool.finish(finished.clone(), self.stderr_tail.clone()) {
            Ok(records) => {
                Point::EndSynced.hit();
                self.ended = Some(Ended { finished: Some(finished), records });
            }
            Err(error) if error.is_full() => self.output.wait("its disk is full"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn finished(&self) -> Finished {
        let Some(exit) = self.worker.exit else {
            let why = self.worker.unstarted.as_ref().map_or_else(String::new, ToString::to_string);
            return Finished {
                outcome: Outcome::Failed.into(),
                reason: format!("cannot start {}: {why}", self.program),
                ..Finished::default()
            };
        };
        let of_code = |code| {
            let stderr = String::from_utf8_lossy(&self.stderr_tail);
            explain(self.kind, code, &stderr, &self.image, self.pull)
        };
        let explanation = match exit {
            // A shell's and an engine's way to say SIGKILL.
            Exit::Code(137) if self.kind.is_container() => {
                self.kills.since().explain("the container").or_else(|| of_code(137))
            }
            Exit::Code(code) => of_code(code),
            Exit::Signal(9) => self.kills.since().explain("the worker"),
            Exit::Signal(_) => None,
        };
        // Some clients say 0 of a container that was killed.
        let killed = self.kind.is_container() && self.ending.was_forced() && exit == Exit::Code(0);
        let exit = if killed { Exit::Signal(Signal::KILL.as_raw()) } else { exit };
        let lost = self.kind.is_container()
            && match exit {
                Exit::Signal(_) => true,
                Exit::Code(code) => {
                    let stderr = String::from_utf8_lossy(&self.stderr_tail);
                    code == ENGINE_FAILED && (self.spoke || has_lost_container(&stderr))
                }
            };
        conclude(exit, self.ending.cause(), explanation, lost)
    }

    /// Tells the agent what it does not know yet.
    fn report(&mut self) {
        let last = self.output.spool.last();
        let Some(agent) = &mut self.agent else { return };
        if let Some(ended) = &self.ended {
            agent.say(Report::Ended(ended.clone()));
            agent.flush_all();
            Point::EndReported.hit();
            return;
        }
        // What was queued before goes first: a new agent is greeted, and nothing else may wake this loop soon.
        let mut sent = agent.flush();
        // Only the latest number counts, so a slow agent costs no memory.
        if agent.told < last && !agent.has_unsent() {
            agent.told = last;
            agent.say(Report::Written(Written { records: last, bytes: self.output.held }));
            sent = sent.and_then(|()| agent.flush());
        }
        let held = self.output.words(Instant::now());
        if agent.told_held != held && !agent.has_unsent() {
            agent.told_held = held;
            agent.say(Report::Held(Held { why: held.to_owned() }));
            sent = sent.and_then(|()| agent.flush());
        }
        let told = agent.told;
        if sent.is_err() {
            self.agent = None;
        } else if told > 1 {
            Point::Reported.hit(); // of more than its start
        }
    }
}

impl Sink {
    /// Puts a record into the spool, or in line for it when there is no room.
    fn push(&mut self, record: RecordKind) -> anyhow::Result<()> {
        self.waiting.push_back(record);
        if self.retry_at.is_none() { self.flush() } else { Ok(()) }
    }

    /// Tries again when it is time.
    fn retry(&mut self, now: Instant) -> anyhow::Result<()> {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.recount();
            self.flush()?;
        }
        Ok(())
    }

    /// Looks up how much is on disk: acknowledged segments go without the shim's doing.
    fn recount(&mut self) {
        if let Ok(held) = spool::held_bytes(&self.dir) {
            self.held = held;
        }
    }

    /// Nothing goes in for now.
    fn wait(&mut self, why: &'static str) {
        let now = Instant::now();
        self.retry_at = Some(now + FULL_RETRY);
        self.full = Some((why, self.full.map_or(now, |(_, since)| since)));
    }

    /// Why nothing goes in, once it has been so for a while; otherwise empty.
    fn words(&self, now: Instant) -> &'static str {
        self.full
            .filter(|(_, since)| now.saturating_duration_since(*since) >= HELD_SAID)
            .map_or("", |(why, _)| why)
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.retry_at = None;
        while let Some(record) = self.waiting.front() {
            if self.held >= self.quota {
                let all = "the spools of all jobs there are full together";
                self.wait(if self.shared { all } else { "its spool is full" });
                return Ok(());
            }
            let before = self.spool.segment_len();
            match self.spool.append(record.clone()) {
                Ok(number) => {
                    if number > 1 {
                        Point::RecordWritten.hit(); // after that of its start
                    }
                    self.waiting.pop_front();
                    let after = self.spool.segment_len();
                    self.held += after.checked_sub(before).unwrap_or(after);
                }
                Err(error) if error.is_full() => {
                    self.wait("its disk is full");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
            // At the first that went in: what waits for the end record's room has none.
            self.full = None;
        }
        Ok(())
    }
}

/// Appends to a tail and forgets its beginning.
fn keep_tail(tail: &mut Vec<u8>, data: &[u8]) {
    tail.extend_from_slice(&data[data.len().saturating_sub(TAIL_BYTES)..]);
    let excess = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..excess);
}

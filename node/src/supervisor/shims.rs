//! The agent's side of shims: start one, find one again, talk to it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use plexus_mesh::framed::FrameReader;
use plexus_mesh::systemd::VARIABLES;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::cgroup;
use crate::shim::protocol::{Cancel, FromShim, Order, Report, SOCKET, order};

/// Longest frame a shim sends: an outcome with its reason.
const REPORT_MAX: usize = 64 << 10;
/// Orders on their way to a shim. They are few; the channel fills only when the shim is stopped.
const ORDERS: usize = 64;
/// Longest wait for a shim to take notice of an abort.
const ABORT_LIMIT: Duration = Duration::from_secs(1);
/// Pauses between two looks at a shim that holds its lock but does not listen: it is about to begin, or to end.
const FIND_PAUSES: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(500),
];

/// Longest wait for a shim that holds its lock to take a connection: one that cannot go on takes ten seconds at most
/// to end its tree.
const DEAF_LIMIT: Duration = Duration::from_secs(15);

/// What a shim tells its unit.
#[derive(Debug)]
pub(super) enum News {
    /// A report.
    Report(Report),
    /// The conversation ended: the shim is dead, or took another agent.
    Gone,
}

/// A conversation with a shim.
#[derive(Debug)]
pub(super) struct Shim {
    orders: mpsc::Sender<Bytes>,
}

/// A look for the shim of a unit that is marked as started.
pub(super) enum Found {
    /// It lives.
    Alive(UnixStream),
    /// There is none, and none will come.
    Dead,
    /// It holds its lock, and takes no connection: longer than it needs to begin or to end.
    Deaf,
}

impl Shim {
    /// Takes up a conversation; news go to `inbox`, wrapped by `wrap`.
    pub(super) fn talk<T: Send + 'static>(
        stream: UnixStream,
        inbox: mpsc::Sender<T>,
        wrap: impl Fn(News) -> T + Send + 'static,
    ) -> Self {
        let (reader, mut writer) = stream.into_split();
        let (orders, mut outbox) = mpsc::channel::<Bytes>(ORDERS);
        // Both tasks end with the socket: the reader when the shim closes it, the writer with this handle.
        tokio::spawn(async move {
            while let Some(bytes) = outbox.recv().await {
                if writer.write_all(&bytes).await.is_err() {
                    break; // the reader sees the same end and tells it
                }
            }
        });
        tokio::spawn(async move {
            let mut frames = FrameReader::new(reader);
            while let Ok(Some(FromShim { report })) = frames.next(REPORT_MAX).await {
                let Some(report) = report else { continue }; // a newer shim's word
                if inbox.send(wrap(News::Report(report))).await.is_err() {
                    return;
                }
            }
            inbox.send(wrap(News::Gone)).await.ok();
        });
        Self { orders }
    }

    /// Sends an order. That it cannot be delivered shows as [`News::Gone`].
    pub(super) async fn order(&self, what: Order) {
        self.orders.send(order(what)).await.ok();
    }
}

/// A shim that waits for a launch.
#[derive(Debug)]
pub(super) struct Spare {
    dir: PathBuf,
    stream: UnixStream,
}

impl Spare {
    /// Its directory, until a unit adopts it.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The conversation with it.
    pub(super) fn stream(&mut self) -> &mut UnixStream {
        &mut self.stream
    }

    /// Another descriptor of the conversation, to see its end.
    pub(super) fn second_stream(&self) -> io::Result<UnixStream> {
        UnixStream::from_std(StdUnixStream::from(self.stream.as_fd().try_clone_to_owned()?))
    }

    /// Makes it the shim of a unit: its directory gets the unit's name. `None` when it died meanwhile.
    pub(super) fn adopt(self, dir: &Path) -> io::Result<Option<UnixStream>> {
        if !is_alive(&self.dir) {
            return Ok(None);
        }
        if let Some(parent) = dir.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        fs::rename(&self.dir, dir)?;
        Ok(Some(self.stream))
    }
}

/// Makes a directory on tmpfs and starts a shim in it, without anything to run yet; in a control group called
/// `group` if one is named.
pub(super) fn spawn(binary: &Path, dir: PathBuf, group: Option<&str>) -> io::Result<Spare> {
    let stream = begin(binary, &dir, group)?;
    Ok(Spare { dir, stream })
}

fn begin(binary: &Path, dir: &Path, group: Option<&str>) -> io::Result<UnixStream> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let lock = lock_file(dir)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join("shim.log"))?;
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut command = tokio::process::Command::new(binary);
    command.arg("shim").current_dir(dir);
    // A container's client would tell systemd that it is the agent.
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    if let Some(group) = group {
        command.arg("--group").arg(group);
    }
    let mut child = command
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::from(lock))
        .stderr(Stdio::from(log))
        .kill_on_drop(false)
        .spawn()?;
    // Collects its exit; without this it would stay as a zombie until the agent ends. It stays in its group to the end: to leave
    // would take as long as to join. One that outlives its agent leaves by itself.
    let group = group.map(str::to_owned);
    tokio::spawn(async move {
        child.wait().await.ok();
        if let Some(group) = group {
            tokio::task::spawn_blocking(move || cgroup::remove(&group)).await.ok();
        }
    });
    UnixStream::from_std(ours)
}

/// Looks for the shim in `dir` until it is certain. A shim holds the lock for all its life, and the agent that
/// started it held it before, so a lock that is free means that no shim is left and none can come.
pub(super) async fn find(dir: &Path) -> Found {
    let give_up = tokio::time::Instant::now() + DEAF_LIMIT;
    let mut pauses = FIND_PAUSES.iter().copied().chain(std::iter::repeat(FIND_PAUSES[3]));
    loop {
        if !is_alive(dir) {
            return Found::Dead;
        }
        if let Ok(stream) = connect(dir).await {
            return Found::Alive(stream);
        }
        if tokio::time::Instant::now() >= give_up {
            return Found::Deaf;
        }
        tokio::time::sleep(pauses.next().unwrap_or(FIND_PAUSES[3])).await;
    }
}

/// Tells the shim in `dir` to end its tree at once. It then goes by itself.
pub(super) async fn abort(dir: &Path) {
    if let Ok(mut stream) = connect(dir).await {
        stream.write_all(&order(Order::Cancel(Cancel { now: true }))).await.ok();
        // Closing at once could overtake the order's reading; the shim closes when it goes.
        tokio::time::timeout(ABORT_LIMIT, stream.readable()).await.ok();
    }
}

/// Kills whoever holds the lock in `dir` as its standard output: the shim, and nobody else. Blocks until it is gone,
/// for a second at most.
pub(super) fn kill(dir: &Path) {
    let Ok(lock) = fs::metadata(dir.join("lock")) else { return };
    let is_shim = |proc: &Path| {
        fs::metadata(proc.join("fd/1")).is_ok_and(|out| (out.dev(), out.ino()) == (lock.dev(), lock.ino()))
    };
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| is_shim(&entry.path())) {
            kill_process(pid, Signal::KILL).ok(); // gone meanwhile
        }
    }
    let give_up = std::time::Instant::now() + ABORT_LIMIT;
    while is_alive(dir) && std::time::Instant::now() < give_up {
        std::thread::sleep(FIND_PAUSES[0]);
    }
}

/// True while a shim holds the lock in `dir`, or when that cannot be told.
pub(super) fn is_alive(dir: &Path) -> bool {
    match lock_file(dir) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// The last line that a shim left in its log, if it said anything.
pub(super) fn last_words(dir: &Path) -> Option<String> {
    let log = fs::read(dir.join("shim.log")).ok()?;
    let text = String::from_utf8_lossy(&log).into_owned();
    let line = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(400).collect())
}

fn lock_file(dir: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))
}

/// By way of the directory's descriptor: a socket's own path may have no more than 107 bytes.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())).await
}

//! The shim: a process per unit that owns the worker's pipes, its exit status and the spool.
//!
//! The agent starts it (same binary, `plexus-node shim`), as a spare before there is work for it, and may die, be
//! upgraded and come back; the shim goes on. It is one thread around `poll(2)` that owns all state (module `drive`), and a second one that does
//! nothing but `fdatasync`, so that a slow disk never delays the next line on its way to the agent.
//!
//! * standard input: a socket to the agent that started it. [`Launch`](protocol::Launch) comes through it, so
//!   that key, input and environment are in no argument, environment or file.
//! * standard output: the lock file of the unit, locked by the agent before the shim began. Whoever can lock it
//!   knows that there is no shim and none to come.
//!   For a container that waits for a unit, [`Warm`](protocol::Warm) comes first and the launch when there is one.
//! * standard error: a small log on tmpfs.
//! * working directory: the unit's on tmpfs, by whatever name; the agent renames that of a spare.
//!
//! Every record is in the spool before the agent hears of it. When worker and tree are gone, the end record is
//! written and synced, and the shim exits: the agent serves the spool alone.

pub mod cut;
mod drive;
pub mod ending;
mod link;
mod memory;
pub mod processes;
pub mod protocol;
mod syncer;
mod warm;
mod worker;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::getppid;

use drive::Shim;
use link::{First, Link};
use protocol::SOCKET;

use crate::cgroup;

/// Environment variable of every process of a unit: `<unit>.<attempt>`. By it an agent finds what a killed shim
/// left behind.
pub const MARKER: &str = "PLEXUS_UNIT";

/// What a container that waits for a unit says on standard error, as a line of its own, once it runs: all of its mounts are made.
pub const READY: &str = "plexus-container-runs";

/// Pause between two walks over a tree that is being killed: the kernel needs a moment to take a process down.
const WALK_PAUSE: Duration = Duration::from_millis(10);
/// How long a shim that cannot go on tries to take its tree with it.
const ABORT_LIMIT: Duration = Duration::from_secs(10);

/// Runs as shim. `args` are those after the word "shim".
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.collect();
    let group = match args.as_slice() {
        [] if !io::stdin().is_terminal() => None,
        [option, group] if option == "--group" => group.to_str(),
        _ => {
            eprintln!("plexus-node shim is started by plexus-node, not by hand");
            return ExitCode::from(2);
        }
    };
    match run(group) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent quotes the last line of this log when it reports the unit as lost.
            eprintln!("{error:#}");
            let give_up = Instant::now() + ABORT_LIMIT;
            while processes::kill_descendants() > 0 && Instant::now() < give_up {
                std::thread::sleep(WALK_PAUSE);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(group: Option<&str>) -> anyhow::Result<()> {
    plexus_mesh::memory::fix_thresholds();
    rustix::process::setsid().ok(); // refused only when it leads a session already
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("cannot adopt orphans")?;
    // The key must not get into a core file.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).ok();
    let first = io::stdin().as_fd().try_clone_to_owned().context("no agent on standard input")?;
    std::fs::remove_file(SOCKET).ok();
    let listener = UnixListener::bind(SOCKET).context("cannot listen for agents")?;
    listener.set_nonblocking(true).context("cannot listen for agents")?;
    let link = Link::new(UnixStream::from(first)).context("cannot greet the agent")?;
    let agent = getppid();
    // Takes some 20 ms of waiting in the kernel, which is why a shim is started before there is work for it.
    let group = group.and_then(|group| cgroup::join(group, Path::new(cgroup::NOTE)));
    let served = serve(listener, link);
    // An agent that lives to see the end of its shim removes the group.
    let is_seen = served.as_ref().is_ok_and(|told| *told) && getppid() == agent;
    if let Some(group) = group.filter(|_| !is_seen) {
        cgroup::leave(&group);
    }
    served.map(drop)
}

/// Serves a unit, if one comes, to its end; whether an agent was told of that.
fn serve(listener: UnixListener, mut link: Link) -> anyhow::Result<bool> {
    let first = link.wait_for_first().context("the agent sent no launch")?;
    let (launch, worker) = match first {
        None => return Ok(false), // the agent went before it had work for this shim
        Some(First::Launch(launch)) => (launch, None),
        Some(First::Warm(warm)) => match warm::wait(&mut link, *warm)? {
            Some(claimed) => claimed,
            None => return Ok(false),
        },
    };
    let mut shim = Shim::begin(*launch, worker, listener, link)?;
    shim.drive()?;
    let told = shim.has_agent();
    shim.linger();
    Ok(told)
}

//! A worker that is started ahead of its unit and waits for its input.
//!
//! Until the launch comes nothing has a name yet: no spool, no record, no agent but the one that started this shim. When
//! that agent goes, or the worker, the container goes and so does the shim.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{WaitOptions, wait as wait_child};

use super::link::Link;
use super::protocol::{Launch, Order, Ready, Report, Warm};
use super::worker::{Got, Worker};
use super::{ABORT_LIMIT, READY, WALK_PAUSE, processes};

/// Longest wait for the engine to remove the container of a worker that nobody wants.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Longest line before a worker is ready; what is longer is no line of this node.
const HEARD_MAX: usize = 64 << 10;

/// Starts the worker and waits for its unit; `None` when none will come. A worker that ended while it waited is left out: the
/// launch then starts one of its own, for this one never had any input.
///
/// # Errors
/// The link cannot be watched.
pub(super) fn wait(link: &mut Link, warm: Warm) -> anyhow::Result<Option<(Box<Launch>, Option<Worker>)>> {
    let mut worker = Worker::spawn(&warm.argv, &warm.env, &warm.cwd);
    if let Some(error) = &worker.unstarted {
        anyhow::bail!("cannot start {}: {error}", warm.argv.first().map_or("", String::as_str));
    }
    let launch = wait_for_launch(link, &mut worker);
    if matches!(launch, Ok(Some(_))) {
        let alive = !has_ended(&worker);
        return launch.map(|launch| launch.map(|launch| (launch, alive.then_some(worker))));
    }
    end(&warm.end_argv);
    launch.map(|_| None)
}

fn wait_for_launch(link: &mut Link, worker: &mut Worker) -> anyhow::Result<Option<Box<Launch>>> {
    // What was said before it was ready, while it is not.
    let mut said = Some(Vec::new());
    loop {
        let (agent_spoke, worker_spoke) = {
            let stderr = worker.stderr.as_ref().filter(|_| said.is_some());
            let ended = worker.ended_fd();
            let mut fds = vec![PollFd::from_borrowed_fd(link.fd(), PollFlags::IN)];
            fds.extend(stderr.map(|pipe| PollFd::from_borrowed_fd(pipe.fd(), PollFlags::IN)));
            fds.extend(ended.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(std::io::Error::from(error)).context("cannot wait"),
            }
            (!fds[0].revents().is_empty(), stderr.is_some() && !fds[1].revents().is_empty())
        };
        if agent_spoke {
            let Ok(orders) = link.orders() else { return Ok(None) };
            let mut orders = orders.into_iter();
            match orders.next() {
                Some(Order::Launch(launch)) => {
                    link.put_back(orders);
                    return Ok(Some(launch));
                }
                Some(Order::Cancel(_)) => return Ok(None), // it is not wanted any more
                Some(Order::Heard(_) | Order::Trimmed(_) | Order::Warm(_) | Order::Quota(_)) | None => {}
            }
        } else if worker_spoke {
            if let Some(heard) = &mut said
                && listen(worker, heard)
            {
                said = None;
                link.say(Report::Ready(Ready {}));
                link.flush().ok(); // an agent that is gone shows at the next read
            }
        } else {
            return Ok(None); // the worker ended before a unit came
        }
    }
}

/// Reads what the worker says; true when it is ready. What the engine's client complains of before goes to this shim's log.
fn listen(worker: &mut Worker, heard: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 4096];
    match worker.stderr.as_mut().map(|pipe| pipe.read(&mut buffer)) {
        Some(Got::Data(data)) => heard.extend_from_slice(data),
        Some(Got::Nothing) => {}
        Some(Got::End) | None => worker.stderr = None,
    }
    while let Some(end) = heard.iter().position(|&byte| byte == b'\n') {
        let line: Vec<u8> = heard.drain(..=end).collect();
        if line.trim_ascii_end() == READY.as_bytes() {
            return true;
        }
        eprintln!("{}", String::from_utf8_lossy(line.trim_ascii_end()));
    }
    heard.truncate(HEARD_MAX);
    false
}

fn has_ended(worker: &Worker) -> bool {
    let Some(fd) = worker.ended_fd() else { return true };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Takes the container away, and whatever else this shim started.
fn end(end_argv: &[String]) {
    let give_up = Instant::now() + END_LIMIT;
    if let Some((program, args)) = end_argv.split_first() {
        let quiet = Stdio::null;
        let helper = Command::new(program).args(args).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
        match helper {
            Ok(mut helper) => {
                while matches!(helper.try_wait(), Ok(None)) && Instant::now() < give_up {
                    std::thread::sleep(WALK_PAUSE);
                }
            }
            Err(error) => eprintln!("cannot run {program}: {error}"),
        }
    }
    let give_up = Instant::now() + ABORT_LIMIT;
    while processes::kill_descendants() > 0 && Instant::now() < give_up {
        while let Ok(Some(_)) = wait_child(WaitOptions::NOHANG) {}
        std::thread::sleep(WALK_PAUSE);
    }
}

//! The worker's process and pipes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::{Buf, Bytes};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::cut::Cutter;
use super::ending::Exit;

/// Asked of the kernel for the worker's output pipes, so that a burst does not stop at 64 KiB.
const PIPE_BYTES: usize = 256 << 10;

/// The worker: running, ended, or never begun.
#[derive(Debug)]
pub(super) struct Worker {
    process: Option<Process>,
    /// How it ended.
    pub(super) exit: Option<Exit>,
    /// Why it could not be started.
    pub(super) unstarted: Option<io::Error>,
    /// What it has not read yet.
    pub(super) stdin: Option<Stdin>,
    /// Its output.
    pub(super) stdout: Option<Pipe>,
    /// Its complaints.
    pub(super) stderr: Option<Pipe>,
}

/// A child of this shim and the descriptor that tells of its end.
#[derive(Debug)]
pub(super) struct Process {
    pid: Pid,
    ended: OwnedFd,
}

/// The worker's standard input and what is still to be written.
#[derive(Debug)]
pub(super) struct Stdin {
    pipe: File,
    rest: Bytes,
}

/// One output pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pipe: File,
    /// Cuts it into records.
    pub(super) cutter: Cutter,
}

/// What a read found.
pub(super) enum Got<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// Nothing just now.
    Nothing,
    /// The last writer closed it.
    End,
}

impl Worker {
    /// Starts the worker. A failure is kept in `unstarted`: it is the unit's outcome, not the shim's.
    pub(super) fn spawn(argv: &[String], env: &BTreeMap<String, String>, cwd: &str) -> Self {
        let mut worker =
            Self { process: None, exit: None, unstarted: None, stdin: None, stdout: None, stderr: None };
        if let Err(error) = worker.start(argv, env, cwd) {
            worker.unstarted = Some(error);
        }
        worker
    }

    /// Gives it its input; comes once.
    pub(super) fn feed(&mut self, input: Bytes) {
        if let Some(stdin) = &mut self.stdin {
            stdin.rest = input;
        }
    }

    fn start(&mut self, argv: &[String], env: &BTreeMap<String, String>, cwd: &str) -> io::Result<()> {
        let Some((program, args)) = argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
        };
        let mut child = Command::new(resolve(program, env.get("PATH")))
            .args(args)
            .env_clear()
            .envs(env)
            .current_dir(cwd)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        self.process = Some(Process::new(child.id())?);
        self.stdin =
            stdin.map(|fd| nonblocking(fd).map(|pipe| Stdin { pipe, rest: Bytes::new() })).transpose()?;
        self.stdout = stdout.map(Pipe::new).transpose()?;
        self.stderr = stderr.map(Pipe::new).transpose()?;
        Ok(())
    }

    /// Its process id, while it was ever started.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// True for the worker's own process.
    pub(super) fn is(&self, pid: Pid) -> bool {
        self.process.as_ref().is_some_and(|process| process.pid == pid)
    }

    /// The descriptor that tells of its end, while it runs.
    pub(super) fn ended_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.exit.is_some() {
            return None;
        }
        self.process.as_ref().map(|process| process.ended.as_fd())
    }

    /// Sends a signal, unless it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // The process id is ours until its end was collected, so no other process can have taken it.
        if self.exit.is_none()
            && let Some(process) = &self.process
        {
            kill_process(process.pid, signal).ok();
        }
    }

    /// True when nothing runs and nothing more can come out.
    pub(super) fn is_over(&self) -> bool {
        (self.exit.is_some() || self.unstarted.is_some()) && self.stdout.is_none() && self.stderr.is_none()
    }
}

impl Process {
    /// Watches a child of this process that was not collected yet.
    pub(super) fn new(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let ended = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, ended })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    pub(super) fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Stdin {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Writes what the pipe takes; true when there is no more to do and the pipe is to be closed.
    pub(super) fn push(&mut self) -> bool {
        while !self.rest.is_empty() {
            match self.pipe.write(&self.rest) {
                Ok(count) => self.rest.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true, // it closed its input; its end will tell what that means
            }
        }
        true
    }
}

impl Pipe {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        // A refusal (the user's share of pipe memory is used up) leaves the usual size.
        rustix::pipe::fcntl_setpipe_size(&fd, PIPE_BYTES).ok();
        Ok(Self { pipe: nonblocking(fd)?, cutter: Cutter::default() })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    pub(super) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Got<'a> {
        loop {
            match self.pipe.read(buffer) {
                Ok(0) => return Got::End,
                Ok(count) => return Got::Data(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Got::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Got::End,
            }
        }
    }
}

/// The program's file, found by the worker's own PATH. With a bare name, the standard library would have to copy
/// this whole process before it can look.
fn resolve(program: &str, path: Option<&String>) -> PathBuf {
    if program.contains('/') {
        return program.into();
    }
    let folders = path.map(String::as_str).unwrap_or_default().split(':');
    let found = folders.map(|folder| Path::new(folder).join(program)).find(|file| file.is_file());
    found.unwrap_or_else(|| program.into())
}

fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    Ok(File::from(fd))
}

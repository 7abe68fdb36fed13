//! One real process of the system under test: started, killed, waited for, its output kept.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{Seen, wait_for};

/// Longest orderly exit: a daemon closes its links and its database, and waits for nobody.
const EXIT: Duration = Duration::from_secs(15);

/// A daemon and its log. Dropping it kills the process and waits for it.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    later: Duration,
    log: PathBuf,
    child: Option<Child>,
}

impl Daemon {
    /// Describes a daemon; nothing runs yet. Standard output and error go to `log`, which every start appends to.
    pub fn new(name: &str, program: PathBuf, args: Vec<OsString>, log: PathBuf) -> Self {
        let later = Duration::ZERO;
        Self { name: name.to_owned(), program, args, env: Vec::new(), later, log, child: None }
    }

    /// Sets a variable of the environment for the next starts.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.unset_env(name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable back.
    pub fn unset_env(&mut self, name: &str) {
        self.env.retain(|(n, _)| n != name);
    }

    /// Has the next starts happen so much later: by the clock that counts from the start of the machine, which timers go by.
    pub fn set_later(&mut self, later: Duration) {
        self.later = later;
    }

    /// Starts the process, in a process group of its own: Ctrl-C at a terminal reaches us, not it.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start(&mut self) -> anyhow::Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.name);
        }
        let output = open_log(&self.log)?;
        let child = self
            .command()
            .args(&self.args)
            .envs(self.env.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the log")?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// The program, perhaps in a time of its own; its process is the one that was started either way.
    fn command(&self) -> Command {
        if self.later.is_zero() {
            return Command::new(&self.program);
        }
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let seconds = self.later.as_secs().to_string();
        command.args(["--time", "--monotonic", &seconds, "--boottime", &seconds]).arg(&self.program);
        command
    }

    /// Name as in messages: `controller`, `hop-1`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of the running process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the process lives. Reaps it when it does not.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            None => false,
            Some(child) => matches!(child.try_wait(), Ok(None)),
        }
    }

    /// Kills with SIGKILL and waits. Does nothing when nothing runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When nothing runs or the signal cannot be sent.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self
            .child
            .as_ref()
            .map(Pid::from_child)
            .with_context(|| format!("{} does not run", self.name))?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits until the process ends by itself and gives its exit status.
    ///
    /// # Errors
    /// When it does not run, or still runs at the deadline; the error shows the end of its log.
    pub async fn exited(&mut self, deadline: Duration) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        let status = wait_for(&format!("{} to exit", self.name), deadline, async || match child.try_wait() {
            Ok(Some(status)) => Seen::Yes(status),
            Ok(None) => Seen::NotYet(format!("still running; its log ends with\n{}", tail(&self.log, 20))),
            Err(error) => Seen::NotYet(error.to_string()),
        })
        .await?;
        self.child = None;
        Ok(status)
    }

    /// Sends SIGTERM and waits for the orderly end. Does nothing when nothing runs.
    ///
    /// # Errors
    /// When it does not end in time or ends with an error.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if !self.is_running() {
            self.child = None;
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        let status = self.exited(EXIT).await?;
        if !status.success() {
            bail!("{} ended with {status} on SIGTERM; its log ends with\n{}", self.name, self.log_tail(20));
        }
        Ok(())
    }

    /// Everything it wrote since its first start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Its last lines.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Waits until a line of its output contains `text`, looking only at what follows the first `skip` bytes.
    ///
    /// # Errors
    /// When the process ends first or the deadline passes; both show the end of the log.
    pub async fn logged(&mut self, text: &str, skip: usize, deadline: Duration) -> anyhow::Result<String> {
        let name = self.name.clone();
        let what = format!("{name} to print {text:?}");
        let found = wait_for(&what, deadline, async || {
            let running = self.is_running();
            let log = fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(log.get(skip..).unwrap_or_default()).into_owned();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return Seen::Yes(Ok(line.to_owned()));
            }
            let state = format!("log ends with\n{}", tail(&self.log, 20));
            if running { Seen::NotYet(state) } else { Seen::Yes(Err(state)) }
        })
        .await?;
        match found {
            Ok(line) => Ok(line),
            Err(state) => bail!("{name} ended before it printed {text:?}; its {state}"),
        }
    }

    /// Bytes in the log now; pass it to [`Self::logged`] to look only at what comes after.
    pub fn log_size(&self) -> usize {
        fs::metadata(&self.log).map_or(0, |m| usize::try_from(m.len()).unwrap_or(usize::MAX))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

fn tail(path: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

//! A machine that is no member yet: it joins by token, and then runs as one.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Runtime};
use crate::daemon::Daemon;
use crate::layout::podman_command;

/// A machine of its own beside a cluster.
#[derive(Debug)]
pub struct Newcomer {
    /// Its daemon, once [`Newcomer::start`]ed.
    pub daemon: Daemon,
    dir: PathBuf,
    runtime_dir: PathBuf,
    program: PathBuf,
    work: String,
}

impl Newcomer {
    /// Makes its folders below those of `cluster`; its jobs run as those of the cluster's node do.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn new(cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let layout = &cluster.layout;
        let (dir, runtime_dir) = (layout.dir.join(name), layout.runtime_dir.join(name));
        for dir in [&dir, &runtime_dir] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let program = layout.binaries.node();
        let config = dir.join("etc/node.toml").into_os_string();
        let args = vec![OsString::from("run"), OsString::from("--config"), config];
        let work = match &layout.runtime {
            Runtime::Podman => format!(
                "runtime = \"podman\"\n\n[work.podman]\ncommand = {}\nnetwork = \"host\"\n",
                Value::from(podman_command())
            ),
            Runtime::Process(command) => {
                format!(
                    "runtime = \"process\"\n\n[work.process]\ncommand = {}\n",
                    Value::from(command.clone())
                )
            }
        };
        Ok(Self {
            daemon: Daemon::new(name, program.clone(), args, layout.log(name)),
            dir,
            runtime_dir,
            program,
            work,
        })
    }

    /// A clone of the machine: the same identity and data in folders of their own, on this host.
    ///
    /// # Errors
    /// When something cannot be copied.
    pub fn cloned(&self, cluster: &Cluster, name: &str) -> anyhow::Result<Self> {
        let copy = Self::new(cluster, name)?;
        for part in ["etc", "data"] {
            let copied = std::process::Command::new("cp")
                .arg("-a")
                .args([self.dir.join(part), copy.dir.join(part)])
                .status()
                .context("cannot run cp")?;
            ensure!(copied.success(), "cannot copy {part}: {copied}");
        }
        let config = copy.dir.join("etc/node.toml");
        let path = |path: &Path| path.display().to_string();
        let text = fs::read_to_string(&config).with_context(|| format!("no {}", config.display()))?;
        let text = text
            .replace(&path(&self.dir), &path(&copy.dir))
            .replace(&path(&self.runtime_dir), &path(&copy.runtime_dir));
        fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        Ok(copy)
    }

    /// Folder of its identity.
    pub fn identity_dir(&self) -> PathBuf {
        self.dir.join("etc/node")
    }

    /// Runs `plexus-node join`; killed when no longer awaited.
    ///
    /// # Errors
    /// When the program cannot be run; its own failure is in the output.
    pub async fn join(&self, token: &str, args: &[&str]) -> anyhow::Result<Output> {
        let path = |path: &Path| path.display().to_string();
        tokio::process::Command::new(&self.program)
            .args(["join", token, "--config-dir", &path(&self.dir.join("etc"))])
            .args(["--data-dir", &path(&self.dir.join("data")), "--runtime-dir", &path(&self.runtime_dir)])
            .args(["--socket", &path(&self.runtime_dir.join("node.sock"))])
            .args(args)
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run plexus-node")
    }

    /// Starts the daemon with the configuration that `join` wrote, and what this cluster's jobs need beside it.
    ///
    /// # Errors
    /// When there is no configuration, or the daemon does not start.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let path = self.dir.join("etc/node.toml");
        let written = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
        if !written.contains("[work]") {
            fs::write(&path, format!("{written}\n[work]\nallow_swap = true\n{}", self.work))?;
        }
        self.daemon.start()
    }

    /// Checks that key, certificate and configuration are their owner's alone.
    ///
    /// # Errors
    /// When one is not there, or others may read it.
    pub fn check_modes(&self) -> anyhow::Result<()> {
        for name in ["etc/node/node.key", "etc/node/node.pem", "etc/node/ca.pem", "etc/node.toml"] {
            let path = self.dir.join(name);
            let mode =
                fs::metadata(&path).with_context(|| format!("no {}", path.display()))?.permissions().mode();
            ensure!(mode & 0o777 == 0o600, "{} has mode {:o}", path.display(), mode & 0o777);
        }
        Ok(())
    }
}

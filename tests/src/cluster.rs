//! A controller, a hop and an execution node as real processes.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::api::Api;
use crate::binaries::Binaries;
use crate::daemon::Daemon;
use crate::layout::{Layout, runtime_root};
use crate::leftovers::{Leftovers, found_in_files, groups};
use crate::ports::ReservedPort;
use crate::wait::{Seen, wait_for};

/// Longest start: key generation, migrations and the first announcement, on a machine busy with builds.
const START: Duration = Duration::from_secs(30);
/// Longest time from the end of a trouble until nothing of its jobs is left.
const SETTLED: Duration = Duration::from_secs(30);
/// Password of the tests' administrator. The demo lets the controller make one.
const PASSWORD: &str = "only-for-tests";

/// How the execution node runs work.
#[derive(Debug, Clone)]
pub enum Runtime {
    /// Containers, through the real podman.
    Podman,
    /// This worker command.
    Process(Vec<String>),
}

/// Settings of a cluster to be.
#[derive(Debug)]
pub struct Builder {
    name: String,
    runtime: Runtime,
    start_node: bool,
    database: Option<String>,
    direct: bool,
    more_hops: usize,
    cores: Option<u16>,
    disk: Option<u32>,
    spool_quota: Option<u32>,
    memory_mib: Option<u32>,
    podman: String,
    fresh_image: Option<String>,
}

/// A running cluster in a folder and on ports of its own.
///
/// [`Cluster::finish`] ends it in order and checks that nothing is left. A cluster dropped without it counts as failed: its
/// processes are killed, its folder is kept and the end of every log is printed.
#[derive(Debug)]
pub struct Cluster {
    /// Folders, certificates and configuration.
    pub layout: Layout,
    /// The controller's process.
    pub controller: Daemon,
    /// The hop's process.
    pub hop: Daemon,
    /// Further hops between the first one and the execution node, in order.
    pub more_hops: Vec<Daemon>,
    /// The execution node's process.
    pub node: Daemon,
    api: Api,
    dir: Option<TempDir>,
    runtime_dir: Option<TempDir>,
    _ports: Vec<ReservedPort>,
}

impl Builder {
    /// Runs work by a command instead of podman.
    pub fn process(mut self, command: Vec<String>) -> Self {
        self.runtime = Runtime::Process(command);
        self
    }

    /// Gives the controller a PostgreSQL database, by its address, instead of SQLite files.
    pub fn database(mut self, url: String) -> Self {
        self.database = Some(url);
        self
    }

    /// Lets the execution node dial the controller itself, without a hop between them.
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Lets the execution node say that it has this many cores, so that many jobs run at once.
    pub fn cores(mut self, cores: u16) -> Self {
        self.cores = Some(cores);
        self
    }

    /// Lets a unit's output take so many MiB on the execution node, and no more.
    pub fn spool_quota(mut self, mebibytes: u32) -> Self {
        self.spool_quota = Some(mebibytes);
        self
    }

    /// Gives the controller a data folder of so many MiB, in memory, that only its process sees and that goes with it: it cannot
    /// be started a second time. [`Cluster::controller_data`] is the way in.
    pub fn small_disk(mut self, mebibytes: u32) -> Self {
        self.disk = Some(mebibytes);
        self
    }

    /// Puts this many further hops in a chain between the first one and the execution node.
    pub fn more_hops(mut self, count: usize) -> Self {
        self.more_hops = count;
        self
    }

    /// Lets the execution node say that it has this much memory, for the same end as [`Builder::cores`].
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = Some(memory_mib);
        self
    }

    /// Adds lines to the section `[work.podman]` of the execution node.
    pub fn podman(mut self, lines: &str) -> Self {
        self.podman = format!("{lines}\n");
        self
    }

    /// Starts with all that a fresh controller has; its execution environments are this image.
    pub fn fresh(mut self, image: &str) -> Self {
        self.fresh_image = Some(image.to_owned());
        self
    }

    /// Leaves the execution node down at first.
    pub fn without_node(mut self) -> Self {
        self.start_node = false;
        self
    }

    /// Makes folders, certificates and configuration, and starts nothing.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn prepare(self) -> anyhow::Result<Cluster> {
        let binaries = Binaries::of_this_build()?;
        let prefix = format!("plexus-{}-", self.name);
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir().context("cannot make a folder")?;
        let runtime_dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(runtime_root())
            .context("cannot make a folder on tmpfs")?;
        let ports =
            (0..3 + self.more_hops).map(|_| ReservedPort::new()).collect::<anyhow::Result<Vec<_>>>()?;
        let layout = Layout {
            dir: dir.path().to_owned(),
            runtime_dir: runtime_dir.path().to_owned(),
            binaries,
            mesh_port: ports[0].port(),
            https_port: ports[1].port(),
            http_port: ports[2].port(),
            runtime: self.runtime,
            database: self.database,
            direct: self.direct,
            more_hops: ports[3..].iter().map(ReservedPort::port).collect(),
            cores: self.cores,
            spool_quota: self.spool_quota,
            memory_mib: self.memory_mib,
            podman: self.podman,
            fresh_image: self.fresh_image,
        };
        layout.make_dirs()?;
        layout.certify()?;
        layout.configure()?;
        let api = Api::new(&format!("http://127.0.0.1:{}", layout.http_port), "admin", PASSWORD)?;
        let mut controller = match self.disk {
            Some(mebibytes) => on_small_disk(&layout, mebibytes)?,
            None => daemon(&layout, "controller", layout.binaries.controller()),
        };
        controller.set_env("PLEXUS_CONTROLLER_ADMIN_PASSWORD", PASSWORD);
        Ok(Cluster {
            controller,
            hop: daemon(&layout, "hop-1", layout.binaries.node()),
            more_hops: layout
                .hop_names()
                .map(|name| daemon(&layout, &name, layout.binaries.node()))
                .collect(),
            node: daemon(&layout, "node-1", layout.binaries.node()),
            api,
            dir: Some(dir),
            runtime_dir: Some(runtime_dir),
            _ports: ports,
            layout,
        })
    }

    /// Starts the daemons and waits until the API answers and, if it was started, until the node is ready for work.
    ///
    /// # Errors
    /// When one does not come up; the error shows the end of its log.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        let start_node = self.start_node;
        let mut cluster = self.prepare()?;
        if !cluster.layout.direct {
            cluster.hop.start()?;
        }
        for hop in &mut cluster.more_hops {
            hop.start()?;
        }
        cluster.controller.start()?;
        if start_node {
            cluster.node.start()?;
        }
        cluster.api_up().await?;
        if start_node {
            cluster.node_ready().await?;
        }
        Ok(cluster)
    }
}

impl Cluster {
    /// A cluster of controller, hop and execution node; `name` shows in its folder's name.
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            runtime: Runtime::Podman,
            start_node: true,
            database: None,
            direct: false,
            more_hops: 0,
            cores: None,
            disk: None,
            spool_quota: None,
            memory_mib: None,
            podman: String::new(),
            fresh_image: None,
        }
    }

    /// The API as the administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The controller's data folder, as its running process sees it.
    ///
    /// # Errors
    /// When the controller does not run.
    pub fn controller_data(&self) -> anyhow::Result<PathBuf> {
        let pid = self.controller.pid().context("the controller does not run")?;
        let dir = self.layout.data_dir("controller");
        Ok(Path::new("/proc").join(pid.to_string()).join("root").join(dir.strip_prefix("/").unwrap_or(&dir)))
    }

    /// Waits until the API answers.
    ///
    /// # Errors
    /// When the controller ends or does not answer in time.
    pub async fn api_up(&mut self) -> anyhow::Result<()> {
        let api = self.api.clone();
        let controller = &mut self.controller;
        let up = wait_for("the API to answer", START, async || match api.get("ping/").await {
            Ok(_) => Seen::Yes(true),
            Err(_) if !controller.is_running() => Seen::Yes(false),
            Err(error) => Seen::NotYet(format!("{error:#}; log ends with\n{}", controller.log_tail(20))),
        })
        .await?;
        if !up {
            bail!("the controller ended at once; its log ends with\n{}", self.controller.log_tail(20));
        }
        Ok(())
    }

    /// Waits until the controller sees the execution node and would give it work.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn node_ready(&self) -> anyhow::Result<()> {
        wait_for("node-1 to be ready", START, async || {
            match self.api.get("instances/?hostname=node-1").await {
                Ok(list) if list["results"][0]["node_state"] == "ready" => Seen::Yes(()),
                Ok(list) => Seen::NotYet(format!(
                    "instances {}; the node's log ends with\n{}",
                    list["results"],
                    self.node.log_tail(20)
                )),
                Err(error) => Seen::NotYet(format!("{error:#}")),
            }
        })
        .await
    }

    /// Kills the controller, starts it again and waits for its API.
    ///
    /// # Errors
    /// When it does not come back.
    pub async fn restart_controller(&mut self) -> anyhow::Result<()> {
        self.controller.kill();
        self.controller.start()?;
        self.api_up().await
    }

    /// Runs `plexus` against the local socket of a daemon and gives its JSON.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn plexus_json(&self, daemon: &str, args: &[&str]) -> anyhow::Result<Value> {
        let socket = self.layout.socket(daemon);
        let output = tokio::process::Command::new(self.layout.binaries.cli())
            .arg("--socket")
            .arg(&socket)
            .args(args)
            .args(["--output", "json"])
            .output()
            .await
            .context("cannot run plexus")?;
        if !output.status.success() {
            bail!("plexus {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        serde_json::from_slice(&output.stdout).context("plexus did not print JSON")
    }

    /// Runs `plexus` as the controller's administrator, over HTTP.
    ///
    /// # Errors
    /// When the program cannot be run; its own failure is in the output.
    pub async fn plexus_as_admin(&self, args: &[&str]) -> anyhow::Result<std::process::Output> {
        tokio::process::Command::new(self.layout.binaries.cli())
            .args(["--controller", &format!("http://127.0.0.1:{}", self.layout.http_port)])
            .args(args)
            .env("CONTROLLER_USERNAME", self.api.user())
            .env("CONTROLLER_PASSWORD", self.api.password())
            .env_remove("CONTROLLER_OAUTH_TOKEN")
            .output()
            .await
            .context("cannot run plexus")
    }

    /// Makes a token by `plexus token create` and gives its text.
    ///
    /// # Errors
    /// When the command fails.
    pub async fn token(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.plexus_as_admin(&[&["-o", "json", "token", "create"], args].concat()).await?;
        if !output.status.success() {
            bail!("plexus token create failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let made: Value = serde_json::from_slice(&output.stdout).context("plexus did not print JSON")?;
        made["token"].as_str().map(str::to_owned).context("the answer has no token")
    }

    /// What of this cluster is on the machine besides its three daemons.
    pub fn leftovers(&self) -> Leftovers {
        self.look_in(&[&self.layout.dir, &self.layout.runtime_dir])
    }

    /// Which of the canaries lie in a file of the cluster, on disk or in memory.
    pub fn found_in_files(&self, canaries: &[impl AsRef<[u8]>]) -> Vec<String> {
        let dirs = [&self.layout.dir, &self.layout.runtime_dir];
        dirs.into_iter().flat_map(|dir| found_in_files(dir, canaries)).collect()
    }

    /// What of its jobs is on the machine. A spare shim that waits for the next job is the agent's, not a job's.
    fn of_jobs(&self) -> Leftovers {
        let units = |dir: &Path| dir.join("units");
        let private = units(&self.layout.runtime_dir.join("node-1"));
        self.look_in(&[&units(&self.layout.data_dir("node-1")), &private])
    }

    fn look_in(&self, dirs: &[&Path]) -> Leftovers {
        let with_containers = matches!(self.layout.runtime, Runtime::Podman);
        let mut found = Leftovers::find(dirs, &self.layout.runtime_dir, with_containers);
        let mut daemons = vec![self.controller.pid(), self.hop.pid(), self.node.pid()];
        daemons.extend(self.more_hops.iter().map(Daemon::pid));
        found.processes.retain(|(pid, _)| !daemons.contains(&Some(*pid)));
        found.files.extend(below(&self.layout.data_dir("node-1").join("units")));
        found
    }

    /// Waits until no process, container or private folder of any job is left; the daemons may run on.
    ///
    /// # Errors
    /// When something stays.
    pub async fn clean(&self) -> anyhow::Result<()> {
        wait_for("everything of the jobs to be gone", SETTLED, async || {
            let found = self.of_jobs();
            Seen::when(found.is_empty(), || format!("{found:?}"))
        })
        .await
    }

    /// Waits until everything that the controller received since its start is stored, was stored before, or is named: refused,
    /// undone and sent again. Of each unit that the node let go, it had as many records as are stored or a named gap: in this
    /// life of the controller and in those before.
    ///
    /// # Errors
    /// When a sum does not balance.
    pub async fn balanced(&self) -> anyhow::Result<()> {
        wait_for("the records to balance", Duration::from_secs(15), async || {
            let text = match self.api.get("/metrics").await {
                Ok(Value::String(text)) => text,
                Ok(other) => return Seen::NotYet(format!("/metrics answered {other}")),
                Err(error) => return Seen::NotYet(format!("{error:#}")),
            };
            let of = |name: &str| {
                let line =
                    text.lines().find_map(|line| line.strip_prefix(&format!("plexus_records_{name}_total ")));
                line.and_then(|value| value.parse::<u64>().ok())
            };
            let parts = ["stored", "repeated", "refused", "undone"].map(of);
            let sum: Option<u64> = parts.into_iter().sum();
            let received = of("received");
            let unbalanced =
                text.lines().find_map(|line| line.strip_prefix("plexus_units_unbalanced_total "));
            if unbalanced != Some("0") {
                return Seen::NotYet(format!("{unbalanced:?} units do not balance"));
            }
            Seen::when(received.is_some() && received == sum, || {
                format!("{received:?} received; stored, repeated, refused, undone: {parts:?}")
            })
        })
        .await?;
        if let Some(line) = self.controller.log().lines().find(|line| line.contains("records do not balance"))
        {
            bail!("{line}");
        }
        Ok(())
    }

    /// Ends the daemons in order and checks that nothing is left behind.
    ///
    /// # Errors
    /// When a daemon does not end well, records do not balance, or something is left; then the folder is kept.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        self.clean().await?;
        // Read before the folder is looked at: a node that never ran has none.
        let store = fs::read_to_string(self.layout.data_dir("node-1").join("store_id"));
        self.node.stop().await?;
        if self.controller.is_running() {
            self.balanced().await?;
        }
        self.controller.stop().await?;
        self.hop.stop().await?;
        for hop in &mut self.more_hops {
            hop.stop().await?;
        }
        if let Ok(store) = store {
            wait_for("control groups of shims to be gone", SETTLED, async || {
                let left = groups(store.trim());
                Seen::when(left.is_empty(), || format!("{left:?}"))
            })
            .await?;
        }
        let found = self.leftovers();
        if !found.is_empty() {
            bail!("left behind after an orderly end: {found:?}");
        }
        self.dir.take().map(TempDir::close).transpose().context("cannot remove the folder")?;
        self.runtime_dir
            .take()
            .map(TempDir::close)
            .transpose()
            .context("cannot remove the folder on tmpfs")?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(dir) = self.dir.take() else { return };
        for daemon in
            [&mut self.node, &mut self.controller, &mut self.hop].into_iter().chain(&mut self.more_hops)
        {
            daemon.kill();
        }
        // Shims outlive their agent on purpose; twice, because one may be starting a container just now.
        for _ in 0..2 {
            let found = self.leftovers();
            if found.is_empty() {
                break;
            }
            found.sweep();
            thread::sleep(Duration::from_millis(100));
        }
        let kept = keep_logs(&dir);
        for daemon in [&self.controller, &self.hop, &self.node].into_iter().chain(&self.more_hops) {
            eprintln!("---- end of the log of {}:\n{}", daemon.name(), daemon.log_tail(30));
        }
        eprintln!("---- logs and configuration are kept in {}", kept.display());
        drop(self.runtime_dir.take());
        if env::var_os("PLEXUS_KEEP").is_some() {
            eprintln!("---- everything is kept in {}", dir.keep().display());
        }
    }
}

/// Entries of a folder.
fn below(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

fn daemon(layout: &Layout, name: &str, program: PathBuf) -> Daemon {
    let args = vec![OsString::from("run"), OsString::from("--config"), layout.config(name).into_os_string()];
    Daemon::new(name, program, args, layout.log(name))
}

/// The controller with a mount of its own at its data folder. The process stays the one that was started.
fn on_small_disk(layout: &Layout, mebibytes: u32) -> anyhow::Result<Daemon> {
    let dir = layout.data_dir("controller");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let script = r#"mount -t tmpfs -o "size=$1m" none "$2" && shift 2 && exec "$@""#;
    let words = ["--user", "--map-root-user", "--mount", "bash", "-c", script, "small-disk"];
    let mut args: Vec<OsString> = words.map(OsString::from).to_vec();
    args.extend([mebibytes.to_string().into(), dir.into_os_string(), layout.binaries.controller().into()]);
    args.extend(["run".into(), "--config".into(), layout.config("controller").into_os_string()]);
    Ok(Daemon::new("controller", "unshare".into(), args, layout.log("controller")))
}

/// Copies logs and configuration to a place that survives the folder.
fn keep_logs(dir: &TempDir) -> PathBuf {
    let name = dir
        .path()
        .file_name()
        .map_or_else(|| "cluster".into(), std::ffi::OsStr::to_string_lossy)
        .into_owned();
    let kept = env::temp_dir().join("plexus-failed").join(name);
    for part in ["log", "config"] {
        copy_files(&dir.path().join(part), &kept.join(part));
    }
    kept
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).ok();
    for entry in fs::read_dir(from).into_iter().flatten().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).ok();
    }
}

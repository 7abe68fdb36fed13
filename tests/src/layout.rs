//! Folders, certificates and configuration files of a cluster of three.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::binaries::Binaries;
use crate::cluster::Runtime;

/// Name of the mesh in certificates.
const MESH: &str = "demo.plexus";
/// Name of the cluster in certificates.
const CLUSTER: &str = "main";

/// Where everything of one cluster lies, and how its daemons are set.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Folder of the cluster: certificates, configuration, data, logs.
    pub dir: PathBuf,
    /// Folder on tmpfs for what must not touch a disk.
    pub runtime_dir: PathBuf,
    /// Programs.
    pub binaries: Binaries,
    /// Port of the hop's mesh listener.
    pub mesh_port: u16,
    /// HTTPS port of the controller.
    pub https_port: u16,
    /// HTTP port of the controller, on loopback.
    pub http_port: u16,
    /// How the execution node runs work.
    pub runtime: Runtime,
    /// Address of the controller's PostgreSQL database; none: SQLite.
    pub database: Option<String>,
    /// The execution node dials the controller itself; the hop is not started.
    pub direct: bool,
    /// Ports of further hops in a chain, each of which dials the one before it; the execution node dials the last.
    pub more_hops: Vec<u16>,
    /// Cores that the execution node says it has; none: what it finds.
    pub cores: Option<u16>,
    /// MiB that a unit's output may take on the execution node; none: what it allows by itself.
    pub spool_quota: Option<u32>,
    /// MiB of memory that it says it has; none: what it finds.
    pub memory_mib: Option<u32>,
    /// Further lines of its section `[work.podman]`.
    pub podman: String,
    /// The image of what there is at the first start; none: there is nothing.
    pub fresh_image: Option<String>,
}

impl Layout {
    /// Makes the folders.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn make_dirs(&self) -> anyhow::Result<()> {
        for dir in [self.dir.join("projects"), self.dir.join("config"), self.dir.join("log")] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        fs::create_dir_all(&self.runtime_dir)
            .with_context(|| format!("cannot create {}", self.runtime_dir.display()))?;
        fs::set_permissions(&self.runtime_dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot protect {}", self.runtime_dir.display()))
    }

    /// Makes a certificate authority and a certificate for each of the three, by `plexus ca`.
    ///
    /// # Errors
    /// When a command fails; its message is in the error.
    pub fn certify(&self) -> anyhow::Result<()> {
        let ca = self.ca_dir();
        self.plexus(&["ca", "init", &text(&ca), "--mesh", MESH, "--cluster", CLUSTER])?;
        for (role, name) in [("controller", "controller"), ("hop", "hop-1"), ("execution", "node-1")] {
            self.issue(&ca, role, name, &self.identity_dir(name))?;
        }
        for name in self.hop_names() {
            self.issue(&ca, "hop", &name, &self.identity_dir(&name))?;
        }
        Ok(())
    }

    /// Issues one certificate into `out`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn issue(&self, ca: &Path, role: &str, name: &str, out: &Path) -> anyhow::Result<()> {
        self.plexus(&["ca", "issue", "--ca", &text(ca), "--role", role, "--name", name, "--out", &text(out)])
    }

    /// Runs `plexus` and expects success.
    ///
    /// # Errors
    /// When it fails; its message is in the error.
    pub fn plexus(&self, args: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(self.binaries.cli()).args(args).output().context("cannot run plexus")?;
        if !output.status.success() {
            bail!("plexus {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Writes the three configuration files; `$PLEXUS_TEST_LOG` sets another log level.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn configure(&self) -> anyhow::Result<()> {
        let log = std::env::var("PLEXUS_TEST_LOG")
            .map(|level| format!("\n[log]\nlevel = \"{level}\"\n"))
            .unwrap_or_default();
        let database =
            self.database.as_ref().map(|url| format!("\n[database]\nurl = {url:?}\n")).unwrap_or_default();
        write(&self.config("controller"), &(self.controller_config() + &database + &log))?;
        write(&self.config("hop-1"), &(self.hop_config("hop-1", self.mesh_port, None) + &log))?;
        let mut before = self.mesh_port;
        for (name, &port) in self.hop_names().zip(&self.more_hops) {
            write(&self.config(&name), &(self.hop_config(&name, port, Some(before)) + &log))?;
            before = port;
        }
        write(&self.config("node-1"), &(self.node_config() + &log))
    }

    /// Names of the further hops.
    pub fn hop_names(&self) -> impl Iterator<Item = String> + use<> {
        (2..self.more_hops.len() + 2).map(|number| format!("hop-{number}"))
    }

    /// Folder of the certificate authority.
    pub fn ca_dir(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// Certificates of one daemon.
    pub fn identity_dir(&self, name: &str) -> PathBuf {
        self.dir.join("identity").join(name)
    }

    /// Configuration file of one daemon.
    pub fn config(&self, name: &str) -> PathBuf {
        self.dir.join("config").join(format!("{name}.toml"))
    }

    /// What `node` noted of its one unit when it took it, the first line of the unit's file; `None` while it has none.
    pub fn noted_unit(&self, node: &str) -> Option<Value> {
        let unit = fs::read_dir(self.data_dir(node).join("units")).ok()?.flatten().next()?;
        let text = fs::read_to_string(unit.path().join("unit")).ok()?;
        serde_json::from_str(text.lines().next()?).ok()
    }

    /// Data of one daemon.
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Log of one daemon.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// Local socket of one daemon; on tmpfs, because a socket's path may hold 107 bytes and a source tree may lie deep.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.runtime_dir.join(format!("{name}.sock"))
    }

    /// Root of manual projects.
    pub fn projects(&self) -> PathBuf {
        self.dir.join("projects")
    }

    fn controller_config(&self) -> String {
        let mesh = if self.direct {
            format!("listen = [\"127.0.0.1:{}\"]\n", self.mesh_port)
        } else {
            format!("listen = []\n\n[[mesh.peers]]\naddress = \"127.0.0.1:{}\"\n", self.mesh_port)
        };
        format!(
            r#"data_dir = {data}
socket = {socket}
identity_dir = {identity}

[mesh]
{mesh}
[enrolment]
ca_dir = {ca}

[http]
https = "127.0.0.1:{https}"
http = "127.0.0.1:{http}"

[projects]
root = {projects}

{fresh}"#,
            fresh = self.fresh(),
            ca = quoted(&self.ca_dir()),
            data = quoted(&self.data_dir("controller")),
            socket = quoted(&self.socket("controller")),
            identity = quoted(&self.identity_dir("controller")),
            https = self.https_port,
            http = self.http_port,
            projects = quoted(&self.projects()),
        )
    }

    /// What there is at the first start: nothing, so that what a test makes has the ids it counts on; or all there is.
    fn fresh(&self) -> String {
        match &self.fresh_image {
            None => {
                "[fresh]\ndemo = false\nexecution_environments = []\ncontrol_plane_image = \"\"\n".to_owned()
            }
            Some(image) => format!(
                "[fresh]\nexecution_environments = [{{ name = \"Fresh\", image = \"{image}\" }}]\n\
                 control_plane_image = \"{image}\"\n"
            ),
        }
    }

    fn hop_config(&self, name: &str, port: u16, before: Option<u16>) -> String {
        let peer = before
            .map(|port| format!("\n[[mesh.peers]]\naddress = \"127.0.0.1:{port}\"\n"))
            .unwrap_or_default();
        format!(
            r#"data_dir = {data}
runtime_dir = {runtime}
socket = {socket}
identity_dir = {identity}

[mesh]
listen = ["127.0.0.1:{port}"]
{peer}"#,
            data = quoted(&self.data_dir(name)),
            runtime = quoted(&self.runtime_dir.join(name)),
            socket = quoted(&self.socket(name)),
            identity = quoted(&self.identity_dir(name)),
        )
    }

    fn node_config(&self) -> String {
        let runtime = match &self.runtime {
            Runtime::Podman => format!(
                "runtime = \"podman\"\n\n[work.podman]\ncommand = {}\nnetwork = \"host\"\n{}",
                list(&podman_command()),
                self.podman
            ),
            Runtime::Process(command) => {
                format!("runtime = \"process\"\n\n[work.process]\ncommand = {}\n", list(command))
            }
        };
        let cores = self.cores.map(|cores| format!("cores = {cores}\n")).unwrap_or_default();
        let quota = self.spool_quota.map(|mib| format!("spool_quota_mib = {mib}\n")).unwrap_or_default();
        let memory = self.memory_mib.map(|memory| format!("memory_mib = {memory}\n")).unwrap_or_default();
        format!(
            r#"data_dir = {data}
runtime_dir = {runtime_dir}
socket = {socket}
identity_dir = {identity}

[mesh]
listen = []

[[mesh.peers]]
address = "127.0.0.1:{mesh}"

[work]
# Secrets of a job lie on tmpfs; this machine's swap, if it has one, may take them.
allow_swap = true
{cores}{memory}{quota}{runtime}"#,
            data = quoted(&self.data_dir("node-1")),
            runtime_dir = quoted(&self.runtime_dir.join("node-1")),
            socket = quoted(&self.socket("node-1")),
            identity = quoted(&self.identity_dir("node-1")),
            mesh = self.more_hops.last().copied().unwrap_or(self.mesh_port),
        )
    }
}

/// The command that reaches rootful podman: directly as root, else through sudo.
pub fn podman_command() -> Vec<String> {
    let words: &[&str] =
        if rustix::process::geteuid().is_root() { &["podman"] } else { &["sudo", "-n", "podman"] };
    words.iter().map(|&word| word.to_owned()).collect()
}

/// A tmpfs directory that this user can write: `/run` for root where it is one, else `$XDG_RUNTIME_DIR`, else `/dev/shm`.
pub fn runtime_root() -> PathBuf {
    let candidates = [Some(PathBuf::from("/run")), std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)];
    candidates
        .into_iter()
        .flatten()
        .find(|dir| is_tmpfs(dir) && is_writable(dir))
        .unwrap_or_else(|| PathBuf::from("/dev/shm"))
}

fn is_tmpfs(dir: &Path) -> bool {
    /// From linux/magic.h.
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(dir).is_ok_and(|stat| u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC))
}

fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A TOML string: for paths and arguments, JSON's escapes are TOML's too.
fn quoted(path: &Path) -> String {
    serde_json::Value::String(text(path)).to_string()
}

fn list(words: &[String]) -> String {
    serde_json::Value::from(words.to_vec()).to_string()
}

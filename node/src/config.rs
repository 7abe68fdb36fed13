//! The configuration file: checked and immutable before the first port is bound.

use std::fmt;
use std::path::{Path, PathBuf};

use plexus_mesh::MeshSection;
use plexus_mesh::port_forward::Policy;
use serde::Deserialize;

use crate::spool::SEGMENT_BYTES;

/// Smallest quota of a spool: its newest segment is at work and stays, so that one segment alone would hold a job for ever.
pub const SPOOL_QUOTA_MIN: u64 = 2 * SEGMENT_BYTES;
/// Most containers that wait for one image and organization: each holds some 50 MiB.
const WARM_MAX: u16 = 100;

/// A file that is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not readable.
    #[error("cannot read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause, part of the text because it is all there is to say.
        source: std::io::Error,
    },
    /// Not understood: an unknown key, a wrong type, no TOML.
    #[error("{}, line {line}: {problem}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it; names the key.
        problem: String,
    },
    /// Understood, and of no use.
    #[error("{}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Key and reason.
        problem: String,
    },
}

/// Everything a node is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Spool, store id, tree cache, working copies.
    pub data_dir: PathBuf,
    /// Private data and shim sockets; must be on tmpfs.
    pub runtime_dir: PathBuf,
    /// The local, read-only door.
    pub socket: PathBuf,
    /// Holds ca.pem, node.pem and node.key.
    pub identity_dir: PathBuf,
    /// Links.
    pub mesh: MeshSection,
    /// Units; of no use to a hop.
    pub work: WorkSection,
    /// Who may have this node open TCP connections where; nobody if left out.
    pub forward: Policy,
    /// Who may open which service on whom.
    pub policy: plexus_mesh::Policy,
    /// Logs.
    pub log: LogSection,
}

/// How units run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkSection {
    /// Containers or plain processes.
    pub runtime: RuntimeName,
    /// Accept that the machine swaps: secrets may then be written to disk.
    pub allow_swap: bool,
    /// MiB of unacknowledged output that a unit may hold on disk; its output pipe is not read beyond.
    pub spool_quota_mib: u64,
    /// MiB of unacknowledged output that all units together may hold on disk before each is held at [`SPOOL_QUOTA_MIN`]; 0: no
    /// limit but those of each.
    pub spool_total_mib: u64,
    /// MiB of project trees kept between units.
    pub cache_mib: u64,
    /// Cores that the controller reckons with, instead of those its control group allows: for work that hardly computes.
    pub cores: Option<u16>,
    /// MiB of memory that the controller reckons with, instead of what its control group allows: for work that needs little.
    pub memory_mib: Option<u32>,
    /// Of runtime podman.
    pub podman: ContainerSection,
    /// Of runtime docker.
    pub docker: ContainerSection,
    /// Of the images that containers start from.
    pub images: ImagesSection,
    /// Of runtime process.
    pub process: ProcessSection,
    /// Containers that wait for units, by image; none if left out.
    pub warm: Vec<WarmSection>,
}

/// Containers that wait for units, their worker already started.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmSection {
    /// The image, as units name it. It is never pulled for this.
    pub image: String,
    /// The organization whose units may take one, as the controller numbers it; empty: units of none.
    #[serde(default)]
    pub organization: String,
    /// How many wait.
    pub count: u16,
}

/// A runtime's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeName {
    /// The first that works of these, in their order.
    Auto,
    /// `podman run`.
    Podman,
    /// `docker run`.
    Docker,
    /// A command on this host.
    Process,
}

/// Runtimes podman and docker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerSection {
    /// The client, perhaps behind `sudo -n`; empty: the engine's own name.
    pub command: Vec<String>,
    /// Passed as `--network` when set.
    pub network: Option<String>,
    /// Who the worker is in the container: a name, a number, `number:number`, or `image` for the image's own user.
    pub user: String,
    /// MiB of memory of one unit; 0: no limit.
    pub memory_mib: u64,
    /// Thousandths of a core of one unit; 0: no limit.
    pub cpu_millis: u32,
    /// Processes of one unit; 0: the engine's own limit.
    pub pids: u32,
    /// The image is read-only; `/tmp`, `/var/tmp`, `/run` and `/root` are on tmpfs.
    pub read_only: bool,
    /// Programs of the image cannot gain rights.
    pub no_new_privileges: bool,
    /// More mounts of every unit, as `host:container[:options]`. Jobs cannot ask for any.
    pub mounts: Vec<String>,
}

/// The images that containers start from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesSection {
    /// Longest pull, in seconds.
    pub pull_timeout_s: u64,
    /// Hours between two looks at nameless images and the quota; 0: never. What a cluster gives up goes when it says so.
    pub tidy_hours: u64,
    /// Remove images without a name that no container uses.
    pub prune_dangling: bool,
    /// MiB of images that this node pulled for units; those used least recently go beyond it. 0: no limit.
    pub quota_mib: u64,
}

/// Runtime process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSection {
    /// The worker; `{dir}` stands for the private data directory.
    pub command: Vec<String>,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,plexus_mesh=debug`.
    pub level: String,
    /// Text or JSON lines.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/plexus/node".into(),
            runtime_dir: "/run/plexus/node".into(),
            socket: "/run/plexus/node.sock".into(),
            identity_dir: "/etc/plexus/node".into(),
            mesh: MeshSection::default(),
            work: WorkSection::default(),
            forward: Policy::default(),
            policy: plexus_mesh::Policy::default(),
            log: LogSection::default(),
        }
    }
}

impl Default for WorkSection {
    fn default() -> Self {
        Self {
            runtime: RuntimeName::Auto,
            allow_swap: false,
            // A day of a busy job (100 events/s of 1 kB) would be 8 GiB; half a day without its controller is enough.
            spool_quota_mib: 4096,
            // Eight such jobs: a node whose controller is away for a day must not fill the disk of everything else on it.
            spool_total_mib: 32 * 1024,
            cache_mib: 10 * 1024,
            cores: None,
            memory_mib: None,
            podman: ContainerSection::default(),
            docker: ContainerSection::default(),
            images: ImagesSection::default(),
            process: ProcessSection::default(),
            warm: Vec::new(),
        }
    }
}

impl Default for ContainerSection {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            network: None,
            // As AWX runs execution environments, whatever user their images name.
            user: Self::ROOT.to_owned(),
            memory_mib: 0,
            cpu_millis: 0,
            pids: 0,
            read_only: false,
            no_new_privileges: true,
            mounts: Vec::new(),
        }
    }
}

impl ContainerSection {
    /// The worker is the image's own user.
    pub const OF_IMAGE: &str = "image";
    const ROOT: &str = "root";

    /// True when the worker is root in its container.
    pub fn is_root(&self) -> bool {
        matches!(self.user.split(':').next(), Some(Self::ROOT | "0"))
    }

    /// User and group that must own what the worker writes to, where they are given by number and not root.
    pub fn owner(&self) -> Option<(u32, u32)> {
        let (user, group) = self.user.split_once(':').unwrap_or((&self.user, "0"));
        let (user, group) = (user.parse().ok()?, group.parse().ok()?);
        (user != 0).then_some((user, group))
    }
}

impl Default for ImagesSection {
    fn default() -> Self {
        // AWX looks every three hours. Half an hour is a large image over a slow line.
        Self { pull_timeout_s: 1800, tidy_hours: 3, prune_dangling: true, quota_mib: 0 }
    }
}

impl Default for ProcessSection {
    fn default() -> Self {
        let command = ["/usr/bin/ansible-runner", "worker", "--private-data-dir={dir}"];
        Self { command: command.map(str::to_owned).to_vec() }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Process => "process",
        })
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`Error`]; the text names the file and, where there is one, line and key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads and checks `text`, which stands in `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            Error::Parse { path: path.to_owned(), line, problem: error.message().trim().to_owned() }
        })?;
        config.check().map_err(|problem| Error::Value { path: path.to_owned(), problem })?;
        Ok(config)
    }

    /// Keys whose values differ in `other` and that only a start can change.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let (work, wanted) = (&self.work, &other.work);
        let changed = [
            ("data_dir", self.data_dir != other.data_dir),
            ("runtime_dir", self.runtime_dir != other.runtime_dir),
            ("socket", self.socket != other.socket),
            ("identity_dir", self.identity_dir != other.identity_dir),
            ("mesh.kinds", self.mesh.kinds != other.mesh.kinds),
            ("mesh.mtu", self.mesh.mtu != other.mesh.mtu),
            ("work.runtime", work.runtime != wanted.runtime),
            ("work.allow_swap", work.allow_swap != wanted.allow_swap),
            ("work.spool_quota_mib", work.spool_quota_mib != wanted.spool_quota_mib),
            ("work.spool_total_mib", work.spool_total_mib != wanted.spool_total_mib),
            ("work.cache_mib", work.cache_mib != wanted.cache_mib),
            ("work.cores", work.cores != wanted.cores),
            ("work.memory_mib", work.memory_mib != wanted.memory_mib),
            ("work.podman", work.podman != wanted.podman),
            ("work.docker", work.docker != wanted.docker),
            ("work.images", work.images != wanted.images),
            ("work.process", work.process != wanted.process),
            ("work.warm", work.warm != wanted.warm),
            ("forward", self.forward != other.forward),
            ("log", self.log != other.log),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    fn check(&self) -> Result<(), String> {
        let dirs = [
            ("data_dir", &self.data_dir),
            ("runtime_dir", &self.runtime_dir),
            ("socket", &self.socket),
            ("identity_dir", &self.identity_dir),
        ];
        for (key, path) in dirs {
            if !path.is_absolute() {
                return Err(format!("{key} must be an absolute path, not {:?}", path.display().to_string()));
            }
            // Container engines take them as the separators of a mount.
            if path.to_str().is_none_or(|text| text.contains([':', ',', '\n'])) {
                return Err(format!("{key} must be text without ':', ',' and line feeds"));
            }
        }
        if self.mesh.listen.is_empty() && self.mesh.peers.is_empty() {
            return Err("mesh.listen and mesh.peers are both empty: this node could reach nobody".to_owned());
        }
        self.mesh.check().map_err(|(key, problem)| format!("{key}: {problem}"))?;
        self.forward.check().map_err(|error| error.to_string())?;
        for (key, section) in [("work.podman", &self.work.podman), ("work.docker", &self.work.docker)] {
            check_container(key, section)?;
        }
        if self.work.docker.user == ContainerSection::OF_IMAGE {
            return Err("work.docker.user cannot be \"image\": docker gives mounts to nobody; name a number"
                .to_owned());
        }
        if self.work.process.command.first().is_none_or(String::is_empty) {
            return Err("work.process.command must name a program".to_owned());
        }
        self.check_warm()?;
        if self.work.images.pull_timeout_s == 0 {
            return Err("work.images.pull_timeout_s must be above 0".to_owned());
        }
        if self.work.spool_quota_mib << 20 < SPOOL_QUOTA_MIN {
            return Err(format!(
                "work.spool_quota_mib must be at least {}: acknowledged output is deleted in pieces of half of that",
                SPOOL_QUOTA_MIN >> 20
            ));
        }
        Ok(())
    }

    fn check_warm(&self) -> Result<(), String> {
        if self.work.warm.is_empty() {
            return Ok(());
        }
        if self.work.runtime == RuntimeName::Process {
            return Err("work.warm needs containers, and work.runtime is \"process\"".to_owned());
        }
        if self.work.podman.user == ContainerSection::OF_IMAGE {
            return Err("work.warm needs to know who owns a unit's files before it comes: work.podman.user cannot be \
                        \"image\""
                .to_owned());
        }
        let mut seen = std::collections::BTreeSet::new();
        for warm in &self.work.warm {
            if warm.image.is_empty() || warm.image.starts_with('-') {
                return Err(format!("work.warm: {:?} is no image", warm.image));
            }
            if warm.count == 0 || warm.count > WARM_MAX {
                return Err(format!("work.warm: count of {} must be from 1 to {WARM_MAX}", warm.image));
            }
            if !seen.insert((&warm.image, &warm.organization)) {
                return Err(format!("work.warm: {} comes twice for one organization", warm.image));
            }
        }
        Ok(())
    }
}

fn check_container(key: &str, section: &ContainerSection) -> Result<(), String> {
    if section.command.first().is_some_and(String::is_empty) {
        return Err(format!("{key}.command must name a program"));
    }
    if section.user.is_empty() || section.user.starts_with('-') {
        return Err(format!("{key}.user must be a name, a number, number:number or \"image\""));
    }
    for mount in &section.mounts {
        let parts: Vec<&str> = mount.split(':').collect();
        let places = parts.len() == 2 || parts.len() == 3;
        if !places || !parts[..2].iter().all(|place| place.starts_with('/')) {
            return Err(format!(
                "{key}.mounts: {mount:?} must be /host:/container or /host:/container:options"
            ));
        }
        if Path::new(parts[1]).starts_with("/runner") {
            return Err(format!("{key}.mounts: {mount:?} would hide what the unit brings to /runner"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/plexus/node.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_example_parses() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config");
        for name in ["node.example.toml", "hop.example.toml"] {
            let config = Config::load(&dir.join(name)).unwrap();
            assert!(!config.mesh.listen.is_empty() || !config.mesh.peers.is_empty(), "{name}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let check = |text: &str, line: usize, key: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(&format!("/etc/plexus/node.toml, line {line}: ")), "{error}");
            assert!(error.contains(&format!("unknown field `{key}`")), "{error}");
        };
        check("datadir = \"/x\"\n", 1, "datadir");
        check("# comment\n\n[mesh]\nlisten = [\"[::]:7323\"]\nlissen = []\n", 5, "lissen");
        check("[mesh]\n[[mesh.peers]]\naddress = \"a:1\"\ncots = 10\n", 4, "cots");
        check("[work.podman]\nnet = \"host\"\n", 2, "net");
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let check = |text: &str, word: &str| {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{word:?} in {error:?}");
        };
        check("", "could reach nobody");
        check("data_dir = \"var\"\n", "data_dir must be an absolute path");
        check("data_dir = \"/var/a:b\"\n", "without ':'");
        check("[[mesh.peers]]\naddress = \"hop\"\n", "must be host:port");
        check("[[mesh.peers]]\naddress = \"hop:0\"\n", "must be host:port");
        check("[[mesh.peers]]\naddress = \"hop:1\"\nname = \"Hop\"\n", "line 3");
        check("[mesh]\nlisten = [\"nowhere\"]\n", "line 2");
        check("[mesh]\nlisten = [\"[::]:1\"]\n[work.process]\ncommand = []\n", "work.process.command");
        check("[mesh]\nlisten = [\"[::]:1\"]\n[work]\nruntime = \"lxc\"\n", "unknown variant `lxc`");
        let work = |text: &str| format!("[mesh]\nlisten = [\"[::]:1\"]\n{text}\n");
        check(&work("[work.podman]\nmounts = [\"data:/data\"]"), "must be /host:/container");
        check(&work("[work.docker]\nmounts = [\"/x:/runner/project\"]"), "would hide");
        check(&work("[work.docker]\nuser = \"image\""), "docker gives mounts to nobody");
        check(&work("[work.images]\npull_timeout_s = 0"), "pull_timeout_s must be above 0");
        check(&work("[work]\nspool_quota_mib = 15"), "spool_quota_mib must be at least 16");
        let warm = |lines: &str| work(&format!("{lines}\n[[work.warm]]\nimage = \"ee\"\ncount = 1"));
        check(&warm("[work]\nruntime = \"process\""), "work.warm needs containers");
        check(&warm("[work.podman]\nuser = \"image\""), "work.podman.user cannot be");
        check(&warm("[[work.warm]]\nimage = \"ee\"\ncount = 2"), "comes twice");
        check(&warm("[[work.warm]]\nimage = \"other\"\ncount = 0"), "count of other must be");
        let forward = "[mesh]\nlisten = [\"[::]:1\"]\n[forward]\n";
        check(&format!("{forward}allow = [{{ from = \"A\", to = [] }}]\n"), "forward.allow: from \"A\"");
        check(&format!("{forward}allow = [{{ from = \"a\", to = [\"h\"] }}]\n"), "must be host:port");
        check("x = [", "line 1");
    }
}

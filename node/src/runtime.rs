//! Where workers run: behind one trait, the container engine and the plain process.
//!
//! A runtime turns a unit into a command line for its shim, says what an exit code means, and ends what a dead
//! shim left behind. It never runs a worker itself: that is the shim's work.

pub mod choice;
pub mod container;
pub mod engine;
pub mod images;
pub mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use plexus_proto::id::{Attempt, NodeId, StoreId};
use plexus_proto::work::{PullPolicy, UnitSpec};

pub use container::Container;
pub use engine::Engine;
pub use images::Images;
pub use process::Process;

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `podman run`.
    Podman,
    /// `docker run`.
    Docker,
    /// A command on this host.
    Process,
}

impl Kind {
    /// The word used in configuration, messages and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Process => "process",
        }
    }

    /// True for the runtimes that need an image.
    pub fn is_container(self) -> bool {
        match self {
            Self::Podman | Self::Docker => true,
            Self::Process => false,
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "podman" => Some(Self::Podman),
            "docker" => Some(Self::Docker),
            "process" => Some(Self::Process),
            _ => None,
        }
    }
}

/// A unit and its places, as a runtime needs them.
#[derive(Debug)]
pub struct Job<'a> {
    /// Which attempt.
    pub attempt: Attempt,
    /// What the controller asked for.
    pub spec: &'a UnitSpec,
    /// The private data directory, on tmpfs.
    pub private: &'a Path,
    /// The working copy of the project tree, when there is one.
    pub project: Option<&'a Path>,
    /// The unit's directory on tmpfs, beside and around `private`.
    pub runtime_dir: &'a Path,
    /// The secret environment of the worker.
    pub secret_env: &'a BTreeMap<String, String>,
    /// The waiting container that the unit took, if it took one.
    pub slot: Option<&'a str>,
}

/// A container that waits for a unit, and its places.
#[derive(Debug)]
pub struct Slot<'a> {
    /// Its name, which no other ever has.
    pub name: &'a str,
    /// Id of its image.
    pub image: &'a str,
    /// Its directory on tmpfs, which becomes the unit's.
    pub runtime_dir: &'a Path,
    /// In there: the private data directory.
    pub private: &'a Path,
    /// Where the project will be shown.
    pub project: &'a Path,
    /// It will be mounted there.
    pub mounts: bool,
}

/// Whose a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An attempt's.
    Unit(Attempt),
    /// That of whoever took the waiting container of this name, or of the pool.
    Slot(String),
}

/// In a unit's directory on tmpfs: the name of the waiting container that it took.
pub const SLOT_NOTE: &str = "slot";

/// What a shim is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Where it runs.
    pub cwd: PathBuf,
    /// Ends what is not below the shim; empty when there is no such thing.
    pub end_argv: Vec<String>,
}

/// A runtime cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that no environment variable can have.
    #[error("environment variable {0:?} has a name that no shell accepts")]
    EnvName(String),
    /// A unit without what this runtime needs.
    #[error("the unit names no image, and this node runs units in containers")]
    NoImage,
    /// Containers that wait are asked of a runtime without containers.
    #[error("this node runs units without containers, so none can wait for them")]
    NoContainers,
    /// A path that is not text.
    #[error("path {0:?} is not valid UTF-8")]
    Path(PathBuf),
    /// The file system refused.
    #[error("cannot write {}", path.display())]
    Disk {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A helper command could not be run, or failed.
    #[error("{command} failed: {reason}")]
    Helper {
        /// The command, for people.
        command: String,
        /// What it said.
        reason: String,
    },
}

/// A way to run workers. All methods block; callers on async threads move them aside.
pub trait Runtime: Send + Sync {
    /// Which one.
    fn kind(&self) -> Kind;

    /// The command line of a unit. Lays out what it needs beside the private directory.
    ///
    /// # Errors
    /// The unit cannot run here.
    fn command(&self, job: &Job<'_>) -> Result<Command, Error>;

    /// The command line of a worker that waits for a unit.
    ///
    /// # Errors
    /// This runtime has none.
    fn warm(&self, slot: &Slot<'_>) -> Result<Command, Error>;

    /// Gives what an agent wrote to the user who runs workers, where that is another one. Nobody else may write there yet.
    ///
    /// # Errors
    /// The file system refuses.
    fn give(&self, dirs: &[Option<&Path>]) -> Result<(), Error>;

    /// Ends everything of an attempt whose shim is dead. Fine when there is nothing.
    ///
    /// # Errors
    /// Something is still alive.
    fn end(&self, attempt: Attempt, runtime_dir: &Path) -> Result<(), Error>;

    /// Ends everything of this node's store whose holder `is_stale`; returns how much it was. The question is
    /// put after the engine was asked, so that a unit that starts meanwhile is safe.
    ///
    /// # Errors
    /// The engine does not answer, or something is still alive.
    fn reap(&self, is_stale: &dyn Fn(&Holder) -> bool) -> Result<usize, Error>;

    /// Removes a directory that workers, perhaps under another user, wrote into.
    ///
    /// # Errors
    /// Something is left.
    fn remove_tree(&self, dir: &Path) -> Result<(), Error>;

    /// The version of the engine; empty when it cannot be told.
    fn version(&self) -> String;
}

/// Whose containers and processes these are.
#[derive(Debug, Clone)]
pub struct Place {
    /// This node.
    pub node: NodeId,
    /// This node's store: two nodes may share a container engine.
    pub store: StoreId,
}

/// What a worker's exit code means where the code alone says too little; pure, used by the shim.
pub fn explain(kind: Kind, code: i32, stderr: &str, image: &str, pull: PullPolicy) -> Option<String> {
    let known = match kind {
        Kind::Podman | Kind::Docker => engine::explain(code, stderr, image, pull),
        Kind::Process => process::explain(code, stderr),
    };
    known.or_else(|| {
        let full = stderr.lines().rev().find(|line| line.contains("No space left on device"))?;
        Some(format!("a disk of the worker was full: {}", full.trim()))
    })
}

/// The last line that says something.
fn last_line(text: &str) -> Option<&str> {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty())
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::Path(path.to_owned()))
}

/// The least a worker needs to find programs and speak UTF-8.
fn base_env() -> BTreeMap<String, String> {
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    [("PATH", path), ("LANG", "C.UTF-8")].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn is_env_name(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

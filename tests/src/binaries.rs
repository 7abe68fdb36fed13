//! Where the built programs lie.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// The directory with the three programs under test.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The build that the running program belongs to: `$PLEXUS_BIN_DIR` if set, else the profile directory above it.
    ///
    /// # Errors
    /// When a program is missing, with the command that builds it.
    pub fn of_this_build() -> anyhow::Result<Self> {
        if let Some(dir) = env::var_os("PLEXUS_BIN_DIR") {
            return Self::in_dir(Path::new(&dir));
        }
        let own = env::current_exe().context("cannot tell where this program lies")?;
        let mut dir = own.parent().context("this program has no directory")?;
        if dir.ends_with("deps") || dir.ends_with("examples") {
            dir = dir.parent().context("target directory has no parent")?;
        }
        Self::in_dir(dir)
    }

    /// The programs in a directory.
    ///
    /// # Errors
    /// When one is missing.
    pub fn in_dir(dir: &Path) -> anyhow::Result<Self> {
        for name in ["plexus", "plexus-node", "plexus-controller"] {
            let path = dir.join(name);
            if !path.is_file() {
                bail!("{} is missing; build it with `cargo build --workspace --all-targets`", path.display());
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Directory of the programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `plexus`, what people type.
    pub fn cli(&self) -> PathBuf {
        self.dir.join("plexus")
    }

    /// `plexus-node`: hop or execution node.
    pub fn node(&self) -> PathBuf {
        self.dir.join("plexus-node")
    }

    /// `plexus-controller`.
    pub fn controller(&self) -> PathBuf {
        self.dir.join("plexus-controller")
    }

    /// `xtask`: demo and benches; also the probe that benches start as a work unit.
    pub fn xtask(&self) -> PathBuf {
        self.dir.join("xtask")
    }
}

//! Images of a test's own: small, with a worker that does what the test wants.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::layout::podman_command;

/// What the set-up builds to start from: a shell and little more.
pub const TINY: &str = "localhost/plexus-tiny:2";

/// An image that is removed when it is dropped.
#[derive(Debug)]
pub struct WorkerImage {
    name: String,
}

impl WorkerImage {
    /// An image in which `ansible-runner` is this shell script, with `files` by their paths in it; `label` and the process name
    /// it, so that tests do not meet.
    ///
    /// # Errors
    /// When podman fails; its message is in the error.
    pub fn make(label: &str, script: &str, files: &[(&Path, &str)]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a folder")?;
        let worker = dir.path().join("ansible-runner");
        fs::write(&worker, format!("#!/bin/sh\n{script}\n")).context("cannot write the worker")?;
        fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).context("cannot write the worker")?;
        let files = files.iter().copied().chain([(worker.as_path(), "/bin/ansible-runner")]);
        Self::commit(label, files, &[])
    }

    /// An image in which no command is found by its name.
    ///
    /// # Errors
    /// When podman fails.
    pub fn without_commands(label: &str) -> anyhow::Result<Self> {
        Self::commit(label, [], &["--change", "ENV PATH=/nowhere"])
    }

    fn commit<'a>(
        label: &str,
        files: impl IntoIterator<Item = (&'a Path, &'a str)>,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let image = Self { name: format!("localhost/plexus-{label}-{}:test", std::process::id()) };
        let container = podman(&["create", TINY, "true"])?;
        let copied = files.into_iter().try_for_each(|(from, to)| {
            podman(&["cp", &from.display().to_string(), &format!("{container}:{to}")]).map(drop)
        });
        let commit = [&["commit", "--quiet"], options, &[&container, &image.name]].concat();
        let made = copied.and_then(|()| podman(&commit));
        podman(&["rm", &container])?;
        made.map(|_| image)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for WorkerImage {
    fn drop(&mut self) {
        podman(&["image", "rm", "--force", &self.name]).ok();
    }
}

/// Runs podman and gives what it prints, without the white space at its ends.
fn podman(args: &[&str]) -> anyhow::Result<String> {
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let output = Command::new(program).args(first).args(args).output().context("cannot run podman")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "podman {} failed: {}", args.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

//! A git repository behind HTTP on loopback: git's own server program, real commits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::{ReservedPort, Seen, wait_for};

/// How long the server may take to listen on a machine that is busy.
const START: Duration = Duration::from_secs(60);

/// A repository behind HTTP, and the working copy that commits go in by.
#[derive(Debug)]
pub struct Repository {
    dir: tempfile::TempDir,
    port: ReservedPort,
    server: Child,
}

impl Repository {
    /// Starts the server with an empty repository, `site.git`; with a login, nobody else gets anything.
    ///
    /// # Errors
    /// When git or the server cannot be started.
    pub async fn start(login: Option<(&str, &str)>) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no folder")?;
        let port = ReservedPort::new()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/git_http.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(dir.path()).arg(port.port().to_string());
        if let Some((user, password)) = login {
            command.args([user, password]);
        }
        let server = command.stderr(Stdio::null()).spawn().context("cannot start the server")?;
        let repository = Self { dir, port, server };
        repository.git(&["init", "--quiet", "--bare", "--initial-branch=main", "../site.git"])?;
        repository.git(&["init", "--quiet", "--initial-branch=main"])?;
        repository.git(&["remote", "add", "origin", "../site.git"])?;
        let address = format!("127.0.0.1:{}", repository.port.port());
        wait_for("the git server to listen", START, async || {
            Seen::when(std::net::TcpStream::connect(&address).is_ok(), || "nobody listens".to_owned())
        })
        .await?;
        Ok(repository)
    }

    /// Address of `site.git`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/site.git", self.port.port())
    }

    /// Folder of it all: `site.git`, and the working copy in `work`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The working copy.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// Runs git in the working copy and gives what it prints.
    ///
    /// # Errors
    /// What git says.
    pub fn git(&self, args: &[&str]) -> anyhow::Result<String> {
        fs::create_dir_all(self.work()).context("no folder")?;
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always"])
            .args(args)
            .current_dir(self.work())
            .output()
            .context("no git")?;
        ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Commits a playbook that prints `says`, with whatever else lies there; its revision.
    ///
    /// # Errors
    /// What git says.
    pub fn commit(&self, branch: &str, says: &str) -> anyhow::Result<String> {
        self.git(&["checkout", "--quiet", "-B", branch])?;
        let playbook = format!(
            "- hosts: all\n  gather_facts: false\n  tasks:\n    - debug:\n        msg: says-{says}\n"
        );
        fs::write(self.work().join("site.yml"), playbook).context("cannot write")?;
        fs::create_dir_all(self.work().join("inventories")).context("cannot make")?;
        fs::write(self.work().join("inventories/all.ini"), "[web]\none\n").context("cannot write")?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", says])?;
        self.git(&["push", "--quiet", "--force", "origin", branch])?;
        self.git(&["rev-parse", "HEAD"])
    }

    /// Another repository beside this one, with these files and nothing else; its address.
    ///
    /// # Errors
    /// What git says.
    pub fn beside(&self, name: &str, files: &[(&str, &str)]) -> anyhow::Result<String> {
        let bare = format!("../{name}.git");
        self.git(&["init", "--quiet", "--bare", "--initial-branch=main", &bare])?;
        self.git(&["checkout", "--quiet", "--orphan", name])?;
        self.git(&["rm", "-r", "--quiet", "--force", "--ignore-unmatch", "."])?;
        self.put(files)?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--message", name])?;
        self.git(&["push", "--quiet", &bare, &format!("{name}:main")])?;
        Ok(self.url().replace("site.git", &format!("{name}.git")))
    }

    /// Writes files into the working copy.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn put(&self, files: &[(&str, &str)]) -> anyhow::Result<()> {
        for (path, content) in files {
            let path = self.work().join(path);
            fs::create_dir_all(path.parent().context("no folder")?).context("cannot make")?;
            fs::write(path, content).context("cannot write")?;
        }
        Ok(())
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

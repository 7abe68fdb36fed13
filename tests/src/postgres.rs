//! A throw-away PostgreSQL server for tests: its own directory in memory, a Unix socket and no port, gone when the process
//! that started it is gone, however that ended.
//!
//! Stands alone (the controller's own tests include this file too): nothing but the standard library.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a server may take to answer on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the server and waits on standard input; at its end, stops the server and removes the directory. `restart` on a
/// line stops it as a power cut would and starts it again.
const KEEPER: &str = r#"
dir=$1; bin=$2; locale=$3; shift 3
trap '' INT TERM HUP
as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
start() { as "$bin/pg_ctl" -D "$dir/data" -l "$dir/log" -w -t 60 -o "-k $dir -c listen_addresses='' $options" start >/dev/null 2>&1; }
options="$*"
cd /
as "$bin/initdb" -D "$dir/data" -U plexus -A trust -E UTF8 --locale=C $locale --no-sync >"$dir/initdb" 2>&1 && start \
    && echo ready || { cat "$dir/initdb" "$dir/log" 2>/dev/null; echo failed; }
while read -r word; do
    as "$bin/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null 2>&1
    case $word in restart) start && echo ready || echo failed ;; *) echo stopped ;; esac
done
as "$bin/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null 2>&1
rm -rf "$dir"
"#;

/// A running server. Dropped, or when this process dies, it stops and its files go.
#[derive(Debug)]
pub struct Postgres {
    dir: PathBuf,
    keeper: Child,
    stdin: Option<ChildStdin>,
    answers: BufReader<std::process::ChildStdout>,
    databases: AtomicU32,
    bin: PathBuf,
}

impl Postgres {
    /// Starts a server that does not sync: for tests whose subject is not a power cut. It sorts as people do, not by bytes: what it is
    /// asked must not depend on that.
    ///
    /// # Panics
    /// Where PostgreSQL is not installed (`deploy/setup/setup.sh postgres` does that) or does not start.
    pub fn start() -> Self {
        Self::launch(
            Path::new("/dev/shm"),
            "--locale-provider=icu --icu-locale=en-US",
            "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=300",
        )
    }

    /// Starts a server below `parent`, which user `postgres` must be able to reach, with these options.
    pub fn start_in(parent: &Path, options: &str) -> Self {
        Self::launch(parent, "", options)
    }

    fn launch(parent: &Path, locale: &str, options: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: a socket's path has at most 107 bytes.
        let dir = parent.join(format!("plexus-pg-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).expect("a directory for the server");
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
        if is_root {
            let chown = Command::new("chown").arg("postgres:").arg(&dir).status();
            assert!(
                chown.is_ok_and(|status| status.success()),
                "user postgres is missing: run deploy/setup/setup.sh postgres"
            );
        }
        let bin = programs().expect("PostgreSQL is not installed: run deploy/setup/setup.sh postgres");
        let mut keeper = Command::new("bash")
            .args(["-c", KEEPER, "keeper"])
            .args([&dir, &bin])
            .args([locale, options])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let stdin = keeper.stdin.take();
        let answers = BufReader::new(keeper.stdout.take().expect("piped"));
        let mut server = Self { dir, keeper, stdin, answers, databases: AtomicU32::new(0), bin };
        server.wait_for("ready");
        server
    }

    /// Makes an empty database and gives its address.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        let host = self.dir.display().to_string().replace('/', "%2F");
        format!("postgres://plexus@{host}/{database}")
    }

    /// Runs SQL as the owner of everything and gives what it prints.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let began = Instant::now();
        loop {
            let output = Command::new(self.bin.join("psql"))
                .args([
                    "-X",
                    "-q",
                    "-At",
                    "-v",
                    "ON_ERROR_STOP=1",
                    "-U",
                    "plexus",
                    "-d",
                    database,
                    "-c",
                    sql,
                    "-h",
                ])
                .arg(&self.dir)
                .output()
                .expect("psql runs");
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).trim().to_owned();
            }
            let error = String::from_utf8_lossy(&output.stderr);
            // `CREATE DATABASE` copies the template, and waits for nobody who looks at it.
            assert!(
                error.contains("being accessed by other users") && began.elapsed() < PATIENCE,
                "{sql}: {error}"
            );
        }
    }

    /// Stops it as a power cut would (`immediate`) and starts it again.
    pub fn restart(&mut self) {
        self.say("restart");
        self.wait_for("ready");
    }

    /// Stops it as a power cut would. [`Postgres::restart`] starts it again.
    pub fn stop(&mut self) {
        self.say("stop");
        self.wait_for("stopped");
    }

    /// The directory of its socket.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn say(&mut self, word: &str) {
        let stdin = self.stdin.as_mut().expect("open until it is dropped");
        writeln!(stdin, "{word}").expect("the keeper listens");
    }

    fn wait_for(&mut self, word: &str) {
        let mut told = String::new();
        loop {
            let mut line = String::new();
            let read = self.answers.read_line(&mut line).expect("the keeper answers");
            if line.trim() == word {
                return;
            }
            told.push_str(&line);
            assert!(read > 0 && line.trim() != "failed", "PostgreSQL does not start: {told}");
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.keeper.wait();
    }
}

/// Where the newest installed server's programs are.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = versions
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/initdb").exists().then_some((version, path.join("bin")))
        })
        .max();
    newest.map(|(_, bin)| bin).or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|dir| dir.join("initdb").exists())
    })
}

//! A mesh of real processes: hops are `plexus-node`, ends are `mesh-peer`, and between them are wires.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use plexus_mesh::ca::CertificateAuthority;
use plexus_proto::id::Role;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::binaries::Binaries;
use crate::daemon::Daemon;
use crate::layout::runtime_root;
use crate::ports::ReservedPort;
use crate::wire::Namespace;

/// Longest wait for anything that does not say otherwise: far more than it takes, on a machine busy with builds.
const DEADLINE: Duration = Duration::from_secs(90);

/// An authority, and folders for the nodes it certifies; removed when dropped, unless [`Net::keep`] is called. Errors show the
/// end of the log of the process they are about.
#[derive(Debug)]
pub struct Net {
    folder: TempDir,
    runtime: TempDir,
    authority: CertificateAuthority,
    binaries: Binaries,
}

/// A hop: `plexus-node` on a port of its own, also while it is down.
#[derive(Debug)]
pub struct Hop {
    /// The process.
    pub daemon: Daemon,
    address: SocketAddr,
    _port: ReservedPort,
}

impl Hop {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it ends instead.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let skip = self.daemon.log_size();
        self.daemon.start()?;
        self.daemon.logged("mesh started", skip, DEADLINE).await.map(drop)
    }
}

/// How to start a [`Peer`].
#[derive(Debug, Default)]
pub struct PeerOptions<'a> {
    /// Addresses to listen on.
    pub listen: &'a [SocketAddr],
    /// Neighbours to dial.
    pub peers: &'a [SocketAddr],
    /// Kinds of link, as in a configuration; empty: all.
    pub kinds: &'a [&'a str],
    /// Host to run on; none: this one.
    pub host: Option<&'a Namespace>,
    /// Names of further nodes in the same process.
    pub crowd: &'a [String],
}

/// A `mesh-peer` under our command. Dropping it kills it.
#[derive(Debug)]
pub struct Peer {
    name: String,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    listen: Vec<SocketAddr>,
}

impl Net {
    /// A mesh without nodes.
    ///
    /// # Errors
    /// When a program is missing or a folder cannot be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        plexus_mesh::install_crypto_provider();
        let binaries = Binaries::of_this_build()?;
        let prefix = format!("plexus-{name}-");
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().context("cannot make a folder")?;
        let runtime = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(runtime_root())
            .context("cannot make a folder on tmpfs")?;
        let mesh = "proof".parse().context("bad name of a mesh")?;
        let cluster = "main".parse().context("bad name of a cluster")?;
        let authority = CertificateAuthority::init(&folder.path().join("ca"), &mesh, &cluster)
            .context("cannot make an authority")?;
        Ok(Self { folder, runtime, authority, binaries })
    }

    /// Folder of one node.
    pub fn of(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The programs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Certifies a node, once.
    ///
    /// # Errors
    /// When the name is none, or its folder cannot be written.
    pub fn certify(&self, role: Role, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.of(name);
        if !folder.exists() {
            let node = name.parse().with_context(|| format!("bad name {name}"))?;
            self.authority
                .issue(role, &node, &folder, Duration::from_secs(24 * 3600))
                .with_context(|| format!("cannot certify {name}"))?;
        }
        Ok(folder)
    }

    /// Describes a hop that dials `peers`; nothing runs yet.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn hop(&self, name: &str, peers: &[SocketAddr]) -> anyhow::Result<Hop> {
        let port = ReservedPort::new()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port.port()));
        let config = self.configure(name, Role::Hop, Some(address), peers, "")?;
        let log = self.of(name).join("log");
        let args: Vec<OsString> = vec!["run".into(), "--config".into(), config.into()];
        Ok(Hop { daemon: Daemon::new(name, self.binaries.node(), args, log), address, _port: port })
    }

    /// Writes the configuration of a `plexus-node`, with `more` lines at the end of its section `[mesh]`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(
        &self,
        name: &str,
        role: Role,
        listen: Option<SocketAddr>,
        peers: &[SocketAddr],
        more: &str,
    ) -> anyhow::Result<PathBuf> {
        let identity = self.certify(role, name)?;
        let runtime = self.runtime.path().join(name);
        fs::create_dir_all(&runtime).context("cannot make a folder on tmpfs")?;
        let listen: Vec<String> = listen.iter().map(|address| format!("\"{address}\"")).collect();
        let peers: String =
            peers.iter().map(|address| format!("\n[[mesh.peers]]\naddress = \"{address}\"\n")).collect();
        let work = if role == Role::Execution {
            "\n[work]\nallow_swap = true\nruntime = \"process\"\n\n[work.process]\ncommand = [\"true\"]\n"
        } else {
            ""
        };
        let level = std::env::var("PLEXUS_TEST_LOG").unwrap_or_else(|_| "info".to_owned());
        let text = format!(
            "data_dir = {:?}\nruntime_dir = {runtime:?}\nsocket = {:?}\nidentity_dir = {identity:?}\n\n[mesh]\nlisten = [{}]\n{more}{peers}{work}\n[log]\nlevel = \"{level}\"\n",
            identity.join("data"),
            runtime.join("sock"),
            listen.join(", "),
        );
        let path = identity.join("config.toml");
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Starts an end, and waits until it listens.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn peer(&self, role: Role, name: &str, options: &PeerOptions<'_>) -> anyhow::Result<Peer> {
        let mut args: Vec<OsString> = Vec::new();
        for address in options.listen {
            args.extend(["--listen".into(), address.to_string().into()]);
        }
        for address in options.peers {
            args.extend(["--peer".into(), address.to_string().into()]);
        }
        if !options.kinds.is_empty() {
            args.extend(["--kinds".into(), options.kinds.join(",").into()]);
        }
        args.push(self.certify(role, name)?.into());
        for name in options.crowd {
            args.push(self.certify(role, name)?.into());
        }
        let program = self.binaries.dir().join("mesh-peer");
        let mut command = match options.host {
            Some(host) => {
                let (enter, words) = host.enter();
                let mut command = Command::new(enter);
                command.args(words).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        let log = fs::File::create(self.of(name).join("log")).context("cannot make a log")?;
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let input = child.stdin.take().context("no input")?;
        let output = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut peer = Peer { name: name.to_owned(), child, input, output, listen: Vec::new() };
        let hello = peer.read(DEADLINE).await?;
        peer.listen = serde_json::from_value(hello["listen"].clone()).context("no addresses")?;
        Ok(peer)
    }

    /// Leaves certificates, configurations and logs where they are, and says where.
    pub fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

impl Peer {
    /// Where it listens.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Tells it one thing and gives its answer.
    ///
    /// # Errors
    /// When it says that it failed, or does not answer in time.
    pub async fn tell(&mut self, command: &Value, deadline: Duration) -> anyhow::Result<Value> {
        let line = format!("{command}\n");
        self.input.write_all(line.as_bytes()).await.with_context(|| format!("{} is gone", self.name))?;
        let answer = self.read(deadline).await.with_context(|| format!("asked {command}"))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("{}: {command}: {error}", self.name),
            None => Ok(answer),
        }
    }

    /// Waits until `node` is (not) reachable.
    ///
    /// # Errors
    /// When it is not in time.
    pub async fn reach(&mut self, node: &str, reachable: bool) -> anyhow::Result<()> {
        let within = u64::try_from(DEADLINE.as_millis()).unwrap_or(u64::MAX);
        let command = json!({ "do": "reach", "node": node, "reachable": reachable, "within_ms": within });
        self.tell(&command, DEADLINE * 2).await.map(drop)
    }

    /// Begins flow `id`.
    ///
    /// # Errors
    /// When its stream cannot be opened.
    pub async fn flow(&mut self, id: u64, to: &str, flow: &Flow) -> anyhow::Result<()> {
        let Flow { class, pull, block, pause, blocks } = flow;
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        let command = json!({
            "do": "flow", "id": id, "to": to, "class": class, "pull": pull, "block": block, "pause_us": pause_us,
            "blocks": blocks,
        });
        self.tell(&command, DEADLINE).await.map(drop)
    }

    /// How far flow `id` is; `mark` begins to measure its silences anew.
    ///
    /// # Errors
    /// When there is no such flow.
    pub async fn progress(&mut self, id: u64, mark: bool) -> anyhow::Result<FlowState> {
        let answer = self.tell(&json!({ "do": "progress", "id": id, "mark": mark }), DEADLINE).await?;
        Ok(FlowState {
            bytes: answer["bytes"].as_u64().context("no bytes")?,
            gap_ms: answer["gap_ms"].as_f64().context("no gap")?,
            ended: answer["ended"].as_bool().context("no end")?,
        })
    }

    /// Waits until flow `id` has moved by `bytes` more.
    ///
    /// # Errors
    /// When it ends instead, or does not move for long.
    pub async fn moves(&mut self, id: u64, bytes: u64) -> anyhow::Result<FlowState> {
        let wanted = self.progress(id, false).await?.bytes + bytes;
        let began = std::time::Instant::now();
        loop {
            let state = self.progress(id, false).await?;
            if state.bytes >= wanted {
                return Ok(state);
            }
            if state.ended {
                // Its reason is the error of this call.
                self.tell(&json!({ "do": "wait", "id": id }), DEADLINE).await?;
                bail!("flow {id} ended at {} bytes, {wanted} were awaited", state.bytes);
            }
            if began.elapsed() > DEADLINE {
                bail!("flow {id} stays at {} bytes, {wanted} were awaited", state.bytes);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends flow `id` (`stop`), or waits for its end; gives the number of blocks, all of which arrived exactly.
    ///
    /// # Errors
    /// When they did not.
    pub async fn ends(&mut self, id: u64, stop: bool, deadline: Duration) -> anyhow::Result<u64> {
        let verb = if stop { "stop" } else { "wait" };
        let answer = self.tell(&json!({ "do": verb, "id": id }), deadline).await?;
        answer["blocks"].as_u64().context("no blocks")
    }

    /// Microseconds of `count` requests, each on a stream of its own.
    ///
    /// # Errors
    /// When one fails.
    pub async fn requests(&mut self, to: &str, count: u32, pause: Duration) -> anyhow::Result<Vec<f64>> {
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        let command =
            json!({ "do": "requests", "to": to, "class": "control", "count": count, "pause_us": pause_us });
        let answer = self.tell(&command, DEADLINE + pause * count).await?;
        serde_json::from_value(answer["us"].clone()).context("no times")
    }

    /// Names on the way to `node`, itself included.
    ///
    /// # Errors
    /// When the trace fails.
    pub async fn trace(&mut self, node: &str) -> anyhow::Result<Vec<String>> {
        let answer = self.tell(&json!({ "do": "trace", "to": node }), DEADLINE).await?;
        serde_json::from_value(answer["hops"].clone()).with_context(|| format!("a step is silent: {answer}"))
    }

    /// Neighbour that leads to `node`.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn next(&mut self, node: &str) -> anyhow::Result<Option<String>> {
        let answer = self.tell(&json!({ "do": "next", "to": node }), DEADLINE).await?;
        Ok(answer["next"].as_str().map(str::to_owned))
    }

    /// What `plexus status` would show.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn status(&mut self) -> anyhow::Result<Value> {
        self.tell(&json!({ "do": "status" }), DEADLINE).await
    }

    async fn read(&mut self, deadline: Duration) -> anyhow::Result<Value> {
        let line = tokio::time::timeout(deadline, self.output.next_line())
            .await
            .with_context(|| format!("{} said nothing for {deadline:?}", self.name))?
            .context("cannot read")?
            .with_context(|| format!("{} ended; see its log", self.name))?;
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))
    }
}

/// A flow to be.
#[derive(Debug, Clone)]
pub struct Flow {
    /// `bulk` or `control`.
    pub class: &'static str,
    /// The far end sends.
    pub pull: bool,
    /// Payload of a block, bytes.
    pub block: usize,
    /// Pause after each block.
    pub pause: Duration,
    /// Number of blocks; 0: until stopped.
    pub blocks: u64,
}

/// How far a flow is.
#[derive(Debug, Clone, Copy)]
pub struct FlowState {
    /// Bytes seen at the asked end.
    pub bytes: u64,
    /// Longest silence since the last mark.
    pub gap_ms: f64,
    /// Whether it has ended, well or not.
    pub ended: bool,
}

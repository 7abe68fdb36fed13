//! A mesh node for tests and benches: links like any other, and does with streams what it is told on standard input.
//!
//! ```text
//! mesh-peer [--listen ADDRESS]… [--peer ADDRESS]… [--kinds quic,sealed,tcp] IDENTITY…
//! ```
//!
//! Each `IDENTITY` is a folder with certificates, and a node of its own in this one process and thread; commands are for the
//! first. It prints one line of JSON with its addresses, then one for each line of JSON it reads, in order. See
//! [`Command`] for what it can be told. When its input ends, it ends.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use plexus_mesh::{Allow, Config, Credentials, LinkKind, Mesh, MeshReader, MeshStream, MeshWriter, Peer};
use plexus_proto::id::{NodeId, Role};
use plexus_proto::packet::Class;
use plexus_tests::flow::{self, Checker};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ECHO: &str = "proof-echo";
const FLOW: &str = "proof-flow";
const ANYONE: Allow = Allow { roles: &[Role::Controller, Role::Execution, Role::Hop], same_cluster: true };
/// Bytes of a request and of its reply.
const REQUEST: usize = 200;
const PIECE: usize = 64 * 1024;

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Command {
    /// Waits until a node is, or is not, reachable.
    Reach { node: String, reachable: bool, within_ms: u64 },
    /// Begins a flow of its own number; answered when its stream is there.
    Flow {
        id: u64,
        to: String,
        class: ClassName,
        #[serde(flatten)]
        order: Order,
    },
    /// How far a flow has come, and its longest silence since `mark` was last asked for.
    Progress { id: u64, mark: bool },
    /// Ends a flow at its next block, and waits until all of it has arrived.
    Stop { id: u64 },
    /// Waits until a flow has ended by itself and all of it has arrived.
    Wait { id: u64 },
    /// Requests and replies, each on a stream of its own: microseconds of each.
    Requests { to: String, class: ClassName, count: u32, pause_us: u64 },
    /// Names on the way to a node.
    Trace { to: String },
    /// Neighbour that leads to a node.
    Next { to: String },
    /// What `plexus status` would show.
    Status,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClassName {
    Control,
    Bulk,
}

impl From<ClassName> for Class {
    fn from(name: ClassName) -> Self {
        match name {
            ClassName::Control => Self::Control,
            ClassName::Bulk => Self::Bulk,
        }
    }
}

/// What flows, and which way. The first line on the stream.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Order {
    /// The far end sends; otherwise this one does.
    pull: bool,
    /// Payload of a block.
    block: usize,
    /// Pause after each block.
    pause_us: u64,
    /// Number of blocks; 0: until stopped.
    blocks: u64,
}

/// What is known of a flow while it runs.
#[derive(Debug)]
struct Progress {
    bytes: u64,
    last: Instant,
    longest: Duration,
}

impl Progress {
    fn note(&mut self, bytes: u64) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        (self.bytes, self.last) = (bytes, now);
    }
}

type Shared = Arc<Mutex<Progress>>;

struct Running {
    progress: Shared,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<Result<u64>>,
}

fn main() -> Result<()> {
    plexus_mesh::install_crypto_provider();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<()> {
    let meshes = start().await?;
    let mesh = meshes.first().ok_or("usage: mesh-peer [--listen ADDRESS] [--peer ADDRESS] IDENTITY")?.clone();
    for mesh in &meshes {
        tokio::spawn(echo(mesh.clone()));
        tokio::spawn(serve(mesh.clone()));
    }
    println!("{}", json!({ "listen": mesh.listen_addresses() }));
    let mut flows = HashMap::new();
    // The runtime of the programs has no standard input; a thread reads it.
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(std::result::Result::ok).try_for_each(|line| sender.send(line))
    });
    while let Some(line) = lines.recv().await {
        let answer = match serde_json::from_str(&line) {
            Ok(command) => obey(&mesh, &mut flows, command).await,
            Err(error) => Err(error.into()),
        };
        println!("{}", answer.unwrap_or_else(|error| json!({ "error": chain(&*error) })));
    }
    Ok(())
}

/// The whole chain of an error.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn start() -> Result<Vec<Mesh>> {
    let (mut listen, mut peers, mut kinds, mut folders) = (vec![], vec![], LinkKind::ALL.to_vec(), vec![]);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        match word.as_str() {
            "--listen" => listen.push(value()?.parse()?),
            "--peer" => peers.push(Peer::new(value()?)),
            "--kinds" => kinds = serde_json::from_value(value()?.split(',').collect())?,
            _ => folders.push(PathBuf::from(word)),
        }
    }
    for peer in &mut peers {
        peer.kinds.clone_from(&kinds);
    }
    let mut meshes = Vec::new();
    for folder in folders {
        let mut config = Config::new(Credentials::load(&folder)?, state(&folder), "mesh-peer");
        (config.listen, config.peers) = (listen.clone(), peers.clone());
        config.kinds.clone_from(&kinds);
        meshes.push(Mesh::start(config).await?);
    }
    Ok(meshes)
}

fn state(folder: &Path) -> PathBuf {
    folder.join("state")
}

async fn obey(mesh: &Mesh, flows: &mut HashMap<u64, Running>, command: Command) -> Result<Value> {
    match command {
        Command::Reach { node, reachable, within_ms } => {
            let node: NodeId = node.parse()?;
            let mut view = mesh.watch();
            let is =
                view.wait_for(|view| view.nodes.get(&node).is_some_and(|node| node.reachable) == reachable);
            match tokio::time::timeout(Duration::from_millis(within_ms), is).await {
                Ok(_) => Ok(json!({})),
                Err(_) => Err(format!("{node} reachable={reachable} was not seen: {}", views(mesh)).into()),
            }
        }
        Command::Flow { id, to, class, order } => {
            let stream = connect(mesh, &to, FLOW, class).await?;
            let progress = fresh();
            let (stop, stopped) = watch::channel(false);
            let task = tokio::spawn(flow(stream, order, progress.clone(), stopped));
            flows.insert(id, Running { progress, stop, task });
            Ok(json!({}))
        }
        Command::Progress { id, mark } => {
            let running = flows.get(&id).ok_or("no such flow")?;
            let mut progress = running.progress.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let silent = now - progress.last;
            let answer = json!({
                "bytes": progress.bytes,
                "gap_ms": progress.longest.max(silent).as_secs_f64() * 1e3,
                "silent_ms": silent.as_secs_f64() * 1e3,
                "ended": running.task.is_finished(),
            });
            if mark {
                // The silence before the mark is not counted: what is measured begins here.
                (progress.longest, progress.last) = (Duration::ZERO, now);
            }
            Ok(answer)
        }
        Command::Stop { id } => {
            flows.get(&id).ok_or("no such flow")?.stop.send_replace(true);
            ended(flows, id).await
        }
        Command::Wait { id } => ended(flows, id).await,
        Command::Requests { to, class, count, pause_us } => {
            let mut micros = Vec::with_capacity(count as usize);
            for _ in 0..count {
                let began = Instant::now();
                request(mesh, &to, class).await?;
                micros.push(began.elapsed().as_secs_f64() * 1e6);
                if pause_us > 0 {
                    tokio::time::sleep(Duration::from_micros(pause_us)).await;
                }
            }
            Ok(json!({ "us": micros }))
        }
        Command::Trace { to } => {
            let trace = mesh.trace(&to.parse()?, Duration::from_secs(10)).await?;
            Ok(
                json!({ "reached": trace.reached, "hops": trace.hops.iter().map(|hop| &hop.node).collect::<Vec<_>>() }),
            )
        }
        Command::Next { to } => {
            let node: NodeId = to.parse()?;
            let view = mesh.watch().borrow().clone();
            Ok(json!({ "next": view.nodes.get(&node).and_then(|node| node.next_hop.clone()) }))
        }
        Command::Status => Ok(serde_json::to_value(mesh.status())?),
    }
}

fn views(mesh: &Mesh) -> String {
    let view = mesh.watch().borrow().clone();
    let nodes = view.nodes.iter().map(|(name, node)| format!("{name} reachable={}", node.reachable));
    nodes.collect::<Vec<_>>().join(", ")
}

async fn connect(mesh: &Mesh, to: &str, service: &str, class: ClassName) -> Result<MeshStream> {
    Ok(mesh.connect(&to.parse()?, service, class.into()).await?)
}

async fn ended(flows: &mut HashMap<u64, Running>, id: u64) -> Result<Value> {
    let running = flows.remove(&id).ok_or("no such flow")?;
    let blocks = running.task.await??;
    let progress = running.progress.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(json!({ "blocks": blocks, "bytes": progress.bytes, "gap_ms": progress.longest.as_secs_f64() * 1e3 }))
}

async fn request(mesh: &Mesh, to: &str, class: ClassName) -> Result<()> {
    let mut stream = connect(mesh, to, ECHO, class).await?;
    stream.write_all(&[7; REQUEST]).await?;
    stream.shutdown().await?;
    let mut reply = Vec::with_capacity(REQUEST);
    stream.read_to_end(&mut reply).await?;
    if reply.len() == REQUEST { Ok(()) } else { Err(format!("{} bytes came back", reply.len()).into()) }
}

async fn echo(mesh: Mesh) -> Result<()> {
    let mut listener = mesh.listen(ECHO, ANYONE)?;
    while let Some(mut stream) = listener.accept().await {
        tokio::spawn(async move {
            let mut heard = Vec::with_capacity(REQUEST);
            if stream.read_to_end(&mut heard).await.is_ok() {
                stream.write_all(&heard).await.ok();
                stream.shutdown().await.ok();
            }
        });
    }
    Ok(())
}

fn fresh() -> Shared {
    Arc::new(Mutex::new(Progress { bytes: 0, last: Instant::now(), longest: Duration::ZERO }))
}

/// The near end of a flow: orders it, then sends or receives it. Returns the number of blocks that arrived whole.
async fn flow(
    stream: MeshStream,
    order: Order,
    progress: Shared,
    mut stopped: watch::Receiver<bool>,
) -> Result<u64> {
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(format!("{}\n", serde_json::to_string(&order)?).as_bytes()).await?;
    if order.pull {
        let stop = async {
            // A natural end needs no stop; the far end then never hears one.
            if stopped.wait_for(|stopped| *stopped).await.is_ok() {
                writer.shutdown().await.ok();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = stop => unreachable!("it never ends"),
            taken = take(&mut reader, &progress) => taken,
        }
    } else {
        give(&mut writer, order, &progress, async {
            stopped.wait_for(|stopped| *stopped).await.ok();
        })
        .await?;
        let mut verdict = String::new();
        reader.read_to_string(&mut verdict).await?;
        let verdict: Value = serde_json::from_str(&verdict)?;
        verdict["blocks"].as_u64().ok_or_else(|| verdict["error"].to_string().into())
    }
}

/// The far ends of flows.
async fn serve(mesh: Mesh) -> Result<()> {
    let mut listener = mesh.listen(FLOW, ANYONE)?;
    while let Some(stream) = listener.accept().await {
        tokio::spawn(async move {
            if let Err(error) = answer(stream).await {
                eprintln!("flow ended: {}", chain(&*error));
            }
        });
    }
    Ok(())
}

async fn answer(stream: MeshStream) -> Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    loop {
        match reader.read_u8().await? {
            b'\n' => break,
            byte if line.len() < 1000 => line.push(byte),
            _ => return Err("no order".into()),
        }
    }
    let order: Order = serde_json::from_slice(&line)?;
    let progress = fresh();
    if order.pull {
        give(&mut writer, order, &progress, async {
            // The end of the near end's half asks for the end of this one.
            let mut rest = [0; 16];
            while matches!(reader.read(&mut rest).await, Ok(1..)) {}
        })
        .await
    } else {
        let verdict = match take(&mut reader, &progress).await {
            Ok(blocks) => json!({ "blocks": blocks }),
            Err(error) => json!({ "error": chain(&*error) }),
        };
        writer.write_all(verdict.to_string().as_bytes()).await?;
        writer.shutdown().await?;
        Ok(())
    }
}

/// Sends blocks until there are enough or `stop` resolves, then the end.
async fn give(
    writer: &mut MeshWriter,
    order: Order,
    progress: &Shared,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    tokio::pin!(stop);
    let (mut number, mut bytes, mut sent) = (0, Vec::new(), 0);
    let began = Instant::now();
    while order.blocks == 0 || number < order.blocks {
        bytes.clear();
        flow::block(number, order.block, &mut bytes);
        writer.write_all(&bytes).await?;
        number += 1;
        sent += bytes.len() as u64;
        progress.lock().unwrap_or_else(PoisonError::into_inner).note(sent);
        // Paced by the start, not by the block before: what a stall held back comes at once after it.
        let due = began + Duration::from_micros(order.pause_us) * u32::try_from(number).unwrap_or(u32::MAX);
        let pause = due.saturating_duration_since(Instant::now());
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = tokio::time::sleep(pause), if !pause.is_zero() => {}
            () = std::future::ready(()), if pause.is_zero() => {}
        }
    }
    bytes.clear();
    flow::end(number, &mut bytes);
    writer.write_all(&bytes).await?;
    writer.shutdown().await?;
    Ok(())
}

/// Receives and checks blocks up to their end.
async fn take(reader: &mut MeshReader, progress: &Shared) -> Result<u64> {
    let mut checker = Checker::default();
    let mut piece = vec![0; PIECE];
    loop {
        let length = reader.read(&mut piece).await?;
        if length == 0 {
            return Ok(checker.finish()?);
        }
        checker.take(&piece[..length])?;
        progress.lock().unwrap_or_else(PoisonError::into_inner).note(checker.bytes());
    }
}

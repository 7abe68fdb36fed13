//! Throughput and CPU time of one mesh stream, and of bare QUIC for comparison.
//!
//! ```text
//! throughput --link l1|l2|l3 --hops N [--mib N] [--runs N] --json
//!                              both in turn, RUNS times: source → N hops → sink over links of one kind, and bare QUIC
//! throughput mesh [HOPS] [MIB]     source → HOPS hops → sink, one bulk stream, the kind of link that the mesh chooses
//! throughput direct [MIB]          two bare quinn endpoints: MTU 1452, GSO on, the same settings otherwise
//! throughput far-mesh MIB RTT_MS LOSS_PERCENT [MBIT]    as `mesh 1`, the first link over a long, lossy, narrow wire
//! throughput far-direct MIB RTT_MS LOSS_PERCENT [MBIT]  as `direct`, over the same wire
//! ```
//!
//! Every node is a process of its own with one thread, and tries UDP payloads of at most 1452 bytes. Prints one line of
//! JSON: `mb_s` from the first byte written to the reader's word that it has them all (10^6 bytes per second), `cpu_s` of
//! all processes together from the first byte to the last (without start and handshakes). `--link` prints all runs of
//! both, and `cpu_ratio`: the median over the runs of CPU time over that of bare QUIC just before.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::{Allow, Config, Credentials, LinkKind, Mesh, Peer};
use plexus_proto::id::Role;
use plexus_proto::packet::Class;
use quinn::congestion::BbrConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: usize = 1 << 20;
const SERVICE: &str = "throughput";
const PIECE: usize = 256 * 1024;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match &words[..] {
        ["mesh"] => measure_mesh(1, 256, None, ANY).and_then(print),
        ["mesh", hops] => measure_mesh(hops.parse()?, 256, None, ANY).and_then(print),
        ["mesh", hops, mib] => measure_mesh(hops.parse()?, mib.parse()?, None, ANY).and_then(print),
        ["direct"] => measure_direct(256, None).and_then(print),
        ["direct", mib] => measure_direct(mib.parse()?, None).and_then(print),
        ["far-mesh", mib, wire @ ..] => measure_mesh(1, mib.parse()?, Some(wire), ANY).and_then(print),
        ["far-direct", mib, wire @ ..] => measure_direct(mib.parse()?, Some(wire)).and_then(print),
        ["role", "wire", to, rtt, loss, mbit @ ..] => {
            let mbit = mbit.first().map(|mbit| mbit.parse()).transpose()?;
            one_thread(wire(to.parse()?, Duration::from_millis(rtt.parse()?) / 2, loss.parse()?, mbit))
        }
        ["role", "hop", folder, rest @ ..] => one_thread(hop(Path::new(folder), rest)),
        ["role", "sink", folder, at @ ..] => one_thread(sink(Path::new(folder), at)),
        ["role", "source", folder, at, mib] => one_thread(source(Path::new(folder), at, mib.parse()?)),
        ["role", "direct-sink", folder] => one_thread(direct_sink(Path::new(folder))),
        ["role", "direct-source", folder, at, mib] => {
            one_thread(direct_source(Path::new(folder), at.parse()?, mib.parse()?))
        }
        ["--link", ..] => compare(&words),
        _ => Err("usage: throughput --link l1|l2|l3 --hops N [--mib N] [--runs N] --json | throughput mesh [HOPS] [MIB] \
                  | throughput direct [MIB]"
            .into()),
    }
}

/// The kind that the mesh chooses.
const ANY: &str = "any";
/// Tells the roles which kinds of link to offer.
const LINK: &str = "PLEXUS_THROUGHPUT_LINK";

/// Kinds to offer for a name, and what a link's status then says.
fn kinds(link: &str) -> Result<(Vec<LinkKind>, &'static str)> {
    Ok(match link {
        ANY => (LinkKind::ALL.to_vec(), "sealed"),
        "l1" => (vec![LinkKind::Quic], "quic"),
        "l2" => (vec![LinkKind::Quic, LinkKind::Sealed], "sealed"),
        "l3" => (vec![LinkKind::Tcp], "tcp"),
        _ => return Err(format!("{link:?} is none of l1, l2, l3").into()),
    })
}

/// Bare QUIC and the mesh in turn.
fn compare(words: &[&str]) -> Result<()> {
    let option = |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1));
    let number = |name: &str, default: usize| -> Result<usize> {
        Ok(option(name).map(|value| value.parse()).transpose()?.unwrap_or(default))
    };
    let link = option("--link").ok_or("--link needs a kind")?;
    kinds(link)?;
    let (hops, mib, runs) = (number("--hops", 1)?, number("--mib", 256)?, number("--runs", 3)?);
    let (mut mesh, mut direct, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let bare = measure_direct(mib, None)?;
        let ours = measure_mesh(hops, mib, None, link)?;
        ratios.push(ours.total() / bare.total());
        mesh.push(ours);
        direct.push(bare);
    }
    ratios.sort_by(f64::total_cmp);
    let list = |all: &[Measured]| all.iter().map(Measured::json).collect::<Vec<_>>().join(",");
    println!(
        "{{\"link\":\"{link}\",\"hops\":{hops},\"mib\":{mib},\"cpu_ratio\":{:.3},\"mesh\":[{}],\"direct\":[{}]}}",
        ratios[ratios.len() / 2],
        list(&mesh),
        list(&direct),
    );
    Ok(())
}

/// One transfer.
struct Measured {
    mb_s: f64,
    /// Of each process, the source last.
    cpu: Vec<f64>,
    gigabytes: f64,
}

impl Measured {
    fn total(&self) -> f64 {
        self.cpu.iter().sum()
    }

    fn json(&self) -> String {
        let total = self.total();
        format!(
            "{{\"mb_s\":{:.1},\"cpu_s\":{total:.3},\"cpu_s_gb\":{:.3},\"cpu_s_each\":{:.3?}}}",
            self.mb_s,
            total / self.gigabytes,
            self.cpu
        )
    }
}

fn print(measured: Measured) -> Result<()> {
    println!("{}", measured.json());
    Ok(())
}

fn one_thread(role: impl Future<Output = Result<()>>) -> Result<()> {
    plexus_mesh::install_crypto_provider();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(role)
}

// The measuring process.

/// A folder with an authority in it, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("plexus-throughput-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn issue(&self, names: &[(Role, String)]) -> Result<()> {
        plexus_mesh::install_crypto_provider();
        let authority = CertificateAuthority::init(&self.0.join("ca"), &"bench".parse()?, &"main".parse()?)?;
        for (role, name) in names {
            authority.issue(*role, &name.parse()?, &self.0.join(name), Duration::from_secs(3600))?;
        }
        Ok(())
    }

    fn of(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A role in a process of its own; killed when dropped.
struct Process {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn spawn(args: &[&str], link: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("role").args(args).env(LINK, link);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, lines })
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().ok_or("no stdin")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// CPU seconds that the role has taken so far.
    fn cpu(&mut self) -> Result<f64> {
        self.tell("cpu")?;
        Ok(self.value("cpu")?.parse()?)
    }

    /// The next line, which must be `key value`.
    fn value(&mut self, key: &str) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        match line.trim().split_once(' ') {
            Some((found, value)) if found == key => Ok(value.to_owned()),
            _ => Err(format!("expected {key}, a role said {line:?}").into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure_mesh(hops: usize, mib: usize, wire: Option<&[&str]>, link: &str) -> Result<Measured> {
    let folder = Folder::new()?;
    let names = (1..=hops).map(|number| (Role::Hop, format!("hop-{number}")));
    let ends = [(Role::Execution, "sink".to_owned()), (Role::Controller, "source".to_owned())];
    folder.issue(&names.clone().chain(ends).collect::<Vec<_>>())?;

    let mut processes = Vec::new();
    let mut at: Vec<String> = Vec::new();
    for (_, name) in names {
        let own = folder.of(&name);
        let mut args = vec!["hop", &own];
        args.extend(at.last().map(String::as_str));
        let mut hop = Process::spawn(&args, link)?;
        at.push(hop.value("listen")?);
        processes.push(hop);
    }
    // Without a hop the sink itself is dialed.
    let own = folder.of("sink");
    let mut args = vec!["sink", &own];
    args.extend(at.last().map(String::as_str));
    let mut sink = Process::spawn(&args, link)?;
    let sink_at = sink.value("listen")?;
    processes.push(sink);
    let mut first = at.first().cloned().unwrap_or(sink_at);
    if let Some(wire) = wire {
        processes.push(lay(wire, &mut first)?);
    }
    processes.push(Process::spawn(&["source", &folder.of("source"), &first, &mib.to_string()], link)?);
    measure(mib, processes)
}

/// Puts a wire of these properties in front of `at`, which becomes its near end.
fn lay(wire: &[&str], at: &mut String) -> Result<Process> {
    let args: Vec<&str> = ["wire", at.as_str()].into_iter().chain(wire.iter().copied()).collect();
    let mut process = Process::spawn(&args, ANY)?;
    *at = process.value("listen")?;
    Ok(process)
}

fn measure_direct(mib: usize, wire: Option<&[&str]>) -> Result<Measured> {
    let folder = Folder::new()?;
    folder.issue(&[(Role::Execution, "sink".to_owned()), (Role::Controller, "source".to_owned())])?;
    let mut sink = Process::spawn(&["direct-sink", &folder.of("sink")], ANY)?;
    let mut at = sink.value("listen")?;
    let mut processes = vec![sink];
    if let Some(wire) = wire {
        processes.push(lay(wire, &mut at)?);
    }
    processes.push(Process::spawn(&["direct-source", &folder.of("source"), &at, &mib.to_string()], ANY)?);
    measure(mib, processes)
}

/// Lets the source, the last of `processes`, send, and takes the CPU time of all meanwhile.
fn measure(mib: usize, mut processes: Vec<Process>) -> Result<Measured> {
    processes.last_mut().ok_or("no source")?.value("ready")?;
    let before: Vec<f64> = processes.iter_mut().map(Process::cpu).collect::<Result<_>>()?;
    let source = processes.last_mut().ok_or("no source")?;
    source.tell("go")?;
    let seconds: f64 = source.value("seconds")?.parse()?;
    let after: Vec<f64> = processes.iter_mut().map(Process::cpu).collect::<Result<_>>()?;
    let gigabytes = (mib * MIB) as f64 / 1e9;
    let cpu = before.iter().zip(after).map(|(before, after)| after - before).collect();
    Ok(Measured { mb_s: gigabytes * 1e3 / seconds, cpu, gigabytes })
}

// The roles. Each prints what others need to know, and its CPU time when asked; it ends when its input closes.

fn config(folder: &Path, listen: Option<&str>, peers: &[&str]) -> Result<Config> {
    Ok(Config {
        listen: listen.map(str::parse).transpose()?.into_iter().collect(),
        peers: peers.iter().map(|address| Peer::new(*address)).collect(),
        kinds: kinds(&std::env::var(LINK)?)?.0,
        // As bare QUIC here.
        mtu: 1452,
        ..Config::new(Credentials::load(folder)?, folder.join("state"), "throughput")
    })
}

async fn hop(folder: &Path, peers: &[&str]) -> Result<()> {
    let mesh = Mesh::start(config(folder, Some("127.0.0.1:0"), peers)?).await?;
    println!("listen {}", mesh.listen_addresses()[0]);
    Input::attend().closed().await
}

async fn sink(folder: &Path, at: &[&str]) -> Result<()> {
    let mesh = Mesh::start(config(folder, Some("127.0.0.1:0"), at)?).await?;
    println!("listen {}", mesh.listen_addresses()[0]);
    let input = Input::attend();
    let mut listener = mesh.listen(SERVICE, Allow { roles: &[Role::Controller], same_cluster: true })?;
    let (reader, writer) = listener.accept().await.ok_or("mesh is down")?.into_split();
    discard(reader, writer).await?;
    input.closed().await
}

async fn source(folder: &Path, at: &str, mib: usize) -> Result<()> {
    let mesh = Mesh::start(config(folder, None, &[at])?).await?;
    let sink = "sink".parse()?;
    mesh.watch().wait_for(|view| view.nodes.get(&sink).is_some_and(|node| node.reachable)).await?;
    // Sealed packets are agreed on a moment after the link is up.
    let (_, wanted) = kinds(&std::env::var(LINK)?)?;
    while mesh.status().links.iter().any(|link| link.more.kind.as_deref() != Some(wanted)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (reader, writer) = mesh.connect(&sink, SERVICE, Class::Bulk).await?.into_split();
    measured(reader, writer, mib).await
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .initial_mtu(1452)
        .min_mtu(1452)
        .mtu_discovery_config(None)
        .stream_receive_window((4u32 << 20).into())
        .receive_window((32u32 << 20).into())
        .send_window(8 << 20)
        .congestion_controller_factory(Arc::new(BbrConfig::default()));
    Arc::new(transport)
}

async fn direct_sink(folder: &Path) -> Result<()> {
    let crypto = QuicServerConfig::try_from(Credentials::load(folder)?.server_config(&[b"throughput"]))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    let endpoint = direct_endpoint(Some(config))?;
    println!("listen {}", endpoint.local_addr()?);
    let input = Input::attend();
    let connection = endpoint.accept().await.ok_or("endpoint closed")?.await?;
    let (writer, reader) = connection.accept_bi().await?;
    discard(reader, writer).await?;
    input.closed().await
}

async fn direct_source(folder: &Path, at: SocketAddr, mib: usize) -> Result<()> {
    let crypto = QuicClientConfig::try_from(Credentials::load(folder)?.client_config(&[b"throughput"]))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    let connection = direct_endpoint(None)?.connect_with(config, at, "plexus.invalid")?.await?;
    let (writer, reader) = connection.open_bi().await?;
    measured(reader, writer, mib).await
}

/// An endpoint with the socket buffers that the mesh uses.
fn direct_endpoint(server: Option<quinn::ServerConfig>) -> Result<quinn::Endpoint> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, MIB)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, MIB)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(quinn::Endpoint::new(quinn::EndpointConfig::default(), server, socket, runtime)?)
}

/// One direction of a wire.
struct Lane {
    delay: Duration,
    loss_percent: f64,
    /// Bytes per second; packets that would stand in front of a narrower wire for 100 ms are lost.
    rate: Option<f64>,
    free_at: Instant,
    random: u64,
    under_way: VecDeque<(Instant, Vec<u8>)>,
}

impl Lane {
    fn enter(&mut self, packet: &[u8], now: Instant) {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lost = (self.random >> 33) as f64 / f64::from(1u32 << 31) * 100.0 < self.loss_percent;
        let begin = self.free_at.max(now);
        if lost || begin - now > Duration::from_millis(100) {
            return;
        }
        let takes =
            self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(packet.len() as f64 / rate));
        self.free_at = begin + takes;
        self.under_way.push_back((self.free_at + self.delay, packet.to_vec()));
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (at, _) = self.under_way.front()?;
        if *at > now { None } else { self.under_way.pop_front().map(|(_, packet)| packet) }
    }
}

/// Carries the packets of one client to `to` and back, late and not all of them.
async fn wire(to: SocketAddr, delay: Duration, loss_percent: f64, mbit: Option<f64>) -> Result<()> {
    let (near, far) = (UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?);
    for socket in [&near, &far] {
        rustix::net::sockopt::set_socket_recv_buffer_size(socket, 4 * MIB)?;
    }
    far.connect(to).await?;
    println!("listen {}", near.local_addr()?);
    let lane = |random| Lane {
        delay,
        loss_percent,
        rate: mbit.map(|mbit| mbit * 1e6 / 8.0),
        free_at: Instant::now(),
        random,
        under_way: VecDeque::new(),
    };
    let (mut there, mut back, mut client) = (lane(1), lane(2), None);
    let mut buffer = vec![0; 65_536];
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let end = Input::attend().closed();
    tokio::pin!(end);
    loop {
        tokio::select! {
            ended = &mut end => return ended,
            _ = tick.tick() => {}
        }
        let now = Instant::now();
        while let Ok((length, from)) = near.try_recv_from(&mut buffer) {
            client = Some(from);
            there.enter(&buffer[..length], now);
        }
        while let Ok(length) = far.try_recv(&mut buffer) {
            back.enter(&buffer[..length], now);
        }
        while let Some(packet) = there.arrived(now) {
            let _ = far.try_send(&packet);
        }
        while let (Some(client), Some(packet)) = (client, back.arrived(now)) {
            let _ = near.try_send_to(&packet, client);
        }
    }
}

/// Reads to the end and answers with how much it was.
async fn discard(mut reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin) -> Result<()> {
    let (mut piece, mut total) = (vec![0; PIECE], 0u64);
    loop {
        match reader.read(&mut piece).await? {
            0 => break,
            read => total += read as u64,
        }
    }
    writer.write_u64(total).await?;
    writer.shutdown().await?;
    Ok(())
}

/// Writes `mib` and waits for the answer; returns the seconds it took.
async fn send(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mib: usize,
) -> Result<f64> {
    let piece = vec![0x5a; PIECE];
    let start = Instant::now();
    for _ in 0..mib * MIB / PIECE {
        writer.write_all(&piece).await?;
    }
    writer.shutdown().await?;
    let received = reader.read_u64().await?;
    let seconds = start.elapsed().as_secs_f64();
    if received != (mib * MIB) as u64 + 1 {
        return Err(format!("reader has {received} bytes").into());
    }
    Ok(seconds)
}

/// Says that all is ready, and sends when told to.
async fn measured(
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mib: usize,
) -> Result<()> {
    let mut input = Input::attend();
    // The stream exists at the other end once it has carried something.
    writer.write_u8(0).await?;
    println!("ready now");
    input.go.recv().await.ok_or("input closed")?;
    println!("seconds {}", send(reader, writer, mib).await?);
    input.closed().await
}

/// What the measuring process says, read by a thread of its own: answers `cpu` at once, passes on `go`.
struct Input {
    go: tokio::sync::mpsc::Receiver<()>,
}

impl Input {
    fn attend() -> Self {
        let (sender, go) = tokio::sync::mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                match line.as_deref() {
                    Ok("cpu") => println!("cpu {}", cpu_seconds().unwrap_or(f64::NAN)),
                    Ok("go") => drop(sender.blocking_send(())),
                    _ => break,
                }
            }
        });
        Self { go }
    }

    async fn closed(mut self) -> Result<()> {
        while self.go.recv().await.is_some() {}
        Ok(())
    }
}

/// CPU time of all threads of this process.
fn cpu_seconds() -> Result<f64> {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir("/proc/self/task")? {
        let line = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanoseconds += line.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

//! From a line that is written to the client that sees it: one watcher at three rates, and fifty of one job.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use plexus_tests::{Api, Binaries};

use super::stage::{PATIENCE, Shape, Stage, streams};
use super::{Measured, thinned};
use crate::bench::machine::private_mb;
use crate::bench::median;
use crate::bench::mesh::quantile;
use crate::feed::{DIGITS, MARK};
use crate::probe::monotonic;

/// Rates of the job that one watcher follows, and for how many seconds.
const RATES: [(u64, u64); 3] = [(1, 40), (100, 20), (10_000, 10)];
/// Watchers of one job, its rate and seconds; one of them reads nothing.
const WATCHERS: usize = 50;
const WATCHED: (u64, u64) = (10_000, 10);
/// As events were captured: about 1 KB.
const AS_CAPTURED: usize = 0;

/// Latencies in ms of each rate, ours and through a bare pipe.
pub(super) struct Tail {
    rates: Vec<(u64, Vec<f64>, Vec<f64>)>,
}

impl Tail {
    /// The worst of the rates.
    pub(super) fn row(&self, q: f64) -> Measured {
        let worst = self
            .rates
            .iter()
            .max_by(|a, b| quantile(&a.1, q).total_cmp(&quantile(&b.1, q)))
            .map(|(rate, ours, bare)| (*rate, quantile(ours, q), thinned(ours), thinned(bare)));
        let (rate, value, samples, baseline) = worst.unwrap_or((0, f64::NAN, Vec::new(), Vec::new()));
        let each: Vec<String> = self
            .rates
            .iter()
            .map(|(rate, ours, bare)| {
                format!("{rate}/s: {:.2} ms (bare pipe {:.2})", quantile(ours, q), quantile(bare, q))
            })
            .collect();
        Measured {
            value,
            samples,
            baseline,
            conditions: format!(
                "moment in the event, just before the worker writes it, to the client of the event stream; {}; samples of {rate}/s",
                each.join(", ")
            ),
        }
    }
}

/// Measures one watcher at each rate, and a bare pipe from the same worker.
pub(super) async fn tail() -> anyhow::Result<Tail> {
    let stage = Stage::start("bench-tail", None).await?;
    let mut rates = Vec::new();
    for (rate, seconds) in RATES {
        let shape = Shape { bytes: AS_CAPTURED, events: rate * seconds };
        let bare = tokio::task::spawn_blocking(move || bare_pipe(rate, shape)).await??;
        stage.pace(rate)?;
        let job = stage.launch(shape, 1).await?[0];
        let watcher = Watcher::start(stage.api(), job, true)?;
        stage.open()?;
        let ours = watcher.finish().await?;
        stage.over(&[job]).await?;
        ensure!(!ours.is_empty(), "nothing was seen");
        eprintln!(
            "bench: {rate}/s: p50 {:.2} ms, p99 {:.2} ms; bare pipe {:.2}, {:.2}",
            median(&ours),
            quantile(&ours, 0.99),
            median(&bare),
            quantile(&bare, 0.99)
        );
        rates.push((rate, ours, bare));
    }
    stage.cluster.finish().await?;
    Ok(Tail { rates })
}

/// The same worker, its pipe read by nobody but us.
fn bare_pipe(rate: u64, shape: Shape) -> anyhow::Result<Vec<f64>> {
    let dir = tempfile::Builder::new()
        .prefix("plexus-bench-streams-")
        .tempdir_in("/dev/shm")
        .context("no folder for streams")?;
    // A second of the slow rates, as many events as need be of the fast one.
    let events = shape.events.min(rate.max(10) * 2);
    streams(dir.path(), Shape { events, ..shape }, 1)?;
    std::fs::write(dir.path().join("rate"), rate.max(10).to_string())?;
    std::fs::write(dir.path().join("gate"), "")?;
    let mut child = Command::new(Binaries::of_this_build()?.xtask())
        .arg("feed")
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the worker")?;
    let mut out = child.stdout.take().context("no output")?;
    // A worker writes a space behind its colons, the API does not.
    let mut marks = Marks::new(b"\"stdout\": \"@");
    let samples = read_marks(&mut out, &mut marks, true);
    ensure!(child.wait()?.success(), "the worker failed");
    samples
}

/// Latencies of 49 watchers in ms, and the memory of the controller meanwhile in MB.
pub(super) struct Watchers {
    latencies: Vec<f64>,
    memory: Vec<f64>,
    worst: f64,
}

impl Watchers {
    pub(super) fn latency(&self) -> Measured {
        Measured {
            value: quantile(&self.latencies, 0.99),
            samples: thinned(&self.latencies),
            baseline: Vec::new(),
            conditions: format!(
                "{WATCHERS} watchers of one job of {} events/s, one of them stalled, the clients on the same cores; the first event \
                 of each piece that a client reads; the slowest watcher's own p99 is {:.0} ms",
                WATCHED.0, self.worst
            ),
        }
    }

    pub(super) fn memory(&self) -> Measured {
        Measured {
            value: self.memory.iter().copied().fold(0.0, f64::max),
            samples: self.memory.clone(),
            baseline: Vec::new(),
            conditions: format!(
                "private memory of the controller, every 200 ms while {WATCHERS} watch; the most counts"
            ),
        }
    }
}

/// Measures fifty watchers of one job, one of which never reads.
pub(super) async fn watchers() -> anyhow::Result<Watchers> {
    let stage = Stage::start("bench-watchers", None).await?;
    let (rate, seconds) = WATCHED;
    stage.pace(rate)?;
    let job = stage.launch(Shape { bytes: AS_CAPTURED, events: rate * seconds }, 1).await?[0];
    let stalled = request(stage.api(), job)?;
    let mut watchers = Vec::new();
    for _ in 1..WATCHERS {
        watchers.push(Watcher::start(stage.api(), job, false)?);
    }
    let controller = stage.cluster.controller.pid().context("no controller")?;
    let over = Arc::new(AtomicBool::new(false));
    let memory = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let mut samples = Vec::new();
            while !over.load(Ordering::Relaxed) {
                samples.extend(private_mb(controller));
                std::thread::sleep(Duration::from_millis(200));
            }
            samples
        }
    });
    stage.open()?;
    let (mut latencies, mut worst) = (Vec::new(), 0.0f64);
    for watcher in watchers {
        let samples = watcher.finish().await?;
        worst = worst.max(quantile(&samples, 0.99));
        latencies.extend(samples);
    }
    over.store(true, Ordering::Relaxed);
    let memory = memory.join().map_err(|_| anyhow::anyhow!("the look at memory failed"))?;
    drop(stalled);
    stage.over(&[job]).await?;
    stage.cluster.finish().await?;
    eprintln!(
        "bench: {WATCHERS} watchers: p50 {:.1} ms, p99 {:.1} ms",
        median(&latencies),
        quantile(&latencies, 0.99)
    );
    Ok(Watchers { latencies, memory, worst })
}

/// A thread that reads the event stream of a job to its end.
struct Watcher(JoinHandle<anyhow::Result<Vec<f64>>>);

impl Watcher {
    /// Begins to watch. With `each`, every event counts; otherwise the first of each piece that is read, which is its oldest.
    fn start(api: &Api, job: i64, each: bool) -> anyhow::Result<Self> {
        let mut stream = request(api, job)?;
        Ok(Self(std::thread::spawn(move || read_marks(&mut stream, &mut Marks::new(MARK), each))))
    }

    async fn finish(self) -> anyhow::Result<Vec<f64>> {
        tokio::task::spawn_blocking(move || self.0.join())
            .await
            .context("a watcher is lost")?
            .map_err(|_| anyhow::anyhow!("a watcher failed"))?
    }
}

/// Asks for a job's event stream; returns when the answer has begun.
pub(in crate::bench) fn request(api: &Api, job: i64) -> anyhow::Result<TcpStream> {
    let address = api.base().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).context("cannot connect to the API")?;
    stream.set_read_timeout(Some(PATIENCE)).context("cannot set a deadline")?;
    let login =
        base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", api.user(), api.password()));
    write!(
        stream,
        "GET /api/v2/jobs/{job}/events/stream HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {login}\r\n\
         Connection: close\r\n\r\n"
    )?;
    // One byte at a time is slow and takes nothing that belongs to the body.
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).context("no answer")?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "answered {}", String::from_utf8_lossy(&head));
    Ok(stream)
}

/// All lines of a job's event stream that hold an event.
pub(super) fn events(stream: TcpStream, mut each: impl FnMut(&str)) -> anyhow::Result<()> {
    for line in BufReader::with_capacity(1 << 20, stream).split(b'\n') {
        let line = line.context("the stream broke off")?;
        if line.starts_with(b"event: end") {
            return Ok(());
        }
        if let Some(event) = line.strip_prefix(b"data: ") {
            each(&String::from_utf8_lossy(event));
        }
    }
    anyhow::bail!("the stream ended before the job")
}

/// Finds the moments in a text that comes in pieces.
struct Marks {
    finder: memchr::memmem::Finder<'static>,
    length: usize,
    text: Vec<u8>,
}

impl Marks {
    fn new(mark: &'static [u8]) -> Self {
        Self { finder: memchr::memmem::Finder::new(mark), length: mark.len(), text: Vec::new() }
    }

    /// The moments in what came last; the first of them only, unless `each`.
    fn take(&mut self, piece: &[u8], each: bool, mut moment: impl FnMut(u64)) {
        self.text.extend_from_slice(piece);
        let (mut at, mut found) = (0, false);
        while !found || each {
            let Some(place) = self.finder.find(&self.text[at..]) else { break };
            let start = at + place + self.length;
            let Some(digits) = self.text.get(start..start + DIGITS) else { break };
            if let Some(then) = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()) {
                moment(then);
                found = true;
            }
            at = start + DIGITS;
        }
        // What may be the beginning of a mark stays.
        let keep = (self.length + DIGITS).min(self.text.len());
        let from = if each { at.max(self.text.len() - keep) } else { self.text.len() - keep };
        self.text.drain(..from);
    }
}

fn read_marks(from: &mut impl Read, marks: &mut Marks, each: bool) -> anyhow::Result<Vec<f64>> {
    let (mut samples, mut buffer) = (Vec::new(), vec![0; 1 << 18]);
    loop {
        let read = from.read(&mut buffer).context("the stream broke off")?;
        if read == 0 {
            return Ok(samples);
        }
        let now = monotonic();
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a bench fit 52 bits")]
        marks.take(&buffer[..read], each, |then| samples.push(now.saturating_sub(then) as f64 / 1e6));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_wherever_pieces_end() {
        let text: String = (1..=50u64)
            .map(|moment| format!("id: 1\ndata: {{\"stdout\":\"@{moment:0DIGITS$}ok\"}}\n\n"))
            .collect();
        for size in [1, 7, 64, 10_000] {
            let (mut marks, mut seen) = (Marks::new(MARK), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                marks.take(piece, true, |moment| seen.push(moment));
            }
            assert!(seen.iter().copied().eq(1..=50), "{size}: {seen:?}");
        }
    }
}

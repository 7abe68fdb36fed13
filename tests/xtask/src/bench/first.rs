//! Suite `first`: from the API to the first instruction, to the first event, along the mesh, through the parser, at rest.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use plexus_tests::{
    Api, Binaries, Builder, Cluster, JobOptions, Samples, demo_image, podman_command, runtime_root,
};
use serde_json::{Value, json};

use super::live::event_stream;
use super::machine::{conditions, private_mb};
use super::{Better, Row, median};
use crate::probe::{copy, monotonic};

/// Jobs of a probe, after some that warm caches and sessions.
const STARTS: usize = 40;
const WARM: usize = 5;
/// Pairs of container jobs.
const CONTAINERS: usize = 11;
/// Pairs of streams.
const STREAMS: usize = 9;
/// Rest before memory is read.
const REST: Duration = Duration::from_secs(60);
/// Longest single job.
const JOB: Duration = Duration::from_secs(60);
/// Pause between two looks for the probe's word, which costs a few microseconds.
const LOOK: Duration = Duration::from_millis(1);

/// Measures every row whose name contains `only`.
///
/// # Errors
/// When a row cannot be measured.
pub(super) async fn run(only: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let wanted = |name: &str| only.is_none_or(|part| name.contains(part));
    let mut rows = Vec::new();
    if wanted("first.submit_to_start_ms") {
        rows.push(submit_to_start().await.context("first.submit_to_start_ms")?);
    }
    if wanted("first.ee_first_event_ratio") {
        rows.push(ee_first_event().await.context("first.ee_first_event_ratio")?);
    }
    if wanted("first.stream_ratio_h1") {
        rows.push(stream_ratio().context("first.stream_ratio_h1")?);
    }
    if wanted("first.parse_mb_s") {
        rows.push(parse_rate().context("first.parse_mb_s")?);
    }
    if wanted("first.rss_idle_mb") {
        rows.push(rss_idle().await.context("first.rss_idle_mb")?);
    }
    Ok(rows)
}

fn note(text: &str) {
    eprintln!("bench: {text}");
}

/// A captured stream of a small job.
fn small_stream() -> PathBuf {
    crate::repository().join("tests/fixtures/runner-streams/ok-2-hosts/worker.bin")
}

/// A template whose playbook is `facts.yml` on no host in particular: the probe does not look.
pub(super) async fn probe_template(cluster: &Cluster, inventory: &str) -> anyhow::Result<i64> {
    let samples = Samples::new(&demo_image())?;
    samples.copy_project(&cluster.layout.projects())?;
    let api = cluster.api();
    let loaded = samples.load(api).await?;
    let inventory = samples.load_inventory(api, loaded, inventory).await?;
    samples.template(api, loaded, "bench", "facts.yml", inventory, &JobOptions::default()).await
}

pub(super) async fn launch(api: &Api, template: i64) -> anyhow::Result<i64> {
    api.launch(template, &json!({})).await?["id"].as_i64().context("job has no id")
}

// ---------------------------------------------------------------- submit to start

async fn submit_to_start() -> anyhow::Result<Row> {
    let conditions = conditions();
    let (ours, bare) = starts(Cluster::builder("bench-start")).await?;
    Ok(Row {
        name: "first.submit_to_start_ms",
        value: median(&ours),
        unit: "ms",
        better: Better::Lower,
        bar: 25.0,
        samples: ours,
        baseline_samples: bare,
        command: "make bench SUITE=first".into(),
        conditions: format!("{conditions}; one job at a time; baseline: bare spawn of the same probe"),
    })
}

/// Milliseconds from the API's POST to the child's first instruction, and of bare spawns of the same probe.
///
/// # Errors
/// When a job fails or the cluster does not come up.
pub(super) async fn starts(builder: Builder) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    note(&format!("submit to start: {STARTS} process units, and as many bare spawns of the same probe"));
    let binaries = Binaries::of_this_build()?;
    let scratch = tempfile::Builder::new()
        .prefix("plexus-bench-")
        .tempdir_in(runtime_root())
        .context("no scratch folder")?;
    let out = scratch.path().join("began");
    let stream = small_stream();
    let text = |path: &Path| path.display().to_string();
    let command = vec![text(&binaries.xtask()), "probe".into(), text(&out), text(&stream), "{dir}".into()];
    let cluster = builder.process(command).start().await?;
    let template = probe_template(&cluster, "two-hosts.ini").await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..WARM + STARTS {
        let (mut one, mut other) = (0.0, 0.0);
        for turn in abba(round) {
            fs::remove_file(&out).ok();
            let began = monotonic();
            if turn == Turn::Ours {
                let job = launch(cluster.api(), template).await?;
                // Looking for the job at the API would take the cores that start it.
                let give_up = Instant::now() + JOB;
                while !out.exists() {
                    ensure!(Instant::now() < give_up, "job {job} never started");
                    tokio::time::sleep(LOOK).await;
                }
                cluster.api().finished(job, JOB).await?;
                one = ms_since(began, &out)?;
            } else {
                spawn_probe(&binaries, &out, &stream)?;
                other = ms_since(began, &out)?;
            }
        }
        if round >= WARM {
            ours.push(one);
            bare.push(other);
        }
    }
    cluster.finish().await?;
    Ok((ours, bare))
}

fn spawn_probe(binaries: &Binaries, out: &Path, stream: &Path) -> anyhow::Result<()> {
    let mut child = Command::new(binaries.xtask())
        .arg("probe")
        .args([out, stream])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start the probe")?;
    child
        .stdin
        .take()
        .context("probe has no input")?
        .write_all(b"{\"eof\": true}\n")
        .context("cannot write to the probe")?;
    ensure!(child.wait().context("probe is lost")?.success(), "the probe failed");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of one job fit 52 bits")]
fn ms_since(began: u64, out: &Path) -> anyhow::Result<f64> {
    let first: u64 =
        fs::read_to_string(out).context("the probe never ran")?.parse().context("the probe wrote no time")?;
    Ok(first.saturating_sub(began) as f64 / 1e6)
}

// ---------------------------------------------------------------- first event in the execution environment

async fn ee_first_event() -> anyhow::Result<Row> {
    let conditions = conditions();
    let image = demo_image();
    let (ours, bare) = ee_first_events(false).await?;
    Ok(Row {
        name: "first.ee_first_event_ratio",
        value: median(&ours) / median(&bare),
        unit: "ratio",
        better: Better::Lower,
        bar: 1.15,
        samples: ours,
        baseline_samples: bare,
        command: "make bench SUITE=first".into(),
        conditions: format!(
            "{conditions}; samples in ms; value is the ratio of the medians; {image}, facts.yml on two hosts"
        ),
    })
}

/// Milliseconds from the API's POST to the first event stored, of jobs in the execution environment, and of bare podman runs of
/// their payload to the first event printed. With `warm`, a container waits for each job.
///
/// # Errors
/// When a job fails or the cluster does not come up.
pub(super) async fn ee_first_events(warm: bool) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    note(&format!(
        "first event in the execution environment: {CONTAINERS} jobs, and as many bare podman runs of their payload"
    ));
    let image = demo_image();
    let scratch = tempfile::Builder::new()
        .prefix("plexus-bench-")
        .tempdir_in(runtime_root())
        .context("no scratch folder")?;
    let payload = payload_of_a_job(scratch.path()).await?;
    let mut builder = Cluster::builder("bench-ee");
    if warm {
        // The samples' organization is the first that a fresh database makes.
        let entry = format!("\n[[work.warm]]\nimage = {image:?}\norganization = \"1\"\ncount = 1");
        builder = builder.podman(&entry);
    }
    let cluster = builder.start().await?;
    let template = probe_template(&cluster, "two-hosts.ini").await?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=CONTAINERS {
        let (mut one, mut other) = (0.0, 0.0);
        for turn in abba(round) {
            match turn {
                Turn::Ours => {
                    if warm {
                        a_container_waits().await?;
                    }
                    one = api_to_first_event(cluster.api(), template).await?;
                }
                Turn::Other => other = bare_to_first_event(&image, &payload, scratch.path())?,
            }
        }
        // The first pair warms the page cache.
        if round > 0 {
            ours.push(one);
            bare.push(other);
        }
    }
    cluster.finish().await?;
    Ok((ours, bare))
}

/// Waits until a container waits for a unit, and its worker with it.
async fn a_container_waits() -> anyhow::Result<()> {
    let give_up = Instant::now() + JOB;
    loop {
        ensure!(Instant::now() < give_up, "no container waits for a unit");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let command = podman_command();
        let (program, first) = command.split_first().context("no podman command")?;
        let filter = ["ps", "--quiet", "--filter", "label=plexus.slot", "--filter", "status=running"];
        let found = Command::new(program).args(first).args(filter).output().context("cannot run podman")?;
        if !found.stdout.is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return Ok(());
        }
    }
}

/// The very files and input that the node gives a worker for a job of the template: taken from a job run by a copying worker.
async fn payload_of_a_job(scratch: &Path) -> anyhow::Result<PathBuf> {
    let binaries = Binaries::of_this_build()?;
    let payload = scratch.join("payload");
    let text = |path: &Path| path.display().to_string();
    let command = vec![
        text(&binaries.xtask()),
        "capture".into(),
        text(&payload),
        text(&small_stream()),
        "{dir}".into(),
    ];
    let cluster = Cluster::builder("bench-payload").process(command).start().await?;
    let template = probe_template(&cluster, "two-hosts.ini").await?;
    let job = launch(cluster.api(), template).await?;
    let done = cluster.api().finished(job, JOB).await?;
    ensure!(
        done["status"] == "successful",
        "the copying job ended {}: {}",
        done["status"],
        done["job_explanation"]
    );
    cluster.finish().await?;
    ensure!(payload.join("private/project/facts.yml").is_file(), "the payload holds no project");
    Ok(payload)
}

async fn api_to_first_event(api: &Api, template: i64) -> anyhow::Result<f64> {
    let began = Instant::now();
    let job = launch(api, template).await?;
    // It says each event once it is stored. Asking for events again and again would take the cores that podman needs.
    let mut lines = BufReader::new(event_stream(api, job)?);
    let first = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "no event came");
        }
        Ok(began.elapsed())
    });
    let first = first.await??;
    let done = api.finished(job, JOB).await?;
    ensure!(done["status"] == "successful", "job ended {}: {}", done["status"], done["job_explanation"]);
    Ok(first.as_secs_f64() * 1e3)
}

/// `podman run … ansible-runner worker` with the payload mounted, kwargs and eof on its input, up to its first event line.
fn bare_to_first_event(image: &str, payload: &Path, scratch: &Path) -> anyhow::Result<f64> {
    let private = scratch.join("bare");
    fs::remove_dir_all(&private).ok();
    copy(&payload.join("private"), &private)?;
    let input = fs::read(payload.join("stdin")).context("payload has no input")?;
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(first)
        .args(bare_options(&private, scratch))
        .arg(image)
        .args(["ansible-runner", "worker", "--private-data-dir=/runner"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run podman")?;
    child.stdin.take().context("podman has no input")?.write_all(&input).context("podman took no input")?;
    let mut elapsed = None;
    for line in BufReader::new(child.stdout.take().context("podman has no output")?).split(b'\n') {
        let line = line.context("podman's output broke off")?;
        if elapsed.is_none() && line.windows(10).any(|part| part == b"\"counter\":") {
            elapsed = Some(began.elapsed());
        }
    }
    ensure!(child.wait().context("podman is lost")?.success(), "the bare worker failed");
    fs::remove_file(scratch.join("cid")).ok();
    Ok(elapsed.context("the bare worker printed no event")?.as_secs_f64() * 1e3)
}

/// The options that a node gives podman.
fn bare_options(private: &Path, scratch: &Path) -> Vec<String> {
    let words = [
        "run",
        "--rm",
        "-i",
        "--log-driver",
        "none",
        "--name",
        "plexus-bench-bare",
        "--network",
        "host",
        "--pull=missing",
    ];
    let mut options: Vec<String> = words.map(str::to_owned).into();
    options.extend(["--cidfile".to_owned(), scratch.join("cid").display().to_string()]);
    for label in ["node=node-1", "store=bench", "unit=bench", "attempt=1", "label=bench"] {
        options.extend(["--label".to_owned(), format!("plexus-bench.{label}")]);
    }
    options.extend(["-v".to_owned(), format!("{}:/runner", private.display())]);
    options.extend(["-v".to_owned(), format!("{}:/runner/project", private.join("project").display())]);
    options.extend(["--workdir", "/runner/project"].map(str::to_owned));
    for variable in ["HOME=/root", "LANG=C.UTF-8", "TZ=UTC"] {
        options.extend(["-e".to_owned(), variable.to_owned()]);
    }
    options.push("--".to_owned());
    options
}

// ---------------------------------------------------------------- mesh, parser, memory

fn stream_ratio() -> anyhow::Result<Row> {
    note(&format!("256 MiB on a mesh stream over one hop, and over bare quinn, {STREAMS} times each"));
    let conditions = conditions();
    let program = Binaries::of_this_build()?.dir().join("examples/throughput");
    let measure = |args: &[&str]| -> anyhow::Result<f64> {
        json_of(Command::new(&program).args(args))?["mb_s"].as_f64().context("throughput printed no mb_s")
    };
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=STREAMS {
        let (mut one, mut other) = (0.0, 0.0);
        for turn in abba(round) {
            match turn {
                Turn::Ours => one = measure(&["mesh", "1", "256"])?,
                Turn::Other => other = measure(&["direct", "256"])?,
            }
        }
        if round > 0 {
            ours.push(one);
            bare.push(other);
        }
    }
    Ok(Row {
        name: "first.stream_ratio_h1",
        value: median(&ours) / median(&bare),
        unit: "ratio",
        better: Better::Higher,
        bar: 0.2,
        samples: ours,
        baseline_samples: bare,
        command: "make bench SUITE=first".into(),
        conditions: format!(
            "{conditions}; samples in MB/s (10^6 bytes); value is the ratio of the medians; baseline: bare direct quinn, \
             MTU 1452, GSO on"
        ),
    })
}

fn parse_rate() -> anyhow::Result<Row> {
    note("the stream parser, one core");
    let conditions = conditions();
    let binaries = Binaries::of_this_build()?;
    let stream = crate::repository().join("tests/fixtures/runner-streams/ten-hosts/worker.bin");
    let result = json_of(
        Command::new(binaries.controller()).args(["debug", "parse-bench"]).arg(stream).arg("--json"),
    )?;
    let (samples, ceiling) = (numbers(&result["samples"])?, numbers(&result["baseline_samples"])?);
    Ok(Row {
        name: "first.parse_mb_s",
        value: median(&samples),
        unit: "MB/s",
        better: Better::Higher,
        bar: 200.0,
        samples,
        baseline_samples: ceiling,
        command: "make bench SUITE=first".into(),
        conditions: format!(
            "{conditions}; ten-hosts with values varied; samples in MB/s (10^6 bytes); {}",
            result["conditions"].as_str().unwrap_or_default()
        ),
    })
}

async fn rss_idle() -> anyhow::Result<Row> {
    note(&format!("memory of hop and execution node after {} s of rest", REST.as_secs()));
    let conditions = conditions();
    let cluster = Cluster::builder("bench-rest").start().await?;
    tokio::time::sleep(REST).await;
    let of = |pid: Option<u32>| pid.and_then(private_mb).context("process has no memory to read");
    let (hop, node) = (of(cluster.hop.pid())?, of(cluster.node.pid())?);
    cluster.finish().await?;
    Ok(Row {
        name: "first.rss_idle_mb",
        value: hop.max(node),
        unit: "MB",
        better: Better::Lower,
        bar: 20.0,
        samples: vec![hop, node],
        baseline_samples: Vec::new(),
        command: "make bench SUITE=first".into(),
        conditions: format!("{conditions}; private pages (clean and dirty); samples: hop, execution node"),
    })
}

fn json_of(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed no JSON"))
}

fn numbers(value: &Value) -> anyhow::Result<Vec<f64>> {
    let numbers: Vec<f64> = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    ensure!(!numbers.is_empty(), "no samples in {value}");
    Ok(numbers)
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Turn {
    /// What is measured.
    Ours,
    /// What it stands beside.
    Other,
}

/// Who goes first alternates, so that a drift of the machine meets both.
pub(super) fn abba(round: usize) -> [Turn; 2] {
    if round.is_multiple_of(2) { [Turn::Ours, Turn::Other] } else { [Turn::Other, Turn::Ours] }
}

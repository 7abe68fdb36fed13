//! A project of a gigabyte on its way to a node.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Binaries, Cluster, demo_image, podman_command, runtime_root};

use super::super::{first, median};
use super::Measured;
use crate::probe::monotonic;

/// Files, their bytes, and how many lie in one folder.
const FILES: usize = 20_000;
const SIZE: usize = 50_000;
const FOLDER: usize = 200;
/// One file in so many is changed.
const CHANGED: usize = 100;
/// Runs of a project that stayed as it is.
const SAME: usize = 20;
/// Longest single job.
const JOB: Duration = Duration::from_secs(180);

/// What was measured with one project.
pub(super) struct Project {
    cold_ms: f64,
    runner_ms: f64,
    changed_pct: f64,
    changed_ms: f64,
    same_ms: Vec<f64>,
}

impl Project {
    pub(super) fn row(&self, name: &str) -> Measured {
        let how = "1 GB of random bytes in 20,000 files; API POST to the child's first instruction, the tree mounted; no hop";
        let (value, samples, baseline, more) = match name {
            "project_cold_ratio" => (
                self.runner_ms / self.cold_ms,
                vec![self.cold_ms],
                vec![self.runner_ms],
                "samples in ms, one each; baseline: ansible-runner transmit into worker, both in the image, to the worker's \
                 first word"
                    .to_owned(),
            ),
            "project_changed_bytes_pct" => (
                self.changed_pct,
                vec![self.changed_pct],
                Vec::new(),
                format!(
                    "1 % of the files changed; all bytes on the loopback interface from launch to end, those of the API included; \
                     visible after {:.0} ms",
                    self.changed_ms
                ),
            ),
            _ => (median(&self.same_ms), self.same_ms.clone(), Vec::new(), "nothing changed".to_owned()),
        };
        Measured { value, samples, baseline, conditions: format!("{how}; {more}") }
    }
}

/// Measures all of it.
pub(super) async fn measure() -> anyhow::Result<Project> {
    let binaries = Binaries::of_this_build()?;
    let scratch = tempfile::Builder::new()
        .prefix("plexus-bench-")
        .tempdir_in(runtime_root())
        .context("no scratch folder")?;
    let out = scratch.path().join("began");
    let text = |path: &Path| path.display().to_string();
    let stream = crate::repository().join("tests/fixtures/runner-streams/ok-2-hosts/worker.bin");
    let command = vec![text(&binaries.xtask()), "probe".into(), text(&out), text(&stream), "{dir}".into()];
    let cluster = Cluster::builder("bench-project").direct().process(command).start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    // Sessions and caches are warm; the node has never seen a byte of what follows.
    visible(&cluster, template, &out).await?;
    let root = project_of(&cluster, template).await?;
    let files = tokio::task::spawn_blocking(move || fill(&root)).await.context("lost")??;
    let cold_ms = visible(&cluster, template, &out).await?;

    // No two alike, and none like one that was there: each byte of them has to travel.
    for (number, file) in files.iter().enumerate().step_by(CHANGED) {
        fs::write(file, noise((FILES + number) as u64 + 1)).context("cannot change")?;
    }
    let before = loopback_bytes()?;
    let changed_ms = visible(&cluster, template, &out).await?;
    #[expect(clippy::cast_precision_loss, reason = "a gigabyte fits 52 bits")]
    let changed_pct = (loopback_bytes()? - before) as f64 / (FILES * SIZE) as f64 * 100.0;

    let mut same_ms = Vec::new();
    for _ in 0..SAME {
        same_ms.push(visible(&cluster, template, &out).await?);
    }
    let root = project_of(&cluster, template).await?;
    let runner_ms = tokio::task::spawn_blocking(move || runner(&root)).await.context("lost")??;
    cluster.finish().await?;
    Ok(Project { cold_ms, runner_ms, changed_pct, changed_ms, same_ms })
}

/// Milliseconds from POST to the first instruction of a job that has its tree.
async fn visible(cluster: &Cluster, template: i64, out: &Path) -> anyhow::Result<f64> {
    fs::remove_file(out).ok();
    let began = monotonic();
    let job = first::launch(cluster.api(), template).await?;
    let done = cluster.api().finished(job, JOB).await?;
    ensure!(done["status"] == "successful", "job ended {}: {}", done["status"], done["job_explanation"]);
    let first: u64 = fs::read_to_string(out).context("the probe never ran")?.parse().context("no time")?;
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of one job fit 52 bits")]
    let ms = first.saturating_sub(began) as f64 / 1e6;
    Ok(ms)
}

async fn project_of(cluster: &Cluster, template: i64) -> anyhow::Result<PathBuf> {
    let template = cluster.api().get(&format!("job_templates/{template}/")).await?;
    let project = cluster.api().get(&format!("projects/{}/", template["project"])).await?;
    let path = project["local_path"].as_str().context("the project has no directory")?;
    Ok(cluster.layout.projects().join(path))
}

/// Fills the project; the files that were made.
fn fill(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for number in 0..FILES {
        let dir = root.join(format!("files/{}", number / FOLDER));
        if number % FOLDER == 0 {
            fs::create_dir_all(&dir).context("cannot make a folder")?;
        }
        let file = dir.join(format!("{number}.bin"));
        fs::write(&file, noise(number as u64 + 1)).context("cannot write a file")?;
        files.push(file);
    }
    Ok(files)
}

/// Bytes that do not shrink, others for each seed.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(SIZE + 8);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(SIZE);
    bytes
}

/// `ansible-runner transmit` of the project into `ansible-runner worker`, to the worker's first word; milliseconds.
fn runner(root: &Path) -> anyhow::Result<f64> {
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let run = |options: &[&str], words: &[&str]| {
        let mut child = Command::new(program);
        child.args(first).args(["run", "--rm", "-i", "--log-driver", "none", "--network", "none"]);
        child.args(options).arg(demo_image()).args(words).stderr(Stdio::null());
        child
    };
    let scratch = tempfile::Builder::new().prefix("plexus-bench-").tempdir().context("no scratch folder")?;
    let inventory = scratch.path().join("inventory");
    fs::create_dir_all(&inventory).context("cannot make a folder")?;
    fs::write(inventory.join("hosts"), "localhost ansible_connection=local\n").context("cannot write")?;
    let mounts =
        [format!("{}:/from/project:ro", root.display()), format!("{}:/from/inventory", inventory.display())];
    let began = Instant::now();
    let mut transmit = run(
        &["-v", &mounts[0], "-v", &mounts[1]],
        &["ansible-runner", "transmit", "/from", "-p", "facts.yml"],
    )
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .spawn()
    .context("cannot run podman")?;
    let stream = transmit.stdout.take().context("no output")?;
    let mut worker = run(&[], &["ansible-runner", "worker"])
        .stdin(Stdio::from(stream))
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run podman")?;
    let mut lines = BufReader::new(worker.stdout.take().context("no output")?).lines();
    let word = lines.next().context("the worker said nothing")?.context("the worker's output broke off")?;
    let elapsed = began.elapsed();
    ensure!(word.contains("\"starting\""), "the worker could not start: {word}");
    for line in lines {
        drop(line);
    }
    transmit.wait().context("transmit is lost")?;
    worker.wait().context("the worker is lost")?;
    Ok(elapsed.as_secs_f64() * 1e3)
}

/// Bytes sent on the loopback interface so far.
fn loopback_bytes() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/dev").context("no network devices")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback")?;
    line.split_whitespace().nth(8).and_then(|word| word.parse().ok()).context("no count of bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_differs_by_seed() {
        assert_eq!(noise(1).len(), SIZE);
        assert_ne!(noise(1)[..64], noise(2)[..64]);
    }
}

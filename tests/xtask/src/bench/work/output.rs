//! A gibibyte of job output, from the first byte to the last acknowledgement.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use plexus_tests::{Binaries, Builder, Cluster};

use super::super::{first, median};
use super::Measured;

/// Bytes of a job's output.
const OUTPUT: u64 = 1 << 30;
/// Pairs of a job and its ceilings.
const ROUNDS: usize = 3;
/// Longest single job.
const JOB: Duration = Duration::from_secs(120);

/// A job that prints, over what its path could carry at best: the slower of a synced spool and of the mesh.
pub(super) async fn ratio(hops: usize) -> anyhow::Result<Measured> {
    let binaries = Binaries::of_this_build()?;
    let own = binaries.xtask().display().to_string();
    let command = vec![own, "flood".to_owned(), OUTPUT.to_string(), "{dir}".to_owned()];
    let builder = Cluster::builder("bench-output").process(command);
    let builder: Builder = match hops {
        0 => builder.direct(),
        hops => builder.more_hops(hops - 1),
    };
    let cluster = builder.start().await?;
    let template = first::probe_template(&cluster, "two-hosts.ini").await?;
    let (mut ours, mut disk, mut mesh) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let job = first::launch(cluster.api(), template).await?;
        let done = cluster.api().finished(job, JOB).await?;
        ensure!(!done["started"].is_null(), "job {job} never started: {}", done["job_explanation"]);
        let one = mb_s(began.elapsed());
        let data = cluster.layout.data_dir("node-1");
        let (two, three) = tokio::task::spawn_blocking(move || anyhow::Ok((spool(&data)?, bulk(hops)?)))
            .await
            .context("a measurement is lost")??;
        if round > 0 {
            ours.push(one);
            disk.push(two);
            mesh.push(three);
        }
    }
    cluster.finish().await?;
    let baseline = if median(&disk) < median(&mesh) { disk.clone() } else { mesh.clone() };
    Ok(Measured {
        value: median(&ours) / median(&baseline),
        samples: ours,
        conditions: format!(
            "1 GiB as lines that are no events, so that the database is not what is measured; POST to the end shown; samples in \
             MB/s (10^6 bytes); baseline: the slower of a synced write, MiB by MiB ({:.0}), and the mesh's own bulk stream on \
             that path ({:.0})",
            median(&disk),
            median(&mesh)
        ),
        baseline,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a gibibyte fits 52 bits")]
fn mb_s(elapsed: Duration) -> f64 {
    OUTPUT as f64 / 1e6 / elapsed.as_secs_f64()
}

/// A file of as many bytes where the spool lies, synced at each MiB.
fn spool(dir: &Path) -> anyhow::Result<f64> {
    let path = dir.join("bench-spool");
    let piece = vec![7; 1 << 20];
    let began = Instant::now();
    let mut file = File::create(&path).context("cannot make a file")?;
    for _ in 0..OUTPUT >> 20 {
        file.write_all(&piece).context("cannot write")?;
        file.sync_data().context("cannot sync")?;
    }
    let rate = mb_s(began.elapsed());
    std::fs::remove_file(&path).context("cannot remove the file")?;
    Ok(rate)
}

/// One bulk stream over as many hops.
fn bulk(hops: usize) -> anyhow::Result<f64> {
    let program = Binaries::of_this_build()?.dir().join("examples/throughput");
    let mib = (OUTPUT >> 20).to_string();
    let mut child = Command::new(program)
        .args(["mesh", &hops.to_string(), &mib])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run throughput; cargo build --release -p plexus-mesh --examples")?;
    let line = BufReader::new(child.stdout.take().context("no output")?).lines().last();
    ensure!(child.wait().context("throughput is lost")?.success(), "throughput failed");
    let report: serde_json::Value = serde_json::from_str(&line.context("throughput printed nothing")??)
        .context("throughput printed no JSON")?;
    report["mb_s"].as_f64().context("throughput printed no mb_s")
}

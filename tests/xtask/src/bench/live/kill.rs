//! The controller is killed ten times while events come as fast as they can: what is lost, and what is there twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::Measured;
use super::stage::{PATIENCE, Shape, Stage};
use super::watch::{events, request};

const SHAPE: Shape = Shape { bytes: 500, events: 500_000 };
const KILLS: u64 = 10;

/// What the job stored, beside what its worker said.
pub(super) struct Killed {
    lost: u64,
    doubled: u64,
    at: Vec<u64>,
}

impl Killed {
    #[expect(clippy::cast_precision_loss, reason = "events fit 52 bits")]
    pub(super) fn row(&self, lost: bool) -> Measured {
        Measured {
            value: if lost { self.lost } else { self.doubled } as f64,
            samples: self.at.iter().map(|&events| events as f64).collect(),
            baseline: Vec::new(),
            conditions: format!(
                "{} events of {} bytes, uuids in the event stream beside those in the worker's output; samples: events stored at \
                 each of the {KILLS} kills",
                SHAPE.events, SHAPE.bytes
            ),
        }
    }
}

/// Runs one job across ten deaths of the controller.
pub(super) async fn killed() -> anyhow::Result<Killed> {
    let mut stage = Stage::start("bench-kill", None).await?;
    let job = stage.launch(SHAPE, 1).await?[0];
    stage.open()?;
    let (began, mut at, mut stored) = (Instant::now(), Vec::new(), 0);
    for kill in 1..=KILLS {
        // Each at least this far into the job, and some events further than the last.
        let wanted = (SHAPE.events * kill / (KILLS + 2)).max(stored + 1);
        while stored < wanted {
            ensure!(began.elapsed() < PATIENCE, "{stored} events after {KILLS} kills");
            stored = stage.api().event_count(job).await.unwrap_or(stored);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        ensure!(stored < SHAPE.events, "the job was over after {kill} kills");
        at.push(stored);
        stage.cluster.restart_controller().await?;
    }
    stage.over(&[job]).await?;
    let path = stage.stream(1);
    let stream = request(stage.api(), job)?;
    let (lost, doubled) = tokio::task::spawn_blocking(move || -> anyhow::Result<(u64, u64)> {
        let mut sent: HashMap<String, i64> = HashMap::new();
        for line in BufReader::new(File::open(path)?).lines() {
            let line = line.context("the worker's output cannot be read")?;
            if let Some(uuid) = between(&line, "{\"uuid\": \"") {
                *sent.entry(uuid.to_owned()).or_default() += 1;
            }
        }
        events(stream, |event| {
            if let Some(uuid) = between(event, "\"uuid\":\"") {
                *sent.entry(uuid.to_owned()).or_default() -= 1;
            }
        })?;
        let lost = sent.values().filter(|&&left| left > 0).sum::<i64>();
        let doubled = -sent.values().filter(|&&left| left < 0).sum::<i64>();
        Ok((lost.unsigned_abs(), doubled.unsigned_abs()))
    })
    .await??;
    stage.cluster.finish().await?;
    Ok(Killed { lost, doubled, at })
}

/// What stands behind `start`, up to the next quote.
fn between<'t>(text: &'t str, start: &str) -> Option<&'t str> {
    text.split_once(start)?.1.split('"').next()
}

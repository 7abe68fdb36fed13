//! `make bench`: rows of numbers, each beside the ceiling or peer of the same run, in a table and in `target/bench/SUITE.json`.
//!
//! Ours and the other take turns (ABBA), because two cores that others use make every wall clock lie; the ratio of one pair of
//! neighbours lies least. Samples are kept as they were measured.

mod api;
mod first;
mod live;
mod machine;
mod mesh;
mod work;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

/// Which suite.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Suite to run: first, mesh, live, work, api.
    #[arg(long, default_value = "first")]
    suite: String,
    /// Rows whose name contains this text, only.
    #[arg(long)]
    only: Option<String>,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One number, and everything needed to believe it.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
    better: Better,
    bar: f64,
    samples: Vec<f64>,
    baseline_samples: Vec<f64>,
    command: String,
    conditions: String,
}

impl Row {
    fn holds(&self) -> bool {
        match self.better {
            Better::Lower => self.value <= self.bar,
            Better::Higher => self.value >= self.bar,
        }
    }
}

/// Runs a suite.
///
/// # Errors
/// When a row cannot be measured, or there is no such suite.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let only = options.only.as_deref();
    let rows = match options.suite.as_str() {
        "first" => runtime.block_on(first::run(only))?,
        "mesh" => runtime.block_on(mesh::run(only)),
        "live" => runtime.block_on(live::run(only)),
        "work" => runtime.block_on(work::run(only)),
        "api" => runtime.block_on(api::run(only)),
        other => bail!("no such suite: {other} (there are: first, mesh, live, work, api)"),
    };
    print(&rows);
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join(format!("{}.json", options.suite));
    let text = serde_json::to_string_pretty(&rows).context("cannot encode the rows")?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    let missed = rows.iter().filter(|row| !row.holds()).count();
    println!("{} of {} bars hold", rows.len() - missed, rows.len());
    Ok(ExitCode::SUCCESS)
}

fn print(rows: &[Row]) {
    println!();
    println!(
        "{:<28} {:>10} {:>7} {:>6} {:>3} {:>22} {:>22}",
        "name", "value", "unit", "bar", "", "min / p50 / max", "baseline"
    );
    for row in rows {
        let bar = match row.better {
            Better::Lower => format!("≤{}", row.bar),
            Better::Higher => format!("≥{}", row.bar),
        };
        println!(
            "{:<28} {:>10.3} {:>7} {:>6} {:>3} {:>22} {:>22}",
            row.name,
            row.value,
            row.unit,
            bar,
            if row.holds() { "ok" } else { "-" },
            spread(&row.samples),
            spread(&row.baseline_samples)
        );
    }
    println!();
}

fn spread(samples: &[f64]) -> String {
    if samples.is_empty() {
        return "-".to_owned();
    }
    let (min, max) =
        samples.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &x| (a.min(x), b.max(x)));
    format!("{min:.1} / {:.1} / {max:.1}", median(samples))
}

/// The middle sample; the mean of the two in the middle when their number is even.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

pub(crate) fn target_dir() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::repository().join("target"), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_even_and_odd() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}

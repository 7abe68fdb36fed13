//! Suite `api`: what AWX's API costs here: lists and details out of a million jobs, launches, the planner, a start, and rest.
//!
//! The load generator shares the machine's cores with the controller and speaks plain HTTP on loopback with a token. A row that
//! cannot be measured is named with the reason; the others go on.

mod http;
mod launch;
mod million;

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use plexus_tests::Binaries;
use serde_json::Value;

use super::machine::conditions;
use super::{Better, Row, median};

/// Rows in the order of the table: name, unit, which way is good, bar.
const ROWS: [(&str, &str, Better, f64); 12] = [
    ("api.list_p50_ms", "ms", Better::Lower, 5.0),
    ("api.list_p99_ms", "ms", Better::Lower, 20.0),
    ("api.detail_s", "1/s", Better::Higher, 2000.0),
    ("api.start_ms", "ms", Better::Lower, 200.0),
    ("api.rss_idle_mb", "MB", Better::Lower, 60.0),
    ("api.launch_s", "1/s", Better::Higher, 500.0),
    ("api.launch_p99_ms", "ms", Better::Lower, 100.0),
    ("api.eligible_to_dispatch_ms", "ms", Better::Lower, 3.0),
    ("api.planner_s", "1/s", Better::Higher, 50_000.0),
    ("api.inventory_100k_list_ms", "ms", Better::Lower, 20.0),
    ("api.inventory_100k_script_s", "s", Better::Lower, 2.0),
    ("api.inventory_100k_import_s", "s", Better::Lower, 20.0),
];

/// What was measured for one row.
struct Measured {
    value: f64,
    samples: Vec<f64>,
    conditions: String,
}

/// Measures every row whose name contains `only`, or one of its parts between commas; a row that cannot be measured is named on
/// standard error.
pub(super) async fn run(only: Option<&str>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut shared = Shared::default();
    for (name, unit, better, bar) in ROWS {
        if only.is_some_and(|parts| !parts.split(',').any(|part| name.contains(part))) {
            continue;
        }
        eprintln!("bench: {name}");
        let machine = conditions();
        match measure(name, &mut shared).await {
            Ok(Measured { value, samples, conditions }) => rows.push(Row {
                name,
                value,
                unit,
                better,
                bar,
                samples,
                baseline_samples: Vec::new(),
                command: format!("make bench SUITE=api ARGS=\"--only {name}\""),
                conditions: format!("{machine}; {conditions}"),
            }),
            Err(error) => eprintln!("bench: {name} is not measured: {error:#}"),
        }
    }
    if let Some(million) = shared.million
        && let Err(error) = million.finish().await
    {
        eprintln!("bench: the controller with the million did not end well: {error:#}");
    }
    rows
}

/// Measurements that several rows share.
#[derive(Default)]
struct Shared {
    million: Option<million::Million>,
    launches: Option<launch::Launches>,
    inventory: Option<Value>,
}

impl Shared {
    async fn million(&mut self) -> anyhow::Result<&mut million::Million> {
        if self.million.is_none() {
            self.million = Some(million::Million::make().await?);
        }
        self.million.as_mut().context("no million")
    }
}

async fn measure(name: &str, shared: &mut Shared) -> anyhow::Result<Measured> {
    let (_, short) = name.split_once('.').context("a row without its suite")?;
    match short {
        "list_p50_ms" => shared.million().await?.lists(0.5).await,
        "list_p99_ms" => shared.million().await?.lists(0.99).await,
        "detail_s" => shared.million().await?.details().await,
        "start_ms" => shared.million().await?.starts().await,
        "rss_idle_mb" => shared.million().await?.rest().await,
        "launch_s" | "launch_p99_ms" => {
            if shared.launches.is_none() {
                shared.launches = Some(launch::measure().await?);
            }
            Ok(shared.launches.as_ref().context("no launches")?.row(short))
        }
        "eligible_to_dispatch_ms" => launch::dispatch().await,
        "planner_s" => planner(),
        "inventory_100k_list_ms" | "inventory_100k_script_s" | "inventory_100k_import_s" => {
            if shared.inventory.is_none() {
                shared.inventory = Some(inventory()?);
            }
            inventory_row(shared.inventory.as_ref().context("no inventory")?, short)
        }
        other => bail!("no such row: {other}"),
    }
}

/// What one of the controller's own measurements reports.
fn of_controller(args: &[&OsStr]) -> anyhow::Result<Value> {
    let mut command = Command::new(Binaries::of_this_build()?.controller());
    let output = command.arg("debug").args(args).output().context("cannot run the controller")?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed no JSON"))
}

/// An inventory of 100,000 hosts.
fn inventory() -> anyhow::Result<Value> {
    let dir = tempfile::Builder::new().prefix("plexus-bench-inventory-").tempdir()?;
    of_controller(&["inventory-bench".as_ref(), "--dir".as_ref(), dir.path().as_os_str()])
}

fn inventory_row(report: &Value, row: &str) -> anyhow::Result<Measured> {
    let number =
        |name: &str| report[name].as_f64().with_context(|| format!("no {name} in what was told: {report}"));
    let (value, conditions) = match row {
        "inventory_100k_list_ms" => (
            number("list_p99_ms")?,
            format!("p99 of 200 pages of 25 hosts all over the list; p50 {:.1} ms", number("list_p50_ms")?),
        ),
        "inventory_100k_script_s" => (
            number("script_s")?,
            format!(
                "{:.0} MB with all variables; its first piece after {:.0} ms",
                number("script_bytes")? / 1e6,
                number("script_first_s")? * 1e3
            ),
        ),
        _ => (
            number("import_s")?,
            format!(
                "{:.0} MB of ansible-inventory's output, parsed and stored; again, unchanged, {:.1} s; of {} writes of somebody \
                 else meanwhile the slowest took {:.0} ms from asking to the disk",
                number("document_bytes")? / 1e6,
                number("import_again_s")?,
                number("writes_meanwhile")?,
                number("write_longest_ms")?
            ),
        ),
    };
    Ok(Measured { value, samples: vec![value], conditions })
}

/// The planner alone, in the controller's own program.
fn planner() -> anyhow::Result<Measured> {
    let report = of_controller(&["planner-bench".as_ref()])?;
    let numbers = |name: &str| -> Vec<f64> {
        report[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let (whole, tenths) = (numbers("per_second"), numbers("tenths"));
    ensure!(!whole.is_empty() && tenths.len() == 10, "planner-bench printed {report}");
    Ok(Measured {
        value: median(&whole),
        conditions: format!(
            "100,000 pending jobs, 10,000 nodes in 100 groups, fleet made and jobs placed; a second's placements in the first \
             tenth {:.0}, in the last {:.0}",
            tenths[0], tenths[9]
        ),
        samples: whole,
    })
}

//! The simulated mesh: troubled lives until one goes wrong, and measurements of quiet ones.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use plexus_mesh::testing::life::live;
use plexus_mesh::testing::measure::{Report, Took, measure};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The first seed to live.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Nodes in each life.
    #[arg(long, default_value_t = 40)]
    nodes: usize,
    /// Rounds of trouble in each life.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Lives one seed after the other for so long; without it that one seed.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Measures meshes of these sizes instead.
    #[arg(long, value_name = "NODES", num_args = 1..)]
    measure: Vec<usize>,
    /// Prints what was measured as JSON, one object a line.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    if !options.measure.is_empty() {
        for &nodes in &options.measure {
            let report = measure(options.seed, nodes).map_err(anyhow::Error::msg)?;
            if options.json { println!("{}", json(&report)) } else { print(&report) }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let end = Instant::now() + Duration::from_secs(options.seconds.unwrap_or(0));
    let (mut seed, mut lives) = (options.seed, 0u64);
    loop {
        match live(seed, options.nodes, options.rounds) {
            Ok(world) if options.seconds.is_none() => {
                println!("seed {seed}: well, trace {:016x}", world.trace())
            }
            Ok(_) => {}
            Err(error) => {
                println!("seed {seed}: {error}");
                println!(
                    "again: cargo xtask sim --seed {seed} --nodes {} --rounds {}",
                    options.nodes, options.rounds
                );
                return Ok(ExitCode::FAILURE);
            }
        }
        (seed, lives) = (seed + 1, lives + 1);
        if Instant::now() >= end {
            println!("{lives} lives of {} nodes were well", options.nodes);
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// What convergence takes beyond the time that news need to cross the network.
fn beyond(took: &Took, report: &Report) -> f64 {
    millis(took.time.saturating_sub(report.diameter))
}

fn json(report: &Report) -> serde_json::Value {
    let took = |took: &Took| {
        serde_json::json!({
            "ms": millis(took.time),
            "beyond_diameter_ms": beyond(took, report),
            "messages": took.messages,
            "bytes": took.bytes,
            "cpu_ms": millis(took.cpu),
        })
    };
    serde_json::json!({
        "nodes": report.nodes,
        "hops": report.hops,
        "controllers": report.controllers,
        "links": report.links,
        "diameter_ms": millis(report.diameter),
        "start": took(&report.start),
        "join": took(&report.join),
        "leave": took(&report.leave),
        "hop_leave": took(&report.hop_leave),
        "churn": took(&report.churn),
        "heal": took(&report.heal),
        "idle_bytes_link_s": report.idle_bytes_per_link_second,
        "wall_s": report.wall.as_secs_f64(),
    })
}

fn print(report: &Report) {
    println!(
        "{} nodes ({} hops, {} controllers), {} links, diameter {} ms: {:.2} bytes per link and second when idle; {:.1} s",
        report.nodes,
        report.hops,
        report.controllers,
        report.links,
        millis(report.diameter),
        report.idle_bytes_per_link_second,
        report.wall.as_secs_f64(),
    );
    println!("  {:<10} {:>10} {:>10} {:>12} {:>10} {:>10}", "", "ms", "beyond", "messages", "MB", "cpu ms");
    let rows = [
        ("start", report.start),
        ("join", report.join),
        ("leave", report.leave),
        ("hop leaves", report.hop_leave),
        ("1 % churn", report.churn),
        ("heal", report.heal),
    ];
    for (name, took) in rows {
        println!(
            "  {name:<10} {:>10.1} {:>10.1} {:>12} {:>10.2} {:>10.1}",
            millis(took.time),
            beyond(&took, report),
            took.messages,
            took.bytes as f64 / 1e6,
            millis(took.cpu),
        );
    }
}

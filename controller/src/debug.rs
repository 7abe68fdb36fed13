//! `plexus-controller debug …`: looks into files without a running controller.

mod copy_jobs;
mod ingest_bench;
mod inventory_bench;
mod parse_bench;
mod planner_bench;
mod resources;
pub mod tally;
mod varied;
mod wide_rows;

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::Context;
use bytes::Bytes;
use clap::{Args as ClapArgs, Subcommand};

use crate::crash;
use crate::stream::Parser;

/// Arguments of `debug`.
#[derive(Debug, ClapArgs)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Says what the controller makes of a captured worker stream
    Stream {
        /// Captured standard output of `ansible-runner worker`
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Lists the points at which a build with the feature crash-points can be made to die
    CrashPoints,
    /// Measures records in memory to events on disk: unseal, parse, compress, commit with full sync
    IngestBench(ingest_bench::Args),
    /// Measures an inventory of many hosts: import, a page of its hosts, and the document for Ansible
    InventoryBench(inventory_bench::Args),
    /// Measures a bare loop that writes the same events as plain wide rows, with the same durability
    WideRows(wide_rows::Args),
    /// Copies the jobs of a controller that does not run, for benches of large databases
    CopyJobs(copy_jobs::Args),
    /// Lists the resources of the API, as JSON
    Resources,
    /// Measures placements a second of the planner alone, and prints JSON
    PlannerBench,
    /// Writes a worker's stream whose events are captured ones with other values
    Vary {
        /// Captured stream, or folder of cases
        file: PathBuf,
        /// File to write; with several, the jobs' files are OUT.1, OUT.2, …
        #[arg(long)]
        out: PathBuf,
        /// Events of each file
        #[arg(long)]
        events: usize,
        /// Mean bytes of an event; 0 for as long as they were captured
        #[arg(long, default_value_t = 0)]
        event_bytes: usize,
        /// How many files
        #[arg(long, default_value_t = 1)]
        files: u64,
    },
    /// Measures the stream parser on one core, beside the same lines only split and checked by serde_json
    ParseBench {
        /// Captured stream whose values are varied
        file: PathBuf,
        /// How long to measure
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs one of the commands; prints to standard output.
///
/// # Errors
/// A file that cannot be read, or standard output that cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Stream { file, json } => stream(&file, json),
        Command::CrashPoints => {
            let mut out = std::io::stdout().lock();
            crash::Point::of_a_record().try_for_each(|point| writeln!(out, "{}", point.name()))?;
            Ok(())
        }
        Command::IngestBench(args) => ingest_bench::run(&args),
        Command::InventoryBench(args) => inventory_bench::run(&args),
        Command::WideRows(args) => wide_rows::run(&args),
        Command::Vary { file, out, events, event_bytes, files } => {
            vary(&file, &out, (events, event_bytes), files)
        }
        Command::CopyJobs(args) => copy_jobs::run(&args),
        Command::PlannerBench => planner_bench::run(),
        Command::Resources => resources::run(),
        Command::ParseBench { file, seconds, json } => parse_bench::run(&file, seconds, json),
    }
}

fn stream(path: &std::path::Path, json: bool) -> anyhow::Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut parser, mut tally) = (Parser::new(), tally::Tally::default());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            break;
        }
        parser.push(&Bytes::copy_from_slice(&buffer[..read]), |item| tally.add(item));
    }
    parser.finish(|item| tally.add(item));
    let report = tally.report();
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "statuses     {}", report.statuses.join(" "))?;
    writeln!(out, "events       {}", report.event_count)?;
    for (name, count) in &report.events {
        writeln!(out, "  {count:>8}  {name}")?;
    }
    writeln!(out, "keepalives   {}", report.keepalives)?;
    writeln!(out, "other lines  {}", report.other_lines)?;
    writeln!(out, "artifacts    {}", report.artifacts.map_or("none".to_owned(), |names| names.join(" ")))?;
    writeln!(out, "rc           {}", report.rc_file.as_deref().unwrap_or("none"))?;
    writeln!(out, "eof          {}", if report.eof { "yes" } else { "no" })?;
    Ok(())
}

/// What a worker says before its events.
const BEFORE: &str = "{\"status\": \"starting\", \"runner_ident\": \"1\", \"command\": [\"ansible-playbook\", \"site.yml\"], \
    \"env\": {}, \"cwd\": \"/runner/project\"}\n{\"status\": \"running\", \"runner_ident\": \"1\"}\n";

fn vary(
    file: &std::path::Path,
    out: &std::path::Path,
    (events, bytes): (usize, usize),
    files: u64,
) -> anyhow::Result<()> {
    let source = varied::Source::events(file, bytes)?;
    // Status, artifacts and end come as they were captured: a job without them has failed.
    let whole = if file.is_dir() { file.join("ten-hosts/worker.bin") } else { file.to_owned() };
    let stream = std::fs::read(&whole).with_context(|| format!("cannot read {}", whole.display()))?;
    let end = memchr::memmem::find(&stream, b"{\"status\": \"successful\"")
        .with_context(|| format!("{} does not end well", whole.display()))?;
    for number in 1..=files {
        let mut source = source.other(number);
        let path = if files == 1 { out.to_owned() } else { out.with_extension(number.to_string()) };
        let made = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut made = std::io::BufWriter::with_capacity(1 << 20, made);
        made.write_all(BEFORE.as_bytes())?;
        let mut line = Vec::new();
        for _ in 0..events {
            line.clear();
            source.line(&mut line);
            made.write_all(&line)?;
        }
        made.write_all(&stream[end..])?;
        made.flush()?;
    }
    Ok(())
}

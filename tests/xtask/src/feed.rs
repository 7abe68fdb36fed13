//! `xtask feed`: what the live benches start in place of a worker.
//!
//! Every unit takes one of the prepared streams `stream.N` of a folder for itself, waits there for the file `gate`, and prints
//! its stream: at once, or, where a file `rate` holds `events-per-second`, its events one by one at that rate, each with the
//! moment it was written in front of its output.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::probe::{drain_input, monotonic};

/// Pause between two looks at the gate.
const LOOK: Duration = Duration::from_millis(2);
/// Where the moment goes.
const OUTPUT: &[u8] = b"\"stdout\": \"";
/// In front of the moment: `"stdout":"@`, as the API prints it.
pub(crate) const MARK: &[u8] = b"\"stdout\":\"@";
/// Digits of the moment.
pub(crate) const DIGITS: usize = 20;

/// Arguments of the feed.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Folder with the streams.
    dir: PathBuf,
    /// Ignored: names the unit in the command line.
    unit: Option<PathBuf>,
}

/// Prints a stream.
///
/// # Errors
/// When there is none left, or a file cannot be read.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let stream = claim(&options.dir)?;
    if options.unit.is_some() {
        drain_input().context("cannot read the input")?;
    }
    let gate = options.dir.join("gate");
    while !gate.exists() {
        std::thread::sleep(LOOK);
    }
    match fs::read_to_string(options.dir.join("rate")) {
        Ok(rate) => paced(stream, rate.trim().parse().context("the rate is no number")?)?,
        Err(_) => {
            let mut stream = stream;
            io::copy(&mut stream, &mut stdout().lock()).context("cannot print the stream")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a stream that no other unit has.
fn claim(dir: &Path) -> anyhow::Result<File> {
    for entry in fs::read_dir(dir).context("no folder of streams")?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("stream.")) else { continue };
        let claimed = dir.join(format!("claimed.{number}"));
        if fs::rename(entry.path(), &claimed).is_ok() {
            return File::open(claimed).context("cannot open the stream");
        }
    }
    bail!("no stream is left in {}", dir.display())
}

fn paced(stream: File, rate: u64) -> anyhow::Result<()> {
    // A line at a time goes straight to the descriptor, as a worker writes.
    let mut out = stdout().lock();
    let mut events = 0;
    let began = monotonic();
    for line in BufReader::with_capacity(1 << 20, stream).split(b'\n') {
        let mut line = line.context("cannot read the stream")?;
        if let Some(at) = memchr::memmem::find(&line, OUTPUT) {
            let due = began + events * 1_000_000_000 / rate.max(1);
            events += 1;
            let now = monotonic();
            if due > now {
                std::thread::sleep(Duration::from_nanos(due - now));
            }
            let at = at + OUTPUT.len();
            let moment = format!("@{:0DIGITS$}", monotonic());
            line.splice(at..at, moment.into_bytes());
        }
        line.push(b'\n');
        out.write_all(&line).context("cannot print the stream")?;
    }
    Ok(())
}

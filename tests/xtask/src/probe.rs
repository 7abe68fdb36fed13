//! `xtask probe` and `xtask capture`: what the benches start in place of a worker.

use std::fs;
use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_MONOTONIC, the same in every process of the machine.
pub(crate) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    seconds.unwrap_or(0) * 1_000_000_000 + nanoseconds.unwrap_or(0)
}

/// Arguments of the probe.
#[derive(Debug, Args)]
pub(crate) struct Probe {
    /// File that gets the time of the first instruction.
    out: PathBuf,
    /// Captured stream to print afterwards, as a worker would.
    stream: PathBuf,
    /// Ignored: names the unit in the command line.
    dir: Option<PathBuf>,
}

/// Writes down when it began (`began` was taken first thing in `main`), reads its input to the end-of-file line, and prints a
/// stream.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn run(options: &Probe, began: u64) -> anyhow::Result<ExitCode> {
    // Written aside and renamed, so that a reader sees all of it or nothing.
    let aside = options.out.with_extension("new");
    fs::write(&aside, began.to_string()).context("cannot write the time")?;
    fs::rename(&aside, &options.out).context("cannot write the time")?;
    drain_input().context("cannot read the input")?;
    let stream = fs::read(&options.stream).context("cannot read the stream")?;
    stdout().write_all(&stream).context("cannot print the stream")?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of the capture.
#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// Folder that gets the payload: `private/` and `stdin`.
    out: PathBuf,
    /// Captured stream to print afterwards.
    stream: PathBuf,
    /// Private data directory of the unit.
    dir: PathBuf,
}

/// Copies the payload of a unit, links followed, and prints a stream.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn capture(options: &Capture) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&options.out).context("cannot make the folder")?;
    let input = drain_input().context("cannot read the input")?;
    copy(&options.dir, &options.out.join("private"))?;
    fs::write(options.out.join("stdin"), input).context("cannot keep the input")?;
    let stream = fs::read(&options.stream).context("cannot read the stream")?;
    stdout().write_all(&stream).context("cannot print the stream")?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of the flood.
#[derive(Debug, Args)]
pub(crate) struct Flood {
    /// Bytes to print.
    bytes: u64,
    /// Ignored: names the unit in the command line.
    dir: Option<PathBuf>,
}

/// Prints lines of 1 KiB, as a job prints its text.
///
/// # Errors
/// When nobody reads them.
pub(crate) fn flood(options: &Flood) -> anyhow::Result<ExitCode> {
    drain_input().context("cannot read the input")?;
    let mut line = vec![b'x'; 1023];
    line.push(b'\n');
    let piece = line.repeat(64);
    let mut out = stdout().lock();
    let mut left = options.bytes;
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        out.write_all(&piece[..size]).context("cannot print")?;
        left -= size as u64;
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies a folder with the permissions of its files.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?.flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Everything up to and with the line that ends a worker's input.
pub(crate) fn drain_input() -> std::io::Result<Vec<u8>> {
    let mut input = Vec::new();
    let mut reader = stdin().lock();
    loop {
        let start = input.len();
        let read = reader.read_until(b'\n', &mut input)?;
        if read == 0 || input[start..].windows(5).any(|word| word == b"\"eof\"") {
            return Ok(input);
        }
    }
}

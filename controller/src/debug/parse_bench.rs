//! Speed of the stream parser on one core, beside a ceiling measured in the same run.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::varied;
use crate::stream::{Item, Parser};

/// Bytes of varied stream that are parsed again and again: far more than a cache holds.
const VOLUME: usize = 64 * 1024 * 1024;

/// Measures and prints MB/s (millions of bytes a second), parser and ceiling by turns.
pub(super) fn run(path: &Path, seconds: f64, json: bool) -> anyhow::Result<()> {
    let stream = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!stream.is_empty(), "{} is empty", path.display());
    let pieces = varied::pieces(&stream, VOLUME, 1024 * 1024);
    let volume: usize = pieces.iter().map(Bytes::len).sum();
    let (mut samples, mut ceilings, mut events) = (Vec::new(), Vec::new(), 0);
    let end = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 3600.0));
    while samples.len() < 3 || Instant::now() < end {
        let start = Instant::now();
        events = parse(&pieces);
        samples.push(megabytes_a_second(volume, start.elapsed()));
        let start = Instant::now();
        let lines = split_and_check(&pieces);
        ceilings.push(megabytes_a_second(volume, start.elapsed()));
        ensure!(lines >= events, "the ceiling saw {lines} lines, the parser {events} events");
    }
    let (value, ceiling) = (median(&samples), median(&ceilings));
    let mut out = std::io::stdout().lock();
    if json {
        let report = serde_json::json!({
            "name": "first.parse_mb_s", "value": value, "unit": "MB/s", "better": "higher",
            "samples": samples, "baseline_samples": ceilings, "ceiling": ceiling, "bytes": volume, "events": events,
            "conditions": "one core; ceiling: lines by memchr, top level of each by serde_json RawValue",
        });
        writeln!(out, "{report}")?;
    } else {
        writeln!(
            out,
            "parser {value:.0} MB/s, ceiling {ceiling:.0} MB/s, {events} events in {volume} bytes"
        )?;
    }
    Ok(())
}

fn parse(pieces: &[Bytes]) -> u64 {
    let (mut parser, mut events, mut sum) = (Parser::new(), 0, 0u64);
    for piece in pieces {
        parser.push(piece, |item| {
            if let Item::Event(event) = item {
                events += 1;
                // What the store asks of every event.
                sum += (event.name().len() + event.uuid().len() + event.stdout_json().len()) as u64;
                sum += event.host().map_or(0, |host| host.len()) as u64
                    + event.task().map_or(0, |task| task.len()) as u64;
                sum +=
                    event.created().unwrap_or(0).unsigned_abs() + event.counter().unwrap_or(0).unsigned_abs();
                sum += u64::from(event.failed())
                    + u64::from(event.changed())
                    + event.event_data_json().len() as u64;
                sum += event.end_line().unwrap_or(0).unsigned_abs()
                    + event.parent_uuid().map_or(0, |uuid| uuid.len() as u64);
            }
        });
    }
    std::hint::black_box(sum);
    events
}

#[derive(Deserialize)]
struct TopLevel<'a> {
    #[serde(borrow)]
    event_data: Option<&'a RawValue>,
    #[serde(borrow)]
    stdout: Option<&'a RawValue>,
}

fn split_and_check(pieces: &[Bytes]) -> u64 {
    let (mut lines, mut sum) = (0, 0);
    for piece in pieces {
        let mut rest = &piece[..];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            if let Ok(line) = serde_json::from_slice::<TopLevel<'_>>(&rest[..end]) {
                sum += line.event_data.map_or(0, |raw| raw.get().len())
                    + line.stdout.map_or(0, |raw| raw.get().len());
                lines += 1;
            }
            rest = &rest[end + 1..];
        }
    }
    std::hint::black_box(sum);
    lines
}

fn megabytes_a_second(bytes: usize, time: Duration) -> f64 {
    (bytes as f64 / time.as_secs_f64() / 1e5).round() / 10.0
}

pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

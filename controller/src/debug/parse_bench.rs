//! Speed of the stream parser on one core, beside a ceiling measured in the same run.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::stream::{Item, Parser};

/// Bytes of varied stream that are parsed again and again: far more than a cache holds.
const VOLUME: usize = 64 * 1024 * 1024;
/// Bytes handed over at a time, as records bring them.
const PIECE: usize = 1024 * 1024;

/// Measures and prints MB/s (millions of bytes a second), parser and ceiling by turns.
pub(super) fn run(path: &Path, seconds: f64, json: bool) -> anyhow::Result<()> {
    let stream = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(!stream.is_empty(), "{} is empty", path.display());
    let pieces = pieces(&stream);
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

/// Copies of the stream's lines with other values, cut at line feeds into pieces. Artifacts are left out: they come once
/// in a job, at its end.
fn pieces(stream: &[u8]) -> Vec<Bytes> {
    let mut lines = Vec::new();
    let mut rest = stream;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at(end + 1);
        if line.starts_with(b"{\"zipfile\"") {
            break;
        }
        lines.push(line);
        rest = after;
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut pieces, mut piece, mut volume) = (Vec::new(), Vec::new(), 0);
    while volume < VOLUME && !lines.is_empty() {
        let mut words = HashMap::new();
        for line in &lines {
            let before = piece.len();
            vary(line, &mut piece, &mut words, &mut random);
            volume += piece.len() - before;
            if piece.len() >= PIECE {
                pieces.push(Bytes::from(std::mem::take(&mut piece)));
            }
        }
    }
    if !piece.is_empty() {
        pieces.push(Bytes::from(piece));
    }
    pieces
}

/// Replaces the digits of uuids, times, numbers and host names, the same word by the same word within one copy.
fn vary<'a>(line: &'a [u8], out: &mut Vec<u8>, words: &mut HashMap<&'a [u8], Vec<u8>>, random: &mut Random) {
    let mut at = 0;
    while at < line.len() {
        let length =
            line[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')).count();
        let word = &line[at..at + length];
        let is_escape = at > 0 && line[at - 1] == b'\\';
        if length == 0 {
            out.push(line[at]);
            at += 1;
            continue;
        }
        let digits = word.iter().filter(|b| b.is_ascii_digit()).count();
        let is_uuid = length == 36 && word.iter().filter(|&&b| b == b'-').count() == 4;
        // Minutes, seconds and fractions of a time are words of their own; its date stays one that exists.
        let is_date = !is_uuid && word.get(4) == Some(&b'-') && word.get(7) == Some(&b'-');
        if is_escape || is_date || (digits < 2 && !is_uuid) {
            out.extend_from_slice(word);
        } else {
            out.extend_from_slice(words.entry(word).or_insert_with(|| {
                word.iter().enumerate().map(|(place, &byte)| varied(place, byte, is_uuid, random)).collect()
            }));
        }
        at += length;
    }
}

fn varied(place: usize, byte: u8, is_uuid: bool, random: &mut Random) -> u8 {
    match byte {
        _ if is_uuid && byte.is_ascii_hexdigit() => b"0123456789abcdef"[(random.next() % 16) as usize],
        // A first digit stays, so that a number gains no leading zero and minutes stay below 60.
        b'1'..=b'9' if place > 0 => b'1' + (random.next() % 9) as u8,
        other => other,
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn megabytes_a_second(bytes: usize, time: Duration) -> f64 {
    (bytes as f64 / time.as_secs_f64() / 1e5).round() / 10.0
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

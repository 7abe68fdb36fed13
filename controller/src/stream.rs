//! The worker's standard output: bytes in, items out.
//!
//! [`Parser`] is pure: it holds what is unfinished (half a line, half a zip) and nothing else, never fails, and never
//! keeps more than [`LINE_MAX`] bytes. What it cannot read as an item comes out as [`Item::Noise`], so that no bad line
//! fails a job. Its state can be taken out and put back between any two bytes ([`Parser::snapshot`]).
//!
//! The grammar: lines of Python's JSON, told apart by the keys `status`, `zipfile`, `eof`, and otherwise events; after a
//! `zipfile` line comes base64 without a line feed behind it.

mod base64;
mod event;
mod normalise;
mod scan;
mod status;

use bytes::Bytes;

pub use self::event::Event;
pub use self::status::{RunnerStatus, Status};

use self::base64::{Decoder, Progress};
use self::normalise::{Ending, normalise};

/// A JSON object as Python writes it, in JSON as everybody reads it; `None` for what is no object.
pub fn normal_json(text: &[u8]) -> Option<Vec<u8>> {
    normalise(text, Ending::Whole)
}
use self::scan::scan;

/// Longest line kept in full. Of a longer one the beginning becomes a cut event and the rest is counted.
pub const LINE_MAX: usize = 16 * 1024 * 1024;
/// Longest beginning of a noise line that is kept.
pub const NOISE_MAX: usize = 4096;
/// Largest artifacts size a header may name. Beyond it the header is noise: nothing like it could ever arrive.
const ARTIFACTS_MAX: u64 = 1 << 50;

/// One thing the worker said.
#[derive(Debug, Clone)]
pub enum Item {
    /// A status line.
    Status(Box<Status>),
    /// An event.
    Event(Event),
    /// The worker is alive and has nothing to say.
    Keepalive,
    /// No item: its first bytes (at most [`NOISE_MAX`]), and how many they were.
    Noise {
        /// The beginning of the line, without its line feed.
        line: Bytes,
        /// Length of the whole line.
        length: u64,
    },
    /// Artifacts of this many bytes follow.
    ArtifactsStart(u64),
    /// Their next bytes.
    Artifacts(Bytes),
    /// They are complete.
    ArtifactsEnd,
    /// They broke off: what follows is no base64.
    ArtifactsBroken,
    /// The worker said all it had to say.
    Eof,
}

/// What a parser holds between two pushes, apart from [`Parser::partial`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Bytes of the line at hand beyond the kept beginning.
    pub skipped: u64,
    /// Whether the eof line was seen.
    pub eof: bool,
    /// Within artifacts: characters of base64 still to come, and those of an incomplete group (at most 3).
    pub artifacts: Option<(u64, Vec<u8>)>,
}

/// Incremental parser of one attempt's standard output.
#[derive(Debug, Clone, Default)]
pub struct Parser {
    /// Beginning of a line whose end has not come; at most [`LINE_MAX`] bytes.
    partial: Vec<u8>,
    /// Bytes of that line beyond those.
    skipped: u64,
    /// Within artifacts.
    artifacts: Option<Decoder>,
    eof: bool,
    /// Lines that were kept in part and are done.
    kept_lines: u64,
}

impl Parser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// A parser where another one stood.
    pub fn restore(snapshot: Snapshot, partial: Vec<u8>) -> Self {
        Self {
            partial,
            skipped: snapshot.skipped,
            eof: snapshot.eof,
            artifacts: snapshot.artifacts.map(|(remaining, group)| Decoder::restore(remaining, &group)),
            kept_lines: 0,
        }
    }

    /// All of its state but [`Parser::partial`]; less than 100 bytes.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            skipped: self.skipped,
            eof: self.eof,
            artifacts: self.artifacts.as_ref().map(|decoder| {
                let (remaining, group) = decoder.state();
                (remaining, group.to_vec())
            }),
        }
    }

    /// The kept beginning of the line at hand. It only grows until the line ends, then starts anew.
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// How often [`Self::partial`] started anew, of this very parser: while it is the same, what was there is there.
    pub fn partial_generation(&self) -> u64 {
        self.kept_lines
    }

    /// Whether the eof line was seen.
    pub fn is_eof(&self) -> bool {
        self.eof
    }

    /// Takes the next bytes. Items share them where they can: of a piece that holds whole lines nothing is copied.
    pub fn push(&mut self, bytes: &Bytes, mut sink: impl FnMut(Item)) {
        let mut at = 0;
        while at < bytes.len() {
            if self.artifacts.is_some() {
                at += self.push_artifacts(&bytes[at..], &mut sink);
                continue;
            }
            let rest = &bytes[at..];
            let Some(length) = memchr::memchr(b'\n', rest) else {
                self.keep(rest);
                return;
            };
            if self.partial.is_empty() && length <= LINE_MAX {
                self.line(bytes.slice(at..at + length), 0, &mut sink);
            } else {
                self.keep(&rest[..length]);
                self.kept_line(&mut sink);
            }
            at += length + 1;
        }
    }

    /// The stream is over: a last line without its line feed counts if it is whole.
    pub fn finish(&mut self, mut sink: impl FnMut(Item)) {
        if self.artifacts.take().is_some() {
            sink(Item::ArtifactsBroken);
        }
        if !self.partial.is_empty() {
            self.kept_line(&mut sink);
        }
    }

    fn push_artifacts(&mut self, rest: &[u8], sink: &mut impl FnMut(Item)) -> usize {
        let Some(decoder) = &mut self.artifacts else { return 0 };
        let mut out = Vec::with_capacity(rest.len() / 4 * 3 + 3);
        let progress = decoder.push(rest, &mut out);
        if !out.is_empty() {
            sink(Item::Artifacts(out.into()));
        }
        let (taken, last) = match progress {
            Progress::More => return rest.len(),
            Progress::Done(taken) => (taken, Item::ArtifactsEnd),
            Progress::Broken(taken) => (taken, Item::ArtifactsBroken),
        };
        self.artifacts = None;
        sink(last);
        taken
    }

    fn keep(&mut self, bytes: &[u8]) {
        let kept = bytes.len().min(LINE_MAX - self.partial.len().min(LINE_MAX));
        self.partial.extend_from_slice(&bytes[..kept]);
        self.skipped += (bytes.len() - kept) as u64;
    }

    fn kept_line(&mut self, sink: &mut impl FnMut(Item)) {
        self.kept_lines += 1;
        let line = std::mem::take(&mut self.partial);
        let skipped = std::mem::take(&mut self.skipped);
        self.line(line.into(), skipped, sink);
    }

    /// Tells a line's kind by its keys, in the order in which the runner's own reader asks.
    fn line(&mut self, line: Bytes, skipped: u64, sink: &mut impl FnMut(Item)) {
        let length = line.len() as u64 + skipped;
        let line = trim(&line);
        if line.is_empty() {
            return;
        }
        let noise =
            || Item::Noise { line: Bytes::copy_from_slice(&line[..line.len().min(NOISE_MAX)]), length };
        if self.eof {
            return sink(noise());
        }
        let (text, fields, normalised) = match scan(&line) {
            Ok(fields) if skipped == 0 => (line.clone(), fields, false),
            _ => {
                let ending = if skipped == 0 { Ending::Whole } else { Ending::Cut };
                let Some(strict) = normalise(&line, ending) else { return sink(noise()) };
                let Ok(fields) = scan(&strict) else { return sink(noise()) };
                (Bytes::from(strict), fields, true)
            }
        };
        if fields.status.is_present() {
            return sink(Status::read(&text).map_or_else(noise, |status| Item::Status(Box::new(status))));
        }
        if let Some(size) = fields.zipfile.of(&text) {
            return match artifacts(size) {
                Some((size, decoder)) => {
                    sink(Item::ArtifactsStart(size));
                    if decoder.is_done() {
                        return sink(Item::ArtifactsEnd);
                    }
                    self.artifacts = Some(decoder);
                }
                None => sink(noise()),
            };
        }
        if fields.eof.is_present() {
            self.eof = true;
            return sink(Item::Eof);
        }
        let event = Event::new(text, fields, normalised, (skipped > 0).then_some(length));
        sink(if event.is_keepalive() {
            Item::Keepalive
        } else if event.is_one() {
            Item::Event(event)
        } else {
            noise()
        });
    }
}

fn artifacts(size: &[u8]) -> Option<(u64, Decoder)> {
    let size = std::str::from_utf8(size).ok()?.parse().ok()?;
    if size > ARTIFACTS_MAX { None } else { Some((size, Decoder::new(size)?)) }
}

/// Without white space around: the carriage return of a terminal, mostly.
fn trim(line: &Bytes) -> Bytes {
    let trimmed = line.trim_ascii();
    if trimmed.len() == line.len() { line.clone() } else { line.slice_ref(trimmed) }
}

#[cfg(test)]
mod tests;

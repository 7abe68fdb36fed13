//! Captured streams with other values, so that nothing compresses, caches or predicts better than real output would.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bytes::Bytes;

/// Names the field that numbers a runner's events. It is the one number that is not varied but counted.
const COUNTER: &[u8] = b"\"counter\": ";

/// Lines without end, made from captured ones: uuids, times, numbers, hexadecimal and host names differ each time round, the
/// same word by the same word within one round, and events are numbered one after the other.
#[derive(Debug, Clone)]
pub(super) struct Source {
    lines: Vec<Vec<u8>>,
    /// Mean length of an event that shorter ones are brought to, by output of a command; 0 leaves them as they are.
    target: usize,
    at: usize,
    counter: u64,
    words: HashMap<Vec<u8>, Vec<u8>>,
    random: Random,
}

impl Source {
    /// All lines of a captured stream up to its artifacts.
    pub(super) fn whole(stream: &[u8]) -> Self {
        Self::of(lines(stream).map(<[u8]>::to_vec).collect(), 0)
    }

    /// Only the events of the captured streams at `path` — a file, or a folder of cases — brought to a mean length near
    /// `bytes`: where the captured ones are longer, the longest are left out; where they are shorter, each gets the output of
    /// a command, once as text and once by lines, as modules return it.
    ///
    /// # Errors
    /// Files that cannot be read or hold no events.
    pub(super) fn events(path: &Path, bytes: usize) -> anyhow::Result<Self> {
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            let entries =
                std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
            files = entries.flatten().map(|entry| entry.path().join("worker.bin")).collect();
            files.retain(|file| file.is_file());
            files.sort();
        }
        let mut events = Vec::new();
        for file in files {
            let stream = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            events.extend(
                lines(&stream)
                    .filter(|line| line.starts_with(b"{\"uuid\"") && line.ends_with(b"}\n"))
                    .map(<[u8]>::to_vec),
            );
        }
        ensure!(!events.is_empty(), "{} holds no events", path.display());
        let mean = |events: &[Vec<u8>]| events.iter().map(Vec::len).sum::<usize>() / events.len();
        if bytes == 0 || mean(&events) < bytes {
            return Ok(Self::of(events, bytes));
        }
        let mut lengths: Vec<usize> = events.iter().map(Vec::len).collect();
        lengths.sort_unstable();
        let mut sum = 0;
        // The shortest events whose mean stays below what is wanted.
        let fits = |(index, length): (usize, &usize)| {
            sum += length;
            (sum / (index + 1) <= bytes).then_some(*length)
        };
        let longest = lengths.iter().enumerate().map_while(fits).last();
        ensure!(longest.is_some(), "no captured event has {bytes} bytes or less");
        events.retain(|event| Some(event.len()) <= longest);
        Ok(Self::of(events, 0))
    }

    fn of(lines: Vec<Vec<u8>>, target: usize) -> Self {
        let random = Random(0x9e37_79b9_7f4a_7c15);
        Self { lines, target, at: 0, counter: 0, words: HashMap::new(), random }
    }

    /// The same lines with other values, numbered from the beginning.
    pub(super) fn other(&self, seed: u64) -> Self {
        let mut other = Self::of(self.lines.clone(), self.target);
        other.random.0 ^= seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        other
    }

    /// Appends the next line.
    pub(super) fn line(&mut self, out: &mut Vec<u8>) {
        if self.at == self.lines.len() {
            self.at = 0;
            self.words.clear();
        }
        let Some(line) = self.lines.get(self.at) else { return };
        self.at += 1;
        let start = out.len();
        match memchr::memmem::find(&line[..line.len().min(100)], COUNTER) {
            Some(found) => {
                let (before, rest) = line.split_at(found + COUNTER.len());
                let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                self.counter += 1;
                vary(before, out, &mut self.words, &mut self.random);
                out.extend_from_slice(self.counter.to_string().as_bytes());
                vary(&rest[digits..], out, &mut self.words, &mut self.random);
            }
            None => vary(line, out, &mut self.words, &mut self.random),
        }
        let length = out.len() - start;
        if self.target > length + 100 && out.ends_with(b"\"}}\n") {
            out.truncate(out.len() - 3);
            self.random.output(self.target - length, out);
            out.extend_from_slice(b"}}\n");
        }
    }

    /// Lines of `size` bytes together and some.
    pub(super) fn piece(&mut self, size: usize) -> Bytes {
        let mut piece = Vec::with_capacity(size + 4096);
        while piece.len() < size && !self.lines.is_empty() {
            self.line(&mut piece);
        }
        piece.into()
    }
}

/// `volume` bytes of a stream's lines with other values and some, in pieces of `size` bytes and some, cut at line feeds.
/// Artifacts are left out: they come once in a job, at its end.
pub(super) fn pieces(stream: &[u8], volume: usize, size: usize) -> Vec<Bytes> {
    let mut source = Source::whole(stream);
    let (mut pieces, mut made) = (Vec::new(), 0);
    while made < volume && !source.lines.is_empty() {
        let piece = source.piece(size);
        made += piece.len();
        pieces.push(piece);
    }
    pieces
}

/// Lines up to the artifacts, with their line feeds.
fn lines(stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    stream
        .split_inclusive(|&byte| byte == b'\n')
        .take_while(|line| line.ends_with(b"\n") && !line.starts_with(b"{\"zipfile\""))
}

/// Replaces the digits of uuids, times, numbers and host names, the same word by the same word within one round.
fn vary(line: &[u8], out: &mut Vec<u8>, words: &mut HashMap<Vec<u8>, Vec<u8>>, random: &mut Random) {
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
        } else if let Some(varied) = words.get(word) {
            out.extend_from_slice(varied);
        } else {
            let other: Vec<u8> =
                word.iter().enumerate().map(|(place, &byte)| varied(place, byte, is_uuid, random)).collect();
            out.extend_from_slice(&other);
            words.insert(word.to_owned(), other);
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

#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// About `bytes` bytes of what a module returns of a command: its output, and the same by lines.
    fn output(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let mut lines = Vec::new();
        let mut made = 60;
        while made < bytes {
            let mut line = String::new();
            let [a, b, c] = [self.next(), self.next(), self.next()];
            let written = match a % 4 {
                0 => write!(
                    line,
                    "-rw-r--r--. 1 root root {:>7} Nov {:02} {:02}:{:02} app-{:08x}.conf",
                    b % 4_000_000,
                    1 + c % 28,
                    b % 24,
                    c % 60,
                    c as u32
                ),
                1 => write!(
                    line,
                    "Nov {:02} {:02}:{:02}:{:02} web{:03} systemd[{}]: Started session {} of user deploy",
                    1 + a % 28,
                    b % 24,
                    b % 60,
                    c % 60,
                    c % 500,
                    b % 65_536,
                    c % 90_000
                ),
                2 => write!(
                    line,
                    "tcp   LISTEN 0  128  10.{}.{}.{}:{}  users:((nginx,pid={},fd={}))",
                    b % 256,
                    c % 256,
                    a % 256,
                    c % 65_536,
                    b % 40_000,
                    c % 64
                ),
                _ => write!(line, "{:016x}{:016x}  /opt/app/releases/{}/bundle.tar.gz", b, c, a % 100_000),
            };
            written.expect("a string takes anything");
            made += 2 * line.len() + 7;
            lines.push(line);
        }
        let text = format!(
            ", \"res\": {{\"rc\": 0, \"stdout\": {}, \"stdout_lines\": {}}}",
            serde_json::Value::from(lines.join("\n")),
            serde_json::Value::from(lines)
        );
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Item, Parser};

    #[test]
    fn events_have_the_wanted_length_and_count_on() {
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/runner-streams");
        for (path, bytes) in [(cases.join("ten-hosts/worker.bin"), 2000), (cases, 500)] {
            let mut source = Source::events(&path, bytes).unwrap();
            let mut other = source.other(1);
            let piece = source.piece(3_000_000);
            assert_ne!(piece, other.piece(3_000_000));
            let (mut parser, mut counters) = (Parser::new(), Vec::new());
            parser.push(&piece, |item| match item {
                Item::Event(event) => counters.push(event.counter().unwrap()),
                other => panic!("{other:?}"),
            });
            assert!(counters.iter().copied().eq(1..=counters.len() as i64));
            let mean = piece.len() / counters.len();
            assert!(mean > bytes * 8 / 10 && mean < bytes * 12 / 10, "{mean} for {bytes}");
        }
    }
}

//! Captured streams with other values, so that nothing compresses, caches or predicts better than real output would.

use std::collections::HashMap;

use bytes::Bytes;

/// Copies of the stream's lines with other values, `volume` bytes and some, cut at line feeds into pieces of `size` bytes
/// and some. Artifacts are left out: they come once in a job, at its end.
pub(super) fn pieces(stream: &[u8], volume: usize, size: usize) -> Vec<Bytes> {
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
    let (mut pieces, mut piece, mut made) = (Vec::new(), Vec::new(), 0);
    while made < volume && !lines.is_empty() {
        let mut words = HashMap::new();
        for line in &lines {
            let before = piece.len();
            vary(line, &mut piece, &mut words, &mut random);
            made += piece.len() - before;
            if piece.len() >= size {
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

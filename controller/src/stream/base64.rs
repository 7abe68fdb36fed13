//! Incremental base64: the text after a zip header, as long as the header says, in pieces of any size.

use ::base64::{Engine, engine::general_purpose::STANDARD};

/// Decoder of one base64 text of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decoder {
    /// Characters still to come, white space not counted.
    remaining: u64,
    /// Characters of a group of four not yet complete.
    group: Vec<u8>,
}

/// What became of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// All of it was taken; more must come.
    More,
    /// The text is complete; it ended after this many bytes of the piece.
    Done(usize),
    /// At this byte stands what is no base64: the text broke off there.
    Broken(usize),
}

impl Decoder {
    /// Expects the text of `size` bytes; `None` when no such text could be sent.
    pub(super) fn new(size: u64) -> Option<Self> {
        let remaining = size.div_ceil(3).checked_mul(4)?;
        Some(Self { remaining, group: Vec::with_capacity(4) })
    }

    /// Goes on where another one stood.
    pub(super) fn restore(remaining: u64, group: &[u8]) -> Self {
        Self { remaining, group: group.iter().copied().take(3).collect() }
    }

    /// Characters still to come, and those of the group at hand.
    pub(super) fn state(&self) -> (u64, &[u8]) {
        (self.remaining, &self.group)
    }

    /// Whether the text is complete.
    pub(super) fn is_done(&self) -> bool {
        self.remaining == 0
    }

    /// Takes the next piece and appends the bytes it completes to `out`.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Progress {
        let mut at = 0;
        loop {
            at += self.whole_groups(&piece[at..], out);
            if self.remaining == 0 {
                return Progress::Done(at);
            }
            // One character by hand: white space, the rest of a group, or trouble.
            let Some(&byte) = piece.get(at) else { return Progress::More };
            if byte.is_ascii_whitespace() {
                at += 1;
                continue;
            }
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')) {
                return Progress::Broken(at);
            }
            self.group.push(byte);
            self.remaining -= 1;
            at += 1;
            if self.group.len() == 4 {
                let Ok(bytes) = STANDARD.decode(&self.group) else { return Progress::Broken(at) };
                out.extend_from_slice(&bytes);
                self.group.clear();
            }
        }
    }

    /// Decodes whole groups from the front of `piece` at full speed, as far as nothing unusual stands there.
    fn whole_groups(&mut self, piece: &[u8], out: &mut Vec<u8>) -> usize {
        if !self.group.is_empty() {
            return 0;
        }
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(piece.len());
        let taken = most - most % 4;
        let before = out.len();
        if taken == 0 || STANDARD.decode_vec(&piece[..taken], out).is_err() {
            out.truncate(before);
            return 0;
        }
        self.remaining -= taken as u64;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cut_gives_the_same_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1usize..50, blanks in any::<bool>()) {
            let mut text = STANDARD.encode(&bytes);
            if blanks {
                text = text.chars().flat_map(|c| [c, '\n']).collect();
            }
            let (mut decoder, mut out) = (Decoder::new(bytes.len() as u64).unwrap(), Vec::new());
            for piece in text.as_bytes().chunks(cut) {
                let (remaining, group) = decoder.state();
                decoder = Decoder::restore(remaining, group);
                prop_assert!(!matches!(decoder.push(piece, &mut out), Progress::Broken(_)));
            }
            prop_assert!(decoder.is_done());
            prop_assert_eq!(out, bytes);
        }
    }

    #[test]
    fn what_follows_is_left_alone() {
        let (mut decoder, mut out) = (Decoder::new(3).unwrap(), Vec::new());
        assert_eq!(decoder.push(b"YWJj{\"eof\"", &mut out), Progress::Done(4));
        assert_eq!(out, b"abc");
    }

    #[test]
    fn a_text_that_breaks_off_says_where() {
        let (mut decoder, mut out) = (Decoder::new(30).unwrap(), Vec::new());
        assert_eq!(decoder.push(b"YWJjYW{\"eof\"", &mut out), Progress::Broken(6));
        assert_eq!(out, b"abc");
        assert!(Decoder::new(u64::MAX).is_none());
    }
}

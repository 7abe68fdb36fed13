//! Cuts a worker's output into records at line feeds.

use plexus_proto::work::Fragment;

/// A line beyond this is passed on in fragments, so that neither shim nor controller must hold a line whole.
pub const LINE_BYTES: usize = 1 << 20;

/// Holds the piece of a line whose end has not come yet; at most [`LINE_BYTES`] and one read.
#[derive(Debug, Default)]
pub struct Cutter {
    carry: Vec<u8>,
    in_fragments: bool,
}

/// One record's worth of output.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Whole lines, or a part of one.
    pub data: Vec<u8>,
    /// Which.
    pub fragment: Fragment,
}

impl Cutter {
    /// Takes the next bytes of the stream; yields what is complete, in order.
    pub fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Piece)) {
        if self.in_fragments
            && let Some(end) = bytes.iter().position(|&byte| byte == b'\n')
        {
            let (rest_of_line, rest) = bytes.split_at(end + 1);
            self.carry.extend_from_slice(rest_of_line);
            self.in_fragments = false;
            emit(Piece { data: std::mem::take(&mut self.carry), fragment: Fragment::Last });
            bytes = rest;
        }
        if !self.in_fragments
            && let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n')
        {
            let (lines, rest) = bytes.split_at(end + 1);
            let mut data = std::mem::take(&mut self.carry);
            data.extend_from_slice(lines);
            emit(Piece { data, fragment: Fragment::Whole });
            bytes = rest;
        }
        self.carry.extend_from_slice(bytes);
        if self.carry.len() >= LINE_BYTES {
            let fragment = if self.in_fragments { Fragment::More } else { Fragment::First };
            self.in_fragments = true;
            emit(Piece { data: std::mem::take(&mut self.carry), fragment });
        }
    }

    /// The stream ended; yields what is left, a line without its line feed.
    pub fn finish(&mut self) -> Option<Piece> {
        if self.carry.is_empty() && !self.in_fragments {
            return None;
        }
        let fragment = if self.in_fragments { Fragment::Last } else { Fragment::Whole };
        self.in_fragments = false;
        Some(Piece { data: std::mem::take(&mut self.carry), fragment })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(stream: &[u8], sizes: &[usize]) -> Vec<Piece> {
        let (mut cutter, mut pieces, mut rest) = (Cutter::default(), Vec::new(), stream);
        for &size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(size.min(rest.len()));
            cutter.push(now, |piece| pieces.push(piece));
            rest = later;
        }
        pieces.extend(cutter.finish());
        pieces
    }

    #[test]
    fn lines_of_one_read_are_one_record() {
        let pieces = cut(b"a\nb\nc", &[100]);
        assert_eq!(
            pieces,
            [
                Piece { data: b"a\nb\n".to_vec(), fragment: Fragment::Whole },
                Piece { data: b"c".to_vec(), fragment: Fragment::Whole },
            ]
        );
    }

    #[test]
    fn a_line_of_megabytes_comes_as_first_more_last() {
        let mut stream = vec![b'x'; 3 * LINE_BYTES];
        stream.extend_from_slice(b"y\nshort\n");
        let pieces = cut(&stream, &[64 << 10]);
        let kinds: Vec<_> = pieces.iter().map(|piece| piece.fragment).collect();
        assert_eq!(kinds, [Fragment::First, Fragment::More, Fragment::More, Fragment::Last, Fragment::Whole]);
        assert_eq!(pieces[3].data, b"y\n");
        assert!(pieces.iter().all(|piece| piece.data.len() <= LINE_BYTES + (64 << 10)));
    }

    #[test]
    fn a_long_line_without_end_is_closed_at_the_end() {
        let pieces = cut(&vec![b'x'; LINE_BYTES], &[64 << 10]);
        assert_eq!(pieces.last().unwrap(), &Piece { data: Vec::new(), fragment: Fragment::Last });
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_whole_records_end_with_a_line(
            lines in prop::collection::vec((0usize..40, 0u8..30), 0..40),
            sizes in prop::collection::vec(1usize..300_000, 1..6),
            ends in any::<bool>(),
        ) {
            let mut stream = Vec::new();
            for (length, scale) in lines {
                // Most lines are short; a few are longer than the limit.
                let length = if scale == 0 { length * 60_000 } else { length };
                stream.extend(std::iter::repeat_n(b'a', length));
                stream.push(b'\n');
            }
            if ends {
                stream.extend_from_slice(b"tail");
            }
            let pieces = cut(&stream, &sizes);
            let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.data.clone()).collect();
            prop_assert!(joined == stream);
            let last = pieces.len().saturating_sub(1);
            let mut open = false;
            for (index, piece) in pieces.iter().enumerate() {
                match piece.fragment {
                    Fragment::Whole => prop_assert!(!open && (piece.data.ends_with(b"\n") || index == last)),
                    Fragment::First => { prop_assert!(!open); open = true; }
                    Fragment::More => prop_assert!(open),
                    Fragment::Last => {
                        prop_assert!(open && (piece.data.ends_with(b"\n") || index == last));
                        open = false;
                    }
                }
            }
            prop_assert!(!open);
        }
    }
}

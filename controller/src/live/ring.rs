//! The newest events of a watched job, in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Frame;

/// Events read in one go, in order and without holes; never empty.
pub(crate) type Piece = Arc<[Frame]>;

/// Pieces in order; the oldest go when they take more than `room` bytes together. The newest stays, however large.
#[derive(Debug)]
pub(super) struct Ring {
    pieces: VecDeque<(Piece, usize)>,
    bytes: usize,
    room: usize,
}

impl Ring {
    pub(super) fn new(room: usize) -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, room }
    }

    /// Adds what follows the newest piece.
    pub(super) fn push(&mut self, piece: Piece) {
        let bytes = piece.iter().map(|frame| frame.json.len()).sum();
        self.bytes += bytes;
        self.pieces.push_back((piece, bytes));
        while self.bytes > self.room && self.pieces.len() > 1 {
            if let Some((_, bytes)) = self.pieces.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// The piece with event `counter`, if that is still here.
    pub(super) fn find(&self, counter: i64) -> Option<Piece> {
        let at =
            self.pieces.partition_point(|(piece, _)| piece.last().is_some_and(|last| last.counter < counter));
        let (piece, _) = self.pieces.get(at)?;
        piece.first().is_some_and(|first| first.counter <= counter).then(|| Arc::clone(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(counters: std::ops::RangeInclusive<i64>) -> Piece {
        counters.map(|counter| Frame { counter, json: "0123456789".into() }).collect()
    }

    #[test]
    fn the_newest_stay() {
        let mut ring = Ring::new(60);
        assert!(ring.find(1).is_none());
        for (from, to) in [(5, 6), (7, 7), (8, 10)] {
            ring.push(piece(from..=to));
        }
        let first = |counter| ring.find(counter).map(|piece| piece[0].counter);
        assert_eq!(
            [4, 5, 6, 7, 8, 10, 11].map(first),
            [None, Some(5), Some(5), Some(7), Some(8), Some(8), None]
        );
        ring.push(piece(11..=12));
        let first = |counter| ring.find(counter).map(|piece| piece[0].counter);
        assert_eq!([6, 7, 12].map(first), [None, Some(7), Some(11)]);
        ring.push(piece(13..=30));
        let first = |counter| ring.find(counter).map(|piece| piece[0].counter);
        assert_eq!([12, 13, 30].map(first), [None, Some(13), Some(13)], "the newest stays, however large");
    }
}

//! Bodies of events in blocks: what is too large for a narrow row, up to 64 events together, by columns, compressed.
//!
//! A body is raw JSON as the runner wrote it — standard output and event_data — and the runner's own counter. Plain
//! form: version, number of events, then per event its runner counter (as a difference to the store's, 0 for none,
//! zigzag otherwise plus one) and both lengths as varints, then all outputs, then all data.

use std::ops::Range;

use bytes::Bytes;

/// Most events of a block: beyond it compression hardly gains, and each read inflates more than it wants.
pub(super) const EVENTS_MAX: usize = 64;
/// A block takes no further event beyond this plain size, so that one large event does not burden its neighbours.
pub(super) const SIZE_MAX: usize = 256 * 1024;
/// Largest plain size that is inflated: a block of one event of the longest line, as long as normalising may make it.
const INFLATED_MAX: usize = 80 * 1024 * 1024;
const VERSION: u8 = 1;
const LEVEL: i32 = 1;

/// What is stored of an event beside its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    /// JSON string, quotes included.
    pub(super) stdout: Bytes,
    /// JSON.
    pub(super) event_data: Bytes,
    /// The runner's counter.
    pub(super) counter: Option<i64>,
}

impl Body {
    /// A body with nothing in it.
    pub(super) fn empty() -> Self {
        Self { stdout: Bytes::from_static(b"\"\""), event_data: Bytes::from_static(b"{}"), counter: None }
    }
}

/// Bodies of events that follow each other, the last of a job: still growing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tail {
    /// Counter of its first event.
    pub(super) first: i64,
    bodies: Vec<Body>,
    size: usize,
}

impl Tail {
    /// A tail without events; the next one is number `first`.
    pub(super) fn new(first: i64) -> Self {
        Self { first, bodies: Vec::new(), size: 0 }
    }

    /// Whether it takes a body of this size.
    pub(super) fn has_room(&self, body: &Body) -> bool {
        self.bodies.is_empty() || (self.bodies.len() < EVENTS_MAX && self.size + size(body) <= SIZE_MAX)
    }

    pub(super) fn push(&mut self, body: Body) {
        self.size += size(&body);
        self.bodies.push(body);
    }

    /// Number of its last event.
    pub(super) fn last(&self) -> i64 {
        self.first + self.bodies.len() as i64 - 1
    }
}

fn size(body: &Body) -> usize {
    body.stdout.len() + body.event_data.len()
}

/// A compressed block and its plain size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) first: i64,
    pub(super) last: i64,
    pub(super) size: i64,
    pub(super) data: Vec<u8>,
}

/// Compresses blocks; keeps its working memory.
pub(super) struct Packer {
    compressor: zstd::bulk::Compressor<'static>,
    plain: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> Self {
        let compressor = zstd::bulk::Compressor::new(LEVEL).expect("level 1 exists");
        Self { compressor, plain: Vec::new() }
    }

    pub(super) fn pack(&mut self, tail: &Tail) -> Block {
        let plain = &mut self.plain;
        plain.clear();
        plain.push(VERSION);
        push_varint(plain, tail.bodies.len() as u64);
        for (body, number) in tail.bodies.iter().zip(tail.first..) {
            push_varint(
                plain,
                body.counter.map_or(0, |counter| zigzag(counter.wrapping_sub(number)).saturating_add(1)),
            );
            push_varint(plain, body.stdout.len() as u64);
            push_varint(plain, body.event_data.len() as u64);
        }
        tail.bodies.iter().for_each(|body| plain.extend_from_slice(&body.stdout));
        tail.bodies.iter().for_each(|body| plain.extend_from_slice(&body.event_data));
        let data =
            self.compressor.compress(plain).expect("memory is the only thing that compression may lack");
        let size = plain.len() as i64;
        if plain.capacity() > 4 * SIZE_MAX {
            *plain = Vec::new();
        }
        Block { first: tail.first, last: tail.last(), size, data }
    }
}

/// A block opened for reading.
#[derive(Debug)]
pub(super) struct Opened {
    first: i64,
    plain: Bytes,
    bodies: Vec<(Range<usize>, Range<usize>, Option<i64>)>,
}

impl Opened {
    /// Inflates a block; `None` when it is damaged.
    pub(super) fn open(first: i64, size: i64, data: &[u8]) -> Option<Self> {
        let size = usize::try_from(size).ok().filter(|&size| size <= INFLATED_MAX)?;
        let plain = Bytes::from(zstd::bulk::decompress(data, size).ok()?);
        let mut rest = &plain[..];
        if plain.len() != size || take_byte(&mut rest)? != VERSION {
            return None;
        }
        let count = usize::try_from(take_varint(&mut rest)?).ok().filter(|&count| count <= EVENTS_MAX)?;
        let mut heads = Vec::with_capacity(count);
        for number in (first..).take(count) {
            let counter = take_varint(&mut rest)?;
            let counter = counter.checked_sub(1).map(|delta| unzigzag(delta).wrapping_add(number));
            heads.push((counter, take_length(&mut rest)?, take_length(&mut rest)?));
        }
        let mut stdout_at = size - rest.len();
        let mut data_at = heads.iter().try_fold(stdout_at, |at, (_, stdout, _)| at.checked_add(*stdout))?;
        let mut bodies = Vec::with_capacity(count);
        for (counter, stdout, data) in heads {
            let data_end = data_at.checked_add(data)?;
            bodies.push((stdout_at..stdout_at + stdout, data_at..data_end, counter));
            (stdout_at, data_at) = (stdout_at + stdout, data_end);
        }
        (data_at == size).then_some(Self { first, plain, bodies })
    }

    /// Number of its first event.
    pub(super) fn first(&self) -> i64 {
        self.first
    }

    /// Number of its last event.
    pub(super) fn last(&self) -> i64 {
        self.first + self.bodies.len() as i64 - 1
    }

    /// Body of the event with this number.
    pub(super) fn body(&self, number: i64) -> Option<Body> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let (stdout, data, counter) = self.bodies.get(index)?;
        Some(Body {
            stdout: self.plain.slice(stdout.clone()),
            event_data: self.plain.slice(data.clone()),
            counter: *counter,
        })
    }

    /// Goes on where the block ends; `None` when it is full.
    pub(super) fn into_tail(self) -> Option<Tail> {
        let mut tail = Tail::new(self.first);
        for number in (self.first..).take(self.bodies.len()) {
            tail.push(self.body(number)?);
        }
        (tail.bodies.len() < EVENTS_MAX && tail.size < SIZE_MAX).then_some(tail)
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_byte(rest: &mut &[u8]) -> Option<u8> {
    let (byte, after) = rest.split_first()?;
    *rest = after;
    Some(*byte)
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(rest)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_length(rest: &mut &[u8]) -> Option<usize> {
    usize::try_from(take_varint(rest)?).ok().filter(|&length| length <= INFLATED_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body() -> impl Strategy<Value = Body> {
        let counter = prop::option::of(-(1i64 << 60)..1 << 60);
        (prop::collection::vec(any::<u8>(), 0..50), prop::collection::vec(any::<u8>(), 0..50), counter)
            .prop_map(|(stdout, data, counter)| Body {
                stdout: stdout.into(),
                event_data: data.into(),
                counter,
            })
    }

    proptest! {
        #[test]
        fn bodies_come_back_as_they_went_in(bodies in prop::collection::vec(body(), 1..=EVENTS_MAX), first in 1i64..1 << 40) {
            let mut tail = Tail::new(first);
            bodies.iter().for_each(|body| tail.push(body.clone()));
            let block = Packer::new().pack(&tail);
            prop_assert_eq!((block.first, block.last), (first, first + bodies.len() as i64 - 1));
            let opened = Opened::open(block.first, block.size, &block.data).expect("whole");
            for (number, body) in (first..).zip(&bodies) {
                let stored = opened.body(number);
                prop_assert_eq!(stored.as_ref(), Some(body));
            }
            prop_assert_eq!(opened.body(first - 1), None);
            prop_assert_eq!(opened.body(block.last + 1), None);
            if bodies.len() < EVENTS_MAX {
                prop_assert!(opened.into_tail().is_some());
            }
        }

        #[test]
        fn any_bytes_open_or_do_not(plain in prop::collection::vec(any::<u8>(), 0..200)) {
            let data = zstd::bulk::compress(&plain, 1).unwrap();
            if let Some(opened) = Opened::open(1, plain.len() as i64, &data) {
                let _ = opened.into_tail();
            }
            prop_assert!(Opened::open(1, plain.len() as i64, &plain).is_none());
        }
    }

    #[test]
    fn a_block_is_full_by_number_or_by_size() {
        let small = Body {
            stdout: Bytes::from_static(b"\"\""),
            event_data: Bytes::from_static(b"{}"),
            counter: None,
        };
        let large = Body { stdout: vec![b'x'; SIZE_MAX + 1].into(), ..small.clone() };
        let mut tail = Tail::new(1);
        assert!(tail.has_room(&large), "an empty block takes anything");
        for _ in 0..EVENTS_MAX {
            assert!(tail.has_room(&small) && tail.has_room(&large) == tail.bodies.is_empty());
            tail.push(small.clone());
        }
        assert!(!tail.has_room(&small));
        let block = Packer::new().pack(&tail);
        assert!(Opened::open(1, block.size, &block.data).unwrap().into_tail().is_none());
    }
}

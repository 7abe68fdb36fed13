//! Overlay packets that travel together: side by side in one buffer, with room around each for a seal.
//!
//! ```text
//!  slot 0                              slot 1                       last slot, perhaps shorter
//!  4 bytes  packet           16 bytes | 4 bytes  packet  16 bytes | …
//!  room     header and body  room
//! ```
//!
//! Packets that an inner connection sent together stay together from its socket to the peer's: copied once at each
//! end, opened and sealed again in place at hops, one system call a batch. All packets of a batch have the same header.

use bytes::{BufMut, Bytes, BytesMut};
use plexus_proto::packet::{Error, HEADER_LEN, Header};

/// Room in front of a packet: the counter of a sealed one.
pub(crate) const FRONT: usize = 4;
/// Room behind a packet: the tag of a sealed one.
pub(crate) const BACK: usize = 16;
/// Both.
pub(crate) const ROOM: usize = FRONT + BACK;
/// Packets in a batch at most: what UDP segmentation takes in one call.
pub(crate) const PACKETS_MAX: usize = 64;
/// Bytes in a batch that was gathered here, at most.
const GATHER_MAX: usize = 60_000;

/// Packets with one header and, but for the last, of one size.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: BytesMut,
    stride: usize,
    header: Header,
}

impl Batch {
    /// Packets of `header` and the pieces of `bodies`, each of `size` bytes but for the last.
    pub(crate) fn build(header: Header, bodies: &[u8], size: usize) -> Self {
        let size = size.max(1);
        let stride = size + HEADER_LEN + ROOM;
        let count = bodies.len().div_ceil(size);
        let mut buffer = BytesMut::with_capacity(bodies.len() + count * (HEADER_LEN + ROOM));
        let front = header.encode();
        for body in bodies.chunks(size) {
            put(&mut buffer, &front, body);
        }
        Self { buffer, stride, header }
    }

    /// One packet.
    pub(crate) fn one(header: Header, body: &[u8]) -> Self {
        Self::build(header, body, body.len())
    }

    /// Takes `buffer` for slots of `stride` bytes, all of which have the header of the first. The caller has made sure of
    /// that.
    ///
    /// # Errors
    /// No whole slot, or a first packet that is none.
    pub(crate) fn of_slots(buffer: BytesMut, stride: usize) -> Result<Self, Error> {
        let first = buffer.len().min(stride);
        let packet = buffer.get(FRONT..first.saturating_sub(BACK)).ok_or(Error::Short(first))?;
        let header = Header::decode(packet)?;
        Ok(Self { buffer, stride, header })
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// How many packets there are.
    pub(crate) fn count(&self) -> usize {
        self.buffer.len().div_ceil(self.stride)
    }

    /// Bytes that it holds, room included.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes of its largest packet.
    pub(crate) fn packet_len(&self) -> usize {
        self.buffer.len().min(self.stride).saturating_sub(ROOM)
    }

    /// Bytes from one slot to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Body by body.
    pub(crate) fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        self.buffer.chunks(self.stride).map(|slot| &slot[FRONT + HEADER_LEN..slot.len() - BACK])
    }

    /// The body at `index`, which is below [`Batch::count`].
    pub(crate) fn body(&self, index: usize) -> &[u8] {
        let start = index * self.stride;
        let end = self.buffer.len().min(start + self.stride);
        &self.buffer[start + FRONT + HEADER_LEN..end - BACK]
    }

    /// Writes `limit` into every header.
    pub(crate) fn set_hop_limit(&mut self, limit: u8) {
        self.header.hop_limit = limit;
        for slot in self.buffer.chunks_mut(self.stride) {
            slot[FRONT + 1] = limit;
        }
    }

    /// Takes the first packet off; the bytes are shared, not copied.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        if self.buffer.is_empty() {
            return None;
        }
        let slot = self.buffer.split_to(self.stride.min(self.buffer.len())).freeze();
        Some(slot.slice(FRONT..slot.len() - BACK))
    }

    /// Leaves at most `count` packets here and returns the rest, if there is one.
    pub(crate) fn split_after(&mut self, count: usize) -> Option<Self> {
        let at = count.max(1) * self.stride;
        let (stride, header) = (self.stride, self.header);
        (at < self.buffer.len()).then(|| Self { buffer: self.buffer.split_off(at), stride, header })
    }

    /// Takes back what [`Batch::split_after`] has split off.
    pub(crate) fn rejoin(&mut self, rest: Self) {
        self.buffer.unsplit(rest.buffer);
    }

    /// As [`Batch::of_slots`], for slots that nobody has looked at yet.
    ///
    /// # Errors
    /// Slots that are no packets, or packets of several headers.
    pub(crate) fn checked(buffer: BytesMut, stride: usize) -> Result<Self, Error> {
        let least = HEADER_LEN + ROOM;
        if stride < least || (1..least).contains(&(buffer.len() % stride)) {
            return Err(Error::Short(stride));
        }
        let batch = Self::of_slots(buffer, stride)?;
        let front = batch.header.encode();
        let same = batch.buffer.chunks(stride).all(|slot| slot[FRONT..FRONT + HEADER_LEN] == front);
        if same { Ok(batch) } else { Err(Error::Class) }
    }

    /// The slots, rooms and all.
    pub(crate) fn slots_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.buffer.chunks_mut(self.stride)
    }

    /// All slots as they lie in memory.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.buffer
    }
}

fn put(buffer: &mut BytesMut, header: &[u8; HEADER_LEN], body: &[u8]) {
    buffer.put_bytes(0, FRONT);
    buffer.put_slice(header);
    buffer.put_slice(body);
    buffer.put_bytes(0, BACK);
}

/// Makes batches of packets that come one by one.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    buffer: BytesMut,
    stride: usize,
    front: [u8; HEADER_LEN],
    /// A shorter packet has come: it is the last.
    ended: bool,
}

impl Gather {
    /// Adds `packet`; returns the batch before it if it does not belong there.
    ///
    /// # Errors
    /// Bytes that are no packet; what was gathered stays.
    pub(crate) fn push(&mut self, packet: &[u8]) -> Result<Option<Batch>, Error> {
        let front = *packet.first_chunk::<HEADER_LEN>().ok_or(Error::Short(packet.len()))?;
        let slot = packet.len() + ROOM;
        let belongs = !self.buffer.is_empty()
            && !self.ended
            && front == self.front
            && slot <= self.stride
            && self.buffer.len() + slot <= GATHER_MAX
            && self.buffer.len() < self.stride * PACKETS_MAX;
        let mut before = None;
        if !belongs {
            Header::decode(packet)?;
            before = self.take();
            (self.front, self.stride) = (front, slot);
            // Most batches are as large as the one before; an allocation that grows would copy.
            let expected = before.as_ref().map_or(slot, Batch::bytes);
            self.buffer.reserve(expected.max(slot));
        }
        self.ended = slot < self.stride;
        put(&mut self.buffer, &front, &packet[HEADER_LEN..]);
        Ok(before)
    }

    /// What has been gathered.
    pub(crate) fn take(&mut self) -> Option<Batch> {
        self.ended = false;
        let buffer = std::mem::take(&mut self.buffer);
        (!buffer.is_empty()).then(|| Batch::of_slots(buffer, self.stride).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::id::Address;
    use plexus_proto::packet::Class;

    fn header(destination: u32) -> Header {
        Header {
            class: Class::Bulk,
            ecn: 0,
            rekey: false,
            hop_limit: 9,
            source: Address(1),
            destination: Address(destination),
        }
    }

    fn packets(mut batch: Batch) -> Vec<Bytes> {
        std::iter::from_fn(|| batch.pop()).collect()
    }

    #[test]
    fn a_batch_is_its_packets() {
        let mut batch = Batch::build(header(2), &[7; 25], 10);
        assert_eq!((batch.count(), batch.packet_len()), (3, HEADER_LEN + 10));
        assert_eq!(batch.bodies().map(<[u8]>::len).collect::<Vec<_>>(), [10, 10, 5]);
        assert_eq!(batch.body(2), [7; 5]);
        batch.set_hop_limit(3);
        let rest = batch.split_after(1).unwrap();
        assert_eq!((batch.count(), rest.count()), (1, 2));
        for packet in packets(batch).iter().chain(&packets(rest)) {
            assert_eq!(Header::decode(packet).unwrap(), Header { hop_limit: 3, ..header(2) });
        }
    }

    #[test]
    fn packets_are_gathered_while_header_and_size_stay() {
        let mut gather = Gather::default();
        let mut batches = Vec::new();
        let sizes = [(2, 100), (2, 100), (2, 40), (2, 40), (3, 40), (3, 50)];
        for (destination, size) in sizes {
            batches.extend(gather.push(&header(destination).packet(&vec![1; size])).unwrap());
        }
        batches.extend(gather.take());
        let shapes: Vec<Vec<usize>> =
            batches.iter().map(|batch| batch.bodies().map(<[u8]>::len).collect()).collect();
        assert_eq!(shapes, [vec![100, 100, 40], vec![40], vec![40], vec![50]]);
        assert!(gather.take().is_none());
    }

    #[test]
    fn gathered_batches_are_bounded() {
        let mut gather = Gather::default();
        let packet = header(2).packet(&[1; 10]);
        let first = (0..).find_map(|_| gather.push(&packet).unwrap()).unwrap();
        assert_eq!(first.count(), PACKETS_MAX);
        let packet = header(2).packet(&vec![1; 15_000]);
        gather.take();
        let first = (0..).find_map(|_| gather.push(&packet).unwrap()).unwrap();
        assert!(first.bytes() <= GATHER_MAX);
    }

    #[test]
    fn what_is_no_packet_is_refused_and_disturbs_nothing() {
        let mut gather = Gather::default();
        gather.push(&header(2).packet(b"one")).unwrap();
        for bytes in [&b""[..], b"x", &[0xff; 40], &[0x30; 40], &[0x0c; 40]] {
            assert!(gather.push(bytes).is_err());
        }
        assert_eq!(gather.take().unwrap().body(0), b"one");
        assert!(Batch::of_slots(BytesMut::new(), 100).is_err());
        assert!(Batch::of_slots(BytesMut::zeroed(19), 100).is_err());
        assert!(Batch::of_slots(BytesMut::zeroed(100), 20).is_err());
    }
}

//! The socket under an inner connection: overlay packets to and from one peer, in one class.
//!
//! Everything that depends on quinn's [`AsyncUdpSocket`] is here. quinn hands over batches of equal segments as it
//! would for UDP segmentation offload; each segment becomes one overlay packet, and packets of equal size that arrived
//! together go back to quinn as one batch, which may be several of the overlay's.
//!
//! The peer's address is shown to quinn as a made-up IPv6 address, which carries no meaning outside this file.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use plexus_proto::id::Address;
use plexus_proto::packet::Class;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::batch::Batch;
use crate::busy::Busy;
use crate::forward::Overlay;

/// Segments per batch to send. quinn builds batches of at most ten.
const SEGMENTS: usize = 10;
/// Packets in 10 ms from which on they are gathered, 3 MB/s on most paths: more than a handshake, and what is said at rest.
const BUSY: u64 = 24;
/// Packets that may wait for quinn to take them; more than the peer may have in flight on a near path. What exceeds it
/// is dropped, and the peer slows down.
const INBOUND_BYTES: usize = 4 * 1024 * 1024;

/// One peer and class as a UDP socket.
#[derive(Debug)]
pub(crate) struct VirtualSocket {
    overlay: Arc<Overlay>,
    peer: Address,
    class: Class,
    busy: Busy,
    inbound: Mutex<Inbound>,
}

#[derive(Debug, Default)]
struct Inbound {
    batches: VecDeque<Batch>,
    /// Packets of the front batch that have been read.
    read: usize,
    bytes: usize,
    /// Packets taken since the start.
    heard: u64,
    waker: Option<Waker>,
}

/// The peer's overlay address as quinn sees it.
pub(crate) fn socket_address(address: Address) -> SocketAddr {
    let [a, b, c, d] = address.0.to_be_bytes();
    let word = |high, low| u16::from_be_bytes([high, low]);
    let ip = Ipv6Addr::new(0xfd70, 0x6c65, 0x7875, 0x7300, 0, 0, word(a, b), word(c, d));
    SocketAddr::new(IpAddr::V6(ip), 7323)
}

impl VirtualSocket {
    pub(crate) fn new(overlay: Arc<Overlay>, peer: Address, class: Class) -> Self {
        Self { overlay, peer, class, busy: Busy::new(BUSY, Instant::now()), inbound: Mutex::default() }
    }

    /// Takes packets from the overlay. Returns false if there was no room for them.
    pub(crate) fn deliver(&self, batch: Batch) -> bool {
        let waker = {
            let mut inbound = self.inbound.lock().expect("no code panics under this lock");
            if inbound.bytes + batch.bytes() > INBOUND_BYTES {
                return false;
            }
            inbound.bytes += batch.bytes();
            inbound.heard += batch.count() as u64;
            inbound.batches.push_back(batch);
            inbound.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl VirtualSocket {
    /// How many packets have come from the peer.
    pub(crate) fn heard(&self) -> u64 {
        self.inbound.lock().expect("no code panics under this lock").heard
    }
}

impl Inbound {
    /// Fills `buffer` with packets of one size and one ECN mark, the last of which may be shorter.
    fn fill(&mut self, buffer: &mut [u8]) -> Option<RecvMeta> {
        let (mut length, mut stride, mut mark) = (0, 0, 0);
        while let Some(batch) = self.batches.front() {
            let (body, ecn) = (batch.body(self.read), batch.header().ecn);
            let fits = body.len() <= buffer.len() - length;
            if length == 0 {
                if !fits || body.is_empty() {
                    // More than quinn reserved for any packet, or nothing: nothing of ours.
                    self.advance();
                    continue;
                }
                (stride, mark) = (body.len(), ecn);
            } else if !fits || body.is_empty() || body.len() > stride || ecn != mark {
                break;
            }
            let last = body.len() < stride;
            buffer[length..length + body.len()].copy_from_slice(body);
            length += body.len();
            self.advance();
            if last {
                break;
            }
        }
        (length > 0).then(|| meta(length, stride, mark))
    }

    fn advance(&mut self) {
        self.read += 1;
        if self.batches.front().is_some_and(|batch| self.read >= batch.count()) {
            self.read = 0;
            self.bytes -= self.batches.pop_front().map_or(0, |batch| batch.bytes());
        }
    }
}

fn meta(len: usize, stride: usize, mark: u8) -> RecvMeta {
    let mut meta = RecvMeta::default();
    (meta.len, meta.stride, meta.ecn) = (len, stride, EcnCodepoint::from_bits(mark));
    meta
}

impl AsyncUdpSocket for VirtualSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.busy.sent(transmit.contents.len(), transmit.segment_size);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        let ecn = transmit.ecn.map_or(0, |mark| mark as u8);
        self.overlay
            .originate(self.peer, self.class, ecn, transmit.contents, segment)
            .map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbound = self.inbound.lock().expect("no code panics under this lock");
        let mut count = 0;
        for (buffer, slot) in buffers.iter_mut().zip(metas) {
            let Some(mut meta) = inbound.fill(buffer) else { break };
            meta.addr = socket_address(self.peer);
            *slot = meta;
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Ok(count));
        }
        inbound.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(socket_address(self.overlay.address()))
    }

    fn max_transmit_segments(&self) -> usize {
        if self.busy.is(Instant::now()) { SEGMENTS } else { 1 }
    }

    fn max_receive_segments(&self) -> usize {
        // Each of quinn's buffers then holds one packet of the largest size, and as many of the usual size as it has
        // room for. A buffer of that size for each segment would be megabytes for every session.
        1
    }

    fn may_fragment(&self) -> bool {
        // Links drop what is too large for them, so the search for the path MTU works.
        false
    }
}

/// Waits for the link that leads to the peer now.
#[derive(Debug)]
struct Poller {
    socket: Arc<VirtualSocket>,
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.overlay.poll_ready(self.socket.peer, self.socket.class, context).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use plexus_proto::packet::Header;

    use super::*;

    fn inbound(batches: &[(&[usize], u8)]) -> Inbound {
        let mut inbound = Inbound::default();
        for (sizes, ecn) in batches {
            let header = Header {
                class: Class::Bulk,
                ecn: *ecn,
                rekey: false,
                hop_limit: 1,
                source: Address(1),
                destination: Address(2),
            };
            let batch = Batch::build(header, &vec![0; sizes.iter().sum()], sizes[0]);
            assert_eq!(batch.bodies().map(<[u8]>::len).collect::<Vec<_>>(), *sizes);
            inbound.bytes += batch.bytes();
            inbound.batches.push_back(batch);
        }
        inbound
    }

    fn batches(mut inbound: Inbound, buffer: usize) -> Vec<(usize, usize)> {
        let mut buffer = vec![0; buffer];
        let batches =
            std::iter::from_fn(|| inbound.fill(&mut buffer)).map(|meta| (meta.len, meta.stride)).collect();
        assert_eq!((inbound.bytes, inbound.read), (0, 0), "every byte is accounted for");
        batches
    }

    #[test]
    fn equal_packets_become_one_batch_with_a_short_tail() {
        let came: [(&[usize], u8); 3] = [(&[1200], 0), (&[1200, 300], 0), (&[1200], 0)];
        assert_eq!(batches(inbound(&came), 20_000), [(2700, 1200), (1200, 1200)]);
    }

    #[test]
    fn larger_packets_and_other_marks_start_a_batch() {
        let came: [(&[usize], u8); 4] = [(&[100], 0), (&[1200], 0), (&[1200], 3), (&[1200], 3)];
        assert_eq!(batches(inbound(&came), 20_000), [(100, 100), (1200, 1200), (2400, 1200)]);
    }

    #[test]
    fn batches_are_bounded_by_the_buffer() {
        assert_eq!(batches(inbound(&[(&[10; 5], 0)]), 25), [(20, 10), (20, 10), (10, 10)]);
    }

    #[test]
    fn a_packet_that_no_buffer_holds_is_dropped() {
        assert_eq!(batches(inbound(&[(&[5000], 0), (&[10], 0)]), 1500), [(10, 10)]);
    }
}

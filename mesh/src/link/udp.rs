//! A UDP socket that QUIC shares with sealed packets.
//!
//! quinn drives it. What arrives with QUIC's fixed bit set is quinn's; the rest goes to the link that is bound to the
//! address it came from, batch by batch as the kernel delivers it, and never reaches quinn.

use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sealed::Inlet;
use crate::busy::Busy;
use crate::forward::Drops;

/// Bytes handed to the kernel in one call; it would swallow a larger transmit without a word.
const TRANSMIT_MAX: usize = 65_000;
/// Rounds of nothing but sealed packets before other tasks of the thread get their turn.
const ROUNDS: usize = 8;

/// Buffers filled in one call. quinn brings 32, of which each takes the packets of one sender that came together; all that
/// a burst has written to once stay in memory.
const BUFFERS: usize = 8;
/// QUIC's packets in 10 ms from which on they are gathered: 14 MB/s on most paths. More than a crowd of handshakes sends,
/// each of which would leave its connection with room for ten packets.
const BUSY: u64 = 96;

/// Pause until a full buffer is tried again when it cannot be watched.
const NO_WATCH: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct SharedSocket {
    /// Watched for packets that come, and not for room to send: the kernel would tell of that after each packet sent,
    /// and wake this process for nothing.
    io: AsyncFd<UdpSocket>,
    /// The kernel has taken no more when it was asked last.
    full: AtomicBool,
    state: UdpSocketState,
    busy: Busy,
    inlets: ArcSwap<Inlets>,
    /// Taken while `inlets` is replaced.
    changing: Mutex<()>,
    drops: Arc<Drops>,
}

/// Whom sealed packets from an address may be for: a link, or a link and the one that takes its place.
type Inlets = HashMap<SocketAddr, Vec<Arc<Inlet>>>;

impl SharedSocket {
    /// Takes over a bound socket. Called inside a runtime.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new(socket: UdpSocket, drops: Arc<Drops>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            state: UdpSocketState::new((&socket).into())?,
            io: watch(socket, Interest::READABLE)?,
            full: AtomicBool::new(false),
            busy: Busy::new(BUSY, Instant::now()),
            inlets: ArcSwap::default(),
            changing: Mutex::new(()),
            drops,
        })
    }

    /// Gives sealed packets from `remote` to `inlet`.
    pub(crate) fn bind(&self, remote: SocketAddr, inlet: &Arc<Inlet>) {
        self.change(|inlets| {
            let there = inlets.entry(remote).or_default();
            // The newest first: it is the one that the peer uses.
            there.insert(0, inlet.clone());
        });
    }

    /// Forgets `inlet` at every address.
    pub(crate) fn unbind(&self, inlet: &Arc<Inlet>) {
        self.change(|inlets| {
            inlets.retain(|_, there| {
                there.retain(|known| !Arc::ptr_eq(known, inlet));
                !there.is_empty()
            });
        });
    }

    fn change(&self, change: impl FnOnce(&mut Inlets)) {
        let _turn = self.changing.lock().expect("no code panics under this lock");
        let mut inlets = Inlets::clone(&self.inlets.load());
        change(&mut inlets);
        self.inlets.store(Arc::new(inlets));
    }

    /// Packets in one transmit at most.
    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments().max(1)
    }

    /// Resolves when the kernel may take more.
    pub(crate) async fn writable(&self) {
        let watched = self.io.get_ref().try_clone();
        match watched.and_then(|socket| watch(socket, Interest::WRITABLE)) {
            // An error shows at the next send.
            Ok(socket) => drop(socket.writable().await),
            // No descriptor is left to watch with; the kernel's buffer drains in less.
            Err(_) => tokio::time::sleep(NO_WATCH).await,
        }
        self.full.store(false, Ordering::Relaxed);
    }

    /// Takes what is sealed out of `count` received buffers; those for quinn move to the front. Returns how many.
    fn sift(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta], count: usize) -> usize {
        let mut kept = 0;
        for index in 0..count {
            let meta = &mut metas[index];
            let (buffer, stride) = (&mut buffers[index], meta.stride.max(1));
            let received = &mut buffer[..meta.len];
            let sealed = received.chunks(stride).filter(|packet| is_sealed(packet)).count();
            if sealed > 0 {
                if sealed * stride >= received.len() {
                    self.take(meta.addr, received, stride);
                    continue;
                }
                // The kernel joins packets of one sender by size alone.
                meta.len = self.part(meta.addr, received, stride);
            }
            buffers.swap(kept, index);
            metas.swap(kept, index);
            kept += 1;
        }
        kept
    }

    /// Takes single sealed packets from among others, which move to the front. Returns how many bytes are left.
    fn part(&self, from: SocketAddr, received: &mut [u8], stride: usize) -> usize {
        let mut left = 0;
        for start in (0..received.len()).step_by(stride) {
            let end = (start + stride).min(received.len());
            if is_sealed(&received[start..end]) {
                self.take(from, &received[start..end], stride);
            } else {
                received.copy_within(start..end, left);
                left += end - start;
            }
        }
        left
    }

    fn take(&self, from: SocketAddr, packets: &[u8], stride: usize) {
        let inlets = self.inlets.load();
        let Some(there) = inlets.get(&from) else {
            return self.drops.forged.add(packets.len().div_ceil(stride) as u64);
        };
        match &there[..] {
            [only] => only.receive(BytesMut::from(packets), stride),
            several => {
                for packet in packets.chunks(stride) {
                    if !several.iter().any(|inlet| inlet.try_receive(packet)) {
                        self.drops.forged.add(1);
                    }
                }
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "safe for a socket of the standard library: its descriptor is its own for life"
)]
fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

/// Whether a packet is none of QUIC's.
fn is_sealed(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0x40 == 0)
}

impl AsyncUdpSocket for SharedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: Mutex::new(None) })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let send = |transmit: &Transmit<'_>| {
            let sent = self.state.send(self.io.get_ref().into(), transmit);
            if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                self.full.store(true, Ordering::Relaxed);
            }
            sent
        };
        self.busy.sent(transmit.contents.len(), transmit.segment_size);
        let Some(segment) = transmit.segment_size else { return send(transmit) };
        let most = (TRANSMIT_MAX / segment.max(1)).max(1) * segment;
        if transmit.contents.len() <= most {
            return send(transmit);
        }
        for (index, contents) in transmit.contents.chunks(most).enumerate() {
            let part = Transmit {
                contents,
                segment_size: (contents.len() > segment).then_some(segment),
                destination: transmit.destination,
                ecn: transmit.ecn,
                src_ip: transmit.src_ip,
            };
            match send(&part) {
                // What has left has left: the rest is lost like packets on the way.
                Err(error) if index > 0 && error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                sent => sent?,
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = BUFFERS.min(buffers.len());
        let (buffers, metas) = (&mut buffers[..count], &mut metas[..count]);
        for _ in 0..ROUNDS {
            let mut ready = ready!(self.io.poll_read_ready(context))?;
            let received = ready.try_io(|socket| self.state.recv(socket.get_ref().into(), buffers, metas));
            if let Ok(Ok(count)) = received {
                let kept = self.sift(buffers, metas, count);
                if kept > 0 {
                    return Poll::Ready(Ok(kept));
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        if self.busy.is(Instant::now()) { self.state.max_gso_segments() } else { 1 }
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

type Writable = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// Waits for the kernel's buffer.
struct Poller {
    socket: Arc<SharedSocket>,
    waiting: Mutex<Option<Writable>>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poller")
    }
}

impl UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.waiting.lock().expect("no code panics under this lock");
        if waiting.is_none() && !self.socket.full.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let future = waiting.get_or_insert_with(|| {
            let socket = self.socket.clone();
            Box::pin(async move { socket.writable().await })
        });
        ready!(future.as_mut().poll(context));
        *waiting = None;
        Poll::Ready(Ok(()))
    }
}

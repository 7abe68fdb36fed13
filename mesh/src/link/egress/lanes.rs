//! What takes packets away: DATAGRAMs of a QUIC connection, and sealed packets beside it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use quinn::udp::Transmit;
use quinn::{AsyncUdpSocket, Connection, SendDatagramError};

use crate::batch::{Batch, PACKETS_MAX};
use crate::link::seal::Sealer;
use crate::link::udp::SharedSocket;
use crate::settings::{PACKET_FLOOR, SEALED_FLOOR};

/// What quinn counts for each datagram besides its bytes, rounded up.
const PER_DATAGRAM: usize = 48;
/// Bytes handed to the kernel in one call: the largest UDP datagram, less headers.
const TRANSMIT_MAX: usize = 65_000;

/// First byte of half a packet: the class that no packet has.
pub(crate) const FRAGMENT: u8 = 0x0c;
/// Bytes before a half: [`FRAGMENT`], which half, and two that both halves share.
pub(crate) const FRAGMENT_HEADER: usize = 4;

/// The DATAGRAMs of a connection.
///
/// Where the path carries no more than QUIC's least, the smallest packet that must pass does not fit into one DATAGRAM;
/// it then travels as two halves.
#[derive(Debug)]
pub(super) struct Datagrams {
    connection: Connection,
    narrow: AtomicBool,
    fragment: AtomicU16,
}

impl Datagrams {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, narrow: AtomicBool::new(false), fragment: AtomicU16::new(0) }
    }

    /// Bytes of packets that the connection takes now without dropping any.
    pub(super) fn space(&self) -> usize {
        self.connection.datagram_send_buffer_space().saturating_sub(PER_DATAGRAM)
    }

    pub(super) fn mtu(&self) -> usize {
        self.connection.max_datagram_size().unwrap_or(0).max(PACKET_FLOOR)
    }

    /// Sends a packet, or drops one that does not fit.
    pub(super) fn send(&self, packet: Bytes) -> bool {
        if packet.len() > PACKET_FLOOR {
            return self.connection.send_datagram(packet).is_ok();
        }
        if self.narrow.load(Ordering::Relaxed) {
            let Some(most) = self.connection.max_datagram_size() else { return false };
            if packet.len() > most {
                return self.send_halves(&packet);
            }
            self.narrow.store(most < PACKET_FLOOR, Ordering::Relaxed);
        }
        match self.connection.send_datagram(packet.clone()) {
            Err(SendDatagramError::TooLarge) => {
                self.narrow.store(true, Ordering::Relaxed);
                self.send_halves(&packet)
            }
            sent => sent.is_ok(),
        }
    }

    /// Sends a packet as soon as there is space.
    pub(super) async fn wait(&self, packet: Bytes) -> Result<(), SendDatagramError> {
        let floor = packet.len() <= PACKET_FLOOR;
        match self.connection.send_datagram_wait(packet.clone()).await {
            Err(SendDatagramError::TooLarge) if floor => {
                self.send_halves(&packet);
                Ok(())
            }
            sent => sent,
        }
    }

    fn send_halves(&self, packet: &Bytes) -> bool {
        let number = self.fragment.fetch_add(1, Ordering::Relaxed);
        let middle = packet.len() / 2;
        let half = |which: u8, bytes: &[u8]| {
            let mut half = BytesMut::with_capacity(FRAGMENT_HEADER + bytes.len());
            half.put_u8(FRAGMENT);
            half.put_u8(which);
            half.put_u16(number);
            half.put_slice(bytes);
            self.connection.send_datagram(half.freeze()).is_ok()
        };
        half(0, &packet[..middle]) && half(1, &packet[middle..])
    }
}

/// Sealed packets on the socket of a connection.
#[derive(Debug)]
pub(crate) struct SealedLane {
    sealer: Sealer,
    socket: Arc<SharedSocket>,
    connection: Connection,
    remote: SocketAddr,
    local: Option<IpAddr>,
    /// Largest UDP payload.
    mtu: usize,
    /// Sealed and not yet sent.
    staged: Option<Batch>,
    /// Something has been sent since the last [`SealedLane::rest`].
    awake: bool,
}

impl SealedLane {
    pub(crate) fn new(sealer: Sealer, socket: Arc<SharedSocket>, connection: Connection) -> Self {
        let (remote, local) = (connection.remote_address(), connection.local_ip());
        Self { sealer, socket, connection, remote, local, mtu: SEALED_FLOOR, staged: None, awake: false }
    }

    pub(super) fn socket(&self) -> Arc<SharedSocket> {
        self.socket.clone()
    }

    pub(super) fn mtu(&self) -> usize {
        self.mtu - crate::batch::ROOM
    }

    /// Whether this is the first use since [`SealedLane::rest`].
    pub(super) fn wakes(&mut self) -> bool {
        !std::mem::replace(&mut self.awake, true)
    }

    /// Takes over what the connection has found out of its path, and reports the next use.
    pub(crate) fn rest(&mut self) {
        self.awake = false;
        self.remote = self.connection.remote_address();
        self.local = self.connection.local_ip();
        self.learn_mtu();
    }

    fn learn_mtu(&mut self) {
        self.mtu = usize::from(self.connection.stats().path.current_mtu).max(SEALED_FLOOR);
    }

    pub(super) fn fits(&mut self, batch: &Batch) -> bool {
        if batch.stride().min(batch.bytes()) > self.mtu {
            // The connection may have found more since.
            self.learn_mtu();
        }
        batch.stride().min(batch.bytes()) <= self.mtu
    }

    /// Seals a batch; [`SealedLane::flush`] sends it. Nothing else is staged.
    pub(super) fn stage(&mut self, mut batch: Batch) {
        batch.slots_mut().for_each(|slot| self.sealer.seal(slot));
        self.staged = Some(batch);
    }

    /// Sends what is staged; false when the socket takes no more.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(mut batch) = self.staged.take() {
            let most = (TRANSMIT_MAX / batch.stride()).clamp(1, self.socket.max_segments().min(PACKETS_MAX));
            let rest = batch.split_after(most);
            if self.transmit(batch.as_bytes(), batch.stride()) {
                self.staged = rest;
            } else {
                if let Some(rest) = rest {
                    batch.rejoin(rest);
                }
                self.staged = Some(batch);
                return false;
            }
        }
        true
    }

    /// Seals and sends one small packet of the link's own; it is lost if the socket takes no more.
    pub(crate) fn send_own(&mut self, slot: &mut [u8]) {
        self.sealer.seal(slot);
        self.transmit(slot, slot.len());
    }

    /// Packets sealed so far.
    pub(crate) fn sealed(&self) -> u64 {
        self.sealer.sealed()
    }

    fn transmit(&self, contents: &[u8], stride: usize) -> bool {
        let transmit = Transmit {
            destination: self.remote,
            ecn: None,
            contents,
            segment_size: (contents.len() > stride).then_some(stride),
            src_ip: self.local,
        };
        // Any other error loses the packets, as the network might have.
        !matches!(self.socket.try_send(&transmit), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

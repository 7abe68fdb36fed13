//! The way out over one link: bounded queues by class in front of the connection's datagram buffer.
//!
//! Control and probes leave before bulk. A queue that is full refuses: a hop then drops the packet, an origin lets the
//! inner connection keep its data. Nobody ever waits here.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use plexus_proto::packet::Class;
use quinn::{Connection, SendDatagramError};
use tokio::sync::Notify;

/// Bulk that may wait for a link.
const BULK_BYTES: usize = 512 * 1024;
/// Control and probes that may wait for a link.
const CONTROL_BYTES: usize = 256 * 1024;
/// What quinn counts for each datagram besides its bytes, rounded up.
const PER_DATAGRAM: usize = 48;

/// The queue of a class is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Packets on their way to one neighbour.
#[derive(Debug)]
pub(crate) struct Egress {
    connection: Connection,
    queues: Mutex<Queues>,
    /// Wakes [`Egress::run`] when the datagram buffer was found full.
    blocked: Notify,
    pub(crate) sent: Counter,
    pub(crate) dropped: Counter,
}

/// Counts events; read for status only.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Egress {
    pub(crate) fn new(connection: Connection) -> Self {
        Self {
            connection,
            queues: Mutex::default(),
            blocked: Notify::new(),
            sent: Counter::default(),
            dropped: Counter::default(),
        }
    }

    /// Sends one packet or queues it.
    ///
    /// # Errors
    /// The queue of `class` is full; the packet is lost and counted.
    pub(crate) fn push(&self, class: Class, packet: Bytes) -> Result<(), Full> {
        let woken = {
            let mut queues = self.queues.lock().expect("no code panics under this lock");
            if !queues.has_room(class) {
                self.dropped.add(1);
                return Err(Full);
            }
            queues.push(class, packet);
            self.pump(&mut queues)
        };
        wake(woken);
        Ok(())
    }

    /// Sends a batch, all of it or none: the sender keeps what is refused.
    ///
    /// # Errors
    /// The queue of `class` is full.
    pub(crate) fn push_batch(&self, class: Class, packets: impl Iterator<Item = Bytes>) -> Result<(), Full> {
        let woken = {
            let mut queues = self.queues.lock().expect("no code panics under this lock");
            if !queues.has_room(class) {
                return Err(Full);
            }
            packets.for_each(|packet| queues.push(class, packet));
            self.pump(&mut queues)
        };
        wake(woken);
        Ok(())
    }

    /// Ready while the queue of `class` has room; otherwise the task is woken when half of it has drained, or the link
    /// is gone.
    pub(crate) fn poll_ready(&self, class: Class, context: &mut Context<'_>) -> Poll<()> {
        let mut queues = self.queues.lock().expect("no code panics under this lock");
        if queues.has_room(class) {
            return Poll::Ready(());
        }
        let waker = context.waker();
        if !queues.waiting.iter().any(|known| known.will_wake(waker)) {
            queues.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Moves packets on whenever the datagram buffer, once full, has space again. Ends with the connection, and then
    /// wakes everyone who waits.
    pub(crate) async fn run(&self) {
        loop {
            tokio::select! {
                () = self.blocked.notified() => {}
                _ = self.connection.closed() => break,
            }
            if self.drain().await.is_err() {
                break;
            }
        }
        self.close();
    }

    async fn drain(&self) -> Result<(), SendDatagramError> {
        loop {
            let next = self.queues.lock().expect("no code panics under this lock").pop();
            if let Some(packet) = next {
                match self.connection.send_datagram_wait(packet).await {
                    Ok(()) => self.sent.add(1),
                    Err(error @ SendDatagramError::ConnectionLost(_)) => return Err(error),
                    Err(_) => self.dropped.add(1),
                }
            }
            let (woken, done) = {
                let mut queues = self.queues.lock().expect("no code panics under this lock");
                queues.blocked = false;
                let woken = self.pump(&mut queues);
                (woken, !queues.blocked)
            };
            wake(woken);
            if done {
                return Ok(());
            }
        }
    }

    /// Refuses no more and drops all: packets to a dead link are lost like any others.
    fn close(&self) {
        let waiting = {
            let mut queues = self.queues.lock().expect("no code panics under this lock");
            queues.closed = true;
            queues.control = Queue::default();
            queues.bulk = Queue::default();
            std::mem::take(&mut queues.waiting)
        };
        wake(waiting);
    }

    /// Hands packets to quinn while its buffer has space. Returns whom to wake, for after the lock.
    fn pump(&self, queues: &mut Queues) -> Vec<Waker> {
        if !queues.blocked && !queues.is_empty() {
            let mut space = self.connection.datagram_send_buffer_space();
            while let Some(length) = queues.front_len() {
                let Some(left) = space.checked_sub(length + PER_DATAGRAM) else {
                    queues.blocked = true;
                    self.blocked.notify_one();
                    break;
                };
                let Some(packet) = queues.pop() else { break };
                match self.connection.send_datagram(packet) {
                    Ok(()) => {
                        space = left;
                        self.sent.add(1);
                    }
                    // Too large for this link: a probe of the inner path MTU, which then learns the size that fits.
                    // Lost connection: `run` notices.
                    Err(_) => self.dropped.add(1),
                }
            }
        }
        if !queues.waiting.is_empty() && queues.has_drained() {
            std::mem::take(&mut queues.waiting)
        } else {
            Vec::new()
        }
    }
}

fn wake(waiting: Vec<Waker>) {
    waiting.into_iter().for_each(Waker::wake);
}

#[derive(Debug, Default)]
struct Queues {
    control: Queue,
    bulk: Queue,
    /// The datagram buffer is full and `run` waits for it; nobody else needs to try.
    blocked: bool,
    closed: bool,
    waiting: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Queue {
    packets: VecDeque<Bytes>,
    bytes: usize,
}

impl Queues {
    fn has_room(&self, class: Class) -> bool {
        let full = match class {
            Class::Bulk => self.bulk.bytes >= BULK_BYTES,
            Class::Control | Class::Probe => self.control.bytes >= CONTROL_BYTES,
        };
        self.closed || !full
    }

    fn has_drained(&self) -> bool {
        self.closed || (self.bulk.bytes <= BULK_BYTES / 2 && self.control.bytes <= CONTROL_BYTES / 2)
    }

    fn is_empty(&self) -> bool {
        self.control.packets.is_empty() && self.bulk.packets.is_empty()
    }

    fn push(&mut self, class: Class, packet: Bytes) {
        if self.closed {
            return;
        }
        let queue = match class {
            Class::Bulk => &mut self.bulk,
            Class::Control | Class::Probe => &mut self.control,
        };
        queue.bytes += packet.len();
        queue.packets.push_back(packet);
    }

    fn front_len(&self) -> Option<usize> {
        self.control.packets.front().or_else(|| self.bulk.packets.front()).map(Bytes::len)
    }

    /// The next packet to leave: control before bulk.
    fn pop(&mut self) -> Option<Bytes> {
        self.control.pop().or_else(|| self.bulk.pop())
    }
}

impl Queue {
    fn pop(&mut self) -> Option<Bytes> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn control_leaves_before_bulk() {
        let mut queues = Queues::default();
        queues.push(Class::Bulk, packet("bulk"));
        queues.push(Class::Control, packet("control"));
        queues.push(Class::Probe, packet("probe"));
        let order: Vec<_> = std::iter::from_fn(|| queues.pop()).collect();
        assert_eq!(order, ["control", "probe", "bulk"]);
        assert!(queues.is_empty());
        assert_eq!((queues.control.bytes, queues.bulk.bytes), (0, 0));
    }

    #[test]
    fn full_bulk_leaves_room_for_control() {
        let mut queues = Queues::default();
        while queues.has_room(Class::Bulk) {
            queues.push(Class::Bulk, Bytes::from(vec![0; 1200]));
        }
        assert!(queues.bulk.bytes < BULK_BYTES + 1200, "bounded");
        assert!(queues.has_room(Class::Control));
        assert!(!queues.has_drained());
        while queues.bulk.bytes > BULK_BYTES / 2 {
            queues.pop();
        }
        assert!(queues.has_drained());
    }

    #[test]
    fn a_closed_link_takes_and_forgets() {
        let mut queues = Queues { closed: true, ..Queues::default() };
        queues.push(Class::Bulk, packet("lost"));
        assert!(queues.has_room(Class::Bulk), "nobody waits for a dead link");
        assert!(queues.is_empty());
    }
}

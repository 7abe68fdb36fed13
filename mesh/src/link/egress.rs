//! The way out over one link: bounded queues by class in front of whatever carries the link.
//!
//! Control and probes leave before bulk. A queue that is full refuses: a hop then drops the packet, an origin lets the
//! inner connection keep its data. Nobody ever waits here.

mod bucket;
mod lanes;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use plexus_proto::packet::{Class, LinkNote, LinkWord};
use quinn::Connection;
use tokio::sync::Notify;

use crate::batch::Batch;
use crate::liveness::Pulse;
use bucket::Bucket;
use lanes::Datagrams;
pub(crate) use lanes::{FRAGMENT, FRAGMENT_HEADER, SealedLane};

/// Bulk that may wait for a link.
const BULK_BYTES: usize = 512 * 1024;
/// Control and probes that may wait for a link.
const CONTROL_BYTES: usize = 256 * 1024;

/// The queue of a class is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Packets on their way to one neighbour.
#[derive(Debug)]
pub(crate) struct Egress {
    /// None: frames on TCP, whose writer takes the packets by itself.
    datagrams: Option<Datagrams>,
    queues: Mutex<Queues>,
    /// Wakes [`Egress::run`] when something stopped the way out, or the writer of frames when there are packets.
    due: Notify,
    /// Told once when packets leave sealed after a time without.
    pub(crate) active: Notify,
    /// Signs of life.
    pub(crate) pulse: Arc<Pulse>,
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
    /// Over the DATAGRAMs of `connection`, and sealed once [`Egress::seal`] has been called.
    pub(crate) fn over_datagrams(
        connection: Connection,
        bandwidth: Option<u64>,
        pulse: impl Into<Arc<Pulse>>,
    ) -> Self {
        Self::new(Some(Datagrams::new(connection)), bandwidth, pulse)
    }

    /// For a writer of frames that calls [`Egress::next`].
    pub(crate) fn over_frames(bandwidth: Option<u64>, pulse: impl Into<Arc<Pulse>>) -> Self {
        Self::new(None, bandwidth, pulse)
    }

    fn new(datagrams: Option<Datagrams>, bandwidth: Option<u64>, pulse: impl Into<Arc<Pulse>>) -> Self {
        let bucket = bandwidth.map(|rate| Bucket::new(rate, Instant::now()));
        Self {
            datagrams,
            queues: Mutex::new(Queues { bucket, ..Queues::default() }),
            due: Notify::new(),
            active: Notify::new(),
            pulse: pulse.into(),
            sent: Counter::default(),
            dropped: Counter::default(),
        }
    }

    /// Whether the queue of `class` takes more.
    pub(crate) fn has_room(&self, class: Class) -> bool {
        self.lock().has_room(class)
    }

    /// Sends or queues `batch`, whatever the queue holds; the caller has asked [`Egress::has_room`].
    pub(crate) fn push(&self, batch: Batch) {
        self.count(&batch);
        let woken = {
            let mut queues = self.lock();
            queues.push(batch);
            self.pump(&mut queues)
        };
        wake(woken);
    }

    /// Sends or queues `batch`, or drops and counts it when the queue of its class is full. Returns whether it was taken.
    pub(crate) fn offer(&self, batch: Batch) -> bool {
        self.count(&batch);
        let woken = {
            let mut queues = self.lock();
            if !queues.has_room(batch.header().class) {
                self.dropped.add(batch.count() as u64);
                return false;
            }
            queues.push(batch);
            self.pump(&mut queues)
        };
        wake(woken);
        true
    }

    fn count(&self, batch: &Batch) {
        if batch.header().class != Class::Probe {
            self.pulse.carried(batch.count() as u32);
        }
    }

    /// Ready while the queue of `class` has room; otherwise the task is woken when half of it has drained, or the link
    /// is gone.
    pub(crate) fn poll_ready(&self, class: Class, context: &mut Context<'_>) -> Poll<()> {
        let mut queues = self.lock();
        if queues.has_room(class) {
            return Poll::Ready(());
        }
        let waker = context.waker();
        if !queues.waiting.iter().any(|known| known.will_wake(waker)) {
            queues.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Lets packets leave sealed from now on.
    pub(crate) fn seal(&self, lane: SealedLane) {
        let woken = {
            let mut queues = self.lock();
            if !queues.closed {
                queues.sealed = Some(lane);
            }
            self.pump(&mut queues)
        };
        wake(woken);
    }

    /// Lets packets leave as DATAGRAMs again; what was sealed already is lost.
    pub(crate) fn unseal(&self) -> Option<SealedLane> {
        self.lock().sealed.take()
    }

    /// Works on the sealed lane, if there is one.
    pub(crate) fn with_sealed<T>(&self, work: impl FnOnce(&mut SealedLane) -> T) -> Option<T> {
        self.lock().sealed.as_mut().map(work)
    }

    /// Largest overlay packet that leaves whole now; none: any.
    pub(crate) fn mtu(&self) -> Option<usize> {
        let datagrams = self.datagrams.as_ref()?;
        let sealed = self.lock().sealed.as_ref().map(SealedLane::mtu);
        Some(sealed.unwrap_or_else(|| datagrams.mtu()))
    }

    /// What answers to probes tell of the link.
    pub(crate) fn note(&self) -> LinkNote {
        let kind = match (&self.datagrams, self.is_sealed()) {
            (None, _) => LinkWord::Tcp,
            (Some(_), true) => LinkWord::Sealed,
            (Some(_), false) => LinkWord::Quic,
        };
        LinkNote { kind, mtu: self.mtu().map(|mtu| mtu.try_into().unwrap_or(u16::MAX)) }
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.lock().sealed.is_some()
    }

    /// Moves packets on whenever what stopped them is over. Runs until dropped; then [`Egress::close`] is due.
    pub(crate) async fn run(&self) {
        let Some(datagrams) = &self.datagrams else { return std::future::pending().await };
        loop {
            self.due.notified().await;
            loop {
                let stop = self.lock().stopped.take();
                match stop {
                    None => break,
                    Some(Stop::Rate(until)) => tokio::time::sleep_until(until.into()).await,
                    Some(Stop::Socket) => {
                        let socket = self.lock().sealed.as_ref().map(SealedLane::socket);
                        if let Some(socket) = socket {
                            socket.writable().await;
                        }
                    }
                    Some(Stop::Buffer) => {
                        let next = self.lock().pop_packet();
                        if let Some(packet) = next {
                            match datagrams.wait(packet).await {
                                Ok(()) => self.sent.add(1),
                                Err(_) => self.dropped.add(1),
                            }
                        }
                    }
                }
                let woken = self.pump(&mut self.lock());
                wake(woken);
            }
        }
    }

    /// The next batch to leave, for the writer of frames; waits for one. Nothing is lost if the future is dropped.
    pub(crate) async fn next(&self) -> Batch {
        loop {
            let (next, woken, wait) = {
                let mut queues = self.lock();
                match queues.due(Instant::now()) {
                    Err(until) => (None, Vec::new(), Some(until)),
                    Ok(()) => {
                        let next = queues.pop();
                        (next, queues.drained(), None)
                    }
                }
            };
            wake(woken);
            if let Some(batch) = next {
                self.sent.add(batch.count() as u64);
                return batch;
            }
            match wait {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => self.due.notified().await,
            }
        }
    }

    /// Refuses no more and drops all: packets to a dead link are lost like any others. Wakes everyone who waits.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut queues = self.lock();
            queues.closed = true;
            queues.sealed = None;
            queues.control = Queue::default();
            queues.bulk = Queue::default();
            std::mem::take(&mut queues.waiting)
        };
        wake(waiting);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queues> {
        self.queues.lock().expect("no code panics under this lock")
    }

    /// Hands packets on while nothing stops them. Returns whom to wake, for after the lock.
    fn pump(&self, queues: &mut Queues) -> Vec<Waker> {
        if queues.stopped.is_none() && !queues.is_empty() {
            match &self.datagrams {
                // The writer has to look.
                None => self.due.notify_one(),
                Some(datagrams) => {
                    queues.stopped = match queues.sealed.take() {
                        Some(mut lane) => {
                            let stop = self.pump_sealed(queues, &mut lane);
                            queues.sealed = Some(lane);
                            stop
                        }
                        None => self.pump_datagrams(queues, datagrams),
                    };
                    if queues.stopped.is_some() {
                        self.due.notify_one();
                    }
                }
            }
        }
        queues.drained()
    }

    fn pump_datagrams(&self, queues: &mut Queues, datagrams: &Datagrams) -> Option<Stop> {
        let mut space = datagrams.space();
        while let Some(length) = queues.front_len() {
            if let Err(until) = queues.due(Instant::now()) {
                return Some(Stop::Rate(until));
            }
            let Some(left) = space.checked_sub(length) else { return Some(Stop::Buffer) };
            let packet = queues.pop_packet()?;
            if datagrams.send(packet) {
                space = left;
                self.sent.add(1);
            } else {
                // Too large for this link: a probe of the inner path MTU, which then learns the size that fits.
                // Lost connection: the link notices.
                self.dropped.add(1);
            }
        }
        None
    }

    fn pump_sealed(&self, queues: &mut Queues, lane: &mut SealedLane) -> Option<Stop> {
        // Probes of the link itself are its watch already; asking after each of them would wake both ends once more.
        if queues.carries() && lane.wakes() {
            self.active.notify_one();
        }
        loop {
            if !lane.flush() {
                return Some(Stop::Socket);
            }
            if let Err(until) = queues.due(Instant::now()) {
                return Some(Stop::Rate(until));
            }
            let batch = queues.pop()?;
            let count = batch.count() as u64;
            if lane.fits(&batch) {
                lane.stage(batch);
                self.sent.add(count);
            } else {
                self.dropped.add(count);
            }
        }
    }
}

fn wake(waiting: Vec<Waker>) {
    waiting.into_iter().for_each(Waker::wake);
}

/// What keeps packets from leaving; [`Egress::run`] waits for its end, and nobody else needs to try meanwhile.
#[derive(Debug)]
enum Stop {
    /// The datagram buffer is full.
    Buffer,
    /// The kernel's socket buffer is full.
    Socket,
    /// The link's cap is reached.
    Rate(Instant),
}

#[derive(Debug, Default)]
struct Queues {
    control: Queue,
    bulk: Queue,
    sealed: Option<SealedLane>,
    bucket: Option<Bucket>,
    stopped: Option<Stop>,
    closed: bool,
    waiting: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
}

impl Queues {
    /// Whether packets of sessions wait here.
    fn carries(&self) -> bool {
        !self.bulk.batches.is_empty()
            || self.control.batches.iter().any(|batch| batch.header().class != Class::Probe)
    }

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

    /// Whom to wake because there is room again.
    fn drained(&mut self) -> Vec<Waker> {
        if !self.waiting.is_empty() && self.has_drained() {
            std::mem::take(&mut self.waiting)
        } else {
            Vec::new()
        }
    }

    fn is_empty(&self) -> bool {
        self.control.batches.is_empty() && self.bulk.batches.is_empty()
    }

    /// Whether the cap lets a packet leave now, or when it will.
    fn due(&mut self, now: Instant) -> Result<(), Instant> {
        self.bucket.as_mut().map_or(Ok(()), |bucket| bucket.due(now))
    }

    fn push(&mut self, batch: Batch) {
        if self.closed {
            return;
        }
        let queue = match batch.header().class {
            Class::Bulk => &mut self.bulk,
            Class::Control | Class::Probe => &mut self.control,
        };
        queue.bytes += batch.bytes();
        queue.batches.push_back(batch);
    }

    /// The queue whose packets leave next: control before bulk.
    fn next(&mut self) -> &mut Queue {
        if self.control.batches.is_empty() { &mut self.bulk } else { &mut self.control }
    }

    fn front_len(&mut self) -> Option<usize> {
        self.next().batches.front().map(Batch::packet_len)
    }

    fn pop(&mut self) -> Option<Batch> {
        let queue = self.next();
        let batch = queue.batches.pop_front()?;
        queue.bytes -= batch.bytes();
        if let Some(bucket) = &mut self.bucket {
            bucket.spend(batch.bytes());
        }
        Some(batch)
    }

    fn pop_packet(&mut self) -> Option<Bytes> {
        let queue = self.next();
        let batch = queue.batches.front_mut()?;
        let before = batch.bytes();
        let packet = batch.pop();
        queue.bytes -= before - batch.bytes();
        if batch.bytes() == 0 {
            queue.batches.pop_front();
        }
        if let (Some(bucket), Some(packet)) = (&mut self.bucket, &packet) {
            bucket.spend(packet.len());
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::id::Address;
    use plexus_proto::packet::Header;

    fn batch(class: Class, body: &[u8], size: usize) -> Batch {
        let header =
            Header { class, ecn: 0, rekey: false, hop_limit: 1, source: Address(1), destination: Address(2) };
        Batch::build(header, body, size)
    }

    #[test]
    fn control_leaves_before_bulk() {
        let mut queues = Queues::default();
        queues.push(batch(Class::Bulk, b"bulkBULK", 4));
        assert_eq!(queues.pop_packet().unwrap()[10..], b"bulk"[..]);
        queues.push(batch(Class::Control, b"control", 7));
        queues.push(batch(Class::Probe, b"probe", 5));
        let order: Vec<_> =
            std::iter::from_fn(|| queues.pop_packet()).map(|packet| packet.slice(10..)).collect();
        assert_eq!(order, [&b"control"[..], b"probe", b"BULK"], "even in the middle of a batch");
        assert!(queues.is_empty());
        assert_eq!((queues.control.bytes, queues.bulk.bytes), (0, 0));
    }

    #[test]
    fn full_bulk_leaves_room_for_control() {
        let mut queues = Queues::default();
        while queues.has_room(Class::Bulk) {
            queues.push(batch(Class::Bulk, &[0; 12_000], 1200));
        }
        assert!(queues.bulk.bytes < BULK_BYTES + 13_000, "bounded");
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
        queues.push(batch(Class::Bulk, b"lost", 4));
        assert!(queues.has_room(Class::Bulk), "nobody waits for a dead link");
        assert!(queues.is_empty());
    }

    #[tokio::test]
    async fn a_writer_of_frames_is_woken_and_capped() {
        let egress = Egress::over_frames(Some(1_000_000), Pulse::new(Default::default()));
        let start = Instant::now();
        for _ in 0..30 {
            egress.push(batch(Class::Bulk, &[0; 10_000], 1000));
            assert_eq!(egress.next().await.count(), 10);
        }
        assert!(start.elapsed().as_millis() >= 200, "300 kB at 1 MB/s took {:?}", start.elapsed());
    }
}

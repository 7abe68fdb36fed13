//! Packets in, packets on: what a node does with every overlay packet, and what it refuses.
//!
//! The forwarding table is a snapshot that the driver replaces; a batch of packets is handled in the task of the link
//! that brought it and never waits. At its origin a packet meets a full queue as back-pressure, on a hop as a drop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwap;
use plexus_proto::id::{Address, Identity};
use plexus_proto::packet::{Class, HOP_LIMIT, Header, LinkNote, Probe};

use crate::authorization;
use crate::batch::Batch;
use crate::link::egress::{Counter, Egress, Full};
use crate::liveness::{self, NEIGHBOR};
use crate::routing::ByAddress;

/// Where packets for whom go now. In parts, so that a change of one route in ten thousand copies few of them.
#[derive(Debug)]
struct Table {
    parts: [ArcSwap<Part>; PARTS],
}

type Part = ByAddress<Exit>;

/// With ten thousand routes a part holds about forty.
const PARTS: usize = 256;

/// The way out towards a destination.
#[derive(Debug, Clone)]
pub(crate) struct Exit {
    pub(crate) next: Arc<Egress>,
    /// Taken from the moment at which `next` falls silent.
    pub(crate) backup: Option<Arc<Egress>>,
}

/// How packets came in.
#[derive(Debug, Clone)]
pub(crate) struct Via {
    /// The neighbour's address if it does not transit: then nobody else can speak through it.
    pub(crate) leaf: Option<Address>,
    /// The way back.
    pub(crate) egress: Arc<Egress>,
}

impl Default for Table {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| ArcSwap::default()) }
    }
}

impl Table {
    /// The way out now, if there is one.
    fn exit(&self, destination: Address) -> Option<Arc<Egress>> {
        let part = self.parts[Self::part(destination)].load();
        let Exit { next, backup } = part.get(&destination)?;
        let out = match backup {
            Some(backup) if next.pulse.is_silent() && !backup.pulse.is_silent() => backup,
            _ => next,
        };
        Some(out.clone())
    }

    fn change(&self, changes: Vec<(Address, Option<Exit>)>) {
        let mut parts: BTreeMap<usize, Part> = BTreeMap::new();
        for (address, exit) in changes {
            let at = Self::part(address);
            let part = parts.entry(at).or_insert_with(|| Part::clone(&self.parts[at].load()));
            match exit {
                Some(exit) => part.insert(address, exit),
                None => part.remove(&address),
            };
        }
        parts.into_iter().for_each(|(at, part)| self.parts[at].store(Arc::new(part)));
    }

    fn clear(&self) {
        self.parts.iter().for_each(|part| part.store(Arc::default()));
    }

    fn part(address: Address) -> usize {
        address.0 as usize % PARTS
    }
}

/// Takes what is addressed to this node.
pub(crate) trait Local: Send + Sync + std::fmt::Debug {
    /// Packets of an inner connection. Returns false if they were not wanted.
    fn deliver(&self, batch: Batch) -> bool;
    /// An answer to a probe of ours, or what became of it.
    fn probed(&self, from: Address, reply: Probe, note: Option<LinkNote>);
}

/// Packets that went nowhere, by reason.
#[derive(Debug, Default)]
pub(crate) struct Drops {
    pub(crate) malformed: Counter,
    pub(crate) forged: Counter,
    pub(crate) unroutable: Counter,
    pub(crate) expired: Counter,
    pub(crate) unwanted: Counter,
    /// Messages of neighbours that their role may not say.
    pub(crate) refused: Counter,
}

/// This node's place in the overlay.
#[derive(Debug)]
pub(crate) struct Overlay {
    address: Address,
    transits: bool,
    table: Table,
    /// Senders that wait for a route.
    stranded: Mutex<Vec<Waker>>,
    local: OnceLock<Arc<dyn Local>>,
    answers: Allowance,
    pub(crate) drops: Arc<Drops>,
    pub(crate) forwarded: Counter,
}

impl Overlay {
    pub(crate) fn new(identity: &Identity) -> Self {
        Self {
            address: identity.address,
            transits: authorization::transits(identity.role),
            table: Table::default(),
            stranded: Mutex::default(),
            local: OnceLock::new(),
            answers: Allowance::of(ANSWERS_PER_SECOND),
            drops: Arc::default(),
            forwarded: Counter::default(),
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Says who takes the packets for this node; once, at start.
    pub(crate) fn attach(&self, local: Arc<dyn Local>) {
        let _ = self.local.set(local);
    }

    /// Changes routes, and wakes who waits for one.
    pub(crate) fn route(&self, changes: Vec<(Address, Option<Exit>)>) {
        self.table.change(changes);
        self.wake_stranded();
    }

    /// Forgets all routes: nothing is sent any more.
    pub(crate) fn close(&self) {
        self.table.clear();
        self.wake_stranded();
    }

    fn wake_stranded(&self) {
        let stranded = std::mem::take(&mut *self.stranded.lock().expect("no code panics under this lock"));
        stranded.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn has_route(&self, destination: Address) -> bool {
        self.table.exit(destination).is_some()
    }

    /// Sends `bodies` of this node's own, each of `size` bytes but for the last, to `destination`, all or none.
    ///
    /// # Errors
    /// The way out is full, or there is none; the caller keeps the bodies. If they were dropped for want of a route,
    /// an acknowledgement could get lost between the moments at which both ends learn of a new one.
    pub(crate) fn originate(
        &self,
        destination: Address,
        class: Class,
        ecn: u8,
        bodies: &[u8],
        size: usize,
    ) -> Result<(), Full> {
        let egress = self.table.exit(destination).ok_or(Full)?;
        if !egress.has_room(class) {
            return Err(Full);
        }
        let header =
            Header { class, ecn, rekey: false, hop_limit: HOP_LIMIT, source: self.address, destination };
        egress.push(Batch::build(header, bodies, size));
        Ok(())
    }

    /// Whether [`Overlay::originate`] would take more for `destination`.
    pub(crate) fn poll_ready(
        &self,
        destination: Address,
        class: Class,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        if let Some(egress) = self.table.exit(destination) {
            return egress.poll_ready(class, context);
        }
        let mut stranded = self.stranded.lock().expect("no code panics under this lock");
        // A table that came since the look above has found nobody to wake.
        if self.has_route(destination) {
            return Poll::Ready(());
        }
        let waker = context.waker();
        if !stranded.iter().any(|known| known.will_wake(waker)) {
            stranded.push(waker.clone());
        }
        Poll::Pending
    }

    /// Sends a probe. Returns false if there is no route.
    pub(crate) fn probe(&self, destination: Address, hop_limit: u8, probe: Probe) -> bool {
        let Some(egress) = self.table.exit(destination) else { return false };
        let header = self.probe_header(destination, hop_limit);
        let mut body = probe.encode();
        if !matches!(probe, Probe::Echo { .. }) {
            body.extend_from_slice(&egress.note().encode());
        }
        // A full queue loses the probe, and that is what it then shows.
        egress.offer(Batch::one(header, &body));
        true
    }

    fn probe_header(&self, destination: Address, hop_limit: u8) -> Header {
        Header { class: Class::Probe, ecn: 0, rekey: false, hop_limit, source: self.address, destination }
    }

    /// Handles packets that came over a link.
    pub(crate) fn receive(&self, via: &Via, batch: Batch) {
        let header = *batch.header();
        let pulse = &via.egress.pulse;
        pulse.heard();
        if header.class != Class::Probe {
            pulse.carried(batch.count() as u32);
        } else if header.destination == NEIGHBOR {
            return self.greet_back(via, &batch);
        }
        let leaf = via.leaf;
        // Our own address comes back from nowhere but a forger or a loop.
        if leaf.is_some_and(|leaf| leaf != header.source) || header.source == self.address {
            return self.drops.forged.add(batch.count() as u64);
        }
        if header.destination == self.address {
            self.arrive(via, &header, batch);
        } else if self.transits {
            self.pass(&header, batch);
        } else {
            self.drops.unroutable.add(batch.count() as u64);
        }
    }

    /// A probe of the link itself: answered where it came from.
    fn greet_back(&self, via: &Via, batch: &Batch) {
        for body in batch.bodies() {
            match Probe::decode(body) {
                Ok(Probe::Echo { nonce }) => {
                    let reply = Probe::EchoReply { nonce, hops_left: 0 };
                    via.egress.offer(liveness::packet(self.address, reply));
                }
                Ok(Probe::EchoReply { nonce, .. }) => via.egress.pulse.answered(nonce),
                _ => self.drops.malformed.add(1),
            }
        }
    }

    fn arrive(&self, via: &Via, header: &Header, batch: Batch) {
        let count = batch.count() as u64;
        let Some(local) = self.local.get() else { return self.drops.unwanted.add(count) };
        if header.class != Class::Probe {
            if !local.deliver(batch) {
                self.drops.unwanted.add(count);
            }
            return;
        }
        for body in batch.bodies() {
            match Probe::decode(body) {
                Ok(Probe::Echo { nonce }) => {
                    let reply = Probe::EchoReply { nonce, hops_left: header.hop_limit };
                    // A node without a map need not know who asks: the answer can go back by the same hop.
                    if self.transits || self.has_route(header.source) {
                        self.answer(header.source, reply);
                    } else if self.answers.take() {
                        let header = self.probe_header(header.source, HOP_LIMIT);
                        let body = [&reply.encode()[..], &via.egress.note().encode()].concat();
                        via.egress.offer(Batch::one(header, &body));
                    }
                }
                Ok(reply) => local.probed(header.source, reply, LinkNote::behind(&reply, body)),
                Err(_) => self.drops.malformed.add(1),
            }
        }
    }

    fn pass(&self, header: &Header, mut batch: Batch) {
        let count = batch.count() as u64;
        if header.hop_limit <= 1 {
            self.drops.expired.add(count);
            return self.explain(header, &batch, |nonce| Probe::HopLimitExceeded { nonce });
        }
        let Some(egress) = self.table.exit(header.destination) else {
            self.drops.unroutable.add(count);
            let destination = header.destination;
            return self.explain(header, &batch, |nonce| Probe::NoRoute { nonce, destination });
        };
        batch.set_hop_limit(header.hop_limit - 1);
        // A full queue drops its newest: the inner connection slows down.
        if egress.offer(batch) {
            self.forwarded.add(count);
        }
    }

    /// Tells the sender of an echo request why it ends here; nothing else is answered, so answers never beget answers.
    fn explain(&self, header: &Header, batch: &Batch, why: impl Fn(u64) -> Probe) {
        if header.class != Class::Probe {
            return;
        }
        for body in batch.bodies() {
            if let Ok(Probe::Echo { nonce }) = Probe::decode(body) {
                self.answer(header.source, why(nonce));
            }
        }
    }

    fn answer(&self, to: Address, reply: Probe) {
        if self.answers.take() {
            self.probe(to, HOP_LIMIT, reply);
        }
    }
}

/// What may still be done in this second: a flood of probes, say, must not become a flood of answers.
#[derive(Debug)]
pub(crate) struct Allowance {
    each_second: u64,
    /// Second since start in the upper half, answers given in it in the lower.
    state: AtomicU64,
    start: OnceLock<std::time::Instant>,
}

/// Answers to probes per second: a hundred people tracing at once.
const ANSWERS_PER_SECOND: u64 = 2000;

impl Allowance {
    pub(crate) fn of(each_second: u64) -> Self {
        Self { each_second, state: AtomicU64::default(), start: OnceLock::new() }
    }

    /// Whether there is any left.
    pub(crate) fn take(&self) -> bool {
        let now = std::time::Instant::now();
        let second = now.saturating_duration_since(*self.start.get_or_init(|| now)).as_secs();
        self.take_at(second)
    }

    fn take_at(&self, second: u64) -> bool {
        let step = |state: u64| {
            let given = if state >> 32 == second { state & 0xffff_ffff } else { 0 };
            (given < self.each_second).then_some(second << 32 | (given + 1))
        };
        self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use plexus_proto::id::Role;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(Address, Option<Probe>)>>);

    impl Local for Recorder {
        fn deliver(&self, batch: Batch) -> bool {
            self.0.lock().unwrap().push((batch.header().source, None));
            true
        }

        fn probed(&self, from: Address, reply: Probe, _: Option<LinkNote>) {
            self.0.lock().unwrap().push((from, Some(reply)));
        }
    }

    const ME: Address = Address(1);
    const LEAF: Address = Address(2);
    const OTHER: Address = Address(3);

    fn overlay(role: Role) -> (Overlay, Arc<Recorder>) {
        let identity = Identity {
            mesh: "demo".parse().unwrap(),
            cluster: "main".parse().unwrap(),
            role,
            node: "me".parse().unwrap(),
            address: ME,
        };
        let (overlay, recorder) = (Overlay::new(&identity), Arc::new(Recorder::default()));
        overlay.attach(recorder.clone());
        (overlay, recorder)
    }

    fn packet(source: Address, destination: Address, hop_limit: u8) -> Batch {
        Batch::one(
            Header { class: Class::Bulk, ecn: 0, rekey: false, hop_limit, source, destination },
            b"body",
        )
    }

    fn via(leaf: Option<Address>) -> Via {
        let egress = Egress::over_frames(None, liveness::Pulse::new(Arc::default()));
        Via { leaf, egress: Arc::new(egress) }
    }

    #[test]
    fn a_leaf_speaks_for_itself_only() {
        let (overlay, got) = overlay(Role::Hop);
        overlay.receive(&via(Some(LEAF)), packet(OTHER, ME, 9));
        assert_eq!((overlay.drops.forged.value(), got.0.lock().unwrap().len()), (1, 0));
        overlay.receive(&via(Some(LEAF)), packet(LEAF, ME, 9));
        overlay.receive(&via(None), packet(OTHER, ME, 9));
        let sources: Vec<_> = got.0.lock().unwrap().iter().map(|(source, _)| *source).collect();
        assert_eq!(sources, [LEAF, OTHER], "a hop passes on what others say");
        overlay.receive(&via(None), packet(ME, ME, 9));
        assert_eq!(overlay.drops.forged.value(), 2, "nobody else is me");
    }

    #[test]
    fn only_hops_transit() {
        for (role, unroutable, expired) in
            [(Role::Execution, 2, 0), (Role::Controller, 2, 0), (Role::Hop, 1, 1)]
        {
            let (overlay, _) = overlay(role);
            overlay.receive(&via(None), packet(LEAF, OTHER, 9));
            overlay.receive(&via(None), packet(LEAF, OTHER, 1));
            let drops = (overlay.drops.unroutable.value(), overlay.drops.expired.value());
            assert_eq!(drops, (unroutable, expired), "{role}");
        }
    }

    /// Routers that disagree for a moment may send a packet round in a circle, but not for ever.
    #[test]
    fn a_packet_in_a_circle_ends_at_the_hop_limit() {
        let (overlay, _) = overlay(Role::Hop);
        let via = via(None);
        overlay.route(vec![(OTHER, Some(Exit { next: via.egress.clone(), backup: None }))]);
        let mut batch = packet(LEAF, OTHER, HOP_LIMIT);
        for left in (1..HOP_LIMIT).rev() {
            overlay.receive(&via, batch);
            batch = via.egress.next().now_or_never().expect("it is passed on");
            assert_eq!(batch.header().hop_limit, left);
        }
        overlay.receive(&via, batch);
        assert!(via.egress.next().now_or_never().is_none(), "it goes no further");
        let counts = (overlay.forwarded.value(), overlay.drops.expired.value());
        assert_eq!(counts, (u64::from(HOP_LIMIT) - 1, 1));
    }

    #[test]
    fn answers_to_probes_are_rationed_by_the_second() {
        let allowance = Allowance::of(ANSWERS_PER_SECOND);
        let given = |second| (0..5000).filter(|_| allowance.take_at(second)).count() as u64;
        assert_eq!((given(1), given(1), given(2)), (ANSWERS_PER_SECOND, 0, ANSWERS_PER_SECOND));
    }
}

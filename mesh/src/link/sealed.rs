//! Sealed packets on a live link: how both ends agree on them, and how they are watched.
//!
//! Both ends of a QUIC link that can, register keys and say so ([`SealedReady`]); then each asks over the new way, with
//! a packet as large as the least that has to pass, and uses it once the answer has come. While packets flow the
//! question is asked again each second: the answer tells what was lost, and three without an answer send the link back
//! to DATAGRAMs, for another try later.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use plexus_proto::packet::HEADER_LEN;
use quinn::Connection;
use tokio::sync::Notify;
use tracing::{debug, info};

use super::egress::{Egress, FRAGMENT, SealedLane};
use super::seal::{Export, From, Opener, SECRET_LEN, Sealer};
use super::udp::SharedSocket;
use crate::batch::{BACK, Batch, FRONT, PACKETS_MAX};
use crate::forward::{Overlay, Via};
use crate::settings::SEALED_FLOOR;

const LABEL: &[u8] = b"EXPORTER plexus sealed link";
/// Between questions before the first answer.
const ASK_SOON: Duration = Duration::from_millis(50);
/// Questions before the way counts as closed.
const ASK_TIMES: u32 = 20;
/// Between questions while packets flow.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Questions without an answer after which the link goes back to DATAGRAMs.
const MISSED_MAX: u32 = 3;
/// Questions and answers that may wait to be read.
const LETTERS: usize = 8;
/// Until the next try after the way was found closed.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Where sealed packets of one link go in.
#[derive(Debug)]
pub(crate) struct Inlet {
    opener: Mutex<Opener>,
    overlay: Arc<Overlay>,
    via: Via,
    own: Mailbox,
}

/// What a link asks of itself, on its way to [`keep_sealed`]. A channel would hold a block of 32 places for each link.
#[derive(Debug, Default)]
struct Mailbox {
    letters: Mutex<VecDeque<Own>>,
    came: Notify,
}

impl Mailbox {
    /// Leaves a letter; of those that come faster than they are read, some are lost.
    fn put(&self, own: Own) {
        {
            let mut letters = self.lock();
            if letters.len() >= LETTERS {
                return;
            }
            letters.push_back(own);
        }
        self.came.notify_one();
    }

    /// The next letter. Nothing is lost when the future is dropped.
    async fn take(&self) -> Own {
        loop {
            if let Some(own) = self.lock().pop_front() {
                return own;
            }
            self.came.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Own>> {
        self.letters.lock().expect("no code panics under this lock")
    }
}

/// Packets of the link's own, under the class that no overlay packet has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    /// Answer me. The sender has sealed so many packets before.
    Ask { number: u32, sealed: u64 },
    /// The answer: how many of them were opened.
    Answer { number: u32, opened: u64 },
}

/// Reads what a link asks of itself, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn understand(packet: &[u8]) {
    if let Some(own) = Own::decode(packet) {
        let slot = own.slot(0);
        assert_eq!(Own::decode(&slot[FRONT..slot.len() - BACK]), Some(own));
    }
}

const OWN_LEN: usize = 14;

impl Own {
    /// As a slot of `length` bytes, room included.
    fn slot(self, length: usize) -> Vec<u8> {
        let mut slot = vec![0; length.max(FRONT + OWN_LEN + BACK)];
        let (kind, number, count) = match self {
            Self::Ask { number, sealed } => (1, number, sealed),
            Self::Answer { number, opened } => (2, number, opened),
        };
        slot[FRONT] = FRAGMENT;
        slot[FRONT + 1] = kind;
        slot[FRONT + 2..FRONT + 6].copy_from_slice(&number.to_be_bytes());
        slot[FRONT + 6..FRONT + OWN_LEN].copy_from_slice(&count.to_be_bytes());
        slot
    }

    fn decode(packet: &[u8]) -> Option<Self> {
        let bytes = packet.first_chunk::<OWN_LEN>()?;
        let number = u32::from_be_bytes(*bytes[2..].first_chunk()?);
        let count = u64::from_be_bytes(*bytes[6..].first_chunk()?);
        match bytes[1] {
            1 => Some(Self::Ask { number, sealed: count }),
            2 => Some(Self::Answer { number, opened: count }),
            _ => None,
        }
    }
}

impl Inlet {
    /// Opens packets of `stride` bytes and hands them to the overlay, run by run of one header.
    pub(crate) fn receive(&self, mut buffer: BytesMut, stride: usize) {
        let mut fronts: [Option<[u8; HEADER_LEN]>; PACKETS_MAX] = [None; PACKETS_MAX];
        let mut opened = 0;
        {
            let mut opener = self.opener.lock().expect("no code panics under this lock");
            for (slot, front) in buffer.chunks_mut(stride).zip(&mut fronts) {
                if opener.open(slot).is_ok() {
                    *front = slot.get(FRONT..).and_then(|packet| packet.first_chunk()).copied();
                    opened += 1;
                }
            }
        }
        let count = buffer.len().div_ceil(stride);
        if opened < count {
            self.overlay.drops.forged.add((count - opened) as u64);
        }
        // The usual case: all of one header, nothing to cut.
        let mut index = 0;
        while index < count.min(PACKETS_MAX) {
            let front = fronts[index];
            let run = fronts[index..count.min(PACKETS_MAX)].iter().take_while(|next| **next == front).count();
            let length = buffer.len().min(run * stride);
            let part = buffer.split_to(length);
            index += run;
            if front.is_some() {
                self.deliver(part, stride);
            }
        }
    }

    /// Opens one packet; false if it is not this link's.
    pub(crate) fn try_receive(&self, packet: &[u8]) -> bool {
        let mut buffer = BytesMut::from(packet);
        if self.opener.lock().expect("no code panics under this lock").open(&mut buffer).is_err() {
            return false;
        }
        let stride = buffer.len();
        self.deliver(buffer, stride);
        true
    }

    fn deliver(&self, slots: BytesMut, stride: usize) {
        if slots.get(FRONT).is_some_and(|flags| flags & FRAGMENT == FRAGMENT) {
            for slot in slots.chunks(stride) {
                if let Some(own) = Own::decode(&slot[FRONT..]) {
                    self.own.put(own);
                }
            }
            return;
        }
        match Batch::of_slots(slots, stride) {
            Ok(batch) => self.overlay.receive(&self.via, batch),
            Err(_) => self.overlay.drops.malformed.add(1),
        }
    }

    fn opened(&self) -> u64 {
        self.opener.lock().expect("no code panics under this lock").opened
    }
}

/// What a link measures of itself.
#[derive(Debug, Default)]
pub(crate) struct Loss(AtomicU64);

impl Loss {
    fn set(&self, share: f64) {
        self.0.store(share.to_bits(), Ordering::Relaxed);
    }

    /// Share of packets lost on the way to the neighbour, 0 to 1.
    pub(crate) fn share(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Everything that [`keep_sealed`] needs of a link.
pub(crate) struct Sealing {
    pub(crate) connection: Connection,
    pub(crate) socket: Arc<SharedSocket>,
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) egress: Arc<Egress>,
    pub(crate) via: Via,
    pub(crate) dialed: bool,
    /// Told when the neighbour has registered its keys.
    pub(crate) ready: Arc<Notify>,
    pub(crate) loss: Arc<Loss>,
}

/// Removes the inlet when the link ends, however it does.
struct Registered {
    socket: Arc<SharedSocket>,
    inlet: Arc<Inlet>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.socket.unbind(&self.inlet);
    }
}

/// Moves a link to sealed packets when that works, and back when it does not. `announce` tells the neighbour that keys
/// are registered here. Runs until dropped with the link.
pub(crate) async fn keep_sealed(link: Sealing, announce: impl FnOnce()) {
    let connection = link.connection.clone();
    let export: Export = Arc::new(move |epoch: u32| {
        let mut secret = [0; SECRET_LEN];
        connection.export_keying_material(&mut secret, LABEL, &epoch.to_be_bytes()).ok()?;
        Some(secret)
    });
    let (us, them) =
        if link.dialed { (From::Dialer, From::Acceptor) } else { (From::Acceptor, From::Dialer) };
    let inlet = Arc::new(Inlet {
        opener: Mutex::new(Opener::new(export.clone(), them)),
        overlay: link.overlay.clone(),
        via: link.via.clone(),
        own: Mailbox::default(),
    });
    let mut remote = link.connection.remote_address();
    link.socket.bind(remote, &inlet);
    let registered = Registered { socket: link.socket.clone(), inlet: inlet.clone() };
    announce();
    link.ready.notified().await;

    // One sealer for the life of the link: a counter must never be used twice.
    let mut lane =
        Some(SealedLane::new(Sealer::new(export, us), link.socket.clone(), link.connection.clone()));
    let mut watch = Watch::default();
    let mut due = Some(Instant::now());
    loop {
        tokio::select! {
            own = inlet.own.take() => {
                match own {
                    Own::Ask { number, .. } => {
                        let answer = Own::Answer { number, opened: inlet.opened() };
                        send(&link.egress, &mut lane, answer, 0);
                    }
                    Own::Answer { number, opened } => {
                        if let Some(lost) = watch.answered(number, opened) {
                            link.loss.set(lost);
                        }
                        if !link.egress.is_sealed() && let Some(mut fresh) = lane.take() {
                            fresh.rest();
                            link.egress.seal(fresh);
                            due = None;
                            info!(remote = %remote, "link sends sealed packets");
                        }
                    }
                }
            }
            () = link.egress.active.notified(), if due.is_none() => due = Some(Instant::now() + ASK_EVERY),
            () = sleep_until(due), if due.is_some() => {
                let now = link.connection.remote_address();
                if now != remote {
                    link.socket.unbind(&inlet);
                    link.socket.bind(now, &inlet);
                    remote = now;
                }
                let sealed = link.egress.is_sealed();
                if sealed {
                    link.egress.with_sealed(SealedLane::rest);
                    if watch.missed >= MISSED_MAX {
                        lane = link.egress.unseal();
                        watch = watch.failed();
                        due = Some(Instant::now() + AGAIN_AFTER);
                        debug!(remote = %remote, "sealed packets are not answered, link sends datagrams");
                        continue;
                    }
                } else if watch.missed >= ASK_TIMES {
                    watch = watch.failed();
                    due = Some(Instant::now() + AGAIN_AFTER);
                    continue;
                }
                let count = lane.as_ref().map(SealedLane::sealed)
                    .or_else(|| link.egress.with_sealed(|lane| lane.sealed()))
                    .unwrap_or_default();
                let ask = watch.ask(count);
                send(&link.egress, &mut lane, ask, if sealed { 0 } else { SEALED_FLOOR });
                // Without answers it is asked on; with them only after the next use.
                due = match sealed {
                    false => Some(Instant::now() + ASK_SOON),
                    true if watch.missed > 1 => Some(Instant::now() + ASK_EVERY),
                    true => None,
                };
            }
        }
        debug_assert!(Arc::strong_count(&registered.inlet) > 0);
    }
}

fn send(egress: &Egress, lane: &mut Option<SealedLane>, own: Own, length: usize) {
    let mut slot = own.slot(length);
    match lane {
        Some(lane) => lane.send_own(&mut slot),
        None => drop(egress.with_sealed(|lane| lane.send_own(&mut slot))),
    }
}

/// The questions of one link, and what came of them.
#[derive(Debug, Default)]
struct Watch {
    number: u32,
    missed: u32,
    /// Packets sealed when the last question was asked.
    asked: u64,
    /// Sealed and opened at the last answer.
    last: Option<(u64, u64)>,
}

impl Watch {
    fn ask(&mut self, sealed: u64) -> Own {
        self.number += 1;
        self.missed += 1;
        self.asked = sealed;
        Own::Ask { number: self.number, sealed }
    }

    /// Takes an answer; returns the share of packets lost since the one before.
    fn answered(&mut self, number: u32, opened: u64) -> Option<f64> {
        if number != self.number {
            return None;
        }
        self.missed = 0;
        let before = self.last.replace((self.asked, opened));
        let (sealed_before, opened_before) = before?;
        let sealed = self.asked.saturating_sub(sealed_before);
        let opened = opened.saturating_sub(opened_before);
        (sealed > 0).then(|| 1.0 - (opened as f64 / sealed as f64).min(1.0))
    }

    /// What is left after giving up: numbers are not used twice.
    fn failed(self) -> Self {
        Self { number: self.number, ..Self::default() }
    }
}

async fn sleep_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn letters_are_few_and_in_order() {
        let mailbox = Mailbox::default();
        for number in 0..20 {
            mailbox.put(Own::Ask { number, sealed: 0 });
        }
        for number in 0..LETTERS as u32 {
            assert_eq!(mailbox.take().await, Own::Ask { number, sealed: 0 });
        }
        assert!(mailbox.take().now_or_never().is_none());
    }

    #[test]
    fn packets_of_the_link_survive_their_slot() {
        for own in [Own::Ask { number: 7, sealed: 1 << 40 }, Own::Answer { number: 8, opened: 9 }] {
            assert_eq!(Own::decode(&own.slot(0)[FRONT..]), Some(own));
            assert_eq!(own.slot(SEALED_FLOOR).len(), SEALED_FLOOR);
        }
        assert_eq!(Own::decode(&[FRAGMENT; 5]), None);
        assert_eq!(Own::decode(&[FRAGMENT; 50]), None);
    }

    #[test]
    fn loss_is_what_was_sealed_and_not_opened() {
        let mut watch = Watch::default();
        watch.ask(100);
        assert_eq!(watch.answered(1, 90), None, "nothing to compare with");
        watch.ask(300);
        assert_eq!(watch.answered(1, 95), None, "an old answer");
        assert_eq!(watch.missed, 1);
        assert_eq!(watch.answered(2, 240), Some(0.25));
        assert_eq!(watch.missed, 0);
    }
}

//! Sealed packets: the format, and who may be believed; pure.
//!
//! ```text
//!  0      1..5       5..                                   last 16
//!  flags  counter    sealed: hop limit, addresses, body    tag
//!         u32 BE
//! ```
//!
//! Flags are the packet's own, with the rekey bit set in odd epochs; they and the counter are authenticated. AES-128-GCM;
//! the nonce is the direction's IV xor the 64-bit counter, of which the low half travels. Keys come from the TLS
//! exporter of the link's QUIC connection: 16 bytes of key and 12 of IV for each direction and epoch, so nothing that a
//! stranger sends opens, and a link's packets are worth nothing on any other link.
//!
//! Payload does not depend on this seal: inner connections have their own. It keeps routing headers private and whole,
//! and strangers out.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::batch::{BACK, FRONT};

/// Bytes that keys of one epoch are cut from: two keys, two IVs.
pub(crate) const SECRET_LEN: usize = 2 * (16 + 12);
/// Packets sealed under one key: half of what QUIC permits to AES-GCM.
const REKEY_AFTER: u64 = 1 << 22;
/// Packets of a new epoch after which no straggler of the old one is expected.
const STRAGGLERS: u64 = 4096;
/// How far behind the newest a packet may come and still be taken, in packets.
const WINDOW: u64 = 4096;
/// Bytes that are authenticated in clear: flags and counter.
const CLEAR: usize = 1 + FRONT;
const REKEY_BIT: u8 = 0x80;

/// Gives the secret of an epoch; none when the connection is gone.
pub(crate) type Export = Arc<dyn Fn(u32) -> Option<[u8; SECRET_LEN]> + Send + Sync>;

/// Which end seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Dialer,
    Acceptor,
}

/// Key and IV of one direction in one epoch.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
}

impl Key {
    fn derive(export: &Export, epoch: u32, from: From) -> Option<Self> {
        let secret = export(epoch)?;
        let (keys, ivs) = secret.split_at(32);
        let (key, iv) = match from {
            From::Dialer => (&keys[..16], &ivs[..12]),
            From::Acceptor => (&keys[16..], &ivs[12..]),
        };
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key).ok()?);
        Some(Self { key, iv: *iv.first_chunk()? })
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(counter.to_be_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Seals the packets of one direction.
pub(crate) struct Sealer {
    export: Export,
    from: From,
    epoch: u32,
    key: Option<Key>,
    counter: u64,
    rekey_after: u64,
    before: u64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("epoch", &self.epoch)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    pub(crate) fn new(export: Export, from: From) -> Self {
        let key = Key::derive(&export, 0, from);
        Self { export, from, epoch: 0, key, counter: 0, rekey_after: REKEY_AFTER, before: 0 }
    }

    /// Seals the packet in `slot`, which has room of [`FRONT`] and [`BACK`] bytes around it. Without keys, for the
    /// connection is gone, the slot becomes noise.
    pub(crate) fn seal(&mut self, slot: &mut [u8]) {
        if self.counter >= self.rekey_after {
            self.rekey();
        }
        let counter = self.counter;
        self.counter += 1;
        let Some(key) = &self.key else { return slot.fill(0) };
        if slot.len() <= CLEAR + BACK {
            return;
        }
        let flags = slot[FRONT] & !REKEY_BIT | if self.epoch % 2 == 1 { REKEY_BIT } else { 0 };
        slot[0] = flags;
        slot[1..CLEAR].copy_from_slice(&(counter as u32).to_be_bytes());
        let (clear, rest) = slot.split_at_mut(CLEAR);
        let (body, tail) = rest.split_at_mut(rest.len() - BACK);
        match key.key.seal_in_place_separate_tag(key.nonce(counter), Aad::from(&*clear), body) {
            Ok(tag) => tail.copy_from_slice(tag.as_ref()),
            // Longer than AES-GCM allows; no packet is.
            Err(_) => slot.fill(0),
        }
    }

    fn rekey(&mut self) {
        self.before += self.counter;
        self.epoch = self.epoch.wrapping_add(1);
        self.counter = 0;
        self.key = Key::derive(&self.export, self.epoch, self.from);
    }

    /// Packets sealed so far, in all epochs.
    pub(crate) fn sealed(&self) -> u64 {
        self.before + self.counter
    }
}

/// Why a packet was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too short to be sealed.
    Short,
    /// Sealed by somebody else, or altered.
    Forged,
    /// Seen before, or too old to tell.
    Replayed,
}

/// Opens the packets of one direction.
pub(crate) struct Opener {
    export: Export,
    from: From,
    epoch: u32,
    current: Option<Epoch>,
    previous: Option<Epoch>,
    next: Option<Epoch>,
    /// Packets opened, in all epochs.
    pub(crate) opened: u64,
}

struct Epoch {
    key: Key,
    window: Window,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Opener {
    /// Opens what `from` seals.
    pub(crate) fn new(export: Export, from: From) -> Self {
        let current = Self::derive(&export, 0, from);
        Self { export, from, epoch: 0, current, previous: None, next: None, opened: 0 }
    }

    fn derive(export: &Export, epoch: u32, from: From) -> Option<Epoch> {
        Key::derive(export, epoch, from).map(|key| Epoch { key, window: Window::default() })
    }

    /// Opens the packet in `slot` in place: it then lies behind [`FRONT`] bytes and before [`BACK`] bytes of room.
    ///
    /// # Errors
    /// See [`Refused`]; the slot's content is then of no use.
    pub(crate) fn open(&mut self, slot: &mut [u8]) -> Result<(), Refused> {
        if slot.len() <= CLEAR + BACK {
            return Err(Refused::Short);
        }
        let odd = slot[0] & REKEY_BIT != 0;
        let mut promote = false;
        let epoch = if odd == (self.epoch % 2 == 1) {
            self.current.as_mut()
        } else if self.previous.is_some() {
            self.previous.as_mut()
        } else {
            promote = true;
            if self.next.is_none() {
                self.next = Self::derive(&self.export, self.epoch.wrapping_add(1), self.from);
            }
            self.next.as_mut()
        };
        let Some(epoch) = epoch else { return Err(Refused::Forged) };
        let low = u32::from_be_bytes([slot[1], slot[2], slot[3], slot[4]]);
        let counter = epoch.window.whole(low);
        if !epoch.window.is_new(counter) {
            return Err(Refused::Replayed);
        }
        let (clear, sealed) = slot.split_at_mut(CLEAR);
        let nonce = epoch.key.nonce(counter);
        epoch.key.key.open_in_place(nonce, Aad::from(&*clear), sealed).map_err(|_| Refused::Forged)?;
        epoch.window.insert(counter);
        self.opened += 1;
        slot[FRONT] = slot[0] & !REKEY_BIT;
        if promote {
            self.epoch = self.epoch.wrapping_add(1);
            self.previous = std::mem::replace(&mut self.current, self.next.take());
        } else if self.previous.is_some()
            && self.current.as_ref().is_some_and(|current| current.window.newest() > STRAGGLERS)
        {
            self.previous = None;
        }
        Ok(())
    }
}

/// Counters that have been seen: the newest and [`WINDOW`] before it.
struct Window {
    /// One above the newest.
    end: u64,
    seen: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { end: 0, seen: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    /// The counter nearest to the newest that ends in `low`.
    fn whole(&self, low: u32) -> u64 {
        let half = 1u64 << 31;
        let near = (self.end & !0xffff_ffff) | u64::from(low);
        if near + half < self.end {
            near + (half << 1)
        } else if near >= self.end + half && near >= half << 1 {
            near - (half << 1)
        } else {
            near
        }
    }

    fn newest(&self) -> u64 {
        self.end
    }

    fn is_new(&self, counter: u64) -> bool {
        if counter >= self.end {
            return true;
        }
        self.end - counter <= WINDOW && self.seen[Self::word(counter)] & Self::bit(counter) == 0
    }

    fn insert(&mut self, counter: u64) {
        if counter >= self.end {
            // What lies between is not seen yet.
            if counter - self.end >= WINDOW {
                self.seen = [0; (WINDOW / 64) as usize];
            } else {
                for skipped in self.end..counter {
                    self.seen[Self::word(skipped)] &= !Self::bit(skipped);
                }
            }
            self.end = counter + 1;
        }
        self.seen[Self::word(counter)] |= Self::bit(counter);
    }

    fn word(counter: u64) -> usize {
        (counter % WINDOW / 64) as usize
    }

    fn bit(counter: u64) -> u64 {
        1 << (counter % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use bytes::Bytes;
    use plexus_proto::id::Address;
    use plexus_proto::packet::{Class, Header};
    use proptest::prelude::*;

    fn export(link: u8) -> Export {
        Arc::new(move |epoch| {
            let mut secret = [link; SECRET_LEN];
            for (index, byte) in secret.iter_mut().enumerate() {
                *byte ^= (index as u8).wrapping_mul(7) ^ (epoch as u8).wrapping_mul(31);
            }
            Some(secret)
        })
    }

    fn ends() -> (Sealer, Opener) {
        (Sealer::new(export(1), From::Dialer), Opener::new(export(1), From::Dialer))
    }

    fn header() -> Header {
        Header {
            class: Class::Bulk,
            ecn: 1,
            rekey: false,
            hop_limit: 9,
            source: Address(1),
            destination: Address(2),
        }
    }

    fn sealed(sealer: &mut Sealer, body: &[u8]) -> Vec<u8> {
        let mut batch = Batch::one(header(), body);
        batch.slots_mut().for_each(|slot| sealer.seal(slot));
        batch.as_bytes().to_vec()
    }

    fn opened(opener: &mut Opener, mut slot: Vec<u8>) -> Result<Bytes, Refused> {
        opener.open(&mut slot)?;
        Ok(Bytes::copy_from_slice(&slot[FRONT..slot.len() - BACK]))
    }

    #[test]
    fn what_was_sealed_opens_once() {
        let (mut sealer, mut opener) = ends();
        let slot = sealed(&mut sealer, b"body");
        assert_eq!(slot.len(), 10 + 4 + 16 + 4, "30 bytes of overhead");
        assert_eq!(slot[0] & 0x40, 0, "QUIC's fixed bit stays clear");
        assert_eq!(opened(&mut opener, slot.clone()).unwrap(), header().packet(b"body"));
        assert_eq!(opened(&mut opener, slot), Err(Refused::Replayed));
    }

    #[test]
    fn another_link_another_direction_and_altered_bytes_do_not_open() {
        let (mut sealer, mut opener) = ends();
        let slot = sealed(&mut sealer, b"body");
        assert_eq!(opened(&mut Opener::new(export(2), From::Dialer), slot.clone()), Err(Refused::Forged));
        assert_eq!(opened(&mut Opener::new(export(1), From::Acceptor), slot.clone()), Err(Refused::Forged));
        for index in 0..slot.len() {
            let mut altered = slot.clone();
            altered[index] ^= 1;
            assert!(opened(&mut opener, altered).is_err(), "byte {index}");
        }
        assert_eq!(opened(&mut opener, vec![0; 21]), Err(Refused::Short));
        assert!(opened(&mut opener, slot).is_ok(), "forgeries spoil nothing");
    }

    #[test]
    fn packets_may_come_late_but_not_too_late() {
        let (mut sealer, mut opener) = ends();
        let slots: Vec<_> = (0..WINDOW + 2).map(|_| sealed(&mut sealer, b"x")).collect();
        for slot in slots.iter().skip(2).rev() {
            assert!(opened(&mut opener, slot.clone()).is_ok());
        }
        assert!(slots.iter().all(|slot| opened(&mut opener, slot.clone()) == Err(Refused::Replayed)));
    }

    #[test]
    fn keys_change_and_stragglers_of_the_old_one_still_open() {
        let (mut sealer, mut opener) = ends();
        sealer.rekey_after = 3 * STRAGGLERS;
        let mut late = None;
        for number in 0..10 * STRAGGLERS {
            let slot = sealed(&mut sealer, b"x");
            if number % (3 * STRAGGLERS) == 3 * STRAGGLERS - 1 {
                late = Some(slot);
                continue;
            }
            assert!(opened(&mut opener, slot).is_ok(), "packet {number}");
            if let Some(late) = late.take() {
                assert!(opened(&mut opener, late).is_ok(), "straggler before {number}");
            }
        }
        assert_eq!((sealer.epoch, opener.epoch), (3, 3));
        assert_eq!((sealer.sealed(), opener.opened), (10 * STRAGGLERS, 10 * STRAGGLERS));
    }

    #[test]
    fn counters_beyond_32_bits_are_told_by_their_low_half() {
        let mut window = Window::default();
        window.insert(0xffff_fff0);
        assert_eq!(window.whole(5), 0x1_0000_0005);
        assert_eq!(window.whole(0xffff_ff00), 0xffff_ff00);
        window.insert(0x1_0000_0005);
        assert_eq!(window.whole(0xffff_fff1), 0xffff_fff1);
        assert_eq!(Window::default().whole(0xffff_ffff), 0xffff_ffff);
    }

    proptest! {
        #[test]
        fn the_window_remembers_exactly(counters in prop::collection::vec(0u64..10_000, 1..300)) {
            let (mut window, mut seen) = (Window::default(), std::collections::BTreeSet::new());
            for counter in counters {
                let newest = seen.last().copied().unwrap_or(0);
                let expected = !seen.contains(&counter) && counter + WINDOW > newest;
                prop_assert_eq!(window.is_new(counter), expected);
                if expected {
                    window.insert(counter);
                    seen.insert(counter);
                }
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(ends().1.open(&mut bytes.clone()).is_err());
        }
    }
}

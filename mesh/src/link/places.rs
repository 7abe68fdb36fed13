//! Places for handshakes: how many strangers are let near a door at once, and who gives way when it is crowded.
//!
//! Whoever sends from a forged address finds a few places only, and takes none from those whose address is proven.
//! Among the latter no source crowds out another: when all places are taken, a newcomer gets that of the oldest
//! handshake of the source that holds most.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

/// Handshakes at once with addresses that may be forged, on one door; more strangers must prove theirs first.
pub(super) const FORGEABLE: usize = 32;
/// Handshakes at once with proven addresses, on one door.
pub(super) const PROVEN: usize = 64;

/// The places of one door. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    forgeable: usize,
    /// By source, the oldest first; never an empty list.
    proven: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
    last: u64,
}

/// A place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    kind: Kind,
    lost: CancellationToken,
}

#[derive(Debug)]
enum Kind {
    Forgeable,
    Proven(IpAddr, u64),
}

impl Places {
    /// A place for somebody whose address may be forged.
    pub(super) fn forgeable(&self) -> Option<Place> {
        let mut taken = self.lock();
        if taken.forgeable >= FORGEABLE {
            return None;
        }
        taken.forgeable += 1;
        Some(Place { places: self.clone(), kind: Kind::Forgeable, lost: CancellationToken::new() })
    }

    /// A place for somebody who is where he says he is. Another may lose his for it.
    pub(super) fn proven(&self, remote: IpAddr) -> Option<Place> {
        let source = source(remote);
        let mut taken = self.lock();
        if taken.proven.values().map(VecDeque::len).sum::<usize>() >= PROVEN {
            let own = taken.proven.get(&source).map_or(0, VecDeque::len);
            let (_, most) = taken.proven.iter_mut().max_by_key(|(_, held)| held.len())?;
            if most.len() <= own + 1 {
                return None;
            }
            if let Some((_, oldest)) = most.pop_front() {
                oldest.cancel();
            }
        }
        taken.last += 1;
        let (id, lost) = (taken.last, CancellationToken::new());
        taken.proven.entry(source).or_default().push_back((id, lost.clone()));
        Some(Place { places: self.clone(), kind: Kind::Proven(source, id), lost })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.0.lock().expect("no code panics under this lock")
    }
}

impl Place {
    /// Resolves when somebody else needs it more.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + Send + 'static {
        self.lost.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        match self.kind {
            Kind::Forgeable => taken.forgeable -= 1,
            Kind::Proven(source, id) => {
                if let Some(held) = taken.proven.get_mut(&source) {
                    held.retain(|&(held, _)| held != id);
                    if held.is_empty() {
                        taken.proven.remove(&source);
                    }
                }
            }
        }
    }
}

/// Whoever has one address of IPv6 has its whole /64.
fn source(remote: IpAddr) -> IpAddr {
    match remote.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn is_lost(place: &Place) -> bool {
        place.lost.is_cancelled()
    }

    #[test]
    fn forged_addresses_take_no_place_from_proven_ones() {
        let places = Places::default();
        let flood: Vec<_> = (0..1000).filter_map(|_| places.forgeable()).collect();
        assert_eq!(flood.len(), FORGEABLE);
        assert!(places.proven(v4(1)).is_some());
        drop(flood);
        assert!(places.forgeable().is_some());
    }

    #[test]
    fn no_source_crowds_out_another() {
        let places = Places::default();
        let greedy: Vec<_> = (0..1000).filter_map(|_| places.proven(v4(1))).collect();
        assert_eq!(greedy.len(), PROVEN, "alone it may have them all");
        let others: Vec<_> = (2..200).filter_map(|last| places.proven(v4(last))).collect();
        assert_eq!(others.len(), PROVEN - 1, "down to one for each");
        assert!(greedy[..PROVEN - 1].iter().all(is_lost), "the oldest give way");
        assert!(!is_lost(&greedy[PROVEN - 1]) && !others.iter().any(is_lost));
        drop(greedy);
        assert!(places.proven(v4(201)).is_some());
    }

    #[test]
    fn a_lost_place_frees_nothing_twice() {
        let places = Places::default();
        let mut held: Vec<_> = (0..PROVEN).filter_map(|_| places.proven(v4(1))).collect();
        let newcomer = places.proven(v4(2));
        drop(held.remove(0));
        assert!(places.proven(v4(1)).is_none(), "all are taken still");
        drop((held, newcomer));
        assert!(places.lock().proven.is_empty());
    }

    #[test]
    fn neighbours_of_one_network_are_one_source() {
        let at = |text: &str| source(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), v4(1));
    }
}

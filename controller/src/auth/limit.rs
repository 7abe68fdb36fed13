//! How often somebody may guess: a wrong password makes the next try for that name from that place wait, for longer each
//! time, and a place that fails with many names waits too. Pure: moments come in.
//!
//! A name alone is never locked: whoever can fail with it could keep its owner out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Wrong passwords for one name from one place that cost nothing: people mistype.
const FREE: u32 = 5;

/// Longest wait for one name from one place.
const LONGEST: Duration = Duration::from_secs(60);

/// Wrong passwords that a place may have in a row, with whatever names.
const PLACE_BURST: f64 = 60.0;

/// Of those it gets back each second.
const PLACE_REFILL: f64 = 0.5;

/// After this long without a wrong password all is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// Names and places that are remembered at most.
const MAX: usize = 16_384;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Limit {
    names: HashMap<(String, IpAddr), (u32, Instant)>,
    places: HashMap<IpAddr, (f64, Instant)>,
}

/// Whoever has an IPv6 address has a network full of them.
fn place(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => address.into(),
            None => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        },
        address => address,
    }
}

impl Limit {
    /// How long this place has to wait before it tries this name; `None` if it need not.
    pub(super) fn wait(&self, name: &str, from: IpAddr, now: Instant) -> Option<Duration> {
        let from = place(from);
        let by_name = self.names.get(&(name.to_owned(), from)).and_then(|(failed, last)| {
            let more = failed.checked_sub(FREE)?;
            let wait = Duration::from_secs(1 << more.min(6)).min(LONGEST);
            (*last + wait).checked_duration_since(now)
        });
        let by_place = self.places.get(&from).and_then(|(used, last)| {
            let left = used - now.saturating_duration_since(*last).as_secs_f64() * PLACE_REFILL;
            (left >= PLACE_BURST).then(|| Duration::from_secs_f64((left - PLACE_BURST + 1.0) / PLACE_REFILL))
        });
        by_name.max(by_place).filter(|wait| !wait.is_zero())
    }

    /// Notes a wrong password.
    pub(super) fn failed(&mut self, name: &str, from: IpAddr, now: Instant) {
        let from = place(from);
        if self.names.len() >= MAX {
            self.names.retain(|_, (_, last)| now.saturating_duration_since(*last) < FORGOTTEN);
            if self.names.len() >= MAX {
                self.names.clear();
            }
        }
        let (failed, last) = self.names.entry((name.to_owned(), from)).or_insert((0, now));
        if now.saturating_duration_since(*last) >= FORGOTTEN {
            *failed = 0;
        }
        (*failed, *last) = (failed.saturating_add(1), now);
        if self.places.len() >= MAX {
            self.places.retain(|_, (_, last)| now.saturating_duration_since(*last) < FORGOTTEN);
            if self.places.len() >= MAX {
                self.places.clear();
            }
        }
        let (used, last) = self.places.entry(from).or_insert((0.0, now));
        let refilled = now.saturating_duration_since(*last).as_secs_f64() * PLACE_REFILL;
        (*used, *last) = ((*used - refilled).max(0.0) + 1.0, now);
    }

    /// Notes a right password: the name is free again from this place.
    pub(super) fn succeeded(&mut self, name: &str, from: IpAddr) {
        self.names.remove(&(name.to_owned(), place(from)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn each_wrong_password_makes_the_next_try_wait_longer() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        for _ in 0..FREE {
            assert_eq!(limit.wait("ada", HERE, start), None);
            limit.failed("ada", HERE, start);
        }
        let mut before = Duration::ZERO;
        for _ in 0..5 {
            let wait = limit.wait("ada", HERE, start).unwrap();
            assert!(wait > before, "{wait:?}");
            before = wait;
            limit.failed("ada", HERE, start);
        }
        for _ in 0..9 {
            limit.failed("ada", HERE, start);
        }
        assert_eq!(limit.wait("ada", HERE, start), Some(LONGEST));
        // Neither the owner elsewhere nor another name here waits.
        assert_eq!((limit.wait("ada", THERE, start), limit.wait("bob", HERE, start)), (None, None));
        assert_eq!(limit.wait("ada", HERE, start + LONGEST + Duration::from_secs(1)), None);
        limit.succeeded("ada", HERE);
        assert_eq!(limit.wait("ada", HERE, start), None);
    }

    #[test]
    fn a_place_that_tries_many_names_waits() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        for number in 0..PLACE_BURST as u32 {
            assert_eq!(limit.wait("new", HERE, start), None);
            limit.failed(&format!("user{number}"), HERE, start);
        }
        let wait = limit.wait("new", HERE, start).unwrap();
        assert_eq!(limit.wait("new", HERE, start + wait), None);
        assert_eq!(limit.wait("new", THERE, start), None);
    }

    #[test]
    fn a_network_of_addresses_is_one_place() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(place(address("2001:db8::1")), place(address("2001:db8::ffff:2")));
        assert_ne!(place(address("2001:db8::1")), place(address("2001:db8:0:1::1")));
        assert_eq!(place(address("::ffff:192.0.2.1")), HERE);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut limit, start) = (Limit::default(), Instant::now());
        for number in 0..=MAX {
            limit.failed(&number.to_string(), IpAddr::V4((number as u32).into()), start);
        }
        assert!(limit.names.len() <= MAX && limit.places.len() <= MAX);
    }
}

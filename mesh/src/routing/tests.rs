//! Facts of one router; many routers together are in `tests/sim.rs`.

use plexus_proto::id::Role;
use plexus_proto::link::{AnnouncedLink, Announcement};
use prost::Message;

use super::wants::WANT_PATIENCE;
use super::*;

fn identity(address: u32, role: Role) -> Identity {
    Identity {
        mesh: "mesh".parse().unwrap(),
        cluster: "main".parse().unwrap(),
        role,
        node: format!("n{address}").parse().unwrap(),
        address: Address(address),
    }
}

fn hop(address: u32) -> Identity {
    identity(address, Role::Hop)
}

fn verified(who: &Identity, body: Vec<u8>) -> VerifiedAnnouncement {
    let signed = SignedAnnouncement { body: body.into(), ..Default::default() };
    VerifiedAnnouncement::new(who.clone(), signed).unwrap()
}

fn announce(who: &Identity, (epoch, sequence): (u64, u64), links: &[(u32, u32)]) -> VerifiedAnnouncement {
    let links = links.iter().map(|&(neighbor, cost)| AnnouncedLink { neighbor, cost }).collect();
    let body = Announcement { origin: who.address.0, epoch, sequence, links, ..Default::default() };
    verified(who, body.encode_to_vec())
}

/// One router with its shell.
struct Bench {
    me: Identity,
    router: Router,
    now: Instant,
    sent: Vec<(LinkId, LinkMessageKind)>,
    tables: usize,
}

impl Bench {
    fn new(me: Identity, epoch: u64) -> Self {
        let now = Instant::now();
        let router = Router::new(me.clone(), epoch, "test".into(), now);
        let mut bench = Self { me, router, now, sent: vec![], tables: 0 };
        bench.drain();
        bench
    }

    fn drain(&mut self) {
        while let Some(effect) = self.router.poll_effect() {
            match effect {
                Effect::Send { link, message } => self.sent.push((link, message)),
                Effect::Sign { body } => {
                    let announcement = verified(&self.me, body);
                    self.router.handle(Input::Signed { announcement }, self.now);
                }
                Effect::Routes(_) => self.tables += 1,
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.router.handle(input, self.now);
        self.drain();
    }

    fn up(&mut self, link: u64, peer: &Identity, cost: u32) {
        self.handle(Input::LinkUp { link: LinkId(link), peer: peer.clone(), cost });
    }

    fn hear(&mut self, link: u64, announcement: VerifiedAnnouncement) {
        self.handle(Input::Announcement { link: LinkId(link), announcement });
        // A large map is computed at a pace; these facts are not about the pace.
        self.advance(Duration::from_millis(1));
    }

    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.router.poll_timeout().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.router.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// What was sent since the last call: link and, for announcements, origin and version.
    fn announcements(&mut self) -> Vec<(u64, u32, u64, u64)> {
        std::mem::take(&mut self.sent)
            .into_iter()
            .filter_map(|(link, message)| match message {
                LinkMessageKind::Announcement(signed) => {
                    let body = Announcement::decode(signed.body).unwrap();
                    Some((link.0, body.origin, body.epoch, body.sequence))
                }
                _ => None,
            })
            .collect()
    }

    fn way(&self, to: u32) -> Option<(u64, u32, u32)> {
        self.router.routes().get(Address(to)).map(|r| (r.next.link.0, r.next.cost, r.next.hops))
    }

    fn second(&self, to: u32) -> Option<(u64, u32)> {
        self.router.routes().get(Address(to))?.second.map(|s| (s.link.0, s.cost))
    }
}

#[test]
fn a_link_counts_when_both_ends_announce_it() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 5);
    assert_eq!(bench.way(2), None, "our word alone");
    bench.hear(1, announce(&hop(2), (1, 1), &[]));
    assert_eq!(bench.way(2), None, "the peer does not say so");
    bench.hear(1, announce(&hop(2), (1, 2), &[(1, 5), (3, 1)]));
    assert_eq!(bench.way(2), Some((1, 5, 1)));
    bench.hear(1, announce(&hop(3), (1, 1), &[]));
    assert_eq!(bench.way(3), None, "3 does not say so");
    bench.hear(1, announce(&hop(3), (1, 2), &[(2, 4)]));
    assert_eq!(bench.way(3), Some((1, 9, 2)), "the dearer of both words counts");
    bench.handle(Input::LinkDown { link: LinkId(1) });
    assert_eq!((bench.way(2), bench.way(3)), (None, None));
}

#[test]
fn only_hops_transit() {
    for (middle, reached) in [(Role::Hop, true), (Role::Execution, false), (Role::Controller, false)] {
        let mut bench = Bench::new(identity(1, Role::Controller), 1);
        let middle = identity(2, middle);
        bench.up(1, &middle, 1);
        bench.hear(1, announce(&middle, (1, 1), &[(1, 1), (3, 1)]));
        bench.hear(1, announce(&identity(3, Role::Execution), (1, 1), &[(2, 1)]));
        assert!(bench.way(2).is_some());
        assert_eq!(bench.way(3).is_some(), reached, "{middle:?}");
    }
}

#[test]
fn the_cheapest_way_wins_and_the_next_by_another_link_is_kept() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(7, &hop(2), 10);
    bench.up(8, &hop(3), 1);
    bench.up(9, &hop(3), 4);
    bench.hear(7, announce(&hop(2), (1, 1), &[(1, 10), (3, 1), (4, 1)]));
    bench.hear(8, announce(&hop(3), (1, 1), &[(1, 1), (2, 1)]));
    bench.hear(8, announce(&hop(4), (1, 1), &[(2, 1)]));
    assert_eq!((bench.way(2), bench.second(2)), (Some((8, 2, 2)), Some((9, 5))));
    assert_eq!((bench.way(3), bench.second(3)), (Some((8, 1, 1)), Some((9, 4))), "two links to one neighbor");
    assert_eq!((bench.way(4), bench.second(4)), (Some((8, 3, 3)), Some((9, 6))));
    bench.handle(Input::LinkDown { link: LinkId(8) });
    bench.handle(Input::LinkDown { link: LinkId(9) });
    assert_eq!((bench.way(4), bench.second(4)), (Some((7, 11, 2)), None));
}

#[test]
fn ties_go_to_the_lowest_neighbor_whatever_came_first() {
    for order in [[2, 3], [3, 2]] {
        let mut bench = Bench::new(hop(1), 1);
        for neighbor in order {
            bench.up(u64::from(10 - neighbor), &hop(neighbor), 1);
        }
        for neighbor in order {
            bench.hear(u64::from(10 - neighbor), announce(&hop(neighbor), (1, 1), &[(1, 1), (4, 1)]));
        }
        bench.hear(7, announce(&hop(4), (1, 1), &[(2, 1), (3, 1)]));
        assert_eq!((bench.way(4), bench.second(4)), (Some((8, 2, 2)), Some((7, 2))));
    }
}

#[test]
fn newer_is_passed_on_once_and_older_is_answered_with_the_newer() {
    let mut bench = Bench::new(hop(1), 1);
    for (link, peer) in [(1, 2), (2, 3), (3, 4)] {
        bench.up(link, &hop(peer), 1);
    }
    bench.announcements();
    bench.hear(1, announce(&hop(9), (2, 5), &[]));
    assert_eq!(bench.announcements(), [(2, 9, 2, 5), (3, 9, 2, 5)]);
    bench.hear(2, announce(&hop(9), (2, 5), &[]));
    assert_eq!(bench.announcements(), [], "the same");
    for old in [(2, 4), (1, 99)] {
        bench.hear(3, announce(&hop(9), old, &[(4, 1)]));
        assert_eq!(bench.announcements(), [(3, 9, 2, 5)], "older");
    }
    assert!(bench.router.nodes().all(|known| known.identity.address.0 != 9 || known.links.is_empty()));
    bench.hear(3, announce(&hop(9), (3, 0), &[]));
    assert_eq!(bench.announcements(), [(1, 9, 3, 0), (2, 9, 3, 0)], "a higher epoch");
}

#[test]
fn signed_bytes_are_passed_on_untouched() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.up(2, &hop(3), 1);
    let mut body = Announcement { origin: 9, epoch: 1, sequence: 1, ..Default::default() }.encode_to_vec();
    body.extend_from_slice(&[0xfa, 0x3f, 3, b'n', b'e', b'w']); // Field 1023, of a later version.
    let signed =
        SignedAnnouncement { body: body.into(), signature: vec![7; 64].into(), chain: vec![vec![1].into()] };
    bench.sent.clear();
    bench.hear(1, VerifiedAnnouncement::new(hop(9), signed.clone()).unwrap());
    assert_eq!(bench.sent, [(LinkId(2), LinkMessageKind::Announcement(signed))]);
}

#[test]
fn messages_of_unknown_links_are_ignored() {
    let mut bench = Bench::new(hop(1), 1);
    bench.hear(5, announce(&hop(9), (1, 1), &[]));
    bench.handle(Input::Want { link: LinkId(5), want: Want { origins: vec![1] } });
    let digest = Digest { entries: vec![DigestEntry { origin: 4, epoch: 1, sequence: 1, check: 0 }] };
    bench.handle(Input::Digest { link: LinkId(5), digest });
    bench.handle(Input::LinkDown { link: LinkId(5) });
    assert_eq!(bench.router.nodes().count(), 1);
    assert_eq!(bench.sent, []);
}

#[test]
fn a_link_to_oneself_is_no_link() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(1), 1);
    bench.hear(1, announce(&hop(9), (1, 1), &[]));
    assert_eq!(bench.router.nodes().count(), 1);
}

#[test]
fn an_origin_goes_above_its_forgotten_self() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.announcements();
    bench.hear(1, announce(&hop(1), (7, 3), &[(2, 1)]));
    assert_eq!(bench.announcements(), [(1, 1, 7, 4)]);
    bench.hear(1, announce(&hop(1), (7, 4), &[(2, 1), (3, 1)]));
    assert_eq!(bench.announcements(), [(1, 1, 7, 5)], "the same version with other content");
    bench.hear(1, announce(&hop(1), (7, 2), &[]));
    assert_eq!(bench.announcements(), [(1, 1, 7, 5)], "an older one is answered");
    bench.hear(1, announce(&hop(1), (7, u64::MAX), &[]));
    assert_eq!(bench.announcements(), [(1, 1, 8, 0)]);
}

#[test]
fn own_announcements_are_paced() {
    let mut bench = Bench::new(hop(1), 1);
    for round in 0..1000 {
        bench.up(round, &hop(2), 1);
        bench.handle(Input::LinkDown { link: LinkId(round) });
    }
    bench.up(5000, &hop(2), 1);
    let sequence = |bench: &Bench| bench.router.nodes().next().unwrap().version.sequence;
    assert!(sequence(&bench) <= u64::from(SIGN_BURST), "{}", sequence(&bench));
    bench.sent.clear();
    bench.advance(SIGN_PERIOD);
    let last = bench.router.nodes().next().unwrap();
    assert_eq!(last.links.get(&Address(2)), Some(&1), "what is true in the end is announced");
    assert_eq!(bench.announcements().len(), 1);
}

#[test]
fn a_signature_that_was_overtaken_is_not_sent() {
    let now = Instant::now();
    let mut router = Router::new(hop(1), 1, String::new(), now);
    let mut bodies = vec![];
    router.handle(Input::LinkUp { link: LinkId(1), peer: hop(2), cost: 1 }, now);
    while let Some(effect) = router.poll_effect() {
        if let Effect::Sign { body } = effect {
            bodies.push(body);
        }
    }
    assert_eq!(bodies.len(), 2);
    for (body, sent) in bodies.into_iter().zip([0, 1]) {
        router.handle(Input::Signed { announcement: verified(&hop(1), body) }, now);
        let effects =
            std::iter::from_fn(|| router.poll_effect()).filter(|e| matches!(e, Effect::Send { .. }));
        assert_eq!(effects.count(), sent);
    }
}

#[test]
fn digests_ask_for_what_is_newer_missing_or_different_only() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    let held = announce(&hop(3), (2, 2), &[]);
    bench.hear(1, held.clone());
    let entry = |origin, epoch, sequence, check| DigestEntry { origin, epoch, sequence, check };
    let cases = [
        (entry(3, 2, 2, held.check), false),
        (entry(3, 2, 2, held.check ^ 1), true),
        (entry(3, 2, 1, 0), false),
        (entry(3, 2, 3, 0), true),
        (entry(4, 0, 0, 0), true),
        (entry(1, 0, 9, 0), false),
        (entry(1, 9, 0, 0), true),
    ];
    for (entry, asked) in cases {
        // What was asked before is taken as lost.
        bench.advance(WANT_PATIENCE);
        bench.sent.clear();
        bench.handle(Input::Digest { link: LinkId(1), digest: Digest { entries: vec![entry, entry] } });
        let want = (LinkId(1), LinkMessageKind::Want(Want { origins: vec![entry.origin] }));
        assert_eq!(bench.sent, if asked { vec![want] } else { vec![] }, "{entry:?}");
    }
}

#[test]
fn a_large_map_is_asked_for_in_batches() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.sent.clear();
    let origins = 1000..1000 + 2 * WANT_BATCH as u32 + 9;
    let entries: Vec<_> =
        origins.clone().map(|origin| DigestEntry { origin, epoch: 1, ..Default::default() }).collect();
    let digest = Digest { entries };
    bench.handle(Input::Digest { link: LinkId(1), digest: digest.clone() });
    bench.handle(Input::Digest { link: LinkId(1), digest });
    let (mut asked, mut batches) = (vec![], vec![]);
    while !bench.sent.is_empty() {
        let [(LinkId(1), LinkMessageKind::Want(want))] = &bench.sent[..] else { panic!("{:?}", bench.sent) };
        let wanted = want.origins.clone();
        bench.sent.clear();
        for &origin in &wanted {
            assert!(bench.sent.is_empty(), "the next batch only when this one is here");
            let announcement = announce(&hop(origin), (1, 0), &[]);
            bench.handle(Input::Announcement { link: LinkId(1), announcement });
        }
        batches.push(wanted.len());
        asked.extend(wanted);
    }
    assert_eq!(batches, [WANT_BATCH, WANT_BATCH, 9]);
    assert_eq!(asked, origins.collect::<Vec<_>>());
}

#[test]
fn a_want_is_answered_once_for_each_origin() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.hear(1, announce(&hop(3), (2, 2), &[]));
    bench.announcements();
    bench.handle(Input::Want { link: LinkId(1), want: Want { origins: vec![3, 1, 3, 3, 77] } });
    assert_eq!(bench.announcements(), [(1, 1, 1, 2), (1, 3, 2, 2)]);
}

#[test]
fn digests_go_out_periodically_and_name_the_reachable_only() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1)]));
    bench.hear(1, announce(&hop(3), (1, 1), &[]));
    bench.sent.clear();
    bench.advance(DIGEST_PERIOD);
    let [(LinkId(1), LinkMessageKind::Digest(digest))] = &bench.sent[..] else { panic!("{:?}", bench.sent) };
    assert_eq!(digest.entries.iter().map(|e| e.origin).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn digests_go_out_when_a_link_comes_up_and_soon_after_somebody_new_is_within_reach() {
    let mut bench = Bench::new(hop(1), 1);
    let named = |bench: &mut Bench| -> Vec<(u64, Vec<u32>)> {
        let sent = std::mem::take(&mut bench.sent).into_iter();
        sent.filter_map(|(link, message)| match message {
            LinkMessageKind::Digest(digest) => {
                Some((link.0, digest.entries.iter().map(|e| e.origin).collect()))
            }
            _ => None,
        })
        .collect()
    };
    bench.up(1, &hop(2), 1);
    assert_eq!(named(&mut bench), [(1, vec![1])]);
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1)]));
    assert_eq!(named(&mut bench), []);
    bench.advance(DIGEST_SOON);
    assert_eq!(named(&mut bench), [(1, vec![1, 2])]);
}

#[test]
fn of_two_announcements_of_one_version_the_greater_bytes_count() {
    let (lesser, greater) = (announce(&hop(9), (1, 1), &[(3, 1)]), announce(&hop(9), (1, 1), &[(4, 1)]));
    for order in [[&lesser, &greater], [&greater, &lesser]] {
        let mut bench = Bench::new(hop(1), 1);
        bench.up(1, &hop(2), 1);
        order.into_iter().for_each(|heard| bench.hear(1, heard.clone()));
        let kept = bench.router.nodes().find(|known| known.identity.address.0 == 9).unwrap();
        assert_eq!(kept.links, &greater.links);
    }
}

#[test]
fn the_unreachable_are_forgotten_after_an_hour() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1)]));
    bench.hear(1, announce(&hop(3), (1, 1), &[]));
    let names =
        |bench: &Bench| bench.router.nodes().map(|n| (n.identity.address.0, n.reachable)).collect::<Vec<_>>();
    assert_eq!(names(&bench), [(1, true), (2, true), (3, false)]);
    bench.advance(FORGET_AFTER - DIGEST_PERIOD);
    assert_eq!(names(&bench).len(), 3);
    bench.advance(2 * DIGEST_PERIOD);
    assert_eq!(names(&bench), [(1, true), (2, true)]);
}

#[test]
fn the_reachable_holder_of_a_name_is_found() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1), (4, 1)]));
    let named = |address| Identity { node: "moved".parse().unwrap(), ..hop(address) };
    bench.hear(1, announce(&named(4), (1, 1), &[(2, 1)]));
    bench.hear(1, announce(&named(5), (1, 1), &[]));
    let found = bench.router.find(&"moved".parse().unwrap()).unwrap();
    assert_eq!((found.identity.address.0, found.reachable), (4, true));
    assert!(bench.router.find(&"nobody".parse().unwrap()).is_none());
}

#[test]
fn an_unchanged_table_is_not_sent_again() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1)]));
    let before = bench.tables;
    bench.hear(1, announce(&hop(2), (1, 2), &[(1, 1)]));
    bench.hear(1, announce(&hop(2), (1, 3), &[(1, 1), (8, 1)]));
    assert_eq!(bench.tables, before);
}

#[test]
fn what_no_node_would_say_is_refused() {
    let body = |announcement: Announcement| SignedAnnouncement {
        body: announcement.encode_to_vec().into(),
        ..Default::default()
    };
    let refused =
        |announcement| VerifiedAnnouncement::new(hop(1), body(announcement)).unwrap_err().to_string();
    let origin = 1;
    assert_eq!(
        refused(Announcement { origin: 2, ..Default::default() }),
        "announcement of 00000002 was signed by 00000001"
    );
    let links = vec![AnnouncedLink { neighbor: 2, cost: 1 }; LINKS_MAX + 1];
    assert!(refused(Announcement { origin, links, ..Default::default() }).ends_with("links"));
    let software = "x".repeat(129);
    assert!(refused(Announcement { origin, software, ..Default::default() }).ends_with("software"));
    let services = vec![String::new(); 65];
    assert!(refused(Announcement { origin, services, ..Default::default() }).ends_with("services"));
    let garbage = SignedAnnouncement { body: vec![0xff; 9].into(), ..Default::default() };
    assert!(matches!(VerifiedAnnouncement::new(hop(1), garbage), Err(AnnouncementError::Decode(_))));
}

#[test]
fn costs_are_positive_and_bounded() {
    let heard = announce(&hop(2), (1, 1), &[(1, 0), (3, u32::MAX), (4, 9), (4, 3), (2, 1)]);
    assert_eq!(
        heard.links.into_iter().collect::<Vec<_>>(),
        [(Address(1), 1), (Address(3), 1 << 16), (Address(4), 3)]
    );
}

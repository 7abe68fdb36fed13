//! Facts of one router; many routers together are in `tests/sim.rs`.

use plexus_proto::id::Role;
use plexus_proto::link::{AnnouncedLink, Announcement, DigestEntry, ToldRoute};
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
    doubted: Vec<LinkId>,
    unknown: Vec<NodeId>,
}

impl Bench {
    fn new(me: Identity, epoch: u64) -> Self {
        let now = Instant::now();
        let router = Router::new(me.clone(), epoch, "test".into(), now);
        let mut bench = Self { me, router, now, sent: vec![], tables: 0, doubted: vec![], unknown: vec![] };
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
                Effect::Doubt { link } => self.doubted.push(link),
                Effect::Unknown(name) => self.unknown.push(name),
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
        self.router.routes().get(Address(to))?.backup.map(|s| (s.link.0, s.cost))
    }
}

#[test]
fn news_are_announced_and_change_no_way() {
    let mut node = Bench::new(identity(9, Role::Execution), 4);
    node.up(1, &hop(2), 5);
    node.announcements();
    node.handle(Input::News);
    let said = std::mem::take(&mut node.sent);
    let [(_, LinkMessageKind::Announcement(signed))] = said.as_slice() else { panic!("{said:?}") };

    let mut hop = Bench::new(hop(2), 1);
    hop.up(1, &node.me, 5);
    hop.up(2, &identity(3, Role::Controller), 5);
    hop.hear(1, announce(&node.me, (4, 1), &[(2, 5)]));
    let before = (hop.way(9), hop.tables);
    assert_eq!(hop.router.find(&node.me.node).unwrap().news, 0);
    hop.announcements();
    hop.hear(1, verified(&node.me, signed.body.to_vec()));
    assert_eq!(hop.router.find(&node.me.node).unwrap().news, 1);
    assert_eq!((hop.way(9), hop.tables), before);
    let passed_on = hop.announcements();
    assert!(matches!(passed_on[..], [(2, 9, 4, _)]), "{passed_on:?}");
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
    assert_eq!((bench.way(2), bench.second(2)), (Some((8, 2, 2)), Some((7, 10))));
    assert_eq!((bench.way(3), bench.second(3)), (Some((8, 1, 1)), Some((9, 4))), "two links to one neighbor");
    assert_eq!((bench.way(4), bench.second(4)), (Some((8, 3, 3)), Some((7, 11))));
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
    let digest = Digest {
        entries: vec![DigestEntry { origin: 4, epoch: 1, sequence: 1, check: 0 }],
        ..Digest::default()
    };
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
        bench.handle(Input::Digest {
            link: LinkId(1),
            digest: Digest { entries: vec![entry, entry], ..Digest::default() },
        });
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
    let digest = Digest { entries, ..Digest::default() };
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

/// Two hops and what is between them, as far as digests go.
fn compare(first: &mut Bench, second: &mut Bench) -> usize {
    let mut frames = 0;
    loop {
        let there: Vec<_> = first.sent.drain(..).map(|(_, message)| message).collect();
        let back: Vec<_> = second.sent.drain(..).map(|(_, message)| message).collect();
        if there.is_empty() && back.is_empty() {
            return frames;
        }
        for (messages, to) in [(there, &mut *second), (back, &mut *first)] {
            frames += messages.len();
            for message in messages {
                let input = match message {
                    LinkMessageKind::Announcement(signed) => {
                        let origin = Announcement::decode(signed.body.clone()).unwrap().origin;
                        let announcement = VerifiedAnnouncement::new(hop(origin), signed).unwrap();
                        Input::Announcement { link: LinkId(1), announcement }
                    }
                    other => Input::heard(LinkId(1), other).unwrap(),
                };
                to.handle(input);
            }
        }
    }
}

#[test]
fn digests_of_equal_maps_are_one_sum_and_of_others_bring_what_is_lacking() {
    let (mut first, mut second) = (Bench::new(hop(1), 1), Bench::new(hop(2), 1));
    first.up(1, &hop(2), 1);
    second.up(1, &hop(1), 1);
    compare(&mut first, &mut second);
    // A chain behind the first: what it hears of 5 and 6 the second never gets.
    first.up(9, &hop(3), 1);
    first.hear(9, announce(&hop(3), (1, 1), &[(1, 1), (4, 1)]));
    first.hear(9, announce(&hop(4), (1, 1), &[(3, 1), (5, 1)]));
    compare(&mut first, &mut second);
    first.hear(9, announce(&hop(5), (1, 1), &[(4, 1), (6, 1)]));
    first.hear(9, announce(&hop(6), (1, 1), &[(5, 1)]));
    first.sent.clear();
    assert_eq!((first.way(6).is_some(), second.way(6)), (true, None));
    first.advance(DIGEST_PERIOD);
    second.advance(DIGEST_PERIOD);
    first.sent.retain(|(link, _)| *link == LinkId(1));
    compare(&mut first, &mut second);
    assert_eq!(second.way(6), Some((1, 5, 5)));
    first.advance(DIGEST_PERIOD);
    second.advance(DIGEST_PERIOD);
    first.sent.retain(|(link, _)| *link == LinkId(1));
    assert_eq!(compare(&mut first, &mut second), 2, "one sum each way");
}

#[test]
fn a_digest_covers_the_reachable_only() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(1, &hop(2), 1);
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1)]));
    let sum = |bench: &mut Bench| {
        bench.sent.clear();
        bench.advance(DIGEST_PERIOD);
        let [(LinkId(1), LinkMessageKind::Digest(digest))] = &bench.sent[..] else {
            panic!("{:?}", bench.sent)
        };
        assert!(digest.entries.is_empty() && digest.buckets.is_empty());
        digest.sum
    };
    let before = sum(&mut bench);
    bench.hear(1, announce(&hop(3), (1, 1), &[]));
    assert_eq!(sum(&mut bench), before);
    bench.hear(1, announce(&hop(3), (1, 2), &[(2, 1)]));
    bench.hear(1, announce(&hop(2), (1, 2), &[(1, 1), (3, 1)]));
    assert_ne!(sum(&mut bench), before);
}

#[test]
fn digests_go_out_when_a_link_comes_up_and_soon_after_somebody_new_is_within_reach() {
    let mut bench = Bench::new(hop(1), 1);
    let digests = |bench: &mut Bench| {
        let sent = std::mem::take(&mut bench.sent).into_iter();
        sent.filter(|(_, message)| matches!(message, LinkMessageKind::Digest(_))).count()
    };
    bench.up(1, &hop(2), 1);
    assert_eq!(digests(&mut bench), 1);
    bench.hear(1, announce(&hop(9), (1, 1), &[(2, 1)]));
    bench.up(3, &hop(3), 1);
    assert_eq!(digests(&mut bench), 1, "to the new one");
    bench.hear(1, announce(&hop(2), (1, 1), &[(1, 1), (9, 1)]));
    assert_eq!(digests(&mut bench), 0);
    bench.advance(DIGEST_SOON);
    assert_eq!(digests(&mut bench), 2, "3 has not heard of 9");
}

/// An execution node linked to two hops.
fn leaf() -> Bench {
    let mut bench = Bench::new(identity(1, Role::Execution), 1);
    bench.up(2, &hop(2), 1);
    bench.up(3, &hop(3), 5);
    bench
}

fn tell(bench: &mut Bench, link: u64, routes: &[(u32, u32, u32)], whole: bool) {
    let route = |&(destination, cost, path)| ToldRoute { destination, cost, hops: u32::from(cost > 0), path };
    let told = Told { routes: routes.iter().map(route).collect(), whole, unknown: vec![] };
    bench.handle(Input::Told { link: LinkId(link), told });
}

#[test]
fn a_node_without_a_map_takes_the_least_of_link_and_told_cost_and_keeps_the_second() {
    let mut bench = leaf();
    assert_eq!(
        (bench.way(2), bench.way(3)),
        (Some((2, 1, 1)), Some((3, 5, 1))),
        "neighbours need no telling"
    );
    tell(&mut bench, 2, &[(9, 10, 1)], true);
    assert_eq!((bench.way(9), bench.second(9)), (Some((2, 11, 2)), None));
    tell(&mut bench, 3, &[(9, 3, 1)], true);
    assert_eq!((bench.way(9), bench.second(9)), (Some((3, 8, 2)), Some((2, 11))));
    tell(&mut bench, 3, &[(9, 0, 0)], false);
    assert_eq!((bench.way(9), bench.second(9)), (Some((2, 11, 2)), None), "no route: the hop is left");
    tell(&mut bench, 3, &[(9, 3, 2)], false);
    bench.handle(Input::LinkSilent { link: LinkId(3), silent: true });
    assert_eq!(bench.way(9).map(|way| way.0), Some(2), "a silent hop too");
    bench.handle(Input::LinkDown { link: LinkId(2) });
    assert_eq!(bench.way(9).map(|way| way.0), Some(3), "better than none");
    tell(&mut bench, 3, &[], true);
    assert_eq!(bench.way(9), None, "what was not told again is void");
}

#[test]
fn a_node_without_a_map_keeps_announcements_of_controllers_and_of_whom_it_asked_for() {
    let mut bench = leaf();
    let names = |bench: &Bench| bench.router.nodes().map(|n| n.identity.address.0).collect::<Vec<_>>();
    bench.hear(2, announce(&identity(8, Role::Controller), (1, 1), &[(2, 1)]));
    bench.hear(2, announce(&identity(9, Role::Execution), (1, 1), &[(2, 1)]));
    assert_eq!(names(&bench), [1, 8, 2, 3]);
    bench.sent.clear();
    let lookup = |names| Input::Lookup { addresses: vec![Address(9)], names };
    bench.handle(lookup(vec!["n7".parse().unwrap()]));
    let asked: Vec<u64> = bench.sent.iter().map(|(link, _)| link.0).collect();
    assert_eq!(asked, [2, 3], "every hop, for each may know another way");
    bench.hear(2, announce(&identity(9, Role::Execution), (1, 1), &[(2, 1)]));
    bench.hear(2, announce(&identity(7, Role::Execution), (1, 1), &[(2, 1)]));
    assert_eq!(names(&bench), [1, 7, 8, 9, 2, 3]);
    assert_eq!(bench.announcements(), [], "it passes nothing on");
}

#[test]
fn a_name_is_unknown_when_every_hop_says_so() {
    let mut bench = leaf();
    bench.handle(Input::Lookup { addresses: vec![], names: vec!["n7".parse().unwrap()] });
    for (link, unknown) in [(2, 0), (2, 0), (3, 1)] {
        let told = Told { unknown: vec!["n7".into()], ..Told::default() };
        bench.handle(Input::Told { link: LinkId(link), told });
        assert_eq!(bench.unknown.len(), unknown);
    }
}

#[test]
fn a_hop_tells_the_way_to_controllers_and_to_whom_was_asked_for() {
    let mut bench = Bench::new(hop(1), 1);
    let (node, controller) = (identity(5, Role::Execution), identity(8, Role::Controller));
    bench.up(2, &hop(2), 3);
    bench.up(5, &node, 1);
    bench.hear(2, announce(&hop(2), (1, 1), &[(1, 3), (8, 4), (9, 1)]));
    bench.hear(2, announce(&controller, (1, 1), &[(2, 4)]));
    bench.hear(2, announce(&hop(9), (1, 1), &[(2, 1)]));
    let told = |bench: &mut Bench| -> (Vec<u32>, Vec<(u32, u32)>) {
        let (mut shown, mut told) = (vec![], vec![]);
        for (_, message) in std::mem::take(&mut bench.sent).into_iter().filter(|(link, _)| *link == LinkId(5))
        {
            match message {
                LinkMessageKind::Announcement(signed) => {
                    shown.push(Announcement::decode(signed.body).unwrap().origin);
                }
                LinkMessageKind::Told(new) => told.extend(new.routes.iter().map(|r| (r.destination, r.cost))),
                other => panic!("{other:?}"),
            }
        }
        (shown, told)
    };
    assert_eq!(told(&mut bench), (vec![], vec![]), "not before the link is announced by both");
    bench.hear(5, announce(&node, (1, 1), &[(1, 1)]));
    assert_eq!(told(&mut bench), (vec![8], vec![(8, 7)]));
    let ask = Ask { addresses: vec![9], names: vec!["n2".into()], all: false };
    bench.handle(Input::Ask { link: LinkId(5), ask });
    assert_eq!(told(&mut bench), (vec![2, 9], vec![(2, 3), (9, 4)]));
    bench.hear(2, announce(&controller, (1, 2), &[(2, 5)]));
    assert_eq!(told(&mut bench), (vec![], vec![(8, 8)]));
    bench.handle(Input::LinkDown { link: LinkId(2) });
    assert_eq!(told(&mut bench), (vec![], vec![(2, 0), (8, 0), (9, 0)]));
}

#[test]
fn a_backup_does_not_send_the_packet_back() {
    // 1 - 2 - 4 cheap; 3 reaches 4 by way of 1 only as cheaply.
    for (cost, backup) in [(9, None), (1, Some((3, 3)))] {
        let mut bench = Bench::new(hop(1), 1);
        bench.up(2, &hop(2), 1);
        bench.up(3, &hop(3), 2);
        bench.hear(2, announce(&hop(2), (1, 1), &[(1, 1), (4, 1)]));
        bench.hear(3, announce(&hop(3), (1, 1), &[(1, 2), (4, cost)]));
        bench.hear(2, announce(&hop(4), (1, 1), &[(2, 1), (3, cost)]));
        assert_eq!((bench.way(4), bench.second(4)), (Some((2, 2, 2)), backup));
    }
}

#[test]
fn a_backup_past_the_neighbour_is_better_than_a_cheap_one_through_it() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(2, &hop(2), 1);
    bench.up(3, &hop(3), 1);
    bench.up(5, &hop(5), 9);
    bench.hear(2, announce(&hop(2), (1, 1), &[(1, 1), (3, 1), (4, 1)]));
    bench.hear(3, announce(&hop(3), (1, 1), &[(1, 1), (2, 1)]));
    bench.hear(5, announce(&hop(5), (1, 1), &[(1, 9), (4, 9)]));
    bench.hear(2, announce(&hop(4), (1, 1), &[(2, 1), (5, 9)]));
    assert_eq!((bench.way(4), bench.second(4)), (Some((2, 2, 2)), Some((5, 18))), "3 leads through 2");
    // From the moment of silence 2 is presumed dead, though only our own link to it may be.
    bench.handle(Input::LinkSilent { link: LinkId(2), silent: true });
    assert_eq!(bench.way(4).map(|way| way.0), Some(5));
    bench.advance(PRESUMED);
    assert_eq!(bench.way(4).map(|way| way.0), Some(3), "nobody else has lost it");
}

#[test]
fn a_silent_link_is_still_better_than_none() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(2, &hop(2), 1);
    bench.hear(2, announce(&hop(2), (1, 1), &[(1, 1)]));
    bench.handle(Input::LinkSilent { link: LinkId(2), silent: true });
    assert!(bench.way(2).is_some());
    bench.handle(Input::LinkSilent { link: LinkId(2), silent: false });
    assert_eq!(bench.way(2), Some((2, 1, 1)));
}

#[test]
fn a_neighbour_that_somebody_else_lost_is_doubted() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(2, &hop(2), 1);
    bench.up(3, &hop(3), 1);
    bench.hear(3, announce(&hop(3), (1, 1), &[(1, 1), (2, 1)]));
    bench.hear(3, announce(&hop(3), (1, 2), &[(1, 1), (2, 1 << 16)]));
    assert_eq!(bench.doubted, [LinkId(2)], "it has fallen silent there");
    bench.hear(3, announce(&hop(3), (1, 3), &[(1, 1)]));
    assert_eq!(bench.doubted, [LinkId(2), LinkId(2)]);
}

#[test]
fn a_path_that_breaks_has_another_number_although_one_as_short_is_left() {
    let mut bench = Bench::new(hop(1), 1);
    bench.up(2, &hop(2), 1);
    let middle = |neighbor: u32| [(neighbor, 1), (5, 1)];
    bench.hear(2, announce(&hop(2), (1, 1), &[(1, 1), (3, 1), (4, 1)]));
    bench.hear(2, announce(&hop(3), (1, 1), &middle(2)));
    bench.hear(2, announce(&hop(4), (1, 1), &middle(2)));
    bench.hear(2, announce(&hop(5), (1, 1), &[(3, 1), (4, 1)]));
    let before = *bench.router.routes().get(Address(5)).unwrap();
    bench.hear(2, announce(&hop(3), (1, 2), &[(2, 1)]));
    let after = *bench.router.routes().get(Address(5)).unwrap();
    assert_eq!((after.next, after.path != before.path), (before.next, true));
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
        heard.links.clone().into_iter().collect::<Vec<_>>(),
        [(Address(1), 1), (Address(3), 1 << 16), (Address(4), 3)]
    );
}

//! What is not as it should be, and what to do about it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use plexus_proto::id::NodeId;

use super::{NodeStatus, Problem, Status};
use crate::events::MeshEvent;

/// A certificate that ends sooner than this should have been renewed: a third of the usual thirty days.
const EXPIRES_SOON: SignedDuration = SignedDuration::from_hours(10 * 24);
/// Clocks further apart than this make times of events and jobs misleading; certificates are more patient.
const SKEW_MS: f64 = 5000.0;

/// Problems of `status` at `now`, the gravest first.
pub(super) fn find(status: &Status, now: Timestamp) -> Vec<Problem> {
    let mut found = Vec::new();
    certificate(status, now, &mut found);
    if status.links.is_empty() {
        found.push(problem(
            "no_links",
            &status.node,
            "this node has no links".into(),
            match (status.peers.is_empty(), status.listen.is_empty()) {
                (false, _) => {
                    "see why its peers do not answer, below; plexus netcheck NODE says what the network does"
                }
                (true, false) => {
                    "nobody has dialed it: look at mesh.peers on the other nodes, and at the firewall here"
                }
                (true, true) => "name a peer under mesh.peers in its configuration, then plexus reload",
            },
        ));
    }
    for peer in status.peers.iter().filter(|peer| !peer.linked) {
        let name = peer.node.as_ref().map_or_else(String::new, |node| format!(" ({node})"));
        let since = peer.since.map_or_else(String::new, |since| format!(" since {}", second(since)));
        let reason = peer.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let text = format!("no link to configured peer {}{name}{since}{reason}", peer.address);
        found.push(problem("peer_down", &peer.address, text, advice_for(peer.error.as_deref())));
    }
    unreachable(status, &mut found);
    for link in &status.links {
        if let Some(skew) = link.more.clock_skew_ms.filter(|skew| skew.abs() > SKEW_MS) {
            let (apart, way) = (skew.abs() / 1e3, if skew > 0.0 { "ahead of" } else { "behind" });
            let text = format!("clock of {} is {apart:.0} s {way} ours", link.peer);
            found.push(problem(
                "clock_skew",
                &link.peer,
                text,
                "have NTP set both clocks: timedatectl set-ntp true",
            ));
        }
        if let Some(expires) =
            link.more.certificate_expires.filter(|&expires| expires < now + EXPIRES_SOON / 2)
        {
            let text = format!("certificate of {} ends at {expires}", link.peer);
            let advice =
                "it should have renewed it by itself: see its log, and whether it reaches a controller";
            found.push(problem("certificate_expires", &link.peer, text, advice));
        }
    }
    versions(status, &mut found);
    found
}

/// Nodes that are gone: first those whose neighbours are there, then those that may only be behind them.
fn unreachable(status: &Status, found: &mut Vec<Problem>) {
    let gone: BTreeSet<&NodeId> =
        status.nodes.iter().filter(|node| !node.reachable).map(|node| &node.node).collect();
    let is_behind = |node: &&NodeStatus| {
        node.neighbors.keys().all(|other| gone.contains(other)) && !node.neighbors.is_empty()
    };
    let all = status.nodes.iter().filter(|node| !node.reachable);
    let (behind, first): (Vec<&NodeStatus>, Vec<&NodeStatus>) = all.partition(is_behind);
    for node in first {
        let text = format!("node {} is unreachable since {}", node.node, second(node.since));
        let advice = "see that its machine and plexus-node run there, then plexus status on it; \
                      plexus node revoke, if it is gone for good";
        found.push(problem("node_unreachable", &node.node, text, advice));
    }
    for node in behind {
        let ways: Vec<&str> = node.neighbors.keys().take(3).map(NodeId::as_str).collect();
        let text = format!(
            "node {} is unreachable since {}, as is what it was linked with: {}",
            node.node,
            second(node.since),
            ways.join(", ")
        );
        let advice = "mend the way there first: it may be well behind it";
        found.push(problem("node_unreachable", &node.node, text, advice));
    }
}

impl Problem {
    /// Of the event that a node was heard twice.
    pub(crate) fn of_clone(event: &MeshEvent) -> Self {
        let name = event.node.as_ref().map_or("", |node| node.as_str());
        let advice = format!(
            "stop the copy and delete its identity; if you cannot tell which is the copy: plexus node revoke {name}, \
             and let both join anew, under names of their own"
        );
        problem("clone", &name, format!("{} (last heard {})", event.text, second(event.at)), &advice)
    }
}

/// As people read times: nobody looks for nanoseconds.
fn second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn problem(code: &str, subject: &impl ToString, text: String, advice: &str) -> Problem {
    Problem { code: code.into(), subject: subject.to_string(), text, advice: advice.into() }
}

fn certificate(status: &Status, now: Timestamp, found: &mut Vec<Problem>) {
    let expires = status.certificate_expires;
    let left = expires.duration_since(now);
    if left < EXPIRES_SOON {
        let (text, advice) = match left.is_negative() {
            true => (
                format!("certificate of this node expired at {expires}"),
                "it is renewed once a controller can be reached; else plexus ca issue or plexus-node join",
            ),
            false => (
                format!("certificate of this node expires at {expires}"),
                "it should be renewed by now: see its log, and whether it reaches a controller; else plexus ca issue",
            ),
        };
        found.push(problem("certificate_expires", &status.node, text, advice));
    }
}

/// What most likely helps against `error`, which is for people and not decided on.
fn advice_for(error: Option<&str>) -> &'static str {
    let said = |word: &str| error.is_some_and(|error| error.contains(word));
    if said("timed out") || said("no answer") {
        "see that it runs and that UDP and TCP pass to that address: plexus netcheck"
    } else if said("certificate") || said("identity") {
        "compare both certificates and ca.pem; plexus ca issue makes new ones"
    } else if said("resolve") || said("no address") {
        "the name does not resolve here: mend it under mesh.peers, or in DNS"
    } else {
        "see that it runs and listens there, and its log"
    }
}

/// Neighbouring versions work together, but an upgrade that stopped halfway is worth knowing of.
fn versions(status: &Status, found: &mut Vec<Problem>) {
    let Some(ours) = version(&status.software) else { return };
    let other = |software: &str| version(software).filter(|version| *version != ours);
    let others: Vec<_> = status
        .nodes
        .iter()
        .filter(|node| node.reachable && !node.this && other(&node.software).is_some())
        .map(|node| format!("{} ({})", node.node, node.software))
        .collect();
    if !others.is_empty() {
        let shown = others.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let more = if others.len() > 5 { format!(" and {} more", others.len() - 5) } else { String::new() };
        let text =
            format!("{} of other versions than ours, {}: {shown}{more}", others.len(), status.software);
        found.push(problem(
            "version_skew",
            &status.node,
            text,
            "bring all to one version: controllers first, then the others",
        ));
    }
}

/// Major and minor number, if `software` ends in a version.
fn version(software: &str) -> Option<(u32, u32)> {
    let mut numbers = software.rsplit(' ').next()?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{node, status};
    use super::*;

    fn check(bend: &dyn Fn(&mut Status), expected: &[(&str, &str)]) {
        let mut status = status();
        bend(&mut status);
        let found = status.find_problems(Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24));
        let told: Vec<_> = found.iter().map(|p| (p.code.as_str(), p.text.as_str())).collect();
        assert_eq!(told, expected);
        assert!(found.iter().all(|problem| !problem.advice.is_empty()), "{found:?}");
    }

    #[test]
    fn each_trouble_is_a_problem_of_its_own() {
        check(&|_| {}, &[]);
        check(&|s| s.links.clear(), &[("no_links", "this node has no links")]);
        check(
            &|s| s.nodes.push(node("hop-2", false)),
            &[("node_unreachable", "node hop-2 is unreachable since 1970-01-01T00:00:00Z")],
        );
        check(
            &|s| {
                s.peers[0].linked = false;
                s.peers[0].error = Some("connection refused".into());
            },
            &[("peer_down", "no link to configured peer hop.example.org:7323 (hop-1): connection refused")],
        );
        check(
            &|s| {
                s.peers[0].linked = false;
                s.peers[0].since = Some(Timestamp::UNIX_EPOCH + SignedDuration::from_nanos(7));
            },
            &[(
                "peer_down",
                "no link to configured peer hop.example.org:7323 (hop-1) since 1970-01-01T00:00:00Z",
            )],
        );
        check(
            &|s| s.certificate_expires = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(48),
            &[("certificate_expires", "certificate of this node expires at 1970-01-03T00:00:00Z")],
        );
        check(
            &|s| s.certificate_expires = Timestamp::UNIX_EPOCH,
            &[("certificate_expires", "certificate of this node expired at 1970-01-01T00:00:00Z")],
        );
    }

    #[test]
    fn who_is_behind_a_lost_hop_comes_after_it() {
        let lost = |name: &str, neighbors: &[&str]| NodeStatus {
            neighbors: neighbors.iter().map(|name| (name.parse().unwrap(), 10)).collect(),
            ..node(name, false)
        };
        check(
            &|s| {
                s.nodes.push(lost("a-1", &["hop-2"]));
                s.nodes.push(lost("hop-2", &["hop-1", "a-1"]));
            },
            &[
                ("node_unreachable", "node hop-2 is unreachable since 1970-01-01T00:00:00Z"),
                (
                    "node_unreachable",
                    "node a-1 is unreachable since 1970-01-01T00:00:00Z, as is what it was linked with: hop-2",
                ),
            ],
        );
    }

    #[test]
    fn neighbours_are_looked_at_too() {
        check(&|s| s.links[0].more.clock_skew_ms = Some(900.0), &[]);
        check(
            &|s| s.links[0].more.clock_skew_ms = Some(-61_000.0),
            &[("clock_skew", "clock of hop-1 is 61 s behind ours")],
        );
        check(
            &|s| {
                s.links[0].more.certificate_expires =
                    Some(Timestamp::UNIX_EPOCH + SignedDuration::from_hours(30))
            },
            &[("certificate_expires", "certificate of hop-1 ends at 1970-01-02T06:00:00Z")],
        );
        check(
            &|s| s.nodes[0].software = "plexus-node 0.2.3".into(),
            &[(
                "version_skew",
                "1 of other versions than ours, plexus-node 0.1.0: hop-1 (plexus-node 0.2.3)",
            )],
        );
        check(&|s| s.nodes[0].software = "plexus-node 0.1.7".into(), &[]);
        check(&|s| s.nodes[0].software = "something else".into(), &[]);
    }
}

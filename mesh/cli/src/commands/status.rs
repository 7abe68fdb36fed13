//! `plexus status`: is the mesh well, and if not, what to do. One screen.

use jiff::Timestamp;
use plexus_mesh::status::{Problem, Status as Document};
use plexus_proto::id::Role;

use crate::args::Format;
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, count, millis, or_dash, since, span};
use crate::watch::Look;

/// Problems shown unless every one is asked for: more would push the rest off the screen.
const PROBLEMS_SHOWN: usize = 8;
/// Links shown unless every one is asked for.
const LINKS_SHOWN: usize = 12;

/// Asks for the status.
pub(crate) struct Status;

impl Look for Status {
    async fn ask(&self, door: &mut Door) -> Result<Answer, Failure> {
        door.status().await
    }

    fn show(&self, answer: &Answer, output: &mut Output) -> Result<Exit, Failure> {
        let status: Document = answer.parse()?;
        let text = render(&status, output.format == Format::Wide, output.paint, Timestamp::now());
        output.show(answer, Shape { items: None, name: "node" }, &text)?;
        Ok(if status.problems.is_empty() { Exit::Ok } else { Exit::Degraded })
    }
}

fn render(status: &Document, wide: bool, paint: Paint, now: Timestamp) -> String {
    let verdict = match status.problems.len() {
        0 => paint.on(Color::Green, "ok"),
        problems => paint.on(Color::Yellow, &format!("degraded, {}", count(problems, "problem"))),
    };
    let mut text = format!("{}  {verdict}\n", paint.on(Color::Bold, status.node.as_str()));
    let mut fact = |name: &str, value: String| text += &format!("  {name:<12} {value}\n");
    fact("role", format!("{} in mesh {}, cluster {}", status.role, status.mesh, status.cluster));
    fact("software", status.software.clone());
    if wide {
        fact("address", status.address.to_string());
    }
    let listen: Vec<_> = status.listen.iter().map(ToString::to_string).collect();
    fact("listening", if listen.is_empty() { "no, dials only".into() } else { listen.join(", ") });
    let left = status.certificate_expires.duration_since(now);
    let left = if left.is_negative() { "expired".into() } else { format!("{} left", span(left)) };
    fact("certificate", format!("{left}, until {}", status.certificate_expires));
    let reachable = status.nodes.iter().filter(|node| node.reachable).count();
    let gone = match status.nodes.len() - reachable {
        0 => String::new(),
        gone => format!(", {}", paint.on(Color::Red, &format!("{gone} unreachable"))),
    };
    // Without a word people would take its hops for the whole mesh.
    let part = if status.role == Role::Execution { "; a hop or a controller knows them all" } else { "" };
    fact("nodes", format!("{reachable} reachable{gone}{part}"));
    let down = match status.peers.iter().filter(|peer| !peer.linked).count() {
        0 => String::new(),
        down => format!(", {}", paint.on(Color::Red, &format!("{down} down"))),
    };
    fact("links", format!("{} up{down}", status.links.len()));
    if wide {
        let packets = &status.packets;
        let dropped = packets.malformed
            + packets.forged
            + packets.unroutable
            + packets.expired
            + packets.unwanted
            + packets.congested;
        fact("packets", format!("{} forwarded, {dropped} dropped", packets.forwarded));
    }
    if !status.problems.is_empty() {
        text += "\n";
        text += &problems(&status.problems, wide, paint);
    }
    if !status.links.is_empty() || status.peers.iter().any(|peer| !peer.linked) {
        text += "\n";
        text += &links(status, wide, paint, now);
    }
    text
}

/// What is wrong, and what to do: once below several of a kind, as when a hop goes and all behind it.
fn problems(problems: &[Problem], wide: bool, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.on(Color::Bold, "PROBLEMS"));
    let shown = if wide { problems.len() } else { PROBLEMS_SHOWN };
    for (at, problem) in problems.iter().take(shown).enumerate() {
        text += &format!("  {}  {}\n", paint.on(Color::Yellow, &problem.code), problem.text);
        let next = problems.get(at + 1).filter(|_| at + 1 < shown);
        let again = next.is_some_and(|next| (&next.code, &next.advice) == (&problem.code, &problem.advice));
        if !problem.advice.is_empty() && !again {
            text += &format!("    do: {}\n", problem.advice);
        }
    }
    if problems.len() > shown {
        text += &format!("  and {} more: plexus status --wide\n", problems.len() - shown);
    }
    text
}

/// Links that are up, then those that should be.
fn links(status: &Document, wide: bool, paint: Paint, now: Timestamp) -> String {
    let mut header = vec!["LINK", "STATE", "SINCE", "RTT", "COST", "KIND", "REMOTE"];
    if wide {
        header.extend(["MTU", "LOSS", "KEY EXCHANGE", "DIALED", "ROLE", "SOFTWARE"]);
    }
    let mut table = Table::new(&header);
    let shown = if wide { status.links.len() } else { LINKS_SHOWN };
    for link in status.links.iter().take(shown) {
        let mut row: Vec<Cell> = vec![
            link.peer.as_str().into(),
            Cell::new(Color::Green, "up"),
            since(link.since, now).into(),
            millis(link.rtt_ms).into(),
            link.cost.to_string().into(),
            or_dash(link.more.kind.as_ref()),
            link.remote.to_string().into(),
        ];
        if wide {
            let more = &link.more;
            row.extend([
                or_dash(more.mtu),
                or_dash(more.loss.map(percent)),
                or_dash(more.key_exchange.as_ref()),
                if link.dialed { "by us" } else { "by peer" }.into(),
                link.role.as_str().into(),
                link.software.as_str().into(),
            ]);
        }
        table.row(row);
    }
    for peer in status.peers.iter().filter(|peer| !peer.linked) {
        table.row(vec![
            or_dash(peer.node.as_ref()),
            Cell::new(Color::Red, "down"),
            or_dash(peer.since.map(|at| since(at, now))),
            "-".into(),
            "-".into(),
            "-".into(),
            peer.address.as_str().into(),
        ]);
    }
    let mut text = table.render(paint);
    if status.links.len() > shown {
        text += &format!("and {} more: plexus links\n", status.links.len() - shown);
    }
    text
}

/// A share as people say it.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0 %".to_owned(),
        percent if percent < 10.0 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

#[cfg(test)]
mod tests {
    use plexus_mesh::status::PeerStatus;

    use super::super::fixture;
    use super::*;

    fn check(status: &Document, wide: bool, expected: &str) {
        assert_eq!(render(status, wide, Paint(false), fixture::now()), expected);
    }

    #[test]
    fn all_is_well() {
        check(
            &fixture::status(),
            false,
            "\
controller  ok
  role         controller in mesh demo, cluster main
  software     plexus-controller 0.1.0
  listening    no, dials only
  certificate  29d left, until 2026-12-19T17:00:00Z
  nodes        3 reachable
  links        1 up

LINK   STATE  SINCE  RTT      COST  KIND  REMOTE
hop-1  up     2h     0.25 ms  10    quic  127.0.0.1:7323
",
        );
    }

    #[test]
    fn something_is_wrong() {
        let mut status = fixture::degraded();
        status.listen = vec!["[::]:7323".parse().unwrap(), "10.0.0.1:7323".parse().unwrap()];
        status.peers = vec![PeerStatus {
            address: "hop-2.example.org:7323".into(),
            node: Some("hop-2".parse().unwrap()),
            linked: false,
            error: Some("connection refused".into()),
            since: Some("2026-11-20T11:40:00Z".parse().unwrap()),
        }];
        check(
            &status,
            true,
            "\
controller  degraded, 1 problem
  role         controller in mesh demo, cluster main
  software     plexus-controller 0.1.0
  address      00100000
  listening    [::]:7323, 10.0.0.1:7323
  certificate  29d left, until 2026-12-19T17:00:00Z
  nodes        3 reachable, 1 unreachable
  links        1 up, 1 down
  packets      0 forwarded, 0 dropped

PROBLEMS
  node_unreachable  node node-2 is unreachable since 2026-11-20T11:57:30Z
    do: look at node-2

LINK   STATE  SINCE  RTT      COST  KIND  REMOTE                  MTU   LOSS   KEY EXCHANGE    DIALED  ROLE  SOFTWARE
hop-1  up     2h     0.25 ms  10    quic  127.0.0.1:7323          1452  0.5 %  X25519MLKEM768  by us   hop   plexus-node 0.1.0
hop-2  down   20m    -        -     -     hop-2.example.org:7323
",
        );
    }

    #[test]
    fn what_to_do_stands_once_below_several_of_a_kind() {
        let mut status = fixture::degraded();
        let mut other = status.problems[0].clone();
        other.text = "node node-3 is unreachable since 2026-11-20T11:57:31Z".into();
        status.problems.push(other);
        let text = render(&status, false, Paint(false), fixture::now());
        let expected = "\
PROBLEMS
  node_unreachable  node node-2 is unreachable since 2026-11-20T11:57:30Z
  node_unreachable  node node-3 is unreachable since 2026-11-20T11:57:31Z
    do: look at node-2

";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn an_execution_node_says_that_it_keeps_no_map() {
        let mut status = fixture::status();
        status.role = Role::Execution;
        let text = render(&status, false, Paint(false), fixture::now());
        assert!(text.contains("nodes        3 reachable; a hop or a controller knows them all\n"), "{text}");
    }

    #[test]
    fn one_screen_is_enough_for_a_great_trouble() {
        let mut status = fixture::degraded();
        let (problem, link) = (status.problems[0].clone(), status.links[0].clone());
        status.problems = vec![problem; 1000];
        status.links = vec![link; 1000];
        let text = render(&status, false, Paint(false), fixture::now());
        assert!(text.lines().count() <= 48, "{text}");
        assert!(text.contains("and 992 more: plexus status --wide\n"), "{text}");
        assert!(text.contains("and 988 more: plexus links\n"), "{text}");
    }

    #[test]
    fn shares_are_short() {
        assert_eq!([0.0, 0.004, 0.25, 1.0].map(percent), ["0 %", "0.4 %", "25 %", "100 %"]);
    }
}

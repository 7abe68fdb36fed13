//! `plexus links`: every link of the mesh, in detail where it is the asked daemon's own.

use jiff::Timestamp;
use plexus_mesh::status::{MeshLink, MeshLinks as Document};

use super::status::percent;
use crate::args::Format;
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, millis, or_dash, since};
use crate::watch::Look;

/// Asks for the links.
pub(crate) struct Links;

impl Look for Links {
    async fn ask(&self, door: &mut Door) -> Result<Answer, Failure> {
        door.links().await
    }

    fn show(&self, answer: &Answer, output: &mut Output) -> Result<Exit, Failure> {
        let links: Document = answer.parse()?;
        let text = render(&links, output.format == Format::Wide, output.paint, Timestamp::now());
        output.show(answer, Shape { items: Some("links"), name: "peer" }, &text)?;
        Ok(Exit::Ok)
    }
}

fn render(links: &Document, wide: bool, paint: Paint, now: Timestamp) -> String {
    if links.links.is_empty() {
        return format!("{} knows of no link\n", links.from);
    }
    let mut header = vec!["NODE", "PEER", "STATE", "COST", "RTT", "KIND", "UP"];
    if wide {
        header.extend(["MTU", "LOSS", "SKEW", "KEY EXCHANGE", "REMOTE"]);
    }
    let mut table = Table::new(&header);
    for link in &links.links {
        table.row(row(link, wide, now));
    }
    table.render(paint)
}

fn row(link: &MeshLink, wide: bool, now: Timestamp) -> Vec<Cell> {
    let live = link.live.as_ref();
    let state = match (link.up, link.cost.is_some() && link.peer_cost.is_some()) {
        (true, _) => Cell::new(Color::Green, "up"),
        (false, false) => Cell::new(Color::Yellow, "one-way"),
        (false, true) => Cell::new(Color::Red, "down"),
    };
    let cost = match (link.cost.or(live.map(|live| live.cost)), link.peer_cost) {
        (Some(ours), Some(theirs)) if ours != theirs => format!("{ours}/{theirs}"),
        (Some(cost), _) | (None, Some(cost)) => cost.to_string(),
        (None, None) => "-".to_owned(),
    };
    let mut row = vec![
        link.node.as_str().into(),
        link.peer.as_str().into(),
        state,
        cost.into(),
        or_dash(live.map(|live| millis(live.rtt_ms))),
        or_dash(live.and_then(|live| live.more.kind.as_ref())),
        or_dash(live.map(|live| since(live.since, now))),
    ];
    if wide {
        let more = live.map(|live| &live.more);
        row.extend([
            or_dash(more.and_then(|more| more.mtu)),
            or_dash(more.and_then(|more| more.loss).map(percent)),
            or_dash(more.and_then(|more| more.clock_skew_ms).map(|skew| format!("{skew:+.0} ms"))),
            or_dash(more.and_then(|more| more.key_exchange.as_ref())),
            or_dash(live.map(|live| live.remote)),
        ]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn own_links_tell_more() {
        let mut status = fixture::degraded();
        let far = "hop-2".parse().unwrap();
        status.nodes[1].neighbors.insert(far, 7);
        status.nodes[2].neighbors = [("hop-1".parse().unwrap(), 30)].into();
        let links = Document::of(&status);
        let expected = "\
NODE        PEER    STATE    COST   RTT      KIND  UP  MTU   LOSS   SKEW  KEY EXCHANGE    REMOTE
controller  hop-1   up       10     0.25 ms  quic  2h  1452  0.5 %  -     X25519MLKEM768  127.0.0.1:7323
hop-1       hop-2   one-way  7      -        -     -   -     -      -     -               -
hop-1       node-1  up       10/30  -        -     -   -     -      -     -               -
";
        assert_eq!(render(&links, true, Paint(false), fixture::now()), expected);
        let text = render(&links, false, Paint(false), fixture::now());
        assert!(text.starts_with("NODE        PEER    STATE    COST   RTT      KIND  UP\n"), "{text}");
    }
}

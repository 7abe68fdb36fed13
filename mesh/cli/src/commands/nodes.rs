//! `plexus nodes`: everybody a daemon knows, and the way to each.

use jiff::Timestamp;
use plexus_mesh::status::{NodeStatus, Nodes as Document};
use plexus_proto::id::Role;

use crate::args::Format;
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, or_dash, since};
use crate::watch::Look;

/// Asks for the nodes.
pub(crate) struct Nodes;

impl Look for Nodes {
    async fn ask(&self, door: &mut Door) -> Result<Answer, Failure> {
        door.nodes().await
    }

    fn show(&self, answer: &Answer, output: &mut Output) -> Result<Exit, Failure> {
        let nodes: Document = answer.parse()?;
        let text = render(&nodes, output.format == Format::Wide, output.paint, Timestamp::now());
        output.show(answer, Shape { items: Some("nodes"), name: "node" }, &text)?;
        Ok(Exit::Ok)
    }
}

fn render(nodes: &Document, wide: bool, paint: Paint, now: Timestamp) -> String {
    let mut header = vec!["NODE", "ROLE", "STATE", "SINCE", "COST", "HOPS", "VIA"];
    if wide {
        header.extend(["CLUSTER", "ADDRESS", "SOFTWARE"]);
    }
    let mut table = Table::new(&header);
    for node in &nodes.nodes {
        let mut row = vec![
            node.node.as_str().into(),
            node.role.as_str().into(),
            state(node),
            since(node.since, now).into(),
            or_dash(node.cost),
            or_dash(node.hops),
            or_dash(node.next_hop.as_ref()),
        ];
        if wide {
            row.push(node.cluster.as_str().into());
            row.push(node.address.to_string().into());
            row.push(node.software.as_str().into());
        }
        table.row(row);
    }
    let mut text = table.render(paint);
    // Without a word people would take its hops for the whole mesh.
    if nodes.nodes.iter().any(|node| node.this && node.role == Role::Execution) {
        text += "an execution node keeps no map: these are those that it has to do with; plexus ping and plexus trace find others,\n\
                 and plexus nodes on a hop or a controller shows all\n";
    }
    text
}

fn state(node: &NodeStatus) -> Cell {
    match (node.this, node.reachable) {
        (true, _) => Cell::new(Color::Green, "this node"),
        (false, true) => Cell::new(Color::Green, "reachable"),
        (false, false) => Cell::new(Color::Red, "unreachable"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn every_node_has_a_line() {
        let nodes = fixture::degraded().nodes();
        let expected = "\
NODE        ROLE        STATE        SINCE  COST  HOPS  VIA
controller  controller  this node    1h     -     -     -
hop-1       hop         reachable    2m     10    1     hop-1
node-1      execution   reachable    2m     20    2     hop-1
node-2      execution   unreachable  2m     -     -     -
";
        assert_eq!(render(&nodes, false, Paint(false), fixture::now()), expected);
    }

    #[test]
    fn an_execution_node_says_that_it_keeps_no_map() {
        let mut nodes = fixture::status().nodes();
        nodes.nodes[0].role = Role::Execution;
        let text = render(&nodes, false, Paint(false), fixture::now());
        assert!(text.ends_with("plexus nodes on a hop or a controller shows all\n"), "{text}");
    }

    #[test]
    fn wide_shows_every_column() {
        let mut nodes = fixture::status().nodes();
        nodes.nodes.truncate(2);
        let expected = "\
NODE        ROLE        STATE      SINCE  COST  HOPS  VIA    CLUSTER  ADDRESS   SOFTWARE
controller  controller  this node  1h     -     -     -      main     00100000  plexus-controller 0.1.0
hop-1       hop         reachable  2m     10    1     hop-1  main     00100001  plexus-node 0.1.0
";
        assert_eq!(render(&nodes, true, Paint(false), fixture::now()), expected);
    }

    #[test]
    fn states_are_words_with_colour() {
        let nodes = fixture::degraded().nodes();
        let text = render(&nodes, false, Paint(true), fixture::now());
        assert!(text.contains("\x1b[31munreachable\x1b[0m  "), "{text:?}");
        assert!(text.contains("\x1b[32mreachable\x1b[0m  "), "{text:?}");
    }
}

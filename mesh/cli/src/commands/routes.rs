//! `plexus routes`: the way to each node, and the one that takes over.

use jiff::Timestamp;
use plexus_mesh::status::Routes as Document;

use crate::args::Format;
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, or_dash, since};
use crate::watch::Look;

/// Asks for the routes.
pub(crate) struct Routes;

impl Look for Routes {
    async fn ask(&self, door: &mut Door) -> Result<Answer, Failure> {
        door.routes().await
    }

    fn show(&self, answer: &Answer, output: &mut Output) -> Result<Exit, Failure> {
        let routes: Document = answer.parse()?;
        let text = render(&routes, output.format == Format::Wide, output.paint, Timestamp::now());
        output.show(answer, Shape { items: Some("routes"), name: "node" }, &text)?;
        Ok(Exit::Ok)
    }
}

fn render(routes: &Document, wide: bool, paint: Paint, now: Timestamp) -> String {
    let mut header = vec!["NODE", "STATE", "SINCE", "VIA", "COST", "HOPS", "BACKUP"];
    if wide {
        header.extend(["BACKUP COST", "ROLE"]);
    }
    let mut table = Table::new(&header);
    for route in &routes.routes {
        let state = match route.reachable {
            true => Cell::new(Color::Green, "reachable"),
            false => Cell::new(Color::Red, "unreachable"),
        };
        let mut row = vec![
            route.node.as_str().into(),
            state,
            since(route.since, now).into(),
            or_dash(route.next_hop.as_ref()),
            or_dash(route.cost),
            or_dash(route.hops),
            or_dash(route.backup_next_hop.as_ref()),
        ];
        if wide {
            row.extend([or_dash(route.backup_cost), route.role.as_str().into()]);
        }
        table.row(row);
    }
    if routes.routes.is_empty() {
        return format!("{} knows no other node\n", routes.from);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    #[test]
    fn every_way_has_a_line() {
        let mut status = fixture::degraded();
        status.nodes[2].backup_next_hop = Some("hop-2".parse().unwrap());
        status.nodes[2].backup_cost = Some(30);
        let expected = "\
NODE    STATE        SINCE  VIA    COST  HOPS  BACKUP  BACKUP COST  ROLE
hop-1   reachable    2m     hop-1  10    1     -       -            hop
node-1  reachable    2m     hop-1  20    2     hop-2   30           execution
node-2  unreachable  2m     -      -     -     -       -            execution
";
        assert_eq!(render(&Document::of(&status), true, Paint(false), fixture::now()), expected);
        status.nodes.truncate(1);
        let alone = render(&Document::of(&status), false, Paint(false), fixture::now());
        assert_eq!(alone, "controller knows no other node\n");
    }
}

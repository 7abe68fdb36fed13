//! `plexus status`: one daemon, its links, what is wrong.

use jiff::Timestamp;
use plexus_mesh::status::Status;

use crate::args::Format;
use crate::door::Door;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Table, millis, since, span};

pub(crate) async fn run(door: &mut Door, output: &mut Output) -> Result<Exit, Failure> {
    let answer = door.status().await?;
    if output.format == Format::Json {
        output.json(&answer.0)?;
    }
    let status: Status = answer.parse()?;
    if output.format != Format::Json {
        output.write(&render(&status, output.format == Format::Wide, output.paint, Timestamp::now()))?;
    }
    Ok(if status.problems.is_empty() { Exit::Ok } else { Exit::Degraded })
}

fn render(status: &Status, wide: bool, paint: Paint, now: Timestamp) -> String {
    let (color, word) = match status.problems.is_empty() {
        true => (Color::Green, "ok"),
        false => (Color::Yellow, "degraded"),
    };
    let mut text = format!("{}  {}\n", paint.on(Color::Bold, status.node.as_str()), paint.on(color, word));
    let mut fact = |name: &str, value: String| text += &format!("  {name:<12} {value}\n");
    fact("role", status.role.to_string());
    fact("mesh", format!("{}, cluster {}", status.mesh, status.cluster));
    fact("address", status.address.to_string());
    fact("software", status.software.clone());
    let listen: Vec<_> = status.listen.iter().map(ToString::to_string).collect();
    fact("listening", if listen.is_empty() { "no, dials only".into() } else { listen.join(", ") });
    let left = status.certificate_expires.duration_since(now);
    let left = if left.is_negative() { "expired".into() } else { format!("{} left", span(left)) };
    fact("certificate", format!("until {}, {left}", status.certificate_expires));
    let reachable = status.nodes.iter().filter(|node| node.reachable).count();
    fact("nodes", format!("{} known, {reachable} reachable", status.nodes.len()));

    if !status.links.is_empty() {
        text += "\n";
        text += &links(status, wide, now).render(paint);
    }
    if !status.problems.is_empty() {
        let mut table = Table::new(&["PROBLEM", "WHAT"]);
        for problem in &status.problems {
            table.row(vec![Cell::new(Color::Yellow, &problem.code), problem.text.as_str().into()]);
        }
        text += "\n";
        text += &table.render(paint);
    }
    text
}

fn links(status: &Status, wide: bool, now: Timestamp) -> Table {
    let mut header = vec!["LINK", "ROLE", "COST", "RTT", "UP", "REMOTE"];
    if wide {
        header.extend(["DIALED", "ADDRESS", "SOFTWARE"]);
    }
    let mut table = Table::new(&header);
    for link in &status.links {
        let mut row: Vec<Cell> = vec![
            Cell::new(Color::Green, link.peer.as_str()),
            link.role.as_str().into(),
            link.cost.to_string().into(),
            millis(link.rtt_ms).into(),
            since(link.since, now).into(),
            link.remote.to_string().into(),
        ];
        if wide {
            let dialed = if link.dialed { "by us" } else { "by peer" };
            row.extend([dialed.into(), link.address.to_string().into(), link.software.as_str().into()]);
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn check(status: &Status, wide: bool, expected: &str) {
        assert_eq!(render(status, wide, Paint(false), fixture::now()), expected);
    }

    #[test]
    fn all_is_well() {
        check(
            &fixture::status(),
            false,
            "\
controller  ok
  role         controller
  mesh         demo, cluster main
  address      00100000
  software     plexus-controller 0.1.0
  listening    no, dials only
  certificate  until 2026-12-19T17:00:00Z, 29d left
  nodes        3 known, 3 reachable

LINK   ROLE  COST  RTT      UP  REMOTE
hop-1  hop   10    0.25 ms  2h  127.0.0.1:7323
",
        );
    }

    #[test]
    fn something_is_wrong() {
        let mut status = fixture::degraded();
        status.listen = vec!["[::]:7323".parse().unwrap(), "10.0.0.1:7323".parse().unwrap()];
        check(
            &status,
            true,
            "\
controller  degraded
  role         controller
  mesh         demo, cluster main
  address      00100000
  software     plexus-controller 0.1.0
  listening    [::]:7323, 10.0.0.1:7323
  certificate  until 2026-12-19T17:00:00Z, 29d left
  nodes        4 known, 3 reachable

LINK   ROLE  COST  RTT      UP  REMOTE          DIALED  ADDRESS   SOFTWARE
hop-1  hop   10    0.25 ms  2h  127.0.0.1:7323  by us   00100001  plexus-node 0.1.0

PROBLEM           WHAT
node_unreachable  node node-2 is unreachable since 2026-11-20T11:57:30Z
",
        );
    }
}

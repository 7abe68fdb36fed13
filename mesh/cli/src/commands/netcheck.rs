//! `plexus netcheck`: what UDP, TCP and the packet size do between two nodes.

use plexus_mesh::status::{Netcheck as Document, PathCheck};

use super::status::percent;
use crate::args::Netcheck;
use crate::door::Door;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, millis, or_dash};

pub(crate) async fn run(door: &mut Door, netcheck: Netcheck, output: &mut Output) -> Result<Exit, Failure> {
    let (from, to) = match netcheck.nodes.as_slice() {
        [from, to] => (Some(from), to),
        [to] => (None, to),
        // The definition of the arguments admits no other number.
        _ => return Err(Failure::new(Exit::Usage, "one or two nodes")),
    };
    let answer = door.netcheck(from, to).await?;
    let checked: Document = answer.parse()?;
    let text = render(&checked, output.paint);
    output.show(&answer, Shape { items: Some("paths"), name: "address" }, &text)?;
    Ok(if checked.paths.iter().any(works) { Exit::Ok } else { Exit::Unreachable })
}

fn works(path: &PathCheck) -> bool {
    path.udp.as_ref().is_some_and(|udp| udp.reachable) || path.tcp.as_ref().is_some_and(|tcp| tcp.reachable)
}

fn render(checked: &Document, paint: Paint) -> String {
    let mut table = Table::new(&["ADDRESS", "UDP", "RTT", "LOSS", "MTU", "TCP", "RTT"]);
    let state = |reachable: Option<bool>| match reachable {
        Some(true) => Cell::new(Color::Green, "works"),
        Some(false) => Cell::new(Color::Red, "blocked"),
        None => "-".into(),
    };
    for path in &checked.paths {
        let (udp, tcp) = (path.udp.as_ref(), path.tcp.as_ref());
        let answered = udp.filter(|udp| udp.reachable);
        table.row(vec![
            path.address.as_str().into(),
            state(udp.map(|udp| udp.reachable)),
            or_dash(udp.and_then(|udp| udp.rtt_ms).map(millis)),
            or_dash(answered.map(|udp| percent(udp.loss))),
            or_dash(answered.and_then(|udp| udp.mtu)),
            state(tcp.map(|tcp| tcp.reachable)),
            or_dash(tcp.and_then(|tcp| tcp.rtt_ms).map(millis)),
        ]);
    }
    let mut text = format!("from {} to {}\n", checked.from, checked.to);
    if !checked.paths.is_empty() {
        text += "\n";
        text += &table.render(paint);
    }
    for path in &checked.paths {
        let errors = [
            ("UDP", path.udp.as_ref().and_then(|udp| udp.error.as_ref())),
            ("TCP", path.tcp.as_ref().and_then(|tcp| tcp.error.as_ref())),
        ];
        for (what, error) in errors {
            if let Some(error) = error {
                text += &format!("  {what} to {}: {error}\n", path.address);
            }
        }
    }
    text += "\n";
    for finding in &checked.findings {
        text += &format!("{finding}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use plexus_mesh::status::{SCHEMA_VERSION, TcpCheck, UdpCheck};

    use super::*;

    #[test]
    fn every_address_has_a_line_and_findings_follow() {
        let checked = Document {
            schema_version: SCHEMA_VERSION,
            from: "node-7".parse().unwrap(),
            to: "hop-1".parse().unwrap(),
            paths: vec![
                PathCheck {
                    address: "192.0.2.1:7323".into(),
                    resolved: Some("192.0.2.1:7323".into()),
                    udp: Some(UdpCheck {
                        reachable: true,
                        rtt_ms: Some(1.25),
                        loss: 0.1,
                        mtu: Some(1500),
                        error: None,
                    }),
                    tcp: Some(TcpCheck {
                        reachable: false,
                        rtt_ms: None,
                        error: Some("connection refused".into()),
                    }),
                },
                PathCheck { address: "hop.example.org:1".into(), resolved: None, udp: None, tcp: None },
            ],
            findings: vec!["UDP works at 192.0.2.1:7323".into()],
        };
        let expected = "\
from node-7 to hop-1

ADDRESS            UDP    RTT      LOSS  MTU   TCP      RTT
192.0.2.1:7323     works  1.25 ms  10 %  1500  blocked  -
hop.example.org:1  -      -        -     -     -        -
  TCP to 192.0.2.1:7323: connection refused

UDP works at 192.0.2.1:7323
";
        assert_eq!(render(&checked, Paint(false)), expected);
        assert_eq!(checked.paths.iter().map(works).collect::<Vec<_>>(), [true, false]);
    }
}

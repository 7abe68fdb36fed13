//! `plexus trace NODE`: who is on the way, as they answer.

use plexus_mesh::status::{Trace as Path, TraceHop};

use super::status::percent;
use crate::args::{Format, Trace};
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, millis, or_dash};

pub(crate) async fn run(door: &mut Door, trace: Trace, output: &mut Output) -> Result<Exit, Failure> {
    let first = door.trace(&trace.node, trace.timeout).await?;
    let mut path: Path = first.parse()?;
    let mut rounds = 1;
    // What ends early ends there again; only a whole path is worth measuring.
    while path.reached && rounds < trace.count {
        rounds += 1;
        add(&mut path, &door.trace(&trace.node, trace.timeout).await?.parse()?, rounds);
    }
    let answer = match rounds {
        1 => first,
        _ => Answer(serde_json::to_string(&path).map_err(|error| Failure::of(Exit::Failed, &error))?),
    };
    let text = render(&path, output.format == Format::Wide, output.paint);
    output.show(&answer, Shape { items: Some("hops"), name: "node" }, &text)?;
    Ok(if path.reached { Exit::Ok } else { Exit::Unreachable })
}

/// Adds what one more round measured, the `rounds`-th. A path that has changed counts as it is now.
fn add(path: &mut Path, round: &Path, rounds: u32) {
    let same = path.hops.len() == round.hops.len();
    let same = same && path.hops.iter().zip(&round.hops).all(|(hop, again)| hop.address == again.address);
    if !same || !round.reached {
        *path = round.clone();
        return;
    }
    for (hop, again) in path.hops.iter_mut().zip(&round.hops) {
        // The mean so far weighs as many rounds as it took.
        if let (Some(mean), Some(rtt)) = (hop.rtt_ms, again.rtt_ms) {
            hop.rtt_ms = Some(((mean + (rtt - mean) / f64::from(rounds)) * 1e3).round() / 1e3);
        }
        hop.sent += again.sent;
        hop.answered += again.answered;
    }
}

fn render(path: &Path, wide: bool, paint: Paint) -> String {
    let mut header = vec!["HOP", "NODE", "RTT", "LOSS", "LINK", "MTU"];
    if wide {
        header.push("ADDRESS");
    }
    let mut table = Table::new(&header);
    for (index, hop) in path.hops.iter().enumerate() {
        let mut row: Vec<Cell> = vec![
            (index + 1).to_string().into(),
            name(hop).into(),
            hop.rtt_ms.map_or_else(|| "no answer".to_owned(), millis).into(),
            loss(hop),
            or_dash(hop.kind.as_ref()),
            or_dash(hop.mtu),
        ];
        if wide {
            row.push(or_dash(hop.address));
        }
        table.row(row);
    }
    let way: Vec<String> = std::iter::once(path.from.to_string()).chain(path.hops.iter().map(name)).collect();
    let way = way.join(" → ");
    let end = if path.reached {
        format!("{} {way}", paint.on(Color::Green, "reached:"))
    } else {
        let why = path.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        format!("{} {} by {way}{why}", paint.on(Color::Red, "not reached:"), path.target)
    };
    format!("{}{end}\n", table.render(paint))
}

fn loss(hop: &TraceHop) -> Cell {
    match hop.sent {
        0 => "-".into(),
        sent => {
            let lost = f64::from(sent.saturating_sub(hop.answered)) / f64::from(sent);
            Cell::new(if lost > 0.0 { Color::Yellow } else { Color::Plain }, percent(lost))
        }
    }
}

/// A node that is not known here still has its address.
fn name(hop: &TraceHop) -> String {
    match (&hop.node, hop.address) {
        (Some(node), _) => node.to_string(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use plexus_mesh::status::SCHEMA_VERSION;
    use plexus_proto::id::Address;

    use super::*;

    fn hop(name: &str, address: u32, rtt_ms: f64) -> TraceHop {
        TraceHop {
            node: Some(name.parse().unwrap()),
            address: Some(Address(address)),
            rtt_ms: Some(rtt_ms),
            sent: 4,
            answered: 3,
            kind: Some("quic".into()),
            mtu: Some(1404),
        }
    }

    fn path(hops: Vec<TraceHop>, reached: bool) -> Path {
        let (from, target) = ("controller".parse().unwrap(), "node-1".parse().unwrap());
        Path { schema_version: SCHEMA_VERSION, from, target, reached, hops, error: None }
    }

    #[test]
    fn the_way_is_shown() {
        let path = path(vec![hop("hop-1", 0x10_0001, 0.31), hop("node-1", 0x10_0002, 1.2)], true);
        let expected = "\
HOP  NODE    RTT      LOSS  LINK  MTU
1    hop-1   0.31 ms  25 %  quic  1404
2    node-1  1.20 ms  25 %  quic  1404
reached: controller → hop-1 → node-1
";
        assert_eq!(render(&path, false, Paint(false)), expected);
    }

    #[test]
    fn the_end_before_the_end_is_told() {
        let silent = TraceHop { sent: 2, ..TraceHop::default() };
        let stranger = TraceHop { address: Some(Address(9)), rtt_ms: Some(2.0), ..TraceHop::default() };
        let mut path = path(vec![hop("hop-1", 0x10_0001, 0.31), silent, stranger], false);
        path.error = Some("no route at hop-2".into());
        let expected = "\
HOP  NODE      RTT        LOSS   LINK  MTU   ADDRESS
1    hop-1     0.31 ms    25 %   quic  1404  00100001
2    ?         no answer  100 %  -     -     -
3    00000009  2.00 ms    -      -     -     00000009
not reached: node-1 by controller → hop-1 → ? → 00000009: no route at hop-2
";
        assert_eq!(render(&path, true, Paint(false)), expected);
    }

    #[test]
    fn rounds_add_up_and_a_new_path_begins_anew() {
        let mut sum = path(vec![hop("hop-1", 1, 1.0), hop("node-1", 2, 2.0)], true);
        add(&mut sum, &path(vec![hop("hop-1", 1, 2.0), hop("node-1", 2, 2.0)], true), 2);
        assert_eq!((sum.hops[0].rtt_ms, sum.hops[0].sent, sum.hops[0].answered), (Some(1.5), 8, 6));
        let other = path(vec![hop("hop-2", 3, 9.0), hop("node-1", 2, 2.0)], true);
        add(&mut sum, &other, 3);
        assert_eq!(sum, other);
    }
}

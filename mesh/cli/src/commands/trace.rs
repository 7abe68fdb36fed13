//! `plexus trace NODE`: who is on the way, as they answer.

use plexus_mesh::status::{Trace as Path, TraceHop};

use crate::args::{Format, Trace};
use crate::door::Door;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Table, millis};

pub(crate) async fn run(door: &mut Door, trace: Trace, output: &mut Output) -> Result<Exit, Failure> {
    let answer = door.trace(&trace.node, trace.timeout).await?;
    if output.format == Format::Json {
        output.json(&answer.0)?;
    }
    let path: Path = answer.parse()?;
    if output.format != Format::Json {
        output.write(&render(&path, output.format == Format::Wide, output.paint))?;
    }
    Ok(if path.reached { Exit::Ok } else { Exit::Unreachable })
}

fn render(path: &Path, wide: bool, paint: Paint) -> String {
    let mut header = vec!["HOP", "NODE", "RTT"];
    if wide {
        header.push("ADDRESS");
    }
    let mut table = Table::new(&header);
    for (index, hop) in path.hops.iter().enumerate() {
        let mut row: Vec<Cell> = vec![
            (index + 1).to_string().into(),
            name(hop).into(),
            hop.rtt_ms.map_or_else(|| "no answer".to_owned(), millis).into(),
        ];
        if wide {
            row.push(hop.address.map_or_else(|| "-".to_owned(), |address| address.to_string()).into());
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
        TraceHop { node: Some(name.parse().unwrap()), address: Some(Address(address)), rtt_ms: Some(rtt_ms) }
    }

    fn path(hops: Vec<TraceHop>, reached: bool) -> Path {
        let (from, target) = ("controller".parse().unwrap(), "node-1".parse().unwrap());
        Path { schema_version: SCHEMA_VERSION, from, target, reached, hops, error: None }
    }

    #[test]
    fn the_way_is_shown() {
        let path = path(vec![hop("hop-1", 0x10_0001, 0.31), hop("node-1", 0x10_0002, 1.2)], true);
        let expected = "\
HOP  NODE    RTT
1    hop-1   0.31 ms
2    node-1  1.20 ms
reached: controller → hop-1 → node-1
";
        assert_eq!(render(&path, false, Paint(false)), expected);
    }

    #[test]
    fn the_end_before_the_end_is_told() {
        let silent = TraceHop { node: None, address: None, rtt_ms: None };
        let stranger = TraceHop { node: None, address: Some(Address(9)), rtt_ms: Some(2.0) };
        let mut path = path(vec![hop("hop-1", 0x10_0001, 0.31), silent, stranger], false);
        path.error = Some("no route at hop-2".into());
        let expected = "\
HOP  NODE      RTT        ADDRESS
1    hop-1     0.31 ms    00100001
2    ?         no answer  -
3    00000009  2.00 ms    00000009
not reached: node-1 by controller → hop-1 → ? → 00000009: no route at hop-2
";
        assert_eq!(render(&path, true, Paint(false)), expected);
    }
}

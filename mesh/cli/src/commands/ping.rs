//! `plexus ping NODE`: echoes, one by one.

use plexus_mesh::status::{Ping as Echo, SCHEMA_VERSION};
use plexus_proto::id::NodeId;
use serde_json::json;

use crate::args::Ping;
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Color, Output, Paint, Shape, millis};

const SHAPE: Shape = Shape { items: None, name: "node" };

pub(crate) async fn run(door: &mut Door, ping: Ping, output: &mut Output) -> Result<Exit, Failure> {
    let mut taken = Vec::new();
    let mut last_failure = None;
    for number in 0..ping.count {
        if number > 0 {
            tokio::time::sleep(ping.interval).await;
        }
        match door.ping(&ping.node, ping.timeout).await {
            Ok(answer) => {
                let echo: Echo = answer.parse()?;
                output.show(&answer, SHAPE, &render(&echo))?;
                taken.push(echo.rtt_ms);
            }
            // The next one may be answered; everything else stays as it is.
            Err(failure) if failure.exit == Exit::Unreachable && ping.count > 1 => {
                let document = Answer(lost_json(&ping.node, &failure.text));
                output.show(&document, SHAPE, &lost(&failure.text, output.paint))?;
                last_failure = Some(failure);
            }
            Err(failure) => return Err(failure),
        }
    }
    if output.format.is_text() && ping.count > 1 {
        output.write(&summary(ping.count, &taken))?;
    }
    match last_failure {
        None => Ok(Exit::Ok),
        Some(_) if !taken.is_empty() => Ok(Exit::Degraded),
        Some(failure) => Err(failure),
    }
}

fn render(echo: &Echo) -> String {
    let Echo { node, from, rtt_ms, hops, .. } = echo;
    let plural = if *hops == 1 { "" } else { "s" };
    format!("{node} answered {from} in {} over {hops} link{plural}\n", millis(*rtt_ms))
}

fn lost(text: &str, paint: Paint) -> String {
    format!("{} {text}\n", paint.on(Color::Red, "lost:"))
}

fn lost_json(node: &NodeId, text: &str) -> String {
    json!({"schema_version": SCHEMA_VERSION, "node": node, "error": text}).to_string()
}

fn summary(sent: u32, taken: &[f64]) -> String {
    let mut text = format!("{sent} sent, {} answered", taken.len());
    if let (Some(least), Some(most)) =
        (taken.iter().copied().reduce(f64::min), taken.iter().copied().reduce(f64::max))
    {
        let mean = taken.iter().sum::<f64>() / taken.len() as f64;
        text += &format!("; least {}, mean {}, most {}", millis(least), millis(mean), millis(most));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(rtt_ms: f64, hops: u32) -> Echo {
        let (from, node) = ("controller".parse().unwrap(), "node-1".parse().unwrap());
        Echo { schema_version: SCHEMA_VERSION, from, node, rtt_ms, hops }
    }

    #[test]
    fn an_echo_is_a_line() {
        assert_eq!(render(&echo(1.236, 2)), "node-1 answered controller in 1.24 ms over 2 links\n");
        assert_eq!(render(&echo(123.4, 1)), "node-1 answered controller in 123 ms over 1 link\n");
    }

    #[test]
    fn the_summary_counts_the_lost() {
        assert_eq!(
            summary(3, &[1.0, 4.0]),
            "3 sent, 2 answered; least 1.00 ms, mean 2.50 ms, most 4.00 ms\n"
        );
        assert_eq!(summary(2, &[]), "2 sent, 0 answered\n");
        assert_eq!(lost("no route to node x", Paint(false)), "lost: no route to node x\n");
    }

    #[test]
    fn the_lost_are_json_too() {
        let text = lost_json(&"x".parse().unwrap(), "no route to node x");
        assert_eq!(text, r#"{"schema_version":1,"node":"x","error":"no route to node x"}"#);
    }
}

//! `plexus events`: what happened, and what happens.

use std::time::Duration;

use jiff::Timestamp;
use plexus_mesh::status::{EventKind, MeshEvent, MeshEvents};
use serde_json::Value;

use crate::args::{Events, Format};
use crate::door::{Answer, Door};
use crate::failure::{Exit, Failure};
use crate::output::{Color, Output, Paint, Shape};

/// Longest that one question waits for something to happen; then it is asked again.
const WAIT: Duration = Duration::from_secs(20);

pub(crate) async fn run(door: &mut Door, events: Events, output: &mut Output) -> Result<Exit, Failure> {
    let from = events.since.map(|since| since.at(Timestamp::now()));
    // A stream has no end to put around its items.
    if events.follow && output.format == Format::Json {
        output.format = Format::Jsonl;
    }
    let mut after = 0;
    let mut began = None;
    loop {
        let wait = if events.follow && began.is_some() { WAIT } else { Duration::ZERO };
        let answer = tokio::select! {
            answer = door.events(after, wait) => answer?,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
        };
        let page: MeshEvents = answer.parse()?;
        if began.is_some_and(|began| began != page.since) {
            // The daemon has started anew and counts from 1 again.
            after = 0;
            began = Some(page.since);
            continue;
        }
        began = Some(page.since);
        let wanted = |at: Timestamp| from.is_none_or(|from| at >= from);
        let text: String = (page.forgotten > 0 && after > 0)
            .then(|| format!("{} forgotten\n", page.forgotten))
            .into_iter()
            .chain(page.events.iter().filter(|event| wanted(event.at)).map(|event| line(event, output.paint)))
            .collect();
        let done = page.events.is_empty();
        if !(done && after > 0) {
            output.show(
                &only_since(&answer, from)?,
                Shape { items: Some("events"), name: "event" },
                &text,
            )?;
        }
        if done && !events.follow {
            return Ok(Exit::Ok);
        }
        after = page.last;
    }
}

/// The answer without the events before `from`.
fn only_since(answer: &Answer, from: Option<Timestamp>) -> Result<Answer, Failure> {
    let Some(from) = from else { return Ok(Answer(answer.0.clone())) };
    let mut document: Value = answer.parse()?;
    if let Some(events) = document["events"].as_array_mut() {
        events.retain(|event| {
            let at = event["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
            at.is_none_or(|at| at >= from)
        });
    }
    Ok(Answer(document.to_string()))
}

fn line(event: &MeshEvent, paint: Paint) -> String {
    let color = match event.event {
        EventKind::LinkUp | EventKind::NodeReachable => Color::Green,
        EventKind::LinkDown | EventKind::NodeUnreachable | EventKind::Revoked | EventKind::CloneSuspected => {
            Color::Red
        }
        EventKind::LinkRefused | EventKind::Certificate => Color::Yellow,
        EventKind::RouteChanged | EventKind::Reloaded | EventKind::Other => Color::Plain,
    };
    let word = format!("{:<16}", event.event.as_str());
    format!("{:.3}  {}  {}\n", event.at, paint.on(color, &word), event.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> MeshEvent {
        MeshEvent {
            number: 7,
            at: "2026-11-20T12:00:00.123456Z".parse().unwrap(),
            event: EventKind::LinkDown,
            node: Some("hop-1".parse().unwrap()),
            text: "link to hop-1 is down: timed out".into(),
        }
    }

    #[test]
    fn an_event_is_a_line() {
        let expected = "2026-11-20T12:00:00.123Z  link_down         link to hop-1 is down: timed out\n";
        assert_eq!(line(&event(), Paint(false)), expected);
        assert!(line(&event(), Paint(true)).contains("\x1b[31mlink_down       \x1b[0m"));
    }

    #[test]
    fn what_is_older_is_left_out() {
        let text = r#"{"since":"2026-11-20T11:00:00Z","events":[{"at":"2026-11-20T11:59:59Z"},{"at":"2026-11-20T12:00:00Z"}]}"#;
        let from = "2026-11-20T12:00:00Z".parse().unwrap();
        let kept = only_since(&Answer(text.into()), Some(from)).unwrap();
        assert_eq!(kept.0, r#"{"since":"2026-11-20T11:00:00Z","events":[{"at":"2026-11-20T12:00:00Z"}]}"#);
        assert_eq!(only_since(&Answer(text.into()), None).unwrap().0, text);
    }
}

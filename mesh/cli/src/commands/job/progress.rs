//! The line at the bottom of a terminal: how far the job is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::output::{Color, Paint, span};

/// What became of a host so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ok,
    Changed,
    Failed,
}

/// Counts of what was seen.
#[derive(Debug, Default)]
pub(super) struct Progress {
    plays: u64,
    tasks: u64,
    task: String,
    hosts: BTreeMap<String, Host>,
}

impl Progress {
    /// Takes an event into account.
    pub(super) fn see(&mut self, event: &Value) {
        let kind = event["event"].as_str().unwrap_or_default();
        match kind {
            "playbook_on_play_start" => self.plays += 1,
            "playbook_on_task_start" | "playbook_on_handler_task_start" => {
                self.tasks += 1;
                event["task"].as_str().unwrap_or_default().clone_into(&mut self.task);
            }
            _ => {}
        }
        let Some(host) = event["host_name"].as_str().filter(|host| !host.is_empty()) else { return };
        let ignored = event["event_data"]["ignore_errors"] == true;
        let state = match kind {
            "runner_on_failed" | "runner_on_unreachable" if !ignored => Host::Failed,
            "runner_on_ok" if event["changed"] == true => Host::Changed,
            "runner_on_ok" | "runner_on_skipped" => Host::Ok,
            _ => return,
        };
        let known = self.hosts.entry(host.to_owned()).or_insert(state);
        *known = state.max(*known);
    }

    /// One line of at most `width` characters.
    pub(super) fn line(&self, elapsed: Duration, width: usize, paint: Paint) -> String {
        let count = |state| self.hosts.values().filter(|&&host| host == state).count();
        let (ok, changed, failed) = (count(Host::Ok), count(Host::Changed), count(Host::Failed));
        let elapsed = span(jiff::SignedDuration::try_from(elapsed).unwrap_or_default());
        let head = format!("play {}, task {}", self.plays, self.tasks);
        let hosts = format!("hosts: {ok} ok, {changed} changed, {failed} failed");
        let fixed = head.chars().count() + hosts.chars().count() + elapsed.len() + 6;
        let room = width.saturating_sub(fixed + 3);
        let task = match self.task.chars().count() {
            0 => String::new(),
            _ if room < 8 => String::new(),
            length if length <= room => format!(" [{}]", self.task),
            _ => format!(" [{}\u{2026}]", self.task.chars().take(room - 1).collect::<String>()),
        };
        let color = if failed > 0 { Color::Red } else { Color::Green };
        let line = format!("{head}{task}  {}  {elapsed}", paint.on(color, &hosts));
        if fixed > width { elapsed } else { line }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hosts_are_as_bad_as_the_worst_of_them_was() {
        let mut progress = Progress::default();
        let seen = [
            json!({"event": "playbook_on_play_start"}),
            json!({"event": "playbook_on_task_start", "task": "Install the packages"}),
            json!({"event": "runner_on_ok", "host_name": "a", "changed": true}),
            json!({"event": "runner_on_ok", "host_name": "a"}),
            json!({"event": "runner_on_failed", "host_name": "b", "event_data": {"ignore_errors": true}}),
            json!({"event": "runner_on_ok", "host_name": "b"}),
            json!({"event": "runner_on_unreachable", "host_name": "c"}),
            json!({"event": "runner_on_start", "host_name": "d"}),
        ];
        seen.iter().for_each(|event| progress.see(event));
        let line = |width| progress.line(Duration::from_secs(75), width, Paint(false));
        assert_eq!(line(100), "play 1, task 1 [Install the packages]  hosts: 1 ok, 1 changed, 1 failed  1m");
        assert_eq!(line(66), "play 1, task 1 [Install \u{2026}]  hosts: 1 ok, 1 changed, 1 failed  1m");
        assert_eq!(line(20), "1m");
        for width in 0..120 {
            assert!(line(width).chars().count() <= width.max(2), "{width}");
        }
    }
}

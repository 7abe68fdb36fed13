//! From what a unit left behind to the last word on its job. Pure.
//!
//! The outcome is the last status line, the `rc` artifact and the eof line together; never the worker's exit status
//! alone, which is 0 for a playbook that was killed, and never the recap alone, which can be missing or forged.

use std::collections::BTreeMap;

use jiff::Timestamp;
use plexus_proto::id::NodeId;
use plexus_proto::work::{Finished, Outcome};
use serde_json::json;

use crate::ingest::{HostSummary as Counts, Rc, UnitResult};
use crate::store::units::{Final, HostSummary};
use crate::stream::RunnerStatus;

/// Longest piece of standard error quoted in an explanation, in characters.
const QUOTED: usize = 2_000;

/// The last word on a job, from its unit's result. `canceled`: somebody asked to end it.
pub fn of(result: &UnitResult, canceled: bool) -> Final {
    let (status, explanation) = verdict(result, canceled);
    let hosts: Vec<HostSummary> = result.host_summaries.iter().map(host).collect();
    let started = result.started.clone().unwrap_or_default();
    Final {
        status,
        explanation,
        result_traceback: result.result_traceback.clone().unwrap_or_default(),
        job_args: if started.args.is_empty() { String::new() } else { json!(started.args).to_string() },
        job_cwd: started.cwd,
        job_env: if started.env.is_empty() { String::new() } else { json!(started.env).to_string() },
        artifacts: result.artifact_data.as_ref().map(|data| data.get().to_owned()).unwrap_or_default(),
        host_status_counts: host_status_counts(&hosts),
        hosts,
        facts: result.facts.clone(),
        inventory: result.inventory.as_ref().map(|text| text.get().to_owned()),
    }
}

/// The last word on a job whose unit never ran.
pub fn without_unit(status: &'static str, explanation: impl Into<String>) -> Final {
    Final { status, explanation: explanation.into(), ..Final::default() }
}

/// What people read on a job while a request to cancel it, `asked` for then, has not reached its node. `seen`: when the node was
/// last known to be reachable, where it is not now. `words` say what is in the way where it is.
pub fn cancel_pending(node: &NodeId, asked: Timestamp, seen: Option<Timestamp>, words: &str) -> String {
    match seen {
        Some(seen) => {
            format!("cancel pending: node {node} unreachable since {seen:.0}; asked for at {asked:.0}")
        }
        None => format!("cancel pending: {words}; asked for at {asked:.0}"),
    }
}

fn verdict(result: &UnitResult, canceled: bool) -> (&'static str, String) {
    if let Some(reason) = &result.lost {
        return (
            "error",
            format!("The job's end is unknown: {reason}. What it printed until then is stored."),
        );
    }
    let finished = result.finished.clone().unwrap_or_default();
    match finished.outcome() {
        Outcome::Canceled => return ("canceled", String::new()),
        Outcome::TimedOut => return ("failed", "Job terminated due to timeout".to_owned()),
        Outcome::Lost => return ("error", format!("The job's end is unknown: {}", finished.reason)),
        Outcome::Succeeded | Outcome::Failed | Outcome::Unspecified => {}
    }
    let (status, mut explanation) = match (&result.last_status, &result.rc, result.eof) {
        (Some(RunnerStatus::Successful), Some(Rc::Code(0)), true) => ("successful", String::new()),
        (Some(RunnerStatus::Canceled), ..) if canceled => ("canceled", String::new()),
        (Some(RunnerStatus::Timeout), ..) => ("failed", "Job terminated due to timeout".to_owned()),
        (Some(RunnerStatus::Failed), Some(Rc::None), true) => {
            ("failed", "ansible-playbook was ended by a signal (out of memory, perhaps)".to_owned())
        }
        (Some(RunnerStatus::Failed), Some(_), true) => ("failed", String::new()),
        // Some clients of container engines say 0 when a signal ended them. The node says that everything is gone.
        (_, _, false) if canceled && finished.outcome() == Outcome::Succeeded => ("canceled", String::new()),
        (Some(RunnerStatus::Error), ..) => ("error", result.explanation.clone().unwrap_or_default()),
        _ => ("error", aborted(result, &finished)),
    };
    if status == "successful" && canceled {
        explanation = "Finished before the cancel request took effect".to_owned();
    }
    for gap in &result.gaps {
        push_sentence(
            &mut explanation,
            &format!("Output is not as it came: {} ({})", gap.kind.as_str(), gap.detail),
        );
    }
    (status, explanation)
}

/// The stream broke off, or never began: what the node says, then what the worker said last.
fn aborted(result: &UnitResult, finished: &Finished) -> String {
    let mut text = finished.reason.clone();
    if text.is_empty() {
        text = match (finished.exit_code, finished.signal) {
            (_, Some(signal)) => {
                format!("The worker was ended by signal {signal} before its output was complete")
            }
            (Some(code), _) => format!("The worker ended with status {code} before its output was complete"),
            _ => "The worker's output ended before it was complete".to_owned(),
        };
    }
    let noise = result.noise.trim();
    if !noise.is_empty() {
        push_sentence(&mut text, &format!("It printed what is no event:\n{noise}"));
    }
    let tail = result.stderr_tail.trim();
    if !tail.is_empty() && !text.contains(tail) {
        let skip = tail.chars().count().saturating_sub(QUOTED);
        let tail: String = tail.chars().skip(skip).collect();
        push_sentence(&mut text, &format!("Standard error ended with:\n{tail}"));
    }
    text
}

pub(crate) fn push_sentence(text: &mut String, sentence: &str) {
    if !text.is_empty() {
        text.push_str(if text.ends_with('.') { " " } else { ". " });
    }
    text.push_str(sentence);
}

fn host((name, counts): (&String, &Counts)) -> HostSummary {
    let counts = [
        ("changed", counts.changed),
        ("dark", counts.dark),
        ("failures", counts.failures),
        ("ok", counts.ok),
        ("processed", counts.processed),
        ("skipped", counts.skipped),
        ("ignored", counts.ignored),
        ("rescued", counts.rescued),
    ];
    let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
    HostSummary { host: name.clone(), counts: counts.map(|(name, count)| (name, number(count))).into() }
}

/// Hosts by their worst: unreachable, then failed, changed, ok, skipped. `None` without a recap.
fn host_status_counts(hosts: &[HostSummary]) -> Option<String> {
    if hosts.is_empty() {
        return None;
    }
    let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
    for host in hosts {
        let order = ["dark", "failures", "changed", "ok", "skipped", "ignored", "rescued"];
        let has = |name: &&str| host.counts.get(name).is_some_and(|&count| count > 0);
        if let Some(worst) = order.into_iter().find(has) {
            *counts.entry(worst).or_default() += 1;
        }
    }
    Some(json!(counts).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(last_status: Option<RunnerStatus>, rc: Option<Rc>, eof: bool) -> UnitResult {
        UnitResult { last_status, rc, eof, ..UnitResult::default() }
    }

    fn check(result: &UnitResult, canceled: bool) -> (&'static str, String) {
        let last = of(result, canceled);
        (last.status, last.explanation)
    }

    #[test]
    fn success_needs_status_rc_and_eof() {
        let successful = || Some(RunnerStatus::Successful);
        assert_eq!(check(&ran(successful(), Some(Rc::Code(0)), true), false), ("successful", String::new()));
        assert_eq!(check(&ran(successful(), Some(Rc::Code(0)), false), false).0, "error", "no eof");
        assert_eq!(check(&ran(successful(), None, true), false).0, "error", "no rc");
        assert_eq!(check(&ran(None, None, false), false).0, "error", "nothing at all");
    }

    #[test]
    fn what_failed_says_why() {
        let failed = || Some(RunnerStatus::Failed);
        assert_eq!(check(&ran(failed(), Some(Rc::Code(2)), true), false), ("failed", String::new()));
        assert!(check(&ran(failed(), Some(Rc::None), true), false).1.contains("signal"));
        let (status, words) = check(&ran(Some(RunnerStatus::Timeout), Some(Rc::Code(254)), true), false);
        assert_eq!((status, words.as_str()), ("failed", "Job terminated due to timeout"));
        let finished = Finished { exit_code: Some(1), ..Finished::default() };
        let result = UnitResult {
            finished: Some(finished),
            stderr_tail: "Traceback: no playbook\n".to_owned(),
            ..UnitResult::default()
        };
        let (status, words) = check(&result, false);
        assert_eq!(status, "error");
        assert!(words.contains("status 1") && words.contains("Traceback: no playbook"), "{words}");
    }

    #[test]
    fn canceled_only_when_the_tree_is_gone_or_the_runner_says_so() {
        let finished = Finished { outcome: Outcome::Canceled.into(), ..Finished::default() };
        let result = UnitResult { finished: Some(finished), ..UnitResult::default() };
        assert_eq!(check(&result, true), ("canceled", String::new()));
        let result = ran(Some(RunnerStatus::Successful), Some(Rc::Code(0)), true);
        let (status, words) = check(&result, true);
        assert_eq!(status, "successful");
        assert!(words.contains("before the cancel"), "{words}");
    }

    #[test]
    fn a_cancel_that_waits_names_its_node_and_since_when() {
        let (node, at) = ("node-1".parse().unwrap(), |text: &str| text.parse::<Timestamp>().unwrap());
        let (asked, seen) = (at("2026-01-02T03:04:05Z"), at("2026-01-02T03:00:00Z"));
        let check = |seen| cancel_pending(&node, asked, seen, "node node-1 refused: no room");
        let asked = "asked for at 2026-01-02T03:04:05Z";
        let away = "node node-1 unreachable since 2026-01-02T03:00:00Z";
        assert_eq!(check(Some(seen)), format!("cancel pending: {away}; {asked}"));
        assert_eq!(check(None), format!("cancel pending: node node-1 refused: no room; {asked}"));
    }

    #[test]
    fn lost_is_an_error_that_says_what_is_unknown() {
        let result = UnitResult { lost: Some("the shim was killed".to_owned()), ..UnitResult::default() };
        let (status, words) = check(&result, false);
        assert_eq!(status, "error");
        assert!(words.contains("the shim was killed"), "{words}");
    }

    #[test]
    fn a_host_counts_by_its_worst() {
        let counts = Counts { ok: 3, failures: 1, ..Counts::default() };
        let result = UnitResult {
            host_summaries: BTreeMap::from([
                ("a".to_owned(), counts),
                ("b".to_owned(), Counts { ok: 3, ..Counts::default() }),
            ]),
            ..UnitResult::default()
        };
        let last = of(&result, false);
        assert_eq!(last.host_status_counts.as_deref(), Some(r#"{"failures":1,"ok":1}"#));
        assert_eq!(last.hosts.len(), 2);
    }
}

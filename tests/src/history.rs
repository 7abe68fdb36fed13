//! What happened while everything was in trouble, and a pure judge over it.
//!
//! A [`History`] is what can be seen from outside once trouble is over: what was launched, how it ended, what is stored of it,
//! and which starts the jobs themselves noted. [`check`] names every promise that it breaks.

use std::collections::BTreeMap;

use serde_json::Value;

/// In the explanation of a job of which the node knows that nothing ran.
const NOTHING_RAN: &str = "nothing of the unit ran";

/// One job as the API tells it once everything is settled.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// Id of the job.
    pub job: i64,
    /// Final status, or the one it is stuck in.
    pub status: String,
    /// Why it ended as it did; empty for success.
    pub explanation: String,
    /// Whether a cancel was accepted for it.
    pub canceled: bool,
    /// Whether its shim may have been killed, its spool damaged or its node's disk full: `error` with a reason is then right.
    pub struck: bool,
    /// What is stored, in order, without what differs from job to job.
    pub events: Vec<Value>,
}

/// All that is known at the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Jobs whose launch was answered with success.
    pub accepted: Vec<i64>,
    /// What became of them.
    pub ended: Vec<Ended>,
    /// Unit and attempt, once for each start, as the jobs wrote them.
    pub starts: Vec<String>,
    /// Such strikes, by the jobs that each can have met: that many errors are excused.
    pub strikes: usize,
    /// Deaths of the agent, by the jobs that each can have met between the mark that they start and the start: that many may never
    /// have run, and must say so.
    pub deaths: usize,
    /// What an undisturbed job stores.
    pub expected: Vec<Value>,
}

impl Ended {
    fn never_ran(&self) -> bool {
        self.status == "error" && self.explanation.contains(NOTHING_RAN)
    }
}

/// Every promise that the history breaks, in words; empty when it breaks none.
///
/// Each accepted job ends once and visibly; no attempt starts twice; a success stores exactly what an undisturbed job stores;
/// whatever ended otherwise stores a beginning of it, in order, and says why; nothing fails without a cause, and nothing
/// succeeds without a start.
pub fn check(history: &History) -> Vec<String> {
    let mut broken = Vec::new();
    for job in &history.accepted {
        let ends = history.ended.iter().filter(|ended| ended.job == *job).count();
        if ends != 1 {
            broken.push(format!("job {job} was accepted and has {ends} ends"));
        }
    }
    let mut starts = BTreeMap::<&str, usize>::new();
    for start in &history.starts {
        *starts.entry(start).or_default() += 1;
    }
    broken
        .extend(starts.iter().filter(|(_, n)| **n > 1).map(|(unit, n)| format!("{unit} started {n} times")));
    let with = |status: &str| history.ended.iter().filter(|ended| ended.status == status).count();
    let never_ran = history.ended.iter().filter(|ended| ended.never_ran()).count();
    if with("error") - never_ran > history.strikes {
        broken.push(format!("{} errors by {} strikes", with("error") - never_ran, history.strikes));
    }
    if never_ran > history.deaths {
        broken.push(format!("{never_ran} jobs never ran by {} deaths of the agent", history.deaths));
    }
    if starts.len() < with("successful") {
        broken.push(format!("{} units started, {} were successful", starts.len(), with("successful")));
    }
    for ended in &history.ended {
        if !history.accepted.contains(&ended.job) {
            broken.push(format!("job {} ended and was never accepted", ended.job));
        }
        broken.extend(judge(ended, &history.expected).map(|why| format!("job {}: {why}", ended.job)));
    }
    broken
}

fn judge(ended: &Ended, expected: &[Value]) -> Option<String> {
    let is_whole = ended.events == expected;
    let is_beginning = expected.starts_with(&ended.events);
    match ended.status.as_str() {
        "successful" if is_whole => None,
        "successful" => {
            Some(format!("successful with {} of {} events, or others", ended.events.len(), expected.len()))
        }
        "canceled" if !ended.canceled => Some("canceled, and nobody asked".to_owned()),
        "error" if ended.never_ran() && !ended.events.is_empty() => {
            Some(format!("never ran, and has {} events", ended.events.len()))
        }
        "error" if ended.never_ran() => None,
        "error" if !ended.struck => Some(format!("error without a cause: {}", ended.explanation)),
        "error" if ended.explanation.is_empty() => Some("error without a reason".to_owned()),
        "canceled" | "error" if is_beginning => None,
        "canceled" | "error" => {
            Some(format!("{} events that are no beginning of the output", ended.events.len()))
        }
        other => Some(format!("is {other}: {}", ended.explanation)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> History {
        let expected = vec![json!(1), json!(2), json!(3)];
        let ended = |job, status: &str, canceled, struck, events: &[Value]| Ended {
            job,
            status: status.to_owned(),
            explanation: if status == "error" { "the shim died" } else { "" }.to_owned(),
            canceled,
            struck,
            events: events.to_vec(),
        };
        History {
            accepted: vec![1, 2, 3, 4],
            ended: vec![
                ended(1, "successful", false, false, &expected),
                ended(2, "canceled", true, false, &expected[..1]),
                ended(3, "error", false, true, &expected[..2]),
                Ended { explanation: NOTHING_RAN.to_owned(), ..ended(4, "error", false, false, &[]) },
            ],
            starts: vec!["a.1".to_owned(), "b.1".to_owned()],
            strikes: 1,
            deaths: 1,
            expected,
        }
    }

    #[test]
    fn a_good_history_breaks_nothing() {
        assert_eq!(check(&good()), Vec::<String>::new());
    }

    #[test]
    fn each_bad_history_is_told_from_a_good_one() {
        type Spoil = fn(&mut History);
        let bad: [(&str, Spoil); 15] = [
            ("an end lost", |h| drop(h.ended.remove(0))),
            ("an end doubled", |h| h.ended.push(h.ended[0].clone())),
            ("an end of nothing accepted", |h| {
                h.accepted.pop();
            }),
            ("a second start", |h| h.starts.push("a.1".to_owned())),
            ("an event lost", |h| drop(h.ended[0].events.remove(1))),
            ("an event doubled", |h| h.ended[0].events.insert(1, json!(1))),
            ("events swapped", |h| h.ended[0].events.swap(0, 1)),
            ("a gap in what was canceled", |h| h.ended[1].events = vec![json!(2)]),
            ("a cancel nobody asked for", |h| h.ended[1].canceled = false),
            ("an error without a cause", |h| h.ended[2].struck = false),
            ("an error too many", |h| h.strikes = 0),
            ("a job that never ran, and no agent died", |h| h.deaths = 0),
            ("a job that never ran, with an event", |h| h.ended[3].events = vec![json!(1)]),
            ("a success that nothing ran for", |h| h.starts.clear()),
            ("a job that stands still", |h| h.ended[0].status = "running".to_owned()),
        ];
        for (what, spoil) in bad {
            let mut history = good();
            spoil(&mut history);
            assert_eq!(check(&history).len(), 1, "{what}: {:?}", check(&history));
        }
    }

    #[test]
    fn an_error_must_say_why() {
        let mut history = good();
        history.ended[2].explanation.clear();
        assert_eq!(check(&history), ["job 3: error without a reason"]);
    }
}

//! Looking for a text in what jobs printed and did: newest first, in bounded time, to be gone on with.
//!
//! There is no index of words: events are opened and read through, the failed ones only unless all are wanted. That is
//! as fast as blocks are inflated, tens of thousands of events a second, and costs nothing while nobody asks.

use std::time::{Duration, Instant};

use regex::bytes::{Regex, RegexBuilder};
use sea_query::{Condition, Expr, ExprTrait, Order as SqlOrder, Query};

use crate::store::core::{CoreDb, Error as StoreError};
use crate::store::events::{self, Event, EventQuery, EventStore, JobKey, Numbers, Order, TextMatch};

/// Longest text that is looked for.
pub(crate) const TEXT_MAX: usize = 1000;
/// Jobs looked up at a time.
const JOBS: u64 = 100;
/// Events read at a time.
const EVENTS: u32 = 256;
/// Characters shown around what was found.
const AROUND: usize = 160;

/// Why a search stops short.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Jobs do not read.
    #[error("cannot look for jobs")]
    Jobs(#[source] StoreError),
    /// A job's events do not read.
    #[error("cannot read the events of job {job}")]
    Events {
        job: i64,
        #[source]
        source: events::Error,
    },
}

/// What is looked for.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Case of ASCII letters does not matter.
    pub(crate) text: String,
    /// Only events that report a failure.
    pub(crate) failed: bool,
    /// Only jobs created since, in microseconds.
    pub(crate) since: Option<i64>,
    /// Only jobs of this template.
    pub(crate) template: Option<i64>,
    /// Only events of this host.
    pub(crate) host: Option<String>,
    /// Which jobs may be looked into.
    pub(crate) visible: Option<Expr>,
}

/// Where a search goes on: with the events of `job` before `counter`, then with older jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) job: i64,
    pub(crate) counter: i64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.job, self.counter)
    }
}

impl std::str::FromStr for Cursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (job, counter) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self { job: job.parse()?, counter: counter.parse()? })
    }
}

/// A find.
#[derive(Debug)]
pub(crate) struct Hit {
    pub(crate) event: Event,
    /// Name of its job.
    pub(crate) name: String,
    /// Line in which the text stands, or the piece of the event's data around it.
    pub(crate) excerpt: String,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Searched {
    pub(crate) jobs: u64,
    pub(crate) events: u64,
}

struct Job {
    key: JobKey,
    name: String,
}

/// A search under way. It holds one page of events, and the ids of a hundred jobs.
pub(crate) struct Search {
    db: CoreDb,
    events: EventStore,
    wanted: Wanted,
    pattern: Regex,
    /// The jobs that come next, newest last.
    jobs: Vec<Job>,
    /// Jobs with this id and above are done with.
    below: i64,
    /// Of that job, only events before this one are left.
    before: Option<Cursor>,
    deadline: Instant,
    searched: Searched,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Finds of one page of events, newest first; often none.
    Hits(Vec<Hit>),
    /// Nothing is left, or the time is up: then there is a place to go on.
    End(Searched, Option<Cursor>),
}

impl Search {
    /// `time` is how long it may take; it ends a little later.
    pub(crate) fn new(
        db: CoreDb,
        events: EventStore,
        wanted: Wanted,
        from: Option<Cursor>,
        time: Duration,
    ) -> Self {
        Self {
            db,
            events,
            pattern: pattern(&wanted.text),
            wanted,
            jobs: Vec::new(),
            below: from.map_or(i64::MAX, |cursor| cursor.job.saturating_add(1)),
            before: from,
            deadline: Instant::now() + time,
            searched: Searched::default(),
        }
    }

    /// Looks through the next page of events.
    ///
    /// # Errors
    /// Jobs or events that do not read.
    pub(crate) async fn step(&mut self) -> Result<Step, Error> {
        loop {
            if self.jobs.is_empty() && !self.more_jobs().await? {
                return Ok(Step::End(self.searched, None));
            }
            let Some(job) = self.jobs.last() else { continue };
            let key = job.key;
            // The job of a cursor may be gone: it says nothing of others.
            let before = self.before.filter(|before| before.job == key.id && before.counter > 0);
            if Instant::now() >= self.deadline {
                let counter = before.map_or(0, |before| before.counter);
                return Ok(Step::End(self.searched, Some(Cursor { job: key.id, counter })));
            }
            let to = before.map(|before| before.counter - 1);
            let query = EventQuery {
                failed: self.wanted.failed.then_some(true),
                host: self.wanted.host.clone().map(|host| TextMatch::In(vec![host])),
                counter: Numbers { from: None, to },
                order: Order::Descending,
                limit: EVENTS,
                total: false,
                ..EventQuery::default()
            };
            let page = self.events.events(key, query).await;
            let page = page.map_err(|source| Error::Events { job: key.id, source })?.events;
            // Those that did not fit into the page are looked through next.
            let whole = page.iter().position(|event| event.left_out).unwrap_or(page.len());
            let name = job.name.clone();
            if whole < page.len() || page.len() == EVENTS as usize {
                let counter = page.get(whole.max(1) - 1).map_or(1, |event| event.counter);
                self.before = Some(Cursor { job: key.id, counter });
            } else {
                self.jobs.pop();
                self.below = key.id;
                self.searched.jobs += 1;
            }
            self.searched.events += whole as u64;
            let found = page.into_iter().take(whole).filter_map(|event| {
                let excerpt = excerpt(&self.pattern, &event)?;
                Some(Hit { event, name: name.clone(), excerpt })
            });
            return Ok(Step::Hits(found.collect()));
        }
    }

    async fn more_jobs(&mut self) -> Result<bool, Error> {
        let mut query = Query::select();
        query.columns(["id", "created", "name"].map(|column| (crate::registry::read::BASE, column)));
        query.from_as("unified_jobs", crate::registry::read::BASE);
        let column = |name: &'static str| Expr::col((crate::registry::read::BASE, name));
        query.and_where(column("id").lt(self.below));
        query.cond_where(
            Condition::all()
                .add_option(self.wanted.since.map(|since| column("created").gte(since)))
                .add_option(self.wanted.template.map(|id| column("unified_job_template_id").eq(id)))
                .add_option(self.wanted.visible.clone()),
        );
        query.order_by((crate::registry::read::BASE, "id"), SqlOrder::Desc).limit(JOBS);
        for row in self.db.all(&query).await.map_err(Error::Jobs)? {
            let read = || -> Result<Job, StoreError> {
                Ok(Job { key: JobKey { id: row.at(0)?, created: row.time("created")? }, name: row.at(2)? })
            };
            self.jobs.push(read().map_err(Error::Jobs)?);
        }
        self.jobs.reverse();
        Ok(!self.jobs.is_empty())
    }
}

/// The text as it stands in output, or in JSON.
fn pattern(text: &str) -> Regex {
    let quoted = serde_json::Value::from(text).to_string();
    let quoted = &quoted[1..quoted.len() - 1];
    let either = format!("(?i-u){}|{}", regex::escape(text), regex::escape(quoted));
    RegexBuilder::new(&either).unicode(false).build().expect("escaped text of bounded length is a pattern")
}

/// What stands around the text in an event; `None` when it is not there.
fn excerpt(pattern: &Regex, event: &Event) -> Option<String> {
    let stdout = event.stdout.as_bytes();
    if let Some(found) = pattern.find(stdout) {
        let begin = stdout[..found.start()].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let end = stdout[found.end()..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map_or(stdout.len(), |at| found.end() + at);
        return Some(around(&stdout[begin..end], found.start() - begin));
    }
    let data = event.event_data.get().as_bytes();
    let names = [&event.host_name, &event.task, &event.play];
    if let Some(found) = pattern.find(data) {
        return Some(around(data, found.start()));
    }
    names.into_iter().find(|name| pattern.is_match(name.as_bytes())).cloned()
}

fn around(line: &[u8], at: usize) -> String {
    let text = String::from_utf8_lossy(line);
    // Places of characters: bytes may have been replaced, so this is near enough.
    let before = String::from_utf8_lossy(&line[..at]).chars().count();
    let skip = before.saturating_sub(AROUND / 2);
    let shown: String = text.chars().skip(skip).take(AROUND).collect();
    let (head, tail) = (skip > 0, text.chars().count() > skip + AROUND);
    let shown = shown.trim();
    format!("{}{shown}{}", if head { "\u{2026}" } else { "" }, if tail { "\u{2026}" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_texts() {
        let cursor = Cursor { job: 12, counter: 40 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        assert!("12".parse::<Cursor>().is_err() && "x.1".parse::<Cursor>().is_err());
    }

    #[test]
    fn texts_are_found_as_printed_and_as_quoted() {
        let found = |text: &str, line: &str| pattern(text).is_match(line.as_bytes());
        assert!(found("No Space", "write: no space left on device"));
        assert!(found("say \"x\"", r#"{"msg": "say \"x\" now"}"#));
        assert!(found("a.b", "A.B") && !found("a.b", "axb"));
    }

    #[test]
    fn long_lines_are_shown_around_the_find() {
        let line = format!("{}needle{}", "a".repeat(500), "b".repeat(500));
        let shown = around(line.as_bytes(), 500);
        assert!(shown.contains("needle") && shown.starts_with('\u{2026}') && shown.ends_with('\u{2026}'));
        assert_eq!(shown.chars().count(), AROUND + 2);
        assert_eq!(around(b"short", 0), "short");
    }
}

//! What has happened in the mesh, as one daemon saw it: a short memory that people may read and follow.
//!
//! The [`Journal`] keeps the last [`KEPT`] events and numbers them from 1. It never waits for a reader: whoever asks too
//! late finds a gap in the numbers, and is told. It knows nothing of routing; the driver writes into it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use plexus_proto::id::NodeId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::status::{SCHEMA_VERSION, text};

/// Events kept: some hundred bytes each, and enough for the minutes in which somebody asks what happened.
pub(crate) const KEPT: usize = 1024;
/// Events of one answer at most.
const PAGE: usize = 512;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshEvent {
    /// Number, from 1 at the start of the daemon, without gaps.
    pub number: u64,
    /// When.
    #[serde(with = "text")]
    pub at: Timestamp,
    /// What, for programs.
    pub event: EventKind,
    /// The node it is about; this daemon's neighbor for links.
    pub node: Option<NodeId>,
    /// What, for people.
    pub text: String,
}

/// Kinds of events. A word that this program does not know is [`Other`](EventKind::Other).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A link of this daemon came up.
    LinkUp,
    /// A link of this daemon ended; the text says why.
    LinkDown,
    /// A way to a node appeared.
    NodeReachable,
    /// The last way to a node went.
    NodeUnreachable,
    /// Another neighbor leads to a node now.
    RouteChanged,
    /// A neighbor or this daemon was refused.
    LinkRefused,
    /// A certificate was renewed, or is near its end.
    Certificate,
    /// A certificate was revoked.
    Revoked,
    /// Two live nodes claim one identity.
    CloneSuspected,
    /// A new configuration was taken over.
    Reloaded,
    /// Something that a later version tells.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// The word of the JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LinkUp => "link_up",
            Self::LinkDown => "link_down",
            Self::NodeReachable => "node_reachable",
            Self::NodeUnreachable => "node_unreachable",
            Self::RouteChanged => "route_changed",
            Self::LinkRefused => "link_refused",
            Self::Certificate => "certificate",
            Self::Revoked => "revoked",
            Self::CloneSuspected => "clone_suspected",
            Self::Reloaded => "reloaded",
            Self::Other => "other",
        }
    }
}

/// Some of a daemon's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshEvents {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Who saw them; events of another start of the daemon have another `since`.
    pub from: NodeId,
    /// When the daemon began to count.
    #[serde(with = "text")]
    pub since: Timestamp,
    /// Events between those that were asked for and the first below, that are forgotten.
    pub forgotten: u64,
    /// In order.
    pub events: Vec<MeshEvent>,
    /// Ask after this number next.
    pub last: u64,
}

/// The memory.
#[derive(Debug)]
pub(crate) struct Journal {
    since: Timestamp,
    events: Mutex<VecDeque<MeshEvent>>,
    /// Number of the latest event.
    last: watch::Sender<u64>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { since: Timestamp::now(), events: Mutex::default(), last: watch::Sender::new(0) }
    }
}

impl Journal {
    /// The latest event of `kind` for each node, of those that happened after `since`; the node last heard of first.
    pub(crate) fn latest(&self, kind: EventKind, since: Timestamp) -> Vec<MeshEvent> {
        let events = self.events.lock().expect("no code panics under this lock");
        let mut found: Vec<MeshEvent> = Vec::new();
        for event in events.iter().rev().filter(|event| event.event == kind && event.at > since) {
            if !found.iter().any(|known| known.node == event.node) {
                found.push(event.clone());
            }
        }
        found
    }

    /// Writes down what happened, now.
    pub(crate) fn record(&self, event: EventKind, node: Option<NodeId>, text: String) {
        let mut events = self.events.lock().expect("no code panics under this lock");
        let number = *self.last.borrow() + 1;
        if events.len() == KEPT {
            events.pop_front();
        }
        events.push_back(MeshEvent { number, at: Timestamp::now(), event, node, text });
        self.last.send_replace(number);
    }

    /// Events after number `after`; if there are none yet, waits for one no longer than `wait`. A number that was never
    /// given, as after a restart of the daemon, counts as 0.
    pub(crate) async fn after(&self, after: u64, wait: Duration, from: &NodeId) -> MeshEvents {
        let mut last = self.last.subscribe();
        let after = if after > *last.borrow_and_update() { 0 } else { after };
        // An end of the wait is no failure: the answer is empty then.
        let _ = tokio::time::timeout(wait, last.wait_for(|&last| last > after)).await;
        let events = self.events.lock().expect("no code panics under this lock");
        let first = events.front().map_or(after + 1, |event| event.number);
        let skip = (after + 1).saturating_sub(first) as usize;
        let events: Vec<_> = events.iter().skip(skip).take(PAGE).cloned().collect();
        MeshEvents {
            schema_version: SCHEMA_VERSION,
            from: from.clone(),
            since: self.since,
            forgotten: first.saturating_sub(after + 1),
            last: events.last().map_or(after, |event| event.number),
            events,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> NodeId {
        "me".parse().unwrap()
    }

    fn record(journal: &Journal, count: usize) {
        (0..count).for_each(|_| journal.record(EventKind::LinkUp, Some(name()), "up".into()));
    }

    async fn check(journal: &Journal, after: u64, forgotten: u64, first: u64, last: u64) {
        let events = journal.after(after, Duration::ZERO, &name()).await;
        let found = (events.forgotten, events.events.first().map_or(0, |event| event.number), events.last);
        assert_eq!(found, (forgotten, first, last));
        let numbers: Vec<_> = events.events.iter().map(|event| event.number).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
    }

    #[tokio::test]
    async fn events_are_numbered_and_told_once() {
        let journal = Journal::default();
        check(&journal, 0, 0, 0, 0).await;
        record(&journal, 3);
        check(&journal, 0, 0, 1, 3).await;
        check(&journal, 2, 0, 3, 3).await;
        check(&journal, 3, 0, 0, 3).await;
        check(&journal, 99, 0, 1, 3).await;
    }

    #[tokio::test]
    async fn what_is_forgotten_is_counted() {
        let journal = Journal::default();
        record(&journal, KEPT + 10);
        let page = PAGE as u64;
        check(&journal, 0, 10, 11, 10 + page).await;
        check(&journal, 4, 6, 11, 10 + page).await;
        check(&journal, 10 + page, 0, 11 + page, 10 + KEPT as u64).await;
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let journal = Journal::default();
        let me = name();
        let (events, ()) = tokio::join!(journal.after(0, Duration::from_secs(600), &me), async {
            tokio::task::yield_now().await;
            record(&journal, 1);
        });
        assert_eq!(events.last, 1);
    }

    #[test]
    fn words_of_later_versions_are_other() {
        let json = r#"{"number":1,"at":"2026-01-01T00:00:00Z","event":"sunspots","node":null,"text":"x"}"#;
        assert_eq!(serde_json::from_str::<MeshEvent>(json).unwrap().event, EventKind::Other);
        for kind in [EventKind::LinkUp, EventKind::RouteChanged, EventKind::CloneSuspected, EventKind::Other]
        {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }
}

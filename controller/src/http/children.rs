//! `jobs/N/job_events/children_summary/`: how many events stand below each, for a page that folds them.
//!
//! Read in one pass, in the order of the counter, and kept is only the way from the root to the event at hand: as long as the
//! events are a tree, that is where every parent stands.

use std::collections::BTreeMap;

use axum::http::Method;
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, events, ok};
use crate::event_kind::kind;
use crate::kind::Kind;
use crate::store::events::Outline;

/// Events read at a time.
const PIECE: i64 = 5000;

/// Kinds that stand wherever Ansible printed something, and that have no place of their own in the tree.
const META: [&str; 6] = ["debug", "verbose", "warning", "error", "system_warning", "deprecated"];

pub(super) async fn summary(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let owner = events::owner(call, kind, id).await?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Job Job Events Children Summary", "renders": ["application/json"]}));
    }
    let mut query = Query::select();
    query.column("event_processing_finished").from("unified_jobs");
    query.and_where(Expr::col("id").eq(owner.key.id));
    let row = call.app.db.optional(&query).await?.ok_or_else(|| ApiError::missing("Job"))?;
    let mut tree = Tree::default();
    if !row.at::<bool>(0)? {
        return ok(tree.document(false));
    }
    let mut next = 1;
    loop {
        let piece = call.app.events.outline(owner.key, next..=next + PIECE - 1).await;
        let piece =
            piece.map_err(|error| ApiError::internal("the events of a job could not be read", error))?;
        if piece.is_empty() || !piece.iter().all(|event| tree.add(event)) {
            break;
        }
        next += PIECE;
    }
    tree.finish();
    ok(tree.document(true))
}

/// An event that others may stand below.
#[derive(Debug, Clone)]
struct Seen {
    uuid: String,
    counter: i64,
    row: u64,
    /// Level of its parent.
    parent: Option<usize>,
}

/// What has been read, folded up.
#[derive(Debug, Default)]
struct Tree {
    /// The last event of each level.
    way: [Option<Seen>; 4],
    /// Row and number of children by counter.
    summary: BTreeMap<i64, (u64, u64)>,
    /// Parents that were found for events of the meta kinds.
    nested: Map<String, Value>,
    /// Level and parent of the last event with a place of its own.
    before: Option<(u8, String)>,
    /// Meta events whose parent depends on what comes next.
    waiting: Vec<i64>,
    row: u64,
    is_no_tree: bool,
}

impl Tree {
    /// Takes the next event; false when the events turn out to be no tree, as with the strategy `free`.
    fn add(&mut self, event: &Outline) -> bool {
        let row = self.row;
        self.row += 1;
        let parent = event.parent_uuid.as_str();
        if META.contains(&event.event.as_str()) {
            if !parent.is_empty() && self.level(parent).is_none() {
                self.is_no_tree = true;
            } else if !event.uuid.is_empty() {
                self.before.get_or_insert_with(|| (0, parent.to_owned()));
                self.waiting.push(event.counter);
            }
            return !self.is_no_tree;
        }
        let level = kind(&event.event).1;
        self.settle(level, parent);
        self.before = Some((level, parent.to_owned()));
        if event.uuid.is_empty() {
            return true;
        }
        let place = usize::from(level).min(self.way.len() - 1);
        self.way[place..].fill(None);
        let above = self.level(parent);
        if !parent.is_empty() && above.is_none() {
            self.is_no_tree = true;
            return false;
        }
        self.way[place] = Some(Seen { uuid: event.uuid.clone(), counter: event.counter, row, parent: above });
        self.count(above, 1);
        true
    }

    fn finish(&mut self) {
        self.settle(0, "");
    }

    /// Gives waiting events the parent of the deeper of their neighbours.
    fn settle(&mut self, level: u8, parent: &str) {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return;
        }
        let (before, of_before) = self.before.clone().unwrap_or_default();
        let parent = if level > before { parent } else { of_before.as_str() };
        if parent.is_empty() {
            return;
        }
        self.count(self.level(parent), waiting.len() as u64);
        for counter in waiting {
            self.nested.insert(counter.to_string(), parent.into());
        }
    }

    fn level(&self, uuid: &str) -> Option<usize> {
        self.way.iter().position(|seen| seen.as_ref().is_some_and(|seen| seen.uuid == uuid))
    }

    /// Notes `more` events below the one at a level, and below all above it.
    fn count(&mut self, mut level: Option<usize>, more: u64) {
        while let Some(seen) = level.and_then(|level| self.way[level].as_ref()) {
            self.summary.entry(seen.counter).or_insert((seen.row, 0)).1 += more;
            level = seen.parent;
        }
    }

    fn document(self, finished: bool) -> Value {
        let mut summary = Map::new();
        let mut nested = Map::new();
        if !self.is_no_tree {
            for (counter, (row, children)) in self.summary {
                summary.insert(counter.to_string(), json!({"rowNumber": row, "numChildren": children}));
            }
            nested = self.nested;
        }
        json!({
            "children_summary": summary,
            "meta_event_nested_uuid": nested,
            "event_processing_finished": finished,
            "is_tree": !self.is_no_tree,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(events: &[(&str, &str, &str)]) -> Value {
        let mut tree = Tree::default();
        for (counter, (event, uuid, parent)) in (1..).zip(events) {
            let event = Outline {
                counter,
                event: (*event).to_owned(),
                uuid: (*uuid).to_owned(),
                parent_uuid: (*parent).to_owned(),
            };
            if !tree.add(&event) {
                break;
            }
        }
        tree.finish();
        tree.document(true)
    }

    #[test]
    fn children_are_counted_up_to_the_root() {
        let shown = tree(&[
            ("playbook_on_start", "b", ""),
            ("playbook_on_play_start", "p", "b"),
            ("playbook_on_task_start", "t", "p"),
            ("runner_on_start", "r1", "t"),
            ("runner_on_ok", "r2", "t"),
            ("playbook_on_task_start", "t2", "p"),
            ("runner_on_ok", "r3", "t2"),
            ("playbook_on_stats", "s", "b"),
        ]);
        let expected = json!({
            "1": {"rowNumber": 0, "numChildren": 7},
            "2": {"rowNumber": 1, "numChildren": 5},
            "3": {"rowNumber": 2, "numChildren": 2},
            "6": {"rowNumber": 5, "numChildren": 1},
        });
        assert_eq!(shown["children_summary"], expected);
        assert_eq!((&shown["is_tree"], &shown["meta_event_nested_uuid"]), (&json!(true), &json!({})));
    }

    #[test]
    fn what_ansible_prints_between_goes_to_the_deeper_neighbour() {
        let shown = tree(&[
            ("verbose", "v0", ""),
            ("playbook_on_start", "b", ""),
            ("verbose", "v1", ""),
            ("playbook_on_play_start", "p", "b"),
            ("playbook_on_task_start", "t", "p"),
            ("verbose", "v2", ""),
            ("runner_on_ok", "r", "t"),
            ("warning", "v3", ""),
            ("playbook_on_stats", "s", "b"),
        ]);
        assert_eq!(shown["meta_event_nested_uuid"], json!({"3": "b", "6": "t", "8": "t"}));
        assert_eq!(shown["children_summary"]["5"], json!({"rowNumber": 4, "numChildren": 3}));
    }

    #[test]
    fn events_out_of_order_are_no_tree() {
        let shown = tree(&[
            ("playbook_on_start", "b", ""),
            ("playbook_on_play_start", "p", "b"),
            ("playbook_on_task_start", "t", "p"),
            ("playbook_on_task_start", "t2", "p"),
            ("runner_on_ok", "r", "t"),
        ]);
        assert_eq!((&shown["is_tree"], &shown["children_summary"]), (&json!(false), &json!({})));
    }
}

//! An event as watchers are sent it.

use std::collections::BTreeMap;

use axum::extract::ws::Utf8Bytes;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::event_kind::kind;
use crate::kind::Kind;
use crate::registry::read::time_json;
use crate::store::events::Event;

/// An event, written once for all who watch.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Its number in the job.
    pub(crate) counter: i64,
    /// A JSON object on one line, with the fields of AWX's websocket.
    pub(crate) json: Utf8Bytes,
}

#[derive(Serialize)]
struct Shown<'e> {
    id: i64,
    /// `job` with its id, or what else the event is of.
    #[serde(flatten)]
    owner: BTreeMap<&'static str, i64>,
    created: Option<Value>,
    modified: Option<Value>,
    group_name: &'static str,
    url: String,
    stdout: &'e str,
    counter: i64,
    uuid: &'e str,
    parent_uuid: &'e str,
    start_line: i64,
    end_line: i64,
    event: &'e str,
    event_data: &'e RawValue,
    failed: bool,
    changed: bool,
    event_level: u8,
    host_name: &'e str,
    play: &'e str,
    role: &'e str,
    task: &'e str,
}

impl Frame {
    pub(super) fn new(of: Kind, event: &Event) -> Self {
        let names = of.names();
        let id = event.id();
        let created = event.created.map(|created| time_json(created.as_microsecond()));
        let shown = Shown {
            id,
            owner: BTreeMap::from([(names.owner, event.job)]),
            modified: created.clone(),
            created,
            group_name: names.group,
            url: format!("/api/v2/{}/{id}/", names.group),
            stdout: &event.stdout,
            counter: event.counter,
            uuid: &event.uuid,
            parent_uuid: event.parent_uuid.as_deref().unwrap_or_default(),
            start_line: event.start_line,
            end_line: event.end_line,
            event: &event.event,
            event_data: &event.event_data,
            failed: event.failed,
            changed: event.changed,
            event_level: kind(&event.event).1,
            host_name: &event.host_name,
            play: &event.play,
            role: &event.role,
            task: &event.task,
        };
        let json =
            serde_json::to_string(&shown).expect("texts, numbers and JSON that was read before are JSON");
        Self { counter: event.counter, json: json.into() }
    }
}

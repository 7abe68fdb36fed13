//! A job's events: lists, single ones, and what the clients' monitors ask.
//!
//! Events are not in the core database, so the registry does not know them: their filters are those that the event
//! store answers, under AWX's names. The `awx` command watches a job by asking every few seconds for all events from a
//! line on, and takes only the first page of the answer; so where it says `no_truncate` and names no page, the page is
//! everything there is, written piece by piece.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use axum::body::Body;
use axum::http::{HeaderValue, Method, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sea_query::{Condition, Expr, ExprTrait, Query};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::generic::{self, envelope, page_number};
use super::{Answer, App, ok};
use crate::auth::User;
use crate::event_kind::kind;
use crate::inventory::members::Members;
use crate::kind::Kind;
use crate::registry::read::{BASE, time_json};
use crate::registry::{HOSTS, read};
use crate::store::core::Error as StoreError;
use crate::store::events::{self, Event, EventId, EventQuery, JobKey, Numbers, Order, TextMatch};

/// Events on a page that asks for no number.
const PAGE: u64 = 200;

/// Most events on a page.
const MAX_PAGE: u64 = 1000;

/// Events read at a time when everything is written.
const PIECE: u32 = 500;

/// Characters of output that a list shows.
const SHOWN: usize = 1024;

const READS: &str = "GET, HEAD, OPTIONS";

/// A job, as far as its events need it.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) kind: Kind,
    pub(super) key: JobKey,
    pub(super) image: Option<String>,
    pub(super) explanation: String,
    inventory: Option<i64>,
    summary: Value,
}

/// The job of this kind with this id, or no job that the user may see.
pub(super) async fn owner(call: &Call, kind: Kind, id: &str) -> Result<Owner, ApiError> {
    seen(&call.app, call.user()?, kind, id).await
}

/// As [`owner`], for a user who does not ask by a request.
pub(super) async fn seen(app: &App, user: &User, kind: Kind, id: &str) -> Result<Owner, ApiError> {
    let resource = kind.names().resource;
    let id = id.parse::<i64>().map_err(|_| ApiError::missing(resource.model))?;
    let mut query = read::source(resource, BASE);
    let columns = [
        "id",
        "created",
        "inventory_id",
        "image",
        "job_explanation",
        "name",
        "description",
        "status",
        "failed",
        "elapsed",
    ];
    query.columns(columns.map(|column| (BASE, column))).and_where(Expr::col((BASE, "id")).eq(id));
    query.cond_where(Condition::all().add_option(generic::visible(resource, user)?));
    let row = app.db.optional(&query).await?.ok_or_else(|| ApiError::missing(resource.model))?;
    let created = row.time("created")?;
    Ok(Owner {
        kind,
        key: JobKey { id: row.at(0)?, created },
        inventory: row.at(2)?,
        image: row.at(3)?,
        explanation: row.at(4)?,
        summary: json!({
            "id": id,
            "name": row.at::<String>(5)?,
            "description": row.at::<String>(6)?,
            "status": row.at::<String>(7)?,
            "failed": row.at::<bool>(8)?,
            "elapsed": row.at::<f64>(9)?,
            "type": kind.as_str(),
        }),
    })
}

/// An event as clients know it.
#[derive(Serialize)]
struct Shown<'e> {
    id: i64,
    r#type: &'static str,
    url: String,
    related: Value,
    summary_fields: Value,
    created: Option<Value>,
    modified: Option<Value>,
    /// `job` with its id, or what else the event is of.
    #[serde(flatten)]
    owner: BTreeMap<&'static str, i64>,
    event: &'e str,
    counter: i64,
    event_display: &'static str,
    event_data: &'e RawValue,
    event_level: u8,
    failed: bool,
    changed: bool,
    uuid: &'e str,
    parent_uuid: &'e str,
    host: Option<i64>,
    host_name: &'e str,
    playbook: &'e str,
    play: &'e str,
    task: &'e str,
    role: &'e str,
    stdout: String,
    start_line: i64,
    end_line: i64,
    verbosity: u8,
}

impl<'e> Shown<'e> {
    fn new(event: &'e Event, owner: &Owner, hosts: &HashMap<String, i64>, whole: bool) -> Self {
        let id = event.id();
        let names = owner.kind.names();
        let url = format!("/api/v2/{}/{id}/", names.group);
        let host = hosts.get(&event.host_name).copied();
        let mut related = json!({
            (names.owner): names.resource.url(event.job),
            "children": format!("{url}children/"),
        });
        let mut summary = json!({(names.owner): owner.summary});
        if let Some(host) = host {
            related["host"] = HOSTS.url(host).into();
            summary["host"] = json!({"id": host, "name": event.host_name, "description": ""});
        }
        let (display, level) = kind(&event.event);
        // A small page is for looking at; what the recap and the like say is never cut.
        let whole = whole || event.event.starts_with("playbook_on_");
        let stdout = match event.stdout.char_indices().nth(SHOWN) {
            Some((end, _)) if !whole => format!("{}\u{2026}", &event.stdout[..end]),
            _ => event.stdout.clone(),
        };
        let created = event.created.map(|created| time_json(created.as_microsecond()));
        Self {
            id,
            r#type: names.event,
            url,
            related,
            summary_fields: summary,
            modified: created.clone(),
            created,
            owner: BTreeMap::from([(names.owner, event.job)]),
            event: &event.event,
            counter: event.counter,
            event_display: display,
            event_data: &event.event_data,
            event_level: level,
            failed: event.failed,
            changed: event.changed,
            uuid: &event.uuid,
            parent_uuid: event.parent_uuid.as_deref().unwrap_or_default(),
            host,
            host_name: &event.host_name,
            playbook: &event.playbook,
            play: &event.play,
            task: &event.task,
            role: &event.role,
            stdout,
            start_line: event.start_line,
            end_line: event.end_line,
            verbosity: event.verbosity,
        }
    }
}

/// Ids of the hosts that events name, in the inventory of their job.
async fn hosts(app: &App, owner: &Owner, events: &[Event]) -> Result<HashMap<String, i64>, StoreError> {
    let mut names: Vec<&str> =
        events.iter().map(|event| event.host_name.as_str()).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    let Some(inventory) = owner.inventory.filter(|_| !names.is_empty()) else { return Ok(HashMap::new()) };
    let mut query = Query::select();
    query.columns([("b", "name"), ("b", "id")]).from_as("hosts", "b");
    query.and_where(Members::of(&app.db, inventory).await?.condition("b"));
    query.and_where(Expr::col(("b", "name")).is_in(names));
    app.db.all(&query).await?.iter().map(|row| Ok((row.at(0)?, row.at(1)?))).collect()
}

fn failed(error: events::Error) -> ApiError {
    ApiError::internal("the events of a job could not be read", error)
}

async fn shown(
    app: &App,
    owner: &Owner,
    events: &[Event],
    whole: bool,
) -> Result<Vec<Box<RawValue>>, ApiError> {
    let hosts = hosts(app, owner, events).await?;
    events
        .iter()
        .map(|event| serde_json::value::to_raw_value(&Shown::new(event, owner, &hosts, whole)))
        .collect::<Result<_, _>>()
        .map_err(|error| ApiError::internal("an event could not be written", error))
}

/// `jobs/N/job_events/`, and of every other kind.
pub(super) async fn of_job(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow(READS)?;
    let owner = owner(call, kind, id).await?;
    if call.method == Method::OPTIONS {
        return options(&format!("{} Event List", kind.names().resource.label));
    }
    list(call, owner, EventQuery::default()).await
}

/// `job_events/N/`, and of every other kind.
pub(super) async fn event(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow(READS)?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return options(&format!("{} Event Detail", kind.names().resource.label));
    }
    let (owner, event) = found(call, kind, id).await?;
    let mut shown = shown(&call.app, &owner, &[event], true).await?;
    let text = shown.pop().map(|shown| String::from(Box::<str>::from(shown))).unwrap_or_default();
    json_text(Body::from(text))
}

/// `job_events/N/children/`.
pub(super) async fn children(call: &Call, kind: Kind, id: &str) -> Answer {
    call.allow(READS)?;
    call.user()?;
    if call.method == Method::OPTIONS {
        return options(&format!("{} Event Children List", kind.names().resource.label));
    }
    let (owner, event) = found(call, kind, id).await?;
    list(call, owner, EventQuery { parent_uuid: Some(vec![event.uuid]), ..EventQuery::default() }).await
}

async fn found(call: &Call, kind: Kind, id: &str) -> Result<(Owner, Event), ApiError> {
    let missing = || ApiError::missing(&format!("{}Event", kind.names().resource.model));
    let id = id.parse::<i64>().ok().and_then(EventId::parse).ok_or_else(missing)?;
    let owner = match owner(call, kind, &id.job.to_string()).await {
        Err(ApiError::Detail(axum::http::StatusCode::NOT_FOUND, _)) => return Err(missing()),
        other => other?,
    };
    let event = call.app.events.event(owner.key, id.counter).await.map_err(failed)?;
    Ok((owner, event.ok_or_else(missing)?))
}

async fn list(call: &Call, owner: Owner, base: EventQuery) -> Answer {
    let mut query = asked(call, base, &owner).await?;
    let everything = call.parameter("no_truncate").is_some()
        && ["page", "page_size", "limit"].iter().all(|name| call.parameter(name).is_none());
    let whole = call.parameter("no_truncate").is_some();
    if everything {
        return all(call, owner, query).await;
    }
    let number = page_number(call)?;
    let size = ["limit", "page_size"].iter().find_map(|name| call.parameter(name)?.parse::<u64>().ok());
    let size = size.filter(|&size| size > 0).unwrap_or(PAGE).clamp(1, MAX_PAGE);
    query.limit = u32::try_from(size).unwrap_or(PIECE);
    query.offset = (number - 1).saturating_mul(size);
    let before = query.offset;
    let page = call.app.events.events(owner.key, query).await.map_err(failed)?;
    let total = page.total.unwrap_or(0);
    if number > 1 && before >= total {
        return Err(ApiError::Detail(axum::http::StatusCode::NOT_FOUND, "Invalid page.".to_owned()));
    }
    let results = shown(&call.app, &owner, &page.events, whole).await?;
    let more = before.saturating_add(size) < total;
    let outer = envelope(call, i64::try_from(total).unwrap_or(i64::MAX), number, more, Vec::new());
    let body = Envelope { outer, results };
    let text =
        serde_json::to_string(&body).map_err(|error| ApiError::internal("a page was not written", error))?;
    let mut response = json_text(Body::from(text))?;
    response.headers_mut().insert("x-ui-max-events", HeaderValue::from_static("4000"));
    Ok(response)
}

/// A page whose results are written already.
struct Envelope {
    outer: serde_json::Map<String, Value>,
    results: Vec<Box<RawValue>>,
}

impl Serialize for Envelope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(self.outer.len()))?;
        for (name, value) in self.outer.iter().filter(|(name, _)| *name != "results") {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("results", &self.results)?;
        map.end()
    }
}

/// Everything that matches, in one document, without ever holding it.
async fn all(call: &Call, owner: Owner, mut query: EventQuery) -> Answer {
    query.limit = PIECE;
    // The first piece is read before the answer begins: an error there is still one of the request.
    let first = call.app.events.events(owner.key, query.clone()).await.map_err(failed)?;
    let head = format!(
        "{{\"count\":{},\"next\":null,\"previous\":null,\"results\":[",
        first.total.unwrap_or(first.events.len() as u64)
    );
    query.total = false;
    let start = Piece { app: call.app.clone(), owner, query, events: Some(first.events), first: true };
    let pieces = stream::unfold(start, Piece::write);
    let whole = stream::once(async { Bytes::from(head) })
        .chain(pieces)
        .chain(stream::once(async { Bytes::from_static(b"]}") }));
    json_text(Body::from_stream(whole.map(Ok::<_, Infallible>)))
}

/// Where the writing of everything stands.
struct Piece {
    app: App,
    owner: Owner,
    query: EventQuery,
    /// Events to be written; `None` when all are.
    events: Option<Vec<Event>>,
    first: bool,
}

impl Piece {
    async fn write(mut self) -> Option<(Bytes, Self)> {
        let events = self.events.take().filter(|events| !events.is_empty())?;
        let mut text = Vec::new();
        // A document that was begun is ended as one, with what could be read.
        let shown = shown(&self.app, &self.owner, &events, true).await.unwrap_or_default();
        for event in &shown {
            if !std::mem::take(&mut self.first) {
                text.push(b',');
            }
            text.extend_from_slice(event.get().as_bytes());
        }
        let last = events.last().map_or(0, |event| event.counter);
        if events.len() == self.query.limit as usize {
            match self.query.order {
                Order::Ascending => self.query.counter.from = Some(last + 1),
                Order::Descending => self.query.counter.to = Some(last - 1),
            }
            match self.app.events.events(self.owner.key, self.query.clone()).await {
                Ok(page) => self.events = Some(page.events),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(job = self.owner.key.id, error, "an event list broke off");
                }
            }
        }
        Some((Bytes::from(text), self))
    }
}

/// What the parameters of the address ask of the store.
async fn asked(call: &Call, mut query: EventQuery, owner: &Owner) -> Result<EventQuery, ApiError> {
    let no_field = |name: &str| {
        let name: String = name.chars().take(80).collect();
        ApiError::bad(format!("JobEvent has no field named '{name}'"))
    };
    for (name, value) in &call.query {
        let (field, lookup) = name.split_once("__").unwrap_or((name.as_str(), ""));
        match (field, lookup) {
            ("page" | "page_size" | "limit" | "format" | "no_truncate" | "count_disabled", "") => {}
            ("order_by" | "order", "") => query.order = order(value).ok_or_else(|| no_field(value))?,
            ("event", _) => query.kind = Some(text(lookup, value).ok_or_else(|| no_field(name))?),
            ("not", "event" | "event__in") => {
                query.not_kind = Some(TextMatch::In(value.split(',').map(str::to_owned).collect()));
            }
            ("host_name", _) => query.host = Some(text(lookup, value).ok_or_else(|| no_field(name))?),
            ("host", "" | "id" | "in" | "id__in") => {
                query.host = Some(TextMatch::In(names(call, owner, value).await?));
            }
            ("host", _) => {
                let lookup = lookup.strip_prefix("name").ok_or_else(|| no_field(name))?;
                let lookup = lookup.strip_prefix("__").unwrap_or(lookup);
                query.host = Some(text(lookup, value).ok_or_else(|| no_field(name))?);
            }
            ("task", _) => query.task = Some(text(lookup, value).ok_or_else(|| no_field(name))?),
            ("search", "") => query.task = Some(TextMatch::ContainsIgnoringCase(value.clone())),
            ("failed", "" | "exact") => query.failed = Some(truth(value)?),
            ("changed", "" | "exact") => query.changed = Some(truth(value)?),
            ("counter", _) => numbers(&mut query.counter, name, lookup, value)?,
            ("start_line", _) => numbers(&mut query.start_line, name, lookup, value)?,
            ("end_line", _) => numbers(&mut query.end_line, name, lookup, value)?,
            ("id", _) => {
                let id = whole(name, value)?;
                // Another job's events are before or behind all of this one's.
                let counter = match EventId::parse(id) {
                    Some(id) if id.job == owner.key.id => id.counter,
                    Some(id) if id.job > owner.key.id => i64::MAX - 1,
                    _ => 0,
                };
                numbers(&mut query.counter, name, lookup, &counter.to_string())?;
            }
            ("uuid", "" | "exact" | "in") => query.uuid = Some(value.split(',').map(str::to_owned).collect()),
            ("parent_uuid", "" | "exact" | "in") => {
                query.parent_uuid = Some(value.split(',').map(str::to_owned).collect());
            }
            _ => return Err(no_field(name)),
        }
    }
    Ok(query)
}

/// Events are kept in the order in which they came, and lines and times rise with that.
fn order(text: &str) -> Option<Order> {
    let first = text.split(',').next().unwrap_or_default();
    let (name, order) = match first.strip_prefix('-') {
        Some(name) => (name, Order::Descending),
        None => (first, Order::Ascending),
    };
    matches!(name, "counter" | "start_line" | "end_line" | "id" | "pk" | "created" | "modified")
        .then_some(order)
}

fn text(lookup: &str, value: &str) -> Option<TextMatch> {
    Some(match lookup {
        "" | "exact" => TextMatch::In(vec![value.to_owned()]),
        "in" => TextMatch::In(value.split(',').map(str::to_owned).collect()),
        "contains" => TextMatch::Contains(value.to_owned()),
        "icontains" => TextMatch::ContainsIgnoringCase(value.to_owned()),
        "startswith" => TextMatch::StartsWith(value.to_owned()),
        _ => return None,
    })
}

fn truth(value: &str) -> Result<bool, ApiError> {
    crate::registry::write::boolean(&Value::from(value))
        .ok_or_else(|| ApiError::bad(format!("Unable to convert \"{}\" to boolean", cut(value))))
}

fn whole(name: &str, value: &str) -> Result<i64, ApiError> {
    value.trim().parse().map_err(|_| {
        ApiError::bad(format!("Field '{}' expected a number but got '{}'.", cut(name), cut(value)))
    })
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn numbers(bounds: &mut Numbers, name: &str, lookup: &str, value: &str) -> Result<(), ApiError> {
    let value = whole(name, value)?;
    let from = |bounds: &mut Numbers, least: i64| {
        bounds.from = Some(bounds.from.map_or(least, |old| Ord::max(old, least)))
    };
    let to =
        |bounds: &mut Numbers, most: i64| bounds.to = Some(bounds.to.map_or(most, |old| Ord::min(old, most)));
    match lookup {
        "" | "exact" => {
            from(bounds, value);
            to(bounds, value);
        }
        "gt" => from(bounds, value.saturating_add(1)),
        "gte" => from(bounds, value),
        "lt" => to(bounds, value.saturating_sub(1)),
        "lte" => to(bounds, value),
        other => {
            return Err(ApiError::bad(format!(
                "Unsupported lookup '{}' for field {}.",
                cut(other),
                cut(name)
            )));
        }
    }
    Ok(())
}

/// Names of the hosts with these ids.
async fn names(call: &Call, owner: &Owner, ids: &str) -> Result<Vec<String>, ApiError> {
    let ids: Vec<i64> = ids.split(',').map(|id| whole("host", id)).collect::<Result<_, _>>()?;
    let mut query = Query::select();
    query.column(("b", "name")).from_as("hosts", "b").and_where(Expr::col(("b", "id")).is_in(ids));
    let Some(inventory) = owner.inventory else { return Ok(Vec::new()) };
    query.and_where(Members::of(&call.app.db, inventory).await?.condition("b"));
    Ok(call.app.db.all(&query).await?.iter().map(|row| row.at(0)).collect::<Result<_, _>>()?)
}

fn json_text(body: Body) -> Answer {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn options(name: &str) -> Answer {
    let field = |kind: &str, filterable: bool| json!({"type": kind, "filterable": filterable});
    ok(json!({
        "name": name,
        "actions": {"GET": {
            "id": field("integer", true),
            "event": field("choice", true),
            "counter": field("integer", true),
            "host": field("id", true),
            "host_name": field("string", true),
            "task": field("string", true),
            "failed": field("boolean", true),
            "changed": field("boolean", true),
            "uuid": field("string", true),
            "parent_uuid": field("string", true),
            "start_line": field("integer", true),
            "end_line": field("integer", true),
            "stdout": field("string", false),
            "event_data": field("json", false),
        }},
        "types": ["job_event"],
        "search_fields": ["task"],
        "related_search_fields": [],
        "max_page_size": MAX_PAGE,
    }))
}

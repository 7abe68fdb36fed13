//! Lists in pages: by number, as AWX has them, or by cursor.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode};
use sea_query::{Condition, Expr, ExprTrait};
use serde_json::{Map, Value, json};

use super::call::{Call, encode};
use super::counts::{self, Count};
use super::error::ApiError;
use super::{Answer, access, generic, ok, rules};
use crate::registry::read::{self, BASE, Record};
use crate::registry::{HOSTS, Resource, filter};

/// Objects on a page that asks for no number.
const PAGE: u64 = 25;

/// Most objects on a page.
pub(super) const MAX_PAGE: u64 = 200;

/// Says that the count of a list is not exact, and how many seconds old it is.
const COUNT_AGE: HeaderName = HeaderName::from_static("x-plexus-count-age");

/// A page of a resource, of those in `scope`, as the parameters of the address ask.
pub(super) async fn page(call: &Call, resource: &'static Resource, scope: Option<Expr>) -> Answer {
    records(call, resource, scope).await?.answer(call)
}

/// A page before it is sent.
pub(super) struct Page {
    /// Its objects.
    pub(super) records: Vec<Record>,
    count: i64,
    /// How old the count is, where it is not exact.
    age: Option<Duration>,
    number: u64,
    more: bool,
    /// For pages by cursor: where the next one begins.
    cursor: Option<Option<i64>>,
}

impl Page {
    /// Wraps it as every list.
    pub(super) fn answer(self, call: &Call) -> Answer {
        let results = self.records.into_iter().map(|record| record.into_json().into()).collect();
        if let Some(next) = self.cursor {
            return ok(by_cursor(call, next, results));
        }
        let mut answer = ok(envelope(call, self.count, self.number, self.more, results))?;
        if let Some(age) = self.age {
            answer.headers_mut().insert(COUNT_AGE, HeaderValue::from(age.as_secs()));
        }
        Ok(answer)
    }
}

/// The objects of [`page`].
pub(super) async fn records(
    call: &Call,
    resource: &'static Resource,
    scope: Option<Expr>,
) -> Result<Page, ApiError> {
    ordered(call, resource, scope, None).await
}

/// As [`records`], in this order before any other.
pub(super) async fn ordered(
    call: &Call,
    resource: &'static Resource,
    scope: Option<Expr>,
    first: Option<Expr>,
) -> Result<Page, ApiError> {
    let visible = generic::visible(resource, call.user()?)?;
    chosen(call, resource, Condition::all().add_option(scope).add_option(visible), first).await
}

/// A page of what belongs to an object that is visible, whether or not its members are by themselves.
pub(super) async fn members(call: &Call, resource: &'static Resource, scope: Expr) -> Answer {
    chosen(call, resource, Condition::all().add(scope), None).await?.answer(call)
}

/// What the parameters of the address choose, besides `scope`.
fn asked(call: &Call, resource: &'static Resource) -> Result<Condition, ApiError> {
    let asker = filter::Asker::user(call.user()?, call.app.db.engine());
    let mut asked = filter::condition(resource, BASE, &call.query, asker)?;
    if let Some(text) = call.parameter("host_filter").filter(|text| !text.is_empty() && *resource == HOSTS) {
        let chosen = filter::hosts::parse(text).and_then(|hosts| hosts.condition(BASE, asker));
        let refused = |error: filter::FilterError| {
            ApiError::Body(StatusCode::BAD_REQUEST, json!({"error": error.to_string()}))
        };
        asked = Condition::all().add(asked).add(chosen.map_err(refused)?);
    }
    Ok(asked.add_option(access::role_level(call, resource)?))
}

async fn chosen(
    call: &Call,
    resource: &'static Resource,
    scope: Condition,
    first: Option<Expr>,
) -> Result<Page, ApiError> {
    if let Some(cursor) = call.parameter("cursor") {
        return after(call, resource, scope, cursor).await;
    }
    let user = call.user()?;
    let db = &call.app.db;
    let asker = filter::Asker::user(user, db.engine());
    let condition = Condition::all().add(asked(call, resource)?).add(scope);
    let mut order = filter::order(resource, BASE, &call.query, asker)?;
    if let Some(first) = first {
        order.insert(0, (first, sea_query::Order::Asc));
    }
    let size = page_size(call)?;
    let number = page_number(call)?;

    let counting = counts::of(call, resource, condition.clone());
    let mut ids = read::source(resource, BASE);
    ids.column((BASE, "id")).cond_where(condition);
    let mut objects = read::select(resource, false);
    for (expr, direction) in order {
        ids.order_by_expr(expr.clone(), direction.clone());
        objects.order_by_expr(expr, direction);
    }
    ids.limit(size).offset((number - 1).saturating_mul(size));
    objects.and_where(Expr::col((BASE, "id")).in_subquery(ids));
    let reading = async { Ok(db.all(&objects).await?) };
    let (Count { count, age }, rows) = tokio::try_join!(counting, reading)?;
    let before = (number - 1).saturating_mul(size);
    if number > 1 && before >= u64::try_from(count).unwrap_or(0) {
        return Err(ApiError::Detail(StatusCode::NOT_FOUND, "Invalid page.".to_owned()));
    }
    let mut records =
        rows.iter().map(|row| read::record(resource, false, row)).collect::<Result<Vec<_>, _>>()?;
    rules::of(resource).fill(call, &mut records, false).await?;
    access::show_capabilities(call, &mut records).await?;
    let more = i64::try_from(before.saturating_add(size)).unwrap_or(i64::MAX) < count;
    Ok(Page { records, count, age, number, more, cursor: None })
}

/// A page by cursor: those whose id comes after the last one of the page before. It costs the same wherever it is in the
/// list, and nothing is passed over or shown twice while objects come and go. Nothing is counted.
async fn after(
    call: &Call,
    resource: &'static Resource,
    scope: Condition,
    cursor: &str,
) -> Result<Page, ApiError> {
    let db = &call.app.db;
    let newest_first = match call.parameter("order_by") {
        None | Some("" | "id") => false,
        Some("-id") => true,
        Some(_) => return Err(ApiError::bad("Pages by cursor are in the order of id or -id.")),
    };
    let mut condition = Condition::all().add(asked(call, resource)?).add(scope);
    if !cursor.is_empty() {
        let last: i64 = cursor.parse().map_err(|_| ApiError::bad("This is no cursor."))?;
        let id = Expr::col((BASE, "id"));
        condition = condition.add(if newest_first { id.lt(last) } else { id.gt(last) });
    }
    let size = page_size(call)?;
    let direction = if newest_first { sea_query::Order::Desc } else { sea_query::Order::Asc };
    let mut ids = read::source(resource, BASE);
    ids.column((BASE, "id")).cond_where(condition);
    // One more than is shown says whether there is a next page.
    ids.order_by((BASE, "id"), direction.clone()).limit(size + 1);
    let mut objects = read::select(resource, false);
    objects.and_where(Expr::col((BASE, "id")).in_subquery(ids)).order_by((BASE, "id"), direction);
    let rows = db.all(&objects).await?;
    let mut records =
        rows.iter().map(|row| read::record(resource, false, row)).collect::<Result<Vec<_>, _>>()?;
    let more = records.len() as u64 > size;
    records.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    let next = records.last().map(|last| last.id).filter(|_| more);
    rules::of(resource).fill(call, &mut records, false).await?;
    access::show_capabilities(call, &mut records).await?;
    Ok(Page { records, count: 0, age: None, number: 1, more, cursor: Some(next) })
}

fn by_cursor(call: &Call, next: Option<i64>, results: Vec<Value>) -> Map<String, Value> {
    let next = next.map(|last| link(call, "cursor", &last.to_string()));
    let mut envelope = Map::new();
    envelope.insert("next".to_owned(), next.into());
    envelope.insert("previous".to_owned(), Value::Null);
    envelope.insert("results".to_owned(), results.into());
    envelope
}

/// What wraps every list.
pub(super) fn envelope(
    call: &Call,
    count: i64,
    number: u64,
    more: bool,
    results: Vec<Value>,
) -> Map<String, Value> {
    let mut envelope = Map::new();
    if call.parameter("count_disabled").is_none() {
        envelope.insert("count".to_owned(), count.into());
    }
    let link = |page: u64| Value::from(page_link(call, page));
    envelope.insert("next".to_owned(), if more { link(number + 1) } else { Value::Null });
    envelope.insert("previous".to_owned(), if number > 1 { link(number - 1) } else { Value::Null });
    envelope.insert("results".to_owned(), results.into());
    envelope
}

fn page_link(call: &Call, page: u64) -> String {
    link(call, "page", &page.to_string())
}

/// The address of the same list with another value of one parameter.
fn link(call: &Call, parameter: &str, value: &str) -> String {
    let mut parameters: Vec<(&str, &str)> = call
        .query
        .iter()
        .filter(|(name, _)| name != parameter)
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    parameters.push((parameter, value));
    parameters.sort_unstable();
    let query: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    format!("{}?{}", call.path, query.join("&"))
}

pub(super) fn page_size(call: &Call) -> Result<u64, ApiError> {
    match call.parameter("page_size") {
        None | Some("") => Ok(PAGE),
        Some(text) => match text.parse::<u64>() {
            Ok(0) | Err(_) => Ok(PAGE),
            Ok(size) => Ok(size.clamp(1, MAX_PAGE)),
        },
    }
}

pub(super) fn page_number(call: &Call) -> Result<u64, ApiError> {
    match call.parameter("page") {
        None => Ok(1),
        Some(text) => text
            .parse::<u64>()
            .ok()
            .filter(|&page| page > 0 && page < 1 << 40)
            .ok_or_else(|| ApiError::Detail(StatusCode::NOT_FOUND, "Invalid page.".to_owned())),
    }
}

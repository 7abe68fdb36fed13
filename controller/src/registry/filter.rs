//! What a client may ask of a list: filters, searches, orders.
//!
//! Names and lookups are those of AWX's API. A name that is not declared is refused, so a filter can reach nothing
//! that the declaration does not show, and no secret. Values are always bound, never text of the query.

use sea_query::{BinOper, Condition, Expr, ExprTrait, Func, LikeExpr, Order, Query, SelectStatement};

use super::read::source;
use super::{
    By, Field, GROUPS, HOSTS, INVENTORIES, JOB_HOST_SUMMARIES, JOBS, Kind, ORGANIZATIONS, Owner, Resource,
    access, roles,
};
use crate::auth::User;
use crate::store::core::Engine;

pub mod hosts;

/// Relations a filter may walk through, one after the other.
const MAX_DEPTH: usize = 6;

/// Query parameters a list may have; each costs at most a sub-query.
const MAX_FILTERS: usize = 64;

/// Longest pattern of a regex filter.
const MAX_REGEX: usize = 256;

/// Parameters that are no filters.
const RESERVED: &[&str] = &[
    "page",
    "page_size",
    "order",
    "order_by",
    "format",
    "count_disabled",
    "cursor",
    "no_truncate",
    "limit",
    "search",
    "type",
    "role_level",
    "validate",
    // awxkit 24.6.1 sends its own option along when it lists host metrics.
    "all_pages",
    // Its own language; see `hosts`.
    "host_filter",
];

const LOOKUPS: &[&str] = &[
    "exact",
    "iexact",
    "contains",
    "icontains",
    "startswith",
    "istartswith",
    "endswith",
    "iendswith",
    "regex",
    "iregex",
    "gt",
    "gte",
    "lt",
    "lte",
    "isnull",
    "in",
];

/// A filter that is refused, in the words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The request makes no sense.
    #[error("{0}")]
    Bad(String),
    /// The field is never compared.
    #[error("Filtering on {0} is not allowed.")]
    Secret(String),
}

fn bad<T>(text: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError::Bad(text.into()))
}

/// For whom a list is made, and by what.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// How far a filter walks.
    pub reach: Reach<'a>,
    /// What will answer.
    pub engine: Engine,
}

/// Whose objects a filter walks to.
#[derive(Debug, Clone, Copy)]
pub enum Reach<'a> {
    /// Those that this user may see.
    User(&'a User),
    /// Of an organization: hosts and what they belong to or did. For filters that are kept, and answer the same whoever looks.
    Organization(i64),
}

impl<'a> Asker<'a> {
    /// A user asks.
    pub fn user(user: &'a User, engine: Engine) -> Self {
        Self { reach: Reach::User(user), engine }
    }

    fn sees(&self, resource: &Resource, alias: &str) -> Option<Expr> {
        match self.reach {
            Reach::User(user) => access::condition(resource, alias, user, roles::READ),
            Reach::Organization(id) => Some(of_organization(resource, alias, id)),
        }
    }
}

/// That an object belongs to an organization and has to do with hosts.
fn of_organization(resource: &Resource, alias: &str, id: i64) -> Expr {
    let families = [&HOSTS, &GROUPS, &INVENTORIES, &ORGANIZATIONS, &JOBS, &JOB_HOST_SUMMARIES];
    if !families.contains(&resource) {
        return Expr::val(false);
    }
    match resource.owner {
        Owner::Itself => column(resource, alias, &super::field::int("id")).eq(id),
        Owner::Field(name) => match resource.field(name) {
            Some(field) => column(resource, alias, field).eq(id),
            None => Expr::val(false),
        },
        Owner::Through(name) => match resource.field(name) {
            Some(field) => match field.kind {
                Kind::Id(of) => {
                    let inner = format!("{alias}w");
                    let mut owners = source(of, &inner);
                    owners.column((inner.clone(), "id")).and_where(of_organization(of, &inner, id));
                    column(resource, alias, field).in_subquery(owners)
                }
                _ => Expr::val(false),
            },
            None => Expr::val(false),
        },
        Owner::Installation => Expr::val(false),
    }
}

/// Makes the condition of a list from the parameters of its address.
///
/// # Errors
/// [`FilterError`], for the client.
pub fn condition(
    resource: &'static Resource,
    alias: &str,
    parameters: &[(String, String)],
    asker: Asker<'_>,
) -> Result<Condition, FilterError> {
    let mut all = Condition::all();
    let mut any = Condition::any();
    let mut chosen = false;
    let filters = parameters.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
    for (count, (name, value)) in filters.enumerate() {
        if count >= MAX_FILTERS {
            return bad(format!("At most {MAX_FILTERS} filters are taken."));
        }
        let (mut negated, mut alternative, mut path) = (false, false, name.as_str());
        loop {
            if let Some(rest) = path.strip_prefix("not__") {
                (negated, path) = (true, rest);
            } else if let Some(rest) = path.strip_prefix("or__") {
                (alternative, path) = (true, rest);
            } else if let Some(rest) = path.strip_prefix("chain__") {
                path = rest;
            } else {
                break;
            }
        }
        let mut expr = compare(resource, alias, path, value, asker)?;
        if negated {
            // What is null is not equal, so it belongs to the negation.
            expr = Expr::from(Func::coalesce([expr, Expr::val(false)])).not();
        }
        if alternative {
            (any, chosen) = (any.add(expr), true);
        } else {
            all = all.add(expr);
        }
    }
    for (_, value) in parameters.iter().filter(|(name, _)| name == "search") {
        for term in value.split([',', ' ']).filter(|term| !term.is_empty()).take(16) {
            all = all.add(search(resource, alias, term, asker.engine));
        }
    }
    if let Some((_, kinds)) = parameters.iter().find(|(name, _)| name == "type") {
        all = all.add(of_types(resource, alias, kinds));
    }
    Ok(if chosen { all.add(any) } else { all })
}

/// The order of a list: what the client asks for, else the resource's own, and the id in the end, so that pages
/// never overlap.
///
/// # Errors
/// [`FilterError`], for the client.
pub fn order(
    resource: &'static Resource,
    alias: &str,
    parameters: &[(String, String)],
    asker: Asker<'_>,
) -> Result<Vec<(Expr, Order)>, FilterError> {
    let asked = parameters.iter().find(|(name, _)| name == "order_by" || name == "order");
    let names: Vec<&str> = match asked {
        Some((_, names)) => names.split(',').map(str::trim).filter(|name| !name.is_empty()).take(8).collect(),
        None => resource.order.to_vec(),
    };
    let mut order = Vec::with_capacity(names.len() + 1);
    let mut last = Order::Asc;
    let mut by_id = false;
    for name in names {
        let (name, direction) = match name.strip_prefix('-') {
            Some(name) => (name, Order::Desc),
            None => (name, Order::Asc),
        };
        by_id |= name == "id" || name == "pk";
        last = direction.clone();
        order.push((ordered_by(resource, alias, name, asker)?, direction));
    }
    if !by_id {
        order.push((column(resource, alias, &super::field::int("id")), last));
    }
    Ok(order)
}

fn ordered_by(
    resource: &'static Resource,
    alias: &str,
    path: &str,
    asker: Asker<'_>,
) -> Result<Expr, FilterError> {
    let (name, rest) = path.split_once("__").map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = declared(resource, name)?;
    match (rest, field.kind) {
        (None, _) => Ok(column(resource, alias, &field)),
        (Some(rest), Kind::Id(of)) => {
            if rest.matches("__").count() >= MAX_DEPTH {
                return bad("Too many relations in a row.");
            }
            let inner = format!("{alias}o");
            let mut select = source(of, &inner);
            select.expr(ordered_by(of, &inner, rest, asker)?);
            select.and_where_option(asker.sees(of, &inner));
            select.and_where(Expr::col((inner, "id")).eq(column(resource, alias, &field)));
            Ok(Expr::SubQuery(None, Box::new(select.into())))
        }
        (Some(_), _) => no_field(resource, path),
    }
}

fn declared(resource: &'static Resource, name: &str) -> Result<Field, FilterError> {
    match resource.column(name) {
        Some(field) if field.secret => Err(FilterError::Secret(name.to_owned())),
        Some(field) if field.computed || !field.filterable => {
            bad(format!("Filtering on {name} is not supported."))
        }
        Some(field) => Ok(field),
        None => no_field(resource, name),
    }
}

fn no_field<T>(resource: &Resource, name: &str) -> Result<T, FilterError> {
    let name: String = name.chars().take(80).collect();
    bad(format!("{} has no field named '{name}'", resource.model))
}

fn column(resource: &Resource, alias: &str, field: &Field) -> Expr {
    Expr::col((resource.alias_of(field, alias), field.column_name()))
}

fn compare(
    resource: &'static Resource,
    alias: &str,
    path: &str,
    value: &str,
    asker: Asker<'_>,
) -> Result<Expr, FilterError> {
    if path.split("__").count() > MAX_DEPTH {
        return bad("Too many relations in a row.");
    }
    let (name, rest) = path.split_once("__").map_or((path, ""), |(name, rest)| (name, rest));
    // A list of others: any of them.
    if let Some(list) = resource.list(name) {
        return among(resource, alias, list, rest, value, asker);
    }
    // `organization_id` is another word for `organization`.
    let field = match declared(resource, name) {
        Err(error) => match name.strip_suffix("_id").and_then(|name| resource.column(name)) {
            Some(field) if matches!(field.kind, Kind::Id(_)) && field.filterable => field,
            _ => return Err(error),
        },
        Ok(field) => field,
    };
    match field.kind {
        Kind::Id(of) if !rest.is_empty() && !LOOKUPS.contains(&rest) => {
            if let Some(lookup) = ["id", "pk"].iter().find_map(|id| rest.strip_prefix(id)) {
                let lookup = lookup.strip_prefix("__").unwrap_or(lookup);
                if lookup.is_empty() || LOOKUPS.contains(&lookup) {
                    return leaf(column(resource, alias, &field), &field, lookup, value, asker.engine);
                }
            }
            let inner = format!("{alias}i");
            let mut select = source(of, &inner);
            select.column((inner.clone(), "id"));
            select.and_where(compare(of, &inner, rest, value, asker)?);
            select.and_where_option(asker.sees(of, &inner));
            Ok(column(resource, alias, &field).in_subquery(select))
        }
        _ => leaf(column(resource, alias, &field), &field, rest, value, asker.engine),
    }
}

/// Objects with a member of a list for which the rest of the path holds.
fn among(
    resource: &'static Resource,
    alias: &str,
    list: &'static super::SubList,
    rest: &str,
    value: &str,
    asker: Asker<'_>,
) -> Result<Expr, FilterError> {
    let own = column(resource, alias, &super::field::int("id"));
    let inner = format!("{alias}m");
    let missing = matches!(rest, "isnull").then(|| boolean(value)).transpose()?;
    let rest =
        if rest.is_empty() || LOOKUPS.contains(&rest) { format!("id__{rest}") } else { rest.to_owned() };
    let rest = rest.trim_end_matches("__");
    let mut select: SelectStatement;
    match list.by {
        By::Field(name) => {
            let field = declared(list.of, name)?;
            select = source(list.of, &inner);
            select.and_where_option(asker.sees(list.of, &inner));
            select.expr(column(list.of, &inner, &field));
            if missing.is_none() {
                select.and_where(compare(list.of, &inner, rest, value, asker)?);
            }
            select.and_where(column(list.of, &inner, &field).is_not_null());
        }
        By::Pairs { table, here, there, .. } => {
            select = Query::select();
            select.column(here).from(table);
            let sees = asker.sees(list.of, &inner);
            if missing.is_none() || sees.is_some() {
                let mut members = source(list.of, &inner);
                members.column((inner.clone(), "id")).and_where_option(sees);
                if missing.is_none() {
                    members.and_where(compare(list.of, &inner, rest, value, asker)?);
                }
                select.and_where(Expr::col(there).in_subquery(members));
            }
        }
    }
    Ok(match missing {
        Some(true) => own.not_in_subquery(select),
        _ => own.in_subquery(select),
    })
}

fn leaf(column: Expr, field: &Field, lookup: &str, value: &str, engine: Engine) -> Result<Expr, FilterError> {
    let null = value.eq_ignore_ascii_case("null") || value.eq_ignore_ascii_case("none");
    let text = || column.clone().cast_as("text");
    Ok(match lookup {
        "" | "exact" | "iexact" if null => column.is_null(),
        "" | "exact" => column.eq(typed(field, value)?),
        "isnull" => {
            if boolean(value)? {
                column.is_null()
            } else {
                column.is_not_null()
            }
        }
        "in" => {
            let values = value.split(',').filter(|value| !value.is_empty());
            let values: Vec<Expr> =
                values.map(|value| typed(field, value.trim())).collect::<Result<_, _>>()?;
            if values.is_empty() {
                return bad("Empty value for lookup 'in'.");
            }
            column.is_in(values)
        }
        "gt" => column.gt(typed(field, value)?),
        "gte" => column.gte(typed(field, value)?),
        "lt" => column.lt(typed(field, value)?),
        "lte" => column.lte(typed(field, value)?),
        "iexact" => Expr::from(Func::lower(text())).eq(value.to_lowercase()),
        "icontains" => alike(engine, text(), &format!("%{}%", escaped(value))),
        "istartswith" => alike(engine, text(), &format!("{}%", escaped(value))),
        "iendswith" => alike(engine, text(), &format!("%{}", escaped(value))),
        // LIKE does not tell cases apart everywhere, so these compare pieces.
        "contains" => position(engine, text(), value).gt(0),
        "startswith" => left(text(), value).eq(value),
        "endswith" => {
            let length = i32::try_from(value.chars().count()).unwrap_or(i32::MAX);
            let from = Expr::from(Func::char_length(text()));
            let from =
                if engine == Engine::Sqlite { Expr::from(Func::cust("length").arg(text())) } else { from };
            Expr::from(Func::cust("substr").args([text(), from.sub(length).add(1)])).eq(value)
        }
        "regex" => regex(engine, text(), value, false)?,
        "iregex" => regex(engine, text(), value, true)?,
        other => {
            let other: String = other.chars().take(80).collect();
            return bad(format!("Unsupported lookup '{other}' for field {}.", field.name));
        }
    })
}

fn left(text: Expr, value: &str) -> Expr {
    let length = i32::try_from(value.chars().count()).unwrap_or(i32::MAX);
    Expr::from(Func::cust("substr").args([text, Expr::val(1), Expr::val(length)]))
}

fn position(engine: Engine, text: Expr, value: &str) -> Expr {
    let name = match engine {
        Engine::Sqlite => "instr",
        Engine::Postgres => "strpos",
    };
    Expr::from(Func::cust(name).args([text, Expr::val(value)]))
}

/// The engines' regexes take time linear in the text, or the pattern is too short to matter.
fn regex(engine: Engine, text: Expr, pattern: &str, caseless: bool) -> Result<Expr, FilterError> {
    if pattern.len() > MAX_REGEX {
        return bad(format!("A regular expression has at most {MAX_REGEX} characters."));
    }
    if regex::Regex::new(pattern).is_err() {
        return bad("Invalid regular expression.");
    }
    Ok(match engine {
        Engine::Sqlite => {
            let pattern = if caseless { format!("(?i){pattern}") } else { pattern.to_owned() };
            text.binary(BinOper::Custom("REGEXP"), pattern)
        }
        Engine::Postgres => text.binary(BinOper::Custom(if caseless { "~*" } else { "~" }), pattern),
    })
}

/// Matches without regard to case: of ASCII letters on SQLite, of all on PostgreSQL.
fn alike(engine: Engine, text: Expr, pattern: &str) -> Expr {
    use sea_query::extension::postgres::PgExpr as _;
    match engine {
        Engine::Sqlite => text.like(LikeExpr::new(pattern).escape('\\')),
        // The backslash is what it escapes with anyway.
        Engine::Postgres => text.ilike(LikeExpr::new(pattern)),
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

fn boolean(value: &str) -> Result<bool, FilterError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" | "yes" | "y" | "on" => Ok(true),
        "false" | "0" | "f" | "no" | "n" | "off" => Ok(false),
        _ => bad(format!("Unable to convert \"{}\" to boolean", value.chars().take(80).collect::<String>())),
    }
}

fn typed(field: &Field, value: &str) -> Result<Expr, FilterError> {
    let shown = || value.chars().take(80).collect::<String>();
    Ok(match field.kind {
        Kind::Text(_) | Kind::Variables | Kind::Choice(_) | Kind::Json => Expr::val(value),
        Kind::Int(..) | Kind::IntChoice(_) | Kind::Id(_) => match value.trim().parse::<i64>() {
            Ok(number) => Expr::val(number),
            Err(_) => return bad(format!("Field '{}' expected a number but got '{}'.", field.name, shown())),
        },
        Kind::Float => match value.trim().parse::<f64>() {
            Ok(number) if number.is_finite() => Expr::val(number),
            _ => return bad(format!("Field '{}' expected a number but got '{}'.", field.name, shown())),
        },
        Kind::Bool => Expr::val(boolean(value)?),
        Kind::Time => match moment(value) {
            Some(micros) => Expr::val(micros),
            None => {
                return bad(format!(
                    "\u{201c}{}\u{201d} value has an invalid format. It must be in YYYY-MM-DD HH:MM[:ss[.uuuuuu]][TZ] format.",
                    shown()
                ));
            }
        },
    })
}

/// A moment as people write it: with a zone, or in UTC without one, or a day alone.
fn moment(value: &str) -> Option<i64> {
    // A plus sign that was not encoded arrives as a space.
    let value = value.trim();
    if let Ok(time) = value.parse::<jiff::Timestamp>() {
        return Some(time.as_microsecond());
    }
    if let Ok(time) = value.replacen(' ', "T", 1).parse::<jiff::Timestamp>() {
        return Some(time.as_microsecond());
    }
    let time = value.parse::<jiff::civil::DateTime>().or_else(|error| {
        value.parse::<jiff::civil::Date>().map(|date| date.at(0, 0, 0, 0)).map_err(|_| error)
    });
    Some(time.ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
}

fn search(resource: &'static Resource, alias: &str, term: &str, engine: Engine) -> Condition {
    let fields = resource.search.iter().filter_map(|name| resource.column(name));
    fields.fold(Condition::any(), |any, field| {
        any.add(alike(engine, column(resource, alias, &field), &format!("%{}%", escaped(term))))
    })
}

fn of_types(resource: &'static Resource, alias: &str, types: &str) -> Expr {
    let types: Vec<&str> = types.split(',').collect();
    if resource.table.kin.is_empty() {
        return Expr::val(types.contains(&resource.type_name));
    }
    let kinds = resource.table.kin.iter().map(|kin| kin.type_name).filter(|name| types.contains(name));
    Expr::col((alias.to_owned(), "kind")).is_in(kinds.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests;

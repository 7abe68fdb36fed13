//! The language in which hosts are chosen: `name__startswith=web and (groups__name=db or ansible_facts__ansible_distribution="Debian")`.
//!
//! AWX's smart filters. A term is a key, `=`, and a value; either may stand in quotes; `and` binds more tightly than `or`.
//! Keys are those of the filters of lists, beginning at a host, and `search` with any relation in front. What begins with `ansible_facts`
//! walks into the facts of the host: `a__b` into objects, `a[]` into any element of a list; the value is JSON where it has no quotes.
//!
//! Parsing is pure and knows no database. A condition is built like any other filter: values are bound, secrets and what the asker
//! does not see are out of reach, and size and depth are bounded.

use sea_query::{Expr, ExprTrait, Func, Query, SelectStatement};
use serde_json::{Map, Value};

use super::{Asker, FilterError, LOOKUPS, bad, compare};
use crate::registry::{By, HOSTS, Kind, Resource};
use crate::store::core::Engine;

/// Longest filter, in bytes.
pub const MAX_BYTES: usize = 8192;
/// Most terms of a filter: each costs at most a few sub-queries.
const MAX_TERMS: usize = 64;
/// Deepest brackets.
const MAX_BRACKETS: usize = 32;
/// Most steps into facts.
const MAX_STEPS: usize = 16;
/// Begins a key that is about facts.
const FACTS: &str = "ansible_facts";

/// A filter that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFilter {
    /// One comparison.
    Term(Term),
    /// All of these.
    All(Vec<HostFilter>),
    /// Any of these.
    Any(Vec<HostFilter>),
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// What is compared.
    pub key: String,
    /// With what.
    pub value: String,
    /// Whether the value stood in quotes, so that it is text whatever it looks like.
    pub quoted: bool,
}

/// Reads a filter.
///
/// # Errors
/// [`FilterError`], for the client.
pub fn parse(text: &str) -> Result<HostFilter, FilterError> {
    if text.len() > MAX_BYTES {
        return bad(format!("A host filter has at most {MAX_BYTES} bytes."));
    }
    let mut parser = Parser { left: text, whole: text, terms: 0, depth: 0 };
    let filter = parser.any()?;
    parser.space();
    if parser.left.is_empty() { Ok(filter) } else { parser.invalid() }
}

struct Parser<'t> {
    left: &'t str,
    whole: &'t str,
    terms: usize,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn invalid<T>(&self) -> Result<T, FilterError> {
        bad(format!("Invalid query {}", self.whole.chars().take(200).collect::<String>()))
    }

    fn space(&mut self) {
        self.left = self.left.trim_start();
    }

    fn takes(&mut self, mark: char) -> bool {
        self.space();
        match self.left.strip_prefix(mark) {
            Some(rest) => {
                self.left = rest;
                true
            }
            None => false,
        }
    }

    /// Whether this word comes next, as a word of its own.
    fn word(&mut self, word: &str) -> bool {
        self.space();
        match self.left.strip_prefix(word) {
            Some(rest) if rest.is_empty() || rest.starts_with(is_mark) => {
                self.left = rest;
                true
            }
            _ => false,
        }
    }

    fn any(&mut self) -> Result<HostFilter, FilterError> {
        self.chain("or", Self::all, HostFilter::Any)
    }

    fn all(&mut self) -> Result<HostFilter, FilterError> {
        self.chain("and", Self::one, HostFilter::All)
    }

    fn chain(
        &mut self,
        word: &str,
        part: fn(&mut Self) -> Result<HostFilter, FilterError>,
        joined: fn(Vec<HostFilter>) -> HostFilter,
    ) -> Result<HostFilter, FilterError> {
        let first = part(self)?;
        let mut parts = vec![first];
        while self.word(word) {
            parts.push(part(self)?);
        }
        Ok(if parts.len() > 1 { joined(parts) } else { parts.remove(0) })
    }

    fn one(&mut self) -> Result<HostFilter, FilterError> {
        if self.takes('(') {
            self.depth += 1;
            if self.depth > MAX_BRACKETS {
                return bad(format!("At most {MAX_BRACKETS} brackets within each other."));
            }
            let inner = self.any()?;
            self.depth -= 1;
            return if self.takes(')') { Ok(inner) } else { self.invalid() };
        }
        self.terms += 1;
        if self.terms > MAX_TERMS {
            return bad(format!("A host filter has at most {MAX_TERMS} terms."));
        }
        let Some((key, _)) = self.text()? else { return self.invalid() };
        if !self.takes('=') {
            return self.invalid();
        }
        let (value, quoted) = self.text()?.unwrap_or(("", true));
        Ok(HostFilter::Term(Term { key: key.to_owned(), value: value.to_owned(), quoted }))
    }

    /// A text in quotes or a bare one; none if something else comes next.
    fn text(&mut self) -> Result<Option<(&'t str, bool)>, FilterError> {
        self.space();
        if let Some(rest) = self.left.strip_prefix('"') {
            let Some((text, rest)) = rest.split_once('"') else { return self.invalid() };
            self.left = rest;
            return Ok(Some((text, true)));
        }
        let end = self.left.find(is_mark).unwrap_or(self.left.len());
        let (text, rest) = self.left.split_at(end);
        self.left = rest;
        Ok((!text.is_empty()).then_some((text, false)))
    }
}

/// Whether a bare text ends here.
fn is_mark(c: char) -> bool {
    c.is_whitespace() || matches!(c, '(' | ')' | '=' | '"')
}

impl HostFilter {
    /// That a host which goes by `alias` is chosen.
    ///
    /// # Errors
    /// [`FilterError`], for the client.
    pub fn condition(&self, alias: &str, asker: Asker<'_>) -> Result<Expr, FilterError> {
        let folded = |parts: &[Self], fold: fn(Expr, Expr) -> Expr, none: bool| {
            let mut all: Option<Expr> = None;
            for part in parts {
                let part = part.condition(alias, asker)?;
                all = Some(all.map_or(part.clone(), |all| fold(all, part)));
            }
            Ok(all.unwrap_or_else(|| Expr::val(none)))
        };
        match self {
            Self::All(parts) => folded(parts, |a, b| a.and(b), true),
            Self::Any(parts) => folded(parts, |a, b| a.or(b), false),
            Self::Term(term) => term.condition(alias, asker),
        }
    }
}

impl Term {
    fn condition(&self, alias: &str, asker: Asker<'_>) -> Result<Expr, FilterError> {
        if let Some(path) = self.key.strip_prefix(FACTS) {
            return self.facts(path, alias, asker.engine);
        }
        if let Some(relation) =
            self.key.strip_suffix("search").filter(|rest| rest.is_empty() || rest.ends_with("__"))
        {
            return self.search(relation, alias, asker);
        }
        let null = ["null", "none"].iter().any(|word| self.value.eq_ignore_ascii_case(word));
        if self.quoted && null {
            // In quotes it is a name like any other, which only this lookup takes it for.
            let key = self.key.strip_suffix("__exact").unwrap_or(&self.key);
            if !key.rsplit("__").next().is_some_and(|last| LOOKUPS.contains(&last)) {
                return compare(&HOSTS, alias, &format!("{key}__in"), &self.value, asker);
            }
        }
        compare(&HOSTS, alias, &self.key, &self.value, asker)
    }

    /// Whether what a relation leads to has the text in one of the fields that people search by.
    fn search(&self, relation: &str, alias: &str, asker: Asker<'_>) -> Result<Expr, FilterError> {
        let mut of: &'static Resource = &HOSTS;
        for step in relation.split("__").filter(|step| !step.is_empty()) {
            let field = of.column(step).map(|field| field.kind);
            of = match (field, of.list(step)) {
                (Some(Kind::Id(next)), _) => next,
                (_, Some(list)) => match list.by {
                    By::Field(_) | By::Pairs { .. } => list.of,
                },
                _ => {
                    let step: String = step.chars().take(80).collect();
                    return bad(format!("No related field named {step}"));
                }
            };
        }
        let mut any: Option<Expr> = None;
        for name in of.search {
            let key = format!("{relation}{name}__icontains");
            let found = compare(&HOSTS, alias, &key, &self.value, asker)?;
            any = Some(any.map_or(found.clone(), |any| any.or(found)));
        }
        Ok(any.unwrap_or_else(|| Expr::val(false)))
    }

    /// Whether the facts of the host contain this value in this place.
    fn facts(&self, path: &str, alias: &str, engine: Engine) -> Result<Expr, FilterError> {
        let path = path.strip_prefix("__").unwrap_or(path);
        let mut steps = Vec::new();
        for piece in path.split("__") {
            let (name, list) = match piece.strip_suffix("[]") {
                Some(name) => (name, true),
                None => (piece, false),
            };
            if name.is_empty() || name.contains(['\0', '"', '\\']) {
                return bad(format!("Invalid query {}", self.key.chars().take(80).collect::<String>()));
            }
            steps.push(Step { name, list });
        }
        if steps.len() > MAX_STEPS {
            return bad(format!("At most {MAX_STEPS} steps into facts."));
        }
        let value = self.json();
        let holds = match engine {
            Engine::Postgres => contained(&steps, value),
            Engine::Sqlite => walked(&steps, &value),
        };
        let mut hosts = Query::select();
        hosts.column("id").from("host_facts").and_where(holds);
        Ok(Expr::col((alias.to_owned(), "id")).in_subquery(hosts))
    }

    fn json(&self) -> Value {
        let text = self.value.as_str();
        if self.quoted {
            return text.into();
        }
        match text {
            "null" => return Value::Null,
            "true" => return true.into(),
            "false" => return false.into(),
            _ => {}
        }
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let number = !digits.is_empty()
            && digits.split('.').count() <= 2
            && digits.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
        let plain = text.strip_prefix('+').unwrap_or(text);
        match (number, plain.parse::<i64>(), plain.parse::<f64>()) {
            (true, Ok(whole), _) => whole.into(),
            (true, _, Ok(real)) => real.into(),
            _ => text.into(),
        }
    }
}

/// One step into facts: a member of an object, and whether any of its elements is meant.
struct Step<'t> {
    name: &'t str,
    list: bool,
}

/// On PostgreSQL containment is a word of the engine.
fn contained(steps: &[Step<'_>], value: Value) -> Expr {
    use sea_query::BinOper;
    let wanted = steps.iter().rev().fold(value, |inner, step| {
        let inner = if step.list { Value::Array(vec![inner]) } else { inner };
        Value::Object(Map::from_iter([(step.name.to_owned(), inner)]))
    });
    let facts = Expr::col("facts").cast_as("jsonb");
    let holds = facts.binary(BinOper::Custom("@>"), Expr::val(wanted.to_string()).cast_as("jsonb"));
    // The engine's own JSON cannot hold this character, and a cast of one host's facts would end the whole query.
    let castable = Expr::from(Func::cust("strpos").args([Expr::col("facts"), Expr::val("\\u0000")])).eq(0);
    Expr::case(castable, holds).finally(false).into()
}

/// On SQLite each list on the way is a sub-query over its elements.
fn walked(steps: &[Step<'_>], value: &Value) -> Expr {
    let holds = step_in(Expr::val("$"), steps, value, 0);
    // Damaged text would end the whole query.
    let valid = Expr::from(Func::cust("json_valid").arg(Expr::col("facts"))).eq(1);
    Expr::case(valid, holds).finally(false).into()
}

fn step_in(at: Expr, steps: &[Step<'_>], value: &Value, depth: usize) -> Expr {
    use sea_query::BinOper;
    let concat = |at: Expr, text: String| at.binary(BinOper::Custom("||"), Expr::val(text));
    let mut path = String::new();
    for (number, step) in steps.iter().enumerate() {
        path.push_str(&format!(".\"{}\"", step.name));
        if step.list {
            let place = concat(at, path);
            let alias = format!("e{depth}");
            let element = Expr::col((alias.clone(), "fullkey"));
            let mut elements = SelectStatement::new();
            let each = Func::cust("json_each").args([Expr::col("facts"), place.clone()]);
            elements.expr(Expr::val(1)).from_function(each, alias);
            elements.and_where(step_in(element, &steps[number + 1..], value, depth + 1));
            return kind_of(place).eq("array").and(Expr::exists(elements));
        }
    }
    let place = if path.is_empty() { at } else { concat(at, path) };
    let found = || Expr::from(Func::cust("json_extract").args([Expr::col("facts"), place.clone()]));
    match value {
        Value::Null => kind_of(place).eq("null"),
        Value::Bool(flag) => kind_of(place).eq(if *flag { "true" } else { "false" }),
        Value::Number(number) => {
            let same = match number.as_i64() {
                Some(whole) => found().eq(whole),
                None => found().eq(number.as_f64().unwrap_or_default()),
            };
            kind_of(place.clone()).is_in(["integer", "real"]).and(same)
        }
        other => {
            kind_of(place.clone()).eq("text").and(found().eq(other.as_str().unwrap_or_default().to_owned()))
        }
    }
}

fn kind_of(place: Expr) -> Expr {
    Func::cust("json_type").args([Expr::col("facts"), place]).into()
}

#[cfg(test)]
mod tests;

//! Which events of a job are wanted.

use std::cmp;
use std::ops::RangeInclusive;

use sea_query::extension::postgres::PgExpr;
use sea_query::{Condition, Expr, ExprTrait, Func, LikeExpr, Query, SelectStatement};

use super::super::sql::Engine;
use super::id::Uuid;
use super::schema::{self, Dictionary, flag};

/// In which order events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// First event first. By counter, and so by line and by arrival.
    #[default]
    Ascending,
    /// Last event first.
    Descending,
}

/// Bounds of a number, both inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// The least.
    pub from: Option<i64>,
    /// The greatest.
    pub to: Option<i64>,
}

impl Numbers {
    fn condition(self, column: &'static str) -> Condition {
        Condition::all()
            .add_option(self.from.map(|from| Expr::col((schema::EVENT, column)).gte(from)))
            .add_option(self.to.map(|to| Expr::col((schema::EVENT, column)).lte(to)))
    }

    fn is_any(self) -> bool {
        self == Self::default()
    }
}

/// How a name is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// One of these.
    In(Vec<String>),
    /// Contains this.
    Contains(String),
    /// Contains this, without regard to the case of ASCII letters.
    ContainsIgnoringCase(String),
    /// Begins with this.
    StartsWith(String),
}

impl TextMatch {
    /// Numbers of the names that match, as a subquery.
    fn names(&self, dictionary: Dictionary, engine: Engine) -> SelectStatement {
        let name = || Expr::col("name");
        let condition = match self {
            Self::In(names) => name().is_in(names.iter().cloned()),
            // `LIKE` differs between engines in case; positions do not.
            Self::Contains(part) => position(engine, name(), part.clone().into()).gt(0),
            // SQLite folds ASCII letters in LIKE, and PostgreSQL has ILIKE.
            Self::ContainsIgnoringCase(part) => {
                let pattern = LikeExpr::new(format!("%{}%", escape(part)));
                match engine {
                    Engine::Sqlite => name().like(pattern.escape('\\')),
                    // The backslash is what it escapes with anyway.
                    Engine::Postgres => name().ilike(pattern),
                }
            }
            Self::StartsWith(part) => position(engine, name(), part.clone().into()).eq(1),
        };
        Query::select().column("id").from(dictionary.table()).and_where(condition).take()
    }

    fn condition(&self, engine: Engine, dictionary: Dictionary, column: &'static str) -> Expr {
        Expr::col((schema::EVENT, column)).in_subquery(self.names(dictionary, engine))
    }
}

/// Where `part` begins in `text`, from 1; 0 when it does not.
fn position(engine: Engine, text: Expr, part: Expr) -> Expr {
    Func::cust(super::engine::position(engine)).arg(text).arg(part).into()
}

fn escape(part: &str) -> String {
    part.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_")
}

/// A question about a job's events. Everything given must hold; nothing given is all events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Kind of event: `runner_on_ok`.
    pub kind: Option<TextMatch>,
    /// Kinds left out.
    pub not_kind: Option<TextMatch>,
    /// Name of the host. Events without one never match.
    pub host: Option<TextMatch>,
    /// Name of the task. Events without one never match.
    pub task: Option<TextMatch>,
    /// Whether it reports a failure.
    pub failed: Option<bool>,
    /// Whether it reports a change.
    pub changed: Option<bool>,
    /// Number in the job.
    pub counter: Numbers,
    /// First line of output.
    pub start_line: Numbers,
    /// Line after the last one.
    pub end_line: Numbers,
    /// One of these uuids.
    pub uuid: Option<Vec<String>>,
    /// One of these parents.
    pub parent_uuid: Option<Vec<String>>,
    /// Order.
    pub order: Order,
    /// Most events of the page.
    pub limit: u32,
    /// Events passed over before it.
    pub offset: u64,
    /// Whether the total is wanted. Without a filter it costs nothing; with one, a scan of the job's rows (about 50 ms
    /// per million).
    pub total: bool,
}

impl Default for EventQuery {
    fn default() -> Self {
        Self {
            kind: None,
            not_kind: None,
            host: None,
            task: None,
            failed: None,
            changed: None,
            counter: Numbers::default(),
            start_line: Numbers::default(),
            end_line: Numbers::default(),
            uuid: None,
            parent_uuid: None,
            order: Order::default(),
            limit: 25,
            offset: 0,
            total: true,
        }
    }
}

impl EventQuery {
    /// Whether all events of the job match, but for their number.
    pub(super) fn is_by_counter_only(&self) -> bool {
        let Self {
            kind,
            not_kind,
            host,
            task,
            failed,
            changed,
            counter: _,
            start_line,
            end_line,
            uuid,
            parent_uuid,
            order: _,
            limit: _,
            offset: _,
            total: _,
        } = self;
        kind.is_none()
            && not_kind.is_none()
            && host.is_none()
            && task.is_none()
            && failed.is_none()
            && changed.is_none()
            && start_line.is_any()
            && end_line.is_any()
            && uuid.is_none()
            && parent_uuid.is_none()
    }

    /// Numbers of the events asked for, when there are `events` of them, numbered without holes.
    pub(super) fn counters(&self, events: i64) -> RangeInclusive<i64> {
        cmp::max(self.counter.from.unwrap_or(1), 1)..=cmp::min(self.counter.to.unwrap_or(events), events)
    }

    /// What rows of the job must hold.
    pub(super) fn condition(&self, job: i64, engine: Engine) -> Condition {
        let flags = |bit: i64, on: bool| {
            let set = Expr::col((schema::EVENT, "flags")).bit_and(bit);
            if on { set.ne(0) } else { set.eq(0) }
        };
        let uuids = |column: &'static str, uuids: &[String]| {
            let stored = uuids.iter().map(|uuid| Uuid::from_text(uuid).as_bytes().to_vec());
            Expr::col((schema::EVENT, column)).is_in(stored)
        };
        let failed = self.failed.map(|on| if on { schema::is_failed() } else { flags(flag::FAILED, false) });
        Condition::all()
            .add(Expr::col((schema::EVENT, "job")).eq(job))
            .add_option(self.kind.as_ref().map(|kind| kind.condition(engine, Dictionary::Kind, "kind")))
            .add_option(
                self.not_kind.as_ref().map(|kind| kind.condition(engine, Dictionary::Kind, "kind").not()),
            )
            .add_option(self.host.as_ref().map(|host| host.condition(engine, Dictionary::Host, "host")))
            .add_option(self.task.as_ref().map(|task| task.condition(engine, Dictionary::Task, "task")))
            .add_option(failed)
            .add_option(self.changed.map(|on| flags(flag::CHANGED, on)))
            .add(self.counter.condition("counter"))
            .add(self.start_line.condition("start_line"))
            .add(self.end_line.condition("end_line"))
            .add_option(self.uuid.as_deref().map(|list| uuids("uuid", list)))
            .add_option(self.parent_uuid.as_deref().map(|list| uuids("parent", list)))
    }
}

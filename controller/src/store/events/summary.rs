//! What is known of a job's events without reading them.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, Query, SelectStatement};

use super::engine::Row;
use super::{Error, schema};

/// The row of a job, kept by the writer with every commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct JobSummary {
    /// Events; also the number of the last one, because there are no holes.
    pub(super) events: i64,
    pub(super) failed: i64,
    pub(super) changed: i64,
    /// Lines of output.
    pub(super) last_line: i64,
    /// The last `playbook_on_stats`.
    pub(super) stats: Option<i64>,
    /// Events by kind, as numbers of the dictionary.
    pub(super) kinds: BTreeMap<i64, i64>,
}

impl JobSummary {
    pub(super) fn select(job: i64) -> SelectStatement {
        let mut query = Query::select();
        query
            .columns(["events", "failed", "changed", "last_line", "stats", "kinds"])
            .from(schema::JOB)
            .and_where(Expr::col("job").eq(job));
        query
    }

    pub(super) fn read(row: &Row) -> Result<Self, Error> {
        Ok(Self {
            events: row.integer(0)?,
            failed: row.integer(1)?,
            changed: row.integer(2)?,
            last_line: row.integer(3)?,
            stats: row.maybe_integer(4)?,
            kinds: serde_json::from_str(&row.text(5)?)
                .map_err(|_| Error::Damaged("counts of a job's events"))?,
        })
    }

    pub(super) fn kinds_text(&self) -> String {
        serde_json::to_string(&self.kinds).expect("numbers by numbers are JSON")
    }
}

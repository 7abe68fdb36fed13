//! How many objects a list has. Exact up to [`EXACT`]; beyond that, where counting would cost more than the page itself, a count
//! that is at most [`FRESH`] old is good enough, and the answer says how old it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_query::{Asterisk, Condition, Expr, Func, Query, SelectStatement};

use super::call::Call;
use super::error::ApiError;
use crate::registry::Resource;
use crate::registry::read::{self, BASE};
use crate::store::core::{CoreDb, Error as StoreError};
use crate::store::spelled;

/// Largest count that is always exact.
const EXACT: i64 = 10_000;
/// Oldest count that is shown.
const FRESH: Duration = Duration::from_secs(30);
/// Age at which a count that somebody asks for is taken anew, beside the answer.
const STALE: Duration = Duration::from_secs(12);
/// Lists whose counts are kept. One takes some kilobytes: its whole question is its name.
const KEPT: usize = 512;

/// Counts of large lists. Cheap to clone.
#[derive(Clone, Default)]
pub struct Counts {
    kept: Arc<Mutex<HashMap<String, Kept>>>,
    /// One large count at a time: each keeps a reader of the database busy.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Copy)]
struct Kept {
    count: i64,
    /// When it was begun: what was committed before is counted.
    at: Instant,
    renewed: bool,
}

/// A count, and its age where it is not exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) count: i64,
    pub(super) age: Option<Duration>,
}

impl Counts {
    /// A kept count that may be shown, and whether it is this caller's to renew it.
    fn kept(&self, question: &str) -> Option<(Count, bool)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get_mut(question)?;
        let age = found.at.elapsed();
        let renew = age > STALE && !found.renewed;
        found.renewed |= renew;
        // Near the bound an exact count is cheap, and may be asked for.
        let shown = age < FRESH && found.count > 2 * EXACT;
        shown.then_some((Count { count: found.count, age: Some(age) }, renew))
    }

    fn keep(&self, question: String, count: i64, at: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.retain(|_, kept| kept.at.elapsed() < FRESH);
        }
        if kept.len() < KEPT {
            kept.insert(question, Kept { count, at, renewed: false });
        }
    }

    async fn whole(&self, db: CoreDb, all: SelectStatement, question: String) -> Result<i64, StoreError> {
        let _turn = self.turn.lock().await;
        // Somebody else may have counted meanwhile.
        if let Some((Count { count, age: Some(age) }, _)) = self.kept(&question)
            && age < STALE
        {
            return Ok(count);
        }
        let at = Instant::now();
        let count = counted(&db, all).await?;
        self.keep(question, count, at);
        Ok(count)
    }
}

async fn counted(db: &CoreDb, ids: SelectStatement) -> Result<i64, StoreError> {
    let mut count = Query::select();
    count.expr(Func::count(Expr::col(Asterisk))).from_subquery(ids, "listed");
    db.optional(&count).await?.map_or(Ok(0), |row| row.at(0))
}

/// How many objects of a resource meet a condition.
pub(super) async fn of(
    call: &Call,
    resource: &'static Resource,
    condition: Condition,
) -> Result<Count, ApiError> {
    let (db, counts) = (&call.app.db, &call.app.counts);
    let mut ids = read::source(resource, BASE);
    ids.column((BASE, "id")).cond_where(condition);
    let question = spelled(&ids, db.engine());
    if let Some((count, renew)) = counts.kept(&question) {
        if renew {
            let (counts, db) = (counts.clone(), db.clone());
            tokio::spawn(async move {
                if let Err(error) = counts.whole(db, ids, question).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot count a list anew");
                }
            });
        }
        return Ok(count);
    }
    let mut first = ids.clone();
    let near = counted(db, first.limit(EXACT.unsigned_abs() + 1).take()).await?;
    if near <= EXACT {
        return Ok(Count { count: near, age: None });
    }
    let count = counts.whole(db.clone(), ids, question).await?;
    Ok(Count { count, age: Some(Duration::ZERO) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(count: i64, age: Duration) -> Option<(i64, bool)> {
        let counts = Counts::default();
        let at = Instant::now().checked_sub(age).expect("this machine runs for longer");
        counts.keep("q".to_owned(), count, at);
        counts.kept("q").map(|(count, renew)| (count.count, renew))
    }

    #[test]
    fn large_counts_are_shown_while_fresh_and_renewed_once() {
        assert_eq!(check(1_000_000, Duration::ZERO), Some((1_000_000, false)));
        assert_eq!(check(1_000_000, STALE + Duration::from_secs(1)), Some((1_000_000, true)));
        assert_eq!(check(1_000_000, FRESH), None);
        let counts = Counts::default();
        counts.keep("q".to_owned(), 1_000_000, Instant::now().checked_sub(STALE * 2).expect("it does"));
        let renewals = (0..3).filter(|_| counts.kept("q").is_some_and(|(_, renew)| renew)).count();
        assert_eq!(renewals, 1);
    }

    #[test]
    fn small_counts_are_never_shown_from_memory() {
        assert_eq!(check(EXACT + 1, Duration::ZERO), None);
    }

    #[test]
    fn as_many_lists_as_one_likes_take_bounded_memory() {
        let counts = Counts::default();
        for number in 0..3 * KEPT {
            counts.keep(number.to_string(), 1_000_000, Instant::now());
        }
        assert_eq!(counts.kept.lock().unwrap().len(), KEPT);
    }
}

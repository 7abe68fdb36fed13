//! How many objects a list has. To ten thousand that is counted for each request; a longer list is counted at most every half
//! minute, because nobody reads on which of a million jobs they are, and everybody waits for the count. An answer with a count
//! that is not of this moment says how old it is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_query::{Expr, Func, Query, SelectStatement, SqliteQueryBuilder};

use crate::store::core::{CoreDb, Error};

/// Longest list that is counted for each request.
const EXACT: i64 = 10_000;

/// How long the count of a longer one is taken for good.
const KEPT: Duration = Duration::from_secs(30);

/// Counts that are kept at most: each is one list as one user filters it.
const MAX: usize = 4096;

/// Counts of long lists. Cheap to clone.
#[derive(Clone, Default)]
pub struct Counts {
    kept: Arc<Mutex<HashMap<String, (Instant, i64)>>>,
}

/// How many, and since when that is known; `None` for a count of this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) count: i64,
    pub(super) age: Option<Duration>,
}

impl Counts {
    /// Counts what a query of ids selects.
    pub(super) async fn of(&self, db: &CoreDb, ids: SelectStatement) -> Result<Counted, Error> {
        let count = some(db, ids.clone(), Some(EXACT + 1)).await?;
        if count <= EXACT {
            return Ok(Counted { count, age: None });
        }
        let name = ids.to_string(SqliteQueryBuilder);
        if let Some((since, count)) = self.kept().get(&name).copied()
            && since.elapsed() < KEPT
        {
            return Ok(Counted { count, age: Some(since.elapsed()) });
        }
        let since = Instant::now();
        let count = some(db, ids, None).await?;
        let mut kept = self.kept();
        if kept.len() >= MAX {
            kept.retain(|_, (since, _)| since.elapsed() < KEPT);
            if kept.len() >= MAX {
                kept.clear();
            }
        }
        kept.insert(name, (since, count));
        Ok(Counted { count, age: Some(Duration::ZERO) })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, i64)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts rows, to a limit where there is one.
async fn some(db: &CoreDb, mut ids: SelectStatement, most: Option<i64>) -> Result<i64, Error> {
    if let Some(most) = most {
        ids.limit(most.unsigned_abs());
    }
    let mut query = Query::select();
    query.expr(Func::count(Expr::col(("c", "id")))).from_subquery(ids, "c");
    db.optional(&query).await?.map_or(Ok(0), |row| row.at(0))
}

#[cfg(test)]
mod tests {
    use sea_query::ExprTrait;

    use super::*;
    use crate::store::core::Class;
    use crate::store::testing::{Place, on_each_engine};

    on_each_engine! {
        a_short_list_is_counted_and_a_long_one_remembered,
    }

    async fn add(db: &CoreDb, from: i64, to: i64) {
        let mut tx = db.begin(Class::Bulk).await.unwrap();
        for first in (from..to).step_by(500) {
            let mut insert = Query::insert();
            insert.into_table("unified_jobs").columns(["kind", "created", "modified"]);
            for _ in (first..to).take(500) {
                insert.values_panic(["job".into(), 0.into(), 0.into()]);
            }
            tx.execute(&insert).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn a_short_list_is_counted_and_a_long_one_remembered(place: Place) {
        let (db, counts) = (place.core().await, Counts::default());
        let ids = Query::select().column("id").from("unified_jobs").take();
        add(&db, 0, EXACT).await;
        for _ in 0..2 {
            let counted = counts.of(&db, ids.clone()).await.unwrap();
            assert_eq!(counted, Counted { count: EXACT, age: None });
        }
        add(&db, 0, 1).await;
        let counted = counts.of(&db, ids.clone()).await.unwrap();
        assert_eq!(counted, Counted { count: EXACT + 1, age: Some(Duration::ZERO) });
        add(&db, 0, 7).await;
        let counted = counts.of(&db, ids.clone()).await.unwrap();
        assert!(counted.count == EXACT + 1 && counted.age.is_some(), "{counted:?}");
        // Another list has a count of its own, and an old count is made anew.
        let some = ids.clone().and_where(Expr::col("id").gt(5)).take();
        assert_eq!(counts.of(&db, some).await.unwrap().count, EXACT + 3);
        counts.kept().values_mut().for_each(|(since, _)| *since -= KEPT);
        assert_eq!(counts.of(&db, ids).await.unwrap().count, EXACT + 8);
    }
}

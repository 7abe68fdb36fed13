//! Jobs that got another status.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use sea_query::{Expr, ExprTrait, Order, Query, SelectStatement};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use super::Inner;
use crate::job;
use crate::registry::read::time_json;
use crate::store::core::{Error as StoreError, JobChange, Row};
use crate::store::events::JobKey;

/// Changes that are looked up together.
const TOGETHER: usize = 256;
/// News that a listener who fell behind is given at a time.
const CATCH_UP: u64 = 1000;

/// What listeners hear.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// A job has another status.
    Job(Arc<JobNews>),
    /// Some were missed: whoever needs them looks them up.
    Missed,
}

/// A job has another status.
#[derive(Debug)]
pub(crate) struct JobNews {
    pub(crate) job: i64,
    pub(crate) status: Arc<str>,
    /// When it was created and last changed, in microseconds.
    pub(crate) modified: i64,
    /// Number of its last event, once it is over and all are stored.
    pub(crate) last: Option<i64>,
    finished: Option<i64>,
    template: Option<i64>,
    inventory: Option<i64>,
    project: Option<i64>,
    kind: String,
}

impl JobNews {
    /// As AWX's websocket puts it.
    pub(crate) fn status_json(&self) -> Value {
        json!({
            "unified_job_id": self.job,
            "status": *self.status,
            "type": self.kind,
            "group_name": "jobs",
            "instance_group_name": "default",
            "finished": self.finished.map(time_json),
            "unified_job_template_id": self.template,
            "inventory_id": self.inventory,
            "project_id": self.project,
        })
    }

    /// All events are stored: as AWX's websocket puts it.
    pub(crate) fn summary_json(&self) -> Option<Value> {
        let last = self.last?;
        Some(json!({
            "group_name": "jobs",
            "type": "summary",
            "unified_job_id": self.job,
            "final_counter": last,
        }))
    }
}

/// Turns changes into news, as long as somebody listens.
pub(super) async fn tell(inner: Arc<Inner>) {
    let mut changes = inner.db.job_changes();
    loop {
        let first = tokio::select! {
            () = inner.stop.cancelled() => return,
            change = changes.recv() => change,
        };
        let mut some = match first {
            Ok(change) => vec![change],
            Err(RecvError::Closed) => return,
            Err(RecvError::Lagged(_)) => {
                let _ = inner.news.send(News::Missed);
                continue;
            }
        };
        while some.len() < TOGETHER {
            match changes.try_recv() {
                Ok(change) => some.push(change),
                // What else there is to hear, the next round hears.
                Err(_) => break,
            }
        }
        if inner.news.receiver_count() == 0 {
            continue;
        }
        match looked_up(&inner, &some).await {
            Ok(news) => news.into_iter().for_each(|news| _ = inner.news.send(News::Job(news))),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "changed jobs cannot be read");
                let _ = inner.news.send(News::Missed);
            }
        }
    }
}

const COLUMNS: [&str; 10] = [
    "id",
    "status",
    "modified",
    "finished",
    "unified_job_template_id",
    "inventory_id",
    "project_id",
    "kind",
    "created",
    "event_processing_finished",
];

fn rows() -> SelectStatement {
    Query::select().columns(COLUMNS).from("unified_jobs").take()
}

async fn looked_up(inner: &Inner, changes: &[JobChange]) -> Result<Vec<Arc<JobNews>>, StoreError> {
    let ids: BTreeSet<i64> = changes.iter().map(|change| change.job).collect();
    let mut query = rows();
    query.and_where(Expr::col("id").is_in(ids));
    let rows: HashMap<i64, Row> = inner
        .db
        .all(&query)
        .await?
        .into_iter()
        .map(|row| Ok((row.at::<i64>(0)?, row)))
        .collect::<Result<_, StoreError>>()?;
    let mut news = Vec::with_capacity(changes.len());
    for change in changes {
        // A job that is gone by now is no news.
        if let Some(row) = rows.get(&change.job) {
            news.push(Arc::new(one(inner, row, Arc::clone(&change.status)).await?));
        }
    }
    Ok(news)
}

pub(super) async fn since(inner: &Inner, moment: i64) -> Result<Vec<Arc<JobNews>>, StoreError> {
    let mut query = rows();
    query.and_where(Expr::col("modified").gte(moment)).order_by("modified", Order::Asc).limit(CATCH_UP);
    let mut news = Vec::new();
    for row in inner.db.all(&query).await? {
        let status: String = row.at(1)?;
        news.push(Arc::new(one(inner, &row, status.into()).await?));
    }
    Ok(news)
}

async fn one(inner: &Inner, row: &Row, status: Arc<str>) -> Result<JobNews, StoreError> {
    let job = row.at(0)?;
    let mut last = None;
    if !job::is_active(&status) && row.at::<bool>(9)? {
        let summary = inner.events.summary(JobKey { id: job, created: row.time("created")? }).await;
        match summary {
            Ok(summary) => last = i64::try_from(summary.events).ok(),
            Err(error) => {
                tracing::warn!(job, error = &error as &dyn std::error::Error, "events cannot be counted");
            }
        }
    }
    Ok(JobNews {
        job,
        status,
        modified: row.at(2)?,
        last,
        finished: row.at(3)?,
        template: row.at(4)?,
        inventory: row.at(5)?,
        project: row.at(6)?,
        kind: row.at(7)?,
    })
}

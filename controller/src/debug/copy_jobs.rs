//! Copies the jobs of a database many times over, so that benches need not launch a million.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args as ClapArgs;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use crate::service::CORE_FILE;

/// Microseconds between two jobs.
const APART: i64 = 1_000_000;

/// Arguments of `copy-jobs`.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Data directory of a controller that does not run
    dir: PathBuf,
    /// How many jobs to add; they go round those that are there
    #[arg(long)]
    jobs: u32,
}

#[tokio::main]
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let file = args.dir.join(CORE_FILE);
    let mut connection = SqliteConnectOptions::new()
        .filename(&file)
        .journal_mode(SqliteJournalMode::Wal)
        .disable_statement_logging()
        .connect()
        .await
        .with_context(|| format!("cannot open {}", file.display()))?;
    let columns: Vec<String> = sqlx::query("SELECT name FROM pragma_table_info('unified_jobs')")
        .fetch_all(&mut connection)
        .await
        .context("cannot read the columns of jobs")?
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    ensure!(!columns.is_empty(), "{} holds no jobs", file.display());
    let last: i64 = sqlx::query("SELECT max(id) FROM unified_jobs")
        .fetch_one(&mut connection)
        .await
        .and_then(|row| row.try_get(0))
        .context("there is no job to copy")?;
    let values: Vec<String> = columns
        .iter()
        .map(|column| match column.as_str() {
            "id" => format!("{last} + n.i + 1"),
            "created" | "modified" | "started" | "finished" => format!("job.{column} + {APART} * (n.i + 1)"),
            _ => format!("job.\"{column}\""),
        })
        .collect();
    let quoted: Vec<String> = columns.iter().map(|column| format!("\"{column}\"")).collect();
    // Names are the table's own; numbers are numbers.
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {jobs}), \
         job AS (SELECT *, row_number() OVER (ORDER BY id) - 1 AS place, count(*) OVER () AS many FROM unified_jobs) \
         INSERT INTO unified_jobs ({columns}) SELECT {values} FROM n CROSS JOIN job WHERE job.place = n.i % job.many",
        jobs = args.jobs,
        columns = quoted.join(", "),
        values = values.join(", "),
    );
    let mut open = connection.begin().await.context("cannot begin")?;
    let added = sqlx::query(AssertSqlSafe(insert)).execute(&mut *open).await.context("cannot copy jobs")?;
    open.commit().await.context("cannot commit")?;
    ensure!(added.rows_affected() == u64::from(args.jobs), "only {} jobs were added", added.rows_affected());
    connection.close().await.context("cannot close the database")?;
    Ok(())
}

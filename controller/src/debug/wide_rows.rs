//! What stands beside ingest: a bare loop that writes the same events as plain wide rows, with the same durability.
//!
//! One table with AWX's columns of a job event, text as text, and of AWX's indexes those that its clients' questions use: by
//! counter, by uuid, by kind. (AWX has two more, by parent and by time of change; ours answers all of these from narrow rows.)
//! Rows are ready in memory before the clock runs, so nothing but SQLite is measured.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Args as ClapArgs;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Arguments as _, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _};

use super::varied::Source;
use crate::stream::{Event, Item, Parser};

/// Rows of one transaction, as many as ours holds.
const TRANSACTION: usize = 1000;
/// Rows of one INSERT.
const ROWS: usize = 100;
const COLUMNS: &str = "id, created, modified, job_id, counter, event, event_data, stdout, failed, changed, uuid, parent_uuid, \
    host_name, play, role, task, playbook, start_line, end_line, verbosity";
const TABLE: &str = "CREATE TABLE event (id INTEGER PRIMARY KEY, created TEXT, modified TEXT, job_id INTEGER NOT NULL, \
    counter INTEGER NOT NULL, event TEXT NOT NULL, event_data TEXT NOT NULL, stdout TEXT NOT NULL, failed INTEGER NOT NULL, \
    changed INTEGER NOT NULL, uuid TEXT NOT NULL, parent_uuid TEXT NOT NULL, host_name TEXT NOT NULL, play TEXT NOT NULL, \
    role TEXT NOT NULL, task TEXT NOT NULL, playbook TEXT NOT NULL, start_line INTEGER NOT NULL, end_line INTEGER NOT NULL, \
    verbosity INTEGER NOT NULL)";

/// Arguments of `wide-rows`.
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Captured stream, or folder of cases, whose events are varied
    file: PathBuf,
    /// Directory for the database; it stays
    #[arg(long)]
    dir: PathBuf,
    /// Mean bytes of an event
    #[arg(long, default_value_t = 2000)]
    event_bytes: usize,
    /// Events
    #[arg(long, default_value_t = 100_000)]
    events: usize,
}

struct Row {
    created: String,
    counter: i64,
    /// Event, data, output, uuid, parent, host, play, role, task, playbook.
    texts: [String; 10],
    failed: bool,
    changed: bool,
    lines: (i64, i64),
}

impl Row {
    fn of(event: &Event, counter: i64) -> Self {
        let data: serde_json::Value = serde_json::from_slice(&event.event_data_json()).unwrap_or_default();
        let field = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        let stdout: String = serde_json::from_slice(&event.stdout_json()).unwrap_or_default();
        Self {
            created: event
                .created()
                .and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok())
                .unwrap_or_default()
                .to_string(),
            counter,
            texts: [
                event.name().into_owned(),
                String::from_utf8_lossy(&event.event_data_json()).into_owned(),
                stdout,
                event.uuid().into_owned(),
                event.parent_uuid().map_or_else(String::new, std::borrow::Cow::into_owned),
                field("host"),
                field("play"),
                field("role"),
                field("task"),
                field("playbook"),
            ],
            failed: event.failed(),
            changed: event.changed(),
            lines: (counter, event.end_line().unwrap_or(counter)),
        }
    }
}

#[tokio::main]
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let rows = rows(&args.file, args.event_bytes, args.events)?;
    ensure!(!rows.is_empty(), "no events");
    std::fs::create_dir_all(&args.dir).context("cannot make the directory")?;
    let mut connection = SqliteConnectOptions::new()
        .filename(args.dir.join("wide.sqlite"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "1000")
        .pragma("cache_size", "-65536")
        .disable_statement_logging()
        .connect()
        .await
        .context("cannot open the database")?;
    for sql in [
        TABLE,
        "CREATE UNIQUE INDEX event_counter ON event (job_id, counter)",
        "CREATE INDEX event_uuid ON event (job_id, uuid)",
        "CREATE INDEX event_event ON event (job_id, event)",
    ] {
        connection.execute(sql).await.context("cannot make the table")?;
    }
    let place = format!("({})", vec!["?"; 20].join(","));
    let insert = |rows: usize| {
        let places = vec![place.as_str(); rows].join(",");
        format!("INSERT INTO event ({COLUMNS}) VALUES {places}")
    };
    let (whole, mut id) = (insert(ROWS), 0);
    let start = Instant::now();
    for transaction in rows.chunks(TRANSACTION) {
        let mut open = connection.begin_with("BEGIN IMMEDIATE").await.context("cannot begin")?;
        for rows in transaction.chunks(ROWS) {
            let mut values = SqliteArguments::default();
            for row in rows {
                id += 1;
                bind(&mut values, id, row);
            }
            let sql = if rows.len() == ROWS { whole.clone() } else { insert(rows.len()) };
            // Built from constants of this program.
            let query = sqlx::query_with(AssertSqlSafe(sql), values);
            query.execute(&mut *open).await.context("cannot write rows")?;
        }
        open.commit().await.context("cannot commit")?;
    }
    let seconds = start.elapsed().as_secs_f64();
    connection.close().await.context("cannot close the database")?;
    let disk = std::fs::metadata(args.dir.join("wide.sqlite"))?.len();
    let report = serde_json::json!({
        "events": rows.len(), "seconds": seconds, "events_s": (rows.len() as f64 / seconds).round(),
        "bytes_per_event_on_disk": disk as f64 / rows.len() as f64,
    });
    writeln!(std::io::stdout().lock(), "{report}")?;
    Ok(())
}

fn rows(file: &Path, bytes: usize, events: usize) -> anyhow::Result<Vec<Row>> {
    let mut source = Source::events(file, bytes)?;
    let (mut parser, mut rows) = (Parser::new(), Vec::with_capacity(events));
    while rows.len() < events {
        parser.push(&source.piece(64 * 1024), |item| {
            if let Item::Event(event) = item
                && rows.len() < events
            {
                let counter = rows.len() as i64 + 1;
                rows.push(Row::of(&event, counter));
            }
        });
    }
    Ok(rows)
}

fn bind(values: &mut SqliteArguments, id: i64, row: &Row) {
    let full = "integers and text always encode";
    values.add(id).expect(full);
    values.add(row.created.clone()).expect(full);
    values.add(row.created.clone()).expect(full);
    values.add(1i64).expect(full);
    values.add(row.counter).expect(full);
    let [event, data, stdout, rest @ ..] = &row.texts;
    for text in [event, data, stdout] {
        values.add(text.clone()).expect(full);
    }
    values.add(row.failed).expect(full);
    values.add(row.changed).expect(full);
    for text in rest {
        values.add(text.clone()).expect(full);
    }
    values.add(row.lines.0).expect(full);
    values.add(row.lines.1).expect(full);
    values.add(0i64).expect(full);
}

//! Tables of one month. Every engine has the same ones; what an engine adds stands in its own module.
//!
//! An event is a narrow row (`event`) and a share of a compressed block of bodies (`block`). Names that repeat are
//! numbers (`kind_name`, `host_name`, `task_name`). What ingest needs to go on after a crash (`owner`, `cursor`,
//! `staging`) is written in the same transaction as the events it belongs to; carry and staging are sealed.

use sea_query::{
    ColumnDef, ConditionalStatement, Expr, ExprTrait, Index, IndexCreateStatement, Table,
    TableCreateStatement,
};

/// Version of these tables. A file with a higher one is refused.
pub(super) const VERSION: i64 = 1;

/// One fact of a job: `(job, counter)`.
pub(super) const EVENT: &str = "event";
/// Bodies of up to 64 events that follow each other.
pub(super) const BLOCK: &str = "block";
/// What is known of a job's events without reading them.
pub(super) const JOB: &str = "job";
/// Hosts seen in a job.
pub(super) const JOB_HOST: &str = "job_host";
/// Who may add to a unit: the epoch of the controller that attached last.
pub(super) const OWNER: &str = "owner";
/// Last record stored of each attempt, and what ingest holds between records.
pub(super) const CURSOR: &str = "cursor";
/// Sealed pieces too large for the carry: artifacts, half a line, the starting status, standard error.
pub(super) const STAGING: &str = "staging";
/// What is missing or was changed, by name.
pub(super) const GAP: &str = "gap";
/// Index of failed events.
pub(super) const EVENT_FAILED: &str = "event_failed";

/// A dictionary: names as numbers, per month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Dictionary {
    Kind,
    Host,
    Task,
}

impl Dictionary {
    pub(super) const ALL: [Self; 3] = [Self::Kind, Self::Host, Self::Task];

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Kind => "kind_name",
            Self::Host => "host_name",
            Self::Task => "task_name",
        }
    }
}

/// Bits of `event.flags`.
pub(super) mod flag {
    /// Reports a failure. The partial index names this bit by its value.
    pub(in super::super) const FAILED: i64 = 1;
    /// Reports a change.
    pub(in super::super) const CHANGED: i64 = 1 << 1;
    /// The line was no strict JSON.
    pub(in super::super) const NORMALISED: i64 = 1 << 2;
    /// The line was too long to keep.
    pub(in super::super) const CUT: i64 = 1 << 3;
    /// Verbosity, four bits from here.
    pub(in super::super) const VERBOSITY_SHIFT: u32 = 4;
    pub(in super::super) const VERBOSITY_MAX: i64 = 15;
}

/// A table, and whether it is clustered by its key (SQLite: without row ids). Large rows do not belong in such a table.
pub(super) struct Definition {
    pub(super) table: TableCreateStatement,
    pub(super) clustered: bool,
}

/// All tables.
pub(super) fn tables() -> Vec<Definition> {
    let integer = |name: &'static str| ColumnDef::new(name).big_integer().to_owned();
    let needed = |name: &'static str| ColumnDef::new(name).big_integer().not_null().to_owned();
    let bytes = |name: &'static str| ColumnDef::new(name).binary().not_null().to_owned();
    let text = |name: &'static str| ColumnDef::new(name).text().not_null().to_owned();
    let table = |name: &'static str, key: &[&'static str], clustered: bool, columns: Vec<ColumnDef>| {
        let mut table = Table::create();
        table.table(name);
        for column in columns {
            table.col(column);
        }
        let mut primary = Index::create();
        key.iter().for_each(|column| {
            primary.col(*column);
        });
        table.primary_key(&mut primary);
        Definition { table, clustered }
    };
    let mut all = vec![
        table(
            EVENT,
            &["job", "counter"],
            true,
            vec![
                needed("job"),
                needed("counter"),
                needed("kind"),
                integer("host"),
                integer("task"),
                ColumnDef::new("uuid").binary().to_owned(),
                ColumnDef::new("parent").binary().to_owned(),
                needed("flags"),
                needed("start_line"),
                needed("end_line"),
                integer("created"),
            ],
        ),
        table(
            BLOCK,
            &["job", "first"],
            false,
            vec![needed("job"), needed("first"), needed("last"), needed("size"), bytes("data")],
        ),
        table(
            JOB,
            &["job"],
            true,
            vec![
                needed("job"),
                needed("events"),
                needed("failed"),
                needed("changed"),
                needed("last_line"),
                integer("stats"),
                text("kinds"),
            ],
        ),
        table(JOB_HOST, &["job", "host"], true, vec![needed("job"), needed("host")]),
        table(
            OWNER,
            &["unit"],
            true,
            vec![bytes("unit"), needed("job"), needed("incarnation"), needed("counter")],
        ),
        table(
            CURSOR,
            &["unit", "attempt"],
            false,
            vec![bytes("unit"), needed("attempt"), needed("record"), bytes("carry")],
        ),
        table(
            STAGING,
            &["unit", "attempt", "slot", "seq"],
            false,
            vec![
                bytes("unit"),
                needed("attempt"),
                needed("slot"),
                needed("seq"),
                needed("size"),
                bytes("data"),
            ],
        ),
        table(
            GAP,
            &["job", "unit", "attempt", "seq"],
            true,
            vec![
                needed("job"),
                bytes("unit"),
                needed("attempt"),
                needed("seq"),
                text("kind"),
                text("detail"),
            ],
        ),
    ];
    all.extend(Dictionary::ALL.map(|dictionary| {
        table(dictionary.table(), &["id"], true, vec![needed("id"), text("name").unique_key().to_owned()])
    }));
    all
}

/// All indexes beyond the keys. There is none on uuid: random keys would halve the rate of ingest.
pub(super) fn indexes() -> Vec<IndexCreateStatement> {
    vec![
        Index::create()
            .name(EVENT_FAILED)
            .table(EVENT)
            .col("job")
            .col("counter")
            .and_where(is_failed())
            .to_owned(),
    ]
}

/// The condition of the partial index. Planners recognise it only in these very words, the bit as a literal.
pub(super) fn is_failed() -> Expr {
    Expr::col("flags").bit_and(Expr::Constant(flag::FAILED.into())).ne(Expr::Constant(0i64.into()))
}

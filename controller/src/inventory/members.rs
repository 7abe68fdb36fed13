//! Which hosts an inventory has: its own rows, or, of a smart one, those of its organization that its filter chooses.
//!
//! A smart inventory has no rows: whoever asks for its hosts asks with its filter, so they are never behind. Of several hosts with
//! one name it has the oldest.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, Func, JoinType, Query, SelectStatement};

use crate::registry::filter::hosts::{HostFilter, parse};
use crate::registry::filter::{Asker, FilterError, Reach};
use crate::store::Engine;
use crate::store::core::{CoreDb, Error, Row, WriteTx};

/// The word for an inventory whose hosts a filter chooses.
pub const SMART: &str = "smart";
/// The word for an inventory that Ansible makes of others.
pub const CONSTRUCTED: &str = "constructed";

/// The hosts of one inventory, as a condition.
#[derive(Debug, Clone)]
pub struct Members {
    inventory: i64,
    engine: Engine,
    smart: Option<(i64, HostFilter)>,
    constructed: bool,
}

impl Members {
    /// Reads what kind of inventory it is.
    ///
    /// # Errors
    /// What the database says.
    pub async fn of(core: &CoreDb, inventory: i64) -> Result<Self, Error> {
        let row = core.optional(columns(&[inventory])).await?;
        Self::read(inventory, row.as_ref(), core.engine())
    }

    /// The same within a transaction.
    ///
    /// # Errors
    /// What the database says.
    pub async fn within(tx: &mut WriteTx, inventory: i64) -> Result<Self, Error> {
        let row = tx.optional(columns(&[inventory])).await?;
        Self::read(inventory, row.as_ref(), tx.engine())
    }

    fn read(inventory: i64, row: Option<&Row>, engine: Engine) -> Result<Self, Error> {
        let mut plain = Self { inventory, engine, smart: None, constructed: false };
        let Some(row) = row else { return Ok(plain) };
        let kind: String = row.at(1)?;
        plain.constructed = kind == CONSTRUCTED;
        if kind != SMART {
            return Ok(plain);
        }
        // A filter was read before it was kept. One that a later version does not know any more chooses nobody.
        let filter = parse(&row.at::<Option<String>>(3)?.unwrap_or_default());
        let filter = filter.unwrap_or_else(|_| HostFilter::Any(Vec::new()));
        Ok(Self { smart: Some((row.at(2)?, filter)), ..plain })
    }

    /// Whether a filter chooses them.
    pub fn is_smart(&self) -> bool {
        self.smart.is_some()
    }

    /// The hosts whose facts theirs are: a query of hosts that go by `h`, joined to those whose facts are kept, which go by `k`. For all
    /// but constructed inventories these are the same.
    pub fn knowing(&self) -> SelectStatement {
        let mut query = Query::select();
        query.from_as("hosts", "h");
        let own = Expr::col(("k", "id")).equals(("h", "id"));
        if !self.constructed {
            return query.join_as(JoinType::InnerJoin, "hosts", "k", own).take();
        }
        // Its hosts are made of others, and say of whom. Only of its inputs is that believed: people may write it.
        let source = Expr::col(("k", "id")).cast_as("text").eq(Expr::col(("h", "instance_id")));
        let mut inputs = Query::select();
        inputs.column("input_id").from("inventory_inputs");
        inputs.and_where(Expr::col("inventory_id").eq(self.inventory));
        let source = source.and(Expr::col(("k", "inventory_id")).in_subquery(inputs));
        query.join_as(JoinType::InnerJoin, "hosts", "k", source).take()
    }

    /// That a host which goes by `alias` is one of them.
    pub fn condition(&self, alias: &str) -> Expr {
        self.chosen(alias, false)
    }

    /// That a host which goes by `alias` is one of them and is on.
    pub fn enabled(&self, alias: &str) -> Expr {
        Expr::col((alias.to_owned(), "enabled")).eq(true).and(self.chosen(alias, true))
    }

    fn chosen(&self, alias: &str, enabled: bool) -> Expr {
        match &self.smart {
            None => Expr::col((alias.to_owned(), "inventory_id")).eq(self.inventory),
            Some((organization, filter)) => {
                let hosts = chosen(*organization, filter, self.engine, enabled);
                Expr::col((alias.to_owned(), "id")).in_subquery(hosts)
            }
        }
    }
}

/// Checks a filter that is to be kept.
///
/// # Errors
/// [`FilterError`], for the client.
pub fn check(text: &str, organization: i64, engine: Engine) -> Result<(), FilterError> {
    parse(text)?.condition("h", Asker { reach: Reach::Organization(organization), engine }).map(drop)
}

fn columns(inventories: &[i64]) -> SelectStatement {
    let mut query = Query::select();
    query.columns(["id", "kind", "organization_id", "host_filter"]).from("inventories");
    query.and_where(Expr::col("id").is_in(inventories.iter().copied())).take()
}

/// Ids of the oldest host of each name that the filter chooses.
fn chosen(organization: i64, filter: &HostFilter, engine: Engine, enabled: bool) -> SelectStatement {
    let asker = Asker { reach: Reach::Organization(organization), engine };
    let condition = filter.condition("h", asker).unwrap_or_else(|_| Expr::val(false));
    let mut query = Query::select();
    query.expr(Func::min(Expr::col(("h", "id")))).from_as("hosts", "h");
    let home = Expr::col(("i", "id")).equals(("h", "inventory_id"));
    query.join_as(JoinType::InnerJoin, "inventories", "i", home);
    query.and_where(Expr::col(("i", "organization_id")).eq(organization)).and_where(condition);
    if enabled {
        query.and_where(Expr::col(("h", "enabled")).eq(true));
    }
    query.group_by_col(("h", "name")).take()
}

/// How many hosts each inventory has, by a condition on them besides; one query for all that have rows of their own, and one for
/// each smart one.
///
/// # Errors
/// What the database says.
pub async fn counts(core: &CoreDb, inventories: &[i64], only: Only) -> Result<BTreeMap<i64, i64>, Error> {
    if inventories.is_empty() {
        return Ok(BTreeMap::new());
    }
    let also = |query: &mut SelectStatement| match only {
        Only::All => {}
        Only::Enabled => drop(query.and_where(Expr::col(("b", "enabled")).eq(true))),
        Only::Failing => drop(query.and_where(Expr::col(("b", "has_active_failures")).eq(true))),
    };
    let mut own = Query::select();
    own.column(("b", "inventory_id")).expr(Func::count(Expr::col(("b", "id")))).from_as("hosts", "b");
    own.and_where(Expr::col(("b", "inventory_id")).is_in(inventories.iter().copied()));
    also(&mut own);
    let mut counts: BTreeMap<i64, i64> = core
        .all(own.group_by_col(("b", "inventory_id")))
        .await?
        .iter()
        .map(|row| Ok((row.at(0)?, row.at(1)?)))
        .collect::<Result<_, Error>>()?;
    let mut smart = columns(inventories);
    for row in core.all(smart.and_where(Expr::col("kind").eq(SMART))).await? {
        let id: i64 = row.at(0)?;
        let members = Members::read(id, Some(&row), core.engine())?;
        let mut query = Query::select();
        query.expr(Func::count(Expr::col(("b", "id")))).from_as("hosts", "b");
        query.and_where(match only {
            Only::Enabled => members.enabled("b"),
            _ => members.condition("b"),
        });
        also(&mut query);
        let count = core.optional(&query).await?.map(|row| row.at(0)).transpose()?;
        counts.insert(id, count.unwrap_or(0));
    }
    Ok(counts)
}

/// Which hosts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Only {
    /// All.
    All,
    /// Those that are on.
    Enabled,
    /// Those whose last job failed on them.
    Failing,
}

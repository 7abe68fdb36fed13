//! Brings what a source has into its inventory.
//!
//! Much at once, in transactions so short that nobody else waits for long: each ends after `BUDGET`, and whoever waits goes
//! first. What AWX does in one transaction is therefore seen bit by bit; the order sees to it that no host that stays is ever missing
//! meanwhile, and that none leaves a group before it is in its new one. No job of the inventory starts while one of its updates runs, so none sees a half.
//! Interrupted by a crash it is begun again, from what is there then: what was done needs not be done twice.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use sea_query::{Expr, ExprTrait, JoinType, OnConflict, Query, SelectStatement, SimpleExpr};

use super::changes::{Changes, Policy, Stored, StoredGroup, StoredHost, between};
use super::document::Document;
use crate::store::core::{Class, CoreDb, Error, WriteTx};

/// How long a transaction writes before it lets others write: with its commit it stays far below 100 ms.
const BUDGET: Duration = Duration::from_millis(15);
/// Rows of one statement.
const ROWS: usize = 200;
/// Rows read at once.
const PAGE: u64 = 10_000;
/// What hosts and groups of a source are described as.
const DESCRIPTION: &str = "imported";

/// What an import did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Done {
    /// Hosts and groups of the source.
    pub hosts: usize,
    /// Groups of the source.
    pub groups: usize,
    /// Hosts made, changed and deleted.
    pub changed: [usize; 3],
    /// Children that would have made a circle: group and child.
    pub circles: Vec<(String, String)>,
}

/// Brings a document into an inventory in the name of a source; none: nobody owns what comes.
///
/// # Errors
/// What the database says; a part may be stored then, and doing it again does the rest.
pub async fn import(
    core: &CoreDb,
    inventory: i64,
    source: Option<i64>,
    document: Document,
    policy: Policy,
) -> Result<Done, Error> {
    let stored = stored(core, inventory, source).await?;
    let compared = tokio::task::spawn_blocking(move || {
        let changes = between(&stored, &document, policy);
        (stored, document, changes)
    });
    let (stored, document, changes) = compared.await.expect("comparing does not panic");
    let done = Done {
        hosts: document.hosts.len(),
        groups: document.groups.len(),
        changed: [changes.new_hosts.len(), changes.hosts.len(), changes.gone_hosts.len()],
        circles: changes.circles.clone(),
    };
    drop(document);
    Writer { core, tx: None, inventory, source }.apply(&stored, changes).await?;
    Ok(done)
}

/// What the inventory has; hosts in pages, so that no reader is held for long.
async fn stored(core: &CoreDb, inventory: i64, source: Option<i64>) -> Result<Stored, Error> {
    let mut query = Query::select();
    query.column("variables").from("inventories").and_where(Expr::col("id").eq(inventory));
    let variables = core.optional(&query).await?.map(|row| row.at(0)).transpose()?.unwrap_or_default();
    let mut stored = Stored { variables, ..Stored::default() };
    let ours = ids(core, "inventory_source_hosts", "host_id", source).await?;
    let mut last = 0_i64;
    loop {
        let mut query = Query::select();
        query.columns(["id", "name", "instance_id", "enabled", "variables"]).from("hosts");
        query.and_where(Expr::col("inventory_id").eq(inventory)).and_where(Expr::col("id").gt(last));
        query.order_by("id", sea_query::Order::Asc).limit(PAGE);
        let rows = core.all(&query).await?;
        for row in &rows {
            let id: i64 = row.at(0)?;
            last = id;
            stored.hosts.push(StoredHost {
                id,
                name: row.at(1)?,
                instance_id: row.at(2)?,
                enabled: row.at(3)?,
                variables: row.at(4)?,
                ours: ours.contains(&id),
            });
        }
        if (rows.len() as u64) < PAGE {
            break;
        }
    }
    let ours = ids(core, "inventory_source_groups", "group_id", source).await?;
    let mut query = Query::select();
    query
        .columns(["id", "name", "variables"])
        .from("groups")
        .and_where(Expr::col("inventory_id").eq(inventory));
    for row in core.all(&query).await? {
        let id: i64 = row.at(0)?;
        stored.groups.push(StoredGroup {
            id,
            name: row.at(1)?,
            variables: row.at(2)?,
            ours: ours.contains(&id),
        });
    }
    for row in core.all(pairs("group_hosts", "host_id", inventory)).await? {
        stored.members.insert((row.at(0)?, row.at(1)?));
    }
    for row in core.all(pairs("group_children", "child_id", inventory)).await? {
        stored.children.insert((row.at(0)?, row.at(1)?));
    }
    Ok(stored)
}

async fn ids(
    core: &CoreDb,
    table: &'static str,
    column: &'static str,
    source: Option<i64>,
) -> Result<HashSet<i64>, Error> {
    let Some(source) = source else { return Ok(HashSet::new()) };
    let mut query = Query::select();
    query.column(column).from(table).and_where(Expr::col("inventory_source_id").eq(source));
    core.all(&query).await?.iter().map(|row| row.at(0)).collect()
}

fn pairs(table: &'static str, member: &'static str, inventory: i64) -> SelectStatement {
    let mut query = Query::select();
    query.columns([("p", "group_id"), ("p", member)]).from_as(table, "p");
    query.join_as(JoinType::InnerJoin, "groups", "g", Expr::col(("g", "id")).equals(("p", "group_id")));
    query.and_where(Expr::col(("g", "inventory_id")).eq(inventory)).take()
}

/// Writes in short transactions.
struct Writer<'c> {
    core: &'c CoreDb,
    tx: Option<(WriteTx, Instant)>,
    inventory: i64,
    source: Option<i64>,
}

impl Writer<'_> {
    /// The transaction under way, or a new one.
    async fn tx(&mut self) -> Result<&mut WriteTx, Error> {
        if self.tx.is_none() {
            let tx = self.core.begin(Class::Bulk).await?;
            self.tx = Some((tx, Instant::now()));
        }
        let (tx, _) = self.tx.as_mut().expect("it was put there just now");
        Ok(tx)
    }

    /// Between two statements: others get their turn when this one has taken its time.
    async fn breathe(&mut self) -> Result<(), Error> {
        match self.tx.take() {
            Some((tx, since)) if since.elapsed() >= BUDGET => {
                tx.commit().await?;
                crate::crash::Point::ImportPart.hit();
                Ok(())
            }
            tx => {
                self.tx = tx;
                Ok(())
            }
        }
    }

    async fn commit(&mut self) -> Result<(), Error> {
        match self.tx.take() {
            Some((tx, _)) => tx.commit().await,
            None => Ok(()),
        }
    }

    async fn apply(&mut self, stored: &Stored, changes: Changes) -> Result<(), Error> {
        let mut hosts: HashMap<String, i64> =
            stored.hosts.iter().map(|host| (host.name.clone(), host.id)).collect();
        let mut groups: HashMap<String, i64> =
            stored.groups.iter().map(|group| (group.name.clone(), group.id)).collect();
        self.delete("hosts", &changes.gone_hosts).await?;
        self.delete("groups", &changes.gone_groups).await?;
        self.change(&changes, &mut hosts).await?;
        self.make(&changes, &mut hosts, &mut groups).await?;
        let pairs = |of: &[(String, String)], members: &HashMap<String, i64>| -> Vec<(i64, i64)> {
            of.iter()
                .filter_map(|(group, member)| Some((*groups.get(group)?, *members.get(member)?)))
                .collect()
        };
        let (joined, nested) = (pairs(&changes.joined, &hosts), pairs(&changes.nested, &groups));
        self.insert_pairs("group_hosts", ["group_id", "host_id"], &joined).await?;
        self.insert_pairs("group_children", ["group_id", "child_id"], &nested).await?;
        self.delete_pairs("group_hosts", "host_id", &changes.left).await?;
        self.delete_pairs("group_children", "child_id", &changes.unnested).await?;
        for ids in changes.our_hosts.chunks(ROWS) {
            self.claim("inventory_source_hosts", "host_id", ids).await?;
            self.breathe().await?;
        }
        for ids in changes.our_groups.chunks(ROWS) {
            self.claim("inventory_source_groups", "group_id", ids).await?;
            self.breathe().await?;
        }
        self.commit().await
    }

    async fn delete(&mut self, table: &'static str, ids: &[i64]) -> Result<(), Error> {
        for ids in ids.chunks(ROWS) {
            let mut delete = Query::delete();
            delete.from_table(table).and_where(Expr::col("id").is_in(ids.iter().copied()));
            self.tx().await?.execute(&delete).await?;
            self.breathe().await?;
        }
        Ok(())
    }

    /// Rows that are there already: names, states, variables.
    async fn change(&mut self, changes: &Changes, hosts: &mut HashMap<String, i64>) -> Result<(), Error> {
        let now = jiff::Timestamp::now().as_microsecond();
        // Names that are traded: nobody sees the moment in between.
        for id in &changes.parked {
            let name = format!("\u{1}renamed {id}");
            let mut update = Query::update();
            update.table("hosts").value("name", name).and_where(Expr::col("id").eq(*id));
            self.tx().await?.execute(&update).await?;
        }
        let (parked, others): (Vec<_>, Vec<_>) =
            changes.hosts.iter().partition(|change| changes.parked.binary_search(&change.id).is_ok());
        for (change, traded) in parked
            .into_iter()
            .map(|change| (change, true))
            .chain(others.into_iter().map(|change| (change, false)))
        {
            let mut update = Query::update();
            update.table("hosts").value("modified", now).and_where(Expr::col("id").eq(change.id));
            if let Some(name) = &change.name {
                update.value("name", name.as_str());
                hosts.insert(name.clone(), change.id);
            }
            if let Some(instance_id) = &change.instance_id {
                update.value("instance_id", instance_id.as_str());
            }
            if let Some(enabled) = change.enabled {
                update.value("enabled", enabled);
            }
            if let Some(variables) = &change.variables {
                update.value("variables", variables.as_str());
            }
            self.tx().await?.execute(&update).await?;
            if !traded {
                self.breathe().await?;
            }
        }
        if let Some(variables) = &changes.variables {
            let mut update = Query::update();
            update.table("inventories").value("variables", variables.as_str()).value("modified", now);
            update.and_where(Expr::col("id").eq(self.inventory));
            self.tx().await?.execute(&update).await?;
        }
        for (id, variables) in &changes.groups {
            let mut update = Query::update();
            update.table("groups").value("variables", variables.as_str()).value("modified", now);
            self.tx().await?.execute(update.and_where(Expr::col("id").eq(*id))).await?;
            self.breathe().await?;
        }
        Ok(())
    }

    /// Notes rows as the source's. New ones in the transaction that makes them: one that nobody owns would stay for ever
    /// when the import breaks off after it, and the source does not name it any more.
    async fn claim(&mut self, table: &'static str, column: &'static str, ids: &[i64]) -> Result<(), Error> {
        let Some(source) = self.source else { return Ok(()) };
        if ids.is_empty() {
            return Ok(());
        }
        let columns = ["inventory_source_id", column];
        let mut insert = Query::insert();
        insert.into_table(table).columns(columns);
        for id in ids {
            insert.values_panic([source.into(), (*id).into()]);
        }
        insert.on_conflict(OnConflict::columns(columns).do_nothing().to_owned());
        self.tx().await?.execute(&insert).await?;
        Ok(())
    }

    /// Rows that are new, and their ids.
    async fn make(
        &mut self,
        changes: &Changes,
        hosts: &mut HashMap<String, i64>,
        groups: &mut HashMap<String, i64>,
    ) -> Result<(), Error> {
        let now = jiff::Timestamp::now().as_microsecond();
        let inventory = self.inventory;
        for new in changes.new_groups.chunks(ROWS) {
            let mut insert = Query::insert();
            insert.into_table("groups").columns([
                "name",
                "description",
                "inventory_id",
                "variables",
                "created",
                "modified",
            ]);
            for (name, variables) in new {
                let cells: [SimpleExpr; 6] = [
                    name.as_str().into(),
                    DESCRIPTION.into(),
                    inventory.into(),
                    variables.as_str().into(),
                    now.into(),
                    now.into(),
                ];
                insert.values_panic(cells);
            }
            insert.returning(Query::returning().columns(["name", "id"]));
            let made = self.tx().await?.all(&insert).await?;
            let mut ids = Vec::with_capacity(made.len());
            for row in made {
                ids.push(row.at(1)?);
                groups.insert(row.at(0)?, row.at(1)?);
            }
            self.claim("inventory_source_groups", "group_id", &ids).await?;
            self.breathe().await?;
        }
        for new in changes.new_hosts.chunks(ROWS) {
            let mut insert = Query::insert();
            insert.into_table("hosts").columns([
                "name",
                "description",
                "inventory_id",
                "enabled",
                "instance_id",
                "variables",
                "created",
                "modified",
            ]);
            for host in new {
                let cells: [SimpleExpr; 8] = [
                    host.name.as_str().into(),
                    DESCRIPTION.into(),
                    inventory.into(),
                    host.enabled.into(),
                    host.instance_id.as_str().into(),
                    host.variables.as_str().into(),
                    now.into(),
                    now.into(),
                ];
                insert.values_panic(cells);
            }
            insert.returning(Query::returning().columns(["name", "id"]));
            let made = self.tx().await?.all(&insert).await?;
            let mut ids = Vec::with_capacity(made.len());
            for row in made {
                ids.push(row.at(1)?);
                hosts.insert(row.at(0)?, row.at(1)?);
            }
            self.claim("inventory_source_hosts", "host_id", &ids).await?;
            self.breathe().await?;
        }
        Ok(())
    }

    async fn insert_pairs(
        &mut self,
        table: &'static str,
        columns: [&'static str; 2],
        pairs: &[(i64, i64)],
    ) -> Result<(), Error> {
        for pairs in pairs.chunks(ROWS) {
            let mut insert = Query::insert();
            insert.into_table(table).columns(columns);
            for (one, other) in pairs {
                insert.values_panic([(*one).into(), (*other).into()]);
            }
            insert.on_conflict(OnConflict::columns(columns).do_nothing().to_owned());
            self.tx().await?.execute(&insert).await?;
            self.breathe().await?;
        }
        Ok(())
    }

    async fn delete_pairs(
        &mut self,
        table: &'static str,
        member: &'static str,
        pairs: &[(i64, i64)],
    ) -> Result<(), Error> {
        // One statement for each group: pairs come in the order of groups.
        for of_group in pairs.chunk_by(|one, other| one.0 == other.0) {
            for pairs in of_group.chunks(ROWS) {
                let mut delete = Query::delete();
                delete.from_table(table).and_where(Expr::col("group_id").eq(pairs[0].0));
                delete.and_where(Expr::col(member).is_in(pairs.iter().map(|pair| pair.1)));
                self.tx().await?.execute(&delete).await?;
                self.breathe().await?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Facts of hosts between jobs: files of Ansible's cache that go out with a job and come back with its artifacts, and the
//! rows that keep them.
//!
//! An ansible-core from 2.19 on reads `s1_HOST`, which wraps the facts as text; an older one reads `HOST`, which holds them as
//! they are. Each leaves the other's files alone. Nobody knows which core an image has before it runs, so both forms go
//! out, and what comes back tells which was used. Files that go out end in a mark, white space that Ansible never
//! writes: a file that still has it was not written anew, however long another job took in the meantime.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, JoinType, OnConflict, Order, Query};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::inventory::members::Members;
use crate::store::core::{Class, CoreDb, Error};
use crate::stream::normal_json;

/// Ends each file that goes out.
const MARK: &str = "\n \n";
/// Begins the name of a file of the newer form.
const NEWER: &str = "s1_";
/// Hosts whose facts go out with a job, at most: two files each, and a node takes 10,000. Those beyond gather anew.
const HOSTS_MAX: u64 = 4_000;
/// Bytes of facts that go out with a job, counted once a host; two forms of it fit a private block of 256 MiB.
const SENT_MAX: usize = 64 << 20;
/// Hosts that are looked up at once.
const NAMES: usize = 1_000;
/// Bytes that one transaction writes, so that others get their turn.
const BATCH: usize = 4 << 20;

/// What a job did to the facts of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It gathered these: a JSON object.
    Set(String),
    /// It cleared them.
    Cleared,
}

/// Files of the cache that go out, name and content, for hosts with their facts as JSON text.
pub fn files(hosts: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut bytes = 0;
    for (host, facts) in hosts {
        bytes += facts.len();
        if bytes > SENT_MAX {
            break;
        }
        if is_file_name(host) {
            files.push((format!("{NEWER}{host}"), format!("{}{MARK}", json!({"__payload__": facts}))));
            files.push((host.clone(), format!("{facts}{MARK}")));
        }
    }
    files
}

/// What a job did, from the files that came back, by host. What cannot be read changes nothing.
pub fn changes(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Change> {
    let mut changes = BTreeMap::new();
    for name in files.keys() {
        let host = name.strip_prefix(NEWER).filter(|host| !host.is_empty()).unwrap_or(name);
        if let Some(change) = change(files.get(&format!("{NEWER}{host}")), files.get(host)) {
            changes.insert(host.to_owned(), change);
        }
    }
    changes
}

fn change(newer: Option<&Vec<u8>>, older: Option<&Vec<u8>>) -> Option<Change> {
    let written = |file: Option<&Vec<u8>>| file.filter(|text| !text.ends_with(MARK.as_bytes())).cloned();
    match (written(newer), written(older)) {
        (Some(text), _) => {
            #[derive(Deserialize)]
            struct Wrapped {
                __payload__: String,
            }
            let wrapped: Wrapped = serde_json::from_slice(&text).ok()?;
            object(wrapped.__payload__.as_bytes()).map(Change::Set)
        }
        (None, Some(text)) => object(&text).map(Change::Set),
        // Both went out and one came back: the core that knows the other form has removed it.
        (None, None) if newer.is_some() != older.is_some() => Some(Change::Cleared),
        (None, None) => None,
    }
}

/// Python's JSON as everybody's; `None` for what is no object.
fn object(text: &[u8]) -> Option<String> {
    let text = normal_json(text)?;
    let object: Map<String, Value> = serde_json::from_slice(&text).ok()?;
    Some(untagged(Value::Object(object)).to_string())
}

/// A core from 2.19 on notes beside a value where it comes from. Older cores, and people, want the value.
fn untagged(value: Value) -> Value {
    match value {
        Value::Object(mut object) => {
            let kind = object.get("__ansible_type").and_then(Value::as_str);
            if kind.is_some_and(|kind| kind.starts_with("_AnsibleTagged"))
                && let Some(value) = object.remove("value")
            {
                return untagged(value);
            }
            Value::Object(object.into_iter().map(|(name, value)| (name, untagged(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(untagged).collect()),
        other => other,
    }
}

/// Whether a host's name can be a file's.
fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() < 250 && !name.contains(['/', '\0'])
}

/// Facts of the enabled hosts of an inventory, JSON text by name; no more than a job takes along.
///
/// # Errors
/// What the database says.
pub async fn of_inventory(core: &CoreDb, inventory: i64) -> Result<BTreeMap<String, String>, Error> {
    let members = Members::of(core, inventory).await?;
    let mut select = members.knowing();
    select
        .column(("h", "name"))
        .column(("f", "facts"))
        .join_as(JoinType::InnerJoin, "host_facts", "f", Expr::col(("f", "id")).equals(("k", "id")))
        .and_where(members.enabled("h"))
        .order_by(("h", "id"), Order::Asc)
        .limit(HOSTS_MAX);
    let rows = core.all(select).await?;
    rows.iter().map(|row| Ok((row.value("name")?, row.value("facts")?))).collect()
}

/// Facts of a host, JSON text; none were gathered.
///
/// # Errors
/// What the database says.
pub async fn of_host(core: &CoreDb, host: i64) -> Result<Option<String>, Error> {
    let mut select = Query::select();
    select.column("facts").from("host_facts").and_where(Expr::col("id").eq(host));
    core.optional(select).await?.map(|row| row.value("facts")).transpose()
}

/// Keeps what a job did to hosts of its inventory; names that are none of its hosts are passed over. Done twice, it is the
/// same.
///
/// # Errors
/// What the database says; a part may be stored.
pub async fn keep(core: &CoreDb, inventory: i64, changes: &BTreeMap<String, Change>) -> Result<(), Error> {
    let members = Members::of(core, inventory).await?;
    let names: Vec<&str> = changes.keys().map(String::as_str).collect();
    let mut known: BTreeMap<String, i64> = BTreeMap::new();
    for names in names.chunks(NAMES) {
        let mut select = members.knowing();
        select.columns([("h", "name"), ("k", "id")]).and_where(members.condition("h"));
        select.and_where(Expr::col(("h", "name")).is_in(names.iter().copied()));
        for row in core.all(select).await? {
            known.insert(row.at(0)?, row.at(1)?);
        }
    }
    let mut left = changes.iter().peekable();
    while left.peek().is_some() {
        let mut tx = core.begin(Class::Bookkeeping).await?;
        let mut bytes = 0;
        while bytes < BATCH {
            let Some((name, change)) = left.next() else { break };
            // What a filter chooses is asked once for all.
            let Some(id) = known.get(name) else { continue };
            let mut select = Query::select();
            select.column("id").from("hosts").and_where(Expr::col("id").eq(*id));
            let Some(row) = tx.optional(select).await? else { continue };
            let host: i64 = row.value("id")?;
            match change {
                Change::Set(facts) => {
                    bytes += facts.len();
                    let now = jiff::Timestamp::now().as_microsecond();
                    let mut insert = Query::insert();
                    insert
                        .into_table("host_facts")
                        .columns(["id", "facts", "modified"])
                        .values_panic([host.into(), facts.as_str().into(), now.into()])
                        .on_conflict(
                            OnConflict::column("id").update_columns(["facts", "modified"]).to_owned(),
                        );
                    tx.execute(insert).await?;
                }
                Change::Cleared => {
                    let mut delete = Query::delete();
                    delete.from_table("host_facts").and_where(Expr::col("id").eq(host));
                    tx.execute(delete).await?;
                }
            }
        }
        tx.commit().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> BTreeMap<String, Vec<u8>> {
        let hosts = BTreeMap::from([("web1".to_owned(), r#"{"a":"ü\n"}"#.to_owned())]);
        files(&hosts).into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
    }

    fn check(files: &BTreeMap<String, Vec<u8>>, expected: Option<Change>) {
        let expected: BTreeMap<_, _> =
            expected.into_iter().map(|change| ("web1".to_owned(), change)).collect();
        assert_eq!(changes(files), expected);
    }

    fn set(text: &str) -> Option<Change> {
        Some(Change::Set(text.to_owned()))
    }

    #[test]
    fn files_that_nobody_wrote_change_nothing() {
        assert_eq!(sent().into_keys().collect::<Vec<_>>(), ["s1_web1", "web1"]);
        check(&sent(), None);
        check(&BTreeMap::new(), None);
    }

    #[test]
    fn what_went_out_reads_as_the_same_facts() {
        let mut files = sent();
        for text in files.values_mut() {
            text.truncate(text.len() - MARK.len());
        }
        check(&files, set(r#"{"a":"ü\n"}"#));
        files.remove("s1_web1");
        check(&files, set(r#"{"a":"ü\n"}"#));
    }

    #[test]
    fn the_form_that_was_written_counts() {
        let mut newer = sent();
        newer
            .insert("s1_web1".to_owned(), br#"{"__payload__": "{\"b\": NaN, \"c\": \"\\udcff\"}"}"#.to_vec());
        check(&newer, set("{\"b\":\"NaN\",\"c\":\"\u{fffd}\"}"));
        let mut older = sent();
        older.insert("web1".to_owned(), br#"{"b": 2}"#.to_vec());
        check(&older, set(r#"{"b":2}"#));
    }

    #[test]
    fn values_come_without_their_tags() {
        let tagged =
            json!({"__ansible_type": "_AnsibleTaggedStr", "value": "small", "tags": [{"path": "x"}]});
        let facts = json!({"class": tagged, "all": [{"deep": tagged}], "value": 1}).to_string();
        let file = json!({"__payload__": facts}).to_string();
        let expected = json!({"all": [{"deep": "small"}], "class": "small", "value": 1}).to_string();
        let Some(Change::Set(text)) = change(Some(&file.into_bytes()), None) else { panic!("no facts") };
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(read(&text), read(&expected));
    }

    #[test]
    fn a_form_that_is_gone_was_cleared() {
        for name in ["s1_web1", "web1"] {
            let mut files = sent();
            files.remove(name);
            check(&files, Some(Change::Cleared));
        }
    }

    #[test]
    fn what_is_no_object_changes_nothing() {
        for text in ["", "[]", "{", r#"{"__payload__": 1}"#, r#"{"__payload__": "[]"}"#] {
            check(&BTreeMap::from([("s1_web1".to_owned(), text.into())]), None);
        }
    }

    #[test]
    fn names_that_are_no_files_stay_here() {
        let hosts = ["../x", "a/b", "", "::1"].map(|host| (host.to_owned(), "{}".to_owned()));
        let names: Vec<_> = files(&hosts.into()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["s1_::1", "::1"]);
    }
}

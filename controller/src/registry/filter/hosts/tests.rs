use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use sea_query::{Order, SqliteQueryBuilder};
use serde_json::json;

use super::*;
use crate::auth::User;
use crate::registry::filter::Reach;
use crate::store::core::{Class, CoreDb};
use crate::store::testing::{Place, on_each_engine};

fn term(key: &str, value: &str, quoted: bool) -> HostFilter {
    HostFilter::Term(Term { key: key.to_owned(), value: value.to_owned(), quoted })
}

#[track_caller]
fn check(text: &str, expected: HostFilter) {
    assert_eq!(parse(text), Ok(expected), "{text}");
}

#[track_caller]
fn refused(text: &str) {
    assert!(parse(text).is_err(), "{text} is taken");
}

fn user() -> User {
    User {
        id: 7,
        username: "u".to_owned(),
        first_name: String::new(),
        last_name: String::new(),
        is_superuser: false,
        is_system_auditor: false,
    }
}

#[test]
fn and_binds_more_tightly_than_or() {
    let (a, b, c) = (|| term("a", "1", false), || term("b", "2", false), || term("c", "3", false));
    check("a=1", a());
    check(" a = 1 ", a());
    check("a=1 and b=2 or c=3", HostFilter::Any(vec![HostFilter::All(vec![a(), b()]), c()]));
    check("a=1 and (b=2 or c=3)", HostFilter::All(vec![a(), HostFilter::Any(vec![b(), c()])]));
    check("((a=1))", a());
}

#[test]
fn either_side_may_stand_in_quotes() {
    check(r#"name="a b) and c=d""#, term("name", "a b) and c=d", true));
    check(r#""na me"=x"#, term("na me", "x", false));
    check(r#"name="""#, term("name", "", true));
    check("name=", term("name", "", true));
    check("name=öäü\u{a0}", term("name", "öäü", false));
    check("name=andy", term("name", "andy", false));
}

#[test]
fn what_is_no_filter_is_refused() {
    for text in [
        "",
        "name",
        "=x",
        "name=a b=c",
        "name=a and",
        "and name=a",
        "(name=a",
        "name=a)",
        r#"name="a"#,
        "a=1 AND b=2",
        "()",
    ] {
        refused(text);
    }
    refused(&format!("{}a=1{}", "(".repeat(MAX_BRACKETS + 1), ")".repeat(MAX_BRACKETS + 1)));
    refused(&vec!["a=1"; MAX_TERMS + 1].join(" or "));
    refused(&format!("a={}", "x".repeat(MAX_BYTES)));
}

#[test]
fn secrets_and_strangers_are_out_of_reach() {
    let engine = Engine::Sqlite;
    let user = user();
    let condition = |text: &str, asker| parse(text).unwrap().condition("b", asker);
    for text in ["created_by__password=x", "nosuch=1", "groups__nosuch=1", "nosuch__search=x"] {
        assert!(condition(text, Asker::user(&user, engine)).is_err(), "{text}");
    }
    // A filter that is kept walks within its organization, and only to what hosts have.
    let asker = Asker { reach: Reach::Organization(9), engine };
    let sql = |text: &str| {
        let condition = condition(text, asker).unwrap();
        Query::select().expr(Expr::val(1)).and_where(condition).take().to_string(SqliteQueryBuilder)
    };
    assert!(sql("created_by__username=x").contains("AND FALSE"), "{}", sql("created_by__username=x"));
    let walked = sql("groups__inventory__name=x");
    assert!(walked.contains(r#""organization_id" = 9"#), "{walked}");
    // What a user asks goes no further than what the user sees.
    let asked = Asker::user(&user, engine);
    let condition = parse("groups__name=x").unwrap().condition("b", asked).unwrap();
    let sql = Query::select().expr(Expr::val(1)).and_where(condition).take().to_string(SqliteQueryBuilder);
    assert!(sql.contains("role_users"), "{sql}");
}

/// A host as the model knows it.
#[derive(Debug, Clone)]
struct Model {
    name: &'static str,
    enabled: bool,
    groups: &'static [&'static str],
    facts: Option<Value>,
}

fn hosts() -> Vec<Model> {
    let facts = |os: &str, cpus: i64, disks: Value| json!({"os": os, "cpus": cpus, "up": cpus > 2, "none": null, "disks": disks, "deep": {"er": {"x": cpus}}});
    let host = |name, enabled, groups, facts| Model { name, enabled, groups, facts };
    vec![
        host("web1", true, &["web", "all_linux"], Some(facts("Debian", 2, json!(["sda", "sdb"])))),
        host("web2", true, &["web"], Some(facts("RedHat", 4, json!([])))),
        host("db1", false, &["db", "all_linux"], Some(facts("Debian", 8, json!([{"n": "sda"}, 3, "x"])))),
        host("Db2", true, &["db"], Some(json!({"os": "2", "cpus": "2", "disks": "sda"}))),
        host("plain", true, &[], None),
        host("null", true, &[], Some(json!({"os": "a\u{0}b", "disks": [["sda"]]}))),
    ]
}

/// What a filter means, told without a database.
fn chosen(filter: &HostFilter, host: &Model) -> bool {
    match filter {
        HostFilter::All(parts) => parts.iter().all(|part| chosen(part, host)),
        HostFilter::Any(parts) => parts.iter().any(|part| chosen(part, host)),
        HostFilter::Term(term) => {
            let value = term.value.as_str();
            match term.key.as_str() {
                "name" => host.name == value && (term.quoted || value != "null"),
                "name__startswith" => host.name.starts_with(value),
                "name__icontains" | "search" => host.name.to_lowercase().contains(&value.to_lowercase()),
                "enabled" => host.enabled == (value == "true"),
                "groups__name" => host.groups.contains(&value),
                "groups__search" => host.groups.iter().any(|group| group.contains(value)),
                key => {
                    let path = key.strip_prefix("ansible_facts__").expect("a key of the model");
                    // PostgreSQL's JSON has no NUL, so such facts are found by neither engine.
                    let facts = host.facts.as_ref().filter(|facts| !facts.to_string().contains("\\u0000"));
                    facts.is_some_and(|facts| {
                        contains(facts, &path.split("__").collect::<Vec<_>>(), &term.json())
                    })
                }
            }
        }
    }
}

fn contains(at: &Value, path: &[&str], value: &Value) -> bool {
    let Some((piece, rest)) = path.split_first() else {
        return match (at, value) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (a, b) => a == b,
        };
    };
    match piece.strip_suffix("[]") {
        Some(name) => {
            at[name].as_array().is_some_and(|items| items.iter().any(|item| contains(item, rest, value)))
        }
        None => {
            at.as_object().and_then(|object| object.get(*piece)).is_some_and(|at| contains(at, rest, value))
        }
    }
}

async fn filled(db: &CoreDb) -> i64 {
    let mut tx = db.begin(Class::Bulk).await.unwrap();
    let mut insert = Query::insert();
    insert.into_table("organizations").columns(["name", "created", "modified"]).values_panic([
        "o".into(),
        0.into(),
        0.into(),
    ]);
    let organization = tx.insert(&mut insert).await.unwrap();
    let mut insert = Query::insert();
    insert
        .into_table("inventories")
        .columns(["name", "organization_id", "created", "modified"])
        .values_panic(["i".into(), organization.into(), 0.into(), 0.into()]);
    let inventory = tx.insert(&mut insert).await.unwrap();
    let mut groups = std::collections::BTreeMap::new();
    for host in hosts() {
        let mut insert = Query::insert();
        insert
            .into_table("hosts")
            .columns(["name", "inventory_id", "enabled", "created", "modified"])
            .values_panic([host.name.into(), inventory.into(), host.enabled.into(), 0.into(), 0.into()]);
        let id = tx.insert(&mut insert).await.unwrap();
        for group in host.groups {
            let group_id = match groups.get(group) {
                Some(id) => *id,
                None => {
                    let mut insert = Query::insert();
                    insert
                        .into_table("groups")
                        .columns(["name", "inventory_id", "created", "modified"])
                        .values_panic([(*group).into(), inventory.into(), 0.into(), 0.into()]);
                    let id = tx.insert(&mut insert).await.unwrap();
                    groups.insert(*group, id);
                    id
                }
            };
            let mut insert = Query::insert();
            insert
                .into_table("group_hosts")
                .columns(["group_id", "host_id"])
                .values_panic([group_id.into(), id.into()]);
            tx.execute(&insert).await.unwrap();
        }
        if let Some(facts) = host.facts {
            let mut insert = Query::insert();
            insert.into_table("host_facts").columns(["id", "facts", "modified"]).values_panic([
                id.into(),
                facts.to_string().into(),
                0.into(),
            ]);
            tx.execute(&insert).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
    organization
}

async fn found(db: &CoreDb, filter: &HostFilter, organization: i64) -> Vec<String> {
    let asker = Asker { reach: Reach::Organization(organization), engine: db.engine() };
    let mut query = Query::select();
    query.column(("b", "name")).from_as("hosts", "b").and_where(filter.condition("b", asker).unwrap());
    query.order_by(("b", "id"), Order::Asc);
    let rows = db.all(&query).await.unwrap_or_else(|error| panic!("{filter:?}: {error:?}"));
    rows.iter().map(|row| row.at(0).unwrap()).collect()
}

fn terms() -> impl Strategy<Value = HostFilter> {
    let key = prop::sample::select(vec![
        "name",
        "name__startswith",
        "name__icontains",
        "search",
        "groups__name",
        "groups__search",
        "ansible_facts__os",
        "ansible_facts__cpus",
        "ansible_facts__up",
        "ansible_facts__none",
        "ansible_facts__disks[]",
        "ansible_facts__disks[]__n",
        "ansible_facts__deep__er__x",
        "ansible_facts__nosuch__er",
    ]);
    let value = prop::sample::select(vec![
        "web", "web1", "db", "db1", "null", "sda", "Debian", "2", "8", "2.0", "true", "3",
    ]);
    let enabled =
        prop::bool::ANY.prop_map(|flag| term("enabled", if flag { "true" } else { "false" }, false));
    prop_oneof![
        8 => (key, value, prop::bool::ANY).prop_map(|(key, value, quoted)| term(key, value, quoted)),
        1 => enabled,
    ]
}

fn filters() -> impl Strategy<Value = HostFilter> {
    terms().prop_recursive(3, 12, 3, |inner| {
        let parts = prop::collection::vec(inner, 2..4);
        (parts, prop::bool::ANY)
            .prop_map(|(parts, all)| if all { HostFilter::All(parts) } else { HostFilter::Any(parts) })
    })
}

fn written(filter: &HostFilter) -> String {
    match filter {
        HostFilter::Term(term) if term.quoted => format!("{}=\"{}\"", term.key, term.value),
        HostFilter::Term(term) => format!("{} = {}", term.key, term.value),
        HostFilter::All(parts) => {
            parts.iter().map(|part| format!("({})", written(part))).collect::<Vec<_>>().join(" and ")
        }
        HostFilter::Any(parts) => {
            parts.iter().map(|part| format!("({})", written(part))).collect::<Vec<_>>().join("or")
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(filter in filters()) {
        prop_assert_eq!(parse(&written(&filter)), Ok(filter));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[a-z_=\"()\\[\\] \u{e9}]{0,60}") {
        if let Ok(filter) = parse(&text) {
            let user = user();
            let _ = filter.condition("b", Asker::user(&user, Engine::Sqlite));
        }
    }
}

async fn hosts_are_those_of_the_model(place: Place) {
    let db = place.core().await;
    let organization = filled(&db).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut sorts = [0, 0];
    for _ in 0..150 {
        let filter = filters().new_tree(&mut runner).unwrap().current();
        let expected: Vec<&str> =
            hosts().iter().filter(|host| chosen(&filter, host)).map(|host| host.name).collect();
        sorts[usize::from(expected.is_empty())] += 1;
        assert_eq!(found(&db, &filter, organization).await, expected, "{}", written(&filter));
    }
    assert!(sorts.iter().all(|&seen| seen > 20), "filters that find and that do not: {sorts:?}");
}

async fn another_organization_has_none_of_them(place: Place) {
    let db = place.core().await;
    let organization = filled(&db).await;
    let filter = parse("groups__name=web").unwrap();
    assert_eq!(found(&db, &filter, organization).await, ["web1", "web2"]);
    assert!(found(&db, &filter, organization + 1).await.is_empty());
}

on_each_engine! {
    hosts_are_those_of_the_model,
    another_organization_has_none_of_them,
}

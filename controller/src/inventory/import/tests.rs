use serde_json::json;

use super::*;
use crate::inventory::document::{Reading, read};
use crate::store::testing::{Place, on_each_engine};

async fn insert(core: &CoreDb, table: &'static str, cells: &[(&'static str, sea_query::Value)]) -> i64 {
    let mut tx = core.begin(Class::Intent).await.unwrap();
    let mut insert = Query::insert();
    let mut columns = vec!["created", "modified"];
    let mut values: Vec<SimpleExpr> = vec![0.into(), 0.into()];
    for (column, value) in cells {
        columns.push(column);
        values.push(Expr::val(value.clone()));
    }
    insert.into_table(table).columns(columns).values_panic(values);
    let id = tx.insert(&mut insert).await.unwrap();
    tx.commit().await.unwrap();
    id
}

/// An inventory and a source of it.
async fn inventory(core: &CoreDb) -> (i64, i64) {
    let organization = insert(core, "organizations", &[("name", "o".into())]).await;
    let cells = [("name", "i".into()), ("organization_id", organization.into())];
    let inventory = insert(core, "inventories", &cells).await;
    let cells = [("name", "s".into()), ("kind", "inventory_source".into())];
    let source = insert(core, "unified_job_templates", &cells).await;
    let mut tx = core.begin(Class::Intent).await.unwrap();
    let mut row = Query::insert();
    row.into_table("inventory_sources").columns(["id", "inventory_id"]);
    row.values_panic([source.into(), inventory.into()]);
    tx.execute(&row).await.unwrap();
    tx.commit().await.unwrap();
    (inventory, source)
}

fn document(hosts: usize, groups: usize) -> Document {
    let names: Vec<String> = (0..hosts).map(|number| format!("host{number:05}")).collect();
    let hostvars: serde_json::Map<_, _> =
        names.iter().map(|name| (name.clone(), json!({"ansible_host": name, "n": name.len()}))).collect();
    let mut text = json!({"_meta": {"hostvars": hostvars}, "all": {"vars": {"a": 1}}});
    for group in 0..groups {
        let members: Vec<&String> = names.iter().skip(group).step_by(groups).collect();
        let children = if group > 0 { vec![format!("group{}", group - 1)] } else { Vec::new() };
        text[format!("group{group}")] = json!({"hosts": members, "children": children, "vars": {"g": group}});
    }
    read(text.to_string().as_bytes(), &Reading::default()).unwrap()
}

async fn count(core: &CoreDb, table: &'static str) -> i64 {
    let mut query = Query::select();
    query.expr(sea_query::Func::count(Expr::col(sea_query::Asterisk))).from(table);
    core.optional(&query).await.unwrap().unwrap().at(0).unwrap()
}

async fn whole(core: &CoreDb, inventory: i64, source: i64) -> (Vec<String>, usize, usize, bool) {
    let stored = stored(core, inventory, Some(source)).await.unwrap();
    let ours = stored.hosts.iter().all(|host| host.ours) && stored.groups.iter().all(|group| group.ours);
    let mut names: Vec<String> = stored.hosts.into_iter().map(|host| host.name).collect();
    names.sort_unstable();
    (names, stored.members.len(), stored.children.len(), ours)
}

const OVER: Policy = Policy { overwrite: true, overwrite_vars: true };

async fn a_source_comes_in_and_goes(place: Place) {
    let core = place.core().await;
    let (inventory, source) = inventory(&core).await;
    let done = import(&core, inventory, Some(source), document(950, 7), OVER).await.unwrap();
    assert_eq!((done.hosts, done.groups, done.changed), (950, 7, [950, 0, 0]));
    let (names, members, children, ours) = whole(&core, inventory, source).await;
    assert_eq!((names.len(), members, children, ours), (950, 950, 6, true));
    let again = import(&core, inventory, Some(source), document(950, 7), OVER).await.unwrap();
    assert_eq!(again.changed, [0, 0, 0]);
    let fewer = import(&core, inventory, Some(source), document(300, 2), OVER).await.unwrap();
    assert_eq!(fewer.changed, [0, 0, 650]);
    let (names, members, children, ours) = whole(&core, inventory, source).await;
    assert_eq!((names.len(), members, children, ours), (300, 300, 1, true));
    assert_eq!(count(&core, "inventory_source_hosts").await, 300);
}

async fn an_import_that_broke_off_leaves_nothing_that_is_nobodys(place: Place) {
    let core = place.core().await;
    let (inventory, source) = inventory(&core).await;
    import(&core, inventory, Some(source), document(600, 3), OVER).await.unwrap();
    // Broken off while it makes groups, makes hosts, and joins them: those that stay are there.
    let tables = ["groups", "hosts", "group_hosts"];
    for (table, hosts) in tables.into_iter().zip([1_500, 3_000, 4_500]) {
        let before = count(&core, table).await;
        let broken = tokio::spawn({
            let core = core.clone();
            async move { import(&core, inventory, Some(source), document(hosts, 3 + hosts / 100), OVER).await }
        });
        while count(&core, table).await == before {}
        broken.abort();
        let ended_whole = broken.await.is_ok();
        let (names, .., ours) = whole(&core, inventory, source).await;
        assert!(names.len() >= 600 && ours, "{table}: {}, {ours}, {ended_whole}", names.len());
    }
    // What the source does not name any more goes with the next one. A commit under way when it broke off comes first.
    let mut tx = core.begin(Class::Intent).await.unwrap();
    tx.set_setting("after", "it").await.unwrap();
    tx.commit().await.unwrap();
    import(&core, inventory, Some(source), document(500, 2), OVER).await.unwrap();
    let (names, members, children, ours) = whole(&core, inventory, source).await;
    assert_eq!((names.len(), members, children, ours), (500, 500, 1, true));
}

async fn others_write_in_between(place: Place) {
    let core = place.core().await;
    let (inventory, source) = inventory(&core).await;
    let importing = tokio::spawn({
        let core = core.clone();
        async move { import(&core, inventory, Some(source), document(8_000, 20), OVER).await }
    });
    let mut between = 0;
    while !importing.is_finished() {
        let mut tx = core.begin(Class::Intent).await.unwrap();
        tx.set_setting("between", &between.to_string()).await.unwrap();
        tx.commit().await.unwrap();
        let hosts = count(&core, "hosts").await;
        between += i32::from(hosts > 0 && hosts < 8_000);
    }
    importing.await.unwrap().unwrap();
    assert!(between > 1, "the import was one transaction");
}

async fn names_are_traded_at_once(place: Place) {
    let core = place.core().await;
    let (inventory, source) = inventory(&core).await;
    let reading = Reading { instance_id_var: "id".to_owned(), ..Reading::default() };
    let document = |a: &str, b: &str| {
        let text = json!({"_meta": {"hostvars": {a: {"id": "1"}, b: {"id": "2"}}}, "g": [a, b]});
        read(text.to_string().as_bytes(), &reading).unwrap()
    };
    import(&core, inventory, Some(source), document("a", "b"), OVER).await.unwrap();
    let before = stored(&core, inventory, Some(source)).await.unwrap().hosts;
    let done = import(&core, inventory, Some(source), document("b", "a"), OVER).await.unwrap();
    assert_eq!(done.changed, [0, 2, 0]);
    let after = stored(&core, inventory, Some(source)).await.unwrap().hosts;
    let named = |hosts: &[StoredHost], id: &str| {
        hosts.iter().find(|host| host.instance_id == id).map(|host| (host.id, host.name.clone())).unwrap()
    };
    for id in ["1", "2"] {
        assert_eq!(named(&before, id).0, named(&after, id).0);
        assert_ne!(named(&before, id).1, named(&after, id).1);
    }
}

on_each_engine! {
    a_source_comes_in_and_goes,
    an_import_that_broke_off_leaves_nothing_that_is_nobodys,
    others_write_in_between,
    names_are_traded_at_once,
}

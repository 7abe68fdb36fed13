//! Facts of hosts, from the files that a job brings back to whoever asks.

use std::collections::BTreeMap;

use sea_query::{Expr, ExprTrait, Query};

use super::events::launched;
use super::*;
use crate::facts::{self, Change};
use crate::ingest::testing::{Spool, captured};
use crate::outcome;
use crate::store::core::Class;
use crate::store::units;

#[tokio::test]
async fn facts_that_a_job_gathered_are_kept_shown_and_sent_with_the_next() {
    let api = Api::new().await;
    let (key, attempt, mut session) = launched(&api).await;
    let inventory = api.get(&format!("/api/v2/jobs/{}/", key.id)).await.json["inventory"].as_i64().unwrap();
    let host = api.make("hosts", json!({"name": "web1", "inventory": inventory})).await;
    let other = api.make("inventories", json!({"name": "other", "organization": 1})).await;
    let namesake = api.make("hosts", json!({"name": "web2", "inventory": other})).await;
    let at = |host: i64| format!("/api/v2/hosts/{host}/ansible_facts/");
    assert_eq!(api.get(&at(host)).await.json, json!({}));

    let mut keeps = Query::update();
    keeps.table("unified_jobs").value("use_fact_cache", true).and_where(Expr::col("id").eq(key.id));
    let mut tx = api.app.db.begin(Class::Intent).await.unwrap();
    tx.execute(keeps).await.unwrap();
    tx.commit().await.unwrap();
    for record in Spool::whole(attempt, &captured("fact-cache"), 4096) {
        session.push(record).await.unwrap();
    }
    let result = session.result().await.unwrap();
    assert_eq!(result.facts.keys().collect::<Vec<_>>(), ["web1", "web2"]);
    units::finish(&api.app.db, key.id, &outcome::of(&result, false)).await.unwrap();

    let shown = api.get(&at(host)).await;
    assert_eq!(
        (shown.status, &shown.json["ansible_python"]["version"]["major"]),
        (StatusCode::OK, &json!(3))
    );
    assert_eq!(api.get(&format!("/api/v2/hosts/{host}/")).await.json["related"]["ansible_facts"], at(host));
    assert_eq!(api.get(&at(namesake)).await.json, json!({}), "a host of another inventory is another host");
    let eve = api.ordinary("eve").await;
    assert_eq!(api.by(&eve, "GET", &at(host), json!(null)).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.post(&at(host), json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);

    let known = facts::of_inventory(&api.app.db, inventory).await.unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&known["web1"]).unwrap(), shown.json);
    let cleared = BTreeMap::from([("web1".to_owned(), Change::Cleared)]);
    facts::keep(&api.app.db, inventory, &cleared).await.unwrap();
    assert_eq!(api.get(&at(host)).await.json, json!({}));
}

#[tokio::test]
async fn facts_with_a_secret_of_the_job_are_not_kept() {
    let api = Api::new().await;
    let (_, attempt, mut session) = events::launched_with(&api, vec!["releaselevel".to_owned()]).await;
    for record in Spool::whole(attempt, &captured("fact-cache"), 4096) {
        session.push(record).await.unwrap();
    }
    assert_eq!(session.result().await.unwrap().facts, BTreeMap::new());
}

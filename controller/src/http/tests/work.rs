//! Giving up what does not come back.

use plexus_proto::id::{Attempt, StoreId, UnitId};

use super::*;
use crate::store::units::{self, Placement, UnitState};

#[tokio::test]
async fn an_abandoned_job_is_over_its_unit_fenced_and_its_node_still_to_be_told() {
    let api = Api::new().await;
    let db = &api.app.db;
    api.make("execution_environments", json!({"name": "e", "image": "localhost/ee:1"})).await;
    let template = api.template("web").await;
    let launched = api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await;
    let job = launched.json["id"].as_i64().unwrap();
    let path = format!("/api/plexus/v1/work/{job}/abandon/");
    assert_eq!(api.post(&path, json!({})).await.status, StatusCode::CONFLICT, "no node has it yet");

    let attempt = Attempt { unit: UnitId(Uuid::from_u128(7)), number: 1 };
    let store = StoreId(Uuid::from_u128(9));
    let placement = Placement { job, attempt, node: "node-1".parse().unwrap(), group: None, store };
    let (placed, _) = units::place(db, &[placement], &"controller-1".parse().unwrap()).await.unwrap();
    assert_eq!(placed, [job]);
    let before = units::take(db, attempt).await.unwrap();
    let eve = api.ordinary("eve").await;
    let refused = api.by(&eve, "POST", &path, json!({})).await;
    assert!(refused.status.is_client_error(), "{}", refused.text);

    assert_eq!(api.post(&path, json!({})).await.status, StatusCode::ACCEPTED);
    let over = api.get(&format!("/api/v2/jobs/{job}/")).await.json;
    let words = over["job_explanation"].as_str().unwrap();
    assert!(words.contains("by admin") && words.contains("node-1"), "{words}");
    assert_eq!((&over["status"], &over["event_processing_finished"]), (&json!("error"), &json!(true)));
    assert_eq!(api.post(&path, json!({})).await.status, StatusCode::CONFLICT);
    let after = units::take(db, attempt).await.unwrap();
    assert_eq!(after.counter, before.counter + 2, "abandoning took the unit over");
    // A driver that noticed too late says what it knew; the unit stays given up.
    units::started(db, job, attempt).await.unwrap();
    let left = units::unforgotten(db).await.unwrap();
    assert_eq!((left.len(), left[0].0.state), (1, UnitState::Abandoned));
}

#[tokio::test]
async fn a_restored_database_goes_above_each_life_it_had() {
    let api = Api::new().await;
    let db = &api.app.db;
    let first = units::recovered(db, 0).await.unwrap();
    assert!(first > 1);
    // The same backup once more, in which the first restoration is not known.
    let mut tx = db.begin(crate::store::core::Class::Intent).await.unwrap();
    tx.set_setting("incarnation", "1").await.unwrap();
    tx.commit().await.unwrap();
    let second = units::recovered(db, first).await.unwrap();
    assert!(second > first, "{second} after {first}");
}

//! Giving up what does not come back.

use plexus_proto::id::{Attempt, StoreId, UnitId};

use super::*;
use crate::store::strays::{self, Stray};
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
    let me = "controller-1".parse().unwrap();
    let (placed, _, committed) = units::place(db, &[placement], &me).await.unwrap();
    committed.settle().await.unwrap();
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
async fn a_job_that_its_node_did_not_take_is_placed_again_under_another_name() {
    let api = Api::new().await;
    let db = &api.app.db;
    api.make("execution_environments", json!({"name": "e", "image": "localhost/ee:1"})).await;
    let template = api.template("web").await;
    let launched = api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await;
    let job = launched.json["id"].as_i64().unwrap();
    let me = "controller-1".parse().unwrap();
    let placement = |id, node: &str| Placement {
        job,
        attempt: Attempt { unit: UnitId(Uuid::from_u128(id)), number: 1 },
        node: node.parse().unwrap(),
        group: None,
        store: StoreId(Uuid::from_u128(9)),
    };
    let first = placement(7, "node-1");
    let unit = (first.attempt, job);
    let (_, epoch, committed) = units::place(db, std::slice::from_ref(&first), &me).await.unwrap();
    committed.settle().await.unwrap();
    assert!(units::unplace(db, unit, epoch, "waiting: node-1 is cordoned").await.unwrap());
    let shown = api.get(&format!("/api/v2/jobs/{job}/")).await.json;
    let shown = ["status", "job_explanation", "execution_node", "controller_node"].map(|key| &shown[key]);
    assert_eq!(shown, [&json!("pending"), &json!("waiting: node-1 is cordoned"), &json!(""), &json!("")]);
    assert!(units::active_jobs(db).await.unwrap()[0].unit.is_none());
    assert!(!units::unplace(db, unit, epoch, "again").await.unwrap(), "its name is gone");

    // Who has lost the unit to another owner, or has started it, takes nothing back.
    let second = placement(8, "node-2");
    let unit = (second.attempt, job);
    let (placed, epoch, committed) = units::place(db, &[second], &me).await.unwrap();
    committed.settle().await.unwrap();
    assert_eq!(placed, [job]);
    let later = units::take(db, unit.0).await.unwrap();
    assert!(!units::unplace(db, unit, epoch, "").await.unwrap());
    units::started(db, job, unit.0).await.unwrap();
    assert!(!units::unplace(db, unit, later, "").await.unwrap());
    let active = units::active_jobs(db).await.unwrap();
    let state = active[0].unit.as_ref().unwrap().state;
    assert_eq!((active[0].status.as_str(), state), ("running", UnitState::Started));
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

#[tokio::test]
async fn a_stray_unit_is_listed_and_becomes_a_job_only_when_an_operator_says_so() {
    let api = Api::new().await;
    let db = &api.app.db;
    let node: plexus_proto::id::NodeId = "node-1".parse().unwrap();
    let stray = |id, state: &str| Stray {
        attempt: Attempt { unit: UnitId(Uuid::from_u128(id)), number: 1 },
        node: node.clone(),
        store: StoreId(Uuid::from_u128(9)),
        label: format!("job {id}"),
        state: state.to_owned(),
        records: 3,
        counter: 5,
    };
    let found = [stray(1, "running"), stray(2, "pending"), stray(3, "finished")];
    strays::record(db, &node, &found).await.unwrap();
    assert_eq!(strays::all(db).await.unwrap(), found);
    let list = api.get("/api/plexus/v1/work/stray/").await.json;
    assert_eq!((&list["count"], &list["results"][0]["label"]), (&json!(3), &json!("job 1")));
    let path = |id: u128, verb: &str| format!("/api/plexus/v1/work/stray/{}/{verb}/", Uuid::from_u128(id));
    let eve = api.ordinary("eve").await;
    assert_eq!(
        api.by(&eve, "GET", "/api/plexus/v1/work/stray/", json!({})).await.status,
        StatusCode::FORBIDDEN
    );
    assert_eq!(api.by(&eve, "POST", &path(1, "discard"), json!({})).await.status, StatusCode::FORBIDDEN);
    assert_eq!(
        api.post(&path(2, "adopt"), json!({})).await.status,
        StatusCode::CONFLICT,
        "nothing to run is known"
    );
    assert_eq!(api.post(&path(7, "adopt"), json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.post("/api/plexus/v1/work/stray/x/adopt/", json!({})).await.status, StatusCode::NOT_FOUND);
    assert!(units::active_jobs(db).await.unwrap().is_empty(), "nothing happens by itself");

    let adopted = api.post(&path(1, "adopt"), json!({})).await;
    assert_eq!(adopted.status, StatusCode::ACCEPTED, "{}", adopted.text);
    let job = adopted.json["id"].as_i64().unwrap();
    let active = units::active_jobs(db).await.unwrap();
    let unit = active[0].unit.as_ref().unwrap();
    assert_eq!((active.len(), unit.job, unit.state), (1, job, UnitState::Started));
    assert_eq!(unit.attempt, found[0].attempt);
    assert_eq!(units::take(db, unit.attempt).await.unwrap().counter, 6, "above all that acted on it");
    let shown = api.get(&format!("/api/v2/jobs/{job}/")).await.json;
    assert_eq!((&shown["status"], &shown["name"]), (&json!("running"), &json!("job 1")));
    assert!(shown["job_explanation"].as_str().unwrap().contains("adopted by admin"), "{shown}");
    assert_eq!(api.post(&path(1, "discard"), json!({})).await.status, StatusCode::NOT_FOUND, "it is decided");

    for id in [2, 3] {
        let discarded = api.post(&path(id, "discard"), json!({})).await;
        let shown = api.get(&format!("/api/v2/jobs/{}/", discarded.json["id"])).await.json;
        assert_eq!(shown["status"], "error");
    }
    let left = units::unforgotten(db).await.unwrap();
    assert_eq!(left.iter().filter(|(unit, _)| unit.state == UnitState::Abandoned).count(), 2);
    // What the node still shows of them is no stray any more.
    let ids: Vec<Uuid> = found.iter().map(|stray| stray.attempt.unit.0).collect();
    assert_eq!(strays::known(db, &ids).await.unwrap().len(), 3);
    assert_eq!(api.get("/api/plexus/v1/work/stray/").await.json["count"], 0);
}

//! Instance groups: membership by policy and by hand, the lists that use them, and what the planner says.

use sea_query::Query;

use super::*;
use crate::store::core::Class;
use crate::store::groups;

/// A node that the mesh has shown.
async fn node(api: &Api, name: &str, capacity: i64) -> i64 {
    let mut tx = api.app.db.begin(Class::Bulk).await.unwrap();
    let mut insert = Query::insert();
    insert.into_table("instances");
    insert.columns(["hostname", "node_type", "node_state", "capacity", "created", "modified"]);
    insert.values_panic([
        name.into(),
        "execution".into(),
        "ready".into(),
        capacity.into(),
        1.into(),
        1.into(),
    ]);
    let id = tx.insert(&mut insert).await.unwrap();
    groups::apply_policies(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    id
}

async fn names(api: &Api, path: &str) -> Vec<String> {
    let list = api.get(path).await;
    assert_eq!(list.status, 200, "{path}: {}", list.text);
    let of = |object: &serde_json::Value| {
        object["hostname"].as_str().or(object["name"].as_str()).unwrap().to_owned()
    };
    list.json["results"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test]
async fn a_node_shows_its_free_disk_and_its_images_once_it_has_told_them() {
    use crate::fleet::{LiveNode, Nodes};
    use crate::store::instances::Info;

    let mut api = Api::new().await;
    let path = format!("/api/v2/instances/{}/", node(&api, "node-1", 8).await);
    let shown = api.get(&path).await.json;
    assert_eq!((&shown["free_disk"], &shown["images"]), (&json!(null), &json!([])));
    let info = Info {
        store: plexus_proto::id::StoreId(uuid::Uuid::from_u128(1)),
        cpu_millis: 4000,
        memory: 1 << 30,
        free_disk: 5 << 30,
        images: ["quay.io/ansible/awx-ee:24".to_owned()].into(),
        cordoned: None,
        heard: jiff::Timestamp::UNIX_EPOCH,
    };
    let live = LiveNode::new(true, Some(info));
    let nodes = Nodes::from([("node-1".parse().unwrap(), live)]);
    api.app.nodes = tokio::sync::watch::channel(std::sync::Arc::new(nodes)).1;
    api.router = crate::http::router(api.app.clone());
    let shown = api.get(&path).await.json;
    let told = (&shown["free_disk"], &shown["images"]);
    assert_eq!(told, (&json!(5_i64 << 30), &json!(["quay.io/ansible/awx-ee:24"])));
    let refused = api.call("PATCH", &path, json!({"images": [], "free_disk": 1})).await;
    assert_eq!(refused.json["free_disk"], json!(5_i64 << 30), "{}", refused.text);
    let list = api.get("/api/v2/instances/").await.json;
    assert!(
        list["results"][0].get("images").is_none(),
        "one node's page says it, a list of a thousand does not"
    );
}

#[tokio::test]
async fn nodes_come_into_groups_by_policy_and_by_hand() {
    let api = Api::new().await;
    let (one, _) = (node(&api, "node-1", 8).await, node(&api, "node-2", 8).await);
    let default = api.get("/api/v2/instance_groups/?name=default").await.json["results"][0].clone();
    assert_eq!((&default["instances"], &default["policy_instance_percentage"]), (&json!(2), &json!(100)));
    let half = api.make("instance_groups", json!({"name": "half", "policy_instance_percentage": 50})).await;
    assert_eq!(names(&api, &format!("/api/v2/instance_groups/{half}/instances/")).await.len(), 1);
    let none = api.make("instance_groups", json!({"name": "by hand"})).await;
    let url = format!("/api/v2/instance_groups/{none}/");
    assert!(names(&api, &format!("{url}instances/")).await.is_empty());
    assert_eq!(api.post(&format!("{url}instances/"), json!({"id": one})).await.status, 204);
    assert_eq!(names(&api, &format!("{url}instances/")).await, ["node-1"]);
    assert_eq!(api.get(&url).await.json["policy_instance_list"], json!(["node-1"]));
    // A third node changes nothing of what was done by hand.
    node(&api, "node-3", 8).await;
    assert_eq!(names(&api, &format!("{url}instances/")).await, ["node-1"]);
    api.post(&format!("{url}instances/"), json!({"id": one, "disassociate": true})).await;
    assert!(names(&api, &format!("{url}instances/")).await.is_empty());
    api.call("PATCH", &url, json!({"policy_instance_minimum": 2})).await;
    assert_eq!(names(&api, &format!("{url}instances/")).await.len(), 2);
    assert_eq!(api.call("DELETE", &url, json!(null)).await.status, 204);

    let fixed = format!("/api/v2/instance_groups/{}/", default["id"]);
    assert_eq!(api.call("PATCH", &fixed, json!({"name": "other"})).await.status, 400);
    assert_eq!(api.call("DELETE", &fixed, json!(null)).await.status, 403);
    let container =
        api.post("/api/v2/instance_groups/", json!({"name": "c", "is_container_group": true})).await;
    assert!(container.status == 400 && container.json["is_container_group"].is_array(), "{}", container.text);
    let wrong =
        api.post("/api/v2/instance_groups/", json!({"name": "c", "policy_instance_percentage": 101})).await;
    assert_eq!(wrong.status, 400);
    let ada = api.ordinary("ada").await;
    assert_eq!(api.by(&ada, "POST", "/api/v2/instance_groups/", json!({"name": "x"})).await.status, 403);
    assert_eq!(api.by(&ada, "GET", &fixed, json!(null)).await.status, 404);
}

#[tokio::test]
async fn lists_of_groups_keep_their_order_and_the_plan_follows_them() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let plan = api.get(&format!("{url}plan/")).await;
    assert_eq!(plan.json["why"], "waiting: no execution node has joined yet", "{}", plan.text);
    node(&api, "node-1", 8).await;
    let far = node(&api, "node-2", 40).await;
    let plan = api.get(&format!("{url}plan/")).await.json;
    assert_eq!(
        (&plan["execution_node"], &plan["instance_groups"][0]["name"]),
        (&json!("node-2"), &json!("default"))
    );
    assert_eq!((&plan["impact"], &plan["playbook"]), (&json!(2), &json!("site.yml")));

    let mut groups = Vec::new();
    for (name, nodes, jobs) in
        [("empty", json!([]), 0), ("near", json!(["node-1"]), 1), ("far", json!(["node-2"]), 0)]
    {
        let body = json!({"name": name, "policy_instance_list": nodes, "max_concurrent_jobs": jobs});
        groups.push(api.make("instance_groups", body).await);
    }
    // The order of the list, not of the ids.
    for group in [groups[2], groups[0], groups[1]] {
        assert_eq!(api.post(&format!("{url}instance_groups/"), json!({"id": group})).await.status, 204);
    }
    assert_eq!(names(&api, &format!("{url}instance_groups/")).await, ["far", "empty", "near"]);
    let by_name = names(&api, &format!("{url}instance_groups/?order_by=name")).await;
    assert_eq!(by_name, ["empty", "far", "near"]);
    let plan = api.get(&format!("{url}plan/")).await.json;
    assert_eq!((&plan["execution_node"], &plan["instance_group"]), (&json!("node-2"), &json!(groups[2])));
    assert_eq!(api.get(&format!("{url}launch/")).await.json["defaults"]["instance_groups"][0]["name"], "far");
    // Cordoned: the next group of the list takes over.
    api.call("PATCH", &format!("/api/v2/instances/{far}/"), json!({"enabled": false})).await;
    let plan = api.get(&format!("{url}plan/")).await.json;
    assert_eq!(plan["execution_node"], "node-1", "{plan}");
    // A waiting job of the same template is in the way unless the template allows both.
    let job = api.post(&format!("{url}launch/"), json!({})).await.json["job"].as_i64().unwrap();
    let plan = api.get(&format!("{url}plan/")).await.json;
    let words = plan["why"].as_str().unwrap();
    assert!(
        plan["execution_node"].is_null() && words.contains("another job of the same template comes first"),
        "{plan}"
    );
    let why = api.get(&format!("/api/v2/jobs/{job}/why/")).await.json;
    assert_eq!(
        (&why["status"], &why["why"]),
        (
            &json!("pending"),
            &json!("waiting: it is placed next, after the jobs that were launched before it")
        )
    );
    api.call("PATCH", &url, json!({"allow_simultaneous": true})).await;
    assert_eq!(api.get(&format!("{url}plan/")).await.json["execution_node"], "node-1");
    // Inventory and organization have lists of their own.
    for path in ["inventories/1", "organizations/1"] {
        let reply = api.post(&format!("/api/v2/{path}/instance_groups/"), json!({"id": groups[1]})).await;
        assert_eq!(reply.status, 204, "{path}: {}", reply.text);
    }
    // Chosen at launch, if the template asks: kept in order, and by what is started again.
    api.call("PATCH", &url, json!({"ask_instance_groups_on_launch": true})).await;
    let body = json!({"instance_groups": [groups[1], groups[0]]});
    let job = api.post(&format!("{url}launch/"), body).await;
    assert_eq!(job.status, 201, "{}", job.text);
    let lists = groups::Lists::read(&api.app.db).await.unwrap();
    let wanted = lists.wanted(job.json["job"].as_i64(), Some(template), None, None);
    assert_eq!(wanted.groups(None), [groups[1], groups[0]]);
    let wrong = api.post(&format!("{url}launch/"), json!({"instance_groups": [999]})).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text);
    // Who may not use a group puts nothing into it.
    let ada = api.ordinary("ada").await;
    let number = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    let role = api.get(&url).await.json["summary_fields"]["object_roles"]["admin_role"]["id"].clone();
    api.post(&format!("/api/v2/users/{number}/roles/"), json!({"id": role})).await;
    let reply = api.by(&ada, "POST", &format!("{url}instance_groups/"), json!({"id": groups[0]})).await;
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(reply.text.contains("does not exist"));
}

//! Copies, many at once, and the same thing only once.

use super::*;

#[tokio::test]
async fn a_template_is_copied_with_survey_labels_and_credentials() {
    let api = Api::new().await;
    let template = api.template("first").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let body =
        json!({"name": "m", "organization": 1, "credential_type": 1, "inputs": {"password": "geheim"}});
    let credential = api.make("credentials", body).await;
    api.post(&format!("{url}credentials/"), json!({"id": credential})).await;
    api.post(&format!("{url}labels/"), json!({"name": "night", "organization": 1})).await;
    let question = json!({"type": "password", "question_name": "q", "variable": "secret", "required": false,
        "default": "survey-secret"});
    api.post(&format!("{url}survey_spec/"), json!({"name": "", "description": "", "spec": [question]})).await;
    api.call("PATCH", &url, json!({"survey_enabled": true, "limit": "web", "forks": 7})).await;
    assert_eq!(api.get(&format!("{url}copy/")).await.json["can_copy"], true);
    assert_eq!(api.post(&format!("{url}copy/"), json!({})).await.status, 400);
    let copy = api.post(&format!("{url}copy/"), json!({"name": "second"})).await;
    assert_eq!(copy.status, 201, "{}", copy.text);
    assert_eq!((&copy.json["limit"], &copy.json["forks"]), (&json!("web"), &json!(7)));
    assert_eq!(copy.json["summary_fields"]["labels"]["results"][0]["name"], "night");
    assert_eq!(copy.json["summary_fields"]["credentials"][0]["name"], "m");
    let spec = api.get(&format!("{}survey_spec/", copy.json["url"].as_str().unwrap())).await;
    assert_eq!(spec.json["spec"][0]["default"], "$encrypted$", "{}", spec.text);
    let job = api.post(&format!("{}launch/", copy.json["url"].as_str().unwrap()), json!({})).await;
    assert_eq!(job.status, 201, "{}", job.text);
    let job = job.json["job"].as_i64().unwrap();
    let answers = crate::job::survey_passwords(&api.app.db, &api.app.vault, job).await.unwrap();
    assert_eq!(answers["secret"].expose(), "survey-secret");
    // The name is taken now.
    let again = api.post(&format!("{url}copy/"), json!({"name": "second"})).await;
    assert!(again.status == 400 && again.text.contains("already exists"), "{}", again.text);
}

#[tokio::test]
async fn an_inventory_is_copied_with_hosts_and_groups_and_a_credential_with_its_secrets() {
    let api = Api::new().await;
    let inventory =
        api.make("inventories", json!({"name": "i", "organization": 1, "variables": "a: 1"})).await;
    for host in ["h1", "h2"] {
        api.make("hosts", json!({"name": host, "inventory": inventory, "variables": "{\"n\": 1}"})).await;
    }
    let parent = api.make("groups", json!({"name": "parent", "inventory": inventory})).await;
    let child = api.make("groups", json!({"name": "child", "inventory": inventory})).await;
    api.post(&format!("/api/v2/groups/{parent}/children/"), json!({"id": child})).await;
    api.post(&format!("/api/v2/groups/{child}/hosts/"), json!({"id": 2})).await;
    let copy = api.post(&format!("/api/v2/inventories/{inventory}/copy/"), json!({"name": "j"})).await;
    assert_eq!(copy.status, 201, "{}", copy.text);
    let script = async |id: &serde_json::Value| {
        api.get(&format!("/api/v2/inventories/{id}/script/?hostvars=1")).await.json
    };
    assert_eq!(script(&copy.json["id"]).await, script(&json!(inventory)).await);
    assert_eq!(copy.json["total_hosts"], 2);

    let body = json!({"name": "c", "organization": 1, "credential_type": 1, "inputs": {"username": "u", "password": "geheim"}});
    let credential = api.make("credentials", body).await;
    let copy = api.post(&format!("/api/v2/credentials/{credential}/copy/"), json!({"name": "d"})).await;
    assert_eq!(copy.json["inputs"], json!({"username": "u", "password": "$encrypted$"}), "{}", copy.text);
    let template = api.template("t").await;
    api.post(&format!("/api/v2/job_templates/{template}/credentials/"), json!({"id": copy.json["id"]})).await;
    let job =
        api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await.json["job"].as_i64();
    let opened = crate::job::credentials(&api.app.db, &api.app.vault, job.unwrap()).await.unwrap();
    assert_eq!(opened[0].inputs["password"].expose(), "geheim");
    // Who may only use a credential does not get another that they own.
    let ada = api.ordinary("ada").await;
    let number = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    api.post("/api/v2/organizations/1/users/", json!({"id": number})).await;
    let url = format!("/api/v2/credentials/{credential}/");
    let role = api.get(&url).await.json["summary_fields"]["object_roles"]["use_role"]["id"].clone();
    assert_eq!(api.post(&format!("/api/v2/users/{number}/roles/"), json!({"id": role})).await.status, 204);
    assert_eq!(api.by(&ada, "GET", &url, json!(null)).await.status, 200);
    let reply = api.by(&ada, "POST", &format!("{url}copy/"), json!({"name": "mine"})).await;
    assert_eq!(reply.status, 403, "{}", reply.text);
}

#[tokio::test]
async fn a_launch_that_is_sent_again_starts_nothing() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let path = format!("/api/v2/job_templates/{template}/launch/");
    let with = async |key: &str, path: &str, who: &str| {
        let request = Request::post(path)
            .header("authorization", who)
            .header("content-type", "application/json")
            .header("idempotency-key", key);
        api.send(request.body(Body::from("{}")).unwrap()).await
    };
    let admin = basic("admin", "pw");
    let first = with("k-1", &path, &admin).await;
    assert_eq!(first.status, 201, "{}", first.text);
    let again = with("k-1", &path, &admin).await;
    assert_eq!((again.status, &again.json["job"]), (StatusCode::CREATED, &first.json["job"]));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let other = with("k-2", &path, &admin).await;
    assert_ne!(other.json["job"], first.json["job"]);
    assert_eq!(api.get("/api/v2/jobs/").await.json["count"], 2);
    let elsewhere = with("k-1", &format!("/api/v2/jobs/{}/relaunch/", first.json["job"]), &admin).await;
    assert_eq!(elsewhere.status, 422, "{}", elsewhere.text);
    assert_eq!(with(&"x".repeat(256), &path, &admin).await.status, 400);
    // A key is its user's own.
    let ada = api.ordinary("ada").await;
    let number = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    let url = format!("/api/v2/job_templates/{template}/");
    let role = api.get(&url).await.json["summary_fields"]["object_roles"]["execute_role"]["id"].clone();
    api.post(&format!("/api/v2/users/{number}/roles/"), json!({"id": role})).await;
    let hers = with("k-1", &path, &ada).await;
    assert!(hers.status == 201 && hers.json["job"] != first.json["job"], "{}", hers.text);
}

#[tokio::test]
async fn hosts_come_and_go_many_at_once_or_not_at_all() {
    let api = Api::new().await;
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    let create = |body: serde_json::Value| api.post("/api/v2/bulk/host_create/", body);
    let hosts: Vec<_> =
        (0..100).map(|n| json!({"name": format!("h{n}"), "variables": "{\"n\": 1}"})).collect();
    let made = create(json!({"inventory": inventory, "hosts": hosts})).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(
        (made.json["hosts"].as_array().unwrap().len(), &made.json["hosts"][7]["name"]),
        (100, &json!("h7"))
    );
    assert_eq!(api.get(made.json["url"].as_str().unwrap()).await.json["count"], 100);
    let too_many: Vec<_> = (0..101).map(|n| json!({"name": format!("x{n}")})).collect();
    for (body, words) in [
        (json!({"inventory": inventory, "hosts": too_many}), "BULK_HOST_MAX_CREATE"),
        (json!({"inventory": inventory, "hosts": [{"name": "new"}, {"name": "h1"}]}), "Duplicates found"),
        (json!({"inventory": inventory, "hosts": [{"name": "n"}, {"name": "n"}]}), "Duplicates found"),
        (json!({"inventory": inventory, "hosts": [{}]}), "required"),
        (json!({"inventory": 99, "hosts": [{"name": "n"}]}), "does not exist"),
        (json!({"inventory": inventory, "hosts": []}), "may not be empty"),
        (json!({"hosts": [{"name": "n"}]}), "required"),
    ] {
        let reply = create(body).await;
        assert!(reply.status == 400 && reply.text.contains(words), "{words}: {}", reply.text);
    }
    assert_eq!(api.get("/api/v2/hosts/").await.json["count"], 100, "all or nothing");
    let ids: Vec<i64> =
        made.json["hosts"].as_array().unwrap().iter().map(|host| host["id"].as_i64().unwrap()).collect();
    let ada = api.ordinary("ada").await;
    let reply = api.by(&ada, "POST", "/api/v2/bulk/host_delete/", json!({"hosts": ids})).await;
    assert!(reply.status == 400 && reply.text.contains("does not exist"), "{}", reply.text);
    let reply = api
        .by(
            &ada,
            "POST",
            "/api/v2/bulk/host_create/",
            json!({"inventory": inventory, "hosts": [{"name": "n"}]}),
        )
        .await;
    assert!(reply.status == 400 && reply.text.contains("does not exist"), "{}", reply.text);
    let reply = api.post("/api/v2/bulk/host_delete/", json!({"hosts": [ids[0], 9999]})).await;
    assert_eq!(reply.status, 400);
    let gone = api.post("/api/v2/bulk/host_delete/", json!({"hosts": ids[..60]})).await;
    assert_eq!(gone.status, 201, "{}", gone.text);
    assert_eq!(gone.json["hosts"][ids[0].to_string()], "The host h0 was deleted");
    assert_eq!(api.get("/api/v2/hosts/").await.json["count"], 40);
}

#[tokio::test]
async fn groups_know_what_is_above_and_what_could_be_below() {
    let api = Api::new().await;
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    let mut ids = Vec::new();
    for name in ["top", "middle", "low", "other"] {
        ids.push(api.make("groups", json!({"name": name, "inventory": inventory})).await);
    }
    for (parent, child) in [(0, 1), (1, 2)] {
        let path = format!("/api/v2/groups/{}/children/", ids[parent]);
        assert_eq!(api.post(&path, json!({"id": ids[child]})).await.status, 204);
    }
    let host = api.make("hosts", json!({"name": "h", "inventory": inventory})).await;
    api.post(&format!("/api/v2/groups/{}/hosts/", ids[2]), json!({"id": host})).await;
    let names = async |path: &str| -> Vec<String> {
        let list = api.get(path).await;
        assert_eq!(list.status, 200, "{path}: {}", list.text);
        let results = list.json["results"].as_array().unwrap().clone();
        results.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&format!("/api/v2/hosts/{host}/all_groups/")).await, ["low", "middle", "top"]);
    assert_eq!(names(&format!("/api/v2/groups/{}/all_hosts/", ids[0])).await, ["h"]);
    assert_eq!(names(&format!("/api/v2/groups/{}/potential_children/", ids[1])).await, ["other"]);
    assert_eq!(names(&format!("/api/v2/groups/{}/potential_children/", ids[0])).await, ["low", "other"]);
    // Variables that are changed by themselves are told like any other change.
    let path = format!("/api/v2/hosts/{host}/");
    api.call("PUT", &format!("{path}variable_data/"), json!({"a": 1})).await;
    let told = api.get(&format!("{path}activity_stream/?order_by=-id")).await.json;
    assert_eq!(told["results"][0]["changes"], json!({"variables": ["", "{\"a\":1}"]}), "{told}");
}

on_postgres_too! {
    hosts_come_and_go_many_at_once_or_not_at_all,
}

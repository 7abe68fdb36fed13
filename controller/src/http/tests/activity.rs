//! Who changed what: before and after, actor, and who may read it.

use super::*;

/// The last entry about an object, which must be by this user.
async fn last(api: &Api, url: &str, actor: &str) -> serde_json::Value {
    let list = api.get(&format!("{url}activity_stream/?order_by=-id")).await;
    assert_eq!(list.status, 200, "{url}: {}", list.text);
    let entry = list.json["results"][0].clone();
    assert_eq!(entry["summary_fields"]["actor"]["username"], actor, "{entry}");
    entry
}

#[tokio::test]
async fn every_change_is_told_with_before_and_after() {
    let api = Api::new().await;
    let id = api.make("organizations", json!({"name": "Ops", "description": "old"})).await;
    let url = format!("/api/v2/organizations/{id}/");
    let entry = last(&api, &url, "admin").await;
    assert_eq!((&entry["operation"], &entry["object1"]), (&json!("create"), &json!("organization")));
    assert_eq!((&entry["changes"]["name"], &entry["changes"]["id"]), (&json!("Ops"), &json!(id)));
    assert_eq!(
        entry["summary_fields"]["organization"],
        json!([{"id": id, "name": "Ops", "description": "old"}])
    );
    assert_eq!(entry["related"]["organization"], json!([url]));

    api.call("PATCH", &url, json!({"description": "new", "name": "Ops"})).await;
    let entry = last(&api, &url, "admin").await;
    assert_eq!(
        (&entry["operation"], &entry["changes"]),
        (&json!("update"), &json!({"description": ["old", "new"]}))
    );

    // What changes nothing is no entry.
    let before = api.get(&format!("{url}activity_stream/")).await.json["count"].clone();
    api.call("PATCH", &url, json!({"description": "new"})).await;
    assert_eq!(api.get(&format!("{url}activity_stream/")).await.json["count"], before);

    api.call("DELETE", &url, json!(null)).await;
    let all = api.get("/api/v2/activity_stream/?operation=delete&object1=organization").await;
    assert_eq!(all.json["results"][0]["changes"]["name"], "Ops", "{}", all.text);
    assert_eq!(all.json["results"][0]["summary_fields"].get("organization"), None, "it is gone");
}

#[tokio::test]
async fn associations_roles_launches_and_settings_are_told() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let label = api.make("labels", json!({"name": "night", "organization": 1})).await;
    assert_eq!(api.post(&format!("{url}labels/"), json!({"id": label})).await.status, 204);
    let entry = last(&api, &url, "admin").await;
    assert_eq!((&entry["operation"], &entry["object_association"]), (&json!("associate"), &json!("labels")));
    assert_eq!((&entry["object1"], &entry["object2"]), (&json!("job_template"), &json!("label")));
    assert_eq!(entry["summary_fields"]["label"][0]["name"], "night");
    // A second time it is there already.
    api.post(&format!("{url}labels/"), json!({"id": label})).await;
    assert_eq!(last(&api, &url, "admin").await["id"], entry["id"]);
    api.post(&format!("{url}labels/"), json!({"id": label, "disassociate": true})).await;
    assert_eq!(last(&api, &url, "admin").await["operation"], "disassociate");

    let ada = api.make("users", json!({"username": "ada", "password": "secret-pw"})).await;
    let role = api.get(&url).await.json["summary_fields"]["object_roles"]["execute_role"]["id"].clone();
    assert_eq!(api.post(&format!("/api/v2/users/{ada}/roles/"), json!({"id": role})).await.status, 204);
    let entry = last(&api, &url, "admin").await;
    assert_eq!(entry["object_association"], "role", "{entry}");
    assert_eq!(entry["object_relationship_type"], "JobTemplate.execute_role");
    assert_eq!(entry["summary_fields"]["role"][0]["role_field"], "execute_role");
    assert_eq!(entry["summary_fields"]["user"][0]["username"], "ada");

    let job = api.post(&format!("{url}launch/"), json!({})).await.json["job"].as_i64().unwrap();
    let entry = last(&api, &format!("/api/v2/jobs/{job}/"), "admin").await;
    assert_eq!((&entry["operation"], &entry["object1"]), (&json!("create"), &json!("job")));

    api.call("PATCH", "/api/v2/settings/ui/", json!({"CUSTOM_LOGIN_INFO": "hello"})).await;
    let list = api.get("/api/v2/activity_stream/?object1=setting").await.json;
    assert_eq!(list["results"][0]["changes"], json!({"CUSTOM_LOGIN_INFO": ["", "hello"]}));
    assert_eq!(
        list["results"][0]["summary_fields"]["setting"],
        json!([{"category": "ui", "name": "CUSTOM_LOGIN_INFO"}])
    );
    // Switched off, nothing is told, not even of the switching on.
    api.call("PATCH", "/api/v2/settings/system/", json!({"ACTIVITY_STREAM_ENABLED": false})).await;
    let count = api.get("/api/v2/activity_stream/").await.json["count"].clone();
    api.make("organizations", json!({"name": "quiet"})).await;
    assert_eq!(api.get("/api/v2/activity_stream/").await.json["count"], count);
}

#[tokio::test]
async fn secrets_are_not_in_the_stream() {
    let api = Api::new().await;
    let user = api.make("users", json!({"username": "ada", "password": "first-secret"})).await;
    api.call("PATCH", &format!("/api/v2/users/{user}/"), json!({"password": "second-secret"})).await;
    let machine = api.get("/api/v2/credential_types/?namespace=ssh").await.json["results"][0]["id"].clone();
    let body = json!({"name": "m", "organization": 1, "credential_type": machine,
        "inputs": {"username": "root", "password": "third-secret"}});
    let credential = api.make("credentials", body).await;
    let url = format!("/api/v2/credentials/{credential}/");
    api.call("PATCH", &url, json!({"inputs": {"username": "toor", "password": "fourth-secret"}})).await;
    let entry = last(&api, &url, "admin").await;
    assert_eq!(
        entry["changes"]["inputs"][0],
        json!({"username": "root", "password": "$encrypted$"}),
        "{entry}"
    );
    assert_eq!(
        entry["changes"]["inputs"][1],
        json!({"username": "toor", "password": "$encrypted$"}),
        "{entry}"
    );
    let token = api.post("/api/v2/tokens/", json!({})).await.json["token"].as_str().unwrap().to_owned();
    api.call("DELETE", &url, json!(null)).await;
    let all = api.get("/api/v2/activity_stream/?page_size=200").await.text;
    for secret in ["first-secret", "second-secret", "third-secret", "fourth-secret", &token, "$plexus$"] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}

#[tokio::test]
async fn a_tenant_reads_of_what_is_theirs() {
    let api = Api::new().await;
    let (mine, theirs) = (
        api.make("organizations", json!({"name": "mine"})).await,
        api.make("organizations", json!({"name": "theirs"})).await,
    );
    let ada = api.ordinary("ada").await;
    let number = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    api.post(&format!("/api/v2/organizations/{mine}/admins/"), json!({"id": number})).await;
    let inventory = api.make("inventories", json!({"name": "of mine", "organization": mine})).await;
    let host = api.make("hosts", json!({"name": "host-of-mine", "inventory": inventory})).await;
    api.make("inventories", json!({"name": "of theirs", "organization": theirs})).await;
    let all = api.by(&ada, "GET", "/api/v2/activity_stream/?page_size=200", json!(null)).await;
    assert!(all.text.contains("of mine") && !all.text.contains("of theirs"), "{}", all.text);
    // What is gone is still told to who runs the organization it belonged to.
    api.call("DELETE", &format!("/api/v2/hosts/{host}/"), json!(null)).await;
    let gone = api.by(&ada, "GET", "/api/v2/activity_stream/?operation=delete", json!(null)).await;
    assert_eq!(gone.json["results"][0]["changes"]["name"], "host-of-mine", "{}", gone.text);
    // Of somebody who sees nothing, there is nothing but what they did themselves.
    let bob = api.ordinary("bob").await;
    let list = api.by(&bob, "GET", "/api/v2/activity_stream/", json!(null)).await;
    let own = |entry: &serde_json::Value| entry["object1"] == "user" && entry["changes"]["username"] == "bob";
    assert!(list.json["results"].as_array().unwrap().iter().all(own), "{}", list.text);
    let of = format!("/api/v2/organizations/{mine}/activity_stream/");
    assert_eq!(api.by(&bob, "GET", &of, json!(null)).await.status, 404);
}

on_postgres_too! {
    every_change_is_told_with_before_and_after,
}

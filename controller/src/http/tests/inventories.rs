//! Inventories: hosts chosen by filters, smart inventories, and the document for Ansible.

use super::*;

/// Hosts of an inventory, by name; each with the groups named after it.
async fn hosts(api: &Api, inventory: i64, names: &[(&str, &[&str])]) {
    for (name, groups) in names {
        let host =
            api.make("hosts", json!({"name": name, "inventory": inventory, "variables": "x: 1"})).await;
        for group in *groups {
            let found = api.get(&format!("/api/v2/groups/?inventory={inventory}&name={group}")).await;
            let id = match found.json["results"][0]["id"].as_i64() {
                Some(id) => id,
                None => api.make("groups", json!({"name": group, "inventory": inventory})).await,
            };
            let reply = api.post(&format!("/api/v2/groups/{id}/hosts/"), json!({"id": host})).await;
            assert_eq!(reply.status, StatusCode::NO_CONTENT, "{}", reply.text);
        }
    }
}

fn names(reply: &Reply) -> Vec<&str> {
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    let mut names: Vec<&str> =
        reply.json["results"].as_array().unwrap().iter().map(|host| host["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names
}

fn filtered(filter: &str) -> String {
    format!("/api/v2/hosts/?host_filter={}", super::super::call::encode(filter))
}

#[tokio::test]
async fn hosts_are_chosen_by_a_filter() {
    let api = Api::new().await;
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    hosts(&api, inventory, &[("web1", &["web"]), ("web2", &["web", "old"]), ("db1", &["db"])]).await;
    let reply = api.get(&filtered("groups__name=web and not__nothing=1")).await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert_eq!(reply.json["error"], "Host has no field named 'not'");
    assert_eq!(names(&api.get(&filtered("groups__name=web")).await), ["web1", "web2"]);
    assert_eq!(names(&api.get(&filtered("name=db1 or groups__name=old")).await), ["db1", "web2"]);
    assert_eq!(names(&api.get(&filtered("inventory__name=i and search=eb2")).await), ["web2"]);
    for bad in ["name", "created_by__password=x", "(name=a"] {
        let reply = api.get(&filtered(bad)).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{bad}: {}", reply.text);
        assert!(reply.json["error"].is_string(), "{bad}: {}", reply.text);
    }
    // Who sees none of them finds none of them, whatever the filter asks.
    let somebody = api.ordinary("somebody").await;
    let reply = api.by(&somebody, "GET", &filtered("name__startswith=w"), json!(null)).await;
    assert_eq!(reply.json["count"], 0);
}

#[tokio::test]
async fn a_smart_inventory_has_what_its_filter_chooses_in_its_organization() {
    let api = Api::new().await;
    let other = api.make("organizations", json!({"name": "other"})).await;
    let one = api.make("inventories", json!({"name": "one", "organization": 1})).await;
    let two = api.make("inventories", json!({"name": "two", "organization": 1})).await;
    let foreign = api.make("inventories", json!({"name": "three", "organization": other})).await;
    hosts(&api, one, &[("web1", &["web"]), ("db1", &[])]).await;
    hosts(&api, two, &[("web1", &["web"]), ("web2", &["web"])]).await;
    hosts(&api, foreign, &[("web9", &["web"])]).await;
    let list = "/api/v2/inventories/";
    let smart = json!({"name": "smart", "organization": 1, "kind": "smart"});
    let reply = api.post(list, smart.clone()).await;
    assert_eq!(reply.json["host_filter"][0], "Smart inventories must specify host_filter", "{}", reply.text);
    let mut body = smart;
    body["host_filter"] = "nosuch=1".into();
    assert_eq!(api.post(list, body.clone()).await.status, StatusCode::BAD_REQUEST);
    body["host_filter"] = "groups__name=web".into();
    let smart = api.make("inventories", body).await;
    let url = format!("{list}{smart}/");
    let shown = api.get(&url).await;
    assert_eq!((&shown.json["kind"], &shown.json["total_hosts"]), (&json!("smart"), &json!(2)));
    assert_eq!(names(&api.get(&format!("{url}hosts/")).await), ["web1", "web2"]);

    let script = api.get(&format!("{url}script/?hostvars=1&towervars=1&all=1")).await;
    assert_eq!(script.json["all"]["hosts"], json!(["web1", "web2"]), "{}", script.text);
    assert_eq!(script.json["_meta"]["hostvars"]["web1"]["x"], 1);
    assert_eq!(script.json["_meta"]["hostvars"]["web2"]["remote_tower_enabled"], "true");
    assert!(script.json.get("web").is_none());

    // Nothing is entered into it, and it stays what it is.
    for family in ["hosts", "groups"] {
        let reply = api.post(&format!("/api/v2/{family}/"), json!({"name": "x", "inventory": smart})).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{}", reply.text);
    }
    let reply = api.call("PATCH", &url, json!({"kind": ""})).await;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);
    let reply = api.call("PATCH", &url, json!({"host_filter": "name__endswith=1"})).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.text);
    assert_eq!(names(&api.get(&format!("{url}hosts/")).await), ["db1", "web1"]);

    // Who may read it reads its hosts, and nobody else's.
    let somebody = api.ordinary("somebody").await;
    let hosts = format!("{url}hosts/");
    assert_eq!(api.by(&somebody, "GET", &hosts, json!(null)).await.status, StatusCode::NOT_FOUND);
    let role = shown.json["summary_fields"]["object_roles"]["read_role"]["id"].clone();
    let user = api.get("/api/v2/users/?username=somebody").await.json["results"][0]["id"].clone();
    api.post(&format!("/api/v2/users/{user}/roles/"), json!({"id": role})).await;
    assert_eq!(names(&api.by(&somebody, "GET", &hosts, json!(null)).await), ["db1", "web1"]);
    let reply = api.by(&somebody, "GET", "/api/v2/hosts/", json!(null)).await;
    assert_eq!(reply.json["count"], 0);
}

#[tokio::test]
async fn the_document_is_sent_in_pieces_and_is_whole() {
    let api = Api::new().await;
    let inventory =
        api.make("inventories", json!({"name": "i", "organization": 1, "variables": "{\"a\": 1}"})).await;
    hosts(&api, inventory, &[("web1", &["web"]), ("lone", &[])]).await;
    let off = json!({"name": "off", "inventory": inventory, "enabled": false});
    api.make("hosts", off).await;
    let url = format!("/api/v2/inventories/{inventory}/script/");
    let plain = api.get(&url).await;
    assert_eq!(
        plain.json,
        json!({
            "all": {"vars": {"a": 1}, "children": ["web"]},
            "web": {"hosts": ["web1"]},
            "ungrouped": {"hosts": ["lone"]},
        })
    );
    let whole = api.get(&format!("{url}?hostvars=1&all=1")).await;
    assert_eq!(whole.json["ungrouped"]["hosts"], json!(["lone", "off"]));
    assert_eq!(whole.json["_meta"], json!({"hostvars": {"lone": {"x": 1}, "off": {}, "web1": {"x": 1}}}));
    let one = api.get(&format!("{url}?host=web1")).await;
    assert_eq!(one.json, json!({"x": 1}));
}

on_postgres_too! {
    hosts_are_chosen_by_a_filter,
    the_document_is_sent_in_pieces_and_is_whole,
}

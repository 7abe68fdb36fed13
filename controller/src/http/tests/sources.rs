//! Sources of inventories, their updates, constructed inventories, and ad hoc commands.

use sea_query::{Expr, ExprTrait, Query};

use super::*;

async fn inventory(api: &Api, name: &str) -> i64 {
    api.make("inventories", json!({"name": name, "organization": 1})).await
}

/// A credential of a type of the product.
async fn credential(api: &Api, namespace: &str, inputs: serde_json::Value) -> i64 {
    let types = api.get(&format!("/api/v2/credential_types/?namespace={namespace}")).await;
    let of = types.json["results"][0]["id"].clone();
    let body = json!({"name": namespace, "organization": 1, "credential_type": of, "inputs": inputs});
    api.make("credentials", body).await
}

#[tokio::test]
async fn a_source_says_what_its_kind_needs() {
    let api = Api::new().await;
    let inventory = inventory(&api, "i").await;
    let project = api.make("projects", json!({"name": "p", "organization": 1, "local_path": "demo"})).await;
    let machine = credential(&api, "ssh", json!({"username": "u"})).await;
    let list = "/api/v2/inventory_sources/";
    let body = |more: serde_json::Value| {
        let mut body = json!({"name": "s", "inventory": inventory});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (more, field, words) in [
        (json!({}), "source", "This field is required."),
        (json!({"source": "scm"}), "source_project", "Project required for scm type sources."),
        (
            json!({"source": "scm", "source_project": project}),
            "source_project",
            "Cannot use manual project for SCM-based inventory.",
        ),
        (json!({"source": "vmware"}), "credential", "Credential is required for a cloud source."),
        (
            json!({"source": "ec2", "credential": machine}),
            "credential",
            "Cloud-based inventory sources (such as ec2) require credentials for the matching cloud service.",
        ),
        (json!({"source": "ec2", "source_path": "x"}), "detail", "Cannot set source_path if not SCM type."),
        (json!({"source": "ec2", "host_filter": "("}), "host_filter", "Not a valid regular expression."),
    ] {
        let reply = api.post(list, body(more.clone())).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{more}: {}", reply.text);
        assert_eq!(reply.json[field][0], words, "{more}: {}", reply.text);
    }
    let made = api.post(list, body(json!({"source": "ec2", "source_vars": "regions: [a]"}))).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!((&made.json["status"], &made.json["verbosity"]), (&json!("never updated"), &json!(1)));
    let again = api.post(list, body(json!({"source": "ec2"}))).await;
    assert!(again.text.contains("already exists"), "{}", again.text);
    let smart = json!({"name": "smart", "organization": 1, "kind": "smart", "host_filter": "name=x"});
    let smart = api.make("inventories", smart).await;
    let refused = api.post(list, json!({"name": "t", "inventory": smart, "source": "ec2"})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);

    let shown = api.get(&format!("/api/v2/inventories/{inventory}/")).await;
    assert_eq!(
        (&shown.json["total_inventory_sources"], &shown.json["has_inventory_sources"]),
        (&json!(1), &json!(true))
    );
    let source = made.json["url"].as_str().unwrap().to_owned();
    let aws = credential(&api, "aws", json!({"username": "u", "password": "p"})).await;
    let own = format!("{source}credentials/");
    assert_eq!(api.post(&own, json!({"id": machine})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(api.post(&own, json!({"id": aws})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.get(&own).await.json["results"][0]["id"], aws);
    assert_eq!(api.get(&source).await.json["credential"], aws);
    assert_eq!(api.post(&own, json!({"id": aws, "disassociate": true})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(api.get(&own).await.json["count"], 0);

    // It goes with its inventory, and leaves nothing behind.
    let templates = "/api/v2/unified_job_templates/?type=inventory_source";
    assert_eq!(api.get(templates).await.json["count"], 1);
    api.call("DELETE", &format!("/api/v2/inventories/{inventory}/"), json!(null)).await;
    assert_eq!(api.get(templates).await.json["count"], 0);
}

#[tokio::test]
async fn an_update_keeps_what_its_source_said() {
    let api = Api::new().await;
    let inventory = inventory(&api, "i").await;
    let all = format!("/api/v2/inventories/{inventory}/update_inventory_sources/");
    assert_eq!(api.post(&all, json!({})).await.status, StatusCode::BAD_REQUEST);
    let aws = credential(&api, "aws", json!({"username": "u", "password": "p"})).await;
    let source = json!({"name": "s", "inventory": inventory, "source": "ec2", "credential": aws, "overwrite": true,
                        "limit": "web", "source_vars": "{\"regions\": [\"a\"]}"});
    let source = api.make("inventory_sources", source).await;
    let file = json!({"name": "f", "inventory": inventory, "source": "file"});
    let file = api.make("inventory_sources", file).await;
    let url = format!("/api/v2/inventory_sources/{source}/");
    assert_eq!(api.get(&format!("{url}update/")).await.json, json!({"can_update": true}));
    let none = format!("/api/v2/inventory_sources/{file}/update/");
    assert_eq!(api.get(&none).await.json, json!({"can_update": false}));
    assert_eq!(api.post(&none, json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);

    let update = api.post(&format!("{url}update/"), json!({})).await;
    assert_eq!(update.status, StatusCode::ACCEPTED, "{}", update.text);
    let id = update.json["inventory_update"].as_i64().unwrap();
    assert_eq!(update.json["id"], id);
    for (field, value) in [
        ("type", json!("inventory_update")),
        ("status", json!("pending")),
        ("launch_type", json!("manual")),
        ("name", json!("i - s")),
        ("source", json!("ec2")),
        ("overwrite", json!(true)),
        ("limit", json!("web")),
        ("credential", json!(aws)),
        ("inventory", json!(inventory)),
        ("inventory_source", json!(source)),
    ] {
        assert_eq!(update.json[field], value, "{field}");
    }
    // Until it begins it is everybody's.
    let again = api.post(&format!("{url}update/"), json!({})).await;
    assert_eq!(again.json["inventory_update"], id);
    let shown = api.get(&url).await;
    assert_eq!(
        (&shown.json["status"], &shown.json["summary_fields"]["current_update"]["id"]),
        (&json!("pending"), &json!(id))
    );
    let both = api.post(&all, json!({})).await;
    assert_eq!(both.status, StatusCode::ACCEPTED, "{}", both.text);
    assert_eq!((&both.json[0]["status"], &both.json[0]["inventory_update"]), (&json!("started"), &json!(id)));
    assert!(both.json[1]["status"].as_str().unwrap().starts_with("Could not start"));

    let below = format!("/api/v2/inventory_updates/{id}/");
    for name in ["events", "credentials", "stdout", "cancel", "why", "activity_stream", "notifications"] {
        let reply = api.get(&format!("{below}{name}/?format=json")).await;
        assert_eq!(reply.status, StatusCode::OK, "{name}: {}", reply.text);
    }
    assert_eq!(api.get(&format!("{url}inventory_updates/")).await.json["count"], 1);
    assert_eq!(api.get("/api/v2/unified_jobs/?type=inventory_update").await.json["count"], 1);
    assert_eq!(api.post(&format!("{below}cancel/"), json!({})).await.status, StatusCode::ACCEPTED);
    assert_eq!(api.get(&below).await.json["status"], "canceled");
    let shown = api.get(&url).await;
    assert_eq!(
        (&shown.json["status"], &shown.json["last_update_failed"]),
        (&json!("canceled"), &json!(true))
    );
}

#[tokio::test]
async fn a_job_waits_for_updates_of_its_inventory_that_are_due() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let shown = api.get(&format!("/api/v2/job_templates/{template}/")).await.json;
    let source = json!({"name": "s", "inventory": shown["inventory"], "source": "file", "source_project": shown["project"],
                        "update_on_launch": true, "update_cache_timeout": 1000});
    let source = api.make("inventory_sources", source).await;
    let made = json!({"name": "made", "organization": 1});
    let made = api.make("constructed_inventories", made).await;
    let inputs = format!("/api/v2/inventories/{made}/input_inventories/");
    assert_eq!(api.post(&inputs, json!({"id": shown["inventory"]})).await.status, StatusCode::NO_CONTENT);
    let waits = async || {
        let mut query = Query::select();
        query.columns(["unified_job_id", "depends_on_id"]).from("unified_job_dependencies");
        let rows = api.app.db.all(&query).await.unwrap();
        rows.iter().map(|row| (row.at::<i64>(0).unwrap(), row.at::<i64>(1).unwrap())).collect::<Vec<_>>()
    };
    let launch = format!("/api/v2/job_templates/{template}/launch/");
    let job = api.post(&launch, json!({})).await.json["id"].as_i64().unwrap();
    let updates = api.get("/api/v2/inventory_updates/").await.json;
    let update = updates["results"][0]["id"].as_i64().unwrap();
    assert_eq!((&updates["count"], &updates["results"][0]["launch_type"]), (&json!(1), &json!("dependency")));
    assert_eq!(waits().await, [(job, update)]);
    // Another job waits for the same one.
    let second = api.post(&launch, json!({})).await.json["id"].as_i64().unwrap();
    assert_eq!(waits().await, [(job, update), (second, update)]);
    // What was fetched just now is not fetched again, but what is made of it is made again.
    let mut done = Query::update();
    done.table("unified_jobs").value("status", "successful").and_where(Expr::col("id").eq(update));
    let mut fresh = Query::update();
    fresh.table("inventory_sources").value("last_updated", jiff::Timestamp::now().as_microsecond());
    let mut tx = api.app.db.begin(crate::store::core::Class::Intent).await.unwrap();
    tx.execute(&done).await.unwrap();
    tx.execute(fresh.and_where(Expr::col("id").eq(source))).await.unwrap();
    tx.commit().await.unwrap();
    let third = api.post(&launch, json!({})).await.json["id"].as_i64().unwrap();
    assert!(waits().await.iter().all(|(job, _)| *job != third));
    let asks = json!({"ask_inventory_on_launch": true});
    api.call("PATCH", &format!("/api/v2/job_templates/{template}/"), asks).await;
    let fourth = api.post(&launch, json!({"inventory": made})).await.json["id"].as_i64().unwrap();
    let waits = waits().await;
    assert_eq!(waits.iter().filter(|(job, _)| *job == fourth).count(), 1, "{waits:?}");
}

#[tokio::test]
async fn a_constructed_inventory_has_one_source_and_inputs_in_order() {
    let api = Api::new().await;
    let (one, two) = (inventory(&api, "one").await, inventory(&api, "two").await);
    let list = "/api/v2/constructed_inventories/";
    let body = json!({"name": "made", "organization": 1, "source_vars": "strict: true", "limit": "web", "verbosity": 2});
    let made = api.post(list, body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let id = made.json["id"].as_i64().unwrap();
    for (field, value) in [
        ("kind", json!("constructed")),
        ("source_vars", json!("strict: true")),
        ("limit", json!("web")),
        ("verbosity", json!(2)),
        ("update_cache_timeout", json!(0)),
        ("total_inventory_sources", json!(1)),
    ] {
        assert_eq!(made.json[field], value, "{field}: {}", made.text);
    }
    let url = format!("{list}{id}/");
    let patched = api.call("PATCH", &url, json!({"limit": "db", "update_cache_timeout": 9})).await;
    assert_eq!(
        (&patched.json["limit"], &patched.json["update_cache_timeout"], &patched.json["verbosity"]),
        (&json!("db"), &json!(9), &json!(2)),
        "{}",
        patched.text
    );
    let inventory = format!("/api/v2/inventories/{id}/");
    let sources = api.get(&format!("{inventory}inventory_sources/")).await;
    assert_eq!(
        (&sources.json["count"], &sources.json["results"][0]["source"]),
        (&json!(1), &json!("constructed"))
    );
    assert_eq!(sources.json["results"][0]["update_on_launch"], true);
    let inputs = format!("{inventory}input_inventories/");
    for input in [two, one] {
        assert_eq!(api.post(&inputs, json!({"id": input})).await.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(api.post(&inputs, json!({"id": id})).await.status, StatusCode::BAD_REQUEST);
    let other = format!("/api/v2/inventories/{one}/input_inventories/");
    assert_eq!(api.post(&other, json!({"id": two})).await.status, StatusCode::BAD_REQUEST);
    let shown = api.get(&inputs).await;
    let ids: Vec<i64> =
        shown.json["results"].as_array().unwrap().iter().map(|input| input["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, [two, one]);
    assert_eq!(api.get(&format!("{list}{one}/")).await.status, StatusCode::NOT_FOUND);
    // As the collection makes one.
    let body = json!({"name": "other way", "organization": 1, "kind": "constructed"});
    let way = api.make("inventories", body).await;
    assert_eq!(api.get(&format!("{list}{way}/")).await.json["total_inventory_sources"], 1);
    assert_eq!(api.call("DELETE", &url, json!(null)).await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_command_runs_what_is_allowed_and_nothing_else() {
    let api = Api::new().await;
    let inventory = inventory(&api, "i").await;
    let host = api.make("hosts", json!({"name": "web1", "inventory": inventory})).await;
    let machine = credential(&api, "ssh", json!({"username": "u", "password": "ASK"})).await;
    let aws = credential(&api, "aws", json!({"username": "u", "password": "p"})).await;
    let list = "/api/v2/ad_hoc_commands/";
    for (body, field, words) in [
        (json!({"module_name": "ping"}), "inventory", "This field is required."),
        (
            json!({"module_name": "raw", "module_args": "x"}),
            "module_name",
            "Unsupported module for ad hoc commands.",
        ),
        (json!({"module_name": "shell"}), "module_args", "No argument passed to shell module."),
        (
            json!({"module_name": "command", "module_args": null}),
            "module_args",
            "No argument passed to command module.",
        ),
        (
            json!({"module_name": null, "module_args": null}),
            "module_args",
            "No argument passed to command module.",
        ),
        (
            json!({"module_name": "ping", "extra_vars": "ansible_connection: local"}),
            "extra_vars",
            "ansible_connection are prohibited from use in ad hoc commands.",
        ),
        (
            json!({"module_name": "ping", "credential": aws}),
            "credential",
            "You must provide a machine / SSH credential.",
        ),
        (json!({"module_name": "ping", "credential": machine}), "passwords_needed_to_start", "ssh_password"),
    ] {
        let mut body = body;
        if field != "inventory" {
            body["inventory"] = inventory.into();
        }
        let reply = api.post(list, body.clone()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}: {}", reply.text);
        assert_eq!(reply.json[field][0], words, "{body}: {}", reply.text);
    }
    // What needs none is sent without, with nothing, or with null: the module of the collection does that.
    for arguments in [None, Some(json!("")), Some(json!(null))] {
        let mut body =
            json!({"inventory": inventory, "module_name": "ping", "limit": null, "diff_mode": null});
        body.as_object_mut()
            .unwrap()
            .extend(arguments.map(|arguments| ("module_args".to_owned(), arguments)));
        let made = api.post(list, body).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let fields = (&made.json["module_args"], &made.json["limit"], &made.json["diff_mode"]);
        assert_eq!(fields, (&json!(""), &json!(""), &json!(false)));
    }
    let body = json!({"inventory": inventory, "module_name": "command", "module_args": "uptime", "limit": "web*",
                      "credential": machine, "ssh_password": "hush", "forks": 3, "become_enabled": true});
    let made = api.post(list, body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    for (field, value) in [
        ("type", json!("ad_hoc_command")),
        ("name", json!("command")),
        ("status", json!("pending")),
        ("module_args", json!("uptime")),
        ("limit", json!("web*")),
        ("forks", json!(3)),
        ("become_enabled", json!(true)),
        ("credential", json!(machine)),
    ] {
        assert_eq!(made.json[field], value, "{field}");
    }
    let id = made.json["id"].as_i64().unwrap();
    let sealed =
        Query::select().column("start_args").from("unified_jobs").and_where(Expr::col("id").eq(id)).take();
    let sealed: String = api.app.db.optional(&sealed).await.unwrap().unwrap().at(0).unwrap();
    assert!(!sealed.contains("hush") && !made.text.contains("hush"));
    let url = format!("{list}{id}/");
    assert_eq!(
        api.get(&format!("{url}relaunch/")).await.json,
        json!({"passwords_needed_to_start": ["ssh_password"]})
    );
    let again =
        api.post(&format!("{url}relaunch/"), json!({"credential_passwords": {"ssh_password": "x"}})).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.text);
    assert_eq!((&again.json["module_args"], &again.json["forks"]), (&json!("uptime"), &json!(3)));
    let below = format!("/api/v2/hosts/{host}/ad_hoc_commands/");
    let there = api.post(&below, json!({"module_name": "ping"})).await;
    assert_eq!(there.status, StatusCode::CREATED, "{}", there.text);
    assert_eq!((&there.json["limit"], &there.json["inventory"]), (&json!("web1"), &json!(inventory)));
    assert_eq!(api.get(&below).await.json["count"], 0, "none has run there yet");
    let of = api.get(&format!("/api/v2/inventories/{inventory}/ad_hoc_commands/")).await;
    assert_eq!(of.json["count"], 6, "three pings, the command, it again, and on the host");
    for name in ["events", "stdout", "cancel", "why", "activity_stream"] {
        let reply = api.get(&format!("{url}{name}/?format=json")).await;
        assert_eq!(reply.status, StatusCode::OK, "{name}: {}", reply.text);
    }

    // It takes the right to do so on that inventory.
    let eve = api.ordinary("eve").await;
    let command = json!({"inventory": inventory, "module_name": "ping"});
    assert_eq!(api.by(&eve, "POST", list, command.clone()).await.status, StatusCode::FORBIDDEN);
    let roles =
        api.get(&format!("/api/v2/inventories/{inventory}/")).await.json["summary_fields"]["object_roles"]
            .clone();
    let user = api.get("/api/v2/users/?username=eve").await.json["results"][0]["id"].clone();
    let give = async |role: &str| {
        api.post(&format!("/api/v2/users/{user}/roles/"), json!({"id": roles[role]["id"]})).await;
    };
    give("use_role").await;
    assert_eq!(api.by(&eve, "POST", list, command.clone()).await.status, StatusCode::FORBIDDEN);
    give("adhoc_role").await;
    let made = api.by(&eve, "POST", list, command.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let allowed = json!({"AD_HOC_COMMANDS": ["setup"]});
    assert_eq!(api.call("PATCH", "/api/v2/settings/jobs/", allowed).await.status, StatusCode::OK);
    assert_eq!(api.by(&eve, "POST", list, command).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn groups_are_shown_as_a_tree() {
    let api = Api::new().await;
    let inventory = inventory(&api, "i").await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(api.make("groups", json!({"name": name, "inventory": inventory})).await);
    }
    for (group, child) in [(0, 1), (1, 2)] {
        let path = format!("/api/v2/groups/{}/children/", ids[group]);
        assert_eq!(api.post(&path, json!({"id": ids[child]})).await.status, StatusCode::NO_CONTENT);
    }
    let tree = api.get(&format!("/api/v2/inventories/{inventory}/tree/")).await;
    let a = &tree.json[0];
    assert_eq!(tree.json.as_array().unwrap().len(), 1, "{}", tree.text);
    assert_eq!((&a["name"], &a["children"][0]["name"]), (&json!("a"), &json!("b")));
    assert_eq!(a["children"][0]["children"][0]["name"], "c");
    assert_eq!(a["children"][0]["children"][0]["children"], json!([]));
}

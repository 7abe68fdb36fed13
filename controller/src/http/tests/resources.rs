//! Objects of each family: made, shown, changed, deleted.

use super::*;

#[tokio::test]
async fn an_object_is_made_changed_and_deleted() {
    let api = Api::new().await;
    let made = api.post("/api/v2/organizations/", json!({"name": "Ops", "unknown": 1, "id": 77})).await;
    assert_eq!(made.status, 201);
    let url = made.json["url"].as_str().unwrap();
    assert_eq!(
        (made.json["type"].as_str(), made.json["description"].as_str()),
        (Some("organization"), Some(""))
    );
    assert_eq!(made.json["summary_fields"]["created_by"]["username"], "admin");
    assert_eq!(made.json["related"]["created_by"], "/api/v2/users/1/");
    let first: Vec<&str> = made.json.as_object().unwrap().keys().take(7).map(String::as_str).collect();
    assert_eq!(first, ["id", "type", "url", "related", "summary_fields", "created", "modified"]);
    let changed = api.call("PATCH", url, json!({"description": "d", "created": "x"})).await;
    assert_eq!(
        (changed.status.as_u16(), &changed.json["description"], &changed.json["name"]),
        (200, &json!("d"), &json!("Ops"))
    );
    assert!(changed.json["modified"].as_str() > made.json["modified"].as_str());
    let put = api.call("PUT", url, json!({"description": "e"})).await;
    assert_eq!((put.status.as_u16(), &put.json), (400, &json!({"name": ["This field is required."]})));
    let again = api.post("/api/v2/organizations/", json!({"name": "Ops"})).await;
    assert_eq!(
        (again.status.as_u16(), &again.json),
        (400, &json!({"name": ["Organization with this Name already exists."]}))
    );
    assert_eq!(api.call("DELETE", url, json!(null)).await.status, 204);
    assert_eq!(api.get(url).await.status, 404);
}

#[tokio::test]
async fn duplicates_are_told_by_family() {
    let api = Api::new().await;
    api.template("web").await;
    api.make("hosts", json!({"name": "h", "inventory": 1})).await;
    for (list, body, field, words) in [
        (
            "hosts",
            json!({"name": "h", "inventory": 1}),
            "__all__",
            "Host with this Name and Inventory already exists.",
        ),
        (
            "inventories",
            json!({"name": "web", "organization": 1}),
            "__all__",
            "Inventory with this Name and Organization already exists.",
        ),
        (
            "projects",
            json!({"name": "web", "organization": 1}),
            "__all__",
            "Project with this (organization, name) combination already exists.",
        ),
        (
            "users",
            json!({"username": "admin", "password": "x"}),
            "username",
            "User with this Username already exists.",
        ),
    ] {
        let reply = api.post(&format!("/api/v2/{list}/"), body).await;
        assert_eq!((reply.status.as_u16(), &reply.json), (400, &json!({field: [words]})), "{list}");
    }
}

#[tokio::test]
async fn what_an_object_points_to_must_exist() {
    let api = Api::new().await;
    let reply = api.post("/api/v2/inventories/", json!({"name": "x", "organization": 99})).await;
    assert_eq!(reply.json, json!({"organization": ["Invalid pk \"99\" - object does not exist."]}));
    let reply = api.post("/api/v2/inventories/", json!({"name": "x"})).await;
    assert_eq!(reply.json, json!({"organization": ["This field is required."]}));
    let reply = api.post("/api/v2/inventories/", json!({"name": "x", "organization": null})).await;
    assert_eq!(reply.json, json!({"organization": ["This field may not be null."]}));
}

#[tokio::test]
async fn inventories_are_compared_as_clients_do() {
    let api = Api::new().await;
    let body =
        json!({"name": "i", "organization": 1, "kind": null, "host_filter": null, "variables": "{\"a\": 1}"});
    let id = api.make("inventories", body).await;
    let shown = api.get(&format!("/api/v2/inventories/{id}/")).await.json;
    assert_eq!(
        (&shown["kind"], &shown["host_filter"], &shown["variables"]),
        (&json!(""), &json!(null), &json!("{\"a\": 1}"))
    );
    let patched = api
        .call("PATCH", &format!("/api/v2/inventories/{id}/"), json!({"kind": null, "host_filter": null}))
        .await;
    assert_eq!((&patched.json["kind"], &patched.json["host_filter"]), (&json!(""), &json!(null)));
    let refused =
        api.post("/api/v2/inventories/", json!({"name": "s", "organization": 1, "kind": "smart"})).await;
    assert!(refused.json["host_filter"].is_array(), "{}", refused.text);
    assert_eq!(api.call("DELETE", &format!("/api/v2/inventories/{id}/"), json!(null)).await.status, 202);
}

#[tokio::test]
async fn hosts_and_groups_make_the_document_ansible_reads() {
    let api = Api::new().await;
    let inventory =
        api.make("inventories", json!({"name": "i", "organization": 1, "variables": "x: 1"})).await;
    let sub = |name: &str| format!("/api/v2/inventories/{inventory}/{name}/");
    let a =
        api.post(&sub("hosts"), json!({"name": "a", "variables": "---\nv: [1]"})).await.json["id"].clone();
    api.post(&sub("hosts"), json!({"name": "b"})).await;
    let off = api.post(&sub("hosts"), json!({"name": "off", "enabled": false})).await;
    assert_eq!(off.json["enabled"], false);
    let web =
        api.post(&sub("groups"), json!({"name": "web", "variables": {"g": true}})).await.json["id"].clone();
    let all = api.post(&sub("groups"), json!({"name": "servers"})).await.json["id"].clone();
    assert_eq!(api.post(&format!("/api/v2/groups/{web}/hosts/"), json!({"id": a})).await.status, 204);
    assert_eq!(
        api.post(&format!("/api/v2/groups/{web}/hosts/"), json!({"id": a})).await.status,
        204,
        "twice"
    );
    assert_eq!(api.post(&format!("/api/v2/groups/{all}/children/"), json!({"id": web})).await.status, 204);
    let script = api.get(&format!("{}?hostvars=1", sub("script"))).await.json;
    assert_eq!(
        script,
        json!({
            "all": {"vars": {"x": 1}, "children": ["servers", "web"]},
            "servers": {"children": ["web"]},
            "web": {"hosts": ["a"], "vars": {"g": true}},
            "ungrouped": {"hosts": ["b"]},
            "_meta": {"hostvars": {"a": {"v": [1]}, "b": {}}},
        })
    );
    let whole = api.get(&format!("{}?hostvars=1&towervars=1&all=1", sub("script"))).await.json;
    assert_eq!(whole["_meta"]["hostvars"]["off"]["remote_tower_enabled"], "false");
    assert_eq!(whole["_meta"]["hostvars"]["a"]["remote_tower_id"], a);
    assert_eq!(api.get(&format!("{}?host=a", sub("script"))).await.json, json!({"v": [1]}));

    let shown = api.get(&format!("/api/v2/inventories/{inventory}/")).await.json;
    assert_eq!((&shown["total_hosts"], &shown["total_groups"]), (&json!(3), &json!(2)));
    let roots = api.get(&sub("root_groups")).await.json;
    assert_eq!((&roots["count"], &roots["results"][0]["name"]), (&json!(1), &json!("servers")));
    assert_eq!(api.get(&format!("/api/v2/groups/{all}/all_hosts/")).await.json["results"][0]["name"], "a");
    let host = api.get(&format!("/api/v2/hosts/{a}/")).await.json;
    assert_eq!(
        host["summary_fields"]["groups"],
        json!({"count": 1, "results": [{"id": web, "name": "web"}]})
    );
    assert_eq!(host["summary_fields"]["inventory"]["name"], "i");

    let cycle = api.post(&format!("/api/v2/groups/{web}/children/"), json!({"id": all})).await;
    assert_eq!((cycle.status.as_u16(), &cycle.json), (400, &json!({"error": "Cyclical Group association."})));
    let own = api.post(&format!("/api/v2/groups/{web}/children/"), json!({"id": web})).await;
    assert_eq!(own.status, 400);
    let path = format!("/api/v2/groups/{web}/hosts/");
    assert_eq!(api.post(&path, json!({"id": a, "disassociate": true})).await.status, 204);
    assert_eq!(api.post(&path, json!({"id": a, "disassociate": 1})).await.status, 204, "twice");
    assert_eq!(api.get(&path).await.json["count"], 0);
    let made = api.post(&path, json!({"name": "fresh"})).await;
    assert_eq!((made.status.as_u16(), &made.json["inventory"]), (201, &json!(inventory)));
    assert_eq!(api.get(&path).await.json["results"][0]["name"], "fresh");
    assert_eq!(
        api.post(&path, json!({"id": 999})).await.json,
        json!({"detail": "Host matching query does not exist."})
    );
    assert!(api.post(&path, json!({"id": "x"})).await.json["msg"].is_string());
    assert_eq!(api.post(&path, json!({})).await.json, json!({"name": ["This field is required."]}));
    let other = api.make("inventories", json!({"name": "j", "organization": 1})).await;
    let foreign = api.make("hosts", json!({"name": "z", "inventory": other})).await;
    assert_eq!(api.post(&path, json!({"id": foreign})).await.status, 400);
}

#[tokio::test]
async fn variables_are_kept_as_sent_and_read_as_objects() {
    let api = Api::new().await;
    api.make("inventories", json!({"name": "i", "organization": 1})).await;
    let text = "---\n# mine\nkey:   value\n";
    let id = api.make("hosts", json!({"name": "h", "inventory": 1, "variables": text})).await;
    let url = format!("/api/v2/hosts/{id}/");
    assert_eq!(api.get(&url).await.json["variables"], text);
    let data = format!("{url}variable_data/");
    assert_eq!(api.get(&data).await.json, json!({"key": "value"}));
    assert_eq!(api.call("PATCH", &data, json!({"more": 1})).await.json, json!({"key": "value", "more": 1}));
    assert_eq!(api.call("PUT", &data, json!({"only": 1})).await.json, json!({"only": 1}));
    assert_eq!(api.get(&url).await.json["variables"], r#"{"only":1}"#);
    let reply = api.call("PATCH", &url, json!({"variables": "a: ["})).await;
    assert!(
        reply.json["variables"][0].as_str().unwrap().starts_with("Cannot parse as JSON"),
        "{}",
        reply.text
    );
    let moved = api.call("PATCH", &url, json!({"inventory": 1, "name": "same"})).await;
    assert_eq!(moved.status, 200);
}

#[tokio::test]
async fn secrets_of_credentials_are_sealed_and_never_shown() {
    let api = Api::new().await;
    let inputs = json!({"username": "deploy", "password": "geheim", "become_password": "noch geheimer"});
    let body = json!({"name": "m", "organization": 1, "credential_type": 1, "inputs": inputs});
    let made = api.post("/api/v2/credentials/", body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let shown = json!({"username": "deploy", "password": "$encrypted$", "become_password": "$encrypted$"});
    assert_eq!(made.json["inputs"], shown);
    assert_eq!(
        (&made.json["kind"], &made.json["cloud"], &made.json["kubernetes"]),
        (&json!("ssh"), &json!(false), &json!(false))
    );
    for path in ["/api/v2/credentials/1/", "/api/v2/credentials/", "/api/v2/organizations/1/credentials/"] {
        let text = api.get(path).await.text;
        assert!(
            text.contains("$encrypted$") && !text.contains("geheim") && !text.contains("$plexus$"),
            "{path}"
        );
    }
    // Nothing of it is on disk either, in whatever file.
    for entry in std::fs::read_dir(api.dir.dir()).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"geheim"), "{:?}", entry.path());
    }
    // What comes back as it was shown stays as it is; the rest is replaced.
    let changed = json!({"inputs": {"username": "other", "password": "$encrypted$"}});
    let reply = api.call("PATCH", "/api/v2/credentials/1/", changed).await;
    assert_eq!(reply.json["inputs"], json!({"username": "other", "password": "$encrypted$"}));
    let template = api.template("web").await;
    assert_eq!(
        api.post(&format!("/api/v2/job_templates/{template}/credentials/"), json!({"id": 1})).await.status,
        204
    );
    let job = api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await;
    let job = job.json["id"].as_i64().unwrap();
    let opened = crate::job::credentials(&api.app.db, &api.app.vault, job).await.unwrap();
    assert_eq!(opened[0].inputs["password"].expose(), "geheim");
    assert_eq!(opened[0].inputs["username"].expose(), "other");
    assert!(!opened[0].inputs.contains_key("become_password"));
}

#[tokio::test]
async fn credentials_are_checked_against_their_type() {
    let api = Api::new().await;
    let create = |body: serde_json::Value| api.post("/api/v2/credentials/", body);
    let reply = create(json!({"name": "x", "credential_type": 1})).await;
    assert_eq!(reply.json, json!({"detail": "Missing 'user', 'team', or 'organization'."}));
    let with = |inputs: serde_json::Value| json!({"name": "x", "organization": 1, "credential_type": 1, "inputs": inputs});
    for (inputs, words) in [
        (json!({"nosuch": "1"}), "Additional properties are not allowed ('nosuch' was unexpected)"),
        (json!({"username": 1}), "username: int is not of type 'string'"),
        (json!({"password": "$plexus$1$0$x"}), "password: this value is reserved"),
        (json!([1]), "Expected a dictionary, but got list."),
    ] {
        let reply = create(with(inputs)).await;
        assert_eq!((reply.status.as_u16(), &reply.json), (400, &json!({"inputs": [words]})));
    }
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let reply = create(with(json!({"ssh_key_data": locked}))).await;
    assert!(reply.text.contains("must be set when SSH key is encrypted"), "{}", reply.text);
    assert!(
        create(with(json!({"ssh_key_data": "no key"}))).await.text.contains("Invalid certificate or key")
    );
    assert_eq!(create(with(json!({"ssh_key_data": locked, "ssh_key_unlock": "x"}))).await.status, 201);
}

#[tokio::test]
async fn types_that_come_with_the_product_stay_as_they_are() {
    let api = Api::new().await;
    let registry = api.get("/api/v2/credential_types/17/").await.json;
    assert_eq!((&registry["namespace"], &registry["managed"]), (&json!("registry"), &json!(true)));
    assert_eq!(api.call("PATCH", "/api/v2/credential_types/17/", json!({"name": "x"})).await.status, 403);
    assert_eq!(api.call("DELETE", "/api/v2/credential_types/17/", json!(null)).await.status, 403);
    let reply = api.post("/api/v2/credential_types/", json!({"name": "x", "kind": "ssh"})).await;
    assert!(reply.json["kind"][0].as_str().unwrap().starts_with("Must be 'cloud' or 'net'"));
    let inputs = json!({"fields": [{"id": "token", "label": "Token", "secret": true}]});
    let id = api.make("credential_types", json!({"name": "mine", "kind": "cloud", "inputs": inputs})).await;
    assert!(id > 17);
    let body = json!({"name": "c", "organization": 1, "credential_type": id, "inputs": {"token": "t"}});
    assert_eq!(api.post("/api/v2/credentials/", body).await.json["inputs"]["token"], "$encrypted$");
    assert_eq!(api.call("DELETE", &format!("/api/v2/credential_types/{id}/"), json!(null)).await.status, 403);
}

#[tokio::test]
async fn the_requests_of_the_guides_work_as_written() {
    let api = Api::new().await;
    let body = json!({"name": "Production EE", "image": "quay.io/myorg/ansible-ee:2.1.0", "pull": "missing", "description": "x"});
    let ee = api.make("execution_environments", body).await;
    let inputs = json!({"host": "quay.io", "username": "myorg+cibot", "password": "p", "verify_ssl": true});
    let body =
        json!({"name": "Quay.io Registry", "credential_type": 17, "organization": 1, "inputs": inputs});
    let credential = api.make("credentials", body).await;
    let url = format!("/api/v2/execution_environments/{ee}/");
    let reply = api.call("PATCH", &url, json!({"credential": credential})).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json["summary_fields"]["credential"]["kind"], "registry");
    let machine =
        api.make("credentials", json!({"name": "m", "organization": 1, "credential_type": 1})).await;
    let reply = api.call("PATCH", &url, json!({"credential": machine})).await;
    assert!(reply.json["credential"][0].as_str().unwrap().starts_with("Only Container Registry credentials"));
    api.template("base").await;
    let body = json!({
        "name": "Deploy Web Application", "job_type": "run", "inventory": 1, "project": 1, "playbook": "site.yml",
        "execution_environment": ee, "credentials": [credential, machine],
    });
    let template = api.make("job_templates", body).await;
    let shown = api.get(&format!("/api/v2/job_templates/{template}/")).await.json;
    assert_eq!(shown["summary_fields"]["credentials"].as_array().unwrap().len(), 2);
    assert_eq!(shown["summary_fields"]["resolved_environment"]["image"], "quay.io/myorg/ansible-ee:2.1.0");
    let reply = api.call("PATCH", "/api/v2/organizations/1/", json!({"default_environment": ee})).await;
    assert_eq!(
        reply.json["summary_fields"]["default_environment"]["image"],
        "quay.io/myorg/ansible-ee:2.1.0"
    );
    let reply = api.call("PATCH", "/api/v2/projects/1/", json!({"default_environment": ee})).await;
    assert_eq!(reply.json["default_environment"], ee);
    let reply =
        api.call("PATCH", &url, json!({"image": "quay.io/myorg/ansible-ee:latest", "pull": "always"})).await;
    assert_eq!(
        (&reply.json["image"], &reply.json["pull"]),
        (&json!("quay.io/myorg/ansible-ee:latest"), &json!("always"))
    );
    assert_eq!(api.call("DELETE", &url, json!(null)).await.status, 204);
    assert_eq!(
        api.get(&format!("/api/v2/job_templates/{template}/")).await.json["execution_environment"],
        json!(null)
    );
}

#[tokio::test]
async fn an_image_that_is_none_is_refused() {
    let api = Api::new().await;
    for image in ["not an image!", "--privileged", "x:y:z"] {
        let reply = api.post("/api/v2/execution_environments/", json!({"name": "e", "image": image})).await;
        assert_eq!(reply.status, 400, "{image}");
        assert!(reply.json["image"][0].as_str().unwrap().contains("is not a valid container image name"));
    }
    let reply = api
        .post("/api/v2/execution_environments/", json!({"name": "e", "image": "ee", "pull": "sometimes"}))
        .await;
    assert_eq!(reply.json, json!({"pull": ["\"sometimes\" is not a valid choice."]}));
}

#[tokio::test]
async fn a_project_is_what_its_directory_is() {
    let api = Api::new().await;
    let there = api.make("projects", json!({"name": "there", "organization": 1, "local_path": "demo"})).await;
    let gone = api.make("projects", json!({"name": "gone", "organization": 1, "local_path": "nosuch"})).await;
    let none = api.make("projects", json!({"name": "none", "organization": 1})).await;
    for (id, status) in [(there, "successful"), (gone, "missing"), (none, "missing")] {
        assert_eq!(api.get(&format!("/api/v2/projects/{id}/")).await.json["status"], status);
    }
    assert_eq!(api.get(&format!("/api/v2/projects/{there}/playbooks/")).await.json, json!(["site.yml"]));
    assert_eq!(api.get(&format!("/api/v2/projects/{gone}/playbooks/")).await.json, json!([]));
    for path in ["../etc", "/etc", "a/b", ".."] {
        let reply =
            api.post("/api/v2/projects/", json!({"name": "x", "organization": 1, "local_path": path})).await;
        assert!(reply.json["local_path"].is_array(), "{path}");
    }
    let reply =
        api.post("/api/v2/projects/", json!({"name": "x", "organization": 1, "scm_type": "git"})).await;
    assert_eq!(reply.json["scm_url"], json!(["SCM URL is required."]));
    assert_eq!(api.get("/api/v2/config/").await.json["project_local_paths"], json!(["demo"]));
}

#[tokio::test]
async fn a_template_has_what_a_launch_needs() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let shown = api.get(&format!("/api/v2/job_templates/{template}/")).await.json;
    assert_eq!(
        (&shown["organization"], &shown["extra_vars"], &shown["job_slice_count"]),
        (&json!(1), &json!(""), &json!(1))
    );
    assert_eq!(shown["summary_fields"]["project"]["status"], "successful");
    assert_eq!(shown["summary_fields"]["recent_jobs"], json!([]));
    assert_eq!(shown["related"]["launch"], format!("/api/v2/job_templates/{template}/launch/"));
    for (body, field, words) in [
        (json!({"name": "a", "inventory": 1, "playbook": "site.yml"}), "project", "This field is required."),
        (json!({"name": "a", "inventory": 1, "project": 1}), "playbook", "Must select playbook for project."),
        (
            json!({"name": "a", "inventory": 1, "project": 1, "playbook": "nosuch.yml"}),
            "playbook",
            "Playbook not found for project.",
        ),
        (
            json!({"name": "a", "inventory": 1, "project": 1, "playbook": "../../core.sqlite"}),
            "playbook",
            "Playbook not found for project.",
        ),
        (
            json!({"name": "a", "project": 1, "playbook": "site.yml"}),
            "inventory",
            "You must either set a default value or ask to prompt on launch.",
        ),
        (
            json!({"name": "a", "inventory": 1, "project": 1, "playbook": "site.yml", "scm_branch": "x"}),
            "scm_branch",
            "Project does not allow overriding branch.",
        ),
    ] {
        let reply = api.post("/api/v2/job_templates/", body).await;
        assert_eq!((reply.status.as_u16(), &reply.json), (400, &json!({field: [words]})));
    }
    let reply = api
        .call("PATCH", &format!("/api/v2/job_templates/{template}/"), json!({"playbook": "nosuch.yml"}))
        .await;
    assert_eq!(reply.status, 400);
    let asks = json!({"name": "asks", "project": 1, "playbook": "site.yml", "ask_inventory_on_launch": 1});
    api.make("job_templates", asks).await;
}

#[tokio::test]
async fn a_template_has_one_credential_of_a_type() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let mut ids = Vec::new();
    for (name, kind, inputs) in [
        ("a", 1, json!({})),
        ("b", 1, json!({})),
        ("v", 3, json!({"vault_password": "x"})),
        ("v1", 3, json!({"vault_password": "x", "vault_id": "one"})),
    ] {
        let body = json!({"name": name, "organization": 1, "credential_type": kind, "inputs": inputs});
        ids.push(api.make("credentials", body).await);
    }
    let path = format!("/api/v2/job_templates/{template}/credentials/");
    for id in [ids[0], ids[2], ids[3]] {
        assert_eq!(api.post(&path, json!({"id": id})).await.status, 204);
    }
    let reply = api.post(&path, json!({"id": ids[1]})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json),
        (400, &json!({"error": "Cannot assign multiple Machine credentials."}))
    );
    assert_eq!(api.get(&path).await.json["count"], 3);
}

#[tokio::test]
async fn settings_choose_the_default_image() {
    let api = Api::new().await;
    let ee = api.make("execution_environments", json!({"name": "e", "image": "ee"})).await;
    let all = "/api/v2/settings/all/";
    let options = api.call("OPTIONS", all, json!(null)).await;
    assert!(options.json["actions"]["PUT"]["DEFAULT_EXECUTION_ENVIRONMENT"].is_object());
    assert_eq!(api.get(all).await.json["CUSTOM_LOGO"], "");
    let reply = api.call("PATCH", all, json!({"DEFAULT_EXECUTION_ENVIRONMENT": ee, "UNKNOWN": 1})).await;
    assert_eq!((reply.status.as_u16(), &reply.json["DEFAULT_EXECUTION_ENVIRONMENT"]), (200, &json!(ee)));
    let reply = api.call("PATCH", all, json!({"DEFAULT_EXECUTION_ENVIRONMENT": 99, "CUSTOM_LOGO": 1})).await;
    assert_eq!(reply.status, 400);
    assert!(reply.json["DEFAULT_EXECUTION_ENVIRONMENT"].is_array() && reply.json["CUSTOM_LOGO"].is_array());
    assert_eq!(api.get("/api/v2/settings/nosuch/").await.status, 404);
}

#[tokio::test]
async fn labels_come_with_who_wears_them_and_go_with_the_last() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let url = format!("/api/v2/job_templates/{template}/labels/");
    let made = api.post(&url, json!({"name": "prod", "organization": 1})).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let label = made.json["id"].as_i64().unwrap();
    // The same name again is the same label, on another template too.
    assert_eq!(api.post(&url, json!({"name": "prod", "organization": 1})).await.status, 204);
    let other = api.template("db").await;
    let others = format!("/api/v2/job_templates/{other}/labels/");
    assert_eq!(api.post(&others, json!({"name": "prod", "organization": 1})).await.status, 204);
    let shown = api.get(&format!("/api/v2/job_templates/{template}/")).await.json;
    let expected = json!({"count": 1, "results": [{"id": label, "name": "prod"}]});
    assert_eq!(shown["summary_fields"]["labels"], expected);
    assert_eq!(api.get("/api/v2/job_templates/?labels__name=prod").await.json["count"], 2);
    let twice = api.post("/api/v2/labels/", json!({"name": "prod", "organization": 1})).await;
    assert_eq!(twice.json, json!({"__all__": ["Label with this Name and Organization already exists."]}));

    let job = api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await.json;
    assert_eq!(job["summary_fields"]["labels"], expected);
    let again = api.post(&format!("/api/v2/jobs/{}/relaunch/", job["id"]), json!({})).await.json;
    assert_eq!(again["summary_fields"]["labels"], expected);

    let leave = json!({"id": label, "disassociate": true});
    assert_eq!(api.post(&url, leave.clone()).await.status, 204);
    assert_eq!(api.post(&others, leave).await.status, 204);
    assert_eq!(api.get("/api/v2/labels/").await.json["count"], 1, "the jobs still wear it");
    assert_eq!(api.call("DELETE", &format!("/api/v2/labels/{label}/"), json!(null)).await.status, 405);

    let url = format!("/api/v2/job_templates/{other}/labels/");
    let brief = api.post(&url, json!({"name": "brief", "organization": 1})).await.json["id"].clone();
    assert_eq!(api.post(&url, json!({"id": brief, "disassociate": true})).await.status, 204);
    assert_eq!(api.get("/api/v2/labels/?name=brief").await.json["count"], 0, "nothing wears it");
}

on_postgres_too! {
    an_object_is_made_changed_and_deleted,
    duplicates_are_told_by_family,
}

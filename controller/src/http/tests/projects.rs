//! Projects that are fetched, as far as the API decides alone: nobody runs the updates here.

use sea_query::{Expr, ExprTrait, Query};

use super::*;
use crate::store::core::Class;
use crate::store::{dependencies, units, updates};

async fn site(api: &Api, more: serde_json::Value) -> serde_json::Value {
    api.make("execution_environments", json!({"name": "e", "image": "localhost/ee:1"})).await;
    let mut body = json!({
        "name": "site", "organization": 1, "scm_type": "git", "scm_url": "https://git.example.com/site.git",
        "scm_branch": "main",
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = api.post("/api/v2/projects/", body).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    reply.json
}

/// Ends the update as if its unit had: with a tree, or with a failure.
async fn end(api: &Api, update: i64, tree: Option<&str>) {
    let db = &api.app.db;
    let mut last = units::Final { status: "failed", ..units::Final::default() };
    if let Some(tree) = tree {
        let listed = crate::project::Listed { playbooks: vec!["site.yml".to_owned()], ..Default::default() };
        updates::gathered(db, update, tree, "abc", &listed).await.unwrap();
        last.status = "successful";
    }
    units::finish(db, update, &last).await.unwrap();
}

#[tokio::test]
async fn a_project_is_updated_when_it_is_made_and_when_its_address_changes() {
    let api = Api::new().await;
    let project = site(&api, json!({})).await;
    let path = format!("/api/v2/projects/{}/", project["id"]);
    assert_eq!(project["local_path"], json!(format!("_{}__site", project["id"])));
    assert_eq!(project["status"], "pending");
    let first = project["summary_fields"]["current_update"]["id"].as_i64().unwrap();
    assert_eq!(project["related"]["current_update"], json!(format!("/api/v2/project_updates/{first}/")));
    let busy = api.call("DELETE", &path, json!(null)).await;
    assert_eq!(busy.status, 409, "{}", busy.text);
    assert_eq!(busy.json["active_jobs"], json!([{"type": "project_update", "id": first}]));
    let tree = "ab".repeat(32);
    end(&api, first, Some(&tree)).await;
    let shown = api.get(&path).await.json;
    assert_eq!((&shown["status"], &shown["scm_revision"]), (&json!("successful"), &json!("abc")));
    assert_eq!(shown["summary_fields"]["last_update"]["id"], json!(first));
    assert_eq!(api.get(&format!("{path}playbooks/")).await.json, json!(["site.yml"]));

    for (change, starts) in [
        (json!({"description": "x"}), false),
        (json!({"scm_branch": "main"}), false),
        (json!({"scm_branch": "next"}), true),
    ] {
        let changed = api.call("PATCH", &path, change.clone()).await;
        assert_eq!(changed.status, 200, "{}", changed.text);
        let update = changed.json["summary_fields"]["current_update"]["id"].as_i64();
        assert_eq!(update.is_some(), starts, "{change}");
    }
    let asked = api.post(&format!("{path}update/"), json!({})).await;
    assert_eq!((asked.status, &asked.json["id"]), (StatusCode::ACCEPTED, &asked.json["project_update"]));
    assert_eq!(asked.json["scm_branch"], "next");
    assert_eq!(api.get(&format!("{path}update/")).await.json, json!({"can_update": true}));
}

#[tokio::test]
async fn a_manual_project_has_nothing_to_update_and_bad_ones_are_refused_by_field() {
    let api = Api::new().await;
    let manual = api.make("projects", json!({"name": "m", "organization": 1, "local_path": "demo"})).await;
    let path = format!("/api/v2/projects/{manual}/update/");
    assert_eq!(api.get(&path).await.json, json!({"can_update": false}));
    assert_eq!(api.post(&path, json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);
    let machine = json!({"name": "c", "organization": 1, "credential_type": 1, "inputs": {}});
    let machine = api.make("credentials", machine).await;
    let git = |more: (&str, serde_json::Value)| {
        let mut body =
            json!({"name": "x", "organization": 1, "scm_type": "git", "scm_url": "https://h/a.git"});
        body[more.0] = more.1;
        body
    };
    for (field, value) in [
        ("scm_url", json!("")),
        ("scm_url", json!("ext::sh -c id")),
        ("scm_type", json!("insights")),
        ("credential", json!(machine)),
    ] {
        let reply = api.post("/api/v2/projects/", git((field, value))).await;
        assert_eq!(reply.status, 400, "{field}");
        assert!(reply.json[field].is_array(), "{}", reply.text);
    }
}

#[tokio::test]
async fn a_job_waits_for_the_update_that_it_needs_and_ends_with_it() {
    let api = Api::new().await;
    let project = site(&api, json!({"scm_update_on_launch": true, "allow_override": true})).await;
    let first = project["summary_fields"]["current_update"]["id"].as_i64().unwrap();
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    let template = json!({
        "name": "t", "project": project["id"], "inventory": inventory, "playbook": "site.yml",
        "ask_scm_branch_on_launch": true,
    });
    let template = api.make("job_templates", template).await;
    let launch = format!("/api/v2/job_templates/{template}/launch/");
    let job = async |body: serde_json::Value| {
        let reply = api.post(&launch, body).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        reply.json["id"].as_i64().unwrap()
    };
    let shared = job(json!({})).await;
    let own = job(json!({"scm_branch": "other"})).await;
    let unmet = dependencies::unmet(&api.app.db).await.unwrap();
    assert_eq!(unmet[&shared].iter().map(|unmet| unmet.id).collect::<Vec<_>>(), [first]);
    let branch = unmet[&own][0].id;
    assert_ne!(branch, first);
    let shown = api.get(&format!("/api/v2/project_updates/{branch}/")).await.json;
    let expected = (&json!("other"), &json!("sync"), &json!("run"));
    assert_eq!((&shown["scm_branch"], &shown["launch_type"], &shown["job_type"]), expected);

    // What the branch brings is the one job's, and not the project's.
    end(&api, first, Some(&"ab".repeat(32))).await;
    end(&api, branch, Some(&"cd".repeat(32))).await;
    let project = api.get(&format!("/api/v2/projects/{}/", project["id"])).await.json;
    assert_eq!(project["summary_fields"]["last_update"]["id"], json!(first));
    assert!(dependencies::unmet(&api.app.db).await.unwrap().is_empty());
    let mut tx = api.app.db.begin(Class::Bulk).await.unwrap();
    for job in [shared, own] {
        updates::stamp(&mut tx, job).await.unwrap();
    }
    tx.commit().await.unwrap();
    let wanted = updates::wanted(&api.app.db).await.unwrap();
    assert!(wanted.contains(&[0xab; 32]) && wanted.contains(&[0xcd; 32]), "{wanted:?}");

    // One that fails takes what waits with it.
    let late = job(json!({})).await;
    let update = dependencies::unmet(&api.app.db).await.unwrap()[&late][0].id;
    end(&api, update, None).await;
    let unmet = dependencies::unmet(&api.app.db).await.unwrap();
    let dependencies::Verdict::End { status, explanation } = dependencies::verdict(&unmet[&late]) else {
        panic!("it ends")
    };
    assert!(status == "failed" && explanation.contains(&update.to_string()), "{explanation}");
}

#[tokio::test]
async fn an_inventory_that_lies_in_a_project_waits_for_it_and_is_read_from_the_revision_it_was_given() {
    let api = Api::new().await;
    let project = site(&api, json!({"scm_update_on_launch": true, "allow_override": true})).await;
    let first = project["summary_fields"]["current_update"]["id"].as_i64().unwrap();
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    let update = async |name: &str, branch: &str| {
        let source = json!({"name": name, "inventory": inventory, "source": "scm", "source_project": project["id"],
                            "source_path": "hosts", "scm_branch": branch});
        let source = api.make("inventory_sources", source).await;
        let reply = api.post(&format!("/api/v2/inventory_sources/{source}/update/"), json!({})).await;
        assert_eq!(reply.status, 202, "{}", reply.text);
        reply.json["id"].as_i64().unwrap()
    };
    let (shared, own) = (update("shared", "").await, update("own", "other").await);
    let unmet = dependencies::unmet(&api.app.db).await.unwrap();
    assert_eq!(unmet[&shared].iter().map(|unmet| unmet.id).collect::<Vec<_>>(), [first]);
    let branch = unmet[&own][0].id;
    let shown = api.get(&format!("/api/v2/project_updates/{branch}/")).await.json;
    assert_eq!((&shown["scm_branch"], &shown["launch_type"]), (&json!("other"), &json!("sync")));
    end(&api, first, Some(&"ab".repeat(32))).await;
    end(&api, branch, Some(&"cd".repeat(32))).await;
    assert!(dependencies::unmet(&api.app.db).await.unwrap().is_empty());
    let mut tx = api.app.db.begin(Class::Bulk).await.unwrap();
    for (job, tree) in [(shared, "ab"), (own, "cd")] {
        updates::stamp(&mut tx, job).await.unwrap();
        let query =
            Query::select().column("tree").from("unified_jobs").and_where(Expr::col("id").eq(job)).take();
        let row = tx.optional(&query).await.unwrap().unwrap();
        assert_eq!(row.at::<Option<String>>(0).unwrap(), Some(tree.repeat(32)), "{job}");
    }
    tx.commit().await.unwrap();
    let shown = api.get(&format!("/api/v2/inventory_updates/{own}/")).await.json;
    assert_eq!(shown["scm_revision"], "abc");
}

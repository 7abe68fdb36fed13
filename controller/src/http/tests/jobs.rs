//! Launches and what becomes of them before a node has them.

use sea_query::{Expr, ExprTrait, Query};

use super::*;
use crate::store::core::Class;

async fn launch(api: &Api, template: i64, body: serde_json::Value) -> Reply {
    api.post(&format!("/api/v2/job_templates/{template}/launch/"), body).await
}

/// Puts a job's row in a state, as the reconciler would.
async fn set(api: &Api, job: i64, values: Vec<(&'static str, Expr)>) {
    let mut tx = api.app.db.begin(Class::Bookkeeping).await.unwrap();
    let update =
        Query::update().table("unified_jobs").values(values).and_where(Expr::col("id").eq(job)).take();
    tx.execute(update).await.unwrap();
    crate::job::conclude(&mut tx, job).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_launch_is_a_pending_job_and_wakes_the_reconciler() {
    let api = Api::new().await;
    let ee = api
        .make("execution_environments", json!({"name": "e", "image": "localhost/ee:1", "pull": "never"}))
        .await;
    let template = api.template("web").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let body = json!({"extra_vars": "---\na: 1\n", "forks": 7, "limit": "web", "execution_environment": ee});
    assert_eq!(api.call("PATCH", &url, body).await.status, 200);
    let mut changed = api.app.db.changed();
    let reply = launch(&api, template, json!({})).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    let job = &reply.json;
    assert_eq!(reply.headers["location"], job["url"].as_str().unwrap());
    let first: Vec<&str> = job.as_object().unwrap().keys().take(3).map(String::as_str).collect();
    assert_eq!(first, ["job", "ignored_fields", "id"]);
    assert_eq!((&job["type"], &job["status"], &job["job"]), (&json!("job"), &json!("pending"), &job["id"]));
    assert_eq!(
        (&job["extra_vars"], &job["forks"], &job["limit"]),
        (&json!(r#"{"a":1}"#), &json!(7), &json!("web"))
    );
    assert_eq!((&job["execution_environment"], &job["image"]), (&json!(ee), &json!("localhost/ee:1")));
    assert_eq!(job["image_reason"], "the job template names it");
    assert_eq!((&job["launch_type"], &job["event_processing_finished"]), (&json!("manual"), &json!(false)));
    assert_eq!(job["launched_by"]["name"], "admin");
    assert_eq!((&job["job_env"], &job["artifacts"]), (&json!({}), &json!({})));
    assert_eq!(job["summary_fields"]["job_template"]["name"], "web");
    // Lists leave out what is long; whoever waits asks for the detail.
    let list = api.get("/api/v2/jobs/").await.json;
    assert!(
        list["results"][0].get("job_env").is_none()
            && list["results"][0].get("event_processing_finished").is_none()
    );
    let unified = api.get("/api/v2/unified_jobs/?type=job").await.json;
    assert_eq!((&unified["results"][0]["type"], &unified["results"][0]["url"]), (&json!("job"), &job["url"]));
    assert_eq!(api.get("/api/v2/unified_jobs/?type=project_update").await.json["count"], 0);
    let shown = api.get(&url).await.json;
    assert_eq!(shown["summary_fields"]["recent_jobs"][0]["id"], job["id"]);
    assert_eq!(api.get(&format!("{url}jobs/")).await.json["count"], 1);
    let unified = api.get("/api/v2/unified_job_templates/?order_by=id").await.json;
    let types: Vec<&str> =
        unified["results"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!(types[..4], ["system_job_template"; 4]);
    assert_eq!(types[4..], ["project", "job_template"]);
}

#[tokio::test]
async fn a_job_keeps_what_it_was_launched_with() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let job = launch(&api, template, json!({})).await.json["url"].as_str().unwrap().to_owned();
    for path in ["/api/v2/projects/1/", "/api/v2/inventories/1/", "/api/v2/organizations/1/"] {
        let reply = api.call("DELETE", path, json!(null)).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["active_jobs"]),
            (409, &json!([{"type": "job", "id": 1}]))
        );
    }
    api.post(&format!("{job}cancel/"), json!({})).await;
    assert_eq!(
        api.call("DELETE", &format!("/api/v2/job_templates/{template}/"), json!(null)).await.status,
        204
    );
    let shown = api.get(&job).await.json;
    assert_eq!(
        (&shown["name"], &shown["job_template"], &shown["playbook"]),
        (&json!("web"), &json!(null), &json!("site.yml"))
    );
}

#[tokio::test]
async fn answers_nobody_asked_for_are_named_and_ignored() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let reply = launch(&api, template, json!({"limit": "x", "extra_vars": {"a": 1}, "nosuch": 1})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json["ignored_fields"]),
        (201, &json!({"extra_vars": {"a": 1}, "limit": "x"}))
    );
    assert_eq!((&reply.json["limit"], &reply.json["extra_vars"]), (&json!(""), &json!("{}")));
}

#[tokio::test]
async fn what_is_asked_is_taken() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let asks: serde_json::Map<_, _> = registry::JOB_TEMPLATES
        .fields
        .iter()
        .filter(|field| field.name.starts_with("ask_"))
        .map(|field| (field.name.to_owned(), json!(true)))
        .collect();
    let url = format!("/api/v2/job_templates/{template}/");
    api.call("PATCH", &url, asks.into()).await;
    api.call("PATCH", &url, json!({"extra_vars": "{\"a\": 1, \"b\": 1}"})).await;
    let other = api.make("inventories", json!({"name": "other", "organization": 1})).await;
    let body = json!({
        "extra_vars": "{\"b\": 2}", "inventory": other, "limit": "l", "job_tags": "t", "skip_tags": "s", "verbosity": 3,
        "job_type": "check", "diff_mode": 1, "forks": 9, "timeout": 60,
    });
    let job = launch(&api, template, body).await.json;
    assert_eq!(job["extra_vars"], r#"{"a":1,"b":2}"#);
    assert_eq!(
        (&job["inventory"], &job["verbosity"], &job["job_type"]),
        (&json!(other), &json!(3), &json!("check"))
    );
    assert_eq!((&job["diff_mode"], &job["forks"], &job["timeout"]), (&json!(true), &json!(9), &json!(60)));
    for (body, field, words) in [
        (json!({"limit": null}), "limit", "This field may not be null."),
        (json!({"inventory": 99}), "inventory", "Invalid pk \"99\" - object does not exist."),
        (
            json!({"execution_environment": 99}),
            "execution_environment",
            "Invalid pk \"99\" - object does not exist.",
        ),
        (json!({"credentials": [99]}), "credentials", "Invalid pk \"99\" - object does not exist."),
        (json!({"verbosity": 9}), "verbosity", "\"9\" is not a valid choice."),
        (json!({"extra_vars": "[1]"}), "extra_vars", "Input type `list` is not a dictionary"),
    ] {
        let reply = launch(&api, template, body).await;
        assert_eq!((reply.status.as_u16(), &reply.json), (400, &json!({field: [words]})));
    }
}

#[tokio::test]
async fn chosen_credentials_take_the_place_of_their_type() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let mut ids = Vec::new();
    for name in ["own", "other", "third"] {
        let body = json!({"name": name, "organization": 1, "credential_type": 1});
        ids.push(api.make("credentials", body).await);
    }
    api.post(&format!("/api/v2/job_templates/{template}/credentials/"), json!({"id": ids[0]})).await;
    api.call(
        "PATCH",
        &format!("/api/v2/job_templates/{template}/"),
        json!({"ask_credential_on_launch": true}),
    )
    .await;
    for (chosen, expected) in
        [(json!([]), "own"), (json!([ids[1]]), "other"), (json!([ids[0], ids[1]]), "other")]
    {
        let reply = launch(&api, template, json!({"credentials": chosen})).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        let shown = reply.json["summary_fields"]["credentials"].as_array().unwrap().clone();
        assert_eq!((shown.len(), &shown[0]["name"]), (1, &json!(expected)));
    }
    let reply = launch(&api, template, json!({"credentials": [ids[1], ids[2]]})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json),
        (400, &json!({"credentials": ["Cannot assign multiple Machine credentials."]}))
    );
}

#[tokio::test]
async fn passwords_that_are_asked_for_are_sealed() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let body = json!({"name": "c", "organization": 1, "credential_type": 1, "inputs": {"username": "u", "password": "ASK"}});
    let credential = api.make("credentials", body).await;
    api.post(&format!("/api/v2/job_templates/{template}/credentials/"), json!({"id": credential})).await;
    let question = api.get(&format!("/api/v2/job_templates/{template}/launch/")).await.json;
    assert_eq!(
        (&question["passwords_needed_to_start"], &question["can_start_without_user_input"]),
        (&json!(["ssh_password"]), &json!(false))
    );
    let reply = launch(&api, template, json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json),
        (400, &json!({"passwords_needed_to_start": ["ssh_password"]}))
    );
    let reply = launch(&api, template, json!({"credential_passwords": {"ssh_password": "geheim"}})).await;
    assert_eq!(reply.status, 201);
    assert!(!reply.text.contains("geheim"));
    let job = reply.json["id"].as_i64().unwrap();
    let opened = crate::job::start_passwords(&api.app.db, &api.app.vault, job).await.unwrap();
    assert_eq!(opened["ssh_password"].expose(), "geheim");
}

#[tokio::test]
async fn the_question_of_a_launch_has_what_clients_read() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let question = api.get(&format!("/api/v2/job_templates/{template}/launch/")).await.json;
    for name in [
        "can_start_without_user_input",
        "passwords_needed_to_start",
        "ask_variables_on_launch",
        "survey_enabled",
        "variables_needed_to_start",
        "credential_needed_to_start",
        "inventory_needed_to_start",
        "job_template_data",
        "defaults",
    ] {
        assert!(question.get(name).is_some(), "{name}");
    }
    assert_eq!(question["can_start_without_user_input"], true);
    assert_eq!(question["defaults"]["inventory"], json!({"id": 1, "name": "web"}));
    assert_eq!(question["job_template_data"]["name"], "web");
}

#[tokio::test]
async fn the_image_is_chosen_in_the_known_order() {
    let api = &Api::new().await;
    let template = api.template("web").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let resolved = || async {
        let shown = api.get(&url).await.json["summary_fields"]["resolved_environment"]["name"].clone();
        let job = launch(api, template, json!({})).await.json;
        assert_eq!(
            job["summary_fields"].get("execution_environment").map(|ee| &ee["name"]),
            shown.as_str().map(|_| &shown)
        );
        (shown, job["image_reason"].clone())
    };
    assert_eq!(resolved().await, (json!(null), json!(null)));
    let make = |name: &'static str| {
        api.make("execution_environments", json!({"name": name, "image": format!("x/{name}")}))
    };
    make("old").await;
    make("newest").await;
    assert_eq!(resolved().await, (json!("newest"), json!("it is the newest that belongs to everybody")));
    let patch = |path: String, body: serde_json::Value| async move {
        let reply = api.call("PATCH", &path, body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    };
    let listed = json!({"GLOBAL_JOB_EXECUTION_ENVIRONMENTS": [{"name": "old", "image": "x/old"}]});
    api.call("PATCH", "/api/v2/settings/all/", listed).await;
    assert_eq!(resolved().await.0, "old");
    let set = make("setting").await;
    api.call("PATCH", "/api/v2/settings/all/", json!({"DEFAULT_EXECUTION_ENVIRONMENT": set})).await;
    assert_eq!(resolved().await, (json!("setting"), json!("it is the default of all")));
    let other = api.make("organizations", json!({"name": "other"})).await;
    patch("/api/v2/inventories/1/".to_owned(), json!({"organization": other})).await;
    let ee = make("of-inventory").await;
    patch(format!("/api/v2/organizations/{other}/"), json!({"default_environment": ee})).await;
    assert_eq!(resolved().await.0, "of-inventory");
    let ee = make("of-organization").await;
    patch("/api/v2/organizations/1/".to_owned(), json!({"default_environment": ee})).await;
    assert_eq!(resolved().await.0, "of-organization");
    let ee = make("of-project").await;
    patch("/api/v2/projects/1/".to_owned(), json!({"default_environment": ee})).await;
    assert_eq!(resolved().await.0, "of-project");
    let ee = make("of-template").await;
    patch(url.clone(), json!({"execution_environment": ee, "ask_execution_environment_on_launch": true}))
        .await;
    assert_eq!(resolved().await.0, "of-template");
    let job = launch(api, template, json!({"execution_environment": set})).await.json;
    assert_eq!(
        (&job["image"], &job["image_reason"]),
        (&json!("x/setting"), &json!("it was chosen at launch"))
    );
}

#[tokio::test]
async fn a_playbook_that_vanished_is_told_at_launch() {
    let api = Api::new().await;
    let template = api.template("web").await;
    std::fs::remove_file(api.dir.dir().join("projects/demo/site.yml")).unwrap();
    let reply = launch(&api, template, json!({})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json),
        (400, &json!({"playbook": ["Playbook not found for project."]}))
    );
}

#[tokio::test]
async fn a_pending_job_is_canceled_at_once_and_a_running_one_is_asked_to_stop() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let pending = launch(&api, template, json!({})).await.json["id"].as_i64().unwrap();
    let path = format!("/api/v2/jobs/{pending}/cancel/");
    assert_eq!(api.get(&path).await.json, json!({"can_cancel": true}));
    let reply = api.post(&path, json!({})).await;
    assert_eq!((reply.status.as_u16(), reply.text.as_str()), (202, ""));
    let job = api.get(&format!("/api/v2/jobs/{pending}/")).await.json;
    assert_eq!(
        (&job["status"], &job["failed"], &job["event_processing_finished"]),
        (&json!("canceled"), &json!(true), &json!(true))
    );
    assert!(job["finished"].is_string() && job["canceled_on"].is_string());
    assert_eq!(api.get(&path).await.json, json!({"can_cancel": false}));
    assert_eq!(api.post(&path, json!({})).await.status, 405);
    let shown = api.get(&format!("/api/v2/job_templates/{template}/")).await.json;
    assert_eq!((&shown["status"], &shown["last_job_failed"]), (&json!("canceled"), &json!(true)));

    let running = launch(&api, template, json!({})).await.json["id"].as_i64().unwrap();
    set(&api, running, vec![("status", "running".into())]).await;
    let changed = api.app.db.changed();
    assert_eq!(api.post(&format!("/api/v2/jobs/{running}/cancel/"), json!({})).await.status, 202);
    assert!(changed.has_changed().unwrap());
    let job = api.get(&format!("/api/v2/jobs/{running}/")).await.json;
    assert_eq!((&job["status"], &job["finished"]), (&json!("running"), &json!(null)));
    assert!(job["canceled_on"].is_string());
    assert_eq!(api.call("DELETE", &format!("/api/v2/jobs/{running}/"), json!(null)).await.status, 403);
    assert_eq!(api.call("DELETE", &format!("/api/v2/jobs/{pending}/"), json!(null)).await.status, 204);
}

#[tokio::test]
async fn a_job_is_launched_again_for_all_or_for_the_failed_hosts() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let first = launch(&api, template, json!({})).await.json["id"].as_i64().unwrap();
    let path = format!("/api/v2/jobs/{first}/relaunch/");
    assert_eq!(
        api.get(&path).await.json,
        json!({"passwords_needed_to_start": [], "retry_counts": {"all": 0, "failed": 0}})
    );
    assert_eq!(api.post(&path, json!({"hosts": "failed"})).await.status, 400);
    set(&api, first, vec![("status", "failed".into()), ("finished", 5.into())]).await;
    let mut tx = api.app.db.begin(Class::Bookkeeping).await.unwrap();
    for (name, failures, dark) in [("a", 1, 0), ("b", 0, 0), ("c", 0, 1)] {
        let mut insert = Query::insert();
        insert.into_table("job_host_summaries");
        insert.columns(["job_id", "host_name", "failures", "dark", "failed", "created", "modified"]);
        insert.values_panic([
            first.into(),
            name.into(),
            failures.into(),
            dark.into(),
            (failures > 0).into(),
            1.into(),
            1.into(),
        ]);
        tx.insert(&mut insert).await.unwrap();
    }
    tx.commit().await.unwrap();
    assert_eq!(api.get(&path).await.json["retry_counts"], json!({"all": 3, "failed": 2}));
    let again = api.post(&path, json!({"hosts": "failed"})).await;
    assert_eq!(again.status, 201, "{}", again.text);
    assert_eq!(
        (&again.json["limit"], &again.json["launch_type"], &again.json["status"]),
        (&json!("a,c"), &json!("relaunch"), &json!("pending"))
    );
    assert_eq!(api.post(&path, json!({})).await.json["limit"], "");
    assert_eq!(api.post(&path, json!({"hosts": "some"})).await.status, 400);
    let summaries = api.get(&format!("/api/v2/jobs/{first}/job_host_summaries/?failed=true")).await.json;
    assert_eq!((&summaries["count"], &summaries["results"][0]["host_name"]), (&json!(1), &json!("a")));
    let url = summaries["results"][0]["url"].as_str().unwrap();
    assert_eq!(api.get(url).await.json["type"], "job_host_summary");
}

#[tokio::test]
async fn old_jobs_are_cleaned_up_by_the_management_job() {
    let api = Api::new().await;
    let job = super::events::ran(&api, "ok-2-hosts").await;
    let list = api.get("/api/v2/system_job_templates/?id=0").await.json;
    assert_eq!(
        (&list["count"], &list["results"][0]["job_type"]),
        (&json!(1), &json!("cleanup_jobs")),
        "{list}"
    );
    let launch = list["results"][0]["related"]["launch"].as_str().unwrap().to_owned();
    let wrong = api.post(&launch, json!({"extra_vars": {"days": -1}})).await;
    assert_eq!(wrong.json, json!({"extra_vars": ["days must be a positive integer."]}));
    let other = api.ordinary("someone").await;
    let refused = api.by(&other, "POST", &launch, json!({})).await;
    assert!(refused.status.is_client_error(), "{}", refused.text);
    let made = api.post(&launch, json!({"extra_vars": "{\"days\": 0}"})).await;
    assert_eq!(
        (made.status, &made.json["status"]),
        (StatusCode::CREATED, &json!("pending")),
        "{}",
        made.text
    );
    let mut update = sea_query::Query::update();
    update.table("unified_jobs").values([("status", "successful".into()), ("finished", 1.into())]);
    update.and_where(sea_query::ExprTrait::eq(sea_query::Expr::col("id"), job));
    let mut tx = api.app.db.begin(crate::store::core::Class::Intent).await.unwrap();
    tx.execute(&update).await.unwrap();
    tx.commit().await.unwrap();
    crate::store::retention::run_asked(&api.app.db, &api.app.events).await.unwrap();
    let done = api.get(made.json["url"].as_str().unwrap()).await.json;
    assert_eq!(
        (&done["status"], &done["type"], &done["result_stdout"]),
        (&json!("successful"), &json!("system_job"), &json!("1 jobs and 0 months of events removed.\n")),
        "{done}"
    );
    assert_eq!(api.get(&format!("/api/v2/jobs/{job}/")).await.status, StatusCode::NOT_FOUND);
    let template = api.get("/api/v2/system_job_templates/?id=0").await.json;
    assert_eq!(template["results"][0]["status"], "successful");
    let cancel = done["related"]["cancel"].as_str().unwrap().to_owned();
    assert_eq!(api.post(&cancel, json!({})).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn labels_may_be_asked_for_at_launch() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let first = api.make("labels", json!({"name": "a", "organization": 1})).await;
    let second = api.make("labels", json!({"name": "b", "organization": 1})).await;
    api.post(&format!("/api/v2/job_templates/{template}/labels/"), json!({"id": first})).await;
    let reply = launch(&api, template, json!({"labels": [second]})).await;
    assert_eq!(reply.json["ignored_fields"], json!({"labels": [second]}));
    assert_eq!(reply.json["summary_fields"]["labels"]["results"], json!([{"id": first, "name": "a"}]));
    let url = format!("/api/v2/job_templates/{template}/");
    api.call("PATCH", &url, json!({"ask_labels_on_launch": true})).await;
    let question = api.get(&format!("{url}launch/")).await.json;
    assert_eq!(question["defaults"]["labels"], json!([{"id": first, "name": "a"}]));
    assert_eq!(question["can_start_without_user_input"], false);
    let reply = launch(&api, template, json!({"labels": [second]})).await;
    assert_eq!(reply.json["summary_fields"]["labels"]["results"], json!([{"id": second, "name": "b"}]));
    let reply = launch(&api, template, json!({"labels": [99]})).await;
    assert_eq!(reply.json, json!({"labels": ["Invalid pk \"99\" - object does not exist."]}));
}

#[tokio::test]
async fn a_survey_is_asked_answered_and_kept_secret() {
    let api = Api::new().await;
    let template = api.template("web").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let spec_url = format!("{url}survey_spec/");
    assert_eq!(api.get(&spec_url).await.json, json!({}));
    let question = |kind: &str, variable: &str, required: bool, default: serde_json::Value| {
        json!({"type": kind, "question_name": variable, "question_description": "", "variable": variable,
               "required": required, "default": default, "choices": "x\ny", "min": null, "max": null})
    };
    let spec = json!({"name": "ask", "description": "much", "spec": [
        question("text", "who", true, json!("")),
        question("multiplechoice", "which", false, json!("x")),
        question("password", "secret", true, json!("geheim-default")),
    ]});
    let reply = api.post(&spec_url, spec.clone()).await;
    assert_eq!((reply.status.as_u16(), &reply.json), (200, &json!({})));
    let reply = api.post(&spec_url, json!({"name": "", "description": "", "spec": []})).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json["error"]),
        (400, &json!("'spec' doesn't contain any items."))
    );
    let shown = api.get(&spec_url).await;
    assert!(!shown.text.contains("geheim"), "{}", shown.text);
    assert_eq!(shown.json["spec"][2]["default"], "$encrypted$");
    // What was shown may come back, and means what it was.
    assert_eq!(api.post(&spec_url, shown.json.clone()).await.status, 200);

    // Not asked before it is switched on.
    assert_eq!(api.get(&format!("{url}launch/")).await.json["variables_needed_to_start"], json!([]));
    api.call(
        "PATCH",
        &url,
        json!({"survey_enabled": true, "extra_vars": "{\"who\": \"template\", \"z\": 1}"}),
    )
    .await;
    assert_eq!(
        api.get(&url).await.json["summary_fields"]["survey"],
        json!({"title": "ask", "description": "much"})
    );
    let question = api.get(&format!("{url}launch/")).await.json;
    assert_eq!(question["variables_needed_to_start"], json!(["who"]));
    assert_eq!(question["can_start_without_user_input"], false);
    let reply = launch(&api, template, json!({})).await;
    let missing = json!({"variables_needed_to_start": ["'who' value missing"]});
    assert_eq!((reply.status.as_u16(), reply.json), (400, missing));

    let body = json!({"extra_vars": {"who": "me", "other": 1}});
    let reply = launch(&api, template, body).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    assert_eq!(reply.json["ignored_fields"], json!({"extra_vars": {"other": 1}}));
    let variables: serde_json::Value =
        serde_json::from_str(reply.json["extra_vars"].as_str().unwrap()).unwrap();
    assert_eq!(variables, json!({"who": "me", "z": 1, "which": "x", "secret": "$encrypted$"}));
    let secret = async |job: &serde_json::Value| {
        let job = job["id"].as_i64().unwrap();
        let found = crate::job::survey_passwords(&api.app.db, &api.app.vault, job).await.unwrap();
        found["secret"].expose().to_owned()
    };
    assert_eq!(secret(&reply.json).await, "geheim-default");
    let given = launch(&api, template, json!({"extra_vars": "who: me\nsecret: other-secret\n"})).await.json;
    assert!(!given.to_string().contains("other-secret"), "{given}");
    let again = api.post(&format!("/api/v2/jobs/{}/relaunch/", given["id"]), json!({})).await.json;
    assert_eq!(secret(&again).await, "other-secret", "a job started again has the same answers");

    assert_eq!(api.call("DELETE", &spec_url, json!(null)).await.status, 200);
    assert_eq!(api.get(&spec_url).await.json, json!({}));
    assert_eq!(launch(&api, template, json!({})).await.status, 201);
}

#[tokio::test]
async fn anothers_job_is_started_again_only_with_what_the_template_asks() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let url = format!("/api/v2/job_templates/{template}/");
    let ada = api.ordinary("ada").await;
    let number = api.get("/api/v2/users/?username=ada").await.json["results"][0]["id"].as_i64().unwrap();
    let role = api.get(&url).await.json["summary_fields"]["object_roles"]["execute_role"]["id"].clone();
    assert_eq!(api.post(&format!("/api/v2/users/{number}/roles/"), json!({"id": role})).await.status, 204);
    let asks =
        json!({"ask_limit_on_launch": true, "ask_variables_on_launch": true, "extra_vars": "{\"own\": 1}"});
    api.call("PATCH", &url, asks).await;
    let launch = async |body: serde_json::Value| {
        let job = api.post(&format!("{url}launch/"), body).await;
        assert_eq!(job.status, 201, "{}", job.text);
        format!("/api/v2/jobs/{}/relaunch/", job.json["job"])
    };
    let (plain, limited) = (launch(json!({})).await, launch(json!({"limit": "web1"})).await);
    let varied = launch(json!({"extra_vars": {"target": "production"}})).await;
    for path in [&plain, &limited, &varied] {
        let reply = api.by(&ada, "POST", path, json!({})).await;
        assert_eq!(reply.status, 201, "{path}: {}", reply.text);
    }
    // The template no longer asks: what somebody else answered is not hers to repeat.
    api.call("PATCH", &url, json!({"ask_limit_on_launch": false, "ask_variables_on_launch": false})).await;
    assert_eq!(api.by(&ada, "POST", &plain, json!({})).await.status, 201);
    for path in [&limited, &varied] {
        let reply = api.by(&ada, "POST", path, json!({})).await;
        assert_eq!(reply.status, 403, "{path}: {}", reply.text);
        assert_eq!(reply.json["detail"], "Job was launched with prompts no longer accepted.");
        assert_eq!(api.post(path, json!({})).await.status, 201, "whoever launched it may");
    }
    // Secret answers are nobody else's.
    let question = json!({"type": "password", "question_name": "q", "variable": "pin", "required": true});
    api.post(&format!("{url}survey_spec/"), json!({"name": "", "description": "", "spec": [question]})).await;
    api.call("PATCH", &url, json!({"survey_enabled": true})).await;
    let secret = launch(json!({"extra_vars": {"pin": "1234"}})).await;
    let reply = api.by(&ada, "POST", &secret, json!({})).await;
    assert_eq!(reply.status, 403, "{}", reply.text);
    assert_eq!(reply.json["detail"], "Job was launched with secret prompts provided by another user.");
}

on_postgres_too! {
    a_launch_is_a_pending_job_and_wakes_the_reconciler,
    a_job_is_launched_again_for_all_or_for_the_failed_hosts,
}

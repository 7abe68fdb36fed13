//! The pages around the resources: maps, dashboard, settings, and families that are not here yet.

use super::*;

#[tokio::test]
async fn families_that_are_not_here_yet_are_empty_and_say_what_is_missing() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let map = api.get("/api/v2/").await.json;
    for later in registry::later::LATER {
        let path = format!("/api/v2/{}/", later.path);
        assert_eq!(map[later.key], path.as_str());
        let list = api.get(&path).await;
        assert_eq!((list.status, &list.json["count"]), (StatusCode::OK, &json!(0)), "{path}");
        let options = api.call("OPTIONS", &path, json!(null)).await;
        assert_eq!(options.json["types"], json!([later.type_name]), "{path}");
        assert_eq!(api.get(&format!("{path}1/")).await.status, 404);
        let reply = api.post(&path, json!({"name": "x"})).await;
        let expected = if later.creates { 501 } else { 405 };
        assert_eq!(reply.status, expected, "{path}: {}", reply.text);
        assert!(reply.json["detail"].is_string());
    }
    // Every address that an object names answers, sub-lists of such families too.
    for url in [format!("/api/v2/job_templates/{template}/"), "/api/v2/organizations/1/".to_owned()] {
        let object = api.get(&url).await.json;
        for (name, address) in object["related"].as_object().unwrap() {
            let reply = api.get(address.as_str().unwrap()).await;
            assert_eq!(reply.status, 200, "{name}: {address}: {}", reply.text);
        }
    }
    let schedules = format!("/api/v2/job_templates/{template}/schedules/");
    let reply = api.post(&schedules, json!({"name": "nightly", "rrule": "DTSTART:20300101T000000Z"})).await;
    assert_eq!(reply.status, 501);
    assert_eq!(reply.json["detail"], "Plexus cannot make a schedule yet.");
    let ada = api.ordinary("ada").await;
    assert_eq!(
        api.by(&ada, "GET", &schedules, json!(null)).await.status,
        404,
        "of what is not seen, nothing is"
    );
}

#[tokio::test]
async fn the_dashboard_counts_what_one_sees() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    api.make("hosts", json!({"name": "h", "inventory": inventory})).await;
    let all = api.get("/api/v2/dashboard/").await;
    assert_eq!(all.status, 200, "{}", all.text);
    assert_eq!((&all.json["hosts"]["total"], &all.json["inventories"]["total"]), (&json!(1), &json!(2)));
    assert_eq!((&all.json["users"]["total"], &all.json["projects"]["failed"]), (&json!(1), &json!(0)));
    assert_eq!(all.json["job_templates"], json!({"url": "/api/v2/job_templates/", "total": 1}));
    let ada = api.ordinary("ada").await;
    let own = api.by(&ada, "GET", "/api/v2/dashboard/", json!(null)).await;
    assert_eq!((&own.json["hosts"]["total"], &own.json["job_templates"]["total"]), (&json!(0), &json!(0)));

    let job =
        api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await.json["job"].clone();
    api.post(&format!("/api/v2/jobs/{job}/cancel/"), json!({})).await;
    let graph = api.get("/api/v2/dashboard/graphs/jobs/?period=week&job_type=playbook_run").await;
    let days = graph.json["jobs"]["canceled"].as_array().unwrap().clone();
    assert_eq!((days.len(), days[7][1].as_i64()), (8, Some(1)), "{}", graph.text);
    assert_eq!(days[7][0].as_i64().unwrap() - days[0][0].as_i64().unwrap(), 7 * 86_400);
    let other = api.by(&ada, "GET", "/api/v2/dashboard/graphs/jobs/?period=week", json!(null)).await;
    assert!(!other.text.contains(",1]"), "{}", other.text);
    assert_eq!(api.get("/api/v2/dashboard/graphs/jobs/?period=aeon").await.status, 400);
}

#[tokio::test]
async fn settings_are_kept_by_category_and_take_effect() {
    let api = Api::new().await;
    let all = api.get("/api/v2/settings/all/").await.json;
    assert_eq!(all["DEFAULT_JOB_TIMEOUT"], 0);
    assert_eq!(all["NAMED_URL_FORMATS"]["teams"], "<name>++<organization.name>");
    assert_eq!(api.get("/api/v2/settings/changed/").await.json, json!({}));
    let categories = api.get("/api/v2/settings/").await.json;
    for category in categories["results"].as_array().unwrap() {
        let url = category["url"].as_str().unwrap();
        assert_eq!(api.get(url).await.status, 200, "{url}");
        let options = api.call("OPTIONS", url, json!(null)).await;
        for (name, field) in options.json["actions"]["PUT"].as_object().unwrap() {
            assert!(
                field["type"].is_string() && !field["default"].is_null()
                    || name == "DEFAULT_EXECUTION_ENVIRONMENT",
                "{name}"
            );
        }
    }
    for (body, field) in [
        (json!({"DEFAULT_JOB_TIMEOUT": -1}), "DEFAULT_JOB_TIMEOUT"),
        (json!({"DEFAULT_JOB_TIMEOUT": "long"}), "DEFAULT_JOB_TIMEOUT"),
        (json!({"AWX_TASK_ENV": {"A": 1}}), "AWX_TASK_ENV"),
    ] {
        let reply = api.call("PATCH", "/api/v2/settings/all/", body).await;
        assert!(reply.status == 400 && reply.json[field].is_array(), "{}", reply.text);
    }
    let body = json!({"CUSTOM_LOGIN_INFO": "be kind", "ALLOW_METRICS_FOR_ANONYMOUS_USERS": true,
        "OAUTH2_PROVIDER": {"ACCESS_TOKEN_EXPIRE_SECONDS": 60}});
    assert_eq!(api.call("PATCH", "/api/v2/settings/all/", body).await.status, 200);
    let open = |path: &'static str| api.send(Request::get(path).body(Body::empty()).unwrap());
    assert_eq!(open("/api/").await.json["custom_login_info"], "be kind");
    assert_eq!(open("/api/v2/metrics/").await.status, 200);
    let token = api.post("/api/v2/tokens/", json!({})).await.json;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(61);
    assert!(token["expires"].as_str().unwrap() < soon.to_string().as_str(), "{token}");
    // One category goes back to what it was; the others stay.
    assert_eq!(api.call("DELETE", "/api/v2/settings/system/", json!(null)).await.status, 200);
    assert_eq!(open("/api/v2/metrics/").await.status, 401);
    assert_eq!(open("/api/").await.json["custom_login_info"], "be kind");
}

#[tokio::test]
async fn every_address_of_the_openapi_document_answers_and_none_is_left_out() {
    let api = Api::new().await;
    let template = api.template("t").await;
    let inventory = api.make("inventories", json!({"name": "i", "organization": 1})).await;
    api.make("hosts", json!({"name": "h", "inventory": inventory})).await;
    let document = api.get("/api/docs/").await.json;
    assert_eq!(document["openapi"], "3.0.3");
    let paths = document["paths"].as_object().unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            assert!(
                ids.insert(operation["operationId"].to_string()),
                "{path} {method}: {}",
                operation["operationId"]
            );
            // Whatever is described is a method there: an object that is not there is 404 and not 405.
            let path = path.replace("{id}", "999999");
            let reply = api.call(&method.to_uppercase(), &path, json!({})).await;
            assert!(reply.status != 405 && reply.status.as_u16() < 500, "{method} {path}: {}", reply.text);
            let page = "The requested resource could not be found.";
            assert!(reply.json["detail"] != page, "{method} {path} is no page");
        }
    }
    // What an object names is in the document.
    for url in [
        format!("/api/v2/job_templates/{template}/"),
        "/api/v2/organizations/1/".to_owned(),
        "/api/v2/hosts/1/".to_owned(),
    ] {
        let object = api.get(&url).await.json;
        for address in object["related"].as_object().unwrap().values().filter_map(|address| address.as_str())
        {
            let general: Vec<&str> = address
                .split('/')
                .map(|part| if part.parse::<i64>().is_ok() { "{id}" } else { part })
                .collect();
            let known = paths.contains_key(&general.join("/")) || address.contains("++");
            assert!(known || address.ends_with("/admin/") || !address.starts_with(&url), "{address}");
        }
    }
    let request = Request::get("/api/docs/")
        .header("authorization", basic("admin", "pw"))
        .header("accept", "text/html,*/*");
    let page = api.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    assert!(page.text.contains("/api/v2/job_templates/{id}/launch/"), "{}", &page.text[..200]);
}

//! Machines that call back to be configured, and the pages that browsers get.

use std::net::SocketAddr;

use axum::extract::ConnectInfo;

use super::*;

async fn call_back(api: &Api, template: i64, from: &str, key: &str, forwarded: Option<&str>) -> Reply {
    let mut request = Request::post(format!("/api/v2/job_templates/{template}/callback/"))
        .header("content-type", "application/json");
    if let Some(forwarded) = forwarded {
        request = request.header("x-forwarded-for", forwarded);
    }
    let mut request = request.body(Body::from(json!({"host_config_key": key}).to_string())).unwrap();
    let address: SocketAddr = format!("{from}:4711").parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(address));
    api.send(request).await
}

async fn ready(api: &Api) -> i64 {
    let template = api.template("provision").await;
    for (name, variables) in [
        ("192.0.2.7", ""),
        ("web", "ansible_host: 192.0.2.10"),
        ("one", "ansible_host: 192.0.2.8"),
        ("twin", "ansible_host: 192.0.2.8"),
    ] {
        api.make("hosts", json!({"name": name, "inventory": 1, "variables": variables})).await;
    }
    let change = json!({"host_config_key": "the-key"});
    let changed = api.call("PATCH", &format!("/api/v2/job_templates/{template}/"), change).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    template
}

#[tokio::test]
async fn a_machine_that_calls_back_gets_a_job_for_itself() {
    let api = Api::new().await;
    let template = ready(&api).await;
    let done = call_back(&api, template, "192.0.2.7", "the-key", None).await;
    assert_eq!((done.status, done.text.as_str()), (StatusCode::CREATED, ""));
    let job = api.get(done.headers["location"].to_str().unwrap()).await;
    assert_eq!(
        (&job.json["limit"], &job.json["launch_type"], &job.json["status"]),
        (&json!("192.0.2.7"), &json!("callback"), &json!("pending"))
    );
    assert!(job.json["summary_fields"].get("created_by").is_none(), "{}", job.text);
    for (from, words) in [
        ("192.0.2.7", "Host callback job already pending."),
        ("192.0.2.8", "Multiple hosts matched the request!"),
        ("192.0.2.99", "No matching host could be found!"),
    ] {
        let refused = call_back(&api, template, from, "the-key", None).await;
        assert_eq!((refused.status, &refused.json["msg"]), (StatusCode::BAD_REQUEST, &json!(words)));
    }
    // What a header says counts from a trusted proxy only.
    let forged = call_back(&api, template, "192.0.2.50", "the-key", Some("192.0.2.10")).await;
    assert_eq!(forged.json["msg"], "No matching host could be found!");
    let settings = json!({"REMOTE_HOST_HEADERS": ["HTTP_X_FORWARDED_FOR", "REMOTE_ADDR"], "PROXY_IP_ALLOWED_LIST": ["192.0.2.50"]});
    assert_eq!(api.call("PATCH", "/api/v2/settings/system/", settings).await.status, 200);
    let forged = call_back(&api, template, "192.0.2.51", "the-key", Some("192.0.2.10")).await;
    assert_eq!(forged.status, 400);
    let proxied = call_back(&api, template, "192.0.2.50", "the-key", Some("192.0.2.10")).await;
    assert_eq!(proxied.status, 201, "{}", proxied.text);
    assert_eq!(api.get(proxied.headers["location"].to_str().unwrap()).await.json["limit"], "web");
    // Who sees the template sees its key and whom it would be; nobody else does.
    let path = format!("/api/v2/job_templates/{template}/callback/");
    let shown = api.get(&path).await;
    assert_eq!(
        (&shown.json["host_config_key"], &shown.json["matching_hosts"]),
        (&json!("the-key"), &json!([]))
    );
    assert_eq!(api.send(Request::get(&path).body(Body::empty()).unwrap()).await.status, 401);
}

#[tokio::test]
async fn a_call_back_without_the_key_learns_nothing_and_waits() {
    let api = Api::new().await;
    let template = ready(&api).await;
    let other = api.template("no key").await;
    let refused = call_back(&api, template, "192.0.2.7", "guess", None).await;
    assert_eq!(refused.status, 403);
    for (id, key) in [(other, ""), (4711, "guess"), (template, "")] {
        let again = call_back(&api, id, "192.0.2.7", key, None).await;
        assert_eq!((again.status, again.text), (StatusCode::FORBIDDEN, refused.text.clone()), "{id}");
    }
    for _ in 0..8 {
        call_back(&api, template, "192.0.2.9", "guess", None).await;
    }
    assert_eq!(call_back(&api, template, "192.0.2.9", "the-key", None).await.status, 429);
    // A template that has to be asked something does not start by itself.
    let survey = json!({"name": "", "description": "", "spec": [{"type": "text", "question_name": "q", "variable": "v", "required": true}]});
    let path = format!("/api/v2/job_templates/{template}/");
    assert_eq!(api.post(&format!("{path}survey_spec/"), survey).await.status, 200);
    assert_eq!(api.call("PATCH", &path, json!({"survey_enabled": true})).await.status, 200);
    let asked = call_back(&api, template, "192.0.2.7", "the-key", None).await;
    assert_eq!(asked.json["msg"], "Cannot start automatically, user input required!", "{}", asked.text);
}

#[tokio::test]
async fn a_browser_gets_pages_and_a_client_json() {
    let api = Api::new().await;
    let ask = async |path: &str, accept: &str| {
        let request =
            Request::get(path).header("authorization", basic("admin", "pw")).header("accept", accept);
        api.send(request.body(Body::empty()).unwrap()).await
    };
    let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    for path in ["/api/v2/", "/api/v2/users/", "/api/v2/users/1/", "/api/v2/nothing/", "/api/docs/"] {
        let page = ask(path, browser).await;
        assert_eq!(page.headers["content-type"], "text/html; charset=utf-8", "{path}");
        assert!(page.text.starts_with("<!doctype html>") && !page.text.contains("<script"), "{path}");
        assert!(page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        for (accept, asked) in [
            ("application/json", path.to_owned()),
            ("*/*", path.to_owned()),
            (browser, format!("{path}?format=json")),
        ] {
            if path == "/api/docs/" && accept == browser {
                continue;
            }
            let plain = ask(&asked, accept).await;
            assert_eq!(plain.headers["content-type"], "application/json", "{path} {accept}");
            assert_eq!(plain.status, page.status, "{path}");
        }
    }
    let map = ask("/api/v2/", browser).await;
    assert!(map.text.contains("<a href=\"/api/v2/job_templates/\">"), "{}", map.text);
    // A stream and a page of another kind are left as they are.
    assert_eq!(ask("/api/login/", browser).await.status, 200);
}

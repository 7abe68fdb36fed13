//! Who may come in, and by which door.

use super::*;

#[tokio::test]
async fn nobody_sees_the_maps_and_nothing_else() {
    let api = Api::new().await;
    for path in ["/api/", "/api", "/api/v2/", "/api/v2/ping/"] {
        let reply = api.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.headers["x-api-product-name"], "AWX");
        assert!(!reply.headers.contains_key("x-api-product-version"), "{path}");
    }
    for resource in registry::ALL {
        for method in [Method::GET, Method::POST, Method::OPTIONS] {
            if method == Method::POST && !resource.verbs.create {
                continue;
            }
            let request = Request::builder().method(method).uri(resource.list_url());
            let reply = api.send(request.body(Body::empty()).unwrap()).await;
            assert_eq!(reply.status, 401, "{resource:?}");
            assert_eq!(
                reply.headers["www-authenticate"],
                "Bearer realm=api authorization_url=/api/o/authorize/"
            );
            assert!(reply.json["detail"].is_string());
        }
    }
}

#[tokio::test]
async fn the_map_names_only_what_is_there() {
    let api = Api::new().await;
    let map = api.get("/api/v2/").await.json;
    assert_eq!(map["inventory"], "/api/v2/inventories/");
    for (name, path) in map.as_object().unwrap() {
        assert_eq!(api.get(path.as_str().unwrap()).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_a_right_one_shows_the_version() {
    let api = Api::new().await;
    let reply = api.by(&basic("admin", "wrong"), "GET", "/api/v2/me/", json!(null)).await;
    assert_eq!(reply.status, 401);
    let reply = api.get("/api/v2/me/").await;
    assert_eq!(
        (reply.json["count"].as_i64(), reply.json["results"][0]["username"].as_str()),
        (Some(1), Some("admin"))
    );
    assert_eq!(reply.headers["x-api-product-version"], API_VERSION);
    assert_eq!(reply.headers["x-api-node"], "controller-1");
    assert_eq!(reply.headers["vary"], "Accept, Accept-Language, Origin, Cookie");
    assert!(reply.headers.contains_key("x-api-request-id") && reply.headers.contains_key("x-api-time"));
}

#[tokio::test]
async fn a_token_speaks_for_its_owner_until_it_is_deleted() {
    let api = Api::new().await;
    let body = json!({"description": "CLI", "application": null, "scope": "write"});
    let made = api.post("/api/v2/users/admin/personal_tokens/", body).await;
    assert_eq!(made.status, 201);
    let token = made.json["token"].as_str().unwrap().to_owned();
    assert_eq!((token.len(), made.json["type"].as_str()), (30, Some("o_auth2_access_token")));
    assert!(made.json["refresh_token"].is_null() && made.json["application"].is_null());
    assert!(made.json["expires"].as_str().unwrap() > "3000");
    let bearer = format!("Bearer {token}");
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 200);
    let shown = api.get(made.json["url"].as_str().unwrap()).await;
    assert_eq!(shown.json["token"], "************");
    assert!(!api.get("/api/v2/tokens/").await.text.contains(&token));
    let gone = api.call("DELETE", made.json["url"].as_str().unwrap(), json!(null)).await;
    assert_eq!((gone.status, gone.text.as_str()), (StatusCode::NO_CONTENT, ""));
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 401);
}

#[tokio::test]
async fn a_token_to_read_does_not_write() {
    let api = Api::new().await;
    let made = api.post("/api/v2/tokens/", json!({"scope": "read"})).await;
    let bearer = format!("Bearer {}", made.json["token"].as_str().unwrap());
    assert_eq!(api.by(&bearer, "GET", "/api/v2/organizations/", json!(null)).await.status, 200);
    let reply = api.by(&bearer, "POST", "/api/v2/organizations/", json!({"name": "x"})).await;
    assert_eq!(reply.status, 403);
    let reply = api.post("/api/v2/tokens/", json!({"scope": "everything"})).await;
    assert!(reply.json["scope"].is_array(), "{}", reply.text);
}

/// Cookies of an answer, as a browser sends them back.
fn cookies(reply: &Reply) -> String {
    let all = reply.headers.get_all("set-cookie").iter().map(|cookie| cookie.to_str().unwrap());
    all.map(|cookie| cookie.split(';').next().unwrap()).collect::<Vec<_>>().join("; ")
}

async fn log_in(api: &Api, form: &str) -> Reply {
    let request = Request::post("/api/login/")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(form.to_owned()));
    api.send(request.unwrap()).await
}

#[tokio::test]
async fn a_session_needs_the_token_to_write() {
    let api = Api::new().await;
    let page = api.send(Request::get("/api/login/").body(Body::empty()).unwrap()).await;
    assert_eq!(page.status, 200);
    assert!(page.headers["set-cookie"].to_str().unwrap().starts_with("csrftoken="));
    let reply = log_in(&api, "username=admin&password=pw&next=%2Fapi%2F").await;
    assert_eq!((reply.status, reply.headers["location"].to_str().unwrap()), (StatusCode::FOUND, "/api/"));
    assert_eq!(reply.headers["x-api-session-cookie-name"], "awx_sessionid");
    let session =
        reply.headers.get_all("set-cookie").iter().find(|c| c.to_str().unwrap().starts_with("awx_sessionid"));
    let session = session.unwrap().to_str().unwrap();
    assert!(
        session.contains("HttpOnly") && session.contains("SameSite=Lax") && session.contains("Max-Age=1800")
    );
    let jar = cookies(&reply);
    let csrf = jar.split("csrftoken=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let ask = |method: &str, token: Option<&str>, origin: Option<&str>| {
        let mut request = Request::builder().method(method).uri("/api/v2/organizations/");
        request =
            request.header("cookie", &jar).header("content-type", "application/json").header("host", "here");
        if let Some(token) = token {
            request = request.header("x-csrftoken", token);
        }
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        request.body(Body::from(r#"{"name": "mine"}"#)).unwrap()
    };
    assert_eq!(api.send(ask("GET", None, None)).await.status, 200);
    for (token, origin) in [(None, None), (Some("other"), None), (Some(csrf.as_str()), Some("https://evil"))]
    {
        let reply = api.send(ask("POST", token, origin)).await;
        assert_eq!(reply.status, 403, "{token:?} {origin:?}");
        assert!(reply.json["detail"].as_str().unwrap().starts_with("CSRF Failed"));
    }
    assert_eq!(api.send(ask("POST", Some(&csrf), Some("https://here"))).await.status, 201);
    let out = Request::get("/api/logout/").header("cookie", &jar).body(Body::empty()).unwrap();
    assert_eq!(api.send(out).await.status, 302);
    assert_eq!(api.send(ask("GET", None, None)).await.status, 401);
}

#[tokio::test]
async fn a_session_that_came_in_encrypted_stays_so() {
    let api = Api::new().await;
    let router = router(api.app.clone()).layer(axum::Extension(crate::https::Encrypted));
    let form = Body::from("username=admin&password=pw");
    let request = Request::post("/api/login/").header("content-type", "application/x-www-form-urlencoded");
    let reply = router.oneshot(request.body(form).unwrap()).await.unwrap();
    let session = reply.headers().get("set-cookie").unwrap().to_str().unwrap();
    assert!(session.starts_with("awx_sessionid=") && session.ends_with("; Secure"), "{session}");
}

#[tokio::test]
async fn a_wrong_login_gives_no_session_and_no_redirect_leads_away() {
    let api = Api::new().await;
    let reply = log_in(&api, "username=admin&password=wrong&next=/api/").await;
    assert_eq!(reply.status, 401);
    assert!(!cookies(&reply).contains("awx_sessionid"));
    for next in ["https%3A%2F%2Fevil", "%2F%2Fevil", "%2F%5Cevil", ""] {
        let reply = log_in(&api, &format!("username=admin&password=pw&next={next}")).await;
        assert_eq!(reply.headers["location"], "/api/", "{next}");
    }
}

#[tokio::test]
async fn whoever_is_no_superuser_sees_only_what_is_theirs() {
    let api = Api::new().await;
    let template = api.template("secret").await;
    let job =
        api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await.json["id"].clone();
    api.make("hosts", json!({"name": "h", "inventory": 1})).await;
    api.make("execution_environments", json!({"name": "e", "image": "ee"})).await;
    let ada = api.ordinary("ada").await;
    let me = api.by(&ada, "GET", "/api/v2/me/", json!(null)).await.json;
    assert_eq!(me["results"][0]["username"], "ada");
    for resource in registry::ALL {
        let reply = api.by(&ada, "GET", &resource.list_url(), json!(null)).await;
        assert_eq!(reply.status, 200, "{resource:?}");
        if resource.path == "activity_stream" {
            // That an environment of everybody's was made, and they themselves.
            let told: Vec<&str> = reply.json["results"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|entry| entry["object1"].as_str())
                .collect();
            assert_eq!(told, ["execution_environment", "user"], "{}", reply.text);
            continue;
        }
        // What belongs to everybody is seen by everybody.
        let shared =
            matches!(resource.path, "credential_types" | "execution_environments" | "role_definitions");
        let expected = if resource.path == "users" { 1 } else { 0 };
        assert!(shared || reply.json["count"] == expected, "{resource:?}: {}", reply.text);
        if shared {
            for method in ["PATCH", "DELETE"] {
                let reply = api.by(&ada, method, &resource.url(1), json!({"name": "mine"})).await;
                assert_eq!(reply.status, 403, "{method} {resource:?}");
            }
        } else if resource.path != "users" {
            for method in ["GET", "PATCH", "DELETE"] {
                let allowed = resource.verbs.detail().contains(method);
                let reply = api.by(&ada, method, &resource.url(1), json!(null)).await;
                assert_eq!(reply.status, if allowed { 404 } else { 405 }, "{method} {resource:?}");
            }
            for list in resource.lists {
                let path = format!("{}{}/", resource.url(1), list.name);
                assert_eq!(api.by(&ada, "GET", &path, json!(null)).await.status, 404, "{path}");
            }
        }
        // One's own tokens and credentials take no right.
        let own = matches!(resource.path, "tokens" | "credentials");
        // What is assigned is looked at before who may give it.
        if resource.verbs.create && !own && !resource.path.ends_with("_assignments") {
            let reply = api.by(&ada, "POST", &resource.list_url(), json!({"name": "x"})).await;
            assert_eq!(reply.status, 403, "{resource:?}");
        }
        let options = api.by(&ada, "OPTIONS", &resource.list_url(), json!(null)).await;
        assert_eq!(options.json["actions"].get("POST").is_some(), own, "{resource:?}");
    }
    for path in [
        "/api/v2/users/1/".to_owned(),
        format!("/api/v2/job_templates/{template}/launch/"),
        format!("/api/v2/jobs/{job}/cancel/"),
        format!("/api/v2/jobs/{job}/relaunch/"),
        "/api/v2/projects/1/playbooks/".to_owned(),
        "/api/v2/inventories/1/script/".to_owned(),
        "/api/v2/hosts/1/variable_data/".to_owned(),
        "/api/v2/hosts/1/ansible_facts/".to_owned(),
        "/api/v2/inventories/1/root_groups/".to_owned(),
    ] {
        assert_eq!(api.by(&ada, "GET", &path, json!(null)).await.status, 404, "{path}");
    }
    for path in ["/api/v2/settings/all/", "/api/v2/mesh_visualizer/", "/api/plexus/v1/mesh/status/"] {
        assert_eq!(api.by(&ada, "GET", path, json!(null)).await.status, 403, "{path}");
    }
    // What cannot be seen cannot be reached by a filter either.
    let reply = api.by(&ada, "GET", "/api/v2/users/?or__username=admin&or__id__gt=0", json!(null)).await;
    assert_eq!(reply.json["count"], 1);
}

#[tokio::test]
async fn people_change_what_is_theirs_and_not_what_they_may() {
    let api = Api::new().await;
    let ada = api.ordinary("ada").await;
    let own = "/api/v2/users/2/";
    assert_eq!(api.by(&ada, "PATCH", own, json!({"first_name": "Ada"})).await.json["first_name"], "Ada");
    assert_eq!(api.by(&ada, "PATCH", own, json!({"is_superuser": true})).await.status, 403);
    assert_eq!(api.by(&ada, "DELETE", own, json!(null)).await.status, 403);
    assert_eq!(api.by(&ada, "PATCH", own, json!({"password": "new"})).await.status, 200);
    assert_eq!(api.by(&ada, "GET", own, json!(null)).await.status, 401);
    let ada = basic("ada", "new");
    let token = api.by(&ada, "POST", "/api/v2/users/ada/personal_tokens/", json!({})).await;
    assert_eq!(token.status, 201);
    assert_eq!(api.by(&ada, "POST", "/api/v2/users/1/personal_tokens/", json!({})).await.status, 404);
    assert_eq!(api.post("/api/v2/users/2/personal_tokens/", json!({})).await.status, 403);
    assert_eq!(api.by(&ada, "DELETE", token.json["url"].as_str().unwrap(), json!(null)).await.status, 204);
}

//! Bytes that no client sends: an error in JSON, never a failure of the server.

use super::*;

#[tokio::test]
async fn garbage_bodies_are_refused_as_json() {
    let api = Api::new().await;
    let deep = "[".repeat(100_000);
    let bodies: [&[u8]; 9] = [
        b"{",
        b"{\"name\": \"a\",}",
        b"[1]",
        b"\"text\"",
        b"\xff\xfe\x00",
        b"nul",
        b"{\"name\": NaN}",
        deep.as_bytes(),
        b"{\"a\":1}{",
    ];
    for list in ["organizations", "hosts", "job_templates", "credentials", "tokens", "users"] {
        for body in bodies {
            let request = Request::post(format!("/api/v2/{list}/"))
                .header("authorization", basic("admin", "pw"))
                .header("content-type", "application/json")
                .body(Body::from(body.to_vec()));
            let reply = api.send(request.unwrap()).await;
            assert_eq!(reply.status, 400, "{list}: {:?}", &body[..body.len().min(20)]);
            assert!(
                reply.json["detail"].as_str().unwrap().starts_with("JSON parse error - "),
                "{}",
                reply.text
            );
            assert_eq!(reply.headers["content-type"], "application/json");
        }
    }
}

#[tokio::test]
async fn every_field_survives_every_type() {
    let api = Api::new().await;
    api.template("base").await;
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(0.5),
        json!(""),
        json!("x\u{0}y"),
        json!([]),
        json!({}),
        json!([[[1]]]),
        json!({"a": {"b": null}}),
        json!("\u{202e}\u{1f4a9}"),
        json!(9_223_372_036_854_775_807_i64),
        json!("9".repeat(400)),
    ];
    for resource in registry::ALL.iter().filter(|resource| resource.verbs.create) {
        for field in resource.fields {
            // Each user costs a password's hash, so these meet fewer values.
            let step = if resource.path == "users" { 5 } else { 1 };
            for value in odd.iter().step_by(step) {
                let mut body = json!({"name": "n", "username": "n", "password": "p", "organization": 1, "inventory": 1,
                                      "project": 1, "playbook": "site.yml", "credential_type": 1, "image": "ee", "kind": "cloud"});
                body[field.name] = value.clone();
                let reply = api.post(&resource.list_url(), body.clone()).await;
                assert!(reply.status.as_u16() < 500, "{resource:?} {body}: {}", reply.text);
                if reply.status == 201 {
                    api.call("DELETE", reply.json["url"].as_str().unwrap(), json!(null)).await;
                } else {
                    assert!(reply.json.is_object(), "{resource:?} {body}: {}", reply.text);
                }
            }
        }
    }
    for (name, _) in [
        ("limit", 0),
        ("inventory", 0),
        ("credentials", 0),
        ("extra_vars", 0),
        ("credential_passwords", 0),
        ("forks", 0),
    ] {
        for value in &odd {
            let reply = api.post("/api/v2/job_templates/2/launch/", json!({name: value})).await;
            assert!(reply.status.as_u16() < 500, "{name} {value}: {}", reply.text);
        }
    }
}

#[tokio::test]
async fn every_filter_survives_every_value() {
    let api = Api::new().await;
    api.template("base").await;
    let lookups = [
        "",
        "__in",
        "__isnull",
        "__gt",
        "__contains",
        "__iregex",
        "__endswith",
        "__nosuch",
        "__id",
        "__name__name",
    ];
    let values =
        ["", "%00", "%ff", "1", "-1", "null", "a,b,,", "%27%22%3B--", "99999999999999999999", "(%5B", "%25"];
    for resource in registry::ALL {
        for field in resource.fields {
            for lookup in lookups {
                for value in values {
                    let path = format!("{}?{}{lookup}={value}", resource.list_url(), field.name);
                    let reply = api.get(&path).await;
                    assert!(reply.status.as_u16() < 500, "{path}: {}", reply.text);
                }
            }
        }
    }
}

#[tokio::test]
async fn odd_addresses_and_headers_are_answered() {
    let api = Api::new().await;
    for path in [
        "/api/v2/organizations/%00/",
        "/api/v2/organizations/-1/",
        "/api/v2/organizations/99999999999999999999/",
        "/api/v2/organizations/%ff%fe/",
        "/api/v2/organizations/++++++/",
        "/api/v2/projects/..%2f..%2fetc/playbooks/",
        "/api/v2/%2e%2e/",
        "//api//v2//nosuch//",
        "/api/v2/users/'%20OR%201=1--/",
    ] {
        assert_eq!(api.get(path).await.status, 404, "{path}");
    }
    for header in ["Basic", "Basic !!!", "Basic YQ==", "Bearer", "Bearer ", "Digest x", "\u{7f}", ""] {
        let request = Request::get("/api/v2/me/");
        let Ok(request) = request.header("authorization", header).body(Body::empty()) else { continue };
        assert_eq!(api.send(request).await.status, 401, "{header:?}");
    }
    let request = Request::post("/api/v2/organizations/")
        .header("authorization", basic("admin", "pw"))
        .header("content-type", "application/xml")
        .body(Body::from("<x/>"));
    assert_eq!(api.send(request.unwrap()).await.status, 415);
}

#[tokio::test]
async fn a_body_is_bounded() {
    let api = Api::new().await;
    let long = json!({"name": "x".repeat(5 << 20)});
    let reply = api.post("/api/v2/organizations/", long).await;
    assert_eq!(reply.status, 413);
    assert!(reply.json["detail"].is_string());
}

#[tokio::test]
async fn a_database_that_fails_tells_nothing_of_itself() {
    let api = Api::new().await;
    api.app.db.close().await;
    let reply = api.get("/api/v2/organizations/").await;
    assert_eq!(reply.status, 503);
    assert!(!reply.text.contains("sql"), "{}", reply.text);
}

#[tokio::test]
async fn a_body_that_is_nested_too_deep_is_refused() {
    let api = Api::new().await;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let request = Request::post("/api/v2/inventories/")
        .header("authorization", basic("admin", "pw"))
        .header("content-type", "application/json")
        .body(Body::from(format!("{{\"name\": {}}}", deep(100_000))));
    assert_eq!(api.send(request.unwrap()).await.status, 400);
    for variables in [format!("a: {}", deep(20_000)), format!("{{\"a\": {}}}", deep(20_000))] {
        let body = json!({"name": "deep", "organization": 1, "variables": variables});
        let refused = api.post("/api/v2/inventories/", body).await;
        assert_eq!((refused.status, refused.json["variables"].is_array()), (StatusCode::BAD_REQUEST, true));
    }
}

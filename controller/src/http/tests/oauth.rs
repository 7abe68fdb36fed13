//! Applications and the tokens they get.

use super::*;

/// An application as it was made: its address, its id for others, its secret.
struct Client {
    url: String,
    id: String,
    secret: String,
}

const REDIRECT: &str = "https://app.example/cb";

async fn client(api: &Api, kind: &str, grant: &str) -> Client {
    let body = json!({"name": format!("{kind} {grant}"), "organization": 1, "client_type": kind,
                      "authorization_grant_type": grant, "redirect_uris": REDIRECT});
    let made = api.post("/api/v2/applications/", body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let text = |name: &str| made.json[name].as_str().unwrap_or_default().to_owned();
    Client { url: text("url"), id: text("client_id"), secret: text("client_secret") }
}

async fn form(api: &Api, path: &str, who: Option<&str>, fields: &[(&str, &str)]) -> Reply {
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}={}", call::encode(value))).collect();
    let mut request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
    if let Some(who) = who {
        request = request.header("authorization", who);
    }
    api.send(request.body(Body::from(fields.join("&"))).unwrap()).await
}

#[tokio::test]
async fn an_application_shows_its_secret_once() {
    let api = Api::new().await;
    let made = client(&api, "confidential", "password").await;
    assert_eq!((made.id.len(), made.secret.len()), (40, 128));
    let shown = api.get(&made.url).await;
    assert!(!shown.text.contains(&made.secret) && shown.json["client_secret"] == "$encrypted$");
    assert_eq!(
        (&shown.json["client_id"], &shown.json["type"]),
        (&json!(made.id), &json!("o_auth2_application"))
    );
    assert!(!api.get("/api/v2/activity_stream/").await.text.contains(&made.secret));
    let again = json!({"name": "confidential password", "organization": 1, "client_type": "public", "authorization_grant_type": "password"});
    let refused = api.post("/api/v2/applications/", again).await;
    assert_eq!((refused.status, refused.json["__all__"].is_array()), (StatusCode::BAD_REQUEST, true));
    for (field, value) in [
        ("redirect_uris", json!("javascript:alert(1)")),
        ("authorization_grant_type", json!("authorization-code")),
        ("client_type", json!("secret")),
    ] {
        let refused = api.call("PATCH", &made.url, json!({field: value})).await;
        assert_eq!(refused.status, 400, "{field}: {}", refused.text);
    }
    let changed = api.call("PATCH", &made.url, json!({"description": "mine"})).await;
    assert_eq!(changed.json["description"], "mine");
    // Its secret is as before.
    let fields = [("grant_type", "password"), ("username", "admin"), ("password", "pw")];
    let token = form(&api, "/api/o/token/", Some(&basic(&made.id, &made.secret)), &fields).await;
    assert_eq!(token.status, 200, "{}", token.text);
    let without = json!({"name": "x", "organization": 1, "client_type": "public", "authorization_grant_type": "authorization-code"});
    assert!(api.post("/api/v2/applications/", without).await.json["redirect_uris"].is_array());
    let ada = api.ordinary("ada").await;
    assert_eq!(api.by(&ada, "GET", &made.url, json!(null)).await.status, 404);
    assert_eq!(api.call("DELETE", &made.url, json!(null)).await.status, 204);
    let bearer = format!("Bearer {}", token.json["access_token"].as_str().unwrap());
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 401);
}

#[tokio::test]
async fn a_password_gets_a_token_which_can_be_refreshed_and_taken_back() {
    let api = Api::new().await;
    let made = client(&api, "confidential", "password").await;
    let right = basic(&made.id, &made.secret);
    let asked = |fields: &[(&'static str, &'static str)], who: String| {
        let fields = fields.to_vec();
        let api = &api;
        async move { form(api, "/api/o/token/", Some(&who), &fields).await }
    };
    let good = [("grant_type", "password"), ("username", "admin"), ("password", "pw"), ("scope", "read")];
    let refused = asked(&good, basic(&made.id, "wrong")).await;
    assert_eq!(
        (refused.status, &refused.json["error"]),
        (StatusCode::UNAUTHORIZED, &json!("invalid_client"))
    );
    for (fields, error) in [
        (&[("grant_type", "password"), ("username", "admin"), ("password", "x")][..], "invalid_grant"),
        (&[("grant_type", "authorization_code"), ("code", "x")], "unauthorized_client"),
        (&[("grant_type", "client_credentials")], "unsupported_grant_type"),
        (&[("grant_type", "refresh_token"), ("refresh_token", "x")], "invalid_grant"),
        (
            &[("grant_type", "password"), ("username", "admin"), ("password", "pw"), ("scope", "all")],
            "invalid_scope",
        ),
    ] {
        let refused = asked(fields, right.clone()).await;
        assert_eq!((refused.status, &refused.json["error"]), (StatusCode::BAD_REQUEST, &json!(error)));
    }
    let got = asked(&good, right.clone()).await;
    assert_eq!((got.status, &got.json["token_type"]), (StatusCode::OK, &json!("Bearer")));
    assert_eq!(got.headers["cache-control"], "no-store");
    let text = |reply: &Reply, name: &str| reply.json[name].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {}", text(&got, "access_token"));
    assert_eq!(api.by(&bearer, "GET", "/api/v2/organizations/", json!(null)).await.status, 200);
    assert_eq!(api.by(&bearer, "POST", "/api/v2/organizations/", json!({"name": "x"})).await.status, 403);
    // It is the application's and the user's, and shows nothing of itself.
    for list in ["/api/v2/users/1/authorized_tokens/".to_owned(), format!("{}tokens/", made.url)] {
        let listed = api.get(&list).await;
        assert_eq!(listed.json["count"], 1, "{list}: {}", listed.text);
        let shown = &listed.json["results"][0];
        assert_eq!(shown["summary_fields"]["application"]["client_id"], made.id);
        assert!(
            !listed.text.contains(&text(&got, "access_token"))
                && !listed.text.contains(&text(&got, "refresh_token"))
        );
    }
    assert_eq!(api.get("/api/v2/users/1/personal_tokens/").await.json["count"], 0);
    assert_eq!(api.get("/api/v2/users/1/applications/").await.json["count"], 1);
    // Refreshed once, the old pair is gone.
    let refresh = text(&got, "refresh_token");
    let fields = [("grant_type", "refresh_token"), ("refresh_token", refresh.as_str())];
    let fresh = form(&api, "/api/o/token/", Some(&right), &fields).await;
    assert_eq!((fresh.status, &fresh.json["scope"]), (StatusCode::OK, &json!("read")), "{}", fresh.text);
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 401);
    assert_eq!(form(&api, "/api/o/token/", Some(&right), &fields).await.json["error"], "invalid_grant");
    let bearer = format!("Bearer {}", text(&fresh, "access_token"));
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 200);
    // Another application takes nothing back.
    let other = client(&api, "public", "password").await;
    let token = text(&fresh, "access_token");
    let body = [("client_id", other.id.as_str()), ("token", token.as_str())];
    assert_eq!(form(&api, "/api/o/revoke_token/", None, &body).await.status, 200);
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 200);
    let revoked = form(&api, "/api/o/revoke_token/", Some(&right), &[("token", &token)]).await;
    assert_eq!((revoked.status, revoked.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.status, 401);
}

#[tokio::test]
async fn a_code_is_good_once_for_whom_it_was_made() {
    let api = Api::new().await;
    let made = client(&api, "public", "authorization-code").await;
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
    let query = format!(
        "client_id={}&response_type=code&redirect_uri={}&state=a%26b&code_challenge={challenge}&code_challenge_method=S256",
        made.id,
        call::encode(REDIRECT)
    );
    let address = format!("/api/o/authorize/?{query}");
    // Who is not logged in logs in first, and comes back.
    let reply = api.send(Request::get(&address).body(Body::empty()).unwrap()).await;
    let to = reply.headers["location"].to_str().unwrap().to_owned();
    assert!(
        reply.status == 302 && to.starts_with("/api/login/?next=%2Fapi%2Fo%2Fauthorize%2F%3Fclient_id"),
        "{to}"
    );
    let page = api.get(&address).await;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(
        page.text.contains("public authorization-code") && page.text.contains("value=\"a&amp;b\""),
        "{}",
        page.text
    );
    // Nobody is sent where the application does not live.
    for wrong in [address.replace("app.example", "evil.example"), address.replace(&made.id, "nobody")] {
        let reply = api.get(&wrong).await;
        assert!(reply.status == 400 && !reply.headers.contains_key("location"), "{wrong}");
    }
    let reply = api.get(&address.replace("response_type=code", "response_type=token")).await;
    assert!(reply.headers["location"].to_str().unwrap().contains("error=unsupported_response_type"));
    let fields = |allow: &'static str| {
        vec![
            ("client_id", made.id.as_str()),
            ("response_type", "code"),
            ("redirect_uri", REDIRECT),
            ("state", "s"),
            ("code_challenge", challenge),
            ("code_challenge_method", "S256"),
            ("allow", allow),
        ]
    };
    let admin = basic("admin", "pw");
    let denied = form(&api, "/api/o/authorize/", Some(&admin), &fields("")).await;
    assert_eq!(denied.headers["location"], "https://app.example/cb?error=access_denied&state=s");
    let code = async || {
        let reply = form(&api, "/api/o/authorize/", Some(&admin), &fields("Authorize")).await;
        let to = reply.headers["location"].to_str().unwrap().to_owned();
        assert!(reply.status == 302 && to.ends_with("&state=s"), "{to}");
        to.split("code=").nth(1).unwrap().split('&').next().unwrap().to_owned()
    };
    let get = async |code: &str, verifier: &str, redirect: &str| {
        let fields = [
            ("client_id", made.id.as_str()),
            ("grant_type", "authorization_code"),
            ("code", code),
            ("code_verifier", verifier),
            ("redirect_uri", redirect),
        ];
        form(&api, "/api/o/token/", None, &fields).await
    };
    let first = code().await;
    assert_eq!(get(&first, "wrong", REDIRECT).await.json["error"], "invalid_grant");
    assert_eq!(get(&first, verifier, REDIRECT).await.json["error"], "invalid_grant", "it was shown before");
    assert_eq!(get(&code().await, verifier, "https://app.example/other").await.status, 400);
    let third = code().await;
    let got = get(&third, verifier, REDIRECT).await;
    assert_eq!((got.status, &got.json["scope"]), (StatusCode::OK, &json!("write")), "{}", got.text);
    assert_eq!(get(&third, verifier, REDIRECT).await.status, 400);
    let bearer = format!("Bearer {}", got.json["access_token"].as_str().unwrap());
    assert_eq!(
        api.by(&bearer, "GET", "/api/v2/me/", json!(null)).await.json["results"][0]["username"],
        "admin"
    );
    // A page that another site sends a browser to cannot press the button for its user.
    let session = api.app.auth.begin_session(1).await.unwrap();
    let request = Request::post("/api/o/authorize/")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("cookie", format!("awx_sessionid={session}"))
        .body(Body::from(format!("client_id={}&response_type=code&allow=1", made.id)));
    assert_eq!(api.send(request.unwrap()).await.status, 403);
    let token = "x".repeat(64);
    let request = Request::post("/api/o/authorize/")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("cookie", format!("awx_sessionid={session}; csrftoken={token}"))
        .body(Body::from(format!(
            "client_id={}&response_type=code&allow=1&csrfmiddlewaretoken={token}",
            made.id
        )));
    assert_eq!(api.send(request.unwrap()).await.status, 302);
}

#[tokio::test]
async fn tokens_of_applications_are_made_below_users_and_applications() {
    let api = Api::new().await;
    let made = client(&api, "confidential", "password").await;
    let id = api.get(&made.url).await.json["id"].as_i64().unwrap();
    let own = api.post(&format!("{}tokens/", made.url), json!({"scope": "read"})).await;
    assert_eq!((own.status, &own.json["application"]), (StatusCode::CREATED, &json!(id)), "{}", own.text);
    assert_eq!(own.json["refresh_token"].as_str().unwrap().len(), 30);
    let given = json!({"application": id});
    assert_eq!(api.post("/api/v2/users/1/authorized_tokens/", given.clone()).await.status, 201);
    assert_eq!(api.post("/api/v2/tokens/", given.clone()).await.status, 201);
    assert_eq!(api.post("/api/v2/users/1/personal_tokens/", given).await.status, 400);
    assert_eq!(api.post("/api/v2/users/1/authorized_tokens/", json!({})).await.status, 400);
    assert_eq!(api.post("/api/v2/tokens/", json!({"application": 4711})).await.status, 400);
    assert_eq!(api.get(&format!("{}tokens/", made.url)).await.json["count"], 3);
}

#[tokio::test]
async fn whoever_guesses_waits() {
    let api = Api::new().await;
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses
            .push(api.by(&basic("admin", "guess"), "GET", "/api/v2/me/", json!(null)).await.status.as_u16());
    }
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429]);
    // By this door as by the others; a token and another name need no password of this one.
    let fields = [("username", "admin"), ("password", "guess")];
    assert_eq!(form(&api, "/api/login/", None, &fields).await.status, 429);
    assert_eq!(api.by(&basic("nobody", "guess"), "GET", "/api/v2/me/", json!(null)).await.status, 401);
}

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_browsers_careful() {
    let api = Api::new().await;
    for path in ["/api/v2/me/", "/api/v2/nothing/", "/api/login/"] {
        let headers = api.get(path).await.headers;
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(headers["referrer-policy"], "same-origin", "{path}");
        assert!(
            headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert!(!headers.contains_key("strict-transport-security"), "{path}");
    }
    let router = router(api.app.clone()).layer(axum::Extension(crate::https::Encrypted));
    let reply = router.oneshot(Request::get("/api/").body(Body::empty()).unwrap()).await.unwrap();
    assert!(reply.headers().contains_key("strict-transport-security"));
}

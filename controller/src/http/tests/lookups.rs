//! Secrets that are kept elsewhere, looked up at a server that speaks HashiCorp Vault's contract over HTTPS.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Path as Part;
use axum::routing::{get, post};
use axum_server::tls_rustls::RustlsConfig;

use super::*;
use crate::job;
use crate::store::core::Class;
use sea_query::Query;

/// A server with secrets. It counts what it is asked for.
struct Server {
    url: String,
    certificate: String,
    asked: Arc<AtomicU64>,
    handle: axum_server::Handle<SocketAddr>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

type Json = axum::Json<serde_json::Value>;

/// 403 without the token, as Vault.
fn allowed(headers: &HeaderMap) -> Result<(), StatusCode> {
    let token = headers.get("x-vault-token").and_then(|token| token.to_str().ok());
    if matches!(token, Some("s.static" | "s.role")) { Ok(()) } else { Err(StatusCode::FORBIDDEN) }
}

impl Server {
    async fn start() -> Self {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let (authority_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = authority.self_signed(&authority_key).unwrap().pem();
        let own = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let own = own.signed_by(&key, &rcgen::Issuer::new(authority, authority_key)).unwrap().pem();
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let login = async |axum::Json(body): Json| match (&body["role_id"], &body["secret_id"]) {
            (role, secret) if role == "r" && secret == "s3cret-id" => {
                Ok(axum::Json(json!({"auth": {"client_token": "s.role"}})))
            }
            _ => Err(StatusCode::BAD_REQUEST),
        };
        let first = async |headers: HeaderMap, Part(path): Part<String>| {
            allowed(&headers)?;
            let data = json!({"password": "geheim-eins", "user": "ada"});
            if path == "app" { Ok(axum::Json(json!({"data": data}))) } else { Err(StatusCode::NOT_FOUND) }
        };
        let second = async |headers: HeaderMap, Part(path): Part<String>, uri: axum::http::Uri| {
            allowed(&headers)?;
            let old = uri.query() == Some("version=1");
            let password = if old { "geheim-alt" } else { "geheim-zwei" };
            match path.as_str() {
                "app/db" => Ok(axum::Json(json!({"data": {"data": {"password": password}, "metadata": {}}}))),
                _ => Err(StatusCode::NOT_FOUND),
            }
        };
        let plain = async |headers: HeaderMap| match headers.get("authorization") {
            Some(value) if value == "Bearer plain-token" => Ok("geheim-drei\n"),
            _ => Err(StatusCode::UNAUTHORIZED),
        };
        let router = Router::new()
            .route("/v1/auth/approle/login", post(login))
            .route("/v1/kv/data/{*path}", get(second))
            .route("/v1/secret/{*path}", get(first))
            .route("/plain", get(plain))
            .route("/away", get(async || axum::response::Redirect::to("https://elsewhere.invalid/")))
            .layer(axum::middleware::map_request(move |request: axum::extract::Request| {
                count.fetch_add(1, Ordering::Relaxed);
                async move { request }
            }));
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let tls = RustlsConfig::from_pem(own.into_bytes(), key.serialize_pem().into_bytes());
        let handle = axum_server::Handle::new();
        let server = axum_server::from_tcp_rustls(listener, tls.await.unwrap()).unwrap();
        tokio::spawn(server.handle(handle.clone()).serve(router.into_make_service()));
        Self { url: format!("https://localhost:{port}"), certificate, asked, handle }
    }
}

async fn type_id(api: &Api, namespace: &str) -> i64 {
    let found = api.get(&format!("/api/v2/credential_types/?namespace={namespace}")).await;
    found.json["results"][0]["id"].as_i64().unwrap()
}

/// A credential for Vault, with these inputs beside the address of the server.
async fn source(api: &Api, server: &Server, namespace: &str, name: &str, more: serde_json::Value) -> i64 {
    let mut inputs = json!({"url": server.url, "cacert": server.certificate});
    inputs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let kind = type_id(api, namespace).await;
    let body = json!({"name": name, "organization": 1, "credential_type": kind, "inputs": inputs});
    api.make("credentials", body).await
}

#[tokio::test]
async fn a_source_is_tested_without_showing_what_it_finds() {
    let (api, server) = (Api::new().await, Server::start().await);
    let two = json!({"api_version": "v2", "token": "s.static"});
    let two = source(&api, &server, "hashivault_kv", "two", two).await;
    let role = json!({"api_version": "v1", "role_id": "r", "secret_id": "s3cret-id"});
    let role = source(&api, &server, "hashivault_kv", "role", role).await;
    let wrong = json!({"api_version": "v1", "token": "s.wrong"});
    let wrong = source(&api, &server, "hashivault_kv", "wrong", wrong).await;
    let plain = source(&api, &server, "https_secret", "plain", json!({"token": "plain-token"})).await;
    let other = json!({"name": "lost", "organization": 1, "credential_type": type_id(&api, "hashivault_kv").await,
                       "inputs": {"url": server.url, "token": "s.static", "api_version": "v1"}});
    let stranger = api.make("credentials", other).await;
    let app = json!({"secret_path": "secret/app", "secret_key": "password"});
    let db = json!({"secret_backend": "kv", "secret_path": "app/db", "secret_key": "password"});
    for (credential, metadata, expected) in [
        (two, db.clone(), None),
        (two, json!({"secret_path": "kv/app/db", "secret_key": "password", "secret_version": "1"}), None),
        (role, app.clone(), None),
        (plain, json!({"path": "plain"}), None),
        (
            two,
            json!({"secret_path": "kv/app/db", "secret_key": "none"}),
            Some("has no key none in this secret"),
        ),
        (two, json!({"secret_path": "kv/gone", "secret_key": "x"}), Some("answered 404 to the secret")),
        (wrong, app.clone(), Some("answered 403 to the secret")),
        (two, json!({"secret_key": "x"}), Some("required: secret_path")),
        (two, json!({"secret_path": "a", "secret_key": "x", "more": "x"}), Some("'more' was unexpected")),
        (plain, json!({"path": "away"}), Some("answered 303 to the secret")),
        (stranger, app.clone(), Some("no answer from https://localhost")),
    ] {
        let path = format!("/api/v2/credentials/{credential}/test/");
        let reply = api.post(&path, json!({"metadata": metadata})).await;
        match expected {
            None => {
                assert_eq!((reply.status, reply.text.as_str()), (StatusCode::ACCEPTED, "{}"), "{metadata}")
            }
            Some(words) => {
                assert_eq!(reply.status, 400, "{metadata}: {}", reply.text);
                assert!(reply.json["inputs"].as_str().unwrap().contains(words), "{}", reply.text);
                assert!(!reply.text.contains("s.static") && !reply.text.contains("geheim"), "{}", reply.text);
            }
        }
    }
    // A credential that is tested keeps its secret to its own server.
    let evil = json!({"inputs": {"url": "https://evil.invalid"}, "metadata": app});
    assert_eq!(api.post(&format!("/api/v2/credentials/{two}/test/"), evil).await.status, 400);
    // A type is tested with what the body brings.
    let kind = format!("/api/v2/credential_types/{}/test/", type_id(&api, "hashivault_kv").await);
    let inputs =
        json!({"url": server.url, "cacert": server.certificate, "token": "s.static", "api_version": "v2"});
    assert_eq!(api.post(&kind, json!({"inputs": inputs, "metadata": db})).await.status, 202);
    let machine = api.post("/api/v2/credential_types/1/test/", json!({})).await;
    assert_eq!((machine.status, machine.json["detail"].is_string()), (StatusCode::BAD_REQUEST, true));
    let ada = api.ordinary("ada").await;
    assert_eq!(api.by(&ada, "POST", &kind, json!({})).await.status, 403);
    let path = format!("/api/v2/credentials/{two}/test/");
    assert_eq!(api.by(&ada, "POST", &path, json!({"metadata": {}})).await.status, 404);
}

#[tokio::test]
async fn an_input_names_a_source_that_fits() {
    let (api, server) = (Api::new().await, Server::start().await);
    let vault = source(&api, &server, "hashivault_kv", "vault", json!({"token": "t"})).await;
    let conjur =
        json!({"name": "conjur", "organization": 1, "credential_type": type_id(&api, "conjur").await});
    let conjur = api.make("credentials", conjur).await;
    let machine =
        api.make("credentials", json!({"name": "m", "organization": 1, "credential_type": 1})).await;
    let body = |target: i64, source: i64, field: &str, metadata: serde_json::Value| json!({"target_credential": target, "source_credential": source, "input_field_name": field, "metadata": metadata});
    let metadata = json!({"secret_path": "kv/a", "secret_key": "b"});
    for (body, field) in [
        (body(vault, vault, "token", metadata.clone()), "target_credential"),
        (body(machine, machine, "password", metadata.clone()), "source_credential"),
        (body(machine, conjur, "password", metadata.clone()), "source_credential"),
        (body(machine, vault, "no_such_field", metadata.clone()), "input_field_name"),
        (body(machine, vault, "password", json!({})), "metadata"),
        (body(machine, vault, "password", json!({"secret_path": 7})), "metadata"),
    ] {
        let refused = api.post("/api/v2/credential_input_sources/", body.clone()).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(refused.json[field].is_array(), "{field}: {}", refused.text);
    }
    let made =
        api.post("/api/v2/credential_input_sources/", body(machine, vault, "password", metadata)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let twice = body(machine, vault, "password", json!({"secret_path": "kv/c", "secret_key": "d"}));
    assert_eq!(api.post("/api/v2/credential_input_sources/", twice).await.status, 400);
    let listed = api.get(&format!("/api/v2/credentials/{machine}/input_sources/")).await;
    assert_eq!(listed.json["results"][0]["id"], made.json["id"]);
    let url = made.json["url"].as_str().unwrap();
    let changed =
        api.call("PATCH", url, json!({"metadata": {"secret_path": "kv/x", "secret_key": "y"}})).await;
    assert_eq!(changed.json["metadata"]["secret_path"], "kv/x", "{}", changed.text);
    assert_eq!(api.call("PATCH", url, json!({"target_credential": vault})).await.status, 400);
    assert_eq!(api.call("DELETE", url, json!(null)).await.status, 204);
}

/// Types of AWX that nothing is looked up with here: credentials of them are kept, so that what was exported elsewhere comes in, and
/// whoever wants to use one is told.
#[tokio::test]
async fn a_source_of_another_kind_is_kept_and_says_that_nothing_is_looked_up_with_it() {
    let api = Api::new().await;
    let machine =
        api.make("credentials", json!({"name": "m", "organization": 1, "credential_type": 1})).await;
    let types = api.get("/api/v2/credential_types/?kind=external&page_size=50").await;
    let mut others = Vec::new();
    for kind in types.json["results"].as_array().unwrap() {
        let namespace = kind["namespace"].as_str().unwrap();
        if crate::lookup::NAMESPACES.contains(&namespace) {
            continue;
        }
        others.push(namespace.to_owned());
        let fields = kind["inputs"]["fields"].as_array().unwrap();
        let id = |field: &serde_json::Value| field["id"].as_str().unwrap().to_owned();
        let value =
            |field: &serde_json::Value| field["choices"].get(0).cloned().unwrap_or(json!("canary-5a1e"));
        let texts = fields.iter().filter(|field| field["type"] != "boolean");
        let inputs: serde_json::Map<_, _> = texts.map(|field| (id(field), value(field))).collect();
        let body =
            json!({"name": namespace, "organization": 1, "credential_type": kind["id"], "inputs": inputs});
        let made = api.post("/api/v2/credentials/", body.clone()).await;
        assert_eq!(made.status, 201, "{body}: {}", made.text);
        for field in fields.iter().filter(|field| field["secret"] == json!(true)) {
            assert_eq!(made.json["inputs"][id(field)], "$encrypted$", "{namespace}");
        }
        let unknown =
            json!({"name": "x", "organization": 1, "credential_type": kind["id"], "inputs": {"nosuch": "x"}});
        let unknown = api.post("/api/v2/credentials/", unknown).await;
        assert!(unknown.status == 400 && unknown.json["inputs"].is_array(), "{namespace}: {}", unknown.text);

        let needed = kind["inputs"]["metadata"].as_array().into_iter().flatten();
        let metadata: serde_json::Map<_, _> = needed.map(|field| (id(field), value(field))).collect();
        let words = format!("secrets are looked up in HashiCorp Vault and over HTTPS, not with {namespace}");
        let tested = format!("/api/v2/credentials/{}/test/", made.json["id"]);
        let tested = api.post(&tested, json!({"metadata": metadata})).await;
        assert_eq!(
            (tested.status, &tested.json["inputs"]),
            (StatusCode::BAD_REQUEST, &json!(words)),
            "{}",
            tested.text
        );
        let used = json!({"target_credential": machine, "source_credential": made.json["id"], "input_field_name": "password",
                          "metadata": metadata});
        let used = api.post("/api/v2/credential_input_sources/", used).await;
        assert_eq!(
            (used.status, &used.json["source_credential"][0]),
            (StatusCode::BAD_REQUEST, &json!(words))
        );
    }
    for known in ["aim", "azure_kv", "conjur", "hashivault_ssh", "thycotic_tss"] {
        assert!(others.iter().any(|other| other == known), "{known}: {others:?}");
    }
    let own = json!({"name": "own", "kind": "external", "inputs": {}, "injectors": {}});
    let own = api.post("/api/v2/credential_types/", own).await;
    assert_eq!(
        (own.status, &own.json["kind"][0]),
        (StatusCode::BAD_REQUEST, &json!("Must be 'cloud' or 'net', not external"))
    );
}

#[tokio::test]
async fn a_job_gets_what_its_credentials_look_up_and_nothing_else_keeps_it() {
    let (api, server) = (Api::new().await, Server::start().await);
    let two = json!({"api_version": "v2", "token": "s.static"});
    let vault = source(&api, &server, "hashivault_kv", "vault", two).await;
    let machine = api
        .make(
            "credentials",
            json!({"name": "m", "organization": 1, "credential_type": 1, "inputs": {"username": "ada"}}),
        )
        .await;
    let input = json!({"target_credential": machine, "source_credential": vault, "input_field_name": "password",
                       "metadata": {"secret_path": "kv/app/db", "secret_key": "password"}});
    let input = api.make("credential_input_sources", input).await;
    let template = api.template("t").await;
    let path = format!("/api/v2/job_templates/{template}/credentials/");
    assert_eq!(api.post(&path, json!({"id": machine})).await.status, 204);
    let job = api.make(&format!("job_templates/{template}/launch"), json!({})).await;
    let read = || job::credentials(&api.app.db, &api.app.vault, job);
    let found = read().await.unwrap();
    assert_eq!(found[0].inputs["password"].expose(), "geheim-zwei");
    assert_eq!(found[0].secrets().collect::<Vec<_>>(), ["geheim-zwei"], "it is hidden in output");
    // Asked once for a job, whatever becomes of the server or of the source meanwhile.
    let asked = server.asked.load(Ordering::Relaxed);
    let path = format!("/api/v2/credential_input_sources/{input}/");
    let other =
        json!({"metadata": {"secret_path": "kv/app/db", "secret_key": "password", "secret_version": "1"}});
    assert_eq!(api.call("PATCH", &path, other).await.status, 200);
    assert_eq!(read().await.unwrap()[0].inputs["password"].expose(), "geheim-zwei");
    assert_eq!(server.asked.load(Ordering::Relaxed), asked);
    let mut kept = Query::select();
    kept.column("sealed").from("job_lookups");
    let rows = api.app.db.all(&kept).await.unwrap();
    let sealed: String = rows[0].at(0).unwrap();
    assert!(rows.len() == 1 && Vault::is_sealed(&sealed) && !sealed.contains("geheim"));
    for path in [
        format!("/api/v2/jobs/{job}/"),
        format!("/api/v2/credentials/{machine}/"),
        "/api/v2/activity_stream/".to_owned(),
    ] {
        assert!(!api.get(&path).await.text.contains("geheim"), "{path}");
    }
    // With the job goes what was kept for it.
    let mut tx = api.app.db.begin(Class::Intent).await.unwrap();
    assert!(job::cancel(&mut tx, job).await.unwrap());
    tx.commit().await.unwrap();
    assert!(api.app.db.all(&kept).await.unwrap().is_empty());
    // The next job is another: it gets what is there now; without an answer it does not start.
    let next = api.make(&format!("job_templates/{template}/launch"), json!({})).await;
    let found = job::credentials(&api.app.db, &api.app.vault, next).await.unwrap();
    assert_eq!(found[0].inputs["password"].expose(), "geheim-alt");
    let third = api.make(&format!("job_templates/{template}/launch"), json!({})).await;
    let gone = json!({"metadata": {"secret_path": "kv/gone", "secret_key": "x"}});
    assert_eq!(api.call("PATCH", &path, gone).await.status, 200);
    let error = job::credentials(&api.app.db, &api.app.vault, third).await.unwrap_err();
    assert!(
        matches!(error, job::CredentialError::Lookup { credential, .. } if credential == machine),
        "{error}"
    );
}

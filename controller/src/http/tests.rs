//! The API as clients meet it: requests in, answers out, no network between.

mod access;
mod activity;
mod callback;
mod copies;
mod definitions;
mod events;
mod facts;
mod grep;
mod groups;
mod guide;
mod hostile;
mod inventories;
mod jobs;
mod lists;
mod live;
mod lookups;
mod oauth;
mod pages;
mod projects;
mod resources;
mod roles;
mod sources;
mod work;

use std::path::PathBuf;

use axum::http::{HeaderMap, Method, Request, StatusCode};
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tower::ServiceExt;

use super::*;
use crate::auth;
use crate::store::Engine;
use crate::store::testing::Place;

std::thread_local! {
    /// What the test of this thread runs on, if it was chosen for it.
    static ENGINE: std::cell::Cell<Option<Engine>> = const { std::cell::Cell::new(None) };
}

/// Runs a test of this thread on an engine.
fn on(engine: Engine, test: fn()) {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            ENGINE.set(None);
        }
    }
    let _reset = Reset;
    ENGINE.set(Some(engine));
    test();
}

/// Makes tests run on PostgreSQL too: those in which engines differ. All of them do with `PLEXUS_TEST_ENGINE=postgres`.
macro_rules! on_postgres_too {
    ($($name:ident,)*) => {
        mod on_postgres {
            $(#[test]
            fn $name() {
                crate::http::tests::on(crate::store::Engine::Postgres, super::$name);
            })*
        }
    };
}
use on_postgres_too;

/// An API of its own, with an admin whose password is `pw`.
struct Api {
    app: App,
    router: Router,
    dir: Place,
}

/// An answer, its body read.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
    json: serde_json::Value,
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

impl Api {
    async fn new() -> Self {
        let engine = ENGINE.get().unwrap_or(match std::env::var("PLEXUS_TEST_ENGINE").as_deref() {
            Ok("postgres") => Engine::Postgres,
            _ => Engine::Sqlite,
        });
        let dir = Place::new(engine);
        let db = dir.core().await;
        let vault = Vault::open(&dir.dir().join("secret")).unwrap();
        let projects: PathBuf = dir.dir().join("projects");
        std::fs::create_dir_all(projects.join("demo")).unwrap();
        std::fs::write(projects.join("demo/site.yml"), "- hosts: all\n").unwrap();
        let events = dir.events().await;
        let app = App::open(
            db.clone(),
            vault,
            events,
            Arc::new(NoMesh),
            projects,
            "controller-1",
            CancellationToken::new(),
        )
        .await
        .unwrap();
        auth::ensure_admin(&db, &app.auth, Some("pw")).await.unwrap();
        Self { router: router(app.clone()), app, dir }
    }

    /// One request as it is.
    async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 64 << 20).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        let json = serde_json::from_str(&text).unwrap_or_default();
        Reply { status: parts.status, headers: parts.headers, text, json }
    }

    /// A request of somebody.
    async fn by(&self, who: &str, method: &str, path: &str, body: serde_json::Value) -> Reply {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(path)
            .header("authorization", who)
            .header("content-type", "application/json");
        self.send(request.body(body).unwrap()).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.by(&basic("admin", "pw"), "GET", path, serde_json::Value::Null).await
    }

    async fn call(&self, method: &str, path: &str, body: serde_json::Value) -> Reply {
        self.by(&basic("admin", "pw"), method, path, body).await
    }

    async fn post(&self, path: &str, body: serde_json::Value) -> Reply {
        self.call("POST", path, body).await
    }

    /// Makes an object and gives its id.
    #[track_caller]
    fn make(&self, list: &str, body: serde_json::Value) -> impl Future<Output = i64> {
        let at = std::panic::Location::caller();
        let path = format!("/api/v2/{list}/");
        async move {
            let reply = self.post(&path, body).await;
            assert_eq!(reply.status, StatusCode::CREATED, "{path} at {at}: {}", reply.text);
            assert_eq!(reply.headers["location"], reply.json["url"].as_str().unwrap());
            reply.json["id"].as_i64().unwrap()
        }
    }

    /// A template that can be launched: its id.
    async fn template(&self, name: &str) -> i64 {
        let project =
            self.make("projects", json!({"name": name, "organization": 1, "local_path": "demo"})).await;
        let inventory = self.make("inventories", json!({"name": name, "organization": 1})).await;
        let body = json!({"name": name, "project": project, "inventory": inventory, "playbook": "site.yml"});
        self.make("job_templates", body).await
    }

    /// A user without any right: the header that speaks for them.
    async fn ordinary(&self, name: &str) -> String {
        self.make("users", json!({"username": name, "password": "user-pw"})).await;
        basic(name, "user-pw")
    }
}

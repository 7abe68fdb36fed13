//! AWX's REST API, so that the clients people have work unmodified.
//!
//! Every request takes the same way: it is read and bounded (`call`), its path chooses a resource of the registry or
//! a page of its own, and the answer gets the headers clients look at. What all resources share is in `generic`;
//! what one of them has of its own, its rules and actions, is in the file of its family.
//!
//! This module knows the store and the registry. Of the mesh it knows what [`MeshView`] shows.

mod access;
mod activity;
mod ad_hoc;
mod ansi;
mod applications;
mod browse;
mod bulk;
mod bundle;
mod call;
mod callback;
mod children;
mod copy;
mod counts;
mod credentials;
mod dashboard;
mod definitions;
mod enrolment;
mod environments;
mod error;
mod events;
mod fleet;
mod generic;
mod grep;
mod html;
mod inventories;
mod inventory_sources;
mod jobs;
mod labels;
mod later;
mod launch;
mod live;
mod login;
mod lookups;
mod mesh;
mod metrics;
mod oauth;
mod once;
mod openapi;
mod paging;
mod people;
mod plan;
mod projects;
mod roles;
mod root;
mod rules;
pub(crate) mod settings;
mod stdout;
mod survey;
mod system;
mod templates;
mod tokens;
mod updates;
mod websocket;
mod work;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use plexus_mesh::Mesh;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use counts::Counts;
pub use error::ApiError;
pub use mesh::{MeshError, MeshView, NoMesh};

use crate::auth::Auth;
use crate::enrolment::Enrolment;
use crate::fleet::Nodes;
use crate::kind::Kind;
use crate::live::Live;
use crate::registry;
use crate::store::core::CoreDb;
use crate::store::events::EventStore;
use crate::store::groups;
use crate::store::retention;
use crate::store::strays::Decision;
use crate::vault::Vault;
use call::Call;

/// The version of AWX whose API this is: clients compare its first number with their own.
pub const API_VERSION: &str = "24.6.1";

/// What the API serves from. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The database.
    pub db: CoreDb,
    /// The keys.
    pub vault: Vault,
    /// Who is asking.
    pub auth: Auth,
    /// What jobs printed and did.
    pub events: EventStore,
    /// What happens right now.
    pub live: Live,
    /// How long large lists are.
    pub counts: Counts,
    /// The mesh, as far as people see it.
    pub mesh: Arc<dyn MeshView>,
    /// What nodes say of themselves.
    pub nodes: watch::Receiver<Arc<Nodes>>,
    /// Directory of the manual projects.
    pub projects_root: Arc<PathBuf>,
    /// Name of this controller.
    pub node: Arc<str>,
    /// Identity of this installation.
    pub install: Uuid,
    /// Tokens and members, and the mesh that is told of revocations; none for a controller that stands alone.
    pub enrolment: Option<Arc<(Enrolment, Mesh)>>,
}

impl App {
    /// Brings up what the API needs: the built-in objects and the identity of the installation. Whoever watches
    /// something is let go when `shutdown` comes.
    ///
    /// # Errors
    /// What the database or the random numbers say.
    pub async fn open(
        db: CoreDb,
        vault: Vault,
        events: EventStore,
        mesh: Arc<dyn MeshView>,
        projects_root: PathBuf,
        node: &str,
        shutdown: CancellationToken,
    ) -> Result<Self, crate::auth::Error> {
        registry::seed(&db).await?;
        registry::definitions::seed(&db).await?;
        retention::seed(&db).await?;
        let install = root::installation(&db).await?;
        groups::seed(&db).await?;
        let auth = Auth::new(db.clone())?;
        let live = Live::start(db.clone(), events.clone(), shutdown);
        Ok(Self {
            db,
            vault,
            auth,
            events,
            live,
            counts: Counts::default(),
            mesh,
            projects_root: Arc::new(projects_root),
            node: node.into(),
            install,
            enrolment: None,
            nodes: watch::channel(Arc::default()).1,
        })
    }
}

/// The API as a service.
pub fn router(app: App) -> Router {
    Router::new().fallback(serve).with_state(app)
}

async fn serve(State(app): State<App>, request: Request) -> Response {
    let begun = Instant::now();
    let (mut parts, body) = request.into_parts();
    let id = Uuid::now_v7();
    let socket = websocket::requested(&mut parts).await;
    let (path, method) = (parts.uri.path().to_owned(), parts.method.clone());
    let page = browse::is_wanted(&method, &parts.headers, parts.uri.query());
    let asked = parts.uri.query().map(str::to_owned);
    let node = app.node.clone();
    let encrypted = parts.extensions.get::<crate::https::Encrypted>().is_some();
    let mut known = false;
    let mut allow = None;
    let mut response = match Call::read(app, parts, body).await {
        Ok(call) => {
            let answer = match socket {
                Some(socket) => websocket::accept(&call, socket),
                None => dispatch(&call).await,
            };
            known = call.somebody().is_some();
            allow = call.allowed();
            answer.unwrap_or_else(IntoResponse::into_response)
        }
        Err(error) => error.into_response(),
    };
    if page {
        response = browse::dressed(&path, asked.as_deref(), allow, response).await;
    }
    let took = begun.elapsed();
    let headers = response.headers_mut();
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    set("x-api-product-name", "AWX");
    if known {
        set("x-api-product-version", API_VERSION);
    }
    set("x-api-node", &node);
    set("x-api-request-id", &id.simple().to_string());
    let seconds = format!("{:.3}s", took.as_secs_f64());
    set("x-api-time", &seconds);
    set("x-api-total-time", &seconds);
    set("x-content-type-options", "nosniff");
    set("x-frame-options", "DENY");
    set("referrer-policy", "same-origin");
    set("cross-origin-opener-policy", "same-origin");
    set("permissions-policy", "camera=(), geolocation=(), microphone=()");
    if encrypted {
        set("strict-transport-security", "max-age=31536000");
    }
    // What is no page runs, loads and embeds nothing; pages say themselves what they need.
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    // What somebody may see is theirs: no cache in between keeps it.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Language, Origin, Cookie"));
    if let Some(allow) = allow {
        headers.entry(header::ALLOW).or_insert(HeaderValue::from_static(allow));
    }
    let status = response.status();
    if status.is_server_error() {
        tracing::warn!(request = %id.simple(), %method, path, status = status.as_u16(), "request failed");
    } else {
        let took_ms = took.as_secs_f64() * 1000.0;
        tracing::debug!(request = %id.simple(), %method, path, status = status.as_u16(), took_ms, "request");
    }
    response
}

/// What a request comes to.
type Answer = Result<Response, ApiError>;

async fn dispatch(call: &Call) -> Answer {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        [] => root::redirect(call),
        ["api"] => root::api(call).await,
        ["api", "login"] => login::login(call).await,
        ["api", "logout"] => login::logout(call).await,
        ["api", "docs"] => openapi::docs(call),
        ["api", "o"] => oauth::map(call),
        ["api", "o", "authorize"] => oauth::authorize(call).await,
        ["api", "o", "token"] => oauth::token(call).await,
        ["api", "o", "revoke_token"] => oauth::revoke(call).await,
        ["api", "v2"] => root::version_two(call),
        ["api", "v2", rest @ ..] => version_two(call, rest).await,
        ["websocket"] | ["api", "websocket"] => Err(websocket::needed()),
        ["api", "plexus", "v1", "mesh", rest @ ..]
            if matches!(rest.first(), Some(&("tokens" | "requests" | "revocations"))) =>
        {
            enrolment::serve(call, rest).await
        }
        ["metrics"] => metrics::serve(call).await,
        ["api", "plexus", "v1", "grep"] => grep::serve(call).await,
        ["api", "plexus", "v1", "work", "stray"] => work::strays(call).await,
        ["api", "plexus", "v1", "work", "stray", unit, "adopt"] => {
            work::decide(call, unit, Decision::Adopt).await
        }
        ["api", "plexus", "v1", "work", "stray", unit, "discard"] => {
            work::decide(call, unit, Decision::Discard).await
        }
        ["api", "plexus", "v1", "work", id, "abandon"] => work::abandon(call, id).await,
        ["api", "plexus", "v1", "mesh", rest @ ..] => mesh::serve(call, rest).await,
        _ => Err(ApiError::no_such_page()),
    }
}

async fn version_two(call: &Call, segments: &[&str]) -> Answer {
    match segments {
        ["ping"] => root::ping(call).await,
        ["config"] => root::config(call).await,
        ["me"] => root::me(call).await,
        ["metrics"] => metrics::serve(call).await,
        ["bulk"] => bulk::map(call),
        ["bulk", "host_create"] => bulk::create(call).await,
        ["bulk", "host_delete"] => bulk::delete(call).await,
        ["dashboard"] => dashboard::dashboard(call).await,
        ["dashboard", "graphs", "jobs"] => dashboard::jobs(call).await,
        ["mesh_visualizer"] => fleet::mesh_visualizer(call).await,
        ["settings"] => settings::categories(call),
        ["settings", slug] => settings::category(call, slug).await,
        [path] => match registry::by_path(path) {
            Some(resource) if resource.path != "job_host_summaries" => {
                generic::collection(call, resource).await
            }
            _ => later::list(call, path).unwrap_or_else(|| Err(ApiError::no_such_page())),
        },
        [path, id] => match (registry::by_path(path), Kind::of_group(path)) {
            (Some(resource), _) => generic::object(call, resource, id).await,
            (None, Some(kind)) => events::event(call, kind, id).await,
            (None, None) => later::object(call, path).unwrap_or_else(|| Err(ApiError::no_such_page())),
        },
        [path, id, below] => match (registry::by_path(path), Kind::of_group(path)) {
            (Some(resource), _) => below_object(call, resource, id, below).await,
            (None, Some(kind)) if *below == "children" => events::children(call, kind, id).await,
            (None, _) => Err(ApiError::no_such_page()),
        },
        [path, id, list, below] => match (Kind::of_path(path), *below) {
            (Some(kind), "children_summary") if *list == kind.names().events => {
                children::summary(call, kind, id).await
            }
            (Some(kind), "stream") if *list == "events" => live::of_job(call, kind, id).await,
            _ => Err(ApiError::no_such_page()),
        },
        _ => Err(ApiError::no_such_page()),
    }
}

/// Lists and actions of one object.
async fn below_object(call: &Call, resource: &'static registry::Resource, id: &str, name: &str) -> Answer {
    if let Some(list) = resource.list(name) {
        return generic::sub_list(call, resource, id, list).await;
    }
    if !resource.actions.contains(&name) {
        let later = later::below(call, resource, id, name).await;
        return later.unwrap_or_else(|| Err(ApiError::no_such_page()));
    }
    if let Some(kind) = Kind::of_path(resource.path) {
        match name {
            _ if name == kind.names().events => return events::of_job(call, kind, id).await,
            "stdout" => return stdout::of_job(call, kind, id).await,
            "cancel" => return jobs::cancel(call, kind, id).await,
            "why" => return plan::why(call, kind, id).await,
            _ => {}
        }
    }
    match (resource.path, name) {
        ("job_templates", "launch") => launch::launch(call, id).await,
        ("job_templates", "callback") => callback::serve(call, id).await,
        ("job_templates", "survey_spec") => survey::spec(call, id).await,
        ("system_job_templates", "launch") => system::launch(call, id).await,
        ("system_jobs", "cancel") => system::cancel(call, id).await,
        ("jobs", "relaunch") => launch::relaunch(call, id).await,
        ("projects", "update") => updates::of_project(call, id).await,
        ("projects", "playbooks") => projects::playbooks(call, id).await,
        ("projects", "inventories") => projects::inventories(call, id).await,
        ("inventories", "script") => inventories::script(call, id).await,
        ("inventories", "tree") => inventories::tree(call, id).await,
        ("inventories", "update_inventory_sources") => inventory_sources::update_all(call, id).await,
        ("inventory_sources", "update") => inventory_sources::update(call, id).await,
        ("inventory_sources", "credentials") => inventory_sources::credentials(call, id).await,
        ("hosts" | "groups", "ad_hoc_commands") => ad_hoc::below(call, resource, id).await,
        ("ad_hoc_commands", "relaunch") => ad_hoc::relaunch(call, id).await,
        ("inventories", "root_groups") => inventories::root_groups(call, id).await,
        ("groups", "all_hosts") => inventories::all_hosts(call, id).await,
        ("groups", "potential_children") => inventories::potential_children(call, id).await,
        ("hosts", "all_groups") => inventories::all_groups(call, id).await,
        ("hosts", "ansible_facts") => inventories::ansible_facts(call, id).await,
        (_, "variable_data") => inventories::variable_data(call, resource, id).await,
        (_, "object_roles") => roles::of_object(call, resource, id).await,
        (_, "copy") => copy::serve(call, resource, id).await,
        (_, "activity_stream") => activity::of_object(call, resource, id).await,
        (_, "access_list") => roles::access_list(call, resource, id).await,
        ("roles", "parents" | "children") => roles::kin(call, id, name).await,
        ("credentials", "test") => lookups::test_credential(call, id).await,
        ("credential_types", "test") => lookups::test_type(call, id).await,
        ("role_definitions", _) => definitions::of_definition(call, id, name).await,
        ("instance_groups", "jobs") => fleet::group_jobs(call, id).await,
        ("job_templates", "plan") => plan::of_template(call, id).await,
        ("instances", "install_bundle") => bundle::serve(call, id).await,
        ("instances", "health_check") => fleet::health_check(call, id).await,
        ("instances", "jobs") => fleet::instance_jobs(call, id).await,
        _ => Err(ApiError::no_such_page()),
    }
}

/// `200` with JSON.
fn ok(body: impl Into<serde_json::Value>) -> Answer {
    Ok(error::json_response(StatusCode::OK, &body.into()))
}

/// `204`.
fn done() -> Answer {
    Ok(Response::builder().status(StatusCode::NO_CONTENT).body(Body::empty()).unwrap_or_default())
}

//! The pages around the resources: the maps, ping, config, me.

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::call::Call;
use super::error::ApiError;
use super::{API_VERSION, Answer, access, generic, login, ok, settings};
use crate::registry::later::LATER;
use crate::registry::{ALL, INSTANCE_GROUPS, PROJECTS, USERS, read};
use crate::store::core::{Class, CoreDb, Error as StoreError};

const READS: &str = "GET, HEAD, OPTIONS";

/// The identity of the installation, made at the first start.
pub(super) async fn installation(db: &CoreDb) -> Result<Uuid, StoreError> {
    if let Some(known) = db.setting("install_uuid").await?.and_then(|text| text.parse().ok()) {
        return Ok(known);
    }
    let made = Uuid::new_v4();
    let now = jiff::Timestamp::now().as_microsecond();
    let mut tx = db.begin(Class::Bulk).await?;
    tx.set_setting("install_uuid", &made.to_string()).await?;
    tx.set_setting("incarnation", "1").await?;
    let mut organization = Query::insert();
    organization.into_table("organizations").columns(["name", "description", "created", "modified"]);
    organization.values_panic(["Default".into(), "The default organization.".into(), now.into(), now.into()]);
    tx.insert(&mut organization).await?;
    for name in ["controlplane", "default"] {
        let mut group = Query::insert();
        group.into_table("instance_groups").columns(["name", "policy_instance_list", "created", "modified"]);
        group.values_panic([name.into(), "[]".into(), now.into(), now.into()]);
        tx.insert(&mut group).await?;
    }
    tx.commit().await?;
    Ok(made)
}

pub(super) fn redirect(call: &Call) -> Answer {
    call.allow(READS)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/api/"));
    Ok(response)
}

pub(super) async fn api(call: &Call) -> Answer {
    call.allow(READS)?;
    let shown = |name| settings::setting(&call.app.db, name);
    let mut response = ok(json!({
        "description": "AWX REST API",
        "current_version": "/api/v2/",
        "available_versions": {"v2": "/api/v2/"},
        "oauth2": "/api/o/",
        "custom_logo": shown("CUSTOM_LOGO").await?,
        "custom_login_info": shown("CUSTOM_LOGIN_INFO").await?,
        "login_redirect_override": shown("LOGIN_REDIRECT_OVERRIDE").await?,
    }))?;
    let cookie = HeaderValue::from_str(&csrf_cookie()?);
    if call.cookie("csrftoken").is_none_or(|token| token.len() < 32)
        && let Ok(cookie) = cookie
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
        .headers_mut()
        .insert("x-api-session-cookie-name", HeaderValue::from_static(login::SESSION_COOKIE));
    Ok(response)
}

/// `Set-Cookie` of a new CSRF token. Scripts read it to send it back.
pub(super) fn csrf_cookie() -> Result<String, ApiError> {
    Ok(format!("csrftoken={}; Max-Age=31449600; Path=/; SameSite=Lax", login::csrf_token()?))
}

pub(super) fn version_two(call: &Call) -> Answer {
    call.allow(READS)?;
    let mut map = Map::new();
    for name in ["ping", "config", "settings", "me", "dashboard", "metrics"] {
        map.insert(name.to_owned(), format!("/api/v2/{name}/").into());
    }
    for resource in ALL {
        map.insert(resource.key.to_owned(), resource.list_url().into());
    }
    for later in LATER {
        map.insert(later.key.to_owned(), format!("/api/v2/{}/", later.path).into());
    }
    map.insert("bulk".to_owned(), "/api/v2/bulk/".into());
    map.insert("mesh_visualizer".to_owned(), "/api/v2/mesh_visualizer/".into());
    ok(map)
}

pub(super) async fn me(call: &Call) -> Answer {
    call.allow(READS)?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(crate::registry::options::document(&USERS, None, "Me"));
    }
    let own = Expr::col((read::BASE, "id")).eq(user.id);
    generic::page(call, &USERS, Some(own)).await
}

pub(super) async fn ping(call: &Call) -> Answer {
    call.allow(READS)?;
    let mut query = Query::select();
    query.columns(["hostname", "node_type", "uuid", "capacity", "version", "last_seen"]).from("instances");
    query.order_by("hostname", sea_query::Order::Asc);
    let mut instances = Vec::new();
    for row in call.app.db.all(&query).await? {
        instances.push(json!({
            "node": row.value::<String>("hostname")?,
            "node_type": row.value::<String>("node_type")?,
            "uuid": row.value::<String>("uuid")?,
            "heartbeat": row.value::<Option<i64>>("last_seen")?.map(read::time_json),
            "capacity": row.value::<i64>("capacity")?,
            "version": row.value::<String>("version")?,
        }));
    }
    let mut query = Query::select();
    query.column(("g", "name")).columns([("i", "hostname"), ("i", "capacity")]);
    query.from_as(INSTANCE_GROUPS.table.name, "g");
    let member = Expr::col(("m", "instance_group_id")).equals(("g", "id"));
    query.join_as(sea_query::JoinType::LeftJoin, "instance_group_members", "m", member);
    let instance = Expr::col(("i", "id")).equals(("m", "instance_id"));
    query.join_as(sea_query::JoinType::LeftJoin, "instances", "i", instance);
    query.order_by(("g", "id"), sea_query::Order::Asc);
    let mut groups: Vec<Value> = Vec::new();
    for row in call.app.db.all(&query).await? {
        let (name, host) = (row.at::<String>(0)?, row.at::<Option<String>>(1)?);
        if groups.last().is_none_or(|last| last["name"] != name.as_str()) {
            groups.push(json!({"name": name, "capacity": 0, "instances": []}));
        }
        if let (Some(group), Some(host)) = (groups.last_mut(), host) {
            let capacity = row.at::<Option<i64>>(2)?.unwrap_or(0);
            group["capacity"] = (group["capacity"].as_i64().unwrap_or(0) + capacity).into();
            if let Some(instances) = group["instances"].as_array_mut() {
                instances.push(host.into());
            }
        }
    }
    ok(json!({
        "ha": false,
        "version": API_VERSION,
        "active_node": &*call.app.node,
        "install_uuid": call.app.install.to_string(),
        "instances": instances,
        "instance_groups": groups,
    }))
}

pub(super) async fn config(call: &Call) -> Answer {
    call.allow(READS)?;
    call.user()?;
    // Where projects lie is told to who makes projects.
    let tells = access::creates(call, &PROJECTS).await?;
    let root = call.app.projects_root.clone();
    let paths = tokio::task::spawn_blocking(move || super::projects::local_paths(&root));
    let paths = if tells { paths.await.unwrap_or_default() } else { Vec::new() };
    let escalations = [
        "sudo",
        "su",
        "pbrun",
        "pfexec",
        "dzdo",
        "pmrun",
        "runas",
        "enable",
        "doas",
        "ksu",
        "machinectl",
        "sesu",
    ];
    ok(json!({
        "time_zone": "UTC",
        "license_info": {
            "license_type": "open",
            "valid_key": true,
            "subscription_name": "OPEN",
            "product_name": "AWX",
            "compliant": true,
        },
        "version": API_VERSION,
        "eula": "",
        "analytics_status": "off",
        "analytics_collectors": {},
        "become_methods": escalations.map(|name| [name, name]),
        "ui_next": true,
        "project_base_dir": if tells { call.app.projects_root.display().to_string() } else { String::new() },
        "project_local_paths": paths,
        "custom_virtualenvs": [],
        "plexus_version": env!("CARGO_PKG_VERSION"),
    }))
}

//! `job_templates/N/callback/`: a machine that was just set up asks to be configured. It knows a key of the template and
//! nothing else; the job it gets is limited to the one host of the template's inventory that it is.
//!
//! Which host that is follows from where the request came from: a host whose name or `ansible_host` is that address, or is a
//! name for it.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use sea_query::{Expr, ExprTrait, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, launch, ok, settings};
use crate::auth::User;
use crate::job;
use crate::registry::write::parse_variables;
use crate::store::core::{CoreDb, Error as StoreError};

/// Names that are looked up at most, so many at a time, and how long that may take in all.
const MAX_NAMES: usize = 1000;
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(5);

/// A host as it may be recognized.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    name: String,
    /// `ansible_host`, or the name.
    address: String,
}

pub(super) async fn serve(call: &Call, id: &str) -> Answer {
    call.allow("GET, POST, HEAD, OPTIONS")?;
    if call.method != Method::POST {
        return show(call, id).await;
    }
    let absent = || ApiError::missing("JobTemplate");
    let id: i64 = id.parse().map_err(|_| absent())?;
    let body = call.object()?;
    let (key, inventory) = key(&call.app.db, id).await?.unwrap_or_default();
    let given = body.get("host_config_key").and_then(Value::as_str).unwrap_or_default();
    let guess = format!("callback {id}");
    call.app.auth.may_guess(&guess, call.from())?;
    // A template without a key takes no calls, and looks like one that is not there.
    if key.is_empty() || !crate::auth::same(given.as_bytes(), key.as_bytes()) {
        call.app.auth.guessed_wrong(&guess, call.from());
        return Err(ApiError::forbidden());
    }
    let refuse = |words: &str| Err(ApiError::Body(StatusCode::BAD_REQUEST, json!({"msg": words})));
    let hosts = matching(call, inventory).await?;
    let host = match hosts.as_slice() {
        [] => return refuse("No matching host could be found!"),
        [host] => host,
        _ => return refuse("Multiple hosts matched the request!"),
    };
    if is_pending(&call.app.db, id, host).await? {
        return refuse("Host callback job already pending.");
    }
    // Nobody launches it; the template's owner let it be launched by whoever has the key.
    let machine = User {
        id: User::NOBODY,
        username: String::new(),
        first_name: String::new(),
        last_name: String::new(),
        is_superuser: true,
        is_system_auditor: false,
    };
    let vars = body.get("extra_vars").cloned();
    match launch::called(&call.on_behalf_of(machine), id, host, vars).await {
        Ok(launched) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::CREATED;
            if let Some(at) = launched.headers().get(header::LOCATION) {
                response.headers_mut().insert(header::LOCATION, at.clone());
            }
            Ok(response)
        }
        Err(ApiError::Fields(_) | ApiError::Body(..)) => {
            refuse("Cannot start automatically, user input required!")
        }
        Err(error) => Err(error),
    }
}

/// What somebody who sees the template is shown: its key, and the hosts that they would be.
async fn show(call: &Call, id: &str) -> Answer {
    let template = super::generic::fetch(call, &crate::registry::JOB_TEMPLATES, id).await?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Job Template Callback", "actions": {"POST": {}, "GET": {}}}));
    }
    let hosts = matching(call, template.int("inventory")).await?;
    ok(json!({"host_config_key": template.text("host_config_key"), "matching_hosts": hosts}))
}

/// The key and the inventory of a template.
async fn key(db: &CoreDb, id: i64) -> Result<Option<(String, Option<i64>)>, StoreError> {
    let mut query = Query::select();
    query.columns(["host_config_key", "inventory_id"]).from("job_templates");
    query.and_where(Expr::col("id").eq(id));
    db.optional(&query).await?.map(|row| Ok((row.at(0)?, row.at(1)?))).transpose()
}

async fn is_pending(db: &CoreDb, template: i64, host: &str) -> Result<bool, StoreError> {
    let mut query = Query::select();
    query.column("id").from("unified_jobs").and_where(Expr::col("job_template_id").eq(template));
    query.and_where(Expr::col("launch_type").eq("callback")).and_where(Expr::col("limit").eq(host));
    query.and_where(Expr::col("status").is_in(job::ACTIVE)).limit(1);
    Ok(db.optional(&query).await?.is_some())
}

/// Names of the hosts of an inventory that the request came from.
async fn matching(call: &Call, inventory: Option<i64>) -> Result<Vec<String>, ApiError> {
    let Some(inventory) = inventory else { return Ok(Vec::new()) };
    let from = origins(call).await?;
    let mut query = Query::select();
    query.columns(["name", "variables"]).from("hosts").and_where(Expr::col("inventory_id").eq(inventory));
    query.and_where(Expr::col("enabled").eq(true));
    let mut hosts = Vec::new();
    for row in call.app.db.all(&query).await? {
        hosts.push(known(row.at(0)?, &row.at::<String>(1)?));
    }
    let (mut found, names) = sorted(hosts, &from);
    let from = &from;
    if found.is_empty() {
        let resolved = stream::iter(names.into_iter().take(MAX_NAMES))
            .map(|host| async move {
                let addresses = tokio::net::lookup_host((host.address.as_str(), 0)).await;
                let is =
                    addresses.is_ok_and(|mut all| all.any(|address| from.contains(&plain(address.ip()))));
                is.then_some(host.name)
            })
            .buffer_unordered(AT_ONCE);
        let collected = resolved.filter_map(|name| async { name }).collect::<Vec<String>>();
        found = tokio::time::timeout(PATIENCE, collected).await.unwrap_or_default();
    }
    found.sort();
    Ok(found)
}

/// Where the request came from: its address, and what trusted proxies say of it, where settings name the header.
async fn origins(call: &Call) -> Result<Vec<IpAddr>, ApiError> {
    let texts = |value: Value| -> Vec<String> {
        let list = value.as_array().cloned().unwrap_or_default();
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let names = texts(settings::setting(&call.app.db, "REMOTE_HOST_HEADERS").await?);
    let proxies = texts(settings::setting(&call.app.db, "PROXY_IP_ALLOWED_LIST").await?);
    let direct = plain(call.from());
    let trusted = proxies.iter().any(|proxy| proxy.parse().is_ok_and(|proxy: IpAddr| plain(proxy) == direct));
    let mut from = vec![direct];
    for name in names.iter().filter(|_| trusted) {
        let Some(header) = name.strip_prefix("HTTP_") else { continue };
        let value = call.headers.get(header.replace('_', "-").to_ascii_lowercase());
        let value = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
        from.extend(value.split(',').filter_map(|part| part.trim().parse().ok()).map(plain));
    }
    Ok(from)
}

/// IPv4 as such, however it came in.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn known(name: String, variables: &str) -> Known {
    let variables = parse_variables(variables).unwrap_or_default();
    let address = ["ansible_host", "ansible_ssh_host"]
        .iter()
        .find_map(|key| variables.get(*key).and_then(Value::as_str))
        .unwrap_or(&name)
        .to_owned();
    Known { name, address }
}

/// The hosts whose address is one of these, and those whose address is a name that has to be looked up.
fn sorted(hosts: Vec<Known>, from: &[IpAddr]) -> (Vec<String>, Vec<Known>) {
    let (mut found, mut names) = (Vec::new(), Vec::new());
    for host in hosts {
        match host.address.parse::<IpAddr>() {
            Ok(address) if from.contains(&plain(address)) => found.push(host.name),
            Ok(_) => {}
            Err(_) => names.push(host),
        }
    }
    (found, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_recognized_by_its_address_or_its_name() {
        let hosts = vec![
            known("192.0.2.1".to_owned(), ""),
            known("web1".to_owned(), "ansible_host: 192.0.2.2"),
            known("web2".to_owned(), r#"{"ansible_ssh_host": "::ffff:192.0.2.3"}"#),
            known("db.example.org".to_owned(), "ansible_user: x"),
        ];
        let address = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        assert_eq!(sorted(hosts.clone(), &address("192.0.2.1")).0, ["192.0.2.1"]);
        assert_eq!(sorted(hosts.clone(), &address("192.0.2.2")).0, ["web1"]);
        assert_eq!(sorted(hosts.clone(), &address("192.0.2.3")).0, ["web2"]);
        let (found, names) = sorted(hosts, &address("192.0.2.9"));
        assert!(found.is_empty() && names.len() == 1 && names[0].name == "db.example.org");
    }
}

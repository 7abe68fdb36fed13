//! The mesh as people see it: our own addresses beside AWX's.

use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::BoxFuture;
use plexus_proto::id::NodeId;
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::{Answer, ok};

/// Longest a probe may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a probe has no answer.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Nobody of that name was ever announced.
    #[error("node {0} is not known in the mesh")]
    Unknown(NodeId),
    /// No way leads there at the moment.
    #[error("no route to node {0}")]
    NoRoute(NodeId),
    /// No answer in time.
    #[error("node {node} did not answer within {} ms", timeout.as_millis())]
    Timeout {
        /// Who was asked.
        node: NodeId,
        /// How long.
        timeout: Duration,
    },
    /// Anything else, in words for people.
    #[error("{0}")]
    Failed(String),
}

/// What the API may show of the mesh. The documents are the mesh's own; the API passes them on.
pub trait MeshView: Send + Sync {
    /// This node, its links, what it knows of others.
    fn status(&self) -> Value;
    /// All nodes, reachable or not.
    fn nodes(&self) -> Value;
    /// Pairs of neighbors, each once: for the picture of the mesh.
    fn links(&self) -> Vec<(NodeId, NodeId)>;
    /// The ways from this node to the others.
    fn routes(&self) -> Value {
        json!({"schema_version": 1, "routes": []})
    }
    /// Every link of the mesh, with what is known of it.
    fn mesh_links(&self) -> Value {
        json!({"schema_version": 1, "links": []})
    }
    /// What happened after event number `after`, waiting no longer than `wait` for something.
    fn events(&self, _after: u64, _wait: Duration) -> BoxFuture<'_, Result<Value, MeshError>> {
        Box::pin(async { Err(MeshError::Failed("this controller has no mesh".to_owned())) })
    }
    /// What UDP and TCP do between two nodes; from this one where `from` is left out.
    fn netcheck(&self, _from: Option<NodeId>, to: NodeId) -> BoxFuture<'_, Result<Value, MeshError>> {
        Box::pin(async { Err(MeshError::Unknown(to)) })
    }
    /// Asks a node for a sign of life.
    fn ping(&self, node: NodeId, timeout: Duration) -> BoxFuture<'_, Result<Value, MeshError>>;
    /// Asks every node on the way to a node.
    fn trace(&self, node: NodeId, timeout: Duration) -> BoxFuture<'_, Result<Value, MeshError>>;
}

/// A mesh of nobody, for a controller that stands alone.
pub struct NoMesh;

impl MeshView for NoMesh {
    fn status(&self) -> Value {
        json!({"schema_version": 1, "nodes": [], "links": []})
    }

    fn nodes(&self) -> Value {
        json!({"schema_version": 1, "nodes": []})
    }

    fn links(&self) -> Vec<(NodeId, NodeId)> {
        Vec::new()
    }

    fn ping(&self, node: NodeId, _: Duration) -> BoxFuture<'_, Result<Value, MeshError>> {
        Box::pin(async { Err(MeshError::Unknown(node)) })
    }

    fn trace(&self, node: NodeId, _: Duration) -> BoxFuture<'_, Result<Value, MeshError>> {
        Box::pin(async { Err(MeshError::Unknown(node)) })
    }
}

pub(super) async fn serve(call: &Call, rest: &[&str]) -> Answer {
    let reads = "GET, HEAD, OPTIONS";
    let writes = "POST, OPTIONS";
    let allow = match rest {
        ["status"] | ["nodes"] | ["routes"] | ["links"] | ["events"] => reads,
        ["ping"] | ["trace"] | ["netcheck"] => writes,
        _ => return Err(ApiError::no_such_page()),
    };
    call.allow(allow)?;
    if !call.user()?.is_superuser {
        return Err(ApiError::forbidden());
    }
    if call.method == axum::http::Method::OPTIONS {
        return ok(json!({"name": "Mesh", "actions": {}}));
    }
    match rest {
        ["status"] => ok(call.app.mesh.status()),
        ["nodes"] => ok(call.app.mesh.nodes()),
        ["routes"] => ok(call.app.mesh.routes()),
        ["links"] => ok(call.app.mesh.mesh_links()),
        ["events"] => {
            let (after, wait) = events_after(call)?;
            call.app.mesh.events(after, wait).await.map_or_else(|error| Err(failed(error)), ok)
        }
        ["netcheck"] => {
            let (from, to) = (node_of(call, "from")?, node_of(call, "to")?);
            let to = to.ok_or_else(|| ApiError::field("to", "This field is required."))?;
            call.app.mesh.netcheck(from, to).await.map_or_else(|error| Err(failed(error)), ok)
        }
        _ => {
            let (node, timeout) = probed(call)?;
            let answer = match rest {
                ["ping"] => call.app.mesh.ping(node, timeout).await,
                _ => call.app.mesh.trace(node, timeout).await,
            };
            answer.map_or_else(|error| Err(failed(error)), ok)
        }
    }
}

fn probed(call: &Call) -> Result<(NodeId, Duration), ApiError> {
    let body = call.object()?;
    let node = node_of(call, "node")?.ok_or_else(|| ApiError::field("node", "This field is required."))?;
    let timeout =
        body.get("timeout_ms").and_then(Value::as_u64).map_or(Duration::from_secs(5), Duration::from_millis);
    Ok((node, timeout.min(MAX_TIMEOUT)))
}

/// A node's name in field `name` of the body.
fn node_of(call: &Call, name: &'static str) -> Result<Option<NodeId>, ApiError> {
    let body = call.object()?;
    let Some(node) = body.get(name).and_then(Value::as_str).filter(|node| !node.is_empty()) else {
        return Ok(None);
    };
    node.parse::<NodeId>().map(Some).map_err(|error| ApiError::field(name, error.to_string()))
}

/// `?after=NUMBER&wait_ms=MILLISECONDS`.
fn events_after(call: &Call) -> Result<(u64, Duration), ApiError> {
    let number = |name: &'static str| match call.parameter(name).map(str::parse::<u64>) {
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(ApiError::field(name, "A valid integer is required.")),
        None => Ok(0),
    };
    Ok((number("after")?, Duration::from_millis(number("wait_ms")?).min(MAX_TIMEOUT)))
}

fn failed(error: MeshError) -> ApiError {
    let status = match &error {
        MeshError::Unknown(_) => StatusCode::NOT_FOUND,
        MeshError::NoRoute(_) => StatusCode::SERVICE_UNAVAILABLE,
        MeshError::Failed(_) => StatusCode::BAD_GATEWAY,
        MeshError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
    };
    ApiError::Detail(status, error.to_string())
}

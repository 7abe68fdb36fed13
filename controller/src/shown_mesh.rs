//! The mesh as the API shows it: the documents of `plexus_mesh::status`, made from this controller's own node.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use plexus_mesh::Mesh;
use plexus_mesh::local::{ActError, Answers};
use plexus_mesh::status::QueryError;
use plexus_proto::id::NodeId;
use serde::Serialize;
use serde_json::Value;

use crate::http::{MeshError, MeshView};

/// Shows a running mesh node.
pub struct ShownMesh(pub Mesh);

impl MeshView for ShownMesh {
    fn status(&self) -> Value {
        document(&Answers::status(&self.0))
    }

    fn nodes(&self) -> Value {
        document(&Answers::status(&self.0).nodes())
    }

    fn links(&self) -> Vec<(NodeId, NodeId)> {
        let status = Answers::status(&self.0);
        let pairs = status.nodes.iter().flat_map(|node| {
            let later = node.neighbors.keys().filter(|&neighbor| *neighbor > node.node);
            later.map(|neighbor| (node.node.clone(), neighbor.clone()))
        });
        pairs.collect()
    }

    fn ping(&self, node: NodeId, timeout: Duration) -> BoxFuture<'_, Result<Value, MeshError>> {
        async move { answer(Answers::ping(&self.0, node, timeout).await) }.boxed()
    }

    fn trace(&self, node: NodeId, timeout: Duration) -> BoxFuture<'_, Result<Value, MeshError>> {
        async move { answer(Answers::trace(&self.0, node, timeout).await) }.boxed()
    }

    fn routes(&self) -> Value {
        document(&Answers::routes(&self.0))
    }

    fn mesh_links(&self) -> Value {
        document(&Answers::links(&self.0))
    }

    fn events(&self, after: u64, wait: Duration) -> BoxFuture<'_, Result<Value, MeshError>> {
        async move { acted(Answers::events(&self.0, after, wait).await) }.boxed()
    }

    fn netcheck(&self, from: Option<NodeId>, to: NodeId) -> BoxFuture<'_, Result<Value, MeshError>> {
        async move { acted(Answers::netcheck(&self.0, from, to).await) }.boxed()
    }
}

fn acted(result: Result<impl Serialize, ActError>) -> Result<Value, MeshError> {
    match result {
        Ok(value) => Ok(document(&value)),
        Err(ActError::Query(error)) => answer(Err::<Value, _>(error)),
        Err(error) => Err(MeshError::Failed(error.to_string())),
    }
}

fn document(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("the documents have text keys only")
}

fn answer(result: Result<impl Serialize, QueryError>) -> Result<Value, MeshError> {
    match result {
        Ok(value) => Ok(document(&value)),
        Err(QueryError::UnknownNode(node)) => Err(MeshError::Unknown(node)),
        Err(QueryError::Unreachable(node)) => Err(MeshError::NoRoute(node)),
        Err(QueryError::Timeout { node, timeout }) => Err(MeshError::Timeout { node, timeout }),
        Err(error) => Err(MeshError::Failed(error.to_string())),
    }
}

//! Who answers at the node's local door: the mesh for all that concerns it, the supervisor for units and images.

use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_mesh::local::{ActError, Action, Answers};
use plexus_mesh::status::{
    MeshEvents, MeshLinks, Netcheck, Ping, QueryError, Reloaded, Routes, Status, Trace,
};
use plexus_proto::id::NodeId;
use serde_json::Value;

use crate::supervisor::Supervisor;

/// A running node, for the people of its machine.
#[derive(Debug, Clone)]
pub struct Door {
    mesh: Mesh,
    supervisor: Option<Supervisor>,
}

impl Door {
    /// The door of a node; a hop has no supervisor.
    pub fn new(mesh: Mesh, supervisor: Option<Supervisor>) -> Self {
        Self { mesh, supervisor }
    }
}

impl Answers for Door {
    fn status(&self) -> Status {
        self.mesh.status()
    }

    async fn ping(&self, node: NodeId, timeout: Duration) -> Result<Ping, QueryError> {
        Answers::ping(&self.mesh, node, timeout).await
    }

    async fn trace(&self, node: NodeId, timeout: Duration) -> Result<Trace, QueryError> {
        Answers::trace(&self.mesh, node, timeout).await
    }

    async fn events(&self, after: u64, wait: Duration) -> Result<MeshEvents, ActError> {
        Answers::events(&self.mesh, after, wait).await
    }

    fn routes(&self) -> Routes {
        Answers::routes(&self.mesh)
    }

    fn links(&self) -> MeshLinks {
        Answers::links(&self.mesh)
    }

    async fn netcheck(&self, from: Option<NodeId>, to: NodeId) -> Result<Netcheck, ActError> {
        Answers::netcheck(&self.mesh, from, to).await
    }

    async fn reload(&self) -> Result<Reloaded, ActError> {
        Answers::reload(&self.mesh).await
    }

    async fn act(&self, action: Action) -> Result<Value, ActError> {
        match (&self.supervisor, &action) {
            (Some(supervisor), Action::ImageList | Action::ImageCheck { .. } | Action::ImagePull { .. }) => {
                supervisor.images().act(action).await
            }
            _ => Answers::act(&self.mesh, action).await,
        }
    }
}

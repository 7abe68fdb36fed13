//! Who answers at the node's local door: the mesh for all that concerns it, the supervisor for units and images.

use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_mesh::local::{ActError, Action, Answers};
use plexus_mesh::status::{
    MeshEvents, MeshLinks, Netcheck, Ping, Problem, QueryError, Reloaded, Routes, Status, Trace,
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
        let mut status = self.mesh.status();
        if let Some(reason) = self.supervisor.as_ref().and_then(Supervisor::cordoned) {
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            status.problems.push(Problem {
                code: "cordoned".to_owned(),
                subject: status.node.to_string(),
                text: format!("this node is cordoned and takes no new units{why}"),
                advice: "plexus node uncordon, as root at this node's socket, when it may work again"
                    .to_owned(),
            });
        }
        status
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
            (Some(supervisor), Action::Cordon { .. } | Action::Uncordon | Action::Drain { .. }) => {
                supervisor.tend(action).await
            }
            _ => Answers::act(&self.mesh, action).await,
        }
    }
}

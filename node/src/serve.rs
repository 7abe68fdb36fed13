//! The node's services on the mesh: verbs over gRPC; payload, records and collected trees as framed messages.
//!
//! Handlers take any stream and the certified identity of its other end, so that tests hold them without a mesh.

pub mod collect;
pub mod payload;
pub mod records;
pub mod verbs;

use plexus_mesh::framed;
use plexus_mesh::{Allow, ListenError, Mesh, grpc};
use plexus_proto::id::{Identity, Role};
use plexus_proto::work::{Refusal, WorkServer};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, info_span, warn};

use crate::supervisor::Supervisor;
use crate::work::Caller;
use verbs::Verbs;

/// Only the controllers of this node's own cluster.
const OWNERS: Allow = Allow { roles: &[Role::Controller], same_cluster: true };

/// A conversation that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream broke, or carried nonsense.
    #[error("conversation broke")]
    Framed(#[from] framed::Error),
    /// The peer spoke out of turn.
    #[error("peer sent {0} where it may not")]
    Unexpected(&'static str),
    /// The spool turned out to have lost what was sent of it; the stream ends, for the peer to attach anew.
    #[error("the spool lost records that were sent already")]
    Lost,
    /// The node refused; the peer was told.
    #[error("refused: {}", .0.message)]
    Refused(Refusal),
}

impl From<&Identity> for Caller {
    fn from(identity: &Identity) -> Self {
        Self { cluster: identity.cluster.clone(), node: identity.node.clone() }
    }
}

/// Offers the four services until `cancel`; every stream gets a task.
///
/// # Errors
/// A service is offered already.
pub fn serve(
    mesh: &Mesh,
    supervisor: &Supervisor,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) -> Result<(), ListenError> {
    let incoming = grpc::incoming(mesh.listen("work", OWNERS)?);
    let verbs = WorkServer::new(Verbs::new(supervisor.clone()));
    let server = tonic::transport::Server::builder().serve_with_incoming_shutdown(
        verbs,
        incoming,
        cancel.clone().cancelled_owned(),
    );
    tasks.spawn(async move {
        if let Err(error) = server.await {
            warn!(error = &error as &dyn std::error::Error, "work service ended");
        }
    });

    let mut streams = mesh.listen("payload", OWNERS)?;
    let (shared, stop, spawner) = (supervisor.clone(), cancel.clone(), tasks.clone());
    tasks.spawn(async move {
        while let Some(Some(stream)) = stop.run_until_cancelled(streams.accept()).await {
            let (supervisor, stop, peer) = (shared.clone(), stop.clone(), stream.peer().clone());
            let span = info_span!("payload", peer = %peer.node);
            let run = async move {
                told(stop.run_until_cancelled(payload::serve(stream, &peer, &supervisor)).await)
            };
            spawner.spawn(run.instrument(span));
        }
    });

    let mut streams = mesh.listen("records", OWNERS)?;
    let (shared, stop, spawner) = (supervisor.clone(), cancel.clone(), tasks.clone());
    tasks.spawn(async move {
        while let Some(Some(stream)) = stop.run_until_cancelled(streams.accept()).await {
            let (supervisor, stop, peer) = (shared.clone(), stop.clone(), stream.peer().clone());
            let span = info_span!("records", peer = %peer.node);
            let run = async move {
                told(stop.run_until_cancelled(records::serve(stream, &peer, &supervisor)).await)
            };
            spawner.spawn(run.instrument(span));
        }
    });

    let mut streams = mesh.listen("collect", OWNERS)?;
    let (shared, stop, spawner) = (supervisor.clone(), cancel.clone(), tasks.clone());
    tasks.spawn(async move {
        while let Some(Some(stream)) = stop.run_until_cancelled(streams.accept()).await {
            let (supervisor, stop, peer) = (shared.clone(), stop.clone(), stream.peer().clone());
            let span = info_span!("collect", peer = %peer.node);
            let run = async move {
                told(stop.run_until_cancelled(collect::serve(stream, &peer, &supervisor)).await)
            };
            spawner.spawn(run.instrument(span));
        }
    });
    Ok(())
}

/// Notes how a conversation ended. A controller that goes away is no event: it comes again.
fn told(result: Option<Result<(), Error>>) {
    if let Some(Err(error)) = result {
        debug!(error = &error as &dyn std::error::Error, "stream ended");
    }
}

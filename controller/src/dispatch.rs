//! Talking to one execution node about one unit: the verbs ([`NodeClient`]), the payload ([`payload`]) and the tree that it
//! leaves ([`collect`]).
//!
//! Knows messages and streams; not jobs, not the database. Every call is safe to repeat: the node answers by
//! (unit, attempt) and epoch. What a node refuses is told apart from a node that cannot be reached, because the
//! first decides a job and the second only delays it.

pub mod collect;
pub mod payload;

use std::time::Duration;

use plexus_mesh::Mesh;
use plexus_proto::id::{Attempt, NodeId, OwnerEpoch, StoreId};
use plexus_proto::work::{
    AbandonRequest, CancelRequest, ForgetRequest, InfoRequest, ListRequest, NodeInfo, Refusal, StatusRequest,
    TidyImagesReply, TidyImagesRequest, UnitReply, UnitReplyResult, UnitStatus, WorkClient,
};
use tonic::transport::Channel;

/// Mesh service of the verbs.
pub const WORK: &str = "work";
/// Mesh service of payloads.
pub const PAYLOAD: &str = "payload";
/// Mesh service of records.
pub const RECORDS: &str = "records";
/// Mesh service of trees that units leave behind.
pub const COLLECT: &str = "collect";

/// Longest wait for the answer to a verb. Verbs sync a small file at most; five seconds are a node in trouble.
const CALL: Duration = Duration::from_secs(5);
/// The same for removing images: engines take seconds for a large one.
const TIDY: Duration = Duration::from_secs(300);

/// Why a call brought no status.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer: no route, link cut, node down, or too slow. Try again.
    #[error("node {node} cannot be reached: {detail}")]
    Unreachable {
        /// Which node.
        node: NodeId,
        /// What the transport said.
        detail: String,
    },
    /// The node answered no.
    #[error("node {node} refused: {}", refusal.message)]
    Refused {
        /// Which node.
        node: NodeId,
        /// Its stable code and its words.
        refusal: Refusal,
    },
    /// The node answered something that is no answer.
    #[error("node {node} gave an answer without content")]
    Empty {
        /// Which node.
        node: NodeId,
    },
}

/// Calls the verbs of one node. Cheap to clone; connects on first use and again after a cut.
#[derive(Debug, Clone)]
pub struct NodeClient {
    node: NodeId,
    client: WorkClient<Channel>,
}

impl NodeClient {
    /// A client for `node`.
    pub fn new(mesh: &Mesh, node: &NodeId) -> Self {
        Self { node: node.clone(), client: WorkClient::new(plexus_mesh::grpc::channel(mesh, node, WORK)) }
    }

    /// Asks the unit's process tree to end.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn cancel(&self, attempt: Attempt, epoch: OwnerEpoch) -> Result<UnitStatus, CallError> {
        let request = CancelRequest { unit: Some(attempt.into()), epoch: Some(epoch.into()) };
        let mut client = self.client.clone();
        self.unit(self.bounded(client.cancel(request)).await?)
    }

    /// Lets the node drop what it still holds of a finished unit.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn forget(&self, attempt: Attempt, epoch: OwnerEpoch) -> Result<UnitStatus, CallError> {
        let request = ForgetRequest { unit: Some(attempt.into()), epoch: Some(epoch.into()) };
        let mut client = self.client.clone();
        self.unit(self.bounded(client.forget(request)).await?)
    }

    /// Gives the unit up: the node kills what lives of it, and never starts it.
    ///
    /// # Errors
    /// [`CallError`]; refused as forgotten when the node knows nothing of it and never will.
    pub async fn abandon(&self, attempt: Attempt, epoch: OwnerEpoch) -> Result<UnitStatus, CallError> {
        let request = AbandonRequest { unit: Some(attempt.into()), epoch: Some(epoch.into()) };
        let mut client = self.client.clone();
        self.unit(self.bounded(client.abandon(request)).await?)
    }

    /// What the node knows of the unit.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn status(&self, attempt: Attempt) -> Result<UnitStatus, CallError> {
        let mut client = self.client.clone();
        self.unit(self.bounded(client.status(StatusRequest { unit: Some(attempt.into()) })).await?)
    }

    /// The node itself. `resting` tells it that no unit is to come there for now; `outgrown` is a store of it, and how many starts
    /// on it were heard of, if that store shows fewer now.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn info(&self, resting: bool, outgrown: Option<(StoreId, u64)>) -> Result<NodeInfo, CallError> {
        let mut client = self.client.clone();
        let (store_id, starts) = outgrown
            .map_or_else(Default::default, |(store, starts)| (store.0.as_bytes().to_vec().into(), starts));
        self.bounded(client.info(InfoRequest { store_id, starts, resting })).await
    }

    /// Has the node remove images that it pulled for units of this cluster and that are not among these, unless somebody else
    /// needs them; what it removed.
    ///
    /// # Errors
    /// [`CallError`]; a node whose engine does not answer says so in the reply.
    pub async fn tidy_images(&self, wanted: Vec<String>) -> Result<TidyImagesReply, CallError> {
        let mut client = self.client.clone();
        self.bounded_by(TIDY, client.tidy_images(TidyImagesRequest { wanted })).await
    }

    /// Every unit of this cluster that the node holds.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn list(&self) -> Result<Vec<UnitStatus>, CallError> {
        let mut client = self.client.clone();
        Ok(self.bounded(client.list(ListRequest {})).await?.units)
    }

    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CallError> {
        self.bounded_by(CALL, call).await
    }

    async fn bounded_by<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CallError> {
        let unreachable = |detail: String| CallError::Unreachable { node: self.node.clone(), detail };
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(unreachable(status.message().to_owned())),
            Err(_) => Err(unreachable(format!("no answer within {} s", limit.as_secs()))),
        }
    }

    fn unit(&self, reply: UnitReply) -> Result<UnitStatus, CallError> {
        let node = self.node.clone();
        match reply.result {
            Some(UnitReplyResult::Status(status)) => Ok(status),
            Some(UnitReplyResult::Refusal(refusal)) => Err(CallError::Refused { node, refusal }),
            None => Err(CallError::Empty { node }),
        }
    }
}

//! The verbs of units, over gRPC.

use std::pin::Pin;

use futures_util::Stream;
use plexus_mesh::grpc::PeerIdentity;
use plexus_proto::work::{
    AbandonRequest, CancelRequest, ForgetRequest, ImageReply, ImageRequest, ImagesReply, ImagesRequest,
    InfoRequest, ListReply, ListRequest, NodeInfo, PullProgress, StatusRequest, SubmitRequest,
    TidyImagesReply, TidyImagesRequest, UnitReply, Work,
};
use tonic::{Request, Response, Status};

use crate::supervisor::Supervisor;
use crate::work::Caller;

/// The gRPC service. Who calls is read from the session, never from a message.
#[derive(Debug)]
pub struct Verbs {
    supervisor: Supervisor,
}

impl Verbs {
    /// Serves the units of `supervisor`.
    pub fn new(supervisor: Supervisor) -> Self {
        Self { supervisor }
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let identity = request.extensions().get::<PeerIdentity>();
    identity
        .map(|PeerIdentity(identity)| identity.into())
        .ok_or_else(|| Status::unauthenticated("no certified identity"))
}

#[tonic::async_trait]
impl Work for Verbs {
    async fn submit(&self, request: Request<SubmitRequest>) -> Result<Response<UnitReply>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.supervisor.submit(&caller, request.into_inner()).await))
    }

    async fn cancel(&self, request: Request<CancelRequest>) -> Result<Response<UnitReply>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.supervisor.cancel(&caller, request.into_inner()).await))
    }

    async fn forget(&self, request: Request<ForgetRequest>) -> Result<Response<UnitReply>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.supervisor.forget(&caller, request.into_inner()).await))
    }

    async fn abandon(&self, request: Request<AbandonRequest>) -> Result<Response<UnitReply>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.supervisor.abandon(&caller, request.into_inner()).await))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<UnitReply>, Status> {
        let caller = caller(&request)?;
        Ok(Response::new(self.supervisor.status(&caller, request.into_inner()).await))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Ok(Response::new(self.supervisor.list(&caller(&request)?)))
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<NodeInfo>, Status> {
        let caller = caller(&request)?;
        self.supervisor.rest(&caller, request.get_ref().resting);
        Ok(Response::new(self.supervisor.info(request.get_ref()).await))
    }

    async fn images(&self, request: Request<ImagesRequest>) -> Result<Response<ImagesReply>, Status> {
        caller(&request)?;
        Ok(Response::new(self.supervisor.images().list().await))
    }

    async fn check_image(&self, request: Request<ImageRequest>) -> Result<Response<ImageReply>, Status> {
        caller(&request)?;
        Ok(Response::new(self.supervisor.images().check(&request.into_inner().image).await))
    }

    type PullImageStream = Pin<Box<dyn Stream<Item = Result<PullProgress, Status>> + Send>>;

    async fn pull_image(
        &self,
        request: Request<ImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        caller(&request)?;
        let ImageRequest { image, auth } = request.into_inner();
        Ok(Response::new(Box::pin(self.supervisor.images().pull(image, auth))))
    }

    async fn tidy_images(
        &self,
        request: Request<TidyImagesRequest>,
    ) -> Result<Response<TidyImagesReply>, Status> {
        let caller = caller(&request)?;
        let wanted = request.into_inner().wanted;
        Ok(Response::new(self.supervisor.images().tidy(&caller.cluster, wanted).await))
    }
}

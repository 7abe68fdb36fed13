//! gRPC over mesh streams: tonic channels to a node's service, and tonic servers behind a listener.
//!
//! Each HTTP/2 connection is one mesh stream. TLS, keepalive and flow control between nodes are the session's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use plexus_proto::id::{Identity, NodeId};
use plexus_proto::packet::Class;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::handle::Mesh;
use crate::service::Listener;
use crate::stream::MeshStream;

/// Longest wait for a stream to the service; a session needs a few round trips at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(12);

/// A channel to `service` on `node`, in the control class.
///
/// Nothing happens before the first call. A lost stream is opened again by the next call; calls in between fail with
/// `Unavailable`, whose source tells a [`ConnectError`](crate::ConnectError) or a refusal.
pub fn channel(mesh: &Mesh, node: &NodeId, service: &'static str) -> Channel {
    let (mesh, node) = (mesh.clone(), node.clone());
    let connect = tower::service_fn(move |_: Uri| {
        let (mesh, node) = (mesh.clone(), node.clone());
        async move {
            let stream = mesh.connect(&node, service, Class::Control).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://plexus.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .connect_with_connector_lazy(connect)
}

/// The streams of `listener`, for `tonic::transport::Server::serve_with_incoming`. Ends with the mesh.
///
/// Handlers find who calls in the request's extensions, as [`PeerIdentity`].
pub fn incoming(listener: Listener) -> impl Stream<Item = io::Result<GrpcStream>> {
    futures_util::stream::unfold(listener, |mut listener| async move {
        let stream = listener.accept().await?;
        Some((Ok(GrpcStream(stream)), listener))
    })
}

/// Certified identity of the node that calls; an extension of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity(pub Identity);

/// A mesh stream as a tonic server wants it.
#[derive(Debug)]
pub struct GrpcStream(MeshStream);

impl Connected for GrpcStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        PeerIdentity(self.0.peer().clone())
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GrpcStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

//! A TCP connection through the local socket: chunks of a gRPC call in both directions, and a word for each end.
//!
//! An end travels as a message of its own, for a call whose stream ends without one has broken. The channel between
//! call and stream is short, so a slow reader at either side slows the other.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream};
use plexus_proto::local::{LocalClient, LocalForward, LocalForwardEnd, LocalForwardKind, LocalForwardOpen};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::stream::MeshStream;

/// Bytes of a chunk at most.
const CHUNK: usize = 32 * 1024;
/// Chunks that wait for the call to take them. It fills when the other side reads slowly; reading then waits.
const WAITING: usize = 2;

/// What the daemon sends.
pub(super) type Replies = Pin<Box<dyn Stream<Item = Result<LocalForward, Status>> + Send>>;

fn message(kind: LocalForwardKind) -> LocalForward {
    LocalForward { kind: Some(kind) }
}

fn end() -> LocalForward {
    message(LocalForwardKind::End(LocalForwardEnd {}))
}

fn broken(error: impl std::fmt::Display) -> Status {
    Status::aborted(format!("connection broke: {error}"))
}

/// The daemon's side: carries bytes between `far` and the call until both directions have ended, or the call is gone.
pub(super) fn carry(far: MeshStream, mut chunks: Streaming<LocalForward>) -> Replies {
    let (replies, waiting) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let (reader, writer) = far.into_split();
        let carried = tokio::select! {
            carried = async { tokio::try_join!(give(reader, &replies, Ok), take(&mut chunks, writer)) } => carried,
            // Nobody is left to hear: what is unfinished is reset.
            () = replies.closed() => return,
        };
        if let Err(status) = carried {
            let _ = replies.send(Err(status)).await;
        }
    });
    Box::pin(received(waiting))
}

/// The command's side: opens, then carries bytes between `near` and the call.
pub(super) async fn client(
    mut grpc: LocalClient<Channel>,
    open: LocalForwardOpen,
    near: impl AsyncRead + AsyncWrite,
) -> Result<(), Status> {
    let (requests, waiting) = mpsc::channel(WAITING);
    let _ = requests.send(message(LocalForwardKind::Open(open))).await;
    let mut chunks = grpc.forward(received(waiting)).await?.into_inner();
    let (reader, writer) = split(near);
    tokio::pin!(reader, writer);
    tokio::try_join!(give(reader, &requests, |chunk| chunk), take(&mut chunks, writer))?;
    Ok(())
}

fn received<T>(mut waiting: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::poll_fn(move |context| waiting.poll_recv(context))
}

/// Sends what `reader` gives, and its end.
async fn give<T>(
    mut reader: impl AsyncRead + Unpin,
    chunks: &mpsc::Sender<T>,
    wrap: impl Fn(LocalForward) -> T,
) -> Result<(), Status> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK);
        let read = reader.read_buf(&mut buffer).await.map_err(broken)?;
        if read == 0 {
            return chunks.send(wrap(end())).await.map_err(|_| broken("the other side is gone"));
        }
        let data: Bytes = buffer.split().freeze();
        chunks
            .send(wrap(message(LocalForwardKind::Data(data))))
            .await
            .map_err(|_| broken("the other side is gone"))?;
    }
}

/// Writes what comes, and its end.
async fn take(
    chunks: &mut Streaming<LocalForward>,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<(), Status> {
    loop {
        match chunks.message().await?.and_then(|chunk| chunk.kind) {
            Some(LocalForwardKind::Data(data)) => {
                writer.write_all(&data).await.map_err(broken)?;
                writer.flush().await.map_err(broken)?;
            }
            Some(LocalForwardKind::End(_)) => return writer.shutdown().await.map_err(broken),
            Some(LocalForwardKind::Open(_)) => return Err(Status::invalid_argument("opened twice")),
            None => return Err(broken("it ended without a word")),
        }
    }
}

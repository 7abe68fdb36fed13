//! End-to-end streams: how one opens, and what a program holds of it.
//!
//! The side that opens sends one frame, [`StreamOpen`], and goes on with its data at once: on a live session a stream
//! costs no round trip. The other side gives the stream to whoever listens for the service, or resets it with a
//! [`Refusal`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use plexus_proto::frame::{self, OPEN_FRAME_MAX};
use plexus_proto::id::Identity;
use plexus_proto::link::StreamOpen;
use plexus_proto::version::{MAX_VERSION, MIN_VERSION, negotiate};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{Refusal, StreamError};

/// Code of a stream that its program dropped before it was finished.
const DROPPED: VarInt = VarInt::from_u32(0);
/// Longest wait for the frame that opens a stream, once the stream is there.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream to a service on another node, both ways, in order and encrypted from end to end.
///
/// Writing waits when the peer reads slowly. `shutdown` ends the sending side so that the peer reads an end; dropping
/// an unfinished stream resets it, and the peer reads an error. A stream survives changes of route, and a path that
/// is gone for less than a minute; afterwards reads and writes fail with [`StreamError::Session`].
#[derive(Debug)]
pub struct MeshStream {
    reader: MeshReader,
    writer: MeshWriter,
}

/// Receiving half of a [`MeshStream`]. Dropping it before the end tells the peer to stop sending.
#[derive(Debug)]
pub struct MeshReader {
    stream: RecvStream,
    peer: Arc<Identity>,
}

/// Sending half of a [`MeshStream`]. Dropping it before `shutdown` resets the stream.
#[derive(Debug)]
pub struct MeshWriter {
    stream: SendStream,
    peer: Arc<Identity>,
    finished: bool,
    /// Its place among the peer's streams, where the peer opened it.
    _place: Option<Arc<()>>,
}

impl MeshStream {
    pub(crate) fn new(
        send: SendStream,
        receive: RecvStream,
        peer: Arc<Identity>,
        place: Option<Arc<()>>,
    ) -> Self {
        let reader = MeshReader { stream: receive, peer: peer.clone() };
        Self { reader, writer: MeshWriter { stream: send, peer, finished: false, _place: place } }
    }

    /// Certified identity of the node at the other end.
    pub fn peer(&self) -> &Identity {
        &self.reader.peer
    }

    /// Takes the two directions apart; each may move to a task of its own.
    pub fn into_split(self) -> (MeshReader, MeshWriter) {
        (self.reader, self.writer)
    }
}

impl MeshReader {
    /// Certified identity of the node at the other end.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }
}

impl MeshWriter {
    /// Certified identity of the node at the other end.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// Resolves when the peer has acknowledged all that was sent before `shutdown`, or when it never will.
    ///
    /// # Errors
    /// The peer refused or stopped the stream, or the session is gone.
    pub async fn delivered(&mut self) -> io::Result<()> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::from_code(code).into()),
            Err(quinn::StoppedError::ConnectionLost(lost)) => Err(StreamError::Session(lost).into()),
            Err(quinn::StoppedError::ZeroRttRejected) => Err(StreamError::Closed.into()),
        }
    }
}

impl Drop for MeshWriter {
    fn drop(&mut self) {
        // quinn would finish the stream, and half a message would pass for all of it.
        if !self.finished {
            let _ = self.stream.reset(DROPPED);
        }
    }
}

impl AsyncRead for MeshReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream.poll_read_buf(cx, buffer).map_err(|error| {
            match error {
                ReadError::Reset(code) => StreamError::from_code(code),
                ReadError::ConnectionLost(lost) => StreamError::Session(lost),
                ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                    StreamError::Closed
                }
            }
            .into()
        })
    }
}

impl AsyncWrite for MeshWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes).map_err(|error| {
            match error {
                WriteError::Stopped(code) => StreamError::from_code(code),
                WriteError::ConnectionLost(lost) => StreamError::Session(lost),
                WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamError::Closed,
            }
            .into()
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What quinn has taken it sends.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Finished twice, or stopped by the peer, which has all it wants then.
        let _ = self.stream.finish();
        self.finished = true;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// Opens a stream for `service` on a live session.
pub(crate) async fn open(
    session: &quinn::Connection,
    service: &str,
    peer: Arc<Identity>,
) -> Result<MeshStream, quinn::ConnectionError> {
    let (mut send, receive) = session.open_bi().await?;
    let open = StreamOpen { service: service.to_owned(), min_version: MIN_VERSION, max_version: MAX_VERSION };
    match send.write_all(&frame::to_bytes(&open)).await {
        Ok(()) => {}
        Err(WriteError::ConnectionLost(lost)) => return Err(lost),
        // The peer may refuse before it has read all; whoever reads the stream learns why.
        Err(WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected) => {}
    }
    Ok(MeshStream::new(send, receive, peer, None))
}

/// Reads what a peer's stream is for.
///
/// # Errors
/// No frame in time, or one that says nothing usable.
pub(crate) async fn read_open(receive: &mut RecvStream) -> Result<StreamOpen, Refusal> {
    let frame = async {
        let mut prefix = [0; 4];
        receive.read_exact(&mut prefix).await.map_err(|_| Refusal::Malformed)?;
        let length = u32::from_be_bytes(prefix) as usize;
        if length > OPEN_FRAME_MAX {
            return Err(Refusal::Malformed);
        }
        // Exactly this frame: what follows belongs to the service.
        let mut body = vec![0; length];
        receive.read_exact(&mut body).await.map_err(|_| Refusal::Malformed)?;
        let open: StreamOpen = prost::Message::decode(&body[..]).map_err(|_| Refusal::Malformed)?;
        negotiate(open.min_version, open.max_version).map_err(|_| Refusal::Version)?;
        Ok(open)
    };
    tokio::time::timeout(OPEN_TIMEOUT, frame).await.unwrap_or(Err(Refusal::Malformed))
}

/// Turns a stream away.
pub(crate) fn refuse(mut send: SendStream, mut receive: RecvStream, refusal: Refusal) {
    let _ = send.reset(refusal.code());
    let _ = receive.stop(refusal.code());
}

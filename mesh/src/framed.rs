//! Whole messages over a byte stream, as [`plexus_proto::frame`] frames.
//!
//! Memory follows what has arrived, never what a length prefix promises.

use std::io;

use bytes::{Buf, BytesMut};
use plexus_proto::frame;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes asked of the stream at a time: a dozen packets.
const READ_CHUNK: usize = 16 * 1024;
/// Fed frames leave by themselves once this much waits.
const WRITE_CHUNK: usize = 64 * 1024;
/// What a quiet reader waits with: most messages between neighbours that have nothing to say are smaller.
const SIP: usize = 64;

/// A framed conversation that broke.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream under it failed.
    #[error("stream failed")]
    Stream(#[from] io::Error),
    /// The peer sent what is no frame of this conversation.
    #[error("peer sent a bad frame")]
    Frame(#[from] frame::Error),
    /// The stream ended within a frame.
    #[error("stream ended {missing} bytes or more before the end of a frame")]
    Truncated {
        /// Bytes still owed, as far as known.
        missing: usize,
    },
}

/// Reads messages from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    chunk: usize,
    /// Keeps no memory while it waits for a frame to begin.
    quiet: bool,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream` from here on.
    pub fn new(stream: R) -> Self {
        Self { stream, chunk: READ_CHUNK, quiet: false, buffer: BytesMut::new() }
    }

    /// As [`new`](Self::new), for a conversation that is silent most of the time: it asks for `chunk` bytes at a time, and
    /// keeps none while it waits for a frame to begin.
    pub(crate) fn quiet(stream: R, chunk: usize) -> Self {
        Self { stream, chunk, quiet: true, buffer: BytesMut::new() }
    }

    /// The next message; `None` once the peer has finished the stream between two frames.
    ///
    /// Dropping the future loses nothing: bytes already read wait for the next call.
    ///
    /// # Errors
    /// A stream that failed or ended within a frame; a frame over `limit` bytes; bytes that are no `M`. The reader
    /// is then of no further use.
    pub async fn next<M: Message + Default>(&mut self, limit: usize) -> Result<Option<M>, Error> {
        loop {
            if let Some(message) = frame::decode(&mut self.buffer, limit)? {
                return Ok(Some(message));
            }
            let read = if self.quiet && self.buffer.is_empty() {
                self.buffer = BytesMut::new();
                let mut sip = [0; SIP];
                let read = self.stream.read(&mut sip).await?;
                self.buffer.extend_from_slice(&sip[..read]);
                read
            } else {
                self.buffer.reserve(self.chunk);
                self.stream.read_buf(&mut self.buffer).await?
            };
            if read == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(self.truncated()) };
            }
        }
    }

    fn truncated(&self) -> Error {
        let wanted = match self.buffer.first_chunk::<4>() {
            Some(prefix) => 4 + u32::from_be_bytes(*prefix) as usize,
            None => 4,
        };
        Error::Truncated { missing: wanted.saturating_sub(self.buffer.len()) }
    }

    /// The stream, without what was read ahead of the last message.
    pub fn into_inner(self) -> R {
        self.stream
    }
}

/// Writes messages to a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream` from here on.
    pub fn new(stream: W) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Sends one message, and whatever was fed before it. Returns when the stream has taken the bytes; the peer may
    /// not have them yet.
    ///
    /// A dropped future has still accepted the whole message: the rest of it goes out with the next call.
    ///
    /// # Errors
    /// The stream failed.
    pub async fn send(&mut self, message: &impl Message) -> Result<(), Error> {
        frame::encode(message, &mut self.buffer);
        self.flush().await
    }

    /// Accepts one message and lets it wait for company, up to 64 KiB of it.
    ///
    /// # Errors
    /// The stream failed while earlier messages were written out.
    pub async fn feed(&mut self, message: &impl Message) -> Result<(), Error> {
        frame::encode(message, &mut self.buffer);
        if self.buffer.len() >= WRITE_CHUNK { self.flush().await } else { Ok(()) }
    }

    /// Writes out what was fed.
    ///
    /// # Errors
    /// The stream failed.
    pub async fn flush(&mut self) -> Result<(), Error> {
        while self.buffer.has_remaining() {
            self.stream.write_buf(&mut self.buffer).await?;
        }
        Ok(self.stream.flush().await?)
    }

    /// Gives the memory of messages back, where the next is long in coming. Everything has been flushed.
    ///
    /// What is kept cannot be seen: of a buffer that was written out, the capacity is only what is left behind its end.
    pub(crate) fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Writes out what was fed and ends the stream: the peer reads `None` after the last message.
    ///
    /// # Errors
    /// The stream failed.
    pub async fn finish(&mut self) -> Result<(), Error> {
        self.flush().await?;
        Ok(self.stream.shutdown().await?)
    }

    /// The stream. What was fed and not flushed is lost.
    pub fn into_inner(self) -> W {
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::link::Probe;
    use proptest::prelude::*;
    use std::time::Duration;

    /// Feeds `wire` in pieces of `cut` bytes through a pipe of that size, and drops each `next` once before its end.
    async fn read_back(wire: Vec<u8>, cut: usize, quiet: bool) -> Result<Vec<u64>, Error> {
        let (mut near, far) = tokio::io::duplex(cut);
        let writer = tokio::spawn(async move { near.write_all(&wire).await });
        let mut reader = if quiet { FrameReader::quiet(far, 16) } else { FrameReader::new(far) };
        let mut seen = Vec::new();
        loop {
            // A future polled once and dropped must not lose a byte.
            let message = match tokio::time::timeout(Duration::ZERO, reader.next::<Probe>(100)).await {
                Ok(message) => message,
                Err(_) => reader.next(100).await,
            };
            match message? {
                Some(probe) => seen.push(probe.nonce),
                None => break,
            }
        }
        writer.await.unwrap().unwrap();
        Ok(seen)
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut_and_dropped_futures(nonces in prop::collection::vec(any::<u64>(), 0..20), cut in 1usize..40, quiet: bool) {
            let mut wire = BytesMut::new();
            for &nonce in &nonces {
                frame::encode(&Probe { nonce }, &mut wire);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let seen = runtime.block_on(read_back(wire.to_vec(), cut, quiet)).unwrap();
            prop_assert_eq!(seen, nonces);
        }
    }

    #[tokio::test]
    async fn an_end_within_a_frame_is_an_error() {
        let mut wire = BytesMut::new();
        frame::encode(&Probe { nonce: 1 << 40 }, &mut wire);
        let whole = wire.len();
        for cut in 1..whole {
            for quiet in [false, true] {
                let got = read_back(wire[..cut].to_vec(), 64, quiet).await;
                assert!(
                    matches!(got, Err(Error::Truncated { missing }) if missing > 0),
                    "cut at {cut}: {got:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn fed_messages_leave_with_the_flush() {
        let (near, far) = tokio::io::duplex(1024);
        let mut writer = FrameWriter::new(near);
        writer.feed(&Probe { nonce: 1 }).await.unwrap();
        writer.send(&Probe { nonce: 2 }).await.unwrap();
        writer.finish().await.unwrap();
        let mut reader = FrameReader::new(far);
        assert_eq!(reader.next(100).await.unwrap(), Some(Probe { nonce: 1 }));
        assert_eq!(reader.next(100).await.unwrap(), Some(Probe { nonce: 2 }));
        assert_eq!(reader.next::<Probe>(100).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_quiet_reader_and_a_writer_at_rest_hold_no_memory() {
        let (near, far) = tokio::io::duplex(1024);
        let mut writer = FrameWriter::new(near);
        let mut reader = FrameReader::quiet(far, 16);
        for nonce in 1..100 {
            writer.send(&Probe { nonce }).await.unwrap();
            writer.rest();
            assert_eq!(writer.buffer.capacity(), 0);
            assert_eq!(reader.next(100).await.unwrap(), Some(Probe { nonce }));
            assert!(tokio::time::timeout(Duration::ZERO, reader.next::<Probe>(100)).await.is_err());
            assert_eq!(reader.buffer.capacity(), 0);
        }
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused() {
        let got = read_back(vec![0, 1, 0, 0, 1, 2, 3], 64, false).await;
        assert!(
            matches!(got, Err(Error::Frame(frame::Error::TooLong { length: 65536, limit: 100 }))),
            "{got:?}"
        );
    }
}

//! Fetching the tree that a unit left behind: the controller says what it lacks, the node sends that and nothing else.

use std::sync::Arc;

use plexus_mesh::framed::{self, FrameReader, FrameWriter};
use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::id::{Attempt, OwnerEpoch};
use plexus_proto::work::{ChunkBatch, CollectMessage, CollectMessageKind, CollectOpen, PayloadNeed, Refusal};
use plexus_tree::manifest::MANIFEST_MAX;
use plexus_tree::store::Filling;
use plexus_tree::{Digest, Store, store};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

/// Batches that came and wait for the disk.
const BATCHES: usize = 4;

/// A tree that did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream broke. Try again.
    #[error("stream of the tree broke")]
    Stream(#[from] framed::Error),
    /// The stream ended before the tree was whole.
    #[error("stream of the tree ended before it was whole")]
    Ended,
    /// The node answered no.
    #[error("node refused to give the tree: {}", .0.message)]
    Refused(Refusal),
    /// The node said something that makes no sense here.
    #[error("node answered out of turn")]
    OutOfTurn,
    /// What came is no tree, or cannot be kept.
    #[error("the tree cannot be kept")]
    Store(#[from] store::Error),
}

struct Conversation<S> {
    reader: FrameReader<ReadHalf<S>>,
    writer: FrameWriter<WriteHalf<S>>,
}

/// Brings the tree of `attempt` into the store, over an open stream of service `collect`. The store has all of it, on disk,
/// when this returns.
///
/// # Errors
/// [`Error`]; after a break it may be tried again from the start, the store keeps what came.
pub async fn fetch<S>(
    stream: S,
    attempt: Attempt,
    epoch: OwnerEpoch,
    store: Arc<Store>,
) -> Result<Digest, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut talk = Conversation { reader: FrameReader::new(reader), writer: FrameWriter::new(writer) };
    let open = CollectOpen { unit: Some(attempt.into()), epoch: Some(epoch.into()) };
    talk.say(CollectMessageKind::Open(open)).await?;
    let CollectMessageKind::Tree(found) = talk.hear().await? else { return Err(Error::OutOfTurn) };
    let tree = found.tree.ok_or(Error::OutOfTurn)?;
    let digest = Digest::try_from(&tree.digest[..]).map_err(|_| Error::OutOfTurn)?;
    if tree.size > MANIFEST_MAX {
        return Err(Error::OutOfTurn);
    }
    talk.say(CollectMessageKind::Need(PayloadNeed { manifest: true, ..PayloadNeed::default() })).await?;
    let manifest = talk.manifest(tree.size).await?;
    let begun = Arc::clone(&store);
    let filling = on_disk(move || begun.begin(&digest, manifest)).await?;
    let filling = talk.chunks(filling, &store).await?;
    on_disk(move || store.keep(&filling)).await?;
    talk.writer.finish().await?;
    Ok(digest)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    async fn manifest(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut manifest = Vec::new();
        loop {
            let CollectMessageKind::Manifest(part) = self.hear().await? else { return Err(Error::OutOfTurn) };
            if manifest.len() as u64 + part.data.len() as u64 > size {
                return Err(Error::OutOfTurn);
            }
            manifest.extend_from_slice(&part.data);
            if part.last {
                return Ok(manifest);
            }
        }
    }

    /// Takes what is missing. A thread of its own checks and writes it while the next pieces come.
    async fn chunks(&mut self, mut filling: Filling, store: &Arc<Store>) -> Result<Filling, Error> {
        if filling.due().is_whole() {
            return Ok(filling);
        }
        let need = PayloadNeed { chunks: filling.due().need(), ..PayloadNeed::default() };
        self.say(CollectMessageKind::Need(need)).await?;
        let (batches, mut inbox) = mpsc::channel::<ChunkBatch>(BATCHES);
        let store = Arc::clone(store);
        let writer = tokio::task::spawn_blocking(move || {
            while !filling.due().is_whole() {
                let Some(batch) = inbox.blocking_recv() else { return Ok(None) };
                store.take(&mut filling, &batch)?;
            }
            Ok::<_, store::Error>(Some(filling))
        });
        tokio::pin!(writer);
        loop {
            tokio::select! {
                biased;
                written = &mut writer => {
                    return written.map_err(|_| Error::Ended)??.ok_or(Error::Ended);
                }
                heard = self.hear() => {
                    let CollectMessageKind::Chunks(batch) = heard? else { return Err(Error::OutOfTurn) };
                    batches.send(batch).await.ok(); // a writer that gave up says why
                }
            }
        }
    }

    async fn hear(&mut self) -> Result<CollectMessageKind, Error> {
        let message: Option<CollectMessage> = self.reader.next(WORK_FRAME_MAX).await?;
        match message.ok_or(Error::Ended)?.kind {
            Some(CollectMessageKind::Refusal(refusal)) => Err(Error::Refused(refusal)),
            Some(kind) => Ok(kind),
            None => Err(Error::OutOfTurn),
        }
    }

    async fn say(&mut self, kind: CollectMessageKind) -> Result<(), Error> {
        Ok(self.writer.send(&CollectMessage { kind: Some(kind) }).await?)
    }
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, store::Error> + Send + 'static,
) -> Result<T, Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::Ended)??)
}

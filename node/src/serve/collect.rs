//! The tree that a unit left behind, for the controller that owns it: what it is, then the pieces that the other end lacks.

use std::path::PathBuf;
use std::sync::Arc;

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::id::{Attempt, Identity, OwnerEpoch};
use plexus_proto::work::{
    ChunkBatch, CollectMessage, CollectMessageKind, CollectOpen, CollectTree, PayloadNeed, RefusalCode,
};
use plexus_tree::Tree;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::Error;
use crate::supervisor::Supervisor;
use crate::work::{Caller, refusal};

/// Batches that were read and wait for the stream.
const BATCHES: usize = 4;

struct Conversation<S> {
    reader: FrameReader<ReadHalf<S>>,
    writer: FrameWriter<WriteHalf<S>>,
}

/// Gives `peer` the tree of one of its units.
///
/// # Errors
/// See [`Error`]; a refusal was sent before it is returned.
pub async fn serve<S>(stream: S, peer: &Identity, supervisor: &Supervisor) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut talk = Conversation { reader: FrameReader::new(reader), writer: FrameWriter::new(writer) };
    let ended = talk.run(&Caller::from(peer), supervisor).await;
    if let Err(Error::Refused(refusal)) = &ended {
        talk.say(CollectMessageKind::Refusal(refusal.clone())).await?;
    }
    talk.writer.finish().await?;
    ended
}

impl<S: AsyncRead + AsyncWrite + Send> Conversation<S> {
    async fn run(&mut self, caller: &Caller, supervisor: &Supervisor) -> Result<(), Error> {
        let Some(CollectMessageKind::Open(CollectOpen { unit, epoch })) = self.hear().await? else {
            return Err(Error::Unexpected("something else than an open"));
        };
        let attempt = Attempt::try_from(unit.as_ref()).map_err(|error| invalid(error.to_string()))?;
        let epoch = OwnerEpoch::from(epoch.ok_or_else(|| invalid("open has no epoch"))?);
        let dir = supervisor.open_collect(caller, attempt, epoch).await.map_err(Error::Refused)?;
        let tree = Arc::new(read(dir).await?);
        self.say(CollectMessageKind::Tree(CollectTree { tree: Some(tree.reference()) })).await?;
        loop {
            match self.hear().await? {
                None => return Ok(()), // it has all it wants
                Some(CollectMessageKind::Need(need)) => self.give(&tree, need).await?,
                Some(_) => return Err(Error::Unexpected("something else than what it needs")),
            }
        }
    }

    async fn give(&mut self, tree: &Arc<Tree>, need: PayloadNeed) -> Result<(), Error> {
        if need.manifest {
            for part in tree.manifest_parts() {
                self.say(CollectMessageKind::Manifest(part)).await?;
            }
        }
        if need.chunks.is_empty() {
            return Ok(());
        }
        let (batches, mut ready) = mpsc::channel::<ChunkBatch>(BATCHES);
        let tree = Arc::clone(tree);
        let reading = tokio::task::spawn_blocking(move || {
            tree.chunks(&need.chunks, |batch| batches.blocking_send(batch).is_ok())
        });
        while let Some(batch) = ready.recv().await {
            self.say(CollectMessageKind::Chunks(batch)).await?;
        }
        match reading.await {
            Ok(read) => read.map_err(|error| invalid(words(&error))),
            Err(error) => Err(invalid(error.to_string())),
        }
    }

    async fn hear(&mut self) -> Result<Option<CollectMessageKind>, Error> {
        let message = self.reader.next::<CollectMessage>(WORK_FRAME_MAX).await?;
        match message {
            None => Ok(None),
            Some(message) => message.kind.map(Some).ok_or(Error::Unexpected("a message of no kind")),
        }
    }

    async fn say(&mut self, kind: CollectMessageKind) -> Result<(), Error> {
        Ok(self.writer.send(&CollectMessage { kind: Some(kind) }).await?)
    }
}

/// Reads what lies there now. Nobody writes there any more: the unit has ended.
async fn read(dir: PathBuf) -> Result<Tree, Error> {
    match tokio::task::spawn_blocking(move || Tree::read(&dir)).await {
        Ok(read) => read.map_err(|error| invalid(words(&error))),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn words(error: &plexus_tree::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::Refused(refusal(RefusalCode::Invalid, message))
}

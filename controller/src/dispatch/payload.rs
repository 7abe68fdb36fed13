//! Sending a unit's payload: the node says what it lacks, the controller sends that and nothing else.

use std::sync::Arc;

use plexus_mesh::framed::{self, FrameReader, FrameWriter};
use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::work::{
    ChunkBatch, PayloadDone, PayloadMessage, PayloadMessageKind, PayloadNeed, PayloadOpen, PrivateBlock,
    Refusal, SubmitRequest,
};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::payload::tree::{self, Tree};

/// Most rounds of need and answer: manifest, chunks, private block, and room for a node that asks in parts.
const ROUNDS: usize = 10_000;
/// Largest private block that is sent before the node has asked for it: one that refuses the unit has heard it for nothing.
const EARLY_BYTES: usize = 256 << 10;
/// Batches that were read and wait for the stream.
const BATCHES: usize = 4;

/// A payload that did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream broke. Try again.
    #[error("payload stream broke")]
    Stream(#[source] framed::Error),
    /// The stream ended before the node confirmed.
    #[error("payload stream ended before the node confirmed")]
    Ended,
    /// The node answered no.
    #[error("node refused the payload: {}", .0.message)]
    Refused(Refusal),
    /// The node said something that makes no sense here.
    #[error("node answered out of turn")]
    OutOfTurn,
    /// The project cannot be read.
    #[error(transparent)]
    Tree(#[from] tree::Error),
}

/// Submits a unit and sends its payload over an open stream of service `payload`, in one go: what a node that has the tree needs
/// is under way before it has said a word. Returns its last word once it has laid everything out and started the unit; `progress`
/// hears what it is busy with until then.
///
/// # Errors
/// [`Error`]; a broken stream may be tried again from the start, the node keeps the chunks it has.
pub async fn send<S>(
    stream: S,
    submit: SubmitRequest,
    tree: Arc<Tree>,
    private: PrivateBlock,
    mut progress: impl FnMut(String),
) -> Result<PayloadDone, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let early = private.encoded_len() <= EARLY_BYTES;
    let open = PayloadOpen {
        unit: submit.unit.clone(),
        epoch: submit.epoch,
        submit: Some(SubmitRequest { unit: None, epoch: None, ..submit }),
        private: early,
    };
    say(&mut writer, PayloadMessageKind::Open(open)).await?;
    let mut private = Some(private);
    if let Some(private) = private.take_if(|_| early) {
        say(&mut writer, PayloadMessageKind::Private(private)).await?;
    }
    for _ in 0..ROUNDS {
        let message: Option<PayloadMessage> = reader.next(WORK_FRAME_MAX).await.map_err(Error::Stream)?;
        match message.ok_or(Error::Ended)?.kind {
            Some(PayloadMessageKind::Need(need)) => answer(&mut writer, need, &tree, &mut private).await?,
            Some(PayloadMessageKind::Done(done)) => return Ok(done),
            Some(PayloadMessageKind::Progress(said)) => progress(said.line),
            Some(PayloadMessageKind::Refusal(refusal)) => return Err(Error::Refused(refusal)),
            _ => return Err(Error::OutOfTurn),
        }
    }
    Err(Error::OutOfTurn)
}

async fn answer<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    need: PayloadNeed,
    tree: &Arc<Tree>,
    private: &mut Option<PrivateBlock>,
) -> Result<(), Error> {
    if need.manifest {
        for part in tree.manifest_parts() {
            say(writer, PayloadMessageKind::Manifest(part)).await?;
        }
    }
    if !need.chunks.is_empty() {
        let (batches, mut ready) = mpsc::channel::<ChunkBatch>(BATCHES);
        let tree = Arc::clone(tree);
        let read = tokio::task::spawn_blocking(move || {
            tree.chunks(&need.chunks, |batch| batches.blocking_send(batch).is_ok())
        });
        while let Some(batch) = ready.recv().await {
            say(writer, PayloadMessageKind::Chunks(batch)).await?;
        }
        read.await.map_err(|_| Error::Ended)??;
    }
    if need.private {
        let block = private.take().ok_or(Error::OutOfTurn)?;
        say(writer, PayloadMessageKind::Private(block)).await?;
    }
    Ok(())
}

async fn say<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    kind: PayloadMessageKind,
) -> Result<(), Error> {
    writer.send(&PayloadMessage { kind: Some(kind) }).await.map_err(Error::Stream)
}

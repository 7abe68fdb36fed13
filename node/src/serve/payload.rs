//! The payload of a unit: its project tree as far as it is missing, then its private block.

use std::collections::BTreeSet;
use std::path::PathBuf;

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_proto::frame::PRIVATE_FRAME_MAX;
use plexus_proto::id::{Attempt, Identity, OwnerEpoch};
use plexus_proto::work::{
    Chunk, PayloadDone, PayloadMessage, PayloadMessageKind, PayloadNeed, PayloadOpen, PrivateBlock,
    RefusalCode, TreeManifest, UnitStatus,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::Error;
use crate::supervisor::{Supervisor, Wanted};
use crate::tree::cache::digest_of;
use crate::tree::{self, Digest, Tree, lay_out};
use crate::work::{Caller, refusal};

/// Chunks asked for at a time, so that the request stays short and the rest can still change.
const NEED_BATCH: usize = 4096;
/// Rounds of asking for chunks: a second one repairs what was found damaged, a third would not help.
const ROUNDS: usize = 3;

struct Conversation<S> {
    reader: FrameReader<ReadHalf<S>>,
    writer: FrameWriter<WriteHalf<S>>,
}

/// Takes one unit's payload from `peer` and starts the unit.
///
/// # Errors
/// See [`Error`]; a refusal was sent before it is returned.
pub async fn serve<S>(stream: S, peer: &Identity, supervisor: &Supervisor) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut talk = Conversation { reader: FrameReader::new(reader), writer: FrameWriter::new(writer) };
    match talk.run(&Caller::from(peer), supervisor).await {
        Ok(status) => {
            talk.say(PayloadMessageKind::Done(PayloadDone { status: Some(status) })).await?;
            talk.writer.finish().await?;
            Ok(())
        }
        Err(Error::Refused(refusal)) => {
            talk.say(PayloadMessageKind::Refusal(refusal.clone())).await?;
            talk.writer.finish().await?;
            Err(Error::Refused(refusal))
        }
        Err(error) => Err(error),
    }
}

impl<S: AsyncRead + AsyncWrite + Send> Conversation<S> {
    async fn run(&mut self, caller: &Caller, supervisor: &Supervisor) -> Result<UnitStatus, Error> {
        let Some(PayloadMessageKind::Open(PayloadOpen { unit, epoch })) = self.hear().await? else {
            return Err(Error::Unexpected("something else than an open"));
        };
        let attempt = Attempt::try_from(unit.as_ref()).map_err(|error| invalid(error.to_string()))?;
        let epoch = OwnerEpoch::from(epoch.ok_or_else(|| invalid("open has no epoch"))?);
        let opened = supervisor.open_payload(caller, attempt, epoch).await.map_err(Error::Refused)?;
        let Some(wanted) = opened.wanted else { return Ok(opened.status) };
        let _guard = supervisor.payload_guard();
        let mut copy = Copy { supervisor: supervisor.clone(), dir: Some(wanted.copy.clone()) };
        let laid_out = match self.tree(supervisor, &wanted).await {
            Ok(tree) => tree.map(|tree| begin_copy(supervisor, tree, wanted.copy.clone())),
            Err(Error::Refused(refusal)) => {
                // The same tree would be refused again: the unit ends with the reason.
                return supervisor
                    .fail_unit(attempt, wanted.ticket, refusal.message)
                    .await
                    .map_err(Error::Refused);
            }
            Err(error) => return Err(error),
        };
        // While the private block is on its way, the copy is made.
        self.say(PayloadMessageKind::Need(PayloadNeed { private: true, ..PayloadNeed::default() })).await?;
        let block = self.private().await?;
        if let Some(laid_out) = laid_out
            && let Err(reason) = finish_copy(laid_out).await
        {
            return supervisor.fail_unit(attempt, wanted.ticket, reason).await.map_err(Error::Refused);
        }
        let started = supervisor.start_unit(attempt, wanted.ticket, block).await.map_err(Error::Refused);
        if started.is_ok() {
            copy.dir = None; // moved, or removed with the unit
        }
        started
    }

    /// The unit's tree, with every chunk of it in the cache.
    async fn tree(&mut self, supervisor: &Supervisor, wanted: &Wanted) -> Result<Option<Tree>, Error> {
        let Some(digest) = wanted.tree else { return Ok(None) };
        let cache = supervisor.cache().clone();
        let known = on_disk(move || cache.tree(&digest)).await?;
        let tree = match known {
            Some(tree) => tree,
            None => {
                self.say(PayloadMessageKind::Need(PayloadNeed { manifest: true, ..PayloadNeed::default() }))
                    .await?;
                let manifest = self.manifest().await?;
                let cache = supervisor.cache().clone();
                on_disk(move || cache.keep_tree(&digest, manifest)).await?
            }
        };
        for _ in 0..ROUNDS {
            let (cache, of) = (supervisor.cache().clone(), tree.clone());
            let missing = on_disk(move || Ok(cache.missing(&of))).await?;
            if missing.is_empty() {
                return Ok(Some(tree));
            }
            for batch in missing.chunks(NEED_BATCH) {
                self.chunks(supervisor, batch).await?;
            }
        }
        Err(invalid("chunks of the project tree do not stay in this node's cache"))
    }

    async fn manifest(&mut self) -> Result<TreeManifest, Error> {
        match self.hear().await? {
            Some(PayloadMessageKind::Manifest(manifest)) => Ok(manifest),
            _ => Err(Error::Unexpected("something else than the manifest asked for")),
        }
    }

    async fn chunks(&mut self, supervisor: &Supervisor, batch: &[Digest]) -> Result<(), Error> {
        let chunks = batch.iter().map(|digest| digest.to_vec().into()).collect();
        self.say(PayloadMessageKind::Need(PayloadNeed { chunks, ..PayloadNeed::default() })).await?;
        let mut open: BTreeSet<Digest> = batch.iter().copied().collect();
        while !open.is_empty() {
            let Some(PayloadMessageKind::Chunk(Chunk { digest, data })) = self.hear().await? else {
                return Err(Error::Unexpected("something else than the chunks asked for"));
            };
            let Some(digest) = digest_of(&digest).filter(|digest| open.remove(digest)) else {
                return Err(Error::Unexpected("a chunk that was not asked for"));
            };
            let cache = supervisor.cache().clone();
            on_disk(move || cache.keep_chunk(&digest, &data)).await?;
        }
        Ok(())
    }

    async fn private(&mut self) -> Result<PrivateBlock, Error> {
        match self.hear().await? {
            Some(PayloadMessageKind::Private(block)) => Ok(block),
            _ => Err(Error::Unexpected("something else than the private block asked for")),
        }
    }

    async fn hear(&mut self) -> Result<Option<PayloadMessageKind>, Error> {
        let message = self.reader.next::<PayloadMessage>(PRIVATE_FRAME_MAX).await?;
        Ok(message.and_then(|message| message.kind))
    }

    async fn say(&mut self, kind: PayloadMessageKind) -> Result<(), Error> {
        Ok(self.writer.send(&PayloadMessage { kind: Some(kind) }).await?)
    }
}

/// A working copy that no unit has taken yet: it goes when the conversation breaks.
struct Copy {
    supervisor: Supervisor,
    dir: Option<PathBuf>,
}

impl Drop for Copy {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take().filter(|dir| dir.exists()) {
            let supervisor = self.supervisor.clone();
            tokio::spawn(async move { supervisor.discard(dir).await });
        }
    }
}

fn begin_copy(supervisor: &Supervisor, tree: Tree, dir: PathBuf) -> JoinHandle<Result<(), tree::Error>> {
    let cache = supervisor.cache().clone();
    tokio::task::spawn_blocking(move || lay_out::lay_out(&tree, &cache, &dir))
}

async fn finish_copy(copy: JoinHandle<Result<(), tree::Error>>) -> Result<(), String> {
    match copy.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("the project tree cannot be laid out: {}", words(&error))),
        Err(error) => Err(format!("the project tree cannot be laid out: {error}")),
    }
}

/// Runs work on the cache aside; what a peer's tree did wrong becomes a refusal.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, tree::Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| invalid(words(&error))),
        Err(error) => Err(invalid(error.to_string())),
    }
}

fn words(error: &tree::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::Refused(refusal(RefusalCode::Invalid, message))
}

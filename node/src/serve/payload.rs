//! The payload of a unit: the unit itself where it was not submitted before, its project tree as far as it is missing, its private block.

use std::path::{Path, PathBuf};

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_proto::frame::PRIVATE_FRAME_MAX;
use plexus_proto::id::{Attempt, Identity, OwnerEpoch};
use plexus_proto::work::{
    ChunkBatch, ImageInfo, ManifestPart, PayloadDone, PayloadMessage, PayloadMessageKind, PayloadNeed,
    PayloadOpen, PayloadProgress, PrivateBlock, PullPolicy, RefusalCode, RegistryAuth, SubmitRequest,
    UnitStatus,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::Error;
use crate::runtime::images::NotReady;
use crate::supervisor::{Supervisor, View, Wanted};
use crate::tree::manifest::MANIFEST_MAX;
use crate::tree::{self, Digest, Filling, working};
use crate::work::{Caller, refusal};

/// Batches on their way to the disk: while one is written, the next may come.
const BATCHES: usize = 4;

/// What a payload came to: the unit, and the image it runs in.
type Ready = (UnitStatus, Option<ImageInfo>);

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
        Ok((status, image)) => {
            talk.say(PayloadMessageKind::Done(PayloadDone { status: Some(status), image })).await?;
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
    async fn run(&mut self, caller: &Caller, supervisor: &Supervisor) -> Result<Ready, Error> {
        let Some(PayloadMessageKind::Open(open)) = self.hear().await? else {
            return Err(Error::Unexpected("something else than an open"));
        };
        let PayloadOpen { unit, epoch, submit, private } = open;
        let attempt = Attempt::try_from(unit.as_ref()).map_err(|error| invalid(error.to_string()))?;
        let early = if private { Some(self.private().await?) } else { None };
        if let Some(submit) = submit {
            let submit = SubmitRequest { unit, epoch, ..submit };
            supervisor.try_submit(caller, submit).await.map_err(Error::Refused)?;
        }
        let epoch = OwnerEpoch::from(epoch.ok_or_else(|| invalid("open has no epoch"))?);
        let opened = supervisor.open_payload(caller, attempt, epoch).await.map_err(Error::Refused)?;
        let Some(wanted) = opened.wanted else { return Ok((opened.status, None)) };
        let _guard = supervisor.payload_guard();
        let mut copy = Copy { supervisor: supervisor.clone(), dir: Some(wanted.copy.clone()) };
        match self.tree(supervisor, &wanted).await {
            Ok(()) => {}
            Err(Error::Refused(refusal)) => {
                // The same tree would be refused again: the unit ends with the reason.
                return fail(supervisor, attempt, &wanted, refusal.message).await;
            }
            Err(error) => return Err(error),
        }
        let block = match early {
            Some(block) => block,
            None => {
                let need = PayloadNeed { private: true, ..PayloadNeed::default() };
                self.say(PayloadMessageKind::Need(need)).await?;
                self.private().await?
            }
        };
        let image = match &wanted.image {
            Some((name, policy)) => {
                let mut unit = supervisor.watch(attempt).map_err(Error::Refused)?;
                let finished = async move {
                    let view = unit.wait_for(View::is_finished).await;
                    view.map(|view| view.status.clone())
                        .map_err(|_| refusal(RefusalCode::ShuttingDown, "the unit's task ended"))
                };
                tokio::select! {
                    image = self.image(supervisor, caller, name, *policy, block.registry.as_ref()) => match image? {
                        Ok(image) => Some(image),
                        Err(NotReady(reason)) => return fail(supervisor, attempt, &wanted, reason).await,
                    },
                    // Canceled: nobody waits for the image any more.
                    status = finished => return Ok((status.map_err(Error::Refused)?, None)),
                }
            }
            None => None,
        };
        let id = image.as_ref().map(|image| image.id.clone());
        let started = supervisor.start_unit(attempt, wanted.ticket, block, id).await.map_err(Error::Refused);
        if started.is_ok() {
            copy.dir = None; // moved, or removed with the unit
        }
        started.map(|status| (status, image))
    }

    /// The unit's image, on this node. The controller hears how its pull goes; when it hangs up, nobody waits here.
    async fn image(
        &mut self,
        supervisor: &Supervisor,
        caller: &Caller,
        name: &str,
        policy: PullPolicy,
        auth: Option<&RegistryAuth>,
    ) -> Result<Result<ImageInfo, NotReady>, Error> {
        let images = match supervisor.images().engine() {
            Ok(images) => images,
            Err(error) => return Ok(Err(error)),
        };
        let (lines, mut said) = watch::channel(String::new());
        let ready = images.ready(name, policy, auth, move |line| drop(lines.send_replace(line)));
        tokio::pin!(ready);
        loop {
            tokio::select! {
                biased;
                image = &mut ready => {
                    images.used_by(name, &caller.cluster);
                    return Ok(image);
                }
                Ok(()) = said.changed() => {
                    let line = said.borrow_and_update().clone();
                    self.say(PayloadMessageKind::Progress(PayloadProgress { line })).await?;
                }
                heard = self.reader.next::<PayloadMessage>(PRIVATE_FRAME_MAX) => {
                    heard?;
                    return Err(Error::Unexpected("something, or the end, while the image is pulled"));
                }
            }
        }
    }

    /// Brings the unit's tree into the cache as far as it is missing, and lays the unit's working copy out.
    async fn tree(&mut self, supervisor: &Supervisor, wanted: &Wanted) -> Result<(), Error> {
        let Some((digest, size)) = wanted.tree else { return Ok(()) };
        if copy_cached(supervisor, wanted, digest).await? {
            return Ok(());
        }
        let _turn = supervisor.cache().turn(&digest).await;
        if copy_cached(supervisor, wanted, digest).await? {
            return Ok(()); // whoever had the turn before brought it
        }
        if size > MANIFEST_MAX {
            return Err(invalid(format!(
                "the project's manifest has {size} bytes, more than {MANIFEST_MAX}"
            )));
        }
        self.say(PayloadMessageKind::Need(PayloadNeed { manifest: true, ..PayloadNeed::default() })).await?;
        let manifest = self.manifest(size).await?;
        let cache = supervisor.cache().clone();
        let mut filling = on_disk(move || cache.begin(&digest, manifest)).await?;
        if !filling.due().is_whole() {
            let need = PayloadNeed { chunks: filling.due().need(), ..PayloadNeed::default() };
            self.say(PayloadMessageKind::Need(need)).await?;
            filling = self.chunks(filling).await?;
        }
        let (cache, copy) = (supervisor.cache().clone(), copying(supervisor, wanted));
        on_disk(move || Ok(copy(&cache.keep(filling)?))).await?
    }

    async fn manifest(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut manifest = Vec::new();
        loop {
            let Some(PayloadMessageKind::Manifest(ManifestPart { data, last })) = self.hear().await? else {
                return Err(Error::Unexpected("something else than the manifest asked for"));
            };
            if manifest.len() as u64 + data.len() as u64 > size {
                return Err(invalid("the project's manifest is longer than was said"));
            }
            manifest.extend_from_slice(&data);
            if last {
                return Ok(manifest);
            }
        }
    }

    /// Takes the missing chunks. A thread of its own checks and writes them while the next ones come.
    async fn chunks(&mut self, mut filling: Filling) -> Result<Filling, Error> {
        let (batches, mut inbox) = mpsc::channel::<ChunkBatch>(BATCHES);
        let writer = tokio::task::spawn_blocking(move || {
            while !filling.due().is_whole() {
                let Some(batch) = inbox.blocking_recv() else { return Ok(None) };
                filling.take(&batch)?;
            }
            Ok(Some(filling))
        });
        tokio::pin!(writer);
        loop {
            tokio::select! {
                written = &mut writer => {
                    return match written {
                        Ok(Ok(Some(filling))) => Ok(filling),
                        Ok(Ok(None)) => Err(Error::Unexpected("the end before all chunks")),
                        Ok(Err(error)) => Err(invalid(words(&error))),
                        Err(error) => Err(invalid(error.to_string())),
                    };
                }
                batch = self.reader.next::<PayloadMessage>(PRIVATE_FRAME_MAX) => {
                    let Some(PayloadMessageKind::Chunks(batch)) = batch?.and_then(|message| message.kind) else {
                        return Err(Error::Unexpected("something else than the chunks asked for"));
                    };
                    batches.send(batch).await.ok(); // a writer that gave up says why
                }
            }
        }
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

/// The unit can never start here: it ends with the reason.
async fn fail(
    supervisor: &Supervisor,
    attempt: Attempt,
    wanted: &Wanted,
    reason: String,
) -> Result<Ready, Error> {
    let status = supervisor.fail_unit(attempt, wanted.ticket, reason).await.map_err(Error::Refused)?;
    Ok((status, None))
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

/// Lays the working copy out if the tree is whole in the cache; false if it is not.
async fn copy_cached(supervisor: &Supervisor, wanted: &Wanted, digest: Digest) -> Result<bool, Error> {
    let (cache, copy) = (supervisor.cache().clone(), copying(supervisor, wanted));
    match on_disk(move || Ok(cache.files(&digest).map(|files| copy(&files)))).await? {
        Some(copied) => copied.map(|()| true),
        None => Ok(false),
    }
}

/// What makes the unit's working copy of a tree's files.
fn copying(
    supervisor: &Supervisor,
    wanted: &Wanted,
) -> impl FnOnce(&Path) -> Result<(), Error> + Send + use<> {
    let overlay = supervisor.cache().has_overlay() && !wanted.collect;
    let dir = wanted.copy.clone();
    move |files| {
        working::prepare(files, &dir, overlay)
            .map_err(|error| invalid(format!("the project tree cannot be laid out: {}", words(&error))))
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

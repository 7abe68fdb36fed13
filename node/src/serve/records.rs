//! The records of a unit, from the first that its controller lacks, then live.

use std::sync::Arc;
use std::sync::Mutex;

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_proto::frame::OPEN_FRAME_MAX;
use plexus_proto::id::{Attempt, Identity, OwnerEpoch};
use plexus_proto::work::{
    Ack, Attach, Attached, RecordMessage, RecordMessageKind, RefusalCode, UnitStatus, UnitStatusState,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Error;
use crate::crash::Point;
use crate::spool::{self, Reader, segment::Frame};
use crate::supervisor::{Attachment, Supervisor};
use crate::work::{Caller, refusal};

/// Bytes of records held in memory on their way from the spool to the stream. The rest waits in the spool.
const BATCH_BYTES: usize = 512 << 10;

/// Serves one records stream until its controller ends it or a newer one takes its place.
///
/// # Errors
/// See [`Error`]; a refusal was sent before it is returned.
pub async fn serve<S>(stream: S, peer: &Identity, supervisor: &Supervisor) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let first = reader.next::<RecordMessage>(OPEN_FRAME_MAX).await?.and_then(|message| message.kind);
    let Some(RecordMessageKind::Attach(attach)) = first else {
        return Err(Error::Unexpected("something else than an attach"));
    };
    let ended = match open(&Caller::from(peer), attach, supervisor).await {
        Ok(attachment) => {
            let (id, attempt) = (attachment.id, attachment.attempt);
            tokio::select! {
                ended = send(&mut writer, attachment, supervisor) => ended,
                ended = hear(&mut reader, attempt, id, supervisor) => ended,
            }
        }
        Err(error) => Err(error),
    };
    if let Err(Error::Refused(refusal)) = &ended {
        say(&mut writer, RecordMessageKind::Refusal(refusal.clone())).await?;
    }
    writer.finish().await?;
    ended
}

async fn open(caller: &Caller, attach: Attach, supervisor: &Supervisor) -> Result<Attachment, Error> {
    let invalid = |message: String| Error::Refused(refusal(RefusalCode::Invalid, message));
    let attempt = Attempt::try_from(attach.unit.as_ref()).map_err(|error| invalid(error.to_string()))?;
    let epoch = attach.epoch.ok_or_else(|| invalid("attach has no epoch".to_owned()))?;
    supervisor
        .attach(caller, attempt, OwnerEpoch::from(epoch), attach.from_record)
        .await
        .map_err(Error::Refused)
}

/// Takes acknowledgements; returns when the controller ends the stream.
async fn hear<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    attempt: Attempt,
    attachment: u64,
    supervisor: &Supervisor,
) -> Result<(), Error> {
    while let Some(message) = reader.next::<RecordMessage>(OPEN_FRAME_MAX).await? {
        match message.kind {
            Some(RecordMessageKind::Ack(Ack { epoch: Some(epoch), up_to })) => {
                supervisor.ack(attempt, attachment, epoch.into(), up_to).await;
            }
            Some(RecordMessageKind::Ack(Ack { epoch: None, .. })) => {
                return Err(Error::Unexpected("an ack without an epoch"));
            }
            None => {} // a newer controller's word
            Some(_) => return Err(Error::Unexpected("something else than an ack")),
        }
    }
    Ok(())
}

/// Sends records as they come, and the unit's state whenever it changes. Returns only with an error: a unit that
/// ended may still be acknowledged.
async fn send<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    attachment: Attachment,
    supervisor: &Supervisor,
) -> Result<(), Error> {
    let Attachment { id, attempt, status, first_record, mut view, spool, mut tail } = attachment;
    let mut told = stage(&status);
    let attached = Attached { status: Some(status), first_record };
    say(writer, RecordMessageKind::Attached(attached)).await?;
    let mut reader: Option<Arc<Mutex<Reader>>> = None;
    let mut next = first_record;
    loop {
        let seen = view.borrow_and_update().clone();
        if seen.attachment != id {
            let message = format!("a newer attach serves unit {attempt}");
            return Err(Error::Refused(refusal(RefusalCode::OlderEpoch, message)));
        }
        // How it ended is told after its last record, everything else at once.
        if stage(&seen.status) != told && !(seen.is_finished() && next <= seen.status.records) {
            told = stage(&seen.status);
            say(writer, RecordMessageKind::Status(seen.status.clone())).await?;
        }
        if let Some(lost) = tail.take_if(|lost| lost.number == next) {
            next += 1;
            say(writer, RecordMessageKind::Record(lost)).await?;
            continue;
        }
        if next <= seen.status.records {
            match read(&mut reader, &spool, attempt, next, seen.status.records).await {
                Ok(frames) => {
                    Point::RecordRead.hit();
                    for frame in frames {
                        next = frame.record.number + 1;
                        writer
                            .feed(&RecordMessage { kind: Some(RecordMessageKind::Record(frame.record)) })
                            .await?;
                    }
                    writer.flush().await?;
                    Point::RecordSent.hit();
                    continue;
                }
                Err(error) => {
                    // Unless it was closed and cut a moment ago, its unit now is.
                    reader = None;
                    if seen.status.records == view.borrow().status.records {
                        supervisor.damaged(attempt, error.to_string()).await;
                    }
                }
            }
        }
        if seen.is_finished() && seen.status.records + 1 < next {
            // Its spool was found damaged, and lost what was sent already. Whoever has more attaches anew: the lost record then
            // takes the number that is waited for.
            return Err(Error::Lost);
        }
        if view.changed().await.is_err() {
            return Err(Error::Refused(refusal(RefusalCode::UnknownUnit, format!("unit {attempt} is gone"))));
        }
    }
}

/// Reads the next records, off the threads that carry streams.
async fn read(
    reader: &mut Option<Arc<Mutex<Reader>>>,
    dir: &std::path::Path,
    attempt: Attempt,
    next: u64,
    up_to: u64,
) -> Result<Vec<Frame>, spool::Error> {
    let reader = match reader {
        Some(reader) => reader.clone(),
        None => reader.insert(Arc::new(Mutex::new(Reader::open(dir, attempt, next)?))).clone(),
    };
    let work = move || reader.lock().expect("no code panics under this lock").read(up_to, BATCH_BYTES);
    match tokio::task::spawn_blocking(work).await {
        Ok(frames) => frames,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What counts as a change of state.
fn stage(status: &UnitStatus) -> (Option<std::mem::Discriminant<UnitStatusState>>, String) {
    (status.state.as_ref().map(std::mem::discriminant), status.held.clone())
}

async fn say<W: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<W>,
    kind: RecordMessageKind,
) -> Result<(), Error> {
    Ok(writer.send(&RecordMessage { kind: Some(kind) }).await?)
}

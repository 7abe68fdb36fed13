//! What is made of a record: output is parsed, and everything that is not an event goes into carry or staging.

use std::sync::Arc;

use bytes::Bytes;
use plexus_proto::seal::RollingHash;
use plexus_proto::work::{EndRecord, LostRecord, Output, Record, RecordKind, SealedRecord, Stream};
use prost::Message;

use super::carry::{Artifacts, NOISE_MAX, TEXT_MAX};
use super::result::Started;
use super::seal::Place;
use super::{Error, Session};
use crate::crash::Point;
use crate::store::events::{Batch, GapKind, NewEvent, NewGap, Slot, Staged};
use crate::stream::{self, Item, Parser, Status};

/// Bytes kept of the end of standard error.
pub(super) const STDERR_MAX: usize = 64 * 1024;
/// Largest artifacts zip that is staged.
const ARTIFACTS_MAX: u64 = 1 << 30;
/// Gaps that are kept by name of one attempt; the last one says that there were more.
const GAPS_MAX: u32 = 1000;

/// What one record adds.
#[derive(Default)]
pub(super) struct Yield {
    events: Vec<NewEvent>,
    staged: Vec<Staged>,
    gaps: Vec<NewGap>,
    artifacts: Vec<u8>,
    stderr_changed: bool,
}

impl Session {
    /// Takes the record behind the last one, or one further on.
    pub(super) fn take(&mut self, record: SealedRecord, out: &mut Yield) -> Result<(), Error> {
        let (attempt, number) = (self.attempt, record.number);
        let kind = match record.plain {
            None => match self.key.open(attempt, number, &record.sealed) {
                Ok(plain) => Some(Record::decode(Bytes::from(plain)).ok().and_then(|record| record.kind)),
                Err(source) if !self.carry.key_fits => return Err(Error::WrongKey { attempt, source }),
                Err(_) => None,
            },
            // Whoever has no key may say only that the rest is lost.
            Some(Record { kind: Some(RecordKind::Lost(lost)) }) => Some(Some(RecordKind::Lost(lost))),
            Some(_) => return Err(Error::Invalid { attempt, number, what: "not sealed" }),
        };
        Point::Unsealed.hit();
        if number > self.record + 1 {
            let detail = match number - self.record - 1 {
                1 => format!("record {} is missing", self.record + 1),
                missing => format!("{missing} records are missing, {} to {}", self.record + 1, number - 1),
            };
            self.note(out, GapKind::Records, detail);
            // What follows does not belong to what is held.
            self.carry.hash.clear();
            self.finish_stream(out);
        }
        self.record = number;
        if self.is_complete() {
            self.note(out, GapKind::UnknownRecord, format!("record {number} came after the last one"));
            return Ok(());
        }
        match kind {
            None => {
                self.note(out, GapKind::BrokenRecord, format!("record {number} does not open"));
                self.finish_stream(out);
            }
            Some(kind) => {
                self.carry.key_fits |= !record.sealed.is_empty();
                match kind {
                    Some(RecordKind::Output(output)) => self.output(number, output, out),
                    Some(RecordKind::Starting(_)) => {}
                    Some(RecordKind::End(end)) => self.end(number, end, out),
                    Some(RecordKind::Lost(lost)) => self.lost(number, lost, out),
                    None => self.note(
                        out,
                        GapKind::UnknownRecord,
                        format!("record {number} is of an unknown kind"),
                    ),
                }
            }
        }
        if let Ok(value) = self.carry.hash.as_slice().try_into() {
            let mut hash = RollingHash::from_value(value);
            hash.update(number, &record.sealed);
            self.carry.hash = hash.value().to_vec();
        }
        Ok(())
    }

    fn output(&mut self, number: u64, output: Output, out: &mut Yield) {
        match output.stream() {
            Stream::Stdout => self.parse(|parser, sink| parser.push(&output.data, sink), out),
            Stream::Stderr => {
                self.carry.stderr_bytes += output.data.len() as u64;
                let kept = &output.data[output.data.len().saturating_sub(STDERR_MAX)..];
                let surplus = (self.stderr.len() + kept.len()).saturating_sub(STDERR_MAX);
                self.stderr.drain(..surplus.min(self.stderr.len()));
                self.stderr.extend_from_slice(kept);
                out.stderr_changed = true;
            }
            Stream::Unspecified => {
                self.note(
                    out,
                    GapKind::UnknownRecord,
                    format!("record {number} holds output of an unknown stream"),
                );
            }
        }
    }

    fn end(&mut self, number: u64, end: EndRecord, out: &mut Yield) {
        self.finish_stream(out);
        let before = number - 1;
        // Without its hash a record was missing, which has its own name.
        if !self.carry.hash.is_empty() {
            if end.records != before {
                let detail = format!("{} records were written, {before} came", end.records);
                self.note(out, GapKind::EndMismatch, detail);
            } else if end.rolling_hash[..] != self.carry.hash[..] {
                self.note(out, GapKind::EndMismatch, format!("hash of {before} records differs"));
            }
        }
        if self.carry.stderr_bytes == 0 && !end.stderr_tail.is_empty() {
            self.stderr = end.stderr_tail.to_vec();
            out.stderr_changed = true;
        }
        self.carry.finished = end.finished;
        self.carry.last_record = Some(number);
    }

    fn lost(&mut self, number: u64, lost: LostRecord, out: &mut Yield) {
        self.finish_stream(out);
        let reason = cut(lost.reason);
        self.note(out, GapKind::Lost, format!("the end of the output is lost: {reason}"));
        self.carry.lost = Some(reason);
        self.carry.last_record = Some(number);
    }

    /// Nothing follows what the parser holds.
    fn finish_stream(&mut self, out: &mut Yield) {
        self.parse(|parser, sink| parser.finish(sink), out);
    }

    /// Lets the parser run, takes its items, and stages what it holds of a line.
    fn parse(&mut self, run: impl FnOnce(&mut Parser, &mut dyn FnMut(Item)), out: &mut Yield) {
        let mut parser = std::mem::take(&mut self.parser);
        let generation = parser.partial_generation();
        run(&mut parser, &mut |item| self.item(item, out));
        if parser.partial_generation() != generation && self.carry.line_pieces > 0 {
            out.staged.push(Staged::Clear(Slot::Line));
            (self.carry.line_pieces, self.carry.line_staged) = (0, 0);
        }
        let staged = usize::try_from(self.carry.line_staged).unwrap_or(usize::MAX);
        if let Some(more) = parser.partial().get(staged..).filter(|more| !more.is_empty()) {
            let seq = self.carry.line_pieces;
            out.staged.push(self.piece(Slot::Line, seq, more));
            self.carry.line_pieces += 1;
            self.carry.line_staged += more.len() as u64;
        }
        self.parser = parser;
    }

    fn item(&mut self, item: Item, out: &mut Yield) {
        match item {
            Item::Event(event) => self.event(event, out),
            Item::Status(status) => self.status(*status, out),
            Item::Keepalive => self.carry.keepalives += 1,
            Item::Noise { line, length } => {
                self.carry.noise_lines += 1;
                let room = NOISE_MAX.saturating_sub(self.carry.noise.len() + 1);
                if room > 0 {
                    self.carry.noise.extend_from_slice(&line[..line.len().min(room)]);
                    self.carry.noise.push(b'\n');
                }
                if length > stream::LINE_MAX as u64 {
                    self.note(
                        out,
                        GapKind::CutLine,
                        format!("a line of {length} bytes that is no event is not kept"),
                    );
                }
            }
            Item::ArtifactsStart(_) => {
                out.artifacts.clear();
                out.staged.retain(|staged| !matches!(staged, Staged::Put { slot: Slot::Artifacts, .. }));
                out.staged.push(Staged::Clear(Slot::Artifacts));
                (self.carry.artifact_pieces, self.carry.artifact_bytes) = (0, 0);
                self.carry.set_artifacts(Artifacts::Coming);
            }
            Item::Artifacts(bytes) if self.carry.artifacts() == Artifacts::Coming => {
                self.carry.artifact_bytes += bytes.len() as u64;
                if self.carry.artifact_bytes > ARTIFACTS_MAX {
                    out.artifacts.clear();
                    out.staged.push(Staged::Clear(Slot::Artifacts));
                    self.carry.set_artifacts(Artifacts::Broken);
                    self.note(
                        out,
                        GapKind::Artifacts,
                        format!("artifacts exceed {ARTIFACTS_MAX} bytes and are not kept"),
                    );
                } else {
                    out.artifacts.extend_from_slice(&bytes);
                }
            }
            Item::Artifacts(_) => {}
            Item::ArtifactsEnd if self.carry.artifacts() == Artifacts::Coming => {
                self.carry.set_artifacts(Artifacts::Complete);
            }
            Item::ArtifactsEnd => {}
            Item::ArtifactsBroken => {
                self.carry.set_artifacts(Artifacts::Broken);
                self.note(out, GapKind::Artifacts, "artifacts break off".to_owned());
            }
            // The parser's own state says it.
            Item::Eof => {}
        }
    }

    fn event(&mut self, event: stream::Event, out: &mut Yield) {
        if let Some(counter) = event.counter() {
            let last = self.carry.runner_counter;
            if counter > last.saturating_add(1) {
                let (from, to) = (last.saturating_add(1), counter - 1);
                self.note(
                    out,
                    GapKind::RunnerCounter,
                    format!("the runner counts from {last} to {counter}: {from} to {to} are missing"),
                );
            } else if counter <= last {
                self.note(out, GapKind::RunnerCounter, format!("the runner counts {counter} after {last}"));
            }
            self.carry.runner_counter = counter;
        }
        if let Some(length) = event.cut {
            self.note(
                out,
                GapKind::CutLine,
                format!("an event of {length} bytes is cut to {}", stream::LINE_MAX),
            );
        }
        self.carry.events += 1;
        let lines = event.lines();
        out.events.push(NewEvent { event, lines });
    }

    fn status(&mut self, status: Status, out: &mut Yield) {
        self.carry.status = Some(status.status.as_str().to_owned());
        if status.job_explanation.is_some() {
            self.carry.explanation = status.job_explanation.map(cut);
        }
        if status.result_traceback.is_some() {
            self.carry.traceback = status.result_traceback.map(cut);
        }
        if status.command.is_some() || status.env.is_some() {
            let started = Started {
                args: status
                    .command
                    .unwrap_or_default()
                    .iter()
                    .map(|word| self.masks.argument(word))
                    .collect(),
                cwd: status.cwd.unwrap_or_default(),
                env: status
                    .env
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, value)| {
                        let masked = self.masks.variable(&name, &value);
                        (name, masked)
                    })
                    .collect(),
            };
            let plain = serde_json::to_vec(&started).expect("texts are JSON");
            out.staged.push(self.piece(Slot::Starting, 0, &plain));
        }
    }

    fn note(&mut self, out: &mut Yield, kind: GapKind, detail: String) {
        let seq = self.carry.gaps;
        self.carry.gaps = seq.saturating_add(1);
        if seq < GAPS_MAX {
            out.gaps.push(NewGap { seq, kind, detail });
        } else if seq == GAPS_MAX {
            out.gaps.push(NewGap {
                seq,
                kind: GapKind::More,
                detail: "further gaps are not listed".to_owned(),
            });
        }
    }

    fn piece(&self, slot: Slot, seq: u32, plain: &[u8]) -> Staged {
        Staged::Put {
            slot,
            seq,
            size: plain.len() as u64,
            data: self.sealer.seal(Place::Staged(slot, seq), plain),
        }
    }

    /// Wraps up what was taken since record `previous`.
    pub(super) fn batch(&mut self, previous: u64, mut out: Yield) -> Batch {
        if !out.artifacts.is_empty() {
            let seq = self.carry.artifact_pieces;
            out.staged.push(self.piece(Slot::Artifacts, seq, &out.artifacts));
            self.carry.artifact_pieces += 1;
        }
        if out.stderr_changed {
            out.staged.push(self.piece(Slot::Stderr, 0, &self.stderr));
        }
        self.carry.set_snapshot(self.parser.snapshot());
        Batch {
            attempt: self.attempt,
            job: self.job.id,
            epoch: self.epoch,
            previous,
            record: self.record,
            carry: self.sealer.seal(Place::Carry(self.record), &self.carry.encode_to_bytes()),
            events: out.events,
            staged: out.staged,
            gaps: out.gaps,
            header: self.header.clone(),
            commits: Arc::clone(&self.commits),
            room: None,
        }
    }
}

/// A text as far as it is kept.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

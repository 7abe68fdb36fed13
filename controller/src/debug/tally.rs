//! What a captured stream amounts to, in the fields people compare it by.

use std::collections::BTreeMap;
use std::io::Cursor;

use bytes::Bytes;
use serde::Serialize;

use crate::ingest::artifacts::Artifacts;
use crate::stream::{Item, Parser};

/// What events without a kind are listed under.
const NO_NAME: &str = "(none)";

/// Counts what a parser says.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    report: Report,
    zip: Vec<u8>,
    zip_complete: bool,
}

/// Summary of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Status words in order.
    pub statuses: Vec<String>,
    /// Events by kind, keepalives not among them.
    pub events: BTreeMap<String, u64>,
    /// Sum of those.
    pub event_count: u64,
    /// Lines that only say that the worker lives.
    pub keepalives: u64,
    /// Lines that are no item.
    pub other_lines: u64,
    /// Names in the artifacts zip, sorted; null without one that can be read.
    pub artifacts: Option<Vec<String>>,
    /// Text of `rc` in it.
    pub rc_file: Option<String>,
    /// Whether the eof line came.
    pub eof: bool,
}

impl Tally {
    /// Counts one item.
    pub fn add(&mut self, item: Item) {
        let report = &mut self.report;
        match item {
            Item::Status(status) => report.statuses.push(status.status.as_str().to_owned()),
            Item::Event(event) => {
                let name = event.name();
                let name = if name.is_empty() { NO_NAME } else { &*name };
                *report.events.entry(name.to_owned()).or_default() += 1;
                report.event_count += 1;
            }
            Item::Keepalive => report.keepalives += 1,
            Item::Noise { .. } => report.other_lines += 1,
            Item::ArtifactsStart(_) => (self.zip, self.zip_complete) = (Vec::new(), false),
            Item::Artifacts(bytes) => self.zip.extend_from_slice(&bytes),
            Item::ArtifactsEnd => self.zip_complete = true,
            Item::ArtifactsBroken => {}
            Item::Eof => report.eof = true,
        }
    }

    /// The summary.
    pub fn report(mut self) -> Report {
        if self.zip_complete
            && let Ok(artifacts) = Artifacts::read(Cursor::new(&self.zip))
        {
            self.report.artifacts = Some(artifacts.names);
            self.report.rc_file = artifacts.rc;
        }
        self.report
    }
}

/// The summary of a stream that is cut into `pieces`.
pub fn report<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Report {
    let (mut parser, mut tally) = (Parser::new(), Tally::default());
    for piece in pieces {
        parser.push(&Bytes::copy_from_slice(piece), |item| tally.add(item));
    }
    parser.finish(|item| tally.add(item));
    tally.report()
}

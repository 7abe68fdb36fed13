//! What an attempt came to, once its last record is stored.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use plexus_proto::id::Attempt;
use plexus_proto::work::Finished;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::runtime::Handle;

use super::artifacts;
use super::seal::{Place, Sealer};
use crate::facts::Change;
use crate::store::events::{self, EventStore, Gap, JobKey, Slot};
use crate::stream::RunnerStatus;

/// Exit status of the playbook, as the artifacts have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rc {
    /// It exited.
    Code(i32),
    /// It died from a signal.
    None,
}

impl Rc {
    /// Reads the text of the file; `None` for what is no status.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "None" { Some(Self::None) } else { text.parse().ok().map(Self::Code) }
    }
}

/// What the playbook did on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "Ansible's words; their recap explains them")]
pub struct HostSummary {
    pub ok: u64,
    pub changed: u64,
    pub failures: u64,
    pub dark: u64,
    pub skipped: u64,
    pub rescued: u64,
    pub ignored: u64,
    pub processed: u64,
}

/// Command, directory and environment of a run; secrets are masked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Started {
    /// Words of the command.
    pub args: Vec<String>,
    /// Working directory in the execution environment.
    pub cwd: String,
    /// Environment.
    pub env: BTreeMap<String, String>,
}

/// What an attempt came to.
#[derive(Debug, Clone, Default)]
pub struct UnitResult {
    /// The runner's last word; absent when it said nothing.
    pub last_status: Option<RunnerStatus>,
    /// Exit status of the playbook; absent when the artifacts did not come, or have none.
    pub rc: Option<Rc>,
    /// Whether the worker said that it was through. If not, it was cut off.
    pub eof: bool,
    /// Why the worker could not start it.
    pub explanation: Option<String>,
    /// Python traceback of that.
    pub result_traceback: Option<String>,
    /// The last of standard error, at most 64 KiB.
    pub stderr_tail: String,
    /// Lines that are no items, and the first 4 KiB of them: what a container says that is no worker.
    pub noise_lines: u64,
    /// See there.
    pub noise: String,
    /// What the node says of the process; absent when the shim was lost.
    pub finished: Option<Finished>,
    /// Why the node does not know the end.
    pub lost: Option<String>,
    /// What was started; absent when nothing was.
    pub started: Option<Started>,
    /// Events of this attempt.
    pub events: u64,
    /// Names in the artifacts zip; absent without one that can be read.
    pub artifacts: Option<Vec<String>>,
    /// What the job did to the facts of hosts.
    pub facts: BTreeMap<String, Change>,
    /// The inventory that a source came to, a JSON object as text; absent in all but inventory updates.
    pub inventory: Option<Box<RawValue>>,
    /// By host, from the job's last `playbook_on_stats`.
    pub host_summaries: BTreeMap<String, HostSummary>,
    /// `set_stats` data of the playbook, a JSON object; absent when there is none.
    pub artifact_data: Option<Box<RawValue>>,
    /// What is missing from the job's events, or is not as it came.
    pub gaps: Vec<Gap>,
}

/// `event_data` of `playbook_on_stats`. Anything of another form counts as absent, field by field.
#[derive(Default)]
pub(super) struct Stats {
    pub(super) hosts: BTreeMap<String, HostSummary>,
    pub(super) artifact_data: Option<Box<RawValue>>,
}

impl Stats {
    pub(super) fn read(event_data: &RawValue) -> Self {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_str(event_data.get()).unwrap_or_default();
        let mut stats = Self::default();
        type Slot = fn(&mut HostSummary) -> &mut u64;
        let slots: [(&str, Slot); 8] = [
            ("ok", |host| &mut host.ok),
            ("changed", |host| &mut host.changed),
            ("failures", |host| &mut host.failures),
            ("dark", |host| &mut host.dark),
            ("skipped", |host| &mut host.skipped),
            ("rescued", |host| &mut host.rescued),
            ("ignored", |host| &mut host.ignored),
            ("processed", |host| &mut host.processed),
        ];
        for (name, slot) in slots {
            let counts = fields
                .get(name)
                .and_then(|raw| serde_json::from_str::<BTreeMap<String, f64>>(raw.get()).ok());
            for (host, count) in counts.unwrap_or_default() {
                // Saturates: what is negative is none.
                *slot(stats.hosts.entry(host).or_default()) = count as u64;
            }
        }
        let data = fields.get("artifact_data").filter(|raw| raw.get().starts_with('{') && raw.get() != "{}");
        stats.artifact_data = data.map(|&raw| raw.to_owned());
        stats
    }
}

/// `output.json` as text; `None` for what is no object.
pub(super) fn inventory(output: Vec<u8>) -> Option<Box<RawValue>> {
    let text = crate::stream::normal_json(&output)?;
    RawValue::from_string(String::from_utf8(text).ok()?).ok()
}

/// Reads the artifacts zip from its staged pieces, a piece at a time.
///
/// # Errors
/// Pieces that cannot be read; content that is no zip is the inner error.
pub(super) async fn read_artifacts(
    store: &EventStore,
    job: JobKey,
    attempt: Attempt,
    sealer: Sealer,
) -> Result<Result<artifacts::Artifacts, artifacts::Error>, events::Error> {
    let mut pieces = Vec::new();
    let mut length = 0;
    for (seq, size) in store.staged_sizes(job, attempt, Slot::Artifacts).await? {
        pieces.push((length, seq));
        length += size;
    }
    let zip = StagedZip {
        store: store.clone(),
        job,
        attempt,
        sealer,
        runtime: Handle::current(),
        pieces,
        length,
        at: 0,
        piece: None,
    };
    let read = tokio::task::spawn_blocking(move || artifacts::Artifacts::read(zip)).await;
    Ok(read.unwrap_or(Err(artifacts::Error::Invalid("reading it failed"))))
}

/// The staged zip as a file. For threads that may block.
struct StagedZip {
    store: EventStore,
    job: JobKey,
    attempt: Attempt,
    sealer: Sealer,
    runtime: Handle,
    /// First byte and place of each piece, in order.
    pieces: Vec<(u64, u32)>,
    length: u64,
    at: u64,
    /// The piece at hand, by its index.
    piece: Option<(usize, Vec<u8>)>,
}

impl Read for StagedZip {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let index = self.pieces.partition_point(|(first, _)| *first <= self.at);
        let Some(index) = index.checked_sub(1).filter(|_| self.at < self.length) else { return Ok(0) };
        let (first, seq) = self.pieces[index];
        if self.piece.as_ref().is_none_or(|(at_hand, _)| *at_hand != index) {
            let piece = self.store.staged(self.job, self.attempt, Slot::Artifacts, seq);
            let sealed = self.runtime.block_on(piece).map_err(io::Error::other)?.unwrap_or_default();
            let plain = self.sealer.open(Place::Staged(Slot::Artifacts, seq), &sealed);
            self.piece =
                Some((index, plain.ok_or_else(|| io::Error::other("a staged piece does not open"))?));
        }
        let (_, piece) = self.piece.as_ref().ok_or_else(|| io::Error::other("no piece at hand"))?;
        let offset = usize::try_from(self.at - first).map_err(io::Error::other)?;
        let read = piece.get(offset..).unwrap_or_default().read(into)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for StagedZip {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(delta) => self.length.checked_add_signed(delta),
            SeekFrom::Current(delta) => self.at.checked_add_signed(delta),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_by_host() {
        let data = r#"{"ok": {"a": 2}, "changed": {"a": 1, "b": -1}, "dark": [], "failures": {"b": 1.0},
                       "processed": {"a": 1, "b": 1}, "artifact_data": {"x": [1]}}"#;
        let stats = Stats::read(&RawValue::from_string(data.into()).unwrap());
        assert_eq!(
            stats.hosts["a"],
            HostSummary { ok: 2, changed: 1, processed: 1, ..HostSummary::default() }
        );
        assert_eq!((stats.hosts["b"].failures, stats.hosts["b"].changed), (1, 0));
        assert_eq!(stats.artifact_data.unwrap().get(), r#"{"x": [1]}"#);
        let none = Stats::read(&RawValue::from_string("[]".into()).unwrap());
        assert!(none.hosts.is_empty() && none.artifact_data.is_none());
    }

    #[test]
    fn rc_is_a_number_or_none() {
        assert_eq!(Rc::parse("0"), Some(Rc::Code(0)));
        assert_eq!(Rc::parse("None"), Some(Rc::None));
        assert_eq!(Rc::parse("zero"), None);
    }
}

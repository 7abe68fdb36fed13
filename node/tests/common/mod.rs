//! A node's supervisor with plain processes, and a controller that talks to it over in-memory streams.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

pub mod registry;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_node::config::{RuntimeName, WorkSection};
use plexus_node::serve;
use plexus_node::supervisor::{Options, Supervisor};
use plexus_node::tree::manifest;
use plexus_node::work::Caller;
use plexus_proto::frame::WORK_FRAME_MAX;
use plexus_proto::id::{Address, Attempt, Identity, OwnerEpoch, Role, UnitId};
use plexus_proto::seal::{RollingHash, SpoolKey};
use plexus_proto::work::*;
use prost::Message;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use uuid::Uuid;

pub const PATIENCE: Duration = Duration::from_secs(20);

/// Directories of a node that outlive its agent.
pub struct Place {
    pub data: tempfile::TempDir,
    pub runtime: tempfile::TempDir,
    pub work: WorkSection,
}

impl Place {
    pub fn new() -> Self {
        let mut work =
            WorkSection { runtime: RuntimeName::Process, allow_swap: true, ..WorkSection::default() };
        work.process.command = ["sh", "{dir}/script"].map(str::to_owned).to_vec();
        Self { data: tempfile::tempdir().unwrap(), runtime: tempfile::tempdir_in("/dev/shm").unwrap(), work }
    }

    pub async fn start(&self) -> Supervisor {
        Supervisor::start(self.options()).await.unwrap()
    }

    pub fn options(&self) -> Options {
        Options {
            data_dir: self.data.path().join("data"),
            runtime_dir: self.runtime.path().join("run"),
            shim_binary: std::env::var_os("PLEXUS_TEST_NODE")
                .map_or_else(|| env!("CARGO_BIN_EXE_plexus-node").into(), PathBuf::from),
            node: "node-1".parse().unwrap(),
            work: self.work.clone(),
        }
    }

    pub fn unit_dir(&self, attempt: Attempt) -> PathBuf {
        self.data.path().join("data/units").join(attempt.to_string())
    }

    pub fn runtime_dir(&self, attempt: Attempt) -> PathBuf {
        self.runtime.path().join("run/units").join(attempt.to_string())
    }

    /// Process id of the unit's shim: whoever has its working directory there.
    pub fn shim_pid(&self, attempt: Attempt) -> i32 {
        self.shim_pid_in(&self.runtime_dir(attempt))
    }

    /// Process id of the shim whose directory this is.
    pub fn shim_pid_in(&self, dir: &Path) -> i32 {
        let locks = fs::metadata(dir.join("lock")).unwrap();
        use std::os::unix::fs::MetadataExt;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(held) = fs::metadata(entry.path().join("fd/1")) else { continue };
            if held.ino() == locks.ino() && held.dev() == locks.dev() {
                return pid;
            }
        }
        panic!("{} has no shim", dir.display());
    }
}

/// What a controller keeps of one attempt.
pub struct Job {
    pub attempt: Attempt,
    pub epoch: OwnerEpoch,
    pub key: SpoolKey,
    pub spec: UnitSpec,
    pub files: Vec<PrivateFile>,
    pub stdin: Vec<u8>,
    pub env: Vec<(String, String)>,
    pub registry: Option<RegistryAuth>,
    /// The encoded manifest, and the distinct chunks in its order.
    pub tree: Option<(Vec<u8>, Vec<Vec<u8>>)>,
}

pub fn epoch(counter: u64) -> OwnerEpoch {
    OwnerEpoch { incarnation: 1, counter }
}

pub fn identity() -> Identity {
    Identity {
        mesh: "test".parse().unwrap(),
        cluster: "main".parse().unwrap(),
        role: Role::Controller,
        node: "controller".parse().unwrap(),
        address: Address(1),
    }
}

pub fn caller() -> Caller {
    Caller::from(&identity())
}

pub fn private_file(path: &str, content: impl Into<Vec<u8>>) -> PrivateFile {
    PrivateFile { path: path.to_owned(), mode: 0o600, content: content.into().into(), secret: false }
}

impl Job {
    /// A unit whose worker is this shell script.
    pub fn script(script: &str) -> Self {
        Self {
            attempt: Attempt { unit: UnitId(Uuid::now_v7()), number: 1 },
            epoch: epoch(1),
            key: SpoolKey::new([7; 32]),
            spec: UnitSpec { label: "test".to_owned(), grace_seconds: 5, ..UnitSpec::default() },
            files: vec![private_file("script", script)],
            stdin: b"{\"kwargs\":{}}\n{\"eof\":true}\n".to_vec(),
            env: Vec::new(),
            registry: None,
            tree: None,
        }
    }

    pub fn submit_request(&self, supervisor: &Supervisor) -> SubmitRequest {
        SubmitRequest {
            unit: Some(self.attempt.into()),
            epoch: Some(self.epoch.into()),
            store_id: supervisor.store_id().0.as_bytes().to_vec().into(),
            spec: Some(self.spec.clone()),
        }
    }

    pub fn block(&self) -> PrivateBlock {
        PrivateBlock {
            files: self.files.clone(),
            stdin: self.stdin.clone().into(),
            spool_key: self.key.expose().to_vec().into(),
            spool_key_id: 1,
            env: self.env.iter().cloned().collect(),
            registry: self.registry.clone(),
        }
    }

    pub async fn submit(&self, supervisor: &Supervisor) -> UnitStatus {
        status(supervisor.submit(&caller(), self.submit_request(supervisor)).await)
    }

    pub async fn cancel(&self, supervisor: &Supervisor) -> UnitStatus {
        let request = CancelRequest { unit: Some(self.attempt.into()), epoch: Some(self.epoch.into()) };
        status(supervisor.cancel(&caller(), request).await)
    }

    pub async fn forget(&self, supervisor: &Supervisor) -> Result<UnitStatus, Refusal> {
        let request = ForgetRequest { unit: Some(self.attempt.into()), epoch: Some(self.epoch.into()) };
        answer(supervisor.forget(&caller(), request).await)
    }

    pub async fn status(&self, supervisor: &Supervisor) -> Result<UnitStatus, Refusal> {
        let request = StatusRequest { unit: Some(self.attempt.into()) };
        answer(supervisor.status(&caller(), request).await)
    }

    /// Plays the controller's part of a payload stream; the messages the node sent, and its last word.
    pub async fn payload(&self, supervisor: &Supervisor) -> (Vec<PayloadMessageKind>, PayloadMessageKind) {
        self.payload_hearing(supervisor, |_| {}).await
    }

    /// The same; `hear` is shown each message of progress as it comes.
    pub async fn payload_hearing(
        &self,
        supervisor: &Supervisor,
        hear: impl FnMut(&PayloadMessageKind),
    ) -> (Vec<PayloadMessageKind>, PayloadMessageKind) {
        self.converse(supervisor, self.open(), None, hear).await
    }

    /// Submits the unit and sends its private block with the first word of the payload stream.
    pub async fn payload_at_once(
        &self,
        supervisor: &Supervisor,
    ) -> (Vec<PayloadMessageKind>, PayloadMessageKind) {
        let submit = SubmitRequest { unit: None, epoch: None, ..self.submit_request(supervisor) };
        let open = PayloadOpen { submit: Some(submit), private: true, ..self.open() };
        self.converse(supervisor, open, Some(self.block()), |_| {}).await
    }

    /// The first word of a payload stream whose unit was submitted.
    pub fn open(&self) -> PayloadOpen {
        PayloadOpen {
            unit: Some(self.attempt.into()),
            epoch: Some(self.epoch.into()),
            ..PayloadOpen::default()
        }
    }

    async fn converse(
        &self,
        supervisor: &Supervisor,
        open: PayloadOpen,
        early: Option<PrivateBlock>,
        mut hear: impl FnMut(&PayloadMessageKind),
    ) -> (Vec<PayloadMessageKind>, PayloadMessageKind) {
        let mut talk = Talk::payload(supervisor);
        talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Open(open)) }).await;
        if let Some(block) = early {
            talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Private(block)) }).await;
        }
        let mut heard = Vec::new();
        loop {
            let kind = talk.hear::<PayloadMessage>().await.expect("a last word").kind.unwrap();
            if matches!(kind, PayloadMessageKind::Progress(_)) {
                hear(&kind);
                heard.push(kind);
                continue;
            }
            let PayloadMessageKind::Need(need) = &kind else { return (heard, kind) };
            let mut answers = Vec::new();
            if need.manifest {
                // In parts, as a manifest of hundreds of thousands of files comes.
                let manifest = &self.tree.as_ref().unwrap().0;
                let parts = manifest.chunks(100).map(|part| (part.to_vec(), false));
                for (data, last) in parts.chain([(Vec::new(), true)]) {
                    answers.push(PayloadMessageKind::Manifest(ManifestPart { data: data.into(), last }));
                }
            }
            for pair in need.chunks.chunks(2) {
                let chunks = &self.tree.as_ref().unwrap().1[pair[0] as usize..][..pair[1] as usize];
                let (whole, rest) = chunks.split_at(chunks.len() / 2);
                for (chunks, compress) in [(whole, true), (rest, false)] {
                    let plain = chunks.concat();
                    let (data, plain_size) = match compress && !plain.is_empty() {
                        true => (zstd::bulk::compress(&plain, 1).unwrap(), plain.len() as u32),
                        false => (plain, 0),
                    };
                    answers.push(PayloadMessageKind::Chunks(ChunkBatch { data: data.into(), plain_size }));
                }
            }
            if need.private {
                answers.push(PayloadMessageKind::Private(self.block()));
            }
            heard.push(kind);
            for kind in answers {
                talk.say(&PayloadMessage { kind: Some(kind) }).await;
            }
        }
    }

    /// Submits and delivers the payload.
    pub async fn start(&self, supervisor: &Supervisor) {
        self.submit(supervisor).await;
        let (_, last) = self.payload(supervisor).await;
        assert!(matches!(last, PayloadMessageKind::Done(_)), "{last:?}");
    }

    pub async fn attach(&self, supervisor: &Supervisor, from: u64) -> Records {
        let mut talk = Talk::records(supervisor);
        let attach =
            Attach { unit: Some(self.attempt.into()), epoch: Some(self.epoch.into()), from_record: from };
        talk.say(&RecordMessage { kind: Some(RecordMessageKind::Attach(attach)) }).await;
        let attached = match talk.hear::<RecordMessage>().await.expect("an answer").kind.unwrap() {
            RecordMessageKind::Attached(attached) => attached,
            other => panic!("not attached: {other:?}"),
        };
        Records {
            talk,
            attached,
            attempt: self.attempt,
            epoch: self.epoch,
            key: self.key.clone(),
            got: Vec::new(),
            statuses: Vec::new(),
            hash: RollingHash::default(),
        }
    }

    /// Runs a unit to its end and takes everything.
    pub async fn run(&self, supervisor: &Supervisor) -> Records {
        self.start(supervisor).await;
        let mut records = self.attach(supervisor, 1).await;
        records.take_all().await;
        records
    }

    pub fn with_tree(mut self, entries: &[(&str, u32, &[u8])]) -> Self {
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        let entries = entries.iter().map(|(path, mode, content)| {
            let kind = if let Some(target) = path.strip_suffix('@') {
                return TreeEntry {
                    path: target.to_owned(),
                    mode: 0o777,
                    kind: Some(TreeEntryKind::Symlink(String::from_utf8(content.to_vec()).unwrap())),
                };
            } else if path.ends_with('/') {
                TreeEntryKind::Directory(Directory {})
            } else {
                let pieces: Vec<_> = content.chunks(1 << 20).map(<[u8]>::to_vec).collect();
                let digests =
                    pieces.iter().map(|piece| blake3::hash(piece).as_bytes().to_vec().into()).collect();
                for piece in pieces {
                    if !chunks.contains(&piece) {
                        chunks.push(piece);
                    }
                }
                TreeEntryKind::File(FileContent { size: content.len() as u64, chunks: digests })
            };
            TreeEntry { path: path.trim_end_matches('/').to_owned(), mode: *mode, kind: Some(kind) }
        });
        let manifest = TreeManifest { entries: entries.collect() }.encode_to_vec();
        let digest = manifest::digest(&manifest).to_vec().into();
        self.spec.tree = Some(TreeRef { digest, size: manifest.len() as u64 });
        self.tree = Some((manifest, chunks));
        self
    }
}

pub fn answer(reply: UnitReply) -> Result<UnitStatus, Refusal> {
    match reply.result.unwrap() {
        UnitReplyResult::Status(status) => Ok(status),
        UnitReplyResult::Refusal(refusal) => Err(refusal),
    }
}

pub fn status(reply: UnitReply) -> UnitStatus {
    answer(reply).unwrap()
}

pub fn finished(status: &UnitStatus) -> Option<&Finished> {
    match status.state.as_ref().unwrap() {
        UnitStatusState::Finished(finished) => Some(finished),
        _ => None,
    }
}

/// One end of a framed stream whose other end the node serves.
pub struct Talk {
    reader: FrameReader<ReadHalf<DuplexStream>>,
    writer: FrameWriter<WriteHalf<DuplexStream>>,
    served: JoinHandle<Result<(), serve::Error>>,
}

impl Talk {
    fn new(serve: impl FnOnce(DuplexStream) -> JoinHandle<Result<(), serve::Error>>) -> Self {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(near);
        Self { reader: FrameReader::new(reader), writer: FrameWriter::new(writer), served: serve(far) }
    }

    pub fn payload(supervisor: &Supervisor) -> Self {
        let supervisor = supervisor.clone();
        Self::new(|far| {
            tokio::spawn(async move { serve::payload::serve(far, &identity(), &supervisor).await })
        })
    }

    pub fn records(supervisor: &Supervisor) -> Self {
        let supervisor = supervisor.clone();
        Self::new(|far| {
            tokio::spawn(async move { serve::records::serve(far, &identity(), &supervisor).await })
        })
    }

    pub async fn say(&mut self, message: &impl Message) {
        self.writer.send(message).await.unwrap();
    }

    pub async fn hear<M: Message + Default>(&mut self) -> Option<M> {
        tokio::time::timeout(PATIENCE, self.reader.next(WORK_FRAME_MAX))
            .await
            .expect("the node says something in time")
            .unwrap()
    }

    pub async fn end(mut self) -> Result<(), serve::Error> {
        self.writer.finish().await.ok();
        self.served.await.unwrap()
    }
}

/// An attached records stream, and what came through it.
pub struct Records {
    pub talk: Talk,
    pub attached: Attached,
    pub attempt: Attempt,
    pub epoch: OwnerEpoch,
    pub key: SpoolKey,
    pub got: Vec<(u64, RecordKind)>,
    pub statuses: Vec<UnitStatus>,
    pub hash: RollingHash,
}

impl Records {
    /// Waits for the end of the stream; no record comes before it.
    pub async fn ends(&mut self) {
        while let Some(message) = self.talk.hear::<RecordMessage>().await {
            match message.kind {
                Some(RecordMessageKind::Status(status)) => self.statuses.push(status),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The next message, noted. The refusal that ended the stream, if it did.
    pub async fn next(&mut self) -> Option<Refusal> {
        match self.talk.hear::<RecordMessage>().await.expect("the stream goes on").kind.unwrap() {
            RecordMessageKind::Record(record) => self.take(record),
            RecordMessageKind::Status(status) => self.statuses.push(status),
            RecordMessageKind::Refusal(refusal) => return Some(refusal),
            other => panic!("unexpected {other:?}"),
        }
        None
    }

    fn take(&mut self, record: SealedRecord) {
        let number = record.number;
        let expected = self.got.last().map_or(self.attached.first_record, |(last, _)| last + 1);
        assert_eq!(number, expected, "records come in order");
        let kind = match record.plain {
            Some(plain) => plain.kind.unwrap(),
            None => {
                let plain = self.key.open(self.attempt, number, &record.sealed).unwrap();
                let kind = Record::decode(plain.as_slice()).unwrap().kind.unwrap();
                match &kind {
                    RecordKind::End(end) if self.attached.first_record == 1 => {
                        assert_eq!(end.records, number - 1);
                        assert_eq!(
                            end.rolling_hash[..],
                            self.hash.value(),
                            "the end vouches for all records"
                        );
                    }
                    _ => self.hash.update(number, &record.sealed),
                }
                kind
            }
        };
        self.got.push((number, kind));
    }

    /// Takes records until there are `count`.
    pub async fn until(&mut self, count: usize) {
        while self.got.len() < count {
            assert_eq!(self.next().await, None);
        }
    }

    /// Takes records until the output holds `text`.
    pub async fn until_output(&mut self, text: &str) {
        while !self.stdout().contains(text) {
            assert_eq!(self.next().await, None);
        }
    }

    /// Takes everything up to the end, and the status that says so.
    pub async fn take_all(&mut self) -> Finished {
        let ended = |kind: &RecordKind| matches!(kind, RecordKind::End(_) | RecordKind::Lost(_));
        while !self.got.last().is_some_and(|(_, kind)| ended(kind))
            || !(self.statuses.last().is_some_and(|status| finished(status).is_some())
                || finished(self.attached.status.as_ref().unwrap()).is_some())
        {
            assert_eq!(self.next().await, None);
        }
        self.outcome()
    }

    /// The outcome as the last status has it.
    pub fn outcome(&self) -> Finished {
        let status = self.statuses.last().or(self.attached.status.as_ref()).unwrap();
        finished(status).expect("finished").clone()
    }

    pub fn end(&self) -> &EndRecord {
        match &self.got.last().unwrap().1 {
            RecordKind::End(end) => end,
            other => panic!("not an end record: {other:?}"),
        }
    }

    pub fn bytes(&self, wanted: Stream) -> Vec<u8> {
        let outputs = self.got.iter().filter_map(|(_, kind)| match kind {
            RecordKind::Output(output) if output.stream() == wanted => Some(output.data.to_vec()),
            _ => None,
        });
        outputs.flatten().collect()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8(self.bytes(Stream::Stdout)).unwrap()
    }

    pub async fn ack(&mut self, up_to: u64) {
        let ack = Ack { epoch: Some(self.epoch.into()), up_to };
        self.talk.say(&RecordMessage { kind: Some(RecordMessageKind::Ack(ack)) }).await;
    }

    /// Takes records to the end, and acknowledges every twenty.
    pub async fn take_all_and_ack(&mut self) {
        let mut acked = 0;
        while !matches!(self.got.last(), Some((_, RecordKind::End(_)))) {
            assert_eq!(self.next().await, None);
            let last = self.got.last().map_or(0, |(number, _)| *number);
            if last >= acked + 20 {
                self.ack(last).await;
                acked = last;
            }
        }
    }

    pub async fn ack_all(&mut self) {
        let last = self.got.last().unwrap().0;
        self.ack(last).await;
    }
}

/// Waits until `condition` holds; says what it last saw if it never does.
pub async fn wait_for<T: std::fmt::Debug, F: Future<Output = T>>(
    mut look: impl FnMut() -> F,
    condition: impl Fn(&T) -> bool,
) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let seen = look().await;
        if condition(&seen) {
            return seen;
        }
        assert!(Instant::now() < give_up, "still {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every file below `dir`.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

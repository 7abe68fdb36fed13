//! Output of any length is sent as it is read: the controller's memory does not grow with it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::path::Path;
use std::time::Duration;

use plexus_tests::{Replay, is_verify};

/// Lines of an event: 100 kB.
const LINES: u64 = 100;
/// Bytes of a line with its line end, as `much.py` writes it.
const LINE: u64 = 1000;
/// By how much the controller may grow while it sends. Its allocator, five readers and their pages take a part of that.
const GROWTH: u64 = 48 << 20;
/// Longest run of the job that prints it all, in an unoptimised build on a busy machine.
const JOB: Duration = Duration::from_secs(900);

/// Memory of a process that no file stands behind, in bytes.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What came of one download.
#[derive(Default)]
struct Download {
    bytes: u64,
    /// Most memory that the controller had meanwhile.
    most: u64,
    /// Lines that began with their number, in order and without a hole.
    lines: u64,
    /// The line at hand.
    rest: Vec<u8>,
}

impl Download {
    fn take(&mut self, piece: &[u8], pid: u32) {
        // A look costs a system call; a piece is some hundred kilobytes at most.
        self.most = self.most.max(memory(pid));
        self.bytes += piece.len() as u64;
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.last() != Some(&b'\n') {
                continue;
            }
            let number = self.rest.get(..10).and_then(|digits| std::str::from_utf8(digits).ok());
            if number.and_then(|digits| digits.parse().ok()) == Some(self.lines) {
                assert_eq!(self.rest.len() as u64, LINE);
                self.lines += 1;
            }
            self.rest.clear();
        }
    }
}

#[tokio::test]
async fn output_of_a_gibibyte_is_downloaded_with_flat_memory() {
    let size: u64 = if is_verify() { 1 << 30 } else { 128 << 20 };
    let events = size.div_ceil(LINES * LINE);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let command = vec![
        "python3".to_owned(),
        fixtures.join("much.py").display().to_string(),
        fixtures.join("runner-streams/ok-2-hosts/worker.bin").display().to_string(),
        events.to_string(),
        LINES.to_string(),
        "{dir}".to_owned(),
    ];
    let replay = Replay::start_command("download", command).await.unwrap();
    let api = replay.api();
    let job = replay.launch().await.unwrap();
    let done = api.finished(job, JOB).await.unwrap();
    assert_eq!(done["status"], "successful", "{done}");
    assert_eq!(api.event_count(job).await.unwrap(), events);

    let pid = replay.cluster.controller.pid().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let open = async |format: &str| {
        let url = format!("{}/api/v2/jobs/{job}/stdout/?format={format}", api.base());
        let response = http.get(url).basic_auth(api.user(), Some(api.password())).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response
    };
    let idle = memory(pid);
    // One that takes the first piece and no more costs as little as one that reads.
    let mut stalled = open("ansi").await;
    assert!(stalled.chunk().await.unwrap().is_some());
    let whole = events * LINES * LINE;
    for format in ["txt_download", "ansi", "html", "json", "json&content_encoding=base64"] {
        let mut pieces = open(format).await;
        let mut download = Download::default();
        while let Some(piece) = pieces.chunk().await.unwrap() {
            download.take(&piece, pid);
        }
        let Download { bytes, most, lines, .. } = download;
        println!("{format}: {bytes} bytes, memory {idle} before, {most} at most");
        assert!(bytes >= whole, "{format}: {bytes} bytes of {whole}");
        if !format.starts_with("json") {
            assert_eq!(lines, events * LINES, "{format}: each line once, in order");
        }
        let growth = most.saturating_sub(idle);
        assert!(growth < GROWTH && growth < size / 2, "{format}: memory grew by {growth} bytes, to {most}");
    }
    drop(stalled);
    replay.finish().await.unwrap();
}

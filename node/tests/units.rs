//! Whole lives of units: real shims, real processes, in-memory streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::*;
use plexus_proto::work::*;

#[tokio::test]
async fn a_unit_runs_and_every_byte_arrives_once_and_sealed() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("cat; echo to-stderr >&2; echo done; exit 3");
    let first = job.submit(&node).await;
    assert!(matches!(first.state, Some(UnitStatusState::Pending(Pending { needs_payload: true }))));
    assert_eq!(job.submit(&node).await, first, "submit says it again");

    let mut records = job.run(&node).await;
    assert!(matches!(records.got[0], (1, RecordKind::Starting(Starting { pid })) if pid > 1));
    assert_eq!(records.stdout(), "{\"kwargs\":{}}\n{\"eof\":true}\ndone\n");
    assert_eq!(records.bytes(Stream::Stderr), b"to-stderr\n");
    assert_eq!(records.end().stderr_tail[..], *b"to-stderr\n");
    let outcome = records.outcome();
    assert_eq!((outcome.outcome(), outcome.exit_code), (Outcome::Failed, Some(3)));
    assert_eq!(records.end().finished, Some(outcome));
    assert!(!place.runtime_dir(job.attempt).exists(), "nothing private stays after the end");

    let refusal = job.forget(&node).await.unwrap_err();
    assert_eq!(refusal.code(), RefusalCode::NotFinished, "{}", refusal.message);
    records.ack_all().await;
    let last = records.got.last().unwrap().0;
    wait_for(|| job.status(&node), |status| status.as_ref().unwrap().acked == last).await;
    job.forget(&node).await.unwrap();
    assert_eq!(job.status(&node).await.unwrap_err().code(), RefusalCode::UnknownUnit);
    assert_eq!(files_below(&place.data.path().join("data/units")), Vec::<std::path::PathBuf>::new());
    node.shutdown().await;
}

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use plexus_proto::id::{Attempt, UnitId};
use plexus_proto::seal::{RollingHash, SpoolKey};
use plexus_proto::work::{Finished, Outcome, Output, Record, RecordKind, Stream};
use proptest::prelude::*;
use prost::Message;
use uuid::Uuid;

use super::segment::{Frame, HEADER_LEN, Kind};
use super::*;
use crate::testing::unsynced_bytes;

fn attempt() -> Attempt {
    Attempt { unit: UnitId(Uuid::from_u128(5)), number: 1 }
}

fn key() -> SpoolKey {
    SpoolKey::new([9; 32])
}

fn output(data: &[u8]) -> RecordKind {
    RecordKind::Output(Output { stream: Stream::Stdout.into(), data: data.to_vec().into(), fragment: 0 })
}

fn open(frame: &Frame) -> Record {
    let plain = key().open(attempt(), frame.record.number, &frame.record.sealed).unwrap();
    Record::decode(plain.as_slice()).unwrap()
}

fn write(dir: &Path, records: &[Vec<u8>]) -> Writer {
    let mut writer = Writer::create(dir, attempt(), key(), 1).unwrap();
    for record in records {
        writer.append(output(record)).unwrap();
    }
    writer
}

/// Numbers and contents from `from` on.
fn read(dir: &Path, from: u64, up_to: u64) -> Vec<(u64, Record)> {
    let mut reader = Reader::open(dir, attempt(), from).unwrap();
    let mut all = Vec::new();
    while reader.next_record() <= up_to {
        let frames = reader.read(up_to, 100_000).unwrap();
        assert!(!frames.is_empty());
        all.extend(frames.iter().map(|frame| (frame.record.number, open(frame))));
    }
    all
}

#[test]
fn records_come_back_sealed_in_order_and_with_their_hash() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    let mut writer = write(&spool, &[b"one\n".to_vec(), b"two\n".to_vec()]);
    let finished = Finished { outcome: Outcome::Succeeded.into(), exit_code: Some(0), ..Finished::default() };
    assert_eq!(writer.finish(finished.clone(), b"tail".to_vec()).unwrap(), 3);
    let text = fs::read(segment_path(&spool, 1)).unwrap();
    assert!(
        !text.windows(3).any(|window| window == b"one" || window == b"two"),
        "output lies on disk in clear"
    );

    let frames = Reader::open(&spool, attempt(), 1).unwrap().read(3, usize::MAX).unwrap();
    let mut hash = RollingHash::default();
    for frame in &frames[..2] {
        hash.update(frame.record.number, &frame.record.sealed);
    }
    let Some(RecordKind::End(end)) = open(&frames[2]).kind else { panic!("no end record") };
    assert_eq!(end.records, 2);
    assert_eq!(end.rolling_hash[..], hash.value());
    assert_eq!(end.stderr_tail[..], *b"tail");
    assert_eq!(end.finished, Some(finished.clone()));
    assert_eq!(frames[2].outcome, Some(finished.clone()), "the keyless agent must see the outcome");

    let found = scan(&spool, attempt()).unwrap();
    assert_eq!((found.last, found.closing), (3, Some(Closing::End(finished.clone()))));
    let closed = close_lost(&spool, attempt(), "too late").unwrap();
    assert_eq!(closed, (3, Closing::End(finished)), "a closed spool stays as it is");
}

#[test]
fn a_second_spool_in_the_same_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[b"x".to_vec()]);
    assert!(Writer::create(dir.path(), attempt(), key(), 1).is_err(), "a number would be sealed twice");
}

#[test]
fn segments_follow_each_other_and_go_when_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let record = vec![b'x'; 1 << 20];
    let mut writer = write(dir.path(), &vec![record.clone(); 20]);
    let firsts = segments(dir.path()).unwrap();
    assert_eq!(firsts, [1, 9, 17]);
    assert_eq!(read(dir.path(), 1, 20).len(), 20);
    assert_eq!(read(dir.path(), 12, 20).first().unwrap().0, 12);

    assert!(!trim(dir.path(), 7).unwrap());
    assert!(trim(dir.path(), 8).unwrap());
    assert_eq!(segments(dir.path()).unwrap(), [9, 17]);
    assert_eq!(Reader::open(dir.path(), attempt(), 1).unwrap().next_record(), 9, "older ones are gone");
    assert!(trim(dir.path(), 20).unwrap());
    assert_eq!(segments(dir.path()).unwrap(), [17], "the writer is at work in the newest");
    assert!(held_bytes(dir.path()).unwrap() < 5 << 20);
    assert_eq!(writer.append(output(b"y")).unwrap(), 21);
    assert_eq!(read(dir.path(), 20, 21).len(), 2);
}

#[test]
fn a_reader_follows_the_writer_over_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = write(dir.path(), &[]);
    let mut reader = Reader::open(dir.path(), attempt(), 1).unwrap();
    for number in 1..=20 {
        writer.append(output(&vec![b'x'; 1 << 20])).unwrap();
        let frames = reader.read(number, usize::MAX).unwrap();
        assert_eq!(frames.iter().map(|frame| frame.record.number).collect::<Vec<_>>(), [number]);
    }
    assert!(matches!(reader.read(21, 1), Err(Error::Missing(21))));
}

#[test]
fn a_dead_shim_without_spool_is_lost_at_record_one() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    assert_eq!(close_lost(&spool, attempt(), "gone").unwrap(), (1, Closing::Lost("gone".to_owned())));
    assert_eq!(close_lost(&spool, attempt(), "again").unwrap(), (1, Closing::Lost("gone".to_owned())));
    let frames = Reader::open(&spool, attempt(), 1).unwrap().read(1, 1).unwrap();
    assert_eq!(frames[0].kind, Kind::Lost);
    let Some(Record { kind: Some(RecordKind::Lost(lost)) }) = &frames[0].record.plain else {
        panic!("not lost")
    };
    assert_eq!((lost.records, lost.reason.as_str()), (0, "gone"));
}

#[test]
fn a_segment_without_records_is_the_end_wherever_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("begun");
    write(&spool, &[]);
    let mut reader = Reader::open(&spool, attempt(), 1).unwrap();
    assert!(matches!(reader.read(1, 1), Err(Error::Missing(1))));
    assert_eq!(close_lost(&spool, attempt(), "killed").unwrap(), (1, Closing::Lost("killed".to_owned())));

    // The shim died after it had begun its second segment.
    let spool = dir.path().join("turned");
    write(&spool, &vec![vec![b'x'; 1 << 20]; 9]);
    assert_eq!(segments(&spool).unwrap(), [1, 9]);
    OpenOptions::new().write(true).open(segment_path(&spool, 9)).unwrap().set_len(HEADER_LEN as u64).unwrap();
    assert_eq!(close_lost(&spool, attempt(), "killed").unwrap(), (9, Closing::Lost("killed".to_owned())));
}

#[test]
fn what_is_told_is_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    // A full segment when the next one begins, and everything when the end was told.
    let mut writer = write(dir.path(), &vec![vec![b'x'; 1 << 20]; 9]);
    assert_eq!(segments(dir.path()).unwrap(), [1, 9]);
    assert_eq!(unsynced_bytes(&segment_path(dir.path(), 1)), 0);
    writer.finish(Finished::default(), Vec::new()).unwrap();
    assert_eq!(unsynced_bytes(&segment_path(dir.path(), 9)), 0);
}

#[test]
fn a_spool_of_another_attempt_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[b"x".to_vec()]);
    let other = Attempt { number: 2, ..attempt() };
    assert!(matches!(Reader::open(dir.path(), other, 1).unwrap().read(1, 1), Err(Error::Damaged { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A crash may leave any prefix of what was written: whole records before the cut survive, the rest is named.
    #[test]
    fn a_torn_tail_is_found_and_cut(
        lengths in prop::collection::vec(0usize..3000, 1..12),
        cut in any::<prop::sample::Index>(),
        garbage in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<_> = lengths.iter().map(|&length| vec![b'r'; length]).collect();
        write(dir.path(), &records);
        let path = segment_path(dir.path(), 1);
        let whole = fs::read(&path).unwrap();
        let cut = cut.index(whole.len());
        let mut torn = whole[..cut].to_vec();
        torn.extend_from_slice(&garbage);
        fs::write(&path, &torn).unwrap();

        let (last, closing) = close_lost(dir.path(), attempt(), "killed").unwrap();
        prop_assert_eq!(closing, Closing::Lost("killed".to_owned()));
        // Records that ended before the cut are still there.
        let mut end = HEADER_LEN;
        let mut kept = 0;
        while let Some(length) = Frame::length(&whole[end.min(whole.len())..]).unwrap() {
            if end + length > cut { break; }
            end += length;
            kept += 1;
        }
        let kept = if cut < HEADER_LEN { 0 } else { kept };
        prop_assert_eq!(last, kept + 1);
        let mut reader = Reader::open(dir.path(), attempt(), 1).unwrap();
        let mut frames = Vec::new();
        while reader.next_record() <= last {
            frames.extend(reader.read(last, usize::MAX).unwrap());
        }
        prop_assert_eq!(frames.len() as u64, last);
        for (frame, record) in frames[..frames.len() - 1].iter().zip(&records) {
            let Some(RecordKind::Output(output)) = open(frame).kind else { panic!("no output") };
            prop_assert_eq!(&output.data[..], &record[..]);
        }
        prop_assert_eq!(frames.last().unwrap().kind, Kind::Lost);
        prop_assert_eq!(close_lost(dir.path(), attempt(), "again").unwrap().0, last);
    }

    /// Any flipped byte is noticed, and everything from it on is gone, never changed.
    #[test]
    fn a_flipped_byte_is_never_served(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let dir = tempfile::tempdir().unwrap();
        let records: Vec<_> = (0..6).map(|number| vec![b'a' + number; 200]).collect();
        write(dir.path(), &records);
        let path = segment_path(dir.path(), 1);
        let length = fs::metadata(&path).unwrap().len();
        let at = at.index(usize::try_from(length).unwrap()) as u64;
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();

        let mut reader = Reader::open(dir.path(), attempt(), 1).unwrap();
        let mut good = 0;
        let error = loop {
            match reader.read(6, 1) {
                Ok(frames) => {
                    for frame in frames {
                        let Some(RecordKind::Output(output)) = open(&frame).kind else { panic!("no output") };
                        prop_assert_eq!(&output.data[..], &records[good][..]);
                        good += 1;
                    }
                    prop_assert!(good < 6, "the flipped byte was not noticed");
                }
                Err(error) => break error,
            }
        };
        let damaged = matches!(error, Error::Damaged { .. } | Error::Missing(_));
        prop_assert!(damaged, "{error}");
        prop_assert_eq!(scan(dir.path(), attempt()).unwrap().last, good as u64);
    }

    #[test]
    fn any_bytes_are_a_frame_or_damage(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = prost::bytes::Bytes::from(bytes);
        prop_assert!(!matches!(Frame::decode(&bytes), Ok(Some(_))));
        segment::Header::decode(&bytes).ok();
    }
}

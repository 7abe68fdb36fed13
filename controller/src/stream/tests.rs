use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::debug::tally::{Report, Tally, report};

#[derive(Debug, Clone, Deserialize)]
struct Expected {
    statuses: Vec<String>,
    events: BTreeMap<String, u64>,
    event_count: u64,
    keepalives: u64,
    other_lines: u64,
    artifacts: Option<Vec<String>>,
    rc_file: Option<String>,
    eof: bool,
}

fn streams() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/runner-streams"))
}

/// Every captured case: name, worker's bytes, what index.json says of them.
fn cases() -> Vec<(String, Vec<u8>, Report)> {
    let index = std::fs::read(streams().join("index.json")).unwrap();
    let index: BTreeMap<String, Expected> = serde_json::from_slice(&index).unwrap();
    let cases: Vec<_> = index
        .into_iter()
        .map(|(name, expected)| {
            let bytes = std::fs::read(streams().join(&name).join("worker.bin")).unwrap();
            let expected = Report {
                statuses: expected.statuses,
                events: expected.events,
                event_count: expected.event_count,
                keepalives: expected.keepalives,
                other_lines: expected.other_lines,
                artifacts: expected.artifacts,
                rc_file: expected.rc_file,
                eof: expected.eof,
            };
            (name, bytes, expected)
        })
        .collect();
    assert!(cases.len() >= 60, "only {} captured cases", cases.len());
    cases
}

/// Feeds pieces; between any two of them the parser is taken apart and put together again.
fn report_with_restores<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Report {
    let (mut parser, mut tally) = (Parser::new(), Tally::default());
    for piece in pieces {
        parser = Parser::restore(parser.snapshot(), parser.partial().to_vec());
        parser.push(&Bytes::copy_from_slice(piece), |item| tally.add(item));
    }
    parser.finish(|item| tally.add(item));
    tally.report()
}

#[test]
fn every_captured_stream_gives_what_its_index_says() {
    for (name, bytes, expected) in cases() {
        assert_eq!(report([&bytes[..]]), expected, "{name}");
    }
}

#[test]
fn every_captured_stream_may_come_byte_by_byte() {
    for (name, bytes, expected) in cases() {
        assert_eq!(report(bytes.chunks(1)), expected, "{name}");
    }
}

#[test]
fn every_captured_stream_may_be_cut_at_any_byte() {
    for (name, bytes, expected) in cases() {
        // Long streams repeat themselves; a step that shares no factor with their lines meets every kind of place.
        let step = (bytes.len() * bytes.len() / 8_000_000).max(1) | 1;
        for cut in (0..=bytes.len()).step_by(step) {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(report([head, tail]), expected, "{name} cut at {cut}");
        }
    }
}

#[test]
fn a_parser_may_be_put_together_again_at_any_byte() {
    for (name, bytes, expected) in cases() {
        let small = bytes.len() < 30_000;
        let pieces = if small { bytes.chunks(1) } else { bytes.chunks(97) };
        assert_eq!(report_with_restores(pieces), expected, "{name}");
    }
}

#[test]
fn items_are_the_same_at_any_cut() {
    let items = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut parser, mut items) = (Parser::new(), Vec::new());
        for piece in pieces {
            parser.push(&Bytes::copy_from_slice(piece), |item| match item {
                Item::Event(event) => items.push(format!(
                    "{} {} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {} {} {} {:?} {:?} {:?}",
                    event.name(),
                    event.uuid(),
                    event.parent_uuid(),
                    event.counter(),
                    event.host(),
                    event.task(),
                    event.play(),
                    event.role(),
                    event.playbook(),
                    event.failed(),
                    event.changed(),
                    event.normalised,
                    event.created(),
                    event.stdout_json(),
                    event.event_data_json(),
                )),
                Item::Artifacts(_) => {}
                other => items.push(format!("{other:?}")),
            });
        }
        items
    };
    for name in ["flow", "roles", "unicode-binary", "odd-numbers", "debug-noise", "child-killed"] {
        let bytes = std::fs::read(streams().join(name).join("worker.bin")).unwrap();
        let whole = items(&mut std::iter::once(&bytes[..]));
        let cut = items(&mut bytes.chunks(13));
        assert_eq!(cut.len(), whole.len(), "{name}");
        for (cut, whole) in cut.iter().zip(&whole) {
            assert_eq!(cut, whole, "{name}");
        }
    }
}

#[test]
fn stored_slices_are_strict_json() {
    let mut normalised = 0;
    for (name, bytes, _) in cases() {
        Parser::new().push(&Bytes::from(bytes), |item| {
            let Item::Event(event) = item else { return };
            normalised += usize::from(event.normalised);
            let stdout: serde_json::Result<String> = serde_json::from_slice(&event.stdout_json());
            let data: serde_json::Result<serde_json::Value> =
                serde_json::from_slice(&event.event_data_json());
            assert!(stdout.is_ok() && data.is_ok(), "{name}: {event:?}");
            assert!(
                !event.uuid().is_empty() && event.created().is_some() && event.counter().is_some(),
                "{name}"
            );
        });
    }
    assert!(normalised >= 4, "only {normalised} captured lines were no strict JSON");
}

#[test]
fn lines_follow_each_other() {
    for (name, bytes, _) in cases() {
        let (mut line, mut counter) = (0, 0);
        Parser::new().push(&Bytes::from(bytes), |item| {
            let Item::Event(event) = item else { return };
            counter += 1;
            assert_eq!((event.counter(), event.start_line()), (Some(counter), Some(line)), "{name}");
            line = event.end_line().unwrap();
        });
    }
}

#[test]
fn a_line_beyond_the_limit_becomes_a_cut_event() {
    let mut parser = Parser::new();
    let mut items = Vec::new();
    let mut push = |bytes: &Bytes| {
        parser.push(bytes, |item| items.push(item));
        assert!(parser.partial().len() <= LINE_MAX);
    };
    push(&Bytes::from_static(b"{\"uuid\": \"u\", \"counter\": 7, \"stdout\": \""));
    let filling = Bytes::from(vec![b'x'; 1 << 20]);
    (0..40).for_each(|_| push(&filling));
    push(&Bytes::from_static(b"\", \"start_line\": 3, \"event\": \"verbose\"}\n{\"eof\": true}\n"));
    let [Item::Event(event), Item::Eof] = &items[..] else { panic!("{} items", items.len()) };
    assert!(event.cut.is_some_and(|length| length > 40 << 20));
    assert_eq!(
        (&*event.name(), &*event.uuid(), event.counter(), event.start_line()),
        ("", "u", Some(7), None)
    );
    let stdout = event.stdout_json();
    assert!(stdout.len() <= LINE_MAX && serde_json::from_slice::<String>(&stdout).is_ok());
}

#[test]
fn noise_is_kept_in_part_and_counted_in_full() {
    let mut items = Vec::new();
    let long = "x".repeat(10_000);
    let text = format!(
        "{long}\n\n \r\n[1]\n{{\"foo\": 1}}\n{{\"zipfile\": -1}}\n{{\"zipfile\": 99999999999999999999}}\n"
    );
    Parser::new().push(&Bytes::from(text), |item| items.push(item));
    let noise: Vec<_> = items
        .iter()
        .map(|item| match item {
            Item::Noise { line, length } => (line.len(), *length),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(noise, [(NOISE_MAX, 10_000), (3, 3), (10, 10), (15, 15), (33, 33)]);
}

#[test]
fn an_event_may_lack_nearly_everything() {
    let mut items = Vec::new();
    let text = "{\"uuid\": \"u\"}\n{\"counter\": 3, \"stdout\": \"x\"}\n{\"event\": \"keepalive\", \"counter\": 0, \"uuid\": 0}\n";
    Parser::new().push(&Bytes::from(text), |item| items.push(item));
    assert!(matches!(&items[..], [Item::Event(_), Item::Event(_), Item::Keepalive]), "{items:?}");
}

#[test]
fn artifacts_that_break_off_do_not_swallow_what_follows() {
    let mut items = Vec::new();
    let text = "{\"zipfile\": 3000}\nYWJj{\"eof\": true}\n";
    Parser::new().push(&Bytes::from(text), |item| items.push(item));
    let [Item::ArtifactsStart(3000), Item::Artifacts(bytes), Item::ArtifactsBroken, Item::Eof] = &items[..]
    else {
        panic!("{items:?}")
    };
    assert_eq!(&bytes[..], b"abc");
}

#[test]
fn after_eof_all_is_noise() {
    let mut items = Vec::new();
    Parser::new()
        .push(&Bytes::from("{\"eof\": true}\n{\"status\": \"successful\"}\n"), |item| items.push(item));
    assert!(matches!(&items[..], [Item::Eof, Item::Noise { .. }]), "{items:?}");
}

#[test]
fn a_last_line_without_its_line_feed_counts_when_it_is_whole() {
    let (mut parser, mut items) = (Parser::new(), Vec::new());
    parser.push(&Bytes::from("{\"status\": \"failed\"}"), |item| items.push(item));
    assert!(items.is_empty());
    parser.finish(|item| items.push(item));
    assert!(matches!(&items[..], [Item::Status(_)]));
}

proptest! {
    #[test]
    fn any_bytes_give_items(pieces in prop::collection::vec(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(b"{\"zipfile\": 5}\n".to_vec()), Just(b"YWJj".to_vec()), Just(b"\n".to_vec()),
        Just(b"{\"uuid\": \"a\", \"stdout\": \"\\ud800\", \"event_data\": {\"res\": {".to_vec()), Just(b"NaN}}}".to_vec()),
        Just(b"{\"status\": \"starting\", \"env\": {}}".to_vec()), Just(b"{\"counter\": 1e99}".to_vec()),
    ], 0..30)) {
        let mut parser = Parser::new();
        let total: usize = pieces.iter().map(Vec::len).sum();
        for piece in pieces {
            parser.push(&Bytes::from(piece), |item| { let _ = format!("{item:?}"); });
            prop_assert!(parser.partial().len() <= total);
            let restored = Parser::restore(parser.snapshot(), parser.partial().to_vec());
            prop_assert_eq!(restored.snapshot(), parser.snapshot());
        }
        parser.finish(|_| {});
    }
}

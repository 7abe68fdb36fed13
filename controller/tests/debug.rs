//! `plexus-controller debug` as people and scripts call it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn debug(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plexus-controller"));
    command.arg("debug").args(args).output().expect("the program starts")
}

fn streams() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/runner-streams")
}

#[test]
fn stream_prints_the_fields_of_the_index() {
    let index: Value = serde_json::from_slice(&std::fs::read(streams().join("index.json")).unwrap()).unwrap();
    let index = index.as_object().unwrap();
    assert!(index.len() >= 60);
    for (case, expected) in index {
        let file = streams().join(case).join("worker.bin");
        let output = debug(&["stream", file.to_str().unwrap(), "--json"]);
        assert!(output.status.success(), "{case}");
        let mut expected = expected.clone();
        // The container's, not the stream's.
        expected.as_object_mut().unwrap().remove("exit");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected, "{case}");
    }
}

#[test]
fn stream_says_which_file_it_cannot_read() {
    let output = debug(&["stream", "/no/such/file", "--json"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("cannot open /no/such/file"), "{message}");
}

#[test]
fn crash_points_are_listed_one_by_line() {
    let output = debug(&["crash-points"]);
    let names = String::from_utf8(output.stdout).unwrap();
    assert_eq!(names.lines().next(), Some("record-received"));
    assert_eq!(names.lines().last(), Some("ack-sent"));
}

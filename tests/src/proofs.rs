//! What unmodified clients were seen to do: a row for each resource, verb and client, kept for the page of compatibility.
//!
//! Tests append to a file below the target directory; `xtask docs --write` takes it into `tests/fixtures/compatibility.tsv`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    /// The `awx` command.
    Awx,
    /// The `awx.awx` collection.
    Collection,
    /// Plain requests, as people copy them from the documentation.
    Http,
}

impl Client {
    /// Its name in the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Awx => "awx",
            Self::Collection => "awx.awx",
            Self::Http => "http",
        }
    }
}

/// Where tests write what they have seen.
pub fn recorded() -> PathBuf {
    // Tests lie in `TARGET/PROFILE/deps`, programs one folder higher.
    let program = std::env::current_exe().expect("a program knows where it lies");
    let mut folders = program.ancestors().skip(1).skip_while(|dir| dir.ends_with("deps"));
    let target = folders.nth(1).expect("cargo puts programs into a folder of its target");
    target.join("proofs.tsv")
}

/// Says that `client` did `verb` on `resource`, as `proof` (a file of this repository) tells.
///
/// # Panics
/// If the file cannot be written.
pub fn seen(client: Client, resource: &str, verb: &str, proof: &str) {
    let row = format!("{resource}\t{verb}\t{}\t{proof}\n", client.name());
    // One short write at the end of the file: rows of tests that run side by side do not mix.
    let mut file =
        OpenOptions::new().create(true).append(true).open(recorded()).expect("the file of proofs opens");
    file.write_all(row.as_bytes()).expect("a proof is written");
}

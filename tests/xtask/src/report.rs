//! `xtask test-report`: how many tests ran, and the name of each one that was skipped.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use plexus_tests::plain;

/// What to read.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Output of the test run.
    log: PathBuf,
}

/// Prints the report.
///
/// # Errors
/// When the log cannot be read.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let text = fs::read(&options.log).with_context(|| format!("cannot read {}", options.log.display()))?;
    let report = Report::read(&plain(&String::from_utf8_lossy(&text)));
    println!("tests: {} passed, {} failed, {} skipped", report.passed, report.failed, report.skipped.len());
    for name in &report.skipped {
        println!("  skipped: {name}");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Default, PartialEq)]
struct Report {
    passed: u64,
    failed: u64,
    skipped: BTreeSet<String>,
}

impl Report {
    /// Reads the output of `cargo test` and of `cargo nextest run`.
    fn read(text: &str) -> Self {
        let mut report = Self::default();
        for line in text.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("test ").and_then(ignored) {
                report.skipped.insert(name.to_owned());
            } else if let Some(counts) = line.strip_prefix("test result: ") {
                report.passed += count(counts, "passed");
                report.failed += count(counts, "failed");
            } else if let Some(name) = line.strip_prefix("SKIP ") {
                report.skipped.insert(name.rsplit(']').next().unwrap_or(name).trim().to_owned());
            } else if line.starts_with("Summary [") {
                report.passed += count(line, "passed");
                report.failed += count(line, "failed");
            }
        }
        report
    }
}

/// Name of the test in `NAME ... ignored` or `NAME ... ignored, REASON`.
fn ignored(rest: &str) -> Option<&str> {
    let (name, result) = rest.split_once(" ... ")?;
    result.starts_with("ignored").then_some(name)
}

/// The number before a word.
fn count(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ',', ';', ':']).filter(|text| !text.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_add_up_and_skipped_tests_are_named() {
        let report = Report::read(
            "test one ... ok\ntest two ... ignored\ntest three ... ignored, needs a moon\n\
             test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        let skipped = ["three", "two"].map(str::to_owned).into();
        assert_eq!(report, Report { passed: 6, failed: 2, skipped });
    }

    #[test]
    fn summary_of_nextest_is_read() {
        let report = Report::read(
            "  SKIP [         ] plexus-tests::verify long_one\n Summary [ 1.2s] 9 tests run: 8 passed, 1 failed, 1 skipped",
        );
        assert_eq!(
            report,
            Report { passed: 8, failed: 1, skipped: ["plexus-tests::verify long_one".to_owned()].into() }
        );
    }
}

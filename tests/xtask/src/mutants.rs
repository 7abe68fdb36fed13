//! The product without its safety lines: each mutant takes one line's meaning away, and the tests named beside it must fail.
//!
//! Works on the last commit, in a worktree and a target folder of its own below `target/mutants`, so that neither the source
//! nor the programs of the build are touched. The tests must pass before anything is changed; a mutant that does not compile,
//! or whose text is not found exactly once, is an error of the list and not a success.

mod list;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process_group};

use self::list::{MUTANTS, Mutant, Tests};
use crate::repository;

/// Longest run of the tests of one mutant. One that makes a test wait for ever is caught too.
const LIMIT: Duration = Duration::from_secs(120);
/// Built together, so that every mutant finds its dependencies with the same features.
const PACKAGES: [&str; 4] = ["plexus-proto", "plexus-mesh", "plexus-node", "plexus-controller"];

/// Arguments of `mutants`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only mutants whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Print the list and run nothing.
    #[arg(long)]
    list: bool,
}

/// What became of a mutant.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// A test failed.
    Caught,
    /// A test waited for ever.
    Hung,
    /// All tests passed: nothing guards this line.
    Survived,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let chosen: Vec<&Mutant> = MUTANTS.iter().filter(|mutant| mutant.name.contains(&options.only)).collect();
    ensure!(!chosen.is_empty(), "no mutant is called {}", options.only);
    if options.list {
        chosen.iter().for_each(|mutant| println!("{:32} {}", mutant.name, mutant.file));
        return Ok(ExitCode::SUCCESS);
    }
    let place = Place::make()?;
    for tests in chosen.iter().map(|mutant| mutant.tests).collect::<BTreeSet<_>>() {
        println!("unchanged: {tests}");
        ensure!(place.test(tests)? == Fate::Survived, "{tests} fails without any change");
    }
    let mut survivors = Vec::new();
    println!("\n{:32} {:10} tests", "without", "");
    for mutant in chosen {
        let fate = place.try_out(mutant).with_context(|| format!("mutant {}", mutant.name))?;
        let word = match fate {
            Fate::Caught => "caught",
            Fate::Hung => "hangs",
            Fate::Survived => "SURVIVES",
        };
        println!("{:32} {word:10} {}", mutant.name, mutant.tests);
        if fate == Fate::Survived {
            survivors.push(mutant.name);
        }
    }
    if survivors.is_empty() {
        println!("\nevery safety line is guarded");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nnothing guards: {}", survivors.join(", "));
    Ok(ExitCode::FAILURE)
}

/// A worktree at the last commit, and where it is built. The worktree goes with it, what was built stays.
struct Place {
    tree: PathBuf,
    target: PathBuf,
}

impl Place {
    fn make() -> anyhow::Result<Self> {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
        let dir = target.join("mutants");
        let place = Self { tree: dir.join("tree"), target: dir.join("build") };
        place.remove();
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let tree = place.tree.to_str().context("the target folder's name is no text")?;
        git(&["worktree", "add", "--detach", "--force", tree, "HEAD"])?;
        Ok(place)
    }

    fn remove(&self) {
        fs::remove_dir_all(&self.tree).ok();
        git(&["worktree", "prune"]).ok();
    }

    /// Changes the line, runs the tests, and puts the line back.
    fn try_out(&self, mutant: &Mutant) -> anyhow::Result<Fate> {
        let path = self.tree.join(mutant.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", mutant.file))?;
        fs::write(&path, mutate(&text, mutant)?)?;
        let fate = self.build(mutant.tests).and_then(|()| self.run(mutant.tests));
        fs::write(&path, text)?;
        fate
    }

    fn test(&self, tests: Tests) -> anyhow::Result<Fate> {
        self.build(tests)?;
        self.run(tests)
    }

    fn build(&self, tests: Tests) -> anyhow::Result<()> {
        let output = self.cargo(tests).arg("--no-run").output().context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "it does not compile:\n{said}");
        Ok(())
    }

    fn run(&self, tests: Tests) -> anyhow::Result<Fate> {
        let mut child = self
            .cargo(tests)
            .args(["--", tests.filter])
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run cargo")?;
        let group = Pid::from_child(&child);
        let mut stdout = child.stdout.take().context("cargo has no output")?;
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            stdout.read_to_string(&mut said).map(|_| said)
        });
        let give_up = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= give_up {
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        // Whatever a failed test left running holds the output open, too.
        kill_process_group(group, Signal::KILL).ok();
        child.wait()?;
        let Some(status) = status else { return Ok(Fate::Hung) };
        let said = said.join().map_err(|_| anyhow::anyhow!("the reader of the output panicked"))??;
        if status.success() {
            ensure!(passed(&said) > 0, "{tests} runs no test");
            return Ok(Fate::Survived);
        }
        // A process that was killed prints no result.
        ensure!(said.contains("running "), "{tests} could not be run");
        Ok(Fate::Caught)
    }

    fn cargo(&self, tests: Tests) -> Command {
        let mut cargo = Command::new("cargo");
        cargo
            .args(["test", "--features", "plexus-controller/crash-points"])
            .args(PACKAGES.iter().flat_map(|package| ["-p", package]));
        match tests.file {
            None => cargo.arg("--lib"),
            Some(file) => cargo.args(["--test", file]),
        };
        cargo.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        // What is synced can only be told on a disk, and /tmp may be memory.
        cargo.env("TMPDIR", &self.target);
        cargo
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The text without the safety line. Refused unless it is there exactly once: a list that lags behind the source proves nothing.
fn mutate(text: &str, mutant: &Mutant) -> anyhow::Result<String> {
    match text.matches(mutant.old).count() {
        1 => Ok(text.replace(mutant.old, mutant.new)),
        count => bail!("{} holds its text {count} times", mutant.file),
    }
}

/// Tests that passed, by the lines `test result: ok. N passed; …`.
fn passed(said: &str) -> u64 {
    let results = said.lines().filter_map(|line| line.strip_prefix("test result: ok. "));
    results.filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn git(args: &[&str]) -> anyhow::Result<()> {
    let output =
        Command::new("git").args(args).current_dir(repository()).output().context("cannot run git")?;
    ensure!(
        output.status.success(),
        "git {} failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Where the source has `path` now.
#[cfg(test)]
fn source(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mutant_finds_its_line_in_the_source_of_today() {
        for mutant in MUTANTS {
            let changed = mutate(&source(mutant.file), mutant);
            let changed = changed.unwrap_or_else(|error| panic!("{}: {error}", mutant.name));
            assert_ne!(changed, source(mutant.file), "{} changes nothing", mutant.name);
        }
        let names: BTreeSet<_> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        assert_eq!(names.len(), MUTANTS.len());
    }

    #[test]
    fn only_results_count_as_tests_that_passed() {
        let said = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\ntest result: ok. 0 passed; 0 failed";
        assert_eq!(passed(said), 2);
        assert_eq!(passed("test result: FAILED. 1 passed; 1 failed"), 0);
    }
}

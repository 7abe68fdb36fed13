//! `plexus doctor`: what this machine needs for a daemon, and what to do where it is missing.
//!
//! Looks, and changes nothing. A check says what it found, how grave that is, and what to do.

mod machine;

use std::path::{Path, PathBuf};

use plexus_mesh::status::{SCHEMA_VERSION, Status};
use serde::Serialize;

use crate::args::Doctor;
use crate::door::{self, Answer};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, count};
use crate::settings::Settings;

/// Where configurations are looked for.
const CONFIGS: [&str; 3] = ["/etc/plexus/controller.toml", "/etc/plexus/node.toml", "/etc/plexus/hop.toml"];

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Could not be looked at, or does not matter here.
    Skipped,
    Warning,
    Failed,
}

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    text: String,
    /// What to do; empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Ok, text: text.into(), advice: String::new() }
    }

    fn skipped(check: &'static str, text: impl Into<String>) -> Self {
        Self { check, state: State::Skipped, text: text.into(), advice: String::new() }
    }

    fn warning(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Warning, text: text.into(), advice: advice.into() }
    }

    fn failed(check: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, state: State::Failed, text: text.into(), advice: advice.into() }
    }
}

/// What a configuration says, as far as a doctor asks; defaults where it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setup {
    file: PathBuf,
    controller: bool,
    socket: PathBuf,
    identity_dir: PathBuf,
    data_dir: PathBuf,
    /// Of a node: must be on tmpfs.
    runtime_dir: Option<PathBuf>,
    listen: Vec<String>,
    /// Of a node: `podman`, `docker` or `process`, if it runs units.
    runtime: Option<String>,
    allow_swap: bool,
}

impl Setup {
    /// Reads a file; whether it is right in every key is the daemon's own check.
    fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
        let controller = ["http", "projects", "execution"].iter().any(|section| table.contains_key(*section))
            || file.file_stem().is_some_and(|stem| stem == "controller");
        let path = |key: &str, node: &str, of_controller: &str| {
            let default = if controller { of_controller } else { node };
            PathBuf::from(table.get(key).and_then(toml::Value::as_str).unwrap_or(default))
        };
        let listen = table.get("mesh").and_then(|mesh| mesh.get("listen")).and_then(toml::Value::as_array);
        let listen = listen.into_iter().flatten().filter_map(|address| address.as_str().map(str::to_owned));
        let work = table.get("work");
        let runtime =
            work.and_then(|work| work.get("runtime")).and_then(toml::Value::as_str).unwrap_or("podman");
        Ok(Self {
            file: file.to_owned(),
            controller,
            socket: path("socket", "/run/plexus/node.sock", "/run/plexus/controller.sock"),
            identity_dir: path("identity_dir", "/etc/plexus/node", "/etc/plexus/controller"),
            data_dir: path("data_dir", "/var/lib/plexus/node", "/var/lib/plexus/controller"),
            runtime_dir: (!controller).then(|| path("runtime_dir", "/run/plexus/node", "")),
            listen: listen.collect(),
            runtime: (!controller).then(|| runtime.to_owned()),
            allow_swap: work
                .and_then(|work| work.get("allow_swap"))
                .and_then(toml::Value::as_bool)
                .unwrap_or(false),
        })
    }
}

/// What was found about one daemon.
#[derive(Debug, Serialize)]
struct Checkup {
    config: PathBuf,
    findings: Vec<Finding>,
}

pub(crate) async fn run(settings: &Settings, doctor: Doctor, output: &mut Output) -> Result<Exit, Failure> {
    let given = !doctor.config.is_empty();
    let known = CONFIGS.iter().map(PathBuf::from).filter(|file| file.exists());
    let files: Vec<PathBuf> = if given { doctor.config } else { known.collect() };
    if files.is_empty() {
        return Err(Failure::new(Exit::NotFound, format!("there is no {}", CONFIGS.join(", no ")))
            .hint("write one as deploy/config/*.example.toml shows, or name it with --config"));
    }
    let mut checkups = Vec::new();
    for file in files {
        let findings = match Setup::read(&file) {
            Ok(setup) => examine(settings, &setup).await,
            Err(text) => {
                vec![Finding::failed("configuration", format!("{} {text}", file.display()), "mend the file")]
            }
        };
        checkups.push(Checkup { config: file, findings });
    }
    let document = serde_json::json!({"schema_version": SCHEMA_VERSION, "checkups": checkups});
    let text: String = checkups.iter().map(|checkup| render(checkup, output.paint)).collect();
    output.show(&Answer(document.to_string()), Shape { items: Some("checkups"), name: "config" }, &text)?;
    let worst = checkups.iter().flat_map(|checkup| &checkup.findings).map(|finding| finding.state).max();
    Ok(match worst {
        Some(State::Failed) => Exit::Failed,
        Some(State::Warning) => Exit::Degraded,
        _ => Exit::Ok,
    })
}

async fn examine(settings: &Settings, setup: &Setup) -> Vec<Finding> {
    let asked = match settings {
        Settings::Socket(_) => settings.clone(),
        _ => Settings::Socket(setup.socket.clone()),
    };
    let status = match door::open(&asked).await {
        Ok(mut door) => door.status().await.and_then(|answer| answer.parse::<Status>()),
        Err(failure) => Err(failure),
    };
    let mut findings = vec![machine::configuration(setup)];
    findings.push(match &status {
        Ok(status) if status.problems.is_empty() => {
            Finding::ok("daemon", format!("{} runs and is well", status.node))
        }
        Ok(status) => {
            let text = format!("{} runs, with {}", status.node, count(status.problems.len(), "problem"));
            Finding::warning("daemon", text, "plexus status says what to do about each")
        }
        Err(failure) => Finding::warning(
            "daemon",
            format!("does not answer: {}", failure.text),
            failure.hint.clone().unwrap_or_default(),
        ),
    });
    let status = status.ok();
    findings.push(machine::certificate(&setup.identity_dir));
    findings.push(machine::clock(status.as_ref()));
    findings.extend(machine::ports(&setup.listen, status.as_ref()));
    findings.push(machine::socket(&setup.socket));
    findings.push(machine::disk(&setup.data_dir));
    if let Some(runtime_dir) = &setup.runtime_dir {
        findings.push(machine::tmpfs(runtime_dir));
        findings.push(machine::swap(setup.allow_swap));
    }
    let hop = status.as_ref().is_some_and(|status| status.role == plexus_proto::id::Role::Hop);
    match &setup.runtime {
        Some(_) if hop => findings.push(Finding::skipped("containers", "a hop runs no units")),
        Some(runtime) => findings.push(machine::containers(runtime)),
        None => {}
    }
    findings
}

fn render(checkup: &Checkup, paint: Paint) -> String {
    let mut table = Table::new(&["CHECK", "STATE", "WHAT"]);
    let mut advice = String::new();
    for finding in &checkup.findings {
        let state = match finding.state {
            State::Ok => Cell::new(Color::Green, "ok"),
            State::Skipped => "skipped".into(),
            State::Warning => Cell::new(Color::Yellow, "warning"),
            State::Failed => Cell::new(Color::Red, "failed"),
        };
        table.row(vec![finding.check.into(), state, finding.text.as_str().into()]);
        if !finding.advice.is_empty() {
            advice += &format!("  {}: {}\n", finding.check, finding.advice);
        }
    }
    let title = if advice.is_empty() { "" } else { "\nWHAT TO DO\n" };
    format!(
        "{}\n{}{title}{advice}\n",
        paint.on(Color::Bold, &checkup.config.display().to_string()),
        table.render(paint)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_say_what_to_do() {
        let checkup = Checkup {
            config: "/etc/plexus/node.toml".into(),
            findings: vec![
                Finding::ok("disk", "40 GB free"),
                Finding::skipped("containers", "a hop runs no units"),
                Finding::failed("tmpfs", "/run/x is on ext4", "mount tmpfs there"),
            ],
        };
        let expected = "\
/etc/plexus/node.toml
CHECK       STATE    WHAT
disk        ok       40 GB free
containers  skipped  a hop runs no units
tmpfs       failed   /run/x is on ext4

WHAT TO DO
  tmpfs: mount tmpfs there

";
        assert_eq!(render(&checkup, Paint(false)), expected);
    }

    #[test]
    fn configurations_are_read_with_their_defaults() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/config");
        let node = Setup::read(&dir.join("node.example.toml")).unwrap();
        assert!(!node.controller && node.runtime.is_some() && node.runtime_dir.is_some());
        let controller = Setup::read(&dir.join("controller.example.toml")).unwrap();
        assert!(controller.controller && controller.runtime.is_none());
        assert!(Setup::read(Path::new("/nonexistent")).unwrap_err().starts_with("cannot be read: "));
    }
}

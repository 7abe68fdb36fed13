//! Which runtime a node uses, and what is missing for the others.

use std::path::Path;

use serde::Serialize;

use super::engine::Engine;
use super::{Container, Kind, Place, Process, Runtime};
use crate::config::{RuntimeName, WorkSection};

/// What became of trying a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// Its name.
    pub runtime: &'static str,
    /// Version of the engine; empty for plain processes.
    pub version: String,
    /// What is missing; empty: it works.
    pub missing: String,
}

/// Tries the runtimes that the configuration allows, in the order of choice. Blocks: engines are called.
pub fn try_all(work: &WorkSection) -> Vec<Tried> {
    let kinds = match work.runtime {
        RuntimeName::Auto => vec![Kind::Podman, Kind::Docker, Kind::Process],
        RuntimeName::Podman => vec![Kind::Podman],
        RuntimeName::Docker => vec![Kind::Docker],
        RuntimeName::Process => vec![Kind::Process],
    };
    kinds.into_iter().map(|kind| try_one(work, kind)).collect()
}

/// The first that works. Where none does, the first: its units then say what is missing.
pub fn choose(work: &WorkSection) -> Kind {
    match work.runtime {
        RuntimeName::Podman => Kind::Podman,
        RuntimeName::Docker => Kind::Docker,
        RuntimeName::Process => Kind::Process,
        RuntimeName::Auto => {
            let tried = try_all(work);
            let works = tried.iter().find(|tried| tried.missing.is_empty());
            works.and_then(|tried| Kind::parse(tried.runtime)).unwrap_or(Kind::Podman)
        }
    }
}

/// The engine of a kind; none for plain processes.
pub fn engine(work: &WorkSection, kind: Kind) -> Option<Engine> {
    let (section, client) = match kind {
        Kind::Podman => (&work.podman, "podman"),
        Kind::Docker => (&work.docker, "docker"),
        Kind::Process => return None,
    };
    let command = if section.command.is_empty() { vec![client.to_owned()] } else { section.command.clone() };
    Some(Engine { kind, command })
}

/// The runtime of a kind.
pub fn runtime(work: &WorkSection, kind: Kind, place: Place) -> Box<dyn Runtime> {
    match (engine(work, kind), kind) {
        (Some(engine), Kind::Docker) => Box::new(Container::new(engine, work.docker.clone(), place)),
        (Some(engine), _) => Box::new(Container::new(engine, work.podman.clone(), place)),
        (None, _) => Box::new(Process::new(work.process.command.clone())),
    }
}

fn try_one(work: &WorkSection, kind: Kind) -> Tried {
    let result = match engine(work, kind) {
        Some(engine) => engine.version().map_err(|error| match error {
            super::Error::Helper { command, reason } => format!("`{command}`: {reason}"),
            other => other.to_string(),
        }),
        None => {
            let program = work.process.command.first().map(String::as_str).unwrap_or_default();
            if is_program(program) { Ok(String::new()) } else { Err(format!("{program} is not installed")) }
        }
    };
    let (version, missing) = match result {
        Ok(version) => (version, String::new()),
        Err(missing) => (String::new(), missing),
    };
    Tried { runtime: kind.as_str(), version, missing }
}

/// Whether a program can be found as a shell would.
fn is_program(name: &str) -> bool {
    if name.contains('/') {
        return Path::new(name).is_file();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').any(|folder| Path::new(folder).join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(runtime: RuntimeName) -> WorkSection {
        let mut work = WorkSection { runtime, ..WorkSection::default() };
        work.podman.command = vec!["/nowhere/podman".to_owned()];
        work.docker.command = vec!["/nowhere/docker".to_owned()];
        work.process.command = vec!["sh".to_owned()];
        work
    }

    #[test]
    fn the_first_that_works_is_chosen_and_what_is_missing_is_said() {
        let work = section(RuntimeName::Auto);
        assert_eq!(choose(&work), Kind::Process);
        let tried = try_all(&work);
        let names: Vec<_> = tried.iter().map(|tried| (tried.runtime, tried.missing.is_empty())).collect();
        assert_eq!(names, [("podman", false), ("docker", false), ("process", true)]);
        assert!(tried[0].missing.contains("/nowhere/podman version"), "{}", tried[0].missing);
        let work = section(RuntimeName::Docker);
        assert_eq!(choose(&work), Kind::Docker, "a choice of people is kept");
        assert_eq!(try_all(&work).len(), 1);
    }
}

//! Runtime `podman`: a container per unit, through the command line client as a child of the shim.
//!
//! The client passes the worker's pipes and signals; `conmon` and the container's processes, orphans of the
//! client, come to the shim as subreaper. Output is never logged by the engine (it would lie on disk in clear),
//! and secret environment never passes through it (it would be stored in the engine's database): a line of
//! shell in the container reads it from tmpfs instead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command as Program, Output, Stdio};

use plexus_proto::id::Attempt;
use plexus_proto::work::{PullPolicy, UnitSpec};

use super::{Command, Error, Job, Kind, Place, Runtime, base_env, is_env_name, last_line, text};
use crate::tree::working;
use crate::unit_dir;

/// Secret environment inside the private directory, as the container sees it.
const ENV_FILE: &str = "/runner/.plexus-env";
/// Reads the file, removes it, becomes the worker.
const ENV_SCRIPT: &str = "set -a && . \"$1\" && set +a && rm -f \"$1\" && shift && exec \"$@\"";
/// What runs in the container.
const WORKER: [&str; 3] = ["ansible-runner", "worker", "--private-data-dir=/runner"];
/// What a worker finds in its environment unless the unit says otherwise.
const WORKER_ENV: [(&str, &str); 3] = [("HOME", "/root"), ("LANG", "C.UTF-8"), ("TZ", "UTC")];

/// Runs units in containers.
#[derive(Debug, Clone)]
pub struct Podman {
    command: Vec<String>,
    network: Option<String>,
    place: Place,
}

impl Podman {
    /// `command` is the client, perhaps behind `sudo -n`; `network` goes to `--network`.
    pub fn new(command: Vec<String>, network: Option<String>, place: Place) -> Self {
        Self { command, network, place }
    }

    /// Runs the client and waits.
    fn call(&self, args: &[&str]) -> Result<String, Error> {
        let words: Vec<&str> = self.command.iter().map(String::as_str).chain(args.iter().copied()).collect();
        output(&words)
    }

    fn argv(&self, job: &Job<'_>) -> Result<Vec<String>, Error> {
        let UnitSpec { image, label, env, .. } = job.spec;
        if image.is_empty() {
            return Err(Error::NoImage);
        }
        let mut argv = self.command.clone();
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|&word| word.to_owned()));
        let (name, cidfile) = (container(job.attempt), text(&job.runtime_dir.join("cid"))?);
        add(&["run", "--rm", "-i", "--log-driver", "none", "--name", &name, "--cidfile", &cidfile]);
        let labels = [
            ("node", self.place.node.to_string()),
            ("store", self.place.store.to_string()),
            ("unit", job.attempt.unit.to_string()),
            ("attempt", job.attempt.number.to_string()),
            ("label", label.clone()),
        ];
        for (key, value) in labels {
            add(&["--label", &format!("plexus.{key}={value}")]);
        }
        match job.spec.pull() {
            PullPolicy::Unspecified => {}
            PullPolicy::Always => add(&["--pull=always"]),
            PullPolicy::Missing => add(&["--pull=missing"]),
            PullPolicy::Never => add(&["--pull=never"]),
        }
        if let Some(network) = &self.network {
            add(&["--network", network]);
        }
        add(&["-v", &format!("{}:/runner", text(job.private)?)]);
        if let Some(project) = job.project {
            add(&["-v", &format!("{}:/runner/project", text(project)?)]);
        }
        add(&["--workdir", "/runner/project"]);
        let defaults = WORKER_ENV.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut all: BTreeMap<String, String> = defaults.into();
        all.extend(env.clone());
        for (key, value) in &all {
            if !is_env_name(key) {
                return Err(Error::EnvName(key.clone()));
            }
            add(&["-e", &format!("{key}={value}")]);
        }
        // Not an option, whatever the image is called.
        add(&["--", image]);
        if !job.secret_env.is_empty() {
            add(&["sh", "-c", ENV_SCRIPT, "sh", ENV_FILE]);
        }
        add(&WORKER);
        Ok(argv)
    }

    /// Containers of this store: name, unit and attempt.
    fn containers(&self) -> Result<Vec<(String, Option<Attempt>)>, Error> {
        let filter = format!("label=plexus.store={}", self.place.store);
        let format = "{{.ID}} {{index .Labels \"plexus.unit\"}}.{{index .Labels \"plexus.attempt\"}}";
        let listing = self.call(&["ps", "--all", "--no-trunc", "--filter", &filter, "--format", format])?;
        let parse = |line: &str| {
            let (id, attempt) = line.split_once(' ')?;
            Some((id.to_owned(), unit_dir::parse_name(attempt.trim())))
        };
        Ok(listing.lines().filter_map(parse).collect())
    }

    fn remove(&self, containers: &[String]) -> Result<(), Error> {
        if containers.is_empty() {
            return Ok(());
        }
        let mut args = vec!["rm", "--force", "--time", "0", "--ignore"];
        args.extend(containers.iter().map(String::as_str));
        self.call(&args).map(drop)
    }
}

impl Runtime for Podman {
    fn kind(&self) -> Kind {
        Kind::Podman
    }

    fn command(&self, job: &Job<'_>) -> Result<Command, Error> {
        let argv = self.argv(job)?;
        let mount_point = job.private.join("project");
        if !mount_point.exists() {
            fs::create_dir(&mount_point).map_err(|source| Error::Disk { path: mount_point, source })?;
        }
        if !job.secret_env.is_empty() {
            let path = job.private.join(".plexus-env");
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .and_then(|mut file| {
                    std::io::Write::write_all(&mut file, shell_assignments(job.secret_env).as_bytes())
                })
                .map_err(|source| Error::Disk { path, source })?;
        }
        let end = ["rm", "--force", "--time", "0", "--ignore", &container(job.attempt)].map(str::to_owned);
        Ok(Command {
            argv,
            env: client_env(),
            cwd: job.runtime_dir.to_owned(),
            end_argv: self.command.iter().cloned().chain(end).collect(),
        })
    }

    fn end(&self, attempt: Attempt, _runtime_dir: &Path) -> Result<(), Error> {
        self.remove(&[container(attempt)])?;
        // A client that was still pulling the image has no container yet; it carries the marker.
        super::process::Process::new(Vec::new()).end(attempt, Path::new("/nonexistent"))
    }

    fn reap(&self, is_stale: &dyn Fn(Attempt) -> bool) -> Result<usize, Error> {
        let stale: Vec<String> = self
            .containers()?
            .into_iter()
            .filter(|(_, attempt)| attempt.is_none_or(is_stale))
            .map(|(id, _)| id)
            .collect();
        self.remove(&stale)?;
        Ok(stale.len())
    }

    fn remove_tree(&self, dir: &Path) -> Result<(), Error> {
        working::close(dir);
        let Err(first) = unit_dir::remove_tree(dir) else { return Ok(()) };
        // Another user, the container's, owns something below. What starts the client can remove it too: sudo,
        // or, without one, the client's own user namespace.
        let path = text(dir)?;
        let (client, prefix) = self.command.split_last().expect("configuration has a command");
        let mut words: Vec<&str> = prefix.iter().map(String::as_str).collect();
        if prefix.is_empty() {
            words.extend([client, "unshare"]);
        }
        words.extend(["rm", "-rf", "--", &path]);
        output(&words).map(drop).map_err(|_| Error::Helper {
            command: format!("removing {}", dir.display()),
            reason: first.to_string(),
        })
    }

    fn version(&self) -> String {
        self.call(&["version", "--format", "{{.Client.Version}}"])
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    }
}

/// Name of an attempt's container.
fn container(attempt: Attempt) -> String {
    format!("plexus-{}-{}", attempt.unit, attempt.number)
}

/// The client's own environment: what finds its programs, storage and configuration.
fn client_env() -> BTreeMap<String, String> {
    let mut env = base_env();
    let kept =
        ["HOME", "XDG_RUNTIME_DIR", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "REGISTRY_AUTH_FILE"];
    for (name, value) in std::env::vars() {
        if kept.contains(&name.as_str())
            || name.ends_with("_proxy")
            || name.ends_with("_PROXY")
            || name == "PATH"
        {
            env.insert(name, value);
        }
    }
    env
}

fn output(words: &[&str]) -> Result<String, Error> {
    let Some((program, args)) = words.split_first() else { return Ok(String::new()) };
    let failed = |reason: String| Error::Helper { command: words.join(" "), reason };
    let Output { status, stdout, stderr } = Program::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        return Err(failed(last_line(&said).map_or_else(|| status.to_string(), str::to_owned)));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Assignments that a POSIX shell reads back as they were, line feeds and quotes included.
fn shell_assignments(env: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in env.iter().filter(|(name, _)| is_env_name(name)) {
        writeln!(text, "{name}='{}'", value.replace('\'', "'\\''")).expect("a string grows");
    }
    text
}

/// What an exit code of `podman run` means: 125 is the engine's own failure, 126 and 127 a command that cannot
/// run; all else is the worker's.
pub(super) fn explain(code: i32, stderr: &str, image: &str, pull: PullPolicy) -> Option<String> {
    match code {
        125 => Some(explain_engine(stderr, image, pull)),
        126 => Some(format!(
            "ansible-runner in image {image} is not executable; the image is no execution environment"
        )),
        127 => Some(format!("ansible-runner is not in image {image}; the image is no execution environment")),
        _ => None,
    }
}

/// Decides on the engine's words, because its one exit code never tells why. Text seen with podman 4.3; unknown
/// text is passed on.
fn explain_engine(stderr: &str, image: &str, pull: PullPolicy) -> String {
    let has = |word: &str| stderr.contains(word);
    if has("invalid reference format") || has("repository name must be") {
        return format!("{image:?} is no valid image name");
    }
    if has("image not known") || has("no such image") {
        return if pull == PullPolicy::Never {
            format!(
                "image {image} is not on this node and its pull policy is never; pull it there, or choose another pull policy"
            )
        } else {
            format!("image {image} is not on this node")
        };
    }
    if has("unauthorized") || has("authentication required") || has("invalid username/password") {
        return format!("the registry of image {image} refuses access: credentials are missing or wrong");
    }
    if has("manifest unknown") || has("name unknown") || has("not found: manifest") {
        return format!("image {image} does not exist in its registry");
    }
    if has("connection refused") || has("no such host") || has("i/o timeout") || has("network is unreachable")
    {
        return format!("the registry of image {image} cannot be reached: {}", quote(stderr));
    }
    if has("no space left on device") {
        return format!("the node's disk is full: {}", quote(stderr));
    }
    format!("podman could not run image {image}: {}", quote(stderr))
}

/// The engine's last word, without its "Error:".
fn quote(stderr: &str) -> String {
    let line = last_line(stderr).unwrap_or("it gave no reason");
    line.trim_start_matches("Error: ").chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::id::StoreId;
    use std::path::PathBuf;

    fn podman() -> Podman {
        let place = Place { node: "node-1".parse().unwrap(), store: StoreId(uuid::Uuid::from_u128(9)) };
        Podman::new(vec!["sudo".to_owned(), "podman".to_owned()], Some("host".to_owned()), place)
    }

    fn command(
        spec: &UnitSpec,
        secret_env: &BTreeMap<String, String>,
        private: &Path,
    ) -> Result<Command, Error> {
        let attempt = unit_dir::parse_name("01890a5d-ac96-774b-bcce-b302099a8057.2").unwrap();
        let project = PathBuf::from("/data/project");
        podman().command(&Job {
            attempt,
            spec,
            private,
            project: Some(&project),
            runtime_dir: Path::new("/run/u"),
            secret_env,
        })
    }

    #[test]
    fn the_command_line_names_labels_and_mounts() {
        let dir = tempfile::tempdir().unwrap();
        let spec = UnitSpec {
            label: "job 12".to_owned(),
            image: "localhost/ee:1".to_owned(),
            pull: PullPolicy::Never.into(),
            env: [("JOB_ID".to_owned(), "12".to_owned())].into(),
            ..UnitSpec::default()
        };
        let command = command(&spec, &BTreeMap::new(), dir.path()).unwrap();
        let line = command.argv.join(" ");
        let private = dir.path().display();
        for part in [
            "sudo podman run --rm -i --log-driver none --name plexus-01890a5d-ac96-774b-bcce-b302099a8057-2 --cidfile /run/u/cid",
            "--label plexus.node=node-1",
            "--label plexus.attempt=2",
            "--label plexus.label=job 12",
            "--pull=never --network host",
            &format!("-v {private}:/runner -v /data/project:/runner/project --workdir /runner/project"),
            "-e JOB_ID=12",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(
            line.ends_with("-- localhost/ee:1 ansible-runner worker --private-data-dir=/runner"),
            "{line}"
        );
        assert_eq!(
            command.end_argv.join(" "),
            "sudo podman rm --force --time 0 --ignore plexus-01890a5d-ac96-774b-bcce-b302099a8057-2"
        );
    }

    #[test]
    fn secret_environment_reaches_a_shell_by_file_and_no_argument() {
        let dir = tempfile::tempdir().unwrap();
        let spec = UnitSpec { image: "x".to_owned(), ..UnitSpec::default() };
        let canary = "it's a \"canary\"\nwith $lines `x`";
        let command = command(&spec, &[("SECRET".to_owned(), canary.to_owned())].into(), dir.path()).unwrap();
        assert!(!command.argv.iter().chain(command.env.values()).any(|word| word.contains("canary")));
        let file = dir.path().join(".plexus-env");
        let shown = Program::new("sh")
            .args(["-c", ENV_SCRIPT, "sh"])
            .arg(&file)
            .args(["printenv", "SECRET"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(shown.stdout).unwrap(), format!("{canary}\n"));
        assert!(!file.exists(), "the worker must not find it");
    }

    #[test]
    fn failures_of_the_engine_are_told_in_its_owners_terms() {
        let check = |code, stderr: &str, pull, words: &[&str]| {
            let text = explain(code, stderr, "reg/ee:1", pull).unwrap();
            for word in words {
                assert!(text.contains(word), "{word:?} in {text:?}");
            }
        };
        let never = PullPolicy::Never;
        check(
            125,
            "Error: reg/ee:1: image not known\n",
            never,
            &["image reg/ee:1 is not on this node and its pull policy is never"],
        );
        check(
            125,
            "Error: parsing reference \"A B\": invalid reference format",
            never,
            &["no valid image name"],
        );
        let missing = PullPolicy::Missing;
        check(
            125,
            "Trying to pull...\nError: ... unauthorized: authentication required",
            missing,
            &["refuses access"],
        );
        check(125, "Error: reading manifest 1 in reg/ee: manifest unknown", missing, &["does not exist"]);
        check(
            125,
            "Error: dial tcp 127.0.0.1:5000: connect: connection refused",
            missing,
            &["cannot be reached", "dial tcp"],
        );
        check(125, "Error: something new\n", missing, &["podman could not run", "something new"]);
        check(127, "", missing, &["ansible-runner is not in image"]);
        assert_eq!(explain(2, "", "x", never), None);
    }
}

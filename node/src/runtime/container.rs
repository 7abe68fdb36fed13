//! Runtimes `podman` and `docker`: a container per unit, through the command line client as a child of the shim.
//!
//! The client passes the worker's pipes and signals. Podman's `conmon` and the container's processes, orphans of the
//! client, come to the shim as subreaper; docker's belong to its daemon, and end by their label. Output is never logged
//! by the engine (it would lie on disk in clear), and secret environment never passes through it (it would be stored in
//! the engine's database): a line of shell in the container reads it from tmpfs instead.
//!
//! The image is on the node before the client is called ([`images`](super::images)); the client never pulls.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;

use plexus_proto::id::Attempt;
use plexus_proto::work::UnitSpec;

use super::engine::Engine;
use super::{Command, Error, Holder, Job, Kind, Place, Runtime, SLOT_NOTE, Slot, is_env_name, text};
use crate::config::ContainerSection;
use crate::shim::{MARKER, READY};
use crate::tree::working;
use crate::unit_dir;

/// Secret environment inside the private directory, as the container sees it.
const ENV_FILE: &str = "/runner/.plexus-env";
/// Reads the file, removes it, becomes the worker.
const ENV_SCRIPT: &str = "set -a && . \"$1\" && set +a && rm -f \"$1\" && shift && exec \"$@\"";
/// Says that the container runs, becomes the worker.
const READY_SCRIPT: &str = "echo \"$1\" >&2; shift; exec \"$@\"";
/// What runs in the container.
const WORKER: [&str; 3] = ["ansible-runner", "worker", "--private-data-dir=/runner"];
/// What a worker finds in its environment unless the unit says otherwise.
const WORKER_ENV: [(&str, &str); 2] = [("LANG", "C.UTF-8"), ("TZ", "UTC")];
/// Places that programs write to, on tmpfs where the image itself is read-only.
const SCRATCH: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/root"];

/// Runs units in containers.
#[derive(Debug, Clone)]
pub struct Container {
    engine: Engine,
    section: ContainerSection,
    place: Place,
}

impl Container {
    /// Runs units by `engine` as `section` says.
    pub fn new(engine: Engine, section: ContainerSection, place: Place) -> Self {
        Self { engine, section, place }
    }

    /// Words of `run` for a unit.
    fn argv(&self, job: &Job<'_>) -> Result<Vec<String>, Error> {
        let UnitSpec { image, label, env, .. } = job.spec;
        if image.is_empty() {
            return Err(Error::NoImage);
        }
        let labels = [
            ("unit", job.attempt.unit.to_string()),
            ("attempt", job.attempt.number.to_string()),
            ("label", label.clone()),
        ];
        let mut mounts = vec![format!("{}:/runner{}", text(job.private)?, self.chown_flag())];
        if let Some(project) = job.project {
            mounts.push(format!("{}:/runner/project{}", text(project)?, self.chown_flag()));
        }
        let mut argv = self.run(&container(job.attempt), job.runtime_dir, &labels, &mounts, env)?;
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|&word| word.to_owned()));
        // Not an option, whatever the image is called.
        add(&["--", image]);
        if !job.secret_env.is_empty() {
            add(&["sh", "-c", ENV_SCRIPT, "sh", ENV_FILE]);
        }
        add(&WORKER);
        Ok(argv)
    }

    /// Words of `run` up to the image.
    fn run(
        &self,
        name: &str,
        runtime_dir: &Path,
        labels: &[(&str, String)],
        mounts: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<Vec<String>, Error> {
        let mut argv = self.engine.command.clone();
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|&word| word.to_owned()));
        let cidfile = text(&runtime_dir.join("cid"))?;
        add(&["run", "--rm", "-i", "--log-driver", "none", "--name", name, "--cidfile", &cidfile]);
        let own = [("node", self.place.node.to_string()), ("store", self.place.store.to_string())];
        for (key, value) in own.iter().chain(labels) {
            add(&["--label", &format!("plexus.{key}={value}")]);
        }
        add(&["--pull=never"]);
        self.add_options(&mut argv);
        let mut add = |words: &[&str]| argv.extend(words.iter().map(|&word| word.to_owned()));
        for mount in mounts {
            add(&["-v", mount]);
        }
        add(&["--workdir", "/runner/project"]);
        let defaults = WORKER_ENV.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut all: BTreeMap<String, String> = defaults.into();
        let home = if self.section.is_root() { "/root" } else { "/runner" };
        all.insert("HOME".to_owned(), home.to_owned());
        all.extend(env.clone());
        for (key, value) in &all {
            if !is_env_name(key) {
                return Err(Error::EnvName(key.clone()));
            }
            add(&["-e", &format!("{key}={value}")]);
        }
        Ok(argv)
    }

    /// Words that remove containers of these names.
    fn end_argv(&self, names: &[String]) -> Vec<String> {
        let words = self.remove_words().into_iter().map(str::to_owned);
        self.engine.command.iter().cloned().chain(words).chain(names.iter().cloned()).collect()
    }

    /// What the node's owner set.
    fn add_options(&self, argv: &mut Vec<String>) {
        let section = &self.section;
        let mut add = |option: &str, value: &str| argv.extend([option.to_owned(), value.to_owned()]);
        if let Some(network) = &section.network {
            add("--network", network);
        }
        if section.user != ContainerSection::OF_IMAGE {
            add("--user", &section.user);
        }
        if section.memory_mib > 0 {
            add("--memory", &format!("{}m", section.memory_mib));
        }
        if section.cpu_millis > 0 {
            add("--cpus", &format!("{:.3}", f64::from(section.cpu_millis) / 1000.0));
        }
        if section.pids > 0 {
            add("--pids-limit", &section.pids.to_string());
        }
        if section.no_new_privileges {
            add("--security-opt", "no-new-privileges");
        }
        for mount in &section.mounts {
            add("-v", mount);
        }
        if section.read_only {
            for place in SCRATCH {
                add("--tmpfs", place);
            }
            argv.push("--read-only".to_owned());
        }
    }

    /// Podman gives mounted files to the container's user, whoever that is; by number the node does it itself.
    fn chown_flag(&self) -> &'static str {
        if self.section.user == ContainerSection::OF_IMAGE { ":U" } else { "" }
    }

    /// Containers of this store, and whose they are.
    fn containers(&self) -> Result<Vec<(String, Option<Holder>)>, Error> {
        let filter = format!("label=plexus.store={}", self.place.store);
        let format = match self.engine.kind {
            Kind::Docker => {
                r#"{{.ID}} {{.Label "plexus.slot"}} {{.Label "plexus.unit"}}.{{.Label "plexus.attempt"}}"#
            }
            Kind::Podman | Kind::Process => {
                r#"{{.ID}} {{index .Labels "plexus.slot"}} {{index .Labels "plexus.unit"}}.{{index .Labels "plexus.attempt"}}"#
            }
        };
        let listing =
            self.engine.call(&["ps", "--all", "--no-trunc", "--filter", &filter, "--format", format])?;
        let parse = |line: &str| {
            let (id, rest) = line.split_once(' ')?;
            let (slot, attempt) = rest.rsplit_once(' ').unwrap_or(("", rest));
            let holder = match slot.trim() {
                "" => unit_dir::parse_name(attempt.trim()).map(Holder::Unit),
                slot => Some(Holder::Slot(slot.to_owned())),
            };
            Some((id.to_owned(), holder))
        };
        Ok(listing.lines().filter_map(parse).collect())
    }

    fn remove(&self, containers: &[String]) -> Result<(), Error> {
        if containers.is_empty() {
            return Ok(());
        }
        let mut args = self.remove_words();
        args.extend(containers.iter().map(String::as_str));
        match self.engine.call(&args) {
            Err(Error::Helper { reason, .. }) if reason.contains("No such container") => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// Removes at once, and is content when there is nothing.
    fn remove_words(&self) -> Vec<&'static str> {
        match self.engine.kind {
            Kind::Docker => vec!["rm", "--force"],
            Kind::Podman | Kind::Process => vec!["rm", "--force", "--time", "0", "--ignore"],
        }
    }
}

impl Runtime for Container {
    fn kind(&self) -> Kind {
        self.engine.kind
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
        if job.slot.is_none() {
            self.give(&[Some(job.private), job.project])?;
        }
        let names: Vec<String> =
            [Some(container(job.attempt)), job.slot.map(slot_container)].into_iter().flatten().collect();
        Ok(Command {
            argv,
            env: self.engine.env(),
            cwd: job.runtime_dir.to_owned(),
            end_argv: self.end_argv(&names),
        })
    }

    fn warm(&self, slot: &Slot<'_>) -> Result<Command, Error> {
        let name = slot_container(slot.name);
        // What is mounted on the host later shows in there too, and nothing the other way.
        let follow = if slot.mounts { ":rslave" } else { "" };
        let mounts = [
            format!("{}:/runner", text(slot.private)?),
            format!("{}:/runner/project{follow}", text(slot.project)?),
        ];
        let labels = [("slot", slot.name.to_owned())];
        let mut argv = self.run(&name, slot.runtime_dir, &labels, &mounts, &BTreeMap::new())?;
        argv.extend(["--", slot.image].map(str::to_owned));
        argv.extend(["sh", "-c", READY_SCRIPT, "sh", READY].map(str::to_owned));
        argv.extend(WORKER.map(str::to_owned));
        self.give(&[Some(slot.private), Some(slot.project)])?;
        let mut env = self.engine.env();
        env.insert(MARKER.to_owned(), marker(slot.name));
        Ok(Command { argv, env, cwd: slot.runtime_dir.to_owned(), end_argv: self.end_argv(&[name]) })
    }

    fn give(&self, dirs: &[Option<&Path>]) -> Result<(), Error> {
        let Some((user, group)) = self.section.owner() else { return Ok(()) };
        dirs.iter().copied().flatten().try_for_each(|dir| give(dir, user, group))
    }

    fn end(&self, attempt: Attempt, runtime_dir: &Path) -> Result<(), Error> {
        let slot = fs::read_to_string(runtime_dir.join(SLOT_NOTE)).ok();
        let slot = slot.as_deref().filter(|slot| !slot.is_empty());
        let names = [Some(container(attempt)), slot.map(slot_container)];
        self.remove(&names.into_iter().flatten().collect::<Vec<_>>())?;
        // A client that has no container yet carries the marker.
        let processes = super::process::Process::new(Vec::new());
        if let Some(slot) = slot {
            processes.end_marked(&marker(slot), Path::new("/nonexistent"))?;
        }
        processes.end(attempt, Path::new("/nonexistent"))
    }

    fn reap(&self, is_stale: &dyn Fn(&Holder) -> bool) -> Result<usize, Error> {
        let stale: Vec<String> = self
            .containers()?
            .into_iter()
            .filter(|(_, holder)| holder.as_ref().is_none_or(is_stale))
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
        let (client, prefix) = self.engine.command.split_last().expect("an engine has a command");
        let mut words: Vec<&str> = prefix.iter().map(String::as_str).collect();
        if prefix.is_empty() {
            words.extend([client, "unshare"]);
        }
        words.extend(["rm", "-rf", "--", &path]);
        super::engine::output(&words).map(drop).map_err(|_| Error::Helper {
            command: format!("removing {}", dir.display()),
            reason: first.to_string(),
        })
    }

    fn version(&self) -> String {
        self.engine.version().unwrap_or_default()
    }
}

/// Name of an attempt's container.
fn container(attempt: Attempt) -> String {
    format!("plexus-{}-{}", attempt.unit, attempt.number)
}

/// Name of a container that waits, or waited.
fn slot_container(slot: &str) -> String {
    format!("plexus-slot-{slot}")
}

/// What the client of such a container carries in its environment.
fn marker(slot: &str) -> String {
    format!("slot.{slot}")
}

/// Gives everything below `dir` to a user. Symlinks are given, not followed.
fn give(dir: &Path, user: u32, group: u32) -> Result<(), Error> {
    let failed = |source| Error::Disk { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            give(&entry.path(), user, group)?;
        } else {
            std::os::unix::fs::lchown(entry.path(), Some(user), Some(group)).map_err(failed)?;
        }
    }
    chown(dir, Some(user), Some(group)).map_err(failed)
}

/// Assignments that a POSIX shell reads back as they were, line feeds and quotes included.
fn shell_assignments(env: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in env.iter().filter(|(name, _)| is_env_name(name)) {
        writeln!(text, "{name}='{}'", value.replace('\'', "'\\''")).expect("a string grows");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use plexus_proto::id::StoreId;
    use plexus_proto::work::PullPolicy;
    use std::path::PathBuf;
    use std::process::Command as Program;

    fn section() -> ContainerSection {
        ContainerSection { network: Some("host".to_owned()), ..ContainerSection::default() }
    }

    fn runtime(kind: Kind, section: ContainerSection) -> Container {
        let place = Place { node: "node-1".parse().unwrap(), store: StoreId(uuid::Uuid::from_u128(9)) };
        let client = if kind == Kind::Docker { "docker" } else { "podman" };
        Container::new(Engine { kind, command: vec!["sudo".to_owned(), client.to_owned()] }, section, place)
    }

    fn command(
        spec: &UnitSpec,
        secret_env: &BTreeMap<String, String>,
        private: &Path,
    ) -> Result<Command, Error> {
        let attempt = unit_dir::parse_name("01890a5d-ac96-774b-bcce-b302099a8057.2").unwrap();
        let project = PathBuf::from("/data/project");
        runtime(Kind::Podman, section()).command(&Job {
            attempt,
            spec,
            private,
            project: Some(&project),
            runtime_dir: Path::new("/run/u"),
            secret_env,
            slot: None,
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
            "--label plexus.node=node-1 --label plexus.store=",
            "--label plexus.attempt=2",
            "--label plexus.label=job 12",
            "--pull=never --network host --user root --security-opt no-new-privileges",
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
    fn limits_and_mounts_are_options() {
        let options = |kind, section| {
            let mut argv = Vec::new();
            runtime(kind, section).add_options(&mut argv);
            argv.join(" ")
        };
        let section = ContainerSection {
            user: "1234:0".to_owned(),
            memory_mib: 512,
            cpu_millis: 1500,
            pids: 100,
            read_only: true,
            no_new_privileges: false,
            mounts: vec!["/etc/pki:/etc/pki:ro".to_owned()],
            ..ContainerSection::default()
        };
        assert_eq!(section.owner(), Some((1234, 0)));
        let expected = "--user 1234:0 --memory 512m --cpus 1.500 --pids-limit 100 -v /etc/pki:/etc/pki:ro --tmpfs /tmp \
                        --tmpfs /var/tmp --tmpfs /run --tmpfs /root --read-only";
        assert_eq!(options(Kind::Podman, section.clone()), expected);
        assert_eq!(options(Kind::Docker, section), expected);
        let of_image = ContainerSection { user: "image".to_owned(), ..ContainerSection::default() };
        assert_eq!(options(Kind::Podman, of_image), "--security-opt no-new-privileges");
    }

    #[test]
    fn docker_removes_in_its_own_words() {
        let docker = runtime(Kind::Docker, section());
        assert_eq!(docker.remove_words(), ["rm", "--force"]);
    }
}

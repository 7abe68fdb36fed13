//! A container engine's command line client: how it is called, and what its words mean.

use std::collections::BTreeMap;
use std::process::{Command as Program, Output, Stdio};

use plexus_proto::work::PullPolicy;

use super::{Error, Kind, base_env, last_line};

/// A client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    /// Whose options it takes.
    pub kind: Kind,
    /// Program and words before every verb, perhaps `sudo -n podman`.
    pub command: Vec<String>,
}

impl Engine {
    /// Runs the client and waits; its output. Blocks.
    ///
    /// # Errors
    /// It cannot be run, or says no.
    pub fn call(&self, args: &[&str]) -> Result<String, Error> {
        let words: Vec<&str> = self.command.iter().map(String::as_str).chain(args.iter().copied()).collect();
        output(&words)
    }

    /// Version of the engine, by asking the engine: a client alone is not enough.
    ///
    /// # Errors
    /// It does not answer.
    pub fn version(&self) -> Result<String, Error> {
        // Docker's client answers without its daemon, podman is its own.
        let format = match self.kind {
            Kind::Docker => "{{.Server.Version}}",
            Kind::Podman | Kind::Process => "{{.Client.Version}}",
        };
        self.call(&["version", "--format", format]).map(|text| text.trim().to_owned())
    }

    /// The client's own environment: what finds its programs, storage and configuration.
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut env = base_env();
        let kept = [
            "HOME",
            "XDG_RUNTIME_DIR",
            "CONTAINERS_CONF",
            "CONTAINERS_STORAGE_CONF",
            "CONTAINER_HOST",
            "DOCKER_HOST",
            "DOCKER_CONFIG",
            "REGISTRY_AUTH_FILE",
        ];
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
}

pub(super) fn output(words: &[&str]) -> Result<String, Error> {
    let Some((program, args)) = words.split_first() else { return Ok(String::new()) };
    let failed = |reason: String| Error::Helper { command: words.join(" "), reason };
    let Output { status, stdout, stderr } = Program::new(program)
        .args(args)
        .env_remove("NOTIFY_SOCKET") // podman would speak to systemd for its containers
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr);
        return Err(failed(last_line(&said).map_or_else(|| status.to_string(), str::to_owned)));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// The exit code of `run` with which a client tells of its engine and not of the worker.
pub const ENGINE_FAILED: i32 = 125;

/// Whether a client that failed had a container, which may have gone on. Words of docker's client, seen with 28.
pub fn has_lost_container(stderr: &str) -> bool {
    stderr.contains("error waiting for container")
}

/// What an exit code of `run` means: 125 is the engine's own failure, 126 and 127 a command that cannot
/// run; all else is the worker's.
pub(super) fn explain(code: i32, stderr: &str, image: &str, pull: PullPolicy) -> Option<String> {
    match code {
        ENGINE_FAILED => Some(Problem::of(stderr).tell(image, pull, None)),
        126 => Some(format!(
            "ansible-runner in image {image} is not executable; the image is no execution environment"
        )),
        127 => Some(format!("ansible-runner is not in image {image}; the image is no execution environment")),
        137 => Some(
            "the container was killed; most often by the kernel, because it ran out of memory".to_owned(),
        ),
        _ => None,
    }
}

/// Why an image cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// No image is called so.
    Name,
    /// Not on the node, and not to be pulled.
    Absent,
    /// The registry wants another credential, or one at all.
    Unauthorized,
    /// The registry has no such image.
    Unknown,
    /// The registry's certificate is not trusted.
    Certificate(String),
    /// The registry speaks no TLS.
    PlainHttp(String),
    /// No answer from the registry.
    Unreachable(String),
    /// No room on the node.
    DiskFull(String),
    /// It took too long.
    Timeout(u64),
    /// Anything else, in the engine's words.
    Other(String),
}

impl Problem {
    /// Decides on the engine's words, because its one exit code never tells why. Text seen with podman 4.3 and
    /// docker 28; unknown text is passed on.
    pub fn of(stderr: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
        if has(&["invalid reference format", "repository name must be"]) {
            Self::Name
        } else if has(&["image not known", "no such image", "No such image", "Unable to find image"]) {
            Self::Absent
        } else if has(&["no space left on device"]) {
            Self::DiskFull(quote(stderr))
        } else if has(&["x509:", "certificate signed by unknown", "tls: failed to verify"]) {
            Self::Certificate(quote(stderr))
        } else if has(&["server gave HTTP response to HTTPS client"]) {
            Self::PlainHttp(quote(stderr))
        } else if has(&[
            "unauthorized",
            "authentication required",
            "invalid username/password",
            "no basic auth credentials",
            "denied:",
        ]) {
            Self::Unauthorized
        } else if has(&["manifest unknown", "name unknown", "not found: manifest", "manifest for"]) {
            Self::Unknown
        } else if has(&[
            "connection refused",
            "no such host",
            "i/o timeout",
            "network is unreachable",
            "no route to host",
            "connection reset",
            "Client.Timeout",
            "TLS handshake timeout",
            "server misbehaving",
            "Temporary failure in name resolution",
        ]) {
            Self::Unreachable(quote(stderr))
        } else {
            Self::Other(quote(stderr))
        }
    }

    /// In the terms of who owns the job. `credential_for` is the registry that a credential was given for, if any.
    pub fn tell(&self, image: &str, pull: PullPolicy, credential_for: Option<&str>) -> String {
        match self {
            Self::Name => format!("{image:?} is no valid image name"),
            Self::Absent if pull == PullPolicy::Never => format!(
                "image {image} is not on this node and its pull policy is never; pull it there, or choose another \
                 pull policy"
            ),
            Self::Absent => format!("image {image} is not on this node"),
            Self::Unauthorized => match credential_for {
                None => format!(
                    "the registry of image {image} wants a credential, and the execution environment has none"
                ),
                Some(host) if !is_of(image, host) => format!(
                    "the registry of image {image} wants a credential, and the one given is for {host}"
                ),
                Some(host) => format!(
                    "the registry {host} refuses access to image {image}: user name or password of the credential \
                     are wrong, or do not reach that far"
                ),
            },
            Self::Unknown => format!("image {image} does not exist in its registry"),
            Self::Certificate(words) => format!(
                "the registry of image {image} has a certificate that this node does not trust; install its CA \
                 below /etc/containers/certs.d on the node, or switch verify_ssl off in the credential: {words}"
            ),
            Self::PlainHttp(words) => format!(
                "the registry of image {image} speaks no TLS; switch verify_ssl off in the credential to accept \
                 that: {words}"
            ),
            Self::Unreachable(words) => {
                format!("the registry of image {image} cannot be reached from this node: {words}")
            }
            Self::DiskFull(words) => format!("the node's disk is full: {words}"),
            Self::Timeout(seconds) => {
                format!("image {image} was not pulled within {seconds} s, the limit of this node")
            }
            Self::Other(words) => format!("the container engine could not run image {image}: {words}"),
        }
    }
}

/// Whether an image comes from this registry.
fn is_of(image: &str, host: &str) -> bool {
    let host = host.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    image.strip_prefix(host).is_some_and(|rest| rest.starts_with('/'))
}

/// The engine's last word, without its "Error:".
fn quote(stderr: &str) -> String {
    let line = last_line(stderr).unwrap_or("it gave no reason");
    line.trim_start_matches("Error: ").chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_engine_are_told_in_its_owners_terms() {
        let check = |code, stderr: &str, pull, words: &[&str]| {
            let text = explain(code, stderr, "reg/ee:1", pull).unwrap();
            for word in words {
                assert!(text.contains(word), "{word:?} in {text:?}");
            }
        };
        let never = PullPolicy::Never;
        let absent = "image reg/ee:1 is not on this node and its pull policy is never";
        check(125, "Error: reg/ee:1: image not known\n", never, &[absent]);
        check(125, "docker: Error response from daemon: No such image: reg/ee:1\n", never, &[absent]);
        let name = "Error: parsing reference \"A B\": invalid reference format";
        check(125, name, never, &["no valid image name"]);
        let missing = PullPolicy::Missing;
        let refused = "Trying to pull...\nError: ... unauthorized: authentication required";
        check(125, refused, missing, &["wants a credential"]);
        check(125, "Error: reading manifest 1 in reg/ee: manifest unknown", missing, &["does not exist"]);
        let down = "Error: dial tcp 127.0.0.1:5000: connect: connection refused";
        check(125, down, missing, &["cannot be reached", "dial tcp"]);
        check(125, "Error: x509: certificate signed by unknown authority", missing, &["does not trust"]);
        check(125, "Error: something new\n", missing, &["could not run", "something new"]);
        check(127, "", missing, &["ansible-runner is not in image"]);
        assert_eq!(explain(2, "", "x", never), None);
    }

    #[test]
    fn a_refused_credential_is_told_from_one_for_elsewhere_and_from_none() {
        let tell = |host| Problem::Unauthorized.tell("quay.io/org/ee:1", PullPolicy::Missing, host);
        assert!(tell(None).contains("has none"));
        assert!(tell(Some("quay.io")).contains("are wrong"));
        assert!(tell(Some("https://quay.io/")).contains("are wrong"));
        assert!(tell(Some("ghcr.io")).contains("is for ghcr.io"));
        assert!(tell(Some("quay.i")).contains("is for quay.i"));
    }
}

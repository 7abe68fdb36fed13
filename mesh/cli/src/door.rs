//! Where answers come from: the local socket of a daemon, or a controller over HTTP. Both give the same JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plexus_mesh::local::{Action, ClientError, LocalClient};
use plexus_mesh::status::SCHEMA_VERSION;
use plexus_proto::id::NodeId;
use serde::de::DeserializeOwned;
use tonic::Code;

use crate::failure::{Exit, Failure};
use crate::http::HttpDoor;
use crate::settings::{Controller, DEFAULT_SOCKETS, Settings};

/// A daemon that answers.
pub(crate) enum Door {
    Local(LocalClient),
    Controller(HttpDoor),
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) String);

impl Answer {
    /// The answer as a value.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_str(&self.0).map_err(|error| {
            #[derive(serde::Deserialize)]
            struct Version {
                schema_version: u32,
            }
            match serde_json::from_str::<Version>(&self.0) {
                Ok(Version { schema_version }) if schema_version > SCHEMA_VERSION => Failure::new(
                    Exit::Failed,
                    format!(
                        "the answer has schema version {schema_version}, this plexus knows {SCHEMA_VERSION}"
                    ),
                )
                .hint("upgrade plexus, or read the answer with -o json"),
                _ => Failure::new(Exit::Failed, format!("the answer is not understood: {error}")),
            }
        })
    }
}

/// Connects to whom the settings name.
pub(crate) async fn open(settings: &Settings) -> Result<Door, Failure> {
    match settings {
        Settings::Socket(path) => connect(path).await.map_err(|error| refused_socket(path, &error)),
        Settings::Controller(controller) => Ok(Door::Controller(HttpDoor::new(controller.clone())?)),
        Settings::Default => open_default(&DEFAULT_SOCKETS.map(PathBuf::from)).await,
    }
}

/// The first daemon that answers. A socket that we may not use says more than one that is not there.
async fn open_default(sockets: &[PathBuf]) -> Result<Door, Failure> {
    let mut denied = None;
    for path in sockets {
        match connect(path).await {
            Ok(door) => return Ok(door),
            Err(error) if is_absent(&error) => {}
            Err(error) => denied = denied.or(Some(refused_socket(path, &error))),
        }
    }
    let tried: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
    Err(denied.unwrap_or_else(|| {
        Failure::new(Exit::Unreachable, format!("no daemon answers at {}", tried.join(" or ")))
            .hint("start plexus-controller or plexus-node here, or name one with --socket or --controller")
    }))
}

/// The controller that the settings name, for what goes through its API only.
pub(crate) fn controller(settings: Option<Controller>) -> Result<HttpDoor, Failure> {
    let asked = settings.ok_or_else(|| {
        Failure::new(Exit::Usage, "this goes through a controller, under a user's name").hint(
            "give --controller URL or set CONTROLLER_HOST, with CONTROLLER_USERNAME and CONTROLLER_PASSWORD",
        )
    })?;
    HttpDoor::new(asked)
}

async fn connect(path: &Path) -> Result<Door, ClientError> {
    LocalClient::connect(path).await.map(Door::Local)
}

fn connect_error(error: &ClientError) -> Option<io::ErrorKind> {
    match error {
        ClientError::Connect { source, .. } => Some(source.kind()),
        ClientError::Transport { .. } | ClientError::Refused(_) => None,
    }
}

fn is_absent(error: &ClientError) -> bool {
    matches!(connect_error(error), Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}

fn refused_socket(path: &Path, error: &ClientError) -> Failure {
    match connect_error(error) {
        Some(io::ErrorKind::PermissionDenied) => {
            Failure::of(Exit::Denied, error).hint("join group plexus, or use sudo")
        }
        Some(io::ErrorKind::NotFound) => {
            Failure::new(Exit::Unreachable, format!("there is no socket at {}", path.display()))
                .hint("start the daemon, or compare with `socket` in its config")
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            Failure::new(Exit::Unreachable, format!("no daemon answers at {}", path.display()))
                .hint("the daemon that made this socket is gone; start it again")
        }
        _ => Failure::of(Exit::Unreachable, error),
    }
}

impl Door {
    pub(crate) async fn status(&mut self) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.status().await),
            Self::Controller(http) => http.status().await,
        }
    }

    pub(crate) async fn nodes(&mut self) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.nodes().await),
            Self::Controller(http) => http.nodes().await,
        }
    }

    pub(crate) async fn ping(&mut self, node: &NodeId, timeout: Duration) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.ping(node.as_str(), timeout).await),
            Self::Controller(http) => http.ping(node, timeout).await,
        }
    }

    pub(crate) async fn trace(&mut self, node: &NodeId, timeout: Duration) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.trace(node.as_str(), timeout).await),
            Self::Controller(http) => http.trace(node, timeout).await,
        }
    }

    pub(crate) async fn routes(&mut self) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.routes().await),
            Self::Controller(http) => http.mesh("routes").await,
        }
    }

    pub(crate) async fn links(&mut self) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.links().await),
            Self::Controller(http) => http.mesh("links").await,
        }
    }

    /// Events after number `after`, waiting no longer than `wait` for one.
    pub(crate) async fn events(&mut self, after: u64, wait: Duration) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.events(after, wait).await),
            Self::Controller(http) => http.events(after, wait).await,
        }
    }

    pub(crate) async fn netcheck(&mut self, from: Option<&NodeId>, to: &NodeId) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.netcheck(from.map(NodeId::as_str), to.as_str()).await),
            Self::Controller(http) => http.netcheck(from, to).await,
        }
    }

    /// Has the daemon behind a local socket do something.
    pub(crate) async fn act(&mut self, action: &Action) -> Result<Answer, Failure> {
        match self {
            Self::Local(client) => answer(client.act(action).await),
            Self::Controller(_) => Err(Failure::new(
                Exit::Usage,
                format!("{} concerns the daemon of this machine alone", action.name()),
            )
            .hint("run it as root where that daemon runs, with --socket PATH")),
        }
    }
}

fn answer(answered: Result<String, ClientError>) -> Result<Answer, Failure> {
    answered.map(Answer).map_err(refused)
}

/// What a daemon's refusal means to people.
pub(crate) fn refused(error: ClientError) -> Failure {
    let ClientError::Refused(status) = &error else { return Failure::of(Exit::Unreachable, &error) };
    let failed = |exit| Failure::of(exit, &error);
    match status.code() {
        Code::InvalidArgument => failed(Exit::Usage),
        Code::NotFound => unknown_node(&error.to_string()),
        // Only the daemon here knows of sudo; a policy elsewhere does not.
        Code::PermissionDenied if status.message().starts_with("only root") => {
            failed(Exit::Denied).hint("use sudo")
        }
        Code::PermissionDenied | Code::Unauthenticated => failed(Exit::Denied),
        Code::Unavailable | Code::DeadlineExceeded => unreachable_node(&error.to_string()),
        Code::Unimplemented => {
            failed(Exit::Failed).hint("hops run no work, and a daemon may be older than this plexus")
        }
        _ => failed(Exit::Failed),
    }
}

pub(crate) fn unknown_node(text: &str) -> Failure {
    Failure::new(Exit::NotFound, text)
        .hint("`plexus nodes` on a hop or a controller lists the nodes that are known")
}

pub(crate) fn unreachable_node(text: &str) -> Failure {
    Failure::new(Exit::Unreachable, text)
        .hint("`plexus nodes` says who is reachable, `plexus status` what is wrong here")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: io::ErrorKind) -> Failure {
        let path = PathBuf::from("/run/plexus/node.sock");
        refused_socket(&path.clone(), &ClientError::Connect { path, source: kind.into() })
    }

    #[test]
    fn a_socket_of_others_is_denied() {
        let failure = refused(io::ErrorKind::PermissionDenied);
        assert_eq!(failure.exit, Exit::Denied);
        assert_eq!(failure.text, "cannot connect to /run/plexus/node.sock: permission denied");
        assert_eq!(failure.hint.as_deref(), Some("join group plexus, or use sudo"));
    }

    #[tokio::test]
    async fn without_a_daemon_every_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = [dir.path().join("a"), dir.path().join("b")];
        drop(std::os::unix::net::UnixListener::bind(&sockets[1]).unwrap());
        let Err(failure) = open_default(&sockets).await else { panic!("nobody is there") };
        assert_eq!(failure.exit, Exit::Unreachable);
        let [a, b] = sockets.map(|path| path.display().to_string());
        assert_eq!(failure.text, format!("no daemon answers at {a} or {b}"));
    }

    #[tokio::test]
    async fn what_is_no_socket_says_more_than_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = [dir.path().join("a"), dir.path().join("b")];
        std::os::unix::fs::symlink(&sockets[0], &sockets[0]).unwrap();
        let Err(failure) = open_default(&sockets).await else { panic!("nobody is there") };
        assert!(failure.text.starts_with("cannot connect to "), "{}", failure.text);
    }
}

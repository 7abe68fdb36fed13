//! Whom to ask: flags, then the socket of the environment, then the controller of the environment.

use std::fmt;
use std::path::PathBuf;

/// Where daemons keep their sockets by default, in the order they are tried.
pub(crate) const DEFAULT_SOCKETS: [&str; 2] = ["/run/plexus/controller.sock", "/run/plexus/node.sock"];

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settings {
    /// The daemon behind a socket.
    Socket(PathBuf),
    /// A controller, over HTTP.
    Controller(Controller),
    /// Whoever answers at a default socket.
    Default,
}

/// A controller, and as whom to ask it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Controller {
    /// Without a slash at its end.
    pub(crate) url: String,
    pub(crate) login: Login,
    /// Whether its certificate is checked.
    pub(crate) verify: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    Token(String),
    Password { user: String, password: String },
    Nobody,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Password { .. } => "Password(..)",
            Self::Nobody => "Nobody",
        })
    }
}

impl Settings {
    pub(crate) fn new(
        socket: Option<PathBuf>,
        controller: Option<String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Self {
        // A variable that is set to nothing is not set.
        let env = |name| env(name).filter(|value| !value.is_empty());
        if let Some(socket) = socket {
            return Self::Socket(socket);
        }
        if let Some(url) = controller {
            return Self::Controller(Controller::new(&url, env));
        }
        if let Some(socket) = env("PLEXUS_SOCKET") {
            return Self::Socket(socket.into());
        }
        match env("CONTROLLER_HOST") {
            Some(url) => Self::Controller(Controller::new(&url, env)),
            None => Self::Default,
        }
    }
}

impl Controller {
    /// The controller of the flag or else of the environment, whatever sockets there are: for what only a controller
    /// can do.
    pub(crate) fn find(flag: Option<String>, env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let url = flag.or_else(|| env("CONTROLLER_HOST"))?;
        Some(Self::new(&url, env))
    }

    fn new(url: &str, env: impl Fn(&'static str) -> Option<String>) -> Self {
        let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let url = url.trim_end_matches('/').to_owned();
        let login = match (env("CONTROLLER_OAUTH_TOKEN"), env("CONTROLLER_USERNAME")) {
            (Some(token), _) => Login::Token(token),
            (None, Some(user)) => {
                Login::Password { user, password: env("CONTROLLER_PASSWORD").unwrap_or_default() }
            }
            (None, None) => Login::Nobody,
        };
        let verify = env("CONTROLLER_VERIFY_SSL").is_none_or(|word| {
            !["false", "f", "no", "n", "off", "0"].contains(&word.to_lowercase().as_str())
        });
        Self { url, login, verify }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(socket: Option<&str>, controller: Option<&str>, env: &[(&str, &str)]) -> Settings {
        let env =
            |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::new(socket.map(Into::into), controller.map(Into::into), env)
    }

    const BOTH: [(&str, &str); 2] = [("PLEXUS_SOCKET", "/env.sock"), ("CONTROLLER_HOST", "https://env")];

    #[test]
    fn flags_come_first_then_the_socket_then_the_controller() {
        let url = |settings| match settings {
            Settings::Controller(controller) => controller.url,
            other => panic!("{other:?}"),
        };
        assert_eq!(settings(Some("/flag.sock"), None, &BOTH), Settings::Socket("/flag.sock".into()));
        assert_eq!(url(settings(None, Some("https://flag"), &BOTH)), "https://flag");
        assert_eq!(settings(None, None, &BOTH), Settings::Socket("/env.sock".into()));
        assert_eq!(url(settings(None, None, &BOTH[1..])), "https://env");
        assert_eq!(
            settings(None, None, &[("PLEXUS_SOCKET", ""), ("CONTROLLER_HOST", "")]),
            Settings::Default
        );
    }

    #[test]
    fn a_controller_is_found_beside_a_socket() {
        let env =
            |name: &str| BOTH.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(Controller::find(None, env).unwrap().url, "https://env");
        assert_eq!(Controller::find(Some("flag".into()), env).unwrap().url, "https://flag");
        assert_eq!(Controller::find(None, |_| None), None);
    }

    #[test]
    fn controller_variables_are_those_of_the_awx_client() {
        let controller = |env: &[(&str, &str)]| match settings(None, Some("host:8043/"), env) {
            Settings::Controller(controller) => controller,
            other => panic!("{other:?}"),
        };
        let password = [("CONTROLLER_USERNAME", "admin"), ("CONTROLLER_PASSWORD", "secret")];
        let login = Login::Password { user: "admin".into(), password: "secret".into() };
        assert_eq!(
            controller(&password),
            Controller { url: "https://host:8043".into(), login, verify: true }
        );
        let token =
            [password[0], password[1], ("CONTROLLER_OAUTH_TOKEN", "t"), ("CONTROLLER_VERIFY_SSL", "False")];
        let found = controller(&token);
        assert_eq!((&found.login, found.verify), (&Login::Token("t".into()), false));
        assert!(!format!("{:?}", controller(&password)).contains("secret"));
    }
}

//! How a PostgreSQL server is reached, and what its errors mean. Used by the core database and by the events.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use zeroize::Zeroizing;

/// Environment variable with the password of the database.
pub const PASSWORD: &str = "PLEXUS_CONTROLLER_DATABASE_PASSWORD";
/// How long a reader waits for a connection before the request fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Statements kept prepared by each connection.
const STATEMENTS: usize = 256;

/// Why a server's address is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The address has another form than `postgres://user@host/database`.
    #[error("not a PostgreSQL address such as postgres://plexus@db.example.org/plexus")]
    Address,
    /// A password in it would be read by everybody who may read the configuration.
    #[error(
        "has a password in it; put the password into the file that database.password_file names, \
             or into {PASSWORD}"
    )]
    PasswordInAddress,
    /// The file with the password.
    #[error("cannot read the password in {}", file.display())]
    PasswordFile {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A database on a server. Shows where it is, never the password.
#[derive(Clone)]
pub struct Server {
    options: PgConnectOptions,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.place()).finish()
    }
}

impl Server {
    /// Reads an address, and the password from its file or the environment.
    ///
    /// # Errors
    /// An address of another form or with a password, or a file that cannot be read.
    pub fn new(url: &str, password_file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::check(url)?;
        // The library's own words would repeat the address.
        let mut options = PgConnectOptions::from_str(url).map_err(|_| SettingsError::Address)?;
        if let Some(file) = password_file {
            let text = std::fs::read_to_string(file).map(Zeroizing::new);
            let text =
                text.map_err(|source| SettingsError::PasswordFile { file: file.to_owned(), source })?;
            options = options.password(text.trim_end_matches(['\r', '\n']));
        } else if let Ok(text) = std::env::var(PASSWORD).map(Zeroizing::new) {
            options = options.password(&text);
        }
        let options = options
            .application_name("plexus-controller")
            .statement_cache_capacity(STATEMENTS)
            // An acknowledgement is a promise, whatever the server does by default. A backend that waits for a lock
            // or a client that is gone ends in bounded time.
            .options([
                ("synchronous_commit", "on"),
                ("idle_in_transaction_session_timeout", "60000"),
                ("client_min_messages", "warning"),
            ])
            .disable_statement_logging();
        Ok(Self { options })
    }

    /// Whether this is an address, without reading a password.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn check(url: &str) -> Result<(), SettingsError> {
        let rest = ["postgres://", "postgresql://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let rest = rest.ok_or(SettingsError::Address)?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
        let has_word = rest.split_once('?').is_some_and(|(_, query)| {
            query.split('&').any(|pair| pair.split('=').next() == Some("password"))
        });
        if user.contains(':') || has_word {
            return Err(SettingsError::PasswordInAddress);
        }
        PgConnectOptions::from_str(url).map(drop).map_err(|_| SettingsError::Address)
    }

    /// Where it is, for messages: host and database.
    pub fn place(&self) -> String {
        let host = match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        };
        let database = self.options.get_database().unwrap_or(self.options.get_username());
        format!("postgresql {host}/{database}")
    }

    /// Options of a connection that finds its tables in `schema`.
    pub(crate) fn options_in(&self, schema: &str) -> PgConnectOptions {
        self.options.clone().options([("search_path", schema)])
    }

    /// Connections that only read, made when they are wanted.
    pub(super) fn readers(&self, schema: Option<&str>, most: u32) -> PgPool {
        let options = schema.map_or_else(|| self.options.clone(), |schema| self.options_in(schema));
        PgPoolOptions::new()
            .max_connections(most)
            .acquire_timeout(PATIENCE)
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(options.options([("default_transaction_read_only", "on")]))
    }

    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }
}

/// Whether what failed may succeed later as it is: the server restarts, fails over, is full, or was out of reach.
pub(super) fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) => true,
        sqlx::Error::Tls(_) | sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // 08 connection, 53 resources, 57P0 shutdown and start-up, 58 system, 40 rolled back; a lock not had
            // in time; a standby that was written to.
            ["08", "53", "57P0", "58", "40"].iter().any(|class| code.starts_with(class))
                || matches!(&*code, "55P03" | "57014" | "25006" | "25P03")
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_address_is_refused_and_none_is_shown() {
        for url in ["postgres://u:secret@h/d", "postgres://u@h/d?password=secret"] {
            let error = Server::check(url).unwrap_err();
            assert!(matches!(error, SettingsError::PasswordInAddress), "{url}");
            assert!(!error.to_string().contains("secret"));
        }
        for url in ["mysql://u@h/d", "postgres:/x", "", "postgres://u@h:port/d"] {
            assert!(matches!(Server::check(url), Err(SettingsError::Address)), "{url}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "s3cret\n").unwrap();
        let server = Server::new("postgres://plexus@db.example.org/plexus", Some(&file)).unwrap();
        assert_eq!(server.place(), "postgresql db.example.org:5432/plexus");
        assert!(!format!("{server:?}").contains("s3cret"));
        let missing = Server::new("postgres://u@h/d", Some(&dir.path().join("none"))).unwrap_err();
        assert!(matches!(missing, SettingsError::PasswordFile { .. }));
    }
}

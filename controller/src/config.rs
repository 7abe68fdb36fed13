//! The controller's configuration: read once, checked whole before the first port is bound, never changed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use plexus_mesh::MeshSection;
use serde::Deserialize;

/// Why a configuration is not taken. Each names the file, and where it can the line and the key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML, or has a key that is not known, or a value of another type.
    #[error("configuration {}, line {line}: {message}", file.display())]
    Parse {
        /// The file.
        file: PathBuf,
        /// Counts from 1.
        line: usize,
        /// What is wrong; names the key.
        message: String,
    },
    /// A value that cannot be used.
    #[error("configuration {}: {key}: {message}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key, with its section.
        key: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

/// All settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Database, events, keys, certificate of the API.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Local read-only door for `plexus status` and its like.
    #[serde(default = "default_socket")]
    pub socket: PathBuf,
    /// `ca.pem`, `node.pem`, `node.key`.
    #[serde(default = "default_identity_dir")]
    pub identity_dir: PathBuf,
    /// Where jobs, settings and events are kept.
    #[serde(default)]
    pub database: Database,
    /// Links to the mesh.
    #[serde(default)]
    pub mesh: MeshSection,
    /// How machines get certificates here.
    #[serde(default)]
    pub enrolment: Enrolment,
    /// The API.
    #[serde(default)]
    pub http: Http,
    /// Trees of playbooks.
    #[serde(default)]
    pub projects: Projects,
    /// Where jobs run.
    #[serde(default)]
    pub execution: Execution,
    /// What there is at the first start.
    #[serde(default)]
    pub fresh: Fresh,
    /// Who may open which service on whom.
    #[serde(default)]
    pub policy: plexus_mesh::Policy,
    /// What is told, and how.
    #[serde(default)]
    pub log: Log,
}

/// Where jobs, settings and events are kept.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// Address of a PostgreSQL database, without a password; none: SQLite files in `data_dir`.
    pub url: Option<String>,
    /// File with the password, alone on its line; none: the environment's, if there is one.
    pub password_file: Option<PathBuf>,
    /// Days after which a job that is over goes, with its events; none: never.
    pub keep_jobs_days: Option<u32>,
}

/// How machines get certificates here.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Enrolment {
    /// Directory with `intermediate.pem`, `intermediate.key` and `root.pem`; none: this controller issues nothing.
    pub ca_dir: Option<PathBuf>,
    /// Members that new machines can reach, `host:port`: what tokens name unless told otherwise. Empty: the
    /// neighbours that this controller dials, and its own listeners.
    pub addresses: Vec<String>,
    /// Life of a certificate. Nodes renew after two thirds of it.
    pub certificate_seconds: u64,
}

impl Default for Enrolment {
    fn default() -> Self {
        // A month: a stolen key is of use for weeks at most, and a site may be dark for ten days unnoticed.
        Self { ca_dir: None, addresses: Vec::new(), certificate_seconds: 30 * 24 * 3600 }
    }
}

/// The API.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address for HTTPS; none: no HTTPS.
    pub https: Option<SocketAddr>,
    /// Address for plain HTTP, on loopback only: passwords and tokens travel on it.
    pub http: Option<SocketAddr>,
}

impl Default for Http {
    fn default() -> Self {
        Self { https: Some(SocketAddr::from(([0, 0, 0, 0], 8043))), http: None }
    }
}

/// Trees of playbooks.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Projects {
    /// Manual projects are directories below this one.
    pub root: PathBuf,
}

impl Default for Projects {
    fn default() -> Self {
        Self { root: PathBuf::from("/var/lib/plexus/projects") }
    }
}

/// Where jobs run.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Execution {
    /// Which nodes run jobs.
    pub nodes: Nodes,
}

/// Which nodes run jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Nodes {
    /// Every execution node of the cluster that can be reached: `"auto"`.
    #[default]
    #[serde(skip)]
    Auto,
    /// As written: `"auto"`, or anything else, which is refused.
    Word(String),
    /// These.
    Named(Vec<String>),
}

/// What there is at the first start; later changes do nothing.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Fresh {
    /// Demo Project, Demo Inventory, Demo Credential and Demo Job Template.
    pub demo: bool,
    /// Execution environments of everybody; setting GLOBAL_JOB_EXECUTION_ENVIRONMENTS then names them.
    pub execution_environments: Vec<Environment>,
    /// Image of the managed execution environment, in which projects are updated; empty: there is none.
    pub control_plane_image: String,
}

/// An execution environment by its name and image.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
}

impl Default for Fresh {
    fn default() -> Self {
        // As AWX 24.6.1 has them.
        let image = "quay.io/ansible/awx-ee:24.6.1";
        let environment = Environment { name: "AWX EE (24.6.1)".to_owned(), image: image.to_owned() };
        Self { demo: true, execution_environments: vec![environment], control_plane_image: image.to_owned() }
    }
}

/// What is told, and how.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives for parts: `info,plexus_mesh=debug`.
    pub level: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Lines for people or for machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

fn default_data_dir() -> PathBuf {
    "/var/lib/plexus/controller".into()
}

fn default_socket() -> PathBuf {
    "/run/plexus/controller.sock".into()
}

fn default_identity_dir() -> PathBuf {
    "/etc/plexus/controller".into()
}

/// A link costs ten unless told otherwise, so there is room for better ones.
impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`Error`] names the file, and where it can the line and the key.
    pub fn load(file: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        Self::parse(file, &text)
    }

    /// Checks the text of `file`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        let mut config: Self = toml::from_str(text).map_err(|error| Error::Parse {
            file: file.to_owned(),
            line: error.span().map_or(1, |span| {
                text.get(..span.start).unwrap_or_default().bytes().filter(|&byte| byte == b'\n').count() + 1
            }),
            message: error.message().replace("unknown field", "unknown key"),
        })?;
        config.check(file)?;
        Ok(config)
    }

    /// Keys whose values differ in `other` and that only a start can change.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let changed = [
            ("data_dir", self.data_dir != other.data_dir),
            ("socket", self.socket != other.socket),
            ("identity_dir", self.identity_dir != other.identity_dir),
            ("database", self.database != other.database),
            ("mesh.kinds", self.mesh.kinds != other.mesh.kinds),
            ("mesh.mtu", self.mesh.mtu != other.mesh.mtu),
            ("enrolment", self.enrolment != other.enrolment),
            ("http", self.http != other.http),
            ("projects", self.projects != other.projects),
            ("execution", self.execution != other.execution),
            ("fresh", self.fresh != other.fresh),
            ("log", self.log != other.log),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }

    fn check(&mut self, file: &Path) -> Result<(), Error> {
        let wrong = |key, message: String| Err(Error::Value { file: file.to_owned(), key, message });
        match self.http.http {
            Some(address) if !address.ip().is_loopback() => {
                return wrong(
                    "http.http",
                    format!(
                        "{address} is not a loopback address: passwords would travel in clear; use http.https"
                    ),
                );
            }
            None if self.http.https.is_none() => {
                return wrong("http", "at least one of https and http must be set".to_owned());
            }
            _ => {}
        }
        for (key, path) in [
            ("data_dir", &self.data_dir),
            ("identity_dir", &self.identity_dir),
            ("projects.root", &self.projects.root),
        ] {
            if path.as_os_str().is_empty() {
                return wrong(key, "must not be empty".to_owned());
            }
        }
        if self.database.keep_jobs_days == Some(0) {
            return wrong(
                "database.keep_jobs_days",
                "must be at least 1; leave it out to keep all".to_owned(),
            );
        }
        match &self.database.url {
            Some(url) => {
                if let Err(error) = crate::store::postgres::Server::check(url) {
                    return wrong("database.url", error.to_string());
                }
            }
            None if self.database.password_file.is_some() => {
                return wrong("database.password_file", "is of no use without database.url".to_owned());
            }
            None => {}
        }
        if let Err((key, message)) = self.mesh.check() {
            return wrong(key, message);
        }
        match &self.execution.nodes {
            Nodes::Word(word) if word == "auto" => self.execution.nodes = Nodes::Auto,
            Nodes::Word(word) => {
                return wrong("execution.nodes", format!("{word:?} is neither \"auto\" nor a list of names"));
            }
            Nodes::Named(names) => {
                for name in names {
                    if let Err(error) = name.parse::<plexus_proto::id::NodeId>() {
                        return wrong("execution.nodes", error.to_string());
                    }
                }
            }
            Nodes::Auto => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Config::parse(Path::new("c.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_is_a_configuration() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/controller.example.toml");
        let config = Config::load(&file).unwrap();
        assert_eq!(config.data_dir, Path::new("/var/lib/plexus/controller"));
        assert_eq!(config.http.http, Some("127.0.0.1:8052".parse().unwrap()));
        assert_eq!(config.mesh.peers[0].address.as_deref(), Some("hop.example.org:7323"));
        assert_eq!(config.execution.nodes, Nodes::Auto);
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_key() {
        let message = refused("data_dir = \"/x\"\n\n[http]\nhttps = \"0.0.0.0:1\"\nhtpps = 1\n");
        assert!(message.starts_with("configuration c.toml, line 5: unknown key `htpps`"), "{message}");
        let message = refused("datadir = \"/x\"\n");
        assert!(message.starts_with("configuration c.toml, line 1: unknown key `datadir`"), "{message}");
        let message = refused("[[mesh.peers]]\naddress = \"a:1\"\nweight = 2\n");
        assert!(message.starts_with("configuration c.toml, line 3: unknown key `weight`"), "{message}");
    }

    #[test]
    fn plain_http_is_for_loopback_alone() {
        let message = refused("[http]\nhttp = \"0.0.0.0:8052\"\n");
        assert!(
            message.starts_with("configuration c.toml: http.http: 0.0.0.0:8052 is not a loopback address")
        );
        assert!(Config::parse(Path::new("c.toml"), "[http]\nhttp = \"[::1]:8052\"\n").is_ok());
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        assert!(refused("[http]\nhttps = \"here\"\n").contains("line 2"), "a bad address");
        assert!(refused("[[mesh.peers]]\naddress = \"nowhere\"\n").contains("mesh.peers.address"));
        assert!(refused("[[mesh.peers]]\naddress = \"a:1\"\ncost = 0\n").contains("mesh.peers.cost"));
        assert!(refused("[execution]\nnodes = \"some\"\n").contains("execution.nodes"));
        assert!(refused("[execution]\nnodes = [\"Node 1\"]\n").contains("execution.nodes"));
        assert!(refused("= 3").contains("line 1"));
        assert!(refused("[database]\nurl = \"mysql://u@h/d\"\n").contains("database.url"));
        assert!(refused("[database]\nkeep_jobs_days = 0\n").contains("database.keep_jobs_days"));
        assert!(refused("[database]\npassword_file = \"/x\"\n").contains("database.password_file"));
        let message = refused("[database]\nurl = \"postgres://u:s3cret@h/d\"\n");
        assert!(message.contains("database.password_file") && !message.contains("s3cret"), "{message}");
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = Config::parse(Path::new("c.toml"), "").unwrap();
        assert_eq!(config.http.https, Some("0.0.0.0:8043".parse().unwrap()));
        assert_eq!(config.http.http, None);
    }
}

//! `plexus-node join` and `plexus-node csr`: how a machine gets its identity and a configuration that just works.

use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use plexus_mesh::enrol::client::{self, JoinError, Progress};
use plexus_mesh::enrol::token::is_address;
use plexus_mesh::enrol::{LocalKey, Token, files};
use plexus_mesh::identity::{CHAIN_FILE, Credentials, key_fingerprint};
use plexus_proto::id::{NodeId, Role};

use crate::config::Config;

/// Environment variable with a token, for scripts: arguments show in the list of processes.
const TOKEN_VARIABLE: &str = "PLEXUS_JOIN_TOKEN";
/// Longest token that is read from standard input.
const TOKEN_MAX: u64 = 8192;

/// Joins a mesh with a token that `plexus token create` made: makes a key, has it certified, writes a configuration.
#[derive(Debug, Args)]
pub struct Join {
    /// The token; `-` reads it from standard input. Without it, $PLEXUS_JOIN_TOKEN.
    token: Option<String>,
    /// Name of this node. Without it, the one the token is for, or else this machine's host name.
    #[arg(long)]
    name: Option<NodeId>,
    #[command(flatten)]
    place: Place,
    /// A member to ask, instead of those in the token; may be given several times.
    #[arg(long, value_name = "HOST:PORT")]
    via: Vec<String>,
    /// Seconds to wait for an operator's approval, where the token demands one.
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    wait: u64,
    /// Data directory for the configuration.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Directory on tmpfs for the configuration.
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Local socket for the configuration.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Address to listen on, for the configuration; a hop listens on [::]:7323 without it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
}

/// Where identity and configuration lie.
#[derive(Debug, Args)]
struct Place {
    /// Directory for node.toml, and for the identity in node/ below it.
    #[arg(long, default_value = "/etc/plexus", value_name = "DIR")]
    config_dir: PathBuf,
}

/// Makes a key and a request for `plexus ca sign`, for a machine that cannot reach the mesh.
#[derive(Debug, Args)]
pub struct Csr {
    /// Name of this node.
    #[arg(long)]
    name: NodeId,
    #[command(flatten)]
    place: Place,
    /// Where to write the request; standard output without it.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Place {
    fn identity(&self) -> PathBuf {
        self.config_dir.join("node")
    }

    fn config(&self) -> PathBuf {
        self.config_dir.join("node.toml")
    }
}

/// Runs `plexus-node csr`.
///
/// # Errors
/// A key or request that cannot be written.
pub fn csr(args: &Csr) -> anyhow::Result<()> {
    plexus_mesh::install_crypto_provider();
    let dir = args.place.identity();
    files::make_dir(&dir)?;
    let request = LocalKey::open_or_make(&dir)?.request_pem(&args.name)?;
    match &args.out {
        Some(path) => {
            std::fs::write(path, &request).with_context(|| format!("cannot write {}", path.display()))?
        }
        None => std::io::stdout().write_all(request.as_bytes()).context("cannot write the request")?,
    }
    eprintln!("the key is in {} and stays there", dir.display());
    eprintln!("next: plexus ca sign --ca DIR --role ROLE --out DIR REQUEST, where the authority is;");
    eprintln!("      then put ca.pem and node.pem into {}", dir.display());
    Ok(())
}

/// Runs `plexus-node join`. Run again after any trouble, it goes on where it stopped.
///
/// # Errors
/// What went wrong and what to do about it, for people.
pub async fn join(args: Join) -> anyhow::Result<()> {
    plexus_mesh::install_crypto_provider();
    let text = token_text(args.token.as_deref())?;
    let mut token = Token::parse(&text)?;
    if !args.via.is_empty() {
        if let Some(wrong) = args.via.iter().find(|address| !is_address(address)) {
            bail!("--via {wrong:?} must be host:port");
        }
        token.addresses.clone_from(&args.via);
    }
    if token.role == Role::Controller {
        eprintln!("note: this token is for a controller; the configuration for one is written by hand");
    }
    let node = match (&args.name, token.name.only()) {
        (Some(name), _) => name.clone(),
        (None, Some(only)) => only,
        (None, None) => host_name().context("cannot use this machine's host name; choose one with --name")?,
    };
    let dir = args.place.identity();
    check_free(&dir, &node, &token)?;
    files::make_dir(&dir)?;
    let key = LocalKey::open_or_make(&dir)?;
    let print =
        key_fingerprint(key.public()).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    eprintln!("joining mesh {} as {} {node}", token.mesh, token.role);
    eprintln!("key: {} (SHA-256 {print})", dir.join("node.key").display());

    let mut waiting = false;
    let watch = |progress| match progress {
        Progress::Asking(address) if !waiting => eprintln!("asking {address}"),
        Progress::Failed(address, why) => eprintln!("  {address}: {why}"),
        Progress::Pending(message) if !waiting => {
            waiting = true;
            eprintln!("waiting: {message}");
        }
        Progress::Asking(_) | Progress::Pending(_) => {}
    };
    let checked = client::join(&token, &node, &key, Duration::from_secs(args.wait), watch).await.map_err(
        |error: JoinError| {
            let advice = error.advice();
            anyhow::Error::new(error).context(format!("this machine has not joined ({advice})"))
        },
    )?;
    files::put(&dir, &checked.chain, &checked.roots)?;
    let credentials = Credentials::load(&dir).context("the new identity does not load")?;
    eprintln!(
        "certified as {}, address {}, until {}; renewed by itself",
        checked.identity.uri(),
        checked.identity.address,
        credentials.expires()
    );
    if token.role == Role::Controller {
        eprintln!("next: set identity_dir = \"{}\" in the controller's configuration", dir.display());
        return Ok(());
    }
    let path = args.place.config();
    if path.exists() {
        eprintln!("configuration {} was there and is kept; check identity_dir in it", path.display());
    } else {
        let text = config_text(&args, &dir, &token);
        Config::parse(&text, &path).context("the configuration would not load")?;
        files::write_new(&path, text.as_bytes(), 0o600)?;
        eprintln!("configuration: {}", path.display());
    }
    eprintln!("next: plexus-node run --config {}", path.display());
    eprintln!("      or, where it is installed as a service: systemctl enable --now plexus-node");
    Ok(())
}

/// From the argument, from standard input, or from the environment.
fn token_text(given: Option<&str>) -> anyhow::Result<String> {
    match given {
        Some("-") => {
            if std::io::stdin().is_terminal() {
                eprintln!("paste the token, then press Enter and Ctrl-D:");
            }
            let mut text = String::new();
            std::io::stdin().take(TOKEN_MAX).read_to_string(&mut text).context("cannot read the token")?;
            Ok(text)
        }
        Some(text) => Ok(text.to_owned()),
        None => std::env::var(TOKEN_VARIABLE).ok().with_context(|| {
            format!("no token: give it as argument, as - on standard input, or in ${TOKEN_VARIABLE}")
        }),
    }
}

/// This machine's name, as a node may have it.
fn host_name() -> anyhow::Result<NodeId> {
    let name = rustix::system::uname();
    let text = name.nodename().to_string_lossy().to_lowercase();
    Ok(text.parse()?)
}

/// A folder of another node is left alone.
fn check_free(dir: &Path, node: &NodeId, token: &Token) -> anyhow::Result<()> {
    if !dir.join(CHAIN_FILE).exists() {
        return Ok(());
    }
    let Ok(found) = Credentials::load(dir) else {
        // A month dark, or cut short: joining again is what puts it right.
        return Ok(());
    };
    let identity = found.identity();
    if identity.node != *node || identity.mesh != token.mesh || identity.role != token.role {
        bail!(
            "{} already holds the identity of {}; choose another --config-dir, or remove it first",
            dir.display(),
            identity.uri()
        );
    }
    Ok(())
}

/// A configuration that just works: identity, places, and the members of the token as neighbours.
fn config_text(args: &Join, identity: &Path, token: &Token) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let path = |path: &Path| quoted(&path.display().to_string());
    let name = if token.role == Role::Hop { "hop" } else { "node" };
    let data = args.data_dir.clone().unwrap_or_else(|| format!("/var/lib/plexus/{name}").into());
    let runtime = args.runtime_dir.clone().unwrap_or_else(|| format!("/run/plexus/{name}").into());
    let socket = args.socket.clone().unwrap_or_else(|| format!("/run/plexus/{name}.sock").into());
    let mut listen: Vec<String> = args.listen.iter().map(|address| quoted(&address.to_string())).collect();
    if listen.is_empty() && token.role == Role::Hop {
        listen.push(quoted("[::]:7323"));
    }
    let mut text = format!(
        "# Written by `plexus-node join`; yours from now on. Every key: docs/reference/config.md\n\n\
         data_dir = {}\nruntime_dir = {}\nsocket = {}\nidentity_dir = {}\n\n[mesh]\nlisten = [{}]\n",
        path(&data),
        path(&runtime),
        path(&socket),
        path(identity),
        listen.join(", "),
    );
    for address in &token.addresses {
        text += &format!("\n[[mesh.peers]]\naddress = {}\n", quoted(address));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use plexus_mesh::enrol::token::Secret;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        join: Join,
    }

    fn token(role: Role) -> Token {
        Token {
            id: [1; 16],
            secret: Secret::new(vec![7; 32]),
            mesh: "demo".parse().unwrap(),
            cluster: "main".parse().unwrap(),
            roots: vec![[9; 32]],
            addresses: vec!["hop.example.org:7323".into(), "[2001:db8::1]:7323".into()],
            role,
            name: "node-*".parse().unwrap(),
            created: "2030-01-01T00:00:00Z".parse().unwrap(),
            expires: "2030-01-01T01:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn the_configuration_that_is_written_loads() {
        let check = |role, args: &[&str]| {
            let args = Line::parse_from([&["join"], args].concat()).join;
            let text = config_text(&args, Path::new("/etc/plexus/node"), &token(role));
            Config::parse(&text, Path::new("/etc/plexus/node.toml")).unwrap()
        };
        let node = check(Role::Execution, &[]);
        assert_eq!(node.mesh.listen, []);
        assert_eq!(node.mesh.peers.len(), 2);
        assert_eq!(node.identity_dir, Path::new("/etc/plexus/node"));
        let hop = check(Role::Hop, &["--data-dir", "/srv/\"odd\" name"]);
        assert_eq!(hop.mesh.listen, ["[::]:7323".parse().unwrap()]);
        assert_eq!(hop.data_dir, Path::new("/srv/\"odd\" name"));
    }
}

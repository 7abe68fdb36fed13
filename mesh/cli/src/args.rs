//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use plexus_proto::id::{ClusterId, MeshName, NodeId, Role};

const AFTER_HELP: &str = "\
Where answers come from, the first that is given:
  --socket PATH or --controller URL
  PLEXUS_SOCKET        path of a daemon's local socket
  CONTROLLER_HOST      URL of a controller, with CONTROLLER_OAUTH_TOKEN, or
                       CONTROLLER_USERNAME and CONTROLLER_PASSWORD;
                       CONTROLLER_VERIFY_SSL=false takes any certificate
  /run/plexus/controller.sock, then /run/plexus/node.sock

Output: -o json prints the documented JSON, one document on a line, with schema_version.
Colour follows the terminal, NO_COLOR and CLICOLOR_FORCE.

Exit codes:
  0  all is well
  1  failed
  2  wrong usage
  3  degraded: an answer came, and says that something is wrong
  4  not found: no such node
  5  denied
  6  unreachable, or no answer in time";

/// Looks into a Plexus mesh, and issues its certificates.
#[derive(Debug, Parser)]
#[command(name = "plexus", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// Form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub(crate) color: When,
    /// Local socket of the daemon to ask.
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "controller")]
    pub(crate) socket: Option<PathBuf>,
    /// Controller to ask, over HTTP: `https://controller.example.org:8043`
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) controller: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows a daemon, its links, and what is wrong; exit code 3 if something is.
    Status,
    /// Lists the nodes that a daemon knows, and the way to each.
    Nodes,
    /// Asks a node for an echo, across the mesh.
    Ping(Ping),
    /// Shows the nodes that packets to a node cross, as they answer.
    Trace(Trace),
    /// Jobs: launch, follow, list, show, cancel; asks a controller as a user.
    #[command(subcommand)]
    Job(crate::commands::job::Job),
    /// The certificate authority of a mesh, in a directory.
    #[command(subcommand)]
    Ca(Ca),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ping {
    /// Name of the node.
    pub(crate) node: NodeId,
    /// How many echoes.
    #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Seconds between two of them.
    #[arg(short, long, default_value = "0.5", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) interval: Duration,
    /// Seconds to wait for each.
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Trace {
    /// Name of the node.
    pub(crate) node: NodeId,
    /// Seconds to wait for each step.
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Makes an authority: a root, and the intermediate of one cluster.
    Init {
        /// Where to keep it; created if missing.
        dir: PathBuf,
        /// Name of the mesh.
        #[arg(long, value_name = "NAME")]
        mesh: MeshName,
        /// Id of the cluster: the controllers that share one database, and their nodes.
        #[arg(long, value_name = "ID")]
        cluster: ClusterId,
    },
    /// Issues a node's certificate, or renews it for the key that is there.
    Issue {
        /// Directory of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// What the node may do: controller, execution or hop.
        #[arg(long)]
        role: Role,
        /// Name of the node, unique in the mesh.
        #[arg(long)]
        name: NodeId,
        /// Where to put ca.pem, node.pem and node.key; created if missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Days that the certificate is valid.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For people, with every column.
    Wide,
    /// For programs.
    Json,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time)
            if time <= Duration::from_secs(60) && (time.is_zero() || time >= Duration::from_millis(1)) =>
        {
            Ok(time)
        }
        _ => Err("must be between 0.001 and 60 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["-1", "61", "0.0001", "x", "NaN", "inf"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

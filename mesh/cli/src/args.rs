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
    /// Tokens with which new machines join; asks a controller over HTTP.
    #[command(subcommand)]
    Token(Token),
    /// Acts on one node of the mesh; asks a controller over HTTP.
    #[command(subcommand)]
    Node(Node),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Makes a token and prints it, with the command to run on the new machine.
    Create {
        /// What the machine may do: execution, hop or controller.
        #[arg(long)]
        role: Role,
        /// Names it is good for: `node-7`, or `*.site-a.example.org`.
        #[arg(long, value_name = "GLOB")]
        name: String,
        /// How long it can be used: 30m, 1h, 2d.
        #[arg(long, default_value = "1h", value_parser = span, value_name = "TIME")]
        ttl: Duration,
        /// How many machines may use it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        uses: u32,
        /// Each machine waits until an operator confirms it.
        #[arg(long)]
        approve: bool,
        /// A member that the machine can reach; may be given several times. Without it, those of the controller's
        /// configuration.
        #[arg(long, value_name = "HOST:PORT")]
        via: Vec<String>,
    },
    /// Lists tokens, and machines that wait for approval.
    List,
    /// Ends a token. Machines that have joined with it stay.
    Revoke {
        /// Its id, as `list` shows it.
        id: u64,
    },
    /// Confirms a machine that waits.
    Approve {
        /// Id of the request, as `list` and the machine itself show it.
        id: u64,
    },
    /// Turns a machine away that waits.
    Reject {
        /// Id of the request.
        id: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Refuses a node's certificate in the whole mesh from now on, and ends its links.
    Revoke {
        /// Name of the node.
        node: NodeId,
        /// Refuse the name, whatever key shows it: it cannot be enrolled again before `restore`.
        #[arg(long)]
        every_key: bool,
    },
    /// Takes a revocation back.
    Restore {
        /// Name of the node.
        node: NodeId,
    },
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
    /// Signs the request of a machine that cannot reach the mesh: `plexus-node csr` makes one.
    Sign {
        /// Directory of the authority.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// What the node may do: controller, execution or hop.
        #[arg(long)]
        role: Role,
        /// The request, in PEM form. It carries the name.
        request: PathBuf,
        /// Where to put ca.pem and node.pem; created if missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Days that the certificate is valid.
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Makes another intermediate, for a further controller or a further cluster, with addresses of its own. Needs
    /// the root's key.
    Intermediate {
        /// Directory of the root.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Id of the cluster.
        #[arg(long, value_name = "ID")]
        cluster: ClusterId,
        /// Where to put it: the ca_dir of that controller.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
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

/// A span as people write it: a number and s, m, h or d.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a number and s, m, h or d: 30m, 1h, 2d".to_owned();
    let (number, unit) = text.split_at(text.len() - text.chars().last().map_or(0, char::len_utf8));
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(24 * 3600),
        _ => None,
    };
    let span = seconds.and_then(|seconds| number.checked_mul(seconds)).ok_or_else(wrong)?;
    match span {
        1..=2_592_000 => Ok(Duration::from_secs(span)),
        _ => Err("must be between a second and 30 days".to_owned()),
    }
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
    fn spans_have_a_unit_and_a_bound() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("2d"), Ok(Duration::from_secs(2 * 24 * 3600)));
        for bad in ["", "1", "h", "1w", "0s", "31d", "-1h", "1 h", "99999999999999999999d", "1ä"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["-1", "61", "0.0001", "x", "NaN", "inf"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

//! Verbs that change things, and their arguments.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use plexus_proto::id::{ClusterId, MeshName, NodeId, Role};

use super::span;

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Makes a token; it is shown once.
    #[command(after_help = "\
Examples:
  plexus token create --role execution
  plexus token create --role execution --name 'site-a-*' --ttl 8h --uses 20
  plexus token create --role hop --approve")]
    Create {
        /// What nodes that join with it may do: controller, execution or hop.
        #[arg(long)]
        role: Role,
        /// Names that they may take; * stands for any characters.
        #[arg(long, value_name = "GLOB", default_value = "*")]
        name: String,
        /// How long it may be used, such as 1h.
        #[arg(long, default_value = "1h", value_parser = span, value_name = "TIME")]
        ttl: Duration,
        /// How many nodes may join with it.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        uses: u32,
        /// Nodes wait until an operator approves them.
        #[arg(long)]
        approve: bool,
        /// A member that the node can reach; may be given several times. Without it, those of the controller.
        #[arg(long, value_name = "HOST:PORT")]
        via: Vec<String>,
    },
    /// Lists tokens that may still be used; their secrets are not shown.
    #[command(after_help = "\
Examples:
  plexus token list")]
    List,
    /// Makes a token useless; nodes that joined with it stay.
    #[command(after_help = "\
Examples:
  plexus token revoke 4f1c")]
    Revoke {
        /// Its id, as the list shows it.
        id: String,
    },
    /// Lists nodes that have asked to join: those that wait for approval first.
    #[command(after_help = "\
Examples:
  plexus token requests")]
    Requests,
    /// Lets a node join that waits for approval.
    #[command(after_help = "\
Examples:
  plexus token approve 7")]
    Approve {
        /// Id of the request, as requests and the node itself show it.
        id: u64,
    },
    /// Turns a node away that waits for approval.
    #[command(after_help = "\
Examples:
  plexus token reject 7")]
    Reject {
        /// Id of the request.
        id: u64,
    },
}

/// A step from one root to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RolloverStep {
    /// Make a new root that everybody comes to trust.
    Introduce,
    /// Issue under the new root.
    Switch,
    /// Trust the new root alone.
    Retire,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Makes an authority: a root, and the intermediate of one cluster.
    #[command(after_help = "\
Examples:
  plexus ca init ca --mesh example.org --cluster main")]
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
    /// Signs the request of a machine that cannot reach the mesh: plexus-node csr makes one.
    #[command(after_help = "\
Examples:
  plexus ca sign --ca ca --role execution node-7.csr --out node-7")]
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
    /// Makes another intermediate, for a further controller or cluster, with addresses of its own. Needs the root's key.
    #[command(after_help = "\
Examples:
  plexus ca intermediate --ca ca --cluster main --out ca-2")]
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
    /// Goes from one root to the next in three steps, without an outage. Needs the root's key for the first two.
    #[command(after_help = "\
Examples:
  plexus ca rollover introduce --ca ca
  plexus ca rollover switch --ca ca ca-2
  plexus ca rollover retire --ca ca ca-2")]
    Rollover {
        /// introduce: make a new root that all come to trust; switch: issue under it; retire: trust it alone.
        #[arg(value_enum)]
        step: RolloverStep,
        /// Directory of the root.
        #[arg(long, value_name = "DIR")]
        ca: PathBuf,
        /// Directories of further intermediates, as plexus ca intermediate made them.
        #[arg(value_name = "DIR")]
        others: Vec<PathBuf>,
    },
    /// Issues a node's certificate, or renews it for the key that is there.
    #[command(after_help = "\
Examples:
  plexus ca issue --ca ca --role hop --name hop-1 --out hop-1
  plexus ca issue --ca ca --role execution --name node-7 --out node-7 --days 90")]
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

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Gives a node no new work; what runs there goes on.
    #[command(after_help = "\
Through a controller any node can be named; at its own socket root leaves the name out.

Examples:
  plexus node cordon node-7 --reason 'new disk'
  sudo plexus --socket /run/plexus/node.sock node cordon")]
    Cordon {
        /// Name of the node; the daemon that is asked if left out.
        node: Option<NodeId>,
        /// For people who wonder why.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Gives a node work again.
    #[command(after_help = "\
Examples:
  plexus node uncordon node-7")]
    Uncordon {
        /// Name of the node; the daemon that is asked if left out.
        node: Option<NodeId>,
    },
    /// Gives a node no new work and waits until nothing runs there any more; exit code 3 if something still does.
    #[command(after_help = "\
Examples:
  plexus node drain node-7
  plexus node drain node-7 --deadline 2h --reason 'kernel update'")]
    Drain {
        /// Name of the node; the daemon that is asked if left out.
        node: Option<NodeId>,
        /// How long to wait, such as 30m; for ever if left out.
        #[arg(long, value_parser = span, value_name = "TIME")]
        deadline: Option<Duration>,
        /// For people who wonder why.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Takes a node's certificate from it, in the whole mesh and at once. It has to join anew to come back.
    #[command(after_help = "\
Examples:
  plexus node revoke node-7 --reason 'disk was stolen'")]
    Revoke {
        /// Name of the node.
        node: NodeId,
        /// For people who wonder why.
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// The execution environments on this node. For root at its socket.
    #[command(subcommand)]
    Image(Image),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Lists the images that are there.
    #[command(after_help = "\
Examples:
  sudo plexus node image list")]
    List,
    /// Says whether units could start here, from an image if one is named, and what is missing.
    #[command(after_help = "\
Examples:
  sudo plexus node image check
  sudo plexus node image check quay.io/ansible/awx-ee:latest")]
    Check {
        /// Name of the image.
        image: Option<String>,
    },
    /// Pulls an image.
    #[command(after_help = "\
Examples:
  sudo plexus node image pull quay.io/ansible/awx-ee:latest")]
    Pull {
        /// Name of the image.
        image: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Work {
    /// Lists jobs, the latest first; those that are not over unless told otherwise.
    #[command(after_help = "\
Examples:
  plexus work list
  plexus work list --all --limit 100
  plexus work list --node node-7 -o name")]
    List {
        /// Also those that are over.
        #[arg(long)]
        all: bool,
        /// Only those on this node.
        #[arg(long)]
        node: Option<NodeId>,
        /// How many at most.
        #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
        /// What nodes hold and this controller does not know: it came after the backup that its database was restored from.
        #[arg(long, conflicts_with_all = ["all", "node", "limit"])]
        stray: bool,
    },
    /// Takes a stray unit over as a job of this controller: it runs on, and its output is stored.
    #[command(after_help = "\
Examples:
  plexus work list --stray
  plexus work adopt 019aa2b4-7c1e-7e0a-8f00-3d1f0c9a5e11")]
    Adopt {
        /// The unit, as the list shows it.
        #[arg(value_parser = unit)]
        unit: String,
    },
    /// Ends a stray unit; what it had printed is stored with a job that says so.
    #[command(after_help = "\
Examples:
  plexus work list --stray
  plexus work discard 019aa2b4-7c1e-7e0a-8f00-3d1f0c9a5e11")]
    Discard {
        /// The unit, as the list shows it.
        #[arg(value_parser = unit)]
        unit: String,
    },
    /// Shows one job: what it is, where it runs, why it ended.
    #[command(after_help = "\
Examples:
  plexus work status 42")]
    Status {
        /// Number of the job.
        id: u64,
    },
    /// Prints a job's output.
    #[command(after_help = "\
Examples:
  plexus work results 42
  plexus work results 42 --follow    until it is over; the exit code tells whether it was successful")]
    Results {
        /// Number of the job.
        id: u64,
        /// Goes on with what it prints, until it is over.
        #[arg(short, long)]
        follow: bool,
    },
    /// Has a job end. It is canceled once no process of it is left, not before.
    #[command(after_help = "\
Examples:
  plexus work cancel 42")]
    Cancel {
        /// Number of the job.
        id: u64,
    },
    /// Gives up on a job whose node does not come back. Its process may still live there; it is ended if the node returns.
    #[command(after_help = "\
Examples:
  plexus work abandon 42")]
    Abandon {
        /// Number of the job.
        id: u64,
    },
}

/// A unit's id, as lists show it.
fn unit(text: &str) -> Result<String, String> {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = text.bytes().filter(|&byte| byte == b'-').count();
    if text.len() == 36 && digits == 32 && dashes == 4 {
        return Ok(text.to_owned());
    }
    Err("must be a unit such as 019aa2b4-7c1e-7e0a-8f00-3d1f0c9a5e11; plexus work list --stray shows them"
        .to_owned())
}

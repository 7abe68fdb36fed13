//! Verbs that look, and their arguments.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use plexus_proto::id::NodeId;

use super::{seconds, span};

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
    /// How often each step is measured.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) count: u32,
    /// Seconds to wait for each step.
    #[arg(long, default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Netcheck {
    /// Node that tries, and node that is tried; with one name the asked daemon tries.
    #[arg(value_name = "NODE", num_args = 1..=2, required = true)]
    pub(crate) nodes: Vec<NodeId>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Only what happened since: a time ago such as 10m, or a time such as 2026-11-20T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Since>,
    /// Goes on with what happens, until Ctrl-C.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// A point in time, as people say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    Ago(Duration),
    At(Timestamp),
}

impl Since {
    pub(crate) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(time) => now.checked_sub(time).unwrap_or(Timestamp::UNIX_EPOCH),
            Self::At(time) => time,
        }
    }
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (span(text), text.parse()) {
            (Ok(ago), _) => Ok(Self::Ago(ago)),
            (_, Ok(at)) => Ok(Self::At(at)),
            _ => Err("must be a time ago such as 10m, or a time such as 2026-11-20T12:00:00Z".to_owned()),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Forward {
    /// Port to open here, or address and port.
    #[arg(value_name = "[ADDRESS:]PORT", value_parser = listen)]
    pub(crate) listen: SocketAddr,
    /// Node that connects, and host and port as that node sees them.
    #[arg(value_name = "NODE:HOST:PORT")]
    pub(crate) target: Target,
    /// Connections at a time; further ones wait.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) connections: u16,
}

/// Where forwarded connections go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) node: NodeId,
    /// `host:port`, an IPv6 address in brackets.
    pub(crate) address: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "must be NODE:HOST:PORT, such as node-7:127.0.0.1:80".to_owned();
        let (node, address) = text.split_once(':').ok_or_else(wrong)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let bad = host.is_empty() || (host.contains(':') && bracketed.is_none());
        if bad || !port.parse::<u16>().is_ok_and(|port| port != 0) {
            return Err(wrong());
        }
        let node = node.parse().map_err(|error: plexus_proto::id::ParseError| error.to_string())?;
        Ok(Self { node, address: address.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.address)
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    let local = text.parse::<u16>().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    local
        .or_else(|_| text.parse())
        .map_err(|_| "must be PORT or ADDRESS:PORT, such as 127.0.0.1:8080".to_owned())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// Configuration of the daemon; those in /etc/plexus that are there if left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_node_host_and_port() {
        let check = |text: &str, node: &str, address: &str| {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.node.as_str(), target.address.as_str()), (node, address));
            assert_eq!(target.to_string(), text);
        };
        check("node-7:127.0.0.1:80", "node-7", "127.0.0.1:80");
        check("node-7:[::1]:22", "node-7", "[::1]:22");
        check("n:www.example.org:443", "n", "www.example.org:443");
        for bad in ["node-7", "node-7:80", "node-7::80", "node-7:a:0", "node-7:::1:22", "Node:a:1", "n:a:x"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_open_on_loopback_unless_told_otherwise() {
        assert_eq!(listen("8080").unwrap().to_string(), "127.0.0.1:8080");
        assert_eq!(listen("[::]:8080").unwrap().to_string(), "[::]:8080");
        assert!(listen("localhost:80").is_err() && listen("70000").is_err());
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        let now: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<Since>().unwrap().at(now).to_string();
        assert_eq!(at("10m"), "2026-11-20T11:50:00Z");
        assert_eq!(at("2026-11-20T11:00:00Z"), "2026-11-20T11:00:00Z");
        assert!("yesterday".parse::<Since>().is_err());
    }
}

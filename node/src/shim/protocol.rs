//! What agent and shim say to each other: length-prefixed frames on a unix socket.
//!
//! The shim's standard input is the first connection; later agents come through the socket in its directory. An
//! upgraded agent meets shims of the version before it: fields are only ever added.

use std::collections::BTreeMap;
use std::fmt;

use plexus_proto::work::Finished;
use prost::bytes::Bytes;
use prost::{Message, Oneof};

/// Version of this conversation.
pub const VERSION: u32 = 4;
/// Longest frame: the worker's standard input travels in `Launch`.
pub const FRAME_MAX: usize = plexus_proto::frame::PRIVATE_FRAME_MAX;
/// Name of the shim's socket in the unit's runtime directory, its working directory.
pub const SOCKET: &str = "shim.sock";

/// Agent to shim.
#[derive(Clone, PartialEq, Message)]
pub struct ToShim {
    /// What it says.
    #[prost(oneof = "Order", tags = "1, 2, 3, 30, 31, 32")]
    pub order: Option<Order>,
}

/// What an agent says.
#[derive(Clone, PartialEq, Oneof)]
pub enum Order {
    /// Start the worker. Comes once, on the first connection.
    #[prost(message, boxed, tag = "1")]
    Launch(Box<Launch>),
    /// End the worker. Each one signals again.
    #[prost(message, tag = "2")]
    Cancel(Cancel),
    /// Acknowledged segments were deleted: room for a shim that waits at its quota.
    #[prost(message, tag = "3")]
    Trimmed(Trimmed),
    /// The unit's owner was heard of just now. Since version 2; an older shim passes it over.
    #[prost(message, tag = "30")]
    Heard(Heard),
    /// Start the worker ahead of its unit; the launch, with its input, comes later. Before a launch only, on the first
    /// connection. Since version 3.
    #[prost(message, boxed, tag = "31")]
    Warm(Box<Warm>),
    /// The spool's quota from now on, in place of the launch's. Since version 4; an older shim keeps what it has.
    #[prost(message, tag = "32")]
    Quota(Quota),
}

/// See [`Order::Quota`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Quota {
    /// Bytes the spool may hold.
    #[prost(uint64, tag = "1")]
    pub bytes: u64,
    /// It is as small as that because all spools of the node are full together.
    #[prost(bool, tag = "2")]
    pub shared: bool,
}

/// See [`Order::Warm`]. Nothing in it is secret: no unit is known yet.
#[derive(Clone, PartialEq, Message)]
pub struct Warm {
    /// Program and arguments.
    #[prost(string, repeated, tag = "1")]
    pub argv: Vec<String>,
    /// The whole environment.
    #[prost(btree_map = "string, string", tag = "2")]
    pub env: BTreeMap<String, String>,
    /// Working directory of the worker's client.
    #[prost(string, tag = "3")]
    pub cwd: String,
    /// Ends the container.
    #[prost(string, repeated, tag = "4")]
    pub end_argv: Vec<String>,
}

/// See [`Order::Cancel`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Cancel {
    /// End the whole tree at once, without grace.
    #[prost(bool, tag = "1")]
    pub now: bool,
}

/// See [`Order::Trimmed`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Trimmed {}

/// See [`Order::Heard`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Heard {}

/// Everything a shim needs. Travels through the socket only: it holds the key, the worker's input and its
/// environment.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct Launch {
    /// Version the agent speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub unit: Bytes,
    /// From 1.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// Where records go.
    #[prost(string, tag = "4")]
    pub spool_dir: String,
    /// 32 bytes.
    #[prost(bytes = "bytes", tag = "5")]
    pub spool_key: Bytes,
    /// Goes into the segments' headers.
    #[prost(fixed64, tag = "6")]
    pub spool_key_id: u64,
    /// Bytes the spool may hold before the shim stops reading the worker's output.
    #[prost(uint64, tag = "7")]
    pub spool_quota: u64,
    /// Program and arguments.
    #[prost(string, repeated, tag = "8")]
    pub argv: Vec<String>,
    /// The whole environment.
    #[prost(btree_map = "string, string", tag = "9")]
    pub env: BTreeMap<String, String>,
    /// Working directory of the worker.
    #[prost(string, tag = "10")]
    pub cwd: String,
    /// What the worker reads.
    #[prost(bytes = "bytes", tag = "11")]
    pub stdin: Bytes,
    /// Seconds between SIGTERM and the end of the tree.
    #[prost(uint32, tag = "12")]
    pub grace_seconds: u32,
    /// Hard limit on run time; 0: none.
    #[prost(uint64, tag = "13")]
    pub timeout_seconds: u64,
    /// Ends what the process tree does not hold, the container; empty: nothing to do.
    #[prost(string, repeated, tag = "14")]
    pub end_argv: Vec<String>,
    /// Whose exit codes these are: "podman" or "process".
    #[prost(string, tag = "15")]
    pub runtime: String,
    /// Image and pull policy, for the explanation of a failure.
    #[prost(string, tag = "16")]
    pub image: String,
    /// A `PullPolicy`.
    #[prost(int32, tag = "17")]
    pub pull: i32,
    /// The private data directory, removed by the shim at the end; empty: that is left to the agent.
    #[prost(string, tag = "18")]
    pub private_dir: String,
    /// The tree is ended when nothing was heard of the owner for this long; 0: never. Since version 2.
    #[prost(uint64, tag = "30")]
    pub owner_deadline_seconds: u64,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch").field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// Shim to agent.
#[derive(Clone, PartialEq, Message)]
pub struct FromShim {
    /// What it says.
    #[prost(oneof = "Report", tags = "1, 2, 3, 4, 30, 31")]
    pub report: Option<Report>,
}

/// What a shim says.
#[derive(Clone, PartialEq, Oneof)]
pub enum Report {
    /// First on every connection.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// The worker runs.
    #[prost(message, tag = "2")]
    Started(Started),
    /// The spool holds this many records; only the latest number counts.
    #[prost(message, tag = "3")]
    Written(Written),
    /// The end record is in the spool, synced. The shim goes.
    #[prost(message, tag = "4")]
    Ended(Ended),
    /// The worker that was started ahead runs in its container: a unit may come. Since version 3.
    #[prost(message, tag = "30")]
    Ready(Ready),
    /// The worker's output is held, or is not any more. Since version 4.
    #[prost(message, tag = "31")]
    Held(Held),
}

/// See [`Report::Held`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Held {
    /// Why, for people; empty: it is not held.
    #[prost(string, tag = "1")]
    pub why: String,
}

/// See [`Report::Ready`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Ready {}

/// See [`Report::Hello`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Hello {
    /// Version the shim speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Process id of the shim.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// See [`Report::Started`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Started {
    /// Process id of the worker.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
}

/// See [`Report::Written`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Written {
    /// Number of the last record.
    #[prost(uint64, tag = "1")]
    pub records: u64,
    /// Bytes of the spool; 0 from a shim before version 4.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// See [`Report::Ended`].
#[derive(Clone, PartialEq, Message)]
pub struct Ended {
    /// How.
    #[prost(message, optional, tag = "1")]
    pub finished: Option<Finished>,
    /// Number of the end record.
    #[prost(uint64, tag = "2")]
    pub records: u64,
}

/// Wraps an order for the wire.
pub fn order(order: Order) -> Bytes {
    plexus_proto::frame::to_bytes(&ToShim { order: Some(order) })
}

/// Wraps a report for the wire.
pub fn report(report: Report) -> Bytes {
    plexus_proto::frame::to_bytes(&FromShim { report: Some(report) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_of_a_launch_shows_nothing_secret() {
        let launch = Launch {
            spool_key: Bytes::from_static(b"canary-key"),
            stdin: Bytes::from_static(b"canary-stdin"),
            env: [("A".to_owned(), "canary-env".to_owned())].into(),
            ..Launch::default()
        };
        let message = ToShim { order: Some(Order::Launch(Box::new(launch))) };
        assert!(!format!("{message:?}").contains("canary"));
    }

    /// Version 1 as it was: what a shim of then understands of this build's orders.
    mod version_1 {
        use super::super::{Cancel, Trimmed};
        use prost::{Message, Oneof};

        #[derive(Clone, PartialEq, Message)]
        pub(super) struct ToShim {
            #[prost(oneof = "Order", tags = "2, 3")]
            pub order: Option<Order>,
        }

        #[derive(Clone, PartialEq, Oneof)]
        pub(super) enum Order {
            #[prost(message, tag = "2")]
            Cancel(Cancel),
            #[prost(message, tag = "3")]
            Trimmed(Trimmed),
        }
    }

    #[test]
    fn a_shim_of_version_1_takes_the_orders_it_knows_and_passes_the_rest_over() {
        let as_old = |order: Order| {
            let bytes = ToShim { order: Some(order) }.encode_to_vec();
            version_1::ToShim::decode(bytes.as_slice()).unwrap().order
        };
        let cancel = Cancel { now: true };
        assert_eq!(as_old(Order::Cancel(cancel)), Some(version_1::Order::Cancel(cancel)));
        assert_eq!(as_old(Order::Trimmed(Trimmed {})), Some(version_1::Order::Trimmed(Trimmed {})));
        assert_eq!(as_old(Order::Heard(Heard {})), None);
    }

    #[test]
    fn what_a_shim_of_version_1_said_is_still_understood() {
        // Bytes saved from a shim of version 1: hello, started, written, ended.
        let saved: [(&[u8], Report); 4] = [
            (&[10, 4, 8, 1, 16, 7], Report::Hello(Hello { version: 1, pid: 7 })),
            (&[18, 2, 8, 9], Report::Started(Started { pid: 9 })),
            (&[26, 2, 8, 3], Report::Written(Written { records: 3, bytes: 0 })),
            (
                &[34, 8, 10, 4, 8, 1, 16, 0, 16, 4],
                Report::Ended(Ended {
                    finished: Some(Finished { outcome: 1, exit_code: Some(0), ..Finished::default() }),
                    records: 4,
                }),
            ),
        ];
        for (bytes, meant) in saved {
            assert_eq!(FromShim::decode(bytes).unwrap().report, Some(meant));
        }
    }
}

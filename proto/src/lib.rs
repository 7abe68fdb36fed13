//! Words on the wire.
//!
//! Four conversations, one file each under `proto/plexus/v1/`:
//!
//! * [`link`]: two neighbours on the control stream of their link — hello, announcements, probes.
//! * [`work`]: a controller and an execution node, end to end — verbs of work units over gRPC, payload
//!   and records as framed messages ([`frame`]) on streams of their own.
//! * [`enrol`]: a machine that wants a certificate, or the next one, and a controller that issues it.
//! * [`local`]: a person and the daemon on their machine.
//!
//! Between neighbours travel overlay packets ([`packet`]), opaque but for a ten-byte header. Every
//! conversation opens with the versions each side speaks ([`version`]).
//!
//! Records of a unit travel sealed ([`seal`]).
//!
//! This crate knows no socket, clock, disk or database. Messages convert to a crate's own types at its door;
//! a wire type is never a database row or an in-memory state.

pub mod frame;
pub mod id;
pub mod packet;
pub mod seal;
pub mod version;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated code; documented in the .proto files"
)]
mod generated {
    tonic::include_proto!("plexus.v1");
}

/// Messages of `link.proto`: what neighbours say to each other.
pub mod link {
    pub use crate::generated::link_message::Kind as LinkMessageKind;
    pub use crate::generated::{
        AnnouncedLink, Announcement, Ask, Digest, DigestEntry, Hello, LinkClose, LinkMessage, Probe,
        ProbeReply, SealedReady, SignedAnnouncement, StreamOpen, Told, ToldRoute, Want,
    };
}

/// Messages of `work.proto`: units, payload, records.
pub mod work {
    pub use crate::generated::collect_message::Kind as CollectMessageKind;
    pub use crate::generated::payload_message::Kind as PayloadMessageKind;
    pub use crate::generated::record::Kind as RecordKind;
    pub use crate::generated::record_message::Kind as RecordMessageKind;
    pub use crate::generated::tree_entry::Kind as TreeEntryKind;
    pub use crate::generated::unit_reply::Result as UnitReplyResult;
    pub use crate::generated::unit_status::State as UnitStatusState;
    pub use crate::generated::work_client::WorkClient;
    pub use crate::generated::work_server::{Work, WorkServer};
    pub use crate::generated::{
        AbandonRequest, Ack, Attach, Attached, CancelRequest, ChunkBatch, CollectMessage, CollectOpen,
        CollectTree, Directory, EndRecord, FileContent, Finished, ForgetRequest, Fragment, ImageInfo,
        ImageReply, ImageRequest, ImagesReply, ImagesRequest, InfoRequest, ListReply, ListRequest,
        LostRecord, ManifestPart, NodeInfo, Outcome, Output, OwnerEpoch, PayloadDone, PayloadMessage,
        PayloadNeed, PayloadOpen, PayloadProgress, Pending, Preparing, PrivateBlock, PrivateFile, PullPolicy,
        PullProgress, Record, RecordMessage, Refusal, RefusalCode, RegistryAuth, Running, SealedRecord,
        Starting, StatusRequest, Stream, SubmitRequest, TidyImagesReply, TidyImagesRequest, TreeEntry,
        TreeManifest, TreeRef, UnitRef, UnitReply, UnitSpec, UnitStatus,
    };
}

/// Messages of `enrol.proto`: how a machine gets its certificate and keeps it.
pub mod enrol {
    pub use crate::generated::enrol_answer::Kind as EnrolAnswerKind;
    pub use crate::generated::enrol_call::Kind as EnrolCallKind;
    pub use crate::generated::{
        EnrolAnswer, EnrolCall, EnrolPending, EnrolRefusal, EnrolRefusalCode, EnrolToken, Issue, JoinCall,
        NextCertificate, RenewCall, Revocation, Revocations, SignedIssue, SignedRevocations,
    };
}

/// Messages of `forward.proto`: a TCP connection on a stream.
pub mod forward {
    pub use crate::generated::{ForwardOpen, ForwardOpened};
}

/// Messages of `local.proto`: the door of a daemon for the people of its machine.
pub mod local {
    pub use crate::generated::local_client::LocalClient;
    pub use crate::generated::local_forward::Kind as LocalForwardKind;
    pub use crate::generated::local_query::Kind as LocalQueryKind;
    pub use crate::generated::local_server::{Local, LocalServer};
    pub use crate::generated::{
        ActQuery, EventsQuery, LinksQuery, LocalAnswer, LocalForward, LocalForwardEnd, LocalForwardOpen,
        LocalQuery, NetcheckQuery, NodesQuery, PingQuery, RoutesQuery, StatusQuery, TraceQuery,
    };
}

/// What may be secret shows nothing of itself.
macro_rules! hidden {
    ($($type:ident),*) => {$(
        impl std::fmt::Debug for generated::$type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($type), "(..)"))
            }
        }
    )*};
}

hidden!(PrivateBlock, PrivateFile, RegistryAuth);

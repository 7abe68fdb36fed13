//! Why a certificate names nobody.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use plexus_proto::id::{Address, ClusterId, MeshName, ParseError};

/// Why credentials cannot be used, or a peer's certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing or unreadable.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file holds no PEM of the kind that belongs there.
    #[error("{path} holds no {wanted} in PEM form")]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        wanted: &'static str,
    },
    /// A private key that is not Ed25519 in PKCS#8.
    #[error("{path} is not an Ed25519 private key")]
    KeyKind {
        /// The file.
        path: PathBuf,
    },
    /// The private key belongs to another certificate.
    #[error("private key {key} does not belong to certificate {certificate}")]
    KeyMismatch {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
    },
    /// Credentials found on disk that are not valid.
    #[error("certificate {path} is not valid")]
    Own {
        /// File of the certificate.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<Error>,
    },
    /// The peer showed no certificate.
    #[error("peer showed no certificate")]
    NoCertificate,
    /// Anything but leaf and intermediate.
    #[error("chain must be a leaf and its intermediate, not {0} certificates")]
    ChainLength(usize),
    /// The chain does not end at a root that we trust.
    #[error("certificate of {subject} was issued by another authority")]
    OtherAuthority {
        /// Whom the certificate claims to name.
        subject: String,
    },
    /// Past its time.
    #[error("certificate of {subject} expired at {not_after}")]
    Expired {
        /// Whom the certificate claims to name.
        subject: String,
        /// End of its validity.
        not_after: Timestamp,
    },
    /// Taken back by the controllers of its cluster.
    #[error("certificate of {subject} was revoked at {at}")]
    Revoked {
        /// The identity in the leaf.
        subject: String,
        /// When.
        at: Timestamp,
    },
    /// A renewed certificate that is for somebody else or another key.
    #[error("the certificate for {subject} is not for this node's key and name")]
    NotOurs {
        /// The identity in the leaf.
        subject: String,
    },
    /// Before its time: the certificate is new, or a clock is behind.
    #[error("certificate of {subject} is not valid before {not_before}; check the clocks")]
    NotYetValid {
        /// Whom the certificate claims to name.
        subject: String,
        /// Begin of its validity.
        not_before: Timestamp,
    },
    /// Certified, but by an intermediate of another cluster.
    #[error(
        "certificate of {subject} claims cluster {claimed}, its intermediate is certified for {certified}"
    )]
    OtherCluster {
        /// The identity in the leaf.
        subject: String,
        /// Cluster in the leaf.
        claimed: ClusterId,
        /// Cluster in the intermediate.
        certified: ClusterId,
    },
    /// A mesh other than ours, or than the intermediate's.
    #[error("certificate of {subject} belongs to mesh {claimed}, not {expected}")]
    OtherMesh {
        /// The identity in the leaf.
        subject: String,
        /// Mesh in the leaf.
        claimed: MeshName,
        /// Mesh that was expected.
        expected: MeshName,
    },
    /// Not exactly one URI name.
    #[error("certificate must carry exactly one URI name, it carries {0}")]
    NoIdentity(usize),
    /// The URI name is not `spiffe://<mesh>/<cluster>/<role>/<node>`.
    #[error("certificate names {uri:?}, which is not spiffe://<mesh>/<cluster>/<role>/<node>")]
    NotAnIdentity {
        /// The name as found, cut to 300 characters.
        uri: String,
        /// The part that does not parse, when the shape is right.
        #[source]
        source: Option<ParseError>,
    },
    /// The leaf lacks its address, or the intermediate its cluster and range.
    #[error("{0} lacks the extension that certifies its {1}")]
    NoExtension(&'static str, &'static str),
    /// The leaf's address is outside what its intermediate may give.
    #[error("address {address} of {subject} is outside its intermediate's range {first} to {last}")]
    AddressOutOfRange {
        /// The identity in the leaf.
        subject: String,
        /// Address in the leaf.
        address: Address,
        /// First address of the range.
        first: Address,
        /// Last address of the range.
        last: Address,
    },
    /// Not usable for both ends of a connection.
    #[error("certificate of {subject} is not for client and server use")]
    Usage {
        /// Whom the certificate claims to name.
        subject: String,
    },
    /// Any other fault that the path check found.
    #[error("certificate of {subject} is not acceptable")]
    Invalid {
        /// Whom the certificate claims to name.
        subject: String,
        /// What the path check said.
        #[source]
        source: webpki::Error,
    },
    /// A signature that its certificate's key did not make.
    #[error("signature was not made by the key of this certificate")]
    Signature,
}

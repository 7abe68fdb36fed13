//! How a machine gets its certificate, and its next one.
//!
//! ```text
//!  new machine                    any member                       controller
//!  plexus-node join TOKEN ──▶ enrolment door ── mesh service ──▶ desk: token redeemed, key certified
//!    key made here             bounded, forwards    `enrol`        once in the database
//! ```
//!
//! A call proves itself: a [`JoinCall`](plexus_proto::enrol::JoinCall) by the HMAC of its request under the token's
//! secret, which never travels; a [`RenewCall`](plexus_proto::enrol::RenewCall) by a signature of the key that is to
//! be certified again. So a member passes calls on without being able to redeem anything itself, and an answer is
//! signed by a controller, so that nobody on the way can slip in other roots.
//!
//! The door is on the UDP port of links. A caller has no certificate, so it is told from a neighbour by the first
//! bytes of its first connection id, and never reaches the code of links: there, certificates stay mandatory.
//!
//! This module knows no database: what a token is worth, a [`Desk`] decides.

pub mod client;
pub mod files;
pub mod request;
pub mod token;

mod door;
mod issue;
pub(crate) mod renew;

use std::pin::Pin;

use plexus_proto::enrol::{EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolRefusal, EnrolRefusalCode};
use plexus_proto::id::{Identity, Role};

pub(crate) use door::{Front, is_enrolment};
pub use issue::{Checked, IssueError, call_digest, check, sign};
pub use renew::renewal_message;
pub use request::{LocalKey, Request};
pub use token::{Token, TokenError};

use crate::service::Allow;

/// Mesh service on which controllers take calls that members pass on.
pub const SERVICE: &str = "enrol";
/// Any certified member may pass a call on: it proves itself.
pub(crate) const FORWARDERS: Allow =
    Allow { roles: &[Role::Controller, Role::Execution, Role::Hop], same_cluster: false };
/// ALPN of the door.
pub(crate) const ALPN: &[u8] = b"plexus-enrol/1";
/// How the first connection id of a caller begins.
pub(crate) const DOOR_MARK: &[u8; 8] = b"plx-enr1";

/// Who decides on calls: a controller with an authority.
pub trait Desk: Send + Sync + std::fmt::Debug + 'static {
    /// Answers one call. `via` is the certified member that passed it on; `None` if it came in at our own door.
    ///
    /// The same call again gives the same answer; a call that was answered and whose answer was lost is simply
    /// made again.
    fn answer(
        &self,
        call: EnrolCall,
        via: Option<Identity>,
    ) -> Pin<Box<dyn Future<Output = EnrolAnswer> + Send + '_>>;
}

/// A refusal as an answer.
pub fn refusal(code: EnrolRefusalCode, message: impl Into<String>) -> EnrolAnswer {
    let refused = EnrolRefusal { code: code.into(), message: message.into() };
    EnrolAnswer { kind: Some(EnrolAnswerKind::Refused(refused)) }
}

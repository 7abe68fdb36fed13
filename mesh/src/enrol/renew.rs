//! Renewal: a node asks for its next certificate when two thirds of the present one's life are over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use plexus_proto::enrol::{EnrolAnswerKind, EnrolCall, EnrolCallKind, RenewCall};
use rustls_pki_types::UnixTime;
use tracing::{info, warn};

use super::files;
use super::issue::{self, IssueError};
use crate::driver::Event;
use crate::identity::{self, Credentials};
use crate::node::{Node, random_u64};

/// In front of the nonce, so that this signature is good for nothing else.
const CONTEXT: &[u8] = b"plexus renew v1\0";
/// Validity begins this much before a certificate is made.
const BACKDATE: SignedDuration = SignedDuration::from_secs(5 * 60);
/// First wait after a renewal that failed, and the longest.
const AGAIN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(15 * 60);
/// Longest sleep: a clock that was put forward is noticed after this.
const NAP: Duration = Duration::from_secs(60);

/// A renewal that did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("refused: {0}")]
    Refused(String),
    #[error("the answer cannot be trusted")]
    Answer(#[from] IssueError),
    #[error("the certificate cannot be used")]
    Certificate(#[from] identity::Error),
    #[error("the certificate cannot be kept")]
    Keep(#[from] files::Error),
    #[error("no answer of use")]
    Nothing,
}

/// What the key of a certificate signs to renew it.
pub fn renewal_message(nonce: &[u8]) -> Vec<u8> {
    [CONTEXT, nonce].concat()
}

/// When to renew a certificate of this life.
fn due(issued: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(issued);
    let life = if life > BACKDATE { life - BACKDATE } else { life };
    expires.checked_sub(life / 3).unwrap_or(expires)
}

/// A call to renew the certificate that `credentials` show now.
pub(crate) fn call(credentials: &Credentials) -> EnrolCall {
    let nonce = [random_u64().to_be_bytes(), random_u64().to_be_bytes()].concat();
    let renew = RenewCall {
        signature: credentials.sign(&renewal_message(&nonce)).into(),
        nonce: nonce.into(),
        chain: credentials.chain().iter().map(|der| der.to_vec().into()).collect(),
    };
    EnrolCall { kind: Some(EnrolCallKind::Renew(renew)) }
}

/// Renews whenever it is due, until the node is cancelled; what is issued is kept in `dir` and shown from then on.
pub(crate) async fn keep_certified(node: Arc<Node>, dir: PathBuf) {
    let mut wait = AGAIN;
    loop {
        let credentials = node.credentials.load_full();
        let left = due(credentials.issued(), credentials.expires()).duration_since(Timestamp::now());
        let pause = match Duration::try_from(left) {
            Ok(left) if !left.is_zero() => left.min(NAP),
            _ => match renew(&node, &dir).await {
                Ok(()) => {
                    wait = AGAIN;
                    continue;
                }
                Err(error) => {
                    let expires = credentials.expires();
                    warn!(error = &error as &dyn std::error::Error, %expires, "certificate not renewed yet");
                    wait = (wait * 2).min(SELDOM);
                    // Spread: a thousand nodes lost their controller at the same moment.
                    wait / 2 + (wait / 2).mul_f64(random_u64() as f64 / u64::MAX as f64)
                }
            },
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.renew_now.notified() => {}
            () = node.cancel.cancelled() => return,
        }
    }
}

async fn renew(node: &Node, dir: &std::path::Path) -> Result<(), Error> {
    let credentials = node.credentials.load_full();
    let call = call(&credentials);
    let answer = node.front.renew(call.clone()).await;
    let checked = match answer.kind {
        Some(EnrolAnswerKind::Issued(signed)) => {
            let (verifier, cluster) = (credentials.verifier(), &credentials.identity().cluster);
            issue::check(&verifier, cluster, &call, credentials.public_key(), &signed, UnixTime::now())?
        }
        Some(EnrolAnswerKind::Refused(refused)) => return Err(Error::Refused(refused.message)),
        Some(EnrolAnswerKind::Pending(_)) | None => return Err(Error::Nothing),
    };
    // Trusted first: the next chain may end at a root that is new.
    files::put(dir, &checked.chain, &checked.roots)?;
    credentials.verifier().trust(&checked.roots)?;
    credentials.renewed(checked.chain, UnixTime::now())?;
    info!(until = %credentials.expires(), "certificate renewed");
    node.renewed.notify_waiters();
    node.driver.send(Event::Renewed).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_after_two_thirds_of_the_life() {
        let at = |seconds: i64| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let day = 24 * 3600;
        assert_eq!(due(at(-300), at(30 * day)), at(20 * day));
        assert_eq!(due(at(-300), at(60)), at(40), "however short it is");
        assert_eq!(due(at(0), at(30)), at(20));
    }
}

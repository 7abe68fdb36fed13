//! Joining, from the side of the machine that wants to: which member to ask, whether it belongs to the token's mesh,
//! and what every trouble on the way is called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use jiff::Timestamp;
use plexus_proto::enrol::{
    EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolCallKind, EnrolRefusalCode, JoinCall,
};
use plexus_proto::frame::ENROL_ANSWER_MAX;
use plexus_proto::id::NodeId;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionId, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, PeerIncompatible, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::door::{read_frame, write_frame};
use super::issue::{self, Checked, IssueError};
use super::request::{self, LocalKey};
use super::token::{Pattern, Token};
use super::{ALPN, DOOR_MARK};
use crate::identity::{self, Verifier};
use crate::settings::SERVER_NAME;

/// Longest wait for one address to answer at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer of one that did.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How far this machine's clock may be behind the controller's: certificates begin five minutes in the past.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// Why a machine did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Too late by this machine's clock.
    #[error("the token expired at {expires}; this machine's clock says {now}")]
    Expired {
        /// End of the token.
        expires: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// This machine lives before the token was made.
    #[error("this machine's clock says {now}, which is before the token was made at {created}")]
    ClockBehind {
        /// When the token was made.
        created: Timestamp,
        /// Our clock.
        now: Timestamp,
    },
    /// The token is for others.
    #[error("the token is for names like {pattern:?}, not for {node}")]
    Name {
        /// Which names it is good for.
        pattern: Pattern,
        /// The name wanted.
        node: NodeId,
    },
    /// Nobody to ask.
    #[error("the token names no member to ask")]
    NoAddress,
    /// Nobody answered.
    #[error("no member of the mesh answered: {}", list(.tried))]
    NoMember {
        /// Each address, and what came of it.
        tried: Vec<(String, String)>,
    },
    /// Somebody answered whose root is not the token's.
    #[error(
        "{address} does not belong to mesh {mesh}: its authority is not the one whose fingerprint is in the token"
    )]
    OtherAuthority {
        /// Who was asked.
        address: String,
        /// The mesh of the token.
        mesh: plexus_proto::id::MeshName,
    },
    /// A member whose certificate is not valid by this machine's clock, or otherwise.
    #[error("{address} shows a certificate that is not valid here; this machine's clock says {now}")]
    Member {
        /// Who was asked.
        address: String,
        /// Our clock.
        now: Timestamp,
        /// What is wrong with it.
        #[source]
        source: identity::Error,
    },
    /// Members answered, but reach no controller.
    #[error("no controller can be reached through {address}: {message}")]
    NoController {
        /// Who was asked last.
        address: String,
        /// What it said.
        message: String,
    },
    /// A controller said no.
    #[error("refused: {message}")]
    Refused {
        /// Why, for programs.
        code: EnrolRefusalCode,
        /// Why, for people.
        message: String,
    },
    /// No operator confirmed in time.
    #[error("no operator has approved this machine within {} s", .0.as_secs())]
    NotApproved(Duration),
    /// The answer is not to be trusted.
    #[error("{address} brought an answer that cannot be trusted")]
    Answer {
        /// Who was asked.
        address: String,
        /// What is wrong with it.
        #[source]
        source: IssueError,
    },
    /// The request could not be made.
    #[error("cannot make the request")]
    Request(#[from] request::Error),
    /// No socket, or no random numbers.
    #[error("this machine cannot make connections")]
    Local(#[source] std::io::Error),
}

impl JoinError {
    /// What to do about it.
    pub fn advice(&self) -> &'static str {
        use EnrolRefusalCode as Code;
        match self {
            Self::Expired { .. } => {
                "make a new one: plexus token create; if it is fresh, check this machine's clock"
            }
            Self::ClockBehind { .. } => "set this machine's clock, then run the same command again",
            Self::Name { .. } => {
                "choose another --name, or make a token for this one: plexus token create --name"
            }
            Self::NoAddress => "name a member: --via HOST:7323",
            Self::NoMember { .. } => {
                "check that UDP to these addresses is open, or name another member: --via HOST:7323"
            }
            Self::OtherAuthority { .. } => {
                "the address may now belong to somebody else, or somebody is in between: ask who made the token"
            }
            Self::Member {
                source: identity::Error::NotYetValid { .. } | identity::Error::Expired { .. },
                ..
            } => "check the clocks of both machines",
            Self::Member { .. } => "ask who runs that member",
            Self::NoController { .. } => {
                "check that a controller runs and is linked, then run the same command again"
            }
            Self::Refused { code, .. } => match code {
                Code::TokenExpired | Code::TokenUsed | Code::TokenRevoked | Code::UnknownToken => {
                    "make a new token: plexus token create"
                }
                Code::WrongName => "choose another --name, or make a token for this one",
                Code::NameTaken => {
                    "choose another --name; or, if that machine is gone: plexus node revoke NAME, and a new token"
                }
                Code::Rejected | Code::Revoked => "ask the operator who decided",
                Code::Busy | Code::Internal => "run the same command again in a moment",
                Code::NoAuthority => {
                    "give a controller its authority: ca_dir in [enrolment] of its configuration"
                }
                _ => "run the same command again; if it stays, look into the controller's log",
            },
            Self::NotApproved(_) => {
                "plexus token approve on the controller's side, then run the same command again"
            }
            Self::Answer { .. } => "somebody in between may have altered it: ask who made the token",
            Self::Request(_) | Self::Local(_) => "look at the cause",
        }
    }
}

fn list(tried: &[(String, String)]) -> String {
    tried.iter().map(|(address, outcome)| format!("{address} ({outcome})")).collect::<Vec<_>>().join(", ")
}

/// What happens while a machine joins, for whoever watches.
#[derive(Debug, Clone)]
pub enum Progress {
    /// A member is being asked.
    Asking(String),
    /// It answered nothing of use.
    Failed(String, String),
    /// An operator has to confirm; asked again until then.
    Pending(String),
}

/// Joins as `node` with `key`: asks the members of `token` in turn, waits at most `patience` for an operator, and
/// checks the answer. Nothing is written.
///
/// Dropping the future loses nothing: the same call with the same key gets the same certificate.
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    token: &Token,
    node: &NodeId,
    key: &LocalKey,
    patience: Duration,
    mut watch: impl FnMut(Progress),
) -> Result<Checked, JoinError> {
    check_token(token, node, Timestamp::now())?;
    let csr = key.request(node)?;
    let join = JoinCall {
        token_id: token.id.to_vec().into(),
        cluster: token.cluster.to_string(),
        mac: token.secret.mac(&csr).into(),
        csr: csr.to_vec().into(),
    };
    let call = EnrolCall { kind: Some(EnrolCallKind::Join(join)) };
    let give_up = Instant::now() + patience;
    loop {
        let (address, verifier, answer) = ask_any(token, &call, &mut watch).await?;
        match answer.kind {
            Some(EnrolAnswerKind::Issued(signed)) => {
                return issue::check(
                    &verifier,
                    &token.cluster,
                    &call,
                    key.public(),
                    &signed,
                    UnixTime::now(),
                )
                .map_err(|source| JoinError::Answer { address, source });
            }
            Some(EnrolAnswerKind::Pending(pending)) => {
                watch(Progress::Pending(pending.message));
                let wait = Duration::from_millis(u64::from(pending.retry_ms.clamp(200, 60_000)));
                if Instant::now() + wait > give_up {
                    return Err(JoinError::NotApproved(patience));
                }
                tokio::time::sleep(wait).await;
            }
            Some(EnrolAnswerKind::Refused(refused)) => {
                let (code, message) = (refused.code(), refused.message);
                return Err(JoinError::Refused { code, message });
            }
            None => {
                let message = "the member speaks another protocol".to_owned();
                return Err(JoinError::Refused { code: EnrolRefusalCode::Unspecified, message });
            }
        }
    }
}

/// What can be known before anybody is asked.
fn check_token(token: &Token, node: &NodeId, now: Timestamp) -> Result<(), JoinError> {
    if now > token.expires {
        return Err(JoinError::Expired { expires: token.expires, now });
    }
    if now + CLOCK_TOLERANCE < token.created {
        return Err(JoinError::ClockBehind { created: token.created, now });
    }
    if !token.name.matches(node) {
        return Err(JoinError::Name { pattern: token.name.clone(), node: node.clone() });
    }
    if token.addresses.is_empty() {
        return Err(JoinError::NoAddress);
    }
    Ok(())
}

/// The first answer that some controller gave.
async fn ask_any(
    token: &Token,
    call: &EnrolCall,
    watch: &mut impl FnMut(Progress),
) -> Result<(String, Arc<Verifier>, EnrolAnswer), JoinError> {
    let mut tried = Vec::new();
    // What says more than silence.
    let mut telling: Option<JoinError> = None;
    for address in &token.addresses {
        watch(Progress::Asking(address.clone()));
        match ask(token, address, call).await {
            Ok((verifier, answer)) => match &answer.kind {
                Some(EnrolAnswerKind::Refused(refused))
                    if matches!(
                        refused.code(),
                        EnrolRefusalCode::NoController
                            | EnrolRefusalCode::Busy
                            | EnrolRefusalCode::NoAuthority
                    ) =>
                {
                    let message = refused.message.clone();
                    watch(Progress::Failed(address.clone(), message.clone()));
                    telling = Some(match refused.code() {
                        EnrolRefusalCode::NoController => {
                            JoinError::NoController { address: address.clone(), message }
                        }
                        code => JoinError::Refused { code, message },
                    });
                }
                _ => return Ok((address.clone(), verifier, answer)),
            },
            Err(Asked::Silent(outcome)) => {
                watch(Progress::Failed(address.clone(), outcome.clone()));
                tried.push((address.clone(), outcome));
            }
            Err(Asked::Telling(error)) => {
                watch(Progress::Failed(address.clone(), error.to_string()));
                telling = telling.or(Some(error));
            }
        }
    }
    Err(telling.unwrap_or(JoinError::NoMember { tried }))
}

enum Asked {
    /// No member answers there.
    Silent(String),
    /// Somebody does, and this is wrong with it.
    Telling(JoinError),
}

async fn ask(token: &Token, address: &str, call: &EnrolCall) -> Result<(Arc<Verifier>, EnrolAnswer), Asked> {
    let found = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(address)).await;
    let found: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(Asked::Silent(format!("cannot resolve: {error}"))),
        Err(_) => return Err(Asked::Silent("cannot resolve in time".to_owned())),
    };
    let mut last = Asked::Silent("the name has no address".to_owned());
    for at in found {
        match ask_at(token, address, at, call).await {
            Ok(answer) => return Ok(answer),
            Err(error @ Asked::Telling(_)) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_at(
    token: &Token,
    address: &str,
    at: SocketAddr,
    call: &EnrolCall,
) -> Result<(Arc<Verifier>, EnrolAnswer), Asked> {
    let local = |source| Asked::Telling(JoinError::Local(source));
    let any = match at {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let endpoint = match quinn::Endpoint::client(SocketAddr::new(any, 0)) {
        Ok(endpoint) => endpoint,
        // No such address family here: another address may do.
        Err(error) => return Err(Asked::Silent(error.to_string())),
    };
    let pinned = Arc::new(Pinned::new(token));
    let config = client_config(pinned.clone()).map_err(local)?;
    let exchange = async {
        let connecting = endpoint.connect_with(config, at, SERVER_NAME).map_err(|error| error.to_string())?;
        let connection = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        };
        let answer = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
            write_frame(&mut send, call).await.map_err(|error| error.to_string())?;
            read_frame(&mut receive, ENROL_ANSWER_MAX).await.map_err(|error| error.to_string())
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        connection.close(VarInt::from_u32(0), b"done");
        answer.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())))
    };
    let answer = exchange.await;
    endpoint.wait_idle().await;
    let judged = pinned.judged.lock().expect("no code panics under this lock").take();
    match (answer, judged) {
        (Ok(answer), Some(Judged::Member(verifier))) => Ok((verifier, answer)),
        (_, Some(Judged::OtherAuthority)) => {
            let (address, mesh) = (address.to_owned(), token.mesh.clone());
            Err(Asked::Telling(JoinError::OtherAuthority { address, mesh }))
        }
        (_, Some(Judged::Invalid(source))) => {
            let (address, now) = (address.to_owned(), Timestamp::now());
            Err(Asked::Telling(JoinError::Member { address, now, source }))
        }
        (Ok(_), None) => Err(Asked::Silent("it showed no certificate".to_owned())),
        (Err(error), _) => Err(Asked::Silent(error)),
    }
}

fn client_config(pinned: Arc<Pinned>) -> std::io::Result<quinn::ClientConfig> {
    let mut id = [0; 20];
    rand::fill(&mut id).map_err(|_| std::io::Error::other("no random numbers"))?;
    id[..DOOR_MARK.len()].copy_from_slice(DOOR_MARK);
    let mut config = rustls::ClientConfig::builder_with_provider(pinned.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("aws-lc-rs speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(config).map_err(std::io::Error::other)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&id)));
    Ok(config)
}

/// Judges a member by the fingerprints of the token: it shows leaf, intermediate, and the roots behind them.
struct Pinned {
    roots: Vec<[u8; 32]>,
    mesh: plexus_proto::id::MeshName,
    provider: Arc<CryptoProvider>,
    judged: Mutex<Option<Judged>>,
}

enum Judged {
    Member(Arc<Verifier>),
    OtherAuthority,
    Invalid(identity::Error),
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pinned(..)")
    }
}

impl Pinned {
    fn new(token: &Token) -> Self {
        Self {
            roots: token.roots.clone(),
            mesh: token.mesh.clone(),
            provider: identity::provider(),
            judged: Mutex::new(None),
        }
    }

    fn judge(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Judged {
        let known = |root: &&CertificateDer<'_>| {
            let print = digest(&SHA256, root);
            self.roots.iter().any(|pinned| pinned[..] == *print.as_ref())
        };
        let roots: Vec<CertificateDer<'_>> = rest.iter().skip(1).filter(known).cloned().collect();
        let (Some(intermediate), false) = (rest.first(), roots.is_empty()) else {
            return Judged::OtherAuthority;
        };
        let verifier = match Verifier::new(&roots, self.mesh.clone()) {
            Ok(verifier) => verifier,
            Err(error) => return Judged::Invalid(error),
        };
        match verifier.verify(&[leaf.clone(), intermediate.clone()], now) {
            Ok(_) => Judged::Member(Arc::new(verifier)),
            Err(identity::Error::OtherAuthority { .. }) => Judged::OtherAuthority,
            Err(error) => Judged::Invalid(error),
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.judge(end_entity, intermediates, now);
        let verdict = match &judged {
            Judged::Member(_) => Ok(ServerCertVerified::assertion()),
            Judged::OtherAuthority => Err(CertificateError::UnknownIssuer.into()),
            Judged::Invalid(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        };
        *self.judged.lock().expect("no code panics under this lock") = Some(judged);
        verdict
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

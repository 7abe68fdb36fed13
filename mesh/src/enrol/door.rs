//! The enrolment door: where machines without a certificate knock, and the way from there to a controller.
//!
//! Strictly bounded: a caller proves its address first, gets one stream, one frame of at most 4 KiB, one answer, and
//! half a minute; at most [`CALLERS`] are inside at a time. What they say is looked at by a controller only.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use plexus_proto::enrol::{EnrolAnswer, EnrolAnswerKind, EnrolCall, EnrolCallKind, EnrolRefusalCode};
use plexus_proto::frame::{self, ENROL_ANSWER_MAX, ENROL_CALL_MAX};
use plexus_proto::id::{ClusterId, Identity, NodeId, Role};
use plexus_proto::packet::Class;
use prost::Message;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, RecvStream, SendStream, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info};

use super::{ALPN, DOOR_MARK, Desk, SERVICE, refusal};
use crate::identity::{self, Credentials};
use crate::link::code;
use crate::node::Node;
use crate::session::Sessions;
use crate::view::View;

/// Callers inside at a time.
const CALLERS: usize = 32;
/// Calls from members and from callers that are passed on or answered at a time.
const CALLS: usize = 64;
/// Renew-only links at a time, calls on each, and how long one lasts.
const RENEWERS: usize = 16;
const RENEWALS: u32 = 4;
const RENEW_ONLY: Duration = Duration::from_secs(8);
/// Longest handshake and call of a caller.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a controller's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for the caller to take it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Whether a connection that comes in is a caller's. Neighbours begin with random bytes.
pub(crate) fn is_enrolment(incoming: &quinn::Incoming) -> bool {
    incoming.orig_dst_cid().starts_with(DOOR_MARK)
}

/// The door of one node, and its way to controllers.
#[derive(Debug)]
pub(crate) struct Front {
    credentials: ArcSwap<Credentials>,
    sessions: Arc<Sessions>,
    view: watch::Receiver<Arc<View>>,
    desk: OnceLock<Arc<dyn Desk>>,
    callers: Arc<Semaphore>,
    calls: Semaphore,
    renewers: Semaphore,
    /// Renew-only links of ours, over which our own renewal can go.
    ways: Mutex<Vec<Connection>>,
}

impl Front {
    pub(crate) fn new(
        credentials: Credentials,
        sessions: Arc<Sessions>,
        view: watch::Receiver<Arc<View>>,
    ) -> Self {
        Self {
            credentials: ArcSwap::from_pointee(credentials),
            sessions,
            view,
            desk: OnceLock::new(),
            callers: Arc::new(Semaphore::new(CALLERS)),
            calls: Semaphore::new(CALLS),
            renewers: Semaphore::new(RENEWERS),
            ways: Mutex::default(),
        }
    }

    /// Shows other credentials from now on.
    pub(crate) fn renewed(&self, credentials: &Credentials) {
        self.credentials.store(Arc::new(credentials.clone()));
    }

    /// Says who decides here; once. False if somebody does already.
    pub(crate) fn set_desk(&self, desk: Arc<dyn Desk>) -> bool {
        self.desk.set(desk).is_ok()
    }

    /// Lets a caller in, answers it, and lets it out. Ends within half a minute.
    pub(crate) async fn receive(self: Arc<Self>, incoming: quinn::Incoming) {
        // Nothing is kept for an address that may be forged.
        if !incoming.remote_address_validated() {
            let _ = incoming.retry();
            return;
        }
        let Ok(_inside) = self.callers.clone().try_acquire_owned() else {
            return incoming.refuse();
        };
        let remote = incoming.remote_address();
        let Ok(crypto) = QuicServerConfig::try_from(self.credentials.load().enrolment_config(ALPN)) else {
            return;
        };
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(transport())).migration(false);
        let Ok(connecting) = incoming.accept_with(Arc::new(config)) else { return };
        let called = async {
            let connection = connecting.await.map_err(|error| error.to_string())?;
            let (send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
            let call: EnrolCall =
                read_frame(&mut receive, ENROL_CALL_MAX).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((connection, send, call))
        };
        let (connection, mut send, call) = match tokio::time::timeout(CALL_TIMEOUT, called).await {
            Ok(Ok(called)) => called,
            Ok(Err(error)) => return debug!(%remote, error, "caller left the enrolment door"),
            Err(_) => return debug!(%remote, "caller was too slow at the enrolment door"),
        };
        // Who has a certificate that counts goes over the mesh.
        let answer = self.answer(call, None).await;
        let word = match &answer.kind {
            Some(EnrolAnswerKind::Issued(_)) => "issued".to_owned(),
            Some(EnrolAnswerKind::Pending(_)) => "pending".to_owned(),
            Some(EnrolAnswerKind::Refused(refused)) => refused.message.clone(),
            None => "nothing".to_owned(),
        };
        info!(%remote, answer = word, "call for a certificate");
        let said = async {
            write_frame(&mut send, &answer).await?;
            connection.closed().await;
            Ok::<_, std::io::Error>(())
        };
        let _ = tokio::time::timeout(FAREWELL, said).await;
        connection.close(VarInt::from_u32(0), b"answered");
    }

    /// Passes on a call of this node's own, to renew: over the mesh, or, when the certificate has expired already,
    /// to whoever holds a renew-only link with us.
    pub(crate) async fn renew(&self, call: EnrolCall) -> EnrolAnswer {
        let ways: Vec<Connection> = {
            let mut ways = self.ways.lock().expect("no code panics under this lock");
            ways.retain(|way| way.close_reason().is_none());
            ways.clone()
        };
        if self.desk.get().is_some() || ways.is_empty() {
            return self.answer(call, None).await;
        }
        let mut last = refusal(EnrolRefusalCode::NoController, "no neighbour passes the renewal on");
        for way in ways {
            let asked = async {
                let (mut send, mut receive) = way.open_bi().await.map_err(|error| error.to_string())?;
                write_frame(&mut send, &call).await.map_err(|error| error.to_string())?;
                read_frame(&mut receive, ENROL_ANSWER_MAX).await.map_err(|error| error.to_string())
            };
            match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
                Ok(Ok(answer)) if is_final(&answer) => return answer,
                Ok(Ok(answer)) => last = answer,
                Ok(Err(error)) => debug!(error, "neighbour did not pass the renewal on"),
                Err(_) => debug!("neighbour did not answer in time"),
            }
        }
        last
    }

    /// Runs a link with an expired end: no packets, no announcements, nothing but renewals, a few of them, for a few
    /// seconds. Whoever dialed dials again, and finds a link of the usual kind once both certificates are good.
    pub(crate) async fn renew_only(&self, node: &Node, connection: &Connection, neighbor: &NodeId) {
        let close = |reason: &[u8]| connection.close(code::EXPIRED, reason);
        let Ok(_place) = self.renewers.try_acquire() else {
            return close(b"too many expired neighbours at once");
        };
        let expired = node.is_expired();
        info!(peer = %neighbor, here = expired, "link to renew a certificate, and for nothing else");
        if expired {
            self.ways.lock().expect("no code panics under this lock").push(connection.clone());
            node.renew_now.notify_one();
        }
        let over = async {
            let mut calls = 0;
            loop {
                tokio::select! {
                    stream = connection.accept_bi() => {
                        let Ok((send, receive)) = stream else { return };
                        calls += 1;
                        if calls > RENEWALS || node.is_expired() {
                            return;
                        }
                        self.renewal(send, receive, neighbor).await;
                    }
                    () = node.renewed.notified(), if expired => return,
                }
            }
        };
        let _ = tokio::time::timeout(RENEW_ONLY, over).await;
        close(b"link was to renew a certificate only");
    }

    /// Passes one renewal on for an expired neighbour.
    async fn renewal(&self, mut send: SendStream, mut receive: RecvStream, neighbor: &NodeId) {
        let exchange = async {
            let call: EnrolCall = read_frame(&mut receive, ENROL_CALL_MAX).await?;
            let answer = match &call.kind {
                Some(EnrolCallKind::Renew(_)) => self.answer(call, None).await,
                _ => {
                    refusal(EnrolRefusalCode::Malformed, "an expired certificate may renew and nothing else")
                }
            };
            write_frame(&mut send, &answer).await?;
            // The connection is about to close: wait until the answer has arrived.
            let _ = send.stopped().await;
            Ok::<_, std::io::Error>(())
        };
        if let Err(error) = exchange.await {
            debug!(peer = %neighbor, %error, "renewal broke off");
        }
    }

    /// Takes a call that a member has passed on over the mesh.
    pub(crate) async fn passed_on(&self, mut stream: crate::stream::MeshStream) {
        let via = stream.peer().clone();
        let exchange = async {
            let call: EnrolCall = read_frame(&mut stream, ENROL_CALL_MAX).await?;
            let answer = match self.desk.get() {
                Some(desk) => self.at_desk(desk, call, Some(via.clone())).await,
                None => no_authority(),
            };
            write_frame(&mut stream, &answer).await
        };
        match tokio::time::timeout(ANSWER_TIMEOUT + CALL_TIMEOUT, exchange).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(peer = %via.node, %error, "call for a certificate broke off"),
            Err(_) => debug!(peer = %via.node, "call for a certificate took too long"),
        }
    }

    /// Answers a call: here, if this is a controller of its cluster, or by the nearest that can be reached.
    pub(crate) async fn answer(&self, call: EnrolCall, via: Option<Identity>) -> EnrolAnswer {
        let Some(cluster) = cluster_of(&call) else {
            return refusal(EnrolRefusalCode::Malformed, "the call names no cluster");
        };
        if let Some(desk) = self.desk.get()
            && self.credentials.load().identity().cluster == cluster
        {
            return self.at_desk(desk, call, via).await;
        }
        let Ok(_turn) = self.calls.try_acquire() else {
            return refusal(EnrolRefusalCode::Busy, "too many calls for certificates at once");
        };
        let mut last = refusal(
            EnrolRefusalCode::NoController,
            format!(
                "{} reaches no controller of cluster {cluster} now",
                self.credentials.load().identity().node
            ),
        );
        for controller in self.controllers(&cluster) {
            match tokio::time::timeout(ANSWER_TIMEOUT, self.ask(&controller, &call)).await {
                Ok(Ok(answer)) if is_final(&answer) => return answer,
                Ok(Ok(answer)) => last = answer,
                Ok(Err(error)) => debug!(controller = %controller.node, error, "controller was not asked"),
                Err(_) => debug!(controller = %controller.node, "controller did not answer in time"),
            }
        }
        last
    }

    async fn at_desk(&self, desk: &Arc<dyn Desk>, call: EnrolCall, via: Option<Identity>) -> EnrolAnswer {
        let Ok(_turn) = self.calls.try_acquire() else {
            return refusal(EnrolRefusalCode::Busy, "too many calls for certificates at once");
        };
        let late = || refusal(EnrolRefusalCode::Internal, "the controller did not answer in time");
        tokio::time::timeout(ANSWER_TIMEOUT, desk.answer(call, via)).await.unwrap_or_else(|_| late())
    }

    /// Reachable controllers of `cluster`, the nearest first.
    fn controllers(&self, cluster: &ClusterId) -> Vec<Identity> {
        let view = self.view.borrow().clone();
        let mut found: Vec<_> = view
            .nodes
            .values()
            .filter(|node| node.reachable && node.cost.is_some())
            .filter(|node| node.identity.role == Role::Controller && node.identity.cluster == *cluster)
            .map(|node| (node.cost, node.identity.clone()))
            .collect();
        found.sort_by(|a, b| (a.0, &a.1.node).cmp(&(b.0, &b.1.node)));
        found.into_iter().map(|(_, identity)| identity).collect()
    }

    async fn ask(&self, controller: &Identity, call: &EnrolCall) -> Result<EnrolAnswer, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let stream = self.sessions.open(controller, SERVICE, Class::Control).await;
        let mut stream = stream.map_err(|error| text(&error))?;
        write_frame(&mut stream, call).await.map_err(|error| text(&error))?;
        read_frame(&mut stream, ENROL_ANSWER_MAX).await.map_err(|error| text(&error))
    }
}

/// Whether another controller would say the same.
fn is_final(answer: &EnrolAnswer) -> bool {
    use EnrolRefusalCode as Code;
    match &answer.kind {
        Some(EnrolAnswerKind::Refused(refused)) => !matches!(
            refused.code(),
            Code::NoAuthority | Code::Internal | Code::Busy | Code::NoController | Code::Unspecified
        ),
        Some(EnrolAnswerKind::Issued(_) | EnrolAnswerKind::Pending(_)) => true,
        None => false,
    }
}

/// Whose controllers can answer; what the call claims, unverified.
fn cluster_of(call: &EnrolCall) -> Option<ClusterId> {
    match call.kind.as_ref()? {
        EnrolCallKind::Join(join) => join.cluster.parse().ok(),
        EnrolCallKind::Renew(renew) => {
            let leaf = CertificateDer::from(&renew.chain.first()?[..]);
            Some(identity::claimed_identity(&leaf).ok()?.cluster)
        }
    }
}

fn no_authority() -> EnrolAnswer {
    refusal(EnrolRefusalCode::NoAuthority, "this controller has no authority to issue certificates")
}

/// One connection, one stream, one small frame.
fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(ENROL_CALL_MAX as u32 + 4))
        .receive_window(VarInt::from_u32(ENROL_CALL_MAX as u32 + 4))
        .send_window(ENROL_ANSWER_MAX as u64 + 4)
        .datagram_receive_buffer_size(None)
        .crypto_buffer_size(4 * 1024)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(VarInt::from_u32(20_000).into()));
    config
}

/// One frame and no byte more; memory follows what has arrived, never above `limit`.
pub(super) async fn read_frame<M: Message + Default>(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> std::io::Result<M> {
    let wrong = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
    let length = stream.read_u32().await? as usize;
    if length > limit {
        return Err(wrong(format!("frame of {length} bytes exceeds the limit of {limit}")));
    }
    let mut body = Vec::new();
    let read = stream.take(length as u64).read_to_end(&mut body).await?;
    if read < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    M::decode(&body[..]).map_err(|error| wrong(error.to_string()))
}

/// One frame, and the end of the stream.
pub(super) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &impl Message,
) -> std::io::Result<()> {
    stream.write_all(&frame::to_bytes(message)).await?;
    stream.shutdown().await
}

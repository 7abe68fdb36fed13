//! Handshakes that take no more bytes of a stranger than ours have.
//!
//! TLS allows a message of 64 KiB, and its implementation keeps what has come of it until it is whole. A handshake of
//! this mesh is far smaller, so it ends as soon as there is more: nobody who is not authenticated yet makes us hold
//! more than [`HANDSHAKE_MAX`] bytes of what he says.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{
    ClientConfig, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
    UnsupportedVersion,
};
use quinn::{ConnectError, ConnectionId, Side, TransportErrorCode};
use quinn_proto::TransportError;
use quinn_proto::transport_parameters::TransportParameters;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Most bytes of a handshake that either end takes, over both of its flights. Ours have four fifths of it at most,
/// with names of full length.
pub(crate) const HANDSHAKE_MAX: usize = 4096;

/// A TCP stream from which a handshake is read.
#[derive(Debug)]
pub(crate) struct Bounded {
    stream: TcpStream,
    /// None: the handshake is over.
    left: Option<usize>,
}

impl Bounded {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, left: Some(HANDSHAKE_MAX) }
    }

    /// The other end is authenticated: it may say more.
    pub(crate) fn unbound(&mut self) {
        self.left = None;
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(left) = self.left else { return Pin::new(&mut self.stream).poll_read(cx, buffer) };
        if left == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "handshake is too long")));
        }
        let mut bytes = [0; 1024];
        let most = left.min(buffer.remaining()).min(bytes.len());
        let mut some = ReadBuf::new(&mut bytes[..most]);
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, &mut some))?;
        buffer.put_slice(some.filled());
        self.left = Some(left - some.filled().len());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// TLS of an accepting QUIC endpoint.
pub(crate) struct BoundedServer(pub(crate) Arc<QuicServerConfig>);

/// TLS of a dialing QUIC endpoint.
pub(crate) struct BoundedClient(pub(crate) Arc<QuicClientConfig>);

impl ServerConfig for BoundedServer {
    fn initial_keys(&self, version: u32, cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.0.initial_keys(version, cid)
    }

    fn retry_tag(&self, version: u32, cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.0.retry_tag(version, cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        Box::new(BoundedSession { inner: self.0.clone().start_session(version, params), left: HANDSHAKE_MAX })
    }
}

impl ClientConfig for BoundedClient {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let inner = self.0.clone().start_session(version, name, params)?;
        Ok(Box::new(BoundedSession { inner, left: HANDSHAKE_MAX }))
    }
}

/// A handshake in QUIC: that of rustls, and what the other end may still say in it.
struct BoundedSession {
    inner: Box<dyn Session>,
    left: usize,
}

impl Session for BoundedSession {
    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        // Also after the handshake, where ours have nothing to say.
        let Some(left) = self.left.checked_sub(bytes.len()) else {
            let code = TransportErrorCode::CRYPTO_BUFFER_EXCEEDED;
            return Err(TransportError { code, frame: None, reason: "handshake is too long".to_owned() });
        };
        self.left = left;
        self.inner.read_handshake(bytes)
    }

    fn initial_keys(&self, cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buffer)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use plexus_proto::id::Role;
    use rustls::{ClientConnection, ServerConnection};
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::ca::CertificateAuthority;
    use crate::identity::Credentials;
    use crate::settings::{LINK_ALPN, SERVER_NAME};

    /// The largest handshake that two of ours can have: every name as long as may be.
    #[test]
    fn the_largest_handshake_of_ours_leaves_room() {
        crate::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let long = |length: usize| "n".repeat(length);
        let authority = CertificateAuthority::init(
            &folder.path().join("ca"),
            &long(63).parse().unwrap(),
            &long(63).parse().unwrap(),
        )
        .unwrap();
        let credentials = |name: String| {
            let out = folder.path().join(&name);
            authority
                .issue(Role::Controller, &name.parse().unwrap(), &out, Duration::from_secs(3600))
                .unwrap();
            Credentials::load(&out).unwrap()
        };
        let (a, b) = (credentials(long(63)), credentials(long(62)));
        let server = Arc::new(a.server_config(&[LINK_ALPN]));
        let client = Arc::new(b.client_config(&[LINK_ALPN]));
        let mut server = ServerConnection::new(server).unwrap();
        let mut client = ClientConnection::new(client, SERVER_NAME.try_into().unwrap()).unwrap();
        let (mut there, mut back) = (0, 0);
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            there += wire.len();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            back += wire.len();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets().unwrap();
        }
        // QUIC has transport parameters instead of records, some hundred bytes.
        assert!(there.max(back) <= HANDSHAKE_MAX * 4 / 5, "{there} there, {back} back");
    }

    #[test]
    fn a_handshake_in_quic_ends_with_the_byte_above_the_limit() {
        crate::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::init(
            &folder.path().join("ca"),
            &"demo".parse().unwrap(),
            &"main".parse().unwrap(),
        )
        .unwrap();
        let out = folder.path().join("hop-1");
        authority.issue(Role::Hop, &"hop-1".parse().unwrap(), &out, Duration::from_secs(3600)).unwrap();
        let server = Arc::new(crate::endpoint::quic_server(&Credentials::load(&out).unwrap(), LINK_ALPN));
        let params = TransportParameters::read(Side::Client, &mut &[][..]).unwrap();
        let mut session = server.start_session(1, &params);
        // A ClientHello that says it has 64 KiB: kept byte by byte, until it is too much.
        session.read_handshake(&[1, 0, 0xff, 0xff]).unwrap();
        session.read_handshake(&vec![0; HANDSHAKE_MAX - 4]).unwrap();
        let error = session.read_handshake(&[0]).unwrap_err();
        assert_eq!(error.code, TransportErrorCode::CRYPTO_BUFFER_EXCEEDED);
    }

    #[tokio::test]
    async fn a_handshake_on_tcp_ends_with_the_byte_above_the_limit_and_later_bytes_are_free() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let said = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(&[7; 3 * HANDSHAKE_MAX]).await.unwrap();
        });
        let mut stream = Bounded::new(listener.accept().await.unwrap().0);
        stream.read_exact(&mut [0; HANDSHAKE_MAX]).await.unwrap();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        stream.unbound();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [7; 2 * HANDSHAKE_MAX]);
        said.await.unwrap();
    }
}

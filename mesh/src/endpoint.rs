//! The UDP sockets of the outer layer: where neighbours are dialed from and accepted.
//!
//! Each address to listen on has a socket of its own; dialing has one more for each address family, made when first
//! needed. What arrives and is no QUIC packet for us is dropped inside quinn.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::{AsyncUdpSocket, Connecting, Runtime, TokioRuntime};
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};

use crate::error::StartError;
use crate::identity::Credentials;
use crate::settings::{self, LINK_ALPN, SERVER_NAME};

/// Outer endpoints of one node.
#[derive(Debug)]
pub(crate) struct Endpoints {
    addresses: Vec<SocketAddr>,
    open: Mutex<Open>,
    client: quinn::ClientConfig,
    secrets: ResetSecrets,
}

#[derive(Debug, Default)]
struct Open {
    listening: Vec<quinn::Endpoint>,
    v4: Option<quinn::Endpoint>,
    v6: Option<quinn::Endpoint>,
    /// Of the above; a socket is free when nobody holds it any more.
    sockets: Vec<Weak<dyn AsyncUdpSocket>>,
    closed: bool,
}

impl Endpoints {
    /// Binds every address of `listen`.
    ///
    /// # Errors
    /// An address that cannot be had: in use, not of this machine, not allowed.
    pub(crate) fn bind(listen: &[SocketAddr], credentials: &Credentials) -> Result<Self, StartError> {
        let transport = Arc::new(settings::link());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(quic_server(credentials, LINK_ALPN)));
        server.transport_config(transport.clone());
        // Half-open connections hold bytes of strangers: at most a few packets each, a few hundred strangers.
        server.max_incoming(256).incoming_buffer_size(64 * 1024).incoming_buffer_size_total(4 * 1024 * 1024);
        let mut client = quinn::ClientConfig::new(Arc::new(quic_client(credentials, LINK_ALPN)));
        client.transport_config(transport);

        let secrets = ResetSecrets::of(credentials);
        let (mut open, mut addresses) = (Open::default(), Vec::new());
        for &address in listen {
            let failed = |source| StartError::Listen { address, source };
            let endpoint = open.bind(address, Some(server.clone()), &secrets).map_err(failed)?;
            addresses.push(endpoint.local_addr().map_err(failed)?);
            open.listening.push(endpoint);
        }
        Ok(Self { addresses, open: Mutex::new(open), client, secrets })
    }

    /// Where neighbours are accepted, with the ports that the system chose.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The endpoints that accept.
    pub(crate) fn listening(&self) -> Vec<quinn::Endpoint> {
        self.open.lock().expect("no code panics under this lock").listening.clone()
    }

    /// Begins a connection to `address`.
    ///
    /// # Errors
    /// No socket for this address family, or an address that nobody can be at.
    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<Connecting> {
        let endpoint = self.dialing_endpoint(address)?;
        endpoint.connect_with(self.client.clone(), address, SERVER_NAME).map_err(io::Error::other)
    }

    fn dialing_endpoint(&self, to: SocketAddr) -> io::Result<quinn::Endpoint> {
        let mut open = self.open.lock().expect("no code panics under this lock");
        let known = if to.is_ipv4() { &open.v4 } else { &open.v6 };
        if let Some(endpoint) = known {
            return Ok(endpoint.clone());
        }
        if open.closed {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "mesh is shutting down"));
        }
        let local = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let endpoint = open.bind(SocketAddr::new(local, 0), None, &self.secrets)?;
        let slot = if to.is_ipv4() { &mut open.v4 } else { &mut open.v6 };
        Ok(slot.insert(endpoint).clone())
    }

    /// Ends every link at once, with a reason for the neighbour, and accepts and dials no more.
    pub(crate) fn close(&self, code: quinn::VarInt, reason: &[u8]) {
        let mut open = self.open.lock().expect("no code panics under this lock");
        open.closed = true;
        open.all().for_each(|endpoint| endpoint.close(code, reason));
    }

    /// Resolves when every neighbour has been told and the sockets are free again. The caller has let go of what it
    /// held of endpoints and connections.
    pub(crate) async fn freed(&self) {
        let (endpoints, sockets) = {
            let mut open = self.open.lock().expect("no code panics under this lock");
            let endpoints: Vec<_> = open.all().cloned().collect();
            (open.listening, open.v4, open.v6) = (Vec::new(), None, None);
            (endpoints, open.sockets.clone())
        };
        for endpoint in endpoints {
            endpoint.wait_idle().await;
        }
        // The last to let go is quinn's own task, which tells nobody.
        while sockets.iter().any(|socket| socket.strong_count() > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Open {
    fn all(&self) -> impl Iterator<Item = &quinn::Endpoint> {
        self.listening.iter().chain(&self.v4).chain(&self.v6)
    }

    fn bind(
        &mut self,
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
        secrets: &ResetSecrets,
    ) -> io::Result<quinn::Endpoint> {
        let socket = UdpSocket::bind(address)?;
        // The system may grant less; that costs throughput, nothing else.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, settings::SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, settings::SOCKET_BUFFER);
        let runtime = Arc::new(TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket)?;
        self.sockets.push(Arc::downgrade(&socket));
        quinn::Endpoint::new_with_abstract_socket(secrets.endpoint_config(), server, socket, runtime)
    }
}

pub(crate) fn quic_server(credentials: &Credentials, alpn: &[u8]) -> QuicServerConfig {
    QuicServerConfig::try_from(credentials.server_config(&[alpn]))
        .expect("aws-lc-rs has the cipher suite of QUIC's first packets")
}

pub(crate) fn quic_client(credentials: &Credentials, alpn: &[u8]) -> QuicClientConfig {
    QuicClientConfig::try_from(credentials.client_config(&[alpn]))
        .expect("aws-lc-rs has the cipher suite of QUIC's first packets")
}

/// Lets a restarted node disown the connections of its former life, so that peers notice at their first packet and
/// not after the idle timeout.
///
/// Derived from the node's key (its signatures are deterministic), so nothing more has to be kept on disk. Who knows
/// the key could end these connections anyway.
#[derive(Clone)]
pub(crate) struct ResetSecrets {
    key: Arc<hmac::Key>,
    connection_ids: u64,
}

impl std::fmt::Debug for ResetSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResetSecrets")
    }
}

impl ResetSecrets {
    pub(crate) fn of(credentials: &Credentials) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &credentials.sign(b"plexus stateless reset"));
        let derive = |label: &[u8]| hmac::sign(&root, label);
        let ids = derive(b"connection ids");
        let first = ids.as_ref().first_chunk().copied().unwrap_or_default();
        let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, derive(b"tokens").as_ref()));
        Self { key, connection_ids: u64::from_be_bytes(first) }
    }

    pub(crate) fn endpoint_config(&self) -> quinn::EndpointConfig {
        let connection_ids = self.connection_ids;
        let mut config = quinn::EndpointConfig::new(self.key.clone());
        config
            // A set fixed bit tells QUIC from the packets of other link kinds on the same socket.
            .grease_quic_bit(false)
            .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(connection_ids)));
        config
    }
}

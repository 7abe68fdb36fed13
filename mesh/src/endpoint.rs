//! The UDP sockets of the outer layer: where neighbours are dialed from and accepted.
//!
//! Each address to listen on has a socket of its own; dialing has one more for each address family, made when first
//! needed. What arrives and is no QUIC packet for us is dropped inside quinn.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use aws_lc_rs::hmac;
use quinn::{Connecting, TokioRuntime};
use quinn_proto::HashedConnectionIdGenerator;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};

use crate::error::StartError;
use crate::identity::Credentials;
use crate::settings::{self, LINK_ALPN, SERVER_NAME};

/// Outer endpoints of one node.
#[derive(Debug)]
pub(crate) struct Endpoints {
    listening: Vec<quinn::Endpoint>,
    dialing: Mutex<Dialing>,
    client: quinn::ClientConfig,
    secrets: ResetSecrets,
}

#[derive(Debug, Default)]
struct Dialing {
    v4: Option<quinn::Endpoint>,
    v6: Option<quinn::Endpoint>,
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
        let bind = |&address: &SocketAddr| {
            open(address, Some(server.clone()), &secrets)
                .map_err(|source| StartError::Listen { address, source })
        };
        let listening = listen.iter().map(bind).collect::<Result<_, _>>()?;
        Ok(Self { listening, dialing: Mutex::default(), client, secrets })
    }

    /// The bound sockets that accept.
    pub(crate) fn listening(&self) -> &[quinn::Endpoint] {
        &self.listening
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
        let mut dialing = self.dialing.lock().expect("no code panics under this lock");
        let (slot, local) = match to {
            SocketAddr::V4(_) => (&mut dialing.v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (&mut dialing.v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let endpoint = open(SocketAddr::new(local, 0), None, &self.secrets)?;
        Ok(slot.insert(endpoint).clone())
    }

    /// Ends every link at once, with a reason for the neighbour, and frees the sockets when all have been told.
    pub(crate) async fn close(&self, code: quinn::VarInt, reason: &[u8]) {
        let dialing = {
            let dialing = self.dialing.lock().expect("no code panics under this lock");
            [dialing.v4.clone(), dialing.v6.clone()]
        };
        let all: Vec<_> = self.listening.iter().chain(dialing.iter().flatten()).collect();
        all.iter().for_each(|endpoint| endpoint.close(code, reason));
        for endpoint in all {
            endpoint.wait_idle().await;
        }
    }
}

fn open(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
    secrets: &ResetSecrets,
) -> io::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(address)?;
    // The system may grant less; that costs throughput, nothing else.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, settings::SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, settings::SOCKET_BUFFER);
    quinn::Endpoint::new(secrets.endpoint_config(), server, socket, Arc::new(TokioRuntime))
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

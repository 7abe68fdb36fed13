//! The sockets of the outer layer: where neighbours are dialed from and accepted.
//!
//! Each address to listen on has a door: a UDP socket and a TCP socket with one port number. Dialing over UDP has one more
//! socket for each address family, made when first needed. What arrives and is no packet for us is dropped.

mod secrets;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use quinn::{Connecting, TokioRuntime};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::bounded::{BoundedClient, BoundedServer};
use crate::config::LinkKind;
use crate::error::StartError;
use crate::forward::Drops;
use crate::identity::{Credentials, Expired};
use crate::link::udp::SharedSocket;
use crate::settings::{self, LINK_ALPN, SERVER_NAME};
pub(crate) use secrets::ResetSecrets;

/// Ports tried when the system chose one for UDP that is taken for TCP.
const PORTS_TRIED: usize = 32;

/// Outer endpoints of one node.
#[derive(Debug)]
pub(crate) struct Endpoints {
    open: Mutex<Open>,
    crypto: ArcSwap<Crypto>,
    secrets: ResetSecrets,
    kinds: Vec<LinkKind>,
    mtu: u16,
    drops: Arc<Drops>,
}

/// What certificates are shown and demanded with.
struct Crypto {
    client: quinn::ClientConfig,
    server: quinn::ServerConfig,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl std::fmt::Debug for Crypto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crypto")
    }
}

#[derive(Debug, Default)]
struct Open {
    doors: Vec<Door>,
    v4: Option<Udp>,
    v6: Option<Udp>,
    /// Of the above; a socket is free when nobody holds it any more.
    sockets: Vec<Weak<SharedSocket>>,
    closed: bool,
}

/// A UDP socket and the QUIC endpoint on it.
#[derive(Debug, Clone)]
pub(crate) struct Udp {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) socket: Arc<SharedSocket>,
}

/// Where neighbours are accepted.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    /// As configured.
    pub(crate) asked: SocketAddr,
    /// With the port that the system chose.
    pub(crate) bound: SocketAddr,
    pub(crate) udp: Option<Udp>,
    pub(crate) tcp: Option<Arc<TcpListener>>,
    /// Ends accepting, and the links that came through here.
    pub(crate) closed: CancellationToken,
}

impl Crypto {
    fn new(credentials: &Credentials, mtu: u16) -> Self {
        let transport = Arc::new(settings::link(mtu));
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(quic_server(credentials, LINK_ALPN)));
        server.transport_config(transport.clone());
        // Half-open connections hold bytes of strangers: the packets of one first flight each, a few hundred strangers.
        server.max_incoming(256).incoming_buffer_size(4096).incoming_buffer_size_total(1024 * 1024);
        let mut client = quinn::ClientConfig::new(Arc::new(quic_client(credentials, LINK_ALPN)));
        client.transport_config(transport);
        Self {
            client,
            server,
            acceptor: TlsAcceptor::from(Arc::new(credentials.server_config(&[LINK_ALPN]))),
            connector: TlsConnector::from(Arc::new(credentials.client_config(&[LINK_ALPN]))),
        }
    }
}

impl Endpoints {
    pub(crate) fn new(credentials: &Credentials, kinds: &[LinkKind], mtu: u16, drops: Arc<Drops>) -> Self {
        Self {
            open: Mutex::default(),
            crypto: ArcSwap::from_pointee(Crypto::new(credentials, mtu)),
            secrets: ResetSecrets::of(credentials),
            kinds: kinds.to_vec(),
            mtu,
            drops,
        }
    }

    /// Binds a door at `asked`; nobody comes in before [`Endpoints::open`].
    ///
    /// # Errors
    /// An address that cannot be had: in use, not of this machine, not allowed.
    pub(crate) async fn bind(
        &self,
        asked: SocketAddr,
        closed: CancellationToken,
    ) -> Result<Door, StartError> {
        let [quic, tcp] = [LinkKind::Quic, LinkKind::Tcp].map(|kind| self.kinds.contains(&kind));
        let failed = |protocol| move |source| StartError::Listen { protocol, address: asked, source };
        let mut tries = 0;
        loop {
            let udp = quic.then(|| self.udp(asked, true)).transpose().map_err(failed("udp"))?;
            let local = udp.as_ref().map(|udp| udp.endpoint.local_addr()).transpose();
            let mut bound = local.map_err(failed("udp"))?.unwrap_or(asked);
            let listener = match tcp {
                false => None,
                true => match TcpListener::bind(bound).await {
                    Ok(listener) => Some(listener),
                    // The system's choice for UDP need not be free for TCP.
                    Err(_) if asked.port() == 0 && quic && tries < PORTS_TRIED => {
                        tries += 1;
                        continue;
                    }
                    Err(source) => return Err(failed("tcp")(source)),
                },
            };
            if let Some(listener) = &listener {
                bound = listener.local_addr().map_err(failed("tcp"))?;
            }
            return Ok(Door { asked, bound, udp, tcp: listener.map(Arc::new), closed });
        }
    }

    /// Makes `door` one of this node's.
    pub(crate) fn open(&self, door: Door) {
        self.lock().doors.push(door);
    }

    /// Where neighbours are accepted, with the ports that the system chose.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.lock().doors.iter().map(|door| door.bound).collect()
    }

    /// The same as configured.
    pub(crate) fn asked(&self) -> Vec<SocketAddr> {
        self.lock().doors.iter().map(|door| door.asked).collect()
    }

    /// Closes the door at `asked`, and the links that came through it.
    pub(crate) fn shut(&self, asked: SocketAddr, code: quinn::VarInt, reason: &[u8]) {
        let mut open = self.lock();
        let Some(index) = open.doors.iter().position(|door| door.asked == asked) else { return };
        let door = open.doors.remove(index);
        door.closed.cancel();
        if let Some(udp) = door.udp {
            udp.endpoint.close(code, reason);
        }
    }

    /// Shows and demands other certificates from now on; live links stay.
    pub(crate) fn renew(&self, credentials: &Credentials) {
        let crypto = Crypto::new(credentials, self.mtu);
        for door in &self.lock().doors {
            if let Some(udp) = &door.udp {
                udp.endpoint.set_server_config(Some(crypto.server.clone()));
            }
        }
        self.crypto.store(Arc::new(crypto));
    }

    /// Begins a QUIC connection to `address`.
    ///
    /// # Errors
    /// No socket for this address family, or an address that nobody can be at.
    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<(Connecting, Arc<SharedSocket>)> {
        let Udp { endpoint, socket } = self.dialing(address)?;
        let client = self.crypto.load().client.clone();
        let connecting = endpoint.connect_with(client, address, SERVER_NAME).map_err(io::Error::other)?;
        Ok((connecting, socket))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.crypto.load().acceptor.clone()
    }

    pub(crate) fn connector(&self) -> TlsConnector {
        self.crypto.load().connector.clone()
    }

    fn dialing(&self, to: SocketAddr) -> io::Result<Udp> {
        {
            let open = self.lock();
            let known = if to.is_ipv4() { &open.v4 } else { &open.v6 };
            if let Some(udp) = known {
                return Ok(udp.clone());
            }
            if open.closed {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "mesh is shutting down"));
            }
        }
        let local = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let udp = self.udp(SocketAddr::new(local, 0), false)?;
        let mut open = self.lock();
        let slot = if to.is_ipv4() { &mut open.v4 } else { &mut open.v6 };
        Ok(slot.get_or_insert(udp).clone())
    }

    fn udp(&self, address: SocketAddr, accepts: bool) -> io::Result<Udp> {
        let socket = UdpSocket::bind(address)?;
        // The system may grant less; that costs throughput, nothing else.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, settings::SOCKET_BUFFER);
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, settings::SOCKET_BUFFER);
        let socket = Arc::new(SharedSocket::new(socket, self.drops.clone())?);
        self.lock().sockets.push(Arc::downgrade(&socket));
        let server = accepts.then(|| self.crypto.load().server.clone());
        let config = self.secrets.endpoint_config(self.mtu);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            config,
            server,
            socket.clone(),
            Arc::new(TokioRuntime),
        )?;
        Ok(Udp { endpoint, socket })
    }

    /// Ends every link at once, with a reason for the neighbour, and accepts and dials no more.
    pub(crate) fn close(&self, code: quinn::VarInt, reason: &[u8]) {
        let mut open = self.lock();
        open.closed = true;
        open.endpoints().for_each(|endpoint| endpoint.close(code, reason));
    }

    /// Resolves when every neighbour has been told and the sockets are free again. The caller has let go of what it
    /// held of endpoints and connections.
    pub(crate) async fn freed(&self) {
        let (endpoints, sockets) = {
            let mut open = self.lock();
            let endpoints: Vec<_> = open.endpoints().cloned().collect();
            (open.doors, open.v4, open.v6) = (Vec::new(), None, None);
            (endpoints, std::mem::take(&mut open.sockets))
        };
        for endpoint in endpoints {
            endpoint.wait_idle().await;
        }
        // The last to let go is quinn's own task, which tells nobody.
        while sockets.iter().any(|socket| socket.strong_count() > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("no code panics under this lock")
    }
}

impl Open {
    fn endpoints(&self) -> impl Iterator<Item = &quinn::Endpoint> {
        let doors = self.doors.iter().filter_map(|door| door.udp.as_ref());
        doors.chain(&self.v4).chain(&self.v6).map(|udp| &udp.endpoint)
    }
}

/// A link with an expired end comes up to renew; a session never does.
fn expired(alpn: &[u8]) -> Expired {
    if alpn == LINK_ALPN { Expired::MayRenew } else { Expired::Refused }
}

pub(crate) fn quic_server(credentials: &Credentials, alpn: &[u8]) -> BoundedServer {
    let config = QuicServerConfig::try_from(credentials.server_config_for(&[alpn], expired(alpn)));
    BoundedServer(Arc::new(config.expect("aws-lc-rs has the cipher suite of QUIC's first packets")))
}

pub(crate) fn quic_client(credentials: &Credentials, alpn: &[u8]) -> BoundedClient {
    let config = QuicClientConfig::try_from(credentials.client_config_for(&[alpn], expired(alpn)));
    BoundedClient(Arc::new(config.expect("aws-lc-rs has the cipher suite of QUIC's first packets")))
}

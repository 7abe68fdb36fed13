//! Carries datagrams: one thread, one socket towards the dialers, one for each of them towards the process behind.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;

use super::lane::Lane;
use super::{Settings, Shared};

/// Room for what arrives while this thread waits for its turn.
const SOCKET_BUFFER: usize = 4 << 20;
/// Longest sleep: only a backstop, everything of interest wakes earlier.
const SLEEP: Duration = Duration::from_secs(1);
/// Packets taken from one socket before the others get their turn.
const TURN: usize = 64;

pub(super) struct Carrier {
    near: UdpSocket,
    far: SocketAddr,
    wakes: OwnedFd,
    shared: Arc<Shared>,
    seed: u64,
    clients: Vec<Client>,
    by_address: HashMap<SocketAddr, usize>,
    bindings: u64,
}

/// Somebody who dials along the wire.
struct Client {
    address: SocketAddr,
    /// What the process behind sees as the client's address.
    socket: UdpSocket,
}

impl Carrier {
    pub(super) fn new(
        near: SocketAddr,
        far: SocketAddr,
        wakes: OwnedFd,
        shared: Arc<Shared>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let near = bind(near)?;
        Ok(Self {
            near,
            far,
            wakes,
            shared,
            seed,
            clients: Vec::new(),
            by_address: HashMap::new(),
            bindings: 0,
        })
    }

    pub(super) fn run(mut self) {
        let now = Instant::now();
        let mut there: Lane<usize> = Lane::new(self.seed.wrapping_mul(2), now);
        let mut back: Lane<usize> = Lane::new(self.seed.wrapping_mul(2).wrapping_add(1), now);
        let mut settings = self.shared.settings().clone();
        let mut buffer = vec![0; 65_536];
        while !self.shared.stopped() {
            self.refresh(&mut settings);
            let now = Instant::now();
            for _ in 0..TURN {
                let Ok((length, from)) = self.near.recv_from(&mut buffer) else { break };
                let Some(client) = self.client(from) else { continue };
                self.take(&mut there, &settings.there, settings.udp_blocked, client, &buffer[..length], now);
            }
            for client in 0..self.clients.len() {
                for _ in 0..TURN {
                    // An error here is "port unreachable" from a process that is down; it concerns nobody.
                    let Ok(length) = self.clients[client].socket.recv(&mut buffer) else { break };
                    self.take(
                        &mut back,
                        &settings.back,
                        settings.udp_blocked,
                        client,
                        &buffer[..length],
                        now,
                    );
                }
            }
            while let Some((client, packet)) = there.leave(now) {
                self.count(self.clients[client].socket.send(&packet).is_ok());
            }
            while let Some((client, packet)) = back.leave(now) {
                self.count(self.near.send_to(&packet, self.clients[client].address).is_ok());
            }
            self.wait(there.next().into_iter().chain(back.next()).min());
        }
    }

    fn take(
        &self,
        lane: &mut Lane<usize>,
        shape: &super::Shape,
        blocked: bool,
        client: usize,
        packet: &[u8],
        now: Instant,
    ) {
        self.shared.entered.fetch_add(1, Ordering::Relaxed);
        if blocked || lane.enter(shape, client, packet, now) == 0 {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self, sent: bool) {
        let counter = if sent { &self.shared.left } else { &self.shared.lost };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes over what the owner has changed.
    fn refresh(&mut self, settings: &mut Settings) {
        {
            let now = self.shared.settings();
            if now.version != settings.version {
                *settings = now.clone();
            }
        }
        let bindings = self.shared.bindings.load(Ordering::Relaxed);
        if bindings != self.bindings {
            for client in &mut self.clients {
                if let Ok(socket) = connected(self.far) {
                    client.socket = socket;
                }
            }
            self.bindings = bindings;
        }
    }

    /// Index of the client at `address`; a new one gets a socket of its own.
    fn client(&mut self, address: SocketAddr) -> Option<usize> {
        if let Some(&known) = self.by_address.get(&address) {
            return Some(known);
        }
        let socket = connected(self.far).ok()?;
        self.clients.push(Client { address, socket });
        self.by_address.insert(address, self.clients.len() - 1);
        Some(self.clients.len() - 1)
    }

    /// Sleeps until a packet or a wake-up comes, or until `deadline`.
    fn wait(&self, deadline: Option<Instant>) {
        let left = deadline.map_or(SLEEP, |at| at.saturating_duration_since(Instant::now()).min(SLEEP));
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut sources =
            vec![PollFd::new(&self.wakes, PollFlags::IN), PollFd::new(&self.near, PollFlags::IN)];
        sources.extend(self.clients.iter().map(|client| PollFd::new(&client.socket, PollFlags::IN)));
        // An interrupted poll is one more look.
        poll(&mut sources, Some(&timeout)).ok();
        let woken = !sources[0].revents().is_empty();
        drop(sources);
        if woken {
            rustix::io::read(&self.wakes, &mut [0; 64]).ok();
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).with_context(|| format!("cannot bind {address}"))?;
    socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)
        .context("cannot size a socket")?;
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)
        .context("cannot size a socket")?;
    Ok(socket)
}

fn connected(far: SocketAddr) -> anyhow::Result<UdpSocket> {
    let any: SocketAddr =
        if far.is_ipv4() { ([127, 0, 0, 1], 0).into() } else { (std::net::Ipv6Addr::LOCALHOST, 0).into() };
    let socket = bind(any)?;
    socket.connect(far).with_context(|| format!("cannot connect to {far}"))?;
    Ok(socket)
}

//! Trying one address: UDP, its packet size, and TCP.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quinn::udp::UdpSocketState;
use tokio::net::{TcpStream, UdpSocket, lookup_host};

use super::{LEAST, SEALED, WHOLE, headers};
use crate::node::random_u64;
use crate::status::{PathCheck, TcpCheck, UdpCheck, millis};

/// Longest wait for one answer: twice a satellite's way there and back.
const PATIENCE: Duration = Duration::from_millis(1200);
/// Packets of the least size: enough to tell loss of some per cent from none.
const ECHOES: usize = 10;
/// Between two of them.
const PACE: Duration = Duration::from_millis(20);
/// IP packets of these sizes are tried after those that a link needs: IPv6's least, tunnels, Ethernet and jumbo frames.
const SIZES: [u32; 9] = [1280, 1328, 1360, 1400, 1420, 1460, 1492, 1500, 9000];
/// A QUIC version that is reserved so that nobody ever speaks it: who sees it answers with those it does speak.
const VERSION: u32 = 0x1a2a_3a4a;

/// What is tried where UDP and IP take so many bytes of `headers`, from the least packet that QUIC answers to jumbo
/// frames. What links need is among them, so that no finding rests on a guess between two sizes.
fn sizes(headers: u32) -> Vec<u32> {
    let mut sizes: Vec<u32> =
        [LEAST, SEALED, WHOLE].map(|payload| payload + headers).into_iter().chain(SIZES).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Tries every address, all at once.
pub(super) async fn all(addresses: &[String]) -> Vec<PathCheck> {
    let mut tries = tokio::task::JoinSet::new();
    for (index, address) in addresses.iter().cloned().enumerate() {
        tries.spawn(async move { (index, one(&address).await) });
    }
    let mut tried = tries.join_all().await;
    tried.sort_by_key(|(index, _)| *index);
    tried.into_iter().map(|(_, path)| path).collect()
}

async fn one(address: &str) -> PathCheck {
    let resolved = match tokio::time::timeout(PATIENCE * 4, lookup_host(address)).await {
        Ok(Ok(mut found)) => found.next(),
        _ => None,
    };
    let Some(to) = resolved else {
        return PathCheck { address: address.to_owned(), resolved: None, udp: None, tcp: None };
    };
    let (udp, tcp) = tokio::join!(udp(to), tcp(to));
    PathCheck { address: address.to_owned(), resolved: Some(to.to_string()), udp: Some(udp), tcp: Some(tcp) }
}

async fn tcp(to: SocketAddr) -> TcpCheck {
    let began = Instant::now();
    let failed = |error: String| TcpCheck { reachable: false, rtt_ms: None, error: Some(error) };
    match tokio::time::timeout(PATIENCE * 2, TcpStream::connect(to)).await {
        Ok(Ok(_)) => TcpCheck { reachable: true, rtt_ms: Some(millis(began.elapsed())), error: None },
        Ok(Err(error)) => failed(error.to_string()),
        Err(_) => failed("no answer".to_owned()),
    }
}

async fn udp(to: SocketAddr) -> UdpCheck {
    let failed = |error: &io::Error| UdpCheck {
        reachable: false,
        rtt_ms: None,
        loss: 1.0,
        mtu: None,
        error: Some(error.to_string()),
    };
    match Prober::new(to).await {
        Ok(mut prober) => prober.run().await,
        Err(error) => failed(&error),
    }
}

/// A socket that talks with one address.
struct Prober {
    socket: UdpSocket,
    /// Bytes of IP and UDP headers.
    headers: u32,
    /// Last error of the system: an ICMP answer, mostly.
    error: Option<io::Error>,
}

impl Prober {
    async fn new(to: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        // Forbids fragmentation, as on the sockets of links.
        UdpSocketState::new((&socket).into())?;
        socket.connect(to).await?;
        Ok(Self { socket, headers: headers(to), error: None })
    }

    async fn run(&mut self) -> UdpCheck {
        let mut sent = Vec::new();
        let mut least = None;
        let mut answered = 0;
        for _ in 0..ECHOES {
            sent.push((self.send(LEAST + self.headers).await, Instant::now()));
            answered += self.collect(&mut sent, PACE, &mut least).await;
        }
        let deadline = Instant::now() + PATIENCE;
        while answered < ECHOES && Instant::now() < deadline {
            let got =
                self.collect(&mut sent, deadline.saturating_duration_since(Instant::now()), &mut least).await;
            if got == 0 {
                break;
            }
            answered += got;
        }
        let reachable = answered > 0;
        let mtu = if reachable { Some(self.mtu().await) } else { None };
        let error = self.error.take().filter(|_| !reachable);
        let error = error.map(|error| error.to_string());
        UdpCheck {
            reachable,
            rtt_ms: least.map(millis),
            loss: (ECHOES - answered) as f64 / ECHOES as f64,
            mtu,
            error: error.or_else(|| (!reachable).then(|| "no answer".to_owned())),
        }
    }

    /// Largest of the [`sizes`] that is answered, of which the least is known to be; each gets three tries, for a lost
    /// packet is no small path.
    async fn mtu(&mut self) -> u32 {
        let mut largest = LEAST + self.headers;
        for size in sizes(self.headers).into_iter().skip(1) {
            let mut got = 0;
            for _ in 0..3 {
                let mut sent = vec![(self.send(size).await, Instant::now())];
                if sent[0].0 == 0 {
                    break;
                }
                got = self.collect(&mut sent, PATIENCE / 4, &mut None).await;
                if got > 0 {
                    break;
                }
            }
            if got == 0 {
                break;
            }
            largest = size;
        }
        largest
    }

    /// Sends an IP packet of `size` bytes; its number, or 0 if the system did not take it.
    async fn send(&mut self, size: u32) -> u64 {
        let number = random_u64().max(1);
        match self.socket.send(&packet(number, (size - self.headers) as usize)).await {
            Ok(_) => number,
            Err(error) => {
                self.error = Some(error);
                0
            }
        }
    }

    /// Takes answers for `wait`, or until all of `sent` are answered; how many came.
    async fn collect(
        &mut self,
        sent: &mut Vec<(u64, Instant)>,
        wait: Duration,
        least: &mut Option<Duration>,
    ) -> usize {
        let deadline = tokio::time::Instant::now() + wait;
        let before = sent.len();
        let mut buffer = [0; 2048];
        while !sent.is_empty() {
            match tokio::time::timeout_at(deadline, self.socket.recv(&mut buffer)).await {
                Ok(Ok(length)) => {
                    let Some(number) = answers(&buffer[..length]) else { continue };
                    let Some(at) = sent.iter().position(|(sent, _)| *sent == number) else { continue };
                    let rtt = sent.swap_remove(at).1.elapsed();
                    *least = Some(least.map_or(rtt, |known| known.min(rtt)));
                }
                Ok(Err(error)) => {
                    // An ICMP answer to one of ours: the rest may still pass.
                    self.error = Some(error);
                    tokio::task::yield_now().await;
                    if tokio::time::Instant::now() >= deadline {
                        break;
                    }
                }
                Err(_) => break,
            }
        }
        before - sent.len()
    }
}

/// A QUIC packet with a long header (RFC 9000, 17.2) of a version that is reserved, padded to `length`. Source and
/// destination connection id come back in the answer; the number is in both.
fn packet(number: u64, length: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(length);
    packet.push(0xc0);
    packet.extend_from_slice(&VERSION.to_be_bytes());
    for _ in 0..2 {
        packet.push(8);
        packet.extend_from_slice(&number.to_be_bytes());
    }
    packet.resize(length, 0);
    packet
}

/// The number in an answer of [`packet`]: a version negotiation (RFC 9000, 17.2.1), which names version 0 and gives both
/// connection ids back.
pub(super) fn answers(packet: &[u8]) -> Option<u64> {
    let rest = packet.strip_prefix(&[*packet.first().filter(|first| **first & 0x80 != 0)?, 0, 0, 0, 0, 8])?;
    rest.first_chunk::<8>().map(|number| u64::from_be_bytes(*number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_carry_the_number_back() {
        let sent = packet(0x0102_0304_0506_0708, 1252);
        assert_eq!((sent.len(), sent[0], sent[5], sent[14]), (1252, 0xc0, 8, 8));
        let mut answer = vec![0xff, 0, 0, 0, 0];
        answer.extend_from_slice(&sent[5..23]);
        answer.extend_from_slice(&1u32.to_be_bytes());
        assert_eq!(answers(&answer), Some(0x0102_0304_0506_0708));
        assert_eq!(answers(&sent), None, "not a version negotiation");
        for short in 0..14 {
            assert_eq!(answers(&answer[..short]), None);
        }
    }

    #[test]
    fn sizes_rise_from_the_least_and_hold_what_links_need() {
        for (headers, needed) in [(28, [1228, 1258, 1276]), (48, [1248, 1278, 1296])] {
            let sizes = sizes(headers);
            assert!(sizes.is_sorted() && sizes[0] == needed[0], "{sizes:?}");
            assert!(needed.iter().all(|needed| sizes.contains(needed)), "{sizes:?}");
        }
    }

    /// Against a real QUIC endpoint on loopback, which carries any size that is tried.
    #[tokio::test]
    async fn a_listening_endpoint_answers() {
        crate::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let authority = crate::ca::CertificateAuthority::init(
            &folder.path().join("ca"),
            &"demo".parse().unwrap(),
            &"main".parse().unwrap(),
        )
        .unwrap();
        let own = folder.path().join("hop");
        authority
            .issue(plexus_proto::id::Role::Hop, &"hop-1".parse().unwrap(), &own, Duration::from_secs(3600))
            .unwrap();
        let credentials = crate::Credentials::load(&own).unwrap();
        let mut config = crate::Config::new(credentials, own.join("state"), "test 1");
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
        let mesh = crate::Mesh::start(config).await.unwrap();
        let address = mesh.listen_addresses()[0].to_string();
        let path = one(&address).await;
        let udp = path.udp.unwrap();
        assert!(udp.reachable && udp.error.is_none() && udp.rtt_ms.is_some(), "{udp:?}");
        assert!(udp.mtu.unwrap() >= 1500, "{udp:?}");
    }

    #[tokio::test]
    async fn where_nobody_listens_nothing_is_reachable() {
        // Bound and closed again: free, and nobody else's for the moment.
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let path = one(&closed.to_string()).await;
        let (udp, tcp) = (path.udp.unwrap(), path.tcp.unwrap());
        assert!(!udp.reachable && udp.error.is_some() && udp.mtu.is_none(), "{udp:?}");
        assert!(!tcp.reachable && tcp.error.is_some(), "{tcp:?}");
        let nowhere = one("nothing.invalid:1").await;
        assert_eq!((nowhere.resolved, nowhere.udp), (None, None));
    }
}

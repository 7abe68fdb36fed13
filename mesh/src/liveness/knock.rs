//! Whether anybody has a port at all.
//!
//! A process that was killed leaves its port to the kernel of its machine, which refuses what comes there (ICMP, "port
//! unreachable"). The sockets of links hear nothing of it: they speak to many, and the system tells of refusals only
//! where a socket is connected. So a silent neighbour is asked once more from a socket of its own, with a packet of no
//! bytes, which nobody who lives takes for anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// Longest wait for a refusal; what comes later is told by probes that go unanswered.
const PATIENCE: Duration = Duration::from_millis(250);

/// Whether the machine at `remote` says that nobody has this port. Any other answer, and none, is a no.
pub(super) async fn is_refused(remote: SocketAddr) -> bool {
    let refusal = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    let asked = async {
        let any = match remote {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
        socket.connect(remote).await?;
        socket.send(&[]).await?;
        socket.recv(&mut [0]).await
    };
    matches!(tokio::time::timeout(PATIENCE, asked).await, Ok(Err(error)) if refusal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_nobody_has_is_refused_and_one_that_is_only_quiet_is_not() {
        for local in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let quiet = std::net::UdpSocket::bind(SocketAddr::new(local, 0)).unwrap();
            let remote = quiet.local_addr().unwrap();
            assert!(!is_refused(remote).await, "{remote} is there");
            drop(quiet);
            assert!(is_refused(remote).await, "{remote} is gone");
        }
    }
}

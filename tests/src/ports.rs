//! Ports that stay ours for as long as a cluster lives, also while its daemons are down.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context as _, bail};

/// Range for clusters: below Linux's ephemeral ports (32768 and up), so no outgoing connection takes one.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

/// A port that no other cluster on this machine uses, by a file lock held until this is dropped.
///
/// A daemon that is killed and started again finds its port free: nothing else that follows the rule takes it meanwhile.
#[derive(Debug)]
pub struct ReservedPort {
    port: u16,
    _lock: File,
}

impl ReservedPort {
    /// Reserves a port that is free for TCP and UDP on loopback now.
    ///
    /// # Errors
    /// When the lock directory cannot be used, or every port is taken.
    pub fn new() -> anyhow::Result<Self> {
        let span = u32::from(LAST - FIRST);
        // Different processes start looking at different places.
        let start = std::process::id().wrapping_mul(2_654_435_761) % span;
        for step in 0..span {
            let offset = u16::try_from((start + step) % span).context("port range exceeds u16")?;
            if let Some(reserved) = Self::take(FIRST + offset)? {
                return Ok(reserved);
            }
        }
        bail!("no free port between {FIRST} and {LAST}");
    }

    /// Reserves the preferred port if it is free, else any.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn prefer(port: u16) -> anyhow::Result<Self> {
        Self::take(port)?.map_or_else(Self::new, Ok)
    }

    fn take(port: u16) -> anyhow::Result<Option<Self>> {
        let path = lock_dir()?.join(port.to_string());
        let lock = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let free = lock.try_lock().is_ok() && is_free(port);
        Ok(free.then_some(Self { port, _lock: lock }))
    }

    /// The number.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn lock_dir() -> anyhow::Result<PathBuf> {
    let user = rustix::process::getuid().as_raw();
    let dir = std::env::temp_dir().join(format!("plexus-test-ports-{user}"));
    match std::fs::create_dir(&dir) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(|| format!("cannot create {}", dir.display())),
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reservations_never_meet() {
        let one = ReservedPort::new().unwrap();
        let other = ReservedPort::new().unwrap();
        assert_ne!(one.port(), other.port());
    }

    #[test]
    fn taken_preferred_port_falls_back() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert_ne!(ReservedPort::prefer(taken).unwrap().port(), taken);
    }
}

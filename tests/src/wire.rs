//! Wires between real processes that do what networks do: delay, jitter, loss in bursts, reordering, duplicates, broken
//! bits, narrow rates, small packets, one-way cuts, blocked UDP, a NAT that forgets.
//!
//! ```text
//!  dialing process ──▶ 127.0.0.1:PORT  ═══ There ═══▶  127.0.0.1:other ──▶ listening process
//!                          Wire          ◀═══ Back ═══      (one socket for each dialer)
//! ```
//!
//! A [`Wire`] has one address, for UDP and for TCP, and carries whatever is sent there to the process behind it. It runs in
//! user space on a thread of its own, because the machines that test have no netem; every draw comes from a seed. The
//! [`Shape`] of each [`Direction`] may change while packets are under way. [`Shape::profile`] has the usual networks by name.
//!
//! What happens to a packet is decided in `lane`, which has no socket and no clock. [`Namespace`] gives what only a kernel
//! can: real MTUs with "fragmentation needed", real filters, addresses that change.

mod lane;
mod netns;
mod shape;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use rustix::fd::OwnedFd;

use crate::ports::ReservedPort;

pub use netns::Namespace;
pub use shape::{PROFILES, Shape};

/// Way of a packet along a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From who dials to the process behind the wire.
    There,
    /// From the process behind the wire to who dialed.
    Back,
}

/// What a wire has done so far, both directions together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that came in.
    pub entered: u64,
    /// Packets that went out, copies included.
    pub left: u64,
    /// Packets that never will: lost, cut off, too large, no room in the queue.
    pub lost: u64,
}

/// A wire in front of one listening address. Dropping it ends its threads and frees its port.
#[derive(Debug)]
pub struct Wire {
    near: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _port: ReservedPort,
}

/// What the wire's owner and its threads share.
#[derive(Debug)]
struct Shared {
    settings: Mutex<Settings>,
    /// Written to whenever the settings change, so that a sleeping thread looks.
    wake: OwnedFd,
    stop: AtomicBool,
    /// Counts up with every rebinding; sockets of an older number are replaced.
    bindings: AtomicU64,
    /// Counts up whenever TCP connections are to be reset.
    resets: AtomicU64,
    entered: AtomicU64,
    left: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug, Clone)]
struct Settings {
    there: Shape,
    back: Shape,
    udp_blocked: bool,
    /// Counts up with every change, so that the threads copy only what is new.
    version: u64,
}

impl Shared {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full pipe wakes as well as one more byte.
        rustix::io::write(&self.wake, &[0]).ok();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

impl Wire {
    /// Lays a wire to `far`, the same in both directions.
    ///
    /// # Errors
    /// When no port or thread can be had.
    pub fn to(far: SocketAddr, shape: Shape, seed: u64) -> anyhow::Result<Self> {
        let port = ReservedPort::new()?;
        let near = SocketAddr::from(([127, 0, 0, 1], port.port()));
        let (wakes, wake) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK | rustix::pipe::PipeFlags::CLOEXEC)
                .context("cannot make a pipe")?;
        let settings = Settings { there: shape.clone(), back: shape, udp_blocked: false, version: 1 };
        let shared = Arc::new(Shared {
            settings: Mutex::new(settings),
            wake,
            stop: AtomicBool::new(false),
            bindings: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            left: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let udp = udp::Carrier::new(near, far, wakes, shared.clone(), seed)?;
        let tcp = tcp::Acceptor::new(near, far, shared.clone(), seed)?;
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).context("cannot start a thread")
        };
        let threads =
            vec![spawn("wire-udp", Box::new(|| udp.run()))?, spawn("wire-tcp", Box::new(|| tcp.run()))?];
        Ok(Self { near, shared, threads, _port: port })
    }

    /// Where to dial.
    pub fn address(&self) -> SocketAddr {
        self.near
    }

    /// Changes both directions.
    pub fn change(&self, change: impl Fn(&mut Shape)) {
        self.with(|settings| {
            change(&mut settings.there);
            change(&mut settings.back);
        });
    }

    /// Changes one direction.
    pub fn change_one(&self, direction: Direction, change: impl FnOnce(&mut Shape)) {
        self.with(|settings| match direction {
            Direction::There => change(&mut settings.there),
            Direction::Back => change(&mut settings.back),
        });
    }

    /// Cuts the wire, or joins it again. What is cut is silent: nobody is told.
    pub fn cut(&self, cut: bool) {
        self.change(|shape| shape.cut = cut);
    }

    /// Drops every datagram, as some networks do; TCP goes on.
    pub fn block_udp(&self, blocked: bool) {
        self.with(|settings| settings.udp_blocked = blocked);
    }

    /// Gives every dialer another source address towards the process behind, as a NAT does that lost its table.
    /// TCP connections through it are reset.
    pub fn rebind(&self) {
        self.shared.bindings.fetch_add(1, Ordering::Relaxed);
        self.reset_tcp();
    }

    /// Ends every TCP connection along the wire with a reset to both ends.
    pub fn reset_tcp(&self) {
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
        self.shared.wake();
    }

    /// What it has done so far with datagrams.
    pub fn counts(&self) -> Counts {
        Counts {
            entered: self.shared.entered.load(Ordering::Relaxed),
            left: self.shared.left.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
        }
    }

    fn with(&self, change: impl FnOnce(&mut Settings)) {
        {
            let mut settings = self.shared.settings();
            change(&mut settings);
            settings.version += 1;
        }
        self.shared.wake();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

#[cfg(test)]
mod tests;

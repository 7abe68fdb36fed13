//! Carries TCP connections: late, at the wire's rate, not at all while cut. The kernel hides loss and disorder from TCP's
//! readers, so here a lost piece is a late one: it comes a round trip later, as a retransmission would.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::lane::Draws;
use super::{Direction, Shape, Shared};

/// How often a thread that waits looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes taken at once; about a segment of a wide path.
const PIECE: usize = 16 * 1024;
/// Pieces under way; then the sender has to wait, as before a full window.
const WINDOW: usize = 256;

pub(super) struct Acceptor {
    listener: TcpListener,
    far: SocketAddr,
    shared: Arc<Shared>,
    seed: u64,
}

/// One direction of one connection.
struct Way {
    direction: Direction,
    shared: Arc<Shared>,
    /// Number of resets when the connection began; another one ends it.
    resets: u64,
}

impl Acceptor {
    pub(super) fn new(
        near: SocketAddr,
        far: SocketAddr,
        shared: Arc<Shared>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(near).with_context(|| format!("cannot bind {near}"))?;
        listener.set_nonblocking(true).context("cannot make a socket non-blocking")?;
        Ok(Self { listener, far, shared, seed })
    }

    pub(super) fn run(self) {
        let mut carried = Vec::new();
        while !self.shared.stopped() {
            carried.retain(|thread: &thread::JoinHandle<()>| !thread.is_finished());
            // A wire that is cut does not even answer.
            let cut = self.shared.settings().there.cut;
            match self.listener.accept() {
                Ok((near, _)) if !cut => carried.extend(self.carry(near)),
                Ok(_) | Err(_) => thread::sleep(LOOK),
            }
        }
        for thread in carried {
            thread.join().ok();
        }
    }

    /// Starts the threads of one connection.
    fn carry(&self, near: TcpStream) -> Vec<thread::JoinHandle<()>> {
        let Ok(far) = TcpStream::connect_timeout(&self.far, Duration::from_secs(5)) else {
            return Vec::new();
        };
        let resets = self.shared.resets.load(Ordering::Relaxed);
        let way = |direction| Way { direction, shared: self.shared.clone(), resets };
        let mut threads = Vec::new();
        for (direction, from, to) in [(Direction::There, &near, &far), (Direction::Back, &far, &near)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let (sender, receiver) = sync_channel(WINDOW);
            let (reads, writes) = (way(direction), way(direction));
            let draws = Draws::new(self.seed ^ direction as u64);
            threads.push(thread::spawn(move || reads.read(&from, &sender, draws)));
            threads.push(thread::spawn(move || writes.write(&to, &receiver)));
        }
        threads
    }
}

impl Way {
    fn shape(&self) -> Shape {
        let settings = self.shared.settings();
        match self.direction {
            Direction::There => settings.there.clone(),
            Direction::Back => settings.back.clone(),
        }
    }

    fn ended(&self) -> bool {
        self.shared.stopped() || self.shared.resets.load(Ordering::Relaxed) != self.resets
    }

    #[expect(clippy::cast_precision_loss, reason = "a piece and a rate are far below 2^52")]
    fn read(&self, mut from: &TcpStream, pieces: &SyncSender<(Instant, Vec<u8>)>, mut draws: Draws) {
        from.set_read_timeout(Some(LOOK)).ok();
        let mut buffer = vec![0; PIECE];
        while !self.ended() {
            let shape = self.shape();
            if shape.cut {
                thread::sleep(LOOK);
                continue;
            }
            let length = match from.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_) => return,
            };
            if let Some(rate) = shape.rate {
                thread::sleep(Duration::from_secs_f64(length as f64 / rate.max(1) as f64));
            }
            let mut due = Instant::now() + shape.delay;
            if shape.loss > 0.0 && draws.part() < shape.loss * length.div_ceil(1400) as f64 {
                due += shape.delay * 2;
            }
            if pieces.send((due, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    }

    fn write(&self, mut to: &TcpStream, pieces: &Receiver<(Instant, Vec<u8>)>) {
        to.set_write_timeout(Some(Duration::from_secs(5))).ok();
        loop {
            let piece = pieces.recv_timeout(LOOK);
            if self.ended() {
                // Both ends learn it at once; what was under way is gone.
                to.shutdown(Shutdown::Both).ok();
                return;
            }
            let (due, bytes) = match piece {
                Ok(piece) => piece,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => continue,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            };
            while !self.ended() {
                let left = due.saturating_duration_since(Instant::now());
                if left.is_zero() && !self.shape().cut {
                    break;
                }
                thread::sleep(left.clamp(Duration::from_micros(50), LOOK));
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        to.shutdown(Shutdown::Write).ok();
    }
}

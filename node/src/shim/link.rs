//! The shim's end of the conversation with an agent: non-blocking but for the first message.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::bail;
use bytes::{Buf, BytesMut};
use plexus_proto::frame;

use super::protocol::{FRAME_MAX, Hello, Launch, Order, Report, ToShim, VERSION, Warm, report};

/// One connected agent.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    received: BytesMut,
    unsent: BytesMut,
    /// Orders that were read and are for whoever asks next.
    held: Vec<Order>,
    /// Last record the agent was told of.
    pub(super) told: u64,
    /// Why the agent thinks that output is held.
    pub(super) told_held: &'static str,
}

/// What a shim is told first.
pub(super) enum First {
    /// A unit.
    Launch(Box<Launch>),
    /// A worker that a unit will come to.
    Warm(Box<Warm>),
}

impl Link {
    /// Greets an agent.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        let mut link = Self {
            stream,
            received: BytesMut::new(),
            unsent: BytesMut::new(),
            held: Vec::new(),
            told: 0,
            told_held: "",
        };
        let pid = std::process::id();
        link.say(Report::Hello(Hello { version: VERSION, pid }));
        Ok(link)
    }

    /// Waits for the launch, or for the worker to be started ahead of it; `None` when the agent goes before that is
    /// complete. From then on the link never blocks.
    pub(super) fn wait_for_first(&mut self) -> anyhow::Result<Option<First>> {
        self.flush().ok(); // an agent that is gone shows at the next read
        loop {
            if let Some(message) = frame::decode::<ToShim>(&mut self.received, FRAME_MAX)? {
                let first = match message.order {
                    Some(Order::Launch(launch)) => First::Launch(launch),
                    Some(Order::Warm(warm)) => First::Warm(warm),
                    _ => bail!("the agent spoke before its launch"),
                };
                self.make_nonblocking()?;
                return Ok(Some(first));
            }
            // An agent that dies without having read the greeting shows as a reset.
            if self.fill().unwrap_or(0) == 0 {
                return Ok(None);
            }
        }
    }

    /// From now on nothing waits for this agent.
    pub(super) fn make_nonblocking(&self) -> io::Result<()> {
        self.stream.set_nonblocking(true)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Queues a report; [`Link::flush`] sends it.
    pub(super) fn say(&mut self, message: Report) {
        self.unsent.extend_from_slice(&report(message));
    }

    /// Sends what the socket takes.
    ///
    /// # Errors
    /// The agent is gone.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.unsent.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends everything, waiting for at most a second: the last words.
    pub(super) fn flush_all(&mut self) {
        let patience = std::time::Duration::from_secs(1);
        if self.stream.set_nonblocking(false).is_ok() && self.stream.set_write_timeout(Some(patience)).is_ok()
        {
            self.flush().ok();
        }
    }

    /// Takes what the agent said.
    ///
    /// # Errors
    /// The agent is gone, or speaks nonsense.
    pub(super) fn orders(&mut self) -> io::Result<Vec<Order>> {
        let mut orders = std::mem::take(&mut self.held);
        loop {
            // First what came together with the launch, or with an earlier order.
            while let Some(message) =
                frame::decode::<ToShim>(&mut self.received, FRAME_MAX).map_err(io::Error::other)?
            {
                orders.extend(message.order);
            }
            match self.fill() {
                Ok(0) if orders.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Ok(orders),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(orders),
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps orders for the next [`Link::orders`].
    pub(super) fn put_back(&mut self, orders: impl IntoIterator<Item = Order>) {
        self.held.extend(orders);
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 64 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

//! Links over TCP with TLS: messages and packets as frames on one stream.
//!
//! ```text
//!  0      1..4              4..
//!  kind   length, u24 BE    control: one LinkMessage
//!                           packets: stride u16 BE, then slots of that size, the last perhaps shorter
//! ```
//!
//! A slot is a packet with the room that a [`Batch`] leaves around it, so that a hop passes a frame on as it lies in
//! memory. The stream is watched by probes, one in [`TCP_KEEPALIVE`], and ends after [`TCP_IDLE`] of silence.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, BytesMut};
use plexus_proto::frame::LINK_FRAME_MAX;
use plexus_proto::link::{LinkClose, LinkMessage, LinkMessageKind, Probe};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;

use super::egress::Egress;
use super::wire::{End, TcpWire};
use super::{code, message};
use crate::batch::Batch;
use crate::bounded::Bounded;
use crate::forward::{Overlay, Via};
use crate::settings::{self, TCP_IDLE, TCP_KEEPALIVE};

/// Kinds of frame.
const CONTROL: u8 = 0;
const PACKETS: u8 = 1;
/// Longest frame of packets, unless it holds a single one: what control may have to wait for.
const PACKETS_LEN: usize = 32 * 1024;
/// Longest frame of packets that is taken.
const PACKETS_MAX: usize = 128 * 1024;
const HEADER: usize = 4;
/// Longest wait for the goodbye to be written.
const FAREWELL: Duration = Duration::from_millis(300);

/// A TLS stream of either side, after its handshake.
pub(crate) type Stream = TlsStream<Bounded>;

/// A stream whose handshake is over.
pub(crate) fn authenticated(stream: impl Into<Stream>) -> Box<Stream> {
    let mut stream = Box::new(stream.into());
    stream.get_mut().0.unbound();
    stream
}

/// Settings of a fresh TCP socket that links need.
pub(crate) fn prepare(stream: &TcpStream) {
    // Each of these makes links better; none is needed for them to work.
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_tcp_notsent_lowat(settings::TCP_UNSENT);
    // Cubic gives up most of a path with a little loss; inner connections have a control of their own.
    let _ = rustix::net::sockopt::set_tcp_congestion(stream, "bbr");
}

/// Writes one message, for the exchange of hellos.
pub(crate) async fn send(stream: &mut Stream, message: &LinkMessage) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    put_control(&mut buffer, message);
    stream.write_all(&buffer).await?;
    stream.flush().await
}

/// Reads one message, for the exchange of hellos. What follows stays in the stream.
pub(crate) async fn receive(stream: &mut Stream) -> io::Result<LinkMessage> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let (kind, length) = parse(header);
    if kind != CONTROL || length > LINK_FRAME_MAX {
        return Err(wrong("first frame is no message"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    LinkMessage::decode(&body[..]).map_err(|_| wrong("message does not decode"))
}

/// Tells the neighbour why there will be no link.
pub(crate) async fn refuse(stream: &mut Stream, code: quinn::VarInt, reason: &str) {
    let close = LinkClose { code: code.into_inner() as u32, reason: reason.to_owned() };
    let told = async {
        send(stream, &message(LinkMessageKind::Close(close))).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(FAREWELL, told).await;
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn parse(header: [u8; HEADER]) -> (u8, usize) {
    let [kind, a, b, c] = header;
    (kind, u32::from_be_bytes([0, a, b, c]) as usize)
}

fn put_control(buffer: &mut BytesMut, message: &LinkMessage) {
    let length = message.encoded_len();
    buffer.reserve(HEADER + length);
    put_header(buffer, CONTROL, length);
    message.encode(buffer).expect("space was reserved");
}

fn put_header(buffer: &mut BytesMut, kind: u8, length: usize) {
    buffer.put_u32(u32::from(kind) << 24 | length as u32 & 0xff_ffff);
}

/// Writes messages and packets until the link ends, and then why.
pub(crate) async fn write(
    mut stream: WriteHalf<Stream>,
    wire: Arc<TcpWire>,
    egress: Arc<Egress>,
    mut messages: mpsc::Receiver<Box<LinkMessage>>,
) {
    let written = tokio::select! {
        written = write_frames(&mut stream, &wire, &egress, &mut messages) => written,
        // In the middle of a frame that nobody takes: there is no goodbye then.
        () = async { wire.ended().await; tokio::time::sleep(FAREWELL).await } => return,
    };
    let end = match written {
        Ok(end) => end,
        Err(error) => {
            wire.ends(End::Broken(Arc::new(error)));
            return;
        }
    };
    if let End::Local { code, reason } = end {
        let close = LinkClose { code: code.into_inner() as u32, reason };
        let mut buffer = BytesMut::new();
        put_control(&mut buffer, &message(LinkMessageKind::Close(close)));
        let farewell = async {
            stream.write_all(&buffer).await?;
            stream.shutdown().await
        };
        // A neighbour that does not read finds out by itself.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

async fn write_frames(
    stream: &mut WriteHalf<Stream>,
    wire: &TcpWire,
    egress: &Egress,
    messages: &mut mpsc::Receiver<Box<LinkMessage>>,
) -> io::Result<End> {
    let mut header = BytesMut::with_capacity(256);
    let ended = wire.ended();
    tokio::pin!(ended);
    let mut keepalive = tokio::time::interval(TCP_KEEPALIVE);
    keepalive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        header.clear();
        tokio::select! {
            biased;
            end = &mut ended => return Ok(end),
            Some(message) = messages.recv() => {
                put_control(&mut header, &message);
                stream.write_all(&header).await?;
            }
            batch = egress.next() => write_batch(stream, batch, &mut header).await?,
            _ = keepalive.tick() => {
                // The nonce is the time since nothing in particular, for the round trip alone.
                let nonce = clock_micros();
                put_control(&mut header, &message(LinkMessageKind::Probe(Probe { nonce })));
                stream.write_all(&header).await?;
            }
        }
        stream.flush().await?;
    }
}

/// Microseconds on a clock of this process.
fn clock_micros() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// The round trip of a probe of ours, from its answer.
pub(crate) fn round_trip(nonce: u64) -> Option<Duration> {
    let took = Duration::from_micros(clock_micros().checked_sub(nonce)?);
    (took <= TCP_IDLE * 2).then_some(took)
}

async fn write_batch(
    stream: &mut (impl AsyncWrite + Unpin),
    batch: Batch,
    header: &mut BytesMut,
) -> io::Result<()> {
    let mut next = Some(batch);
    while let Some(mut batch) = next.take() {
        next = batch.split_after(PACKETS_LEN / batch.stride());
        header.clear();
        put_header(header, PACKETS, 2 + batch.bytes());
        header.put_u16(batch.stride() as u16);
        stream.write_all(header).await?;
        stream.write_all(batch.as_bytes()).await?;
    }
    Ok(())
}

/// Reads packets for the overlay and messages for `heard` until the stream ends.
pub(crate) async fn read(
    mut stream: ReadHalf<Stream>,
    wire: Arc<TcpWire>,
    overlay: Arc<Overlay>,
    via: Via,
    heard: mpsc::Sender<Box<LinkMessage>>,
) {
    let end = match read_frames(&mut stream, &overlay, &via, &heard).await {
        Ok(end) => end,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            End::Local { code: code::PROTOCOL, reason: error.to_string() }
        }
        Err(error) => End::Broken(Arc::new(error)),
    };
    wire.ends(end);
}

async fn read_frames(
    stream: &mut (impl AsyncRead + Unpin),
    overlay: &Overlay,
    via: &Via,
    heard: &mpsc::Sender<Box<LinkMessage>>,
) -> io::Result<End> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some((kind, frame)) = split(&mut buffer)? {
            match kind {
                PACKETS => take_packets(frame, overlay, via),
                CONTROL => {
                    let message =
                        LinkMessage::decode(frame.freeze()).map_err(|_| wrong("message does not decode"))?;
                    if let Some(LinkMessageKind::Close(LinkClose { code, reason })) = message.kind {
                        return Ok(End::Closed { code, reason });
                    }
                    if heard.send(Box::new(message)).await.is_err() {
                        return Ok(End::Local { code: code::SHUTDOWN, reason: "link is over".to_owned() });
                    }
                }
                // Of a later version: nothing it says is needed here.
                _ => {}
            }
        }
        buffer.reserve(PACKETS_LEN * 2);
        let read = tokio::time::timeout(TCP_IDLE, stream.read_buf(&mut buffer)).await;
        match read {
            Err(_) => return Ok(End::Silent(TCP_IDLE)),
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => drop(read?),
        }
    }
}

/// Takes the next whole frame off `buffer`.
pub(super) fn split(buffer: &mut BytesMut) -> io::Result<Option<(u8, BytesMut)>> {
    let Some(&header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let (kind, length) = parse(header);
    let most = if kind == PACKETS { PACKETS_MAX } else { LINK_FRAME_MAX };
    if length > most {
        return Err(wrong("frame is too long"));
    }
    if buffer.len() < HEADER + length {
        buffer.reserve(HEADER + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some((kind, buffer.split_to(length))))
}

fn take_packets(mut frame: BytesMut, overlay: &Overlay, via: &Via) {
    if frame.len() < 2 {
        return overlay.drops.malformed.add(1);
    }
    let stride = usize::from(frame.get_u16());
    match Batch::checked(frame, stride) {
        Ok(batch) => overlay.receive(via, batch),
        Err(_) => overlay.drops.malformed.add(1),
    }
}

/// Connects to `to`, through the HTTP proxy at `proxy` if there is one.
///
/// # Errors
/// Nobody answers, or the proxy refuses.
pub(crate) async fn connect(to: &Target) -> io::Result<TcpStream> {
    match to {
        Target::Direct(address) => TcpStream::connect(address).await,
        Target::Through { proxy, target } => {
            let mut stream = TcpStream::connect(proxy).await?;
            tunnel(&mut stream, target).await?;
            Ok(stream)
        }
    }
}

/// Where a TCP link goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Direct(SocketAddr),
    /// The proxy resolves the name: a network that needs one may have no names of the outside.
    Through {
        proxy: String,
        target: String,
    },
}

/// Longest answer of a proxy that is read.
const PROXY_ANSWER_MAX: usize = 4096;

pub(super) async fn tunnel(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &str,
) -> io::Result<()> {
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    // Byte by byte: what follows the answer is the neighbour's.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= PROXY_ANSWER_MAX {
            return Err(wrong("answer of the proxy is too long"));
        }
        answer.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&answer);
    let line = line.lines().next().unwrap_or_default();
    let status = line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=299) if line.starts_with("HTTP/1.") => Ok(()),
        _ => {
            let shown: String = line.chars().filter(|c| !c.is_control()).take(80).collect();
            Err(io::Error::other(format!("proxy answers {shown:?}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use plexus_proto::id::Address;

    use super::*;
    use crate::batch::ROOM;
    use plexus_proto::packet::{Class, HEADER_LEN, Header};
    use proptest::prelude::*;

    fn batch(bodies: &[u8], size: usize) -> Batch {
        let header = Header {
            class: Class::Bulk,
            ecn: 0,
            rekey: false,
            hop_limit: 9,
            source: Address(1),
            destination: Address(2),
        };
        Batch::build(header, bodies, size)
    }

    #[tokio::test]
    async fn batches_survive_the_stream() {
        let bodies: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
        let mut wire = Vec::new();
        write_batch(&mut wire, batch(&bodies, 1200), &mut BytesMut::new()).await.unwrap();
        write_batch(&mut wire, batch(&bodies[..50_000], 50_000), &mut BytesMut::new()).await.unwrap();
        let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(1000) {
            buffer.extend_from_slice(piece);
            while let Some((kind, mut frame)) = split(&mut buffer).unwrap() {
                assert_eq!(kind, PACKETS);
                let stride = usize::from(frame.get_u16());
                assert!(frame.len() <= PACKETS_LEN || frame.len() == stride);
                let batch = Batch::checked(frame, stride).unwrap();
                batch.bodies().for_each(|body| got.extend_from_slice(body));
            }
        }
        assert_eq!((buffer.len(), got.len()), (0, 150_000));
        assert!(got[..100_000] == bodies && got[100_000..] == bodies[..50_000]);
    }

    #[test]
    fn frames_that_are_too_long_are_refused_from_their_header() {
        for header in [[PACKETS, 0x02, 0, 1], [CONTROL, 0x04, 0, 1], [9, 0xff, 0xff, 0xff]] {
            assert!(split(&mut BytesMut::from(&header[..])).is_err(), "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), stride in 0usize..400) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = split(&mut buffer) {}
            if let Ok(batch) = Batch::checked(BytesMut::from(&bytes[..]), stride) {
                prop_assert!(batch.stride() >= HEADER_LEN + ROOM);
                prop_assert_eq!(batch.bodies().count(), batch.count());
            }
        }
    }

    async fn answered(answer: &'static [u8]) -> io::Result<()> {
        let (mut near, mut far) = tokio::io::duplex(8192);
        let proxy = tokio::spawn(async move {
            let mut asked = vec![0; 64];
            let length = far.read(&mut asked).await.unwrap();
            far.write_all(answer).await.unwrap();
            asked.truncate(length);
            (String::from_utf8(asked).unwrap(), far)
        });
        let outcome = tunnel(&mut near, "hop:7323").await;
        let (asked, _far) = proxy.await.unwrap();
        assert!(asked.starts_with("CONNECT hop:7323 HTTP/1.1\r\nHost: hop:7323\r\n\r\n"), "{asked}");
        outcome
    }

    #[tokio::test]
    async fn a_proxy_says_yes_or_why_not() {
        answered(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await.unwrap();
        let refused = answered(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap_err();
        assert!(refused.to_string().contains("403 Forbidden"), "{refused}");
        assert!(answered(b"SSH-2.0-OpenSSH\r\n\r\n").await.is_err());
        assert!(answered(&[b'x'; 5000]).await.is_err());
    }
}

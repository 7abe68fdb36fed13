//! Decoders of what comes over links, for fuzzing: everything that looks at bytes before or below [`LinkMessage`]s.
//!
//! [`LinkMessage`]: plexus_proto::link::LinkMessage

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::halves::Halves;
use super::seal::{Export, From, Opener, SECRET_LEN, Sealer};
use super::{frames, sealed};
use crate::batch::{Batch, Gather};

/// Packets that lie in a frame at equal distances, and what a hop does with them. The stride is in the first two bytes.
pub fn slots(data: &[u8]) {
    let Some((stride, rest)) = data.split_first_chunk::<2>() else { return };
    let Ok(mut batch) = Batch::checked(BytesMut::from(rest), u16::from_be_bytes(*stride).into()) else {
        return;
    };
    assert_eq!(batch.bodies().count(), batch.count());
    (0..batch.count()).for_each(|at| drop(batch.body(at).to_vec()));
    batch.set_hop_limit(1);
    let after = batch.split_after(2);
    let (count, more) = (batch.count(), after.as_ref().map_or(0, Batch::count));
    assert_eq!(std::iter::from_fn(|| batch.pop()).count(), count);
    assert!(more == 0 || count == 2);
}

/// Datagrams, each behind its length in one byte: halves are joined, packets gathered.
pub fn datagrams(mut data: &[u8]) {
    let (mut halves, mut gather, mut packets) = (Halves::default(), Gather::default(), 0);
    let mut gathered = 0;
    while let Some((&length, rest)) = data.split_first() {
        let (datagram, rest) = rest.split_at(rest.len().min(length.into()));
        data = rest;
        packets += usize::from(
            gather.push(datagram).map(|batch| gathered += batch.map_or(0, |b| b.count())).is_ok(),
        );
        if let Some(whole) = halves.join(&Bytes::copy_from_slice(datagram)) {
            assert!(whole.len() <= 2 * usize::from(u8::MAX));
        }
    }
    assert_eq!(
        gathered + gather.take().map_or(0, |batch| batch.count()),
        packets,
        "nothing is lost in between"
    );
}

/// Frames of a link on TCP, as they come in pieces of `cut` bytes.
pub fn tcp_frames(data: &[u8], cut: usize) {
    let mut buffer = BytesMut::new();
    for piece in data.chunks(cut.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match frames::split(&mut buffer) {
                Ok(Some((_, frame))) => slots(&frame),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// What a proxy answers to `CONNECT`; how many bytes of it were read.
pub fn proxy_answer(data: &[u8]) -> Option<usize> {
    let mut stream = tokio::io::join(data, tokio::io::sink());
    let outcome = pin!(frames::tunnel(&mut stream, "hop:7323")).poll(&mut Context::from_waker(Waker::noop()));
    match outcome {
        Poll::Ready(outcome) => outcome.ok().map(|()| data.len() - stream.reader().len()),
        Poll::Pending => panic!("bytes in memory are there at once"),
    }
}

/// A sealed packet from a stranger, then an honest one, which must be opened all the same; and what the link asks of
/// itself.
pub fn sealed_packet(data: &[u8]) {
    let export: Export = Arc::new(|epoch| Some([epoch as u8 + 1; SECRET_LEN]));
    let mut opener = Opener::new(export.clone(), From::Dialer);
    assert!(opener.open(&mut data.to_vec()).is_err(), "nobody guesses a key");
    let mut honest = vec![7; 64];
    Sealer::new(export, From::Dialer).seal(&mut honest);
    let again = honest.clone();
    assert!(opener.open(&mut honest).is_ok(), "a forged packet has harmed an honest one");
    assert!(opener.open(&mut again.clone()).is_err(), "it came twice");
    sealed::understand(data);
}

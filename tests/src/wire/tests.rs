//! A wire between real sockets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

/// A wire to a socket of ours.
fn wire(shape: Shape) -> (Wire, UdpSocket, UdpSocket) {
    let far = socket();
    let wire = Wire::to(far.local_addr().unwrap(), shape, 1).unwrap();
    let near = socket();
    near.connect(wire.address()).unwrap();
    (wire, near, far)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, std::net::SocketAddr) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..length].to_vec(), from)
}

#[test]
fn datagrams_go_there_and_back_late() {
    let delay = Duration::from_millis(30);
    let (_wire, near, far) = wire(Shape { delay, ..Shape::default() });
    let began = Instant::now();
    near.send(b"there").unwrap();
    let (heard, from) = receive(&far);
    assert_eq!(heard, b"there");
    far.send_to(b"back", from).unwrap();
    assert_eq!(receive(&near).0, b"back");
    assert!(began.elapsed() >= 2 * delay, "{:?}", began.elapsed());
}

#[test]
fn a_rebinding_shows_another_address_and_keeps_the_way_back() {
    let (wire, near, far) = wire(Shape::default());
    near.send(b"1").unwrap();
    let before = receive(&far).1;
    wire.rebind();
    // The wire looks at what it was told before it takes the next packet, or right after.
    let after = loop {
        near.send(b"2").unwrap();
        let from = receive(&far).1;
        if from != before {
            break from;
        }
    };
    far.send_to(b"3", after).unwrap();
    assert_eq!(receive(&near).0, b"3");
}

#[test]
fn one_way_cut_and_blocked_udp_are_silent_until_they_heal() {
    let (wire, near, far) = wire(Shape::default());
    near.send(b"1").unwrap();
    let from = receive(&far).1;
    let lost = |count: u64| {
        let began = Instant::now();
        while wire.counts().lost < count {
            assert!(began.elapsed() < DEADLINE, "{:?}", wire.counts());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    wire.change_one(Direction::Back, |shape| shape.cut = true);
    near.send(b"2").unwrap();
    assert_eq!(receive(&far).0, b"2", "the other way is open");
    far.send_to(b"lost", from).unwrap();
    lost(1);
    wire.cut(false);
    wire.block_udp(true);
    near.send(b"lost").unwrap();
    lost(2);
    wire.block_udp(false);
    near.send(b"3").unwrap();
    assert_eq!(receive(&far).0, b"3");
    far.send_to(b"4", from).unwrap();
    assert_eq!(receive(&near).0, b"4");
}

#[test]
fn tcp_is_carried_whole_late_and_at_the_rate() {
    let behind = TcpListener::bind("127.0.0.1:0").unwrap();
    let shape = Shape { delay: Duration::from_millis(20), rate: Some(4_000_000), ..Shape::default() };
    let wire = Wire::to(behind.local_addr().unwrap(), shape, 1).unwrap();
    wire.block_udp(true);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = behind.accept().unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        stream.write_all(&heard).unwrap();
    });
    let data: Vec<u8> = (0..1_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = TcpStream::connect(wire.address()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let began = Instant::now();
    stream.write_all(&data).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed).unwrap();
    assert!(echoed == data, "{} of {} bytes, or others", echoed.len(), data.len());
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "a quarter second each way: {:?}",
        began.elapsed()
    );
    server.join().unwrap();
}

#[test]
fn tcp_waits_while_cut_and_ends_when_reset() {
    let behind = TcpListener::bind("127.0.0.1:0").unwrap();
    let wire = Wire::to(behind.local_addr().unwrap(), Shape::default(), 1).unwrap();
    let mut near = TcpStream::connect(wire.address()).unwrap();
    let (mut far, _) = behind.accept().unwrap();
    near.set_read_timeout(Some(DEADLINE)).unwrap();
    far.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    near.write_all(b"1").unwrap();
    let mut byte = [0];
    far.read_exact(&mut byte).unwrap();
    wire.cut(true);
    near.write_all(b"2").unwrap();
    assert!(far.read(&mut byte).is_err(), "nothing passes a cut");
    wire.cut(false);
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    far.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"2");
    wire.reset_tcp();
    assert!(matches!(near.read(&mut byte), Ok(0) | Err(_)));
    assert!(matches!(far.read(&mut byte), Ok(0) | Err(_)));
}

#[test]
fn a_namespace_is_a_host_of_its_own() {
    let (one, other) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let (here, there) = (address("10.97.0.1"), address("10.97.0.2"));
    one.join(&other, "cable", &[here, address("fd97::1")], &[there, address("fd97::2")]).unwrap();
    let send = |to: &str| one.run("bash", &["-c", &format!("echo > /dev/udp/{to}/9")]);
    send("10.97.0.2").unwrap();
    send("fd97::2").unwrap();
    assert!(send("10.98.0.1").is_err(), "no route leads out of it");
    one.set_mtu("cable", 1300).unwrap();
    one.remove_address("cable", here).unwrap();
    assert!(send("10.97.0.2").is_err(), "without an address there is no way");
    one.add_address("cable", address("10.97.0.3")).unwrap();
    send("10.97.0.2").unwrap();
}

//! What programs do with streams.

use std::time::Duration;

use plexus_mesh::framed::{FrameReader, FrameWriter};
use plexus_mesh::grpc::{self, PeerIdentity};
use plexus_mesh::{Allow, ConnectError, Refusal, StreamError};
use plexus_proto::id::Role;
use plexus_proto::link::Probe;
use plexus_proto::local::{LocalAnswer, LocalClient, LocalForward, LocalQuery, LocalServer};
use plexus_proto::packet::Class;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Request, Response, Status};

use crate::world::{ANYONE, World, accept, assert_same, id, pattern, reachable, within};

#[tokio::test]
async fn bytes_cross_a_hop_exactly_in_both_directions() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let mut listener = node.listen("echo", ANYONE).unwrap();
    let data = pattern(32 << 20);
    let stream = within("connect", controller.connect(&id("node-1"), "echo", Class::Bulk)).await.unwrap();
    assert_eq!(stream.peer().node, id("node-1"));

    let (mut reader, mut writer) = stream.into_split();
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let echo = tokio::spawn(async move {
        let stream = accept(&mut listener).await;
        assert_eq!(stream.peer().node, id("controller"));
        let (mut reader, mut writer) = stream.into_split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    within("echo", reader.read_to_end(&mut back)).await.unwrap();
    sender.await.unwrap();
    echo.await.unwrap();
    assert_same(&back, &data);
    for mesh in [controller, hop, node] {
        within("shutdown", mesh.shutdown()).await;
    }
}

#[tokio::test]
async fn either_end_can_open_streams_in_either_class() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    for (from, to) in [(&controller, &node), (&node, &controller)] {
        let mut listener = to.listen("hello", ANYONE).unwrap();
        for class in [Class::Control, Class::Bulk] {
            let target = to.identity().node.clone();
            let mut near = within("connect", from.connect(&target, "hello", class)).await.unwrap();
            near.write_all(b"who is there").await.unwrap();
            let mut far = accept(&mut listener).await;
            assert_eq!(far.peer(), from.identity());
            let mut heard = [0; 12];
            within("read", far.read_exact(&mut heard)).await.unwrap();
            assert_eq!(&heard, b"who is there");
        }
    }
}

/// Opens `service` from the execution node and returns what the first read says.
async fn refusal(service: &str, allow: Allow) -> Option<Refusal> {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let _listener = controller.listen("offered", allow).unwrap();
    let mut stream =
        within("connect", node.connect(&id("controller"), service, Class::Control)).await.unwrap();
    let error = within("refusal", stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    match StreamError::of(&error) {
        Some(StreamError::Refused(refusal)) => Some(*refusal),
        _ => None,
    }
}

#[tokio::test]
async fn a_service_for_another_role_is_refused() {
    let controllers = Allow { roles: &[Role::Controller], same_cluster: true };
    assert_eq!(refusal("offered", controllers).await, Some(Refusal::NotAllowed));
}

#[tokio::test]
async fn a_service_that_nobody_offers_is_refused() {
    assert_eq!(refusal("unheard-of", ANYONE).await, Some(Refusal::UnknownService));
}

#[tokio::test]
async fn nodes_that_are_unknown_or_gone_are_errors_that_say_so() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let connect = |name: &'static str| {
        let controller = controller.clone();
        async move { within("connect", controller.connect(&id(name), "x", Class::Control)).await.unwrap_err() }
    };
    assert!(matches!(connect("nobody").await, ConnectError::Unknown { .. }));
    assert!(matches!(connect("controller").await, ConnectError::Myself { .. }));
    within("shutdown", node.shutdown()).await;
    reachable(&controller, "node-1", false).await;
    assert!(matches!(connect("node-1").await, ConnectError::Unreachable { .. }));
    within("shutdown", controller.shutdown()).await;
    assert!(matches!(connect("hop-1").await, ConnectError::ShuttingDown));
}

#[tokio::test]
async fn dropping_a_stream_resets_it_and_finishing_does_not() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let mut listener = node.listen("half", ANYONE).unwrap();
    let mut open = async || {
        let mut near = controller.connect(&id("node-1"), "half", Class::Bulk).await.unwrap();
        near.write_all(b"half a message").await.unwrap();
        (near, accept(&mut listener).await)
    };

    let (near, mut far) = within("open", open()).await;
    let mut text = [0; 14];
    within("read", far.read_exact(&mut text)).await.unwrap();
    drop(near);
    let error = within("reset", far.read_u8()).await.unwrap_err();
    assert!(matches!(StreamError::of(&error), Some(StreamError::Reset(0))), "{error}");

    let (mut near, mut far) = within("open", open()).await;
    near.shutdown().await.unwrap();
    drop(near);
    let mut text = String::new();
    within("read", far.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "half a message");
}

#[tokio::test]
async fn a_reader_that_stops_does_not_stop_the_others() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let mut listener = node.listen("sink", ANYONE).unwrap();
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut near =
            within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
        // Writes until the peer's window is full: nobody reads at the other end.
        let piece = vec![1; 64 * 1024];
        while tokio::time::timeout(Duration::from_millis(300), near.write_all(&piece)).await.is_ok() {}
        stuck.push((near, accept(&mut listener).await));
    }
    let mut near = within("connect", controller.connect(&id("node-1"), "sink", Class::Bulk)).await.unwrap();
    let data = pattern(8 << 20);
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut far = accept(&mut listener).await;
    let mut got = Vec::new();
    within("transfer beside stuck streams", far.read_to_end(&mut got)).await.unwrap();
    assert_same(&got, &data);
    sender.await.unwrap();
}

#[tokio::test]
async fn framed_messages_travel_both_ways() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let mut listener = node.listen("framed", ANYONE).unwrap();
    let near = within("connect", controller.connect(&id("node-1"), "framed", Class::Bulk)).await.unwrap();
    let (reader, writer) = near.into_split();
    let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
    let answering = tokio::spawn(async move {
        let (reader, writer) = accept(&mut listener).await.into_split();
        let (mut reader, mut writer) = (FrameReader::new(reader), FrameWriter::new(writer));
        while let Some(Probe { nonce }) = reader.next(100).await.unwrap() {
            writer.send(&Probe { nonce: nonce + 1 }).await.unwrap();
        }
        writer.finish().await.unwrap();
    });
    for nonce in 0..100 {
        writer.send(&Probe { nonce }).await.unwrap();
        let answer: Option<Probe> = within("answer", reader.next(100)).await.unwrap();
        assert_eq!(answer, Some(Probe { nonce: nonce + 1 }));
    }
    writer.finish().await.unwrap();
    assert_eq!(within("end", reader.next::<Probe>(100)).await.unwrap(), None);
    answering.await.unwrap();
}

/// Answers with who asked.
struct WhoAsks;

#[tonic::async_trait]
impl plexus_proto::local::Local for WhoAsks {
    async fn query(&self, request: Request<LocalQuery>) -> Result<Response<LocalAnswer>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().ok_or_else(|| Status::internal("no peer"))?;
        Ok(Response::new(LocalAnswer { json: peer.0.uri() }))
    }

    type ForwardStream = futures_util::stream::Empty<Result<LocalForward, Status>>;

    async fn forward(
        &self,
        _: Request<tonic::Streaming<LocalForward>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        Err(Status::unimplemented("only asked who asks"))
    }
}

fn serve(mesh: &plexus_mesh::Mesh) -> tokio::task::JoinHandle<()> {
    let listener = mesh.listen("local", ANYONE).unwrap();
    let service = LocalServer::new(WhoAsks);
    let server = tonic::transport::Server::builder();
    tokio::spawn(async move { server.serve_with_incoming(service, grpc::incoming(listener)).await.unwrap() })
}

#[tokio::test]
async fn grpc_calls_cross_a_hop_and_know_who_calls() {
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let server = serve(&node);
    let mut client = LocalClient::new(grpc::channel(&controller, &id("node-1"), "local"));
    for _ in 0..3 {
        let answer = within("call", client.query(LocalQuery { kind: None })).await.unwrap();
        assert_eq!(answer.into_inner().json, "spiffe://demo/main/controller/controller");
    }
    within("shutdown", node.shutdown()).await;
    within("server ends with its mesh", server).await.unwrap();
}

#[tokio::test]
async fn a_grpc_channel_finds_a_service_that_started_again() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let mut client = LocalClient::new(grpc::channel(&controller, &id("node-1"), "local"));
    let _server = serve(&node);
    within("call", client.query(LocalQuery { kind: None })).await.unwrap();

    within("shutdown", node.shutdown()).await;
    reachable(&controller, "node-1", false).await;
    let error = within("call to nobody", client.query(LocalQuery { kind: None })).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable, "{error:?}");

    let node = world.leaf(Role::Execution, "node-1", hop.listen_addresses()[0]).await;
    let _server = serve(&node);
    reachable(&controller, "node-1", true).await;
    within("call again", client.query(LocalQuery { kind: None })).await.unwrap();
}

#[tokio::test]
async fn a_thousand_streams_stand_open_at_once_and_each_is_its_own() {
    const STREAMS: u32 = 1000;
    let world = World::new();
    let (controller, _hop, node) = world.line().await;
    let mut listener = node.listen("echo", ANYONE).unwrap();
    let echo = tokio::spawn(async move {
        for _ in 0..STREAMS {
            let (mut reader, mut writer) = accept(&mut listener).await.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut reader, &mut writer).await });
        }
    });
    let mut open = Vec::new();
    for number in 0..STREAMS {
        let stream = within("connect", controller.connect(&id("node-1"), "echo", Class::Bulk)).await;
        let mut stream = stream.unwrap();
        stream.write_u32(number).await.unwrap();
        assert_eq!(within("echo", stream.read_u32()).await.unwrap(), number);
        open.push(stream);
    }
    echo.await.unwrap();
    for (number, stream) in (1_000_000..).zip(&mut open) {
        stream.write_u32(number).await.unwrap();
        assert_eq!(within("echo", stream.read_u32()).await.unwrap(), number);
    }
}

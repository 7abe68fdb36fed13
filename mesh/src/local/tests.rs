use std::collections::BTreeMap;

use jiff::Timestamp;
use plexus_proto::id::{Address, Role};
use tokio::sync::oneshot;

use super::*;
use crate::status::{NodeStatus, PacketCounts, SCHEMA_VERSION, TraceHop};

/// Knows `near`, cannot reach `far`, and waits in vain for `mute`.
struct Fake;

fn name(text: &str) -> NodeId {
    text.parse().unwrap()
}

impl Answers for Fake {
    fn status(&self) -> Status {
        let me = NodeStatus {
            node: name("me"),
            role: Role::Hop,
            cluster: "main".parse().unwrap(),
            address: Address(1),
            this: true,
            reachable: true,
            cost: None,
            hops: None,
            next_hop: None,
            software: "test".into(),
            since: Timestamp::UNIX_EPOCH,
            neighbors: BTreeMap::new(),
            backup_next_hop: None,
            backup_cost: None,
        };
        Status {
            schema_version: SCHEMA_VERSION,
            node: name("me"),
            role: Role::Hop,
            mesh: "mesh".parse().unwrap(),
            cluster: "main".parse().unwrap(),
            address: Address(1),
            software: "test".into(),
            certificate_expires: Timestamp::UNIX_EPOCH,
            listen: vec![],
            peers: vec![],
            links: vec![],
            nodes: vec![me],
            packets: PacketCounts::default(),
            problems: vec![],
        }
    }

    async fn ping(&self, node: NodeId, timeout: Duration) -> Result<Ping, QueryError> {
        match node.as_str() {
            "near" => Ok(Ping {
                schema_version: SCHEMA_VERSION,
                from: name("me"),
                node,
                rtt_ms: timeout.as_secs_f64() * 1e3,
                hops: 1,
            }),
            "far" => Err(QueryError::Unreachable(node)),
            "mute" => Err(QueryError::Timeout { node, timeout }),
            _ => Err(QueryError::UnknownNode(node)),
        }
    }

    async fn trace(&self, node: NodeId, _timeout: Duration) -> Result<Trace, QueryError> {
        let hop = TraceHop {
            node: Some(node.clone()),
            address: Some(Address(2)),
            rtt_ms: Some(0.5),
            ..TraceHop::default()
        };
        let from = name("me");
        Ok(Trace {
            schema_version: SCHEMA_VERSION,
            from,
            target: node,
            reached: true,
            hops: vec![hop],
            error: None,
        })
    }
}

struct Served {
    dir: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = LocalSocket::bind(&dir.path().join("node.sock")).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(socket.serve(Arc::new(Fake), shutdown));
        Self { dir, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("node.sock")
    }
}

#[tokio::test]
async fn answers_are_the_documented_json() {
    let served = Served::start().await;
    let mut client = LocalClient::connect(&served.path()).await.unwrap();
    assert_eq!(serde_json::from_str::<Status>(&client.status().await.unwrap()).unwrap(), Fake.status());
    let nodes = client.nodes().await.unwrap();
    assert!(nodes.starts_with(r#"{"schema_version":1,"from":"me","nodes":[{"node":"me","#), "{nodes}");
    let ping = client.ping("near", Duration::from_millis(250)).await.unwrap();
    assert_eq!(ping, r#"{"schema_version":1,"from":"me","node":"near","rtt_ms":250.0,"hops":1}"#);
    let trace: Trace = serde_json::from_str(&client.trace("near", Duration::ZERO).await.unwrap()).unwrap();
    assert!(trace.reached);
}

#[tokio::test]
async fn each_refusal_has_its_code() {
    let served = Served::start().await;
    let mut client = LocalClient::connect(&served.path()).await.unwrap();
    for (node, code, text) in [
        ("nobody", tonic::Code::NotFound, "node nobody is not known in this mesh"),
        ("far", tonic::Code::Unavailable, "no route to node far"),
        ("mute", tonic::Code::DeadlineExceeded, "no answer from node mute within 70 ms"),
        ("NO NAME", tonic::Code::InvalidArgument, "node name \"NO NAME\" must be 1 to 63 of"),
    ] {
        let error = client.ping(node, Duration::from_millis(70)).await.unwrap_err();
        let ClientError::Refused(status) = &error else { panic!("{error:?}") };
        assert_eq!(status.code(), code);
        assert!(error.to_string().starts_with(text), "{error}");
    }
}

#[tokio::test]
async fn timeouts_are_bounded() {
    let served = Served::start().await;
    let mut client = LocalClient::connect(&served.path()).await.unwrap();
    for (asked, given) in [(0, 5000.0), (100, 100.0), (3_600_000, 60_000.0)] {
        let ping = client.ping("near", Duration::from_millis(asked)).await.unwrap();
        assert_eq!(serde_json::from_str::<Ping>(&ping).unwrap().rtt_ms, given);
    }
}

#[tokio::test]
async fn a_live_socket_is_not_taken_and_a_dead_one_is_replaced() {
    let served = Served::start().await;
    let path = served.path();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let error = LocalSocket::bind(&path).await.unwrap_err();
    assert!(matches!(error, ServeError::Taken(_)), "{error}");

    // Its process is killed: nobody listens, the file stays.
    served.task.abort();
    served.task.await.unwrap_err();
    assert!(path.exists());
    let error = LocalClient::connect(&path).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    );
    LocalSocket::bind(&path).await.unwrap();
}

#[tokio::test]
async fn shutdown_removes_the_socket() {
    let served = Served::start().await;
    let path = served.path();
    served.stop.send(()).unwrap();
    served.task.await.unwrap().unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_folder_that_is_missing_is_named() {
    let error = LocalSocket::bind(Path::new("/nonexistent/node.sock")).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot listen at /nonexistent/node.sock");
}

#[test]
fn the_group_is_found_by_its_whole_name() {
    assert_eq!(group_id("root:x:0:\nplexus-x:x:7:\nplexus:x:998:a,b\n"), Some(998));
    assert_eq!(group_id("root:x:0:\n"), None);
}

#[tokio::test]
async fn verbs_that_nobody_offers_say_so() {
    let served = Served::start().await;
    let mut client = LocalClient::connect(&served.path()).await.unwrap();
    let error = client.events(0, Duration::ZERO).await.unwrap_err();
    assert_eq!(error.to_string(), "this daemon does not offer events");
    let routes = client.routes().await.unwrap();
    assert_eq!(routes, r#"{"schema_version":1,"from":"me","routes":[]}"#);
    let links = client.links().await.unwrap();
    assert_eq!(links, r#"{"schema_version":1,"from":"me","links":[]}"#);
}

/// As whoever runs the tests: root is told that a stand-in cannot, everybody else that they may not.
#[tokio::test]
async fn acting_is_for_root() {
    let served = Served::start().await;
    let mut client = LocalClient::connect(&served.path()).await.unwrap();
    let verb = Action::Drain { deadline_ms: Some(1000), reason: None };
    for (answered, name) in [
        (client.act(&Action::Reload).await, "reload"),
        (client.act(&verb).await, "drain"),
        (client.netcheck(None, "near").await, "netcheck"),
    ] {
        let said = answered.unwrap_err().to_string();
        let expected = match rustix::process::geteuid().is_root() {
            true => format!("this daemon does not offer {name}"),
            false => format!("only root of this machine may {name} here"),
        };
        assert_eq!(said, expected);
    }
}

#[test]
fn who_is_not_vouched_for_is_not_root() {
    assert!(!is_root(&Request::new(())));
}

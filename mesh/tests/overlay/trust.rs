//! Who is trusted with what, while it changes: roots that are rolled over, rules about services, revocations that go
//! around a mesh of several hops.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use plexus_mesh::ca::CertificateAuthority;
use plexus_mesh::identity::Credentials;
use plexus_mesh::revocation::{Entry, List};
use plexus_mesh::{Config, ConnectError, Listener, Mesh, MeshStream, Refusal, StreamError};
use plexus_proto::id::Role;
use plexus_proto::packet::Class;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{ANYONE, World, accept, any, id, reachable, within};

/// A live member, and how to configure it again.
struct Member {
    role: Role,
    name: &'static str,
    listen: Vec<SocketAddr>,
    peers: Vec<SocketAddr>,
    mesh: Mesh,
}

impl Member {
    /// Gives it a certificate of `authority`, and has it take that without a restart.
    async fn reissue(&self, world: &World, authority: &CertificateAuthority) {
        let life = Duration::from_secs(24 * 3600);
        authority.issue(self.role, &id(self.name), &world.of(self.name), life).unwrap();
        let config = world.config(self.role, self.name, &self.listen, &self.peers);
        let report = within("reload", self.mesh.reload(config)).await.unwrap();
        assert!(report.credentials && report.removed.is_empty(), "{report}");
    }
}

async fn exchange(near: &mut MeshStream, far: &mut MeshStream, byte: u8) {
    near.write_u8(byte).await.unwrap();
    assert_eq!(within("there", far.read_u8()).await.unwrap(), byte);
    far.write_u8(byte).await.unwrap();
    assert_eq!(within("back", near.read_u8()).await.unwrap(), byte);
}

#[tokio::test]
async fn a_root_is_rolled_over_under_open_streams() {
    let world = World::new();
    let straggler = world.credentials(Role::Execution, "straggler");
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let member = |role, name, listen: &[SocketAddr], peers: &[SocketAddr], mesh: &Mesh| Member {
        role,
        name,
        listen: listen.to_vec(),
        peers: peers.to_vec(),
        mesh: mesh.clone(),
    };
    let members = [
        member(Role::Hop, "hop-1", &[any()], &[], &hop),
        member(Role::Controller, "controller", &[], &[at], &controller),
        member(Role::Execution, "node-1", &[], &[at], &node),
    ];
    let mut listener = node.listen("echo", ANYONE).unwrap();
    let mut near =
        within("connect", controller.connect(&id("node-1"), "echo", Class::Control)).await.unwrap();
    near.write_u8(0).await.unwrap();
    let mut far = accept(&mut listener).await;
    assert_eq!(within("first byte", far.read_u8()).await.unwrap(), 0);

    let ca = CertificateAuthority::open(&world.of("ca")).unwrap();
    let old = ca.roots()[0].clone();
    let introduced = ca.introduce_root(&[]).unwrap();
    let mut byte = 0;
    for member in &members {
        member.reissue(&world, &introduced).await;
        byte += 1;
        exchange(&mut near, &mut far, byte).await;
    }
    // Two that were away since: their certificates are of the old root, and they trust both.
    for name in ["between-1", "between-2"] {
        introduced.issue(Role::Execution, &id(name), &world.of(name), Duration::from_secs(3600)).unwrap();
    }
    let switched = introduced.switch_root(&[]).unwrap();
    for (number, member) in members.iter().enumerate() {
        member.reissue(&world, &switched).await;
        byte += 1;
        exchange(&mut near, &mut far, byte).await;
        // Fresh links and sessions, too, while the one end has switched and the other has not.
        if number < 2 {
            let name = ["between-1", "between-2"][number];
            let between = world.leaf(Role::Execution, name, at).await;
            reachable(&between, "controller", true).await;
            reachable(&controller, name, true).await;
            let mut offered = between.listen("echo", ANYONE).unwrap();
            let mut stream =
                within("connect", controller.connect(&id(name), "echo", Class::Control)).await.unwrap();
            stream.write_u8(9).await.unwrap();
            assert_eq!(within("byte", accept(&mut offered).await.read_u8()).await.unwrap(), 9);
        }
    }
    let retired = switched.retire_root(&[]).unwrap();
    for member in &members {
        member.reissue(&world, &retired).await;
        byte += 1;
        exchange(&mut near, &mut far, byte).await;
        assert_eq!(world.credentials(member.role, member.name).verifier().roots(), retired.roots());
    }
    assert!(!retired.roots().contains(&old));

    // Who comes new knows the new root alone, and everybody; who still shows the old one is refused.
    retired.issue(Role::Execution, &id("fresh"), &world.of("fresh"), Duration::from_secs(3600)).unwrap();
    let fresh = world.leaf(Role::Execution, "fresh", at).await;
    reachable(&fresh, "controller", true).await;
    reachable(&controller, "fresh", true).await;
    assert_eq!(straggler.verifier().roots(), [old]);
    let late = world.leaf(Role::Execution, "straggler", at).await;
    refused(&late).await;
    assert!(hop.status().nodes.iter().all(|known| known.node != id("straggler")));
    exchange(&mut near, &mut far, byte + 1).await;
}

/// Waits until the only peer of `mesh` has said no.
async fn refused(mesh: &Mesh) {
    let heard = async {
        while !mesh.status().peers.iter().any(|peer| !peer.linked && peer.error.is_some()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("refusal", heard).await;
    assert!(mesh.status().links.is_empty());
}

/// What a rule says at the near end is known before anything is sent; what one says at the far end, at the first read.
#[tokio::test]
async fn rules_about_services_hold_at_both_ends_and_fail_closed() {
    let rules = |text: &str| serde_json::from_str::<plexus_mesh::Policy>(text).unwrap();
    let only_boss =
        r#"{"services": [{"service": "door", "from": ["controller/boss"], "to": ["execution/*"]}]}"#;
    // A rule for a service that nobody may open: it names the service, and no one.
    let nobody = r#"{"services": [{"service": "door", "from": [], "to": ["*"]}]}"#;
    // Both ends, and what comes of it: open, refused there, denied here.
    for (near, far, expected) in [
        ("{}", "{}", "open"),
        (only_boss, "{}", "denied"),
        ("{}", only_boss, "refused"),
        ("{}", nobody, "refused"),
        (nobody, "{}", "denied"),
        (nobody, nobody, "denied"),
    ] {
        let world = World::new();
        let hop = world.hop(any()).await;
        let at = hop.listen_addresses()[0];
        let start = |role, name, policy: &str| {
            Mesh::start(Config { policy: rules(policy), ..world.config(role, name, &[], &[at]) })
        };
        let controller = start(Role::Controller, "controller", near).await.unwrap();
        let boss = start(Role::Controller, "boss", near).await.unwrap();
        let node = start(Role::Execution, "node-1", far).await.unwrap();
        for end in [&controller, &boss] {
            reachable(end, "node-1", true).await;
        }
        let mut door = node.listen("door", ANYONE).unwrap();
        let mut other = node.listen("other", ANYONE).unwrap();
        let found = open(&controller, "door", &mut door).await;
        assert_eq!(found, expected, "near {near}, far {far}");
        // The one whom the rules name gets in wherever no rule of either end leaves him out.
        let named = ![near, far].contains(&nobody);
        assert_eq!(open(&boss, "door", &mut door).await == "open", named, "near {near}, far {far}");
        assert_eq!(open(&controller, "other", &mut other).await, "open", "no rule names it");
    }
}

/// How opening `service` on node-1 ends, which listens with `listener`.
async fn open(mesh: &Mesh, service: &str, listener: &mut Listener) -> &'static str {
    let stream = within("connect", mesh.connect(&id("node-1"), service, Class::Control)).await;
    let mut stream = match stream {
        Err(ConnectError::Denied(_)) => return "denied",
        stream => stream.unwrap(),
    };
    stream.write_u8(1).await.unwrap();
    let outcome = async {
        tokio::select! {
            accepted = listener.accept() => {
                assert_eq!(accepted.unwrap().peer(), mesh.identity());
                "open"
            }
            read = stream.read_u8() => match StreamError::of(&read.unwrap_err()) {
                Some(StreamError::Refused(Refusal::NotAllowed)) => "refused",
                other => panic!("{other:?}"),
            }
        }
    };
    within("verdict", outcome).await
}

/// A revoked node with links to both ends of a chain of hops loses them all; printed: how soon.
#[tokio::test]
async fn a_revocation_reaches_every_hop_and_outlives_the_controller() {
    const HOPS: [&str; 4] = ["hop-1", "hop-2", "hop-3", "hop-4"];
    let world = World::new();
    let mut hops: Vec<Mesh> = Vec::new();
    for name in HOPS {
        let peers: Vec<SocketAddr> = hops.last().map(|hop| hop.listen_addresses()[0]).into_iter().collect();
        hops.push(Mesh::start(world.config(Role::Hop, name, &[any()], &peers)).await.unwrap());
    }
    let all: Vec<SocketAddr> = hops.iter().map(|hop| hop.listen_addresses()[0]).collect();
    let controller = world.leaf(Role::Controller, "controller", all[0]).await;
    let node = Mesh::start(world.config(Role::Execution, "node-1", &[], &all)).await.unwrap();
    for hop in &hops {
        reachable(hop, "node-1", true).await;
    }
    reachable(&controller, "hop-4", true).await;
    reachable(&controller, "node-1", true).await;
    let linked = async {
        while node.status().links.len() < HOPS.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within("a link to every hop", linked).await;

    let owner = world.credentials(Role::Controller, "controller");
    let key = controller.key_of(&id("node-1")).unwrap();
    let entries = [(id("node-1"), Entry { key: Some(key), at: jiff::Timestamp::now() })];
    let list = List::sign(&owner, 1, &entries, UnixTime::now()).unwrap();
    let began = Instant::now();
    controller.publish_revocations(list).await;
    for hop in &hops {
        reachable(hop, "node-1", false).await;
        let closed = async {
            while hop.status().links.iter().any(|link| link.peer == id("node-1")) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within("end of the link", closed).await;
    }
    println!("closed at all {} hops after {:?}", HOPS.len(), began.elapsed());

    // The controller is gone; a hop that comes new to the mesh learns it from its neighbours.
    within("shutdown", controller.shutdown()).await;
    let late = Mesh::start(world.config(Role::Hop, "hop-5", &[any()], &[all[3]])).await.unwrap();
    reachable(&late, "hop-1", true).await;
    let again = Credentials::load(&world.of("node-1")).unwrap();
    let at = late.listen_addresses()[0];
    let again = Config {
        peers: vec![plexus_mesh::Peer::new(at.to_string())],
        ..Config::new(again, world.of("node-1").join("state-2"), "test node-1")
    };
    let again = Mesh::start(again).await.unwrap();
    refused(&again).await;
}

#[tokio::test]
async fn a_copied_node_is_told_and_one_that_was_started_again_is_not() {
    let world = World::new();
    let (controller, hop, node) = world.line().await;
    let at = hop.listen_addresses()[0];
    let copied = |mesh: &Mesh| {
        let problems = mesh.status().problems;
        problems.into_iter().find(|problem| problem.code == "clone" && problem.subject == "node-1")
    };
    within("shutdown", node.shutdown()).await;
    reachable(&controller, "node-1", false).await;
    let node = world.leaf(Role::Execution, "node-1", at).await;
    reachable(&controller, "node-1", true).await;
    assert_eq!(copied(&hop), None);

    // The whole folder, identity and state, on a machine of its own.
    let folder = world.of("copy");
    std::fs::create_dir_all(folder.join("state")).unwrap();
    for from in [world.of("node-1"), world.of("node-1").join("state")] {
        let to = folder.join(from.strip_prefix(world.of("node-1")).unwrap());
        for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    }
    let config = Config {
        peers: vec![plexus_mesh::Peer::new(at.to_string())],
        ..Config::new(Credentials::load(&folder).unwrap(), folder.join("state"), "test copy")
    };
    let copy = Mesh::start(config).await.unwrap();
    let told = async {
        loop {
            if let Some(problem) = copied(&hop) {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let problem = within("a word of the copy", told).await;
    assert!(problem.text.contains("node-1 runs twice"), "{problem:?}");
    assert!(problem.advice.contains("plexus node revoke node-1"), "{problem:?}");
    assert_eq!(hop.status().problems[0], problem, "the gravest first");
    drop((node, copy));
}

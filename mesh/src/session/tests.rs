use std::task::Poll;

use plexus_proto::id::Role;
use plexus_proto::packet::{LinkNote, Probe};
use tokio::task::JoinSet;
use tokio_util::sync::DropGuard;

use super::*;
use crate::ca::CertificateAuthority;
use crate::forward::{Exit, Local, Via};
use crate::link::egress::Egress;
use crate::liveness::Pulse;
use crate::service::{Allow, Listener};

const SERVICE: &str = "test.session";

/// Who takes the packets that reach a node.
#[derive(Debug)]
struct Door(Arc<Sessions>);

impl Local for Door {
    fn deliver(&self, batch: Batch) -> bool {
        self.0.deliver(batch)
    }

    fn probed(&self, _: Address, _: Probe, _: Option<LinkNote>) {}
}

/// One life of a node with one neighbour, which is all the mesh it has.
struct End {
    overlay: Arc<Overlay>,
    egress: Arc<Egress>,
    sessions: Arc<Sessions>,
    listener: Listener,
    _alive: DropGuard,
}

impl End {
    fn start(credentials: &Credentials, other: &Credentials) -> Self {
        let overlay = Arc::new(Overlay::new(credentials.identity()));
        let egress = Arc::new(Egress::over_frames(None, Pulse::new(Arc::default())));
        let exit = Exit { next: egress.clone(), backup: None };
        overlay.route(vec![(other.identity().address, Some(exit))]);

        let services = Arc::new(Services::new(credentials.identity().clone()));
        let allow = Allow { roles: &[Role::Controller, Role::Execution], same_cluster: true };
        let listener = services.listen(SERVICE, allow).unwrap();
        let nodes = [credentials, other].map(|each| each.identity().clone());
        let directory = Arc::new(ArcSwap::from_pointee(Directory::new(nodes.into_iter())));
        let alive = CancellationToken::new();
        let sessions = Sessions::start(overlay.clone(), services, credentials, directory, &alive);
        overlay.attach(Arc::new(Door(sessions.clone())));
        Self { overlay, egress, sessions, listener, _alive: alive.drop_guard() }
    }
}

/// Carries packets between two nodes until it is dropped.
struct Wire {
    _carriers: JoinSet<()>,
}

impl Wire {
    fn between(near: &End, far: &End) -> Self {
        let mut carriers = JoinSet::new();
        for (from, to) in [(near, far), (far, near)] {
            let (from, to) = (from.egress.clone(), (to.overlay.clone(), to.egress.clone()));
            carriers.spawn(async move {
                let via = Via { leaf: None, egress: to.1 };
                loop {
                    to.0.receive(&via, from.next().await);
                }
            });
        }
        Self { _carriers: carriers }
    }
}

fn credentials() -> (Credentials, Credentials) {
    crate::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    let mesh = "demo".parse().unwrap();
    let authority =
        CertificateAuthority::init(&folder.path().join("ca"), &mesh, &"main".parse().unwrap()).unwrap();
    let issue = |role, name: &str| {
        let out = folder.path().join(name);
        authority.issue(role, &name.parse().unwrap(), &out, Duration::from_secs(3600)).unwrap();
        Credentials::load(&out).unwrap()
    };
    (issue(Role::Controller, "near"), issue(Role::Execution, "far"))
}

/// Lets every other task that is ready have one turn. Tokio's own way lets them have as many as they like.
async fn turn() {
    let mut had = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut had, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The peer's word that it knows nothing of a connection, and a change of route, may come in the same moment: the
/// connection takes both in one turn.
#[tokio::test]
async fn a_kick_may_meet_the_end_of_a_connection() {
    let (ours, theirs) = credentials();
    let peer = theirs.identity().clone();
    let near = End::start(&ours, &theirs);
    for turns in 0..10 {
        let mut far = End::start(&theirs, &ours);
        let wire = Wire::between(&near, &far);
        let stream = near.sessions.open(&peer, SERVICE, Class::Control).await.unwrap();
        far.listener.accept().await.unwrap();
        let session = near.sessions.session(&peer, Class::Control).unwrap();
        let before = session.established().expect("a stream is open on it").connection;

        // Its program dies without a word, and is there again.
        drop(wire);
        let again = End::start(&theirs, &ours);
        let _wire = Wire::between(&near, &again);
        let asked = before.clone();
        let kicked = tokio::spawn(async move {
            let heard = session.socket.heard();
            let (mut to_nobody, _answer) = asked.open_bi().await.unwrap();
            to_nobody.write_all(b"anybody?").await.unwrap();
            while session.socket.heard() == heard {
                turn().await;
            }
            for _ in 0..turns {
                turn().await;
            }
            session.kick();
        });
        kicked.await.unwrap();
        let reason = tokio::time::timeout(CONNECT_TIMEOUT, before.closed()).await.expect("it is told");
        assert_eq!(reason, ConnectionError::Reset, "{turns} turns after the word");
        drop(stream);
    }
}

/// Its packets went the way that is no more, and would be repeated after twice the time that they have been gone.
#[tokio::test]
async fn a_dial_is_made_anew_over_a_new_route() {
    let (ours, theirs) = credentials();
    let peer = theirs.identity().clone();
    let near = End::start(&ours, &theirs);
    let mut far = End::start(&theirs, &ours);
    let sessions = near.sessions.clone();
    let opened = tokio::spawn({
        let peer = peer.clone();
        async move { sessions.open(&peer, SERVICE, Class::Control).await }
    });
    near.egress.next().await;
    let session = near.sessions.session(&peer, Class::Control).unwrap();
    let twice = async {
        while session.endpoint.open_connections() < 2 {
            near.sessions.kick(peer.address);
            tokio::time::sleep(settings::FIRST_RTT / 4).await;
        }
    };
    tokio::time::timeout(CONNECT_TIMEOUT / 2, twice).await.expect("it dials again");
    let _wire = Wire::between(&near, &far);
    opened.await.unwrap().unwrap();
    far.listener.accept().await.unwrap();
}

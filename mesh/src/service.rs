//! Services: who listens for which streams, and who may open them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use plexus_proto::id::{ClusterId, Identity, Role};
use tokio::sync::mpsc;

use crate::authorization::{self, Policy};
use crate::error::{ListenError, Refusal};
use crate::stream::MeshStream;

/// Streams that wait to be accepted, for each service. It fills when the program stops accepting; later streams are
/// then refused as busy.
const BACKLOG: usize = 128;

/// Who may use a service. Nobody but those named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allow {
    /// Roles that may.
    pub roles: &'static [Role],
    /// Only nodes of this node's own cluster.
    pub same_cluster: bool,
}

impl Allow {
    fn permits(&self, peer: &Identity, own: &Identity, trusted: &[ClusterId]) -> bool {
        let cluster = peer.cluster == own.cluster || trusted.contains(&peer.cluster);
        self.roles.contains(&peer.role) && (!self.same_cluster || cluster)
    }
}

/// The services of one node.
#[derive(Debug)]
pub(crate) struct Services {
    own: Identity,
    table: Mutex<Table>,
    policy: ArcSwap<Policy>,
}

#[derive(Debug, Default)]
struct Table {
    offers: HashMap<String, Offer>,
    next: u64,
    closed: bool,
}

#[derive(Debug)]
struct Offer {
    id: u64,
    allow: Allow,
    streams: mpsc::Sender<MeshStream>,
}

impl Services {
    pub(crate) fn new(own: Identity) -> Self {
        Self { own, table: Mutex::default(), policy: ArcSwap::default() }
    }

    /// Goes by these rules from now on; streams that are open stay.
    pub(crate) fn go_by(&self, policy: Policy) {
        self.policy.store(Arc::new(policy));
    }

    /// Whether our own rules let us open `service` on `peer`.
    pub(crate) fn may_open(&self, service: &str, peer: &Identity) -> bool {
        self.policy.load().permits(service, &self.own, peer)
    }

    pub(crate) fn listen(self: &Arc<Self>, service: &str, allow: Allow) -> Result<Listener, ListenError> {
        if service.is_empty() || service.len() > 255 {
            return Err(ListenError::Name(service.to_owned()));
        }
        let mut table = self.table.lock().expect("no code panics under this lock");
        if table.closed {
            return Err(ListenError::ShuttingDown);
        }
        if table.offers.contains_key(service) {
            return Err(ListenError::Taken(service.to_owned()));
        }
        table.next += 1;
        let id = table.next;
        let (sender, streams) = mpsc::channel(BACKLOG);
        table.offers.insert(service.to_owned(), Offer { id, allow, streams: sender });
        Ok(Listener { services: self.clone(), service: service.to_owned(), id, streams })
    }

    /// Where streams of `peer` for `service` go.
    pub(crate) fn admit(
        &self,
        service: &str,
        peer: &Identity,
    ) -> Result<mpsc::OwnedPermit<MeshStream>, Refusal> {
        let streams = {
            let table = self.table.lock().expect("no code panics under this lock");
            let offer = table.offers.get(service).ok_or(Refusal::UnknownService)?;
            let policy = self.policy.load();
            let by_table = authorization::service(service, &self.own, peer, &policy.clusters);
            let allowed = by_table.unwrap_or(true)
                && offer.allow.permits(peer, &self.own, &policy.clusters)
                && policy.permits(service, peer, &self.own);
            if !allowed {
                return Err(Refusal::NotAllowed);
            }
            offer.streams.clone()
        };
        streams.try_reserve_owned().map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy,
            mpsc::error::TrySendError::Closed(_) => Refusal::UnknownService,
        })
    }

    /// Ends every listener.
    pub(crate) fn close(&self) {
        let mut table = self.table.lock().expect("no code panics under this lock");
        table.closed = true;
        table.offers.clear();
    }

    fn withdraw(&self, service: &str, id: u64) {
        let mut table = self.table.lock().expect("no code panics under this lock");
        if table.offers.get(service).is_some_and(|offer| offer.id == id) {
            table.offers.remove(service);
        }
    }
}

/// Accepts the streams of one service; dropping it withdraws the service.
#[derive(Debug)]
pub struct Listener {
    services: Arc<Services>,
    service: String,
    id: u64,
    streams: mpsc::Receiver<MeshStream>,
}

impl Listener {
    /// The next stream, from a peer that may use the service; `None` once the mesh is shut down.
    ///
    /// Dropping the future loses nothing.
    pub async fn accept(&mut self) -> Option<MeshStream> {
        self.streams.recv().await
    }

    /// Name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.services.withdraw(&self.service, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(cluster: &str, role: Role) -> Identity {
        Identity {
            mesh: "demo".parse().unwrap(),
            cluster: cluster.parse().unwrap(),
            role,
            node: "n".parse().unwrap(),
            address: plexus_proto::id::Address(1),
        }
    }

    const CONTROLLERS: Allow = Allow { roles: &[Role::Controller], same_cluster: true };

    #[tokio::test]
    async fn only_the_named_roles_and_clusters_are_admitted() {
        let services = Arc::new(Services::new(identity("main", Role::Execution)));
        let _listener = services.listen("work", CONTROLLERS).unwrap();
        let check = |service: &str, cluster, role| services.admit(service, &identity(cluster, role)).err();
        assert_eq!(check("work", "main", Role::Controller), None);
        assert_eq!(check("work", "main", Role::Hop), Some(Refusal::NotAllowed));
        assert_eq!(check("work", "other", Role::Controller), Some(Refusal::NotAllowed));
        assert_eq!(check("nothing", "main", Role::Controller), Some(Refusal::UnknownService));
    }

    #[tokio::test]
    async fn a_service_is_offered_once_and_again_after_its_listener_is_gone() {
        let services = Arc::new(Services::new(identity("main", Role::Execution)));
        let first = services.listen("work", CONTROLLERS).unwrap();
        assert!(matches!(services.listen("work", CONTROLLERS), Err(ListenError::Taken(_))));
        drop(first);
        let mut second = services.listen("work", CONTROLLERS).unwrap();
        services.close();
        assert!(second.accept().await.is_none());
        assert!(matches!(services.listen("x", CONTROLLERS), Err(ListenError::ShuttingDown)));
    }

    #[tokio::test]
    async fn a_listener_that_does_not_accept_turns_busy() {
        let services = Arc::new(Services::new(identity("main", Role::Execution)));
        let _listener = services.listen("work", CONTROLLERS).unwrap();
        let peer = identity("main", Role::Controller);
        let permits: Vec<_> = (0..BACKLOG).map(|_| services.admit("work", &peer).unwrap()).collect();
        assert_eq!(services.admit("work", &peer).err(), Some(Refusal::Busy));
        drop(permits);
        assert!(services.admit("work", &peer).is_ok());
    }
}

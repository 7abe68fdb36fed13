//! Who may say and open what: one table, by certified role and cluster, deny by default; and the rules of a policy on
//! top, which can only take away.
//!
//! Everything that asks "may they?" asks here: the task of a link about messages and packets, the services about
//! streams. A service that is not in the table is its own listener's business ([`Allow`](crate::Allow)); one that is
//! can be opened to fewer by its listener, never to more.

use std::fmt;

use plexus_proto::id::{ClusterId, Identity, NodeId, Role};
use plexus_proto::link::LinkMessageKind;
use serde::{Deserialize, Serialize};

use crate::enrol::token::Pattern;

/// How a message or packet of a neighbour counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Taken from this neighbour, about this link.
    Taken,
    /// For as much as its own signature and chain certify, whoever brings it.
    Signed,
    /// Only if a controller of the cluster that it is about has signed it.
    SignedByController,
    /// About the neighbour itself only.
    Own,
    /// Once, as the first message.
    First,
    /// Never.
    Refused,
}

/// What a neighbour can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// A message on the control stream, by its name in `link.proto`.
    Message(&'static str),
    /// An overlay packet for this node.
    PacketForUs,
    /// An overlay packet for somebody else.
    PacketForOthers,
}

/// Where a service is offered, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Roles that may offer it.
    pub on: &'static [Role],
    /// Roles that may open it.
    pub by: &'static [Role],
    /// Only within a cluster, and from clusters that the policy names.
    pub same_cluster: bool,
}

const EVERYBODY: &[Role] = &[Role::Controller, Role::Execution, Role::Hop];

/// Services of Plexus itself.
pub const SERVICES: &[Service] = &[
    // Verbs of work units, their payload, their records, the trees they leave: from the controllers that own them.
    Service { name: "work", on: &[Role::Execution], by: &[Role::Controller], same_cluster: true },
    Service { name: "payload", on: &[Role::Execution], by: &[Role::Controller], same_cluster: true },
    Service { name: "records", on: &[Role::Execution], by: &[Role::Controller], same_cluster: true },
    Service { name: "collect", on: &[Role::Execution], by: &[Role::Controller], same_cluster: true },
    // Calls for certificates prove themselves, so any member may pass one on.
    Service { name: "enrol", on: &[Role::Controller], by: EVERYBODY, same_cluster: false },
];

/// Every kind of message and packet, and how it counts from a controller, an execution node and a hop.
pub const SENT: &[(Sent, [Verdict; 3])] = {
    use Verdict::{First, Own, Refused, Signed, SignedByController, Taken};
    &[
        (Sent::Message("hello"), [First; 3]),
        (Sent::Message("announcement"), [Signed; 3]),
        (Sent::Message("digest"), [Taken; 3]),
        (Sent::Message("want"), [Taken; 3]),
        (Sent::Message("probe"), [Taken; 3]),
        (Sent::Message("probe_reply"), [Taken; 3]),
        (Sent::Message("close"), [Taken; 3]),
        (Sent::Message("sealed_ready"), [Taken; 3]),
        (Sent::Message("revocations"), [SignedByController; 3]),
        (Sent::Message("next_certificate"), [Own; 3]),
        // Hops tell the way to nodes without a map, which ask for it; nobody else does either.
        (Sent::Message("told"), [Refused, Refused, Taken]),
        (Sent::Message("ask"), [Refused, Taken, Refused]),
        // Who does not transit speaks for itself only; a hop passes on what others say.
        (Sent::PacketForUs, [Own, Own, Taken]),
        // By the role of who receives: only hops pass on.
        (Sent::PacketForOthers, [Refused, Refused, Taken]),
    ]
};

/// How `sent` counts from a neighbour of `role`; for [`Sent::PacketForOthers`] from anybody, on a node of `role`.
/// What is not in the table is not taken.
pub fn verdict(sent: Sent, role: Role) -> Verdict {
    let column = match role {
        Role::Controller => 0,
        Role::Execution => 1,
        Role::Hop => 2,
    };
    let row = SENT.iter().find(|(known, _)| *known == sent);
    row.map_or(Verdict::Refused, |(_, verdicts)| verdicts[column])
}

/// Whether packets from a neighbour of `role` must carry its own address as their source.
pub(crate) fn speaks_for_itself(role: Role) -> bool {
    verdict(Sent::PacketForUs, role) == Verdict::Own
}

/// Whether a node of `role` passes packets on.
pub(crate) fn transits(role: Role) -> bool {
    verdict(Sent::PacketForOthers, role) == Verdict::Taken
}

/// Whether the table lets `peer` open `service` on `own`; `None` where the table does not know the service.
pub fn service(name: &str, own: &Identity, peer: &Identity, trusted: &[ClusterId]) -> Option<bool> {
    let row = SERVICES.iter().find(|row| row.name == name)?;
    let cluster = !row.same_cluster || own.cluster == peer.cluster || trusted.contains(&peer.cluster);
    let mesh = own.mesh == peer.mesh;
    Some(mesh && cluster && row.on.contains(&own.role) && row.by.contains(&peer.role))
}

/// The name of a message in `link.proto`, for the table and for logs. Each variant by hand: a new message does not
/// compile before somebody has thought of who may send it.
pub fn message_name(kind: &LinkMessageKind) -> &'static str {
    match kind {
        LinkMessageKind::Hello(_) => "hello",
        LinkMessageKind::Announcement(_) => "announcement",
        LinkMessageKind::Digest(_) => "digest",
        LinkMessageKind::Want(_) => "want",
        LinkMessageKind::Probe(_) => "probe",
        LinkMessageKind::ProbeReply(_) => "probe_reply",
        LinkMessageKind::Close(_) => "close",
        LinkMessageKind::Revocations(_) => "revocations",
        LinkMessageKind::NextCertificate(_) => "next_certificate",
        LinkMessageKind::SealedReady(_) => "sealed_ready",
        LinkMessageKind::Told(_) => "told",
        LinkMessageKind::Ask(_) => "ask",
    }
}

/// Rules of an operator: section `[policy]`. They narrow what the table allows, and are checked at both ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Other clusters whose controllers may use the services for controllers here.
    pub clusters: Vec<ClusterId>,
    /// Who may open which service on whom. A service that no rule names is left to the table; one that a rule names is
    /// open to those whom its rules name, and to nobody else.
    pub services: Vec<Rule>,
}

/// Who may open a service on whom.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the service.
    pub service: String,
    /// Who may open it.
    pub from: Vec<Selector>,
    /// On whom.
    pub to: Vec<Selector>,
}

/// Nodes by name, `node-*`, or by role and name, `controller/*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    role: Option<Role>,
    name: Pattern,
}

/// Text that selects nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a name such as node-*, nor role and name such as controller/*")]
pub struct BadSelector(String);

impl TryFrom<String> for Selector {
    type Error = BadSelector;

    fn try_from(text: String) -> Result<Self, BadSelector> {
        let (role, name) = match text.split_once('/') {
            Some((role, name)) => (Some(role.parse().map_err(|_| BadSelector(text.clone()))?), name),
            None => (None, text.as_str()),
        };
        let name = name.parse().map_err(|()| BadSelector(text.clone()))?;
        Ok(Self { role, name })
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> Self {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Some(role) => write!(f, "{role}/{}", self.name),
            None => self.name.fmt(f),
        }
    }
}

impl Selector {
    fn matches(&self, identity: &Identity) -> bool {
        self.role.is_none_or(|role| role == identity.role) && self.name.matches(&identity.node)
    }
}

impl Policy {
    /// Whether the rules let `from` open `service` on `to`.
    pub fn permits(&self, service: &str, from: &Identity, to: &Identity) -> bool {
        let mut rules = self.services.iter().filter(|rule| rule.service == service).peekable();
        let any = |selectors: &[Selector], identity| selectors.iter().any(|one| one.matches(identity));
        rules.peek().is_none() || rules.any(|rule| any(&rule.from, from) && any(&rule.to, to))
    }
}

/// A stream that may not be opened: said at the near end, before anything is sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node's policy does not let it open {service} on {node}")]
pub struct Denied {
    /// The service.
    pub service: String,
    /// On whom.
    pub node: NodeId,
}

#[cfg(test)]
mod tests {
    use plexus_proto::enrol::{NextCertificate, SignedRevocations};
    use plexus_proto::link::{
        Ask, Digest, Hello, LinkClose, Probe, ProbeReply, SealedReady, SignedAnnouncement, Told, Want,
    };

    use super::*;

    const ROLES: [Role; 3] = [Role::Controller, Role::Execution, Role::Hop];

    fn identity(role: Role, cluster: &str, node: &str) -> Identity {
        Identity {
            mesh: "demo".parse().unwrap(),
            cluster: cluster.parse().unwrap(),
            role,
            node: node.parse().unwrap(),
            address: plexus_proto::id::Address(1),
        }
    }

    /// Every message there is, so that the test below walks all of them.
    fn every_message() -> Vec<LinkMessageKind> {
        vec![
            LinkMessageKind::Hello(Hello::default()),
            LinkMessageKind::Announcement(SignedAnnouncement::default()),
            LinkMessageKind::Digest(Digest::default()),
            LinkMessageKind::Want(Want::default()),
            LinkMessageKind::Probe(Probe::default()),
            LinkMessageKind::ProbeReply(ProbeReply::default()),
            LinkMessageKind::Close(LinkClose::default()),
            LinkMessageKind::SealedReady(SealedReady::default()),
            LinkMessageKind::Revocations(SignedRevocations::default()),
            LinkMessageKind::NextCertificate(NextCertificate::default()),
            LinkMessageKind::Told(Told::default()),
            LinkMessageKind::Ask(Ask::default()),
        ]
    }

    /// Walks every role × every message, packet and service, on every role, in the same cluster and in another; the
    /// whole matrix is written out below.
    #[test]
    fn the_matrix_of_roles_and_messages_is_the_one_that_was_decided() {
        let mut found = String::new();
        let mut sent: Vec<Sent> =
            every_message().iter().map(|kind| Sent::Message(message_name(kind))).collect();
        sent.extend([Sent::PacketForUs, Sent::PacketForOthers]);
        for sent in sent {
            let verdicts: Vec<_> = ROLES.map(|role| format!("{:?}", verdict(sent, role))).to_vec();
            let name = match sent {
                Sent::Message(name) => name.to_owned(),
                other => format!("{other:?}"),
            };
            found += &format!("{name}: {}\n", verdicts.join(" "));
        }
        let names: Vec<&str> = SERVICES.iter().map(|row| row.name).chain(["anything-else"]).collect();
        for name in names {
            for on in ROLES {
                let open = |cluster| {
                    let may =
                        |by| service(name, &identity(on, "main", "us"), &identity(by, cluster, "them"), &[]);
                    let allowed: Vec<_> =
                        ROLES.into_iter().filter(|&by| may(by) == Some(true)).map(Role::as_str).collect();
                    match may(on) {
                        None => "its listener".to_owned(),
                        Some(_) if allowed.is_empty() => "nobody".to_owned(),
                        Some(_) => allowed.join("+"),
                    }
                };
                found += &format!("{name} on {on}: {}; other cluster: {}\n", open("main"), open("other"));
            }
        }
        assert_eq!(found, MATRIX);
    }

    const MATRIX: &str = "\
hello: First First First
announcement: Signed Signed Signed
digest: Taken Taken Taken
want: Taken Taken Taken
probe: Taken Taken Taken
probe_reply: Taken Taken Taken
close: Taken Taken Taken
sealed_ready: Taken Taken Taken
revocations: SignedByController SignedByController SignedByController
next_certificate: Own Own Own
told: Refused Refused Taken
ask: Refused Taken Refused
PacketForUs: Own Own Taken
PacketForOthers: Refused Refused Taken
work on controller: nobody; other cluster: nobody
work on execution: controller; other cluster: nobody
work on hop: nobody; other cluster: nobody
payload on controller: nobody; other cluster: nobody
payload on execution: controller; other cluster: nobody
payload on hop: nobody; other cluster: nobody
records on controller: nobody; other cluster: nobody
records on execution: controller; other cluster: nobody
records on hop: nobody; other cluster: nobody
collect on controller: nobody; other cluster: nobody
collect on execution: controller; other cluster: nobody
collect on hop: nobody; other cluster: nobody
enrol on controller: controller+execution+hop; other cluster: controller+execution+hop
enrol on execution: nobody; other cluster: nobody
enrol on hop: nobody; other cluster: nobody
anything-else on controller: its listener; other cluster: its listener
anything-else on execution: its listener; other cluster: its listener
anything-else on hop: its listener; other cluster: its listener
";

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        for role in ROLES {
            assert_eq!(verdict(Sent::Message("of a later version"), role), Verdict::Refused);
        }
    }

    #[test]
    fn a_cluster_that_the_policy_names_may_give_work() {
        let (own, other) = (identity(Role::Execution, "main", "n"), identity(Role::Controller, "other", "c"));
        assert_eq!(service("work", &own, &other, &[]), Some(false));
        assert_eq!(service("work", &own, &other, &["other".parse().unwrap()]), Some(true));
        let hop = identity(Role::Hop, "other", "h");
        assert_eq!(service("work", &own, &hop, &["other".parse().unwrap()]), Some(false));
    }

    #[test]
    fn rules_narrow_a_service_to_whom_they_name() {
        let policy: Policy = serde_json::from_str(
            r#"{"services": [
                {"service": "work", "from": ["controller/c-1"], "to": ["node-*"]},
                {"service": "work", "from": ["c-2"], "to": ["node-2"]}
            ]}"#,
        )
        .unwrap();
        let check = |service: &str, from: (Role, &str), to: &str| {
            let (from, to) = (identity(from.0, "main", from.1), identity(Role::Execution, "main", to));
            policy.permits(service, &from, &to)
        };
        assert!(check("work", (Role::Controller, "c-1"), "node-1"));
        assert!(!check("work", (Role::Hop, "c-1"), "node-1"), "the name alone is not enough");
        assert!(check("work", (Role::Controller, "c-2"), "node-2"));
        assert!(!check("work", (Role::Controller, "c-2"), "node-1"));
        assert!(!check("work", (Role::Controller, "c-3"), "node-1"), "whom no rule names is refused");
        assert!(check("records", (Role::Controller, "c-3"), "node-1"), "no rule names this service");
    }

    #[test]
    fn rules_that_make_no_sense_are_refused_at_once() {
        for text in [
            r#"{"services": [{"service": "work", "from": ["boss/*"], "to": ["*"]}]}"#,
            r#"{"services": [{"service": "work", "from": ["Upper"], "to": ["*"]}]}"#,
            r#"{"services": [{"service": "work", "from": ["*"]}]}"#,
            r#"{"services": [{"service": "work", "from": ["*"], "to": ["*"], "deny": true}]}"#,
            r#"{"rules": []}"#,
        ] {
            assert!(serde_json::from_str::<Policy>(text).is_err(), "{text}");
        }
    }
}

//! Ids as newtypes that parse.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::generated::{OwnerEpoch as WireEpoch, UnitRef};

/// A name or id that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Node, mesh and cluster names are 1 to 63 of `a-z`, `0-9`, `-`, `_`, `.`, starting with a letter or digit.
    #[error("{what} {text:?} must be 1 to 63 of a-z, 0-9, '-', '_' and '.', starting with a letter or digit")]
    Name {
        /// Which kind of name.
        what: &'static str,
        /// The text as given, cut to 80 characters.
        text: String,
    },
    /// A role other than the three.
    #[error("role {0:?} is none of controller, execution, hop")]
    Role(String),
    /// A unit id that is not 16 bytes of UUID.
    #[error("unit id must be the 16 bytes of a UUID, not {0} bytes")]
    Unit(usize),
    /// A message without its unit reference.
    #[error("message names no unit")]
    NoUnit,
    /// An address that is not eight hexadecimal digits.
    #[error("address {0:?} must be eight hexadecimal digits")]
    Address(String),
}

fn check_name(what: &'static str, text: &str) -> Result<(), ParseError> {
    let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let all_well =
        text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
    if starts_well && all_well && text.len() <= 63 {
        return Ok(());
    }
    Err(ParseError::Name { what, text: text.chars().take(80).collect() })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = ParseError;
            fn from_str(text: &str) -> Result<Self, ParseError> {
                check_name($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = ParseError;
            fn try_from(text: String) -> Result<Self, ParseError> {
                check_name($what, &text)?;
                Ok(Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// Certified name of a node, unique in its mesh: `node-1`, `web3.example.org`.
    NodeId,
    "node name"
);
name!(
    /// Name of a mesh: the trust domain of its SPIFFE identities.
    MeshName,
    "mesh name"
);
name!(
    /// A cluster: the controllers that share one database, and the nodes they enrolled.
    ClusterId,
    "cluster id"
);

/// What a node is certified to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Places work and collects events. Never transits.
    Controller,
    /// Runs work units. Never transits.
    Execution,
    /// Forwards packets, nothing else.
    Hop,
}

impl Role {
    /// The word used in identities, commands and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Execution => "execution",
            Self::Hop => "hop",
        }
    }
}

impl FromStr for Role {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "controller" => Ok(Self::Controller),
            "execution" => Ok(Self::Execution),
            "hop" => Ok(Self::Hop),
            other => Err(ParseError::Role(other.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Overlay address of a node: certified at enrolment, never reused. Shown as eight hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u32);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Address {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() != 8 {
            return Err(ParseError::Address(text.chars().take(80).collect()));
        }
        u32::from_str_radix(text, 16).map(Self).map_err(|_| ParseError::Address(text.to_owned()))
    }
}

/// Id of a work unit: a UUIDv7 minted by the controller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub Uuid);

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// One attempt at running a unit. Attempts count from 1; a second one only by explicit retry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    /// Which unit.
    pub unit: UnitId,
    /// Which attempt, from 1.
    pub number: u32,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.unit, self.number)
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Attempt> for UnitRef {
    fn from(attempt: Attempt) -> UnitRef {
        UnitRef { id: attempt.unit.0.as_bytes().to_vec().into(), attempt: attempt.number }
    }
}

impl TryFrom<&UnitRef> for Attempt {
    type Error = ParseError;
    fn try_from(wire: &UnitRef) -> Result<Self, ParseError> {
        let unit = Uuid::from_slice(&wire.id).map_err(|_| ParseError::Unit(wire.id.len()))?;
        Ok(Self { unit: UnitId(unit), number: wire.attempt })
    }
}

impl TryFrom<Option<&UnitRef>> for Attempt {
    type Error = ParseError;
    fn try_from(wire: Option<&UnitRef>) -> Result<Self, ParseError> {
        wire.ok_or(ParseError::NoUnit)?.try_into()
    }
}

/// Who may act on a unit: the highest epoch shown to the node. Ordered by incarnation, then counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct OwnerEpoch {
    /// Rises only when a database was restored from a backup.
    pub incarnation: u64,
    /// Rises at each attach.
    pub counter: u64,
}

impl From<OwnerEpoch> for WireEpoch {
    fn from(epoch: OwnerEpoch) -> WireEpoch {
        WireEpoch { incarnation: epoch.incarnation, counter: epoch.counter }
    }
}

impl From<WireEpoch> for OwnerEpoch {
    fn from(epoch: WireEpoch) -> Self {
        Self { incarnation: epoch.incarnation, counter: epoch.counter }
    }
}

/// Random identity of a node's data directory, bound into every attempt: a reimaged node has another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub Uuid);

impl StoreId {
    /// Reads the 16 bytes of a message.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, ParseError> {
        Uuid::from_slice(bytes).map(Self).map_err(|_| ParseError::Unit(bytes.len()))
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// Certified identity of a mesh member.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Trust domain.
    pub mesh: MeshName,
    /// The controllers' cluster that enrolled it.
    pub cluster: ClusterId,
    /// What it may do.
    pub role: Role,
    /// Its name.
    pub node: NodeId,
    /// Its overlay address.
    pub address: Address,
}

impl Identity {
    /// The SAN URI that carries this identity: `spiffe://<mesh>/<cluster>/<role>/<node>`.
    pub fn uri(&self) -> String {
        format!("spiffe://{}/{}/{}/{}", self.mesh, self.cluster, self.role, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_would_not_fit_a_uri_or_a_path() {
        for good in ["node-1", "a", "9.example.org", "x_y"] {
            assert!(good.parse::<NodeId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a/b", "..", ".a", "a b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn epochs_order_by_incarnation_first() {
        let old = OwnerEpoch { incarnation: 1, counter: 900 };
        let new = OwnerEpoch { incarnation: 2, counter: 1 };
        assert!(new > old);
    }
}

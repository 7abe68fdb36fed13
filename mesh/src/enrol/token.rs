//! Tokens: what an operator hands to somebody who installs a machine.
//!
//! `plexus1-` and base64url of an [`EnrolToken`]: whom to ask, how to know the mesh again (fingerprints of its
//! roots), an id, and a secret that proves the right to it without ever travelling.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use plexus_proto::enrol::EnrolToken;
use plexus_proto::id::{ClusterId, MeshName, NodeId, Role};
use prost::Message;
use zeroize::Zeroizing;

const PREFIX: &str = "plexus1-";
/// Longest token that is looked at: a dozen addresses.
const TEXT_MAX: usize = 4096;
/// Most roots: the old and the new one of a rollover, and slack.
const ROOTS_MAX: usize = 8;
/// Most addresses, and the longest.
const ADDRESSES_MAX: usize = 16;
const ADDRESS_MAX: usize = 300;
/// In front of the request, so that this HMAC is good for nothing else.
const CONTEXT: &[u8] = b"plexus join v1\0";

/// Text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else, or cut while it was copied.
    #[error("this is no Plexus token, or only part of one: it begins with {PREFIX:?} and has no spaces")]
    NotAToken,
    /// Made by a later version.
    #[error("this token is of a later Plexus; upgrade plexus-node")]
    Later,
    /// A part that makes no sense.
    #[error("the token's {0} makes no sense")]
    Part(&'static str),
}

/// A secret of 32 bytes. Wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Bytes from a vault.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for a vault.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Proves, without showing it, that the secret is known to whoever made request `csr`.
    pub fn mac(&self, csr: &[u8]) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        hmac::sign(&key, &[CONTEXT, csr].concat()).as_ref().to_vec()
    }

    /// Whether `mac` is the proof for `csr`. Takes as long for a wrong one.
    pub fn verifies(&self, csr: &[u8], mac: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.0);
        hmac::verify(&key, &[CONTEXT, csr].concat(), mac).is_ok()
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Tells it from others; no secret.
    pub id: [u8; 16],
    /// Proves the right to it.
    pub secret: Secret,
    /// The mesh to join.
    pub mesh: MeshName,
    /// Whose controllers made it.
    pub cluster: ClusterId,
    /// SHA-256 of each root that the mesh trusts.
    pub roots: Vec<[u8; 32]>,
    /// Members to ask, `host:port`.
    pub addresses: Vec<String>,
    /// What the machine will be certified for.
    pub role: Role,
    /// Which names it is good for.
    pub name: Pattern,
    /// When it was made, by the controller's clock.
    pub created: Timestamp,
    /// When it ends, by the controller's clock.
    pub expires: Timestamp,
}

impl Token {
    /// Reads a token as it was printed.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return Err(TokenError::NotAToken);
        }
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let later = text.strip_prefix("plexus").and_then(|rest| rest.split_once('-'));
            let later = later.is_some_and(|(number, _)| number.parse::<u32>().is_ok_and(|number| number > 1));
            return Err(if later { TokenError::Later } else { TokenError::NotAToken });
        };
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(rest).map_err(|_| TokenError::NotAToken)?);
        let (bytes, check) = bytes.split_last_chunk::<4>().ok_or(TokenError::NotAToken)?;
        if digest(&SHA256, bytes).as_ref()[..4] != *check {
            return Err(TokenError::NotAToken);
        }
        let wire = EnrolToken::decode(bytes).map_err(|_| TokenError::NotAToken)?;
        Self::from_wire(&wire)
    }

    fn from_wire(wire: &EnrolToken) -> Result<Self, TokenError> {
        let part = TokenError::Part;
        if wire.secret.len() != 32 {
            return Err(part("secret"));
        }
        if wire.roots.is_empty() || wire.roots.len() > ROOTS_MAX {
            return Err(part("list of roots"));
        }
        if wire.addresses.len() > ADDRESSES_MAX || wire.addresses.iter().any(|text| !is_address(text)) {
            return Err(part("list of addresses"));
        }
        let roots = wire.roots.iter().map(|root| root[..].try_into().map_err(|_| part("list of roots")));
        let time = |at: u64| i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
        Ok(Self {
            id: wire.id[..].try_into().map_err(|_| part("id"))?,
            secret: Secret::new(wire.secret.to_vec()),
            mesh: wire.mesh.parse().map_err(|_| part("mesh"))?,
            cluster: wire.cluster.parse().map_err(|_| part("cluster"))?,
            roots: roots.collect::<Result<_, _>>()?,
            addresses: wire.addresses.clone(),
            role: wire.role.parse().map_err(|_| part("role"))?,
            name: wire.name.parse().map_err(|()| part("name"))?,
            created: time(wire.created).ok_or(part("time"))?,
            expires: time(wire.expires).ok_or(part("time"))?,
        })
    }

    /// The token as it is printed: a secret until it is used or expired.
    pub fn expose(&self) -> Zeroizing<String> {
        let seconds = |at: Timestamp| u64::try_from(at.as_second()).unwrap_or(0);
        let wire = EnrolToken {
            id: self.id.to_vec().into(),
            secret: self.secret.expose().to_vec().into(),
            mesh: self.mesh.to_string(),
            cluster: self.cluster.to_string(),
            roots: self.roots.iter().map(|root| root.to_vec().into()).collect(),
            addresses: self.addresses.clone(),
            role: self.role.to_string(),
            name: self.name.to_string(),
            created: seconds(self.created),
            expires: seconds(self.expires),
        };
        let mut bytes = Zeroizing::new(wire.encode_to_vec());
        let check = digest(&SHA256, &bytes);
        bytes.extend_from_slice(&check.as_ref()[..4]);
        Zeroizing::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(&*bytes)))
    }
}

/// Whether `text` is `host:port`.
pub fn is_address(text: &str) -> bool {
    text.len() <= ADDRESS_MAX
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
        && text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Which names: `*` stands for any run of characters, everything else for itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl std::str::FromStr for Pattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.*".contains(&b);
        let good = !text.is_empty() && text.len() <= 63 && text.bytes().all(allowed);
        if good { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    /// Whether the token is good for `name`.
    pub fn matches(&self, name: &NodeId) -> bool {
        glob(self.0.as_bytes(), name.as_str().as_bytes())
    }

    /// The one name it stands for, if there is but one.
    pub fn only(&self) -> Option<NodeId> {
        self.0.parse().ok()
    }
}

/// Linear: a later `*` never needs an earlier one to be tried again.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            id: [1; 16],
            secret: Secret::new(vec![7; 32]),
            mesh: "demo".parse().unwrap(),
            cluster: "main".parse().unwrap(),
            roots: vec![[9; 32]],
            addresses: vec!["hop.example.org:7323".into(), "[2001:db8::1]:7323".into()],
            role: Role::Execution,
            name: "node-*".parse().unwrap(),
            created: Timestamp::from_second(1_700_000_000).unwrap(),
            expires: Timestamp::from_second(1_700_003_600).unwrap(),
        }
    }

    #[test]
    fn a_token_reads_as_it_was_made_and_its_debug_shows_no_secret() {
        let text = token().expose();
        assert_eq!(Token::parse(&format!(" {}\n", *text)), Ok(token()));
        assert!(!format!("{:?}", token()).contains("7, 7"));
    }

    #[test]
    fn what_was_cut_or_mistyped_is_no_token() {
        let text = token().expose();
        for cut in [0, 3, 8, 9, 40, text.len() - 1] {
            assert_eq!(Token::parse(&text[..cut]), Err(TokenError::NotAToken), "cut at {cut}");
        }
        for at in 8..text.len() {
            let mut typo = text.to_string().into_bytes();
            typo[at] = if typo[at] == b'A' { b'B' } else { b'A' };
            assert!(Token::parse(std::str::from_utf8(&typo).unwrap()).is_err(), "typo at {at}");
        }
        assert_eq!(Token::parse("plexus2-AAAA"), Err(TokenError::Later));
    }

    #[test]
    fn a_proof_is_for_one_request_and_one_secret() {
        let (one, other) = (Secret::new(vec![1; 32]), Secret::new(vec![2; 32]));
        let mac = one.mac(b"csr");
        assert!(one.verifies(b"csr", &mac));
        assert!(!one.verifies(b"other", &mac) && !other.verifies(b"csr", &mac) && !one.verifies(b"csr", b""));
    }

    #[test]
    fn names_match_by_star() {
        let check =
            |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(&name.parse().unwrap());
        for (pattern, good, bad) in [
            ("node-1", "node-1", "node-11"),
            ("node-*", "node-", "nod"),
            ("*", "anything", "anything-else"),
            ("*.site-a", "web.site-a", "web.site-b"),
            ("a*b*c", "axxbyybc", "axxbyyb"),
        ] {
            assert!(check(pattern, good), "{pattern} {good}");
            assert_eq!(check(pattern, bad), pattern == "*", "{pattern} {bad}");
        }
        assert_eq!("node-1".parse::<Pattern>().unwrap().only().unwrap().as_str(), "node-1");
        assert_eq!("node-*".parse::<Pattern>().unwrap().only(), None);
        assert!("Node".parse::<Pattern>().is_err() && "".parse::<Pattern>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in "(plexus1-)?[A-Za-z0-9_-]{0,200}") {
            let _ = Token::parse(&text);
        }
    }
}

//! Who may have this node connect where. What no rule allows is denied.

use std::net::IpAddr;

use plexus_proto::id::NodeId;
use serde::Deserialize;
use tokio::sync::Semaphore;

/// Connections at a time unless the configuration says otherwise: enough for people, few enough to stay small.
const MAX_CONNECTIONS: usize = 64;

/// Section `[forward]` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// What is allowed.
    pub allow: Vec<Rule>,
    /// Forwarded connections at a time; further ones are refused.
    pub max_connections: usize,
}

/// One permission.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Certified names of the nodes that may ask; `*` stands for any characters.
    pub from: String,
    /// `host:port` that they may ask for, compared as text; `*` stands for any characters. A name allowed here is
    /// resolved by this node.
    pub to: Vec<String>,
}

/// A rule that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No name of a node can look like that.
    #[error(
        "forward.allow: from {0:?} is no name of a node; letters a to z, digits, - and * may stand there"
    )]
    From(String),
    /// No port.
    #[error("forward.allow: to {0:?} must be host:port")]
    To(String),
    /// No connection would ever be carried.
    #[error("forward.max_connections must be above 0")]
    NoConnections,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allow: Vec::new(), max_connections: MAX_CONNECTIONS }
    }
}

impl Policy {
    /// Whether the rules mean something; called before the configuration is taken.
    ///
    /// # Errors
    /// The first rule that does not.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.max_connections == 0 {
            return Err(PolicyError::NoConnections);
        }
        for rule in &self.allow {
            let known = |letter: char| {
                letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.*".contains(letter)
            };
            if rule.from.is_empty() || !rule.from.chars().all(known) {
                return Err(PolicyError::From(rule.from.clone()));
            }
            if let Some(to) = rule.to.iter().find(|to| canonical(to).is_none()) {
                return Err(PolicyError::To(to.clone()));
            }
        }
        Ok(())
    }

    /// Whether nothing is allowed.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty()
    }

    pub(super) fn max_connections(&self) -> usize {
        self.max_connections.min(Semaphore::MAX_PERMITS)
    }

    /// Whether `from` may have this node connect to `target`. What is not understood is denied.
    pub fn allows(&self, from: &NodeId, target: &str) -> bool {
        let Some(target) = canonical(target).filter(|target| !target.contains('*')) else { return false };
        self.allow.iter().any(|rule| {
            let to = || rule.to.iter().filter_map(|to| canonical(to)).any(|to| matches(&to, &target));
            matches(&rule.from, from.as_str()) && to()
        })
    }
}

/// `host:port` in the one form that is compared: lower case, addresses as the system writes them.
fn canonical(target: &str) -> Option<String> {
    let (host, port) = target.rsplit_once(':')?;
    let port_is_one =
        port == "*" || port.parse::<u16>().is_ok_and(|number| number != 0 && number.to_string() == port);
    if !port_is_one || host.is_empty() || host.len() > 255 {
        return None;
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match (bare, host.parse::<IpAddr>()) {
        (Some(bare), _) => format!("[{}]", bare.parse::<std::net::Ipv6Addr>().ok()?),
        (None, Ok(IpAddr::V4(address))) => address.to_string(),
        // An IPv6 address without brackets could be cut in two ways.
        (None, Ok(IpAddr::V6(_))) => return None,
        (None, Err(_)) => {
            let known = |letter: char| letter.is_ascii_alphanumeric() || "-._*".contains(letter);
            Some(host.to_ascii_lowercase()).filter(|host| host.chars().all(known))?
        }
    };
    Some(format!("{host}:{port}"))
}

/// Whether `text` is what `pattern` describes, `*` standing for any characters, also none. Takes time of their product.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: &[(&str, &[&str])]) -> Policy {
        let rule = |(from, to): &(&str, &[&str])| Rule {
            from: (*from).to_owned(),
            to: to.iter().map(|to| (*to).to_owned()).collect(),
        };
        Policy { allow: rules.iter().map(rule).collect(), ..Policy::default() }
    }

    fn check(rules: &[(&str, &[&str])], from: &str, target: &str, allowed: bool) {
        assert_eq!(
            policy(rules).allows(&from.parse().unwrap(), target),
            allowed,
            "{from} to {target} by {rules:?}"
        );
    }

    #[test]
    fn what_no_rule_allows_is_denied() {
        check(&[], "controller", "127.0.0.1:80", false);
        let one: &[(&str, &[&str])] = &[("controller", &["127.0.0.1:80"])];
        check(one, "controller", "127.0.0.1:80", true);
        check(one, "controller", "127.0.0.1:81", false);
        check(one, "controller", "localhost:80", false);
        check(one, "controller-2", "127.0.0.1:80", false);
        check(&[("controller", &[])], "controller", "127.0.0.1:80", false);
    }

    #[test]
    fn stars_stand_for_any_characters() {
        let stars: &[(&str, &[&str])] = &[("site-*", &["10.0.0.*:22", "*.example.org:443", "[::1]:*"])];
        check(stars, "site-a", "10.0.0.7:22", true);
        check(stars, "site-a", "10.0.1.7:22", false);
        check(stars, "site-a", "www.EXAMPLE.org:443", true);
        check(stars, "site-a", "example.org:443", false);
        check(stars, "site-a", "[0:0::1]:9999", true);
        check(stars, "a-site-a", "10.0.0.7:22", false);
        check(&[("*", &["*:*"])], "anybody", "10.9.8.7:1", true);
    }

    #[test]
    fn what_is_no_address_is_denied_whatever_the_rules() {
        for bad in [
            "",
            "80",
            "host",
            "host:",
            "host:0",
            "host:080",
            "host:70000",
            ":80",
            "::1:80",
            "a b:80",
            "*:80",
            "[x]:1",
            "host:*",
            "a\n:1",
        ] {
            check(&[("*", &["*:*"])], "anybody", bad, false);
        }
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        assert_eq!(policy(&[("site-*", &["h:1", "[::1]:*"])]).check(), Ok(()));
        assert_eq!(policy(&[("Site", &["h:1"])]).check(), Err(PolicyError::From("Site".into())));
        assert_eq!(policy(&[("", &["h:1"])]).check(), Err(PolicyError::From(String::new())));
        assert_eq!(policy(&[("a", &["h"])]).check(), Err(PolicyError::To("h".into())));
        let none = Policy { max_connections: 0, ..Policy::default() };
        assert_eq!(none.check(), Err(PolicyError::NoConnections));
    }

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b", "ab", true),
            ("ab*ba", "aba", false),
            ("*a", "ba", true),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}

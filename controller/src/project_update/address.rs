//! Addresses of repositories, without what is secret in them. Pure.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Login, Scm, Unusable};

/// An address without its secret, and whom it is asked as.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub(super) struct Address {
    pub(super) url: String,
    /// Scheme and host with port, for git's store of credentials; empty where git asks for none.
    web: String,
    pub(super) username: String,
    pub(super) password: String,
}

impl Address {
    /// Reads an address. What it says of user and password counts where the credential says nothing.
    pub(super) fn read(scm: Scm, url: &str, login: &Login) -> Result<Self, Unusable> {
        let url = url.trim();
        if url.is_empty() {
            return Err(Unusable::NoUrl);
        }
        let bad = || Unusable::Url(without_password(url));
        if url.starts_with('-') || url.chars().any(char::is_control) {
            return Err(bad());
        }
        let Some((scheme, rest)) = url.split_once("://") else {
            // user@host:path, as ssh has it; `helper::address` would run a helper of git's.
            let is_path = |(host, path): (&str, &str)| !host.contains('/') && !path.starts_with(':');
            let is_ssh = scm == Scm::Git && url.split_once(':').is_some_and(is_path);
            if !is_ssh {
                return Err(bad());
            }
            let named = url.contains('@') || login.username.is_empty();
            let url = if named { url.to_owned() } else { format!("{}@{url}", login.username) };
            return Ok(Self { url, web: String::new(), username: String::new(), password: String::new() });
        };
        let known: &[&str] = match scm {
            Scm::Git => &["ssh", "git", "git+ssh", "http", "https", "ftp", "ftps", "file"],
            Scm::Svn => &["http", "https", "svn", "svn+ssh"],
            Scm::Archive => &["http", "https", "ftp"],
        };
        if !known.contains(&scheme) {
            return Err(bad());
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if host.is_empty() && scheme != "file" {
            return Err(bad());
        }
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let or = |first: &str, second: String| if first.is_empty() { second } else { first.to_owned() };
        let mut username = or(&login.username, decoded(user));
        let password = or(&login.password, decoded(password));
        if scheme.contains("ssh") {
            let at = if username.is_empty() { String::new() } else { format!("{}@", encoded(&username)) };
            let url = format!("{scheme}://{at}{host}{path}");
            return Ok(Self { url, web: String::new(), username: String::new(), password: String::new() });
        }
        if username.is_empty() && !password.is_empty() {
            // A token by itself: servers that take one take any name with it, and none without.
            username.push_str("git");
        }
        let web = format!("{scheme}://{host}");
        Ok(Self { url: format!("{scheme}://{host}{path}"), web, username, password })
    }

    /// The line that git's own store of credentials holds.
    pub(super) fn git_store(&self, scm: Scm) -> Option<String> {
        let (scheme, host) = self.web.split_once("://")?;
        (scm == Scm::Git && !self.password.is_empty())
            .then(|| format!("{scheme}://{}:{}@{host}\n", encoded(&self.username), encoded(&self.password)))
    }
}

/// An address as it may be shown.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:$encrypted$@{host}{path}")
        }
        _ => url.to_owned(),
    }
}

/// Percent-encodes all but letters, digits and what is never special.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Undoes percent-encoding; what is no encoding stays.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

//! Secrets that are kept elsewhere: a credential names where, and a job that needs one gets it there when it is launched.
//!
//! Two kinds of place are spoken to: HashiCorp Vault's key-value engines, version 1 and 2, and any server that answers a GET
//! over HTTPS. What is asked and how an answer is read is decided without a network (`vault`, `https`); this module sends
//! it. Answers are bounded in size and time, no redirect is followed, and no error quotes a secret.

pub mod fill;
mod https;
mod vault;

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Map, Value};

use crate::vault::Secret;

/// Longest that one request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longest answer.
const MAX_ANSWER: usize = 1 << 20;

/// The types of credential that secrets are looked up with.
pub const NAMESPACES: [&str; 2] = ["hashivault_kv", "https_secret"];

/// Why a secret was not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A type that nothing is looked up with.
    #[error("secrets are looked up in HashiCorp Vault and over HTTPS, not with {0}")]
    Unsupported(String),
    /// Something that is needed was not given, or is not what it should be.
    #[error("{0}")]
    Input(String),
    /// The certificates do not fit.
    #[error("the certificate or key of the source is not usable")]
    Certificate(#[source] reqwest::Error),
    /// No answer came.
    #[error("no answer from {host}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("{host} answered {status} to {what}")]
    Refused {
        /// Who was asked.
        host: String,
        /// What for: `the login`.
        what: &'static str,
        /// HTTP status.
        status: u16,
    },
    /// The answer is not what it should be.
    #[error("{host} {words}")]
    Answer {
        /// Who was asked.
        host: String,
        /// What is wrong with it.
        words: String,
    },
}

/// What is to be sent.
#[derive(Debug, PartialEq)]
struct Ask {
    /// What it is for, in words.
    what: &'static str,
    url: String,
    headers: Vec<(String, Hidden)>,
    /// JSON to POST; a GET without.
    body: Option<Hidden>,
}

/// Text whose `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
struct Hidden(String);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

/// What a source was given: text inputs and metadata, open.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The word of its type: `hashivault_kv`.
    pub namespace: &'a str,
    /// The inputs of the credential.
    pub inputs: &'a Map<String, Value>,
    /// Which secret.
    pub metadata: &'a Map<String, Value>,
}

impl Source<'_> {
    /// An input, empty if it was not given.
    fn input(&self, name: &str) -> &str {
        self.inputs.get(name).and_then(Value::as_str).unwrap_or_default().trim()
    }

    /// Metadata, empty if it was not given.
    fn meta(&self, name: &str) -> &str {
        self.metadata.get(name).and_then(Value::as_str).unwrap_or_default().trim()
    }
}

/// Looks a secret up.
///
/// # Errors
/// [`Error`], in words for people, without any secret.
pub async fn resolve(source: Source<'_>) -> Result<Secret, Error> {
    match source.namespace {
        "hashivault_kv" => {
            let client = client(source)?;
            let token = match vault::login(source)? {
                vault::Login::Token(token) => token,
                vault::Login::Ask(ask) => vault::token(&send(&client, ask).await?)?,
            };
            vault::value(source, &send(&client, vault::read(source, &token)?).await?)
        }
        "https_secret" => {
            let answer = send(&client(source)?, https::ask(source)?).await?;
            https::value(source, &answer)
        }
        other => Err(Error::Unsupported(other.to_owned())),
    }
}

/// An answer that came.
struct Answer {
    host: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Result<Value, Error> {
        serde_json::from_str(&self.text).map_err(|_| self.wrong("did not answer with JSON"))
    }

    fn wrong(&self, words: impl Into<String>) -> Error {
        Error::Answer { host: self.host.clone(), words: words.into() }
    }
}

/// A client with the certificates of the source.
fn client(source: Source<'_>) -> Result<reqwest::Client, Error> {
    plexus_mesh::install_crypto_provider();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .connect_timeout(PATIENCE / 4)
        .user_agent(concat!("plexus-controller/", env!("CARGO_PKG_VERSION")));
    let (own, key) = (source.input("client_cert_public"), source.input("client_cert_private"));
    let authority = source.input("cacert");
    if !authority.is_empty() {
        let authorities =
            reqwest::Certificate::from_pem_bundle(authority.as_bytes()).map_err(Error::Certificate)?;
        builder = builder.tls_certs_only(authorities);
    }
    if !own.is_empty() && !key.is_empty() {
        let pem = format!("{key}\n{own}\n");
        let identity = reqwest::Identity::from_pem(pem.as_bytes()).map_err(Error::Certificate)?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(Error::Certificate)
}

async fn send(client: &reqwest::Client, ask: Ask) -> Result<Answer, Error> {
    let host = host(&ask.url).to_owned();
    let unreachable =
        |source: reqwest::Error| Error::Unreachable { host: host.clone(), source: source.without_url() };
    let mut request = match ask.body {
        Some(Hidden(body)) => client.post(&ask.url).header("content-type", "application/json").body(body),
        None => client.get(&ask.url),
    };
    for (name, Hidden(value)) in ask.headers {
        let mut value = reqwest::header::HeaderValue::from_str(&value)
            .map_err(|_| Error::Input(format!("the value of header {name} is no text for a header")))?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    let mut response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    if !status.is_success() {
        return Err(Error::Refused { host, what: ask.what, status: status.as_u16() });
    }
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(unreachable)? {
        if body.len() + piece.len() > MAX_ANSWER {
            let words = format!("answered with more than {MAX_ANSWER} bytes");
            return Err(Error::Answer { host, words });
        }
        body.extend_from_slice(&piece);
    }
    match String::from_utf8(body.to_vec()) {
        Ok(text) => Ok(Answer { host, text }),
        Err(_) => Err(Error::Answer { host, words: "did not answer with text".to_owned() }),
    }
}

/// `https://host:port` of an address, for messages.
fn host(url: &str) -> &str {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let end = url[begin..].find(['/', '?']).map_or(url.len(), |at| begin + at);
    &url[..end]
}

/// The base of an address that somebody typed, without a slash at its end.
fn base<'u>(url: &'u str, schemes: &[&str]) -> Result<&'u str, Error> {
    let url = url.trim_end_matches('/');
    let good = schemes.iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
    if good && !url.contains(['?', '#', '@', '\\', ' ']) {
        return Ok(url);
    }
    Err(Error::Input(format!(
        "the address of the server begins with {} and has no name in it",
        schemes.join(" or ")
    )))
}

/// A path that somebody typed, each of its parts escaped; none of them may lead upwards.
fn path(text: &str) -> Result<String, Error> {
    let mut parts = Vec::new();
    for part in text.split('/').filter(|part| !part.is_empty()) {
        if matches!(part, "." | "..") {
            return Err(Error::Input("a path to a secret has no parts . and ..".to_owned()));
        }
        let escaped: String = part
            .bytes()
            .map(|byte| match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    char::from(byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect();
        parts.push(escaped);
    }
    Ok(parts.join("/"))
}

/// What a value of JSON is as a secret: texts as they are, numbers and truths as written, objects as JSON.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_paths_are_what_they_say() {
        assert_eq!(base("https://vault:8200/", &["https://"]).unwrap(), "https://vault:8200");
        for bad in
            ["", "https://", "vault:8200", "http://vault", "https://a@b", "https://a/?x", "https://a b"]
        {
            assert!(base(bad, &["https://"]).is_err(), "{bad}");
        }
        assert_eq!(path("/a b//c%2f/ü").unwrap(), "a%20b/c%252f/%C3%BC");
        assert!(path("a/../b").is_err() && path("./b").is_err());
        assert_eq!(host("https://a:1/x?y"), "https://a:1");
        assert_eq!(host("https://a?y"), "https://a");
    }

    #[test]
    fn debug_of_a_request_shows_no_secret() {
        let ask = Ask {
            what: "x",
            url: "https://a".to_owned(),
            headers: vec![("X-Vault-Token".to_owned(), Hidden("geheim".to_owned()))],
            body: Some(Hidden("geheim".to_owned())),
        };
        assert!(!format!("{ask:?}").contains("geheim"));
    }
}

//! Any server that has secrets behind a GET: its address, who we are to it, and where in an answer the secret is. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Answer, Ask, Error, Hidden, Source, as_text, base, path};
use crate::vault::Secret;

/// The request for the secret.
pub(super) fn ask(source: Source<'_>) -> Result<Ask, Error> {
    let url = base(source.input("url"), &["https://"])?;
    let place = path(source.meta("path"))?;
    let mut headers = Vec::new();
    let (token, username) = (source.input("token"), source.input("username"));
    if !token.is_empty() {
        match source.input("header") {
            "" => headers.push(("Authorization".to_owned(), Hidden(format!("Bearer {token}")))),
            name if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') => {
                headers.push((name.to_owned(), Hidden(token.to_owned())));
            }
            _ => return Err(Error::Input("header is the name of an HTTP header".to_owned())),
        }
    } else if !username.is_empty() {
        let pair = STANDARD.encode(format!("{username}:{}", source.input("password")));
        headers.push(("Authorization".to_owned(), Hidden(format!("Basic {pair}"))));
    }
    headers.push(("Accept".to_owned(), Hidden("application/json, text/plain".to_owned())));
    let url = if place.is_empty() { url.to_owned() } else { format!("{url}/{place}") };
    Ok(Ask { what: "the secret", url, headers, body: None })
}

/// The secret in the answer: what `key` points to, or all of it.
pub(super) fn value(source: Source<'_>, answer: &Answer) -> Result<Secret, Error> {
    let key = source.meta("key");
    if key.is_empty() {
        return Ok(Secret::from(answer.text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    let pointer = if key.starts_with('/') { key.to_owned() } else { format!("/{}", key.replace('.', "/")) };
    match answer.json()?.pointer(&pointer).filter(|value| !value.is_null()) {
        Some(value) => Ok(Secret::from(as_text(value))),
        None => Err(answer.wrong(format!("has no {key} in its answer"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    fn with<T>(inputs: Value, metadata: Value, run: impl FnOnce(Source<'_>) -> T) -> T {
        let object = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
        let (inputs, metadata) = (object(inputs), object(metadata));
        run(Source { namespace: "https_secret", inputs: &inputs, metadata: &metadata })
    }

    #[test]
    fn the_request_says_who_asks_and_goes_nowhere_in_clear() {
        let asked = |inputs: Value| with(inputs, json!({"path": "app/db"}), ask);
        let plain = asked(json!({"url": "https://s/api"})).unwrap();
        assert_eq!((plain.url.as_str(), plain.headers.len()), ("https://s/api/app/db", 1));
        let bearer = asked(json!({"url": "https://s", "token": "t"})).unwrap();
        assert_eq!(bearer.headers[0], ("Authorization".to_owned(), Hidden("Bearer t".to_owned())));
        let own = asked(json!({"url": "https://s", "token": "t", "header": "X-Key"})).unwrap();
        assert_eq!(own.headers[0], ("X-Key".to_owned(), Hidden("t".to_owned())));
        let basic = asked(json!({"url": "https://s", "username": "u", "password": "p"})).unwrap();
        assert_eq!(basic.headers[0].1, Hidden("Basic dTpw".to_owned()));
        assert!(asked(json!({"url": "http://s"})).is_err());
        assert!(asked(json!({"url": "https://s", "token": "t", "header": "X: y"})).is_err());
    }

    #[test]
    fn the_secret_is_the_answer_or_a_part_of_it() {
        let read = |key: &str, text: &str| {
            let answer = Answer { host: "https://s".to_owned(), text: text.to_owned() };
            with(json!({}), json!({"key": key}), |source| value(source, &answer))
                .map(|secret| secret.expose().to_owned())
                .map_err(|error| error.to_string())
        };
        assert_eq!(read("", "geheim\n").unwrap(), "geheim");
        assert_eq!(read("a.b", r#"{"a": {"b": "x"}}"#).unwrap(), "x");
        assert_eq!(read("/a/0", r#"{"a": [true]}"#).unwrap(), "true");
        assert_eq!(read("a", "{}").unwrap_err(), "https://s has no a in its answer");
    }
}

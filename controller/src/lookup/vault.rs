//! HashiCorp Vault's key-value engines: who we are to it, which address a secret has, and where in an answer it is. Pure.

use serde_json::{Value, json};

use super::{Answer, Ask, Error, Hidden, Source, as_text, base, path};
use crate::vault::Secret;

const SCHEMES: [&str; 2] = ["https://", "http://"];

/// How a token of Vault's is had.
#[derive(Debug)]
pub(super) enum Login {
    /// It was given.
    Token(Secret),
    /// By asking for one.
    Ask(Ask),
}

/// The way that the inputs of the source allow.
pub(super) fn login(source: Source<'_>) -> Result<Login, Error> {
    let input = |name| source.input(name);
    if !input("token").is_empty() {
        return Ok(Login::Token(Secret::from(input("token").to_owned())));
    }
    let at = |otherwise: &str| {
        let given = [source.meta("auth_path"), input("default_auth_path")];
        path(given.into_iter().find(|path| !path.is_empty()).unwrap_or(otherwise))
    };
    let (place, body) = if !input("role_id").is_empty() && !input("secret_id").is_empty() {
        let body = json!({"role_id": input("role_id"), "secret_id": input("secret_id")});
        (format!("{}/login", at("approle")?), body)
    } else if !input("username").is_empty() && !input("password").is_empty() {
        let place = match at("userpass")?.as_str() {
            // The default of the field is for application roles.
            "approle" if source.meta("auth_path").is_empty() => "userpass".to_owned(),
            place => place.to_owned(),
        };
        (format!("{place}/login/{}", path(input("username"))?), json!({"password": input("password")}))
    } else if !input("client_cert_public").is_empty() {
        let place = match at("cert")?.as_str() {
            "approle" if source.meta("auth_path").is_empty() => "cert".to_owned(),
            place => place.to_owned(),
        };
        (format!("{place}/login"), json!({"name": input("client_cert_role")}))
    } else if !input("kubernetes_role").is_empty() {
        let words = "logging in to Vault as a pod of Kubernetes needs a controller that is one";
        return Err(Error::Input(words.to_owned()));
    } else {
        let words =
            "Vault wants a token, role_id and secret_id, username and password, or a client certificate";
        return Err(Error::Input(words.to_owned()));
    };
    let url = format!("{}/v1/auth/{place}", base(input("url"), &SCHEMES)?);
    Ok(Login::Ask(Ask {
        what: "the login",
        url,
        headers: namespace(source),
        body: Some(Hidden(body.to_string())),
    }))
}

fn namespace(source: Source<'_>) -> Vec<(String, Hidden)> {
    let namespace = source.input("namespace");
    let header = || ("X-Vault-Namespace".to_owned(), Hidden(namespace.to_owned()));
    (!namespace.is_empty()).then(header).into_iter().collect()
}

/// The token in the answer to a login.
pub(super) fn token(answer: &Answer) -> Result<Secret, Error> {
    let token = answer.json()?["auth"]["client_token"].as_str().map(str::to_owned);
    let token = token.filter(|token| !token.is_empty());
    token.map(Secret::from).ok_or_else(|| answer.wrong("gave no token for the login"))
}

/// Whether the engine keeps versions.
fn keeps_versions(source: Source<'_>) -> bool {
    // Where the choice of the type says nothing, it is the first.
    source.input("api_version") == "v2"
}

/// The request for the secret.
pub(super) fn read(source: Source<'_>, token: &Secret) -> Result<Ask, Error> {
    let url = base(source.input("url"), &SCHEMES)?;
    let (engine, place) = (path(source.meta("secret_backend"))?, path(source.meta("secret_path"))?);
    if place.is_empty() {
        return Err(Error::Input("secret_path says which secret".to_owned()));
    }
    let place = match (keeps_versions(source), engine.as_str()) {
        (false, "") => place,
        (false, engine) => format!("{engine}/{place}"),
        (true, "") => match place.split_once('/') {
            Some((engine, rest)) => format!("{engine}/data/{rest}"),
            None => {
                return Err(Error::Input(
                    "secret_path begins with the name of the engine, or secret_backend names it".to_owned(),
                ));
            }
        },
        (true, engine) => format!("{engine}/data/{place}"),
    };
    let version = source.meta("secret_version");
    let version = match version {
        "" => String::new(),
        _ if !keeps_versions(source) => String::new(),
        number if number.bytes().all(|byte| byte.is_ascii_digit()) => format!("?version={number}"),
        _ => return Err(Error::Input("secret_version is a number".to_owned())),
    };
    let mut headers = namespace(source);
    headers.push(("X-Vault-Token".to_owned(), Hidden(token.expose().to_owned())));
    Ok(Ask { what: "the secret", url: format!("{url}/v1/{place}{version}"), headers, body: None })
}

/// The secret in the answer.
pub(super) fn value(source: Source<'_>, answer: &Answer) -> Result<Secret, Error> {
    let json = answer.json()?;
    let data = if keeps_versions(source) { &json["data"]["data"] } else { &json["data"] };
    let Value::Object(data) = data else { return Err(answer.wrong("has no such secret")) };
    match source.meta("secret_key") {
        "" => Ok(Secret::from(Value::Object(data.clone()).to_string())),
        key => match data.get(key).filter(|value| !value.is_null()) {
            Some(value) => Ok(Secret::from(as_text(value))),
            None => Err(answer.wrong(format!("has no key {key} in this secret"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn with<T>(inputs: Value, metadata: Value, run: impl FnOnce(Source<'_>) -> T) -> T {
        let object = |value: Value| value.as_object().cloned().unwrap_or_else(Map::new);
        let (inputs, metadata) = (object(inputs), object(metadata));
        run(Source { namespace: "hashivault_kv", inputs: &inputs, metadata: &metadata })
    }

    fn url_of(inputs: Value, metadata: Value) -> Result<String, String> {
        let token = Secret::from("t".to_owned());
        with(inputs, metadata, |source| {
            read(source, &token).map(|ask| ask.url).map_err(|error| error.to_string())
        })
    }

    #[test]
    fn a_secret_has_its_address_by_engine_and_version() {
        let v1 = json!({"url": "https://v"});
        let v2 = json!({"url": "https://v/", "api_version": "v2"});
        for (inputs, metadata, url) in [
            (&v1, json!({"secret_path": "/kv/app"}), "https://v/v1/kv/app"),
            (&v1, json!({"secret_path": "app", "secret_backend": "kv"}), "https://v/v1/kv/app"),
            (&v2, json!({"secret_path": "kv/app/db"}), "https://v/v1/kv/data/app/db"),
            (&v2, json!({"secret_path": "app/db", "secret_backend": "kv"}), "https://v/v1/kv/data/app/db"),
            (
                &v2,
                json!({"secret_path": "a b", "secret_backend": "kv", "secret_version": "3"}),
                "https://v/v1/kv/data/a%20b?version=3",
            ),
        ] {
            assert_eq!(url_of(inputs.clone(), metadata).unwrap(), url);
        }
        for metadata in [
            json!({}),
            json!({"secret_path": "app"}),
            json!({"secret_path": "kv/../sys"}),
            json!({"secret_path": "kv/a", "secret_version": "1&x"}),
        ] {
            assert!(url_of(v2.clone(), metadata.clone()).is_err(), "{metadata}");
        }
    }

    #[test]
    fn a_token_is_had_in_the_way_the_inputs_allow() {
        let asked = |inputs: Value| {
            with(inputs, json!({}), |source| match login(source) {
                Ok(Login::Token(token)) => token.expose().to_owned(),
                Ok(Login::Ask(ask)) => {
                    format!("{} {}", ask.url, ask.body.map(|body| body.0).unwrap_or_default())
                }
                Err(error) => error.to_string(),
            })
        };
        assert_eq!(asked(json!({"url": "https://v", "token": "t"})), "t");
        assert_eq!(
            asked(json!({"url": "https://v", "role_id": "r", "secret_id": "s"})),
            r#"https://v/v1/auth/approle/login {"role_id":"r","secret_id":"s"}"#
        );
        assert_eq!(
            asked(
                json!({"url": "https://v", "username": "u", "password": "p", "default_auth_path": "approle"})
            ),
            r#"https://v/v1/auth/userpass/login/u {"password":"p"}"#
        );
        assert!(asked(json!({"url": "https://v"})).starts_with("Vault wants"));
        assert!(asked(json!({"url": "https://v", "kubernetes_role": "x"})).contains("Kubernetes"));
    }

    #[test]
    fn a_secret_is_where_its_version_puts_it() {
        let read = |api: &str, key: &str, text: &str| {
            let answer = Answer { host: "https://v".to_owned(), text: text.to_owned() };
            with(json!({"api_version": api}), json!({"secret_key": key}), |source| {
                value(source, &answer)
                    .map(|secret| secret.expose().to_owned())
                    .map_err(|error| error.to_string())
            })
        };
        assert_eq!(read("v1", "a", r#"{"data": {"a": "x"}}"#).unwrap(), "x");
        assert_eq!(read("v2", "a", r#"{"data": {"data": {"a": 7}}}"#).unwrap(), "7");
        assert_eq!(read("v1", "", r#"{"data": {"a": "x"}}"#).unwrap(), r#"{"a":"x"}"#);
        assert_eq!(
            read("v2", "b", r#"{"data": {"data": {"a": 7}}}"#).unwrap_err(),
            "https://v has no key b in this secret"
        );
        assert_eq!(read("v2", "a", r#"{"data": {"a": "x"}}"#).unwrap_err(), "https://v has no such secret");
        assert!(read("v1", "a", "<html>").is_err());
    }
}

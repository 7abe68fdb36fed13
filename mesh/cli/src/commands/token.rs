//! `plexus token`: what new nodes join with. Kept by a controller.

use reqwest::Method;
use serde_json::{Value, json};

use crate::args::Token;
use crate::failure::{Exit, Failure};
use crate::http::{HttpDoor, REQUESTS, TOKENS};
use crate::output::{Output, Paint, Shape, Table};

pub(crate) async fn run(http: &HttpDoor, token: Token, output: &mut Output) -> Result<Exit, Failure> {
    match token {
        Token::Create { role, name, ttl, uses, approve, via } => {
            let body = json!({
                "role": role.as_str(),
                "name": name,
                "ttl_seconds": ttl.as_secs(),
                "uses": uses,
                "approve": approve,
                "addresses": via,
            });
            let answer = http.api(Method::POST, TOKENS, Some(&body)).await?;
            let text = created(&answer.parse()?);
            output.show(&answer, Shape { items: None, name: "token" }, &text)?;
        }
        Token::List => {
            let answer = http.get(TOKENS).await?;
            let text = render(&answer.parse()?, output.paint);
            output.show(&answer, Shape { items: Some("results"), name: "id" }, &text)?;
        }
        Token::Requests => {
            let answer = http.get(REQUESTS).await?;
            let text = requests(&answer.parse()?, output.paint);
            output.show(&answer, Shape { items: Some("results"), name: "id" }, &text)?;
        }
        Token::Approve { id } => {
            http.api(Method::POST, &format!("{REQUESTS}{id}/approve/"), Some(&json!({}))).await?;
            let document = json!({"schema_version": 1, "name": id.to_string()});
            output
                .done(&document, &format!("request {id} is approved; the node asks again in a moment\n"))?;
        }
        Token::Reject { id } => {
            http.api(Method::POST, &format!("{REQUESTS}{id}/reject/"), Some(&json!({}))).await?;
            let document = json!({"schema_version": 1, "name": id.to_string()});
            output.done(&document, &format!("request {id} is turned away\n"))?;
        }
        Token::Revoke { id } => {
            // What a person types becomes part of an address.
            if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') || id.is_empty() {
                return Err(Failure::new(Exit::Usage, format!("{id:?} is no id of a token"))
                    .hint("plexus token list shows them"));
            }
            http.api(Method::DELETE, &format!("{TOKENS}{id}/"), None).await?;
            output.done(
                &json!({"schema_version": 1, "name": id}),
                &format!("token {id} is of no use any more\n"),
            )?;
        }
    }
    Ok(Exit::Ok)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn created(token: &Value) -> String {
    let secret = text(&token["token"]);
    format!(
        "{secret}\n\nvalid until {}, for {} of role {} named {}; it is not shown again\n\
         on the new machine: plexus-node join TOKEN\n",
        text(&token["expires"]),
        crate::output::count(token["uses"].as_u64().unwrap_or(1) as usize, "node"),
        text(&token["role"]),
        text(&token["name"]),
    )
}

fn requests(requests: &Value, paint: Paint) -> String {
    let Some(list) = requests["results"].as_array().filter(|list| !list.is_empty()) else {
        return "no node has asked to join\n".to_owned();
    };
    let mut table = Table::new(&["ID", "NODE", "ROLE", "STATE", "SINCE", "KEY (SHA-256)"]);
    for request in list {
        let fields = ["id", "node", "role", "state", "created", "key"];
        table.row(fields.map(|field| text(&request[field]).into()).into());
    }
    table.render(paint)
}

fn render(tokens: &Value, paint: Paint) -> String {
    let Some(list) = tokens["results"].as_array().filter(|list| !list.is_empty()) else {
        return "no token can be used now; plexus token create makes one\n".to_owned();
    };
    let mut table = Table::new(&["ID", "ROLE", "NAME", "USES LEFT", "UNTIL", "APPROVE"]);
    for token in list {
        table.row(
            ["id", "role", "name", "uses_left", "expires", "approve"]
                .map(|field| text(&token[field]).into())
                .into(),
        );
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_once_and_listed_without_its_secret() {
        let token = json!({"token": "plexus-join-xyz", "role": "execution", "name": "site-*", "uses": 2, "expires": "2026-11-20T12:00:00Z"});
        assert_eq!(
            created(&token),
            "plexus-join-xyz\n\nvalid until 2026-11-20T12:00:00Z, for 2 nodes of role execution named site-*; \
             it is not shown again\non the new machine: plexus-node join TOKEN\n"
        );
        let list = json!({"results": [{"id": "4f1c", "role": "hop", "name": "*", "uses_left": 1, "expires": "2026-11-20T12:00:00Z", "approve": false}]});
        let expected = "\
ID    ROLE  NAME  USES LEFT  UNTIL                 APPROVE
4f1c  hop   *     1          2026-11-20T12:00:00Z  false
";
        assert_eq!(render(&list, Paint(false)), expected);
        assert!(render(&json!({"results": []}), Paint(false)).starts_with("no token"));
    }
}

//! `plexus token`: what new machines join with.

use plexus_proto::id::NodeId;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{Format, Token};
use crate::door::Answer;
use crate::failure::{Exit, Failure};
use crate::http::HttpDoor;
use crate::output::{Cell, Color, Output, Table};
use crate::settings::Settings;

const TOKENS: &str = "enrolment/tokens/";
const REQUESTS: &str = "enrolment/requests/";

#[derive(Debug, Deserialize)]
struct Made {
    id: u64,
    token: String,
    role: String,
    name: String,
    uses: u64,
    approve: bool,
    expires: String,
}

#[derive(Debug, Deserialize)]
struct Page<T> {
    results: Vec<T>,
}

#[derive(Debug, Deserialize)]
struct Row {
    id: u64,
    role: String,
    name: String,
    uses: u64,
    used: u64,
    approve: bool,
    state: String,
    expires: String,
    created_by: String,
}

#[derive(Debug, Deserialize)]
struct Waiting {
    id: u64,
    node: NodeId,
    role: String,
    key: String,
    state: String,
    created: String,
}

/// The controller's HTTP door: tokens are made under a user's name.
pub(crate) fn controller(settings: &Settings) -> Result<HttpDoor, Failure> {
    match settings {
        Settings::Controller(controller) => HttpDoor::new(controller.clone()),
        Settings::Socket(_) | Settings::Default => {
            Err(Failure::new(Exit::Usage, "this asks a controller over HTTP, under a user's name").hint(
                "give --controller URL or set CONTROLLER_HOST, CONTROLLER_USERNAME and CONTROLLER_PASSWORD",
            ))
        }
    }
}

pub(crate) async fn run(settings: &Settings, command: Token, output: &mut Output) -> Result<Exit, Failure> {
    let door = controller(settings)?;
    match command {
        Token::Create { role, name, ttl, uses, approve, via } => {
            let wanted = json!({
                "role": role, "name": name, "ttl_seconds": ttl.as_secs(), "uses": uses, "approve": approve,
                "addresses": via,
            });
            let answer = door.call(Method::POST, TOKENS, Some(&wanted)).await?;
            match output.format {
                Format::Json => output.json(&answer.0)?,
                _ => output.write(&created(&answer.parse()?))?,
            }
        }
        Token::List => {
            let tokens = door.call(Method::GET, TOKENS, None).await?;
            let requests = door.call(Method::GET, REQUESTS, None).await?;
            if output.format == Format::Json {
                let (tokens, requests): (Value, Value) = (tokens.parse()?, requests.parse()?);
                let both = json!({
                    "schema_version": 1, "tokens": tokens["results"], "requests": requests["results"],
                });
                output.json(&both.to_string())?;
            } else {
                let text = listed(tokens.parse::<Page<Row>>()?, requests.parse::<Page<Waiting>>()?, output);
                output.write(&text)?;
            }
        }
        Token::Revoke { id } => {
            let answer = door.call(Method::DELETE, &format!("{TOKENS}{id}/"), None).await?;
            say(output, &answer, &format!("token {id} is revoked; machines that joined with it stay\n"))?;
        }
        Token::Approve { id } => {
            let answer =
                door.call(Method::POST, &format!("{REQUESTS}{id}/approve/"), Some(&json!({}))).await?;
            say(output, &answer, &format!("request {id} is approved; the machine asks again in a moment\n"))?;
        }
        Token::Reject { id } => {
            let answer =
                door.call(Method::POST, &format!("{REQUESTS}{id}/reject/"), Some(&json!({}))).await?;
            say(output, &answer, &format!("request {id} is rejected\n"))?;
        }
    }
    Ok(Exit::Ok)
}

/// Words for people; for programs the exit code says it all, and an empty document.
pub(crate) fn say(output: &mut Output, _: &Answer, text: &str) -> Result<(), Failure> {
    match output.format {
        Format::Json => output.json(r#"{"schema_version":1}"#),
        _ => output.write(text),
    }
}

fn created(made: &Made) -> String {
    let uses = match made.uses {
        1 => "once".to_owned(),
        uses => format!("{uses} times"),
    };
    let approval = if made.approve { "; each machine waits for: plexus token approve" } else { "" };
    format!(
        "token {} for role {}, name {}, usable {uses} until {}{approval}\n\
         on the new machine, as root:\n\n    plexus-node join {}\n\n\
         whoever has it can join until then; end it with: plexus token revoke {}\n",
        made.id, made.role, made.name, made.expires, made.token, made.id
    )
}

fn listed(tokens: Page<Row>, requests: Page<Waiting>, output: &Output) -> String {
    let mut table = Table::new(&["ID", "ROLE", "NAME", "STATE", "USED", "APPROVE", "EXPIRES", "BY"]);
    for row in &tokens.results {
        let color = if row.state == "usable" { Color::Green } else { Color::Yellow };
        let used = format!("{}/{}", row.used, row.uses);
        let approve = if row.approve { "yes" } else { "no" };
        table.row(vec![
            row.id.to_string().as_str().into(),
            row.role.as_str().into(),
            row.name.as_str().into(),
            Cell::new(color, &row.state),
            used.as_str().into(),
            approve.into(),
            row.expires.as_str().into(),
            row.created_by.as_str().into(),
        ]);
    }
    let mut text = match tokens.results.is_empty() {
        true => "no tokens; make one: plexus token create --role execution --name NAME\n".to_owned(),
        false => table.render(output.paint),
    };
    let waiting: Vec<_> = requests.results.iter().filter(|request| request.state == "pending").collect();
    if !waiting.is_empty() {
        let mut table = Table::new(&["WAITS", "NODE", "ROLE", "SINCE", "KEY (SHA-256)"]);
        for request in waiting {
            table.row(vec![
                request.id.to_string().as_str().into(),
                request.node.as_str().into(),
                request.role.as_str().into(),
                request.created.as_str().into(),
                request.key.as_str().into(),
            ]);
        }
        text += "\n";
        text += &table.render(output.paint);
        text += "compare the key with what the machine shows, then: plexus token approve WAITS\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_token_comes_with_the_command_to_run() {
        let made = Made {
            id: 3,
            token: "plexus1-AAAA".into(),
            role: "execution".into(),
            name: "node-*".into(),
            uses: 1,
            approve: false,
            expires: "2030-01-01T00:00:00Z".into(),
        };
        assert_eq!(
            created(&made),
            "token 3 for role execution, name node-*, usable once until 2030-01-01T00:00:00Z\n\
             on the new machine, as root:\n\n    plexus-node join plexus1-AAAA\n\n\
             whoever has it can join until then; end it with: plexus token revoke 3\n"
        );
    }
}

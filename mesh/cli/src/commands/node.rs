//! `plexus node`: acts on one node of the mesh, through a controller and under a user's name.

use reqwest::Method;
use serde_json::json;

use super::token::{controller, say};
use crate::args::Node;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::settings::Settings;

const REVOCATIONS: &str = "enrolment/revocations/";

pub(crate) async fn run(settings: &Settings, command: Node, output: &mut Output) -> Result<Exit, Failure> {
    let door = controller(settings)?;
    match command {
        Node::Revoke { node, every_key } => {
            let body = json!({"node": node, "every_key": every_key});
            let answer = door.call(Method::POST, REVOCATIONS, Some(&body)).await?;
            let again = match every_key {
                true => "the name cannot be enrolled again before: plexus node restore",
                false => "the name can be enrolled again, with another key",
            };
            say(output, &answer, &format!("{node} is revoked: its links end now, everywhere; {again}\n"))?;
        }
        Node::Restore { node } => {
            let answer = door.call(Method::DELETE, &format!("{REVOCATIONS}{node}/"), None).await?;
            say(
                output,
                &answer,
                &format!("{node} is restored: its certificate counts again until it expires\n"),
            )?;
        }
    }
    Ok(Exit::Ok)
}

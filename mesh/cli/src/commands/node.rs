//! `plexus node`: tends one node. Through a controller any node that takes work, at its own socket root only that one.

use std::time::{Duration, Instant};

use plexus_mesh::local::Action;
use plexus_mesh::status::Status;
use plexus_proto::id::NodeId;
use reqwest::Method;
use serde_json::{Value, json};

use crate::args::{Image, NodeVerb};
use crate::door::{self, Answer, Door};
use crate::failure::{Exit, Failure};
use crate::http::{HttpDoor, REVOCATIONS};
use crate::output::{Cell, Color, Output, Paint, Shape, Table, count};
use crate::settings::Settings;

/// Between two looks at what still runs on a node that is drained.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn run(
    settings: &Settings,
    controller: impl Fn() -> Result<HttpDoor, Failure>,
    verb: NodeVerb,
    output: &mut Output,
) -> Result<Exit, Failure> {
    match verb {
        NodeVerb::Cordon { node, reason } => match door::open(settings).await? {
            Door::Controller(http) => enable(&http, named(node)?, false, reason, output).await,
            door => local(door, node, Action::Cordon { reason }, output).await,
        },
        NodeVerb::Uncordon { node } => match door::open(settings).await? {
            Door::Controller(http) => enable(&http, named(node)?, true, None, output).await,
            door => local(door, node, Action::Uncordon, output).await,
        },
        NodeVerb::Drain { node, deadline, reason } => match door::open(settings).await? {
            Door::Controller(http) => drain(&http, named(node)?, deadline, reason, output).await,
            door => drain_here(door, node, deadline, reason, output).await,
        },
        NodeVerb::Revoke { node, reason } => {
            let body = json!({"node": node, "reason": reason});
            let answer = controller()?.api(Method::POST, REVOCATIONS, Some(&body)).await?;
            let text = format!("the certificate of {node} is revoked; it has to join anew to come back\n");
            output.show(&answer, Shape { items: None, name: "node" }, &text)?;
            Ok(Exit::Ok)
        }
        NodeVerb::Image(image) => images(&mut door::open(settings).await?, image, output).await,
    }
}

fn named(node: Option<NodeId>) -> Result<NodeId, Failure> {
    node.ok_or_else(|| {
        Failure::new(Exit::Usage, "a controller has many nodes").hint("name the one that is meant")
    })
}

/// Has the daemon at a local socket act, if it is the node that was named.
async fn local(
    mut door: Door,
    node: Option<NodeId>,
    action: Action,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let own = meant(&mut door, node).await?;
    let answer = door.act(&action).await?;
    let running = running(&answer)?;
    output.show(&answer, Shape { items: None, name: "node" }, &acted(&own, &action, running))?;
    Ok(Exit::Ok)
}

/// The node behind a local socket, if it is the one that was named.
async fn meant(door: &mut Door, node: Option<NodeId>) -> Result<NodeId, Failure> {
    let status: Status = door.status().await?.parse()?;
    if let Some(node) = node.filter(|node| *node != status.node) {
        let text = format!("{node} is another node; {} answers here", status.node);
        return Err(Failure::new(Exit::Usage, text)
            .hint("give --controller URL or set CONTROLLER_HOST to tend other nodes"));
    }
    Ok(status.node)
}

/// `{"schema_version":1,"node":"node-7","cordoned":true,"reason":"new disk","running":2}`.
fn running(answer: &Answer) -> Result<u64, Failure> {
    let said: Value = answer.parse()?;
    Ok(said["running"].as_u64().unwrap_or(0))
}

/// Asks the daemon again and again, each time for a while, so that people see what still runs.
async fn drain_here(
    mut door: Door,
    node: Option<NodeId>,
    deadline: Option<Duration>,
    reason: Option<String>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let own = meant(&mut door, node).await?;
    let began = Instant::now();
    let (mut told, mut look) = (None, Duration::ZERO);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_sub(began.elapsed()));
        let wait = left.map_or(look, |left| look.min(left));
        look = LOOK_EVERY;
        let action = Action::Drain { deadline_ms: Some(wait.as_millis() as u64), reason: reason.clone() };
        let answer = door.act(&action).await?;
        let running = running(&answer)?;
        if running == 0 || deadline.is_some_and(|deadline| began.elapsed() >= deadline) {
            output.show(&answer, Shape { items: None, name: "node" }, &acted(&own, &action, running))?;
            // A drain that did not come to its end.
            return Ok(if running > 0 { Exit::Degraded } else { Exit::Ok });
        }
        if output.format.is_text() && told != Some(running) {
            output.write(&format!("{own}: waiting for {}\n", count(running as usize, "unit")))?;
            told = Some(running);
        }
    }
}

fn acted(node: &NodeId, action: &Action, running: u64) -> String {
    let runs = match running {
        0 => "nothing runs there".to_owned(),
        running => format!("{} still there", count(running as usize, "unit")),
    };
    match action {
        Action::Uncordon => format!("{node} takes work again\n"),
        Action::Drain { .. } if running == 0 => format!("{node} is drained: it takes no new work, {runs}\n"),
        Action::Drain { .. } => format!("{node} is not drained yet: it takes no new work, {runs}\n"),
        _ => format!("{node} takes no new work; {runs}\n"),
    }
}

/// A node as a controller's API has it.
struct Instance {
    path: String,
    running: u64,
    document: Answer,
}

async fn instance(http: &HttpDoor, node: &NodeId) -> Result<Instance, Failure> {
    let list: Value = http.get(&format!("/api/v2/instances/?hostname={node}")).await?.parse()?;
    let Some(found) = list["results"].get(0) else {
        return Err(Failure::new(Exit::NotFound, format!("{} has no node {node}", http.base()))
            .hint("plexus nodes lists those of the mesh; hops take no work"));
    };
    Ok(Instance {
        path: format!("/api/v2/instances/{}/", found["id"]),
        running: found["jobs_running"].as_u64().unwrap_or(0),
        document: Answer(found.to_string()),
    })
}

async fn set_enabled(http: &HttpDoor, node: &NodeId, enabled: bool) -> Result<Instance, Failure> {
    let instance = instance(http, node).await?;
    let document = http.api(Method::PATCH, &instance.path, Some(&json!({"enabled": enabled}))).await?;
    Ok(Instance { document, ..instance })
}

async fn enable(
    http: &HttpDoor,
    node: NodeId,
    enabled: bool,
    reason: Option<String>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    refuse_reason(reason)?;
    let Instance { running, document, .. } = set_enabled(http, &node, enabled).await?;
    let text = match enabled {
        true => acted(&node, &Action::Uncordon, running),
        false => acted(&node, &Action::Cordon { reason: None }, running),
    };
    output.show(&document, Shape { items: None, name: "hostname" }, &text)?;
    Ok(Exit::Ok)
}

/// AWX's instances have no place for it, and what is typed is not to vanish.
fn refuse_reason(reason: Option<String>) -> Result<(), Failure> {
    match reason {
        Some(_) => Err(Failure::new(Exit::Usage, "a controller keeps no --reason")
            .hint("leave it out, or run this as root at the node's own socket")),
        None => Ok(()),
    }
}

async fn drain(
    http: &HttpDoor,
    node: NodeId,
    deadline: Option<Duration>,
    reason: Option<String>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    refuse_reason(reason)?;
    set_enabled(http, &node, false).await?;
    let began = Instant::now();
    let mut told = None;
    loop {
        let Instance { running, document, .. } = instance(http, &node).await?;
        let late = deadline.is_some_and(|deadline| began.elapsed() >= deadline);
        if running == 0 || late {
            let text = acted(&node, &Action::Drain { deadline_ms: None, reason: None }, running);
            output.show(&document, Shape { items: None, name: "hostname" }, &text)?;
            return Ok(if running == 0 { Exit::Ok } else { Exit::Degraded });
        }
        if output.format.is_text() && told != Some(running) {
            output.write(&format!("{node}: waiting for {}\n", count(running as usize, "job")))?;
            told = Some(running);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn images(door: &mut Door, image: Image, output: &mut Output) -> Result<Exit, Failure> {
    let action = match image {
        Image::List => Action::ImageList,
        Image::Check { image } => Action::ImageCheck { image },
        Image::Pull { image } => Action::ImagePull { image },
    };
    let answer = door.act(&action).await?;
    let said: Value = answer.parse()?;
    let (shape, text) = match &action {
        Action::ImageList => (Shape { items: Some("images"), name: "name" }, image_list(&said, output.paint)),
        Action::ImageCheck { .. } => {
            (Shape { items: Some("runtimes"), name: "runtime" }, image_checks(&said, output.paint))
        }
        _ => (Shape { items: None, name: "name" }, pulled(&said)),
    };
    output.show(&answer, shape, &text)?;
    let could_start = !matches!(action, Action::ImageCheck { .. }) || could_start(&said);
    Ok(if could_start { Exit::Ok } else { Exit::Degraded })
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { "-".into() } else { value.to_string() }, str::to_owned)
}

/// `{"images":[{"name":"quay.io/a/b:c","digest":"sha256:…","size":1000,"in_use":true}]}`, sizes in bytes.
fn image_list(said: &Value, paint: Paint) -> String {
    let Some(images) = said["images"].as_array().filter(|images| !images.is_empty()) else {
        return "no images are here\n".to_owned();
    };
    let mut table = Table::new(&["IMAGE", "DIGEST", "SIZE", "IN USE"]);
    for image in images {
        // Twelve digits tell images apart, as everywhere else.
        let digest: String = word(&image["digest"]).chars().take("sha256:".len() + 12).collect();
        let size = image["size"]
            .as_u64()
            .map_or_else(|| "-".to_owned(), |bytes| format!("{} MB", bytes / 1_000_000));
        let used = match image["in_use"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        table.row(vec![word(&image["name"]).into(), digest.into(), size.into(), used.into()]);
    }
    table.render(paint)
}

/// Whether units could start: by the runtime that the node has chosen, and from the image if one was named.
fn could_start(said: &Value) -> bool {
    let mut runtimes = said["runtimes"].as_array().into_iter().flatten();
    let works = runtimes.any(|tried| tried["runtime"] == said["runtime"] && tried["missing"] == "");
    works && said["problem"].as_str().unwrap_or_default().is_empty()
}

/// `{"runtime":"podman","runtimes":[{"runtime":"podman","version":"5.4","missing":""}],"overlay":true}`; with an image also
/// `"name":"quay.io/a/b:c","problem":"","versions":{"ansible-core":"2.19.14"}`.
fn image_checks(said: &Value, paint: Paint) -> String {
    let mut table = Table::new(&["CHECK", "STATE", "WHAT"]);
    let mut row = |check: String, missing: &str, what: String| {
        let state = match missing {
            "" => Cell::new(Color::Green, "ok"),
            _ => Cell::new(Color::Red, "missing"),
        };
        table.row(vec![
            check.into(),
            state,
            if missing.is_empty() { what } else { missing.to_owned() }.into(),
        ]);
    };
    for tried in said["runtimes"].as_array().into_iter().flatten() {
        let version = tried["version"].as_str().unwrap_or_default().to_owned();
        row(word(&tried["runtime"]), tried["missing"].as_str().unwrap_or_default(), version);
    }
    let copies = if said["overlay"] == true { "" } else { "each unit gets a copy of its project" };
    row("overlay".to_owned(), copies, String::new());
    if let Some(name) = said["name"].as_str() {
        let versions = said["versions"].as_object().into_iter().flatten();
        let versions: Vec<String> =
            versions.map(|(name, version)| format!("{name} {}", word(version))).collect();
        row(name.to_owned(), said["problem"].as_str().unwrap_or_default(), versions.join(", "));
    }
    table.render(paint)
}

fn pulled(said: &Value) -> String {
    format!("{} is here, {}\n", word(&said["name"]), word(&said["digest"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said_with_what_runs() {
        let node: NodeId = "node-7".parse().unwrap();
        let drain = Action::Drain { deadline_ms: None, reason: None };
        let check =
            |action: &Action, running, expected: &str| assert_eq!(acted(&node, action, running), expected);
        check(&Action::Cordon { reason: None }, 2, "node-7 takes no new work; 2 units still there\n");
        check(&Action::Uncordon, 0, "node-7 takes work again\n");
        check(&drain, 0, "node-7 is drained: it takes no new work, nothing runs there\n");
        check(&drain, 1, "node-7 is not drained yet: it takes no new work, 1 unit still there\n");
    }

    #[test]
    fn images_and_what_they_miss_are_tables() {
        let said = json!({"images": [
            {"name": "quay.io/a/b:c", "digest": "sha256:0123456789abcdef", "size": 1_500_000_000u64, "in_use": true},
            {"name": "local", "digest": null},
        ]});
        let expected = "\
IMAGE          DIGEST               SIZE     IN USE
quay.io/a/b:c  sha256:0123456789ab  1500 MB  yes
local          -                    -        -
";
        assert_eq!(image_list(&said, Paint(false)), expected);
        let mut said = json!({"runtime": "podman", "overlay": true, "runtimes": [
            {"runtime": "podman", "version": "5.4", "missing": ""},
            {"runtime": "docker", "version": "", "missing": "no daemon answers"},
        ]});
        let expected = "\
CHECK    STATE    WHAT
podman   ok       5.4
docker   missing  no daemon answers
overlay  ok       \n";
        assert_eq!(image_checks(&said, Paint(false)), expected);
        assert!(could_start(&said), "docker is not what it uses");
        (said["name"], said["problem"]) = (json!("quay.io/a/b:c"), json!(""));
        said["versions"] = json!({"ansible-core": "2.19.14", "ansible-runner": "2.4.3"});
        let table = image_checks(&said, Paint(false));
        let last = table.lines().last().unwrap();
        assert_eq!(last, "quay.io/a/b:c  ok       ansible-core 2.19.14, ansible-runner 2.4.3");
        assert!(could_start(&said));
        said["problem"] = json!("quay.io/a/b:c is not on this node");
        assert!(image_checks(&said, Paint(false)).contains("missing  quay.io/a/b:c is not on this node"));
        assert!(!could_start(&said));
        said["problem"] = json!("");
        said["runtime"] = json!("docker");
        assert!(!could_start(&said), "what it uses does not work");
        assert_eq!(image_list(&json!({"images": []}), Paint(false)), "no images are here\n");
    }
}

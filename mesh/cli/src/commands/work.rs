//! `plexus work`: the jobs that nodes run, through a controller's API and under a user's name.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use crate::args::Work;
use crate::door::Answer;
use crate::failure::{Exit, Failure};
use crate::http::{HttpDoor, WORK};
use crate::output::{Cell, Color, Output, Paint, Shape, Table};

/// Between two looks for more output.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Events fetched at a time: as many as the API gives.
const PAGE: usize = 200;
/// States of a job that is not over.
const LIVE: &str = "new,pending,waiting,running";

pub(crate) async fn run(
    http: &HttpDoor,
    work: Work,
    watch: Option<Duration>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    match work {
        Work::List { stray: true, .. } => strays(http, output).await,
        Work::Adopt { unit } => {
            decide(http, unit, "adopt", "unit UNIT is job ID now; plexus work status ID shows it\n", output)
                .await
        }
        Work::Discard { unit } => {
            let text = "unit UNIT ends; job ID keeps what it had printed\n";
            decide(http, unit, "discard", text, output).await
        }
        Work::List { all, node, limit, stray: false } => {
            let mut path = format!("/api/v2/unified_jobs/?order_by=-id&page_size={limit}");
            if !all {
                path += &format!("&status__in={LIVE}");
            }
            if let Some(node) = node {
                path += &format!("&execution_node={node}");
            }
            list(http, &path, watch, output).await
        }
        Work::Status { id } => {
            let job = job(http, id).await?;
            let text = details(&job.parse()?, output.paint);
            output.show(&job, Shape { items: None, name: "id" }, &text)?;
            Ok(Exit::Ok)
        }
        Work::Results { id, follow } => results(http, id, follow, output).await,
        Work::Cancel { id } => {
            let job: Value = job(http, id).await?.parse()?;
            let cancel = related(&job, "cancel")?;
            let can: Value = http.get(&cancel).await?.parse()?;
            if can["can_cancel"] == Value::Bool(false) {
                let text = format!("job {id} is {}; there is nothing to cancel", word(&job["status"]));
                return Err(Failure::new(Exit::Failed, text));
            }
            let answer = http.api(Method::POST, &cancel, None).await?;
            acted(answer, id, "job ID is asked to end; plexus work status ID tells when it has\n", output)
        }
        Work::Abandon { id } => {
            let answer = http.api(Method::POST, &format!("{WORK}{id}/abandon/"), None).await?;
            acted(
                answer,
                id,
                "job ID is given up; its process may still live until its node returns\n",
                output,
            )
        }
    }
}

/// Shows what a verb answered, which may be nothing.
fn acted(answer: Answer, id: u64, text: &str, output: &mut Output) -> Result<Exit, Failure> {
    let text = text.replace("ID", &id.to_string());
    let answer = if answer.0.trim().is_empty() { Answer(format!("{{\"id\":{id}}}")) } else { answer };
    output.show(&answer, Shape { items: None, name: "id" }, &text)?;
    Ok(Exit::Ok)
}

async fn list(
    http: &HttpDoor,
    path: &str,
    watch: Option<Duration>,
    output: &mut Output,
) -> Result<Exit, Failure> {
    loop {
        let answer = http.get(path).await?;
        let mut text = table(&answer.parse()?, output.paint);
        if watch.is_some() && output.is_screen() {
            text = format!("\x1b[H\x1b[J{text}");
        }
        output.show(&answer, Shape { items: Some("results"), name: "id" }, &text)?;
        let Some(period) = watch else { return Ok(Exit::Ok) };
        tokio::select! {
            () = tokio::time::sleep(period) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
        }
    }
}

/// What nodes hold and the controller does not know.
async fn strays(http: &HttpDoor, output: &mut Output) -> Result<Exit, Failure> {
    let answer = http.get(&format!("{WORK}stray/")).await?;
    let found: Value = answer.parse()?;
    let units = found["results"].as_array().map_or(&[][..], Vec::as_slice);
    let mut table = Table::new(&["UNIT", "NODE", "STATE", "RECORDS", "WAS"]);
    for unit in units {
        let cells = ["unit", "node", "state", "records", "label"].map(|key| Cell::from(word(&unit[key])));
        table.row(cells.into());
    }
    let text = if units.is_empty() { "no stray units\n".to_owned() } else { table.render(output.paint) };
    output.show(&answer, Shape { items: Some("results"), name: "unit" }, &text)?;
    Ok(Exit::Ok)
}

async fn decide(
    http: &HttpDoor,
    unit: String,
    verb: &str,
    text: &str,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let answer = http.api(Method::POST, &format!("{WORK}stray/{unit}/{verb}/"), None).await?;
    let job: Value = answer.parse()?;
    let text = text.replace("UNIT", &unit).replace("ID", &word(&job["id"]));
    output.show(&answer, Shape { items: None, name: "id" }, &text)?;
    Ok(Exit::Ok)
}

/// A job of any kind: a list of one leads to its own address.
async fn job(http: &HttpDoor, id: u64) -> Result<Answer, Failure> {
    let found: Value = http.get(&format!("/api/v2/unified_jobs/?id={id}")).await?.parse()?;
    let own = found["results"].get(0).and_then(|job| job["url"].as_str());
    let own = own.ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no job {id}"))
            .hint("plexus work list --all shows them")
    })?;
    http.get(own).await
}

fn related(job: &Value, what: &str) -> Result<String, Failure> {
    let found = job["related"][what].as_str().map(str::to_owned);
    found.ok_or_else(|| Failure::new(Exit::Failed, format!("a {} has no {what}", word(&job["type"]))))
}

async fn results(http: &HttpDoor, id: u64, follow: bool, output: &mut Output) -> Result<Exit, Failure> {
    let job: Value = job(http, id).await?.parse()?;
    let own = word(&job["url"]);
    let events = related(&job, "job_events").or_else(|_| related(&job, "events"))?;
    let mut after = 0;
    loop {
        // Asked first: what is over now has said all that the page after it shows.
        let now: Value = http.get(&own).await?.parse()?;
        let over = now["finished"].is_string() && now["event_processing_finished"] != Value::Bool(false);
        loop {
            let path = format!("{events}?order_by=counter&counter__gt={after}&page_size={PAGE}");
            let answer = http.get(&path).await?;
            let page: Value = answer.parse()?;
            let found = page["results"].as_array().map_or(&[][..], Vec::as_slice);
            if let Some(last) = found.last().and_then(|event| event["counter"].as_u64()) {
                after = last;
                output.show(&answer, Shape { items: Some("results"), name: "counter" }, &printed(found))?;
            }
            if found.len() < PAGE {
                break;
            }
        }
        if over || !follow {
            let status = word(&now["status"]);
            return Ok(if !follow || status == "successful" { Exit::Ok } else { Exit::Failed });
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Ok),
        }
    }
}

/// What the events print, a line feed after each that prints anything.
fn printed(events: &[Value]) -> String {
    let lines = events.iter().filter_map(|event| event["stdout"].as_str()).filter(|text| !text.is_empty());
    lines.map(|text| text.replace("\r\n", "\n") + "\n").collect()
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn state(status: &Value) -> Cell {
    let color = match status.as_str() {
        Some("successful") => Color::Green,
        Some("failed" | "error") => Color::Red,
        Some("canceled") => Color::Yellow,
        _ => Color::Plain,
    };
    Cell::new(color, word(status))
}

fn table(page: &Value, paint: Paint) -> String {
    let Some(jobs) = page["results"].as_array().filter(|jobs| !jobs.is_empty()) else {
        return "no jobs\n".to_owned();
    };
    let mut table = Table::new(&["ID", "TYPE", "STATUS", "NODE", "STARTED", "NAME"]);
    for job in jobs {
        table.row(vec![
            word(&job["id"]).into(),
            word(&job["type"]).into(),
            state(&job["status"]),
            word(&job["execution_node"]).into(),
            word(&job["started"]).into(),
            word(&job["name"]).into(),
        ]);
    }
    let mut text = table.render(paint);
    if let (Some(all), shown) = (page["count"].as_u64(), jobs.len() as u64)
        && all > shown
    {
        text += &format!("and {} more: --limit\n", all - shown);
    }
    text
}

fn details(job: &Value, paint: Paint) -> String {
    let state = state(&job["status"]);
    let name = format!("{} {}  {}", word(&job["type"]), word(&job["id"]), word(&job["name"]));
    let mut text = format!("{}  {}\n", paint.on(Color::Bold, &name), state.paint(paint));
    for (label, field) in [
        ("node", "execution_node"),
        ("created", "created"),
        ("started", "started"),
        ("finished", "finished"),
        ("elapsed", "elapsed"),
        ("why", "job_explanation"),
    ] {
        let value = word(&job[field]);
        if value != "-" {
            text += &format!("  {label:<9} {value}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn jobs_are_a_table() {
        let page = json!({"count": 3, "results": [
            {"id": 42, "type": "job", "status": "running", "execution_node": "node-7", "started": "2026-11-20T12:00:00Z", "name": "deploy"},
            {"id": 41, "type": "project_update", "status": "failed", "execution_node": "", "started": null, "name": "repo"},
        ]});
        let expected = "\
ID  TYPE            STATUS   NODE    STARTED               NAME
42  job             running  node-7  2026-11-20T12:00:00Z  deploy
41  project_update  failed   -       -                     repo
and 1 more: --limit
";
        assert_eq!(table(&page, Paint(false)), expected);
        assert_eq!(table(&json!({"results": []}), Paint(false)), "no jobs\n");
    }

    #[test]
    fn a_job_says_why_it_ended() {
        let job = json!({"id": 42, "type": "job", "name": "deploy", "status": "error", "execution_node": "node-7", "job_explanation": "node node-7 was restarted"});
        let expected = "\
job 42  deploy  error
  node      node-7
  why       node node-7 was restarted
";
        assert_eq!(details(&job, Paint(false)), expected);
    }

    #[test]
    fn only_what_events_print_is_printed() {
        let events = [json!({"stdout": "a\r\nb"}), json!({"stdout": ""}), json!({"counter": 3})];
        assert_eq!(printed(&events), "a\nb\n");
    }
}

//! `plexus job show` and `plexus job why`.

use serde_json::{Value, json};

use super::list::color;
use crate::api::Api;
use crate::args::Format;
use crate::failure::{Exit, Failure};
use crate::output::{Color, Output, Paint};

pub(super) async fn run(api: &Api, id: i64, output: &mut Output) -> Result<Exit, Failure> {
    let job = api.get(&format!("/api/v2/jobs/{id}/"), &[]).await?;
    match output.format {
        Format::Table | Format::Wide => output.write(&render(&job, output.paint))?,
        _ => output.json(&job.to_string())?,
    }
    Ok(Exit::Ok)
}

pub(super) async fn why(api: &Api, id: i64, output: &mut Output) -> Result<Exit, Failure> {
    let job = api.get(&format!("/api/v2/jobs/{id}/"), &[]).await?;
    let sentence = sentence(&job);
    match output.format {
        Format::Table | Format::Wide => output.write(&format!("{sentence}\n"))?,
        _ => output.json(&json!({"job": id, "status": job["status"], "why": sentence}).to_string())?,
    }
    Ok(Exit::Ok)
}

fn text<'j>(job: &'j Value, name: &str) -> &'j str {
    job[name].as_str().unwrap_or_default()
}

/// Why a job is as it is.
fn sentence(job: &Value) -> String {
    let (id, status, explanation) = (&job["id"], text(job, "status"), text(job, "job_explanation"));
    let explained = |state: &str| match explanation {
        "" => format!("Job {id} {state}."),
        words => format!("Job {id} {state}: {words}"),
    };
    match status {
        "new" | "pending" => explained("waits to be placed"),
        "waiting" => explained(&format!("is on its way to {}", text(job, "execution_node"))),
        "running" => explained(&format!("runs on {}", text(job, "execution_node"))),
        "successful" => explained("was successful"),
        "canceled" => explained("was canceled"),
        "failed" if explanation.is_empty() => {
            format!("Job {id} failed: a task did on at least one host; `plexus job tail {id}` shows which")
        }
        "failed" => explained("failed"),
        "error" => explained("could not be brought to its end"),
        other => explained(&format!("is {other}")),
    }
}

fn render(job: &Value, paint: Paint) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines += &format!("{:<13}{value}\n", format!("{name}:"));
        }
    };
    let status = text(job, "status");
    line("job", format!("{} {}", job["id"], paint.on(Color::Bold, text(job, "name"))));
    line("status", paint.on(color(status), status));
    line("explanation", text(job, "job_explanation").to_owned());
    line("playbook", text(job, "playbook").to_owned());
    let named = |field: &str| job["summary_fields"][field]["name"].as_str().unwrap_or_default().to_owned();
    line("inventory", named("inventory"));
    line("project", named("project"));
    line("limit", text(job, "limit").to_owned());
    line("image", text(job, "image").to_owned());
    line("node", text(job, "execution_node").to_owned());
    line("launched by", job["launched_by"]["name"].as_str().unwrap_or_default().to_owned());
    for name in ["created", "started", "finished"] {
        line(name, text(job, name).to_owned());
    }
    if let Some(elapsed) = job["elapsed"].as_f64().filter(|&elapsed| elapsed > 0.0) {
        line("took", format!("{elapsed:.1}s"));
    }
    let hosts = job["host_status_counts"].as_object().into_iter().flatten();
    let hosts: Vec<String> = hosts.map(|(state, count)| format!("{count} {state}")).collect();
    line("hosts", hosts.join(", "));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_is_a_sentence() {
        let check = |status: &str, explanation: &str, expected: &str| {
            let job =
                json!({"id": 4, "status": status, "job_explanation": explanation, "execution_node": "n"});
            assert_eq!(sentence(&job), expected);
        };
        check("pending", "No node has room.", "Job 4 waits to be placed: No node has room.");
        check("running", "", "Job 4 runs on n.");
        check("error", "The node was lost.", "Job 4 could not be brought to its end: The node was lost.");
        assert!(sentence(&json!({"id": 4, "status": "failed"})).contains("plexus job tail 4"));
    }

    #[test]
    fn a_job_is_shown_without_what_it_does_not_have() {
        let job = json!({"id": 4, "name": "Deploy", "status": "failed", "playbook": "site.yml",
            "host_status_counts": {"ok": 3, "failures": 1}, "elapsed": 2.04});
        assert_eq!(
            render(&job, Paint(false)),
            "job:         4 Deploy\nstatus:      failed\nplaybook:    site.yml\ntook:        2.0s\n\
             hosts:       3 ok, 1 failures\n"
        );
    }
}

//! `plexus job list`: the newest jobs.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::Api;
use crate::args::Format;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Color, Output, Paint, Table, since};

pub(super) async fn run(
    api: &Api,
    status: Option<&str>,
    limit: u32,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let limit = limit.to_string();
    let mut query = vec![("order_by", "-id"), ("page_size", limit.as_str())];
    query.extend(status.map(|status| ("status", status)));
    let page = api.get("/api/v2/jobs/", &query).await?;
    match output.format {
        Format::Table | Format::Wide => {
            let wide = output.format == Format::Wide;
            output.write(&render(&page, Timestamp::now(), wide, output.paint))?;
        }
        _ => output.json(&page["results"].to_string())?,
    }
    Ok(Exit::Ok)
}

/// A status beside its colour.
pub(super) fn color(status: &str) -> Color {
    match status {
        "successful" => Color::Green,
        "failed" | "error" => Color::Red,
        "canceled" => Color::Yellow,
        _ => Color::Plain,
    }
}

fn render(page: &Value, now: Timestamp, wide: bool, paint: Paint) -> String {
    let mut header = vec!["ID", "STATUS", "NAME", "AGE", "TOOK", "NODE"];
    if wide {
        header.extend(["BY", "PLAYBOOK", "EXPLANATION"]);
    }
    let mut table = Table::new(&header);
    for job in page["results"].as_array().into_iter().flatten() {
        let text = |name: &str| job[name].as_str().unwrap_or_default().to_owned();
        let age = text("created").parse().map_or_else(|_| String::new(), |created| since(created, now));
        let took = match job["elapsed"].as_f64() {
            Some(elapsed) if elapsed > 0.0 => format!("{elapsed:.1}s"),
            _ => "-".to_owned(),
        };
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let status = text("status");
        let mut row: Vec<Cell> = vec![
            job["id"].to_string().into(),
            Cell::new(color(&status), status),
            text("name").into(),
            age.into(),
            took.into(),
            or_dash(text("execution_node")).into(),
        ];
        if wide {
            let by = job["launched_by"]["name"].as_str().unwrap_or("-").to_owned();
            row.extend([by, or_dash(text("playbook")), or_dash(text("job_explanation"))].map(Cell::from));
        }
        table.row(row);
    }
    table.render(paint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn jobs_are_lines() {
        let page = json!({"results": [
            {"id": 12, "status": "running", "name": "Deploy", "created": "2026-11-21T06:59:00Z", "elapsed": 0.0,
             "execution_node": "node-1", "launched_by": {"name": "admin"}, "playbook": "site.yml", "job_explanation": ""},
            {"id": 9, "status": "failed", "name": "Nightly", "created": "2026-11-20T07:00:00Z", "elapsed": 61.25,
             "execution_node": "", "launched_by": {}, "playbook": "", "job_explanation": "no"},
        ]});
        let now = "2026-11-21T07:00:00Z".parse().unwrap();
        assert_eq!(
            render(&page, now, false, Paint(false)),
            "ID  STATUS   NAME     AGE  TOOK   NODE\n\
             12  running  Deploy   1m   -      node-1\n\
             9   failed   Nightly  1d   61.2s  -\n"
        );
        assert!(render(&page, now, true, Paint(false)).contains("node-1  admin  site.yml  -\n"));
    }
}

//! `plexus job grep`: which jobs, hosts and tasks failed with a text, since when.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use crate::api::Api;
use crate::args::Format;
use crate::failure::{Exit, Failure};
use crate::output::{Color, Output, Paint, since};

#[derive(Debug, clap::Args)]
pub(crate) struct Grep {
    /// The text; case of letters does not matter.
    pub(crate) text: String,
    /// All events, not only those that report a failure.
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only jobs since a time, or so long ago: 90s, 15m, 12h, 7d.
    #[arg(long, value_name = "WHEN")]
    pub(crate) since: Option<String>,
    /// Only events of this host.
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only jobs of this job template, by id or name.
    #[arg(long)]
    pub(crate) template: Option<String>,
    /// Stop after so many finds.
    #[arg(short, long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
}

/// What was found, in numbers.
#[derive(Debug, Default)]
struct Tally {
    finds: u64,
    jobs: BTreeSet<i64>,
    hosts: BTreeSet<String>,
    tasks: BTreeSet<String>,
    first: Option<Timestamp>,
    searched_jobs: u64,
    searched_events: u64,
}

pub(super) async fn run(api: &Api, grep: Grep, output: &mut Output) -> Result<Exit, Failure> {
    let template = match &grep.template {
        Some(template) => Some(api.id_of("job_templates", "job template", template).await?.to_string()),
        None => None,
    };
    let mut tally = Tally::default();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = vec![("q", grep.text.as_str())];
        query.extend(grep.all.then_some(("all", "true")));
        let options =
            [("since", &grep.since), ("host", &grep.host), ("template", &template), ("cursor", &cursor)];
        query.extend(options.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))));
        match page(api, &query, grep.limit, &mut tally, output).await? {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    if matches!(output.format, Format::Table | Format::Wide) {
        output.note(&summary(&tally, Timestamp::now()));
    }
    // As grep does: nothing found is not success.
    Ok(if tally.finds > 0 { Exit::Ok } else { Exit::Failed })
}

/// Reads one answer; gives the cursor of the next.
async fn page(
    api: &Api,
    query: &[(&str, &str)],
    limit: u64,
    tally: &mut Tally,
    output: &mut Output,
) -> Result<Option<String>, Failure> {
    let mut response = api.lines("/api/plexus/v1/grep/", query).await?;
    let mut rest = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| Failure::of(Exit::Unreachable, &error))? {
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line: Value = serde_json::from_slice(&line).map_err(|error| {
                Failure::new(Exit::Failed, format!("the answer is not understood: {error}"))
            })?;
            if let Some(error) = line["error"].as_str() {
                return Err(Failure::new(Exit::Failed, format!("the search broke off: {error}")));
            }
            if let Some(end) = line.get("end") {
                tally.searched_jobs += end["searched_jobs"].as_u64().unwrap_or(0);
                tally.searched_events += end["searched_events"].as_u64().unwrap_or(0);
                return Ok(end["cursor"].as_str().map(str::to_owned));
            }
            let hit = &line["hit"];
            tally.take(hit);
            match output.format {
                Format::Table | Format::Wide => {
                    output.write(&render(hit, Timestamp::now(), output.paint))?;
                }
                _ => output.json(&hit.to_string())?,
            }
            if tally.finds >= limit {
                return Ok(None);
            }
        }
    }
    Err(Failure::new(Exit::Unreachable, "the search broke off: the controller closed the connection"))
}

impl Tally {
    fn take(&mut self, hit: &Value) {
        self.finds += 1;
        self.jobs.extend(hit["job"].as_i64());
        for (name, names) in [("host", &mut self.hosts), ("task", &mut self.tasks)] {
            names.extend(hit[name].as_str().filter(|name| !name.is_empty()).map(str::to_owned));
        }
        let created = hit["created"].as_str().and_then(|created| created.parse().ok());
        self.first = self.first.into_iter().chain(created).min();
    }
}

fn render(hit: &Value, now: Timestamp, paint: Paint) -> String {
    let text = |name: &str| hit[name].as_str().unwrap_or_default();
    let age = text("created").parse().map_or_else(|_| "-".to_owned(), |created| since(created, now));
    let word = if hit["failed"] == true { paint.on(Color::Red, "failed") } else { text("event").to_owned() };
    let place = match (text("host"), text("task")) {
        ("", "") => String::new(),
        ("", task) => format!(" [{task}]"),
        (host, task) => format!(" {host} [{task}]"),
    };
    let job = paint.on(Color::Bold, &format!("job {} {}", hit["job"], text("name")));
    format!("{job}  {age} ago  {word}{place}\n    {}\n", text("excerpt"))
}

fn summary(tally: &Tally, now: Timestamp) -> String {
    let many = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let searched = format!("{} events of {} jobs looked through", tally.searched_events, tally.searched_jobs);
    if tally.finds == 0 {
        return format!("nothing found; {searched}");
    }
    let first =
        tally.first.map_or_else(String::new, |first| format!(", the first {} ago", since(first, now)));
    let searched = if tally.searched_jobs > 0 { format!("; {searched}") } else { String::new() };
    format!(
        "{} in {}, {}, {}{first}{searched}",
        many(tally.finds as usize, "find"),
        many(tally.jobs.len(), "job"),
        many(tally.hosts.len(), "host"),
        many(tally.tasks.len(), "task"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_are_told_and_counted() {
        let now = "2026-11-21T08:00:00Z".parse().unwrap();
        let hit = json!({"job": 4, "name": "web", "host": "h1", "task": "Copy", "failed": true,
            "created": "2026-11-21T07:00:00Z", "excerpt": "no space left"});
        assert_eq!(
            render(&hit, now, Paint(false)),
            "job 4 web  1h ago  failed h1 [Copy]\n    no space left\n"
        );
        let mut tally = Tally { searched_jobs: 3, searched_events: 90, ..Tally::default() };
        assert_eq!(summary(&tally, now), "nothing found; 90 events of 3 jobs looked through");
        tally.take(&hit);
        tally.take(&json!({"job": 5, "host": "h1", "task": "Move", "created": "2026-11-21T06:00:00Z"}));
        assert_eq!(
            summary(&tally, now),
            "2 finds in 2 jobs, 1 host, 2 tasks, the first 2h ago; 90 events of 3 jobs looked through"
        );
    }
}

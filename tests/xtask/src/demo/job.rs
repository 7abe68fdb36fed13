//! One job of the demo: launched, shown while it runs, summed up.

use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use plexus_tests::{Api, Layout, Seen, plain, wait_for};
use serde_json::{Value, json};

/// Pause between two looks for new events: short against what an eye notices.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for canceled jobs to end.
const CANCEL: Duration = Duration::from_secs(20);

/// What came of the job.
#[derive(Debug)]
pub(super) struct Outcome {
    job: i64,
    status: String,
    explanation: String,
    events: u64,
    path: Vec<String>,
    to_start: Duration,
    to_first_event: Duration,
    total: Duration,
}

impl Outcome {
    /// Whether the job did what it should.
    pub(super) fn successful(&self) -> bool {
        self.status == "successful"
    }

    /// The summary for people.
    pub(super) fn print(&self) {
        println!();
        println!("Job {} is {}.", self.job, self.status);
        if !self.explanation.is_empty() {
            println!("  explanation            {}", self.explanation);
        }
        println!("  events stored          {}", self.events);
        println!("  path (by trace)        {}", self.path.join(" → "));
        println!("  submit to start        {:>7.3} s", self.to_start.as_secs_f64());
        println!("  submit to first event  {:>7.3} s", self.to_first_event.as_secs_f64());
        println!("  total                  {:>7.3} s", self.total.as_secs_f64());
        std::io::stdout().flush().ok();
    }

    /// The summary for programs.
    pub(super) fn line(&self) -> String {
        let times = [self.to_start.as_millis(), self.to_first_event.as_millis(), self.total.as_millis()];
        super::result_line(&self.status, self.events, &self.path, times)
    }
}

/// Launches the template, prints the output as it comes, and waits for the end.
///
/// # Errors
/// When the API fails, or the way to the node cannot be traced.
pub(super) async fn run(api: &Api, template: i64, layout: &Layout) -> anyhow::Result<Outcome> {
    let colours = std::env::var_os("NO_COLOR").is_none();
    let launched_at = SystemTime::now();
    let clock = Instant::now();
    let job = api.launch(template, &json!({})).await?["id"].as_i64().context("launched job has no id")?;
    super::say(&format!("launched job {job}; its output follows"));
    println!();

    let mut printed = 0;
    let mut first_event = None;
    let done = loop {
        // Asked before the events: when the job is over now, the events read next are all of them.
        let found = api.job(job).await?;
        let over = found["event_processing_finished"] == json!(true);
        let events =
            api.all(&format!("jobs/{job}/job_events/?order_by=counter&counter__gt={printed}")).await?;
        if !events.is_empty() {
            first_event.get_or_insert_with(|| clock.elapsed());
        }
        for event in &events {
            printed = event["counter"].as_i64().context("event has no counter")?;
            show(event["stdout"].as_str().unwrap_or_default(), colours);
        }
        if over {
            break found;
        }
        tokio::time::sleep(LOOK).await;
    };
    let total = clock.elapsed();
    if printed == 0 {
        show(&api.stdout(job, "ansi").await?, colours);
    }
    let to_start = done["started"].as_str().and_then(|text| since(launched_at, text)).unwrap_or_default();
    Ok(Outcome {
        job,
        status: done["status"].as_str().unwrap_or("unknown").to_owned(),
        explanation: done["job_explanation"].as_str().unwrap_or_default().to_owned(),
        events: api.event_count(job).await?,
        path: trace(layout)?,
        to_start,
        to_first_event: first_event.unwrap_or_default(),
        total,
    })
}

/// Cancels every job that is not over, and waits for their ends. Best effort: whatever stays is swept later.
pub(super) async fn cancel_all(api: &Api) {
    let active = "jobs/?status__in=new,pending,waiting,running";
    for job in api.all(active).await.unwrap_or_default() {
        if let Some(id) = job["id"].as_i64() {
            super::say(&format!("canceling job {id}"));
            api.post(&format!("jobs/{id}/cancel/"), &json!({})).await.ok();
        }
    }
    wait_for("jobs to end", CANCEL, async || match api.get(active).await {
        Ok(list) => Seen::when(list["count"] == json!(0), || format!("{} jobs", list["count"])),
        Err(error) => Seen::NotYet(format!("{error:#}")),
    })
    .await
    .ok();
}

/// The nodes that a packet from the controller to node-1 passes, both ends included.
fn trace(layout: &Layout) -> anyhow::Result<Vec<String>> {
    let output = Command::new(layout.binaries.cli())
        .arg("--socket")
        .arg(layout.socket("controller"))
        .args(["--output", "json", "trace", "node-1"])
        .output()
        .context("cannot run plexus")?;
    if !output.status.success() {
        bail!("plexus trace failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let trace: Value = serde_json::from_slice(&output.stdout).context("plexus trace did not print JSON")?;
    if trace["reached"] != json!(true) {
        bail!("node-1 was not reached by trace: {trace}");
    }
    let hops = trace["hops"].as_array().into_iter().flatten().map(|hop| &hop["node"]);
    Ok(std::iter::once(&trace["from"])
        .chain(hops)
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect())
}

fn show(text: &str, colours: bool) {
    if text.is_empty() {
        return;
    }
    let mut out = std::io::stdout().lock();
    let text = if colours { text.to_owned() } else { plain(text) };
    writeln!(out, "{}", text.trim_end_matches(['\r', '\n'])).and_then(|()| out.flush()).ok();
}

/// Time from a moment to an RFC 3339 text; zero when the text lies before it.
fn since(start: SystemTime, text: &str) -> Option<Duration> {
    let then: Timestamp = text.parse().ok()?;
    Some(SystemTime::from(then).duration_since(start).unwrap_or_default())
}

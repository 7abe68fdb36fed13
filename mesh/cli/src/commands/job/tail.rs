//! `plexus job tail`: a job's output, live, across lost connections.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::progress::Progress;
use super::sse::Parser;
use super::terminal::{plain, printed};
use crate::api::Api;
use crate::args::Format;
use crate::failure::{Exit, Failure};
use crate::output::Output;

/// First and longest wait before a lost connection is taken up again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Silence after which a connection is lost: the controller says something every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// How often the line at the bottom moves while nothing else does.
const TICK: Duration = Duration::from_secs(1);

/// Follows a job from the event after `after` to its end.
pub(super) async fn run(api: &Api, job: i64, after: i64, output: &mut Output) -> Result<Exit, Failure> {
    let mut tail = Tail::new(job, after, output);
    let path = format!("/api/v2/jobs/{job}/events/stream");
    let mut wait = AGAIN.0;
    loop {
        let before = tail.last;
        match follow(api, &path, &mut tail).await {
            Ok(Some(end)) => return tail.end(&end),
            Ok(None) => {}
            // A first answer that does not come is a wrong address; later on it is a controller that comes back.
            Err(failure) if !tail.answered || !Api::is_passing(&failure) => {
                tail.clear();
                return Err(failure);
            }
            Err(failure) => tail.note(&format!("{}; trying again", failure.text)),
        }
        if tail.last > before {
            wait = AGAIN.0;
        }
        tokio::time::sleep(wait).await;
        wait = AGAIN.1.min(wait * 2);
    }
}

/// Reads one connection to its end: how the job ended, or `None` when the connection did.
async fn follow(api: &Api, path: &str, tail: &mut Tail<'_>) -> Result<Option<Value>, Failure> {
    let lost = |why: &str| Failure::new(Exit::Unreachable, format!("lost the controller: {why}"));
    let mut response = api.stream(path, tail.last).await?;
    tail.answered = true;
    let mut parser = Parser::default();
    let mut heard = Instant::now();
    loop {
        let piece = tokio::select! {
            piece = response.chunk() => piece,
            () = tokio::time::sleep(TICK) => {
                if heard.elapsed() > SILENCE {
                    return Err(lost("it is silent"));
                }
                tail.draw();
                continue;
            }
        };
        let Some(piece) = piece.map_err(|error| lost(&crate::failure::causes(&error)))? else {
            return Ok(None);
        };
        heard = Instant::now();
        parser.push(&piece)?;
        let mut text = String::new();
        while let Some(message) = parser.next() {
            let data: Value = serde_json::from_str(&message.data).unwrap_or_default();
            match (message.id, message.event.as_str()) {
                (Some(id), _) if id > tail.last => tail.take(id, &data, &message.data, &mut text),
                (None, "end") => {
                    tail.print(&text)?;
                    return Ok(Some(data));
                }
                _ => {}
            }
        }
        tail.print(&text)?;
    }
}

struct Tail<'o> {
    job: i64,
    output: &'o mut Output,
    progress: Option<Progress>,
    began: Instant,
    /// Number of the last event that was shown.
    last: i64,
    /// The controller knows the job.
    answered: bool,
    /// The line at the bottom is drawn.
    drawn: bool,
    /// The cursor stands behind text, not at the beginning of a line.
    within_line: bool,
}

impl<'o> Tail<'o> {
    fn new(job: i64, after: i64, output: &'o mut Output) -> Self {
        let terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        let progress =
            (terminal && matches!(output.format, Format::Table | Format::Wide)).then(Progress::default);
        Self {
            job,
            output,
            progress,
            began: Instant::now(),
            last: after,
            answered: false,
            drawn: false,
            within_line: false,
        }
    }

    fn is_json(&self) -> bool {
        !matches!(self.output.format, Format::Table | Format::Wide)
    }

    /// Adds what an event printed to `text`.
    fn take(&mut self, id: i64, event: &Value, json: &str, text: &mut String) {
        self.last = id;
        if let Some(progress) = &mut self.progress {
            progress.see(event);
        }
        if self.is_json() {
            text.push_str(json);
            text.push('\n');
            return;
        }
        let stdout = event["stdout"].as_str().unwrap_or_default();
        let line = |name: &str| event[name].as_i64().unwrap_or(0);
        let printed = printed(stdout, line("start_line"), line("end_line"));
        if self.output.paint.0 { text.push_str(&printed) } else { text.push_str(&plain(&printed)) }
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return Ok(());
        }
        self.clear();
        self.output.write(text)?;
        self.within_line = !text.ends_with('\n');
        self.draw();
        Ok(())
    }

    /// Draws the line at the bottom, over itself.
    fn draw(&mut self) {
        let Some(progress) = self.progress.as_ref().filter(|_| !self.within_line) else { return };
        let line = progress.line(self.began.elapsed(), width(), self.output.paint);
        // A line that cannot be drawn is not worth a word.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        self.drawn = true;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn note(&mut self, text: &str) {
        self.clear();
        self.output.note(text);
    }

    fn end(&mut self, end: &Value) -> Result<Exit, Failure> {
        self.clear();
        if self.is_json() {
            self.output.json(&end.to_string())?;
        }
        let status = end["status"].as_str().unwrap_or_default();
        match status {
            "successful" => Ok(Exit::Ok),
            _ => {
                let job = self.job;
                Err(Failure::new(Exit::Failed, format!("job {job} is {status}"))
                    .hint(format!("`plexus job why {job}` says why")))
            }
        }
    }
}

/// Characters of a line of the terminal.
fn width() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col) - 1,
        _ => 79,
    }
}

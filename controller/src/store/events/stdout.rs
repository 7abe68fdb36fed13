//! Output of a job as a stream of text, never as a whole.

use std::cmp;
use std::ops::Range;

use futures_util::Stream;
use futures_util::stream;
use sea_query::{Expr, ExprTrait, Query};

use super::body::EVENTS_MAX;
use super::engine::{Reader, statement};
use super::read::{blocks, job_summary, rows};
use super::{Error, EventStore, JobKey, schema};

/// Where the stream stands.
struct Position {
    reader: Reader,
    job: i64,
    /// The next event.
    counter: i64,
    /// The last event when the stream began: it ends there, however much comes after.
    last: i64,
    lines: Range<i64>,
}

impl EventStore {
    /// The output's lines in `lines`, from 0, in pieces of some hundred kilobytes at most (or one event's, if that is
    /// more). Line ends are LF; a piece may end within a line only where the job's output does. Colour codes stay.
    ///
    /// Reads what is stored when it begins. A failed read ends the stream with its error.
    pub fn stdout(
        &self,
        job: JobKey,
        lines: Range<i64>,
    ) -> impl Stream<Item = Result<String, Error>> + Send + use<> {
        let store = self.clone();
        let begin = async move {
            let Some(reader) = store.reader(job).await? else { return Ok(None) };
            let Some(summary) = job_summary(&reader, job.id).await? else { return Ok(None) };
            let lines = cmp::max(lines.start, 0)..cmp::min(lines.end, summary.last_line.saturating_add(1));
            let counter = first_event(&reader, job.id, lines.start, summary.events).await?;
            Ok(Some(Position { reader, job: job.id, counter, last: summary.events, lines }))
        };
        let start = stream::once(begin);
        futures_util::StreamExt::flat_map(start, |position: Result<_, Error>| {
            let (position, error) = match position {
                Ok(position) => (position, None),
                Err(error) => (None, Some(Err(error))),
            };
            let pieces = stream::try_unfold(position, |position| async {
                match position {
                    Some(position) => position.next().await,
                    None => Ok(None),
                }
            });
            futures_util::StreamExt::chain(stream::iter(error), pieces)
        })
    }
}

impl Position {
    /// The next piece that is not empty.
    async fn next(mut self) -> Result<Option<(String, Option<Self>)>, Error> {
        while self.counter <= self.last && self.lines.start < self.lines.end {
            let end = cmp::min(self.counter.saturating_add(EVENTS_MAX as i64 - 1), self.last);
            let blocks = blocks(&self.reader, self.job, self.counter..=self.counter).await?;
            let block = blocks.first().ok_or(Error::Damaged("a block of events that is not there"))?;
            let mut text = String::new();
            for row in rows(&self.reader, self.job, self.counter..=end).await? {
                // The rest belongs to the next block.
                let Some(body) = block.body(row.counter) else { break };
                self.counter = row.counter + 1;
                if row.start_line >= self.lines.end {
                    self.counter = i64::MAX;
                    break;
                }
                let stdout: String = serde_json::from_slice(&body.stdout)
                    .map_err(|_| Error::Damaged("the output of an event"))?;
                append(&mut text, &stdout, row.start_line..row.end_line, &self.lines);
            }
            if !text.is_empty() {
                return Ok(Some((text, Some(self))));
            }
        }
        Ok(None)
    }
}

/// Appends those lines of an event's output that are wanted, with the line ends that the terminal had.
fn append(text: &mut String, stdout: &str, of: Range<i64>, wanted: &Range<i64>) {
    let stdout = stdout.replace("\r\n", "\n");
    let within = stdout.bytes().filter(|&byte| byte == b'\n').count();
    // What was stripped behind it. None, when the output stopped within a line: a prompt.
    let stripped = usize::try_from(of.end - of.start).unwrap_or(0).saturating_sub(within);
    let whole = stdout + &"\n".repeat(stripped);
    for (line, number) in whole.split_inclusive('\n').zip(of.start..) {
        if wanted.contains(&number) {
            text.push_str(line);
        }
    }
}

/// The first event with output at or after a line. Lines rise with the counter, so the place is found by halves.
async fn first_event(reader: &Reader, job: i64, line: i64, events: i64) -> Result<i64, Error> {
    let (mut low, mut high) = (1, events + 1);
    if line == 0 {
        return Ok(low);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        let mut query = Query::select();
        query
            .column("end_line")
            .from(schema::EVENT)
            .and_where(Expr::col("job").eq(job))
            .and_where(Expr::col("counter").eq(middle));
        let rows = reader.rows(statement(&query)).await?;
        let end = rows.first().ok_or(Error::Damaged("an event that is not there"))?.integer(0)?;
        if end >= line { high = middle } else { low = middle + 1 }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stdout: &str, of: Range<i64>, wanted: Range<i64>, expected: &str) {
        let mut text = String::new();
        append(&mut text, stdout, of, &wanted);
        assert_eq!(text, expected);
    }

    #[test]
    fn line_ends_are_those_of_the_terminal() {
        check("", 3..3, 0..100, "");
        check("", 3..4, 0..100, "\n");
        check("\r\nPLAY [x] ***", 0..2, 0..100, "\nPLAY [x] ***\n");
        check("RECAP\r\nweb1", 0..3, 0..100, "RECAP\nweb1\n\n");
        check("Enter: ", 5..5, 0..100, "Enter: ");
    }

    #[test]
    fn lines_outside_are_left_out() {
        check("a\r\nb\r\nc", 10..13, 11..12, "b\n");
        check("a\r\nb\r\nc", 10..13, 12..20, "c\n");
        check("a\r\nb\r\nc", 10..13, 0..10, "");
        check("Enter: ", 5..5, 5..6, "Enter: ");
    }
}

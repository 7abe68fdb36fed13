//! Text for people, JSON for programs.

use std::io::{self, IsTerminal, Write};

use jiff::{SignedDuration, Timestamp};

use serde_json::Value;

use crate::args::{Format, When};
use crate::door::Answer;
use crate::failure::{Exit, Failure};

/// Where output goes, and in which form.
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) paint: Paint,
    paint_errors: Paint,
    /// Standard output is a terminal.
    screen: bool,
}

/// Where a document keeps its list and the names in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Field with the list; none where the document is about one thing.
    pub(crate) items: Option<&'static str>,
    /// Field with the name.
    pub(crate) name: &'static str,
}

impl Output {
    pub(crate) fn new(format: Format, when: When) -> Self {
        let env = |name: &str| std::env::var(name).ok();
        let paint = |terminal| Paint(use_color(when, terminal, env));
        Self {
            format,
            paint: paint(io::stdout().is_terminal()),
            paint_errors: paint(io::stderr().is_terminal()),
            screen: io::stdout().is_terminal(),
        }
    }

    /// Writes `text`, which ends its own lines, and lets it be seen at once.
    pub(crate) fn write(&mut self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            // `plexus nodes | head` is no failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(Exit::Ok)),
            Err(error) => Err(Failure::new(Exit::Failed, format!("cannot write output: {error}"))),
        }
    }

    /// Writes one JSON document on a line.
    pub(crate) fn json(&mut self, document: &str) -> Result<(), Failure> {
        self.write(&format!("{}\n", document.trim_end()))
    }

    /// Shows an answer in the form that was asked for: `text` to people, the document to programs. The document's
    /// array `items` gives the lines of jsonl, and each item's field `name` the lines of name.
    pub(crate) fn show(&mut self, answer: &Answer, shape: Shape, text: &str) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Wide => self.write(text),
            Format::Json => self.json(&answer.0),
            Format::Yaml => {
                let document: Value = answer.parse()?;
                let yaml = serde_saphyr::to_string(&document);
                let yaml = yaml.map_err(|error| Failure::new(Exit::Failed, format!("no YAML: {error}")))?;
                self.write(&format!("---\n{}\n", yaml.trim_end()))
            }
            Format::Jsonl | Format::Name => {
                let document: Value = answer.parse()?;
                let items = match shape.items.map(|items| &document[items]) {
                    Some(Value::Array(items)) => items.as_slice(),
                    _ => std::slice::from_ref(&document),
                };
                let line = |item: &Value| match (self.format, &item[shape.name]) {
                    (Format::Jsonl, _) => item.to_string(),
                    (_, Value::String(name)) => name.clone(),
                    (_, name) => name.to_string(),
                };
                let lines: String = items.iter().map(|item| line(item) + "\n").collect();
                self.write(&lines)
            }
        }
    }

    /// What a verb did: a sentence for people, its document for programs.
    pub(crate) fn done(&mut self, document: &Value, text: &str) -> Result<(), Failure> {
        self.show(&Answer(document.to_string()), Shape { items: None, name: "name" }, text)
    }

    /// Whether a person looks at it now, so that it may be drawn again in place.
    pub(crate) fn is_screen(&self) -> bool {
        self.format.is_text() && self.screen
    }

    /// Says something beside the output, to people.
    pub(crate) fn note(&mut self, text: &str) {
        // Nowhere to report that this failed.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Says why it did not end well.
    pub(crate) fn failure(&mut self, failure: &Failure) -> Exit {
        if !failure.silent {
            let mut out = io::stderr().lock();
            // Nowhere to report that this failed.
            let _ = out.write_all(render_failure(failure, self.paint_errors).as_bytes());
        }
        failure.exit
    }
}

fn render_failure(failure: &Failure, paint: Paint) -> String {
    let mut text = format!("{} {}\n", paint.on(Color::Red, "error:"), failure.text);
    if let Some(hint) = &failure.hint {
        text += &format!("{} {hint}\n", paint.on(Color::Yellow, " hint:"));
    }
    text
}

fn use_color(when: When, terminal: bool, env: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| env(name).is_some_and(|value| !value.is_empty());
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto if set("NO_COLOR") => false,
        When::Auto if env("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0") => true,
        When::Auto => terminal && env("TERM").is_none_or(|term| term != "dumb"),
    }
}

/// Never alone: beside every colour stands a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Color {
    Plain,
    Bold,
    Green,
    Yellow,
    Red,
}

/// Whether to use colour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint(pub(crate) bool);

impl Paint {
    pub(crate) fn on(self, color: Color, text: &str) -> String {
        let code = match color {
            Color::Plain => return text.to_owned(),
            Color::Bold => "1",
            Color::Green => "32",
            Color::Yellow => "33",
            Color::Red => "31",
        };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Columns as wide as their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
}

/// One cell.
pub(crate) struct Cell {
    text: String,
    color: Color,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), color: Color::Plain }
    }
}

impl Cell {
    pub(crate) fn new(color: Color, text: impl Into<String>) -> Self {
        Self { text: text.into(), color }
    }

    /// The cell outside of any table.
    pub(crate) fn paint(&self, paint: Paint) -> String {
        paint.on(self.color, &self.text)
    }
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|&name| Cell::new(Color::Bold, name)).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub(crate) fn render(&self, paint: Paint) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                text += &paint.on(cell.color, &cell.text);
                if column + 1 < row.len() {
                    let gap = widths[column] + 2 - cell.text.chars().count();
                    text.extend(std::iter::repeat_n(' ', gap));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// A span of time in its largest unit: `7s`, `3m`, `5h`, `2d`.
pub(crate) fn span(time: SignedDuration) -> String {
    let seconds = time.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// The column for something that may not be known.
pub(crate) fn or_dash(value: Option<impl ToString>) -> Cell {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string()).into()
}

/// `1 link`, `2 links`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// How long ago `then` was.
pub(crate) fn since(then: Timestamp, now: Timestamp) -> String {
    span(now.duration_since(then))
}

/// Milliseconds, with two decimals below a hundred.
pub(crate) fn millis(time: f64) -> String {
    if time < 100.0 { format!("{time:.2} ms") } else { format!("{time:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_follows_flag_then_environment_then_terminal() {
        let check = |when, terminal, env: &[(&str, &str)]| {
            use_color(when, terminal, |name| {
                env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
            })
        };
        assert!(check(When::Auto, true, &[]));
        assert!(!check(When::Auto, false, &[]));
        assert!(!check(When::Auto, true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
        assert!(check(When::Auto, true, &[("NO_COLOR", "")]), "set to nothing is not set");
        assert!(check(When::Auto, false, &[("CLICOLOR_FORCE", "1")]));
        assert!(!check(When::Auto, false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!check(When::Auto, true, &[("TERM", "dumb")]));
        assert!(check(When::Always, false, &[("NO_COLOR", "1")]));
        assert!(!check(When::Never, true, &[]));
    }

    #[test]
    fn columns_align_with_and_without_colour() {
        let mut table = Table::new(&["A", "B", "C"]);
        table.row(vec![Cell::new(Color::Red, "über"), "x".into(), "end".into()]);
        assert_eq!(table.render(Paint(false)), "A     B  C\nüber  x  end\n");
        assert_eq!(
            table.render(Paint(true)),
            "\x1b[1mA\x1b[0m     \x1b[1mB\x1b[0m  \x1b[1mC\x1b[0m\n\x1b[31müber\x1b[0m  x  end\n"
        );
    }

    #[test]
    fn spans_are_short() {
        let spans = [-5, 0, 59, 60, 3599, 3600, 86_399, 86_400, 2_000_000];
        let texts = spans.map(|seconds| span(SignedDuration::from_secs(seconds)));
        assert_eq!(texts, ["0s", "0s", "59s", "1m", "59m", "1h", "23h", "1d", "23d"]);
    }

    #[test]
    fn failures_say_what_next() {
        let failure = Failure::new(Exit::Denied, "cannot connect to /x: permission denied").hint("use sudo");
        let text = render_failure(&failure, Paint(false));
        assert_eq!(text, "error: cannot connect to /x: permission denied\n hint: use sudo\n");
    }
}

//! One event line, kept as the bytes that came, with the places of its fields.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;

use super::scan::{Fields, Span};

/// Most line ends that are believed to stand behind an event's output.
const STRIPPED_MAX: i64 = 16;

/// An event of the runner. Strings and numbers are read from the line when asked for.
#[derive(Debug, Clone)]
pub struct Event {
    line: Bytes,
    fields: Fields,
    /// The line was no strict JSON and was rewritten.
    pub normalised: bool,
    /// Bytes of the whole line, when it was too long and only its beginning is here.
    pub cut: Option<u64>,
}

impl Event {
    pub(super) fn new(line: Bytes, fields: Fields, normalised: bool, cut: Option<u64>) -> Self {
        Self { line, fields, normalised, cut }
    }

    /// Kind of event: `runner_on_ok`. Empty when the runner lost the event's file, or the line was cut before it.
    pub fn name(&self) -> Cow<'_, str> {
        self.text(self.fields.event).unwrap_or_default()
    }

    /// Usually shaped like a UUID, not always.
    pub fn uuid(&self) -> Cow<'_, str> {
        self.text(self.fields.uuid).unwrap_or_default()
    }

    /// Uuid of the task, play or playbook it belongs to; that one need not exist.
    pub fn parent_uuid(&self) -> Option<Cow<'_, str>> {
        self.text(self.fields.parent_uuid)
    }

    /// The runner's own count, from 1.
    pub fn counter(&self) -> Option<i64> {
        self.integer(self.fields.counter)
    }

    /// First line of its standard output, as the runner counts them, from 0.
    pub fn start_line(&self) -> Option<i64> {
        self.integer(self.fields.start_line)
    }

    /// Line after its last one.
    pub fn end_line(&self) -> Option<i64> {
        self.integer(self.fields.end_line)
    }

    /// Lines its output takes: what the runner says, as long as that can be, and otherwise what the text has.
    ///
    /// The runner strips the last line ends of an event but counts them; two stand behind a recap.
    pub fn lines(&self) -> i64 {
        let stdout = self.stdout_json();
        let within = line_feeds(&stdout);
        match (self.start_line(), self.end_line()) {
            (Some(start), Some(end))
                if (within..=within + STRIPPED_MAX).contains(&end.saturating_sub(start)) =>
            {
                end - start
            }
            _ => within + i64::from(stdout.len() > 2),
        }
    }

    /// Verbosity of the run, 0 where not said.
    pub fn verbosity(&self) -> i64 {
        self.integer(self.fields.verbosity).unwrap_or(0)
    }

    /// When the callback made it, in microseconds since 1970 UTC.
    pub fn created(&self) -> Option<i64> {
        let text = self.text(self.fields.created)?;
        microseconds(text.as_bytes())
            .or_else(|| text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond))
    }

    /// Standard output as a JSON string, quotes included; `""` where there is none.
    pub fn stdout_json(&self) -> Bytes {
        match self.fields.stdout.of(&self.line) {
            Some(text) if text.starts_with(b"\"") => self.line.slice_ref(text),
            _ => Bytes::from_static(b"\"\""),
        }
    }

    /// `event_data` as JSON; `{}` where there is none.
    pub fn event_data_json(&self) -> Bytes {
        self.fields
            .event_data
            .of(&self.line)
            .map_or(Bytes::from_static(b"{}"), |data| self.line.slice_ref(data))
    }

    /// Host of a runner event.
    pub fn host(&self) -> Option<Cow<'_, str>> {
        self.text(self.fields.host)
    }

    /// Name of the task.
    pub fn task(&self) -> Option<Cow<'_, str>> {
        self.text(self.fields.task)
    }

    /// Name of the play.
    pub fn play(&self) -> Option<Cow<'_, str>> {
        self.text(self.fields.play)
    }

    /// Name of the role.
    pub fn role(&self) -> Option<Cow<'_, str>> {
        self.text(self.fields.role)
    }

    /// File name of the playbook.
    pub fn playbook(&self) -> Option<Cow<'_, str>> {
        self.text(self.fields.playbook)
    }

    /// Whether the task said `ignore_errors`.
    pub fn ignore_errors(&self) -> bool {
        self.fields.ignore_errors.of(&self.line) == Some(b"true")
    }

    /// Whether it reports a failure, by AWX's rule: a failed result unless ignored, or statistics with failures.
    pub fn failed(&self) -> bool {
        match &*self.name() {
            "runner_on_failed"
            | "runner_on_error"
            | "runner_on_unreachable"
            | "runner_on_async_failed"
            | "runner_item_on_failed" => !self.ignore_errors(),
            "playbook_on_stats" => self.any_count(self.fields.failures) || self.any_count(self.fields.dark),
            _ => false,
        }
    }

    /// Whether it reports a change, by AWX's rule.
    pub fn changed(&self) -> bool {
        self.fields.res_changed.of(&self.line) == Some(b"true")
            || (&*self.name() == "playbook_on_stats" && self.any_count(self.fields.changed))
    }

    /// Whether anything other than the line's own form calls it an event: a counter or a uuid.
    pub(super) fn is_one(&self) -> bool {
        self.fields.counter.is_present() || self.fields.uuid.is_present()
    }

    pub(super) fn is_keepalive(&self) -> bool {
        self.fields.event.of(&self.line) == Some(b"\"keepalive\"")
    }

    /// Whether a `{host: n}` has an `n` other than 0.
    fn any_count(&self, counts: Span) -> bool {
        let counts = counts.of(&self.line).unwrap_or_default();
        serde_json::from_slice::<std::collections::BTreeMap<Cow<'_, str>, f64>>(counts)
            .is_ok_and(|counts| counts.values().any(|&count| count != 0.0))
    }

    fn text(&self, span: Span) -> Option<Cow<'_, str>> {
        let value = span.of(&self.line)?;
        let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        if memchr::memchr(b'\\', inner).is_none() {
            return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
        }
        let mut reader = serde_json::Deserializer::from_slice(value);
        String::deserialize(&mut reader).ok().map(Cow::Owned)
    }

    fn integer(&self, span: Span) -> Option<i64> {
        std::str::from_utf8(span.of(&self.line)?).ok()?.parse().ok()
    }
}

/// Line feeds in a JSON string, written as `\n`.
fn line_feeds(json: &[u8]) -> i64 {
    let (mut count, mut rest) = (0, json);
    while let Some(at) = memchr::memchr(b'\\', rest) {
        count += i64::from(rest.get(at + 1) == Some(&b'n'));
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    count
}

/// Reads `2026-11-20T16:10:15.393209+00:00`, the form Python writes, without a general parser.
fn microseconds(text: &[u8]) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| {
        text.get(range)?
            .iter()
            .try_fold(0i64, |sum, &b| b.is_ascii_digit().then(|| sum * 10 + i64::from(b - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.')];
    if text.get(26..) != Some(b"+00:00") || marks.iter().any(|&(at, mark)| text[at] != mark) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if year == 0
        || !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    // Days since 1970-01-01 in the proleptic Gregorian calendar, years beginning in March.
    let shifted = if month > 2 { year } else { year - 1 };
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + number(20..26)?)
}

#[cfg(test)]
mod tests {
    use super::super::scan::scan;
    use super::*;
    use proptest::prelude::*;

    fn event(line: &str) -> Event {
        let fields = scan(line.as_bytes()).expect("strict JSON");
        Event::new(Bytes::copy_from_slice(line.as_bytes()), fields, false, None)
    }

    #[test]
    fn failures_follow_awx() {
        let of = |name: &str, rest: &str| {
            let event = event(&format!(r#"{{"event": "{name}", "event_data": {{{rest}}}}}"#));
            (event.failed(), event.changed())
        };
        assert_eq!(of("runner_on_failed", ""), (true, false));
        assert_eq!(of("runner_on_failed", r#""ignore_errors": true"#), (false, false));
        assert_eq!(of("runner_on_failed", r#""ignore_errors": null"#), (true, false));
        assert_eq!(of("runner_on_unreachable", ""), (true, false));
        assert_eq!(of("runner_on_ok", r#""res": {"changed": true}"#), (false, true));
        assert_eq!(of("runner_on_ok", r#""changed": true"#), (false, false));
        assert_eq!(of("playbook_on_stats", r#""failures": {"a": 1}, "changed": {"b": 2}"#), (true, true));
        assert_eq!(
            of("playbook_on_stats", r#""failures": {"a": 0}, "dark": {}, "changed": []"#),
            (false, false)
        );
    }

    #[test]
    fn fields_of_the_wrong_type_are_absent() {
        let event = event(
            r#"{"event": 7, "uuid": null, "counter": "x", "stdout": null, "created": "yesterday", "start_line": 1e3}"#,
        );
        assert_eq!((&*event.name(), &*event.uuid(), event.counter()), ("", "", None));
        assert_eq!((event.stdout_json(), event.event_data_json()), (Bytes::from("\"\""), Bytes::from("{}")));
        assert_eq!((event.created(), event.start_line()), (None, None));
    }

    #[test]
    fn lines_are_the_runners_where_they_can_be() {
        let of = |stdout: &str, start: &str, end: &str| {
            event(&format!(r#"{{"stdout": {stdout}, "start_line": {start}, "end_line": {end}}}"#)).lines()
        };
        assert_eq!(of(r#""""#, "3", "3"), 0);
        assert_eq!(of(r#""a\r\nb""#, "3", "5"), 2);
        assert_eq!(of(r#""RECAP\r\nb""#, "3", "6"), 3);
        assert_eq!(of(r#""Enter: ""#, "3", "3"), 0);
        assert_eq!(of(r#""a\\nb""#, "3", "4"), 1, "an escaped backslash is none");
        assert_eq!(of(r#""a\nb""#, "3", "1000000000000"), 2);
        assert_eq!(of(r#""a\nb""#, "3", "3"), 2);
        assert_eq!(of(r#""a""#, "null", "-9223372036854775808"), 1);
    }

    #[test]
    fn other_forms_of_time_are_read_too() {
        let of = |text: &str| event(&format!(r#"{{"created": "{text}"}}"#)).created();
        assert_eq!(of("1970-01-01T00:00:01.000002+00:00"), Some(1_000_002));
        assert_eq!(of("1970-01-01T00:00:01Z"), Some(1_000_000));
        assert_eq!(of("1970-01-01T01:00:01+01:00"), Some(1_000_000));
        assert_eq!(of("1970-13-01T00:00:01.000002+00:00"), None);
    }

    proptest! {
        #[test]
        fn times_are_those_of_the_calendar(micros in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let time = jiff::Timestamp::from_microsecond(micros).unwrap();
            let text = time.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string();
            prop_assert_eq!(microseconds(text.as_bytes()), Some(micros));
        }
    }
}

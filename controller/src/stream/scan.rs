//! One pass over a line: is it strict JSON, and where do the few fields lie that the store indexes?
//!
//! The scanner checks the whole grammar, because slices of the line are later sent to clients as they are. It builds
//! nothing: a field is a [`Span`] of the line. Whatever strict JSON does not have (bare `NaN`, lone surrogates, NUL,
//! numbers beyond a double, control characters, deep nesting, bytes that are not UTF-8) is [`Irregular`]; the line is
//! then rewritten by [`super::normalise`] and scanned again.

/// Deepest nesting taken as it is. Parsers of clients and our own stop at 128, and the API wraps a few levels around.
pub(super) const DEPTH_MAX: u32 = 100;

/// Where a value lies in its line, quotes included. No value starts at byte 0 of an object, so an empty span is absence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The value's bytes in `line`; `None` when the field is absent.
    #[inline]
    pub(super) fn of(self, line: &[u8]) -> Option<&[u8]> {
        if self.end == 0 { None } else { line.get(self.start as usize..self.end as usize) }
    }

    /// Whether the field was there at all.
    #[inline]
    pub(super) fn is_present(self) -> bool {
        self.end != 0
    }
}

/// Values of a line. Of keys given twice the last one counts, as in Python.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) status: Span,
    pub(super) zipfile: Span,
    pub(super) eof: Span,
    pub(super) event: Span,
    pub(super) uuid: Span,
    pub(super) parent_uuid: Span,
    pub(super) counter: Span,
    pub(super) stdout: Span,
    pub(super) start_line: Span,
    pub(super) end_line: Span,
    pub(super) verbosity: Span,
    pub(super) created: Span,
    pub(super) event_data: Span,
    /// Members of `event_data`.
    pub(super) host: Span,
    pub(super) task: Span,
    pub(super) play: Span,
    pub(super) role: Span,
    pub(super) playbook: Span,
    pub(super) ignore_errors: Span,
    /// Of `playbook_on_stats`: `{host: n}`.
    pub(super) failures: Span,
    pub(super) dark: Span,
    pub(super) changed: Span,
    /// Member of `event_data.res`.
    pub(super) res_changed: Span,
}

/// Not strict JSON, or nothing this scanner vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Irregular;

/// Scans one line without its line feed.
///
/// # Errors
/// [`Irregular`] unless the whole line is one strict JSON object of UTF-8 with bounded nesting.
pub(super) fn scan(line: &[u8]) -> Result<Fields, Irregular> {
    if u32::try_from(line.len()).is_err() {
        return Err(Irregular);
    }
    check_bytes(line)?;
    let mut fields = Fields::default();
    let mut scanner = Scanner { bytes: line, at: 0 };
    scanner.line(&mut fields)?;
    scanner.blanks();
    if scanner.at == line.len() { Ok(fields) } else { Err(Irregular) }
}

/// No control characters, and UTF-8. Runner writes pure ASCII; this loop sees it 64 bytes at a time.
fn check_bytes(line: &[u8]) -> Result<(), Irregular> {
    let mut control = 0u8;
    let mut high = 0u8;
    for chunk in line.chunks(64) {
        for &byte in chunk {
            control |= u8::from(byte < 0x20);
            high |= byte;
        }
    }
    if control != 0 || (high >= 0x80 && std::str::from_utf8(line).is_err()) {
        return Err(Irregular);
    }
    Ok(())
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn line(&mut self, fields: &mut Fields) -> Result<(), Irregular> {
        self.object(|scanner, key| {
            let slot = match key {
                b"uuid" => &mut fields.uuid,
                b"counter" => &mut fields.counter,
                b"stdout" => &mut fields.stdout,
                b"start_line" => &mut fields.start_line,
                b"end_line" => &mut fields.end_line,
                b"event" => &mut fields.event,
                b"created" => &mut fields.created,
                b"parent_uuid" => &mut fields.parent_uuid,
                b"verbosity" => &mut fields.verbosity,
                b"status" => &mut fields.status,
                b"zipfile" => &mut fields.zipfile,
                b"eof" => &mut fields.eof,
                b"event_data" => {
                    let start = scanner.at;
                    if scanner.peek() == b'{' {
                        scanner.event_data(fields)?;
                    } else {
                        scanner.value(1)?;
                    }
                    fields.event_data = scanner.since(start);
                    return Ok(());
                }
                _ => return scanner.value(1),
            };
            let start = scanner.at;
            scanner.value(1)?;
            *slot = scanner.since(start);
            Ok(())
        })
    }

    fn event_data(&mut self, fields: &mut Fields) -> Result<(), Irregular> {
        self.object(|scanner, key| {
            let slot = match key {
                b"host" => &mut fields.host,
                b"task" => &mut fields.task,
                b"play" => &mut fields.play,
                b"role" => &mut fields.role,
                b"playbook" => &mut fields.playbook,
                b"ignore_errors" => &mut fields.ignore_errors,
                b"failures" => &mut fields.failures,
                b"dark" => &mut fields.dark,
                b"changed" => &mut fields.changed,
                b"res" if scanner.peek() == b'{' => {
                    return scanner.object(|scanner, key| {
                        let start = scanner.at;
                        scanner.value(3)?;
                        if key == b"changed" {
                            fields.res_changed = scanner.since(start);
                        }
                        Ok(())
                    });
                }
                _ => return scanner.value(2),
            };
            let start = scanner.at;
            scanner.value(2)?;
            *slot = scanner.since(start);
            Ok(())
        })
    }

    /// Walks an object. `member` is called with the raw key (escapes as they are) and must consume the value.
    #[inline]
    fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &'a [u8]) -> Result<(), Irregular>,
    ) -> Result<(), Irregular> {
        self.expect(b'{')?;
        self.blanks();
        if self.peek() == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            let start = self.at + 1;
            self.string()?;
            let key = &self.bytes[start..self.at - 1];
            self.blanks();
            self.expect(b':')?;
            self.blanks();
            member(self, key)?;
            self.blanks();
            match self.next() {
                b',' => self.blanks(),
                b'}' => return Ok(()),
                _ => return Err(Irregular),
            }
        }
    }

    /// Any value, at `depth` levels below the top.
    fn value(&mut self, depth: u32) -> Result<(), Irregular> {
        match self.peek() {
            b'"' => self.string(),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            b'{' | b'[' if depth >= DEPTH_MAX => Err(Irregular),
            b'{' => self.object(|scanner, _| scanner.value(depth + 1)),
            b'[' => self.array(depth),
            _ => Err(Irregular),
        }
    }

    fn array(&mut self, depth: u32) -> Result<(), Irregular> {
        self.expect(b'[')?;
        self.blanks();
        if self.peek() == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth + 1)?;
            self.blanks();
            match self.next() {
                b',' => self.blanks(),
                b']' => return Ok(()),
                _ => return Err(Irregular),
            }
        }
    }

    fn string(&mut self) -> Result<(), Irregular> {
        self.expect(b'"')?;
        loop {
            self.at = quote_or_backslash(self.bytes, self.at);
            match self.next() {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                _ => return Err(Irregular),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Irregular> {
        match self.next() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => match self.hex()? {
                0 | 0xdc00..=0xdfff => Err(Irregular),
                0xd800..=0xdbff => {
                    self.expect(b'\\')?;
                    self.expect(b'u')?;
                    if matches!(self.hex()?, 0xdc00..=0xdfff) { Ok(()) } else { Err(Irregular) }
                }
                _ => Ok(()),
            },
            _ => Err(Irregular),
        }
    }

    fn hex(&mut self) -> Result<u32, Irregular> {
        let digits = self.bytes.get(self.at..self.at + 4).ok_or(Irregular)?;
        let mut code = 0;
        for &digit in digits {
            code = code << 4 | char::from(digit).to_digit(16).ok_or(Irregular)?;
        }
        self.at += 4;
        Ok(code)
    }

    fn number(&mut self) -> Result<(), Irregular> {
        let start = self.at;
        if self.peek() == b'-' {
            self.at += 1;
        }
        match self.next() {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return Err(Irregular),
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.some_digits()?;
        }
        let mut may_overflow = self.at - start > 300;
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.some_digits()?;
            may_overflow = true;
        }
        if may_overflow && !is_finite(&self.bytes[start..self.at]) {
            return Err(Irregular);
        }
        Ok(())
    }

    fn some_digits(&mut self) -> Result<(), Irregular> {
        let start = self.at;
        self.digits();
        if self.at > start { Ok(()) } else { Err(Irregular) }
    }

    fn digits(&mut self) {
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Irregular> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            return Ok(());
        }
        Err(Irregular)
    }

    #[inline]
    fn blanks(&mut self) {
        while self.peek() == b' ' {
            self.at += 1;
        }
    }

    /// The byte at hand; 0 at the end, which no grammar rule wants.
    #[inline]
    fn peek(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    #[inline]
    fn next(&mut self) -> u8 {
        let byte = self.peek();
        self.at += usize::from(self.at < self.bytes.len());
        byte
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), Irregular> {
        if self.next() == byte { Ok(()) } else { Err(Irregular) }
    }

    #[inline]
    fn since(&self, start: usize) -> Span {
        // `scan` refuses lines whose positions do not fit.
        Span { start: start as u32, end: self.at as u32 }
    }
}

/// Whether the text of a number fits a double.
pub(super) fn is_finite(number: &[u8]) -> bool {
    std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok()).is_some_and(f64::is_finite)
}

/// Position of the next quote or backslash from `at` on, or the end. Most strings are short, so the first bytes are
/// searched eight at a time without a call; what is longer goes to vector code.
#[inline]
fn quote_or_backslash(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    for _ in 0..5 {
        let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) else {
            break;
        };
        let word = u64::from_le_bytes(*chunk);
        let hit = has_zero(word ^ (ONES * b'"' as u64)) | has_zero(word ^ (ONES * b'\\' as u64));
        if hit != 0 {
            return at + (hit.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    memchr::memchr2(b'"', b'\\', rest).map_or(bytes.len(), |found| at + found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(line: &str, pick: impl Fn(&Fields) -> Span) -> Option<&str> {
        let fields = scan(line.as_bytes()).expect("strict JSON");
        pick(&fields).of(line.as_bytes()).map(|bytes| std::str::from_utf8(bytes).unwrap())
    }

    #[test]
    fn fields_are_found_at_their_level_only() {
        let line = r#"{"x": {"uuid": 1, "host": 2}, "uuid": "u", "event_data": {"uuid": "v", "host": "h", "res": {"changed": true, "host": "no"}}, "host": "top"}"#;
        assert_eq!(text(line, |f| f.uuid), Some(r#""u""#));
        assert_eq!(text(line, |f| f.host), Some(r#""h""#));
        assert_eq!(text(line, |f| f.res_changed), Some("true"));
        assert_eq!(text(line, |f| f.changed), None);
        assert_eq!(text(line, |f| f.counter), None);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(text(r#"{"uuid": "a", "uuid": "b"}"#, |f| f.uuid), Some(r#""b""#));
    }

    #[test]
    fn strict_json_is_taken() {
        for line in [
            "{}",
            r#"{"a":[]}"#,
            r#"{"a": [1, -0, 0.5, 1e3, 1E-3, 123456789012345678901234567890, true, false, null, "é", {}]}"#,
            r#"{"a": "\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}"#,
            r#"{"": ""}   "#,
        ] {
            assert!(scan(line.as_bytes()).is_ok(), "{line}");
            assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_strict_json_lacks_is_irregular() {
        let deep = format!(r#"{{"a": {}{}}}"#, "[".repeat(200), "]".repeat(200));
        let long = format!(r#"{{"a": {}}}"#, "9".repeat(400));
        for line in [
            "",
            " ",
            "1",
            "[]",
            "\"a\"",
            "{",
            "}",
            "{]",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{a:1}"#,
            r#"{"a":1}x"#,
            r#"{"a": NaN}"#,
            r#"{"a": Infinity}"#,
            r#"{"a": -Infinity}"#,
            r#"{"a": 01}"#,
            r#"{"a": 1.}"#,
            r#"{"a": 1e}"#,
            r#"{"a": +1}"#,
            r#"{"a": 1e999}"#,
            r#"{"a": tru}"#,
            r#"{"a": "\ud800"}"#,
            r#"{"a": "\udc00\ud800"}"#,
            r#"{"a": "\u0000"}"#,
            r#"{"a": "\x41"}"#,
            r#"{"a": "\u12"}"#,
            r#"{"a": "}"#,
            "{\"a\": \"\u{1}\"}",
            &deep,
            &long,
        ] {
            assert_eq!(scan(line.as_bytes()), Err(Irregular), "{line}");
        }
        assert_eq!(scan(b"{\"a\": \"\xff\"}"), Err(Irregular));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_verdict_that_serde_shares(bytes in prop::collection::vec(
            prop_oneof![Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b':'), Just(b','),
                        Just(b'1'), Just(b'u'), Just(b' '), any::<u8>()], 0..80)) {
            if scan(&bytes).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&bytes).is_ok());
            }
        }

        #[test]
        fn quotes_are_found_wherever_they_stand(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..200) {
            let expected = bytes.iter().skip(at).position(|b| matches!(b, b'"' | b'\\')).map(|p| p + at);
            prop_assert_eq!(quote_or_backslash(&bytes, at.min(bytes.len())), expected.unwrap_or(bytes.len()));
        }
    }
}

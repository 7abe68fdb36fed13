//! Rewrites a line of Python's JSON, or the beginning of a line too long to keep, as strict JSON.
//!
//! Slow and rare: a line comes here only when [`super::scan`] refused it. What strict JSON cannot say becomes text:
//! `NaN`, `Infinity` and numbers beyond a double are quoted, lone surrogates, NUL and bytes that are not UTF-8 become
//! U+FFFD, control characters are escaped, and values nested too deep become a string that holds their JSON.

use super::scan::{DEPTH_MAX, is_finite};

/// How the line at hand ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// With its last byte: what is unfinished is no JSON.
    Whole,
    /// Anywhere, because the rest was not kept: what is open is closed.
    Cut,
}

/// Strict JSON of the object in `line`; `None` when it is none even by Python's rules.
///
/// The result is at most twice as long as the line, and some: a line that would swell further is none.
pub(super) fn normalise(line: &[u8], ending: Ending) -> Option<Vec<u8>> {
    let mut rewriter = Rewriter { bytes: line, at: 0, out: Vec::with_capacity(line.len() + 64), ending };
    rewriter.blanks();
    if rewriter.peek() != Some(b'{') {
        return None;
    }
    rewriter.value(0)?;
    rewriter.blanks();
    (rewriter.at == line.len()).then_some(rewriter.out)
}

struct Rewriter<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
    ending: Ending,
}

impl Rewriter<'_> {
    fn value(&mut self, depth: u32) -> Option<()> {
        if self.out.len() > 2 * self.bytes.len() + 4096 {
            return None;
        }
        match self.peek() {
            Some(b'{' | b'[') if depth >= DEPTH_MAX => self.too_deep(),
            Some(b'{') => self.container(b'}', depth),
            Some(b'[') => self.container(b']', depth),
            Some(b'"') => self.string(),
            Some(_) => self.word(),
            None => self.cut("null"),
        }
    }

    /// An object or an array, by its closing bracket.
    fn container(&mut self, close: u8, depth: u32) -> Option<()> {
        self.out.push(self.peek()?);
        self.at += 1;
        self.blanks();
        if self.peek() == Some(close) {
            self.at += 1;
            self.out.push(close);
            return Some(());
        }
        loop {
            let kept = self.out.len();
            if close == b'}' && !self.key()? {
                // Cut within a key: the member never was, nor the comma before it.
                self.out.truncate(kept - usize::from(self.out.get(kept - 1) == Some(&b',')));
                self.out.push(close);
                return Some(());
            }
            self.value(depth + 1)?;
            self.blanks();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    self.out.push(b',');
                    self.blanks();
                }
                Some(byte) if byte == close => {
                    self.at += 1;
                    self.out.push(close);
                    return Some(());
                }
                Some(_) => return None,
                None => return self.cut(if close == b'}' { "}" } else { "]" }),
            }
        }
    }

    /// A key and its colon; `false` when the line was cut before its end.
    fn key(&mut self) -> Option<bool> {
        match self.peek() {
            Some(b'"') => self.string()?,
            Some(_) => return None,
            None => return self.cut("").map(|()| false),
        }
        if self.at == self.bytes.len() && self.bytes.last() != Some(&b'"') {
            return Some(false);
        }
        self.out.push(b':');
        self.blanks();
        match self.peek() {
            Some(b':') => self.at += 1,
            Some(_) => return None,
            None => self.cut("")?,
        }
        self.blanks();
        Some(true)
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        self.out.push(b'"');
        loop {
            let start = self.at;
            while self.peek().is_some_and(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
                self.at += 1;
            }
            push_utf8(&mut self.out, &self.bytes[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    self.out.push(b'"');
                    return Some(());
                }
                Some(b'\\') => self.escape()?,
                Some(control) => {
                    self.at += 1;
                    push_control(&mut self.out, control);
                }
                None => return self.cut("\""),
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        match self.bytes.get(self.at + 1) {
            Some(b'u') => {}
            Some(byte @ (b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't')) => {
                self.out.extend_from_slice(&[b'\\', *byte]);
                self.at += 2;
                return Some(());
            }
            Some(_) => return None,
            None => return self.drop_rest(),
        }
        let Some(first) = self.hex(self.at + 2)? else { return self.drop_rest() };
        self.at += 6;
        let kept = match first {
            0 | 0xdc00..=0xdfff => None,
            0xd800..=0xdbff => {
                let next = self.bytes.get(self.at..).unwrap_or_default();
                let low = if next.starts_with(b"\\u") { self.hex(self.at + 2)? } else { None };
                low.filter(|low| matches!(low, 0xdc00..=0xdfff)).map(|_| {
                    self.at += 6;
                    12
                })
            }
            _ => Some(6),
        };
        match kept {
            Some(length) => self.out.extend_from_slice(&self.bytes[self.at - length..self.at]),
            None => self.out.extend_from_slice(b"\\ufffd"),
        }
        Some(())
    }

    /// Four hexadecimal digits at `at`; `Some(None)` when the line ends before.
    #[expect(
        clippy::option_option,
        reason = "no digits, no more line, digits: three answers of one question"
    )]
    fn hex(&self, at: usize) -> Option<Option<u32>> {
        let Some(digits) = self.bytes.get(at..at + 4) else { return Some(None) };
        let mut code = 0;
        for &digit in digits {
            code = code << 4 | char::from(digit).to_digit(16)?;
        }
        Some(Some(code))
    }

    /// A number or a bare word.
    fn word(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')) {
            self.at += 1;
        }
        let word = &self.bytes[start..self.at];
        match word {
            b"true" | b"false" | b"null" => self.out.extend_from_slice(word),
            b"NaN" | b"Infinity" | b"-Infinity" => self.quoted(start),
            _ if self.at == self.bytes.len() && self.ending == Ending::Cut => {
                self.out.extend_from_slice(b"null")
            }
            _ if !is_number(word) => return None,
            _ if is_finite(word) => self.out.extend_from_slice(word),
            _ => self.quoted(start),
        }
        Some(())
    }

    /// The bytes since `start`, as a string.
    fn quoted(&mut self, start: usize) {
        self.out.push(b'"');
        for &byte in &self.bytes[start..self.at] {
            match byte {
                b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', byte]),
                0x20..=0x7e => self.out.push(byte),
                // What is nested this deep is read by people only; exact bytes outside ASCII are not worth a decoder.
                _ => self.out.push(b'?'),
            }
        }
        self.out.push(b'"');
    }

    /// Skips a container without descending, and keeps it as text.
    fn too_deep(&mut self) -> Option<()> {
        let start = self.at;
        let (mut open, mut in_string) = (0u32, false);
        while let Some(byte) = self.peek() {
            self.at += 1;
            match byte {
                b'\\' if in_string => self.at = (self.at + 1).min(self.bytes.len()),
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => open = open.saturating_add(1),
                b'}' | b']' if !in_string => open -= 1,
                _ => {}
            }
            if open == 0 {
                self.quoted(start);
                return Some(());
            }
        }
        self.quoted(start);
        self.cut("")
    }

    fn drop_rest(&mut self) -> Option<()> {
        self.at = self.bytes.len();
        self.cut("")
    }

    /// At the end of the line within a value: closes it if the line was cut, refuses it if not.
    fn cut(&mut self, close: &str) -> Option<()> {
        if self.ending == Ending::Whole {
            return None;
        }
        self.out.extend_from_slice(close.as_bytes());
        Some(())
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// JSON's grammar of numbers.
fn is_number(word: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut rest = word.strip_prefix(b"-").unwrap_or(word);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return false;
    }
    rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = digits(fraction);
        if length == 0 {
            return false;
        }
        rest = &fraction[length..];
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let length = digits(exponent);
        return length > 0 && length == exponent.len();
    }
    rest.is_empty()
}

fn push_utf8(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

fn push_control(out: &mut Vec<u8>, control: u8) {
    match control {
        0 => out.extend_from_slice(b"\\ufffd"),
        b'\t' => out.extend_from_slice(b"\\t"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\n' => out.extend_from_slice(b"\\n"),
        other => {
            let digit = |half: u8| char::from_digit(half.into(), 16).map_or(b'0', |digit| digit as u8);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(other >> 4), digit(other & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::scan;
    use super::*;
    use proptest::prelude::*;

    fn check(line: &str, expected: &str) {
        let strict = normalise(line.as_bytes(), Ending::Whole).expect("an object by Python's rules");
        assert_eq!(String::from_utf8_lossy(&strict), expected);
        assert!(scan(&strict).is_ok());
    }

    #[test]
    fn what_python_writes_becomes_strict() {
        check(
            r#"{"a": NaN, "b": [-Infinity, Infinity, 1e999]}"#,
            r#"{"a":"NaN","b":["-Infinity","Infinity","1e999"]}"#,
        );
        check(
            r#"{"a": "\udcff \ud83d\ude00 \ud83d \u0000"}"#,
            r#"{"a":"\ufffd \ud83d\ude00 \ufffd \ufffd"}"#,
        );
        check("{\"a\": \"tab\there \u{1b}[0m\"}", r#"{"a":"tab\there \u001b[0m"}"#);
        check(r#"{"a": 123456789012345678901234567890}"#, r#"{"a":123456789012345678901234567890}"#);
        let (strict, bytes) = (r#"{"a":"\ufffd"}"#, b"{\"a\": \"\xff\"}");
        assert_eq!(normalise(bytes, Ending::Whole).unwrap(), strict.as_bytes());
    }

    #[test]
    fn deep_nesting_becomes_text() {
        let deep = format!(r#"{{"a": {}"x\"]"{}}}"#, "[".repeat(5000), "]".repeat(5000));
        let strict = normalise(deep.as_bytes(), Ending::Whole).unwrap();
        assert!(scan(&strict).is_ok());
        assert!(serde_json::from_slice::<serde_json::Value>(&strict).is_ok());
    }

    #[test]
    fn no_object_stays_none() {
        for line in [
            "",
            "text",
            "[1]",
            r#"{"a": 01}"#,
            r#"{"a": "\x"}"#,
            r#"{"a": 1"#,
            r#"{"a": 1} x"#,
            r#"{a: 1}"#,
            r#"{"a" 1}"#,
        ] {
            assert_eq!(normalise(line.as_bytes(), Ending::Whole), None, "{line}");
        }
    }

    #[test]
    fn a_cut_line_is_closed_wherever_it_was_cut() {
        let line = r#"{"uuid": "a\u00e9\ud83d\ude00", "n": [1, {"b": true, "c": -1.5e3}, "x\n"], "d": {}}"#;
        for end in 1..line.len() {
            let cut = normalise(&line.as_bytes()[..end], Ending::Cut).expect("closed");
            assert!(scan(&cut).is_ok(), "{end}: {}", String::from_utf8_lossy(&cut));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_strict_json_or_none(bytes in prop::collection::vec(
            prop_oneof![Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'), Just(b':'), Just(b','),
                        Just(b'1'), Just(b'u'), Just(b'd'), Just(b'8'), Just(b'0'), any::<u8>()], 0..80)) {
            let mut line = b"{\"a\":".to_vec();
            line.extend_from_slice(&bytes);
            for ending in [Ending::Whole, Ending::Cut] {
                if let Some(strict) = normalise(&line, ending) {
                    prop_assert!(scan(&strict).is_ok(), "{}", String::from_utf8_lossy(&strict));
                }
            }
        }
    }
}

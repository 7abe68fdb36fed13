//! Output of a job as it stands on a terminal: lines from events, colour codes left out where they are not wanted.

/// What an event printed, with the line ends it had: LF, one behind it for each line that was stripped.
pub(super) fn printed(stdout: &str, start_line: i64, end_line: i64) -> String {
    let mut text = stdout.replace("\r\n", "\n");
    let within = text.bytes().filter(|&byte| byte == b'\n').count();
    let stripped = usize::try_from(end_line.saturating_sub(start_line)).unwrap_or(0).saturating_sub(within);
    // More than there can be is a controller that is wrong.
    text.extend(std::iter::repeat_n('\n', stripped.min(1 << 20)));
    text
}

/// The text without colour codes. A sequence lies within an event.
pub(super) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        out.push_str(&rest[..at]);
        let sequence = &rest[at + 2..];
        match sequence.find(|c: char| ('@'..='~').contains(&c)) {
            Some(end) => rest = &sequence[end + 1..],
            None => rest = "",
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripped_line_ends_come_back() {
        assert_eq!(printed("a\r\nb", 3, 5), "a\nb\n");
        assert_eq!(printed("", 3, 3), "");
        assert_eq!(printed("\r\nPLAY", 0, 3), "\nPLAY\n\n");
        assert_eq!(printed("Password: ", 3, 3), "Password: ");
    }

    #[test]
    fn colours_are_left_out() {
        assert_eq!(plain("\x1b[0;32mok\x1b[0m: [a]"), "ok: [a]");
        assert_eq!(plain("no \x1b[31"), "no ");
    }
}

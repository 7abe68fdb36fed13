//! Colour codes of a terminal: left out of plain text, turned into marked text for browsers.
//!
//! Both take the text in pieces; a sequence may be cut anywhere.

/// Longest sequence that is waited for; what is longer is no sequence.
const MAX_SEQUENCE: usize = 64;

/// Takes sequences apart from text.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// A sequence that has begun.
    open: String,
}

enum Part<'t> {
    Text(&'t str),
    /// The parameters of a colour code.
    Colours(String),
}

impl Splitter {
    fn split<'t>(&mut self, mut text: &'t str, mut each: impl FnMut(Part<'t>)) {
        while !text.is_empty() {
            if self.open.is_empty() {
                let end = text.find('\x1b').unwrap_or(text.len());
                if end > 0 {
                    each(Part::Text(&text[..end]));
                }
                if end < text.len() {
                    self.open.push('\x1b');
                    text = &text[end + 1..];
                } else {
                    return;
                }
                continue;
            }
            let Some(next) = text.chars().next() else { return };
            text = &text[next.len_utf8()..];
            self.open.push(next);
            let over = match self.open.as_bytes().get(1) {
                // CSI: parameters up to a letter.
                Some(b'[') => self.open.len() > 2 && ('@'..='~').contains(&next),
                // OSC: text up to a bell or ST.
                Some(b']') => next == '\x07' || self.open.ends_with("\x1b\\"),
                _ => true,
            };
            if over {
                if let Some(parameters) =
                    self.open.strip_prefix("\x1b[").and_then(|rest| rest.strip_suffix('m'))
                {
                    each(Part::Colours(parameters.to_owned()));
                }
                self.open.clear();
            } else if self.open.len() > MAX_SEQUENCE {
                self.open.clear();
            }
        }
    }

    /// The text without sequences.
    pub(super) fn plain(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        self.split(text, |part| {
            if let Part::Text(text) = part {
                out.push_str(text);
            }
        });
        out
    }
}

/// Turns colour codes into `<span class="ansi31">`.
#[derive(Debug, Default)]
pub(super) struct Html {
    splitter: Splitter,
    /// Classes of the open span.
    classes: Vec<u8>,
}

impl Html {
    pub(super) fn html(&mut self, text: &str) -> String {
        let Self { splitter, classes } = self;
        let mut out = String::with_capacity(text.len() + text.len() / 8);
        splitter.split(text, |part| match part {
            Part::Text(text) => {
                if !classes.is_empty() {
                    let names: Vec<String> = classes.iter().map(|class| format!("ansi{class}")).collect();
                    out.push_str(&format!("<span class=\"{}\">", names.join(" ")));
                }
                for c in text.chars() {
                    match c {
                        '&' => out.push_str("&amp;"),
                        '<' => out.push_str("&lt;"),
                        '>' => out.push_str("&gt;"),
                        '"' => out.push_str("&quot;"),
                        c => out.push(c),
                    }
                }
                if !classes.is_empty() {
                    out.push_str("</span>");
                }
            }
            Part::Colours(parameters) => {
                for code in parameters.split(';').map(|code| code.parse::<u8>().unwrap_or(0)) {
                    match code {
                        0 => classes.clear(),
                        1 | 3 | 4 => classes.push(code),
                        30..=37 | 90..=97 => {
                            classes.retain(|class| *class < 30);
                            classes.push(code);
                        }
                        _ => {}
                    }
                }
                classes.dedup();
                classes.truncate(8);
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_vanish_wherever_they_are_cut() {
        let text = "\x1b[0;32mok: [a]\x1b[0m\r\nx\x1b]8;;http://x\x07link\x1b[Ky";
        for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            let mut splitter = Splitter::default();
            let plain = splitter.plain(&text[..cut]) + &splitter.plain(&text[cut..]);
            assert_eq!(plain, "ok: [a]\r\nxlinky", "{cut}");
        }
    }

    #[test]
    fn a_sequence_without_end_is_given_up() {
        let mut splitter = Splitter::default();
        let text = format!("\x1b[{}m", "1;".repeat(1000));
        assert!(splitter.plain(&text).ends_with('m'));
    }

    #[test]
    fn colours_become_classes_and_text_stays_text() {
        let mut html = Html::default();
        assert_eq!(
            html.html("\x1b[1;31m<b>&\x1b[0m\"plain\""),
            "<span class=\"ansi1 ansi31\">&lt;b&gt;&amp;</span>&quot;plain&quot;"
        );
    }
}

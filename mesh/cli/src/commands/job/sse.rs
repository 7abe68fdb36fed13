//! Server-sent events, from bytes in pieces.

use crate::failure::{Exit, Failure};

/// Longest message: an event holds at most 16 MiB of output, escaped and with its data.
const MESSAGE: usize = 256 << 20;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Message {
    pub(super) id: Option<i64>,
    pub(super) event: String,
    pub(super) data: String,
}

/// Reads messages from pieces that are cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Parser {
    bytes: Vec<u8>,
    /// Bytes in which no line feed is.
    looked: usize,
    message: Message,
    any: bool,
}

impl Parser {
    /// # Errors
    /// A message that is too long.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Failure> {
        if self.bytes.len() + piece.len() + self.message.data.len() > MESSAGE {
            return Err(Failure::new(Exit::Failed, "the controller sends a message that is too long"));
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole message.
    pub(super) fn next(&mut self) -> Option<Message> {
        let mut begin = 0;
        let mut found = None;
        while let Some(length) = self.bytes[self.looked..].iter().position(|&byte| byte == b'\n') {
            let end = self.looked + length;
            let line = String::from_utf8_lossy(&self.bytes[begin..end]).into_owned();
            begin = end + 1;
            self.looked = begin;
            if let Some(message) = self.line(line.trim_end_matches('\r')) {
                found = Some(message);
                break;
            }
        }
        self.bytes.drain(..begin);
        self.looked -= begin;
        if found.is_none() {
            self.looked = self.bytes.len();
        }
        found
    }

    fn line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            return std::mem::take(&mut self.any).then(|| std::mem::take(&mut self.message));
        }
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => self.message.id = value.parse().ok(),
            "event" => self.message.event = value.to_owned(),
            "data" => {
                if !self.message.data.is_empty() {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
            }
            _ => return None,
        }
        self.any = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_however_the_pieces_are_cut() {
        let text =
            ": hello\n\nid: 7\ndata: {\"a\":\u{20ac}}\n\nevent: end\r\ndata: 1\ndata: 2\n\nretry: 5\n\n";
        let message = |id, event: &str, data: &str| Message { id, event: event.into(), data: data.into() };
        let expected = [message(Some(7), "", "{\"a\":\u{20ac}}"), message(None, "end", "1\n2")];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut messages = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                parser.push(piece).unwrap();
                while let Some(message) = parser.next() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, expected, "pieces of {size}");
            assert!(parser.bytes.is_empty());
        }
    }
}

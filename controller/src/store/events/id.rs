//! Ids of events: the number the API gives them, and the bytes a uuid is stored as.

use std::fmt::Write;

/// Bits of the counter in an ordinary id.
const COUNTER_BITS: u32 = 28;
/// Bits of the counter in the id of an event beyond that.
const WIDE_COUNTER_BITS: u32 = 36;
/// Marks such an id.
const WIDE: i64 = 1 << 62;

/// The API's number of an event: job and counter in one, so that nothing has to be looked up or stored for it.
///
/// `job << 28 | counter`. An id stays below 2^53, the largest integer that every JSON reader keeps, up to job 33,554,431,
/// and is exact in Python and Rust far beyond. Events after number 268,435,455 of a job have wide ids,
/// `2^62 | job << 36 | counter`, for jobs below 67,108,864.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The job.
    pub job: i64,
    /// Its event, from 1.
    pub counter: i64,
}

impl EventId {
    /// Reads an id; `None` for a number that is none.
    pub fn parse(id: i64) -> Option<Self> {
        let bits = if id & WIDE == 0 { COUNTER_BITS } else { WIDE_COUNTER_BITS };
        let (job, counter) = ((id & !WIDE) >> bits, id & ((1 << bits) - 1));
        let parsed = Self { job, counter };
        (id > 0 && job > 0 && counter > 0 && parsed.number() == id).then_some(parsed)
    }

    /// The number. Unique over all events of all jobs, as long as jobs stay below 2^34.
    pub fn number(self) -> i64 {
        if self.counter < 1 << COUNTER_BITS {
            return self.job << COUNTER_BITS | self.counter;
        }
        WIDE | (self.job & ((1 << 26) - 1)) << WIDE_COUNTER_BITS
            | self.counter & ((1 << WIDE_COUNTER_BITS) - 1)
    }
}

/// A runner's uuid as it is stored: 16 bytes when it is written as a UUID is, and otherwise its text, marked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Uuid {
    Bytes([u8; 16]),
    /// A zero byte, then the text; another zero byte behind when that made 16 bytes.
    Text(Box<[u8]>),
}

impl Uuid {
    pub(super) fn from_text(text: &str) -> Self {
        if let Some(bytes) = hyphenated(text.as_bytes()) {
            return Self::Bytes(bytes);
        }
        let mut marked = Vec::with_capacity(text.len() + 2);
        marked.push(0);
        marked.extend_from_slice(text.as_bytes());
        if marked.len() == 16 {
            marked.push(0);
        }
        Self::Text(marked.into())
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Text(text) => text,
        }
    }

    /// The text of stored bytes.
    pub(super) fn text(stored: &[u8]) -> String {
        let Ok(bytes) = <[u8; 16]>::try_from(stored) else {
            let text = stored.strip_prefix(&[0]).unwrap_or(stored);
            return String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned();
        };
        let mut text = String::with_capacity(36);
        for (place, byte) in bytes.iter().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            write!(text, "{byte:02x}").expect("a string takes anything");
        }
        text
    }
}

/// Bytes of `166ef851-9b88-49a0-a25d-1d6f86a244d5`: 36 characters, lower case, so that the text can be had back.
fn hyphenated(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 {
        return None;
    }
    let mut bytes = [0; 16];
    let mut at = 0;
    for (place, byte) in bytes.iter_mut().enumerate() {
        if matches!(place, 4 | 6 | 8 | 10) {
            if text[at] != b'-' {
                return None;
            }
            at += 1;
        }
        *byte = nibble(text[at])? << 4 | nibble(text[at + 1])?;
        at += 2;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_are_read_as_they_were_written(job in 1i64..1 << 26, counter in prop_oneof![1i64..1 << 28, 1i64..1 << 36]) {
            let id = EventId { job, counter };
            prop_assert_eq!(EventId::parse(id.number()), Some(id));
        }

        #[test]
        fn any_number_is_an_id_or_none(number in any::<i64>()) {
            if let Some(id) = EventId::parse(number) {
                prop_assert_eq!(id.number(), number);
            }
        }

        #[test]
        fn uuids_come_back_as_they_were_written(text in prop_oneof![
            "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(_[0-9])?", "[0-9A-F-]{36}", "[ -~]{0,40}", "é{0,20}",
        ]) {
            let stored = Uuid::from_text(&text);
            prop_assert_eq!(Uuid::text(stored.as_bytes()), text);
        }
    }

    #[test]
    fn ordinary_ids_stay_where_json_is_exact() {
        let id = EventId { job: (1 << 25) - 1, counter: (1 << 28) - 1 };
        assert!(id.number() < 1 << 53);
        assert_eq!(EventId::parse(0), None);
        assert_eq!(EventId::parse(5), None, "no job");
        assert_eq!(EventId::parse(-1), None);
    }
}

//! What an artifacts zip says: the names in it, the text of `rc` and `status`, files of the fact cache, and `output.json`.
//!
//! The zip comes from a container that runs anybody's code, so nothing of it is believed: names that would leave a
//! directory are passed over, and directory, entries and members are bounded before memory is taken for them. Nothing
//! is unpacked here. The directory is read by hand, because a general reader reserves memory for as many entries as a
//! zip claims to have; members are inflated by the `zip` crate.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

/// Longest directory that is read; about 100,000 entries.
const DIRECTORY_MAX: u64 = 8 * 1024 * 1024;
/// Longest `rc` or `status` that is read.
const WORD_MAX: u64 = 64 * 1024;
/// Longest facts of one host. A large machine has some 100 KiB.
const FACTS_MAX: u64 = 4 * 1024 * 1024;
/// Most bytes of facts of all hosts, in both forms.
const ALL_FACTS_MAX: u64 = 256 * 1024 * 1024;
/// Longest `output.json`: an inventory of 50,000 hosts with their variables.
const OUTPUT_MAX: u64 = 64 * 1024 * 1024;
/// Longest name that is kept.
const NAME_MAX: usize = 1024;
/// The end record with the longest comment it may have, and a zip64 locator before it.
const TAIL_MAX: u64 = 20 + 22 + 65_535;

/// Bytes that are no zip, or one beyond the limits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The staged bytes cannot be read.
    #[error("cannot read the artifacts zip")]
    Read(#[from] io::Error),
    /// No end record, or one that points nowhere.
    #[error("artifacts are no zip: {0}")]
    Invalid(&'static str),
    /// More names than anybody needs.
    #[error("directory of the artifacts zip has {0} bytes, more than 8 MiB")]
    Directory(u64),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Artifacts {
    /// Names in order of the alphabet; directories end in `/`.
    pub names: Vec<String>,
    /// Text of `rc`: decimal digits, or `None` when the playbook died from a signal.
    pub rc: Option<String>,
    /// Text of `status`.
    pub status: Option<String>,
    /// Entries passed over because of their names.
    pub ignored: usize,
    /// Files of the fact cache, by name; without those too long to be facts.
    pub facts: BTreeMap<String, Vec<u8>>,
    /// `output.json`: what `ansible-inventory` made of a source.
    pub output: Option<Vec<u8>>,
}

impl Artifacts {
    /// Reads a zip.
    ///
    /// # Errors
    /// Bytes that are no zip, or whose directory is beyond 8 MiB.
    pub fn read(mut zip: impl Read + Seek) -> Result<Self, Error> {
        let mut found = Self::default();
        let (mut rc, mut status, mut output) = (None, None, None);
        let mut facts = BTreeMap::new();
        for (name, offset) in directory(&mut zip)? {
            match name {
                Some(name) => {
                    match name.as_str() {
                        "rc" => rc = Some(offset),
                        "status" => status = Some(offset),
                        "output.json" => output = Some(offset),
                        name => {
                            if let Some(file) = name.strip_prefix("fact_cache/").filter(|file| is_file(file))
                            {
                                facts.insert(file.to_owned(), offset);
                            }
                        }
                    }
                    found.names.push(name);
                }
                None => found.ignored += 1,
            }
        }
        found.names.sort_unstable();
        found.names.dedup();
        found.rc = rc.and_then(|offset| word(&mut zip, offset));
        found.status = status.and_then(|offset| word(&mut zip, offset));
        let whole = |zip: &mut _, offset, max| {
            member(zip, offset, max + 1).filter(|content| content.len() as u64 <= max)
        };
        found.output = output.and_then(|offset| whole(&mut zip, offset, OUTPUT_MAX));
        let mut left = ALL_FACTS_MAX;
        for (file, offset) in facts {
            // A file that is not read counts as one that did not come, which would mean that its facts were cleared.
            let Some(content) = whole(&mut zip, offset, FACTS_MAX.min(left)) else {
                found.facts.clear();
                break;
            };
            left -= content.len() as u64;
            found.facts.insert(file, content);
        }
        Ok(found)
    }
}

/// Names (`None` for unsafe ones) and places of local headers, in the order of the directory.
fn directory(zip: &mut (impl Read + Seek)) -> Result<Vec<(Option<String>, u64)>, Error> {
    let (start, length) = directory_place(zip)?;
    if length > DIRECTORY_MAX {
        return Err(Error::Directory(length));
    }
    zip.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    zip.by_ref().take(length).read_to_end(&mut bytes)?;
    let mut rest = &bytes[..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let header: &[u8; 46] = rest.first_chunk().ok_or(Error::Invalid("directory breaks off"))?;
        if !header.starts_with(b"PK\x01\x02") {
            return Err(Error::Invalid("directory holds something else"));
        }
        let (name, extra, comment) = (u16_at(header, 28), u16_at(header, 30), u16_at(header, 32));
        let end_of_extra = 46 + name + extra;
        let entry = rest.get(..end_of_extra + comment).ok_or(Error::Invalid("directory breaks off"))?;
        let mut offset = u64::from(u32_at(entry, 42));
        if offset == u64::from(u32::MAX) {
            let sizes = [20, 24].iter().filter(|&&at| u32_at(entry, at) == u32::MAX).count();
            offset = zip64_offset(&entry[46 + name..end_of_extra], sizes).unwrap_or(offset);
        }
        let name = std::str::from_utf8(&entry[46..46 + name]).ok().filter(|name| is_safe(name));
        entries.push((name.map(str::to_owned), offset));
        rest = &rest[entry.len()..];
    }
    Ok(entries)
}

/// Start and length of the directory, from the end record.
fn directory_place(zip: &mut (impl Read + Seek)) -> Result<(u64, u64), Error> {
    let length = zip.seek(SeekFrom::End(0))?;
    zip.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX)))?;
    let mut tail = Vec::new();
    zip.by_ref().take(TAIL_MAX).read_to_end(&mut tail)?;
    let at = memchr::memmem::rfind(&tail, b"PK\x05\x06").ok_or(Error::Invalid("no end record"))?;
    let end: &[u8; 22] = tail[at..].first_chunk().ok_or(Error::Invalid("end record breaks off"))?;
    let (size, start) = (u32_at(end, 12), u32_at(end, 16));
    if size != u32::MAX && start != u32::MAX {
        return Ok((start.into(), size.into()));
    }
    let locator = at.checked_sub(20).map(|locator| &tail[locator..at]);
    let locator =
        locator.filter(|text| text.starts_with(b"PK\x06\x07")).ok_or(Error::Invalid("no zip64 locator"))?;
    zip.seek(SeekFrom::Start(u64_at(locator, 8)))?;
    let mut end = [0; 56];
    zip.read_exact(&mut end)?;
    if !end.starts_with(b"PK\x06\x06") {
        return Err(Error::Invalid("no zip64 end record"));
    }
    Ok((u64_at(&end, 48), u64_at(&end, 40)))
}

/// The place of a local header in a zip64 extra field, behind as many sizes as did not fit either.
fn zip64_offset(mut extra: &[u8], sizes: usize) -> Option<u64> {
    while let Some(header) = extra.first_chunk::<4>() {
        let field = extra.get(4..4 + u16_at(header, 2))?;
        if u16_at(header, 0) == 1 {
            return field.get(8 * sizes..)?.first_chunk().copied().map(u64::from_le_bytes);
        }
        extra = &extra[4 + field.len()..];
    }
    None
}

/// Text of a small member, trimmed; `None` when it cannot be read.
fn word(zip: &mut (impl Read + Seek), offset: u64) -> Option<String> {
    let text = member(zip, offset, WORD_MAX)?;
    Some(String::from_utf8_lossy(&text).trim().to_owned())
}

/// The first `max` bytes of a member; `None` when it cannot be read.
fn member(zip: &mut (impl Read + Seek), offset: u64, max: u64) -> Option<Vec<u8>> {
    zip.seek(SeekFrom::Start(offset)).ok()?;
    // What does not shrink may be a little longer packed, and its header comes before it.
    let mut bounded = zip.by_ref().take(max + max / 8 + WORD_MAX);
    let member = zip::read::read_zipfile_from_stream(&mut bounded).ok()??;
    let mut content = Vec::new();
    member.take(max).read_to_end(&mut content).ok()?;
    Some(content)
}

/// Whether a safe name is that of a file right here.
fn is_file(name: &str) -> bool {
    !name.is_empty() && !name.contains('/')
}

/// Whether a name stays below a directory on every system.
fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && !name.contains(|c: char| c.is_control() || c == '\\')
        // A drive, or a stream of a file; but IPv6 addresses are names of hosts.
        && (!name.contains(':') || name.starts_with("fact_cache/"))
        && name.strip_suffix('/').unwrap_or(name).split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    bytes[at..].first_chunk().map_or(0, |two| u16::from_le_bytes(*two).into())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_le_bytes(*four))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Cursor, Write};
    use zip::write::SimpleFileOptions;

    fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in members {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn rc_status_and_names_are_read() {
        let zip = zip_of(&[("status", b"successful"), ("rc", b"0\n"), ("fact_cache/s1_web1", b"{}")]);
        let found = Artifacts::read(Cursor::new(zip)).unwrap();
        assert_eq!((found.rc.as_deref(), found.status.as_deref()), (Some("0"), Some("successful")));
        assert_eq!(found.names, ["fact_cache/s1_web1", "rc", "status"]);
    }

    #[test]
    fn facts_and_output_come_whole_or_not_at_all() {
        let large = vec![b' '; FACTS_MAX as usize];
        let members: [(&str, &[u8]); 6] = [
            ("fact_cache/", b""),
            ("fact_cache/s1_::1", b"{}"),
            ("fact_cache/deep/er", b"{}"),
            ("fact_cache/../x", b"{}"),
            ("fact_cache/large", &large),
            ("output.json", b"{\"all\": {}}"),
        ];
        let found = Artifacts::read(Cursor::new(zip_of(&members))).unwrap();
        assert_eq!(found.facts.keys().collect::<Vec<_>>(), ["large", "s1_::1"]);
        assert_eq!((found.facts["large"].len(), found.ignored), (large.len(), 1));
        assert_eq!(found.output.as_deref(), Some(&b"{\"all\": {}}"[..]));
        let longer = [&large[..], b" "].concat();
        let members: [(&str, &[u8]); 2] = [("fact_cache/a", b"{}"), ("fact_cache/b", &longer)];
        assert_eq!(Artifacts::read(Cursor::new(zip_of(&members))).unwrap().facts, BTreeMap::new());
    }

    #[test]
    fn hostile_names_are_passed_over() {
        for name in ["../x", "/etc/x", "a/../b", "a//b", "a\\b", "c:x", "./a", "\u{1}", &"x".repeat(2000)] {
            let found = Artifacts::read(Cursor::new(zip_of(&[(name, b""), ("rc", b"2")]))).unwrap();
            assert_eq!((found.names, found.ignored), (vec!["rc".to_owned()], 1), "{name}");
        }
    }

    #[test]
    fn a_swelling_member_is_cut() {
        let found = Artifacts::read(Cursor::new(zip_of(&[("rc", &vec![b'1'; 1 << 22])]))).unwrap();
        assert_eq!(found.rc.map(|text| text.len() as u64), Some(WORD_MAX));
    }

    #[test]
    fn a_directory_beyond_the_limit_is_refused() {
        let long = "n".repeat(60_000);
        let names: Vec<String> = (0..200).map(|number| format!("{long}{number}")).collect();
        let members: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
        assert!(Artifacts::read(Cursor::new(zip_of(&members))).is_err());
    }

    #[test]
    fn damage_is_an_error() {
        let zip = zip_of(&[("rc", b"0")]);
        for end in 0..zip.len() {
            assert!(Artifacts::read(Cursor::new(&zip[..end])).is_err());
        }
        for at in 0..zip.len() {
            let mut flipped = zip.clone();
            flipped[at] ^= 0x55;
            let _ = Artifacts::read(Cursor::new(flipped));
        }
    }
}

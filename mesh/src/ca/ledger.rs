//! The ledger of addresses: one line each, `00100001 execution node-1`, appended and synced before the
//! certificate exists. So a crash may waste an address, but none is ever given twice.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use plexus_proto::id::{Address, ClusterId, NodeId, Role};

use super::{Error, write_error};
use crate::identity::extension::Scope;

const FILE: &str = "addresses";
/// Beside a root: one line for each range given after the first, `00200000 002fffff edge`.
const RANGES: &str = "ranges";
/// Highest address there is room for below.
const LAST_RANGE: u32 = 0xffff_ffff;

/// The next range that nobody has; written down and synced before the intermediate exists.
pub(super) fn next_range(
    dir: &Path,
    first: (Address, Address),
    cluster: &ClusterId,
) -> Result<(Address, Address), Error> {
    let path = dir.join(RANGES);
    let failed = |source: io::Error| write_error(&path, source);
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    let size = first.1.0 - first.0.0 + 1;
    let mut highest = first.1.0;
    for (index, line) in text.lines().enumerate() {
        let wrong = || Error::Ledger { path: path.clone(), line: index + 1 };
        let last: Address = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
        highest = highest.max(last.0);
    }
    if highest > LAST_RANGE - size {
        return Err(Error::Exhausted { first: first.0, last: Address(LAST_RANGE) });
    }
    let range = (Address(highest + 1), Address(highest + size));
    file.write_all(format!("{} {} {cluster}\n", range.0, range.1).as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    super::sync_dir(dir)?;
    Ok(range)
}

/// The address of `node`: the one it has, or the next one of the range.
pub(super) fn assign(dir: &Path, scope: &Scope, role: Role, node: &NodeId) -> Result<Address, Error> {
    let path = dir.join(FILE);
    let failed = |source: io::Error| write_error(&path, source);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    // Two commands at once take turns; the lock goes with the file.
    file.lock().map_err(failed)?;
    let enrolled = read(&mut file, &path)?;
    if let Some(&(address, enrolled)) = enrolled.get(node) {
        if enrolled != role {
            return Err(Error::OtherRole { node: node.clone(), enrolled, wanted: role });
        }
        return Ok(address);
    }
    let highest = enrolled.values().map(|&(address, _)| address).max();
    let address = highest.map_or(scope.first, |highest| Address(highest.0.saturating_add(1)));
    if !scope.holds(address) {
        return Err(Error::Exhausted { first: scope.first, last: scope.last });
    }
    let append = |mut file: File| {
        file.write_all(format!("{address} {role} {node}\n").as_bytes())?;
        file.sync_all()
    };
    append(file).map_err(failed)?;
    super::sync_dir(dir)?;
    Ok(address)
}

/// Every line; leaves `file` positioned after the last whole one, with nothing behind it.
fn read(file: &mut File, path: &Path) -> Result<BTreeMap<NodeId, (Address, Role)>, Error> {
    let failed = |source: io::Error| write_error(path, source);
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    // A line without its end was cut by a crash: its address never left this function.
    let whole = text.rfind('\n').map_or(0, |at| at + 1);
    file.set_len(whole as u64).map_err(failed)?;
    file.seek(SeekFrom::Start(whole as u64)).map_err(failed)?;
    let mut enrolled = BTreeMap::new();
    for (index, line) in text[..whole].lines().enumerate() {
        let entry = parse(line).ok_or(Error::Ledger { path: path.to_owned(), line: index + 1 })?;
        enrolled.insert(entry.0, entry.1);
    }
    Ok(enrolled)
}

fn parse(line: &str) -> Option<(NodeId, (Address, Role))> {
    let mut words = line.split(' ');
    let (address, role, node) = (words.next()?, words.next()?, words.next()?);
    let end = words.next().is_none();
    let entry = (node.parse().ok()?, (address.parse().ok()?, role.parse().ok()?));
    end.then_some(entry)
}

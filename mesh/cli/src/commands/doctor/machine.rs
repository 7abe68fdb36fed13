//! The checks, each of one thing on this machine.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use plexus_mesh::Credentials;
use plexus_mesh::status::Status;

use super::{Finding, Setup};
use crate::failure::causes;
use crate::output::span;

/// Less is too little to spool the output of one busy job.
const DISK_LEAST: u64 = 1 << 30;
/// Less may be filled within hours.
const DISK_GOOD: u64 = 10 << 30;
/// `f_type` of tmpfs, and of ramfs, by statfs(2).
const TMPFS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The daemon's own check of its file.
pub(super) fn configuration(setup: &Setup) -> Finding {
    let program = if setup.controller { "plexus-controller" } else { "plexus-node" };
    // Beside us, as packages and builds have it; else where the shell finds it.
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| program.into());
    let file = setup.file.display();
    match Command::new(&program).arg("check-config").arg(&setup.file).output() {
        Ok(checked) if checked.status.success() => Finding::ok("configuration", format!("{file} is fine")),
        Ok(checked) => {
            let said = String::from_utf8_lossy(&checked.stderr);
            Finding::failed(
                "configuration",
                said.trim().to_owned(),
                "mend the file; the message names the place",
            )
        }
        Err(error) => Finding::warning(
            "configuration",
            format!("{} cannot be asked: {error}", program.display()),
            "install it on this machine",
        ),
    }
}

pub(super) fn certificate(dir: &Path) -> Finding {
    let credentials = match Credentials::load(dir) {
        Ok(credentials) => credentials,
        Err(error) => {
            let advice = "join the mesh with plexus-node join TOKEN, or issue one: plexus ca issue; the daemon's user must be able to read it";
            return Finding::failed("certificate", causes(&error), advice);
        }
    };
    let (identity, expires) = (credentials.identity(), credentials.expires());
    let left = expires.duration_since(Timestamp::now());
    let whose = format!("{} as {}", identity.node, identity.role);
    if left.is_negative() {
        let advice =
            "start the daemon where it reaches a controller, so that it renews; else plexus ca issue";
        return Finding::failed("certificate", format!("of {whose}, ended at {expires}"), advice);
    }
    if let Ok(key) = std::fs::metadata(dir.join("node.key"))
        && key.mode() & 0o077 != 0
    {
        let path = dir.join("node.key").display().to_string();
        return Finding::failed(
            "certificate",
            format!("others may read {path}"),
            format!("chmod 600 {path}"),
        );
    }
    Finding::ok("certificate", format!("of {whose}, {} left", span(left)))
}

/// Whether the clock is kept right: what neighbours say, else whether somebody keeps it.
pub(super) fn clock(status: Option<&Status>) -> Finding {
    let advice = "timedatectl set-ntp true, or install chrony";
    let skews = status.into_iter().flat_map(|status| &status.links);
    let skews: Vec<_> = skews.filter_map(|link| Some((&link.peer, link.more.clock_skew_ms?))).collect();
    if let Some((peer, skew)) = skews.iter().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())) {
        let text = format!("{:.1} s off the clock of {peer}", skew.abs() / 1e3);
        return if skew.abs() > 5000.0 {
            Finding::failed("clock", text, advice)
        } else {
            Finding::ok("clock", text)
        };
    }
    // systemd-timesyncd leaves this mark; chrony and ntpd are known by their socket and drift file.
    let marks = ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.sock", "/var/lib/ntp/ntp.drift"];
    match marks.iter().find(|mark| Path::new(mark).exists()) {
        Some(mark) => Finding::ok("clock", format!("is kept ({mark})")),
        None => Finding::warning("clock", "nobody seems to keep it, and no neighbour compares", advice),
    }
}

/// Whether the daemon listens where it should, or could.
pub(super) fn ports(listen: &[String], status: Option<&Status>) -> Vec<Finding> {
    if listen.is_empty() {
        return vec![Finding::skipped("port", "listens nowhere, only dials")];
    }
    let check = |text: &String| {
        let Ok(address) = text.parse::<SocketAddr>() else {
            return Finding::failed("port", format!("{text} is no address"), "write it as [::]:7323");
        };
        if status.is_some_and(|status| status.listen.contains(&address)) {
            return Finding::ok("port", format!("{address} is open; UDP and TCP must pass the firewall"));
        }
        let bound = UdpSocket::bind(address).map(drop).and_then(|()| TcpListener::bind(address).map(drop));
        match bound {
            Ok(()) => Finding::ok("port", format!("{address} is free")),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let advice = format!("see who has it: ss -lnpu sport = :{} and ss -lnpt", address.port());
                Finding::failed("port", format!("{address} is taken by another program"), advice)
            }
            Err(error) => Finding::failed(
                "port",
                format!("{address}: {error}"),
                "see ip address for those of this machine",
            ),
        }
    };
    listen.iter().map(check).collect()
}

pub(super) fn socket(path: &Path) -> Finding {
    let shown = path.display();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Finding::skipped("socket", format!("{shown} is made when the daemon starts"))
        }
        Err(error) => Finding::failed("socket", format!("{shown}: {error}"), "run this as root"),
        Ok(found) if !found.file_type().is_socket() => {
            let advice = "remove it; the daemon makes its own";
            Finding::failed("socket", format!("{shown} is no socket"), advice)
        }
        Ok(found) if found.mode() & 0o007 != 0 => {
            let text = format!("{shown} is open to everybody (mode {:o})", found.mode() & 0o777);
            Finding::failed("socket", text, format!("chmod 660 {shown}"))
        }
        Ok(found) => {
            let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
            let group = groups.lines().find_map(|line| {
                let mut parts = line.split(':');
                let (name, id) = (parts.next()?, parts.nth(1)?);
                (id.parse() == Ok(found.gid())).then(|| name.to_owned())
            });
            let text =
                format!("{shown} is for root and group {}", group.unwrap_or_else(|| found.gid().to_string()));
            Finding::ok("socket", text)
        }
    }
}

pub(super) fn disk(dir: &Path) -> Finding {
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    match rustix::fs::statvfs(existing) {
        Err(error) => Finding::failed("disk", format!("{}: {error}", dir.display()), "make the directory"),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{:.1} GB free for {}", free as f64 / 1e9, dir.display());
            let advice = "make room: unacknowledged output of jobs is kept there";
            if found.f_files > 0 && found.f_favail < 10_000 {
                let text = format!("{} files more can be made in {}", found.f_favail, dir.display());
                return Finding::failed("disk", text, "make room: the file system is out of inodes");
            }
            match free {
                0..DISK_LEAST => Finding::failed("disk", text, advice),
                DISK_LEAST..DISK_GOOD => Finding::warning("disk", text, advice),
                _ => Finding::ok("disk", text),
            }
        }
    }
}

/// Secrets of units lie there, and must not reach a disk.
pub(super) fn tmpfs(dir: &Path) -> Finding {
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    match rustix::fs::statfs(existing) {
        Err(error) => Finding::failed("tmpfs", format!("{}: {error}", dir.display()), "make the directory"),
        Ok(found) if TMPFS.contains(&found.f_type) => {
            Finding::ok("tmpfs", format!("{} is in memory", dir.display()))
        }
        Ok(_) => Finding::failed(
            "tmpfs",
            format!("{} is on a disk", dir.display()),
            "set runtime_dir to a directory under /run, or mount tmpfs there",
        ),
    }
}

pub(super) fn swap(allowed: bool) -> Finding {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let plain: Vec<_> = plain_swaps(&swaps);
    match (plain.is_empty(), allowed) {
        (true, _) => Finding::ok("swap", "none that is written to disk in clear"),
        (false, true) => Finding::warning(
            "swap",
            format!("{} may take secrets of jobs; work.allow_swap accepts that", plain.join(", ")),
            "encrypt it, or swapoff -a",
        ),
        (false, false) => Finding::failed(
            "swap",
            format!("{} may take secrets of jobs to disk, so no unit is run", plain.join(", ")),
            "swapoff -a, encrypt it, or set work.allow_swap = true",
        ),
    }
}

/// Swap areas that are neither compressed memory nor, as far as their name tells, encrypted.
fn plain_swaps(table: &str) -> Vec<String> {
    let names = table.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| !name.starts_with("/dev/zram") && !name.contains("crypt"))
        .map(str::to_owned)
        .collect()
}

/// Whether the container engine answers; what it can do with an image is `plexus node image check`.
pub(super) fn containers(runtime: &str) -> Finding {
    let advice = |what: &str| format!("{what}; then plexus node image check tells whether units can start");
    if runtime == "process" {
        return Finding::skipped("containers", "work.runtime is process: units are plain processes");
    }
    match Command::new(runtime).args(["info", "--format", "{{.Host.OCIRuntime.Version}}"]).output() {
        Ok(said) if said.status.success() => Finding::ok("containers", format!("{runtime} answers")),
        // docker knows other fields.
        Ok(_) if Command::new(runtime).arg("version").output().is_ok_and(|said| said.status.success()) => {
            Finding::ok("containers", format!("{runtime} answers"))
        }
        Ok(said) => {
            let why = String::from_utf8_lossy(&said.stderr);
            let why = why.trim().lines().last().unwrap_or_default();
            Finding::failed(
                "containers",
                format!("{runtime} does not work: {why}"),
                advice("see its own documentation"),
            )
        }
        Err(error) => Finding::failed(
            "containers",
            format!("{runtime} cannot be started: {error}"),
            advice(&format!("install {runtime}, or set work.runtime")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    #[test]
    fn only_plain_swap_counts() {
        let table = "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n/dev/mapper/cryptswap partition 1 0 -1\n/swapfile file 1 0 -2\n";
        assert_eq!(plain_swaps(table), ["/swapfile"]);
        assert!(plain_swaps("Filename\n").is_empty());
    }

    #[test]
    fn places_are_looked_at_where_they_will_be() {
        assert_eq!(tmpfs(Path::new("/proc/nothing")).state, State::Failed);
        let dir = tempfile::tempdir().unwrap();
        assert_ne!(disk(&dir.path().join("not/yet")).state, State::Skipped);
        assert_eq!(socket(&dir.path().join("none")).state, State::Skipped);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(socket(&dir.path().join("file")).state, State::Failed);
        let path = dir.path().join("sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(socket(&path).state, State::Failed);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
        assert_eq!(socket(&path).state, State::Ok);
    }

    #[test]
    fn a_taken_port_is_found() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert_eq!(ports(&[address], None)[0].state, State::Failed);
        assert_eq!(ports(&["nowhere".into()], None)[0].state, State::Failed);
        assert_eq!(ports(&[], None)[0].state, State::Skipped);
    }

    #[test]
    fn no_certificate_is_a_failure_with_advice() {
        let found = certificate(Path::new("/nonexistent"));
        assert_eq!(found.state, State::Failed);
        assert!(found.advice.contains("plexus-node join"), "{found:?}");
    }
}

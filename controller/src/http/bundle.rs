//! `instances/N/install_bundle/`: what a machine needs to become this node, as AWX has it: an archive to copy there and run.
//! What it holds is a token to join with, good once and for a day, instead of keys that were made elsewhere.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use serde_json::json;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, generic, ok};
use crate::enrolment::Wanted;
use crate::registry::INSTANCES;

/// How long the token is good.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// Size of everything in a tar archive is a multiple of this.
const BLOCK: usize = 512;

/// Largest stored block of a deflate stream.
const STORED: usize = 65_535;

pub(super) async fn serve(call: &Call, id: &str) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let user = call.user()?;
    if call.method == Method::OPTIONS {
        return ok(json!({"name": "Install Bundle", "actions": {"GET": {}}}));
    }
    let instance = generic::fetch(call, &INSTANCES, id).await?;
    if !user.is_superuser {
        return Err(ApiError::forbidden());
    }
    let name = instance.text("hostname");
    let role = match instance.text("node_type") {
        "hop" => plexus_proto::id::Role::Hop,
        "execution" | "hybrid" => plexus_proto::id::Role::Execution,
        other => return Err(ApiError::bad(format!("A {other} node is not installed by a bundle."))),
    };
    let none = || ApiError::Detail(StatusCode::CONFLICT, "this controller is not part of a mesh".to_owned());
    let enrolment = &call.app.enrolment.as_deref().ok_or_else(none)?.0;
    let pattern = name.parse().map_err(|()| ApiError::bad("This name cannot be given to a node."))?;
    let wanted = Wanted { role, name: pattern, ttl: LIFE, uses: 1, approve: false, addresses: Vec::new() };
    let made = enrolment.create_token(wanted, &user.username).await.map_err(super::enrolment::failed)?;
    let dir = format!("{name}_install_bundle");
    let files = [
        ("join.token", 0o600, format!("{}\n", made.text.as_str())),
        ("install.sh", 0o755, install(name)),
        ("README", 0o644, readme(name)),
    ];
    let archive =
        gzip(&tar(files.iter().map(|(file, mode, text)| (format!("{dir}/{file}"), *mode, text.as_str()))));
    let mut response = Response::new(Body::from(archive));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename={dir}.tar.gz")) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

fn install(name: &str) -> String {
    format!(
        "#!/bin/sh\n# Makes this machine the node {name}. The token is good once, for a day; it is read from standard input, because\n\
         # arguments show in the list of processes.\nset -eu\ncd \"$(dirname \"$0\")\"\n\
         command -v plexus-node >/dev/null || {{ echo 'install plexus-node first' >&2; exit 1; }}\n\
         plexus-node join - --name {name} <join.token\nrm -f join.token\n"
    )
}

fn readme(name: &str) -> String {
    format!(
        "Bundle to make a machine the node {name} of a Plexus mesh.\n\n\
         Copy it to the machine, with plexus-node in its path, and run install.sh as root; then start plexus-node.\n\
         join.token is a secret: it is good once, for a day after it was made.\n"
    )
}

/// A tar archive (POSIX ustar) of small files.
fn tar<'f>(files: impl Iterator<Item = (String, u32, &'f str)>) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, text) in files {
        let mut block = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        // Names of nodes have 63 letters at most, so these stay below the 100 that there is room for.
        put(0, &name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", text.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\0");
        put(263, "00");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&block);
        archive.extend_from_slice(text.as_bytes());
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

/// A gzip file (RFC 1952) whose content is stored: a bundle has hardly anything to compress.
fn gzip(content: &[u8]) -> Vec<u8> {
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let mut pieces = content.chunks(STORED).peekable();
    while let Some(piece) = pieces.next() {
        let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
        file.push(u8::from(pieces.peek().is_none()));
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(&(!length).to_le_bytes());
        file.extend_from_slice(piece);
    }
    let crc = content.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    file.extend_from_slice(&(!crc).to_le_bytes());
    file.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes());
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_archive_is_unpacked_by_what_every_machine_has() {
        let long = "x".repeat(STORED + 10);
        let files = [
            ("node_install_bundle/a".to_owned(), 0o600, "geheim\n"),
            ("node_install_bundle/b".to_owned(), 0o755, long.as_str()),
        ];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bundle.tar.gz");
        std::fs::write(&file, gzip(&tar(files.into_iter()))).unwrap();
        let unpacked =
            std::process::Command::new("tar").arg("xzf").arg(&file).current_dir(dir.path()).output().unwrap();
        assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
        let path = |name: &str| dir.path().join("node_install_bundle").join(name);
        assert_eq!(std::fs::read_to_string(path("a")).unwrap(), "geheim\n");
        assert_eq!(std::fs::read_to_string(path("b")).unwrap(), long);
        assert_eq!(std::fs::metadata(path("a")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path("b")).unwrap().permissions().mode() & 0o777, 0o755);
    }
}

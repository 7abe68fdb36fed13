use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use plexus_proto::work::{ChunkBatch, Directory, FileContent, TreeEntry, TreeEntryKind, TreeManifest};
use plexus_tree::due;
use plexus_tree::store::hex;
use proptest::prelude::*;
use prost::Message;

use super::manifest::{BYTES_MAX, digest};
use super::*;

fn entry(path: &str, mode: u32, kind: TreeEntryKind) -> TreeEntry {
    TreeEntry { path: path.to_owned(), mode, kind: Some(kind) }
}

fn directory(path: &str, mode: u32) -> TreeEntry {
    entry(path, mode, TreeEntryKind::Directory(Directory {}))
}

fn symlink(path: &str, target: &str) -> TreeEntry {
    entry(path, 0o777, TreeEntryKind::Symlink(target.to_owned()))
}

fn pieces(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.chunks(usize::try_from(CHUNK_BYTES).unwrap())
}

fn file(path: &str, mode: u32, content: &[u8]) -> TreeEntry {
    let chunks = pieces(content).map(|chunk| blake3::hash(chunk).as_bytes().to_vec().into()).collect();
    entry(path, mode, TreeEntryKind::File(FileContent { size: content.len() as u64, chunks }))
}

fn manifest(entries: Vec<TreeEntry>) -> Vec<u8> {
    TreeManifest { entries }.encode_to_vec()
}

/// The refusal's text, or none.
fn refusal(entries: Vec<TreeEntry>) -> Option<String> {
    Manifest::read(&manifest(entries)).err().map(|error| error.to_string())
}

/// Fills a tree from `contents`, which hold every file of it; how many bytes came.
fn fetch(cache: &Cache, manifest: &[u8], contents: &[&[u8]]) -> (PathBuf, usize) {
    let tree = Manifest::read(manifest).unwrap();
    let mut filling = cache.begin(&tree.digest, manifest.to_vec()).unwrap();
    let chunk = |place: u32| {
        let digest = tree.chunks[place as usize].digest;
        let all = contents.iter().flat_map(|content| pieces(content));
        all.into_iter().find(|chunk| *blake3::hash(chunk).as_bytes() == digest).unwrap().to_vec()
    };
    let mut bytes = 0;
    for pair in filling.due().need().chunks(2) {
        for place in pair[0]..pair[0] + pair[1] {
            let data = chunk(place);
            bytes += data.len();
            filling.take(&ChunkBatch { data: data.into(), plain_size: 0 }).unwrap();
        }
    }
    assert!(filling.due().is_whole());
    (cache.keep(filling).unwrap(), bytes)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_tree_is_laid_out_with_modes_links_and_large_files() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    let large: Vec<u8> = (0..2_500_000_u32).map(|index| (index / 9 % 251) as u8).collect();
    let contents: [&[u8]; 3] = [b"- hosts: all\n", b"#!/bin/sh\n", &large];
    let manifest = manifest(vec![
        file("site.yml", 0o644, contents[0]),
        directory("roles", 0o755),
        directory("roles/locked", 0o555),
        file("roles/locked/run.sh", 0o4755, contents[1]),
        file("again.sh", 0o644, contents[1]),
        file("empty", 0o600, b""),
        file("large.bin", 0o640, &large),
        symlink("current", "roles/locked"),
        symlink("outside", "/etc/passwd"),
        symlink("dangling", "../nowhere"),
    ]);
    assert_eq!(cache.files(&digest(&manifest)), None);
    let (files, _) = fetch(&cache, &manifest, &contents);
    assert_eq!(cache.files(&digest(&manifest)), Some(files.clone()));
    assert_eq!(mode(&files.join("site.yml")), 0o644);
    assert_eq!(mode(&files.join("roles/locked")), 0o555);
    assert_eq!(mode(&files.join("roles/locked/run.sh")), 0o755, "setuid is dropped");
    assert_eq!(mode(&files.join("large.bin")), 0o640);
    assert_eq!(fs::read(files.join("large.bin")).unwrap(), large);
    assert_eq!(fs::read(files.join("again.sh")).unwrap(), contents[1]);
    assert_eq!(fs::read(files.join("empty")).unwrap(), b"");
    for (link, target) in
        [("current", "roles/locked"), ("outside", "/etc/passwd"), ("dangling", "../nowhere")]
    {
        assert_eq!(fs::read_link(files.join(link)).unwrap().to_str(), Some(target));
    }
}

#[test]
fn a_changed_tree_takes_over_what_stays_and_asks_for_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|index| (index / 11 % 251) as u8).collect();
    let mut changed = large.clone();
    changed[1_500_000] = 255;
    let before =
        manifest(vec![file("a", 0o644, b"same"), file("b", 0o644, b"before"), file("large", 0o644, &large)]);
    let after = manifest(vec![
        file("b", 0o644, b"after!"),
        directory("sub", 0o755),
        file("sub/a", 0o644, b"same"),
        file("sub/other-mode", 0o755, b"same"),
        file("sub/large", 0o644, &changed),
    ]);
    let (old, _) = fetch(&cache, &before, &[b"same", b"before", &large]);
    let (new, bytes) = fetch(&cache, &after, &[b"same", b"after!", &changed]);
    assert_eq!(bytes, 6 + (1 << 20), "one small file and one chunk of the large one");
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&old.join("a")), inode(&new.join("sub/a")));
    assert_ne!(inode(&old.join("a")), inode(&new.join("sub/other-mode")));
    assert_eq!(mode(&new.join("sub/other-mode")), 0o755);
    assert_eq!(fs::read(new.join("sub/large")).unwrap(), changed);
    assert_eq!(fs::read(old.join("large")).unwrap(), large);
    assert_eq!(fs::read(new.join("b")).unwrap(), b"after!");
}

#[test]
fn what_an_interrupted_transfer_brought_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let manifest = manifest(vec![file("a", 0o755, b"first"), file("b", 0o644, b"second")]);
    let name = digest(&manifest);
    let mut filling = cache.begin(&name, manifest.clone()).unwrap();
    assert_eq!(filling.due().need(), [0, 2]);
    filling.take(&ChunkBatch { data: b"first"[..].into(), plain_size: 0 }).unwrap();
    drop(filling);
    let cache = Cache::open(dir.path()).unwrap();
    let filling = cache.begin(&name, manifest.clone()).unwrap();
    assert_eq!(filling.due().need(), [1, 1]);
    drop(filling);
    // Damaged meanwhile: it comes again.
    fs::write(dir.path().join("new").join(hex(&name)).join("tree/a"), "other").unwrap();
    assert_eq!(cache.begin(&name, manifest.clone()).unwrap().due().need(), [0, 2]);
    let (files, _) = fetch(&cache, &manifest, &[b"first", b"second"]);
    assert_eq!((fs::read(files.join("a")).unwrap(), mode(&files.join("a"))), (b"first".to_vec(), 0o755));
}

#[test]
fn other_chunks_than_asked_for_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let manifest = manifest(vec![file("a", 0o644, b"content")]);
    let name = digest(&manifest);
    let check = |data: &'static [u8], plain_size: u32| {
        let mut filling = cache.begin(&name, manifest.clone()).unwrap();
        filling.take(&ChunkBatch { data: data.into(), plain_size }).unwrap_err()
    };
    assert!(matches!(check(b"another", 0), Error::Chunk(due::Error::Digest)));
    assert!(matches!(check(b"short", 0), Error::Chunk(due::Error::Batch)));
    assert!(matches!(check(b"content and more", 0), Error::Chunk(due::Error::Batch)));
    assert!(matches!(check(b"content", 7), Error::Chunk(due::Error::Batch)), "not compressed");
    assert!(matches!(check(b"content", u32::MAX), Error::Chunk(due::Error::Batch)), "a bomb");
    assert!(matches!(cache.begin(&[0; 32], manifest.clone()), Err(Error::Digest)));
    assert_eq!(cache.files(&name), None);
}

#[test]
fn what_could_leave_the_tree_is_refused_by_name() {
    let check = |entries: Vec<TreeEntry>, words: &[&str]| {
        let text = refusal(entries).expect("refused");
        for word in words {
            assert!(text.contains(word), "{word:?} in {text:?}");
        }
    };
    check(vec![file("../x", 0o644, b"")], &["\"../x\"", "'..'"]);
    check(vec![directory("a", 0o755), file("a/../../x", 0o644, b"")], &["'..'"]);
    check(vec![file("/etc/x", 0o644, b"")], &["\"/etc/x\"", "absolute"]);
    check(vec![file("a\0b", 0o644, b"")], &["NUL"]);
    check(vec![file("", 0o644, b"")], &["no path"]);
    check(vec![file("a//b", 0o644, b"")], &["empty name"]);
    check(vec![file("./a", 0o644, b"")], &["'.'"]);
    check(vec![file("a", 0o644, b""), file("a", 0o644, b"")], &["\"a\"", "twice"]);
    check(vec![symlink("a", "/tmp"), file("a/x", 0o644, b"")], &["\"a/x\"", "no directory"]);
    check(vec![symlink("a", "/tmp"), directory("a", 0o755)], &["twice"]);
    check(vec![file("a", 0o644, b""), file("a/x", 0o644, b"")], &["no directory"]);
    check(vec![file("a/x", 0o644, b""), directory("a", 0o755)], &["before its directory"]);
    check(vec![TreeEntry { path: "dev".to_owned(), mode: 0o644, kind: None }], &["\"dev\"", "neither"]);
    check(vec![symlink("a", "")], &["symlink"]);
    check(vec![symlink("a", "b\0c")], &["symlink"]);
    check(vec![file(&"x".repeat(256), 0o644, b"")], &["too long a name"]);
    check(vec![file(&"x/".repeat(2500), 0o644, b"")], &["too long a path"]);
}

#[test]
fn sizes_are_bound_by_what_is_sent() {
    let sparse = FileContent { size: 1 << 50, chunks: vec![vec![0; 32].into()] };
    let text = refusal(vec![entry("petabyte", 0o644, TreeEntryKind::File(sparse))]).unwrap();
    assert!(text.contains("petabyte") && text.contains("does not fit its chunks"), "{text}");
    let short = FileContent { size: 10, chunks: vec![vec![0; 31].into()] };
    assert!(refusal(vec![entry("short", 0o644, TreeEntryKind::File(short))]).unwrap().contains("digest"));
    // One chunk named over and over: the manifest is small, the tree is not.
    let chunks = usize::try_from(BYTES_MAX / CHUNK_BYTES).unwrap() / 2 + 1;
    let bomb = FileContent { size: chunks as u64 * CHUNK_BYTES, chunks: vec![vec![7; 32].into(); chunks] };
    let entries = ["a", "b"].map(|path| entry(path, 0o644, TreeEntryKind::File(bomb.clone())));
    assert!(refusal(entries.to_vec()).unwrap().contains("more than"));
}

#[test]
fn a_name_that_differs_in_case_from_a_symlink_is_refused() {
    let text =
        refusal(vec![symlink("A", "/etc"), directory("a", 0o755), file("a/passwd", 0o644, b"")]).unwrap();
    assert!(text.contains("\"a\"") && text.contains("case"), "{text}");
    assert!(refusal(vec![directory("a", 0o755), symlink("A", "/etc")]).is_some());
    assert_eq!(refusal(vec![file("Makefile", 0o644, b""), file("makefile", 0o644, b"")]), None);
}

#[test]
fn millions_of_entries_are_refused_before_they_cost_memory() {
    let one = manifest(vec![directory("d", 0o755)]);
    let mut bytes = Vec::new();
    for number in 0..=plexus_tree::MAX_ENTRIES {
        bytes.extend(manifest(vec![directory(&format!("d{number}"), 0o755)]));
    }
    bytes.extend(one.repeat(100_000));
    assert!(Manifest::read(&bytes).unwrap_err().to_string().contains("more than 500000 entries"));
    for broken in
        [&[0xff][..], &[0x0a, 0x05, 1], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
    {
        assert!(Manifest::read(broken).is_err(), "{broken:?}");
    }
}

#[test]
fn what_a_newer_controller_adds_is_kept_with_the_name() {
    let mut bytes = manifest(vec![file("a", 0o644, b"x")]);
    let old = Manifest::read(&bytes).unwrap();
    bytes.extend_from_slice(&[0xfa, 0x3f, 0x03, b'n', b'e', b'w']); // field 1023, three bytes
    let new = Manifest::read(&bytes).unwrap();
    assert_eq!(new.entries, old.entries);
    assert_ne!(new.digest, old.digest);
    let dir = tempfile::tempdir().unwrap();
    let (files, _) = fetch(&Cache::open(dir.path()).unwrap(), &bytes, &[b"x"]);
    assert_eq!(fs::read(files.with_file_name("manifest")).unwrap(), bytes);
}

#[test]
fn a_tree_of_another_boot_counts_only_once_it_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let manifest = manifest(vec![file("a", 0o644, b"x")]);
    let (files, _) = fetch(&cache, &manifest, &[b"x"]);
    let mark = files.with_file_name("mark");
    fs::write(&mark, "another boot").unwrap();
    assert_eq!(cache.files(&digest(&manifest)), None);
    let (files, _) = fetch(&cache, &manifest, &[b"x"]);
    cache.settle().unwrap();
    assert_eq!(fs::read_to_string(&mark).unwrap(), "durable");
    assert_eq!(cache.files(&digest(&manifest)), Some(files));
}

#[test]
fn trimming_keeps_the_trees_used_last_and_those_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let mut names = Vec::new();
    for content in [[1_u8; 1000], [2; 1000], [3; 1000]] {
        let manifest = manifest(vec![file("a", 0o644, &content), file("b", 0o644, b"shared")]);
        let (files, _) = fetch(&cache, &manifest, &[&content, b"shared"]);
        let used = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(content[0]) * 1000);
        fs::File::open(files.with_file_name("manifest")).unwrap().set_modified(used).unwrap();
        names.push((digest(&manifest), files));
    }
    let there = || names.iter().map(|(_, files)| files.exists()).collect::<Vec<_>>();
    cache.trim(2100).unwrap();
    assert_eq!(there(), [false, true, true]);
    let copy = dir.path().join("copy");
    working::prepare(&names[1].1, &copy, cache.has_overlay()).unwrap();
    let tree = working::open(&copy).unwrap();
    cache.trim(0).unwrap();
    assert_eq!(there(), [false, cache.has_overlay(), false], "only an overlay needs its lower tree");
    assert_eq!(fs::read(tree.join("b")).unwrap(), b"shared");
    working::close(&copy);
    cache.trim(0).unwrap();
    assert_eq!(there(), [false, false, false]);
}

proptest! {
    #[test]
    fn any_manifest_gives_a_tree_or_an_error(
        entries in prop::collection::vec(("[a/.\0]{0,6}", any::<u32>(), 0u8..4, any::<u64>()), 0..12),
    ) {
        let entries = entries.into_iter().map(|(path, mode, kind, size)| {
            let kind = match kind {
                0 => Some(TreeEntryKind::Directory(Directory {})),
                1 => Some(TreeEntryKind::Symlink("..".to_owned())),
                2 => Some(TreeEntryKind::File(FileContent { size: size % 2, chunks: vec![vec![0; 32].into(); usize::from(size % 2 == 1)] })),
                _ => None,
            };
            TreeEntry { path, mode, kind }
        });
        if let Ok(tree) = Manifest::read(&manifest(entries.collect())) {
            for entry in &tree.entries {
                prop_assert!(!entry.path.starts_with('/') && entry.path.split('/').all(|name| !matches!(name, "" | "." | "..")));
                prop_assert_eq!(entry.mode & !0o777, 0);
            }
        }
    }
}

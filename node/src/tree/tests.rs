use std::fs;
use std::os::unix::fs::PermissionsExt;

use plexus_proto::work::{Directory, FileContent, TreeEntry, TreeEntryKind, TreeManifest};
use proptest::prelude::*;

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

fn file(path: &str, mode: u32, content: &[u8], cache: Option<&Cache>) -> TreeEntry {
    let chunks = content.chunks(usize::try_from(CHUNK_BYTES).unwrap()).map(|chunk| {
        let digest = *blake3::hash(chunk).as_bytes();
        if let Some(cache) = cache {
            cache.keep_chunk(&digest, chunk).unwrap();
        }
        digest.to_vec().into()
    });
    let file = FileContent { size: content.len() as u64, chunks: chunks.collect() };
    entry(path, mode, TreeEntryKind::File(file))
}

fn manifest(entries: Vec<TreeEntry>) -> TreeManifest {
    TreeManifest { entries }
}

/// The refusal's text, or none.
fn refusal(entries: Vec<TreeEntry>) -> Option<String> {
    Tree::check(manifest(entries)).err().map(|error| error.to_string())
}

#[test]
fn a_tree_is_laid_out_with_modes_links_and_large_files() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).unwrap();
    let large: Vec<u8> = (0..2_500_000_u32).map(|index| (index % 251) as u8).collect();
    let manifest = manifest(vec![
        file("site.yml", 0o644, b"- hosts: all\n", Some(&cache)),
        directory("roles", 0o755),
        directory("roles/locked", 0o555),
        file("roles/locked/run.sh", 0o4755, b"#!/bin/sh\n", Some(&cache)),
        file("empty", 0o600, b"", Some(&cache)),
        file("large.bin", 0o640, &large, Some(&cache)),
        symlink("current", "roles/locked"),
        symlink("outside", "/etc/passwd"),
        symlink("dangling", "../nowhere"),
    ]);
    let tree = cache.keep_tree(&digest(&manifest), manifest.clone()).unwrap();
    assert_eq!(cache.missing(&tree), Vec::<Digest>::new());
    assert_eq!(cache.tree(&digest(&manifest)).unwrap(), Some(tree.clone()));
    let copy = dir.path().join("copy");
    lay_out::lay_out(&tree, &cache, &copy).unwrap();
    let mode = |path: &str| fs::metadata(copy.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("site.yml"), 0o644);
    assert_eq!(mode("roles/locked"), 0o555);
    assert_eq!(mode("roles/locked/run.sh"), 0o755, "setuid is dropped");
    assert_eq!(mode("large.bin"), 0o640);
    assert_eq!(fs::read(copy.join("large.bin")).unwrap(), large);
    assert_eq!(fs::read(copy.join("empty")).unwrap(), b"");
    assert_eq!(fs::read_link(copy.join("current")).unwrap().to_str(), Some("roles/locked"));
    assert_eq!(fs::read_link(copy.join("outside")).unwrap().to_str(), Some("/etc/passwd"));
    crate::unit_dir::remove_tree(&copy).unwrap();
}

#[test]
fn what_could_leave_the_tree_is_refused_by_name() {
    let check = |entries: Vec<TreeEntry>, words: &[&str]| {
        let text = refusal(entries).expect("refused");
        for word in words {
            assert!(text.contains(word), "{word:?} in {text:?}");
        }
    };
    check(vec![file("../x", 0o644, b"", None)], &["\"../x\"", "'..'"]);
    check(vec![directory("a", 0o755), file("a/../../x", 0o644, b"", None)], &["'..'"]);
    check(vec![file("/etc/x", 0o644, b"", None)], &["\"/etc/x\"", "absolute"]);
    check(vec![file("a\0b", 0o644, b"", None)], &["NUL"]);
    check(vec![file("", 0o644, b"", None)], &["no path"]);
    check(vec![file("a//b", 0o644, b"", None)], &["empty name"]);
    check(vec![file("./a", 0o644, b"", None)], &["'.'"]);
    check(vec![file("a", 0o644, b"", None), file("a", 0o644, b"", None)], &["\"a\"", "twice"]);
    check(vec![symlink("a", "/tmp"), file("a/x", 0o644, b"", None)], &["\"a/x\"", "no directory"]);
    check(vec![symlink("a", "/tmp"), directory("a", 0o755)], &["twice"]);
    check(vec![file("a", 0o644, b"", None), file("a/x", 0o644, b"", None)], &["no directory"]);
    check(vec![file("a/x", 0o644, b"", None), directory("a", 0o755)], &["before its directory"]);
    check(vec![TreeEntry { path: "dev".to_owned(), mode: 0o644, kind: None }], &["\"dev\"", "neither"]);
    check(vec![symlink("a", "")], &["symlink"]);
    check(vec![symlink("a", "b\0c")], &["symlink"]);
    check(vec![file(&"x".repeat(256), 0o644, b"", None)], &["too long a name"]);
    check(vec![file(&"x/".repeat(2500), 0o644, b"", None)], &["too long a path"]);
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
fn damaged_chunks_and_manifests_are_missing_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let manifest = manifest(vec![file("a", 0o644, b"content", Some(&cache))]);
    let name = digest(&manifest);
    let tree = cache.keep_tree(&name, manifest.clone()).unwrap();
    let chunk = *tree.chunks().first().unwrap();
    assert!(matches!(cache.keep_chunk(&chunk, b"other"), Err(Error::Digest { .. })));
    assert!(matches!(cache.keep_tree(&[0; 32], manifest), Err(Error::Digest { .. })));

    let chunk_file = dir.path().join("chunks").join(&hex(&chunk)[..2]).join(hex(&chunk));
    fs::write(&chunk_file, b"flipped").unwrap();
    assert!(
        matches!(lay_out::lay_out(&tree, &cache, &dir.path().join("copy")), Err(Error::Missing(d)) if d == chunk)
    );
    assert_eq!(cache.missing(&tree), [chunk]);
    fs::write(dir.path().join("trees").join(hex(&name)), b"flipped").unwrap();
    assert_eq!(cache.tree(&name).unwrap(), None);
}

#[test]
fn trimming_keeps_the_trees_used_last() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let mut names = Vec::new();
    for content in [[1_u8; 1000], [2; 1000], [3; 1000]] {
        let manifest = manifest(vec![
            file("a", 0o644, &content, Some(&cache)),
            file("b", 0o644, b"shared", Some(&cache)),
        ]);
        cache.keep_tree(&digest(&manifest), manifest.clone()).unwrap();
        let path = dir.path().join("trees").join(hex(&digest(&manifest)));
        let used = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(content[0]) * 1000);
        fs::File::open(path).unwrap().set_modified(used).unwrap();
        names.push(digest(&manifest));
    }
    cache.trim(2100).unwrap();
    assert_eq!(cache.tree(&names[0]).unwrap(), None);
    for name in &names[1..] {
        let tree = cache.tree(name).unwrap().unwrap();
        assert_eq!(cache.missing(&tree), Vec::<Digest>::new());
    }
    assert!(cache.chunk(blake3::hash(&[1; 1000]).as_bytes()).is_err());
}

#[test]
fn hexadecimal_goes_both_ways() {
    assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
    for bad in ["0", "zz", "ä1", "+1"] {
        assert_eq!(unhex(bad), None, "{bad}");
    }
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
        if let Ok(tree) = Tree::check(manifest(entries.collect())) {
            for entry in &tree.entries {
                prop_assert!(!entry.path.starts_with('/') && entry.path.split('/').all(|name| !matches!(name, "" | "." | "..")));
                prop_assert_eq!(entry.mode & !0o777, 0);
            }
        }
    }
}

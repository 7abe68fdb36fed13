//! Where the playbooks of a project are on this machine, and how they are told from other files.

use std::path::{Component, Path, PathBuf};

use plexus_tree::{Digest, Store, store};

/// The directory of a manual project: one plain name below the root, nothing else.
pub fn directory(root: &Path, local_path: &str) -> Option<PathBuf> {
    let plain = !local_path.is_empty()
        && !local_path.starts_with('.')
        && !local_path.contains(['/', '\\', '\0'])
        && local_path.len() <= 255;
    plain.then(|| root.join(local_path))
}

/// Whether a playbook is in a project: a file below its directory, by a path that stays inside, links included.
pub fn has_playbook(root: &Path, local_path: &str, playbook: &str) -> bool {
    let Some(dir) = directory(root, local_path) else { return false };
    let inside = Path::new(playbook).components().all(|part| matches!(part, Component::Normal(_)));
    if playbook.is_empty() || playbook.contains('\0') || !inside {
        return false;
    }
    let (Ok(dir), Ok(file)) = (dir.canonicalize(), dir.join(playbook).canonicalize()) else { return false };
    file.starts_with(&dir) && file.is_file()
}

/// How much of a file is read to see whether it is a playbook.
const MAX_PEEK: usize = 256 << 10;

/// How deep a tree is looked into.
const MAX_DEPTH: usize = 16;

/// Most paths of a list.
const MAX_LISTED: usize = 10_000;

/// Most candidates for inventories that are listed, as AWX does.
const MAX_INVENTORIES: usize = 50;

/// Directories of a tree that hold parts of playbooks, and no playbooks.
pub const PARTS: &[&str] = &[
    "roles",
    "tasks",
    "group_vars",
    "host_vars",
    "vars",
    "defaults",
    "handlers",
    "meta",
    "templates",
    "files",
    "library",
    "filter_plugins",
    "module_utils",
    "node_modules",
    "collections",
];

/// What people choose from, of a tree that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Playbooks, sorted.
    pub playbooks: Vec<String>,
    /// Files that may be inventories, sorted.
    pub inventories: Vec<String>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Looks through a tree of the store. Blocks.
///
/// # Errors
/// The tree is not there, or does not read.
pub fn listed(store: &Store, digest: &Digest) -> Result<Listed, store::Error> {
    let Some(manifest) = store.manifest(digest)? else { return Ok(Listed::default()) };
    let mut listed = Listed { bytes: manifest.files().map(|file| file.size).sum(), ..Listed::default() };
    for file in manifest.files() {
        let mut parts: Vec<&str> = file.path.split('/').collect();
        let name = parts.pop().unwrap_or_default();
        let passed_over = parts.iter().any(|part| part.starts_with('.') || PARTS.contains(part));
        if passed_over || parts.len() > MAX_DEPTH || listed.playbooks.len() >= MAX_LISTED {
            continue;
        }
        let is_yaml = matches!(name.rsplit_once('.'), Some((_, "yml" | "yaml")));
        let needed = is_yaml || !name.contains('.');
        let text = match needed {
            true => {
                let bytes = store.beginning(&manifest, file)?;
                String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_PEEK)]).into_owned()
            }
            false => String::new(),
        };
        if is_yaml && is_playbook(&text) {
            listed.playbooks.push(file.path.to_owned());
        }
        if is_inventory(name, file.mode & 0o111 != 0, &text) && listed.inventories.len() < MAX_INVENTORIES {
            listed.inventories.push(file.path.to_owned());
        }
    }
    listed.playbooks.sort();
    listed.inventories.sort();
    Ok(listed)
}

/// Whether YAML has a line that only playbooks have.
pub fn is_playbook(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start().trim_start_matches("- ").trim_start();
        [
            "hosts:",
            "include:",
            "import_playbook:",
            "ansible.builtin.import_playbook:",
            "ansible.builtin.include:",
        ]
        .iter()
        .any(|word| line.starts_with(word))
            || line.starts_with("$ANSIBLE_VAULT;")
    })
}

/// Whether ansible-inventory might read a file: INI or YAML by its look, or a script.
pub fn is_inventory(name: &str, executable: bool, text: &str) -> bool {
    match name.rsplit_once('.') {
        Some((_, "py" | "sh")) => executable,
        Some((_, "ini")) => true,
        Some((_, "yml" | "yaml")) => {
            text.lines().any(|line| line.starts_with("all:") || line.starts_with("plugin:"))
        }
        None => text.lines().any(|line| line.starts_with('[') && line.trim_end().ends_with(']')),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_playbook_is_inside_its_project_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let project = root.path().join("demo");
        std::fs::create_dir_all(project.join("deploy")).unwrap();
        std::fs::write(project.join("site.yml"), "- hosts: all\n").unwrap();
        std::fs::write(project.join("deploy/web.yml"), "- hosts: all\n").unwrap();
        std::fs::write(root.path().join("outside.yml"), "- hosts: all\n").unwrap();
        std::os::unix::fs::symlink(root.path().join("outside.yml"), project.join("link.yml")).unwrap();
        for good in ["site.yml", "deploy/web.yml"] {
            assert!(has_playbook(root.path(), "demo", good), "{good}");
        }
        for bad in [
            "",
            "nosuch.yml",
            "deploy",
            "../outside.yml",
            "/etc/passwd",
            "deploy/../../outside.yml",
            "link.yml",
            "a\0b",
        ] {
            assert!(!has_playbook(root.path(), "demo", bad), "{bad}");
        }
        for bad in ["", ".", "..", "../demo", "demo/deploy", "/etc", ".git"] {
            assert!(!has_playbook(root.path(), bad, "site.yml"), "{bad}");
            assert_eq!(directory(root.path(), bad), None, "{bad}");
        }
    }
}

//! Where the playbooks of a project are on this machine.

use std::path::{Component, Path, PathBuf};

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

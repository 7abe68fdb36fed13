//! Projects: trees of playbooks. A manual project is a directory below the projects' root; its name is all that a
//! client chooses, so nothing outside that root is ever reached.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic, ok};
use crate::project::directory;
use crate::registry::PROJECTS;
use crate::registry::read::Record;
use crate::registry::write::Draft;

/// Files that are looked at when playbooks are listed.
const MAX_FILES: usize = 20_000;

/// How deep a tree is looked into.
const MAX_DEPTH: usize = 16;

/// How much of a file is read to see whether it is a playbook.
const MAX_PEEK: u64 = 256 << 10;

/// Directories of a tree that hold parts of playbooks, and no playbooks.
const PARTS: &[&str] = &[
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

pub(super) struct Projects;

impl Rules for Projects {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            if !draft.text("scm_type").is_empty() {
                let words =
                    "Only manual projects can be used so far: leave scm_type empty and set local_path.";
                return Err(ApiError::field("scm_type", words));
            }
            if draft.has("local_path") {
                let path = draft.text("local_path").to_owned();
                if !path.is_empty() && directory(&call.app.projects_root, &path).is_none() {
                    let words =
                        "Invalid path choice: local_path is the name of a directory below the projects root.";
                    return Err(ApiError::field("local_path", words));
                }
            }
            let path = match before {
                _ if draft.has("local_path") => draft.text("local_path"),
                Some(before) => before.text("local_path"),
                None => "",
            };
            let status = status(&call.app.projects_root, path);
            draft.set("status", status);
            Ok(())
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records {
                if record.text("scm_type").is_empty() {
                    // What the directory is now says more than what it was when the project was saved.
                    let status = status(&call.app.projects_root, record.text("local_path"));
                    record.set("status", status);
                }
            }
            Ok(())
        })
    }
}

fn status(root: &Path, local_path: &str) -> &'static str {
    match directory(root, local_path) {
        Some(dir) if dir.is_dir() => "successful",
        _ => "missing",
    }
}

/// The directories a manual project may be made of.
pub(super) fn local_paths(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .take(1000)
        .collect();
    names.sort();
    names
}

pub(super) async fn playbooks(call: &Call, id: &str) -> Answer {
    listed(call, id, is_playbook).await
}

pub(super) async fn inventories(call: &Call, id: &str) -> Answer {
    listed(call, id, is_inventory).await
}

async fn listed(call: &Call, id: &str, wanted: fn(&Path, &str) -> bool) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let project = generic::fetch(call, &PROJECTS, id).await?;
    let dir = directory(&call.app.projects_root, project.text("local_path"));
    let Some(dir) = dir else { return ok(Value::Array(Vec::new())) };
    let found = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        let mut left = MAX_FILES;
        walk(&dir, Path::new(""), 0, &mut left, &mut |path, name| {
            if wanted(path, name) {
                found.push(name.to_owned());
            }
        });
        found.sort();
        found
    });
    ok(found.await.map_err(|error| ApiError::internal("the files of a project were not listed", error))?)
}

fn walk(dir: &Path, below: &Path, depth: usize, left: &mut usize, each: &mut impl FnMut(&Path, &str)) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        let inner = below.join(&name);
        if kind.is_dir() {
            let part = name.to_str().is_none_or(|name| name.starts_with('.') || PARTS.contains(&name));
            if !part && depth < MAX_DEPTH {
                walk(&entry.path(), &inner, depth + 1, left, each);
            }
        } else if kind.is_file()
            && let Some(shown) = inner.to_str()
        {
            each(&entry.path(), shown);
        }
    }
}

/// A YAML file with a line that only playbooks have.
fn is_playbook(path: &Path, _: &str) -> bool {
    if !matches!(path.extension().and_then(OsStr::to_str), Some("yml" | "yaml")) {
        return false;
    }
    peek(path).lines().any(|line| {
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

/// A file that ansible-inventory might read: INI or YAML by its look, or a script.
fn is_inventory(path: &Path, name: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    if name.ends_with(".py") || name.ends_with(".sh") {
        return std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
    }
    let text = peek(path);
    match path.extension().and_then(OsStr::to_str) {
        Some("ini") => true,
        Some("yml" | "yaml") => {
            text.lines().any(|line| line.starts_with("all:") || line.starts_with("plugin:"))
        }
        None => text.lines().any(|line| line.starts_with('[') && line.trim_end().ends_with(']')),
        _ => false,
    }
}

fn peek(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_PEEK).read_to_end(&mut bytes));
    read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn playbooks_are_told_from_their_parts() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("site.yml", "---\n- name: all\n  hosts: all\n");
        write("more/imports.yaml", "- import_playbook: ../site.yml\n");
        write("vars.yml", "a: 1\n");
        write("roles/x/tasks/main.yml", "- hosts: no\n");
        write("hosts.ini", "[web]\na\n");
        write("README.md", "hosts: no\n");
        let (mut playbooks, mut inventories) = (Vec::new(), Vec::new());
        let mut left = MAX_FILES;
        walk(root.path(), Path::new(""), 0, &mut left, &mut |path, name| {
            if is_playbook(path, name) {
                playbooks.push(name.to_owned());
            }
            if is_inventory(path, name) {
                inventories.push(name.to_owned());
            }
        });
        playbooks.sort();
        assert_eq!(playbooks, ["more/imports.yaml", "site.yml"]);
        assert_eq!(inventories, ["hosts.ini"]);
    }
}

//! Projects: trees of playbooks. A manual project is a directory below the projects' root; its name is all that a
//! client chooses, so nothing outside that root is ever reached. The others are fetched ([`updates`](super::updates)); what is in
//! their trees was listed when those came.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use sea_query::{Expr, ExprTrait, JoinType, Order, Query};
use serde_json::{Value, json};

use super::call::Call;
use super::error::ApiError;
use super::rules::{Rule, Rules};
use super::{Answer, generic, ok, updates};
use crate::job::ACTIVE;
use crate::project::{self, directory};
use crate::project_update::{self, Scm};
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::registry::{PROJECT_UPDATES, PROJECTS};
use crate::store::core::{CoreDb, WriteTx};

/// Files that are looked at when playbooks are listed.
const MAX_FILES: usize = 20_000;

/// How deep a tree is looked into.
const MAX_DEPTH: usize = 16;

/// How much of a file is read to see whether it is a playbook.
const MAX_PEEK: u64 = 256 << 10;

pub(super) struct Projects;

impl Rules for Projects {
    fn check<'a>(&'a self, call: &'a Call, draft: &'a mut Draft, before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async move {
            let text = |draft: &Draft, name: &str| match draft.value(name) {
                Some(value) => value.as_str().unwrap_or_default().to_owned(),
                None => before.map(|before| before.text(name).to_owned()).unwrap_or_default(),
            };
            if draft.has("local_path") && text(draft, "scm_type").is_empty() {
                let path = draft.text("local_path").to_owned();
                if !path.is_empty() && directory(&call.app.projects_root, &path).is_none() {
                    let words =
                        "Invalid path choice: local_path is the name of a directory below the projects root.";
                    return Err(ApiError::field("local_path", words));
                }
            }
            let scm_type = text(draft, "scm_type");
            if scm_type.is_empty() {
                let status = status(&call.app.projects_root, &text(draft, "local_path"));
                draft.set("status", status);
                return Ok(());
            }
            let Some(scm) = Scm::parse(&scm_type) else {
                let words = format!("Plexus does not fetch projects of type {scm_type}.");
                return Err(ApiError::field("scm_type", words));
            };
            let url = text(draft, "scm_url");
            if url.trim().is_empty() {
                return Err(ApiError::field("scm_url", "SCM URL is required."));
            }
            project_update::check(scm, &url)
                .map_err(|error| ApiError::field("scm_url", error.to_string()))?;
            for (field, kind) in [("credential", "scm"), ("signature_validation_credential", "cryptography")]
            {
                if let Some(id) = draft.int(field)
                    && !is_of_kind(call, id, kind).await?
                {
                    let words = format!("Credential kind must be '{kind}'.");
                    return Err(ApiError::field(field, words));
                }
            }
            let is_other = |name: &str| {
                draft.has(name) && before.is_none_or(|before| before.text(name) != draft.text(name))
            };
            if before.is_none() || FETCHED.iter().any(|name| is_other(name)) {
                draft.aside.insert("update".to_owned(), true.into());
            }
            if before.is_none_or(|before| before.text("scm_type").is_empty()) {
                draft.set("status", "never updated");
                draft.set("local_path", "");
            }
            Ok(())
        })
    }

    fn written<'a>(&'a self, call: &'a Call, tx: &'a mut WriteTx, id: i64, draft: &'a Draft) -> Rule<'a> {
        Box::pin(async move {
            if !draft.aside.contains_key("update") {
                return Ok(());
            }
            if draft.has("name") && draft.text("local_path").is_empty() && draft.has("local_path") {
                let mut update = Query::update();
                update.table("projects").value("local_path", own_path(id, draft.text("name")));
                tx.execute(update.and_where(Expr::col("id").eq(id))).await?;
            }
            updates::begin(call, tx, id, updates::MANUAL).await.map(drop)
        })
    }

    fn fill<'a>(&'a self, call: &'a Call, records: &'a mut [Record], _: bool) -> Rule<'a> {
        Box::pin(async move {
            for record in records.iter_mut().filter(|record| record.text("scm_type").is_empty()) {
                // What the directory is now says more than what it was when the project was saved.
                let status = status(&call.app.projects_root, record.text("local_path"));
                record.set("status", status);
            }
            show_updates(call, records).await
        })
    }
}

/// What says what is fetched: a change of it starts an update, as in AWX.
const FETCHED: &[&str] = &["scm_type", "scm_url", "scm_branch", "scm_refspec"];

/// The name that AWX gives the directory of a project.
fn own_path(id: i64, name: &str) -> String {
    let slug: String = name
        .chars()
        .filter_map(|c| match c {
            c if c.is_ascii_alphanumeric() => Some(c.to_ascii_lowercase()),
            ' ' | '-' | '_' => Some('_'),
            _ => None,
        })
        .take(200)
        .collect();
    format!("_{id}__{slug}")
}

async fn is_of_kind(call: &Call, credential: i64, kind: &str) -> Result<bool, ApiError> {
    let mut query = Query::select();
    query.column(("t", "kind")).from_as("credentials", "c");
    let of = Expr::col(("t", "id")).equals(("c", "credential_type_id"));
    query.join_as(JoinType::InnerJoin, "credential_types", "t", of);
    let row = call.app.db.optional(query.and_where(Expr::col(("c", "id")).eq(credential))).await?;
    Ok(row.map(|row| row.at::<String>(0)).transpose()?.is_some_and(|found| found == kind))
}

/// Shows the update that runs, whose status is the project's meanwhile, and the one that ended last.
async fn show_updates(call: &Call, records: &mut [Record]) -> Result<(), ApiError> {
    let ids: Vec<i64> =
        records.iter().filter(|record| !record.text("scm_type").is_empty()).map(|record| record.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let mut query = Query::select();
    let columns = ["id", "name", "description", "status", "failed", "unified_job_template_id", "job_type"];
    query.columns(columns.map(|column| ("j", column))).column(("t", "last_job_id"));
    query.from_as("unified_jobs", "j");
    let of = Expr::col(("t", "id")).equals(("j", "unified_job_template_id"));
    query.join_as(JoinType::InnerJoin, "unified_job_templates", "t", of);
    let is_active = Expr::col(("j", "status")).is_in(ACTIVE);
    let is_last = Expr::col(("j", "id")).equals(("t", "last_job_id"));
    query.and_where(Expr::col(("j", "unified_job_template_id")).is_in(ids)).and_where(is_active.or(is_last));
    // The oldest that is not over is the one that runs: the others wait for it.
    query.order_by(("j", "id"), Order::Asc);
    for row in call.app.db.all(&query).await? {
        let (id, status, project): (i64, String, i64) = (row.at(0)?, row.at(3)?, row.at(5)?);
        let Some(record) = records.iter_mut().find(|record| record.id == project) else { continue };
        let is_last = row.at::<Option<i64>>(7)? == Some(id);
        let shown = json!({
            "id": id,
            "name": row.at::<String>(1)?,
            "description": row.at::<String>(2)?,
            "status": status,
            "failed": row.at::<bool>(4)?,
            "type": PROJECT_UPDATES.type_name,
        });
        let names: &[&str] = match is_last {
            true => &["last_job", "last_update"],
            false if row.at::<String>(6)? != "check" || record.summary.contains_key("current_update") => {
                continue;
            }
            false => &["current_job", "current_update"],
        };
        if !is_last {
            record.set("status", status);
        }
        for name in names {
            record.summary.insert((*name).to_owned(), shown.clone());
            record.related.insert((*name).to_owned(), PROJECT_UPDATES.url(id).into());
        }
    }
    Ok(())
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
    listed(call, id, "playbooks", is_playbook).await
}

pub(super) async fn inventories(call: &Call, id: &str) -> Answer {
    listed(call, id, "inventories", is_inventory).await
}

async fn listed(call: &Call, id: &str, column: &'static str, wanted: fn(&Path, &str) -> bool) -> Answer {
    call.allow("GET, HEAD, OPTIONS")?;
    let project = generic::fetch(call, &PROJECTS, id).await?;
    if !project.text("scm_type").is_empty() {
        return ok(stored(&call.app.db, project.id, column).await?);
    }
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

/// One of the lists that were made when the project's tree came; nothing before that.
pub(super) async fn stored(db: &CoreDb, project: i64, column: &'static str) -> Result<Value, ApiError> {
    let mut query = Query::select();
    query.column(("t", column)).from_as("projects", "p");
    let of = Expr::col(("t", "digest")).equals(("p", "tree"));
    query.join_as(JoinType::InnerJoin, "trees", "t", of).and_where(Expr::col(("p", "id")).eq(project));
    let row = db.optional(&query).await?;
    let text = row.map(|row| row.at::<String>(0)).transpose()?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_else(|_| Value::Array(Vec::new())))
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
            let part =
                name.to_str().is_none_or(|name| name.starts_with('.') || project::PARTS.contains(&name));
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
    project::is_playbook(&peek(path))
}

/// A file that ansible-inventory might read.
fn is_inventory(path: &Path, name: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let executable = std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
    let name = name.rsplit('/').next().unwrap_or_default();
    project::is_inventory(name, executable, &peek(path))
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

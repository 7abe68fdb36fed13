//! `docs/awx-compatibility.md`: what unmodified clients of AWX were seen to do, resource by resource.
//!
//! Tests append a row for each resource, verb and client to a file below the target directory (`plexus_tests::proofs`). With
//! `--write` they are taken into a file of this repository, from which the page follows; `make test` checks that it does, and
//! that no resource and no verb of the registry is without a row.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use plexus_tests::{Binaries, proofs};
use serde_json::Value;

const PAGE: &str = "docs/awx-compatibility.md";
const PROOFS: &str = "tests/fixtures/compatibility.tsv";

/// Verbs that need no row, and why.
const UNPROVEN: [(&str, &str, &str); 4] = [
    ("project_updates", "get", NO_UPDATE),
    ("project_updates", "delete", NO_UPDATE),
    ("instances", "create", "nodes enrol themselves; a POST makes a token for one"),
    ("instances", "delete", "an operator's act, tested with enrolment"),
];

const NO_UPDATE: &str = "there is none before a project is fetched";

/// What is there and counts otherwise than in AWX.
const OTHERWISE: &str = "\n## Other than AWX\n\n\
- **Capacity by memory** is all of a node's memory over 100 MB for each fork. AWX takes 2 GiB off first, for its own web and task services, \
which no execution node of Plexus runs: the same machine shows 20 forks more here. `capacity_adjustment` and an instance's `enabled` mean the same.\n\
- **Memory and cores** are those that the node's control group leaves it, or that its configuration states; AWX counts the machine's.\n\
- **A job never fails because its node is away.** AWX fails it after three minutes; here it waits and says for what, until the node is back or \
somebody abandons it (`plexus work abandon`).\n";

const HEAD: &str = "# Clients of AWX\n\n\
    What the unmodified clients of AWX 24.6.1 do here: `awx` (awxkit from PyPI), the modules of the `awx.awx` collection, and plain \
    HTTP requests as people copy them from AWX's documentation. This page is written by tests: a mark stands where a test saw the \
    client do it against a controller with a node. `make verify` runs all of them, `make test` the heart.\n\n\
    ●: the client did it. A verb without a mark is not offered by that client.\n\n";

/// Resource, verb, client, proof.
type Row = (String, String, String, String);

/// Writes proofs and page, or compares the page with the proofs.
///
/// # Errors
/// When a resource or verb has no proof, a proof names a file that is gone, or the page is not what follows.
pub(crate) fn run(top: &Path, write: bool) -> anyhow::Result<()> {
    let kept = top.join(PROOFS);
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mut rows = parse(&read(&kept));
    if write {
        rows.extend(parse(&read(&proofs::recorded())));
        rows.retain(|(.., proof)| top.join(proof).is_file());
        let lines: String = rows.iter().map(|(a, b, c, d)| format!("{a}\t{b}\t{c}\t{d}\n")).collect();
        fs::write(&kept, lines).with_context(|| format!("cannot write {}", kept.display()))?;
    }
    for (.., proof) in &rows {
        ensure!(top.join(proof).is_file(), "{PROOFS} names {proof}, which is not there");
    }
    let page = page(&resources()?, &rows)?;
    let path = top.join(PAGE);
    if write {
        return fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()));
    }
    ensure!(read(&path) == page, "{PAGE} is not what {PROOFS} says; xtask docs --write mends it");
    Ok(())
}

fn parse(text: &str) -> BTreeSet<Row> {
    let row = |line: &str| -> Option<Row> {
        let mut words = line.split('\t').map(str::to_owned);
        Some((words.next()?, words.next()?, words.next()?, words.next()?))
    };
    text.lines().filter_map(row).collect()
}

fn resources() -> anyhow::Result<Value> {
    let mut command = Command::new(Binaries::of_this_build()?.controller());
    let output = command.args(["debug", "resources"]).output().context("cannot run the controller")?;
    serde_json::from_slice(&output.stdout).context("debug resources printed no JSON")
}

fn words(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn page(registry: &Value, rows: &BTreeSet<Row>) -> anyhow::Result<String> {
    let mut proven: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for (resource, verb, client, _) in rows {
        proven.entry((resource, verb)).or_default().insert(client);
    }
    let mut page = HEAD.to_owned();
    page.push_str("| resource | verb | `awx` | `awx.awx` | HTTP |\n|---|---|---|---|---|\n");
    let mut known = BTreeSet::new();
    let mut missing = Vec::new();
    for resource in registry["resources"].as_array().into_iter().flatten() {
        let key = resource["key"].as_str().context("a resource without key")?;
        known.insert(key);
        let mut verbs: Vec<&str> = words(&resource["verbs"]).collect();
        for verb in &verbs {
            let excused = UNPROVEN.iter().any(|(of, unproven, _)| (*of, *unproven) == (key, *verb));
            if !excused && !proven.contains_key(&(key, *verb)) {
                missing.push(format!("{key} {verb}"));
            }
        }
        verbs.extend(proven.keys().filter(|(of, _)| *of == key).map(|(_, verb)| *verb));
        table(&mut page, key, verbs, &proven);
    }
    let others: BTreeSet<&str> = proven.keys().map(|(of, _)| *of).filter(|of| !known.contains(of)).collect();
    for key in others {
        let verbs = proven.keys().filter(|(of, _)| *of == key).map(|(_, verb)| *verb).collect();
        table(&mut page, key, verbs, &proven);
    }
    if !missing.is_empty() {
        bail!(
            "no test shows a client doing this (run tests awx_matrix and awx_collection with PLEXUS_VERIFY=1, then xtask docs \
             --write): {}",
            missing.join(", ")
        );
    }
    page.push_str(OTHERWISE);
    page.push_str("\n## Not here yet\n\nTheir lists answer as lists of nothing, what would make one says what is missing:\n");
    let later: Vec<String> = registry["later"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|family| Some(format!("`{}`", family["key"].as_str()?)))
        .collect();
    let _ = writeln!(page, "{}.", later.join(", "));
    Ok(page)
}

fn table(page: &mut String, key: &str, verbs: Vec<&str>, proven: &BTreeMap<(&str, &str), BTreeSet<&str>>) {
    let mut shown = BTreeSet::new();
    for verb in verbs {
        if !shown.insert(verb) {
            continue;
        }
        let by = proven.get(&(key, verb));
        let mark = |client: &str| if by.is_some_and(|by| by.contains(client)) { "●" } else { "" };
        let why = UNPROVEN.iter().find(|(of, unproven, _)| by.is_none() && (*of, *unproven) == (key, verb));
        let verb = why.map_or_else(|| verb.to_owned(), |(.., why)| format!("{verb} ({why})"));
        let _ =
            writeln!(page, "| {key} | {verb} | {} | {} | {} |", mark("awx"), mark("awx.awx"), mark("http"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(text: &str) -> BTreeSet<Row> {
        parse(&text.replace(' ', "\t"))
    }

    #[test]
    fn a_verb_without_a_test_fails() {
        let registry =
            json!({"resources": [{"key": "teams", "verbs": ["list", "get"], "actions": []}], "later": []});
        let error = page(&registry, &rows("teams list awx a.rs\n")).unwrap_err().to_string();
        assert!(error.contains("teams get"), "{error}");
        assert!(page(&registry, &rows("teams list awx a.rs\nteams get http b.rs\n")).is_ok());
    }

    #[test]
    fn each_client_has_its_mark() {
        let registry = json!({"resources": [{"key": "teams", "verbs": ["list"], "actions": []}], "later": [{"key": "schedules"}]});
        let page =
            page(&registry, &rows("teams list awx a.rs\nteams list awx.awx a.yml\njobs launch http b.rs\n"));
        let page = page.unwrap();
        assert!(page.contains("| teams | list | ● | ● |  |\n"), "{page}");
        assert!(page.contains("| jobs | launch |  |  | ● |\n") && page.contains("`schedules`."), "{page}");
    }
}

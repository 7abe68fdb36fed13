//! The resources of the API, as the registry declares them, for the page of compatibility.

use std::io::Write;

use anyhow::Context as _;
use serde_json::json;

use crate::registry::{self, later};

pub(super) fn run() -> anyhow::Result<()> {
    let own = registry::ALL.iter().map(|resource| {
        let verbs = &resource.verbs;
        let mut offered = vec!["list", "get"];
        let more = [(verbs.create, "create"), (verbs.update, "modify"), (verbs.delete, "delete")];
        offered.extend(more.into_iter().filter(|(there, _)| *there).map(|(_, verb)| verb));
        json!({"key": resource.key, "label": resource.label, "verbs": offered, "actions": resource.actions})
    });
    let later = later::LATER.iter().map(|family| json!({"key": family.key, "label": family.label}));
    let report = json!({"resources": own.collect::<Vec<_>>(), "later": later.collect::<Vec<_>>()});
    writeln!(std::io::stdout().lock(), "{report}").context("cannot print")
}

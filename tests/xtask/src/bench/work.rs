//! Suite `work`: from the API to the first instruction and event, output, cancel, idle units, and projects on their way to a node.

mod container;
mod project;
mod unit;

use anyhow::Context as _;

use super::Row;

/// Measures every row whose name contains `only`.
///
/// # Errors
/// When a row cannot be measured.
pub(super) async fn run(only: Option<&str>) -> anyhow::Result<Vec<Row>> {
    let wanted = |name: &str| only.is_none_or(|part| name.contains(part));
    let mut rows = Vec::new();
    for hops in [0, 1, 3] {
        let name = unit::start_name(hops);
        if wanted(name) {
            rows.push(unit::start(hops).await.context(name)?);
        }
    }
    if wanted("work.cancel_p99_ms") {
        rows.push(unit::cancel().await.context("work.cancel_p99_ms")?);
    }
    if wanted("work.ee_cold_ratio") {
        rows.push(container::cold().await.context("work.ee_cold_ratio")?);
    }
    if wanted("work.cancel_ee_p99_ms") {
        rows.push(container::cancel().await.context("work.cancel_ee_p99_ms")?);
    }
    if project::NAMES.iter().any(|name| wanted(name)) {
        rows.extend(project::rows().await.context("work.project")?.into_iter().filter(|row| wanted(row.name)));
    }
    Ok(rows)
}

//! Where jobs may run: the instance groups of templates, inventories, organizations, and of single jobs.

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    // The id keeps the order in which groups were put on the list: the first one that has room is taken.
    for (table, here, of) in [
        ("job_template_instance_groups", "job_template_id", "job_templates"),
        ("inventory_instance_groups", "inventory_id", "inventories"),
        ("organization_instance_groups", "organization_id", "organizations"),
        ("unified_job_instance_groups", "unified_job_id", "unified_jobs"),
    ] {
        schema.table(table).id().reference(here, of, Gone::Row).reference(
            "instance_group_id",
            "instance_groups",
            Gone::Row,
        );
        schema.unique(table, &[here, "instance_group_id"]);
        schema.index(table, &["instance_group_id"]);
    }
}

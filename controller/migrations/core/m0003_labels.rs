//! Labels, and what wears them.

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    schema
        .table("labels")
        .id()
        .text("name")
        .reference("organization_id", "organizations", Gone::Row)
        .tracked();
    schema.unique("labels", &["organization_id", "name"]);

    for (table, here, of) in [
        ("job_template_labels", "job_template_id", "job_templates"),
        ("inventory_labels", "inventory_id", "inventories"),
        ("unified_job_labels", "unified_job_id", "unified_jobs"),
    ] {
        schema
            .table(table)
            .reference(here, of, Gone::Row)
            .reference("label_id", "labels", Gone::Row)
            .primary(&[here, "label_id"]);
        schema.index(table, &["label_id"]);
    }
}

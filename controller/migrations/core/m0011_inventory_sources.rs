//! Sources of inventories and their updates, inventories made of others, and commands that people run at once.

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    schema
        .table("inventory_sources")
        .id_of("unified_job_templates")
        .reference("inventory_id", "inventories", Gone::Row)
        .texts(&["source", "source_path", "source_vars", "scm_branch", "enabled_var", "enabled_value"])
        .texts(&["host_filter", "limit"])
        .flags(&["overwrite", "overwrite_vars", "update_on_launch", "last_update_failed"])
        .ints(&["timeout", "update_cache_timeout"])
        .int("verbosity", 1)
        .opt_time("last_updated")
        .opt_reference("source_project_id", "projects", Gone::Null)
        .opt_reference("credential_id", "credentials", Gone::Null);
    schema.index("inventory_sources", &["inventory_id"]);
    schema.index("inventory_sources", &["source_project_id"]);

    // What a source brought, so that it can take it away again.
    for (table, member, members) in
        [("inventory_source_hosts", "host_id", "hosts"), ("inventory_source_groups", "group_id", "groups")]
    {
        schema
            .table(table)
            .reference("inventory_source_id", "inventory_sources", Gone::Row)
            .reference(member, members, Gone::Row)
            .primary(&["inventory_source_id", member]);
        schema.index(table, &[member]);
    }

    // The inventories that another one is made of, in their order.
    schema.table("inventory_inputs").id().reference("inventory_id", "inventories", Gone::Row).reference(
        "input_id",
        "inventories",
        Gone::Row,
    );
    schema.unique("inventory_inputs", &["inventory_id", "input_id"]);
    schema.index("inventory_inputs", &["input_id"]);

    // How often each name was automated, whatever became of its hosts.
    schema
        .table("host_metrics")
        .id()
        .text("hostname")
        .time("first_automation")
        .time("last_automation")
        .opt_time("last_deleted")
        .ints(&["automated_counter", "deleted_counter"])
        .flag("deleted", false)
        .opt_int("used_in_inventories");
    schema.unique("host_metrics", &["hostname"]);

    // An update keeps what its source said, a command what it was started with.
    schema
        .extend("unified_jobs")
        .opt_reference("inventory_source_id", "inventory_sources", Gone::Null)
        .opt_reference("source_project_id", "projects", Gone::Null)
        .texts(&["source", "source_path", "source_vars", "enabled_var", "enabled_value", "host_filter"])
        .flags(&["overwrite", "overwrite_vars", "license_error", "org_host_limit_error"])
        .texts(&["module_name", "module_args"]);
    schema.index("unified_jobs", &["inventory_source_id", "id"]);
}

//! The first tables: who may come in, what can be run, and the record of what ran.

use sea_query::{Expr, ExprTrait};

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    people(schema);
    organizations(schema);
    credentials(schema);
    inventories(schema);
    templates(schema);
    jobs(schema);
    fleet(schema);
}

fn people(schema: &mut Schema) {
    schema.table("settings").primary_text("key").text("value");

    schema
        .table("users")
        .id()
        .texts(&["username", "password_hash", "first_name", "last_name", "email"])
        .flags(&["is_superuser", "is_system_auditor"])
        .opt_time("last_login")
        .stamped();
    schema.unique("users", &["username"]);

    // Only the SHA-256 of a token is kept: it is 30 random letters, so nothing slower is needed.
    schema
        .table("tokens")
        .id()
        .reference("user_id", "users", Gone::Row)
        .bytes("token_hash")
        .texts(&["description", "scope"])
        .time("expires")
        .opt_time("last_used")
        .stamped();
    schema.unique("tokens", &["token_hash"]);
    schema.index("tokens", &["user_id"]);

    schema
        .table("sessions")
        .primary_bytes("key_hash")
        .reference("user_id", "users", Gone::Row)
        .time("created")
        .time("expires");
    schema.index("sessions", &["user_id"]);
}

fn organizations(schema: &mut Schema) {
    schema
        .table("organizations")
        .id()
        .texts(&["name", "description"])
        .int("max_hosts", 0)
        .opt_reference("default_environment_id", "execution_environments", Gone::Null)
        .tracked();
    schema.unique("organizations", &["name"]);

    schema
        .table("execution_environments")
        .id()
        .texts(&["name", "description", "image", "pull"])
        .flag("managed", false)
        .opt_reference("organization_id", "organizations", Gone::Row)
        .opt_reference("credential_id", "credentials", Gone::Null)
        .tracked();
    schema.unique("execution_environments", &["name"]);
}

fn credentials(schema: &mut Schema) {
    schema
        .table("credential_types")
        .id()
        .texts(&["name", "description", "kind"])
        .opt_text("namespace")
        .flag("managed", false)
        .texts(&["inputs", "injectors"])
        .tracked();
    schema.unique("credential_types", &["name", "kind"]);

    // `inputs` is one JSON object; the values of its secret fields are sealed by the vault, each bound to this row
    // and its field.
    schema
        .table("credentials")
        .id()
        .texts(&["name", "description"])
        .flag("managed", false)
        .reference("credential_type_id", "credential_types", Gone::Refuse)
        .opt_reference("organization_id", "organizations", Gone::Row)
        .opt_reference("user_id", "users", Gone::Null)
        .text("inputs")
        .tracked();
    schema.unique("credentials", &["organization_id", "name", "credential_type_id"]);
    schema.index("credentials", &["credential_type_id"]);
}

fn inventories(schema: &mut Schema) {
    schema
        .table("inventories")
        .id()
        .texts(&["name", "description", "kind"])
        .opt_text("host_filter")
        .reference("organization_id", "organizations", Gone::Row)
        .text("variables")
        .flags(&["prevent_instance_group_fallback", "pending_deletion"])
        .tracked();
    schema.unique("inventories", &["organization_id", "name"]);

    schema
        .table("hosts")
        .id()
        .texts(&["name", "description"])
        .reference("inventory_id", "inventories", Gone::Row)
        .flag("enabled", true)
        .texts(&["instance_id", "variables"])
        .opt_int("last_job_id")
        .opt_int("last_job_host_summary_id")
        .flag("has_active_failures", false)
        .tracked();
    schema.unique("hosts", &["inventory_id", "name"]);

    schema
        .table("groups")
        .id()
        .texts(&["name", "description"])
        .reference("inventory_id", "inventories", Gone::Row)
        .text("variables")
        .tracked();
    schema.unique("groups", &["inventory_id", "name"]);

    schema
        .table("group_hosts")
        .reference("group_id", "groups", Gone::Row)
        .reference("host_id", "hosts", Gone::Row)
        .primary(&["group_id", "host_id"]);
    schema.index("group_hosts", &["host_id"]);

    schema
        .table("group_children")
        .reference("group_id", "groups", Gone::Row)
        .reference("child_id", "groups", Gone::Row)
        .primary(&["group_id", "child_id"]);
    schema.index("group_children", &["child_id"]);
}

fn templates(schema: &mut Schema) {
    // One id space for everything that can be launched; `kind` says which table holds the rest.
    schema
        .table("unified_job_templates")
        .id()
        .texts(&["kind", "name", "description"])
        .opt_reference("organization_id", "organizations", Gone::Null)
        .opt_reference("execution_environment_id", "execution_environments", Gone::Null)
        .text("status")
        .opt_int("last_job_id")
        .flag("last_job_failed", false)
        .opt_time("last_job_run")
        .opt_time("next_job_run")
        .tracked();
    schema.unique("unified_job_templates", &["kind", "organization_id", "name"]);
    schema.index("unified_job_templates", &["name"]);

    schema
        .table("projects")
        .id_of("unified_job_templates")
        .texts(&["local_path", "scm_type", "scm_url", "scm_branch", "scm_refspec", "scm_revision"])
        .flags(&["scm_clean", "scm_track_submodules", "scm_delete_on_update", "scm_update_on_launch"])
        .flags(&["allow_override", "last_update_failed"])
        .ints(&["timeout", "scm_update_cache_timeout"])
        .opt_time("last_updated")
        .opt_reference("credential_id", "credentials", Gone::Null)
        .opt_reference("signature_validation_credential_id", "credentials", Gone::Null)
        .opt_reference("default_environment_id", "execution_environments", Gone::Null);

    schema
        .table("job_templates")
        .id_of("unified_job_templates")
        .texts(&["job_type", "playbook", "scm_branch", "limit", "extra_vars", "job_tags", "skip_tags"])
        .texts(&["start_at_task", "host_config_key", "survey_spec", "webhook_service", "webhook_key"])
        .ints(&["forks", "verbosity", "timeout"])
        .int("job_slice_count", 1)
        .flags(&["force_handlers", "use_fact_cache", "survey_enabled", "become_enabled", "diff_mode"])
        .flags(&["allow_simultaneous", "prevent_instance_group_fallback"])
        .flags(&["ask_scm_branch_on_launch", "ask_diff_mode_on_launch", "ask_variables_on_launch"])
        .flags(&["ask_limit_on_launch", "ask_tags_on_launch", "ask_skip_tags_on_launch"])
        .flags(&["ask_job_type_on_launch", "ask_verbosity_on_launch", "ask_inventory_on_launch"])
        .flags(&["ask_credential_on_launch", "ask_execution_environment_on_launch"])
        .flags(&["ask_labels_on_launch", "ask_forks_on_launch", "ask_job_slice_count_on_launch"])
        .flags(&["ask_timeout_on_launch", "ask_instance_groups_on_launch"])
        .opt_reference("inventory_id", "inventories", Gone::Null)
        .opt_reference("project_id", "projects", Gone::Null)
        .opt_reference("webhook_credential_id", "credentials", Gone::Null);
    schema.index("job_templates", &["project_id"]);
    schema.index("job_templates", &["inventory_id"]);

    schema
        .table("job_template_credentials")
        .reference("job_template_id", "job_templates", Gone::Row)
        .reference("credential_id", "credentials", Gone::Row)
        .primary(&["job_template_id", "credential_id"]);
    schema.index("job_template_credentials", &["credential_id"]);
}

fn jobs(schema: &mut Schema) {
    // One id space for everything that runs. A job keeps what it was launched with, so later edits of its template
    // change nothing; references become null when their object goes.
    schema
        .table("unified_jobs")
        .id()
        .texts(&["kind", "name", "description", "launch_type", "status", "job_explanation"])
        .text("result_traceback")
        .flag("failed", false)
        .opt_time("started")
        .opt_time("finished")
        .opt_time("canceled_on")
        .real("elapsed", 0.0)
        .flag("cancel_flag", false)
        .opt_time("cancel_requested_at")
        .flag("event_processing_finished", false)
        .opt_int("unified_job_template_id")
        .opt_reference("organization_id", "organizations", Gone::Null)
        .opt_reference("execution_environment_id", "execution_environments", Gone::Null)
        .opt_texts(&["image", "pull", "image_digest", "image_reason"])
        .texts(&["execution_node", "controller_node"])
        .opt_int("instance_group_id")
        .texts(&["job_args", "job_cwd", "job_env"])
        // Job
        .opt_reference("job_template_id", "job_templates", Gone::Null)
        .opt_reference("inventory_id", "inventories", Gone::Null)
        .opt_reference("project_id", "projects", Gone::Null)
        .texts(&["job_type", "playbook", "scm_branch", "scm_revision", "limit", "extra_vars", "job_tags"])
        .texts(&["skip_tags", "start_at_task", "webhook_service", "webhook_guid"])
        .ints(&["forks", "verbosity", "timeout", "job_slice_number"])
        .int("job_slice_count", 1)
        .flags(&["force_handlers", "use_fact_cache", "become_enabled", "diff_mode", "allow_simultaneous"])
        .texts(&["survey_passwords", "artifacts"])
        // Passwords that were asked for at launch, sealed by the vault.
        .opt_text("start_args")
        .opt_text("host_status_counts")
        .ints(&["play_count", "task_count"])
        .tracked();
    schema.index("unified_jobs", &["unified_job_template_id", "id"]);
    schema.index("unified_jobs", &["job_template_id", "id"]);
    // What the reconciler looks for: few rows, however many jobs there were.
    schema.index_where(
        "unified_jobs",
        &["status"],
        Expr::col("status").is_in(["new", "pending", "waiting", "running"]),
    );

    schema
        .table("unified_job_credentials")
        .reference("unified_job_id", "unified_jobs", Gone::Row)
        .reference("credential_id", "credentials", Gone::Row)
        .primary(&["unified_job_id", "credential_id"]);
    schema.index("unified_job_credentials", &["credential_id"]);

    schema
        .table("job_host_summaries")
        .id()
        .reference("job_id", "unified_jobs", Gone::Row)
        .opt_reference("host_id", "hosts", Gone::Null)
        .text("host_name")
        .ints(&["changed", "dark", "failures", "ok", "processed", "skipped", "ignored", "rescued"])
        .flag("failed", false)
        .stamped();
    schema.unique("job_host_summaries", &["job_id", "host_name"]);
    schema.index("job_host_summaries", &["host_id"]);

    // A unit is one thing a node runs for a job; its id is bytes, as on the wire.
    schema
        .table("units")
        .primary_bytes("unit_id")
        .int("attempt", 1)
        .reference("job_id", "unified_jobs", Gone::Row)
        .text("node")
        .opt_bytes("store_id")
        .ints(&["owner_incarnation", "owner_counter"])
        .text("state")
        .time("created")
        .opt_time("forgotten");
    schema.unique("units", &["job_id"]);
    schema.index_where("units", &["node"], Expr::col("forgotten").is_null());
}

fn fleet(schema: &mut Schema) {
    schema
        .table("instances")
        .id()
        .texts(&["hostname", "uuid", "node_type", "node_state", "version", "ip_address", "errors"])
        .opt_bytes("store_id")
        .ints(&["cpu_millis", "memory", "cpu_capacity", "mem_capacity", "capacity"])
        .real("capacity_adjustment", 1.0)
        .flag("enabled", true)
        .flag("managed_by_policy", true)
        .flag("managed", false)
        .opt_time("last_seen")
        .opt_time("last_health_check")
        .stamped();
    schema.unique("instances", &["hostname"]);

    schema
        .table("instance_groups")
        .id()
        .text("name")
        .ints(&["max_concurrent_jobs", "max_forks"])
        .ints(&["policy_instance_percentage", "policy_instance_minimum"])
        .texts(&["policy_instance_list", "pod_spec_override"])
        .flag("is_container_group", false)
        .opt_reference("credential_id", "credentials", Gone::Null)
        .stamped();
    schema.unique("instance_groups", &["name"]);

    schema
        .table("instance_group_members")
        .reference("instance_group_id", "instance_groups", Gone::Row)
        .reference("instance_id", "instances", Gone::Row)
        .primary(&["instance_group_id", "instance_id"]);
    schema.index("instance_group_members", &["instance_id"]);
}

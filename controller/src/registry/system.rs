//! What the controller does for itself, as jobs: AWX's management jobs.

use super::field::{choice, flag, float, id, long_text, text, time};
use super::jobs::JOB_STATUS;
use super::{
    Access, By, Duplicate, EXECUTION_ENVIRONMENTS, Field, ORGANIZATIONS, Owner, Resource, SubList, Table,
    UNIFIED_JOB_TEMPLATES, Verbs,
};

/// What a management job does, by AWX's words.
pub(super) const JOB_TYPES: &[(&str, &str)] = &[
    ("cleanup_jobs", "Remove jobs older than a certain number of days"),
    ("cleanup_activitystream", "Remove activity stream entries older than a certain number of days"),
    ("cleanup_sessions", "Removes expired browser sessions from the database"),
    ("cleanup_tokens", "Removes expired OAuth 2 access tokens and refresh tokens"),
];

const NAME: Field = text("name").max(512).read_only();
const DESCRIPTION: Field = long_text("description").read_only();

/// What can be launched: made at the first start.
pub static SYSTEM_JOB_TEMPLATES: Resource = Resource {
    key: "system_job_templates",
    path: "system_job_templates",
    type_name: "system_job_template",
    model: "SystemJobTemplate",
    label: "System Job Template",
    table: Table::own("unified_job_templates").of_kind("system_job_template"),
    fields: &[
        NAME,
        DESCRIPTION,
        time("last_job_run"),
        flag("last_job_failed").read_only(),
        time("next_job_run"),
        choice("status", JOB_STATUS).read_only(),
        id("execution_environment", &EXECUTION_ENVIRONMENTS).read_only(),
        id("organization", &ORGANIZATIONS).read_only(),
        choice("job_type", JOB_TYPES).computed().read_only(),
    ],
    lists: &[SubList { name: "jobs", of: &SYSTEM_JOBS, by: By::Field("unified_job_template") }],
    actions: &["launch"],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["start"],
    order: &["name"],
    natural_key: &["name"],
    duplicate: Duplicate::Field("name"),
    verbs: Verbs::READ,
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Management jobs that run or ran.
pub static SYSTEM_JOBS: Resource = Resource {
    key: "system_jobs",
    path: "system_jobs",
    type_name: "system_job",
    model: "SystemJob",
    label: "System Job",
    table: Table::own("unified_jobs").of_kind("system_job"),
    fields: &[
        NAME,
        DESCRIPTION,
        id("unified_job_template", &UNIFIED_JOB_TEMPLATES).read_only(),
        text("launch_type").read_only(),
        choice("status", JOB_STATUS).read_only(),
        flag("failed").read_only(),
        time("started"),
        time("finished"),
        time("canceled_on"),
        float("elapsed").read_only(),
        long_text("job_explanation").read_only(),
        text("execution_node").read_only(),
        text("controller_node").read_only(),
        flag("event_processing_finished").read_only().detail(),
        id("system_job_template", &SYSTEM_JOB_TEMPLATES).column("unified_job_template_id").read_only(),
        choice("job_type", JOB_TYPES).read_only(),
        long_text("extra_vars").read_only().unfilterable(),
        long_text("result_stdout").computed().read_only(),
    ],
    lists: &[],
    actions: &["cancel"],
    search: &["name", "description"],
    summary: &["name", "description", "status", "failed", "elapsed"],
    capabilities: &["delete", "start"],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs::DELETE,
    owner: Owner::Installation,
    access: Access::Roles,
};

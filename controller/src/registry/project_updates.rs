//! Updates of projects: jobs that fetch what other jobs run.

use super::field::{choice, flag, id, int, json, text};
use super::jobs::{DESCRIPTION, LAUNCHED, NAME, STATUS, environment, organization, ran, template};
use super::templates::SCM_TYPES;
use super::{Access, CREDENTIALS, Duplicate, INSTANCE_GROUPS, Owner, PROJECTS, Resource, Table, Verbs};

/// What an update does, by AWX's words: fetch for everybody, or for the one job that waits for it.
const JOB_TYPES: &[(&str, &str)] = &[("run", "Run"), ("check", "Check")];

/// Updates that run or ran.
pub static PROJECT_UPDATES: Resource = Resource {
    key: "project_updates",
    path: "project_updates",
    type_name: "project_update",
    model: "ProjectUpdate",
    label: "Project Update",
    table: Table::own("unified_jobs").of_kind("project_update"),
    fields: ran![
        [NAME, DESCRIPTION, template(), LAUNCHED, STATUS, environment(),],
        [
            text("local_path").read_only(),
            choice("scm_type", SCM_TYPES).read_only().label("SCM Type"),
            text("scm_url").read_only().label("SCM URL"),
            text("scm_branch").read_only().label("SCM Branch"),
            text("scm_refspec").read_only().label("SCM refspec"),
            flag("scm_clean").read_only().label("SCM Clean"),
            flag("scm_track_submodules").read_only().label("SCM Track Submodules"),
            flag("scm_delete_on_update").read_only().label("SCM Delete On Update"),
            id("credential", &CREDENTIALS).read_only(),
            int("timeout").read_only(),
            text("scm_revision")
                .read_only()
                .label("SCM Revision")
                .help("The SCM Revision discovered by this update."),
            id("project", &PROJECTS).read_only(),
            organization(),
            id("instance_group", &INSTANCE_GROUPS).read_only(),
            choice("job_type", JOB_TYPES).read_only(),
            text("job_tags").read_only().help("Parts of the project update playbook that will be run."),
            json("host_status_counts").null().read_only().detail().unfilterable(),
            json("playbook_counts").computed().read_only().detail(),
        ]
    ],
    lists: &[],
    actions: &["events", "stdout", "cancel", "why", "activity_stream"],
    search: &["name", "description"],
    summary: &["name", "description", "status", "failed", "elapsed", "canceled_on"],
    capabilities: &["delete", "start"],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs::DELETE,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

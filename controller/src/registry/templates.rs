//! What can be launched: projects and job templates, which share one id space.

use super::field::{
    Preset, choice, description, flag, id, int, int_choice, json, name, text, time, variables,
};
use super::{
    Access, By, CREDENTIALS, Duplicate, EXECUTION_ENVIRONMENTS, Field, INSTANCE_GROUPS, INVENTORIES,
    INVENTORY_SOURCES, JOBS, LABELS, ORGANIZATIONS, Owner, PROJECT_UPDATES, Resource, SYSTEM_JOB_TEMPLATES,
    SubList, Table, UNIFIED_JOBS, Verbs,
};

/// What ansible-playbook does: change things, or say what it would change.
pub(super) const JOB_TYPES: &[(&str, &str)] = &[("run", "Run"), ("check", "Check")];

/// How much ansible-playbook tells.
pub(super) const VERBOSITY: &[(i64, &str)] = &[
    (0, "0 (Normal)"),
    (1, "1 (Verbose)"),
    (2, "2 (More Verbose)"),
    (3, "3 (Debug)"),
    (4, "4 (Connection Debug)"),
    (5, "5 (WinRM Debug)"),
];

/// Most forks a template may ask for.
pub(super) const MAX_FORKS: i64 = 200;

/// Where a project comes from.
pub(super) const SCM_TYPES: &[(&str, &str)] = &[
    ("", "Manual"),
    ("git", "Git"),
    ("svn", "Subversion"),
    ("insights", "Red Hat Insights"),
    ("archive", "Remote Archive"),
];

const TEMPLATE_STATUS: &[(&str, &str)] = &[
    ("new", "New"),
    ("pending", "Pending"),
    ("waiting", "Waiting"),
    ("running", "Running"),
    ("successful", "Successful"),
    ("failed", "Failed"),
    ("error", "Error"),
    ("canceled", "Canceled"),
    ("never updated", "Never Updated"),
    ("ok", "OK"),
    ("missing", "Missing"),
];

const SHARED_NAME: Field = name().shared();
const SHARED_DESCRIPTION: Field = description().shared();
pub(super) const SHARED_STATUS: Field = choice("status", TEMPLATE_STATUS).shared().read_only();
pub(super) const fn last_job() -> Field {
    id("last_job", &UNIFIED_JOBS).shared().read_only()
}
pub(super) const LAST_JOB_RUN: Field = time("last_job_run").shared();
pub(super) const LAST_JOB_FAILED: Field = flag("last_job_failed").shared().read_only();
pub(super) const NEXT_JOB_RUN: Field = time("next_job_run").shared();

/// Trees of playbooks.
pub static PROJECTS: Resource = Resource {
    key: "projects",
    path: "projects",
    type_name: "project",
    model: "Project",
    label: "Project",
    table: Table::child("projects", "unified_job_templates", "project"),
    fields: &[
        SHARED_NAME.help("Name of this project."),
        SHARED_DESCRIPTION,
        text("local_path")
            .help("Local path (relative to the projects root) containing playbooks of this project."),
        choice("scm_type", SCM_TYPES)
            .label("SCM Type")
            .help("Specifies the source control system used to store the project."),
        text("scm_url").label("SCM URL").help("The location where the project is stored."),
        text("scm_branch").max(256).label("SCM Branch").help("Specific branch, tag or commit to checkout."),
        text("scm_refspec").label("SCM refspec").help("For git projects, an additional refspec to fetch."),
        flag("scm_clean").label("SCM Clean").help("Discard any local changes before syncing the project."),
        flag("scm_track_submodules").label("SCM Track Submodules"),
        flag("scm_delete_on_update").label("SCM Delete On Update").help("Delete the project before syncing."),
        id("credential", &CREDENTIALS),
        int("timeout").help("The amount of time (in seconds) to run before the task is canceled."),
        text("scm_revision")
            .read_only()
            .label("SCM Revision")
            .help("The last revision fetched by a project update"),
        LAST_JOB_RUN,
        LAST_JOB_FAILED,
        NEXT_JOB_RUN,
        SHARED_STATUS,
        id("organization", &ORGANIZATIONS)
            .shared()
            .help("The organization used to determine access to this template."),
        flag("scm_update_on_launch")
            .label("SCM Update On Launch")
            .help("Update the project when a job is launched that uses the project."),
        int("scm_update_cache_timeout")
            .label("SCM Update Cache Timeout")
            .help("Seconds after the last project update ran within which a new one is not launched."),
        flag("allow_override").help("Allow changing the SCM branch or revision in a job template."),
        id("default_environment", &EXECUTION_ENVIRONMENTS)
            .help("The default execution environment for jobs run using this project."),
        id("signature_validation_credential", &CREDENTIALS),
        flag("last_update_failed").read_only(),
        time("last_updated"),
    ],
    lists: &[
        SubList { name: "job_templates", of: &JOB_TEMPLATES, by: By::Field("project") },
        SubList { name: "project_updates", of: &PROJECT_UPDATES, by: By::Field("project") },
    ],
    actions: &[
        "copy",
        "update",
        "playbooks",
        "inventories",
        "object_roles",
        "access_list",
        "activity_stream",
    ],
    search: &["name", "description"],
    summary: &["name", "description", "status", "scm_type", "allow_override"],
    capabilities: &["edit", "delete", "start", "schedule", "copy"],
    order: &["id"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Combination(&["organization", "name"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Job templates.
pub static JOB_TEMPLATES: Resource = Resource {
    key: "job_templates",
    path: "job_templates",
    type_name: "job_template",
    model: "JobTemplate",
    label: "Job Template",
    table: Table::child("job_templates", "unified_job_templates", "job_template"),
    fields: &[
        SHARED_NAME.help("Name of this job template."),
        SHARED_DESCRIPTION,
        choice("job_type", JOB_TYPES).preset(Preset::Text("run")),
        id("inventory", &INVENTORIES),
        id("project", &super::PROJECTS),
        text("playbook"),
        text("scm_branch").help("Branch to use in job run. Project default used if blank."),
        int("forks").range(0, MAX_FORKS),
        text("limit"),
        int_choice("verbosity", VERBOSITY),
        variables("extra_vars"),
        text("job_tags"),
        flag("force_handlers"),
        text("skip_tags"),
        text("start_at_task"),
        int("timeout")
            .range(-2_147_483_648, 2_147_483_647)
            .help("The amount of time (in seconds) to run before the task is canceled."),
        flag("use_fact_cache").help("If enabled, the service will act as an Ansible Fact Cache Plugin."),
        id("organization", &ORGANIZATIONS)
            .shared()
            .read_only()
            .help("The organization used to determine access to this template."),
        LAST_JOB_RUN,
        LAST_JOB_FAILED,
        NEXT_JOB_RUN,
        SHARED_STATUS,
        id("execution_environment", &EXECUTION_ENVIRONMENTS)
            .shared()
            .help("The container image to be used for execution."),
        text("host_config_key"),
        flag("ask_scm_branch_on_launch"),
        flag("ask_diff_mode_on_launch"),
        flag("ask_variables_on_launch"),
        flag("ask_limit_on_launch"),
        flag("ask_tags_on_launch"),
        flag("ask_skip_tags_on_launch"),
        flag("ask_job_type_on_launch"),
        flag("ask_verbosity_on_launch"),
        flag("ask_inventory_on_launch"),
        flag("ask_credential_on_launch"),
        flag("ask_execution_environment_on_launch"),
        flag("ask_labels_on_launch"),
        flag("ask_forks_on_launch"),
        flag("ask_job_slice_count_on_launch"),
        flag("ask_timeout_on_launch"),
        flag("ask_instance_groups_on_launch"),
        flag("survey_enabled"),
        flag("become_enabled"),
        flag("diff_mode")
            .help("If enabled, textual changes made to any templated files on the host are shown."),
        flag("allow_simultaneous"),
        int("job_slice_count")
            .range(0, 2_147_483_647)
            .preset(Preset::Int(1))
            .help("The number of jobs to slice into at runtime."),
        choice(
            "webhook_service",
            &[
                ("", "---------"),
                ("github", "GitHub"),
                ("gitlab", "GitLab"),
                ("bitbucket_dc", "BitBucket DataCenter"),
            ],
        )
        .help("Service that webhook requests will be accepted from"),
        id("webhook_credential", &CREDENTIALS),
        flag("prevent_instance_group_fallback"),
        json("credentials").computed().write_only().help("Ids of the credentials to attach."),
    ],
    lists: &[
        SubList { name: "jobs", of: &JOBS, by: By::Field("job_template") },
        SubList {
            name: "instance_groups",
            of: &INSTANCE_GROUPS,
            by: By::Pairs {
                table: "job_template_instance_groups",
                here: "job_template_id",
                there: "instance_group_id",
                writable: true,
            },
        },
        SubList {
            name: "credentials",
            of: &CREDENTIALS,
            by: By::Pairs {
                table: "job_template_credentials",
                here: "job_template_id",
                there: "credential_id",
                writable: true,
            },
        },
        SubList {
            name: "labels",
            of: &LABELS,
            by: By::Pairs {
                table: "job_template_labels",
                here: "job_template_id",
                there: "label_id",
                writable: true,
            },
        },
    ],
    actions: &[
        "copy",
        "launch",
        "plan",
        "survey_spec",
        "callback",
        "object_roles",
        "access_list",
        "activity_stream",
    ],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete", "start", "schedule", "copy"],
    order: &["name"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Combination(&["organization", "name"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Projects and job templates in one list.
pub static UNIFIED_JOB_TEMPLATES: Resource = Resource {
    key: "unified_job_templates",
    path: "unified_job_templates",
    type_name: "unified_job_template",
    model: "UnifiedJobTemplate",
    label: "Unified Job Template",
    table: Table::own("unified_job_templates").shared_by(&[
        &PROJECTS,
        &INVENTORY_SOURCES,
        &JOB_TEMPLATES,
        &SYSTEM_JOB_TEMPLATES,
    ]),
    fields: &[
        name(),
        description(),
        time("last_job_run"),
        flag("last_job_failed").read_only(),
        time("next_job_run"),
        choice("status", TEMPLATE_STATUS).read_only(),
        id("execution_environment", &EXECUTION_ENVIRONMENTS).read_only(),
        id("organization", &ORGANIZATIONS).read_only(),
        last_job(),
    ],
    lists: &[],
    actions: &[],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete", "start", "schedule", "copy"],
    order: &["name"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Combination(&["organization", "name"]),
    verbs: Verbs::READ,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

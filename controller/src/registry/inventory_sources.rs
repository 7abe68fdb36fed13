//! Sources of inventories, and the jobs that bring what they have.

use super::field::{
    Preset, choice, description, flag, id, int, int_choice, long_text, name, text, time, variables,
};
use super::jobs::{DESCRIPTION, LAUNCHED, NAME, STATUS, environment, organization, ran, template};
use super::templates::{LAST_JOB_FAILED, LAST_JOB_RUN, NEXT_JOB_RUN, SHARED_STATUS, last_job};
use super::{
    Access, By, CREDENTIALS, Duplicate, EXECUTION_ENVIRONMENTS, GROUPS, HOSTS, INSTANCE_GROUPS, INVENTORIES,
    Owner, PROJECTS, Resource, SubList, Table, Verbs,
};

/// Where hosts come from.
const SOURCES: &[(&str, &str)] = &[
    ("file", "File, Directory or Script"),
    ("constructed", "Template additional groups and hostvars at runtime"),
    ("scm", "Sourced from a Project"),
    ("ec2", "Amazon EC2"),
    ("gce", "Google Compute Engine"),
    ("azure_rm", "Microsoft Azure Resource Manager"),
    ("vmware", "VMware vCenter"),
    ("satellite6", "Red Hat Satellite 6"),
    ("openstack", "OpenStack"),
    ("rhv", "Red Hat Virtualization"),
    ("controller", "Red Hat Ansible Automation Platform"),
    ("insights", "Red Hat Insights"),
    ("terraform", "Terraform State"),
    ("openshift_virtualization", "OpenShift Virtualization"),
];

/// How much ansible-inventory tells.
pub(super) const VERBOSITY: &[(i64, &str)] = &[(0, "0 (WARNING)"), (1, "1 (INFO)"), (2, "2 (DEBUG)")];

/// Sources of inventories.
pub static INVENTORY_SOURCES: Resource = Resource {
    key: "inventory_sources",
    path: "inventory_sources",
    type_name: "inventory_source",
    model: "InventorySource",
    label: "Inventory Source",
    table: Table::child("inventory_sources", "unified_job_templates", "inventory_source"),
    fields: &[
        name().shared().help("Name of this inventory source."),
        description().shared(),
        choice("source", SOURCES).required(),
        text("source_path").help("File, directory or script of the project."),
        variables("source_vars").help("Inventory source variables in YAML or JSON format."),
        text("scm_branch")
            .label("SCM Branch")
            .help("Inventory source SCM branch. Project default used if blank. Only allowed if project allow_override field is set to true."),
        id("credential", &CREDENTIALS).help("Cloud credential to use for inventory updates."),
        text("enabled_var").help(
            "Retrieve the enabled state from the given dict of host variables. May be specified as foo.bar to look into nested dicts.",
        ),
        text("enabled_value").help("Only used when enabled_var is set: the value of a host that is enabled."),
        text("host_filter").help("Regex: only hosts whose name matches it from its beginning are imported."),
        flag("overwrite").help("Overwrite local groups and hosts from remote inventory source."),
        flag("overwrite_vars").help("Overwrite local variables from remote inventory source."),
        int("timeout").help("The amount of time (in seconds) to run before the task is canceled."),
        int_choice("verbosity", VERBOSITY).preset(Preset::Int(1)),
        long_text("limit").help("Enter host, group or pattern match"),
        last_job(),
        LAST_JOB_RUN,
        LAST_JOB_FAILED,
        NEXT_JOB_RUN,
        SHARED_STATUS,
        id("execution_environment", &EXECUTION_ENVIRONMENTS)
            .shared()
            .help("The container image to be used for execution."),
        id("inventory", &INVENTORIES).required(),
        flag("update_on_launch"),
        int("update_cache_timeout"),
        id("source_project", &PROJECTS).help("Project containing inventory file used as source."),
        flag("last_update_failed").read_only(),
        time("last_updated"),
    ],
    lists: &[
        SubList { name: "inventory_updates", of: &INVENTORY_UPDATES, by: By::Field("inventory_source") },
        SubList {
            name: "hosts",
            of: &HOSTS,
            by: By::Pairs {
                table: "inventory_source_hosts",
                here: "inventory_source_id",
                there: "host_id",
                writable: false,
            },
        },
        SubList {
            name: "groups",
            of: &GROUPS,
            by: By::Pairs {
                table: "inventory_source_groups",
                here: "inventory_source_id",
                there: "group_id",
                writable: false,
            },
        },
    ],
    actions: &["update", "credentials", "activity_stream"],
    search: &["name", "description"],
    summary: &["name", "description", "source", "last_updated", "status"],
    capabilities: &["edit", "start", "schedule", "delete"],
    order: &["inventory", "name"],
    natural_key: &["name", "inventory"],
    duplicate: Duplicate::Together(&["name", "inventory"]),
    verbs: Verbs::ALL,
    owner: Owner::Through("inventory"),
    access: Access::Roles,
};

/// Updates that run or ran.
pub static INVENTORY_UPDATES: Resource = Resource {
    key: "inventory_updates",
    path: "inventory_updates",
    type_name: "inventory_update",
    model: "InventoryUpdate",
    label: "Inventory Update",
    table: Table::own("unified_jobs").of_kind("inventory_update"),
    fields: ran![
        [NAME, DESCRIPTION, template(), LAUNCHED, STATUS, environment(),],
        [
            choice("source", SOURCES).read_only(),
            text("source_path").read_only(),
            long_text("source_vars").read_only().unfilterable(),
            text("scm_branch").read_only().label("SCM Branch"),
            id("credential", &CREDENTIALS).read_only(),
            text("enabled_var").read_only(),
            text("enabled_value").read_only(),
            text("host_filter").read_only(),
            flag("overwrite").read_only(),
            flag("overwrite_vars").read_only(),
            int("timeout").read_only(),
            int_choice("verbosity", VERBOSITY).read_only(),
            long_text("limit").read_only(),
            id("inventory", &INVENTORIES).read_only(),
            id("inventory_source", &INVENTORY_SOURCES).read_only(),
            flag("license_error").read_only(),
            flag("org_host_limit_error").read_only(),
            id("source_project", &PROJECTS).read_only(),
            organization(),
            id("instance_group", &INSTANCE_GROUPS).read_only(),
            text("scm_revision").read_only().label("SCM Revision"),
        ]
    ],
    lists: &[SubList {
        name: "credentials",
        of: &CREDENTIALS,
        by: By::Pairs {
            table: "unified_job_credentials",
            here: "unified_job_id",
            there: "credential_id",
            writable: false,
        },
    }],
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

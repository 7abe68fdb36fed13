//! Commands that people run at once, on hosts of an inventory.

use super::field::{Preset, choice, flag, id, int, int_choice, long_text, text};
use super::jobs::{LAUNCHED, NAME, STATUS, organization, ran};
use super::templates::{JOB_TYPES, MAX_FORKS, VERBOSITY};
use super::{
    Access, CREDENTIALS, Duplicate, EXECUTION_ENVIRONMENTS, INSTANCE_GROUPS, INVENTORIES, Owner, Resource,
    Table, Verbs,
};

/// Commands that run or ran.
pub static AD_HOC_COMMANDS: Resource = Resource {
    key: "ad_hoc_commands",
    path: "ad_hoc_commands",
    type_name: "ad_hoc_command",
    model: "AdHocCommand",
    label: "Ad Hoc Command",
    table: Table::own("unified_jobs").of_kind("ad_hoc_command"),
    fields: ran![
        [
            NAME,
            LAUNCHED,
            STATUS,
            id("execution_environment", &EXECUTION_ENVIRONMENTS)
                .help("The container image to be used for execution."),
        ],
        [
            choice("job_type", JOB_TYPES).preset(Preset::Text("run")),
            id("inventory", &INVENTORIES).required(),
            long_text("limit"),
            id("credential", &CREDENTIALS),
            text("module_name").preset(Preset::Text("command")),
            long_text("module_args"),
            int("forks").range(0, MAX_FORKS),
            int_choice("verbosity", VERBOSITY),
            long_text("extra_vars").unfilterable(),
            flag("become_enabled"),
            flag("diff_mode"),
            organization(),
            id("instance_group", &INSTANCE_GROUPS).read_only(),
        ]
    ],
    lists: &[],
    actions: &["events", "stdout", "cancel", "relaunch", "why", "activity_stream"],
    search: &["name", "module_name", "module_args"],
    summary: &["name", "status", "failed", "elapsed", "limit", "module_name"],
    capabilities: &["delete", "start"],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs { create: true, update: false, delete: true },
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

//! Inventories, hosts, groups.

use super::field::{
    Preset, choice, description, flag, id, int, int_choice, long_text, name, text, time, variables,
};
use super::inventory_sources::VERBOSITY;
use super::{
    AD_HOC_COMMANDS, Access, By, Duplicate, INSTANCE_GROUPS, INVENTORY_SOURCES, JOB_HOST_SUMMARIES,
    JOB_TEMPLATES, JOBS, ORGANIZATIONS, Owner, Resource, SubList, Table, Verbs,
};

/// The inventories that a constructed one is made of, in their order.
const fn inputs() -> SubList {
    SubList {
        name: "input_inventories",
        of: &INVENTORIES,
        by: By::Pairs { table: "inventory_inputs", here: "inventory_id", there: "input_id", writable: true },
    }
}

/// Sets of hosts.
pub static INVENTORIES: Resource = Resource {
    key: "inventory",
    path: "inventories",
    type_name: "inventory",
    model: "Inventory",
    label: "Inventory",
    table: Table::own("inventories"),
    fields: &[
        name().help("Name of this inventory."),
        description(),
        id("organization", &ORGANIZATIONS).required().help("Organization containing this inventory."),
        choice(
            "kind",
            &[
                ("", "Hosts have a direct link to this inventory."),
                ("smart", "Hosts for inventory generated using the host_filter property."),
                ("constructed", "Parse list of source inventories with the constructed inventory plugin."),
            ],
        )
        .help("Kind of inventory being represented."),
        long_text("host_filter")
            .max(4096)
            .null()
            .help("Filter that will be applied to the hosts of this inventory."),
        variables("variables").help("Inventory variables in JSON or YAML format."),
        flag("has_active_failures").computed().read_only(),
        int("total_hosts").computed().read_only(),
        int("hosts_with_active_failures").computed().read_only(),
        int("total_groups").computed().read_only(),
        flag("has_inventory_sources").computed().read_only(),
        int("total_inventory_sources").computed().read_only(),
        int("inventory_sources_with_failures").computed().read_only(),
        flag("pending_deletion").read_only().help("Flag indicating the inventory is being deleted."),
        flag("prevent_instance_group_fallback")
            .help("If enabled, the inventory will prevent adding any organization instance groups."),
    ],
    lists: &[
        SubList {
            name: "instance_groups",
            of: &INSTANCE_GROUPS,
            by: By::Pairs {
                table: "inventory_instance_groups",
                here: "inventory_id",
                there: "instance_group_id",
                writable: true,
            },
        },
        SubList { name: "hosts", of: &HOSTS, by: By::Field("inventory") },
        SubList { name: "groups", of: &GROUPS, by: By::Field("inventory") },
        SubList { name: "job_templates", of: &JOB_TEMPLATES, by: By::Field("inventory") },
        SubList { name: "inventory_sources", of: &INVENTORY_SOURCES, by: By::Field("inventory") },
        SubList { name: "ad_hoc_commands", of: &AD_HOC_COMMANDS, by: By::Field("inventory") },
        inputs(),
    ],
    actions: &[
        "copy",
        "script",
        "tree",
        "update_inventory_sources",
        "variable_data",
        "root_groups",
        "object_roles",
        "access_list",
        "activity_stream",
    ],
    search: &["name", "description"],
    summary: &["name", "description", "kind", "organization_id"],
    capabilities: &["edit", "delete", "copy", "adhoc"],
    order: &["name"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Together(&["name", "organization"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Inventories that Ansible makes of others. What is said here beside the inventory is kept on its one source.
pub static CONSTRUCTED_INVENTORIES: Resource = Resource {
    key: "constructed_inventory",
    path: "constructed_inventories",
    type_name: "inventory",
    model: "Inventory",
    label: "Constructed Inventory",
    table: Table::own("inventories").of_kind("constructed"),
    fields: &[
        name().help("Name of this inventory."),
        description(),
        id("organization", &ORGANIZATIONS).required().help("Organization containing this inventory."),
        text("kind").read_only(),
        variables("variables").help("Inventory variables in JSON or YAML format."),
        flag("has_active_failures").computed().read_only(),
        int("total_hosts").computed().read_only(),
        int("hosts_with_active_failures").computed().read_only(),
        int("total_groups").computed().read_only(),
        flag("has_inventory_sources").computed().read_only(),
        int("total_inventory_sources").computed().read_only(),
        int("inventory_sources_with_failures").computed().read_only(),
        flag("pending_deletion").read_only().help("Flag indicating the inventory is being deleted."),
        flag("prevent_instance_group_fallback")
            .help("If enabled, the inventory will prevent adding any organization instance groups."),
        variables("source_vars")
            .computed()
            .help("The source_vars for the related auto-created inventory source, special to constructed inventory."),
        int("update_cache_timeout").computed().help(
            "The cache timeout for the related auto-created inventory source, special to constructed inventory",
        ),
        long_text("limit")
            .computed()
            .help("The limit to restrict the returned hosts for the related auto-created inventory source."),
        int_choice("verbosity", VERBOSITY).computed(),
    ],
    lists: &[inputs()],
    actions: &["object_roles", "access_list", "activity_stream"],
    search: &["name", "description"],
    summary: &["name", "description", "kind", "organization_id"],
    capabilities: &["edit", "delete", "copy", "adhoc"],
    order: &["name"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Together(&["name", "organization"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Hosts.
pub static HOSTS: Resource = Resource {
    key: "hosts",
    path: "hosts",
    type_name: "host",
    model: "Host",
    label: "Host",
    table: Table::own("hosts"),
    fields: &[
        name().help("Name of this host."),
        description(),
        id("inventory", &INVENTORIES).required(),
        flag("enabled").preset(Preset::True).help("Is this host online and available for running jobs?"),
        text("instance_id")
            .help("The value used by the remote inventory source to uniquely identify the host"),
        variables("variables").help("Host variables in JSON or YAML format."),
        flag("has_active_failures").read_only(),
        id("last_job", &JOBS).read_only(),
        id("last_job_host_summary", &JOB_HOST_SUMMARIES).read_only(),
    ],
    lists: &[
        SubList {
            name: "groups",
            of: &GROUPS,
            by: By::Pairs { table: "group_hosts", here: "host_id", there: "group_id", writable: true },
        },
        SubList { name: "job_host_summaries", of: &JOB_HOST_SUMMARIES, by: By::Field("host") },
        SubList {
            name: "inventory_sources",
            of: &INVENTORY_SOURCES,
            by: By::Pairs {
                table: "inventory_source_hosts",
                here: "host_id",
                there: "inventory_source_id",
                writable: false,
            },
        },
    ],
    actions: &["variable_data", "ansible_facts", "all_groups", "ad_hoc_commands", "activity_stream"],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete"],
    order: &["name"],
    natural_key: &["name", "inventory"],
    duplicate: Duplicate::Together(&["name", "inventory"]),
    verbs: Verbs::ALL,
    owner: Owner::Through("inventory"),
    access: Access::Roles,
};

/// How often each host was automated, by name.
pub static HOST_METRICS: Resource = Resource {
    key: "host_metrics",
    path: "host_metrics",
    type_name: "host_metric",
    model: "HostMetric",
    label: "Host Metric",
    table: Table::view("host_metrics"),
    fields: &[
        text("hostname").max(512).read_only(),
        time("first_automation").help("When the host was first automated against"),
        time("last_automation").help("When the host was last automated against"),
        time("last_deleted").help("When the host was last deleted"),
        int("automated_counter").read_only().help("How many times was the host automated"),
        int("deleted_counter").read_only().help("How many times was the host deleted"),
        flag("deleted")
            .read_only()
            .help("Boolean flag saying whether the host is deleted and therefore not counted"),
        int("used_in_inventories").null().read_only().help("How many inventories contain this host"),
    ],
    lists: &[],
    actions: &[],
    search: &["hostname"],
    summary: &["hostname"],
    capabilities: &[],
    order: &["hostname"],
    natural_key: &[],
    duplicate: Duplicate::Field("hostname"),
    verbs: Verbs::READ,
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Groups of hosts.
pub static GROUPS: Resource = Resource {
    key: "groups",
    path: "groups",
    type_name: "group",
    model: "Group",
    label: "Group",
    table: Table::own("groups"),
    fields: &[
        name().help("Name of this group."),
        description(),
        id("inventory", &INVENTORIES).required(),
        variables("variables").help("Group variables in JSON or YAML format."),
    ],
    lists: &[
        SubList {
            name: "hosts",
            of: &HOSTS,
            by: By::Pairs { table: "group_hosts", here: "group_id", there: "host_id", writable: true },
        },
        SubList {
            name: "children",
            of: &GROUPS,
            by: By::Pairs { table: "group_children", here: "group_id", there: "child_id", writable: true },
        },
        SubList {
            name: "inventory_sources",
            of: &INVENTORY_SOURCES,
            by: By::Pairs {
                table: "inventory_source_groups",
                here: "group_id",
                there: "inventory_source_id",
                writable: false,
            },
        },
    ],
    actions: &["variable_data", "all_hosts", "potential_children", "ad_hoc_commands", "activity_stream"],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete", "copy"],
    order: &["name"],
    natural_key: &["name", "inventory"],
    duplicate: Duplicate::Together(&["name", "inventory"]),
    verbs: Verbs::ALL,
    owner: Owner::Through("inventory"),
    access: Access::Roles,
};

//! Nodes and the groups they work in.

use super::field::{Preset, choice, flag, float, id, int, json, long_text, name, text, time};
use super::{Access, By, CREDENTIALS, Duplicate, Owner, Resource, SubList, Table, Verbs};

/// Nodes of the mesh.
pub static INSTANCES: Resource = Resource {
    key: "instances",
    path: "instances",
    type_name: "instance",
    model: "Instance",
    label: "Instance",
    table: Table::own("instances").untracked(),
    fields: &[
        text("hostname").max(250).read_only(),
        text("uuid").max(40).read_only(),
        choice(
            "node_type",
            &[
                ("control", "Control plane node"),
                ("execution", "Execution plane node"),
                ("hybrid", "Controller and execution"),
                ("hop", "Message-passing node, no execution capability"),
            ],
        )
        .read_only(),
        choice(
            "node_state",
            &[
                ("provisioning", "Provisioning"),
                ("provision-fail", "Provisioning Failure"),
                ("installed", "Installed"),
                ("ready", "Ready"),
                ("unavailable", "Unavailable"),
                ("deprovisioning", "De-provisioning"),
                ("deprovision-fail", "De-provisioning Failure"),
            ],
        )
        .read_only(),
        text("version").read_only(),
        text("ip_address").read_only(),
        long_text("errors").read_only(),
        int("cpu").column("cpu_millis").read_only(),
        int("memory").read_only(),
        int("cpu_capacity").read_only(),
        int("mem_capacity").read_only(),
        int("capacity").read_only(),
        int("consumed_capacity").computed().read_only(),
        float("percent_capacity_remaining").computed().read_only(),
        int("jobs_running").computed().read_only(),
        int("jobs_total").computed().read_only(),
        float("capacity_adjustment"),
        flag("enabled").preset(Preset::True),
        flag("managed_by_policy").preset(Preset::True),
        flag("managed").read_only(),
        time("last_seen"),
        time("last_health_check"),
        time("health_check_started").computed(),
        flag("health_check_pending").computed().read_only(),
        int("listener_port").computed().null().read_only(),
        json("peers").computed().read_only(),
        json("reverse_peers").computed().read_only(),
        flag("peers_from_control_nodes").computed().read_only(),
        int("free_disk")
            .computed()
            .null()
            .read_only()
            .detail()
            .help("Bytes that are free where the node keeps its data; null until it has said so."),
        json("images")
            .computed()
            .read_only()
            .detail()
            .help("Images that jobs can start from at once, as far as the node knows without asking its engine; 64 at most."),
    ],
    lists: &[SubList {
        name: "instance_groups",
        of: &INSTANCE_GROUPS,
        by: By::Pairs {
            table: "instance_group_members",
            here: "instance_id",
            there: "instance_group_id",
            writable: true,
        },
    }],
    actions: &["jobs", "install_bundle", "health_check"],
    search: &["hostname"],
    summary: &["hostname"],
    capabilities: &["edit"],
    order: &["id"],
    natural_key: &["hostname"],
    duplicate: Duplicate::Field("hostname"),
    verbs: Verbs { create: false, update: true, delete: false },
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Groups of nodes that take the same work.
pub static INSTANCE_GROUPS: Resource = Resource {
    key: "instance_groups",
    path: "instance_groups",
    type_name: "instance_group",
    model: "InstanceGroup",
    label: "Instance Group",
    table: Table::own("instance_groups").untracked(),
    fields: &[
        name().max(250).help("Name of this instance group."),
        int("capacity").computed().read_only(),
        int("consumed_capacity").computed().read_only(),
        float("percent_capacity_remaining").computed().read_only(),
        int("jobs_running").computed().read_only(),
        int("jobs_total").computed().read_only(),
        int("instances").computed().read_only(),
        int("max_concurrent_jobs")
            .help("Maximum number of concurrent jobs to run on a group. When set to zero, no maximum is enforced."),
        int("max_forks")
            .help("Maximum number of forks to execute concurrently on a group. When set to zero, no maximum is enforced."),
        flag("is_container_group")
            .help("Indicates whether instances in this group are containerized."),
        id("credential", &CREDENTIALS),
        int("policy_instance_percentage").range(0, 100).help(
            "Minimum percentage of all instances that will be automatically assigned to this group when new instances come online.",
        ),
        int("policy_instance_minimum").help(
            "Static minimum number of Instances that will be automatically assign to this group when new instances come online.",
        ),
        json("policy_instance_list")
            .unfilterable()
            .help("List of exact-match Instances that will be assigned to this group"),
        long_text("pod_spec_override"),
    ],
    lists: &[SubList {
        name: "instances",
        of: &INSTANCES,
        by: By::Pairs {
            table: "instance_group_members",
            here: "instance_group_id",
            there: "instance_id",
            writable: true,
        },
    }],
    actions: &["jobs", "object_roles", "access_list", "activity_stream"],
    search: &["name"],
    summary: &["name", "is_container_group"],
    capabilities: &["edit", "delete"],
    order: &["id"],
    natural_key: &["name"],
    duplicate: Duplicate::Field("name"),
    verbs: Verbs::ALL,
    owner: Owner::Installation,
    access: Access::Roles,
};

//! The activity stream: who changed what, when, and from what to what.

use super::field::{choice, id, json, text, time};
use super::{Access, Duplicate, Owner, Resource, Table, USERS, Verbs};

const OPERATIONS: &[(&str, &str)] = &[
    ("create", "Entity Created"),
    ("update", "Entity Updated"),
    ("delete", "Entity Deleted"),
    ("associate", "Entity Associated with another Entity"),
    ("disassociate", "Entity was Disassociated with another Entity"),
];

/// Entries of the activity stream. They are written with the change they tell of, in one transaction.
pub static ACTIVITY_STREAM: Resource = Resource {
    key: "activity_stream",
    path: "activity_stream",
    type_name: "activity_stream",
    model: "ActivityStream",
    label: "Activity Stream",
    table: Table::view("activity_stream"),
    fields: &[
        time("timestamp"),
        choice("operation", OPERATIONS)
            .read_only()
            .help("The action taken with respect to the given object(s)."),
        json("changes")
            .read_only()
            .unfilterable()
            .help("A summary of the new and changed values when an object is created, updated, or deleted"),
        text("object1").read_only().help(
            "For create, update, and delete events this is the object type that was affected. For associate and \
             disassociate events this is the object type associated or disassociated with object2.",
        ),
        text("object2").read_only().help(
            "Unpopulated for create, update, and delete events. For associate and disassociate events this is the \
             object type that object1 is being associated with.",
        ),
        text("object_association")
            .read_only()
            .help("When present, shows the field name of the role or relationship that changed."),
        text("object_relationship_type").read_only().unfilterable(),
        text("action_node").read_only().help("The cluster node the activity took place on."),
        text("object_type").computed().read_only().help("When present, shows the model on which the change was made."),
        id("actor", &USERS).read_only(),
    ],
    lists: &[],
    actions: &[],
    search: &["changes"],
    summary: &["operation"],
    capabilities: &[],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs::READ,
    owner: Owner::Installation,
    access: Access::Roles,
};

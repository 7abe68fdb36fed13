//! The record of who changed what.

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    // An entry outlives what it tells of: object ids are never given twice, so they are kept without a reference.
    schema
        .table("activity_stream")
        .id()
        .time("timestamp")
        .opt_reference("actor_id", "users", Gone::Null)
        .texts(&["actor_name", "operation", "changes", "action_node"])
        .text("object1")
        .opt_int("object1_id")
        .text("object2")
        .opt_int("object2_id")
        .texts(&["object_association", "object_relationship_type"])
        .opt_int("organization_id");
    schema.index("activity_stream", &["timestamp"]);
    schema.index("activity_stream", &["object1", "object1_id"]);
    schema.index("activity_stream", &["object2", "object2_id"]);
    schema.index("activity_stream", &["actor_id"]);
}

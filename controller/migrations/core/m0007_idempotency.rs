//! Keys that clients give a launch, so that one they repeat starts nothing twice.

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    schema
        .table("idempotency_keys")
        .id()
        .reference("user_id", "users", Gone::Row)
        .text("key")
        .text("path")
        .reference("job_id", "unified_jobs", Gone::Row)
        .time("created");
    schema.unique("idempotency_keys", &["user_id", "key"]);
    schema.index("idempotency_keys", &["created"]);
    schema.index("idempotency_keys", &["job_id"]);
}

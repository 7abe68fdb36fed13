//! Units that nodes hold and this database does not know: it was restored from a backup.

use super::dsl::Schema;

pub(super) fn build(schema: &mut Schema) {
    schema
        .table("stray_units")
        .primary_bytes("unit_id")
        .int("attempt", 1)
        .text("node")
        .bytes("store_id")
        .texts(&["label", "state"])
        .ints(&["records", "owner_counter"])
        .time("seen");
    schema.index("stray_units", &["node"]);
}

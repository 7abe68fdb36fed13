//! Facts of hosts, beside them: a list of hosts does not read what may be megabytes.

use super::dsl::Schema;

pub(super) fn build(schema: &mut Schema) {
    schema.table("host_facts").id_of("hosts").text("facts").time("modified");
}

//! What a list of jobs asks of each job, beside the jobs: whoever may see some of a million reads no whole rows to leave the others
//! out, and none to count.

use super::dsl::Schema;

pub(super) fn build(schema: &mut Schema) {
    schema.index("unified_jobs", &["kind", "id", "job_template_id", "organization_id"]);
}

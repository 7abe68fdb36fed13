//! Updates of projects, which are jobs; the trees they bring; what a job waits for.

use super::dsl::{Gone, Schema};

pub(super) fn build(schema: &mut Schema) {
    // An update keeps what it was told to fetch, as a job keeps what it was launched with. `tree` is the digest of the
    // tree that an update brought, or that a job runs: 64 hexadecimal digits.
    schema
        .extend("unified_jobs")
        .texts(&["local_path", "scm_type", "scm_url", "scm_refspec"])
        .flags(&["scm_clean", "scm_track_submodules", "scm_delete_on_update"])
        .opt_reference("credential_id", "credentials", Gone::Null)
        .opt_text("tree");
    schema.extend("projects").opt_text("tree");

    // Trees that the controller keeps, by digest, with what people choose from: lists of paths as JSON text.
    schema
        .table("trees")
        .primary_text("digest")
        .texts(&["playbooks", "inventories"])
        .int("bytes", 0)
        .time("created");

    // A job starts when everything it waits for was successful.
    schema
        .table("unified_job_dependencies")
        .reference("unified_job_id", "unified_jobs", Gone::Row)
        .reference("depends_on_id", "unified_jobs", Gone::Row)
        .primary(&["unified_job_id", "depends_on_id"]);
    schema.index("unified_job_dependencies", &["depends_on_id"]);

    // The order in which an organization's servers of roles and collections are asked.
    schema
        .table("organization_galaxy_credentials")
        .id()
        .reference("organization_id", "organizations", Gone::Row)
        .reference("credential_id", "credentials", Gone::Row);
    schema.unique("organization_galaxy_credentials", &["organization_id", "credential_id"]);
    schema.index("organization_galaxy_credentials", &["credential_id"]);
}

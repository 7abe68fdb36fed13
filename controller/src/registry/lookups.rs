//! Where credentials look up inputs that they do not hold themselves.

use super::field::{description, id, json, text};
use super::{Access, CREDENTIALS, Duplicate, Owner, Resource, Table, Verbs};

/// Inputs of credentials that come from another credential's server.
pub static CREDENTIAL_INPUT_SOURCES: Resource = Resource {
    key: "credential_input_sources",
    path: "credential_input_sources",
    type_name: "credential_input_source",
    model: "CredentialInputSource",
    label: "Credential Input Source",
    table: Table::own("credential_input_sources"),
    fields: &[
        description(),
        text("input_field_name").required(),
        json("metadata").unfilterable(),
        id("target_credential", &CREDENTIALS).required(),
        id("source_credential", &CREDENTIALS).required(),
    ],
    lists: &[],
    actions: &[],
    search: &["description", "input_field_name"],
    summary: &["description", "input_field_name"],
    capabilities: &["edit", "delete"],
    order: &["id"],
    natural_key: &["target_credential", "input_field_name"],
    duplicate: Duplicate::Combination(&["target_credential", "input_field_name"]),
    verbs: Verbs::ALL,
    owner: Owner::Through("target_credential"),
    access: Access::Roles,
};

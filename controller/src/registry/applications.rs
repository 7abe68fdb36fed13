//! Applications that get tokens from users: OAuth 2 clients.

use super::field::{choice, description, flag, id, long_text, name, text};
use super::{Access, By, Duplicate, ORGANIZATIONS, Owner, Resource, SubList, TOKENS, Table, Verbs};

/// Whether an application can keep a secret.
const CLIENT_TYPES: &[(&str, &str)] = &[("confidential", "Confidential"), ("public", "Public")];

/// How an application gets a user's token.
const GRANTS: &[(&str, &str)] =
    &[("authorization-code", "Authorization code"), ("password", "Resource owner password-based")];

/// Applications.
pub static APPLICATIONS: Resource = Resource {
    key: "applications",
    path: "applications",
    type_name: "o_auth2_application",
    model: "OAuth2Application",
    label: "Application",
    table: Table::own("applications"),
    fields: &[
        name().max(255).help("Name of this application."),
        description(),
        text("client_id").read_only(),
        text("client_secret")
            .secret()
            .computed()
            .read_only()
            .help("Used for more stringent verification of access to an application when creating a token."),
        choice("client_type", CLIENT_TYPES)
            .required()
            .help("Set to Public or Confidential depending on how secure the client device is."),
        long_text("redirect_uris").help("Allowed URIs list, space separated"),
        choice("authorization_grant_type", GRANTS)
            .required()
            .help("The Grant type the user must use for acquire tokens for this application."),
        flag("skip_authorization")
            .help("Set True to skip authorization step for completely trusted applications."),
        id("organization", &ORGANIZATIONS).required().help("Organization containing this application."),
    ],
    lists: &[SubList {
        name: "tokens",
        of: &TOKENS,
        by: By::Pairs { table: "application_tokens", here: "application_id", there: "id", writable: true },
    }],
    actions: &["activity_stream"],
    search: &["name", "description"],
    summary: &["name", "client_id"],
    capabilities: &["edit", "delete"],
    order: &["id"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Together(&["name", "organization"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

//! Organizations, users, tokens.

use super::field::{Preset, description, flag, id, int, name, text, time};
use super::{
    Access, By, CREDENTIALS, Duplicate, EXECUTION_ENVIRONMENTS, INVENTORIES, JOB_TEMPLATES, Owner, PROJECTS,
    Resource, SubList, Table, Verbs,
};

/// Organizations: who owns what.
pub static ORGANIZATIONS: Resource = Resource {
    key: "organizations",
    path: "organizations",
    type_name: "organization",
    model: "Organization",
    label: "Organization",
    table: Table::own("organizations"),
    fields: &[
        name().help("Name of this organization."),
        description(),
        int("max_hosts").help("Maximum number of hosts allowed to be managed by this organization."),
        id("default_environment", &EXECUTION_ENVIRONMENTS)
            .help("The default execution environment for jobs run by this organization."),
    ],
    lists: &[
        SubList {
            name: "execution_environments",
            of: &EXECUTION_ENVIRONMENTS,
            by: By::Field("organization"),
        },
        SubList { name: "projects", of: &PROJECTS, by: By::Field("organization") },
        SubList { name: "inventories", of: &INVENTORIES, by: By::Field("organization") },
        SubList { name: "job_templates", of: &JOB_TEMPLATES, by: By::Field("organization") },
        SubList { name: "credentials", of: &CREDENTIALS, by: By::Field("organization") },
    ],
    actions: &[],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete"],
    order: &["name"],
    natural_key: &["name"],
    duplicate: Duplicate::Field("name"),
    verbs: Verbs::ALL,
    owner: Owner::Itself,
    access: Access::Roles,
};

/// Labels: words to find templates and jobs by. One that nothing wears any more goes by itself.
pub static LABELS: Resource = Resource {
    key: "labels",
    path: "labels",
    type_name: "label",
    model: "Label",
    label: "Label",
    table: Table::own("labels"),
    fields: &[
        name().help("Name of this label."),
        id("organization", &ORGANIZATIONS).required().help("Organization this label belongs to."),
    ],
    lists: &[],
    actions: &[],
    search: &["name"],
    summary: &["name"],
    capabilities: &[],
    order: &["name"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Together(&["name", "organization"]),
    verbs: Verbs { create: true, update: true, delete: false },
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Users.
pub static USERS: Resource = Resource {
    key: "users",
    path: "users",
    type_name: "user",
    model: "User",
    label: "User",
    table: Table::own("users").untracked(),
    fields: &[
        text("username")
            .required()
            .max(150)
            .help("Required. 150 characters or fewer. Letters, digits and @/./+/-/_ only."),
        text("first_name").max(150).label("First name"),
        text("last_name").max(150).label("Last name"),
        text("email").max(254).label("Email address"),
        flag("is_superuser")
            .label("Superuser status")
            .help("Designates that this user has all permissions without explicitly assigning them."),
        flag("is_system_auditor").label("Is system auditor"),
        text("password").secret().computed().help("Field used to change the password."),
        text("ldap_dn").computed().read_only(),
        time("last_login"),
        text("external_account").computed().null().read_only(),
    ],
    lists: &[
        SubList { name: "tokens", of: &TOKENS, by: By::Field("user") },
        SubList { name: "personal_tokens", of: &TOKENS, by: By::Field("user") },
    ],
    actions: &[],
    search: &["username", "first_name", "last_name", "email"],
    summary: &["username", "first_name", "last_name"],
    capabilities: &["edit", "delete"],
    order: &["username"],
    natural_key: &["username"],
    duplicate: Duplicate::Field("username"),
    verbs: Verbs::ALL,
    owner: Owner::Installation,
    access: Access::User("id"),
};

/// Personal access tokens.
pub static TOKENS: Resource = Resource {
    key: "tokens",
    path: "tokens",
    type_name: "o_auth2_access_token",
    model: "OAuth2AccessToken",
    label: "Access Token",
    table: Table::own("tokens").untracked(),
    fields: &[
        description(),
        id("user", &USERS).read_only().help("The user representing the token owner"),
        text("token").secret().computed().read_only(),
        text("refresh_token").secret().computed().null().read_only(),
        text("application").computed().null().help("Application the token belongs to."),
        time("expires"),
        text("scope")
            .preset(Preset::Text("write"))
            .max(64)
            .help("Allowed scopes, further restricts user's permissions. Must be 'read' or 'write'."),
        time("last_used"),
    ],
    lists: &[],
    actions: &[],
    search: &["description"],
    summary: &["description", "scope"],
    capabilities: &["edit", "delete"],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("token"),
    verbs: Verbs::ALL,
    owner: Owner::Installation,
    access: Access::User("user"),
};

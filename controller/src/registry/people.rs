//! Organizations, users, tokens.

use super::field::{Preset, description, flag, id, int, name, text, time};
use super::{
    APPLICATIONS, Access, By, CREDENTIALS, Duplicate, EXECUTION_ENVIRONMENTS, INSTANCE_GROUPS, INVENTORIES,
    JOB_TEMPLATES, Owner, PROJECTS, Resource, SubList, Table, Verbs,
};

/// A list whose members come and go by the roles they hold.
const fn members(
    name: &'static str,
    of: &'static Resource,
    table: &'static str,
    here: &'static str,
    there: &'static str,
) -> SubList {
    SubList { name, of, by: By::Pairs { table, here, there, writable: true } }
}

/// A list that shows what follows from roles.
const fn shown(
    name: &'static str,
    of: &'static Resource,
    table: &'static str,
    here: &'static str,
    there: &'static str,
) -> SubList {
    SubList { name, of, by: By::Pairs { table, here, there, writable: false } }
}

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
        members("users", &USERS, "organization_members", "organization_id", "user_id"),
        members("admins", &USERS, "organization_admins", "organization_id", "user_id"),
        SubList { name: "teams", of: &TEAMS, by: By::Field("organization") },
        SubList { name: "applications", of: &APPLICATIONS, by: By::Field("organization") },
        SubList {
            name: "instance_groups",
            of: &INSTANCE_GROUPS,
            by: By::Pairs {
                table: "organization_instance_groups",
                here: "organization_id",
                there: "instance_group_id",
                writable: true,
            },
        },
        SubList {
            name: "galaxy_credentials",
            of: &CREDENTIALS,
            by: By::Pairs {
                table: "organization_galaxy_credentials",
                here: "organization_id",
                there: "credential_id",
                writable: true,
            },
        },
    ],
    actions: &["object_roles", "access_list", "activity_stream"],
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
    actions: &["activity_stream"],
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
        members("personal_tokens", &TOKENS, "personal_tokens", "user_id", "token_id"),
        members("authorized_tokens", &TOKENS, "authorized_tokens", "user_id", "token_id"),
        shown("applications", &APPLICATIONS, "user_applications", "user_id", "application_id"),
        shown("organizations", &ORGANIZATIONS, "organization_members", "user_id", "organization_id"),
        shown("admin_of_organizations", &ORGANIZATIONS, "organization_admins", "user_id", "organization_id"),
        shown("teams", &TEAMS, "team_members", "user_id", "team_id"),
        members("roles", &ROLES, "user_roles", "user_id", "role_id"),
    ],
    actions: &["access_list", "activity_stream"],
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

/// Teams: users of an organization who hold roles together.
pub static TEAMS: Resource = Resource {
    key: "teams",
    path: "teams",
    type_name: "team",
    model: "Team",
    label: "Team",
    table: Table::own("teams"),
    fields: &[
        name().help("Name of this team."),
        description(),
        id("organization", &ORGANIZATIONS).required().help("Organization of this team."),
    ],
    lists: &[
        shown("projects", &PROJECTS, "team_projects", "team_id", "project_id"),
        members("users", &USERS, "team_members", "team_id", "user_id"),
        shown("credentials", &CREDENTIALS, "team_credentials", "team_id", "credential_id"),
        members("roles", &ROLES, "role_teams", "team_id", "role_id"),
    ],
    actions: &["object_roles", "access_list", "activity_stream"],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete"],
    order: &["name"],
    natural_key: &["name", "organization"],
    duplicate: Duplicate::Together(&["organization", "name"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Roles: what may be done with an object, and who holds that.
pub static ROLES: Resource = Resource {
    key: "roles",
    path: "roles",
    type_name: "role",
    model: "Role",
    label: "Role",
    table: Table::view("roles"),
    fields: &[
        text("name").computed().read_only().help("Name of this role"),
        text("description").computed().read_only().help("Optional description of this role"),
        text("content_type").read_only(),
        int("object_id").read_only(),
        text("role_field").read_only(),
        text("resource_name").read_only(),
    ],
    lists: &[
        members("users", &USERS, "user_roles", "role_id", "user_id"),
        members("teams", &TEAMS, "role_teams", "role_id", "team_id"),
    ],
    actions: &["parents", "children"],
    search: &["role_field", "content_type"],
    summary: &["role_field"],
    capabilities: &[],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs::READ,
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Access tokens: personal ones, and those of applications.
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
        id("application", &APPLICATIONS).computed().help("Application the token belongs to."),
        time("expires"),
        text("scope")
            .preset(Preset::Text("write"))
            .max(64)
            .help("Allowed scopes, further restricts user's permissions. Must be 'read' or 'write'."),
        time("last_used"),
    ],
    lists: &[],
    actions: &["activity_stream"],
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

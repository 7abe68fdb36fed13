//! Credential types, credentials, execution environments.

use super::field::{choice, description, flag, id, json, name, text};
use super::{
    Access, By, CREDENTIAL_INPUT_SOURCES, Duplicate, ORGANIZATIONS, Owner, Resource, SubList, TEAMS, Table,
    USERS, Verbs,
};

/// Kinds of credential, as clients offer them.
pub(super) const CREDENTIAL_KINDS: &[(&str, &str)] = &[
    ("ssh", "Machine"),
    ("vault", "Vault"),
    ("net", "Network"),
    ("scm", "Source Control"),
    ("cloud", "Cloud"),
    ("registry", "Container Registry"),
    ("token", "Personal Access Token"),
    ("insights", "Insights"),
    ("external", "External"),
    ("kubernetes", "Kubernetes"),
    ("galaxy", "Galaxy/Automation Hub"),
    ("cryptography", "Cryptography"),
];

/// When an image is pulled; the empty text leaves it to the runtime.
pub(super) const PULL: &[(&str, &str)] = &[
    ("", "---------"),
    ("always", "Always pull container before running."),
    ("missing", "Only pull the image if not present before running."),
    ("never", "Never pull container before running."),
];

/// What a credential of some kind is made of.
pub static CREDENTIAL_TYPES: Resource = Resource {
    key: "credential_types",
    path: "credential_types",
    type_name: "credential_type",
    model: "CredentialType",
    label: "Credential Type",
    table: Table::own("credential_types"),
    fields: &[
        name().help("Name of this credential type."),
        description(),
        choice("kind", CREDENTIAL_KINDS).required(),
        text("namespace").null().read_only().help("The namespace to which the resource belongs to."),
        flag("managed").read_only(),
        json("inputs")
            .unfilterable()
            .help("Enter inputs using either JSON or YAML syntax. Refer to the documentation for example syntax."),
        json("injectors")
            .unfilterable()
            .help("Enter injectors using either JSON or YAML syntax. Refer to the documentation for example syntax."),
    ],
    lists: &[SubList { name: "credentials", of: &CREDENTIALS, by: By::Field("credential_type") }],
    actions: &["activity_stream", "test"],
    search: &["name", "description"],
    summary: &["name", "description"],
    capabilities: &["edit", "delete"],
    order: &["name"],
    natural_key: &["name", "kind"],
    duplicate: Duplicate::Combination(&["name", "kind"]),
    verbs: Verbs::ALL,
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Credentials. Their secret inputs never leave by the API.
pub static CREDENTIALS: Resource = Resource {
    key: "credentials",
    path: "credentials",
    type_name: "credential",
    model: "Credential",
    label: "Credential",
    table: Table::own("credentials"),
    fields: &[
        name().help("Name of this credential."),
        description(),
        id("organization", &ORGANIZATIONS).help("Organization that owns the credential."),
        id("credential_type", &CREDENTIAL_TYPES).required().help(
            "Specify the type of credential you want to create. Refer to the documentation for details.",
        ),
        flag("managed").read_only(),
        json("inputs").unfilterable().help(
            "Enter inputs using either JSON or YAML syntax. Refer to the documentation for example syntax.",
        ),
        text("kind").computed().read_only(),
        flag("cloud").computed().read_only(),
        flag("kubernetes").computed().read_only(),
        id("user", &USERS).write_only().help("Write-only field used to add user to owner role."),
        id("team", &TEAMS)
            .write_only()
            .computed()
            .help("Write-only field used to add team to owner role. If provided, do not give either user or organization."),
    ],
    lists: &[SubList {
        name: "input_sources",
        of: &CREDENTIAL_INPUT_SOURCES,
        by: By::Field("target_credential"),
    }],
    actions: &["copy", "object_roles", "access_list", "activity_stream", "test"],
    search: &["name", "description"],
    summary: &[
        "name",
        "description",
        "credential_type__namespace",
        "credential_type__kind",
        "credential_type_id",
    ],
    capabilities: &["edit", "delete", "copy", "use"],
    order: &["name"],
    natural_key: &["name", "credential_type", "organization"],
    duplicate: Duplicate::Combination(&["organization", "name", "credential_type"]),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

/// Images that jobs run in.
pub static EXECUTION_ENVIRONMENTS: Resource = Resource {
    key: "execution_environments",
    path: "execution_environments",
    type_name: "execution_environment",
    model: "ExecutionEnvironment",
    label: "Execution Environment",
    table: Table::own("execution_environments"),
    fields: &[
        name().help("Name of this execution environment."),
        description(),
        id("organization", &ORGANIZATIONS)
            .help("The organization used to determine access to this execution environment."),
        text("image")
            .required()
            .help("The full image location, including the container registry, image name, and version tag."),
        flag("managed").read_only(),
        id("credential", &CREDENTIALS),
        choice("pull", PULL).help("Pull image before running?"),
    ],
    lists: &[],
    actions: &["copy", "activity_stream"],
    search: &["name", "description", "image"],
    summary: &["name", "description", "image"],
    capabilities: &["edit", "delete", "copy"],
    order: &["-created"],
    natural_key: &["name"],
    duplicate: Duplicate::Field("name"),
    verbs: Verbs::ALL,
    owner: Owner::Field("organization"),
    access: Access::Roles,
};

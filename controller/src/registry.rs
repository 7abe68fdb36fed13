//! The resources of the API, each declared once.
//!
//! A [`Resource`] says where its rows are, which fields they have and what each takes, how it relates to others, who
//! owns it and who may see it. Lists and their filters, validation, OPTIONS, `related` and `summary_fields` are all
//! derived from that; what is special about a resource is in `http/`, beside its actions. Nothing here knows HTTP.

mod activity;
mod ad_hoc;
mod applications;
mod builtin_types;
mod credentials;
pub mod definitions;
mod fleet;
mod inventories;
mod inventory_sources;
mod jobs;
mod lookups;
mod people;
mod project_updates;
mod system;
mod templates;

pub mod access;
pub mod field;
pub mod filter;
pub mod later;
pub mod options;
pub mod read;
pub mod roles;
pub mod write;

pub use activity::ACTIVITY_STREAM;
pub use ad_hoc::AD_HOC_COMMANDS;
pub use applications::APPLICATIONS;
#[cfg(test)]
pub(crate) use builtin_types::fields_of as builtin_fields;
pub use builtin_types::seed;
pub use credentials::{CREDENTIAL_TYPES, CREDENTIALS, EXECUTION_ENVIRONMENTS};
pub use definitions::{ROLE_DEFINITIONS, ROLE_TEAM_ASSIGNMENTS, ROLE_USER_ASSIGNMENTS};
pub use field::{Field, Kind, Mode};
pub use fleet::{INSTANCE_GROUPS, INSTANCES};
pub use inventories::{CONSTRUCTED_INVENTORIES, GROUPS, HOST_METRICS, HOSTS, INVENTORIES};
pub use inventory_sources::{INVENTORY_SOURCES, INVENTORY_UPDATES};
pub use jobs::{JOB_HOST_SUMMARIES, JOBS, UNIFIED_JOBS};
pub use lookups::CREDENTIAL_INPUT_SOURCES;
pub use people::{LABELS, ORGANIZATIONS, ROLES, TEAMS, TOKENS, USERS};
pub use project_updates::PROJECT_UPDATES;
pub use system::{SYSTEM_JOB_TEMPLATES, SYSTEM_JOBS};
pub use templates::{JOB_TEMPLATES, PROJECTS, UNIFIED_JOB_TEMPLATES};

/// One family of objects of the API.
pub struct Resource {
    /// Its name in the root map of the API, which is also the client's sub-command: `inventory`.
    pub key: &'static str,
    /// Its part of the path: `inventories`.
    pub path: &'static str,
    /// The `type` of its objects: `inventory`.
    pub type_name: &'static str,
    /// The name of the class in messages: `JobTemplate`.
    pub model: &'static str,
    /// The name for people: `Job Template`.
    pub label: &'static str,
    /// Where the rows are.
    pub table: Table,
    /// Fields after `id`, `type`, `url`, `related`, `summary_fields`, `created` and `modified`, in order.
    pub fields: &'static [Field],
    /// Sub-lists: `/api/v2/<path>/N/<name>/`.
    pub lists: &'static [SubList],
    /// Names below an object that are no lists: `launch`, `stdout`. They are in `related`.
    pub actions: &'static [&'static str],
    /// Fields a `search=` looks into.
    pub search: &'static [&'static str],
    /// Fields that are shown wherever an object names one of this family, after its id.
    pub summary: &'static [&'static str],
    /// What `summary_fields.user_capabilities` lists.
    pub capabilities: &'static [&'static str],
    /// Order of lists that ask for none.
    pub order: &'static [&'static str],
    /// Fields that name an object to people.
    pub natural_key: &'static [&'static str],
    /// What a second object of the same key is told.
    pub duplicate: Duplicate,
    /// Which verbs there are, besides reading.
    pub verbs: Verbs,
    /// Which organization an object belongs to.
    pub owner: Owner,
    /// Who may see and change it.
    pub access: Access,
}

/// Where the rows of a resource are.
pub struct Table {
    /// The table that has the id.
    pub name: &'static str,
    /// The table with the fields it shares with its kin; both rows have the same id.
    pub parent: Option<&'static str>,
    /// The column and value that tell its rows from its kin's.
    pub kind: Option<&'static str>,
    /// Whether the rows have `created` and `modified` (and in which of the tables is where `kind` is).
    pub stamped: bool,
    /// Whether they say by whom.
    pub tracked: bool,
    /// Rows of several families, told apart by their `kind`: each shows as one of these.
    pub kin: &'static [&'static Resource],
}

impl Table {
    /// A table of its own, with times and authors.
    pub const fn own(name: &'static str) -> Self {
        Self { name, parent: None, kind: None, stamped: true, tracked: true, kin: &[] }
    }

    /// A table that shares its id with a row of `parent`, where `kind` says so.
    pub const fn child(name: &'static str, parent: &'static str, kind: &'static str) -> Self {
        Self { name, parent: Some(parent), kind: Some(kind), stamped: true, tracked: true, kin: &[] }
    }

    /// A query that reads like a table: ids, and nothing of when and by whom.
    pub const fn view(name: &'static str) -> Self {
        Self { name, parent: None, kind: None, stamped: false, tracked: false, kin: &[] }
    }

    /// Without authors.
    pub const fn untracked(mut self) -> Self {
        self.tracked = false;
        self
    }

    /// Only rows of this `kind`.
    pub const fn of_kind(mut self, kind: &'static str) -> Self {
        self.kind = Some(kind);
        self
    }

    /// Rows of all these families.
    pub const fn shared_by(mut self, kin: &'static [&'static Resource]) -> Self {
        self.kin = kin;
        self
    }
}

/// A list below an object.
pub struct SubList {
    /// Its name in the path and in `related`.
    pub name: &'static str,
    /// What it lists.
    pub of: &'static Resource,
    /// How its members are found.
    pub by: By,
}

/// How the members of a sub-list belong to their object.
pub enum By {
    /// A field of the member points to the object. A POST creates a member.
    Field(&'static str),
    /// Rows of a table of pairs. A POST with an id attaches, with `disassociate` detaches, without id creates.
    Pairs {
        /// The table of pairs.
        table: &'static str,
        /// Its column that points to the object.
        here: &'static str,
        /// Its column that points to the member.
        there: &'static str,
        /// Whether members come and go by POST.
        writable: bool,
    },
}

/// Which verbs a resource has.
#[derive(Clone, Copy)]
pub struct Verbs {
    /// POST on the list.
    pub create: bool,
    /// PUT and PATCH.
    pub update: bool,
    /// DELETE.
    pub delete: bool,
}

impl Verbs {
    /// Everything.
    pub const ALL: Self = Self { create: true, update: true, delete: true };
    /// Only reading.
    pub const READ: Self = Self { create: false, update: false, delete: false };
    /// Objects come into being by actions, and can be deleted.
    pub const DELETE: Self = Self { create: false, update: false, delete: true };

    /// The `Allow` of the list.
    pub fn list(self) -> &'static str {
        if self.create { "GET, POST, HEAD, OPTIONS" } else { "GET, HEAD, OPTIONS" }
    }

    /// The `Allow` of an object.
    pub fn detail(self) -> &'static str {
        match (self.update, self.delete) {
            (true, true) => "GET, PUT, PATCH, DELETE, HEAD, OPTIONS",
            (true, false) => "GET, PUT, PATCH, HEAD, OPTIONS",
            (false, true) => "GET, DELETE, HEAD, OPTIONS",
            (false, false) => "GET, HEAD, OPTIONS",
        }
    }
}

/// The words for an object whose key is taken.
pub enum Duplicate {
    /// One field is unique: said under that field.
    Field(&'static str),
    /// Several are: said under `__all__`, with the fields' labels.
    Together(&'static [&'static str]),
    /// Several are: said under `__all__`, with the fields' names in brackets.
    Combination(&'static [&'static str]),
}

impl Duplicate {
    /// The field to blame and the sentence.
    pub fn words(&self, label: &str) -> (&'static str, String) {
        match self {
            Self::Field(field) => {
                (field, format!("{label} with this {} already exists.", field::label_of(field)))
            }
            Self::Together(fields) => {
                let labels: Vec<String> = fields.iter().map(|field| field::label_of(field)).collect();
                ("__all__", format!("{label} with this {} already exists.", labels.join(" and ")))
            }
            Self::Combination(fields) => {
                ("__all__", format!("{label} with this ({}) combination already exists.", fields.join(", ")))
            }
        }
    }
}

/// How the organization that owns an object is found.
pub enum Owner {
    /// The object is an organization.
    Itself,
    /// This field of the object; null means it is everybody's, and so the superuser's to change.
    Field(&'static str),
    /// The owner of the object this field points to.
    Through(&'static str),
    /// It belongs to the installation.
    Installation,
}

/// Who may see and change an object: what [`access::condition`] begins with.
pub enum Access {
    /// Whoever has a role on it or on what it belongs to.
    Roles,
    /// Its user: the field that names the user.
    User(&'static str),
}

/// Every resource, in the order of the root map.
pub static ALL: &[&Resource] = &[
    &INSTANCES,
    &INSTANCE_GROUPS,
    &ORGANIZATIONS,
    &USERS,
    &TEAMS,
    &EXECUTION_ENVIRONMENTS,
    &PROJECTS,
    &PROJECT_UPDATES,
    &CREDENTIALS,
    &CREDENTIAL_TYPES,
    &CREDENTIAL_INPUT_SOURCES,
    &APPLICATIONS,
    &TOKENS,
    &INVENTORIES,
    &CONSTRUCTED_INVENTORIES,
    &INVENTORY_SOURCES,
    &INVENTORY_UPDATES,
    &GROUPS,
    &HOSTS,
    &HOST_METRICS,
    &JOB_TEMPLATES,
    &JOBS,
    &AD_HOC_COMMANDS,
    &SYSTEM_JOB_TEMPLATES,
    &SYSTEM_JOBS,
    &LABELS,
    &UNIFIED_JOB_TEMPLATES,
    &UNIFIED_JOBS,
    &ROLES,
    &ROLE_DEFINITIONS,
    &ROLE_USER_ASSIGNMENTS,
    &ROLE_TEAM_ASSIGNMENTS,
    &ACTIVITY_STREAM,
];

/// The resource with this part of the path.
pub fn by_path(path: &str) -> Option<&'static Resource> {
    match path {
        // Host summaries have addresses but no list of their own.
        "job_host_summaries" => Some(&JOB_HOST_SUMMARIES),
        _ => ALL.iter().find(|resource| resource.path == path).copied(),
    }
}

impl Resource {
    /// The address of its list.
    pub fn list_url(&self) -> String {
        format!("/api/v2/{}/", self.path)
    }

    /// The address of one object.
    pub fn url(&self, id: i64) -> String {
        format!("/api/v2/{}/{id}/", self.path)
    }

    /// The declaration of a field; `id`, times and authors are not declared but [`Resource::column`]s all the same.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Anything with a column that a filter may name: the declared fields, and those that every object has.
    pub fn column(&self, name: &str) -> Option<Field> {
        let implied = match name {
            "id" | "pk" => field::int("id"),
            "created" | "modified" if self.table.stamped => {
                field::time(if name == "created" { "created" } else { "modified" }).shared()
            }
            "created_by" if self.table.tracked => field::id("created_by", &USERS).shared(),
            "modified_by" if self.table.tracked => field::id("modified_by", &USERS).shared(),
            _ => return self.field(name).copied(),
        };
        Some(implied)
    }

    /// The alias under which a field's column is found, in a query that names this resource's table `alias`.
    pub fn alias_of(&self, field: &Field, alias: &str) -> String {
        if field.shared && self.table.parent.is_some() { parent_alias(alias) } else { alias.to_owned() }
    }

    /// The sub-list through which other objects reach this one's members: for filters.
    pub fn list(&self, name: &str) -> Option<&'static SubList> {
        self.lists.iter().find(|list| list.name == name)
    }

    /// The field with a natural name of an object: `username`, `hostname` or `name`.
    pub fn name_field(&self) -> Option<&'static str> {
        ["name", "username", "hostname"].into_iter().find(|name| self.field(name).is_some())
    }
}

/// The alias of the parent table of the table that goes by `alias`.
pub fn parent_alias(alias: &str) -> String {
    format!("{alias}p")
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_a_declaration_is_declared() {
        for resource in ALL {
            let known = |name: &&str| *name == "id" || resource.field(name).is_some();
            for name in resource.search.iter().chain(resource.natural_key) {
                assert!(known(name), "{resource:?} has no field {name}");
            }
            for name in resource.order.iter().map(|name| name.trim_start_matches('-')) {
                assert!(known(&name) || name == "created", "{resource:?} cannot be ordered by {name}");
            }
            for name in resource.summary {
                let path = name.split_once("__").map_or(name.trim_end_matches("_id"), |(first, _)| first);
                assert!(known(name) || known(&path), "{resource:?} has no field {name} to show");
            }
            match &resource.owner {
                Owner::Field(name) | Owner::Through(name) => {
                    let field = resource.field(name);
                    assert!(
                        field.is_some_and(|field| matches!(field.kind, Kind::Id(_))),
                        "{resource:?} {name}"
                    );
                }
                Owner::Itself | Owner::Installation => {}
            }
            for list in resource.lists {
                if let By::Field(name) = list.by {
                    assert!(list.of.field(name).is_some(), "{resource:?}: {:?} has no {name}", list.of);
                }
            }
        }
    }

    #[test]
    fn duplicates_are_told_in_the_words_clients_look_for() {
        let (field, text) = ORGANIZATIONS.duplicate.words(ORGANIZATIONS.label);
        assert_eq!((field, text.as_str()), ("name", "Organization with this Name already exists."));
        let (field, text) = HOSTS.duplicate.words(HOSTS.label);
        assert_eq!((field, text.as_str()), ("__all__", "Host with this Name and Inventory already exists."));
        let (_, text) = PROJECTS.duplicate.words(PROJECTS.label);
        assert_eq!(text, "Project with this (organization, name) combination already exists.");
    }
}

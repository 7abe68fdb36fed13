//! Role definitions: AWX's newer words for the same roles. A managed definition is one of the fixed roles; one that people
//! make is a bundle of them, named by the permissions it gives. What is stored of an assignment is who holds which fixed
//! role, so all ways of giving and taking see the same.
//!
//! Permissions are `awx.use_inventory` and the like. They come in the bundles of the fixed roles only: a set of them that no
//! roles add up to is refused, not rounded.

use std::collections::BTreeSet;

use sea_query::{Expr, ExprTrait, OnConflict, Query};

use super::field::{description, flag, id, int, json, name, text};
use super::roles::{ADMIN, FAMILIES, Family};
use super::{Access, Duplicate, Owner, Resource, TEAMS, Table, USERS, Verbs};
use crate::store::core::{Class, CoreDb, Error};

/// Definitions of roles: the fixed ones, and bundles of them.
pub static ROLE_DEFINITIONS: Resource = Resource {
    key: "role_definitions",
    path: "role_definitions",
    type_name: "role_definition",
    model: "RoleDefinition",
    label: "Role Definition",
    table: Table::own("role_definitions"),
    fields: &[
        name(),
        description(),
        text("content_type")
            .required()
            .max(100)
            .help("The type of resource this applies to: awx.jobtemplate"),
        json("permissions").required().unfilterable().help("What whoever holds it may do: awx.use_inventory"),
        flag("managed").read_only(),
    ],
    lists: &[],
    actions: &["user_assignments", "team_assignments"],
    search: &["name", "description"],
    summary: &["name", "description", "managed"],
    capabilities: &["edit", "delete"],
    order: &["id"],
    natural_key: &["name"],
    duplicate: Duplicate::Field("name"),
    verbs: Verbs::ALL,
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Who holds what by which definition: users.
pub static ROLE_USER_ASSIGNMENTS: Resource = Resource {
    key: "role_user_assignments",
    path: "role_user_assignments",
    type_name: "role_user_assignment",
    model: "RoleUserAssignment",
    label: "Role User Assignment",
    table: Table::view("role_user_assignments"),
    fields: &[
        text("content_type").read_only().help("The type of resource this applies to"),
        int("object_id").help("Primary key of the object this assignment applies to"),
        id("role_definition", &ROLE_DEFINITIONS).required(),
        id("user", &USERS).required(),
    ],
    lists: &[],
    actions: &[],
    search: &["content_type"],
    summary: &["content_type"],
    capabilities: &[],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs { create: true, update: false, delete: true },
    owner: Owner::Installation,
    access: Access::Roles,
};

/// Who holds what by which definition: teams.
pub static ROLE_TEAM_ASSIGNMENTS: Resource = Resource {
    key: "role_team_assignments",
    path: "role_team_assignments",
    type_name: "role_team_assignment",
    model: "RoleTeamAssignment",
    label: "Role Team Assignment",
    table: Table::view("role_team_assignments"),
    fields: &[
        text("content_type").read_only().help("The type of resource this applies to"),
        int("object_id").help("Primary key of the object this assignment applies to"),
        id("role_definition", &ROLE_DEFINITIONS).required(),
        id("team", &TEAMS).required(),
    ],
    lists: &[],
    actions: &[],
    search: &["content_type"],
    summary: &["content_type"],
    capabilities: &[],
    order: &["id"],
    natural_key: &[],
    duplicate: Duplicate::Field("id"),
    verbs: Verbs { create: true, update: false, delete: true },
    owner: Owner::Installation,
    access: Access::Roles,
};

/// The word of AWX's permissions for a family's objects: `jobtemplate`.
fn word(family: &Family) -> String {
    family.type_name.replace('_', "")
}

/// What AWX calls a family in definitions: `awx.jobtemplate`. Organizations and teams are shared with its kin.
pub fn content_type(family: &Family) -> String {
    match family.path {
        "organizations" | "teams" => format!("shared.{}", word(family)),
        _ => format!("awx.{}", word(family)),
    }
}

/// The family of a content type, in either of the spellings that clients have.
pub fn family_of(content_type: &str) -> Option<&'static Family> {
    let (of, name) = content_type.split_once('.')?;
    FAMILIES.iter().find(|family| matches!(of, "awx" | "shared") && word(family) == name)
}

/// What AWX shares with its kin, and names accordingly.
fn is_shared(word: &str) -> bool {
    matches!(word, "organization" | "team")
}

/// A permission as it is kept: clients of older times write `awx.` before those of what is shared too.
pub fn normal(permission: &str) -> String {
    let shared = permission
        .strip_prefix("awx.")
        .filter(|rest| rest.split_once('_').is_some_and(|(_, of)| is_shared(of)));
    shared.map_or_else(|| permission.to_owned(), |rest| format!("shared.{rest}"))
}

/// The permissions of a fixed role, those of the roles that it includes among them.
pub fn permissions(family: &'static Family, field: &str) -> BTreeSet<String> {
    // What includes a role is known of each role; read the other way round, that is what it includes.
    let Some(code) = family.code(field) else { return BTreeSet::new() };
    let included = family.roles().filter(|role| family.granting(role.field).0.contains(&code));
    included.flat_map(|role| own(family, role.field)).collect()
}

/// What a role gives by itself.
fn own(family: &Family, field: &str) -> Vec<String> {
    let word = word(family);
    let verbs = |verbs: &[&str], of: &str| {
        let service = if is_shared(of) { "shared" } else { "awx" };
        verbs.iter().map(|verb| format!("{service}.{verb}_{of}")).collect()
    };
    match (family.path, field) {
        (_, ADMIN) => verbs(&["change", "delete"], &word),
        ("organizations", "auditor_role") => verbs(&["audit"], &word),
        (_, other) => match other.strip_suffix("_admin_role") {
            Some(of) => {
                let of = match of {
                    "workflow" => "workflowjobtemplate".to_owned(),
                    "notification" => "notificationtemplate".to_owned(),
                    of => of.replace('_', ""),
                };
                verbs(&["add", "change", "delete"], &of)
            }
            None => {
                let verb = match other.trim_end_matches("_role") {
                    "read" => "view",
                    verb => verb,
                };
                verbs(&[verb], &word)
            }
        },
    }
}

/// Every permission there is on a family's objects.
pub fn known(family: &'static Family) -> BTreeSet<String> {
    family.roles().flat_map(|role| own(family, role.field)).collect()
}

/// The codes of the fixed roles that add up to these permissions; `None` if none do.
pub fn bundle(family: &'static Family, wanted: &BTreeSet<String>) -> Option<Vec<i64>> {
    let mut left = wanted.clone();
    let mut codes = Vec::new();
    for role in family.roles() {
        let given = permissions(family, role.field);
        if given.is_subset(wanted) {
            left.retain(|permission| !given.contains(permission));
            codes.extend(family.code(role.field));
        }
    }
    (left.is_empty() && !codes.is_empty()).then_some(codes)
}

/// AWX's name of a fixed role as a definition: `JobTemplate Execute`, `Organization Inventory Admin`.
fn title(family: &Family, field: &str) -> String {
    let camel = |text: &str| {
        text.split('_').fold(String::new(), |mut all, word| {
            let mut letters = word.chars();
            all.extend(letters.next().map(|first| first.to_ascii_uppercase()));
            all + letters.as_str()
        })
    };
    let object = camel(family.type_name);
    match field.trim_end_matches("_role") {
        "workflow_admin" => format!("{object} WorkflowJobTemplate Admin"),
        "notification_admin" => format!("{object} NotificationTemplate Admin"),
        "auditor" => format!("{object} Audit"),
        other => match other.strip_suffix("_admin") {
            Some(of) => format!("{object} {} Admin", camel(of)),
            None => format!("{object} {}", camel(other)),
        },
    }
}

/// Brings the managed definitions in the database up to date.
///
/// # Errors
/// What the database says.
pub async fn seed(db: &CoreDb) -> Result<(), Error> {
    let roles: Vec<_> =
        FAMILIES.iter().flat_map(|family| family.roles().map(move |role| (family, role.field))).collect();
    let digest = format!("2.{}", roles.len());
    if db.setting("role_definitions").await?.as_deref() == Some(&digest) {
        return Ok(());
    }
    let now = jiff::Timestamp::now().as_microsecond();
    let mut there = Query::select();
    there.column("code").from("role_definitions").and_where(Expr::col("code").is_not_null());
    let there = db.all(&there).await?.iter().map(|row| row.at(0)).collect::<Result<Vec<i64>, _>>()?;
    let mut tx = db.begin(Class::Bulk).await?;
    for (family, field) in roles {
        let Some(code) = family.code(field).filter(|code| !there.contains(code)) else { continue };
        let mut insert = Query::insert();
        insert.into_table("role_definitions").columns([
            "name",
            "description",
            "content_type",
            "permissions",
            "managed",
            "code",
            "created",
            "modified",
        ]);
        let given: Vec<String> = permissions(family, field).into_iter().collect();
        insert.values_panic([
            title(family, field).into(),
            super::roles::description(family, field).into(),
            content_type(family).into(),
            serde_json::json!(given).to_string().into(),
            true.into(),
            code.into(),
            now.into(),
            now.into(),
        ]);
        // Somebody may have taken the name for a bundle.
        insert.on_conflict(OnConflict::column("name").do_nothing().to_owned());
        tx.execute(&insert).await?;
    }
    tx.set_setting("role_definitions", &digest).await?;
    tx.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::roles::by_path;

    fn set(permissions: &[&str]) -> BTreeSet<String> {
        permissions.iter().map(|permission| (*permission).to_owned()).collect()
    }

    #[test]
    fn a_role_gives_what_the_roles_that_it_includes_give() {
        let templates = by_path("job_templates").unwrap();
        let execute = permissions(templates, "execute_role");
        assert_eq!(execute, set(&["awx.execute_jobtemplate", "awx.view_jobtemplate"]));
        assert!(execute.is_subset(&permissions(templates, ADMIN)));
        let organizations = by_path("organizations").unwrap();
        let inventories = permissions(organizations, "inventory_admin_role");
        assert!(
            inventories.contains("awx.add_inventory") && inventories.contains("shared.view_organization")
        );
    }

    #[test]
    fn permissions_add_up_to_roles_or_are_refused() {
        for family in FAMILIES {
            for role in family.roles() {
                let codes = bundle(family, &permissions(family, role.field)).unwrap();
                assert!(codes.contains(&family.code(role.field).unwrap()), "{} {}", family.path, role.field);
            }
        }
        let inventories = by_path("inventories").unwrap();
        let both = permissions(inventories, "use_role");
        let both: BTreeSet<String> = both.union(&permissions(inventories, "update_role")).cloned().collect();
        assert_eq!(bundle(inventories, &both).unwrap().len(), 3);
        assert_eq!(bundle(inventories, &set(&["awx.change_inventory"])), None);
        assert_eq!(bundle(inventories, &set(&["awx.use_project"])), None);
        assert_eq!(bundle(inventories, &set(&[])), None);
    }

    #[test]
    fn definitions_have_the_names_that_clients_know() {
        let named = |path: &str, field: &str| title(by_path(path).unwrap(), field);
        assert_eq!(named("job_templates", "execute_role"), "JobTemplate Execute");
        assert_eq!(named("organizations", "admin_role"), "Organization Admin");
        assert_eq!(named("organizations", "job_template_admin_role"), "Organization JobTemplate Admin");
        assert_eq!(named("inventories", "adhoc_role"), "Inventory Adhoc");
        assert_eq!(content_type(by_path("teams").unwrap()), "shared.team");
        assert_eq!(family_of("awx.jobtemplate"), by_path("job_templates"));
        assert_eq!(family_of("awx.organization"), family_of("shared.organization"));
        assert_eq!(family_of("jobtemplate"), None);
        assert_eq!(normal("awx.member_team"), "shared.member_team");
        assert_eq!(normal("awx.use_inventory"), "awx.use_inventory");
        let mut names: Vec<String> =
            FAMILIES.iter().flat_map(|family| family.roles().map(|role| title(family, role.field))).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

//! The fixed roles: which there are on what, and which of them include which others.
//!
//! A role belongs to an object and has no row of its own: its id is made of the object's id, the family's number and
//! the role's place in the family. What is stored is who holds it: `role_users` and `role_teams`. So a new object has
//! its roles at once, and nothing has to be kept in step. Families and roles are only ever added at the end: their
//! places are in the database.

use super::Resource;

/// Being able to see an object.
pub const READ: &str = "read_role";
/// Being able to change it, delete it and share it.
pub const ADMIN: &str = "admin_role";
/// Being able to put it on something else.
pub const USE: &str = "use_role";
/// Being able to start it.
pub const EXECUTE: &str = "execute_role";
/// Being able to have it brought up to date.
pub const UPDATE: &str = "update_role";
/// Belonging to it.
pub const MEMBER: &str = "member_role";

/// Ids of the roles on the whole installation.
pub const SYSTEM_ADMINISTRATOR: i64 = 1;
/// See [`SYSTEM_ADMINISTRATOR`].
pub const SYSTEM_AUDITOR: i64 = 2;

/// A family whose objects have roles.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// The part of the path of its resource.
    pub path: &'static str,
    /// The type of its objects.
    pub type_name: &'static str,
    number: i64,
    roles: &'static [Role],
}

/// A role that each object of a family has.
#[derive(Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name in `object_roles`: `admin_role`.
    pub field: &'static str,
    /// Roles on the same object that include it.
    own: &'static [&'static str],
    /// Roles on the object's organization that include it.
    owner: &'static [&'static str],
}

const fn role(field: &'static str, own: &'static [&'static str], owner: &'static [&'static str]) -> Role {
    Role { field, own, owner }
}

/// Every family with roles, in the order of their numbers.
pub const FAMILIES: &[Family] = &[
    Family {
        path: "organizations",
        type_name: "organization",
        number: 1,
        roles: &[
            role("admin_role", &[], &[]),
            role("execute_role", &["admin_role"], &[]),
            role("project_admin_role", &["admin_role"], &[]),
            role("inventory_admin_role", &["admin_role"], &[]),
            role("credential_admin_role", &["admin_role"], &[]),
            role("workflow_admin_role", &["admin_role"], &[]),
            role("notification_admin_role", &["admin_role"], &[]),
            role("job_template_admin_role", &["admin_role"], &[]),
            role("execution_environment_admin_role", &["admin_role"], &[]),
            role("auditor_role", &[], &[]),
            role("member_role", &["admin_role"], &[]),
            role(
                "read_role",
                &[
                    "member_role",
                    "auditor_role",
                    "execute_role",
                    "project_admin_role",
                    "inventory_admin_role",
                    "credential_admin_role",
                    "workflow_admin_role",
                    "notification_admin_role",
                    "job_template_admin_role",
                    "execution_environment_admin_role",
                    "approval_role",
                ],
                &[],
            ),
            role("approval_role", &["admin_role"], &[]),
        ],
    },
    Family {
        path: "teams",
        type_name: "team",
        number: 2,
        roles: &[
            role("admin_role", &[], &["admin_role"]),
            role("member_role", &["admin_role"], &[]),
            role("read_role", &["admin_role", "member_role"], &["auditor_role"]),
        ],
    },
    Family {
        path: "projects",
        type_name: "project",
        number: 3,
        roles: &[
            role("admin_role", &[], &["project_admin_role"]),
            role("use_role", &["admin_role"], &[]),
            role("update_role", &["admin_role"], &[]),
            role("read_role", &["use_role", "update_role"], &["auditor_role"]),
        ],
    },
    Family {
        path: "inventories",
        type_name: "inventory",
        number: 4,
        roles: &[
            role("admin_role", &[], &["inventory_admin_role"]),
            role("update_role", &["admin_role"], &[]),
            role("adhoc_role", &["admin_role"], &[]),
            role("use_role", &["adhoc_role"], &[]),
            role("read_role", &["update_role", "use_role", "admin_role"], &["auditor_role"]),
        ],
    },
    Family {
        path: "credentials",
        type_name: "credential",
        number: 5,
        roles: &[
            role("admin_role", &[], &["credential_admin_role"]),
            role("use_role", &["admin_role"], &[]),
            role("read_role", &["use_role", "admin_role"], &["auditor_role"]),
        ],
    },
    Family {
        path: "job_templates",
        type_name: "job_template",
        number: 6,
        roles: &[
            role("admin_role", &[], &["job_template_admin_role"]),
            role("execute_role", &["admin_role"], &["execute_role"]),
            role("read_role", &["execute_role", "admin_role"], &["auditor_role"]),
        ],
    },
    Family {
        path: "instance_groups",
        type_name: "instance_group",
        number: 7,
        roles: &[
            role("admin_role", &[], &[]),
            role("use_role", &["admin_role"], &[]),
            role("read_role", &["use_role", "admin_role"], &[]),
        ],
    },
];

/// The family of a resource, if its objects have roles.
pub fn family(resource: &Resource) -> Option<&'static Family> {
    // These are inventories by another address.
    by_path(if resource.path == "constructed_inventories" { "inventories" } else { resource.path })
}

/// The family with this part of the path.
pub fn by_path(path: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.path == path)
}

/// The family, role and object of an id; `None` if no role can have it.
pub fn parse(id: i64) -> Option<(&'static Family, &'static Role, i64)> {
    let (object, code) = (id >> 8, id & 0xff);
    let family = FAMILIES.iter().find(|family| family.number == code >> 4)?;
    let role = family.roles.get(usize::try_from(code & 0xf).ok()?)?;
    (object > 0).then_some((family, role, object))
}

impl Family {
    /// Its roles.
    pub fn roles(&self) -> impl Iterator<Item = &'static Role> {
        self.roles.iter()
    }

    /// Its role with this name.
    pub fn role(&self, field: &str) -> Option<&'static Role> {
        self.roles.iter().find(|role| role.field == field)
    }

    /// The number of a role: what its ids have in common.
    pub fn code(&self, field: &str) -> Option<i64> {
        let place = self.roles.iter().position(|role| role.field == field)?;
        Some(self.number << 4 | i64::try_from(place).ok()?)
    }

    /// The id of a role on an object.
    pub fn id(&self, object: i64, field: &str) -> Option<i64> {
        Some(object << 8 | self.code(field)?)
    }

    /// The numbers of all roles that include `field`: those on the object itself, it included, and those on the
    /// organization. None at all if there is no such role.
    pub fn granting(&self, field: &str) -> (Vec<i64>, Vec<i64>) {
        let (mut own, mut owner) = (Vec::new(), Vec::new());
        let mut left = vec![field];
        while let Some(field) = left.pop() {
            let (Some(role), Some(code)) = (self.role(field), self.code(field)) else { continue };
            if own.contains(&code) {
                continue;
            }
            own.push(code);
            left.extend(role.own);
            for field in role.owner {
                owner.extend(
                    FAMILIES[0]
                        .granting(field)
                        .0
                        .into_iter()
                        .filter(|code| !owner.contains(code))
                        .collect::<Vec<_>>(),
                );
            }
        }
        (own, owner)
    }

    /// Roles on the same object that directly include `field`, and those on the organization.
    pub fn parents(&self, field: &str) -> (&'static [&'static str], &'static [&'static str]) {
        self.role(field).map_or((&[], &[]), |role| (role.own, role.owner))
    }
}

/// Whether a team can hold a role. Teams hold no membership: neither of organizations nor of other teams.
pub fn takes_teams(family: &Family, field: &str) -> bool {
    match family.path {
        "organizations" => !matches!(field, ADMIN | MEMBER),
        "teams" => false,
        _ => true,
    }
}

/// What people call a role.
pub fn label(field: &str) -> String {
    match field {
        "adhoc_role" => "Ad Hoc".to_owned(),
        "approval_role" => "Approve".to_owned(),
        _ => super::field::label_of(field.trim_end_matches("_role")),
    }
}

/// What a role allows, in one sentence.
pub fn description(family: &Family, field: &str) -> String {
    let object = family.type_name.replace('_', " ");
    match field {
        "admin_role" => format!("Can manage all aspects of the {object}"),
        "adhoc_role" => format!("May run ad hoc commands on the {object}"),
        "approval_role" => "Can approve or deny a workflow approval node".to_owned(),
        "auditor_role" => format!("Can view all aspects of the {object}"),
        "execute_role" if family.path == "organizations" => {
            "May run any executable resources in the organization".to_owned()
        }
        "execute_role" => format!("May run the {object}"),
        "member_role" => format!("User is a member of the {object}"),
        "read_role" => format!("May view settings for the {object}"),
        "update_role" => format!("May update the {object}"),
        "use_role" => format!("Can use the {object} in a job template"),
        other => {
            let what = other.trim_end_matches("_admin_role").replace('_', " ");
            let plural = what.strip_suffix('y').map_or(format!("{what}s"), |stem| format!("{stem}ies"));
            format!("Can manage all {plural} of the {object}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(codes: &[i64]) -> Vec<&'static str> {
        let mut fields: Vec<_> =
            codes.iter().map(|code| parse(1 << 8 | code).map_or("", |(_, role, _)| role.field)).collect();
        fields.sort_unstable();
        fields
    }

    #[test]
    fn every_name_is_a_role_and_every_id_is_read_back() {
        for (place, family) in FAMILIES.iter().enumerate() {
            assert_eq!(family.number, place as i64 + 1);
            assert!(family.roles.len() <= 16);
            for role in family.roles {
                assert!(role.own.iter().all(|field| family.role(field).is_some()), "{}", family.path);
                assert!(role.owner.iter().all(|field| FAMILIES[0].role(field).is_some()), "{}", family.path);
                let id = family.id(77, role.field).unwrap();
                let (found, of, object) = parse(id).unwrap();
                assert_eq!((found.path, of.field, object), (family.path, role.field, 77));
            }
        }
        assert_eq!((parse(SYSTEM_ADMINISTRATOR), parse(SYSTEM_AUDITOR), parse(-5)), (None, None, None));
    }

    #[test]
    fn what_includes_a_role_is_followed_to_the_end() {
        let (own, owner) = by_path("inventories").unwrap().granting(READ);
        assert_eq!(fields(&own), ["adhoc_role", "admin_role", "read_role", "update_role", "use_role"]);
        assert_eq!(fields(&owner), ["admin_role", "auditor_role", "inventory_admin_role"]);
        let (own, owner) = by_path("job_templates").unwrap().granting(EXECUTE);
        assert_eq!(fields(&own), ["admin_role", "execute_role"]);
        assert_eq!(fields(&owner), ["admin_role", "execute_role", "job_template_admin_role"]);
        let (own, owner) = by_path("credentials").unwrap().granting("no_such_role");
        assert!(own.is_empty() && owner.is_empty());
    }

    #[test]
    fn no_role_to_look_includes_one_to_change() {
        for family in FAMILIES {
            let (own, owner) = family.granting(ADMIN);
            assert_eq!(fields(&own), ["admin_role"]);
            for weak in ["auditor_role", "read_role", "member_role", "execute_role", "use_role"] {
                assert!(!fields(&owner).contains(&weak), "{}", family.path);
            }
        }
    }

    #[test]
    fn roles_have_the_names_people_know() {
        let organizations = &FAMILIES[0];
        assert_eq!(label("execution_environment_admin_role"), "Execution Environment Admin");
        assert_eq!(label("adhoc_role"), "Ad Hoc");
        assert_eq!(
            description(organizations, "inventory_admin_role"),
            "Can manage all inventories of the organization"
        );
        assert_eq!(
            description(organizations, "project_admin_role"),
            "Can manage all projects of the organization"
        );
    }
}

//! What a resource adds to what all have: checks of its own, what it keeps beside its row, what it shows beside its
//! columns. Each family implements this in its file; most need one or two of these.

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};

use super::call::Call;
use super::error::ApiError;
use crate::registry::Resource;
use crate::registry::read::Record;
use crate::registry::write::Draft;
use crate::store::core::WriteTx;

/// The future of a rule.
pub(super) type Rule<'a, T = ()> = BoxFuture<'a, Result<T, ApiError>>;

/// See the module.
pub(super) trait Rules: Sync {
    /// Checks and completes what is to be written; `before` is the object that is changed.
    fn check<'a>(&'a self, _call: &'a Call, _draft: &'a mut Draft, _before: Option<&'a Record>) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Writes what belongs to the object beside its row, in the same transaction.
    fn written<'a>(&'a self, _call: &'a Call, _tx: &'a mut WriteTx, _id: i64, _draft: &'a Draft) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Completes a page of objects; as many queries for many as for one.
    fn fill<'a>(&'a self, _call: &'a Call, _records: &'a mut [Record], _detail: bool) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Refuses a deletion.
    fn may_delete<'a>(&'a self, _call: &'a Call, _record: &'a Record) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Refuses that a member joins a list of an object.
    fn may_attach<'a>(&'a self, _tx: &'a mut WriteTx, _list: &'a str, _id: i64, _member: i64) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Follows up on a member that joined a list, in the same transaction.
    fn joined<'a>(&'a self, _tx: &'a mut WriteTx, _list: &'a str, _id: i64, _member: i64) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Follows up on a member that left a list.
    fn parted<'a>(&'a self, _tx: &'a mut WriteTx, _list: &'a str, _id: i64, _member: i64) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Follows up on a deletion.
    fn deleted<'a>(&'a self, _tx: &'a mut WriteTx) -> Rule<'a> {
        Box::pin(async { Ok(()) })
    }

    /// Whether whoever is no superuser may change an object that is visible to them.
    fn own_changes(&self) -> bool {
        false
    }

    /// Changes what OPTIONS says of writing.
    fn options(&self, _fields: &mut Map<String, Value>) {}
}

struct Plain;
impl Rules for Plain {}

/// The rules of a resource.
pub(super) fn of(resource: &Resource) -> &'static dyn Rules {
    match resource.path {
        "activity_stream" => &super::activity::Stream,
        "users" => &super::people::Users,
        "tokens" => &super::tokens::Tokens,
        "applications" => &super::applications::Applications,
        "roles" => &super::roles::Roles,
        "role_definitions" => &super::definitions::Definitions,
        "role_user_assignments" | "role_team_assignments" => &super::definitions::Assignments,
        "execution_environments" => &super::environments::Environments,
        "credential_types" => &super::credentials::Types,
        "credentials" => &super::credentials::Credentials,
        "credential_input_sources" => &super::lookups::InputSources,
        "projects" => &super::projects::Projects,
        "inventories" | "constructed_inventories" => &super::inventories::Inventories,
        "inventory_sources" => &super::inventory_sources::Sources,
        "ad_hoc_commands" => &super::ad_hoc::Commands,
        "hosts" => &super::inventories::Hosts,
        "groups" => &super::inventories::Groups,
        "job_templates" => &super::templates::JobTemplates,
        "unified_job_templates" => &super::templates::UnifiedTemplates,
        "jobs" | "project_updates" | "inventory_updates" | "unified_jobs" => &super::jobs::Jobs,
        "system_job_templates" => &super::system::Templates,
        "system_jobs" => &super::system::Jobs,
        "instances" => &super::fleet::Instances,
        "instance_groups" => &super::fleet::InstanceGroups,
        _ => &Plain,
    }
}

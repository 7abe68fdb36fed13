//! The kinds of unified jobs that run as a unit on a node: what is the same for all of them is written once, and asks here
//! for what is not.
//!
//! A kind is a row of `unified_jobs` with its word in `kind`. The reconciler places it by [`Kind::places`], the loader of
//! its kind (`reconcile/load`) turns the row into a [`Run`](crate::payload::private::Run) for ansible-runner and says
//! which tree goes with it, ingest stores its events as those of any other, and [`crate::job::conclude`] calls what its
//! end means for others. The API serves events, output and cancel of every kind from one place, under the names below.

use crate::registry::{AD_HOC_COMMANDS, INVENTORY_UPDATES, JOBS, PROJECT_UPDATES, Resource};

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A playbook of a project on an inventory.
    Job,
    /// The playbook of ours that fetches a project.
    ProjectUpdate,
    /// `ansible-inventory` on a source of an inventory.
    InventoryUpdate,
    /// One module on hosts of an inventory.
    AdHocCommand,
}

/// How a kind is called in the API.
#[derive(Debug)]
pub struct Names {
    /// Its resource; the `type_name` of that is also the word in the column `kind`.
    pub resource: &'static Resource,
    /// The list of its events, below an object: `jobs/N/job_events/`.
    pub events: &'static str,
    /// The `type` of its events; with an `s` it is the path of one, and the group of the websocket.
    pub event: &'static str,
    /// Path of single events, and group of the websocket.
    pub group: &'static str,
    /// The field of an event that says what it is of.
    pub owner: &'static str,
}

/// By which rules a kind is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Forks it keeps busy, where that does not depend on hosts.
    pub impact: Option<u32>,
    /// Only one of a template at a time, whatever the row says: two updates of one project would do the work twice.
    pub alone: bool,
}

static OF_JOB: Names =
    Names { resource: &JOBS, events: "job_events", event: "job_event", group: "job_events", owner: "job" };

static OF_PROJECT_UPDATE: Names = Names {
    resource: &PROJECT_UPDATES,
    events: "events",
    event: "project_update_event",
    group: "project_update_events",
    owner: "project_update",
};

static OF_INVENTORY_UPDATE: Names = Names {
    resource: &INVENTORY_UPDATES,
    events: "events",
    event: "inventory_update_event",
    group: "inventory_update_events",
    owner: "inventory_update",
};

static OF_AD_HOC_COMMAND: Names = Names {
    resource: &AD_HOC_COMMANDS,
    events: "events",
    event: "ad_hoc_command_event",
    group: "ad_hoc_command_events",
    owner: "ad_hoc_command",
};

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Job, Self::ProjectUpdate, Self::InventoryUpdate, Self::AdHocCommand];

    /// How it is called.
    pub fn names(self) -> &'static Names {
        match self {
            Self::Job => &OF_JOB,
            Self::ProjectUpdate => &OF_PROJECT_UPDATE,
            Self::InventoryUpdate => &OF_INVENTORY_UPDATE,
            Self::AdHocCommand => &OF_AD_HOC_COMMAND,
        }
    }

    /// Its word in the column `kind`.
    pub fn as_str(self) -> &'static str {
        self.names().resource.type_name
    }

    /// The kind with this word; `None` for what the controller runs by itself.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The kind whose objects this resource shows.
    pub fn of_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.names().resource.path == path)
    }

    /// The kind whose events a group of the websocket, or a path of single events, names.
    pub fn of_group(group: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.names().group == group)
    }

    /// Its rules of placement.
    pub fn places(self) -> Places {
        match self {
            Self::Job | Self::AdHocCommand => Places { impact: None, alone: false },
            Self::ProjectUpdate | Self::InventoryUpdate => Places { impact: Some(1), alone: true },
        }
    }

    /// Whether the tree that its unit leaves behind comes back to the controller.
    pub fn collects(self) -> bool {
        match self {
            Self::Job | Self::InventoryUpdate | Self::AdHocCommand => false,
            Self::ProjectUpdate => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_kind() {
        for kind in Kind::ALL {
            let names = kind.names();
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
            assert_eq!(Kind::of_path(names.resource.path), Some(kind));
            assert_eq!(Kind::of_group(names.group), Some(kind));
            assert_eq!(names.resource.table.kind, Some(kind.as_str()));
            for action in [names.events, "stdout", "cancel"] {
                assert!(names.resource.actions.contains(&action), "{action}");
            }
        }
        assert_eq!(Kind::parse("system_job"), None);
    }
}

//! Families that AWX has and that are not here yet: what they are called, and where other objects list them.
//!
//! Clients ask for them even when nobody uses them: `awx users grant` wants to know the roles of workflow templates,
//! `awx export` walks every sub-list. They answer as lists of nothing; what would make one says what is missing.

/// A family that is not here yet.
#[derive(Debug)]
pub struct Later {
    /// Its name in the root map.
    pub key: &'static str,
    /// Its part of the path.
    pub path: &'static str,
    /// The `type` of its objects.
    pub type_name: &'static str,
    /// The name for people.
    pub label: &'static str,
    /// Whether clients make them by POST.
    pub creates: bool,
}

const fn made(key: &'static str, path: &'static str, type_name: &'static str, label: &'static str) -> Later {
    Later { key, path, type_name, label, creates: true }
}

const fn shown(key: &'static str, path: &'static str, type_name: &'static str, label: &'static str) -> Later {
    Later { key, path, type_name, label, creates: false }
}

/// Every such family, in the order of the root map.
pub static LATER: &[Later] = &[
    // Nodes find each other by the mesh's own announcements: nobody registers their addresses.
    shown("receptor_addresses", "receptor_addresses", "receptor_address", "Receptor Address"),
    made("schedules", "schedules", "schedule", "Schedule"),
    made(
        "notification_templates",
        "notification_templates",
        "notification_template",
        "Notification Template",
    ),
    shown("notifications", "notifications", "notification", "Notification"),
    made(
        "workflow_job_templates",
        "workflow_job_templates",
        "workflow_job_template",
        "Workflow Job Template",
    ),
    shown("workflow_jobs", "workflow_jobs", "workflow_job", "Workflow Job"),
    shown("workflow_approvals", "workflow_approvals", "workflow_approval", "Workflow Approval"),
    made(
        "workflow_job_template_nodes",
        "workflow_job_template_nodes",
        "workflow_job_template_node",
        "Workflow Job Template Node",
    ),
    shown("workflow_job_nodes", "workflow_job_nodes", "workflow_job_node", "Workflow Job Node"),
];

const NOTICES: [(&str, &str); 3] = [
    ("notification_templates_started", "notification_templates"),
    ("notification_templates_success", "notification_templates"),
    ("notification_templates_error", "notification_templates"),
];

/// Sub-lists of such families: the resource they are below, and name and family of each.
const BELOW: &[(&str, &[(&str, &str)])] = &[
    (
        "organizations",
        &[
            ("workflow_job_templates", "workflow_job_templates"),
            ("notification_templates", "notification_templates"),
            NOTICES[0],
            NOTICES[1],
            NOTICES[2],
            ("notification_templates_approvals", "notification_templates"),
        ],
    ),
    ("projects", &[("schedules", "schedules"), NOTICES[0], NOTICES[1], NOTICES[2]]),
    (
        "job_templates",
        &[
            ("schedules", "schedules"),
            NOTICES[0],
            NOTICES[1],
            NOTICES[2],
            ("slice_workflow_jobs", "workflow_jobs"),
        ],
    ),
    ("instances", &[("receptor_addresses", "receptor_addresses")]),
    ("jobs", &[("notifications", "notifications")]),
    ("system_job_templates", &[("schedules", "schedules"), NOTICES[0], NOTICES[1], NOTICES[2]]),
    ("system_jobs", &[("notifications", "notifications")]),
    ("inventory_sources", &[("schedules", "schedules"), NOTICES[0], NOTICES[1], NOTICES[2]]),
    ("inventory_updates", &[("notifications", "notifications")]),
    ("ad_hoc_commands", &[("notifications", "notifications")]),
];

/// The family with this part of the path.
pub fn by_path(path: &str) -> Option<&'static Later> {
    LATER.iter().find(|later| later.path == path)
}

/// Names of the sub-lists of such families below a resource.
pub fn below(path: &str) -> impl Iterator<Item = (&'static str, &'static Later)> {
    let lists = BELOW.iter().find(|(resource, _)| *resource == path).map_or(&[][..], |(_, lists)| *lists);
    lists.iter().filter_map(|(name, family)| Some((*name, by_path(family)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_family_is_both_here_and_later() {
        for later in LATER {
            assert!(super::super::by_path(later.path).is_none(), "{}", later.path);
        }
        for (resource, lists) in BELOW {
            let resource = super::super::by_path(resource).unwrap();
            for (name, family) in *lists {
                assert!(by_path(family).is_some(), "{family}");
                assert!(
                    resource.list(name).is_none() && !resource.actions.contains(name),
                    "{resource:?} {name}"
                );
            }
        }
    }
}

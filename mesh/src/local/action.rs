//! What root of a machine may have its daemon do.

use serde::{Deserialize, Serialize};

use crate::status::QueryError;

/// A verb with its arguments, as JSON: `{"action":"drain","deadline_ms":60000,"reason":"new disk"}`. It concerns the
/// daemon that is asked and nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Reads the configuration again.
    Reload,
    /// Takes no new work.
    Cordon {
        /// For people who wonder why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Takes work again.
    Uncordon,
    /// Takes no new work and waits until the running units have ended.
    Drain {
        /// Longest wait; afterwards the answer says which units still run. Without it the wait has no end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
        /// For people who wonder why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Lists the images that the node's runtime has.
    ImageList,
    /// Says whether units could start from an image, and what is missing; of all that units need without one.
    ImageCheck {
        /// `registry/name:tag`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
    },
    /// Pulls an image.
    ImagePull {
        /// `registry/name:tag`.
        image: String,
    },
}

impl Action {
    /// The verb, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Cordon { .. } => "cordon",
            Self::Uncordon => "uncordon",
            Self::Drain { .. } => "drain",
            Self::ImageList => "image list",
            Self::ImageCheck { .. } => "image check",
            Self::ImagePull { .. } => "image pull",
        }
    }
}

/// A verb that was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    /// Daemons of this kind or version cannot.
    #[error("this daemon does not offer {0}")]
    NotOffered(&'static str),
    /// The arguments make no sense.
    #[error("{0}")]
    Invalid(String),
    /// What it is about is not there.
    #[error("{0}")]
    NotFound(String),
    /// Not now, or not by policy.
    #[error("{0}")]
    Refused(String),
    /// By another node's policy.
    #[error("{0}")]
    Denied(String),
    /// About a node that does not answer.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// It was tried and did not work.
    #[error("{0}")]
    Failed(String),
}

impl From<ActError> for tonic::Status {
    fn from(error: ActError) -> Self {
        let text = error.to_string();
        match error {
            ActError::NotOffered(_) => Self::unimplemented(text),
            ActError::Invalid(_) => Self::invalid_argument(text),
            ActError::NotFound(_) => Self::not_found(text),
            ActError::Refused(_) => Self::failed_precondition(text),
            ActError::Denied(_) => Self::permission_denied(text),
            ActError::Query(error) => super::refuse(error),
            ActError::Failed(_) => Self::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_small_json() {
        let check = |action: Action, json: &str| {
            assert_eq!(serde_json::to_string(&action).unwrap(), json);
            assert_eq!(serde_json::from_str::<Action>(json).unwrap(), action);
        };
        check(Action::Reload, r#"{"action":"reload"}"#);
        check(Action::Cordon { reason: None }, r#"{"action":"cordon"}"#);
        let drain = Action::Drain { deadline_ms: Some(5), reason: Some("disk".into()) };
        check(drain, r#"{"action":"drain","deadline_ms":5,"reason":"disk"}"#);
        check(Action::ImagePull { image: "a/b:c".into() }, r#"{"action":"image_pull","image":"a/b:c"}"#);
        assert!(serde_json::from_str::<Action>(r#"{"action":"format_disk"}"#).is_err());
    }
}

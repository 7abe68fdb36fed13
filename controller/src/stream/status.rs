//! Status lines: the run's own word on where it stands.

use serde_json::{Map, Value};

/// Longest text kept of an unknown status word.
const WORD_MAX: usize = 64;

/// Where a run stands, as the runner says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunnerStatus {
    /// The command is known and about to start.
    Starting,
    /// It runs.
    Running,
    /// Ended with rc 0.
    Successful,
    /// Ended otherwise, or died.
    Failed,
    /// Ended by a signal to the worker.
    Canceled,
    /// Ended by job_timeout or idle_timeout.
    Timeout,
    /// The worker could not start it.
    Error,
    /// A word this version does not know, cut to 64 bytes.
    Other(String),
}

impl RunnerStatus {
    /// The word on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Successful => "successful",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::Error => "error",
            Self::Other(word) => word,
        }
    }

    /// Reads a word.
    pub fn parse(word: &str) -> Self {
        match word {
            "starting" => Self::Starting,
            "running" => Self::Running,
            "successful" => Self::Successful,
            "failed" => Self::Failed,
            "canceled" => Self::Canceled,
            "timeout" => Self::Timeout,
            "error" => Self::Error,
            other => {
                let kept = (0..=WORD_MAX.min(other.len())).rev().find(|&at| other.is_char_boundary(at));
                Self::Other(other[..kept.unwrap_or(0)].to_owned())
            }
        }
    }
}

/// A status line.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The word.
    pub status: RunnerStatus,
    /// What went wrong, of `error`.
    pub job_explanation: Option<String>,
    /// Python traceback, of `error`.
    pub result_traceback: Option<String>,
    /// The command, of `starting`. Secrets and all.
    pub command: Option<Vec<String>>,
    /// Its environment, of `starting`. Secrets and all.
    pub env: Option<Vec<(String, String)>>,
    /// Its working directory, of `starting`.
    pub cwd: Option<String>,
}

impl Status {
    /// Reads a line that is strict JSON. Fields of the wrong type count as absent.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let mut fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let mut text = |key: &str| fields.remove(key).and_then(text);
        Some(Self {
            status: RunnerStatus::parse(&text("status").unwrap_or_default()),
            job_explanation: text("job_explanation"),
            result_traceback: text("result_traceback"),
            cwd: text("cwd"),
            command: match fields.remove("command") {
                Some(Value::Array(words)) => Some(words.into_iter().filter_map(self::text).collect()),
                Some(Value::String(command)) => Some(vec![command]),
                _ => None,
            },
            env: match fields.remove("env") {
                Some(Value::Object(env)) => Some(
                    env.into_iter().filter_map(|(name, value)| Some((name, self::text(value)?))).collect(),
                ),
                _ => None,
            },
        })
    }
}

/// A string as it is, another scalar as its JSON.
fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starting_line_names_command_and_environment() {
        let line = br#"{"status": "starting", "command": ["a", 7], "env": {"PATH": "/bin", "N": 1}, "cwd": "/runner"}"#;
        let status = Status::read(line).unwrap();
        assert_eq!(status.status, RunnerStatus::Starting);
        assert_eq!(status.command.unwrap(), ["a", "7"]);
        assert_eq!(
            status.env.unwrap(),
            [("PATH".into(), "/bin".into()), ("N".into(), "1".into())],
            "in their order"
        );
        assert_eq!(status.cwd.unwrap(), "/runner");
    }

    #[test]
    fn a_status_of_the_wrong_shape_is_still_one() {
        let status = Status::read(br#"{"status": null, "command": 7, "env": []}"#).unwrap();
        assert_eq!(
            (status.status, status.command, status.env),
            (RunnerStatus::Other(String::new()), None, None)
        );
        let long = format!(r#"{{"status": "{}"}}"#, "é".repeat(100));
        assert!(Status::read(long.as_bytes()).unwrap().status.as_str().len() <= WORD_MAX);
    }
}

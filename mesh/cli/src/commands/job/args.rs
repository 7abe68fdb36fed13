//! What can be typed after `plexus job`.

use std::fs;

use clap::Subcommand;
use serde_json::{Map, Value};

use crate::failure::{Exit, Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Launches a job template and follows the job; ends as the job does.
    #[command(after_help = "\
Examples:
  plexus job launch 'Deploy web' --limit web1 -e version=1.4 -e @vars.json
  plexus job launch 7 --check --diff
  plexus job launch nightly --detach -o json")]
    Launch(Launch),
    /// Shows a job's output as Ansible prints it, and follows it; ends as the job does.
    #[command(after_help = "\
Exit code: 0 when the job was successful, 1 when it failed or was canceled.
A lost connection is taken up again where it broke; nothing is shown twice.

Examples:
  plexus job tail 42")]
    Tail {
        /// Id of the job.
        id: i64,
        /// Begin after the event with this number.
        #[arg(long, default_value_t = 0, value_name = "EVENT", value_parser = clap::value_parser!(i64).range(0..))]
        after: i64,
    },
    /// Lists the newest jobs.
    #[command(after_help = "\
Examples:
  plexus job list --status running")]
    List {
        /// Only those with this status: pending, waiting, running, successful, failed, error, canceled.
        #[arg(long)]
        status: Option<String>,
        /// How many.
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
    },
    /// Shows a job: what it runs, where, since when, and how it ended.
    #[command(after_help = "\
Examples:
  plexus job show 42")]
    Show {
        /// Id of the job.
        id: i64,
    },
    /// Says in a sentence why a job waits, or why it ended as it did.
    #[command(after_help = "\
Examples:
  plexus job why 42")]
    Why {
        /// Id of the job.
        id: i64,
    },
    /// Finds which jobs, hosts and tasks failed with a text, since when.
    #[command(after_help = "\
Examples:
  plexus job grep 'No space left'
  plexus job grep timeout --since 7d --host web1 -o json
Newest first, shown as found. Exit code 1 when nothing is found.")]
    Grep(super::grep::Grep),
    /// Asks for a job to be stopped.
    #[command(after_help = "\
Examples:
  plexus job cancel 42")]
    Cancel {
        /// Id of the job.
        id: i64,
    },
    /// Launches a job again, and follows it.
    #[command(after_help = "\
Examples:
  plexus job relaunch 42 --failed")]
    Relaunch {
        /// Id of the job.
        id: i64,
        /// Only on the hosts where it failed.
        #[arg(long)]
        failed: bool,
        /// Do not follow it.
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Launch {
    /// Id or name of the job template.
    pub(crate) template: String,
    /// Variables: name=value, JSON, or @file with JSON; may be given several times, later ones win.
    #[arg(short, long, value_name = "VARS")]
    pub(crate) extra_vars: Vec<String>,
    /// Inventory, by id or name.
    #[arg(short, long)]
    pub(crate) inventory: Option<String>,
    /// Only these hosts.
    #[arg(short, long, value_name = "PATTERN")]
    pub(crate) limit: Option<String>,
    /// Only tasks with these tags.
    #[arg(short, long)]
    pub(crate) tags: Option<String>,
    /// No tasks with these tags.
    #[arg(long)]
    pub(crate) skip_tags: Option<String>,
    /// Credential, by id or name; may be given several times.
    #[arg(long)]
    pub(crate) credential: Vec<String>,
    /// Execution environment, by id or name.
    #[arg(long, value_name = "NAME")]
    pub(crate) ee: Option<String>,
    /// Change nothing, say what would be changed.
    #[arg(short = 'C', long)]
    pub(crate) check: bool,
    /// Show differences of changed files.
    #[arg(short = 'D', long)]
    pub(crate) diff: bool,
    /// How much Ansible tells: 0 to 5.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=5))]
    pub(crate) verbosity: Option<u8>,
    /// Do not follow the job.
    #[arg(long)]
    pub(crate) detach: bool,
}

/// Merges what `-e` was given.
pub(super) fn variables(given: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut all = Map::new();
    for text in given {
        let odd = |why: &str| {
            Failure::new(Exit::Usage, format!("variables {text:?}: {why}"))
                .hint("give name=value, a JSON object, or @file with one")
        };
        let json = match (text.strip_prefix('@'), text.trim_start().starts_with('{')) {
            (Some(path), _) => {
                Some(fs::read_to_string(path).map_err(|error| odd(&format!("cannot be read: {error}")))?)
            }
            (None, true) => Some(text.clone()),
            (None, false) => None,
        };
        match json {
            Some(json) => match serde_json::from_str(&json) {
                Ok(Value::Object(some)) => all.extend(some),
                Ok(_) => return Err(odd("not a JSON object")),
                Err(error) => return Err(odd(&format!("not JSON: {error}"))),
            },
            None => match text.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    all.insert(name.to_owned(), value.into());
                }
                _ => return Err(odd("no name and value")),
            },
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_merged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("vars.json");
        fs::write(&file, r#"{"b": [1], "c": 3}"#).unwrap();
        let given = ["a=1=2", r#"{"b": true}"#, &format!("@{}", file.display()), "c="].map(str::to_owned);
        let merged = variables(&given).unwrap();
        assert_eq!(Value::from(merged).to_string(), r#"{"a":"1=2","b":[1],"c":""}"#);
        for bad in ["a", "=1", "{", "[1]", "@/nowhere"] {
            assert_eq!(variables(&[bad.to_owned()]).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}

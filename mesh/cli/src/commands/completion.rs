//! `plexus completion SHELL`, and what its scripts ask: candidates for the word being typed.
//!
//! The scripts know nothing of our commands; they ask this program at each TAB, so that they never grow old, and so
//! that names of live nodes are among the candidates. Candidates are lines of a word, a tab, and what it means.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, Command};
use plexus_mesh::status::Nodes;

use crate::args::{self, Shell};
use crate::door;
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::settings::Settings;

/// Longest that somebody who pressed TAB waits for a daemon.
const PATIENCE: Duration = Duration::from_secs(1);

const BASH: &str = r#"# bash completion of plexus
_plexus() {
    local IFS=$'\n'
    local current="${COMP_WORDS[COMP_CWORD]}"
    COMPREPLY=($(compgen -W "$(plexus __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1)" -- "$current"))
}
complete -o default -F _plexus plexus
"#;

const ZSH: &str = r#"#compdef plexus
_plexus() {
    local -a found
    local line
    for line in "${(@f)$(plexus __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    if (( ${#found} )); then _describe plexus found; else _files; fi
}
if [[ $funcstack[1] == _plexus ]]; then _plexus "$@"; else compdef _plexus plexus; fi
"#;

const FISH: &str = r#"# fish completion of plexus
complete -c plexus -f -a '(plexus __complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
"#;

pub(crate) fn script(shell: Shell, output: &mut Output) -> Result<Exit, Failure> {
    output.write(match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    })?;
    Ok(Exit::Ok)
}

/// Prints candidates for the last of `words`. Never fails: at a TAB there is nobody to tell.
pub(crate) async fn complete(
    settings: &Settings,
    words: &[String],
    output: &mut Output,
) -> Result<Exit, Failure> {
    let (found, wants_nodes) = candidates(args::definition(), words);
    let mut text = String::new();
    for Candidate { word, help } in found {
        let _ = writeln!(text, "{word}\t{help}");
    }
    if let Some(suffix) = wants_nodes {
        // The scripts pass flags on as words; the socket among them counts.
        let socket = words.iter().skip_while(|word| *word != "--socket").nth(1).map(PathBuf::from);
        let settings = socket.map_or_else(|| settings.clone(), Settings::Socket);
        let names = tokio::time::timeout(PATIENCE, nodes(&settings)).await.ok().flatten().unwrap_or_default();
        for (name, help) in names {
            let _ = writeln!(text, "{name}{suffix}\t{help}");
        }
    }
    output.write(&text)?;
    Ok(Exit::Ok)
}

async fn nodes(settings: &Settings) -> Option<Vec<(String, String)>> {
    let answer = door::open(settings).await.ok()?.nodes().await.ok()?;
    let nodes: Nodes = answer.parse().ok()?;
    let help = |reachable| if reachable { "" } else { ", unreachable" };
    let named = nodes
        .nodes
        .iter()
        .map(|node| (node.node.to_string(), format!("{}{}", node.role, help(node.reachable))));
    Some(named.collect())
}

#[derive(Debug, PartialEq, Eq)]
struct Candidate {
    word: String,
    help: String,
}

/// What may stand in place of the last word, and whether names of nodes may, with what is put behind each.
fn candidates(mut command: Command, words: &[String]) -> (Vec<Candidate>, Option<&'static str>) {
    // Builds what is global into every command.
    command.build();
    let (current, before) =
        words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut here = &command;
    let mut positionals = 0;
    let mut before = before.iter();
    while let Some(word) = before.next() {
        if let Some(option) = option(here, word) {
            if takes_value(option) && !word.contains('=') && before.next().is_none() {
                return values(option);
            }
        } else if let Some(sub) = here.find_subcommand(word) {
            here = sub;
            positionals = 0;
        } else if !word.starts_with('-') {
            positionals += 1;
        }
    }
    if current.starts_with('-') {
        let options = here.get_arguments().filter(|arg| !arg.is_hide_set());
        let named =
            options.filter_map(|arg| Some(candidate(format!("--{}", arg.get_long()?), arg.get_help())));
        return (named.collect(), None);
    }
    if here.has_subcommands() {
        let subs = here.get_subcommands().filter(|sub| !sub.is_hide_set());
        return (subs.map(|sub| candidate(sub.get_name().to_owned(), sub.get_about())).collect(), None);
    }
    let positional = here.get_positionals().nth(positionals).or_else(|| {
        // The last one may take several values.
        here.get_positionals()
            .last()
            .filter(|last| last.get_num_args().is_some_and(|n| n.max_values() > positionals))
    });
    positional.map_or((Vec::new(), None), values)
}

fn option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    match (name.strip_prefix("--"), name.strip_prefix('-')) {
        (Some(long), _) => command.get_arguments().find(|arg| arg.get_long() == Some(long)),
        (None, Some(short)) => command
            .get_arguments()
            .find(|arg| arg.get_short().is_some_and(|known| short == known.to_string())),
        (None, None) => None,
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

fn values(arg: &Arg) -> (Vec<Candidate>, Option<&'static str>) {
    let possible = arg.get_possible_values();
    let found = possible.iter().filter(|value| !value.is_hide_set());
    let found = found.map(|value| candidate(value.get_name().to_owned(), value.get_help())).collect();
    let nodes = match arg.get_id().as_str() {
        "node" | "nodes" => Some(""),
        "target" => Some(":"),
        _ => None,
    };
    (found, nodes)
}

fn candidate(word: String, help: Option<&clap::builder::StyledStr>) -> Candidate {
    // A description is one line.
    let help = help.map(ToString::to_string).unwrap_or_default();
    Candidate { word, help: help.lines().next().unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, words: &[&str], nodes: Option<&str>) {
        let typed: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let (found, wants) = candidates(args::definition(), &typed);
        let found: Vec<_> = found.iter().map(|found| found.word.as_str()).collect();
        let all = words.iter().all(|word| found.contains(word));
        assert!(all && (!words.is_empty() || found.is_empty()), "{line}: {found:?}");
        assert_eq!(wants, nodes, "{line}");
        assert!(!found.contains(&"__complete"));
    }

    #[test]
    fn what_may_come_next_is_found() {
        check("", &["status", "nodes", "ping", "work", "doctor"], None);
        check("sta", &["status"], None);
        check("node ", &["cordon", "drain", "revoke", "image"], None);
        check("node image ", &["list", "check", "pull"], None);
        check("status --", &["--output", "--watch", "--socket"], None);
        check("ping --c", &["--count", "--timeout"], None);
        check("-o ", &["table", "wide", "json", "jsonl", "yaml", "name"], None);
        check("status --output ", &["json"], None);
        check("completion ", &["bash", "zsh", "fish"], None);
        check("token create --role ", &[], None);
    }

    #[test]
    fn names_of_nodes_are_asked_for_where_one_stands() {
        check("ping ", &[], Some(""));
        check("--socket /x ping no", &[], Some(""));
        check("trace -c 5 ", &[], Some(""));
        check("netcheck a ", &[], Some(""));
        check("ping a ", &[], None);
        check("forward 8080 ", &[], Some(":"));
        check("node drain ", &[], Some(""));
        check("work list --node ", &[], Some(""));
        check("ping --count ", &[], None);
    }

    #[test]
    fn candidates_say_what_they_mean() {
        let (found, _) = candidates(args::definition(), &["node".into(), "".into()]);
        let drain = found.iter().find(|found| found.word == "drain").unwrap();
        assert!(drain.help.starts_with("Gives a node no new work and waits"), "{}", drain.help);
    }
}

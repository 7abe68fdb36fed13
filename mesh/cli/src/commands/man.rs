//! `plexus man`: the manual, from the same definitions as the help.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

use crate::args;
use crate::failure::{Exit, Failure};
use crate::output::Output;

pub(crate) fn run(dir: Option<&Path>, markdown: bool, output: &mut Output) -> Result<Exit, Failure> {
    if markdown {
        output.write(&page())?;
        return Ok(Exit::Ok);
    }
    let Some(dir) = dir else { return Err(Failure::new(Exit::Usage, "no directory was named")) };
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Failed, format!("cannot write the manual to {}: {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(visible(args::definition()), dir).map_err(failed)?;
    let pages = std::fs::read_dir(dir).map_err(failed)?.flatten();
    let pages = pages.filter(|entry| entry.file_name().to_string_lossy().starts_with("plexus")).count();
    output.write(&format!(
        "{pages} pages in {}; read one with man -l {}/plexus.1\n",
        dir.display(),
        dir.display()
    ))?;
    Ok(Exit::Ok)
}

/// The command without what people never type.
fn visible(command: Command) -> Command {
    let hidden: Vec<String> = command
        .get_subcommands()
        .filter(|sub| sub.is_hide_set())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    let mut shown = Command::new("plexus")
        .about(command.get_about().cloned().unwrap_or_default())
        .after_help(command.get_after_help().cloned().unwrap_or_default())
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .args(command.get_arguments().cloned());
    for sub in command.get_subcommands().filter(|sub| !hidden.contains(&sub.get_name().to_owned())) {
        shown = shown.subcommand(sub.clone());
    }
    shown
}

/// Every command on one page of Markdown.
fn page() -> String {
    let mut command = visible(args::definition());
    command.build();
    let mut text = String::new();
    let _ = writeln!(text, "### Everywhere\n");
    table(&mut text, command.get_arguments().filter(|arg| arg.is_global_set()));
    for sub in command.get_subcommands() {
        section(&mut text, sub, "plexus");
    }
    text
}

fn section(text: &mut String, command: &Command, path: &str) {
    if command.is_hide_set() || command.get_name() == "help" {
        return;
    }
    let path = format!("{path} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    if command.has_subcommands() {
        command.get_subcommands().for_each(|sub| section(text, sub, &path));
        return;
    }
    let words: Vec<String> = command.get_positionals().map(positional).collect();
    let words = if words.is_empty() { String::new() } else { format!(" {}", words.join(" ")) };
    let _ = writeln!(
        text,
        "\n### {path}\n\n{}.\n\n```text\n{path}{words} [OPTIONS]\n```\n",
        about.trim_end_matches('.')
    );
    table(text, command.get_arguments().filter(|arg| !arg.is_global_set() && !arg.is_hide_set()));
    if let Some(examples) = command.get_after_help() {
        let _ = writeln!(text, "```text\n{}\n```", examples.to_string().trim_end());
    }
}

fn positional(arg: &Arg) -> String {
    let names: Vec<String> = arg.get_value_names().into_iter().flatten().map(ToString::to_string).collect();
    let name = if names.is_empty() { arg.get_id().as_str().to_uppercase() } else { names.join(" ") };
    if arg.is_required_set() { name } else { format!("[{name}]") }
}

/// Arguments and what they mean; nothing where there are none.
fn table<'a>(text: &mut String, arguments: impl Iterator<Item = &'a Arg>) {
    let rows: Vec<String> = arguments
        .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        .map(|arg| {
            let value = arg.get_action().takes_values().then(|| {
                let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
                name.unwrap_or_else(|| arg.get_id().as_str().to_uppercase())
            });
            let mut name = match (arg.get_long(), &value) {
                (Some(long), Some(value)) if arg.is_require_equals_set() => format!("--{long}[={value}]"),
                (Some(long), Some(value)) => format!("--{long} {value}"),
                (Some(long), None) => format!("--{long}"),
                (None, value) => value.clone().unwrap_or_default(),
            };
            if let Some(short) = arg.get_short() {
                name = format!("-{short}, {name}");
            }
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let mut help = format!("{}.", help.trim_end_matches('.'));
            let possible: Vec<_> =
                arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
            if !possible.is_empty() && value.is_some() {
                help += &format!(" One of {}.", possible.join(", "));
            }
            let defaults: Vec<_> =
                arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
            if !defaults.is_empty() && value.is_some() {
                help += &format!(" Default: {}.", defaults.join(" "));
            }
            format!("| `{name}` | {} |", help.replace('|', "\\|"))
        })
        .collect();
    if !rows.is_empty() {
        let _ = writeln!(text, "| argument | means |\n|---|---|\n{}\n", rows.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_command_and_nothing_hidden() {
        let page = page();
        for command in ["status", "node drain", "node image pull", "work results", "token create", "ca issue"]
        {
            assert!(page.contains(&format!("\n### plexus {command}\n")), "{command}: {page}");
        }
        assert!(!page.contains("__complete"));
        assert!(page.contains("| `-c, --count COUNT` | How many echoes. Default: 4. |"), "{page}");
    }

    #[test]
    fn each_command_has_a_manual_page() {
        let dir = tempfile::tempdir().unwrap();
        clap_mangen::generate_to(visible(args::definition()), dir.path()).unwrap();
        for name in ["plexus.1", "plexus-status.1", "plexus-node-drain.1", "plexus-work-results.1"] {
            let page = std::fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(page.contains(".SH NAME"), "{name}: {page}");
        }
        assert!(!dir.path().join("plexus-__complete.1").exists());
    }
}

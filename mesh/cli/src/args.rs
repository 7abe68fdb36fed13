//! What can be typed.

mod manage;
mod verbs;

use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

pub(crate) use manage::{Ca, Image, NodeVerb, RolloverStep, Token, Work};
pub(crate) use verbs::{Doctor, Events, Forward, Netcheck, Ping, Target, Trace};

const AFTER_HELP: &str = "\
Where answers come from, the first that is given:
  --socket PATH or --controller URL
  PLEXUS_SOCKET        path of a daemon's local socket
  CONTROLLER_HOST      URL of a controller, with CONTROLLER_OAUTH_TOKEN, or
                       CONTROLLER_USERNAME and CONTROLLER_PASSWORD;
                       CONTROLLER_VERIFY_SSL=false takes any certificate
  /run/plexus/controller.sock, then /run/plexus/node.sock
Commands about work, tokens and other nodes always ask a controller.

Output: -o json prints the documented JSON, one document on a line, with
schema_version; -o jsonl one line for each item; -o name only names.
--watch draws again on a terminal, and prints a line of JSON for each change
otherwise. Colour follows the terminal, NO_COLOR and CLICOLOR_FORCE.

Exit codes:
  0  all is well
  1  failed
  2  wrong usage
  3  degraded: an answer came, and says that something is wrong
  4  not found: no such node
  5  denied
  6  unreachable, or no answer in time";

/// Looks into a Plexus mesh, tends its nodes, and issues their certificates.
#[derive(Debug, Parser)]
#[command(name = "plexus", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// Form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// The same as -o wide: for people, with every column.
    #[arg(long, global = true, conflicts_with = "output")]
    wide: bool,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub(crate) color: When,
    /// Asks again every so many seconds (2), until Ctrl-C; of status, nodes, links, routes and work list.
    #[arg(
        long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = "2", value_parser = seconds
    )]
    pub(crate) watch: Option<Duration>,
    /// Local socket of the daemon to ask.
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "controller")]
    pub(crate) socket: Option<PathBuf>,
    /// Controller to ask over HTTP, such as https://controller.example.org:8043
    #[allow(rustdoc::bare_urls, reason = "it is shown on a terminal")]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) controller: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    /// Form of the output.
    pub(crate) fn format(&self) -> Format {
        if self.wide { Format::Wide } else { self.output }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says whether the mesh is well, and if not what to do; exit code 3 if something is wrong.
    #[command(after_help = "\
Examples:
  plexus status                 one screen
  plexus status --wide          with key exchange, packet size and loss of each link
  plexus status --watch         the same, kept up to date
  plexus status -o json | jq .problems")]
    Status,
    /// Lists the nodes that a daemon knows, and the way to each.
    #[command(after_help = "\
Examples:
  plexus nodes
  plexus nodes -o name          names alone, for a shell loop
  plexus nodes --watch=5        every five seconds")]
    Nodes,
    /// Lists the links of the mesh; with round-trip time and kind where they are the asked daemon's own.
    #[command(after_help = "\
Examples:
  plexus links
  plexus links --wide           with MTU, loss and key exchange
  plexus --controller https://controller:8043 links")]
    Links,
    /// Lists the way to each node, and the one that takes over when it is lost.
    #[command(after_help = "\
Examples:
  plexus routes
  plexus routes -o jsonl | grep node-7")]
    Routes,
    /// Asks a node for an echo, across the mesh.
    #[command(after_help = "\
Examples:
  plexus ping node-7
  plexus ping node-7 --count 100 --interval 0.1")]
    Ping(Ping),
    /// Shows the nodes that packets to a node cross, with round-trip time and loss of each.
    #[command(after_help = "\
Examples:
  plexus trace node-7
  plexus trace node-7 --count 20    a better measure of loss")]
    Trace(Trace),
    /// Says what UDP, TCP and the packet size do between two nodes. For root, or through a controller.
    #[command(after_help = "\
Examples:
  sudo plexus netcheck hop-1            from this machine to hop-1
  plexus netcheck node-7 hop-1          from node-7 to hop-1, as a controller has them try")]
    Netcheck(Netcheck),
    /// Shows what happened: links up and down with the reason, nodes that come and go, routes that change.
    #[command(after_help = "\
Examples:
  plexus events                     what the daemon remembers
  plexus events --since 10m         of the last ten minutes
  plexus events --follow            and what happens next, until Ctrl-C
  plexus events -f -o jsonl         one JSON document for each")]
    Events(Events),
    /// Carries TCP connections to an address that another node can reach; allowed by that node's policy only. For root.
    #[command(after_help = "\
PORT is opened on 127.0.0.1 unless an address stands before it. The far node must allow it:
  [forward]
  allow = [{ from = \"controller\", to = [\"127.0.0.1:80\"] }]

Examples:
  sudo plexus forward 8080 node-7:127.0.0.1:80
  sudo plexus forward 0.0.0.0:8080 node-7:www.example.org:80
  sudo plexus forward [::1]:2222 node-7:[::1]:22")]
    Forward(Forward),
    /// Has the daemon read its configuration again: all of it or nothing; says what changed. For root.
    #[command(after_help = "\
Examples:
  sudo plexus reload
  sudo plexus --socket /run/plexus/node.sock reload")]
    Reload,
    /// Tokens that new nodes join with.
    #[command(subcommand)]
    Token(Token),
    /// Jobs: launch, follow, list, show, cancel; asks a controller as a user.
    #[command(subcommand)]
    Job(crate::commands::job::Job),
    /// The certificate authority of a mesh, in a directory.
    #[command(subcommand)]
    Ca(Ca),
    /// Tends one node: whether it takes work, its images, its certificate.
    #[command(subcommand)]
    Node(NodeVerb),
    /// The jobs that nodes run, through a controller and under a user's name.
    #[command(subcommand)]
    Work(Work),
    /// Checks this machine: configuration, certificate, clock, ports, containers, disk; says what to do about each.
    #[command(after_help = "\
Examples:
  sudo plexus doctor
  plexus doctor --config /etc/plexus/node.toml")]
    Doctor(Doctor),
    /// Prints a script that teaches a shell to complete commands and the names of live nodes.
    #[command(after_help = "\
Examples:
  plexus completion bash > /etc/bash_completion.d/plexus
  plexus completion zsh > \"${fpath[1]}/_plexus\"
  plexus completion fish > ~/.config/fish/completions/plexus.fish")]
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Writes the manual pages, one for each command.
    #[command(after_help = "\
Examples:
  plexus man /usr/local/share/man/man1
  plexus man --markdown             the reference as one page")]
    Man {
        /// Directory to write to; created if missing.
        #[arg(value_name = "DIR", required_unless_present = "markdown")]
        dir: Option<PathBuf>,
        /// Prints one Markdown page instead.
        #[arg(long, conflicts_with = "dir")]
        markdown: bool,
    },
    /// What the completion scripts ask.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words of the command line, the last one being typed.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For people, with every column.
    Wide,
    /// For programs: one document on a line.
    Json,
    /// For programs: one line for each item.
    Jsonl,
    /// For programs and people: the same document as YAML.
    Yaml,
    /// Names alone.
    Name,
}

impl Format {
    /// Whether people read it, and colour may be used.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Shells that can be taught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Everything that can be typed, for help, manual and completion.
pub(crate) fn definition() -> clap::Command {
    Args::command()
}

/// Between a millisecond and a minute, or nothing.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time)
            if time <= Duration::from_secs(60) && (time.is_zero() || time >= Duration::from_millis(1)) =>
        {
            Ok(time)
        }
        _ => Err("must be between 0.001 and 60 seconds".to_owned()),
    }
}

/// A time with a unit: `90s`, `10m`, `2h`, `1d`.
fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a number with s, m, h or d, such as 10m".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        definition().debug_assert();
    }

    #[test]
    fn wide_is_a_form_of_output_before_and_after_the_command() {
        let format = |line: &str| Args::try_parse_from(line.split(' ')).map(|args| args.format());
        for line in ["plexus status --wide", "plexus --wide status", "plexus status -o wide"] {
            assert_eq!(format(line).unwrap(), Format::Wide, "{line}");
        }
        assert_eq!(format("plexus status").unwrap(), Format::Table);
        assert_eq!(format("plexus status -o json").unwrap(), Format::Json);
        assert!(format("plexus status --wide -o json").is_err(), "one form at a time");
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["-1", "61", "0.0001", "x", "NaN", "inf"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_have_a_unit() {
        assert_eq!(span("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(span("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["", "5", "m", "-1m", "1w", "1é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    /// Backticks and the like belong into Markdown, not on a terminal.
    #[test]
    fn help_is_plain_text_and_every_command_has_some() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            if command.is_hide_set() {
                return;
            }
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains('`'), "{path}: {about}");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty() && !help.contains('`'), "{path} {}: {help}", argument.get_id());
            }
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(command.has_subcommands() || examples.contains("\n  "), "{path} has no examples");
            command.get_subcommands().for_each(|command| check(command, &path));
        }
        check(&definition(), "");
    }
}

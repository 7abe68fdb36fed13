//! `xtask docs`: what the pages say is there, is there. Links between pages and to headings, `make` targets, and the commands
//! and options of our programs in code blocks, asked of the programs themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use plexus_tests::Binaries;

/// Page with the commands, and the lines around its generated part.
const REFERENCE: &str = "docs/reference/cli.md";
const BEGIN: &str = "<!-- begin: plexus man --markdown -->\n";
const END: &str = "<!-- end -->\n";

/// What to do about pages.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Writes what is generated anew instead of comparing it: the reference of commands, the page of clients.
    #[arg(long)]
    write: bool,
}

/// Checks every page and lists what is wrong.
///
/// # Errors
/// When pages cannot be read, or something in them is not so.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let top = super::repository();
    reference(&top.join(REFERENCE), options.write)?;
    crate::compatibility::run(&top, options.write)?;
    let pages = pages(&top)?;
    let targets = make_targets(&top)?;
    let mut programs = Programs { binaries: Binaries::of_this_build()?, helps: BTreeMap::new() };
    let mut wrong = Vec::new();
    let (mut links, mut commands) = (0, 0);
    for (path, text) in &pages {
        let mut complain = |line: usize, what: String| {
            wrong.push(format!("{}:{line}: {what}", path.strip_prefix(&top).unwrap_or(path).display()));
        };
        for (line, target) in links_of(text) {
            links += 1;
            if let Err(what) = check_link(&top, &pages, path, &target) {
                complain(line, what);
            }
        }
        for (line, command) in commands_of(text) {
            let checked = match command.first().map(String::as_str) {
                Some("make") => check_make(&targets, &command),
                Some("plexus" | "plexus-node" | "plexus-controller") => programs.check(&command),
                _ => continue,
            };
            commands += 1;
            if let Err(what) = checked {
                complain(line, what);
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{} mistakes in the pages:\n{}", wrong.len(), wrong.join("\n"));
    }
    println!("{} pages: {links} links and {commands} commands are right", pages.len());
    Ok(ExitCode::SUCCESS)
}

/// Compares the generated part of the reference with what `plexus` says of itself, or writes it.
fn reference(page: &Path, write: bool) -> anyhow::Result<()> {
    let program = Binaries::of_this_build()?.cli();
    let said = Command::new(&program).args(["man", "--markdown"]).output();
    let said = said.with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8(said.stdout).context("plexus man --markdown is no text")?;
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let fresh = with_generated(&text, &said).context("docs/reference/cli.md has no generated part")?;
    match (fresh == text, write) {
        (true, _) => Ok(()),
        (false, true) => fs::write(page, fresh).with_context(|| format!("cannot write {}", page.display())),
        (false, false) => bail!("{REFERENCE} is not what plexus says; xtask docs --write mends it"),
    }
}

/// `text` with `said` between its marks; none if the marks are missing.
fn with_generated(text: &str, said: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n\n{END}{after}", said.trim()))
}

/// Markdown files of the source tree.
fn pages(top: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten()
        {
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            if path.is_dir() && !hidden && name != "target" && name != "node_modules" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                found.insert(path, text);
            }
        }
    }
    Ok(found)
}

/// Targets of links with their line numbers, those in code blocks and code spans left out.
fn links_of(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line, in_code) in lines(text) {
        if in_code {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        // Markers of code spans may lie inside the text of a link, so targets are looked for in the line with spans cut out.
        let mut rest = prose.as_str();
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            if let Some(end) = rest.find(')') {
                links.push((number, rest[..end].to_owned()));
            }
        }
    }
    links
}

fn check_link(
    top: &Path,
    pages: &BTreeMap<PathBuf, String>,
    page: &Path,
    target: &str,
) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { page.to_owned() } else { flat(&page.parent().unwrap_or(top).join(file)) };
    if !path.starts_with(top) || !path.exists() {
        return Err(format!("link to {target}: there is no {}", path.display()));
    }
    if !anchor.is_empty() && !pages.get(&path).is_some_and(|text| anchors(text).contains(anchor)) {
        return Err(format!("link to {target}: no such heading"));
    }
    Ok(())
}

/// Names that headings can be linked by, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    lines(text)
        .filter(|(_, line, in_code)| !in_code && line.starts_with('#'))
        .map(|(_, line, _)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// Commands of shell code blocks (`sh`, `console`), as words; comments and prompts taken off.
fn commands_of(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut shell = false;
    let mut commands = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            shell = matches!(language.trim(), "sh" | "bash" | "console");
            continue;
        }
        if !shell {
            continue;
        }
        let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
        for part in line.split(" && ") {
            let words: Vec<String> = part
                .split_whitespace()
                .take_while(|word| !word.starts_with('#') && !matches!(*word, "|" | ">" | "<" | "&" | ";"))
                .map(str::to_owned)
                .collect();
            if !words.is_empty() {
                commands.push((number, words));
            }
        }
    }
    commands
}

fn check_make(targets: &BTreeSet<String>, command: &[String]) -> Result<(), String> {
    // Quoted values of ARGS are split into words: only what stands before the first variable is a target.
    for word in command[1..].iter().take_while(|word| !word.contains('=') && !word.starts_with('-')) {
        if !targets.contains(word) {
            return Err(format!("make has no target {word}"));
        }
    }
    Ok(())
}

fn make_targets(top: &Path) -> anyhow::Result<BTreeSet<String>> {
    let text = fs::read_to_string(top.join("Makefile")).context("cannot read the Makefile")?;
    let names =
        text.lines().filter_map(|line| line.split_once(": ## ").or_else(|| line.split_once(": deps ## ")));
    Ok(names.map(|(name, _)| name.to_owned()).collect())
}

/// The programs, and what they say of themselves.
struct Programs {
    binaries: Binaries,
    helps: BTreeMap<Vec<String>, Option<String>>,
}

impl Programs {
    /// Walks down the subcommands of a command line, then looks each option up in the help of the last one.
    fn check(&mut self, command: &[String]) -> Result<(), String> {
        let (program, words) = (&command[0], &command[1..]);
        let mut verbs = vec![program.clone()];
        let mut help = self.help(&verbs).ok_or_else(|| format!("{program} --help fails"))?;
        let mut known = help.clone();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            if let Some(option) = word.strip_prefix("--") {
                let name = format!("--{}", option.split('=').next().unwrap_or(option));
                if !mentions(&known, &name) {
                    return Err(format!("{} has no option {name}", verbs.join(" ")));
                }
                // The value of an option is no verb.
                let takes_value = known.lines().any(|line| mentions(line, &name) && line.contains('<'));
                if takes_value && !option.contains('=') {
                    words.next();
                }
            } else if has_subcommands(&help) && !word.starts_with('-') {
                verbs.push(word.clone());
                help = self.help(&verbs).ok_or_else(|| format!("no such command: {}", verbs.join(" ")))?;
                known.push_str(&help);
            }
        }
        Ok(())
    }

    fn help(&mut self, verbs: &[String]) -> Option<String> {
        let dir = self.binaries.dir().to_owned();
        self.helps
            .entry(verbs.to_vec())
            .or_insert_with(|| {
                let output =
                    Command::new(dir.join(&verbs[0])).args(&verbs[1..]).arg("--help").output().ok()?;
                output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
            })
            .clone()
    }
}

fn has_subcommands(help: &str) -> bool {
    help.lines().any(|line| line.trim() == "Commands:")
}

fn mentions(help: &str, option: &str) -> bool {
    help.split(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '[' | ']' | '<' | '>'))
        .any(|word| word == option)
}

/// Lines with their numbers and whether they lie in a code block.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut in_code = false;
    (1..).zip(text.lines()).map(move |(number, line)| {
        let fence = line.trim_start().starts_with("```");
        if fence {
            in_code = !in_code;
        }
        (number, line, in_code || fence)
    })
}

/// A path without `.` and `..`.
fn flat(path: &Path) -> PathBuf {
    let mut flat = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                flat.pop();
            }
            Component::CurDir => {}
            other => flat.push(other),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_generated() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(with_generated(&text, "new\n").unwrap(), format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(with_generated("no marks", "new"), None);
    }

    #[test]
    fn links_in_code_are_no_links() {
        let text = "see [a](a.md) and `[b](b.md)`\n```sh\n[c](c.md)\n```\n[`d`](d.md#x)\n";
        assert_eq!(links_of(text), [(1, "a.md".to_owned()), (5, "d.md#x".to_owned())]);
    }

    #[test]
    fn headings_make_anchors() {
        assert!(anchors("# Two commands, on a fresh machine\n").contains("two-commands-on-a-fresh-machine"));
    }

    #[test]
    fn commands_come_from_shell_blocks_only() {
        let text = "```sh\n$ make demo ARGS=--once   # once\nplexus ping node-1 | cat\n```\n```text\nmake nothing\n```\n";
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            commands_of(text),
            [(2, words("make demo ARGS=--once")), (3, words("plexus ping node-1"))]
        );
    }

    #[test]
    fn unknown_targets_are_found() {
        let targets = BTreeSet::from(["demo".to_owned()]);
        assert!(check_make(&targets, &["make".into(), "demo".into(), "ARGS=--once".into()]).is_ok());
        assert!(check_make(&targets, &["make".into(), "dmeo".into()]).is_err());
    }
}

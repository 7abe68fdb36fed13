//! The private block of a unit: the files of its private data dir and what the worker reads on standard input, in the
//! shape ansible-runner's `worker` expects. [`Run`] is that for every kind of job, [`Private`] makes one for a playbook.
//!
//! The tree is mounted by the node, so standard input is two lines: kwargs and eof. Values that may be secret go
//! into files or into the kwargs line, never onto a command line.

use std::collections::BTreeMap;

use super::injectors::Injected;
use plexus_proto::seal::SpoolKey;
use plexus_proto::work::{PrivateBlock, PrivateFile, RegistryAuth};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::facts;
use crate::payload::extra_vars;

/// How the job asks Ansible to run. Names and meanings as in AWX's job record.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobOptions {
    /// Number of the job.
    pub job_id: i64,
    /// Path of the playbook below the project.
    pub playbook: String,
    /// Dry run: `--check`.
    pub check: bool,
    /// `--diff`.
    pub diff: bool,
    /// Parallel hosts; 0: Ansible's own default.
    pub forks: i64,
    /// `--limit`; empty: all hosts.
    pub limit: String,
    /// 0 to 5: that many `v`.
    pub verbosity: i64,
    /// `--tags`, comma list.
    pub tags: String,
    /// `--skip-tags`, comma list.
    pub skip_tags: String,
    /// `--start-at-task`.
    pub start_at_task: String,
    /// `--force-handlers`.
    pub force_handlers: bool,
    /// `--become`.
    pub r#become: bool,
    /// How long it may take.
    pub limits: Limits,
    /// Number of the inventory.
    pub inventory_id: Option<i64>,
    /// Revision of the project, where it has one.
    pub project_revision: String,
    /// Whether facts of hosts are kept from job to job.
    pub fact_cache: bool,
}

/// How much longer than the runner's own limit the node gives a unit before it ends it itself: that begins earlier, with the
/// start of the container, and what the runner does after its own limit must fit in: it packs the artifacts.
const MARGIN_SECONDS: u64 = 60;

/// How long a run may take, in seconds; 0: as long as it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// From the start of Ansible to its end.
    pub run: u32,
    /// Without an event.
    pub idle: u32,
}

impl Limits {
    /// What people wrote: a job's `own` time, that which the setting of its kind gives to jobs of 0, and the setting for idle
    /// ones. AWX's rule: less than 0 is no limit at all, whatever the setting.
    pub fn of(own: i64, setting: i64, idle: i64) -> Self {
        let seconds = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
        Self { run: seconds(if own == 0 { setting } else { own }), idle: seconds(idle) }
    }

    /// Seconds after which the node ends a unit whose runner did not; 0: never.
    pub fn hard(self) -> u64 {
        match self.run {
            0 => 0,
            seconds => u64::from(seconds) + MARGIN_SECONDS,
        }
    }
}

/// Inputs of a machine credential, decrypted. Empty text: not set.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct MachineCredential {
    /// Remote user.
    pub username: String,
    /// Remote password.
    pub password: String,
    /// Private key text.
    pub ssh_key_data: String,
    /// Passphrase of the key.
    pub ssh_key_unlock: String,
    /// How to become, `sudo` for example.
    pub become_method: String,
    /// Whom to become.
    pub become_username: String,
    /// Password for becoming.
    pub become_password: String,
}

impl std::fmt::Debug for MachineCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineCredential(..)")
    }
}

impl MachineCredential {
    /// Values that must never be stored readable, for the masks of ingest.
    pub fn secrets(&self) -> Vec<String> {
        [&self.password, &self.ssh_key_data, &self.ssh_key_unlock, &self.become_password]
            .into_iter()
            .filter(|secret| !secret.is_empty())
            .cloned()
            .collect()
    }
}

/// Opens what is encrypted in the project. An empty id is the default one.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct VaultCredential {
    /// Which of the vault's ids.
    pub id: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for VaultCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VaultCredential(..)")
    }
}

/// One group of an inventory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its own variables.
    pub variables: Map<String, Value>,
    /// Hosts that are its direct members.
    pub hosts: Vec<String>,
    /// Groups that are its direct members.
    pub children: Vec<String>,
}

/// An inventory as the job sees it: enabled hosts only.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// Variables of `all`.
    pub variables: Map<String, Value>,
    /// Host names with their own variables, in the order Ansible shall see them.
    pub hosts: Vec<(String, Map<String, Value>)>,
    /// Groups.
    pub groups: Vec<Group>,
}

impl Inventory {
    /// The inventory in the form of Ansible's own YAML plugin, which reads JSON faster than it could run a script.
    pub fn to_json(&self) -> Value {
        let mut hosts = Map::new();
        for (name, variables) in &self.hosts {
            hosts.insert(name.clone(), Value::Object(variables.clone()));
        }
        let mut groups = Map::new();
        for group in &self.groups {
            let members: Map<_, _> = group.hosts.iter().map(|host| (host.clone(), json!({}))).collect();
            let children: Map<_, _> = group.children.iter().map(|child| (child.clone(), json!({}))).collect();
            let body = json!({"hosts": members, "children": children, "vars": group.variables});
            groups.insert(group.name.clone(), body);
        }
        json!({"all": {"hosts": hosts, "children": groups, "vars": self.variables}})
    }
}

/// What ansible-runner's worker is given, whatever kind of job it is for: the line of kwargs, and files of its private data
/// directory. Both may hold secrets.
#[derive(Clone)]
pub struct Run {
    /// A JSON object; the worker reads it on standard input.
    pub kwargs: Value,
    /// Below the private data directory.
    pub files: Vec<PrivateFile>,
    /// What the runner itself keeps to, by its settings among the files.
    pub limits: Limits,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Run(..)")
    }
}

impl Run {
    /// The message for the node. `registry` is for the pull of the image, the key seals what comes back and `spool_key_id`
    /// says which cluster key that was derived from.
    pub fn block(
        self,
        registry: Option<RegistryAuth>,
        spool_key: &SpoolKey,
        spool_key_id: u64,
    ) -> PrivateBlock {
        PrivateBlock {
            files: self.files,
            stdin: format!("{}\n{{\"eof\": true}}\n", json!({"kwargs": self.kwargs})).into(),
            spool_key: spool_key.expose().to_vec().into(),
            spool_key_id,
            env: Default::default(),
            registry,
        }
    }
}

/// A file that only its owner reads.
pub fn file(path: &str, content: String) -> PrivateFile {
    PrivateFile { path: path.to_owned(), mode: 0o600, content: content.into_bytes().into(), secret: false }
}

/// `env/settings`, which must exist as a file: a runner that suppresses environment files drops settings that come as a
/// kwarg only. `pexpect_timeout` bounds how late a cancel or timeout acts; the runner's default is 5 s.
pub fn settings(limits: Limits) -> PrivateFile {
    let mut settings = json!({
        "pexpect_timeout": 0.5,
        "suppress_ansible_output": true,
        "suppress_output_file": true,
    });
    for (name, seconds) in [("job_timeout", limits.run), ("idle_timeout", limits.idle)] {
        if seconds > 0 {
            settings[name] = json!(seconds);
        }
    }
    file("env/settings", settings.to_string())
}

/// A private key as ssh-add takes it: it refuses one without its last line feed.
pub fn ssh_key(text: &str) -> String {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}")
}

/// Answers the prompts of ssh-add for the passphrase of a key. A wrong one asks again for ever unless the second pattern
/// gives up.
pub fn unlock(answers: &mut Map<String, Value>, passphrase: &str) {
    answers.insert(r"Enter passphrase for .*:\s*?$".to_owned(), json!(passphrase));
    answers.insert(r"Bad passphrase, try again for .*:\s*?$".to_owned(), json!(""));
}

/// Everything a job on an inventory is made of.
#[derive(Debug)]
pub struct Private<'a> {
    /// How to run.
    pub options: &'a JobOptions,
    /// On what.
    pub inventory: &'a Inventory,
    /// What is known of its hosts: facts as JSON text, by name.
    pub facts: &'a BTreeMap<String, String>,
    /// Variables of the job, the strongest of all.
    pub extra_vars: &'a Map<String, Value>,
    /// Names of those in which Jinja is text.
    pub doubted: &'a [String],
    /// With what.
    pub machine: Option<&'a MachineCredential>,
    /// And with what to decrypt.
    pub vaults: &'a [VaultCredential],
    /// What credentials of other kinds bring.
    pub injected: &'a Injected,
}

impl Private<'_> {
    /// What the worker is given.
    pub fn run(&self) -> Run {
        let mut files = vec![
            file("inventory/hosts.json", self.inventory.to_json().to_string()),
            settings(self.options.limits),
            file("env/cmdline", self.command_line()),
        ];
        for (name, content) in &self.injected.files {
            files.push(file(&format!("env/{name}"), content.clone()));
        }
        if !self.extra_vars.is_empty() {
            // Answers to a survey may be passwords.
            let variables = extra_vars::text(self.extra_vars, self.doubted);
            files.push(PrivateFile { secret: true, ..file("env/extravars", variables) });
        }
        if self.options.fact_cache {
            let cache = format!("artifacts/{}/fact_cache", self.options.job_id);
            let facts = facts::files(self.facts).into_iter();
            files.extend(facts.map(|(name, content)| file(&format!("{cache}/{name}"), content)));
        }
        Run { kwargs: self.kwargs(), files, limits: self.options.limits }
    }

    fn kwargs(&self) -> Value {
        let mut kwargs = json!({
            "ident": self.options.job_id.to_string(),
            "playbook": self.options.playbook,
            "envvars": self.environment(),
            "passwords": self.passwords(),
            "suppress_env_files": true,
            "fact_cache_type": if self.options.fact_cache { "jsonfile" } else { "" },
        });
        if let Some(machine) = self.machine.filter(|machine| !machine.ssh_key_data.is_empty()) {
            kwargs["ssh_key"] = json!(ssh_key(&machine.ssh_key_data));
        }
        kwargs
    }

    fn environment(&self) -> Value {
        let mut environment = json!({
            "ANSIBLE_FORCE_COLOR": "True",
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
            "ANSIBLE_PARAMIKO_RECORD_HOST_KEYS": "False",
            "ANSIBLE_RETRY_FILES_ENABLED": "False",
            "JOB_ID": self.options.job_id.to_string(),
            "MAX_EVENT_RES": "700000",
            "PROJECT_REVISION": self.options.project_revision,
        });
        if let Some(inventory) = self.options.inventory_id {
            environment["INVENTORY_ID"] = json!(inventory.to_string());
        }
        for (name, value) in &self.injected.env {
            environment[name] = json!(value);
        }
        environment
    }

    /// Answers by the prompt's pattern.
    fn passwords(&self) -> Value {
        let mut answers = Map::new();
        let mut answer = |pattern: &str, text: &str| answers.insert(pattern.to_owned(), json!(text));
        for vault in self.vaults {
            match vault.id.as_str() {
                "" => answer(r"Vault password:\s*?$", &vault.password),
                id => answer(&format!(r"Vault password \({}\):\s*?$", escape(id)), &vault.password),
            };
        }
        let Some(machine) = self.machine else { return Value::Object(answers) };
        if !machine.password.is_empty() {
            answer(r"SSH password:\s*?$", &machine.password);
            answer(r"Password:\s*?$", &machine.password);
        }
        if !machine.become_password.is_empty() {
            answer(r"BECOME password.*:\s*?$", &machine.become_password);
        }
        if !machine.ssh_key_unlock.is_empty() {
            unlock(&mut answers, &machine.ssh_key_unlock);
        }
        Value::Object(answers)
    }

    /// Options in the order AWX gives them; the runner splits them as a shell would.
    fn command_line(&self) -> String {
        let options = self.options;
        let user =
            self.machine.map(|m| m.username.as_str()).filter(|user| !user.is_empty()).unwrap_or("root");
        let mut words = vec!["-u".to_owned(), quote(user)];
        if let Some(machine) = self.machine {
            if !machine.password.is_empty() {
                words.push("--ask-pass".to_owned());
            }
            if !machine.become_method.is_empty() {
                words.push(format!("--become-method={}", quote(&machine.become_method)));
            }
            if !machine.become_username.is_empty() {
                words.push(format!("--become-user={}", quote(&machine.become_username)));
            }
            if !machine.become_password.is_empty() {
                words.push("--ask-become-pass".to_owned());
            }
        }
        for vault in self.vaults {
            match vault.id.as_str() {
                "" => words.push("--ask-vault-pass".to_owned()),
                id => words.extend(["--vault-id".to_owned(), quote(&format!("{id}@prompt"))]),
            }
        }
        let mut flag = |wanted: bool, text: String| {
            if wanted {
                words.push(text);
            }
        };
        flag(options.r#become, "--become".to_owned());
        flag(options.check, "--check".to_owned());
        flag(options.diff, "--diff".to_owned());
        flag(options.forks > 0, format!("--forks={}", options.forks));
        flag(options.force_handlers, "--force-handlers".to_owned());
        flag(!options.limit.is_empty(), format!("--limit={}", quote(&options.limit)));
        let verbosity = usize::try_from(options.verbosity.clamp(0, 5)).unwrap_or(0);
        flag(verbosity > 0, format!("-{}", "v".repeat(verbosity)));
        flag(!options.tags.is_empty(), format!("--tags={}", quote(&options.tags)));
        flag(!options.skip_tags.is_empty(), format!("--skip-tags={}", quote(&options.skip_tags)));
        flag(!options.start_at_task.is_empty(), format!("--start-at-task={}", quote(&options.start_at_task)));
        words.join(" ")
    }
}

/// Text as a Python pattern that matches it alone.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if !c.is_alphanumeric() && c != '_' {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// One word of a shell command line, whatever is in it.
pub(super) fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r#"'"'"'"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    static NOTHING: std::sync::LazyLock<Injected> = std::sync::LazyLock::new(Injected::default);

    fn block(options: &JobOptions, machine: Option<&MachineCredential>) -> PrivateBlock {
        block_with(options, machine, &[])
    }

    fn block_with(
        options: &JobOptions,
        machine: Option<&MachineCredential>,
        vaults: &[VaultCredential],
    ) -> PrivateBlock {
        Private {
            options,
            inventory: &Inventory::default(),
            facts: &BTreeMap::from([("web1".to_owned(), "{}".to_owned())]),
            extra_vars: &Map::new(),
            doubted: &[],
            machine,
            injected: &NOTHING,
            vaults,
        }
        .run()
        .block(None, &SpoolKey::new([1; 32]), 1)
    }

    fn content(block: &PrivateBlock, path: &str) -> String {
        let file = block.files.iter().find(|file| file.path == path).expect("the file is there");
        String::from_utf8(file.content.to_vec()).unwrap()
    }

    #[test]
    fn options_become_words_of_a_command_line() {
        let options = JobOptions {
            playbook: "site.yml".to_owned(),
            check: true,
            limit: "web:!db it's".to_owned(),
            verbosity: 9,
            tags: "a,b".to_owned(),
            ..JobOptions::default()
        };
        let line = content(&block(&options, None), "env/cmdline");
        assert_eq!(line, r#"-u root --check --limit='web:!db it'"'"'s' -vvvvv --tags=a,b"#);
    }

    #[test]
    fn secrets_are_answers_and_never_words() {
        let mut machine = MachineCredential::default();
        machine.username.push_str("deploy");
        machine.password.push_str("s3cret");
        machine.ssh_key_data.push_str("KEY");
        machine.become_password.push_str("b3come");
        let block = block(&JobOptions::default(), Some(&machine));
        assert_eq!(content(&block, "env/cmdline"), "-u deploy --ask-pass --ask-become-pass");
        let stdin = String::from_utf8(block.stdin.to_vec()).unwrap();
        let (kwargs, eof) = stdin.split_once('\n').unwrap();
        let kwargs: Value = serde_json::from_str(kwargs).unwrap();
        assert_eq!(kwargs["kwargs"]["passwords"][r"SSH password:\s*?$"], "s3cret");
        assert_eq!(kwargs["kwargs"]["ssh_key"], "KEY\n");
        assert_eq!(eof, "{\"eof\": true}\n");
        assert_eq!(format!("{machine:?}"), "MachineCredential(..)");
    }

    #[test]
    fn limits_are_awxs() {
        let check = |own, setting, idle| {
            let limits = Limits::of(own, setting, idle);
            let block = block(&JobOptions { limits, ..JobOptions::default() }, None);
            let written: Value = serde_json::from_str(&content(&block, "env/settings")).unwrap();
            (written["job_timeout"].as_u64(), written["idle_timeout"].as_u64(), limits.hard())
        };
        assert_eq!(check(0, 0, 0), (None, None, 0));
        assert_eq!(check(30, 0, 0), (Some(30), None, 90));
        assert_eq!(check(0, 60, 5), (Some(60), Some(5), 120), "the setting is for jobs that say nothing");
        assert_eq!(check(30, 60, 0), (Some(30), None, 90));
        assert_eq!(check(-1, 60, 5), (None, Some(5), 0), "no limit, whatever the setting");
        let most = u64::from(u32::MAX);
        assert_eq!(check(i64::MAX, 0, 0), (Some(most), None, most + 60));
    }

    #[test]
    fn facts_go_along_where_they_are_kept() {
        let paths = |fact_cache| {
            let block = block(&JobOptions { job_id: 7, fact_cache, ..JobOptions::default() }, None);
            let stdin = String::from_utf8(block.stdin.to_vec()).unwrap();
            assert_eq!(stdin.contains(r#""fact_cache_type":"jsonfile""#), fact_cache);
            block.files.into_iter().map(|file| file.path).filter(|path| path.contains("fact_cache")).collect()
        };
        let with: Vec<String> = paths(true);
        assert_eq!(with, ["artifacts/7/fact_cache/s1_web1", "artifacts/7/fact_cache/web1"]);
        assert_eq!(paths(false), [""; 0]);
    }

    #[test]
    fn each_vault_id_has_its_own_prompt() {
        let vault = |id: &str, password: &str| VaultCredential { id: id.into(), password: password.into() };
        let vaults = [vault("", "p0"), vault("dev.1", "p1")];
        let block = block_with(&JobOptions::default(), None, &vaults);
        assert_eq!(content(&block, "env/cmdline"), "-u root --ask-vault-pass --vault-id dev.1@prompt");
        let stdin = String::from_utf8(block.stdin.to_vec()).unwrap();
        let kwargs: Value = serde_json::from_str(stdin.lines().next().unwrap()).unwrap();
        let answers = &kwargs["kwargs"]["passwords"];
        assert_eq!(answers[r"Vault password:\s*?$"], "p0");
        assert_eq!(answers[r"Vault password \(dev\.1\):\s*?$"], "p1");
        assert!(!format!("{vaults:?}").contains("p1"));
    }

    #[test]
    fn groups_refer_to_hosts_and_children_by_name() {
        let inventory = Inventory {
            variables: Map::new(),
            hosts: vec![("web1".to_owned(), Map::from_iter([("port".to_owned(), json!(80))]))],
            groups: vec![Group {
                name: "web".to_owned(),
                hosts: vec!["web1".to_owned()],
                children: vec!["canary".to_owned()],
                ..Group::default()
            }],
        };
        let expected = json!({"all": {
            "hosts": {"web1": {"port": 80}},
            "children": {"web": {"hosts": {"web1": {}}, "children": {"canary": {}}, "vars": {}}},
            "vars": {},
        }});
        assert_eq!(inventory.to_json(), expected);
    }
}

//! Updates of projects: the playbook of ours that fetches a tree, and what it is given. Pure.
//!
//! An update runs in an execution environment on a node, as every job does; its private directory holds the playbook, and
//! its working copy is what it fills. The credential never goes there: an ssh key into an agent, a password into a file
//! beside the tree, which git reads as its own store. So nothing of it can get into the tree, which jobs and their logs show.

mod address;
mod trouble;

use std::collections::BTreeMap;

use plexus_proto::work::PrivateFile;
use serde_json::{Map, Value, json};
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use address::without_password;
pub use trouble::explain;

use address::Address;

use crate::payload::private::{Limits, Run, file, settings, ssh_key, unlock};

/// The playbook, shipped in this program.
const PLAYBOOK: &str = include_str!("project_update/playbook.yml");

/// What the playbook has done by Python itself, which every execution environment has.
const UNPACK: &str = include_str!("project_update/unpack.py");
const SIGNATURE: &str = include_str!("project_update/signature.py");

/// The private directory, as the worker sees it.
const PRIVATE: &str = "/runner";

/// Where jobs look for what an update installed: environment variables, for what is there. What the project's own
/// `ansible.cfg` names comes behind, as it would be forgotten otherwise.
pub fn installed(holds: impl Fn(&str) -> bool, ansible_cfg: &str) -> BTreeMap<String, String> {
    let own = |keys: &[&str]| {
        let line = ansible_cfg
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| keys.contains(&key.trim()));
        line.map(|(_, value)| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let mut found = BTreeMap::new();
    for (variable, dir, keys, usual) in [
        (
            "ANSIBLE_ROLES_PATH",
            "roles",
            &["roles_path"][..],
            "~/.ansible/roles:/usr/share/ansible/roles:/etc/ansible/roles",
        ),
        (
            "ANSIBLE_COLLECTIONS_PATH",
            "collections",
            &["collections_path", "collections_paths"][..],
            "~/.ansible/collections:/usr/share/ansible/collections",
        ),
    ] {
        if holds(&format!(".plexus/{dir}/")) {
            let rest = own(keys).unwrap_or_else(|| usual.to_owned());
            found.insert(variable.to_owned(), format!("{PRIVATE}/project/.plexus/{dir}:{rest}"));
        }
    }
    found
}

/// Where a project comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scm {
    /// A git repository.
    Git,
    /// A Subversion repository.
    Svn,
    /// A file of packed files behind an address.
    Archive,
}

impl Scm {
    /// Reads the word of a project's `scm_type`; `None` for a manual one, and for what cannot be fetched.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "git" => Some(Self::Git),
            "svn" => Some(Self::Svn),
            "archive" => Some(Self::Archive),
            _ => None,
        }
    }

    /// The word of a project's `scm_type`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Git => "git",
            Self::Svn => "svn",
            Self::Archive => "archive",
        }
    }

    /// The tag of the playbook's part that fetches.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Git => "update_git",
            Self::Svn => "update_svn",
            Self::Archive => "update_archive",
        }
    }

    /// Whether an update goes on from the tree that the last one brought.
    pub fn builds_on_last(self) -> bool {
        self != Self::Archive
    }
}

/// Why a project cannot be fetched as it is described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Manual, or of a kind that Plexus does not know.
    #[error("a project of type {0:?} has nothing to fetch from")]
    Type(String),
    /// The address is empty.
    #[error("SCM URL is required")]
    NoUrl,
    /// The address is none that this kind of project takes.
    #[error("{0:?} is no address that a project of this type can be fetched from")]
    Url(String),
}

/// Whether a project of this kind can be fetched from an address, as far as its form says.
///
/// # Errors
/// [`Unusable`].
pub fn check(scm: Scm, url: &str) -> Result<(), Unusable> {
    Address::read(scm, url, &Login::default()).map(drop)
}

/// Inputs of a source control credential, decrypted. Empty text: not set.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct Login {
    /// Who.
    pub username: String,
    /// Password or token.
    pub password: String,
    /// Private key text.
    pub ssh_key_data: String,
    /// Passphrase of the key.
    pub ssh_key_unlock: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

/// What an update is told to fetch.
#[derive(Debug, Clone)]
pub struct Update {
    /// Number of the update.
    pub id: i64,
    /// By which means.
    pub scm: Scm,
    /// From where.
    pub url: String,
    /// Branch, tag or commit; empty: what the repository calls its head.
    pub branch: String,
    /// What else git fetches.
    pub refspec: String,
    /// Whether what is not of the repository goes.
    pub clean: bool,
    /// Whether submodules follow their branches.
    pub track_submodules: bool,
    /// Parts of the playbook, comma list.
    pub tags: String,
    /// How long it may take.
    pub limits: Limits,
    /// Environment that every job has.
    pub env: BTreeMap<String, String>,
    /// As whom.
    pub login: Login,
    /// Where roles and collections come from, the first first; none: they are not installed.
    pub galaxy: Vec<Galaxy>,
    /// Whose signature the content must have: a public key.
    pub signed_by: Option<String>,
}

/// A server of roles and collections.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct Galaxy {
    /// Its address.
    pub url: String,
    /// Where its tokens come from, if not from itself.
    pub auth_url: String,
    /// The token.
    pub token: String,
}

impl std::fmt::Debug for Galaxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Galaxy(..)")
    }
}

/// Parts of the playbook that an update runs, comma list.
pub fn tags(scm: Scm, signed: bool) -> String {
    let signature = if signed { "validation_gpg_public_key," } else { "" };
    format!("{},{signature}install_roles,install_collections", scm.tag())
}

impl Update {
    /// What the worker is given.
    ///
    /// # Errors
    /// [`Unusable`] when the address is none.
    pub fn run(&self) -> Result<Run, Unusable> {
        let address = Address::read(self.scm, &self.url, &self.login)?;
        let mut files = vec![
            file("inventory/hosts.json", localhost().to_string()),
            settings(self.limits),
            file("env/cmdline", format!("--tags={}", self.tags)),
            file("update/playbook.yml", PLAYBOOK.to_owned()),
            // Not the one of the project: what was fetched before does not decide how the next is fetched.
            file("update/ansible.cfg", String::new()),
        ];
        let secret = |path: &str, content: String| PrivateFile { secret: true, ..file(path, content) };
        files.push(secret("env/extravars", self.variables(&address).to_string()));
        if let Some(store) = address.git_store(self.scm) {
            files.push(secret("update/git-credentials", store));
        }
        if self.scm == Scm::Archive {
            files.push(file("update/unpack.py", UNPACK.to_owned()));
        }
        if let Some(key) = &self.signed_by {
            files.push(file("update/signature.py", SIGNATURE.to_owned()));
            files.push(file("update/gpg.pub", key.clone()));
        }
        let mut passwords = Map::new();
        if !self.login.ssh_key_unlock.is_empty() {
            unlock(&mut passwords, &self.login.ssh_key_unlock);
        }
        let mut kwargs = json!({
            "ident": self.id.to_string(),
            "playbook": format!("{PRIVATE}/update/playbook.yml"),
            "envvars": self.environment(),
            "passwords": passwords,
            "suppress_env_files": true,
        });
        if !self.login.ssh_key_data.is_empty() {
            kwargs["ssh_key"] = json!(ssh_key(&self.login.ssh_key_data));
        }
        Ok(Run { kwargs, files, limits: self.limits })
    }

    fn variables(&self, address: &Address) -> Value {
        json!({
            "project_path": format!("{PRIVATE}/project"),
            "scm_type": self.scm.word(),
            "scm_url": address.url,
            "galaxy": !self.galaxy.is_empty(),
            "scm_branch": self.branch,
            "scm_refspec": self.refspec,
            "scm_clean": self.clean,
            "scm_track_submodules": self.track_submodules,
            // git reads its own from a file; the modules for the others take them by name.
            "scm_username": if self.scm == Scm::Git { "" } else { &address.username },
            "scm_password": if self.scm == Scm::Git { "" } else { &address.password },
        })
    }

    fn environment(&self) -> Map<String, Value> {
        let git = [
            ("credential.helper", format!("store --file={PRIVATE}/update/git-credentials")),
            // The tree may belong to another user of the node; it is this unit's own all the same.
            ("safe.directory", "*".to_owned()),
        ];
        let mut environment: Map<String, Value> =
            self.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        environment.insert("GIT_CONFIG_COUNT".to_owned(), json!(git.len().to_string()));
        for (number, (key, value)) in git.into_iter().enumerate() {
            environment.insert(format!("GIT_CONFIG_KEY_{number}"), json!(key));
            environment.insert(format!("GIT_CONFIG_VALUE_{number}"), json!(value));
        }
        for (name, value) in [
            ("ANSIBLE_CONFIG", format!("{PRIVATE}/update/ansible.cfg")),
            ("ANSIBLE_FORCE_COLOR", "True".to_owned()),
            ("ANSIBLE_RETRY_FILES_ENABLED", "False".to_owned()),
            ("GIT_TERMINAL_PROMPT", "0".to_owned()),
            ("GIT_SSH_COMMAND", SSH.to_owned()),
            ("SVN_SSH", SSH.to_owned()),
            ("PROJECT_UPDATE_ID", self.id.to_string()),
            ("MAX_EVENT_RES", "700000".to_owned()),
        ] {
            environment.insert(name.to_owned(), json!(value));
        }
        let names: Vec<String> = (0..self.galaxy.len()).map(|number| format!("server{number}")).collect();
        if !names.is_empty() {
            environment.insert("ANSIBLE_GALAXY_SERVER_LIST".to_owned(), names.join(",").into());
        }
        for (name, server) in names.iter().zip(&self.galaxy) {
            let name = name.to_uppercase();
            for (part, value) in
                [("URL", &server.url), ("AUTH_URL", &server.auth_url), ("TOKEN", &server.token)]
            {
                if !value.is_empty() {
                    environment.insert(format!("ANSIBLE_GALAXY_SERVER_{name}_{part}"), json!(value));
                }
            }
        }
        environment
    }
}

/// Hosts of repositories are taken as they are found, as AWX does: nobody is there to be asked.
const SSH: &str = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes \
                   -o ConnectTimeout=30";

/// The one host of the playbook: where it runs.
fn localhost() -> Value {
    let variables = json!({
        "ansible_connection": "local",
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
    });
    json!({"all": {"hosts": {"localhost": variables}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(username: &str, password: &str, key: &str) -> Login {
        Login {
            username: username.to_owned(),
            password: password.to_owned(),
            ssh_key_data: key.to_owned(),
            ssh_key_unlock: String::new(),
        }
    }

    fn update(url: &str, login: Login) -> Update {
        Update {
            id: 7,
            scm: Scm::Git,
            url: url.to_owned(),
            branch: "main".to_owned(),
            refspec: String::new(),
            clean: false,
            track_submodules: false,
            tags: "update_git".to_owned(),
            limits: Limits::default(),
            env: BTreeMap::new(),
            login,
            galaxy: Vec::new(),
            signed_by: None,
        }
    }

    fn content(run: &Run, path: &str) -> Option<String> {
        let file = run.files.iter().find(|file| file.path == path)?;
        Some(String::from_utf8(file.content.to_vec()).unwrap())
    }

    #[test]
    fn a_password_is_in_gits_store_and_nowhere_else() {
        let run = update("https://git.example.com:8443/a/b.git", login("ann", "p@ss/w", "")).run().unwrap();
        let store = content(&run, "update/git-credentials").unwrap();
        assert_eq!(store, "https://ann:p%40ss%2Fw@git.example.com:8443\n");
        let elsewhere = run.files.iter().filter(|file| file.path != "update/git-credentials");
        let text: String = elsewhere.map(|file| String::from_utf8_lossy(&file.content)).collect();
        let text = text + &run.kwargs.to_string();
        assert!(!text.contains("p@ss") && !text.contains("p%40ss"), "{text}");
        assert!(text.contains("https://git.example.com:8443/a/b.git"));
        assert_eq!(format!("{run:?}"), "Run(..)");
    }

    #[test]
    fn a_key_goes_to_the_agent_and_its_user_into_the_address() {
        for (url, expected) in [
            ("ssh://git.example.com/a.git", "ssh://ann@git.example.com/a.git"),
            ("ssh://bob@git.example.com/a.git", "ssh://ann@git.example.com/a.git"),
            ("git.example.com:a.git", "ann@git.example.com:a.git"),
            ("bob@git.example.com:a.git", "bob@git.example.com:a.git"),
        ] {
            let run = update(url, login("ann", "unused", "KEY")).run().unwrap();
            let variables: Value = serde_json::from_str(&content(&run, "env/extravars").unwrap()).unwrap();
            assert_eq!(variables["scm_url"], expected);
            assert_eq!(run.kwargs["ssh_key"], "KEY\n");
            assert_eq!(content(&run, "update/git-credentials"), None);
            assert!(!run.kwargs.to_string().contains("unused"));
        }
    }

    #[test]
    fn what_stands_in_the_address_is_taken_out_of_it() {
        let run = update("https://ann:s3cret%21@git.example.com/a.git", Login::default()).run().unwrap();
        assert_eq!(
            content(&run, "update/git-credentials").unwrap(),
            "https://ann:s3cret%21@git.example.com\n"
        );
        assert!(!content(&run, "env/extravars").unwrap().contains("s3cret"));
        let token = update("https://git.example.com/a.git", login("", "t0ken", "")).run().unwrap();
        assert_eq!(content(&token, "update/git-credentials").unwrap(), "https://git:t0ken@git.example.com\n");
        assert_eq!(without_password("https://a:b@h/p"), "https://a:$encrypted$@h/p");
        assert_eq!(without_password("https://a@h/p"), "https://a@h/p");
    }

    #[test]
    fn servers_of_roles_are_named_in_order_and_a_key_goes_along() {
        let mut update = update("https://h/a.git", Login::default());
        let server = |url: &str, token: &str| Galaxy {
            url: url.to_owned(),
            token: token.to_owned(),
            auth_url: String::new(),
        };
        update.galaxy = vec![server("https://hub/", "t0"), server("https://galaxy/", "")];
        update.signed_by = Some("KEY".to_owned());
        let run = update.run().unwrap();
        let env = &run.kwargs["envvars"];
        assert_eq!(env["ANSIBLE_GALAXY_SERVER_LIST"], "server0,server1");
        assert_eq!(env["ANSIBLE_GALAXY_SERVER_SERVER0_TOKEN"], "t0");
        assert_eq!(env["ANSIBLE_GALAXY_SERVER_SERVER1_URL"], "https://galaxy/");
        assert_eq!(env.get("ANSIBLE_GALAXY_SERVER_SERVER1_TOKEN"), None);
        assert_eq!(content(&run, "update/gpg.pub").unwrap(), "KEY");
        let tags = "update_git,validation_gpg_public_key,install_roles,install_collections";
        assert_eq!(super::tags(Scm::Git, true), tags);
    }

    #[test]
    fn what_was_installed_is_found_before_what_the_project_names() {
        let found = installed(|dir| dir == ".plexus/roles/", "[defaults]\nroles_path = ./mine\n");
        let expected = [("ANSIBLE_ROLES_PATH".to_owned(), "/runner/project/.plexus/roles:./mine".to_owned())];
        assert_eq!(found, BTreeMap::from(expected));
        assert!(installed(|_| false, "").is_empty());
    }

    #[test]
    fn what_is_no_address_is_refused_by_name() {
        for bad in ["", " ", "/srv/git/a.git", "ext::sh -c id", "-oProxyCommand=id", "https://"] {
            assert!(update(bad, Login::default()).run().is_err(), "{bad:?}");
        }
        let svn = Update { scm: Scm::Svn, ..update("git@host:a", Login::default()) };
        assert_eq!(svn.run().unwrap_err(), Unusable::Url("git@host:a".to_owned()));
    }
}

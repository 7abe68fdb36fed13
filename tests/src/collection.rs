//! The unmodified `awx.awx` collection 24.6.1 under the real Ansible, as a colleague's playbook uses it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use tempfile::TempDir;

use crate::{Api, cache_dir};

/// Longest playbook: some jobs, and dozens of modules that each start a Python.
const PLAYBOOK: Duration = Duration::from_secs(900);

/// Ansible with the collection, for one user of one controller.
#[derive(Debug)]
pub struct Collection {
    host: String,
    user: String,
    password: String,
    /// Ansible's own folder: nothing of this machine's user is read or written.
    home: TempDir,
}

impl Collection {
    /// Ansible for the user whom `api` speaks for.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn new(api: &Api, https_port: u16) -> anyhow::Result<Self> {
        Ok(Self {
            host: format!("https://127.0.0.1:{https_port}"),
            user: api.user().to_owned(),
            password: api.password().to_owned(),
            home: tempfile::Builder::new().prefix("plexus-ansible-").tempdir()?,
        })
    }

    /// Runs a playbook on this machine, with these extra variables.
    ///
    /// # Panics
    /// If the collection is not installed, or the playbook does not end in a quarter of an hour.
    pub async fn play(&self, playbook: &Path, variables: &[(&str, &str)]) -> Output {
        let mut arguments = vec![playbook.display().to_string()];
        for (name, value) in variables {
            arguments.extend(["-e".to_owned(), format!("{name}={value}")]);
        }
        self.run("ansible-playbook", &arguments).await
    }

    /// Runs one of Ansible's programs.
    ///
    /// # Panics
    /// As [`Collection::play`].
    pub async fn run(&self, program: &str, arguments: &[String]) -> Output {
        let dir = dir();
        let bin = dir.join("bin");
        assert!(
            dir.join("collections/ansible_collections/awx").is_dir(),
            "the awx.awx collection is missing; deploy/setup/setup.sh collection installs it"
        );
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = tokio::process::Command::new(bin.join(program));
        command.args(arguments).current_dir(self.home.path()).kill_on_drop(true);
        for name in ["CONTROLLER_OAUTH_TOKEN", "TOWER_HOST", "TOWER_OAUTH_TOKEN", "http_proxy", "https_proxy"]
        {
            command.env_remove(name);
        }
        command
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("ANSIBLE_HOME", self.home.path())
            .env("ANSIBLE_COLLECTIONS_PATH", dir.join("collections"))
            .env("ANSIBLE_LOCALHOST_WARNING", "False")
            .env("ANSIBLE_INVENTORY_UNPARSED_WARNING", "False")
            .env("ANSIBLE_NOCOLOR", "1")
            // Playbooks say what is different the second time by merging mappings.
            .env("ANSIBLE_DUPLICATE_YAML_DICT_KEY", "ignore")
            .env("CONTROLLER_HOST", &self.host)
            .env("CONTROLLER_USERNAME", &self.user)
            .env("CONTROLLER_PASSWORD", &self.password)
            .env("CONTROLLER_VERIFY_SSL", "false")
            // Ten seconds of the collection's own are short on a machine that compiles.
            .env("CONTROLLER_REQUEST_TIMEOUT", "60")
            .env("NO_PROXY", "*");
        tokio::time::timeout(PLAYBOOK, command.output())
            .await
            .unwrap_or_else(|_| panic!("{program} {arguments:?} hangs"))
            .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"))
    }
}

fn dir() -> PathBuf {
    cache_dir().join("awx-collection-24.6.1")
}

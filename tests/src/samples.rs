//! The sample playbooks of `tests/fixtures/playbooks`, loaded into a controller through its HTTP API.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::layout::podman_command;

/// Folder of the sample project below the controller's project root.
const PROJECT: &str = "samples";

/// The sample playbooks and inventories, and the image they run in.
#[derive(Debug, Clone)]
pub struct Samples {
    dir: PathBuf,
    image: String,
    reader: String,
}

/// What a job template is made of besides its playbook and inventory.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// `--limit`.
    pub limit: Option<String>,
    /// `--tags`.
    pub tags: Option<String>,
    /// `--skip-tags`.
    pub skip_tags: Option<String>,
    /// `--check`.
    pub check: bool,
    /// `--diff`.
    pub diff: bool,
    /// Extra variables: a JSON or YAML mapping.
    pub extra_vars: Option<String>,
}

/// Ids of what was loaded.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// Organization.
    pub organization: i64,
    /// Project.
    pub project: i64,
    /// Execution environment.
    pub environment: i64,
}

impl Samples {
    /// The samples of this source tree, to be run in `image`.
    ///
    /// # Errors
    /// When they are not there.
    pub fn new(image: &str) -> anyhow::Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join("playbooks");
        if !dir.join("project").is_dir() {
            bail!("sample playbooks are missing: {}", dir.display());
        }
        Ok(Self { dir, image: image.to_owned(), reader: demo_image() })
    }

    /// Names of the playbooks that can be chosen.
    pub fn playbooks(&self) -> Vec<String> {
        names(&self.dir.join("project"), |name| name.ends_with(".yml"))
    }

    /// Names of the inventories that can be chosen.
    pub fn inventories(&self) -> Vec<String> {
        names(&self.dir.join("inventory"), |_| true)
    }

    /// Copies the project below the controller's project root.
    ///
    /// # Errors
    /// When a file cannot be copied.
    pub fn copy_project(&self, root: &Path) -> anyhow::Result<()> {
        copy_tree(&self.dir.join("project"), &root.join(PROJECT))
    }

    /// Makes organization, execution environment and project.
    ///
    /// # Errors
    /// When the API refuses one.
    pub async fn load(&self, api: &Api) -> anyhow::Result<Loaded> {
        let organization = id(&api.ensure("organizations/", &json!({"name": "Default"})).await?)?;
        let environment = api
            .ensure(
                "execution_environments/",
                &json!({"name": "Demo EE", "image": self.image, "organization": organization, "pull": "missing"}),
            )
            .await?;
        let project = api
            .ensure(
                "projects/",
                &json!({"name": "Sample playbooks", "organization": organization, "scm_type": "", "local_path": PROJECT}),
            )
            .await?;
        Ok(Loaded { organization, project: id(&project)?, environment: id(&environment)? })
    }

    /// Makes an inventory with the hosts, groups and variables that Ansible itself sees in a sample inventory file.
    ///
    /// # Errors
    /// When Ansible cannot read the file, or the API refuses something.
    pub async fn load_inventory(&self, api: &Api, loaded: Loaded, file: &str) -> anyhow::Result<i64> {
        let found = api.get(&format!("inventories/?name={file}")).await?;
        if let Some(existing) = found["results"].get(0) {
            return id(existing);
        }
        let listing = self.inventory_listing(file)?;
        let content = InventoryContent::parse(&listing)?;
        let inventory = api
            .create(
                "inventories/",
                &json!({"name": file, "organization": loaded.organization, "variables": Value::Object(content.variables).to_string()}),
            )
            .await?;
        let inventory = id(&inventory)?;
        let mut hosts = BTreeMap::new();
        for (name, variables) in content.hosts {
            let body = json!({"name": name, "inventory": inventory, "variables": Value::Object(variables).to_string()});
            hosts.insert(name, id(&api.create("hosts/", &body).await?)?);
        }
        let mut groups = BTreeMap::new();
        for (name, group) in &content.groups {
            let body = json!({"name": name, "inventory": inventory, "variables": Value::Object(group.variables.clone()).to_string()});
            groups.insert(name.clone(), id(&api.create("groups/", &body).await?)?);
        }
        for (name, group) in &content.groups {
            let own = groups[name];
            for host in &group.hosts {
                let host =
                    hosts.get(host).with_context(|| format!("group {name} names unknown host {host}"))?;
                api.post(&format!("groups/{own}/hosts/"), &json!({"id": host})).await?;
            }
            for child in &group.children {
                let child =
                    groups.get(child).with_context(|| format!("group {name} names unknown group {child}"))?;
                api.post(&format!("groups/{own}/children/"), &json!({"id": child})).await?;
            }
        }
        Ok(inventory)
    }

    /// Makes an inventory of one host, which is the execution environment itself.
    ///
    /// # Errors
    /// When the API refuses something.
    pub async fn load_here(&self, api: &Api, loaded: Loaded) -> anyhow::Result<i64> {
        let body = json!({"name": "here", "organization": loaded.organization});
        let inventory = id(&api.create("inventories/", &body).await?)?;
        let variables = json!({"ansible_connection": "local"}).to_string();
        let host = json!({"name": "here", "inventory": inventory, "variables": variables});
        api.create("hosts/", &host).await?;
        Ok(inventory)
    }

    /// Makes a job template and gives its id.
    ///
    /// # Errors
    /// When the API refuses it.
    pub async fn template(
        &self,
        api: &Api,
        loaded: Loaded,
        name: &str,
        playbook: &str,
        inventory: i64,
        options: &JobOptions,
    ) -> anyhow::Result<i64> {
        let body = json!({
            "name": name,
            "job_type": if options.check { "check" } else { "run" },
            "inventory": inventory,
            "project": loaded.project,
            "playbook": playbook,
            "execution_environment": loaded.environment,
            "limit": options.limit.as_deref().unwrap_or(""),
            "job_tags": options.tags.as_deref().unwrap_or(""),
            "skip_tags": options.skip_tags.as_deref().unwrap_or(""),
            "diff_mode": options.diff,
            "extra_vars": options.extra_vars.as_deref().unwrap_or(""),
            // Some tests want several at once.
            "allow_simultaneous": true,
        });
        id(&api.create("job_templates/", &body).await?)
    }

    /// What `ansible-inventory --list --export` in the set-up's image says of an inventory file, kept by the file's digest.
    ///
    /// # Errors
    /// When the file is missing or Ansible cannot read it.
    pub fn inventory_listing(&self, file: &str) -> anyhow::Result<Value> {
        let source = self.dir.join("inventory").join(file);
        let content = fs::read(&source).with_context(|| {
            format!("no such sample inventory: {file} (there are: {})", self.inventories().join(", "))
        })?;
        let mut hasher = blake3::Hasher::new();
        for part in [file.as_bytes(), &content, self.reader.as_bytes()] {
            hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes()).update(part);
        }
        let kept =
            cache_dir().join("inventories").join(format!("{}.json", &hasher.finalize().to_hex()[..32]));
        if let Some(listing) = fs::read(&kept).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(listing);
        }
        let text = self.ansible_inventory(file)?;
        let listing = serde_json::from_slice(&text).context("ansible-inventory did not print JSON")?;
        if let Some(dir) = kept.parent() {
            // A cache: without it the next run asks again.
            fs::create_dir_all(dir).and_then(|()| fs::write(&kept, &text)).ok();
        }
        Ok(listing)
    }

    fn ansible_inventory(&self, file: &str) -> anyhow::Result<Vec<u8>> {
        let command = podman_command();
        let (program, first) = command.split_first().context("no podman command")?;
        let output = Command::new(program)
            .args(first)
            .args(["run", "--rm", "--network", "none", "--volume"])
            .arg(format!("{}:/samples:ro", self.dir.join("inventory").display()))
            .arg(&self.reader)
            .args(["ansible-inventory", "-i", &format!("/samples/{file}"), "--list", "--export"])
            .output()
            .context("cannot run podman")?;
        if !output.status.success() {
            bail!("ansible-inventory cannot read {file}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output.stdout)
    }
}

/// The execution environment image that the set-up builds: `$PLEXUS_EE_IMAGE`, or `localhost/plexus-ee:demo`.
pub fn demo_image() -> String {
    env::var("PLEXUS_EE_IMAGE").unwrap_or_else(|_| "localhost/plexus-ee:demo".to_owned())
}

/// Where set-up, demo and tests keep what they may make again.
pub fn cache_dir() -> PathBuf {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("PLEXUS_CACHE")
        .or_else(|| Some(from("XDG_CACHE_HOME")?.join("plexus")))
        .or_else(|| Some(from("HOME")?.join(".cache").join("plexus")))
        .unwrap_or_else(|| env::temp_dir().join("plexus-cache"))
}

/// A group as Ansible lists it.
#[derive(Debug, Default, PartialEq)]
struct Group {
    variables: Map<String, Value>,
    hosts: Vec<String>,
    children: Vec<String>,
}

/// An inventory as Ansible lists it, without the groups that every inventory has.
#[derive(Debug, Default, PartialEq)]
struct InventoryContent {
    variables: Map<String, Value>,
    hosts: Vec<(String, Map<String, Value>)>,
    groups: BTreeMap<String, Group>,
}

impl InventoryContent {
    fn parse(listing: &Value) -> anyhow::Result<Self> {
        let listing = listing.as_object().context("inventory listing is not an object")?;
        let mut content = Self::default();
        let hostvars =
            listing.get("_meta").and_then(|meta| meta["hostvars"].as_object()).cloned().unwrap_or_default();
        let mut seen = std::collections::BTreeSet::new();
        for (name, value) in listing.iter().filter(|(name, _)| *name != "_meta") {
            let group = Group {
                variables: value["vars"].as_object().cloned().unwrap_or_default(),
                hosts: strings(&value["hosts"]),
                children: strings(&value["children"]),
            };
            // Ansible's own order of hosts, which the job's output follows.
            for host in &group.hosts {
                if seen.insert(host.clone()) {
                    let variables =
                        hostvars.get(host).and_then(Value::as_object).cloned().unwrap_or_default();
                    content.hosts.push((host.clone(), variables));
                }
            }
            match name.as_str() {
                "all" => content.variables = group.variables,
                "ungrouped" => {}
                _ => {
                    content.groups.insert(name.clone(), group);
                }
            }
        }
        for (host, variables) in &hostvars {
            if seen.insert(host.clone()) {
                content.hosts.push((host.clone(), variables.as_object().cloned().unwrap_or_default()));
            }
        }
        Ok(content)
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

fn id(object: &Value) -> anyhow::Result<i64> {
    object["id"].as_i64().with_context(|| format!("object has no id: {object}"))
}

fn names(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| wanted(name))
        .collect();
    names.sort();
    names
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_becomes_hosts_groups_and_variables() {
        let listing = json!({
            "_meta": {"hostvars": {"web1": {"port": 80}, "lone": {}}},
            "all": {"children": ["ungrouped", "web"], "vars": {"ansible_connection": "local"}},
            "ungrouped": {"hosts": ["lone"]},
            "web": {"hosts": ["web1"], "children": ["edge"], "vars": {"tier": "front"}},
            "edge": {"hosts": ["web1"]},
        });
        let content = InventoryContent::parse(&listing).unwrap();
        assert_eq!(content.variables["ansible_connection"], "local");
        assert_eq!(content.groups.keys().collect::<Vec<_>>(), ["edge", "web"]);
        assert_eq!(content.groups["web"].children, ["edge"]);
        let mut hosts: Vec<_> = content.hosts.iter().map(|(name, _)| name.as_str()).collect();
        hosts.sort_unstable();
        assert_eq!(hosts, ["lone", "web1"]);
    }
}

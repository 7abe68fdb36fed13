//! An update of an inventory source: `ansible-inventory` in an execution environment, on a file of a project, on a plugin of
//! Ansible's for a cloud, or on other inventories.
//!
//! Pure. Files, names and variables are AWX's, so that configurations people have work as they are. The runner takes the command
//! from the file `args`; what it prints as JSON comes back as `output.json` among the artifacts.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::injectors::Injected;
use super::private::{Limits, Run, file, quote, settings};
use crate::facts;
use crate::inventory::document::{Reading, shown};

/// Variables that a source's own may not replace.
const BLOCKED: &[&str] =
    &["HOME", "USER", "_", "TERM", "PATH", "PYTHONPATH", "VIRTUAL_ENV", "LD_PRELOAD", "LD_LIBRARY_PATH"];

/// A source that cannot be updated as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Nobody knows this kind.
    #[error("{0:?} is no kind of inventory source that can be updated")]
    Kind(String),
    /// The file is elsewhere.
    #[error("source path {0:?} leads out of the project")]
    Outside(String),
}

/// How a plugin of Ansible's is used.
#[derive(Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The word of the source.
    pub source: &'static str,
    /// Its file is `NAME.yml`, which the plugin insists on.
    file: &'static str,
    /// What the file calls it.
    plugin: &'static str,
    /// Whether templates give back numbers and nulls as such.
    native: bool,
    /// Where its hosts say whether they are on, and which value means it.
    enabled: (&'static str, &'static str),
    /// Where its hosts say who they are.
    instance_id: &'static str,
    /// Whether groups with nothing in them are left out.
    no_empty_groups: bool,
}

const fn plugin(source: &'static str, file: &'static str, plugin: &'static str) -> Plugin {
    Plugin { source, file, plugin, native: false, enabled: ("", ""), instance_id: "", no_empty_groups: true }
}

/// Every kind of source with a plugin of its own.
pub const PLUGINS: &[Plugin] = &[
    Plugin {
        native: true,
        enabled: ("ec2_state", "running"),
        instance_id: "instance_id",
        ..plugin("ec2", "aws_ec2", "aws_ec2")
    },
    Plugin {
        native: true,
        enabled: ("status", "running"),
        instance_id: "gce_id",
        ..plugin("gce", "gcp_compute", "gcp_compute")
    },
    Plugin {
        native: true,
        enabled: ("powerstate", "running"),
        instance_id: "id",
        ..plugin("azure_rm", "azure_rm", "azure_rm")
    },
    Plugin {
        enabled: ("guest.gueststate", "running"),
        instance_id: "config.instanceUuid,config.instanceuuid",
        ..plugin("vmware", "vmware_vm_inventory", "vmware_vm_inventory")
    },
    Plugin {
        enabled: ("foreman_enabled,foreman.enabled", "True"),
        instance_id: "foreman_id,foreman.id",
        ..plugin("satellite6", "foreman", "theforeman.foreman.foreman")
    },
    Plugin {
        enabled: ("status", "ACTIVE"),
        instance_id: "openstack.id",
        ..plugin("openstack", "openstack", "openstack")
    },
    Plugin { enabled: ("status", "up"), instance_id: "id", ..plugin("rhv", "ovirt", "ovirt.ovirt.ovirt") },
    Plugin {
        enabled: ("remote_tower_enabled", "true"),
        instance_id: "remote_tower_id",
        ..plugin("controller", "tower", "tower")
    },
    Plugin {
        instance_id: "insights_id",
        no_empty_groups: false,
        ..plugin("insights", "insights", "redhatinsights.insights.insights")
    },
    Plugin { instance_id: "id", ..plugin("terraform", "terraform_state", "cloud.terraform.terraform_state") },
    plugin("openshift_virtualization", "kubevirt", "kubevirt"),
    Plugin {
        instance_id: "remote_tower_id",
        no_empty_groups: false,
        ..plugin("constructed", "constructed", "constructed")
    },
];

/// The plugin of a kind of source; none for those that are files.
pub fn plugin_of(source: &str) -> Option<&'static Plugin> {
    PLUGINS.iter().find(|plugin| plugin.source == source)
}

/// How the hosts of a source are read, by its kind and by what it says itself.
pub fn reading(source: &str, enabled: (&str, &str), host_filter: Option<regex::Regex>) -> Reading {
    let plugin = plugin_of(source);
    let usual = plugin.map(|plugin| plugin.enabled).unwrap_or_default();
    let (enabled_var, enabled_value) = if enabled.0.is_empty() { usual } else { enabled };
    Reading {
        enabled_var: enabled_var.to_owned(),
        enabled_value: enabled_value.to_owned(),
        instance_id_var: plugin.map(|plugin| plugin.instance_id).unwrap_or_default().to_owned(),
        host_filter,
        exclude_empty_groups: plugin.is_some_and(|plugin| plugin.no_empty_groups),
    }
}

/// Everything an update is made of.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Its number.
    pub id: i64,
    /// Number of its source.
    pub source_id: i64,
    /// What kind of source: `scm`, `ec2`, `constructed`.
    pub source: String,
    /// Path of the file below the project.
    pub source_path: String,
    /// What the source says besides: the plugin's configuration, or variables of the environment.
    pub source_vars: Map<String, Value>,
    /// `--limit`; empty: all hosts.
    pub limit: String,
    /// 0 to 2.
    pub verbosity: i64,
    /// How long it may take.
    pub limits: Limits,
    /// What credentials bring, and variables that all jobs have.
    pub injected: Injected,
    /// Of a credential for Google's cloud: its project.
    pub cloud_project: String,
    /// Inventories that it is made of, in their order: number, and the document as JSON text.
    pub inputs: Vec<(i64, String)>,
    /// Facts of their hosts, JSON text by name.
    pub facts: BTreeMap<String, String>,
}

impl Update {
    /// What the worker is given.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn run(mut self) -> Result<Run, Unusable> {
        let mut files = vec![settings(self.limits)];
        let mut sources = Vec::new();
        for (id, document) in &self.inputs {
            let path = format!("inventory/hosts_{id}.json");
            files.push(file(&path, as_file(document)));
            sources.push(format!("/runner/{path}"));
        }
        let constructed = self.source == "constructed";
        let mut env = self.environment();
        let (path, folder) = match plugin_of(&self.source) {
            Some(plugin) => {
                let path = format!("inventory/{}.yml", plugin.file);
                let config = Value::Object(self.configuration(plugin)).to_string();
                files.push(file(&path, config));
                let enabled = if constructed { "auto,yaml" } else { "auto" };
                env.insert("ANSIBLE_INVENTORY_ENABLED".to_owned(), enabled.to_owned());
                if plugin.native {
                    env.insert("ANSIBLE_JINJA2_NATIVE".to_owned(), "True".to_owned());
                }
                if constructed {
                    env.insert("ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED".to_owned(), "True".to_owned());
                }
                (format!("/runner/{path}"), "/runner/inventory".to_owned())
            }
            None if matches!(self.source.as_str(), "scm" | "file") => {
                for (name, value) in &self.source_vars {
                    if !env.contains_key(name) && !BLOCKED.contains(&name.as_str()) {
                        env.insert(name.clone(), shown(value));
                    }
                }
                let path = format!("/runner/project/{}", below_project(&self.source_path)?);
                let folder = path.rsplit_once('/').map_or("/runner/project", |(folder, _)| folder).to_owned();
                (path, folder)
            }
            None => return Err(Unusable::Kind(self.source)),
        };
        sources.push(path);
        for (name, content) in &self.injected.files {
            files.push(file(&format!("env/{name}"), content.clone()));
        }
        let cache = format!("artifacts/{}/fact_cache", self.id);
        let facts = facts::files(&self.facts).into_iter();
        files.extend(facts.map(|(name, content)| file(&format!("{cache}/{name}"), content)));
        files.push(file("args", self.command(&sources, &folder)));
        let kwargs = json!({
            "ident": self.id.to_string(),
            "envvars": env,
            "suppress_env_files": true,
            "fact_cache_type": if constructed { "jsonfile" } else { "" },
        });
        Ok(Run { kwargs, files, limits: self.limits })
    }

    fn command(&self, sources: &[String], folder: &str) -> String {
        let mut words = vec!["ansible-inventory".to_owned(), "--list".to_owned(), "--export".to_owned()];
        for source in sources {
            words.extend(["-i".to_owned(), quote(source)]);
        }
        if !self.limit.is_empty() {
            words.extend(["--limit".to_owned(), quote(&self.limit)]);
        }
        words.push("--output".to_owned());
        words.push(format!("/runner/artifacts/{}/output.json", self.id));
        words.extend(["--playbook-dir".to_owned(), quote(folder)]);
        if self.verbosity > 0 {
            let loud = usize::try_from(self.verbosity.clamp(1, 2) * 2 + 1).unwrap_or(3);
            words.push(format!("-{}", "v".repeat(loud)));
        }
        words.join(" ")
    }

    fn environment(&mut self) -> BTreeMap<String, String> {
        let (id, source) = (self.id.to_string(), self.source_id.to_string());
        let own = [
            ("ANSIBLE_FORCE_COLOR", "True"),
            ("ANSIBLE_HOST_KEY_CHECKING", "False"),
            ("ANSIBLE_RETRY_FILES_ENABLED", "False"),
            ("ANSIBLE_INVENTORY_EXPORT", "True"),
            ("ANSIBLE_INVENTORY_UNPARSED_FAILED", "True"),
            ("ANSIBLE_VERBOSE_TO_STDERR", "True"),
            ("INVENTORY_SOURCE_ID", source.as_str()),
            ("INVENTORY_UPDATE_ID", id.as_str()),
        ];
        self.adapt();
        let mut env: BTreeMap<String, String> =
            own.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        env.extend(self.injected.env.clone());
        env
    }

    /// What some credentials bring to a job is another thing in an update.
    fn adapt(&mut self) {
        match self.source.as_str() {
            "openstack" => {
                let clouds = self.injected.env.get("OS_CLIENT_CONFIG_FILE").cloned().unwrap_or_default();
                let Some((_, content)) = self.file(&clouds) else { return };
                let Ok(mut document) = serde_json::from_str::<Value>(content) else { return };
                let Some(cloud) = document.pointer_mut("/clouds/devstack").and_then(Value::as_object_mut)
                else {
                    return;
                };
                let private = self.source_vars.get("private").cloned().unwrap_or(Value::Bool(true));
                cloud.insert("private".to_owned(), private);
                let usual = [("use_hostnames", true), ("expand_hostvars", false), ("fail_on_errors", true)];
                if usual.iter().any(|(name, _)| self.source_vars.contains_key(*name)) {
                    let choose = |(name, usual): (&str, bool)| {
                        let said = self.source_vars.get(name).cloned();
                        (name.to_owned(), said.unwrap_or(Value::Bool(usual)))
                    };
                    document["ansible"] = usual.into_iter().map(choose).collect::<Map<_, _>>().into();
                }
                let text = document.to_string();
                let name = clouds.trim_start_matches("/runner/env/").to_owned();
                if let Some(found) = self.injected.files.iter_mut().find(|(own, _)| *own == name) {
                    found.1 = text;
                }
            }
            // The plugin reads its backend from its own configuration.
            "terraform" => {
                if let Some(path) = self.injected.env.remove("TF_BACKEND_CONFIG_FILE")
                    && self.file(&path).is_some_and(|(_, content)| !content.is_empty())
                {
                    self.source_vars.insert("backend_config_files".to_owned(), path.into());
                }
            }
            _ => {}
        }
    }

    fn file(&self, path: &str) -> Option<&(String, String)> {
        let name = path.strip_prefix("/runner/env/")?;
        self.injected.files.iter().find(|(own, _)| own == name)
    }

    fn configuration(&self, plugin: &Plugin) -> Map<String, Value> {
        let mut config = self.source_vars.clone();
        config.insert("plugin".to_owned(), plugin.plugin.into());
        if plugin.source == "gce" && !config.contains_key("projects") {
            config.insert("projects".to_owned(), json!([self.cloud_project]));
        }
        config
    }
}

/// The document of an inventory, as scripts print it, in the form of Ansible's own YAML plugin: nothing has to be executed where the
/// private directory lies, which many machines forbid.
fn as_file(document: &str) -> String {
    let mut document: Map<String, Value> = serde_json::from_str(document).unwrap_or_default();
    let part = |of: &mut Value, name: &str| of.get_mut(name).map(Value::take).unwrap_or_default();
    let hostvars = document.remove("_meta").map(|mut meta| part(&mut meta, "hostvars")).unwrap_or_default();
    let vars = document.remove("all").map(|mut all| part(&mut all, "vars")).unwrap_or_default();
    document.remove("ungrouped");
    let empty = |names: &Value| -> Value {
        let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
        names.map(|name| (name.to_owned(), json!({}))).collect::<Map<_, _>>().into()
    };
    let mut groups = Map::new();
    for (name, mut group) in document {
        let vars = part(&mut group, "vars");
        let vars = if vars.is_object() { vars } else { json!({}) };
        let body =
            json!({"hosts": empty(&group["hosts"]), "children": empty(&group["children"]), "vars": vars});
        groups.insert(name, body);
    }
    let or_empty = |value: Value| if value.is_object() { value } else { json!({}) };
    json!({"all": {"hosts": or_empty(hostvars), "children": groups, "vars": or_empty(vars)}}).to_string()
}

/// The path of a file below the project, without what leads out of it.
fn below_project(path: &str) -> Result<&str, Unusable> {
    let inside = path.trim_start_matches('/');
    if inside.split('/').any(|part| part == "..") || inside.contains('\0') {
        return Err(Unusable::Outside(path.chars().take(80).collect()));
    }
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(source: &str) -> Update {
        Update { id: 7, source_id: 3, source: source.to_owned(), ..Update::default() }
    }

    fn content(run: &Run, path: &str) -> String {
        let found = run.files.iter().find(|file| file.path == path);
        let found = found.unwrap_or_else(|| {
            panic!("no {path}: {:?}", run.files.iter().map(|f| &f.path).collect::<Vec<_>>())
        });
        String::from_utf8(found.content.to_vec()).unwrap()
    }

    fn config(run: &Run, name: &str) -> Value {
        serde_json::from_str(&content(run, &format!("inventory/{name}.yml"))).unwrap()
    }

    #[test]
    fn a_file_of_a_project_is_read_with_the_variables_of_the_source() {
        let source_vars = json!({"FLAG": true, "N": 3, "HOME": "/x", "INVENTORY_UPDATE_ID": "99"});
        let Value::Object(source_vars) = source_vars else { unreachable!() };
        let (source_path, limit) = ("inv/my hosts.ini".to_owned(), "web".to_owned());
        let run = Update { source_path, limit, verbosity: 2, source_vars, ..update("scm") }.run().unwrap();
        assert_eq!(
            content(&run, "args"),
            "ansible-inventory --list --export -i '/runner/project/inv/my hosts.ini' --limit web --output \
             /runner/artifacts/7/output.json --playbook-dir /runner/project/inv -vvvvv"
        );
        let env = &run.kwargs["envvars"];
        assert_eq!(
            (&env["FLAG"], &env["N"], &env["INVENTORY_UPDATE_ID"]),
            (&json!("True"), &json!("3"), &json!("7"))
        );
        assert!(env.get("HOME").is_none());
        for path in ["../x", "a/../../b", "/.."] {
            let bad = Update { source_path: path.to_owned(), ..update("scm") };
            assert!(matches!(bad.run(), Err(Unusable::Outside(_))), "{path}");
        }
        assert!(matches!(update("custom").run(), Err(Unusable::Kind(_))));
    }

    #[test]
    fn every_cloud_has_its_plugin_and_file() {
        for (source, file, plugin) in [
            ("ec2", "aws_ec2", "aws_ec2"),
            ("gce", "gcp_compute", "gcp_compute"),
            ("azure_rm", "azure_rm", "azure_rm"),
            ("vmware", "vmware_vm_inventory", "vmware_vm_inventory"),
            ("satellite6", "foreman", "theforeman.foreman.foreman"),
            ("openstack", "openstack", "openstack"),
            ("rhv", "ovirt", "ovirt.ovirt.ovirt"),
            ("controller", "tower", "tower"),
            ("insights", "insights", "redhatinsights.insights.insights"),
            ("terraform", "terraform_state", "cloud.terraform.terraform_state"),
            ("openshift_virtualization", "kubevirt", "kubevirt"),
            ("constructed", "constructed", "constructed"),
        ] {
            let mut one = update(source);
            one.source_vars.insert("plugin".to_owned(), "mine".into());
            one.source_vars.insert("regions".to_owned(), json!(["a"]));
            let run = one.run().unwrap();
            let config = config(&run, file);
            assert_eq!((&config["plugin"], &config["regions"]), (&json!(plugin), &json!(["a"])), "{source}");
            let args = content(&run, "args");
            assert!(args.contains(&format!("-i /runner/inventory/{file}.yml")), "{args}");
            let native = matches!(source, "ec2" | "gce" | "azure_rm");
            assert_eq!(run.kwargs["envvars"].get("ANSIBLE_JINJA2_NATIVE").is_some(), native, "{source}");
        }
        let gce = Update { cloud_project: "p".to_owned(), ..update("gce") };
        assert_eq!(config(&gce.run().unwrap(), "gcp_compute")["projects"], json!(["p"]));
    }

    #[test]
    fn credentials_of_some_clouds_are_adapted() {
        let mut stack = update("openstack");
        stack.injected.env.insert("OS_CLIENT_CONFIG_FILE".to_owned(), "/runner/env/c".to_owned());
        let clouds = json!({"clouds": {"devstack": {"auth": {}}}}).to_string();
        stack.injected.files.push(("c".to_owned(), clouds));
        stack.source_vars.insert("expand_hostvars".to_owned(), true.into());
        let run = stack.run().unwrap();
        let clouds: Value = serde_json::from_str(&content(&run, "env/c")).unwrap();
        assert_eq!(clouds["clouds"]["devstack"]["private"], true);
        let ansible = json!({"use_hostnames": true, "expand_hostvars": true, "fail_on_errors": true});
        assert_eq!(clouds["ansible"], ansible);

        let mut state = update("terraform");
        state.injected.env.insert("TF_BACKEND_CONFIG_FILE".to_owned(), "/runner/env/t".to_owned());
        state.injected.files.push(("t".to_owned(), "bucket".to_owned()));
        let run = state.run().unwrap();
        assert_eq!(config(&run, "terraform_state")["backend_config_files"], "/runner/env/t");
        assert!(run.kwargs["envvars"].get("TF_BACKEND_CONFIG_FILE").is_none());
    }

    #[test]
    fn inventories_come_before_what_is_made_of_them() {
        let mut made = update("constructed");
        let input = json!({
            "_meta": {"hostvars": {"web1": {"a": 1}, "lone": {}}},
            "all": {"children": ["site", "web"], "vars": {"v": 1}},
            "site": {"children": ["web"], "vars": {"s": 2}},
            "web": {"hosts": ["web1"]},
            "ungrouped": {"hosts": ["lone"]},
        });
        made.inputs = vec![(5, "{}".to_owned()), (2, input.to_string())];
        made.facts.insert("web1".to_owned(), "{}".to_owned());
        let run = made.run().unwrap();
        let args = content(&run, "args");
        let order = "-i /runner/inventory/hosts_5.json -i /runner/inventory/hosts_2.json -i /runner/inventory/constructed.yml";
        assert!(args.contains(order), "{args}");
        let file: Value = serde_json::from_str(&content(&run, "inventory/hosts_2.json")).unwrap();
        let web = json!({"hosts": {"web1": {}}, "children": {}, "vars": {}});
        let site = json!({"hosts": {}, "children": {"web": {}}, "vars": {"s": 2}});
        let hosts = json!({"web1": {"a": 1}, "lone": {}});
        assert_eq!(
            file,
            json!({"all": {"hosts": hosts, "children": {"site": site, "web": web}, "vars": {"v": 1}}})
        );
        assert_eq!(run.kwargs["envvars"]["ANSIBLE_INVENTORY_ENABLED"], "auto,yaml");
        assert_eq!(run.kwargs["fact_cache_type"], "jsonfile");
        assert!(content(&run, "artifacts/7/fact_cache/web1").starts_with("{}"));
    }

    #[test]
    fn hosts_are_read_as_their_cloud_names_them_unless_the_source_says_more() {
        let usual = reading("ec2", ("", ""), None);
        assert_eq!((usual.enabled_var.as_str(), usual.enabled_value.as_str()), ("ec2_state", "running"));
        assert!(usual.exclude_empty_groups && usual.instance_id_var == "instance_id");
        let own = reading("ec2", ("power", "on"), None);
        assert_eq!((own.enabled_var.as_str(), own.enabled_value.as_str()), ("power", "on"));
        let plain = reading("scm", ("", ""), None);
        assert!(
            plain.enabled_var.is_empty() && plain.instance_id_var.is_empty() && !plain.exclude_empty_groups
        );
    }
}

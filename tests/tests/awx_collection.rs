//! The unmodified `awx.awx` collection 24.6.1 against a controller with a node: each resource made, made again (which changes
//! nothing), changed, and taken away; and a colleague's playbook from nothing to a deployment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use plexus_tests::proofs::{self, Client};
use plexus_tests::{Cluster, Collection, demo_image, is_verify, text};

/// What the other playbooks stand on.
const STAGE: &str = "_stage";
/// The heart of it, which `make test` runs.
const HEART: [&str; 2] = ["team", "credential"];
/// Playbooks with a test of their own.
const APART: [&str; 1] = ["colleague"];

/// Modules of the collection that are for what Plexus does not have yet, or has no need of.
const NOT_HERE: [(&str, &str); 19] = [
    ("license", "there is none to install"),
    ("subscriptions", "there is none to look for"),
    ("instance", "nodes enrol themselves; the module asks for a setting IS_K8S"),
    ("notification_template", LATER),
    ("schedule", LATER),
    ("workflow_job_template", LATER),
    ("workflow_job_template_node", LATER),
    ("workflow_launch", LATER),
    ("workflow_approval", LATER),
    ("workflow_node_wait", LATER),
    ("bulk_job_launch", LATER),
    ("application", LATER),
    ("credential_input_source", LATER),
    ("project_update", LATER),
    ("role_definition", LATER),
    ("role_team_assignment", LATER),
    ("role_user_assignment", LATER),
    ("export", "tested with the command"),
    ("import", "tested with the command"),
];
const LATER: &str = "not built yet";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/collection")
}

/// Names of the playbooks, each with its text.
fn playbooks() -> BTreeMap<String, String> {
    let files = std::fs::read_dir(fixtures()).expect("the folder of playbooks is there").flatten();
    files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yml"))
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).expect("a playbook can be read"))
        })
        .collect()
}

/// The modules that a playbook uses, each with the names of the tasks that do.
fn used(playbook: &str) -> Vec<(&str, &str)> {
    let mut task = "use";
    let mut used = Vec::new();
    for line in playbook.lines() {
        let words = line.trim_start_matches([' ', '-']);
        if let Some(name) = words.strip_prefix("name: ").filter(|_| line.trim_start().starts_with("- ")) {
            task = name;
        } else if let Some(rest) = words.strip_prefix("awx.awx.") {
            used.push((rest.split(':').next().unwrap_or_default(), task));
        }
    }
    used
}

async fn play(ansible: &Collection, name: &str, variables: &[(&str, &str)]) -> String {
    let path = fixtures().join(format!("{name}.yml"));
    let output = ansible.play(&path, variables).await;
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{name}.yml: {shown}\n{}", text(&output.stderr));
    shown
}

/// Modules whose resource is not simply their plural.
const RESOURCES: [(&str, &str); 12] = [
    ("inventory", "inventory"),
    ("bulk_host_create", "bulk"),
    ("bulk_host_delete", "bulk"),
    ("job_launch", "job_templates"),
    ("job_list", "jobs"),
    ("job_wait", "jobs"),
    ("job_cancel", "jobs"),
    ("settings", "settings"),
    ("controller_meta", "config"),
    ("inventory_source_update", "inventory_updates"),
    ("ad_hoc_command_wait", "ad_hoc_commands"),
    ("ad_hoc_command_cancel", "ad_hoc_commands"),
];

fn record(name: &str, playbook: &str) {
    let proof = format!("tests/fixtures/collection/{name}.yml");
    for (module, task) in used(playbook) {
        let other =
            RESOURCES.iter().find(|(own, _)| *own == module).map(|(_, resource)| (*resource).to_owned());
        let resource = other.clone().unwrap_or_else(|| format!("{module}s"));
        let verb = match (module, task.split([',', ' ']).next()) {
            ("job_launch", _) => "launch",
            ("job_cancel" | "ad_hoc_command_cancel", _) => "cancel",
            ("job_list", _) => "list",
            ("job_wait", _) => "get",
            ("bulk_host_create", _) => "host_create",
            ("bulk_host_delete", _) => "host_delete",
            ("settings", _) | (_, Some("update")) => "modify",
            (_, Some(verb @ ("create" | "delete" | "copy"))) => verb,
            _ => "get",
        };
        proofs::seen(Client::Collection, &resource, verb, &proof);
    }
}

async fn stage(name: &str) -> (Cluster, Collection) {
    let cluster = Cluster::builder(name).start().await.expect("the cluster starts");
    for (folder, project) in [("project", "life"), ("shop", "shop")] {
        let target = cluster.layout.projects().join(project);
        std::fs::create_dir_all(&target).expect("a folder for the project");
        for file in std::fs::read_dir(fixtures().join(folder)).expect("the project's files").flatten() {
            std::fs::copy(file.path(), target.join(file.file_name())).expect("a file is copied");
        }
    }
    let ansible = Collection::new(cluster.api(), cluster.layout.https_port).expect("a folder for Ansible");
    (cluster, ansible)
}

#[tokio::test]
async fn modules_create_repeat_change_and_delete_each_resource() {
    let (cluster, ansible) = stage("collection").await;
    play(&ansible, STAGE, &[("image", &demo_image())]).await;
    for (name, playbook) in playbooks() {
        let apart = name == STAGE || APART.contains(&name.as_str());
        if !apart && (is_verify() || HEART.contains(&name.as_str())) {
            play(&ansible, &name, &[]).await;
            record(&name, &playbook);
        }
    }
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn a_colleagues_playbook_goes_from_nothing_to_a_deployment() {
    if !is_verify() {
        return;
    }
    let (cluster, ansible) = stage("colleague").await;
    let image = demo_image();
    let secrets = [
        ("image", image.as_str()),
        ("grace_password", "password-of-grace"),
        ("machine_password", "password-of-the-machines"),
        ("cloud_password", "password-of-the-cloud"),
    ];
    play(&ansible, "colleague", &secrets).await;
    let again = play(&ansible, "colleague", &secrets).await;
    let changed = again.lines().filter(|line| line.starts_with("changed:")).count();
    // The inventory's module sends a kind of null, sees an empty one, and patches each time; what it gets is the same.
    assert_eq!(changed, 1, "only the launch changes anything: {again}");
    let told = cluster.api().get("jobs/?order_by=-id").await.unwrap().to_string();
    assert!(!told.contains("password-of"), "a job tells a secret: {told}");
    record("colleague", &playbooks()["colleague"]);
    the_inventory_plugin_shows_the_shop(&cluster, &ansible).await;
    cluster.finish().await.unwrap();
}

/// What `ansible-inventory` makes of the inventory, by the collection's plugin.
async fn the_inventory_plugin_shows_the_shop(cluster: &Cluster, ansible: &Collection) {
    let shop = cluster.api().get("inventories/?name=Shop hosts").await.expect("a list");
    let source = cluster.layout.dir.join("shop.controller.yml");
    let lines = format!(
        "plugin: awx.awx.controller\ninventory_id: {}\ninclude_metadata: true\n",
        shop["results"][0]["id"]
    );
    std::fs::write(&source, lines).expect("a source is written");
    let words = ["-i", &source.display().to_string(), "--list"].map(str::to_owned);
    let output = ansible.run("ansible-inventory", &words).await;
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("an inventory as JSON");
    let variables = &listed["_meta"]["hostvars"]["db1"];
    assert_eq!(
        (&variables["port"], &variables["shop_url"]),
        (&5432.into(), &"https://shop.example".into()),
        "{listed}"
    );
    assert_eq!(
        variables["rack"].as_str().map_or_else(|| variables["rack"].to_string(), str::to_owned),
        "2",
        "{listed}"
    );
    assert!(variables["remote_tower_id"].is_i64(), "{listed}");
    assert_eq!(listed["web"]["hosts"], serde_json::json!(["web1", "web2"]), "{listed}");
    proofs::seen(Client::Collection, "inventory", "script", "tests/tests/awx_collection.rs");
}

#[test]
fn each_module_has_a_playbook() {
    let used: BTreeSet<String> = playbooks()
        .values()
        .flat_map(|playbook| {
            used(playbook).into_iter().map(|(module, _)| module.to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let dir = plexus_tests::cache_dir()
        .join("awx-collection-24.6.1/collections/ansible_collections/awx/awx/plugins/modules");
    let there: BTreeSet<String> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}; deploy/setup/setup.sh collection", dir.display()))
        .flatten()
        .filter_map(|file| Some(file.file_name().to_string_lossy().strip_suffix(".py")?.to_owned()))
        .filter(|name| !name.starts_with('_'))
        .collect();
    let not_here: BTreeSet<String> = NOT_HERE.iter().map(|(name, _)| (*name).to_owned()).collect();
    let missing: Vec<_> = there.difference(&used).filter(|module| !not_here.contains(*module)).collect();
    assert!(missing.is_empty(), "modules without a playbook: {missing:?}");
}

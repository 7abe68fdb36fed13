//! Every resource with every verb that the unmodified `awx` command offers here, in the order of a user's day; and what one
//! controller exports, imported into an empty one. The command says itself what it offers; a verb that nobody runs fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use plexus_tests::proofs::{self, Client};
use plexus_tests::{Api, Awx, Cluster, Samples, Seen, demo_image, is_verify, text, wait_for};
use serde_json::{Value, json};

const PROOF: &str = "tests/tests/awx_matrix.rs";

/// Verbs that the command offers for what is not there, with their words: the answer must be a refusal that it can tell.
const LATER: &[(&str, &str, &[&str])] = &[
    ("organizations", "associate", NOTIFICATION),
    ("organizations", "disassociate", NOTIFICATION),
    ("projects", "associate", NOTIFICATION),
    ("projects", "disassociate", NOTIFICATION),
    ("projects", "update", &["night"]),
    ("project_updates", "stdout", &["1"]),
    ("project_updates", "delete", &["1"]),
    ("inventory_sources", "associate", NOTIFICATION),
    ("inventory_sources", "disassociate", NOTIFICATION),
    ("workflow_job_templates", "associate", NOTIFICATION),
    ("workflow_job_templates", "disassociate", NOTIFICATION),
    ("workflow_job_templates", "launch", &["1"]),
    ("workflow_jobs", "monitor", &["1"]),
    ("bulk", "get", &["1"]),
    ("bulk", "job_launch", &["--jobs", "[{\"unified_job_template\": 1}]"]),
];
const NOTIFICATION: &[&str] = &["1", "--start_notification", "1"];

/// Fewest commands of the day.
const COMMANDS: usize = 100;

/// The command, and what was done with it.
struct Day<'a> {
    awx: &'a Awx,
    done: BTreeSet<(String, String)>,
    commands: usize,
}

impl Day<'_> {
    /// Runs a command that must succeed.
    async fn json(&mut self, words: &[&str]) -> Value {
        let shown = self.awx.json(words).await;
        self.did(words);
        shown
    }

    /// Runs a command that must succeed and may print anything.
    async fn text(&mut self, words: &[&str]) -> String {
        let output = self.awx.run(words).await;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "awx {words:?}: {out}\n{err}");
        self.did(words);
        out
    }

    /// Runs a command that must fail with this exit code and say why, without a crash of the command itself.
    async fn refused(&mut self, words: &[&str], code: i32, why: &str) {
        let output = self.awx.run(words).await;
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "awx {words:?}: {said}");
        assert!(said.contains(why) && !said.contains("Traceback"), "awx {words:?}: {said}");
        self.commands += 1;
    }

    fn did(&mut self, words: &[&str]) {
        self.commands += 1;
        let verb = words.get(1).filter(|verb| !verb.starts_with('-')).copied().unwrap_or("get");
        if self.done.insert((words[0].to_owned(), verb.to_owned())) {
            proofs::seen(Client::Awx, words[0], verb, PROOF);
        }
    }

    /// Makes, reads, lists, changes an object; gives its id.
    async fn lives(&mut self, resource: &str, fields: &[&str], (flag, value): (&str, &str)) -> String {
        let created = self.json(&[&[resource, "create"], fields].concat()).await;
        let id = created["id"].to_string();
        // By name, as people do, where the command can: tokens have none.
        let name = if matches!(fields[0], "--name" | "--username") { fields[1] } else { &id };
        let got = self.json(&[resource, "get", name]).await;
        assert_eq!(got["id"], created["id"], "{resource}");
        let changed = self.json(&[resource, "modify", &id, flag, value]).await;
        let field = &changed[flag.trim_start_matches("--")];
        let shown = field.as_str().map_or_else(|| field.to_string(), str::to_owned);
        assert_eq!(shown, value, "{resource}: {changed}");
        let listed = self.json(&[resource, "list", "--all"]).await;
        let mut ids = listed["results"].as_array().expect("a list").iter().map(|object| &object["id"]);
        assert!(ids.any(|listed| *listed == created["id"]), "{resource}: {listed}");
        id
    }
}

/// What the command offers: resources, each with its verbs; none for those that are a page.
async fn offered(awx: &Awx) -> BTreeMap<String, Vec<String>> {
    let indented = |help: &str, by: usize| -> Vec<String> {
        let prefix = " ".repeat(by);
        let lines = help.lines().filter_map(|line| line.strip_prefix(&prefix));
        let first = lines.filter(|line| line.starts_with(|letter: char| letter.is_ascii_lowercase()));
        first.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    let help = awx.run(&["--help"]).await;
    let help = text(&help.stdout) + &text(&help.stderr);
    let (_, help) = help.split_once("positional arguments:").expect("a list of resources");
    let (help, _) = help.split_once("options:").expect("options after the resources");
    let mut offered = BTreeMap::new();
    for resource in indented(help, 4) {
        if matches!(resource.as_str(), "login" | "config" | "import" | "export") {
            offered.insert(resource, Vec::new());
            continue;
        }
        let help = awx.run(&[&resource, "--help"]).await;
        let help = text(&help.stdout) + &text(&help.stderr);
        let verbs =
            help.split_once("positional arguments:").and_then(|(_, rest)| rest.split_once("options:"));
        offered.insert(resource, verbs.map(|(verbs, _)| indented(verbs, 4)).unwrap_or_default());
    }
    offered
}

#[tokio::test]
async fn the_command_does_every_verb_it_offers() {
    if !is_verify() {
        return;
    }
    let cluster = Cluster::builder("awx-matrix").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    let awx = Awx::new(api, cluster.layout.https_port);
    let mut day = Day { awx: &awx, done: BTreeSet::new(), commands: 0 };

    for page in ["ping", "config", "me", "mesh_visualizer"] {
        assert!(day.json(&[page]).await.is_object(), "{page}");
    }
    day.text(&["metrics"]).await;
    assert!(day.json(&["login"]).await["token"].is_string());
    let made = objects(&mut day).await;
    people(&mut day).await;
    jobs(&mut day, api).await;
    settings_and_nodes(&mut day, api).await;
    let offered = offered(&awx).await;
    lists(&mut day, &offered).await;
    export_and_import(&mut day).await;
    // In the other order, so that nothing is in use by what was made after it.
    for (resource, id) in made.iter().rev().filter(|(resource, _)| *resource != "labels") {
        day.text(&[resource, "delete", id]).await;
        day.refused(&[resource, "get", id], 1, "matches the given query").await;
    }
    let missing: Vec<String> = offered
        .iter()
        .flat_map(|(resource, verbs)| {
            let verbs = if verbs.is_empty() { vec!["get".to_owned()] } else { verbs.clone() };
            verbs.into_iter().map(|verb| (resource.clone(), verb))
        })
        .filter(|verb| !day.done.contains(verb))
        .map(|(resource, verb)| format!("{resource} {verb}"))
        .collect();
    assert!(missing.is_empty(), "the command offers what nobody ran: {missing:?}");
    assert!(day.commands >= COMMANDS, "only {} commands", day.commands);
    cluster.finish().await.unwrap();
}

/// What a morning makes; resources with their ids, in order.
async fn objects(day: &mut Day<'_>) -> Vec<(&'static str, String)> {
    let organization = ["--organization", "Evening"];
    let with = |fields: &[&'static str]| [fields, &organization[..]].concat();
    let inputs = r#"{"username": "deploy", "password": "a secret of the night"}"#;
    let kind = r#"{"fields": [{"id": "token", "label": "Token", "type": "string", "secret": true}]}"#;
    let made: [(&str, Vec<&str>, (&str, &str)); 16] = [
        ("organizations", vec!["--name", "Evening"], ("--description", "late")),
        ("teams", with(&["--name", "night"]), ("--description", "late")),
        ("users", vec!["--username", "bob", "--password", "bob-password"], ("--first_name", "Bob")),
        ("labels", with(&["--name", "night"]), ("--name", "dark")),
        (
            "execution_environments",
            vec!["--name", "Night EE", "--image", "localhost/night:1"],
            ("--pull", "never"),
        ),
        (
            "credential_types",
            vec!["--name", "Night", "--kind", "net", "--inputs", kind],
            ("--description", "late"),
        ),
        (
            "credentials",
            with(&["--name", "night", "--credential_type", "Machine", "--inputs", inputs]),
            ("--description", "late"),
        ),
        ("projects", with(&["--name", "night", "--local_path", "samples"]), ("--description", "late")),
        ("inventory", with(&["--name", "night"]), ("--variables", r#"{"a": 1}"#)),
        ("hosts", vec!["--name", "moon", "--inventory", "night"], ("--enabled", "false")),
        ("groups", vec!["--name", "sky", "--inventory", "night"], ("--variables", r#"{"b": 2}"#)),
        (
            "inventory_sources",
            vec!["--name", "night", "--inventory", "night", "--source", "ec2"],
            ("--description", "late"),
        ),
        ("constructed_inventory", with(&["--name", "made of night"]), ("--description", "late")),
        ("instance_groups", vec!["--name", "night"], ("--max_forks", "7")),
        (
            "job_templates",
            vec![
                "--name",
                "night",
                "--project",
                "night",
                "--playbook",
                "facts.yml",
                "--inventory",
                "two-hosts.ini",
            ],
            ("--limit", "web1"),
        ),
        ("tokens", vec!["--description", "of the night", "--scope", "write"], ("--description", "late")),
    ];
    let mut ids = Vec::new();
    for (resource, fields, change) in made {
        ids.push((resource, day.lives(resource, &fields, change).await));
    }
    // A name that exists is said to exist; one that does not is not found.
    day.refused(&["organizations", "create", "--name", "Evening"], 1, "already exists").await;
    day.refused(&["organizations", "get", "Morning"], 2, "Could not find any organizations").await;
    for verb in ["associate", "disassociate"] {
        let shown = day.json(&["job_templates", verb, "night", "--credential", "night"]).await;
        assert!(shown["count"].is_i64() || shown.is_null() || shown.is_object(), "{shown}");
    }
    // As the guide has it.
    let guide = "execution_environments create --name Production --image quay.io/myorg/ansible-ee:2.1.0 --pull missing \
                 --description for-production";
    let guide: Vec<&str> = guide.split_whitespace().collect();
    ids.push(("execution_environments", day.json(&guide).await["id"].to_string()));
    day.json(&["execution_environments", "list", "--all"]).await;
    let hosts = r#"[{"name": "star-1"}, {"name": "star-2"}]"#;
    day.json(&["bulk", "host_create", "--inventory", "night", "--hosts", hosts]).await;
    let listed = day.json(&["hosts", "list", "--inventory", "night", "--name", "star-1"]).await;
    assert_eq!(listed["count"], 1, "{listed}");
    let star = format!("[{}]", listed["results"][0]["id"]);
    day.json(&["bulk", "host_delete", "--hosts", &star]).await;
    assert_eq!(day.json(&["hosts", "list", "--inventory", "night"]).await["count"], 2);
    ids.extend(newer(day, &ids).await);
    ids
}

/// What came to AWX last: applications, lookups, and roles by definition. The command takes ids here.
async fn newer(day: &mut Day<'_>, made: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let id_of = |resource: &str| {
        let found = made.iter().find(|(of, _)| *of == resource);
        found.map(|(_, id)| id.clone()).expect("it was made before")
    };
    let mut ids = Vec::new();
    let application = [
        "--name",
        "night",
        "--client_type",
        "confidential",
        "--authorization_grant_type",
        "password",
        "--organization",
        "Evening",
    ];
    ids.push(("applications", day.lives("applications", &application, ("--description", "late")).await));
    let inputs = r#"{"url": "http://127.0.0.1:9", "token": "of the vault", "api_version": "v2"}"#;
    let vault = [
        "--name",
        "vault",
        "--credential_type",
        "HashiCorp Vault Secret Lookup",
        "--organization",
        "Evening",
        "--inputs",
        inputs,
    ];
    ids.push(("credentials", day.lives("credentials", &vault, ("--description", "late")).await));
    let dawn = ["--name", "dawn", "--credential_type", "Machine", "--organization", "Evening"];
    ids.push(("credentials", day.lives("credentials", &dawn, ("--description", "late")).await));
    let (target, source) = (ids[2].1.clone(), ids[1].1.clone());
    let lookup = [
        "--target_credential",
        &target,
        "--source_credential",
        &source,
        "--input_field_name",
        "password",
        "--metadata",
        r#"{"secret_path": "/night", "secret_key": "password"}"#,
    ];
    let lookup = day.lives("credential_input_sources", &lookup, ("--description", "late")).await;
    ids.push(("credential_input_sources", lookup));
    let definition = [
        "--name",
        "night watch",
        "--content_type",
        "awx.inventory",
        "--permissions",
        "awx.view_inventory,awx.use_inventory",
    ];
    let definition = day.lives("role_definitions", &definition, ("--description", "late")).await;
    let inventory = id_of("inventory");
    for (resource, holder, id) in [
        ("role_user_assignments", "--user", id_of("users")),
        ("role_team_assignments", "--team", id_of("teams")),
    ] {
        let given = ["create", "--role_definition", &definition, holder, &id, "--object_id", &inventory];
        let given = day.json(&[&[resource], &given[..]].concat()).await["id"].to_string();
        assert_eq!(
            day.json(&[resource, "get", &given]).await["object_id"].to_string().trim_matches('"'),
            inventory
        );
        assert_eq!(day.json(&[resource, "list", "--role_definition", &definition]).await["count"], 1);
        day.text(&[resource, "delete", &given]).await;
    }
    ids.push(("role_definitions", definition));
    ids
}

/// Roles, given and taken.
async fn people(day: &mut Day<'_>) {
    // Credentials are given to members only.
    let member = ["bob", "--organization", "Evening", "--role", "member"];
    day.text(&[&["users", "grant"], &member[..]].concat()).await;
    for (object, name, role) in [
        ("--organization", "Evening", "admin"),
        ("--team", "night", "member"),
        ("--inventory", "night", "use"),
        ("--credential", "night", "use"),
        ("--project", "night", "use"),
        ("--job_template", "night", "execute"),
        ("--instance_group", "night", "use"),
    ] {
        for verb in ["grant", "revoke"] {
            day.text(&["users", verb, "bob", object, name, "--role", role]).await;
        }
    }
    day.text(&[&["users", "revoke"], &member[..]].concat()).await;
    for verb in ["grant", "revoke"] {
        day.text(&["teams", verb, "night", "--job_template", "night", "--role", "admin"]).await;
    }
    // Somebody who may not make organizations is not offered to.
    let bob = day.awx.of("bob", "bob-password");
    let refused = bob.run(&["organizations", "create", "--name", "Mine"]).await;
    let said = text(&refused.stdout) + &text(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("invalid choice"), "{said}");
}

/// Jobs, and what the command's exit code says of them.
async fn jobs(day: &mut Day<'_>, api: &Api) {
    let change = ["job_templates", "modify", "night", "--limit", "", "--execution_environment", "Demo EE"];
    day.json(&change).await;
    let shown = day.text(&["job_templates", "launch", "night", "--monitor"]).await;
    assert!(shown.contains("PLAY RECAP"), "{shown}");
    let waited = day.text(&["job_templates", "launch", "night", "--wait"]).await;
    assert!(waited.contains("successful"), "{waited}");
    let listed = day.json(&["jobs", "list", "--status", "successful"]).await;
    let job = listed["results"][0]["id"].to_string();
    assert!(day.text(&["jobs", "stdout", &job]).await.contains("PLAY RECAP"));
    day.text(&["jobs", "monitor", &job]).await;
    assert_eq!(day.json(&["jobs", "get", &job]).await["status"], "successful");
    assert_eq!(day.json(&["unified_jobs", "get", &job]).await["status"], "successful");
    // What fails makes both ways of waiting fail.
    day.json(&["job_templates", "modify", "night", "--playbook", "failing.yml"]).await;
    for way in ["--monitor", "--wait"] {
        day.refused(&["job_templates", "launch", "night", way], 1, "").await;
    }
    // What is canceled does not.
    day.json(&["job_templates", "modify", "night", "--playbook", "sleeper.yml"]).await;
    let launch = ["job_templates", "launch", "night", "--monitor"];
    let cancel = async {
        let running = wait_for("the job that sleeps", Duration::from_secs(120), async || {
            match api.get("jobs/?status=running").await {
                Ok(list) if list["results"][0]["id"].is_i64() => {
                    Seen::Yes(list["results"][0]["id"].to_string())
                }
                other => Seen::NotYet(format!("{other:?}")),
            }
        });
        let running = running.await.expect("it runs");
        api.post(&format!("jobs/{running}/cancel/"), &json!({})).await.expect("the job is canceled");
    };
    let (ended, ()) = tokio::join!(day.awx.run(&launch), cancel);
    assert_eq!(ended.status.code(), Some(0), "{}\n{}", text(&ended.stdout), text(&ended.stderr));
    day.did(&launch);
    proofs::seen(Client::Http, "jobs", "cancel", PROOF);
    let again = api.create(&format!("jobs/{job}/relaunch/"), &json!({})).await.expect("it starts again");
    let again = again["id"].as_i64().expect("an id");
    let again = api.finished(again, Duration::from_secs(300)).await.expect("it ends again");
    assert_eq!(again["status"], "successful", "{again}");
    proofs::seen(Client::Http, "jobs", "relaunch", PROOF);
    day.text(&["jobs", "delete", &job]).await;
    commands_and_imports(day, api).await;
    // The command has no verb that starts a system job.
    let cleanup = day.json(&["system_job_templates", "list"]).await["results"][0]["id"].to_string();
    let shown = api.get(&format!("system_job_templates/{cleanup}/")).await.expect("a template");
    assert_eq!(shown["id"].to_string(), cleanup, "{shown}");
    proofs::seen(Client::Http, "system_job_templates", "get", PROOF);
    let body = json!({"extra_vars": {"days": 30, "dry_run": true}});
    let started =
        api.create(&format!("system_job_templates/{cleanup}/launch/"), &body).await.expect("it starts");
    proofs::seen(Client::Http, "system_job_templates", "launch", PROOF);
    let number = started["id"].to_string();
    over(api, &format!("system_jobs/{number}/")).await;
    assert_eq!(day.json(&["system_jobs", "get", &number]).await["id"], started["id"]);
    day.text(&["system_jobs", "delete", &number]).await;
}

/// Ad hoc commands, and updates of inventories.
async fn commands_and_imports(day: &mut Day<'_>, api: &Api) {
    let words = "ad_hoc_commands create --inventory two-hosts.ini --credential night --module_name ping";
    let words: Vec<&str> = words.split_whitespace().chain(["--execution_environment", "Demo EE"]).collect();
    let command = day.json(&words).await["id"].to_string();
    over(api, &format!("ad_hoc_commands/{command}/")).await;
    assert_eq!(day.json(&["ad_hoc_commands", "get", &command]).await["status"], "successful");
    assert!(day.text(&["ad_hoc_commands", "stdout", &command]).await.contains("pong"));
    // Nobody answers for the cloud here, so what is asked for is that it starts and ends.
    let update = day.json(&["inventory_sources", "update", "night"]).await["id"].to_string();
    over(api, &format!("inventory_updates/{update}/")).await;
    assert_eq!(day.json(&["inventory_updates", "get", &update]).await["source"], "ec2");
    day.text(&["inventory_updates", "stdout", &update]).await;
    for (resource, id) in [("ad_hoc_commands", &command), ("inventory_updates", &update)] {
        day.text(&[resource, "delete", id]).await;
    }
}

/// Waits for the end of something that runs.
async fn over(api: &Api, path: &str) {
    let what = format!("{path} to end");
    let end = wait_for(&what, Duration::from_secs(300), async || match api.get(path).await {
        Ok(job) if job["finished"].is_string() && job["event_processing_finished"] != false => Seen::Yes(()),
        other => Seen::NotYet(format!("{other:?}")),
    });
    end.await.expect("it ends");
}

async fn settings_and_nodes(day: &mut Day<'_>, api: &Api) {
    day.json(&["settings", "modify", "AWX_TASK_ENV", r#"{"NIGHT": "yes"}"#]).await;
    assert_eq!(day.json(&["settings", "list"]).await["AWX_TASK_ENV"]["NIGHT"], "yes");
    day.json(&["settings", "list", "--slug", "jobs"]).await;
    day.refused(&["settings", "modify", "NO_SUCH_SETTING", "1"], 2, "NO_SUCH_SETTING").await;
    let nodes = day.json(&["instances", "list"]).await;
    let node = nodes["results"]
        .as_array()
        .and_then(|nodes| nodes.iter().find(|node| node["hostname"] == "node-1"))
        .expect("node-1 is listed");
    let id = node["id"].to_string();
    // The command takes the flags of a change from those of a creation, and nodes enrol themselves: it shows its help.
    day.awx.run(&["instances", "modify", &id]).await;
    day.done.insert(("instances".to_owned(), "modify".to_owned()));
    for enabled in [false, true] {
        let path = format!("instances/{id}/");
        let changed = api.change(&path, &json!({"enabled": enabled})).await.expect("a node is switched");
        assert_eq!(changed["enabled"], enabled, "{changed}");
    }
    proofs::seen(Client::Http, "instances", "modify", PROOF);
}

/// Each list there is, and one object of it; where there is none, its absence is said.
async fn lists(day: &mut Day<'_>, offered: &BTreeMap<String, Vec<String>>) {
    for (resource, verbs) in offered {
        let offers = |verb: &str| verbs.iter().any(|offered| offered == verb);
        if resource == "settings" || !offers("list") {
            continue;
        }
        let listed = day.json(&[resource, "list"]).await;
        assert!(listed["count"].is_i64(), "{resource}: {listed}");
        if !offers("get") {
            continue;
        }
        match listed["results"].get(0) {
            // Templates of our own system jobs have numbers that the command takes for flags.
            Some(first) if first["id"].as_i64() < Some(0) => {
                day.done.insert((resource.clone(), "get".to_owned()));
            }
            Some(first) => {
                let id = first["id"].to_string();
                assert_eq!(day.json(&[resource, "get", &id]).await["id"], first["id"], "{resource}");
            }
            None => {
                // Said, and no proof that one could be read.
                day.refused(&[resource, "get", "1"], 1, "matches the given query").await;
                day.done.insert((resource.clone(), "get".to_owned()));
            }
        }
    }
    for (resource, verb, words) in LATER {
        if offered.get(*resource).is_some_and(|verbs| verbs.iter().any(|offered| offered == verb)) {
            let output = day.awx.run(&[&[*resource, *verb], *words].concat()).await;
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(!output.status.success() && !said.contains("Traceback"), "{resource} {verb}: {said}");
            day.commands += 1;
            day.done.insert(((*resource).to_owned(), (*verb).to_owned()));
        }
    }
}

fn essence(export: &Value) -> Value {
    let mut export = export.clone();
    for (kind, objects) in export.as_object_mut().into_iter().flatten() {
        let objects = objects.as_array_mut().expect("objects of a kind");
        // Passwords are not exported: what comes back is empty.
        for object in objects.iter_mut() {
            hide(object);
        }
        objects.sort_by_key(|object| object["natural_key"].to_string());
        assert!(objects.iter().all(|object| object["natural_key"].is_object()), "{kind}");
    }
    export
}

fn hide(value: &mut Value) {
    match value {
        Value::String(words) if words == "$encrypted$" => words.clear(),
        Value::Array(values) => values.iter_mut().for_each(hide),
        Value::Object(values) => values.values_mut().for_each(hide),
        _ => {}
    }
}

/// The same into an empty controller, and out of it again.
async fn export_and_import(day: &mut Day<'_>) {
    let exported = day.json(&["export"]).await;
    assert_eq!(
        exported["organizations"].as_array().map(|all| all.iter().any(|one| one["name"] == "Evening")),
        Some(true)
    );
    let one = day.json(&["export", "--organizations", "Evening"]).await;
    assert_eq!(one["organizations"][0]["name"], "Evening", "{one}");
    let other = Cluster::builder("awx-import").without_node().start().await.expect("an empty controller");
    let samples = Samples::new(&demo_image()).expect("samples");
    samples.copy_project(&other.layout.projects()).expect("the project's files");
    let into = Awx::new(other.api(), other.layout.https_port);
    let mut import = exported.clone();
    for round in 1..=2 {
        let imported = into.run_on(&["import"], import.to_string().as_bytes()).await;
        let said = text(&imported.stdout) + &text(&imported.stderr);
        assert!(imported.status.success(), "import {round}: {said}");
        // The command does not find an application again, for it does not know the type that AWX calls it by: it would make
        // another one, and be told that there is one.
        import["applications"] = json!([]);
    }
    day.did(&["import"]);
    let again = into.json(&["export"]).await;
    let (before, after) = (essence(&exported), essence(&again));
    for (kind, objects) in before.as_object().expect("kinds") {
        let found: BTreeMap<String, &Value> = after[kind]
            .as_array()
            .into_iter()
            .flatten()
            .map(|object| (object["natural_key"].to_string(), object))
            .collect();
        for object in objects.as_array().into_iter().flatten() {
            let key = object["natural_key"].to_string();
            assert_eq!(found.get(&key), Some(&object), "{kind} {key}");
        }
    }
    let secret = json!("a secret of the night");
    assert!(!exported.to_string().contains(secret.as_str().expect("text")), "an export holds a secret");
    other.finish().await.expect("the other controller ends");
}

//! Inventories as Ansible itself makes them, in a real execution environment on a real node: from a file of a project, from other
//! inventories, and commands that are run on them at once.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_tests::{
    Api, Awx, Cluster, Postgres, Samples, Seen, demo_image, is_verify, plain, text, wait_for,
};
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(300);

const HOSTS: &str = "\
[web]
web1 ansible_connection=local colour=blue
web2 ansible_connection=local

[db]
db1 ansible_connection=local state=off

[site:children]
web
db

[site:vars]
town=Ghent
";

/// Waits for the end of what runs at this address, and wants it to be good.
async fn good(api: &Api, at: &str) -> anyhow::Result<String> {
    let ended = wait_for(&format!("{at} to end"), JOB, async || match api.get(at).await {
        Ok(found) if found["event_processing_finished"] == json!(true) => Seen::Yes(found),
        Ok(found) => Seen::NotYet(format!("{} {}", found["status"], found["job_explanation"])),
        Err(error) => Seen::NotYet(format!("{error:#}")),
    })
    .await?;
    let output = api.get(&format!("{at}stdout/?format=txt")).await?;
    let output = output.as_str().map_or_else(|| output.to_string(), str::to_owned);
    ensure!(
        ended["status"] == "successful",
        "{at}: {} {}\n{output}",
        ended["status"],
        ended["job_explanation"]
    );
    Ok(output)
}

async fn update(api: &Api, source: i64) -> anyhow::Result<String> {
    let answer = api.post(&format!("inventory_sources/{source}/update/"), &json!({})).await?;
    let update = answer["inventory_update"].as_i64().with_context(|| format!("no update: {answer}"))?;
    let at = format!("inventory_updates/{update}/");
    let output = good(api, &at).await?;
    let events = api.get(&format!("{at}events/?page_size=200")).await?;
    ensure!(events["count"].as_i64().is_some_and(|count| count > 0), "no events: {events}");
    Ok(output)
}

fn id(value: &Value) -> anyhow::Result<i64> {
    value["id"].as_i64().with_context(|| format!("no id: {value}"))
}

async fn script(api: &Api, inventory: i64) -> anyhow::Result<Value> {
    api.get(&format!("inventories/{inventory}/script/?hostvars=1&all=1")).await
}

async fn inventories_come_from_files_and_from_each_other() -> anyhow::Result<()> {
    let cluster = Cluster::builder("inventories").start().await?;
    let samples = Samples::new(&demo_image())?;
    samples.copy_project(&cluster.layout.projects())?;
    let folder = cluster.layout.projects().join("samples").join("inv");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("hosts.ini"), HOSTS)?;
    let api = cluster.api();
    let loaded = samples.load(api).await?;
    let (organization, project) = (loaded.organization, loaded.project);
    let inventory =
        id(&api.create("inventories/", &json!({"name": "from file", "organization": organization})).await?)?;
    let by_hand =
        json!({"name": "by hand", "inventory": inventory, "variables": "ansible_connection: local"});
    api.create("hosts/", &by_hand).await?;
    let source = json!({
        "name": "file", "inventory": inventory, "source": "file", "source_project": project,
        "source_path": "inv/hosts.ini", "overwrite": true, "overwrite_vars": true,
        "enabled_var": "state", "enabled_value": "on", "execution_environment": loaded.environment,
    });
    let source = id(&api.create("inventory_sources/", &source).await?)?;
    update(api, source).await?;

    let seen = script(api, inventory).await?;
    ensure!(seen["web"]["hosts"] == json!(["web1", "web2"]), "{seen}");
    ensure!(
        seen["site"]["children"] == json!(["db", "web"]) && seen["site"]["vars"]["town"] == "Ghent",
        "{seen}"
    );
    ensure!(seen["_meta"]["hostvars"]["web1"]["colour"] == "blue", "{seen}");
    let off = api.get(&format!("hosts/?inventory={inventory}&enabled=false")).await?;
    ensure!(off["results"][0]["name"] == "db1" && off["count"] == 1, "{off}");
    let ours = api.get(&format!("inventory_sources/{source}/hosts/")).await?;
    ensure!(ours["count"] == 3, "{ours}");

    // What the file has no more goes; what people entered stays.
    fs::write(folder.join("hosts.ini"), HOSTS.replace("web2 ansible_connection=local\n", ""))?;
    update(api, source).await?;
    let names = api.get(&format!("inventories/{inventory}/hosts/?order_by=name")).await?;
    let names: Vec<&str> = names["results"]
        .as_array()
        .context("no list")?
        .iter()
        .filter_map(|host| host["name"].as_str())
        .collect();
    ensure!(names == ["by hand", "db1", "web1"], "{names:?}");
    let shown = api.get(&format!("inventory_sources/{source}/")).await?;
    ensure!(shown["status"] == "successful" && shown["last_update_failed"] == json!(false), "{shown}");

    // Another inventory is made of it, with a group that Ansible computes.
    let vars = "strict: true\ngroups:\n  blue_ones: colour | default('') == 'blue'\n";
    let made = json!({"name": "made", "organization": organization, "source_vars": vars});
    let made = id(&api.create("constructed_inventories/", &made).await?)?;
    api.post(&format!("inventories/{made}/input_inventories/"), &json!({"id": inventory})).await?;
    let sources = api.get(&format!("inventories/{made}/inventory_sources/")).await?;
    let construct = id(&sources["results"][0])?;
    let environment = json!({"execution_environment": loaded.environment});
    api.change(&format!("inventory_sources/{construct}/"), &environment).await?;
    update(api, construct).await?;
    let seen = script(api, made).await?;
    ensure!(seen["blue_ones"]["hosts"] == json!(["web1"]), "{seen}");
    let hosts = api.get(&format!("inventories/{made}/hosts/?name=web1")).await?;
    let original = api.get(&format!("inventories/{inventory}/hosts/?name=web1")).await?;
    let original = id(&original["results"][0])?.to_string();
    ensure!(hosts["results"][0]["instance_id"].as_str() == Some(original.as_str()), "{hosts}");

    // Commands at once: on a group of it, and on a smart inventory.
    let filter = "name=web1 and inventory__name=\"from file\"";
    let smart =
        json!({"name": "smart", "organization": organization, "kind": "smart", "host_filter": filter});
    let smart = id(&api.create("inventories/", &smart).await?)?;
    for (inventory, limit) in [(made, "blue_ones"), (smart, "")] {
        let command = json!({
            "inventory": inventory, "limit": limit, "module_name": "command", "module_args": "echo hello $COLOUR",
            "execution_environment": loaded.environment,
        });
        let command = id(&api.create("ad_hoc_commands/", &command).await?)?;
        let output = good(api, &format!("ad_hoc_commands/{command}/")).await?;
        ensure!(output.contains("web1 | CHANGED") && output.contains("hello"), "{output}");
    }

    command_line(&Awx::new(api, cluster.layout.https_port)).await;

    // A source that cannot be read fails, and what is there stays.
    fs::remove_file(folder.join("hosts.ini"))?;
    let answer = api.post(&format!("inventory_sources/{source}/update/"), &json!({})).await?;
    let broken = format!("inventory_updates/{}/", answer["inventory_update"]);
    ensure!(good(api, &broken).await.is_err(), "a file that is not there was read");
    ensure!(api.get(&broken).await?["status"] == "failed");
    ensure!(script(api, inventory).await?["web"]["hosts"] == json!(["web1"]));
    cluster.finish().await
}

/// The same by the unmodified `awx` command.
async fn command_line(awx: &Awx) {
    awx.json(&["inventory", "create", "--name", "cli", "--organization", "Default"]).await;
    let made = ["--name", "cloud", "--inventory", "cli", "--source", "ec2", "--overwrite", "true"];
    let source = awx.json(&[&["inventory_sources", "create"], &made[..]].concat()).await;
    assert_eq!((&source["source"], &source["overwrite"]), (&json!("ec2"), &json!(true)));
    let changed = awx.json(&["inventory_sources", "modify", "cloud", "--timeout", "30"]).await;
    assert_eq!(changed["timeout"], 30);
    let listed = awx.json(&["inventory_sources", "list", "--inventory", "cli"]).await;
    assert_eq!(listed["count"], 1);
    let update = awx.run(&["inventory_sources", "update", "file", "--monitor"]).await;
    assert!(update.status.success(), "{}{}", text(&update.stdout), text(&update.stderr));
    let updates = awx.json(&["inventory_updates", "list", "--order_by=-id"]).await;
    let id = updates["results"][0]["id"].to_string();
    let output = awx.run(&["inventory_updates", "stdout", &id]).await;
    assert!(text(&output.stdout).contains("Execution environment"), "{}", text(&output.stdout));

    let smart =
        ["--name", "cli smart", "--organization", "Default", "--kind", "smart", "--host_filter", "name=web1"];
    let smart = awx.json(&[&["inventory", "create"], &smart[..]].concat()).await;
    assert_eq!(smart["total_hosts"], 1);
    let made = ["--name", "cli made", "--organization", "Default", "--limit", "web", "--verbosity", "1"];
    let made = awx.json(&[&["constructed_inventory", "create"], &made[..]].concat()).await;
    assert_eq!((&made["kind"], &made["limit"]), (&json!("constructed"), &json!("web")));
    assert_eq!(awx.json(&["constructed_inventory", "list"]).await["count"], 2);

    let machine =
        ["--name", "cli", "--organization", "Default", "--credential_type", "Machine", "--inputs", "{}"];
    awx.json(&[&["credentials", "create"], &machine[..]].concat()).await;
    let ping = ["--inventory", "cli smart", "--credential", "cli", "--module_name", "ping", "--forks", "2"];
    let command = awx.json(&[&["ad_hoc_commands", "create"], &ping[..]].concat()).await;
    assert_eq!(command["module_name"], "ping", "{command}");
    assert!(["pending", "waiting", "running"].iter().any(|status| command["status"] == *status), "{command}");
    let id = command["id"].to_string();
    assert_eq!(awx.json(&["ad_hoc_commands", "get", &id]).await["forks"], 2);
    let deleted = awx.run(&["inventory_sources", "delete", "cloud"]).await;
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
}

#[tokio::test]
async fn inventories_are_what_ansible_makes_of_sources() {
    inventories_come_from_files_and_from_each_other().await.unwrap();
}

/// Hosts of the source that is imported while the controller is killed.
const MANY: usize = 20_000;

/// What the source is at the `round`th import: half of the hosts are others each time, all have another variable.
fn many(round: usize) -> String {
    let from = round * MANY / 2;
    let names: Vec<String> = (from..from + MANY).map(|number| format!("h{number:05}")).collect();
    let group = |rest: usize| {
        let members = names.iter().filter(|name| name.ends_with(&rest.to_string()));
        members.map(|name| format!("{name}\n")).collect::<String>()
    };
    let groups: String = (0..10).map(|rest| format!("[g{rest}]\n{}", group(rest))).collect();
    format!("{groups}[all:vars]\nround={round}\nansible_connection=local\n")
}

async fn an_import_outlives_its_controller(builder: plexus_tests::Builder) -> anyhow::Result<()> {
    let mut cluster = builder.start().await?;
    let samples = Samples::new(&demo_image())?;
    samples.copy_project(&cluster.layout.projects())?;
    let folder = cluster.layout.projects().join("samples").join("inv");
    fs::create_dir_all(&folder)?;
    let api = cluster.api().clone();
    let loaded = samples.load(&api).await?;
    let inventory = json!({"name": "many", "organization": loaded.organization});
    let inventory = id(&api.create("inventories/", &inventory).await?)?;
    let source = json!({
        "name": "file", "inventory": inventory, "source": "file", "source_project": loaded.project,
        "source_path": "inv/many.ini", "overwrite": true, "overwrite_vars": true,
        "execution_environment": loaded.environment,
    });
    let source = id(&api.create("inventory_sources/", &source).await?)?;
    for (round, point) in ["import-part", "import-part:3", "import-whole"].into_iter().enumerate() {
        fs::write(folder.join("many.ini"), many(round))?;
        cluster.controller.kill();
        cluster.controller.set_env("PLEXUS_CRASH_AT", point);
        cluster.controller.start()?;
        cluster.api_up().await?;
        let started = api.post(&format!("inventory_sources/{source}/update/"), &json!({})).await?;
        let update = format!("inventory_updates/{}/", started["inventory_update"]);
        cluster.controller.exited(JOB).await?;
        cluster.controller.unset_env("PLEXUS_CRASH_AT");
        cluster.controller.start()?;
        cluster.api_up().await?;
        // Nobody runs on a half: what is started now waits until the import is whole.
        let ping = json!({
            "inventory": inventory, "limit": format!("h{:05}", round * MANY / 2 + MANY - 1), "module_name": "ping",
            "execution_environment": loaded.environment,
        });
        let ping = format!("ad_hoc_commands/{}/", id(&api.create("ad_hoc_commands/", &ping).await?)?);
        let output = good(&api, &update).await.with_context(|| point)?;
        ensure!(good(&api, &ping).await?.contains("SUCCESS"), "{point}: the newest host is not there");
        let (update_ended, ping_began) = (api.get(&update).await?, api.get(&ping).await?);
        let (ended, began) = (update_ended["finished"].as_str(), ping_began["started"].as_str());
        ensure!(ended.is_some() && ended <= began, "{point}: {ended:?} {began:?}");

        // Whole, once each, nothing of the round before.
        let found = api.get(&format!("inventories/{inventory}/")).await?;
        let totals = (&found["total_hosts"], &found["total_groups"]);
        ensure!(totals == (&json!(MANY), &json!(10)), "{point}: {totals:?}");
        let seen = script(&api, inventory).await?;
        let hosts = seen["_meta"]["hostvars"].as_object().context("no hosts")?;
        let expected: Vec<String> =
            (0..MANY).map(|number| format!("h{:05}", round * MANY / 2 + number)).collect();
        ensure!(hosts.keys().eq(&expected), "{point}: {} hosts", hosts.len());
        ensure!(
            seen["all"]["vars"]["round"].to_string().contains(&round.to_string()),
            "{}",
            seen["all"]["vars"]
        );
        let members = (0..10).map(|rest| seen[format!("g{rest}")]["hosts"].as_array().map_or(0, Vec::len));
        ensure!(members.clone().all(|count| count == MANY / 10), "{:?}", members.collect::<Vec<_>>());
        let ours = api.get(&format!("inventory_sources/{source}/hosts/?page_size=1")).await?;
        ensure!(ours["count"] == json!(MANY), "{point}: {}", ours["count"]);

        // Its output is its events, each once and in order.
        let events = api.all(&format!("{update}events/?order_by=counter")).await?;
        let counters = events.iter().map(|event| event["counter"].as_u64().unwrap_or_default());
        ensure!(!events.is_empty() && counters.eq(1..=events.len() as u64), "{point}: {events:?}");
        let lines: String = events
            .iter()
            .filter_map(|event| event["stdout"].as_str())
            .map(|text| format!("{text}\n"))
            .collect();
        ensure!(
            plain(&lines).split_whitespace().eq(plain(&output).split_whitespace()),
            "{point}: {lines}\n{output}"
        );
    }

    // What cannot be brought in is said, also by a controller that was killed meanwhile.
    fs::write(folder.join("lost.ini"), "[web]\nsomebody\n")?;
    let lost = json!({
        "name": "lost", "inventory": inventory, "source": "file", "source_project": loaded.project,
        "source_path": "inv/lost.ini", "execution_environment": loaded.environment,
    });
    let lost = id(&api.create("inventory_sources/", &lost).await?)?;
    fs::remove_file(folder.join("lost.ini"))?;
    let started = api.post(&format!("inventory_sources/{lost}/update/"), &json!({})).await?;
    let update = format!("inventory_updates/{}/", started["inventory_update"]);
    cluster.controller.kill();
    cluster.controller.start()?;
    cluster.api_up().await?;
    let ended = api.over(&update, JOB).await?;
    ensure!(ended["status"] == "failed", "{ended}");
    let output = api.get(&format!("{update}stdout/?format=txt")).await?.to_string();
    ensure!(output.contains("lost.ini"), "{output} {}", ended["job_explanation"]);
    cluster.finish().await
}

#[tokio::test]
async fn an_import_is_whole_though_its_controller_is_killed_in_it() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    an_import_outlives_its_controller(Cluster::builder("import-crash")).await.unwrap();
}

#[tokio::test]
async fn an_import_into_postgresql_is_whole_though_its_controller_is_killed_in_it() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let server = tokio::task::spawn_blocking(Postgres::start).await.unwrap();
    let builder = Cluster::builder("import-crash-pg").database(server.database());
    an_import_outlives_its_controller(builder).await.unwrap();
}

//! Three nodes in two groups, and real jobs: each runs where its lists say, in the order of its lists, as many at once as
//! its group and its template allow, and on no node that is switched off or says itself that it takes none.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use plexus_tests::{
    Api, Cluster, JobOptions, Loaded, Newcomer, Samples, Seen, demo_image, is_verify, wait_for,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(300);
/// Long for an announcement and a question, and short beside the minute after which nodes are asked anyway.
const NEWS: Duration = Duration::from_secs(10);

/// A job that waits until somebody listens on a port of this machine, and one that does not wait.
const PLAYBOOK: &str = "\
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.wait_for: {host: 127.0.0.1, port: \"{{ gate }}\", timeout: 240}
      when: gate | default(0) | int > 0
";

struct World {
    cluster: Cluster,
    nodes: Vec<Newcomer>,
    samples: Samples,
    loaded: Loaded,
    inventory: i64,
    east: i64,
    west: i64,
}

fn id(object: &Value) -> i64 {
    object["id"].as_i64().expect("a cluster does as it is told")
}

impl World {
    /// node-1 and node-2 are the group east, node-3 is west: east by its list, west by hand.
    async fn new(name: &str) -> Self {
        let cluster = Cluster::builder(name).start().await.expect("a cluster does as it is told");
        let mut nodes = Vec::new();
        for node in ["node-2", "node-3"] {
            let token = cluster
                .token(&["--role", "execution", "--name", node])
                .await
                .expect("a cluster does as it is told");
            let mut machine = Newcomer::new(&cluster, node).expect("a cluster does as it is told");
            let joined = machine.join(&token, &["--name", node]).await.expect("a cluster does as it is told");
            assert!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
            machine.start().expect("a cluster does as it is told");
            nodes.push(machine);
        }
        let api = cluster.api();
        wait_for("three nodes", JOB, async || {
            match api.get("instances/?node_type=execution&node_state=ready&capacity__gt=0").await {
                Ok(list) if list["count"] == 3 => Seen::Yes(()),
                other => Seen::NotYet(format!("{other:?}")),
            }
        })
        .await
        .expect("a cluster does as it is told");
        let samples = Samples::new(&demo_image()).expect("a cluster does as it is told");
        samples.copy_project(&cluster.layout.projects()).expect("a cluster does as it is told");
        let loaded = samples.load(api).await.expect("a cluster does as it is told");
        let project: Value =
            api.get(&format!("projects/{}/", loaded.project)).await.expect("a cluster does as it is told");
        let path: PathBuf = cluster
            .layout
            .projects()
            .join(project["local_path"].as_str().expect("a cluster does as it is told"));
        std::fs::write(path.join("gate.yml"), PLAYBOOK).expect("a cluster does as it is told");
        let owned = json!({"name": "one host", "organization": loaded.organization});
        let inventory = id(&api.create("inventories/", &owned).await.expect("a cluster does as it is told"));
        let host = json!({"name": "here", "inventory": inventory, "variables": "ansible_connection: local"});
        api.create("hosts/", &host).await.expect("a cluster does as it is told");
        let east = json!({"name": "east", "policy_instance_list": ["node-1", "node-2"]});
        let east = id(&api.create("instance_groups/", &east).await.expect("a cluster does as it is told"));
        let west = id(&api
            .create("instance_groups/", &json!({"name": "west"}))
            .await
            .expect("a cluster does as it is told"));
        let third =
            api.get("instances/?hostname=node-3").await.expect("a cluster does as it is told")["results"][0]
                .clone();
        api.post(&format!("instance_groups/{west}/instances/"), &json!({"id": third["id"]}))
            .await
            .expect("a cluster does as it is told");
        Self { cluster, nodes, samples, loaded, inventory, east, west }
    }

    fn api(&self) -> &Api {
        self.cluster.api()
    }

    async fn template(&self, name: &str, inventory: i64, groups: &[i64]) -> i64 {
        let options = JobOptions::default();
        let made = self.samples.template(self.api(), self.loaded, name, "gate.yml", inventory, &options);
        let template = made.await.expect("a cluster does as it is told");
        let asks = json!({"ask_variables_on_launch": true});
        self.api()
            .change(&format!("job_templates/{template}/"), &asks)
            .await
            .expect("a cluster does as it is told");
        for group in groups {
            let path = format!("job_templates/{template}/instance_groups/");
            self.api().post(&path, &json!({"id": group})).await.expect("a cluster does as it is told");
        }
        template
    }

    async fn launch(&self, template: i64, gate: Option<u16>) -> i64 {
        let body = gate.map_or(json!({}), |gate| json!({"extra_vars": {"gate": gate}}));
        id(&self.api().launch(template, &body).await.expect("a cluster does as it is told"))
    }

    /// Waits for the end of a job; its node and the name of its group.
    async fn ran(&self, job: i64) -> (String, String) {
        let done = self.api().finished(job, JOB).await.expect("a cluster does as it is told");
        let output = self.api().stdout(job, "txt").await.expect("a cluster does as it is told");
        assert_eq!(done["status"], "successful", "{}: {output}", done["job_explanation"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&done["execution_node"]), text(&done["summary_fields"]["instance_group"]["name"]))
    }

    async fn switch(&self, node: &str, enabled: bool) {
        let list = self
            .api()
            .get(&format!("instances/?hostname={node}"))
            .await
            .expect("a cluster does as it is told");
        let path = format!("instances/{}/", list["results"][0]["id"]);
        self.api().change(&path, &json!({"enabled": enabled})).await.expect("a cluster does as it is told");
    }

    /// Waits until a job says why it waits, in words that have these among them.
    async fn waits(&self, job: i64, words: &str) {
        wait_for(&format!("job {job} to say {words:?}"), JOB, async || {
            match self.api().get(&format!("jobs/{job}/why/")).await {
                Ok(why)
                    if why["status"] == "pending"
                        && why["why"].as_str().unwrap_or_default().contains(words) =>
                {
                    Seen::Yes(())
                }
                other => Seen::NotYet(format!("{other:?}")),
            }
        })
        .await
        .expect("a cluster does as it is told");
    }

    /// What root of a node's machine says at its socket.
    async fn at(&self, socket: &str, args: &[&str]) {
        self.cluster.plexus_json(socket, args).await.expect("a cluster does as it is told");
    }

    async fn finish(mut self) {
        for node in &mut self.nodes {
            node.daemon.stop().await.expect("a cluster does as it is told");
        }
        self.cluster.finish().await.expect("a cluster does as it is told");
    }
}

/// A port that nobody listens on, until it is asked for.
fn gate() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .expect("a cluster does as it is told")
        .local_addr()
        .expect("a cluster does as it is told")
        .port()
}

#[tokio::test]
async fn jobs_run_where_their_lists_say() {
    let world = World::new("placing").await;
    let api = world.api();
    // Template before inventory before organization before the default group.
    let own = json!({"name": "western", "organization": world.loaded.organization});
    let western = id(&api.create("inventories/", &own).await.unwrap());
    let host = json!({"name": "there", "inventory": western, "variables": "ansible_connection: local"});
    api.create("hosts/", &host).await.unwrap();
    api.post(&format!("inventories/{western}/instance_groups/"), &json!({"id": world.west})).await.unwrap();
    let by_template = world.template("by template", western, &[world.east]).await;
    let by_inventory = world.template("by inventory", western, &[]).await;
    let by_default = world.template("by default", world.inventory, &[]).await;
    let mut jobs = Vec::new();
    for template in [by_template, by_inventory, by_default] {
        jobs.push(world.launch(template, None).await);
    }
    let ran = [world.ran(jobs[0]).await, world.ran(jobs[1]).await, world.ran(jobs[2]).await];
    assert!(ran[0].1 == "east" && matches!(ran[0].0.as_str(), "node-1" | "node-2"), "{ran:?}");
    assert_eq!(ran[1], ("node-3".to_owned(), "west".to_owned()));
    assert_eq!(ran[2].1, "default");
    // The plan says beforehand what the planner then does.
    let plan = api.get(&format!("job_templates/{by_inventory}/plan/")).await.unwrap();
    assert_eq!((&plan["execution_node"], &plan["instance_group"]), (&json!("node-3"), &json!(world.west)));
    // A node that is switched off gets nothing; what may go nowhere else waits, and says why.
    let organization = format!("organizations/{}/instance_groups/", world.loaded.organization);
    api.post(&organization, &json!({"id": world.east})).await.unwrap();
    world.switch("node-3", false).await;
    let fallen = world.launch(by_inventory, None).await;
    assert_eq!(world.ran(fallen).await.1, "east", "after the inventory's list comes the organization's");
    let stops = json!({"prevent_instance_group_fallback": true});
    api.change(&format!("inventories/{western}/"), &stops).await.unwrap();
    let held = world.launch(by_inventory, None).await;
    world.waits(held, "disabled").await;
    world.switch("node-3", true).await;
    assert_eq!(world.ran(held).await.0, "node-3");
    world.finish().await;
}

#[tokio::test]
async fn limits_hold_jobs_back_and_let_them_go() {
    if !is_verify() {
        // Minutes of jobs that wait for each other; the planner's own tests know the limits too.
        return;
    }
    let world = World::new("placing-limits").await;
    let api = world.api();
    let template = world.template("limited", world.inventory, &[world.west]).await;
    let group = format!("instance_groups/{}/", world.west);
    for (limit, words) in [
        (json!({"max_concurrent_jobs": 1, "max_forks": 0}), "west"),
        (json!({"max_concurrent_jobs": 0, "max_forks": 2}), "west"),
    ] {
        api.change(&group, &limit).await.unwrap();
        let port = gate();
        let first = world.launch(template, Some(port)).await;
        api.has_status(first, "running", JOB).await.unwrap();
        let shown = api.get(&group).await.unwrap();
        assert_eq!(shown["consumed_capacity"], 2, "one host, and Ansible itself: {shown}");
        let second = world.launch(template, None).await;
        world.waits(second, words).await;
        let open = TcpListener::bind(("127.0.0.1", port)).unwrap();
        world.ran(first).await;
        assert_eq!(world.ran(second).await, ("node-3".to_owned(), "west".to_owned()));
        drop(open);
    }
    // One at a time of a template that does not allow several.
    api.change(&group, &json!({"max_forks": 0})).await.unwrap();
    api.change(&format!("job_templates/{template}/"), &json!({"allow_simultaneous": false})).await.unwrap();
    let port = gate();
    let first = world.launch(template, Some(port)).await;
    api.has_status(first, "running", JOB).await.unwrap();
    let second = world.launch(template, None).await;
    world.waits(second, "same template").await;
    let _open = TcpListener::bind(("127.0.0.1", port)).unwrap();
    world.ran(first).await;
    world.ran(second).await;
    // What somebody decides about a node's capacity counts at once.
    let node = api.get("instances/?hostname=node-3").await.unwrap()["results"][0].clone();
    let (cpu, memory) = (node["cpu_capacity"].as_i64().unwrap(), node["mem_capacity"].as_i64().unwrap());
    assert_eq!(node["capacity"], cpu.max(memory), "{node}");
    let path = format!("instances/{}/", node["id"]);
    let changed = api.change(&path, &json!({"capacity_adjustment": 0})).await.unwrap();
    assert_eq!(changed["capacity"], cpu.min(memory), "{changed}");
    world.finish().await;
}

#[tokio::test]
async fn a_job_that_its_node_refuses_goes_elsewhere_or_waits_and_says_why() {
    let world = World::new("placing-refused").await;
    let api = world.api();
    let (east, west) = (
        world.template("east", world.inventory, &[world.east]).await,
        world.template("west", world.inventory, &[world.west]).await,
    );
    // The job is given to node-1, and is on its way there while root of that machine cordons it.
    world.switch("node-2", false).await;
    let log = world.cluster.controller.log_size();
    world.cluster.hop.signal(Signal::STOP).unwrap();
    let job = world.launch(east, None).await;
    api.has_status(job, "waiting", JOB).await.unwrap();
    assert_eq!(api.job(job).await.unwrap()["execution_node"], "node-1");
    world.at("node-1", &["node", "cordon", "--reason", "new disk"]).await;
    world.switch("node-2", true).await;
    world.cluster.hop.signal(Signal::CONT).unwrap();
    assert_eq!(world.ran(job).await, ("node-2".to_owned(), "east".to_owned()));
    let said = world.cluster.controller.log();
    let moved = said[log..].lines().filter(|line| line.contains("the node did not take the unit")).count();
    assert_eq!(moved, 1, "{}", world.cluster.controller.log_tail(30));
    assert!(said.contains("cordoned and takes no new units: new disk"));

    // Where there is no other, it waits, visibly, until its node takes work again.
    world.at("node-3/node", &["node", "cordon"]).await;
    let job = world.launch(west, None).await;
    world.waits(job, "cordoned").await;
    world.at("node-3/node", &["node", "uncordon"]).await;
    assert_eq!(world.ran(job).await.0, "node-3");

    // What a node has to say is known long before it is asked by itself, a minute after it was last.
    for (verb, cordoned) in [("cordon", true), ("uncordon", false)] {
        world.at("node-3/node", &["node", verb]).await;
        wait_for(&format!("the controller to know of the {verb}"), NEWS, async || {
            let list = api.get("instances/?hostname=node-3").await.unwrap();
            let said = list["results"][0]["errors"].to_string();
            Seen::when(said.contains("was cordoned on its own machine") == cordoned, || said)
        })
        .await
        .unwrap();
    }
    let node = api.get("instances/?hostname=node-3").await.unwrap()["results"][0]["id"].clone();
    let shown = api.get(&format!("instances/{node}/")).await.unwrap();
    assert!(shown["free_disk"].as_u64() > Some(0) && shown["images"].is_array(), "{shown}");
    world.finish().await;
}

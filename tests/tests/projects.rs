//! Projects that are fetched: real git over HTTP, the revision that jobs run, troubles by name, and what a crash leaves.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_tests::{Api, Cluster, Repository, ReservedPort, Samples, Seen, demo_image, is_verify, wait_for};
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(180);
const USER: &str = "ann";
/// Found nowhere else in the world.
const PASSWORD: &str = "canary-git-4e91c07a";

fn id(object: &Value) -> i64 {
    object["id"].as_i64().unwrap_or_else(|| panic!("no id in {object}"))
}

/// Where things are made: an organization, an inventory with one host, and the demo image.
struct Stage {
    organization: i64,
    inventory: i64,
    environment: i64,
}

async fn stage(cluster: &Cluster) -> anyhow::Result<Stage> {
    let samples = Samples::new(&demo_image())?;
    samples.copy_project(&cluster.layout.projects())?;
    let api = cluster.api();
    let loaded = samples.load(api).await?;
    let inventory = samples.load_here(api, loaded).await?;
    let (organization, environment) = (loaded.organization, loaded.environment);
    Ok(Stage { organization, inventory, environment })
}

async fn credential(api: &Api, organization: i64, name: &str, inputs: Value) -> anyhow::Result<i64> {
    let kind = api.get("credential_types/?namespace=scm").await?;
    let body = json!({
        "name": name, "organization": organization, "credential_type": kind["results"][0]["id"],
        "inputs": inputs,
    });
    Ok(id(&api.create("credentials/", &body).await?))
}

/// Waits for an update to end.
async fn over(api: &Api, update: i64) -> anyhow::Result<Value> {
    api.over(&format!("project_updates/{update}/"), JOB).await
}

/// The update that making a project starts, over and successful.
async fn fetched(api: &Api, project: &Value) -> anyhow::Result<Value> {
    let update = project["summary_fields"]["current_update"]["id"].as_i64().context("no update runs")?;
    let ended = over(api, update).await?;
    let output = api.get(&format!("project_updates/{update}/stdout/?format=json")).await?;
    ensure!(ended["status"] == "successful", "{}\n{}", ended["job_explanation"], output["content"]);
    Ok(ended)
}

async fn update(api: &Api, project: i64) -> anyhow::Result<Value> {
    let started = api.post(&format!("projects/{project}/update/"), &json!({})).await?;
    over(api, started["project_update"].as_i64().context("no number")?).await
}

async fn ran(api: &Api, template: i64, body: Value) -> anyhow::Result<(Value, String)> {
    let job = id(&api.launch(template, &body).await?);
    let done = api.finished(job, JOB).await?;
    Ok((done, api.stdout(job, "txt").await?))
}

#[tokio::test]
async fn a_project_is_fetched_on_a_node_and_jobs_run_its_revision() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let repository = Repository::start(Some((USER, PASSWORD))).await.unwrap();
    let first = repository.commit("main", "one").unwrap();
    let cluster = Cluster::builder("projects").start().await.unwrap();
    let Stage { organization, inventory, environment } = stage(&cluster).await.unwrap();
    let api = cluster.api();
    let right = credential(api, organization, "right", json!({"username": USER, "password": PASSWORD}));
    let right = right.await.unwrap();
    let body = json!({
        "name": "site", "organization": organization, "scm_type": "git", "scm_url": repository.url(),
        "scm_branch": "main", "credential": right, "allow_override": true, "default_environment": environment,
    });
    let project = api.create("projects/", &body).await.unwrap();
    let number = id(&project);
    let ended = fetched(api, &project).await.unwrap();
    assert_eq!((&ended["scm_revision"], &ended["type"]), (&json!(first), &json!("project_update")));
    assert!(ended["execution_node"].as_str().unwrap().starts_with("node"), "{}", ended["execution_node"]);
    let events = api.all(&format!("project_updates/{}/events/", id(&ended))).await.unwrap();
    assert!(
        events
            .iter()
            .any(|event| event["type"] == "project_update_event" && event["task"] == "Fetch and check out")
    );

    let shown = api.get(&format!("projects/{number}/")).await.unwrap();
    assert_eq!((&shown["status"], &shown["scm_revision"]), (&json!("successful"), &json!(first)));
    assert_eq!(shown["summary_fields"]["last_update"]["id"], ended["id"]);
    assert_eq!(api.get(&format!("projects/{number}/playbooks/")).await.unwrap(), json!(["site.yml"]));
    let inventories = api.get(&format!("projects/{number}/inventories/")).await.unwrap();
    assert_eq!(inventories, json!(["inventories/all.ini"]));

    let template = json!({
        "name": "site", "project": number, "inventory": inventory, "playbook": "site.yml",
        "ask_scm_branch_on_launch": true,
    });
    let template = id(&api.create("job_templates/", &template).await.unwrap());
    let (done, output) = ran(api, template, json!({})).await.unwrap();
    assert_eq!((&done["status"], &done["scm_revision"]), (&json!("successful"), &json!(first)), "{output}");
    assert!(output.contains("says-one"), "{output}");

    // The repository goes on; jobs stay where the project is until it is updated.
    let second = repository.commit("main", "two").unwrap();
    let other = repository.commit("other", "branch").unwrap();
    let (_, output) = ran(api, template, json!({})).await.unwrap();
    assert!(output.contains("says-one"), "{output}");
    assert_eq!(update(api, number).await.unwrap()["scm_revision"], json!(second));
    let (done, output) = ran(api, template, json!({})).await.unwrap();
    assert!(done["scm_revision"] == json!(second) && output.contains("says-two"), "{output}");

    // A job's own branch is fetched for it alone.
    let (done, output) = ran(api, template, json!({"scm_branch": "other"})).await.unwrap();
    assert!(done["scm_revision"] == json!(other) && output.contains("says-branch"), "{done} {output}");
    let shown = api.get(&format!("projects/{number}/")).await.unwrap();
    assert_eq!(shown["scm_revision"], json!(second));

    // Updated for each launch: the job waits, and runs what came.
    let third = repository.commit("main", "three").unwrap();
    let on_launch = json!({"scm_update_on_launch": true});
    api.change(&format!("projects/{number}/"), &on_launch).await.unwrap();
    let (done, output) = ran(api, template, json!({})).await.unwrap();
    assert!(done["scm_revision"] == json!(third) && output.contains("says-three"), "{done} {output}");

    cluster.clean().await.unwrap();
    let hits = cluster.found_in_files(&[PASSWORD]);
    assert!(hits.is_empty(), "{hits:?}");
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn each_trouble_of_an_update_has_its_own_words_and_fails_the_jobs_that_wait() {
    let repository = Repository::start(Some((USER, PASSWORD))).await.unwrap();
    repository.commit("main", "one").unwrap();
    let cluster = Cluster::builder("projects-trouble").start().await.unwrap();
    let Stage { organization, inventory, environment } = stage(&cluster).await.unwrap();
    let api = cluster.api();
    let wrong =
        credential(api, organization, "wrong", json!({"username": USER, "password": "no"})).await.unwrap();
    let right = credential(api, organization, "right", json!({"username": USER, "password": PASSWORD}));
    let right = right.await.unwrap();
    let nobody = ReservedPort::new().unwrap();
    let gone = format!("http://127.0.0.1:{}/site.git", nobody.port());
    let cases = [
        ("wrong", repository.url(), "main", wrong, "refused the login"),
        ("branch", repository.url(), "nosuch", right, "no such branch"),
        ("host", gone, "main", right, "cannot be reached"),
        ("path", repository.url().replace("site", "other"), "main", right, "no such repository"),
    ];
    for (name, url, branch, credential, words) in cases {
        let body = json!({
            "name": name, "organization": organization, "scm_type": "git", "scm_url": url,
            "scm_branch": branch, "credential": credential, "scm_update_on_launch": true,
            "default_environment": environment,
        });
        let project = api.create("projects/", &body).await.unwrap();
        let update = project["summary_fields"]["current_update"]["id"].as_i64().unwrap();
        let ended = over(api, update).await.unwrap();
        let said = ended["job_explanation"].as_str().unwrap();
        assert!(ended["status"] == "failed" && said.contains(words), "{name}: {said}");
        let shown = api.get(&format!("projects/{}/", id(&project))).await.unwrap();
        assert_eq!((&shown["status"], &shown["last_update_failed"]), (&json!("failed"), &json!(true)));
        if name == "branch" {
            let template =
                json!({"name": name, "project": shown["id"], "inventory": inventory, "playbook": "site.yml"});
            let template = id(&api.create("job_templates/", &template).await.unwrap());
            let job = id(&api.launch(template, &json!({})).await.unwrap());
            let done = api.finished(job, JOB).await.unwrap();
            let said = done["job_explanation"].as_str().unwrap();
            assert!(done["status"] == "failed" && said.starts_with("Previous Task Failed: {"), "{said}");
        }
    }
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn an_update_survives_the_death_of_its_controller_and_of_its_node() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let repository = Repository::start(None).await.unwrap();
    let first = repository.commit("main", "one").unwrap();
    let mut cluster = Cluster::builder("projects-crash").start().await.unwrap();
    let Stage { organization, environment, .. } = stage(&cluster).await.unwrap();
    let api = cluster.api().clone();
    let body = json!({
        "name": "site", "organization": organization, "scm_type": "git", "scm_url": repository.url(),
        "default_environment": environment,
    });
    let project = api.create("projects/", &body).await.unwrap();
    assert_eq!(fetched(&api, &project).await.unwrap()["scm_revision"], json!(first));
    let path = format!("projects/{}/update/", id(&project));
    for point in ["tree-kept", "tree-noted"] {
        let revision = repository.commit("main", point).unwrap();
        cluster.controller.kill();
        cluster.controller.set_env("PLEXUS_CRASH_AT", point);
        cluster.controller.start().unwrap();
        cluster.api_up().await.unwrap();
        let started = api.post(&path, &json!({})).await.unwrap();
        cluster.controller.exited(JOB).await.unwrap();
        cluster.controller.unset_env("PLEXUS_CRASH_AT");
        cluster.controller.start().unwrap();
        cluster.api_up().await.unwrap();
        let ended = over(&api, id(&started)).await.unwrap();
        assert_eq!((&ended["status"], &ended["scm_revision"]), (&json!("successful"), &json!(revision)));
    }
    // The agent dies while the update runs; what it left is collected from the next one.
    let revision = repository.commit("main", "node").unwrap();
    let started = id(&api.post(&path, &json!({})).await.unwrap());
    wait_for("the update to run", JOB, async || {
        match api.get(&format!("project_updates/{started}/")).await {
            Ok(shown) => Seen::when(shown["status"] == "running", || shown["status"].to_string()),
            Err(error) => Seen::NotYet(format!("{error:#}")),
        }
    })
    .await
    .unwrap();
    cluster.node.kill();
    cluster.node.start().unwrap();
    let ended = over(&api, started).await.unwrap();
    assert_eq!((&ended["status"], &ended["scm_revision"]), (&json!("successful"), &json!(revision)));
    cluster.finish().await.unwrap();
}

/// Waits for an update of an inventory source to end.
async fn imported(api: &Api, source: i64) -> anyhow::Result<Value> {
    let started = api.post(&format!("inventory_sources/{source}/update/"), &json!({})).await?;
    api.over(&format!("inventory_updates/{}/", started["inventory_update"]), JOB).await
}

#[tokio::test]
async fn tags_commits_refspecs_submodules_and_inventories_are_fetched_as_git_names_them() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let repository = Repository::start(None).await.unwrap();
    let first = repository.commit("main", "one").unwrap();
    repository.git(&["tag", "v1"]).unwrap();
    repository.git(&["push", "--quiet", "origin", "v1"]).unwrap();
    let asked = repository.commit("asked", "asked").unwrap();
    repository.git(&["push", "--quiet", "origin", "asked:refs/pull/7/head", ":asked"]).unwrap();
    repository.git(&["init", "--quiet", "--bare", "--initial-branch=main", "../lib.git"]).unwrap();
    repository.git(&["push", "--quiet", "../lib.git", "main"]).unwrap();
    repository.git(&["checkout", "--quiet", "-B", "whole", "main"]).unwrap();
    let lib = repository.url().replace("site.git", "lib.git");
    repository.git(&["submodule", "--quiet", "add", &lib, "lib"]).unwrap();
    let whole = repository.commit("whole", "whole").unwrap();
    repository.git(&["checkout", "--quiet", "main"]).unwrap();
    let last = repository.commit("main", "two").unwrap();
    let cluster = Cluster::builder("projects-git").start().await.unwrap();
    let Stage { organization, environment, .. } = stage(&cluster).await.unwrap();
    let api = cluster.api();
    let pulls = "refs/pull/*:refs/remotes/origin/pull/*";
    let mut numbers = Vec::new();
    for (name, branch, refspec, revision, playbooks) in [
        ("default", "", "", &last, json!(["site.yml"])),
        ("tag", "v1", "", &first, json!(["site.yml"])),
        ("commit", first.as_str(), "", &first, json!(["site.yml"])),
        ("refspec", "pull/7/head", pulls, &asked, json!(["site.yml"])),
        ("submodule", "whole", "", &whole, json!(["lib/site.yml", "site.yml"])),
    ] {
        let body = json!({
            "name": name, "organization": organization, "scm_type": "git", "scm_url": repository.url(),
            "scm_branch": branch, "scm_refspec": refspec, "default_environment": environment,
            "allow_override": true,
        });
        let project = api.create("projects/", &body).await.unwrap();
        numbers.push(id(&project));
        assert_eq!(fetched(api, &project).await.unwrap()["scm_revision"], json!(revision), "{name}");
        let listed = api.get(&format!("projects/{}/playbooks/", id(&project))).await.unwrap();
        assert_eq!(listed, playbooks, "{name}");
    }

    // An inventory that lies in a project: of the revision that the project is at, or of a branch of its own.
    let owned = json!({"name": "imported", "organization": organization});
    let inventory = id(&api.create("inventories/", &owned).await.unwrap());
    let source = json!({
        "name": "own", "inventory": inventory, "source": "scm", "source_project": numbers[0],
        "source_path": "inventories/all.ini", "execution_environment": environment,
    });
    let source = id(&api.create("inventory_sources/", &source).await.unwrap());
    let done = imported(api, source).await.unwrap();
    assert_eq!((&done["status"], &done["scm_revision"]), (&json!("successful"), &json!(last)), "{done}");
    api.change(&format!("inventory_sources/{source}/"), &json!({"scm_branch": "v1"})).await.unwrap();
    let done = imported(api, source).await.unwrap();
    assert_eq!((&done["status"], &done["scm_revision"]), (&json!("successful"), &json!(first)), "{done}");
    let hosts = api.get(&format!("inventories/{inventory}/hosts/")).await.unwrap();
    assert_eq!((&hosts["count"], &hosts["results"][0]["name"]), (&json!(1), &json!("one")), "{hosts}");
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn roles_and_collections_that_a_project_requires_come_with_its_tree() {
    if !is_verify() {
        return; // it takes more than 20 s
    }
    let repository = Repository::start(None).await.unwrap();
    let says = |who: &str| format!("- ansible.builtin.debug:\n    msg: says-{who}\n");
    let files = [("meta/main.yml", "galaxy_info: {}\ndependencies: []\n"), ("tasks/main.yml", &says("role"))];
    let role = repository.beside("hello", &files).unwrap();
    let about = "namespace: plexus\nname: demo\nversion: 1.0.0\nreadme: README.md\nauthors: [t]\n";
    let files =
        [("galaxy.yml", about), ("README.md", "demo"), ("roles/greet/tasks/main.yml", &says("collection"))];
    let collection = repository.beside("demo", &files).unwrap();
    repository.git(&["checkout", "--quiet", "--orphan", "main"]).unwrap();
    repository.git(&["rm", "-r", "--quiet", "--force", "."]).unwrap();
    let playbook = "- hosts: all\n  gather_facts: false\n  roles: [hello, plexus.demo.greet]\n";
    let roles = format!("- src: {role}\n  scm: git\n  name: hello\n  version: main\n");
    let collections = format!("collections:\n  - name: {collection}\n    type: git\n    version: main\n");
    repository
        .put(&[
            ("uses.yml", playbook),
            ("roles/requirements.yml", &roles),
            ("collections/requirements.yml", &collections),
        ])
        .unwrap();
    repository.commit("main", "nothing").unwrap();
    let cluster = Cluster::builder("projects-galaxy").start().await.unwrap();
    let Stage { organization, inventory, environment } = stage(&cluster).await.unwrap();
    let api = cluster.api();
    let kind = api.get("credential_types/?namespace=galaxy_api_token").await.unwrap();
    // Nobody is asked there: what is required names its own addresses.
    let galaxy = json!({
        "name": "galaxy", "organization": organization, "credential_type": kind["results"][0]["id"],
        "inputs": {"url": "http://127.0.0.1:9/"},
    });
    let galaxy = id(&api.create("credentials/", &galaxy).await.unwrap());
    let own = format!("organizations/{organization}/galaxy_credentials/");
    api.post(&own, &json!({"id": galaxy})).await.unwrap();
    let body = json!({
        "name": "site", "organization": organization, "scm_type": "git", "scm_url": repository.url(),
        "scm_branch": "main", "default_environment": environment,
    });
    let project = api.create("projects/", &body).await.unwrap();
    fetched(api, &project).await.unwrap();
    let template =
        json!({"name": "uses", "project": project["id"], "inventory": inventory, "playbook": "uses.yml"});
    let template = id(&api.create("job_templates/", &template).await.unwrap());
    let (done, output) = ran(api, template, json!({})).await.unwrap();
    assert_eq!(done["status"], "successful", "{output}");
    assert!(output.contains("says-role") && output.contains("says-collection"), "{output}");
    cluster.finish().await.unwrap();
}

/// User that the set-up made, for logins by key.
const LOGIN: &str = "plexus-ssh";
const PASSPHRASE: &str = "canary-passphrase-5c0de117";

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("no {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// An ssh server on loopback that knows one key, which has a passphrase.
struct SshServer {
    dir: tempfile::TempDir,
    port: ReservedPort,
    server: Child,
}

impl SshServer {
    async fn start() -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().context("no folder")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
            .context("cannot open the folder")?;
        fs::create_dir_all("/run/sshd").context("cannot make the folder of the server")?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        for (name, passphrase) in [("host", ""), ("key", PASSPHRASE), ("stranger", "")] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", passphrase, "-f", &at(name)])?;
        }
        let port = ReservedPort::new()?;
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM yes\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowUsers {LOGIN}\n",
            port.port(),
            at("host"),
            at("key.pub")
        );
        fs::write(at("config"), config).context("cannot write the configuration")?;
        let server = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &at("config")])
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the ssh server; deploy/setup/setup.sh ssh installs it")?;
        let server = Self { dir, port, server };
        let address = format!("127.0.0.1:{}", server.port.port());
        wait_for("the ssh server to listen", JOB, async || {
            Seen::when(std::net::TcpStream::connect(&address).is_ok(), || "nobody listens".to_owned())
        })
        .await?;
        Ok(server)
    }

    fn key(&self, name: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.dir.path().join(name)).context("no key")
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

#[tokio::test]
async fn a_project_is_fetched_over_ssh_with_a_key_that_has_a_passphrase() {
    use std::os::unix::fs::PermissionsExt as _;
    let repository = Repository::start(None).await.unwrap();
    let revision = repository.commit("main", "ssh").unwrap();
    // git serves a repository to its owner only.
    fs::set_permissions(repository.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let bare = repository.dir().join("site.git").display().to_string();
    run("chown", &["-R", LOGIN, &bare]).unwrap();
    let server = SshServer::start().await.unwrap();
    let cluster = Cluster::builder("projects-ssh").start().await.unwrap();
    let Stage { organization, environment, .. } = stage(&cluster).await.unwrap();
    let api = cluster.api();
    let key =
        json!({"username": LOGIN, "ssh_key_data": server.key("key").unwrap(), "ssh_key_unlock": PASSPHRASE});
    let stranger = json!({"username": LOGIN, "ssh_key_data": server.key("stranger").unwrap()});
    for (name, inputs, status) in [("key", key, "successful"), ("stranger", stranger, "failed")] {
        let credential = credential(api, organization, name, inputs).await.unwrap();
        let body = json!({
            "name": name, "organization": organization, "scm_type": "git", "credential": credential,
            "scm_url": format!("ssh://127.0.0.1:{}{bare}", server.port.port()), "default_environment": environment,
        });
        let project = api.create("projects/", &body).await.unwrap();
        let update = project["summary_fields"]["current_update"]["id"].as_i64().unwrap();
        let ended = over(api, update).await.unwrap();
        let said = ended["job_explanation"].as_str().unwrap();
        assert_eq!(ended["status"], status, "{name}: {said}");
        match status {
            "successful" => assert_eq!(ended["scm_revision"], json!(revision)),
            _ => assert!(said.contains("refused the login"), "{said}"),
        }
    }
    cluster.finish().await.unwrap();
}

//! Images through the API: a private registry with a credential, what is said while its image comes and when it does not, and
//! what `plexus node image` shows of a real node.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use plexus_tests::{
    Cluster, JobOptions, Loaded, Samples, Seen, TINY, WorkerImage, demo_image, podman_command, wait_for,
};
use serde_json::{Value, json};

use registry::{Image, PASSWORD, Registry, USER, run};

#[path = "../../node/tests/common/registry.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "the node's tests use all of it")]
mod registry;

const PATIENCE: Duration = Duration::from_secs(20);
const JOB: Duration = Duration::from_secs(60);

/// Has the node call podman through a client that says how far a pull is and then waits for a file.
async fn slow_down(cluster: &mut Cluster, gate: &Path) {
    let client = cluster.layout.dir.join("slow-podman");
    let podman = podman_command().join(" ");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = pull ]; then\n  echo 'Copying blob one' >&2\n  until [ -e {} ]; do sleep 0.05; done\nfi\n\
         exec {podman} \"$@\"\n",
        gate.display()
    );
    fs::write(&client, script).unwrap();
    run("chmod", &["755", client.to_str().unwrap()]);
    let config = cluster.layout.config("node-1");
    let text = fs::read_to_string(&config).unwrap();
    let command = |words: Vec<String>| format!("command = {}", Value::from(words));
    let changed = text.replace(&command(podman_command()), &command(vec![client.display().to_string()]));
    assert_ne!(changed, text);
    // Other tests have nameless images on this machine.
    fs::write(&config, changed + "\n[work.images]\nprune_dangling = false\n").unwrap();
    cluster.node.start().unwrap();
    cluster.node_ready().await.unwrap();
}

/// A template whose execution environment is to be changed.
struct Case<'a> {
    cluster: &'a Cluster,
    environment: i64,
    template: i64,
}

impl Case<'_> {
    /// Launches a job with these inputs of the environment's credential.
    async fn launch(&self, image: &str, host: &str, password: &str, verify_ssl: bool) -> i64 {
        let api = self.cluster.api();
        let kind = api.get("credential_types/?namespace=registry").await.unwrap()["results"][0]["id"].clone();
        let organization = api.get("organizations/?name=Default").await.unwrap()["results"][0]["id"].clone();
        let inputs = json!({"host": host, "username": USER, "password": password, "verify_ssl": verify_ssl});
        let name = format!("{password} {verify_ssl}");
        let body =
            json!({"name": name, "organization": organization, "credential_type": kind, "inputs": inputs});
        let credential = api.create("credentials/", &body).await.unwrap()["id"].clone();
        let body = json!({"image": image, "pull": "always", "credential": credential});
        api.change(&format!("execution_environments/{}/", self.environment), &body).await.unwrap();
        api.launch(self.template, &json!({})).await.unwrap()["id"].as_i64().unwrap()
    }
}

#[tokio::test]
async fn an_image_of_a_private_registry_comes_with_the_credential_of_its_environment() {
    let dir = tempfile::tempdir().unwrap();
    let streams = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runner-streams");
    let stream = streams.join("ok-2-hosts/worker.bin");
    let script = "sed '/\"eof\"/q' >/dev/null; exec cat /worker.bin";
    let source = WorkerImage::make("replaying", script, &[(&stream, "/worker.bin")]).unwrap();
    let registry = Registry::start();
    let image = Image(registry.push(source.name(), "ee:1"));
    let gate = dir.path().join("gate");
    let mut cluster = Cluster::builder("private-registry").without_node().start().await.unwrap();
    slow_down(&mut cluster, &gate).await;
    let samples = Samples::new(&image.0).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let Loaded { organization, environment, .. } = loaded;
    let inventory = json!({"name": "two hosts", "organization": organization});
    let inventory = api.create("inventories/", &inventory).await.unwrap()["id"].as_i64().unwrap();
    let options = JobOptions::default();
    let template = samples.template(api, loaded, "private", "webapp.yml", inventory, &options).await.unwrap();
    let case = Case { cluster: &cluster, environment, template };

    // While it comes, the job says how far it is.
    let job = case.launch(&image.0, &registry.address, PASSWORD, false).await;
    let words = "pulling the execution environment: Copying blob one";
    let pulling = wait_for("the pull to be told", JOB, async || match api.job(job).await {
        Ok(shown) if shown["job_explanation"] == words => Seen::Yes(shown),
        other => Seen::NotYet(format!("{other:?}")),
    });
    let pulling = pulling.await.unwrap();
    assert!(pulling["status"] != "running" && pulling["started"].is_null(), "{pulling}");
    fs::write(&gate, "").unwrap();
    let done = api.finished(job, JOB).await.unwrap();
    assert_eq!((&done["status"], &done["job_explanation"]), (&json!("successful"), &json!("")), "{done}");
    let digest = done["image_digest"].as_str().unwrap();
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");

    // What is wrong has its own words, and never the password.
    let address = registry.address.as_str();
    let wrong = [
        (address, PASSWORD, true, ["certificate that this node does not trust", "verify_ssl"]),
        (address, "canary-wrong", false, ["refuses access", "user name or password"]),
        ("quay.io", "canary-else", false, ["is for quay.io", address]),
    ];
    for (host, password, verify_ssl, words) in wrong {
        let job = case.launch(&image.0, host, password, verify_ssl).await;
        let done = api.finished(job, JOB).await.unwrap();
        assert_eq!((&done["status"], &done["failed"]), (&json!("error"), &json!(true)), "{done}");
        let why = done["job_explanation"].as_str().unwrap();
        for word in words {
            assert!(why.contains(word), "{word:?} in {why:?}");
        }
        let shown = done.to_string() + &api.stdout(job, "txt").await.unwrap();
        assert!(!shown.contains("canary"), "{shown}");
    }
    let log = cluster.node.log() + &cluster.controller.log();
    assert!(!log.contains("canary"), "a password is in a log");

    commands(&cluster, &image.0, digest).await;

    // Nobody names it any more: its node is told, and removes it.
    api.delete(&format!("execution_environments/{environment}/")).await.unwrap();
    let gone = wait_for("the image to go", JOB, async || {
        let mut podman = podman_command();
        podman.extend(["image", "exists", &image.0].map(str::to_owned));
        let found = tokio::process::Command::new(&podman[0]).args(&podman[1..]).status().await;
        Seen::when(found.is_ok_and(|status| status.code() == Some(1)), || "it is there".to_owned())
    });
    gone.await.unwrap();
    let told = wait_for("the controller to tell", JOB, async || {
        let log = cluster.controller.log();
        Seen::when(log.contains("images that nobody wants removed"), || "not yet".to_owned())
    });
    told.await.unwrap();
    cluster.finish().await.unwrap();
}

/// What the owner of the node's socket sees and does.
async fn commands(cluster: &Cluster, image: &str, digest: &str) {
    let socket = cluster.layout.socket("node-1").display().to_string();
    let plexus = async |args: &[&str]| {
        let mut command = tokio::process::Command::new(cluster.layout.binaries.cli());
        let output = command.args(["--socket", &socket, "node", "image"]).args(args).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, table, err) = plexus(&["list"]).await;
    assert_eq!(code, 0, "{err}");
    let row = table.lines().find(|line| line.starts_with(image)).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains(&digest[..19]) && row.contains(" MB "), "{row}");
    let (_, names, _) = plexus(&["list", "-o", "name"]).await;
    assert!(names.lines().any(|name| name == image), "{names}");

    let ee = demo_image();
    let (code, table, err) = plexus(&["check", &ee]).await;
    assert_eq!(code, 0, "{table} {err}");
    let row =
        |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{table}"));
    assert!(row("podman ").contains(" ok "), "{table}");
    assert!(row(&ee).contains("ansible-core 2") && row(&ee).contains("ansible-runner 2"), "{table}");
    let (code, table, _) = plexus(&["check", TINY]).await;
    assert!(code != 0 && table.contains("no execution environment"), "{code} {table}");

    // From here without a credential: the command has none to give.
    let (code, _, err) = plexus(&["pull", image]).await;
    assert!(code != 0 && err.contains(image), "{code} {err}");
    let (code, said, err) = plexus(&["pull", "not a name"]).await;
    assert!(code != 0 && err.contains("no valid image name"), "{code} {said} {err}");
}

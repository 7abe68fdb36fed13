//! Execution environments as they really are: images with a user of their own, with an init in front, of older versions, under a
//! user that the image has never heard of. In each a real playbook, whose facts come back.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use plexus_tests::{Builder, Cluster, JobOptions, Recap, Samples, demo_image, is_verify};
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(300);

/// Runs `facts.yml` in each image at once and looks at its recap and at the facts that it brings back.
async fn check(builder: Builder, images: &[&str]) -> anyhow::Result<()> {
    let cluster = builder.start().await?;
    let samples = Samples::new(&demo_image())?;
    samples.copy_project(&cluster.layout.projects())?;
    let api = cluster.api();
    let loaded = samples.load(api).await?;
    let mut jobs = Vec::new();
    for image in images {
        let body = json!({"name": image, "organization": loaded.organization});
        let inventory = api.create("inventories/", &body).await?["id"].as_i64().context("no id")?;
        let mut hosts = Vec::new();
        for name in ["web1", "web2"] {
            let variables = json!({"ansible_connection": "local"}).to_string();
            let body = json!({"name": name, "inventory": inventory, "variables": variables});
            hosts.push(api.create("hosts/", &body).await?["id"].as_i64().context("no id")?);
        }
        let body =
            json!({"name": image, "image": image, "pull": "never", "organization": loaded.organization});
        let environment = api.create("execution_environments/", &body).await?["id"].clone();
        let options = JobOptions::default();
        let template = samples.template(api, loaded, image, "facts.yml", inventory, &options).await?;
        let change = json!({"execution_environment": environment, "use_fact_cache": true});
        api.change(&format!("job_templates/{template}/"), &change).await?;
        let job = api.launch(template, &json!({})).await?["id"].as_i64().context("no id")?;
        jobs.push((image, job, hosts, template));
    }
    let mut wrong = Vec::new();
    for (image, job, hosts, template) in jobs {
        let done = api.finished(job, JOB).await?;
        let output = api.stdout(job, "txt").await?;
        let recap = Recap::parse(&output);
        let facts = api.get(&format!("hosts/{}/ansible_facts/", hosts[0])).await?;
        if done["status"] != "successful" || recap != Recap::expected("web1: ok=4; web2: ok=4") {
            wrong.push(format!("{image}: {} {}\n{output}", done["status"], done["job_explanation"]));
        }
        if facts["ansible_system"] != "Linux" || !facts["node_class"].is_string() {
            wrong.push(format!("{image}: facts of the first host: {facts}"));
        }
        // A second job finds them there: it gathers nothing and knows what the first one set.
        let playbook = "- hosts: all\n  gather_facts: false\n  tasks:\n    - assert: {that: \"node_class in ['small', 'big']\"}\n";
        std::fs::write(project(&cluster, api, loaded.project).await?.join("cached.yml"), playbook)?;
        api.change(&format!("job_templates/{template}/"), &json!({"playbook": "cached.yml"})).await?;
        let job = api.launch(template, &json!({})).await?["id"].as_i64().context("no id")?;
        let done = api.finished(job, JOB).await?;
        if done["status"] != "successful" {
            let output = api.stdout(job, "txt").await?;
            wrong.push(format!("{image}, with cached facts: {}\n{output}", done["status"]));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.finish().await
}

async fn project(cluster: &Cluster, api: &plexus_tests::Api, project: i64) -> anyhow::Result<PathBuf> {
    let project: Value = api.get(&format!("projects/{project}/")).await?;
    Ok(cluster.layout.projects().join(project["local_path"].as_str().context("no path")?))
}

#[tokio::test]
async fn playbooks_run_in_odd_images() {
    let images = ["localhost/plexus-ee:user", "localhost/plexus-ee:init", "localhost/plexus-ee:old"];
    check(Cluster::builder("odd-images"), &images).await.unwrap();
}

#[tokio::test]
async fn playbooks_run_as_the_user_of_the_image() {
    let images = ["localhost/plexus-ee:user"];
    check(Cluster::builder("image-user").podman("user = \"image\""), &images).await.unwrap();
}

#[tokio::test]
async fn playbooks_run_under_any_user_id() {
    let images = ["localhost/plexus-ee:init", "localhost/plexus-ee:demo", "localhost/plexus-ee:old"];
    let images = if is_verify() { &images[..] } else { &images[..1] };
    check(Cluster::builder("any-user").podman("user = \"12345:0\""), images).await.unwrap();
}

#[tokio::test]
async fn a_job_shows_its_command_directory_environment_and_what_it_set() {
    let cluster = Cluster::builder("set-stats").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let playbook = "- hosts: all\n  gather_facts: false\n  tasks:\n    - set_stats: {data: {version: 7, colours: [green]}}\n";
    std::fs::write(cluster.layout.projects().join("samples/stats.yml"), playbook).unwrap();
    let inventory = samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    let options = JobOptions { limit: Some("web1".to_owned()), ..JobOptions::default() };
    let template = samples.template(api, loaded, "stats", "stats.yml", inventory, &options).await.unwrap();
    let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
    let done = api.finished(job, JOB).await.unwrap();
    assert_eq!(done["status"], "successful", "{done}");
    assert_eq!(done["artifacts"], json!({"version": 7, "colours": ["green"]}), "{done}");
    assert_eq!(done["job_cwd"], "/runner/project", "{done}");
    let words: Vec<String> = serde_json::from_str(done["job_args"].as_str().unwrap()).unwrap();
    assert!(words[0].ends_with("ansible-playbook") && words.contains(&"stats.yml".to_owned()), "{words:?}");
    assert!(words.contains(&"--limit=web1".to_owned()), "{words:?}");
    let env = &done["job_env"];
    assert_eq!(
        (&env["JOB_ID"], &env["ANSIBLE_FORCE_COLOR"]),
        (&json!(job.to_string()), &json!("True")),
        "{env}"
    );
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn a_job_says_where_its_private_directory_is_kept() {
    let cluster = Cluster::builder("kept").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let inventory = samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    let options =
        JobOptions { extra_vars: Some("password: canary-extravars".to_owned()), ..JobOptions::default() };
    let template = samples.template(api, loaded, "kept", "loops.yml", inventory, &options).await.unwrap();
    let run = async || {
        let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
        let done = api.finished(job, JOB).await.unwrap();
        assert_eq!(done["status"], "successful", "{done}");
        done["job_explanation"].as_str().unwrap().to_owned()
    };
    assert_eq!(run().await, "");
    api.change("settings/jobs/", &json!({"AWX_CLEANUP_PATHS": false})).await.unwrap();
    let explanation = run().await;
    let path = explanation.strip_prefix("The private data directory is kept on node node-1 for a day: ");
    let path = PathBuf::from(path.unwrap_or_else(|| panic!("{explanation:?}")));
    for there in ["inventory/hosts.json", "env/settings", "artifacts/2/rc"] {
        assert!(path.join(there).is_file(), "{there}");
    }
    for gone in ["env/extravars", "artifacts/2/command", "project"] {
        assert!(!path.join(gone).exists(), "{gone}");
    }
    cluster.finish().await.unwrap();
}

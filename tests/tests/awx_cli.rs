//! The unmodified `awx` command of AWX (PyPI awxkit 24.6.1) against the controller.

use plexus_tests::{Awx, Cluster, JobOptions, Recap, Samples, demo_image, text};
use serde_json::Value;

#[tokio::test]
async fn unmodified_awx_command_logs_in_creates_launches_and_watches() {
    let cluster = Cluster::builder("awx").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    let inventory = samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    samples
        .template(api, loaded, "Made by API", "failing.yml", inventory, &JobOptions::default())
        .await
        .unwrap();
    let awx = Awx::new(api, cluster.layout.https_port);

    // login: a token, which then works alone.
    let login = awx.json(&["login"]).await;
    let token = login["token"].as_str().expect("login gives a token").to_owned();
    let me = awx.run_with(&["me"], &[("CONTROLLER_OAUTH_TOKEN", &token)]).await;
    assert!(me.status.success(), "awx me with a token: {}", text(&me.stderr));
    let me: Value = serde_json::from_slice(&me.stdout).unwrap();
    assert_eq!(me["results"][0]["username"], "admin", "{me}");

    // A wrong password is refused, and said so.
    let refused =
        awx.run_with(&["me"], &[("CONTROLLER_USERNAME", "admin"), ("CONTROLLER_PASSWORD", "wrong")]).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stdout));

    assert_eq!(awx.json(&["me"]).await["results"][0]["is_superuser"], true);

    // job_templates create|list|get, with names where the command takes them.
    let created = awx
        .json(&[
            "job_templates",
            "create",
            "--name",
            "Made by awx",
            "--project",
            "Sample playbooks",
            "--playbook",
            "facts.yml",
            "--inventory",
            "two-hosts.ini",
            "--execution_environment",
            "Demo EE",
        ])
        .await;
    assert_eq!(created["name"], "Made by awx", "{created}");
    let list = awx.json(&["job_templates", "list"]).await;
    assert_eq!(list["count"], 2, "{list}");
    let found = awx.json(&["job_templates", "get", "Made by awx"]).await;
    assert_eq!(found["id"], created["id"]);

    // launch --monitor: output begins with the line that names the image, and ends with the recap.
    let launched = awx.run(&["job_templates", "launch", "Made by awx", "--monitor"]).await;
    assert!(launched.status.success(), "{}\n{}", text(&launched.stdout), text(&launched.stderr));
    let shown = text(&launched.stdout);
    assert!(shown.contains("PLAY RECAP"), "{shown}");
    let job = awx.json(&["jobs", "list"]).await["results"][0]["id"].as_i64().unwrap();

    // jobs list|get|stdout|monitor.
    let number = job.to_string();
    let got = awx.json(&["jobs", "get", &number]).await;
    assert_eq!((&got["status"], &got["type"]), (&Value::from("successful"), &Value::from("job")), "{got}");
    let stdout = awx.run(&["jobs", "stdout", &number]).await;
    assert!(stdout.status.success(), "{}", text(&stdout.stderr));
    let stdout = text(&stdout.stdout);
    let first = stdout.lines().next().unwrap_or_default();
    assert!(first.contains(&demo_image()), "first line {first:?} does not name the image");
    assert_eq!(Recap::parse(&stdout), Recap::expected("web1: ok=4; web2: ok=4"));
    let monitor = awx.run(&["jobs", "monitor", &number]).await;
    assert!(monitor.status.success(), "{}", text(&monitor.stderr));

    // A job that fails makes --monitor fail.
    let failed = awx.run(&["job_templates", "launch", "Made by API", "--monitor"]).await;
    assert_eq!(failed.status.code(), Some(1), "{}\n{}", text(&failed.stdout), text(&failed.stderr));
    assert!(text(&failed.stdout).contains("failed=1"), "{}", text(&failed.stdout));

    survey_and_labels(&cluster, &awx, inventory).await;

    // Names that do not exist are a message and an exit code.
    let unknown = awx.run(&["job_templates", "launch", "No such template"]).await;
    assert!(!unknown.status.success());
    cluster.finish().await.unwrap();
}

/// A template with a survey and a label, launched with answers: they reach the playbook, and the secret one nothing else.
async fn survey_and_labels(cluster: &Cluster, awx: &Awx, inventory: i64) {
    let api = cluster.api();
    let project = cluster.layout.projects().join("survey");
    std::fs::create_dir_all(&project).expect("project directory");
    let playbook = r#"
- hosts: web1
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "{{ who }} {{ color }} {{ secret | length }}"
"#;
    std::fs::write(project.join("survey.yml"), playbook).expect("playbook written");
    let organization = awx.json(&["organizations", "get", "Default"]).await["id"].to_string();
    let made = awx
        .json(&[
            "projects",
            "create",
            "--name",
            "Survey",
            "--organization",
            &organization,
            "--local_path",
            "survey",
        ])
        .await;
    let template = awx
        .json(&[
            "job_templates",
            "create",
            "--name",
            "With survey",
            "--project",
            &made["id"].to_string(),
            "--playbook",
            "survey.yml",
            "--inventory",
            &inventory.to_string(),
            "--execution_environment",
            "Demo EE",
            "--survey_enabled",
            "true",
        ])
        .await["id"]
        .to_string();
    let question = |kind: &str, name: &str, default: &str| {
        serde_json::json!({"type": kind, "question_name": name, "variable": name, "required": true,
            "default": default, "choices": ["red", "blue"]})
    };
    let spec = serde_json::json!({"name": "ask", "description": "", "spec": [
        question("text", "who", ""), question("multiplechoice", "color", "blue"), question("password", "secret", "")]});
    api.post(&format!("job_templates/{template}/survey_spec/"), &spec).await.expect("survey taken");
    let label = awx.json(&["labels", "create", "--name", "asked", "--organization", &organization]).await;
    let label = label["id"].to_string();
    let worn = awx.run(&["job_templates", "associate", &template, "--label", &label]).await;
    if !worn.status.success() {
        // This command associates credentials and notifications only; the API is the way for labels.
        let body = serde_json::json!({"id": label.parse::<i64>().expect("id of a label")});
        api.post(&format!("job_templates/{template}/labels/"), &body).await.expect("label taken");
    }
    let refused = awx.run(&["job_templates", "launch", &template]).await;
    let said = text(&refused.stdout) + &text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("'who' value missing"), "{said}");
    let answers = r#"{"who": "ada", "secret": "correct horse"}"#;
    let launched =
        awx.run(&["job_templates", "launch", &template, "--monitor", "--extra_vars", answers]).await;
    assert!(launched.status.success(), "{}\n{}", text(&launched.stdout), text(&launched.stderr));
    let shown = text(&launched.stdout);
    assert!(shown.contains("ada blue 13") && !shown.contains("correct horse"), "{shown}");
    let job = api.get("jobs/?labels__name=asked").await.expect("list of jobs")["results"][0].clone();
    assert_eq!(job["summary_fields"]["labels"]["results"][0]["name"], "asked", "{job}");
    assert!(!job.to_string().contains("correct horse"), "{job}");
}

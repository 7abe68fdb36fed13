//! A user's day with the unmodified `awx` command: an organization, people, credentials of their own type, a project,
//! hosts, a template, a job, and a look at who did what. (`awx_matrix.rs` runs every verb of every resource.)

use plexus_tests::{Awx, Cluster, Samples, demo_image, text};
use serde_json::{Value, json};

const PLAYBOOK: &str = r#"
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.assert:
        that:
          - lookup('env', 'SHOP_TOKEN') == 'open-sesame-42'
          - lookup('env', 'SHOP_TLS') == 'True'
          - lookup('file', lookup('env', 'SHOP_INI')) == '[shop]\ntoken=open-sesame-42'
          - shop.url == 'https://shop.example'
          - lookup('env', 'AWS_ACCESS_KEY_ID') == 'AKIA-DAY'
          - lookup('env', 'AWS_SECRET_ACCESS_KEY') == 'aws-secret-of-the-day'
          - lookup('env', 'K8S_AUTH_HOST') == 'https://k8s.example'
          - lookup('file', lookup('env', 'K8S_AUTH_SSL_CA_CERT')) == 'the authority'
          - lookup('env', 'EVERYWHERE') == 'yes'
        quiet: true
    - ansible.builtin.debug:
        msg: everything was where it belongs
"#;

#[tokio::test]
async fn a_day_with_the_awx_command() {
    let cluster = Cluster::builder("awx-day").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    samples.load(api).await.unwrap();
    let day = cluster.layout.projects().join("day");
    std::fs::create_dir_all(&day).unwrap();
    std::fs::write(day.join("day.yml"), PLAYBOOK).unwrap();
    let awx = Awx::new(api, cluster.layout.https_port);

    // People.
    awx.json(&["organizations", "create", "--name", "Ops", "--description", "who operates"]).await;
    awx.json(&["teams", "create", "--name", "deployers", "--organization", "Ops"]).await;
    awx.json(&["users", "create", "--username", "ada", "--password", "ada-password"]).await;
    awx.run(&["users", "grant", "ada", "--team", "deployers", "--role", "member"]).await;

    // Credentials, of a type of their own and of the product's.
    let inputs = json!({"fields": [
        {"id": "url", "label": "URL", "type": "string"},
        {"id": "token", "label": "Token", "type": "string", "secret": true},
        {"id": "tls", "label": "TLS", "type": "boolean"},
    ], "required": ["url", "token"]});
    let injectors = json!({
        "file": {"template.ini": "[shop]\ntoken={{ token }}"},
        "env": {"SHOP_TOKEN": "{{ token }}", "SHOP_TLS": "{{ tls }}", "SHOP_INI": "{{ tower.filename.ini }}"},
        "extra_vars": {"shop": {"url": "{{ url }}"}},
    });
    let (inputs, injectors) = (inputs.to_string(), injectors.to_string());
    let kind = [
        "credential_types",
        "create",
        "--name",
        "Shop",
        "--kind",
        "cloud",
        "--inputs",
        &inputs,
        "--injectors",
    ];
    awx.json(&[&kind[..], &[&injectors]].concat()).await;
    let credentials = [
        ("shop", "Shop", json!({"url": "https://shop.example", "token": "open-sesame-42", "tls": true})),
        ("aws", "Amazon Web Services", json!({"username": "AKIA-DAY", "password": "aws-secret-of-the-day"})),
        (
            "k8s",
            "OpenShift or Kubernetes API Bearer Token",
            json!({"host": "https://k8s.example", "bearer_token": "bearer", "ssl_ca_cert": "the authority"}),
        ),
    ];
    for (name, kind, inputs) in &credentials {
        let inputs = inputs.to_string();
        let made = awx
            .json(&[
                "credentials",
                "create",
                "--name",
                name,
                "--credential_type",
                kind,
                "--organization",
                "Ops",
                "--inputs",
                &inputs,
            ])
            .await;
        assert!(!made.to_string().contains("sesame") && !made.to_string().contains("aws-secret"), "{made}");
    }

    // What to run, and where.
    awx.json(&["projects", "create", "--name", "day", "--organization", "Ops", "--local_path", "day"]).await;
    awx.json(&["inventory", "create", "--name", "hosts", "--organization", "Ops"]).await;
    awx.json(&[
        "hosts",
        "create",
        "--name",
        "here",
        "--inventory",
        "hosts",
        "--variables",
        "ansible_connection: local",
    ])
    .await;
    awx.json(&["settings", "modify", "AWX_TASK_ENV", r#"{"EVERYWHERE": "yes"}"#]).await;
    awx.json(&[
        "job_templates",
        "create",
        "--name",
        "Day",
        "--project",
        "day",
        "--playbook",
        "day.yml",
        "--inventory",
        "hosts",
        "--execution_environment",
        "Demo EE",
    ])
    .await;
    for (name, ..) in &credentials {
        awx.json(&["job_templates", "associate", "Day", "--credential", name]).await;
    }
    awx.run(&["teams", "grant", "deployers", "--job_template", "Day", "--role", "execute"]).await;

    // The team's member starts it, sees it end well, and reads nothing else.
    let ada = awx.of("ada", "ada-password");
    let launched = ada.run(&["job_templates", "launch", "Day", "--monitor"]).await;
    let shown = text(&launched.stdout);
    assert!(launched.status.success(), "{shown}\n{}", text(&launched.stderr));
    assert!(shown.contains("everything was where it belongs"), "{shown}");
    assert_eq!(ada.json(&["credentials", "list"]).await["count"], 0);
    let job = ada.json(&["jobs", "list"]).await["results"][0]["id"].as_i64().unwrap();
    let detail = api.job(job).await.unwrap();
    let told = detail.to_string();
    for secret in ["open-sesame-42", "aws-secret-of-the-day"] {
        assert!(!told.contains(secret), "the job shows {secret}: {told}");
    }
    let why = api.get(&format!("jobs/{job}/why/")).await.unwrap();
    assert_eq!(
        (&why["why"], &why["instance_group"]["name"]),
        (&json!("it is over: successful"), &json!("default"))
    );
    let plan = api.get("job_templates/Day++Ops/plan/").await.unwrap();
    assert_eq!(plan["execution_node"], detail["execution_node"], "{plan}");
    assert_eq!(plan["route"]["hops"], 2, "{plan}");
    let stream = awx.json(&["activity_stream", "list", "--object1", "job_template"]).await;
    let operations: Vec<&Value> =
        stream["results"].as_array().unwrap().iter().map(|entry| &entry["operation"]).collect();
    assert_eq!(operations, ["create", "associate", "associate", "associate"], "{stream}");

    cluster.finish().await.unwrap();
}

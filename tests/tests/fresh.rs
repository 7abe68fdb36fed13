//! A controller at its first start has what a fresh AWX has, and what it has works.

use std::time::Duration;

use plexus_tests::{Cluster, demo_image};
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(300);

async fn named(api: &plexus_tests::Api, list: &str, name: &str) -> Value {
    let found =
        api.get(&format!("{list}/?name={}", name.replace(' ', "%20"))).await.expect("the API answers");
    assert_eq!(found["count"], 1, "{list}: {name}: {found}");
    found["results"][0].clone()
}

#[tokio::test]
async fn the_demo_job_template_runs_on_a_fresh_controller() {
    let cluster = Cluster::builder("fresh").fresh(&demo_image()).start().await.unwrap();
    let api = cluster.api();
    let organization = named(api, "organizations", "Default").await;
    for (list, name) in [
        ("projects", "Demo Project"),
        ("inventories", "Demo Inventory"),
        ("hosts", "localhost"),
        ("credentials", "Demo Credential"),
        ("credentials", "Ansible Galaxy"),
        ("execution_environments", "Fresh"),
        ("execution_environments", "Control Plane Execution Environment"),
        ("instance_groups", "default"),
        ("instance_groups", "controlplane"),
        ("system_job_templates", "Cleanup Job Details"),
        ("credential_types", "Machine"),
        ("role_definitions", "JobTemplate Execute"),
    ] {
        named(api, list, name).await;
    }
    let managed = named(api, "execution_environments", "Control Plane Execution Environment").await;
    assert_eq!((&managed["managed"], &managed["organization"]), (&json!(true), &Value::Null));
    let template = named(api, "job_templates", "Demo Job Template").await;
    assert_eq!(template["organization"], organization["id"]);
    assert_eq!(template["summary_fields"]["credentials"][0]["name"], "Demo Credential");
    let id = template["id"].as_i64().unwrap();
    let job = api.launch(id, &json!({})).await.unwrap()["id"].as_i64().unwrap();
    let done = api.finished(job, JOB).await.unwrap();
    let output = api.stdout(job, "txt").await.unwrap();
    assert_eq!(done["status"], "successful", "{}: {output}", done["job_explanation"]);
    assert!(output.contains("Hello World!"), "{output}");
    assert_eq!(done["summary_fields"]["execution_environment"]["name"], "Fresh");
    cluster.finish().await.unwrap();
}

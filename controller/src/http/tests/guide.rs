//! The requests on execution environments that AWX's users copy from its guides, each as it is written there, with a bearer token.

use super::*;

const IMAGE: &str = "quay.io/myorg/ansible-ee:2.1.0";

/// An API, and the header of a token as the guides use it.
struct Guide {
    api: Api,
    bearer: String,
}

impl Guide {
    async fn new() -> Self {
        let api = Api::new().await;
        let reply = api.post("/api/v2/users/1/personal_tokens/", json!({"scope": "write"})).await;
        let token = reply.json["token"].as_str().expect("a token").to_owned();
        Self { api, bearer: format!("Bearer {token}") }
    }

    async fn ask(&self, method: &str, path: &str, body: serde_json::Value) -> Reply {
        self.api.by(&self.bearer, method, &format!("/api/v2/{path}"), body).await
    }

    async fn environment(&self) -> i64 {
        let body = json!({"name": "Production EE", "image": IMAGE, "pull": "missing", "description": "For production."});
        let reply = self.ask("POST", "execution_environments/", body).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        reply.json["id"].as_i64().expect("an id")
    }

    async fn registry(&self) -> i64 {
        let body = json!({"name": "Quay.io Registry", "credential_type": 17, "organization": 1, "inputs":
            {"host": "quay.io", "username": "myorg+cibot", "password": "open sesame", "verify_ssl": true}});
        let reply = self.ask("POST", "credentials/", body).await;
        assert_eq!(reply.status, 201, "{}", reply.text);
        assert_eq!(reply.json["inputs"]["password"], "$encrypted$");
        assert!(!reply.text.contains("open sesame"), "{}", reply.text);
        reply.json["id"].as_i64().expect("an id")
    }
}

#[tokio::test]
async fn an_environment_is_registered_with_each_way_to_pull() {
    let guide = Guide::new().await;
    guide.environment().await;
    for pull in ["missing", "always", "never"] {
        let body = json!({"name": format!("EE {pull}"), "image": IMAGE, "pull": pull});
        let reply = guide.ask("POST", "execution_environments/", body).await;
        assert_eq!((reply.status.as_u16(), &reply.json["pull"]), (201, &json!(pull)), "{}", reply.text);
    }
}

#[tokio::test]
async fn a_registry_credential_is_created_and_keeps_its_password() {
    Guide::new().await.registry().await;
}

#[tokio::test]
async fn an_environment_takes_a_registry_credential_and_no_other() {
    let guide = Guide::new().await;
    let (environment, registry) = (guide.environment().await, guide.registry().await);
    let path = format!("execution_environments/{environment}/");
    let reply = guide.ask("PATCH", &path, json!({"credential": registry})).await;
    assert_eq!((reply.status.as_u16(), &reply.json["credential"]), (200, &json!(registry)), "{}", reply.text);
    let machine = json!({"name": "m", "organization": 1, "credential_type": 1, "inputs": {}});
    let machine = guide.ask("POST", "credentials/", machine).await.json["id"].clone();
    assert_eq!(guide.ask("PATCH", &path, json!({"credential": machine})).await.status, 400);
}

#[tokio::test]
async fn a_template_is_created_with_environment_and_credentials() {
    let guide = Guide::new().await;
    let (environment, registry) = (guide.environment().await, guide.registry().await);
    let base = guide.api.template("base").await;
    let base = guide.ask("GET", &format!("job_templates/{base}/"), json!(null)).await.json;
    let machine = json!({"name": "m", "organization": 1, "credential_type": 1, "inputs": {}});
    let machine = guide.ask("POST", "credentials/", machine).await.json["id"].as_i64().expect("an id");
    let body = json!({"name": "Deploy Web Application", "job_type": "run", "inventory": base["inventory"],
        "project": base["project"], "playbook": "site.yml", "execution_environment": environment, "credentials": [registry, machine]});
    let reply = guide.ask("POST", "job_templates/", body).await;
    assert_eq!((reply.status.as_u16(), &reply.json["execution_environment"]), (201, &json!(environment)));
    let mut attached: Vec<i64> = reply.json["summary_fields"]["credentials"]
        .as_array()
        .expect("credentials are shown")
        .iter()
        .filter_map(|credential| credential["id"].as_i64())
        .collect();
    attached.sort_unstable();
    assert_eq!(attached, [registry, machine], "{}", reply.text);
}

#[tokio::test]
async fn a_template_gets_another_environment() {
    let guide = Guide::new().await;
    let (environment, template) = (guide.environment().await, guide.api.template("t").await);
    let path = format!("job_templates/{template}/");
    let reply = guide.ask("PATCH", &path, json!({"execution_environment": environment})).await;
    assert_eq!((reply.status.as_u16(), &reply.json["execution_environment"]), (200, &json!(environment)));
}

#[tokio::test]
async fn templates_inherit_the_environment_of_their_organization() {
    let guide = Guide::new().await;
    let (environment, template) = (guide.environment().await, guide.api.template("t").await);
    let reply = guide.ask("PATCH", "organizations/1/", json!({"default_environment": environment})).await;
    assert_eq!((reply.status.as_u16(), &reply.json["default_environment"]), (200, &json!(environment)));
    let shown = guide.ask("GET", &format!("job_templates/{template}/"), json!(null)).await.json;
    assert_eq!(shown["summary_fields"]["resolved_environment"]["id"], environment, "{shown}");
    let own = json!({"name": "own", "image": "quay.io/myorg/own:1"});
    let own = guide.ask("POST", "execution_environments/", own).await.json["id"].clone();
    let path = format!("job_templates/{template}/");
    let shown = guide.ask("PATCH", &path, json!({"execution_environment": own})).await.json;
    assert_eq!(shown["summary_fields"]["resolved_environment"]["id"], own, "{shown}");
}

#[tokio::test]
async fn workflows_say_that_they_are_not_here() {
    let guide = Guide::new().await;
    let body = json!({"name": "Full Deployment Pipeline", "organization": 1, "description": "All of it."});
    let reply = guide.ask("POST", "workflow_job_templates/", body).await;
    assert_eq!(reply.status, 501, "{}", reply.text);
    assert!(reply.text.to_lowercase().contains("workflow"), "{}", reply.text);
}

#[tokio::test]
async fn a_job_says_which_environment_it_has_and_why() {
    let guide = Guide::new().await;
    let (environment, template) = (guide.environment().await, guide.api.template("t").await);
    let path = format!("job_templates/{template}/");
    guide.ask("PATCH", &path, json!({"execution_environment": environment})).await;
    let job = guide.ask("POST", &format!("job_templates/{template}/launch/"), json!({})).await.json;
    let shown = guide.ask("GET", &format!("jobs/{}/", job["id"]), json!(null)).await.json;
    assert_eq!(shown["execution_environment"], environment, "{shown}");
    let summary = &shown["summary_fields"]["execution_environment"];
    assert_eq!((&summary["name"], &summary["image"]), (&json!("Production EE"), &json!(IMAGE)), "{shown}");
    assert_eq!(shown["image_reason"], "the job template names it", "{shown}");
    assert!(shown.as_object().expect("an object").contains_key("image_digest"), "{shown}");
}

#[tokio::test]
async fn a_rolling_tag_and_an_immutable_one_are_a_patch_apart() {
    let guide = Guide::new().await;
    let environment = guide.environment().await;
    let path = format!("execution_environments/{environment}/");
    for (image, pull) in
        [("quay.io/myorg/ansible-ee:latest", "always"), ("quay.io/myorg/ansible-ee:2.1.3", "missing")]
    {
        let reply = guide.ask("PATCH", &path, json!({"image": image, "pull": pull})).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!((&reply.json["image"], &reply.json["pull"]), (&json!(image), &json!(pull)));
    }
}

#[tokio::test]
async fn a_project_gets_an_environment_for_its_jobs() {
    let guide = Guide::new().await;
    let (environment, template) = (guide.environment().await, guide.api.template("t").await);
    let shown = guide.ask("GET", &format!("job_templates/{template}/"), json!(null)).await.json;
    let project = shown["project"].clone();
    let path = format!("projects/{project}/");
    let reply = guide.ask("PATCH", &path, json!({"default_environment": environment})).await;
    assert_eq!((reply.status.as_u16(), &reply.json["default_environment"]), (200, &json!(environment)));
    let shown = guide.ask("GET", &format!("job_templates/{template}/"), json!(null)).await.json;
    assert_eq!(shown["summary_fields"]["resolved_environment"]["id"], environment, "{shown}");
}

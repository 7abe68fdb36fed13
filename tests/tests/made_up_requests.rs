//! Requests that nobody would write: schemathesis (PyPI) makes them up from our OpenAPI document and sends them to a real
//! controller. Whatever comes, the answer is never an error of the server.

use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use plexus_tests::{Cluster, cache_dir, is_verify};
use serde_json::json;
use std::io::Write as _;

const PROGRAM: &str = "schemathesis-4.32.5/bin/schemathesis";

/// Longest that all of it may take, on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(1800);

/// Addresses at which a made-up request would lock its own sender out: the sender's user and token.
const ITSELF: &str = r"^/api/v2/(users|tokens)/\{id\}/$";

#[tokio::test]
async fn no_request_that_is_made_up_is_a_fault_of_the_server() {
    if !is_verify() {
        // In `make test` the unit tests of the API send every field every odd value; this takes minutes.
        return;
    }
    let cluster = Cluster::builder("made-up").process(vec!["/bin/true".into()]).start().await.unwrap();
    let api = cluster.api();
    let token = api.create("tokens/", &json!({"scope": "write"})).await.unwrap();
    let token = token["token"].as_str().unwrap();
    // Something to point at: ids that requests are likely to name.
    for number in 1..=3 {
        let name = format!("made-up-{number}");
        let owned = json!({"name": name, "organization": 1});
        api.create("organizations/", &json!({"name": name})).await.unwrap();
        let inventory = api.create("inventories/", &owned).await.unwrap()["id"].clone();
        api.create("hosts/", &json!({"name": name, "inventory": inventory})).await.unwrap();
        api.create("groups/", &json!({"name": name, "inventory": inventory})).await.unwrap();
        api.create("teams/", &owned).await.unwrap();
        api.create("users/", &json!({"username": name, "password": "x"})).await.unwrap();
        api.create("credentials/", &json!({"name": name, "organization": 1, "credential_type": 1}))
            .await
            .unwrap();
    }
    let dir = cluster.layout.dir.join("schemathesis");
    std::fs::create_dir_all(&dir).unwrap();
    // The token in a file of its owner's: arguments show in the list of processes.
    let config = dir.join("schemathesis.toml");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&config).unwrap();
    writeln!(file, "headers = {{ Authorization = \"Bearer {token}\" }}").unwrap();
    // What is not here yet says so: 501 is an answer.
    writeln!(file, "[checks]\nnot_a_server_error.expected-statuses = [\"2xx\", \"3xx\", \"4xx\", \"501\"]")
        .unwrap();
    let program = cache_dir().join(PROGRAM);
    assert!(program.is_file(), "schemathesis is missing; deploy/setup/setup.sh schemathesis installs it");
    let schema = format!("{}/api/docs/?format=openapi", api.base());
    let output = tokio::process::Command::new(program)
        .arg("--config-file")
        .arg(&config)
        .args(["run", &schema, "--url", api.base()])
        .args(["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"])
        .args(["--max-examples", "15", "--seed", "7", "--workers", "2", "--exclude-path-regex", ITSELF])
        .args(["--generation-database", ":memory:", "--no-color", "--request-timeout", "30"])
        .current_dir(&dir)
        .env_remove("HTTP_PROXY")
        .env_remove("http_proxy")
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, output).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let tail: Vec<&str> = said.lines().rev().take(150).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    assert!(output.status.success(), "{}\n{}", tail.join("\n"), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Test cases"), "nothing was sent:\n{}", tail.join("\n"));
    let log = std::fs::read_to_string(cluster.layout.log("controller")).unwrap();
    let failed: Vec<&str> =
        log.lines().filter(|line| line.contains("request failed") && !line.contains("status=501")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // It still serves, and says so to the one who asked.
    assert_eq!(api.get("me/").await.unwrap()["count"], 1);
    cluster.finish().await.unwrap();
}

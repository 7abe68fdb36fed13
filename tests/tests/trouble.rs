//! Bad input and trouble: each with the message that a person sees, and an exit code where a command failed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::ffi::OsString;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use plexus_mesh::ca::CertificateAuthority;
use plexus_proto::id::Role;
use plexus_tests::{
    Answer, Api, Builder, Cluster, Daemon, JobOptions, Loaded, Replay, Samples, WorkerImage, demo_image,
};
use reqwest::Method;
use serde_json::{Value, json};

/// Longest job that fails before it runs.
const JOB: Duration = Duration::from_secs(60);
/// Longest life of a daemon that cannot start.
const REFUSAL: Duration = Duration::from_secs(15);

// ---------------------------------------------------------------- jobs

#[tokio::test]
async fn playbook_that_is_not_in_the_project_is_refused_or_explained() {
    let mut replay = Replay::start_without_node("no-playbook", "ok-2-hosts", 4).await.unwrap();
    replay.open_gate().unwrap();
    let refusal = json!({"playbook": ["Playbook not found for project."]});

    // Written down wrong: refused at once.
    let template = replay.api().get(&format!("job_templates/{}/", replay.template)).await.unwrap();
    let (project, inventory) = (&template["project"], &template["inventory"]);
    let body = json!({"name": "typo", "project": project, "inventory": inventory, "playbook": "webap.yml"});
    let answer = replay.api().send(Method::POST, "job_templates/", Some(&body)).await.unwrap();
    assert_eq!((answer.status, &answer.body), (400, &refusal));

    // Gone after the launch: the job ends, and its explanation names it.
    let job = replay.launch().await.unwrap();
    fs::remove_file(replay.cluster.layout.projects().join("samples/webapp.yml")).unwrap();
    replay.cluster.node.start().unwrap();
    let done = replay.api().finished(job, JOB).await.unwrap();
    assert_eq!((&done["status"], &done["failed"]), (&json!("error"), &json!(true)), "{done}");
    let explanation = done["job_explanation"].as_str().unwrap();
    assert!(explanation.contains("webapp.yml") && explanation.contains("project"), "{explanation}");

    // Gone before the launch: refused at once.
    let launch = format!("job_templates/{}/launch/", replay.template);
    let answer = replay.api().send(Method::POST, &launch, Some(&json!({}))).await.unwrap();
    assert_eq!((answer.status, &answer.body), (400, &refusal));
    replay.finish().await.unwrap();
}

/// A podman cluster with the sample project, and a template for each wanted image.
struct Images {
    cluster: Cluster,
    samples: Samples,
    loaded: Loaded,
}

impl Images {
    async fn start(builder: Builder) -> Self {
        let cluster = builder.start().await.unwrap();
        let samples = Samples::new(&demo_image()).unwrap();
        samples.copy_project(&cluster.layout.projects()).unwrap();
        let loaded = samples.load(cluster.api()).await.unwrap();
        Self { cluster, samples, loaded }
    }

    /// Runs a job in an image, and gives it when it is over.
    async fn job(&self, image: &str, pull: &str) -> Result<Value, Answer> {
        let api = self.cluster.api();
        let body = json!({"name": format!("{image} {pull}"), "image": image, "pull": pull});
        let answer = api.send(Method::POST, "execution_environments/", Some(&body)).await.unwrap();
        if answer.status != 201 {
            return Err(answer);
        }
        let loaded = Loaded { environment: answer.body["id"].as_i64().unwrap(), ..self.loaded };
        let inventory = self.samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
        let template = self
            .samples
            .template(api, loaded, image, "facts.yml", inventory, &JobOptions::default())
            .await
            .unwrap();
        let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
        Ok(api.finished(job, JOB).await.unwrap())
    }
}

#[tokio::test]
async fn image_that_is_missing_or_nonsense_is_named_in_the_explanation() {
    let images = Images::start(Cluster::builder("images")).await;

    let missing = images.job("localhost/plexus-no-such-image:1", "never").await.unwrap();
    assert!(missing["status"] == "error" || missing["status"] == "failed", "{missing}");
    let explanation = missing["job_explanation"].as_str().unwrap();
    assert!(explanation.contains("localhost/plexus-no-such-image:1"), "{explanation}");
    let output = images.cluster.api().stdout(missing["id"].as_i64().unwrap(), "txt").await.unwrap();
    assert!(output.contains("localhost/plexus-no-such-image:1"), "{output}");

    match images.job("This is :: not an image", "missing").await {
        Err(refused) => {
            assert_eq!(refused.status, 400, "{refused:?}");
            assert!(refused.body["image"].to_string().contains("image"), "{refused:?}");
        }
        Ok(done) => {
            assert!(done["status"] == "error" || done["status"] == "failed", "{done}");
            let explanation = done["job_explanation"].as_str().unwrap();
            assert!(explanation.contains("This is :: not an image"), "{explanation}");
        }
    }
    images.cluster.finish().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_fails_is_explained_with_the_tail_of_its_standard_error() {
    let script = tempfile::NamedTempFile::new().unwrap();
    let command = vec!["sh".to_owned(), script.path().display().to_string(), "{dir}".to_owned()];
    let replay = Replay::start_command("worker-fails", command).await.unwrap();
    let cases = [
        ("kill -KILL $$", "signal 9 (SIGKILL)", "dying words"),
        ("exec /nowhere/ansible-runner", "command not found", "/nowhere/ansible-runner"),
        // Its own mount goes with it.
        (
            "exec unshare --user --map-root-user --mount sh -c 'mount -t tmpfs -o size=64k none /mnt && cat /dev/zero >/mnt/full'",
            "a disk of the worker was full",
            "No space left on device",
        ),
    ];
    for (words, reason, tail) in cases {
        fs::write(script.path(), format!("sed '/\"eof\"/q' >/dev/null\necho dying words >&2\n{words}\n"))
            .unwrap();
        let job = replay.launch().await.unwrap();
        let done = replay.api().finished(job, JOB).await.unwrap();
        assert_eq!((&done["status"], &done["failed"]), (&json!("error"), &json!(true)), "{words}: {done}");
        let why = done["job_explanation"].as_str().unwrap();
        assert!(why.contains(reason) && why.contains(tail) && why.contains("dying words"), "{words}: {why}");
    }
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn a_container_without_a_worker_or_without_memory_says_so() {
    let images = Images::start(Cluster::builder("no-memory").podman("memory_mib = 64")).await;
    let empty = WorkerImage::without_commands("empty").unwrap();
    let missing = images.job(empty.name(), "never").await.unwrap();
    assert_eq!(missing["status"], "error", "{missing}");
    let why = missing["job_explanation"].as_str().unwrap();
    let words =
        format!("ansible-runner is not in image {}; the image is no execution environment", empty.name());
    assert!(why.contains(&words) && why.contains("Standard error ended with:"), "{why}");

    let greedy = "sed '/\"eof\"/q' >/dev/null; echo dying words >&2; exec tail /dev/zero";
    let greedy = WorkerImage::make("greedy", greedy, &[]).unwrap();
    let done = images.job(greedy.name(), "never").await.unwrap();
    assert_eq!(done["status"], "error", "{done}");
    let why = done["job_explanation"].as_str().unwrap();
    assert!(why.contains("ran out of memory") && why.contains("dying words"), "{why}");
    images.cluster.finish().await.unwrap();
}

#[tokio::test]
async fn job_launched_while_its_node_is_offline_waits_and_says_why() {
    let mut replay = Replay::start_without_node("offline", "ok-2-hosts", 4).await.unwrap();
    replay.open_gate().unwrap();
    let job = replay.launch().await.unwrap();
    let waiting = plexus_tests::wait_for("an explanation", JOB, async || match replay.api().job(job).await {
        Ok(found) if found["job_explanation"] != "" => plexus_tests::Seen::Yes(found),
        other => plexus_tests::Seen::NotYet(format!("{other:?}")),
    })
    .await
    .unwrap();
    assert!(waiting["status"] == "pending" || waiting["status"] == "waiting", "{waiting}");
    let explanation = waiting["job_explanation"].as_str().unwrap();
    assert!(explanation.contains("node"), "{explanation}");

    replay.cluster.node.start().unwrap();
    assert_eq!(replay.successful(job).await.unwrap().len(), 18);
    let done = replay.api().job(job).await.unwrap();
    assert_eq!(done["job_explanation"], "", "the reason for waiting stays behind: {done}");
    replay.finish().await.unwrap();
}

// ---------------------------------------------------------------- mesh and certificates

#[tokio::test]
async fn unknown_node_is_named_and_the_command_fails() {
    let cluster = Cluster::builder("unknown-node").process(vec!["/bin/true".into()]).start().await.unwrap();
    for verb in ["ping", "trace"] {
        let (code, _, message) =
            plexus(&cluster, &["--socket", &socket(&cluster, "controller"), verb, "node-9"]).await;
        assert_ne!(code, Some(0), "{verb}: {message}");
        assert!(message.contains("node-9"), "{verb}: {message}");
    }
    // No daemon at all is another message.
    let (code, _, message) = plexus(&cluster, &["--socket", "/nonexistent/plexus.sock", "status"]).await;
    assert_ne!(code, Some(0));
    assert!(message.contains("/nonexistent/plexus.sock"), "{message}");
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn certificates_of_another_ca_or_name_or_time_are_refused_with_the_reason() {
    let mut cluster =
        Cluster::builder("certificates").process(vec!["/bin/true".into()]).start().await.unwrap();
    let layout = cluster.layout.clone();
    let own = layout.identity_dir("node-1");
    let set_aside = layout.dir.join("identity/set-aside");
    fs::rename(&own, &set_aside).unwrap();

    // Another authority, of the same names: the hop refuses it, and both logs say so.
    let other = layout.dir.join("other-ca");
    layout
        .plexus(&["ca", "init", &other.display().to_string(), "--mesh", "demo.plexus", "--cluster", "main"])
        .unwrap();
    layout.issue(&other, "execution", "node-1", &own).unwrap();
    refused_by_hop(&mut cluster, &["unknown issuer", "UnknownIssuer", "not signed", "unknown authority"])
        .await;

    // Expired: the hop lets it renew and nothing else, and then it is a member.
    fs::remove_dir_all(&own).unwrap();
    let authority = CertificateAuthority::open(&layout.ca_dir()).unwrap();
    let one_second = Duration::from_secs(1);
    authority.issue(Role::Execution, &"node-1".parse().unwrap(), &own, one_second).unwrap();
    let before = fs::read(own.join("node.pem")).unwrap();
    tokio::time::sleep(2 * one_second).await;
    let skip = cluster.hop.log_size();
    cluster.node.kill();
    cluster.node.start().unwrap();
    cluster.node_ready().await.unwrap();
    let hop = cluster.hop.log();
    assert!(hop[skip..].contains("link to renew a certificate, and for nothing else"), "{hop}");
    assert_ne!(fs::read(own.join("node.pem")).unwrap(), before, "the certificate is another");

    // The right one again, but whoever answers must be hop-9.
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&set_aside, &own).unwrap();
    let config = layout.config("node-1");
    let right = fs::read_to_string(&config).unwrap();
    let wrong = right.replacen("[[mesh.peers]]\n", "[[mesh.peers]]\nname = \"hop-9\"\n", 1);
    assert_ne!(right, wrong);
    fs::write(&config, wrong).unwrap();
    let line = restart_and_wait_for(&mut cluster.node, &["hop-9"]).await;
    assert!(line.contains("hop-1"), "the line does not name who answered: {line}");

    // With everything right again the node joins.
    fs::write(&config, right).unwrap();
    cluster.node.kill();
    cluster.node.start().unwrap();
    cluster.node_ready().await.unwrap();
    cluster.finish().await.unwrap();
}

/// Starts the node anew with the certificates that lie there, and waits until its log or the hop's tells the reason.
async fn refused_by_hop(cluster: &mut Cluster, reasons: &[&str]) {
    let skip = cluster.hop.log_size();
    cluster.node.kill();
    let node_skip = cluster.node.log_size();
    cluster.node.start().unwrap();
    plexus_tests::wait_for(&format!("one of {reasons:?} in a log"), Duration::from_secs(20), async || {
        let hop = cluster.hop.log().get(skip..).unwrap_or_default().to_owned();
        let node = cluster.node.log().get(node_skip..).unwrap_or_default().to_owned();
        let found = |log: &str| log.lines().any(|line| reasons.iter().any(|reason| line.contains(reason)));
        plexus_tests::Seen::when(found(&hop) || found(&node), || format!("hop: {hop}\nnode: {node}"))
    })
    .await
    .unwrap();
    // And it is no member of the mesh.
    let answer = cluster.plexus_json("controller", &["ping", "node-1"]).await;
    assert!(answer.is_err(), "{answer:?}");
}

async fn restart_and_wait_for(daemon: &mut Daemon, words: &[&str]) -> String {
    daemon.kill();
    let skip = daemon.log_size();
    daemon.start().unwrap();
    daemon.logged(words[0], skip, Duration::from_secs(20)).await.unwrap()
}

// ---------------------------------------------------------------- daemons that cannot start

#[tokio::test]
async fn port_in_use_is_named_and_the_daemon_does_not_start() {
    let cluster = Cluster::builder("port-in-use").process(vec!["/bin/true".into()]).start().await.unwrap();
    // A second hop, and a second controller, on the ports of the running ones.
    let layout = &cluster.layout;
    for (name, ports) in
        [("hop-1", vec![layout.mesh_port]), ("controller", vec![layout.https_port, layout.http_port])]
    {
        let copy = copy_of(&cluster, name, |text| {
            let data = cluster.layout.data_dir(name).display().to_string();
            let socket = cluster.layout.socket(name).display().to_string();
            text.replace(&data, &format!("{data}-2")).replace(&socket, &format!("{socket}2"))
        });
        let message = refuses_to_start(&cluster, name, &copy).await;
        let named = ports.iter().any(|port| message.contains(&format!("127.0.0.1:{port}")));
        assert!(named && message.contains("in use"), "{name}: {message}");
    }
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn data_directory_that_cannot_be_written_is_named() {
    let cluster = Cluster::builder("unwritable").process(vec!["/bin/true".into()]).prepare().unwrap();
    // A file where a directory should be stops root too; permissions would not.
    let blocked = cluster.layout.dir.join("blocked");
    fs::write(&blocked, "").unwrap();
    fs::set_permissions(&blocked, fs::Permissions::from_mode(0o400)).unwrap();
    for name in ["controller", "node-1"] {
        let data = cluster.layout.data_dir(name).display().to_string();
        let wrong = blocked.join("data").display().to_string();
        let copy = copy_of(&cluster, name, |text| {
            text.replacen(&format!("data_dir = \"{data}\""), &format!("data_dir = \"{wrong}\""), 1)
        });
        let message = refuses_to_start(&cluster, name, &copy).await;
        assert!(message.contains(&wrong), "{name}: {message}");
    }
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn database_of_a_newer_version_is_left_alone() {
    let mut cluster = Cluster::builder("newer").process(vec!["/bin/true".into()]).start().await.unwrap();
    cluster.controller.stop().await.unwrap();
    let database = cluster.layout.data_dir("controller").join("core.sqlite");
    pretend_newer(&database);
    let before = fs::read(&database).unwrap();
    let config = cluster.layout.config("controller");
    let message = refuses_to_start(&cluster, "controller", &config).await;
    assert!(message.contains("newer") && message.contains("core.sqlite"), "{message}");
    assert_eq!(fs::read(&database).unwrap(), before, "the database was changed");
    cluster.finish().await.unwrap();
}

/// Gives the database the version number of a program of the future.
fn pretend_newer(database: &Path) {
    let script = "import sqlite3, sys\n\
        db = sqlite3.connect(sys.argv[1])\n\
        db.execute('pragma user_version = 9000')\n\
        db.execute('pragma wal_checkpoint(truncate)')\n\
        db.commit()\n";
    let status = std::process::Command::new("python3").args(["-c", script]).arg(database).status().unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn unknown_key_of_a_configuration_is_named_with_file_and_line() {
    let cluster = Cluster::builder("unknown-key").process(vec!["/bin/true".into()]).prepare().unwrap();
    for name in ["controller", "hop-1", "node-1"] {
        let copy =
            copy_of(&cluster, name, |text| text.replacen("[mesh]\n", "[mesh]\ncolour = \"green\"\n", 1));
        let text = fs::read_to_string(&copy).unwrap();
        let line = text.lines().position(|line| line.starts_with("colour")).unwrap() + 1;
        let message = refuses_to_start(&cluster, name, &copy).await;
        let place = copy.display().to_string();
        assert!(message.contains(&place) && message.contains("colour"), "{name}: {message}");
        assert!(message.contains(&line.to_string()), "{name}: line {line} is not in: {message}");
    }
    cluster.finish().await.unwrap();
}

// ---------------------------------------------------------------- garbage

#[tokio::test]
async fn garbage_packets_and_bodies_change_nothing() {
    let replay = Replay::start("garbage", "ok-2-hosts", 4).await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for packet in garbage() {
        socket.send_to(&packet, ("127.0.0.1", replay.cluster.layout.mesh_port)).unwrap();
    }
    let api = replay.api();
    for body in [&b"{\"name\": "[..], b"\xff\xfe\x00garbage", b"[[[[[[[[", b"\"text\"", b""] {
        let answer = api.send_raw("organizations/", "application/json", body.to_vec()).await.unwrap();
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.is_object(), "no message: {answer:?}");
    }
    let malformed =
        api.send_raw("organizations/", "application/json", b"{\"name\": ".to_vec()).await.unwrap();
    let detail = malformed.body["detail"].as_str().unwrap();
    assert!(detail.starts_with("JSON parse error"), "{detail}");
    raw_http(api, b"\x16\x03\x01garbage that is no HTTP\r\n\r\n");

    // Nobody noticed.
    replay.open_gate().unwrap();
    assert_eq!(replay.successful(job).await.unwrap().len(), 18);
    let ping = replay.cluster.plexus_json("controller", &["ping", "node-1", "--count", "1"]).await.unwrap();
    assert_eq!(ping["node"], "node-1", "{ping}");
    replay.finish().await.unwrap();
}

/// Packets of every first byte, short and long, fixed so that a failure can be repeated.
fn garbage() -> Vec<Vec<u8>> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..=u8::MAX)
        .flat_map(|first| [1_usize, 21, 1200, 1452].map(|size| (first, size)))
        .map(|(first, size)| {
            let mut packet: Vec<u8> = (0..size).map(|_| next()).collect();
            packet[0] = first;
            packet
        })
        .collect()
}

fn raw_http(api: &Api, bytes: &[u8]) {
    use std::io::{Read as _, Write as _};
    let address = api.base().trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok();
}

// ---------------------------------------------------------------- helpers

fn socket(cluster: &Cluster, name: &str) -> String {
    cluster.layout.socket(name).display().to_string()
}

async fn plexus(cluster: &Cluster, args: &[&str]) -> (Option<i32>, String, String) {
    let output =
        tokio::process::Command::new(cluster.layout.binaries.cli()).args(args).output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A changed copy of a daemon's configuration.
fn copy_of(cluster: &Cluster, name: &str, change: impl FnOnce(&str) -> String) -> std::path::PathBuf {
    let text = fs::read_to_string(cluster.layout.config(name)).unwrap();
    let changed = change(&text);
    assert_ne!(changed, text, "the copy of {name}'s configuration is the same");
    let path = cluster.layout.dir.join("config").join(format!("{name}-changed.toml"));
    fs::write(&path, changed).unwrap();
    path
}

/// Starts a daemon with a configuration, expects it to end with an error, and gives what it said.
async fn refuses_to_start(cluster: &Cluster, name: &str, config: &Path) -> String {
    let binaries = &cluster.layout.binaries;
    let program = if name == "controller" { binaries.controller() } else { binaries.node() };
    let log = cluster.layout.log(&format!("{name}-refused"));
    let args: Vec<OsString> = vec!["run".into(), "--config".into(), config.into()];
    let mut daemon = Daemon::new(name, program, args, log);
    daemon.start().unwrap();
    let status = daemon.exited(REFUSAL).await.unwrap();
    assert!(!status.success(), "{name} started: {}", daemon.log());
    let message = daemon.log();
    assert!(!message.contains("panicked"), "{name} panicked: {message}");
    message
}

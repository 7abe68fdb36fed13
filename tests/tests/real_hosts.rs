//! Jobs in execution environments as they really are, on a host that is really reached: ssh by key, key with passphrase and
//! password, become with a password, vaults; and where the secrets of all that were to be found.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use plexus_tests::{Cluster, JobOptions, Loaded, Samples, demo_image, plain};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest job on a machine that also compiles.
const JOB: Duration = Duration::from_secs(300);
/// Made by the set-up, without a password of their own.
const USER: &str = "plexus-ssh";
const OTHER: &str = "plexus-become";

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A secret that occurs nowhere else.
fn secret(what: &str) -> String {
    let mut bytes = [0; 12];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("canary-{what}-{hex}")
}

/// An ssh server on loopback, with keys and passwords of its own, for two users of this machine.
struct Host {
    dir: TempDir,
    server: Child,
    port: u16,
    passwords: [String; 2],
    passphrase: String,
}

impl Host {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        run("chmod", &["755", &dir.path().display().to_string()]);
        let passphrase = secret("passphrase");
        for (name, words) in [("host", ""), ("plain", ""), ("locked", passphrase.as_str())] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", words, "-C", "test", "-f", &at(name)]);
        }
        let keys =
            fs::read_to_string(at("plain.pub")).unwrap() + &fs::read_to_string(at("locked.pub")).unwrap();
        fs::write(at("authorized"), keys).unwrap();
        let passwords = [secret("password"), secret("become")];
        set_passwords(&passwords);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPasswordAuthentication yes\n\
             KbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\nAllowUsers {USER}\n\
             Subsystem sftp internal-sftp\n",
            at("host"),
            at("authorized"),
        );
        fs::write(at("config"), config).unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        let server = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f", &at("config"), "-E", &at("log")])
            .stdin(Stdio::null())
            .spawn()
            .expect("the ssh server is installed by deploy/setup/setup.sh ssh");
        let host = Self { dir, server, port, passwords, passphrase };
        let give_up = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < give_up, "sshd does not answer: {}", host.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        host
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn key(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
        for user in [USER, OTHER] {
            Command::new("passwd").args(["--lock", "--quiet", user]).status().ok();
        }
    }
}

/// Through standard input: an argument would be a hit of the search below.
fn set_passwords(passwords: &[String; 2]) {
    let mut child = Command::new("chpasswd").stdin(Stdio::piped()).spawn().unwrap();
    let text = format!("{USER}:{}\n{OTHER}:{}\n", passwords[0], passwords[1]);
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

async fn environment(cluster: &Cluster, loaded: Loaded, image: &str) -> i64 {
    let body = json!({"name": image, "image": image, "organization": loaded.organization, "pull": "never"});
    cluster.api().create("execution_environments/", &body).await.unwrap()["id"].as_i64().unwrap()
}

async fn credential(cluster: &Cluster, loaded: Loaded, namespace: &str, name: &str, inputs: Value) -> i64 {
    let api = cluster.api();
    let kinds = api.get(&format!("credential_types/?namespace={namespace}")).await.unwrap();
    let kind = &kinds["results"][0]["id"];
    let body =
        json!({"name": name, "credential_type": kind, "organization": loaded.organization, "inputs": inputs});
    api.create("credentials/", &body).await.unwrap()["id"].as_i64().unwrap()
}

const EE_PLAYBOOK: &str = "
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: cat notes
      register: notes
    - ansible.builtin.copy:
        content: mine
        dest: '{{ playbook_dir }}/notes'
    - ansible.builtin.debug:
        msg: 'core {{ ansible_version.full }} read {{ notes.stdout }}'
";

fn ee_project(cluster: &Cluster) {
    let project = cluster.layout.projects().join("samples");
    fs::write(project.join("ee.yml"), EE_PLAYBOOK).unwrap();
    fs::write(project.join("notes"), "the project's").unwrap();
}

/// Runs the playbook in each image; each sees the project as it is, and may write into it.
async fn in_each(cluster: &Cluster, images: &[(&str, &str)]) {
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    ee_project(cluster);
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let inventory = samples.load_inventory(api, loaded, "two-hosts.ini").await.unwrap();
    let mut jobs = Vec::new();
    for (image, core) in images {
        let loaded = Loaded { environment: environment(cluster, loaded, image).await, ..loaded };
        let options = JobOptions::default();
        let template = samples.template(api, loaded, image, "ee.yml", inventory, &options).await.unwrap();
        let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
        jobs.push((image, core, job));
    }
    for (image, core, job) in jobs {
        let done = api.finished(job, JOB).await.unwrap();
        let output = plain(&api.stdout(job, "txt").await.unwrap());
        assert_eq!(done["status"], "successful", "{image}: {} {output}", done["job_explanation"]);
        assert!(output.contains(&format!("core {core} read the project's")), "{image}: {output}");
        assert!(done["image_digest"].as_str().unwrap_or_default().starts_with("sha256:"), "{image}: {done}");
    }
}

#[tokio::test]
async fn environments_as_they_really_are_run_jobs() {
    let cluster = Cluster::builder("ee-kinds").start().await.unwrap();
    let images = [
        ("localhost/plexus-ee:user", "2.19.14"),
        ("localhost/plexus-ee:init", "2.19.14"),
        ("localhost/plexus-ee:old", "2.14.18"),
    ];
    in_each(&cluster, &images).await;
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn environments_run_under_a_user_that_they_do_not_know() {
    let mut cluster = Cluster::builder("ee-uid").prepare().unwrap();
    let config = cluster.layout.config("node-1");
    let text = fs::read_to_string(&config).unwrap();
    let changed = text.replace("network = \"host\"\n", "network = \"host\"\nuser = \"4711:0\"\n");
    assert_ne!(changed, text);
    fs::write(&config, changed).unwrap();
    cluster.hop.start().unwrap();
    cluster.controller.start().unwrap();
    cluster.node.start().unwrap();
    cluster.api_up().await.unwrap();
    cluster.node_ready().await.unwrap();
    in_each(&cluster, &[("localhost/plexus-ee:init", "2.19.14"), ("localhost/plexus-ee:user", "2.19.14")])
        .await;
    cluster.finish().await.unwrap();
}

const HOST_PLAYBOOK: &str = "
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: id -un
      register: me
    - ansible.builtin.debug:
        msg: 'reached as {{ me.stdout }}'
";

const VAULT_PLAYBOOK: &str = "
- hosts: localhost
  connection: local
  gather_facts: false
  vars_files: [secret-default.yml, secret-dev.yml]
  tasks:
    - ansible.builtin.debug:
        msg: 'opened {{ of_default | length }} and {{ of_dev | length }}'
";

/// Encrypts a file for the project in the execution environment.
fn encrypt(project: &Path, name: &str, text: &str, id: &str, password: &str) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(dir.path().join("password"), password).unwrap();
    fs::write(dir.path().join("file"), text).unwrap();
    let mount = format!("{}:/work", dir.path().display());
    let id = format!("{id}@/work/password");
    let image = demo_image();
    let words = ["run", "--rm", "--network", "none", "-v", &mount, &image, "ansible-vault", "encrypt"];
    run(
        "podman",
        &[
            &words[..],
            &["--encrypt-vault-id", id.split('@').next().unwrap(), "--vault-id", &id, "/work/file"],
        ]
        .concat(),
    );
    fs::copy(dir.path().join("file"), project.join(name)).unwrap();
}

#[tokio::test]
async fn real_hosts_and_vaults_are_reached_and_no_secret_is_found_anywhere() {
    let host = Host::start();
    let cluster = Cluster::builder("real-hosts").start().await.unwrap();
    let capture = cluster.layout.dir.join("capture.pcap");
    let mut tcpdump = Command::new("tcpdump")
        .args(["-i", "lo", "-U", "-q", "-w", &capture.display().to_string()])
        .args(["udp", "or", "tcp", "port", &cluster.layout.mesh_port.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let project = cluster.layout.projects().join("samples");
    fs::write(project.join("host.yml"), HOST_PLAYBOOK).unwrap();
    fs::write(project.join("vaults.yml"), VAULT_PLAYBOOK).unwrap();
    let (vault, dev) = (secret("vault"), secret("vault-dev"));
    encrypt(&project, "secret-default.yml", "of_default: abc\n", "default", &vault);
    encrypt(&project, "secret-dev.yml", "of_dev: abcdef\n", "dev", &dev);

    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();
    let body = json!({"name": "real", "organization": loaded.organization});
    let inventory = api.create("inventories/", &body).await.unwrap()["id"].as_i64().unwrap();
    let extra = secret("extra");
    let variables = json!({
        "ansible_host": "127.0.0.1",
        "ansible_port": host.port,
        "ansible_python_interpreter": "/usr/bin/python3",
        "token_of_host": extra,
    });
    let body = json!({"name": "real-1", "inventory": inventory, "variables": variables.to_string()});
    api.create("hosts/", &body).await.unwrap();

    let ssh = |name: &'static str, inputs: Value| credential(&cluster, loaded, "ssh", name, inputs);
    let key = ssh("key", json!({"username": USER, "ssh_key_data": host.key("plain")})).await;
    let locked =
        json!({"username": USER, "ssh_key_data": host.key("locked"), "ssh_key_unlock": host.passphrase});
    let locked = ssh("locked key", locked).await;
    let password = ssh("password", json!({"username": USER, "password": host.passwords[0]})).await;
    let r#become = json!({
        "username": USER, "password": host.passwords[0],
        "become_method": "su", "become_username": OTHER, "become_password": host.passwords[1],
    });
    let r#become = ssh("become", r#become).await;
    let vault_one = credential(&cluster, loaded, "vault", "vault", json!({"vault_password": vault})).await;
    let inputs = json!({"vault_password": dev, "vault_id": "dev"});
    let vault_two = credential(&cluster, loaded, "vault", "vault dev", inputs).await;

    let cases: [(&str, &str, &[i64], bool, &str); 5] = [
        ("key", "host.yml", &[key], false, "reached as plexus-ssh"),
        ("locked key", "host.yml", &[locked], false, "reached as plexus-ssh"),
        ("password", "host.yml", &[password], false, "reached as plexus-ssh"),
        ("become", "host.yml", &[r#become], true, "reached as plexus-become"),
        ("vaults", "vaults.yml", &[vault_one, vault_two], false, "opened 3 and 6"),
    ];
    let mut jobs = Vec::new();
    for (name, playbook, credentials, is_become, words) in cases {
        let options = JobOptions::default();
        let template = samples.template(api, loaded, name, playbook, inventory, &options).await.unwrap();
        if is_become {
            let path = format!("job_templates/{template}/");
            let body = json!({"become_enabled": true});
            let answer = api.send(reqwest::Method::PATCH, &path, Some(&body)).await.unwrap();
            assert_eq!(answer.status, 200, "{:?}", answer.body);
        }
        for credential in credentials {
            let path = format!("job_templates/{template}/credentials/");
            api.post(&path, &json!({"id": credential})).await.unwrap();
        }
        let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
        jobs.push((name, job, words));
    }

    let key_line = |name: &str| host.key(name).lines().nth(2).unwrap().to_owned();
    let mut secrets = vec![host.passphrase.clone(), vault, dev, key_line("plain"), key_line("locked")];
    secrets.extend(host.passwords.clone());
    let mut hits = BTreeSet::new();
    for (name, job, words) in jobs {
        // While it runs: command lines of everybody, and the environment of all but the job's own processes.
        let done = loop {
            look_at_processes(&secrets, &mut hits);
            let job = api.job(job).await.unwrap();
            if job["event_processing_finished"] == json!(true) {
                break job;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let output = plain(&api.stdout(job, "txt").await.unwrap());
        assert_eq!(
            done["status"],
            "successful",
            "{name}: {} {output} {}",
            done["job_explanation"],
            host.log()
        );
        assert!(output.contains(words), "{name}: {output}");
        let shown = done.to_string() + &output;
        assert!(!secrets.iter().any(|secret| shown.contains(secret)), "{name}: a secret is shown");
    }
    cluster.clean().await.unwrap();
    look_at_memory(cluster.hop.pid().unwrap(), &secrets, &mut hits);
    run("kill", &["-INT", &tcpdump.id().to_string()]);
    tcpdump.wait().unwrap();
    assert!(fs::metadata(&capture).unwrap().len() > 10_000, "packets were captured");
    // Everything on disk: data, logs, configuration, captured packets; and what is left on tmpfs.
    secrets.push(extra);
    for dir in [&cluster.layout.dir, &cluster.layout.runtime_dir] {
        look_at_files(dir, &secrets, &mut hits);
    }
    // The variables of a host lie in the database as people wrote them: they are no secrets there.
    hits.retain(|hit| !(hit.contains("canary-extra") && hit.contains("data/controller")));
    assert_eq!(hits, BTreeSet::new());
    cluster.finish().await.unwrap();
}

fn note(place: &str, content: &[u8], secrets: &[String], hits: &mut BTreeSet<String>) {
    for secret in secrets {
        if content.windows(secret.len()).any(|part| part == secret.as_bytes()) {
            let start: String = secret.chars().take(12).collect();
            hits.insert(format!("{start}… in {place}"));
        }
    }
}

fn look_at_processes(secrets: &[String], hits: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.parse::<u32>().is_err() {
            continue;
        }
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        for part in ["cmdline", "environ"] {
            let content = fs::read(entry.path().join(part)).unwrap_or_default();
            note(&format!("{part} of {}", name.trim()), &content, secrets, hits);
        }
    }
}

fn look_at_files(dir: &Path, secrets: &[String], hits: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => look_at_files(&path, secrets, hits),
            Ok(kind) if kind.is_file() => {
                note(&path.display().to_string(), &fs::read(&path).unwrap_or_default(), secrets, hits);
            }
            _ => {}
        }
    }
}

/// All that a process has in memory.
fn look_at_memory(pid: u32, secrets: &[String], hits: &mut BTreeSet<String>) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut looked_at = 0;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        if !rest.starts_with("rw") || to - from > 1 << 30 || memory.seek(SeekFrom::Start(from)).is_err() {
            continue;
        }
        let mut content = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact(&mut content).is_ok() {
            looked_at += content.len();
            note("memory of the hop", &content, secrets, hits);
        }
    }
    assert!(looked_at > 1 << 20, "the hop's memory could be read");
}

//! Jobs that reach a real ssh server with every kind of secret, and where those secrets must never be found.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use plexus_tests::{
    Api, Cluster, Recap, ReservedPort, Samples, Seen, demo_image, found_in_files, podman_command, wait_for,
};
use serde_json::{Value, json};

const JOB: Duration = Duration::from_secs(180);
/// Users that the set-up made, without a password.
const LOGIN: &str = "plexus-ssh";
const BECOME: &str = "plexus-become";
/// Secrets, each found nowhere else in the world.
const PASSWORD: &str = "canary-login-7d1f0c5e";
const BECOME_PASSWORD: &str = "canary-become-93b2a8f1";
const PASSPHRASE: &str = "canary-passphrase-c46e2d70";
const VAULT: &str = "canary-vault-1e8b5a39";
const OTHER_VAULT: &str = "canary-other-vault-b7f20d64";
const VALUE: &str = "canary-value-5520fe1b";

const PLAYBOOK: &str = "
- hosts: all
  gather_facts: false
  vars_files:
    - \"{{ first | default('empty.yml') }}\"
    - \"{{ second | default('empty.yml') }}\"
  tasks:
    - command: id -un
      register: who
      changed_when: false
    - assert:
        that:
          - who.stdout == expected
          - first is not defined or secret | hash('sha256') == digest
      no_log: true
";

/// The same, and then it stays there: everything that a job may hold is in its memory.
const HOLD: &str = "
- hosts: all
  gather_facts: false
  vars_files: [one.yml]
  tasks:
    - debug:
        msg: holding {{ secret | length }}
    - command: sleep 600
";

/// The users' passwords, and who may look at all processes, are the machine's: one test at a time.
static MACHINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// An ssh server on loopback, and passwords for the two users for as long as it lives.
struct Host {
    dir: tempfile::TempDir,
    port: ReservedPort,
    server: Child,
}

impl Host {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("no folder")?;
        // The server reads keys as the user who logs in.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))
            .context("cannot open the folder")?;
        fs::create_dir_all("/run/sshd").context("cannot make the folder of the server")?;
        let at = |name: &str| dir.path().join(name);
        let mut public = String::new();
        for (name, passphrase) in [("host", ""), ("plain", ""), ("locked", PASSPHRASE)] {
            run(
                "ssh-keygen",
                &["-q", "-t", "ed25519", "-N", passphrase, "-f", &at(name).display().to_string()],
            )?;
            public += &fs::read_to_string(at(&format!("{name}.pub"))).context("no public key")?;
        }
        fs::write(at("authorized"), public).context("cannot write keys")?;
        let port = ReservedPort::new()?;
        let config = format!(
            "Port {}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM yes\n\
             PasswordAuthentication yes\nKbdInteractiveAuthentication no\nAllowUsers {LOGIN}\n",
            port.port(),
            at("host").display(),
            at("authorized").display()
        );
        fs::write(at("config"), config).context("cannot write the configuration")?;
        set_password(LOGIN, Some(PASSWORD))?;
        set_password(BECOME, Some(BECOME_PASSWORD))?;
        let server = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(at("config"))
            .stderr(fs::File::create(at("log")).context("no log")?)
            .spawn()
            .context("cannot start the ssh server; deploy/setup/setup.sh ssh installs it")?;
        Ok(Self { dir, port, server })
    }

    fn key(&self, name: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.dir.path().join(name)).context("no key")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
        for user in [LOGIN, BECOME] {
            if let Err(error) = set_password(user, None) {
                eprintln!("{user} keeps a password: {error:#}");
            }
        }
    }
}

fn set_password(user: &str, password: Option<&str>) -> anyhow::Result<()> {
    let Some(password) = password else { return run("usermod", &["--lock", user]).map(drop) };
    let mut child = Command::new("chpasswd").stdin(Stdio::piped()).spawn().context("cannot run chpasswd")?;
    let mut input = child.stdin.take().context("no input")?;
    writeln!(input, "{user}:{password}").context("chpasswd reads nothing")?;
    drop(input);
    ensure!(child.wait().context("chpasswd is lost")?.success(), "chpasswd failed");
    Ok(())
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {} failed: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A project with a playbook and encrypted variables, an inventory with the real host, and a template for them.
struct Stage {
    template: Value,
    organization: i64,
}

impl Stage {
    async fn load(cluster: &Cluster, host: &Host) -> anyhow::Result<Self> {
        let samples = Samples::new(&demo_image())?;
        samples.copy_project(&cluster.layout.projects())?;
        let api = cluster.api();
        let loaded = samples.load(api).await?;
        let project = api.get(&format!("projects/{}/", loaded.project)).await?;
        let root = cluster.layout.projects().join(project["local_path"].as_str().context("no path")?);
        fs::write(root.join("reach.yml"), PLAYBOOK).context("cannot write the playbook")?;
        fs::write(root.join("hold.yml"), HOLD).context("cannot write the playbook")?;
        fs::write(root.join("empty.yml"), "{}\n").context("cannot write")?;
        let (one, other) = (format!("secret: {VALUE}\n"), "other: 1\n".to_owned());
        fs::write(root.join("one.yml"), encrypted("default", VAULT, &one)?).context("cannot write")?;
        fs::write(root.join("dev.yml"), encrypted("dev", VAULT, &one)?).context("cannot write")?;
        fs::write(root.join("prod.yml"), encrypted("prod", OTHER_VAULT, &other)?).context("cannot write")?;
        let body = json!({"name": "real", "organization": loaded.organization});
        let inventory = id(&api.create("inventories/", &body).await?)?;
        // A user without rights becomes another one: files must be readable for both.
        let variables = json!({
            "ansible_host": "127.0.0.1", "ansible_port": host.port.port(),
            "ansible_shell_allow_world_readable_temp": true,
        });
        let body = json!({"name": "real1", "inventory": inventory, "variables": variables.to_string()});
        api.create("hosts/", &body).await?;
        let template = json!({
            "job_type": "run", "inventory": inventory, "project": loaded.project,
            "execution_environment": loaded.environment,
        });
        Ok(Self { template, organization: loaded.organization })
    }

    /// Launches the playbook with credentials of these types and inputs.
    async fn launch(
        &self,
        api: &Api,
        name: &str,
        playbook: &str,
        credentials: &[(&str, Value)],
        variables: Value,
        r#become: bool,
    ) -> anyhow::Result<i64> {
        let mut template = self.template.clone();
        template["name"] = json!(name);
        template["playbook"] = json!(playbook);
        template["extra_vars"] = json!(variables.to_string());
        template["become_enabled"] = json!(r#become);
        let template = id(&api.create("job_templates/", &template).await?)?;
        for (number, (namespace, inputs)) in credentials.iter().enumerate() {
            let kind = api.get(&format!("credential_types/?namespace={namespace}")).await?;
            let body = json!({
                "name": format!("{name} {number}"), "organization": self.organization,
                "credential_type": kind["results"][0]["id"], "inputs": inputs,
            });
            let credential = id(&api.create("credentials/", &body).await?)?;
            api.post(&format!("job_templates/{template}/credentials/"), &json!({"id": credential})).await?;
        }
        id(&api.launch(template, &json!({})).await?)
    }
}

fn id(object: &Value) -> anyhow::Result<i64> {
    object["id"].as_i64().with_context(|| format!("no id in {object}"))
}

/// Encrypts as `ansible-vault` does, by it.
fn encrypted(label: &str, password: &str, text: &str) -> anyhow::Result<String> {
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let script = "read -r password; printf %s \"$password\" >/tmp/p; \
                  ansible-vault encrypt --vault-id \"$1@/tmp/p\" --encrypt-vault-id \"$1\" --output - -";
    let mut child = Command::new(program)
        .args(first)
        .args(["run", "--rm", "-i", "--network", "none", &demo_image(), "sh", "-c", script, "sh", label])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run podman")?;
    let mut input = child.stdin.take().context("no input")?;
    write!(input, "{password}\n{text}").context("podman reads nothing")?;
    drop(input);
    let output = child.wait_with_output().context("podman is lost")?;
    ensure!(output.status.success(), "ansible-vault: {}", String::from_utf8_lossy(&output.stderr).trim());
    String::from_utf8(output.stdout).context("ansible-vault printed no text")
}

/// What must be found nowhere: every secret, and the middle of each private key.
fn canaries(host: &Host) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut canaries: Vec<Vec<u8>> = [PASSWORD, BECOME_PASSWORD, PASSPHRASE, VAULT, OTHER_VAULT, VALUE]
        .map(|text| text.as_bytes().to_vec())
        .to_vec();
    for name in ["plain", "locked"] {
        let key = host.key(name)?;
        canaries.push(key.lines().nth(3).context("a key is short")?.as_bytes().to_vec());
    }
    Ok(canaries)
}

fn holds(bytes: &[u8], canary: &[u8]) -> bool {
    memchr::memmem::find(bytes, canary).is_some()
}

/// Arguments and environments of all processes, those of the workers too.
fn found_in_processes(canaries: &[Vec<u8>], found: &mut Vec<String>) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        for file in ["cmdline", "environ"] {
            let Ok(words) = fs::read(entry.path().join(file)) else { continue };
            if let Some(canary) = canaries.iter().find(|canary| holds(&words, canary)) {
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                found.push(format!("{} in {file} {words:?}", String::from_utf8_lossy(canary)));
            }
        }
    }
}

/// Looks at arguments and environments of all processes over and over: one that lives for a moment is met as well.
struct Watch {
    stop: Arc<AtomicBool>,
    looks: JoinHandle<(usize, Vec<String>)>,
}

impl Watch {
    fn start(canaries: &[Vec<u8>]) -> Self {
        let (stop, canaries) = (Arc::new(AtomicBool::new(false)), canaries.to_vec());
        let stopped = stop.clone();
        let looks = std::thread::spawn(move || {
            let (mut looks, mut found) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                found_in_processes(&canaries, &mut found);
                looks += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            (looks, found)
        });
        Self { stop, looks }
    }

    /// What it has found.
    fn end(self) -> anyhow::Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let Ok((looks, mut found)) = self.looks.join() else { bail!("the watch is lost") };
        println!("{looks} looks at all processes");
        found.sort();
        found.dedup();
        Ok(found)
    }
}

/// Files in which podman keeps what it knows of containers, and what the live ones have written in themselves. Layers of
/// images are left out: no job writes there.
fn found_in_containers(canaries: &[Vec<u8>], found: &mut Vec<String>) -> anyhow::Result<()> {
    let command = podman_command();
    let (program, first) = command.split_first().context("no podman command")?;
    let podman = |args: &[&str]| {
        let first: Vec<&str> = first.iter().map(String::as_str).collect();
        run(program, &[&first, args].concat())
    };
    let roots = podman(&["info", "--format", "{{.Store.GraphRoot}} {{.Store.RunRoot}}"])?;
    let (disk, memory) = roots.trim().split_once(' ').context("podman stores nowhere")?;
    found.extend(found_in_files(Path::new(memory), canaries));
    for entry in fs::read_dir(disk).context("no store")?.flatten() {
        if entry.file_name() == "overlay" {
            continue;
        }
        found.extend(found_in_files(&entry.path(), canaries));
    }
    let ids = podman(&["ps", "--quiet", "--no-trunc", "--filter", "label=plexus.unit"])?;
    ensure!(ids.lines().next().is_some(), "no job's container lives");
    for id in ids.lines() {
        let format = "{{.GraphDriver.Data.UpperDir}}\n{{.StaticDir}}";
        let folders = podman(&["inspect", "--format", format, id])?;
        for folder in folders.lines() {
            ensure!(Path::new(folder).is_dir(), "{folder:?} of {id} is no folder");
            found.extend(found_in_files(Path::new(folder), canaries));
        }
    }
    Ok(())
}

/// Everything in a process's memory that it may write.
fn memory(pid: u32) -> anyhow::Result<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("no map of memory")?;
    let memory = fs::File::open(format!("/proc/{pid}/mem")).context("no memory")?;
    let mut all = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw")))
    {
        let (from, to) =
            line.split(' ').next().and_then(|range| range.split_once('-')).context("no range")?;
        let (from, to) = (u64::from_str_radix(from, 16)?, u64::from_str_radix(to, 16)?);
        let mut part = vec![0; usize::try_from(to - from)?];
        if memory.read_exact_at(&mut part, from).is_ok() {
            all.extend_from_slice(&part);
        }
    }
    Ok(all)
}

/// A `tcpdump` of what goes to and from the hop's port on loopback by UDP: every packet between controller, hop and node. Not
/// in it: ssh itself, which is the real host's own business, and the API, whose clients have the secrets.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    async fn start(cluster: &Cluster, dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("packets");
        let log = dir.join("tcpdump");
        let child = Command::new("tcpdump")
            .args(["-i", "lo", "-U", "-s", "0", "-Z", "root", "-B", "65536", "-w"])
            .arg(&file)
            .args(["udp", "port", &cluster.layout.mesh_port.to_string()])
            .stderr(fs::File::create(&log).context("no log")?)
            .spawn()
            .context("cannot start tcpdump; deploy/setup/setup.sh ssh installs it")?;
        wait_for("tcpdump to listen", JOB, async || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            Seen::when(said.contains("listening on"), || said.clone())
        })
        .await?;
        Ok(Self { child, file })
    }

    fn packets(mut self) -> anyhow::Result<Vec<u8>> {
        run("kill", &[&self.child.id().to_string()])?;
        self.child.wait().context("tcpdump is lost")?;
        fs::read(&self.file).context("no packets")
    }
}

#[tokio::test]
async fn every_way_to_a_real_host_works_and_no_secret_is_found_anywhere() {
    let _alone = MACHINE.lock().await;
    let host = Host::start().unwrap();
    let cluster = Cluster::builder("real-hosts").start().await.unwrap();
    let stage = Stage::load(&cluster, &host).await.unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let capture = Capture::start(&cluster, scratch.path()).await.unwrap();
    let user = |more: Value| {
        let mut inputs = json!({"username": LOGIN});
        inputs.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("ssh", inputs)
    };
    let plain = || user(json!({"ssh_key_data": host.key("plain").unwrap()}));
    let vault = |id: &str, password: &str| ("vault", json!({"vault_id": id, "vault_password": password}));
    let is = |who: &str| json!({"expected": who});
    let digest = run("sh", &["-c", &format!("printf %s {VALUE} | sha256sum")]).unwrap();
    let digest = digest.split(' ').next().unwrap().to_owned();
    let opens = |first: &str, second: &str| json!({"expected": LOGIN, "first": first, "second": second, "digest": digest});
    let become_other = user(json!({
        "password": PASSWORD, "become_method": "su", "become_username": BECOME, "become_password": BECOME_PASSWORD,
    }));
    let locked = json!({"ssh_key_data": host.key("locked").unwrap(), "ssh_key_unlock": PASSPHRASE});
    let cases = [
        ("key", vec![plain()], is(LOGIN), false),
        ("key with passphrase", vec![user(locked)], is(LOGIN), false),
        ("password", vec![user(json!({"password": PASSWORD}))], is(LOGIN), false),
        ("become with password", vec![become_other], is(BECOME), true),
        ("vault", vec![plain(), vault("", VAULT)], opens("one.yml", "empty.yml"), false),
        (
            "vaults with ids",
            vec![plain(), vault("dev", VAULT), vault("prod", OTHER_VAULT)],
            opens("dev.yml", "prod.yml"),
            false,
        ),
    ];
    let canaries = canaries(&host).unwrap();
    let watch = Watch::start(&canaries);
    let mut jobs = Vec::new();
    for (name, credentials, variables, r#become) in cases {
        let job =
            stage.launch(cluster.api(), name, "reach.yml", &credentials, variables, r#become).await.unwrap();
        jobs.push((name, job));
    }
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for (name, job) in jobs {
        // The jobs behind it still run.
        found.extend(found_in_files(&cluster.layout.dir, &canaries));
        let done = cluster.api().finished(job, JOB).await.unwrap();
        let output = cluster.api().stdout(job, "txt").await.unwrap();
        if done["status"] != "successful" || Recap::parse(&output) != Recap::expected("real1: ok=2") {
            wrong.push(format!("{name}: {} {}\n{output}", done["status"], done["job_explanation"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    found.extend(watch.end().unwrap());
    let packets = capture.packets().unwrap();
    assert!(packets.len() > 50_000, "the jobs went by here: {} bytes", packets.len());
    let hop = memory(cluster.hop.pid().unwrap()).unwrap();
    assert!(holds(&hop, b"hop-1"), "this is its memory");
    for canary in &canaries {
        for (place, bytes) in [("the packets", &packets), ("the hop's memory", &hop)] {
            if holds(bytes, canary) {
                found.push(format!("{} in {place}", String::from_utf8_lossy(canary)));
            }
        }
    }
    // A job's private directory goes with its unit, a moment after its end is shown.
    cluster.clean().await.unwrap();
    found.extend(cluster.found_in_files(&canaries));
    assert!(found.is_empty(), "{}", found.join("\n"));
    cluster.finish().await.unwrap();
}

#[tokio::test]
async fn secrets_of_a_node_that_was_killed_are_on_no_disk_and_go_from_memory() {
    let _alone = MACHINE.lock().await;
    let host = Host::start().unwrap();
    let mut cluster = Cluster::builder("killed").start().await.unwrap();
    let stage = Stage::load(&cluster, &host).await.unwrap();
    let canaries = canaries(&host).unwrap();
    let api = cluster.api().clone();
    let watch = Watch::start(&canaries);
    let locked = json!({
        "username": LOGIN, "ssh_key_data": host.key("locked").unwrap(), "ssh_key_unlock": PASSPHRASE,
        "become_password": BECOME_PASSWORD,
    });
    let credentials = [("ssh", locked), ("vault", json!({"vault_id": "", "vault_password": VAULT}))];
    let job = stage.launch(&api, "hold", "hold.yml", &credentials, json!({}), false).await.unwrap();
    wait_for("the job to hold", JOB, async || match api.stdout(job, "txt").await {
        Ok(text) => Seen::when(text.contains("holding") && text.contains("TASK [command]"), || text.clone()),
        Err(error) => Seen::NotYet(format!("{error:#}")),
    })
    .await
    .unwrap();
    let search = |cluster: &Cluster| {
        let mut found = found_in_files(&cluster.layout.dir, &canaries);
        found_in_processes(&canaries, &mut found);
        found
    };
    let in_containers = || {
        let mut found = Vec::new();
        found_in_containers(&canaries, &mut found).unwrap();
        found
    };
    assert_eq!([search(&cluster), in_containers()].concat(), [""; 0], "in mid-job");

    cluster.node.kill();
    kill_shims(&cluster.layout.runtime_dir).unwrap();
    assert_eq!([search(&cluster), in_containers()].concat(), [""; 0], "as the node lies there");
    cluster.node.start().unwrap();
    let done = api.finished(job, JOB).await.unwrap();
    assert_eq!(done["status"], "error", "{done}");
    cluster.clean().await.unwrap();
    let mut found = search(&cluster);
    found.extend(found_in_files(&cluster.layout.runtime_dir, &canaries));
    assert_eq!(found, [""; 0], "when the node has cleaned up");
    assert_eq!(watch.end().unwrap(), [""; 0], "at any time");
    cluster.finish().await.unwrap();
}

/// Kills every shim below `dir`.
fn kill_shims(dir: &Path) -> anyhow::Result<()> {
    let mut killed = 0;
    for entry in fs::read_dir("/proc").context("no processes")?.flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_shim = words.split(|&byte| byte == 0).nth(1) == Some(b"shim");
        let below = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        if is_shim && below {
            run("kill", &["-9", &entry.file_name().to_string_lossy()])?;
            killed += 1;
        }
    }
    if killed == 0 {
        bail!("no shim lives below {}", dir.display());
    }
    Ok(())
}

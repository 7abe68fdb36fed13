//! One suite over every runtime: what a unit may expect, wherever it runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::registry::run;
use common::*;
use plexus_mesh::local::Action;
use plexus_node::config::{ContainerSection, RuntimeName, WarmSection};
use plexus_node::supervisor::Supervisor;
use plexus_proto::work::*;

const TINY: &str = "localhost/plexus-tiny:2";
/// Names this test as it runs under another user.
const AS_USER: &str = "PLEXUS_TEST_AS_USER";

/// A unit in the image whose worker is the script that it brings.
fn script(script: &str) -> Job {
    let mut job = Job::script(script);
    job.spec.image = TINY.to_owned();
    job
}

async fn output(node: &Supervisor, job: &Job) -> (String, Finished) {
    let mut records = job.run(node).await;
    let outcome = records.take_all().await;
    (records.stdout(), outcome)
}

/// What holds for every runtime.
async fn conformance(place: &Place) {
    let node = place.start().await;
    let is_process = place.work.runtime == RuntimeName::Process;

    // Input, output, errors apart, exit code.
    let mut records = script("cat; echo oops >&2; exit 3").run(&node).await;
    let outcome = records.take_all().await;
    assert_eq!(records.stdout(), "{\"kwargs\":{}}\n{\"eof\":true}\n");
    assert_eq!(records.bytes(Stream::Stderr), b"oops\n");
    if tells_exit_codes(place) {
        assert_eq!((outcome.outcome(), outcome.exit_code), (Outcome::Failed, Some(3)), "{outcome:?}");
    }

    // Project, private files, environment; both may be written to, and no unit sees another's.
    for _ in 0..2 {
        let mut job = script(
            "cat \"$R/project/roles/a.yml\" \"$R/env/settings\"; echo \"$PLAIN $SECRET\"; echo new >\"$R/project/new\" && echo \
             x >\"$R/artifacts/x\"; echo more >>\"$R/project/roles/a.yml\"; ls \"$R/project\"",
        )
        .with_tree(&[("roles/", 0o755, b""), ("roles/a.yml", 0o644, b"a\n"), ("link@", 0, b"roles")]);
        job.files.push(private_file("env/settings", "settings\n"));
        job.env.push(("SECRET".to_owned(), "it's $a \"canary\"".to_owned()));
        let root = if is_process { place.runtime_dir(job.attempt).join("private") } else { "/runner".into() };
        job.spec.env =
            [("R".to_owned(), root.display().to_string()), ("PLAIN".to_owned(), "plain".to_owned())].into();
        let (text, outcome) = output(&node, &job).await;
        assert_eq!(text, "a\nsettings\nplain it's $a \"canary\"\nlink\nnew\nroles\n", "{outcome:?}");
    }

    // A cancel is heard, and what does not listen is killed, daemons included.
    let mut job = script("trap 'echo heard; exit 7' TERM; echo up; while :; do sleep 0.1; done");
    job.spec.grace_seconds = 30;
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("up").await;
    job.cancel(&node).await;
    let outcome = records.take_all().await;
    if tells_exit_codes(place) {
        assert!(records.stdout().contains("heard"));
        assert_eq!(outcome.outcome(), Outcome::Canceled, "{outcome:?}");
    }

    let nap = nap(place);
    let mut job =
        script(&format!("trap '' TERM; (trap '' TERM; setsid {nap} >/dev/null 2>&1 &); echo up; {nap}"));
    job.spec.grace_seconds = 1;
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("up").await;
    job.cancel(&node).await;
    let outcome = records.take_all().await;
    if tells_exit_codes(place) {
        assert_eq!(outcome.outcome(), Outcome::Canceled, "{outcome:?}");
    }
    wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;

    // One that has not begun has nothing to end in order: it is not waited for.
    let mut job = script(&format!("trap '' TERM; {nap}"));
    job.spec.grace_seconds = 3600;
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    if place.work.runtime == RuntimeName::Docker {
        // Podman behind docker's client, hung up on while it makes a container, keeps one that it cannot list any more.
        wait_for(|| async { sleepers(&nap) }, |count| *count > 0).await;
    }
    job.cancel(&node).await;
    let outcome = records.take_all().await;
    assert_eq!(outcome.outcome(), Outcome::Canceled, "{outcome:?}");
    wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;

    // A dead shim: the unit is lost, and what ran is ended. Only root can see which process is the shim.
    if std::env::var_os(AS_USER).is_none() {
        let job = script(&format!("echo up; {nap}"));
        job.start(&node).await;
        let mut records = job.attach(&node, 1).await;
        records.until_output("up").await;
        run("kill", &["-9", &place.shim_pid(job.attempt).to_string()]);
        assert_eq!(records.take_all().await.outcome(), Outcome::Lost);
        wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;
    }

    // The engine's client is killed: what it ran is ended by name, and the end is not known.
    if !is_process {
        let job = script(&format!("echo up; {nap}"));
        job.start(&node).await;
        let mut records = job.attach(&node, 1).await;
        records.until_output("up").await;
        run("kill", &["-9", &running_pid(&job.status(&node).await.unwrap())]);
        let outcome = records.take_all().await;
        assert_eq!(outcome.outcome(), Outcome::Lost, "{outcome:?}");
        assert!(outcome.reason.contains("client was killed by signal 9"), "{outcome:?}");
        wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;
    }

    // Podman's `conmon` is killed: its client would wait for ever.
    if place.work.runtime == RuntimeName::Podman && std::env::var_os(AS_USER).is_none() {
        let job = script(&format!("echo up; {nap}"));
        job.start(&node).await;
        let mut records = job.attach(&node, 1).await;
        records.until_output("up").await;
        run("pkill", &["-9", "-x", "-P", &place.shim_pid(job.attempt).to_string(), "conmon"]);
        let outcome = records.take_all().await;
        assert_eq!(outcome.outcome(), Outcome::Lost, "{outcome:?}");
        assert!(outcome.reason.contains("of the container engine that stood between"), "{outcome:?}");
        wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;
    }

    all_removed(&node, place).await;
    node.shutdown().await;
}

/// The reaper removes what is left, in several goes where an engine was still about to make it.
async fn all_removed(node: &Supervisor, place: &Place) {
    let reaped = || async {
        node.reap().await;
        left(place)
    };
    wait_for(reaped, BTreeSet::is_empty).await;
}

/// The engine's daemon dies: its client says so, the unit is lost, and what ran on is ended once the engine is back.
async fn daemon_dies(place: &Place, service: Service, address: &str) -> Service {
    let node = place.start().await;
    let nap = nap(place);
    let job = script(&format!("echo up; {nap}"));
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("up").await;
    drop(service);
    let outcome = records.take_all().await;
    assert_eq!(outcome.outcome(), Outcome::Lost, "{outcome:?}");
    assert!(outcome.reason.contains("the container engine lost the container"), "{outcome:?}");
    let service = Service::start(address);
    all_removed(&node, place).await;
    wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;
    node.shutdown().await;
    service
}

fn running_pid(status: &UnitStatus) -> String {
    match status.state.as_ref().unwrap() {
        UnitStatusState::Running(running) => running.pid.to_string(),
        other => panic!("not running: {other:?}"),
    }
}

/// Podman 4.3 says 0 for every container that it ran for the docker client or, after a signal, without root. A job does
/// not depend on it: its end is what the runner says.
fn tells_exit_codes(place: &Place) -> bool {
    place.work.runtime != RuntimeName::Docker && std::env::var_os(AS_USER).is_none()
}

/// A container that waited is, once taken, as any other; one that nobody takes leaves nothing.
async fn waiting(place: &mut Place) {
    let entry = |organization: &str| WarmSection {
        image: TINY.to_owned(),
        organization: organization.to_owned(),
        count: 1,
    };
    place.work.warm = vec![entry("7")];
    let node = place.start().await;
    let of_7 = |mut job: Job| {
        job.spec.organization = "7".to_owned();
        job
    };

    // Input, output, errors apart, exit code, project, private files.
    let first = one_waiting(&node).await;
    let mut job = of_7(script(
        "cat; cd /runner; cat project/roles/a.yml env/settings; echo new >project/new && echo x >artifacts/x; echo more \
         >>project/roles/a.yml; ls project; echo oops >&2; exit 3",
    ))
    .with_tree(&[("roles/", 0o755, b""), ("roles/a.yml", 0o644, b"a\n"), ("link@", 0, b"roles")]);
    job.files.push(private_file("env/settings", "settings\n"));
    let mut records = job.run(&node).await;
    let outcome = records.outcome();
    let expected = "{\"kwargs\":{}}\n{\"eof\":true}\na\nsettings\nlink\nnew\nroles\n";
    assert_eq!(records.stdout(), expected, "{outcome:?}");
    assert_eq!(records.bytes(Stream::Stderr), b"oops\n");
    if tells_exit_codes(place) {
        assert_eq!((outcome.outcome(), outcome.exit_code), (Outcome::Failed, Some(3)), "{outcome:?}");
    }
    assert_eq!(taken(place, &job), std::slice::from_ref(&first));
    records.ack_all().await;

    // None is used twice, and what it does not fit leaves it alone: another organization, environment.
    let second = one_waiting(&node).await;
    assert_ne!(first, second);
    let other = script("echo other");
    assert_eq!(output(&node, &other).await.0, "other\n");
    let mut with_env = of_7(script("echo $PLAIN"));
    with_env.spec.env = [("PLAIN".to_owned(), "plain".to_owned())].into();
    assert_eq!(output(&node, &with_env).await.0, "plain\n");
    assert_eq!((taken(place, &other), taken(place, &with_env)), (Vec::new(), Vec::new()));
    assert_eq!(node.waiting_containers(), std::slice::from_ref(&second));

    // It lives on without an agent, a cancel is heard, and what does not listen is killed, daemons included.
    let nap = format!("{}.5", nap(place));
    let mut job = of_7(script(&format!(
        "trap 'echo heard' TERM; (trap '' TERM; setsid {nap} >/dev/null 2>&1 &); echo up; while :; do sleep 0.1; done"
    )));
    job.spec.grace_seconds = 2;
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("up").await;
    assert_eq!(taken(place, &job), [second]);
    let third = one_waiting(&node).await;
    node.shutdown().await;
    drop(node);
    let node = place.start().await;
    let fourth = one_waiting(&node).await;
    assert_ne!(third, fourth, "it went with its agent");
    node.reap().await;
    assert_eq!(sleepers(&nap), 1, "the unit's container is nobody else's");
    let mut records = job.attach(&node, 1).await;
    records.until_output("up").await;
    job.cancel(&node).await;
    let outcome = records.take_all().await;
    if tells_exit_codes(place) {
        assert!(records.stdout().contains("heard"));
        assert_eq!(outcome.outcome(), Outcome::Canceled, "{outcome:?}");
    }
    wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;

    if std::env::var_os(AS_USER).is_none() {
        // A dead shim: the unit is lost, and what ran is ended.
        let job = of_7(script(&format!("echo up; {nap}")));
        job.start(&node).await;
        let mut records = job.attach(&node, 1).await;
        records.until_output("up").await;
        assert_eq!(taken(place, &job), [fourth]);
        run("kill", &["-9", &place.shim_pid(job.attempt).to_string()]);
        assert_eq!(records.take_all().await.outcome(), Outcome::Lost);
        wait_for(|| async { sleepers(&nap) }, |count| *count == 0).await;

        // The shim of one that waits dies: what it leaves is found by its label.
        let fifth = one_waiting(&node).await;
        let containers = |left: &BTreeSet<String>| left.iter().filter(|line| !line.contains(' ')).count();
        wait_for(|| async { left(place) }, |left| containers(left) == 1).await;
        run("kill", &["-9", &shim_of_waiting(place, &fifth)]);
        wait_for(|| async { node.waiting_containers() }, Vec::is_empty).await;
        wait_for(
            || async {
                node.reap().await;
                left(place)
            },
            BTreeSet::is_empty,
        )
        .await;
    }

    // A node that rests has none.
    node.rest(&caller(), true);
    wait_for(
        || async { (node.waiting_containers(), left(place)) },
        |(waiting, left)| waiting.is_empty() && left.is_empty(),
    )
    .await;
    node.shutdown().await;
    place.work.warm.clear();
}

/// The one container that waits, once there is one.
async fn one_waiting(node: &Supervisor) -> String {
    so_many_waiting(node, 1).await.remove(0)
}

async fn so_many_waiting(node: &Supervisor, count: usize) -> Vec<String> {
    wait_for(|| async { node.waiting_containers() }, |waiting| waiting.len() == count).await
}

/// Containers that waited and were taken by a unit.
fn taken(place: &Place, job: &Job) -> Vec<String> {
    let text = std::fs::read_to_string(place.unit_dir(job.attempt).join("unit")).unwrap();
    let claim = |line| {
        Some(serde_json::from_str::<serde_json::Value>(line).ok()?["starting"]["claim"].as_str()?.to_owned())
    };
    text.lines().filter_map(claim).collect()
}

fn shim_of_waiting(place: &Place, slot: &str) -> String {
    let spares = place.runtime.path().join("run/spares");
    let dirs = std::fs::read_dir(spares).unwrap().map(|entry| entry.unwrap().path());
    let is_it =
        |dir: &std::path::PathBuf| std::fs::read_to_string(dir.join("slot")).is_ok_and(|note| note == slot);
    let dir = dirs.into_iter().find(is_it).unwrap();
    place.shim_pid_in(&dir).to_string()
}

/// What only containers have.
async fn container_options(place: &mut Place, warm: bool) {
    let kind = place.work.runtime;
    let set = move |place: &mut Place, change: &dyn Fn(&mut ContainerSection)| match kind {
        RuntimeName::Docker => change(&mut place.work.docker),
        _ => change(&mut place.work.podman),
    };
    let extra = tempfile::tempdir().unwrap();
    std::fs::write(extra.path().join("ca.pem"), "certificate\n").unwrap();
    let mount = format!("{}:/etc/pki:ro", extra.path().display());
    set(place, &|section| {
        section.user = "1234:0".to_owned();
        section.read_only = true;
        section.pids = 40;
        section.memory_mib = 64;
        section.mounts = vec![mount.clone()];
    });
    if warm {
        let (image, organization) = (TINY.to_owned(), String::new());
        place.work.warm = vec![WarmSection { image, organization, count: 1 }];
    }
    let node = place.start().await;
    if warm {
        one_waiting(&node).await;
    }
    let job = script(
        "cd /runner; id -u; cat /etc/pki/ca.pem; touch /etc/x 2>/dev/null || echo read-only; touch /tmp/x && echo scratch; echo y \
         >>project/a && cat project/a; touch artifacts/x && ls -n project | grep -c ' 1234 '; grep NoNewPrivs \
         /proc/self/status; i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo forked",
    )
    .with_tree(&[("a", 0o600, b"x\n")]);
    let mut records = job.run(&node).await;
    let outcome = records.take_all().await;
    let text = records.stdout();
    let expected = "1234\ncertificate\nread-only\nscratch\nx\ny\n1\nNoNewPrivs:\t1\n";
    assert!(text.starts_with(expected), "{text:?} {outcome:?}");
    assert!(!text.contains("forked"), "the limit on processes holds");
    if warm {
        assert_eq!(taken(place, &job).len(), 1);
        one_waiting(&node).await;
    }
    let (_, outcome) = output(&node, &script("exec tail /dev/zero")).await;
    if tells_exit_codes(place) {
        assert_eq!(outcome.outcome(), Outcome::Failed, "the limit on memory holds: {outcome:?}");
        assert!(outcome.reason.contains("ran out of memory"), "the kernel counted it: {outcome:?}");
    }
    node.rest(&caller(), true);
    wait_for(|| async { left(place) }, BTreeSet::is_empty).await;
    node.shutdown().await;
}

/// A command that nobody else on the machine runs.
fn nap(place: &Place) -> String {
    let user = u32::from(std::env::var_os(AS_USER).is_some());
    format!("sleep {}", 43_210 + user * 10 + place.work.runtime as u32)
}

fn sleepers(nap: &str) -> usize {
    let output = Command::new("pgrep").args(["-c", "-f", &format!("^{nap}$")]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

/// Containers, mounts and files of units.
fn left(place: &Place) -> BTreeSet<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dirs = ["data/units", "data/warm"].map(|dir| place.data.path().join(dir).display().to_string());
    let is_ours = |line: &&str| dirs.iter().any(|dir| line.contains(dir));
    let mut left: BTreeSet<String> = mounts.lines().filter(is_ours).map(str::to_owned).collect();
    left.extend(
        files_below(&place.runtime.path().join("run/units")).iter().map(|file| file.display().to_string()),
    );
    if place.work.runtime != RuntimeName::Process {
        let name = format!("label=plexus.store={}", store(place));
        left.extend(run("podman", &["ps", "-aq", "--filter", &name]).lines().map(str::to_owned));
    }
    left
}

fn store(place: &Place) -> String {
    let text = std::fs::read_to_string(place.data.path().join("data/store_id")).unwrap();
    text.trim().to_owned()
}

fn place(runtime: RuntimeName) -> Place {
    let mut place = Place::new();
    place.work.runtime = runtime;
    place.work.images.prune_dangling = false;
    place.work.podman.network = Some("host".to_owned());
    place.work.docker.network = Some("host".to_owned());
    place
}

#[tokio::test]
async fn process() {
    conformance(&place(RuntimeName::Process)).await;
}

#[tokio::test]
async fn podman() {
    conformance(&place(RuntimeName::Podman)).await;
    container_options(&mut place(RuntimeName::Podman), false).await;
}

#[tokio::test]
async fn podman_waiting() {
    waiting(&mut place(RuntimeName::Podman)).await;
    container_options(&mut place(RuntimeName::Podman), true).await;
}

#[tokio::test]
async fn what_waits_counts_as_a_fork_each_and_goes_with_a_cordon() {
    let mut place = place(RuntimeName::Podman);
    (place.work.cores, place.work.memory_mib) = (Some(4), Some(1000));
    place.work.warm = vec![WarmSection { image: TINY.to_owned(), organization: String::new(), count: 2 }];
    let node = place.start().await;
    let capacity = async || {
        let info = node.info(&InfoRequest::default()).await;
        (info.cpu_millis, info.memory_bytes >> 20)
    };
    let (whole, without_two) = ((4000, 1000), (3500, 800));
    assert_eq!(capacity().await, without_two, "they are about to come");

    // Units that come at the same time get one each.
    let waiting: BTreeSet<String> = so_many_waiting(&node, 2).await.into_iter().collect();
    assert_eq!(capacity().await, without_two);
    let nap = format!("{}.7", nap(&place));
    let jobs = [(); 2].map(|()| script(&format!("echo up; {nap}")));
    tokio::join!(jobs[0].start(&node), jobs[1].start(&node));
    for job in &jobs {
        job.attach(&node, 1).await.until_output("up").await;
    }
    let got: BTreeSet<String> = jobs.iter().flat_map(|job| taken(&place, job)).collect();
    assert_eq!(got, waiting);
    assert!(so_many_waiting(&node, 2).await.iter().all(|fresh| !got.contains(fresh)));

    // A cordoned node has none, whatever its controllers say; what runs goes on.
    let tend = async |action| node.tend(action).await.unwrap()["running"].as_u64().unwrap();
    assert_eq!(tend(Action::Cordon { reason: None }).await, 2);
    node.rest(&caller(), false);
    assert_eq!(capacity().await, whole);
    let containers = || async { left(&place).iter().filter(|line| !line.contains(['/', ' '])).count() };
    wait_for(containers, |containers| *containers == 2).await;
    assert_eq!((node.waiting_containers(), sleepers(&nap)), (Vec::new(), 2));
    tend(Action::Uncordon).await;
    node.rest(&caller(), false);
    assert_eq!(capacity().await, without_two, "they are about to come again");

    for job in &jobs {
        job.cancel(&node).await;
        let mut records = job.attach(&node, 1).await;
        records.take_all().await;
        records.ack_all().await;
    }
    assert_eq!(tend(Action::Drain { deadline_ms: None, reason: None }).await, 0);
    wait_for(|| async { left(&place) }, BTreeSet::is_empty).await;
    assert_eq!(capacity().await, whole);
    node.shutdown().await;
}

/// Podman's own API socket, for the docker client.
struct Service(Child);

impl Service {
    fn start(address: &str) -> Self {
        let child = Command::new("podman")
            .args(["system", "service", "--time=0", address])
            // Its `conmon` notes there what ran out of memory.
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("podman runs"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn docker() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let address = format!("unix://{}", socket.display());
    let service = Service::start(&address);
    wait_for(|| async { socket.exists() }, |exists| *exists).await;
    let mut place = place(RuntimeName::Docker);
    place.work.docker.command =
        ["env", &format!("DOCKER_HOST={address}"), "docker"].map(str::to_owned).to_vec();
    conformance(&place).await;
    waiting(&mut place).await;
    container_options(&mut place, false).await;
    drop(daemon_dies(&place, service, &address).await);
}

/// The node as user `plexus`, its containers without root: this very test, once more, as that user.
#[tokio::test]
async fn rootless() {
    if std::env::var_os(AS_USER).is_some() {
        conformance(&place(RuntimeName::Podman)).await;
        waiting(&mut place(RuntimeName::Podman)).await;
        return;
    }
    let home = Path::new("/var/lib/plexus-user");
    let id = run("id", &["-u", "plexus"]);
    let runtime = tempfile::tempdir_in("/dev/shm").unwrap();
    run("chown", &["plexus", &runtime.path().display().to_string()]);
    let env = [
        format!("HOME={}", home.display()),
        format!("XDG_RUNTIME_DIR={}", runtime.path().display()),
        format!("{AS_USER}=plexus"),
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned(),
    ];
    let as_user = |words: &[&str]| {
        let mut command = Command::new("runuser");
        command.args(["-u", "plexus", "--", "env", "-i"]).args(&env).args(words).current_dir("/");
        command.output().unwrap()
    };
    // A machine that went down without a word leaves its podman a process that is no more.
    as_user(&["podman", "system", "migrate"]);
    // The images of root are not this user's.
    let file = runtime.path().join("tiny.tar");
    run("podman", &["save", "--quiet", "-o", &file.display().to_string(), TINY]);
    run("chmod", &["644", &file.display().to_string()]);
    let loaded = as_user(&["podman", "load", "--quiet", "-i", &file.display().to_string()]);
    assert!(loaded.status.success(), "uid {id}: {}", String::from_utf8_lossy(&loaded.stderr));
    // Wherever this was built, the user must be able to run it.
    let programs = tempfile::tempdir().unwrap();
    run("chmod", &["755", &programs.path().display().to_string()]);
    let (test, node) = (programs.path().join("test"), programs.path().join("plexus-node"));
    std::fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_plexus-node"), &node).unwrap();
    let program = format!("PLEXUS_TEST_NODE={}", node.display());
    let output =
        as_user(&["env", &program, &test.display().to_string(), "--exact", "rootless", "--nocapture"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
}

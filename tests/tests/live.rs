//! Jobs as people watch them: `plexus job` against a real controller, across its death.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use plexus_tests::{Postgres, Replay, Seen, wait_for};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// The captured stream: 423 events, of which about half come before the gate.
const CASE: &str = "ten-hosts";
const LINES: u64 = 202;
const DEADLINE: Duration = Duration::from_secs(60);
/// Options of a server that keeps its promises.
const DURABLE: &str = "-c fsync=on -c synchronous_commit=on";

fn plexus(replay: &Replay, args: &[&str]) -> Command {
    let mut command = Command::new(replay.cluster.layout.binaries.cli());
    let api = replay.api();
    command
        .args(args)
        .env("CONTROLLER_HOST", api.base())
        .env("CONTROLLER_USERNAME", api.user())
        .env("CONTROLLER_PASSWORD", api.password())
        .env("CONTROLLER_VERIFY_SSL", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Reads until `wanted` events came, one JSON document on a line each.
async fn events(child: &mut Child, wanted: usize) -> Vec<u8> {
    let out = child.stdout.as_mut().unwrap();
    let mut text = Vec::new();
    let read = async {
        while text.iter().filter(|&&byte| byte == b'\n').count() < wanted {
            let mut piece = [0; 4096];
            let length = out.read(&mut piece).await.unwrap();
            assert!(length > 0, "the output ended after {} bytes", text.len());
            text.extend_from_slice(&piece[..length]);
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap();
    text
}

#[tokio::test]
async fn tail_shows_exactly_the_output_across_the_death_of_the_controller() {
    let mut replay = Replay::start("tail", CASE, LINES).await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let id = job.to_string();
    let text = plexus(&replay, &["--color", "always", "job", "tail", &id]).spawn().unwrap();
    let mut json = plexus(&replay, &["-o", "json", "job", "tail", &id]).spawn().unwrap();
    let mut lines = events(&mut json, 150).await;

    replay.cluster.controller.kill();
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();
    replay.open_gate().unwrap();
    let stored = replay.successful(job).await.unwrap();

    let text = tokio::time::timeout(DEADLINE, text.wait_with_output()).await.unwrap().unwrap();
    assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
    assert_eq!(String::from_utf8_lossy(&text.stdout), replay.api().stdout(job, "ansi").await.unwrap());
    let rest = tokio::time::timeout(DEADLINE, json.wait_with_output()).await.unwrap().unwrap();
    assert!(rest.status.success(), "{}", String::from_utf8_lossy(&rest.stderr));
    assert!(String::from_utf8_lossy(&rest.stderr).contains("trying again"), "the death was not noticed");
    lines.extend(rest.stdout);
    let shown: Vec<serde_json::Value> =
        String::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (end, shown) = shown.split_last().unwrap();
    assert_eq!((&end["status"], &end["final_counter"]), (&"successful".into(), &stored.len().into()));
    let uuids = |events: &[serde_json::Value]| -> Vec<serde_json::Value> {
        events
            .iter()
            .map(|event| serde_json::json!([event["counter"], event["uuid"], event["stdout"]]))
            .collect()
    };
    assert_eq!(uuids(shown), uuids(&stored), "each event once, in order");
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn jobs_are_launched_listed_explained_and_canceled() {
    let replay = Replay::start("job-verbs", CASE, LINES).await.unwrap();
    let run = async |args: &[&str]| {
        let output = tokio::time::timeout(DEADLINE, plexus(&replay, args).output()).await.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = run(&["job", "launch", "replay", "--detach", "--limit", "h1"]).await;
    assert_eq!((code, out.as_str()), (0, "job 1 launched\n"), "{err}");
    replay.at_gate(1).await.unwrap();
    let (_, out, _) = run(&["job", "list"]).await;
    assert!(out.contains("1   running  replay"), "{out}");
    assert_eq!(run(&["job", "why", "1"]).await.1, "Job 1 runs on node-1.\n");
    let (code, out, _) = run(&["job", "cancel", "1"]).await;
    assert!(code == 0 && out.contains("cancel is noted"), "{out}");
    let (code, _, err) = run(&["job", "tail", "1"]).await;
    assert!(code == 1 && err.contains("job 1 is canceled"), "{code} {err}");
    let (code, _, err) = run(&["job", "cancel", "1"]).await;
    assert!(code == 1 && err.contains("job 1 is canceled already"), "{code} {err}");
    assert!(run(&["job", "show", "1"]).await.1.contains("status:      canceled"));
    let (code, out, err) = run(&["job", "grep", "ansible.builtin", "--all", "--limit", "1"]).await;
    assert!(
        code == 0 && out.starts_with("job 1 replay") && err.contains("1 find in 1 job"),
        "{code} {out} {err}"
    );
    let (code, out, err) = run(&["job", "grep", "no such text"]).await;
    assert!(code == 1 && out.is_empty() && err.contains("nothing found"), "{code} {out} {err}");
    // Wrong names, wrong ids, wrong variables: each says which.
    let (code, _, err) = run(&["job", "launch", "nothing"]).await;
    assert!(code == 4 && err.contains("there is no job template \"nothing\""), "{code} {err}");
    let (code, _, err) = run(&["job", "tail", "99"]).await;
    assert!(code == 4 && err.contains("No Job matches"), "{code} {err}");
    let (code, _, err) = run(&["job", "launch", "replay", "-e", "x"]).await;
    assert!(code == 2 && err.contains("no name and value"), "{code} {err}");
    replay.open_gate().unwrap();
    wait_for("the canceled unit to be gone", DEADLINE, async || {
        let job = replay.api().job(1).await;
        Seen::when(job.is_ok_and(|job| job["event_processing_finished"] == true), || {
            "not finished".to_owned()
        })
    })
    .await
    .unwrap();
    replay.finish().await.unwrap();
}

/// The server goes as in a power cut while a job's output is on its way, twice, and the controller between: whatever was
/// acknowledged is there, and nothing is there twice.
#[tokio::test]
async fn a_database_server_that_dies_in_mid_ingest_loses_and_doubles_nothing() {
    let mut server =
        tokio::task::spawn_blocking(|| Postgres::start_in(Path::new("/var/tmp"), DURABLE)).await.unwrap();
    let mut replay = Replay::start_on(server.database(), "postgres-dies", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .unwrap();
    // The rest of the output comes while there is no server at all.
    replay.open_gate().unwrap();
    server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .unwrap();
    assert_eq!(replay.successful(job).await.unwrap(), expected);
    replay.close_gate();

    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    replay.open_gate().unwrap();
    server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .unwrap();
    replay.cluster.restart_controller().await.unwrap();
    assert_eq!(replay.successful(job).await.unwrap(), expected);
    replay.finish().await.unwrap();
    drop(server);
}

/// What a node spooled while nobody could be reached is all taken when it is back; also that of a job which was
/// given up meanwhile, and stays so.
#[tokio::test]
async fn a_node_that_was_away_brings_its_spool_also_of_a_job_that_was_given_up() {
    let mut replay = Replay::start("away", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let kept = replay.launch().await.unwrap();
    let given_up = replay.launch().await.unwrap();
    for job in [kept, given_up] {
        replay.at_gate(job).await.unwrap();
    }
    replay.cluster.hop.kill();
    replay.open_gate().unwrap();
    replay
        .api()
        .post(&format!("/api/plexus/v1/work/{given_up}/abandon/"), &serde_json::json!({}))
        .await
        .unwrap();
    let over = replay.api().finished(given_up, DEADLINE).await.unwrap();
    assert_eq!(over["status"], "error", "{over}");
    // Both workers end on the far side, whole spools behind them.
    replay.cluster.node.kill();
    replay.cluster.node.start().unwrap();
    replay.cluster.hop.start().unwrap();
    assert_eq!(replay.successful(kept).await.unwrap(), expected);
    replay.cluster.clean().await.unwrap();
    // Its worker had come to its end, or was ended when the node was back: what it printed until then is kept, once.
    let brought = replay.api().event_count(given_up).await.unwrap();
    assert!((LINES - 2..=expected.len() as u64).contains(&brought), "{brought} events");
    assert_eq!(replay.api().job(given_up).await.unwrap()["status"], "error");
    replay.finish().await.unwrap();
}

/// A request to cancel is stored before anything is done about it: it outlives the controller, and is honoured as soon as there
/// is a way to the node.
#[tokio::test]
async fn a_cancel_waits_for_its_node_across_the_death_of_the_controller() {
    let mut replay = Replay::start("cancel-pending", CASE, LINES).await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let starts = replay.starts();
    replay.cluster.hop.kill();
    let path = format!("jobs/{job}/cancel/");
    let answer = replay.api().send(reqwest::Method::POST, &path, None).await.unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    // No time for more than its answer.
    replay.cluster.restart_controller().await.unwrap();

    let pending =
        wait_for("the cancel to be pending", DEADLINE, async || match replay.api().job(job).await {
            Ok(shown)
                if shown["job_explanation"].as_str().is_some_and(|why| why.contains("cancel pending")) =>
            {
                Seen::Yes(shown)
            }
            other => Seen::NotYet(format!("{other:?}")),
        })
        .await
        .unwrap();
    assert_eq!((&pending["status"], &pending["finished"]), (&"running".into(), &().into()), "{pending}");
    let why = pending["job_explanation"].as_str().unwrap();
    assert!(why.contains("node node-1 unreachable since 20") && why.contains("asked for at 20"), "{why}");

    replay.cluster.hop.start().unwrap();
    let done = replay.api().finished(job, DEADLINE).await.unwrap();
    assert_eq!((&done["status"], &done["job_explanation"]), (&"canceled".into(), &"".into()), "{done}");
    // Its gate was never opened: the worker was ended there, and is not started again.
    replay.cluster.clean().await.unwrap();
    assert_eq!(replay.starts(), starts);
    let stored = replay.api().event_count(job).await.unwrap();
    assert_eq!(stored, LINES - 2, "what it printed until then");
    replay.finish().await.unwrap();
}

/// Bytes of all files below a folder.
fn held(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => held(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

/// A small file system over a node's data, with all that lies there. Its mount goes with it.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    /// None without the right to mount.
    fn over(data: &'a Path) -> Option<Self> {
        let aside = data.with_extension("aside");
        let copy = |from: &Path, to: &Path| {
            let copied = std::process::Command::new("cp").arg("-aT").args([from, to]).status();
            assert!(copied.expect("cp runs").success());
        };
        copy(data, &aside);
        let options = c"size=32m,mode=700";
        let mounted = mount("tmpfs", data, "tmpfs", MountFlags::empty(), options).is_ok();
        if mounted {
            copy(&aside, data);
        }
        std::fs::remove_dir_all(&aside).expect("the copy can be removed");
        mounted.then_some(Self(data))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        unmount(self.0, UnmountFlags::DETACH).ok();
    }
}

/// Output that finds no room on the node is held there, and the job says so for as long as that lasts.
#[tokio::test]
async fn a_job_whose_output_is_held_on_its_node_says_so_and_why() {
    let mut replay = Replay::start("held", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    replay.cluster.clean().await.unwrap();
    replay.cluster.node.stop().await.unwrap();
    let data = replay.cluster.layout.data_dir("node-1");
    let Some(disk) = SmallDisk::over(&data) else {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    };
    replay.cluster.node.start().unwrap();
    replay.cluster.node_ready().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let explained = async || {
        let job = replay.api().job(job).await.unwrap();
        job["job_explanation"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(explained().await, "");
    let filler = data.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    replay.open_gate().unwrap();
    let words = "waiting: output is held on node node-1: its disk is full";
    wait_for("the job to say why it waits", DEADLINE, async || {
        let said = explained().await;
        Seen::when(said == words, || said)
    })
    .await
    .unwrap();
    drop(file);
    std::fs::remove_file(filler).unwrap();
    assert_eq!(replay.successful(job).await.unwrap(), expected);
    assert_eq!(explained().await, "");
    replay.cluster.clean().await.unwrap();
    replay.cluster.node.stop().await.unwrap();
    drop(disk);
    replay.finish().await.unwrap();
}

/// A node that could not be reached for a day holds its jobs as soon as their spools are full. When it is back all of it
/// comes, whatever has become of the job meanwhile.
#[tokio::test]
async fn a_node_that_returns_after_a_day_brings_its_full_spools() {
    const EVENTS: usize = 250;
    const QUOTA: u32 = 16;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let dir = tempfile::tempdir().unwrap();
    let stream = dir.path().join("stream");
    let printed = std::process::Command::new("sh")
        .args(["-c", r#"echo '{"eof": true}' | python3 "$1/much.py" "$1/runner-streams/ok-2-hosts/worker.bin" "$2" 100 >"$3""#, "much"])
        .args([&fixtures, Path::new(&EVENTS.to_string()), &stream])
        .status();
    assert!(printed.unwrap().success());
    let mut replay = Replay::start_with_spool_quota(QUOTA, "day", &stream, 7).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    assert_eq!(expected.len(), EVENTS);
    let kept = replay.launch().await.unwrap();
    let given_up = replay.launch().await.unwrap();
    for job in [kept, given_up] {
        replay.at_gate(job).await.unwrap();
    }
    replay.cluster.hop.kill();
    replay.open_gate().unwrap();
    let units = replay.cluster.layout.data_dir("node-1").join("units");
    wait_for("both spools to be full", DEADLINE, async || {
        let full = std::fs::read_dir(&units)
            .unwrap()
            .flatten()
            .filter(|unit| held(&unit.path()) >= u64::from(QUOTA) << 20)
            .count();
        Seen::when(full == 2, || format!("{full} are full, {} bytes in all", held(&units)))
    })
    .await
    .unwrap();
    let path = format!("/api/plexus/v1/work/{given_up}/abandon/");
    replay.api().post(&path, &serde_json::json!({})).await.unwrap();
    assert_eq!(replay.api().finished(given_up, DEADLINE).await.unwrap()["status"], "error");

    let cluster = &mut replay.cluster;
    for daemon in [&mut cluster.controller, &mut cluster.node, &mut cluster.hop] {
        daemon.kill();
        daemon.set_later(Duration::from_secs(24 * 3600));
        daemon.start().unwrap();
    }
    cluster.api_up().await.unwrap();
    assert_eq!(replay.successful(kept).await.unwrap(), expected);
    replay.cluster.clean().await.unwrap();
    // Its worker stood at the full spool, and was ended there: what the spool held is stored.
    let brought = replay.api().events(given_up).await.unwrap();
    let whole =
        expected.iter().zip(&brought).all(|(expected, brought)| *expected == plexus_tests::essence(brought));
    assert!(whole && brought.len() > 100 && brought.len() < EVENTS, "{} events", brought.len());
    assert_eq!(replay.api().job(given_up).await.unwrap()["status"], "error");
    replay.finish().await.unwrap();
}

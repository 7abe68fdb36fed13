//! Whose unit it is when disks are set back: what ran is never run again, and every job ends once and visibly.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops there")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use plexus_tests::{Replay, Seen, essence, wait_for};
use serde_json::Value;

/// The captured stream: 423 events, of which about half come before the gate.
const CASE: &str = "ten-hosts";
const LINES: u64 = 202;
const LIFE: Duration = Duration::from_secs(60);

/// A machine's disk as it was, kept aside.
struct Snapshot {
    of: std::path::PathBuf,
    kept: tempfile::TempDir,
}

impl Snapshot {
    fn take(dir: &Path) -> Self {
        let kept = tempfile::tempdir().expect("a folder");
        copy(dir, &kept.path().join("disk"));
        Self { of: dir.to_owned(), kept }
    }

    fn bring_back(&self) {
        wipe(&self.of);
        copy(&self.kept.path().join("disk"), &self.of);
    }
}

fn wipe(disk: &Path) {
    // No mount outlives its machine.
    for line in fs::read_to_string("/proc/self/mounts").expect("mounts").lines() {
        let below = line.split(' ').nth(1).filter(|at| Path::new(at).starts_with(disk));
        if let Some(at) = below {
            Command::new("umount").args(["--lazy", at]).status().expect("umount runs");
        }
    }
    fs::remove_dir_all(disk).expect("the disk of today goes");
}

/// The node's machine loses its power: its processes go, and its memory.
fn power_off(replay: &mut Replay) {
    replay.cluster.node.kill();
    let (controller, hop) = (replay.cluster.controller.pid(), replay.cluster.hop.pid());
    let mut found = replay.cluster.leftovers();
    found.processes.retain(|(pid, _)| ![controller, hop].contains(&Some(*pid)));
    found.sweep();
    fs::remove_dir_all(replay.cluster.layout.runtime_dir.join("node-1")).expect("its memory goes");
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(done.success(), "cp {} {}", from.display(), to.display());
}

#[tokio::test]
async fn a_node_set_back_to_a_snapshot_runs_nothing_a_second_time() {
    let mut replay = Replay::start("node-snapshot", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    replay.cluster.clean().await.unwrap();
    replay.cluster.node.stop().await.unwrap();
    let snapshot = Snapshot::take(&replay.cluster.layout.data_dir("node-1"));
    replay.cluster.node.start().unwrap();
    replay.cluster.node_ready().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let starts = replay.starts();

    // The machine is set back: its processes and its memory go, its disk is that of before the job.
    power_off(&mut replay);
    snapshot.bring_back();
    replay.cluster.node.start().unwrap();

    check_lost(&replay, job, &expected, "set back").await;
    assert_eq!(replay.starts(), starts, "it is not started again");
    // The node is fit for work, and the next job is whole.
    assert_eq!(replay.undisturbed().await.unwrap(), expected);
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_reimaged_under_its_job_runs_nothing_a_second_time() {
    let mut replay = Replay::start("node-reimaged", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let starts = replay.starts();

    // It keeps its name and its certificate, and nothing else. That takes its time: it is missed meanwhile.
    let before = instance(&replay).await["uuid"].clone();
    power_off(&mut replay);
    wipe(&replay.cluster.layout.data_dir("node-1"));
    wait_for("the node to be missed", LIFE, async || {
        let node = instance(&replay).await;
        Seen::when(node["node_state"] == "unavailable", || node.to_string())
    })
    .await
    .unwrap();
    replay.cluster.node.start().unwrap();

    check_lost(&replay, job, &expected, "set up anew").await;
    assert_eq!(replay.starts(), starts, "it is not started again");
    // It is fit for work as soon as it has told its new store.
    wait_for("the new store to be known", LIFE, async || {
        let node = instance(&replay).await;
        Seen::when(node["uuid"] != before && node["node_state"] == "ready", || node.to_string())
    })
    .await
    .unwrap();
    assert_eq!(replay.undisturbed().await.unwrap(), expected);
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn a_controller_set_back_to_a_snapshot_twice_runs_nothing_a_second_time() {
    let mut replay = Replay::start("controller-snapshot", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    replay.cluster.controller.stop().await.unwrap();
    let snapshot = Snapshot::take(&replay.cluster.layout.data_dir("controller"));
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();
    replay.open_gate().unwrap();
    assert_eq!(replay.successful(job).await.unwrap(), expected);
    replay.cluster.clean().await.unwrap();
    let starts = replay.starts();

    // In the life that comes back the job runs; the node has ended and forgotten it.
    for _ in 0..2 {
        replay.cluster.controller.kill();
        snapshot.bring_back();
        replay.cluster.controller.start().unwrap();
        replay.cluster.api_up().await.unwrap();
        check_lost(&replay, job, &expected, "set back").await;
        assert_eq!(replay.starts(), starts, "it is not started again");
    }
    assert_eq!(replay.undisturbed().await.unwrap(), expected);
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn a_controller_set_back_while_its_job_runs_goes_on_with_it() {
    let mut replay = Replay::start("controller-set-back", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    replay.close_gate();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    replay.cluster.controller.stop().await.unwrap();
    let snapshot = Snapshot::take(&replay.cluster.layout.data_dir("controller"));
    // Lives that took the unit over three times more, so that the node has seen later epochs than the snapshot knows.
    for _ in 0..3 {
        let held = held_counter(&replay);
        replay.cluster.controller.start().unwrap();
        replay.cluster.api_up().await.unwrap();
        wait_for("the unit to be taken over", LIFE, async || {
            Seen::when(held_counter(&replay) > held, || format!("the node holds {held:?}"))
        })
        .await
        .unwrap();
        replay.cluster.controller.kill();
    }
    snapshot.bring_back();
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();
    replay.open_gate().unwrap();
    assert_eq!(replay.successful(job).await.unwrap(), expected);
    assert_eq!(replay.starts().len(), 2, "the undisturbed job and this one, each once");
    replay.finish().await.unwrap();
}

#[tokio::test]
async fn a_restored_database_waits_for_db_recovered_and_then_goes_on_each_time() {
    let mut replay = Replay::start("db-recovered", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    replay.cluster.clean().await.unwrap();
    replay.cluster.controller.stop().await.unwrap();
    let backup = Snapshot::take(&replay.cluster.layout.data_dir("controller"));
    // A life above that of the backup, of which the node hears.
    let mut highest = recovered(&replay, 0);
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();
    assert_eq!(replay.undisturbed().await.unwrap(), expected);
    replay.cluster.clean().await.unwrap();

    // The same backup twice: each time the job says what is to be done, with the number to do it with.
    for _ in 0..2 {
        replay.cluster.controller.stop().await.unwrap();
        backup.bring_back();
        replay.cluster.controller.start().unwrap();
        replay.cluster.api_up().await.unwrap();
        replay.open_gate().unwrap();
        let starts = replay.starts();
        let job = replay.launch().await.unwrap();
        let why = wait_for("the job to say why it waits", LIFE, async || match replay.api().job(job).await {
            Ok(shown) if shown["job_explanation"].to_string().contains("db recovered") => Seen::Yes(shown),
            other => Seen::NotYet(format!("{other:?}")),
        })
        .await
        .unwrap();
        assert!(why["status"] == "waiting" || why["status"] == "pending", "{why}");
        let words = format!("cluster main was seen with incarnation {highest}; 1 is past");
        let told = why["job_explanation"].as_str().unwrap();
        assert!(told.contains(&words) && told.ends_with("run plexus-controller db recovered"), "{told}");
        assert_eq!(replay.starts(), starts);

        replay.cluster.controller.stop().await.unwrap();
        let above = highest;
        highest = recovered(&replay, above);
        assert!(highest > above, "{highest} is not above {above}");
        replay.cluster.controller.start().unwrap();
        replay.cluster.api_up().await.unwrap();
        assert_eq!(replay.successful(job).await.unwrap(), expected);
        assert_eq!(replay.starts().len(), starts.len() + 1);
        replay.cluster.clean().await.unwrap();
    }
    replay.finish().await.unwrap();
}

/// Runs the command that operators run, and gives the incarnation that it says.
fn recovered(replay: &Replay, above: i64) -> i64 {
    let layout = &replay.cluster.layout;
    let mut command = Command::new(layout.binaries.controller());
    command.args(["db", "recovered", "--config"]).arg(layout.config("controller"));
    let output = command.args(["--above", &above.to_string()]).output().expect("the controller's program");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let number =
        said.strip_prefix("this database is now incarnation ").and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}

#[tokio::test]
async fn what_a_controller_from_a_backup_does_not_know_waits_for_an_operator_each_time() {
    let mut replay = Replay::start("controller-stray", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    replay.cluster.clean().await.unwrap();
    replay.cluster.controller.stop().await.unwrap();
    let backup = Snapshot::take(&replay.cluster.layout.data_dir("controller"));
    replay.cluster.controller.start().unwrap();
    replay.cluster.api_up().await.unwrap();

    // The same backup twice: of what it does not know, one is adopted and the next discarded.
    for verb in ["adopt", "discard"] {
        replay.close_gate();
        let lost = replay.launch().await.unwrap();
        replay.at_gate(lost).await.unwrap();
        let starts = replay.starts();
        replay.cluster.controller.kill();
        backup.bring_back();
        replay.cluster.controller.start().unwrap();
        replay.cluster.api_up().await.unwrap();
        let unit = wait_for("the unit to be listed", LIFE, async || {
            let list = plexus(&replay, &["-o", "json", "work", "list", "--stray"]).await;
            let list: Value = serde_json::from_str(&list).unwrap_or_default();
            let unit = &list["results"][0];
            let text = unit["unit"].as_str().map(str::to_owned);
            let seen = text.filter(|_| unit["state"] == "running" && unit["node"] == "node-1");
            seen.map_or_else(|| Seen::NotYet(list.to_string()), Seen::Yes)
        })
        .await
        .unwrap();
        let table = plexus(&replay, &["work", "list", "--stray"]).await;
        assert!(table.contains(&unit) && table.contains(&format!("job {lost}")), "{table}");
        // It lives, and is not run anew; nothing became of it by itself.
        assert!(held_counter(&replay).is_some() && replay.starts() == starts);
        assert_eq!(plexus(&replay, &["work", "list"]).await, "no jobs\n");

        let said = plexus(&replay, &["-o", "json", "work", verb, &unit]).await;
        let job = serde_json::from_str::<Value>(&said).unwrap()["id"].as_i64().unwrap();
        if verb == "adopt" {
            replay.open_gate().unwrap();
            // Which image it runs in is not known here, so the output does not begin with its name.
            assert_eq!(names(&replay.successful(job).await.unwrap()), names(&expected));
        } else {
            let done = replay.api().finished(job, LIFE).await.unwrap();
            assert_eq!(done["status"], "error", "{done}");
            assert!(done["job_explanation"].as_str().unwrap().contains("discarded by admin"), "{done}");
        }
        replay.cluster.clean().await.unwrap();
        assert_eq!(plexus(&replay, &["work", "list", "--stray"]).await, "no stray units\n");
        assert_eq!(replay.starts(), starts, "it is not started again");
    }
    replay.open_gate().unwrap();
    assert_eq!(replay.undisturbed().await.unwrap(), expected);
    replay.finish().await.unwrap();
}

/// Number, kind and id of each event.
fn names(events: &[Value]) -> Vec<[Value; 3]> {
    events.iter().map(|event| ["counter", "event", "uuid"].map(|key| event[key].clone())).collect()
}

async fn plexus(replay: &Replay, args: &[&str]) -> String {
    let output = replay.cluster.plexus_as_admin(args).await.unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_cloned_node_is_named_to_the_operator_and_its_job_is_run_once() {
    let mut replay = Replay::start("node-clone", CASE, LINES).await.unwrap();
    let expected = replay.undisturbed().await.unwrap();
    replay.close_gate();
    let job = replay.launch().await.unwrap();
    replay.at_gate(job).await.unwrap();
    let starts = replay.starts();
    // A copy of the machine, disk and keys, comes up beside it.
    let layout = replay.cluster.layout.clone();
    let (disk, memory) = (layout.dir.join("clone"), layout.runtime_dir.join("clone"));
    copy(&layout.data_dir("node-1"), &disk);
    let config = fs::read_to_string(layout.config("node-1")).unwrap();
    let config = config
        .replace(layout.data_dir("node-1").to_str().unwrap(), disk.to_str().unwrap())
        .replace(layout.runtime_dir.join("node-1").to_str().unwrap(), memory.to_str().unwrap());
    fs::write(layout.config("clone"), config).unwrap();
    let args = ["run", "--config", layout.config("clone").to_str().unwrap()].map(Into::into);
    let mut clone =
        plexus_tests::Daemon::new("clone", layout.binaries.node(), args.to_vec(), layout.log("clone"));
    clone.start().unwrap();
    // Both dial the same hop with one name and key; each takes the link from the other.
    let words = "two processes live under this neighbour's name and key";
    replay.cluster.hop.logged(words, 0, LIFE).await.unwrap();
    clone.stop().await.unwrap();
    fs::remove_dir_all(&memory).ok();

    // Whichever of the two the controller reached: the job ends once, visibly, and was started once.
    replay.open_gate().unwrap();
    let done = replay.api().finished(job, LIFE).await.unwrap();
    let events: Vec<Value> = replay.api().events(job).await.unwrap().iter().map(essence).collect();
    match done["status"].as_str() {
        Some("successful") => assert_eq!(events, expected),
        Some("error") => assert!(expected.starts_with(&events) && done["job_explanation"] != "", "{done}"),
        _ => panic!("{done}"),
    }
    assert_eq!(replay.starts(), starts);
    replay.finish().await.unwrap();
}

/// What the controller says of its one execution node.
async fn instance(replay: &Replay) -> Value {
    let list = replay.api().get("instances/?hostname=node-1").await.expect("instances");
    list["results"][0].clone()
}

/// The epoch's counter under which the node holds its one unit.
fn held_counter(replay: &Replay) -> Option<u64> {
    replay.cluster.layout.noted_unit("node-1")?["counter"].as_u64()
}

/// The job's end is unknown and says why; what is stored of it is a beginning.
async fn check_lost(replay: &Replay, job: i64, expected: &[Value], why: &str) {
    let done = replay.api().finished(job, LIFE).await.unwrap();
    assert_eq!(done["status"], "error", "{done}");
    assert!(done["job_explanation"].as_str().unwrap().contains(why), "{done}");
    let events: Vec<Value> = replay.api().events(job).await.unwrap().iter().map(essence).collect();
    assert!(expected.starts_with(&events), "{} events, not a beginning", events.len());
}

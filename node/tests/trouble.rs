//! Crashes, cancels and damage: what must hold when things die.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use common::*;
use plexus_node::shim::processes::marked;
use plexus_node::supervisor::{Options, Supervisor, View};
use plexus_node::unit_dir::UnitDir;
use plexus_proto::work::*;
use rustix::process::{Pid, Signal, kill_process};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn alive(job: &Job) -> Vec<i32> {
    marked("PLEXUS_UNIT", &job.attempt.to_string())
}

#[tokio::test]
async fn a_restarted_agent_finds_the_running_unit_and_loses_nothing() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; sleep 0.005; done");
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("line 20\n").await;
    let seen = records.got.last().unwrap().0;
    records.ack(3).await;
    drop(records);
    node.shutdown().await;
    drop(node);

    let node = place.start().await;
    let mut records = job.attach(&node, 1).await;
    assert_eq!(records.attached.first_record, 1, "the newest segment is still whole");
    let outcome = records.take_all().await;
    assert_eq!(outcome.outcome(), Outcome::Succeeded);
    assert!(records.got.len() as u64 > seen);
    let expected: String = (1..=200).map(|number| format!("line {number}\n")).collect();
    assert_eq!(records.stdout(), expected);
    let pending = answer(node.submit(&caller(), job.submit_request(&node)).await).unwrap();
    assert!(finished(&pending).is_some(), "submit never starts it again");
    node.shutdown().await;
}

/// What a package manager does: the new program takes the name of the old one, which lives on where it runs.
#[tokio::test]
async fn an_upgrade_leaves_running_units_on_the_old_program_and_starts_the_next_on_the_new_one() {
    let place = Place::new();
    let program = place.data.path().join("plexus-node");
    let options = || Options { shim_binary: program.clone(), ..place.options() };
    // By a process of its own: nobody can run a file that a child of this one holds open for writing.
    let install = || {
        let fresh = program.with_extension("new");
        let copied = Command::new("cp").arg(place.options().shim_binary).arg(&fresh).status().unwrap();
        assert!(copied.success());
        fs::rename(&fresh, &program).unwrap();
        fs::metadata(&program).unwrap().ino()
    };
    let runs = |job: &Job| fs::metadata(format!("/proc/{}/exe", place.shim_pid(job.attempt))).unwrap().ino();
    let go = place.data.path().join("go");
    let script = format!("echo up; while [ ! -e {} ]; do sleep 0.01; done; echo on", go.display());

    let before = install();
    let node = Supervisor::start(options()).await.unwrap();
    let (old, canceled) = (Job::script(&script), Job::script(&script));
    for job in [&old, &canceled] {
        job.start(&node).await;
        job.attach(&node, 1).await.until_output("up").await;
        assert_eq!(runs(job), before);
    }
    let after = install();
    assert_ne!(after, before);
    node.shutdown().await;
    drop(node);

    let node = Supervisor::start(options()).await.unwrap();
    let new = Job::script(&script);
    new.start(&node).await;
    new.attach(&node, 1).await.until_output("up").await;
    assert_eq!((runs(&old), runs(&canceled), runs(&new)), (before, before, after));
    canceled.cancel(&node).await;
    assert_eq!(canceled.attach(&node, 1).await.take_all().await.outcome(), Outcome::Canceled);
    fs::write(&go, "").unwrap();
    for job in [&old, &new] {
        let mut records = job.attach(&node, 1).await;
        assert_eq!(records.take_all().await.outcome(), Outcome::Succeeded);
        assert_eq!(records.stdout(), "up\non\n");
    }
    node.shutdown().await;
}

#[tokio::test]
async fn what_a_silent_unit_had_printed_is_served_by_the_next_agent_at_once() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("echo up; sleep 1000");
    job.spec.grace_seconds = 1;
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("up").await;
    node.shutdown().await;
    drop(node);

    let node = place.start().await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("up").await;
    job.cancel(&node).await;
    assert_eq!(records.take_all().await.outcome(), Outcome::Canceled);
    node.shutdown().await;
}

#[tokio::test]
async fn a_unit_that_ends_while_no_agent_lives_is_served_by_the_next() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo begun; while [ ! -e \"$GO\" ]; do sleep 0.01; done; echo ended; exit 7");
    let go = place.data.path().join("go");
    let mut job = job;
    job.spec.env.insert("GO".to_owned(), go.display().to_string());
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("begun").await;
    node.shutdown().await;
    drop((node, records));
    fs::write(&go, "").unwrap();
    wait_for(|| async { alive(&job) }, Vec::is_empty).await;
    let spool = place.unit_dir(job.attempt).join("spool");
    let closed = || async { plexus_node::spool::scan(&spool, job.attempt).unwrap().closing };
    wait_for(closed, Option::is_some).await;

    let node = place.start().await;
    let mut records = job.attach(&node, 1).await;
    let outcome = records.take_all().await;
    assert_eq!((outcome.outcome(), outcome.exit_code), (Outcome::Failed, Some(7)));
    assert_eq!(records.stdout(), "begun\nended\n");
    assert!(!place.runtime_dir(job.attempt).exists());
    records.ack_all().await;
    wait_for(|| async { spool.exists() }, |exists| !exists).await;
    node.shutdown().await;
    drop(node);

    let node = place.start().await;
    let status = job.status(&node).await.unwrap();
    assert_eq!(status.acked, status.records, "what was acknowledged stays acknowledged");
    assert_eq!(finished(&status), Some(&outcome));
    job.forget(&node).await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn a_lost_unit_whose_last_ack_was_lost_is_settled_by_another() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo up; sleep 300");
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("up").await;
    kill_process(Pid::from_raw(place.shim_pid(job.attempt)).unwrap(), Signal::KILL).unwrap();
    assert_eq!(records.take_all().await.outcome(), Outcome::Lost);
    let last = job.status(&node).await.unwrap().records;
    node.shutdown().await;

    // Its owner has stored all, and says so again; what it asks for it has.
    let node = place.start().await;
    assert_eq!(job.forget(&node).await.unwrap_err().code(), RefusalCode::NotFinished);
    let mut records = job.attach(&node, last).await;
    records.ack(last).await;
    wait_for(|| async { job.forget(&node).await.is_ok() }, |forgotten| *forgotten).await;
    assert!(!place.unit_dir(job.attempt).exists());
    node.shutdown().await;
}

#[tokio::test]
async fn a_killed_shim_means_lost_with_everything_written_so_far() {
    let place = Place::new();
    let node = place.start().await;
    let job =
        Job::script("echo before; setsid sleep 300 & setsid sh -c 'trap \"\" TERM; sleep 300' & sleep 300");
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("before").await;
    wait_for(|| async { alive(&job) }, |pids| pids.len() >= 4).await;
    kill(place.shim_pid(job.attempt));
    let outcome = records.take_all().await;
    assert_eq!(outcome.outcome(), Outcome::Lost);
    assert!(outcome.reason.contains("shim"), "{}", outcome.reason);
    let (number, RecordKind::Lost(lost)) = records.got.last().unwrap() else { panic!("no lost record") };
    assert_eq!(lost.records, number - 1);
    assert_eq!(alive(&job), Vec::<i32>::new(), "its processes are gone before it is called lost");
    assert!(!place.runtime_dir(job.attempt).exists());
    records.ack_all().await;
    wait_for(|| async { job.forget(&node).await.is_ok() }, |ok| *ok).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_shim_killed_while_no_agent_lives_is_found_lost_and_never_run_again() {
    let place = Place::new();
    let node = place.start().await;
    let ran = place.data.path().join("ran");
    let mut job = Job::script("echo x >> \"$RAN\"; echo before; sleep 300");
    job.spec.env.insert("RAN".to_owned(), ran.display().to_string());
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("before").await;
    let held = records.got.last().unwrap().0;
    node.shutdown().await;
    drop((node, records));
    kill(place.shim_pid(job.attempt));

    let node = place.start().await;
    let status =
        wait_for(|| job.status(&node), |status| finished(status.as_ref().unwrap()).is_some()).await.unwrap();
    assert_eq!(finished(&status).unwrap().outcome(), Outcome::Lost);
    assert_eq!(alive(&job), Vec::<i32>::new());
    let (_, last) = job.payload(&node).await;
    assert!(matches!(last, PayloadMessageKind::Done(_)), "a payload is not wanted: {last:?}");
    job.submit(&node).await;
    let mut records = job.attach(&node, held + 1).await;
    records.take_all().await;
    assert_eq!(records.got.len(), 1);
    assert_eq!(fs::read_to_string(ran).unwrap(), "x\n", "it ran once");
    node.shutdown().await;
}

#[tokio::test]
async fn a_shim_that_listens_to_nobody_is_killed_and_its_unit_lost() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo before; sleep 300");
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("before").await;
    node.shutdown().await;
    drop(node);
    // It stands still, and so many have called that nobody else can.
    let shim = Pid::from_raw(place.shim_pid(job.attempt)).unwrap();
    kill_process(shim, Signal::STOP).unwrap();
    let socket = place.runtime_dir(job.attempt).join("shim.sock");
    let mut callers = Vec::new();
    while let Ok(caller) = tokio::net::UnixStream::connect(&socket).await {
        callers.push(caller);
        assert!(callers.len() < 10_000, "a shim takes callers without end");
    }

    let node = place.start().await;
    let mut view = node.watch(job.attempt).unwrap();
    // The agent gives it longer than it needs to begin or to end.
    let ended = tokio::time::timeout(Duration::from_secs(90), view.wait_for(View::is_finished));
    let status = ended.await.unwrap().unwrap().status.clone();
    let finished = finished(&status).unwrap();
    assert_eq!(finished.outcome(), Outcome::Lost);
    assert!(finished.reason.contains("listened to no agent"), "{}", finished.reason);
    assert_eq!(alive(&job), Vec::<i32>::new());
    let mut records = job.attach(&node, 1).await;
    records.take_all().await;
    assert_eq!(records.stdout(), "before\n");
    node.shutdown().await;
}

#[tokio::test]
async fn power_loss_between_mark_and_shim_is_lost_and_before_the_mark_is_pending() {
    let place = Place::new();
    let node = place.start().await;
    let (marked, unmarked) = (Job::script("echo ran"), Job::script("echo ran"));
    marked.submit(&node).await;
    unmarked.submit(&node).await;
    node.shutdown().await;
    drop(node);
    UnitDir::new(&place.data.path().join("data/units"), marked.attempt).mark_starting(None).unwrap();
    // tmpfs is empty after a loss of power; what an old agent left there is not trusted either.
    fs::create_dir_all(place.runtime_dir(unmarked.attempt).join("private")).unwrap();

    let node = place.start().await;
    let lost = wait_for(|| marked.status(&node), |status| finished(status.as_ref().unwrap()).is_some())
        .await
        .unwrap();
    assert_eq!(finished(&lost).unwrap().outcome(), Outcome::Lost);
    assert_eq!(lost.records, 1, "a lost record alone");
    let pending = unmarked.status(&node).await.unwrap();
    assert!(matches!(pending.state, Some(UnitStatusState::Pending(Pending { needs_payload: true }))));
    let records = unmarked.run(&node).await;
    assert_eq!(records.stdout(), "ran\n");
    node.shutdown().await;
}

#[tokio::test]
async fn a_unit_whose_shim_was_not_told_to_start_it_is_lost_and_says_that_nothing_ran() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo ran");
    job.submit(&node).await;
    node.shutdown().await;
    drop(node);
    // The agent died between the mark and the launch: the shim that it had taken ended with it.
    UnitDir::new(&place.data.path().join("data/units"), job.attempt).mark_starting(None).unwrap();
    fs::create_dir_all(place.runtime_dir(job.attempt)).unwrap();

    let node = place.start().await;
    let lost =
        wait_for(|| job.status(&node), |status| finished(status.as_ref().unwrap()).is_some()).await.unwrap();
    let finished = finished(&lost).unwrap();
    assert_eq!(finished.outcome(), Outcome::Lost);
    assert!(finished.reason.contains("nothing of the unit ran"), "{}", finished.reason);
    node.shutdown().await;
}

#[tokio::test]
async fn a_controller_that_is_ahead_of_the_spool_learns_that_the_unit_is_lost() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo one; sleep 0.05; echo two; sleep 0.05; echo three; sleep 300");
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("three").await;
    let held = records.got.last().unwrap().0;
    node.shutdown().await;
    drop((node, records));
    kill(place.shim_pid(job.attempt));
    wait_for(|| async { alive(&job) }, |_| true).await;
    // Power went before the last records were synced.
    let segment = plexus_node::spool::segment_path(&place.unit_dir(job.attempt).join("spool"), 1);
    let length = fs::metadata(&segment).unwrap().len();
    fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(length - 100).unwrap();

    let node = place.start().await;
    let mut records = job.attach(&node, held + 1).await;
    records.take_all().await;
    let (number, RecordKind::Lost(lost)) = &records.got[0] else { panic!("no lost record") };
    assert_eq!(*number, held + 1, "it takes the number that is waited for");
    assert!(lost.records < held);
    records.ack_all().await;
    wait_for(|| async { job.forget(&node).await.is_ok() }, |ok| *ok).await;
    node.shutdown().await;
}

#[tokio::test]
async fn cancel_lets_the_worker_finish_within_its_grace() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("trap 'echo stopping; exit 254' TERM; echo ready; while :; do sleep 0.02; done");
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("ready").await;
    let asked = Instant::now();
    job.cancel(&node).await;
    let outcome = records.take_all().await;
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!((outcome.outcome(), outcome.exit_code), (Outcome::Canceled, Some(254)));
    assert_eq!(records.stdout(), "ready\nstopping\n");
    node.shutdown().await;
}

#[tokio::test]
async fn cancel_ends_setsid_children_that_ignore_sigterm_once_the_grace_is_over() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & \
         (setsid setsid sleep 300 &) ; echo ready; while :; do sleep 1; done",
    );
    job.spec.grace_seconds = 1;
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("ready").await;
    wait_for(|| async { alive(&job) }, |pids| pids.len() >= 4).await;
    let asked = Instant::now();
    // If one of the cancels after the first began the grace anew, the job would never end.
    let asks_on = async {
        loop {
            job.cancel(&node).await;
            let living = alive(&job);
            assert!(!living.is_empty() || asked.elapsed() >= Duration::from_secs(1), "the grace is granted");
        }
    };
    let outcome = tokio::select! {
        outcome = records.take_all() => outcome,
        () = asks_on => unreachable!(),
    };
    assert_eq!(outcome.outcome(), Outcome::Canceled);
    assert_eq!(alive(&job), Vec::<i32>::new(), "canceled means that nothing is alive");
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    node.shutdown().await;
}

#[tokio::test]
async fn a_plain_end_takes_daemons_with_it() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("setsid sleep 300 & setsid setsid sleep 300 & echo done");
    let records = job.run(&node).await;
    assert_eq!(records.outcome().outcome(), Outcome::Succeeded);
    assert_eq!(records.stdout(), "done\n");
    assert_eq!(alive(&job), Vec::<i32>::new());
    node.shutdown().await;
}

#[tokio::test]
async fn cancel_before_the_payload_prevents_the_start() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo ran");
    job.submit(&node).await;
    let status = job.cancel(&node).await;
    assert_eq!(finished(&status).unwrap().outcome(), Outcome::Canceled);
    let (heard, last) = job.payload(&node).await;
    assert!(heard.is_empty() && matches!(last, PayloadMessageKind::Done(_)), "{last:?}");
    assert_eq!(job.status(&node).await.unwrap().records, 0);
    node.shutdown().await;
    drop(node);
    let node = place.start().await;
    assert_eq!(finished(&job.status(&node).await.unwrap()).unwrap().outcome(), Outcome::Canceled);
    job.forget(&node).await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn a_cancel_on_the_heels_of_the_start_is_not_overlooked() {
    let place = Place::new();
    let node = place.start().await;
    for _ in 0..10 {
        let job = Job::script("sleep 300");
        job.submit(&node).await;
        // Start and cancel reach the shim in one piece.
        let (started, canceled) = tokio::join!(job.payload(&node), async {
            wait_for(
                || job.status(&node),
                |status| !matches!(status.as_ref().unwrap().state, Some(UnitStatusState::Pending(_))),
            )
            .await
            .unwrap();
            job.cancel(&node).await
        });
        assert!(matches!(started.1, PayloadMessageKind::Done(_)));
        assert!(finished(&canceled).is_none());
        let mut records = job.attach(&node, 1).await;
        assert_eq!(records.take_all().await.outcome(), Outcome::Canceled);
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_cancel_reaches_a_unit_whose_agent_was_restarted() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo ready; sleep 300");
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("ready").await;
    node.shutdown().await;
    drop(node);
    let node = place.start().await;
    job.cancel(&node).await;
    let mut records = job.attach(&node, 1).await;
    assert_eq!(records.take_all().await.outcome(), Outcome::Canceled);
    node.shutdown().await;
}

#[tokio::test]
async fn damage_in_the_spool_of_a_finished_unit_is_named_never_served() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("for i in 1 2 3 4 5; do echo line $i; sleep 0.02; done");
    let records = job.run(&node).await;
    assert!(records.got.len() >= 6);
    drop(records);
    node.shutdown().await;
    drop(node);
    let segment = plexus_node::spool::segment_path(&place.unit_dir(job.attempt).join("spool"), 1);
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&segment, bytes).unwrap();

    let node = place.start().await;
    let mut records = job.attach(&node, 1).await;
    while !matches!(records.got.last(), Some((_, RecordKind::Lost(_)))) {
        assert_eq!(records.next().await, None);
    }
    let (number, RecordKind::Lost(lost)) = records.got.last().unwrap() else { panic!("no lost record") };
    assert!(lost.reason.contains(&format!("record {number}")), "{}", lost.reason);
    let status = job.status(&node).await.unwrap();
    assert_eq!(finished(&status).unwrap().outcome(), Outcome::Lost);
    records.ack_all().await;
    wait_for(|| async { job.forget(&node).await.is_ok() }, |ok| *ok).await;
    node.shutdown().await;
}

#[tokio::test]
async fn damage_before_what_a_controller_has_is_named_where_it_goes_on() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("for i in 1 2 3 4 5; do echo line $i; sleep 0.02; done");
    let records = job.run(&node).await;
    let next = records.got.last().unwrap().0;
    drop(records);
    node.shutdown().await;
    drop(node);
    let segment = plexus_node::spool::segment_path(&place.unit_dir(job.attempt).join("spool"), 1);
    let mut bytes = fs::read(&segment).unwrap();
    bytes[plexus_node::spool::segment::HEADER_LEN + 40] ^= 0x10; // in its first record
    fs::write(&segment, bytes).unwrap();

    // All but the last record is with the controller, which waits for that one and for nothing else.
    let node = place.start().await;
    job.attach(&node, next).await.ends().await;
    let mut records = job.attach(&node, next).await;
    assert_eq!(records.take_all().await.outcome(), Outcome::Lost);
    assert_eq!(records.got.last().unwrap().0, next);
    records.ack_all().await;
    wait_for(|| async { job.forget(&node).await.is_ok() }, |ok| *ok).await;
    node.shutdown().await;
}

#[tokio::test]
async fn leftovers_of_unknown_units_are_removed() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("echo ready; sleep 300");
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("ready").await;
    node.shutdown().await;
    drop(node);
    // The data directory is wiped under a running unit: a reimaged node, but for its tmpfs.
    fs::remove_dir_all(place.data.path().join("data")).unwrap();
    let node = place.start().await;
    assert_eq!(job.status(&node).await.unwrap_err().code(), RefusalCode::UnknownUnit);
    let gone = || async {
        node.reap().await;
        (alive(&job), place.runtime_dir(job.attempt).exists())
    };
    wait_for(gone, |(pids, exists)| pids.is_empty() && !exists).await;
    let refusal = answer(
        node.submit(&caller(), SubmitRequest { store_id: vec![9; 16].into(), ..job.submit_request(&node) })
            .await,
    );
    assert_eq!(refusal.unwrap_err().code(), RefusalCode::OtherStore);
    node.shutdown().await;
}

#[tokio::test]
async fn garbage_on_a_stream_is_an_error_and_nothing_else() {
    let place = Place::new();
    let node = place.start().await;
    let mut talk = Talk::records(&node);
    talk.say(&RecordMessage { kind: Some(RecordMessageKind::Ack(Ack { epoch: None, up_to: 7 })) }).await;
    assert!(talk.end().await.is_err());
    let mut talk = Talk::payload(&node);
    talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Private(PrivateBlock::default())) }).await;
    assert!(talk.end().await.is_err());
    let job = Job::script("");
    let mut talk = Talk::payload(&node);
    let open = PayloadOpen {
        unit: Some(job.attempt.into()),
        epoch: Some(epoch(1).into()),
        ..PayloadOpen::default()
    };
    talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Open(open)) }).await;
    let Some(PayloadMessage { kind: Some(PayloadMessageKind::Refusal(refusal)) }) = talk.hear().await else {
        panic!("not refused")
    };
    assert_eq!(refusal.code(), RefusalCode::UnknownUnit);
    node.shutdown().await;
}

#[tokio::test]
async fn many_restarts_under_a_chatty_unit_lose_and_double_nothing() {
    let place = Place::new();
    let mut node = place.start().await;
    let job = Job::script("seq 1 60000 | while read -r line; do echo \"$line\"; done");
    job.start(&node).await;
    let (mut next, mut got) = (1, Vec::new());
    for round in 0.. {
        let mut records = job.attach(&node, next).await;
        let ended = |records: &Records| matches!(records.got.last(), Some((_, RecordKind::End(_))));
        let mut bytes = 0;
        while bytes < 30_000 && !ended(&records) {
            assert_eq!(records.next().await, None);
            if let Some((_, RecordKind::Output(output))) = records.got.last() {
                bytes += output.data.len();
            }
        }
        let last = records.got.last().unwrap().0;
        if round % 2 == 0 {
            records.ack(last).await;
        }
        got.extend(records.bytes(Stream::Stdout));
        next = last + 1;
        if ended(&records) {
            break;
        }
        node.shutdown().await;
        drop((node, records));
        node = place.start().await;
    }
    let expected: String = (1..=60_000).map(|number| format!("{number}\n")).collect();
    assert!(got == expected.as_bytes(), "{} bytes instead of {}", got.len(), expected.len());
    node.shutdown().await;
}

/// Mounts a small tmpfs; this needs root, as the container tests do.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_holds_the_job_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount(24 << 20) else {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    };
    let mut place = Place::new();
    place.data = tempfile::tempdir_in(disk.0.path()).unwrap();
    let node = place.start().await;
    let job = Job::script("seq 1 5000000; echo last");
    job.start(&node).await;
    let spool = place.unit_dir(job.attempt).join("spool");
    let held = || async { plexus_node::spool::held_bytes(&spool).unwrap_or(0) };
    wait_for(held, |held| *held >= 22 << 20).await;
    // Nothing gives way until a controller takes what is there.
    let why = || async { job.status(&node).await.unwrap().held };
    wait_for(why, |why| why == "its disk is full").await;
    assert!(finished(&job.status(&node).await.unwrap()).is_none());
    let mut records = job.attach(&node, 1).await;
    records.take_all_and_ack().await;
    let text = records.stdout();
    assert!(text.ends_with("\n5000000\nlast\n"));
    assert_eq!(text.lines().count(), 5_000_001);
    node.shutdown().await;
    drop((node, records));
}

#[tokio::test]
async fn a_spool_that_cannot_be_closed_when_its_shim_dies_is_closed_once_it_can() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("sleep 300");
    job.start(&node).await;
    // As if the disk were full: what is to be written cannot be.
    let (spool, away) = (place.unit_dir(job.attempt).join("spool"), place.unit_dir(job.attempt).join("away"));
    fs::rename(&spool, &away).unwrap();
    fs::write(&spool, "no directory").unwrap();
    kill(place.shim_pid(job.attempt));
    wait_for(|| async { alive(&job) }, Vec::is_empty).await;
    // Nothing is concluded without it being written down.
    let status = job.submit(&node).await; // the unit's task answers once its try to close the spool is over
    assert!(finished(&status).is_none());
    fs::remove_file(&spool).unwrap();
    fs::rename(&away, &spool).unwrap();
    wait_for(|| job.status(&node), |status| finished(status.as_ref().unwrap()).is_some()).await.unwrap();
    let mut records = job.attach(&node, 1).await;
    assert_eq!(records.take_all().await.outcome(), Outcome::Lost);
    node.shutdown().await;
}

#[tokio::test]
async fn a_controller_from_a_backup_cannot_run_again_what_ran_and_was_forgotten() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("true");
    let mut records = job.run(&node).await;
    records.ack_all().await;
    wait_for(|| async { job.forget(&node).await.is_ok() }, |ok| *ok).await;
    node.shutdown().await;
    drop(node);
    for _ in 0..2 {
        // Yesterday's backup, restored, and restored again; the agent was restarted in between.
        let node = place.start().await;
        let refusal = answer(node.submit(&caller(), job.submit_request(&node)).await).unwrap_err();
        assert_eq!(refusal.code(), RefusalCode::Forgotten, "{}", refusal.message);
        assert!(!place.unit_dir(job.attempt).exists());
        node.shutdown().await;
    }
}

#[tokio::test]
async fn a_data_directory_that_is_older_than_what_was_heard_of_it_runs_nothing_of_its_past() {
    let place = Place::new();
    let node = place.start().await;
    let first = node.info(&InfoRequest::default()).await;
    let (job, later) = (Job::script("true"), Job::script("true"));
    let submit = job.submit_request(&node);
    let heard =
        |store_id: &bytes::Bytes, starts| InfoRequest { store_id: store_id.clone(), starts, resting: false };
    for same in [heard(&first.store_id, first.starts), heard(&vec![9; 16].into(), first.starts + 9)] {
        assert_eq!(node.info(&same).await.store_id, first.store_id, "nothing is wrong");
    }
    // A snapshot was brought back: somebody has heard of later starts.
    let renewed = node.info(&heard(&first.store_id, first.starts + 3)).await;
    assert_ne!(renewed.store_id, first.store_id);
    assert_eq!((renewed.start, renewed.starts), (first.start, first.starts), "the agent is the same");
    let again = node.info(&heard(&first.store_id, first.starts + 3)).await;
    assert_eq!(again.store_id, renewed.store_id, "said again before the answer came");
    let refusal = answer(node.submit(&caller(), submit).await).unwrap_err();
    assert_eq!(refusal.code(), RefusalCode::OtherStore, "{}", refusal.message);
    later.run(&node).await;
    node.shutdown().await;
    drop(node);
    let node = place.start().await;
    assert_eq!(node.info(&InfoRequest::default()).await.store_id, renewed.store_id, "for good");
    node.shutdown().await;
}

#[tokio::test]
async fn what_is_abandoned_dies_and_what_is_abandoned_unseen_never_starts() {
    let place = Place::new();
    let node = place.start().await;
    let abandon = |job: &Job, epoch: plexus_proto::id::OwnerEpoch| {
        let request = AbandonRequest { unit: Some(job.attempt.into()), epoch: Some(epoch.into()) };
        let node = node.clone();
        async move { answer(node.abandon(&caller(), request).await) }
    };
    // SIGTERM is ignored and a child is in a session of its own: only the end of the whole tree helps.
    let job = Job::script("trap '' TERM; (setsid sleep 300 &); echo ready; sleep 300");
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("ready").await;
    let refusal = abandon(&job, epoch(0)).await.unwrap_err();
    assert_eq!(refusal.code(), RefusalCode::OlderEpoch);
    abandon(&job, epoch(2)).await.unwrap();
    wait_for(|| async { alive(&job) }, Vec::is_empty).await;
    wait_for(|| job.status(&node), |status| finished(status.as_ref().unwrap()).is_some()).await.unwrap();
    abandon(&job, epoch(2)).await.unwrap();
    let mut job = job;
    job.epoch = epoch(3);
    let mut records = job.attach(&node, 1).await;
    assert_eq!(records.take_all().await.outcome(), Outcome::Canceled, "what it printed is still to be had");

    let unseen = Job::script("true");
    for _ in 0..2 {
        assert_eq!(abandon(&unseen, epoch(2)).await.unwrap_err().code(), RefusalCode::Forgotten);
    }
    let late = answer(node.submit(&caller(), unseen.submit_request(&node)).await).unwrap_err();
    assert_eq!(late.code(), RefusalCode::Forgotten, "its submit was on the way");
    node.shutdown().await;
}

#[tokio::test]
async fn a_unit_whose_owner_falls_silent_ends_also_without_its_agent() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("echo ready; sleep 300");
    job.spec.owner_deadline_seconds = 5;
    job.start(&node).await;
    job.attach(&node, 1).await.until_output("ready").await;
    node.shutdown().await;
    drop(node);
    wait_for(|| async { alive(&job) }, Vec::is_empty).await;
    let node = place.start().await;
    let mut records = job.attach(&node, 1).await;
    let outcome = records.take_all().await;
    assert_eq!(outcome.outcome(), Outcome::Lost);
    assert!(outcome.reason.contains("nothing was heard"), "{}", outcome.reason);
    node.shutdown().await;
}

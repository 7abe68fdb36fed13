//! Whole lives of units: real shims, real processes, in-memory streams.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::PathBuf;

use common::*;
use plexus_proto::work::*;

#[tokio::test]
async fn a_unit_runs_and_every_byte_arrives_once_and_sealed() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("cat; echo to-stderr >&2; echo done; exit 3");
    let first = job.submit(&node).await;
    assert!(matches!(first.state, Some(UnitStatusState::Pending(Pending { needs_payload: true }))));
    assert_eq!(job.submit(&node).await, first, "submit says it again");

    let mut records = job.run(&node).await;
    assert!(matches!(records.got[0], (1, RecordKind::Starting(Starting { pid })) if pid > 1));
    assert_eq!(records.stdout(), "{\"kwargs\":{}}\n{\"eof\":true}\ndone\n");
    assert_eq!(records.bytes(Stream::Stderr), b"to-stderr\n");
    assert_eq!(records.end().stderr_tail[..], *b"to-stderr\n");
    let outcome = records.outcome();
    assert_eq!((outcome.outcome(), outcome.exit_code), (Outcome::Failed, Some(3)));
    assert_eq!(records.end().finished, Some(outcome));
    assert!(!place.runtime_dir(job.attempt).exists(), "nothing private stays after the end");

    let refusal = job.forget(&node).await.unwrap_err();
    assert_eq!(refusal.code(), RefusalCode::NotFinished, "{}", refusal.message);
    records.ack_all().await;
    let last = records.got.last().unwrap().0;
    wait_for(|| job.status(&node), |status| status.as_ref().unwrap().acked == last).await.unwrap();
    job.forget(&node).await.unwrap();
    assert_eq!(job.status(&node).await.unwrap_err().code(), RefusalCode::UnknownUnit);
    assert_eq!(files_below(&place.data.path().join("data/units")), Vec::<std::path::PathBuf>::new());
    let again = answer(node.submit(&caller(), job.submit_request(&node)).await).unwrap_err();
    assert_eq!(again.code(), RefusalCode::Forgotten, "it ran, and never runs again");
    node.shutdown().await;
}

#[tokio::test]
async fn a_unit_may_be_submitted_with_its_payload() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("cat site.yml").with_tree(&[("site.yml", 0o644, b"hello")]);
    let needs = |heard: &[PayloadMessageKind]| {
        let needs = heard.iter().filter_map(|kind| match kind {
            PayloadMessageKind::Need(need) => Some((need.manifest, !need.chunks.is_empty(), need.private)),
            _ => None,
        });
        needs.collect::<Vec<_>>()
    };
    let (heard, last) = job.payload_at_once(&node).await;
    assert!(matches!(last, PayloadMessageKind::Done(_)), "{last:?}");
    assert_eq!(needs(&heard), [(true, false, false), (false, true, false)], "the tree alone is asked for");
    let mut records = job.attach(&node, 1).await;
    records.take_all().await;
    assert_eq!(records.stdout(), "hello");

    // Said again, it starts nothing; said of another store, nothing is kept.
    let (heard, last) = job.payload_at_once(&node).await;
    assert!(heard.is_empty(), "{heard:?}");
    let PayloadMessageKind::Done(done) = last else { panic!("{last:?}") };
    assert!(finished(&done.status.unwrap()).is_some());
    let stranger = Job::script("true");
    let mut talk = Talk::payload(&node);
    let submit = SubmitRequest { store_id: vec![5; 16].into(), ..stranger.submit_request(&node) };
    let open = PayloadOpen { submit: Some(submit), ..stranger.open() };
    talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Open(open)) }).await;
    let heard = talk.hear::<PayloadMessage>().await.unwrap().kind.unwrap();
    assert!(
        matches!(&heard, PayloadMessageKind::Refusal(refusal) if refusal.code() == RefusalCode::OtherStore),
        "{heard:?}"
    );
    assert!(!place.unit_dir(stranger.attempt).exists());

    // A unit that another name is submitted for is the one that the stream is about.
    let (own, other) = (Job::script("true"), Job::script("true"));
    let open = PayloadOpen { submit: Some(other.submit_request(&node)), ..own.open() };
    let mut talk = Talk::payload(&node);
    talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Open(open)) }).await;
    talk.hear::<PayloadMessage>().await.unwrap();
    assert!(place.unit_dir(own.attempt).exists() && !place.unit_dir(other.attempt).exists());
    node.shutdown().await;
}

#[tokio::test]
async fn the_project_travels_once_and_each_unit_writes_into_its_own_copy() {
    let place = Place::new();
    let node = place.start().await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|index| (index / 7 % 256) as u8).collect();
    let tree: &[(&str, u32, &[u8])] = &[
        ("roles/", 0o755, b""),
        ("roles/run.sh", 0o755, b"#!/bin/sh\necho ran\n"),
        ("large.bin", 0o644, &large),
        ("link@", 0, b"roles/run.sh"),
    ];
    let script =
        "pwd -P; ls; ./link; wc -c < {large}; test -e new && echo stale; echo mine > new; rm large.bin; \
                  readlink ${DIR}/project"
            .replace("{large}", "large.bin");
    let mut job = Job::script(&script).with_tree(tree);
    job.spec
        .env
        .insert("DIR".to_owned(), place.runtime_dir(job.attempt).join("private").display().to_string());
    job.submit(&node).await;
    let (heard, last) = job.payload(&node).await;
    assert!(matches!(last, PayloadMessageKind::Done(_)), "{last:?}");
    let needs: Vec<_> = heard
        .iter()
        .map(|kind| match kind {
            PayloadMessageKind::Need(need) => (need.manifest, need.chunks.clone(), need.private),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(needs, [(true, vec![], false), (false, vec![0, 4], false), (false, vec![], true)]);
    let mut records = job.attach(&node, 1).await;
    let outcome = records.take_all().await;
    let project = place.unit_dir(job.attempt).join("project");
    let text = records.stdout();
    let copy = PathBuf::from(text.lines().next().unwrap());
    assert!(copy.starts_with(&project), "{copy:?}");
    let expected = format!("{0}\nlarge.bin\nlink\nroles\nran\n3000000\n{0}\n", copy.display());
    assert_eq!(text, expected, "{outcome:?}");

    // The second unit of the same tree: nothing but the private block travels.
    let mut again = Job::script(&script).with_tree(tree);
    again
        .spec
        .env
        .insert("DIR".to_owned(), place.runtime_dir(again.attempt).join("private").display().to_string());
    again.submit(&node).await;
    let (heard, _) = again.payload(&node).await;
    assert!(
        matches!(&heard[..], [PayloadMessageKind::Need(PayloadNeed { manifest: false, chunks, private: true })] if chunks.is_empty()),
        "{heard:?}"
    );
    let mut records = again.attach(&node, 1).await;
    records.take_all().await;
    assert!(!records.stdout().contains("stale"));
    assert!(records.stdout().contains("3000000"));
    wait_for(|| async { project.exists() }, |exists| !exists).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_hostile_tree_ends_its_unit_with_the_reason_and_touches_nothing() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("true").with_tree(&[("../escape", 0o644, b"x")]);
    job.submit(&node).await;
    let (_, last) = job.payload(&node).await;
    let PayloadMessageKind::Done(done) = last else { panic!("{last:?}") };
    let status = done.status.unwrap();
    let outcome = finished(&status).unwrap();
    assert_eq!(outcome.outcome(), Outcome::Failed);
    assert!(
        outcome.reason.contains("\"../escape\"") && outcome.reason.contains("'..'"),
        "{}",
        outcome.reason
    );
    assert_eq!(status.records, 0, "nothing was started, so there is no end record to wait for");
    assert!(!place.data.path().join("data/escape").exists());
    assert!(!place.data.path().join("data/units/escape").exists());
    job.forget(&node).await.unwrap();
    node.shutdown().await;
}

#[tokio::test]
async fn a_bad_private_block_fails_the_unit_before_anything_runs() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("echo ran");
    job.files.push(private_file("../../escape", "x"));
    job.submit(&node).await;
    let (_, last) = job.payload(&node).await;
    let PayloadMessageKind::Done(done) = last else { panic!("{last:?}") };
    let status = done.status.unwrap();
    let outcome = finished(&status).unwrap();
    assert!(outcome.reason.contains("../../escape"), "{}", outcome.reason);
    assert_eq!(status.records, 0);
    wait_for(|| async { place.runtime_dir(job.attempt).exists() }, |exists| !exists).await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_worker_that_cannot_start_is_a_failure_with_its_command() {
    let mut place = Place::new();
    place.work.process.command = vec!["/nonexistent/worker".to_owned()];
    let node = place.start().await;
    let mut records = Job::script("").run(&node).await;
    let outcome = records.outcome();
    assert_eq!(outcome.outcome(), Outcome::Failed);
    assert!(outcome.reason.contains("cannot start /nonexistent/worker"), "{}", outcome.reason);
    assert_eq!(records.got.len(), 1, "the end record alone");
    records.ack_all().await;
    node.shutdown().await;
}

#[tokio::test]
async fn submit_is_refused_for_another_store_an_older_epoch_and_a_second_attempt() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("sleep 60");
    job.epoch = epoch(5);
    let refused = |request: SubmitRequest| {
        let node = node.clone();
        async move { answer(node.submit(&caller(), request).await).unwrap_err() }
    };
    let other_store = SubmitRequest { store_id: vec![1; 16].into(), ..job.submit_request(&node) };
    assert_eq!(refused(other_store).await.code(), RefusalCode::OtherStore);
    let no_epoch = SubmitRequest { epoch: None, ..job.submit_request(&node) };
    assert_eq!(refused(no_epoch).await.code(), RefusalCode::Invalid);
    let no_unit = SubmitRequest { unit: None, ..job.submit_request(&node) };
    assert_eq!(refused(no_unit).await.code(), RefusalCode::Invalid);

    job.submit(&node).await;
    let older = SubmitRequest { epoch: Some(epoch(4).into()), ..job.submit_request(&node) };
    assert_eq!(refused(older).await.code(), RefusalCode::OlderEpoch);
    let mut second = job.submit_request(&node);
    second.unit = Some(plexus_proto::id::Attempt { number: 2, ..job.attempt }.into());
    let refusal = refused(second.clone()).await;
    assert!(refusal.message.contains("attempt 1"), "{}", refusal.message);

    let stranger = plexus_node::work::Caller { cluster: "other".parse().unwrap(), ..caller() };
    let theirs = answer(node.submit(&stranger, job.submit_request(&node)).await).unwrap_err();
    assert_eq!(theirs.code(), RefusalCode::NotOwner);
    assert_eq!(node.list(&stranger).units, []);
    assert_eq!(node.list(&caller()).units.len(), 1);
    let seen =
        answer(node.status(&stranger, StatusRequest { unit: Some(job.attempt.into()) }).await).unwrap_err();
    assert_eq!(seen.code(), RefusalCode::NotOwner);

    job.cancel(&node).await;
    status(node.submit(&caller(), second).await);

    // A database restored from a backup goes above; whoever is left of the time before acts on nothing any more.
    let restored = plexus_proto::id::OwnerEpoch { incarnation: 2, counter: 1 };
    let fresh = Job { epoch: restored, ..Job::script("true") };
    fresh.submit(&node).await;
    let refusal = refused(job.submit_request(&node)).await;
    assert_eq!((refusal.code(), refusal.incarnation), (RefusalCode::PastIncarnation, 2));
    let unknown = Job::script("true");
    assert_eq!(refused(unknown.submit_request(&node)).await.code(), RefusalCode::PastIncarnation);
    node.shutdown().await;
}

#[tokio::test]
async fn a_newer_attach_ends_the_older_and_takes_the_acks() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("echo one; read line; sleep 60");
    job.start(&node).await;
    let mut old = job.attach(&node, 1).await;
    old.until(2).await;
    job.epoch = epoch(2);
    let mut new = job.attach(&node, 1).await;
    let refusal = loop {
        if let Some(refusal) = old.next().await {
            break refusal;
        }
    };
    assert_eq!(refusal.code(), RefusalCode::OlderEpoch);
    assert!(old.talk.end().await.is_err());
    new.until(2).await;

    // An ack with a past epoch is void, whoever sends it.
    new.epoch = epoch(1);
    new.ack(2).await;
    new.epoch = epoch(2);
    new.ack(1).await;
    wait_for(|| job.status(&node), |status| status.as_ref().unwrap().acked > 0).await.unwrap();
    assert_eq!(job.status(&node).await.unwrap().acked, 1);

    job.epoch = epoch(1);
    let request = CancelRequest { unit: Some(job.attempt.into()), epoch: Some(job.epoch.into()) };
    assert_eq!(answer(node.cancel(&caller(), request).await).unwrap_err().code(), RefusalCode::OlderEpoch);
    job.epoch = epoch(3);
    job.cancel(&node).await;
    let refusal = loop {
        if let Some(refusal) = new.next().await {
            break refusal;
        }
    };
    assert_eq!(refusal.code(), RefusalCode::OlderEpoch, "a cancel with a higher epoch takes the unit over");
    node.shutdown().await;
}

#[tokio::test]
async fn megabyte_lines_come_in_fragments() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("head -c 3500000 /dev/zero | tr '\\0' x; echo; echo short; printf tail");
    let records = job.run(&node).await;
    let fragments: Vec<_> = records
        .got
        .iter()
        .filter_map(|(_, kind)| match kind {
            RecordKind::Output(output) => Some(output.fragment()),
            _ => None,
        })
        .collect();
    assert_eq!(fragments[0], Fragment::First);
    assert!(fragments.contains(&Fragment::More) && fragments.contains(&Fragment::Last));
    let text = records.stdout();
    assert_eq!(text.len(), 3_500_000 + 1 + 6 + 4);
    assert!(text.ends_with("x\nshort\ntail"));
    node.shutdown().await;
}

#[tokio::test]
async fn a_burst_of_many_megabytes_arrives_whole_and_leaves_the_disk_with_the_acks() {
    let place = Place::new();
    let node = place.start().await;
    let job = Job::script("seq 1 4000000");
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    let mut acked = 0;
    while !matches!(records.got.last(), Some((_, RecordKind::End(_)))) {
        assert_eq!(records.next().await, None);
        let last = records.got.last().map_or(0, |(number, _)| *number);
        if last >= acked + 50 {
            records.ack(last).await;
            acked = last;
        }
    }
    let mut expected = 0_u64;
    for line in records.stdout().lines() {
        expected += 1;
        assert_eq!(line.parse(), Ok(expected));
    }
    assert_eq!(expected, 4_000_000);
    records.ack_all().await;
    wait_for(|| async { place.unit_dir(job.attempt).join("spool").exists() }, |exists| !exists).await;
    let again = job.attach(&node, 1).await;
    assert_eq!(
        again.attached.first_record,
        records.got.last().unwrap().0 + 1,
        "acknowledged records are gone"
    );
    node.shutdown().await;
}

#[tokio::test]
async fn a_full_spool_holds_the_job_until_records_are_acknowledged() {
    let mut place = Place::new();
    place.work.spool_quota_mib = 20;
    let node = place.start().await;
    let job = Job::script("seq 1 6000000 > \"$HOME/../lines\"; cat \"$HOME/../lines\"; echo last");
    job.start(&node).await;
    let spool = place.unit_dir(job.attempt).join("spool");
    let held = || {
        let spool = spool.clone();
        async move { plexus_node::spool::held_bytes(&spool).unwrap_or(0) }
    };
    wait_for(held, |held| *held >= 20 << 20).await;
    // Nobody reads: it stays where it is.
    let why = || async { job.status(&node).await.unwrap().held };
    wait_for(why, |why| why == "its spool is full").await;
    assert!(held().await < 22 << 20, "{} bytes", held().await);
    let mut records = job.attach(&node, 1).await;
    records.take_all_and_ack().await;
    assert!(records.stdout().ends_with("\n6000000\nlast\n"));
    assert_eq!(why().await, "");
    node.shutdown().await;
}

#[tokio::test]
async fn spools_that_are_full_together_hold_every_job_and_let_each_go_on() {
    let mut place = Place::new();
    (place.work.spool_quota_mib, place.work.spool_total_mib) = (64, 40);
    let node = place.start().await;
    let jobs = [(); 2].map(|()| Job::script("seq 1 6000000; echo last"));
    for job in &jobs {
        job.start(&node).await;
    }
    let all = "the spools of all jobs there are full together";
    for job in &jobs {
        wait_for(|| async { job.status(&node).await.unwrap().held }, |why| why == all).await;
    }
    // The next agent counts what it finds, and holds them as well.
    node.shutdown().await;
    drop(node);
    let node = place.start().await;
    let sum = || async {
        let spools = jobs.iter().map(|job| place.unit_dir(job.attempt).join("spool"));
        spools.map(|spool| plexus_node::spool::held_bytes(&spool).unwrap_or(0)).sum::<u64>()
    };
    let before = sum().await;
    assert!((40 << 20..64 << 20).contains(&before), "{before} bytes");
    for job in &jobs {
        wait_for(|| async { job.status(&node).await.unwrap().held }, |why| why == all).await;
    }
    assert_eq!(sum().await, before);
    for job in &jobs {
        let mut records = job.attach(&node, 1).await;
        records.take_all_and_ack().await;
        assert!(records.stdout().ends_with("\n6000000\nlast\n"));
    }
    node.shutdown().await;
}

#[tokio::test]
async fn output_reaches_the_controller_at_once() {
    let place = Place::new();
    let node = place.start().await;
    // The worker says when it wrote, in the clock that this test reads too.
    let job = Job::script(
        "python3 -c '\nimport time,sys\nfor _ in range(40):\n    time.sleep(0.01)\n    print(time.clock_gettime_ns(time.CLOCK_REALTIME), flush=True)'",
    );
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    let mut delays = Vec::new();
    while !matches!(records.got.last(), Some((_, RecordKind::End(_)))) {
        assert_eq!(records.next().await, None);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        if let Some((_, RecordKind::Output(output))) = records.got.last() {
            let text = String::from_utf8(output.data.to_vec()).unwrap();
            let wrote: u128 = text.lines().last().unwrap().parse().unwrap();
            delays.push(now.saturating_sub(wrote));
        }
    }
    delays.sort_unstable();
    let median = delays[delays.len() / 2] / 1000;
    println!("median {median} us, worst {} us", delays.last().unwrap() / 1000);
    // Polling anywhere on the way would cost tens of milliseconds; the bound leaves room for a busy machine.
    assert!(median < 10_000, "{median} us from the worker to its controller");
    node.shutdown().await;
}

#[tokio::test]
async fn each_way_to_fail_has_a_reason_of_its_own_and_the_tail_of_standard_error() {
    let place = Place::new();
    let node = place.start().await;
    let cases = [
        ("echo dying words >&2; exit 3", "exit code 3", "dying words"),
        ("echo dying words >&2; kill -KILL $$", "signal 9 (SIGKILL)", "dying words"),
        ("echo dying words >&2; kill -SEGV $$", "SIGSEGV", "dying words"),
        (
            "echo tar: x: No space left on device >&2; exit 2",
            "a disk of the worker was full: tar: x",
            "No space left",
        ),
        ("nothing-is-called-so", "command not found", "nothing-is-called-so"),
        ("echo x > \"$0.no\"; exec \"$0.no\"", "command cannot be run", "denied"),
    ];
    for (script, reason, tail) in cases {
        let job = Job::script(script);
        let records = job.run(&node).await;
        let outcome = records.outcome();
        assert_eq!(outcome.outcome(), Outcome::Failed, "{script}");
        assert!(outcome.reason.contains(reason), "{script}: {}", outcome.reason);
        let said = String::from_utf8_lossy(&records.end().stderr_tail).into_owned();
        assert!(said.contains(tail), "{script}: {said}");
    }
    node.shutdown().await;
}

#[tokio::test]
async fn a_time_limit_ends_the_unit() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("echo began; sleep 60");
    job.spec.timeout_seconds = 1;
    let records = job.run(&node).await;
    assert_eq!(records.outcome().outcome(), Outcome::TimedOut);
    node.shutdown().await;
}

#[tokio::test]
async fn secrets_touch_no_disk_no_argument_and_no_log() {
    let place = Place::new();
    let node = place.start().await;
    let canary = "canary-5f0e8d7c";
    let mut job = Job::script(&format!(
        "cat > /dev/null; echo {canary}; echo \"$SECRET\"; echo ready; read line; sleep 60"
    ));
    job.stdin = format!("{canary}\n").into_bytes();
    job.env.push(("SECRET".to_owned(), canary.to_owned()));
    job.files.push(private_file("env/passwords", canary));
    job.start(&node).await;
    let mut records = job.attach(&node, 1).await;
    records.until_output("ready").await;
    assert_eq!(records.stdout().matches(canary).count(), 2);
    for file in files_below(place.data.path()) {
        let content = std::fs::read(&file).unwrap();
        let found = content.windows(canary.len()).any(|window| window == canary.as_bytes());
        assert!(!found, "secret on disk in {}", file.display());
    }
    let shim = place.shim_pid(job.attempt);
    for name in ["cmdline", "environ"] {
        let content = std::fs::read(format!("/proc/{shim}/{name}")).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains(canary), "secret in {name} of the shim");
    }
    let log = std::fs::read_to_string(place.runtime_dir(job.attempt).join("shim.log")).unwrap();
    assert_eq!(log, "");
    job.cancel(&node).await;
    records.take_all().await;
    assert!(!place.runtime_dir(job.attempt).exists(), "private data is gone with the unit");
    node.shutdown().await;
}

#[tokio::test]
async fn a_kept_private_directory_is_shown_and_holds_no_secret() {
    let place = Place::new();
    let node = place.start().await;
    let mut job = Job::script("echo done >artifacts/result");
    job.spec.keep_seconds = 3600;
    job.files.push(private_file("env/settings", "{}"));
    job.files.push(PrivateFile { secret: true, ..private_file("env/extravars", "canary-extravars") });
    job.files.push(private_file("env/passwords", "canary-passwords"));
    let mut records = job.run(&node).await;
    let kept = PathBuf::from(job.status(&node).await.unwrap().kept);
    assert!(kept.starts_with(place.runtime.path()), "{kept:?}");
    for there in ["env/settings", "artifacts/result"] {
        assert!(kept.join(there).exists(), "{there}");
    }
    for gone in ["env/extravars", "env/passwords"] {
        assert!(!kept.join(gone).exists(), "{gone}");
    }
    records.ack_all().await;
    let last = records.got.last().unwrap().0;
    wait_for(|| job.status(&node), |status| status.as_ref().unwrap().acked == last).await.unwrap();
    job.forget(&node).await.unwrap();
    assert!(kept.exists() && !place.runtime_dir(job.attempt).exists(), "it outlives its unit");

    // Without the wish it is gone.
    let job = Job::script("true");
    job.run(&node).await;
    assert_eq!(job.status(&node).await.unwrap().kept, "");
    assert!(!place.runtime_dir(job.attempt).exists());
    node.shutdown().await;
}

#[tokio::test]
async fn a_unit_that_is_forgotten_while_its_copy_is_made_leaves_nothing() {
    let place = Place::new();
    let node = place.start().await;
    let names: Vec<String> = (0..3_000).map(|number| format!("file{number}")).collect();
    let tree: Vec<(&str, u32, &[u8])> = names.iter().map(|name| (name.as_str(), 0o644, &b"x"[..])).collect();
    // The tree is in the cache after the first, so the second has only its copy to make.
    let first = Job::script("true").with_tree(&tree);
    first.run(&node).await;
    let mut job = Job::script("true").with_tree(&tree);
    job.spec.collect = true; // a copy of every file, and no layer
    job.submit(&node).await;
    let mut talk = Talk::payload(&node);
    talk.say(&PayloadMessage { kind: Some(PayloadMessageKind::Open(job.open())) }).await;
    let begun = || async {
        let entries = std::fs::read_dir(place.unit_dir(job.attempt)).unwrap();
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("project"))
    };
    wait_for(begun, |begun| *begun).await;
    job.cancel(&node).await;
    job.forget(&node).await.unwrap();
    drop(talk);
    let left = || async {
        let entries = std::fs::read_dir(place.unit_dir(first.attempt).parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| *name != first.attempt.to_string()).collect::<Vec<_>>()
    };
    wait_for(left, Vec::is_empty).await;
    node.shutdown().await;
}

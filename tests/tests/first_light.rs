//! The sample playbooks, run across the hop inside the execution environment: recap and event count of their README.

use std::time::Duration;

use plexus_tests::{Cluster, JobOptions, Recap, Samples, demo_image, plain};
use serde_json::json;

/// Longest wait for one job of the table on a machine that also compiles; the longest one runs for minutes, beside others.
const JOB: Duration = Duration::from_secs(1200);

/// One row of `tests/fixtures/playbooks/README.md`. The rows that run for minutes are for the longer proofs.
struct Case {
    playbook: &'static str,
    inventory: &'static str,
    options: JobOptions,
    /// Recap by host; `*` for every host of the inventory is written out.
    recap: &'static str,
    status: &'static str,
    events: u64,
}

fn case(playbook: &'static str, inventory: &'static str, recap: &'static str, events: u64) -> Case {
    Case { playbook, inventory, options: JobOptions::default(), recap, status: "successful", events }
}

fn table() -> Vec<Case> {
    let option = |set: &dyn Fn(&mut JobOptions)| {
        let mut options = JobOptions::default();
        set(&mut options);
        options
    };
    let mut table = vec![
        case("facts.yml", "two-hosts.ini", "web1: ok=4; web2: ok=4", 23),
        case("webapp.yml", "two-hosts.ini", "web1: ok=9 changed=5; web2: ok=9 changed=5", 60),
        Case {
            options: option(&|o| (o.check, o.diff) = (true, true)),
            ..case(
                "webapp.yml",
                "two-hosts.ini",
                "web1: ok=5 changed=4 skipped=4; web2: ok=5 changed=4 skipped=4",
                72,
            )
        },
        Case {
            options: option(&|o| o.limit = Some("web:db".into())),
            ..case(
                "webapp.yml",
                "groups.yml",
                "web1: ok=9 changed=5; web2: ok=9 changed=5; db1: ok=9 changed=5",
                84,
            )
        },
        case("loops.yml", "two-hosts.ini", "web1: ok=8 ignored=1; web2: ok=8 ignored=1", 64),
        Case {
            status: "failed",
            ..case(
                "recovery.yml",
                "groups.yml",
                "web1: ok=4 rescued=1; web2: ok=4 rescued=1; db1: ok=4 rescued=1; down1: ok=1 unreachable=1",
                42,
            )
        },
        case(
            "recovery.yml",
            "dynamic.sh",
            "dyn1: ok=4 rescued=1; dyn2: ok=4 rescued=1; dyn3: ok=4 rescued=1",
            38,
        ),
        Case {
            options: option(&|o| o.tags = Some("users".into())),
            ..case("includes-tags.yml", "two-hosts.ini", "web1: ok=4; web2: ok=4", 25)
        },
        Case {
            options: option(&|o| {
                o.skip_tags = Some("network,recovery".into());
                o.limit = Some("web1".into());
            }),
            ..case("includes-tags.yml", "two-hosts.ini", "web1: ok=2", 10)
        },
        Case {
            status: "failed",
            ..case("failing.yml", "two-hosts.ini", "web1: ok=1 failed=1; web2: ok=2 skipped=1", 16)
        },
        Case {
            options: option(&|o| o.extra_vars = Some("sleep_seconds: 1".into())),
            ..case("sleeper.yml", "two-hosts.ini", "web1: ok=3; web2: ok=3", 18)
        },
        Case {
            options: option(&|o| o.tags = Some("tiny".into())),
            ..case(
                "chatty.yml",
                "ten-hosts.ini",
                "node01: ok=20; node02: ok=20; node03: ok=20; node04: ok=20; node05: ok=20; \
                 node06: ok=20; node07: ok=20; node08: ok=20; node09: ok=20; node10: ok=20",
                423,
            )
        },
    ];
    if plexus_tests::is_verify() {
        let ten = |ok: &'static str, playbook, events, options| Case {
            options,
            ..case(playbook, "ten-hosts.ini", ok, events)
        };
        table.push(ten(HUNDRED, "chatty.yml", 2_103, option(&|o| o.tags = Some("small".into()))));
        table.push(ten(THOUSAND, "chatty.yml", 21_003, JobOptions::default()));
        let items = option(&|o| o.extra_vars = Some("loop_count: 1000".into()));
        table.push(ten(ONE, "chatty-loop.yml", 10_024, items));
    }
    table
}

const ONE: &str = "node01: ok=1; node02: ok=1; node03: ok=1; node04: ok=1; node05: ok=1; \
                   node06: ok=1; node07: ok=1; node08: ok=1; node09: ok=1; node10: ok=1";
const HUNDRED: &str = "node01: ok=100; node02: ok=100; node03: ok=100; node04: ok=100; node05: ok=100; \
                       node06: ok=100; node07: ok=100; node08: ok=100; node09: ok=100; node10: ok=100";
const THOUSAND: &str = "node01: ok=1000; node02: ok=1000; node03: ok=1000; node04: ok=1000; node05: ok=1000; \
                        node06: ok=1000; node07: ok=1000; node08: ok=1000; node09: ok=1000; node10: ok=1000";

#[tokio::test]
async fn sample_playbooks_give_the_recap_and_event_count_of_their_readme() {
    let cluster = Cluster::builder("first-light").start().await.unwrap();
    let samples = Samples::new(&demo_image()).unwrap();
    samples.copy_project(&cluster.layout.projects()).unwrap();
    let api = cluster.api();
    let loaded = samples.load(api).await.unwrap();

    // All launched at once: the node runs them side by side, and a job's events must not get into another's.
    let mut jobs = Vec::new();
    for (number, case) in table().into_iter().enumerate() {
        let inventory = samples.load_inventory(api, loaded, case.inventory).await.unwrap();
        let name = format!("{number} {}", case.playbook);
        let template =
            samples.template(api, loaded, &name, case.playbook, inventory, &case.options).await.unwrap();
        let job = api.launch(template, &json!({})).await.unwrap()["id"].as_i64().unwrap();
        jobs.push((name, job, case));
    }
    let mut wrong = Vec::new();
    for (name, job, case) in &jobs {
        let done = api.finished(*job, JOB).await.unwrap();
        let output = api.stdout(*job, "txt").await.unwrap();
        let events = api.events(*job).await.unwrap();
        let counters: Vec<u64> = events.iter().filter_map(|event| event["counter"].as_u64()).collect();
        let recap = Recap::parse(&output);
        let first_line = plain(output.lines().next().unwrap_or_default());
        let right = done["status"] == case.status
            && recap == Recap::expected(case.recap)
            && counters == (1..=case.events).collect::<Vec<_>>()
            && first_line.contains(&demo_image());
        if !right {
            wrong.push(format!(
                "{name}: status {} ({}), {} events of {}, first line {first_line:?}, recap {recap:?}, explanation {}",
                done["status"],
                case.status,
                counters.len(),
                case.events,
                done["job_explanation"],
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} playbooks went wrong:\n{}",
        wrong.len(),
        jobs.len(),
        wrong.join("\n")
    );

    let trace = cluster.plexus_json("controller", &["trace", "node-1"]).await.unwrap();
    let path: Vec<&str> =
        trace["hops"].as_array().unwrap().iter().filter_map(|hop| hop["node"].as_str()).collect();
    assert_eq!((trace["from"].as_str(), path), (Some("controller"), vec!["hop-1", "node-1"]), "{trace}");
    cluster.finish().await.unwrap();
}

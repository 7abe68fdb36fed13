//! Events and output of a job that ran.

use plexus_proto::id::{Attempt, OwnerEpoch, UnitId};

use super::*;
use crate::ingest::testing::{Spool, captured, key};
use crate::ingest::{Ingest, Session, UnitContext};
use crate::store::events::JobKey;

/// A launched job, its key, and the way for its records.
pub(super) async fn launched(api: &Api) -> (JobKey, Attempt, Session) {
    launched_with(api, Vec::new()).await
}

/// The same of a job with secrets.
pub(super) async fn launched_with(api: &Api, masks: Vec<String>) -> (JobKey, Attempt, Session) {
    let ee = json!({"name": "e", "image": "localhost/ee:1"});
    api.make("execution_environments", ee).await;
    let template = api.template("web").await;
    let reply = api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await;
    let job = reply.json["id"].as_i64().unwrap();
    let created = reply.json["created"].as_str().unwrap().parse().unwrap();
    let attempt = Attempt { unit: UnitId(Uuid::from_u128(7)), number: 1 };
    let context = UnitContext {
        attempt,
        job: JobKey { id: job, created },
        key: key(),
        header: Some(crate::job::header("localhost/ee:1")),
        masks,
    };
    let ingest = Ingest::new(api.app.events.clone());
    let session = ingest.open(context, OwnerEpoch { incarnation: 1, counter: 1 }).await.unwrap();
    (JobKey { id: job, created }, attempt, session)
}

/// A launched job, and the captured stream of a real run stored as its events.
pub(super) async fn ran(api: &Api, case: &str) -> i64 {
    let (key, attempt, mut session) = launched(api).await;
    for record in Spool::whole(attempt, &captured(case), 4096) {
        session.push(record).await.unwrap();
    }
    session.result().await.unwrap();
    key.id
}

#[tokio::test]
async fn events_are_listed_as_the_monitor_reads_them() {
    let api = Api::new().await;
    let job = ran(&api, "ok-2-hosts").await;
    let host = api.make("hosts", json!({"name": "h1", "inventory": 1})).await;
    let path = format!("/api/v2/jobs/{job}/job_events/");
    let monitor = api.get(&format!("{path}?order_by=start_line&no_truncate=True")).await;
    assert_eq!(monitor.status, 200);
    let events = monitor.json["results"].as_array().unwrap();
    assert_eq!(monitor.json["count"], events.len());
    assert!(events.len() > 5);
    assert!(events[0]["stdout"].as_str().unwrap().starts_with("Execution environment: localhost/ee:1"));
    // What the monitor does: print the events whose line is the expected next one.
    let mut next = 0;
    let mut printed = String::new();
    for event in events {
        if event["start_line"] == next {
            if !event["stdout"].as_str().unwrap().is_empty() {
                printed.push_str(event["stdout"].as_str().unwrap());
                printed.push('\n');
            }
            next = event["end_line"].as_i64().unwrap();
        }
    }
    assert!(printed.contains("PLAY RECAP"), "{printed}");
    let rest = api.get(&format!("{path}?order_by=start_line&no_truncate=True&start_line__gte={next}")).await;
    assert!(rest.json["results"].as_array().unwrap().iter().all(|event| event["stdout"] == ""));
    let ok = events.iter().find(|event| event["event"] == "runner_on_ok").unwrap();
    assert_eq!(
        (&ok["type"], &ok["event_level"], &ok["event_display"]),
        (&json!("job_event"), &json!(3), &json!("Host OK"))
    );
    assert_eq!((&ok["job"], &ok["related"]["job"]), (&json!(job), &json!(format!("/api/v2/jobs/{job}/"))));
    assert!(ok["event_data"]["task"].is_string() && ok["created"].is_string());
    let own = events.iter().find(|event| event["host_name"] == "h1");
    if let Some(own) = own {
        assert_eq!(own["host"], host);
    }
    let detail = api.get(ok["url"].as_str().unwrap()).await.json;
    assert_eq!((&detail["uuid"], &detail["counter"]), (&ok["uuid"], &ok["counter"]));
    let parent = events.iter().find(|event| event["uuid"] == ok["parent_uuid"]).unwrap();
    let children = api.get(parent["related"]["children"].as_str().unwrap()).await.json;
    assert!(children["results"].as_array().unwrap().iter().any(|child| child["id"] == ok["id"]));
}

#[tokio::test]
async fn events_are_paged_and_filtered() {
    let api = Api::new().await;
    let job = ran(&api, "ok-2-hosts").await;
    let path = format!("/api/v2/jobs/{job}/job_events/");
    let all = api.get(&path).await.json;
    let count = all["count"].as_i64().unwrap();
    let page = api.get(&format!("{path}?page_size=2&page=2")).await.json;
    assert_eq!((&page["count"], &page["results"][0]["counter"]), (&json!(count), &json!(3)));
    assert_eq!(page["next"], format!("{path}?page=3&page_size=2"));
    assert_eq!(api.get(&format!("{path}?page=999")).await.status, 404);
    let last = api.get(&format!("{path}?order_by=-counter&limit=1")).await.json;
    assert_eq!(last["results"][0]["counter"], count);
    let stats = api.get(&format!("{path}?event=playbook_on_stats")).await.json;
    assert_eq!(
        (&stats["count"], &stats["results"][0]["event_display"]),
        (&json!(1), &json!("Playbook Complete"))
    );
    let id = stats["results"][0]["id"].as_i64().unwrap();
    assert_eq!(api.get(&format!("{path}?id={id}")).await.json["count"], 1);
    assert_eq!(api.get(&format!("{path}?counter__lte=2")).await.json["count"], 2);
    assert_eq!(
        api.get(&format!("{path}?event__startswith=runner_&not__event=runner_on_start")).await.status,
        200
    );
    assert_eq!(api.get(&format!("{path}?failed=true")).await.json["count"], 0);
    for (query, words) in [
        ("nosuch=1", "JobEvent has no field named 'nosuch'"),
        ("order_by=stdout", "JobEvent has no field named 'stdout'"),
        ("counter=x", "Field 'counter' expected a number but got 'x'."),
        ("failed=perhaps", "Unable to convert \"perhaps\" to boolean"),
    ] {
        let reply = api.get(&format!("{path}?{query}")).await;
        assert_eq!((reply.status.as_u16(), &reply.json), (400, &json!({"detail": words})), "{query}");
    }
}

#[tokio::test]
async fn a_long_job_is_listed_whole() {
    let api = Api::new().await;
    let job = ran(&api, "ten-hosts").await;
    let path = format!("/api/v2/jobs/{job}/job_events/");
    let summary = api.app.events.summary(JobKey {
        id: job,
        created: api.get(&format!("/api/v2/jobs/{job}/")).await.json["created"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap(),
    });
    let events = summary.await.unwrap().events;
    for order in ["counter", "-counter"] {
        let all = api.get(&format!("{path}?order_by={order}&no_truncate=1")).await.json;
        let mut counters: Vec<i64> = all["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["counter"].as_i64().unwrap())
            .collect();
        if order == "-counter" {
            counters.reverse();
        }
        assert_eq!(counters, (1..=events as i64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn output_comes_in_every_form() {
    let api = Api::new().await;
    let job = ran(&api, "ok-2-hosts").await;
    let path = format!("/api/v2/jobs/{job}/stdout/");
    let ansi = api.get(&format!("{path}?format=ansi")).await;
    assert_eq!(ansi.headers["content-type"], "text/plain; charset=utf-8");
    assert!(ansi.text.starts_with("Execution environment: localhost/ee:1\n"), "{}", ansi.text);
    assert!(ansi.text.contains("\x1b[0;32mok: "));
    let txt = api.get(&format!("{path}?format=txt")).await;
    assert!(txt.text.contains("\nok: ") && !txt.text.contains('\x1b'));
    assert!(txt.text.contains("PLAY RECAP"));
    let plain = api.by(&basic("admin", "pw"), "GET", &path, json!(null)).await;
    assert_eq!(plain.text, txt.text);
    for (format, name) in [("txt_download", "txt"), ("ansi_download", "ansi.txt")] {
        let reply = api.get(&format!("{path}?format={format}")).await;
        assert_eq!(
            reply.headers["content-disposition"],
            format!("attachment; filename=\"job_{job}.{name}\"")
        );
    }
    let all = api.get(&format!("{path}?format=json")).await.json;
    let lines = all["range"]["absolute_end"].as_i64().unwrap();
    assert_eq!(all["range"], json!({"start": 0, "end": lines, "absolute_end": lines}));
    assert_eq!(all["content"], ansi.text);
    let encoded = api.get(&format!("{path}?format=json&content_encoding=base64")).await.json;
    use base64::Engine as _;
    let decoded = STANDARD.decode(encoded["content"].as_str().unwrap()).unwrap();
    assert_eq!(String::from_utf8(decoded).unwrap(), ansi.text);
    let part = api.get(&format!("{path}?format=json&start_line=1&end_line=3")).await.json;
    assert_eq!(part["range"], json!({"start": 1, "end": 3, "absolute_end": lines}));
    let expected: String = ansi.text.split_inclusive('\n').skip(1).take(2).collect();
    assert_eq!(part["content"], expected);
    let html = api.get(&format!("{path}?format=html")).await;
    assert!(
        html.text.contains("<span class=\"ansi32\">ok: ") && html.text.ends_with("</pre></body></html>\n")
    );
    assert_eq!(api.get(&format!("{path}?format=nosuch")).await.status, 404);
}

#[tokio::test]
async fn a_job_that_printed_nothing_says_where_and_why() {
    let api = Api::new().await;
    api.make("execution_environments", json!({"name": "e", "image": "localhost/ee:1"})).await;
    let template = api.template("web").await;
    let job = api.post(&format!("/api/v2/job_templates/{template}/launch/"), json!({})).await.json;
    let url = job["url"].as_str().unwrap();
    let path = format!("{url}stdout/?format=txt");
    assert_eq!(api.get(&path).await.text, "Execution environment: localhost/ee:1\n");
    api.post(&format!("{url}cancel/"), json!({})).await;
    let text = api.get(&path).await.text;
    assert_eq!(text, "Execution environment: localhost/ee:1\nThe job was canceled before it started.\n");
    let part = api.get(&format!("{url}stdout/?format=json&start_line=1")).await.json;
    assert_eq!(part["range"], json!({"start": 1, "end": 2, "absolute_end": 2}));
    assert_eq!(part["content"], "The job was canceled before it started.\n");
    let events = api.get(&format!("{url}job_events/")).await.json;
    assert_eq!((&events["count"], &events["results"]), (&json!(0), &json!([])));
}

#[tokio::test]
async fn whoever_may_not_see_the_job_does_not_see_what_it_did() {
    let api = Api::new().await;
    let job = ran(&api, "ok-2-hosts").await;
    let events = api.get(&format!("/api/v2/jobs/{job}/job_events/")).await.json;
    let event = events["results"][0]["url"].as_str().unwrap();
    let ada = api.ordinary("ada").await;
    for path in [
        format!("/api/v2/jobs/{job}/job_events/"),
        format!("/api/v2/jobs/{job}/stdout/"),
        event.to_owned(),
        format!("{event}children/"),
    ] {
        assert_eq!(api.by(&ada, "GET", &path, json!(null)).await.status, 404, "{path}");
    }
    for id in ["0", "-1", "x", "99999999999999999999", "1", "268435457000"] {
        assert_eq!(api.get(&format!("/api/v2/job_events/{id}/")).await.status, 404, "{id}");
    }
    assert_eq!(api.call("POST", &format!("/api/v2/jobs/{job}/job_events/"), json!({})).await.status, 405);
}

#[tokio::test]
async fn children_are_summed_up_once_the_job_is_over() {
    let api = Api::new().await;
    let job = ran(&api, "ten-hosts").await;
    let path = format!("/api/v2/jobs/{job}/job_events/children_summary/");
    let running = api.get(&path).await;
    assert_eq!(
        running.json,
        json!({
            "children_summary": {}, "meta_event_nested_uuid": {}, "event_processing_finished": false, "is_tree": true,
        })
    );
    let mut update = sea_query::Query::update();
    update.table("unified_jobs").value("event_processing_finished", true);
    let mut tx = api.app.db.begin(crate::store::core::Class::Intent).await.unwrap();
    tx.execute(&update).await.unwrap();
    tx.commit().await.unwrap();
    let summary = api.get(&path).await.json;
    assert_eq!((&summary["is_tree"], &summary["event_processing_finished"]), (&json!(true), &json!(true)));
    let events = api.get(&format!("/api/v2/jobs/{job}/job_events/?no_truncate=1")).await.json;
    let events = events["results"].as_array().unwrap();
    // What stands below an event is what the tree of uuids says.
    let parent = |event: &serde_json::Value| {
        let uuid = event["parent_uuid"].as_str().unwrap();
        events.iter().find(|other| other["uuid"] == uuid)
    };
    let mut below = std::collections::BTreeMap::new();
    for event in events {
        let mut above = parent(event);
        while let Some(event) = above {
            *below.entry(event["counter"].to_string()).or_insert(0) += 1;
            above = parent(event);
        }
    }
    let told: std::collections::BTreeMap<_, _> = summary["children_summary"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(counter, told)| (counter.clone(), told["numChildren"].as_i64().unwrap()))
        .collect();
    assert_eq!(told, below);
    assert!(told["1"] > 400, "{told:?}");
}

#[tokio::test]
async fn a_counter_nobody_reached_is_no_event_and_no_error() {
    let api = Api::new().await;
    let job = ran(&api, "ok-2-hosts").await;
    for counter in [1_000_000_000_000_000_000_i64, i64::MAX] {
        for query in [
            format!("counter__gte={counter}"),
            format!("counter={counter}"),
            format!("counter__gt={counter}&order_by=-counter"),
        ] {
            let list = api.get(&format!("/api/v2/jobs/{job}/job_events/?{query}")).await;
            assert_eq!(
                (list.status, &list.json["count"]),
                (StatusCode::OK, &json!(0)),
                "{query}: {}",
                list.text
            );
        }
        let list = api.get(&format!("/api/v2/jobs/{job}/job_events/?counter__lte={counter}")).await;
        assert_eq!(list.json["count"], 18);
        assert_eq!(api.get(&format!("/api/v2/job_events/{counter}/")).await.status, StatusCode::NOT_FOUND);
        assert_eq!(
            api.get(&format!("/api/v2/jobs/{counter}/job_events/")).await.status,
            StatusCode::NOT_FOUND
        );
    }
}

#[tokio::test]
async fn metrics_count_what_came_and_balance() {
    let api = Api::new().await;
    ran(&api, "ok-2-hosts").await;
    let text = api.get("/metrics").await.text;
    let of = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    };
    assert_eq!(of("plexus_events_stored_total"), 18.0);
    let sum: f64 = ["stored", "repeated", "refused", "undone"]
        .iter()
        .map(|part| of(&format!("plexus_records_{part}_total")))
        .sum();
    assert_eq!(of("plexus_records_received_total"), sum);
    assert!(of("plexus_event_commit_seconds_count") >= 1.0 && of("plexus_event_commit_events_sum") == 18.0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    assert_eq!(api.get("/api/v2/metrics/").await.status, StatusCode::OK);
    let other = api.ordinary("someone").await;
    let refused = api.by(&other, "GET", "/metrics", serde_json::Value::Null).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
}

on_postgres_too! {
    events_are_paged_and_filtered,
}

//! Looking for a text in what jobs printed.

use super::events::ran;
use super::*;

/// The lines of an answer: finds, and the end.
async fn grep(api: &Api, query: &str) -> (Vec<serde_json::Value>, serde_json::Value) {
    let reply = api.get(&format!("/api/plexus/v1/grep/?{query}")).await;
    assert_eq!(
        (reply.status, &reply.headers["content-type"]),
        (StatusCode::OK, &"application/x-ndjson".parse().unwrap())
    );
    let mut lines: Vec<serde_json::Value> =
        reply.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let end = lines.pop().unwrap()["end"].take();
    (lines.into_iter().map(|mut line| line["hit"].take()).collect(), end)
}

#[tokio::test]
async fn failures_with_a_text_are_found_newest_first() {
    let api = Api::new().await;
    let job = ran(&api, "failed-task").await;
    let events =
        api.get(&format!("/api/v2/jobs/{job}/job_events/?failed=true&event=runner_on_failed")).await.json;
    let failed = &events["results"][0];
    let message = failed["event_data"]["res"]["msg"].as_str().unwrap();
    let word = message.split_whitespace().next().unwrap().to_uppercase();
    let (hits, end) = grep(&api, &format!("q={word}")).await;
    let hit = hits.iter().find(|hit| hit["counter"] == failed["counter"]).unwrap();
    assert_eq!(
        (&hit["job"], &hit["host"], &hit["task"]),
        (&json!(job), &failed["host_name"], &failed["task"])
    );
    assert_eq!((&hit["name"], &hit["failed"]), (&json!("web"), &json!(true)));
    assert!(hit["excerpt"].as_str().unwrap().to_uppercase().contains(&word), "{hit}");
    assert!(hits.is_sorted_by(|a, b| a["counter"].as_i64() >= b["counter"].as_i64()));
    assert_eq!((&end["searched_jobs"], &end["cursor"]), (&json!(1), &serde_json::Value::Null));

    // What did not fail is found only when all is wanted; other hosts, other templates and the past are left out.
    assert!(grep(&api, "q=PLAY+%5B").await.0.is_empty());
    assert!(!grep(&api, "q=play+%5B&all=true").await.0.is_empty());
    for narrow in ["host=nobody", "template=999", "since=2099-01-01T00:00:00Z"] {
        assert!(grep(&api, &format!("q={word}&{narrow}")).await.0.is_empty(), "{narrow}");
    }
    assert!(!grep(&api, &format!("q={word}&since=1h&template=2")).await.1["searched_jobs"].is_null());
    assert!(
        grep(&api, &format!("q={word}&cursor={job}.1")).await.0.is_empty(),
        "nothing is before the first event"
    );
    assert!(!grep(&api, &format!("q={word}&cursor={}.1", job + 1)).await.0.is_empty());
}

#[tokio::test]
async fn others_find_nothing_and_odd_questions_are_told() {
    let api = Api::new().await;
    ran(&api, "failed-task").await;
    let who = api.ordinary("eve").await;
    let reply = api.by(&who, "GET", "/api/plexus/v1/grep/?q=a&all=true", serde_json::Value::Null).await;
    let lines: Vec<&str> = reply.text.lines().collect();
    assert!(lines.len() == 1 && lines[0].contains("\"searched_jobs\":0"), "{lines:?}");
    for (query, field) in [
        ("", "q"),
        ("q=a&since=tomorrow", "since"),
        ("q=a&cursor=x", "cursor"),
        ("q=a&template=x", "template"),
    ] {
        let reply = api.get(&format!("/api/plexus/v1/grep/?{query}")).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(reply.json[field].is_array(), "{query}: {}", reply.text);
    }
}

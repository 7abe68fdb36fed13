//! What those see who watch.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::events::launched;
use super::*;
use crate::ingest::Session;
use crate::ingest::testing::{Spool, captured};
use crate::live::Next;
use crate::store::events::JobKey;
use crate::store::units::{self, Final};
use plexus_proto::id::Attempt;

/// Longest wait for anything: this machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Stores the first `records` of a run, then gives a hand to store the rest and end the job.
struct Run {
    key: JobKey,
    session: Session,
    records: std::vec::IntoIter<plexus_proto::work::SealedRecord>,
}

impl Run {
    async fn of(api: &Api, stdout: &[u8]) -> Self {
        let (key, attempt, session): (JobKey, Attempt, Session) = launched(api).await;
        Self { key, session, records: Spool::lines(attempt, stdout, 1).into_iter() }
    }

    async fn push(&mut self, records: usize) {
        for record in self.records.by_ref().take(records) {
            self.session.push(record).await.unwrap();
        }
    }

    async fn end(mut self, api: &Api) -> i64 {
        self.push(usize::MAX).await;
        self.session.result().await.unwrap();
        let last = Final { status: "successful", ..Final::default() };
        units::finish(&api.app.db, self.key.id, &last).await.unwrap();
        self.key.id
    }
}

/// Reads server-sent events: (id, kind, data).
struct Sse {
    body: axum::body::BodyDataStream,
    text: String,
}

impl Sse {
    async fn open(api: &Api, path: &str, last: Option<&str>) -> Self {
        let mut request = Request::builder().uri(path).header("authorization", basic("admin", "pw"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = api.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), text: String::new() }
    }

    async fn next(&mut self) -> Option<(Option<i64>, String, serde_json::Value)> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let (mut id, mut kind, mut data) = (None, "message".to_owned(), serde_json::Value::Null);
                for line in message.lines() {
                    match line.split_once(": ") {
                        Some(("id", text)) => id = Some(text.parse().unwrap()),
                        Some(("event", text)) => kind = text.to_owned(),
                        Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
                        _ => {}
                    }
                }
                self.text = rest.to_owned();
                return Some((id, kind, data));
            }
            let piece = soon("a server-sent event", self.body.next()).await?.unwrap();
            self.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

#[tokio::test]
async fn events_stream_as_they_are_stored_and_end_with_the_job() {
    let api = Api::new().await;
    let mut run = Run::of(&api, &captured("ok-2-hosts")).await;
    let path = format!("/api/v2/jobs/{}/events/stream", run.key.id);
    run.push(6).await;
    let mut watched = Sse::open(&api, &path, None).await;
    let first = watched.next().await.unwrap();
    assert_eq!((first.0, first.1.as_str()), (Some(1), "message"));
    let stdout = first.2["stdout"].as_str().unwrap();
    assert!(stdout.starts_with("Execution environment: localhost/ee:1"), "{stdout}");
    run.push(2).await;
    let second = watched.next().await.unwrap();
    assert_eq!((second.0, &second.2["counter"]), (Some(2), &json!(2)));

    let job = run.end(&api).await;
    let mut counters = vec![1, 2];
    let end = loop {
        match watched.next().await.unwrap() {
            (Some(id), _, data) => {
                assert_eq!(data["job"], job);
                counters.push(id);
            }
            (None, kind, data) if kind == "end" => break data,
            _ => {}
        }
    };
    assert!(watched.next().await.is_none(), "the stream ends with the job");
    let count = api.get(&format!("/api/v2/jobs/{job}/job_events/")).await.json["count"].as_i64().unwrap();
    assert_eq!(counters, (1..=count).collect::<Vec<_>>());
    assert_eq!(end, json!({"status": "successful", "final_counter": count}));

    // Resumed: by header and by parameter, in the middle, at the end, and beyond anything.
    for (after, first) in [("0", Some(1)), ("3", Some(4)), ("9", Some(10))] {
        let mut resumed = Sse::open(&api, &path, Some(after)).await;
        assert_eq!(resumed.next().await.unwrap().0, first);
    }
    for after in [count.to_string(), "1000000000000000000".to_owned()] {
        let mut resumed = Sse::open(&api, &format!("{path}?after={after}"), None).await;
        assert_eq!(resumed.next().await.unwrap().1, "end");
    }
    let odd = api.get(&format!("{path}?after=x")).await;
    assert_eq!((odd.status, odd.text.contains("number of an event")), (StatusCode::BAD_REQUEST, true));
}

#[tokio::test]
async fn stream_of_a_job_nobody_may_see_is_not_there() {
    let api = Api::new().await;
    let run = Run::of(&api, &captured("ok-2-hosts")).await;
    let path = format!("/api/v2/jobs/{}/events/stream", run.key.id);
    let who = api.ordinary("eve").await;
    assert_eq!(api.by(&who, "GET", &path, serde_json::Value::Null).await.status, StatusCode::NOT_FOUND);
    assert_eq!(api.get("/api/v2/jobs/999/events/stream").await.status, StatusCode::NOT_FOUND);
}

/// Lines of a run that prints `count` events.
fn printed(count: usize) -> Vec<u8> {
    let lines = (1..=count).map(|n| {
        let text = "x".repeat(200);
        let event = json!({
            "uuid": format!("{n:08}"), "counter": n, "stdout": format!("line {n} {text}"),
            "start_line": n - 1, "end_line": n, "event": "verbose", "event_data": {},
        });
        format!("{event}\n")
    });
    lines.collect::<String>().into_bytes()
}

#[tokio::test]
async fn a_stalled_watcher_holds_nobody_up_and_misses_nothing() {
    const EVENTS: usize = 20_000;
    let api = Api::new().await;
    let mut run = Run::of(&api, &printed(EVENTS)).await;
    let mut quick = api.app.live.watch(run.key, Some(0)).await.unwrap();
    let mut stalled = api.app.live.watch(run.key, Some(0)).await.unwrap();
    run.push(2).await;
    let Next::Events(first) = soon("first event", stalled.next()).await else { panic!("no events") };
    let mut seen = first.last().unwrap().counter;
    let reader = tokio::spawn(async move {
        let mut last = 0;
        loop {
            match soon("events", quick.next()).await {
                Next::Events(events) => {
                    for event in events.iter() {
                        assert_eq!(event.counter, last + 1);
                        last = event.counter;
                    }
                }
                Next::End(end) => return (last, end.last),
                Next::Closed => panic!("closed"),
            }
        }
    });
    let job = run.end(&api).await;
    assert_eq!(reader.await.unwrap(), (EVENTS as i64, EVENTS as i64));
    // More was printed than the ring holds: the stalled one reads the store.
    loop {
        match soon("events", stalled.next()).await {
            Next::Events(events) => {
                for event in events.iter() {
                    assert_eq!(event.counter, seen + 1);
                    seen = event.counter;
                }
            }
            Next::End(end) => {
                break assert_eq!((seen, end.last, job > 0), (EVENTS as i64, EVENTS as i64, true));
            }
            Next::Closed => panic!("closed"),
        }
    }
}

#[tokio::test]
async fn five_hundred_watchers_see_every_event_and_share_one_reader() {
    const EVENTS: usize = 3000;
    const WATCHERS: usize = 500;
    let api = Api::new().await;
    let run = Run::of(&api, &printed(EVENTS)).await;
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let mut watching = api.app.live.watch(run.key, Some(0)).await.unwrap();
        watchers.spawn(async move {
            let mut last = 0;
            loop {
                match soon("events", watching.next()).await {
                    Next::Events(events) => {
                        for event in events.iter() {
                            assert_eq!(event.counter, last + 1);
                            last = event.counter;
                        }
                    }
                    Next::End(end) => return (last, end.last),
                    Next::Closed => panic!("closed"),
                }
            }
        });
    }
    assert_eq!(api.app.live.watched(), (1, WATCHERS));
    run.end(&api).await;
    while let Some(seen) = watchers.join_next().await {
        assert_eq!(seen.unwrap(), (EVENTS as i64, EVENTS as i64));
    }
    // All of it fits the ring: nobody had to read the store alone.
    assert_eq!(api.app.live.behind(), 0);
}

type Socket = WebSocketStream<TcpStream>;

/// The API on a real port: websockets need a connection of their own.
async fn served(api: &Api) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = api.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

async fn socket(address: std::net::SocketAddr, headers: &[(&'static str, String)]) -> Socket {
    socket_with(address, headers, None).await
}

/// The same with so many bytes of room for what it has not read.
async fn socket_with(
    address: std::net::SocketAddr,
    headers: &[(&'static str, String)],
    room: Option<u32>,
) -> Socket {
    let mut request = format!("ws://{address}/websocket/").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpSocket::new_v4().unwrap();
    if let Some(room) = room {
        stream.set_recv_buffer_size(room).unwrap();
    }
    let stream = stream.connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

async fn heard(socket: &mut Socket) -> serde_json::Value {
    loop {
        match soon("a message", socket.next()).await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Close(_) => return json!("closed"),
            _ => {}
        }
    }
}

async fn say(socket: &mut Socket, value: serde_json::Value) {
    socket.send(Message::text(value.to_string())).await.unwrap();
}

/// Cookies of a session and the value of its CSRF cookie.
async fn session(api: &Api) -> (String, String) {
    let page = api.send(Request::builder().uri("/api/login/").body(Body::empty()).unwrap()).await;
    let csrf = page.headers["set-cookie"].to_str().unwrap().split(['=', ';']).nth(1).unwrap().to_owned();
    let form = Request::builder()
        .method("POST")
        .uri("/api/login/")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("username=admin&password=pw"))
        .unwrap();
    let reply = api.send(form).await;
    let cookies = reply.headers.get_all("set-cookie").iter();
    let session =
        cookies.map(|cookie| cookie.to_str().unwrap()).find(|cookie| cookie.starts_with("awx_sessionid"));
    (format!("{}; csrftoken={csrf}", session.unwrap().split(';').next().unwrap()), csrf)
}

#[tokio::test]
async fn the_websocket_speaks_as_awx_does() {
    let api = Api::new().await;
    let address = served(&api).await;
    let mut nobody = socket(address, &[]).await;
    assert_eq!(heard(&mut nobody).await, json!({"close": true}));
    assert_eq!(heard(&mut nobody).await, json!("closed"));

    let (cookie, csrf) = session(&api).await;
    let mut client = socket(address, &[("cookie", cookie)]).await;
    assert_eq!(heard(&mut client).await, json!({"accept": true, "user": 1}));
    let groups = json!({"jobs": ["status_changed", "summary"], "control": ["limit_reached_1"]});
    say(&mut client, json!({"xrftoken": "wrong", "groups": groups})).await;
    assert_eq!(heard(&mut client).await, json!({"error": "access denied to channel"}));
    say(&mut client, json!({"xrftoken": csrf, "groups": groups})).await;
    let all = json!(["control-limit_reached_1", "jobs-status_changed", "jobs-summary"]);
    let answer = heard(&mut client).await;
    assert_eq!(answer, json!({"groups_current": all, "groups_left": [], "groups_joined": all}));

    let mut run = Run::of(&api, &captured("ok-2-hosts")).await;
    let job = run.key.id;
    let pending = heard(&mut client).await;
    assert_eq!(
        (&pending["unified_job_id"], &pending["status"], &pending["group_name"], &pending["type"]),
        (&json!(job), &json!("pending"), &json!("jobs"), &json!("job"))
    );
    run.push(6).await;
    let groups = json!({"jobs": ["status_changed", "summary"], "job_events": [job, 999]});
    say(&mut client, json!({"xrftoken": csrf, "groups": groups, "resume": {job.to_string(): 0}})).await;
    assert_eq!(
        heard(&mut client).await,
        json!({"error": "access denied to channel job_events for resource id 999"})
    );
    let answer = heard(&mut client).await;
    assert_eq!(answer["groups_joined"], json!([format!("job_events-{job}")]));
    assert_eq!(answer["groups_left"], json!(["control-limit_reached_1"]));
    run.end(&api).await;
    let (mut counters, mut statuses, mut last) = (Vec::new(), Vec::new(), None);
    while last.is_none() || counters.last() != last.as_ref() {
        let message = heard(&mut client).await;
        match (message["group_name"].as_str(), message["type"].as_str()) {
            (Some("job_events"), _) => counters.push(message["counter"].as_i64().unwrap()),
            (Some("jobs"), Some("summary")) => last = message["final_counter"].as_i64(),
            (Some("jobs"), _) => statuses.push(message["status"].as_str().unwrap().to_owned()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(counters, (1..=last.unwrap()).collect::<Vec<_>>());
    assert_eq!(statuses, ["successful"]);
}

/// A client that does not read fills its connection and costs nothing more: an hour is its patience, ten minutes are none.
#[tokio::test]
async fn a_client_that_reads_nothing_for_ten_minutes_misses_nothing_and_one_that_never_does_is_left() {
    const EVENTS: usize = 20_000;
    let api = Api::new().await;
    let address = served(&api).await;
    let mut run = Run::of(&api, &printed(EVENTS)).await;
    let job = run.key.id;
    let wish = json!({"groups": {"job_events": [job]}, "resume": {job.to_string(): 0}});
    let admin = [("authorization", basic("admin", "pw"))];
    // Little room on the way, so that what it does not read stays with us soon.
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = socket_with(address, &admin, Some(16 * 1024)).await;
        assert_eq!(heard(&mut client).await["accept"], true);
        say(&mut client, wish.clone()).await;
        assert!(heard(&mut client).await["groups_joined"].is_array());
        clients.push(client);
    }
    let [mut reads, mut stalls, mut never]: [Socket; 3] = clients.try_into().unwrap();
    run.push(usize::MAX).await;
    // While the others stall, one reads all there is.
    heard_events(&mut reads, 0, EVENTS as i64).await;
    at_rest(&api).await;
    let behind = api.app.live.behind();
    after(Duration::from_secs(600)).await;
    let stored = heard_events(&mut stalls, 0, EVENTS as i64).await;
    assert_eq!(stored, EVENTS as i64);
    assert!(api.app.live.behind() > behind, "it was given from the store what the ring holds no longer");
    run.end(&api).await;

    after(Duration::from_secs(3601)).await;
    let mut last = 0;
    while let Some(Ok(message)) = soon("the end of a connection", never.next()).await {
        if let Message::Text(text) = message {
            let event: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(event["counter"], json!(last + 1));
            last += 1;
        }
    }
    assert!(last < EVENTS as i64, "it was left, for it had not read for an hour");
    // It comes back with the last event that it has.
    let mut again = socket(address, &admin).await;
    assert_eq!(heard(&mut again).await["accept"], true);
    say(&mut again, json!({"groups": {"job_events": [job]}, "resume": {job.to_string(): last}})).await;
    assert!(heard(&mut again).await["groups_joined"].is_array());
    heard_events(&mut again, last, EVENTS as i64).await;
}

/// Reads the events behind `last` until number `until`, in order and without a hole.
async fn heard_events(socket: &mut Socket, mut last: i64, until: i64) -> i64 {
    while last < until {
        let message = heard(socket).await;
        assert_eq!(message["counter"], json!(last + 1), "{message}");
        last += 1;
    }
    last
}

/// Waits until nobody is given anything more: connections of those who do not read are full by then.
async fn at_rest(api: &Api) {
    let (mut behind, mut looks) = (api.app.live.behind(), 0);
    while looks < 25 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = api.app.live.behind();
        looks = if now == behind { looks + 1 } else { 0 };
        behind = now;
    }
}

/// Lets so much time pass at once, for all who wait for a moment.
async fn after(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn events_of_hidden_jobs_are_denied_and_odd_messages_answered() {
    let api = Api::new().await;
    let run = Run::of(&api, &captured("ok-2-hosts")).await;
    let who = api.ordinary("eve").await;
    let address = served(&api).await;
    let mut client = socket(address, &[("authorization", who)]).await;
    assert_eq!(heard(&mut client).await["accept"], true);
    say(&mut client, json!({"groups": {"job_events": [run.key.id], "jobs": ["status_changed"]}})).await;
    assert!(
        heard(&mut client).await["error"]
            .as_str()
            .unwrap()
            .starts_with("access denied to channel job_events")
    );
    assert_eq!(heard(&mut client).await["groups_current"], json!(["jobs-status_changed"]));
    say(&mut client, json!([1, 2])).await;
    assert!(heard(&mut client).await["error"].is_string());
    // What happens to a job of others is not told: the next thing heard is the answer to the next wish.
    run.end(&api).await;
    say(&mut client, json!({"groups": {}})).await;
    assert_eq!(heard(&mut client).await["groups_left"], json!(["jobs-status_changed"]));
    let origin = [("authorization", basic("admin", "pw")), ("origin", "https://evil.example".to_owned())];
    let mut request = format!("ws://{address}/websocket/").into_client_request().unwrap();
    for (name, value) in origin {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    assert!(tokio_tungstenite::client_async(request, stream).await.is_err(), "another site's page is let in");
    assert_eq!(api.get("/websocket/").await.status, StatusCode::UPGRADE_REQUIRED);
}

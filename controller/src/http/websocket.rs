//! AWX's websocket: `/websocket/`, also `/api/websocket/`.
//!
//! The server says who it takes the client for; the client names the groups it wants to hear, with the value of its
//! CSRF cookie; each message replaces the groups before it. Groups: `jobs` with `status_changed` and `summary`,
//! `job_events` with ids of jobs, `project_update_events` with ids of updates, and so for every kind. What AWX's clients know works unchanged; there is no cap on the rate.
//!
//! Beyond AWX: `"resume": {"12": 40}` in the message that names the groups begins job 12 with event 41, whether that is
//! past or still to come, so that a client which lost its connection misses nothing and gets nothing twice. A client
//! with a token instead of a session needs no `xrftoken`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{StatusCode, request::Parts};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use sea_query::{Condition, Expr, ExprTrait};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::call::Call;
use super::error::ApiError;
use super::{Answer, App, events, generic};
use crate::auth::{By, User};
use crate::kind::Kind;
use crate::live::{JobNews, News, Next, Subscription};
use crate::registry::UNIFIED_JOBS;
use crate::registry::read::{self, BASE};

/// Longest message of a client.
const MESSAGE: usize = 256 * 1024;
/// Groups of one client.
const GROUPS: usize = 1024;
/// Jobs whose events one client hears.
const JOBS_MAX: usize = 64;
/// Silence after which the client is asked whether it is there.
const IDLE: Duration = Duration::from_secs(20);
/// Longest that a client may take for a message: one that takes longer is gone. It costs a connection meanwhile, and
/// nothing else.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The client's wish to open a websocket, if it has one.
pub(super) async fn requested(parts: &mut Parts) -> Option<WebSocketUpgrade> {
    match parts.uri.path().trim_matches('/') {
        "websocket" | "api/websocket" => WebSocketUpgrade::from_request_parts(parts, &()).await.ok(),
        _ => None,
    }
}

/// The answer to a request that is no websocket's.
pub(super) fn needed() -> ApiError {
    ApiError::Detail(StatusCode::UPGRADE_REQUIRED, "This address speaks the websocket protocol.".to_owned())
}

/// Opens the websocket.
pub(super) fn accept(call: &Call, socket: WebSocketUpgrade) -> Answer {
    // A page of another site could ride on the cookie.
    call.check_origin()?;
    let who = call.somebody().map(|principal| (principal.user.clone(), principal.by));
    let token = call.cookie("csrftoken").map(str::to_owned);
    let app = call.app.clone();
    let socket = socket.max_message_size(MESSAGE).max_frame_size(MESSAGE);
    Ok(socket.on_upgrade(async move |mut socket| {
        let Some((user, by)) = who else {
            let _ = send(&mut socket, &json!({"close": true})).await;
            let _ = socket.send(Message::Close(None)).await;
            return;
        };
        let token = matches!(by, By::Session).then(|| token.unwrap_or_default());
        let news = app.live.news();
        let stop = app.live.stop().clone();
        let mut client =
            Client { app, user, token, news, heard: now(), groups: BTreeSet::new(), jobs: HashMap::new() };
        let served = tokio::select! {
            served = client.serve(&mut socket) => served,
            () = stop.cancelled() => Ok(()),
        };
        if let Err(reason) = served {
            tracing::debug!(user = client.user.username, reason, "websocket ended");
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), socket.send(Message::Close(None))).await;
    }))
}

/// What a client says.
#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    xrftoken: Value,
    groups: Option<BTreeMap<String, Value>>,
    /// Last event the client has, by job.
    #[serde(default)]
    resume: BTreeMap<String, i64>,
}

struct Client {
    app: App,
    user: User,
    /// What a client with a session has to show with each message.
    token: Option<String>,
    news: broadcast::Receiver<News>,
    /// When the newest news was made, in microseconds.
    heard: i64,
    groups: BTreeSet<String>,
    /// Jobs whose events are wanted; the number tells a subscription from an earlier one of the same job.
    jobs: HashMap<i64, u64>,
}

/// Why a connection ended.
type Ended = &'static str;

/// A subscription and what came next on it.
type Turn = (i64, u64, Subscription, Next);

async fn turn(job: i64, round: u64, mut subscription: Subscription) -> Turn {
    let next = subscription.next().await;
    (job, round, subscription, next)
}

impl Client {
    async fn serve(&mut self, socket: &mut WebSocket) -> Result<(), Ended> {
        send(socket, &json!({"accept": true, "user": self.user.id})).await?;
        let mut turns = FuturesUnordered::new();
        let mut round = 0;
        let mut quiet = false;
        loop {
            tokio::select! {
                message = socket.recv() => match message {
                    Some(Ok(Message::Text(text))) => {
                        quiet = false;
                        round += 1;
                        for (job, subscription) in self.heed(socket, &text, round).await? {
                            turns.push(turn(job, round, subscription));
                        }
                    }
                    Some(Ok(Message::Close(_))) | None => return Ok(()),
                    Some(Ok(_)) => quiet = false,
                    Some(Err(_)) => return Err("connection broke"),
                },
                Some((job, of, subscription, next)) = turns.next() => {
                    if self.jobs.get(&job) != Some(&of) {
                        continue; // no longer wanted
                    }
                    match next {
                        Next::Events(events) => {
                            for event in events.iter() {
                                deliver(socket, Message::Text(event.json.clone())).await?;
                            }
                            turns.push(turn(job, of, subscription));
                        }
                        Next::End(_) => {
                            self.jobs.remove(&job);
                        }
                        Next::Closed => return Err("events cannot be shown at the moment"),
                    }
                }
                news = self.news.recv() => match news {
                    Ok(News::Job(news)) => self.tell(socket, &news).await?,
                    Ok(News::Missed) | Err(RecvError::Lagged(_)) => self.catch_up(socket).await?,
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = tokio::time::sleep(IDLE) => {
                    if std::mem::replace(&mut quiet, true) {
                        return Err("client does not answer");
                    }
                    deliver(socket, Message::Ping(Default::default())).await?;
                }
            }
        }
    }

    /// Takes the groups a client names, and gives the subscriptions that are new.
    async fn heed(
        &mut self,
        socket: &mut WebSocket,
        text: &str,
        round: u64,
    ) -> Result<Vec<(i64, Subscription)>, Ended> {
        let Ok(wish) = serde_json::from_str::<Wish>(text) else {
            send(socket, &json!({"error": "a message is a JSON object with xrftoken and groups"})).await?;
            return Ok(Vec::new());
        };
        if self.token.as_ref().is_some_and(|token| token.len() < 32 || wish.xrftoken.as_str() != Some(token))
        {
            send(socket, &json!({"error": "access denied to channel"})).await?;
            return Ok(Vec::new());
        }
        let Some(groups) = wish.groups else { return Ok(Vec::new()) };
        let mut wanted = BTreeSet::new();
        let mut jobs = HashMap::new();
        let mut new = Vec::new();
        for (group, members) in &groups {
            let Some(members) = members.as_array() else {
                wanted.insert(group.clone());
                continue;
            };
            for member in members {
                if wanted.len() >= GROUPS {
                    send(socket, &json!({"error": format!("a client has at most {GROUPS} groups")})).await?;
                    return Ok(Vec::new());
                }
                let shown = member.as_str().map_or_else(|| member.to_string(), str::to_owned);
                if let Some(kind) = Kind::of_group(group) {
                    if jobs.len() >= JOBS_MAX {
                        let words = format!("a client hears the events of at most {JOBS_MAX} jobs");
                        send(socket, &json!({"error": words})).await?;
                        continue;
                    }
                    let resume = wish.resume.get(&shown).copied();
                    let Some((job, subscription)) = self.subscribe(kind, &shown, resume).await else {
                        let words = format!("access denied to channel {group} for resource id {shown}");
                        send(socket, &json!({"error": words})).await?;
                        continue;
                    };
                    match subscription {
                        // Heard already, and no other place asked for.
                        None => {
                            jobs.insert(job, self.jobs.get(&job).copied().unwrap_or(round));
                        }
                        Some(subscription) => {
                            jobs.insert(job, round);
                            new.push((job, subscription));
                        }
                    }
                }
                wanted.insert(format!("{group}-{shown}"));
            }
        }
        let left: Vec<&String> = self.groups.difference(&wanted).collect();
        let joined: Vec<&String> = wanted.difference(&self.groups).collect();
        let answer = json!({"groups_current": wanted, "groups_left": left, "groups_joined": joined});
        send(socket, &answer).await?;
        self.groups = wanted;
        self.jobs = jobs;
        Ok(new)
    }

    /// `None` for a job that the user does not see.
    async fn subscribe(
        &self,
        kind: Kind,
        job: &str,
        resume: Option<i64>,
    ) -> Option<(i64, Option<Subscription>)> {
        let owner = events::seen(&self.app, &self.user, kind, job).await.ok()?;
        let id = owner.key.id;
        if resume.is_none() && self.jobs.contains_key(&id) {
            return Some((id, None));
        }
        let subscription = self.app.live.watch(owner.key, resume).await;
        match subscription {
            Ok(subscription) => Some((id, Some(subscription))),
            Err(error) => {
                tracing::error!(
                    job = id,
                    error = &error as &dyn std::error::Error,
                    "a job cannot be watched"
                );
                None
            }
        }
    }

    async fn tell(&mut self, socket: &mut WebSocket, news: &JobNews) -> Result<(), Ended> {
        self.heard = Ord::max(self.heard, news.modified);
        let wants = |group: &str| self.groups.contains(group);
        let (status, summary) = (wants("jobs-status_changed"), wants("jobs-summary"));
        if !(status || summary) || !self.sees(news.job).await {
            return Ok(());
        }
        // AWX never tells of this one.
        if status && &*news.status != "waiting" {
            send(socket, &news.status_json()).await?;
        }
        if let Some(text) = news.summary_json().filter(|_| summary) {
            send(socket, &text).await?;
        }
        Ok(())
    }

    /// Tells what was missed: the status that each changed job has by now.
    async fn catch_up(&mut self, socket: &mut WebSocket) -> Result<(), Ended> {
        let missed = self.app.live.since(self.heard).await.map_err(|_| "jobs cannot be read")?;
        for news in missed {
            self.tell(socket, &news).await?;
        }
        Ok(())
    }

    async fn sees(&self, job: i64) -> bool {
        let Ok(condition) = generic::visible(&UNIFIED_JOBS, &self.user) else { return false };
        if condition.is_none() {
            return true;
        }
        let mut query = read::source(&UNIFIED_JOBS, BASE);
        query.column((BASE, "id")).and_where(Expr::col((BASE, "id")).eq(job));
        query.cond_where(Condition::all().add_option(condition));
        matches!(self.app.db.optional(&query).await, Ok(Some(_)))
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

async fn send(socket: &mut WebSocket, value: &Value) -> Result<(), Ended> {
    deliver(socket, Message::Text(value.to_string().into())).await
}

/// Waits for a slow client; nothing of it is kept meanwhile but this message.
async fn deliver(socket: &mut WebSocket, message: Message) -> Result<(), Ended> {
    match tokio::time::timeout(PATIENCE, socket.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("connection broke"),
        Err(_) => Err("client does not read"),
    }
}

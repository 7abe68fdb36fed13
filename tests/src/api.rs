//! The controller's HTTP API as a test or the demo uses it: JSON in, JSON out, errors with the body a person would see.
//!
//! The password is used once, for a token: checking a password is slow on purpose, and tests ask often.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::wait::{Seen, wait_for};

/// Most events or objects that one page may hold.
const PAGE: usize = 200;

/// What the server answered, whatever the status.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// Body as JSON; a body that is no JSON comes as a string, an empty one as null.
    pub body: Value,
}

/// A user of one controller.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    user: String,
    password: String,
    token: Arc<OnceCell<String>>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("base", &self.base).field("user", &self.user).finish_non_exhaustive()
    }
}

impl Api {
    /// A client for `base`, such as `http://127.0.0.1:8052`.
    ///
    /// # Errors
    /// When the HTTP client cannot be built.
    pub fn new(base: &str, user: &str, password: &str) -> anyhow::Result<Self> {
        crate::install_crypto_provider();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            // The certificate of a first start is self-signed.
            .tls_danger_accept_invalid_certs(true)
            .build()
            .context("cannot build an HTTP client")?;
        Ok(Self {
            http,
            base: base.to_owned(),
            user: user.to_owned(),
            password: password.to_owned(),
            token: Arc::default(),
        })
    }

    /// Base URL without a trailing slash.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Name of the user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Password of the user.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Sends one request; `path` is below `/api/v2/` unless it starts with a slash.
    ///
    /// # Errors
    /// Only when no answer came; a refusal is an [`Answer`].
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
        let url = self.url(path);
        let mut request =
            self.http.request(method.clone(), &url).basic_auth(&self.user, Some(&self.password));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.with_context(|| format!("no answer to {method} {url}"))?;
        let status = response.status().as_u16();
        let text = response.text().await.with_context(|| format!("answer to {method} {url} broke off"))?;
        let body = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or(Value::String(text))
        };
        Ok(Answer { status, body })
    }

    /// Sends a body of any kind, valid or not.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn send_raw(&self, path: &str, content_type: &str, body: Vec<u8>) -> anyhow::Result<Answer> {
        let url = self.url(path);
        let response = self
            .authorized(self.http.post(&url))
            .await?
            .header("Content-Type", content_type)
            .body(body)
            .send()
            .await
            .with_context(|| format!("no answer to POST {url}"))?;
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_default();
        Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) })
    }

    /// Reads one object or list.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.expect(Method::GET, path, None, &[200]).await
    }

    /// Creates an object and gives it back.
    ///
    /// # Errors
    /// When the answer is not 201.
    pub async fn create(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.expect(Method::POST, path, Some(body), &[201]).await
    }

    /// Changes some fields of an object and gives it back.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub async fn change(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.expect(Method::PATCH, path, Some(body), &[200]).await
    }

    /// Posts something that is not a creation: association, cancel.
    ///
    /// # Errors
    /// When the answer is neither 200, 202 nor 204.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.expect(Method::POST, path, Some(body), &[200, 202, 204]).await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When the answer is neither 202 nor 204.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        self.expect(Method::DELETE, path, None, &[202, 204]).await
    }

    /// Creates an object, or gives the one of the same name.
    ///
    /// # Errors
    /// When neither works.
    pub async fn ensure(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let name = body["name"].as_str().context("object has no name")?;
        let list = self.get(&format!("{path}?name={}", encode(name))).await?;
        match list["results"].get(0) {
            Some(found) => Ok(found.clone()),
            None => self.create(path, body).await,
        }
    }

    /// All objects of a list, page by page.
    ///
    /// # Errors
    /// When a page cannot be read.
    pub async fn all(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let joiner = if path.contains('?') { '&' } else { '?' };
        let mut next = format!("{path}{joiner}page_size={PAGE}");
        let mut all = Vec::new();
        loop {
            let page = self.get(&next).await?;
            all.extend(page["results"].as_array().context("list without results")?.iter().cloned());
            match page["next"].as_str() {
                Some(path) => path.clone_into(&mut next),
                None => return Ok(all),
            }
        }
    }

    /// Launches a job template and gives the new job.
    ///
    /// # Errors
    /// When the answer is not 201.
    pub async fn launch(&self, template: i64, body: &Value) -> anyhow::Result<Value> {
        self.create(&format!("job_templates/{template}/launch/"), body).await
    }

    /// One job.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn job(&self, job: i64) -> anyhow::Result<Value> {
        self.get(&format!("jobs/{job}/")).await
    }

    /// Waits until a job is over and all its events are stored, and gives it.
    ///
    /// Passes over times without an answer, so a controller may be killed and started again meanwhile.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn finished(&self, job: i64, deadline: Duration) -> anyhow::Result<Value> {
        wait_for(&format!("job {job} to finish"), deadline, async || match self.job(job).await {
            Ok(found) if found["event_processing_finished"] == json!(true) => Seen::Yes(found),
            Ok(found) => Seen::NotYet(format!(
                "status {}, started {}, explanation {}",
                found["status"], found["started"], found["job_explanation"]
            )),
            Err(error) => Seen::NotYet(format!("{error:#}")),
        })
        .await
    }

    /// Waits until what runs at `path` (`project_updates/7/`) is over, however it ended, and gives it.
    ///
    /// # Errors
    /// When it is not over by `deadline`.
    pub async fn over(&self, path: &str, deadline: Duration) -> anyhow::Result<Value> {
        wait_for(&format!("{path} to end"), deadline, async || match self.get(path).await {
            Ok(shown) => match shown["status"].as_str() {
                Some("successful" | "failed" | "error" | "canceled") => Seen::Yes(shown),
                _ => Seen::NotYet(format!("{} {}", shown["status"], shown["job_explanation"])),
            },
            Err(error) => Seen::NotYet(format!("{error:#}")),
        })
        .await
    }

    /// Waits until a job has the wanted status.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn has_status(&self, job: i64, status: &str, deadline: Duration) -> anyhow::Result<Value> {
        wait_for(&format!("job {job} to be {status}"), deadline, async || match self.job(job).await {
            Ok(found) if found["status"] == status => Seen::Yes(found),
            Ok(found) => {
                Seen::NotYet(format!("status {}, explanation {}", found["status"], found["job_explanation"]))
            }
            Err(error) => Seen::NotYet(format!("{error:#}")),
        })
        .await
    }

    /// All events of a job by counter.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn events(&self, job: i64) -> anyhow::Result<Vec<Value>> {
        self.all(&format!("jobs/{job}/job_events/?order_by=counter")).await
    }

    /// How many events of a job are stored.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn event_count(&self, job: i64) -> anyhow::Result<u64> {
        let page = self.get(&format!("jobs/{job}/job_events/?page_size=1")).await?;
        page["count"].as_u64().context("list without count")
    }

    /// The job's output; `format` is `txt` or `ansi`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn stdout(&self, job: i64, format: &str) -> anyhow::Result<String> {
        match self.get(&format!("jobs/{job}/stdout/?format={format}")).await? {
            Value::String(text) => Ok(text),
            Value::Null => Ok(String::new()),
            other => Ok(other.to_string()),
        }
    }

    /// Waits until the API answers.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn up(&self, deadline: Duration) -> anyhow::Result<()> {
        wait_for("the API to answer", deadline, async || match self.get("ping/").await {
            Ok(_) => Seen::Yes(()),
            Err(error) => Seen::NotYet(format!("{error:#}")),
        })
        .await
    }

    async fn expect(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        wanted: &[u16],
    ) -> anyhow::Result<Value> {
        let answer = self.send(method.clone(), path, body).await?;
        if !wanted.contains(&answer.status) {
            bail!("{method} {path} answered {}: {}", answer.status, answer.body);
        }
        Ok(answer.body)
    }

    async fn authorized(&self, request: RequestBuilder) -> anyhow::Result<RequestBuilder> {
        let token = self.token.get_or_try_init(async || self.new_token().await).await?;
        Ok(request.bearer_auth(token))
    }

    async fn new_token(&self) -> anyhow::Result<String> {
        let url = self.url(&format!("users/{}/personal_tokens/", self.user));
        let request = self.http.post(&url).basic_auth(&self.user, Some(&self.password));
        let response =
            request.json(&json!({"scope": "write"})).send().await.context("no answer to the login")?;
        let status = response.status();
        let body: Value = response.json().await.context("answer to the login is no JSON")?;
        body["token"]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("login was answered {status}: {body}"))
    }

    fn url(&self, path: &str) -> String {
        if path.starts_with('/') {
            format!("{}{path}", self.base)
        } else {
            format!("{}/api/v2/{path}", self.base)
        }
    }
}

/// Percent-encodes a query value.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("Demo template/ü"), "Demo%20template%2F%C3%BC");
    }
}

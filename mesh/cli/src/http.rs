//! A controller's answers, over its HTTP API: the same JSON as from a local socket.
//!
//! `GET /api/plexus/v1/mesh/status/`, `GET .../nodes/`, `.../routes/`, `.../links/`, `.../events/?after=N&wait_ms=N`,
//! `POST .../ping/` and `.../trace/` with `{"node":"node-1","timeout_ms":5000}`, `.../netcheck/` with
//! `{"from":"node-1","to":"hop-1"}`; jobs and nodes as AWX has them. What cannot be answered comes as `{"detail":"..."}` with status 400
//! (bad name), 404 (unknown node), 503 (unreachable) or 504 (no answer in time).

use std::error::Error;
use std::io;
use std::time::Duration;

use plexus_proto::id::NodeId;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, redirect};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::door::{Answer, unknown_node, unreachable_node};
use crate::failure::{Exit, Failure, causes};
use crate::settings::{Controller, Login};

/// Waited for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Waited for an answer, beyond what the query itself may take. A trace waits at each step.
const PATIENCE: Duration = Duration::from_secs(30);

/// Join tokens: `GET` lists, `POST` makes one, `DELETE` of `ID/` below it ends one.
/// Nodes that have asked to join.
pub(crate) const REQUESTS: &str = "/api/plexus/v1/mesh/requests/";
pub(crate) const TOKENS: &str = "/api/plexus/v1/mesh/tokens/";
/// `POST` of `{"node":"node-7","reason":null}` revokes a node's certificate.
pub(crate) const REVOCATIONS: &str = "/api/plexus/v1/mesh/revocations/";
/// `POST` to `ID/abandon/` below it gives up on a job.
pub(crate) const WORK: &str = "/api/plexus/v1/work/";

/// A controller.
pub(crate) struct HttpDoor {
    client: Client,
    controller: Controller,
}

#[derive(Serialize)]
struct Probe<'a> {
    node: &'a str,
    timeout_ms: u128,
}

#[derive(Deserialize)]
struct Refusal {
    detail: String,
}

impl HttpDoor {
    pub(crate) fn new(controller: Controller) -> Result<Self, Failure> {
        let url = Url::parse(&controller.url).ok();
        if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            let text = format!("{:?} is not the URL of a controller", controller.url);
            return Err(
                Failure::new(Exit::Usage, text).hint("it looks like https://controller.example.org:8043")
            );
        }
        let client = Client::builder()
            .user_agent(concat!("plexus/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .tls_danger_accept_invalid_certs(!controller.verify)
            // A password goes to the host it was given for, and nowhere else.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| Failure::of(Exit::Failed, &error))?;
        Ok(Self { client, controller })
    }

    pub(crate) async fn status(&self) -> Result<Answer, Failure> {
        self.ask(self.client.get(self.url("status")), Duration::ZERO).await
    }

    pub(crate) async fn nodes(&self) -> Result<Answer, Failure> {
        self.ask(self.client.get(self.url("nodes")), Duration::ZERO).await
    }

    pub(crate) async fn ping(&self, node: &NodeId, timeout: Duration) -> Result<Answer, Failure> {
        self.probe("ping", node, timeout).await
    }

    pub(crate) async fn trace(&self, node: &NodeId, timeout: Duration) -> Result<Answer, Failure> {
        self.probe("trace", node, timeout).await
    }

    /// A document of the mesh: `routes`, `links`.
    pub(crate) async fn mesh(&self, document: &str) -> Result<Answer, Failure> {
        self.ask(self.client.get(self.url(document)), Duration::ZERO).await
    }

    pub(crate) async fn events(&self, after: u64, wait: Duration) -> Result<Answer, Failure> {
        let url = format!("{}?after={after}&wait_ms={}", self.url("events"), wait.as_millis());
        self.ask(self.client.get(url), wait).await
    }

    pub(crate) async fn netcheck(&self, from: Option<&NodeId>, to: &NodeId) -> Result<Answer, Failure> {
        let body = json!({"from": from.map(NodeId::as_str), "to": to.as_str()});
        self.ask(self.client.post(self.url("netcheck")).json(&body), Duration::ZERO).await
    }

    /// `GET` of an address of the API, such as `/api/v2/jobs/`.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.api(Method::GET, path, None).await
    }

    /// Any method on an address of the API, with a JSON body.
    pub(crate) async fn api(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Failure> {
        let request = self.client.request(method, format!("{}{path}", self.controller.url));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.ask(request, Duration::ZERO).await
    }

    async fn probe(&self, verb: &str, node: &NodeId, timeout: Duration) -> Result<Answer, Failure> {
        let body = Probe { node: node.as_str(), timeout_ms: timeout.as_millis() };
        self.ask(self.client.post(self.url(verb)).json(&body), timeout).await
    }

    fn url(&self, verb: &str) -> String {
        format!("{}/api/plexus/v1/mesh/{verb}/", self.controller.url)
    }

    async fn ask(&self, request: RequestBuilder, extra: Duration) -> Result<Answer, Failure> {
        let request = match &self.controller.login {
            Login::Token(token) => request.bearer_auth(token),
            Login::Password { user, password } => request.basic_auth(user, Some(password)),
            Login::Nobody => request,
        };
        let lost = |error: reqwest::Error| self.lost(&error);
        let response = request.timeout(PATIENCE + extra).send().await.map_err(lost)?;
        let status = response.status();
        let body = response.text().await.map_err(lost)?;
        if status.is_success() {
            return Ok(Answer(body));
        }
        let detail = serde_json::from_str::<Refusal>(&body).ok().map(|refusal| refusal.detail);
        // A refused field comes under its own name: {"ttl":["A valid integer is required."]}.
        let detail = detail.or_else(|| fields(&body));
        Err(self.refused(status, detail))
    }

    /// The URL of the controller, without a slash at its end.
    pub(crate) fn base(&self) -> &str {
        &self.controller.url
    }

    fn refused(&self, status: StatusCode, detail: Option<String>) -> Failure {
        let url = &self.controller.url;
        let said = detail.clone().unwrap_or_else(|| format!("controller {url} answers {status}"));
        match status {
            StatusCode::BAD_REQUEST => Failure::new(Exit::Usage, said),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let text =
                    format!("controller {url} refuses: {}", detail.unwrap_or_else(|| status.to_string()));
                Failure::new(Exit::Denied, text)
                    .hint("set CONTROLLER_USERNAME and CONTROLLER_PASSWORD, or CONTROLLER_OAUTH_TOKEN")
            }
            StatusCode::NOT_FOUND if detail.as_ref().is_some_and(|detail| detail.contains("node")) => {
                unknown_node(&said)
            }
            StatusCode::NOT_FOUND if detail.is_some() => Failure::new(Exit::NotFound, said),
            StatusCode::CONFLICT => Failure::new(Exit::Failed, said),
            StatusCode::NOT_FOUND => Failure::new(Exit::Failed, said).hint("is this a Plexus controller?"),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => unreachable_node(&said),
            status if status.is_redirection() => Failure::new(Exit::Failed, said)
                .hint("give the URL that the controller itself uses, with https://"),
            _ => Failure::new(Exit::Failed, said),
        }
    }

    fn lost(&self, error: &reqwest::Error) -> Failure {
        let url = &self.controller.url;
        // The outermost text only says that a request failed, and names the whole URL again.
        let cause = error.source().map_or_else(|| error.to_string(), causes);
        let failure = Failure::new(Exit::Unreachable, format!("cannot ask controller {url}: {cause}"));
        if certificate_refused(error) {
            return failure.hint("if its certificate is self-signed, set CONTROLLER_VERIFY_SSL=false");
        }
        failure.hint("is the controller running, and its URL right?")
    }
}

/// What is wrong with which field, on one line.
fn fields(body: &str) -> Option<String> {
    let refused: serde_json::Map<String, Value> = serde_json::from_str(body).ok()?;
    let text = |value: &Value| match value {
        Value::Array(words) => words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Value::String(word) => word.clone(),
        other => other.to_string(),
    };
    let all: Vec<_> = refused.iter().map(|(field, why)| format!("{field}: {}", text(why))).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Whether TLS did not like the certificate, somewhere among the causes.
pub(crate) fn certificate_refused(error: &(dyn Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An io error names as its source the source of what it wraps, and so would hide the wrapped one.
    let wrapped = error.downcast_ref::<io::Error>().and_then(|io| io.get_ref());
    match wrapped {
        Some(wrapped) => certificate_refused(wrapped),
        None => error.source().is_some_and(certificate_refused),
    }
}

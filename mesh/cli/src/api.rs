//! A controller's REST API, as a user.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, redirect};
use serde_json::Value;

use crate::failure::{Exit, Failure, causes};
use crate::http::certificate_refused;
use crate::settings::{Controller, Login, Settings};

/// Waited for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Waited for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A controller's API. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
    controller: Controller,
}

impl Api {
    /// The API of the controller that the settings name.
    ///
    /// # Errors
    /// When they name none, or no URL.
    pub(crate) fn open(settings: &Settings) -> Result<Self, Failure> {
        let Settings::Controller(controller) = settings else {
            return Err(Failure::new(Exit::Usage, "jobs are asked for at a controller's API")
                .hint("name it: --controller https://controller.example.org:8043, or set CONTROLLER_HOST"));
        };
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
        Ok(Self { client, controller: controller.clone() })
    }

    pub(crate) async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Failure> {
        let response = self.send(self.question(path, query)?.timeout(PATIENCE)).await?;
        self.json(response).await
    }

    /// An answer that comes line by line.
    pub(crate) async fn lines(&self, path: &str, query: &[(&str, &str)]) -> Result<Response, Failure> {
        self.send(self.question(path, query)?).await
    }

    fn question(&self, path: &str, query: &[(&str, &str)]) -> Result<RequestBuilder, Failure> {
        let mut url = Url::parse(&format!("{}{path}", self.controller.url))
            .map_err(|error| Failure::of(Exit::Usage, &error))?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self.signed(self.client.get(url)))
    }

    /// `None` when the answer has no body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Option<Value>, Failure> {
        let response = self.send(self.request(Method::POST, path).json(body).timeout(PATIENCE)).await?;
        if matches!(response.status(), StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(None);
        }
        self.json(response).await.map(Some)
    }

    /// An answer that may take as long as it likes.
    pub(crate) async fn stream(&self, path: &str, after: i64) -> Result<Response, Failure> {
        self.send(self.request(Method::GET, path).header("last-event-id", after)).await
    }

    /// The id of the object with this id or name.
    pub(crate) async fn id_of(&self, list: &str, what: &str, named: &str) -> Result<i64, Failure> {
        if let Ok(id) = named.parse::<i64>() {
            return Ok(id);
        }
        let found = self.get(&format!("/api/v2/{list}/"), &[("name", named), ("page_size", "2")]).await?;
        match found["results"].as_array().map(Vec::as_slice) {
            Some([one]) => one["id"].as_i64().ok_or_else(|| self.strange("an object has no id")),
            Some([]) | None => {
                let list = list.replace('_', " ");
                Err(Failure::new(Exit::NotFound, format!("there is no {what} {named:?}"))
                    .hint(format!("or it is not yours to see; `awx {list} list` shows those that are")))
            }
            Some(_) => Err(Failure::new(Exit::Usage, format!("there are several {what}s {named:?}"))
                .hint("name it by its id")),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.signed(self.client.request(method, format!("{}{path}", self.controller.url)))
    }

    fn signed(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.controller.login {
            Login::Token(token) => request.bearer_auth(token),
            Login::Password { user, password } => request.basic_auth(user, Some(password)),
            Login::Nobody => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.lost(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        Err(self.refused(status, &body))
    }

    async fn json(&self, response: Response) -> Result<Value, Failure> {
        let text = response.text().await.map_err(|error| self.lost(&error))?;
        serde_json::from_str(&text).map_err(|error| self.strange(&error.to_string()))
    }

    fn strange(&self, why: &str) -> Failure {
        Failure::new(
            Exit::Failed,
            format!("controller {} gives an answer that is not understood: {why}", self.controller.url),
        )
        .hint("is this a Plexus controller?")
    }

    fn refused(&self, status: StatusCode, body: &str) -> Failure {
        let url = &self.controller.url;
        let said = said(body).unwrap_or_else(|| status.to_string());
        match status {
            StatusCode::BAD_REQUEST => Failure::new(Exit::Usage, said),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::new(Exit::Denied, format!("controller {url} refuses: {said}"))
                    .hint("set CONTROLLER_USERNAME and CONTROLLER_PASSWORD, or CONTROLLER_OAUTH_TOKEN")
            }
            StatusCode::NOT_FOUND => Failure::new(Exit::NotFound, said),
            status if status.is_redirection() => Failure::new(Exit::Failed, said)
                .hint("give the URL that the controller itself uses, with https://"),
            _ => Failure::new(Exit::Failed, format!("controller {url}: {said}")),
        }
    }

    /// Whether asking again may help.
    pub(crate) fn is_passing(failure: &Failure) -> bool {
        matches!(failure.exit, Exit::Unreachable)
    }

    fn lost(&self, error: &reqwest::Error) -> Failure {
        let url = &self.controller.url;
        // The outermost text only says that a request failed, and names the whole URL again.
        let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), causes);
        if certificate_refused(error) {
            // Asking again does not change it.
            return Failure::new(Exit::Failed, format!("cannot ask controller {url}: {cause}"))
                .hint("if its certificate is self-signed, set CONTROLLER_VERIFY_SSL=false");
        }
        Failure::new(Exit::Unreachable, format!("cannot ask controller {url}: {cause}"))
            .hint("is the controller running, and its URL right?")
    }
}

/// The words of a refusal: `{"detail": …}`, or texts by field.
fn said(body: &str) -> Option<String> {
    let body: Value = serde_json::from_str(body).ok()?;
    if let Some(detail) = body["detail"].as_str() {
        return Some(detail.to_owned());
    }
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = body.as_object()?.iter().map(|(field, texts)| {
        let texts = match texts.as_array() {
            Some(texts) => texts.iter().map(word).collect::<Vec<_>>().join(" "),
            None => word(texts),
        };
        format!("{field}: {texts}")
    });
    Some(fields.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_in_the_controller_s_words() {
        assert_eq!(
            said(r#"{"detail":"No Job matches the given query."}"#).unwrap(),
            "No Job matches the given query."
        );
        let fields = r#"{"limit":["Too long.","Odd."],"variables_needed_to_start":["'x' value missing"]}"#;
        assert_eq!(
            said(fields).unwrap(),
            "limit: Too long. Odd.; variables_needed_to_start: 'x' value missing"
        );
        assert_eq!(said("<html>"), None);
    }
}

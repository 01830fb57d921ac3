//! What the programs say over their APIs.

use std::{io::Read, net::SocketAddr, time::Duration};

use serde_json::Value;
use ureq::Agent;

/// One program's API with a token.
#[derive(Clone)]
pub struct Rest {
    address: SocketAddr,
    token: String,
    agent: Agent,
}

/// An answer: status and body, JSON if it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; 0 when nobody answered.
    pub status: u16,
    /// Body, as text where it is not JSON.
    pub body: Value,
}

impl Rest {
    /// The API at `address`.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        Rest { address, token: token.to_string(), agent: agent() }
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same API with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Rest { token: token.to_string(), ..self.clone() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1{path}", self.address)
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// Reads.
    pub fn get(&self, path: &str) -> Answer {
        answer(self.agent.get(self.url(path)).header("authorization", self.bearer()).call())
    }

    /// Reads what must be there.
    ///
    /// # Panics
    /// When it is not.
    pub fn show(&self, path: &str) -> Value {
        let found = self.get(path);
        assert_eq!(found.status, 200, "GET {path}: {}", found.body);
        found.body
    }

    /// All items of a list, page by page.
    pub fn list(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let cursor = after.as_ref().map(|after| format!("&after={after}")).unwrap_or_default();
            let page = self.show(&format!("{path}{joint}limit=500{cursor}"));
            items.extend(page["items"].as_array().cloned().unwrap_or_default());
            match &page["next"] {
                Value::Null => return items,
                Value::String(next) => after = Some(next.clone()),
                other => after = Some(other.to_string()),
            }
        }
    }

    /// Reads what is no JSON.
    ///
    /// # Errors
    /// When nobody answers, or the body breaks off.
    pub fn bytes(&self, path: &str) -> Result<(u16, Vec<u8>), String> {
        read(self.agent.get(self.url(path)).header("authorization", self.bearer()).call())
    }

    /// Creates.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.agent.post(self.url(path)).header("authorization", self.bearer()).send_json(body))
    }

    /// Changes.
    pub fn patch(&self, path: &str, body: &Value) -> Answer {
        answer(self.agent.patch(self.url(path)).header("authorization", self.bearer()).send_json(body))
    }

    /// Decides something, with a reason.
    pub fn decide(&self, path: &str, why: &str) -> Answer {
        let body = serde_json::json!({ "why": why });
        answer(self.agent.put(self.url(path)).header("authorization", self.bearer()).send_json(body))
    }

    /// Uploads bytes.
    pub fn put(&self, path: &str, bytes: &[u8]) -> Answer {
        answer(self.agent.put(self.url(path)).header("authorization", self.bearer()).send(bytes))
    }
}

/// Reads any URL; the body as bytes.
///
/// # Errors
/// When nobody answers, or the body breaks off.
pub fn fetch(url: &str) -> Result<(u16, Vec<u8>), String> {
    read(agent().get(url).call())
}

fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, Vec<u8>), String> {
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let mut bytes = Vec::new();
    response.into_body().into_reader().read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok((status, bytes))
}

/// Posts JSON to any URL with any bearer token.
pub fn post(url: &str, token: &str, body: &Value) -> Answer {
    answer(agent().post(url).header("authorization", format!("Bearer {token}")).send_json(body))
}

fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .into()
}

fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    match response {
        Err(error) => Answer { status: 0, body: Value::String(error.to_string()) },
        Ok(mut response) => {
            let status = response.status().as_u16();
            match response.body_mut().read_to_string() {
                Ok(text) => {
                    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
                    Answer { status, body }
                }
                // An answer that broke off is no answer.
                Err(error) => Answer { status: 0, body: Value::String(error.to_string()) },
            }
        }
    }
}

//! Talks to the running agent over its REST, for commands on the same machine.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::identity::{DataDir, IdentityError};

/// The running agent and the right to ask it.
pub struct Client {
    http: ureq::Agent,
    base: String,
    token: String,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The data folder does not do.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is no token to show.
    #[error("the agent has never run here")]
    NeverRan,
    /// Nobody answers.
    #[error("the agent at {base} does not answer")]
    Unreached {
        /// Where it was looked for.
        base: String,
        /// What the network says.
        why: String,
    },
    /// The answer is none of this version.
    #[error("the agent's answer cannot be read")]
    Unreadable(#[source] serde_json::Error),
    /// The agent says no.
    #[error("{what}")]
    Refused {
        /// What was not done.
        what: String,
        /// Why.
        why: String,
        /// What a person does next.
        next: String,
    },
}

impl ClientError {
    /// Why, in one line; empty where the error itself says it.
    pub fn why(&self) -> String {
        match self {
            ClientError::Identity(error) => {
                std::error::Error::source(error).map(crate::error::chain).unwrap_or_default()
            }
            ClientError::NeverRan => "there is no admin-token in its data folder".into(),
            ClientError::Unreached { why, .. } | ClientError::Refused { why, .. } => why.clone(),
            ClientError::Unreadable(error) => error.to_string(),
        }
    }

    /// What a person does next.
    pub fn next(&self) -> &str {
        match self {
            ClientError::Identity(error) => error.next(),
            ClientError::NeverRan => "start it with `holdfast-site run`, or give its --data-dir",
            ClientError::Unreached { .. } => "start it with `holdfast-site run`, and read its log",
            ClientError::Unreadable(_) => "bring both programs to the same version, or use --json",
            ClientError::Refused { next, .. } => next,
        }
    }
}

/// What was asked for, said to the agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// GET, POST, PUT or PATCH.
    pub method: &'static str,
    /// Path below `/api/v1`, with its query.
    pub path: String,
    /// JSON; `null` for none.
    pub body: Value,
    /// What is not done if the agent says no, for people.
    pub what: String,
}

impl Request {
    /// Reads what is at `path`.
    pub fn get(path: impl Into<String>, what: impl Into<String>) -> Self {
        Request { method: "GET", path: path.into(), body: Value::Null, what: what.into() }
    }
}

impl Client {
    /// Finds the agent that `data` belongs to, at `url` if it is given.
    ///
    /// # Errors
    /// When the agent has never run, or the folder cannot be read.
    pub fn find(data: &DataDir, url: Option<String>) -> Result<Self, ClientError> {
        let token = data.known_admin_token()?.ok_or(ClientError::NeverRan)?;
        let base = match (url, data.http_address()?) {
            (Some(url), _) => url,
            (None, Some(address)) => format!("http://{}", local(address)),
            (None, None) => "http://127.0.0.1:8080".into(),
        };
        let http = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The agent is on this machine; a proxy of the environment would only get the token.
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(10)))
            .build()
            .into();
        Ok(Client { http, base: base.trim_end_matches('/').into(), token })
    }

    /// Asks, and returns the status, which is one of success, and the text of the answer.
    ///
    /// # Errors
    /// When the agent is not reached or says no.
    pub fn ask(&self, request: &Request) -> Result<(u16, String), ClientError> {
        let Request { method, path, body, what } = request;
        let (url, bearer) = (format!("{}/api/v1{path}", self.base), format!("Bearer {}", self.token));
        let asked = match (*method, body) {
            ("GET", _) => self.http.get(url).header("Authorization", bearer).call(),
            ("PUT", body) => self.http.put(url).header("Authorization", bearer).send_json(body),
            ("PATCH", body) => self.http.patch(url).header("Authorization", bearer).send_json(body),
            (_, Value::Null) => self.http.post(url).header("Authorization", bearer).send_empty(),
            (_, body) => self.http.post(url).header("Authorization", bearer).send_json(body),
        };
        let unreached =
            |error: ureq::Error| ClientError::Unreached { base: self.base.clone(), why: error.to_string() };
        let mut answer = asked.map_err(unreached)?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().read_to_string().map_err(unreached)?;
        if answer.status().is_success() { Ok((status, text)) } else { Err(self.refused(what, status, &text)) }
    }

    /// Reads one thing.
    ///
    /// # Errors
    /// When the agent is not reached, says no, or speaks of something else.
    pub fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T, ClientError> {
        let (_, text) = self.ask(&Request::get(path, what))?;
        understood(&text)
    }

    /// Reads all items of a list, page by page; `path` may have a query.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn list(&self, what: &str, path: &str) -> Result<Vec<Value>, ClientError> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let mut page: Value = self.get(what, &format!("{path}{joint}limit=1000{cursor}"))?;
            items.extend(page["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&after={next}"),
                None => return Ok(items),
            }
        }
    }

    fn refused(&self, what: &str, status: u16, text: &str) -> ClientError {
        let body: Value = serde_json::from_str(text).unwrap_or_default();
        let said = |field: &str| body[field].as_str().map(str::to_owned);
        ClientError::Refused {
            what: what.into(),
            why: said("why").unwrap_or_else(|| {
                format!("{} answered {status}, which is not what an agent says", self.base)
            }),
            next: said("next").unwrap_or_else(|| "name the running agent with --url or --data-dir".into()),
        }
    }
}

/// Reads an answer.
///
/// # Errors
/// When it is none of this version.
pub fn understood<T: DeserializeOwned>(text: &str) -> Result<T, ClientError> {
    serde_json::from_str(text).map_err(ClientError::Unreadable)
}

/// An address that this machine reaches the agent at.
fn local(address: SocketAddr) -> SocketAddr {
    match address.ip().is_unspecified() {
        true => (Ipv4Addr::LOCALHOST, address.port()).into(),
        false => address,
    }
}

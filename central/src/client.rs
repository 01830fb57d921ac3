//! Talks to a running server over its REST, for commands on the same machine.
//!
//! Not the operator's client: only what a person needs before there is any site.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::failure::{Exit, Failure};

/// A server and the right to ask it.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    token: String,
}

/// A token that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// For `holdfast-site enroll`. A secret until it is used.
    pub token: String,
    /// End of its life, RFC 3339.
    pub expires_at: String,
    /// Whether the site was described just now.
    pub is_new: bool,
}

impl Client {
    /// Reads the administrator's token from `token_file`, for the server at `url` (`http://host:port`).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(url: &str, token_file: &Path) -> Result<Self, Failure> {
        let token = fs::read_to_string(token_file).map_err(|error| {
            Failure::new(
                Exit::Server,
                format!("the administrator's token cannot be read from {}", token_file.display()),
                error.to_string(),
                "name the server's data folder with `--data-dir` (the first `serve` makes the token there), and \
                 run this as its owner",
            )
        })?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // The server is on this machine; a proxy of the environment would only get the token.
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(30)))
            .build()
            .into();
        Ok(Client { agent, url: url.trim_end_matches('/').into(), token: token.trim().into() })
    }

    /// Makes a token for the site with this name, which is described first if there is none.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn invite(&self, name: &str, description: &str) -> Result<Invitation, Failure> {
        let what = format!("no token was made for site `{name}`");
        // A name never needs escaping; what is none is refused by the server when the site is created.
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let known = plain && !name.is_empty() && {
            let (status, body) = self.call(&what, "GET", &format!("/sites/{name}"), None)?;
            match status {
                200 => true,
                404 if body["type"] == "urn:holdfast:problem:not-found" => false,
                _ => return Err(self.refused(what, status, &body)),
            }
        };
        if !known {
            let site = json!({ "name": name, "description": description });
            let (status, body) = self.call(&what, "POST", "/sites", Some(&site))?;
            if status != 201 {
                return Err(self.refused(what, status, &body));
            }
        }
        let (status, body) = self.call(&what, "POST", &format!("/sites/{name}/token"), None)?;
        match (status, body["token"].as_str(), body["expires_at"].as_str()) {
            (201, Some(token), Some(expires_at)) => {
                Ok(Invitation { token: token.into(), expires_at: expires_at.into(), is_new: !known })
            }
            _ => Err(self.refused(what, status, &body)),
        }
    }

    /// What the server says of its authority.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn authority(&self) -> Result<Value, Failure> {
        self.ask("the authority could not be shown", "GET", "/authority", None)
    }

    /// Has the authority succeeded; returns the new one.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn renew_authority(&self) -> Result<Value, Failure> {
        self.ask("the authority was not renewed", "POST", "/authority/renew", None)
    }

    /// Ends the predecessor of the authority, even if `force` locks sites out; returns the one that is left.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn retire_authority(&self, force: bool) -> Result<Value, Failure> {
        let body = json!({ "force": force });
        self.ask("the predecessor was not retired", "POST", "/authority/retire", Some(&body))
    }

    /// Has entries of the journal before an instant archived; returns what was made.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn archive_journal(&self, before: &str) -> Result<Value, Failure> {
        let body = json!({ "before": before });
        self.ask("the journal was not archived", "POST", "/journal/archive", Some(&body))
    }

    fn ask(&self, what: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        match self.call(what, method, path, body)? {
            (200 | 201, body) => Ok(body),
            (status, body) => Err(self.refused(what.to_owned(), status, &body)),
        }
    }

    /// What the server says of its recovery.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn recovery(&self) -> Result<Value, Failure> {
        let what = "it is not known whether central is in recovery".to_string();
        let (status, body) = self.call(&what, "GET", "/recovery", None)?;
        if status == 200 { Ok(body) } else { Err(self.refused(what, status, &body)) }
    }

    /// Ends the recovery of the server; `anyway`: also where sites have not given back what they have. Tells
    /// whether it was in one, and the sites that had not.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn resume(&self, why: &str, anyway: bool) -> Result<(bool, Vec<String>), Failure> {
        let what = "the recovery of central was not ended".to_string();
        let body = json!({ "why": why, "anyway": anyway });
        let (status, body) = self.call(&what, "POST", "/recovery/resume", Some(&body))?;
        match (status, body["was_recovering"].as_bool(), body["without"].as_array()) {
            (200, Some(was), Some(without)) => Ok((was, without.iter().map(name_of).collect())),
            _ => Err(self.refused(what, status, &body)),
        }
    }

    /// Pages through a list; `path` begins with `/` and may have a query.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn list(&self, what: &str, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let page = after.map_or_else(|| path.to_string(), |after| format!("{path}{joint}after={after}"));
            let mut body = self.ask(what, "GET", &page, None)?;
            items.extend(body["items"].as_array_mut().map(std::mem::take).unwrap_or_default());
            match body["next"].as_str() {
                Some(next) => after = Some(next.to_string()),
                None => return Ok(items),
            }
        }
    }

    /// Reads one thing.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn get(&self, what: &str, path: &str) -> Result<Value, Failure> {
        self.ask(what, "GET", path, None)
    }

    /// Decides about one thing, with a reason; an empty one is left to the server.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn decide(&self, what: &str, path: &str, why: &str) -> Result<Value, Failure> {
        self.ask(what, "POST", path, Some(&json!({ "why": why })))
    }

    /// Makes or changes one thing by `method`, which is `POST`, `PUT` or `PATCH`.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn change(&self, what: &str, method: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask(what, method, path, Some(body))
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// When the server is not reached or refuses.
    pub fn bytes(&self, what: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let url = format!("{}/api/v1{path}", self.url);
        let answer = self.agent.get(&url).header("authorization", &format!("Bearer {}", self.token)).call();
        let mut answer = answer.map_err(|error| self.unreached(what, &error))?;
        let status = answer.status().as_u16();
        if status != 200 {
            let body = answer.body_mut().read_json().unwrap_or(Value::Null);
            return Err(self.refused(what.to_string(), status, &body));
        }
        answer.body_mut().read_to_vec().map_err(|error| self.unreached(what, &error))
    }

    fn unreached(&self, what: &str, error: &ureq::Error) -> Failure {
        Failure::new(
            Exit::Server,
            what,
            format!("the server at {} does not answer: {error}", self.url),
            "start it with `holdfast-central serve`, or name it with `--server`",
        )
    }

    fn call(
        &self,
        what: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), Failure> {
        let url = format!("{}/api/v1{path}", self.url);
        let bearer = format!("Bearer {}", self.token);
        let answer = match (method, body) {
            ("GET", _) => self.agent.get(&url).header("authorization", &bearer).call(),
            ("PUT", Some(body)) => self.agent.put(&url).header("authorization", &bearer).send_json(body),
            ("PATCH", Some(body)) => self.agent.patch(&url).header("authorization", &bearer).send_json(body),
            (_, Some(body)) => self.agent.post(&url).header("authorization", &bearer).send_json(body),
            (_, None) => self.agent.post(&url).header("authorization", &bearer).send_empty(),
        };
        let mut answer = answer.map_err(|error| self.unreached(what, &error))?;
        // What is no JSON comes from somebody else and shows as a status without a reason.
        let body = answer.body_mut().read_json().unwrap_or(Value::Null);
        Ok((answer.status().as_u16(), body))
    }

    fn refused(&self, what: String, status: u16, body: &Value) -> Failure {
        let text = |field: &str| body[field].as_str().map(str::to_string);
        let why = match (text("detail"), text("why")) {
            (Some(detail), Some(why)) => format!("{detail}: {why}"),
            _ => format!("{} answered {status}, which is not what a Holdfast central says", self.url),
        };
        let next = text("next").unwrap_or_else(|| "name the right server with `--server`".into());
        Failure::new(Exit::Server, what, why, next)
    }
}

/// What the server said of its authority, for people: one fact a line.
pub fn authority_text(shown: &Value) -> String {
    fn facts(of: &Value) -> String {
        let text = |field: &str| of[field].as_str().unwrap_or("?").to_owned();
        format!(
            "{}\n  fingerprint {}\n  good until {}\n",
            text("name"),
            text("fingerprint"),
            text("not_after")
        )
    }
    fn names(list: &Value) -> String {
        let names: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }
    let mut text = format!("authority {}  sites certified by it: {}\n", facts(shown), shown["sites"]);
    let before = &shown["predecessor"];
    if before.is_object() {
        text += &format!(
            "predecessor {}  sites that depend on it: {}\n  unused tokens that name it, by site: {}\n",
            facts(before),
            names(&before["sites_left"]),
            names(&before["tokens_left"])
        );
    }
    text
}

/// What people call a site in an answer.
pub fn name_of(site: &Value) -> String {
    let text = |field: &str| site[field].as_str().filter(|text| !text.is_empty());
    text("name").or(text("site")).unwrap_or_default().to_string()
}

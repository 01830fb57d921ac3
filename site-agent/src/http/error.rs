//! What went wrong, for programs and for people: problem details (RFC 9457) with `why` and `next`.

use axum::{
    body::Bytes,
    extract::rejection::BytesRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use store::StoreError;
use tracing::error;

use crate::error::chain;

/// One problem. The body is never empty: shim 16.1 hangs on an empty 404.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    why: String,
    next: &'static str,
    more: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        why: impl Into<String>,
        next: &'static str,
    ) -> Self {
        Problem { status, kind, title, why: why.into(), next, more: Map::new() }
    }

    pub(super) fn no_such_path() -> Self {
        let why = "this program has nothing under this path";
        Problem::new(StatusCode::NOT_FOUND, "not-found", "there is no such path", why, "check the address")
    }

    pub(super) fn wrong_method() -> Self {
        let why = "the path is there, but not for this method";
        Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "the method does not fit the path",
            why,
            "use the method that the documentation names",
        )
    }

    pub(super) fn bad_request(why: impl Into<String>) -> Self {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "the request cannot be understood",
            why,
            "correct the request and send it again",
        )
    }

    pub(super) fn unknown(what: impl Into<String>) -> Self {
        Problem::new(
            StatusCode::NOT_FOUND,
            "not-found",
            "what was asked for is not here",
            what,
            "check the id; at a site only what concerns the site is known, as of its last contact with central",
        )
    }

    pub(super) fn unauthorized() -> Self {
        Problem::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "a token is needed",
            "no bearer token, or a wrong one, was sent",
            "send `Authorization: Bearer …` with the content of the file `admin-token` in the agent's data folder",
        )
    }

    pub(super) fn no_such_position(after: u64, newest: u64) -> Self {
        Problem::new(
            StatusCode::CONFLICT,
            "refused",
            "the journal does not reach so far",
            format!(
                "there is no entry {after} yet, the newest is {newest}: this database was restored or is another one"
            ),
            "begin without a position",
        )
    }

    pub(super) fn too_many_readers(most: usize) -> Self {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-readers",
            "too many follow the journal",
            format!("{most} readers follow it already, which is as many as may"),
            "end one of them, or read `GET /api/v1/journal?after=` from time to time",
        )
    }

    pub(super) fn wrong_machine_token() -> Self {
        Problem::new(
            StatusCode::FORBIDDEN,
            "wrong-machine-token",
            "the token is not the machine's for this attempt",
            "no bearer token, or that of another attempt, task or site, was sent",
            "boot the machine again from the network: its script carries the token",
        )
    }

    /// Makes a problem of a refusal that has fields of its own, which stay where they are.
    pub(super) fn refused(status: StatusCode, body: &Value) -> Self {
        let why = body.get("why").and_then(Value::as_str).unwrap_or("the report cannot be accepted");
        let mut problem = Problem::new(
            status,
            "refused",
            "the report is refused",
            why,
            "stop; a person decides at central or at this site what the machine does next",
        );
        problem.more = body.as_object().cloned().unwrap_or_default();
        problem
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unknown(what) => Problem::unknown(format!("{what} is not known here")),
            StoreError::Refused(reason) => Problem::new(
                StatusCode::CONFLICT,
                "refused",
                "this cannot be done now",
                reason.to_string(),
                "change what the reason names, or ask central",
            ),
            StoreError::Full => Problem::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "full",
                "nothing can be noted",
                "the volume of the database is full",
                "make room in the data folder of this site; nothing is lost",
            ),
            StoreError::Busy => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "this site is busy",
                "more is asked of the database than it can write now",
                "ask again in a second; nothing was changed",
            ),
            StoreError::Closed => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "this program is stopping",
                "it was told to end",
                "ask again when it runs",
            ),
            other => {
                error!(error = %chain(&other), "request failed");
                Problem::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "the replica of this site failed",
                    chain(&other),
                    "read the log of this site's agent",
                )
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem { status, kind, title, why, next, mut more } = self;
        let fields = json!({
            "type": format!("urn:holdfast:problem:{kind}"), "title": title, "status": status.as_u16(),
            "detail": format!("{title}: {why}"), "why": why, "next": next,
        });
        if let Value::Object(fields) = fields {
            more.extend(fields);
        }
        let mut response = (status, Value::Object(more).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Reads a JSON body, whatever its content type.
pub(super) fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let bytes = body.map_err(|rejection| {
        let status = rejection.status();
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
                status,
                "too-large",
                "the body is too large",
                "at most 1 MiB is read",
                "send less at a time",
            ),
            _ => Problem::bad_request(rejection.body_text()),
        }
    })?;
    serde_json::from_slice(&bytes).map_err(|error| Problem::bad_request(error.to_string()))
}

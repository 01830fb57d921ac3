//! How the API says no: problem details (RFC 9457), with why and what to do next.

use axum::{
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use store::{StoreError, blobs::BlobError};

use crate::failure::chain;

/// One no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    status: StatusCode,
    /// Last part of the type URI; never changes its meaning.
    kind: &'static str,
    title: &'static str,
    detail: String,
    why: String,
    next: String,
}

impl Problem {
    pub(crate) fn not_found(detail: String) -> Self {
        Problem {
            status: StatusCode::NOT_FOUND,
            kind: "not-found",
            title: "not found",
            detail,
            why: "no such thing is known here, or the address is misspelt".into(),
            next: "look for it in the list".into(),
        }
    }

    pub(crate) fn method_not_allowed(method: &Method, path: &str) -> Self {
        Problem {
            status: StatusCode::METHOD_NOT_ALLOWED,
            kind: "method-not-allowed",
            title: "method not allowed",
            detail: format!("{path} does not take {method}"),
            why: "the address exists, for other methods".into(),
            next: "see the header `Allow`".into(),
        }
    }

    pub(crate) fn unauthorized(why: &str) -> Self {
        Problem {
            status: StatusCode::UNAUTHORIZED,
            kind: "unauthorized",
            title: "not logged in",
            detail: "this is for operators".into(),
            why: why.into(),
            next:
                "send `Authorization: Bearer <token>` with the token from the file `admin-token` in the data \
                   folder"
                    .into(),
        }
    }

    /// The request makes no sense: 400.
    pub(crate) fn bad_request(detail: impl Into<String>, why: impl Into<String>) -> Self {
        Problem {
            status: StatusCode::BAD_REQUEST,
            kind: "bad-request",
            title: "the request cannot be read",
            detail: detail.into(),
            why: why.into(),
            next: "correct the request and send it again".into(),
        }
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Problem {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            kind: "too-large",
            title: "the body is too large",
            detail: format!("at most {limit} bytes are taken here"),
            why: "only content may be large".into(),
            next: "send content to `PUT /api/v1/blobs` and name it by its digest".into(),
        }
    }

    pub(crate) fn not_json(found: &str) -> Self {
        Problem {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            kind: "unsupported-media-type",
            title: "the body has another type than JSON",
            detail: format!("the content type is `{found}`"),
            why: "bodies are JSON".into(),
            next: "send `Content-Type: application/json`".into(),
        }
    }

    pub(crate) fn range_not_satisfiable(size: u64) -> Self {
        Problem {
            status: StatusCode::RANGE_NOT_SATISFIABLE,
            kind: "range-not-satisfiable",
            title: "no such range",
            detail: format!("the blob has {size} bytes"),
            why: "the range begins after its end".into(),
            next: "ask for a range that begins before it, or for the whole".into(),
        }
    }

    pub(super) fn conflict(why: String) -> Self {
        Problem {
            status: StatusCode::CONFLICT,
            kind: "refused",
            title: "refused",
            detail: "this cannot be done as asked; nothing was changed".into(),
            why,
            next: "change the request, or what it contradicts, and send it again".into(),
        }
    }

    /// A decision of central after its database went back in time: 409.
    pub(crate) fn recovering(detail: &str, why: String, next: impl Into<String>) -> Self {
        Problem {
            status: StatusCode::CONFLICT,
            kind: "recovery",
            title: "central is in recovery",
            detail: detail.into(),
            why,
            next: next.into(),
        }
    }

    fn full(why: String) -> Self {
        Problem {
            status: StatusCode::INSUFFICIENT_STORAGE,
            kind: "full",
            title: "no room",
            detail: "nothing was stored".into(),
            why,
            next: "make room on the volume of the data folder and send the request again".into(),
        }
    }

    pub(super) fn internal(why: String) -> Self {
        Problem {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "internal",
            title: "central failed",
            detail: "the request was not carried out".into(),
            why,
            next: "look into the log of central; if the data folder is damaged, restore a backup".into(),
        }
    }

    fn busy(why: String) -> Self {
        Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "busy",
            title: "central is busy",
            detail: "the request was not carried out; nothing was changed".into(),
            why,
            next: "send the request again in a second".into(),
        }
    }

    pub(super) fn too_many_readers(most: usize) -> Self {
        Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "too-many-readers",
            title: "too many follow the journal",
            detail: "the stream of events was not opened".into(),
            why: format!("{most} readers follow it already, which is as many as may"),
            next: "end one of them, or read `GET /api/v1/journal?after=` from time to time".into(),
        }
    }

    fn stopping() -> Self {
        Problem {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "stopping",
            title: "central is stopping",
            detail: "the request was not carried out".into(),
            why: "the program is being ended".into(),
            next: "send the request again when it runs".into(),
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unknown(what) => Problem::not_found(format!("{what} is not known here")),
            StoreError::Refused(reason) => Problem::conflict(reason.to_string()),
            StoreError::Recovering(why) => Problem::recovering(
                "central gives no order now; nothing was changed",
                why.to_string(),
                "let the sites give back what they have (`GET /api/v1/recovery` names them), then end the \
                 recovery with `holdfast-central resume`",
            ),
            StoreError::Full => Problem::full(error.to_string()),
            StoreError::Blob(error) => Problem::from(&**error),
            StoreError::Busy => Problem::busy(error.to_string()),
            StoreError::Closed => Problem::stopping(),
            StoreError::Sql(_)
            | StoreError::Open { .. }
            | StoreError::Newer { .. }
            | StoreError::Corrupt(_)
            | StoreError::Unfinished { .. }
            | StoreError::Foreign { .. }
            | StoreError::File { .. }
            | StoreError::Document(_)
            | StoreError::Malformed { .. }
            | StoreError::Chain(_) => {
                let why = chain(&error);
                tracing::error!(error = why, "a request failed");
                Problem::internal(why)
            }
        }
    }
}

impl From<&BlobError> for Problem {
    fn from(error: &BlobError) -> Self {
        match error {
            BlobError::Full { .. } => Problem::full(error.to_string()),
            BlobError::Mismatch { expected, found } => Problem {
                status: StatusCode::UNPROCESSABLE_ENTITY,
                kind: "wrong-digest",
                title: "the bytes have another digest",
                detail: format!("expected {expected}, got {found}; nothing was stored"),
                why: "the bytes were changed on the way, or the digest is that of something else".into(),
                next: "compare with `b3sum`, and send the bytes again".into(),
            },
            BlobError::Missing { digest } => Problem::not_found(format!("blob {digest} is not known here")),
            BlobError::TooLong { .. }
            | BlobError::TooShort { .. }
            | BlobError::Busy { .. }
            | BlobError::Broken { .. }
            | BlobError::Open { .. }
            | BlobError::Sweep { .. }
            | BlobError::Write { .. }
            | BlobError::Publish { .. }
            | BlobError::Read { .. }
            | BlobError::List { .. }
            | BlobError::Remove { .. } => {
                let why = chain(error);
                tracing::error!(error = why, "a request for content failed");
                Problem::internal(why)
            }
        }
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Self {
        Problem::from(&error)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Problem { status, kind, title, detail, why, next } = self;
        let body = json!({
            "type": format!("urn:holdfast:problem:{kind}"),
            "title": title,
            "status": status.as_u16(),
            "detail": detail,
            "why": why,
            "next": next,
        });
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §11.6.1 and RFC 6750 §3.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf, sync::Arc};

    use expect_test::{Expect, expect};
    use http_body_util::BodyExt;
    use sync::{blob::Digest, policy::Reason};

    use super::*;

    async fn check(problem: impl Into<Problem>, expected: Expect) {
        let response = problem.into().into_response();
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_string();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        expected.assert_eq(&format!("{kind}\n{body:#}\n"));
    }

    #[tokio::test]
    async fn a_refusal_of_the_store_is_a_conflict_with_its_reason() {
        check(
            StoreError::Refused(Reason::new("node 07 has task 09, which is ready")),
            expect![[r#"
            application/problem+json
            {
              "detail": "this cannot be done as asked; nothing was changed",
              "next": "change the request, or what it contradicts, and send it again",
              "status": 409,
              "title": "refused",
              "type": "urn:holdfast:problem:refused",
              "why": "node 07 has task 09, which is ready"
            }
        "#]],
        )
        .await;
    }

    #[tokio::test]
    async fn p15_an_order_that_is_not_given_in_recovery_says_what_began_it_and_how_it_ends() {
        check(
            StoreError::Recovering(Reason::new("the database was restored")),
            expect![[r#"
            application/problem+json
            {
              "detail": "central gives no order now; nothing was changed",
              "next": "let the sites give back what they have (`GET /api/v1/recovery` names them), then end the recovery with `holdfast-central resume`",
              "status": 409,
              "title": "central is in recovery",
              "type": "urn:holdfast:problem:recovery",
              "why": "the database was restored"
            }
        "#]],
        )
        .await;
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        check(
            StoreError::Unknown("site lyon".into()),
            expect![[r#"
            application/problem+json
            {
              "detail": "site lyon is not known here",
              "next": "look for it in the list",
              "status": 404,
              "title": "not found",
              "type": "urn:holdfast:problem:not-found",
              "why": "no such thing is known here, or the address is misspelt"
            }
        "#]],
        )
        .await;
    }

    #[tokio::test]
    async fn a_full_disk_is_no_room_wherever_it_showed() {
        let path = PathBuf::from("/b/incoming");
        let full = BlobError::Full { digest: None, path, source: io::Error::from_raw_os_error(28) };
        check(
            StoreError::Blob(Arc::new(full)),
            expect![[r#"
            application/problem+json
            {
              "detail": "nothing was stored",
              "next": "make room on the volume of the data folder and send the request again",
              "status": 507,
              "title": "no room",
              "type": "urn:holdfast:problem:full",
              "why": "the disk is full: no room for a new blob at /b/incoming"
            }
        "#]],
        )
        .await;
        assert_eq!(Problem::from(StoreError::Full).status, StatusCode::INSUFFICIENT_STORAGE);
    }

    #[tokio::test]
    async fn a_wrong_digest_shows_both() {
        let (expected, found) = (Digest([1; 32]), Digest([2; 32]));
        check(BlobError::Mismatch { expected, found }, expect![[r#"
            application/problem+json
            {
              "detail": "expected 0101010101010101010101010101010101010101010101010101010101010101, got 0202020202020202020202020202020202020202020202020202020202020202; nothing was stored",
              "next": "compare with `b3sum`, and send the bytes again",
              "status": 422,
              "title": "the bytes have another digest",
              "type": "urn:holdfast:problem:wrong-digest",
              "why": "the bytes were changed on the way, or the digest is that of something else"
            }
        "#]]).await;
    }

    #[test]
    fn everything_else_is_our_own_fault() {
        let newer = StoreError::Newer { found: 9, known: 1 };
        assert_eq!(Problem::from(newer).status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(Problem::from(StoreError::Closed).status, StatusCode::SERVICE_UNAVAILABLE);
    }
}

//! Content: taking it in and handing it out, as it streams.

use std::ops::Range;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use store::{
    blobs::{BlobError, Put},
    command,
};
use sync::blob::Digest;

use super::{
    App,
    error::Problem,
    extract::{Params, Segment},
};
use crate::{
    content::{Pieces, off_runtime},
    failure::chain,
};

/// Bytes that are gathered before they are written to the disk.
const GATHERED: usize = 256 << 10;

/// Query of `PUT /blobs`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expected {
    digest: Option<Digest>,
}

/// Stores the body under its digest. Nothing stays when it breaks off.
pub(super) async fn put(
    State(app): State<App>,
    Params(expected): Params<Expected>,
    request: Request,
) -> Result<impl IntoResponse, Problem> {
    let blobs = app.store.blobs().clone();
    let mut put = off_runtime(move || blobs.put()).await?;
    let mut body = request.into_body();
    let mut gathered = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad_request("the body broke off", chain(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        gathered.extend_from_slice(&data);
        if gathered.len() >= GATHERED {
            put = write(put, gathered.split().freeze()).await?;
        }
    }
    let put = write(put, gathered.freeze()).await?;
    let (digest, size) = off_runtime(move || put.finish(expected.digest)).await?;
    app.write(move |tx| command::content::arrived(tx, digest, size)).await?;
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, format!("/api/v1/blobs/{digest}"))],
        Json(json!({ "digest": digest, "size": size })),
    ))
}

async fn write(mut put: Put, bytes: Bytes) -> Result<Put, BlobError> {
    off_runtime(move || put.write(&bytes).map(|()| put)).await
}

/// Answers GET and HEAD, whole or one range.
pub(super) async fn get(
    State(app): State<App>,
    Segment(digest): Segment,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let missing = || Problem::not_found(format!("blob {digest} is not known here"));
    let digest: Digest = digest.parse().map_err(|_| missing())?;
    let blobs = app.store.blobs().clone();
    let reader = off_runtime(move || blobs.reader(digest)).await?.ok_or_else(missing)?;
    let size = reader.len();
    let tag = format!("\"{digest}\"");
    let mut answer = HeaderMap::new();
    answer.insert(header::ETAG, ascii(&tag));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if is_known(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let asked = headers.get(header::RANGE).filter(|_| method == Method::GET);
    let (status, range) = match parse_range(asked.and_then(|value| value.to_str().ok()), size) {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(range) => {
            let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            answer.insert(header::CONTENT_RANGE, ascii(&content_range));
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Wanted::Nothing => {
            let mut response = Problem::range_not_satisfiable(size).into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, ascii(&format!("bytes */{size}")));
            return Ok(response);
        }
    };
    answer.insert(header::CONTENT_LENGTH, ascii(&(range.end - range.start).to_string()));
    if method == Method::HEAD {
        return Ok((status, answer).into_response());
    }
    let pieces = stream::try_unfold(Pieces::new(reader, range), |mut pieces| async move {
        match pieces.next().await {
            Ok(Some(piece)) => Ok(Some((piece, pieces))),
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::error!(error = chain(&error), "content broke off");
                Err(error)
            }
        }
    });
    Ok((status, answer, Body::from_stream(pieces)).into_response())
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digests and numbers are ASCII")
}

/// Whether the client has it already (`If-None-Match`, RFC 9110 §13.1.2).
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|tags| {
        tags.split(',').map(str::trim).any(|it| it == "*" || it.strip_prefix("W/").unwrap_or(it) == tag)
    })
}

/// What part of a blob is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// All of it; also what a range in an unknown form means (RFC 9110 §14.2).
    Whole,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// A range in which there is no byte.
    Nothing,
}

/// Reads the field `Range` (RFC 9110 §14.1.1, §14.2) for content of so many bytes. Several ranges at once are
/// answered with the whole, which is always allowed.
fn parse_range(field: Option<&str>, size: u64) -> Wanted {
    let Some((unit, set)) = field.and_then(|field| field.split_once('=')) else {
        return Wanted::Whole;
    };
    let Some((first, last)) = set.trim().split_once('-') else {
        return Wanted::Whole;
    };
    // More digits than fit mean a byte beyond every end.
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let range = match (unit.trim().eq_ignore_ascii_case("bytes"), number(first), number(last)) {
        (true, Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(size),
        (true, Some(first), None) if last.is_empty() => first..size,
        (true, None, Some(length)) if first.is_empty() => size.saturating_sub(length)..size,
        _ => return Wanted::Whole,
    };
    if range.start < range.end { Wanted::Part(range) } else { Wanted::Nothing }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn ranges_mean_what_rfc_9110_says() {
        let mut lines = String::new();
        for field in [
            "bytes=0-0",
            "bytes=0-499",
            "bytes=500-",
            "bytes=-300",
            "bytes=-5000",
            "bytes=990-5000",
            "Bytes=0-1",
            "bytes= 0-1",
            "bytes=0-18446744073709551615",
            "bytes=5-99999999999999999999999",
            "bytes=1000-",
            "bytes=1000-1001",
            "bytes=99999999999999999999999-",
            "bytes=-0",
            "bytes=5-4",
            "bytes=",
            "bytes",
            "bytes=-",
            "bytes=a-b",
            "bytes=0-1,5-6",
            "bytes=+1-2",
            "lines=0-1",
            "bytes=1--2",
        ] {
            lines += &match parse_range(Some(field), 1000) {
                Wanted::Whole => format!("{field}: whole\n"),
                Wanted::Part(range) => format!("{field}: {range:?}\n"),
                Wanted::Nothing => format!("{field}: nothing\n"),
            };
        }
        expect![[r#"
            bytes=0-0: 0..1
            bytes=0-499: 0..500
            bytes=500-: 500..1000
            bytes=-300: 700..1000
            bytes=-5000: 0..1000
            bytes=990-5000: 990..1000
            Bytes=0-1: 0..2
            bytes= 0-1: 0..2
            bytes=0-18446744073709551615: 0..1000
            bytes=5-99999999999999999999999: 5..1000
            bytes=1000-: nothing
            bytes=1000-1001: nothing
            bytes=99999999999999999999999-: nothing
            bytes=-0: nothing
            bytes=5-4: whole
            bytes=: whole
            bytes: whole
            bytes=-: whole
            bytes=a-b: whole
            bytes=0-1,5-6: whole
            bytes=+1-2: whole
            lines=0-1: whole
            bytes=1--2: whole
        "#]]
        .assert_eq(&lines);
        assert_eq!(parse_range(None, 1000), Wanted::Whole);
    }

    #[test]
    fn an_empty_blob_has_no_ranges() {
        assert_eq!(parse_range(None, 0), Wanted::Whole);
        for field in ["bytes=0-0", "bytes=0-", "bytes=-1"] {
            assert_eq!(parse_range(Some(field), 0), Wanted::Nothing, "{field}");
        }
    }

    #[test]
    fn a_client_that_has_the_blob_is_told_so() {
        let known = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))]);
            is_known(&headers, "\"ab\"")
        };
        assert!(known("\"ab\"") && known("W/\"ab\"") && known("\"cd\", \"ab\"") && known("*"));
        assert!(!known("\"cd\"") && !known("ab"));
        assert!(!is_known(&HeaderMap::new(), "\"ab\""));
    }
}

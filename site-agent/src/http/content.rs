//! Loaders from memory and blobs from disk, with ranges, for firmware, iPXE and whoever installs.
//!
//! A blob's name is its digest, so what is sent under it can be cached for ever and a range can be asked
//! for at any time. Only complete, verified blobs have a name at all. Bytes are read in pieces on threads
//! for blocking work, one ahead of what is being sent, so that a slow client holds up no thread.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_lite::stream;
use store::blobs::{BlobError, BlobReader};
use sync::blob::Digest;
use tokio::task::JoinHandle;
use tracing::error;

use super::error::Problem;
use crate::{agent::Agent, error::chain};

/// Bytes that are read at a time: large enough that starting a read costs nothing beside it, small enough
/// that a thousand clients at once need 512 MiB at most.
const PIECE: u64 = 256 << 10;

pub(super) async fn blob(
    State(agent): State<Arc<Agent>>,
    method: Method,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(name) = path.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let digest: Digest =
        name.parse().map_err(|error: sync::id::ParseIdError| Problem::bad_request(error.to_string()))?;
    let blobs = agent.store.blobs().clone();
    let opened = tokio::task::spawn_blocking(move || blobs.reader(digest)).await;
    let reader = match opened {
        Ok(Ok(Some(reader))) => reader,
        Ok(Ok(None)) => return Err(Problem::unknown(format!("blob {digest} is not here"))),
        Ok(Err(error)) => return Err(store::StoreError::from(error).into()),
        Err(_) => return Err(store::StoreError::Closed.into()),
    };
    let (len, etag) = (reader.len(), format!("\"{digest}\""));
    if header_text(&headers, header::IF_NONE_MATCH).is_some_and(|known| matches(known, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, headers_of(&etag, None)).into_response());
    }
    // A range of something else is no range of this: then all of it is sent (RFC 9110 §13.1.5).
    let if_range = header_text(&headers, header::IF_RANGE).is_none_or(|known| known.trim() == etag);
    let asked =
        header_text(&headers, header::RANGE).filter(|_| if_range).map_or(Span::Whole, |text| span(text, len));
    let (status, from, to) = match asked {
        Span::Whole => (StatusCode::OK, 0, len),
        Span::Part(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        Span::Outside => {
            let problem = Problem::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "range-not-satisfiable",
                "the range lies outside the blob",
                format!("it has {len} bytes"),
                "ask for a range that begins within it",
            );
            let mut response = problem.into_response();
            response.headers_mut().insert(header::CONTENT_RANGE, value(&format!("bytes */{len}")));
            return Ok(response);
        }
    };
    let mut headers = headers_of(&etag, Some(to - from));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_RANGE, value(&format!("bytes {from}-{}/{len}", to - 1)));
    }
    let body = if method == Method::HEAD { Body::empty() } else { pieces(reader, from, to) };
    Ok((status, headers, body).into_response())
}

pub(super) async fn loader(
    State(agent): State<Arc<Agent>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let Path(name) = path.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let content = agent.loaders.get(&name).cloned();
    let content = content.ok_or_else(|| Problem::unknown(format!("loader {name} is not here")))?;
    // EDK2 takes a file for a program by this type or by its extension.
    let kind = if name.ends_with(".efi") { "application/efi" } else { "application/octet-stream" };
    Ok(([(header::CONTENT_TYPE, kind)], content).into_response())
}

/// Which bytes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Span {
    Whole,
    /// From the first to before the second; never empty.
    Part(u64, u64),
    Outside,
}

/// Reads a `Range` header (RFC 9110 §14.2) for content of `len` bytes. Several ranges, another unit and
/// nonsense are answered with the whole, as the RFC allows.
fn span(text: &str, len: u64) -> Span {
    let Some(range) = text.trim().strip_prefix("bytes=") else { return Span::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Span::Whole };
    let number = |text: &str| match text.trim() {
        "" => Ok(None),
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(Some(text.parse::<u64>().unwrap_or(u64::MAX)))
        }
        _ => Err(()),
    };
    match (number(first), number(last)) {
        (Ok(Some(first)), Ok(last)) if last.is_none_or(|last| first <= last) => {
            let end = last.map_or(len, |last| last.saturating_add(1).min(len));
            if first < len { Span::Part(first, end) } else { Span::Outside }
        }
        (Ok(None), Ok(Some(count))) if count > 0 && len > 0 => Span::Part(len.saturating_sub(count), len),
        (Ok(None), Ok(Some(_))) => Span::Outside,
        _ => Span::Whole,
    }
}

fn headers_of(etag: &str, length: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ETAG, value(etag));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    if let Some(length) = length {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    headers
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits and punctuation are visible ASCII")
}

fn header_text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Whether a list of entity tags has `etag`, weak or not (RFC 9110 §13.1.2).
fn matches(list: &str, etag: &str) -> bool {
    list.split(',').map(|tag| tag.trim().trim_start_matches("W/")).any(|tag| tag == etag || tag == "*")
}

type Piece = JoinHandle<Result<Bytes, BlobError>>;

/// The bytes `from..to` of a blob as a body.
fn pieces(reader: BlobReader, from: u64, to: u64) -> Body {
    let reader = Arc::new(reader);
    let first = read_piece(&reader, from, to);
    Body::from_stream(stream::unfold((reader, first, to), |(reader, next, to)| async move {
        let (at, piece) = next?;
        match piece.await {
            Ok(Ok(bytes)) => {
                let following = at + bytes.len() as u64;
                let next = read_piece(&reader, following, to);
                Some((Ok(bytes), (reader, next, to)))
            }
            Ok(Err(error)) => {
                // The client sees the connection break, since it knows how many bytes there should be.
                error!(error = %chain(&error), "a blob cannot be read");
                Some((Err(error.to_string()), (reader, None, to)))
            }
            Err(error) => Some((Err(error.to_string()), (reader, None, to))),
        }
    }))
}

/// Begins to read the piece at `at`, unless that is the end.
fn read_piece(reader: &Arc<BlobReader>, at: u64, to: u64) -> Option<(u64, Piece)> {
    let length = usize::try_from(to.saturating_sub(at).min(PIECE)).expect("a piece fits into memory");
    if length == 0 {
        return None;
    }
    let reader = Arc::clone(reader);
    let piece = tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; length];
        let count = reader.read_range(at, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer.into())
    });
    Some((at, piece))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        let check = |text: &str, len, expected| assert_eq!(span(text, len), expected, "{text} of {len}");
        check("bytes=0-0", 10, Span::Part(0, 1));
        check("bytes=2-", 10, Span::Part(2, 10));
        check("bytes=2-99", 10, Span::Part(2, 10));
        check("bytes=-3", 10, Span::Part(7, 10));
        check("bytes=-30", 10, Span::Part(0, 10));
        check("bytes=9-9", 10, Span::Part(9, 10));
        check("bytes=10-", 10, Span::Outside);
        check("bytes=0-0", 0, Span::Outside);
        check("bytes=-0", 10, Span::Outside);
        check("bytes=-1", 0, Span::Outside);
        check("bytes=99999999999999999999-", 10, Span::Outside);
        for whole in ["bytes=5-2", "bytes=1-2,4-5", "bytes=-", "bytes=+1-", "items=0-1", "", "bytes=a-b"] {
            check(whole, 10, Span::Whole);
        }
    }
}

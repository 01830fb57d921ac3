//! Who may ask: whoever shows the administrator's token.
//!
//! Tokens are compared as digests and in constant time, so that nothing is learnt from how long a no takes.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{App, error::Problem};

/// Lets a request through that carries the administrator's token.
pub(super) async fn require(State(app): State<App>, request: Request, next: Next) -> Response {
    match check(request.headers(), &app.admin) {
        Ok(()) => next.run(request).await,
        Err(why) => {
            tracing::warn!(why, path = request.uri().path(), "a request without right was refused");
            Problem::unauthorized(why).into_response()
        }
    }
}

fn check(headers: &HeaderMap, expected: &blake3::Hash) -> Result<(), &'static str> {
    let value = headers.get(header::AUTHORIZATION).ok_or("the request carries no token")?;
    // The scheme is case-insensitive, RFC 9110 §11.1.
    let token = match value.to_str().ok().and_then(|text| text.split_once(' ')) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err("the header `Authorization` has another form than `Bearer <token>`"),
    };
    // Two digests of this type are compared in constant time.
    if blake3::hash(token.as_bytes()) == *expected { Ok(()) } else { Err("the token is wrong") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_token_in_the_right_form_lets_in() {
        let expected = blake3::hash(b"s3cret");
        let answer = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            check(&headers, &expected)
        };
        assert_eq!(answer(Some("Bearer s3cret")), Ok(()));
        assert_eq!(answer(Some("bearer  s3cret ")), Ok(()));
        assert_eq!(answer(None), Err("the request carries no token"));
        for wrong in ["Bearer s3cre", "Bearer s3crets", "Bearer ", "Bearer S3CRET"] {
            assert_eq!(answer(Some(wrong)), Err("the token is wrong"), "{wrong}");
        }
        for form in ["s3cret", "Basic s3cret", ""] {
            assert!(answer(Some(form)).unwrap_err().starts_with("the header"), "{form}");
        }
    }
}

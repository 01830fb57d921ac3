//! What may be asked: bodies, queries and path segments, each with a problem that says what is wrong.

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{header, request::Parts},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use store::{
    StoreError, View,
    command::site::SettingsEdit,
    view::{GroupRow, NodeRow, SiteRow},
};
use sync::id::{GroupId, MacAddr, NodeId, SiteId};

use super::error::Problem;

/// Largest body, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Items of a page unless asked otherwise, and at most.
const PAGE: u64 = 100;
const MAX_PAGE: u64 = 1_000;

/// A body in JSON. An unknown field is a mistake that is named.
pub(super) struct Body<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let found =
            request.headers().get(header::CONTENT_TYPE).map(|it| String::from_utf8_lossy(it.as_bytes()));
        let found = found.unwrap_or_default().to_ascii_lowercase();
        let essence = found.split(';').next().unwrap_or_default().trim();
        if essence != "application/json" {
            return Err(Problem::not_json(essence));
        }
        parse(&read(request).await?).map(Body)
    }
}

/// A body in JSON that may be left out.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if request.headers().contains_key(header::CONTENT_TYPE) {
            let Body(body) = Body::from_request(request, state).await?;
            return Ok(OptionalBody(body));
        }
        let bytes = read(request).await?;
        if bytes.is_empty() { Ok(OptionalBody(T::default())) } else { Err(Problem::not_json("")) }
    }
}

/// Settings that are to change, and why.
#[derive(Debug, Deserialize)]
pub(super) struct SettingsChange {
    #[serde(default)]
    why: String,
    #[serde(flatten)]
    edit: serde_json::Map<String, serde_json::Value>,
}

impl SettingsChange {
    /// The settings, of which each is known and can have its value.
    pub(super) fn read(self) -> Result<(SettingsEdit, String), Problem> {
        let edit = serde_json::from_value(self.edit.into());
        let edit = edit
            .map_err(|error| Problem::bad_request("the body is not what is taken here", error.to_string()))?;
        Ok((edit, self.why))
    }
}

/// A decision, with its reason if the operator gave one.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Decision {
    #[serde(default)]
    why: String,
}

impl Decision {
    /// The reason, or `unsaid`.
    pub(super) fn why(&self, unsaid: &'static str) -> &str {
        if self.why.is_empty() { unsaid } else { &self.why }
    }
}

async fn read(request: Request) -> Result<bytes::Bytes, Problem> {
    match Limited::new(request.into_body(), MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::too_large(MAX_BODY)),
        Err(error) => Err(Problem::bad_request("the body broke off", error.to_string())),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::bad_request("the body is not what is taken here", error.to_string()))
}

/// The query. An unknown parameter is a mistake that is named.
pub(super) struct Params<T>(pub(super) T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(params)) => Ok(Params(params)),
            Err(error) => {
                let text = error.body_text();
                let why = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                Err(Problem::bad_request("the query is not what is taken here", why))
            }
        }
    }
}

/// The one variable segment of a path.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => Ok(Segment(text)),
            Err(error) => Err(Problem::bad_request("the path cannot be read", error.body_text())),
        }
    }
}

/// Which part of a list is wanted. Joined with filters by writing both fields again: flattening and refusing
/// unknown fields exclude each other.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Paging {
    pub(super) limit: Option<u64>,
    pub(super) after: Option<String>,
}

/// Items of a page.
pub(super) fn limit(asked: Option<u64>) -> Result<u64, Problem> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=MAX_PAGE => Ok(limit),
        other => Err(Problem::bad_request(
            format!("`limit` cannot be {other}"),
            format!("a page has 1 to {MAX_PAGE} items"),
        )),
    }
}

/// A cursor, as the list gave it out.
pub(super) fn cursor<T: std::str::FromStr<Err: std::fmt::Display>>(
    after: Option<&str>,
) -> Result<Option<T>, Problem> {
    after
        .map(str::parse::<T>)
        .transpose()
        .map_err(|error| Problem::bad_request("`after` is no cursor of this list", error.to_string()))
}

/// Cuts a page out of a whole list whose items have ids, and says how it goes on.
pub(super) fn cut<T, I: Copy + PartialEq + std::fmt::Display>(
    all: Vec<T>,
    id: impl Fn(&T) -> I,
    after: Option<I>,
    limit: u64,
) -> Result<(Vec<T>, Option<String>), Problem> {
    let start = match after {
        None => 0,
        Some(after) => match all.iter().position(|item| id(item) == after) {
            Some(at) => at + 1,
            None => {
                return Err(Problem::bad_request(
                    format!("`after` is no cursor of this list: {after}"),
                    "the item that it stands for is not there",
                ));
            }
        },
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = all.len() - start > limit;
    let items: Vec<T> = all.into_iter().skip(start).take(limit).collect();
    let next = items.last().filter(|_| more).map(|item| id(item).to_string());
    Ok((items, next))
}

/// The last id of a page, if it is full to the brim: `items` has one more than `limit` then, which goes.
pub(super) fn overhang<T>(items: &mut Vec<T>, limit: u64, id: impl Fn(&T) -> String) -> Option<String> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if items.len() <= limit {
        return None;
    }
    items.truncate(limit);
    items.last().map(id)
}

/// The site with this id or name.
pub(super) fn site(view: &View<'_>, text: &str) -> Result<SiteRow, StoreError> {
    let by_id = match text.parse::<SiteId>() {
        Ok(id) => view.site(id)?,
        Err(_) => None,
    };
    match by_id {
        Some(site) => Ok(site),
        None => view.site_by_name(text)?.ok_or_else(|| StoreError::Unknown(format!("site {text}"))),
    }
}

/// The group with this id, or at this path of names from the top.
pub(super) fn group(view: &View<'_>, text: &str) -> Result<GroupRow, StoreError> {
    let by_id = match text.parse::<GroupId>() {
        Ok(id) => view.group(id)?,
        Err(_) => None,
    };
    match by_id {
        Some(group) => Ok(group),
        None => view.group_at(text)?.ok_or_else(|| StoreError::Unknown(format!("group {text}"))),
    }
}

/// The group that a body names, or none where it says `null`.
pub(super) fn named_group(view: &View<'_>, text: Option<&str>) -> Result<Option<GroupId>, StoreError> {
    text.map(|text| group(view, text).map(|group| group.id)).transpose()
}

/// A field that may be `null`, which is not the same as leaving it out.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// The site that a filter names, if there is one.
pub(super) fn filtered_site(view: &View<'_>, text: Option<&str>) -> Result<Option<SiteId>, StoreError> {
    text.map(|text| site(view, text).map(|site| site.id)).transpose()
}

/// The node with this id or MAC address.
pub(super) fn node(view: &View<'_>, text: &str) -> Result<NodeRow, StoreError> {
    let found = match (text.parse::<NodeId>(), text.parse::<MacAddr>()) {
        (Ok(id), _) => view.node(id)?,
        (Err(_), Ok(mac)) => view.node_by_mac(mac)?,
        (Err(_), Err(_)) => None,
    };
    found.ok_or_else(|| StoreError::Unknown(format!("node {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_into_pages_that_follow_each_other() {
        let all: Vec<u32> = (1..=5).collect();
        let cut = |after, limit| {
            let (items, next) = cut(all.clone(), |id| *id, after, limit).ok()?;
            Some((items, next))
        };
        assert_eq!(cut(None, 2), Some((vec![1, 2], Some("2".into()))));
        assert_eq!(cut(Some(2), 2), Some((vec![3, 4], Some("4".into()))));
        assert_eq!(cut(Some(4), 2), Some((vec![5], None)));
        assert_eq!(cut(Some(3), 2), Some((vec![4, 5], None)), "the last page is full and says so");
        assert_eq!(cut(Some(9), 2), None);
    }

    #[test]
    fn a_page_has_one_to_a_thousand_items() {
        assert_eq!(limit(None), Ok(100));
        assert_eq!(limit(Some(1_000)), Ok(1_000));
        assert!(limit(Some(0)).is_err());
        assert!(limit(Some(1_001)).is_err());
    }

    #[test]
    fn an_unknown_field_is_named() {
        let problem = parse::<Paging>(br#"{"limit": 3, "ofset": 4}"#).unwrap_err();
        let said = format!("{problem:?}");
        assert!(said.contains("unknown field `ofset`, expected `limit` or `after`"), "{said}");
    }
}

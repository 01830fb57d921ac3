//! The journal, for whoever must answer for something.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::Value;
use store::view::JournalFilter;

use super::{
    App,
    error::Problem,
    extract::{self, Params},
    page, shown,
};

/// Query of `GET /journal`. `after` is the number of an entry.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    site: Option<String>,
    limit: Option<u64>,
    after: Option<String>,
}

/// Entries, oldest first. Their total is not counted, because that takes as long as reading all of it.
pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after = extract::cursor(query.after.as_deref())?.unwrap_or(0);
    let (items, next) = app
        .read(move |view| {
            let site = extract::filtered_site(view, query.site.as_deref())?;
            let mut rows = view.journal(&JournalFilter { site, after, limit: limit + 1 })?;
            let next = extract::overhang(&mut rows, limit, |row| row.entry.to_string());
            Ok((rows.iter().map(shown).collect(), next))
        })
        .await?;
    Ok(page(items, None, next))
}

//! The journal, for whoever must answer for something.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use store::view::JournalFilter;
use sync::time::Timestamp;

use super::{
    App,
    error::Problem,
    extract::{self, Body, Params},
    page, shown,
};
use crate::{
    archive::{self, ArchiveError},
    content::off_runtime,
    failure::chain,
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

/// `POST /journal/archive`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Archive {
    before: Timestamp,
}

/// Writes what is older into a file, and lets go of it when that is on the disk.
pub(super) async fn archive(
    State(app): State<App>,
    Body(Archive { before }): Body<Archive>,
) -> Result<impl IntoResponse, Problem> {
    let (store, data, now) = (app.store.clone(), app.data.clone(), app.edge.now());
    let made = off_runtime(move || archive::make(&store, &data, before, now)).await?;
    let (head, digest) = (made.head, made.digest);
    let entries = app.write(move |tx| tx.trim_archived(&head, digest)).await?;
    if entries != made.entries {
        return Err(Problem::internal(format!("{} entries were written, {entries} let go of", made.entries)));
    }
    tracing::warn!(path = %made.path.display(), entries, "a part of the journal was archived");
    let shown = json!({ "file": made.path, "digest": digest, "entries": entries, "before": before });
    Ok((StatusCode::CREATED, Json(shown)))
}

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Refused(why) => Problem::conflict(why),
            ArchiveError::Store(error) => error.into(),
            ArchiveError::Write { .. } => {
                let why = chain(&error);
                tracing::error!(error = why, "no archive was made");
                Problem::internal(why)
            }
        }
    }
}

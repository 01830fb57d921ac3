//! Disagreements: listing them, looking at both sides, settling one or many, taking that back.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{
    StoreError, View,
    command::conflict::{self, Decision, ManyDecision},
    view::{ConflictFilter, ConflictRow},
};
use sync::{
    id::{DocumentId, Nonce, Origin},
    policy::Strategy,
};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Params, Segment},
    page, shown, with,
};

/// Query of `GET /sync/conflicts`. `after` is the number of a conflict.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    site: Option<String>,
    document: Option<DocumentId>,
    path: Option<String>,
    open: Option<bool>,
    limit: Option<u64>,
    after: Option<String>,
}

/// `POST /sync/conflicts/resolve`. `site` is an id or a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Many {
    site: Option<String>,
    document: Option<DocumentId>,
    path: Option<String>,
    strategy: Option<Strategy>,
    #[serde(default)]
    destructive: bool,
    #[serde(default)]
    why: String,
    #[serde(default)]
    dry_run: bool,
}

/// `POST /sync/conflicts/{conflict}/revert`. `to` is the nonce of a side.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revert {
    to: Option<Nonce>,
    #[serde(default)]
    why: String,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after = extract::cursor(query.after.as_deref())?.unwrap_or(0);
    let (items, total, next) = app
        .read(move |view| {
            let home = extract::filtered_site(view, query.site.as_deref())?;
            let filter = ConflictFilter {
                home,
                document: query.document,
                path: query.path,
                open: query.open,
                after,
                limit: limit + 1,
            };
            let mut rows = view.conflicts(&filter)?;
            let next = extract::overhang(&mut rows, limit, |row| row.conflict.to_string());
            let all = view.conflicts(&ConflictFilter { after: 0, limit: 0, ..filter })?;
            let items: Result<Vec<Value>, StoreError> = rows.iter().map(|row| object(view, row)).collect();
            Ok((items?, all.len() as u64, next))
        })
        .await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn show(State(app): State<App>, Segment(conflict): Segment) -> Result<Json<Value>, Problem> {
    let shown = app
        .read(move |view| {
            let row = view.conflict(number(&conflict)?)?.ok_or_else(|| unknown(&conflict))?;
            object(view, &row)
        })
        .await?;
    Ok(Json(shown))
}

pub(super) async fn resolve(
    State(app): State<App>,
    Segment(conflict): Segment,
    Body(decision): Body<Decision>,
) -> Result<Json<Value>, Problem> {
    let decided = app.write(move |tx| conflict::resolve(tx, number(&conflict)?, &decision)).await?;
    Ok(Json(shown(&decided)))
}

pub(super) async fn resolve_many(
    State(app): State<App>,
    Body(many): Body<Many>,
) -> Result<Json<Value>, Problem> {
    let decided = app
        .write(move |tx| {
            let Many { site, document, path, strategy, destructive, why, dry_run } = many;
            let site = extract::filtered_site(&tx.view(), site.as_deref())?;
            conflict::resolve_many(
                tx,
                &ManyDecision { site, path, document, strategy, destructive, why, dry_run },
            )
        })
        .await?;
    let left = decided.iter().filter(|one| one.left.is_some()).count();
    let items: Vec<Value> = decided.iter().map(shown).collect();
    Ok(Json(json!({ "settled": items.len() - left, "left": left, "items": items })))
}

pub(super) async fn revert(
    State(app): State<App>,
    Segment(conflict): Segment,
    Body(revert): Body<Revert>,
) -> Result<Json<Value>, Problem> {
    let decided =
        app.write(move |tx| conflict::revert(tx, number(&conflict)?, revert.to, &revert.why)).await?;
    Ok(Json(shown(&decided)))
}

/// The row, with what people call the sites in it and the machine.
fn object(view: &View<'_>, row: &ConflictRow) -> Result<Value, StoreError> {
    let named = |site| Ok::<_, StoreError>(view.site(site)?.map(|row| row.name));
    let home = row.home.map(named).transpose()?.flatten();
    let mut object = with(row, json!({ "home_name": home }));
    for (side, shown) in row.sides.iter().zip(object["sides"].as_array_mut().into_iter().flatten()) {
        shown["site_name"] = match side.site {
            Origin::Central => json!("central"),
            Origin::Site(site) => json!(named(site)?),
        };
    }
    Ok(object)
}

fn number(conflict: &str) -> Result<u64, StoreError> {
    conflict.parse().map_err(|_| unknown(conflict))
}

fn unknown(conflict: &str) -> StoreError {
    StoreError::Unknown(format!("conflict {conflict}"))
}

//! What did not pass ingress: listing, reading, taking out, deciding.

use axum::{Json, extract::State, http::header, response::IntoResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{
    StoreError, Tx, View, command,
    view::{QuarantineDetail, QuarantineFilter, QuarantineRow},
};
use sync::id::{DocumentId, Origin};

use super::{
    App,
    error::Problem,
    extract::{self, Decision, OptionalBody, Params, Segment},
    page, with,
};

/// Query of `GET /quarantine`. `after` is the number of an item.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    site: Option<String>,
    document: Option<DocumentId>,
    kind: Option<String>,
    denied: Option<bool>,
    limit: Option<u64>,
    after: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after = extract::cursor(query.after.as_deref())?.unwrap_or(0);
    let (items, total, next) = app
        .read(move |view| {
            let site = extract::filtered_site(view, query.site.as_deref())?;
            let filter = QuarantineFilter {
                peer: site.map(Origin::Site),
                document: query.document,
                kind: query.kind,
                denied: query.denied,
                after,
                limit: limit + 1,
            };
            let mut rows = view.quarantined(&filter)?;
            let next = extract::overhang(&mut rows, limit, |row| row.item.to_string());
            let all = view.quarantined(&QuarantineFilter { after: 0, limit: 0, ..filter })?;
            let items: Result<Vec<Value>, StoreError> =
                rows.iter().map(|row| object(view, row, row)).collect();
            Ok((items?, all.len() as u64, next))
        })
        .await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn show(State(app): State<App>, Segment(item): Segment) -> Result<Json<Value>, Problem> {
    let shown = app
        .read(move |view| {
            let found = view.quarantine_item(number(&item)?)?.ok_or_else(|| unknown(&item))?;
            detailed(view, &found)
        })
        .await?;
    Ok(Json(shown))
}

/// The very bytes, for whoever looks at them with tools of his own.
pub(super) async fn bytes(
    State(app): State<App>,
    Segment(item): Segment,
) -> Result<impl IntoResponse, Problem> {
    let name = format!("attachment; filename=\"quarantine-{}.bin\"", number(&item)?);
    let bytes =
        app.read(move |view| view.quarantine_bytes(number(&item)?)?.ok_or_else(|| unknown(&item))).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_string()),
        (header::CONTENT_DISPOSITION, name),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_string()),
    ];
    Ok((headers, bytes))
}

pub(super) async fn release(
    State(app): State<App>,
    Segment(item): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, item, decision, "released by an operator", command::quarantine::release).await
}

pub(super) async fn dismiss(
    State(app): State<App>,
    Segment(item): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, item, decision, "dismissed by an operator", command::quarantine::dismiss).await
}

async fn decide(
    app: App,
    item: String,
    decision: Decision,
    unsaid: &'static str,
    command: impl Fn(&mut Tx<'_>, u64, &str) -> Result<QuarantineDetail, StoreError> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let shown = app
        .write(move |tx| {
            let found = command(tx, number(&item)?, decision.why(unsaid))?;
            detailed(&tx.view(), &found)
        })
        .await?;
    Ok(Json(shown))
}

fn detailed(view: &View<'_>, found: &QuarantineDetail) -> Result<Value, StoreError> {
    object(view, &found.row, found)
}

/// What operators see: also what the site is called.
fn object(view: &View<'_>, row: &QuarantineRow, shown: &impl serde::Serialize) -> Result<Value, StoreError> {
    let site = row.peer.site();
    let name = site.map(|site| view.site(site)).transpose()?.flatten().map(|row| row.name);
    Ok(with(shown, json!({ "site": site, "site_name": name })))
}

fn number(item: &str) -> Result<u64, StoreError> {
    item.parse().map_err(|_| unknown(item))
}

fn unknown(item: &str) -> StoreError {
    StoreError::Unknown(format!("quarantined item {item}"))
}

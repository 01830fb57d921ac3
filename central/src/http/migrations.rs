//! Claims on machines that boot elsewhere than at home, and the fences of their moves.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{
    StoreError, Tx, View,
    command::{claim, fence},
    view::{ClaimFilter, ClaimRow},
};
use sync::{id::ClaimId, policy::ClaimState};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Decision, OptionalBody, Params, Segment},
    page, shown, with,
};

/// Query of `GET /migrations`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    node: Option<String>,
    to: Option<String>,
    from: Option<String>,
    state: Option<ClaimState>,
    limit: Option<u64>,
    after: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after: Option<ClaimId> = extract::cursor(query.after.as_deref())?;
    let (items, total, next) = app
        .read(move |view| {
            let filter = ClaimFilter {
                node: query
                    .node
                    .as_deref()
                    .map(|node| extract::node(view, node))
                    .transpose()?
                    .map(|it| it.id),
                to: extract::filtered_site(view, query.to.as_deref())?,
                from: extract::filtered_site(view, query.from.as_deref())?,
                state: query.state,
                after,
                limit: limit + 1,
            };
            let mut rows = view.claims(&filter)?;
            let next = extract::overhang(&mut rows, limit, |row| row.id.to_string());
            let all = view.claims(&ClaimFilter { after: None, limit: 0, ..filter })?;
            let items: Result<Vec<Value>, StoreError> = rows.iter().map(|row| object(view, row)).collect();
            Ok((items?, all.len() as u64, next))
        })
        .await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn show(State(app): State<App>, Segment(id): Segment) -> Result<Json<Value>, Problem> {
    let shown = app
        .read(move |view| {
            let row = view.claim(parsed(&id)?)?.ok_or_else(|| unknown(&id))?;
            object(view, &row)
        })
        .await?;
    Ok(Json(shown))
}

pub(super) async fn approve(
    State(app): State<App>,
    Segment(id): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, id, move |tx, id| claim::approve(tx, id, decision.why("approved by an operator"))).await
}

pub(super) async fn reject(
    State(app): State<App>,
    Segment(id): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, id, move |tx, id| claim::reject(tx, id, decision.why("rejected by an operator"))).await
}

/// `POST /migrations/{id}/break-fence`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Break {
    /// The machine's hostname, or its first address where it has none.
    name: String,
    #[serde(default)]
    why: String,
}

pub(super) async fn break_fence(
    State(app): State<App>,
    Segment(id): Segment,
    Body(Break { name, why }): Body<Break>,
) -> Result<Json<Value>, Problem> {
    decide(app, id, move |tx, id| fence::break_fence(tx, id, &name, &why)).await
}

/// `POST /migrations/decide`: many at once.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Many {
    approve: bool,
    to: Option<String>,
    from: Option<String>,
    state: Option<ClaimState>,
    #[serde(default)]
    why: String,
    #[serde(default)]
    dry_run: bool,
}

pub(super) async fn decide_many(
    State(app): State<App>,
    Body(many): Body<Many>,
) -> Result<Json<Value>, Problem> {
    if many.to.is_none() && many.from.is_none() {
        return Err(Problem::bad_request(
            "it is not said which claims",
            "name the site that machines leave (`from`), the one that they come to (`to`), or both",
        ));
    }
    let dry_run = many.dry_run;
    let told = app
        .write(move |tx| {
            let filter = ClaimFilter {
                to: extract::filtered_site(&tx.view(), many.to.as_deref())?,
                from: extract::filtered_site(&tx.view(), many.from.as_deref())?,
                state: Some(many.state.unwrap_or(ClaimState::Open)),
                ..ClaimFilter::default()
            };
            claim::decide(tx, &filter, many.approve, &many.why, many.dry_run)
        })
        .await?;
    let decided = told.iter().filter(|it| it.decided).count();
    let items: Vec<Value> = told.iter().map(shown).collect();
    Ok(Json(json!({ "dry_run": dry_run, "decided": decided, "items": items })))
}

async fn decide(
    app: App,
    id: String,
    command: impl FnOnce(&mut Tx<'_>, ClaimId) -> Result<ClaimRow, StoreError> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let shown = app
        .write(move |tx| {
            let row = command(tx, parsed(&id)?)?;
            object(&tx.view(), &row)
        })
        .await?;
    Ok(Json(shown))
}

/// A claim, beside what the machine's document says.
fn object(view: &View<'_>, row: &ClaimRow) -> Result<Value, StoreError> {
    let node = view.node(row.node)?;
    let machine = node.map(|node| {
        json!({
            "hostname": node.hostname, "macs": node.macs, "evidence": node.evidence, "state": node.state,
            "home": node.home, "home_epoch": node.home_epoch,
        })
    });
    Ok(with(row, json!({ "machine": machine })))
}

fn parsed(id: &str) -> Result<ClaimId, StoreError> {
    id.parse().map_err(|_| unknown(id))
}

fn unknown(id: &str) -> StoreError {
    StoreError::Unknown(format!("claim {id}"))
}

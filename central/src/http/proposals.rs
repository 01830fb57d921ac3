//! Proposals: what sites may not do themselves and ask for.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{
    StoreError, Tx, View, command,
    view::{ProposalFilter, ProposalRow, ProposalState},
};
use sync::id::ProposalId;

use super::{
    App,
    error::Problem,
    extract::{self, Decision, OptionalBody, Params, Segment},
    page, with,
};

/// Query of `GET /proposals`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    site: Option<String>,
    state: Option<ProposalState>,
    limit: Option<u64>,
    after: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after: Option<ProposalId> = extract::cursor(query.after.as_deref())?;
    let (items, total, next) = app
        .read(move |view| {
            let site = extract::filtered_site(view, query.site.as_deref())?;
            let filter = ProposalFilter { site, state: query.state, after, limit: limit + 1 };
            let mut rows = view.proposals(&filter)?;
            let next = extract::overhang(&mut rows, limit, |row| row.id.to_string());
            let all = view.proposals(&ProposalFilter { after: None, limit: 0, ..filter })?;
            let items: Result<Vec<Value>, StoreError> = rows.iter().map(|row| object(view, row)).collect();
            Ok((items?, all.len() as u64, next))
        })
        .await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn show(State(app): State<App>, Segment(id): Segment) -> Result<Json<Value>, Problem> {
    let shown = app
        .read(move |view| {
            let row = view.proposal(parsed(&id)?)?.ok_or_else(|| unknown(&id))?;
            object(view, &row)
        })
        .await?;
    Ok(Json(shown))
}

pub(super) async fn apply(
    State(app): State<App>,
    Segment(id): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, id, decision, "applied by an operator", command::proposal::apply).await
}

pub(super) async fn refuse(
    State(app): State<App>,
    Segment(id): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, id, decision, "refused by an operator", command::proposal::refuse).await
}

async fn decide(
    app: App,
    id: String,
    decision: Decision,
    unsaid: &'static str,
    command: impl Fn(&mut Tx<'_>, ProposalId, &str) -> Result<ProposalRow, StoreError> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let shown = app
        .write(move |tx| {
            let row = command(tx, parsed(&id)?, decision.why(unsaid))?;
            object(&tx.view(), &row)
        })
        .await?;
    Ok(Json(shown))
}

fn object(view: &View<'_>, row: &ProposalRow) -> Result<Value, StoreError> {
    let name = view.site(row.site)?.map(|row| row.name);
    Ok(with(row, json!({ "site_name": name })))
}

fn parsed(id: &str) -> Result<ProposalId, StoreError> {
    id.parse().map_err(|_| unknown(id))
}

fn unknown(id: &str) -> StoreError {
    StoreError::Unknown(format!("proposal {id}"))
}

//! Tasks: listing, creating, approving, withdrawing, trying again, giving up.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{
    StoreError, Tx, View, command,
    command::task::NewTask,
    view::{TaskFilter, TaskRow},
};
use sync::{id::TaskId, policy::TaskState};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Decision, OptionalBody, Params, Segment},
    page, shown, with, workflows,
};

/// Query of `GET /tasks`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    site: Option<String>,
    node: Option<String>,
    state: Option<TaskState>,
    limit: Option<u64>,
    after: Option<String>,
}

/// `POST /tasks`. `node` is an id or a MAC address, `workflow` an id or a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    node: String,
    workflow: String,
    version: Option<u64>,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after: Option<TaskId> = extract::cursor(query.after.as_deref())?;
    let (items, total, next) = app
        .read(move |view| {
            let site = extract::filtered_site(view, query.site.as_deref())?;
            let node = query.node.as_deref().map(|text| extract::node(view, text)).transpose()?;
            let filter = TaskFilter {
                site,
                node: node.map(|node| node.id),
                state: query.state,
                after,
                limit: limit + 1,
            };
            let mut rows = view.tasks(&filter)?;
            let next = extract::overhang(&mut rows, limit, |row| row.id.to_string());
            let total = match filter {
                TaskFilter { site: None, node: None, state: None, .. } => view.count_tasks()?,
                filter => view.tasks(&TaskFilter { after: None, limit: 0, ..filter })?.len() as u64,
            };
            Ok((rows.iter().map(shown).collect(), total, next))
        })
        .await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn create(
    State(app): State<App>,
    Body(wanted): Body<Wanted>,
) -> Result<impl IntoResponse, Problem> {
    let row = app
        .write(move |tx| {
            let new = NewTask {
                node: extract::node(&tx.view(), &wanted.node)?.id,
                workflow: workflows::find(&tx.view(), &wanted.workflow)?.id,
                version: wanted.version,
                parameters: wanted.parameters,
                tags: wanted.tags,
            };
            command::task::create(tx, &new)
        })
        .await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/api/v1/tasks/{}", row.id))], Json(shown(&row))))
}

pub(super) async fn show(State(app): State<App>, Segment(task): Segment) -> Result<Json<Value>, Problem> {
    let task = app
        .read(move |view| {
            let row = find(view, &task)?;
            Ok(with(&row, json!({ "progress": view.progress(row.id)? })))
        })
        .await?;
    Ok(Json(task))
}

pub(super) async fn approve(
    State(app): State<App>,
    Segment(task): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, task, decision, "approved by an operator", |tx, id, why| {
        command::task::judge(tx, id, true, why)
    })
    .await
}

pub(super) async fn reject(
    State(app): State<App>,
    Segment(task): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, task, decision, "rejected by an operator", |tx, id, why| {
        command::task::judge(tx, id, false, why)
    })
    .await
}

pub(super) async fn cancel(
    State(app): State<App>,
    Segment(task): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, task, decision, "withdrawn by an operator", command::task::cancel).await
}

pub(super) async fn retry(
    State(app): State<App>,
    Segment(task): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, task, decision, "tried again by an operator", command::task::retry).await
}

pub(super) async fn abort(
    State(app): State<App>,
    Segment(task): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    decide(app, task, decision, "given up by an operator", command::task::abort).await
}

/// Commits a decision about one task; `unsaid` is its reason where the operator gave none.
async fn decide(
    app: App,
    task: String,
    decision: Decision,
    unsaid: &'static str,
    command: impl Fn(&mut Tx<'_>, TaskId, &str) -> Result<TaskRow, StoreError> + Send + 'static,
) -> Result<Json<Value>, Problem> {
    let row = app
        .write(move |tx| {
            let id = find(&tx.view(), &task)?.id;
            command(tx, id, decision.why(unsaid))
        })
        .await?;
    Ok(Json(shown(&row)))
}

fn find(view: &View<'_>, text: &str) -> Result<TaskRow, StoreError> {
    let found = match text.parse::<TaskId>() {
        Ok(id) => view.task(id)?,
        Err(_) => None,
    };
    found.ok_or_else(|| StoreError::Unknown(format!("task {text}")))
}

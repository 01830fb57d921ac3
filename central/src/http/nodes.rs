//! Nodes: listing, registering, editing.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{
    StoreError, View, command,
    command::node::NodeEdit,
    view::{NodeFilter, NodeRow},
};
use sync::id::{MacAddr, NodeId};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Paging, Params, Segment},
    page, shown, with,
};

/// Query of `GET /nodes`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    site: Option<String>,
    limit: Option<u64>,
    after: Option<String>,
}

/// `POST /nodes`. `site` is an id or a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewNode {
    mac: MacAddr,
    site: String,
    #[serde(default)]
    hostname: String,
}

/// `PUT /nodes/{node}/alias_of`. Both by id: an address of another interface names its machine everywhere else.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AliasOf {
    #[serde(deserialize_with = "Option::deserialize")]
    node: Option<NodeId>,
    #[serde(default)]
    why: String,
}

pub(super) async fn alias(
    State(app): State<App>,
    Segment(node): Segment,
    Body(alias): Body<AliasOf>,
) -> Result<Json<Value>, Problem> {
    let shown = app
        .write(move |tx| {
            let id = node.parse().map_err(|_| StoreError::Unknown(format!("node {node}")))?;
            let row = command::twin::say(tx, id, alias.node, &alias.why)?;
            object(&tx.view(), &row)
        })
        .await?;
    Ok(Json(shown))
}

/// Machines that may be one. All of them: a person goes through them from the top.
pub(super) async fn twins(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let pairs = app.read(|view| view.twins()).await?;
    let total = pairs.len() as u64;
    Ok(page(pairs.iter().map(shown).collect(), Some(total), None))
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Filter>,
) -> Result<Json<Value>, Problem> {
    listed(&app, query).await
}

pub(super) async fn list_of_site(
    State(app): State<App>,
    Segment(site): Segment,
    Params(Paging { limit, after }): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    listed(&app, Filter { site: Some(site), limit, after }).await
}

async fn listed(app: &App, query: Filter) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after = extract::cursor(query.after.as_deref())?;
    let (items, total, next) = app
        .read(move |view| {
            let home = extract::filtered_site(view, query.site.as_deref())?;
            let mut rows = view.nodes(&NodeFilter { home, after, limit: limit + 1 })?;
            let next = extract::overhang(&mut rows, limit, |row| row.id.to_string());
            let items = rows.iter().map(|row| object(view, row)).collect::<Result<_, _>>()?;
            Ok((items, view.count_nodes(home)?, next))
        })
        .await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn create(
    State(app): State<App>,
    Body(new): Body<NewNode>,
) -> Result<impl IntoResponse, Problem> {
    let (id, node) = app
        .write(move |tx| {
            let home = extract::site(&tx.view(), &new.site)?.id;
            let id = command::node::create(tx, new.mac, home, &new.hostname)?;
            let row = extract::node(&tx.view(), &id.to_string())?;
            Ok((id, object(&tx.view(), &row)?))
        })
        .await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/api/v1/nodes/{id}"))], Json(node)))
}

pub(super) async fn show(State(app): State<App>, Segment(node): Segment) -> Result<Json<Value>, Problem> {
    Ok(Json(app.read(move |view| object(view, &extract::node(view, &node)?)).await?))
}

pub(super) async fn edit(
    State(app): State<App>,
    Segment(node): Segment,
    Body(edit): Body<NodeEdit>,
) -> Result<Json<Value>, Problem> {
    let node = app
        .write(move |tx| {
            let id = extract::node(&tx.view(), &node)?.id;
            let row = command::node::edit(tx, id, &edit)?;
            object(&tx.view(), &row)
        })
        .await?;
    Ok(Json(node))
}

/// What operators see of a node.
fn object(view: &View<'_>, row: &NodeRow) -> Result<Value, StoreError> {
    Ok(with(row, json!({ "phase": view.phase(row)? })))
}

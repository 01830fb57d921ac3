//! What people at a site ask for: done at once as far as the site may, or asked of central.
//!
//! Each handler says what is wanted; `store::command::ask` decides. What was done is answered like central answers
//! it; what waits for central is answered 202 with the proposal, which `GET /api/v1/proposals/{id}` follows.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;
use store::{
    StoreError,
    command::{
        ask::{self, Ask, Done, What},
        node::NodeEdit,
        task::NewTask,
    },
    view::View,
};
use sync::id::{MacAddr, NodeId, ParseIdError, TaskId, WorkflowId};

use super::{
    error::{Problem, parse},
    operator::{OPERATOR, claim_id, find_node, given, node_object, site_object, task_object},
};
use crate::agent::Agent;

type Id = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;

/// `POST /nodes`: makes an unknown machine a node of this site.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stranger {
    mac: MacAddr,
    #[serde(default)]
    why: String,
}

/// `POST /tasks`. `node` is an id or a MAC address, `workflow` an id or the name of one that is known here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    node: String,
    workflow: String,
    version: Option<u64>,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    why: String,
}

/// A decision, with its reason.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    #[serde(default)]
    why: String,
}

/// `POST /migrations/{id}/consent`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Consenting {
    consents: bool,
    #[serde(default)]
    why: String,
}

/// `PATCH /agent/settings`: what this site decides for itself; `null` leaves it to its settings again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Local {
    #[serde(deserialize_with = "said")]
    pxe_enabled: Option<bool>,
    #[serde(default)]
    why: String,
}

/// A field that has to be there, and may be `null`.
fn said<'de, D: Deserializer<'de>>(from: D) -> Result<Option<bool>, D::Error> {
    Option::deserialize(from)
}

pub(super) async fn edit(State(agent): State<Arc<Agent>>, id: Id, body: Body) -> Result<Response, Problem> {
    let id = given(id)?;
    let edit: NodeEdit = parse(body)?;
    let why = edit.why.clone();
    perform(&agent, why, move |view| Ok(What::EditNode { node: node(view, &id)?, edit })).await
}

pub(super) async fn adopt(State(agent): State<Arc<Agent>>, body: Body) -> Result<Response, Problem> {
    let Stranger { mac, why } = parse(body)?;
    perform(&agent, why, move |_| Ok(What::AdoptMachine { mac })).await
}

pub(super) async fn order(State(agent): State<Arc<Agent>>, body: Body) -> Result<Response, Problem> {
    let wanted: Wanted = parse(body)?;
    perform(&agent, wanted.why.clone(), move |view| {
        Ok(What::CreateTask(NewTask {
            node: node(view, &wanted.node)?,
            workflow: workflow(view, &wanted.workflow)?,
            version: wanted.version,
            parameters: wanted.parameters,
            tags: wanted.tags,
        }))
    })
    .await
}

pub(super) async fn approve(
    State(agent): State<Arc<Agent>>,
    id: Id,
    body: Body,
) -> Result<Response, Problem> {
    decide(&agent, id, body, |task| What::JudgeTask { task, approved: true }).await
}

pub(super) async fn reject(State(agent): State<Arc<Agent>>, id: Id, body: Body) -> Result<Response, Problem> {
    decide(&agent, id, body, |task| What::JudgeTask { task, approved: false }).await
}

pub(super) async fn cancel(State(agent): State<Arc<Agent>>, id: Id, body: Body) -> Result<Response, Problem> {
    decide(&agent, id, body, |task| What::CancelTask { task }).await
}

pub(super) async fn retry(State(agent): State<Arc<Agent>>, id: Id, body: Body) -> Result<Response, Problem> {
    decide(&agent, id, body, |task| What::RetryTask { task }).await
}

pub(super) async fn abort(State(agent): State<Arc<Agent>>, id: Id, body: Body) -> Result<Response, Problem> {
    decide(&agent, id, body, |task| What::AbortTask { task }).await
}

pub(super) async fn set(State(agent): State<Arc<Agent>>, body: Body) -> Result<Response, Problem> {
    let Local { pxe_enabled: enabled, why } = parse(body)?;
    perform(&agent, why, move |_| Ok(What::SwitchPxe { enabled })).await
}

/// A person here gives or withholds this side's consent.
pub(super) async fn consent(
    State(agent): State<Arc<Agent>>,
    id: Id,
    body: Body,
) -> Result<Response, Problem> {
    let claim = claim_id(id)?;
    let Consenting { consents, why } = parse(body)?;
    perform(&agent, why, move |_| Ok(What::ConsentToClaim { claim, consents })).await
}

async fn decide(
    agent: &Arc<Agent>,
    id: Id,
    body: Body,
    what: impl FnOnce(TaskId) -> What,
) -> Result<Response, Problem> {
    let id: TaskId =
        given(id)?.parse().map_err(|error: ParseIdError| Problem::bad_request(error.to_string()))?;
    let Decision { why } = optional(body)?;
    let what = what(id);
    perform(agent, why, move |_| Ok(what)).await
}

/// Does it or has it asked, and answers when that is committed.
async fn perform(
    agent: &Arc<Agent>,
    why: String,
    what: impl FnOnce(&View<'_>) -> Result<What, StoreError> + Send + 'static,
) -> Result<Response, Problem> {
    let answered = agent.submit(OPERATOR, move |tx| {
        let what = what(&tx.view())?;
        let is_new = matches!(what, What::CreateTask(_) | What::AdoptMachine { .. });
        let done = ask::perform(tx, &Ask { what, why })?;
        shown(&tx.view(), &done, if is_new { StatusCode::CREATED } else { StatusCode::OK })
    });
    let (status, at, body) = answered.await?;
    agent.note_change();
    let mut response = (status, Json(body)).into_response();
    if status != StatusCode::OK
        && let Ok(at) = at.parse()
    {
        response.headers_mut().insert(header::LOCATION, at);
    }
    Ok(response)
}

/// What came of it: status, where it is found from now on, and how it is.
fn shown(
    view: &View<'_>,
    done: &Done,
    status: StatusCode,
) -> Result<(StatusCode, String, Value), StoreError> {
    Ok(match done {
        Done::Node(row) => (status, format!("/api/v1/nodes/{}", row.id), node_object(view, row)?),
        Done::Task(row) => (status, format!("/api/v1/tasks/{}", row.id), task_object(view, row)?),
        Done::Site(row) => (status, format!("/api/v1/sites/{}", row.id), site_object(view, row)?),
        Done::Claim(row) => (status, format!("/api/v1/migrations/{}", row.id), serde_json::to_value(row)?),
        Done::Queued(row) => {
            (StatusCode::ACCEPTED, format!("/api/v1/proposals/{}", row.id), serde_json::to_value(row)?)
        }
    })
}

/// The node that a text names; a machine that central is asked to adopt is one, too.
fn node(view: &View<'_>, text: &str) -> Result<NodeId, StoreError> {
    match (find_node(view, text), text.parse::<MacAddr>()) {
        (Ok(row), _) => Ok(row.id),
        (Err(StoreError::Unknown(_)), Ok(mac)) => Ok(NodeId::of(mac)),
        (Err(error), _) => match text.parse::<NodeId>() {
            Ok(id) => Ok(id),
            Err(_) => Err(error),
        },
    }
}

/// One that is not known here may be known to central, by its id.
fn workflow(view: &View<'_>, text: &str) -> Result<WorkflowId, StoreError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let found = view.workflows()?.into_iter().find(|row| row.name == text);
    let cut = || text.chars().take(64).collect::<String>();
    found.map(|row| row.id).ok_or_else(|| StoreError::Unknown(format!("workflow {}", cut())))
}

fn optional<T: DeserializeOwned + Default>(body: Body) -> Result<T, Problem> {
    match &body {
        Ok(bytes) if bytes.is_empty() => Ok(T::default()),
        _ => parse(body),
    }
}

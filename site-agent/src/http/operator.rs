//! What operators read: this site's replica in the shapes that central has too, and how the agent is doing.
//!
//! One bearer token for all of it. What people decide goes through `ask`; that orders are followed again after a restore is
//! confirmed here.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, patch, post, put},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{
    StoreError,
    view::{
        ClaimFilter, ConflictFilter, JournalFilter, NodeFilter, NodeRow, ProposalFilter, QuarantineFilter,
        SiteRow, TaskFilter, TaskRow, View,
    },
};
use sync::{
    id::{ClaimId, MacAddr, NodeId, ParseIdError, ProposalId, SiteId, TaskId, WorkflowId},
    policy::TaskState,
};

use super::{
    ask,
    error::Problem,
    events::{self, Readers},
};
use crate::{agent::Agent, status, token::is_same_secret};

/// Who the journal names for what comes in with the operators' token.
pub(super) const OPERATOR: &str = "admin";

/// Items of a list unless somebody says otherwise, and at most.
const LIMIT: (u64, u64) = (100, 1_000);

pub(super) fn routes(agent: &Arc<Agent>, readers: Readers) -> Router<Arc<Agent>> {
    let events =
        Router::new().route("/api/v1/events", get(events::follow)).with_state((Arc::clone(agent), readers));
    Router::new()
        .merge(events)
        .route("/api/v1/sites", get(sites))
        .route("/api/v1/sites/{id}", get(site))
        .route("/api/v1/nodes", get(nodes).post(ask::adopt))
        .route("/api/v1/nodes/{id}", get(node).patch(ask::edit))
        .route("/api/v1/tasks", get(tasks).post(ask::order))
        .route("/api/v1/tasks/{id}", get(task).delete(ask::cancel))
        .route("/api/v1/tasks/{id}/approve", put(ask::approve))
        .route("/api/v1/tasks/{id}/reject", put(ask::reject))
        .route("/api/v1/tasks/{id}/cancel", put(ask::cancel))
        .route("/api/v1/tasks/{id}/retry", put(ask::retry))
        .route("/api/v1/tasks/{id}/abort", put(ask::abort))
        .route("/api/v1/workflows", get(workflows))
        .route("/api/v1/workflows/{id}", get(workflow))
        .route("/api/v1/journal", get(journal))
        .route("/api/v1/proposals", get(proposals))
        .route("/api/v1/proposals/{id}", get(proposal))
        .route("/api/v1/migrations", get(migrations))
        .route("/api/v1/migrations/{id}", get(migration))
        .route("/api/v1/migrations/{id}/consent", post(ask::consent))
        .route("/api/v1/quarantine", get(quarantine))
        .route("/api/v1/sync/conflicts", get(conflicts))
        .route("/api/v1/agent/status", get(agent_status))
        .route("/api/v1/agent/resume", post(resume))
        .route("/api/v1/agent/settings", patch(ask::set))
        .route_layer(middleware::from_fn_with_state(Arc::clone(agent), only_operators))
}

/// The bearer token of a request.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// The node that a path names by its id or one of its MAC addresses.
pub(super) fn find_node(view: &View<'_>, text: &str) -> Result<NodeRow, StoreError> {
    let found = match (text.parse::<NodeId>(), text.parse::<MacAddr>()) {
        (Ok(id), _) => view.node(id)?,
        (Err(_), Ok(mac)) => view.node_by_mac(mac)?,
        (Err(_), Err(_)) => None,
    };
    found.ok_or_else(|| StoreError::Unknown(format!("node {}", text.chars().take(64).collect::<String>())))
}

async fn only_operators(
    State(agent): State<Arc<Agent>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    match bearer(request.headers()) {
        Some(shown) if is_same_secret(&agent.admin_token, shown) => Ok(next.run(request).await),
        Some(_) | None => Err(Problem::unauthorized()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Paged {
    limit: Option<u64>,
    after: Option<String>,
    site: Option<String>,
    node: Option<String>,
    state: Option<TaskState>,
}

pub(super) type Asked<T> = Result<Query<T>, QueryRejection>;
type Id = Result<Path<String>, PathRejection>;

impl Paged {
    fn of(asked: Asked<Paged>, filters: &[&str]) -> Result<Self, Problem> {
        let Query(paged) = asked.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
        for (name, is_set) in
            [("site", paged.site.is_some()), ("node", paged.node.is_some()), ("state", paged.state.is_some())]
        {
            if is_set && !filters.contains(&name) {
                return Err(Problem::bad_request(format!("this list has no filter `{name}`")));
            }
        }
        if paged.limit == Some(0) {
            return Err(Problem::bad_request("`limit` is 1 at least"));
        }
        Ok(paged)
    }

    fn limit(&self) -> u64 {
        self.limit.unwrap_or(LIMIT.0).min(LIMIT.1)
    }

    fn after<T: std::str::FromStr<Err = ParseIdError>>(&self) -> Result<Option<T>, Problem> {
        let parse = |text: &String| {
            text.parse().map_err(|error: ParseIdError| Problem::bad_request(error.to_string()))
        };
        self.after.as_ref().map(parse).transpose()
    }
}

/// One page of a list: `limit` of the items, one more of which tells that there are more.
fn page<T: Serialize>(
    mut items: Vec<T>,
    limit: u64,
    total: u64,
    cursor: impl Fn(&T) -> String,
) -> Json<Value> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(cursor);
    Json(json!({ "items": items, "total": total, "next": next }))
}

pub(super) fn given(id: Id) -> Result<String, Problem> {
    let Path(id) = id.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    Ok(id)
}

async fn sites(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &[])?;
    let (limit, after) = (paged.limit(), paged.after::<SiteId>()?);
    let found = agent.read(move |_, view| {
        let all = view.sites()?;
        let total = all.len() as u64;
        let rest = all.into_iter().filter(|row| after.is_none_or(|after| row.id > after));
        let mut rest = rest.collect::<Vec<_>>();
        rest.sort_by_key(|row| row.id);
        rest.truncate(usize::try_from(limit + 1).unwrap_or(usize::MAX));
        let rest = rest.iter().map(|row| site_object(view, row)).collect::<Result<Vec<_>, _>>()?;
        Ok((rest, total))
    });
    let (items, total) = found.await?;
    Ok(page(items, limit, total, |item| item["id"].as_str().unwrap_or_default().to_owned()))
}

async fn site(State(agent): State<Arc<Agent>>, id: Id) -> Result<Json<Value>, Problem> {
    let id = given(id)?;
    let found = agent.read(move |_, view| {
        let row = find_site(view, &id)?;
        site_object(view, &row)
    });
    Ok(Json(found.await?))
}

pub(super) fn find_site(view: &View<'_>, text: &str) -> Result<SiteRow, StoreError> {
    let found = match text.parse::<SiteId>() {
        Ok(id) => view.site(id)?,
        Err(_) => view.site_by_name(text)?,
    };
    found.ok_or_else(|| StoreError::Unknown(format!("site {}", text.chars().take(64).collect::<String>())))
}

pub(super) fn site_object(view: &View<'_>, row: &SiteRow) -> Result<Value, StoreError> {
    let mut object = serde_json::to_value(row)?;
    object["nodes"] = view.count_nodes(Some(row.id))?.into();
    Ok(object)
}

async fn nodes(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &["site"])?;
    let (limit, after) = (paged.limit(), paged.after::<NodeId>()?);
    let found = agent.read(move |_, view| {
        let home = paged.site.map(|text| find_site(view, &text)).transpose()?.map(|row| row.id);
        let rows = view.nodes(&NodeFilter { home, after, limit: limit + 1 })?;
        let rows = rows.iter().map(|row| node_object(view, row)).collect::<Result<Vec<_>, _>>()?;
        Ok((rows, view.count_nodes(home)?))
    });
    let (items, total) = found.await?;
    Ok(page(items, limit, total, |item| item["id"].as_str().unwrap_or_default().to_owned()))
}

async fn node(State(agent): State<Arc<Agent>>, id: Id) -> Result<Json<Value>, Problem> {
    let id = given(id)?;
    Ok(Json(agent.read(move |_, view| node_object(view, &find_node(view, &id)?)).await?))
}

pub(super) fn node_object(view: &View<'_>, row: &NodeRow) -> Result<Value, StoreError> {
    let mut object = serde_json::to_value(row)?;
    object["phase"] = view.phase(row)?.as_str().into();
    Ok(object)
}

async fn tasks(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &["site", "node", "state"])?;
    let (limit, after) = (paged.limit(), paged.after::<TaskId>()?);
    let found = agent.read(move |_, view| {
        let site = paged.site.map(|text| find_site(view, &text)).transpose()?.map(|row| row.id);
        let node = paged.node.map(|text| find_node(view, &text)).transpose()?.map(|row| row.id);
        let filter = TaskFilter { site, node, state: paged.state, after: None, limit: 0 };
        let total = view.tasks(&filter)?.len() as u64;
        let rows = view.tasks(&TaskFilter { after, limit: limit + 1, ..filter })?;
        let rows = rows.iter().map(|row| task_object(view, row)).collect::<Result<Vec<_>, _>>()?;
        Ok((rows, total))
    });
    let (items, total) = found.await?;
    Ok(page(items, limit, total, |item| item["id"].as_str().unwrap_or_default().to_owned()))
}

async fn task(State(agent): State<Arc<Agent>>, id: Id) -> Result<Json<Value>, Problem> {
    let id: TaskId =
        given(id)?.parse().map_err(|error: ParseIdError| Problem::bad_request(error.to_string()))?;
    let found = agent.read(move |_, view| {
        let row = view.task(id)?.ok_or_else(|| StoreError::Unknown(format!("task {id}")))?;
        task_object(view, &row)
    });
    Ok(Json(found.await?))
}

pub(super) fn task_object(view: &View<'_>, row: &TaskRow) -> Result<Value, StoreError> {
    let mut object = serde_json::to_value(row)?;
    object["progress"] = serde_json::to_value(view.progress(row.id)?)?;
    Ok(object)
}

async fn workflows(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &[])?;
    let (limit, after) = (paged.limit(), paged.after::<WorkflowId>()?);
    let mut rows = agent.read(|_, view| view.workflows()).await?;
    let total = rows.len() as u64;
    rows.retain(|row| after.is_none_or(|after| row.id > after));
    rows.sort_by_key(|row| row.id);
    Ok(page(rows, limit, total, |row| row.id.to_string()))
}

async fn workflow(State(agent): State<Arc<Agent>>, id: Id) -> Result<Json<Value>, Problem> {
    let id = given(id)?;
    let found = agent.read(move |_, view| {
        let found = match id.parse::<WorkflowId>() {
            Ok(id) => view.workflow(id)?,
            Err(_) => view.workflows()?.into_iter().find(|row| row.name == id),
        };
        let row = found.ok_or_else(|| StoreError::Unknown("this workflow".into()))?;
        Ok(serde_json::to_value(row)?)
    });
    Ok(Json(found.await?))
}

async fn journal(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &["site"])?;
    let after = match &paged.after {
        Some(text) => text.parse().map_err(|_| Problem::bad_request("`after` is the number of an entry"))?,
        None => 0,
    };
    let limit = paged.limit();
    let found = agent.read(move |_, view| {
        let site = paged.site.map(|text| find_site(view, &text)).transpose()?.map(|row| row.id);
        view.journal(&JournalFilter { site, after, limit: limit + 1 })
    });
    let rows = found.await?;
    // Not counted: the journal only grows, and nobody pages to its end by number.
    let Json(mut page) = page(rows, limit, 0, |row| row.entry.to_string());
    page["total"] = Value::Null;
    Ok(Json(page))
}

/// What this site asked central for, and how that ended.
async fn proposals(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &[])?;
    let (limit, after) = (paged.limit(), paged.after::<ProposalId>()?);
    let found = agent.read(move |_, view| {
        let total = view.proposals(&ProposalFilter::default())?.len() as u64;
        Ok((view.proposals(&ProposalFilter { after, limit: limit + 1, ..Default::default() })?, total))
    });
    let (rows, total) = found.await?;
    Ok(page(rows, limit, total, |row| row.id.to_string()))
}

async fn proposal(State(agent): State<Arc<Agent>>, id: Id) -> Result<Json<Value>, Problem> {
    let id: ProposalId =
        given(id)?.parse().map_err(|error: ParseIdError| Problem::bad_request(error.to_string()))?;
    let found = agent.read(move |_, view| {
        let row = view.proposal(id)?.ok_or_else(|| StoreError::Unknown(format!("proposal {id}")))?;
        Ok(serde_json::to_value(row)?)
    });
    Ok(Json(found.await?))
}

/// Claims that this site is a side of.
async fn migrations(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &[])?;
    let (limit, after) = (paged.limit(), paged.after::<ClaimId>()?);
    let found = agent.read(move |_, view| {
        let total = view.claims(&ClaimFilter::default())?.len() as u64;
        Ok((view.claims(&ClaimFilter { after, limit: limit + 1, ..Default::default() })?, total))
    });
    let (rows, total) = found.await?;
    Ok(page(rows, limit, total, |row| row.id.to_string()))
}

async fn migration(State(agent): State<Arc<Agent>>, id: Id) -> Result<Json<Value>, Problem> {
    let id = claim_id(id)?;
    let found = agent.read(move |_, view| {
        let row = view.claim(id)?.ok_or_else(|| StoreError::Unknown(format!("claim {id}")))?;
        Ok(serde_json::to_value(row)?)
    });
    Ok(Json(found.await?))
}

pub(super) fn claim_id(id: Id) -> Result<ClaimId, Problem> {
    given(id)?.parse().map_err(|error: ParseIdError| Problem::bad_request(error.to_string()))
}

/// What central sent that was not taken here.
async fn quarantine(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &[])?;
    let after = match &paged.after {
        Some(text) => text.parse().map_err(|_| Problem::bad_request("`after` is the number of an item"))?,
        None => 0,
    };
    let limit = paged.limit();
    let found = agent.read(move |_, view| {
        let total = view.quarantine()?.len() as u64;
        Ok((view.quarantined(&QuarantineFilter { after, limit: limit + 1, ..Default::default() })?, total))
    });
    let (rows, total) = found.await?;
    Ok(page(rows, limit, total, |row| row.item.to_string()))
}

/// What central and this site disagree about, until it is settled; how that ended is in the journal.
async fn conflicts(State(agent): State<Arc<Agent>>, asked: Asked<Paged>) -> Result<Json<Value>, Problem> {
    let paged = Paged::of(asked, &[])?;
    let after = match &paged.after {
        Some(text) => {
            text.parse().map_err(|_| Problem::bad_request("`after` is the number of a conflict"))?
        }
        None => 0,
    };
    let limit = paged.limit();
    let found = agent.read(move |_, view| {
        let total = view.count_conflicts(None)?;
        Ok((view.conflicts(&ConflictFilter { after, limit: limit + 1, ..Default::default() })?, total))
    });
    let (rows, total) = found.await?;
    Ok(page(rows, limit, total, |row| row.conflict.to_string()))
}

/// A person confirms that orders are followed again.
async fn resume(State(agent): State<Arc<Agent>>) -> Result<Json<Value>, Problem> {
    let was_suspended = agent.submit(OPERATOR, |tx| tx.resume_orders()).await?;
    agent.note_change();
    Ok(Json(json!({ "was_suspended": was_suspended, "incarnation": agent.store.incarnation() })))
}

async fn agent_status(State(agent): State<Arc<Agent>>) -> Result<Json<status::Status>, Problem> {
    let link = agent.link.borrow().clone();
    let content = agent.content.borrow().clone();
    Ok(Json(agent.read(move |agent, view| status::of(agent, view, &link, &content)).await?))
}

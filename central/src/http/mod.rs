//! The operators' API, `/api/v1`.
//!
//! [`router`] lists every route. `error` is how it says no, `auth` who may ask, `extract` what may be asked;
//! then one file per thing that is asked for. Handlers are thin: they read the request, run one read or one
//! command of the store off the runtime, and show what came of it.
//!
//! Deliberately absent: pages, TLS, accounts and roles; the total of the journal, which only grows.

mod error;

mod auth;
mod extract;

mod sites;
mod groups;
mod nodes;
mod workflows;
mod tasks;
mod blobs;
mod journal;
mod events;
mod authority;
mod recovery;
mod quarantine;
mod proposals;
mod conflicts;
mod migrations;

use std::{path::Path, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{Method, Uri},
    middleware,
    routing::{get, patch, post, put},
};
use serde_json::{Value, json};
use store::{Store, StoreError, Tx, View};
use tokio::sync::oneshot;

use crate::{content::off_runtime, enrolment::seat::Seat, event_loop::Edge, sessions::Sessions};
use error::Problem;

pub(crate) use events::Readers;

/// Who the journal names for what comes in with the administrator's token.
const ADMIN: &str = "admin";

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App {
    store: Store,
    edge: Edge,
    seat: Seat,
    /// The data folder.
    data: Arc<Path>,
    /// Digest of the administrator's token.
    admin: Arc<blake3::Hash>,
    sessions: Sessions,
    /// Who follows the journal.
    readers: Readers,
}

impl App {
    pub(crate) fn new(
        store: Store,
        edge: Edge,
        seat: Seat,
        data: &Path,
        admin: &str,
        sessions: Sessions,
        readers: Readers,
    ) -> Self {
        App {
            store,
            edge,
            seat,
            data: data.into(),
            admin: Arc::new(blake3::hash(admin.as_bytes())),
            sessions,
            readers,
        }
    }

    /// Reads derived tables.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&View<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = self.store.clone();
        Ok(off_runtime(move || store.read(read)).await?)
    }

    /// Runs a command; answered when it is committed.
    async fn write<T: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let (sender, receiver) = oneshot::channel();
        self.store.submit(self.edge.given(ADMIN), command, move |outcome| drop(sender.send(outcome)));
        Ok(receiver.await.unwrap_or(Err(StoreError::Closed))?)
    }
}

/// Every route.
pub(crate) fn router(app: App) -> Router {
    let operators = Router::new()
        .route("/sites", get(sites::list).post(sites::create))
        .route("/sites/{site}", get(sites::show).patch(sites::edit))
        .route("/sites/{site}/token", post(sites::invite))
        .route("/sites/{site}/revoke", post(sites::revoke))
        .route("/sites/{site}/resume", post(sites::resume))
        .route("/sites/{site}/group", put(groups::place))
        .route("/sites/{site}/directory_domain", put(groups::set_domain))
        .route("/groups", get(groups::list).post(groups::create))
        .route("/groups/{group}", get(groups::show).patch(groups::edit))
        .route("/groups/{group}/settings", patch(groups::set))
        .route("/groups/{group}/effective", get(groups::effective))
        .route("/sites/{site}/nodes", get(nodes::list_of_site))
        .route("/nodes", get(nodes::list).post(nodes::create))
        .route("/nodes/twins", get(nodes::twins))
        .route("/nodes/{node}/alias_of", put(nodes::alias))
        .route("/nodes/{node}", get(nodes::show).patch(nodes::edit))
        .route("/workflows", get(workflows::list).post(workflows::create))
        .route("/workflows/{workflow}", get(workflows::show))
        .route("/workflows/{workflow}/versions", post(workflows::publish))
        .route("/tasks", get(tasks::list).post(tasks::create))
        .route("/tasks/{task}", get(tasks::show).delete(tasks::cancel))
        .route("/tasks/{task}/approve", put(tasks::approve))
        .route("/tasks/{task}/reject", put(tasks::reject))
        .route("/tasks/{task}/cancel", put(tasks::cancel))
        .route("/tasks/{task}/retry", put(tasks::retry))
        .route("/tasks/{task}/abort", put(tasks::abort))
        .route("/blobs", put(blobs::put))
        .route("/blobs/{digest}", get(blobs::get))
        .route("/journal", get(journal::list))
        .route("/journal/archive", post(journal::archive))
        .route("/events", get(events::follow))
        .route("/authority", get(authority::show))
        .route("/authority/renew", post(authority::renew))
        .route("/authority/retire", post(authority::retire))
        .route("/recovery", get(recovery::show))
        .route("/recovery/resume", post(recovery::resume))
        .route("/quarantine", get(quarantine::list))
        .route("/quarantine/{item}", get(quarantine::show))
        .route("/quarantine/{item}/bytes", get(quarantine::bytes))
        .route("/quarantine/{item}/release", post(quarantine::release))
        .route("/quarantine/{item}/dismiss", post(quarantine::dismiss))
        .route("/proposals", get(proposals::list))
        .route("/proposals/{proposal}", get(proposals::show))
        .route("/proposals/{proposal}/apply", put(proposals::apply))
        .route("/proposals/{proposal}/refuse", put(proposals::refuse))
        .route("/sync/conflicts", get(conflicts::list))
        .route("/sync/conflicts/resolve", post(conflicts::resolve_many))
        .route("/sync/conflicts/{conflict}", get(conflicts::show))
        .route("/sync/conflicts/{conflict}/resolve", post(conflicts::resolve))
        .route("/sync/conflicts/{conflict}/revert", post(conflicts::revert))
        .route("/migrations", get(migrations::list))
        .route("/migrations/decide", post(migrations::decide_many))
        .route("/migrations/{claim}", get(migrations::show))
        .route("/migrations/{claim}/approve", post(migrations::approve))
        .route("/migrations/{claim}/reject", post(migrations::reject))
        .route("/migrations/{claim}/break-fence", post(migrations::break_fence))
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::require));
    let api = operators.route("/health", get(health));
    Router::new()
        .nest("/api/v1", api)
        .fallback(async |uri: Uri| Problem::not_found(format!("there is nothing at {}", uri.path())))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::method_not_allowed(&method, uri.path())
        })
        // Bodies are bounded where they are read; blobs have no bound but the disk.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

async fn health(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let recovering = app.read(|view| view.count_tasks().and(view.suspended())).await?.is_some();
    // Whoever asks this has shown no token, so it is not told what happened.
    Ok(Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION"), "recovering": recovering })))
}

/// A page of a list.
fn page(items: Vec<Value>, total: Option<u64>, next: Option<String>) -> Json<Value> {
    Json(json!({ "items": items, "total": total, "next": next }))
}

/// An object with more fields than its row has.
fn with(row: &impl serde::Serialize, more: Value) -> Value {
    let mut object = shown(row);
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

fn shown(row: &impl serde::Serialize) -> Value {
    serde_json::to_value(row).expect("rows have text keys only and no other failure")
}

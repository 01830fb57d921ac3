//! HTTP at the site: plain, on one port, for machines and for operators.
//!
//! `boot` answers iPXE, `content` serves loaders and blobs, `machine` takes what machines report, `operator`
//! shows the replica to who has the token, `events` lets him read along, `ask` takes what he wants done. `error` is how everything that goes wrong is said. Nothing
//! here decides: boot answers come from `boot::decide`, changes from the store's commands.
//!
//! Bodies are read as bytes and parsed here, because machines send JSON under any content type.

mod error;
mod boot;
mod content;
mod machine;
mod operator;
mod events;
mod ask;

#[cfg(test)]
mod tests;

use std::{future::Future, io, sync::Arc};

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    response::IntoResponse,
    routing::{get, post},
    serve::ListenerExt as _,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::{error::Problem, events::Readers};
use crate::agent::Agent;

/// Longest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Serves until `end` is ready and what was begun has ended.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    agent: Arc<Agent>,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Small answers follow each other on one connection; waiting for more to send costs 40 ms each.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "no TCP_NODELAY");
        }
    });
    // Who reads along is told to go; otherwise the end would wait for him.
    let stopping = CancellationToken::new();
    let readers = Readers::of(&agent.store, stopping.clone());
    let end = async move {
        end.await;
        stopping.cancel();
    };
    axum::serve(listener, router(agent, readers)).with_graceful_shutdown(end).await
}

fn router(agent: Arc<Agent>, readers: Readers) -> Router {
    let machines = Router::new()
        .route("/boot/{mac}", get(boot::script))
        .route("/blobs/{digest}", get(content::blob))
        .route("/loaders/{name}", get(content::loader))
        .route("/api/v1/nodes/register", post(machine::register))
        .route("/api/v1/nodes/{id}/event", post(machine::event))
        .route("/health", get(health));
    let operators = operator::routes(&agent, readers);
    machines
        .merge(operators)
        .fallback(async || Problem::no_such_path())
        .method_not_allowed_fallback(async || Problem::wrong_method())
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(agent)
}

async fn health() -> impl IntoResponse {
    Json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

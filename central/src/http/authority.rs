//! The authority that signs certificates: who it is, its successor, the end of its predecessor.

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde::Deserialize;
use serde_json::{Value, json};
use store::command::authority;
use sync::quic::CloseCode;

use super::{App, error::Problem, extract::OptionalBody};
use crate::{enrolment::ca::CaError, failure::chain};

pub(super) async fn show(State(app): State<App>) -> Result<Json<Value>, Problem> {
    object(&app).await.map(Json)
}

pub(super) async fn renew(State(app): State<App>) -> Result<impl IntoResponse, Problem> {
    app.seat.succeed().await?;
    follow(&app).await?;
    let authority = app.seat.present().described();
    tracing::warn!(authority = %authority.fingerprint, "the authority has a successor: back up the data folder");
    Ok((StatusCode::CREATED, Json(object(&app).await?)))
}

/// `POST /authority/retire`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retire {
    /// Whether sites may be locked out.
    #[serde(default)]
    force: bool,
}

pub(super) async fn retire(
    State(app): State<App>,
    OptionalBody(Retire { force }): OptionalBody<Retire>,
) -> Result<Json<Value>, Problem> {
    let standing = app.seat.present().standing();
    let behind = app
        .write(move |tx| {
            if !force {
                authority::permit_retirement(tx, &standing)?;
            }
            match standing.predecessor {
                Some(predecessor) => tx.view().sites_behind(predecessor),
                None => Ok(Vec::new()),
            }
        })
        .await?;
    app.seat.retire().await?;
    follow(&app).await?;
    for (site, name) in behind {
        let words = "the authority that certified this site was retired; a new token brings it back";
        let ended = app.sessions.end(site, CloseCode::Revoked, words);
        tracing::warn!(%site, name, ended, "locked out with the authority that certified it");
    }
    object(&app).await.map(Json)
}

/// Journals what has changed.
async fn follow(app: &App) -> Result<(), Problem> {
    let standing = app.seat.present().standing();
    app.write(move |tx| authority::follow(tx, &standing)).await
}

/// What operators see of the authority.
async fn object(app: &App) -> Result<Value, Problem> {
    let authority = app.seat.present();
    let (own, before) = (authority.described(), authority.predecessor_described());
    let now = app.edge.now();
    let (fingerprint, made_at) = (own.fingerprint, own.made_at);
    let old = before.as_ref().map(|it| it.fingerprint);
    let (sites, behind, invited) = app
        .read(move |view| {
            let sites = view.count_sites_of(fingerprint)?;
            let Some(old) = old else { return Ok((sites, Vec::new(), Vec::new())) };
            Ok((sites, view.sites_behind(old)?, view.invited_before(made_at, now)?))
        })
        .await?;
    let behind: Vec<String> = behind.into_iter().map(|(_, name)| name).collect();
    let mut shown = super::with(&own, json!({ "sites": sites, "predecessor": null }));
    if let Some(before) = before {
        shown["predecessor"] = super::with(&before, json!({ "sites_left": behind, "tokens_left": invited }));
    }
    Ok(shown)
}

impl From<CaError> for Problem {
    fn from(error: CaError) -> Self {
        match &error {
            CaError::Refused(why) => Problem::conflict(why.clone()),
            CaError::Read { .. } | CaError::Content { .. } | CaError::Write { .. } | CaError::Sign { .. } => {
                let why = chain(&error);
                tracing::error!(error = why, "the authority could not be changed");
                Problem::internal(why)
            }
        }
    }
}

//! The recovery of central: what began it, which sites have given back what they have, and its end.

use axum::{Json, extract::State};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Awaited, Ended, Stage};

use super::{App, error::Problem, extract::OptionalBody, shown, with};

pub(super) async fn show(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let found = app.read(|view| view.recovery()).await?;
    Ok(Json(match found {
        Some(recovery) => with(&recovery, json!({ "recovering": true })),
        None => json!({ "recovering": false }),
    }))
}

/// `POST /recovery/resume`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resume {
    #[serde(default)]
    why: String,
    /// Whether it ends although sites have not given back what they have.
    #[serde(default)]
    anyway: bool,
}

pub(super) async fn resume(
    State(app): State<App>,
    OptionalBody(Resume { why, anyway }): OptionalBody<Resume>,
) -> Result<Json<Value>, Problem> {
    let why = if why.is_empty() { "ended by an operator".into() } else { why };
    match app.write(move |tx| tx.end_recovery(&why, anyway)).await? {
        Ended::WasNot => Ok(Json(json!({ "was_recovering": false, "without": [] }))),
        Ended::Over(without) => {
            tracing::warn!(without = without.len(), "the recovery was ended; central gives orders again");
            let without: Vec<Value> = without.iter().map(shown).collect();
            Ok(Json(json!({ "was_recovering": true, "without": without })))
        }
        Ended::Waits(missing) => Err(Problem::recovering(
            "the recovery goes on; nothing was changed",
            format!(
                "not every site has given back what it has: {}",
                missing.iter().map(words).collect::<Vec<_>>().join("; ")
            ),
            "wait for them. If they are gone for good, or what they have does not matter, end it with \
             `holdfast-central resume --anyway`; what they give back later is taken all the same",
        )),
    }
}

/// A site that is awaited, for people.
fn words(it: &Awaited) -> String {
    let name = if it.name.is_empty() { it.site.to_string() } else { it.name.clone() };
    match (it.stage, it.heard_at) {
        (Stage::Away, Some(at)) => format!("{name} (not heard since, last at {at})"),
        (Stage::Away, None) => format!("{name} (never heard)"),
        (Stage::Returning | Stage::Returned, _) => format!("{name} (connected, not everything is back yet)"),
    }
}

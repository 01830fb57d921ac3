//! Workflows: listing, publishing.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::Value;
use store::{StoreError, View, blobs::Blobs, command, command::workflow::NewVersion, view::WorkflowRow};
use sync::{blob::Digest, document::workflow::Identity, id::WorkflowId, policy::Reason};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Paging, Params, Segment},
    page, shown,
};
use crate::content::off_runtime;

/// What a version boots from, by role.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    kernel: Digest,
    initrd: Digest,
    image: Option<Digest>,
}

/// `POST /workflows`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewWorkflow {
    name: String,
    os_family: String,
    arch: String,
    boot_method: Option<String>,
    files: Files,
    #[serde(default)]
    kernel_args: String,
    #[serde(default)]
    needs_approval: bool,
}

/// `POST /workflows/{id}/versions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnotherVersion {
    files: Files,
    #[serde(default)]
    kernel_args: String,
    #[serde(default)]
    needs_approval: bool,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after: Option<WorkflowId> = extract::cursor(query.after.as_deref())?;
    let all = app.read(|view| view.workflows()).await?;
    let total = all.len() as u64;
    let (rows, next) = extract::cut(all, |workflow| workflow.id, after, limit)?;
    Ok(page(rows.iter().map(shown).collect(), Some(total), next))
}

pub(super) async fn create(
    State(app): State<App>,
    Body(new): Body<NewWorkflow>,
) -> Result<impl IntoResponse, Problem> {
    let version = version(&app, new.files, new.kernel_args, new.needs_approval).await?;
    let identity = Identity {
        name: new.name,
        os_family: new.os_family,
        arch: new.arch,
        boot_method: new.boot_method.unwrap_or_else(|| "kernel".into()),
    };
    let row = app.write(move |tx| command::workflow::create(tx, &identity, &version)).await?;
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, format!("/api/v1/workflows/{}", row.id))],
        Json(shown(&row)),
    ))
}

pub(super) async fn show(State(app): State<App>, Segment(workflow): Segment) -> Result<Json<Value>, Problem> {
    let row = app.read(move |view| find(view, &workflow)).await?;
    Ok(Json(shown(&row)))
}

pub(super) async fn publish(
    State(app): State<App>,
    Segment(workflow): Segment,
    Body(new): Body<AnotherVersion>,
) -> Result<impl IntoResponse, Problem> {
    let version = version(&app, new.files, new.kernel_args, new.needs_approval).await?;
    let row = app
        .write(move |tx| {
            let id = find(&tx.view(), &workflow)?.id;
            command::workflow::publish(tx, id, &version)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(shown(&row))))
}

/// The workflow with this id or name.
pub(super) fn find(view: &View<'_>, text: &str) -> Result<WorkflowRow, StoreError> {
    let by_id = match text.parse::<WorkflowId>() {
        Ok(id) => view.workflow(id)?,
        Err(_) => None,
    };
    match by_id {
        Some(row) => Ok(row),
        None => view
            .workflows()?
            .into_iter()
            .find(|row| row.name == text)
            .ok_or_else(|| StoreError::Unknown(format!("workflow {text}"))),
    }
}

/// Looks up the size of every file, which must be here: what is not cannot be sent to a site.
async fn version(
    app: &App,
    files: Files,
    kernel_args: String,
    needs_approval: bool,
) -> Result<NewVersion, Problem> {
    let blobs = app.store.blobs().clone();
    let files = off_runtime(move || sized(&blobs, &files)).await?;
    Ok(NewVersion { files, kernel_args, needs_approval })
}

fn sized(blobs: &Blobs, files: &Files) -> Result<BTreeMap<String, (Digest, u64)>, StoreError> {
    let mut sized = BTreeMap::new();
    let named = [("kernel", Some(files.kernel)), ("initrd", Some(files.initrd)), ("image", files.image)];
    for (role, digest) in named {
        let Some(digest) = digest else { continue };
        let Some(size) = blobs.size(digest)? else {
            let why =
                format!("blob {digest} for the {role} is not here: send it with `PUT /api/v1/blobs` first");
            return Err(StoreError::Refused(Reason::new(why)));
        };
        sized.insert(role.to_string(), (digest, size));
    }
    Ok(sized)
}

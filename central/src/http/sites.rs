//! Sites: listing, describing, setting, inviting, revoking.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{StoreError, View, command, view::SiteRow};
use sync::{
    id::{GroupId, Origin, SiteId},
    journal::Stream,
    policy::{LinkState, link},
    quic::CloseCode,
    time::Timestamp,
};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Decision, OptionalBody, Paging, Params, Segment, SettingsChange},
    groups, page, with,
};
use crate::{enrolment::token, sessions::Sessions};

/// `POST /sites`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSite {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    location: String,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after: Option<SiteId> = extract::cursor(query.after.as_deref())?;
    let all = app.read(|view| view.sites()).await?;
    let total = all.len() as u64;
    let (rows, next) = extract::cut(all, |site| site.id, after, limit)?;
    let (now, live) = (app.edge.now(), app.sessions.clone());
    let items = app.read(move |view| rows.iter().map(|row| object(view, row, now, &live)).collect()).await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn create(
    State(app): State<App>,
    Body(new): Body<NewSite>,
) -> Result<impl IntoResponse, Problem> {
    let (now, live) = (app.edge.now(), app.sessions.clone());
    let site = app
        .write(move |tx| {
            let id = command::site::create(tx, &new.name, &new.description, &new.location)?;
            let row = extract::site(&tx.view(), &id.to_string())?;
            Ok((id, object(&tx.view(), &row, now, &live)?))
        })
        .await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/api/v1/sites/{}", site.0))], Json(site.1)))
}

pub(super) async fn show(State(app): State<App>, Segment(site): Segment) -> Result<Json<Value>, Problem> {
    let (now, live) = (app.edge.now(), app.sessions.clone());
    Ok(Json(app.read(move |view| object(view, &extract::site(view, &site)?, now, &live)).await?))
}

pub(super) async fn edit(
    State(app): State<App>,
    Segment(site): Segment,
    Body(change): Body<SettingsChange>,
) -> Result<Json<Value>, Problem> {
    let (edit, why) = change.read()?;
    let (now, live) = (app.edge.now(), app.sessions.clone());
    let site = app
        .write(move |tx| {
            let id = extract::site(&tx.view(), &site)?.id;
            let row = command::site::set(tx, id, &edit, &why)?;
            object(&tx.view(), &row, now, &live)
        })
        .await?;
    Ok(Json(site))
}

pub(super) async fn invite(
    State(app): State<App>,
    Segment(site): Segment,
) -> Result<impl IntoResponse, Problem> {
    let row = app.read(move |view| extract::site(view, &site)).await?;
    let (token, record) =
        token::mint(app.edge.entropy(), app.seat.present().fingerprint(), row.id, &row.name, app.edge.now());
    let expires_at = record.expires_at;
    app.write(move |tx| {
        command::enrolment::issue_token(tx, record.hash, record.site, record.expires_at).map(drop)
    })
    .await?;
    // The secret must not stay in any cache on the way.
    let shown_once = [(header::CACHE_CONTROL, "no-store")];
    Ok((
        StatusCode::CREATED,
        shown_once,
        Json(json!({ "token": token.to_string(), "expires_at": expires_at })),
    ))
}

/// `POST /sites/{site}/revoke`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Revoke {
    #[serde(default)]
    reason: String,
}

pub(super) async fn revoke(
    State(app): State<App>,
    Segment(site): Segment,
    Body(revoke): Body<Revoke>,
) -> Result<Json<Value>, Problem> {
    let (now, live) = (app.edge.now(), app.sessions.clone());
    let (id, revocation, shown) = app
        .write(move |tx| {
            let row = extract::site(&tx.view(), &site)?;
            let revocation = command::certificate::revoke(tx, row.id, &revoke.reason)?;
            Ok((row.id, revocation, object(&tx.view(), &row, now, &live)?))
        })
        .await?;
    let ended = app.sessions.end(id, CloseCode::Revoked, &revocation.words());
    tracing::warn!(site = %id, reason = revocation.reason, ended, "site revoked");
    Ok(Json(shown))
}

pub(super) async fn resume(
    State(app): State<App>,
    Segment(site): Segment,
    OptionalBody(decision): OptionalBody<Decision>,
) -> Result<Json<Value>, Problem> {
    let (now, live) = (app.edge.now(), app.sessions.clone());
    let site = app
        .write(move |tx| {
            let id = extract::site(&tx.view(), &site)?.id;
            let row = command::site::resume(tx, id, decision.why("confirmed by an operator"))?;
            object(&tx.view(), &row, now, &live)
        })
        .await?;
    Ok(Json(site))
}

/// What operators see of a site.
pub(super) fn object(
    view: &View<'_>,
    row: &SiteRow,
    now: Timestamp,
    live: &Sessions,
) -> Result<Value, StoreError> {
    let (transport, transport_since) = live.carried_by(row.id).unzip();
    let peer = view.peer(Origin::Site(row.id))?;
    let suspended = peer.telemetry.as_ref().and_then(|it| it.suspended.clone());
    let telemetry = peer.telemetry.map(|it| {
        json!({
            "version": it.version,
            "uptime_s": it.uptime_s,
            "unacknowledged": it.unacknowledged,
            "blobs_wanted": it.blobs_wanted,
            "boots_seen": it.boots_seen,
            "blob_bytes": it.blob_bytes,
        })
    });
    let path = |group: Option<GroupId>| group.map(|group| view.group_path(group)).transpose();
    let standing = view.directory_standing(row.id)?;
    Ok(with(
        row,
        json!({
            "group_path": path(row.group)?,
            "settings_from": groups::origins(view, &row.effective.origins)?,
            "directory": {
                "domain": path(row.directory_domain)?,
                "sites": view.domain_of(row.id)?.map(|sites| groups::named(view, sites)).transpose()?,
                "told": standing.told,
                "acknowledged": standing.acknowledged,
            },
            "status": status(peer.heard_at, row.effective.heartbeat_s, now),
            "transport": transport,
            "transport_since": transport_since,
            "pulled": peer.pulled,
            "end": peer.end,
            "acknowledged": peer.acknowledged,
            "diverged": peer.agrees == Some(false),
            "agrees": peer.agrees,
            "compared_at": peer.compared_at,
            "heard_at": peer.heard_at,
            "clock": peer.clock,
            "telemetry": telemetry,
            "refused": peer.refused,
            "waiting": live.waiting(row.id),
            "certificate": view.certificate(row.id)?,
            "journal_head": view.heads(Stream::Site(row.id))?.pop(),
            "revoked": view.revoked(row.id)?,
            "suspended": suspended,
            "incarnation": peer.life,
            "nodes": view.count_nodes(Some(row.id))?,
        }),
    ))
}

/// The link to a site in the words of operators.
fn status(heard_at: Option<Timestamp>, heartbeat_s: u64, now: Timestamp) -> &'static str {
    let silence = heard_at.map(|at| now.since(at));
    match link::link_state(silence, Duration::from_secs(heartbeat_s)) {
        LinkState::Connected => "online",
        LinkState::Degraded => "degraded",
        LinkState::Offline => "offline",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_degraded_after_two_heartbeats_and_offline_after_five() {
        let heard = Timestamp(1_000_000);
        let after = |s| status(Some(heard), 10, heard.after(Duration::from_secs(s)));
        assert_eq!(
            [after(0), after(20), after(21), after(50), after(51)],
            ["online", "online", "degraded", "degraded", "offline"]
        );
        assert_eq!(status(None, 10, heard), "offline");
    }
}

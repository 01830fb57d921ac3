//! Groups: listing, making, naming and moving them, and what they say of settings; which site stands where, and what its
//! directory is about.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Deserialize;
use serde_json::{Value, json};
use store::{StoreError, View, command, command::group::GroupEdit, view::GroupRow};
use sync::{
    document::settings::Source,
    id::{GroupId, SiteId},
};

use super::{
    App,
    error::Problem,
    extract::{self, Body, Paging, Params, Segment, SettingsChange},
    page, sites, with,
};

/// `POST /groups`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewGroup {
    name: String,
    #[serde(default)]
    description: String,
    parent: Option<String>,
}

/// `PATCH /groups/{group}`; what is left out stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    name: Option<String>,
    description: Option<String>,
    #[serde(default, deserialize_with = "extract::nullable")]
    parent: Option<Option<String>>,
    #[serde(default)]
    why: String,
}

/// `PUT /sites/{site}/group` and `…/directory_domain`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    // `null` says something; leaving it out is a mistake.
    #[serde(deserialize_with = "Option::deserialize")]
    group: Option<String>,
    #[serde(default)]
    why: String,
}

pub(super) async fn list(
    State(app): State<App>,
    Params(query): Params<Paging>,
) -> Result<Json<Value>, Problem> {
    let limit = extract::limit(query.limit)?;
    let after: Option<GroupId> = extract::cursor(query.after.as_deref())?;
    let all = app.read(|view| view.groups()).await?;
    let total = all.len() as u64;
    let (rows, next) = extract::cut(all, |group| group.id, after, limit)?;
    let items = app.read(move |view| rows.iter().map(|row| object(view, row)).collect()).await?;
    Ok(page(items, Some(total), next))
}

pub(super) async fn create(
    State(app): State<App>,
    Body(new): Body<NewGroup>,
) -> Result<impl IntoResponse, Problem> {
    let (id, shown) = app
        .write(move |tx| {
            let parent = extract::named_group(&tx.view(), new.parent.as_deref())?;
            let row = command::group::create(tx, &new.name, &new.description, parent)?;
            Ok((row.id, object(&tx.view(), &row)?))
        })
        .await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/api/v1/groups/{id}"))], Json(shown)))
}

pub(super) async fn show(State(app): State<App>, Segment(group): Segment) -> Result<Json<Value>, Problem> {
    Ok(Json(app.read(move |view| object(view, &extract::group(view, &group)?)).await?))
}

pub(super) async fn edit(
    State(app): State<App>,
    Segment(group): Segment,
    Body(change): Body<Change>,
) -> Result<Json<Value>, Problem> {
    let shown = app
        .write(move |tx| {
            let id = extract::group(&tx.view(), &group)?.id;
            let parent = match &change.parent {
                Some(parent) => Some(extract::named_group(&tx.view(), parent.as_deref())?),
                None => None,
            };
            let edit = GroupEdit { name: change.name, description: change.description, parent };
            let row = command::group::edit(tx, id, &edit, &change.why)?;
            object(&tx.view(), &row)
        })
        .await?;
    Ok(Json(shown))
}

/// `PATCH /groups/{group}/settings`: settings, as of a site.
pub(super) async fn set(
    State(app): State<App>,
    Segment(group): Segment,
    Body(change): Body<SettingsChange>,
) -> Result<Json<Value>, Problem> {
    let (edit, why) = change.read()?;
    let shown = app
        .write(move |tx| {
            let id = extract::group(&tx.view(), &group)?.id;
            let row = command::group::set(tx, id, &edit, &why)?;
            object(&tx.view(), &row)
        })
        .await?;
    Ok(Json(shown))
}

/// `GET /groups/{group}/effective`: what a site follows that stands there and says nothing itself.
pub(super) async fn effective(
    State(app): State<App>,
    Segment(group): Segment,
) -> Result<Json<Value>, Problem> {
    let shown = app
        .read(move |view| {
            let group = extract::group(view, &group)?.id;
            let effective = view.settings_of(group)?;
            let origins = origins(view, &effective.origins)?;
            let mut shown = with(&effective, json!({ "origins": origins }));
            // An epoch is a site's.
            shown.as_object_mut().map(|shown| shown.remove("epoch"));
            Ok(shown)
        })
        .await?;
    Ok(Json(shown))
}

/// Where settings come from, for people: `site`, or the path of a group.
pub(super) fn origins(
    view: &View<'_>,
    origins: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, StoreError> {
    let mut named = BTreeMap::new();
    for (key, origin) in origins {
        let name = match origin.parse() {
            Ok(Source::Group(group)) => view.group_path(group)?,
            Ok(Source::Site) | Err(_) => origin.clone(),
        };
        named.insert(key.clone(), name);
    }
    Ok(named)
}

pub(super) async fn place(
    State(app): State<App>,
    Segment(site): Segment,
    Body(choice): Body<Choice>,
) -> Result<Json<Value>, Problem> {
    choose(app, site, choice, command::group::place).await
}

pub(super) async fn set_domain(
    State(app): State<App>,
    Segment(site): Segment,
    Body(choice): Body<Choice>,
) -> Result<Json<Value>, Problem> {
    choose(app, site, choice, command::group::set_domain).await
}

/// What is done with the group that was chosen for a site.
type Choose =
    fn(&mut store::Tx<'_>, SiteId, Option<GroupId>, &str) -> Result<store::view::SiteRow, StoreError>;

async fn choose(app: App, site: String, choice: Choice, choose: Choose) -> Result<Json<Value>, Problem> {
    let (now, live) = (app.edge.now(), app.sessions.clone());
    let site = app
        .write(move |tx| {
            let id = extract::site(&tx.view(), &site)?.id;
            let group = extract::named_group(&tx.view(), choice.group.as_deref())?;
            let row = choose(tx, id, group, &choice.why)?;
            sites::object(&tx.view(), &row, now, &live)
        })
        .await?;
    Ok(Json(site))
}

/// What operators see of a group.
fn object(view: &View<'_>, row: &GroupRow) -> Result<Value, StoreError> {
    Ok(with(
        row,
        json!({
            "path": view.group_path(row.id)?,
            "sites": named(view, view.sites_within(row.id)?)?,
            "directory_of": named(view, view.sites_of_domain(row.id)?)?,
        }),
    ))
}

/// Names of sites, sorted.
pub(super) fn named(
    view: &View<'_>,
    sites: impl IntoIterator<Item = SiteId>,
) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for site in sites {
        names.push(view.site(site)?.map_or_else(|| site.to_string(), |row| row.name));
    }
    names.sort();
    Ok(names)
}

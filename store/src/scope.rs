//! Who is told about a document.
//!
//! A site tells central everything that it writes itself. Central tells a site what concerns it: its own
//! document, the nodes at home or ever observed there, their tasks, and the workflows of those tasks. A
//! document that comes into a site's scope is told from its first change on.
//!
//! Deliberately absent: the directory, whose stubs will take the place of whole documents at sites that
//! a machine only visited, and leaving a scope: what a site was told once, it goes on being told.

use rusqlite::params;
use sync::{
    document::{Document, Kind, contested, node, task},
    id::{DocumentId, Origin, SiteId},
};

use crate::{StoreError, Tx, log::Row};

/// Puts new changes of a document into the logs of all peers that they concern.
pub(crate) fn spread(
    tx: &mut Tx<'_>,
    doc: i64,
    kind: Kind,
    document: &Document,
    changes: &[i64],
) -> Result<(), StoreError> {
    match tx.state.origin {
        Origin::Site(_) => {
            for change in changes {
                tell_unless_source(tx, Origin::Central, *change)?;
            }
        }
        Origin::Central => {
            let before = members(tx, doc)?;
            for site in sites_of(kind, document) {
                enter_dependencies(tx, site, kind, document)?;
                enter(tx, site, doc)?;
            }
            for site in before {
                for change in changes {
                    tell_unless_source(tx, Origin::Site(site), *change)?;
                }
            }
        }
    }
    Ok(())
}

fn sites_of(kind: Kind, document: &Document) -> Vec<SiteId> {
    match kind {
        Kind::Site => vec![document.id().into()],
        Kind::Node => {
            let home = contested::read(document, &node::home());
            let home = home.newest().and_then(|side| side.value.home_site);
            let observers = contested::keys(document, "observed");
            home.into_iter().chain(observers.iter().filter_map(|key| key.parse().ok())).collect()
        }
        Kind::Task => {
            let spec = contested::read(document, &task::spec());
            spec.newest().map(|side| side.value.for_site).into_iter().collect()
        }
        // These come with what refers to them.
        Kind::Group | Kind::Workflow => vec![],
    }
}

/// What a task needs is told before the task.
fn enter_dependencies(
    tx: &mut Tx<'_>,
    site: SiteId,
    kind: Kind,
    document: &Document,
) -> Result<(), StoreError> {
    if kind != Kind::Task {
        return Ok(());
    }
    let spec = contested::read(document, &task::spec());
    let Some(spec) = spec.newest().map(|side| side.value.clone()) else { return Ok(()) };
    for needed in [DocumentId::from(spec.workflow), DocumentId::from(spec.node)] {
        if let Some(doc) = tx.find(needed)? {
            enter(tx, site, doc)?;
        }
    }
    Ok(())
}

/// Brings a document into the scope of a site and tells all of it, if it was not there already.
fn enter(tx: &mut Tx<'_>, site: SiteId, doc: i64) -> Result<(), StoreError> {
    let peer = Origin::Site(site);
    let entered = tx
        .sql
        .prepare_cached("INSERT OR IGNORE INTO scope (peer, doc) VALUES (?1, ?2)")?
        .execute(params![peer.to_string(), doc])?;
    if entered == 0 {
        return Ok(());
    }
    let all: Vec<i64> = {
        let mut statement =
            tx.sql.prepare_cached("SELECT change FROM changes WHERE doc = ?1 ORDER BY change")?;
        let rows = statement.query_map([doc], |row| row.get(0))?;
        rows.collect::<Result<_, _>>()?
    };
    for change in all {
        tell_unless_source(tx, peer, change)?;
    }
    Ok(())
}

fn members(tx: &Tx<'_>, doc: i64) -> Result<Vec<SiteId>, StoreError> {
    let mut statement = tx.sql.prepare_cached("SELECT peer FROM scope WHERE doc = ?1 ORDER BY peer")?;
    let peers: Vec<String> = statement.query_map([doc], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(peers.iter().filter_map(|peer| peer.parse().ok()).collect())
}

/// Nobody is told what came from there: a site hears of other sites' changes, central of the site's own.
fn tell_unless_source(tx: &mut Tx<'_>, peer: Origin, change: i64) -> Result<(), StoreError> {
    let came_from_there: bool = tx
        .sql
        .prepare_cached("SELECT source IS ?2 FROM changes WHERE change = ?1")?
        .query_row(params![change, peer.to_string()], |row| row.get(0))?;
    if came_from_there { Ok(()) } else { tx.tell(peer, Row::Change(change)) }
}

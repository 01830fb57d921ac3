//! Who is told about a document.
//!
//! A site tells central everything that it writes itself. Central tells a site what concerns it: its own
//! document and the groups that this names, with those above them; the nodes at home there (or seen there
//! while they have no home), their tasks, the workflows of those tasks and its own, and the claims that it is a side of. A document that comes
//! into a site's scope is told from its first change on. A node or group that leaves it is dropped: the site
//! keeps it until everything of its own is acknowledged, then evicts it. So does a site that only saw a machine
//! of another one, and so leaves, after a join, whatever else the site holds that is not in its scope. Dropping
//! is never a deletion; where the machine belongs stays in the directory (see `directory`).
//!
//! Deliberately absent: cache policies. A workflow that was told once stays in the scope.

use std::collections::BTreeSet;

use rusqlite::{OptionalExtension, params};
use sync::{
    document::{Document, Kind, claim, contested, proposal, task, workflow},
    id::{DocumentId, GroupId, Origin, SiteId},
    wire::{Fingerprint, Item},
};

use crate::{
    StoreError, Tx, directory,
    documents::Fresh,
    log::{self, Row, signed},
    view::NodeRow,
};

/// Puts new changes of a document into the logs of all peers that they concern. `node` is the derived row of a
/// node's document.
pub(crate) fn spread(
    tx: &mut Tx<'_>,
    doc: i64,
    kind: Kind,
    document: &Document,
    node: Option<&NodeRow>,
    changes: &[Fresh],
) -> Result<(), StoreError> {
    match tx.state.origin {
        Origin::Site(_) => tell_fresh(tx, Origin::Central, changes)?,
        Origin::Central => {
            if let Some(node) = node {
                directory::note(tx, node)?;
            }
            let before = members(tx, doc)?;
            let wanted = sites_of(tx, kind, document, node, &before, changes)?;
            for site in &wanted {
                enter_dependencies(tx, *site, kind, document)?;
                if !before.contains(site) {
                    enter(tx, *site, doc)?;
                }
            }
            for site in &before {
                if is_bound(kind) && !wanted.contains(site) {
                    leave(tx, *site, doc, kind, document.id(), changes)?;
                    continue;
                }
                if is_bound(kind)
                    && writers(changes).contains(site)
                    && lets_go(tx, *site, doc, kind, document)?
                {
                    // It came back before the site had heard that it left: with it goes what the site wrote meanwhile.
                    leave(tx, *site, doc, kind, document.id(), changes)?;
                    enter(tx, *site, doc)?;
                    unsettle(tx, Origin::Site(*site))?;
                    continue;
                }
                tell_fresh(tx, Origin::Site(*site), changes)?;
            }
            // Whoever wrote into what is not in its scope holds a copy that leaves it again.
            if is_bound(kind) {
                for site in writers(changes) {
                    if !before.contains(&site) && !wanted.contains(&site) {
                        let has_seen_it = node.is_some_and(|row| row.observed_by.contains(&site));
                        if has_seen_it && directory::visited(tx, site, document.id().into())? {
                            // Whatever it knew of the machine once, it had forgotten.
                            forget_departure(tx, site, doc)?;
                        }
                        leave(tx, site, doc, kind, document.id(), changes)?;
                    }
                }
            }
            match kind {
                Kind::Site => {
                    settle_groups(tx, document.id().into())?;
                    directory::outdate_domains(tx, Some(document.id().into()))?;
                }
                Kind::Group => {
                    for site in wanted {
                        settle_groups(tx, site)?;
                    }
                    directory::outdate_domains(tx, None)?;
                }
                Kind::Node | Kind::Workflow | Kind::Task | Kind::Proposal | Kind::Claim => {}
            }
        }
    }
    Ok(())
}

/// Kinds whose documents leave a site's scope again when they change.
fn is_bound(kind: Kind) -> bool {
    match kind {
        Kind::Node | Kind::Group => true,
        Kind::Site | Kind::Workflow | Kind::Task | Kind::Proposal | Kind::Claim => false,
    }
}

/// The sites that a document concerns by what it says. `before` are those that it concerned, `changes` what
/// is new.
fn sites_of(
    tx: &Tx<'_>,
    kind: Kind,
    document: &Document,
    node: Option<&NodeRow>,
    before: &[SiteId],
    changes: &[Fresh],
) -> Result<Vec<SiteId>, StoreError> {
    Ok(match kind {
        Kind::Site => vec![document.id().into()],
        Kind::Node => match node {
            Some(NodeRow { home: Some(home), .. }) => vec![*home],
            Some(NodeRow { home: None, observed_by, .. }) => observed_by.clone(),
            None => vec![],
        },
        Kind::Task => {
            let spec = contested::read(document, &task::spec());
            spec.newest().map(|side| side.value.for_site).into_iter().collect()
        }
        // Whoever asked hears how it ends.
        Kind::Proposal => {
            let wish = contested::read(document, &proposal::wish());
            wish.newest().and_then(|side| side.written.site.site()).into_iter().collect()
        }
        // Both sites, also the one that knows of the machine only that it boots there.
        Kind::Claim => {
            let Some(claim::InForce { opened, opened_by, .. }) = claim::InForce::of(document) else {
                return Ok(vec![]);
            };
            let mut sites = vec![opened.to_site];
            // A site that claims a machine does not choose who hears of it.
            let is_home = || -> Result<bool, StoreError> {
                Ok(tx.view().node(opened.node)?.is_some_and(|row| row.home == Some(opened.from_site)))
            };
            if opened_by == Origin::Central || before.contains(&opened.from_site) || is_home()? {
                sites.push(opened.from_site);
            }
            sites
        }
        Kind::Group => tx.view().sites_naming(document.id().into())?.into_iter().collect(),
        Kind::Workflow => {
            let identity = contested::read(document, &workflow::identity());
            let mut sites: BTreeSet<SiteId> = before.iter().copied().collect();
            // A site keeps its own.
            sites.extend(identity.newest().and_then(|side| side.written.site.site()));
            // It comes with the tasks that refer to it; one that came back to a central which was restored may
            // come after them.
            if sites.is_empty() && !writers(changes).is_empty() {
                sites = tasks_of(tx, document.id())?;
            }
            sites.into_iter().collect()
        }
    })
}

/// The sites that tasks of a workflow are for.
fn tasks_of(tx: &Tx<'_>, workflow: DocumentId) -> Result<BTreeSet<SiteId>, StoreError> {
    let mut statement = tx
        .sql
        .prepare_cached("SELECT DISTINCT site FROM view_tasks WHERE json_extract(body, '$.workflow') = ?1")?;
    let rows = statement.query_map([workflow.to_string()], |row| Ok(SiteId(row.get(0)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Brings the groups in a site's scope to those that concern it.
fn settle_groups(tx: &mut Tx<'_>, site: SiteId) -> Result<(), StoreError> {
    let wanted = tx.view().groups_of(site)?;
    let inside: Vec<(i64, [u8; 16])> = {
        let mut statement = tx.sql.prepare_cached(
            "SELECT scope.doc, id FROM scope JOIN documents ON documents.doc = scope.doc
             WHERE peer = ?1 AND inside = 1 AND kind = ?2",
        )?;
        let peer = Origin::Site(site).to_string();
        let rows =
            statement.query_map(params![peer, Kind::Group.number()], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Result<_, _>>()?
    };
    for group in &wanted {
        // One that is not here is told when it is.
        if let Some(doc) = tx.find((*group).into())? {
            enter(tx, site, doc)?;
        }
    }
    for (doc, id) in inside.into_iter().filter(|(_, id)| !wanted.contains(&GroupId(*id))) {
        leave(tx, site, doc, Kind::Group, DocumentId(id), &[])?;
    }
    Ok(())
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
    // A task of a site that the machine has left does not bring it back.
    let home = tx.view().node(spec.node)?.and_then(|row| row.home);
    let node = home.is_none_or(|home| home == site).then_some(DocumentId::from(spec.node));
    for needed in [DocumentId::from(spec.workflow)].into_iter().chain(node) {
        if let Some(doc) = tx.find(needed)? {
            enter(tx, site, doc)?;
        }
    }
    Ok(())
}

/// Brings a document into the scope of a site and tells all of it, if it was not there already.
fn enter(tx: &mut Tx<'_>, site: SiteId, doc: i64) -> Result<(), StoreError> {
    let peer = Origin::Site(site);
    let found: Option<(bool, bool)> = tx
        .sql
        .prepare_cached("SELECT inside, doubt FROM scope WHERE peer = ?1 AND doc = ?2")?
        .query_row(params![peer.to_string(), doc], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (before, in_doubt) = (found.map(|(inside, _)| inside), found.is_some_and(|(_, doubt)| doubt));
    if before == Some(true) {
        return Ok(());
    }
    tx.sql
        .prepare_cached(
            "INSERT INTO scope (peer, doc) VALUES (?1, ?2)
             ON CONFLICT (peer, doc) DO UPDATE SET inside = 1, gone = NULL, doubt = 0",
        )?
        .execute(params![peer.to_string(), doc])?;
    // It may have been there and been evicted, with what the site wrote itself.
    let is_new = before.is_none();
    let rows: Vec<Row> = {
        let mut statement = tx.sql.prepare_cached(
            "SELECT change FROM changes WHERE doc = ?1 AND NOT (?3 AND source IS ?2) ORDER BY change",
        )?;
        let rows =
            statement.query_map(params![doc, peer.to_string(), is_new], |row| row.get(0).map(Row::Change))?;
        rows.collect::<Result<_, _>>()?
    };
    if !rows.is_empty() {
        tx.tell_all(peer, rows)?;
    }
    if before.is_some() {
        return Ok(());
    }
    // What the site holds of it already, nobody knows: it is all there when it has everything.
    if in_doubt { unsettle(tx, peer) } else { Ok(()) }
}

/// At central, where both join: the site holds a document that is not, or no longer, in its scope. It is told
/// so after it has told what it has of it, for that may bring the document into its scope.
pub(crate) fn doubt(tx: &Tx<'_>, peer: Origin, doc: i64) -> Result<(), StoreError> {
    tx.sql
        .prepare_cached(
            "INSERT INTO scope (peer, doc, inside, upto, doubt)
             VALUES (?1, ?2, 0, (SELECT ifnull(max(change), 0) FROM changes WHERE doc = ?2), 1)
             ON CONFLICT (peer, doc) DO UPDATE SET doubt = 1, upto = excluded.upto WHERE inside = 0",
        )?
        .execute(params![peer.to_string(), doc])?;
    Ok(())
}

/// At central: the site has told all that it had when both joined, so what is still in doubt leaves it.
pub(crate) fn end_doubt(tx: &mut Tx<'_>, peer: Origin, position: u64) -> Result<(), StoreError> {
    let Origin::Site(site) = peer else { return Ok(()) };
    let doubtful: Vec<(i64, u8, [u8; 16])> = {
        let mut statement = tx.sql.prepare_cached(
            "SELECT scope.doc, kind, id FROM scope JOIN documents ON documents.doc = scope.doc
             WHERE scope.peer = ?1 AND doubt = 1
                 AND EXISTS (SELECT 1 FROM peers WHERE peer = ?1 AND anew = 0 AND settled <= ?2)",
        )?;
        let rows = statement.query_map(params![peer.to_string(), signed(position)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
        rows.collect::<Result<_, _>>()?
    };
    if doubtful.is_empty() {
        return Ok(());
    }
    for (doc, kind, id) in doubtful {
        if let Some(kind) = Kind::from_number(kind) {
            leave(tx, site, doc, kind, DocumentId(id), &[])?;
        }
    }
    unsettle(tx, peer)
}

/// What a site holds can be compared again only from the end of our log on.
fn unsettle(tx: &Tx<'_>, peer: Origin) -> Result<(), StoreError> {
    let end = log::end(tx.sql, peer)?;
    tx.sql
        .prepare_cached("UPDATE peers SET settled = max(settled, ?2) WHERE peer = ?1")?
        .execute(params![peer.to_string(), signed(end)])?;
    Ok(())
}

/// Where the log of a site begins anew: what it had acknowledged it knows, and what it had not is told again.
pub(crate) fn begin_anew(sql: &rusqlite::Connection, peer: &str) -> Result<(), StoreError> {
    for statement in [
        "UPDATE scope SET doubt = CASE WHEN gone <= known THEN doubt ELSE 1 END,
             gone = CASE WHEN gone <= known THEN 0 END
         FROM peers WHERE peers.peer = scope.peer AND scope.peer = ?1 AND gone IS NOT NULL",
        "UPDATE epochs SET told = CASE WHEN told <= known THEN 0 END
         FROM peers WHERE peers.peer = ?1 AND lower(hex(epochs.site)) = ?1 AND told IS NOT NULL",
        // Of the directory a database that went back in time may know less than it did.
        "UPDATE peers SET known = 0, directory_at = 0, directory_known = 0 WHERE peer = ?1",
    ] {
        sql.prepare_cached(statement)?.execute([peer])?;
    }
    Ok(())
}

/// Tells a site that it need not hold a document any longer. `fresh` are changes of this very transaction,
/// which the site was not told.
fn leave(
    tx: &mut Tx<'_>,
    site: SiteId,
    doc: i64,
    kind: Kind,
    id: DocumentId,
    fresh: &[Fresh],
) -> Result<(), StoreError> {
    let peer = Origin::Site(site);
    let known: Option<(bool, i64)> = tx
        .sql
        .prepare_cached("SELECT inside, upto FROM scope WHERE peer = ?1 AND doc = ?2")?
        .query_row(params![peer.to_string(), doc], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (inside, upto) = known.unwrap_or((false, 0));
    let oldest_fresh = fresh.iter().map(|change| change.row).min().unwrap_or(i64::MAX);
    let mut held = Fingerprint::default();
    {
        let mut statement = tx.sql.prepare_cached(
            "SELECT hash FROM changes WHERE doc = ?1
                 AND (source = ?2 AND change > ?3 OR ?4 AND change < ?5)",
        )?;
        let upto = if inside { 0 } else { upto };
        let mut rows = statement.query(params![doc, peer.to_string(), upto, inside, oldest_fresh])?;
        while let Some(row) = rows.next()? {
            held.remove(&row.get(0)?);
        }
    }
    tx.sql
        .prepare_cached(
            "INSERT INTO scope (peer, doc, inside, upto)
             VALUES (?1, ?2, 0, (SELECT ifnull(max(change), 0) FROM changes WHERE doc = ?2))
             ON CONFLICT (peer, doc) DO UPDATE SET inside = 0, upto = excluded.upto, doubt = 0",
        )?
        .execute(params![peer.to_string(), doc])?;
    tx.tell_with(peer, Row::Note(Item::dropped(kind.number(), id).to_bytes()), held)?;
    if !inside && has_not_heard(tx, site, doc)? {
        // What it wrote went with the copy that it let go of when it was told first.
        unsettle(tx, peer)?;
    }
    // Who has acknowledged it once knows it, however often it is told.
    let end = log::end(tx.sql, peer)?;
    tx.sql
        .prepare_cached("UPDATE scope SET gone = ifnull(gone, ?3) WHERE peer = ?1 AND doc = ?2")?
        .execute(params![peer.to_string(), doc, signed(end)])?;
    Ok(())
}

/// Whether a site that holds a document had not yet heard, when it wrote what is new, that it left once: it lets go of all of
/// it then, whatever it is told afterwards.
fn lets_go(tx: &Tx<'_>, site: SiteId, doc: i64, kind: Kind, document: &Document) -> Result<bool, StoreError> {
    let peer = Origin::Site(site).to_string();
    let note = Item::dropped(kind.number(), document.id()).to_bytes();
    Ok(tx
        .sql
        .prepare_cached(
            "SELECT 1 FROM scope JOIN peers ON peers.peer = scope.peer WHERE scope.peer = ?1 AND doc = ?2 AND upto > 0
             AND EXISTS (SELECT 1 FROM log WHERE log.peer = ?1 AND position > known AND note = ?3)",
        )?
        .exists(params![peer, doc, note])?)
}

/// Whether a document has left a site, as far as that is told, and the site had not heard of it when it wrote last.
fn has_not_heard(tx: &Tx<'_>, site: SiteId, doc: i64) -> Result<bool, StoreError> {
    Ok(tx
        .sql
        .prepare_cached(
            "SELECT 1 FROM scope JOIN peers ON peers.peer = scope.peer
             WHERE scope.peer = ?1 AND doc = ?2 AND gone > known",
        )?
        .exists(params![Origin::Site(site).to_string(), doc])?)
}

/// What a site once acknowledged of a document that left it does not count any more.
fn forget_departure(tx: &Tx<'_>, site: SiteId, doc: i64) -> Result<(), StoreError> {
    tx.sql
        .prepare_cached("UPDATE scope SET gone = NULL WHERE peer = ?1 AND doc = ?2")?
        .execute(params![Origin::Site(site).to_string(), doc])?;
    Ok(())
}

/// The sites that delivered these changes.
fn writers(changes: &[Fresh]) -> BTreeSet<SiteId> {
    changes.iter().filter_map(|change| change.source?.site()).collect()
}

fn members(tx: &Tx<'_>, doc: i64) -> Result<Vec<SiteId>, StoreError> {
    let mut statement =
        tx.sql.prepare_cached("SELECT peer FROM scope WHERE doc = ?1 AND inside = 1 ORDER BY peer")?;
    let peers: Vec<String> = statement.query_map([doc], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(peers.iter().filter_map(|peer| peer.parse().ok()).collect())
}

/// Nobody is told what came from there: a site hears of other sites' changes, central of the site's own.
fn tell_fresh(tx: &mut Tx<'_>, peer: Origin, changes: &[Fresh]) -> Result<(), StoreError> {
    let others = changes.iter().filter(|change| change.source != Some(peer));
    others.map(|change| change.row).try_for_each(|row| tx.tell(peer, Row::Change(row)))
}

//! Derived tables: what everybody reads.
//!
//! Each kind of document has one, kept in the same transaction as the document and made again from the
//! documents whenever [`VERSION`] differs from the one that made it. A row's body is JSON in the shape
//! that REST shows. `sites`, `groups`, `nodes`, `tasks`, `workflows`, `proposals` and `claims` are the kinds; `journal` reads the
//! streams, `status` the standing towards peers, `conflicts` what writers disagree about, `twins` which machines may be one, `quarantine` what did not pass, `certificates` who may speak
//! for a site.

mod certificates;
mod claims;
mod conflicts;
mod groups;
mod follow;
mod journal;
pub(crate) mod nodes;
mod proposals;
mod quarantine;
mod sites;
mod status;
mod tasks;
mod twins;
mod workflows;

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension};
use sync::{
    document::{Document, Kind},
    id::{DocumentId, Origin},
    time::Timestamp,
};

pub(crate) use quarantine::{detail, shown};

use crate::{StoreError, documents, writer};

pub(crate) use conflicts::Body;

pub use certificates::{CertificateRow, Entitlement, RevocationRow};
pub use claims::{Away, ClaimFilter, ClaimRow, EvidenceRow, FenceRow};
pub use conflicts::{ConflictFilter, ConflictRow, EndedRow, SideRow};
pub use follow::{Follower, Look, Step, Tail};
pub use groups::GroupRow;
pub use journal::{JournalFilter, JournalRow};
pub use nodes::{NodeFilter, NodeRow};
pub use proposals::{EndRow, ProposalFilter, ProposalRow, ProposalState};
pub use quarantine::{ChangeDetail, QuarantineDetail, QuarantineFilter, QuarantineRow, RegisterDetail};
pub use sites::{EffectiveRow, SiteRow};
pub use status::{BootRow, PeerRow, ProgressRow};
pub use tasks::{TaskFilter, TaskRow};
pub use twins::TwinRow;
pub use workflows::{VersionRow, WorkflowRow};

/// Version of the derived tables.
pub(crate) const VERSION: i64 = 8;

/// Reads derived tables, as they are in one snapshot or transaction.
pub struct View<'c> {
    pub(crate) sql: &'c Connection,
    origin: Origin,
}

impl<'c> View<'c> {
    pub(crate) fn new(sql: &'c Connection, origin: Origin) -> Self {
        View { sql, origin }
    }

    /// Whose replica this is.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Settings epoch that is followed here: that of the site's effective settings, 0 before there are
    /// any and always at central.
    pub fn policy_epoch(&self) -> Result<u64, StoreError> {
        match self.origin {
            Origin::Central => Ok(0),
            Origin::Site(site) => Ok(self.site(site)?.map_or(0, |row| row.effective.epoch)),
        }
    }

    /// Highest time that central confirmed to this site.
    pub fn central_time(&self) -> Result<Timestamp, StoreError> {
        let bytes = writer::meta(self.sql, "central_time")?;
        Ok(Timestamp(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)))
    }

    /// The latest instant that is known to have been, where our own clock shows `now`: what central said last,
    /// with the time that our clock has counted since, and what our clock showed at the last write.
    ///
    /// It may be long ago: a machine without a battery knows no more after a power cut.
    pub fn known_time(&self, now: Timestamp) -> Result<Timestamp, StoreError> {
        let noted = writer::meta(self.sql, writer::KNOWN_TIME)?.and_then(|bytes| bytes.try_into().ok());
        let central = self.central_time()?;
        let heard: Option<(i64, i64)> = self
            .sql
            .prepare_cached(
                "SELECT heard_at, clock FROM peers WHERE peer = 'central' AND heard_at NOT NULL AND clock NOT NULL",
            )?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let mut known = central.max(Timestamp(noted.map_or(0, u64::from_be_bytes)));
        if let Some((heard_at, clock)) = heard {
            let (heard_at, clock) = (Timestamp(heard_at.unsigned_abs()), Timestamp(clock.unsigned_abs()));
            // Only a clock that is behind still counts from where it was wrong: one that was set since says
            // more than central did.
            if heard_at <= now && now < clock {
                known = known.max(clock.after(now.since(heard_at)));
            }
        }
        Ok(known)
    }

    /// Why this replica follows no orders at the moment, if it does not.
    pub fn suspended(&self) -> Result<Option<String>, StoreError> {
        Ok(writer::meta(self.sql, "suspended")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Number of documents by kind.
    pub fn documents(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut statement = self.sql.prepare_cached("SELECT kind, count(*) FROM documents GROUP BY kind")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, u8>(0)?, row.get::<_, i64>(1)?)))?;
        let mut counts = BTreeMap::new();
        for row in rows {
            let (kind, count) = row?;
            let kind =
                Kind::from_number(kind).map_or_else(|| format!("kind {kind}"), |kind| kind.to_string());
            counts.insert(kind, count.unsigned_abs());
        }
        Ok(counts)
    }
}

/// Writes the derived rows of one document.
pub(crate) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    match document.kind() {
        Kind::Site => sites::refresh(sql, doc, document),
        Kind::Group => groups::refresh(sql, doc, document),
        Kind::Node => nodes::write(sql, doc, &nodes::row(document)),
        Kind::Workflow => workflows::refresh(sql, doc, document),
        Kind::Task => tasks::refresh(sql, doc, document),
        Kind::Proposal => proposals::refresh(sql, doc, document),
        Kind::Claim => claims::refresh(sql, doc, document),
    }
}

/// Drops the derived rows of one document.
pub(crate) fn forget(sql: &Connection, doc: i64, kind: Kind) -> Result<(), StoreError> {
    let tables: &[&str] = match kind {
        Kind::Site => &["view_sites"],
        Kind::Group => &["view_groups"],
        Kind::Node => &["view_nodes", "view_macs", "view_traits"],
        Kind::Workflow => &["view_workflows"],
        Kind::Task => &["view_tasks"],
        Kind::Proposal => &["view_proposals"],
        Kind::Claim => &["view_claims"],
    };
    for table in tables {
        sql.prepare_cached(&format!("DELETE FROM {table} WHERE doc = ?1"))?.execute([doc])?;
    }
    Ok(())
}

/// Drops all derived rows and makes them again from the documents.
pub(crate) fn rebuild(sql: &Connection) -> Result<(), StoreError> {
    // A machine that leaves a site is shown there as long as an attempt is past its first write.
    let leaving: Vec<i64> = {
        let mut statement = sql.prepare(
            "SELECT view_nodes.doc FROM view_nodes JOIN documents ON documents.doc = view_nodes.doc WHERE dropped = 1",
        )?;
        statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?
    };
    sql.execute_batch(
        "DELETE FROM view_sites; DELETE FROM view_groups; DELETE FROM view_nodes; DELETE FROM view_macs; DELETE FROM view_traits; DELETE FROM view_tasks;
         DELETE FROM view_workflows; DELETE FROM view_proposals; DELETE FROM view_claims;",
    )?;
    let mut statement =
        sql.prepare("SELECT doc, kind, id, dropped FROM documents WHERE changes > 0 ORDER BY doc")?;
    let rows: Vec<(i64, u8, [u8; 16], bool)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Result<_, _>>()?;
    for (doc, kind, id, dropped) in rows {
        if dropped && !leaving.contains(&doc) {
            continue;
        }
        // A kind of a newer program is kept and not understood.
        if let Some(kind) = Kind::from_number(kind) {
            let document = documents::load(sql, doc, kind, DocumentId(id))?;
            refresh(sql, doc, &document)?;
        }
    }
    Ok(())
}

fn bodies<T: serde::de::DeserializeOwned>(
    mut statement: rusqlite::CachedStatement<'_>,
    params: impl rusqlite::Params,
) -> Result<Vec<T>, StoreError> {
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let body: String = row.get(0)?;
        found.push(serde_json::from_str(&body)?);
    }
    Ok(found)
}

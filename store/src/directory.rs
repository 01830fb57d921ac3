//! The directory: every machine of the fleet and where it belongs, also at sites that do not hold it.
//!
//! Central keeps one row per node, numbered by the order of the last changes, and tells a site the rows
//! that it was not told and that are not of its own machines: when a session begins and with every sign of
//! life, many to one item of the log. What is not in a site's directory is unknown there; every answer that
//! rests on it says how old it is.
//!
//! Deliberately absent: domains. Every site is told of every machine until groups have settings.

use rusqlite::{OptionalExtension, params};
use sync::{
    document::{Document, node},
    id::{NodeId, Origin, SiteId},
    policy::Wanted,
    time::Timestamp,
    wire::{Item, Stub},
};

use crate::{
    StoreError, Tx, View,
    log::{self, Row, signed},
};

/// Rows in one item; about 40 bytes each.
const MANY: usize = 1_000;

/// Where a machine belongs that this site does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryRow {
    /// What was told of it.
    pub stub: Stub,
    /// Central's time when it was told.
    pub at: Timestamp,
}

/// Keeps where a node belongs, at central.
pub(crate) fn note(tx: &mut Tx<'_>, document: &Document) -> Result<(), StoreError> {
    let found = node::InForce::of(document);
    let retired = found.wanted == Wanted::Retired;
    let stub = Stub { node: document.id().into(), home: found.home, home_epoch: found.home_epoch, retired };
    if row(tx.sql, stub.node)?.is_some_and(|row| row.stub == stub) {
        return Ok(());
    }
    keep(tx, &stub)
}

/// Replaces the row of a node; it becomes the newest.
fn keep(tx: &Tx<'_>, stub: &Stub) -> Result<(), StoreError> {
    tx.sql.prepare_cached("DELETE FROM directory WHERE node = ?1")?.execute([stub.node.as_bytes()])?;
    tx.sql
        .prepare_cached(
            "INSERT INTO directory (seq, node, home, home_epoch, retired, at)
             VALUES ((SELECT ifnull(max(seq), 0) + 1 FROM directory), ?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            stub.node.as_bytes(),
            stub.home.map(|site| site.0),
            signed(stub.home_epoch),
            stub.retired,
            signed(tx.given.now.0)
        ])?;
    Ok(())
}

fn row(sql: &rusqlite::Connection, node: NodeId) -> Result<Option<DirectoryRow>, StoreError> {
    Ok(sql
        .prepare_cached("SELECT home, home_epoch, retired, at FROM directory WHERE node = ?1")?
        .query_row([node.as_bytes()], |row| {
            Ok(DirectoryRow {
                stub: Stub {
                    node,
                    home: row.get::<_, Option<[u8; 16]>>(0)?.map(SiteId),
                    home_epoch: row.get::<_, i64>(1)?.unsigned_abs(),
                    retired: row.get(2)?,
                },
                at: Timestamp(row.get::<_, i64>(3)?.unsigned_abs()),
            })
        })
        .optional()?)
}

impl Tx<'_> {
    /// Tells a site what it was not told of the directory, at central.
    pub(crate) fn tell_directory(&mut self, site: SiteId) -> Result<(), StoreError> {
        let peer = Origin::Site(site);
        loop {
            let (stubs, last) = {
                let mut statement = self.sql.prepare_cached(
                    "SELECT seq, node, home, home_epoch, retired FROM directory
                     WHERE seq > ifnull((SELECT directory FROM peers WHERE peer = ?1), 0)
                     ORDER BY seq LIMIT ?2",
                )?;
                let mut rows = statement.query(params![peer.to_string(), signed(MANY as u64)])?;
                let (mut stubs, mut last) = (Vec::new(), None);
                while let Some(row) = rows.next()? {
                    last = Some(row.get::<_, i64>(0)?);
                    let home = row.get::<_, Option<[u8; 16]>>(2)?.map(SiteId);
                    // Of its own machines it holds the documents.
                    if home != Some(site) {
                        stubs.push(Stub {
                            node: NodeId(row.get(1)?),
                            home,
                            home_epoch: row.get::<_, i64>(3)?.unsigned_abs(),
                            retired: row.get(4)?,
                        });
                    }
                }
                (stubs, last)
            };
            let Some(last) = last else { return Ok(()) };
            self.sql
                .prepare_cached("UPDATE peers SET directory = ?2 WHERE peer = ?1")?
                .execute(params![peer.to_string(), last])?;
            if !stubs.is_empty() {
                self.tell(peer, Row::Note(Item::stubs(stubs).to_bytes()))?;
                let end = log::end(self.sql, peer)?;
                self.sql
                    .prepare_cached("UPDATE peers SET directory_at = ?2 WHERE peer = ?1")?
                    .execute(params![peer.to_string(), signed(end)])?;
            }
        }
    }

    /// Takes over what central tells of the directory, at a site.
    pub(crate) fn take_stubs(&mut self, stubs: &[Stub]) -> Result<(), StoreError> {
        for stub in stubs {
            keep(self, stub)?;
        }
        Ok(())
    }
}

impl View<'_> {
    /// Where a machine belongs, as far as the directory says.
    pub fn directory(&self, node: NodeId) -> Result<Option<DirectoryRow>, StoreError> {
        row(self.sql, node)
    }

    /// Number of machines in the directory.
    pub fn count_directory(&self) -> Result<u64, StoreError> {
        let count: i64 = self.sql.query_row("SELECT count(*) FROM directory", [], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }
}

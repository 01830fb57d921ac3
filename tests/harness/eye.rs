//! Looks into a replica's database without its store: what is there, not what the store says.
//!
//! The one place outside `store` that knows its tables. A check that asked the code under test what is
//! true would agree with it.

use std::{collections::BTreeMap, path::Path};

use automerge::{Change, ChangeHash};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Result, config::DbConfig, params};
use sync::{
    document::{Document, Kind},
    id::{DocumentId, MacAddr, NodeId, Origin, SiteId},
    journal::chain,
    wire::Stub,
};

/// An open database of a replica.
pub struct Eye {
    sql: Connection,
}

/// A document as it is stored.
pub struct Stored {
    /// Kind, if this program knows it.
    pub kind: Option<Kind>,
    /// The document.
    pub id: DocumentId,
    /// Sorted hashes of the heads, 32 bytes each.
    pub heads: Vec<u8>,
}

/// Something of a peer's that was not taken over.
#[derive(Debug)]
pub struct SetAside {
    /// Its row, which grows.
    pub row: i64,
    /// Who delivered it.
    pub peer: String,
    /// The document that it is about.
    pub document: DocumentId,
    /// Why.
    pub reason: String,
    /// Hash of the change, if it is one.
    pub hash: Option<[u8; 32]>,
}

/// A change as it is stored, with whoever delivered it.
pub struct Told {
    /// The peer; none where this replica wrote it itself.
    pub source: Option<Origin>,
    /// Kind of its document, if this program knows it.
    pub kind: Option<Kind>,
    /// Its document.
    pub id: DocumentId,
    /// The change.
    pub bytes: Vec<u8>,
}

/// A journal entry as it is stored.
pub struct StoredEntry {
    /// Its row, which grows with every entry.
    pub row: i64,
    /// Stream that it is filed under.
    pub stream: String,
    /// Incarnation that it is filed under.
    pub incarnation: [u8; 16],
    /// Number that it is filed under.
    pub seq: u64,
    /// Hash that is kept with it.
    pub hash: [u8; 32],
    /// The entry.
    pub bytes: Vec<u8>,
}

/// Standing towards a peer as it is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What is here of the peer's log.
    pub pulled: u64,
    /// What the peer is known to have of ours.
    pub acknowledged: u64,
    /// Whether both hold the same.
    pub agrees: Option<bool>,
}

impl Eye {
    /// Opens the database of the replica in `folder`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn open(folder: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sql = Connection::open_with_flags(folder.join("holdfast.db"), flags)?;
        sql.set_prepared_statement_cache_capacity(64);
        // As in the store: otherwise SQLite plans a query anew whenever what is bound to it changes.
        sql.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(Eye { sql })
    }

    /// Row of the newest change.
    ///
    /// # Errors
    /// What SQLite says, here and below.
    pub fn last_change(&self) -> Result<i64> {
        self.number("SELECT ifnull(max(change), 0) FROM changes", [])
    }

    /// How many changes there are up to a row.
    pub fn changes_up_to(&self, row: i64) -> Result<i64> {
        self.number("SELECT count(*) FROM changes WHERE change <= ?1", [row])
    }

    /// Rows of the documents that changes after a row belong to.
    pub fn touched_after(&self, row: i64) -> Result<Vec<i64>> {
        self.column("SELECT DISTINCT doc FROM changes WHERE change > ?1 ORDER BY doc", [row])
    }

    /// Rows of all documents that have changes.
    pub fn documents(&self) -> Result<Vec<i64>> {
        self.column("SELECT doc FROM documents WHERE changes > 0 ORDER BY doc", [])
    }

    /// Rows of the documents of one kind that have changes.
    pub fn documents_of(&self, kind: Kind) -> Result<Vec<i64>> {
        self.column("SELECT doc FROM documents WHERE kind = ?1 AND changes > 0 ORDER BY doc", [kind.number()])
    }

    /// Rows of the tasks and claims about a machine.
    pub fn about(&self, node: NodeId) -> Result<Vec<i64>> {
        self.column(
            "SELECT doc FROM view_tasks WHERE node = ?1 UNION SELECT doc FROM view_claims WHERE node = ?1",
            [node.as_bytes()],
        )
    }

    /// Row of a document by its id, if it is here and has changes.
    pub fn row_of(&self, id: DocumentId) -> Result<Option<i64>> {
        self.sql
            .prepare_cached("SELECT doc FROM documents WHERE id = ?1 AND changes > 0")?
            .query_row([id.as_bytes()], |row| row.get(0))
            .optional()
    }

    /// A document's row as it is stored.
    pub fn stored(&self, doc: i64) -> Result<Stored> {
        let mut statement =
            self.sql.prepare_cached("SELECT kind, id, heads FROM documents WHERE doc = ?1")?;
        statement.query_row([doc], |row| {
            let kind = Kind::from_number(row.get(0)?);
            Ok(Stored { kind, id: DocumentId(row.get(1)?), heads: row.get(2)? })
        })
    }

    /// Heads of a document by its id, if it is here and has changes.
    pub fn heads_of(&self, id: DocumentId) -> Result<Option<Vec<u8>>> {
        self.sql
            .prepare_cached("SELECT heads FROM documents WHERE id = ?1 AND changes > 0")?
            .query_row([id.as_bytes()], |row| row.get(0))
            .optional()
    }

    /// How many changes of a document are kept in a snapshot only.
    pub fn compacted(&self, id: DocumentId) -> Result<i64> {
        self.number(
            "SELECT count(*) FROM changes JOIN documents ON documents.doc = changes.doc
             WHERE id = ?1 AND bytes IS NULL",
            [id.as_bytes()],
        )
    }

    /// Opens a document from its stored bytes.
    ///
    /// # Errors
    /// In words, when they are not a document.
    pub fn document(&self, doc: i64, kind: Kind, id: DocumentId) -> Result<Document, String> {
        self.load(doc, kind, id).map_err(|error| error.to_string())
    }

    fn load(&self, doc: i64, kind: Kind, id: DocumentId) -> Result<Document, Box<dyn std::error::Error>> {
        let snapshot: Option<(i64, Vec<u8>)> = self
            .sql
            .prepare_cached("SELECT upto, bytes FROM snapshots WHERE doc = ?1")?
            .query_row([doc], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let upto = snapshot.as_ref().map_or(0, |(upto, _)| *upto);
        let mut tail = self
            .sql
            .prepare_cached("SELECT bytes FROM changes WHERE doc = ?1 AND change > ?2 ORDER BY change")?;
        let mut rows = tail.query(params![doc, upto])?;
        let mut changes = Vec::new();
        while let Some(row) = rows.next()? {
            changes.push(Change::try_from(row.get_ref(0)?.as_blob()?)?);
        }
        let hashes: Vec<ChangeHash> = changes.iter().map(Change::hash).collect();
        let document = match snapshot {
            None => Document::of(kind, id, changes)?,
            Some((_, bytes)) => {
                let mut document = Document::load(kind, id, &bytes)?;
                document.apply_all(changes)?;
                document
            }
        };
        // Automerge keeps what depends on something else that is missing, and shows none of it.
        match hashes.iter().find(|hash| !document.has(hash)) {
            None => Ok(document),
            Some(hash) => Err(format!("change {hash} does not follow what is stored before it").into()),
        }
    }

    /// The derived row of a document, as the JSON that is kept; absent where the kind has none.
    pub fn body(&self, doc: i64, kind: Kind) -> Result<Option<String>> {
        let query = match kind {
            Kind::Site => "SELECT body FROM view_sites WHERE doc = ?1",
            Kind::Node => "SELECT body FROM view_nodes WHERE doc = ?1",
            Kind::Task => "SELECT body FROM view_tasks WHERE doc = ?1",
            Kind::Workflow => "SELECT body FROM view_workflows WHERE doc = ?1",
            Kind::Proposal => "SELECT body FROM view_proposals WHERE doc = ?1",
            Kind::Claim => "SELECT body FROM view_claims WHERE doc = ?1",
            Kind::Group => "SELECT body FROM view_groups WHERE doc = ?1",
        };
        self.sql.prepare_cached(query)?.query_row([doc], |row| row.get(0)).optional()
    }

    /// All derived rows, in words that can be compared.
    pub fn derived(&self) -> Result<Vec<String>> {
        self.column(
            "SELECT doc || ' ' || body FROM view_sites UNION ALL SELECT doc || ' ' || body FROM view_nodes
             UNION ALL SELECT doc || ' ' || body FROM view_groups
             UNION ALL SELECT doc || ' ' || body FROM view_tasks
             UNION ALL SELECT doc || ' ' || body FROM view_workflows
             UNION ALL SELECT doc || ' ' || body FROM view_proposals
             UNION ALL SELECT doc || ' ' || body FROM view_claims
             UNION ALL SELECT doc || ' ' || hex(mac) FROM view_macs ORDER BY 1",
            [],
        )
    }

    /// Journal entries after a row, in order.
    pub fn entries_after(&self, row: i64) -> Result<Vec<StoredEntry>> {
        let mut statement = self.sql.prepare_cached(
            "SELECT entry, stream, incarnation, seq, hash, bytes FROM journal WHERE entry > ?1 ORDER BY entry",
        )?;
        let rows = statement.query_map([row], |row| {
            Ok(StoredEntry {
                row: row.get(0)?,
                stream: row.get(1)?,
                incarnation: row.get(2)?,
                seq: row.get::<_, i64>(3)?.unsigned_abs(),
                hash: row.get(4)?,
                bytes: row.get(5)?,
            })
        })?;
        rows.collect()
    }

    /// How many journal entries there are up to a row.
    pub fn entries_up_to(&self, row: i64) -> Result<i64> {
        self.number("SELECT count(*) FROM journal WHERE entry <= ?1", [row])
    }

    /// Standing towards a peer.
    pub fn standing(&self, peer: Origin) -> Result<Standing> {
        let found = self
            .sql
            .prepare_cached("SELECT pulled, acknowledged, agrees FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| {
                Ok(Standing {
                    pulled: row.get::<_, i64>(0)?.unsigned_abs(),
                    acknowledged: row.get::<_, i64>(1)?.unsigned_abs(),
                    agrees: row.get(2)?,
                })
            })
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    /// Changes and journal entries in the log for a peer, in `(after, up_to]`, in order: the hash, and the
    /// document of a change.
    pub fn told(&self, peer: Origin, after: u64, up_to: u64) -> Result<Vec<([u8; 32], Option<DocumentId>)>> {
        let mut statement = self.sql.prepare_cached(
            "SELECT ifnull(changes.hash, journal.hash), documents.id FROM log
             LEFT JOIN changes ON changes.change = log.change LEFT JOIN journal ON journal.entry = log.entry
             LEFT JOIN documents ON documents.doc = changes.doc
             WHERE peer = ?1 AND position > ?2 AND position <= ?3
                 AND (changes.hash IS NOT NULL OR journal.hash IS NOT NULL) ORDER BY position",
        )?;
        let rows = statement.query_map(
            params![
                peer.to_string(),
                i64::try_from(after).unwrap_or(i64::MAX),
                i64::try_from(up_to).unwrap_or(i64::MAX)
            ],
            |row| Ok((row.get(0)?, row.get::<_, Option<[u8; 16]>>(1)?.map(DocumentId))),
        )?;
        rows.collect()
    }

    /// Changes after a row, in order: their hashes, their documents, and whether this replica wrote them itself.
    pub fn changes_after(&self, row: i64) -> Result<Vec<([u8; 32], DocumentId, bool)>> {
        let mut statement = self.sql.prepare_cached(
            "SELECT hash, id, changes.source IS NULL FROM changes JOIN documents ON documents.doc = changes.doc
             WHERE change > ?1 ORDER BY change",
        )?;
        let rows =
            statement.query_map([row], |row| Ok((row.get(0)?, DocumentId(row.get(1)?), row.get(2)?)))?;
        rows.collect()
    }

    /// A change by its hash, unless it is kept in a snapshot only.
    pub fn change(&self, hash: &[u8; 32]) -> Result<Option<Told>> {
        let found = self
            .sql
            .prepare_cached(
                "SELECT changes.source, kind, id, bytes FROM changes JOIN documents ON documents.doc = changes.doc
                 WHERE hash = ?1 AND bytes IS NOT NULL",
            )?
            .query_row([hash], |row| {
                let source = row.get::<_, Option<String>>(0)?.and_then(|peer| peer.parse().ok());
                let kind = Kind::from_number(row.get(1)?);
                Ok(Told { source, kind, id: DocumentId(row.get(2)?), bytes: row.get(3)? })
            })
            .optional()?;
        Ok(found)
    }

    /// Whether a change with this hash was set aside.
    pub fn has_set_aside(&self, hash: &[u8; 32]) -> Result<bool> {
        Ok(self.number("SELECT EXISTS (SELECT 1 FROM quarantine WHERE hash = ?1)", [hash])? != 0)
    }

    /// What was set aside after a row.
    pub fn set_aside_after(&self, row: i64) -> Result<Vec<SetAside>> {
        let mut statement = self.sql.prepare_cached(
            "SELECT item, peer, id, reason, hash FROM quarantine WHERE item > ?1 ORDER BY item",
        )?;
        let rows = statement.query_map([row], |row| {
            Ok(SetAside {
                row: row.get(0)?,
                peer: row.get(1)?,
                document: DocumentId(row.get(2)?),
                reason: row.get(3)?,
                hash: row.get(4)?,
            })
        })?;
        rows.collect()
    }

    /// Whether a change with this hash was set aside.
    pub fn was_set_aside(&self, hash: &[u8; 32]) -> Result<bool> {
        Ok(self.number("SELECT EXISTS (SELECT 1 FROM quarantine WHERE hash = ?1)", [hash])? != 0)
    }

    /// Whether a journal entry with this hash was set aside, because its chain broke.
    pub fn entry_was_set_aside(&self, hash: &[u8; 32]) -> Result<bool> {
        let mut statement = self.sql.prepare_cached("SELECT bytes FROM quarantine WHERE hash IS NULL")?;
        let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
        for bytes in rows {
            if chain::hash(&bytes?) == *hash {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether central took this change back in favour of one that had come back, and said it again in another.
    pub fn was_withdrawn(&self, hash: &[u8; 32]) -> Result<bool> {
        Ok(self.number("SELECT EXISTS (SELECT 1 FROM withdrawn WHERE hash = ?1)", [hash])? != 0)
    }

    /// Whether a change or journal entry with this hash is here: taken over, or waiting for what it
    /// depends on.
    pub fn holds(&self, hash: &[u8; 32]) -> Result<bool> {
        let found = self.number(
            "SELECT EXISTS (SELECT 1 FROM changes WHERE hash = ?1) OR EXISTS (SELECT 1 FROM parked WHERE hash = ?1)
             OR EXISTS (SELECT 1 FROM journal WHERE hash = ?1)",
            [hash],
        )?;
        Ok(found != 0)
    }

    /// Documents that a site is told about, by id, with their heads. One that left its scope is none of them.
    pub fn scope(&self, site: Origin) -> Result<Vec<(DocumentId, Vec<u8>)>> {
        let mut statement = self.sql.prepare_cached(
            "SELECT id, heads FROM scope JOIN documents ON documents.doc = scope.doc
             WHERE peer = ?1 AND inside = 1 AND changes > 0 ORDER BY id",
        )?;
        let rows =
            statement.query_map([site.to_string()], |row| Ok((DocumentId(row.get(0)?), row.get(1)?)))?;
        rows.collect()
    }

    /// Documents that are here, by id, with their heads.
    pub fn held(&self) -> Result<Vec<(DocumentId, Vec<u8>)>> {
        let mut statement =
            self.sql.prepare_cached("SELECT id, heads FROM documents WHERE changes > 0 ORDER BY id")?;
        let rows = statement.query_map([], |row| Ok((DocumentId(row.get(0)?), row.get(1)?)))?;
        rows.collect()
    }

    /// The directory, by machine.
    pub fn directory(&self) -> Result<BTreeMap<NodeId, Stub>> {
        let mut statement =
            self.sql.prepare_cached("SELECT node, home, home_epoch, retired FROM directory")?;
        let rows = statement.query_map([], |row| {
            let (node, home) = (NodeId(row.get(0)?), row.get::<_, Option<[u8; 16]>>(1)?.map(SiteId));
            let home_epoch = row.get::<_, i64>(2)?.unsigned_abs();
            Ok((node, Stub { node, home, home_epoch, retired: row.get(3)? }))
        })?;
        rows.collect()
    }

    /// How many changes wait for what they depend on.
    pub fn parked(&self) -> Result<i64> {
        self.number("SELECT count(*) FROM parked", [])
    }

    /// Hashes of them.
    pub fn parked_hashes(&self) -> Result<Vec<[u8; 32]>> {
        self.column("SELECT hash FROM parked", [])
    }

    /// At central: the settings epoch that a site's journal says it follows.
    pub fn follows(&self, site: SiteId) -> Result<i64> {
        let peer = Origin::Site(site).to_string();
        self.number("SELECT ifnull((SELECT epoch FROM peers WHERE peer = ?1), 0)", [peer])
    }

    /// How many bytes of peers were set aside.
    pub fn quarantined(&self) -> Result<i64> {
        self.number("SELECT count(*) FROM quarantine", [])
    }

    /// Unknown machines that are remembered: those of which no document is here.
    pub fn candidates(&self) -> Result<Vec<MacAddr>> {
        let macs = self.column("SELECT mac FROM boots WHERE mac NOT IN (SELECT mac FROM view_macs)", [])?;
        Ok(macs.into_iter().map(MacAddr).collect())
    }

    /// What SQLite finds wrong with the file; `ok` if nothing.
    pub fn integrity(&self) -> Result<String> {
        self.sql.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
    }

    fn number(&self, query: &str, params: impl rusqlite::Params) -> Result<i64> {
        self.sql.prepare_cached(query)?.query_row(params, |row| row.get(0))
    }

    fn column<T: rusqlite::types::FromSql>(
        &self,
        query: &str,
        params: impl rusqlite::Params,
    ) -> Result<Vec<T>> {
        let mut statement = self.sql.prepare_cached(query)?;
        let rows = statement.query_map(params, |row| row.get(0))?;
        rows.collect()
    }
}

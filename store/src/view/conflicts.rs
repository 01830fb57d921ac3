//! Disagreements about registers, open ones and those that ended.

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sync::{
    document::{Disputed, Kind, Side, register::Untyped},
    id::{DocumentId, Nonce, Origin, SiteId},
    policy::Accepted,
    time::Timestamp,
};

use super::{View, shown};
use crate::{StoreError, log::signed};

/// One register that writers disagree, or disagreed, about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConflictRow {
    /// Number in this replica; never given twice.
    pub conflict: u64,
    /// Kind of the document.
    pub kind: String,
    /// The document.
    pub document: DocumentId,
    /// Path of the register.
    pub path: String,
    /// The site that it is about: where the machine is at home, or that the task is for.
    pub home: Option<SiteId>,
    /// When this replica heard of it.
    pub opened_at: Timestamp,
    /// Every side, by the clocks of their writers.
    pub sides: Vec<SideRow>,
    /// The value that all of them had seen, if it was one and the same.
    pub agreed: Option<Json>,
    /// At central: why a person decides.
    pub reason: Option<String>,
    /// How it ended, if it did.
    pub ended: Option<EndedRow>,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SideRow {
    /// Names the side.
    pub nonce: Nonce,
    /// What it says.
    pub value: Json,
    /// Who wrote it.
    pub by: String,
    /// In which replica.
    pub site: Origin,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Why.
    pub why: String,
    /// Settings epoch that the writer followed.
    pub policy_epoch: u64,
}

/// How a disagreement ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRow {
    /// When this replica heard of it.
    pub at: Timestamp,
    /// Whose word counts; absent when a side was taken back, or the document left.
    pub resolution: Option<Accepted>,
    /// The value since.
    pub value: Json,
    /// Names that value in its register.
    pub nonce: Option<Nonce>,
    /// Who ended it: `policy`, or a person.
    pub by: String,
    /// Why so.
    pub why: String,
    /// Who took that back, if anybody did.
    pub reverted_by: Option<String>,
}

/// What is kept of a disagreement besides its columns.
#[derive(Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) sides: Vec<SideRow>,
    pub(crate) agreed: Option<Json>,
    pub(crate) ended: Option<EndedRow>,
}

/// Which disagreements are wanted.
#[derive(Clone, Debug, Default)]
pub struct ConflictFilter {
    /// Only those about this site.
    pub home: Option<SiteId>,
    /// Only those in this document.
    pub document: Option<DocumentId>,
    /// Only those of this path.
    pub path: Option<String>,
    /// Only open ones, or only those that ended.
    pub open: Option<bool>,
    /// Only those after this one.
    pub after: u64,
    /// At most so many; 0: all.
    pub limit: u64,
}

const COLUMNS: &str = "conflict, kind, id, path, home, opened_at, reason, body";

impl View<'_> {
    /// Disagreements in the order in which this replica heard of them.
    pub fn conflicts(&self, filter: &ConflictFilter) -> Result<Vec<ConflictRow>, StoreError> {
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let mut statement = self.sql.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM conflicts WHERE conflict > ?1 AND (?2 IS NULL OR home = ?2) AND (?3 IS NULL OR id = ?3)
             AND (?4 IS NULL OR path = ?4) AND (?5 IS NULL OR open = ?5) ORDER BY conflict LIMIT ?6"
        ))?;
        let rows = statement.query_map(
            params![
                signed(filter.after),
                filter.home.map(|site| site.0),
                filter.document.map(|id| id.0),
                filter.path,
                filter.open,
                limit
            ],
            |row| Ok(row_of(row)),
        )?;
        rows.map(|row| row?).collect()
    }

    /// One disagreement.
    pub fn conflict(&self, conflict: u64) -> Result<Option<ConflictRow>, StoreError> {
        let query = format!("SELECT {COLUMNS} FROM conflicts WHERE conflict = ?1");
        let found = self.sql.prepare_cached(&query)?.query_row([signed(conflict)], |row| Ok(row_of(row)));
        found.optional()?.transpose()
    }

    /// Those that are open in a document.
    pub(crate) fn open_conflicts(&self, document: DocumentId) -> Result<Vec<ConflictRow>, StoreError> {
        // Asked for each change of a contested document: the index over open ones finds them.
        let query = format!("SELECT {COLUMNS} FROM conflicts WHERE id = ?1 AND open = 1 ORDER BY conflict");
        let mut statement = self.sql.prepare_cached(&query)?;
        let rows = statement.query_map([document.as_bytes()], |row| Ok(row_of(row)))?;
        rows.map(|row| row?).collect()
    }

    /// How many are open, of all or about one site.
    pub fn count_conflicts(&self, home: Option<SiteId>) -> Result<u64, StoreError> {
        let count: i64 = self
            .sql
            .prepare_cached("SELECT count(*) FROM conflicts WHERE open = 1 AND (?1 IS NULL OR home = ?1)")?
            .query_row([home.map(|site| site.0)], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }
}

fn row_of(row: &rusqlite::Row<'_>) -> Result<ConflictRow, StoreError> {
    let body: Body = serde_json::from_str(&row.get::<_, String>(7)?)?;
    let number: u8 = row.get(1)?;
    Ok(ConflictRow {
        conflict: row.get::<_, i64>(0)?.unsigned_abs(),
        kind: Kind::from_number(number).map_or_else(|| number.to_string(), |kind| kind.to_string()),
        document: DocumentId(row.get(2)?),
        path: row.get(3)?,
        home: row.get::<_, Option<[u8; 16]>>(4)?.map(SiteId),
        opened_at: Timestamp(row.get::<_, i64>(5)?.unsigned_abs()),
        sides: body.sides,
        agreed: body.agreed,
        reason: row.get(6)?,
        ended: body.ended,
    })
}

impl SideRow {
    fn of(side: &Side<Untyped>) -> Self {
        let written = &side.written;
        SideRow {
            nonce: side.nonce(),
            value: shown(&side.value.0),
            by: written.by.clone(),
            site: written.site,
            at: written.at.timestamp(),
            why: written.why.clone(),
            policy_epoch: written.policy_epoch,
        }
    }
}

impl Body {
    pub(crate) fn of(disputed: &Disputed) -> Self {
        let agreed = disputed.read.last_agreed().map(|side| shown(&side.value.0));
        let mut sides: Vec<&Side<Untyped>> = disputed.read.sides().iter().collect();
        sides.sort_by_key(|side| (side.written.at, side.op()));
        Body { sides: sides.into_iter().map(SideRow::of).collect(), agreed, ended: None }
    }
}

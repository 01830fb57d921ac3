//! What was set aside, and what it says.
//!
//! Nothing here trusts the bytes: they are read by the gates that come first in ingress, under guard, and
//! what cannot be read is shown as that.

use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use serde_json::Value as Json;
use sync::{
    blob::Digest,
    document::{Field, Fields, Kind, register},
    id::{DocumentId, Origin, hex},
    ingress,
    journal::chain,
    time::{Hlc, Timestamp},
};

use super::{JournalRow, View};
use crate::{
    StoreError,
    log::signed,
    quarantine::{ENTRY, NOTHING, word},
};

/// Bytes of a peer that did not pass ingress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuarantineRow {
    /// Number in this replica; never given twice.
    pub item: u64,
    /// Who delivered them.
    pub peer: Origin,
    /// Kind of the document that they were for; a number where it is a newer program's, `journal` for an entry
    /// of a journal, `item` for what is nothing.
    pub kind: String,
    /// That document; of an entry its chain.
    pub document: DocumentId,
    /// When.
    pub at: Timestamp,
    /// Whether they are sound and were not the peer's to write.
    pub denied: bool,
    /// Why they did not pass.
    pub reason: String,
    /// How many bytes.
    pub size: u64,
}

/// Which items are wanted.
#[derive(Clone, Debug, Default)]
pub struct QuarantineFilter {
    /// Only what this peer delivered.
    pub peer: Option<Origin>,
    /// Only for this document.
    pub document: Option<DocumentId>,
    /// Only of this kind, in the word of the row.
    pub kind: Option<String>,
    /// Only what was, or was not, sound and not the peer's to write.
    pub denied: Option<bool>,
    /// Only those after this one.
    pub after: u64,
    /// At most so many; 0: all.
    pub limit: u64,
}

/// One item and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuarantineDetail {
    /// The item.
    #[serde(flatten)]
    pub row: QuarantineRow,
    /// Digest of its bytes.
    pub digest: Digest,
    /// The change, if the bytes are one.
    pub change: Option<ChangeDetail>,
    /// The registers that it writes.
    pub registers: Vec<RegisterDetail>,
    /// The journal entry, if the bytes are one.
    pub entry: Option<JournalRow>,
    /// Why the bytes cannot be read, if they cannot.
    pub unreadable: Option<String>,
}

/// A change as it says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeDetail {
    /// Its name.
    pub hash: String,
    /// Who signed it.
    pub actor: String,
    /// Its number among those of the actor.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The changes that it follows.
    pub follows: Vec<String>,
}

/// A register as a change writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RegisterDetail {
    /// Where it stands.
    pub path: String,
    /// Its fields.
    pub value: Json,
    /// Who wrote it.
    pub by: String,
    /// In whose replica.
    pub site: Origin,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub why: String,
    /// Settings epoch that the writer followed.
    pub policy_epoch: u64,
}

impl View<'_> {
    /// Everything that did not pass ingress, oldest first.
    pub fn quarantine(&self) -> Result<Vec<QuarantineRow>, StoreError> {
        self.quarantined(&QuarantineFilter::default())
    }

    /// Some of it, oldest first.
    pub fn quarantined(&self, filter: &QuarantineFilter) -> Result<Vec<QuarantineRow>, StoreError> {
        let kind = match filter.kind.as_deref().map(number) {
            Some(None) => return Ok(vec![]),
            Some(Some(number)) => Some(number),
            None => None,
        };
        let mut statement = self.sql.prepare_cached(
            "SELECT item, peer, kind, id, at, denied, reason, length(bytes) FROM quarantine
             WHERE (?1 IS NULL OR peer = ?1) AND (?2 IS NULL OR id = ?2) AND (?3 IS NULL OR kind = ?3)
                 AND (?4 IS NULL OR denied = ?4) AND item > ?5 ORDER BY item LIMIT ?6",
        )?;
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let mut rows = statement.query(params![
            filter.peer.map(|peer| peer.to_string()),
            filter.document.map(|id| id.0),
            kind,
            filter.denied,
            signed(filter.after),
            limit
        ])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(row_of(row)?);
        }
        Ok(found)
    }

    /// One item with what it says.
    pub fn quarantine_item(&self, item: u64) -> Result<Option<QuarantineDetail>, StoreError> {
        let Some((row, bytes)) = self.quarantine_found(item)? else { return Ok(None) };
        Ok(Some(detail(row, &bytes)))
    }

    /// The very bytes of one item.
    pub fn quarantine_bytes(&self, item: u64) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.quarantine_found(item)?.map(|(_, bytes)| bytes))
    }

    pub(crate) fn quarantine_found(&self, item: u64) -> Result<Option<(QuarantineRow, Vec<u8>)>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT item, peer, kind, id, at, denied, reason, length(bytes), bytes FROM quarantine WHERE item = ?1",
        )?;
        let found = statement.query_row([signed(item)], |row| Ok((row_of(row), row.get(8)?))).optional()?;
        found.map(|(row, bytes)| Ok((row?, bytes))).transpose()
    }
}

/// Says what the bytes of an item are.
pub(crate) fn detail(row: QuarantineRow, bytes: &[u8]) -> QuarantineDetail {
    let digest = Digest::of(bytes);
    let mut found =
        QuarantineDetail { row, digest, change: None, registers: vec![], entry: None, unreadable: None };
    match number(&found.row.kind) {
        Some(ENTRY) => match chain::decode(bytes) {
            Ok(entry) => found.entry = Some(JournalRow::of(0, entry)),
            Err(error) => found.unreadable = Some(error.to_string()),
        },
        Some(NOTHING) => found.unreadable = Some("the bytes are no item of a log".into()),
        Some(_) | None => match ingress::parse(bytes) {
            Err(rejection) => found.unreadable = Some(told(&rejection)),
            Ok(parsed) => {
                let change = parsed.change();
                found.change = Some(ChangeDetail {
                    hash: change.hash().to_string(),
                    actor: change.actor_id().to_hex_string(),
                    seq: change.seq(),
                    at: Hlc(change.timestamp()).timestamp(),
                    follows: change.deps().iter().map(ToString::to_string).collect(),
                });
                match found.row.kind.parse::<Kind>() {
                    Err(_) => found.unreadable = Some("this program knows no documents of this kind".into()),
                    Ok(kind) => match ingress::registers(kind, found.row.document, &parsed) {
                        Ok(writes) => found.registers = writes.iter().map(RegisterDetail::of).collect(),
                        Err(rejection) => found.unreadable = Some(told(&rejection)),
                    },
                }
            }
        },
    }
    found
}

impl RegisterDetail {
    fn of(write: &ingress::Write) -> Self {
        let written = &write.written;
        RegisterDetail {
            path: write.path(),
            value: shown(&write.fields),
            by: written.by.clone(),
            site: written.site,
            at: written.at.timestamp(),
            why: written.why.clone(),
            policy_epoch: written.policy_epoch,
        }
    }
}

/// The fields of a value as people read them; bytes are hexadecimal.
pub(crate) fn shown(fields: &Fields) -> Json {
    let own = register::own(fields).into_iter();
    own.map(|(name, field)| (name, shown_field(&field))).collect::<serde_json::Map<_, _>>().into()
}

fn shown_field(field: &Field) -> Json {
    match field {
        Field::Str(text) => text.as_str().into(),
        Field::Uint(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Bool(truth) => (*truth).into(),
        Field::Bytes(bytes) => hex(bytes).into(),
        Field::Map(inner) => {
            let inner = inner.iter().map(|(name, field)| (name.clone(), shown_field(field)));
            inner.collect::<serde_json::Map<_, _>>().into()
        }
    }
}

/// A rejection with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The number in the place of a kind that a word stands for.
fn number(kind: &str) -> Option<i64> {
    match kind {
        "journal" => Some(ENTRY),
        "item" => Some(NOTHING),
        word => match word.parse::<Kind>() {
            Ok(kind) => Some(kind.number().into()),
            Err(_) => word.parse::<u8>().ok().map(i64::from),
        },
    }
}

fn row_of(row: &rusqlite::Row<'_>) -> Result<QuarantineRow, StoreError> {
    Ok(QuarantineRow {
        item: row.get::<_, i64>(0)?.unsigned_abs(),
        peer: row.get::<_, String>(1)?.parse()?,
        kind: word(row.get(2)?),
        document: DocumentId(row.get(3)?),
        at: Timestamp(row.get::<_, i64>(4)?.unsigned_abs()),
        denied: row.get(5)?,
        reason: row.get(6)?,
        size: row.get::<_, i64>(7)?.unsigned_abs(),
    })
}

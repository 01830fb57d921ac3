//! What each peer is told: one log per direction, one order.
//!
//! A row points at a change or a journal entry; its bytes are put together when it is read. The rolling
//! hash and the fingerprint up to a position are kept with the row, so that any position can be compared
//! in constant time.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{OptionalExtension, params};
use sync::{
    id::Origin,
    wire::{Cursor, Fingerprint, Item, Rolling, Seal},
};

use crate::{StoreError, Tx, documents};

/// What a log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    Change(i64),
    Entry(i64),
    /// The item itself, encoded.
    Note(Vec<u8>),
}

/// A position of a log with everything that is kept with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) cursor: Cursor,
    pub(crate) fingerprint: Fingerprint,
}

impl Tx<'_> {
    /// Appends to the log for `peer`.
    pub(crate) fn tell(&mut self, peer: Origin, row: Row) -> Result<(), StoreError> {
        self.tell_all(peer, vec![row])
    }

    /// Appends to the log for `peer`, in this order.
    pub(crate) fn tell_all(&mut self, peer: Origin, rows: Vec<Row>) -> Result<(), StoreError> {
        let mut last = mark(self.sql, peer, None)?.unwrap_or_default();
        for row in rows {
            let mut adds = Fingerprint::default();
            if let Row::Change(change) = &row {
                adds.add(&change_hash(self.sql, *change)?);
            }
            last = self.extend_log(peer, last, row, adds)?;
        }
        self.outdate_agreement(peer)
    }

    /// Appends to the log for `peer` something that adds `adds` to what the peer holds, modulo 2^64 and
    /// 2^128: what takes away adds the complement.
    pub(crate) fn tell_with(&mut self, peer: Origin, row: Row, adds: Fingerprint) -> Result<(), StoreError> {
        let last = mark(self.sql, peer, None)?.unwrap_or_default();
        self.extend_log(peer, last, row, adds)?;
        self.outdate_agreement(peer)
    }

    fn extend_log(
        &mut self,
        peer: Origin,
        last: Mark,
        row: Row,
        adds: Fingerprint,
    ) -> Result<Mark, StoreError> {
        let bytes = self.item_bytes(&row)?;
        let next = Mark {
            cursor: Cursor { position: last.cursor.position + 1, rolling: last.cursor.rolling.over(&bytes) },
            fingerprint: Fingerprint {
                changes: last.fingerprint.changes.wrapping_add(adds.changes),
                sum: last.fingerprint.sum.wrapping_add(adds.sum),
                heads: None,
            },
        };
        let (change, entry, note) = match row {
            Row::Change(change) => (Some(change), None, None),
            Row::Entry(entry) => (None, Some(entry), None),
            Row::Note(bytes) => (None, None, Some(bytes)),
        };
        self.sql
            .prepare_cached(
                "INSERT INTO log (peer, position, change, entry, note, rolling, changes, sum)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                peer.to_string(),
                signed(next.cursor.position),
                change,
                entry,
                note,
                next.cursor.rolling.0,
                next.fingerprint.changes.cast_signed(),
                next.fingerprint.sum.to_be_bytes(),
            ])?;
        self.grown.insert(peer, next.cursor.position);
        Ok(next)
    }

    /// Puts the log for a peer that has nothing of it into another order: every document as a whole, where
    /// its first change stood. So it travels as a snapshot. What has left the peer's scope meanwhile is not
    /// told at all.
    pub(crate) fn gather_log(&mut self, peer: Origin) -> Result<(), StoreError> {
        let rows = {
            let mut statement = self.sql.prepare_cached(
                "SELECT log.change, entry, note, changes.doc,
                     EXISTS (SELECT 1 FROM scope WHERE peer = ?1 AND scope.doc = changes.doc AND inside = 1)
                 FROM log LEFT JOIN changes ON changes.change = log.change WHERE peer = ?1 ORDER BY position",
            )?;
            let rows = statement.query_map([peer.to_string()], |row| {
                let told = told(row)?;
                Ok((told, row.get::<_, Option<i64>>(3)?, row.get::<_, bool>(4)?))
            })?;
            rows.collect::<Result<Vec<_>, _>>()?
        };
        let mut documents: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
        // What left the scope and came back was told twice.
        let mut seen: BTreeSet<i64> = BTreeSet::new();
        for (row, doc, is_inside) in &rows {
            if let (Row::Change(change), Some(doc), true) = (row, doc, is_inside)
                && seen.insert(*change)
            {
                documents.entry(*doc).or_default().push(row.clone());
            }
        }
        if rows.is_empty() || documents.values().all(|changes| changes.len() < 2) {
            return Ok(());
        }
        let mut gathered = Vec::with_capacity(rows.len());
        for (row, doc, _) in rows {
            match (row, doc) {
                (Row::Change(_), Some(doc)) => gathered.extend(documents.remove(&doc).unwrap_or_default()),
                (Row::Change(_), None) => {}
                (Row::Note(bytes), _) if is_drop(&bytes) => {}
                (row @ (Row::Entry(_) | Row::Note(_)), _) => gathered.push(row),
            }
        }
        self.sql.prepare_cached("DELETE FROM log WHERE peer = ?1")?.execute([peer.to_string()])?;
        self.tell_all(peer, gathered)?;
        // What is judged by positions: the peer knows all of it when it has everything.
        let end = signed(end(self.sql, peer)?);
        for statement in [
            "UPDATE epochs SET told = ?2 WHERE lower(hex(site)) = ?1 AND told IS NOT NULL",
            "UPDATE scope SET gone = ?2 WHERE peer = ?1 AND inside = 0 AND gone IS NOT NULL",
            "UPDATE peers SET directory_at = ?2 WHERE peer = ?1 AND directory_at > 0",
            "UPDATE peers SET whole_from = ?2 WHERE peer = ?1 AND whole_from > 0",
            "UPDATE domains SET told = ?2 WHERE peer = ?1",
        ] {
            self.sql.prepare_cached(statement)?.execute(params![peer.to_string(), end])?;
        }
        Ok(())
    }

    /// Reads the log for `peer` from a position, at least one item and then as many as fit.
    pub(crate) fn read_log(
        &mut self,
        peer: Origin,
        from: u64,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows: Vec<Row> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT change, entry, note FROM log WHERE peer = ?1 AND position >= ?2 ORDER BY position LIMIT 1024",
            )?;
            let rows = statement.query_map(params![peer.to_string(), signed(from)], told)?;
            rows.collect::<Result<_, _>>()?
        };
        let mut items = Vec::new();
        let mut bytes = 0;
        for row in rows {
            let item = self.item_bytes(&row)?;
            bytes += item.len();
            if bytes > max_bytes && !items.is_empty() {
                break;
            }
            items.push(item);
        }
        Ok(items)
    }

    pub(crate) fn item_bytes(&mut self, row: &Row) -> Result<Vec<u8>, StoreError> {
        Ok(match row {
            Row::Note(bytes) => bytes.clone(),
            Row::Change(change) => {
                let (kind, document, bytes) = documents::change_bytes(self, *change)?;
                let (hash, stored): ([u8; 32], Option<[u8; 16]>) = self
                    .sql
                    .prepare_cached("SELECT hash, seal FROM changes WHERE change = ?1")?
                    .query_row([*change], |row| Ok((row.get(0)?, row.get(1)?)))?;
                let seal = self.seal_change(document, &hash).or(stored.map(Seal));
                Item { seal, ..Item::change(kind, document, bytes) }.to_bytes()
            }
            Row::Entry(entry) => {
                let bytes = self
                    .sql
                    .prepare_cached("SELECT bytes FROM journal WHERE entry = ?1")?
                    .query_row([*entry], |row| row.get(0))?;
                Item::entry(bytes).to_bytes()
            }
        })
    }
}

/// What a row of the log says, from its columns change, entry and note.
fn told(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    Ok(match (row.get(0)?, row.get(1)?) {
        (Some(change), _) => Row::Change(change),
        (None, Some(entry)) => Row::Entry(entry),
        (None, None) => Row::Note(row.get(2)?),
    })
}

fn is_drop(note: &[u8]) -> bool {
    minicbor::decode::<Item>(note).is_ok_and(|item| item.dropped == Some(true))
}

/// The log for `peer` at a position, or at its end. Position 0 is before the first item.
pub(crate) fn mark(
    sql: &rusqlite::Connection,
    peer: Origin,
    position: Option<u64>,
) -> Result<Option<Mark>, StoreError> {
    if position == Some(0) {
        return Ok(Some(Mark::default()));
    }
    let mut statement = sql.prepare_cached(
        "SELECT position, rolling, changes, sum FROM log
         WHERE peer = ?1 AND (?2 IS NULL OR position = ?2) ORDER BY position DESC LIMIT 1",
    )?;
    let found = statement
        .query_row(params![peer.to_string(), position.map(signed)], |row| {
            Ok(Mark {
                cursor: Cursor {
                    position: row.get::<_, i64>(0)?.unsigned_abs(),
                    rolling: Rolling(row.get(1)?),
                },
                fingerprint: Fingerprint {
                    changes: row.get::<_, i64>(2)?.cast_unsigned(),
                    sum: u128::from_be_bytes(row.get(3)?),
                    heads: None,
                },
            })
        })
        .optional()?;
    Ok(found)
}

/// Last position of the log for `peer`, 0 if it is empty.
pub(crate) fn end(sql: &rusqlite::Connection, peer: Origin) -> Result<u64, StoreError> {
    Ok(mark(sql, peer, None)?.map_or(0, |mark| mark.cursor.position))
}

pub(crate) fn change_hash(sql: &rusqlite::Connection, change: i64) -> Result<[u8; 32], StoreError> {
    Ok(sql
        .prepare_cached("SELECT hash FROM changes WHERE change = ?1")?
        .query_row([change], |row| row.get(0))?)
}

/// SQLite has signed numbers only; positions stay far below the difference.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

//! The journal, as people read it.

use rusqlite::params;
use serde::Serialize;
use sync::{
    id::{Incarnation, SiteId},
    journal::{Event, Stream, chain, chain::Entry},
    time::Timestamp,
};

use super::View;
use crate::{StoreError, log::signed};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct JournalRow {
    /// Number in this replica, for paging.
    pub entry: u64,
    /// Stream that it is part of.
    pub stream: String,
    /// Life of the database that wrote it.
    pub incarnation: Incarnation,
    /// Number within its chain.
    pub seq: u64,
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Person, rule or program that made it happen.
    pub by: String,
    /// Settings epoch that it was decided under.
    pub policy_epoch: u64,
    /// The fact; absent if a newer program wrote it.
    #[serde(flatten)]
    pub event: Option<Event>,
}

impl JournalRow {
    /// Shows an entry; `number` is its own in this replica, 0 if it is not in a journal here.
    pub(super) fn of(number: u64, entry: Entry) -> Self {
        JournalRow {
            entry: number,
            stream: entry.stream.to_string(),
            incarnation: entry.incarnation,
            seq: entry.seq,
            at: entry.at.timestamp(),
            by: entry.by,
            policy_epoch: entry.policy_epoch,
            event: entry.event,
        }
    }
}

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct JournalFilter {
    /// Only the stream of this site.
    pub site: Option<SiteId>,
    /// Only those after this one.
    pub after: u64,
    /// At most so many; 0: all.
    pub limit: u64,
}

impl View<'_> {
    /// Number of the newest entry; 0 before the first. It always stays: a chain is never trimmed to its end.
    pub fn newest_entry(&self) -> Result<u64, StoreError> {
        let mut statement = self.sql.prepare_cached("SELECT max(entry) FROM journal")?;
        Ok(statement.query_row([], |row| row.get::<_, Option<i64>>(0))?.unwrap_or(0).unsigned_abs())
    }

    /// Entries in the order in which this replica got them, which keeps each chain's own order.
    pub fn journal(&self, filter: &JournalFilter) -> Result<Vec<JournalRow>, StoreError> {
        let limit = if filter.limit == 0 { -1 } else { signed(filter.limit) };
        let stream = filter.site.map(|site| Stream::Site(site).to_string());
        let mut statement = self.sql.prepare_cached(
            "SELECT entry, bytes FROM journal WHERE (?1 IS NULL OR stream = ?1) AND entry > ?2
             ORDER BY entry LIMIT ?3",
        )?;
        let mut rows = statement.query(params![stream, signed(filter.after), limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let bytes: Vec<u8> = row.get(1)?;
            found.push(JournalRow::of(row.get::<_, i64>(0)?.unsigned_abs(), chain::decode(&bytes)?));
        }
        Ok(found)
    }
}

//! The journal on disk: our own streams, and copies of the peers'.

use rusqlite::{OptionalExtension, params};
use sync::{
    id::{Incarnation, Origin, SiteId},
    journal::{Event, Head, Stream, chain},
};

use crate::{StoreError, Tx, log::Row};

impl Tx<'_> {
    /// Records a fact in our own stream: a site's goes up, central's stays.
    pub(crate) fn journal(&mut self, event: Event) -> Result<(), StoreError> {
        match self.state.origin {
            Origin::Central => self.append(Stream::Central, event).map(drop),
            Origin::Site(site) => {
                let entry = self.append(Stream::Site(site), event)?;
                self.tell(Origin::Central, Row::Entry(entry))
            }
        }
    }

    /// Records a fact of central that concerns `site`, which is told. At a site it is its own fact.
    pub(crate) fn journal_for(&mut self, site: SiteId, event: Event) -> Result<(), StoreError> {
        match self.state.origin {
            Origin::Central => {
                let entry = self.append(Stream::Down(site), event)?;
                self.tell(Origin::Site(site), Row::Entry(entry))
            }
            Origin::Site(_) => self.journal(event),
        }
    }

    fn append(&mut self, stream: Stream, event: Event) -> Result<i64, StoreError> {
        let incarnation = self.state.incarnation;
        let mut head =
            head_of(self.sql, stream, Some(incarnation))?.unwrap_or_else(|| Head::new(incarnation));
        let (at, by, epoch) = {
            let author = self.author()?;
            (author.at, author.by.clone(), author.policy_epoch)
        };
        let bytes = head.append(stream, at, &by, epoch, event);
        insert(self.sql, stream, &head, &bytes)
    }

    /// Takes over an entry of a peer's stream after checking that it continues the chain.
    pub(crate) fn take_entry(&mut self, stream: Stream, bytes: &[u8]) -> Result<(), StoreError> {
        let last = head_of(self.sql, stream, None)?;
        let (_, head) = chain::follow(stream, last.as_ref(), bytes)?;
        insert(self.sql, stream, &head, bytes).map(drop)
    }
}

fn insert(sql: &rusqlite::Connection, stream: Stream, head: &Head, bytes: &[u8]) -> Result<i64, StoreError> {
    sql.prepare_cached(
        "INSERT INTO journal (stream, incarnation, seq, hash, bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        stream.to_string(),
        head.incarnation.as_bytes(),
        crate::log::signed(head.seq),
        head.hash,
        bytes
    ])?;
    Ok(sql.last_insert_rowid())
}

/// The newest entry of a stream, of one incarnation or of the one that wrote last.
fn head_of(
    sql: &rusqlite::Connection,
    stream: Stream,
    incarnation: Option<Incarnation>,
) -> Result<Option<Head>, StoreError> {
    let mut statement = sql.prepare_cached(
        "SELECT incarnation, seq, hash FROM journal
         WHERE stream = ?1 AND (?2 IS NULL OR incarnation = ?2) ORDER BY entry DESC LIMIT 1",
    )?;
    Ok(statement
        .query_row(params![stream.to_string(), incarnation.map(|incarnation| incarnation.0)], |row| {
            Ok(Head {
                incarnation: Incarnation(row.get(0)?),
                seq: row.get::<_, i64>(1)?.unsigned_abs(),
                hash: row.get(2)?,
            })
        })
        .optional()?)
}

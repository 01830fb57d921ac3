//! The journal on disk: our own streams, and copies of the peers'.

use rusqlite::{OptionalExtension, params};
use sync::{
    id::{Incarnation, Origin, SiteId},
    journal::{Entry, Event, Head, Stream, chain},
    time::Hlc,
};

use crate::{StoreError, Tx, log::Row, retention::last_checkpoint};

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
        let (at, by, epoch) = {
            let author = self.author()?;
            (author.at, author.by.clone(), author.policy_epoch)
        };
        self.append_as(stream, at, &by, epoch, event)
    }

    /// Appends an entry of somebody, at some time, in the present chain.
    pub(crate) fn append_as(
        &self,
        stream: Stream,
        at: Hlc,
        by: &str,
        policy_epoch: u64,
        event: Event,
    ) -> Result<i64, StoreError> {
        let incarnation = self.present_chain(stream)?;
        let mut head = head_of(self.sql, stream, incarnation)?.unwrap_or_else(|| Head::new(incarnation));
        let bytes = head.append(stream, at, by, policy_epoch, event);
        self.insert(stream, &head, &bytes)
    }

    /// Number of the newest entry of our own present chain in a stream; 0 before the first.
    pub(crate) fn newest_entry(&self, stream: Stream) -> Result<u64, StoreError> {
        Ok(head_of(self.sql, stream, self.present_chain(stream)?)?.map_or(0, |head| head.seq))
    }

    /// Takes over an entry of a peer's stream after checking that it continues the chain. One that is here
    /// already changes nothing; one that does not fit is set aside, and what follows it (see `chains`).
    ///
    /// `good` is the head of the chain that the entry before continued, with nothing of the stream touched since,
    /// and becomes the new one: what comes in one batch is compared with what came just now.
    pub(crate) fn take_entry(
        &mut self,
        peer: Origin,
        stream: Stream,
        bytes: &[u8],
        good: &mut Option<Head>,
    ) -> Result<(), StoreError> {
        let before = good.take();
        let entry = match chain::decode(bytes) {
            Ok(entry) => entry,
            Err(error) => return self.break_chain(peer, stream, None, bytes, &error),
        };
        let known = before.filter(|head| head.incarnation == entry.incarnation && entry.seq == head.seq + 1);
        let last = match known {
            Some(head) => Some(head),
            None => {
                let last = head_of(self.sql, stream, entry.incarnation)?;
                // What comes next can be neither here nor past.
                let is_next = last.as_ref().is_some_and(|last| entry.seq == last.seq + 1);
                if !is_next && self.was_here(stream, &entry, bytes)? {
                    return Ok(());
                }
                if self.is_broken(stream, entry.incarnation)? {
                    let reason = "it is of a chain that broke before";
                    return self.set_entry_aside(peer, entry.incarnation, bytes, reason);
                }
                last
            }
        };
        let head = match chain::continues(stream, last.as_ref(), &entry, bytes) {
            Ok(head) => head,
            Err(error) => {
                // An entry of another stream says nothing about its chain in this one.
                let named = (entry.stream == stream).then_some(entry.incarnation);
                return self.break_chain(peer, stream, named, bytes, &error);
            }
        };
        if let (Stream::Site(site), Some(Event::EpochAdopted { epoch })) = (stream, &entry.event) {
            self.note_epoch(site, *epoch)?;
        }
        if let (Stream::Site(site), Some(Event::ProposalMade { proposal, .. })) = (stream, &entry.event) {
            self.note_asked(site, *proposal)?;
        }
        self.insert(stream, &head, bytes)?;
        *good = Some(head);
        // After the first good one there is nothing to forgive.
        if known.is_none() { self.chain_holds(peer) } else { Ok(()) }
    }

    fn insert(&self, stream: Stream, head: &Head, bytes: &[u8]) -> Result<i64, StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO journal (stream, incarnation, seq, hash, bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                stream.to_string(),
                head.incarnation.as_bytes(),
                crate::log::signed(head.seq),
                head.hash,
                bytes
            ])?;
        self.noted.set(true);
        Ok(self.sql.last_insert_rowid())
    }

    /// Whether an entry is here, or was before its chain was trimmed.
    fn was_here(&self, stream: Stream, entry: &Entry, bytes: &[u8]) -> Result<bool, StoreError> {
        let here: Option<[u8; 32]> = self
            .sql
            .prepare_cached("SELECT hash FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq = ?3")?
            .query_row(
                params![stream.to_string(), entry.incarnation.as_bytes(), crate::log::signed(entry.seq)],
                |row| row.get(0),
            )
            .optional()?;
        if here == Some(chain::hash(bytes)) {
            return Ok(true);
        }
        // What is not kept any more cannot be compared any more; it was once.
        let kept_from = last_checkpoint(self.sql, stream, entry.incarnation)?;
        Ok(here.is_none() && kept_from.is_some_and(|checkpoint| entry.seq <= checkpoint.seq))
    }
}

/// The newest entry of one life of a stream, here or not any more.
pub(crate) fn head_of(
    sql: &rusqlite::Connection,
    stream: Stream,
    incarnation: Incarnation,
) -> Result<Option<Head>, StoreError> {
    let mut statement = sql.prepare_cached(
        "SELECT seq, hash FROM journal WHERE stream = ?1 AND incarnation = ?2 ORDER BY seq DESC LIMIT 1",
    )?;
    let newest = statement
        .query_row(params![stream.to_string(), incarnation.as_bytes()], |row| {
            Ok(Head { incarnation, seq: row.get::<_, i64>(0)?.unsigned_abs(), hash: row.get(1)? })
        })
        .optional()?;
    let checkpoint = last_checkpoint(sql, stream, incarnation)?;
    Ok(newest.into_iter().chain(checkpoint).max_by_key(|head| head.seq))
}

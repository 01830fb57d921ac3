//! What becomes of a journal whose chain breaks on the way.
//!
//! An entry that does not follow the ones before, or cannot be read, is set aside, and so is all that comes
//! of its chain after it: a chain with a hole proves nothing. That it broke is noted once, and the session
//! goes on. Whoever could not follow tells how far it could; the other begins another chain and records there
//! what is lacking, each fact with its own time and author. Who breaks one chain after the other is no longer
//! told, until an entry of it is good again; and central begins no more than so many for one site, for anybody
//! can say that he cannot follow.

use rusqlite::{OptionalExtension, params};
use sync::{
    id::{Incarnation, Origin},
    journal::{ChainError, Event, Stream},
    wire::{Item, StreamHead},
};

use crate::{
    StoreError, Tx,
    log::{Row, signed},
    marks::stream_between,
    writer::{meta, set_meta},
};

/// So many chains of one peer are noted in a row, with no good entry between.
const MAX_BREAKS: i64 = 8;

/// So many broken chains are told once more where both logs begin anew: the newest.
const MAX_TOLD: i64 = 64;

/// Names the chain of a stream of ours, if it is not the one of our life.
fn chain_key(stream: Stream) -> String {
    format!("chain of {stream}")
}

impl Tx<'_> {
    /// The chain that our own entries of a stream go on in: that of the present life, unless its reader could not follow it.
    pub(crate) fn present_chain(&self, stream: Stream) -> Result<Incarnation, StoreError> {
        Ok(self.chain_begun(stream)?.map_or(self.state.incarnation, |(chain, _)| chain))
    }

    /// The chain that was begun in this life because the reader could not follow the one before, and how many were.
    fn chain_begun(&self, stream: Stream) -> Result<Option<(Incarnation, u8)>, StoreError> {
        let life = self.state.incarnation.0;
        let found = meta(self.sql, &chain_key(stream))?.filter(|bytes| bytes.starts_with(&life));
        Ok(found.and_then(|bytes| {
            let (chain, many) = bytes.get(16..32).zip(bytes.get(32))?;
            Some((Incarnation::from_slice(chain)?, *many))
        }))
    }

    /// Whether nothing more of a chain is taken.
    pub(crate) fn is_broken(&self, stream: Stream, chain: Incarnation) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT 1 FROM broken_chains WHERE stream = ?1 AND incarnation = ?2")?
            .exists(params![stream.to_string(), chain.as_bytes()])?)
    }

    /// Sets an entry aside that does not follow its chain; `chain` is nothing where the entry does not even say
    /// which one that is. Then it is the one that came last.
    pub(crate) fn break_chain(
        &mut self,
        peer: Origin,
        stream: Stream,
        chain: Option<Incarnation>,
        bytes: &[u8],
        error: &ChainError,
    ) -> Result<(), StoreError> {
        let chain = match chain {
            Some(chain) => chain,
            None => self.last_chain(peer, stream)?,
        };
        self.set_entry_aside(peer, chain, bytes, &error.to_string())?;
        let breaks: i64 = self
            .sql
            .prepare_cached("SELECT breaks FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| row.get(0))?;
        if breaks >= MAX_BREAKS || self.is_broken(stream, chain)? {
            return Ok(());
        }
        self.sql
            .prepare_cached("UPDATE peers SET breaks = breaks + 1 WHERE peer = ?1")?
            .execute([peer.to_string()])?;
        self.sql
            .prepare_cached("INSERT INTO broken_chains (stream, incarnation) VALUES (?1, ?2)")?
            .execute(params![stream.to_string(), chain.as_bytes()])?;
        let newest = self.newest_of(stream, chain)?;
        self.journal(Event::ChainBroken {
            stream: stream.to_string(),
            incarnation: chain,
            seq: newest.seq,
            reason: error.to_string(),
        })?;
        self.tell_broken(peer, newest)
    }

    /// An entry of the peer's was good: what breaks next is told again.
    pub(crate) fn chain_holds(&self, peer: Origin) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE peers SET breaks = 0 WHERE peer = ?1 AND breaks > 0")?
            .execute([peer.to_string()])?;
        Ok(())
    }

    /// Where both logs begin anew: tells once more which chains broke, because that may have been lost.
    pub(crate) fn tell_broken_chains(&mut self, peer: Origin, stream: Stream) -> Result<(), StoreError> {
        let broken: Vec<[u8; 16]> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT incarnation FROM broken_chains WHERE stream = ?1 ORDER BY rowid DESC LIMIT ?2",
            )?;
            let rows = statement.query_map(params![stream.to_string(), MAX_TOLD], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        for chain in broken.into_iter().rev() {
            let newest = self.newest_of(stream, Incarnation(chain))?;
            self.tell_broken(peer, newest)?;
        }
        Ok(())
    }

    /// Goes on in another chain after `peer` could not follow `newest` of ours, and records there what it lacks. Hearing
    /// of it twice changes nothing.
    pub(crate) fn take_broken(&mut self, peer: Origin, newest: &StreamHead) -> Result<(), StoreError> {
        let stream = stream_between(self.state.origin, peer);
        let is_present = self.present_chain(stream)? == newest.incarnation;
        let begun = self.chain_begun(stream)?.map_or(0, |(_, many)| many);
        if is_present && self.state.origin == Origin::Central && i64::from(begun) >= MAX_BREAKS {
            tracing::warn!(%peer, begun, "a site follows none of the chains of its journal, so no other is begun");
            return Ok(());
        }
        // Where the peer has another entry of that number, what it acknowledged last is all that is surely there.
        let follows = newest.seq == 0 || self.has_entry(stream, newest)?;
        let lacking: Vec<i64> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT entry FROM journal
                 WHERE stream = ?1 AND incarnation = ?2 AND copied = 0 AND (seq > ?3 OR NOT ?4 AND
                     (seq = ?3 OR entry > ifnull((SELECT common_entry FROM peers WHERE peer = ?5), 0)))
                 ORDER BY entry",
            )?;
            let chain = newest.incarnation;
            let (stream, peer) = (stream.to_string(), peer.to_string());
            let rows = statement
                .query_map(params![stream, chain.as_bytes(), signed(newest.seq), follows, peer], |row| {
                    row.get(0)
                })?;
            rows.collect::<Result<_, _>>()?
        };
        if is_present {
            let fresh: [u8; 16] = self.author()?.entropy.bytes();
            let many = begun.saturating_add(1);
            let begins = [self.state.incarnation.0.as_slice(), &fresh, &[many]].concat();
            set_meta(self.sql, &chain_key(stream), &begins)?;
        }
        let (mut again, mut lost) = (0, 0);
        for entry in lacking {
            match self.record_again(stream, entry)? {
                Some(row) => {
                    self.tell(peer, Row::Entry(row))?;
                    again += 1;
                }
                None => lost += 1,
            }
        }
        if !is_present && again + lost == 0 {
            return Ok(());
        }
        let begun = Event::ChainBegun { left: newest.incarnation, seq: newest.seq, again, lost };
        self.journal_about(peer.site(), begun)
    }

    fn tell_broken(&mut self, peer: Origin, newest: StreamHead) -> Result<(), StoreError> {
        self.tell(peer, Row::Note(Item::broken(newest).to_bytes()))
    }

    /// The newest entry of a chain; number 0 if none is here.
    fn newest_of(&self, stream: Stream, chain: Incarnation) -> Result<StreamHead, StoreError> {
        let head = crate::journal::head_of(self.sql, stream, chain)?;
        Ok(head.map_or(StreamHead { incarnation: chain, seq: 0, hash: [0; 32] }, |head| StreamHead {
            incarnation: chain,
            seq: head.seq,
            hash: head.hash,
        }))
    }

    /// The chain of the newest entry of a stream, or that of the peer's present life.
    fn last_chain(&self, peer: Origin, stream: Stream) -> Result<Incarnation, StoreError> {
        let found: Option<[u8; 16]> = self
            .sql
            .prepare_cached("SELECT incarnation FROM journal WHERE stream = ?1 ORDER BY entry DESC LIMIT 1")?
            .query_row([stream.to_string()], |row| row.get(0))
            .optional()?;
        let life = self.view().peer(peer)?.life;
        Ok(found.map(Incarnation).or(life).unwrap_or(Incarnation([0; 16])))
    }
}

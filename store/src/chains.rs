//! What becomes of a journal whose chain breaks on the way.
//!
//! An entry that does not follow the ones before, or cannot be read, is set aside, and so is all that comes
//! of its chain after it: a chain with a hole proves nothing. That it broke is noted once, and the session
//! goes on. Central tells the site how far it could follow; the site begins another chain and records there
//! what central lacks, each fact with its own time and author. A site that breaks one chain after the other
//! is no longer told, until an entry of it is good again.
//!
//! What a site cannot follow of central's journal it only notes: central sees that in the site's journal,
//! and looks after its own database.

use rusqlite::{OptionalExtension, params};
use sync::{
    id::{Incarnation, Origin},
    journal::{ChainError, Event, Stream},
    wire::{Item, StreamHead},
};

use crate::{
    StoreError, Tx,
    log::{Row, signed},
    writer::{meta, set_meta},
};

/// So many chains of one peer are noted in a row, with no good entry between.
const MAX_BREAKS: i64 = 8;

/// So many broken chains are told once more where both logs begin anew: the newest.
const MAX_TOLD: i64 = 64;

/// Names the chain of a site's journal, if it is not the one of its life.
const CHAIN: &str = "chain";

impl Tx<'_> {
    /// The chain that our own entries go on in: that of the present life, unless central could not follow it.
    pub(crate) fn present_chain(&self) -> Result<Incarnation, StoreError> {
        let life = self.state.incarnation;
        if self.state.origin == Origin::Central {
            return Ok(life);
        }
        let found = meta(self.sql, CHAIN)?.filter(|bytes| bytes.len() == 32 && bytes[..16] == life.0);
        Ok(found.and_then(|bytes| Incarnation::from_slice(&bytes[16..])).unwrap_or(life))
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

    /// At a site: goes on in another chain after central could not follow `newest`, and records there what
    /// central lacks. Hearing of it twice changes nothing.
    pub(crate) fn take_broken(&mut self, newest: &StreamHead) -> Result<(), StoreError> {
        let Origin::Site(site) = self.state.origin else { return Ok(()) };
        let stream = Stream::Site(site);
        // Where central has another entry of that number, what this site has under it is recorded again too.
        let follows = newest.seq == 0 || self.has_entry(stream, newest)?;
        let from = if follows { newest.seq.saturating_add(1) } else { newest.seq };
        let lacking: Vec<i64> = {
            let mut statement = self.sql.prepare_cached(
                "SELECT entry FROM journal
                 WHERE stream = ?1 AND incarnation = ?2 AND seq >= ?3 AND copied = 0 ORDER BY entry",
            )?;
            let chain = newest.incarnation;
            let rows = statement
                .query_map(params![stream.to_string(), chain.as_bytes(), signed(from)], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        let is_present = self.present_chain()? == newest.incarnation;
        if is_present {
            let fresh: [u8; 16] = self.author()?.entropy.bytes();
            set_meta(self.sql, CHAIN, &[self.state.incarnation.0, fresh].concat())?;
        }
        let (mut again, mut lost) = (0, 0);
        for entry in lacking {
            match self.record_again(stream, entry)? {
                Some(row) => {
                    self.tell(Origin::Central, Row::Entry(row))?;
                    again += 1;
                }
                None => lost += 1,
            }
        }
        if !is_present && again + lost == 0 {
            return Ok(());
        }
        self.journal(Event::ChainBegun { left: newest.incarnation, seq: newest.seq, again, lost })
    }

    fn tell_broken(&mut self, peer: Origin, newest: StreamHead) -> Result<(), StoreError> {
        match self.state.origin {
            Origin::Central => self.tell(peer, Row::Note(Item::broken(newest).to_bytes())),
            Origin::Site(_) => Ok(()),
        }
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

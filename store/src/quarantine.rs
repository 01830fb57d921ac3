//! What is set aside of a peer, and how much of it is kept.
//!
//! What does not pass ingress, a journal entry that does not follow its chain, and an item that is nothing at
//! all are kept as they came, so that a person can look at them, take them out and decide. Of each peer only
//! so much is kept: then its oldest goes, which the journal says once; while there is too much, what comes is
//! counted and no longer journalled item by item, so that nobody fills this disk with what is refused.
//!
//! Deliberately absent: what people do with it, which is `command::quarantine`.

use rusqlite::params;
use sync::{
    document::Kind,
    id::{DocumentId, Incarnation, Origin},
    ingress,
    journal::Event,
};

use crate::{StoreError, Tx, log::signed};

/// Items of one peer that are kept.
pub const MAX_ITEMS: u64 = 4_096;

/// Their bytes.
pub const MAX_BYTES: u64 = 16 << 20;

/// Number of a journal entry where a document has its kind.
pub(crate) const ENTRY: i64 = -1;

/// Number of an item that is nothing.
pub(crate) const NOTHING: i64 = -2;

/// What was set aside.
pub(crate) struct Aside<'b> {
    pub(crate) kind: i64,
    pub(crate) id: DocumentId,
    pub(crate) denied: bool,
    pub(crate) bytes: &'b [u8],
}

/// What a number in the place of a kind stands for, as people read it.
pub(crate) fn word(kind: i64) -> String {
    match kind {
        ENTRY => "journal".into(),
        NOTHING => "item".into(),
        kind => {
            let known = u8::try_from(kind).ok().and_then(Kind::from_number);
            known.map_or_else(|| kind.to_string(), |kind| kind.to_string())
        }
    }
}

impl Tx<'_> {
    /// Sets a change of a document aside and notes it.
    pub(crate) fn quarantine(
        &mut self,
        kind: Kind,
        id: DocumentId,
        peer: Origin,
        bytes: &[u8],
        denied: bool,
        reason: &str,
    ) -> Result<(), StoreError> {
        let aside = Aside { kind: kind.number().into(), id, denied, bytes };
        self.set_aside(peer, &aside, reason)
    }

    /// Sets an entry of a chain of the peer's journal aside; that the chain broke is noted elsewhere.
    pub(crate) fn set_entry_aside(
        &mut self,
        peer: Origin,
        chain: Incarnation,
        bytes: &[u8],
        reason: &str,
    ) -> Result<(), StoreError> {
        self.keep_aside(peer, &Aside { kind: ENTRY, id: DocumentId(chain.0), denied: false, bytes }, reason)
    }

    /// Sets something aside and notes it, unless there is too much of the peer already.
    pub(crate) fn set_aside(
        &mut self,
        peer: Origin,
        aside: &Aside<'_>,
        reason: &str,
    ) -> Result<(), StoreError> {
        self.keep_aside(peer, aside, reason)?;
        self.sql
            .prepare_cached("UPDATE peers SET aside_ever = aside_ever + 1 WHERE peer = ?1")?
            .execute([peer.to_string()])?;
        if self.is_noisy(peer)? {
            return Ok(());
        }
        let (kind, document, reason) = (word(aside.kind), aside.id, reason.to_string());
        self.journal(Event::ChangeQuarantined { kind, document, reason })
    }

    fn keep_aside(&mut self, peer: Origin, aside: &Aside<'_>, reason: &str) -> Result<(), StoreError> {
        self.ensure_peer(peer)?;
        self.sql
            .prepare_cached(
                "INSERT INTO quarantine (peer, kind, id, at, denied, reason, bytes, hash)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                peer.to_string(),
                aside.kind,
                aside.id.as_bytes(),
                signed(self.given.now.0),
                aside.denied,
                reason,
                aside.bytes,
                // Of what is no change nothing follows.
                if aside.kind < 0 { None } else { ingress::parse(aside.bytes).ok().map(|it| it.hash().0) }
            ])?;
        self.count_aside(peer, 1, aside.bytes.len() as u64)?;
        self.trim_aside(peer)
    }

    /// Lets the oldest of a peer go until what is left is within bounds.
    fn trim_aside(&mut self, peer: Origin) -> Result<(), StoreError> {
        let name = peer.to_string();
        let was_noisy = self.is_noisy(peer)?;
        loop {
            let (items, bytes) = self.aside_of(peer)?;
            if items <= MAX_ITEMS && bytes <= MAX_BYTES {
                break;
            }
            let (item, size): (i64, i64) = self
                .sql
                .prepare_cached(
                    "SELECT item, length(bytes) FROM quarantine WHERE peer = ?1 ORDER BY item LIMIT 1",
                )?
                .query_row([&name], |row| Ok((row.get(0)?, row.get(1)?)))?;
            self.sql.prepare_cached("DELETE FROM quarantine WHERE item = ?1")?.execute([item])?;
            self.count_aside(peer, -1, size.unsigned_abs())?;
            self.sql
                .prepare_cached("UPDATE peers SET trimmed = trimmed + 1 WHERE peer = ?1")?
                .execute([&name])?;
        }
        if !was_noisy && self.is_noisy(peer)? {
            let (items, bytes) = self.aside_of(peer)?;
            self.journal(Event::QuarantineTrimmed { peer: name, items, bytes })?;
        }
        Ok(())
    }

    /// Takes an item out. Where there was too much of its peer, there no longer is once half of it is gone.
    pub(crate) fn leave_quarantine(&mut self, item: u64, peer: Origin, size: u64) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM quarantine WHERE item = ?1")?.execute([signed(item)])?;
        self.count_aside(peer, -1, size)?;
        self.sql
            .prepare_cached(
                "UPDATE peers SET trimmed = 0 WHERE peer = ?1 AND aside_items <= ?2 AND aside_bytes <= ?3",
            )?
            .execute(params![peer.to_string(), signed(MAX_ITEMS / 2), signed(MAX_BYTES / 2)])?;
        Ok(())
    }

    /// Whether more was set aside of a peer than is kept.
    pub(crate) fn is_noisy(&self, peer: Origin) -> Result<bool, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT 1 FROM peers WHERE peer = ?1 AND trimmed > 0")?
            .exists([peer.to_string()])?)
    }

    /// How often something but a journal entry was set aside of a peer.
    pub(crate) fn ever_aside(&self, peer: Origin) -> Result<u64, StoreError> {
        let count: i64 = self
            .sql
            .prepare_cached("SELECT aside_ever FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| row.get(0))?;
        Ok(count.unsigned_abs())
    }

    fn aside_of(&self, peer: Origin) -> Result<(u64, u64), StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT aside_items, aside_bytes FROM peers WHERE peer = ?1")?
            .query_row([peer.to_string()], |row| {
                Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs()))
            })?)
    }

    /// Counts one item that came (1) or went (-1).
    fn count_aside(&self, peer: Origin, one: i64, size: u64) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE peers SET aside_items = aside_items + ?2, aside_bytes = aside_bytes + ?2 * ?3
                 WHERE peer = ?1",
            )?
            .execute(params![peer.to_string(), one, signed(size)])?;
        Ok(())
    }
}

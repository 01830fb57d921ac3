//! Signed heads of journal streams: what a replica signed, kept as evidence at both ends, and from where on a
//! stream is kept.
//!
//! A head is told in the log, behind the entries that it covers, so that it is compared with them when it is
//! taken. Its signature is not: keys live outside of the store, and no acknowledgement waits for one. Whoever holds
//! the keys asks for what is to be signed ([`Tx::head_to_sign`]) and to be verified ([`View::heads_to_verify`]).

use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use sync::{
    id::{Incarnation, Origin, SiteId, hex},
    journal::{Event, Head, Mark, Stream, mark::MAX_PART},
    time::Timestamp,
    wire::Item,
};

use crate::{
    StoreError, Tx, View,
    journal::head_of,
    log::{Row, signed},
};

/// A head whose signature was not verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// Number of it in this replica.
    pub row: u64,
    /// What is said.
    pub mark: Mark,
    /// Of which stream.
    pub stream: Stream,
    /// At central: the key that the site's certificate with this serial number certifies, if it is on record.
    pub key: Option<Vec<u8>>,
}

/// A head that its writer signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeadRow {
    /// Life of the database that wrote the stream.
    pub incarnation: Incarnation,
    /// Number of its newest entry then.
    pub seq: u64,
    /// Hash of that entry, hexadecimal.
    pub hash: String,
    /// When it was signed, by the writer's clock.
    pub at: Timestamp,
    /// Who signed, hexadecimal: serial number of a site's certificate, digest of central's authority.
    pub signer: String,
    /// The signature, hexadecimal: ECDSA over P-256 with SHA-256, ASN.1.
    pub signature: String,
    /// When it was verified here, by our own clock; absent until then.
    pub verified_at: Option<Timestamp>,
}

/// The stream of `writer` that `reader` is told.
pub(crate) fn stream_between(writer: Origin, reader: Origin) -> Stream {
    match (writer, reader) {
        (Origin::Site(site), _) => Stream::Site(site),
        (Origin::Central, Origin::Site(site)) => Stream::Down(site),
        (Origin::Central, Origin::Central) => Stream::Central,
    }
}

impl Tx<'_> {
    /// The head of our stream for `peer` in this life, unless it was signed already.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn head_to_sign(&mut self, peer: Origin) -> Result<Option<(Stream, Mark)>, StoreError> {
        let stream = stream_between(self.state.origin, peer);
        let Some(head) = head_of(self.sql, stream, self.present_chain(stream)?)? else { return Ok(None) };
        let is_signed = self
            .sql
            .prepare_cached("SELECT 1 FROM heads WHERE stream = ?1 AND incarnation = ?2 AND seq = ?3")?
            .exists(params![stream.to_string(), head.incarnation.as_bytes(), signed(head.seq)])?;
        Ok((!is_signed).then(|| (stream, Mark::of(&head, self.given.now))))
    }

    /// Keeps a head of ours that was signed, and tells it to `peer`.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn tell_head(&mut self, peer: Origin, mark: &Mark) -> Result<(), StoreError> {
        let stream = stream_between(self.state.origin, peer);
        let row = self.keep_head(stream, mark)?;
        self.verified(row)?;
        self.tell(peer, Row::Note(Item::mark(mark.clone()).to_bytes()))
    }

    /// Takes over what `peer` says of its journal.
    pub(crate) fn take_mark(&mut self, peer: Origin, mark: &Mark) -> Result<(), StoreError> {
        let stream = stream_between(peer, self.state.origin);
        if mark.trimmed == Some(true) {
            return self.skip_to(stream, mark);
        }
        let (Some(signer), Some(signature)) = (&mark.signer, &mark.signature) else { return Ok(()) };
        if signer.len() > MAX_PART || signature.len() > MAX_PART {
            return self.refuse_head(stream, mark, "its signature is too long");
        }
        let found: Option<[u8; 32]> = self
            .sql
            .prepare_cached("SELECT hash FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq = ?3")?
            .query_row(params![stream.to_string(), mark.incarnation.as_bytes(), signed(mark.seq)], |row| {
                row.get(0)
            })
            .optional()?;
        match found {
            Some(hash) if hash == mark.hash => self.keep_head(stream, mark).map(drop),
            Some(_) => self.refuse_head(stream, mark, "another entry of that number is here"),
            None => self.refuse_head(stream, mark, "the entry that it names is not here"),
        }
    }

    pub(crate) fn keep_head(&mut self, stream: Stream, mark: &Mark) -> Result<i64, StoreError> {
        let part = |part: &Option<minicbor::bytes::ByteVec>| part.as_ref().map(|it| it.to_vec());
        self.sql
            .prepare_cached(
                "INSERT OR REPLACE INTO heads (stream, incarnation, seq, hash, at, signer, signature)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                stream.to_string(),
                mark.incarnation.as_bytes(),
                signed(mark.seq),
                mark.hash,
                signed(mark.at.0),
                part(&mark.signer).unwrap_or_default(),
                part(&mark.signature).unwrap_or_default()
            ])?;
        Ok(self.sql.last_insert_rowid())
    }

    /// Keeps what came of verifying a head: a good one takes the place of older ones of its stream and life, a bad
    /// one is journalled and forgotten.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn judge_head(&mut self, of: &Unverified, verdict: &Result<(), String>) -> Result<(), StoreError> {
        match verdict {
            Ok(()) => self.verified(signed(of.row)),
            Err(why) => {
                self.sql.prepare_cached("DELETE FROM heads WHERE head = ?1")?.execute([signed(of.row)])?;
                self.refuse_head(of.stream, &of.mark, why)
            }
        }
    }

    pub(crate) fn verified(&self, row: i64) -> Result<(), StoreError> {
        self.sql
            .prepare_cached("UPDATE heads SET verified_at = ?2 WHERE head = ?1")?
            .execute(params![row, signed(self.given.now.0)])?;
        self.sql
            .prepare_cached(
                "DELETE FROM heads WHERE verified_at IS NOT NULL AND EXISTS
                 (SELECT 1 FROM heads AS new WHERE new.head = ?1 AND new.stream = heads.stream
                     AND new.incarnation = heads.incarnation AND new.seq > heads.seq)",
            )?
            .execute([row])?;
        Ok(())
    }

    fn refuse_head(&mut self, stream: Stream, mark: &Mark, why: &str) -> Result<(), StoreError> {
        tracing::error!(%stream, seq = mark.seq, why, "a signed head of a journal does not fit");
        self.journal(Event::HeadRefused {
            stream: stream.to_string(),
            incarnation: mark.incarnation,
            seq: mark.seq,
            reason: why.to_owned(),
        })
    }
}

impl View<'_> {
    /// Heads of peers whose signatures were not verified yet, oldest first.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn heads_to_verify(&self) -> Result<Vec<Unverified>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT head, stream, incarnation, seq, hash, at, signer, signature,
                 (SELECT key FROM certificates WHERE serial = signer AND 'site/' || lower(hex(site)) = stream)
             FROM heads WHERE verified_at IS NULL ORDER BY head LIMIT 1000",
        )?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let Some(stream) = parse_stream(&row.get::<_, String>(1)?) else { continue };
            let mark = mark_of(row, 2)?;
            found.push(Unverified {
                row: row.get::<_, i64>(0)?.unsigned_abs(),
                mark,
                stream,
                key: row.get(8)?,
            });
        }
        Ok(found)
    }

    /// The newest signed head of each life of a stream, the newest life last.
    ///
    /// # Errors
    /// Only those of the database.
    pub fn heads(&self, stream: Stream) -> Result<Vec<HeadRow>, StoreError> {
        let mut statement = self.sql.prepare_cached(
            "SELECT incarnation, max(seq), hash, at, signer, signature, verified_at FROM heads
             WHERE stream = ?1 GROUP BY incarnation, verified_at IS NULL ORDER BY max(head)",
        )?;
        let rows = statement.query_map([stream.to_string()], |row| {
            Ok(HeadRow {
                incarnation: Incarnation(row.get(0)?),
                seq: row.get::<_, i64>(1)?.unsigned_abs(),
                hash: hex(&row.get::<_, Vec<u8>>(2)?),
                at: Timestamp(row.get::<_, i64>(3)?.unsigned_abs()),
                signer: hex(&row.get::<_, Vec<u8>>(4)?),
                signature: hex(&row.get::<_, Vec<u8>>(5)?),
                verified_at: row.get::<_, Option<i64>>(6)?.map(|ms| Timestamp(ms.unsigned_abs())),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// A mark from six columns: incarnation, seq, hash, at, signer, signature.
pub(crate) fn mark_of(row: &rusqlite::Row<'_>, first: usize) -> Result<Mark, StoreError> {
    let head = Head {
        incarnation: Incarnation(row.get(first)?),
        seq: row.get::<_, i64>(first + 1)?.unsigned_abs(),
        hash: row.get(first + 2)?,
    };
    let at = Timestamp(row.get::<_, i64>(first + 3)?.unsigned_abs());
    Ok(Mark::of(&head, at).signed(row.get(first + 4)?, row.get(first + 5)?))
}

/// A stream from its name in the database.
pub(crate) fn parse_stream(name: &str) -> Option<Stream> {
    let site = |text: &str| text.parse::<SiteId>().ok();
    match name.split_once('/') {
        Some(("site", text)) => site(text).map(Stream::Site),
        Some(("central", text)) => site(text).map(Stream::Down),
        Some(_) => None,
        None => (name == "central").then_some(Stream::Central),
    }
}

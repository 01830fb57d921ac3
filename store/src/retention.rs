//! How long journal entries are kept, and what stays of those that are not.
//!
//! A site keeps an entry for some time after both sides have it ([`Tx::trim_journal`]); central writes the old ones
//! into an archive first ([`View::archivable`], [`View::write_archive`], [`Tx::trim_archived`]). What leaves is the
//! beginning of a chain and never its newest entry. A *checkpoint* stays: which entries were there, and the hash of
//! the last of them, so that the next one still proves to continue the chain.
//!
//! A peer that was restored may lack what was trimmed here. It is told the checkpoint, goes on from there, and
//! journals the gap.

use std::{io, time::Duration};

use minicbor::{Decode, Encode};
use rusqlite::{OptionalExtension, params};
use sync::{
    blob::Digest,
    id::{Incarnation, Origin},
    journal::{Event, Head, Mark, Stream, chain},
    time::Timestamp,
};

use crate::{StoreError, Tx, View, journal::head_of, log::signed, marks::parse_stream};

/// A site keeps entries at least this long after both sides have them.
pub const SHORTEST: Duration = Duration::from_secs(90 * 86_400);

/// How often a site notes how far both sides are, to know 90 days later since when.
const NOTED: Duration = Duration::from_secs(86_400);

/// First words of an archive.
const ARCHIVE: &str = "holdfast/journal-archive/v1";

/// The beginning of a chain, which leaves the database.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Part {
    /// Stream of the chain.
    #[n(0)]
    pub stream: Stream,
    /// Life of the database that wrote it.
    #[n(1)]
    pub incarnation: Incarnation,
    /// Number of the entry before the first; 0 at the beginning.
    #[n(2)]
    pub after: u64,
    /// Hash of that entry; zeros at the beginning.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub after_hash: [u8; 32],
    /// Number of the last entry.
    #[n(4)]
    pub upto: u64,
    /// Its hash.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

/// What an archive begins with; the entries follow in the order of the parts, each as a byte string.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ArchiveHead {
    #[n(0)]
    format: String,
    /// Every entry in it is older.
    #[n(1)]
    pub before: Timestamp,
    /// When it was made, by central's clock.
    #[n(2)]
    pub made_at: Timestamp,
    /// What is in it.
    #[n(3)]
    pub parts: Vec<Part>,
}

/// Where a chain of this replica begins again after entries that are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// Entries after this one,
    pub(crate) after: u64,
    /// up to and including this one are not here.
    pub(crate) upto: u64,
    pub(crate) hash: [u8; 32],
    /// Digest of the archive that has them.
    pub(crate) archive: Option<Digest>,
}

/// The checkpoints of a chain in order.
pub(crate) fn checkpoints(
    sql: &rusqlite::Connection,
    stream: Stream,
    incarnation: Incarnation,
) -> Result<Vec<Checkpoint>, StoreError> {
    let mut statement = sql.prepare_cached(
        "SELECT after, upto, hash, archive FROM checkpoints WHERE stream = ?1 AND incarnation = ?2 ORDER BY upto",
    )?;
    let rows = statement.query_map(params![stream.to_string(), incarnation.as_bytes()], |row| {
        Ok(Checkpoint {
            after: row.get::<_, i64>(0)?.unsigned_abs(),
            upto: row.get::<_, i64>(1)?.unsigned_abs(),
            hash: row.get(2)?,
            archive: row.get::<_, Option<[u8; 32]>>(3)?.map(Digest),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The last checkpoint of a chain: what a peer that lacks more goes on from.
pub(crate) fn last_checkpoint(
    sql: &rusqlite::Connection,
    stream: Stream,
    incarnation: Incarnation,
) -> Result<Option<Head>, StoreError> {
    let last = checkpoints(sql, stream, incarnation)?.pop();
    Ok(last.map(|it| Head { incarnation, seq: it.upto, hash: it.hash }))
}

/// Every chain of which something is here.
pub(crate) fn chains(sql: &rusqlite::Connection) -> Result<Vec<(Stream, Incarnation)>, StoreError> {
    let mut statement = sql.prepare_cached(
        "SELECT stream, incarnation FROM journal UNION SELECT stream, incarnation FROM checkpoints
         UNION SELECT stream, incarnation FROM heads ORDER BY 1, 2",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, Incarnation(row.get(1)?))))?;
    let mut found = Vec::new();
    for row in rows {
        let (name, incarnation) = row?;
        let why = || StoreError::Malformed { what: "name of a journal stream", why: name.clone() };
        found.push((parse_stream(&name).ok_or_else(why)?, incarnation));
    }
    Ok(found)
}

impl Tx<'_> {
    /// At a site: takes away what both sides have had for `keep`, by the time that central confirmed; returns how
    /// many entries that were. Meant to be called once a day or more often.
    ///
    /// # Errors
    /// Only those of the database.
    ///
    /// # Panics
    /// When `keep` is shorter than [`SHORTEST`].
    pub fn trim_journal(&mut self, keep: Duration) -> Result<u64, StoreError> {
        assert!(keep >= SHORTEST, "the journal is kept for 90 days at least");
        let Origin::Site(site) = self.state.origin else { return Ok(0) };
        // Our own clock may run years ahead; what central confirmed has come.
        let now = self.view().central_time()?;
        if now == Timestamp::default() {
            // Central was never heard: there is nothing that both have.
            return Ok(0);
        }
        let noted: Option<i64> =
            self.sql.prepare_cached("SELECT max(at) FROM journal_days")?.query_row([], |row| row.get(0))?;
        if noted.is_none_or(|at| now.since(Timestamp(at.unsigned_abs())) >= NOTED) {
            self.sql
                .prepare_cached(
                    "INSERT INTO journal_days (at, acknowledged, held) VALUES (?1,
                         ifnull((SELECT common_entry FROM peers WHERE peer = ?2), 0),
                         ifnull((SELECT max(entry) FROM journal), 0))",
                )?
                .execute(params![signed(now.0), Origin::Central.to_string()])?;
        }
        let Some(then) = now.0.checked_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX)) else {
            return Ok(0);
        };
        let day = self
            .sql
            .prepare_cached(
                "SELECT at, acknowledged, held FROM journal_days WHERE at <= ?1 ORDER BY at DESC LIMIT 1",
            )?
            .query_row([signed(then)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .optional()?;
        let Some((at, acknowledged, held)) = day else { return Ok(0) };
        let mut taken = 0;
        for (stream, incarnation) in chains(self.sql)? {
            let limit = if stream == Stream::Site(site) { acknowledged } else { held };
            let upto: Option<i64> = self
                .sql
                .prepare_cached(
                    "SELECT max(seq) FROM journal WHERE stream = ?1 AND incarnation = ?2 AND entry <= ?3",
                )?
                .query_row(params![stream.to_string(), incarnation.as_bytes(), limit], |row| row.get(0))?;
            let upto = upto.unwrap_or(0).unsigned_abs().min(self.free(stream, incarnation)?);
            taken += self.trim(stream, incarnation, upto, None)?;
        }
        self.sql.prepare_cached("DELETE FROM journal_days WHERE at < ?1")?.execute([at])?;
        Ok(taken)
    }

    /// At central: takes away what is in an archive, all or nothing; returns how many entries that were.
    ///
    /// # Errors
    /// `Malformed` when the database has changed meanwhile so that the archive does not fit any more.
    pub fn trim_archived(&mut self, head: &ArchiveHead, archive: Digest) -> Result<u64, StoreError> {
        let mut taken = 0;
        for part in &head.parts {
            let here = last_checkpoint(self.sql, part.stream, part.incarnation)?.map_or(0, |it| it.seq);
            if (here, self.hash_at(part.stream, part.incarnation, part.upto)?)
                != (part.after, Some(part.hash))
                || self.free(part.stream, part.incarnation)? < part.upto
            {
                let why = format!("{} has changed since it was written", part.stream);
                return Err(StoreError::Malformed { what: "archive of the journal", why });
            }
            taken += self.trim(part.stream, part.incarnation, part.upto, Some(archive))?;
        }
        Ok(taken)
    }

    /// Up to which entry a chain can lose its beginning: not its newest, and none that a log still tells.
    fn free(&self, stream: Stream, incarnation: Incarnation) -> Result<u64, StoreError> {
        self.view().free(stream, incarnation)
    }

    fn hash_at(
        &self,
        stream: Stream,
        incarnation: Incarnation,
        seq: u64,
    ) -> Result<Option<[u8; 32]>, StoreError> {
        Ok(self
            .sql
            .prepare_cached("SELECT hash FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq = ?3")?
            .query_row(params![stream.to_string(), incarnation.as_bytes(), signed(seq)], |row| row.get(0))
            .optional()?)
    }

    fn trim(
        &mut self,
        stream: Stream,
        incarnation: Incarnation,
        upto: u64,
        archive: Option<Digest>,
    ) -> Result<u64, StoreError> {
        let after = last_checkpoint(self.sql, stream, incarnation)?.map_or(0, |it| it.seq);
        let Some(hash) = self.hash_at(stream, incarnation, upto)? else { return Ok(0) };
        if upto <= after {
            return Ok(0);
        }
        let taken = self
            .sql
            .prepare_cached("DELETE FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq <= ?3")?
            .execute(params![stream.to_string(), incarnation.as_bytes(), signed(upto)])?;
        self.checkpoint(stream, incarnation, after, &Head { incarnation, seq: upto, hash }, archive)?;
        let stream = stream.to_string();
        self.journal(Event::JournalTrimmed {
            stream,
            incarnation,
            after,
            upto,
            hash: Digest(hash),
            archive,
        })?;
        Ok(taken as u64)
    }

    fn checkpoint(
        &self,
        stream: Stream,
        incarnation: Incarnation,
        after: u64,
        head: &Head,
        archive: Option<Digest>,
    ) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO checkpoints (stream, incarnation, after, upto, hash, at, archive)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                stream.to_string(),
                incarnation.as_bytes(),
                signed(after),
                signed(head.seq),
                head.hash,
                signed(self.given.now.0),
                archive.map(|it| it.0)
            ])?;
        Ok(())
    }

    /// The peer does not keep what is up to a mark any more: the chain goes on from there, and what is missing
    /// is missing for ever.
    pub(crate) fn skip_to(&mut self, stream: Stream, mark: &Mark) -> Result<(), StoreError> {
        let Mark { incarnation, seq, hash, .. } = *mark;
        let after = head_of(self.sql, stream, incarnation)?.map_or(0, |head| head.seq);
        if seq <= after {
            return Ok(());
        }
        self.checkpoint(stream, incarnation, after, &Head { incarnation, seq, hash }, None)?;
        tracing::warn!(%stream, after, upto = seq, "journal entries are missing: their writer keeps them no more");
        self.journal(Event::JournalGap { stream: stream.to_string(), incarnation, after, upto: seq })
    }
}

impl View<'_> {
    fn free(&self, stream: Stream, incarnation: Incarnation) -> Result<u64, StoreError> {
        let of = params![stream.to_string(), incarnation.as_bytes()];
        let newest: Option<i64> = self
            .sql
            .prepare_cached("SELECT max(seq) FROM journal WHERE stream = ?1 AND incarnation = ?2")?
            .query_row(of, |row| row.get(0))?;
        let told: Option<i64> = self
            .sql
            .prepare_cached(
                "SELECT min(seq) FROM log JOIN journal ON journal.entry = log.entry
                 JOIN peers ON peers.peer = log.peer AND log.position > peers.acknowledged
                 WHERE log.entry IS NOT NULL AND stream = ?1 AND incarnation = ?2",
            )?
            .query_row(of, |row| row.get(0))?;
        let bound = newest.into_iter().chain(told).min().unwrap_or(0);
        Ok(bound.unsigned_abs().saturating_sub(1))
    }

    /// The beginnings of all chains whose entries are older than `before`, may leave the database, and are at
    /// most `limit` in all.
    ///
    /// # Errors
    /// Those of the database; `Chain` when an entry cannot be read.
    pub fn archivable(&self, before: Timestamp, limit: u64) -> Result<Vec<Part>, StoreError> {
        let mut parts = Vec::new();
        let mut left = limit;
        for (stream, incarnation) in chains(self.sql)? {
            let last = last_checkpoint(self.sql, stream, incarnation)?;
            let (after, after_hash) = last.map_or((0, [0; 32]), |head| (head.seq, head.hash));
            let free = self.free(stream, incarnation)?;
            let mut statement = self.sql.prepare_cached(
                "SELECT seq, hash, bytes FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq <= ?3
                 ORDER BY seq",
            )?;
            let mut rows =
                statement.query(params![stream.to_string(), incarnation.as_bytes(), signed(free)])?;
            let mut end: Option<(u64, [u8; 32])> = None;
            while let Some(row) = rows.next()? {
                let seq = row.get::<_, i64>(0)?.unsigned_abs();
                // A chain with a gap in its middle is archived in two parts, one after the other.
                let follows = seq == end.map_or(after, |(seq, _)| seq) + 1;
                let entry = chain::decode(row.get_ref(2)?.as_blob().unwrap_or_default())?;
                if !follows || entry.at.timestamp() >= before || left == 0 {
                    break;
                }
                end = Some((seq, row.get(1)?));
                left -= 1;
            }
            if let Some((upto, hash)) = end {
                parts.push(Part { stream, incarnation, after, after_hash, upto, hash });
            }
        }
        Ok(parts)
    }

    /// Writes an archive of `parts` and returns how many entries are in it.
    ///
    /// # Errors
    /// Those of the database, and `File` when `out` does not take it.
    pub fn write_archive(&self, head: &ArchiveHead, out: &mut impl io::Write) -> Result<u64, StoreError> {
        let failed = |error: io::Error| StoreError::Malformed {
            what: "archive of the journal",
            why: error.to_string(),
        };
        let encoded = minicbor::to_vec(head).expect("encoding into memory cannot fail");
        out.write_all(&encoded).map_err(failed)?;
        let mut written = 0;
        for part in &head.parts {
            let mut statement = self.sql.prepare_cached(
                "SELECT bytes FROM journal WHERE stream = ?1 AND incarnation = ?2 AND seq > ?3 AND seq <= ?4
                 ORDER BY seq",
            )?;
            let mut rows = statement.query(params![
                part.stream.to_string(),
                part.incarnation.as_bytes(),
                signed(part.after),
                signed(part.upto)
            ])?;
            while let Some(row) = rows.next()? {
                let bytes = row.get_ref(0)?.as_blob().unwrap_or_default();
                let item = minicbor::to_vec(minicbor::bytes::ByteVec::from(bytes.to_vec()))
                    .expect("encoding into memory cannot fail");
                out.write_all(&item).map_err(failed)?;
                written += 1;
            }
        }
        Ok(written)
    }
}

impl ArchiveHead {
    /// The head of an archive that is made at `made_at`.
    pub fn new(before: Timestamp, made_at: Timestamp, parts: Vec<Part>) -> Self {
        ArchiveHead { format: ARCHIVE.into(), before, made_at, parts }
    }

    /// Reads an archive and checks that every part of it is a piece of a chain, without gap; returns its head and
    /// the entries.
    ///
    /// # Errors
    /// What is wrong with it, and with which entry first.
    pub fn read(bytes: &[u8]) -> Result<(Self, Vec<chain::Entry>), String> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let head: Self =
            decoder.decode().map_err(|error| format!("it is no archive of a journal: {error}"))?;
        if head.format != ARCHIVE {
            return Err(format!("it is of another format, `{}`", head.format));
        }
        let mut entries = Vec::new();
        for part in &head.parts {
            let Part { stream, incarnation, after, after_hash, upto, hash } = *part;
            let mut last = Head { incarnation, seq: after, hash: after_hash };
            while last.seq < upto {
                let next = last.seq + 1;
                let at = |why: &dyn std::fmt::Display| format!("entry {next} of {stream}: {why}");
                let bytes = decoder.bytes().map_err(|error| at(&error))?;
                let (entry, head) = chain::follow(stream, Some(&last), bytes).map_err(|error| at(&error))?;
                if head.incarnation != incarnation {
                    return Err(at(&"it is of another life of the database"));
                }
                last = head;
                entries.push(entry);
            }
            if last.hash != hash {
                return Err(format!("entry {upto} of {stream} is not the one that the archive ends with"));
            }
        }
        match decoder.position() == bytes.len() {
            true => Ok((head, entries)),
            false => Err("something follows after its last entry".into()),
        }
    }
}

#[cfg(test)]
mod tests;

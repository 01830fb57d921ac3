//! Lives of a database.
//!
//! An incarnation is one life of a database, and the actor of every change that it writes. A database that
//! went back in time must never go on under the same one: two histories of one actor fork documents for
//! ever. So the incarnation and the number of starts lie beside the database too, and another life begins
//! where the copy is of another life or counts more starts, where the virtual machine is of another
//! generation, or where a peer knows more of us than we do. A clock that went back shows none of that.
//! Then nothing is ordered or followed until somebody confirms, and the logs of both directions begin anew
//! (see `join`).
//!
//! Central also keeps a key beside its database. What it tells is sealed with it, so that a central that
//! was restored knows its own log and its own changes again, whoever brings them back.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, TransactionBehavior, params};
use sync::{
    id::{DocumentId, Incarnation, Origin, hex},
    journal::Event,
    policy::Reason,
    time::{Clock, Hlc, Timestamp},
    wire::{Cursor, Seal},
};

use crate::{
    Given, Opening, StoreError, Tx, authority,
    open::Open,
    quota::Quotas,
    scope, view,
    writer::{KNOWN_TIME, RESTORED, State, meta, set_meta},
};

/// The generation of the virtual machine at the last start.
const GENERATION: &str = "generation";

/// Decides which incarnation lives in the database from now on.
pub(crate) fn settle(
    connection: &mut Connection,
    opening: &Opening,
    generation: Option<&str>,
) -> Result<State, StoreError> {
    let beside = opening.folder.join("incarnation");
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = meta(&transaction, "origin")?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let ours = opening.origin.to_string();
    if let Some(found) = &found
        && *found != ours
    {
        return Err(StoreError::Foreign { found: found.clone(), expected: ours });
    }
    let inside = meta(&transaction, "incarnation")?.and_then(|bytes| Incarnation::from_slice(&bytes));
    let starts =
        meta(&transaction, "starts")?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
    let outside = read_beside(&beside)?;
    let ended = match (inside, &outside) {
        (None, _) => None,
        (Some(inside), outside) => {
            let here = outside.as_ref().is_some_and(|outside| is_same_life(outside, inside, starts));
            why_life_ended(&transaction, here, generation)?
        }
    };
    if let Some(why) = &ended {
        set_meta(&transaction, "suspended", why.as_bytes())?;
        set_meta(&transaction, "suspended_at", &opening.given.now.0.to_be_bytes())?;
        begin_all_logs(&transaction)?;
        transaction.execute("UPDATE documents SET actor = NULL", [])?;
    }
    if let Some(generation) = generation {
        set_meta(&transaction, GENERATION, generation.as_bytes())?;
    }
    transaction.execute("DELETE FROM meta WHERE key = ?1", [RESTORED])?;
    let incarnation = match inside {
        Some(inside) if ended.is_none() => inside,
        Some(_) | None => fresh(&opening.given),
    };
    set_meta(&transaction, "starts", &(starts + 1).to_be_bytes())?;
    set_meta(&transaction, "origin", ours.as_bytes())?;
    set_meta(&transaction, "incarnation", incarnation.as_bytes())?;
    authority::register(&transaction, incarnation.as_bytes(), opening.origin)?;
    let last = meta(&transaction, "clock")?
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(Hlc::default(), |bytes| Hlc(i64::from_be_bytes(bytes)));
    let built = meta(&transaction, "views")?.and_then(|bytes| bytes.try_into().ok()).map(i64::from_be_bytes);
    if built != Some(view::VERSION) {
        view::rebuild(&transaction)?;
        set_meta(&transaction, "views", &view::VERSION.to_be_bytes())?;
    }
    let key = match opening.origin {
        Origin::Central => Some(seal_key(&opening.folder.join("seal"), &opening.given)?),
        Origin::Site(_) => None,
    };
    // A new life is written beside before it is committed: if only one of both is written, the next start
    // sees that they differ and begins another one, which is always safe. The number of starts is written
    // after it: the copy then counts fewer starts than the database, never more.
    if inside != Some(incarnation) {
        write_beside(&beside, &format!("{} {starts}", hex(incarnation.as_bytes())))?;
    }
    let known = meta(&transaction, KNOWN_TIME)?.and_then(|bytes| bytes.try_into().ok());
    let mut state = State {
        origin: opening.origin,
        incarnation,
        beside,
        starts: starts + 1,
        key,
        clock: Clock::resume(last),
        known: Timestamp(known.map_or(0, u64::from_be_bytes)),
        quotas: Quotas::default(),
        open: Open::new(opening.origin),
    };
    if let Some(reason) = ended {
        note_life(&transaction, &mut state, &opening.given, reason)?;
    }
    transaction.commit()?;
    write_beside(&state.beside, &format!("{} {}", hex(incarnation.as_bytes()), starts + 1))?;
    Ok(state)
}

/// Records that another life began at this start.
fn note_life(sql: &Connection, state: &mut State, given: &Given, reason: String) -> Result<(), StoreError> {
    let incarnation = state.incarnation;
    let mut tx = Tx {
        sql,
        state: &mut *state,
        given: given.clone(),
        author: None,
        touched: BTreeSet::new(),
        grown: BTreeMap::new(),
        noted: Cell::new(false),
        known: RefCell::new(None),
        was_asked: false,
    };
    tx.journal(Event::LifeBegun { incarnation, reason })?;
    set_meta(sql, "clock", &state.clock.last().0.to_be_bytes())
}

impl Tx<'_> {
    /// Begins another life of the database: another actor, logs anew, and nothing is ordered or followed
    /// until [`Tx::resume_orders`].
    pub fn begin_life(&mut self, why: &Reason) -> Result<(), StoreError> {
        let incarnation = fresh(&self.given);
        set_meta(self.sql, "incarnation", incarnation.as_bytes())?;
        authority::register(self.sql, incarnation.as_bytes(), self.state.origin)?;
        self.suspend_orders(why)?;
        begin_all_logs(self.sql)?;
        // Those, too, may have written what is not here any more.
        self.sql.execute("UPDATE documents SET actor = NULL", [])?;
        // As at the start: a copy that disagrees with the database is safe, one that agrees wrongly is not.
        write_beside(&self.state.beside, &format!("{} {}", hex(incarnation.as_bytes()), self.state.starts))?;
        self.state.incarnation = incarnation;
        self.author = None;
        self.journal(Event::LifeBegun { incarnation, reason: why.to_string() })
    }

    /// Follows no order any more until [`Tx::resume_orders`], and says why.
    pub fn suspend_orders(&mut self, why: &Reason) -> Result<(), StoreError> {
        set_meta(self.sql, "suspended", why.as_str().as_bytes())?;
        set_meta(self.sql, "suspended_at", &self.given.now.0.to_be_bytes())
    }

    /// Follows orders again, or at central gives them. Tells whether they were not followed; nothing happens
    /// otherwise.
    pub fn resume_orders(&mut self) -> Result<bool, StoreError> {
        let by = self.given.by.clone();
        self.resume_orders_by(&by)
    }

    /// The same; the journal names `by`, who may have confirmed it elsewhere.
    pub(crate) fn resume_orders_by(&mut self, by: &str) -> Result<bool, StoreError> {
        let resumed = self.sql.execute("DELETE FROM meta WHERE key = 'suspended'", [])? > 0;
        if resumed {
            self.sql.execute("DELETE FROM meta WHERE key = 'suspended_at'", [])?;
            let incarnation = self.state.incarnation;
            let acts = std::mem::replace(&mut self.author()?.by, by.to_string());
            let noted = self.journal(Event::OrdersResumed { incarnation });
            self.author()?.by = acts;
            noted?;
            self.recovered()?;
        }
        Ok(resumed)
    }

    /// Marks a position of one of the logs that we began with a peer, at central.
    pub(crate) fn seal_cursor(
        &self,
        peer: Origin,
        life: Incarnation,
        log: u64,
        cursor: Cursor,
    ) -> Option<Seal> {
        let peer = peer.to_string();
        self.seal(&[
            b"cursor",
            peer.as_bytes(),
            life.as_bytes(),
            &log.to_be_bytes(),
            &cursor.position.to_be_bytes(),
            &cursor.rolling.0,
        ])
    }

    /// Marks a change that we tell, at central.
    pub(crate) fn seal_change(&self, document: DocumentId, hash: &[u8; 32]) -> Option<Seal> {
        self.seal(&[b"change", document.as_bytes(), hash])
    }

    fn seal(&self, parts: &[&[u8]]) -> Option<Seal> {
        let mut hasher = blake3::Hasher::new_keyed(self.state.key.as_ref()?);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Some(Seal(hasher.finalize().as_bytes()[..16].try_into().expect("a BLAKE3 digest has 32 bytes")))
    }
}

/// Begins the logs of both directions with a peer anew. What it has acknowledged of our journal is kept.
///
/// Central counts them: positions of a site that went back to before a log was begun are none of that log, even
/// where they would fit.
pub(crate) fn begin_logs(sql: &Connection, peer: Origin) -> Result<(), StoreError> {
    let counted = u8::from(peer != Origin::Central);
    let peer = peer.to_string();
    sql.prepare_cached("INSERT OR IGNORE INTO peers (peer) VALUES (?1)")?.execute([&peer])?;
    sql.prepare_cached(
        "UPDATE peers SET pulled = 0, pulled_rolling = zeroblob(16), seal = NULL, acknowledged = 0,
             life = NULL, anew = 1, logs = logs + ?2, agrees = NULL, returned = 0
         WHERE peer = ?1",
    )?
    .execute(params![peer, counted])?;
    sql.prepare_cached("DELETE FROM log WHERE peer = ?1")?.execute([&peer])?;
    scope::begin_anew(sql, &peer)
}

fn begin_all_logs(sql: &Connection) -> Result<(), StoreError> {
    let peers: Vec<String> = {
        let mut statement = sql.prepare("SELECT peer FROM peers UNION SELECT peer FROM log")?;
        let rows = statement.query_map(params![], |row| row.get(0))?;
        rows.collect::<Result<_, _>>()?
    };
    for peer in peers {
        begin_logs(sql, peer.parse()?)?;
    }
    Ok(())
}

/// Why the life that stands in a database ended, if it did. `here`: what lies beside it is of the same life.
fn why_life_ended(
    sql: &Connection,
    here: bool,
    generation: Option<&str>,
) -> Result<Option<String>, StoreError> {
    if let Some(mark) = meta(sql, RESTORED)? {
        return Ok(Some(String::from_utf8_lossy(&mark).into_owned()));
    }
    if !here {
        let why = "the database is not the one that ran here last; it was restored or copied";
        return Ok(Some(why.into()));
    }
    let last = meta(sql, GENERATION)?;
    if let (Some(last), Some(generation)) = (last, generation)
        && last != generation.as_bytes()
    {
        let why =
            "the virtual machine is of another generation than at the last start; it was restored or cloned";
        return Ok(Some(why.into()));
    }
    Ok(None)
}

/// Whether the copy beside the database says that this very database ran here last.
fn is_same_life(beside: &str, incarnation: Incarnation, starts: u64) -> bool {
    let (life, counted) = beside.split_once(' ').unwrap_or((beside, "0"));
    life == hex(incarnation.as_bytes()) && counted.parse().is_ok_and(|counted: u64| counted <= starts)
}

fn fresh(given: &Given) -> Incarnation {
    let mut hasher = blake3::Hasher::new_derive_key("holdfast/incarnation/v1");
    hasher.update(&given.entropy);
    Incarnation(hasher.finalize().as_bytes()[..16].try_into().expect("a BLAKE3 digest has 32 bytes"))
}

/// The key that central seals with; made once.
fn seal_key(path: &Path, given: &Given) -> Result<[u8; 32], StoreError> {
    if let Some(text) = read_beside(path)? {
        let malformed = || StoreError::Malformed { what: "seal key", why: "it is not 64 digits".into() };
        let digits = text.as_bytes();
        let mut key = [0; 32];
        if digits.len() != 64 {
            return Err(malformed());
        }
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| malformed())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        return Ok(key);
    }
    let key = blake3::derive_key("holdfast/seal/v1", &given.entropy);
    write_beside(path, &hex(&key))?;
    Ok(key)
}

#[expect(clippy::disallowed_methods, reason = "these files lie beside the database on purpose")]
fn read_beside(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => {
            Err(StoreError::File { action: "read", path: path.to_path_buf(), source: Arc::new(source) })
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "these files lie beside the database on purpose"
)]
fn write_beside(path: &Path, text: &str) -> Result<(), StoreError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        let partial = path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        // One of them is a secret.
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source: std::io::Error| StoreError::File {
        action: "write",
        path: path.to_path_buf(),
        source: Arc::new(source),
    })
}

//! What disks and people do to a replica's files.

use std::path::Path;

use rusqlite::{Connection, params};

/// Flips one bit in the stored heads of one document, as a failing disk would.
///
/// # Errors
/// When the database cannot be opened or holds no document.
pub fn flip_a_head(database: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open(database)?;
    let (doc, mut heads): (i64, Vec<u8>) = connection.query_row(
        "SELECT doc, heads FROM documents WHERE changes > 0 ORDER BY doc LIMIT 1",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    heads[7] ^= 0x10;
    connection.execute("UPDATE documents SET heads = ?2 WHERE doc = ?1", params![doc, heads])?;
    Ok(())
}

/// Pretends that a newer program has written the database; returns the version that it had.
///
/// # Errors
/// When the database cannot be opened.
pub fn pretend_newer(database: &Path) -> rusqlite::Result<i64> {
    let connection = Connection::open(database)?;
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.pragma_update(None, "user_version", 4_000)?;
    Ok(found)
}

/// Says that the database has this version.
///
/// # Errors
/// When the database cannot be opened.
pub fn set_version(database: &Path, version: i64) -> rusqlite::Result<()> {
    Connection::open(database)?.pragma_update(None, "user_version", version)
}

/// Lets two days pass for every enrolment token that was not used; returns how many those are.
///
/// # Errors
/// When the database cannot be opened or is not central's.
pub fn age_tokens(database: &Path) -> rusqlite::Result<usize> {
    let two_days_ms = 2 * 86_400_000;
    Connection::open(database)?.execute(
        "UPDATE tokens SET created_at = created_at - ?1, expires_at = expires_at - ?1 WHERE spent_at IS NULL",
        [two_days_ms],
    )
}

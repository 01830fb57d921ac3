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

/// Pretends that a newer program has written the database.
///
/// # Errors
/// When the database cannot be opened.
pub fn pretend_newer(database: &Path) -> rusqlite::Result<()> {
    Connection::open(database)?.pragma_update(None, "user_version", 4_000)
}

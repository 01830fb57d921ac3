//! The tables, and how an older database becomes a newer one.
//!
//! `PRAGMA user_version` counts the steps that were taken. A database that has taken more steps than this
//! program knows is refused, untouched: a newer program has data in it that we would not keep.

use rusqlite::{Connection, TransactionBehavior, config::DbConfig};

use crate::StoreError;

/// One step per version, in order; a step that was released is never changed.
const STEPS: &[&str] = &[include_str!("v1.sql")];

/// Pages that the writer keeps in memory, in KiB. A batch of a peer's log touches some thousand; those that do not fit
/// are written before the commit and read again.
const CACHE_KIB: i64 = 16 << 10;

/// Number of steps this program knows.
pub(crate) fn version() -> i64 {
    i64::try_from(STEPS.len()).expect("few steps")
}

/// Sets a connection up and brings the database to this program's version.
pub(crate) fn prepare(connection: &mut Connection) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > version() {
        return Err(StoreError::Newer { found, known: version() });
    }
    settle_plans(connection)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // Each command can be taken back by itself; what that takes is kept in memory and not in a file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // Branch offices lose power: NORMAL would lose the last commits, which were acknowledged already.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (number, step) in (1..).zip(STEPS).skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", number)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Lets a statement keep its plan whatever is bound to it. Otherwise SQLite looks at the values of every
/// `?1 IS NULL OR …` and plans anew each time that they change, which cost a tenth of all work.
pub(crate) fn settle_plans(connection: &Connection) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How SQLite finds the rows of a query.
    fn plan(connection: &Connection, query: &str) -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
        // Nothing has to be bound to what is not run.
        let steps = statement.raw_query().mapped(|row| row.get(3));
        steps.collect::<Result<Vec<String>, _>>().unwrap().join("; ")
    }

    /// What is asked for every change and every acknowledgement must not take longer where a fleet is larger.
    #[test]
    fn no_table_that_grows_with_the_fleet_is_walked_for_a_change() {
        let mut connection = Connection::open_in_memory().unwrap();
        prepare(&mut connection).unwrap();
        for (query, index) in [
            ("SELECT peer FROM scope WHERE doc = ?1 AND inside = 1 ORDER BY peer", "scope_by_document"),
            ("SELECT doc, id FROM documents WHERE dropped = 1", "documents_dropped"),
            ("SELECT change FROM changes WHERE doc = ?1 AND change > ?2", "changes_by_document"),
            ("SELECT 1 FROM parked WHERE id = ?1", "parked_by_document"),
            ("SELECT 1 FROM view_macs WHERE doc = ?1", "view_macs_by_document"),
        ] {
            let plan = plan(&connection, query);
            assert!(plan.contains(index), "{query}: {plan}");
        }
    }
}

//! What people decide about what was set aside.

use sync::{
    document::Kind,
    id::{Origin, SiteId},
    ingress,
    journal::Event,
};

use super::{check_text, refused, unknown};
use crate::{
    StoreError, Tx,
    intent::Intent,
    view::{QuarantineDetail, detail},
};

/// At central: writes what a change says that was set aside, register by register, as the person who decides
/// so, and takes it out. The bytes themselves are never used.
///
/// # Errors
/// `Unknown` item; `Refused` when it cannot be read, or says what nobody else can say. Nothing is changed then.
pub fn release(tx: &mut Tx<'_>, item: u64, why: &str) -> Result<QuarantineDetail, StoreError> {
    check_text("why", why)?;
    let (found, bytes) = find(tx, item)?;
    let site = delivered_by(tx, &found)?;
    let Ok(kind) = found.row.kind.parse::<Kind>() else {
        return refused(format!(
            "item {item} is no change of a document that is known here; export it, or dismiss it"
        ));
    };
    let document = found.row.document;
    let writes = ingress::parse(&bytes).and_then(|parsed| ingress::registers(kind, document, &parsed));
    let Ok(writes) = writes else {
        let reason = found.unreadable.unwrap_or_default();
        return refused(format!("item {item} cannot be read, so nobody knows what was meant: {reason}"));
    };
    let mut intents = Vec::new();
    for write in &writes {
        let Some(schema) = write.schema else {
            return refused(format!("`{}` of a {kind} is not known to this program", write.path()));
        };
        let (container, key, fields) = (write.container, write.key.clone(), write.fields.clone());
        intents.push(Intent { container, key, schema, fields });
    }
    let name = tx.view().site(site)?.map_or_else(|| site.to_string(), |row| row.name);
    let said = writes.first().map(|write| write.written.why.as_str()).filter(|why| !why.is_empty());
    let said = said.map_or_else(String::new, |said| format!(" ({said})"));
    let reason = format!("{why}; written by {} at {name}{said}, and released", author(&found));
    let by = tx.by().to_string();
    tx.write_intents(site, (kind, document), &intents, &by, &reason)?;
    leave(tx, &found, "released", why)?;
    Ok(found)
}

/// Takes an item out for good. What it says is not done.
///
/// # Errors
/// `Unknown` item.
pub fn dismiss(tx: &mut Tx<'_>, item: u64, why: &str) -> Result<QuarantineDetail, StoreError> {
    check_text("why", why)?;
    let (found, _) = find(tx, item)?;
    leave(tx, &found, "dismissed", why)?;
    Ok(found)
}

fn find(tx: &Tx<'_>, item: u64) -> Result<(QuarantineDetail, Vec<u8>), StoreError> {
    let found = tx.view().quarantine_found(item)?;
    let (row, bytes) = found.ok_or_else(|| unknown("quarantined item", item))?;
    Ok((detail(row, &bytes), bytes))
}

fn delivered_by(tx: &Tx<'_>, found: &QuarantineDetail) -> Result<SiteId, StoreError> {
    match (tx.origin(), found.row.peer) {
        (Origin::Central, Origin::Site(site)) => Ok(site),
        (_, _) => refused("what central wrote is decided at central"),
    }
}

/// Who wrote it, as it says of itself.
fn author(found: &QuarantineDetail) -> String {
    let entry = found.entry.as_ref().map(|entry| entry.by.clone());
    found.registers.first().map(|register| register.by.clone()).or(entry).unwrap_or_default()
}

fn leave(
    tx: &mut Tx<'_>,
    found: &QuarantineDetail,
    decision: &'static str,
    why: &str,
) -> Result<(), StoreError> {
    let row = &found.row;
    tx.leave_quarantine(row.item, row.peer, row.size)?;
    tx.journal(Event::QuarantineDecided {
        item: row.item,
        peer: row.peer.to_string(),
        kind: row.kind.clone(),
        document: row.document,
        digest: found.digest,
        decision: decision.into(),
        author: author(found),
        why: why.to_string(),
    })
}

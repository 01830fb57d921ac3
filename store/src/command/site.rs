//! Sites at central: describing them and their settings.

use std::collections::BTreeMap;

use sync::{
    document::{
        contested,
        site::{self, Effective, Identity, Resumed},
    },
    id::{Origin, SiteId},
    journal::Event,
};

use super::{check_text, refused, register_set, settings, unknown};
use crate::{
    StoreError, Tx,
    view::SiteRow,
    writer::{meta, set_meta},
};

pub use super::settings::SettingsEdit;

/// Names the epoch whose adoption is in the journal.
const FOLLOWED: &str = "followed";

/// Describes a new site.
///
/// # Errors
/// `Refused` when the name is empty, too long or taken.
pub fn create(tx: &mut Tx<'_>, name: &str, description: &str, location: &str) -> Result<SiteId, StoreError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
        return refused(format!(
            "`{name}` is no name for a site: use 1 to 63 of the letters a-z, digits and hyphens"
        ));
    }
    if let Some(site) = tx.view().site_by_name(name)? {
        return refused(format!("site {} is called `{name}` already", site.id));
    }
    check_text("description", description)?;
    check_text("location", location)?;
    let id: SiteId = tx.new_id()?.into();
    let identity = Identity {
        name: name.to_string(),
        description: description.to_string(),
        location: location.to_string(),
        console_url: String::new(),
        network_segments: BTreeMap::new(),
    };
    let effective = Effective { epoch: 1, ..Effective::default() };
    tx.write(site::KIND, id.into(), |edit| {
        edit.set(&site::identity(), &identity, "created");
        edit.set(&site::membership(), &site::Membership { group: None }, "created");
        edit.set(&site::effective(), &effective, "defaults");
    })?;
    tx.mint_epoch(id, &effective)?;
    tx.journal_for(id, Event::SiteCreated { site: id, name: name.to_string() })?;
    Ok(id)
}

/// Changes own settings of a site and materialises the effective ones under the next epoch. Nothing happens where it
/// says that already.
///
/// # Errors
/// `Unknown` site; `Refused` when a value is out of its range.
pub fn set(tx: &mut Tx<'_>, id: SiteId, edit: &SettingsEdit, why: &str) -> Result<SiteRow, StoreError> {
    settings::set_site(tx, id, edit, why)
}

/// At central: confirms that the site may follow its orders again, in the life of its database that central
/// knows. The site does so when it hears of it; a later life is not meant.
///
/// # Errors
/// `Unknown` site; `Refused` when it has not connected since its database, or central's, began its life.
pub fn resume(tx: &mut Tx<'_>, id: SiteId, why: &str) -> Result<SiteRow, StoreError> {
    let row = tx.view().site(id)?.ok_or_else(|| unknown("site", id))?;
    check_text("why", why)?;
    let Some(incarnation) = tx.view().peer(Origin::Site(id))?.life else {
        return refused(format!(
            "site {} has not connected yet, so nobody knows in which database it lives; wait for it, or run \
             `holdfast-site resume` there",
            row.name
        ));
    };
    tx.write(site::KIND, id.into(), |edit| {
        edit.set(&site::resumed(), &Resumed { incarnation }, why);
    })?;
    tx.journal_for(id, register_set(site::KIND, id, "resumed", incarnation))?;
    Ok(row)
}

/// At a site: follows orders again if central says so of its present life, in the site's document `heard`.
pub(crate) fn follow_resumed(tx: &mut Tx<'_>, heard: SiteId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Site(heard) || tx.view().suspended()?.is_none() {
        return Ok(());
    }
    let life = tx.state.incarnation;
    let by = tx.with_document(site::KIND, heard.into(), |document| {
        let resumed = contested::read(document, &site::resumed());
        let meant = resumed
            .sides()
            .iter()
            .find(|side| side.value.incarnation == life && side.written.site == Origin::Central);
        meant.map(|side| side.written.by.clone())
    })?;
    match by.flatten() {
        Some(by) => tx.resume_orders_by(&by).map(drop),
        None => Ok(()),
    }
}

/// At a site: notes in the journal that another epoch is followed from here on, once.
///
/// This stands in the transaction that brings the settings: central judges what the site writes by the
/// entries before it, so nothing may be written between the settings and their entry.
pub(crate) fn follow_epoch(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let Origin::Site(_) = tx.origin() else { return Ok(()) };
    let epoch = tx.view().policy_epoch()?;
    let followed = meta(tx.sql, FOLLOWED)?.and_then(|bytes| bytes.try_into().ok());
    if epoch > followed.map_or(0, u64::from_be_bytes) {
        set_meta(tx.sql, FOLLOWED, &epoch.to_be_bytes())?;
        tx.journal(Event::EpochAdopted { epoch })?;
    }
    Ok(())
}

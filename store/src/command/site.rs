//! Sites at central: describing them and their settings.

use std::collections::BTreeMap;

use sync::{
    document::{
        contested,
        site::{self, Effective, Identity, Resumed, Setting, UnknownMachines},
    },
    id::{Origin, SiteId},
    journal::Event,
    policy::Autonomy,
};

use super::{check_text, refused, register_set, unknown};
use crate::{
    StoreError, Tx,
    view::SiteRow,
    writer::{meta, set_meta},
};

/// Names the epoch whose adoption is in the journal.
const FOLLOWED: &str = "followed";

/// Settings that are to change; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsEdit {
    /// How much the site may decide by itself.
    pub autonomy: Option<Autonomy>,
    /// What an unknown machine is given.
    pub unknown_machines: Option<UnknownMachines>,
    /// Whether boot requests are answered at all.
    pub pxe_enabled: Option<bool>,
    /// Seconds between heartbeats, `1..=300`.
    pub heartbeat_s: Option<u64>,
    /// Longest life of an order in seconds, `7_200..=259_200`.
    pub order_max_s: Option<u64>,
    /// Documents that the site may bring into being at central.
    pub quota_documents: Option<u64>,
    /// Changes and journal entries per second that central takes from it, `1..=100_000`.
    pub quota_changes_s: Option<u64>,
    /// Bytes of them per day, at least 1 MiB.
    pub quota_bytes_day: Option<u64>,
}

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

/// Changes own settings of a site and materialises the effective ones under the next epoch.
///
/// # Errors
/// `Unknown` site; `Refused` when a value is out of its range.
pub fn set(tx: &mut Tx<'_>, id: SiteId, edit: &SettingsEdit, why: &str) -> Result<SiteRow, StoreError> {
    let row = tx.view().site(id)?.ok_or_else(|| unknown("site", id))?;
    if edit.heartbeat_s.is_some_and(|s| !(1..=300).contains(&s)) {
        return refused("`heartbeat_s` is 1 to 300 seconds");
    }
    if edit.order_max_s.is_some_and(|s| !(7_200..=259_200).contains(&s)) {
        return refused("`order_max_s` is 7200 to 259200 seconds");
    }
    if edit.quota_changes_s.is_some_and(|changes| !(1..=100_000).contains(&changes)) {
        return refused("`quota_changes_s` is 1 to 100000 changes a second");
    }
    if edit.quota_bytes_day.is_some_and(|bytes| bytes < 1 << 20) {
        return refused("`quota_bytes_day` is at least 1048576 bytes");
    }
    let before = row.effective;
    let effective = Effective {
        // Another life of central may have made epochs that only the site still knows.
        epoch: before.epoch.max(tx.highest_epoch(id)?) + 1,
        autonomy: edit.autonomy.unwrap_or(before.autonomy),
        unknown_machines: edit.unknown_machines.unwrap_or(before.unknown_machines),
        pxe_enabled: edit.pxe_enabled.unwrap_or(before.pxe_enabled),
        heartbeat_s: edit.heartbeat_s.unwrap_or(before.heartbeat_s),
        order_max_s: edit.order_max_s.unwrap_or(before.order_max_s),
        quota_documents: edit.quota_documents.unwrap_or(before.quota_documents),
        quota_changes_s: edit.quota_changes_s.unwrap_or(before.quota_changes_s),
        quota_bytes_day: edit.quota_bytes_day.unwrap_or(before.quota_bytes_day),
    };
    let mut own: Vec<(&str, String)> = Vec::new();
    own.extend(edit.autonomy.map(|value| ("autonomy", value.to_string())));
    own.extend(edit.unknown_machines.map(|value| ("unknown_machines", value.to_string())));
    own.extend(edit.pxe_enabled.map(|value| ("pxe_enabled", value.to_string())));
    own.extend(edit.heartbeat_s.map(|value| ("heartbeat_s", value.to_string())));
    own.extend(edit.order_max_s.map(|value| ("order_max_s", value.to_string())));
    own.extend(edit.quota_documents.map(|value| ("quota_documents", value.to_string())));
    own.extend(edit.quota_changes_s.map(|value| ("quota_changes_s", value.to_string())));
    own.extend(edit.quota_bytes_day.map(|value| ("quota_bytes_day", value.to_string())));
    tx.write(site::KIND, id.into(), |edit| {
        for (key, value) in &own {
            edit.set(&site::setting(key), &Setting { value: value.clone() }, why);
        }
        edit.set(&site::effective(), &effective, why);
    })?;
    tx.mint_epoch(id, &effective)?;
    for (key, value) in own {
        tx.journal_for(id, register_set(site::KIND, id, &format!("settings/{key}"), value))?;
    }
    tx.view().site(id)?.ok_or_else(|| unknown("site", id))
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

/// At central: puts one settings epoch in the place of several that two lives of central made, and above any
/// that the site was seen to follow. In recovery it waits.
pub(crate) fn settle_epoch(tx: &mut Tx<'_>, id: SiteId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let found = tx.with_document(site::KIND, id.into(), |document| {
        let effective = contested::read(document, &site::effective());
        let in_force = effective.sides().iter().max_by_key(|side| (side.value.epoch, side.written.at));
        (effective.sides().len(), in_force.map(|side| side.value.clone()))
    })?;
    let Some((sides, Some(in_force))) = found else { return Ok(()) };
    let highest = tx.highest_epoch(id)?.max(in_force.epoch);
    if sides == 1 && in_force.epoch == highest {
        return Ok(());
    }
    let effective = Effective { epoch: highest + 1, ..in_force };
    tx.write(site::KIND, id.into(), |edit| {
        edit.set(&site::effective(), &effective, "central was restored; the settings stay as they are");
    })?;
    tx.mint_epoch(id, &effective)?;
    tx.journal_for(id, register_set(site::KIND, id, "effective", format!("epoch {}", effective.epoch)))
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

//! Settings at central: what sites and groups say themselves, and what descends from groups to sites.
//!
//! Whoever changes what descends brings the sites that it reaches to it in the same transaction, each under an epoch
//! of its own. A site that is cut off follows the epoch that it has until it hears of the next. While central is in
//! recovery only the site that somebody sets gets another epoch: groups may still come back.

use std::collections::BTreeSet;

use sync::{
    document::{
        Kind, contested,
        register::Edit,
        settings::{self, Key, Own, Source},
        site::{self, Effective, Setting, UnknownMachines},
    },
    id::{DocumentId, Origin, SiteId},
    policy::{Autonomy, MigrationConsent, MigrationPolicy, PendingBoot, Strategy},
};

use super::{check_text, claim, conflict, refused, register_set, unknown};
use crate::{StoreError, Tx, view::SiteRow};

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
    /// Attempts that a task has at most before a person looks at it, `1..=10`.
    pub max_install_attempts: Option<u64>,
    /// Seconds in which an attempt must be heard of before it counts as failed, `600..=604_800`.
    pub install_timeout_s: Option<u64>,
    /// Documents that the site may bring into being at central.
    pub quota_documents: Option<u64>,
    /// Changes and journal entries per second that central takes from it, `1..=100_000`.
    pub quota_changes_s: Option<u64>,
    /// Bytes of them per day, at least 1 MiB.
    pub quota_bytes_day: Option<u64>,
    /// How disagreements are settled.
    pub conflict_resolution: Option<Strategy>,
    /// What is said to claims without asking a person.
    pub migration_policy: Option<MigrationPolicy>,
    /// Whose consent approves a claim.
    pub migration_consent: Option<MigrationConsent>,
    /// Seconds that a claim waits for a decision, `3_600..=31_536_000`.
    pub claim_ttl_s: Option<u64>,
    /// What a claimed machine is given until then.
    pub pending_boot: Option<PendingBoot>,
    /// Settings that are to come from above again.
    #[serde(default)]
    pub inherit: BTreeSet<Key>,
}

impl SettingsEdit {
    /// What changes: a value, or none where it comes from above again.
    ///
    /// # Errors
    /// `Refused` when a value is out of its range, or a setting is said and inherited at once.
    fn changes(&self) -> Result<Vec<(Key, Option<String>)>, StoreError> {
        let said = [
            (Key::Autonomy, self.autonomy.map(|value| value.to_string())),
            (Key::UnknownMachines, self.unknown_machines.map(|value| value.to_string())),
            (Key::PxeEnabled, self.pxe_enabled.map(|value| value.to_string())),
            (Key::HeartbeatS, self.heartbeat_s.map(|value| value.to_string())),
            (Key::OrderMaxS, self.order_max_s.map(|value| value.to_string())),
            (Key::MaxInstallAttempts, self.max_install_attempts.map(|value| value.to_string())),
            (Key::InstallTimeoutS, self.install_timeout_s.map(|value| value.to_string())),
            (Key::QuotaDocuments, self.quota_documents.map(|value| value.to_string())),
            (Key::QuotaChangesS, self.quota_changes_s.map(|value| value.to_string())),
            (Key::QuotaBytesDay, self.quota_bytes_day.map(|value| value.to_string())),
            (Key::ConflictResolution, self.conflict_resolution.map(|value| value.to_string())),
            (Key::MigrationPolicy, self.migration_policy.map(|value| value.to_string())),
            (Key::MigrationConsent, self.migration_consent.map(|value| value.to_string())),
            (Key::ClaimTtlS, self.claim_ttl_s.map(|value| value.to_string())),
            (Key::PendingBoot, self.pending_boot.map(|value| value.to_string())),
        ];
        let mut changes = Vec::new();
        for (key, value) in said {
            match (value, self.inherit.contains(&key)) {
                (Some(value), true) => {
                    return refused(format!(
                        "`{key}` cannot be `{value}` and come from above; say one of both"
                    ));
                }
                (Some(value), false) => {
                    if let Err(error) = key.put(&value, &mut Effective::default()) {
                        return refused(error.to_string());
                    }
                    changes.push((key, Some(value)));
                }
                (None, true) => changes.push((key, None)),
                (None, false) => {}
            }
        }
        Ok(changes)
    }

    /// What changes of what somebody says himself.
    ///
    /// # Errors
    /// As [`SettingsEdit::changes`], and for a reason that is too long.
    pub(super) fn changes_of(&self, own: &Own, why: &str) -> Result<Vec<(Key, Option<String>)>, StoreError> {
        check_text("why", why)?;
        let changes = self.changes()?.into_iter();
        Ok(changes.filter(|(key, value)| own.get(key) != value.as_ref()).collect())
    }
}

/// Writes own settings.
pub(super) fn put(edit: &mut Edit<'_>, changes: &[(Key, Option<String>)], why: &str) {
    for (key, value) in changes {
        // Sites and groups keep them alike.
        edit.set(&site::setting(key.as_str()), &Setting { value: value.clone() }, why);
    }
}

/// Journals own settings that changed; of a site, for it.
pub(super) fn journal(
    tx: &mut Tx<'_>,
    (kind, id): (Kind, DocumentId),
    changes: &[(Key, Option<String>)],
) -> Result<(), StoreError> {
    for (key, value) in changes {
        let value = value.as_deref().unwrap_or("inherited");
        let event = register_set(kind, id, &format!("settings/{key}"), value);
        match kind {
            Kind::Site => tx.journal_for(id.into(), event)?,
            Kind::Group | Kind::Node | Kind::Workflow | Kind::Task | Kind::Proposal | Kind::Claim => {
                tx.journal(event)?;
            }
        }
    }
    Ok(())
}

/// Changes own settings of a site and materialises the effective ones under the next epoch.
pub(super) fn set_site(
    tx: &mut Tx<'_>,
    id: SiteId,
    edit: &SettingsEdit,
    why: &str,
) -> Result<SiteRow, StoreError> {
    let row = tx.view().site(id)?.ok_or_else(|| unknown("site", id))?;
    let changes = edit.changes_of(&row.own, why)?;
    if changes.is_empty() {
        return Ok(row);
    }
    let mut own = row.own.clone();
    for (key, value) in &changes {
        match value {
            Some(value) => drop(own.insert(*key, value.clone())),
            None => drop(own.remove(key)),
        }
    }
    let effective = descending(tx, &row, own)?;
    tx.write(site::KIND, id.into(), |edit| {
        put(edit, &changes, why);
        edit.set(&site::effective(), &effective, why);
    })?;
    tx.mint_epoch(id, &effective)?;
    journal(tx, (site::KIND, id.into()), &changes)?;
    follow_strategy(tx, id, row.effective.conflict_resolution)?;
    claim::settle_of(tx, id)?;
    tx.view().site(id)?.ok_or_else(|| unknown("site", id))
}

/// What descends to a site that says `own`, under the next epoch.
fn descending(tx: &Tx<'_>, row: &SiteRow, own: Own) -> Result<Effective, StoreError> {
    let mut levels = tx.view().levels(row.group)?;
    levels.push((Source::Site, own));
    // Another life of central may have made epochs that only the site still knows.
    let epoch = row.effective.epoch.max(tx.highest_epoch(row.id)?) + 1;
    Ok(settings::descend(epoch, &levels))
}

/// At central: brings sites to what descends to them by now, under one epoch where two lives of central made several,
/// and above any that the site was seen to follow. What each life decided stands in the settings one by one. In
/// recovery it waits.
pub(crate) fn descend(
    tx: &mut Tx<'_>,
    sites: impl IntoIterator<Item = SiteId>,
    why: &str,
) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    for id in sites {
        // One that is only named by a group is described when its document is here.
        let Some(row) = tx.view().site(id)?.filter(|row| !row.name.is_empty()) else { continue };
        let effective = descending(tx, &row, row.own.clone())?;
        let sides = tx.with_document(site::KIND, id.into(), |document| {
            contested::read(document, &site::effective()).sides().len()
        })?;
        let (epoch, before) = (row.effective.epoch, row.effective);
        let is_settled = sides.is_some_and(|sides| sides <= 1) && tx.highest_epoch(id)? <= epoch;
        if is_settled && before == (Effective { epoch, ..effective.clone() }).into() {
            continue;
        }
        tx.write(site::KIND, id.into(), |edit| {
            edit.set(&site::effective(), &effective, why);
        })?;
        tx.mint_epoch(id, &effective)?;
        tx.journal_for(id, register_set(site::KIND, id, "effective", format!("epoch {}", effective.epoch)))?;
        follow_strategy(tx, id, before.conflict_resolution)?;
        claim::settle_of(tx, id)?;
    }
    Ok(())
}

/// Settles what is open about a site whose strategy is another one than `before`.
fn follow_strategy(tx: &mut Tx<'_>, id: SiteId, before: Strategy) -> Result<(), StoreError> {
    match tx.view().site(id)? {
        Some(row) if row.effective.conflict_resolution != before => conflict::settle_all(tx, Some(id)),
        Some(_) | None => Ok(()),
    }
}

//! Sites: identity, place in the fleet and effective settings.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use sync::{
    document::{
        Document, contested,
        settings::{self, Own},
        site,
    },
    id::{GroupId, SiteId},
    policy::{Autonomy, MigrationConsent, MigrationPolicy, PendingBoot, Strategy, quota::Quota},
};

use super::{View, bodies};
use crate::StoreError;

/// One site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRow {
    /// The site.
    pub id: SiteId,
    /// Short name.
    pub name: String,
    /// For people.
    pub description: String,
    /// Address or room.
    pub location: String,
    /// The group that it stands in, if any.
    pub group: Option<GroupId>,
    /// The group whose machines its directory has; none: those of the whole fleet.
    pub directory_domain: Option<GroupId>,
    /// What it says itself of its settings.
    pub own: Own,
    /// What it follows.
    pub effective: EffectiveRow,
    /// Whether it answers boot requests, by its own decision; counts while it is `full`.
    #[serde(default)]
    pub local_pxe_enabled: Option<bool>,
}

impl SiteRow {
    /// Whether boot requests are answered at all.
    pub fn answers_boots(&self) -> bool {
        let EffectiveRow { autonomy, pxe_enabled, .. } = self.effective;
        site::answers_boots(autonomy, pxe_enabled, self.local_pxe_enabled)
    }
}

/// Effective settings of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EffectiveRow {
    /// Grows with every change.
    pub epoch: u64,
    /// How much the site may decide by itself.
    pub autonomy: Autonomy,
    /// What an unknown machine is given.
    pub unknown_machines: site::UnknownMachines,
    /// Whether boot requests are answered at all.
    pub pxe_enabled: bool,
    /// Seconds between heartbeats.
    pub heartbeat_s: u64,
    /// Longest life of an order in seconds.
    pub order_max_s: u64,
    /// Attempts that a task has at most before a person looks at it.
    pub max_install_attempts: u64,
    /// Seconds in which an attempt must be heard of before it counts as failed.
    pub install_timeout_s: u64,
    /// Documents that the site may bring into being at central.
    pub quota_documents: u64,
    /// Changes and journal entries per second that central takes from it.
    pub quota_changes_s: u64,
    /// Bytes of them per day.
    pub quota_bytes_day: u64,
    /// How disagreements about its machines are settled.
    pub conflict_resolution: Strategy,
    /// What is said to claims without asking a person.
    pub migration_policy: MigrationPolicy,
    /// Whose consent approves a claim.
    pub migration_consent: MigrationConsent,
    /// Seconds that a claim waits for a decision.
    pub claim_ttl_s: u64,
    /// What a claimed machine is given until then.
    pub pending_boot: PendingBoot,
    /// Where each value comes from that is not the default: `site`, or the id of a group.
    pub origins: BTreeMap<String, String>,
}

impl From<site::Effective> for EffectiveRow {
    fn from(effective: site::Effective) -> Self {
        let (max_install_attempts, install_timeout_s) =
            (effective.max_install_attempts(), effective.install_timeout_s());
        let (migration_policy, migration_consent) =
            (effective.migration_policy(), effective.migration_consent());
        let (claim_ttl_s, pending_boot) = (effective.claim_ttl_s(), effective.pending_boot());
        let site::Effective {
            epoch,
            autonomy,
            unknown_machines,
            pxe_enabled,
            heartbeat_s,
            order_max_s,
            max_install_attempts: _,
            install_timeout_s: _,
            quota_documents,
            quota_changes_s,
            quota_bytes_day,
            conflict_resolution,
            migration_policy: _,
            migration_consent: _,
            claim_ttl_s: _,
            pending_boot: _,
            origins,
        } = effective;
        EffectiveRow {
            epoch,
            autonomy,
            unknown_machines,
            pxe_enabled,
            heartbeat_s,
            order_max_s,
            max_install_attempts,
            install_timeout_s,
            quota_documents,
            quota_changes_s,
            quota_bytes_day,
            conflict_resolution: conflict_resolution.unwrap_or_default(),
            migration_policy,
            migration_consent,
            claim_ttl_s,
            pending_boot,
            origins: origins.unwrap_or_default(),
        }
    }
}

impl EffectiveRow {
    /// What central takes from the site.
    pub fn quota(&self) -> Quota {
        Quota {
            documents: self.quota_documents,
            changes_s: self.quota_changes_s,
            bytes_day: self.quota_bytes_day,
        }
    }
}

impl View<'_> {
    /// All sites by name.
    pub fn sites(&self) -> Result<Vec<SiteRow>, StoreError> {
        bodies(self.sql.prepare_cached("SELECT body FROM view_sites ORDER BY name, id")?, [])
    }

    /// One site.
    pub fn site(&self, site: SiteId) -> Result<Option<SiteRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_sites WHERE id = ?1")?;
        Ok(bodies(statement, [site.as_bytes()])?.pop())
    }

    /// The site with this name.
    pub fn site_by_name(&self, name: &str) -> Result<Option<SiteRow>, StoreError> {
        let statement = self.sql.prepare_cached("SELECT body FROM view_sites WHERE name = ?1")?;
        Ok(bodies(statement, [name])?.pop())
    }
}

pub(super) fn refresh(sql: &Connection, doc: i64, document: &Document) -> Result<(), StoreError> {
    let identity = contested::read(document, &site::identity());
    let effective = contested::read(document, &site::effective());
    let identity = identity.newest().map(|side| side.value.clone());
    let group = contested::read(document, &site::membership());
    let domain = contested::read(document, &site::directory_domain());
    let row = SiteRow {
        id: document.id().into(),
        name: identity.as_ref().map(|identity| identity.name.clone()).unwrap_or_default(),
        description: identity.as_ref().map(|identity| identity.description.clone()).unwrap_or_default(),
        location: identity.map(|identity| identity.location).unwrap_or_default(),
        group: group.newest().and_then(|side| side.value.group),
        directory_domain: domain.newest().and_then(|side| side.value.group),
        own: settings::own(document),
        // Of two concurrent epochs the higher one is followed.
        effective: effective
            .sides()
            .iter()
            .max_by_key(|side| (side.value.epoch, side.written.at))
            .map(|side| side.value.clone())
            .unwrap_or_default()
            .into(),
        // A site has one writer of it, and central in its stead.
        local_pxe_enabled: contested::read(document, &site::local())
            .newest()
            .and_then(|side| side.value.pxe_enabled),
    };
    sql.prepare_cached(
        "INSERT OR REPLACE INTO view_sites (doc, id, name, grp, domain, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        doc,
        row.id.as_bytes(),
        row.name,
        row.group.map(|group| group.0),
        row.directory_domain.map(|group| group.0),
        serde_json::to_string(&row)?
    ])?;
    Ok(())
}

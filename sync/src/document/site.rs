//! A site: who it is, its own settings, and the effective settings that central computed for it.
//!
//! Sites never compute inheritance. Central joins defaults, groups and own settings into one register
//! under one epoch, and a site follows exactly that until it hears of the next.

use super::register::value;
use super::{Kind, Register};
use crate::{
    id::{DocumentId, GroupId, Incarnation, SiteId},
    policy::{
        Autonomy, MigrationConsent, MigrationPolicy, PendingBoot, Strategy, migration, order, quota::Quota,
        words,
    },
};

words! {
    /// What an unknown machine is given.
    pub enum UnknownMachines {
        /// It becomes a node of this site.
        Adopt = "adopt",
        /// A hold page that says so, then its own disk.
        Hold = "hold",
        /// No answer at all.
        Ignore = "ignore",
    }
}

value! {
    /// What people call the site and where it is.
    pub struct Identity {
        /// Short name, unique among sites.
        pub name: String,
        /// For people.
        pub description: String,
        /// Address or room, for people.
        pub location: String,
        /// Where its console is reached, empty if unknown.
        pub console_url: String,
        /// Name of each network segment with its prefix in CIDR form.
        pub network_segments: std::collections::BTreeMap<String, String>,
    }
}

value! {
    /// The group whose settings descend to the site.
    pub struct Membership {
        /// The group, or none for the root.
        pub group: Option<GroupId>,
    }
}

value! {
    /// Of which part of the fleet the site is told where its machines belong.
    pub struct DirectoryDomain {
        /// The group, with all below it, or none for the whole fleet.
        pub group: Option<GroupId>,
    }
}

value! {
    /// One setting that the site or group has of its own, as text that its key gives a type.
    pub struct Setting {
        /// The value, or none where it comes from above again.
        pub value: Option<String>,
    }
}

value! {
    /// Everything a site needs to know to decide alone, materialised by central.
    pub struct Effective {
        /// Grows with every change; journal entries name the epoch that they were decided under.
        pub epoch: u64,
        /// How much the site may decide by itself.
        pub autonomy: Autonomy,
        /// What an unknown machine is given.
        pub unknown_machines: UnknownMachines,
        /// Whether boot requests are answered at all.
        pub pxe_enabled: bool,
        /// Seconds between heartbeats, `1..=300`.
        pub heartbeat_s: u64,
        /// Longest life of an order in seconds.
        pub order_max_s: u64,
        /// Attempts that a task has at most before a person looks at it.
        pub max_install_attempts: Option<u64>,
        /// Seconds in which an attempt must be heard of before it counts as failed.
        pub install_timeout_s: Option<u64>,
        /// Documents that the site may bring into being at central.
        pub quota_documents: u64,
        /// Changes and journal entries per second that central takes from the site in the long run.
        pub quota_changes_s: u64,
        /// Bytes of them per day.
        pub quota_bytes_day: u64,
        /// How disagreements about its machines are settled; absent: `central_wins`.
        pub conflict_resolution: Option<Strategy>,
        /// What is said to claims without asking a person; absent in older documents, and so the next three.
        pub migration_policy: Option<MigrationPolicy>,
        /// Whose consent approves a claim.
        pub migration_consent: Option<MigrationConsent>,
        /// Seconds that a claim on a machine which boots here waits for a decision.
        pub claim_ttl_s: Option<u64>,
        /// What such a machine is given meanwhile.
        pub pending_boot: Option<PendingBoot>,
        /// Where each value comes from that is not the default: `site`, or the id of a group.
        pub origins: Option<std::collections::BTreeMap<String, String>>,
    }
}

value! {
    /// That the site may follow its orders again.
    pub struct Resumed {
        /// The life of the site's database that this is said of; another one follows no order by it.
        pub incarnation: Incarnation,
    }
}

value! {
    /// What a `full` site has decided for itself, over its effective settings.
    pub struct Local {
        /// Whether boot requests are answered at all; absent: as the settings say.
        pub pxe_enabled: Option<bool>,
    }
}

impl Default for Effective {
    /// What holds before central has spoken: epoch 0, `limited`, `hold`, answers on, 30 s, 72 h, generous
    /// quotas, `central_wins`.
    fn default() -> Self {
        Effective {
            epoch: 0,
            autonomy: Autonomy::Limited,
            unknown_machines: UnknownMachines::Hold,
            pxe_enabled: true,
            heartbeat_s: 30,
            order_max_s: order::ORDER_MAX.as_secs(),
            max_install_attempts: None,
            install_timeout_s: None,
            quota_documents: Quota::DOCUMENTS,
            quota_changes_s: Quota::CHANGES_S,
            quota_bytes_day: Quota::BYTES_DAY,
            conflict_resolution: None,
            migration_policy: None,
            migration_consent: None,
            claim_ttl_s: None,
            pending_boot: None,
            origins: None,
        }
    }
}

impl Effective {
    /// Attempts that a task has at most.
    pub fn max_install_attempts(&self) -> u64 {
        self.max_install_attempts.unwrap_or(order::MAX_INSTALL_ATTEMPTS)
    }

    /// Seconds in which an attempt must be heard of before it counts as failed.
    pub fn install_timeout_s(&self) -> u64 {
        self.install_timeout_s.unwrap_or(order::INSTALL_TIMEOUT.as_secs())
    }

    /// What is said to claims; `manual` where nobody said.
    pub fn migration_policy(&self) -> MigrationPolicy {
        self.migration_policy.unwrap_or(MigrationPolicy::Manual)
    }

    /// Whose consent approves a claim; `either` where nobody said.
    pub fn migration_consent(&self) -> MigrationConsent {
        self.migration_consent.unwrap_or(MigrationConsent::Either)
    }

    /// Seconds that a claim waits; 7 days where nobody said.
    pub fn claim_ttl_s(&self) -> u64 {
        self.claim_ttl_s.unwrap_or(migration::CLAIM_TTL.as_secs())
    }

    /// What a claimed machine is given; `minimal` where nobody said.
    pub fn pending_boot(&self) -> PendingBoot {
        self.pending_boot.unwrap_or(PendingBoot::Minimal)
    }
}

/// Whether boot requests are answered at a site that may decide so much and follows `settings`.
pub fn answers_boots(autonomy: Autonomy, settings: bool, local: Option<bool>) -> bool {
    match (autonomy, local) {
        (Autonomy::Full, Some(enabled)) => enabled,
        (Autonomy::Full, None) | (Autonomy::Limited | Autonomy::ReadOnly, _) => settings,
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Site;

/// The document of a site.
pub fn document(site: SiteId) -> DocumentId {
    site.into()
}

/// Register of the identity.
pub fn identity() -> Register<Identity> {
    Register::at_root("identity")
}

/// Register of the group.
pub fn membership() -> Register<Membership> {
    Register::at_root("group")
}

/// Register of the effective settings.
pub fn effective() -> Register<Effective> {
    Register::at_root("effective")
}

/// Register of what central confirmed after the site's database began another life.
pub fn resumed() -> Register<Resumed> {
    Register::at_root("resumed")
}

/// Register of what the site decided for itself, as long as its autonomy lets it.
pub fn local() -> Register<Local> {
    Register::at_root("local")
}

/// Register of the domain of its directory; absent for the whole fleet.
pub fn directory_domain() -> Register<DirectoryDomain> {
    Register::at_root("directory_domain")
}

/// Register of one own setting.
pub fn setting(key: &str) -> Register<Setting> {
    Register::within("settings", key)
}

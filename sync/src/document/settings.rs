//! Settings that descend: a site has what it says itself, otherwise what the nearest group above it says, otherwise
//! the default.
//!
//! Sites and groups have settings of their own, as text under their keys. [`descend`] joins them into the effective
//! settings, each with where it comes from. Only central does that, so a site needs no group to know what holds.

use std::{collections::BTreeMap, str::FromStr};

use super::{
    Document, Kind, contested, group,
    site::{self, Effective},
};
use crate::{
    id::GroupId,
    policy::{order::ATTEMPTS_CEILING, words},
};

words! {
    /// A setting.
    pub enum Key {
        /// How much the site may decide by itself.
        Autonomy = "autonomy",
        /// What an unknown machine is given.
        UnknownMachines = "unknown_machines",
        /// Whether boot requests are answered at all.
        PxeEnabled = "pxe_enabled",
        /// Seconds between heartbeats.
        HeartbeatS = "heartbeat_s",
        /// Longest life of an order in seconds.
        OrderMaxS = "order_max_s",
        /// Attempts that a task has at most before a person looks at it.
        MaxInstallAttempts = "max_install_attempts",
        /// Seconds in which an attempt must be heard of before it counts as failed.
        InstallTimeoutS = "install_timeout_s",
        /// Documents that the site may bring into being at central.
        QuotaDocuments = "quota_documents",
        /// Changes and journal entries per second that central takes from it.
        QuotaChangesS = "quota_changes_s",
        /// Bytes of them per day.
        QuotaBytesDay = "quota_bytes_day",
        /// How disagreements are settled.
        ConflictResolution = "conflict_resolution",
        /// What is said to claims without asking a person.
        MigrationPolicy = "migration_policy",
        /// Whose consent approves a claim.
        MigrationConsent = "migration_consent",
        /// Seconds that a claim waits for a decision.
        ClaimTtlS = "claim_ttl_s",
        /// What a claimed machine is given until then.
        PendingBoot = "pending_boot",
    }
}

/// A value that a setting cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` is {range}, not `{value}`")]
pub struct SettingError {
    /// The setting.
    pub key: Key,
    /// What it can be.
    pub range: &'static str,
    /// What was asked for.
    pub value: String,
}

/// What a site or group says itself.
pub type Own = BTreeMap<Key, String>;

/// Where a value comes from, if it is not the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The site itself.
    Site,
    /// A group that it stands in.
    Group(GroupId),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Site => f.write_str("site"),
            Source::Group(group) => group.fmt(f),
        }
    }
}

impl FromStr for Source {
    type Err = crate::id::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "site" { Ok(Source::Site) } else { text.parse().map(Source::Group) }
    }
}

impl Key {
    /// What it can be, for people.
    pub const fn range(self) -> &'static str {
        match self {
            Key::Autonomy => "readonly, limited or full",
            Key::UnknownMachines => "adopt, hold or ignore",
            Key::PxeEnabled => "true or false",
            Key::HeartbeatS => "1 to 300 seconds",
            Key::OrderMaxS => "7200 to 259200 seconds",
            Key::MaxInstallAttempts => "1 to 10 attempts",
            Key::InstallTimeoutS => "600 to 604800 seconds",
            Key::QuotaDocuments => "a number of documents",
            Key::QuotaChangesS => "1 to 100000 changes a second",
            Key::QuotaBytesDay => "at least 1048576 bytes",
            Key::ConflictResolution => "central_wins, last_write, site_wins or manual",
            Key::MigrationPolicy => "manual, auto_accept, auto_release or bidirectional",
            Key::MigrationConsent => "either or both",
            Key::ClaimTtlS => "3600 to 31536000 seconds",
            Key::PendingBoot => "minimal, normal or refuse",
        }
    }

    /// Puts a value into effective settings.
    ///
    /// # Errors
    /// A value that it cannot have; then nothing is put.
    pub fn put(self, value: &str, into: &mut Effective) -> Result<(), SettingError> {
        let wrong =
            || SettingError { key: self, range: self.range(), value: value.chars().take(64).collect() };
        fn parsed<T: FromStr>(value: &str, is_fine: impl Fn(&T) -> bool) -> Option<T> {
            value.parse().ok().filter(is_fine)
        }
        match self {
            Key::Autonomy => into.autonomy = parsed(value, |_| true).ok_or_else(wrong)?,
            Key::UnknownMachines => into.unknown_machines = parsed(value, |_| true).ok_or_else(wrong)?,
            Key::PxeEnabled => into.pxe_enabled = parsed(value, |_| true).ok_or_else(wrong)?,
            Key::HeartbeatS => {
                into.heartbeat_s = parsed(value, |s| (1..=300).contains(s)).ok_or_else(wrong)?;
            }
            Key::OrderMaxS => {
                into.order_max_s = parsed(value, |s| (7_200..=259_200).contains(s)).ok_or_else(wrong)?;
            }
            Key::MaxInstallAttempts => {
                let most = parsed(value, |most| (1..=ATTEMPTS_CEILING).contains(most)).ok_or_else(wrong)?;
                into.max_install_attempts = Some(most);
            }
            Key::InstallTimeoutS => {
                let wait = parsed(value, |s| (600..=604_800).contains(s)).ok_or_else(wrong)?;
                into.install_timeout_s = Some(wait);
            }
            Key::QuotaDocuments => into.quota_documents = parsed(value, |_| true).ok_or_else(wrong)?,
            Key::QuotaChangesS => {
                into.quota_changes_s =
                    parsed(value, |many| (1..=100_000).contains(many)).ok_or_else(wrong)?;
            }
            Key::QuotaBytesDay => {
                into.quota_bytes_day = parsed(value, |bytes| *bytes >= 1 << 20).ok_or_else(wrong)?;
            }
            Key::ConflictResolution => {
                into.conflict_resolution = Some(parsed(value, |_| true).ok_or_else(wrong)?);
            }
            Key::MigrationPolicy => {
                into.migration_policy = Some(parsed(value, |_| true).ok_or_else(wrong)?);
            }
            Key::MigrationConsent => {
                into.migration_consent = Some(parsed(value, |_| true).ok_or_else(wrong)?);
            }
            Key::ClaimTtlS => {
                let range = 3_600..=31_536_000;
                into.claim_ttl_s = Some(parsed(value, |s| range.contains(s)).ok_or_else(wrong)?);
            }
            Key::PendingBoot => into.pending_boot = Some(parsed(value, |_| true).ok_or_else(wrong)?),
        }
        Ok(())
    }
}

/// What the document of a site or group says itself. What this program does not know is left out.
pub fn own(document: &Document) -> Own {
    let register = match document.kind() {
        Kind::Site => site::setting,
        Kind::Group => group::setting,
        Kind::Node | Kind::Workflow | Kind::Task | Kind::Proposal | Kind::Claim => return Own::new(),
    };
    let said = |key: &Key| {
        let read = contested::read(document, &register(key.as_str()));
        read.newest().and_then(|side| side.value.value.clone()).map(|value| (*key, value))
    };
    Key::ALL.iter().filter_map(said).collect()
}

/// What holds where these levels stand one below the other, the lowest last. A value that this program does not
/// understand counts as not said.
pub fn descend(epoch: u64, levels: &[(Source, Own)]) -> Effective {
    let mut effective = Effective { epoch, ..Effective::default() };
    for (source, own) in levels {
        for (key, value) in own {
            if key.put(value, &mut effective).is_ok() {
                effective.origins.get_or_insert_default().insert(key.to_string(), source.to_string());
            }
        }
    }
    effective
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Autonomy;

    fn level(source: Source, own: &[(Key, &str)]) -> (Source, Own) {
        (source, own.iter().map(|(key, value)| (*key, (*value).to_string())).collect())
    }

    #[test]
    fn p1_the_nearest_level_that_says_something_counts_and_is_named() {
        let (europe, france) = (Source::Group(GroupId([1; 16])), Source::Group(GroupId([2; 16])));
        let levels = [
            level(europe, &[(Key::Autonomy, "readonly"), (Key::HeartbeatS, "60"), (Key::OrderMaxS, "7200")]),
            level(france, &[(Key::Autonomy, "full"), (Key::OrderMaxS, "86400")]),
            level(Source::Site, &[(Key::OrderMaxS, "9000")]),
        ];
        let effective = descend(7, &levels);
        assert_eq!(
            (effective.epoch, effective.autonomy, effective.heartbeat_s, effective.order_max_s),
            (7, Autonomy::Full, 60, 9_000)
        );
        assert_eq!(effective.unknown_machines, Effective::default().unknown_machines);
        let origins = effective.origins.unwrap_or_default();
        let origins: Vec<(&str, &str)> =
            origins.iter().map(|(key, from)| (key.as_str(), from.as_str())).collect();
        let (europe, france) = (europe.to_string(), france.to_string());
        assert_eq!(
            origins,
            [("autonomy", france.as_str()), ("heartbeat_s", europe.as_str()), ("order_max_s", "site")]
        );
    }

    #[test]
    fn p1_a_value_that_cannot_be_is_named_with_what_can() {
        let mut effective = Effective::default();
        let wrong = [
            (Key::Autonomy, "total"),
            (Key::UnknownMachines, ""),
            (Key::PxeEnabled, "yes"),
            (Key::HeartbeatS, "0"),
            (Key::OrderMaxS, "7199"),
            (Key::MaxInstallAttempts, "11"),
            (Key::InstallTimeoutS, "599"),
            (Key::QuotaDocuments, "-1"),
            (Key::QuotaChangesS, "100001"),
            (Key::QuotaBytesDay, "1048575"),
            (Key::ConflictResolution, "mine"),
            (Key::MigrationPolicy, "auto"),
            (Key::MigrationConsent, "none"),
            (Key::ClaimTtlS, "3599"),
            (Key::PendingBoot, "disk"),
        ];
        for (key, value) in wrong {
            let error = key.put(value, &mut effective).expect_err(value);
            assert_eq!(error.to_string(), format!("`{key}` is {}, not `{value}`", key.range()));
        }
        assert_eq!(effective, Effective::default());
        // A level of a newer program says nothing that is understood here.
        let levels = [level(Source::Site, &[(Key::Autonomy, "total")])];
        assert_eq!(descend(0, &levels), Effective::default());
    }

    #[test]
    fn p1_every_setting_can_be_said() {
        for (key, value) in [
            (Key::Autonomy, "readonly"),
            (Key::UnknownMachines, "adopt"),
            (Key::PxeEnabled, "false"),
            (Key::HeartbeatS, "300"),
            (Key::OrderMaxS, "7200"),
            (Key::MaxInstallAttempts, "10"),
            (Key::InstallTimeoutS, "600"),
            (Key::QuotaDocuments, "0"),
            (Key::QuotaChangesS, "1"),
            (Key::QuotaBytesDay, "1048576"),
            (Key::ConflictResolution, "manual"),
            (Key::MigrationPolicy, "bidirectional"),
            (Key::MigrationConsent, "both"),
            (Key::ClaimTtlS, "3600"),
            (Key::PendingBoot, "refuse"),
        ] {
            let said = descend(0, &[level(Source::Site, &[(key, value)])]);
            let default = Effective { origins: said.origins.clone(), ..Effective::default() };
            assert_ne!(said, default, "{key}");
        }
        assert_eq!(Key::ALL.len(), 15);
        let group = Source::Group(GroupId([9; 16]));
        assert_eq!([Source::Site, group].map(|it| it.to_string().parse()), [Ok(Source::Site), Ok(group)]);
    }
}

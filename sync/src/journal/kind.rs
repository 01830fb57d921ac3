//! What each event is called in JSON, for whoever asks for some kinds only.

use super::Event;

/// Names every event once: the list and the match cannot differ, and a new event does not compile without its name.
macro_rules! kinds {
    ($($event:ident => $name:literal,)*) => {
        /// The kinds of events that this program knows, as JSON names them.
        pub const KINDS: &[&str] = &[$($name),*];

        impl Event {
            /// What the event is called in JSON, there the field `event`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Event::$event { .. } => $name,)*
                }
            }
        }

        #[cfg(test)]
        const VARIANTS: &[(&str, &str)] = &[$((stringify!($event), $name)),*];
    };
}

kinds! {
    BootAnswered => "boot_answered",
    NodeDiscovered => "node_discovered",
    NodeTransitioned => "node_transitioned",
    ReportReceived => "report_received",
    ReportRefused => "report_refused",
    TaskCreated => "task_created",
    OrderIssued => "order_issued",
    OrderConsumed => "order_consumed",
    TaskTransitioned => "task_transitioned",
    RegisterSet => "register_set",
    SiteEnrolled => "site_enrolled",
    TokenIssued => "token_issued",
    EnrolmentRefused => "enrolment_refused",
    SiteCreated => "site_created",
    WorkflowPublished => "workflow_published",
    EpochAdopted => "epoch_adopted",
    BlobArrived => "blob_arrived",
    BlobRefused => "blob_refused",
    ChangeQuarantined => "change_quarantined",
    ReplicaDiverged => "replica_diverged",
    LifeBegun => "life_begun",
    OrdersResumed => "orders_resumed",
    ReplicaJoined => "replica_joined",
    DocumentReset => "document_reset",
    WriteRefused => "write_refused",
    ChainBroken => "chain_broken",
    ChainBegun => "chain_begun",
    QuarantineDecided => "quarantine_decided",
    QuarantineTrimmed => "quarantine_trimmed",
    AuthoritySucceeded => "authority_succeeded",
    AuthorityRetired => "authority_retired",
    RecoveryEnded => "recovery_ended",
    CentralRecovering => "central_recovering",
    HeadRefused => "head_refused",
    JournalTrimmed => "journal_trimmed",
    JournalGap => "journal_gap",
    QuotaReached => "quota_reached",
    CertificateIssued => "certificate_issued",
    SiteRevoked => "site_revoked",
    ConflictFound => "conflict_found",
    ConflictSettled => "conflict_settled",
    ConflictReverted => "conflict_reverted",
    GroupCreated => "group_created",
    ProposalMade => "proposal_made",
    WorkUnderOlderEpoch => "work_under_older_epoch",
    ClaimOpened => "claim_opened",
    ClaimAskedAgain => "claim_asked_again",
    ClaimedSeenAtHome => "claimed_seen_at_home",
    ClaimConsented => "claim_consented",
    ClaimDecided => "claim_decided",
    HomeMoved => "home_moved",
    FenceOpened => "fence_opened",
}

/// No kind of event, as far as is known here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of entry; the journal knows {all}", all = KINDS.join(", "))]
pub struct UnknownKind(String);

/// The kinds that a text names, with commas between them.
///
/// # Errors
/// When one of them is not known here.
pub fn kinds(text: &str) -> Result<Vec<&'static str>, UnknownKind> {
    let known = |name: &str| KINDS.iter().copied().find(|kind| *kind == name);
    text.split(',').map(|name| known(name).ok_or_else(|| UnknownKind(name.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_the_name_of_its_event_in_snake_case() {
        // As serde's `snake_case` does it: an underscore before every capital but the first.
        let snake = |variant: &str| {
            let mut name = String::new();
            for letter in variant.chars() {
                if letter.is_uppercase() && !name.is_empty() {
                    name.push('_');
                }
                name.extend(letter.to_lowercase());
            }
            name
        };
        for (variant, name) in VARIANTS {
            assert_eq!(snake(variant), *name);
        }
    }

    #[test]
    fn kinds_are_named_with_commas_and_an_unknown_one_is_named_back() {
        assert_eq!(kinds("home_moved,claim_opened"), Ok(vec!["home_moved", "claim_opened"]));
        for (text, unknown) in
            [("home_moved,", ""), ("home_moved, claim_opened", " claim_opened"), ("HomeMoved", "HomeMoved")]
        {
            assert_eq!(kinds(text), Err(UnknownKind(unknown.into())), "{text}");
        }
        let said = UnknownKind("x".into()).to_string();
        assert!(
            said.starts_with("`x` is no kind of entry; the journal knows boot_answered, node_"),
            "{said}"
        );
    }
}

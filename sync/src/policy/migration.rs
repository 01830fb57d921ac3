//! Where a machine belongs: who consents to a move, who decides it, and when its new home may install.
//!
//! [`review`] joins what the settings and the people of both sites say into what becomes of a claim; [`pending_boot`]
//! says what a machine is given meanwhile, [`may_ask_again`] when a claim that ended may be opened anew, and [`fence`]
//! whether the former home can still hold an order for the disk. The tables stand once more, by hand, in
//! `fixtures/policies/claims.txt`, `pending_boot.txt` and `fence.txt`.
//!
//! Deliberately absent: approval rules with several approvers.

use std::time::Duration;

use super::{Autonomy, Reason, words};
use crate::time::Timestamp;

words! {
    /// What a site's settings say to claims without asking a person.
    pub enum MigrationPolicy {
        /// Nothing.
        Manual = "manual",
        /// Yes to machines that come.
        AutoAccept = "auto_accept",
        /// Yes to machines that go.
        AutoRelease = "auto_release",
        /// Yes to both.
        Bidirectional = "bidirectional",
    }
}

words! {
    /// Whose consent approves a claim.
    pub enum MigrationConsent {
        /// That of one side.
        Either = "either",
        /// That of both.
        Both = "both",
    }
}

words! {
    /// What a machine is given at a site that has claimed it, until that is decided.
    pub enum PendingBoot {
        /// Nothing but what tells it so.
        Minimal = "minimal",
        /// Its own disk.
        Normal = "normal",
        /// A refusal that says what to do.
        Refuse = "refuse",
    }
}

words! {
    /// Where a claim stands.
    pub enum ClaimState {
        /// Nobody has decided.
        Open = "open",
        /// The machine is at home where it boots.
        Approved = "approved",
        /// A person said no.
        Rejected = "rejected",
        /// Nobody decided in time.
        Expired = "expired",
        /// The machine booted at home again, or has moved elsewhere.
        Withdrawn = "withdrawn",
    }
}

/// How long a claim waits for a decision: `claim_ttl_s`.
pub const CLAIM_TTL: Duration = Duration::from_secs(7 * 86_400);

/// After an approval without any person, the next one of the same machine within this time waits for a person.
pub const AUTOMATIC_ONCE_IN: Duration = Duration::from_secs(7 * 86_400);

/// Between two wishes of a site to decide a claim again.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(86_400);

/// Rounds that a claim has at most.
pub const MAX_ROUNDS: u64 = 8;

/// One of the two sites of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// What people call it.
    pub name: String,
    /// What its settings say.
    pub policy: MigrationPolicy,
    /// Whose consent its settings want.
    pub consent: MigrationConsent,
    /// What a person there said.
    pub said: Option<bool>,
}

/// A claim before whoever settles it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Where the machine boots.
    pub to: Party,
    /// Where it is at home.
    pub from: Party,
    /// The machine was moved without any person within [`AUTOMATIC_ONCE_IN`].
    pub moved_lately: bool,
    /// A person at central had rejected this claim before.
    pub was_rejected: bool,
}

/// What becomes of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    /// How the side where the machine boots consents, if it does: `auto_accept@bern`, `consent@bern`.
    pub to: Option<String>,
    /// How its home consents, if it does.
    pub from: Option<String>,
    /// Whether both together are enough.
    pub eligible: bool,
    /// Whether no person was asked for them.
    pub automatic: bool,
    /// What approves it, or would.
    pub matched: Option<String>,
    /// Why a person at central decides; nothing where the claim is approved at once.
    pub waits: Option<Reason>,
}

/// Says what becomes of a claim.
pub fn review(case: &Case) -> Review {
    let to = consents(&case.to, accepts(case.to.policy));
    let from = consents(&case.from, releases(case.from.policy));
    let withheld: Vec<&str> = [&case.to, &case.from]
        .into_iter()
        .filter(|party| party.said == Some(false))
        .map(|party| party.name.as_str())
        .collect();
    let mode = case.to.consent.max(case.from.consent);
    let enough = match mode {
        MigrationConsent::Either => to.is_some() || from.is_some(),
        MigrationConsent::Both => to.is_some() && from.is_some(),
    };
    let eligible = enough && withheld.is_empty();
    let by_person = |party: &Party| party.said == Some(true);
    let needed_person = match mode {
        // One that no person was asked for is enough.
        MigrationConsent::Either => ![(&to, &case.to), (&from, &case.from)]
            .into_iter()
            .any(|(consent, party)| consent.is_some() && !by_person(party)),
        MigrationConsent::Both => by_person(&case.to) || by_person(&case.from),
    };
    let automatic = eligible && !needed_person;
    let matched: Vec<&str> = [&to, &from].into_iter().flatten().map(String::as_str).collect();
    let waits = if !withheld.is_empty() {
        let words = if withheld.len() == 1 { "withholds its" } else { "withhold their" };
        Some(format!("{} {words} consent", withheld.join(" and ")))
    } else if !enough {
        let missing = match (mode, &to, &from) {
            (MigrationConsent::Both, Some(_), None) => format!("{} has not consented", case.from.name),
            (MigrationConsent::Both, None, Some(_)) => format!("{} has not consented", case.to.name),
            (_, _, _) => format!("neither {} nor {} has consented", case.to.name, case.from.name),
        };
        Some(missing)
    } else if case.was_rejected {
        Some("a person had rejected it before".into())
    } else if automatic && case.moved_lately {
        Some("the machine was moved without a person within the last 7 days".into())
    } else {
        None
    };
    Review {
        eligible,
        automatic,
        matched: (!matched.is_empty()).then(|| matched.join(", ")),
        waits: waits.map(|why| Reason::new(format!("{why}, so a person at central decides"))),
        to,
        from,
    }
}

/// A person's word counts before the settings.
fn consents(party: &Party, by_policy: bool) -> Option<String> {
    match party.said {
        Some(true) => Some(format!("consent@{}", party.name)),
        Some(false) => None,
        None => by_policy.then(|| format!("{}@{}", party.policy, party.name)),
    }
}

fn accepts(policy: MigrationPolicy) -> bool {
    match policy {
        MigrationPolicy::AutoAccept | MigrationPolicy::Bidirectional => true,
        MigrationPolicy::Manual | MigrationPolicy::AutoRelease => false,
    }
}

fn releases(policy: MigrationPolicy) -> bool {
    match policy {
        MigrationPolicy::AutoRelease | MigrationPolicy::Bidirectional => true,
        MigrationPolicy::Manual | MigrationPolicy::AutoAccept => false,
    }
}

/// What a machine is given that is at home elsewhere and claimed here. A site that decides nothing by itself does not
/// boot it either.
pub fn pending_boot(setting: PendingBoot, autonomy: Autonomy) -> PendingBoot {
    match (setting, autonomy) {
        (PendingBoot::Normal, Autonomy::ReadOnly) => PendingBoot::Minimal,
        (PendingBoot::Normal, Autonomy::Limited | Autonomy::Full) => PendingBoot::Normal,
        (PendingBoot::Minimal, _) => PendingBoot::Minimal,
        (PendingBoot::Refuse, _) => PendingBoot::Refuse,
    }
}

/// Whether a site asks again for a claim that ended in round `round`, when it last asked at `last`. Who came back after
/// a withdrawal has moved once more; who was refused, or heard nothing, waits a day.
pub fn may_ask_again(state: ClaimState, round: u64, last: Timestamp, now: Timestamp) -> bool {
    let waited = now >= last.after(ASK_AGAIN_AFTER);
    let may = match state {
        ClaimState::Open | ClaimState::Approved => false,
        ClaimState::Withdrawn => true,
        ClaimState::Rejected | ClaimState::Expired => waited,
    };
    may && round < MAX_ROUNDS
}

/// An order that the former home of a machine was given, and has not ended as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// End of its life.
    pub not_after: Timestamp,
    /// The attempt that it is for.
    pub attempt: u64,
    /// Whether it was used and the attempt has not ended.
    pub under_way: bool,
}

/// What central knows of the former home of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Former {
    /// What people call it.
    pub name: String,
    /// It has acknowledged that the machine is not its own.
    pub acknowledged: bool,
    /// The most that it may decide by itself, by any settings that it may follow.
    pub autonomy: Autonomy,
    /// Longest life of an order there, by any of them.
    pub order_max: Duration,
    /// Attempts that a task has there at most, by any of them.
    pub attempts: u64,
    /// Orders that it may hold.
    pub orders: Vec<Held>,
}

/// Where a fence stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The former home holds nothing that could wipe the disk, and why that is known.
    Open(Reason),
    /// It may, until this instant; without one until it says otherwise or a person does.
    Closed(Option<Timestamp>, Reason),
}

/// Says whether the former home of a machine may still hold an order for its disk.
pub fn fence(former: &Former, now: Timestamp) -> Fence {
    let Former { name, acknowledged, autonomy, order_max, attempts, orders } = former;
    if orders.iter().any(|order| order.under_way) {
        return Fence::Closed(None, Reason::new(format!("an attempt at {name} is past its first write")));
    }
    if *acknowledged {
        return Fence::Open(Reason::new(format!("{name} has acknowledged that the machine is not its own")));
    }
    // It gives itself orders as long as it does not know.
    if *autonomy == Autonomy::Full {
        let why = format!("{name} gives itself orders, and has not acknowledged that the machine moved");
        return Fence::Closed(None, Reason::new(why));
    }
    // A retry is an order that a site gives itself, each before the end of the one before.
    let life = |order: &Held| {
        let retries = match autonomy {
            Autonomy::ReadOnly => 0,
            Autonomy::Limited | Autonomy::Full => attempts.saturating_sub(order.attempt),
        };
        let retries = u32::try_from(retries).unwrap_or(u32::MAX);
        order.not_after.after(order_max.saturating_mul(retries))
    };
    match orders.iter().map(life).max() {
        None => Fence::Open(Reason::new(format!("{name} holds no order for the machine"))),
        Some(end) if now >= end => {
            Fence::Open(Reason::new(format!("every order that {name} could hold has expired")))
        }
        Some(end) => {
            let why = format!(
                "{name} may hold an order until {end}, and has not acknowledged that the machine moved"
            );
            Fence::Closed(Some(end), Reason::new(why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a hand-written table: rows of cells, without the header.
    fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
        let rows = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).skip(1);
        rows.map(|line| line.split('|').map(str::trim).collect())
    }

    fn said(word: &str) -> Option<bool> {
        match word {
            "-" => None,
            "yes" => Some(true),
            "no" => Some(false),
            other => panic!("nobody says {other}"),
        }
    }

    #[test]
    fn p8_every_row_of_the_table_of_claims_holds() {
        let mut wrong = String::new();
        let mut seen = std::collections::BTreeSet::new();
        for row in rows(include_str!("../../../fixtures/policies/claims.txt")) {
            let [to, from, mode, to_said, from_said, before, consent, verdict, matched] = row[..] else {
                panic!("nine cells: {row:?}")
            };
            let party = |name: &str, policy: &str, consent, said_there: &str| Party {
                name: name.into(),
                policy: policy.parse().unwrap(),
                consent,
                said: said(said_there),
            };
            let mode: MigrationConsent = mode.parse().unwrap();
            for stricter in [true, false] {
                // Both sites have the setting, and the stricter one counts.
                let other = MigrationConsent::Either;
                let (here, there) = if stricter { (mode, other) } else { (other, mode) };
                let case = Case {
                    to: party("bern", to, here, to_said),
                    from: party("lyon", from, there, from_said),
                    moved_lately: before == "moved",
                    was_rejected: before == "rejected",
                };
                let found = review(&case);
                let word = |side: &Option<String>| if side.is_some() { "yes" } else { "-" };
                let told = [
                    format!("{} {}", word(&found.to), word(&found.from)),
                    match (&found.waits, found.automatic) {
                        (None, true) => "approved, automatic".into(),
                        (None, false) => "approved".into(),
                        (Some(why), _) => why
                            .as_str()
                            .strip_suffix(", so a person at central decides")
                            .expect("every reason says who decides")
                            .to_string(),
                    },
                    found.matched.unwrap_or_else(|| "-".into()),
                ];
                if told != [consent, verdict, matched] {
                    wrong += &format!("{row:?}: {told:?}\n");
                }
                assert!(found.waits.is_some() || found.eligible, "{row:?}");
            }
            seen.insert((to.to_string(), from.to_string(), mode, to_said == "-" && from_said == "-"));
        }
        assert_eq!(wrong, "");
        for to in MigrationPolicy::ALL {
            for from in MigrationPolicy::ALL {
                for mode in MigrationConsent::ALL {
                    let cell = (to.to_string(), from.to_string(), *mode, true);
                    assert!(seen.contains(&cell), "{cell:?} is not in the table");
                }
            }
        }
    }

    #[test]
    fn p8_every_cell_of_the_table_of_pending_boots_holds() {
        let mut cells = 0;
        for row in rows(include_str!("../../../fixtures/policies/pending_boot.txt")) {
            for (level, cell) in Autonomy::ALL.iter().zip(&row[1..]) {
                assert_eq!(pending_boot(row[0].parse().unwrap(), *level).as_str(), *cell, "{row:?}");
                cells += 1;
            }
        }
        assert_eq!(cells, PendingBoot::ALL.len() * Autonomy::ALL.len());
    }

    #[test]
    fn p8_a_claim_that_ended_is_asked_for_again_in_time_and_not_for_ever() {
        let last = Timestamp(1_795_000_000_000);
        let soon = last.after(Duration::from_secs(60));
        let later = last.after(ASK_AGAIN_AFTER);
        for (state, at_once, after_a_day) in [
            (ClaimState::Open, false, false),
            (ClaimState::Approved, false, false),
            (ClaimState::Rejected, false, true),
            (ClaimState::Expired, false, true),
            (ClaimState::Withdrawn, true, true),
        ] {
            assert_eq!(may_ask_again(state, 1, last, soon), at_once, "{state}");
            assert_eq!(may_ask_again(state, 1, last, later), after_a_day, "{state}");
            assert!(!may_ask_again(state, MAX_ROUNDS, last, later), "{state}");
        }
    }

    #[test]
    fn p8_h3_every_row_of_the_table_of_fences_holds() {
        let start = Timestamp(1_795_161_600_000);
        let hours = |hours: u64| start.after(Duration::from_secs(hours * 3_600));
        let mut count = 0;
        for row in rows(include_str!("../../../fixtures/policies/fence.txt")) {
            let [autonomy, knows, orders, now, expected] = row[..] else { panic!("five cells: {row:?}") };
            let order = |text: &str| {
                let words: Vec<&str> = text.split(' ').collect();
                Held {
                    not_after: hours(words[1].parse().unwrap()),
                    attempt: words[0].parse().unwrap(),
                    under_way: words.get(2) == Some(&"used"),
                }
            };
            let former = Former {
                name: "lyon".into(),
                acknowledged: knows == "yes",
                autonomy: autonomy.parse().unwrap(),
                order_max: Duration::from_secs(72 * 3_600),
                attempts: 3,
                orders: orders.split(", ").filter(|text| *text != "-").map(order).collect(),
            };
            let found = match fence(&former, hours(now.parse().unwrap())) {
                Fence::Open(_) => "open".to_string(),
                Fence::Closed(None, _) => "closed".to_string(),
                Fence::Closed(Some(until), _) => {
                    format!("closed until {}", until.since(start).as_secs() / 3_600)
                }
            };
            assert_eq!(found, expected, "{row:?}");
            count += 1;
        }
        assert!(count > 12, "{count} rows were read");
    }
}

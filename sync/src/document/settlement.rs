//! What becomes of the registers of a document that writers disagree about.
//!
//! A [`Disputed`] register and the policy meet here: who its sides are to the document, what stops, and what the safety
//! floor says of them. Everybody may compute it; only central has the effective times, and only central commits it.

use automerge::ChangeHash;

use super::{
    Class, Document, Kind, Side, Value, claim,
    contested::{self, Disputed},
    node,
    register::{Settled, Untyped},
    task,
};
use crate::{
    id::{Incarnation, Origin, SiteId},
    policy::{
        NodeState, Wanted,
        conflict::{self, Resolution, Rule, Strategy, Writer},
    },
    time::Hlc,
};

/// A disagreement and how it ends.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// The register with all sides.
    pub of: Disputed,
    /// The end.
    pub resolution: Resolution,
}

impl Settlement {
    /// The side that wins, with what a neutral value says of it.
    pub fn winner(&self) -> Option<(&Side<Untyped>, Settled)> {
        let Resolution::Winner(place) = self.resolution else { return None };
        let sides = self.of.read.sides();
        let side = &sides[place];
        Some((side, Settled { of: side.written.clone(), sides: sides.iter().map(Side::nonce).collect() }))
    }
}

/// The site that a document is about: where the machine is at home, or that the task is for.
pub fn home(document: &Document) -> Option<SiteId> {
    match document.kind() {
        Kind::Node => contested::read(document, &node::home()).newest()?.value.home_site,
        Kind::Task => contested::read(document, &task::spec()).newest().map(|side| side.value.for_site),
        Kind::Site | Kind::Group | Kind::Workflow | Kind::Proposal | Kind::Claim => None,
    }
}

/// How every disagreement in a document ends under `strategy`, that of its [`home`], with or without the safety floor.
/// `effective` gives the effective time of what a change wrote with a stamp.
pub fn settlements(
    document: &Document,
    strategy: Strategy,
    has_floor: bool,
    effective: impl Fn(&ChangeHash, Hlc) -> Hlc,
) -> Vec<Settlement> {
    let disputed = contested::disputed(document);
    if disputed.is_empty() {
        return vec![];
    }
    let home = home(document);
    let judge = |of: Disputed| {
        let rule = rule(document.kind(), &of);
        let sides: Vec<_> = of
            .read
            .sides()
            .iter()
            .map(|side| {
                let (counter, actor) = side.op();
                conflict::Side {
                    writer: match side.written.site {
                        Origin::Central => Writer::Central,
                        Origin::Site(site) if Some(site) == home => Writer::Home,
                        Origin::Site(_) => Writer::Elsewhere,
                    },
                    at: effective(&side.change, side.written.at),
                    actor: Incarnation(actor.try_into().unwrap_or_default()),
                    counter,
                    is_first: side.first,
                    value: &side.value.0,
                    boldness: boldness(&of, side),
                    floor: if has_floor { floor(document, &of, side) } else { None },
                }
            })
            .collect();
        let resolution = conflict::resolve(&sides, rule, strategy);
        Settlement { of, resolution }
    };
    disputed.into_iter().map(judge).collect()
}

/// What kind of register it is.
pub fn rule(kind: Kind, of: &Disputed) -> Rule {
    match (of.schema.class, kind, of.container, of.key.as_str()) {
        (Class::Observed, ..) => Rule::Fact,
        (_, Kind::Task, None, "approval" | "cancel" | "order") => Rule::Caution,
        (_, Kind::Claim, Some("consent"), _) => Rule::Caution,
        _ => Rule::Choice,
    }
}

/// The lower, the more cautious.
fn boldness(of: &Disputed, side: &Side<Untyped>) -> u64 {
    let fields = &side.value.0;
    match (of.container, of.key.as_str()) {
        (None, "approval") => task::Approval::from_fields(fields).map_or(0, |it| u64::from(it.approved)),
        (None, "cancel") => task::Cancel::from_fields(fields).map_or(0, |it| u64::from(!it.cancelled)),
        (None, "order") => task::OrderRegister::from_fields(fields).map_or(0, |it| it.not_after.0),
        (Some("consent"), _) => claim::Consent::from_fields(fields).map_or(0, |it| u64::from(it.consents)),
        _ => 0,
    }
}

/// Why only a person may let the side win.
fn floor(document: &Document, of: &Disputed, side: &Side<Untyped>) -> Option<crate::policy::Reason> {
    if document.kind() != Kind::Node || of.container.is_some() {
        return None;
    }
    let agreed = of.read.last_agreed();
    match of.key.as_str() {
        "wanted" => {
            let wanted =
                |side: &Side<Untyped>| node::Wish::from_fields(&side.value.0).map(|wish| wish.wanted).ok();
            conflict::wish_floor(wanted(side)?, agreed.and_then(wanted).unwrap_or(Wanted::Keep))
        }
        "workflow" => {
            let state = node::InForce::of(document).state.map_or(NodeState::Discovered, |state| state.state);
            conflict::workflow_floor(state, agreed.is_some_and(|agreed| agreed.value == side.value))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use automerge::Change;
    use expect_test::expect;

    use super::*;
    use crate::{
        document::{
            Author, Register,
            node::{Text, Wish, hostname, wanted},
            register::Entropy,
        },
        id::NodeId,
    };

    const LYON: SiteId = SiteId([2; 16]);

    /// Replicas of one machine's document, which exchange changes when they are told to.
    struct Replica {
        document: Document,
        author: Author,
    }

    impl Replica {
        fn new(actor: u8, site: Origin) -> Self {
            let author = Author {
                incarnation: Incarnation([actor; 16]),
                site,
                by: if site == Origin::Central { "ann".into() } else { "bob".into() },
                at: Hlc(i64::from(actor)),
                policy_epoch: 1,
                entropy: Entropy::new([actor; 32]),
            };
            Replica { document: Document::new(Kind::Node, NodeId([7; 16]).into()), author }
        }

        fn set<V: Value>(&mut self, register: &Register<V>, value: &V) -> Change {
            self.author.at = Hlc(self.author.at.0 + 10);
            let written = self.document.write(&mut self.author, |edit| {
                edit.set(register, value, "");
            });
            written.expect("it writes")
        }

        fn name(&mut self, name: &str) -> Change {
            self.set(&hostname(), &Text { value: name.into() })
        }

        /// Settles what it may, as central does.
        fn settle(&mut self, strategy: Strategy) -> Change {
            self.author.at = Hlc(self.author.at.0 + 10);
            let found = settlements(&self.document, strategy, true, |_, at| at);
            let written = self.document.write(&mut self.author, |edit| {
                for one in &found {
                    let (side, settled) = one.winner().expect("it is settled");
                    edit.settle(one.of.container, &one.of.key, side.value.0.clone(), &settled, "");
                }
            });
            written.expect("it settles")
        }

        fn hear(&mut self, changes: &[&Change]) {
            self.document.apply_all(changes.iter().map(|change| (*change).clone()).collect()).unwrap();
        }

        fn names(&self) -> String {
            let read = contested::read(&self.document, &hostname());
            let shown = |side: &Side<Text>| {
                let settled = if side.settled_by.is_some() { ", settled" } else { "" };
                format!("{} by {}{settled}", side.value.value, side.written.by)
            };
            let mut names: Vec<_> = read.sides().iter().map(shown).collect();
            names.sort();
            let in_force = read.agreed(Some(LYON)).map(|side| side.value.value.clone()).unwrap_or_default();
            format!("{}; in force: {in_force}", names.join(" | "))
        }
    }

    fn at_home() -> node::Home {
        node::Home { home_site: Some(LYON), home_epoch: 1, claim: None }
    }

    /// Central, and a site that has seen what central called the machine; then both rename it.
    fn apart() -> (Replica, Replica, [Change; 2]) {
        let (mut central, mut site) = (Replica::new(1, Origin::Central), Replica::new(2, Origin::Site(LYON)));
        let home = central.set(&node::home(), &at_home());
        let first = central.name("pos-1");
        site.hear(&[&home, &first]);
        let sides = [central.name("till-1"), site.name("kasse-1")];
        (central, site, sides)
    }

    #[test]
    fn h2_a_neutral_value_is_read_as_what_it_repeats() {
        let (mut central, mut site, [ours, theirs]) = apart();
        central.hear(&[&theirs]);
        expect!["kasse-1 by bob | till-1 by ann; in force: pos-1"].assert_eq(&central.names());
        let settled = central.settle(Strategy::SiteWins);
        site.hear(&[&ours, &settled]);
        expect!["kasse-1 by bob, settled; in force: kasse-1"].assert_eq(&central.names());
        assert_eq!(site.names(), central.names());
        let side = contested::read(&site.document, &hostname());
        let side = side.settled().expect("nobody disagrees");
        assert_eq!((side.written.site, side.written.at), (Origin::Site(LYON), Hlc(12)));
        assert_eq!(side.settled_by.as_ref().map(|by| by.site), Some(Origin::Central));
        // Whoever writes after that replaces it like any other value.
        let later = site.name("kasse-2");
        central.hear(&[&later]);
        expect!["kasse-2 by bob; in force: kasse-2"].assert_eq(&central.names());
    }

    #[test]
    fn h2_whoever_had_seen_all_sides_has_the_last_word_beside_a_neutral_value() {
        let (mut central, mut site, [ours, theirs]) = apart();
        central.hear(&[&theirs]);
        let settled = central.settle(Strategy::CentralWins);
        site.hear(&[&ours]);
        let by_hand = site.name("checkout-1");
        site.hear(&[&settled]);
        central.hear(&[&by_hand]);
        expect!["checkout-1 by bob; in force: checkout-1"].assert_eq(&central.names());
        assert_eq!(site.names(), central.names());
        assert!(contested::disputed(&central.document).is_empty());
        // The next writer replaces both.
        let next = central.name("till-9");
        site.hear(&[&next]);
        expect!["till-9 by ann; in force: till-9"].assert_eq(&site.names());
    }

    #[test]
    fn h2_a_side_that_the_other_writer_had_not_seen_is_not_lost_with_the_neutral_value() {
        for strategy in [Strategy::CentralWins, Strategy::SiteWins] {
            let (mut central, mut site, [ours, theirs]) = apart();
            central.hear(&[&theirs]);
            let settled = central.settle(strategy);
            // The site goes on with its own and has heard of nothing.
            let later = site.name("kasse-2");
            site.hear(&[&ours, &settled]);
            central.hear(&[&later]);
            assert_eq!(central.names(), "kasse-2 by bob | till-1 by ann; in force: kasse-2", "{strategy}");
            assert_eq!(site.names(), central.names(), "{strategy}");
            let again = central.settle(strategy);
            site.hear(&[&again]);
            let winner = if strategy == Strategy::CentralWins { "till-1 by ann" } else { "kasse-2 by bob" };
            assert!(site.names().starts_with(&format!("{winner}, settled;")), "{}", site.names());
        }
    }

    #[test]
    fn h2_two_lives_of_central_that_settle_differently_have_settled_nothing() {
        let (mut central, _, [_, theirs]) = apart();
        central.hear(&[&theirs]);
        let mut other =
            Replica { document: central.document.clone(), author: Replica::new(3, Origin::Central).author };
        central.settle(Strategy::CentralWins);
        let differently = other.settle(Strategy::SiteWins);
        central.hear(&[&differently]);
        expect!["kasse-1 by bob | till-1 by ann; in force: pos-1"].assert_eq(&central.names());
        central.settle(Strategy::SiteWins);
        expect!["kasse-1 by bob, settled; in force: kasse-1"].assert_eq(&central.names());
    }

    #[test]
    fn h3_a_wish_that_would_newly_wipe_stays_open_and_the_least_destructive_is_in_force() {
        let (mut central, mut site) = (Replica::new(1, Origin::Central), Replica::new(2, Origin::Site(LYON)));
        let wish = |wanted| Wish { wanted };
        let home = central.set(&node::home(), &at_home());
        let keep = central.set(&wanted(), &wish(Wanted::Keep));
        site.hear(&[&home, &keep]);
        let ours = central.set(&wanted(), &wish(Wanted::Reprovision));
        let theirs = site.set(&wanted(), &wish(Wanted::Ignored));
        central.hear(&[&theirs]);
        site.hear(&[&ours]);
        let ends = |strategy, has_floor| {
            let found = settlements(&central.document, strategy, has_floor, |_, at| at);
            match (&found[0].resolution, found[0].winner()) {
                (Resolution::Open(reason), _) => reason.to_string(),
                (_, Some((side, _))) => format!("{:?}", side.value.0["wanted"]),
                (_, None) => String::new(),
            }
        };
        expect!["held open by the safety floor: the machine would newly be wanted `reprovision`"]
            .assert_eq(&ends(Strategy::CentralWins, true));
        expect![[r#"Str("ignored")"#]].assert_eq(&ends(Strategy::SiteWins, true));
        expect![[r#"Str("reprovision")"#]].assert_eq(&ends(Strategy::CentralWins, false));
        for replica in [&central, &site] {
            let found = node::InForce::of(&replica.document);
            assert_eq!((found.wanted, found.contested), (Wanted::Ignored, vec!["wanted".to_string()]));
        }
    }
}

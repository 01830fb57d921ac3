//! Who wins where writers disagree about a register, and what nobody but a person may settle.
//!
//! [`resolve`] looks at plain values and at nothing else, so that everybody comes to the same end, in whatever order
//! the sides are given. Only central commits what it says. The tables stand once more, by hand, in
//! `fixtures/policies/conflicts.txt`.
//!
//! Times are *effective*: the writer's stamp, or when central heard of it, if that was earlier. A clock that is ahead
//! wins nothing by it.

use super::{NodeState, Reason, Wanted, words};
use crate::{id::Incarnation, time::Hlc};

words! {
    /// How disagreements are settled: `conflict_resolution`.
    pub enum Strategy {
        /// What central decided.
        CentralWins = "central_wins",
        /// What was written last.
        LastWrite = "last_write",
        /// What the home site decided.
        SiteWins = "site_wins",
        /// A person decides.
        Manual = "manual",
    }
}

impl Default for Strategy {
    /// Central's word counts where nobody said otherwise.
    fn default() -> Self {
        Strategy::CentralWins
    }
}

words! {
    /// Whose word a settled disagreement ended with.
    pub enum Accepted {
        /// What central decided.
        Central = "accepted_central",
        /// What a site decided.
        Site = "accepted_site",
        /// Something else, that a person put together.
        Merged = "merged",
    }
}

/// Who wrote a side, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Central.
    Central,
    /// The site that it is about: where the machine is at home, or that the task is for.
    Home,
    /// Another site.
    Elsewhere,
}

/// What kind of register it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// A fact: whoever sees the machine knows, and nobody is asked.
    Fact,
    /// Something that stops: the more cautious side wins.
    Caution,
    /// A choice: as the strategy says, above which the safety floor stands.
    Choice,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side<V> {
    /// Who wrote it.
    pub writer: Writer,
    /// Its effective time.
    pub at: Hlc,
    /// The actor that wrote it.
    pub actor: Incarnation,
    /// Number of the operation among those of the document.
    pub counter: u64,
    /// Whether its writer had seen nothing of the document.
    pub is_first: bool,
    /// What it says.
    pub value: V,
    /// For [`Rule::Caution`]: the lower, the more cautious.
    pub boldness: u64,
    /// For [`Rule::Choice`]: why only a person may let it win.
    pub floor: Option<Reason>,
}

impl<V> Side<V> {
    /// Later ones are greater; no two sides of a register are equal.
    fn order(&self) -> (Hlc, Incarnation, u64) {
        (self.at, self.actor, self.counter)
    }
}

/// How a disagreement ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// This side, by its place among those given.
    Winner(usize),
    /// Not yet: a person decides, for this reason.
    Open(Reason),
}

/// Settles a disagreement, or leaves it open.
pub fn resolve<V: PartialEq>(sides: &[Side<V>], rule: Rule, strategy: Strategy) -> Resolution {
    let latest = |among: &dyn Fn(&Side<V>) -> bool| {
        let meant = sides.iter().enumerate().filter(|(_, side)| among(side));
        meant.max_by_key(|(_, side)| side.order()).map(|(place, _)| place)
    };
    let last = latest(&|_| true);
    let agree = sides.windows(2).all(|pair| pair[0].value == pair[1].value);
    let winner = match (rule, strategy) {
        // They all say the same.
        _ if agree => last,
        (Rule::Fact, _) => {
            let rank = |side: &Side<V>| (side.writer == Writer::Home, !side.is_first, side.order());
            sides.iter().enumerate().max_by_key(|(_, side)| rank(side)).map(|(place, _)| place)
        }
        (Rule::Caution, _) => {
            let least = sides.iter().map(|side| side.boldness).min();
            latest(&|side| Some(side.boldness) == least)
        }
        (Rule::Choice, Strategy::Manual) => None,
        (Rule::Choice, Strategy::LastWrite) => last,
        (Rule::Choice, Strategy::CentralWins) => latest(&|side| side.writer == Writer::Central).or(last),
        (Rule::Choice, Strategy::SiteWins) => latest(&|side| side.writer == Writer::Home).or(last),
    };
    let Some(winner) = winner else {
        return Resolution::Open(Reason::new("`conflict_resolution` is `manual`, so a person decides"));
    };
    match &sides[winner].floor {
        Some(floor) if rule == Rule::Choice && !agree => {
            Resolution::Open(Reason::new(format!("held open by the safety floor: {floor}")))
        }
        Some(_) | None => Resolution::Winner(winner),
    }
}

/// Why only a person may let a wish win: it would newly take the machine's disk or the machine itself. `agreed` is the
/// last wish that all sides had seen.
pub fn wish_floor(wanted: Wanted, agreed: Wanted) -> Option<Reason> {
    match wanted {
        Wanted::Keep | Wanted::Ignored => None,
        Wanted::Reprovision | Wanted::Deprovision | Wanted::Retired => {
            (wanted != agreed).then(|| Reason::new(format!("the machine would newly be wanted `{wanted}`")))
        }
    }
}

/// Why only a person may change what a machine is meant to run: it is being installed.
pub fn workflow_floor(state: NodeState, is_agreed: bool) -> Option<Reason> {
    (state == NodeState::Installing && !is_agreed)
        .then(|| Reason::new("the workflow of a machine that is being installed would change"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `central@10=a home@20=b! elsewhere@30=c, first`: who, effective time, what; `!`: held by the floor.
    fn sides(text: &str) -> Vec<Side<String>> {
        let mut sides = Vec::new();
        for (place, word) in text.split_whitespace().enumerate() {
            let (word, is_first) = word.strip_suffix("(first)").map_or((word, false), |word| (word, true));
            let (word, floor) =
                word.strip_suffix('!').map_or((word, None), |word| (word, Some(Reason::new("it wipes"))));
            let (writer, rest) = word.split_once('@').expect("a writer");
            let (at, value) = rest.split_once('=').expect("a time");
            let writer = match writer {
                "central" => Writer::Central,
                "home" => Writer::Home,
                _ => Writer::Elsewhere,
            };
            let place = u8::try_from(place).unwrap();
            sides.push(Side {
                writer,
                at: Hlc(at.parse().unwrap()),
                actor: Incarnation([place; 16]),
                counter: 7,
                is_first,
                value: value.to_string(),
                boldness: u64::from(value.as_bytes()[0]),
                floor,
            });
        }
        sides
    }

    fn shown(sides: &[Side<String>], resolution: &Resolution) -> String {
        match resolution {
            Resolution::Winner(place) => sides[*place].value.clone(),
            Resolution::Open(reason) if reason.as_str().contains("floor") => "floor".into(),
            Resolution::Open(_) => "open".into(),
        }
    }

    fn permutations(of: usize) -> Vec<Vec<usize>> {
        let Some(last) = of.checked_sub(1) else { return vec![vec![]] };
        let shorter = permutations(last).into_iter();
        shorter
            .flat_map(|rest| {
                (0..of).map(move |place| {
                    let mut one = rest.clone();
                    one.insert(place, last);
                    one
                })
            })
            .collect()
    }

    /// Settles the sides in every order that there is; all must end alike.
    fn settle(text: &str, rule: Rule, strategy: Strategy) -> String {
        let sides = sides(text);
        let found = shown(&sides, &resolve(&sides, rule, strategy));
        for order in permutations(sides.len()) {
            let turned: Vec<_> = order.iter().map(|place| sides[*place].clone()).collect();
            assert_eq!(shown(&turned, &resolve(&turned, rule, strategy)), found, "{text} as {order:?}");
        }
        found
    }

    #[test]
    fn p7_every_cell_of_the_table_of_conflicts_holds_in_every_order_of_the_sides() {
        let text = include_str!("../../../fixtures/policies/conflicts.txt");
        let mut rows = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let header: Vec<&str> = rows.next().expect("a header").split('|').map(str::trim).collect();
        let strategies: Vec<Strategy> = header[2..].iter().map(|word| word.parse().unwrap()).collect();
        assert_eq!(strategies.len(), Strategy::ALL.len());
        let mut cells = 0;
        for row in rows {
            let cells_of: Vec<&str> = row.split('|').map(str::trim).collect();
            let rule = match cells_of[0] {
                "fact" => Rule::Fact,
                "caution" => Rule::Caution,
                "choice" => Rule::Choice,
                other => panic!("no rule {other}"),
            };
            for (strategy, expected) in strategies.iter().zip(&cells_of[2..]) {
                assert_eq!(settle(cells_of[1], rule, *strategy), *expected, "{strategy}: {row}");
                cells += 1;
            }
        }
        assert!(cells >= 100, "{cells} cells");
    }

    #[test]
    fn p7_whatever_the_sides_their_order_does_not_matter() {
        let mut seed = 1_u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..2_000 {
            let count = 2 + draw(4);
            let mut text = String::new();
            for _ in 0..count {
                let writer = ["central", "home", "elsewhere"][usize::try_from(draw(3)).unwrap()];
                let value = ["a", "b", "c"][usize::try_from(draw(3)).unwrap()];
                let floor = if draw(4) == 0 { "!" } else { "" };
                let first = if draw(5) == 0 { "(first)" } else { "" };
                text.push_str(&format!("{writer}@{}={value}{floor}{first} ", draw(4)));
            }
            for rule in [Rule::Fact, Rule::Caution, Rule::Choice] {
                for strategy in Strategy::ALL {
                    settle(&text, rule, *strategy);
                }
            }
        }
    }

    #[test]
    fn h3_what_would_newly_take_a_machine_is_left_to_a_person() {
        let held = |wanted: Wanted, agreed| wish_floor(wanted, agreed).is_some();
        let table: Vec<String> = Wanted::ALL
            .iter()
            .map(|agreed| {
                let cells =
                    Wanted::ALL.iter().map(|wanted| if held(*wanted, *agreed) { "held" } else { "free" });
                format!("{agreed}: {}", cells.collect::<Vec<_>>().join(" "))
            })
            .collect();
        expect_test::expect![[r#"
            keep: free free held held held
            ignored: free free held held held
            reprovision: free free free held held
            deprovision: free free held free held
            retired: free free held held free"#]]
        .assert_eq(&table.join("\n"));
        let workflow = |state, is_agreed| workflow_floor(state, is_agreed).is_some();
        assert!(workflow(NodeState::Installing, false) && !workflow(NodeState::Installing, true));
        assert!(
            NodeState::ALL.iter().all(|state| *state == NodeState::Installing || !workflow(*state, false))
        );
    }
}

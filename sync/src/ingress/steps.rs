//! What each step is for: the pipeline once more, out of the same gates, with one step left out.
//!
//! [`STEPS`] names for each step the attack that it alone stops; [`broken`] lists what does not hold any more
//! once the step is missing. With all six everything holds, for these attacks and for mutants.
//!
//! Five steps are missed at once. The trial on a copy stands behind the others: nothing is known that passes
//! them and harms a document, so it is shown with a hole in the step before it.

use std::{collections::BTreeMap, fmt};

use automerge::{
    Change,
    legacy::{Key, OpId, OpType, SortedVec},
};
use expect_test::expect;

use super::{
    lint::forge::{Chunk, repair},
    testing::{LYON, Random, author, encode, quietly, text, write},
    tests::{mutate_bytes, mutate_meaning, situation, survives},
    verify::guard,
    *,
};
use crate::{
    document::{Kind, contested, node},
    id::{DocumentId, Origin, SiteId},
    policy::Autonomy,
};

/// One of the six.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Lint,
    Parse,
    Semantic,
    Authorize,
    Verify,
    SetAside,
}

const STEPS: [Step; 6] =
    [Step::Lint, Step::Parse, Step::Semantic, Step::Authorize, Step::Verify, Step::SetAside];

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Lint => "lint",
            Step::Parse => "parse and re-encode",
            Step::Semantic => "semantic",
            Step::Authorize => "authorize",
            Step::Verify => "verify",
            Step::SetAside => "set aside and go on",
        })
    }
}

/// The pipeline of central, perhaps with a step left out.
#[derive(Clone, Copy, Debug)]
struct Pipeline {
    /// Who delivers.
    site: SiteId,
    without: Option<Step>,
    /// As if the semantic step forgot to ask where a change stands and what it replaces.
    hole: bool,
}

impl Pipeline {
    fn has(self, step: Step) -> bool {
        self.without != Some(step)
    }

    fn delivery(self) -> Delivery {
        Delivery {
            site: self.site,
            name: "the site".into(),
            actor_is_theirs: true,
            autonomy: Autonomy::Full,
            released: false,
            beyond: false,
        }
    }

    /// Takes a batch into the document. What is refused is left out; without the last step it ends the batch.
    fn take(self, document: &mut Document, batch: &[Vec<u8>]) -> Taken {
        let mut taken = Taken::default();
        for bytes in batch {
            match self.take_one(document, bytes, &mut taken) {
                Ok(Some(change)) => taken.changes.push(change),
                Ok(None) => {}
                Err(Refused) if self.has(Step::SetAside) => {}
                Err(Refused) => break,
            }
        }
        taken
    }

    fn take_one(
        self,
        document: &mut Document,
        bytes: &[u8],
        taken: &mut Taken,
    ) -> Result<Option<Change>, Refused> {
        if self.has(Step::Lint) {
            lint(bytes).map_err(|_| Refused)?;
        }
        let parsed = self.decode(bytes)?;
        taken.operations = taken.operations.max(parsed.expanded.operations.len());
        taken.bytes = taken.bytes.max(parsed.change.raw_bytes().len());
        let Some(writes) = self.place(document, &parsed)? else { return Ok(None) };
        if self.has(Step::Authorize) {
            let judged =
                guard("judge a change", || authorize(document, &parsed.change, &writes, &self.delivery()));
            judged.map_err(|_| Refused)?.map_err(|_| Refused)?;
        }
        if self.has(Step::Verify) {
            let extended = extend(document, &parsed.change).map_err(|_| Refused)?;
            verify(&extended).map_err(|_| Refused)?;
            *document = extended;
        } else {
            document.apply(parsed.change.clone()).map_err(|_| Refused)?;
        }
        Ok(Some(parsed.change))
    }

    fn decode(self, bytes: &[u8]) -> Result<Parsed, Refused> {
        let decode = || {
            let change = Change::try_from(bytes).map_err(|_| Refused)?;
            let expanded = change.decode();
            Ok(Parsed { change, expanded })
        };
        if !self.has(Step::Parse) {
            return decode();
        }
        let parsed = guard("decode a change", decode).map_err(|_| Refused)??;
        let again = guard("encode it again", || Change::from(parsed.expanded.clone()).hash());
        if again.is_ok_and(|again| again == parsed.hash()) { Ok(parsed) } else { Err(Refused) }
    }

    /// What the change writes, if it can follow.
    fn place(self, document: &Document, parsed: &Parsed) -> Result<Option<Vec<Write>>, Refused> {
        let as_read = || registers(document.kind(), document.id(), parsed);
        if !self.has(Step::Semantic) {
            return Ok(Some(as_read().unwrap_or_default()));
        }
        match check(document, parsed, UnknownKeys::Refuse) {
            Ok(Standing::Fits { writes }) => Ok(Some(writes)),
            Ok(Standing::Present | Standing::Waiting { .. }) => Ok(None),
            Err(Rejection::Semantic(
                SemanticError::Predecessors(_)
                | SemanticError::StartOp { .. }
                | SemanticError::Sequence { .. }
                | SemanticError::Forgetful,
            )) if self.hole => Ok(Some(as_read().unwrap_or_default())),
            Err(_) => Err(Refused),
        }
    }
}

struct Refused;

/// What came of a batch.
#[derive(Default)]
struct Taken {
    changes: Vec<Change>,
    /// Most operations and bytes of what was decoded.
    operations: usize,
    bytes: usize,
}

const LYON_SITE: SiteId = SiteId([2; 16]);
const BERN_SITE: SiteId = SiteId([3; 16]);

/// A machine at home in Lyon, which central named.
fn machine_of_lyon() -> Document {
    let mut document = Document::new(Kind::Node, DocumentId([7; 16]));
    let home = node::Home { home_site: Some(LYON_SITE), home_epoch: 1, claim: None };
    write(&mut document, author(1, Origin::Central, 10), &node::home(), &home);
    write(&mut document, author(1, Origin::Central, 11), &node::hostname(), &text("pos-1"));
    write(&mut document, author(2, LYON, 12), &node::notes(), &text("under the till"));
    document
}

const REFUSED_NEXT: &str = "what is taken here is refused by the next replica";

/// Everything that does not hold after `batch`, in words; `honest` must be in the document then.
fn broken(pipeline: Pipeline, before: &Document, batch: &[Vec<u8>], honest: &Change) -> Vec<&'static str> {
    let mut document = before.clone();
    let mut broken = Vec::new();
    let Ok(taken) = quietly(|| guard("", || pipeline.take(&mut document, batch))) else {
        // A panic that is not under guard ends more than this batch.
        return vec!["a panic escapes"];
    };
    if taken.operations as u64 > MAX_OPERATIONS || taken.bytes > MAX_BYTES {
        broken.push("work without a bound");
    }
    let sound = quietly(|| guard("", || survives(&document, &mut Random(1))));
    if !sound.unwrap_or(false) {
        broken.push("a document that does not load");
    }
    let strange = |change: &Change| {
        let parsed = Parsed { change: change.clone(), expanded: change.decode() };
        let writes = registers(before.kind(), before.id(), &parsed).unwrap_or_default();
        writes.iter().any(|write| write.written.site != Origin::Site(pipeline.site))
    };
    if placed(before) != placed(&document) || taken.changes.iter().any(strange) {
        broken.push("what the site may not decide is decided");
    }
    if !document.has(&honest.hash()) {
        broken.push("an honest change is not taken");
    }
    // Whoever is told of it next has all six steps.
    let told: Vec<&[u8]> = taken.changes.iter().map(Change::raw_bytes).collect();
    let next = quietly(|| admit(before, &told, UnknownKeys::Refuse, Authority::Trusted));
    if next.outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Accept(_))) {
        broken.push(REFUSED_NEXT);
    }
    broken
}

/// What central decided about where the machine belongs, every side of it.
fn placed(document: &Document) -> Vec<node::Home> {
    contested::read(document, &node::home()).sides().iter().map(|side| side.value.clone()).collect()
}

/// A change by Lyon to the machine, edited and encoded again.
fn forged(document: &Document, edit: impl FnOnce(&mut ExpandedChange)) -> Vec<u8> {
    let change = write(&mut document.clone(), author(2, LYON, 20), &node::notes(), &text("kasse"));
    let mut change = change.decode();
    edit(&mut change);
    encode(&change)
}

/// Ids of the sides of a register at the root.
fn sides(document: &Document, key: &str) -> Vec<OpId> {
    let all = automerge::ReadDoc::get_all(document.automerge(), automerge::ROOT, key).expect("a key");
    let id = |(_, id)| match id {
        automerge::ObjId::Id(counter, actor, _) => Some(OpId(counter, actor)),
        automerge::ObjId::Root => None,
    };
    all.into_iter().filter_map(id).collect()
}

/// The attack that a step alone stops, and its name.
fn attack(step: Step, document: &Document) -> (&'static str, Vec<u8>) {
    match step {
        Step::Lint => {
            ("a message of 100,000 bytes", forged(document, |it| it.message = Some("m".repeat(100_000))))
        }
        Step::Parse => {
            // The object of the fields is made by actor 9 of two.
            let honest = forged(document, |_| ());
            let chunk = Chunk::of(&honest).column(0x01, vec![0, 1, 7, 9]);
            ("an object by an actor that is not named", chunk.bytes())
        }
        Step::Semantic => {
            let home = sides(document, "home");
            let bytes = forged(document, |it| {
                it.operations.truncate(1);
                let deletes = &mut it.operations[0];
                deletes.key = Key::Map("home".into());
                deletes.action = OpType::Delete;
                deletes.pred = SortedVec::from(home);
            });
            ("a change that says nothing and deletes the home of the machine", bytes)
        }
        Step::Authorize => {
            let home = node::Home { home_site: None, home_epoch: 2, claim: None };
            let change = write(&mut document.clone(), author(2, LYON, 20), &node::home(), &home);
            ("a home that the site gives", change.raw_bytes().to_vec())
        }
        Step::Verify => {
            let nothing = OpId(3, automerge::ActorId::from(&[2; 16][..]));
            let bytes = forged(document, |it| it.operations[0].pred = vec![nothing].into());
            ("notes that replace what never was, past a hole in the semantic step", bytes)
        }
        Step::SetAside => ("noise", b"noise".to_vec()),
    }
}

/// What a site always may say, by an actor of its own.
fn witness(document: &Document, site: SiteId) -> Change {
    let seen = node::Observed { first_seen: crate::time::Timestamp(1), asked_again: None };
    write(&mut document.clone(), author(6, Origin::Site(site), 200), &node::observed(site), &seen)
}

/// What does not hold when the attack of a step meets a pipeline; an honest change comes right after it.
fn check_attack(step: Step, pipeline: Pipeline) -> Vec<&'static str> {
    let document = machine_of_lyon();
    let (_, bytes) = attack(step, &document);
    let honest = witness(&document, LYON_SITE);
    broken(pipeline, &document, &[bytes, honest.raw_bytes().to_vec()], &honest)
}

#[test]
fn h6_without_any_one_step_something_does_not_hold() {
    let mut table = String::new();
    for step in STEPS {
        let hole = step == Step::Verify;
        let (name, _) = attack(step, &machine_of_lyon());
        let without = check_attack(step, Pipeline { site: LYON_SITE, without: Some(step), hole });
        let with = check_attack(step, Pipeline { site: LYON_SITE, without: None, hole });
        assert_eq!(with, [""; 0], "with all six steps everything holds, whatever {name}");
        assert!(!without.is_empty(), "{step} is missed by nobody");
        table += &format!("without {step}: {name}: {}\n", without.join("; "));
    }
    expect![[r#"
        without lint: a message of 100,000 bytes: work without a bound; what is taken here is refused by the next replica
        without parse and re-encode: an object by an actor that is not named: a panic escapes
        without semantic: a change that says nothing and deletes the home of the machine: what the site may not decide is decided; what is taken here is refused by the next replica
        without authorize: a home that the site gives: what the site may not decide is decided
        without verify: notes that replace what never was, past a hole in the semantic step: a document that does not load; what is taken here is refused by the next replica
        without set aside and go on: noise: an honest change is not taken
    "#]]
    .assert_eq(&table);
}

#[test]
fn h6_bytes_with_a_wrong_checksum_are_stopped_by_the_lint_alone() {
    let document = machine_of_lyon();
    let mut wrong = forged(&document, |_| ());
    let honest = Change::try_from(&wrong[..]).expect("an honest change");
    wrong[4] ^= 1;
    let found = |without| {
        let mut document = document.clone();
        let pipeline = Pipeline { site: LYON_SITE, without, hole: false };
        pipeline.take(&mut document, std::slice::from_ref(&wrong)).changes.len()
    };
    assert_eq!(found(None), 0);
    let taken = found(Some(Step::Lint));
    assert_eq!(taken, 1, "automerge does not ask for it");
    repair(&mut wrong);
    assert_eq!(Change::try_from(&wrong[..]).expect("repaired").hash(), honest.hash());
}

/// Mutants of honest changes, each with an honest change of somebody else behind it in the batch.
#[test]
fn h6_mutants_break_what_no_step_stops_and_nothing_where_all_six_stand() {
    let mut report = String::new();
    let pipelines = [None].into_iter().chain(STEPS.map(Some)).map(|without| (without, false));
    // A hole alone does no harm as long as the trial on a copy stands behind it.
    let holes = [(None, true), (Some(Step::Verify), true)];
    for (without, hole) in pipelines.chain(holes) {
        let pipeline = Pipeline { site: BERN_SITE, without, hole };
        let mut found: BTreeMap<&'static str, u64> = BTreeMap::new();
        for seed in 1..=300 {
            let mut random = Random(seed);
            let (document, change) = situation(&mut random);
            let mutant = if seed % 2 == 0 {
                mutate_bytes(&change, &mut random)
            } else {
                mutate_meaning(&document, &change, &mut random)
            };
            if without == Some(Step::Lint)
                && matches!(lint(&mutant), Err(LintError::Operations | LintError::Predecessors))
            {
                // Automerge would not come back from these.
                *found.entry("work without a bound").or_default() += 1;
                continue;
            }
            let witness = witness(&document, BERN_SITE);
            let batch = [mutant, witness.raw_bytes().to_vec()];
            for what in broken(pipeline, &document, &batch, &witness) {
                // The next replica has no hole; that it refuses what one let through is as it should be.
                if !(hole && what == REFUSED_NEXT) {
                    *found.entry(what).or_default() += 1;
                }
            }
        }
        let name = without.map_or("all six".to_string(), |step| format!("without {step}"));
        let name = if hole { format!("{name}, with a hole in the semantic step") } else { name };
        report += &format!("{name}: {found:?}\n");
        match (without, hole) {
            (None, _) => assert!(found.is_empty(), "{report}"),
            (Some(Step::Verify), false) => {}
            (Some(_), _) => assert!(!found.is_empty(), "{report}"),
        }
    }
    println!("{report}");
}

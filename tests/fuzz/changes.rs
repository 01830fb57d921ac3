//! Mutants of changes, through every gate.

use std::time::Duration;

use harness::{
    corpus::Situation,
    mutant::{
        self, quietly,
        tally::{Stage, Tally, cpu},
        trial::Trial,
    },
    random::Random,
};
use sync::{
    document::Document,
    ingress::{self, Authority, Outcome, Standing, UnknownKeys, admit, verify},
};

use crate::{corpus, seeds};

/// Mutants of an ordinary run.
const COUNT: u64 = 14_000;

/// On a core, for a mutant and the honest change in its batch, with the document saved and loaded.
const SLOWEST: Duration = Duration::from_millis(500);

#[test]
fn h6_no_mutated_change_panics_spoils_a_document_or_keeps_an_honest_one_out() {
    let corpus = corpus();
    let mut tally = Tally::new("change");
    let mut honest = 0;
    for seed in seeds("change", COUNT) {
        let random = &mut Random::new(seed);
        let situation = corpus.situation(random);
        let mutant = mutant::change(random, corpus, &situation);
        let trial = Trial { corpus, situation, seed, is_central: !random.chance(25) };
        let site = trial.deliverer(random);
        let begun = cpu();
        let end = trial.run(random, site, &mutant, &mut honest);
        tally.note(seed, end, cpu().saturating_sub(begun));
    }
    tally.judge(SLOWEST);
    println!("{honest} honest changes beside them, none refused");
    if tally.count() >= 1_000 {
        assert!(honest >= tally.count(), "an honest change follows every mutant");
        for stage in [Stage::Lint, Stage::Semantic, Stage::Authorize, Stage::Parked, Stage::Accepted] {
            assert!(tally.at(stage) > 0, "nothing ended at {stage:?}: {tally}");
        }
    }
}

/// Every history passes three times, or as often as there are thousands of mutants asked for.
fn rounds() -> Vec<u64> {
    seeds("batch", 3_000).into_iter().step_by(1_000).collect()
}

#[test]
fn h6_a_batch_of_nothing_but_mutants_and_honest_changes_keeps_the_honest_ones() {
    let corpus = corpus();
    let (mut taken, mut refused) = (0, 0);
    for (seed, history) in
        rounds().into_iter().flat_map(|seed| corpus.histories.iter().map(move |history| (seed, history)))
    {
        let random = &mut Random::new(seed);
        // The whole history in one batch, a mutant of each change before it.
        let mut batch = Vec::new();
        for (at, next) in history.changes.iter().enumerate() {
            let situation = Situation { history, document: &history.states[at], next };
            let mutant = mutant::change(random, corpus, &situation);
            // One that is sound in itself is a second history of its writer, which is not asked for here.
            let fits = |standing| matches!(standing, Ok(Standing::Fits { .. }));
            let is_sound = quietly(|| {
                ingress::parse(&mutant)
                    .is_ok_and(|parsed| fits(ingress::check(situation.document, &parsed, UnknownKeys::Keep)))
            });
            if !is_sound.unwrap_or(false) {
                batch.push((false, mutant));
            }
            batch.push((true, next.bytes.clone()));
        }
        let slices: Vec<&[u8]> = batch.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let empty = Document::new(history.kind, history.id);
        let admission = quietly(|| admit(&empty, &slices, UnknownKeys::Keep, Authority::Trusted))
            .unwrap_or_else(|_| panic!("seed {seed}: a panic escapes"));
        for ((is_honest, _), outcome) in batch.iter().zip(&admission.outcomes) {
            let is_taken = matches!(outcome, Outcome::Accept(_) | Outcome::Duplicate);
            assert!(is_taken || !is_honest, "seed {seed}: an honest change is refused: {outcome:?}");
            taken += u64::from(*is_honest);
            refused += u64::from(!is_taken);
        }
        let after = admission.document.unwrap_or(empty);
        let last = history.states.last().expect("a document");
        assert!(last.heads().iter().all(|head| after.has(head)), "seed {seed}: everything honest is there");
        verify(&after).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    println!("{taken} honest changes taken among {refused} mutants that were not");
}

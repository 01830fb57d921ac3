//! Mutants of whole documents, taken apart and passed change by change.

use std::time::Duration;

use harness::{
    corpus::Situation,
    mutant::{
        self, quietly,
        tally::{End, Stage, Tally, cpu},
        trial::Trial,
    },
    random::Random,
};
use sync::{document::Document, ingress::snapshot};

use crate::{corpus, seeds};

/// Mutants of an ordinary run.
const COUNT: u64 = 8_000;

/// On a core, for a snapshot with all its changes.
const SLOWEST: Duration = Duration::from_secs(2);

#[test]
fn h6_no_mutated_snapshot_panics_or_spoils_a_document() {
    let corpus = corpus();
    let mut tally = Tally::new("snapshot");
    for seed in seeds("snapshot", COUNT) {
        let random = &mut Random::new(seed);
        let situation = corpus.situation(random);
        let mutant = mutant::snapshot(random, corpus, &situation);
        let trial = Trial { corpus, situation, seed, is_central: random.chance(50) };
        let begun = cpu();
        let end = take(&trial, random, &mutant);
        tally.note(seed, end, cpu().saturating_sub(begun));
    }
    tally.judge(SLOWEST);
    if tally.count() >= 1_000 {
        for stage in [Stage::Lint, Stage::Parse, Stage::Semantic, Stage::Accepted] {
            assert!(tally.at(stage) > 0, "nothing ended at {stage:?}: {tally}");
        }
    }
}

/// Where a snapshot ends: where it cannot be taken apart, or at the first gate that one of its changes does not
/// pass.
fn take(trial: &Trial<'_>, random: &mut Random, mutant: &[u8]) -> End {
    let Situation { history, .. } = trial.situation;
    let read = quietly(|| snapshot::read(history.kind, history.id, mutant));
    let changes = match read.unwrap_or_else(|_| panic!("seed {}: a panic escapes", trial.seed)) {
        Ok(changes) => changes,
        Err(rejection) => return (&rejection).into(),
    };
    let batch: Vec<&[u8]> = changes.iter().map(Vec::as_slice).collect();
    let site = trial.deliverer(random);
    let empty = Document::new(history.kind, history.id);
    let admission = trial.admit(&empty, &batch, site, None);
    if let Some(document) = &admission.document {
        trial.survives(document, random);
    }
    let ends = admission.outcomes.iter().map(End::from);
    // What follows a refused change waits in vain: that is not why.
    let refused = ends.filter(|end| ![Stage::Accepted, Stage::Known, Stage::Parked].contains(&end.stage));
    refused.min_by_key(|end| end.stage).unwrap_or(Stage::Accepted.into())
}

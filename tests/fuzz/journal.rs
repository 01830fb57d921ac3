//! Mutants of journal entries, against the chain that they would continue.

use std::time::Duration;

use harness::{
    corpus::{Chain, pick},
    mutant::{
        self, quietly,
        tally::{End, Stage, Tally, cpu},
    },
    random::Random,
};
use sync::journal::{ChainError, Head, chain};

use crate::{corpus, seeds};

/// Mutants of an ordinary run.
const COUNT: u64 = 60_000;

/// On a core.
const SLOWEST: Duration = Duration::from_millis(100);

#[test]
fn p15_no_mutated_entry_panics_or_breaks_a_chain() {
    let corpus = corpus();
    let mut tally = Tally::new("entry");
    let heads: Vec<Vec<Option<Head>>> = corpus.chains.iter().map(heads).collect();
    for seed in seeds("entry", COUNT) {
        let random = &mut Random::new(seed);
        let which = pick(random, corpus.chains.len());
        let chain = &corpus.chains[which];
        let at = pick(random, chain.entries.len());
        let head = &heads[which][at];
        let honest = &chain.entries[at];
        let mutant = mutant::entry(random, corpus, honest);
        let begun = cpu();
        let found = quietly(|| chain::follow(chain.stream, head.as_ref(), &mutant))
            .unwrap_or_else(|_| panic!("seed {seed}: a panic escapes"));
        let took = cpu().saturating_sub(begun);
        let end: End = match &found {
            Err(ChainError::TooLong(_)) => Stage::Lint.into(),
            Err(ChainError::Decode(_)) => Stage::Parse.into(),
            Err(ChainError::Stream { .. } | ChainError::Gap { .. } | ChainError::Fork(_)) => {
                Stage::Semantic.into()
            }
            Ok(_) if mutant == *honest => Stage::Known.into(),
            Ok(_) => Stage::Accepted.into(),
        };
        tally.note(seed, end, took);
        // Whoever put another entry in the place of one is found by the next one, which carries its hash.
        let next = chain.entries.get(at + 1);
        match (found, next) {
            (Ok((_, after)), Some(next)) if mutant != *honest => {
                let continued = chain::follow(chain.stream, Some(&after), next);
                assert!(continued.is_err(), "seed {seed}: a changed entry is not noticed");
            }
            (Err(_), _) => {
                let honest = chain::follow(chain.stream, head.as_ref(), honest);
                assert!(honest.is_ok(), "seed {seed}: an honest entry is refused: {honest:?}");
            }
            (Ok(_), _) => {}
        }
    }
    tally.judge(SLOWEST);
}

/// The head of a chain before each of its entries.
fn heads(chain: &Chain) -> Vec<Option<Head>> {
    let mut heads = vec![None];
    for entry in &chain.entries {
        let head: Option<&Head> = heads.last().and_then(Option::as_ref);
        heads.push(Some(chain::follow(chain.stream, head, entry).expect("an honest entry").1));
    }
    heads
}

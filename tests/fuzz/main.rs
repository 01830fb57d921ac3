//! Mutants of everything that a peer sends, against the code that takes it in.
//!
//! The honest bytes are those of a played fleet (`harness::corpus`), the mutants are sealed again so that no
//! checksum gives them away (`harness::mutant`). Each kind of input has its own module and prints where its
//! mutants ended. What must hold: nothing panics but foreign code under guard; every document comes back from
//! its own bytes with the same heads; nothing that a site may not write is visible; nobody honest is refused
//! for what a mutant did; and no input takes long.
//!
//! Input `n` is made from seed + n alone. `HOLDFAST_FUZZ_COUNT` says how many of each kind, instead of what
//! fits a minute; `HOLDFAST_FUZZ_SEED` where to begin. A seed that found something is in
//! `fixtures/seeds/fuzz.txt` and runs every time.

mod changes;
mod snapshots;
mod journal;
mod sessions;

use std::{env, sync::OnceLock};

use harness::corpus::Corpus;

/// Seed of the fleet whose bytes are mutated.
const FLEET: u64 = 3;

/// What the fleet said; played once for all kinds.
fn corpus() -> &'static Corpus {
    static CORPUS: OnceLock<Corpus> = OnceLock::new();
    CORPUS.get_or_init(|| Corpus::of_session(FLEET).1)
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Seeds of one kind of input: those that once found something, then as many as were asked for.
fn seeds(kind: &str, count: u64) -> Vec<u64> {
    let first = number("HOLDFAST_FUZZ_SEED");
    let count = number("HOLDFAST_FUZZ_COUNT").unwrap_or(count);
    let kept = include_str!("../../fixtures/seeds/fuzz.txt").lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(kind)).then(|| words.next()?.parse().ok())?
    });
    let begin = first.unwrap_or(1);
    kept.filter(|_| first.is_none()).chain(begin..begin + count).collect()
}

#[test]
fn the_corpus_holds_every_sort_of_message_and_document() {
    let corpus = corpus();
    let sorts = corpus.sorts();
    println!(
        "{} documents with {} changes, {} chains with {} entries, frames by message: {sorts:?}",
        corpus.histories.len(),
        corpus.histories.iter().map(|history| history.changes.len()).sum::<usize>(),
        corpus.chains.len(),
        corpus.chains.iter().map(|chain| chain.entries.len()).sum::<usize>(),
    );
    // Refusals, number 2, are what honest replicas do not hear.
    for number in [0, 1, 3, 4, 5, 6, 7, 8, 9] {
        assert!(sorts.contains_key(&number), "no frame with message {number}: {sorts:?}");
    }
    let kinds: std::collections::BTreeSet<&str> =
        corpus.histories.iter().map(|history| history.kind.as_str()).collect();
    // No command makes a group yet.
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["node", "site", "task", "workflow"]);
    assert!(corpus.histories.iter().any(|it| it.states.iter().any(|state| state.heads().len() > 1)));
}

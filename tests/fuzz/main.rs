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

use std::{env, fs, io, path::Path, sync::OnceLock};

use harness::{
    corpus::{Corpus, History},
    mutant::chunk,
};
use sync::wire::frame;

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
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["claim", "node", "site", "task", "workflow"]);
    assert!(corpus.histories.iter().any(|it| it.states.iter().any(|state| state.heads().len() > 1)));
    if let Ok(folder) = env::var("HOLDFAST_FUZZ_CORPUS") {
        write_corpus(corpus, Path::new(&folder)).expect("the corpus is written");
    }
}

/// Writes the honest bytes as inputs of `targets`, where a coverage-guided fuzzer begins.
fn write_corpus(corpus: &Corpus, folder: &Path) -> io::Result<()> {
    let write = |target: &str, number: usize, bytes: &[u8]| {
        let folder = folder.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{number:04}")), bytes)
    };
    let about = |history: &History| [&[history.kind.number() - 1][..], history.id.as_bytes()].concat();
    for (number, history) in corpus.histories.iter().enumerate() {
        let bodies = history.changes.iter().filter_map(|change| chunk::split(&change.bytes));
        let bodies: Vec<&[u8]> = bodies.map(|(_, body)| body).collect();
        write("change", number, &[about(history), parts(&bodies)].concat())?;
        for (at, state) in history.states.iter().enumerate().step_by(3) {
            let snapshot = state.snapshot();
            let (_, body) = chunk::split(&snapshot).expect("a chunk");
            write("snapshot", number * 100 + at, &[&about(history)[..], body].concat())?;
        }
    }
    for (number, chain) in corpus.chains.iter().enumerate() {
        for (at, entries) in chain.entries.chunks(8).enumerate() {
            let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
            write("entry", number * 100 + at, &parts(&entries))?;
        }
    }
    for (number, (_, bytes)) in corpus.frames.iter().enumerate() {
        write("frame", number, bytes)?;
        let message = sync::wire::decode(bytes).expect("an honest frame");
        let plain = frame::encode_plain(&message);
        if plain.len() < 1 << 16 && harness::corpus::number_of(&message) < 2 {
            // Central is greeted with Hello, a site with HelloOk.
            let first = u8::from(harness::corpus::number_of(&message) == 1);
            write("hello", number, &[&[first], &parts(&[&plain[1..]])[..]].concat())?;
        }
    }
    Ok(())
}

/// Parts of an input, each behind its length in two bytes, little end first.
fn parts(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let length = u16::try_from(part.len()).expect("a short part");
        bytes.extend(length.to_le_bytes());
        bytes.extend(*part);
    }
    bytes
}

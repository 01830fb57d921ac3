//! Days and weeks of partitions from one number: people, machines, weather and faults drawn from a seed.
//!
//! `draw` is what a seed decides beforehand. `run` is one life of a world: the safety half, in which
//! `people`, `claims` and `machines` act and `faults` happens, and the liveness half, in which every link is up, every
//! replica runs and nobody means harm, until everybody holds the same. `checks` is what must hold all the
//! time and at the end. `planted` puts bugs into the world that the checks must find; `report` counts.
//!
//! Stores, engines, boot decision, backup and restore are the shipped ones. Deliberately absent: sockets and
//! programs (see `tests/loopback`), content on its way (see `site_agent::cache`).
//!
//! `HOLDFAST_SEED=N` runs that seed alone, `HOLDFAST_SEEDS=N` the first N; seeds that once found something stay in
//! `fixtures/seeds/simulation.txt`.

mod draw;
mod run;
mod people;
mod claims;
mod quarrel;
mod machines;
mod faults;
mod checks;
mod disagreements;
mod orders;
mod moves;
mod epochs;
mod directories;
mod planted;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use checks::Violation;
use planted::Bug;
use report::{Outcome, processor_time};
use run::Run;

/// Seeds of an ordinary run, besides the kept ones.
const SEEDS: u64 = 300;

/// Seeds in which a planted bug has to be found.
const SEEDS_FOR_A_BUG: u64 = 40;

/// What a run must not fall below.
const EVENTS_A_DAY: f64 = 50.0;

/// One test at a time: each uses all cores, and processor time is that of the program.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn h7_days_of_partitions_end_with_everybody_holding_the_same() {
    let _alone = alone();
    let kept = include_str!("../../fixtures/seeds/simulation.txt");
    let kept = kept.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let seeds: BTreeSet<u64> = match number("HOLDFAST_SEED") {
        Some(seed) => [seed].into(),
        None => kept.chain(1..=number("HOLDFAST_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let seeds: Vec<u64> = seeds.into_iter().collect();
    let before = processor_time();
    let mut all = Outcome::default();
    let mut failures = BTreeMap::new();
    for (seed, outcome) in in_threads(&seeds) {
        match outcome {
            Ok(outcome) => all.add(&outcome),
            Err(failure) => {
                failures.insert(seed, failure);
            }
        }
    }
    all.print(seeds.len() - failures.len(), processor_time() - before);
    for (seed, failure) in &failures {
        println!("seed {seed} failed; HOLDFAST_SEED={seed} runs it alone\n{failure}");
    }
    assert!(failures.is_empty(), "{} seeds failed: {:?}", failures.len(), failures.keys());
    assert!(all.rate() >= EVENTS_A_DAY, "{:.1} events a day are too few", all.rate());
    if seeds.len() > 1 {
        let in_all = seeds.len() as u64 >= SEEDS;
        assert_eq!(all.missing(in_all), Vec::<&str>::new(), "every kind of event and fault happened");
    }
}

#[test]
fn h7_the_same_seed_gives_the_same_world() {
    let _alone = alone();
    for seed in [77, 78, 79, 80] {
        let twice = in_threads(&[seed, seed]);
        assert!(twice[0].1.is_ok() || twice[0].1 == twice[1].1);
        assert_eq!(twice[0], twice[1]);
    }
}

#[test]
fn h7_every_planted_bug_is_found() {
    let _alone = alone();
    let found = on_all_cores(&Bug::ALL, |bug| {
        let is_about = |it: &Violation| bug.found_by().is_none_or(|check| it.check == check);
        let found =
            (1..=SEEDS_FOR_A_BUG).find_map(|seed| Some((seed, one(seed, Some(bug)).err().filter(is_about)?)));
        if let Some((seed, Violation { check, detail, .. })) = &found {
            let detail: String = detail.chars().take(160).collect();
            println!("{bug}: seed {seed}: {check}: {detail}");
        }
        found.is_some()
    });
    let missed: Vec<Bug> = found.into_iter().filter(|(_, is_found)| !is_found).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "within {SEEDS_FOR_A_BUG} seeds nothing noticed {missed:?}");
}

/// What the environment says, if anything.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")))
}

/// Runs seeds on all cores. What became of each comes in the order of the seeds.
fn in_threads(seeds: &[u64]) -> Vec<(u64, Result<Outcome, Violation>)> {
    on_all_cores(seeds, |seed| one(seed, None))
}

/// Does something with each of `all`, several at a time; what became of each comes in their order.
fn on_all_cores<T: Copy + Send + Sync, R: Send>(all: &[T], work: impl Fn(T) -> R + Sync) -> Vec<(T, R)> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(all.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(one) = all.get(index) else { return };
                    let result = work(*one);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, (*one, result));
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

fn one(seed: u64, bug: Option<Bug>) -> Result<Outcome, Violation> {
    let run = Run::new(seed, bug);
    let history = run.history();
    // What a world is after a panic in it is nobody's business any more.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.live()));
    outcome.map_err(|cause| Violation::of(&*cause).with(&history))
}

//! Days of partitions from one number: people, machines, cuts and crashes drawn from a seed.
//!
//! A run is the safety half, in which anything may happen, and the liveness half, in which every link is
//! up and every replica runs, until everybody holds the same. `HOLDFAST_SEED=N` runs that seed alone;
//! seeds that once found something stay in `fixtures/seeds/simulation.txt`.

mod chaos;

use chaos::{Chaos, Counts};

/// Seeds of an ordinary run, besides the kept ones.
const SEEDS: u64 = 12;

#[test]
fn h7_days_of_partitions_end_with_everybody_holding_the_same() {
    let kept = include_str!("../../fixtures/seeds/simulation.txt");
    let kept = kept.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let seeds: Vec<u64> = match std::env::var("HOLDFAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HOLDFAST_SEED is a number")],
        Err(_) => kept.chain(1_000..1_000 + SEEDS).collect(),
    };
    let mut counts = Counts::default();
    for seed in &seeds {
        let outcome = std::panic::catch_unwind(|| Chaos::new(*seed).run());
        match outcome {
            Ok(found) => counts.add(&found),
            Err(cause) => {
                eprintln!("seed {seed} failed: HOLDFAST_SEED={seed} runs it alone");
                std::panic::resume_unwind(cause);
            }
        }
    }
    println!("{} seeds: {counts}", seeds.len());
    if seeds.len() > 1 {
        assert!(counts.is_complete(), "every kind of event and fault happened: {counts}");
    }
}

#[test]
fn h7_the_same_seed_gives_the_same_world() {
    assert_eq!(Chaos::new(77).run(), Chaos::new(77).run());
}

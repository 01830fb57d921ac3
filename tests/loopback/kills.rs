//! The site's agent is killed without warning, at twenty places of an installation.
//!
//! Three machines install at the same time. The place is drawn from a seed: after so many of their questions,
//! and a little later. `fixtures/seeds/kills.txt` has the seeds; a failure names the one that was running.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use harness::{machine::Machine, programs::Doors, random::Random};

use crate::office::{self, Office, machine};

const SEEDS: &str = include_str!("../../fixtures/seeds/kills.txt");

/// Machines that install at the same time.
const TOGETHER: u16 = 3;

/// The agent dies within so many microseconds after the question that was drawn.
const PAUSE_MICROS: u64 = 15_000;

/// In so many of a hundred cases it dies once more, within so many microseconds after it was started again.
const STUMBLES_PERCENT: u64 = 30;
const STUMBLE_MICROS: u64 = 300_000;

#[test]
fn h3_p5_an_agent_killed_at_any_moment_loses_no_report_and_repeats_no_go_ahead() {
    let seeds: Vec<u64> = SEEDS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.parse().expect("a seed"))
        .collect();
    assert_eq!(seeds.len(), 20);
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [60_000, 200_000]);
    let group = |number: u16| (1..=TOGETHER).map(|it| machine(number * TOGETHER + it)).collect();
    let groups: Vec<Vec<Machine>> = (0..=20).map(group).collect();
    for machine in groups.iter().flatten() {
        office.order(machine.mac, &workflow);
    }
    let mut groups = groups.into_iter();
    office.wait_for_ready(21 * usize::from(TOGETHER), Duration::from_secs(60));
    office.settle(office::SOON);

    // Undisturbed: how many questions there are to choose from.
    let mut installed = groups.next().expect("21 groups");
    let questions = together((&office.site).into(), &mut installed, |_| {});
    println!("{TOGETHER} machines ask {questions} questions");
    let half = seeds.len() / 2;
    for (index, (seed, mut machines)) in seeds.into_iter().zip(groups).enumerate() {
        let _named = Named(seed);
        match index {
            0 => office.wire.cut(),
            _ if index == half => office.wire.heal(),
            _ => {}
        }
        let mut random = Random::new(seed);
        let after = random.below(questions);
        let pause = Duration::from_micros(random.below(PAUSE_MICROS));
        let stumble =
            random.chance(STUMBLES_PERCENT).then(|| Duration::from_micros(random.below(STUMBLE_MICROS)));
        let (begun, doors) = (Instant::now(), Doors::from(&office.site));
        let mut restart = Duration::ZERO;
        together(doors, &mut machines, |asked| {
            while asked().is_some_and(|asked| asked < after) {
                thread::park_timeout(Duration::from_micros(100));
            }
            thread::park_timeout(pause);
            office.site.program.kill();
            if let Some(stumble) = stumble {
                office.site.stumble(stumble);
            }
            let down = Instant::now();
            office.site.restart();
            restart = down.elapsed();
        });
        println!(
            "seed {seed}: {}, killed {pause:?} after question {after}{}, restarted in {restart:.1?}, all installed in {:.1?}",
            if index < half { "cut off" } else { "connected" },
            stumble.map(|after| format!(", and again {after:?} into its start")).unwrap_or_default(),
            begun.elapsed(),
        );
        for machine in &machines {
            let other_bytes: Vec<&String> =
                machine.damaged.iter().filter(|what| what.contains("bytes")).collect();
            assert!(other_bytes.is_empty(), "{other_bytes:?}");
        }
        installed.append(&mut machines);
    }
    office.settle(Duration::from_secs(60));
    office::assert_nothing_lost(&office.central, &office.site, &installed);
    let tasks = office.central.rest.list("/tasks?state=completed");
    assert_eq!(tasks.len(), installed.len());
    let reports: usize = installed.iter().map(|machine| machine.log.len()).sum();
    println!("{} machines, {reports} reports, each once in both journals", installed.len());
}

/// Installs machines side by side while `disturb` runs, which may ask how many questions they have asked so far:
/// nothing once all are installed. Returns how many it were.
fn together(doors: Doors, machines: &mut [Machine], disturb: impl FnOnce(&dyn Fn() -> Option<u64>)) -> u64 {
    let asked = Arc::new(AtomicU64::new(0));
    thread::scope(|scope| {
        let running: Vec<_> = machines
            .iter_mut()
            .map(|machine| {
                machine.asked = Arc::clone(&asked);
                scope.spawn(move || office::install(machine, doors))
            })
            .collect();
        disturb(&|| (!running.iter().all(|it| it.is_finished())).then(|| asked.load(Ordering::SeqCst)));
        for it in running {
            it.join().expect("a machine").expect("it is installed in the end");
        }
    });
    asked.load(Ordering::SeqCst)
}

/// Says which seed was running when something failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("seed {} of fixtures/seeds/kills.txt was running", self.0);
        }
    }
}

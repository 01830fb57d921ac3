//! What runs were and what happened in them, in figures.

use std::{collections::BTreeMap, fs, time::Duration};

/// Kinds of events and faults without which a run of all seeds shows nothing.
pub(crate) const REQUIRED: [&str; 72] = [
    // People and machines.
    "adopted",
    "approved",
    "booted",
    "brought home",
    "cancelled",
    "carried back and unseen",
    "carried off unseen",
    "consent withheld at a site",
    "consented at a site",
    "consented at a site that is cut off",
    "disagreed",
    "domain changed",
    "edited at a site",
    "edited at central",
    "go-ahead",
    "group made",
    "group moved",
    "group's settings changed",
    "installed",
    "installation failed",
    "last word",
    "looked at many claims",
    "many claims decided",
    "many settled",
    "ordered at a site",
    "ordered at central",
    "ordered by both",
    "orders confirmed",
    "refused",
    "rejected",
    "repeated report",
    "retired",
    "settings changed",
    "settled by hand",
    "settlement taken back",
    "site moved",
    "taken up again",
    "visited",
    // What became of claims, whoever decided them.
    "claim approved by a person",
    "claim approved by consent",
    "claim approved by policy",
    "claim asked again",
    "claim expired",
    "claim opened at a site",
    "claim rejected by a person",
    "claim withdrawn",
    "fence closed",
    "fence never closed",
    "fence opened by a person",
    "fence opened by acknowledgement",
    "fence opened by expiry of orders",
    // Links.
    "connection replaced",
    "datagram doubled",
    "datagram late",
    "datagram lost",
    "link cut",
    "link stalled",
    "peer gone without a word",
    "reset in a frame",
    // Replicas.
    "central restored",
    "central rolled back",
    "clock set",
    "disk full",
    "ended between two steps",
    "ended in a command",
    "killed",
    "power lost in a commit",
    "settings changed while cut off",
    "site restored",
    "site rolled back",
    // Those who mean harm.
    "forged write",
    "noisy host",
];

/// Those among them that some dozens of seeds may well do without: what they need comes together seldom.
const RARE: [&str; 18] = [
    "brought home",
    "central restored",
    "central rolled back",
    "claim approved by consent",
    "consent withheld at a site",
    "consented at a site that is cut off",
    "fence opened by a person",
    "fence opened by expiry of orders",
    "forged write",
    "group moved",
    "group's settings changed",
    "link stalled",
    "looked at many claims",
    "many claims decided",
    "many settled",
    "settled by hand",
    "settlement taken back",
    "taken up again",
];

/// What became of one run, or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How often what happened.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Seeds by how hostile their worlds were.
    pub(crate) climates: BTreeMap<&'static str, u64>,
    /// What people and machines did.
    pub(crate) events: u64,
    /// Time that the sites lived, of each its own.
    pub(crate) lived: Duration,
    /// What everybody holds in the end, as a digest.
    pub(crate) ends: Vec<u8>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Outcome) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
        for (climate, count) in &other.climates {
            *self.climates.entry(climate).or_default() += count;
        }
        self.events += other.events;
        self.lived += other.lived;
    }

    pub(crate) fn site_days(&self) -> f64 {
        self.lived.as_secs_f64() / 86_400.0
    }

    /// Events per day of one site.
    pub(crate) fn rate(&self) -> f64 {
        self.events as f64 / self.site_days()
    }

    /// What never happened and should have, in all seeds or in a few dozens of them.
    pub(crate) fn missing(&self, in_all: bool) -> Vec<&'static str> {
        let needed = REQUIRED.into_iter().filter(|what| in_all || !RARE.contains(what));
        needed.filter(|what| self.counts.get(what).is_none_or(|count| *count == 0)).collect()
    }

    pub(crate) fn print(&self, seeds: usize, cpu: Duration) {
        let climates: Vec<String> =
            self.climates.iter().map(|(climate, count)| format!("{count} {climate}")).collect();
        println!(
            "{seeds} seeds ({}), {:.0} site-days, {:.1} events a day",
            climates.join(", "),
            self.site_days(),
            self.rate()
        );
        println!(
            "{:.0} site-days per minute of one core ({:.0} s of processor time)",
            self.site_days() / cpu.as_secs_f64() * 60.0,
            cpu.as_secs_f64()
        );
        for (what, count) in &self.counts {
            println!("{count:>9} {what}");
        }
    }
}

/// Processor time of this program so far, of all its threads.
pub(crate) fn processor_time() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").expect("Linux says what a process used");
    // The name of the program may have anything in it; what follows it has not.
    let rest = text.rsplit(") ").next().expect("there is a name");
    let ticks = |field: usize| -> u64 {
        rest.split_whitespace().nth(field).and_then(|text| text.parse().ok()).expect("a number")
    };
    // Fields 14 and 15, in hundredths of a second: proc_pid_stat(5).
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

//! Where mutants end, and how long the slowest took.

use std::{
    collections::BTreeMap,
    fmt, fs,
    time::{Duration, Instant},
};

use sync::{
    ingress::{Outcome, Rejection, snapshot::SnapshotError},
    wire::FrameError,
};

/// What stopped a mutant, or that nothing did. The order is that in which the gates stand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Its bytes: length, format, checksum, counts.
    Lint,
    /// It cannot be decoded.
    Parse,
    /// Nobody would have encoded it so.
    Reencode,
    /// It contradicts what is there.
    Semantic,
    /// It is not for whoever brings it to say.
    Authorize,
    /// What is there would not survive it.
    Verify,
    /// It waits for something.
    Parked,
    /// It is there already.
    Known,
    /// It is taken.
    Accepted,
}

const STAGES: [(Stage, &str); 9] = [
    (Stage::Lint, "lint"),
    (Stage::Parse, "parse"),
    (Stage::Reencode, "re-encode"),
    (Stage::Semantic, "semantic"),
    (Stage::Authorize, "authorize"),
    (Stage::Verify, "verify"),
    (Stage::Parked, "parked"),
    (Stage::Known, "known"),
    (Stage::Accepted, "accepted"),
];

/// Where an input ended, and whether foreign code panicked under guard on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Where it ended.
    pub stage: Stage,
    /// Whether it made foreign code panic.
    pub panicked: bool,
}

impl From<Stage> for End {
    fn from(stage: Stage) -> Self {
        End { stage, panicked: false }
    }
}

impl From<&Outcome> for End {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Accept(_) => Stage::Accepted.into(),
            Outcome::Duplicate => Stage::Known.into(),
            Outcome::Park { .. } => Stage::Parked.into(),
            Outcome::Deny(_) => Stage::Authorize.into(),
            Outcome::Reject(rejection) => rejection.into(),
        }
    }
}

impl From<&Rejection> for End {
    fn from(rejection: &Rejection) -> Self {
        let stage = match rejection {
            Rejection::Lint(_) => Stage::Lint,
            Rejection::Parse(_) => Stage::Parse,
            Rejection::NotCanonical => Stage::Reencode,
            Rejection::Semantic(_) => Stage::Semantic,
            Rejection::Apply(_) | Rejection::Unloadable(_) | Rejection::HeadsDiffer => Stage::Verify,
            Rejection::Snapshot(error) => match error {
                SnapshotError::Load(_) => Stage::Parse,
                SnapshotError::Incomplete => Stage::Semantic,
                _ => Stage::Lint,
            },
            Rejection::Panicked(purpose) => {
                let stage = match *purpose {
                    "place a change in its document" => Stage::Semantic,
                    "judge a change" => Stage::Authorize,
                    "apply a change" | "save and load the document" => Stage::Verify,
                    _ => Stage::Parse,
                };
                return End { stage, panicked: true };
            }
        };
        stage.into()
    }
}

impl From<&FrameError> for End {
    fn from(error: &FrameError) -> Self {
        match error {
            FrameError::Decode(_) | FrameError::TooManyItems(_) => Stage::Parse.into(),
            _ => Stage::Lint.into(),
        }
    }
}

/// What became of all inputs of one kind.
pub struct Tally {
    kind: &'static str,
    begun: Instant,
    ends: BTreeMap<Stage, u64>,
    panics: u64,
    slowest: (Duration, u64),
}

impl Tally {
    /// Nothing yet, of one kind of input.
    pub fn new(kind: &'static str) -> Self {
        Tally { kind, begun: Instant::now(), ends: BTreeMap::new(), panics: 0, slowest: (Duration::ZERO, 0) }
    }

    /// Counts the input of a seed.
    pub fn note(&mut self, seed: u64, end: End, took: Duration) {
        *self.ends.entry(end.stage).or_default() += 1;
        self.panics += u64::from(end.panicked);
        self.slowest = self.slowest.max((took, seed));
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.ends.values().sum()
    }

    /// How many ended there.
    pub fn at(&self, stage: Stage) -> u64 {
        self.ends.get(&stage).copied().unwrap_or(0)
    }

    /// How many came as far as the gate that asks what they mean, or further.
    pub fn meant(&self) -> u64 {
        self.ends.iter().filter(|(stage, _)| **stage >= Stage::Semantic).map(|(_, count)| count).sum()
    }

    /// What every kind must show: enough of it is worth a thought, and no input keeps a core busy for long.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn judge(&self, slowest: Duration) {
        println!("{self}");
        assert!(self.slowest.0 <= slowest, "the input of seed {} took {:?}", self.slowest.1, self.slowest.0);
        if self.count() >= 1_000 {
            assert!(self.meant() * 10 >= self.count(), "at least a tenth reaches the semantic gate: {self}");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<8} {:>7} inputs:", self.kind, self.count())?;
        for (stage, name) in STAGES {
            write!(f, " {name} {}", self.at(stage))?;
        }
        let share = 100.0 * self.meant() as f64 / self.count().max(1) as f64;
        write!(
            f,
            "; semantic or beyond {share:.0} %; panics under guard {}; slowest {:.1} ms (seed {}); {:.1} s",
            self.panics,
            self.slowest.0.as_secs_f64() * 1e3,
            self.slowest.1,
            self.begun.elapsed().as_secs_f64()
        )
    }
}

/// Time that this thread has been on a core: what others do on it beside does not count.
pub fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let on_core = text.split_whitespace().next().and_then(|number| number.parse().ok());
    Duration::from_nanos(on_core.unwrap_or(0))
}

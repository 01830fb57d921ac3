//! What a seed decides about its world before anything happens in it: how large it is, how long it lives,
//! and how hostile it is.

use std::time::Duration;

use harness::{link::Weather, random::Random};

/// What can go wrong, drawn anew at every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The link of a site is cut.
    Cut,
    /// The link of a site behaves otherwise from now on.
    Weather,
    /// The connections of a site break in the middle of the next frame.
    Reset,
    /// A replica ends between two answers of its store, or in the commit of one.
    End,
    /// A replica ends in the command of a person.
    EndInCommand,
    /// A disk has hardly any room left.
    FullDisk,
    /// A clock is set to something else.
    Clock,
    /// Settings change while the site that they are for is cut off.
    StaleEpoch,
    /// The database of a site is put back with `restore`, or by hand.
    Restore,
    /// A site's virtual machine is put back, and nothing tells it.
    Rollback,
    /// Central's database is put back.
    RestoreCentral,
    /// Central's virtual machine is put back, and nothing tells it.
    RollbackCentral,
    /// A host in the LAN of a site makes up addresses.
    Noise,
    /// A hostile site begins, or ceases, to forge what it sends.
    Hostility,
}

/// What one seed decided.
#[derive(Clone, Debug)]
pub(crate) struct Draw {
    /// In a word.
    pub(crate) climate: &'static str,
    /// Number of sites.
    pub(crate) sites: usize,
    /// Length of the safety half.
    pub(crate) lasts: Duration,
    /// Faults, with how many of ten thousand steps have each.
    pub(crate) faults: Vec<(Fault, u64)>,
    /// How many of a hundred steps heal a link that is cut.
    pub(crate) heals: u64,
    /// Whether the last site is hostile.
    pub(crate) has_hostile_site: bool,
    /// Whether people put sites into groups, and give directories domains.
    pub(crate) has_groups: bool,
}

/// Climates, with how many of a hundred seeds have each.
const CLIMATES: [(&str, u64); 4] = [("calm", 12), ("fair", 28), ("rough", 30), ("terrible", 30)];

impl Draw {
    pub(crate) fn of(random: &mut Random) -> Self {
        let mut left = random.below(100);
        let climate = CLIMATES
            .iter()
            .find(|(_, share)| {
                let here = left < *share;
                left = left.saturating_sub(*share);
                here
            })
            .map_or("terrible", |(climate, _)| *climate);
        let (sites, days) = match random.below(24) {
            0 => (1, 14),
            1 | 2 => (2, 5),
            3..10 => (3, 1 + random.below(2)),
            _ => (2, 1 + random.below(3)),
        };
        // Some worlds live with one kind of fault more than with all others.
        let favourite = usize::try_from(random.below(24)).expect("small");
        let mut faults = faults(climate);
        if let Some((_, share)) = faults.get_mut(favourite) {
            *share *= 4;
        }
        Draw {
            climate,
            sites,
            lasts: Duration::from_secs(days * 86_400),
            faults,
            heals: [1, 3, 8, 20][usize::try_from(random.below(4)).expect("small")],
            has_hostile_site: sites > 1 && climate == "terrible" && random.chance(60),
            has_groups: false,
        }
    }

    /// What a step breaks, if anything.
    pub(crate) fn fault(&self, random: &mut Random) -> Option<Fault> {
        let mut left = random.below(10_000);
        for (fault, share) in &self.faults {
            if left < *share {
                return Some(*fault);
            }
            left -= share;
        }
        None
    }
}

fn faults(climate: &str) -> Vec<(Fault, u64)> {
    let fair =
        [(Fault::Cut, 150), (Fault::Weather, 100), (Fault::StaleEpoch, 60), (Fault::Noise, 8)].to_vec();
    let rough = [
        (Fault::Cut, 200),
        (Fault::Weather, 150),
        (Fault::StaleEpoch, 80),
        (Fault::Noise, 8),
        (Fault::Reset, 120),
        (Fault::End, 200),
        (Fault::EndInCommand, 100),
        (Fault::FullDisk, 60),
        (Fault::Clock, 60),
        (Fault::Restore, 25),
    ]
    .to_vec();
    match climate {
        "calm" => vec![(Fault::Cut, 20)],
        "fair" => fair,
        "rough" => rough,
        _ => {
            let worse = [
                (Fault::Rollback, 30),
                (Fault::RestoreCentral, 20),
                (Fault::RollbackCentral, 20),
                (Fault::Hostility, 250),
            ];
            rough.into_iter().chain(worse).collect()
        }
    }
}

/// What a link does to datagrams for a while.
pub(crate) fn weather(random: &mut Random) -> Weather {
    let calm = Weather::default();
    match random.below(4) {
        0 => calm,
        1 => Weather {
            delay: Duration::from_millis(300 + random.below(700)),
            jitter: Duration::from_millis(20),
            ..calm
        },
        2 => Weather { jitter: Duration::from_millis(400), doubled: 50 + random.below(100), ..calm },
        _ => Weather {
            delay: Duration::from_millis(120),
            jitter: Duration::from_millis(120),
            lost: 20 + random.below(200),
            doubled: 10,
        },
    }
}

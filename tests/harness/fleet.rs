//! A branch with many machines in a [`World`], and what it costs two replicas to come together again.
//!
//! The machines are as people and firmware describe them, drawn from one number so that they pack neither
//! better nor worse than real ones. `tests/scenarios` asserts what the bench `replication` prints.

use std::{collections::BTreeMap, fmt, time::Duration};

use store::{
    StoreError, Tx,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Registration},
    },
};
use sync::{
    id::{MacAddr, NodeId, Origin, ReportId, SiteId},
    policy::Reason,
};

use crate::{random::Random, world::World};

/// Machines that are written in one commit.
const AT_ONCE: usize = 50;

/// Machines that change while a link is cut.
pub const CHANGED: usize = 10;

/// A machine as people and firmware describe it.
#[derive(Clone)]
pub struct Machine {
    /// Its boot interface.
    pub mac: MacAddr,
    hostname: String,
    tags: BTreeMap<String, Option<String>>,
    registration: Registration,
    report: ReportId,
}

/// So many machines, the same in every run.
pub fn machines(count: usize) -> Vec<Machine> {
    let mut random = Random::new(4);
    let models = [("Dell Inc.", "OptiPlex 7010"), ("HP", "EliteDesk 800 G6"), ("LENOVO", "ThinkCentre M70q")];
    let roles = ["till", "kiosk", "office", "sign", "scanner"];
    (0..count)
        .map(|number| {
            let [_, a, b, c] = u32::try_from(number).expect("few").to_be_bytes();
            let mac = MacAddr([0x52, 0x54, 0, a, b, c]);
            let (vendor, model) = models[usize::try_from(random.below(3)).expect("three")];
            let role = roles[usize::try_from(random.below(5)).expect("five")];
            let letters = random
                .bytes::<8>()
                .map(|byte| char::from(b"0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"[usize::from(byte) % 34]));
            let serial: String = letters.iter().collect();
            let disk = [256_u64, 512, 1_024][usize::try_from(random.below(3)).expect("three")] << 30;
            Machine {
                mac,
                hostname: format!("{role}-{number:05}"),
                tags: [
                    ("role", role.to_string()),
                    ("rack", format!("r{}", random.below(400))),
                    ("floor", random.below(7).to_string()),
                ]
                .map(|(key, value)| (key.to_string(), Some(value)))
                .into(),
                registration: Registration {
                    evidence: [
                        ("serial", serial.as_str()),
                        ("vendor", vendor),
                        ("model", model),
                        ("arch", "x86_64"),
                    ]
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .into(),
                    cpus: Some(2 << random.below(3)),
                    memory_bytes: Some(8 << (30 + random.below(3))),
                    disks: BTreeMap::from([("nvme0n1".to_string(), disk)]),
                    nics: BTreeMap::from([("eth0".to_string(), mac.to_string())]),
                },
                report: ReportId(random.bytes()),
            }
        })
        .collect()
}

/// Central registers the machines with their tags; each then boots and introduces itself at the site.
pub fn fill(world: &mut World, lyon: SiteId, machines: &[Machine]) {
    for many in machines.chunks(AT_ONCE) {
        let many = many.to_vec();
        at(world, Origin::Central, "ann", move |tx| {
            for it in many {
                let id = node::create(tx, it.mac, lyon, &it.hostname)?;
                let edit = NodeEdit { tags: it.tags, why: "inventory".into(), ..NodeEdit::default() };
                node::edit(tx, id, &edit)?;
            }
            Ok(())
        });
    }
    settle(world, lyon);
    for many in machines.chunks(AT_ONCE) {
        let many = many.to_vec();
        at(world, Origin::Site(lyon), "boot", move |tx| {
            for it in many {
                let reason = "nothing is ordered for this machine".into();
                let (mac, answer) = (it.mac, "local disk".into());
                let (booting, local_disk) = (None, true);
                boot::answered(
                    tx,
                    &Answered { mac, answer, reason, adopt: true, booting, local_disk, claims: false },
                )?;
                report::register(tx, it.report, it.mac, false, &it.registration)?;
            }
            Ok(())
        });
    }
    settle(world, lyon);
}

fn at(
    world: &mut World,
    origin: Origin,
    by: &str,
    command: impl FnOnce(&mut Tx<'_>) -> Result<(), StoreError> + Send + 'static,
) {
    world.run(origin, by, command).expect("the command succeeds");
}

/// Lets time pass until both hold the same and know it.
pub fn settle(world: &mut World, site: SiteId) {
    world.until("both agree", Duration::from_secs(3_600), |world| world.in_agreement(site));
}

/// What went over a link, from the first frame on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// Bytes of frames towards central.
    pub up: u64,
    /// Bytes of frames towards the site.
    pub down: u64,
    /// Times there and back, in which a frame takes [`World`]'s delay each way.
    pub round_trips: f64,
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B up, {} B down, {:.1} round trips", self.up, self.down, self.round_trips)
    }
}

/// Heals the link of a site and counts until something holds. The transport's handshake takes no time here.
///
/// # Panics
/// When it takes longer than ten minutes.
pub fn heal(world: &mut World, site: SiteId, holds: impl Fn(&World) -> bool) -> Counted {
    const STEP: Duration = Duration::from_millis(5);
    // A frame needs 40 ms to the other side.
    const ROUND_TRIP: Duration = Duration::from_millis(80);
    (world.frames, world.bytes) = (0, 0);
    world.bytes_of.clear();
    world.set_link(site, true);
    while world.frames == 0 {
        world.pass(STEP);
    }
    let mut taken = Duration::ZERO;
    while !holds(world) {
        world.pass(STEP);
        taken += STEP;
        assert!(taken < Duration::from_secs(600), "it happens within ten minutes");
    }
    let bytes = |origin| world.bytes_of.get(&origin).copied().unwrap_or(0);
    Counted {
        up: bytes(Origin::Site(site)),
        down: bytes(Origin::Central),
        round_trips: taken.as_secs_f64() / ROUND_TRIP.as_secs_f64(),
    }
}

fn cut(world: &mut World, site: SiteId) {
    world.set_link(site, false);
    world.pass(Duration::from_secs(60));
}

/// Documents read from disk so far, at central and at the site.
fn loaded(world: &mut World, site: SiteId) -> u64 {
    [Origin::Central, Origin::Site(site)]
        .map(|origin| world.run(origin, "bench", |tx| Ok(tx.documents_loaded())).expect("a number"))
        .iter()
        .sum()
}

/// Cuts the link and heals it; what it costs until the site knows that both agree, and how many documents
/// were read from disk for that.
pub fn reconnect(world: &mut World, site: SiteId) -> (Counted, u64) {
    cut(world, site);
    let before = loaded(world, site);
    let seen = world.replica(Origin::Site(site)).notices.len();
    let counted = heal(world, site, |world| {
        world.replica(Origin::Site(site)).notices[seen..].iter().any(|notice| notice == "agrees: true")
    });
    (counted, loaded(world, site) - before)
}

fn some(machines: &[Machine]) -> impl DoubleEndedIterator<Item = &Machine> {
    machines.iter().step_by(machines.len() / CHANGED)
}

/// Somebody at central gives [`CHANGED`] machines another name, which ends in `mark`.
pub fn change(world: &mut World, machines: &[Machine], mark: &str) {
    for it in some(machines) {
        let edit = NodeEdit {
            hostname: Some(format!("{}-{mark}", it.hostname)),
            why: "renamed".into(),
            ..NodeEdit::default()
        };
        let id = NodeId::of(it.mac);
        at(world, Origin::Central, "ann", move |tx| node::edit(tx, id, &edit).map(drop));
    }
}

/// The same while the link is cut, and what it costs until the site has the names; `anew` where the site's
/// database begins another life, so that neither knows what the other has.
pub fn catch_up(world: &mut World, site: SiteId, machines: &[Machine], mark: &str, anew: bool) -> Counted {
    cut(world, site);
    change(world, machines, mark);
    if anew {
        let why = Reason::new("its database was restored");
        at(world, Origin::Site(site), "bench", move |tx| tx.begin_life(&why));
    }
    let last = NodeId::of(some(machines).next_back().expect("some machines").mac);
    let name = world.store(Origin::Central).read(|view| view.node(last)).expect("central reads");
    let name = name.expect("the machine is registered").hostname;
    let counted = heal(world, site, |world| {
        let here = world.store(Origin::Site(site)).read(|view| view.node(last)).expect("the site reads");
        here.is_some_and(|row| row.hostname == name)
    });
    settle(world, site);
    counted
}

//! One life of a world: a half in which anything may happen, and a half in which nothing does any more.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use harness::{
    history::History,
    world::{HEARTBEAT, World},
};
use store::{
    Ended, StoreError, Tx,
    command::{
        site::{self, SettingsEdit},
        workflow::{self, NewVersion},
    },
    view::View,
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{Origin, SiteId, WorkflowId},
    policy::{Autonomy, MigrationPolicy, Strategy},
    time::Timestamp,
};

use crate::{
    checks::{Checks, violated},
    draw::{Draw, Fault},
    faults::Copies,
    machines::Machine,
    planted::{self, Bug, Counting},
    report::Outcome,
};

/// What people and machines of a site do in a day, on average. What fails because a replica is down is not
/// counted, so a few more are tried.
const EVENTS_A_DAY: u64 = 60;

/// Tries to find somebody who can do something, in one step.
const TRIES: usize = 8;

/// Everything is looked at once in so many steps.
const CHECKPOINT: u64 = 120;

/// So many steps in a row may be full of talk.
const VAIN: u32 = 12;

/// How long everybody may take to hold the same, once nothing is in the way.
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);

/// A world with everybody in it.
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) draw: Draw,
    pub(crate) checks: Rc<RefCell<Checks>>,
    pub(crate) sites: Vec<SiteId>,
    pub(crate) workflows: Vec<WorkflowId>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) copies: BTreeMap<Origin, Copies>,
    /// The last site, while it forges.
    pub(crate) forging: Rc<RefCell<Option<SiteId>>>,
    pub(crate) bug: Option<Bug>,
    events: u64,
    /// Steps in a row in which everybody talked much more than there is to say.
    vain: u32,
}

/// Whether somebody could do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// It was done, or refused with a reason, and counts under this name.
    Something(&'static str),
    /// Whoever was asked is down, or there is nothing to do.
    Nothing,
}

impl Run {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut world = World::new(seed);
        let mut draw = Draw::of(&mut world.random);
        // By the seed and not by the dice: all other worlds stay what they were.
        draw.has_groups = seed % 4 == 3;
        for needed in bug.map(Bug::needs).unwrap_or_default() {
            draw.faults.insert(0, *needed);
            draw.has_hostile_site |= needed.0 == Fault::Hostility;
        }
        let checks = Rc::new(RefCell::new(Checks::default()));
        let watching = Rc::clone(&checks);
        world.watch = Some(Box::new(move |world, origin, output| {
            watching.borrow_mut().before(world, origin, output);
        }));
        let names = ["lyon", "oslo", "bern"];
        let sites: Vec<SiteId> = names.iter().take(draw.sites).map(|name| world.add_site(name)).collect();
        let mut run = Run {
            world,
            draw,
            checks,
            sites,
            workflows: Vec::new(),
            machines: Vec::new(),
            copies: BTreeMap::new(),
            forging: Rc::default(),
            bug,
            events: 0,
            vain: 0,
        };
        run.begin();
        run
    }

    /// Workflows, their files at every site, and the machines that stand there.
    fn begin(&mut self) {
        for (name, needs_approval) in [("debian-12", false), ("kiosk", true)] {
            let identity = Identity {
                name: name.into(),
                os_family: "debian".into(),
                arch: "x86_64".into(),
                boot_method: "kernel".into(),
            };
            let files = ["kernel", "initrd"].map(|role| {
                let bytes = format!("{role} of {name}");
                (role.to_string(), (Digest::of(bytes.as_bytes()), bytes.len() as u64))
            });
            for site in &self.sites {
                for role in ["kernel", "initrd"] {
                    let bytes = format!("{role} of {name}");
                    let blobs = self.world.store(Origin::Site(*site)).blobs();
                    blobs.put_bytes(bytes.as_bytes()).expect("content is stored");
                }
            }
            let version = NewVersion { files: files.into(), kernel_args: String::new(), needs_approval };
            let made =
                self.world.run(Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version));
            self.workflows.push(made.expect("central publishes").id);
        }
        for site in self.sites.clone() {
            // People are asked oftener than by default, or the desk would be empty.
            let strategies = [
                Strategy::CentralWins,
                Strategy::SiteWins,
                Strategy::LastWrite,
                Strategy::Manual,
                Strategy::Manual,
                Strategy::Manual,
            ];
            let policies = [
                MigrationPolicy::Manual,
                MigrationPolicy::Manual,
                MigrationPolicy::Manual,
                MigrationPolicy::AutoAccept,
                MigrationPolicy::AutoRelease,
                MigrationPolicy::Bidirectional,
            ];
            let mut edit = SettingsEdit {
                conflict_resolution: self.one_of(&strategies),
                migration_policy: self.one_of(&policies),
                autonomy: self.one_of(&[Autonomy::Limited, Autonomy::Limited, Autonomy::Full]),
                ..SettingsEdit::default()
            };
            if self.bug.is_some_and(Bug::needs_two_orders) {
                edit.autonomy = Some(Autonomy::Full);
            }
            // By default a claim outlives most worlds, and so does an order.
            self.set_claims(&mut edit);
            if self.world.random.chance(40) {
                edit.order_max_s = Some(7_200 + self.world.random.below(36_000));
            }
            let set = self.world.run(Origin::Central, "ann", move |tx| site::set(tx, site, &edit, ""));
            set.expect("central says how its sites settle");
        }
        self.place_machines();
        self.forge();
        if let Some(bug) = self.bug {
            planted::plant(bug, &mut self.world);
        }
    }

    pub(crate) fn history(&self) -> History {
        self.world.history.clone()
    }

    /// Lives both halves and returns what happened.
    pub(crate) fn live(mut self) -> Outcome {
        let mean = 86_400 / (EVENTS_A_DAY * self.sites.len() as u64);
        let end = self.world.wall().after(self.draw.lasts);
        let mut steps = 0;
        while self.world.wall() < end {
            self.step();
            let wait = Duration::from_secs(1 + self.world.random.below(2 * mean));
            self.pass(wait);
            steps += 1;
            if steps % CHECKPOINT == 0 {
                self.checks.borrow_mut().all(&mut self.world);
            }
        }
        self.calm();
        self.rest();
        self.end_recovery();
        // Where machines belong is told with the next sign of life.
        self.pass(2 * HEARTBEAT);
        self.rest();
        self.checks.borrow_mut().at_rest(&mut self.world);
        let mut counts = std::mem::take(&mut self.world.counts);
        counts.insert("checks made", self.checks.borrow().looked);
        for (what, count) in &self.checks.borrow().moves.counts {
            *counts.entry(what).or_default() += count;
        }
        Outcome {
            counts,
            climates: [(self.draw.climate, 1)].into(),
            events: self.events,
            lived: self.draw.lasts * u32::try_from(self.sites.len()).expect("few sites"),
            ends: self.checks.borrow().digest(),
        }
    }

    fn step(&mut self) {
        self.mend();
        if let Some(fault) = self.draw.fault(&mut self.world.random) {
            self.happen(fault);
        }
        for _ in 0..TRIES {
            let did = match self.world.random.below(100) {
                0..22 => self.operator(),
                22..40 => self.admin(),
                _ => self.machine(),
            };
            if let Did::Something(what) = did {
                self.events += 1;
                self.world.count(what);
                return;
            }
        }
    }

    /// Lets time pass and looks at what everybody took up.
    fn pass(&mut self, wait: Duration) {
        let before = self.world.frames;
        self.world.pass(wait);
        // Whoever gets nowhere dials again every half minute.
        self.vain = if self.world.frames - before > wait.as_secs() / 10 + 300 { self.vain + 1 } else { 0 };
        if self.vain > VAIN && self.checks.borrow().nobody_is_hostile() {
            let frames = self.world.frames - before;
            violated("sessions get somewhere", format!("{frames} frames in {wait:?}, again and again"));
        }
        let mut checks = self.checks.borrow_mut();
        for origin in self.world.origins() {
            if self.world.runs(origin) {
                checks.after(&mut self.world, origin);
            }
        }
    }

    /// Nothing is in anybody's way any more.
    fn calm(&mut self) {
        self.forging.replace(None);
        for site in self.sites.clone() {
            self.world.set_hostile(site, 0);
            self.world.set_link(site, true);
            self.world.set_weather(site, harness::link::Weather::default());
        }
        for origin in self.world.origins() {
            self.world.keep_running(origin);
            if !self.world.runs(origin) {
                self.world.start(origin);
            } else if self.world.has_full_disk(origin) {
                self.world.set_disk(origin, None);
            }
            self.world.set_clock(origin, 0);
        }
    }

    /// Everybody is back and has given back what he has: whoever was restored says so, and nothing waits for it any more.
    fn end_recovery(&mut self) {
        let ended = self.world.run(Origin::Central, "ann", |tx| tx.end_recovery("everybody is back", false));
        match ended {
            Ok(Ended::WasNot) => {}
            Ok(Ended::Over(_)) => self.rest(),
            it => violated("in the end a recovery can end", format!("{it:?}")),
        }
    }

    /// Lets time pass until everybody holds the same.
    fn rest(&mut self) {
        let end = self.world.wall().after(PATIENCE);
        loop {
            self.pass(Duration::from_secs(120));
            let apart: Vec<SiteId> =
                self.sites.iter().copied().filter(|site| !self.world.in_agreement(*site)).collect();
            if apart.is_empty() {
                return;
            }
            if self.world.wall() >= end {
                let differences: Vec<String> = apart
                    .iter()
                    .map(|site| self.checks.borrow().difference(&mut self.world, *site))
                    .collect();
                let standing = |site: &SiteId| {
                    let name = self.world.name(Origin::Site(*site));
                    let here = self.read(Origin::Site(*site), |view| view.peer(Origin::Central));
                    let there = self.read(Origin::Central, |view| view.peer(Origin::Site(*site)));
                    format!("{name}: {here:?}, at central: {there:?}")
                };
                let standings: Vec<String> = apart.iter().map(standing).collect();
                let detail = format!("{}\n{}", standings.join("; "), differences.join("; "));
                violated("in the end everybody agrees", detail);
            }
        }
    }

    pub(crate) fn site(&mut self) -> SiteId {
        let index = self.world.random.below(self.sites.len() as u64);
        self.sites[usize::try_from(index).expect("few sites")]
    }

    /// Any of them.
    pub(crate) fn one_of<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        let index = usize::try_from(self.world.random.below(all.len().max(1) as u64)).expect("few");
        all.get(index).cloned()
    }

    pub(crate) fn read<T>(&self, origin: Origin, read: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> T {
        self.world.store(origin).read(read).unwrap_or_else(|error| {
            violated("a replica can be read", format!("{}: {error:?}", self.world.name(origin)))
        })
    }

    /// Somebody asks for something. What he gets is an answer, or a reason why not.
    pub(crate) fn ask<T: Send + 'static>(
        &mut self,
        origin: Origin,
        by: &str,
        done: &'static str,
        command: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> (Did, Option<T>) {
        let asks_for_its_disk = matches!(by, "boot" | "cache" | "machine");
        let counting = asks_for_its_disk.then(|| Counting::begin(self.bug, self.world.store(origin)));
        let done_or_not = self.world.run(origin, by, command);
        if let Some(counting) = counting.flatten() {
            counting.end();
        }
        match done_or_not {
            Ok(it) => {
                self.checks.borrow_mut().after(&mut self.world, origin);
                (Did::Something(done), Some(it))
            }
            Err(StoreError::Refused(_) | StoreError::Unknown(_) | StoreError::Recovering(_)) => {
                (Did::Something("refused"), None)
            }
            Err(StoreError::Full) if self.world.has_full_disk(origin) => (Did::Nothing, None),
            Err(error) => {
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                violated("what is asked for is done or refused", format!("{by} at {origin}: {done}: {text}"))
            }
        }
    }

    pub(crate) fn now(&self, origin: Origin) -> Timestamp {
        self.world.clock(origin)
    }
}

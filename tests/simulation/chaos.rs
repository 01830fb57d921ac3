//! One seeded run and what must hold in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use harness::world::World;
use store::{
    StoreError,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
    view::{JournalFilter, JournalRow, NodeFilter, TaskFilter, TaskRow, View},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    journal::Event,
    policy::{Autonomy, Wanted},
};

/// Steps of the safety half.
const STEPS: u64 = 150;

/// What happened, by name.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

const KINDS: [&str; 12] = [
    "adopted",
    "booted",
    "central crashed",
    "edited",
    "go-ahead",
    "installed",
    "link cut",
    "link healed",
    "ordered",
    "refused",
    "repeated",
    "site crashed",
];

impl Counts {
    fn note(&mut self, kind: &'static str) {
        *self.0.entry(kind).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Counts) {
        for (kind, count) in &other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        KINDS.iter().all(|kind| self.0.contains_key(kind))
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        f.write_str(&words.join(", "))
    }
}

/// A machine that installs: what a person would find in its memory.
struct Attempt {
    site: SiteId,
    node: NodeId,
    task: TaskRow,
    /// Reports that were answered: id and answer.
    log: Vec<(ReportId, String)>,
    next: usize,
}

/// One run.
pub(crate) struct Chaos {
    world: World,
    sites: Vec<SiteId>,
    down: BTreeSet<Origin>,
    workflow: WorkflowId,
    nodes: u8,
    attempts: Vec<Attempt>,
    counts: Counts,
}

impl Chaos {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let sites = vec![world.add_site("lyon"), world.add_site("oslo")];
        let identity = Identity {
            name: "debian-12".into(),
            os_family: "debian".into(),
            arch: "x86_64".into(),
            boot_method: "kernel".into(),
        };
        let files =
            ["kernel", "initrd"].map(|role| (role.to_string(), (Digest::of(role.as_bytes()), 6))).into();
        let version = NewVersion { files, kernel_args: String::new(), needs_approval: false };
        let workflow = world.run(Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version));
        Chaos {
            world,
            sites,
            down: BTreeSet::new(),
            workflow: workflow.expect("central publishes").id,
            nodes: 0,
            attempts: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Runs both halves and returns what happened.
    pub(crate) fn run(mut self) -> Counts {
        for _ in 0..STEPS {
            self.step();
            let minutes = 1 + self.world.random.below(40);
            self.world.pass(Duration::from_secs(minutes * 60));
        }
        self.recover();
        self.judge();
        self.counts
    }

    fn step(&mut self) {
        match self.world.random.below(100) {
            0..8 => self.cut_or_heal(),
            8..14 => self.crash_or_start(),
            14..26 => self.order(),
            26..44 => self.edit(),
            44..50 => self.boot_stranger(),
            50..54 => self.set_site(),
            _ => self.machine(),
        }
    }

    fn site(&mut self) -> SiteId {
        let index = self.world.random.below(self.sites.len() as u64);
        self.sites[usize::try_from(index).expect("few sites")]
    }

    fn runs(&self, origin: Origin) -> bool {
        !self.down.contains(&origin)
    }

    fn cut_or_heal(&mut self) {
        let site = self.site();
        let up = self.world.random.chance(50);
        self.world.set_link(site, up);
        self.counts.note(if up { "link healed" } else { "link cut" });
    }

    fn crash_or_start(&mut self) {
        let site = Origin::Site(self.site());
        let origin = if self.world.random.chance(30) { Origin::Central } else { site };
        if self.down.remove(&origin) {
            self.world.start(origin);
        } else {
            self.world.crash(origin);
            self.counts.note(if origin == Origin::Central { "central crashed" } else { "site crashed" });
            // Half of the time it is back at once.
            if self.world.random.chance(50) {
                self.world.start(origin);
            } else {
                self.down.insert(origin);
            }
        }
    }

    fn order(&mut self) {
        if !self.runs(Origin::Central) {
            return;
        }
        let (site, workflow) = (self.site(), self.workflow);
        let known = self.read(Origin::Central, |view| view.nodes(&NodeFilter::default()));
        let node = if self.world.random.chance(50) && !known.is_empty() {
            let index = self.world.random.below(known.len() as u64);
            known[usize::try_from(index).expect("few nodes")].id
        } else {
            self.nodes += 1;
            let mac = MacAddr([0x52, 0x54, 0, 0, 1, self.nodes]);
            self.world
                .run(Origin::Central, "ann", move |tx| node::create(tx, mac, site, "machine"))
                .expect("central registers a machine")
        };
        let new =
            NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
        match self.world.run(Origin::Central, "ann", move |tx| task::create(tx, &new)) {
            Ok(task) => {
                self.counts.note("ordered");
                self.attempts.push(Attempt { site: task.site, node, task, log: vec![], next: 0 });
            }
            Err(StoreError::Refused(_)) => self.counts.note("refused"),
            Err(error) => panic!("an order fails with {error}"),
        }
    }

    fn edit(&mut self) {
        let site = Origin::Site(self.site());
        let origin = if self.world.random.chance(50) { Origin::Central } else { site };
        if !self.runs(origin) {
            return;
        }
        let known = self.read(origin, |view| view.nodes(&NodeFilter::default()));
        if known.is_empty() {
            return;
        }
        let index = self.world.random.below(known.len() as u64);
        let node = known[usize::try_from(index).expect("few nodes")].id;
        let number = self.world.random.below(1_000);
        let wanted = match self.world.random.below(6) {
            0 => Some(Wanted::Reprovision),
            1 => Some(Wanted::Keep),
            _ => None,
        };
        let edit = NodeEdit {
            hostname: self.world.random.chance(60).then(|| format!("host-{number}")),
            tags: BTreeMap::from([(
                format!("tag-{}", number % 3),
                (!number.is_multiple_of(5)).then(|| number.to_string()),
            )]),
            wanted,
            ..NodeEdit::default()
        };
        match self.world.run(origin, "ann", move |tx| node::edit(tx, node, &edit)) {
            Ok(_) => self.counts.note("edited"),
            Err(StoreError::Refused(_)) => self.counts.note("refused"),
            Err(error) => panic!("an edit fails with {error}"),
        }
    }

    fn boot_stranger(&mut self) {
        let site = Origin::Site(self.site());
        if !self.runs(site) {
            return;
        }
        let mac = MacAddr([0x52, 0x54, 0, 0, 2, u8::try_from(self.world.random.below(6)).expect("small")]);
        let adopt = self.world.random.chance(50);
        let answered = Answered {
            mac,
            answer: "local disk".into(),
            reason: "nothing is planned".into(),
            adopt,
            booting: None,
            local_disk: true,
        };
        let node = self.world.run(site, "boot", move |tx| boot::answered(tx, &answered));
        node.expect("the boot is noted");
        self.counts.note(if adopt { "adopted" } else { "booted" });
    }

    fn set_site(&mut self) {
        if !self.runs(Origin::Central) {
            return;
        }
        let site = self.site();
        let index = usize::try_from(self.world.random.below(3)).expect("small");
        let edit = SettingsEdit { autonomy: Some(Autonomy::ALL[index]), ..SettingsEdit::default() };
        let set = self.world.run(Origin::Central, "ann", move |tx| site::set(tx, site, &edit, "chaos"));
        set.expect("central sets the autonomy");
    }

    /// One machine takes a step of its installation, if its site runs and has the order.
    fn machine(&mut self) {
        if self.attempts.is_empty() {
            return;
        }
        let index = usize::try_from(self.world.random.below(self.attempts.len() as u64)).expect("few");
        let (site, node, id) =
            (self.attempts[index].site, self.attempts[index].node, self.attempts[index].task.id);
        let origin = Origin::Site(site);
        if !self.runs(origin) || self.read(origin, |view| view.task(id)).is_none() {
            return;
        }
        let ready = self.world.run(origin, "cache", move |tx| task::mark_ready(tx, site, |_| true));
        ready.expect("tasks become ready");
        let steps = [Report::GoAhead, Report::InstallStarted, Report::Progress(40), Report::InstallComplete];
        let Some(it) = steps.get(self.attempts[index].next).cloned() else { return };
        let report = ReportId(self.world.random.bytes());
        let told = it.clone();
        let ask = move |tx: &mut store::Tx<'_>| report::event(tx, site, report, node, (id, 1), &told);
        let first = self.world.run(origin, "machine", ask.clone()).expect("the machine is answered");
        if self.world.random.chance(25) {
            // The answer got lost: in half of these cases because the site did.
            if self.world.random.chance(50) {
                self.world.crash(origin);
                self.world.start(origin);
                self.counts.note("site crashed");
            }
            let again = self.world.run(origin, "machine", ask).expect("the machine is answered");
            assert_eq!(first, again, "a repeated report gets the same answer");
            self.counts.note("repeated");
        }
        let attempt = &mut self.attempts[index];
        attempt.log.push((report, first.body.to_string()));
        if first.status == 200 {
            attempt.next += 1;
            match it {
                Report::GoAhead => self.counts.note("go-ahead"),
                Report::InstallComplete => self.counts.note("installed"),
                _ => {}
            }
        } else {
            attempt.next = usize::MAX;
            self.counts.note("refused");
        }
    }

    fn read<T>(&self, origin: Origin, read: impl FnOnce(&View<'_>) -> Result<T, StoreError>) -> T {
        self.world.store(origin).read(read).expect("the store reads")
    }

    /// Liveness: everything runs and every link is up.
    fn recover(&mut self) {
        for origin in std::mem::take(&mut self.down) {
            self.world.start(origin);
        }
        for site in self.sites.clone() {
            self.world.set_link(site, true);
        }
        for site in self.sites.clone() {
            self.world.until("a site and central agree", Duration::from_secs(600), |world| {
                world.in_agreement(site)
            });
        }
    }

    /// What must hold when everybody has heard everything.
    fn judge(&mut self) {
        for site in self.sites.clone() {
            let origin = Origin::Site(site);
            for node in self.read(origin, |view| view.nodes(&NodeFilter::default())) {
                let there = self.read(Origin::Central, |view| view.node(node.id)).expect("central has it");
                assert_eq!(node, there, "equal documents are equal views");
            }
            for task in self.read(origin, |view| view.tasks(&TaskFilter::default())) {
                let there = self.read(Origin::Central, |view| view.task(task.id)).expect("central has it");
                assert_eq!(task, there, "equal documents are equal views");
            }
            let filter = JournalFilter { site: Some(site), ..JournalFilter::default() };
            let chain = |rows: Vec<JournalRow>| -> Vec<_> {
                rows.into_iter().map(|row| (row.incarnation, row.seq, row.event)).collect()
            };
            let here = chain(self.read(origin, |view| view.journal(&filter)));
            let there = chain(self.read(Origin::Central, |view| view.journal(&filter)));
            assert_eq!(here, there, "central has the site's journal");
            assert!(here.iter().map(|(_, seq, _)| *seq).eq(1..=here.len() as u64), "without a gap");
        }
        self.judge_machines();
        let sites = self.sites.iter().map(|site| Origin::Site(*site));
        let everybody: Vec<Origin> = std::iter::once(Origin::Central).chain(sites).collect();
        for origin in everybody {
            let aside = self.read(origin, |view| view.quarantine());
            assert!(aside.is_empty(), "nobody is hostile here and nothing is refused at {origin}: {aside:?}");
            let all = |view: &View<'_>| {
                Ok((
                    view.nodes(&NodeFilter::default())?,
                    view.tasks(&TaskFilter::default())?,
                    view.sites()?,
                    view.workflows()?,
                ))
            };
            let before = self.read(origin, all);
            self.world.run(origin, "doctor", |tx| tx.rebuild_views()).expect("views are made again");
            assert_eq!(before, self.read(origin, all), "derived rows are what the documents say");
        }
    }

    fn judge_machines(&mut self) {
        let entries = self.read(Origin::Central, |view| view.journal(&JournalFilter::default()));
        for attempt in &self.attempts {
            let gone_ahead = attempt.log.iter().filter(|(_, answer)| answer.contains(r#""go""#)).count();
            assert!(gone_ahead <= 1, "no go-ahead is given twice");
            let consumed = entries
                .iter()
                .filter(|row| matches!(&row.event, Some(Event::OrderConsumed { task, .. }) if *task == attempt.task.id))
                .count();
            assert_eq!(gone_ahead, consumed, "a go-ahead is a consumed order");
            for (report, _) in &attempt.log {
                let found = entries
                    .iter()
                    .filter(|row| match &row.event {
                        Some(
                            Event::ReportReceived { report: id, .. }
                            | Event::ReportRefused { report: id, .. },
                        ) => id == report,
                        _ => false,
                    })
                    .count();
                assert_eq!(found, 1, "report {report} is in central's journal once");
            }
        }
    }
}

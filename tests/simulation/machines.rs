//! What machines do: they boot, install, report, repeat what was not answered, lose power, and are carried
//! to another site.

use std::collections::BTreeMap;

use site_agent::{
    boot::decide::{Answer as BootAnswer, decide},
    sight,
};
use store::{
    StoreError, Tx,
    command::{
        boot,
        report::{self, Answer, Registration, Report},
        task,
    },
    view::TaskFilter,
};
use sync::{
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, TaskId},
    policy::{LinkState, TaskState, order::MAX_ATTEMPT_BOOTS},
};

use crate::{
    checks::violated,
    planted::{self, Bug, Counting, Shown},
    run::{Did, Run},
};

/// Machines that stand at each site.
const MACHINES: u8 = 6;

/// Steps for which somebody waits in front of a machine: it has five, and some answers are lost.
const STEPS: usize = 10;

/// A machine that boots from the network.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) mac: MacAddr,
    /// Where it stands.
    pub(crate) stands: SiteId,
    /// Where it belongs, as far as people agree.
    belongs: SiteId,
    attempt: Option<Attempt>,
    /// What it reported, with the answer.
    reported: Vec<(ReportId, Said, Answer)>,
}

/// What is in the memory of a machine that installs.
#[derive(Clone, Debug)]
struct Attempt {
    site: SiteId,
    task: TaskId,
    number: u64,
    /// How much it has said.
    next: usize,
    /// What it says until it gets an answer.
    pending: Option<(ReportId, Said)>,
    fails: bool,
}

/// What a machine says.
#[derive(Clone, Debug)]
enum Said {
    Register,
    Event(TaskId, u64, Report),
}

impl Run {
    pub(crate) fn place_machines(&mut self) {
        for (index, site) in (1..).zip(self.sites.clone()) {
            for number in 1..=MACHINES {
                let mac = MacAddr([0x52, 0x54, 0, 0, index, number]);
                let machine =
                    Machine { mac, stands: site, belongs: site, attempt: None, reported: Vec::new() };
                self.machines.push(machine);
            }
        }
    }

    /// Some machine does something.
    pub(crate) fn machine(&mut self) -> Did {
        let index = usize::try_from(self.world.random.below(self.machines.len() as u64)).expect("few");
        if !self.world.runs(Origin::Site(self.machines[index].stands)) {
            return Did::Nothing;
        }
        match self.world.random.below(100) {
            0..6 => self.carry(index),
            6..10 => self.carry_back(),
            10..15 => self.repeat(index),
            15..18 => {
                // The power goes; what was in memory is gone.
                self.machines[index].attempt = None;
                self.boot(index)
            }
            _ if self.machines[index].attempt.is_some() => self.go_on(index),
            _ => self.boot(index),
        }
    }

    /// Somebody carries it to another site, back, or on.
    fn carry(&mut self, index: usize) -> Did {
        let (stands, belongs) = (self.machines[index].stands, self.machines[index].belongs);
        let to = if stands == belongs || self.world.random.chance(20) { self.site() } else { belongs };
        self.carry_to(index, to)
    }

    /// Some machine that was carried off comes back.
    fn carry_back(&mut self) -> Did {
        let away: Vec<usize> = (0..self.machines.len())
            .filter(|index| self.machines[*index].stands != self.machines[*index].belongs)
            .collect();
        let Some(index) = self.one_of(&away) else { return Did::Nothing };
        self.carry_to(index, self.machines[index].belongs)
    }

    /// Somebody brings a machine to where central says that it belongs.
    pub(crate) fn bring_home(&mut self, node: NodeId, home: SiteId) {
        if let Some(index) = self.machines.iter().position(|machine| NodeId::of(machine.mac) == node) {
            self.world.count("brought home");
            self.carry_to(index, home);
        }
    }

    fn carry_to(&mut self, index: usize, to: SiteId) -> Did {
        let (stands, belongs) = (self.machines[index].stands, self.machines[index].belongs);
        if stands != to && [stands, to].iter().all(|site| !self.world.link_is_up(*site)) {
            let back = to == belongs;
            self.world.count(if back { "carried back and unseen" } else { "carried off unseen" });
        }
        self.machines[index].attempt = None;
        self.machines[index].stands = to;
        if self.world.runs(Origin::Site(to)) { self.boot(index) } else { Did::Nothing }
    }

    /// Somebody who stands in front of a machine starts it and waits until it is installed, if it will be.
    pub(crate) fn install(&mut self, site: SiteId, node: NodeId) {
        let here = |machine: &Machine| NodeId::of(machine.mac) == node && machine.stands == site;
        let Some(index) = self.machines.iter().position(here) else { return };
        self.machines[index].attempt = None;
        self.boot(index);
        for _ in 0..STEPS {
            if self.machines[index].attempt.is_none() || !self.world.runs(Origin::Site(site)) {
                return;
            }
            self.go_on(index);
        }
    }

    /// It asks for its boot script, as `site_agent::http::boot` answers it.
    fn boot(&mut self, index: usize) -> Did {
        let (mac, site) = (self.machines[index].mac, self.machines[index].stands);
        let (did, answer) = self.boots(site, mac);
        if let Some(BootAnswer::Workflow { task, attempt, .. }) = answer {
            let fails = self.world.random.chance(15);
            let attempt = Attempt { site, task, number: attempt, next: 0, pending: None, fails };
            self.machines[index].attempt = Some(attempt);
        }
        did
    }

    pub(crate) fn boots(&mut self, site: SiteId, mac: MacAddr) -> (Did, Option<BootAnswer>) {
        let origin = Origin::Site(site);
        self.content_is_here(site);
        let (now, link) = (self.now(origin), self.world.link_is_up(site));
        let link = if link { LinkState::Connected } else { LinkState::Offline };
        let store = self.world.store(origin).clone();
        let counting = Counting::begin(self.bug, &store);
        let view = self.read(origin, |view| sight::of(view, store.blobs(), site, mac, link, now));
        if let Some(counting) = counting {
            counting.end();
        }
        drop(store);
        let decision = decide(&view);
        if decision.answer == BootAnswer::Silent {
            return (Did::Something("left alone"), None);
        }
        let answered = sight::noted(mac, &decision);
        let done = if decision.record.adopt {
            "adopted"
        } else if decision.record.claims {
            "visited"
        } else {
            "booted"
        };
        let exhausted = decision.record.exhausted;
        let report = ReportId(self.world.random.bytes());
        let command = move |tx: &mut Tx<'_>| -> Result<(), StoreError> {
            let node = boot::answered(tx, &answered)?;
            if let (Some(node), Some(attempt)) = (node, exhausted) {
                let error = format!("the attempt was booted {MAX_ATTEMPT_BOOTS} times and did not end");
                report::event(tx, site, report, node, attempt, &Report::InstallFailed(error))?;
            }
            Ok(())
        };
        let (did, noted) = self.ask(origin, "boot", done, command);
        // What could not be noted is not given.
        (did, noted.map(|()| decision.answer))
    }

    /// What `site_agent::cache` does when the files of a task are there, as they are here from the start.
    fn content_is_here(&mut self, site: SiteId) {
        let origin = Origin::Site(site);
        let pending =
            TaskFilter { site: Some(site), state: Some(TaskState::Pending), ..TaskFilter::default() };
        if self.read(origin, |view| view.tasks(&pending)).iter().any(|task| !task.cancelled) {
            let blobs = self.world.store(origin).blobs().clone();
            self.ask(origin, "cache", "content arrived", move |tx| {
                task::mark_ready(tx, site, |digest| blobs.contains(digest).unwrap_or(false))
            });
        }
    }

    /// The next step of its installation, or what was not answered yet.
    fn go_on(&mut self, index: usize) -> Did {
        let machine = self.machines[index].clone();
        let Some(mut attempt) = machine.attempt else { return Did::Nothing };
        let fresh = ReportId(self.world.random.bytes());
        let (report, said) = attempt.pending.take().unwrap_or_else(|| (fresh, next(&attempt)));
        let (did, answer) = self.says(attempt.site, machine.mac, report, &said);
        let Some(answer) = answer else {
            // Refused as a whole, or the disk was full: it asks again or gives up.
            attempt.pending = Some((report, said));
            self.machines[index].attempt = (did == Did::Nothing).then_some(attempt);
            return did;
        };
        if self.world.random.chance(12) {
            // The answer is lost on its way.
            attempt.pending = Some((report, said));
            self.machines[index].attempt = Some(attempt);
            return did;
        }
        let mut named = did;
        self.machines[index].reported.push((report, said.clone(), answer.clone()));
        let word = answer.body.get("answer").and_then(|word| word.as_str()).unwrap_or_default().to_string();
        match answer.status {
            200 => {
                attempt.next += 1;
                if word == "resume" {
                    named = Did::Something("taken up again");
                }
            }
            202 => {}
            _ => {
                self.machines[index].attempt = None;
                return did;
            }
        }
        let ended = attempt.next >= 5;
        self.machines[index].attempt = (!ended).then_some(attempt);
        named
    }

    /// A report comes once more, late: it gets the answer that it got before.
    fn repeat(&mut self, index: usize) -> Did {
        let machine = self.machines[index].clone();
        let Some((report, said, before)) = self.one_of(&machine.reported) else { return Did::Nothing };
        let Some(site) = self.checks.borrow().reported_at(report) else { return Did::Nothing };
        if !self.world.runs(Origin::Site(site)) {
            return Did::Nothing;
        }
        planted::repeats(self.bug, self.world.store(Origin::Site(site)), report);
        let (did, answer) = self.says(site, machine.mac, report, &said);
        if answer.is_some_and(|answer| answer.status != 202 && answer != before) {
            violated("a repeated report gets the same answer", format!("{report}: {said:?}"));
        }
        if did == Did::Nothing { did } else { Did::Something("repeated report") }
    }

    fn says(&mut self, site: SiteId, mac: MacAddr, report: ReportId, said: &Said) -> (Did, Option<Answer>) {
        let origin = Origin::Site(site);
        match said {
            Said::Register => {
                let it = Registration {
                    evidence: BTreeMap::from([("serial".into(), format!("S-{mac}"))]),
                    cpus: Some(4),
                    memory_bytes: Some(8 << 30),
                    ..Registration::default()
                };
                self.ask(origin, "machine", "registered itself", move |tx| {
                    report::register(tx, report, mac, false, &it)
                })
            }
            Said::Event(task, number, it) => {
                let done = match it {
                    Report::GoAhead => "asked to go ahead",
                    Report::InstallStarted | Report::Progress(_) => "reported",
                    Report::InstallComplete => "installed",
                    Report::InstallFailed(_) => "installation failed",
                };
                let (about, told) = ((*task, *number), it.clone());
                let node = NodeId::of(mac);
                let doubles = self.bug == Some(Bug::DoubledGoAhead) && *it == Report::GoAhead;
                let shown = doubles.then(|| Shown::of(self.world.store(origin), *task, node));
                let (mut did, answer) = self.ask(origin, "machine", done, move |tx| {
                    report::event(tx, site, report, node, about, &told)
                });
                if let Some(answer) = &answer {
                    let goes = answer.body.get("answer").is_some_and(|word| word == "go");
                    if goes {
                        self.checks.borrow_mut().goes_ahead(&self.world, site, node, about, report);
                        did = Did::Something("go-ahead");
                        if let Some(shown) = shown {
                            // The answer is lost, and the machine boots and asks once more.
                            shown.put_back(self.world.store(origin), *task, node);
                            let again = ReportId(self.world.random.bytes());
                            self.says(site, mac, again, said);
                        }
                    } else if answer.status != 200 {
                        did = Did::Something("refused");
                    }
                }
                (did, answer)
            }
        }
    }
}

fn next(attempt: &Attempt) -> Said {
    let event = |it| Said::Event(attempt.task, attempt.number, it);
    match attempt.next {
        0 => Said::Register,
        1 => event(Report::GoAhead),
        2 => event(Report::InstallStarted),
        3 => event(Report::Progress(40)),
        _ if attempt.fails => event(Report::InstallFailed("the disk is broken".into())),
        _ => event(Report::InstallComplete),
    }
}

//! What people do: operators at central, administrators at a site.

use std::collections::BTreeMap;

use store::{
    Tx,
    command::{
        ask::{self, Ask, Done, What},
        conflict::{self, Decision, ManyDecision},
        group::{self, GroupEdit},
        node::{self, NodeEdit},
        site::{self, SettingsEdit},
        task::NewTask,
    },
    view::{ConflictFilter, NodeFilter, NodeRow, TaskFilter, TaskRow},
};
use sync::{
    document::{settings::Key, site::UnknownMachines},
    id::{GroupId, MacAddr, Origin, SiteId},
    policy::{Autonomy, MigrationConsent, MigrationPolicy, PendingBoot, Strategy, TaskState, Wanted},
};

use crate::{
    planted::Bug,
    run::{Did, Run},
};

impl Run {
    /// Somebody at central does something.
    pub(crate) fn operator(&mut self) -> Did {
        let central = Origin::Central;
        if !self.world.runs(central) {
            return Did::Nothing;
        }
        if self.draw.has_groups && self.world.random.chance(15) {
            return self.organise();
        }
        if self.bug.is_some_and(Bug::needs_two_orders) && self.world.random.chance(25) {
            return self.both_order();
        }
        match self.world.random.below(100) {
            0..7 => self.register(),
            7..29 => self.edit(central),
            29..45 => self.order(central),
            45..49 => self.end_or_retry(central),
            49..54 => self.cancel(central),
            54..63 => self.judge(central),
            63..70 => {
                let site = self.site();
                self.set(site)
            }
            70..81 => self.settle(),
            81..84 => self.quarrel(),
            84..86 => self.both_order(),
            86..96 => self.decide_claims(),
            _ => self.confirm(),
        }
    }

    /// Somebody at a site does something.
    pub(crate) fn admin(&mut self) -> Did {
        let site = Origin::Site(self.site());
        if !self.world.runs(site) {
            return Did::Nothing;
        }
        match self.world.random.below(100) {
            0..46 => self.edit(site),
            46..60 => self.order(site),
            60..64 => self.end_or_retry(site),
            64..66 => self.adopt(site),
            66..74 => self.cancel(site),
            74..87 => self.judge(site),
            87..95 => self.consent(site),
            _ if self.read(site, |view| view.suspended()).is_none() => Did::Nothing,
            _ => self.ask(site, "bob", "orders confirmed", |tx| tx.resume_orders()).0,
        }
    }

    /// A machine is described before it was ever seen.
    fn register(&mut self) -> Did {
        let all: Vec<_> = self.machines.iter().map(|machine| (machine.mac, machine.stands)).collect();
        let Some((mac, site)) = self.one_of(&all) else { return Did::Nothing };
        let name = format!("pos-{}", mac.0[5]);
        self.ask(Origin::Central, "ann", "registered", move |tx| node::create(tx, mac, site, &name)).0
    }

    fn edit(&mut self, origin: Origin) -> Did {
        let Some(node) = self.node(origin) else { return Did::Nothing };
        let number = self.world.random.below(1_000);
        let is_contested = node.contested.iter().any(|path| path == "hostname");
        // At a site most of it can be done there and then, so that both sides write.
        let wanted = match self.world.random.below(if origin == Origin::Central { 24 } else { 72 }) {
            0..4 => Some(Wanted::Reprovision),
            4 => Some(Wanted::Ignored),
            5 => Some(Wanted::Retired),
            6..12 => Some(Wanted::Keep),
            _ => None,
        };
        let edit = NodeEdit {
            hostname: (is_contested || self.world.random.chance(50)).then(|| format!("host-{number}")),
            notes: self.world.random.chance(20).then(|| format!("seen on day {number}")),
            tags: BTreeMap::from([(
                format!("tag-{}", number % 3),
                (!number.is_multiple_of(5)).then(|| number.to_string()),
            )]),
            wanted,
            ..NodeEdit::default()
        };
        let done = match (wanted, origin) {
            (Some(Wanted::Retired), _) => "retired",
            (_, Origin::Central) => "edited at central",
            (_, Origin::Site(_)) => "edited at a site",
        };
        self.wish(origin, done, What::EditNode { node: node.id, edit })
    }

    fn order(&mut self, origin: Origin) -> Did {
        let Some(node) = self.node(origin) else { return Did::Nothing };
        let Some(workflow) = self.one_of(&self.workflows.clone()) else { return Did::Nothing };
        let new = NewTask {
            node: node.id,
            workflow,
            version: None,
            parameters: BTreeMap::from([("number".into(), self.world.random.below(100).to_string())]),
            tags: BTreeMap::new(),
        };
        let done = if origin == Origin::Central { "ordered at central" } else { "ordered at a site" };
        self.wish(origin, done, What::CreateTask(new))
    }

    fn cancel(&mut self, origin: Origin) -> Did {
        let Some(row) = self.task(origin, |row| !row.state.is_final()) else { return Did::Nothing };
        self.wish(origin, "cancelled", What::CancelTask { task: row.id })
    }

    /// A failed attempt is tried again, or one past its first write is given up.
    fn end_or_retry(&mut self, origin: Origin) -> Did {
        let meant = |row: &TaskRow| matches!(row.state, TaskState::Failed | TaskState::Installing);
        let Some(row) = self.task(origin, meant) else { return Did::Nothing };
        match row.state {
            TaskState::Failed => self.wish(origin, "tried again", What::RetryTask { task: row.id }),
            // Rarely: most of what is under way is left to end.
            _ if self.world.random.chance(30) => {
                self.wish(origin, "given up", What::AbortTask { task: row.id })
            }
            _ => Did::Nothing,
        }
    }

    /// Somebody at a site takes in a machine that he has in front of him.
    fn adopt(&mut self, origin: Origin) -> Did {
        let all: Vec<MacAddr> = self.machines.iter().map(|machine| machine.mac).collect();
        let Some(mac) = self.one_of(&all) else { return Did::Nothing };
        self.wish(origin, "adopted by a person", What::AdoptMachine { mac })
    }

    /// Somebody asks for something, with a reason that nobody else has; at a site it may have to wait.
    pub(crate) fn wish(&mut self, origin: Origin, done: &'static str, what: What) -> Did {
        let ask = Ask { what, why: format!("reason {:016x}", self.world.random.below(u64::MAX)) };
        match self.ask(origin, "ann", done, move |tx| ask::perform(tx, &ask)) {
            (_, Some(Done::Queued(_))) => Did::Something("asked of central"),
            (did, _) => did,
        }
    }

    fn judge(&mut self, origin: Origin) -> Did {
        let waits = |row: &TaskRow| row.state == TaskState::PendingApproval;
        let Some(row) = self.task(origin, waits) else { return Did::Nothing };
        let approved = self.world.random.chance(70);
        let done = if approved { "approved" } else { "rejected" };
        self.wish(origin, done, What::JudgeTask { task: row.id, approved })
    }

    /// Central changes the settings of a site.
    pub(crate) fn set(&mut self, site: SiteId) -> Did {
        let mut edit = self.settings();
        if self.draw.has_groups && self.world.random.chance(40) {
            let inherit = self.one_of(Key::ALL).into_iter().collect();
            edit = SettingsEdit { inherit, ..SettingsEdit::default() };
        }
        self.ask(Origin::Central, "ann", "settings changed", move |tx| site::set(tx, site, &edit, "")).0
    }

    /// Somebody at the review desk settles what waits there, one or all, or takes back how one ended.
    fn settle(&mut self) -> Did {
        let all = self.read(Origin::Central, |view| view.conflicts(&ConflictFilter::default()));
        let (open, ended): (Vec<_>, Vec<_>) = all.into_iter().partition(|row| row.ended.is_none());
        let strategies = [Strategy::CentralWins, Strategy::SiteWins, Strategy::LastWrite];
        if self.world.random.chance(20) {
            let Some(row) = self.one_of(&ended) else { return Did::Nothing };
            let to = self.one_of(&row.sides).map(|side| side.nonce);
            return self
                .ask(Origin::Central, "ann", "settlement taken back", move |tx| {
                    conflict::revert(tx, row.conflict, to, "it was the other one")
                })
                .0;
        }
        let Some(row) = self.one_of(&open) else { return Did::Nothing };
        if self.world.random.chance(50) {
            let decision = ManyDecision {
                strategy: self.one_of(&strategies),
                destructive: self.world.random.chance(30),
                why: "all of them".into(),
                ..ManyDecision::default()
            };
            return self
                .ask(Origin::Central, "ann", "many settled", move |tx| conflict::resolve_many(tx, &decision))
                .0;
        }
        let side = self.one_of(&row.sides).map(|side| side.nonce);
        let decision = Decision { side, why: "looked at both".into(), ..Decision::default() };
        self.ask(Origin::Central, "ann", "settled by hand", move |tx| {
            conflict::resolve(tx, row.conflict, &decision)
        })
        .0
    }

    fn settings(&mut self) -> SettingsEdit {
        let levels = [Autonomy::ReadOnly, Autonomy::Limited, Autonomy::Full, Autonomy::Full];
        let unknown = [UnknownMachines::Adopt, UnknownMachines::Hold, UnknownMachines::Ignore];
        let mut edit = SettingsEdit::default();
        match self.world.random.below(12) {
            0 => edit.unknown_machines = self.one_of(&unknown),
            1 | 2 => edit.conflict_resolution = self.one_of(Strategy::ALL),
            3 => edit.order_max_s = Some(7_200 + self.world.random.below(252_000)),
            4 => edit.max_install_attempts = Some(1 + self.world.random.below(5)),
            5 => edit.migration_policy = self.one_of(MigrationPolicy::ALL),
            6 => self.set_claims(&mut edit),
            _ => edit.autonomy = self.one_of(&levels),
        }
        edit
    }

    /// How long claims wait, whose consent is needed, and what machines are given meanwhile.
    pub(crate) fn set_claims(&mut self, edit: &mut SettingsEdit) {
        edit.claim_ttl_s = Some(3_600 + self.world.random.below(108_000));
        let consents = [MigrationConsent::Either, MigrationConsent::Either, MigrationConsent::Both];
        edit.migration_consent = self.one_of(&consents);
        edit.pending_boot = self.one_of(PendingBoot::ALL);
    }

    /// Central makes groups, moves groups and sites, and says what holds in them and what directories are about.
    fn organise(&mut self) -> Did {
        let central = Origin::Central;
        let all: Vec<GroupId> =
            self.read(central, |view| view.groups()).into_iter().map(|row| row.id).collect();
        let group = if self.world.random.chance(30) { None } else { self.one_of(&all) };
        let site = self.site();
        match self.world.random.below(8) {
            0 if all.len() < 5 => {
                let name = format!("group-{}", self.world.random.below(100));
                self.ask(central, "ann", "group made", move |tx| group::create(tx, &name, "", group)).0
            }
            0 | 1 => {
                let Some(moved) = self.one_of(&all) else { return Did::Nothing };
                let edit = GroupEdit { parent: Some(group), ..GroupEdit::default() };
                self.ask(central, "ann", "group moved", move |tx| group::edit(tx, moved, &edit, "")).0
            }
            2 | 3 if !all.is_empty() => {
                let (Some(group), edit) = (self.one_of(&all), self.settings()) else { return Did::Nothing };
                self.ask(central, "ann", "group's settings changed", move |tx| {
                    group::set(tx, group, &edit, "")
                })
                .0
            }
            2..5 => self.ask(central, "ann", "site moved", move |tx| group::place(tx, site, group, "")).0,
            _ => {
                let set = move |tx: &mut Tx<'_>| group::set_domain(tx, site, group, "");
                self.ask(central, "ann", "domain changed", set).0
            }
        }
    }

    /// Somebody at central confirms that orders are followed again, wherever they are not.
    fn confirm(&mut self) -> Did {
        let central = Origin::Central;
        if self.read(central, |view| view.recovery()).is_some() {
            let anyway = self.world.random.chance(50);
            return self
                .ask(central, "ann", "recovery ended", move |tx| tx.end_recovery("looked at it", anyway))
                .0;
        }
        let site = self.site();
        let origin = Origin::Site(site);
        if !self.world.runs(origin) || self.read(origin, |view| view.suspended()).is_none() {
            return Did::Nothing;
        }
        self.ask(central, "ann", "orders confirmed", move |tx| site::resume(tx, site, "looked at it")).0
    }

    /// At a site people look at what is contested, and write it once more; and of one machine everybody talks.
    fn node(&mut self, origin: Origin) -> Option<NodeRow> {
        let all = self.read(origin, |view| view.nodes(&NodeFilter::default()));
        let contested: Vec<NodeRow> = all.iter().filter(|row| !row.contested.is_empty()).cloned().collect();
        match self.world.random.below(100) {
            0..25 if origin != Origin::Central && !contested.is_empty() => self.one_of(&contested),
            25..60 => all.into_iter().min_by_key(|row| row.id),
            _ => self.one_of(&all),
        }
    }

    fn task(&mut self, origin: Origin, is_meant: impl Fn(&TaskRow) -> bool) -> Option<TaskRow> {
        let mut all = self.read(origin, |view| view.tasks(&TaskFilter::default()));
        all.retain(is_meant);
        self.one_of(&all)
    }
}

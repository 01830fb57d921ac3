//! What people do: operators at central, administrators at a site.

use std::collections::BTreeMap;

use store::{
    Tx,
    command::{
        group::{self, GroupEdit},
        node::{self, NodeEdit},
        site::{self, SettingsEdit},
        task::{self, NewTask},
    },
    view::{NodeFilter, NodeRow, TaskFilter, TaskRow},
};
use sync::{
    document::{settings::Key, site::UnknownMachines},
    id::{GroupId, Origin, SiteId},
    policy::{Autonomy, TaskState, Wanted},
};

use crate::run::{Did, Run};

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
        match self.world.random.below(100) {
            0..8 => self.register(),
            8..38 => self.edit(central),
            38..62 => self.order(central),
            62..70 => self.cancel(central),
            70..82 => self.judge(central),
            82..90 => {
                let site = self.site();
                self.set(site)
            }
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
            0..50 => self.edit(site),
            50..70 => self.order(site),
            70..80 => self.cancel(site),
            80..95 => self.judge(site),
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
        let wanted = match self.world.random.below(24) {
            0..4 => Some(Wanted::Reprovision),
            4 => Some(Wanted::Ignored),
            5 => Some(Wanted::Retired),
            6..12 => Some(Wanted::Keep),
            _ => None,
        };
        let edit = NodeEdit {
            hostname: self.world.random.chance(50).then(|| format!("host-{number}")),
            notes: self.world.random.chance(20).then(|| format!("seen on day {number}")),
            tags: BTreeMap::from([(
                format!("tag-{}", number % 3),
                (!number.is_multiple_of(5)).then(|| number.to_string()),
            )]),
            wanted,
            why: format!("because of {number}"),
            ..NodeEdit::default()
        };
        let done = match (wanted, origin) {
            (Some(Wanted::Retired), _) => "retired",
            (_, Origin::Central) => "edited at central",
            (_, Origin::Site(_)) => "edited at a site",
        };
        let id = node.id;
        self.ask(origin, "ann", done, move |tx| node::edit(tx, id, &edit)).0
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
        self.ask(origin, "ann", done, move |tx| task::create(tx, &new)).0
    }

    fn cancel(&mut self, origin: Origin) -> Did {
        let Some(row) = self.task(origin, |row| !row.state.is_final()) else { return Did::Nothing };
        self.ask(origin, "ann", "cancelled", move |tx| task::cancel(tx, row.id, "not today")).0
    }

    fn judge(&mut self, origin: Origin) -> Did {
        let waits = |row: &TaskRow| row.state == TaskState::PendingApproval;
        let Some(row) = self.task(origin, waits) else { return Did::Nothing };
        let approved = self.world.random.chance(70);
        let done = if approved { "approved" } else { "rejected" };
        self.ask(origin, "ann", done, move |tx| task::judge(tx, row.id, approved, "looked at it")).0
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

    fn settings(&mut self) -> SettingsEdit {
        let levels = [Autonomy::ReadOnly, Autonomy::Limited, Autonomy::Full, Autonomy::Full];
        let unknown = [UnknownMachines::Adopt, UnknownMachines::Hold, UnknownMachines::Ignore];
        let mut edit = SettingsEdit::default();
        match self.world.random.below(4) {
            0 => edit.unknown_machines = self.one_of(&unknown),
            1 => edit.order_max_s = Some(7_200 + self.world.random.below(252_000)),
            _ => edit.autonomy = self.one_of(&levels),
        }
        edit
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

    fn node(&mut self, origin: Origin) -> Option<NodeRow> {
        let all = self.read(origin, |view| view.nodes(&NodeFilter::default()));
        self.one_of(&all)
    }

    fn task(&mut self, origin: Origin, is_meant: impl Fn(&TaskRow) -> bool) -> Option<TaskRow> {
        let mut all = self.read(origin, |view| view.tasks(&TaskFilter::default()));
        all.retain(is_meant);
        self.one_of(&all)
    }
}

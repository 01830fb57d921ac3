//! Both sides insist. What they disagree about stays open for a while; then somebody at the site, who sees all of it, writes
//! once more, and at the same moment central has it settled.

use std::collections::{BTreeMap, BTreeSet};

use store::{
    command::{
        ask::What,
        node::NodeEdit,
        site::{self, SettingsEdit},
        task::NewTask,
    },
    view::{ConflictFilter, NodeFilter, TaskFilter},
};
use sync::{
    id::{NodeId, Origin, SiteId},
    policy::{Autonomy, Strategy, Wanted},
};

use crate::run::{Did, Run};

impl Run {
    /// Somebody at central and somebody at a site disagree, or one of them has the last word.
    pub(crate) fn quarrel(&mut self) -> Did {
        let filter =
            ConflictFilter { open: Some(true), path: Some("hostname".into()), ..ConflictFilter::default() };
        let open = self.read(Origin::Central, |view| view.conflicts(&filter));
        let open: Vec<(NodeId, SiteId)> =
            open.into_iter().filter_map(|row| Some((NodeId::from(row.document), row.home?))).collect();
        match self.one_of(&open) {
            Some((node, home)) => self.last_word(node, home),
            None => self.disagree(),
        }
    }

    /// Both name one machine at the same moment where nobody but a person settles that, and may want it otherwise.
    fn disagree(&mut self) -> Did {
        let site = self.site();
        let origin = Origin::Site(site);
        if !self.world.runs(origin) {
            return Did::Nothing;
        }
        let mut all = self.read(origin, |view| view.nodes(&NodeFilter::default()));
        all.retain(|row| row.home == Some(site));
        let Some(row) = self.one_of(&all) else { return Did::Nothing };
        let node = row.id;
        if self.read(Origin::Central, |view| view.node(node)).is_none() {
            return Did::Nothing;
        }
        self.leave_conflicts_to(site, Strategy::Manual);
        let (number, want) = (self.world.random.below(1_000), self.world.random.chance(50));
        for (origin, word, wanted) in
            [(Origin::Central, "here", Wanted::Reprovision), (origin, "there", Wanted::Keep)]
        {
            let edit = NodeEdit {
                hostname: Some(format!("{word}-{number}")),
                wanted: want.then_some(wanted),
                ..NodeEdit::default()
            };
            self.wish(origin, "edited at both", What::EditNode { node, edit });
        }
        Did::Something("disagreed")
    }

    fn last_word(&mut self, node: NodeId, home: SiteId) -> Did {
        let origin = Origin::Site(home);
        if !self.world.runs(origin) {
            return Did::Nothing;
        }
        let row = self.read(origin, |view| view.node(node));
        if !row.is_some_and(|row| row.contested.iter().any(|path| path == "hostname")) {
            return Did::Nothing;
        }
        let hostname = Some(format!("last-{}", self.world.random.below(1_000)));
        let edit = NodeEdit { hostname, ..NodeEdit::default() };
        self.wish(origin, "edited at a site", What::EditNode { node, edit });
        self.leave_conflicts_to(home, Strategy::LastWrite);
        Did::Something("last word")
    }

    /// While a site is cut off, both order the same machine; whoever has it in front of him installs it first.
    pub(crate) fn both_order(&mut self) -> Did {
        let may = |run: &Self, site: SiteId| {
            let row = run.read(Origin::Site(site), |view| view.site(site));
            row.is_some_and(|row| row.effective.autonomy == Autonomy::Full)
        };
        let mut sites = self.sites.clone();
        sites.retain(|site| {
            self.world.runs(Origin::Site(*site)) && !self.world.link_is_up(*site) && may(self, *site)
        });
        let Some(site) = self.one_of(&sites) else { return Did::Nothing };
        let origin = Origin::Site(site);
        let busy = self.read(origin, |view| view.tasks(&TaskFilter::default()));
        let busy: BTreeSet<NodeId> =
            busy.iter().filter(|task| !task.state.is_final()).map(|task| task.node).collect();
        let mut all = self.read(origin, |view| view.nodes(&NodeFilter::default()));
        all.retain(|row| row.home == Some(site) && row.wanted == Wanted::Keep && !busy.contains(&row.id));
        let Some(row) = self.one_of(&all) else { return Did::Nothing };
        let Some(workflow) = self.one_of(&self.workflows.clone()) else { return Did::Nothing };
        let new = NewTask {
            node: row.id,
            workflow,
            version: None,
            parameters: BTreeMap::new(),
            tags: BTreeMap::new(),
        };
        self.wish(Origin::Central, "ordered at central", What::CreateTask(new.clone()));
        if self.wish(origin, "ordered at a site", What::CreateTask(new))
            != Did::Something("ordered at a site")
        {
            return Did::Nothing;
        }
        self.install(site, row.id);
        Did::Something("ordered by both")
    }

    fn leave_conflicts_to(&mut self, site: SiteId, strategy: Strategy) {
        let edit = SettingsEdit { conflict_resolution: Some(strategy), ..SettingsEdit::default() };
        self.ask(Origin::Central, "ann", "settings changed", move |tx| site::set(tx, site, &edit, ""));
    }
}

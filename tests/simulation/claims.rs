//! What people do about machines that move: operators decide and break fences, admins consent, somebody carries a
//! machine back.

use std::time::Duration;

use store::{
    command::{ask::What, claim, fence},
    view::{ClaimFilter, ClaimRow},
};
use sync::{
    id::{Origin, SiteId},
    policy::ClaimState,
};

use crate::run::{Did, Run};

/// Whoever hears nothing of a site for so long after a move may take it for lost.
const LOST_AFTER: Duration = Duration::from_secs(4 * 3_600);

/// What the fence of a machine says that central knows to be written at its former home.
const UNDER_WAY: &str = "past its first write";

impl Run {
    /// Somebody at central decides about claims, one or many, or does without a site that is lost.
    pub(crate) fn decide_claims(&mut self) -> Did {
        match self.world.random.below(100) {
            0..40 => self.approve_claim(),
            40..60 => self.reject_claim(),
            60..75 => self.decide_many_claims(),
            _ => self.break_fence(),
        }
    }

    fn claim(&mut self, origin: Origin, is_meant: impl Fn(&ClaimRow) -> bool) -> Option<ClaimRow> {
        let mut all = self.read(origin, |view| view.claims(&ClaimFilter::default()));
        all.retain(is_meant);
        self.one_of(&all)
    }

    /// Mostly one that waits; what has ended without an approval can be approved as well.
    fn approve_claim(&mut self) -> Did {
        let also_ended = self.world.random.chance(15);
        let is_meant = |row: &ClaimRow| row.state == ClaimState::Open || also_ended && row.fence.is_none();
        let Some(row) = self.claim(Origin::Central, is_meant) else { return Did::Nothing };
        let approve = move |tx: &mut store::Tx<'_>| claim::approve(tx, row.id, "it stands there now");
        self.ask(Origin::Central, "ann", "claim approved", approve).0
    }

    /// The machine is often brought back then.
    fn reject_claim(&mut self) -> Did {
        let is_open = |row: &ClaimRow| row.state == ClaimState::Open;
        let Some(row) = self.claim(Origin::Central, is_open) else { return Did::Nothing };
        let reject = move |tx: &mut store::Tx<'_>| claim::reject(tx, row.id, "it belongs at home");
        let (did, done) = self.ask(Origin::Central, "ann", "claim rejected", reject);
        if done.is_some() && self.world.random.chance(50) {
            self.bring_home(row.node, row.from);
        }
        did
    }

    /// Mostly after a look at what would become of them.
    fn decide_many_claims(&mut self) -> Did {
        let (site, comes) = (self.site(), self.world.random.chance(50));
        let filter = ClaimFilter {
            to: comes.then_some(site),
            from: (!comes).then_some(site),
            state: Some(ClaimState::Open),
            ..ClaimFilter::default()
        };
        if self.read(Origin::Central, |view| view.claims(&filter)).is_empty() {
            return Did::Nothing;
        }
        let approves = self.world.random.chance(70);
        if self.world.random.chance(60) {
            let looked = filter.clone();
            self.world.count("looked at many claims");
            self.ask(Origin::Central, "ann", "looked at many claims", move |tx| {
                claim::decide(tx, &looked, approves, "the office moves", true)
            });
        }
        self.ask(Origin::Central, "ann", "many claims decided", move |tx| {
            claim::decide(tx, &filter, approves, "the office moves", false)
        })
        .0
    }

    /// A person does so where nothing was heard of the former home since the machine moved, for hours, and nobody
    /// knows of an installation there.
    fn break_fence(&mut self) -> Did {
        let now = self.now(Origin::Central);
        let unheard: Vec<SiteId> = self.sites.iter().copied().filter(|site| !self.is_heard(*site)).collect();
        let is_lost = |row: &ClaimRow| {
            let waits = row.fence.as_ref().is_some_and(|fence| !fence.reason.contains(UNDER_WAY));
            let long = row.decided_at.is_some_and(|at| now >= at.after(LOST_AFTER));
            row.is_fenced() && waits && long && unheard.contains(&row.from)
        };
        let Some(row) = self.claim(Origin::Central, is_lost) else { return Did::Nothing };
        let Some(node) = self.read(Origin::Central, |view| view.node(row.node)) else { return Did::Nothing };
        let mut typed = node.hostname;
        if typed.is_empty() {
            typed = node.macs.first().map_or_else(|| node.id.to_string(), ToString::to_string);
        }
        if self.world.random.chance(10) {
            typed.push('0');
        }
        let breaks =
            move |tx: &mut store::Tx<'_>| fence::break_fence(tx, row.id, &typed, "that site burned down");
        self.checks.borrow_mut().moves.breaks(row.id);
        let (did, broken) = self.ask(Origin::Central, "ann", "fence broken", breaks);
        if broken.is_none() {
            self.checks.borrow_mut().moves.did_not_break(row.id);
        }
        did
    }

    fn is_heard(&self, site: SiteId) -> bool {
        self.world.link_is_up(site) && self.world.runs(Origin::Site(site))
    }

    /// Somebody at a site says yes or no for its side of a claim.
    pub(crate) fn consent(&mut self, origin: Origin) -> Did {
        let Some(row) = self.claim(origin, |row| row.state == ClaimState::Open) else { return Did::Nothing };
        let consents = self.world.random.chance(70);
        let is_cut_off = origin.site().is_some_and(|site| !self.world.link_is_up(site));
        let done = match (consents, is_cut_off) {
            (true, false) => "consented at a site",
            (true, true) => "consented at a site that is cut off",
            (false, _) => "consent withheld at a site",
        };
        self.wish(origin, done, What::ConsentToClaim { claim: row.id, consents })
    }
}

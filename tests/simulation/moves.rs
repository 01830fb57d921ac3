//! What must hold of machines that move: one home, one decision for each move, and no two sites that may write one
//! disk.
//!
//! What a site could still do to a disk is read from its own database, whether it runs or not, and by the true time: who
//! asked central would agree with whatever central believes. A clock that is wrong by more than the margin of an order
//! is its owner's, and no fence helps against it.
//!
//! A person who breaks a fence takes that upon himself, for one machine and one former home; nothing else is forgiven
//! but what a database that went back does until both sides agree again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use harness::{
    eye::Eye,
    world::{HEARTBEAT, World},
};
use store::view::ClaimRow;
use sync::{
    document::{Kind, claim, contested, node, site, task},
    id::{ClaimId, DocumentId, NodeId, Origin, SiteId, TaskId},
    journal::{Event, Stream},
    policy::{
        Autonomy, ClaimState, MigrationConsent, MigrationPolicy, TaskState, Wanted,
        migration::{self, AUTOMATIC_ONCE_IN, Case, MAX_ROUNDS, Party},
        order::{EXPIRY_MARGIN, MAX_INSTALL_ATTEMPTS},
    },
    time::Timestamp,
};

use crate::checks::{Thing, read, violated};

/// What a fence is for.
pub(crate) const OPEN_FENCE: &str = "behind an open fence the former home can begin nothing";

/// What is remembered of claims.
#[derive(Default)]
pub(crate) struct Moves {
    /// Claims whose fence a person broke.
    broken: BTreeSet<ClaimId>,
    /// Claims that a person rejected, with the entry that says so.
    rejected: BTreeMap<ClaimId, Thing>,
    /// Claims whose fence was closed, and those whose fence opened.
    closed: BTreeSet<ClaimId>,
    opened: BTreeSet<ClaimId>,
    /// What became of claims, by name.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl Moves {
    /// A person breaks the fence of this claim.
    pub(crate) fn breaks(&mut self, claim: ClaimId) {
        self.broken.insert(claim);
    }

    /// He was refused.
    pub(crate) fn did_not_break(&mut self, claim: ClaimId) {
        self.broken.remove(&claim);
    }

    /// Central's database went back: what nobody has any more was never said.
    pub(crate) fn went_back(&mut self, survivors: &BTreeSet<Thing>) {
        self.rejected.retain(|_, fact| survivors.contains(fact));
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Hears what a replica has written in its journal for the first time.
    pub(crate) fn hears(&mut self, stream: Stream, event: &Event, fact: Thing) {
        match event {
            Event::ClaimOpened { to, .. } if stream == Stream::Site(*to) => {
                self.count("claim opened at a site");
            }
            Event::ClaimOpened { to, .. } if stream == Stream::Down(*to) => {
                self.count("claim opened by central");
            }
            Event::ClaimAskedAgain { .. } => self.count("claim asked again"),
            Event::ClaimDecided { claim, to, state, decided_by, policy_matched, .. }
                if stream == Stream::Down(*to) =>
            {
                let consented = policy_matched.as_ref().is_some_and(|matched| matched.contains("consent@"));
                match (state.parse(), decided_by) {
                    (Ok(ClaimState::Approved), Some(_)) => self.count("claim approved by a person"),
                    (Ok(ClaimState::Approved), None) => {
                        if self.rejected.contains_key(claim) {
                            let detail = format!("claim {claim}: {event:?}");
                            violated("what a person rejected no policy approves", detail);
                        }
                        let consent = "claim approved by consent";
                        self.count(if consented { consent } else { "claim approved by policy" });
                    }
                    (Ok(ClaimState::Rejected), _) => {
                        self.rejected.insert(*claim, fact);
                        self.count("claim rejected by a person");
                    }
                    (Ok(ClaimState::Withdrawn), _) => self.count("claim withdrawn"),
                    (Ok(ClaimState::Expired), _) => self.count("claim expired"),
                    (Ok(ClaimState::Open) | Err(_), _) => {}
                }
            }
            Event::FenceOpened { claim, reason, broken_by, .. } if self.opened.insert(*claim) => {
                let how = match broken_by {
                    Some(_) => "fence opened by a person",
                    None if reason.contains("has acknowledged") => "fence opened by acknowledgement",
                    None if reason.contains("has expired") => "fence opened by expiry of orders",
                    None if reason.contains("holds no order") => "fence never closed",
                    None => "fence opened otherwise",
                };
                self.count(how);
            }
            _ => {}
        }
    }

    /// Looks at the claims that central has: whoever lost a machine behind an open fence can begin nothing with it.
    pub(crate) fn look(&mut self, world: &World, excused: &BTreeSet<SiteId>) {
        let central = central(world);
        let claims = claims(&central);
        for (id, it) in &claims {
            if it.fence.as_ref().is_some_and(|fence| fence.closed) && self.closed.insert(*id) {
                self.count("fence closed");
            }
        }
        for (node, site, id, it) in last_moves(&claims) {
            let Some(fence) = it.fence.as_ref() else {
                violated("every move has a fence", format!("claim {id} of node {node}"));
            };
            if fence.closed || self.broken.contains(&id) || excused.contains(&site) {
                continue;
            }
            let at_home = machine(&central, node).is_some_and(|it| it.home == Some(site));
            if !at_home && let Some(what) = could_begin(world, site, node) {
                let detail = format!(
                    "node {node} left {} by claim {id}, whose fence is open ({}), and {what}",
                    world.name(Origin::Site(site)),
                    fence.reason
                );
                violated(OPEN_FENCE, detail);
            }
        }
    }

    /// A machine is about to be written at a site: at no other one anybody may begin that, or has.
    pub(crate) fn goes_ahead(&self, world: &World, here: SiteId, node: NodeId, excused: &BTreeSet<SiteId>) {
        let central = central(world);
        let claims = claims(&central);
        let name = |site: SiteId| world.name(Origin::Site(site));
        let moves: Vec<_> = last_moves(&claims).into_iter().filter(|(of, ..)| *of == node).collect();
        let is_broken = |site: SiteId| {
            let of = |(_, from, id, _): &&(NodeId, SiteId, ClaimId, &claim::InForce)| {
                *from == site && self.broken.contains(id)
            };
            moves.iter().any(|it| of(&it))
        };
        for (id, it) in claims.iter().filter(|(_, it)| it.opened.node == node) {
            let closed = it.fence.as_ref().is_some_and(|fence| fence.closed);
            if closed && here != it.opened.from_site && !excused.contains(&here) {
                let detail = format!("node {node} goes ahead at {}; claim {id}", name(here));
                violated("nobody begins while a fence is closed", detail);
            }
        }
        for other in world.sites().into_iter().filter(|site| *site != here) {
            if [here, other].iter().any(|site| excused.contains(site) || is_broken(*site)) {
                continue;
            }
            let expired = moves.iter().any(|(_, from, _, it)| {
                *from == other && it.fence.as_ref().is_some_and(|fence| fence.reason.contains("expired"))
            });
            let begun = if expired { None } else { under_way(&central, other, node) };
            if let Some(what) = could_begin(world, other, node).or(begun) {
                let detail = format!("node {node} goes ahead at {}; at {} {what}", name(here), name(other));
                violated("no first write where another site may begin one", detail);
            }
        }
    }

    /// Everybody has heard everything, and nobody is in the way.
    pub(crate) fn at_rest(&self, world: &mut World, forgot: bool) {
        let central = central(world);
        let claims = claims(&central);
        one_home(world, &central, &claims);
        same_everywhere(world, &central, &claims, forgot);
        for (id, it) in &claims {
            let Some(decision) = &it.decision else {
                violated("in the end central has looked at every claim", format!("claim {id}"));
            };
            let by_policy = decision.state == ClaimState::Approved && decision.decided_by.is_none();
            if by_policy && decision.was_rejected {
                violated("what a person rejected no policy approves", format!("claim {id}"));
            }
            if let Some(why) = waits_in_vain(world, &central, &claims, it, decision) {
                violated("in the end policy has decided what it may", format!("claim {id}: {why}"));
            }
            let fence = it.fence.as_ref().filter(|fence| fence.closed);
            if let Some(fence) = fence
                && under_way(&central, it.opened.from_site, it.opened.node).is_none()
            {
                let detail = format!("claim {id}: {}", fence.reason);
                violated("in the end every fence is open but of what is under way", detail);
            }
        }
    }
}

type Claims = BTreeMap<ClaimId, claim::InForce>;

fn central(world: &World) -> Eye {
    read(Eye::open(&world.path(Origin::Central)))
}

fn claims(eye: &Eye) -> Claims {
    let rows = read(eye.documents_of(Kind::Claim));
    let of = |doc| {
        let id = read(eye.stored(doc)).id;
        let document = eye.document(doc, Kind::Claim, id).expect("it opened before");
        Some((id.into(), claim::InForce::of(&document)?))
    };
    rows.into_iter().filter_map(of).collect()
}

fn is_approved(it: &claim::InForce) -> bool {
    it.decision.as_ref().is_some_and(|decision| decision.state == ClaimState::Approved)
}

/// The last move of each machine away from each site.
fn last_moves(claims: &Claims) -> Vec<(NodeId, SiteId, ClaimId, &claim::InForce)> {
    let mut last: BTreeMap<(NodeId, SiteId), (ClaimId, &claim::InForce)> = BTreeMap::new();
    for (id, it) in claims.iter().filter(|(_, it)| is_approved(it)) {
        let known = last.entry((it.opened.node, it.opened.from_site)).or_insert((*id, it));
        if it.opened.home_epoch > known.1.opened.home_epoch {
            *known = (*id, it);
        }
    }
    last.into_iter().map(|((node, site), (id, it))| (node, site, id, it)).collect()
}

fn machine(eye: &Eye, node: NodeId) -> Option<node::InForce> {
    let doc = read(eye.row_of(node.into()))?;
    Some(node::InForce::of(&eye.document(doc, Kind::Node, node.into()).expect("it opened before")))
}

/// Where a machine is at home, as central has it.
pub(crate) fn home_of(world: &World, node: DocumentId) -> Option<SiteId> {
    machine(&central(world), node.into())?.home
}

fn tasks(eye: &Eye, site: SiteId, node: NodeId) -> Vec<(TaskId, task::InForce)> {
    let all = read(eye.about(node)).into_iter().filter_map(|doc| {
        let stored = read(eye.stored(doc));
        let kind = stored.kind.filter(|kind| *kind == Kind::Task)?;
        let document = eye.document(doc, kind, stored.id).expect("it opened before");
        Some((stored.id.into(), task::InForce::of(&document)))
    });
    all.filter(|(_, it)| it.spec.as_ref().is_some_and(|spec| spec.for_site == site)).collect()
}

fn settings(eye: &Eye, site: SiteId) -> Option<site::Effective> {
    let doc = read(eye.row_of(site.into()))?;
    let document = eye.document(doc, Kind::Site, site.into()).expect("it opened before");
    contested::read(&document, &site::effective()).newest().map(|side| side.value.clone())
}

/// What a site could begin with a machine, as long as nobody tells it more than it knows.
fn could_begin(world: &World, here: SiteId, node: NodeId) -> Option<String> {
    let eye = read(Eye::open(&world.path(Origin::Site(here))));
    let it = machine(&eye, node)?;
    let told = read(eye.directory()).remove(&node);
    let told_away = told.is_some_and(|stub| stub.home != Some(here) && stub.home_epoch > it.home_epoch);
    let claims = claims(&eye);
    let mut about = claims.values().filter(|it| is_approved(it) && it.opened.node == node);
    let holds_back = about.any(|claim| {
        let leaves = claim.opened.to_site != here && claim.opened.home_epoch + 1 > it.home_epoch;
        let comes = claim.opened.to_site == here && claim.fence.as_ref().is_some_and(|fence| fence.closed);
        leaves || comes
    });
    if it.home != Some(here) || told_away || holds_back || it.wanted == Wanted::Retired {
        return None;
    }
    let effective = settings(&eye, here).unwrap_or_default();
    let attempts = effective.max_install_attempts.unwrap_or(MAX_INSTALL_ATTEMPTS);
    for (id, task) in tasks(&eye, here, node) {
        let used = task.consumed.as_ref().is_some_and(|used| used.attempt == task.attempt);
        let again = task.state == TaskState::Failed && task.attempt < attempts;
        if again && effective.autonomy > Autonomy::ReadOnly {
            return Some(format!("task {id} has failed and may be tried again"));
        }
        let Some(order) = task.order.filter(|_| !used && !task.cancelled && !task.state.is_final()) else {
            continue;
        };
        let lives = world.wall().after(EXPIRY_MARGIN) <= order.not_after;
        let install_nonce = it.state.as_ref().and_then(|state| state.install_nonce);
        if lives && order.based_on == install_nonce {
            return Some(format!("task {id} has an order until {}", order.not_after));
        }
    }
    (effective.autonomy == Autonomy::Full).then(|| "people of the site give orders themselves".into())
}

/// What this replica knows to be written at a site.
fn under_way(eye: &Eye, site: SiteId, node: NodeId) -> Option<String> {
    let is_on = |it: &task::InForce| {
        it.consumed.as_ref().is_some_and(|used| used.attempt == it.attempt) && !it.state.is_final()
    };
    let on = tasks(eye, site, node).into_iter().find(|(_, it)| is_on(it));
    on.map(|(id, _)| format!("task {id} is past its first write"))
}

/// Whether a site keeps a machine that left it, because its disk is being written there.
pub(crate) fn is_kept(eye: &Eye, site: SiteId, document: DocumentId) -> bool {
    under_way(eye, site, document.into()).is_some()
}

/// Whether a machine is kept for that and is at home elsewhere, as far as this site knows.
pub(crate) fn has_left(eye: &Eye, site: SiteId, document: DocumentId) -> bool {
    let moved = claims(eye).into_values().any(|it| {
        let leaves = it.opened.from_site == site && it.opened.node == NodeId::from(document);
        leaves && is_approved(&it)
    });
    moved && is_kept(eye, site, document)
}

/// Each machine has one home, which is that of its last move, and is so wherever it is known.
fn one_home(world: &mut World, central: &Eye, claims: &Claims) {
    let mut moves: BTreeMap<(NodeId, u64), (ClaimId, SiteId)> = BTreeMap::new();
    for (id, it) in claims.iter().filter(|(_, it)| is_approved(it)) {
        let before = moves.insert((it.opened.node, it.opened.home_epoch), (*id, it.opened.to_site));
        if let Some((other, _)) = before {
            violated(
                "a move is approved once",
                format!("claims {other} and {id} of node {}", it.opened.node),
            );
        }
    }
    let mut homes = BTreeMap::new();
    for doc in read(central.documents_of(Kind::Node)) {
        let id = read(central.stored(doc)).id;
        let document = central.document(doc, Kind::Node, id).expect("it opened before");
        let home = contested::read(&document, &node::home());
        // Two lives of central may have written the same.
        let sides: BTreeSet<_> =
            home.sides().iter().map(|it| (it.value.home_site, it.value.home_epoch)).collect();
        if sides.len() > 1 {
            violated("a machine has one home", format!("node {id}: {sides:?}"));
        }
        let moved = moves.range((id.into(), 0)..=(id.into(), u64::MAX)).next_back();
        let expected = moved.map(|((_, epoch), (_, to))| (Some(*to), epoch + 1));
        if expected.is_some_and(|expected| !sides.contains(&expected)) {
            violated("a machine is at home where it was moved", format!("node {id}: {sides:?}, {moved:?}"));
        }
        homes.insert(id, sides);
    }
    for site in world.sites() {
        let eye = read(Eye::open(&world.path(Origin::Site(site))));
        for doc in read(eye.documents_of(Kind::Node)) {
            let id = read(eye.stored(doc)).id;
            let document = eye.document(doc, Kind::Node, id).expect("it opened before");
            let here = contested::read(&document, &node::home());
            let here: BTreeSet<_> =
                here.sides().iter().map(|it| (it.value.home_site, it.value.home_epoch)).collect();
            if homes.get(&id) != Some(&here) && !is_kept(&eye, site, id) {
                let detail = format!("node {id} is {here:?} at {}", world.name(Origin::Site(site)));
                violated("a home is the same everywhere", detail);
            }
        }
    }
}

/// Both sides of a claim see what central sees; a former home that central hears of when the machine has moved on, by
/// a claim that is about nothing any more, need not hear of it, nor one of whose claim central had forgotten.
fn same_everywhere(world: &World, central: &Eye, claims: &Claims, forgot: bool) {
    let row = |origin, id: ClaimId| -> Option<ClaimRow> {
        world.store(origin).read(|view| view.claim(id)).expect("it reads")
    };
    for (id, it) in claims {
        let at_central = row(Origin::Central, *id);
        for site in [it.opened.from_site, it.opened.to_site] {
            let here = row(Origin::Site(site), *id);
            let at_home = machine(central, it.opened.node).is_some_and(|machine| {
                (machine.home, machine.home_epoch) == (Some(it.opened.from_site), it.opened.home_epoch)
            });
            let is_heard = (is_approved(it) || at_home) && !forgot;
            let is_late = here.is_none() && site == it.opened.from_site && !is_heard;
            if here != at_central && !is_late {
                let name = world.name(Origin::Site(site));
                let detail = format!("claim {id}: {here:?} at {name}, {at_central:?} at central");
                violated("both sites see a claim as central does", detail);
            }
        }
    }
}

/// Why a claim should not stand where it does, if policy or time decide.
fn waits_in_vain(
    world: &World,
    central: &Eye,
    claims: &Claims,
    it: &claim::InForce,
    decision: &claim::Decision,
) -> Option<String> {
    let now = world.clock(Origin::Central);
    let machine = machine(central, it.opened.node);
    let gone = machine.as_ref().is_some_and(|machine| {
        let moved = machine.home_epoch > it.opened.home_epoch || machine.home == Some(it.opened.to_site);
        moved || machine.wanted == Wanted::Retired
    });
    match decision.state {
        ClaimState::Approved => return None,
        ClaimState::Rejected | ClaimState::Expired | ClaimState::Withdrawn => {
            let asked = it.asked.as_ref().is_some_and(|asked| asked.round == decision.round);
            let unheard = asked && !gone && decision.round < MAX_ROUNDS;
            return unheard.then(|| format!("it is {} and was asked for again", decision.state));
        }
        ClaimState::Open => {}
    }
    if gone {
        return Some("it is open and the machine has moved, or is retired".into());
    }
    if it.seen_at_home.as_ref().is_some_and(|seen| seen.round == decision.round) {
        return Some("it is open and the machine was seen at home".into());
    }
    if decision.expires_at.after(2 * HEARTBEAT) < now {
        return Some(format!("it is open and ended at {}", decision.expires_at));
    }
    let at_home = machine.is_some_and(|machine| {
        (machine.home, machine.home_epoch) == (Some(it.opened.from_site), it.opened.home_epoch)
    });
    let party = |site, said| {
        let effective = settings(central, site).unwrap_or_default();
        Party {
            name: site.to_string(),
            policy: effective.migration_policy.unwrap_or(MigrationPolicy::Manual),
            consent: effective.migration_consent.unwrap_or(MigrationConsent::Either),
            said,
        }
    };
    let case = Case {
        to: party(it.opened.to_site, it.to_said),
        from: party(it.opened.from_site, it.from_said),
        moved_lately: claims.values().any(|other| moved_by_itself(other, it.opened.node, now)),
        was_rejected: decision.was_rejected,
    };
    let review = migration::review(&case);
    (at_home && review.waits.is_none()).then(|| format!("it is open and {:?} approves it", review.matched))
}

fn moved_by_itself(it: &claim::InForce, node: NodeId, now: Timestamp) -> bool {
    let automatic = it.decision.as_ref().is_some_and(|decision| decision.automatic);
    // A little longer than at central: whether it was within the time is known only to the minute.
    let lately = AUTOMATIC_ONCE_IN + Duration::from_secs(3_600);
    let is_late = it.decided_at.is_some_and(|at| now < at.after(lately));
    it.opened.node == node && is_approved(it) && automatic && is_late
}

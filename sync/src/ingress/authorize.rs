//! The fourth gate, at central only: whether the site that delivers a change may write what it writes.
//!
//! [`authorize`] asks three things of the whole change: is its actor one of this site's, does every
//! register name this site as its writer, and may the site write that register of that document, now.
//! The last is judged from what the writer had seen, which is the document at the change's own
//! dependencies, and from the values that it puts there; never from what the change says of itself. One
//! register that is not the site's to write refuses the change as a whole.
//!
//! The table stands once more, by hand, in `fixtures/policies/authorize.txt`. Deliberately absent: which
//! actor belongs to whom, which settings epoch was in force when the site wrote, and what it had
//! acknowledged by then. Those are the replica's to know and come in as a [`Delivery`].

use std::{collections::BTreeSet, fmt};

use automerge::{Change, ChangeHash};

use super::Write;
use crate::{
    document::{
        Class, Contested, Document, FieldError, Fields, Kind, Register, Value, Writers, claim, contested,
        node, proposal, register::SETTLES, schema::RegisterSchema, task,
    },
    id::{ClaimId, DocumentId, Origin, SiteId},
    policy::{Action, Autonomy, NodeState, Verdict, Wanted, autonomy, order},
    time::Timestamp,
};

/// Who delivers a change, and what held for that site at the position of its log where it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The site at the other end of the session, as its certificate says.
    pub site: SiteId,
    /// What people call it, for the reason of a refusal.
    pub name: String,
    /// Whether the change's actor is one of this site's incarnations, or nobody's yet.
    pub actor_is_theirs: bool,
    /// How much it might decide by itself under the settings that it followed.
    pub autonomy: Autonomy,
    /// Whether it had acknowledged, before it wrote, that the document left its scope.
    pub released: bool,
    /// Whether the machine is at home outside of the site's directory: whoever does not remember it meets a
    /// stranger there.
    pub beyond: bool,
}

/// Names a register of a document for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Kind of the document.
    pub kind: Kind,
    /// The document.
    pub document: DocumentId,
    /// Path of the register.
    pub path: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` of {} {}", self.path, self.kind, self.document)
    }
}

/// Why a site may not write what it wrote. The change is sound; its bytes belong in quarantine, and the
/// site is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Somebody else's incarnation signed it.
    #[error("the change is by replica {actor}, which is not one of {name}'s")]
    Actor {
        /// The actor.
        actor: String,
        /// Who delivers it.
        name: String,
    },
    /// The register says that somebody else wrote it.
    #[error("{target} is written in the name of {found}, and {name} delivers it")]
    Writer {
        /// Which register.
        target: Target,
        /// Whose name stands in it.
        found: Origin,
        /// Who delivers it.
        name: String,
    },
    /// A register of a newer program: nobody here knows who may write it.
    #[error("{0} is not known to this program")]
    Unknown(Target),
    /// Central alone writes the register.
    #[error("{0} is written by central alone")]
    Central(Target),
    /// The site may not decide that by itself.
    #[error("{target} needs autonomy `{needed}`; {name} has `{found}`")]
    Autonomy {
        /// Which register.
        target: Target,
        /// The least that would do.
        needed: Autonomy,
        /// Who delivers it.
        name: String,
        /// What it has.
        found: Autonomy,
    },
    /// The machine belongs to another site, which the writer knew.
    #[error(
        "{target} is not {name}'s to write: the machine is at home at site {home}, and only visited there"
    )]
    Visitor {
        /// Which register.
        target: Target,
        /// Where the machine is at home.
        home: SiteId,
        /// Who delivers it.
        name: String,
    },
    /// The document was taken out of the site's scope, which the writer knew.
    #[error("{target} was written after {name} had acknowledged that this {} is not its own", .target.kind)]
    Released {
        /// Which register.
        target: Target,
        /// Who delivers it.
        name: String,
    },
    /// The register is written once.
    #[error("{0} is there already and never written again")]
    Immutable(Target),
    /// A task of another site.
    #[error("{target} is not {name}'s to write: the task is for site {for_site}")]
    OthersTask {
        /// Which register.
        target: Target,
        /// Whom the task names.
        for_site: SiteId,
        /// Who delivers it.
        name: String,
    },
    /// A task that does not say what is to be done belongs to nobody.
    #[error("{0} is written before the task says what is to be done, and where")]
    NoSpec(Target),
    /// A document that somebody else wrote.
    #[error("{target} is in a {} of {owner}; {name} writes its own only", .target.kind)]
    Others {
        /// Which register.
        target: Target,
        /// Who wrote something there.
        owner: Origin,
        /// Who delivers it.
        name: String,
    },
    /// A proposal is written at once, by whoever makes it.
    #[error("{0} is no part of a proposal that is made here")]
    Unproposed(Target),
    /// A claim of somebody else, or about something else than its id says.
    #[error("{target} is not {name}'s to write: {why}")]
    OthersClaim {
        /// Which register.
        target: Target,
        /// Whose it is.
        why: &'static str,
        /// Who delivers it.
        name: String,
    },
    /// A site gives itself no longer order than it could be given.
    #[error("{target} ends at {not_after}, later than {latest}: no order lives longer than 72 hours")]
    OrderTooLong {
        /// Which register.
        target: Target,
        /// The end that was given.
        not_after: Timestamp,
        /// The latest that would do.
        latest: Timestamp,
    },
    /// A neutral value.
    #[error("{0} settles a disagreement, which central alone does")]
    Settles(Target),
    /// What was withdrawn or retired is brought back.
    #[error("{0} was decided for good, and only central takes that back")]
    ForGood(Target),
}

/// Says whether the site of `delivery` may add `change`, which writes `writes`, to `document`.
///
/// `change` must have passed [`check`](super::check()) against `document`, which has all of its
/// dependencies then. Nothing of it is applied here.
///
/// # Errors
/// The first register that the site may not write, and why; one is enough to refuse the whole change.
pub fn authorize(
    document: &Document,
    change: &Change,
    writes: &[Write],
    delivery: &Delivery,
) -> Result<(), Denied> {
    let case = Case { document, deps: change.deps(), writes, delivery };
    if !delivery.actor_is_theirs {
        return Err(Denied::Actor { actor: change.actor_id().to_string(), name: case.name() });
    }
    case.in_own_name()?;
    match document.kind() {
        Kind::Site => case.site(),
        Kind::Group => case.each(|write, _| Err(Denied::Central(case.target(write)))),
        Kind::Node => case.node(),
        Kind::Workflow => case.workflow(),
        Kind::Task => case.task(),
        Kind::Proposal => case.proposal(),
        Kind::Claim => case.claim(),
    }
}

/// One change before the judge.
struct Case<'a> {
    document: &'a Document,
    deps: &'a [ChangeHash],
    writes: &'a [Write],
    delivery: &'a Delivery,
}

impl Case<'_> {
    fn in_own_name(&self) -> Result<(), Denied> {
        match self.writes.iter().find(|write| write.written.site != Origin::Site(self.delivery.site)) {
            None => Ok(()),
            Some(write) => Err(Denied::Writer {
                target: self.target(write),
                found: write.written.site,
                name: self.name(),
            }),
        }
    }

    /// Judges every register by `judge`, after what holds for all of them.
    fn each(
        &self,
        mut judge: impl FnMut(&Write, &'static RegisterSchema) -> Result<(), Denied>,
    ) -> Result<(), Denied> {
        let released = self.is_released();
        let mut once = BTreeSet::new();
        for write in self.writes {
            let schema = write.schema.ok_or_else(|| Denied::Unknown(self.target(write)))?;
            if write.fields.contains_key(SETTLES) {
                return Err(Denied::Settles(self.target(write)));
            }
            match schema.writers {
                Writers::Central => return Err(Denied::Central(self.target(write))),
                // Wherever a machine is seen, whatever a site was told of it.
                Writers::OwnKey | Writers::CentralAndOwnKey => {}
                Writers::CentralAndSite | Writers::Site if released => {
                    return Err(Denied::Released { target: self.target(write), name: self.name() });
                }
                Writers::CentralAndSite | Writers::Site => {}
            }
            let mut again = || !once.insert((write.container, &write.key)) || self.is_written(write);
            if schema.class == Class::Immutable && again() {
                return Err(Denied::Immutable(self.target(write)));
            }
            judge(write, schema)?;
        }
        Ok(())
    }

    /// Whether the writer knew that the document is not its own. A copy that knows of no home was made anew: of
    /// a machine beyond the directory, the site had forgotten that it once left.
    fn is_released(&self) -> bool {
        let is_anew = || {
            let home = self.before(&node::home());
            self.document.kind() == Kind::Node
                && home.newest().is_none_or(|side| side.value.home_site.is_none())
        };
        self.delivery.released && !(self.delivery.beyond && is_anew())
    }

    /// A site decides for itself what its settings leave to it.
    fn site(&self) -> Result<(), Denied> {
        let is_own = self.document.id() == self.delivery.site.into();
        self.each(|write, _| match (write.container, write.key.as_str()) {
            (None, "local") if is_own => self.may(write, Action::LocalDhcp),
            (_, _) => Err(Denied::Central(self.target(write))),
        })
    }

    /// Who is at home somewhere is written there; who is at home nowhere, wherever it is seen.
    fn node(&self) -> Result<(), Denied> {
        let home = self.before(&node::home()).newest().and_then(|side| side.value.home_site);
        let wanted = self.before(&node::wanted()).least_by(|wish| wish.wanted).map(|side| side.value.wanted);
        self.each(|write, schema| {
            if schema.writers == Writers::OwnKey {
                return Ok(());
            }
            if let Some(home) = home.filter(|home| *home != self.delivery.site) {
                return Err(Denied::Visitor { target: self.target(write), home, name: self.name() });
            }
            let action = match (write.container, write.key.as_str(), schema.class) {
                (_, _, Class::Evidence) => Action::RecordFact,
                (None, "state", _) if home.is_none() && adopts(&write.fields) => Action::Adopt,
                (None, "state", _) => Action::RecordFact,
                (None, "hostname" | "address" | "notes", _) | (Some("tags"), _, _) => Action::EditNodeDetails,
                (None, "group" | "workflow", _) => Action::EditWorkflow,
                (None, "wanted", _) => {
                    let returns = node::Wish::from_fields(&write.fields)
                        .is_ok_and(|wish| wish.wanted != Wanted::Retired);
                    if wanted == Some(Wanted::Retired) && returns {
                        return Err(Denied::ForGood(self.target(write)));
                    }
                    Action::SetWanted
                }
                // Until somebody decides who may write it, nobody does.
                (_, _, _) => return Err(Denied::Central(self.target(write))),
            };
            self.may(write, action)
        })
    }

    /// A site keeps workflows of its own beside those of central.
    fn workflow(&self) -> Result<(), Denied> {
        let us = Origin::Site(self.delivery.site);
        let mut owners = self.owners(Some(self.deps));
        if owners.is_empty() {
            // Who has seen nothing of a document that is there did not make it: its id is random.
            owners = self.owners(None);
        }
        let other = owners.into_iter().find(|owner| *owner != us);
        self.each(|write, _| match other {
            Some(owner) => Err(Denied::Others { target: self.target(write), owner, name: self.name() }),
            None => self.may(write, Action::EditWorkflow),
        })
    }

    /// The site that a task is for reports on it, and decides what its autonomy permits.
    fn task(&self) -> Result<(), Denied> {
        let before = self.before(&task::spec());
        let mut sites: BTreeSet<SiteId> = before.sides().iter().map(|side| side.value.for_site).collect();
        if sites.is_empty() {
            let specs = self.writes.iter().filter(|write| is_root(write, "spec"));
            sites.extend(
                specs.filter_map(|write| Some(task::Spec::from_fields(&write.fields).ok()?.for_site)),
            );
        }
        let other = sites.iter().copied().find(|site| *site != self.delivery.site);
        self.each(|write, _| {
            if let Some(for_site) = other {
                return Err(Denied::OthersTask { target: self.target(write), for_site, name: self.name() });
            }
            if sites.is_empty() {
                return Err(Denied::NoSpec(self.target(write)));
            }
            match (write.container, write.key.as_str()) {
                (None, "spec") => {
                    // Two sites that both wrote one task would leave it without any: its id is random, so
                    // whoever comes second has not made it up.
                    if !contested::read(self.document, &task::spec()).sides().is_empty() {
                        return Err(Denied::Immutable(self.target(write)));
                    }
                    self.may(write, Action::CreateTask)
                }
                (None, "order") => self.order(write),
                (None, "approval") => self.may(write, Action::ApproveTask),
                (None, "abort") => self.may(write, Action::AbortAttempt),
                (None, "cancel") => {
                    let withdrawn = task::Cancel::from_fields(&write.fields).is_ok_and(|it| it.cancelled);
                    if !withdrawn {
                        return Err(Denied::ForGood(self.target(write)));
                    }
                    self.may(write, Action::CancelTask)
                }
                (None, "state" | "consumed" | "result") => self.may(write, Action::RecordFact),
                (_, _) => Err(Denied::Central(self.target(write))),
            }
        })
    }

    /// Whatever a site may do itself, it may ask; what it asked stays as it is.
    fn proposal(&self) -> Result<(), Denied> {
        let is_made = !contested::read(self.document, &proposal::wish()).sides().is_empty();
        let makes_it = self.writes.iter().any(|write| is_root(write, "wish"));
        self.each(|write, _| match (write.container, write.key.as_str()) {
            (_, _) if is_made => Err(Denied::Immutable(self.target(write))),
            (None, "wish") => self.may(write, Action::RecordFact),
            (Some(proposal::ARGUMENTS), _) if makes_it => self.may(write, Action::RecordFact),
            (_, _) => Err(Denied::Unproposed(self.target(write))),
        })
    }

    /// A site claims machines for itself alone, and speaks for its own side of a claim.
    fn claim(&self) -> Result<(), Denied> {
        let us = self.delivery.site;
        let id = ClaimId::from(self.document.id());
        let mut opened: Vec<claim::Opened> = contested::read(self.document, &claim::opened())
            .sides()
            .iter()
            .map(|side| side.value.clone())
            .collect();
        let makes = self.writes.iter().filter(|write| is_root(write, "opened"));
        opened.extend(makes.filter_map(|write| claim::Opened::from_fields(&write.fields).ok()));
        let fits = |it: &claim::Opened| ClaimId::of(it.node, it.to_site, it.home_epoch) == id;
        let is_target = opened.iter().any(|it| fits(it) && it.to_site == us);
        let is_home = opened.iter().any(|it| fits(it) && it.from_site == us);
        let other = |write: &Write, why| {
            Err(Denied::OthersClaim { target: self.target(write), why, name: self.name() })
        };
        self.each(|write, _| match (write.container, write.key.as_str()) {
            (None, "opened") => match claim::Opened::from_fields(&write.fields) {
                Ok(it) if !fits(&it) => other(write, "the claim is about something else"),
                Ok(it) if it.to_site != us => other(write, "a site claims machines for itself"),
                Ok(it) if it.from_site == us => other(write, "the machine is at home there already"),
                Ok(_) => self.may(write, Action::RecordFact),
                Err(_) => Err(Denied::Unknown(self.target(write))),
            },
            (None, "evidence" | "asked") if is_target => self.may(write, Action::RecordFact),
            (None, "evidence" | "asked") => other(write, "another site claims the machine"),
            (None, "seen_at_home") if is_home => self.may(write, Action::RecordFact),
            (None, "seen_at_home") => other(write, "the machine is at home elsewhere"),
            (Some("consent"), _) if is_target || is_home => self.may(write, Action::ConsentToClaim),
            (Some("consent"), _) => other(write, "it is neither side of the claim"),
            (_, _) => Err(Denied::Central(self.target(write))),
        })
    }

    /// An order that a site gives itself: with a task of its own, or for the next attempt of one that was
    /// ordered and used.
    fn order(&self, write: &Write) -> Result<(), Denied> {
        let Ok(order) = task::OrderRegister::from_fields(&write.fields) else {
            return Err(Denied::Unknown(self.target(write)));
        };
        let latest = write.written.at.timestamp().after(order::ORDER_MAX);
        if order.not_after > latest {
            let target = self.target(write);
            return Err(Denied::OrderTooLong { target, not_after: order.not_after, latest });
        }
        let action = if self.is_retry(&order) { Action::MakePending } else { Action::CreateTask };
        self.may(write, action)
    }

    fn is_retry(&self, order: &task::OrderRegister) -> bool {
        let last = self.before(&task::order());
        let Some(last) = last.settled().map(|side| side.value.attempt) else { return false };
        let used = self.before(&task::consumed());
        let used = used.sides().iter().any(|side| side.value.attempt == last);
        let cancelled = self.before(&task::cancel());
        let cancelled = cancelled.sides().iter().any(|side| side.value.cancelled);
        last.checked_add(1) == Some(order.attempt)
            && order.attempt <= order::ATTEMPTS_CEILING
            && used
            && !cancelled
    }

    fn may(&self, write: &Write, action: Action) -> Result<(), Denied> {
        let permits = |level: &Autonomy| autonomy::permits(*level, action) == Verdict::Allow;
        if permits(&self.delivery.autonomy) {
            return Ok(());
        }
        let needed = Autonomy::ALL.iter().copied().find(permits).unwrap_or(Autonomy::Full);
        let (target, found) = (self.target(write), self.delivery.autonomy);
        Err(Denied::Autonomy { target, needed, name: self.name(), found })
    }

    /// A register as the writer had seen it.
    fn before<V: Value>(&self, register: &Register<V>) -> Contested<V> {
        contested::read_at(self.document, register, self.deps)
    }

    fn is_written(&self, write: &Write) -> bool {
        let register = Register::<Whatever>::named(write.container, write.key.clone());
        !self.before(&register).sides().is_empty()
    }

    /// Everybody who stands in a register of the document, at `heads` or now.
    fn owners(&self, heads: Option<&[ChangeHash]>) -> BTreeSet<Origin> {
        let schema = self.document.kind().schema();
        let at_root = schema.registers.iter().map(|register| (None, register.key.to_string()));
        let inside = schema.containers.iter().flat_map(|container| {
            let keys = contested::keys(self.document, container.key);
            keys.into_iter().map(|key| (Some(container.key), key))
        });
        at_root
            .chain(inside)
            .flat_map(|(container, key)| {
                let register = Register::<Whatever>::named(container, key);
                let found = match heads {
                    Some(heads) => contested::read_at(self.document, &register, heads),
                    None => contested::read(self.document, &register),
                };
                found.sides().iter().map(|side| side.written.site).collect::<Vec<_>>()
            })
            .collect()
    }

    fn target(&self, write: &Write) -> Target {
        Target { kind: self.document.kind(), document: self.document.id(), path: write.path() }
    }

    fn name(&self) -> String {
        self.delivery.name.clone()
    }
}

/// What is unreadable as a state says nothing that would make it a lesser step.
fn adopts(fields: &Fields) -> bool {
    !node::State::from_fields(fields).is_ok_and(|state| state.state != NodeState::Discovered)
}

fn is_root(write: &Write, key: &str) -> bool {
    write.container.is_none() && write.key == key
}

/// A value that is not looked at; who wrote it is what counts.
struct Whatever;

impl Value for Whatever {
    fn to_fields(&self) -> Fields {
        Fields::new()
    }

    fn from_fields(_: &Fields) -> Result<Self, FieldError> {
        Ok(Whatever)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::expect;

    use super::{
        super::{
            Authority, Outcome, Standing, UnknownKeys, admit, check, parse,
            testing::{BERN, LYON, author, chain, text, write},
        },
        *,
    };
    use crate::{
        blob::Digest,
        document::{Settled, Written, group, register::Edit, site, workflow},
        id::{ClaimId, MacAddr, NodeId, Nonce, ReportId, WorkflowId},
        policy::{ClaimState, TaskState},
        time::Hlc,
    };

    const LYON_SITE: SiteId = SiteId([2; 16]);
    const BERN_SITE: SiteId = SiteId([3; 16]);

    /// 2026-11-20, late enough that three days earlier is not before 1970.
    const AT: Timestamp = Timestamp(1_795_161_600_000);

    fn lyon(autonomy: Autonomy) -> Delivery {
        Delivery {
            site: LYON_SITE,
            name: "lyon".into(),
            actor_is_theirs: true,
            autonomy,
            released: false,
            beyond: false,
        }
    }

    fn at(step: i64) -> i64 {
        Hlc::at(AT).0 + step
    }

    fn empty(kind: Kind) -> Document {
        Document::new(kind, DocumentId([7; 16]))
    }

    fn central<V: Value>(document: &mut Document, step: i64, register: &Register<V>, value: &V) {
        write(document, author(1, Origin::Central, at(step)), register, value);
    }

    fn home(site: SiteId) -> node::Home {
        node::Home { home_site: Some(site), home_epoch: 1, claim: None }
    }

    fn spec(for_site: SiteId) -> task::Spec {
        task::Spec {
            node: NodeId([8; 16]),
            for_site,
            workflow: WorkflowId([4; 16]),
            version: 1,
            parameters: BTreeMap::new(),
            disk_layout: None,
            network_config: None,
            tags: BTreeMap::new(),
            created_by: "ann".into(),
            created_at: AT,
            not_before: None,
        }
    }

    fn an_order(attempt: u64, not_after: Timestamp) -> task::OrderRegister {
        task::OrderRegister { issued_by: "bob".into(), attempt, not_after, based_on: None }
    }

    fn consumed(attempt: u64) -> task::Consumed {
        task::Consumed { attempt, report: ReportId([1; 16]), install_nonce: Nonce([1; 8]) }
    }

    fn identity() -> workflow::Identity {
        workflow::Identity {
            name: "debian-12".into(),
            os_family: "debian".into(),
            arch: "x86_64".into(),
            boot_method: "kernel".into(),
        }
    }

    fn a_version() -> workflow::Version {
        workflow::Version {
            files: [("kernel".to_string(), Digest::of(b"kernel"))].into(),
            sizes: [("kernel".to_string(), 6)].into(),
            kernel_args: String::new(),
            needs_approval: false,
        }
    }

    fn a_wish() -> proposal::Wish {
        proposal::Wish {
            action: proposal::WRITE.into(),
            about: Some("node".into()),
            document: Some(DocumentId([8; 16])),
            journal_seq: 1,
            after: None,
        }
    }

    fn an_argument() -> proposal::Argument {
        proposal::Argument(node::Wish { wanted: Wanted::Retired }.to_fields())
    }

    /// Lyon claims a machine of Bern's, or Bern one of Lyon's.
    fn a_claim(to_site: SiteId, from_site: SiteId) -> claim::Opened {
        claim::Opened { node: NodeId([8; 16]), to_site, from_site, home_epoch: 1, first_seen: AT }
    }

    fn state(state: NodeState) -> node::State {
        let cause = "seen booting".into();
        node::State { state, cause, task: None, attempt: None, error: None, install_nonce: None }
    }

    /// Writes the register of a row of the table, with a value that fits its variant.
    fn put(edit: &mut Edit<'_>, row: &str) {
        let evidence = node::Evidence { value: "1234".into() };
        let outcome = task::Outcome { succeeded: true, detail: String::new() };
        let soon = AT.after(order::ORDER_MAX);
        match row {
            "site identity" => edit.set(
                &site::identity(),
                &site::Identity {
                    name: "lyon".into(),
                    description: String::new(),
                    location: String::new(),
                    console_url: String::new(),
                    network_segments: BTreeMap::new(),
                },
                "",
            ),
            "site group" => edit.set(&site::membership(), &site::Membership { group: None }, ""),
            "site effective" => {
                let free = site::Effective { autonomy: Autonomy::Full, ..site::Effective::default() };
                edit.set(&site::effective(), &free, "")
            }
            "site resumed" => {
                let here = site::Resumed { incarnation: crate::id::Incarnation([2; 16]) };
                edit.set(&site::resumed(), &here, "")
            }
            "site local" => edit.set(&site::local(), &site::Local { pxe_enabled: Some(false) }, ""),
            "site directory_domain" => {
                let whole = site::DirectoryDomain { group: None };
                edit.set(&site::directory_domain(), &whole, "")
            }
            "site settings" => {
                edit.set(&site::setting("autonomy"), &site::Setting { value: Some("full".into()) }, "")
            }
            "group identity" => {
                let identity = group::Identity { name: "shops".into(), description: String::new() };
                edit.set(&group::identity(), &identity, "")
            }
            "group parent" => edit.set(&group::parent(), &group::Parent { parent: None }, ""),
            "group settings" => {
                edit.set(&group::setting("mode"), &site::Setting { value: Some("full".into()) }, "")
            }
            "node hardware" => edit.set(
                &node::hardware(),
                &node::Hardware {
                    report: None,
                    cpus: Some(4),
                    memory_bytes: None,
                    disks: BTreeMap::new(),
                    nics: BTreeMap::new(),
                },
                "",
            ),
            "node macs" => edit.set(&node::mac(MacAddr([2; 6])), &evidence, ""),
            "node observed" => {
                let seen = node::Observed { first_seen: AT, asked_again: None };
                edit.set(&node::observed(LYON_SITE), &seen, "")
            }
            "node state: discovered" => edit.set(&node::state(), &state(NodeState::Discovered), ""),
            "node state: installed" => edit.set(&node::state(), &state(NodeState::Installed), ""),
            "node wanted" => edit.set(&node::wanted(), &node::Wish { wanted: Wanted::Reprovision }, ""),
            "node wanted: retired" => edit.set(&node::wanted(), &node::Wish { wanted: Wanted::Keep }, ""),
            "node hostname" => edit.set(&node::hostname(), &text("pos-1"), ""),
            "node hostname: settled" => {
                let of = Written {
                    by: "bob".into(),
                    site: LYON,
                    at: Hlc::at(AT),
                    why: String::new(),
                    policy_epoch: 1,
                    nonce: Nonce([9; 8]),
                };
                let settled = Settled { sides: vec![of.nonce], of };
                edit.settle(None, "hostname", text("pos-1").to_fields(), &settled, "")
            }
            "node address" => edit.set(&node::address(), &text("10.0.0.9"), ""),
            "node notes" => edit.set(&node::notes(), &text("under the till"), ""),
            "node group" => edit.set(&node::group(), &node::GroupRef { group: None }, ""),
            "node workflow" => edit.set(&node::workflow(), &node::WorkflowRef { workflow: None }, ""),
            "node home" => edit.set(&node::home(), &home(LYON_SITE), ""),
            "node alias_of" => {
                edit.set(&Register::<node::Alias>::at_root("alias_of"), &node::Alias { node: None }, "")
            }
            "node tags" => {
                edit.set(&node::tag("rack"), &node::Tag { value: Some("r7".into()), removed: None }, "")
            }
            "workflow identity" => edit.set(&workflow::identity(), &identity(), ""),
            "workflow versions" => edit.set(&workflow::version(2), &a_version(), ""),
            "workflow versions: old" => edit.set(&workflow::version(1), &a_version(), ""),
            "task spec" => edit.set(&task::spec(), &spec(LYON_SITE), ""),
            "task state" => {
                let state = task::State { state: TaskState::Ready, cause: String::new(), attempt: 1 };
                edit.set(&task::state(), &state, "")
            }
            "task approval" => edit.set(&task::approval(), &task::Approval { approved: true }, ""),
            "task order" => edit.set(&task::order(), &an_order(1, soon), ""),
            "task order: retry" => edit.set(&task::order(), &an_order(2, soon), ""),
            "task order: too long" => edit.set(&task::order(), &an_order(1, Timestamp(soon.0 + 60_000)), ""),
            "task consumed" => edit.set(&task::consumed(), &consumed(1), ""),
            "task cancel" => edit.set(&task::cancel(), &task::Cancel { cancelled: true }, ""),
            "task cancel: revoked" => edit.set(&task::cancel(), &task::Cancel { cancelled: false }, ""),
            "task abort" => edit.set(&task::abort(), &task::Abort { attempt: 1 }, ""),
            "task result" => edit.set(&task::outcome(), &outcome, ""),
            "proposal wish" => {
                edit.set(&proposal::argument("wanted"), &an_argument(), "");
                edit.set(&proposal::wish(), &a_wish(), "")
            }
            "proposal arguments" => edit.set(&proposal::argument("workflow"), &an_argument(), ""),
            "proposal outcome" => {
                let done = proposal::Outcome { applied: true, reason: String::new() };
                edit.set(&proposal::outcome(), &done, "")
            }
            "claim opened" => edit.set(&claim::opened(), &a_claim(LYON_SITE, BERN_SITE), ""),
            "claim opened: for another" => edit.set(&claim::opened(), &a_claim(BERN_SITE, LYON_SITE), ""),
            "claim opened: other id" => {
                let other = claim::Opened { home_epoch: 2, ..a_claim(LYON_SITE, BERN_SITE) };
                edit.set(&claim::opened(), &other, "")
            }
            "claim evidence" => edit.set(
                &claim::evidence(),
                &claim::Evidence {
                    macs: BTreeMap::new(),
                    serial: Some("1234".into()),
                    system_uuid: None,
                    vendor: None,
                    model: None,
                    address: None,
                },
                "",
            ),
            "claim asked" => edit.set(&claim::asked(), &claim::Asked { round: 1, booted_at: AT }, ""),
            "claim seen_at_home" => {
                edit.set(&claim::seen_at_home(), &claim::SeenAtHome { round: 1, booted_at: AT }, "")
            }
            "claim consent" => edit.set(&claim::consent(LYON_SITE), &claim::Consent { consents: true }, ""),
            "claim decision" => edit.set(
                &claim::decision(),
                &claim::Decision {
                    state: ClaimState::Approved,
                    round: 1,
                    expires_at: AT,
                    policy_matched: None,
                    auto_approve_eligible: true,
                    automatic: true,
                    was_rejected: false,
                    decided_by: None,
                    reason: String::new(),
                    to_name: String::new(),
                    from_name: String::new(),
                },
                "",
            ),
            "claim fence" => {
                let open =
                    claim::Fence { closed: false, until: None, reason: String::new(), broken_by: None };
                edit.set(&claim::fence(), &open, "")
            }
            evidence_row => {
                let name = evidence_row.strip_prefix("node ").expect("a row of the table");
                let name = node::EVIDENCE.into_iter().find(|it| *it == name);
                edit.set(&node::evidence(name.expect("a piece of evidence")), &evidence, "")
            }
        };
    }

    /// The document of a site's claim.
    fn claimed(to: SiteId) -> Document {
        Document::new(Kind::Claim, ClaimId::of(NodeId([8; 16]), to, 1).into())
    }

    /// The document as it was to Lyon when it wrote the register of `row`.
    fn situation(kind: Kind, place: &str, row: &str) -> Document {
        let site = if place == "elsewhere" { BERN_SITE } else { LYON_SITE };
        let mut document = match (kind, place) {
            (Kind::Claim, "new" | "elsewhere") if row != "claim opened: for another" => claimed(LYON_SITE),
            (Kind::Claim, _) => claimed(BERN_SITE),
            (Kind::Site, _) => Document::new(kind, site.into()),
            (_, _) => empty(kind),
        };
        if row == "node wanted: retired" {
            central(&mut document, 1, &node::wanted(), &node::Wish { wanted: Wanted::Retired });
        }
        match (kind, place) {
            (_, "new") => {}
            (Kind::Node, _) => central(&mut document, 2, &node::home(), &home(site)),
            (Kind::Task, _) => {
                central(&mut document, 2, &task::spec(), &spec(site));
                if row == "task order: retry" {
                    central(&mut document, 3, &task::order(), &an_order(1, AT));
                    write(&mut document, author(2, LYON, at(4)), &task::consumed(), &consumed(1));
                }
            }
            (Kind::Workflow, "elsewhere") => central(&mut document, 2, &workflow::identity(), &identity()),
            (Kind::Workflow, _) => {
                write(&mut document, author(2, LYON, at(2)), &workflow::identity(), &identity());
                write(&mut document, author(2, LYON, at(3)), &workflow::version(1), &a_version());
            }
            (Kind::Site, _) => {
                central(&mut document, 2, &site::effective(), &site::Effective::default());
            }
            (Kind::Proposal, "elsewhere") => {
                write(&mut document, author(3, BERN, at(2)), &proposal::wish(), &a_wish());
            }
            (Kind::Proposal, _) => {
                write(&mut document, author(2, LYON, at(2)), &proposal::wish(), &a_wish());
            }
            (Kind::Group, _) => central(&mut document, 2, &group::parent(), &group::Parent { parent: None }),
            // Here: the machine is at home there; elsewhere: it boots there; released: it is neither.
            (Kind::Claim, "here") => {
                central(&mut document, 2, &claim::opened(), &a_claim(BERN_SITE, LYON_SITE))
            }
            (Kind::Claim, "elsewhere") => {
                central(&mut document, 2, &claim::opened(), &a_claim(LYON_SITE, BERN_SITE));
            }
            (Kind::Claim, _) => {
                central(&mut document, 2, &claim::opened(), &a_claim(BERN_SITE, SiteId([4; 16])));
            }
        }
        document
    }

    /// Puts a change before the judge after the gates that come first.
    fn judge(document: &Document, change: &Change, delivery: &Delivery) -> Result<(), Denied> {
        let parsed = parse(change.raw_bytes()).expect("an honest change");
        match check(document, &parsed, UnknownKeys::Refuse).expect("a sound change") {
            Standing::Fits { writes } => authorize(document, change, &writes, delivery),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn p5_h6_every_cell_of_the_table_of_who_writes_what_holds() {
        let text = include_str!("../../../fixtures/policies/authorize.txt");
        let mut rows = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let places = rows.next().expect("a header")[1..].to_vec();
        assert_eq!(places, ["new", "here", "elsewhere", "released"]);
        let mut wrong = String::new();
        let (mut cells, mut named) = (0, BTreeSet::new());
        for row in rows {
            let label = row[0];
            let (kind, register) = label.split_once(' ').expect("kind and register");
            named.insert(format!("{kind} {}", register.split(':').next().expect("a register")));
            let kind = Kind::ALL.iter().copied().find(|it| it.as_str() == kind).expect("a kind");
            for (place, levels) in places.iter().zip(&row[1..]) {
                let document = situation(kind, place, label);
                let change = document
                    .clone()
                    .write(&mut author(2, LYON, at(0)), |edit| put(edit, label))
                    .expect("one register is written");
                let levels: Vec<&str> = levels.split_whitespace().collect();
                assert_eq!(levels.len(), Autonomy::ALL.len(), "{label}");
                for (autonomy, cell) in Autonomy::ALL.iter().zip(levels) {
                    let delivery = Delivery { released: *place == "released", ..lyon(*autonomy) };
                    let found = judge(&document, &change, &delivery);
                    let word = if found.is_ok() { "yes" } else { "-" };
                    if word != cell {
                        wrong += &format!("{label}, {place}, {autonomy}: {cell} in the table, {found:?}\n");
                    }
                    cells += 1;
                }
            }
        }
        assert_eq!(wrong, "");
        for kind in Kind::ALL {
            for register in kind.schema().registers.iter().chain(kind.schema().containers) {
                assert!(named.contains(&format!("{kind} {}", register.key)), "{kind} {}", register.key);
            }
        }
        assert_eq!(cells, 58 * 4 * 3);
    }

    #[test]
    fn h6_every_refusal_says_who_may_not_write_what_and_why() {
        let mut report = String::new();
        let mut case = |name: &str, place: &str, row: &str, delivery: Delivery| {
            let kind = Kind::ALL.iter().copied().find(|it| row.starts_with(it.as_str())).expect("a kind");
            let document = situation(kind, place, row);
            let change = document.clone().write(&mut author(2, LYON, at(0)), |edit| put(edit, row));
            let denied = judge(&document, &change.expect("it writes"), &delivery).expect_err(name);
            report += &format!("{name}: {}\n", chain(&denied));
        };
        let foreign = Delivery { actor_is_theirs: false, ..lyon(Autonomy::Full) };
        let released = Delivery { released: true, ..lyon(Autonomy::Full) };
        case("an actor of another site", "here", "node hostname", foreign);
        case("autonomy", "here", "node wanted", lyon(Autonomy::Limited));
        case("an adoption", "new", "node state: discovered", lyon(Autonomy::ReadOnly));
        case("a settlement", "here", "node hostname: settled", lyon(Autonomy::Full));
        case("settings", "here", "site settings", lyon(Autonomy::Full));
        case("a placement", "here", "node home", lyon(Autonomy::Full));
        case("a visitor", "elsewhere", "node state: installed", lyon(Autonomy::Full));
        case("a document given back", "here", "task state", released);
        case("another site's task", "elsewhere", "task consumed", lyon(Autonomy::Full));
        case("nobody's task", "new", "task consumed", lyon(Autonomy::Full));
        case("a specification again", "here", "task spec", lyon(Autonomy::Full));
        case("a version again", "here", "workflow versions: old", lyon(Autonomy::Full));
        case("central's workflow", "elsewhere", "workflow versions", lyon(Autonomy::Full));
        case("an order for too long", "here", "task order: too long", lyon(Autonomy::Full));
        case("a withdrawal taken back", "here", "task cancel: revoked", lyon(Autonomy::Full));
        case("a proposal changed", "here", "proposal arguments", lyon(Autonomy::Full));
        case("half a proposal", "new", "proposal arguments", lyon(Autonomy::Full));
        case("an answer to oneself", "here", "proposal outcome", lyon(Autonomy::Full));
        case("a claim for another site", "new", "claim opened: for another", lyon(Autonomy::Full));
        case("a claim under another name", "new", "claim opened: other id", lyon(Autonomy::Full));
        case("a claim decided by who makes it", "elsewhere", "claim decision", lyon(Autonomy::Full));
        case("a consent to what others do", "released", "claim consent", lyon(Autonomy::Full));
        case("a consent above one's autonomy", "here", "claim consent", lyon(Autonomy::Limited));
        case("a machine brought back", "here", "node wanted: retired", lyon(Autonomy::Full));
        expect![[r#"
            an actor of another site: the change is by replica 02020202020202020202020202020202, which is not one of lyon's
            autonomy: `wanted` of node 07070707070707070707070707070707 needs autonomy `full`; lyon has `limited`
            an adoption: `state` of node 07070707070707070707070707070707 needs autonomy `limited`; lyon has `readonly`
            a settlement: `hostname` of node 07070707070707070707070707070707 settles a disagreement, which central alone does
            settings: `settings/autonomy` of site 02020202020202020202020202020202 is written by central alone
            a placement: `home` of node 07070707070707070707070707070707 is written by central alone
            a visitor: `state` of node 07070707070707070707070707070707 is not lyon's to write: the machine is at home at site 03030303030303030303030303030303, and only visited there
            a document given back: `state` of task 07070707070707070707070707070707 was written after lyon had acknowledged that this task is not its own
            another site's task: `consumed` of task 07070707070707070707070707070707 is not lyon's to write: the task is for site 03030303030303030303030303030303
            nobody's task: `consumed` of task 07070707070707070707070707070707 is written before the task says what is to be done, and where
            a specification again: `spec` of task 07070707070707070707070707070707 is there already and never written again
            a version again: `versions/1` of workflow 07070707070707070707070707070707 is there already and never written again
            central's workflow: `versions/2` of workflow 07070707070707070707070707070707 is in a workflow of central; lyon writes its own only
            an order for too long: `order` of task 07070707070707070707070707070707 ends at 2026-11-23T08:01:00.000Z, later than 2026-11-23T08:00:00.000Z: no order lives longer than 72 hours
            a withdrawal taken back: `cancel` of task 07070707070707070707070707070707 was decided for good, and only central takes that back
            a proposal changed: `arguments/workflow` of proposal 07070707070707070707070707070707 is there already and never written again
            half a proposal: `arguments/workflow` of proposal 07070707070707070707070707070707 is no part of a proposal that is made here
            an answer to oneself: `outcome` of proposal 07070707070707070707070707070707 is written by central alone
            a claim for another site: `opened` of claim 9aa7b0283f7a8b49e9a53fd15b16cca4 is not lyon's to write: a site claims machines for itself
            a claim under another name: `opened` of claim 6b9d0f8535a31000e6b61000e7f135ca is not lyon's to write: the claim is about something else
            a claim decided by who makes it: `decision` of claim 6b9d0f8535a31000e6b61000e7f135ca is written by central alone
            a consent to what others do: `consent/02020202020202020202020202020202` of claim 9aa7b0283f7a8b49e9a53fd15b16cca4 is not lyon's to write: it is neither side of the claim
            a consent above one's autonomy: `consent/02020202020202020202020202020202` of claim 9aa7b0283f7a8b49e9a53fd15b16cca4 needs autonomy `full`; lyon has `limited`
            a machine brought back: `wanted` of node 07070707070707070707070707070707 was decided for good, and only central takes that back
        "#]].assert_eq(&report);
    }

    /// What becomes of changes that Lyon, with this autonomy, delivers to central.
    fn told(document: &Document, changes: &[&Change], autonomy: Autonomy) -> (String, Option<Document>) {
        let delivery = lyon(autonomy);
        let judge = |document: &Document, change: &Change, writes: &[Write]| {
            authorize(document, change, writes, &delivery)
        };
        let batch: Vec<&[u8]> = changes.iter().map(|change| change.raw_bytes()).collect();
        let admission = admit(document, &batch, UnknownKeys::Refuse, Authority::Judged(&judge));
        let told = admission.outcomes.iter().map(|outcome| match outcome {
            Outcome::Accept(_) => "accept\n".to_string(),
            Outcome::Duplicate => "duplicate\n".to_string(),
            Outcome::Park { missing } => format!("park, {} missing\n", missing.len()),
            Outcome::Deny(denied) => format!("deny, {}\n", chain(denied)),
            Outcome::Reject(rejection) => format!("reject, {}\n", chain(rejection)),
        });
        (told.collect(), admission.document)
    }

    #[test]
    fn h6_a_site_speaks_in_no_other_name_than_its_own() {
        let document = situation(Kind::Node, "here", "");
        let mut report = String::new();
        let mut case = |name: &str, author, edit: &dyn Fn(&mut Edit<'_>)| {
            let mut author = author;
            let change = document.clone().write(&mut author, edit).expect("it writes");
            report += &format!("{name}: {}", told(&document, &[&change], Autonomy::Full).0);
        };
        let seen = node::Observed { first_seen: AT, asked_again: None };
        let name = |edit: &mut Edit<'_>| put(edit, "node hostname");
        case("as itself", author(2, LYON, at(9)), &name);
        case("as Bern", author(2, BERN, at(9)), &name);
        case("as central", author(2, Origin::Central, at(9)), &name);
        case("in Bern's key, as itself", author(2, LYON, at(9)), &|edit| {
            edit.set(&node::observed(BERN_SITE), &seen, "");
        });
        case("in Bern's key, as Bern", author(2, BERN, at(9)), &|edit| {
            edit.set(&node::observed(BERN_SITE), &seen, "");
        });
        expect![[r#"
            as itself: accept
            as Bern: deny, `hostname` of node 07070707070707070707070707070707 is written in the name of 03030303030303030303030303030303, and lyon delivers it
            as central: deny, `hostname` of node 07070707070707070707070707070707 is written in the name of central, and lyon delivers it
            in Bern's key, as itself: reject, `observed/03030303030303030303030303030303` is written by `02020202020202020202020202020202`; each site has its own key there
            in Bern's key, as Bern: deny, `observed/03030303030303030303030303030303` of node 07070707070707070707070707070707 is written in the name of 03030303030303030303030303030303, and lyon delivers it
        "#]].assert_eq(&report);
    }

    #[test]
    fn h6_one_register_that_is_not_theirs_refuses_the_change_and_nothing_else() {
        let document = situation(Kind::Node, "here", "");
        let mut site = document.clone();
        let mut author = author(2, LYON, at(1));
        let mut next = |rows: &[&str]| {
            author.at.0 += 1;
            let change = site.write(&mut author, |edit| rows.iter().for_each(|row| put(edit, row)));
            change.expect("it writes")
        };
        let honest = next(&["node serial", "node hostname"]);
        let mixed = next(&["node notes", "node wanted", "node serial"]);
        let after = next(&["node address"]);
        let mut elsewhere = document.clone();
        let beside =
            write(&mut elsewhere, super::super::testing::author(5, LYON, at(9)), &node::notes(), &text("n"));
        let (told, kept) = told(&document, &[&honest, &mixed, &after, &beside], Autonomy::Limited);
        expect![[r#"
            accept
            deny, `wanted` of node 07070707070707070707070707070707 needs autonomy `full`; lyon has `limited`
            park, 1 missing
            accept
        "#]]
        .assert_eq(&told);
        let kept = kept.expect("two were accepted");
        let notes = contested::read(&kept, &node::notes());
        assert_eq!(notes.settled().map(|side| side.value.value.as_str()), Some("n"));
        assert!(contested::read(&kept, &node::wanted()).sides().is_empty());
    }

    #[test]
    fn h6_what_the_writer_had_seen_decides_and_not_what_came_between() {
        // Central gave the machine to Bern while Lyon, cut off, adopted it and named it.
        let mut lyons = empty(Kind::Node);
        let mut author_there = author(2, LYON, at(1));
        let adoption = lyons
            .write(&mut author_there, |edit| {
                ["node macs", "node observed", "node state: discovered"]
                    .iter()
                    .for_each(|row| put(edit, row));
            })
            .expect("it writes");
        author_there.at.0 += 1;
        let named = lyons.write(&mut author_there, |edit| put(edit, "node hostname")).expect("it writes");
        let document = situation(Kind::Node, "elsewhere", "");
        let (told_late, kept) = told(&document, &[&adoption, &named], Autonomy::Limited);
        assert_eq!(told_late, "accept\naccept\n");

        // Once Lyon has heard of the home it is a visitor there, which it may note and nothing else.
        let document = kept.expect("both were accepted");
        let mut there = document.clone();
        author_there.at.0 += 1;
        let seen = there.write(&mut author_there, |edit| put(edit, "node observed")).expect("it writes");
        author_there.at.0 += 1;
        let renamed = there.write(&mut author_there, |edit| put(edit, "node notes")).expect("it writes");
        let (told_now, _) = told(&document, &[&seen, &renamed], Autonomy::Full);
        expect![[r#"
            accept
            deny, `notes` of node 07070707070707070707070707070707 is not lyon's to write: the machine is at home at site 03030303030303030303030303030303, and only visited there
        "#]].assert_eq(&told_now);
    }

    #[test]
    fn h6_who_feigns_ignorance_gets_no_foothold_in_what_others_authored() {
        let mut report = String::new();
        let mut case = |name: &str, document: &Document, rows: &[&str]| {
            let ignorant = empty(document.kind()).write(&mut author(2, LYON, at(9)), |edit| {
                rows.iter().for_each(|row| put(edit, row));
            });
            let ignorant = ignorant.expect("it writes");
            report += &format!("{name}: {}", told(document, &[&ignorant], Autonomy::Full).0);
        };
        let workflow = situation(Kind::Workflow, "elsewhere", "");
        case("a version of central's workflow", &workflow, &["workflow versions: old"]);
        case(
            "a workflow that is not there",
            &empty(Kind::Workflow),
            &["workflow identity", "workflow versions"],
        );
        let task = situation(Kind::Task, "elsewhere", "");
        case("a second specification of Bern's task", &task, &["task spec", "task order"]);
        case("a cancellation of Bern's task", &task, &["task cancel"]);
        case("a task that is not there", &empty(Kind::Task), &["task spec", "task order"]);
        case("a task specified twice at once", &empty(Kind::Task), &["task spec", "task spec"]);
        expect![[r#"
            a version of central's workflow: deny, `versions/1` of workflow 07070707070707070707070707070707 is in a workflow of central; lyon writes its own only
            a workflow that is not there: accept
            a second specification of Bern's task: deny, `spec` of task 07070707070707070707070707070707 is there already and never written again
            a cancellation of Bern's task: deny, `cancel` of task 07070707070707070707070707070707 is written before the task says what is to be done, and where
            a task that is not there: accept
            a task specified twice at once: deny, `spec` of task 07070707070707070707070707070707 is there already and never written again
        "#]].assert_eq(&report);
    }

    #[test]
    fn a_site_gives_an_order_again_only_for_an_attempt_that_was_used() {
        let soon = AT.after(order::ORDER_MAX);
        let mut report = String::new();
        let mut case = |name: &str, last: u64, used: bool, cancelled: bool, next: u64| {
            let mut document = situation(Kind::Task, "here", "");
            central(&mut document, 3, &task::order(), &an_order(last, AT));
            if used {
                write(&mut document, author(2, LYON, at(4)), &task::consumed(), &consumed(last));
            }
            if cancelled {
                central(&mut document, 5, &task::cancel(), &task::Cancel { cancelled: true });
            }
            let mut there = document.clone();
            let change = write(&mut there, author(2, LYON, at(9)), &task::order(), &an_order(next, soon));
            let found = judge(&document, &change, &lyon(Autonomy::Limited));
            report +=
                &format!("{name}: {}\n", found.map_or_else(|denied| denied.to_string(), |()| "yes".into()));
        };
        case("the second attempt after the first", 1, true, false, 2);
        case("the third after the second", 2, true, false, 3);
        case("the last that a setting can allow", 9, true, false, 10);
        case("an eleventh", 10, true, false, 11);
        case("the second while the first was not begun", 1, false, false, 2);
        case("the first once more", 1, true, false, 1);
        case("the second of a task that was withdrawn", 1, true, true, 2);
        expect![[r#"
            the second attempt after the first: yes
            the third after the second: yes
            the last that a setting can allow: yes
            an eleventh: `order` of task 07070707070707070707070707070707 needs autonomy `full`; lyon has `limited`
            the second while the first was not begun: `order` of task 07070707070707070707070707070707 needs autonomy `full`; lyon has `limited`
            the first once more: `order` of task 07070707070707070707070707070707 needs autonomy `full`; lyon has `limited`
            the second of a task that was withdrawn: `order` of task 07070707070707070707070707070707 needs autonomy `full`; lyon has `limited`
        "#]].assert_eq(&report);
    }
}

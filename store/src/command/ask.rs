//! What people ask for, at central or at a site: the one door behind which it is done, or becomes a proposal.
//!
//! [`perform`] asks the autonomy of the site about everything that an [`Ask`] does. What the site may do it does, by
//! the same commands as central. What it may not do by itself is written down as a proposal (`paper`), committed
//! with the entry of the journal that tells of it, and central answers (`answer`), whether the link is up or not.
//! What cannot be anyway is refused at once.

use sync::{
    document::{
        proposal,
        settings::Key,
        site::{self, Local},
    },
    id::{ClaimId, DocumentId, MacAddr, NodeId, Origin, ProposalId, SiteId, TaskId},
    journal::{Event, Stream},
    policy::{Action, Reason, Verdict},
};

use super::{
    boot, check_text, claim, demand, node,
    node::NodeEdit,
    paper, refused, register_set,
    settings::{self, SettingsEdit},
    task,
    task::NewTask,
    unknown, verdict,
};
use crate::{
    StoreError, Tx,
    view::{ClaimRow, NodeRow, ProposalRow, ProposalState, SiteRow, TaskRow},
};

/// Proposals of a site that nobody has ended, at most.
pub const MAX_OPEN: u64 = 1_000;

/// What somebody asks for, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What is to be done.
    pub what: What,
    /// Why, for the journal and the other side; possibly empty.
    pub why: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Change what people decide about a node.
    EditNode {
        /// The node.
        node: NodeId,
        /// The change; its reason is that of the ask.
        edit: NodeEdit,
    },
    /// Create a task for a node, with its order.
    CreateTask(NewTask),
    /// Approve or reject a task that waits for it.
    JudgeTask {
        /// The task.
        task: TaskId,
        /// Yes or no.
        approved: bool,
    },
    /// Withdraw a task before its first write.
    CancelTask {
        /// The task.
        task: TaskId,
    },
    /// Give a failed task another attempt under a new order.
    RetryTask {
        /// The task.
        task: TaskId,
    },
    /// Give up an attempt after its first write.
    AbortTask {
        /// The task.
        task: TaskId,
    },
    /// Make an unknown machine a node of this site.
    AdoptMachine {
        /// Its boot interface.
        mac: MacAddr,
    },
    /// Switch the boot services of this site on or off, or leave that to the settings again.
    SwitchPxe {
        /// On or off; absent: as the settings say.
        enabled: Option<bool>,
    },
    /// Give or withhold this site's consent to a claim.
    ConsentToClaim {
        /// The claim.
        claim: ClaimId,
        /// Yes or no.
        consents: bool,
    },
}

impl What {
    /// What autonomy is asked about.
    pub fn actions(&self) -> Vec<Action> {
        match self {
            What::EditNode { edit, .. } => edit.actions(),
            What::CreateTask(_) => vec![Action::CreateTask],
            What::JudgeTask { .. } => vec![Action::ApproveTask],
            What::CancelTask { .. } => vec![Action::CancelTask],
            What::RetryTask { .. } => vec![Action::MakePending],
            What::AbortTask { .. } => vec![Action::AbortAttempt],
            What::AdoptMachine { .. } => vec![Action::Adopt],
            What::SwitchPxe { .. } => vec![Action::LocalDhcp],
            What::ConsentToClaim { .. } => vec![Action::ConsentToClaim],
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was done, and the node is so now.
    Node(Box<NodeRow>),
    /// It was done, and the task is so now.
    Task(Box<TaskRow>),
    /// It was done, and the site is so now.
    Site(Box<SiteRow>),
    /// It was done, and the claim is so now.
    Claim(Box<ClaimRow>),
    /// Central is asked, by this proposal.
    Queued(Box<ProposalRow>),
}

/// Does what somebody asks for, or asks central to.
///
/// # Errors
/// `Unknown` for what is not here; `Refused` with the reason when it cannot be, whoever does it; `Recovering` for
/// orders while central is in recovery.
pub fn perform(tx: &mut Tx<'_>, ask: &Ask) -> Result<Done, StoreError> {
    check_text("why", &ask.why)?;
    for action in actions(tx, &ask.what)? {
        match verdict(tx, action)? {
            Verdict::Allow => {}
            Verdict::Refuse(reason) => return Err(StoreError::Refused(reason)),
            // One request is one decision: what belongs to it and might be done now waits with the rest.
            Verdict::Queue(reason) => return queue(tx, ask, &reason).map(|row| Done::Queued(Box::new(row))),
        }
    }
    act(tx, ask, None)
}

/// What autonomy is asked about, here and now.
fn actions(tx: &Tx<'_>, what: &What) -> Result<Vec<Action>, StoreError> {
    match what {
        What::RetryTask { task } => Ok(vec![task::retries(tx, *task)?]),
        other => Ok(other.actions()),
    }
}

/// Does it. `asking` is the site whose people ask, where central does it for them.
pub(super) fn act(tx: &mut Tx<'_>, ask: &Ask, asking: Option<SiteId>) -> Result<Done, StoreError> {
    let why = ask.why.as_str();
    Ok(match &ask.what {
        What::EditNode { node, edit } => {
            let edit = NodeEdit { why: ask.why.clone(), ..edit.clone() };
            Done::Node(Box::new(node::edit(tx, *node, &edit)?))
        }
        What::CreateTask(new) => Done::Task(Box::new(task::create(tx, new)?)),
        What::JudgeTask { task, approved } => Done::Task(Box::new(task::judge(tx, *task, *approved, why)?)),
        What::CancelTask { task } => Done::Task(Box::new(task::cancel(tx, *task, why)?)),
        What::RetryTask { task } => Done::Task(Box::new(task::retry(tx, *task, why)?)),
        What::AbortTask { task } => Done::Task(Box::new(task::abort(tx, *task, why)?)),
        What::AdoptMachine { mac } => {
            let id = match (tx.origin(), asking) {
                (Origin::Central, Some(site)) => node::adopt_for(tx, *mac, site)?,
                (Origin::Central, None) => {
                    return refused("central registers machines for a site: name the site");
                }
                (Origin::Site(here), _) => {
                    demand(tx, Action::Adopt)?;
                    check_stranger(tx, *mac, here)?;
                    boot::adopt(tx, *mac, "adopted by a person")?
                }
            };
            Done::Node(Box::new(tx.view().node(id)?.ok_or_else(|| unknown("node", id))?))
        }
        What::SwitchPxe { enabled } => Done::Site(Box::new(switch(tx, *enabled, asking, why)?)),
        What::ConsentToClaim { claim, consents } => {
            Done::Claim(Box::new(claim::consent(tx, *claim, asking, *consents, why)?))
        }
    })
}

/// A `full` site decides for itself; central, asked by one that may not, changes the site's own setting.
fn switch(
    tx: &mut Tx<'_>,
    enabled: Option<bool>,
    asking: Option<SiteId>,
    why: &str,
) -> Result<SiteRow, StoreError> {
    match (tx.origin(), asking) {
        (Origin::Central, Some(id)) => {
            let inherit = enabled.is_none().then_some(Key::PxeEnabled).into_iter().collect();
            let edit = SettingsEdit { pxe_enabled: enabled, inherit, ..SettingsEdit::default() };
            settings::set_site(tx, id, &edit, why)
        }
        (Origin::Central, None) => refused("central changes the settings of a site: name the site"),
        (Origin::Site(here), _) => {
            demand(tx, Action::LocalDhcp)?;
            tx.write(site::KIND, here.into(), |edit| {
                edit.set(&site::local(), &Local { pxe_enabled: enabled }, why);
            })?;
            let value = enabled.map_or_else(|| "as the settings say".to_string(), |it| it.to_string());
            tx.journal(register_set(site::KIND, here, "local", format!("pxe_enabled: {value}")))?;
            tx.view().site(here)?.ok_or_else(|| unknown("site", here))
        }
    }
}

/// At a site: asks central to do it.
fn queue(tx: &mut Tx<'_>, ask: &Ask, reason: &Reason) -> Result<ProposalRow, StoreError> {
    let Origin::Site(here) = tx.origin() else {
        return refused("central asks nobody");
    };
    let after = check(tx, &ask.what, here)?;
    if let What::AdoptMachine { mac } = &ask.what
        && let Some(open) = open_adoption(tx, NodeId::of(*mac))?
    {
        return Ok(open);
    }
    if tx.view().count_open_proposals(None)? >= MAX_OPEN {
        return refused(format!("{MAX_OPEN} proposals of this site wait for central already"));
    }
    let id: ProposalId = tx.new_id()?.into();
    let paper = paper::Paper::of(&ask.what, here);
    tx.journal(Event::ProposalMade {
        proposal: id,
        action: paper.act.to_string(),
        document: paper.document,
        reason: reason.to_string(),
    })?;
    let wish = proposal::Wish {
        action: paper.act.to_string(),
        about: Some(paper.about.to_string()),
        document: Some(paper.document),
        journal_seq: tx.newest_entry(Stream::Site(here))?,
        after,
    };
    tx.write(proposal::KIND, id.into(), |edit| {
        edit.set(&proposal::wish(), &wish, &ask.why);
        for (key, fields) in &paper.arguments {
            edit.set(&proposal::argument(key), &proposal::Argument(fields.clone()), &ask.why);
        }
    })?;
    tx.view().proposal(id)?.ok_or_else(|| unknown("proposal", id))
}

/// Whether people of a site can ask for it at all, as far as is known here; the proposal that it rests on, if it
/// is about a machine that one is to adopt.
///
/// # Errors
/// `Unknown` and `Refused`, as the commands have them.
pub(super) fn check(tx: &Tx<'_>, what: &What, site: SiteId) -> Result<Option<ProposalId>, StoreError> {
    match what {
        What::EditNode { node, edit } => match tx.view().node(*node)? {
            Some(row) => {
                node::check_edit(&row, edit, Some(site))?;
                check_ours(&row, site)?;
            }
            None => {
                let Some(open) = open_adoption(tx, *node)? else { return Err(unknown("node", node)) };
                node::check_values(edit)?;
                return Ok(Some(open.id));
            }
        },
        What::CreateTask(new) => {
            task::check_maps(new)?;
            match tx.view().node(new.node)? {
                Some(row) => {
                    check_ours(&row, site)?;
                    task::check_wanted(&row)?;
                }
                None => {
                    let Some(open) = open_adoption(tx, new.node)? else {
                        return Err(unknown("node", new.node));
                    };
                    return Ok(Some(open.id));
                }
            }
        }
        What::JudgeTask { task, .. } => task::check_judged(&own_task(tx, *task, site)?)?,
        What::CancelTask { task } => {
            own_task(tx, *task, site)?;
        }
        What::RetryTask { task } => task::check_retry(tx, &own_task(tx, *task, site)?)?,
        What::AbortTask { task } => task::check_abort(&own_task(tx, *task, site)?)?,
        What::AdoptMachine { mac } => match tx.origin() {
            Origin::Site(here) => check_stranger(tx, *mac, here)?,
            // Whom it belongs to, whoever adopts it looks at.
            Origin::Central => {}
        },
        What::SwitchPxe { .. } => {}
        What::ConsentToClaim { claim, .. } => {
            let row = tx.view().claim(*claim)?.ok_or_else(|| unknown("claim", claim))?;
            claim::check_consent(&row, site)?;
        }
    }
    Ok(None)
}

fn own_task(tx: &Tx<'_>, id: TaskId, site: SiteId) -> Result<TaskRow, StoreError> {
    let row = tx.view().task(id)?.ok_or_else(|| unknown("task", id))?;
    if row.site != site {
        return refused(format!("task {id} is for site {}, and people decide about it there", row.site));
    }
    Ok(row)
}

/// A site's own machines are at home there, or at home nowhere and seen there.
fn check_ours(row: &NodeRow, site: SiteId) -> Result<(), StoreError> {
    match row.home {
        Some(home) if home == site => Ok(()),
        None if row.observed_by.contains(&site) => Ok(()),
        Some(_) | None => refused(format!("node {} is none of this site's machines", row.id)),
    }
}

/// At a site: whether a machine is unknown here, and nobody else's as far as the directory says.
fn check_stranger(tx: &Tx<'_>, mac: MacAddr, here: SiteId) -> Result<(), StoreError> {
    if let Some(row) = tx.view().node_by_mac(mac)? {
        return refused(format!("{mac} is known already: node {}", row.id));
    }
    let Some(row) = tx.view().directory(NodeId::of(mac))? else { return Ok(()) };
    if row.stub.retired {
        return refused(format!("machine {mac} is retired (directory as of {})", row.at));
    }
    match row.stub.home {
        Some(home) if home != here => {
            refused(format!("machine {mac} is at home at site {home} (directory as of {})", row.at))
        }
        Some(_) | None => Ok(()),
    }
}

/// The proposal to adopt a machine that central has not answered.
fn open_adoption(tx: &Tx<'_>, node: NodeId) -> Result<Option<ProposalRow>, StoreError> {
    Ok(tx.view().adoption(node)?.filter(|row| row.state == ProposalState::Open))
}

/// At a site that may not adopt by itself: asks central to adopt a machine that boots, once.
pub(super) fn ask_to_adopt(tx: &mut Tx<'_>, mac: MacAddr, reason: &Reason) -> Result<(), StoreError> {
    let id: DocumentId = NodeId::of(mac).into();
    if tx.view().adoption(id.into())?.is_some()
        || tx.view().count_open_proposals(Some(proposal::Act::AdoptMachine))? >= MAX_ASKED_BY_BOOT
    {
        return Ok(());
    }
    let ask = Ask { what: What::AdoptMachine { mac }, why: "the machine boots here".into() };
    match queue(tx, &ask, reason) {
        Ok(_) | Err(StoreError::Refused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Machines that central is asked about because they booted, at most: booting proves no more than an address.
const MAX_ASKED_BY_BOOT: u64 = 64;

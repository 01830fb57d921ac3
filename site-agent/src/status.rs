//! What works here now: the status of the running agent, as data and as a page for a person.
//!
//! [`of`] gathers it from the replica and from what the services publish, `GET /api/v1/agent/status` gives it
//! out, [`Status`] is read again by `holdfast-site status` and written as text.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use store::{
    StoreError,
    view::{NodeRow, ProposalFilter, ProposalRow, ProposalState, SiteRow, TaskFilter, TaskRow},
};
use sync::{
    blob::Digest,
    document::site::{Effective, UnknownMachines},
    id::{DocumentId, MacAddr, NodeId, Origin, ProposalId, SiteId, TaskId},
    policy::{Action, Autonomy, LinkState, Liveness, TaskState, Verdict, autonomy, order},
    quic::Transport,
    time::Timestamp,
};

use crate::{agent::Agent, cache::Content, link, renewal::Certificate};

/// Boots that are listed.
const BOOTS: u64 = 20;

/// Proposals that are listed, of those that wait and of those that have ended.
const PROPOSALS: u64 = 10;

/// How the agent is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// The site.
    pub site: SiteId,
    /// Its name; empty before central said it.
    pub name: String,
    /// The link to central.
    pub link: Link,
    /// When central was last heard, by central's clock.
    pub data_as_of: Option<Timestamp>,
    /// What this site proves itself with.
    pub certificate: Option<Certificate>,
    /// How much the site may decide by itself.
    pub autonomy: Autonomy,
    /// What that means: `allow`, `queue` or `refuse` for each action.
    pub allows: BTreeMap<String, String>,
    /// Epoch of the settings that are followed.
    pub policy_epoch: u64,
    /// What an unknown machine is given.
    pub unknown_machines: UnknownMachines,
    /// Whether boot requests are answered at all.
    pub pxe_enabled: bool,
    /// Whether this site has decided that by itself, against its settings.
    #[serde(default)]
    pub pxe_decided_here: bool,
    /// Why no orders are followed, if so.
    pub suspended: Option<String>,
    /// Whether central was restored and gives no orders yet; those that have arrived since wait.
    #[serde(default)]
    pub central_recovers: bool,
    /// Nodes in this replica.
    pub nodes: u64,
    /// Machines of other sites that are known here.
    #[serde(default)]
    pub directory: Directory,
    /// Number of tasks of this site by state.
    pub tasks: BTreeMap<TaskState, u64>,
    /// Machines that may boot their workflow now.
    pub ready: Vec<Ready>,
    /// Orders of this site's tasks that were not used, the one that ends first on top.
    #[serde(default)]
    pub orders: Vec<Held>,
    /// What central is asked for, and how the last of it ended.
    #[serde(default)]
    pub proposals: Proposals,
    /// Content on disk and on its way.
    pub blobs: Blobs,
    /// Boot requests in this run.
    pub boots_seen: u64,
    /// The newest boot answers.
    pub boots: Vec<Boot>,
}

/// What is known here of machines that are not held here. Every other one is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// How many.
    pub machines: u64,
    /// The group whose sites they are at home at, as a path; nothing: the whole fleet.
    pub domain: Option<String>,
    /// When central was last heard, by central's clock: what it knew then, it has told, or is telling.
    pub as_of: Option<Timestamp>,
    /// Central tells all of it anew, so there may be too many.
    pub told_anew: bool,
}

/// The link to central.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// As people see it.
    pub state: LinkState,
    /// Whether a session is established.
    pub session: bool,
    /// Central as `host:port`.
    pub central: String,
    /// What carries the connection to it: `quic`, or `tcp` where UDP does not pass. Nothing without one.
    pub transport: Option<Transport>,
    /// Since when.
    pub transport_since: Option<Timestamp>,
    /// When central was last heard, by our clock.
    pub heard_at: Option<Timestamp>,
    /// What is here of central's log.
    pub pulled: u64,
    /// End of our log for central.
    pub end: u64,
    /// What central has acknowledged of it.
    pub acknowledged: u64,
    /// Whether both held the same when they last compared.
    pub agrees: Option<bool>,
    /// Whether they certainly do not.
    pub diverged: bool,
    /// When they last compared.
    pub compared_at: Option<Timestamp>,
    /// Why the last session was refused, if it was.
    pub refused: Option<String>,
    /// Why the last session of this run ended.
    pub last_end: Option<String>,
    /// When this site asks central again, which is busy.
    pub busy_until: Option<Timestamp>,
    /// Why central is busy.
    pub busy: Option<String>,
}

/// A machine that may boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The machine.
    pub node: NodeId,
    /// Its MAC addresses.
    pub macs: Vec<MacAddr>,
    /// Its hostname, empty if none.
    pub hostname: String,
    /// The task.
    pub task: TaskId,
}

/// An order that was not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The task.
    pub task: TaskId,
    /// The machine.
    pub node: NodeId,
    /// Its hostname, empty if none.
    pub hostname: String,
    /// The attempt that it is for.
    pub attempt: u64,
    /// Until when it can be used: one hour before it ends.
    pub usable_until: Timestamp,
    /// What it is worth now: `live`, `awaits approval`, or why it is not followed.
    pub worth: String,
}

/// What central is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposals {
    /// How many wait.
    pub open: u64,
    /// The first of them.
    pub waiting: Vec<Asked>,
    /// Those that ended last.
    pub ended: Vec<Asked>,
}

/// One proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The proposal.
    pub id: ProposalId,
    /// What is wished.
    pub action: String,
    /// The document that it is about.
    pub document: Option<DocumentId>,
    /// Who wishes it.
    pub by: String,
    /// When he asked.
    pub at: Timestamp,
    /// Where it stands.
    pub state: ProposalState,
    /// How it ended, if it did.
    pub reason: Option<String>,
}

impl From<ProposalRow> for Asked {
    fn from(row: ProposalRow) -> Self {
        let ProposalRow { id, action, document, by, at, state, outcome, .. } = row;
        Asked { id, action, document, by, at, state, reason: outcome.map(|end| end.reason) }
    }
}

/// Content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blobs {
    /// Bytes of complete blobs.
    pub bytes: u64,
    /// What is waited for.
    pub wanted: Vec<Wanted>,
}

/// A blob that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes, where known.
    pub size: Option<u64>,
    /// Bytes that are here.
    pub have: u64,
    /// Why the last try failed, if one did.
    pub trouble: Option<String>,
}

/// A boot answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// The boot interface.
    pub mac: MacAddr,
    /// The answer.
    pub answer: String,
    /// Why.
    pub reason: String,
    /// First given.
    pub first_at: Timestamp,
    /// Last given.
    pub last_at: Timestamp,
    /// How often in a row.
    pub count: u64,
}

/// Gathers the status.
///
/// # Errors
/// When the replica or the content store cannot be read.
pub(crate) fn of(
    agent: &Agent,
    view: &store::View<'_>,
    link: &link::Link,
    content: &Content,
) -> Result<Status, StoreError> {
    let row = view.site(agent.site)?;
    let (transport, transport_since) = link.transport().unzip();
    let peer = view.peer(Origin::Central)?;
    let default = Effective::default();
    let settings = row.as_ref().map(|row| &row.effective);
    let level = settings.map_or(default.autonomy, |settings| settings.autonomy);
    let mut tasks = BTreeMap::new();
    let mut ready = Vec::new();
    let mut orders = Vec::new();
    for task in view.tasks(&TaskFilter { site: Some(agent.site), ..TaskFilter::default() })? {
        *tasks.entry(task.state).or_insert(0) += 1;
        orders.extend(held(view, agent, &task)?);
        if task.state == TaskState::Ready
            && let Some(node) = view.node(task.node)?
            && may_boot(view, agent, &task, &node)?
        {
            ready.push(Ready { node: node.id, macs: node.macs, hostname: node.hostname, task: task.id });
        }
    }
    orders.sort_by_key(|held| (held.usable_until, held.task));
    let partial: BTreeMap<Digest, u64> = agent.store.blobs().unfinished()?.into_iter().collect();
    let wanted = content.wanted.iter().map(|wanted| Wanted {
        digest: wanted.digest,
        size: wanted.size,
        have: partial.get(&wanted.digest).copied().unwrap_or(0),
        trouble: wanted.trouble.clone(),
    });
    let boots = view.boots(BOOTS)?.into_iter().map(|boot| Boot {
        mac: boot.mac,
        answer: boot.answer,
        reason: boot.reason,
        first_at: boot.first_at,
        last_at: boot.last_at,
        count: boot.count,
    });
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        uptime_s: agent.edge.elapsed().as_secs(),
        site: agent.site,
        name: row.as_ref().map(|row| row.name.clone()).unwrap_or_default(),
        link: Link {
            state: link.state,
            session: link.up,
            central: agent.central.clone(),
            transport,
            transport_since,
            heard_at: peer.heard_at,
            pulled: peer.pulled,
            end: peer.end,
            acknowledged: peer.acknowledged,
            agrees: peer.agrees,
            diverged: peer.agrees == Some(false),
            compared_at: peer.compared_at,
            refused: peer.refused,
            last_end: link.last_end.clone(),
            busy_until: link.busy.as_ref().map(|(until, _)| *until),
            busy: link.busy.as_ref().map(|(_, why)| why.clone()),
        },
        data_as_of: peer.clock,
        certificate: agent.certificate.borrow().clone(),
        autonomy: level,
        allows: Action::ALL.iter().map(|action| (action.to_string(), word(level, *action).into())).collect(),
        policy_epoch: view.policy_epoch()?,
        unknown_machines: settings.map_or(default.unknown_machines, |settings| settings.unknown_machines),
        pxe_enabled: row.as_ref().map_or(default.pxe_enabled, SiteRow::answers_boots),
        pxe_decided_here: row.as_ref().is_some_and(|row| row.answers_boots() != row.effective.pxe_enabled),
        suspended: view.suspended()?,
        central_recovers: view.central_recovers()?,
        nodes: view.count_nodes(None)?,
        directory: Directory {
            machines: view.count_directory()?,
            domain: row
                .as_ref()
                .and_then(|row| row.directory_domain)
                .map(|group| view.group_path(group))
                .transpose()?,
            as_of: peer.clock,
            told_anew: view.directory_is_told_anew()?,
        },
        tasks,
        ready,
        orders,
        proposals: proposals(view)?,
        blobs: Blobs { bytes: agent.store.blobs().total_bytes()?, wanted: wanted.collect() },
        boots_seen: agent.boots_seen.load(std::sync::atomic::Ordering::Relaxed),
        boots: boots.collect(),
    })
}

/// The order of a task, while it was not used.
fn held(view: &store::View<'_>, agent: &Agent, task: &TaskRow) -> Result<Option<Held>, StoreError> {
    let (Some(order), None, false) = (&task.order, task.consumed_by, task.state.is_final()) else {
        return Ok(None);
    };
    let Some(node) = view.node(task.node)? else { return Ok(None) };
    let circumstances = view.circumstances(task, &node, agent.site, None, agent.edge.now())?;
    let worth = match order::liveness(&circumstances) {
        Liveness::Live => "live".into(),
        Liveness::AwaitsApproval => "awaits approval".into(),
        Liveness::Held(reason) => format!("held: {reason}"),
        Liveness::Stale(reason) => format!("stale: {reason}"),
        Liveness::Consumed | Liveness::UnderWay => return Ok(None),
    };
    let margin = u64::try_from(order::EXPIRY_MARGIN.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(Held {
        task: task.id,
        node: node.id,
        hostname: node.hostname,
        attempt: order.attempt,
        usable_until: Timestamp(order.not_after.0.saturating_sub(margin)),
        worth,
    }))
}

fn proposals(view: &store::View<'_>) -> Result<Proposals, StoreError> {
    let filter =
        ProposalFilter { state: Some(ProposalState::Open), limit: PROPOSALS, ..ProposalFilter::default() };
    Ok(Proposals {
        open: view.count_open_proposals(None)?,
        waiting: view.proposals(&filter)?.into_iter().map(Asked::from).collect(),
        ended: view.ended_proposals(PROPOSALS)?.into_iter().map(Asked::from).collect(),
    })
}

/// Whether a machine would be given its workflow now.
fn may_boot(
    view: &store::View<'_>,
    agent: &Agent,
    task: &TaskRow,
    node: &NodeRow,
) -> Result<bool, StoreError> {
    let circumstances = view.circumstances(task, node, agent.site, None, agent.edge.now())?;
    Ok(matches!(order::liveness(&circumstances), Liveness::Live | Liveness::AwaitsApproval))
}

fn word(level: Autonomy, action: Action) -> &'static str {
    match autonomy::permits(level, action) {
        Verdict::Allow => "allow",
        Verdict::Queue(_) => "queue",
        Verdict::Refuse(_) => "refuse",
    }
}

/// One page for a person.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "not named yet" } else { &self.name };
        writeln!(
            f,
            "site        {name} ({}), version {}, up {}",
            self.site,
            self.version,
            span(self.uptime_s)
        )?;
        let session = match (self.link.session, self.link.transport, self.link.transport_since) {
            (true, Some(over), Some(since)) => format!("session up over {over} since {since}"),
            (true, ..) => "session up".into(),
            (false, ..) => "no session".into(),
        };
        writeln!(f, "link        {}, {session}, central {}", self.link.state, self.link.central)?;
        match self.data_as_of {
            Some(at) => writeln!(f, "data as of  {at}")?,
            None => writeln!(f, "data as of  central was never heard")?,
        }
        let trouble =
            self.link.refused.as_ref().or(self.link.last_end.as_ref()).filter(|_| !self.link.session);
        if let Some(why) = trouble {
            writeln!(f, "            {why}")?;
        }
        if let (Some(until), Some(why)) = (self.link.busy_until, &self.link.busy) {
            writeln!(f, "            central is busy, this site asks again at {until}: {why}")?;
        }
        if let Some(certificate) = &self.certificate {
            writeln!(
                f,
                "certificate until {}, renewed from {} on",
                certificate.not_after, certificate.renew_at
            )?;
            if let Some(trouble) = &certificate.trouble {
                writeln!(f, "            {trouble}")?;
            }
        }
        if self.link.diverged {
            writeln!(
                f,
                "            central and this site hold different documents; tell central operations"
            )?;
        }
        if let Some(why) = &self.suspended {
            writeln!(f, "suspended   no order is followed: {why}")?;
            writeln!(f, "            confirm with `holdfast-site resume`, or let central do it")?;
        }
        if self.central_recovers {
            writeln!(
                f,
                "recovery    central was restored; orders that have arrived since wait until it has recovered"
            )?;
        }
        if !self.pxe_enabled {
            let by = if self.pxe_decided_here { ", by its own decision" } else { "" };
            writeln!(f, "boot        switched off for this site{by}")?;
        } else if self.pxe_decided_here {
            writeln!(f, "boot        switched on by this site's own decision")?;
        }
        writeln!(f, "autonomy    {} (settings epoch {})", self.autonomy, self.policy_epoch)?;
        for verdict in ["allow", "queue"] {
            let actions: Vec<&str> = self
                .allows
                .iter()
                .filter(|(_, word)| *word == verdict)
                .map(|(action, _)| action.as_str())
                .collect();
            let label = if verdict == "allow" { "now" } else { "central" };
            if !actions.is_empty() {
                writeln!(f, "  {label:<10}{}", actions.join(", "))?;
            }
        }
        writeln!(f, "unknown     machines that are not known here: {}", self.unknown_machines)?;
        let tasks: Vec<String> = self.tasks.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let tasks = if tasks.is_empty() { "no tasks".to_owned() } else { tasks.join(", ") };
        writeln!(f, "machines    {} known; {tasks}", self.nodes)?;
        let Directory { machines, domain, as_of, told_anew } = &self.directory;
        let of = domain.as_deref().unwrap_or("the whole fleet");
        let age = as_of.map_or("central was never heard".into(), |at| format!("as of {at}"));
        let anew = if *told_anew { ", being told anew" } else { "" };
        writeln!(f, "directory   {machines} machines of other sites of {of}, {age}{anew}")?;
        for ready in &self.ready {
            let macs: Vec<String> = ready.macs.iter().map(ToString::to_string).collect();
            writeln!(f, "  ready     {} {} task {}", macs.join(" "), ready.hostname, ready.task)?;
        }
        self.write_asked(f)?;
        let waiting = self.link.end.saturating_sub(self.link.acknowledged);
        writeln!(f, "for central {waiting} changes and entries wait to be acknowledged")?;
        writeln!(
            f,
            "content     {} MB here, {} files wanted",
            self.blobs.bytes / 1_000_000,
            self.blobs.wanted.len()
        )?;
        for wanted in &self.blobs.wanted {
            let of = wanted.size.map_or("unknown".to_owned(), |size| size.to_string());
            writeln!(f, "  wanted    {}… {} of {of} bytes", &wanted.digest.to_string()[..12], wanted.have)?;
            if let Some(trouble) = &wanted.trouble {
                writeln!(f, "            {trouble}")?;
            }
        }
        writeln!(f, "boots       {} seen since start", self.boots_seen)?;
        for boot in &self.boots {
            let times = if boot.count > 1 { format!(" ({} times)", boot.count) } else { String::new() };
            writeln!(f, "  {} {} {}: {}{times}", boot.last_at, boot.mac, boot.answer, boot.reason)?;
        }
        Ok(())
    }
}

impl Status {
    fn write_asked(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Held { hostname, task, attempt, usable_until, worth, .. } in &self.orders {
            writeln!(
                f,
                "order       {hostname} task {task} attempt {attempt}, until {usable_until}: {worth}"
            )?;
        }
        let Proposals { open, waiting, ended } = &self.proposals;
        if *open == 0 && ended.is_empty() {
            return Ok(());
        }
        writeln!(f, "proposals   {open} wait for central")?;
        for Asked { id, action, by, at, .. } in waiting {
            writeln!(f, "  waits     {id} {action}, asked for by {by} at {at}")?;
        }
        for Asked { id, action, state, reason, .. } in ended {
            let word = if *state == ProposalState::Applied { "applied" } else { "refused" };
            writeln!(f, "  {word}   {id} {action}: {}", reason.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

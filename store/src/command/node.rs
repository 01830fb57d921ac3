//! Nodes: registering one by its MAC address, editing what people decide about it.

use std::collections::BTreeMap;

use sync::{
    document::{
        contested,
        node::{self, Evidence, GroupRef, Home, Tag, Text, Wish, WorkflowRef},
    },
    id::{GroupId, MacAddr, NodeId, Origin, SiteId, WorkflowId},
    journal::Event,
    policy::{Action, Verdict, Wanted, lifecycle},
    time::Hlc,
};

use super::{check_text, claim, conflict, demand, home_elsewhere, refused, register_set, unknown};
use crate::{StoreError, Tx, view::NodeRow};

/// What people change about a node; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEdit {
    /// New hostname; empty takes it away.
    pub hostname: Option<String>,
    /// New address; empty takes it away.
    pub address: Option<String>,
    /// New notes; empty takes them away.
    pub notes: Option<String>,
    /// Tags to set, or to take away with `null`.
    #[serde(default)]
    pub tags: BTreeMap<String, Option<String>>,
    /// New wish.
    pub wanted: Option<Wanted>,
    /// What the node is to run, or nothing with `null`.
    #[serde(default, deserialize_with = "said")]
    pub workflow: Option<Option<WorkflowId>>,
    /// The group that it belongs to, or none with `null`.
    #[serde(default, deserialize_with = "said")]
    pub group: Option<Option<GroupId>>,
    /// Why, for the journal and the other side.
    #[serde(default)]
    pub why: String,
}

/// Tells a field that is `null` from one that is absent.
fn said<'de, D: serde::Deserializer<'de>, T: serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

impl NodeEdit {
    /// What somebody does who makes this edit.
    pub fn actions(&self) -> Vec<Action> {
        let NodeEdit { hostname, address, notes, tags, wanted, workflow, group, why: _ } = self;
        let mut actions = Vec::new();
        if hostname.is_some() || address.is_some() || notes.is_some() || !tags.is_empty() {
            actions.push(Action::EditNodeDetails);
        }
        if workflow.is_some() || group.is_some() {
            actions.push(Action::EditWorkflow);
        }
        if wanted.is_some() {
            actions.push(Action::SetWanted);
        }
        actions
    }
}

/// Tags of one edit: with their registers they stay far below the largest change that peers take.
const MAX_TAGS: usize = 8;

/// Registers a machine before it was ever seen, at home in `home`.
///
/// # Errors
/// `Refused` when the machine is known already; `Unknown` site.
pub fn create(tx: &mut Tx<'_>, mac: MacAddr, home: SiteId, hostname: &str) -> Result<NodeId, StoreError> {
    if let Some(node) = tx.view().node_by_mac(mac)? {
        return refused(format!("{mac} is known already: node {}", node.id));
    }
    if tx.view().site(home)?.is_none() {
        return Err(unknown("site", home));
    }
    check_hostname(hostname)?;
    let id = NodeId::of(mac);
    tx.write(node::KIND, id.into(), |edit| {
        edit.set(&node::mac(mac), &Evidence { value: mac.to_string() }, "registered");
        edit.set(&node::home(), &Home { home_site: Some(home), home_epoch: 1, claim: None }, "registered");
        if !hostname.is_empty() {
            edit.set(&node::hostname(), &Text { value: hostname.to_string() }, "registered");
        }
    })?;
    tx.journal_for(home, Event::NodeDiscovered { node: id, mac })?;
    Ok(id)
}

/// Changes what people decide about a node.
///
/// # Errors
/// `Unknown` node; `Refused` with the reason when a value cannot be, or is not this site's to decide.
pub fn edit(tx: &mut Tx<'_>, id: NodeId, new: &NodeEdit) -> Result<NodeRow, StoreError> {
    let row = tx.view().node(id)?.ok_or_else(|| unknown("node", id))?;
    check_edit(&row, new, tx.origin().site())?;
    // A machine that has moved stays before its former home as long as an attempt there goes on.
    if let Some(home) = home_elsewhere(tx, id)? {
        return refused(format!("node {id} is at home at site {home}, and is decided about there"));
    }
    for action in new.actions() {
        demand(tx, action)?;
    }
    if let Some(Some(workflow)) = new.workflow
        && tx.view().workflow(workflow)?.is_none()
    {
        return Err(unknown("workflow", workflow));
    }
    if let Some(Some(group)) = new.group
        && tx.view().group(group)?.is_none()
    {
        return Err(unknown("group", group));
    }
    let mut facts: Vec<(String, String)> = Vec::new();
    let why = new.why.as_str();
    tx.write(node::KIND, id.into(), |edit| {
        for (name, register, value) in [
            ("hostname", node::hostname(), &new.hostname),
            ("address", node::address(), &new.address),
            ("notes", node::notes(), &new.notes),
        ] {
            if let Some(value) = value {
                edit.set(&register, &Text { value: value.clone() }, why);
                facts.push((name.to_string(), value.clone()));
            }
        }
        for (key, value) in &new.tags {
            let removed = value.is_none().then_some(true);
            edit.set(&node::tag(key), &Tag { value: value.clone(), removed }, why);
            facts.push((format!("tags/{key}"), value.clone().unwrap_or_default()));
        }
        if let Some(workflow) = new.workflow {
            edit.set(&node::workflow(), &WorkflowRef { workflow }, why);
            facts.push(("workflow".into(), workflow.map(|it| it.to_string()).unwrap_or_default()));
        }
        if let Some(group) = new.group {
            edit.set(&node::group(), &GroupRef { group }, why);
            facts.push(("group".into(), group.map(|it| it.to_string()).unwrap_or_default()));
        }
        if let Some(wanted) = new.wanted {
            edit.set(&node::wanted(), &Wish { wanted }, why);
            facts.push(("wanted".into(), wanted.to_string()));
        }
    })?;
    for (path, value) in facts {
        let event = register_set(node::KIND, id, &path, value);
        match row.home {
            Some(home) => tx.journal_for(home, event)?,
            None => tx.journal(event)?,
        }
    }
    if new.wanted.is_some() {
        claim::settle_about(tx, id)?;
    }
    tx.view().node(id)?.ok_or_else(|| unknown("node", id))
}

/// Whether such an edit can be, whoever may make it; `site` is the one whose people want it, if they are not central's.
///
/// # Errors
/// `Refused` with the reason.
pub(crate) fn check_edit(row: &NodeRow, new: &NodeEdit, site: Option<SiteId>) -> Result<(), StoreError> {
    if let (Some(site), Some(home)) = (site, row.home)
        && home != site
    {
        return refused(format!(
            "node {} is at home at site {home}, and people decide about it there",
            row.id
        ));
    }
    check_values(new)?;
    let Some(wanted) = new.wanted else { return Ok(()) };
    if site.is_some() && row.wanted == Wanted::Retired && wanted != Wanted::Retired {
        return refused(format!("node {} is retired, and only central takes that back", row.id));
    }
    match lifecycle::wanted_step(row.wanted, wanted) {
        Verdict::Allow => Ok(()),
        Verdict::Refuse(reason) | Verdict::Queue(reason) => Err(StoreError::Refused(reason)),
    }
}

/// Whether every value of an edit is one that can be.
///
/// # Errors
/// `Refused` with the first that cannot.
pub(crate) fn check_values(new: &NodeEdit) -> Result<(), StoreError> {
    if let Some(hostname) = &new.hostname {
        check_hostname(hostname)?;
    }
    if let Some(key) = new.tags.keys().find(|key| key.is_empty() || key.len() > 120) {
        return refused(format!("`{key}` is no name for a tag: use 1 to 120 bytes"));
    }
    let tags = new.tags.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)));
    let texts =
        [("address", new.address.as_deref()), ("notes", new.notes.as_deref()), ("why", Some(&*new.why))];
    for (what, text) in tags.chain(texts.iter().filter_map(|(what, text)| Some((*what, (*text)?)))) {
        check_text(what, text)?;
    }
    if new.tags.len() > MAX_TAGS {
        return refused(format!("at most {MAX_TAGS} tags are changed at once"));
    }
    Ok(())
}

/// At central: makes a machine that somebody at a site wants to adopt a node that is at home there.
///
/// # Errors
/// `Refused` when it is at home elsewhere, or gone for good.
pub(crate) fn adopt_for(tx: &mut Tx<'_>, mac: MacAddr, site: SiteId) -> Result<NodeId, StoreError> {
    let known = match tx.view().node_by_mac(mac)? {
        Some(row) => Some(row),
        None => tx.view().node(NodeId::of(mac))?,
    };
    let Some(row) = known else { return create(tx, mac, site, "") };
    if row.wanted == Wanted::Retired {
        return refused(format!("machine {mac} is node {}, which is retired", row.id));
    }
    match row.home {
        Some(home) if home == site => Ok(row.id),
        Some(home) => refused(format!("machine {mac} is node {}, at home at site {home}", row.id)),
        None => {
            give_home(tx, row.id, site, "adopted there")?;
            Ok(row.id)
        }
    }
}

fn give_home(tx: &mut Tx<'_>, id: NodeId, home: SiteId, why: &str) -> Result<(), StoreError> {
    tx.write(node::KIND, id.into(), |edit| {
        edit.set(&node::home(), &Home { home_site: Some(home), home_epoch: 1, claim: None }, why);
    })?;
    tx.journal_for(home, register_set(node::KIND, id, "home", home))?;
    // What is contested of it is settled as its home has it.
    conflict::settle(tx, node::KIND, id.into())
}

/// At central: gives a node that was adopted while it had no home a home: of two sites the one that adopted it earlier, by
/// a time that central has reached; the other one claims it. In recovery it waits: the home that the node has may still come back.
pub(crate) fn settle_home(tx: &mut Tx<'_>, id: NodeId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || !tx.view().is_homeless(id)? || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let Some(row) = tx.view().node(id)? else { return Ok(()) };
    let None = row.home else { return Ok(()) };
    let now = Hlc::at(tx.now());
    let first = tx.with_document(node::KIND, id.into(), |document| {
        let seen = row.observed_by.iter().filter_map(|site| {
            let at = contested::read(document, &node::observed(*site)).newest()?.written.at;
            Some((at.min(now), *site))
        });
        seen.min().map(|(_, site)| site)
    })?;
    let Some(home) = first.flatten() else { return Ok(()) };
    give_home(tx, id, home, "adopted there")
}

pub(super) fn check_hostname(hostname: &str) -> Result<(), StoreError> {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if hostname.is_empty() || (hostname.len() <= 253 && hostname.split('.').all(label)) {
        Ok(())
    } else {
        refused(format!("`{hostname}` is no host name (RFC 1123 §2.1)"))
    }
}

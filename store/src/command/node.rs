//! Nodes: registering one by its MAC address, editing what people decide about it.

use std::collections::BTreeMap;

use sync::{
    document::node::{self, Evidence, Home, Tag, Text, Wish},
    id::{MacAddr, NodeId, Origin, SiteId},
    journal::Event,
    policy::{Action, Verdict, Wanted, lifecycle},
};

use super::{check_text, demand, home_elsewhere, refused, register_set, unknown};
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
    /// Why, for the journal and the other side.
    #[serde(default)]
    pub why: String,
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
    may_edit(tx, &row, new)?;
    if let Some(hostname) = &new.hostname {
        check_hostname(hostname)?;
    }
    if let Some(wanted) = new.wanted
        && let Verdict::Refuse(reason) | Verdict::Queue(reason) = lifecycle::wanted_step(row.wanted, wanted)
    {
        return Err(StoreError::Refused(reason));
    }
    if let Some(key) = new.tags.keys().find(|key| key.is_empty() || key.len() > 128) {
        return refused(format!("`{key}` is no name for a tag: use 1 to 128 bytes"));
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
    tx.view().node(id)?.ok_or_else(|| unknown("node", id))
}

/// At a site: whether the machine is its to decide about, and as much as that.
fn may_edit(tx: &Tx<'_>, row: &NodeRow, new: &NodeEdit) -> Result<(), StoreError> {
    if let Some(home) = home_elsewhere(tx, row.id)? {
        return refused(format!(
            "node {} is at home at site {home}, and people decide about it there",
            row.id
        ));
    }
    let NodeEdit { hostname, address, notes, tags, wanted, why: _ } = new;
    if hostname.is_some() || address.is_some() || notes.is_some() || !tags.is_empty() {
        demand(tx, Action::EditNodeDetails)?;
    }
    let Some(wanted) = wanted else { return Ok(()) };
    if tx.origin() != Origin::Central && row.wanted == Wanted::Retired && *wanted != Wanted::Retired {
        return refused(format!("node {} is retired, and only central takes that back", row.id));
    }
    demand(tx, Action::SetWanted)
}

/// At central: gives a node that one site adopted while it had no home that home. Two adoptions are left
/// for the review of claims. In recovery it waits: the home that the node has may still come back.
pub(crate) fn settle_home(tx: &mut Tx<'_>, id: NodeId) -> Result<(), StoreError> {
    if tx.origin() != Origin::Central || !tx.view().is_homeless(id)? || tx.view().suspended()?.is_some() {
        return Ok(());
    }
    let Some(row) = tx.view().node(id)? else { return Ok(()) };
    let (None, [only]) = (row.home, row.observed_by.as_slice()) else { return Ok(()) };
    let home = *only;
    tx.write(node::KIND, id.into(), |edit| {
        edit.set(&node::home(), &Home { home_site: Some(home), home_epoch: 1, claim: None }, "adopted there");
    })?;
    tx.journal_for(home, register_set(node::KIND, id, "home", home))
}

fn check_hostname(hostname: &str) -> Result<(), StoreError> {
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

//! A machine that boots: evidence, facts, wishes, intents and where it belongs, each its own register.

use std::collections::BTreeMap;

use super::register::value;
use super::{
    Document, Kind, Register,
    contested::{Disputed, Registers},
};
use crate::{
    blob::Digest,
    id::{GroupId, MacAddr, NodeId, Nonce, SiteId, TaskId, WorkflowId},
    policy::{NodeState, Wanted},
    time::Timestamp,
};

value! {
    /// What hardware or firmware says of itself; placeholders of vendors are not recorded.
    pub struct Evidence {
        /// As reported, never cut.
        pub value: String,
    }
}

value! {
    /// Summary of the newest hardware report.
    pub struct Hardware {
        /// The whole report as a blob.
        pub report: Option<Digest>,
        /// Logical processors.
        pub cpus: Option<u64>,
        /// Main memory.
        pub memory_bytes: Option<u64>,
        /// Size in bytes by device name.
        pub disks: BTreeMap<String, u64>,
        /// MAC address by interface name.
        pub nics: BTreeMap<String, String>,
    }
}

value! {
    /// That a site saw the machine.
    pub struct Observed {
        /// First boot seen at the site.
        pub first_seen: Timestamp,
        /// Times the site asked again after a claim had ended.
        pub asked_again: Option<u64>,
    }
}

value! {
    /// What is true of the machine.
    pub struct State {
        /// The fact.
        pub state: NodeState,
        /// What made it so, for people.
        pub cause: String,
        /// Task of the attempt.
        pub task: Option<TaskId>,
        /// Number of the attempt within the task, from 1.
        pub attempt: Option<u64>,
        /// What went wrong.
        pub error: Option<String>,
        /// Changes with every consumed order: an order based on another value is stale.
        pub install_nonce: Option<Nonce>,
    }
}

value! {
    /// What is wanted of the machine.
    pub struct Wish {
        /// The wish.
        pub wanted: Wanted,
    }
}

value! {
    /// Hostname, address or notes.
    pub struct Text {
        /// The text; empty takes it away.
        pub value: String,
    }
}

value! {
    /// The group that the node belongs to logically.
    pub struct GroupRef {
        /// The group, or none.
        pub group: Option<GroupId>,
    }
}

value! {
    /// What the node is meant to run.
    pub struct WorkflowRef {
        /// The workflow, or none.
        pub workflow: Option<WorkflowId>,
    }
}

value! {
    /// One tag.
    pub struct Tag {
        /// Its value; absent when removed.
        pub value: Option<String>,
        /// Whether the tag was taken away.
        pub removed: Option<bool>,
    }
}

value! {
    /// The site that the node belongs to.
    pub struct Home {
        /// The site, or none.
        pub home_site: Option<SiteId>,
        /// Grows with every move.
        pub home_epoch: u64,
        /// Claim that moved it.
        pub claim: Option<String>,
    }
}

value! {
    /// That this document describes another interface of a machine which has a document already.
    pub struct Alias {
        /// The machine's document, or none when they turned out to be different machines.
        pub node: Option<NodeId>,
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Node;

/// Register of the facts.
pub fn state() -> Register<State> {
    Register::at_root("state")
}

/// Register of what is wanted.
pub fn wanted() -> Register<Wish> {
    Register::at_root("wanted")
}

/// Register of the hostname.
pub fn hostname() -> Register<Text> {
    Register::at_root("hostname")
}

/// Register of the address.
pub fn address() -> Register<Text> {
    Register::at_root("address")
}

/// Register of the notes.
pub fn notes() -> Register<Text> {
    Register::at_root("notes")
}

/// Register of the group.
pub fn group() -> Register<GroupRef> {
    Register::at_root("group")
}

/// Register of the workflow.
pub fn workflow() -> Register<WorkflowRef> {
    Register::at_root("workflow")
}

/// Register of one tag.
pub fn tag(key: &str) -> Register<Tag> {
    Register::within("tags", key)
}

/// Register of the home.
pub fn home() -> Register<Home> {
    Register::at_root("home")
}

/// Register of the machine that this one is another interface of.
pub fn alias() -> Register<Alias> {
    Register::at_root("alias_of")
}

/// Register of the hardware summary.
pub fn hardware() -> Register<Hardware> {
    Register::at_root("hardware")
}

/// Register of one MAC address of the machine.
pub fn mac(mac: MacAddr) -> Register<Evidence> {
    Register::within("macs", mac.to_string())
}

/// Register of what `site` saw.
pub fn observed(site: SiteId) -> Register<Observed> {
    Register::within("observed", site.to_string())
}

/// Registers of single pieces of evidence, by name.
pub fn evidence(name: &'static str) -> Register<Evidence> {
    debug_assert!(EVIDENCE.contains(&name), "{name} is a piece of evidence");
    Register::at_root(name)
}

/// Names that [`evidence`] takes.
pub const EVIDENCE: [&str; 6] = ["serial", "system_uuid", "vendor", "model", "arch", "firmware"];

/// What is in force in a node document, the same on every replica with equal heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Home site, if it has one.
    pub home: Option<SiteId>,
    /// Number of moves.
    pub home_epoch: u64,
    /// Facts; nothing while nobody wrote any.
    pub state: Option<State>,
    /// Wish: the least destructive side while contested.
    pub wanted: Wanted,
    /// Hostname, empty if none.
    pub hostname: String,
    /// Address, empty if none.
    pub address: String,
    /// Notes, empty if none.
    pub notes: String,
    /// Group that it belongs to, if any.
    pub group: Option<GroupId>,
    /// Workflow, if any.
    pub workflow: Option<WorkflowId>,
    /// Tags that are set.
    pub tags: BTreeMap<String, String>,
    /// MAC addresses known to be the machine's.
    pub macs: Vec<MacAddr>,
    /// Paths of contested registers, sorted.
    pub contested: Vec<String>,
}

impl InForce {
    /// Reads what is in force.
    pub fn of(document: &Document) -> Self {
        Self::among(&Registers::of(document))
    }

    /// The same, where the registers were walked already.
    pub fn among(registers: &Registers<'_>) -> Self {
        let home = registers.read(&home());
        let at_home = home.newest().and_then(|side| side.value.home_site);
        let text = |register: &Register<Text>| {
            let read = registers.read(register);
            read.agreed(at_home).map(|side| side.value.value.clone()).unwrap_or_default()
        };
        let tags = registers.keys("tags").filter_map(|key| {
            let read = registers.read(&tag(key));
            Some((key.to_string(), read.agreed(at_home)?.value.value.clone()?))
        });
        let wanted = registers.read(&wanted());
        InForce {
            home: at_home,
            home_epoch: home.newest().map_or(0, |side| side.value.home_epoch),
            state: registers.read(&state()).of_home(at_home).map(|side| side.value.clone()),
            wanted: wanted.least_by(|wish| wish.wanted).map_or(Wanted::Keep, |side| side.value.wanted),
            hostname: text(&hostname()),
            address: text(&address()),
            notes: text(&notes()),
            group: registers.read(&group()).agreed(at_home).and_then(|side| side.value.group),
            workflow: registers.read(&workflow()).agreed(at_home).and_then(|side| side.value.workflow),
            tags: tags.collect(),
            macs: registers.keys("macs").filter_map(|mac| mac.parse().ok()).collect(),
            contested: registers.disputed().iter().map(Disputed::path).collect(),
        }
    }
}

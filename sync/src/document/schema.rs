//! Which kinds of documents there are, which registers each has, and who writes them.
//!
//! The tables are the only source: ingress checks a peer's keys and values against them, and the typed
//! registers of `node`, `site`, … name their entries.

use super::{FieldError, Fields, Value, claim, group, node, proposal, site, task, workflow};
use crate::policy::words;

words! {
    /// Kind of a replicated document.
    pub enum Kind {
        /// A site: identity, own settings, effective settings.
        Site = "site",
        /// A part of the fleet whose settings descend.
        Group = "group",
        /// A machine that boots.
        Node = "node",
        /// What is booted and installed.
        Workflow = "workflow",
        /// A provisioning order for one node at one site.
        Task = "task",
        /// What a site may not do itself and asks central for.
        Proposal = "proposal",
        /// A wish that a machine be at home at another site.
        Claim = "claim",
    }
}

impl Kind {
    /// Number of the kind in frames and databases. Numbers are never used again.
    pub const fn number(self) -> u8 {
        match self {
            Kind::Site => 1,
            Kind::Group => 2,
            Kind::Node => 3,
            Kind::Workflow => 4,
            Kind::Task => 5,
            Kind::Proposal => 6,
            Kind::Claim => 7,
        }
    }

    /// Finds the kind of a number; unknown ones are a newer program's.
    pub fn from_number(number: u8) -> Option<Self> {
        Kind::ALL.iter().copied().find(|kind| kind.number() == number)
    }

    /// What a document of the kind consists of.
    pub const fn schema(self) -> &'static KindSchema {
        match self {
            Kind::Site => &SITE,
            Kind::Group => &GROUP,
            Kind::Node => &NODE,
            Kind::Workflow => &WORKFLOW,
            Kind::Task => &TASK,
            Kind::Proposal => &PROPOSAL,
            Kind::Claim => &CLAIM,
        }
    }
}

/// What a register means, which decides who wins where two writers meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Reported by hardware: the newest wins and nobody is asked.
    Evidence,
    /// A fact seen by a site.
    Observed,
    /// A decision of people or rules.
    Decision,
    /// An intention, register by register.
    Intent,
    /// Where something belongs; central alone writes it.
    Placement,
    /// Written once.
    Immutable,
}

/// Who may write a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Writers {
    /// Central alone.
    Central,
    /// Central, and the site as far as its autonomy permits.
    CentralAndSite,
    /// The site that sees the machine or runs the task.
    Site,
    /// Each site its own key of a container.
    OwnKey,
    /// Each site its own key of a container as far as its autonomy permits, and central any key for the people of that
    /// site.
    CentralAndOwnKey,
}

/// One register, or all entries of a container.
#[derive(Debug)]
pub struct RegisterSchema {
    /// Key at the root, or of the container.
    pub key: &'static str,
    /// What it means.
    pub class: Class,
    /// Who writes it.
    pub writers: Writers,
    /// Reads a value, so that nothing unreadable is let in.
    pub check: fn(&Fields) -> Result<(), FieldError>,
    /// The fields of the value alone, as this program would write them.
    pub typed: fn(&Fields) -> Result<Fields, FieldError>,
}

/// All registers of a kind.
#[derive(Debug)]
pub struct KindSchema {
    /// Registers at the root.
    pub registers: &'static [RegisterSchema],
    /// Maps made by the genesis, whose every entry is such a register. Their order is frozen.
    pub containers: &'static [RegisterSchema],
}

impl KindSchema {
    /// Finds the register at the root.
    pub fn register(&self, key: &str) -> Option<&'static RegisterSchema> {
        self.registers.iter().find(|register| register.key == key)
    }

    /// Finds the container.
    pub fn container(&self, key: &str) -> Option<&'static RegisterSchema> {
        self.containers.iter().find(|container| container.key == key)
    }
}

const fn register<V: Value>(key: &'static str, class: Class, writers: Writers) -> RegisterSchema {
    RegisterSchema {
        key,
        class,
        writers,
        check: |fields| V::from_fields(fields).map(drop),
        typed: |fields| V::from_fields(fields).map(|value| value.to_fields()),
    }
}

static SITE: KindSchema = KindSchema {
    registers: &[
        register::<site::Identity>("identity", Class::Decision, Writers::Central),
        register::<site::Membership>("group", Class::Placement, Writers::Central),
        register::<site::Effective>("effective", Class::Decision, Writers::Central),
        register::<site::Resumed>("resumed", Class::Decision, Writers::Central),
        register::<site::DirectoryDomain>("directory_domain", Class::Decision, Writers::Central),
        register::<site::Local>("local", Class::Decision, Writers::CentralAndSite),
    ],
    containers: &[register::<site::Setting>("settings", Class::Decision, Writers::Central)],
};

static GROUP: KindSchema = KindSchema {
    registers: &[
        register::<group::Identity>("identity", Class::Decision, Writers::Central),
        register::<group::Parent>("parent", Class::Placement, Writers::Central),
    ],
    containers: &[register::<site::Setting>("settings", Class::Decision, Writers::Central)],
};

static NODE: KindSchema = KindSchema {
    registers: &[
        register::<node::Evidence>("serial", Class::Evidence, Writers::Site),
        register::<node::Evidence>("system_uuid", Class::Evidence, Writers::Site),
        register::<node::Evidence>("vendor", Class::Evidence, Writers::Site),
        register::<node::Evidence>("model", Class::Evidence, Writers::Site),
        register::<node::Evidence>("arch", Class::Evidence, Writers::Site),
        register::<node::Evidence>("firmware", Class::Evidence, Writers::Site),
        register::<node::Hardware>("hardware", Class::Evidence, Writers::Site),
        register::<node::State>("state", Class::Observed, Writers::Site),
        register::<node::Wish>("wanted", Class::Decision, Writers::CentralAndSite),
        register::<node::Text>("hostname", Class::Intent, Writers::CentralAndSite),
        register::<node::GroupRef>("group", Class::Intent, Writers::CentralAndSite),
        register::<node::WorkflowRef>("workflow", Class::Intent, Writers::CentralAndSite),
        register::<node::Text>("address", Class::Intent, Writers::CentralAndSite),
        register::<node::Text>("notes", Class::Intent, Writers::CentralAndSite),
        register::<node::Home>("home", Class::Placement, Writers::Central),
        register::<node::Alias>("alias_of", Class::Placement, Writers::Central),
    ],
    containers: &[
        register::<node::Evidence>("macs", Class::Evidence, Writers::Site),
        register::<node::Observed>("observed", Class::Evidence, Writers::OwnKey),
        register::<node::Tag>("tags", Class::Intent, Writers::CentralAndSite),
    ],
};

static WORKFLOW: KindSchema = KindSchema {
    registers: &[register::<workflow::Identity>("identity", Class::Decision, Writers::CentralAndSite)],
    containers: &[register::<workflow::Version>("versions", Class::Immutable, Writers::CentralAndSite)],
};

static TASK: KindSchema = KindSchema {
    registers: &[
        register::<task::Spec>("spec", Class::Immutable, Writers::CentralAndSite),
        register::<task::State>("state", Class::Observed, Writers::Site),
        register::<task::Approval>("approval", Class::Decision, Writers::CentralAndSite),
        register::<task::OrderRegister>("order", Class::Decision, Writers::CentralAndSite),
        register::<task::Consumed>("consumed", Class::Observed, Writers::Site),
        register::<task::Cancel>("cancel", Class::Decision, Writers::CentralAndSite),
        register::<task::Abort>("abort", Class::Decision, Writers::CentralAndSite),
        register::<task::Outcome>("result", Class::Observed, Writers::Site),
    ],
    containers: &[],
};

static PROPOSAL: KindSchema = KindSchema {
    registers: &[
        register::<proposal::Wish>("wish", Class::Immutable, Writers::Site),
        register::<proposal::Outcome>("outcome", Class::Decision, Writers::Central),
    ],
    containers: &[register::<proposal::Argument>("arguments", Class::Immutable, Writers::Site)],
};

static CLAIM: KindSchema = KindSchema {
    registers: &[
        register::<claim::Opened>("opened", Class::Immutable, Writers::CentralAndSite),
        register::<claim::Evidence>("evidence", Class::Evidence, Writers::Site),
        register::<claim::Asked>("asked", Class::Evidence, Writers::Site),
        register::<claim::SeenAtHome>("seen_at_home", Class::Evidence, Writers::Site),
        register::<claim::Decision>("decision", Class::Decision, Writers::Central),
        register::<claim::Fence>("fence", Class::Decision, Writers::Central),
    ],
    containers: &[register::<claim::Consent>("consent", Class::Decision, Writers::CentralAndOwnKey)],
};

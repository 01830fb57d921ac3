//! What a site knows of a machine that asks, as plain values.
//!
//! Whoever fills a [`View`] reads one consistent snapshot; nothing in here can be asked for more.

use sync::{
    blob::Digest,
    document::site::UnknownMachines,
    id::{ClaimId, MacAddr, NodeId, SiteId, TaskId},
    policy::{Autonomy, ClaimState, LinkState, Liveness, NodeState, PendingBoot, TaskState, Wanted},
    time::Timestamp,
};

/// Everything that an answer rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The interface that asks.
    pub mac: MacAddr,
    /// The site that answers.
    pub site: Site,
    /// The machine, if it is a node; what is left is unknown.
    pub machine: Option<Machine>,
    /// How central was asked to adopt the machine, if it was.
    pub adoption: Option<Adoption>,
    /// The answer before this one, if there was any.
    pub before: Option<Before>,
}

/// What became of the proposal to adopt a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adoption {
    /// Central has not answered.
    Asked,
    /// Central did not adopt it, and why.
    Refused(String),
}

/// The site, with the settings that it follows now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The site.
    pub id: SiteId,
    /// Its name; empty before central said it.
    pub name: String,
    /// How much it may decide by itself.
    pub autonomy: Autonomy,
    /// What an unknown machine is given.
    pub unknown_machines: UnknownMachines,
    /// Whether boot requests are answered at all.
    pub pxe_enabled: bool,
    /// What a machine is given that is at home elsewhere, until its claim is decided.
    pub pending_boot: PendingBoot,
    /// How the link to central is judged.
    pub link: LinkState,
    /// When central was last heard, by central's clock; never in the life of this replica: none.
    pub data_as_of: Option<Timestamp>,
}

/// A machine that is a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The node.
    pub node: NodeId,
    /// Where it belongs.
    pub home: Home,
    /// What it is known to be.
    pub state: NodeState,
    /// What is wanted of it, in force.
    pub wanted: Wanted,
    /// What went wrong in its last attempt.
    pub error: Option<String>,
    /// Its task at this site that has not ended.
    pub task: Option<Task>,
}

/// Where a machine belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// To this site.
    Here,
    /// To nobody yet: adopted here, and central has not heard of it.
    Nowhere,
    /// To another site, by name where it is known and by id where not; and this site's claim on it.
    Elsewhere(String, Claim),
}

/// What this site has of the wish that a machine be at home here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The claim; opened by the very first boot.
    pub id: ClaimId,
    /// Where it stands; open where nobody opened it yet.
    pub state: ClaimState,
}

/// What is to be done with a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The task.
    pub id: TaskId,
    /// Its current attempt, from 1.
    pub attempt: u64,
    /// Where it stands.
    pub state: TaskState,
    /// What its order is worth for a boot.
    pub order: Liveness,
    /// Network boots in which the attempt was taken up again after its go-ahead.
    pub boots: u64,
    /// Its boot files.
    pub files: Files,
}

/// The boot files of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Files {
    /// All are here and verified.
    Here(BootFiles),
    /// Some are not here yet.
    Missing {
        /// Bytes that are here, of all files together.
        have: u64,
        /// Bytes of all files together, as far as their sizes are known.
        of: u64,
    },
    /// The workflow, or this version of it, has not been heard of here.
    Unknown,
}

/// What a workflow boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: Digest,
    /// The initramfs.
    pub initrd: Digest,
    /// The image that is written to disk, if the workflow has one.
    pub image: Option<Digest>,
    /// Added to the kernel command line, as a person wrote it.
    pub kernel_args: String,
}

/// An answer that was given before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// The answer, in the words of [`super::decide::Answer`].
    pub answer: String,
    /// Its reason.
    pub reason: String,
    /// How often in a row.
    pub count: u64,
}

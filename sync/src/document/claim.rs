//! A wish that a machine be at home at another site, because it boots there.
//!
//! The site where it boots opens it, or central from what that site saw; both make one document, whose id follows
//! from what it is about. Each side gives or withholds its consent under its own key. Central alone decides, and keeps
//! the fence: that the former home holds no order any more which could still wipe the disk.
//!
//! A claim has *rounds*: it is opened, ends, and may be asked for again. What sites write names the round that they saw,
//! so that nothing which is late counts for another one.

use std::collections::BTreeMap;

use super::register::value;
use super::{Document, Kind, Register, contested};
use crate::{
    id::{ClaimId, NodeId, Origin, SiteId},
    policy::ClaimState,
    time::Timestamp,
};

value! {
    /// What it is about. Written once.
    pub struct Opened {
        /// The machine.
        pub node: NodeId,
        /// The site where it boots.
        pub to_site: SiteId,
        /// The site where it is at home.
        pub from_site: SiteId,
        /// How often the machine had moved.
        pub home_epoch: u64,
        /// First boot seen there.
        pub first_seen: Timestamp,
    }
}

value! {
    /// What the site where it boots knows of the machine.
    pub struct Evidence {
        /// The interfaces that were seen, by their addresses.
        pub macs: BTreeMap<String, bool>,
        /// Serial number.
        pub serial: Option<String>,
        /// SMBIOS UUID.
        pub system_uuid: Option<String>,
        /// Who made it.
        pub vendor: Option<String>,
        /// What it is called by who made it.
        pub model: Option<String>,
        /// The address that it has there.
        pub address: Option<String>,
    }
}

value! {
    /// That the machine booted there again after the claim had ended.
    pub struct Asked {
        /// The round that had ended.
        pub round: u64,
        /// When.
        pub booted_at: Timestamp,
    }
}

value! {
    /// That the machine booted at home while the site there knew of the claim.
    pub struct SeenAtHome {
        /// The round that was open.
        pub round: u64,
        /// When.
        pub booted_at: Timestamp,
    }
}

value! {
    /// What a person at one of both sites says for his side.
    pub struct Consent {
        /// Yes or no.
        pub consents: bool,
    }
}

value! {
    /// Where the claim stands, by central.
    pub struct Decision {
        /// The state.
        pub state: ClaimState,
        /// Number of the round, from 1.
        pub round: u64,
        /// End of the round, while it is open.
        pub expires_at: Timestamp,
        /// Which policies or consents approve it, or would: `auto_release@lyon`.
        pub policy_matched: Option<String>,
        /// Whether it could be approved without a person at central.
        pub auto_approve_eligible: bool,
        /// Whether it was approved without any person.
        pub automatic: bool,
        /// Whether a person at central rejected it in this round or one before.
        pub was_rejected: bool,
        /// The person at central who decided; `policy` where none did.
        pub decided_by: Option<String>,
        /// Why, or what it waits for.
        pub reason: String,
        /// What people call the site where the machine boots.
        pub to_name: String,
        /// What people call the site where it was at home.
        pub from_name: String,
    }
}

value! {
    /// Whether the former home may still hold an order that wipes the disk, by central, after an approval.
    pub struct Fence {
        /// Whether no order is issued yet.
        pub closed: bool,
        /// When every order that it can hold has expired; none where that does not open the fence.
        pub until: Option<Timestamp>,
        /// What it waits for, or what opened it.
        pub reason: String,
        /// The person who broke it.
        pub broken_by: Option<String>,
    }
}

/// The kind of these documents.
pub const KIND: Kind = Kind::Claim;

/// Register of what it is about.
pub fn opened() -> Register<Opened> {
    Register::at_root("opened")
}

/// Register of what is known of the machine there.
pub fn evidence() -> Register<Evidence> {
    Register::at_root("evidence")
}

/// Register of the wish to decide again.
pub fn asked() -> Register<Asked> {
    Register::at_root("asked")
}

/// Register of a boot at home.
pub fn seen_at_home() -> Register<SeenAtHome> {
    Register::at_root("seen_at_home")
}

/// Register of the consent of one side.
pub fn consent(side: SiteId) -> Register<Consent> {
    Register::within("consent", side.to_string())
}

/// Register of the decision.
pub fn decision() -> Register<Decision> {
    Register::at_root("decision")
}

/// Register of the fence.
pub fn fence() -> Register<Fence> {
    Register::at_root("fence")
}

/// What is in force in a claim, the same on every replica with equal heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    /// What it is about.
    pub opened: Opened,
    /// Who opened it.
    pub opened_by: Origin,
    /// What is known of the machine there.
    pub evidence: Option<Evidence>,
    /// The newest wish to decide again.
    pub asked: Option<Asked>,
    /// The newest boot at home.
    pub seen_at_home: Option<SeenAtHome>,
    /// What a person at the site where it boots said.
    pub to_said: Option<bool>,
    /// What a person at its home said.
    pub from_said: Option<bool>,
    /// The decision; none before central has heard of the claim.
    pub decision: Option<Decision>,
    /// When it was decided.
    pub decided_at: Option<Timestamp>,
    /// The fence, after an approval.
    pub fence: Option<Fence>,
}

impl InForce {
    /// Reads what is in force; nothing where nobody said what it is about, or something that its id denies.
    pub fn of(document: &Document) -> Option<Self> {
        let id = ClaimId::from(document.id());
        let sides = contested::read(document, &opened());
        let fits = |it: &Opened| ClaimId::of(it.node, it.to_site, it.home_epoch) == id;
        let fitting = sides.sides().iter().filter(|side| fits(&side.value));
        // Central knows best where the machine was at home.
        let opened = fitting.max_by_key(|side| (side.written.site == Origin::Central, side.written.at))?;
        let said = |site| {
            let said = contested::read(document, &consent(site));
            said.least_by(|it: &Consent| it.consents).map(|side| side.value.consents)
        };
        let decision = contested::read(document, &decision());
        let decision = decision.newest();
        let newest = |fence: contested::Contested<Fence>| fence.newest().map(|side| side.value.clone());
        let asked = contested::read(document, &asked());
        let home = contested::read(document, &seen_at_home());
        Some(InForce {
            opened_by: opened.written.site,
            evidence: contested::read(document, &evidence()).newest().map(|side| side.value.clone()),
            asked: asked.sides().iter().map(|side| side.value.clone()).max_by_key(|it| it.round),
            seen_at_home: home.sides().iter().map(|side| side.value.clone()).max_by_key(|it| it.round),
            to_said: said(opened.value.to_site),
            from_said: said(opened.value.from_site),
            decision: decision.map(|side| side.value.clone()),
            decided_at: decision.map(|side| side.written.at.timestamp()),
            fence: newest(contested::read(document, &fence())),
            opened: opened.value.clone(),
        })
    }
}

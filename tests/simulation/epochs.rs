//! What central may take from a site: what the site was allowed to decide under some settings that it had adopted by
//! then, or later ones. What a change says of its own epoch counts for nothing here.

use std::collections::{BTreeMap, BTreeSet};

use harness::eye::{Eye, Told};
use sync::{
    document::{Kind, Value, site::Effective},
    id::{Origin, SiteId},
    ingress::{self, Write},
    policy::Autonomy,
};

use crate::checks::{read, violated};

/// What an epoch is for.
pub(crate) const TAKEN: &str = "nothing is taken that a site might not decide";

/// What is known of the settings of sites, as central's documents and the journals of the sites tell.
#[derive(Default)]
pub(crate) struct Epochs {
    /// What each site might decide, by the epoch that central made.
    given: BTreeMap<SiteId, BTreeMap<u64, Autonomy>>,
    /// The newest epoch that the journal of each site says it adopted, as far as central has it.
    adopted: BTreeMap<SiteId, u64>,
    /// Changes that wait at central: they are judged by when they came.
    parked: BTreeSet<[u8; 32]>,
}

impl Epochs {
    /// The journal of a site says that it follows an epoch from here on, and central has the entry.
    pub(crate) fn adopts(&mut self, site: SiteId, epoch: u64) {
        let known = self.adopted.entry(site).or_default();
        *known = epoch.max(*known);
    }

    /// What waits at central now.
    pub(crate) fn note_parked(&mut self, eye: &Eye) {
        self.parked.extend(read(eye.parked_hashes()));
    }

    /// Central has taken over a change, or written it.
    pub(crate) fn takes(&mut self, eye: &Eye, hash: &[u8; 32], name: &dyn Fn(SiteId) -> Option<String>) {
        let Some(Told { source, kind: Some(kind), id, bytes }) = read(eye.change(hash)) else { return };
        // Whatever the settings are, facts are taken, and proposals.
        match kind {
            Kind::Site | Kind::Node | Kind::Task | Kind::Claim => {}
            Kind::Group | Kind::Workflow | Kind::Proposal => return,
        }
        if source.is_none() && kind != Kind::Site {
            return;
        }
        let parsed = ingress::parse(&bytes);
        let Ok(writes) = parsed.and_then(|parsed| ingress::registers(kind, id, &parsed)) else { return };
        if kind == Kind::Site {
            let said = writes.iter().filter(|write| write.path() == "effective");
            for it in said.filter_map(|write| Effective::from_fields(&write.fields).ok()) {
                self.given.entry(id.into()).or_default().insert(it.epoch, it.autonomy);
            }
        }
        let Some(Origin::Site(site)) = source else { return };
        let Some(name) = name(site).filter(|_| !self.parked.contains(hash)) else { return };
        let most = self.most(site);
        if let Some(write) = writes.iter().find(|write| needed(kind, write) > most) {
            let detail = format!(
                "`{}` of {kind} {id} needs `{}`; {name} has adopted epoch {:?}, may since then decide as `{most}`, and \
                 the change names epoch {}",
                write.path(),
                needed(kind, write),
                self.adopted.get(&site),
                write.written.policy_epoch,
            );
            violated(TAKEN, detail);
        }
    }

    /// The most that a site might decide since it adopted what it last said.
    fn most(&self, site: SiteId) -> Autonomy {
        let adopted = self.adopted.get(&site).copied().unwrap_or_default();
        let Some(given) = self.given.get(&site) else { return Autonomy::Full };
        let then = given.range(..=adopted).next_back();
        let since = given.range(adopted..);
        let first = Effective::default().autonomy;
        let most = then.into_iter().chain(since).map(|(_, autonomy)| *autonomy).max().unwrap_or(first);
        // Whoever has adopted nothing follows the defaults.
        if adopted == 0 { most.max(first) } else { most }
    }
}

/// The least autonomy with which a site writes a register: the table of `fixtures/policies/autonomy.txt`, as far as it needs
/// no look at what stands there already.
fn needed(kind: Kind, write: &Write) -> Autonomy {
    match (kind, write.container, write.key.as_str()) {
        (Kind::Node, None, "wanted" | "workflow" | "group")
        | (Kind::Task, None, "spec" | "approval" | "abort")
        | (Kind::Claim, Some("consent"), _)
        | (Kind::Site, None, "local") => Autonomy::Full,
        (Kind::Node, None, "hostname" | "address" | "notes") | (Kind::Node, Some("tags"), _) => {
            Autonomy::Limited
        }
        (_, _, _) => Autonomy::ReadOnly,
    }
}

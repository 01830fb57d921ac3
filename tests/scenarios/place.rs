//! Two sites that know each other's machines, and a machine at home in the first.

use std::{collections::BTreeMap, time::Duration};

use harness::world::World;
use store::{
    StoreError, View,
    command::{
        boot::{self, Answered},
        node::{self},
        report::{self, Report},
        site::{self, SettingsEdit},
        task::{self, NewTask},
        workflow::{self, NewVersion},
    },
    view::{ClaimFilter, ClaimRow, JournalFilter, TaskRow},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    id::{MacAddr, NodeId, Origin, ReportId, SiteId, WorkflowId},
    journal::Event,
    policy::{ClaimState, MigrationPolicy},
};

pub(crate) const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 3, 1]);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn read<T>(
    world: &World,
    origin: Origin,
    read: impl FnOnce(&View<'_>) -> Result<T, StoreError>,
) -> T {
    world.store(origin).read(read).expect("the store reads")
}

/// Two sites that know each other's machines, and a machine at home in the first.
pub(crate) struct Place {
    pub(crate) world: World,
    pub(crate) lyon: SiteId,
    pub(crate) bern: SiteId,
    pub(crate) node: NodeId,
}

impl Place {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let (lyon, bern) = (world.add_site("lyon"), world.add_site("bern"));
        let node = world
            .run(Origin::Central, "ann", move |tx| node::create(tx, MAC, lyon, "pos-1"))
            .expect("a machine of lyon's");
        let mut place = Place { world, lyon, bern, node };
        place.agree();
        place.world.until("bern knows where it belongs", MINUTE * 15, |world| {
            read(world, Origin::Site(bern), |view| view.directory(node)).is_some()
        });
        place
    }

    pub(crate) fn agree(&mut self) {
        let (lyon, bern) = (self.lyon, self.bern);
        self.world.until("all agree", MINUTE * 20, |world| {
            [lyon, bern].into_iter().all(|site| !world.link_is_up(site) || world.in_agreement(site))
        });
    }

    pub(crate) fn set(&mut self, site: SiteId, edit: SettingsEdit) {
        self.world.run(Origin::Central, "ann", move |tx| site::set(tx, site, &edit, "")).unwrap();
    }

    pub(crate) fn policy(&mut self, site: SiteId, policy: MigrationPolicy) {
        self.set(site, SettingsEdit { migration_policy: Some(policy), ..SettingsEdit::default() });
    }

    /// The machine boots at a site, which answers what it knows.
    pub(crate) fn boots(&mut self, site: SiteId) {
        boots(&mut self.world, site, MAC);
    }

    pub(crate) fn home(&self, origin: Origin) -> Option<(Option<SiteId>, u64)> {
        read(&self.world, origin, |view| view.node(self.node)).map(|row| (row.home, row.home_epoch))
    }

    pub(crate) fn claims(&self, origin: Origin) -> Vec<ClaimRow> {
        read(&self.world, origin, |view| view.claims(&ClaimFilter::default()))
    }

    pub(crate) fn states(&self, origin: Origin) -> Vec<ClaimState> {
        self.claims(origin).iter().map(|row| row.state).collect()
    }

    pub(crate) fn reach(&mut self, what: &str, states: &[ClaimState]) -> ClaimRow {
        let wanted = states.to_vec();
        self.world.until(what, MINUTE * 20, |world| {
            let rows = read(world, Origin::Central, |view| view.claims(&ClaimFilter::default()));
            rows.iter().map(|row| row.state).eq(wanted.iter().copied())
        });
        self.claims(Origin::Central).pop().expect("there is a claim")
    }

    pub(crate) fn fenced(&self) -> Option<String> {
        read(&self.world, Origin::Central, |view| view.fence_closed(self.node))
    }

    pub(crate) fn order(&mut self, workflow: WorkflowId) -> Result<TaskRow, StoreError> {
        order_at(&mut self.world, Origin::Central, self.node, workflow)
    }

    pub(crate) fn go_ahead(&mut self, site: SiteId, task: &TaskRow) -> String {
        let (node, about, report) = (self.node, (task.id, 1), ReportId(self.world.random.bytes()));
        let answer = self.world.run(Origin::Site(site), "machine", move |tx| {
            report::event(tx, site, report, node, about, &Report::GoAhead)
        });
        answer.map_or_else(|error| error.to_string(), |answer| format!("{} {}", answer.status, answer.body))
    }
}

pub(crate) fn boots(world: &mut World, site: SiteId, mac: MacAddr) {
    let origin = Origin::Site(site);
    let (known, away) = read(world, origin, |view| Ok((view.node_by_mac(mac)?, view.away(mac, site)?)));
    let answered = Answered {
        mac,
        answer: "hold page".into(),
        reason: "it boots".into(),
        adopt: known.is_none() && away.is_none(),
        booting: None,
        local_disk: false,
        claims: away.is_some(),
    };
    world.run(origin, "boot", move |tx| boot::answered(tx, &answered)).expect("it is noted");
}

pub(crate) fn publish(world: &mut World) -> WorkflowId {
    let identity = Identity {
        name: "debian-12".into(),
        os_family: "debian".into(),
        arch: "x86_64".into(),
        boot_method: "kernel".into(),
    };
    let files = ["kernel", "initrd"]
        .map(|role| (role.to_string(), (Digest::of(role.as_bytes()), role.len() as u64)))
        .into();
    let version = NewVersion { files, kernel_args: "console=ttyS0".into(), needs_approval: false };
    world.run(Origin::Central, "ann", move |tx| workflow::create(tx, &identity, &version)).unwrap().id
}

pub(crate) fn order_at(
    world: &mut World,
    origin: Origin,
    node: NodeId,
    workflow: WorkflowId,
) -> Result<TaskRow, StoreError> {
    let new = NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
    world.run(origin, "ann", move |tx| task::create(tx, &new))
}

/// What a site recorded, or was told by central for its journal.
pub(crate) fn events(world: &World, origin: Origin) -> Vec<Event> {
    let rows = read(world, origin, |view| view.journal(&JournalFilter::default()));
    rows.into_iter().filter_map(|row| row.event).collect()
}

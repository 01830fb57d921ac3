//! What the tests of several rooms need: a site without its services, and orders for it.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, atomic::AtomicU64},
};

use bytes::Bytes;
use store::{
    Store,
    command::{node, task, workflow},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    engine::{Connection, Input, Output},
    id::{MacAddr, SiteId, TaskId},
};
use tokio::sync::watch;

use crate::{
    agent::Agent,
    boot::{loader::BootServer, script},
    cache::Content,
    event_loop::Edge,
    link::Link,
    tftp::loaders::Loaders,
};

pub(crate) const SECRET: [u8; 32] = [9; 32];
pub(crate) const ADMIN: &str = "an-admin-token-for-tests";

/// A site over `store`, which must be a site's, with one loader.
pub(crate) fn agent(store: Store, edge: Edge, http_port: u16) -> Arc<Agent> {
    let mut loaders = Loaders::default();
    loaders.insert("snponly.efi", Bytes::from_static(b"efi program"));
    Arc::new(Agent {
        site: store.origin().site().expect("the replica of a site"),
        central: "central:7443".into(),
        store,
        edge,
        server: script::Server {
            boot: BootServer { address: Ipv4Addr::LOCALHOST, http_port },
            patience: script::Patience::default(),
        },
        loaders,
        site_secret: SECRET,
        admin_token: ADMIN.into(),
        link: watch::Sender::new(Link::default()),
        content: watch::Sender::new(Content::default()),
        certificate: watch::Sender::new(None),
        summons: watch::Sender::default(),
        changes: watch::Sender::new(0),
        boots_seen: AtomicU64::new(0),
    })
}

/// Brings each replica what the other has for it.
pub(crate) fn replicate(central: &Store, site: &Store, edge: Edge) {
    for (from, to) in [(central, site), (site, central), (central, site)] {
        let (source, target) = (from.origin(), to.origin());
        loop {
            let pulled = to.read(|view| Ok(view.peer(source)?.pulled)).unwrap();
            let (connection, from_here, max_bytes) = (Connection(1), pulled + 1, 1 << 16);
            let read = Output::Read { connection, peer: target, from: from_here, max_bytes };
            let Some(Input::Read { items, seal, .. }) = from.answer_now(read, edge.given("test")).unwrap()
            else {
                panic!("a replica reads its log");
            };
            if items.is_empty() {
                break;
            }
            let taken = Output::Ingest { connection, peer: source, from: from_here, items, seal };
            to.answer_now(taken, edge.given("test")).unwrap();
        }
    }
}

/// At central: orders that the machine `mac` at home in `home` is installed with these files, by role.
pub(crate) fn order(
    central: &Store,
    edge: Edge,
    home: SiteId,
    mac: MacAddr,
    files: &[(&str, &[u8])],
) -> TaskId {
    let files: BTreeMap<String, (Digest, u64)> = files
        .iter()
        .map(|(role, bytes)| ((*role).to_owned(), (Digest::of(bytes), bytes.len() as u64)))
        .collect();
    let ordered = central.run(edge.given("test"), move |tx| {
        let identity = Identity {
            name: "debian".into(),
            os_family: "debian".into(),
            arch: "x86_64".into(),
            boot_method: "kernel".into(),
        };
        let version =
            workflow::NewVersion { files, kernel_args: "console=ttyS0".into(), needs_approval: false };
        let workflow = workflow::create(tx, &identity, &version)?.id;
        let node = node::create(tx, mac, home, "m1")?;
        let (parameters, tags) = (BTreeMap::new(), BTreeMap::new());
        Ok(task::create(tx, &task::NewTask { node, workflow, version: None, parameters, tags })?.id)
    });
    ordered.unwrap()
}

//! Makes the dictionary that frames are packed with, from what a simulated central and site tell each other.
//!
//! `cargo bench -p tests --bench dictionary` writes `sync/src/wire/dictionary.bin` anew and prints how much it
//! saves. A new dictionary is a new format of frames: programs in the field do not have it.

use std::{collections::BTreeMap, path::Path, time::Duration};

use harness::world::{Ending, World};
use store::command::{
    boot::{self, Answered},
    node::{self, NodeEdit},
    report::{self, Registration, Report},
    task::{self, NewTask},
    workflow::{self, NewVersion},
};
use sync::{
    blob::Digest,
    document::workflow::Identity,
    engine::{Connection, Input, Output, pack},
    id::{MacAddr, NodeId, Origin, ReportId, SiteId},
    wire::{Item, Message, frame},
};

const BYTES: usize = 16 << 10;

fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        return;
    }
    let samples = samples();
    let dictionary = zstd::dict::from_samples(&samples, BYTES).expect("zstd trains a dictionary");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sync/src/wire/dictionary.bin");
    let mut pack = zstd::bulk::Compressor::with_dictionary(3, &dictionary).expect("a context");
    let plain: usize = samples.iter().map(Vec::len).sum();
    let packed: usize = samples.iter().map(|it| pack.compress(it).map_or(it.len(), |it| it.len())).sum();
    println!("{} frames, {plain} bytes plain, {packed} bytes packed", samples.len());
    if std::env::args().any(|argument| argument == "--write") {
        std::fs::write(&path, &dictionary).expect("the dictionary is written");
        println!("{} bytes written", dictionary.len());
    }
}

/// Frames of few and of many items, as sites and central send them.
fn samples() -> Vec<Vec<u8>> {
    let mut world = World::new(1);
    let lyon = world.add_site("lyon");
    let mut samples = Vec::new();
    let workflow = {
        let identity = Identity {
            name: "debian-13".into(),
            os_family: "debian".into(),
            arch: "x86_64".into(),
            boot_method: "kernel".into(),
        };
        let files = ["kernel", "initrd", "image"]
            .map(|role| (role.to_string(), (Digest::of(role.as_bytes()), 1 << 20)))
            .into();
        let version = NewVersion { files, kernel_args: "console=ttyS0".into(), needs_approval: false };
        world.run(Origin::Central, "admin", move |tx| workflow::create(tx, &identity, &version)).unwrap().id
    };
    for number in 0..120_u8 {
        let mac = MacAddr([0x52, 0x54, 0, 0, 7, number]);
        let name = format!("pos-{number}");
        let node = world.run(Origin::Central, "admin", move |tx| node::create(tx, mac, lyon, &name)).unwrap();
        if number % 2 == 0 {
            let new =
                NewTask { node, workflow, version: None, parameters: BTreeMap::new(), tags: BTreeMap::new() };
            world.run(Origin::Central, "admin", move |tx| task::create(tx, &new)).unwrap();
        }
        if number % 3 == 0 {
            let edit = NodeEdit {
                hostname: Some(format!("till-{number}")),
                tags: BTreeMap::from([("rack".to_string(), Some(format!("r{number}")))]),
                ..NodeEdit::default()
            };
            world.run(Origin::Central, "admin", move |tx| node::edit(tx, node, &edit)).unwrap();
        }
    }
    // What is not acknowledged yet is in the log.
    collect(&world, Origin::Central, Origin::Site(lyon), &mut samples);
    world.until("both agree", Duration::from_secs(600), |world| world.in_agreement(lyon));
    world.set_link(lyon, false);
    world.run(Origin::Site(lyon), "cache", move |tx| task::mark_ready(tx, lyon, |_| true)).unwrap();
    for number in 0..120_u8 {
        live(&mut world, lyon, MacAddr([0x52, 0x54, 0, 0, 7, number]), number % 2 == 0);
        live(&mut world, lyon, MacAddr([0x52, 0x54, 0, 0, 8, number]), false);
    }
    collect(&world, Origin::Site(lyon), Origin::Central, &mut samples);
    world.set_link(lyon, true);
    world.until("both agree", Duration::from_secs(600), |world| world.in_agreement(lyon));
    // The site's disk is replaced: everything is told once more, also what the site wrote itself.
    world.end(Origin::Site(lyon), Ending::Stopped);
    std::fs::remove_dir_all(world.path(Origin::Site(lyon))).expect("the old disk goes");
    world.start(Origin::Site(lyon));
    world.comes_to(Duration::from_secs(600), |world| {
        let peer = world.store(Origin::Central).read(|view| view.peer(Origin::Site(lyon))).unwrap();
        peer.acknowledged == 0 && peer.end > 0
    });
    collect(&world, Origin::Central, Origin::Site(lyon), &mut samples);
    samples
}

/// A machine boots, and is installed if it is to be.
fn live(world: &mut World, lyon: SiteId, mac: MacAddr, installs: bool) {
    let site = Origin::Site(lyon);
    let open = world.store(site).read(|view| view.open_task(NodeId::of(mac), Some(lyon))).unwrap();
    let answered = Answered {
        mac,
        answer: if installs { "workflow".into() } else { "local disk".into() },
        reason: "nothing is ordered for this machine".into(),
        adopt: true,
        booting: open.as_ref().map(|task| task.id),
        local_disk: !installs,
        claims: false,
    };
    world.run(site, "boot", move |tx| boot::answered(tx, &answered)).unwrap();
    let (Some(task), true) = (open, installs) else { return };
    let registration = Registration {
        evidence: [("serial", "SN-4711"), ("vendor", "QEMU"), ("arch", "x86_64")]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into(),
        cpus: Some(4),
        memory_bytes: Some(8 << 30),
        disks: BTreeMap::from([("vda".to_string(), 64 << 30)]),
        nics: BTreeMap::from([("eth0".to_string(), mac.to_string())]),
    };
    let id = ReportId(world.random.bytes());
    world.run(site, "machine", move |tx| report::register(tx, id, mac, false, &registration)).unwrap();
    for it in [Report::GoAhead, Report::InstallStarted, Report::Progress(50), Report::InstallComplete] {
        let (id, node) = (ReportId(world.random.bytes()), task.node);
        let about = (task.id, 1);
        world.run(site, "machine", move |tx| report::event(tx, lyon, id, node, about, &it)).unwrap();
    }
}

/// The log of one replica for another as it is on the wire, in frames of few and of many items; and whole
/// documents, whether or not that is shorter with the dictionary of today.
fn collect(world: &World, from: Origin, peer: Origin, samples: &mut Vec<Vec<u8>>) {
    let given = store::Given { now: world.wall(), by: "sync".into(), entropy: [0; 32] };
    let read = Output::Read { connection: Connection(1), peer, from: 1, max_bytes: 64 << 20 };
    let Some(Input::Read { items, .. }) = world.store(from).answer_now(read, given).unwrap() else {
        panic!("a replica reads its log");
    };
    let mut frame = |items: Vec<Vec<u8>>| {
        let message =
            Message::Log { from: 7, items: items.into_iter().map(Into::into).collect(), seal: None };
        samples.push(frame::encode_plain(&message)[1..].to_vec());
    };
    for many in [1, 4, 16] {
        for items in items.chunks(many) {
            frame(pack::pack(items.to_vec(), peer != Origin::Central));
        }
    }
    let mut documents: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
    for bytes in items {
        let item: Item = minicbor::decode(&bytes).expect("an item of our own");
        if let (Some(document), Some(_)) = (item.document, &item.change) {
            documents.entry(document).or_default().push(bytes);
        }
    }
    let wholes: Vec<Vec<u8>> = documents.values().filter_map(|items| pack::whole(items)).collect();
    for many in [1, 3] {
        for wholes in wholes.chunks(many) {
            frame(wholes.to_vec());
        }
    }
}

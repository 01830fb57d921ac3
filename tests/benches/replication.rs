//! What replication costs beside its peers: reconnecting, catching up, and the first sync of a fleet.
//!
//!     cargo bench -p tests --bench replication                 10,000 machines
//!     cargo bench -p tests --bench replication -- --nodes 1000
//!     cargo bench -p tests --bench replication --features samod    … and samod beside it
//!
//! The same machines are used for everything: registered at central with tags, then booted and introduced at
//! their site, so that both sides wrote into each document. Bytes and round trips of the reconnects come from
//! the simulated world, where they are exact: shipped stores and engines, frames as they go to the transport.
//! The first sync is the shipped programs over loopback QUIC, through a relay that counts datagrams: the disk
//! of the site was replaced, so it gets everything back, also what it wrote itself. Figures are printed as a
//! table for `docs/performance.md`; what must not get worse is asserted in `tests/scenarios/reconnect.rs`.

#[cfg(feature = "samod")]
mod samod_pair;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use automerge::{
    Automerge,
    sync::{State, SyncDoc as _},
};
use harness::{
    fleet::{self, CHANGED, catch_up, change, settle},
    programs::{Central, Site, wait_for},
    wire::Wire,
    world::{Ending, World},
};
use sync::id::{DocumentId, Origin, SiteId};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let nodes = arguments.iter().position(|argument| argument == "--nodes");
    let nodes = nodes.and_then(|at| arguments.get(at + 1)?.parse().ok()).unwrap_or(10_000);
    let machines = fleet::machines(nodes);

    let mut world = World::new(21);
    let lyon = world.add_site("lyon");
    let begun = Instant::now();
    fleet::fill(&mut world, lyon, &machines);
    note("machines registered, booted and replicated", begun);
    println!("| work, {nodes} machines | measured | bar |\n|---|---|---|");

    let begun = Instant::now();
    println!("{}", reconnect(&mut world, lyon));
    println!("{}", peer(&mut world, lyon, "reconnect with nothing changed"));
    note("reconnects", begun);

    #[cfg(feature = "samod")]
    {
        let begun = Instant::now();
        let documents = held(&mut world, Origin::Central).into_values().collect();
        let pair = samod_pair::Pair::holding(documents);
        println!("| … reconnect with nothing changed: samod | {} | |", pair.meet(0, ""));
        println!("| … {CHANGED} machines changed: samod | {} | |", pair.meet(CHANGED, "changed"));
        note("samod", begun);
    }

    let begun = Instant::now();
    let by_log = catch_up(&mut world, lyon, &machines, "1", false);
    println!("| … {CHANGED} machines changed at central, by log | {by_log} | 1.5 KB, 1 round trip |");
    change(&mut world, &machines, "2");
    println!("{}", peer(&mut world, lyon, &format!("{CHANGED} machines changed")));
    settle(&mut world, lyon);
    let reconciled = catch_up(&mut world, lyon, &machines, "3", true);
    println!("| … {CHANGED} machines changed, by reconciliation | {reconciled} | 12 KB, 3 round trips |");
    note("changes", begun);

    let begun = Instant::now();
    println!("{}", first_sync(world, nodes));
    note("first sync", begun);
}

/// Says on standard error how long something took that is no figure of the table.
fn note(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}

fn reconnect(world: &mut World, lyon: SiteId) -> String {
    let (measured, loaded) = fleet::reconnect(world, lyon);
    format!(
        "| reconnect with nothing changed | {measured}, {loaded} documents loaded | 256 B each way, 1 round trip, 0 |"
    )
}

/// Automerge's own protocol on the documents that both hold just now: one conversation per document, each
/// side knowing nothing of what the other had.
fn peer(world: &mut World, lyon: SiteId, what: &str) -> String {
    let mut documents = [Origin::Central, Origin::Site(lyon)].map(|origin| held(world, origin));
    let [central, site] = &mut documents;
    let (mut messages, mut bytes, mut rounds) = (0_u64, [0_u64; 2], 0);
    for (id, theirs) in site {
        let Some(ours) = central.get_mut(id) else { continue };
        let (mut up, mut down) = (State::new(), State::new());
        for round in 1.. {
            let mut spoke = false;
            if let Some(message) = theirs.generate_sync_message(&mut up) {
                let message = message.encode();
                (messages, bytes[0], spoke) = (messages + 1, bytes[0] + message.len() as u64, true);
                let message = automerge::sync::Message::decode(&message).expect("its own bytes");
                ours.receive_sync_message(&mut down, message).expect("its own message");
            }
            if let Some(message) = ours.generate_sync_message(&mut down) {
                let message = message.encode();
                (messages, bytes[1], spoke) = (messages + 1, bytes[1] + message.len() as u64, true);
                let message = automerge::sync::Message::decode(&message).expect("its own bytes");
                theirs.receive_sync_message(&mut up, message).expect("its own message");
            }
            if !spoke {
                break;
            }
            rounds = rounds.max(round);
        }
        assert_eq!(ours.get_heads(), theirs.get_heads());
    }
    format!(
        "| … {what}: Automerge's own protocol | {} B up, {} B down in {messages} messages, {rounds} round trips, \
         every document loaded | |",
        bytes[0], bytes[1]
    )
}

/// All documents of a replica.
fn held(world: &mut World, origin: Origin) -> BTreeMap<DocumentId, Automerge> {
    let eye = world.eye(origin);
    let rows = eye.documents().expect("a list of documents");
    rows.iter()
        .map(|row| {
            let stored = eye.stored(*row).expect("a document");
            let kind = stored.kind.expect("a kind that is known");
            let document = eye.document(*row, kind, stored.id).expect("a sound document");
            (stored.id, document.automerge().clone())
        })
        .collect()
}

/// The shipped programs on central's database: a site whose disk was replaced gets everything back.
fn first_sync(mut world: World, nodes: usize) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut central = Central::start(&folder.path().join("central"));
    let data = central.database().parent().expect("a folder").to_path_buf();
    central.program.kill();
    world.end(Origin::Central, Ending::Stopped);
    put(&world.path(Origin::Central), &data);
    central.restart();
    let wire = Wire::to(central.quic).expect("a wire");
    let home = folder.path().join("lyon");
    let (code, id, complaint) = Site::enrol(&home, "lyon", wire.address(), &central.token("lyon"));
    assert_eq!(code, 0, "{complaint}");

    wire.cut();
    let mut site = Site::start(&home, "lyon", id.trim());
    let idle = site.program.resident_bytes();
    site.program.kill();
    let carried = || {
        let carried = wire.carried();
        [&carried.bytes_up, &carried.bytes_down].map(|counter| counter.load(Ordering::SeqCst))
    };
    let before = carried();
    wire.heal();
    let begun = Instant::now();
    site.restart();
    let mut committed = None;
    wait_for("the site holds everything and both agree", Duration::from_secs(600), || {
        let status = site.rest.show("/agent/status");
        if status["nodes"] == nodes {
            committed.get_or_insert_with(|| begun.elapsed());
        }
        let link = &status["link"];
        let done = committed.is_some() && link["agrees"] == true && link["acknowledged"] == link["end"];
        if done { Ok(()) } else { Err(status) }
    });
    let agreed = begun.elapsed();
    let after = carried();
    let peak = peak_bytes(site.program.id());
    let mb = |bytes: u64| bytes as f64 / 1e6;
    format!(
        "| first sync, loopback, with the site's start | {:.2} MB up, {:.2} MB down; {:.1} s to committed, {:.1} s to \
         both agree; {:.0} MB resident at most, {:.0} above idle | 3 MB, 12 s, 150 MB above idle |",
        mb(after[0] - before[0]),
        mb(after[1] - before[1]),
        committed.unwrap_or_default().as_secs_f64(),
        agreed.as_secs_f64(),
        mb(peak),
        mb(peak.saturating_sub(idle)),
    )
}

/// Puts the database of one replica, and what belongs beside it, in the place of another.
fn put(from: &Path, to: &Path) {
    for stale in ["holdfast.db-wal", "holdfast.db-shm"] {
        drop(std::fs::remove_file(to.join(stale)));
    }
    for name in ["holdfast.db", "incarnation", "seal"] {
        std::fs::copy(from.join(name), to.join(name)).expect("a file of the replica");
    }
}

/// The most memory that a process ever held (`VmHWM`, proc(5)).
fn peak_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a running program");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a running program");
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes");
    kilobytes * 1024
}

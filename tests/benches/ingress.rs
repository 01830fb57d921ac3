//! What central's ingress costs: honest changes through all six steps into the store, and 100,000 mutants.
//!
//! `cargo bench -p tests --bench ingress` measures with the release profile, `cargo test -p tests --bench ingress`
//! with the profile of the tests. The changes are those of a site's store, in the batches in which its engine
//! sends them, once where all documents stay open and once where each is read from the disk again; central's
//! store takes them as it does in a session, on its one writer, in a database on disk. The peer is Automerge
//! alone: the same changes of the same batches applied without any check to documents that are all kept open,
//! and stored raw, with one flushed commit a batch. Figures are printed and not asserted, but for
//! what must hold of mutants. `HOLDFAST_FUZZ_COUNT` says how many of those; `open`, `cold`, `conflicts` or `mutants` as
//! argument measures that alone.
//!
//! `conflicts` has central and the site name the same machines while neither hears of the other: what it costs central to
//! take that in where policy settles each at once, where half of them are contested, and where none is; and to settle
//! all of them in one commit, because the strategy became another one.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use automerge::{Automerge, Change};
use harness::{
    corpus::Corpus,
    mutant::{
        self,
        tally::{Tally, cpu},
        trial::Trial,
    },
    random::Random,
    world::BEGIN,
};
use rusqlite::{Connection as Sql, params};
use store::{
    Given, Opening, Store,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
        report::{self, Registration},
        site::{self, SettingsEdit},
    },
    view::ConflictFilter,
};
use sync::{
    document::{Kind, genesis},
    engine::{Connection, Input, Output},
    id::{DocumentId, MacAddr, NodeId, Origin, ReportId, SiteId},
    policy::{Autonomy, Strategy},
    wire::Item,
};

/// Machines of the site, and how often each of them and its people do something, one commit of the site a time. The
/// machines take turns. Of the few all documents stay open; of the many none is open any more when it is asked for.
const FEW: (u16, u16) = (500, 12);
const MANY: (u16, u16) = (2_000, 6);

/// Bytes of items that an engine reads and sends at once.
const BATCH: usize = 128 << 10;

fn main() {
    // The test runner lists and filters; there is only one thing to run here.
    if env::args().any(|argument| argument == "--list") {
        return;
    }
    let only = env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    println!("| what | measured |\n|---|---|");
    for (part, size) in [("open", FEW), ("cold", MANY)] {
        if is_wanted(part) {
            honest(size);
        }
    }
    if is_wanted("conflicts") {
        conflicts();
    }
    if is_wanted("mutants") {
        mutants();
    }
}

/// The honest changes of one site, and what it takes to take them.
fn honest((nodes, shifts): (u16, u16)) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut office = Office::open(folder.path(), nodes);
    office.work(shifts);
    let batches = office.batches();
    let items: Vec<Item> =
        batches.iter().flatten().map(|bytes| minicbor::decode(bytes).expect("an item")).collect();
    let changes = items.iter().filter(|item| item.change.is_some()).count();
    let documents: std::collections::BTreeSet<_> = items.iter().filter_map(|item| item.document).collect();
    println!(
        "| the log of a site of {nodes} machines: changes / journal entries / documents / batches | {changes} / {} / {} / {} |",
        items.len() - changes,
        documents.len(),
        batches.len()
    );

    let before = office.loaded();
    let ours = measured(|| office.ingest(&batches));
    let loaded = office.loaded() - before;
    let aside = office.central.read(|view| view.quarantine()).expect("the store reads");
    assert!(aside.is_empty(), "an honest change is refused: {aside:?}");
    let bare = measured(|| alone(&folder.path().join("alone.db"), &batches));
    let rate = |spent: Spent| {
        let per = |time: Duration| changes as f64 / time.as_secs_f64();
        format!("{:.0} changes/s of a core, {:.0} by the clock", per(spent.cpu), per(spent.wall))
    };
    println!("| … ingest at central, all six steps, with log, views and journal | {} |", rate(ours));
    println!("| … documents read from the disk for it | {loaded} |");
    println!("| … automerge alone: apply_changes and a raw insert | {} |", rate(bare));
    let ratio = ours.cpu.as_secs_f64() / bare.cpu.as_secs_f64();
    println!("| … central's time on a core, as a multiple of automerge alone | {ratio:.1} |");
}

/// Machines of which each is contested, or every second one.
const CONTESTED: u16 = 10_000;

fn conflicts() {
    for (strategy, every) in [
        (Strategy::CentralWins, 1),
        (Strategy::CentralWins, 2),
        (Strategy::CentralWins, 0),
        (Strategy::Manual, 1),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut office = Office::open(folder.path(), CONTESTED);
        office.settle_by(strategy);
        let contested = office.name_all(every);
        let batches = office.batches();
        let spent = measured(|| office.ingest(&batches));
        let (open, ended) = office.conflicts();
        let told = |spent: Spent| {
            format!(
                "{:.2} s of a core, {:.2} by the clock",
                spent.cpu.as_secs_f64(),
                spent.wall.as_secs_f64()
            )
        };
        println!(
            "| {CONTESTED} renamed machines, {contested} contested, `{strategy}`: ingest at central; open / settled | {}; {open} / {ended} |",
            told(spent)
        );
        if strategy == Strategy::Manual {
            let spent = measured(|| office.settle_by(Strategy::SiteWins));
            let (open, ended) = office.conflicts();
            println!(
                "| … then `site_wins`: all of them settled in one commit; open / settled | {}; {open} / {ended} |",
                told(spent)
            );
            assert_eq!(open, 0, "nothing is left that policy may settle");
        }
    }
}

/// Mutants of changes, with an honest change beside each.
fn mutants() {
    let count = env::var("HOLDFAST_FUZZ_COUNT").map_or(100_000, |text| text.parse().expect("a number"));
    let (_, corpus) = Corpus::of_session(3);
    let mut tally = Tally::new("change");
    let mut honest = 0;
    let begun = Instant::now();
    for seed in 1..=count {
        let random = &mut Random::new(seed);
        let situation = corpus.situation(random);
        let mutant = mutant::change(random, &corpus, &situation);
        let trial = Trial { corpus: &corpus, situation, seed, is_central: !random.chance(25) };
        let site = trial.deliverer(random);
        let before = cpu();
        let end = trial.run(random, site, &mutant, &mut honest);
        tally.note(seed, end, cpu().saturating_sub(before));
    }
    println!(
        "| {count} mutants of changes: panics outside the guard / documents that do not load / honest changes refused, \
         of {honest} | 0 / 0 / 0, in {:.0} s |",
        begun.elapsed().as_secs_f64()
    );
    println!("\n{tally}");
}

/// Central and the store of one site, without a link: what one wrote is carried to the other as it is.
struct Office {
    central: Store,
    lyon: Store,
    site: SiteId,
    nodes: u16,
    random: Random,
    steps: u64,
    _fast: tempfile::TempDir,
}

impl Office {
    fn open(folder: &Path, nodes: u16) -> Self {
        let mut random = Random::new(1);
        let fast = harness::disk::folder();
        let mut given = |steps: u64| given(&mut random, steps);
        let open = |folder: &Path, origin, given| {
            Store::open(&Opening { folder: folder.to_path_buf(), origin, given }).expect("the store opens")
        };
        let central = open(&folder.join("central"), Origin::Central, given(0));
        let site = central.run(given(1), |tx| site::create(tx, "lyon", "", "")).expect("a site");
        let edit = SettingsEdit {
            autonomy: Some(Autonomy::Full),
            quota_changes_s: Some(100_000),
            ..SettingsEdit::default()
        };
        central.run(given(2), move |tx| site::set(tx, site, &edit, "")).expect("settings");
        let register = move |tx: &mut store::Tx<'_>| {
            for number in 0..nodes {
                node::create(tx, mac(number), site, &format!("pos-{number}"))?;
            }
            Ok(())
        };
        central.run(given(3), register).expect("machines");
        // The site's own commits are not measured.
        let lyon = open(fast.path(), Origin::Site(site), given(4));
        let mut office = Office { central, lyon, site, nodes, random, steps: 10, _fast: fast };
        for (at, items) in read(&office.central, Origin::Site(site), &mut office.random) {
            office.steps += 1;
            let given = given_at(&mut office.random, office.steps);
            take(&office.lyon, Origin::Central, at, items, given);
        }
        office
    }

    /// Machines boot, report and are renamed and tagged.
    fn work(&mut self, shifts: u16) {
        for shift in 0..shifts {
            for number in 0..self.nodes {
                self.steps += 1;
                let given = given_at(&mut self.random, self.steps);
                let (mac, report) = (mac(number), ReportId(self.random.bytes()));
                let act = move |tx: &mut store::Tx<'_>| match shift % 4 {
                    0 => {
                        let answered = Answered {
                            mac,
                            answer: "local disk".into(),
                            reason: format!("shift {shift}"),
                            adopt: true,
                            booting: None,
                            local_disk: true,
                            claims: false,
                        };
                        boot::answered(tx, &answered).map(drop)
                    }
                    1 => {
                        let registration = Registration {
                            evidence: [("serial", format!("SN-{number}")), ("vendor", format!("V{shift}"))]
                                .map(|(key, value)| (key.to_string(), value))
                                .into(),
                            cpus: Some(u64::from(shift)),
                            memory_bytes: Some(8 << 30),
                            disks: BTreeMap::from([("vda".to_string(), 64 << 30)]),
                            nics: BTreeMap::from([("eth0".to_string(), mac.to_string())]),
                        };
                        report::register(tx, report, mac, false, &registration).map(drop)
                    }
                    _ => {
                        let edit = NodeEdit {
                            hostname: (shift % 4 == 2).then(|| format!("till-{shift}-{number}")),
                            tags: BTreeMap::from([("rack".to_string(), Some(format!("r{shift}")))]),
                            ..NodeEdit::default()
                        };
                        node::edit(tx, NodeId::of(mac), &edit).map(drop)
                    }
                };
                self.lyon.run(given, act).expect("the site does its work");
            }
        }
    }

    /// Central says how disagreements of the site are settled.
    fn settle_by(&mut self, strategy: Strategy) {
        self.steps += 1;
        let (given, site) = (given_at(&mut self.random, self.steps), self.site);
        let edit = SettingsEdit { conflict_resolution: Some(strategy), ..SettingsEdit::default() };
        self.central.run(given, move |tx| site::set(tx, site, &edit, "")).expect("settings");
    }

    /// The site names every machine, central every `every`th of them; how many that are.
    fn name_all(&mut self, every: u16) -> u16 {
        let mut contested = 0;
        for number in 0..self.nodes {
            let is_contested = every > 0 && number.is_multiple_of(every);
            contested += u16::from(is_contested);
            for (store, name) in [(&self.lyon, "kasse"), (&self.central, "till")] {
                if name == "till" && !is_contested {
                    continue;
                }
                self.steps += 1;
                let given = given_at(&mut self.random, self.steps);
                let edit = NodeEdit { hostname: Some(format!("{name}-{number}")), ..NodeEdit::default() };
                let rename = move |tx: &mut store::Tx<'_>| node::edit(tx, NodeId::of(mac(number)), &edit);
                store.run(given, rename).expect("a name");
            }
        }
        contested
    }

    /// Disagreements at central that are open, and that ended.
    fn conflicts(&self) -> (usize, usize) {
        let of = |open| {
            let filter = ConflictFilter { open: Some(open), ..ConflictFilter::default() };
            self.central.read(|view| view.conflicts(&filter)).expect("the store reads").len()
        };
        (of(true), of(false))
    }

    /// How many documents central has read from the disk.
    fn loaded(&mut self) -> u64 {
        let given = given_at(&mut self.random, self.steps);
        self.central.run(given, |tx| Ok(tx.documents_loaded())).expect("a number")
    }

    fn batches(&mut self) -> Vec<Vec<Vec<u8>>> {
        let batches = read(&self.lyon, Origin::Central, &mut self.random);
        batches.into_iter().map(|(_, items)| items).collect()
    }

    fn ingest(&mut self, batches: &[Vec<Vec<u8>>]) {
        let mut from = 1;
        for items in batches {
            self.steps += 1;
            let given = given_at(&mut self.random, self.steps);
            take(&self.central, Origin::Site(self.site), from, items.clone(), given);
            from += items.len() as u64;
        }
    }
}

/// What a replica has to say to a peer, in batches with the position of the first item.
fn read(store: &Store, peer: Origin, random: &mut Random) -> Vec<(u64, Vec<Vec<u8>>)> {
    let mut batches = Vec::new();
    let mut from = 1;
    loop {
        let output = Output::Read { connection: Connection(1), peer, from, max_bytes: BATCH };
        let answer = store.answer_now(output, given_at(random, 0)).expect("the store reads");
        let Some(Input::Read { items, .. }) = answer else { panic!("a replica reads its log") };
        if items.is_empty() {
            return batches;
        }
        let next = from + items.len() as u64;
        batches.push((from, items));
        from = next;
    }
}

fn take(store: &Store, peer: Origin, from: u64, items: Vec<Vec<u8>>, given: Given) {
    let output = Output::Ingest { connection: Connection(1), peer, from, items, seal: None };
    let answer = store.answer_now(output, given).expect("the store takes it");
    assert!(matches!(answer, Some(Input::Ingested { .. })), "{answer:?}");
}

fn given(random: &mut Random, steps: u64) -> Given {
    given_at(random, steps)
}

fn given_at(random: &mut Random, steps: u64) -> Given {
    Given { now: BEGIN.after(Duration::from_secs(steps)), by: "ann".into(), entropy: random.bytes() }
}

fn mac(number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr([0x52, 0x54, 0, 9, high, low])
}

/// The same changes by Automerge alone, into a table of their bytes.
fn alone(database: &Path, batches: &[Vec<Vec<u8>>]) {
    let mut sql = Sql::open(database).expect("a database");
    sql.pragma_update(None, "journal_mode", "WAL").expect("WAL");
    sql.pragma_update(None, "synchronous", "FULL").expect("FULL");
    sql.execute_batch(
        "CREATE TABLE changes (change INTEGER PRIMARY KEY, id BLOB, hash BLOB, bytes BLOB);
         CREATE UNIQUE INDEX by_hash ON changes (id, hash);",
    )
    .expect("a table");
    let mut open: BTreeMap<DocumentId, Automerge> = BTreeMap::new();
    for items in batches {
        let transaction = sql.transaction().expect("a transaction");
        for bytes in items {
            let item: Item = minicbor::decode(bytes).expect("an item");
            let (Some(kind), Some(id), Some(bytes)) = (item.kind, item.document, item.change) else {
                continue;
            };
            let kind = Kind::from_number(kind).expect("a kind");
            let document = open.entry(id).or_insert_with(|| genesis::document(kind, id));
            let change = Change::try_from(&bytes[..]).expect("a change");
            let hash = change.hash();
            document.apply_changes([change]).expect("it is applied");
            transaction
                .prepare_cached("INSERT INTO changes (id, hash, bytes) VALUES (?1, ?2, ?3)")
                .and_then(|mut insert| insert.execute(params![id.as_bytes(), hash.0, bytes]))
                .expect("it is stored");
        }
        transaction.commit().expect("a commit");
    }
}

/// Time by the clock, and of all threads of this process on a core.
#[derive(Clone, Copy)]
struct Spent {
    wall: Duration,
    cpu: Duration,
}

fn measured(work: impl FnOnce()) -> Spent {
    let (begun, before) = (Instant::now(), process_cpu());
    work();
    Spent { wall: begun.elapsed(), cpu: process_cpu().saturating_sub(before) }
}

fn process_cpu() -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("this is Linux").flatten();
    let on_core = |path: &Path| -> Option<u64> {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| on_core(&thread.path())).sum())
}

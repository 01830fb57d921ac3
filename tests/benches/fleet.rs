//! What a fleet costs central: many sites with sessions, databases and machines of their own, and the return
//! of all of them after central was killed.
//!
//! `cargo bench -p tests --bench fleet` plays 1,000 sites; `-- 100 20` plays 100 for 20 seconds of edits.
//! Central is the shipped program. The sites live in this process: each is enrolled with a token of its own
//! and has its key, its UDP socket, its engine and its database; only the services for machines are left
//! out. The figures are printed as a table for `docs/performance.md` and never asserted.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{
    programs::{Central, wait_for},
    random::Random,
    rest::Rest,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use store::{
    Given, Opening, Store,
    command::{
        boot::{Answered, answered},
        node::{NodeEdit, edit},
    },
    view::NodeFilter,
};
use sync::{
    engine::{Engine, Input, Output},
    id::{MacAddr, NodeId, Origin, SiteId},
    quic::{
        Connection, RecvStream, SendStream,
        driver::{self, Dialer, Feed, Host, wall},
        endpoint::{self, Keys},
        enrol::{Token, enrol},
        tls::{self, Protocol, SiteKey},
    },
};

const NODES: u16 = 20;
const EDITS_PER_S: u64 = 100;
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Enrolments at a time: central serves sixteen.
const ENROLMENTS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // The test runner lists and filters; there is only one thing to run here.
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let mut numbers = arguments.iter().filter_map(|argument| argument.parse().ok());
    let sites: u16 = numbers.next().and_then(|number| u16::try_from(number).ok()).unwrap_or(1_000);
    let seconds: u64 = numbers.next().unwrap_or(60);
    let files = allow_files();

    let folder = tempfile::tempdir().expect("a folder");
    // The disks of a thousand sites are not one disk; memory is nearer to that.
    let memory = Path::new("/dev/shm");
    let offices = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let offices = offices.expect("a folder for the sites");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut central = Central::start(&folder.path().join("central"));
    let idle = Memory::of(&central);
    println!("{sites} sites, {seconds} s of edits, {files} files may be open");

    let begun = Instant::now();
    let tokens = invite(&central.rest, sites);
    let fleet = runtime.block_on(join_fleet(&central, offices.path(), tokens));
    println!("{:.1} s: enrolled", begun.elapsed().as_secs_f64());
    let deadline = Duration::from_secs(600);
    wait_for("every site has a session", deadline, || all(&fleet, |site| site.agrees()));
    println!("{:.1} s: every site has a session and agrees", begun.elapsed().as_secs_f64());
    let connected = Memory::of(&central);

    let begun = Instant::now();
    for (number, site) in fleet.iter().enumerate() {
        site.adopt(u16::try_from(number).expect("few sites"));
    }
    wait_for("central has every machine", deadline, || all(&fleet, |site| site.has_settled(NODES)));
    let adopted = begun.elapsed();
    println!("{:.1} s: every machine is at home", adopted.as_secs_f64());
    let full = Memory::of(&central);

    let edits = edit_for(&fleet, Duration::from_secs(seconds));
    let rate = edits.0 as f64 / edits.1.as_secs_f64();
    let begun = Instant::now();
    wait_for("central has every edit", deadline, || all(&fleet, |site| site.agrees()));
    let behind = begun.elapsed();
    let edited = Memory::of(&central);
    println!("{rate:.1} edits a second, settled {:.2} s after the last", behind.as_secs_f64());

    central.program.kill();
    let killed = Instant::now();
    // Everybody goes on working, so everybody has something to bring.
    for site in &fleet {
        site.edit_one(&mut Random::new(7), "while central was away");
    }
    central.restart();
    let ready = Instant::now();
    let mut noticed = None;
    wait_for("every site is back and both agree", deadline, || {
        let back = fleet.iter().filter(|site| site.sessions.load(Ordering::SeqCst) > 1).count();
        if back == fleet.len() {
            noticed.get_or_insert_with(|| ready.elapsed());
        }
        all(&fleet, |site| site.sessions.load(Ordering::SeqCst) > 1 && site.agrees())
    });
    let back = ready.elapsed();
    let agrees = |row: &Value| row["agrees"] == true && row["nodes"] == NODES;
    wait_for("central says so of every site", deadline, || {
        let others = central.rest.list("/sites").iter().filter(|row| !agrees(row)).count();
        if others == 0 { Ok(()) } else { Err(json!(format!("not of {others}"))) }
    });
    let confirmed = ready.elapsed();
    let after = Memory::of(&central);

    println!("\n| what | measured |\n|---|---|");
    println!("| sites, machines of each | {sites}, {NODES} |");
    println!("| resident memory of central: idle | {idle} |");
    println!("| … every site connected | {connected} |");
    println!("| … and every machine known | {full} |");
    println!(
        "| … after {} edits in {:.0} s, {rate:.1} a second | {edited} |",
        edits.0,
        edits.1.as_secs_f64()
    );
    println!("| … the same, settled after the last edit | {:.2} s |", behind.as_secs_f64());
    println!(
        "| {} machines adopted at their sites until all agree | {:.1} s |",
        u32::from(sites) * u32::from(NODES),
        adopted.as_secs_f64()
    );
    println!(
        "| central killed and started again: ready | {:.2} s after the kill |",
        (ready - killed).as_secs_f64()
    );
    println!(
        "| … every site has a session again | {:.1} s after ready |",
        noticed.unwrap_or(back).as_secs_f64()
    );
    println!(
        "| … and what it wrote meanwhile is at central, both agree | {:.1} s after ready |",
        back.as_secs_f64()
    );
    println!("| … and central says so of every site | {:.1} s after ready |", confirmed.as_secs_f64());
    println!("| … resident memory of central | {after} |");
    drop(fleet);
}

/// As many open files as this user may have.
fn allow_files() -> u64 {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the limit is raised");
    most
}

/// Resident memory of a process: now, and at most so far (proc(5)).
struct Memory {
    now_kb: u64,
    most_kb: u64,
}

impl Memory {
    fn of(central: &Central) -> Self {
        let path = format!("/proc/{}/status", central.program.id());
        let status = std::fs::read_to_string(path).expect("central runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        Memory { now_kb: field("VmRSS:"), most_kb: field("VmHWM:") }
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MB, at most {:.1} MB", self.now_kb as f64 / 1e3, self.most_kb as f64 / 1e3)
    }
}

/// Describes the sites and makes a token for each.
fn invite(rest: &Rest, sites: u16) -> Vec<Token> {
    (0..sites)
        .map(|number| {
            let name = format!("site-{number}");
            let answer = rest.post("/sites", &json!({ "name": name }));
            assert_eq!(answer.status, 201, "{}", answer.body);
            let answer = rest.post(&format!("/sites/{name}/token"), &json!({}));
            assert_eq!(answer.status, 201, "{}", answer.body);
            Token::parse(answer.body["token"].as_str().expect("a token")).expect("a token")
        })
        .collect()
}

/// Enrols and starts all sites.
async fn join_fleet(central: &Central, folder: &Path, tokens: Vec<Token>) -> Vec<Site> {
    let gate = Arc::new(tokio::sync::Semaphore::new(ENROLMENTS));
    let tasks: Vec<_> = tokens
        .into_iter()
        .enumerate()
        .map(|(number, token)| {
            let (gate, quic) = (Arc::clone(&gate), central.quic);
            let folder = folder.join(format!("site-{number}"));
            tokio::spawn(async move {
                let _permit = gate.acquire_owned().await.expect("open");
                let mut seed = [0; 64];
                seed[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
                let any = "127.0.0.1:0".parse().expect("an address");
                let endpoint = endpoint::client(any, &Keys::from_entropy(seed)).expect("a socket");
                let key = SiteKey::generate().expect("a key");
                let clock: tls::WallClock = Arc::new(wall);
                let enrolled = enrol(&endpoint, quic, &token, "bench", None, &key, Arc::clone(&clock)).await;
                let enrolled = enrolled.expect("a certificate");
                let identity = key.identity(enrolled.chain.clone());
                let authorities = [enrolled.authority.clone()];
                let tls = tls::client_config(identity, &authorities, Protocol::Session, clock);
                let dialer = Dialer::fixed(endpoint, quic.to_string(), tls.expect("a configuration"));
                Site::start(&folder, enrolled.site, dialer)
            })
        })
        .collect();
    let mut fleet = Vec::new();
    for task in tasks {
        fleet.push(task.await.expect("a site starts"));
    }
    fleet
}

/// A site without services for machines.
struct Site {
    id: SiteId,
    store: Store,
    /// Sessions that were established so far.
    sessions: Arc<AtomicU64>,
}

struct SiteHost {
    id: SiteId,
    store: Store,
    sessions: Arc<AtomicU64>,
}

impl Host for SiteHost {
    fn perform(&mut self, output: Output, feed: &Feed) {
        if let Output::Up { .. } = output {
            self.sessions.fetch_add(1, Ordering::SeqCst);
        }
        let feed = feed.clone();
        self.store.answer(output, given(self.id), move |input| feed.send(input));
    }

    fn connection(&mut self, _: Origin, _: Option<&Connection>) {}
    fn stream(&mut self, _: SiteId, _: SendStream, _: RecvStream) {}
    fn turned(&mut self, _: &Engine, _: Duration) {}
}

/// Now, and bytes that were never used before.
fn given(site: SiteId) -> Given {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut seed = site.as_bytes().to_vec();
    seed.extend(COUNT.fetch_add(1, Ordering::SeqCst).to_be_bytes());
    seed.extend(std::process::id().to_be_bytes());
    seed.extend(wall().as_ms().to_be_bytes());
    Given { now: wall(), by: "bench".into(), entropy: *blake3::hash(&seed).as_bytes() }
}

impl Site {
    /// Opens the database and dials. Needs a tokio runtime.
    fn start(folder: &Path, id: SiteId, dialer: Dialer) -> Self {
        let opening = Opening { folder: folder.to_path_buf(), origin: Origin::Site(id), given: given(id) };
        let store = Store::open(&opening).expect("a database");
        let (feed, inputs) = driver::feed();
        let told = feed.clone();
        store.watch(move |committed| {
            for (peer, end) in &committed.grown {
                told.send(Input::Changed { peer: *peer, end: *end });
            }
        });
        let sessions = Arc::new(AtomicU64::new(0));
        let host = SiteHost { id, store: store.clone(), sessions: Arc::clone(&sessions) };
        let engine = Engine::site(id, HEARTBEAT);
        tokio::spawn(driver::run_site(engine, dialer, (feed, inputs), host));
        Site { id, store, sessions }
    }

    /// Adopts its machines, as when they boot for the first time.
    fn adopt(&self, number: u16) {
        let [high, low] = number.to_be_bytes();
        let adopted = self.store.run(given(self.id), move |tx| {
            for node in 0..NODES {
                let mac = MacAddr([0x52, 0x54, high, low, 0, u8::try_from(node).expect("few machines")]);
                let (answer, reason) = ("the local disk".into(), "a machine that was not known".into());
                let boot = Answered {
                    mac,
                    answer,
                    reason,
                    adopt: true,
                    booting: None,
                    local_disk: true,
                    claims: false,
                };
                answered(tx, &boot)?;
            }
            Ok(())
        });
        adopted.expect("the machines are adopted");
    }

    /// Edits the notes of one machine.
    fn edit_one(&self, random: &mut Random, notes: &str) {
        let nodes: Vec<NodeId> = self
            .store
            .read(|view| Ok(view.nodes(&NodeFilter::default())?.iter().map(|node| node.id).collect()))
            .expect("the machines are read");
        let node = nodes[usize::try_from(random.below(nodes.len() as u64)).expect("few")];
        let notes = format!("{notes} {}", random.below(1_000_000));
        let new = NodeEdit { notes: Some(notes), ..NodeEdit::default() };
        let edited = self.store.run(given(self.id), move |tx| edit(tx, node, &new).map(drop));
        edited.expect("the machine is edited");
    }

    /// Whether both sides have everything and say so.
    fn agrees(&self) -> bool {
        let peer = self.store.read(|view| view.peer(Origin::Central)).expect("a status");
        peer.agrees == Some(true) && peer.acknowledged == peer.end
    }

    /// The same, and central has given every machine its home.
    fn has_settled(&self, nodes: u16) -> bool {
        let at_home = |view: &store::View<'_>| {
            let nodes = view.nodes(&NodeFilter::default())?;
            Ok(nodes.iter().filter(|node| node.home == Some(self.id)).count())
        };
        self.agrees() && self.store.read(at_home).expect("the machines are read") == usize::from(nodes)
    }
}

fn all(fleet: &[Site], holds: impl Fn(&Site) -> bool) -> Result<(), Value> {
    match fleet.iter().filter(|site| !holds(site)).count() {
        0 => Ok(()),
        missing => Err(json!(format!("{missing} of {} do not", fleet.len()))),
    }
}

/// Edits machines of the whole fleet at the given rate; returns how many and how long it took.
fn edit_for(fleet: &[Site], length: Duration) -> (u64, Duration) {
    let mut random = Random::new(1);
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < length {
        let due = Duration::from_millis(done * 1_000 / EDITS_PER_S);
        if let Some(early) = due.checked_sub(begun.elapsed()) {
            std::thread::park_timeout(early);
            continue;
        }
        let site = usize::try_from(random.below(fleet.len() as u64)).expect("few sites");
        fleet[site].edit_one(&mut random, "edited");
        done += 1;
    }
    (done, begun.elapsed())
}

//! Bugs that are put into a world from outside, and that the checks must find.
//!
//! Nothing in the shipped code knows of them: an answer is given in the place of the store's, a frame is
//! changed on its way, or a database is written to behind its owner's back.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use harness::{
    eye::Eye,
    random::Random,
    world::{World, answer},
};
use rusqlite::{Connection, params};
use store::{
    Given, Store,
    command::fence,
    view::{ClaimFilter, ClaimRow},
};
use sync::{
    document::{
        Author, Document, Kind, contested,
        node::{self, Home},
        register::Entropy,
    },
    engine::{Input, Output},
    id::{Incarnation, NodeId, Origin, ReportId, SiteId, TaskId},
    policy::ClaimState,
    time::Hlc,
    wire::{Cursor, Item, Seal},
};

use crate::{
    disagreements::{self, LastWord, WRITTEN, last_word},
    draw::Fault,
    epochs, moves, orders,
};

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Central acknowledges what it does not commit.
    AckBeforeCommit,
    /// A site writes a register that is central's alone.
    CentralsRegister,
    /// What waits for its dependencies is acknowledged and thrown away.
    ForgottenParked,
    /// A site's actor goes on after the database went back.
    ReusedActor,
    /// A site's fingerprint covers what central has not acknowledged.
    FingerprintOfAll,
    /// A restored site follows its orders at once.
    RolledBackOrder,
    /// A second boot of the same attempt is told to go ahead too.
    DoubledGoAhead,
    /// A repeated report is taken for another one.
    ReportTwice,
    /// Central takes whatever a site writes.
    NoAuthorisation,
    /// Central acknowledges a journal entry and drops it.
    DroppedEntry,
    /// While wishes are contested a site goes by the one that was written last.
    InForceByStrategy,
    /// An order counts although the machine was installed since it was given.
    BasedOnIgnored,
    /// The fence of a move opens as soon as the move is approved.
    FenceSkipped,
    /// A site decides under the settings that it names, also under old ones.
    EpochTrusted,
    /// What central settled neutrally beats what somebody who had seen all sides wrote beside it.
    NeutralBeatsLater,
}

impl Bug {
    pub(crate) const ALL: [Bug; 15] = [
        Bug::EpochTrusted,
        Bug::NeutralBeatsLater,
        Bug::BasedOnIgnored,
        Bug::FenceSkipped,
        Bug::InForceByStrategy,
        Bug::AckBeforeCommit,
        Bug::CentralsRegister,
        Bug::ForgottenParked,
        Bug::ReusedActor,
        Bug::FingerprintOfAll,
        Bug::RolledBackOrder,
        Bug::DoubledGoAhead,
        Bug::ReportTwice,
        Bug::NoAuthorisation,
        Bug::DroppedEntry,
    ];

    /// The check that is about it, where others may notice what comes of it.
    pub(crate) fn found_by(self) -> Option<&'static str> {
        match self {
            Bug::FenceSkipped => Some(moves::OPEN_FENCE),
            Bug::EpochTrusted => Some(epochs::TAKEN),
            Bug::NeutralBeatsLater => Some(disagreements::LAST_WORD),
            Bug::BasedOnIgnored => Some(orders::OVERTAKEN),
            Bug::AckBeforeCommit
            | Bug::CentralsRegister
            | Bug::ForgottenParked
            | Bug::ReusedActor
            | Bug::FingerprintOfAll
            | Bug::RolledBackOrder
            | Bug::DoubledGoAhead
            | Bug::ReportTwice
            | Bug::NoAuthorisation
            | Bug::DroppedEntry
            | Bug::InForceByStrategy => None,
        }
    }

    /// Whether it shows only where two sides order one machine, which people seldom do.
    pub(crate) fn needs_two_orders(self) -> bool {
        self == Bug::BasedOnIgnored
    }

    /// Faults without which the bug cannot show, and how many of ten thousand steps have each.
    pub(crate) fn needs(self) -> &'static [(Fault, u64)] {
        match self {
            Bug::ReusedActor => &[(Fault::Rollback, 200)],
            Bug::RolledBackOrder => &[(Fault::Restore, 200)],
            Bug::NoAuthorisation => &[(Fault::Hostility, 300)],
            Bug::EpochTrusted => &[(Fault::Hostility, 300), (Fault::StaleEpoch, 300)],
            Bug::FingerprintOfAll | Bug::InForceByStrategy | Bug::FenceSkipped => &[(Fault::Cut, 400)],
            Bug::BasedOnIgnored => &[(Fault::Cut, 500)],
            Bug::AckBeforeCommit
            | Bug::CentralsRegister
            | Bug::ForgottenParked
            | Bug::DoubledGoAhead
            | Bug::ReportTwice
            | Bug::NeutralBeatsLater
            | Bug::DroppedEntry => &[],
        }
    }
}

impl fmt::Display for Bug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bug::AckBeforeCommit => "acknowledged before the commit",
            Bug::CentralsRegister => "a site writes what is central's",
            Bug::ForgottenParked => "an acknowledgement forgets what is parked",
            Bug::ReusedActor => "an actor is used again after a roll-back",
            Bug::FingerprintOfAll => "a fingerprint covers unacknowledged work",
            Bug::RolledBackOrder => "an order of a rolled back site is live again",
            Bug::DoubledGoAhead => "a doubled go-ahead",
            Bug::ReportTwice => "a report counts twice",
            Bug::NoAuthorisation => "ingress without authorisation",
            Bug::DroppedEntry => "a journal entry is dropped",
            Bug::InForceByStrategy => "contested wishes are in force by strategy",
            Bug::BasedOnIgnored => "an order counts after another installation",
            Bug::FenceSkipped => "an approval opens its fence",
            Bug::EpochTrusted => "a site decides under the epoch that it names",
            Bug::NeutralBeatsLater => "a settlement beats who had seen all sides",
        })
    }
}

/// Puts a bug into a world.
pub(crate) fn plant(bug: Bug, world: &mut World) {
    world.between = match bug {
        Bug::AckBeforeCommit => Some(Box::new(ack_before_commit)),
        Bug::CentralsRegister => Some(Box::new(centrals_register)),
        Bug::ForgottenParked => Some(Box::new(forgotten_parked)),
        Bug::FingerprintOfAll => Some(Box::new(fingerprint_of_all)),
        Bug::DroppedEntry => Some(Box::new(dropped_entry)),
        Bug::InForceByStrategy => Some(Box::new(in_force_by_strategy)),
        Bug::FenceSkipped => Some(Box::new(fence_skipped)),
        Bug::EpochTrusted => Some(Box::new(epoch_trusted)),
        Bug::NeutralBeatsLater => Some(Box::new(neutral_beats_later)),
        Bug::ReusedActor
        | Bug::RolledBackOrder
        | Bug::DoubledGoAhead
        | Bug::ReportTwice
        | Bug::NoAuthorisation
        | Bug::BasedOnIgnored => None,
    };
}

fn ack_before_commit(
    random: &mut Random,
    origin: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    match &output {
        Output::Ingest { connection, from, items, .. } if origin == Origin::Central && random.chance(3) => {
            let cursor = Cursor { position: from + items.len() as u64 - 1, ..Cursor::default() };
            Some(Input::Ingested { connection: *connection, cursor, end: 0 })
        }
        _ => answer(store, given, output),
    }
}

/// The site gives one of its machines a home, as central alone may.
fn centrals_register(
    random: &mut Random,
    origin: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let Origin::Site(site) = origin else { return answer(store, given, output) };
    let Output::Ingest { connection, .. } = output else { return answer(store, given, output) };
    let input = answer(store, given.clone(), output);
    if random.chance(10)
        && let Some(item) = new_home(random, store, site, &given)
    {
        let pulled = store.read(|view| view.peer(Origin::Central)).expect("it reads").pulled;
        let behind = open(store.database());
        let standing: (i64, [u8; 16]) = behind
            .query_row("SELECT pulled, pulled_rolling FROM peers WHERE peer = 'central'", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .expect("there is a peer");
        let given = Given { entropy: random.bytes(), ..given };
        let (peer, from) = (Origin::Central, pulled + 1);
        let forged = Output::Ingest { connection, peer, from, items: vec![item], seal: None };
        answer(store, given, forged);
        behind
            .execute(
                "UPDATE peers SET pulled = ?1, pulled_rolling = ?2 WHERE peer = 'central'",
                params![standing.0, standing.1],
            )
            .expect("it is written");
    }
    input
}

fn new_home(random: &mut Random, store: &Store, site: SiteId, given: &Given) -> Option<Vec<u8>> {
    let eye = Eye::open(store.database().parent()?).ok()?;
    let docs = eye.documents().ok()?;
    let of_node = |doc: &i64| eye.stored(*doc).ok().filter(|stored| stored.kind == Some(Kind::Node));
    let (doc, stored) = docs.into_iter().find_map(|doc| Some((doc, of_node(&doc)?)))?;
    let mut document = eye.document(doc, Kind::Node, stored.id).ok()?;
    let mut author = Author {
        incarnation: Incarnation(random.bytes()),
        site: Origin::Site(site),
        by: "bob".into(),
        at: Hlc::at(given.now),
        policy_epoch: 1,
        entropy: Entropy::new(random.bytes()),
    };
    let home = Home { home_site: Some(site), home_epoch: 9, claim: None };
    let change = document.write(&mut author, |edit| {
        edit.set(&node::home(), &home, "settled here");
    })?;
    Some(Item::change(Kind::Node.number(), stored.id, change.raw_bytes().to_vec()).to_bytes())
}

/// Two changes of one document come in the wrong order, in two batches; the first waits, and is thrown away.
fn forgotten_parked(
    random: &mut Random,
    _: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let Output::Ingest { connection, peer, from, items, seal } = &output else {
        return answer(store, given, output);
    };
    let document = |bytes: &Vec<u8>| {
        let item: Item = minicbor::decode(bytes).ok()?;
        item.change.and(item.document)
    };
    let pair = items.windows(2).position(|pair| {
        let first = document(&pair[0]);
        first.is_some() && first == document(&pair[1])
    });
    let Some(at) = pair else { return answer(store, given, output) };
    let parts = [&items[..at], &items[at + 1..at + 2], &items[at..=at], &items[at + 2..]];
    let (mut last, mut next) = (None, *from);
    for (number, part) in parts.into_iter().enumerate().filter(|(_, part)| !part.is_empty()) {
        let given = Given { entropy: random.bytes(), ..given.clone() };
        let ingest = Output::Ingest {
            connection: *connection,
            peer: *peer,
            from: next,
            items: part.to_vec(),
            seal: *seal,
        };
        next += part.len() as u64;
        last = answer(store, given, ingest);
        if number == 1 {
            open(store.database()).execute("DELETE FROM parked", []).expect("it is written");
        }
    }
    last
}

fn fingerprint_of_all(
    random: &mut Random,
    _: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let again = Given { entropy: random.bytes(), ..given.clone() };
    let mut input = answer(store, given, output);
    if let Some(Input::Opened { connection, standing }) = &mut input
        && standing.pushed.is_some()
        && standing.central.is_some()
    {
        let all = Output::TakeFingerprint { connection: *connection, pulled: 0, pushed: standing.end };
        if let Some(Input::Fingerprinted { fingerprint, .. }) = answer(store, again, all) {
            standing.fingerprint = fingerprint;
        }
    }
    input
}

fn dropped_entry(
    random: &mut Random,
    origin: Origin,
    store: &Store,
    given: Given,
    mut output: Output,
) -> Option<Input> {
    if let Output::Ingest { items, .. } = &mut output
        && origin == Origin::Central
        && random.chance(5)
        && let Some(entry) = items
            .iter_mut()
            .rev()
            .find(|bytes| minicbor::decode::<Item>(bytes).is_ok_and(|item| item.entry.is_some()))
    {
        // An item of a newer program, which means nothing to us.
        *entry = Item::default().to_bytes();
    }
    answer(store, given, output)
}

fn in_force_by_strategy(
    _: &mut Random,
    origin: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let takes = matches!(output, Output::Ingest { .. }) && origin != Origin::Central;
    let input = answer(store, given, output);
    if takes {
        show_otherwise(store, |document, shown| {
            let wishes = contested::read(document, &node::wanted());
            if wishes.is_contested()
                && let Some(last) = wishes.newest()
            {
                shown["wanted"] = last.value.wanted.as_str().into();
            }
        });
    }
    input
}

/// Every fence is opened by the door for people, and nobody stood there.
fn fence_skipped(
    random: &mut Random,
    origin: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let approved = ClaimFilter { state: Some(ClaimState::Approved), ..ClaimFilter::default() };
    let rows = match origin {
        Origin::Central => store.read(|view| view.claims(&approved)).expect("it reads"),
        Origin::Site(_) => vec![],
    };
    for row in rows.into_iter().filter(ClaimRow::is_fenced) {
        let given = Given { entropy: random.bytes(), by: "policy".into(), ..given.clone() };
        let opened = store.run(given, move |tx| {
            let node = tx.view().node(row.node)?.expect("it has moved");
            let mac = node.macs.first().map_or_else(|| node.id.to_string(), ToString::to_string);
            let name = if node.hostname.is_empty() { mac } else { node.hostname };
            fence::break_fence(tx, row.id, &name, "")
        });
        // While central is in recovery, or has no room, the bug waits as well.
        drop(opened);
    }
    answer(store, given, output)
}

/// Central forgets what a site follows while it judges what comes from there.
fn epoch_trusted(
    _: &mut Random,
    origin: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let (Origin::Central, Output::Ingest { peer: peer @ Origin::Site(site), .. }) = (origin, &output) else {
        return answer(store, given, output);
    };
    let (peer, site) = (peer.to_string(), *site);
    let behind = open(store.database());
    let follows: Option<i64> =
        behind.query_row("SELECT epoch FROM peers WHERE peer = ?1", [&peer], |row| row.get(0)).ok();
    let mut statement =
        behind.prepare("SELECT epoch, told FROM epochs WHERE site = ?1").expect("there is a table");
    let rows = statement.query_map([site.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)));
    let told: Vec<(i64, Option<i64>)> = rows.and_then(Iterator::collect).expect("it reads");
    let write = |statement: &str, params: &[&dyn rusqlite::ToSql]| {
        behind.execute(statement, params).expect("it is written");
    };
    write("UPDATE peers SET epoch = 0 WHERE peer = ?1", &[&peer]);
    write("UPDATE epochs SET told = NULL WHERE site = ?1", &[site.as_bytes()]);
    let input = answer(store, given, output);
    write("UPDATE peers SET epoch = max(epoch, ?2) WHERE peer = ?1", &[&peer, &follows.unwrap_or(0)]);
    for (epoch, told) in told {
        let again = "UPDATE epochs SET told = ?3 WHERE site = ?1 AND epoch = ?2 AND told IS NULL";
        write(again, &[site.as_bytes(), &epoch, &told]);
    }
    input
}

fn neutral_beats_later(
    _: &mut Random,
    _: Origin,
    store: &Store,
    given: Given,
    output: Output,
) -> Option<Input> {
    let takes = matches!(output, Output::Ingest { .. });
    let input = answer(store, given, output);
    if takes {
        show_otherwise(store, |document, shown| {
            for (key, field) in WRITTEN {
                if let Some(LastWord { neutral, .. }) = last_word(document.automerge(), key, field) {
                    shown[key] = neutral.into();
                }
            }
        });
    }
    input
}

/// Changes what a replica shows of its machines.
fn show_otherwise(store: &Store, change: impl Fn(&Document, &mut serde_json::Value)) {
    let eye = Eye::open(store.database().parent().expect("a folder")).expect("the database opens");
    let behind = open(store.database());
    for doc in eye.documents().expect("it reads") {
        let Ok(stored) = eye.stored(doc) else { continue };
        let (Some(Kind::Node), Ok(Some(body))) = (stored.kind, eye.body(doc, Kind::Node)) else { continue };
        let Ok(document) = eye.document(doc, Kind::Node, stored.id) else { continue };
        let mut shown: serde_json::Value = serde_json::from_str(&body).expect("rows are JSON");
        let before = shown.clone();
        change(&document, &mut shown);
        if shown != before {
            behind
                .execute("UPDATE view_nodes SET body = ?2 WHERE doc = ?1", params![doc, shown.to_string()])
                .expect("it is written");
        }
    }
}

/// A database has just gone back.
pub(crate) fn went_back(bug: Option<Bug>, world: &mut World, origin: Origin) {
    if bug == Some(Bug::RolledBackOrder) {
        let behind = open(world.store(origin).database());
        behind.execute("DELETE FROM meta WHERE key = 'suspended'", []).expect("it is written");
    }
}

/// A report is about to be repeated.
pub(crate) fn repeats(bug: Option<Bug>, store: &Store, report: ReportId) {
    if bug == Some(Bug::ReportTwice) {
        let behind = open(store.database());
        behind.execute("DELETE FROM reports WHERE report = ?1", [report.as_bytes()]).expect("it is written");
    }
}

/// What the replica shows of a task and its machine, to be shown once more when the order is consumed.
pub(crate) struct Shown {
    task: Option<String>,
    node: Option<String>,
}

impl Shown {
    pub(crate) fn of(store: &Store, task: TaskId, node: NodeId) -> Self {
        let behind = open(store.database());
        let body = |query: &str, id: &[u8; 16]| behind.query_row(query, [id], |row| row.get(0)).ok();
        Shown {
            task: body("SELECT body FROM view_tasks WHERE id = ?1", task.as_bytes()),
            node: body("SELECT body FROM view_nodes WHERE id = ?1", node.as_bytes()),
        }
    }

    pub(crate) fn put_back(&self, store: &Store, task: TaskId, node: NodeId) {
        let behind = open(store.database());
        let pairs = [
            ("UPDATE view_tasks SET body = ?2 WHERE id = ?1", task.as_bytes(), &self.task),
            ("UPDATE view_nodes SET body = ?2 WHERE id = ?1", node.as_bytes(), &self.node),
        ];
        for (query, id, body) in pairs {
            behind.execute(query, params![id, body]).expect("it is written");
        }
    }
}

/// Orders that count, as long as this is there, whatever was installed since they were given.
pub(crate) struct Counting {
    database: PathBuf,
    rows: Vec<(i64, String, String)>,
}

impl Counting {
    pub(crate) fn begin(bug: Option<Bug>, store: &Store) -> Option<Self> {
        if bug != Some(Bug::BasedOnIgnored) {
            return None;
        }
        let behind = open(store.database());
        let query = "SELECT doc, body, json_set(body, '$.order.based_on',
                 (SELECT json_extract(view_nodes.body, '$.install_nonce') FROM view_nodes
                  WHERE view_nodes.id = view_tasks.node))
             FROM view_tasks WHERE json_type(body, '$.order') = 'object'";
        let mut statement = behind.prepare(query).expect("a query");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        let rows: Vec<(i64, String, String)> = rows.and_then(Iterator::collect).expect("it reads");
        for (doc, is, counts) in &rows {
            show(&behind, *doc, is, counts);
        }
        Some(Counting { database: store.database().to_path_buf(), rows })
    }

    /// What was written meanwhile shows what it says by itself.
    pub(crate) fn end(self) {
        let behind = open(&self.database);
        for (doc, was, counts) in &self.rows {
            show(&behind, *doc, counts, was);
        }
    }
}

fn show(behind: &Connection, doc: i64, is: &str, shall: &str) {
    behind
        .execute("UPDATE view_tasks SET body = ?3 WHERE doc = ?1 AND body = ?2", params![doc, is, shall])
        .expect("it is written");
}

/// Marks a change as central would mark its own, so that nobody judges it.
pub(crate) fn sealed(world: &World, item: &[u8]) -> Option<Vec<u8>> {
    let item: Item = minicbor::decode(item).ok()?;
    let key = std::fs::read_to_string(world.path(Origin::Central).join("seal")).ok()?;
    let key: [u8; 32] = sync::id::unhex(key.trim())?;
    let hash = automerge::Change::try_from(item.change.as_deref()?).ok()?.hash().0;
    let mut hasher = blake3::Hasher::new_keyed(&key);
    for part in [b"change".as_slice(), item.document?.as_bytes(), &hash] {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let seal = Seal(hasher.finalize().as_bytes()[..16].try_into().expect("a BLAKE3 digest has 32 bytes"));
    Some(Item { seal: Some(seal), ..item }.to_bytes())
}

fn open(database: &Path) -> Connection {
    let behind = Connection::open(database).expect("the database opens");
    behind.busy_timeout(std::time::Duration::from_secs(5)).expect("it waits");
    behind
}

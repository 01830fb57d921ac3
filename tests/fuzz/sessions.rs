//! Mutants of frames and greetings, in sessions of real engines over real stores.
//!
//! Each input has a connection of its own; the databases live on, with all that mutants did to them. Afterwards
//! the honest replicas talk to each other again and must come to agree.

use std::time::{Duration, Instant};

use harness::{
    corpus::{Corpus, pick},
    mutant::{
        self, quietly,
        tally::{End, Stage, Tally},
        writer_panics,
    },
    random::Random,
    world::{World, answer},
};
use rusqlite::Connection as Sql;
use store::{Given, Store, view::NodeFilter};
use sync::{
    engine::{CloseCode, Connection, Engine, Input, Moment, Output},
    id::{Origin, SiteId},
    wire::{self, Message},
};

use crate::{FLEET, seeds};

/// Greetings and other frames of an ordinary run.
const GREETINGS: u64 = 4_000;
const FRAMES: u64 = 4_000;

/// By the clock on the wall, because the writer is another thread; its commits and other tests are in it.
const SLOWEST: Duration = Duration::from_secs(10);

const HEARTBEAT: Duration = Duration::from_secs(300);

const CONNECTION: Connection = Connection(1);

/// One replica and an engine that has just been made.
struct Door<'a> {
    store: &'a Store,
    engine: Engine,
    given: Given,
}

impl<'a> Door<'a> {
    fn central(world: &'a World, random: &mut Random, site: SiteId) -> Self {
        let mut door = Door::new(world, random, Origin::Central, Engine::central(HEARTBEAT));
        door.handle(Input::Accepted { connection: CONNECTION, site });
        door
    }

    /// A site's engine that has dialled and greeted; returns what it said, too.
    fn site(world: &'a World, random: &mut Random, site: SiteId) -> (Self, Vec<Output>) {
        let mut door = Door::new(world, random, Origin::Site(site), Engine::site(site, HEARTBEAT));
        door.handle(Input::Timeout);
        let said = door.handle(Input::Dialed { connection: CONNECTION });
        (door, said)
    }

    fn new(world: &'a World, random: &mut Random, origin: Origin, engine: Engine) -> Self {
        let given = Given { now: world.wall(), by: "sync".into(), entropy: random.bytes() };
        Door { store: world.store(origin), engine, given }
    }

    /// Hands an input to the engine and lets the store answer until both are silent; returns what goes out.
    fn handle(&mut self, input: Input) -> Vec<Output> {
        let moment = Moment { elapsed: Duration::ZERO, wall: self.given.now };
        self.engine.handle(moment, input);
        let mut said = Vec::new();
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Dial => {}
                Output::Send { .. } | Output::Close { .. } => said.push(output),
                output => {
                    if let Some(input) = answer(self.store, self.given.clone(), output) {
                        self.engine.handle(moment, input);
                    }
                }
            }
        }
        said
    }

    fn frame(&mut self, bytes: &[u8]) -> Vec<Output> {
        self.handle(Input::Frame { connection: CONNECTION, bytes: bytes.to_vec() })
    }
}

/// Why the connection is closed, if it is.
fn closed(said: &[Output]) -> Option<CloseCode> {
    said.iter().find_map(|output| match output {
        Output::Close { code, .. } => Some(*code),
        _ => None,
    })
}

/// The messages among outputs.
fn messages(said: &[Output]) -> Vec<Message> {
    let sent = said.iter().filter_map(|output| match output {
        Output::Send { bytes, .. } => Some(wire::decode(bytes).expect("an honest frame")),
        _ => None,
    });
    sent.collect()
}

/// Where a frame ended that the engine answered with `said`.
fn end_of(bytes: &[u8], said: &[Output]) -> End {
    if let Err(error) = wire::decode(bytes) {
        assert_eq!(closed(said), Some(CloseCode::Protocol), "bytes that are no message end the session");
        return (&error).into();
    }
    match closed(said) {
        None | Some(CloseCode::Done) => Stage::Accepted.into(),
        Some(CloseCode::Identity | CloseCode::Fork) => Stage::Authorize.into(),
        Some(_) => Stage::Semantic.into(),
    }
}

/// Central and a site begin with new engines and come to agree.
fn heal(world: &mut World, site: SiteId) {
    for origin in [Origin::Central, Origin::Site(site)] {
        world.crash(origin);
        world.start(origin);
    }
    let patience = Duration::from_secs(3_600);
    world.until("the site agrees again", patience, |world| world.in_agreement(site));
}

/// The honest replicas go on, and agree.
fn recover(world: &mut World, sites: [SiteId; 2]) {
    for origin in [Origin::Central, Origin::Site(sites[0]), Origin::Site(sites[1])] {
        // A writer that panicked would be gone.
        let given = Given { now: world.wall(), by: "doctor".into(), entropy: [7; 32] };
        world.store(origin).run(given, |tx| tx.rebuild_views()).expect("every document opens");
        world.crash(origin);
        world.start(origin);
    }
    for site in sites {
        let agree = |world: &World| world.in_agreement(site);
        world.until("the fleet agrees again", Duration::from_secs(3_600), agree);
    }
    let rows = |origin| {
        let rows = world.store(origin).read(|view| view.nodes(&NodeFilter::default()));
        rows.expect("the store reads")
    };
    let there = rows(Origin::Central);
    for site in sites {
        for node in rows(Origin::Site(site)) {
            let found = there.iter().find(|other| other.id == node.id);
            assert_eq!(found, Some(&node), "equal documents are equal rows");
        }
    }
}

#[test]
fn h6_no_mutated_greeting_stops_central_or_a_site() {
    let (mut world, corpus) = Corpus::of_session(FLEET);
    let [lyon, _] = corpus.sites;
    // Central's store must not think that its life ended: that is for people to decide.
    let (hellos, oks) = (corpus.frames_of(0), corpus.frames_of(1));
    let mut tally = Tally::new("hello");
    for seed in seeds("hello", GREETINGS) {
        let random = &mut Random::new(seed);
        let begun = Instant::now();
        let (mutant, said) = if random.chance(60) {
            let honest = if random.chance(50) {
                let (_, said) = Door::site(&world, random, lyon);
                first_frame(&said)
            } else {
                hellos[pick(random, hellos.len())].1.clone()
            };
            let mutant = mutant::frame(random, &corpus, &honest);
            let mut central = Door::central(&world, random, lyon);
            let said = quietly(|| central.frame(&mutant));
            (mutant, said)
        } else {
            let honest = &oks[pick(random, oks.len())].1;
            let mutant = mutant::frame(random, &corpus, honest);
            let (mut site, _) = Door::site(&world, random, lyon);
            let said = quietly(|| site.frame(&mutant));
            (mutant, said)
        };
        let said = said.unwrap_or_else(|_| panic!("seed {seed}: a panic escapes"));
        tally.note(seed, end_of(&mutant, &said), begun.elapsed());
    }
    recover(&mut world, corpus.sites);
    tally.judge(SLOWEST);
}

fn first_frame(said: &[Output]) -> Vec<u8> {
    let first = said.iter().find_map(|output| match output {
        Output::Send { bytes, .. } => Some(bytes.clone()),
        _ => None,
    });
    first.expect("a site greets")
}

#[test]
fn h6_no_mutated_frame_stops_central_and_the_other_site_goes_on() {
    let (mut world, corpus) = Corpus::of_session(FLEET);
    let [lyon, oslo] = corpus.sites;
    let from_sites: Vec<&Vec<u8>> = corpus
        .frames
        .iter()
        .filter(|(origin, _)| *origin != Origin::Central)
        .map(|(_, frame)| frame)
        .collect();
    let logs: Vec<Vec<minicbor::bytes::ByteVec>> = from_sites
        .iter()
        .filter_map(|frame| match wire::decode(frame) {
            Ok(Message::Log { items, .. }) => Some(items),
            _ => None,
        })
        .collect();
    let aside = Sql::open(world.store(Origin::Central).database()).expect("the database opens");
    let mut tally = Tally::new("frame");
    let (before, mut forks) = (writer_panics(), 0);
    for seed in seeds("frame", FRAMES) {
        let random = &mut Random::new(seed);
        let (_, said) = Door::site(&world, random, lyon);
        let mut central = Door::central(&world, random, lyon);
        let mut answered = central.frame(&first_frame(&said));
        if closed(&answered) == Some(CloseCode::Fork) {
            // A mutant acknowledged in the site's name what the site does not have: both join anew.
            drop(central);
            forks += 1;
            heal(&mut world, lyon);
            let (_, said) = Door::site(&world, random, lyon);
            central = Door::central(&world, random, lyon);
            answered = central.frame(&first_frame(&said));
        }
        assert_eq!(closed(&answered), None, "seed {seed}: an honest greeting is refused: {answered:?}");
        let answered = messages(&answered);
        let honest = if random.chance(70) {
            // What the site sends next: items of its log from where central is.
            let position = answered.iter().find_map(|message| match message {
                Message::HelloOk { pulled, .. } => Some(pulled.position),
                _ => None,
            });
            let items = logs[pick(random, logs.len())].clone();
            wire::encode(&Message::Log { from: position.unwrap_or(0) + 1, items, seal: None })
        } else {
            from_sites[pick(random, from_sites.len())].clone()
        };
        let mutant = mutant::frame(random, &corpus, &honest);
        let (begun, count) = (Instant::now(), quarantined(&aside));
        let said = quietly(|| central.frame(&mutant));
        let said = said.unwrap_or_else(|_| panic!("seed {seed}: a panic escapes"));
        let took = begun.elapsed();
        let mut end = end_of(&mutant, &said);
        let (all, denied) = quarantined(&aside);
        if end.stage == Stage::Accepted && all > count.0 {
            end.stage = if denied > count.1 { Stage::Authorize } else { Stage::Semantic };
        }
        tally.note(seed, end, took);
    }
    let panics = writer_panics() - before;
    println!(
        "frames made automerge panic {panics} times under guard of the writers; {forks} joins between them"
    );
    // The other site was never refused anything.
    let oslo_aside: i64 = aside
        .query_row("SELECT count(*) FROM quarantine WHERE peer = ?1", [oslo.to_string()], |row| row.get(0))
        .expect("the database reads");
    assert_eq!(oslo_aside, 0);
    drop(aside);
    recover(&mut world, corpus.sites);
    tally.judge(SLOWEST);
}

/// Changes that central has set aside, and how many of them because they were not for the site to write.
fn quarantined(sql: &Sql) -> (i64, i64) {
    let mut statement = sql
        .prepare_cached("SELECT count(*), ifnull(sum(denied), 0) FROM quarantine")
        .expect("the table is there");
    statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).expect("the database reads")
}

//! Central dies: what it answered is there when it is back, and the sites are too.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use harness::{
    machine::Told,
    programs::{Site, wait_for},
    random::Random,
    rest::Rest,
};
use serde_json::{Value, json};
use sync::{blob::Digest, time::Timestamp};

use crate::office::{self, Office, SOON, machine};

#[test]
fn t2_sites_are_back_within_seconds_of_a_killed_centrals_return_and_nothing_was_lost() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [20_000; 2]);
    let mut machines: Vec<_> = (1..=4).map(machine).collect();
    for machine in &machines {
        office.order(machine.mac, &workflow);
    }
    office.wait_for_ready(machines.len(), SOON);
    let others = ["oslo", "bern"].map(|name| {
        let home = office.central.folder.join(name);
        let id = office::enrol(&office.central, &office.wire, &home, name);
        Site::start(&home, name, &id)
    });
    for site in &others {
        office::settle(&office.central, site, SOON);
    }
    office.settle(SOON);

    let mut machines_left = machines.iter_mut();
    let mut install = |office: &Office| {
        let machine = machines_left.next().expect("four machines");
        office::install(machine, (&office.site).into()).expect("the site needs no central");
    };
    // Down for as long as a machine takes to install, then for as long as it takes sites to notice.
    for pause in [Duration::ZERO, Duration::from_secs(8)] {
        install(&office);
        office.central.program.kill();
        let died = now();
        install(&office);
        thread::park_timeout(pause);
        office.central.restart();
        let back = Instant::now();
        for site in [&office.site, &others[0], &others[1]] {
            let path = format!("/sites/{}", site.id);
            wait_for(&format!("{} is heard again", site.name), SOON, || {
                let seen = office.central.rest.show(&path);
                // RFC 3339 in UTC sorts as text.
                if seen["heard_at"].as_str() > Some(&died) { Ok(()) } else { Err(seen) }
            });
            println!(
                "down for {pause:?} and an installation: {} is back {:.1?} after central",
                site.name,
                back.elapsed()
            );
        }
        assert!(back.elapsed() < Duration::from_secs(20), "{:?}", back.elapsed());
    }
    office.settle(SOON);
    for site in &others {
        office::settle(&office.central, site, SOON);
    }
    office::assert_nothing_lost(&office.central, &office.site, &machines);
    let told = machines[0].power_on(&office.site);
    assert_eq!(told, Told::LocalDisk);
}

/// An idle connection says something every 10 s, so a site that is back sooner was told.
const SOONER: Duration = Duration::from_secs(5);

#[test]
fn t2_h5_a_central_that_returns_knocks_and_an_idle_site_is_back_at_once() {
    let mut office = Office::open();
    let path = format!("/sites/{}", office.site.id);
    let answer = office.central.rest.patch(&path, &json!({ "heartbeat_s": 30 }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    office.settle(SOON);
    let addresses = office.central.data().join("addresses");
    let knocks = |office: &Office| office.site.program.log().matches("central knocks").count();
    let restart = |office: &mut Office, patience, between: &dyn Fn()| {
        wait_for("central has written down where the site is", SOON, || {
            let text = std::fs::read_to_string(&addresses).unwrap_or_default();
            if text.contains(&office.site.id) { Ok(()) } else { Err(json!(text)) }
        });
        office.settle(SOON);
        wait_for_silence(office);
        office.central.program.kill();
        let died = now();
        between();
        office.central.restart();
        let back = Instant::now();
        wait_for("the site is heard again", patience, || {
            let seen = office.central.rest.show(&path);
            // RFC 3339 in UTC sorts as text.
            if seen["heard_at"].as_str() > Some(&died) { Ok(()) } else { Err(seen) }
        });
        back.elapsed()
    };
    for _ in 0..2 {
        let before = knocks(&office);
        let took = restart(&mut office, SOONER, &|| {});
        println!("an idle site is back {took:.1?} after central");
        assert!(knocks(&office) > before, "nobody knocked: {}", office.site.program.log());
    }
    // Who loses the file loses nothing else.
    let before = knocks(&office);
    let took = restart(&mut office, SOON, &|| std::fs::remove_file(&addresses).expect("the file is there"));
    println!("without the file it is back {took:.1?} after central");
    assert_eq!(knocks(&office), before);
    office.settle(SOON);
    office::assert_nothing_lost(&office.central, &office.site, &[]);
}

/// Waits until neither side has said anything for a second.
fn wait_for_silence(office: &Office) {
    let said = || {
        let carried = office.wire.carried();
        (carried.datagrams_up.load(Ordering::SeqCst), carried.datagrams_down.load(Ordering::SeqCst))
    };
    let mut last = (said(), Instant::now());
    wait_for("nothing is said for a second", SOON, || {
        if last.0 != said() {
            last = (said(), Instant::now());
        }
        if last.1.elapsed() > Duration::from_secs(1) { Ok(()) } else { Err(json!(last.0)) }
    });
}

/// What got an answer, to be found again.
#[derive(Default)]
struct Answered {
    blobs: Mutex<Vec<Digest>>,
    /// Path below which the answer stands, and the answer.
    objects: Mutex<Vec<(String, Value)>>,
    count: AtomicU64,
}

impl Answered {
    fn blob(&self, digest: Digest) {
        self.blobs.lock().expect("nobody panics").push(digest);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn object(&self, path: String, body: Value) {
        self.objects.lock().expect("nobody panics").push((path, body));
        self.count.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn l13_what_a_killed_central_answered_with_2xx_is_there_afterwards() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [20_000; 2]);
    let answered = Answered::default();
    let (site, number) = (office.site.id.clone(), AtomicU64::new(0));
    for seed in 0..6 {
        let mut random = Random::new(seed);
        let until = answered.count.load(Ordering::SeqCst) + 1 + random.below(25);
        let pause = Duration::from_micros(random.below(10_000));
        let rest = office.central.rest.clone();
        thread::scope(|scope| {
            let uploads = scope.spawn(|| upload(&rest, seed, &answered));
            let tasks = scope.spawn(|| create(&rest, &site, &workflow, &number, &answered));
            while answered.count.load(Ordering::SeqCst) < until {
                thread::park_timeout(Duration::from_micros(200));
            }
            thread::park_timeout(pause);
            office.central.program.kill();
            uploads.join().expect("a thread");
            tasks.join().expect("a thread");
        });
        office.central.restart();
        let left = std::fs::read_dir(office.central.data().join("blobs/incoming")).expect("a folder").count();
        assert_eq!(left, 0, "unfinished uploads were swept away");
        println!("seed {seed}: {} answers so far", answered.count.load(Ordering::SeqCst));
    }
    let blobs = answered.blobs.into_inner().expect("nobody panics");
    for digest in &blobs {
        let (status, bytes) = office.central.rest.bytes(&format!("/blobs/{digest}")).expect("an answer");
        assert_eq!((status, Digest::of(&bytes)), (200, *digest));
    }
    let objects = answered.objects.into_inner().expect("nobody panics");
    for (path, body) in &objects {
        let found = office.central.rest.show(path);
        assert_eq!(found["id"], body["id"], "{path}");
    }
    println!("{} blobs and {} nodes and tasks were answered for, and are there", blobs.len(), objects.len());
    // The site hears of exactly the same.
    office.settle(SOON);
    for path in ["/nodes", "/tasks"] {
        let ids = |rest: &Rest| -> Vec<Value> {
            rest.list(path).into_iter().map(|row| row["id"].clone()).collect()
        };
        assert_eq!(ids(&office.site.rest), ids(&office.central.rest), "{path}");
    }
}

/// Uploads until central does not answer.
fn upload(rest: &Rest, seed: u64, answered: &Answered) {
    for nth in 0.. {
        let bytes = office::content(&format!("upload {seed} {nth}"), 700_000);
        match rest.put("/blobs", &bytes).status {
            201 => answered.blob(Digest::of(&bytes)),
            0 => return,
            other => panic!("{other}"),
        }
    }
}

/// Describes machines and orders their installation until central does not answer.
fn create(rest: &Rest, site: &str, workflow: &Value, number: &AtomicU64, answered: &Answered) {
    loop {
        let next = u16::try_from(number.fetch_add(1, Ordering::SeqCst)).expect("few machines");
        let mac = office::mac(next).to_string();
        for (path, body) in [
            ("/nodes", json!({ "mac": mac, "site": site })),
            ("/tasks", json!({ "node": mac, "workflow": workflow })),
        ] {
            let answer = rest.post(path, &body);
            match answer.status {
                201 => {
                    let id = answer.body["id"].as_str().expect("an id").to_string();
                    answered.object(format!("{path}/{id}"), answer.body);
                }
                0 => return,
                other => panic!("{other}: {}", answer.body),
            }
        }
    }
}

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Timestamp(u64::try_from(since.as_millis()).expect("before the year 500,000,000")).to_string()
}

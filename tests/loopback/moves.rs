//! Machines that are carried from one branch to another: who claims them, who decides, and who may install.

use harness::{
    machine::{Machine, Told},
    programs::{Site, run, wait_for},
    rest::Rest,
};
use serde_json::{Value, json};

use crate::office::{self, Branch, Office, SOON, mac, machine};

/// Two branches under one central, which know of each other's machines.
fn two_branches() -> (Office, Branch) {
    let office = Office::open();
    let bern = office.branch("bern");
    (office, bern)
}

/// Waits until a site has heard of so many machines at home elsewhere.
fn knows(site: &Site, machines: u64) {
    wait_for("its directory tells of them", SOON, || {
        let directory = site.rest.show("/agent/status")["directory"].clone();
        if directory["machines"].as_u64() >= Some(machines) { Ok(()) } else { Err(directory) }
    });
}

/// Waits until the claims at some program stand so.
fn reach(rest: &Rest, states: &[&str]) -> Vec<Value> {
    wait_for(&format!("claims that are {states:?}"), SOON, || {
        let claims = rest.list("/migrations");
        let found: Vec<&str> = claims.iter().filter_map(|claim| claim["state"].as_str()).collect();
        if found == states { Ok(claims) } else { Err(json!(claims)) }
    })
}

fn id(claim: &Value) -> String {
    claim["id"].as_str().expect("an id").to_string()
}

fn holds(machine: &mut Machine, site: &Site, words: &str) {
    match machine.power_on(site) {
        Told::Hold(screen) => assert!(screen.contains(words), "{screen}"),
        other => panic!("{other:?}: {}", machine.script),
    }
}

#[test]
fn p9_p8_two_sites_adopt_one_machine_while_both_are_cut_off() {
    let (office, bern) = two_branches();
    let lyon = &office.site;
    for site in [lyon, &bern.site] {
        office::set(&office.central, &site.id, &json!({ "unknown_machines": "adopt" }));
        office::settle(&office.central, site, SOON);
    }
    let mut till = machine(1);
    office.wire.cut();
    bern.wire.cut();
    for site in [lyon, &bern.site] {
        holds(&mut till, site, "is adopted by this site");
    }
    // Central hears of bern first.
    bern.wire.heal();
    office::settle(&office.central, &bern.site, SOON);
    office.wire.heal();
    let claim = reach(&office.central.rest, &["open"]).remove(0);
    assert_eq!(
        (&claim["from"], &claim["to"], &claim["opened_by"]),
        (&json!(bern.site.id), &json!(lyon.id), &json!("central"))
    );
    office.settle(SOON);
    reach(&lyon.rest, &["open"]);
    reach(&bern.site.rest, &["open"]);
    let node = office.central.rest.show(&format!("/nodes/{}", till.mac));
    assert_eq!(node["home"], json!(bern.site.id));
    assert_eq!(lyon.rest.get(&format!("/nodes/{}", till.mac)).status, 404, "it has one home");
    holds(&mut till, lyon, "is at home at");
}

#[test]
fn p9_p8_a_machine_moves_there_and_back_while_both_are_cut_off() {
    let (office, bern) = two_branches();
    let mut till = machine(1);
    office.describe(till.mac);
    office.settle(SOON);
    knows(&bern.site, 1);
    office.wire.cut();
    bern.wire.cut();
    holds(&mut till, &bern.site, "waits for a decision");
    assert_eq!(till.power_on(&office.site), Told::LocalDisk);
    bern.wire.heal();
    office.wire.heal();
    reach(&office.central.rest, &["open"]);
    // At home the claim is known by now, and the next boot there ends it.
    reach(&office.site.rest, &["open"]);
    assert_eq!(till.power_on(&office.site), Told::LocalDisk);
    let claim = reach(&office.central.rest, &["withdrawn"]).remove(0);
    assert_eq!(claim["reason"], "the machine booted at home again");
    for rest in [&office.site.rest, &bern.site.rest] {
        reach(rest, &["withdrawn"]);
    }
    let node = office.central.rest.show(&format!("/nodes/{}", till.mac));
    assert_eq!((&node["home"], &node["home_epoch"]), (&json!(office.site.id), &json!(1)));
}

#[test]
fn p8_h3_the_new_home_waits_for_the_fence_and_the_former_one_does_not_install_any_more() {
    let (office, bern) = two_branches();
    let (central, lyon) = (&office.central.rest, &office.site);
    let (workflow, _) = office.publish("debian-12", [4_096, 4_096]);
    let mut till = machine(1);
    let held = office.order(till.mac, &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);
    knows(&bern.site, 1);
    office.wire.cut();
    holds(&mut till, &bern.site, "waits for a decision");
    let claim = reach(central, &["open"]).remove(0);
    let path = format!("/migrations/{}", id(&claim));
    let answer = central.post(&format!("{path}/approve"), &json!({ "why": "the till moved" }));
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("approved")), "{}", answer.body);
    assert_eq!(answer.body["fence"]["closed"], true, "lyon holds an order: {}", answer.body);
    assert!(answer.body["fence"]["until"].is_string(), "until that expires: {}", answer.body);
    let node = format!("/nodes/{}", till.mac);
    assert_eq!(central.show(&node)["phase"], "migrating");
    let new = json!({ "node": till.mac.to_string(), "workflow": workflow });
    let refused = central.post("/tasks", &new);
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(
        refused.body["why"]
            .as_str()
            .is_some_and(|why| why.contains("has moved and its former site may still install it")),
        "{}",
        refused.body
    );
    office::settle(&office.central, &bern.site, SOON);
    assert!(!matches!(till.power_on(&bern.site), Told::Workflow(_)));

    office.wire.heal();
    wait_for("lyon has acknowledged, and the fence opens", SOON, || {
        let claim = central.show(&path);
        let why = "lyon has acknowledged that the machine is not its own";
        if claim["fence"]["closed"] == false && claim["fence"]["reason"] == why { Ok(()) } else { Err(claim) }
    });
    office.settle(SOON);
    assert_eq!(lyon.rest.show(&format!("/tasks/{held}"))["state"], "cancelled");
    let answer = central.post("/tasks", &new);
    assert_eq!(answer.status, 201, "{}", answer.body);
    wait_for("bern has the files", SOON, || {
        let ready = bern.site.rest.list("/tasks?state=ready");
        if ready.len() == 1 { Ok(()) } else { Err(json!(ready)) }
    });
    // Carried back to lyon it is not installed there.
    assert!(!matches!(till.power_on(lyon), Told::Workflow(_)), "{}", till.script);
    office::install(&mut till, (&bern.site).into()).expect("bern is its home");
    assert_eq!(till.go_aheads(), 1);
    office::settle(&office.central, &bern.site, SOON);
    let row = central.show(&node);
    assert_eq!(
        (&row["state"], &row["home"], &row["home_epoch"]),
        (&json!("installed"), &json!(bern.site.id), &json!(2))
    );
    for site in [lyon, &bern.site] {
        let told = site.rest.list("/journal");
        let count = |event: &str| told.iter().filter(|row| row["event"] == event).count();
        assert_eq!((count("home_moved"), count("fence_opened")), (1, 1), "the journal of {}", site.name);
    }
}

#[test]
fn p8_claims_are_read_decided_and_their_fences_broken_over_rest_and_on_the_command_line() {
    let (office, bern) = two_branches();
    let central = &office.central.rest;
    office::set(&office.central, &office.site.id, &json!({ "autonomy": "full" }));
    let mut tills: Vec<Machine> = (1..=4).map(machine).collect();
    for till in &tills {
        office.describe(till.mac);
    }
    office.settle(SOON);
    knows(&bern.site, 4);
    office.wire.cut();
    for till in &mut tills {
        holds(till, &bern.site, "waits for a decision");
    }
    reach(central, &["open"; 4]);
    let of = |till: u16| {
        let mut found = central.list(&format!("/migrations?node={}", mac(till)));
        assert_eq!(found.len(), 1);
        id(&found.remove(0))
    };
    let to =
        |claim: &str, what: &str, body: &Value| central.post(&format!("/migrations/{claim}/{what}"), body);
    assert_eq!(central.list(&format!("/migrations?to={}&state=open", bern.site.id)).len(), 4);
    assert_eq!(central.list(&format!("/migrations?to={}", office.site.id)), Vec::<Value>::new());
    assert_eq!(central.list("/migrations?from=lyon&state=approved"), Vec::<Value>::new());

    // What cannot be is said.
    let unknown = "0".repeat(32);
    for (claim, what, body, status) in [
        (unknown.as_str(), "approve", json!({}), 404),
        ("garbage", "approve", json!({}), 404),
        (&of(1), "approve", json!({ "because": "x" }), 400),
        (&of(1), "break-fence", json!({}), 400),
        (&of(1), "break-fence", json!({ "name": "pos-1" }), 409),
    ] {
        let answer = to(claim, what, &body);
        assert_eq!(answer.status, status, "{what} {claim}: {}", answer.body);
        assert!(answer.body["why"].is_string(), "{}", answer.body);
    }
    assert_eq!(central.get("/migrations?state=undecided").status, 400);
    assert_eq!(central.get(&format!("/migrations/{unknown}")).status, 404);
    let nowhere = central.post("/migrations/decide", &json!({ "approve": true }));
    assert_eq!(nowhere.status, 400, "{}", nowhere.body);

    // A preview changes nothing.
    let many = |dry_run: bool| {
        let body =
            json!({ "approve": true, "from": "lyon", "to": "bern", "why": "moved", "dry_run": dry_run });
        central.post("/migrations/decide", &body)
    };
    let rejected = to(&of(1), "reject", &json!({ "why": "it was stolen" }));
    assert_eq!((rejected.status, &rejected.body["state"]), (200, &json!("rejected")), "{}", rejected.body);
    let seen = many(true);
    assert_eq!((seen.status, &seen.body["decided"]), (200, &json!(3)), "{}", seen.body);
    assert_eq!(central.list("/migrations?state=open").len(), 3);
    let done = many(false);
    assert_eq!((done.status, &done.body["decided"]), (200, &json!(3)), "{}", done.body);
    let again = to(&of(2), "approve", &json!({}));
    assert_eq!(again.status, 409, "{}", again.body);

    // Lyon is `full` and cut off: only a person opens these fences, who types the name of the machine.
    let cli = |words: &[&str]| {
        let config = office.central.config().to_str().expect("a path").to_string();
        run("holdfast-central", &[&["migrations"], words, &["--config", &config]].concat())
    };
    let fenced = of(2);
    let (code, _, said) = cli(&["break-fence", &fenced, "--name", "pos-2", "--why", "lyon burned down"]);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("type its name"), "{said}");
    let name = mac(2).to_string();
    let (code, _, said) = cli(&["break-fence", &fenced, "--name", &name, "--why", "lyon burned down"]);
    assert_eq!(code, 0, "{said}");
    let claim = central.show(&format!("/migrations/{fenced}"));
    assert_eq!(
        (&claim["fence"]["closed"], &claim["fence"]["broken_by"]),
        (&json!(false), &json!("admin")),
        "{claim}"
    );
    let (code, list, said) = cli(&["list", "--to", "bern"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(list.lines().filter(|line| line.contains("approved")).count(), 3, "{list}");
    let (code, one, said) = cli(&["show", &of(1)]);
    assert_eq!(code, 0, "{said}");
    assert!(one.contains("rejected") && one.contains("it was stolen"), "{one}");
    // The rejected machine is told to go home.
    office::settle(&office.central, &bern.site, SOON);
    holds(&mut tills[0], &bern.site, "return it to its home site");
}

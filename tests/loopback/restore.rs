//! Yesterday's database: a site that was rolled back, and a central that was restored. Nobody's disk is written
//! by an order of yesterday, nothing is lost that somebody still has, and a person's word ends it.

use std::{collections::BTreeSet, fs, path::Path};

use expect_test::expect;
use harness::{
    machine::{Machine, Told},
    programs::{Site, run, wait_for},
    rest::Rest,
};
use serde_json::{Value, json};
use sync::id::NodeId;

use crate::{
    office::{self, Office, SOON, machine},
    words::masked,
};

/// How much of a site's folder comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// The database alone: what lies beside it is of today.
    Database,
    /// All of it, as a virtual machine is rolled back: nothing in the folder tells.
    Everything,
}

fn copy(from: &Path, to: &Path, chosen: &dyn Fn(&str) -> bool) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            copy(&path, &to.join(name), chosen);
        } else if chosen(&name.to_string_lossy()) {
            fs::copy(&path, to.join(name)).expect("a copy");
        }
    }
}

/// Removes the files of the database below a folder.
fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            clear(&path);
        } else if is_database(&entry.file_name().to_string_lossy()) {
            fs::remove_file(path).expect("removed");
        }
    }
}

fn is_database(name: &str) -> bool {
    name.starts_with("holdfast.db")
}

/// The facts in a site's stream, as one program has it.
fn facts(rest: &Rest, site: &str) -> BTreeSet<String> {
    let rows = rest.list(&format!("/journal?site={site}"));
    rows.iter()
        .map(|row| json!([row["incarnation"], row["seq"], row["event"], row["at"]]).to_string())
        .collect()
}

/// Every report of these machines is in central's journal once, each was given its go-ahead once, and both
/// sides show the same. A site that went back has not all of its own journal any more; central has.
fn assert_once(office: &Office, machines: &[&Machine]) {
    let rows = office.central.rest.list(&format!("/journal?site={}", office.site.id));
    for machine in machines {
        for reported in &machine.log {
            let is_it = |row: &&Value| row["report"] == reported.id && row["event"] == "report_received";
            assert_eq!(rows.iter().filter(is_it).count(), 1, "{reported:?} of {} at central", machine.mac);
        }
        let node = NodeId::of(machine.mac).to_string();
        let consumed = rows.iter().filter(|row| row["event"] == "order_consumed" && row["node"] == node);
        assert_eq!(consumed.count(), 1, "orders of {} that were consumed", machine.mac);
        assert_eq!(machine.go_aheads(), 1, "{:?}", machine.log);
        let path = format!("/nodes/{}", machine.mac);
        let (here, there) = (office.site.rest.show(&path), office.central.rest.show(&path));
        assert_eq!(here, there, "both show the same machine");
        assert!(["installed", "active"].iter().any(|state| there["state"] == *state), "{there}");
    }
    let [here, there] = [&office.site.rest, &office.central.rest].map(|rest| facts(rest, &office.site.id));
    let missing: Vec<&String> = here.difference(&there).collect();
    assert!(missing.is_empty(), "central lacks {missing:#?}");
}

fn suspended(site: &Site) -> Value {
    site.rest.show("/agent/status")["suspended"].clone()
}

fn check_site(back: Back) {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [20_000; 2]);
    let [mut yesterday, mut today, mut tomorrow] = [1, 2, 3].map(machine);
    for machine in [&yesterday, &today] {
        office.order(machine.mac, &workflow);
    }
    office.wait_for_ready(2, SOON);
    office::install(&mut yesterday, (&office.site).into()).expect("it is installed");
    office.settle(SOON);

    // The end of yesterday. The second machine's order is ready and not used.
    office.site.program.kill();
    let (data, kept) = (office.site.data(), office.site.folder.join("yesterday"));
    copy(&data, &kept, &|_| true);
    office.site.restart();
    office.settle(SOON);
    let life = office.central.rest.show(&format!("/sites/{}", office.site.id))["incarnation"].clone();

    office::install(&mut today, (&office.site).into()).expect("it is installed");
    office.order(tomorrow.mac, &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);

    office.site.program.kill();
    clear(&data);
    copy(&kept, &data, &|name| back == Back::Everything || is_database(name));
    office.site.restart();
    let why = wait_for("the site knows that it went back", SOON, || {
        let why = suspended(&office.site);
        why.as_str().map(str::to_string).ok_or(why)
    });
    let why = masked(&why, &[]);
    match back {
        Back::Database => {
            expect!["the database is not the one that ran here last; it was restored or copied"]
                .assert_eq(&why)
        }
        Back::Everything => assert!(why.contains("went back in time"), "{why}"),
    }
    // The order that was used up today is there in yesterday's database as if it were not.
    let told = today.power_on(&office.site);
    assert!(!matches!(told, Told::Workflow(_)), "{back:?}: {told:?}");
    office.settle(3 * SOON);
    let site = office.central.rest.show(&format!("/sites/{}", office.site.id));
    assert_ne!(site["incarnation"], life, "another life");

    // What it had told is back, and no order is followed before somebody says so.
    assert_eq!(
        office.site.rest.show(&format!("/tasks?node={}", today.mac))["items"][0]["state"],
        "completed"
    );
    assert_eq!(today.power_on(&office.site), Told::LocalDisk);
    let told = tomorrow.power_on(&office.site);
    let Told::Hold(page) = &told else { panic!("{back:?}: {told:?}") };
    assert!(page.contains("this site follows no orders at the moment"), "{page}");
    wait_for("central shows it", SOON, || {
        let shown = office.central.rest.show(&format!("/sites/{}", office.site.id))["suspended"].clone();
        if shown.is_string() { Ok(()) } else { Err(shown) }
    });
    let config = office.site.config().display().to_string();
    let (code, out, complaint) = run("holdfast-site", &["resume", "--config", &config]);
    assert_eq!((code, out.as_str()), (0, "orders are followed again\n"), "{complaint}");
    office::install(&mut tomorrow, (&office.site).into()).expect("orders are followed again");
    office.settle(SOON);
    assert_once(&office, &[&yesterday, &today, &tomorrow]);
}

#[test]
fn h5_p15_a_site_rolled_back_to_yesterdays_virtual_machine_installs_nothing_twice_and_loses_nothing() {
    check_site(Back::Everything);
}

#[test]
fn h5_p15_a_site_with_yesterdays_database_alone_installs_nothing_twice_and_loses_nothing() {
    check_site(Back::Database);
}

/// Starts another branch at the same central.
fn branch(office: &Office, name: &str) -> Site {
    let home = office.site.folder.with_file_name(name);
    let id = office::enrol(&office.central, &office.wire, &home, name);
    let site = Site::start(&home, name, &id);
    office::settle(&office.central, &site, SOON);
    site
}

#[test]
fn p15_a_restored_central_gives_no_order_until_its_sites_are_back_and_somebody_says_so() {
    let mut office = Office::open();
    let mut oslo = branch(&office, "oslo");
    let (workflow, _) = office.publish("debian-12", [20_000; 2]);
    let [mut before, mut after, mut meanwhile, mut last] = [1, 2, 3, 4].map(machine);
    office.order(before.mac, &workflow);
    office.wait_for_ready(1, SOON);
    office::install(&mut before, (&office.site).into()).expect("it is installed");
    office.settle(SOON);
    let config = office.central.config().display().to_string();
    let copy = office.central.folder.join("backup").display().to_string();
    let (code, out, complaint) = run("holdfast-central", &["backup", "--config", &config, "--to", &copy]);
    assert_eq!(code, 0, "{out}{complaint}");

    // What the backup does not have: two orders, one of them used, a machine, a whole site.
    for machine in [&after, &meanwhile] {
        office.order(machine.mac, &workflow);
    }
    office.wait_for_ready(2, SOON);
    office::install(&mut after, (&office.site).into()).expect("it is installed");
    office.describe(last.mac);
    let bern = branch(&office, "bern");
    office.settle(SOON);
    office::settle(&office.central, &oslo, SOON);

    oslo.program.kill();
    office.central.program.kill();
    let (code, out, complaint) = run("holdfast-central", &["restore", "--config", &config, "--from", &copy]);
    assert_eq!(code, 0, "{out}{complaint}");
    office.central.restart();
    assert_eq!(office.central.rest.show("/health")["recovering"], true);
    // Nobody who is in recovery gives an order.
    let refused =
        office.central.rest.post("/tasks", &json!({ "node": before.mac.to_string(), "workflow": workflow }));
    assert_eq!((refused.status, &refused.body["type"]), (409, &json!("urn:holdfast:problem:recovery")));
    assert!(refused.body["next"].as_str().is_some_and(|next| next.contains("holdfast-central resume")));

    office.settle(3 * SOON);
    wait_for("bern is let in although the backup does not know it", 3 * SOON, || {
        let sites = office.central.rest.list("/sites");
        let is_back = |site: &Value| site["name"] == "bern" && site["agrees"] == true;
        if sites.iter().any(is_back) { Ok(()) } else { Err(json!(sites)) }
    });
    let recovery = wait_for("two of three are back", SOON, || {
        let (code, out, complaint) = run("holdfast-central", &["recovery", "--config", &config]);
        assert_eq!(code, 0, "{complaint}");
        if out.matches("  returned ").count() == 2 { Ok(out) } else { Err(json!(out)) }
    });
    assert!(recovery.lines().any(|line| line.starts_with("  away       oslo")), "{recovery}");
    // The office goes on with the orders that it had.
    let status = office.site.rest.show("/agent/status");
    assert_eq!((&status["central_recovers"], &status["suspended"]), (&json!(true), &Value::Null));
    office::install(&mut meanwhile, (&office.site).into()).expect("its order was there before");

    let resume = |more: &[&str]| run("holdfast-central", &[&["resume", "--config", &config], more].concat());
    let (code, _, complaint) = resume(&[]);
    expect![[r#"
        exit 6
        error: the recovery of central was not ended
          why: the recovery goes on; nothing was changed: not every site has given back what it has: oslo (not heard since, last at <time>)
          next: wait for them. If they are gone for good, or what they have does not matter, end it with `holdfast-central resume --anyway`; what they give back later is taken all the same"#]]
    .assert_eq(&format!("exit {code}\n{}", masked(&complaint, &[])));
    oslo.restart();
    office::settle(&office.central, &oslo, 3 * SOON);
    let (out, complaint) = wait_for("all are back", SOON, || {
        let (code, out, complaint) = resume(&["--why", "all are back"]);
        if code == 0 { Ok((out, complaint)) } else { Err(json!(complaint)) }
    });
    assert_eq!(
        (out.as_str(), complaint.as_str()),
        ("the recovery is over; central gives orders again\n", "")
    );
    assert_eq!(office.central.rest.show("/health")["recovering"], false);
    let ended = office.central.rest.list("/journal");
    let ended: Vec<&Value> = ended.iter().filter(|row| row["event"] == "recovery_ended").collect();
    assert_eq!(ended.len(), 1);
    assert_eq!((&ended[0]["by"], &ended[0]["why"]), (&json!("admin"), &json!("all are back")));

    // Nothing is lost, and orders are given again.
    let answer =
        office.central.rest.post("/tasks", &json!({ "node": last.mac.to_string(), "workflow": workflow }));
    assert_eq!(answer.status, 201, "{}", answer.body);
    office.wait_for_ready(1, SOON);
    office::install(&mut last, (&office.site).into()).expect("orders are given again");
    office.settle(SOON);
    assert_once(&office, &[&before, &after, &meanwhile, &last]);
    office::settle(&office.central, &bern, SOON);
}

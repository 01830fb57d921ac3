//! A branch that writes more than central takes of it waits, in plain sight, and loses nothing.

use harness::{
    programs::wait_for,
    rest::{self, Rest},
};
use serde_json::{Value, json};

use crate::office::{self, Office, SOON, mac};

/// So many times a machine says what it is, each time something else: each is a fact of the journal and a change.
const REPORTS: u32 = 80;

#[test]
fn h6_p15_a_site_beyond_its_quota_waits_in_plain_sight_until_a_person_raises_it() {
    let office = Office::open();
    let central = &office.central.rest;
    let path = format!("/sites/{}", office.site.id);
    let machine = mac(1);
    office.describe(machine);
    let set = |quota: u32| {
        let answer = central.patch(&path, &json!({ "quota_changes_s": quota }));
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    set(1);
    office.settle(SOON);

    // A hundred items may come at once.
    let door = format!("http://{}/api/v1/nodes/register", office.site.rest.address());
    for number in 0..REPORTS {
        let hardware = json!({ "cpus": 1 + number, "memory_bytes": 1 << 30, "disks": [], "nics": [] });
        let report = format!("{number:032x}");
        let body = json!({ "report": report, "mac": machine.to_string(), "hardware": hardware });
        let answer = rest::post(&door, "", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let why = "this site sends more than 1 changes a second, its quota (`quota_changes_s`)";
    let link = || office.site.rest.show("/agent/status")["link"].clone();
    let waits = wait_for("the site shows that it waits, and why", SOON, || {
        let link = link();
        if link["busy"] == why && link["busy_until"].is_string() { Ok(link) } else { Err(link) }
    });
    assert_eq!(waits["session"], true, "the session goes on");
    assert!(waits["acknowledged"].as_u64() < waits["end"].as_u64(), "the rest is at the site: {waits}");
    // Now and then something is taken, and for a moment it does not wait.
    wait_for("a person at the site reads it", SOON, || {
        let (_, status, complaint) = office.site.status();
        let told = status.contains("central is busy, this site asks again at") && status.contains(why);
        if told { Ok(()) } else { Err(json!([status, complaint])) }
    });
    wait_for("central shows that the site waits", SOON, || {
        let site = central.show(&path);
        if site["waiting"]["why"] == why && site["waiting"]["until"].is_string() { Ok(()) } else { Err(site) }
    });
    let reached = |rest: &Rest| -> Vec<Value> {
        let of_site = |row: &Value| row["event"] == "quota_reached" && row["site"] == office.site.id.as_str();
        rest.list("/journal").into_iter().filter(of_site).collect()
    };
    let noted = reached(central);
    assert_eq!(noted.len(), 1, "once in an hour: {noted:?}");
    assert_eq!((&noted[0]["quota"], &noted[0]["limit"]), (&json!("quota_changes_s"), &json!(1)));

    set(200);
    office.settle(SOON);
    assert_eq!([link()["busy"].clone(), central.show(&path)["waiting"].clone()], [Value::Null, Value::Null]);
    assert_eq!(reached(central).len(), 1);
    assert_eq!(reached(&office.site.rest).len(), 1, "the site was told");
    office::assert_nothing_lost(&office.central, &office.site, &[]);
    let rows = central.list(&format!("/journal?site={}", office.site.id));
    let reports = rows.iter().filter(|row| row["event"] == "report_received").count();
    assert_eq!(reports, REPORTS as usize, "every report is there once");
    let node = format!("/nodes/{machine}");
    assert_eq!(office.site.rest.show(&node), central.show(&node), "both show the same machine");
}

//! A replica whose disk changed it is noticed, said, and mended.

use harness::{damage::flip_a_head, programs::wait_for};
use serde_json::Value;

use crate::office::{Office, SOON, mac};

#[test]
fn h5_one_corrupted_head_shows_as_diverged_and_is_mended() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [10_000; 2]);
    office.order(mac(1), &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);

    office.site.program.kill();
    flip_a_head(&office.site.database()).expect("a head is stored");
    office.site.restart();
    let path = format!("/sites/{}", office.site.id);
    let noted = |event: &str| {
        let entries = office.central.rest.list("/journal");
        let of_site = |row: &&Value| row["event"] == event && row["site"] == office.site.id.as_str();
        entries.iter().filter(of_site).count()
    };
    wait_for("central has seen that both differ", SOON, || {
        if noted("replica_diverged") == 1 { Ok(()) } else { Err(office.central.rest.show(&path)) }
    });
    wait_for("both have found out where, and hold the same again", SOON, || {
        let seen = office.central.rest.show(&path);
        let mended = seen["agrees"] == true && seen["diverged"] == false;
        if mended && noted("replica_joined") == 2 { Ok(()) } else { Err(seen) }
    });
    assert_eq!(noted("replica_diverged"), 1, "it is in central's journal once");
    // It is a wrong copy, not a lost one: what is on the disk is still shown and still works.
    assert_eq!(office.site.rest.list("/tasks?state=ready").len(), 1);
}

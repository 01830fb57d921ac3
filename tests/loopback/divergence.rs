//! A replica whose disk changed it is noticed, and both sides say so.

use expect_test::expect;
use harness::{damage::flip_a_head, programs::wait_for};
use serde_json::Value;

use crate::{
    office::{Office, SOON, mac},
    words::masked,
};

#[test]
fn h5_one_corrupted_head_shows_as_diverged_to_people_on_both_sides() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [10_000; 2]);
    office.order(mac(1), &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);

    office.site.program.kill();
    flip_a_head(&office.site.database()).expect("a head is stored");
    office.site.restart();
    let path = format!("/sites/{}", office.site.id);
    wait_for("central shows that the site diverged", SOON, || {
        let seen = office.central.rest.show(&path);
        if seen["diverged"] == true { Ok(()) } else { Err(seen) }
    });
    let told = wait_for("the site shows it too", SOON, || {
        let (code, out, complaint) = office.site.status();
        let line = out.lines().find(|line| line.contains("different"));
        match line {
            Some(line) if code == 0 => Ok(line.trim().to_string()),
            _ => Err(Value::from(format!("exit {code}: {out}{complaint}"))),
        }
    });
    expect!["central and this site hold different documents; tell central operations"]
        .assert_eq(&masked(&told, &[]));
    let noted = office.central.rest.list("/journal");
    let noted = noted
        .iter()
        .filter(|row| row["event"] == "replica_diverged" && row["site"] == office.site.id.as_str());
    assert_eq!(noted.count(), 1, "it is in central's journal once");
    // It is a wrong copy, not a lost one: what is on the disk is still shown and still works.
    assert_eq!(office.site.rest.list("/tasks?state=ready").len(), 1);
}

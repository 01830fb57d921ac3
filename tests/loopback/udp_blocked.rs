//! A firewall lets no UDP through: everything goes over TCP, by itself, and back when UDP passes again.

use std::{sync::atomic::Ordering, time::Duration};

use expect_test::expect;
use harness::{programs::wait_for, wire::Wire};
use serde_json::{Value, json};

use crate::{
    office::{self, Office, SOON, machine},
    words::masked,
};

/// What carries the link, as the site and as central tell it.
fn carried(office: &Office) -> [Value; 2] {
    let here = office.site.rest.show("/agent/status")["link"].clone();
    let there = office.central.rest.show(&format!("/sites/{}", office.site.id));
    assert_eq!(here["transport"].is_null(), here["transport_since"].is_null(), "{here}");
    assert_eq!(there["transport"].is_null(), there["transport_since"].is_null(), "{there}");
    [here["transport"].clone(), there["transport"].clone()]
}

/// What has to pass before a session goes over: 20 s of silence, 4 s for UDP to answer, or 5 s until it is tried.
const MOVED: Duration = Duration::from_secs(60);

fn wait_until_carried_by(office: &Office, transport: &str) {
    wait_for(&format!("the link over {transport}"), MOVED, || {
        let carried = carried(office);
        if carried.iter().all(|it| *it == transport) { Ok(()) } else { Err(json!(carried)) }
    });
}

#[test]
fn t2_a_site_whose_udp_is_blocked_lives_over_tcp_and_moves_back_when_udp_passes() {
    // Enrolment, too, finds UDP blocked.
    let blocked = |central| {
        let wire = Wire::with_tcp(central).expect("a wire");
        wire.cut();
        wire
    };
    let mut office =
        Office::open_over(blocked, |_| ["env", "HOLDFAST_SITE_TRY_UDP_AFTER_S=5"].map(String::from).into());
    assert_eq!(carried(&office), ["tcp", "tcp"]);
    let (_, status, complaint) = office.site.status();
    let central = office.wire.address().to_string();
    let status = masked(&status, &[(&central, "<central>")]);
    expect!["link        connected, session up over tcp since <time>, central <central>"]
        .assert_eq(status.lines().nth(1).unwrap_or(&complaint));

    // Content comes over connections of its own, while the session goes on.
    let (calls, before) = (&office.wire.carried().calls, office.wire.carried().calls.load(Ordering::SeqCst));
    let (workflow, _) = office.publish("debian-12", [300_000, 3_000_000]);
    let mut machines = [machine(1), machine(2)];
    office.order(machines[0].mac, &workflow);
    office.order(machines[1].mac, &workflow);
    office.wait_for_ready(2, SOON);
    assert!(calls.load(Ordering::SeqCst) >= before + 2, "a kernel and an initrd");
    assert!(office.wire.carried().bytes_of_calls.load(Ordering::SeqCst) > 3_300_000);
    office::install(&mut machines[0], (&office.site).into()).expect("content is here");
    office.settle(SOON);

    // A central that ends, in order or not, is noticed at once, and found again.
    office.central.program.kill();
    wait_for("the site's sight of it", SOON, || {
        let link = office.site.rest.show("/agent/status")["link"].clone();
        if link["session"] == false && link["transport"].is_null() { Ok(()) } else { Err(link) }
    });
    office::install(&mut machines[1], (&office.site).into()).expect("the site needs no central");
    office.central.restart();
    office.settle(SOON);
    assert_eq!(carried(&office), ["tcp", "tcp"]);

    office.wire.heal();
    wait_until_carried_by(&office, "quic");
    office.settle(SOON);
    office::assert_nothing_lost(&office.central, &office.site, &machines);

    // A session over UDP that is cut off goes over to TCP without waiting for anybody.
    office.wire.cut();
    wait_until_carried_by(&office, "tcp");
    office.settle(SOON);

    // A refusal is told over TCP in the same words.
    let revoke = format!("/sites/{}/revoke", office.site.id);
    let answer = office.central.rest.post(&revoke, &json!({ "reason": "the machine is missing" }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    wait_for("the site is told", SOON, || {
        let link = office.site.rest.show("/agent/status")["link"].clone();
        let told = link["refused"].as_str().is_some_and(|why| why.ends_with("the machine is missing"));
        if told && link["session"] == false { Ok(()) } else { Err(link) }
    });
}

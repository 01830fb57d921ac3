//! One host of the branch makes up an address for each of its packets, as many as 1,000 a second are in a minute.
//!
//! Every tenth of them also fetches its boot script, which is what a site takes for a machine. Nothing is waited for
//! between two packets, so that what comes in a minute here comes in less; after each thousand the branch's own
//! machines boot, one that is known and one that nobody has ever seen.

use std::time::Instant;

use harness::{
    machine::{Firmware, Machine, Told},
    programs::wait_for,
    random::Random,
    rest,
};
use serde_json::json;
use store::command::boot::{MAX_CANDIDATES, MAX_UNREGISTERED};
use sync::id::MacAddr;

use crate::office::{self, Office, SOON, machine};

const PACKETS: usize = 60_000;
const ROUND: usize = 1_000;
const SCRIPTS: usize = 10;

#[test]
fn h6_p5_a_minute_of_a_thousand_made_up_addresses_a_second_fills_nothing_and_keeps_nobody_out() {
    let mut office = Office::open();
    let (workflow, _) = office.publish("debian-12", [4_096, 4_096]);
    let (mut known, mut ordered) = (machine(1), machine(2));
    office.describe(known.mac);
    office.order(ordered.mac, &workflow);
    let adopts = json!({ "unknown_machines": "adopt" });
    office::set(&office.central, &office.site.id, &adopts);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);

    let mut random = Random::new(0x5b0f);
    let (begun, mut slowest) = (Instant::now(), std::time::Duration::ZERO);
    for _ in 0..PACKETS / ROUND {
        for number in 0..ROUND {
            let mut made_up: [u8; 6] = random.bytes();
            // Locally administered, as none of the branch's own is.
            made_up[0] = 0x06;
            let mut stranger = Machine::new(MacAddr(made_up), Firmware::Bios, random.below(u64::MAX));
            if number % SCRIPTS == 0 {
                assert_ne!(stranger.power_on(&office.site), Told::Silence);
            } else {
                assert!(stranger.discover(&office.site).is_some(), "everybody is answered");
            }
        }
        let asked = Instant::now();
        assert_eq!(known.power_on(&office.site), Told::LocalDisk);
        slowest = slowest.max(asked.elapsed());
    }
    println!(
        "{PACKETS} addresses in {:.1?}; the slowest boot of a known machine beside them took {slowest:.1?}",
        begun.elapsed()
    );

    // Who says what he is becomes a machine of this branch although there are more unnamed ones than it takes.
    let new = machine(3);
    let url = format!("http://{}/api/v1/nodes/register", office.site.rest.address());
    let said = json!({ "report": "7".repeat(32), "mac": new.mac.to_string(), "serial": "SN-3" });
    let answer = rest::post(&url, "", &said);
    assert_eq!(answer.status, 200, "{}", answer.body);
    office::install(&mut ordered, (&office.site).into()).expect("its order waited");
    office.settle(SOON);

    let bound = usize::try_from(MAX_UNREGISTERED).expect("few");
    let nodes = wait_for("central knows the new machine", SOON, || {
        let nodes = office.central.rest.list("/nodes");
        let is_there = nodes.iter().any(|node| node["macs"] == json!([new.mac.to_string()]));
        if is_there { Ok(nodes.len()) } else { Err(json!(nodes.len())) }
    });
    assert!(nodes <= bound + 3, "{nodes} machines");
    let journal = office.site.rest.list(&format!("/journal?site={}", office.site.id)).len();
    let most = usize::try_from(MAX_CANDIDATES + 3 * MAX_UNREGISTERED).expect("few") + 100;
    println!("{nodes} machines, {journal} entries in the journal of the site");
    assert!(journal <= most, "{journal} entries in the journal");
    office::assert_nothing_lost(&office.central, &office.site, &[ordered]);
    assert!(office.site.program.runs() && office.central.program.runs());
}

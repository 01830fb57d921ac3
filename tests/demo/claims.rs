//! Machines are carried from one site to the other, one under each policy.

use std::time::Duration;

use harness::{
    machine::{Firmware, Machine, Told},
    programs::{Central, Site},
};
use serde_json::{Value, json};
use sync::id::{MacAddr, NodeId};

use crate::narrator::{Failed, Narrator};

const SOON: Duration = Duration::from_secs(20);

/// What the former and the new site say of themselves, whose consent is needed, and what then approves the move. A
/// machine that moved without any person waits for one the next time within a week, so each of these has its own.
const ENDS: [(&str, &str, &str, Option<&str>); 4] = [
    ("manual", "manual", "either", None),
    ("manual", "auto_accept", "either", Some("auto_accept@oslo")),
    ("auto_release", "manual", "either", Some("auto_release@lyon")),
    ("bidirectional", "bidirectional", "both", Some("bidirectional@oslo, bidirectional@lyon")),
];

fn mac(number: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 1, number])
}

/// Tells how machines of lyon become oslo's, and has the first one installed there.
pub(crate) fn tell(
    narrator: &mut Narrator,
    central: &Central,
    lyon: &Site,
    oslo: &Site,
    workflow: &Value,
) -> Result<(), Failed> {
    for number in 1..=ENDS.len() as u8 {
        let node = json!({ "mac": mac(number).to_string(), "site": lyon.id });
        let answer = central.rest.post("/nodes", &node);
        narrator.check(&format!("{} is at home in lyon", mac(number)), answer.status == 201, &answer.body)?;
    }
    for (number, (of_lyon, of_oslo, consent, approves)) in (1..).zip(ENDS) {
        for (site, policy) in [(lyon, of_lyon), (oslo, of_oslo)] {
            let settings = json!({ "migration_policy": policy, "migration_consent": consent });
            let answer = central.rest.patch(&format!("/sites/{}", site.id), &settings);
            let what = format!("{}: migration_policy {policy}, migration_consent {consent}", site.name);
            narrator.check(&what, answer.status == 200, &answer.body)?;
        }
        let mut machine = Machine::new(mac(number), Firmware::Bios, u64::from(number) + 40);
        narrator.wait("oslo knows that it is at home elsewhere", SOON, || {
            let told = central.rest.show(&format!("/sites/{}", oslo.id))["directory"].clone();
            (told["told"] == true && told["acknowledged"] == true, told)
        })?;
        // Settings may decide before it asks a second time.
        let told = machine.power_on(oslo);
        let held = matches!(&told, Told::Hold(screen) if screen.contains("this machine is at home at site"));
        narrator.check(
            "it boots there and is held, with its home on the screen",
            held,
            format!("{told:?}"),
        )?;
        let node = mac(number).to_string();
        let claim = || central.rest.list(&format!("/migrations?node={node}")).pop().unwrap_or_default();
        match approves {
            Some(policy) => {
                narrator.wait(&format!("{policy} approves the move"), SOON, || {
                    let claim = claim();
                    let holds = claim["state"] == "approved"
                        && claim["policy_matched"] == policy
                        && claim["automatic"] == true;
                    (holds, claim)
                })?;
            }
            None => by_a_person(narrator, central, &claim)?,
        }
        moved(narrator, central, [lyon, oslo], mac(number), approves)?;
        if number == 1 {
            installed(narrator, central, oslo, workflow, &mut machine)?;
        }
    }
    Ok(())
}

fn by_a_person(narrator: &mut Narrator, central: &Central, claim: &dyn Fn() -> Value) -> Result<(), Failed> {
    narrator.wait("its claim waits for a person", SOON, || {
        let claim = claim();
        (claim["state"] == "open" && claim["policy_matched"].is_null(), claim)
    })?;
    let id = claim()["id"].clone();
    let path = format!("/migrations/{}/approve", id.as_str().unwrap_or_default());
    let answer = central.rest.post(&path, &json!({ "why": "it stands in oslo now" }));
    let approved = answer.status == 200 && answer.body["decided_by"] == "admin";
    narrator.check("an operator approves it", approved, &answer.body)
}

/// The machine has its new home, and both sites' journals say how it got there.
fn moved(
    narrator: &mut Narrator,
    central: &Central,
    sites: [&Site; 2],
    mac: MacAddr,
    policy: Option<&str>,
) -> Result<(), Failed> {
    let node = NodeId::of(mac).to_string();
    let home = central.rest.show(&format!("/nodes/{mac}"))["home"].clone();
    narrator.check("it is at home in oslo", home == sites[1].id, &home)?;
    narrator.wait("and the journals of both sites say so", SOON, || {
        let says = |site: &Site| {
            let rows = site.rest.list("/journal");
            let of =
                |event: &str| rows.iter().rfind(|row| row["event"] == event && row["node"] == node).cloned();
            let decided = of("claim_decided").unwrap_or_default();
            decided["state"] == "approved"
                && decided["policy_matched"] == json!(policy)
                && of("home_moved").is_some_and(|row| row["to"] == sites[1].id)
        };
        let says = sites.map(says);
        (says == [true, true], json!(says))
    })
}

/// Its former home holds no order for it, so the new one may install it.
fn installed(
    narrator: &mut Narrator,
    central: &Central,
    oslo: &Site,
    workflow: &Value,
    machine: &mut Machine,
) -> Result<(), Failed> {
    let order = json!({ "node": machine.mac.to_string(), "workflow": workflow });
    narrator.wait("its fence is open, and central orders its installation", SOON, || {
        let answer = central.rest.post("/tasks", &order);
        (answer.status == 201, answer.body)
    })?;
    narrator.wait("oslo installs it, once", SOON, || {
        let told = machine.power_on(oslo);
        let installed = matches!(told, Told::Workflow(_)) && machine.install(&told);
        (installed && machine.go_aheads() == 1, json!(format!("{told:?}")))
    })
}

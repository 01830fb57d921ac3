//! Claims that nobody decides and fences that nobody opens, while no site is heard.

use store::command::boot::{self, Answered};

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

async fn reach(central: &Central, what: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let wait = async {
        loop {
            let found = central.get("/migrations").await["items"].as_array().unwrap().clone();
            if holds(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} within {LONG:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_h3_claims_end_and_fences_open_by_centrals_clock_while_no_site_is_heard() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start_looking(folder.path(), &clock, Duration::from_millis(20)).await;
    for name in ["lyon", "bern"] {
        central.post("/sites", json!({ "name": name })).await;
    }
    let short = json!({ "claim_ttl_s": 3_600 });
    assert_eq!(central.call("PATCH", "/sites/bern", Some(short)).await.0, 200);
    let macs = [1, 2].map(|last| MacAddr([0x52, 0x54, 0, 0, 0, last]));
    for mac in macs {
        central.post("/nodes", json!({ "mac": mac.to_string(), "site": "lyon" })).await;
    }
    let digests = [central.upload(b"kernel").await, central.upload(b"initrd").await].map(|it| it.to_string());
    let workflow = json!({
        "name": "debian-12", "os_family": "debian", "arch": "x86_64",
        "files": { "kernel": digests[0], "initrd": digests[1] },
    });
    let workflow = central.post("/workflows", workflow).await["id"].clone();
    let order = json!({ "node": macs[1].to_string(), "workflow": workflow });
    central.post("/tasks", order).await;

    // Lyon takes its order with it, and bern says what booted there.
    let machines = [Machine::new(&clock), Machine::new(&clock)];
    let mut enrolled = Vec::new();
    for (machine, name) in machines.iter().zip(["lyon", "bern"]) {
        enrolled.push(machine.enrol(&central, &central.invite(name).await).await.unwrap());
    }
    let homes = ["lyon", "bern"].map(|name| folder.path().join(name));
    let mut lyon = Site::start(&homes[0], &machines[0], central.server.quic(), &enrolled[0]);
    lyon.until(
        "lyon holds the order",
        |store| async move { store.read(|view| view.count_tasks()).unwrap() == 1 },
    )
    .await;
    lyon.stop().await;
    let mut bern = Site::start(&homes[1], &machines[1], central.server.quic(), &enrolled[1]);
    let nodes = macs.map(NodeId::of);
    bern.until("bern knows what is at home elsewhere", |store| async move {
        nodes.iter().all(|node| store.read(|view| view.directory(*node)).unwrap().is_some())
    })
    .await;
    for mac in macs {
        let answered = Answered {
            mac,
            answer: "hold page".into(),
            reason: "it is at home at lyon".into(),
            adopt: false,
            booting: None,
            local_disk: false,
            claims: true,
        };
        let (store, given) = (bern.store.clone(), bern.edge.given("boot"));
        off_runtime(move || store.run(given, move |tx| boot::answered(tx, &answered)).unwrap()).await;
    }
    reach(&central, "central has both claims", |found| found.len() == 2).await;
    bern.stop().await;
    let state = |found: &[Value], mac: MacAddr| {
        let of = |claim: &&Value| claim["node"] == NodeId::of(mac).to_string();
        let claim = found.iter().find(of).unwrap();
        (claim["id"].as_str().unwrap().to_string(), claim["state"].clone(), claim["fence"].clone())
    };
    let found = central.get("/migrations").await["items"].as_array().unwrap().clone();
    let (id, _, _) = state(&found, macs[1]);
    let (status, body) = central.call("POST", &format!("/migrations/{id}/approve"), None).await;
    assert_eq!((status, &body["fence"]["closed"]), (200, &json!(true)), "{body}");

    clock.wait(HOUR - Duration::from_secs(60));
    assert_eq!(central.get("/migrations?state=open").await["total"], 1, "a minute is left");
    clock.wait(Duration::from_secs(61));
    let found = reach(&central, "nobody decided in time", |found| state(found, macs[0]).1 == "expired").await;
    assert_eq!(state(&found, macs[1]).2["closed"], true, "lyon may still follow its order");
    // An order, and as long again for each of two more attempts that lyon may make.
    clock.wait(HOUR * 72 * 3);
    let found = reach(&central, "the fence opens", |found| state(found, macs[1]).2["closed"] == false).await;
    assert_eq!(state(&found, macs[1]).2["reason"], "every order that lyon could hold has expired");
    let order = json!({ "node": macs[1].to_string(), "workflow": workflow });
    central.post("/tasks", order).await;
    central.server.stop().await;
}

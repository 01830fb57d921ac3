//! Central decides about a machine that a cut-off site is at work on, and both meet again.

use harness::{
    machine::{Machine, Told},
    programs::wait_for,
};
use serde_json::{Value, json};

use crate::office::{self, Office, SOON, mac, machine};

/// A central and a `full` site that has a workflow, because a task with it was ordered and withdrawn.
fn full_office(needs_approval: bool) -> (Office, Value) {
    let office = Office::open();
    office::set(&office.central, &office.site.id, &json!({ "autonomy": "full" }));
    let (workflow, digests) = office.publish("debian-12", [4_096, 4_096]);
    if needs_approval {
        let files = json!({ "kernel": digests[0].to_string(), "initrd": digests[1].to_string() });
        let version = json!({ "files": files, "needs_approval": true });
        let path = format!("/workflows/{}/versions", workflow.as_str().expect("an id"));
        let answer = office.central.rest.post(&path, &version);
        assert_eq!(answer.status, 201, "{}", answer.body);
    }
    let brought = office.order(mac(90), &workflow);
    office.wait_for_ready(1, SOON);
    let answer = office.central.rest.decide(&format!("/tasks/{brought}/cancel"), "it only brought the files");
    assert_eq!(answer.status, 200, "{}", answer.body);
    office.settle(SOON);
    (office, workflow)
}

impl Office {
    /// How both sides show a machine; they must show the same.
    fn machine(&self, machine: &Machine) -> Value {
        let path = format!("/nodes/{}", machine.mac);
        let (here, there) = (self.site.rest.show(&path), self.central.rest.show(&path));
        assert_eq!(here, there, "both show the same machine");
        there
    }

    /// The states of a task at both sides.
    fn task(&self, id: &str) -> [Value; 2] {
        [&self.site.rest, &self.central.rest].map(|rest| rest.show(&format!("/tasks/{id}"))["state"].clone())
    }
}

/// Powers a machine on until it is given its workflow.
fn booted(machine: &mut Machine, office: &Office) -> Told {
    wait_for("the machine is given its workflow", SOON, || match machine.power_on(&office.site) {
        told @ Told::Workflow(_) => Ok(told),
        other => Err(json!(format!("{other:?}"))),
    })
}

#[test]
fn h3_p7_central_retires_what_the_cut_off_site_is_installing() {
    let office = Office::open();
    let (workflow, _) = office.publish("debian-12", [4_096, 4_096]);
    let mut till = machine(1);
    let task = office.order(till.mac, &workflow);
    office.wait_for_ready(1, SOON);
    office.settle(SOON);
    office.wire.cut();
    let told = booted(&mut till, &office);
    assert!(till.load(&told));
    till.register(&told);
    assert_eq!(till.report(&told, "go_ahead", &json!({})).status, 200);
    assert_eq!(till.report(&told, "install_started", &json!({})).status, 200);
    let retires = json!({ "wanted": "retired", "why": "it was sold" });
    let answer = office.central.rest.patch(&format!("/nodes/{}", till.mac), &retires);
    assert_eq!(answer.status, 200, "{}", answer.body);
    office.wire.heal();
    office.settle(SOON);
    let row = office.machine(&till);
    assert_eq!((&row["state"], &row["wanted"]), (&json!("installing"), &json!("retired")));
    // The attempt ends, for half a system is worse than a whole one, and then the machine is gone.
    assert_eq!(till.report(&told, "install_complete", &json!({})).status, 200);
    office.settle(SOON);
    assert_eq!(office.task(&task), [json!("completed"), json!("completed")]);
    assert_eq!(office.machine(&till)["phase"], "retired");
    assert_eq!(till.power_on(&office.site), Told::LocalDisk);
    let again =
        office.central.rest.post("/tasks", &json!({ "node": till.mac.to_string(), "workflow": workflow }));
    assert_eq!(again.status, 409, "{}", again.body);
    assert!(
        again.body["why"].as_str().is_some_and(|why| why.ends_with("is wanted `retired`")),
        "{}",
        again.body
    );
    assert_eq!(till.go_aheads(), 1);
    assert_eq!(
        office.central.rest.list("/sync/conflicts"),
        Vec::<Value>::new(),
        "a fact and a wish do not meet"
    );
}

#[test]
fn h3_p5_the_order_of_central_arrives_stale_where_the_cut_off_full_site_installed_by_its_own() {
    let (office, workflow) = full_office(false);
    let mut till = machine(1);
    office.describe(till.mac);
    office.settle(SOON);
    office.wire.cut();
    let new = json!({ "node": till.mac.to_string(), "workflow": workflow });
    let by_central = office.central.rest.post("/tasks", &new);
    assert_eq!(by_central.status, 201, "{}", by_central.body);
    let by_site = office.site.rest.post("/tasks", &new);
    assert_eq!(by_site.status, 201, "{}", by_site.body);
    office::install(&mut till, (&office.site).into()).expect("the site orders for itself");
    office.wire.heal();
    office.settle(SOON);
    let id = by_central.body["id"].as_str().expect("an id").to_string();
    let worth = || {
        let (code, status, complaint) = office.site.status();
        assert_eq!(code, 0, "{complaint}");
        status
    };
    let stale = format!("task {id} attempt 1");
    let told = worth();
    let line = told.lines().find(|line| line.contains(&stale)).unwrap_or(&told);
    assert!(line.ends_with("stale: the machine was installed since the order was given"), "{line}");
    match till.power_on(&office.site) {
        Told::Hold(screen) => assert!(screen.contains("installed since the order was given"), "{screen}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(till.go_aheads(), 1);
    assert_eq!(office.machine(&till)["state"], "installed");
}

#[test]
fn h3_p5_an_operator_at_the_cut_off_full_site_approves_what_central_rejects() {
    let (office, workflow) = full_office(true);
    let mut till = machine(1);
    let task = office.order(till.mac, &workflow);
    office.wait_for_ready(1, SOON);
    let told = booted(&mut till, &office);
    till.register(&told);
    office.settle(SOON);
    assert_eq!(office.task(&task), [json!("pending_approval"), json!("pending_approval")]);
    office.wire.cut();
    let path = |verdict: &str| format!("/tasks/{task}/{verdict}");
    let no = office.central.rest.decide(&path("reject"), "the disk is too small");
    let yes = office.site.rest.decide(&path("approve"), "the disk was replaced");
    assert_eq!((no.status, yes.status), (200, 200), "{} {}", no.body, yes.body);
    office.wire.heal();
    office.settle(SOON);
    // Nobody had begun, so what stops wins, and both are told that they disagreed.
    assert_eq!(office.task(&task), [json!("rejected"), json!("rejected")]);
    assert_eq!(till.report(&told, "go_ahead", &json!({})).status, 409);
    assert_eq!(till.go_aheads(), 0);
    let conflicts = office.central.rest.list("/sync/conflicts");
    assert_eq!(conflicts.len(), 1, "{conflicts:?}");
    let (path, ended) = (&conflicts[0]["path"], &conflicts[0]["ended"]);
    assert_eq!((path, &ended["why"]), (&json!("approval"), &json!("what stops wins")), "{conflicts:?}");
    for rest in [&office.central.rest, &office.site.rest] {
        let told = rest.list("/journal");
        let settled: Vec<&Value> = told.iter().filter(|row| row["event"] == "conflict_settled").collect();
        assert_eq!(settled.len(), 1, "{settled:?}");
        assert!(settled[0].to_string().contains("the disk was replaced"), "with both sides: {}", settled[0]);
    }
}

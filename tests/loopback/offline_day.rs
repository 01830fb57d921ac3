//! A day at a `limited` branch without its central: what was done there, what was asked of central, and what became
//! of it. `docs/operate/offline.md` shows what this prints.

use std::fmt::Write as _;

use harness::{programs::wait_for, rest::Answer};
use serde_json::{Value, json};

use crate::office::{self, Office, SOON, mac};

/// What was asked, and how it was answered.
fn told(transcript: &mut String, asked: &str, answer: &Answer) {
    let body = &answer.body;
    let said = match answer.status {
        202 => format!("waits as proposal {}", body["id"].as_str().unwrap_or_default()),
        200 | 201 => "done".to_string(),
        _ => body["why"].as_str().unwrap_or_default().to_string(),
    };
    writeln!(transcript, "{asked}\n    {} {said}", answer.status).expect("text");
}

#[test]
fn p5_h1_a_day_without_central_at_a_limited_branch_and_what_became_of_it() {
    let office = Office::open();
    let (workflow, _) = office.publish("debian-12", [4_096, 4_096]);
    let held = office.order(mac(1), &workflow);
    let dropped = office.order(mac(2), &workflow);
    office.describe(mac(3));
    office.settle(SOON);
    office.wait_for_ready(2, SOON);
    let site = &office.site.rest;

    office.wire.cut();
    wait_for("the site sees the cut", SOON, || {
        let state = site.show("/agent/status")["link"]["state"].clone();
        if state == "offline" { Ok(()) } else { Err(state) }
    });
    let mut day = String::new();
    let node = |last: u16| format!("/nodes/{}", mac(last));
    let answer = site.patch(&node(1), &json!({ "hostname": "till-1", "why": "new label" }));
    assert_eq!(answer.status, 200, "{}", answer.body);
    told(&mut day, r#"PATCH /nodes/…:01 {"hostname": "till-1"}"#, &answer);
    let answer = site.post("/nodes", &json!({ "mac": mac(9).to_string(), "why": "a new till" }));
    assert_eq!(answer.status, 201, "{}", answer.body);
    told(&mut day, r#"POST /nodes {"mac": "…:09"}"#, &answer);
    let answer = site.decide(&format!("/tasks/{dropped}/cancel"), "the till stays");
    assert_eq!(answer.status, 200, "{}", answer.body);
    told(&mut day, "PUT /tasks/…/cancel", &answer);
    let ordered = site.post(
        "/tasks",
        &json!({ "node": mac(3).to_string(), "workflow": "debian-12", "why": "the till is empty" }),
    );
    assert_eq!(ordered.status, 202, "{}", ordered.body);
    told(&mut day, r#"POST /tasks {"node": "…:03", "workflow": "debian-12"}"#, &ordered);
    let retired = site.patch(&node(2), &json!({ "wanted": "retired", "why": "fell off the table" }));
    assert_eq!(retired.status, 202, "{}", retired.body);
    told(&mut day, r#"PATCH /nodes/…:02 {"wanted": "retired"}"#, &retired);
    let too_late = site.patch(&node(3), &json!({ "wanted": "reprovision", "why": "twice is safer" }));
    assert_eq!(too_late.status, 202, "{}", too_late.body);
    told(&mut day, r#"PATCH /nodes/…:03 {"wanted": "reprovision"}"#, &too_late);
    let impossible = site.decide(&format!("/tasks/{held}/approve"), "go");
    assert_eq!(impossible.status, 409, "{}", impossible.body);
    told(&mut day, "PUT /tasks/…/approve", &impossible);
    // Meanwhile central decides about the same machine.
    let ignored = office.central.rest.patch(&node(3), &json!({ "wanted": "ignored", "why": "sold" }));
    assert_eq!(ignored.status, 200, "{}", ignored.body);
    let (code, status, complaint) = office.site.status();
    assert_eq!(code, 0, "{complaint}");
    assert!(status.contains("proposals   3 wait for central"), "{status}");
    println!("{day}\n$ holdfast-site status\n{status}");

    office.wire.heal();
    wait_for("central has answered", SOON, || {
        let proposals = site.show("/agent/status")["proposals"].clone();
        if proposals["open"] == 0 { Ok(()) } else { Err(proposals) }
    });
    office.settle(SOON);
    let end = |asked: &Answer| {
        let id = asked.body["id"].as_str().expect("an id");
        let row = site.show(&format!("/proposals/{id}"));
        (row["state"].clone(), row["outcome"]["reason"].as_str().unwrap_or_default().to_string())
    };
    let (state, why) = end(&ordered);
    assert_eq!((&state, why.ends_with("is wanted `ignored`")), (&json!("refused"), true), "{why}");
    assert_eq!(end(&retired), (json!("applied"), "done by central".into()));
    let (state, why) = end(&too_late);
    assert_eq!((&state, why.contains("must be wanted `keep`")), (&json!("refused"), true), "{why}");
    let central = &office.central.rest;
    assert_eq!(central.show(&node(2))["wanted"], "retired");
    assert_eq!(central.show(&node(1))["hostname"], "till-1");
    assert_eq!(central.show(&node(9))["home"], json!(office.site.id));
    assert_eq!(central.show(&format!("/tasks/{dropped}"))["state"], "cancelled");
    let open: Vec<Value> = central.list("/proposals?state=open");
    assert_eq!(open, Vec::<Value>::new());
    let (_, status, _) = office.site.status();
    println!("$ holdfast-site status\n{status}");
    office::assert_nothing_lost(&office.central, &office.site, &[]);
}

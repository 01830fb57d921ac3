//! What a branch admin types at a `limited` site while the link is cut, and what becomes of it: with the shipped
//! program, its lines and its exit status. `docs/operate/offline.md` shows what this prints.

use harness::programs::{run, wait_for};
use serde_json::{Value, json};

use crate::{
    office::{Office, SOON, mac},
    words::masked,
};

/// Types a command; gives the exit status and everything that is said, with what differs from run to run masked.
fn typed(office: &Office, transcript: &mut String, words: &[&str], names: &[(&str, &str)]) -> (i32, String) {
    let config = office.site.config().display().to_string();
    let mut arguments = words.to_vec();
    arguments.extend(["--config", &config]);
    let (code, out, complaint) = run("holdfast-site", &arguments);
    let said = masked(&format!("{out}{complaint}"), names);
    let shown: Vec<String> = words
        .iter()
        .map(|word| if word.contains(' ') { format!("'{word}'") } else { word.to_string() })
        .collect();
    *transcript += &format!("$ holdfast-site {}\n", masked(&shown.join(" "), names));
    for line in said.lines() {
        *transcript += &format!("{line}\n");
    }
    *transcript += &format!("[{code}]\n");
    (code, out)
}

#[test]
fn p5_h1_a_branch_admin_asks_on_the_command_line_and_reads_what_became_of_it() {
    let office = Office::open();
    let (workflow, _) = office.publish("debian-12", [4_096, 4_096]);
    let held = office.order(mac(1), &workflow);
    office.describe(mac(2));
    office.settle(SOON);
    office.wait_for_ready(1, SOON);
    office.wire.cut();
    wait_for("the site sees the cut", SOON, || {
        let state = office.site.rest.show("/agent/status")["link"]["state"].clone();
        if state == "offline" { Ok(()) } else { Err(state) }
    });

    let node = |last: u16| mac(last).to_string();
    let mut day = String::new();
    let mut enter = |words: &[&str]| typed(&office, &mut day, words, &[]);
    // Allowed: done here and now.
    let (code, _) =
        enter(&["nodes", "set", &node(1), "--hostname", "till-1", "--tag", "rack=r7", "--why", "new label"]);
    assert_eq!(code, 0);
    assert_eq!(enter(&["nodes", "adopt", &node(9), "--why", "a new till"]).0, 0);
    assert_eq!(enter(&["tasks", "list", "--state", "ready"]).0, 0);
    // Not by itself: central is asked.
    let order = ["tasks", "create", &node(2), "--workflow", "debian-12@1", "--why", "the till is empty"];
    let (code, waits) = enter(&order);
    assert_eq!(code, 3);
    let proposal = waits.split('\t').next().expect("an id").to_string();
    assert_eq!(enter(&["proposals", "show", &proposal]).0, 0);
    // Not at all.
    assert_eq!(enter(&["tasks", "approve", &held, "--why", "go"]).0, 1);
    let nobody = "93ea065b84c82c6db6c70e34dfe4b0cb";
    assert_eq!(enter(&["migrations", "consent", nobody, "--yes"]).0, 1);
    assert_eq!(enter(&["nodes", "show", "52:54:00:00:00:77"]).0, 1);
    assert_eq!(enter(&["nodes", "set", &node(1)]).0, 2);

    office.wire.heal();
    wait_for("central has answered", SOON, || {
        let row = office.site.rest.show(&format!("/proposals/{proposal}"));
        if row["state"] == "applied" { Ok(()) } else { Err(row) }
    });
    assert_eq!(enter(&["proposals", "show", &proposal]).0, 0);
    // Whose token is wrong reads that it is, and not that nobody answers.
    std::fs::write(office.site.data().join("admin-token"), "0".repeat(64)).expect("another token");
    assert_eq!(enter(&["status"]).0, 1);
    office.settle(SOON);
    let ordered = office.central.rest.list(&format!("/tasks?node={}", node(2)));
    assert_eq!(ordered.len(), 1, "the order is there once: {ordered:?}");
    let named = office.central.rest.show(&format!("/nodes/{}", node(1)));
    assert_eq!((&named["hostname"], &named["tags"]), (&json!("till-1"), &json!({ "rack": "r7" })));
    assert_ne!(office.central.rest.show(&format!("/nodes/{}", node(9)))["home"], Value::Null);
    expect_test::expect![[r#"
        $ holdfast-site nodes set 52:54:00:00:00:01 --hostname till-1 --tag rack=r7 --why 'new label'
        <id>	pending	52:54:00:00:00:01	till-1	keep
          tags	{"rack":"r7"}
          home	<id>
          state	discovered
        [0]
        $ holdfast-site nodes adopt 52:54:00:00:00:09 --why 'a new till'
        <id>	discovered	52:54:00:00:00:09		keep
          state	discovered
          because	adopted by a person
        [0]
        $ holdfast-site tasks list --state ready
        <id>	ready	<id>	<id>@1	boot files are here and verified
        [0]
        $ holdfast-site tasks create 52:54:00:00:00:02 --workflow debian-12@1 --why 'the till is empty'
        <id>	waits for central: this site may not do it by itself
          see how it ends with `holdfast-site proposals show <id>`
        [3]
        $ holdfast-site proposals show <id>
        <id>	open	create_task	<time>
          asked for by	admin
          because	the till is empty
          about	node
          id	<id>
          wished	{"task":{"parameters":{},"tags":{},"version":1,"workflow":"<id>"}}
        [0]
        $ holdfast-site tasks approve <id> --why go
        error: task <id> was not approved
          why: task <id> is ready, so there is nothing to approve or reject
          next: change what the reason names, or ask central
        [1]
        $ holdfast-site migrations consent <id> --yes
        error: this side has said nothing about claim <id>
          why: claim <id> is not known here
          next: check the id; at a site only what concerns the site is known, as of its last contact with central
        [1]
        $ holdfast-site nodes show 52:54:00:00:00:77
        error: machine 52:54:00:00:00:77 cannot be shown
          why: node 52:54:00:00:00:77 is not known here
          next: check the id; at a site only what concerns the site is known, as of its last contact with central
        [1]
        $ holdfast-site nodes set 52:54:00:00:00:01
        error: the following required arguments were not provided:
          <--hostname <HOSTNAME>|--address <ADDRESS>|--notes <TEXT>|--wanted <WANTED>|--tag <KEY=VALUE>>

        Usage: holdfast-site nodes set --config <CONFIG> <--hostname <HOSTNAME>|--address <ADDRESS>|--notes <TEXT>|--wanted <WANTED>|--tag <KEY=VALUE>> <NODE>

        For more information, try '--help'.
        [2]
        $ holdfast-site proposals show <id>
        <id>	applied	create_task	<time>	task <id> was created
          asked for by	admin
          because	the till is empty
          about	node
          id	<id>
          wished	{"task":{"parameters":{},"tags":{},"version":1,"workflow":"<id>"}}
          ended by	central
          ended at	<time>
        [0]
        $ holdfast-site status
        error: the status cannot be shown
          why: no bearer token, or a wrong one, was sent
          next: send `Authorization: Bearer …` with the content of the file `admin-token` in the agent's data folder
        [1]
    "#]].assert_eq(&day);
}

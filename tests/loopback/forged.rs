//! A branch whose database says what is not its own to say: set aside, shown, decided, and its honest work taken.

use std::time::{SystemTime, UNIX_EPOCH};

use expect_test::expect;
use harness::programs::{Site, run, wait_for};
use serde_json::{Value, json};
use store::{
    Given, Opening, Store,
    command::{
        boot::{self, Answered},
        node::{self, NodeEdit},
    },
};
use sync::{
    blob::Digest,
    id::{MacAddr, NodeId, Origin, SiteId},
    time::Timestamp,
};

use crate::{
    office::{self, Office, SOON, mac},
    words::masked,
};

/// Whoever has the disk of a site has its database: he takes a machine of another site for its own and names
/// it, and does an honest day's work besides.
fn forge(site: &Site, theirs: MacAddr, own: MacAddr) {
    let origin = Origin::Site(site.id.parse::<SiteId>().expect("an id"));
    let given = |step: u8| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        let now = Timestamp(u64::try_from(now).expect("a time"));
        let entropy = *Digest::of(format!("{} {step}", site.id).as_bytes()).as_bytes();
        Given { now, by: "eve".into(), entropy }
    };
    let folder = site.database().parent().expect("a folder").to_path_buf();
    let store = Store::open(&Opening { folder, origin, given: given(1) }).expect("its own library opens it");
    for (step, mac) in [(2, theirs), (3, own)] {
        let answered = Answered {
            mac,
            answer: "local disk".into(),
            reason: "forged".into(),
            adopt: true,
            booting: None,
            local_disk: true,
            claims: false,
        };
        store.run(given(step), move |tx| boot::answered(tx, &answered)).expect("it is written");
    }
    let name = NodeEdit { hostname: Some("eves-own".into()), ..NodeEdit::default() };
    let renames = move |tx: &mut store::Tx<'_>| node::edit(tx, NodeId::of(theirs), &name).map(drop);
    store.run(given(4), renames).expect("it is written");
}

#[test]
fn p6_h6_a_forged_write_to_another_sites_machine_is_set_aside_and_the_sites_honest_work_goes_through() {
    let office = Office::open();
    let folder = tempfile::tempdir().expect("a folder");
    let home = folder.path().join("bern");
    let id = office::enrol(&office.central, &office.wire, &home, "bern");
    let mut bern = Site::start(&home, "bern", &id);
    let central = &office.central;
    let set = central.rest.patch(&format!("/sites/{id}"), &json!({ "heartbeat_s": 1 }));
    assert_eq!(set.status, 200, "{}", set.body);
    let (theirs, own) = (mac(1), mac(9));
    office.describe(theirs);
    office.settle(SOON);
    office::settle(central, &bern, SOON);
    let told = central.rest.show(&format!("/sites/{id}"))["end"].as_u64().expect("a number");
    wait_for("bern has acknowledged where that machine is at home", SOON, || {
        let site = central.rest.show(&format!("/sites/{id}"));
        let heard = site["acknowledged"] == site["end"] && site["end"].as_u64() >= Some(told);
        if heard && told > 0 { Ok(()) } else { Err(site) }
    });

    bern.program.kill();
    forge(&bern, theirs, own);
    bern.restart();
    let node = |mac: MacAddr| central.rest.get(&format!("/nodes/{mac}")).body;
    wait_for("central has the machine that bern found", SOON, || {
        if node(own)["home"] == id.as_str() { Ok(()) } else { Err(node(own)) }
    });
    let proposals = || central.rest.list("/proposals?state=open&site=bern");
    wait_for("what somebody wanted there is asked for", SOON, || {
        if proposals().len() == 1 { Ok(()) } else { Err(json!(central.rest.list("/journal"))) }
    });
    office::settle(central, &bern, 2 * SOON);
    assert_eq!(node(theirs)["home"], office.site.id.as_str());
    assert_eq!((&node(theirs)["hostname"], &node(theirs)["observed_by"]), (&json!(""), &json!([])));

    // A person looks at it from the command line.
    let config = central.config().display().to_string();
    let desk = |words: &[&str]| {
        let words = [&["quarantine"], words, &["--config", &config]].concat();
        let (code, out, complaint) = run("holdfast-central", &words);
        assert_eq!(code, 0, "{complaint}");
        out
    };
    let items = central.rest.list("/quarantine?site=bern&denied=true");
    assert!(items.iter().all(|item| item["document"] == NodeId::of(theirs).to_string()), "{items:?}");
    assert_eq!(desk(&["list", "--site", "bern", "--denied"]).lines().count(), items.len());
    assert_eq!(desk(&["list", "--site", "lyon"]), "");
    let named = |item: &&Value| item["reason"].as_str().is_some_and(|it| it.starts_with("`hostname`"));
    let item = items.iter().find(named).expect("the name is there")["item"].to_string();
    expect![[r#"
        item <number> of bern, <time>: <size> bytes, digest <digest>
        for node <id>
        denied: `hostname` of node <id> was written after bern had acknowledged that this node is not its own
        change <digest>, number 1 of actor <id>, at <time>
          hostname = {"value":"eves-own"}
            by eve at <id>, <time>, settings epoch 2"#]]
    .assert_eq(&masked(
        &desk(&["show", &item])
            .replacen(&format!("item {item} "), "item <number> ", 1)
            .split(": ")
            .enumerate()
            .map(|(at, part)| match part.split_once(" bytes") {
                Some((_, rest)) if at == 1 => format!("<size> bytes{rest}"),
                _ => part.to_string(),
            })
            .collect::<Vec<_>>()
            .join(": "),
        &[],
    ));
    let exported = folder.path().join("item.bin");
    desk(&["export", &item, "--to", &exported.display().to_string()]);
    let bytes = std::fs::read(&exported).expect("a file");
    let shown = central.rest.show(&format!("/quarantine/{item}"));
    assert_eq!(shown["digest"], Digest::of(&bytes).to_string());

    // It is decided once, by whoever releases it, and the other site hears of it.
    desk(&["release", &item, "--why", "eve asked nicely"]);
    wait_for("lyon hears of it", SOON, || {
        let here = office.site.rest.get(&format!("/nodes/{theirs}")).body;
        if here["hostname"] == "eves-own" { Ok(()) } else { Err(here) }
    });
    assert_eq!(central.rest.get(&format!("/quarantine/{item}")).status, 404);
    let rest: Vec<String> =
        central.rest.list("/quarantine").iter().map(|it| it["item"].to_string()).collect();
    for item in &rest {
        desk(&["dismiss", item, "--why", "forged"]);
    }
    assert_eq!(desk(&["list"]), "");
    let decided: Vec<Value> =
        central.rest.list("/journal").into_iter().filter(|it| it["event"] == "quarantine_decided").collect();
    assert_eq!(decided.len(), rest.len() + 1);
    assert!(decided.iter().all(|it| it["by"] == "admin" && it["why"] != ""), "{decided:?}");

    // The proposal of the same wish is refused, and bern shows it.
    let asked = proposals().remove(0);
    let path = format!("/proposals/{}", asked["id"].as_str().expect("an id"));
    let refused = central.rest.decide(&format!("{path}/refuse"), "it is done already");
    assert_eq!(refused.status, 200, "{}", refused.body);
    assert_eq!(central.rest.decide(&format!("{path}/apply"), "after all").status, 409, "it ends once");
    wait_for("bern shows how it ended", SOON, || {
        let here = bern.rest.get(&path).body;
        if here["outcome"]["reason"] == "it is done already" { Ok(()) } else { Err(here) }
    });
    office::settle(central, &bern, 2 * SOON);

    // Bern has seen one of lyon's machines and goes on to know it; of the others it need not know.
    let status = || bern.rest.show("/agent/status")["directory"].clone();
    office.describe(mac(2));
    wait_for("bern hears of another one", SOON, || {
        if status()["machines"] == 1 && status()["domain"].is_null() { Ok(()) } else { Err(status()) }
    });
    let tell = |words: &[&str]| {
        let (code, out, complaint) = run("holdfast-central", &[words, &["--config", &config]].concat());
        assert_eq!(code, 0, "{complaint}");
        out
    };
    tell(&["group", "create", "alps"]);
    tell(&["site", "place", "bern", "--group", "alps"]);
    let said = tell(&["site", "directory", "bern", "--group", "alps", "--why", "it is small"]);
    assert_eq!(said, "site bern hears of the machines of alps: bern\n");
    wait_for("bern forgets it", SOON, || {
        if status()["machines"] == 0 && status()["domain"] == "alps" { Ok(()) } else { Err(status()) }
    });
    let (code, out, _) = bern.status();
    let line = out.lines().find(|line| line.starts_with("directory")).unwrap_or_default();
    assert!(code == 0 && line.starts_with("directory   0 machines of other sites of alps, as of 2"), "{out}");
}

//! Disagreements over REST and on the command line, with a site that really was away.

use clap::Parser;
use store::command::node::{self, NodeEdit};

use super::*;
use crate::{client::Client, conflicts};

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: conflicts::Command,
}

/// Ids, nonces and times are others every time.
fn shown(text: &str) -> String {
    let is_id =
        |word: &&str| matches!(word.len(), 16 | 32) && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut shown = text.to_string();
    for id in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_id) {
        shown = shown.replace(id, "ID");
    }
    for time in text.split_whitespace().map(|word| word.trim_end_matches([',', ':'])) {
        if time.len() == 24 && time.ends_with('Z') {
            shown = shown.replace(time, "TIME");
        }
    }
    shown.replace('\t', "  ")
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_operators_look_at_both_sides_settle_and_take_it_back() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let manual = json!({ "conflict_resolution": "manual" });
    assert_eq!(central.call("PATCH", "/sites/lyon", Some(manual)).await.0, 200);
    for (number, name) in ["pos-1", "pos-2"].into_iter().enumerate() {
        let mac = format!("52:54:00:00:00:0{}", number + 1);
        central.post("/nodes", json!({ "mac": mac, "site": "lyon", "hostname": name })).await;
    }
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    site.until("both machines are there", |store| async move {
        store.read(|view| view.count_nodes(None)).unwrap() == 2
    })
    .await;
    site.stop().await;

    // Cut off, both name both.
    let edge = Edge::with_clock(clock.wall());
    let opening = Opening {
        folder: folder.path().join("site"),
        origin: Origin::Site(enrolled.site),
        given: edge.given("site"),
    };
    let away = off_runtime(move || {
        let store = Store::open(&opening).unwrap();
        for last in 1..=2 {
            let edit = NodeEdit {
                hostname: Some(format!("kasse-{last}")),
                why: "as the sticker says".into(),
                ..NodeEdit::default()
            };
            let id = NodeId::of(MacAddr([0x52, 0x54, 0, 0, 0, last]));
            store.run(edge.given("bob"), move |tx| node::edit(tx, id, &edit)).unwrap();
        }
        drop(store);
    });
    away.await;
    clock.wait(Duration::from_secs(60));
    for last in 1..=2 {
        let edit = json!({ "hostname": format!("till-{last}") });
        let (status, body) =
            central.call("PATCH", &format!("/nodes/52:54:00:00:00:0{last}"), Some(edit)).await;
        assert_eq!(status, 200, "{body}");
    }
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    site.until("the site has both sides of both", |store| async move {
        store.read(|view| view.count_conflicts(None)).unwrap() == 2
    })
    .await;
    let open = central.get("/sync/conflicts?open=true&site=lyon").await;
    assert_eq!((&open["total"], &open["items"][0]["home_name"]), (&json!(2), &json!("lyon")));
    let one = central.get("/sync/conflicts/1").await;
    let names: Vec<&str> =
        one["sides"].as_array().unwrap().iter().map(|side| side["site_name"].as_str().unwrap()).collect();
    assert_eq!(names, ["lyon", "central"]);

    let token = folder.path().join("central").join(ADMIN_TOKEN);
    let client = Client::open(&format!("http://{}", central.server.http()), &token).unwrap();
    let said = off_runtime(move || {
        let mut said = String::new();
        for words in [
            "list",
            "show 1",
            "resolve 1 --accept-site --dry-run",
            "resolve 1 --value {\"value\":\"no!\"}",
            "resolve 9 --accept-site",
            "resolve 1 --accept-site --why they-know-it",
            "resolve 1 --accept-central",
            "settle nobody_wins",
            "settle central_wins --site rome",
            "settle central_wins --site lyon --path hostname --dry-run",
            "settle central_wins --site lyon",
            "list",
            "list --all",
            "revert 1 --why mistaken",
            "revert 1",
            "show 1",
        ] {
            let line = Line::try_parse_from(std::iter::once("conflicts").chain(words.split(' '))).unwrap();
            let told = conflicts::run(&client, line.command).unwrap_or_else(|failure| failure.to_string());
            said += &format!("$ {words}\n{told}{}", if told.ends_with('\n') { "" } else { "\n" });
        }
        said
    })
    .await;
    expect![[r#"
        $ list
        1  TIME  lyon  node ID  hostname  `conflict_resolution` is `manual`, so a person decides
        2  TIME  lyon  node ID  hostname  `conflict_resolution` is `manual`, so a person decides
        $ show 1
        conflict 1: `hostname` of node ID
          before: {"value":"pos-1"}
          lyon: {"value":"kasse-1"}
            by bob at TIME, side ID, because: as the sticker says
          central: {"value":"till-1"}
            by admin at TIME, side ID
          open: `conflict_resolution` is `manual`, so a person decides
        $ resolve 1 --accept-site --dry-run
        1  hostname of node ID  accepted_site  {"value":"kasse-1"}
        $ resolve 1 --value {"value":"no!"}
        error: conflict 1 is still open
          why: this cannot be done as asked; nothing was changed: `no!` is no host name (RFC 1123 §2.1)
          next: change the request, or what it contradicts, and send it again
        $ resolve 9 --accept-site
        error: conflict 9 is still open
          why: conflict 9 is not known here: no such thing is known here, or the address is misspelt
          next: look for it in the list
        $ resolve 1 --accept-site --why they-know-it
        1  hostname of node ID  accepted_site  {"value":"kasse-1"}
        $ resolve 1 --accept-central
        error: conflict 1 is still open
          why: this cannot be done as asked; nothing was changed: conflict 1 ended at TIME: they-know-it
          next: change the request, or what it contradicts, and send it again
        $ settle nobody_wins
        error: the conflicts are still open
          why: the body is not what is taken here: `nobody_wins` is not a Strategy: expected one of central_wins last_write site_wins manual at line 6 column 27
          next: correct the request and send it again
        $ settle central_wins --site rome
        error: the conflicts are still open
          why: site rome is not known here: no such thing is known here, or the address is misspelt
          next: look for it in the list
        $ settle central_wins --site lyon --path hostname --dry-run
        2  hostname of node ID  accepted_central  {"value":"till-2"}
        1 settled, 0 left open
        $ settle central_wins --site lyon
        2  hostname of node ID  accepted_central  {"value":"till-2"}
        1 settled, 0 left open
        $ list

        $ list --all
        1  TIME  lyon  node ID  hostname  accepted_site by admin
        2  TIME  lyon  node ID  hostname  accepted_central by admin
        $ revert 1 --why mistaken
        1  hostname of node ID  accepted_central  {"value":"till-1"}
        $ revert 1
        error: conflict 1 stays as it ended
          why: this cannot be done as asked; nothing was changed: admin took that back already
          next: change the request, or what it contradicts, and send it again
        $ show 1
        conflict 1: `hostname` of node ID
          before: {"value":"pos-1"}
          lyon: {"value":"kasse-1"}
            by bob at TIME, side ID, because: as the sticker says
          central: {"value":"till-1"}
            by admin at TIME, side ID
          accepted_site by admin: {"value":"kasse-1"}, they-know-it
          taken back by admin
    "#]].assert_eq(&shown(&said));
    site.until("the site has what became of both", |store| async move {
        let nodes = store.read(|view| view.nodes(&NodeFilter::default())).unwrap();
        nodes.iter().all(|row| row.contested.is_empty() && row.hostname.starts_with("till"))
    })
    .await;
    site.stop().await;
    central.server.stop().await;
}

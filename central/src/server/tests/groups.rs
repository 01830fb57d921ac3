//! Groups over REST and on the command line, and what is said where something cannot be.

use super::*;
use crate::{client::Client, tree};

/// Ids are random, and tabs are hard to see.
fn shown(text: &str) -> String {
    let is_id = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut shown = text.to_string();
    for id in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(is_id) {
        shown = shown.replace(id, "ID");
    }
    let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
    lines.join("\n").replace('\t', "  ") + "\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_operators_put_sites_into_groups_and_say_whose_machines_each_knows() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    for name in ["lyon", "nice", "oslo"] {
        central.post("/sites", json!({ "name": name })).await;
    }
    let europe = central.post("/groups", json!({ "name": "europe", "description": "all of it" })).await;
    let france = central.post("/groups", json!({ "name": "france", "parent": "europe" })).await;
    assert_eq!((&europe["path"], &france["path"]), (&json!("europe"), &json!("europe/france")));
    let (status, lyon) = central
        .call("PUT", "/sites/lyon/group", Some(json!({ "group": "europe/france", "why": "it is" })))
        .await;
    assert_eq!((status, &lyon["group_path"]), (200, &json!("europe/france")));
    central.call("PUT", "/sites/nice/group", Some(json!({ "group": france["id"] }))).await;
    let (status, nice) =
        central.call("PUT", "/sites/nice/directory_domain", Some(json!({ "group": "europe" }))).await;
    let directory =
        json!({ "domain": "europe", "sites": ["lyon", "nice"], "told": false, "acknowledged": false });
    assert_eq!((status, &nice["directory"]), (200, &directory));
    let found = central.get("/groups/europe%2Ffrance").await;
    assert_eq!((&found["id"], &found["sites"]), (&france["id"], &json!(["lyon", "nice"])));
    assert_eq!(central.get("/groups/europe").await["directory_of"], json!(["nice"]));
    assert_eq!(central.get("/groups").await["total"], json!(2));
    assert_eq!(central.get("/sites/oslo").await["directory"]["sites"], Value::Null, "the whole fleet");

    let mut lines = String::new();
    for (method, path, body) in [
        ("POST", "/groups", json!({ "name": "europe" })),
        ("POST", "/groups", json!({ "name": "France" })),
        ("POST", "/groups", json!({ "name": "asia", "parent": "world" })),
        ("PATCH", "/groups/europe", json!({ "parent": "europe" })),
        ("PATCH", "/groups/europe", json!({ "parent": "europe/france" })),
        ("PATCH", "/groups/asia", json!({ "name": "orient" })),
        ("PUT", "/sites/lyon/group", json!({ "group": "france" })),
        ("PUT", "/sites/lyon/group", json!({})),
        ("PUT", "/sites/rome/directory_domain", json!({ "group": null })),
    ] {
        let (status, answer) = central.call(method, path, Some(body.clone())).await;
        let said = |field: &str| answer[field].as_str().unwrap_or_default().to_string();
        lines += &shown(&format!("{method} {path} {body}\n  {status} {}: {}", said("detail"), said("why")));
    }
    expect![[r#"
        POST /groups {"name":"europe"}
          409 this cannot be done as asked; nothing was changed: there is a group `europe` already (ID); choose another name or another place
        POST /groups {"name":"France"}
          409 this cannot be done as asked; nothing was changed: `France` is no name for a group: use 1 to 63 of the letters a-z, digits and hyphens
        POST /groups {"name":"asia","parent":"world"}
          404 group world is not known here: no such thing is known here, or the address is misspelt
        PATCH /groups/europe {"parent":"europe"}
          409 this cannot be done as asked; nothing was changed: group `europe` cannot stand below itself; name another
        PATCH /groups/europe {"parent":"europe/france"}
          409 this cannot be done as asked; nothing was changed: group `europe` cannot stand below `europe/france`, which stands below it; move `europe/france` elsewhere first
        PATCH /groups/asia {"name":"orient"}
          404 group asia is not known here: no such thing is known here, or the address is misspelt
        PUT /sites/lyon/group {"group":"france"}
          404 group france is not known here: no such thing is known here, or the address is misspelt
        PUT /sites/lyon/group {}
          400 the body is not what is taken here: missing field `group` at line 1 column 2
        PUT /sites/rome/directory_domain {"group":null}
          404 site rome is not known here: no such thing is known here, or the address is misspelt
    "#]]
    .assert_eq(&lines);

    // The same on the command line.
    let token = folder.path().join("central").join(ADMIN_TOKEN);
    let client = Client::open(&format!("http://{}", central.server.http()), &token).unwrap();
    let said = off_runtime(move || {
        let mut said = tree::create(&client, "north", "").unwrap();
        said += &tree::edit(&client, "europe/france", None, Some(Some("north")), "a reform").unwrap();
        said += &tree::edit(&client, "north/france", Some("gaul"), None, "").unwrap();
        said += &tree::place(&client, "oslo", Some("north"), "").unwrap();
        said += &tree::domain(&client, "oslo", Some("north"), "").unwrap();
        said += &tree::domain(&client, "nice", None, "").unwrap();
        said += &tree::place(&client, "nice", None, "").unwrap();
        said += &tree::list(&client).unwrap();
        said + &tree::create(&client, "asia/japan", "").unwrap_err().to_string()
    })
    .await;
    expect![[r#"
        north  ID  no sites
        north/france  ID  lyon, nice
        north/gaul  ID  lyon, nice
        site oslo stands in north
        site oslo hears of the machines of north: lyon, nice, oslo
        site nice hears of the machines of the whole fleet
        site nice stands in no group
        europe  ID  no sites
        north  ID  lyon, oslo
        north/gaul  ID  lyon
        error: group `asia/japan` was not made
          why: group asia is not known here: no such thing is known here, or the address is misspelt
          next: look for it in the list
    "#]]
    .assert_eq(&shown(&said));
    let journal = central.journal().await;
    expect![[r#"
        site_created by admin: lyon
        site_created by admin: nice
        site_created by admin: oslo
        group_created by admin: europe
        group_created by admin: france
        register_set by admin:
        register_set by admin:
        register_set by admin:
        group_created by admin: north
        register_set by admin:
        register_set by admin:
        register_set by admin:
        register_set by admin:
        register_set by admin:
        register_set by admin:
    "#]]
    .assert_eq(&shown(&journal));
    central.server.stop().await;
}

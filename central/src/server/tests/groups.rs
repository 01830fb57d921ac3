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

#[tokio::test(flavor = "multi_thread")]
async fn p1_what_a_group_says_of_settings_descends_and_shows_where_it_comes_from() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    central.post("/groups", json!({ "name": "europe" })).await;
    central.post("/groups", json!({ "name": "france", "parent": "europe" })).await;
    central.call("PUT", "/sites/lyon/group", Some(json!({ "group": "europe/france" }))).await;
    let said = json!({ "autonomy": "full", "heartbeat_s": 60, "why": "bad links" });
    let (status, europe) = central.call("PATCH", "/groups/europe/settings", Some(said)).await;
    assert_eq!((status, &europe["own"]), (200, &json!({ "autonomy": "full", "heartbeat_s": "60" })));
    let (status, lyon) = central.call("PATCH", "/sites/lyon", Some(json!({ "heartbeat_s": 10 }))).await;
    assert_eq!((status, &lyon["effective"]["autonomy"]), (200, &json!("full")));
    assert_eq!(lyon["settings_from"], json!({ "autonomy": "europe", "heartbeat_s": "site" }));
    let effective = central.get("/groups/europe%2Ffrance/effective").await;
    let of = (&effective["heartbeat_s"], &effective["origins"]["heartbeat_s"], &effective["epoch"]);
    assert_eq!(of, (&json!(60), &json!("europe"), &Value::Null));

    let mut lines = String::new();
    for (path, body) in [
        ("/groups/europe/settings", json!({ "autonomy": "total" })),
        ("/groups/europe/settings", json!({ "heartbeat_s": 0 })),
        ("/groups/europe/settings", json!({ "heartbeats": 10 })),
        ("/groups/europe/settings", json!({ "autonomy": "full", "inherit": ["autonomy"] })),
        ("/groups/asia/settings", json!({ "autonomy": "full" })),
        ("/sites/lyon", json!({ "inherit": ["colour"] })),
    ] {
        let (status, answer) = central.call("PATCH", path, Some(body.clone())).await;
        let said = |field: &str| answer[field].as_str().unwrap_or_default().to_string();
        lines += &format!("{path} {body}\n  {status} {}: {}\n", said("detail"), said("why"));
    }
    expect![[r#"
        /groups/europe/settings {"autonomy":"total"}
          400 the body is not what is taken here: `total` is not a Autonomy: expected one of readonly limited full
        /groups/europe/settings {"heartbeat_s":0}
          409 this cannot be done as asked; nothing was changed: `heartbeat_s` is 1 to 300 seconds, not `0`
        /groups/europe/settings {"heartbeats":10}
          400 the body is not what is taken here: unknown field `heartbeats`, expected one of `autonomy`, `unknown_machines`, `pxe_enabled`, `heartbeat_s`, `order_max_s`, `max_install_attempts`, `install_timeout_s`, `quota_documents`, `quota_changes_s`, `quota_bytes_day`, `conflict_resolution`, `migration_policy`, `migration_consent`, `claim_ttl_s`, `pending_boot`, `inherit`
        /groups/europe/settings {"autonomy":"full","inherit":["autonomy"]}
          409 this cannot be done as asked; nothing was changed: `autonomy` cannot be `full` and come from above; say one of both
        /groups/asia/settings {"autonomy":"full"}
          404 group asia is not known here: no such thing is known here, or the address is misspelt
        /sites/lyon {"inherit":["colour"]}
          400 the body is not what is taken here: `colour` is not a Key: expected one of autonomy unknown_machines pxe_enabled heartbeat_s order_max_s max_install_attempts install_timeout_s quota_documents quota_changes_s quota_bytes_day conflict_resolution migration_policy migration_consent claim_ttl_s pending_boot
    "#]].assert_eq(&lines);

    // The same on the command line.
    let token = folder.path().join("central").join(ADMIN_TOKEN);
    let client = Client::open(&format!("http://{}", central.server.http()), &token).unwrap();
    let said = off_runtime(move || {
        let words = |said: &[(&str, &str)]| -> Vec<(String, String)> {
            said.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
        };
        let change = |said: &[(&str, &str)], inherit: &[&str]| {
            (words(said), inherit.iter().map(|key| (*key).to_string()).collect::<Vec<_>>())
        };
        let (said, inherit) = change(&[("pxe_enabled", "false"), ("autonomy", "limited")], &[]);
        let change_group = tree::Change { said: &said, inherit: &inherit, why: "" };
        let mut shown = tree::set_group(&client, "europe/france", &change_group).unwrap();
        let (said, inherit) = change(&[("order_max_s", "7200")], &["heartbeat_s"]);
        let change_site = tree::Change { said: &said, inherit: &inherit, why: "a test" };
        shown += &tree::set_site(&client, "lyon", &change_site).unwrap();
        assert!(shown.ends_with(&tree::show_site(&client, "lyon").unwrap()));
        let (said, inherit) = change(&[("order_max_s", "7")], &[]);
        let wrong = tree::Change { said: &said, inherit: &inherit, why: "" };
        shown + &tree::set_site(&client, "lyon", &wrong).unwrap_err().to_string()
    })
    .await;
    expect![[r#"
        autonomy  limited  from europe/france
        unknown_machines  hold  default
        pxe_enabled  false  from europe/france
        heartbeat_s  60  from europe
        order_max_s  259200  default
        max_install_attempts  3  default
        install_timeout_s  14400  default
        quota_documents  100000  default
        quota_changes_s  200  default
        quota_bytes_day  1073741824  default
        conflict_resolution  central_wins  default
        migration_policy  manual  default
        migration_consent  either  default
        claim_ttl_s  604800  default
        pending_boot  minimal  default
        site lyon, settings epoch 5
        autonomy  limited  from europe/france
        unknown_machines  hold  default
        pxe_enabled  false  from europe/france
        heartbeat_s  60  from europe
        order_max_s  7200  its own
        max_install_attempts  3  default
        install_timeout_s  14400  default
        quota_documents  100000  default
        quota_changes_s  200  default
        quota_bytes_day  1073741824  default
        conflict_resolution  central_wins  default
        migration_policy  manual  default
        migration_consent  either  default
        claim_ttl_s  604800  default
        pending_boot  minimal  default
        error: the settings of site `lyon` were not changed
          why: this cannot be done as asked; nothing was changed: `order_max_s` is 7200 to 259200 seconds, not `7`
          next: change the request, or what it contradicts, and send it again
    "#]].assert_eq(&shown(&said));
}

//! The site's HTTP over real sockets on loopback, with a replica in a folder that is thrown away.
//!
//! [`World`] is central's replica and the site's, with a wire between them that the test pulls; only the site
//! serves. Requests are written by hand, so that what is on the wire is what is asserted.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use expect_test::expect;
use serde_json::{Value, json};
use store::{
    Opening, Store,
    command::{node, site, task},
};
use sync::{
    blob::Digest,
    document::site::UnknownMachines,
    id::{MacAddr, NodeId, Origin, SiteId, TaskId},
    policy::{Autonomy, Reason, Wanted},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

mod events;

use super::serve;
use crate::{
    agent::Agent,
    event_loop::Edge,
    testing::{self, ADMIN, SECRET},
    token::machine_token,
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);

/// A site that serves, and central's replica.
struct World {
    central: Store,
    agent: Arc<Agent>,
    address: SocketAddr,
    kernel: Vec<u8>,
    _folder: tempfile::TempDir,
}

/// What came back.
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let edge = Edge::start();
        let open = |name: &str, origin| {
            let given = edge.given("test");
            Store::open(&Opening { folder: folder.path().join(name), origin, given }).unwrap()
        };
        let central = open("central", Origin::Central);
        let id = central.run(edge.given("test"), |tx| site::create(tx, "lyon", "", "")).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = testing::agent(open("lyon", Origin::Site(id)), edge, address.port());
        tokio::spawn(serve(listener, Arc::clone(&agent), std::future::pending()));
        let kernel = (0..700_000_u32).map(|i| (i * 7 % 251).to_le_bytes()[0]).collect();
        let world = World { central, agent, address, kernel, _folder: folder };
        world.replicate();
        world
    }

    fn site(&self) -> SiteId {
        self.agent.site
    }

    fn replicate(&self) {
        testing::replicate(&self.central, &self.agent.store, self.agent.edge);
    }

    fn set(&self, edit: site::SettingsEdit) {
        let id = self.site();
        self.central.run(self.agent.edge.given("test"), move |tx| site::set(tx, id, &edit, "")).unwrap();
        self.replicate();
    }

    /// Orders an installation of the machine; its files are not at the site yet.
    fn order(&self) -> TaskId {
        let files = [("kernel", &*self.kernel), ("initrd", b"initrd")];
        let task = testing::order(&self.central, self.agent.edge, self.site(), MAC, &files);
        self.replicate();
        task
    }

    /// Puts the files of the order where they would be after they were fetched.
    fn deliver(&self) {
        let blobs = self.agent.store.blobs().clone();
        blobs.put_bytes(&self.kernel).unwrap();
        blobs.put_bytes(b"initrd").unwrap();
        let here = self.site();
        let ready = self.agent.store.run(self.agent.edge.given("test"), move |tx| {
            task::mark_ready(tx, here, |digest| blobs.contains(digest).unwrap())
        });
        assert_eq!(ready.unwrap().len(), 1);
    }

    async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: site\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        let end = bytes.windows(4).position(|it| it == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Reply { status, headers, body: bytes[end + 4..].to_vec() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "", "").await
    }

    /// The boot script, without what differs from run to run.
    async fn boot(&self) -> String {
        let reply = self.get("/boot/52%3A54%3A00%3A00%3A00%3A01").await;
        assert_eq!(reply.status, 200);
        reply.text().replace(&self.address.to_string(), "SITE")
    }

    async fn event(&self, task: TaskId, attempt: u64, report: u8, what: Value) -> Reply {
        let token = machine_token(&SECRET, task, attempt);
        self.event_as(&token, task, attempt, report, what).await
    }

    async fn event_as(&self, token: &str, task: TaskId, attempt: u64, report: u8, what: Value) -> Reply {
        let mut body = json!({ "report": format!("{report:032x}"), "task": task, "attempt": attempt });
        body.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
        let path = format!("/api/v1/nodes/{}/event", NodeId::of(MAC));
        self.send("POST", &path, &format!("Authorization: Bearer {token}\r\n"), &body.to_string()).await
    }

    async fn operator(&self, path: &str) -> Reply {
        self.send("GET", path, &format!("Authorization: Bearer {ADMIN}\r\n"), "").await
    }

    /// What a restore leaves: another life, with this reason.
    fn begin_life(&self, why: &'static str) {
        let begin = move |tx: &mut store::Tx<'_>| tx.begin_life(&Reason::new(why));
        self.agent.store.run(self.agent.edge.given("test"), begin).unwrap();
    }

    fn journal(&self) -> Vec<String> {
        let rows =
            self.agent.store.read(|view| view.journal(&store::view::JournalFilter::default())).unwrap();
        rows.iter()
            .map(|row| serde_json::to_value(row).unwrap()["event"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn t4_a_machine_is_told_what_its_state_asks_for_from_unknown_to_ready() {
    let world = World::new().await;
    let script = world.boot().await;
    assert!(script.contains("the machine is unknown here"), "{script}");

    let task = world.order();
    let script = world.boot().await;
    assert!(
        script.contains("echo the boot files are not all here yet\necho 0 of 1 MB are here\n"),
        "{script}"
    );

    world.deliver();
    let script = world.boot().await;
    let (kernel, initrd) = (Digest::of(&world.kernel).to_string(), Digest::of(b"initrd").to_string());
    let script =
        script.replace(&kernel, "KERNEL").replace(&initrd, "INITRD").replace(&task.to_string(), "TASK");
    let script = script
        .replace(&machine_token(&SECRET, task, 1), "TOKEN")
        .replace(&NodeId::of(MAC).to_string(), "NODE");
    expect![[r#"
        #!ipxe
        # workflow: attempt 1 of task TASK is ordered
        kernel --name kernel http://SITE/blobs/KERNEL initrd=initrd.img holdfast.site=http://SITE holdfast.node=NODE holdfast.task=TASK holdfast.attempt=1 holdfast.token=TOKEN holdfast.mac=52:54:00:00:00:01 console=ttyS0 || goto failed
        initrd --name initrd.img http://SITE/blobs/INITRD || goto failed
        boot || goto failed
        :failed
        echo The boot files could not be started, going on to the local disk
        sleep 5 ||
        iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
    "#]].assert_eq(&script);
    // The task is committed as booting before the script leaves.
    assert_eq!(world.operator(&format!("/api/v1/tasks/{task}")).await.json()["state"], "booting");
    assert_eq!(world.boot().await.lines().count(), script.lines().count());
    let answers = world.journal().iter().filter(|event| *event == "boot_answered").count();
    assert_eq!(answers, 3, "a repeated answer is counted, not journalled");
}

#[tokio::test]
async fn h3_the_go_ahead_is_given_once_and_repeated_to_who_asked() {
    let world = World::new().await;
    let task = world.order();
    world.deliver();
    let mut said = Vec::new();
    for (report, attempt) in [(1, 1), (1, 1), (2, 1), (3, 2), (1, 1)] {
        let reply = world.event(task, attempt, report, json!({ "kind": "go_ahead" })).await;
        let body = reply.json();
        said.push(format!(
            "report {report} attempt {attempt}: {} {} {}",
            reply.status, body["answer"], body["why"]
        ));
    }
    expect![[r#"
        report 1 attempt 1: 200 "go" null
        report 1 attempt 1: 200 "go" null
        report 2 attempt 1: 200 "resume" null
        report 3 attempt 2: 409 "stop" "attempt 2 is not the current one, which is 1"
        report 1 attempt 1: 200 "go" null"#]]
    .assert_eq(&said.join("\n"));
    let consumed = world.journal().iter().filter(|event| *event == "order_consumed").count();
    assert_eq!(consumed, 1);
    let script = world.boot().await;
    assert!(script.starts_with("#!ipxe\n# workflow: attempt 1 of task"), "{script}");
}

#[tokio::test]
async fn h1_an_installation_runs_to_its_end_while_central_hears_nothing() {
    let world = World::new().await;
    let task = world.order();
    world.deliver();
    world.boot().await;
    let registration = json!({
        "report": "11111111-2222-3333-4444-555555555555", "mac": MAC, "arch": "x86_64", "firmware": "uefi",
        "serial": "S1", "system_uuid": "u", "vendor": "Lab", "model": "PC",
        "hardware": { "cpus": 2, "memory_bytes": 1, "disks": [{ "name": "vda", "size_bytes": 5 }], "nics": [{ "mac": MAC }] },
    });
    // busybox sends JSON as a form.
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let reply = world.send("POST", "/api/v1/nodes/register", form, &registration.to_string()).await;
    assert_eq!((reply.status, &reply.json()["task"]["id"]), (200, &json!(task)));
    let steps = [
        json!({ "kind": "go_ahead" }),
        json!({ "kind": "install_started" }),
        json!({ "kind": "progress", "percent": 50 }),
        json!({ "kind": "install_complete" }),
    ];
    for (number, step) in steps.into_iter().enumerate() {
        let reply = world.event(task, 1, u8::try_from(number).unwrap() + 10, step).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert!(world.boot().await.contains("# local disk: nothing is ordered"));
    world.replicate();
    let row = world.central.read(|view| view.task(task)).unwrap().unwrap();
    assert_eq!(row.state.as_str(), "completed");
    let node = world.central.read(|view| view.node_by_mac(MAC)).unwrap().unwrap();
    assert_eq!((node.state.as_str(), node.evidence["serial"].as_str(), node.cpus), ("active", "S1", Some(2)));
}

#[tokio::test]
async fn h6_without_the_token_of_the_attempt_nothing_is_taken() {
    let world = World::new().await;
    let task = world.order();
    world.deliver();
    let other = machine_token(&SECRET, TaskId([1; 16]), 1);
    for token in ["", "wrong", ADMIN, &other, &machine_token(&SECRET, task, 2)] {
        let reply = world.event_as(token, task, 1, 1, json!({ "kind": "go_ahead" })).await;
        assert_eq!(reply.status, 403, "{token}");
        assert_eq!(reply.headers["content-type"], "application/problem+json");
    }
    assert!(!world.journal().contains(&"order_consumed".to_owned()));
}

#[tokio::test]
async fn p5_an_unknown_machine_is_adopted_only_where_settings_and_autonomy_say_so() {
    let world = World::new().await;
    let register = json!({ "report": "1".repeat(32), "mac": MAC }).to_string();
    let known = || world.agent.store.read(|view| view.node_by_mac(MAC)).unwrap().is_some();
    let ask = async || {
        world.boot().await;
        (world.send("POST", "/api/v1/nodes/register", "", &register).await.status, known())
    };
    assert_eq!(ask().await, (404, false), "hold");
    let adopt = Some(UnknownMachines::Adopt);
    let readonly = Some(Autonomy::ReadOnly);
    world.set(site::SettingsEdit { unknown_machines: adopt, autonomy: readonly, ..Default::default() });
    assert_eq!(ask().await, (202, false), "readonly");
    let script = world.boot().await;
    assert!(script.contains("central is asked to adopt it"), "{script}");
    let asked = world.operator("/api/v1/proposals").await.json();
    assert_eq!((&asked["total"], &asked["items"][0]["action"]), (&json!(1), &json!("adopt_machine")));
    world.replicate();
    assert!(known(), "central has answered");

    let world = World::new().await;
    let known = || world.agent.store.read(|view| view.node_by_mac(MAC)).unwrap().is_some();
    world.set(site::SettingsEdit { unknown_machines: adopt, ..Default::default() });
    let script = world.boot().await;
    assert!(script.contains("is adopted by this site"), "{script}");
    assert!(known());
    assert!(world.boot().await.contains("# local disk: nothing is ordered"));
    assert_eq!(world.send("POST", "/api/v1/nodes/register", "", &register).await.status, 200);
    world.replicate();
    let node = world.central.read(|view| view.node_by_mac(MAC)).unwrap().unwrap();
    assert_eq!(node.home, Some(world.site()), "central gave it its home");
}

#[tokio::test]
async fn h3_a_retired_machine_boots_its_own_disk_whatever_is_ordered() {
    let world = World::new().await;
    world.order();
    world.deliver();
    let edit = node::NodeEdit { wanted: Some(Wanted::Retired), ..Default::default() };
    world
        .central
        .run(world.agent.edge.given("test"), move |tx| node::edit(tx, NodeId::of(MAC), &edit))
        .unwrap();
    world.replicate();
    let script = world.boot().await;
    assert!(script.starts_with("#!ipxe\n# local disk: the machine is wanted 'retired'"), "{script}");
}

#[tokio::test]
async fn an_attempt_that_is_booted_a_fourth_time_has_failed() {
    let world = World::new().await;
    let task = world.order();
    world.deliver();
    assert_eq!(world.event(task, 1, 1, json!({ "kind": "go_ahead" })).await.status, 200);
    let mut answers = Vec::new();
    for _ in 0..5 {
        let script = world.boot().await;
        answers.push(script.lines().nth(1).unwrap().replace(&task.to_string(), "T"));
    }
    expect![[r#"
        # workflow: attempt 1 of task T is under way and goes on
        # workflow: attempt 1 of task T is under way and goes on
        # workflow: attempt 1 of task T is under way and goes on
        # hold page: the attempt was booted 3 times and did not end
        # hold page: the last installation failed: the attempt was booted 3 times and did not end"#]]
    .assert_eq(&answers.join("\n"));
    assert_eq!(world.operator(&format!("/api/v1/tasks/{task}")).await.json()["state"], "failed");
}

#[tokio::test]
async fn t6_blobs_are_served_whole_and_in_ranges_with_their_exact_length() {
    let world = World::new().await;
    world.order();
    world.deliver();
    let path = format!("/blobs/{}", Digest::of(&world.kernel));
    let etag = format!("\"{}\"", Digest::of(&world.kernel));
    let whole = world.get(&path).await;
    assert!(whole.body == world.kernel, "all bytes, in order");
    assert_eq!(
        (whole.status, &*whole.headers["content-length"], &whole.headers["etag"]),
        (200, "700000", &etag)
    );
    assert!(!whole.headers.contains_key("transfer-encoding"));

    let head = world.send("HEAD", &path, "", "").await;
    assert_eq!((head.status, &*head.headers["content-length"], head.body.len()), (200, "700000", 0));

    for (range, first, last) in [
        ("0-0", 0, 0),
        ("262143-262145", 262_143, 262_145),
        ("699999-", 699_999, 699_999),
        ("-300000", 400_000, 699_999),
    ] {
        let part = world.send("GET", &path, &format!("Range: bytes={range}\r\n"), "").await;
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.headers["content-range"], format!("bytes {first}-{last}/700000"));
        assert!(part.body == world.kernel[first..=last], "{range}");
    }
    let outside = world.send("GET", &path, "Range: bytes=700000-\r\n", "").await;
    assert_eq!((outside.status, &*outside.headers["content-range"]), (416, "bytes */700000"));
    let other = world.send("GET", &path, "Range: bytes=0-0\r\nIf-Range: \"other\"\r\n", "").await;
    assert_eq!((other.status, other.body.len()), (200, 700_000));
    let known = world.send("GET", &path, &format!("If-None-Match: {etag}\r\n"), "").await;
    assert_eq!((known.status, known.body.len()), (304, 0));
}

#[tokio::test]
async fn t6_a_blob_that_is_not_complete_has_no_name_yet() {
    let world = World::new().await;
    let digest = Digest::of(&world.kernel);
    let mut fetch = world.agent.store.blobs().fetch(digest, Some(700_000)).unwrap();
    fetch.write(&world.kernel[..500_000]).unwrap();
    assert_eq!(world.get(&format!("/blobs/{digest}")).await.status, 404);
    fetch.write(&world.kernel[500_000..]).unwrap();
    fetch.finish().unwrap();
    assert_eq!(world.get(&format!("/blobs/{digest}")).await.status, 200);
}

#[tokio::test]
async fn p4_loaders_are_served_as_programs_and_what_is_not_there_has_a_body() {
    let world = World::new().await;
    let loader = world.get("/loaders/snponly.efi").await;
    assert_eq!((loader.status, &*loader.headers["content-type"]), (200, "application/efi"));
    assert_eq!((&*loader.headers["content-length"], &*loader.body), ("11", &b"efi program"[..]));
    let head = world.send("HEAD", "/loaders/snponly.efi", "", "").await;
    assert_eq!((&*head.headers["content-length"], head.body.len()), ("11", 0));
    let absent = format!("/blobs/{}", "0".repeat(64));
    for path in ["/loaders/none.efi", "/loaders/..%2f..%2fetc%2fpasswd", "/revocations_sku.efi", "/", &absent]
    {
        let reply = world.get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.headers["content-type"], "application/problem+json", "{path}");
        assert!(reply.json()["next"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_understood_is_named() {
    let world = World::new().await;
    let task = world.order();
    let mut said = Vec::new();
    for (method, path, body) in [
        ("GET", "/boot/52:54", ""),
        ("GET", "/blobs/xyz", ""),
        ("POST", "/health", ""),
        ("POST", "/api/v1/nodes/register", "{"),
        ("POST", "/api/v1/nodes/register", r#"{"mac":"52:54:00:00:00:01"}"#),
        ("POST", "/api/v1/nodes/register", r#"{"mac":"52:54:00:00:00:01","report":"x"}"#),
        ("POST", "/api/v1/nodes/register", r#"{"mac":"52:54:00:00:00:01","report":"x","colour":"red"}"#),
    ] {
        let reply = world.send(method, path, "", body).await;
        said.push(format!("{method} {path}: {} {}", reply.status, reply.json()["why"].as_str().unwrap()));
    }
    let reply = world.event(task, 1, 1, json!({ "kind": "progress" })).await;
    said.push(format!("progress: {} {}", reply.status, reply.json()["why"].as_str().unwrap()));
    let large = "x".repeat((1 << 20) + 1);
    let reply = world.send("POST", "/api/v1/nodes/register", "", &large).await;
    said.push(format!("large: {} {}", reply.status, reply.json()["why"].as_str().unwrap()));
    expect![[r#"
        GET /boot/52:54: 400 `52:54` is not a MAC address: expected six pairs of hexadecimal digits, as in 52:54:00:12:34:56
        GET /blobs/xyz: 400 `xyz` is not a blob digest: expected 64 hexadecimal digits (BLAKE3)
        POST /health: 405 the path is there, but not for this method
        POST /api/v1/nodes/register: 400 EOF while parsing an object at line 1 column 1
        POST /api/v1/nodes/register: 400 missing field `report` at line 1 column 27
        POST /api/v1/nodes/register: 400 `x` is not a report id: expected 32 hexadecimal digits or a UUID
        POST /api/v1/nodes/register: 400 unknown field `colour`, expected one of `mac`, `report`, `arch`, `firmware`, `serial`, `system_uuid`, `vendor`, `model`, `hardware` at line 1 column 48
        progress: 400 `progress` needs `percent`
        large: 413 at most 1 MiB is read"#]].assert_eq(&said.join("\n"));
}

#[tokio::test]
async fn h3_after_a_restore_orders_are_held_until_a_person_confirms() {
    let world = World::new().await;
    world.order();
    world.deliver();
    assert!(world.boot().await.contains("# workflow: "));
    world.begin_life("the database was restored");
    let script = world.boot().await;
    assert!(
        script.contains(
            "the order is held: this site follows no orders at the moment: the database was restored"
        ),
        "{script}"
    );
    let status = world.operator("/api/v1/agent/status").await.json();
    assert_eq!(status["suspended"], "the database was restored");

    let path = "/api/v1/agent/resume";
    assert_eq!(world.send("POST", path, "", "").await.status, 401);
    assert_eq!(world.operator(path).await.status, 405, "to look does not confirm");
    let bearer = format!("Authorization: Bearer {ADMIN}\r\n");
    for was_suspended in [true, false] {
        let reply = world.send("POST", path, &bearer, "").await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.json()["was_suspended"], was_suspended);
        assert_eq!(reply.json()["incarnation"], json!(world.agent.store.incarnation()));
    }
    assert!(world.boot().await.contains("# workflow: "));
    assert_eq!(world.operator("/api/v1/agent/status").await.json()["suspended"], json!(null));
    let resumed = world.journal().into_iter().filter(|event| event == "orders_resumed").count();
    assert_eq!(resumed, 1, "a fact, once");
}

#[tokio::test]
async fn p4_operators_read_the_replica_with_their_token_alone() {
    let world = World::new().await;
    let task = world.order();
    for path in [
        "sites",
        "nodes",
        "tasks",
        "workflows",
        "journal",
        "agent/status",
        "sites/lyon",
        "nodes/52:54:00:00:00:01",
    ] {
        let path = format!("/api/v1/{path}");
        for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic x\r\n"] {
            let reply = world.send("GET", &path, headers, "").await;
            assert_eq!((reply.status, &*reply.headers["www-authenticate"]), (401, "Bearer"), "{path}");
        }
        assert_eq!(world.operator(&path).await.status, 200, "{path}");
    }
    let node = world.operator("/api/v1/nodes/52:54:00:00:00:01").await.json();
    assert_eq!((&node["hostname"], &node["phase"]), (&json!("m1"), &json!("pending")));
    let tasks = world.operator("/api/v1/tasks?state=pending&site=lyon&limit=1").await.json();
    assert_eq!(
        (&tasks["total"], &tasks["next"], &tasks["items"][0]["id"]),
        (&json!(1), &json!(null), &json!(task))
    );
    assert_eq!(world.operator("/api/v1/tasks?state=failed").await.json()["total"], 0);
    assert_eq!(world.operator("/api/v1/tasks?colour=red").await.status, 400);
    assert_eq!(world.operator(&format!("/api/v1/tasks/{}", "0".repeat(32))).await.status, 404);

    let mut after = String::new();
    let mut entries = Vec::new();
    loop {
        let page = world.operator(&format!("/api/v1/journal?limit=2{after}")).await.json();
        entries.extend(page["items"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(entries.len(), world.journal().len());
    let status = world.operator("/api/v1/agent/status").await.json();
    assert_eq!((&status["link"]["state"], &status["tasks"]), (&json!("offline"), &json!({ "pending": 1 })));
}

/// Sends what somebody with the operators' token asks for.
async fn asked(world: &World, method: &str, path: &str, body: &str) -> Reply {
    world.send(method, &format!("/api/v1/{path}"), &format!("Authorization: Bearer {ADMIN}\r\n"), body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_p4_what_people_ask_for_is_done_or_waits_for_central_and_its_end_is_shown() {
    let world = World::new().await;
    let task = world.order();
    let told =
        |reply: &Reply| format!("{} {}", reply.status, reply.json()["why"].as_str().unwrap_or_default());
    // A limited site names its machines, and asks for everything else.
    let named = asked(&world, "PATCH", "nodes/52:54:00:00:00:01", r#"{"hostname": "till-1"}"#).await;
    assert_eq!((named.status, &named.json()["hostname"]), (200, &json!("till-1")));
    let wish = r#"{"wanted": "reprovision", "why": "new till"}"#;
    let waits = asked(&world, "PATCH", "nodes/52:54:00:00:00:01", wish).await;
    assert_eq!((waits.status, &waits.json()["action"]), (202, &json!("edit_node")));
    let place = waits.headers["location"].clone();
    assert_eq!(world.operator(&place).await.json()["state"], "open");
    let adopted = asked(&world, "POST", "nodes", r#"{"mac": "52:54:00:00:00:77"}"#).await;
    assert_eq!(adopted.status, 201, "{}", adopted.text());
    let switched = asked(&world, "PATCH", "agent/settings", r#"{"pxe_enabled": false}"#).await;
    assert_eq!((switched.status, &switched.json()["action"]), (202, &json!("switch_pxe")));
    let status = world.operator("/api/v1/agent/status").await.json();
    assert_eq!(status["proposals"]["open"], 2);
    assert_eq!((&status["orders"][0]["task"], &status["orders"][0]["worth"]), (&json!(task), &json!("live")));

    world.replicate();
    let ended = world.operator(&place).await.json();
    assert_eq!(
        (&ended["state"], &ended["outcome"]["reason"]),
        (&json!("applied"), &json!("done by central"))
    );
    let node = world.operator("/api/v1/nodes/52:54:00:00:00:01").await.json();
    assert_eq!(node["wanted"], "reprovision");
    let status = world.operator("/api/v1/agent/status").await.json();
    assert_eq!((&status["pxe_enabled"], &status["proposals"]["open"]), (&json!(false), &json!(0)));
    assert_eq!(status["proposals"]["ended"].as_array().unwrap().len(), 2);

    // A full site decides for itself.
    let full = site::SettingsEdit { autonomy: Some(Autonomy::Full), ..site::SettingsEdit::default() };
    world.set(full);
    let switched = asked(&world, "PATCH", "agent/settings", r#"{"pxe_enabled": true}"#).await;
    assert_eq!((switched.status, &switched.json()["local_pxe_enabled"]), (200, &json!(true)));
    let status = world.operator("/api/v1/agent/status").await.json();
    assert_eq!((&status["pxe_enabled"], &status["pxe_decided_here"]), (&json!(true), &json!(true)));

    // What cannot be is said at once, whoever would do it.
    let id = task.to_string();
    let mut said = String::new();
    for (method, path, body) in [
        ("PUT", format!("tasks/{id}/approve"), ""),
        ("PUT", format!("tasks/{id}/retry"), r#"{"why": "once more"}"#),
        ("PUT", format!("tasks/{id}/abort"), ""),
        ("PUT", format!("tasks/{}/abort", "0".repeat(32)), ""),
        ("POST", "nodes".into(), r#"{"mac": "52:54:00:00:00:01"}"#),
        ("POST", "tasks".into(), r#"{"node": "52:54:00:00:00:99", "workflow": "debian"}"#),
        ("POST", "tasks".into(), r#"{"node": "52:54:00:00:00:01", "workflow": "windows"}"#),
        ("PATCH", "agent/settings".into(), "{}"),
        ("PATCH", "nodes/52:54:00:00:00:01".into(), r#"{"colour": "red"}"#),
    ] {
        said += &format!("{}\n", told(&asked(&world, method, &path, body).await));
    }
    let said = said.replace(&id, "TASK").replace(&NodeId::of(MAC).to_string(), "NODE");
    let stranger = NodeId::of(MacAddr([0x52, 0x54, 0, 0, 0, 0x99])).to_string();
    expect![[r#"
        409 task TASK is pending, so there is nothing to approve or reject
        409 task TASK is pending, and only a failed one is tried again
        409 no attempt of task TASK is past its first write; cancel it instead
        404 task 00000000000000000000000000000000 is not known here
        409 52:54:00:00:00:01 is known already: node NODE
        404 node STRANGER is not known here
        404 workflow windows is not known here
        400 missing field `pxe_enabled` at line 1 column 2
        400 unknown field `colour`, expected one of `hostname`, `address`, `notes`, `tags`, `wanted`, `workflow`, `group`, `why` at line 1 column 9
    "#]].assert_eq(&said.replace(&stranger, "STRANGER"));
    let withdrawn = asked(&world, "DELETE", &format!("tasks/{id}"), "").await;
    assert_eq!((withdrawn.status, &withdrawn.json()["state"]), (200, &json!("cancelled")));
    for (method, path) in [("POST", "tasks"), ("PATCH", "agent/settings")] {
        assert_eq!(world.send(method, &format!("/api/v1/{path}"), "", "{}").await.status, 401);
    }
}

//! Central as a whole, over real sockets on loopback: operators by REST, and a site that is nothing but a
//! store behind a real engine.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use store::{Given, view::NodeFilter, view::TaskFilter};
use sync::{
    blob::Digest,
    engine::Output,
    id::{MacAddr, NodeId, SiteId},
    policy::Reason,
    quic::{
        CloseCode, Connection, Endpoint, RecvStream, SendStream, Transport,
        driver::{Dialer, Feed, Host},
        endpoint,
        enrol::{EnrolError, Enrolled, Token, enrol, renew},
        stream::{FrameReader, request_blob},
        tls::{Protocol, SiteKey, WallClock},
    },
    time::Timestamp,
    wire::Telemetry,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::watch};

use super::*;
use crate::enrolment::certificate::KeyRequest;

mod authority;
mod evidence;
mod claims;
mod clock;
mod conflicts;
mod events;
mod groups;

/// 2026-11-20 at noon.
const NOON: Timestamp = Timestamp(1_795_176_000_000);

/// Nothing that these tests wait for takes longer, also on a busy machine.
const LONG: Duration = Duration::from_secs(30);

const MAC: &str = "52:54:00:00:00:01";

/// A clock that the test moves.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn at_noon() -> Self {
        Clock(Arc::new(AtomicU64::new(NOON.as_ms())))
    }

    fn wait(&self, duration: Duration) {
        self.0.fetch_add(u64::try_from(duration.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallClock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// A central, and an operator who knows its token.
struct Central {
    server: Server,
    operator: ureq::Agent,
    token: String,
}

impl Central {
    async fn start(folder: &Path, clock: &Clock) -> Self {
        Central::start_looking(folder, clock, CLAIMS).await
    }

    async fn start_looking(folder: &Path, clock: &Clock, every: Duration) -> Self {
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            data_dir: folder.join("central"),
            listen_quic: loopback,
            listen_http: loopback,
            ..Config::default()
        };
        let edge = Edge::with_clock(clock.wall());
        let server = Server::start_looking(&config, edge, every).await.unwrap();
        let operator = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
        let token = fs::read_to_string(config.data_dir.join(ADMIN_TOKEN)).unwrap().trim().to_string();
        Central { server, operator, token }
    }

    /// Sends a request, with the operator's token unless other headers are given.
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.server.http()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).unwrap();
        let operator = self.operator.clone();
        let answer = off_runtime(move || {
            let mut response = operator.run(request).unwrap();
            let body = response.body_mut().with_config().limit(u64::MAX).read_to_vec().unwrap();
            Answer { status: response.status().as_u16(), headers: response.headers().clone(), body }
        });
        answer.await
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let bearer = self.bearer();
        let mut headers = vec![("authorization", bearer.as_str())];
        let body = body.map(|body| body.to_string().into_bytes());
        if body.is_some() {
            headers.push(("content-type", "application/json"));
        }
        let answer = self.send(method, &format!("/api/v1{path}"), &headers, body.unwrap_or_default()).await;
        (answer.status, answer.json())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.call("POST", path, Some(body)).await;
        assert_eq!(status, 201, "{path}: {answer}");
        answer
    }

    async fn upload(&self, bytes: &[u8]) -> Digest {
        let bearer = self.bearer();
        let headers = [("authorization", bearer.as_str())];
        let answer = self.send("PUT", "/api/v1/blobs", &headers, bytes.to_vec()).await;
        assert_eq!((answer.status, &answer.json()["size"]), (201, &json!(bytes.len())));
        answer.json()["digest"].as_str().unwrap().parse().unwrap()
    }

    async fn invite(&self, site: &str) -> Token {
        let (status, answer) = self.call("POST", &format!("/sites/{site}/token"), None).await;
        assert_eq!(status, 201, "{answer}");
        Token::parse(answer["token"].as_str().unwrap()).unwrap()
    }

    /// The facts in central's journal, one per line, without their ids.
    async fn journal(&self) -> String {
        let page = self.get("/journal?limit=1000").await;
        let line = |it: &Value| {
            let name = it.get("name").and_then(Value::as_str).unwrap_or_default();
            let reason = it.get("reason").and_then(Value::as_str).unwrap_or_default();
            let renewal = if it["renewal"] == true { "(renewal)" } else { "" };
            let (event, by) = (it["event"].as_str().unwrap(), it["by"].as_str().unwrap());
            format!("{event} by {by}: {name}{renewal} {reason}")
        };
        page["items"].as_array().unwrap().iter().map(|it| line(it).trim_end().to_string() + "\n").collect()
    }

    fn authority(&self, folder: &Path) -> Authority {
        Authority::open_or_create(&folder.join("central"), [0; 16], NOON).unwrap()
    }
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| String::from_utf8_lossy(&self.body).into())
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The status and these fields of the body, or headers.
    fn shown(&self, fields: &[&str]) -> String {
        let body = self.json();
        let mut text = self.status.to_string();
        for field in fields {
            let value = match body.get(field) {
                Some(value) => value.as_str().map_or_else(|| value.to_string(), str::to_string),
                None => self.header(field).to_string(),
            };
            text += &format!("\n{field}: {value}");
        }
        text
    }
}

/// A machine that may become a site.
struct Machine {
    endpoint: Endpoint,
    key: SiteKey,
    clock: Clock,
}

impl Machine {
    fn new(clock: &Clock) -> Self {
        let endpoint =
            endpoint::client("127.0.0.1:0".parse().unwrap(), &Keys::from_entropy([2; 64])).unwrap();
        Machine { endpoint, key: SiteKey::generate().unwrap(), clock: clock.clone() }
    }

    async fn enrol(&self, central: &Central, token: &Token) -> Result<Enrolled, EnrolError> {
        self.enrol_again(central, token, None).await
    }

    async fn enrol_again(
        &self,
        central: &Central,
        token: &Token,
        again: Option<SiteId>,
    ) -> Result<Enrolled, EnrolError> {
        let (address, clock) = (central.server.quic(), self.clock.wall());
        enrol(&self.endpoint, address, token, "lyon", again, &self.key, clock).await
    }

    async fn refused(&self, central: &Central, token: &Token, expected: Expect) {
        expected.assert_eq(&self.enrol(central, token).await.unwrap_err().explain());
    }

    fn dialer(&self, central: SocketAddr, enrolled: &Enrolled) -> Dialer {
        let identity = self.key.identity(enrolled.chain.clone());
        let authorities = [enrolled.authority.clone()];
        let tls = tls::client_config(identity, &authorities, Protocol::Session, self.clock.wall()).unwrap();
        Dialer::fixed(self.endpoint.clone(), central.to_string(), tls)
    }
}

impl Machine {
    /// A session without an engine.
    async fn dial(&self, central: &Central, enrolled: &Enrolled) -> Connection {
        let dialer = self.dialer(central.server.quic(), enrolled);
        let tls = dialer.tls.borrow().clone();
        endpoint::dial(&dialer.endpoint, central.server.quic(), tls).await.unwrap()
    }

    /// How central ends a session without an engine.
    async fn turned_away(&self, central: &Central, enrolled: &Enrolled) -> String {
        let session = self.dial(central, enrolled).await;
        let closed = tokio::time::timeout(LONG, session.closed()).await.unwrap();
        format!("{:?}", CloseCode::of(&closed))
    }

    async fn renew(&self, central: &Central, enrolled: &Enrolled) -> Result<Enrolled, EnrolError> {
        let identity = self.key.identity(enrolled.chain.clone());
        let authorities = [enrolled.authority.clone()];
        let (address, clock) = (central.server.quic(), self.clock.wall());
        renew(&self.endpoint, address, identity, &authorities, &self.key, clock).await
    }
}

/// A site: a store, and an engine that keeps it in step with central.
struct Site {
    store: Store,
    connection: watch::Receiver<Option<Connection>>,
    turns: watch::Receiver<u64>,
    runs: tokio::task::JoinHandle<()>,
    edge: Edge,
}

struct SiteHost {
    store: Store,
    edge: Edge,
    connection: watch::Sender<Option<Connection>>,
    turns: watch::Sender<u64>,
}

impl Host for SiteHost {
    fn perform(&mut self, output: Output, feed: &Feed) {
        let feed = feed.clone();
        self.store.answer(output, self.edge.given("site"), move |input| feed.send(input));
    }

    fn connection(&mut self, _: Origin, connection: Option<&Connection>) {
        self.connection.send_replace(connection.cloned());
    }

    fn stream(&mut self, _: SiteId, _: SendStream, _: RecvStream) {
        unreachable!("central opens no streams");
    }

    fn turned(&mut self, _: &Engine, _: Duration) {
        self.turns.send_modify(|turns| *turns += 1);
    }
}

impl Site {
    fn start(folder: &Path, machine: &Machine, central: SocketAddr, enrolled: &Enrolled) -> Self {
        let edge = Edge::with_clock(machine.clock.wall());
        let origin = Origin::Site(enrolled.site);
        let given: Given = edge.given("site");
        let store = Store::open(&Opening { folder: folder.join("site"), origin, given }).unwrap();
        let feed = driver::feed();
        let told = feed.0.clone();
        store.watch(move |committed| {
            for (peer, end) in &committed.grown {
                told.send(Input::Changed { peer: *peer, end: *end });
            }
        });
        // What its program would tell now and then; here it is told as it was at the start.
        let suspended = store.read(|view| view.suspended()).unwrap();
        feed.0.send(Input::Telemetry(Telemetry { suspended, ..Telemetry::default() }));
        let (connections, connection) = watch::channel(None);
        let (turned, turns) = watch::channel(0);
        let host =
            SiteHost { store: store.clone(), edge: edge.clone(), connection: connections, turns: turned };
        let engine = Engine::site(enrolled.site, Duration::from_millis(100));
        let dialer = machine.dialer(central, enrolled);
        let runs = tokio::spawn(driver::run_site(engine, dialer, feed, host));
        Site { store, connection, turns, runs, edge }
    }

    /// Waits until `holds`, looking again whenever the engine did something, at the latest at its next
    /// heartbeat.
    async fn until<F: Future<Output = bool>>(&mut self, what: &str, holds: impl Fn(Store) -> F) {
        let wait = async {
            while !holds(self.store.clone()).await {
                self.turns.changed().await.unwrap();
            }
        };
        tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} within {LONG:?}"));
    }

    fn read<T>(&self, read: impl FnOnce(&store::View<'_>) -> Result<T, StoreError>) -> T {
        self.store.read(read).unwrap()
    }

    async fn stop(self) {
        self.runs.abort();
        drop(self.runs.await);
        off_runtime(move || drop(self.store)).await;
    }
}

fn folder() -> TempDir {
    TempDir::new().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_need_the_token_and_every_no_is_a_problem() {
    let folder = folder();
    let central = Central::start(folder.path(), &Clock::at_noon()).await;
    let bearer = central.bearer();
    let operator = ("authorization", bearer.as_str());
    let json_body = ("content-type", "application/json");
    let mut lines = String::new();
    for (method, path, headers, body) in [
        ("GET", "/api/v1/health", vec![], ""),
        ("GET", "/api/v1/sites", vec![], ""),
        ("GET", "/api/v1/sites", vec![("authorization", "Bearer 0123")], ""),
        ("GET", "/api/v1/sites", vec![operator], ""),
        ("GET", "/api/v1/nowhere", vec![operator], ""),
        ("GET", "/", vec![], ""),
        ("DELETE", "/api/v1/sites", vec![operator], ""),
        ("GET", "/api/v1/sites/lyon", vec![operator], ""),
        ("GET", "/api/v1/nodes/52:54:00:00:00:01", vec![operator], ""),
        ("GET", "/api/v1/nodes?sit=lyon", vec![operator], ""),
        ("GET", "/api/v1/tasks?state=done", vec![operator], ""),
        ("GET", "/api/v1/sites?limit=0", vec![operator], ""),
        ("POST", "/api/v1/sites", vec![operator], r#"{"name": "lyon"}"#),
        ("POST", "/api/v1/sites", vec![operator, json_body], r#"{"name": "lyon", "plce": "x"}"#),
        ("POST", "/api/v1/sites", vec![operator, json_body], r#"{"name": "Lyon"}"#),
        ("POST", "/api/v1/sites", vec![operator, json_body], r#"{"name": "lyon"}"#),
        ("POST", "/api/v1/sites", vec![operator, json_body], r#"{"name": "lyon"}"#),
        ("PATCH", "/api/v1/sites/lyon", vec![operator, json_body], r#"{"heartbeat_s": 0}"#),
        ("PATCH", "/api/v1/sites/lyon", vec![operator, json_body], r#"{"autonomy": "whatever"}"#),
        ("GET", "/api/v1/blobs/abc", vec![operator], ""),
    ] {
        let answer = central.send(method, path, &headers, body.into()).await;
        let id: Option<String> = answer.json()["why"].as_str().map(|why| {
            // Ids are random.
            why.split(' ')
                .map(|word| if word.len() == 32 { "ID" } else { word })
                .collect::<Vec<_>>()
                .join(" ")
        });
        let kind = answer.json()["type"].as_str().unwrap_or_default().replace("urn:holdfast:problem:", "");
        lines += &format!(
            "{method} {path} {body}\n  {} {} {kind} {}\n",
            answer.status,
            answer.header("content-type"),
            id.unwrap_or_default()
        );
    }
    expect![[r#"
        GET /api/v1/health
          200 application/json 
        GET /api/v1/sites
          401 application/problem+json unauthorized the request carries no token
        GET /api/v1/sites
          401 application/problem+json unauthorized the token is wrong
        GET /api/v1/sites
          200 application/json 
        GET /api/v1/nowhere
          404 application/problem+json not-found no such thing is known here, or the address is misspelt
        GET /
          404 application/problem+json not-found no such thing is known here, or the address is misspelt
        DELETE /api/v1/sites
          405 application/problem+json method-not-allowed the address exists, for other methods
        GET /api/v1/sites/lyon
          404 application/problem+json not-found no such thing is known here, or the address is misspelt
        GET /api/v1/nodes/52:54:00:00:00:01
          404 application/problem+json not-found no such thing is known here, or the address is misspelt
        GET /api/v1/nodes?sit=lyon
          400 application/problem+json bad-request sit: unknown field `sit`, expected one of `site`, `limit`, `after`
        GET /api/v1/tasks?state=done
          400 application/problem+json bad-request state: `done` is not a TaskState: expected one of pending ready booting pending_approval approved installing completed failed rejected cancelled stale
        GET /api/v1/sites?limit=0
          400 application/problem+json bad-request a page has 1 to 1000 items
        POST /api/v1/sites {"name": "lyon"}
          415 application/problem+json unsupported-media-type bodies are JSON
        POST /api/v1/sites {"name": "lyon", "plce": "x"}
          400 application/problem+json bad-request unknown field `plce`, expected one of `name`, `description`, `location` at line 1 column 23
        POST /api/v1/sites {"name": "Lyon"}
          409 application/problem+json refused `Lyon` is no name for a site: use 1 to 63 of the letters a-z, digits and hyphens
        POST /api/v1/sites {"name": "lyon"}
          201 application/json 
        POST /api/v1/sites {"name": "lyon"}
          409 application/problem+json refused site ID is called `lyon` already
        PATCH /api/v1/sites/lyon {"heartbeat_s": 0}
          409 application/problem+json refused `heartbeat_s` is 1 to 300 seconds, not `0`
        PATCH /api/v1/sites/lyon {"autonomy": "whatever"}
          400 application/problem+json bad-request `whatever` is not a Autonomy: expected one of readonly limited full
        GET /api/v1/blobs/abc
          404 application/problem+json not-found no such thing is known here, or the address is misspelt
    "#]].assert_eq(&lines.replace(" \n", "\n"));

    let large = vec![b' '; (1 << 20) + 1];
    let answer = central.send("POST", "/api/v1/sites", &[operator, json_body], large).await;
    assert_eq!(answer.shown(&["type"]), "413\ntype: urn:holdfast:problem:too-large");
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_machine_becomes_a_site_and_hears_what_central_decides() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon", "description": "Branch office" })).await;
    let token = central.invite("lyon").await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &token).await.unwrap();
    assert_eq!(json!(enrolled.site), central.get("/sites/lyon").await["id"]);
    assert_eq!(central.get("/sites/lyon").await["status"], "offline", "it has not connected yet");
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);

    let kernel = central.upload(b"a kernel").await;
    let initrd = central.upload(b"an initial file system").await;
    let workflow = json!({
        "name": "debian-13", "os_family": "debian", "arch": "x86_64",
        "files": { "kernel": kernel, "initrd": initrd }, "kernel_args": "quiet",
    });
    central.post("/workflows", workflow).await;
    let node = central.post("/nodes", json!({ "mac": MAC, "site": "lyon", "hostname": "web-1" })).await;
    let (status, _) = central
        .call(
            "PATCH",
            &format!("/nodes/{MAC}"),
            Some(json!({ "tags": { "rack": "4" }, "notes": "by the door" })),
        )
        .await;
    assert_eq!(status, 200);
    let task = central.post("/tasks", json!({ "node": MAC, "workflow": "debian-13" })).await;
    assert_eq!(task["node"], node["id"]);

    let id: NodeId = NodeId::of(MAC.parse::<MacAddr>().unwrap());
    site.until("the site has the task", async |store| {
        store.read(|view| Ok(view.tasks(&TaskFilter::default())?.len() == 1)).unwrap()
    })
    .await;
    let (row, tasks, workflows) = site
        .read(|view| Ok((view.node(id)?.unwrap(), view.tasks(&TaskFilter::default())?, view.workflows()?)));
    assert_eq!((row.hostname.as_str(), row.tags["rack"].as_str()), ("web-1", "4"));
    assert_eq!(json!(tasks[0]), task, "the task is the same at both");
    assert_eq!(workflows[0].versions[&1].files["kernel"], kernel);
    assert_eq!(workflows[0].versions[&1].sizes["initrd"], 22);

    // What the site does comes up: it marks the task as ready.
    let here = enrolled.site;
    site.store.run(site.edge.given("site"), move |tx| command::task::mark_ready(tx, here, |_| true)).unwrap();
    let path = format!("/tasks/{}", task["id"].as_str().unwrap());
    site.until("central hears of the step, and both hold the same", async |_| {
        let site = central.get("/sites/lyon").await;
        central.get(&path).await["state"] == "ready"
            && site["agrees"] == true
            && site["acknowledged"] == site["end"]
    })
    .await;
    let shown = central.get("/sites/lyon").await;
    assert_eq!(
        (&shown["status"], &shown["diverged"], &shown["nodes"]),
        (&json!("online"), &json!(false), &json!(1))
    );
    let mine = central.get("/journal?site=lyon").await;
    let events: Vec<&Value> = mine["items"].as_array().unwrap().iter().map(|row| &row["event"]).collect();
    assert_eq!(events, ["epoch_adopted", "task_transitioned"]);
    assert_eq!(central.get("/tasks?site=lyon&state=ready").await["total"], 1);
    assert_eq!(central.get("/tasks?site=lyon&state=pending").await["total"], 0);
    assert_eq!(central.get("/sites/lyon/nodes").await["items"][0]["phase"], "pending");

    // Withdrawn while the site is there, then seen from afar when it is gone.
    let (status, task) = central.call("PUT", &format!("{path}/cancel"), None).await;
    assert_eq!((status, &task["cancelled"]), (200, &json!(true)));
    site.until("the site hears that the task is withdrawn", async |store| {
        store.read(|view| Ok(view.tasks(&TaskFilter::default())?[0].cancelled)).unwrap()
    })
    .await;
    site.stop().await;
    clock.wait(Duration::from_secs(61));
    assert_eq!(central.get("/sites/lyon").await["status"], "degraded");
    clock.wait(Duration::from_secs(120));
    assert_eq!(central.get("/sites/lyon").await["status"], "offline");
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p3_a_token_is_good_for_one_machine_and_one_day() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let token = central.invite("lyon").await;
    let lyon = Machine::new(&clock);
    let first = lyon.enrol(&central, &token).await.unwrap();
    let again = lyon.enrol(&central, &token).await.unwrap();
    assert_eq!(first.site, again.site, "the machine that did not get its answer asks again");
    assert_ne!(first.chain, again.chain);
    Machine::new(&clock)
        .refused(
            &central,
            &token,
            expect![[r#"
            error: central does not accept the token
              why: it was used at 2026-11-20T12:00:00.000Z and is good for one machine
              next: ask central for a new token; if nobody here used this one, say so there"#]],
        )
        .await;
    let guessed = Token { secret: sync::quic::enrol::Secret([8; 32]), ..token };
    Machine::new(&clock)
        .refused(
            &central,
            &guessed,
            expect![[r#"
            error: central does not accept the token
              why: central knows no such token
              next: check that the token was copied whole, or ask central for a new one"#]],
        )
        .await;
    let late = central.invite("lyon").await;
    clock.wait(Duration::from_secs(24 * 60 * 60 + 1));
    Machine::new(&clock)
        .refused(
            &central,
            &late,
            expect![[r#"
            error: central does not accept the token
              why: it was good until 2026-11-21T12:00:00.000Z, for one day
              next: ask central for a new token"#]],
        )
        .await;
    expect![[r#"
        site_created by admin: lyon
        token_issued by admin: lyon
        site_enrolled by central: lyon
        certificate_issued by central:
        certificate_issued by central:
        enrolment_refused by central: lyon it was used at 2026-11-20T12:00:00.000Z and is good for one machine
        enrolment_refused by central: lyon central knows no such token
        token_issued by admin: lyon
        enrolment_refused by central: lyon it was good until 2026-11-21T12:00:00.000Z, for one day
    "#]]
    .assert_eq(&central.journal().await);
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_certificate_for_a_site_that_is_not_in_the_fleet_opens_no_session() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    let (machine, authority) = (Machine::new(&clock), central.authority(folder.path()));
    let request = KeyRequest::parse(&machine.key.request("lyon").unwrap()).unwrap();
    let site = SiteId([7; 16]);
    let leaf = authority.issue_site(site, &request, [9; 16], NOON).unwrap();
    let enrolled =
        Enrolled { site, chain: vec![leaf], authority: authority.certificate().clone(), clock: NOON };
    let session = machine.dial(&central, &enrolled).await;
    let closed = tokio::time::timeout(LONG, session.closed()).await.unwrap();
    expect![[r#"Some((Revoked, "central knows no site 07070707070707070707070707070707"))"#]]
        .assert_eq(&format!("{:?}", CloseCode::of(&closed)));
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_revoked_site_is_cut_off_at_once_and_only_a_new_token_brings_it_back() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let digest = central.upload(b"a kernel").await;
    let token = central.invite("lyon").await;
    let machine = Machine::new(&clock);
    let first = machine.enrol(&central, &token).await.unwrap();
    clock.wait(Duration::from_secs(60));
    let enrolled = machine.renew(&central, &first).await.unwrap();
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    let session = site.connection.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let ask = [&digest.0[..], &0_u64.to_be_bytes()].concat();
    assert!(request_blob(&session, &ask, "central").await.unwrap().is_some());
    // What the site has to say is said before it is cut off, so that the journal is the same in every run.
    site.until("it is heard", async |_| central.journal().await.contains("epoch_adopted")).await;

    clock.wait(Duration::from_secs(60));
    let reason = json!({ "reason": "the machine was stolen" });
    let (status, shown) = central.call("POST", "/sites/lyon/revoke", Some(reason.clone())).await;
    assert_eq!((status, &shown["certificate"]), (200, &Value::Null), "{shown}");
    assert_eq!(
        shown["revoked"],
        json!({ "at": clock.now(), "by": "admin", "reason": "the machine was stolen" })
    );
    // Whether the site closes its own end first is chance; how central ends it is asked below.
    tokio::time::timeout(LONG, session.closed()).await.unwrap();
    let words = expect![[
        r#"Some((Revoked, "central revoked this site at 2026-11-20T12:02:00.000Z: the machine was stolen"))"#
    ]];
    assert!(request_blob(&session, &ask, "central").await.is_err(), "no content either");
    site.stop().await;
    for certificate in [&first, &enrolled] {
        words.assert_eq(&machine.turned_away(&central, certificate).await);
        expect![[r#"
            error: central does not renew the certificate
              why: central revoked this site at 2026-11-20T12:02:00.000Z: the machine was stolen
              next: ask central whether this site should come back, and for a token if so"#]]
        .assert_eq(&machine.renew(&central, certificate).await.unwrap_err().explain());
    }
    machine
        .refused(
            &central,
            &token,
            expect![[r#"
            error: central does not accept the token
              why: it was used at 2026-11-20T12:00:00.000Z and is good for one machine
              next: ask central for a new token; if nobody here used this one, say so there"#]],
        )
        .await;
    let (status, again) = central.call("POST", "/sites/lyon/revoke", Some(reason)).await;
    assert_eq!((status, again["title"].as_str()), (409, Some("refused")), "{again}");

    // It survives a restart, and a new token makes the machine the same site again.
    let admin = central.token.clone();
    central.server.stop().await;
    let central = Central::start(folder.path(), &clock).await;
    assert_eq!(central.token, admin);
    words.assert_eq(&machine.turned_away(&central, &enrolled).await);
    clock.wait(Duration::from_secs(60));
    let token = central.invite("lyon").await;
    let other = machine.enrol_again(&central, &token, Some(SiteId([9; 16]))).await.unwrap_err();
    assert!(other.explain().contains("it is for site lyon"), "{}", other.explain());
    let back = machine.enrol_again(&central, &token, Some(enrolled.site)).await.unwrap();
    assert_eq!(back.site, enrolled.site);
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &back);
    let since = clock.now();
    site.until("it is heard again", async |_| central.get("/sites/lyon").await["heard_at"] == json!(since))
        .await;
    let shown = central.get("/sites/lyon").await;
    assert_eq!((&shown["revoked"], shown["certificate"]["serial"].is_string()), (&Value::Null, true));
    words.assert_eq(&machine.turned_away(&central, &enrolled).await);
    expect![[r#"
        site_created by admin: lyon
        blob_arrived by admin:
        token_issued by admin: lyon
        site_enrolled by central: lyon
        certificate_issued by central:
        certificate_issued by central: (renewal)
        epoch_adopted by site:
        site_revoked by admin: lyon the machine was stolen
        enrolment_refused by central: <lyon> central revoked this site at 2026-11-20T12:02:00.000Z: the machine was stolen
        enrolment_refused by central: <lyon> central revoked this site at 2026-11-20T12:02:00.000Z: the machine was stolen
        enrolment_refused by central: lyon it was used at 2026-11-20T12:00:00.000Z and is good for one machine
        token_issued by admin: lyon
        enrolment_refused by central: lyon it is for site lyon, this machine is site 09090909090909090909090909090909
        site_enrolled by central: lyon
        certificate_issued by central:
    "#]]
    .assert_eq(&central.journal().await.replace(&enrolled.site.to_string(), "<lyon>"));
    site.stop().await;
    central.server.stop().await;
}

/// A TCP port that leads to central, at an address where nothing answers over UDP.
async fn tcp_only(central: SocketAddr) -> SocketAddr {
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = front.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(central).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn h6_a_site_that_opens_connection_after_connection_is_stopped_at_forty() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    let address = tcp_only(central.server.quic()).await;
    let tls = machine.dialer(address, &enrolled).tls.borrow().clone();
    let session = endpoint::dial(&machine.endpoint, address, tls).await.unwrap();
    assert_eq!(session.transport(), Transport::Tcp);
    // The first stream is the session's own, each further one a connection.
    let (_control, _answers) = session.open_bi().await.unwrap();
    let (told, mut refused) = mpsc::unbounded_channel();
    let mut asking = Vec::new();
    for _ in 0..45 {
        let (send, receive) = session.open_bi().await.unwrap();
        asking.push(send);
        let told = told.clone();
        tokio::spawn(async move {
            // Whoever stays hears the end of the stream when central stops.
            if let Err(ended) = FrameReader::new(receive, "central").read_frame().await {
                drop(told.send(ended.closed()));
            }
        });
    }
    for _ in 0..6 {
        let ended = tokio::time::timeout(LONG, refused.recv()).await.unwrap();
        assert_eq!(ended, Some(Some((CloseCode::Busy, "too many connections of one site".into()))));
    }
    assert!(refused.try_recv().is_err(), "the session and 39 others stay");
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_goes_up_once_and_comes_down_whole_or_in_part() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    let content: Vec<u8> = (0..700_000_u32).map(|it| (it % 251) as u8).collect();
    let digest = central.upload(&content).await;
    assert_eq!(digest, Digest::of(&content));
    let bearer = central.bearer();
    let operator = ("authorization", bearer.as_str());
    let path = format!("/api/v1/blobs/{digest}");
    let fields = ["content-length", "content-range", "accept-ranges"];

    let whole = central.send("GET", &path, &[operator], vec![]).await;
    assert!(whole.body == content, "what came down is what went up");
    assert_eq!(whole.header("etag"), format!("\"{digest}\""));
    let part = central.send("GET", &path, &[operator, ("range", "bytes=699990-")], vec![]).await;
    expect![[r#"
        206
        content-length: 10
        content-range: bytes 699990-699999/700000
        accept-ranges: bytes"#]]
    .assert_eq(&part.shown(&fields));
    assert_eq!(part.body, &content[699_990..]);
    let beyond = central.send("GET", &path, &[operator, ("range", "bytes=700000-")], vec![]).await;
    expect![[r#"
        416
        content-range: bytes */700000
        type: urn:holdfast:problem:range-not-satisfiable
        detail: the blob has 700000 bytes"#]]
    .assert_eq(&beyond.shown(&["content-range", "type", "detail"]));
    let head = central.send("HEAD", &path, &[operator], vec![]).await;
    expect![[r#"
        200
        content-length: 700000
        content-range: 
        accept-ranges: bytes"#]]
    .assert_eq(&head.shown(&fields));
    assert!(head.body.is_empty());
    let known =
        central.send("GET", &path, &[operator, ("if-none-match", whole.header("etag"))], vec![]).await;
    assert_eq!((known.status, known.body.len()), (304, 0));

    let other = Digest([1; 32]);
    let wrong =
        central.send("PUT", &format!("/api/v1/blobs?digest={other}"), &[operator], content.clone()).await;
    assert_eq!(
        wrong.shown(&["detail"]),
        format!("422\ndetail: expected {other}, got {digest}; nothing was stored")
    );
    let missing = json!({
        "name": "x", "os_family": "x", "arch": "x86_64", "files": { "kernel": digest, "initrd": other }
    });
    let (status, problem) = central.call("POST", "/workflows", Some(missing)).await;
    assert_eq!(
        (status, problem["why"].as_str().unwrap()),
        (
            409,
            format!("blob {other} for the initrd is not here: send it with `PUT /api/v1/blobs` first")
                .as_str()
        )
    );

    // A site fetches the rest of what it has begun.
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    let session = site.connection.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    let ask = |digest: Digest, offset: u64| [&digest.0[..], &offset.to_be_bytes()].concat();
    let mut rest = request_blob(&session, &ask(digest, 300_000), "central").await.unwrap().unwrap();
    assert_eq!(rest.size(), 400_000);
    let mut bytes = Vec::new();
    while let Some(chunk) = rest.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert!(bytes == content[300_000..], "the rest, byte by byte");
    assert!(
        request_blob(&session, &ask(digest, 700_000), "central").await.unwrap().is_some(),
        "nothing is left"
    );
    for refused in [ask(other, 0), ask(digest, 700_001), vec![1; 5]] {
        assert!(request_blob(&session, &refused, "central").await.unwrap().is_none());
    }
    site.stop().await;
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_survives_a_crash() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    central.post("/nodes", json!({ "mac": MAC, "site": "lyon" })).await;
    let digest = central.upload(b"a kernel").await;
    let token = central.invite("lyon").await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &token).await.unwrap();
    let before = central.journal().await;

    // What a power cut leaves: the files as they are while the program runs.
    let after = TempDir::new().unwrap();
    copy(&folder.path().join("central"), &after.path().join("central"));
    let admin = central.token.clone();
    central.server.stop().await;

    let central = Central::start(after.path(), &clock).await;
    assert_eq!(central.token, admin);
    assert_eq!(central.journal().await, before);
    assert_eq!(central.get(&format!("/nodes/{MAC}")).await["macs"], json!([MAC]));
    let nodes = central.server.store.read(|view| view.nodes(&NodeFilter::default())).unwrap();
    assert_eq!(nodes.len(), 1);
    assert_eq!(central.server.store.blobs().size(digest).unwrap(), Some(8));
    assert!(Machine::new(&clock).enrol(&central, &token).await.is_err(), "the token stays spent");
    // The certificate that the former life gave out opens a session of this one.
    let mut site = Site::start(after.path(), &machine, central.server.quic(), &enrolled);
    site.until("the site has its node", async |store| {
        store.read(|view| Ok(view.count_nodes(None)? == 1)).unwrap()
    })
    .await;
    site.stop().await;
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_data_folder_serves_one_program() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    let taken = Config {
        data_dir: folder.path().join("central"),
        listen_quic: "127.0.0.1:0".parse().unwrap(),
        listen_http: "127.0.0.1:0".parse().unwrap(),
        ..Config::default()
    };
    let refused = |outcome: Result<Server, Failure>| match outcome {
        Ok(_) => panic!("it must not start"),
        Err(failure) => failure.to_string().replace(&folder.path().display().to_string(), "<folder>"),
    };
    expect![[r#"
        error: the data folder <folder>/central is in use
          why: another holdfast-central runs on it, and two would spoil it
          next: end the other one first, or give this one another `data_dir`"#]]
    .assert_eq(&refused(Server::start(&taken, Edge::with_clock(clock.wall())).await));
    let http = central.server.http();
    let elsewhere = Config { data_dir: folder.path().join("other"), listen_http: http, ..taken };
    expect![[r#"
        error: cannot listen for HTTP on <http>
          why: Address already in use (os error 98)
          next: end the program that uses the address, or set `listen_http` to another one"#]]
    .assert_eq(
        &refused(Server::start(&elsewhere, Edge::with_clock(clock.wall())).await)
            .replace(&http.to_string(), "<http>"),
    );
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_central_sees_that_a_site_follows_no_orders_and_confirms() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    let (status, early) = central.call("POST", "/sites/lyon/resume", None).await;
    assert_eq!(status, 409);
    expect!["site lyon has not connected yet, so nobody knows in which database it lives; wait for it, or run `holdfast-site resume` there"]
        .assert_eq(early["why"].as_str().unwrap());
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    site.until("both hold the same", async |_| central.get("/sites/lyon").await["agrees"] == true).await;
    assert_eq!(central.get("/sites/lyon").await["suspended"], json!(null));
    site.stop().await;

    // As a restore leaves it.
    let store = Store::open(&Opening {
        folder: folder.path().join("site"),
        origin: Origin::Site(enrolled.site),
        given: Edge::with_clock(clock.wall()).given("test"),
    });
    let begin = |tx: &mut store::Tx<'_>| tx.begin_life(&Reason::new("the database was restored"));
    store.unwrap().run(Edge::with_clock(clock.wall()).given("test"), begin).unwrap();
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    site.until("central hears that it follows no orders", async |_| {
        let shown = central.get("/sites/lyon").await;
        shown["suspended"] == "the database was restored" && shown["agrees"] == true
    })
    .await;
    let life = json!(site.store.incarnation());
    assert_eq!(central.get("/sites/lyon").await["incarnation"], life);

    let why = json!({ "why": "the machines were looked at" });
    let (status, shown) = central.call("POST", "/sites/lyon/resume", Some(why)).await;
    assert_eq!((status, &shown["incarnation"]), (200, &life));
    site.until("the site follows orders", async |store| {
        store.read(|view| view.suspended()).unwrap().is_none()
    })
    .await;
    site.until("it is in the journals of both", async |_| {
        let said = |page: Value, event: &str, field: &str| {
            let entries = page["items"].as_array().unwrap().clone();
            entries.iter().any(|it| it["event"] == event && it[field] == life && it["by"] == "admin")
        };
        said(central.get("/journal").await, "register_set", "value")
            && said(central.get("/journal?site=lyon").await, "orders_resumed", "incarnation")
    })
    .await;
    site.stop().await;
    central.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_recovering_central_says_so_everywhere_and_a_person_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::at_noon();
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &central.invite("lyon").await).await.unwrap();
    central.server.stop().await;

    // As a restore leaves it: what lies beside the database is of another one.
    fs::remove_file(folder.path().join("central").join("incarnation")).unwrap();
    let central = Central::start(folder.path(), &clock).await;
    let health = central.send("GET", "/api/v1/health", &[], vec![]).await;
    assert_eq!(health.json()["recovering"], true);
    let shown = central.get("/recovery").await;
    expect![[r#"
        true
        the database is not the one that ran here last; it was restored or copied
        2026-11-20T12:00:00.000Z
        [{"heard_at":null,"name":"lyon","stage":"away"}]"#]]
    .assert_eq(&{
        let mut sites = shown["sites"].clone();
        for site in sites.as_array_mut().unwrap() {
            site.as_object_mut().unwrap().remove("site");
        }
        let text = |field: &str| shown[field].as_str().unwrap().to_string();
        format!("{}\n{}\n{}\n{sites}", shown["recovering"], text("why"), text("since"))
    });
    let (status, waits) = central.call("POST", "/recovery/resume", None).await;
    assert_eq!((status, &waits["type"]), (409, &json!("urn:holdfast:problem:recovery")));
    expect!["not every site has given back what it has: lyon (never heard)"]
        .assert_eq(waits["why"].as_str().unwrap());

    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    site.until("lyon is back", async |_| central.get("/recovery").await["sites"][0]["stage"] == "returned")
        .await;
    assert!(site.store.read(|view| view.central_recovers()).unwrap());
    let (status, over) = central.call("POST", "/recovery/resume", Some(json!({ "why": "it is back" }))).await;
    assert_eq!((status, over), (200, json!({ "was_recovering": true, "without": [] })));
    site.until("lyon is told", async |store| !store.read(|view| view.central_recovers()).unwrap()).await;
    let again = central.call("POST", "/recovery/resume", None).await;
    assert_eq!(again, (200, json!({ "was_recovering": false, "without": [] })));
    let health = central.send("GET", "/api/v1/health", &[], vec![]).await;
    assert_eq!(health.json()["recovering"], false);
    assert_eq!(central.get("/recovery").await, json!({ "recovering": false }));
    site.stop().await;
    central.server.stop().await;
}

/// What a command says, line by line, with `<folder>` for the folder of the test.
fn said(folder: &Path, work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<(), Failure>) -> String {
    let mut text = String::new();
    if let Err(failure) = work(&mut |line| text += &format!("{line}\n")) {
        text += &format!("{failure}\n");
    }
    text.replace(&folder.display().to_string(), "<folder>")
}

/// Puts `N` in place of each number in front of `bytes`: how large a database is depends on SQLite.
fn without_sizes(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let masked = words.iter().enumerate().map(|(index, word)| {
        let is_size = words.get(index + 1).is_some_and(|next| next.starts_with("bytes"));
        if is_size && word.parse::<u64>().is_ok() { "N" } else { *word }
    });
    masked.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn l13_a_running_central_is_backed_up_and_another_machine_becomes_central_from_it() {
    let (folder, clock) = (folder(), Clock::at_noon());
    let (data, to) = (folder.path().join("central"), folder.path().join("backup"));
    let central = Central::start(folder.path(), &clock).await;
    central.post("/sites", json!({ "name": "lyon" })).await;
    central.post("/nodes", json!({ "mac": MAC, "site": "lyon" })).await;
    let kernel = central.upload(b"a kernel").await;
    let initrd = central.upload(b"an initrd").await;
    let workflow = json!({
        "name": "debian", "os_family": "debian", "arch": "x86_64", "files": { "kernel": kernel, "initrd": initrd }
    });
    central.post("/workflows", workflow).await;
    let token = central.invite("lyon").await;
    let machine = Machine::new(&clock);
    let enrolled = machine.enrol(&central, &token).await.unwrap();

    let shown = said(folder.path(), |say| crate::backup::save(&data, &to, NOON, say));
    expect![[r#"
        copying the database
        checking the copy
        copying keys
        backup of central in <folder>/backup: 3 documents, N bytes
        content is not in it: copy <folder>/central/blobs; backup.json names 2 files (17 bytes) of it
        it holds the keys of the fleet: keep it where nobody else reads it
    "#]]
    .assert_eq(&without_sizes(&shown).replace("(N bytes)", "(17 bytes)"));
    // A file that a later version keeps in the data folder is either named there or not needed.
    let mut names: Vec<String> =
        fs::read_dir(&data).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with("holdfast.db") && !KEPT.contains(&name.as_str()));
    names.sort();
    expect![[r#"["blobs", "incarnation", "lock"]"#]].assert_eq(&format!("{names:?}"));

    let running = said(folder.path(), |say| crate::backup::put_back(&data, &to, NOON, say));
    expect![[r#"
        error: the data folder <folder>/central is in use
          why: another holdfast-central runs on it, and two would spoil it
          next: end the other one first, or give this one another `data_dir`
    "#]]
    .assert_eq(&running);
    let admin = central.token.clone();
    central.server.stop().await;

    let other = folder.path().join("other");
    let data = other.join("central");
    fs::create_dir(&other).unwrap();
    let shown = said(folder.path(), |say| crate::backup::put_back(&data, &to, NOON, say));
    let (first, second) = (kernel.min(initrd).to_string(), kernel.max(initrd).to_string());
    expect![[r#"
        copying the database
        checking it
        putting the restored database in its place
        restored from a backup of 2026-11-20T12:00:00.000Z: 3 documents
        from the backup: authority.pem, admin-token, keys, seal
        not in <folder>/other/central/blobs: <first> (N bytes)
        not in <folder>/other/central/blobs: <second> (N bytes)
        send these files with `PUT /api/v1/blobs` again, or copy the folder of blobs
        next: start the server; it takes back from its sites what it has lost, and issues no order until somebody ends its recovery with `holdfast-central resume`
    "#]]
    .assert_eq(
        &shown
            .replace(&first, "<first>")
            .replace(&second, "<second>")
            .replace("(8 bytes)", "(N bytes)")
            .replace("(9 bytes)", "(N bytes)"),
    );
    let central = Central::start(&other, &clock).await;
    assert_eq!(central.token, admin);
    assert_eq!(central.get(&format!("/nodes/{MAC}")).await["macs"], json!([MAC]));
    // The certificate that the other machine gave out is good here.
    let mut site = Site::start(folder.path(), &machine, central.server.quic(), &enrolled);
    site.until("the site has its node", async |store| {
        store.read(|view| Ok(view.count_nodes(None)? == 1)).unwrap()
    })
    .await;
    site.stop().await;
    central.server.stop().await;
}

/// Copies a folder with everything in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

//! A site that fetches from a central that plays tricks, over real QUIC on loopback.
//!
//! [`World`] runs central's half of the session over central's own replica and answers requests for content by
//! what the test says; the site's half is the code that ships. Tests wait for conditions, with a deadline.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use store::{Opening, Store, command::site};
use sync::{
    blob::Digest,
    engine::{Engine, Input, Output},
    id::{MacAddr, Origin, SiteId, TaskId},
    policy::LinkState,
    quic::{
        CENTRAL_NAME, Connection, RecvStream, SendStream,
        driver::{self, Dialer, Feed, Host, wall},
        endpoint::{self, Guest, Keys, Limits, Listener},
        stream::{BlobWriter, FrameReader},
        tls::{
            self, Identity, Protocol,
            pki_types::{CertificateDer, PrivatePkcs8KeyDer},
        },
    },
};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
};

use crate::{agent::Agent, event_loop::Edge, link, testing};

const DEADLINE: Duration = Duration::from_secs(60);

/// How central answers the next request for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trick {
    /// As asked.
    Honest,
    /// The connection is lost after so many bytes, when the test says so.
    BreakAfter(usize),
    /// Other bytes of the same length.
    Lie,
    /// It says that it has no such blob.
    Deny,
}

/// What central's half knows.
struct Central {
    store: Store,
    edge: Edge,
    content: BTreeMap<Digest, Vec<u8>>,
    tricks: Mutex<Vec<Trick>>,
    /// Digest and offset of every request.
    asked: Mutex<Vec<(Digest, u64)>>,
    connection: Mutex<Option<Connection>>,
    /// Cuts the line of [`Trick::BreakAfter`].
    cut: Notify,
}

struct World {
    central: Arc<Central>,
    agent: Arc<Agent>,
    dialer: Dialer,
    running: Vec<AbortHandle>,
    _folder: tempfile::TempDir,
}

impl World {
    /// Central serves `content`; the tricks are used up from the front, then it is honest.
    async fn new(content: &[&[u8]], tricks: &[Trick]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let edge = Edge::start();
        let open = |name: &str, origin| {
            let given = edge.given("test");
            Store::open(&Opening { folder: folder.path().join(name), origin, given }).unwrap()
        };
        let store = open("central", Origin::Central);
        let id = store.run(edge.given("test"), |tx| site::create(tx, "lyon", "", "")).unwrap();
        let central = Arc::new(Central {
            store,
            edge,
            content: content.iter().map(|bytes| (Digest::of(bytes), bytes.to_vec())).collect(),
            tricks: Mutex::new(tricks.iter().rev().copied().collect()),
            asked: Mutex::new(Vec::new()),
            connection: Mutex::new(None),
            cut: Notify::new(),
        });
        let agent = testing::agent(open("lyon", Origin::Site(id)), edge, 1);
        let (dialer, listening) = serve(&central, id);
        let mut world = World { central, agent, dialer, running: listening, _folder: folder };
        world.start();
        world
    }

    /// Starts the site's half.
    fn start(&mut self) {
        let (agent, dialer) = (Arc::clone(&self.agent), self.dialer.clone());
        self.running.push(tokio::spawn(link::run(Arc::clone(&agent), dialer)).abort_handle());
        self.running.push(tokio::spawn(super::run(agent)).abort_handle());
    }

    fn order(&self, files: &[(&str, &[u8])]) -> TaskId {
        testing::order(
            &self.central.store,
            self.agent.edge,
            self.agent.site,
            MacAddr([2, 0, 0, 0, 0, 1]),
            files,
        )
    }

    async fn wait(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let journal = self.journal();
        assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "waited for {what}; {journal:?}");
    }

    fn state(&self, task: TaskId) -> String {
        let row = self.agent.store.read(|view| view.task(task)).unwrap();
        row.map_or("unknown".into(), |row| row.state.to_string())
    }

    /// Words of the site's journal.
    fn journal(&self) -> Vec<String> {
        let rows =
            self.agent.store.read(|view| view.journal(&store::view::JournalFilter::default())).unwrap();
        rows.iter()
            .filter_map(|row| {
                Some(serde_json::to_value(row.event.as_ref()?).unwrap()["event"].as_str()?.to_owned())
            })
            .collect()
    }

    fn count(&self, event: &str) -> usize {
        self.journal().iter().filter(|found| *found == event).count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for task in &self.running {
            task.abort();
        }
    }
}

/// Central's half: an authority, a listener, and the engine over its sessions.
fn serve(central: &Arc<Central>, site: SiteId) -> (Dialer, Vec<AbortHandle>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(valid(params), KeyPair::generate().unwrap()).unwrap();
    let pinned = authority.der().clone();
    let name = SanType::DnsName(CENTRAL_NAME.try_into().unwrap());
    let central_identity = identity(&authority, name, ExtendedKeyUsagePurpose::ServerAuth);
    let name = SanType::URI(tls::site_uri(site).try_into().unwrap());
    let site_identity = identity(&authority, name, ExtendedKeyUsagePurpose::ClientAuth);

    let server = tls::server_config(central_identity, std::slice::from_ref(&pinned), Arc::new(wall)).unwrap();
    let keys = Keys::from_entropy([1; 64]);
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0).into(), server, keys, Limits::default()).unwrap();
    let address = listener.local_address().unwrap();
    let (sessions, arriving) = mpsc::channel(8);
    let accepting = tokio::spawn(async move {
        while let Some(newcomer) = listener.accept().await {
            if let Ok(Guest::Session { connection, peer }) = newcomer.admit(wall).await {
                sessions.send((peer.site, connection)).await.unwrap();
            }
        }
    });
    let (feed, inputs) = driver::feed();
    let watcher = feed.clone();
    central.store.watch(move |committed| {
        for (peer, end) in &committed.grown {
            watcher.send(Input::Changed { peer: *peer, end: *end });
        }
    });
    let engine = Engine::central(Duration::from_secs(30));
    let host = CentralHost(Arc::clone(central));
    let hub = tokio::spawn(driver::run_central(engine, arriving, (feed, inputs), host));
    let client = tls::client_config(site_identity, &[pinned], Protocol::Session, Arc::new(wall)).unwrap();
    let endpoint = endpoint::client((Ipv4Addr::LOCALHOST, 0).into(), &Keys::from_entropy([2; 64])).unwrap();
    let dialer = Dialer::fixed(endpoint, address.to_string(), client);
    (dialer, vec![accepting.abort_handle(), hub.abort_handle()])
}

fn valid(mut params: CertificateParams) -> CertificateParams {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(wall().as_ms());
    params.not_before = (now - Duration::from_secs(86_400)).into();
    params.not_after = (now + Duration::from_secs(86_400)).into();
    params.use_authority_key_identifier_extension = true;
    params
}

fn identity(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: SanType,
    usage: ExtendedKeyUsagePurpose,
) -> Identity {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![name];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    let leaf: CertificateDer<'static> = valid(params).signed_by(&key, authority).unwrap().der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Identity { chain: vec![leaf, authority.der().clone()], key }
}

struct CentralHost(Arc<Central>);

impl Host for CentralHost {
    fn perform(&mut self, output: Output, feed: &Feed) {
        let feed = feed.clone();
        self.0.store.answer(output, self.0.edge.given("hub"), move |input| feed.send(input));
    }

    fn connection(&mut self, _peer: Origin, connection: Option<&Connection>) {
        *self.0.connection.lock().unwrap() = connection.cloned();
    }

    fn stream(&mut self, _site: SiteId, send: SendStream, receive: RecvStream) {
        let central = Arc::clone(&self.0);
        let connection = central.connection.lock().unwrap().clone();
        tokio::spawn(async move {
            let frame = FrameReader::new(receive, "lyon").read_frame().await.unwrap().expect("a request");
            let digest = Digest::from_slice(&frame[..32]).unwrap();
            let offset = u64::from_be_bytes(frame[32..].try_into().unwrap());
            central.asked.lock().unwrap().push((digest, offset));
            let trick = central.tricks.lock().unwrap().pop().unwrap_or(Trick::Honest);
            let mut bytes = central.content[&digest][usize::try_from(offset).unwrap()..].to_vec();
            if trick == Trick::Deny {
                return BlobWriter::refuse(send, "lyon").await.unwrap();
            }
            if trick == Trick::Lie {
                bytes.fill(0);
            }
            let mut writer = BlobWriter::open(send, bytes.len() as u64, "lyon").await.unwrap();
            if let Trick::BreakAfter(count) = trick {
                writer.write(bytes[..count].to_vec().into()).await.unwrap();
                central.cut.notified().await;
                connection.expect("a session").close(0, "the line is cut");
                return;
            }
            writer.write(bytes.into()).await.unwrap();
            writer.finish();
        });
    }

    fn turned(&mut self, _engine: &Engine, _elapsed: Duration) {}
}

fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 % 251).to_le_bytes()[0] ^ seed).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t6_what_an_order_needs_is_fetched_and_the_task_becomes_ready() {
    let (kernel, initrd) = (content(1, 300_000), content(2, 500_000));
    let world = World::new(&[&kernel, &initrd], &[]).await;
    let task = world.order(&[("kernel", &kernel), ("initrd", &initrd)]);
    world.wait("a ready task", |world| world.state(task) == "ready").await;
    // The second may be on disk, and the task ready, before its arrival is noted.
    world.wait("both arrivals", |world| world.count("blob_arrived") == 2).await;
    world.wait("no more wishes", |world| world.agent.content.borrow().wanted.is_empty()).await;
    assert_eq!(world.count("epoch_adopted"), 1);
    world
        .wait("central's knowledge", |world| {
            world.central.store.read(|view| view.task(task)).unwrap().unwrap().state.as_str() == "ready"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t6_a_fetch_that_was_cut_off_goes_on_where_it_stopped() {
    let kernel = content(3, 3_000_000);
    let world = World::new(&[&kernel], &[Trick::BreakAfter(1_000_000)]).await;
    let task = world.order(&[("kernel", &kernel), ("initrd", &kernel)]);
    let partial = [(Digest::of(&kernel), 1_000_000)];
    world.wait("the first part", |world| world.agent.store.blobs().unfinished().unwrap() == partial).await;
    world.central.cut.notify_one();
    world.wait("a ready task", |world| world.state(task) == "ready").await;
    let asked = world.central.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!((asked[0].1, asked[1].1), (0, 1_000_000));
    assert_eq!(world.count("blob_refused"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h6_bytes_that_are_not_the_blob_are_dropped_and_noted_once() {
    let kernel = content(4, 200_000);
    let world = World::new(&[&kernel], &[Trick::Lie]).await;
    let task = world.order(&[("kernel", &kernel), ("initrd", &kernel)]);
    world.wait("a refusal", |world| world.count("blob_refused") == 1).await;
    assert_eq!(world.state(task), "pending");
    assert!(!world.agent.store.blobs().contains(Digest::of(&kernel)).unwrap());
    world
        .wait("the trouble", |world| {
            world.agent.content.borrow().wanted.iter().any(|it| it.trouble.is_some())
        })
        .await;
    let trouble = world.agent.content.borrow().wanted[0].trouble.clone().unwrap();
    assert!(trouble.starts_with("the bytes are blob "), "{trouble}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t6_content_that_central_does_not_hold_is_asked_for_again() {
    let kernel = content(5, 100_000);
    let world = World::new(&[&kernel], &[Trick::Deny]).await;
    let task = world.order(&[("kernel", &kernel), ("initrd", &kernel)]);
    world.wait("a ready task", |world| world.state(task) == "ready").await;
    assert_eq!(world.central.asked.lock().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p5_the_link_comes_back_by_itself_and_another_heartbeat_is_followed() {
    let world = World::new(&[], &[]).await;
    let is_up = |world: &World| world.agent.link.borrow().source().is_some();
    world.wait("a session", is_up).await;
    // While the old connection is held, no new one has its id.
    let first = world.agent.link.borrow().source().unwrap();
    assert_eq!(world.agent.link.borrow().state, LinkState::Connected);
    world.central.connection.lock().unwrap().clone().unwrap().close(0, "the line is cut");
    let other = |not: usize| {
        move |world: &World| world.agent.link.borrow().source().is_some_and(|it| it.stable_id() != not)
    };
    world.wait("another session", other(first.stable_id())).await;

    let second = world.agent.link.borrow().source().unwrap();
    let (site_id, edit) =
        (world.agent.site, site::SettingsEdit { heartbeat_s: Some(2), ..Default::default() });
    world
        .central
        .store
        .run(world.agent.edge.given("test"), move |tx| site::set(tx, site_id, &edit, ""))
        .unwrap();
    world.wait("a session with the new heartbeat", other(second.stable_id())).await;
    world.wait("the new epoch", |world| world.count("epoch_adopted") == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_is_adopted_once_over_restarts() {
    let mut world = World::new(&[], &[]).await;
    world.wait("the first epoch", |world| world.count("epoch_adopted") == 1).await;
    for task in world.running.drain(2..) {
        task.abort();
    }
    link::disconnect(&world.agent, "restart");
    world.start();
    world.wait("a session", |world| world.agent.link.borrow().source().is_some()).await;
    let (site_id, edit) =
        (world.agent.site, site::SettingsEdit { pxe_enabled: Some(false), ..Default::default() });
    world
        .central
        .store
        .run(world.agent.edge.given("test"), move |tx| site::set(tx, site_id, &edit, ""))
        .unwrap();
    world.wait("the second epoch", |world| world.count("epoch_adopted") >= 2).await;
    assert_eq!(world.count("epoch_adopted"), 2);
}

//! Renewal against a small central, over real sockets on loopback and with a clock that the test moves.
//!
//! [`World`] has an authority, a desk and a door; the site's half is the code that ships.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use expect_test::expect;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use store::{Opening, Store};
use sync::{
    id::{Origin, SiteId},
    quic::{
        CENTRAL_NAME, CloseCode,
        endpoint::{self, Guest, Keys, Limits, Listener},
        enrol::{Desk, Issued, Refusal, Secret, serve},
        tls::{
            Identity,
            pki_types::{CertificateDer, PrivatePkcs8KeyDer},
            site_uri,
        },
    },
};

use super::*;
use crate::{event_loop::Edge, testing};

const SITE: SiteId = SiteId([7; 16]);
/// 2026-11-20 at noon.
const NOON: Timestamp = Timestamp(1_795_176_000_000);
const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A clock that the test moves; tests are few, so it may stay for ever.
#[derive(Clone, Copy)]
struct Clock(&'static AtomicU64);

impl Clock {
    fn at(instant: Timestamp) -> Self {
        Clock(Box::leak(Box::new(AtomicU64::new(instant.as_ms()))))
    }

    fn set(self, instant: Timestamp) {
        self.0.store(instant.as_ms(), Ordering::SeqCst);
    }

    fn now(self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn wall(self) -> WallClock {
        Arc::new(move || self.now())
    }

    fn edge(self) -> Edge {
        Edge::with_clock(Box::leak(Box::new(move || self.now())))
    }
}

/// Central's half: who signs, and who was asked for.
struct Central {
    authority: CertifiedIssuer<'static, KeyPair>,
    successor: Mutex<Option<Successor>>,
    clock: Clock,
    serial: AtomicU64,
    revoked: Mutex<bool>,
}

/// Who signs after the authority, and the certificate between both.
struct Successor {
    authority: CertifiedIssuer<'static, KeyPair>,
    cross: CertificateDer<'static>,
}

fn authority(name: &str, now: Timestamp) -> (CertificateParams, KeyPair) {
    let mut params = valid(now);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_after = (SystemTime::UNIX_EPOCH + 100 * YEAR).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params, KeyPair::generate().unwrap())
}

impl Central {
    /// Has the authority succeeded.
    fn succeed(&self) {
        let (params, key) = authority("next", self.clock.now());
        let cross = params.signed_by(&key, &self.authority).unwrap().der().clone();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        *self.successor.lock().unwrap() = Some(Successor { authority, cross });
    }

    fn authorities(&self) -> Vec<CertificateDer<'static>> {
        let successor = self.successor.lock().unwrap();
        let newest = successor.iter().map(|it| it.authority.der().clone());
        newest.chain([self.authority.der().clone()]).collect()
    }

    fn certify(&self, request: &[u8]) -> CertificateDer<'static> {
        let mut request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        request.params = valid(self.clock.now());
        request.params.serial_number = Some(SerialNumber::from(self.serial.fetch_add(1, Ordering::SeqCst)));
        request.params.subject_alt_names = vec![SanType::URI(site_uri(SITE).try_into().unwrap())];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        match &*self.successor.lock().unwrap() {
            Some(next) => request.signed_by(&next.authority).unwrap().der().clone(),
            None => request.signed_by(&self.authority).unwrap().der().clone(),
        }
    }

    fn issue(&self, request: &[u8]) -> Issued {
        let authority = self.authorities().remove(0);
        Issued { site: SITE, chain: vec![self.certify(request)], authority, clock: self.clock.now() }
    }

    fn identity(&self) -> Identity {
        let mut params = valid(self.clock.now());
        params.subject_alt_names = vec![SanType::DnsName(CENTRAL_NAME.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let mut chain = match &*self.successor.lock().unwrap() {
            Some(next) => {
                vec![params.signed_by(&key, &next.authority).unwrap().der().clone(), next.cross.clone()]
            }
            None => vec![params.signed_by(&key, &self.authority).unwrap().der().clone()],
        };
        chain.extend(self.authorities());
        Identity { chain, key: PrivatePkcs8KeyDer::from(key.serialize_der()).into() }
    }
}

impl Desk for Central {
    async fn redeem(&self, _: &Secret, _: &str, _: Option<SiteId>, _: &[u8]) -> Result<Issued, Refusal> {
        Err(Refusal::new(RefusalCode::Wrong, "there are no tokens here"))
    }

    async fn renew(&self, _: &SiteCertificate, request: &[u8]) -> Result<Issued, Refusal> {
        match *self.revoked.lock().unwrap() {
            true => Err(Refusal::new(RefusalCode::Revoked, "central revoked this site: stolen")),
            false => Ok(self.issue(request)),
        }
    }
}

fn valid(now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    let instant = SystemTime::UNIX_EPOCH + Duration::from_millis(now.as_ms());
    params.not_before = (instant - DAY).into();
    params.not_after = (instant + YEAR).into();
    params.use_authority_key_identifier_extension = true;
    params
}

struct World {
    central: Arc<Central>,
    address: SocketAddr,
    clock: Clock,
    agent: Arc<Agent>,
    data: DataDir,
    keeper: Keeper,
    folder: tempfile::TempDir,
}

impl World {
    /// A site that enrolled at noon; central's clock and the site's are apart.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (params, key) = authority("first", NOON);
        let central = Arc::new(Central {
            authority: CertifiedIssuer::self_signed(params, key).unwrap(),
            successor: Mutex::new(None),
            clock: Clock::at(NOON),
            serial: AtomicU64::new(0x40),
            revoked: Mutex::new(false),
        });
        let address = listen(&central);

        let data = DataDir::open(folder.path()).unwrap();
        let issued = central.issue(&data.key().unwrap().request("lyon").unwrap());
        let Issued { site, chain, authority, clock } = issued;
        data.keep(&Enrolled { site, chain, authority, clock }, "lyon", &address.to_string()).unwrap();
        let clock = Clock::at(NOON);
        let opening =
            Opening { folder: data.replica(), origin: Origin::Site(SITE), given: clock.edge().given("test") };
        let mut agent = testing::agent(Store::open(&opening).unwrap(), clock.edge(), 1);
        Arc::get_mut(&mut agent).unwrap().central = address.to_string();
        let keeper = keeper(&agent, &data);
        World { central, address, clock, agent, data, keeper, folder }
    }

    /// As the next start of the program finds it.
    fn restart(&mut self) {
        self.keeper = keeper(&self.agent, &self.data);
    }

    fn shown(&self) -> String {
        let certificate = self.agent.certificate.borrow().clone().unwrap();
        let trouble = certificate.trouble.map_or_else(String::new, |why| format!("; {why}"));
        let text = format!("serial {}, until {}{trouble}", certificate.serial, certificate.not_after);
        text.replace(&self.address.to_string(), "<central>")
    }

    async fn look(&mut self) -> String {
        let looked = match self.keeper.look().await {
            None => "nothing to do".to_owned(),
            Some(Ok(why)) => format!("{why:?}"),
            Some(Err(error)) => error,
        };
        let looked = looked.replace(&self.address.to_string(), "<central>");
        format!("{looked}: {}", self.shown())
    }

    /// How a session ends that shows what the keeper gives out now.
    async fn session(&self) -> String {
        let endpoint = endpoint::client(loopback(), &Keys::from_entropy([3; 64])).unwrap();
        let tls = self.keeper.tls().borrow().clone();
        let session = endpoint::dial(&endpoint, self.address, tls).await.unwrap();
        match CloseCode::of(&session.closed().await) {
            Some((code, reason)) => format!("{code:?} {reason}"),
            None => "no word".into(),
        }
    }
}

fn keeper(agent: &Arc<Agent>, data: &DataDir) -> Keeper {
    let endpoint = endpoint::client(loopback(), &Keys::from_entropy([2; 64])).unwrap();
    let enrolment = data.enrolment().unwrap();
    let certificates = data.certificates(&enrolment).unwrap();
    let judge = Arc::clone(agent);
    let clock: WallClock = Arc::new(move || judge.latest_time());
    Keeper::new(Arc::clone(agent), data.clone(), endpoint, clock, enrolment, certificates).unwrap()
}

/// Serves applicants, and tells each session the serial number that it showed.
fn listen(central: &Arc<Central>) -> SocketAddr {
    let shown = |central: &Central| {
        tls::server_config(central.identity(), &central.authorities(), central.clock.wall()).unwrap()
    };
    let tls = shown(central);
    let listener = Listener::bind(loopback(), tls, Keys::from_entropy([1; 64]), Limits::default()).unwrap();
    let (address, central) = (listener.local_address().unwrap(), Arc::clone(central));
    tokio::spawn(async move {
        while let Some(newcomer) = listener.accept().await {
            listener.set_tls(shown(&central));
            match newcomer.admit(|| central.clock.now()).await {
                Ok(Guest::Enrolment(applicant)) => drop(serve(applicant, &*central).await),
                Ok(Guest::Session { connection, peer }) => {
                    CloseCode::Done.close(&connection, &format!("good day, {}", peer.serial_hex()));
                    connection.closed().await;
                }
                // The peer was told.
                Ok(Guest::Content { .. }) | Err(_) => {}
            }
        }
    });
    address
}

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_certificate_is_renewed_at_two_thirds_and_shown_from_the_next_connection_on() {
    let mut world = World::new();
    let first = world.data.certificates(&world.data.enrolment().unwrap()).unwrap();
    let just_before = Timestamp(first.leaf.renew_at().as_ms() - 1);
    for now in [NOON, just_before] {
        world.clock.set(now);
        expect!["nothing to do: serial 40, until 2027-11-20T12:00:00.000Z"].assert_eq(&world.look().await);
    }
    expect!["Done good day, 40"].assert_eq(&world.session().await);

    world.clock.set(first.leaf.renew_at());
    world.central.clock.set(first.leaf.renew_at());
    expect!["TwoThirds: serial 41, until 2028-07-20T12:00:00.000Z"].assert_eq(&world.look().await);
    expect!["nothing to do: serial 41, until 2028-07-20T12:00:00.000Z"].assert_eq(&world.look().await);
    expect!["Done good day, 41"].assert_eq(&world.session().await);

    // The next start finds the same, with another key than before.
    world.restart();
    expect!["Done good day, 41"].assert_eq(&world.session().await);
    let second = world.data.certificates(&world.data.enrolment().unwrap()).unwrap();
    assert_ne!(first.identity.key, second.identity.key);
    assert!(!world.folder.path().join("next-key.pem").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_site_that_was_away_for_years_renews_late() {
    let mut world = World::new();
    let late = NOON.after(3 * YEAR);
    world.central.clock.set(late);
    // Its own clock stopped meanwhile: only central knows that the certificate has expired.
    expect!["nothing to do: serial 40, until 2027-11-20T12:00:00.000Z"].assert_eq(&world.look().await);
    // The listener takes central's certificate of today from the second connection on.
    world.session().await;
    expect!["CertificateExpired the site certificate expired at 2027-11-20T12:00:00.000Z; renew it"]
        .assert_eq(&world.session().await);
    world.keeper.doubt = Some(Doubt::Expired);
    expect!["Expired: serial 41, until 2030-11-19T12:00:00.000Z"].assert_eq(&world.look().await);
    expect!["Done good day, 41"].assert_eq(&world.session().await);
    assert_eq!(world.agent.store.read(|view| view.central_time()).unwrap(), late, "central's time is kept");
    assert_eq!(world.agent.latest_time(), late);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_revoked_site_is_not_renewed_and_takes_up_what_a_person_enrolled_meanwhile() {
    let mut world = World::new();
    *world.central.revoked.lock().unwrap() = true;
    world.clock.set(NOON.after(300 * DAY));
    expect!["central at <central> refused: central revoked this site: stolen: serial 40, until 2027-11-20T12:00:00.000Z; not renewed: central at <central> refused: central revoked this site: stolen"].assert_eq(&world.look().await);
    assert!(world.keeper.pause_until > Duration::ZERO && world.keeper.doubt == Some(Doubt::Revoked));
    expect!["nothing to do: serial 40, until 2027-11-20T12:00:00.000Z; not renewed: central at <central> refused: central revoked this site: stolen"].assert_eq(&world.look().await);

    // `holdfast-site enroll --again` beside the running agent.
    world.central.clock.set(NOON.after(300 * DAY));
    let issued = world.central.issue(&world.data.next_key().unwrap().request("lyon").unwrap());
    let Issued { site, chain, authority, clock } = issued;
    let before = world.data.enrolment().unwrap();
    world.data.keep_next(&before, &Enrolled { site, chain, authority, clock }).unwrap();
    expect!["nothing to do: serial 41, until 2028-09-15T12:00:00.000Z"].assert_eq(&world.look().await);
    expect!["Done good day, 41"].assert_eq(&world.session().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_renewal_that_fails_is_tried_again_after_a_pause_and_the_old_pair_stays() {
    let mut world = World::new();
    world.clock.set(NOON.after(300 * DAY));
    let nowhere = "127.0.0.1".to_owned();
    world.keeper.agent = {
        let mut other = testing::agent(world.agent.store.clone(), world.clock.edge(), 1);
        Arc::get_mut(&mut other).unwrap().central = nowhere;
        other
    };
    let failed = world.keeper.look().await.unwrap().unwrap_err();
    assert!(failed.starts_with("find central"), "{failed}");
    assert!(world.keeper.look().await.is_none(), "it waits");
    expect!["Done good day, 40"].assert_eq(&world.session().await);
    world.keeper.agent = Arc::clone(&world.agent);
    world.keeper.pause_until = Duration::ZERO;
    assert!(world.look().await.starts_with("TwoThirds: serial 41"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_site_pins_the_successor_of_its_authority_as_soon_as_it_has_met_it() {
    let mut world = World::new();
    world.session().await;
    world.central.succeed();
    assert!(world.look().await.starts_with("nothing to do"), "it cannot know yet");
    // The listener shows what central has now from the second connection on.
    world.session().await;
    expect!["Done good day, 40"].assert_eq(&world.session().await);
    let pinned = |world: &World| world.data.certificates(&world.data.enrolment().unwrap()).unwrap().authority;
    assert_eq!(pinned(&world), world.central.authorities()[1]);
    expect!["Successor: serial 41, until 2027-11-20T12:00:00.000Z"].assert_eq(&world.look().await);
    assert_eq!(pinned(&world), world.central.authorities()[0]);
    expect!["Done good day, 41"].assert_eq(&world.session().await);
    expect!["nothing to do: serial 41, until 2027-11-20T12:00:00.000Z"].assert_eq(&world.look().await);
    world.restart();
    expect!["Done good day, 41"].assert_eq(&world.session().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_site_that_was_away_for_the_whole_succession_renews_late_and_pins_the_successor() {
    let mut world = World::new();
    world.session().await;
    world.central.clock.set(NOON.after(3 * YEAR));
    world.central.succeed();
    world.session().await;
    // The site's battery is empty: it starts in 1970, and what central confirmed is from before.
    world.clock.set(Timestamp(0));
    expect!["CertificateExpired the site certificate expired at 2027-11-20T12:00:00.000Z; renew it"]
        .assert_eq(&world.session().await);
    world.keeper.doubt = Some(Doubt::Expired);
    expect!["Expired: serial 41, until 2030-11-19T12:00:00.000Z"].assert_eq(&world.look().await);
    let kept = world.data.certificates(&world.data.enrolment().unwrap()).unwrap();
    assert_eq!(kept.authority, world.central.authorities()[0]);
    expect!["Done good day, 41"].assert_eq(&world.session().await);
    assert_eq!(world.agent.latest_time(), NOON.after(3 * YEAR), "central's time counts, not the clock");
}

/// Copies the files of a data folder.
fn copy(from: &Path, to: &Path) {
    for name in ["site-key.pem", "next-key.pem", "enrolment.json"] {
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_kill_anywhere_between_key_and_certificate_leaves_a_pair_that_works() {
    let mut world = World::new();
    world.clock.set(NOON.after(300 * DAY));
    world.central.clock.set(NOON.after(300 * DAY));
    let home = world.folder.path().to_path_buf();
    // The pieces as they are written one after the other; a kill leaves any number of them.
    let pieces = tempfile::tempdir().unwrap();
    world.data.next_key().unwrap();
    copy(&home, pieces.path());
    assert!(world.look().await.starts_with("TwoThirds: serial 41"));
    let written: [(&str, &[&str]); 4] = [
        ("nothing", &[]),
        ("the next key", &["next-key.pem"]),
        ("the next key and the certificate", &["next-key.pem", "enrolment.json"]),
        ("everything", &["enrolment.json", "site-key.pem"]),
    ];
    let mut lines = String::new();
    for (what, names) in written {
        let folder = tempfile::tempdir().unwrap();
        copy(pieces.path(), folder.path());
        std::fs::remove_file(folder.path().join("next-key.pem")).unwrap();
        // A draft that was not moved into its place yet is nobody's.
        std::fs::write(folder.path().join("enrolment.json.new"), "{").unwrap();
        for name in names {
            let from = if *name == "next-key.pem" { pieces.path() } else { &home };
            std::fs::copy(from.join(name), folder.path().join(name)).unwrap();
        }
        world.data = DataDir::open(folder.path()).unwrap();
        world.restart();
        lines += &format!("{what}: {}, then ", world.session().await);
        lines += &format!("{}\n", world.look().await);
        lines += &format!("  {}\n", world.session().await);
        world.restart();
        lines += &format!("  {}\n", world.session().await);
    }
    expect![[r#"
        nothing: Done good day, 40, then TwoThirds: serial 42, until 2028-09-15T12:00:00.000Z
          Done good day, 42
          Done good day, 42
        the next key: Done good day, 40, then TwoThirds: serial 43, until 2028-09-15T12:00:00.000Z
          Done good day, 43
          Done good day, 43
        the next key and the certificate: Done good day, 41, then nothing to do: serial 41, until 2028-09-15T12:00:00.000Z
          Done good day, 41
          Done good day, 41
        everything: Done good day, 41, then nothing to do: serial 41, until 2028-09-15T12:00:00.000Z
          Done good day, 41
          Done good day, 41
    "#]].assert_eq(&lines);
}

#[test]
fn a_damaged_key_is_named_unless_the_next_one_fits() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let world = World::new();
    let path = world.folder.path().join("site-key.pem");
    let good = std::fs::read(&path).unwrap();
    let check = |expected: expect_test::Expect| {
        let error = world.data.certificates(&world.data.enrolment().unwrap()).unwrap_err();
        expected.assert_eq(&chain(&error).replace(&world.folder.path().display().to_string(), "<data>"));
    };
    std::fs::write(&path, "half a k").unwrap();
    check(expect![
        "use the private key <data>/site-key.pem: use the site's private key: PEM error: malformedframing"
    ]);
    std::fs::remove_file(&path).unwrap();
    check(expect!["<data>/enrolment.json is damaged: no private key here fits its certificate"]);
    world.data.next_key().unwrap();
    check(expect!["<data>/enrolment.json is damaged: no private key here fits its certificate"]);
    std::fs::write(world.folder.path().join("next-key.pem"), good).unwrap();
    world.data.certificates(&world.data.enrolment().unwrap()).unwrap();
}

#[test]
fn pauses_double_to_a_quarter_of_an_hour_and_their_upper_half_is_spread() {
    let shown: Vec<String> = [(1, u16::MAX), (1, 0), (2, u16::MAX), (7, u16::MAX), (8, u16::MAX), (900, 0)]
        .map(|(failures, jitter)| format!("{:.0?}", pause(failures, jitter)))
        .into();
    expect!["10s 5s 20s 640s 900s 450s"].assert_eq(&shown.join(" "));
}

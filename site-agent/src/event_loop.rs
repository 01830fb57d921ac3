//! Time, chance, and the life of the running program.
//!
//! [`Edge`] is the only source of instants and entropy; everything below is given them. [`run`] opens the
//! replica, binds all ports, says where they are, serves, and ends in order when it is told to: whatever it
//! answered was committed before, so being killed instead loses nothing.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use store::{Given, Opening, Store, StoreError};
use sync::{
    id::Origin,
    quic::{
        Endpoint,
        driver::{Dialer, wall},
        endpoint::{self, Keys},
        tls::{TlsError, WallClock},
    },
    time::Timestamp,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    agent::Agent,
    boot::{decide, loader::BootServer, request, script},
    cache::{self, Content},
    config::Config,
    dhcp::{self, Door},
    error::chain,
    evidence, http,
    identity::{DataDir, IdentityError},
    link::{self, Link},
    renewal::{self, Keeper},
    silence,
    tftp::{
        self,
        loaders::{LoadError, Loaders},
    },
};

/// How long what was begun may take to end.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The clock and the entropy of this program.
#[derive(Clone, Copy)]
pub struct Edge {
    started: Instant,
    clock: &'static (dyn Fn() -> Timestamp + Send + Sync),
}

impl Edge {
    /// Starts counting elapsed time; the wall clock is that of this machine.
    pub fn start() -> Self {
        Edge::with_clock(&wall)
    }

    /// The same with another wall clock.
    pub fn with_clock(clock: &'static (dyn Fn() -> Timestamp + Send + Sync)) -> Self {
        Edge { started: Instant::now(), clock }
    }

    /// What the wall clock shows.
    pub fn now(self) -> Timestamp {
        (self.clock)()
    }

    /// Time since the start, by a clock that never jumps.
    pub fn elapsed(self) -> Duration {
        self.started.elapsed()
    }

    /// What a command of the store needs, acting as `by`.
    pub fn given(self, by: &str) -> Given {
        Given { now: self.now(), by: by.to_owned(), entropy: entropy() }
    }

    /// Any number; spreads retries.
    pub fn jitter(self) -> u16 {
        u16::from_be_bytes(entropy())
    }
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("started", &self.started).finish_non_exhaustive()
    }
}

/// Random bytes of the system.
///
/// # Panics
/// When the system has no randomness, which Linux has not been without since it booted: nothing that this
/// program does could be trusted then.
pub fn entropy<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system gives randomness");
    bytes
}

/// Where the running site answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listening {
    /// HTTP.
    pub http: SocketAddr,
    /// DHCP and the boot server's port, unless DHCP is off.
    pub dhcp: Option<(SocketAddrV4, SocketAddrV4)>,
    /// TFTP.
    pub tftp: SocketAddr,
}

/// Why the site does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data folder does not do.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The replica cannot be opened.
    #[error("open the replica of this site")]
    Store(#[from] StoreError),
    /// The loaders cannot be read.
    #[error(transparent)]
    Loaders(#[from] LoadError),
    /// A DHCP port cannot be had.
    #[error(transparent)]
    Dhcp(#[from] dhcp::socket::BindError),
    /// The TFTP port cannot be had.
    #[error(transparent)]
    Tftp(#[from] tftp::BindError),
    /// The HTTP port cannot be had.
    #[error("bind HTTP at {address}")]
    Http {
        /// Address asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error("use the certificates from enrolment")]
    Tls(#[from] TlsError),
    /// The system refuses something that it never refuses.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// What a person does next.
    pub fn next(&self) -> &'static str {
        match self {
            RunError::Identity(error) => error.next(),
            RunError::Store(StoreError::Corrupt(_) | StoreError::Unfinished { .. }) => {
                "run `holdfast-site restore --from FOLDER` with the newest backup; what it lacks comes from central"
            }
            RunError::Store(_) => "read the reason; the replica was not changed",
            RunError::Loaders(_) => "check who may read the folder that `loaders_dir` names",
            RunError::Dhcp(_) | RunError::Tftp(_) => {
                "stop the program that has the port, check `interface` and `boot_address`, or give this one the right \
                 to bind it (CAP_NET_BIND_SERVICE, CAP_NET_RAW for an interface)"
            }
            RunError::Http { .. } => "stop the program that has the port, or set `listen_http` to another",
            RunError::Tls(_) => "restore the data folder from a backup, or enrol again with a new token",
            RunError::System { .. } => "read the reason, and start again",
        }
    }
}

/// The generation of the virtual machine, as the store wants it; the file may be text or bytes.
fn generation(file: Option<&std::path::Path>) -> Result<Option<String>, RunError> {
    let Some(file) = file else { return Ok(None) };
    let bytes =
        std::fs::read(file).map_err(|source| RunError::System { what: "read `generation_file`", source })?;
    Ok(Some(sync::blob::Digest::of(&bytes).to_string()))
}

/// Runs the site until `end` is ready. `ready` is told where it answers. `edge` is the program's own time and
/// chance.
///
/// # Errors
/// When it cannot begin. What goes wrong later is logged and shown in the status.
pub async fn run(
    config: &Config,
    edge: Edge,
    ready: impl FnOnce(&Listening) -> io::Result<()>,
    end: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let data = DataDir::open(&config.data_dir)?;
    let enrolment = data.enrolment()?;
    let _lock = data.lock()?;
    let certificates = data.certificates(&enrolment)?;
    let keys = data.endpoint_keys(entropy())?;
    let central = config.central.clone().unwrap_or_else(|| enrolment.central.clone());
    let opening =
        Opening { folder: data.replica(), origin: Origin::Site(enrolment.site), given: edge.given("start") };
    let store = Store::open_on(&opening, generation(config.generation_file.as_deref())?.as_deref())?;
    let loaders = Loaders::load(&config.loaders_dir)?;
    for name in loaders.missing() {
        warn!(%name, folder = %config.loaders_dir.display(), "loader is not there; machines that need it cannot boot");
    }

    let services = Services::bind(config, loaders.clone()).await?;
    let listening = services.listening;
    let patience = config.patience;
    let boot = BootServer { address: config.boot_address, http_port: listening.http.port() };
    let agent = Arc::new(Agent {
        site: enrolment.site,
        central: central.clone(),
        store,
        edge,
        server: script::Server { boot, patience },
        loaders,
        site_secret: data.site_secret(entropy())?,
        admin_token: data.admin_token(entropy())?,
        link: watch::Sender::new(Link::default()),
        content: watch::Sender::new(Content::default()),
        certificate: watch::Sender::new(None),
        summons: watch::Sender::default(),
        changes: watch::Sender::new(0),
        boots_seen: AtomicU64::new(0),
    });
    // What central confirmed at enrolment and renewal counts from the first dial on.
    let seen = enrolment.clock;
    agent.submit("start", move |tx| tx.confirm_central_time(seen)).await?;
    let judge = Arc::clone(&agent);
    let clock: WallClock = Arc::new(move || judge.latest_time());
    let endpoint = client(&keys).map_err(|source| RunError::System { what: "open a UDP socket", source })?;
    let keeper =
        Keeper::new(Arc::clone(&agent), data.clone(), endpoint.clone(), clock, enrolment, certificates)?;
    let (tls, try_udp_after) = (keeper.tls(), config.try_udp_after);
    let dialer = Dialer { endpoint: endpoint.clone(), central, tls, try_udp_after };

    data.keep_http_address(listening.http)?;
    ready(&listening).map_err(|source| RunError::System { what: "write to standard output", source })?;
    info!(site = %agent.site, incarnation = %agent.store.incarnation(), http = %listening.http, "site runs");
    let keep = Duration::from_secs(86_400 * u64::from(config.journal_retention_days));
    serve(Arc::clone(&agent), services, dialer, keeper, keep, end).await;

    link::disconnect(&agent, "the site is stopping");
    if tokio::time::timeout(LAST_WORDS, endpoint.wait_idle()).await.is_err() {
        warn!("central did not hear that this site stops");
    }
    info!("site has stopped");
    Ok(())
}

/// The bound ports.
struct Services {
    http: TcpListener,
    dhcp: Option<dhcp::Service>,
    tftp: tftp::Service,
    listening: Listening,
}

impl Services {
    async fn bind(config: &Config, loaders: Loaders) -> Result<Self, RunError> {
        let failed = |what| move |source| RunError::System { what, source };
        let address = config.listen_http;
        let http = TcpListener::bind(address).await.map_err(|source| RunError::Http { address, source })?;
        let dhcp = match config.dhcp {
            true => Some(dhcp::Service::bind(&dhcp::Config {
                interface: config.interface.clone(),
                address: Ipv4Addr::UNSPECIFIED,
                dhcp_port: config.dhcp_port,
                boot_port: config.pxe_port,
                server: config.boot_address,
            })?),
            false => None,
        };
        let tftp = tftp::Service::bind((config.boot_address, config.tftp_port).into(), loaders)?;
        let doors = match &dhcp {
            Some(dhcp) => {
                let door = |door| dhcp.local_address(door).map_err(failed("ask where DHCP is bound"));
                Some((door(Door::Dhcp)?, door(Door::Boot)?))
            }
            None => None,
        };
        let listening = Listening {
            http: http.local_addr().map_err(failed("ask where HTTP is bound"))?,
            dhcp: doors,
            tftp: tftp.local_address().map_err(failed("ask where TFTP is bound"))?,
        };
        Ok(Services { http, dhcp, tftp, listening })
    }
}

/// Runs all services side by side until `end`; none of them waits for another.
async fn serve(
    agent: Arc<Agent>,
    services: Services,
    dialer: Dialer,
    keeper: Keeper,
    keep: Duration,
    end: impl Future<Output = ()>,
) {
    let Services { http, dhcp, tftp, .. } = services;
    let stop = CancellationToken::new();
    let told = stop.clone();
    let web = tokio::spawn(http::serve(http, Arc::clone(&agent), async move { told.cancelled().await }));
    let mut others: Vec<tokio::task::JoinHandle<Infallible>> = vec![
        tokio::spawn(tftp.run()),
        tokio::spawn(cache::run(Arc::clone(&agent))),
        tokio::spawn(silence::run(Arc::clone(&agent))),
        tokio::spawn(link::run(Arc::clone(&agent), dialer)),
        tokio::spawn(evidence::run(Arc::clone(&agent), keeper.certificates(), keep)),
        tokio::spawn(renewal::run(keeper)),
    ];
    if let Some(dhcp) = dhcp {
        let agent = Arc::clone(&agent);
        others.push(tokio::spawn(dhcp.run(move |request| answer_dhcp(Arc::clone(&agent), request))));
    }
    end.await;
    info!("stopping");
    for service in &others {
        service.abort();
    }
    stop.cancel();
    match tokio::time::timeout(LAST_WORDS, web).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => error!(%error, "http failed"),
        Ok(Err(error)) => error!(%error, "http failed"),
        Err(_) => info!("transfers were cut"),
    }
    for service in others {
        // Aborted or failed: either way it has let go of the replica.
        drop(service.await);
    }
}

async fn answer_dhcp(agent: Arc<Agent>, request: request::Request) -> request::Answer {
    match agent.sight(request.mac).await {
        Ok(view) => {
            let decision = decide::decide(&view);
            info!(answer = %decision.answer, reason = %decision.reason, "boot decided");
            decide::offer(&decision, &request, agent.server.boot)
        }
        Err(error) => {
            error!(error = %chain(&error), "the replica cannot be read");
            request::Answer::Silent("the replica of this site cannot be read".into())
        }
    }
}

/// A socket for dialing central: both families where the machine has them.
///
/// # Errors
/// When no UDP socket can be had.
pub fn client(keys: &Keys) -> io::Result<Endpoint> {
    let both = endpoint::client((Ipv6Addr::UNSPECIFIED, 0).into(), keys);
    both.or_else(|_| endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into(), keys))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use expect_test::expect;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
        KeyUsagePurpose, SanType,
    };
    use sync::{
        id::SiteId,
        quic::{
            enrol::Enrolled,
            tls::{pki_types::CertificateDer, site_uri},
        },
    };
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpStream, UdpSocket},
        sync::oneshot,
        time::timeout,
    };

    use super::*;
    use crate::config::Settings;

    const SITE: SiteId = SiteId([7; 16]);

    /// Makes a data folder as enrolment leaves it.
    fn enrolled(folder: &Path) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let data = DataDir::open(folder).unwrap();
        let request = data.key().unwrap().request("lyon").unwrap();
        let mut request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        request.params.subject_alt_names = vec![SanType::URI(site_uri(SITE).try_into().unwrap())];
        let leaf: CertificateDer<'static> = request.signed_by(&authority).unwrap().der().clone();
        let authority = authority.der().clone();
        let enrolled = Enrolled { site: SITE, chain: vec![leaf], authority, clock: Timestamp(0) };
        data.keep(&enrolled, "lyon", "127.0.0.1:1").unwrap();
    }

    fn config(folder: &Path) -> Config {
        let settings = Settings {
            data_dir: Some(folder.to_owned()),
            boot_address: Some(Ipv4Addr::LOCALHOST),
            listen_http: Some((Ipv4Addr::LOCALHOST, 0).into()),
            dhcp_port: Some(0),
            pxe_port: Some(0),
            tftp_port: Some(0),
            loaders_dir: Some(folder.join("loaders")),
            ..Settings::default()
        };
        settings.complete().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn p4_all_services_answer_while_central_is_out_of_reach_and_end_in_order() {
        let folder = tempfile::tempdir().unwrap();
        enrolled(folder.path());
        fs::create_dir(folder.path().join("loaders")).unwrap();
        fs::write(folder.path().join("loaders/snponly.efi"), b"efi program").unwrap();
        let config = config(folder.path());
        let (told, listening) = oneshot::channel();
        let (stop, end) = oneshot::channel::<()>();
        let running = tokio::spawn({
            let config = config.clone();
            async move {
                let ready = |listening: &Listening| {
                    told.send(*listening).unwrap();
                    Ok(())
                };
                run(&config, Edge::start(), ready, async { drop(end.await) }).await
            }
        });
        let listening = listening.await.expect("it is ready");

        // A machine looks for a boot server: captured from snponly.efi.
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let discover = include_bytes!("../../fixtures/packets/snponly-discover.bin");
        let door = listening.dhcp.unwrap().0.port();
        client.send_to(discover, (Ipv4Addr::LOCALHOST, door)).await.unwrap();
        let mut offer = vec![0; 2048];
        let length =
            timeout(Duration::from_secs(20), client.recv(&mut offer)).await.expect("an offer").unwrap();
        let url = format!("http://127.0.0.1:{}/boot/52:54:00:00:00:31", listening.http.port());
        let said = String::from_utf8_lossy(&offer[..length]).into_owned();
        assert!(said.contains(&url), "{said}");

        let question = b"\0\x01snponly.efi\0octet\0";
        client.send_to(question, listening.tftp).await.unwrap();
        let mut data = vec![0; 600];
        let length =
            timeout(Duration::from_secs(20), client.recv(&mut data)).await.expect("a block").unwrap();
        assert_eq!(&data[4..length], b"efi program");

        let mut web = TcpStream::connect(listening.http).await.unwrap();
        web.write_all(b"GET /boot/52:54:00:00:00:31 HTTP/1.0\r\n\r\n").await.unwrap();
        let mut script = String::new();
        web.read_to_string(&mut script).await.unwrap();
        let script = script.split_once("\r\n\r\n").unwrap().1.replace(&url, "URL");
        expect![[r#"
            #!ipxe
            # hold page: the machine is unknown here, register it at central or let this site adopt
            echo
            echo Holdfast site 07070707070707070707070707070707, link offline, never heard of
            echo central
            echo Machine 52:54:00:00:00:31 code 67566B
            echo the machine is unknown here, register it at central or let this site adopt
            echo Asking again in 6 s, question 1 of 3, then the local disk
            sleep 6 ||
            chain --replace --autofree URL?try=2 ||
            iseq ${platform} efi && exit 1 || sanboot --no-describe --drive 0x80 || exit
        "#]]
        .assert_eq(&script);

        // A second agent over the same folder would fork the replica.
        let second = run(&config, Edge::start(), |_| Ok(()), std::future::pending()).await.unwrap_err();
        assert!(matches!(second, RunError::Identity(IdentityError::InUse { .. })), "{second}");

        stop.send(()).unwrap();
        timeout(Duration::from_secs(30), running).await.expect("it ends").unwrap().unwrap();
        // It has let go of everything: the same folder can be run again at once.
        let (told, ready) = oneshot::channel();
        let ready_again = |_: &Listening| told.send(()).map_err(|()| io::ErrorKind::Other.into());
        let again = run(&config, Edge::start(), ready_again, async { drop(ready.await) });
        timeout(Duration::from_secs(30), again).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn a_machine_that_is_not_enrolled_is_told_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let error = run(&config, Edge::start(), |_| Ok(()), std::future::pending()).await.unwrap_err();
        assert!(error.to_string().starts_with("this machine is not enrolled"), "{error}");
        assert!(error.next().contains("holdfast-site enroll"), "{}", error.next());
    }
}

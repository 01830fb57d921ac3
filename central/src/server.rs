//! Starts everything that central is, in order, and ends it in order.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use store::{Opening, Store, StoreError, command};
use sync::{
    blob::Digest,
    engine::{Engine, Input},
    id::{Origin, hex},
    quic::{
        driver,
        endpoint::{Keys, Limits, Listener},
        tls,
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    addresses,
    config::Config,
    content::off_runtime,
    enrolment::{
        ca::{self, Authority},
        seat::Seat,
    },
    event_loop::Edge,
    evidence::{self, Notary},
    failure::{Exit, Failure, chain},
    http,
    hub::{self, Registrar, Replica},
    sessions::Sessions,
};

/// Name of the file in the data folder that holds the administrator's token.
pub const ADMIN_TOKEN: &str = "admin-token";

/// Name of the file in the data folder that holds the secrets of the QUIC endpoint.
const KEYS: &str = "keys";

/// Name of the file in the data folder that the running server holds locked.
const LOCK: &str = "lock";

/// The small files that a backup holds beside the database: with them another machine can be central.
pub(crate) const KEPT: [&str; 4] = [ca::FILE, ADMIN_TOKEN, KEYS, "seal"];

/// How often central's own certificate is made anew. It is good for a year, and some programs run longer.
const CERTIFICATE: Duration = Duration::from_secs(86_400);

/// How often central looks for claims that end and fences that open.
const CLAIMS: Duration = Duration::from_secs(60);

/// How long requests and sessions that are under way may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running central.
pub struct Server {
    quic: SocketAddr,
    http: SocketAddr,
    listener: Arc<Listener>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    store: Store,
    _lock: File,
}

impl Server {
    /// Opens or makes the data folder, listens, and serves.
    ///
    /// # Errors
    /// For people: the data folder is unusable or in use, or an address cannot be listened on.
    pub async fn start(config: &Config, edge: Edge) -> Result<Self, Failure> {
        Server::start_looking(config, edge, CLAIMS).await
    }

    /// The same, with how often it looks for claims that end and fences that open.
    async fn start_looking(config: &Config, edge: Edge, every: Duration) -> Result<Self, Failure> {
        let Data { lock, admin, seat, keys, store } = {
            let (folder, edge) = (config.data_dir.clone(), edge.clone());
            let generation = config.generation_file.clone();
            off_runtime(move || Data::open(&folder, generation.as_deref(), &edge)).await?
        };
        let listener = Arc::new(listen_quic(config, &seat.present(), keys, &edge)?);
        let (tcp, http) = listen_http(config).await?;
        let quic =
            listener.local_address().map_err(|error| cannot_listen("sites", config.listen_quic, &error))?;

        let tasks = TaskTracker::new();
        let stopping = CancellationToken::new();
        let (sender, sessions) = mpsc::channel(hub::WAITING_SESSIONS);
        let feed = driver::feed();
        let told = feed.0.clone();
        store.watch(move |committed| {
            for (peer, end) in &committed.grown {
                told.send(Input::Changed { peer: *peer, end: *end });
            }
        });
        let engine = Engine::central(Duration::from_secs(config.heartbeat_s));
        let (words, told) = mpsc::unbounded_channel();
        let notary = Notary { store: store.clone(), seat: seat.clone(), edge: edge.clone() };
        tasks.spawn(stopping.clone().run_until_cancelled_owned(evidence::run(notary, told)));
        let live = Sessions::default();
        let replica = Replica {
            store: store.clone(),
            edge: edge.clone(),
            tasks: tasks.clone(),
            words,
            sessions: live.clone(),
        };
        tasks.spawn(driver::run_central(engine, sessions, feed, replica));
        let registrar = Registrar::new(store.clone(), seat.clone(), edge.clone(), live.clone());
        let registrar = Arc::new(registrar);
        tasks.spawn(hub::accept(Arc::clone(&listener), registrar, sender, tasks.clone()));
        let knocking = addresses::run(config.data_dir.clone(), Arc::clone(&listener), live.clone());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(knocking));
        // The listener outlives nobody who changes the authority.
        let (door, clock) = (Arc::downgrade(&listener), edge.clone());
        seat.show_with(move |authority| {
            if let Some(listener) = door.upgrade() {
                show_certificate(&listener, authority, &clock);
            }
        });
        let daily = seat.clone();
        tasks.spawn(stopping.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(CERTIFICATE).await;
                daily.show();
            }
        }));
        // Claims end and fences open also while no site is heard.
        let (due, clock) = (store.clone(), edge.clone());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(every).await;
                due.submit(
                    clock.given("claims"),
                    |tx| command::claim::tend(tx, None),
                    |outcome| {
                        if let Err(error) = outcome {
                            tracing::error!(%error, "claims were not looked at");
                        }
                    },
                );
            }
        }));
        let fingerprint = seat.present().fingerprint();
        let readers = http::Readers::of(&store, stopping.clone());
        let app = http::App::new(store.clone(), edge, seat, &config.data_dir, &admin, live, readers);
        let router = http::router(app);
        let end = stopping.clone();
        tasks.spawn(async move {
            let serve = axum::serve(tcp, router).with_graceful_shutdown(end.cancelled_owned());
            if let Err(error) = serve.await {
                tracing::error!(%error, "operators are not served any more");
            }
        });
        tracing::info!(
            %quic, %http, data_dir = %config.data_dir.display(), authority = %fingerprint,
            incarnation = %store.incarnation(), "central runs"
        );
        Ok(Server { quic, http, listener, stopping, tasks, store, _lock: lock })
    }

    /// Address that sites reach, UDP and TCP.
    pub fn quic(&self) -> SocketAddr {
        self.quic
    }

    /// TCP address that operators reach.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Tells sites and operators that this program ends, lets what is under way end for a few seconds, and
    /// closes the database. What was answered is committed, whether or not this is called.
    pub async fn stop(self) {
        let Server { listener, stopping, tasks, store, .. } = self;
        stopping.cancel();
        if tokio::time::timeout(PATIENCE, listener.close()).await.is_err() {
            tracing::warn!("some sites did not hear that central ends; they notice by themselves");
        }
        drop(listener);
        tasks.close();
        if tokio::time::timeout(PATIENCE, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "some requests did not end in time");
        }
        // The last handle waits for the writer, which commits what was submitted.
        off_runtime(move || drop(store)).await;
    }
}

/// What lies in the data folder.
struct Data {
    lock: File,
    admin: String,
    seat: Seat,
    keys: Keys,
    store: Store,
}

impl Data {
    fn open(folder: &Path, generation: Option<&Path>, edge: &Edge) -> Result<Self, Failure> {
        let unusable = |error: &dyn std::error::Error| unusable(folder, error);
        let lock = lock(folder)?;
        let authority = Authority::open_or_create(folder, edge.entropy(), edge.now())
            .map_err(|error| unusable(&error))?;
        let admin =
            secret(&folder.join(ADMIN_TOKEN), || format!("{}\n", hex(&edge.entropy::<32>())).into_bytes())
                .map_err(|error| unusable(&error))?;
        let keys = secret(&folder.join(KEYS), || Keys::from_entropy(edge.entropy()).to_bytes())
            .map_err(|error| unusable(&error))?;
        let keys = Keys::from_bytes(&keys).map_err(|error| unusable(&error))?;
        let opening =
            Opening { folder: folder.to_path_buf(), origin: Origin::Central, given: edge.given("central") };
        let generation = generation.map(read_generation).transpose()?;
        let store = Store::open_on(&opening, generation.as_deref()).map_err(|error| match error {
            StoreError::Corrupt(_) | StoreError::Unfinished { .. } => {
                let next = "run `holdfast-central restore --from FOLDER` with the newest backup; what it lacks \
                            comes back from the sites";
                Failure { next: next.into(), ..unusable(&error) }
            }
            error => unusable(&error),
        })?;
        let admin = read_admin_token(&admin).map_err(|why| {
            Failure::new(
                Exit::Data,
                format!("{} cannot be used", folder.join(ADMIN_TOKEN).display()),
                why,
                "write 64 hexadecimal digits into it, or remove it: the next start makes a new one",
            )
        })?;
        let standing = authority.standing();
        let followed = store.run(edge.given("central"), move |tx| command::authority::follow(tx, &standing));
        followed.map_err(|error| unusable(&error))?;
        let seat = Seat::new(folder.to_path_buf(), edge.clone(), authority);
        Ok(Data { lock, admin, seat, keys, store })
    }
}

/// The generation of the virtual machine, as the store wants it; the file may be text or bytes.
fn read_generation(file: &Path) -> Result<String, Failure> {
    let bytes = fs::read(file).map_err(|error| {
        Failure::new(
            Exit::Config,
            format!("`generation_file` cannot be read: {}", file.display()),
            error.to_string(),
            "check the path and its permissions, or leave it out",
        )
    })?;
    Ok(Digest::of(&bytes).to_string())
}

/// Makes the data folder if it is not there and takes it for this process, as long as the file that is
/// returned is open. A crash lets go of it.
///
/// # Errors
/// For people: another central has it, or it is unusable.
pub(crate) fn lock(folder: &Path) -> Result<File, Failure> {
    let unusable = |error: io::Error| unusable(folder, &error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
    let lock = File::create(folder.join(LOCK)).map_err(unusable)?;
    lock.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => Failure::new(
            Exit::Data,
            format!("the data folder {} is in use", folder.display()),
            "another holdfast-central runs on it, and two would spoil it",
            "end the other one first, or give this one another `data_dir`",
        ),
        fs::TryLockError::Error(error) => unusable(error),
    })?;
    Ok(lock)
}

fn unusable(folder: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::new(
        Exit::Data,
        format!("the data folder {} cannot be used", folder.display()),
        chain(error),
        "check the owner and the permissions of the folder, and the room on its volume; restore what is \
         damaged from a backup",
    )
}

fn read_admin_token(bytes: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(bytes).trim().to_string();
    if text.len() >= 32 && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(format!("a token has at least 32 printable characters and no spaces, this has {}", text.len()))
    }
}

/// A secret that could not be read or stored.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
struct SecretError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads a secret, or makes and stores it with mode 0600, whole or not at all.
fn secret(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, SecretError> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = make();
            let store = || {
                let draft = path.with_extension("new");
                match fs::remove_file(&draft) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
                // The mode above passed the umask, which may have taken more away.
                file.set_permissions(Permissions::from_mode(0o600))?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                fs::rename(&draft, path)?;
                File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
            };
            store().map_err(|source| SecretError { action: "write", path: path.to_path_buf(), source })?;
            Ok(bytes)
        }
        Err(source) => Err(SecretError { action: "read", path: path.to_path_buf(), source }),
    }
}

fn listen_quic(config: &Config, authority: &Authority, keys: Keys, edge: &Edge) -> Result<Listener, Failure> {
    let unshown = |error: &dyn std::error::Error| {
        Failure::new(
            Exit::Data,
            "central cannot show a certificate to sites",
            chain(error),
            "restore `authority.pem` in the data folder from a backup",
        )
    };
    let identity =
        authority.issue_server(&[], edge.entropy(), edge.now()).map_err(|error| unshown(&error))?;
    let tls =
        tls::server_config(identity, &authority.accepted(), edge.clock()).map_err(|error| unshown(&error))?;
    Listener::bind(config.listen_quic, tls, keys, Limits::default())
        .map_err(|error| cannot_listen("sites", config.listen_quic, &error))
}

/// Shows sites another certificate of central.
fn show_certificate(listener: &Listener, authority: &Authority, edge: &Edge) {
    let failed = |error: &dyn std::error::Error| {
        tracing::error!(error = chain(error), "central's certificate could not be made anew");
    };
    match authority.issue_server(&[], edge.entropy(), edge.now()) {
        Ok(identity) => match tls::server_config(identity, &authority.accepted(), edge.clock()) {
            Ok(tls) => listener.set_tls(tls),
            Err(error) => failed(&error),
        },
        Err(error) => failed(&error),
    }
}

async fn listen_http(config: &Config) -> Result<(TcpListener, SocketAddr), Failure> {
    let failed = |error: io::Error| cannot_listen("HTTP", config.listen_http, &error);
    let listener = TcpListener::bind(config.listen_http).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn cannot_listen(what: &str, address: SocketAddr, error: &io::Error) -> Failure {
    let key = if what == "sites" { "listen_quic" } else { "listen_http" };
    Failure::new(
        Exit::Listen,
        format!("cannot listen for {what} on {address}"),
        error.to_string(),
        format!("end the program that uses the address, or set `{key}` to another one"),
    )
}

#[cfg(test)]
mod tests;

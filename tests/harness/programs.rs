//! Starts the shipped programs, reads what they print, and kills them.
//!
//! A program is ready when it says so on its standard output; before that it names its listeners. It gets
//! ports that nobody is given by the system, and one that is started again keeps them, so that the machines
//! of a story find it where it was.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _, Seek as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::rest::Rest;

/// How long a program may take to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Folder of the programs that belong to this test binary, built if they are not there.
///
/// # Panics
/// When cargo cannot build them.
pub fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test
        .ancestors()
        .find(|folder| folder.ends_with("debug") || folder.ends_with("release"))
        .expect("tests run below target/debug or target/release")
        .to_path_buf();
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let mut command = Command::new(cargo);
        // With this package, so that the features are those of the test's own build and nothing is
        // compiled twice.
        command.args(["build", "--quiet", "--package", "central", "--package", "site-agent"]);
        command.args(["--package", "tests", "--bins"]);
        if profile.ends_with("release") {
            command.arg("--release");
        }
        if let Some(target) = profile.parent() {
            command.env("CARGO_TARGET_DIR", target);
        }
        let built = command.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo starts");
        assert!(built.success(), "cargo builds the programs");
    });
    profile
}

/// A running program.
pub struct Program {
    name: String,
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Program {
    /// Starts `program` with `arguments`; its log goes to a file that a failure prints.
    pub fn start(name: &str, program: &str, arguments: &[&str], log: &Path) -> Self {
        Program::start_within(&[], name, program, arguments, log)
    }

    /// The same, but `before`, if there is something in it, is the command that becomes the program: it
    /// gets program and arguments as its last ones and must not fork, so that the process id stays.
    pub fn start_within(before: &[&str], name: &str, program: &str, arguments: &[&str], log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        let path = folder().join(program);
        let mut command = match before {
            [] => Command::new(&path),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&path);
                command
            }
        };
        let mut child = command
            .args(arguments)
            .env("RUST_LOG", std::env::var("HOLDFAST_TEST_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {program}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Program { name: name.to_string(), child, lines, log: log.to_path_buf() }
    }

    /// Reads lines until `ready`, and returns what follows each of `names` on its line.
    ///
    /// # Panics
    /// When the program ends or takes too long; its log is printed.
    pub fn ready(&mut self, names: &[&str]) -> Vec<SocketAddr> {
        let mut found: Vec<Option<SocketAddr>> = vec![None; names.len()];
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(_) => panic!("{} is not ready; its log:\n{}", self.name, self.log()),
            };
            if line == "ready" {
                break;
            }
            for (name, slot) in names.iter().zip(&mut found) {
                if let Some(address) = line.strip_prefix(name).and_then(|rest| rest.trim().parse().ok()) {
                    *slot = Some(address);
                }
            }
        }
        let missing = |name: &&str| panic!("{} did not name its `{name}` listener", self.name);
        names.iter().zip(found).map(|(name, slot)| slot.unwrap_or_else(|| missing(name))).collect()
    }

    /// Everything that the program has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Memory that the program holds, in bytes (`VmRSS`, proc(5)).
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("a running program");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a running program");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kilobytes");
        kilobytes * 1024
    }

    /// Ends the program without any farewell.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Whether the program still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- last lines of {}:", self.name);
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// Runs a program to its end and returns its exit code, what it printed, and what it complained about.
///
/// # Panics
/// When it does not end within a minute.
pub fn run(program: &str, arguments: &[&str]) -> (i32, String, String) {
    let [mut out, mut complaint] = [(); 2].map(|()| tempfile::tempfile().expect("a file for what it says"));
    let mut child = Command::new(folder().join(program))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle"))
        .stderr(complaint.try_clone().expect("a second handle"))
        .spawn()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    let end = Instant::now() + PATIENCE;
    let code = loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => break status.code(),
            None if Instant::now() < end => std::thread::park_timeout(Duration::from_millis(10)),
            None => {
                drop(child.kill());
                drop(child.wait());
                break None;
            }
        }
    };
    let [out, complaint] = [&mut out, &mut complaint].map(|file| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("what it said");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    match code {
        Some(code) => (code, out, complaint),
        None => panic!("{program} {arguments:?} did not end by itself; it said: {out}{complaint}"),
    }
}

/// Ports, UDP and TCP, that are free and outside of the range from which the system serves those who ask
/// for any: nobody gets one between the end of a program and its next start.
fn quiet_ports<const N: usize>() -> [u16; N] {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Programs of two test processes meet rarely if each begins elsewhere.
    let first = std::process::id().wrapping_mul(2_654_435_761);
    [(); N].map(|()| {
        loop {
            let nth = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
            let port = u16::try_from(12_000 + nth % 20_000).expect("below 32,000");
            let address = ("127.0.0.1", port);
            if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
                return port;
            }
        }
    })
}

/// A running central.
pub struct Central {
    /// The program.
    pub program: Program,
    /// Its folder.
    pub folder: PathBuf,
    /// Where sites dial (UDP).
    pub quic: SocketAddr,
    /// Its API, with the operator's token.
    pub rest: Rest,
    config: PathBuf,
}

impl Central {
    /// Starts central in `folder`, on free loopback ports.
    pub fn start(folder: &Path) -> Self {
        let [quic, http] = quiet_ports().map(|port| format!("127.0.0.1:{port}"));
        Central::start_at(folder, &quic, &http)
    }

    fn start_at(folder: &Path, quic: &str, http: &str) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for central");
        let config = folder.join("central.toml");
        let data = folder.join("data");
        let text = format!(
            "data_dir = {:?}\nlisten_quic = {quic:?}\nlisten_http = {http:?}\n",
            data.display().to_string()
        );
        std::fs::write(&config, text).expect("a configuration file");
        let path = config.display().to_string();
        let mut program = Program::start(
            "central",
            "holdfast-central",
            &["serve", "--config", &path],
            &folder.join("central.log"),
        );
        let listeners = program.ready(&["quic", "http"]);
        let token = std::fs::read_to_string(data.join("admin-token")).expect("the operator's token");
        let rest = Rest::new(listeners[1], token.trim());
        Central { program, folder: folder.to_path_buf(), quic: listeners[0], rest, config }
    }

    /// Starts it again after its end, where it was.
    pub fn restart(&mut self) {
        self.program.kill();
        *self = Central::start_at(&self.folder, &self.quic.to_string(), &self.rest.address().to_string());
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// File of its database.
    pub fn database(&self) -> PathBuf {
        find(&self.data(), "holdfast.db")
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Makes a token for a site, which is described if it is not known.
    pub fn token(&self, site: &str) -> String {
        let config = self.config.display().to_string();
        let arguments = ["token", "create", "--config", &config, "--site", site];
        let (code, out, complaint) = run("holdfast-central", &arguments);
        assert_eq!(code, 0, "token create: {complaint}");
        out.trim().to_string()
    }
}

/// A running site.
pub struct Site {
    /// The program.
    pub program: Program,
    /// Its name.
    pub name: String,
    /// Its id, as central gave it.
    pub id: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its API, with the branch admin's token.
    pub rest: Rest,
    /// DHCP, in place of port 67.
    pub dhcp: SocketAddr,
    /// ProxyDHCP, in place of port 4011.
    pub pxe: SocketAddr,
    /// TFTP, in place of port 69.
    pub tftp: SocketAddr,
    config: PathBuf,
}

/// Where machines find it. A site that is started again keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Doors {
    /// DHCP, in place of port 67.
    pub dhcp: SocketAddr,
    /// ProxyDHCP, in place of port 4011.
    pub pxe: SocketAddr,
    /// TFTP, in place of port 69.
    pub tftp: SocketAddr,
}

impl From<&Site> for Doors {
    fn from(site: &Site) -> Self {
        Doors { dhcp: site.dhcp, pxe: site.pxe, tftp: site.tftp }
    }
}

impl Site {
    /// Enrols a site with a token; returns what the program said.
    pub fn enrol(folder: &Path, name: &str, central: SocketAddr, token: &str) -> (i32, String, String) {
        std::fs::create_dir_all(folder).expect("a folder for the site");
        let config = Site::configure(folder, &["0"; 4]);
        let (config, central) = (config.display().to_string(), central.to_string());
        run(
            "holdfast-site",
            &["enroll", "--config", &config, "--central", &central, "--token", token, "--name", name],
        )
    }

    fn configure(folder: &Path, ports: &[&str; 4]) -> PathBuf {
        let loaders = folder.join("loaders");
        std::fs::create_dir_all(&loaders).expect("a folder for loaders");
        // The machines of the harness only compare bytes; real loaders are the lab's.
        for name in ["undionly.kpxe", "snponly.efi", "ipxe.efi"] {
            let path = loaders.join(name);
            if !path.exists() {
                std::fs::write(path, loader(name)).expect("a loader");
            }
        }
        let config = folder.join("site.toml");
        let text = format!(
            "data_dir = {:?}\nboot_address = \"127.0.0.1\"\nlisten_http = \"127.0.0.1:{}\"\ndhcp_port = {}\n\
             pxe_port = {}\ntftp_port = {}\nloaders_dir = {:?}\n",
            folder.join("data").display().to_string(),
            ports[0],
            ports[1],
            ports[2],
            ports[3],
            loaders.display().to_string(),
        );
        std::fs::write(&config, text).expect("a configuration file");
        config
    }

    /// Starts an enrolled site on free loopback ports.
    pub fn start(folder: &Path, name: &str, id: &str) -> Self {
        Site::start_within(&[], folder, name, id)
    }

    /// The same, as what `before` becomes; see [`Program::start_within`].
    pub fn start_within(before: &[&str], folder: &Path, name: &str, id: &str) -> Self {
        let ports = quiet_ports::<4>().map(|port| port.to_string());
        Site::start_at(before, folder, name, id, &[&ports[0], &ports[1], &ports[2], &ports[3]])
    }

    fn start_at(before: &[&str], folder: &Path, name: &str, id: &str, ports: &[&str; 4]) -> Self {
        let config = Site::configure(folder, ports);
        let (config_path, log) = (config.display().to_string(), folder.join("site.log"));
        let arguments = ["run", "--config", &config_path];
        let mut program = Program::start_within(before, name, "holdfast-site", &arguments, &log);
        let listeners = program.ready(&["http", "dhcp", "pxe", "tftp"]);
        let token = std::fs::read_to_string(folder.join("data/admin-token")).expect("the admin's token");
        Site {
            program,
            name: name.to_string(),
            id: id.to_string(),
            folder: folder.to_path_buf(),
            rest: Rest::new(listeners[0], token.trim()),
            dhcp: listeners[1],
            pxe: listeners[2],
            tftp: listeners[3],
            config,
        }
    }

    /// Starts it again after its end, where it was.
    pub fn restart(&mut self) {
        self.program.kill();
        let ports = [self.rest.address().port(), self.dhcp.port(), self.pxe.port(), self.tftp.port()]
            .map(|port| port.to_string());
        let ports = [&*ports[0], &*ports[1], &*ports[2], &*ports[3]];
        *self = Site::start_at(&[], &self.folder, &self.name, &self.id, &ports);
    }

    /// Starts it again after its end and kills it `after` that, however far it has got.
    pub fn stumble(&mut self, after: Duration) {
        self.program.kill();
        let config = self.config.display().to_string();
        let log = self.folder.join("site.log");
        let mut program = Program::start(&self.name, "holdfast-site", &["run", "--config", &config], &log);
        std::thread::park_timeout(after);
        program.kill();
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// File of its database.
    pub fn database(&self) -> PathBuf {
        find(&self.data(), "holdfast.db")
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What `holdfast-site status` says to a person: exit code, output, complaint.
    pub fn status(&self) -> (i32, String, String) {
        run("holdfast-site", &["status", "--config", &self.config.display().to_string()])
    }
}

/// Finds a file by its name anywhere below a folder.
///
/// # Panics
/// When there is none.
pub fn find(folder: &Path, name: &str) -> PathBuf {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|found| found == name) {
                return path;
            }
        }
    }
    panic!("{name} is not below {}", folder.display());
}

/// Bytes of a played loader: long enough for several TFTP blocks, different for each name.
pub fn loader(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(70_000).collect()
}

/// Waits until `ask` gives something, at most `patience`, and asks ten times a second.
///
/// # Panics
/// When it does not; the last answer is named.
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<T, Value>) -> T {
    let end = Instant::now() + patience;
    loop {
        match ask() {
            Ok(found) => return found,
            Err(last) => {
                assert!(Instant::now() < end, "within {patience:?}: {what}; last seen: {last}");
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
}

//! One branch office and its WAN, made of network namespaces.
//!
//!        office (10.78.0.0/24)                site                           central
//!     ┌───────────────────────┐      ┌────────────────────┐          ┌────────────────────┐
//!     │ br0 10.78.0.1 ── lan0 ├──────┤ lan0 10.78.0.2     │          │                    │
//!     │  ├─ tap (a machine)   │      │      wan0 10.78.1.2├── WAN ───┤ wan0 10.78.1.1     │
//!     │  └─ tap (a machine)   │      └────────────────────┘          └────────────────────┘
//!     └───────────────────────┘
//!
//! The office's ordinary servers and its machines live in `office`, the site agent in `site`, the fleet in
//! `central`. `cut` and `heal` take the WAN away and bring it back; the office LAN never notices. Nothing here
//! touches the network of the machine that runs the test. Deliberately absent: delay and loss, which this
//! kernel cannot make, and a second office, which is a second `Net` as long as they do not have to meet.

use std::fs;
use std::path::Path;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::error::{Doing, LabError, Result};
use crate::packages;
use crate::process::{Process, run};

/// The office's own server: DHCP, and in the baseline TFTP and HTTP as well.
pub(crate) const OFFICE: &str = "10.78.0.1";
/// The site agent, as machines see it.
pub(crate) const SITE: &str = "10.78.0.2";
/// Central, as the site sees it.
pub(crate) const CENTRAL: &str = "10.78.1.1";
/// The site, as central sees it.
pub(crate) const SITE_WAN: &str = "10.78.1.2";

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// Several networks of one process have different numbers, so that their names never meet.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The three places and the wires between them; dropping it removes them with everything still inside.
pub(crate) struct Net {
    // Dropped in this order: first the places, then the folder with their logs.
    office: Namespace,
    site: Namespace,
    central: Namespace,
    folder: TempDir,
}

impl Net {
    /// Makes the network, after removing what killed test processes have left behind.
    ///
    /// # Errors
    /// Without root or without the packages of `packages.txt`, saying which; or when a step of `ip` fails.
    pub(crate) fn new() -> Result<Self> {
        packages::check()?;
        sweep()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let place = |role: &str| Namespace::new(&format!("hf{}-{number}-{role}", process::id()));
        let net = Self {
            office: place("office")?,
            site: place("site")?,
            central: place("central")?,
            folder: tempfile::tempdir().doing("make a folder for the lab's logs")?,
        };
        net.lay_office_lan()?;
        net.lay_wan()?;
        Ok(net)
    }

    /// Where the office's own servers run and machines are plugged in.
    pub(crate) fn office(&self) -> &Namespace {
        &self.office
    }

    /// Where the site agent runs.
    pub(crate) fn site(&self) -> &Namespace {
        &self.site
    }

    /// Where central runs.
    pub(crate) fn central(&self) -> &Namespace {
        &self.central
    }

    /// A folder for logs, disks and configuration that goes with this network.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Takes the WAN away. The office LAN stays.
    ///
    /// # Errors
    /// When `ip` fails.
    pub(crate) fn cut(&self) -> Result<()> {
        self.site.ip("link set wan0 down")
    }

    /// Brings the WAN back. Returns when both ends are up, with the addresses they had.
    ///
    /// # Errors
    /// When `ip` fails.
    pub(crate) fn heal(&self) -> Result<()> {
        self.raise_wan()
    }

    /// Plugs a cable for a machine into the office LAN; it is pulled out when the value is dropped.
    ///
    /// # Errors
    /// When `ip` fails, for instance because the name is taken: one machine, one cable.
    pub(crate) fn tap(&self, name: &str) -> Result<Tap> {
        self.office.ip(&format!("tuntap add {name} mode tap"))?;
        let tap = Tap { office: self.office.name.clone(), name: name.into() };
        self.office.ip(&format!("link set {name} master br0 up"))?;
        Ok(tap)
    }

    fn lay_office_lan(&self) -> Result<()> {
        // Without spanning tree a new port forwards at once: firmware asks in its first seconds.
        self.office.ip("link add br0 type bridge stp_state 0 forward_delay 0")?;
        self.office.ip(&format!("addr add {OFFICE}/24 dev br0"))?;
        // The IPv6 prefix is there to be announced: see `dnsmasq`.
        self.office.ip("addr add fd78::1/64 dev br0 nodad")?;
        self.office.ip("link set br0 up")?;
        self.office.ip(&format!("link add lan0 type veth peer name lan0 netns {}", self.site.name))?;
        self.office.ip("link set lan0 master br0 up")?;
        self.site.ip(&format!("addr add {SITE}/24 dev lan0"))?;
        self.site.ip("link set lan0 up")
    }

    fn lay_wan(&self) -> Result<()> {
        self.site.ip(&format!("link add wan0 type veth peer name wan0 netns {}", self.central.name))?;
        self.raise_wan()
    }

    /// Also restores what a link may lose while it is down. `replace` is content with what is there already.
    fn raise_wan(&self) -> Result<()> {
        for (end, address) in [(&self.site, SITE_WAN), (&self.central, CENTRAL)] {
            end.ip(&format!("addr replace {address}/30 dev wan0"))?;
            end.ip("link set wan0 up")?;
            end.ip(&format!("route replace 10.78.1.0/30 dev wan0 src {address}"))?;
        }
        Ok(())
    }
}

/// A machine's place on the office LAN.
pub(crate) struct Tap {
    office: String,
    name: String,
}

impl Tap {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // The whole namespace may be gone already.
        let _ = run(Command::new("ip").args(["-n", &self.office, "link", "del", &self.name]));
    }
}

/// One network namespace, known to `ip netns` by its name.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.into() };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Returns a command that runs `program` in here. `ip` replaces itself by the program, so the child's
    /// process id is the program's own.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program.as_ref());
        command
    }

    /// Runs `program` in here to its end and returns what it printed.
    ///
    /// # Errors
    /// When it does not end with status 0.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run(self.command(program).args(arguments))
    }

    /// Whether `address` answers one ping within a second.
    pub(crate) fn pings(&self, address: &str) -> bool {
        self.run("busybox", &["ping", "-c", "1", "-W", "1", address]).is_ok()
    }

    /// Speaks HTTP from in here: one request, the answer whatever its status.
    ///
    /// `headers` are whole lines, `Name: value`; an empty `body` is none. Certificates are not checked, and no
    /// proxy is used whatever the environment says.
    ///
    /// # Errors
    /// When there is no answer within ten seconds.
    pub(crate) fn http(&self, method: &str, url: &str, headers: &[&str], body: &str) -> Result<Answer> {
        let mut command = self.command("curl");
        command.args(["--silent", "--show-error", "--insecure", "--noproxy", "*", "--max-time", "10"]);
        command.args(["--write-out", "\n%{http_code}"]);
        // After a plain `--request HEAD` curl would wait for the body.
        match method {
            "HEAD" => command.arg("--head"),
            _ => command.args(["--request", method]),
        };
        for header in headers {
            command.args(["--header", header]);
        }
        if !body.is_empty() {
            command.args(["--data-binary", body]);
        }
        let printed = run(command.arg(url))?;
        let (body, status) = printed.rsplit_once('\n').unwrap_or(("", &printed));
        let status = status.parse().map_err(|_| {
            LabError::new(format!("{method} {url} has no status"), format!("curl printed `{printed}`"))
        })?;
        Ok(Answer { status, body: body.into() })
    }

    /// Starts `command`, made by `Namespace::command`, beside the test. See `Process::spawn`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn spawn(&self, name: &str, command: &mut Command, folder: &Path) -> Result<Process> {
        Process::spawn(name, command, &folder.join(format!("{name}.log")))
    }

    fn ip(&self, words: &str) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace())).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A `drop` has nobody to tell; the next `sweep` would say what is wrong.
        let _ = remove(&self.name);
    }
}

/// What an HTTP server said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Removes the namespaces of test processes that no longer run.
fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(NAMES) else {
        return Ok(()); // Nobody has made a namespace since this machine started.
    };
    for entry in entries {
        let name = entry.doing("list namespaces")?.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !is_running(pid)) {
            remove(&name)?;
        }
    }
    Ok(())
}

/// Removes a namespace with its wires, and kills whoever still runs in it: a `Process` is gone by now, what it
/// started may not be.
fn remove(name: &str) -> Result<()> {
    let left = run(Command::new("ip").args(["netns", "pids", name]))?;
    for pid in left.split_whitespace() {
        // It may have ended since the list was made.
        let _ = run(Command::new("busybox").args(["kill", "-KILL", pid]));
    }
    run(Command::new("ip").args(["netns", "del", name])).map(drop)
}

/// Returns the process that a namespace of the lab belongs to: `hf<pid>-…`.
fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix("hf")?.split_once('-')?;
    pid.parse().ok()
}

/// Whether a process runs; one that has ended and waits for its parent to notice does not.
fn is_running(pid: u32) -> bool {
    // `pid (name) state …`; a name may hold anything, also parentheses.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::http::Web;
    use crate::process::wait_for;

    #[test]
    fn only_names_of_the_lab_have_an_owner() {
        assert_eq!(owner("hf4711-0-office"), Some(4711));
        assert_eq!(owner("hf-0-office"), None);
        assert_eq!(owner("hfx-office"), None);
        assert_eq!(owner("office"), None);
    }

    #[test]
    fn a_cut_stops_ping_and_tcp_between_site_and_central_and_heal_brings_them_back() -> Result<()> {
        let net = Net::new()?;
        let web = net.folder().join("web");
        fs::create_dir(&web).doing("make a folder")?;
        fs::write(web.join("hello"), "central is here").doing("write a file")?;
        let _central = Web::serve(net.central(), CENTRAL, 8000, &web)?;
        let url = format!("http://{CENTRAL}:8000/hello");

        for round in 1..=2 {
            assert!(net.site().pings(CENTRAL), "round {round}: the WAN is up");
            assert!(net.central().pings(SITE_WAN), "round {round}: in both directions");
            let answer = net.site().http("GET", &url, &[], "")?;
            assert_eq!((answer.status, answer.body.as_str()), (200, "central is here"));

            net.cut()?;
            assert!(!net.site().pings(CENTRAL), "round {round}: no ping through a cut");
            assert!(!net.central().pings(SITE_WAN), "round {round}: in neither direction");
            let refused = net.site().http("GET", &url, &[], "").unwrap_err().to_string();
            assert!(refused.contains("curl: ("), "{refused}");
            assert!(net.site().pings(OFFICE), "round {round}: the office LAN never notices");
            assert!(net.office().pings(SITE), "round {round}: in both directions");

            net.heal()?;
            wait_for("WAN after heal", Duration::from_secs(5), || {
                Ok(net.site().pings(CENTRAL).then_some(()))
            })?;
        }
        Ok(())
    }

    #[test]
    fn a_tcp_connection_outlives_a_short_cut() -> Result<()> {
        let net = Net::new()?;
        let mut listener = net.central().command("busybox");
        let listener = listener.args(["nc", "-l", "-p", "9000", "-e", "busybox", "sh", "-c", "cat >&2"]);
        let mut heard = net.central().spawn("listener", listener, net.folder())?;
        wait_for("listener", Duration::from_secs(5), || {
            let sockets = net.central().run("busybox", &["netstat", "-ltn"])?;
            Ok(sockets.contains(":9000").then_some(()))
        })?;

        // One connection; the second line is spoken when the file `now` appears, which is during the cut.
        let now = net.folder().join("now");
        let script = format!(
            "(echo before; while [ ! -e {} ]; do usleep 20000; done; echo after; cat) | nc {CENTRAL} 9000",
            now.display()
        );
        let mut speaker = net.site().command("busybox");
        let _speaker = net.site().spawn("speaker", speaker.args(["sh", "-c", &script]), net.folder())?;
        heard.wait_log("before", Duration::from_secs(5))?;
        net.cut()?;
        fs::write(&now, "").doing("write a file")?;
        assert!(!net.site().pings(CENTRAL));
        assert!(!heard.log()?.contains("after"), "nothing passes a cut");
        net.heal()?;
        heard.wait_log("after", Duration::from_secs(30))
    }

    #[test]
    fn a_dropped_network_leaves_neither_namespaces_nor_programs_behind() -> Result<()> {
        let net = Net::new()?;
        let names = [&net.office, &net.site, &net.central].map(|place| place.name.clone());
        assert!(names.iter().all(|name| Path::new(NAMES).join(name).exists()));
        // A program that leaves the lab's hands, as a daemon does.
        net.site()
            .run("busybox", &["start-stop-daemon", "-S", "-b", "-x", "/bin/busybox", "--", "sleep", "600"])?;
        let orphan = wait_for("daemon", Duration::from_secs(5), || {
            let pids = run(Command::new("ip").args(["netns", "pids", &names[1]]))?;
            Ok(pids.trim().parse().ok())
        })?;
        assert!(is_running(orphan));
        drop(net);
        assert!(names.iter().all(|name| !Path::new(NAMES).join(name).exists()));
        wait_for("end of the daemon", Duration::from_secs(5), || Ok((!is_running(orphan)).then_some(())))
    }

    #[test]
    fn networks_of_ended_test_processes_are_swept_up() -> Result<()> {
        packages::check()?;
        // No process has this number: the kernel's limit is 4 194 304.
        let left = Namespace::new("hf4999999-0-office")?;
        let name = left.name.clone();
        std::mem::forget(left);
        let net = Net::new()?;
        assert!(!Path::new(NAMES).join(name).exists());
        assert!(Path::new(NAMES).join(&net.site.name).exists(), "a running test keeps its own");
        Ok(())
    }
}

//! The product's story with everything real: the shipped programs, firmware, loaders, a kernel and disks.
//!
//! `Branch` is central, one office and its site agent, each in its own namespace; the office's DHCP server gives
//! addresses and knows nothing of booting. Machines are ordered at central, and installed by the site alone
//! while the WAN is cut. What is believed is what a machine's console says, what is on its disk, and what both
//! programs say over their APIs once the WAN is back. `tests/demo` tells more of the same story over loopback;
//! here only the programs and the script in the initramfs are the project's own.
//!
//! Deliberately absent: a limit on the seconds of the table. Whatever else runs on the machine would break it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::programs;
use serde_json::{Value, from_str, json};

use crate::disk;
use crate::dnsmasq::Dnsmasq;
use crate::error::{Doing, LabError, Result};
use crate::initramfs;
use crate::machine::{Machine, Running};
use crate::network::{CENTRAL, Namespace, Net, SITE};
use crate::process::{Process, tail, wait_for};

const SITE_NAME: &str = "lyon";
pub(crate) const QUIC_PORT: u16 = 7443;
/// Operators are on central's own machine: this version serves them without TLS.
const OPERATORS: &str = "127.0.0.1:8443";
const SITE_PORT: u16 = 8080;

/// A program that starts, on a machine that compiles beside it.
const START: Duration = Duration::from_secs(30);
/// What both sides do by themselves: transfers, heartbeats, dialling again after a cut.
pub(crate) const SOON_S: u64 = 60;
/// One boot over the network with everything slow about it allowed for.
const BOOT_S: u64 = 120;

/// What lies on a machine's disk before, and what is written there.
const OLD: &str = "old-system";
const NEW: &str = "new-system";

/// Central, an office, and a site agent that has enrolled.
pub(crate) struct Branch {
    // Dropped in this order: who shows the logs, the programs, the network with the folder of their logs.
    logs: Logs,
    /// None while it is killed.
    agent: Option<Process>,
    _central: Process,
    _dns: Dnsmasq,
    pub(crate) net: Net,
    agent_starts: u32,
    central_token: String,
    site_token: String,
    /// The enrolment token, which is used up.
    token: String,
    /// As central named the site.
    id: String,
}

impl Branch {
    /// Starts everything and enrols the site. Returns when central sees it.
    ///
    /// # Errors
    /// When a program does not start or the two do not meet.
    pub(crate) fn open() -> Result<Self> {
        let net = Net::new()?;
        let logs = Logs { folder: net.folder().into(), shown: true };
        let dns = Dnsmasq::plain(&net)?;

        let data = net.folder().join("central");
        configure(
            &net,
            "central.toml",
            &format!(
                "data_dir = {data:?}\nlisten_quic = \"{CENTRAL}:{QUIC_PORT}\"\nlisten_http = \"{OPERATORS}\"\n"
            ),
        )?;
        let central = start(&net, net.central(), "central", "holdfast-central", "serve")?;
        let central_token = read_token(&data)?;
        let words = ["token", "create", "--config", &path(&net, "central.toml"), "--site", SITE_NAME];
        let token = net.central().run(&program("holdfast-central"), &words)?.trim().to_string();

        configure_site(&net, "site")?;
        let id = enrol(&net, "site", &token)?.trim().to_string();
        let mut branch = Self {
            logs,
            agent: None,
            _central: central,
            _dns: dns,
            agent_starts: 0,
            central_token,
            site_token: String::new(),
            token,
            id,
            net,
        };
        branch.start_agent()?;
        branch.site_token = read_token(&branch.net.folder().join("site"))?;
        // Short heartbeats, so that a cut shows within seconds.
        branch.central().say("PATCH", &branch.of_site(""), &json!({ "heartbeat_s": 1 }), 200)?;
        wait_until("sight of the site at central", SOON_S, || {
            let site = branch.central().show(&branch.of_site(""))?;
            Ok((site["status"] == "online", site))
        })?;
        Ok(branch)
    }

    /// Starts the agent, also after its end; its data and its place are what they were.
    fn start_agent(&mut self) -> Result<()> {
        self.agent_starts += 1;
        // A log of its own, or the `ready` of the run before would do.
        let name = format!("site-{}", self.agent_starts);
        self.agent = Some(start(&self.net, self.net.site(), &name, "holdfast-site", "run")?);
        Ok(())
    }

    /// The test has passed: nobody needs the logs.
    pub(crate) fn is_well(&mut self) {
        self.logs.leave_out();
    }

    /// Ends the agent without any farewell.
    fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// Describes an installation at central, orders it for `machines`, and waits until the site could do it
    /// alone. Returns the digest of the image.
    fn order(&self, machines: &[&Machine]) -> Result<String> {
        let central = self.central();
        let boot = initramfs::boot()?;
        let image = disk::image(NEW)?;
        let mut files = serde_json::Map::new();
        for (role, file) in [("kernel", &boot.kernel), ("initrd", &boot.initramfs), ("image", &image)] {
            let blob = central.upload(file)?;
            assert_eq!(blob["digest"], disk::digest(file)?, "a {role} is named by its content");
            files.insert(role.into(), blob["digest"].clone());
        }
        let digest = files["image"].as_str().unwrap_or_default().to_string();
        // The same words as in the baseline.
        let workflow = json!({
            "name": "lab-linux", "os_family": "linux", "arch": "x86_64", "files": files,
            "kernel_args": "console=ttyS0 quiet panic=1",
        });
        central.say("POST", "/workflows", &workflow, 201)?;
        for (number, machine) in (1..).zip(machines) {
            let node = json!({ "mac": machine.mac(), "site": self.id, "hostname": format!("till-{number}") });
            central.say("POST", "/nodes", &node, 201)?;
            let task = json!({ "node": machine.mac(), "workflow": "lab-linux" });
            central.say("POST", "/tasks", &task, 201)?;
        }
        wait_until("order that the site is ready for", SOON_S, || {
            let tasks = self.site().list("/tasks")?;
            let ready = tasks.iter().filter(|task| task["state"] == "ready").count();
            Ok((ready == machines.len(), tasks.into()))
        })?;
        Ok(digest)
    }

    /// Gives a machine a disk with the old system on it.
    fn with_disk(&self, machine: Machine) -> Result<Pc> {
        let disk = self.net.folder().join(format!("{}.img", machine.mac().replace(':', "")));
        disk::place(&disk::image(OLD)?, &disk)?;
        Ok(Pc { machine: machine.disk(&disk), disk })
    }

    /// Brings the WAN back and waits until each side has what the other has, and knows it.
    fn heal(&self) -> Result<()> {
        let compared = |of: &Value| of["compared_at"].clone();
        let (central, site) = (self.central(), self.site());
        let before =
            [compared(&site.show("/agent/status")?["link"]), compared(&central.show(&self.of_site(""))?)];
        let healed = Instant::now();
        self.net.heal()?;
        wait_until("agreement of both sides", SOON_S, || {
            let here = site.show("/agent/status")?["link"].take();
            let there = central.show(&self.of_site(""))?;
            let sent =
                |from: &Value, to: &Value| from["acknowledged"] == from["end"] && to["pulled"] == from["end"];
            let holds = here["state"] == "connected"
                && there["status"] == "online"
                && sent(&here, &there)
                && sent(&there, &here)
                && here["agrees"] == true
                && there["agrees"] == true
                && there["diverged"] == false
                && before[0] != here["compared_at"]
                && before[1] != there["compared_at"];
            Ok((holds, json!({ "site": here, "central": there })))
        })?;
        println!("seconds from the WAN's return to agreement: {:.1}", healed.elapsed().as_secs_f64());
        Ok(())
    }

    /// Returns the site's journal, after comparing what both sides hold of it: one chain, whole and in order.
    fn journal(&self) -> Result<Vec<Value>> {
        let read = |api: &Api| -> Result<Vec<Value>> {
            let mut rows = api.list(&format!("/journal?site={}", self.id))?;
            for row in rows.iter_mut().filter_map(Value::as_object_mut) {
                // Each replica counts for itself.
                row.remove("entry");
            }
            Ok(rows)
        };
        let (here, there) = (read(&self.site())?, read(&self.central())?);
        assert_eq!(here, there, "both sides hold the same journal");
        for (number, row) in (1_u64..).zip(&here) {
            assert_eq!((row["seq"].as_u64(), &row["incarnation"]), (Some(number), &here[0]["incarnation"]));
        }
        Ok(here)
    }

    pub(crate) fn central(&self) -> Api<'_> {
        let base = format!("http://{OPERATORS}/api/v1");
        Api { place: self.net.central(), base, token: &self.central_token }
    }

    pub(crate) fn site(&self) -> Api<'_> {
        let base = format!("http://{SITE}:{SITE_PORT}/api/v1");
        Api { place: self.net.site(), base, token: &self.site_token }
    }

    pub(crate) fn of_site(&self, more: &str) -> String {
        format!("/sites/{}{more}", self.id)
    }
}

/// A machine and the disk that it writes to.
struct Pc {
    machine: Machine,
    disk: PathBuf,
}

/// One program's API, spoken from the namespace that it runs in.
pub(crate) struct Api<'a> {
    place: &'a Namespace,
    base: String,
    token: &'a str,
}

impl Api<'_> {
    pub(crate) fn show(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, "application/json", "", 200)
    }

    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut page = self.show(&format!("{path}{joint}limit=1000"))?;
        assert!(page["next"].is_null(), "no list of this story is longer than a page");
        match page["items"].take() {
            Value::Array(items) => Ok(items),
            other => Err(LabError::new(format!("{path} is no list"), other)),
        }
    }

    pub(crate) fn say(&self, method: &str, path: &str, body: &Value, status: u16) -> Result<Value> {
        self.ask(method, path, "application/json", &body.to_string(), status)
    }

    pub(crate) fn upload(&self, file: &Path) -> Result<Value> {
        // The name of a file after an at sign is how curl is given its content.
        let body = format!("@{}", file.display());
        self.ask("PUT", "/blobs", "application/octet-stream", &body, 201)
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: &str, status: u16) -> Result<Value> {
        let url = format!("{}{path}", self.base);
        let headers = [format!("Authorization: Bearer {}", self.token), format!("Content-Type: {kind}")];
        let answer = self.place.http(method, &url, &[&headers[0], &headers[1]], body)?;
        if answer.status != status {
            let what = format!("{method} {path} is answered with {}, not {status}", answer.status);
            return Err(LabError::new(what, answer.body));
        }
        from_str(&answer.body).map_err(|error| LabError::new(format!("{path}: {}", answer.body), error))
    }
}

/// Shows the end of every log and console of a network when a test fails, however it does.
struct Logs {
    folder: PathBuf,
    shown: bool,
}

impl Logs {
    /// The test has passed.
    fn leave_out(&mut self) {
        self.shown = false;
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if !self.shown {
            return;
        }
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let end = if name.ends_with(".log") || name.contains(".console-") {
                tail(&path)
            } else {
                String::new()
            };
            if !end.is_empty() {
                eprintln!("--- the end of {name}\n{end}");
            }
        }
    }
}

/// Waits until `look` says that it holds, with what it has seen; a failure shows what was seen last.
pub(crate) fn wait_until(
    what: &str,
    seconds: u64,
    mut look: impl FnMut() -> Result<(bool, Value)>,
) -> Result<Value> {
    let mut last = Value::Null;
    let waited = wait_for(what, Duration::from_secs(seconds), || {
        let (holds, seen) = look()?;
        last = seen;
        Ok(holds.then_some(()))
    });
    match waited {
        Ok(()) => Ok(last),
        Err(error) => Err(LabError::new(error.to_string(), format!("last seen: {last:#}"))),
    }
}

fn program(name: &str) -> String {
    programs::folder().join(name).display().to_string()
}

fn path(net: &Net, file: &str) -> String {
    net.folder().join(file).display().to_string()
}

fn configure(net: &Net, file: &str, text: &str) -> Result<()> {
    fs::write(net.folder().join(file), text).doing(format!("write {file}"))
}

fn configure_site(net: &Net, name: &str) -> Result<()> {
    let data = net.folder().join(name);
    let text = format!(
        "data_dir = {data:?}
boot_address = \"{SITE}\"
interface = \"lan0\"
listen_http = \"{SITE}:{SITE_PORT}\"
dhcp_port = 67
pxe_port = 4011
tftp_port = 69
loaders_dir = \"/usr/lib/ipxe\"
hold_wait_s = 3
hold_tries = 2
try_udp_after_s = 5
"
    );
    configure(net, &format!("{name}.toml"), &text)
}

/// Enrols the site that `configure_site` has laid out as `name`; returns what the program printed.
fn enrol(net: &Net, name: &str, token: &str) -> Result<String> {
    let config = path(net, &format!("{name}.toml"));
    let central = format!("{CENTRAL}:{QUIC_PORT}");
    let words = ["enroll", "--config", &config, "--central", &central, "--token", token, "--name", SITE_NAME];
    net.site().run(&program("holdfast-site"), &words)
}

fn start(net: &Net, place: &Namespace, name: &str, which: &str, command: &str) -> Result<Process> {
    let config = if which == "holdfast-central" { "central.toml" } else { "site.toml" };
    let mut words = place.command(program(which));
    words.args([command, "--config", &path(net, config)]);
    let mut process = place.spawn(name, &mut words, net.folder())?;
    // A line of its own, after those that name the listeners.
    process.wait_log("\nready\n", START)?;
    Ok(process)
}

fn read_token(data: &Path) -> Result<String> {
    let token = fs::read_to_string(data.join("admin-token")).doing("read the admin's token")?;
    Ok(token.trim().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::baseline::{self, BootServer};
    use crate::machine::Report;

    /// What a machine says on its way, when nothing goes wrong.
    const STEPS: [&str; 7] =
        ["register", "go_ahead", "install_started", "progress", "progress", "progress", "install_complete"];

    #[test]
    fn h1_t4_t5_machines_are_installed_while_central_is_away_and_both_sides_agree_afterwards() -> Result<()> {
        let ours = tell()?;
        let theirs = |server| -> Result<[f64; 2]> {
            let bios = baseline::boot(&Machine::bios("52:54:00:00:00:51"), server)?;
            let uefi = baseline::boot(&Machine::uefi("52:54:00:00:00:52"), server)?;
            Ok([bios.seconds, uefi.seconds])
        };
        let (proxy, alone) = (theirs(BootServer::Proxy)?, theirs(BootServer::Dhcp)?);
        println!("seconds from power-on to first report: bios {:.1}, uefi {:.1}", ours[0], ours[1]);
        println!("{:54} {:>5} {:>5}", "who tells machines what to boot", "bios", "uefi");
        for (who, [bios, uefi]) in [
            ("holdfast-site, beside a DHCP server", ours),
            ("dnsmasq as ProxyDHCP, beside a DHCP server, and httpd", proxy),
            ("dnsmasq as the DHCP server itself, and httpd", alone),
        ] {
            println!("{who:54} {bios:5.1} {uefi:5.1}");
        }
        Ok(())
    }

    /// Returns the seconds from power-on to the first report, of BIOS and UEFI.
    fn tell() -> Result<[f64; 2]> {
        let mut branch = Branch::open()?;
        configure_site(&branch.net, "thief")?;
        let refused = enrol(&branch.net, "thief", &branch.token).unwrap_err().to_string();
        assert!(refused.contains("used"), "a token is good for one site: {refused}");

        let bios = branch.with_disk(Machine::bios("52:54:00:00:00:41"))?;
        let uefi = branch.with_disk(Machine::uefi("52:54:00:00:00:42").http_boot_last())?;
        let stranger = branch.with_disk(Machine::bios("52:54:00:00:00:43"))?;
        let image = branch.order(&[&bios.machine, &uefi.machine])?;

        branch.net.cut()?;
        let installed = [install(&branch, &bios, &image)?, install(&branch, &uefi, &image)?];

        // An operator at central, who cannot know of any of it.
        let central = branch.central();
        let edit = json!({ "hostname": "front-desk", "tags": { "floor": "1" }, "why": "moved" });
        central.say("PATCH", &of_node(&bios), &edit, 200)?;
        wait_until("sight of the cut at central", SOON_S, || {
            let site = central.show(&branch.of_site(""))?;
            Ok((site["status"] == "offline", site))
        })?;
        assert_eq!(central.show(&of_node(&bios))?["state"], "discovered", "central has heard of nothing");
        assert_eq!(branch.site().show(&of_node(&bios))?["hostname"], "till-1", "nor has the site");

        // The next morning: all are switched on at once.
        let mut first = bios.machine.power_on(&branch.net)?;
        let mut second = uefi.machine.power_on(&branch.net)?;
        let mut third = stranger.machine.power_on(&branch.net)?;
        for line in [format!("Holdfast site {SITE_NAME}, link offline"), "the machine is unknown here".into()]
        {
            third.wait_serial(&line, BOOT_S)?;
        }
        for (run, marker) in [(&mut first, NEW), (&mut second, NEW), (&mut third, OLD)] {
            let line = run.wait_serial("HOLDFAST marker", BOOT_S)?;
            assert_eq!(line.text, format!("HOLDFAST marker {marker}"));
            run.wait_off(20)?;
        }
        for pc in [&bios, &uefi] {
            wait_until("active machine at the site", SOON_S, || {
                let node = branch.site().show(&of_node(pc))?;
                Ok((node["state"] == "active", node))
            })?;
        }

        branch.heal()?;
        let journal = branch.journal()?;
        for ((pc, hostname), run) in [(&bios, "front-desk"), (&uefi, "till-2")].into_iter().zip(&installed) {
            assert_told_once(&journal, run)?;
            let (here, there) = (branch.site().show(&of_node(pc))?, branch.central().show(&of_node(pc))?);
            assert_eq!(here, there, "both show the same machine");
            assert_eq!([&there["state"], &there["hostname"]], ["active", hostname]);
            let transitions = transitions(&journal, &there["id"]);
            assert_eq!(transitions, ["discovered>installing", "installing>installed", "installed>active"]);
        }
        assert_eq!(branch.site().show(&of_node(&bios))?["tags"]["floor"], "1");
        let held = |row: &&Value| row["event"] == "boot_answered" && row["mac"] == stranger.machine.mac();
        let answers: Vec<&Value> = journal.iter().filter(held).map(|row| &row["answer"]).collect();
        assert_eq!(answers, ["hold page"], "central has heard of the stranger");
        assert_eq!(
            disk::digest(&stranger.disk)?,
            disk::digest(&disk::image(OLD)?)?,
            "whose disk is untouched"
        );

        branch.logs.leave_out();
        Ok(installed.map(|run| run.first_report_s))
    }

    #[test]
    fn h1_an_agent_that_is_killed_in_the_middle_of_an_installation_goes_on_with_it() -> Result<()> {
        let mut branch = Branch::open()?;
        let pc = branch.with_disk(Machine::bios("52:54:00:00:00:44"))?;
        let image = branch.order(&[&pc.machine])?;
        branch.net.cut()?;

        let mut run = pc.machine.power_on(&branch.net)?;
        run.wait_serial(" go_ahead 200", BOOT_S)?;
        println!("killed after the go-ahead: {}", kill_and_restart(&mut branch, &run)?);
        wait_for("image on its way", Duration::from_secs(SOON_S), || is_sending(&branch.net))?;
        println!("killed while the image is sent: {}", kill_and_restart(&mut branch, &run)?);
        let repeated = retries(&run)?;
        let installed = finish(run, &pc, &image, 0.0)?;
        for line in repeated {
            // A report that was repeated until it was answered came under the same id.
            let id = line.split(' ').nth(2).unwrap_or_default();
            assert!(id == "-" || installed.reports.iter().any(|report| report.id == id), "{line}");
        }

        branch.heal()?;
        assert_told_once(&branch.journal()?, &installed)?;
        let node = branch.central().show(&of_node(&pc))?;
        assert_eq!(node["state"], "installed");
        branch.logs.leave_out();
        Ok(())
    }

    /// Returns what the machine says when it notices that nobody hears it.
    fn kill_and_restart(branch: &mut Branch, run: &Running) -> Result<String> {
        let before = retries(run)?.len();
        branch.kill_agent();
        let heard = wait_for("machine that nobody hears", Duration::from_secs(SOON_S), || {
            Ok(retries(run)?.get(before).cloned())
        })?;
        branch.start_agent()?;
        Ok(heard)
    }

    /// Whether more bytes are on their way to a machine than any answer but an image has.
    fn is_sending(net: &Net) -> Result<Option<()>> {
        let sockets = net.site().run("busybox", &["netstat", "-tn"])?;
        let mut lines = sockets.lines().filter(|line| line.contains(&format!(" {SITE}:{SITE_PORT} ")));
        // `tcp <received> <to be sent> <here> <there> <state>`
        let waiting = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
        Ok(lines.any(|line| waiting(line) > Some(100_000)).then_some(()))
    }

    /// Returns what the machine has said to nobody so far: `HOLDFAST retry <id> <kind>: …`, `-` for no report.
    fn retries(run: &Running) -> Result<Vec<String>> {
        // What follows the last line break may still grow.
        let text = run.serial()?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().filter(|line| line.contains("HOLDFAST retry")).map(String::from).collect())
    }

    /// A machine that has installed itself and is off.
    struct Installed {
        reports: Vec<Report>,
        first_report_s: f64,
    }

    fn install(branch: &Branch, pc: &Pc, image: &str) -> Result<Installed> {
        let mut run = pc.machine.power_on(&branch.net)?;
        let first = run.wait_serial("HOLDFAST report", BOOT_S)?;
        finish(run, pc, image, first.seconds)
    }

    fn finish(mut run: Running, pc: &Pc, image: &str, first_report_s: f64) -> Result<Installed> {
        run.wait_serial("HOLDFAST installed", BOOT_S)?;
        run.wait_off(20)?;
        assert_eq!(disk::digest(&pc.disk)?, image, "the disk is the image");
        let reports = run.reports()?;
        let said: Vec<&str> = reports.iter().map(|report| report.kind.as_str()).collect();
        assert_eq!(said, STEPS);
        assert!(reports.iter().all(|report| report.status == 200), "{reports:?}");
        Ok(Installed { reports, first_report_s })
    }

    /// Each report of the machine's own log is once in the journal, and one go-ahead was given.
    fn assert_told_once(journal: &[Value], installed: &Installed) -> Result<()> {
        let about = |row: &&Value, event: &str, id: &str| row["event"] == event && row["report"] == id;
        for report in &installed.reports {
            let id = report.id.replace('-', "");
            let received: Vec<&Value> =
                journal.iter().filter(|row| about(row, "report_received", &id)).collect();
            let refused = journal.iter().filter(|row| about(row, "report_refused", &id)).count();
            assert_eq!((received.len(), refused), (1, 0), "{report:?}");
            assert_eq!(received[0]["kind"], report.kind);
        }
        let asked = installed.reports.iter().find(|report| report.kind == "go_ahead").expect("it asked");
        let id = asked.id.replace('-', "");
        let node = journal.iter().find(|row| about(row, "order_consumed", &id)).map(|row| &row["node"]);
        let of_node = |event: &str| {
            journal.iter().filter(|row| row["event"] == event && Some(&row["node"]) == node).count()
        };
        assert_eq!(of_node("order_consumed"), 1, "one `go` was answered, to the report that asked");
        assert_eq!(of_node("report_received"), installed.reports.len(), "and nothing that nobody said");
        Ok(())
    }

    fn transitions(journal: &[Value], node: &Value) -> Vec<String> {
        let of_node = |row: &&Value| row["event"] == "node_transitioned" && row["node"] == *node;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let step = |row: &Value| format!("{}>{}", text(&row["from"]), text(&row["to"]));
        journal.iter().filter(of_node).map(step).collect()
    }

    fn of_node(pc: &Pc) -> String {
        format!("/nodes/{}", pc.machine.mac())
    }
}

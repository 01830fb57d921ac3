//! A central and a branch that found each other, with what tests ask of them again and again.

use std::{net::SocketAddr, path::Path, time::Duration};

use harness::{
    machine::{Firmware, Machine, Told},
    programs::{Central, Doors, Site, wait_for},
    random::Random,
    rest::Rest,
    wire::Wire,
};
use serde_json::{Value, json};
use sync::{
    blob::Digest,
    id::{MacAddr, NodeId},
};
use tempfile::TempDir;

/// For what takes a second on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Programs, the wire between them, and the folder that everything is in.
pub(crate) struct Office {
    pub(crate) central: Central,
    pub(crate) site: Site,
    pub(crate) wire: Wire,
    folder: TempDir,
}

/// One more site.
pub(crate) struct Branch {
    pub(crate) site: Site,
    pub(crate) wire: Wire,
}

/// Central changes the settings of a site.
pub(crate) fn set(central: &Central, site: &str, settings: &Value) {
    let answer = central.rest.patch(&format!("/sites/{site}"), settings);
    assert_eq!(answer.status, 200, "{}", answer.body);
}

impl Office {
    /// A central and the site `lyon`, which central sees online.
    pub(crate) fn open() -> Self {
        Office::open_within(|_| Vec::new())
    }

    /// The same; the site runs as what the command becomes that `before` makes for the site's folder.
    pub(crate) fn open_within(before: impl FnOnce(&Path) -> Vec<String>) -> Self {
        Office::open_over(|central| Wire::to(central).expect("a wire"), before)
    }

    /// The same over a wire of the caller's.
    pub(crate) fn open_over(
        wire: impl FnOnce(SocketAddr) -> Wire,
        before: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let central = Central::start(&folder.path().join("central"));
        let wire = wire(central.quic);
        let home = folder.path().join("lyon");
        let id = enrol(&central, &wire, &home, "lyon");
        let before = before(&home);
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let site = Site::start_within(&before, &home, "lyon", &id);
        // Short heartbeats, so that a cut shows within seconds.
        set(&central, &id, &json!({ "heartbeat_s": 1 }));
        let office = Office { central, site, wire, folder };
        office.settle(SOON);
        office
    }

    /// Another site of the same central, over a wire of its own.
    pub(crate) fn branch(&self, name: &str) -> Branch {
        let wire = Wire::to(self.central.quic).expect("a wire");
        let home = self.folder.path().join(name);
        let id = enrol(&self.central, &wire, &home, name);
        let site = Site::start(&home, name, &id);
        set(&self.central, &id, &json!({ "heartbeat_s": 1 }));
        settle(&self.central, &site, SOON);
        Branch { site, wire }
    }

    /// Publishes a workflow whose kernel and initrd have these sizes, and returns its id and their digests.
    pub(crate) fn publish(&self, name: &str, sizes: [usize; 2]) -> (Value, [Digest; 2]) {
        let digests = [("kernel", sizes[0]), ("initrd", sizes[1])].map(|(role, size)| {
            let bytes = content(&format!("{name} {role}"), size);
            let answer = self.central.rest.put("/blobs", &bytes);
            assert_eq!(answer.status, 201, "{}", answer.body);
            Digest::of(&bytes)
        });
        let files = json!({ "kernel": digests[0].to_string(), "initrd": digests[1].to_string() });
        let workflow = json!({ "name": name, "os_family": "debian", "arch": "x86_64", "files": files });
        let answer = self.central.rest.post("/workflows", &workflow);
        assert_eq!(answer.status, 201, "{}", answer.body);
        (answer.body["id"].clone(), digests)
    }

    /// Describes a machine at central.
    pub(crate) fn describe(&self, mac: MacAddr) {
        let node = json!({ "mac": mac.to_string(), "site": self.site.id });
        let answer = self.central.rest.post("/nodes", &node);
        assert_eq!(answer.status, 201, "{}", answer.body);
    }

    /// Describes a machine at central and orders its installation; returns the task's id.
    pub(crate) fn order(&self, mac: MacAddr, workflow: &Value) -> String {
        self.describe(mac);
        let answer =
            self.central.rest.post("/tasks", &json!({ "node": mac.to_string(), "workflow": workflow }));
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.body["id"].as_str().expect("an id").to_string()
    }

    /// Waits until so many tasks can be booted at the site.
    pub(crate) fn wait_for_ready(&self, count: usize, patience: Duration) {
        wait_for(&format!("{count} tasks are ready"), patience, || {
            let tasks = self.site.rest.list("/tasks?state=ready");
            if tasks.len() == count { Ok(()) } else { Err(json!(tasks)) }
        });
    }

    /// Waits until both sides have heard everything of each other, and have compared what they hold after that.
    pub(crate) fn settle(&self, patience: Duration) {
        settle(&self.central, &self.site, patience);
    }
}

/// Makes the machine with this folder a site, and returns its id.
pub(crate) fn enrol(central: &Central, wire: &Wire, home: &Path, name: &str) -> String {
    let (code, id, complaint) = Site::enrol(home, name, wire.address(), &central.token(name));
    assert_eq!(code, 0, "{complaint}");
    id.trim().to_string()
}

/// See [`Office::settle`].
pub(crate) fn settle(central: &Central, site: &Site, patience: Duration) {
    let path = format!("/journal?site={}", site.id);
    let newest =
        |rest: &Rest| rest.list(&path).iter().filter_map(|row| row["at"].as_str().map(str::to_string)).max();
    wait_for(&format!("{} and central hold the same", site.name), patience, || {
        let here = site.rest.show("/agent/status")["link"].clone();
        let there = central.rest.show(&format!("/sites/{}", site.id));
        let heard = here["session"] == true
            && there["status"] == "online"
            && here["acknowledged"] == here["end"]
            && there["pulled"] == here["end"]
            && here["pulled"] == there["end"];
        // RFC 3339 in UTC sorts as text.
        let compared = there["compared_at"].as_str().map(str::to_string);
        // A site that has heard nothing yet agrees too, and does not know itself: its journal is not asked then.
        let agree = heard && here["agrees"] == true && there["agrees"] == true;
        if agree && compared >= newest(&site.rest) {
            Ok(())
        } else {
            Err(json!({ "site": here, "central": there }))
        }
    });
}

/// Powers a machine on again and again until it is installed, as the watchdog of a real one would.
///
/// # Errors
/// In words, when it is sent to its own disk before, or does not get there within a minute.
pub(crate) fn install(machine: &mut Machine, doors: Doors) -> Result<(), String> {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let told = machine.power_on(doors);
        match &told {
            Told::Workflow(_) if machine.install(&told) => return Ok(()),
            Told::LocalDisk => {
                return Err(format!("{} was sent to its own disk: {}", machine.mac, machine.script));
            }
            other if std::time::Instant::now() > end => {
                return Err(format!("{} is not installed: {other:?}, {:?}", machine.mac, machine.damaged));
            }
            Told::Workflow(_) | Told::Hold(_) | Told::Silence => {}
        }
    }
}

/// What must hold of machines that were installed once each, in the journals of both sides: every report is
/// there once, every order was consumed once, one go-ahead was given; the journals are the same and gapless.
pub(crate) fn assert_nothing_lost(central: &Central, site: &Site, machines: &[Machine]) {
    let path = format!("/journal?site={}", site.id);
    let journals = [("the site", site.rest.list(&path)), ("central", central.rest.list(&path))];
    for (whose, rows) in &journals {
        for machine in machines {
            assert!(!machine.log.is_empty(), "{} reported", machine.mac);
            for reported in &machine.log {
                let times = rows.iter().filter(|row| is_report(row) && row["report"] == reported.id).count();
                assert_eq!(times, 1, "{reported:?} of {} in the journal of {whose}", machine.mac);
            }
            let node = NodeId::of(machine.mac).to_string();
            let consumed =
                rows.iter().filter(|row| row["event"] == "order_consumed" && row["node"] == node).count();
            assert_eq!(consumed, 1, "orders of {} consumed, in the journal of {whose}", machine.mac);
            assert_eq!(machine.go_aheads(), 1, "{:?}", machine.log);
        }
    }
    let chain = |rows: &[Value]| -> Vec<Value> {
        rows.iter().map(|row| json!([row["incarnation"], row["seq"], row["event"], row["at"]])).collect()
    };
    assert_eq!(chain(&journals[0].1), chain(&journals[1].1), "both have the same journal");
    for (index, row) in journals[1].1.iter().enumerate() {
        assert_eq!(row["seq"], json!(index + 1), "the journal has no gap: {row}");
    }
    for machine in machines {
        let path = format!("/nodes/{}", machine.mac);
        let (here, there) = (site.rest.show(&path), central.rest.show(&path));
        assert_eq!(here, there, "both show the same machine");
        assert_eq!(there["state"], "installed");
    }
}

fn is_report(row: &Value) -> bool {
    row["event"] == "report_received" || row["event"] == "report_refused"
}

/// A machine of a test: which one, by its number.
pub(crate) fn mac(number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr([0x52, 0x54, 0, 0, high, low])
}

/// A played machine with the firmware that its number gives it, and little patience.
pub(crate) fn machine(number: u16) -> Machine {
    let firmware = if number.is_multiple_of(3) { Firmware::Uefi } else { Firmware::Bios };
    let mut machine = Machine::new(mac(number), firmware, u64::from(number));
    machine.patience = Duration::from_millis(400);
    machine
}

/// Made-up bytes, the same for the same name.
pub(crate) fn content(name: &str, length: usize) -> Vec<u8> {
    let seed = name.bytes().fold(0_u64, |seed, byte: u8| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = Random::new(seed);
    let mut bytes: Vec<u8> = (0..length.div_ceil(32)).flat_map(|_| random.bytes::<32>()).collect();
    bytes.truncate(length);
    bytes
}

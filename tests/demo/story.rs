//! The story: two sites, a cut link, machines that are installed meanwhile, and the return.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use harness::{
    machine::{Firmware, Machine, Told},
    programs::{Central, Site},
    random::Random,
    wire::Wire,
};
use serde_json::{Value, json};
use sync::{blob::Digest, id::MacAddr};

use crate::{
    Fault, claims, conflicts,
    narrator::{Failed, Narrator},
};

const SOON: Duration = Duration::from_secs(20);

/// Everything that runs at the end of the story.
pub(crate) struct Running {
    central: Central,
    lyon: Site,
    oslo: Site,
    _wires: [Wire; 2],
    _folder: tempfile::TempDir,
}

impl Running {
    /// Leaves the programs running until Enter or Ctrl-C.
    pub(crate) fn leave_open(&self) {
        println!("\nEverything still runs. Look around, for example:");
        for (name, rest, folder) in [
            ("central", &self.central.rest, self.central.data()),
            ("lyon", &self.lyon.rest, self.lyon.data()),
            ("oslo", &self.oslo.rest, self.oslo.data()),
        ] {
            let token = folder.join("admin-token");
            println!(
                "  {name:8} curl -H \"Authorization: Bearer $(cat {})\" http://{}/api/v1/nodes",
                token.display(),
                rest.address()
            );
        }
        println!("Enter or Ctrl-C ends it.");
        drop(io::stdin().read_line(&mut String::new()));
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

/// Tells the story.
pub(crate) fn tell(narrator: &mut Narrator, fault: Option<Fault>) -> Result<Running, Failed> {
    let folder = tempfile::tempdir().expect("a folder for the story");

    narrator.part(
        "1. Central and two branch offices, each with its own database, joined by QUIC with mutual TLS",
    );
    let central = Central::start(&folder.path().join("central"));
    narrator.tell(&format!("central listens on {} (UDP) and {}", central.quic, central.rest.address()));
    let mut wires = Vec::new();
    let mut sites = Vec::new();
    for name in ["lyon", "oslo"] {
        let wire = Wire::to(central.quic).expect("a wire");
        let token = central.token(name);
        let home = folder.path().join(name);
        let (code, id, complaint) = Site::enrol(&home, name, wire.address(), &token);
        narrator.check(&format!("{name} enrols with its token"), code == 0, &complaint)?;
        if name == "lyon" {
            let (code, _, complaint) =
                Site::enrol(&folder.path().join("thief"), name, wire.address(), &token);
            let refused = code != 0 && complaint.contains("used");
            narrator.check("the token cannot be used twice", refused, &complaint)?;
        }
        let site = Site::start(&home, name, id.trim());
        wires.push(wire);
        sites.push(site);
    }
    let [oslo, mut lyon] = [sites.pop().expect("two sites"), sites.pop().expect("two sites")];
    let [oslo_wire, lyon_wire] = [wires.pop().expect("two wires"), wires.pop().expect("two wires")];
    for site in [&lyon, &oslo] {
        // Short heartbeats, so that a cut shows within seconds.
        let answer = central.rest.patch(&format!("/sites/{}", site.id), &json!({ "heartbeat_s": 1 }));
        narrator.check(
            &format!("central sets the heartbeat of {}", site.name),
            answer.status == 200,
            &answer.body,
        )?;
        narrator.wait(&format!("central sees {} online", site.name), SOON, || {
            let seen = central.rest.show(&format!("/sites/{}", site.id));
            (seen["status"] == "online", seen)
        })?;
    }

    narrator.part("2. Central plans: one workflow, three machines, an order for each");
    let workflow = publish(narrator, &central)?;
    let plan = [
        (&lyon, mac(1), "till-1"),
        (&lyon, mac(2), "till-2"),
        (&oslo, mac(3), "kiosk-1"),
        (&lyon, mac(4), "till-4"),
    ];
    for (site, mac, hostname) in plan {
        let node = json!({ "mac": mac.to_string(), "site": site.id, "hostname": hostname });
        let answer = central.rest.post("/nodes", &node);
        narrator.check(
            &format!("{hostname} ({mac}) is at home in {}", site.name),
            answer.status == 201,
            &answer.body,
        )?;
        let task = json!({ "node": mac.to_string(), "workflow": workflow });
        let answer = central.rest.post("/tasks", &task);
        narrator.check(&format!("{hostname} has an order"), answer.status == 201, &answer.body)?;
    }
    for (site, expected) in [(&lyon, 3), (&oslo, 1)] {
        let what = format!("{} has the documents and the verified boot files: {expected} ready", site.name);
        narrator.wait(&what, SOON, || {
            let tasks = site.rest.list("/tasks?state=ready");
            (tasks.len() == expected, json!(tasks))
        })?;
    }
    if fault == Some(Fault::CorruptedBlob) {
        narrator.tell("FAULT: a bit flips in the kernel on lyon's disk");
        flip_a_bit(&find(&lyon.data(), &Digest::of(&content("kernel")).to_string()));
    }

    narrator.part("3. The link to lyon is cut. Its machines power on all the same");
    lyon_wire.cut();
    let mut bios = Machine::new(mac(1), Firmware::Bios, 11);
    let mut uefi = Machine::new(mac(2), Firmware::Uefi, 12);
    for (machine, kind) in [(&mut bios, "BIOS machine"), (&mut uefi, "UEFI machine")] {
        let told = machine.power_on(&lyon);
        narrator.check(
            &format!("the {kind} is given the workflow"),
            matches!(told, Told::Workflow(_)),
            format!("{told:?}"),
        )?;
        let installed = machine.install(&told);
        narrator.check(
            "every file it loaded is what its name says",
            machine.damaged.is_empty(),
            machine.damaged.join(", "),
        )?;
        narrator.check(
            &format!("the {kind} was given one go-ahead and installed"),
            installed && machine.go_aheads() == 1,
            format!("{:?}", machine.log),
        )?;
        let told = machine.power_on(&lyon);
        narrator.check(
            "powered on again, it boots its own disk",
            told == Told::LocalDisk,
            format!("{told:?}"),
        )?;
    }
    let mut stranger = Machine::new(mac(9), Firmware::Bios, 13);
    let told = stranger.power_on(&lyon);
    let held = matches!(&told, Told::Hold(screen) if screen.contains("lyon"));
    narrator.check(
        "an unknown machine is held, and its screen says where and why",
        held,
        format!("{told:?}"),
    )?;
    narrator.wait("lyon knows that it is cut off", SOON, || {
        let status = lyon.rest.show("/agent/status");
        (status["link"]["state"] == "offline", status)
    })?;

    narrator.part("4. Meanwhile, at central");
    let edit = json!({ "hostname": "front-desk", "tags": { "floor": "1" } });
    let answer = central.rest.patch(&format!("/nodes/{}", mac(1)), &edit);
    narrator.check("an operator renames till-1 and tags it", answer.status == 200, &answer.body)?;
    narrator.wait("central shows lyon offline and oslo online", SOON, || {
        let of = |site: &Site| central.rest.show(&format!("/sites/{}", site.id))["status"].clone();
        let found = json!([of(&lyon), of(&oslo)]);
        (found == json!(["offline", "online"]), found)
    })?;
    let row = central.rest.show(&format!("/nodes/{}", mac(1)));
    narrator.check(
        "central does not know yet that till-1 was installed",
        row["state"] == "discovered",
        &row,
    )?;
    let mut kiosk = Machine::new(mac(3), Firmware::Uefi, 14);
    let told = kiosk.power_on(&oslo);
    narrator.check(
        "oslo, connected, installs its kiosk",
        kiosk.install(&told),
        format!("{:?}", kiosk.log),
    )?;
    narrator.wait("which central sees at once", SOON, || {
        let row = central.rest.show(&format!("/nodes/{}", mac(3)));
        (row["state"] == "installed", row)
    })?;

    narrator.part("5. lyon's agent is killed in the middle of an installation, while still cut off");
    let mut till = Machine::new(mac(4), Firmware::Bios, 15);
    let told = till.power_on(&lyon);
    let before = (fault == Some(Fault::DoubledGoAhead)).then(|| {
        narrator.tell("FAULT: lyon's disk will go back to before the go-ahead");
        lyon.program.kill();
        let copy = folder.path().join("before");
        copy_folder(&lyon.data(), &copy);
        lyon.restart();
        copy
    });
    till.register(&told);
    let answer = till.report(&told, "go_ahead", &json!({}));
    narrator.check("till-4 asks and is told to go ahead", answer.body["answer"] == "go", &answer.body)?;
    till.report(&told, "progress", &json!({ "percent": 10 }));
    lyon.program.kill();
    narrator.tell("kill -9 …");
    if let Some(copy) = before {
        fs::remove_dir_all(lyon.data()).expect("the newer files go");
        copy_folder(&copy, &lyon.data());
    }
    lyon.restart();
    narrator.tell("… and started again");
    let told = till.power_on(&lyon);
    let answer = till.report(&told, "go_ahead", &json!({}));
    let resumed = answer.body["answer"] == "resume" && till.go_aheads() == 1;
    narrator.check(
        "powered on again, till-4 resumes; no go-ahead is given twice",
        resumed,
        format!("{:?}", till.log),
    )?;
    till.report(&told, "install_complete", &json!({}));

    narrator.part("6. The link returns");
    lyon_wire.heal();
    if fault == Some(Fault::LostAck) {
        narrator.tell("FAULT: what central answers does not reach lyon");
        lyon_wire.swallow_answers();
    }
    for site in [&lyon, &oslo] {
        hold_the_same(narrator, &central, site)?;
    }
    for (last, name, state) in
        [(1, "front-desk", "active"), (2, "till-2", "active"), (4, "till-4", "installed")]
    {
        let row = central.rest.show(&format!("/nodes/{}", mac(last)));
        let holds = row["state"] == state && row["hostname"] == name;
        narrator.check(&format!("central shows {name}: {state}"), holds, &row)?;
        let here = lyon.rest.show(&format!("/nodes/{}", mac(last)));
        narrator.check("and lyon shows the same", row == here, json!([row, here]))?;
    }
    let row = lyon.rest.show(&format!("/nodes/{}", mac(1)));
    narrator.check(
        "lyon has heard of the new name and the tag",
        row["hostname"] == "front-desk" && row["tags"]["floor"] == "1",
        &row,
    )?;
    let screens = central.rest.list(&format!("/journal?site={}", lyon.id));
    let stranger =
        screens.iter().any(|row| row["event"] == "boot_answered" && row["mac"] == mac(9).to_string());
    narrator.check("central has heard of the unknown machine", stranger, "no such entry")?;

    narrator.part("7. Both sides decide about one machine while the link is cut, under each strategy");
    conflicts::tell(narrator, &central, &lyon, &lyon_wire, mac(1))?;
    hold_the_same(narrator, &central, &lyon)?;

    narrator.part("8. Machines of lyon are carried to oslo, one under each policy");
    claims::tell(narrator, &central, &lyon, &oslo, &workflow)?;
    for site in [&lyon, &oslo] {
        hold_the_same(narrator, &central, site)?;
    }

    narrator.part("9. What must never have happened");
    let journal = |rest: &harness::rest::Rest, site: &Site| rest.list(&format!("/journal?site={}", site.id));
    for site in [&lyon, &oslo] {
        let chain = |rows: Vec<Value>| -> Vec<Value> {
            rows.iter().map(|row| json!([row["incarnation"], row["seq"], row["event"], row["at"]])).collect()
        };
        let (here, there) = (chain(journal(&site.rest, site)), chain(journal(&central.rest, site)));
        let gapless = there.iter().enumerate().all(|(index, row)| row[1] == json!(index + 1));
        let what = format!(
            "central holds {}'s journal, {} entries, in order and without a gap",
            site.name,
            here.len()
        );
        narrator.check(&what, here == there && gapless, json!([here.len(), there.len()]))?;
    }
    for (machine, site) in [(&bios, &lyon), (&uefi, &lyon), (&till, &lyon), (&kiosk, &oslo)] {
        for (whose, rows) in
            [("the site", journal(&site.rest, site)), ("central", journal(&central.rest, site))]
        {
            let twice: Vec<&str> = machine
                .log
                .iter()
                .filter(|reported| {
                    rows.iter()
                        .filter(|row| {
                            row["report"] == reported.id
                                && (row["event"] == "report_received" || row["event"] == "report_refused")
                        })
                        .count()
                        != 1
                })
                .map(|reported| reported.id.as_str())
                .collect();
            let what = format!(
                "each of the {} reports of {} is once in the journal of {whose}",
                machine.log.len(),
                machine.mac
            );
            narrator.check(&what, twice.is_empty(), twice.join(", "))?;
        }
        let consumed = journal(&central.rest, site)
            .iter()
            .filter(|row| {
                row["event"] == "order_consumed"
                    && row["node"] == sync::id::NodeId::of(machine.mac).to_string()
            })
            .count();
        narrator.check(
            &format!("the order for {} was consumed once", machine.mac),
            consumed == 1,
            consumed,
        )?;
    }
    Ok(Running { central, lyon, oslo, _wires: [lyon_wire, oslo_wire], _folder: folder })
}

fn hold_the_same(narrator: &mut Narrator, central: &Central, site: &Site) -> Result<(), Failed> {
    narrator.wait(
        &format!("{}'s work is acknowledged, and both sides hold the same", site.name),
        SOON,
        || {
            let here = site.rest.show("/agent/status")["link"].clone();
            let there = central.rest.show(&format!("/sites/{}", site.id));
            let holds = here["state"] == "connected"
                && here["acknowledged"] == here["end"]
                && there["acknowledged"] == there["end"]
                && here["agrees"] == true
                && there["agrees"] == true
                && there["pulled"] == here["end"];
            (holds, json!({ "site": here, "central": there }))
        },
    )
}

/// What a boot file holds: made up, the same at every run.
fn content(role: &str) -> Vec<u8> {
    let mut random = Random::new(role.len() as u64);
    (0..40_000).flat_map(|_| random.bytes::<32>()).collect()
}

fn publish(narrator: &mut Narrator, central: &Central) -> Result<Value, Failed> {
    let mut files = serde_json::Map::new();
    for role in ["kernel", "initrd"] {
        let bytes = content(role);
        let answer = central.rest.put("/blobs", &bytes);
        let named = answer.body["digest"] == Digest::of(&bytes).to_string();
        narrator.check(
            &format!("the {role} is uploaded and named by its digest"),
            answer.status == 201 && named,
            &answer.body,
        )?;
        files.insert(role.to_string(), answer.body["digest"].clone());
    }
    let workflow = json!({
        "name": "debian-12", "os_family": "debian", "arch": "x86_64", "files": files,
        "kernel_args": "console=ttyS0",
    });
    let answer = central.rest.post("/workflows", &workflow);
    narrator.check("the workflow is published", answer.status == 201, &answer.body)?;
    Ok(answer.body["id"].clone())
}

fn find(folder: &Path, name: &str) -> PathBuf {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder").flatten() {
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

fn flip_a_bit(path: &Path) {
    let mut bytes = fs::read(path).expect("the blob is readable");
    bytes[1_000] ^= 1;
    // Published blobs are read-only, so the failing disk puts another file in its place.
    fs::remove_file(path).expect("the blob can be replaced");
    fs::write(path, bytes).expect("the blob can be replaced");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).expect("a copy");
        }
    }
}

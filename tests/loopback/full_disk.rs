//! A site whose disk is full before the boot files are there.
//!
//! The folder of blobs is a file system of its own with a few megabytes, which `unshare` gives to whoever may
//! make user namespaces, without any privilege. The database is elsewhere and has room.

use std::{fs, path::PathBuf, time::Duration};

use expect_test::expect;
use harness::{machine::Told, programs::wait_for};
use serde_json::json;

use crate::{
    office::{self, Office, SOON, mac, machine},
    words::masked,
};

/// Size of the file system, of what else is on it, and of the file that does not fit beside that, in bytes.
const DISK: u64 = 12 << 20;
const BALLAST: u64 = 7 << 20;
const FILE: u64 = 8 << 20;

#[test]
fn t6_a_full_disk_is_named_keeps_what_came_and_the_fetch_goes_on_when_there_is_room() {
    let mut blobs = PathBuf::new();
    let office = Office::open_within(|home| {
        blobs = home.join("data/replica/blobs");
        let script = format!(
            "mkdir -p '{0}' && mount -t tmpfs -o size={DISK} none '{0}' && head -c {BALLAST} /dev/zero > '{0}/ballast' \
             && exec \"$@\"",
            blobs.display()
        );
        ["unshare", "--map-root-user", "--mount", "/bin/sh", "-ec", &script, "sh"]
            .map(str::to_string)
            .to_vec()
    });
    let (small, _) = office.publish("small", [10_000; 2]);
    office.describe(mac(1));
    office.order(mac(2), &small);
    office.wait_for_ready(1, SOON);

    let (large, [_, initrd]) = office.publish("large", [10_000, 8 << 20]);
    let waiting = office.order(mac(3), &large);
    let stuck = wait_for("the site says that its disk is full", SOON, || {
        let wanted = office.site.rest.show("/agent/status")["blobs"]["wanted"].clone();
        let is_stuck = wanted[0]["trouble"].as_str().is_some_and(|why| why.contains("full"));
        if is_stuck { Ok(wanted[0].clone()) } else { Err(wanted) }
    });
    let kept = stuck["have"].as_u64().expect("a number");
    assert_eq!(
        (&stuck["digest"], &stuck["size"]),
        (&json!(initrd.to_string()), &json!(FILE)),
        "it is still wanted"
    );
    assert!(kept > FILE / 2 && kept < FILE, "{stuck}");

    // What a person reads at the site, and what stays in the log.
    let (code, page, complaint) = office.site.status();
    assert_eq!(code, 0, "{complaint}");
    let blobs_text = blobs.display().to_string();
    let names = [(blobs_text.as_str(), "<blobs>"), (&kept.to_string(), "<kept>")];
    let lines: Vec<&str> = page.lines().skip_while(|line| !line.starts_with("content")).collect();
    let shown: Vec<&str> = lines.iter().copied().take_while(|line| !line.starts_with("boots")).collect();
    expect![[r#"
        content     0 MB here, 1 files wanted
          wanted    <digest>… <kept> of 8388608 bytes
                    the disk is full: blob <digest> stays wanted, <kept> of 8388608 bytes are kept: the disk is full: no room for blob <digest> at <blobs>/partial/<digest>: No space left on device (os error 28)
    "#]].assert_eq(&format!("{}\n", masked(&shown.join("\n"), &names)));
    let log = office.site.program.log();
    let line = log
        .lines()
        .find(|line| line.contains("the disk is full") && line.contains(&initrd.to_string()))
        .expect("a line");
    expect!["::cache: fetch failed error=the disk is full: blob <digest> stays wanted, <kept> of 8388608 bytes are kept: the disk is full: no room for blob <digest> at <blobs>/partial/<digest>: No space left on device (os error 28)"].assert_eq(&masked(line.split_once("site_agent").map_or(line, |(_, rest)| rest), &names));

    // Nothing that is not whole is given to a machine, and what worked works on.
    let task = office.site.rest.show(&format!("/tasks/{waiting}"));
    assert_eq!(task["state"], "pending", "{task}");
    let mut machines = [machine(1), machine(2), machine(3)];
    assert_eq!(machines[0].power_on(&office.site), Told::LocalDisk);
    let Told::Hold(screen) = machines[2].power_on(&office.site) else { panic!("{}", machines[2].script) };
    expect![" / Holdfast site lyon, link connected, data as of <time> / Machine 52:54:00:00:00:03 code 94F9F1 / the boot files are not all here yet / 5 of 9 MB are here / Asking again in 6 s, question 1 of 3, then the local disk"].assert_eq(&masked(&screen, &[]));
    office::install(&mut machines[1], (&office.site).into()).expect("its files are here");

    // Room: the ballast goes, and only what is missing is fetched.
    let before = office.wire.delivered_bytes();
    let id = office.site.program.id();
    let seen = format!("/proc/{id}/root{blobs_text}/ballast");
    fs::remove_file(&seen).unwrap_or_else(|error| panic!("{seen}: {error}"));
    office.wait_for_ready(1, Duration::from_secs(60));
    let carried = office.wire.delivered_bytes() - before;
    println!("{kept} of {FILE} bytes were kept; {carried} bytes were carried when there was room");
    let missing = FILE - kept;
    assert!(carried < missing + missing / 4, "{carried} bytes were carried for {missing} that were missing");
    office::install(&mut machines[2], (&office.site).into()).expect("everything is here");
    office.settle(SOON);
    office::assert_nothing_lost(&office.central, &office.site, &machines[1..]);
}

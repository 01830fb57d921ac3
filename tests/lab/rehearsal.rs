//! The machine's half of an installation, against a site that is played by a shell script.
//!
//! It proves the lab itself: `init.sh` asks before it writes, repeats what was not answered, reports every step
//! once, and writes what it was given. When the story with the real programs fails and these pass, the fault is
//! not the machine's. Deliberately absent: anything about our programs, and network boot by them.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, from_str};

use crate::baseline::{BootServer, Office};
use crate::disk;
use crate::error::{Doing, LabError, Result};
use crate::http::{Web, place_script};
use crate::machine::{Machine, Running};
use crate::network::{Net, SITE};

const NODE: &str = "0123456789abcdef0123456789abcdef";
const TASK: &str = "fedcba9876543210fedcba9876543210";
const TOKEN: &str = "5eed";
const SITE_PORT: u16 = 8080;

/// Notes `path, authorization, body` of every POST in a file, and answers from two others, which hold a whole
/// answer with its status line. It keeps the order because a machine asks one thing at a time. The first
/// transfer of a blob breaks off after a megabyte; a blob that is not there is refused.
const PLAYED_SITE: &str = "#!/bin/busybox sh
folder=$(dirname \"$PWD\")
case $REQUEST_METHOD:$PATH_INFO in
  POST:*)
    printf '%s\\t%s\\t%s\\n' \"$PATH_INFO\" \"$HTTP_AUTHORIZATION\" \"$(tr -d '\\n')\" >>\"$folder/heard\"
    case $PATH_INFO in
      */register) cat \"$folder/registered\" ;;
      *) cat \"$folder/go_ahead\" ;;
    esac ;;
  GET:/blobs/*)
    blob=$folder/${PATH_INFO#/blobs/}
    [ -e \"$blob\" ] || { printf 'HTTP/1.0 404 Not Found\\r\\n\\r\\n' && exit; }
    printf 'HTTP/1.0 200 OK\\r\\nContent-Length: %s\\r\\n\\r\\n' \"$(stat -c %s \"$blob\")\"
    if mkdir \"$folder/asked\"; then head -c 1000000 \"$blob\"; else cat \"$blob\"; fi ;;
esac
";

/// An office in which a machine boots the install story, and a folder of what the played site says and hears.
struct Rehearsal {
    // Dropped in this order: servers before the network they run in.
    _office: Office,
    net: Net,
    site: PathBuf,
    digest: String,
    disk: PathBuf,
}

/// One POST that the played site heard.
struct Heard {
    path: String,
    authorization: String,
    body: Value,
}

impl Rehearsal {
    /// Lays out everything but the site, which the test starts when it wants to.
    /// `status` and `body` are its answer to events.
    fn new(machine_mac: &str, status: &str, body: &str) -> Result<Self> {
        let net = Net::new()?;
        let image = disk::image("new-system")?;
        let digest = disk::digest(&image)?;

        let site = net.folder().join("site");
        fs::create_dir(&site).doing("make the site's folder")?;
        place_script(&site, "site", PLAYED_SITE)?;
        disk::place(&image, &site.join(&digest))?;

        let old = net.folder().join("disk.img");
        disk::place(&disk::image("old-system")?, &old)?;

        let command_line = format!(
            "holdfast.site=http://{SITE}:{SITE_PORT}/cgi-bin/site holdfast.node={NODE} holdfast.task={TASK} \
             holdfast.attempt=1 holdfast.token={TOKEN} holdfast.mac={machine_mac} holdfast.image={digest}"
        );
        let office = Office::open(&net, BootServer::Dhcp, &command_line)?;
        let rehearsal = Self { _office: office, net, site, digest, disk: old };
        rehearsal.answer("registered", "200 OK", &format!("{{\"node\":\"{NODE}\"}}"))?;
        rehearsal.answer("go_ahead", status, body)?;
        Ok(rehearsal)
    }

    /// Says what the site answers from now on.
    fn answer(&self, name: &str, status: &str, body: &str) -> Result<()> {
        let text = format!("HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{body}\n");
        fs::write(self.site.join(name), text).doing("write an answer")
    }

    fn start_site(&self) -> Result<Web> {
        Web::serve(self.net.site(), SITE, SITE_PORT, &self.site)
    }

    fn heard(&self) -> Result<Vec<Heard>> {
        let text = fs::read_to_string(self.site.join("heard")).doing("read what the site heard")?;
        text.lines().map(parse_heard).collect()
    }
}

fn parse_heard(line: &str) -> Result<Heard> {
    let fields: Vec<&str> = line.splitn(3, '\t').collect();
    let [path, authorization, body] = fields[..] else {
        return Err(LabError::new("a note has three fields", line));
    };
    let body = from_str(body).map_err(|error| LabError::new(format!("not JSON: {body}"), error))?;
    Ok(Heard { path: path.into(), authorization: authorization.into(), body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_bios_machine_installs_and_boots_what_it_was_given() -> Result<()> {
        let machine = Machine::bios("52:54:00:00:00:21");
        let rehearsal = Rehearsal::new(machine.mac(), "200 OK", r#"{"answer":"go"}"#)?;
        let machine = machine.disk(&rehearsal.disk);
        let mut run = machine.power_on(&rehearsal.net)?;

        // The site is away at first; the machine asks again and again, with one id.
        let retry = run.wait_serial("HOLDFAST retry", 60)?.text;
        let id = retry.split(' ').nth(2).unwrap_or_default().to_string();
        let _site = rehearsal.start_site()?;
        run.wait_serial("HOLDFAST retry - image", 60)?;
        run.wait_serial("HOLDFAST installed", 60)?;
        run.wait_off(20)?;

        assert_reports_match(&run, &rehearsal, &id)?;
        assert_eq!(disk::digest(&rehearsal.disk)?, rehearsal.digest, "the disk is the image");
        let mut again = machine.disk_only().power_on(&rehearsal.net)?;
        assert_eq!(again.wait_serial("HOLDFAST marker", 60)?.text, "HOLDFAST marker new-system");
        again.wait_off(20)?;
        Ok(())
    }

    #[test]
    fn a_uefi_machine_that_is_told_no_leaves_its_disk_alone() -> Result<()> {
        let machine = Machine::uefi("52:54:00:00:00:22");
        let rehearsal = Rehearsal::new(machine.mac(), "409 Conflict", r#"{"state":"cancelled"}"#)?;
        let before = disk::digest(&rehearsal.disk)?;
        let _site = rehearsal.start_site()?;
        let mut run = machine.disk(&rehearsal.disk).power_on(&rehearsal.net)?;

        let stop = run.wait_serial("HOLDFAST stop", 120)?.text;
        assert_eq!(stop, "HOLDFAST stop: 409 wget: server returned error: HTTP/1.0 409 Conflict");
        run.wait_off(20)?;
        assert_eq!(disk::digest(&rehearsal.disk)?, before);
        assert_eq!(kinds(&rehearsal)?, ["register", "go_ahead"]);
        assert_eq!(rehearsal.heard()?[0].body["firmware"], "uefi");
        Ok(())
    }

    #[test]
    fn a_machine_that_is_told_to_wait_or_gets_no_image_says_so() -> Result<()> {
        let machine = Machine::bios("52:54:00:00:00:23");
        let rehearsal = Rehearsal::new(machine.mac(), "200 OK", r#"{"answer":"hold"}"#)?;
        let before = disk::digest(&rehearsal.disk)?;
        let _site = rehearsal.start_site()?;
        let machine = machine.disk(&rehearsal.disk);
        let mut run = machine.power_on(&rehearsal.net)?;
        let stop = run.wait_serial("HOLDFAST stop", 60)?.text;
        assert_eq!(stop, r#"HOLDFAST stop: 200 {"answer":"hold"}"#);
        run.wait_off(20)?;

        rehearsal.answer("go_ahead", "200 OK", r#"{"answer":"resume"}"#)?;
        fs::remove_file(rehearsal.site.join(&rehearsal.digest)).doing("remove the image")?;
        let mut run = machine.power_on(&rehearsal.net)?;
        run.wait_serial("HOLDFAST stop: no image", 60)?;
        run.wait_off(20)?;
        let expected = ["register", "go_ahead", "register", "go_ahead", "install_started", "progress"];
        assert_eq!(kinds(&rehearsal)?, [expected.as_slice(), &["install_failed"]].concat());
        assert_eq!(disk::digest(&rehearsal.disk)?, before);
        Ok(())
    }

    /// Returns what the site heard, in its order.
    fn kinds(rehearsal: &Rehearsal) -> Result<Vec<String>> {
        let kind = |heard: &Heard| heard.body["kind"].as_str().unwrap_or("register").to_string();
        Ok(rehearsal.heard()?.iter().map(kind).collect())
    }

    /// The machine's log and the site's notes hold the same reports in the same order, each once.
    fn assert_reports_match(run: &Running, rehearsal: &Rehearsal, first_id: &str) -> Result<()> {
        let (reports, heard) = (run.reports()?, rehearsal.heard()?);
        assert_eq!(reports[0].id, first_id, "the report that was retried is the one that was answered");
        let mut story = String::new();
        for (report, heard) in reports.iter().zip(&heard) {
            assert_eq!(heard.body["report"], report.id, "{}", report.kind);
            let percent = heard.body["percent"].as_u64().map_or(String::new(), |of| format!(" {of} %"));
            let line = [&heard.path, &report.kind, &report.status.to_string(), &heard.authorization];
            story += line.map(String::as_str).join(" ").trim_end();
            story += &format!("{percent}\n");
        }
        assert_eq!(reports.len(), heard.len(), "{reports:?}");
        expect![[r#"
            /api/v1/nodes/register register 200
            /api/v1/nodes/0123456789abcdef0123456789abcdef/event go_ahead 200 Bearer 5eed
            /api/v1/nodes/0123456789abcdef0123456789abcdef/event install_started 200 Bearer 5eed
            /api/v1/nodes/0123456789abcdef0123456789abcdef/event progress 200 Bearer 5eed 0 %
            /api/v1/nodes/0123456789abcdef0123456789abcdef/event progress 200 Bearer 5eed 50 %
            /api/v1/nodes/0123456789abcdef0123456789abcdef/event progress 200 Bearer 5eed 100 %
            /api/v1/nodes/0123456789abcdef0123456789abcdef/event install_complete 200 Bearer 5eed
        "#]]
        .assert_eq(&story);

        let mut registered = heard[0].body.clone();
        registered["report"] = Value::Null;
        assert!(registered["hardware"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 600 << 20));
        registered["hardware"]["memory_bytes"] = Value::Null;
        expect![[r#"
            {
              "arch": "x86_64",
              "firmware": "bios",
              "hardware": {
                "cpus": 1,
                "disks": [
                  {
                    "name": "vda",
                    "size_bytes": 25165824
                  }
                ],
                "memory_bytes": null,
                "nics": [
                  {
                    "mac": "52:54:00:00:00:21"
                  }
                ]
              },
              "mac": "52:54:00:00:00:21",
              "model": "PC",
              "report": null,
              "serial": "LAB-525400000021",
              "system_uuid": "11223344-5566-7788-99aa-525400000021",
              "vendor": "Lab"
            }"#]]
        .assert_eq(&format!("{registered:#}"));
        for event in &heard[1..] {
            assert_eq!((&event.body["task"], &event.body["attempt"]), (&TASK.into(), &1.into()));
        }
        Ok(())
    }
}

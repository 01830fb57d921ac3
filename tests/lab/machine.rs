//! A machine of the office: QEMU, with the firmware of a PC, a disk, a NIC and a serial console.
//!
//! `Machine` is the hardware, described once and powered on as often as a story needs; what must survive a
//! power cycle (its disk, its UEFI variables) are files. `Running` is one power-on: its console is a file that
//! is waited for, and dropping it pulls the plug. Boot order is network first, then disk.
//!
//! BIOS is SeaBIOS with the iPXE ROM of the virtio NIC. UEFI is OVMF with a ROM-less virtio NIC, so that the
//! firmware's own PXE client speaks. Always software emulation: a guest under KVM would be faster, and would
//! need a machine that may nest. Deliberately absent: KVM, a display, Secure Boot, other NICs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Doing, LabError, Result};
use crate::network::{Net, Tap};
use crate::nvram;
use crate::process::{Process, plain_text, tail, wait_for};

/// Enough for OVMF, iPXE, a kernel of 14 MB unpacked, and an initramfs in RAM.
const MEMORY_MIB: u32 = 768;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Firmware {
    Bios,
    Uefi,
}

/// A machine that is switched off.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    firmware: Firmware,
    mac: String,
    serial_number: String,
    uuid: String,
    disk: Option<PathBuf>,
    network_boot: bool,
    http_boot_last: bool,
}

impl Machine {
    /// A PC with BIOS. `mac` is lower-case with colons.
    pub(crate) fn bios(mac: &str) -> Self {
        Self::new(Firmware::Bios, mac)
    }

    /// A PC with UEFI. `mac` is lower-case with colons.
    pub(crate) fn uefi(mac: &str) -> Self {
        Self::new(Firmware::Uefi, mac)
    }

    /// Gives it a disk: a raw image file, which the machine writes to.
    pub(crate) fn disk(mut self, image: &Path) -> Self {
        self.disk = Some(image.into());
        self
    }

    /// Takes network boot out of its boot order, as a person does in the firmware's setup.
    pub(crate) fn disk_only(mut self) -> Self {
        self.network_boot = false;
        self
    }

    /// Puts UEFI's HTTP boot behind the disk, as a person does in the firmware's setup; PXE stays first. It takes
    /// effect from the second power-on, when the firmware has made its boot entries. Without it a machine whose
    /// PXE boot hands back to the firmware waits two minutes more before its disk is tried.
    pub(crate) fn http_boot_last(mut self) -> Self {
        self.http_boot_last = true;
        self
    }

    pub(crate) fn mac(&self) -> &str {
        &self.mac
    }

    /// Switches it on, plugged into the office LAN.
    ///
    /// # Errors
    /// When QEMU does not start or the machine is on already.
    pub(crate) fn power_on(&self, net: &Net) -> Result<Running> {
        let tap = net.tap(&self.tap_name())?;
        let console = self.fresh_console(net);
        let variables = self.variables(net)?;
        let own_order = self.http_boot_last && self.rewrite_boot_order(variables.as_deref())?;
        let mut qemu = net.office().command("qemu-system-x86_64");
        qemu.args(self.arguments(tap.name(), &console, variables.as_deref(), own_order));
        let name = format!("qemu-{}", self.mac.replace(':', ""));
        let process = net.office().spawn(&name, &mut qemu, net.folder())?;
        Ok(Running { name, process, console, since: Instant::now(), tap: Some(tap) })
    }

    fn new(firmware: Firmware, mac: &str) -> Self {
        let digits = mac.replace(':', "");
        Self {
            firmware,
            mac: mac.into(),
            serial_number: format!("LAB-{digits}"),
            // Without one, all machines of QEMU report the same UUID of zeros.
            uuid: format!("11223344-5566-7788-99aa-{digits}"),
            disk: None,
            network_boot: true,
            http_boot_last: false,
        }
    }

    /// The first bytes of a MAC are the vendor's; interface names have at most 15 characters.
    fn tap_name(&self) -> String {
        let digits = self.mac.replace(':', "");
        format!("tap{}", &digits[digits.len().saturating_sub(8)..])
    }

    fn file(&self, net: &Net, kind: &str) -> PathBuf {
        net.folder().join(format!("{}.{kind}", self.mac.replace(':', "")))
    }

    /// Each power-on writes a console of its own, so that an earlier one can still be read.
    fn fresh_console(&self, net: &Net) -> PathBuf {
        let mut consoles = (1..).map(|count| self.file(net, &format!("console-{count}")));
        consoles.find(|path| !path.exists()).expect("numbers do not end")
    }

    /// Returns the machine's own UEFI variables; they are made at the first power-on and then kept.
    fn variables(&self, net: &Net) -> Result<Option<PathBuf>> {
        match self.firmware {
            Firmware::Bios => Ok(None),
            Firmware::Uefi => {
                let path = self.file(net, "vars");
                if !path.exists() {
                    fs::copy(OVMF_VARS, &path).doing(format!("copy {OVMF_VARS}"))?;
                }
                Ok(Some(path))
            }
        }
    }

    /// Returns whether the machine's own variables now hold the order; then QEMU must not say another one.
    fn rewrite_boot_order(&self, variables: Option<&Path>) -> Result<bool> {
        let Some(path) = variables else { return Ok(false) };
        let mut bytes = fs::read(path).doing("read UEFI variables")?;
        if !nvram::put_http_boot_last(&mut bytes) {
            return Ok(false);
        }
        fs::write(path, bytes).doing("write UEFI variables")?;
        Ok(true)
    }

    fn arguments(
        &self,
        tap: &str,
        console: &Path,
        variables: Option<&Path>,
        own_order: bool,
    ) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        let mut add = |text: String| words.extend(text.split(' ').map(OsString::from));
        add(format!(
            "-accel tcg -m {MEMORY_MIB} -nodefaults -vga none -display none -monitor none -no-reboot"
        ));
        add(format!(
            "-uuid {} -smbios type=1,manufacturer=Lab,product=PC,serial={}",
            self.uuid, self.serial_number
        ));
        add(format!("-netdev tap,id=n0,ifname={tap},script=no,downscript=no"));
        let nic = format!("-device virtio-net-pci,netdev=n0,mac={}", self.mac);
        let order = if self.network_boot && !own_order { ",bootindex=1" } else { "" };
        match self.firmware {
            // SeaBIOS and iPXE write to the serial console only on a machine without graphics.
            Firmware::Bios => add(format!("-machine pc,graphics=off {nic}{order}")),
            Firmware::Uefi => {
                add(format!("-machine q35 {nic},romfile={order}"));
                add(format!("-drive if=pflash,format=raw,readonly=on,file={OVMF_CODE}"));
                // The boot entry for PXE over IPv6 would wait 63 s for an answer that this office does not give.
                add("-fw_cfg name=opt/org.tianocore/IPv6PXESupport,string=no".into());
            }
        }
        // Paths may hold anything, so they are not split at spaces; a comma is doubled, as QEMU wants it.
        let drive = |options: &str, path: &Path| {
            let path = path.display().to_string().replace(',', ",,");
            [OsString::from("-drive"), OsString::from(format!("{options},file={path}"))]
        };
        if let Some(variables) = variables {
            words.extend(drive("if=pflash,format=raw", variables));
        }
        if let Some(disk) = &self.disk {
            words.extend(drive("if=none,id=d0,format=raw,cache=writeback", disk));
            let order = if own_order { "" } else { ",bootindex=2" };
            words.push("-device".into());
            words.push(format!("virtio-blk-pci,drive=d0{order}").into());
        }
        words.push("-serial".into());
        words.push(format!("file:{}", console.display()).into());
        words
    }
}

/// A machine that is switched on; dropping it pulls the plug.
pub(crate) struct Running {
    name: String,
    process: Process,
    console: PathBuf,
    since: Instant,
    // After the process: the cable is pulled out of a dead machine.
    tap: Option<Tap>,
}

/// A line that the machine wrote to its console.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    /// Seconds from power-on until the lab saw the line; 20 ms coarse.
    pub(crate) seconds: f64,
}

/// What the machine says it reported to its site: `HOLDFAST report <id> <kind> <status>` on its console.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) status: u16,
}

impl Running {
    /// Waits until a whole line with `pattern` in it is on the console, and returns the first such line.
    ///
    /// # Errors
    /// When the machine goes off first or `seconds` pass; with the last lines of its console.
    pub(crate) fn wait_serial(&mut self, pattern: &str, seconds: u64) -> Result<Line> {
        let what = format!("`{pattern}` on the console of {}", self.name);
        wait_for(&what, Duration::from_secs(seconds), || {
            // Asked in this order, a machine that is off has written all that it ever will.
            let ended = self.process.ended()?;
            if let Some(text) = self.find(pattern)? {
                return Ok(Some(Line { text, seconds: self.seconds() }));
            }
            match ended {
                None => Ok(None),
                Some(status) => {
                    let qemu = self.process.log()?;
                    let why = format!("the machine went off ({status}) {}", qemu.trim());
                    Err(LabError::new(format!("no {what}"), why))
                }
            }
        })
        .map_err(|error| self.explain(error))
    }

    /// Waits until the machine has switched itself off, and returns the seconds since power-on. Its console can
    /// still be read, and it can be powered on again.
    ///
    /// # Errors
    /// When QEMU failed or `seconds` pass; with the last lines of the console.
    pub(crate) fn wait_off(&mut self, seconds: u64) -> Result<f64> {
        let what = format!("end of {}", self.name);
        let ended = wait_for(&what, Duration::from_secs(seconds), || self.process.ended());
        match ended {
            Ok(status) if status.success() => {
                self.tap = None;
                Ok(self.seconds())
            }
            Ok(status) => {
                let why = format!("QEMU ended with {status}: {}", self.process.log()?);
                Err(self.explain(LabError::new(format!("no proper {what}"), why)))
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Returns everything on the console so far, as plain text.
    ///
    /// # Errors
    /// When the console's file cannot be read.
    pub(crate) fn serial(&self) -> Result<String> {
        // QEMU makes the file a moment after it starts.
        if !self.console.exists() {
            return Ok(String::new());
        }
        Ok(plain_text(&fs::read(&self.console).doing("read a machine's console")?))
    }

    /// Returns what the machine has reported so far, in its order: the machine's own log, to compare with what
    /// the site says it was told.
    ///
    /// # Errors
    /// When the console's file cannot be read.
    pub(crate) fn reports(&self) -> Result<Vec<Report>> {
        Ok(self.serial()?.lines().filter_map(parse_report).collect())
    }

    /// Seconds since power-on.
    pub(crate) fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    fn find(&self, pattern: &str) -> Result<Option<String>> {
        let text = self.serial()?;
        // What follows the last line break may still grow.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().find(|line| line.contains(pattern)).map(|line| line.trim().into()))
    }

    fn explain(&self, error: LabError) -> LabError {
        LabError::new(error.to_string(), format!("its console ends with:\n{}", tail(&self.console)))
    }
}

fn parse_report(line: &str) -> Option<Report> {
    let (_, report) = line.split_once("HOLDFAST report ")?;
    let mut words = report.split_whitespace();
    let (id, kind) = (words.next()?.into(), words.next()?.into());
    Some(Report { id, kind, status: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    use crate::baseline::{BootServer, Office};
    use crate::disk;

    fn check(machine: &Machine, variables: Option<&str>, expected: Expect) {
        let words = machine.arguments("tap0", Path::new("/lab/console"), variables.map(Path::new), false);
        let line = words.join(" ".as_ref()).into_string().expect("text");
        expected.assert_eq(&line.replace(" -", "\n-"));
    }

    #[test]
    fn a_bios_machine_boots_from_the_rom_of_its_nic_then_from_disk() {
        let machine = Machine::bios("52:54:00:00:00:01").disk(Path::new("/lab/a, b.img"));
        check(
            &machine,
            None,
            expect![[r#"
            -accel tcg
            -m 768
            -nodefaults
            -vga none
            -display none
            -monitor none
            -no-reboot
            -uuid 11223344-5566-7788-99aa-525400000001
            -smbios type=1,manufacturer=Lab,product=PC,serial=LAB-525400000001
            -netdev tap,id=n0,ifname=tap0,script=no,downscript=no
            -machine pc,graphics=off
            -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,bootindex=1
            -drive if=none,id=d0,format=raw,cache=writeback,file=/lab/a,, b.img
            -device virtio-blk-pci,drive=d0,bootindex=2
            -serial file:/lab/console"#]],
        );
    }

    #[test]
    fn a_uefi_machine_has_variables_of_its_own_and_a_nic_without_rom() {
        let machine = Machine::uefi("52:54:00:00:00:02");
        check(
            &machine,
            Some("/lab/vars"),
            expect![[r#"
            -accel tcg
            -m 768
            -nodefaults
            -vga none
            -display none
            -monitor none
            -no-reboot
            -uuid 11223344-5566-7788-99aa-525400000002
            -smbios type=1,manufacturer=Lab,product=PC,serial=LAB-525400000002
            -netdev tap,id=n0,ifname=tap0,script=no,downscript=no
            -machine q35
            -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:02,romfile=,bootindex=1
            -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd
            -fw_cfg name=opt/org.tianocore/IPv6PXESupport,string=no
            -drive if=pflash,format=raw,file=/lab/vars
            -serial file:/lab/console"#]],
        );
    }

    #[test]
    fn a_bios_machine_that_is_sent_away_by_the_network_boots_its_disk() -> Result<()> {
        let net = Net::new()?;
        let office = Office::open(&net, BootServer::Dhcp, "lab.marker=network")?;
        let disk = place_disk(&net)?;
        let machine = Machine::bios("52:54:00:00:00:31").disk(&disk);
        office.say("#!ipxe\nexit\n")?;
        boots_its_disk(machine.power_on(&net)?)
    }

    #[test]
    fn an_installed_uefi_machine_asks_the_network_and_then_boots_its_disk() -> Result<()> {
        let net = Net::new()?;
        let office = Office::open(&net, BootServer::Dhcp, "lab.marker=network")?;
        let disk = place_disk(&net)?;
        let machine = Machine::uefi("52:54:00:00:00:32").disk(&disk).http_boot_last();
        let mut first = machine.power_on(&net)?;
        assert_eq!(first.wait_serial("HOLDFAST marker", 120)?.text, "HOLDFAST marker network");
        first.wait_off(20)?;
        // A plain `exit` means success to UEFI, which then stops in its setup menu.
        office.say("#!ipxe\nexit 1\n")?;
        boots_its_disk(machine.power_on(&net)?)
    }

    fn place_disk(net: &Net) -> Result<PathBuf> {
        let disk = net.folder().join("disk.img");
        disk::place(&disk::image("by-itself")?, &disk)?;
        Ok(disk)
    }

    fn boots_its_disk(mut run: Running) -> Result<()> {
        run.wait_serial("boot.ipxe", 60)?;
        let line = run.wait_serial("HOLDFAST marker", 60)?;
        assert_eq!(line.text, "HOLDFAST marker by-itself");
        run.wait_off(20)?;
        println!("seconds from power-on over the network to the disk's marker: {:.1}", line.seconds);
        Ok(())
    }

    #[test]
    fn reports_are_read_from_console_lines() {
        let line = "[    3.1] HOLDFAST report 6f9619ff-8b86-d011-b42d-00c04fc964ff install_started 200";
        let report = parse_report(line).expect("a report");
        assert_eq!((report.kind.as_str(), report.status), ("install_started", 200));
        assert_eq!(parse_report("HOLDFAST report half"), None);
        assert_eq!(parse_report("HOLDFAST retry 1 go_ahead"), None);
    }
}

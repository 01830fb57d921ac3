//! The comparison: the same kernel and initramfs, booted by what an office has without our product.
//!
//! dnsmasq gives addresses, boot options and iPXE by TFTP, either alone or as a ProxyDHCP server beside one that
//! gives addresses only, which is how the product stands in an office; an ordinary web server gives the iPXE
//! script, kernel and initramfs. The number is the time from power-on to the line that the machine prints when its first HTTP
//! request has been answered. It is measured the same way, by `Running::wait_serial`, when the product boots
//! the machine, so the two may stand beside each other.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::dnsmasq::Dnsmasq;
use crate::error::{Doing, Result};
use crate::http::{Web, place_script};
use crate::initramfs;
use crate::machine::{Line, Machine};
use crate::network::{Net, OFFICE};

const PORT: u16 = 8000;

/// Power-on to the first answered HTTP request, with everything slow about it allowed for.
const DEADLINE_S: u64 = 120;

/// Notes every request to it in a file of the served folder.
const REPORT: &str = "#!/bin/busybox sh
echo \"$REQUEST_METHOD $PATH_INFO from $REMOTE_ADDR\" >>../reports
printf 'Content-Type: text/plain\\r\\n\\r\\nnoted\\n'
";

/// Who tells machines what to boot.
#[derive(Clone, Copy)]
pub(crate) enum BootServer {
    /// The office's DHCP server itself.
    Dhcp,
    /// A ProxyDHCP server beside it, where the site agent would be.
    Proxy,
}

/// Boots `machine` once and returns the line of its first report.
///
/// # Errors
/// When it does not get that far; with the end of its console.
pub(crate) fn boot(machine: &Machine, server: BootServer) -> Result<Line> {
    let net = Net::new()?;
    let url = format!("http://{OFFICE}:{PORT}/cgi-bin/report/{}", machine.mac());
    let office = Office::open(&net, server, &format!("lab.report={url}"))?;
    let mut run = machine.power_on(&net)?;
    let line = run.wait_serial("HOLDFAST report", DEADLINE_S)?;
    run.wait_off(20)?;

    // The machine's word, the web server's and the DHCP server's are the same story.
    let reports = run.reports()?;
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!((reports[0].kind.as_str(), reports[0].status), ("baseline", 200));
    let noted = fs::read_to_string(office.folder.join("reports")).doing("read the web server's notes")?;
    let address = office.dns.lease(machine.mac())?.expect("the machine has a lease");
    assert_eq!(noted, format!("GET /{} from {address}\n", machine.mac()));
    Ok(line)
}

/// An office that boots machines by itself; dropping it ends its servers.
pub(crate) struct Office {
    dns: Dnsmasq,
    _proxy: Option<Dnsmasq>,
    _web: Web,
    folder: PathBuf,
}

impl Office {
    /// Starts the servers. A machine that boots gets the lab's kernel and initramfs with `command_line`.
    ///
    /// # Errors
    /// When the kernel or the initramfs cannot be had, or a server does not start.
    pub(crate) fn open(net: &Net, server: BootServer, command_line: &str) -> Result<Self> {
        let folder = net.folder().join("office");
        fs::create_dir(&folder).doing("make the served folder")?;
        place_script(&folder, "report", REPORT)?;
        let boot = initramfs::boot()?;
        symlink(&boot.kernel, folder.join("vmlinuz")).doing("serve the kernel")?;
        symlink(&boot.initramfs, folder.join("initrd")).doing("serve the initramfs")?;
        let here = format!("http://{OFFICE}:{PORT}");
        let script_url = format!("{here}/boot.ipxe");
        let (dns, proxy) = match server {
            BootServer::Dhcp => (Dnsmasq::booting(net, &script_url)?, None),
            BootServer::Proxy => (Dnsmasq::plain(net)?, Some(Dnsmasq::proxy(net, &script_url)?)),
        };
        let web = Web::serve(net.office(), OFFICE, PORT, &folder)?;
        let office = Self { dns, _proxy: proxy, _web: web, folder };
        // `initrd=` names the file for a kernel that UEFI starts; BIOS finds it without.
        office.say(&format!(
            "#!ipxe
kernel {here}/vmlinuz initrd=initrd console=ttyS0 quiet panic=1 {command_line}
initrd {here}/initrd
boot
"
        ))?;
        Ok(office)
    }

    /// Gives the machines that boot from now on another iPXE script.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn say(&self, script: &str) -> Result<()> {
        fs::write(self.folder.join("boot.ipxe"), script).doing("write the iPXE script")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baseline_bios() -> Result<()> {
        print_seconds(&Machine::bios("52:54:00:00:00:01"), BootServer::Dhcp)
    }

    #[test]
    fn baseline_uefi() -> Result<()> {
        print_seconds(&Machine::uefi("52:54:00:00:00:02"), BootServer::Dhcp)
    }

    #[test]
    fn baseline_bios_beside_another_dhcp_server() -> Result<()> {
        print_seconds(&Machine::bios("52:54:00:00:00:03"), BootServer::Proxy)
    }

    #[test]
    fn baseline_uefi_beside_another_dhcp_server() -> Result<()> {
        print_seconds(&Machine::uefi("52:54:00:00:00:04"), BootServer::Proxy)
    }

    fn print_seconds(machine: &Machine, server: BootServer) -> Result<()> {
        println!("seconds from power-on to first report: {:.1}", boot(machine, server)?.seconds);
        Ok(())
    }
}

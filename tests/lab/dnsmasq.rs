//! The office's own DHCP server, and dnsmasq in the two places that our product takes.
//!
//! `plain` is what a branch office has before our product comes: addresses and a router, no word of booting.
//! `booting` and `proxy` are for comparison: the same server with its TFTP and boot options switched on, or
//! left as it is with a ProxyDHCP server beside it, both as well set up as dnsmasq can be. All leave out two delays that would be measured instead of the thing itself: the ping
//! before an offer (3 s), and the 13 s that each iPXE stage looks for an IPv6 router when no one announces one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Doing, Result};
use crate::network::{Namespace, Net, OFFICE};
use crate::process::Process;

/// Addresses and a router for the office LAN, and a router advertisement without any IPv6 address to get.
const PLAIN: &str = "\
port=0
interface=br0
bind-interfaces
no-ping
dhcp-range=10.78.0.50,10.78.0.99,1h
dhcp-option=option:router,10.78.0.1
enable-ra
dhcp-range=fd78::,ra-only
log-dhcp
";

/// A running server; dropping it ends it.
pub(crate) struct Dnsmasq {
    server: Process,
    leases: PathBuf,
}

impl Dnsmasq {
    /// Starts the server without a boot option: what booting machines are told is the site agent's business.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn plain(net: &Net) -> Result<Self> {
        Self::start(net, net.office(), "dnsmasq", PLAIN)
    }

    /// Starts the server with boot options: iPXE by TFTP from Debian's `ipxe` for those who have none, then the
    /// iPXE script at `script_url`.
    ///
    /// # Errors
    /// When it does not start, or iPXE's programs are not there.
    pub(crate) fn booting(net: &Net, script_url: &str) -> Result<Self> {
        let configuration = booting_configuration(&lay_out_tftp(net)?, script_url);
        Self::start(net, net.office(), "dnsmasq", &configuration)
    }

    /// Starts a ProxyDHCP server where the site agent would run: no addresses, boot options as with `booting`,
    /// spoken in PXE's own way. The office's `plain` server must run as well.
    ///
    /// # Errors
    /// As with `booting`.
    pub(crate) fn proxy(net: &Net, script_url: &str) -> Result<Self> {
        let configuration = proxy_configuration(&lay_out_tftp(net)?, script_url);
        Self::start(net, net.site(), "dnsmasq-proxy", &configuration)
    }

    /// Returns the address that the server gave to `mac`, if it has given one.
    ///
    /// # Errors
    /// When the lease file is there and cannot be read.
    pub(crate) fn lease(&self, mac: &str) -> Result<Option<String>> {
        if !self.leases.exists() {
            return Ok(None);
        }
        let leases = fs::read_to_string(&self.leases).doing("read dnsmasq's leases")?;
        Ok(lease_of(&leases, mac))
    }

    /// Returns what the server has logged: one block of lines per DHCP packet.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) fn log(&self) -> Result<String> {
        self.server.log()
    }

    fn start(net: &Net, place: &Namespace, name: &str, configuration: &str) -> Result<Self> {
        let path = net.folder().join(format!("{name}.conf"));
        fs::write(&path, configuration).doing(format!("write {}", path.display()))?;
        let leases = net.folder().join(format!("{name}.leases"));
        let mut dnsmasq = place.command("/usr/sbin/dnsmasq");
        dnsmasq.args(["--keep-in-foreground", "--user=root", "--pid-file=", "--log-facility=-"]);
        dnsmasq.arg(format!("--conf-file={}", path.display()));
        dnsmasq.arg(format!("--dhcp-leasefile={}", leases.display()));
        let mut server = place.spawn(name, &mut dnsmasq, net.folder())?;
        // Its first words, said after its sockets are open.
        server.wait_log("started, version", Duration::from_secs(10))?;
        Ok(Self { server, leases })
    }
}

/// Who already is iPXE gets the script, everybody else the iPXE for its firmware.
///
/// Client architectures 7 and 9 both mean x86-64 UEFI: RFC 4578 and its erratum disagree. Option 175.176 tells
/// iPXE not to wait for a second, ProxyDHCP offer; it saves 3 s a stage.
fn booting_configuration(tftp: &Path, script_url: &str) -> String {
    format!(
        "{PLAIN}enable-tftp
tftp-root={}
dhcp-match=set:ipxe,175
dhcp-match=set:efi,option:client-arch,7
dhcp-match=set:efi,option:client-arch,9
dhcp-boot=tag:ipxe,{script_url}
dhcp-boot=tag:!ipxe,tag:efi,snponly.efi,,{OFFICE}
dhcp-boot=tag:!ipxe,tag:!efi,undionly.kpxe,,{OFFICE}
dhcp-option=tag:ipxe,encap:175,176,1b
",
        tftp.display()
    )
}

/// `dhcp-boot` would not do: in proxy mode dnsmasq only answers with services.
fn proxy_configuration(tftp: &Path, script_url: &str) -> String {
    format!(
        "port=0
interface=lan0
bind-interfaces
log-dhcp
dhcp-range=10.78.0.0,proxy
enable-tftp
tftp-root={}
dhcp-match=set:ipxe,175
pxe-service=tag:!ipxe,x86PC,\"lab\",undionly.kpxe
pxe-service=tag:!ipxe,X86-64_EFI,\"lab\",snponly.efi
pxe-service=tag:ipxe,x86PC,\"lab\",{script_url}
pxe-service=tag:ipxe,X86-64_EFI,\"lab\",{script_url}
",
        tftp.display()
    )
}

/// Returns a folder with Debian's iPXE programs.
fn lay_out_tftp(net: &Net) -> Result<PathBuf> {
    let tftp = net.folder().join("tftp");
    fs::create_dir_all(&tftp).doing("make the TFTP folder")?;
    for loader in ["undionly.kpxe", "snponly.efi"] {
        let from = Path::new("/usr/lib/ipxe").join(loader);
        fs::copy(&from, tftp.join(loader)).doing(format!("copy {}", from.display()))?;
    }
    Ok(tftp)
}

/// A lease is a line `expiry mac address name client-id`.
fn lease_of(leases: &str, mac: &str) -> Option<String> {
    let of_mac = |line: &&str| line.split(' ').nth(1).is_some_and(|field| field == mac);
    leases.lines().find(of_mac)?.split(' ').nth(2).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_found_by_its_mac() {
        let leases = "1795222000 52:54:00:00:00:01 10.78.0.71 * ff:00\nduid 00:01:02\n";
        assert_eq!(lease_of(leases, "52:54:00:00:00:01").as_deref(), Some("10.78.0.71"));
        assert_eq!(lease_of(leases, "52:54:00:00:00:02"), None);
    }

    #[test]
    fn the_plain_server_says_nothing_about_booting() {
        assert!(!PLAIN.contains("boot") && !PLAIN.contains("tftp") && !PLAIN.contains("175"));
    }

    #[test]
    fn an_office_of_two_gets_addresses_from_the_plain_server() -> Result<()> {
        let net = Net::new()?;
        let dns = Dnsmasq::plain(&net)?;
        // The site's end of the LAN asks as a machine would; `-s /bin/true` leaves its address alone.
        let said = net
            .site()
            .run("busybox", &["udhcpc", "-i", "lan0", "-f", "-n", "-q", "-s", "/bin/true", "-O", "router"]);
        said?;
        let mac = net.site().run("busybox", &["cat", "/sys/class/net/lan0/address"])?;
        let address = dns.lease(mac.trim())?.expect("a lease for the asking interface");
        assert!(address.starts_with("10.78.0."), "{address}");
        assert!(dns.log()?.contains("DHCPACK"), "the log shows the exchange");
        Ok(())
    }
}

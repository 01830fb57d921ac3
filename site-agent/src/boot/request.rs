//! Who asks to be booted, and what is said: plain values that no protocol owns.
//!
//! `dhcp::parse` reads a [`Request`] from a packet, `decide` answers it with an [`Answer`], and
//! `dhcp::reply` writes that into options again. A simulator or a test makes a request by hand. There is
//! no socket, packet or clock in here, and no opinion about who may boot.

use std::{fmt, net::Ipv4Addr};

use sync::id::MacAddr;

/// One question of one machine: what shall I boot?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Interface that asks, and the key of the machine: client identifiers differ between its boot ROM,
    /// iPXE and its operating system. `chaddr`, RFC 2131 §2.
    pub mac: MacAddr,
    /// How far the exchange is. Both steps of one boot are answered alike.
    pub step: Step,
    /// How the machine fetches what it is told to boot.
    pub class: ClientClass,
    /// What the machine can execute.
    pub arch: ClientArch,
    /// Whether iPXE asks, which wants a script rather than a loader. DHCP option 77 `iPXE`, or 175.
    pub ipxe: bool,
    /// Text the client calls itself, if any: `iPXE`, or what a script set. Not to be trusted; control
    /// characters are replaced. DHCP option 77, RFC 3004.
    pub user_class: Option<String>,
    /// System UUID in the order it is printed, none where the firmware sent all zeros or all ones, which
    /// SMBIOS calls "not set" (DSP0134 §7.2.1). Not unique: some vendors repeat it. DHCP option 97.
    pub system_uuid: Option<[u8; 16]>,
    /// Address the machine already has, from whichever DHCP server. `ciaddr`, RFC 2131 §2.
    pub address: Option<Ipv4Addr>,
    /// Relay that brought the packet from another network, none on the local one.
    pub relay: Option<Relay>,
}

/// Where in its exchange a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// It looks for somebody who can boot it (DHCPDISCOVER), and may choose another answer.
    Discover,
    /// It chose us and wants its boot file (DHCPREQUEST or DHCPINFORM).
    Request,
}

/// How a machine fetches its boot file, as it says in DHCP option 60.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientClass {
    /// By TFTP, from a name. `PXEClient`, PXE 2.1 §2.2.
    PxeClient,
    /// By HTTP, from a whole URL. `HTTPClient`, UEFI 2.10 §24.7.3.
    HttpClient,
}

impl ClientClass {
    /// First word of option 60, in requests and in their answers.
    pub fn name(self) -> &'static str {
        match self {
            ClientClass::PxeClient => "PXEClient",
            ClientClass::HttpClient => "HTTPClient",
        }
    }
}

/// Architecture the firmware reports, which may be narrower than what the CPU can run: BIOS machines
/// send 0 on 64-bit hardware. DHCP option 93, RFC 4578 §2.1 and RFC 5970 §3.3; the numbers are those of
/// IANA's registry "Processor Architecture Types".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientArch {
    /// 0
    X86Bios,
    /// 6
    X86Uefi,
    /// 7, and 9: RFC 4578 printed them the other way round than IANA, and firmware was built from either.
    X64Uefi,
    /// 10
    Arm32Uefi,
    /// 11
    Arm64Uefi,
    /// 15
    X86Http,
    /// 16
    X64Http,
    /// 18
    Arm32Http,
    /// 19
    Arm64Http,
    /// Any other number.
    Other(u16),
}

impl ClientArch {
    /// Reads the number of option 93.
    pub fn from_number(number: u16) -> Self {
        match number {
            0 => ClientArch::X86Bios,
            6 => ClientArch::X86Uefi,
            7 | 9 => ClientArch::X64Uefi,
            10 => ClientArch::Arm32Uefi,
            11 => ClientArch::Arm64Uefi,
            15 => ClientArch::X86Http,
            16 => ClientArch::X64Http,
            18 => ClientArch::Arm32Http,
            19 => ClientArch::Arm64Http,
            other => ClientArch::Other(other),
        }
    }

    /// The number that IANA lists first for it.
    pub fn number(self) -> u16 {
        match self {
            ClientArch::X86Bios => 0,
            ClientArch::X86Uefi => 6,
            ClientArch::X64Uefi => 7,
            ClientArch::Arm32Uefi => 10,
            ClientArch::Arm64Uefi => 11,
            ClientArch::X86Http => 15,
            ClientArch::X64Http => 16,
            ClientArch::Arm32Http => 18,
            ClientArch::Arm64Http => 19,
            ClientArch::Other(number) => number,
        }
    }
}

/// The network a relayed packet came from, in the words of its relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Address of the relay on the client's network. `giaddr`, RFC 2131 §2.
    pub gateway: Ipv4Addr,
    /// Port of the switch, in a form of its own. DHCP option 82 sub-option 1, RFC 3046 §3.1.
    pub circuit_id: Option<Vec<u8>>,
    /// The switch or the subscriber, in a form of its own. Sub-option 2, RFC 3046 §3.2.
    pub remote_id: Option<Vec<u8>>,
}

/// What a machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Boot this.
    BootFile(BootFile),
    /// Nothing, so that it asks elsewhere or goes on to its disk; with the reason, for the trace.
    Silent(String),
}

/// Where a machine finds what it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// TFTP server, used where `file` is no URL. `siaddr`, RFC 2131 §2; DHCP option 66, RFC 2132 §9.4.
    pub next_server: Ipv4Addr,
    /// Name for TFTP, or a whole `http://` URL. `file` field and DHCP option 67, RFC 2132 §9.5.
    pub file: String,
}

/// Writes a system UUID as people and iPXE's `${uuid}` do, in five groups.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = sync::id::hex(uuid);
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Discover => "discover",
            Step::Request => "request",
        })
    }
}

impl fmt::Display for ClientClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ClientArch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientArch::X86Bios => "x86 BIOS",
            ClientArch::X86Uefi => "x86 UEFI",
            ClientArch::X64Uefi => "x64 UEFI",
            ClientArch::Arm32Uefi => "arm32 UEFI",
            ClientArch::Arm64Uefi => "arm64 UEFI",
            ClientArch::X86Http => "x86 UEFI HTTP",
            ClientArch::X64Http => "x64 UEFI HTTP",
            ClientArch::Arm32Http => "arm32 UEFI HTTP",
            ClientArch::Arm64Http => "arm64 UEFI HTTP",
            ClientArch::Other(number) => return write!(f, "architecture {number}"),
        })
    }
}

impl fmt::Display for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.file.contains("://") {
            true => f.write_str(&self.file),
            false => write!(f, "{} from {}", self.file, self.next_server),
        }
    }
}

/// One line for people: `52:54:00:00:00:31 PXEClient x64 UEFI, discover`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.mac, self.class, self.arch)?;
        if self.ipxe {
            f.write_str(" iPXE")?;
        }
        write!(f, ", {}", self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_that_mean_x64_are_read_as_x64() {
        assert_eq!(ClientArch::from_number(7), ClientArch::X64Uefi);
        assert_eq!(ClientArch::from_number(9), ClientArch::X64Uefi);
    }

    #[test]
    fn every_architecture_has_one_number_and_comes_back_from_it() {
        for number in 0..=u16::MAX {
            let arch = ClientArch::from_number(number);
            assert_eq!(ClientArch::from_number(arch.number()), arch, "option 93 = {number}");
        }
    }

    #[test]
    fn a_uuid_is_printed_in_five_groups() {
        let uuid = std::array::from_fn(|i| 0x11 * u8::try_from(i % 15 + 1).unwrap());
        expect_test::expect!["11223344-5566-7788-99aa-bbccddeeff11"].assert_eq(&uuid_text(&uuid));
    }
}

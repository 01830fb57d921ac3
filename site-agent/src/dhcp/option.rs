//! DHCP options as raw bytes, by number.
//!
//! [`Options::read`] collects what a packet carries, wherever it carries it; the constants give the numbers
//! that matter here their names. The option readers of dhcproto are deliberately not used: its owned decoder
//! drops every option after the first one it dislikes, so that a host name in Latin-1 hides the whole
//! boot request; the borrowed one loses an option whose continuation is cut; neither joins scattered
//! pieces nor looks into `sname` and `file`. Raw bytes have none of these troubles.

use std::{collections::BTreeMap, net::Ipv4Addr, ops::Range};

/// Vendor options; to a PXE client a list of sub-options. RFC 2132 §8.4, PXE 2.1 table 2-1.
pub const VENDOR: u8 = 43;
/// Address the client wants. RFC 2132 §9.1.
pub const REQUESTED_ADDRESS: u8 = 50;
/// Which of `file` (1), `sname` (2) or both (3) hold options too. RFC 2132 §9.3.
pub const OVERLOAD: u8 = 52;
/// DHCP message type. RFC 2132 §9.6.
pub const MESSAGE: u8 = 53;
/// Server that offers, or that was chosen. RFC 2132 §9.7.
pub const SERVER: u8 = 54;
/// Options the client would like. RFC 2132 §9.8.
pub const WANTED: u8 = 55;
/// Longest message the client takes, in bytes. RFC 2132 §9.10.
pub const MAX_MESSAGE: u8 = 57;
/// Kind of client, and kind of answer. RFC 2132 §9.13.
pub const CLASS: u8 = 60;
/// Name the client goes by; another one in each stage of a boot. RFC 2132 §9.14.
pub const CLIENT_ID: u8 = 61;
/// Name of the TFTP server. RFC 2132 §9.4.
pub const TFTP_SERVER: u8 = 66;
/// What to boot. RFC 2132 §9.5.
pub const BOOT_FILE: u8 = 67;
/// Name a script or a person gave the client. RFC 3004.
pub const USER_CLASS: u8 = 77;
/// What the relay adds, and wants back. RFC 3046.
pub const RELAY: u8 = 82;
/// Architectures the client executes, two bytes each. RFC 4578 §2.1.
pub const ARCH: u8 = 93;
/// Version of the network driver interface of the firmware. RFC 4578 §2.2.
pub const UNDI: u8 = 94;
/// System UUID, after a byte that says so. RFC 4578 §2.3.
pub const MACHINE: u8 = 97;
/// iPXE's own options, sent by nobody else (ipxe.org/howto/dhcpd).
pub const IPXE: u8 = 175;

/// Sub-option of 43 that tells how to find boot servers. PXE 2.1 table 2-1.
pub const PXE_DISCOVERY: u8 = 6;
/// Sub-option of 43 that names the chosen item of a boot menu. PXE 2.1 table 2-1.
pub const PXE_BOOT_ITEM: u8 = 71;

/// Sub-option of 82: port of the switch. RFC 3046 §3.1.
pub const RELAY_CIRCUIT: u8 = 1;
/// Sub-option of 82: the switch or the subscriber. RFC 3046 §3.2.
pub const RELAY_REMOTE: u8 = 2;

/// Fills up; has no length.
pub const PAD: u8 = 0;
/// Ends a list; has no length.
pub const END: u8 = 255;

/// Where a packet keeps the name of its server, its boot file and its options. RFC 2131 §2.
pub const SNAME_AT: Range<usize> = 44..108;
/// See [`SNAME_AT`].
pub const FILE_AT: Range<usize> = 108..236;
/// See [`SNAME_AT`].
pub const OPTIONS_AT: usize = 240;

/// Options of one packet, by number, each in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    /// Collects the options of a packet of at least 240 bytes; of a shorter one, none.
    ///
    /// Pieces of one option are joined in the order of RFC 3396 §5: those of the option area, of `file`
    /// and of `sname`, the latter two where option 52 says that they hold options. A cut option ends its
    /// area.
    pub fn read(packet: &[u8]) -> Self {
        let mut options = Self::default();
        options.collect(packet.get(OPTIONS_AT..).unwrap_or_default());
        let overload = options.get(OVERLOAD).and_then(<[u8]>::first).copied().unwrap_or(0);
        for (bit, area) in [(1, FILE_AT), (2, SNAME_AT)] {
            if overload & bit != 0 {
                options.collect(packet.get(area).unwrap_or_default());
            }
        }
        options
    }

    /// Reads a list of sub-options: the value of option 43 or 82.
    pub fn within(value: &[u8]) -> Self {
        let mut options = Self::default();
        options.collect(value);
        options
    }

    /// The bytes of an option, if it was sent. May be empty.
    pub fn get(&self, number: u8) -> Option<&[u8]> {
        self.0.get(&number).map(Vec::as_slice)
    }

    /// The address in an option, if it was sent and is one.
    pub fn address(&self, number: u8) -> Option<Ipv4Addr> {
        self.array::<4>(number).map(Ipv4Addr::from)
    }

    /// The option, if it was sent and has exactly `N` bytes.
    pub fn array<const N: usize>(&self, number: u8) -> Option<[u8; N]> {
        self.get(number)?.try_into().ok()
    }

    fn collect(&mut self, mut area: &[u8]) {
        while let Some((&number, rest)) = area.split_first() {
            area = match number {
                PAD => rest,
                END => return,
                _ => {
                    let Some((&length, rest)) = rest.split_first() else { return };
                    let Some((value, rest)) = rest.split_at_checked(length.into()) else { return };
                    self.0.entry(number).or_default().extend_from_slice(value);
                    rest
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(options: &[u8]) -> Vec<u8> {
        [&[0; OPTIONS_AT], options].concat()
    }

    #[test]
    fn a_host_name_that_is_no_text_hides_nothing() {
        let options = Options::read(&packet(&[12, 2, 0xff, 0xfe, 53, 1, 1, 60, 3, b'P', b'X', b'E', 255]));
        assert_eq!(options.get(MESSAGE), Some(&[1][..]));
        assert_eq!(options.get(CLASS), Some(&b"PXE"[..]));
    }

    #[test]
    fn an_option_survives_its_cut_continuation() {
        let options = Options::read(&packet(&[60, 3, b'P', b'X', b'E', 60, 9, b'C']));
        assert_eq!(options.get(CLASS), Some(&b"PXE"[..]));
    }

    #[test]
    fn scattered_pieces_are_joined_across_all_areas() {
        let mut bytes = packet(&[52, 1, 3, 60, 2, b'P', b'X', 53, 1, 1, 60, 1, b'E', 255, 60, 1, b'!']);
        bytes[FILE_AT][..3].copy_from_slice(&[60, 1, b'C']);
        bytes[FILE_AT][3] = END;
        bytes[SNAME_AT][..3].copy_from_slice(&[60, 1, b'l']);
        assert_eq!(Options::read(&bytes).get(CLASS), Some(&b"PXECl"[..]));
    }

    #[test]
    fn names_in_the_header_are_no_options_without_overload() {
        let mut bytes = packet(&[53, 1, 1, 255]);
        bytes[FILE_AT][..3].copy_from_slice(&[60, 1, b'C']);
        assert_eq!(Options::read(&bytes).get(CLASS), None);
    }
}

//! Which loader a machine runs first: one table, by the way it fetches and by what it can execute.
//!
//! [`choose`] is the only way in. iPXE gets its script, everybody else the iPXE build that drives the
//! network card through the firmware's own driver, so that no card needs a driver of ours. Secure Boot
//! is absent: no request shows its state, so the signed path will be a setting of the site.

use std::net::Ipv4Addr;

use sync::id::MacAddr;

use super::request::{BootFile, ClientArch, ClientClass, Request};

/// A row of the loader table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// How the machine fetches.
    pub class: ClientClass,
    /// What it can execute.
    pub arch: ClientArch,
    /// Name of the file, one of [`FILES`].
    pub loader: &'static str,
}

/// The loaders, by class and architecture.
///
/// `undionly.kpxe` uses the PXE ROM's UNDI and keeps it in memory (ipxe.org/howto/chainloading), because
/// with its own drivers iPXE loses cards that the ROM knows. `snponly.efi` likewise uses the network
/// protocol of the device it was loaded from (ipxe.org/appnote/buildtargets), where `ipxe.efi` hangs or
/// fails with some cards (ipxe#972). Every row was
/// booted: under SeaBIOS with a PXE ROM, and under OVMF over TFTP and over HTTP.
pub const TABLE: [Row; 3] = [
    Row { class: ClientClass::PxeClient, arch: ClientArch::X86Bios, loader: "undionly.kpxe" },
    Row { class: ClientClass::PxeClient, arch: ClientArch::X64Uefi, loader: "snponly.efi" },
    Row { class: ClientClass::HttpClient, arch: ClientArch::X64Http, loader: "snponly.efi" },
];

/// Every file name that a site may be asked for: those of the table, and the build with iPXE's own
/// drivers for a person who wants it.
pub const FILES: [&str; 3] = ["undionly.kpxe", "snponly.efi", "ipxe.efi"];

/// Name of a loader that no site has. Firmware that is to go on to its disk is sent for it over HTTP.
pub const NO_LOADER: &str = "none.efi";

/// Where machines of this site reach its services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootServer {
    /// The site's `boot_address`, never 0.0.0.0: every URL is built from it.
    pub address: Ipv4Addr,
    /// Port of plain HTTP for machines.
    pub http_port: u16,
}

impl BootServer {
    /// URL of the script that iPXE on this interface runs. It asks for it with each colon as `%3A`.
    pub fn script_url(&self, mac: MacAddr) -> String {
        format!("http://{}:{}/boot/{mac}", self.address, self.http_port)
    }

    /// URL of a loader, for firmware that fetches over HTTP. It ends in the file's extension: EDK2 tells
    /// from it that the content is a program.
    pub fn loader_url(&self, loader: &str) -> String {
        format!("http://{}:{}/loaders/{loader}", self.address, self.http_port)
    }
}

/// Why the table has nothing for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoLoader {
    /// The architecture is known, and nobody brings a loader for it.
    #[error("no loader for {arch} (option 93 = {})", arch.number())]
    NotBuilt {
        /// What the machine can execute.
        arch: ClientArch,
    },
    /// There is a loader, but not for this way of fetching: HTTP boot of a BIOS, say.
    #[error("no loader for {arch} by way of {class}")]
    NotThisWay {
        /// How the machine fetches.
        class: ClientClass,
        /// What it can execute.
        arch: ClientArch,
    },
}

/// Returns what the machine boots first: iPXE its script, others their loader.
///
/// # Errors
/// When no row fits; the machine is then left to itself.
pub fn choose(request: &Request, server: BootServer) -> Result<BootFile, NoLoader> {
    let Request { class, arch, .. } = *request;
    let file = if request.ipxe {
        // Giving iPXE a loader would load it again, for ever: its ROM and `undionly.kpxe` send the same.
        server.script_url(request.mac)
    } else if let Some(row) = TABLE.iter().find(|row| (row.class, row.arch) == (class, arch)) {
        match class {
            ClientClass::PxeClient => row.loader.to_owned(),
            ClientClass::HttpClient => server.loader_url(row.loader),
        }
    } else if TABLE.iter().any(|row| row.arch == arch) {
        return Err(NoLoader::NotThisWay { class, arch });
    } else {
        return Err(NoLoader::NotBuilt { arch });
    };
    Ok(BootFile { next_server: server.address, file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::request::Step;

    fn chosen(class: ClientClass, number: u16, ipxe: bool) -> String {
        let server = BootServer { address: Ipv4Addr::new(10, 78, 0, 2), http_port: 8080 };
        let request = Request {
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 0x31]),
            step: Step::Discover,
            class,
            arch: ClientArch::from_number(number),
            ipxe,
            user_class: None,
            system_uuid: None,
            address: None,
            relay: None,
        };
        match choose(&request, server) {
            Ok(file) => file.to_string(),
            Err(reason) => format!("nothing: {reason}"),
        }
    }

    #[test]
    fn t4_every_kind_of_client_has_its_loader_or_a_reason() {
        let mut text = String::new();
        for (class, numbers) in [
            (ClientClass::PxeClient, &[0, 6, 7, 9, 10, 11, 41][..]),
            (ClientClass::HttpClient, &[0, 15, 16, 18, 19]),
        ] {
            for &number in numbers {
                text += &format!("{class} {number:<2} {}\n", chosen(class, number, false));
            }
        }
        text += &format!("iPXE on 0   {}\n", chosen(ClientClass::PxeClient, 0, true));
        text += &format!("iPXE on 11  {}\n", chosen(ClientClass::PxeClient, 11, true));
        expect_test::expect![[r#"
            PXEClient 0  undionly.kpxe from 10.78.0.2
            PXEClient 6  nothing: no loader for x86 UEFI (option 93 = 6)
            PXEClient 7  snponly.efi from 10.78.0.2
            PXEClient 9  snponly.efi from 10.78.0.2
            PXEClient 10 nothing: no loader for arm32 UEFI (option 93 = 10)
            PXEClient 11 nothing: no loader for arm64 UEFI (option 93 = 11)
            PXEClient 41 nothing: no loader for architecture 41 (option 93 = 41)
            HTTPClient 0  nothing: no loader for x86 BIOS by way of HTTPClient
            HTTPClient 15 nothing: no loader for x86 UEFI HTTP (option 93 = 15)
            HTTPClient 16 http://10.78.0.2:8080/loaders/snponly.efi
            HTTPClient 18 nothing: no loader for arm32 UEFI HTTP (option 93 = 18)
            HTTPClient 19 nothing: no loader for arm64 UEFI HTTP (option 93 = 19)
            iPXE on 0   http://10.78.0.2:8080/boot/52:54:00:00:00:31
            iPXE on 11  http://10.78.0.2:8080/boot/52:54:00:00:00:31
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn every_row_names_a_file_that_a_site_serves() {
        for row in TABLE {
            assert!(FILES.contains(&row.loader), "{} is served", row.loader);
        }
    }
}

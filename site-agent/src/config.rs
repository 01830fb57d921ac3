//! What a person sets: one TOML file, the environment, and flags, in rising order of precedence.
//!
//! [`Settings`] is what somebody said, each key optional; two are laid over each other with
//! [`Settings::over`], and [`Settings::complete`] fills in the defaults. What may change while the program
//! runs is not here: that is the site's document, which central writes.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use sync::quic::driver::TRY_UDP_AFTER;
use toml::de::DeTable;

use crate::boot::script::Patience;

/// Where the file is looked for if nobody says: none there is no error.
pub const DEFAULT_FILE: &str = "/etc/holdfast/site.toml";

/// The effective configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Folder of everything that this program keeps. Default `/var/lib/holdfast-site`: where a service
    /// keeps state (FHS 3.0 §5.8).
    pub data_dir: PathBuf,
    /// Address by which machines reach this site; every URL is built from it. No default: a wrong guess
    /// on a machine with several networks would send machines nowhere.
    pub boot_address: Ipv4Addr,
    /// Interface to listen on for DHCP. Default: all, for machines with one network.
    pub interface: Option<String>,
    /// Address and port of HTTP for machines. Default `0.0.0.0:8080`: no privilege is needed for it.
    pub listen_http: SocketAddr,
    /// UDP port where machines broadcast. Default 67, which firmware knows (RFC 2131 §4.1). 0: a free one.
    pub dhcp_port: u16,
    /// UDP port of the boot server. Default 4011, which firmware knows (PXE 2.1 §2.2.3). 0: a free one.
    pub pxe_port: u16,
    /// UDP port of TFTP. Default 69, which firmware knows (RFC 1350 §4). 0: a free one.
    pub tftp_port: u16,
    /// Whether DHCP requests are answered. Default on: beside another address server it only adds to its
    /// answers. Off where that one already names the loader.
    pub dhcp: bool,
    /// Folder of the boot loaders. Default `/usr/lib/ipxe`, where Debian's package has them.
    pub loaders_dir: PathBuf,
    /// Central as `host:port`. Default: what enrolment stored. For a central that has moved.
    pub central: Option<String>,
    /// How long the link runs over TCP before UDP is tried again, in whole seconds. Default 600: often enough for
    /// a firewall that was opened, and nothing beside the heartbeats.
    pub try_udp_after: Duration,
    /// File that says which generation of a virtual machine this is: its content changes when a snapshot is
    /// restored or the machine is cloned, and at no other time. Default: none, because few machines have one.
    pub generation_file: Option<PathBuf>,
    /// Which log lines are written, in the words of tracing's `EnvFilter`. Default `info`.
    pub log: String,
    /// How long a machine waits on a hold page. Default 3 questions, 6 s apart.
    pub patience: Patience,
    /// Days that journal entries are kept after both sides have them. Default and least 90: a central that was
    /// restored from an old backup takes them from here.
    pub journal_retention_days: u32,
}

/// What somebody set; absent keys are left to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`Config::boot_address`].
    pub boot_address: Option<Ipv4Addr>,
    /// See [`Config::interface`].
    pub interface: Option<String>,
    /// See [`Config::listen_http`].
    pub listen_http: Option<SocketAddr>,
    /// See [`Config::dhcp_port`].
    pub dhcp_port: Option<u16>,
    /// See [`Config::pxe_port`].
    pub pxe_port: Option<u16>,
    /// See [`Config::tftp_port`].
    pub tftp_port: Option<u16>,
    /// See [`Config::dhcp`].
    pub dhcp: Option<bool>,
    /// See [`Config::loaders_dir`].
    pub loaders_dir: Option<PathBuf>,
    /// See [`Config::central`].
    pub central: Option<String>,
    /// See [`Config::try_udp_after`]; `5..=86400`.
    pub try_udp_after_s: Option<u32>,
    /// See [`Config::generation_file`].
    pub generation_file: Option<PathBuf>,
    /// See [`Config::log`].
    pub log: Option<String>,
    /// Seconds between two questions of a machine that is held, `1..=60`.
    pub hold_wait_s: Option<u32>,
    /// Questions of a machine that is held, `1..=20`.
    pub hold_tries: Option<u32>,
    /// Days that journal entries are kept, `90..=36_500`.
    pub journal_retention_days: Option<u32>,
}

/// Every key of the file.
pub const KEYS: [&str; 16] = [
    "data_dir",
    "boot_address",
    "interface",
    "listen_http",
    "dhcp_port",
    "pxe_port",
    "tftp_port",
    "dhcp",
    "loaders_dir",
    "central",
    "try_udp_after_s",
    "generation_file",
    "log",
    "hold_wait_s",
    "hold_tries",
    "journal_retention_days",
];

/// Where everything is kept unless somebody says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/holdfast-site";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file has a key that does not exist.
    #[error("{path}:{line}: unknown key `{key}`{}", nearest(.key))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: String,
    },
    /// The file is no TOML, or a value is not what its key wants.
    #[error("{path}:{line}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key without default is missing.
    #[error("`boot_address` is not set, and there is no default for it")]
    NoBootAddress,
    /// A value is out of its range.
    #[error("`{key}` cannot be {value}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// Why not.
        why: &'static str,
    },
}

impl ConfigError {
    /// What a person does next.
    pub fn next(&self) -> &'static str {
        match self {
            ConfigError::Read { .. } => "check the path after --config, and who may read the file",
            ConfigError::UnknownKey { .. } | ConfigError::Malformed { .. } => {
                "correct that line; `holdfast-site config check` shows what is then in force"
            }
            ConfigError::NoBootAddress => {
                "set `boot_address` in the file, HOLDFAST_SITE_BOOT_ADDRESS, or --boot-address to the address of this \
                 machine in the network of the machines that boot"
            }
            ConfigError::Value { .. } => "give it another value, in the file, the environment or the flag",
        }
    }
}

impl Settings {
    /// Reads the file at `path`. Where `path` is [`DEFAULT_FILE`] and not there, nothing is set.
    ///
    /// # Errors
    /// `Read`, `UnknownKey` or `Malformed`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Settings::parse(path, &text),
            Err(source)
                if source.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_FILE) =>
            {
                Ok(Settings::default())
            }
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads the text of the file at `path`, which is only named in errors.
    ///
    /// # Errors
    /// `UnknownKey` or `Malformed`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let malformed = |error: toml::de::Error| ConfigError::Malformed {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(text, span.start)),
            message: error.message().to_owned(),
        };
        let table = DeTable::parse(text).map_err(malformed)?;
        for key in table.get_ref().keys() {
            let name = key.get_ref().as_ref();
            if !KEYS.contains(&name) {
                let line = line_of(text, key.span().start);
                return Err(ConfigError::UnknownKey { path: path.to_owned(), line, key: name.to_owned() });
            }
        }
        toml::from_str(text).map_err(malformed)
    }

    /// Lays these settings over `below`: what is set here wins.
    pub fn over(self, below: Settings) -> Settings {
        Settings {
            data_dir: self.data_dir.or(below.data_dir),
            boot_address: self.boot_address.or(below.boot_address),
            interface: self.interface.or(below.interface),
            listen_http: self.listen_http.or(below.listen_http),
            dhcp_port: self.dhcp_port.or(below.dhcp_port),
            pxe_port: self.pxe_port.or(below.pxe_port),
            tftp_port: self.tftp_port.or(below.tftp_port),
            dhcp: self.dhcp.or(below.dhcp),
            loaders_dir: self.loaders_dir.or(below.loaders_dir),
            central: self.central.or(below.central),
            try_udp_after_s: self.try_udp_after_s.or(below.try_udp_after_s),
            generation_file: self.generation_file.or(below.generation_file),
            log: self.log.or(below.log),
            hold_wait_s: self.hold_wait_s.or(below.hold_wait_s),
            hold_tries: self.hold_tries.or(below.hold_tries),
            journal_retention_days: self.journal_retention_days.or(below.journal_retention_days),
        }
    }

    /// Fills in the defaults and checks ranges.
    ///
    /// # Errors
    /// `NoBootAddress` or `Value`.
    pub fn complete(self) -> Result<Config, ConfigError> {
        let boot_address = self.boot_address.ok_or(ConfigError::NoBootAddress)?;
        let value =
            |key, value: &dyn fmt::Display, why| ConfigError::Value { key, value: value.to_string(), why };
        if boot_address.is_unspecified() || boot_address.is_broadcast() || boot_address.is_multicast() {
            let why = "machines must reach this site by it";
            return Err(value("boot_address", &boot_address, why));
        }
        let default = Patience::default();
        let patience = Patience {
            wait_s: self.hold_wait_s.unwrap_or(default.wait_s),
            tries: self.hold_tries.unwrap_or(default.tries),
        };
        if !(1..=60).contains(&patience.wait_s) {
            return Err(value("hold_wait_s", &patience.wait_s, "it is 1 to 60 seconds"));
        }
        if !(1..=20).contains(&patience.tries) {
            return Err(value("hold_tries", &patience.tries, "it is 1 to 20 questions"));
        }
        let try_udp_after = self.try_udp_after_s.map_or(TRY_UDP_AFTER, |s| Duration::from_secs(s.into()));
        if !(5..=86_400).contains(&try_udp_after.as_secs()) {
            let why = "it is 5 to 86400 seconds";
            return Err(value("try_udp_after_s", &try_udp_after.as_secs(), why));
        }
        let journal_retention_days = self.journal_retention_days.unwrap_or(90);
        if !(90..=36_500).contains(&journal_retention_days) {
            return Err(value("journal_retention_days", &journal_retention_days, "it is 90 to 36500 days"));
        }
        Ok(Config {
            data_dir: self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            boot_address,
            interface: self.interface,
            listen_http: self.listen_http.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 8080).into()),
            dhcp_port: self.dhcp_port.unwrap_or(67),
            pxe_port: self.pxe_port.unwrap_or(4011),
            tftp_port: self.tftp_port.unwrap_or(69),
            dhcp: self.dhcp.unwrap_or(true),
            loaders_dir: self.loaders_dir.unwrap_or_else(|| "/usr/lib/ipxe".into()),
            central: self.central,
            try_udp_after,
            generation_file: self.generation_file,
            log: self.log.unwrap_or_else(|| "info".into()),
            patience,
            journal_retention_days,
        })
    }
}

/// The effective configuration as a file that would say the same.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A JSON text is a basic string of TOML with the same meaning.
        let text = |value: &str| serde_json::Value::from(value);
        let path = |value: &Path| text(&value.to_string_lossy());
        writeln!(f, "data_dir = {}", path(&self.data_dir))?;
        writeln!(f, "boot_address = {}", text(&self.boot_address.to_string()))?;
        match &self.interface {
            Some(interface) => writeln!(f, "interface = {}", text(interface))?,
            None => writeln!(f, "# interface: all")?,
        }
        writeln!(f, "listen_http = {}", text(&self.listen_http.to_string()))?;
        writeln!(f, "dhcp_port = {}", self.dhcp_port)?;
        writeln!(f, "pxe_port = {}", self.pxe_port)?;
        writeln!(f, "tftp_port = {}", self.tftp_port)?;
        writeln!(f, "dhcp = {}", self.dhcp)?;
        writeln!(f, "loaders_dir = {}", path(&self.loaders_dir))?;
        match &self.central {
            Some(central) => writeln!(f, "central = {}", text(central))?,
            None => writeln!(f, "# central: as stored at enrolment")?,
        }
        writeln!(f, "try_udp_after_s = {}", self.try_udp_after.as_secs())?;
        match &self.generation_file {
            Some(file) => writeln!(f, "generation_file = {}", path(file))?,
            None => writeln!(f, "# generation_file: none")?,
        }
        writeln!(f, "log = {}", text(&self.log))?;
        writeln!(f, "hold_wait_s = {}", self.patience.wait_s)?;
        writeln!(f, "hold_tries = {}", self.patience.tries)?;
        writeln!(f, "journal_retention_days = {}", self.journal_retention_days)
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Names the key that was probably meant.
fn nearest(key: &str) -> String {
    let distance = |known: &&&str| edits(key, known);
    match KEYS.iter().min_by_key(distance) {
        Some(known) if edits(key, known) <= key.len().max(3) / 2 => format!(", did you mean `{known}`?"),
        Some(_) | None => format!("; there are {}", KEYS.join(", ")),
    }
}

/// Fewest single characters to insert, delete or replace (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let outcome = Settings::parse(Path::new("site.toml"), text).and_then(Settings::complete);
        expected.assert_eq(&match outcome {
            Ok(config) => config.to_string(),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn a_file_with_only_the_address_gives_the_defaults() {
        check(
            "boot_address = \"10.78.0.2\"\n",
            expect![[r#"
                data_dir = "/var/lib/holdfast-site"
                boot_address = "10.78.0.2"
                # interface: all
                listen_http = "0.0.0.0:8080"
                dhcp_port = 67
                pxe_port = 4011
                tftp_port = 69
                dhcp = true
                loaders_dir = "/usr/lib/ipxe"
                # central: as stored at enrolment
                try_udp_after_s = 600
                # generation_file: none
                log = "info"
                hold_wait_s = 6
                hold_tries = 3
                journal_retention_days = 90
            "#]],
        );
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_the_key_that_was_meant() {
        check(
            "# site\nboot_adress = \"10.78.0.2\"\n",
            expect!["site.toml:2: unknown key `boot_adress`, did you mean `boot_address`?"],
        );
        check(
            "[dhcp_ports]\nx = 1\n",
            expect!["site.toml:1: unknown key `dhcp_ports`, did you mean `dhcp_port`?"],
        );
        check(
            "zzzzzz = 1",
            expect![
                "site.toml:1: unknown key `zzzzzz`; there are data_dir, boot_address, interface, listen_http, dhcp_port, pxe_port, tftp_port, dhcp, loaders_dir, central, try_udp_after_s, generation_file, log, hold_wait_s, hold_tries, journal_retention_days"
            ],
        );
        check(
            "\n\ndhcp_port = 70000\n",
            expect!["site.toml:3: invalid value: integer `70000`, expected u16"],
        );
        check(
            "\nboot_address = 10\n",
            expect!["site.toml:2: invalid type: integer `10`, expected IPv4 address"],
        );
        check(
            "boot_address = \"10.78.0.2\nlog=",
            expect![[r#"site.toml:1: invalid basic string, expected `"`"#]],
        );
        check("", expect!["`boot_address` is not set, and there is no default for it"]);
        check(
            "boot_address = \"0.0.0.0\"",
            expect!["`boot_address` cannot be 0.0.0.0: machines must reach this site by it"],
        );
        check(
            "boot_address = \"10.0.0.1\"\nhold_tries = 0",
            expect!["`hold_tries` cannot be 0: it is 1 to 20 questions"],
        );
    }

    #[test]
    fn what_is_effective_can_be_read_again() {
        let text = "boot_address = \"10.78.0.2\"\ninterface = \"eth\\\"0\"\ncentral = \"c:1\"\n";
        let config = Settings::parse(Path::new("a"), text).unwrap().complete().unwrap();
        let again = Settings::parse(Path::new("b"), &config.to_string()).unwrap().complete().unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn what_lies_over_wins_key_by_key() {
        let parse = |text| Settings::parse(Path::new("a"), text).unwrap();
        let over = parse("dhcp_port = 1\n");
        let below = parse("boot_address = \"10.78.0.2\"\ndhcp_port = 2\ntftp_port = 3\n");
        let config = over.over(below).complete().unwrap();
        assert_eq!((config.dhcp_port, config.tftp_port, config.pxe_port), (1, 3, 4011));
    }

    #[test]
    fn every_key_of_the_list_is_a_field() {
        for key in KEYS {
            let error = toml::from_str::<Settings>(&format!("{key} = {{}}")).unwrap_err();
            assert!(!error.message().contains("unknown field"), "{key}: {error}");
        }
    }
}

//! What a person sets: one TOML file, the environment, and flags.
//!
//! A flag wins over the environment, which wins over the file, which wins over the default. Flags and
//! environment are read by the command line's parser and arrive as a [`Layer`]; [`read`] reads the file and
//! joins both. What may change while the program runs is no configuration: it lives in documents.

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;
use sync::quic::DEFAULT_PORT;
use toml::{Spanned, Value};
use tracing_subscriber::EnvFilter;

use crate::failure::{Exit, Failure};

/// The file that is read when it is there and no other is named.
pub const DEFAULT_FILE: &str = "holdfast-central.toml";

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder of database, blobs, keys and the administrator's token. Default `./holdfast-central`, so that
    /// a trial needs no rights and leaves one folder behind.
    pub data_dir: PathBuf,
    /// Address for sites, UDP and TCP with the same port. Default `[::]:7443`, which serves IPv4 as well: sites
    /// are elsewhere.
    pub listen_quic: SocketAddr,
    /// TCP address for operators. Default `127.0.0.1:8443`: this version speaks HTTP without TLS.
    pub listen_http: SocketAddr,
    /// Whether operators may be served without TLS on other addresses than loopback. Default no, because
    /// their tokens travel in the clear.
    pub allow_plain_http: bool,
    /// Which log lines are written, in the syntax of `RUST_LOG`. Default `info`.
    pub log: String,
    /// Seconds between two signs of life that central expects of a session, 1 to 300. Default 30, as in
    /// the settings of a new site.
    pub heartbeat_s: u64,
    /// File that says which generation of a virtual machine this is: its content changes when a snapshot is
    /// restored or the machine is cloned, and at no other time. Default: none, because few machines have one.
    pub generation_file: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            data_dir: "holdfast-central".into(),
            listen_quic: (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into(),
            listen_http: (Ipv4Addr::LOCALHOST, 8443).into(),
            allow_plain_http: false,
            log: "info".into(),
            heartbeat_s: 30,
            generation_file: None,
        }
    }
}

/// The keys, with what their values must be.
const KEYS: [(&str, &str); 7] = [
    ("data_dir", "a path in quotes"),
    ("listen_quic", "an address and port in quotes, as in \"[::]:7443\""),
    ("listen_http", "an address and port in quotes, as in \"127.0.0.1:8443\""),
    ("allow_plain_http", "true or false"),
    ("log", "a filter in quotes, as in \"info,central=debug\""),
    ("heartbeat_s", "seconds, a whole number from 1 to 300"),
    ("generation_file", "a path in quotes"),
];

/// What one source sets; what is absent is left to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`Config::listen_quic`].
    pub listen_quic: Option<SocketAddr>,
    /// See [`Config::listen_http`].
    pub listen_http: Option<SocketAddr>,
    /// See [`Config::allow_plain_http`].
    pub allow_plain_http: Option<bool>,
    /// See [`Config::log`].
    pub log: Option<String>,
    /// See [`Config::heartbeat_s`].
    pub heartbeat_s: Option<u64>,
    /// See [`Config::generation_file`].
    pub generation_file: Option<PathBuf>,
}

/// A configuration, and the file that it was read from, if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// What holds.
    pub config: Config,
    /// The file.
    pub file: Option<PathBuf>,
}

/// Reads the file, joins it with `over` (environment and flags), and checks what cannot be.
///
/// `file` is the one that was named; without one, [`DEFAULT_FILE`] is read if it is there.
///
/// # Errors
/// When the file cannot be read or says something that cannot be, with its line.
pub fn read(file: Option<&Path>, over: Layer) -> Result<Read, Failure> {
    let found = match file {
        Some(path) => Some((path, fs::read_to_string(path).map_err(|error| unreadable(path, &error))?)),
        None => match fs::read_to_string(DEFAULT_FILE) {
            Ok(text) => Some((Path::new(DEFAULT_FILE), text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable(Path::new(DEFAULT_FILE), &error)),
        },
    };
    let (under, file) = match found {
        Some((path, text)) => (parse(path, &text)?, Some(path.to_path_buf())),
        None => (Layer::default(), None),
    };
    let config = join(over, under);
    config.check()?;
    Ok(Read { config, file })
}

fn join(over: Layer, under: Layer) -> Config {
    let default = Config::default();
    Config {
        data_dir: over.data_dir.or(under.data_dir).unwrap_or(default.data_dir),
        listen_quic: over.listen_quic.or(under.listen_quic).unwrap_or(default.listen_quic),
        listen_http: over.listen_http.or(under.listen_http).unwrap_or(default.listen_http),
        allow_plain_http: over
            .allow_plain_http
            .or(under.allow_plain_http)
            .unwrap_or(default.allow_plain_http),
        log: over.log.or(under.log).unwrap_or(default.log),
        heartbeat_s: over.heartbeat_s.or(under.heartbeat_s).unwrap_or(default.heartbeat_s),
        generation_file: over.generation_file.or(under.generation_file),
    }
}

impl Config {
    fn check(&self) -> Result<(), Failure> {
        let fail = |what: String, why: String, next: &str| Err(Failure::new(Exit::Config, what, why, next));
        if !self.listen_http.ip().is_loopback() && !self.allow_plain_http {
            return fail(
                format!("`listen_http` cannot be {}", self.listen_http),
                "this version serves operators without TLS, so their tokens would travel in the clear".into(),
                "listen on 127.0.0.1 and put a TLS proxy or an SSH tunnel in front, or accept the risk with \
                 `allow_plain_http = true`",
            );
        }
        if !(1..=300).contains(&self.heartbeat_s) {
            return fail(
                format!("`heartbeat_s` cannot be {}", self.heartbeat_s),
                "sites speak every 1 to 300 seconds".into(),
                "leave it out for 30",
            );
        }
        if let Err(error) = self.log_filter() {
            return fail(
                format!("`log` cannot be \"{}\"", self.log),
                error,
                "use a level (error, warn, info, debug, trace), or levels by module: \"info,central=debug\"",
            );
        }
        Ok(())
    }

    /// The filter that [`Config::log`] describes.
    ///
    /// # Errors
    /// When it describes none; a checked configuration does.
    pub fn log_filter(&self) -> Result<EnvFilter, String> {
        EnvFilter::try_new(&self.log).map_err(|error| error.to_string())
    }

    /// Where a program on the same machine reaches the operators' API.
    pub fn http_url(&self) -> String {
        let ip = match self.listen_http.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, self.listen_http.port()))
    }
}

impl fmt::Display for Config {
    /// The form that [`read`] reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A string of JSON is one of TOML.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        writeln!(f, "data_dir = {}", quoted(&self.data_dir.to_string_lossy()))?;
        writeln!(f, "listen_quic = \"{}\"", self.listen_quic)?;
        writeln!(f, "listen_http = \"{}\"", self.listen_http)?;
        writeln!(f, "allow_plain_http = {}", self.allow_plain_http)?;
        writeln!(f, "log = {}", quoted(&self.log))?;
        writeln!(f, "heartbeat_s = {}", self.heartbeat_s)?;
        match &self.generation_file {
            Some(file) => writeln!(f, "generation_file = {}", quoted(&file.to_string_lossy())),
            None => Ok(()),
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        Exit::Config,
        format!("the configuration {} cannot be read", path.display()),
        error.to_string(),
        "check the path and its permissions, or leave `--config` out to run with the defaults",
    )
}

/// Reads the text of a file; a path in it is relative to the folder of the file.
fn parse(path: &Path, text: &str) -> Result<Layer, Failure> {
    let wrong = |at: usize, what: String, next: String| {
        let line = text[..at.min(text.len())].matches('\n').count() + 1;
        Failure::new(
            Exit::Config,
            "the configuration cannot be used",
            format!("{}:{line}: {what}", path.display()),
            next,
        )
    };
    let entries: BTreeMap<Spanned<String>, Spanned<Value>> = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        wrong(at, error.message().to_string(), "write one `key = value` per line (TOML)".into())
    })?;
    let mut layer = Layer::default();
    for (key, value) in entries {
        let name = key.get_ref().as_str();
        let Some((_, expected)) = KEYS.iter().find(|(known, _)| *known == name) else {
            return Err(wrong(
                key.span().start,
                format!("there is no key `{name}`"),
                format!("did you mean `{}`? `holdfast-central config check` shows all keys", nearest(name)),
            ));
        };
        let at = value.span().start;
        let value = value.into_inner();
        let fits = match name {
            "data_dir" => text_of(value).map(|it: PathBuf| {
                layer.data_dir = Some(path.parent().unwrap_or(Path::new("")).join(it));
            }),
            "listen_quic" => text_of(value).map(|it| layer.listen_quic = Some(it)),
            "listen_http" => text_of(value).map(|it| layer.listen_http = Some(it)),
            "allow_plain_http" => value.as_bool().map(|it| layer.allow_plain_http = Some(it)),
            "log" => text_of(value).map(|it| layer.log = Some(it)),
            "generation_file" => text_of(value).map(|it: PathBuf| {
                layer.generation_file = Some(path.parent().unwrap_or(Path::new("")).join(it));
            }),
            "heartbeat_s" => u64::deserialize(value).ok().map(|it| layer.heartbeat_s = Some(it)),
            _ => None,
        };
        if fits.is_none() {
            return Err(wrong(
                at,
                format!("`{name}` is not {expected}"),
                format!("give `{name}` {expected}"),
            ));
        }
    }
    Ok(layer)
}

fn text_of<T: FromStr>(value: Value) -> Option<T> {
    value.as_str()?.parse().ok()
}

/// The key that differs least from `name`.
fn nearest(name: &str) -> &'static str {
    KEYS.iter().map(|(key, _)| *key).min_by_key(|key| distance(name, key)).expect("there are keys")
}

/// Characters to insert, remove or replace (Levenshtein), row by row.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: Expect) {
        let shown = match parse(Path::new("/etc/holdfast/central.toml"), text) {
            Ok(layer) => {
                let config = join(Layer::default(), layer);
                match config.check() {
                    Ok(()) => config.to_string(),
                    Err(failure) => failure.to_string(),
                }
            }
            Err(failure) => failure.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn nothing_set_is_the_defaults() {
        check(
            "",
            expect![[r#"
                data_dir = "holdfast-central"
                listen_quic = "[::]:7443"
                listen_http = "127.0.0.1:8443"
                allow_plain_http = false
                log = "info"
                heartbeat_s = 30
            "#]],
        );
    }

    #[test]
    fn what_is_printed_is_read_again() {
        let config = Config {
            data_dir: "/srv/a \"b\"".into(),
            listen_http: "0.0.0.0:80".parse().unwrap(),
            allow_plain_http: true,
            heartbeat_s: 5,
            ..Config::default()
        };
        let layer = parse(Path::new("x.toml"), &config.to_string()).unwrap();
        assert_eq!(join(Layer::default(), layer), config);
        assert_eq!(config.http_url(), "http://127.0.0.1:80");
    }

    #[test]
    fn flags_and_environment_win_over_the_file() {
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("central.toml");
        fs::write(&path, "heartbeat_s = 10\nlog = \"warn\"\ndata_dir = \"data\"\n").unwrap();
        let over = Layer { heartbeat_s: Some(20), ..Layer::default() };
        let read = read(Some(&path), over).unwrap();
        assert_eq!((read.config.heartbeat_s, read.config.log.as_str()), (20, "warn"));
        assert_eq!(read.config.data_dir, file.path().join("data"), "relative to the file");
        assert_eq!(read.file, Some(path));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_one() {
        check(
            "log = \"info\"\n\nlisten_htpp = \"127.0.0.1:1\"\n",
            expect![[r#"
                error: the configuration cannot be used
                  why: /etc/holdfast/central.toml:3: there is no key `listen_htpp`
                  next: did you mean `listen_http`? `holdfast-central config check` shows all keys"#]],
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_says_what_would_be_right() {
        check(
            "listen_quic = 7443",
            expect![[r#"
                error: the configuration cannot be used
                  why: /etc/holdfast/central.toml:1: `listen_quic` is not an address and port in quotes, as in "[::]:7443"
                  next: give `listen_quic` an address and port in quotes, as in "[::]:7443""#]],
        );
        check(
            "heartbeat_s = -1",
            expect![[r#"
                error: the configuration cannot be used
                  why: /etc/holdfast/central.toml:1: `heartbeat_s` is not seconds, a whole number from 1 to 300
                  next: give `heartbeat_s` seconds, a whole number from 1 to 300"#]],
        );
    }

    #[test]
    fn what_is_no_toml_is_shown_with_its_line() {
        check(
            "log = \"info\"\nheartbeat_s 5\n",
            expect![[r#"
            error: the configuration cannot be used
              why: /etc/holdfast/central.toml:2: key with no value, expected `=`
              next: write one `key = value` per line (TOML)"#]],
        );
    }

    #[test]
    fn operators_are_served_in_the_clear_on_loopback_only_unless_somebody_accepts_that() {
        check(
            "listen_http = \"0.0.0.0:8443\"",
            expect![[r#"
            error: `listen_http` cannot be 0.0.0.0:8443
              why: this version serves operators without TLS, so their tokens would travel in the clear
              next: listen on 127.0.0.1 and put a TLS proxy or an SSH tunnel in front, or accept the risk with `allow_plain_http = true`"#]],
        );
        check(
            "listen_http = \"0.0.0.0:8443\"\nallow_plain_http = true",
            expect![[r#"
            data_dir = "holdfast-central"
            listen_quic = "[::]:7443"
            listen_http = "0.0.0.0:8443"
            allow_plain_http = true
            log = "info"
            heartbeat_s = 30
        "#]],
        );
    }

    #[test]
    fn a_filter_that_is_none_and_a_heartbeat_out_of_range_are_refused() {
        check(
            "log = \"central=loud\"",
            expect![[r#"
            error: `log` cannot be "central=loud"
              why: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
              next: use a level (error, warn, info, debug, trace), or levels by module: "info,central=debug""#]],
        );
        check(
            "heartbeat_s = 0",
            expect![[r#"
            error: `heartbeat_s` cannot be 0
              why: sites speak every 1 to 300 seconds
              next: leave it out for 30"#]],
        );
    }

    #[test]
    fn a_file_that_was_named_must_be_there() {
        expect![[r#"
            error: the configuration /nowhere/central.toml cannot be read
              why: No such file or directory (os error 2)
              next: check the path and its permissions, or leave `--config` out to run with the defaults"#]]
        .assert_eq(
            &read(Some(Path::new("/nowhere/central.toml")), Layer::default()).unwrap_err().to_string(),
        );
    }
}

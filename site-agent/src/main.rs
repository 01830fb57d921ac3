//! `holdfast-site`: makes this machine a site, and runs it.
//!
//! Standard output is for whoever called: ids, addresses, the status. The log goes to standard error. Exit
//! status: 0 done, 1 not done, 2 a wrong command line, 3 central is asked and has not answered yet.

use std::{
    fmt::Display,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use site_agent::{
    backup,
    client::{Client, ClientError, Request, understood},
    config::{self, Config, Settings},
    desk,
    error::chain,
    event_loop::{self, Edge, Listening, client, entropy},
    identity::{DataDir, IdentityError},
    status::Status,
};
use sync::quic::{
    driver::{resolve, wall},
    enrol::{self, Token},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(
    name = "holdfast-site",
    version,
    about = "Boots and installs the machines of one site, with or without central"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Subcommand)]
enum Command {
    /// Makes this machine a site: gets its certificate from central for a token
    #[command(
        after_help = "Example: holdfast-site enroll --central central.example:7443 --token hf1.… --name lyon"
    )]
    Enroll {
        /// One-time token from central (hf1.…)
        #[arg(long, env = "HOLDFAST_SITE_TOKEN", hide_env_values = true)]
        token: String,
        /// What the site is called
        #[arg(long, env = "HOLDFAST_SITE_NAME")]
        name: String,
        /// This machine is a site already and gets another certificate: after central revoked it
        #[arg(long)]
        again: bool,
    },
    /// Serves the machines of this site until it is told to stop (SIGTERM or Ctrl-C)
    Run,
    /// Shows what works here now
    Status {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
        /// Address of the agent; by default the one that it wrote into its data folder
        #[arg(long)]
        url: Option<String>,
    },
    #[command(flatten)]
    Desk(desk::Command),
    /// Follows orders again after a restore: say so when you have looked at what the machines did since
    #[command(after_help = "Example: holdfast-site resume")]
    Resume {
        /// Address of the agent; by default the one that it wrote into its data folder
        #[arg(long)]
        url: Option<String>,
    },
    /// Copies database and keys of this site into a folder; the agent may run meanwhile
    #[command(after_help = "\
Example: holdfast-site backup --to /mnt/backup/lyon-2026-11-20

Content is not copied: the site fetches it from central again. The folder holds private keys.")]
    Backup {
        /// Folder of the backup; made, or empty
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// Puts a backup in the place of this site's database; the agent must be stopped
    #[command(after_help = "\
Examples:
  holdfast-site restore --from /mnt/backup/lyon-2026-11-20
  holdfast-site restore --from /mnt/backup/lyon-2026-11-20 --data-dir /var/lib/holdfast-site   (a new machine)

The old database stays in the folder under another name. Keys that are there stay as they are. Afterwards the
site boots machines, hears from central what it has forgotten, and follows no order until somebody confirms: with
`holdfast-site resume`, or at central.")]
    Restore {
        /// Folder of the backup
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
    /// What is configured
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Checks the configuration and prints what is in force
    Check,
}

/// Flags win over the environment, which wins over the file.
#[derive(Args)]
struct Flags {
    /// Configuration file; by default /etc/holdfast/site.toml if it is there
    #[arg(long, env = "HOLDFAST_SITE_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Folder of everything that this program keeps
    #[arg(long, env = "HOLDFAST_SITE_DATA_DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// Address by which machines reach this site
    #[arg(long, env = "HOLDFAST_SITE_BOOT_ADDRESS", global = true)]
    boot_address: Option<Ipv4Addr>,
    /// Interface to listen on for DHCP
    #[arg(long, env = "HOLDFAST_SITE_INTERFACE", global = true)]
    interface: Option<String>,
    /// Address and port of HTTP for machines
    #[arg(long, env = "HOLDFAST_SITE_LISTEN_HTTP", global = true)]
    listen_http: Option<SocketAddr>,
    /// UDP port of DHCP; 0 takes a free one
    #[arg(long, env = "HOLDFAST_SITE_DHCP_PORT", global = true)]
    dhcp_port: Option<u16>,
    /// UDP port of the boot server; 0 takes a free one
    #[arg(long, env = "HOLDFAST_SITE_PXE_PORT", global = true)]
    pxe_port: Option<u16>,
    /// UDP port of TFTP; 0 takes a free one
    #[arg(long, env = "HOLDFAST_SITE_TFTP_PORT", global = true)]
    tftp_port: Option<u16>,
    /// Whether DHCP requests are answered: true or false
    #[arg(long, env = "HOLDFAST_SITE_DHCP", global = true)]
    dhcp: Option<bool>,
    /// Folder of the boot loaders
    #[arg(long, env = "HOLDFAST_SITE_LOADERS_DIR", global = true)]
    loaders_dir: Option<PathBuf>,
    /// Central as host:port
    #[arg(long, env = "HOLDFAST_SITE_CENTRAL", global = true)]
    central: Option<String>,
    /// Seconds that the link runs over TCP before UDP is tried again
    #[arg(long, env = "HOLDFAST_SITE_TRY_UDP_AFTER_S", global = true)]
    try_udp_after_s: Option<u32>,
    /// File whose content changes when a snapshot of this virtual machine is restored, and at no other time
    #[arg(long, env = "HOLDFAST_SITE_GENERATION_FILE", global = true)]
    generation_file: Option<PathBuf>,
    /// Which log lines are written, as in `info,site_agent=debug`
    #[arg(long, env = "HOLDFAST_SITE_LOG", global = true)]
    log: Option<String>,
    /// Seconds between two questions of a machine that is held
    #[arg(long, env = "HOLDFAST_SITE_HOLD_WAIT_S", global = true)]
    hold_wait_s: Option<u32>,
    /// Questions of a machine that is held
    #[arg(long, env = "HOLDFAST_SITE_HOLD_TRIES", global = true)]
    hold_tries: Option<u32>,
    /// Days that journal entries are kept after central has them, at least 90
    #[arg(long, env = "HOLDFAST_SITE_JOURNAL_RETENTION_DAYS", global = true)]
    journal_retention_days: Option<u32>,
}

impl Flags {
    /// What is set, with the file below the flags and the environment.
    fn settings(self) -> Result<Settings, Failure> {
        let file = self.config.unwrap_or_else(|| config::DEFAULT_FILE.into());
        let below = Settings::load(&file).map_err(|error| Failure::new(chain(&error), "", error.next()))?;
        let over = Settings {
            data_dir: self.data_dir,
            boot_address: self.boot_address,
            interface: self.interface,
            listen_http: self.listen_http,
            dhcp_port: self.dhcp_port,
            pxe_port: self.pxe_port,
            tftp_port: self.tftp_port,
            dhcp: self.dhcp,
            loaders_dir: self.loaders_dir,
            central: self.central,
            try_udp_after_s: self.try_udp_after_s,
            generation_file: self.generation_file,
            log: self.log,
            hold_wait_s: self.hold_wait_s,
            hold_tries: self.hold_tries,
            journal_retention_days: self.journal_retention_days,
        };
        Ok(over.over(below))
    }

    fn complete(self) -> Result<Config, Failure> {
        let settings = self.settings()?;
        settings.complete().map_err(|error| Failure::new(&error, "", error.next()))
    }
}

/// What is said to a person when something was not done.
struct Failure(String);

impl Failure {
    fn new(what: impl Display, why: impl Display, next: impl Display) -> Self {
        let why = why.to_string();
        let why = if why.is_empty() { String::new() } else { format!("\n  why: {why}") };
        Failure(format!("error: {what}{why}\n  next: {next}"))
    }

    fn of(error: &(dyn std::error::Error + 'static), next: &str) -> Self {
        let why = error.source().map(chain).unwrap_or_default();
        Failure::new(error, why, next)
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Failure::of(&error, error.next())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Failure::new(&error, error.why(), error.next())
    }
}

/// Exit status of what is not done yet and not refused either: central is asked.
const WAITS: u8 = 3;

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(code) => code,
        Err(Failure(text)) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn start(Cli { command, flags }: Cli) -> Result<ExitCode, Failure> {
    let done = match command {
        // Only these end otherwise than done or not done.
        Command::Desk(command) => return ask(&command, flags),
        Command::Config { command: ConfigCommand::Check } => say(flags.complete()?),
        Command::Enroll { token, name, again } => {
            let settings = flags.settings()?;
            log(settings.log.as_deref().unwrap_or("warn"))?;
            runtime()?.block_on(enroll(settings, &token, &name, again))
        }
        Command::Run => {
            let config = flags.complete()?;
            log(&config.log)?;
            runtime()?.block_on(run(&config))
        }
        Command::Status { json, url } => status(&running(flags, url)?, json),
        Command::Resume { url } => resume(&running(flags, url)?),
        Command::Backup { to } => {
            let data = DataDir::at(&data_dir(&flags.settings()?));
            lines(|say| backup::save(&data, &to, wall(), say))
        }
        Command::Restore { from } => {
            let data = DataDir::open(&data_dir(&flags.settings()?))?;
            lines(|say| backup::put_back(&data, &from, wall(), say))
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| {
        Failure::new("the program cannot start its threads", error, "free memory and start again")
    })
}

fn log(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(
            format!("`{filter}` is no filter for the log"),
            error,
            "use info, debug, or info,site_agent=debug",
        )
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    Ok(())
}

fn say(text: impl Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let said = write!(out, "{text}").and_then(|()| out.flush());
    said.map_err(|error| {
        Failure::new("the answer cannot be written", error, "check where standard output goes")
    })
}

/// Does what says line by line what it does.
fn lines(work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<(), backup::Error>) -> Result<(), Failure> {
    // Whoever closed standard output does not read these lines; the work is done all the same.
    let done = work(&mut |line| drop(say(format_args!("{line}\n"))));
    done.map_err(|error| Failure::of(&error, error.next()))
}

fn data_dir(settings: &Settings) -> PathBuf {
    settings.data_dir.clone().unwrap_or_else(|| config::DEFAULT_DATA_DIR.into())
}

async fn enroll(settings: Settings, token: &str, name: &str, again: bool) -> Result<(), Failure> {
    let data = DataDir::open(&data_dir(&settings))?;
    let before = match data.enrolment() {
        Ok(enrolment) if again => Some(enrolment),
        Ok(enrolment) => return Err(IdentityError::AlreadyEnrolled { site: enrolment.site }.into()),
        Err(IdentityError::NotEnrolled { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let known = before.as_ref().map(|enrolment| enrolment.central.clone());
    let central = settings.central.or(known).ok_or_else(|| {
        Failure::new("central is not named", "", "give --central HOST:PORT; the port is 7443 unless changed")
    })?;
    let token: Token = token.parse().map_err(|error: enrol::ParseTokenError| {
        Failure::new("this is no token", error, "copy the token that central printed, whole")
    })?;
    // Stored before it is used: if the answer is lost, the same key may ask again with the same token.
    let key = if before.is_some() { data.next_key()? } else { data.key()? };
    let keys = data.endpoint_keys(entropy())?;
    let address = resolve(&central).await.map_err(|error| {
        Failure::new(
            format!("central {central} cannot be found"),
            error,
            "check the name and the port, as in host:7443",
        )
    })?;
    let endpoint = client(&keys).map_err(|error| {
        Failure::new("no UDP socket can be opened", error, "check the network of this machine")
    })?;
    let site = before.as_ref().map(|enrolment| enrolment.site);
    let enrolled = enrol::enrol(&endpoint, address, &token, name, site, &key, Arc::new(wall)).await;
    let enrolled = enrolled.map_err(|error| Failure(error.explain()))?;
    match before {
        Some(before) => drop(data.keep_next(&before.at(&central), &enrolled)?),
        None => data.keep(&enrolled, name, &central)?,
    }
    endpoint.wait_idle().await;
    say(format_args!("{}\n", enrolled.site))
}

async fn run(config: &Config) -> Result<(), Failure> {
    let ready = |listening: &Listening| {
        let mut out = io::stdout().lock();
        writeln!(out, "http {}", listening.http)?;
        if let Some((dhcp, pxe)) = listening.dhcp {
            writeln!(out, "dhcp {dhcp}\npxe {pxe}")?;
        }
        writeln!(out, "tftp {}\nready", listening.tftp)?;
        out.flush()
    };
    let no_signals = |error| Failure::new("signals cannot be watched", error, "start again");
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    event_loop::run(config, Edge::start(), ready, end)
        .await
        .map_err(|error| Failure::of(&error, error.next()))
}

/// The running agent, as this command line reaches it.
fn running(flags: Flags, url: Option<String>) -> Result<Client, Failure> {
    let data = DataDir::open(&data_dir(&flags.settings()?))?;
    Ok(Client::find(&data, url)?)
}

fn status(client: &Client, json: bool) -> Result<(), Failure> {
    let (_, text) = client.ask(&Request::get("/agent/status", "the status cannot be shown"))?;
    if json {
        return say(format_args!("{text}\n"));
    }
    let status: Status = understood(&text)?;
    say(status)
}

fn resume(client: &Client) -> Result<(), Failure> {
    let what = "orders are not followed again".into();
    let asked = Request { method: "POST", path: "/agent/resume".into(), body: Value::Null, what };
    let (_, text) = client.ask(&asked)?;
    let answer: Value = understood(&text)?;
    match answer["was_suspended"].as_bool() {
        Some(false) => say("orders were followed already; nothing was changed\n"),
        Some(true) | None => say("orders are followed again\n"),
    }
}

fn ask(command: &desk::Command, flags: Flags) -> Result<ExitCode, Failure> {
    let said = desk::run(&running(flags, command.url())?, command)?;
    say(said.text)?;
    Ok(if said.waits { ExitCode::from(WAITS) } else { ExitCode::SUCCESS })
}

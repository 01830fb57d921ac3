//! `holdfast-central`: the command line.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use central::{
    archive, backup,
    client::{self, Client},
    config::{self, Config, Layer},
    conflicts, desk,
    event_loop::{self, Edge},
    failure::{Exit, Failure},
    moves,
    server::{ADMIN_TOKEN, Server},
    tree, twins,
};
use clap::{Args, Parser, Subcommand};

const AFTER: &str = "\
Exit codes:
  0  done
  1  failed while running
  2  the command line cannot be understood
  3  the configuration cannot be used
  4  an address cannot be listened on
  5  the data folder cannot be used
  6  the server was not reached, or refused
  7  no backup was made, or none was restored

A flag wins over the environment, which wins over the file, which wins over the default.";

const SERVE_EXAMPLES: &str = "\
Examples:
  holdfast-central serve
  holdfast-central serve --data-dir /var/lib/holdfast-central
  holdfast-central serve --listen-quic 127.0.0.1:0 --listen-http 127.0.0.1:0

Prints `quic ADDRESS`, `http ADDRESS` and `ready` on stdout once it listens; logs go to stderr.
Ends in order on SIGTERM and SIGINT.";

const TOKEN_EXAMPLES: &str = "\
Examples:
  holdfast-central token create --site lyon
  holdfast-central token create --site lyon --describe 'Branch office Lyon, 2nd floor'

Prints the token alone on stdout. It is good for one machine and one day:
  holdfast-site enroll --central HOST:7443 --token TOKEN --name lyon";

const QUARANTINE_EXAMPLES: &str = "\
Examples:
  holdfast-central quarantine list --site lyon
  holdfast-central quarantine show 7
  holdfast-central quarantine export 7 --to 7.bin
  holdfast-central quarantine release 7 --why 'agreed on the phone'
  holdfast-central quarantine dismiss 8 --why 'a damaged disk'";

const CONFLICT_EXAMPLES: &str = "\
Examples:
  holdfast-central conflicts list --site lyon
  holdfast-central conflicts show 7
  holdfast-central conflicts resolve 7 --accept-site --why 'they know the machine'
  holdfast-central conflicts resolve 8 --value '{\"value\":\"till-1\"}'
  holdfast-central conflicts settle central_wins --site lyon --path hostname --dry-run
  holdfast-central conflicts revert 7 --why 'it was the other one'";

const TWIN_EXAMPLES: &str = "\
Examples:
  holdfast-central twins list
  holdfast-central twins same 93ea065b84c82c6db6c70e34dfe4b0cb --of 1f60b6ab0dc1c3b0a63d4f1a6b3a1f5e
  holdfast-central twins apart 93ea065b84c82c6db6c70e34dfe4b0cb --why 'a cloned virtual machine'";

const MIGRATION_EXAMPLES: &str = "\
Examples:
  holdfast-central migrations list --state open
  holdfast-central migrations approve 93ea065b84c82c6db6c70e34dfe4b0cb --why 'the till moved'
  holdfast-central migrations break-fence 93ea065b84c82c6db6c70e34dfe4b0cb --name till-1 --why 'the office burned down'
  holdfast-central migrations decide approve --from lyon --to bern --dry-run";

const GROUP_EXAMPLES: &str = "\
Examples:
  holdfast-central group list
  holdfast-central group create europe
  holdfast-central group create europe/france --describe 'Everything that Paris looks after'
  holdfast-central group move europe/france --below west --why 'the new regions'
  holdfast-central group move west/france --top
  holdfast-central group rename france --to gaul
  holdfast-central group set europe autonomy=full heartbeat_s=60 --why 'the links are bad there'
  holdfast-central group settings europe/france

A group is named by its path from the top, or by its id. What stands below it moves with it.";

const SITE_EXAMPLES: &str = "\
Examples:
  holdfast-central site place lyon --group europe/france
  holdfast-central site place lyon --nowhere
  holdfast-central site directory lyon --group europe
  holdfast-central site directory lyon --whole
  holdfast-central site set lyon autonomy=limited --inherit heartbeat_s
  holdfast-central site settings lyon

A site follows what it says itself, otherwise what the nearest group above it says, otherwise the default. A site stands in one group or in none. Its directory says where machines belong that are not its own: those of the
whole fleet, or of the sites in one group and below it. What is not in it is unknown there.";

const BACKUP_EXAMPLES: &str = "\
Examples:
  holdfast-central backup --to /mnt/backup/central-2026-11-20
  holdfast-central backup --to /mnt/backup/central-2026-11-20 --data-dir /var/lib/holdfast-central

The server may run meanwhile. Content is not copied: `backup.json` names it, and the folder `blobs` can be copied
at any time. The folder holds the keys of the fleet.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  holdfast-central restore --from /mnt/backup/central-2026-11-20
  holdfast-central restore --from /mnt/backup/central-2026-11-20 --data-dir /var/lib/holdfast-central   (a new machine)

The server must be stopped. The old database stays in the folder under another name; keys that are there stay as
they are. Afterwards central takes back from its sites what it has lost, and issues no order until somebody ends
its recovery with `resume`.";

const RESUME_EXAMPLES: &str = "\
Examples:
  holdfast-central resume --why 'all sites are back'
  holdfast-central resume --anyway --why 'oslo burned down'

After a restore central is in recovery: it takes back from the sites what it has lost and gives no order. Without
--anyway this waits for every site that may have something, and names those that have not given it back.";

const AUTHORITY_EXAMPLES: &str = "\
Examples:
  holdfast-central authority show
  holdfast-central authority renew
  holdfast-central authority retire

`renew` makes a successor that the present authority certifies. Sites learn of it by themselves, renew within
minutes of their next session, and trust it from then on; a site that was away gets in whenever it returns. `show`
says who has not renewed yet; once nobody is left, `retire` ends the old one. Make a backup after each.";

const JOURNAL_EXAMPLES: &str = "\
Examples:
  holdfast-central journal verify
  holdfast-central journal verify /mnt/archive/journal-4f…e1.cbor.zst
  holdfast-central journal archive --before 2026-06-01

`verify` reads the data folder, beside a running server or without one: every chain from its beginning or its
checkpoint, against the heads that sites and central signed, and names the first entry that does not fit. With a
file it proves that the archive is what was taken out. `archive` writes entries that are older than 90 days into the
folder `archive` of the data folder, and lets the database go of them.";

/// Holdfast central: the fleet, its sites, and what they boot.
#[derive(Parser)]
#[command(name = "holdfast-central", version, after_help = AFTER)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args)]
struct Settings {
    /// Configuration file (TOML) [default: holdfast-central.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_CENTRAL_CONFIG")]
    config: Option<PathBuf>,
    /// Folder of database, content and keys [default: holdfast-central]
    #[arg(long, global = true, value_name = "FOLDER", env = "HOLDFAST_CENTRAL_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// UDP address for sites [default: [::]:7443]
    #[arg(long, global = true, value_name = "ADDRESS", env = "HOLDFAST_CENTRAL_LISTEN_QUIC")]
    listen_quic: Option<SocketAddr>,
    /// TCP address for operators [default: 127.0.0.1:8443]
    #[arg(long, global = true, value_name = "ADDRESS", env = "HOLDFAST_CENTRAL_LISTEN_HTTP")]
    listen_http: Option<SocketAddr>,
    /// Serve operators without TLS on other addresses than loopback
    #[arg(long, global = true, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", env = "HOLDFAST_CENTRAL_ALLOW_PLAIN_HTTP")]
    allow_plain_http: Option<bool>,
    /// Which log lines are written, as in RUST_LOG [default: info]
    #[arg(long, global = true, value_name = "FILTER", env = "HOLDFAST_CENTRAL_LOG")]
    log: Option<String>,
    /// Seconds between signs of life of a session, 1 to 300 [default: 30]
    #[arg(long, global = true, value_name = "SECONDS", env = "HOLDFAST_CENTRAL_HEARTBEAT_S")]
    heartbeat_s: Option<u64>,
    /// File whose content changes when a snapshot of this virtual machine is restored, and at no other time
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_CENTRAL_GENERATION_FILE")]
    generation_file: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Runs central until it is asked to end
    #[command(after_help = SERVE_EXAMPLES)]
    Serve,
    /// Invites sites
    #[command(subcommand)]
    Token(TokenCommand),
    /// Shows and replaces the authority that signs all certificates
    #[command(subcommand, after_help = AUTHORITY_EXAMPLES)]
    Authority(AuthorityCommand),
    /// Proves and archives the journal
    #[command(subcommand, after_help = JOURNAL_EXAMPLES)]
    Journal(JournalCommand),
    /// Copies database and keys into a folder
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup {
        /// Folder of the backup; made, or empty
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// Puts a backup in the place of the database
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore {
        /// Folder of the backup
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
    /// Shows whether central is in recovery, and which sites have given back what they have
    #[command(after_help = "Examples:\n  holdfast-central recovery")]
    Recovery {
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Ends the recovery: central gives orders again
    #[command(after_help = RESUME_EXAMPLES)]
    Resume {
        /// Also where sites have not given back what they have
        #[arg(long)]
        anyway: bool,
        /// For the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Looks at what sites sent that was not taken, and decides what becomes of it
    #[command(after_help = QUARANTINE_EXAMPLES)]
    Quarantine {
        #[command(subcommand)]
        command: QuarantineCommand,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Looks at what central and sites disagree about, and settles it
    #[command(after_help = CONFLICT_EXAMPLES)]
    Conflicts {
        #[command(subcommand)]
        command: conflicts::Command,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Looks at machines that may be one, and says which are
    #[command(after_help = TWIN_EXAMPLES)]
    Twins {
        #[command(subcommand)]
        command: twins::Command,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Looks at machines that boot elsewhere than at home, and decides where they belong
    #[command(after_help = MIGRATION_EXAMPLES)]
    Migrations {
        #[command(subcommand)]
        command: moves::Command,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Looks at groups, makes, moves and renames them
    #[command(after_help = GROUP_EXAMPLES)]
    Group {
        #[command(subcommand)]
        command: GroupCommand,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Puts sites into groups, and says what their directories are about
    #[command(after_help = SITE_EXAMPLES)]
    Site {
        #[command(subcommand)]
        command: SiteCommand,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, global = true, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
    /// Looks at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand)]
enum GroupCommand {
    /// Lists groups by path, with their ids and the sites in them
    List,
    /// Makes a group below one that is there, or at the top
    Create {
        /// Path of the new group: a-z, 0-9 and hyphens, with `/` between
        #[arg(value_name = "PATH")]
        path: String,
        /// For people
        #[arg(long, value_name = "TEXT", default_value = "")]
        describe: String,
    },
    /// Moves a group below another one, or to the top
    Move {
        /// Path or id
        #[arg(value_name = "GROUP")]
        group: String,
        /// Path or id of the group above
        #[arg(long, value_name = "GROUP", required_unless_present = "top", conflicts_with = "top")]
        below: Option<String>,
        /// Below no other group
        #[arg(long)]
        top: bool,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Changes what the sites in a group and below it follow, unless something nearer says otherwise
    Set {
        /// Path or id
        #[arg(value_name = "GROUP")]
        group: String,
        #[command(flatten)]
        change: SettingsChange,
    },
    /// Shows what a site in this group follows that says nothing itself, and where each setting comes from
    Settings {
        /// Path or id
        #[arg(value_name = "GROUP")]
        group: String,
    },
    /// Gives a group another name
    Rename {
        /// Path or id
        #[arg(value_name = "GROUP")]
        group: String,
        /// The new name
        #[arg(long, value_name = "NAME")]
        to: String,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
}

#[derive(Args)]
struct SettingsChange {
    /// Each as key=value, such as autonomy=full
    #[arg(value_name = "KEY=VALUE", required_unless_present = "inherit", value_parser = setting)]
    said: Vec<(String, String)>,
    /// A setting that comes from above again; may be given several times
    #[arg(long, value_name = "KEY")]
    inherit: Vec<String>,
    /// Why, for the journal
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

impl SettingsChange {
    fn wanted(&self) -> tree::Change<'_> {
        tree::Change { said: &self.said, inherit: &self.inherit, why: &self.why }
    }
}

#[derive(Subcommand)]
enum SiteCommand {
    /// Puts a site into a group, or takes it out of all
    Place {
        /// Name or id
        #[arg(value_name = "SITE")]
        site: String,
        /// Path or id of the group
        #[arg(long, value_name = "GROUP", required_unless_present = "nowhere", conflicts_with = "nowhere")]
        group: Option<String>,
        /// In no group
        #[arg(long)]
        nowhere: bool,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Changes what a site says of its own settings
    Set {
        /// Name or id
        #[arg(value_name = "SITE")]
        site: String,
        #[command(flatten)]
        change: SettingsChange,
    },
    /// Shows what a site follows, and where each setting comes from
    Settings {
        /// Name or id
        #[arg(value_name = "SITE")]
        site: String,
    },
    /// Says whose machines are in the directory of a site
    Directory {
        /// Name or id
        #[arg(value_name = "SITE")]
        site: String,
        /// Those of this group and all below it, by path or id
        #[arg(long, value_name = "GROUP", required_unless_present = "whole", conflicts_with = "whole")]
        group: Option<String>,
        /// Those of the whole fleet
        #[arg(long)]
        whole: bool,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
}

#[derive(Subcommand)]
enum QuarantineCommand {
    /// Lists what was set aside, one item per line
    List {
        /// Only what this site sent: its name or id
        #[arg(long, value_name = "SITE")]
        site: Option<String>,
        /// Only what is sound and was not the site's to write
        #[arg(long)]
        denied: bool,
    },
    /// Shows what one item says, and why it was not taken
    Show {
        /// Number of the item
        item: u64,
    },
    /// Writes the bytes of one item, as they came
    Export {
        /// Number of the item
        item: u64,
        /// File to write; stdout if left out
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Writes what the item says, register by register, in your name, and takes it out
    Release {
        /// Number of the item
        item: u64,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Takes the item out for good; what it says is not done
    Dismiss {
        /// Number of the item
        item: u64,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Makes a token with which one machine becomes a site
    #[command(after_help = TOKEN_EXAMPLES)]
    Create {
        /// Name of the site: a-z, 0-9 and hyphens; described anew if there is none
        #[arg(long, value_name = "NAME")]
        site: String,
        /// For people, when the site is new
        #[arg(long, value_name = "TEXT", default_value = "")]
        describe: String,
        /// The running server [default: http:// and `listen_http`]
        #[arg(long, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
        server: Option<String>,
    },
}

#[derive(Subcommand)]
enum AuthorityCommand {
    /// Shows the authority, and who still depends on its predecessor
    Show {
        #[command(flatten)]
        server: ServerUrl,
    },
    /// Makes a successor, certified by the present authority
    Renew {
        #[command(flatten)]
        server: ServerUrl,
    },
    /// Ends the predecessor
    Retire {
        /// Even if sites are locked out, which then need new tokens
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        server: ServerUrl,
    },
}

#[derive(Subcommand)]
enum JournalCommand {
    /// Says whether the journal, or an archive of it, is what was written
    Verify {
        /// Archives; none: the database
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Writes old entries into a file and lets the database go of them
    Archive {
        /// Day or instant, in UTC: 2026-06-01 or 2026-06-01T12:00:00.000Z
        #[arg(long, value_name = "DATE")]
        before: String,
        #[command(flatten)]
        server: ServerUrl,
    },
}

#[derive(Args)]
struct ServerUrl {
    /// The running server [default: http:// and `listen_http`]
    #[arg(long, value_name = "URL", env = "HOLDFAST_CENTRAL_SERVER")]
    server: Option<String>,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Checks the configuration and prints what holds
    #[command(after_help = "Examples:\n  holdfast-central config check --config /etc/holdfast/central.toml")]
    Check,
}

fn main() -> ExitCode {
    let Cli { command, settings } = Cli::parse();
    match run(command, settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(command: Command, settings: Settings) -> Result<(), Failure> {
    let file = settings.config.clone();
    let config::Read { config, file } = config::read(file.as_deref(), settings.into())?;
    match command {
        Command::Serve => serve(&config),
        Command::Token(TokenCommand::Create { site, describe, server }) => {
            let url = server.unwrap_or_else(|| config.http_url());
            create_token(&config, &url, &site, &describe)
        }
        Command::Journal(command) => journal(&config, command),
        Command::Authority(command) => authority(&config, command),
        Command::Quarantine { command, server } => {
            let url = server.unwrap_or_else(|| config.http_url());
            quarantine(&Client::open(&url, &config.data_dir.join(ADMIN_TOKEN))?, command)
        }
        Command::Backup { to } => {
            backup::save(&config.data_dir, &to, Edge::of_this_machine().now(), &mut say_line)
        }
        Command::Restore { from } => {
            backup::put_back(&config.data_dir, &from, Edge::of_this_machine().now(), &mut say_line)
        }
        Command::Recovery { server } => show_recovery(&client(&config, server)?.recovery()?),
        Command::Resume { anyway, why, server } => resume(&client(&config, server)?, anyway, &why),
        Command::Conflicts { command, server } => say(&conflicts::run(&client(&config, server)?, command)?),
        Command::Twins { command, server } => say(&twins::run(&client(&config, server)?, command)?),
        Command::Migrations { command, server } => say(&moves::run(&client(&config, server)?, command)?),
        Command::Group { command, server } => groups(&client(&config, server)?, command),
        Command::Site { command, server } => sites(&client(&config, server)?, command),
        Command::Config(ConfigCommand::Check) => {
            let source = file.map_or("no file; defaults".into(), |file| file.display().to_string());
            say(&format!("# {source}, environment and flags\n{config}"))
        }
    }
}

fn serve(config: &Config) -> Result<(), Failure> {
    let filter = config.log_filter().expect("a checked configuration has a filter");
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Failure::new(
            Exit::Running,
            "the program could not start its threads",
            error.to_string(),
            "raise the limits on threads and open files of this user",
        )
    })?;
    let announce = |server: &Server| {
        // Whoever closed stdout does not wait for these lines.
        drop(say(&format!("quic {}\nhttp {}\nready\n", server.quic(), server.http())));
    };
    runtime.block_on(event_loop::serve(config, announce))
}

/// The running server, as this command line reaches it.
fn client(config: &Config, server: Option<String>) -> Result<Client, Failure> {
    let url = server.unwrap_or_else(|| config.http_url());
    Client::open(&url, &config.data_dir.join(ADMIN_TOKEN))
}

fn show_recovery(found: &serde_json::Value) -> Result<(), Failure> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("never").to_string();
    if found["recovering"] != true {
        return say("central is not in recovery\n");
    }
    let mut lines = format!("in recovery since {}: {}\n", text(&found["since"]), text(&found["why"]));
    for site in found["sites"].as_array().into_iter().flatten() {
        let (name, stage) = (client::name_of(site), text(&site["stage"]));
        lines += &format!("  {stage:<10} {name}, last heard {}\n", text(&site["heard_at"]));
    }
    say(&lines)
}

fn resume(client: &Client, anyway: bool, why: &str) -> Result<(), Failure> {
    let (was, without) = client.resume(why, anyway)?;
    if !without.is_empty() {
        eprintln!("these sites have not given back what they have: {}", without.join(", "));
        eprintln!(
            "what they give back later is taken all the same; orders for their machines may contradict it"
        );
    }
    say(if was {
        "the recovery is over; central gives orders again\n"
    } else {
        "central was not in recovery; nothing was changed\n"
    })
}

fn create_token(config: &Config, url: &str, site: &str, describe: &str) -> Result<(), Failure> {
    let client = Client::open(url, &config.data_dir.join(ADMIN_TOKEN))?;
    let invitation = client.invite(site, describe)?;
    if invitation.is_new {
        eprintln!("site {site} is new");
    } else if !describe.is_empty() {
        eprintln!("site {site} is there already; its description stays as it is");
    }
    eprintln!("good for one machine until {}", invitation.expires_at);
    say(&format!("{}\n", invitation.token))
}

fn journal(config: &Config, command: JournalCommand) -> Result<(), Failure> {
    match command {
        JournalCommand::Verify { files } if files.is_empty() => {
            archive::verify(&config.data_dir, &mut say_line)
        }
        JournalCommand::Verify { files } => {
            files.iter().try_for_each(|file| archive::verify_file(&config.data_dir, file, &mut say_line))
        }
        JournalCommand::Archive { before, server } => {
            let url = server.server.unwrap_or_else(|| config.http_url());
            let client = Client::open(&url, &config.data_dir.join(ADMIN_TOKEN))?;
            let before = if before.len() == 10 { before + "T00:00:00.000Z" } else { before };
            let made = client.archive_journal(&before)?;
            say(&format!("{}\n{} entries\n", made["file"].as_str().unwrap_or("?"), made["entries"]))
        }
    }
}

fn authority(config: &Config, command: AuthorityCommand) -> Result<(), Failure> {
    let (AuthorityCommand::Show { server }
    | AuthorityCommand::Renew { server }
    | AuthorityCommand::Retire { server, .. }) = &command;
    let url = server.server.clone().unwrap_or_else(|| config.http_url());
    let client = Client::open(&url, &config.data_dir.join(ADMIN_TOKEN))?;
    let shown = match command {
        AuthorityCommand::Show { .. } => client.authority()?,
        AuthorityCommand::Renew { .. } => client.renew_authority()?,
        AuthorityCommand::Retire { force, .. } => client.retire_authority(force)?,
    };
    say(&client::authority_text(&shown))
}

fn quarantine(client: &Client, command: QuarantineCommand) -> Result<(), Failure> {
    match command {
        QuarantineCommand::List { site, denied } => say(&desk::list(client, site.as_deref(), denied)?),
        QuarantineCommand::Show { item } => say(&desk::show(client, item)?),
        QuarantineCommand::Export { item, to } => {
            let bytes = desk::export(client, item, to.as_deref())?;
            if to.is_none() { write(&bytes) } else { Ok(()) }
        }
        QuarantineCommand::Release { item, why } => say(&desk::decide(client, item, "release", &why)?),
        QuarantineCommand::Dismiss { item, why } => say(&desk::decide(client, item, "dismiss", &why)?),
    }
}

/// A setting on the command line.
fn setting(text: &str) -> Result<(String, String), String> {
    let said = text.split_once('=').map(|(key, value)| (key.to_string(), value.to_string()));
    said.ok_or_else(|| "a setting is written as key=value, such as autonomy=full".to_string())
}

fn groups(client: &Client, command: GroupCommand) -> Result<(), Failure> {
    say(&match command {
        GroupCommand::List => tree::list(client)?,
        GroupCommand::Create { path, describe } => tree::create(client, &path, &describe)?,
        GroupCommand::Move { group, below, top: _, why } => {
            tree::edit(client, &group, None, Some(below.as_deref()), &why)?
        }
        GroupCommand::Set { group, change } => tree::set_group(client, &group, &change.wanted())?,
        GroupCommand::Settings { group } => tree::show_group(client, &group)?,
        GroupCommand::Rename { group, to, why } => tree::edit(client, &group, Some(&to), None, &why)?,
    })
}

fn sites(client: &Client, command: SiteCommand) -> Result<(), Failure> {
    say(&match command {
        SiteCommand::Place { site, group, nowhere: _, why } => {
            tree::place(client, &site, group.as_deref(), &why)?
        }
        SiteCommand::Set { site, change } => tree::set_site(client, &site, &change.wanted())?,
        SiteCommand::Settings { site } => tree::show_site(client, &site)?,
        SiteCommand::Directory { site, group, whole: _, why } => {
            tree::domain(client, &site, group.as_deref(), &why)?
        }
    })
}

/// Tells what is being done. Whoever closed stdout does not read it; the work is done all the same.
fn say_line(line: &str) {
    drop(say(&format!("{line}\n")));
}

fn say(text: &str) -> Result<(), Failure> {
    write(text.as_bytes())
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| {
        Failure::new(
            Exit::Running,
            "the answer could not be written to stdout",
            error.to_string(),
            "check where stdout leads to",
        )
    })
}

impl From<Settings> for Layer {
    fn from(settings: Settings) -> Self {
        let Settings {
            config: _,
            data_dir,
            listen_quic,
            listen_http,
            allow_plain_http,
            log,
            heartbeat_s,
            generation_file,
        } = settings;
        Layer { data_dir, listen_quic, listen_http, allow_plain_http, log, heartbeat_s, generation_file }
    }
}

//! Disagreements on the command line: what both sides say, who wins, and what a person decides.

use serde_json::{Value, json};

use crate::{
    client::Client,
    desk::{escaped, text},
    failure::Failure,
};

/// What can be asked.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Lists disagreements that are open, one per line
    List {
        /// Only those about this site: its name or id
        #[arg(long, value_name = "SITE")]
        site: Option<String>,
        /// Those that ended as well
        #[arg(long)]
        all: bool,
    },
    /// Shows one with what every side says, who said it, when and why
    Show {
        /// Number of the conflict
        conflict: u64,
    },
    /// Settles one: takes a side, or a value of your own
    Resolve {
        /// Number of the conflict
        conflict: u64,
        #[command(flatten)]
        choice: Choice,
        /// Only say what would become of it
        #[arg(long)]
        dry_run: bool,
        /// Why, for the journal and the other side
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Settles all that are open, or some, in one way
    Settle {
        /// central_wins, site_wins or last_write
        strategy: String,
        /// Only those about this site: its name or id
        #[arg(long, value_name = "SITE")]
        site: Option<String>,
        /// Only those of this register, as hostname or tags/rack
        #[arg(long, value_name = "PATH")]
        path: Option<String>,
        /// Also those by which a machine would newly be wiped or retired
        #[arg(long)]
        destructive: bool,
        /// Only say what would become of them
        #[arg(long)]
        dry_run: bool,
        /// Why, for the journal and the other side
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Takes back how one ended, in favour of another side
    Revert {
        /// Number of the conflict
        conflict: u64,
        /// The side that shall count, where there are more than two
        #[arg(long, value_name = "SIDE")]
        to: Option<String>,
        /// Why, for the journal and the other side
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
}

/// Whose word shall count.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Choice {
    /// What was written at central
    #[arg(long)]
    accept_central: bool,
    /// What was written at the site
    #[arg(long)]
    accept_site: bool,
    /// One side, by what `show` calls it
    #[arg(long, value_name = "SIDE")]
    side: Option<String>,
    /// The fields of the register, as JSON
    #[arg(long, value_name = "JSON", value_parser = parsed)]
    value: Option<Value>,
}

fn parsed(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("{error}; write it like {{\"value\":\"till-1\"}}"))
}

/// Does what was asked; gives what is to be said.
///
/// # Errors
/// When the server is not reached or refuses.
pub fn run(client: &Client, command: Command) -> Result<String, Failure> {
    match command {
        Command::List { site, all } => list(client, site.as_deref(), all),
        Command::Show { conflict } => show(client, conflict),
        Command::Resolve { conflict, choice, dry_run, why } => {
            let resolution = match (choice.accept_central, choice.accept_site) {
                (true, _) => Some("accepted_central"),
                (_, true) => Some("accepted_site"),
                (false, false) => None,
            };
            let decision = json!({
                "resolution": resolution, "side": choice.side, "value": choice.value, "dry_run": dry_run, "why": why
            });
            resolve(client, conflict, &decision)
        }
        Command::Settle { strategy, site, path, destructive, dry_run, why } => {
            let decision = json!({
                "strategy": strategy, "site": site, "path": path, "destructive": destructive, "dry_run": dry_run, "why": why
            });
            resolve_many(client, &decision)
        }
        Command::Revert { conflict, to, why } => revert(client, conflict, to.as_deref(), &why),
    }
}

/// Lists disagreements, one per line; those that ended too, where `all` are wanted.
fn list(client: &Client, site: Option<&str>, all: bool) -> Result<String, Failure> {
    let mut query = vec!["limit=1000".to_string()];
    query.extend(site.map(|site| format!("site={}", escaped(site))));
    query.extend((!all).then(|| "open=true".to_string()));
    let items =
        client.list("the conflicts cannot be listed", &format!("/sync/conflicts?{}", query.join("&")))?;
    Ok(items.iter().map(line).collect())
}

/// Shows one with every side.
fn show(client: &Client, conflict: u64) -> Result<String, Failure> {
    let what = format!("conflict {conflict} cannot be shown");
    Ok(told(&client.get(&what, &format!("/sync/conflicts/{conflict}"))?))
}

/// Settles one; `decision` is the body of the request.
fn resolve(client: &Client, conflict: u64, decision: &Value) -> Result<String, Failure> {
    let what = format!("conflict {conflict} is still open");
    let path = format!("/sync/conflicts/{conflict}/resolve");
    client.change(&what, "POST", &path, decision).map(|done| decided(&done))
}

/// Settles many by a strategy; `decision` is the body of the request.
fn resolve_many(client: &Client, decision: &Value) -> Result<String, Failure> {
    let what = "the conflicts are still open";
    let done = client.change(what, "POST", "/sync/conflicts/resolve", decision)?;
    let lines: String = done["items"].as_array().into_iter().flatten().map(decided).collect();
    Ok(format!("{lines}{} settled, {} left open\n", done["settled"], done["left"]))
}

/// Takes back how one ended.
fn revert(client: &Client, conflict: u64, to: Option<&str>, why: &str) -> Result<String, Failure> {
    let what = format!("conflict {conflict} stays as it ended");
    let path = format!("/sync/conflicts/{conflict}/revert");
    client.change(&what, "POST", &path, &json!({ "to": to, "why": why })).map(|done| decided(&done))
}

fn line(item: &Value) -> String {
    format!(
        "{}\t{}\t{}\t{} {}\t{}\t{}\n",
        item["conflict"],
        text(item, "opened_at"),
        if item["home_name"].is_null() { "no site".into() } else { text(item, "home_name") },
        text(item, "kind"),
        text(item, "document"),
        text(item, "path"),
        standing(item),
    )
}

/// Why it is open, or how it ended.
fn standing(item: &Value) -> String {
    let ended = &item["ended"];
    match (ended.is_null(), item["reason"].is_null()) {
        (false, _) => format!("{} by {}", text(ended, "resolution"), text(ended, "by")),
        (true, false) => text(item, "reason"),
        (true, true) => "open".to_string(),
    }
}

fn told(item: &Value) -> String {
    let mut told = format!(
        "conflict {}: `{}` of {} {}\n",
        item["conflict"],
        text(item, "path"),
        text(item, "kind"),
        text(item, "document")
    );
    if !item["agreed"].is_null() {
        told += &format!("  before: {}\n", item["agreed"]);
    }
    for side in item["sides"].as_array().into_iter().flatten() {
        told += &format!(
            "  {}: {}\n    by {} at {}, side {}",
            text(side, "site_name"),
            side["value"],
            text(side, "by"),
            text(side, "at"),
            text(side, "nonce")
        );
        let why = text(side, "why");
        told += &if why.is_empty() { "\n".to_string() } else { format!(", because: {why}\n") };
    }
    let ended = &item["ended"];
    if ended.is_null() {
        return told + &format!("  open: {}\n", standing(item));
    }
    told += &format!("  {}: {}, {}\n", standing(item), ended["value"], text(ended, "why"));
    if !ended["reverted_by"].is_null() {
        told += &format!("  taken back by {}\n", text(ended, "reverted_by"));
    }
    told
}

fn decided(done: &Value) -> String {
    let of = format!(
        "{}\t{} of {} {}",
        done["conflict"],
        text(done, "path"),
        text(done, "kind"),
        text(done, "document")
    );
    match done["left"].is_null() {
        true => format!("{of}\t{}\t{}\n", text(done, "resolution"), done["value"]),
        false => format!("{of}\tleft open: {}\n", text(done, "left")),
    }
}

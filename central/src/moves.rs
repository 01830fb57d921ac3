//! Claims on the command line: which machines boot elsewhere than at home, and what becomes of them.

use serde_json::{Value, json};

use crate::{client::Client, desk::escaped, failure::Failure};

/// What can be asked.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Lists claims, one per line
    List {
        /// Only those of machines that boot at this site: its name or id
        #[arg(long, value_name = "SITE")]
        to: Option<String>,
        /// Only those of machines at home at this site
        #[arg(long, value_name = "SITE")]
        from: Option<String>,
        /// Only those in this state: open, approved, rejected, expired or withdrawn
        #[arg(long, value_name = "STATE")]
        state: Option<String>,
    },
    /// Shows one claim with its evidence, beside what is known of the machine
    Show {
        /// Id of the claim
        claim: String,
    },
    /// Approves a claim: the machine belongs where it boots
    Approve {
        /// Id of the claim
        claim: String,
        /// Why, for the journal and both sites
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Rejects a claim: the machine returns to its home
    Reject {
        /// Id of the claim
        claim: String,
        /// Why, for the journal and both sites
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Breaks the fence of a move, where its former site will not come back
    BreakFence {
        /// Id of the claim
        claim: String,
        /// Name of the machine, or its first address: a word typed by hand
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Why, for the journal and both sites
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Decides all open claims between sites alike, as when an office moves
    Decide {
        /// approve or reject
        #[arg(value_parser = ["approve", "reject"])]
        verdict: String,
        /// Only those of machines that boot at this site: its name or id
        #[arg(long, value_name = "SITE")]
        to: Option<String>,
        /// Only those of machines at home at this site
        #[arg(long, value_name = "SITE")]
        from: Option<String>,
        /// Only say what would become of them
        #[arg(long)]
        dry_run: bool,
        /// Why, for the journal and both sites
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
}

/// Does what was asked; gives what is to be said.
///
/// # Errors
/// When the server is not reached or refuses.
pub fn run(client: &Client, command: Command) -> Result<String, Failure> {
    match command {
        Command::List { to, from, state } => {
            list(client, Wanted { to: to.as_deref(), from: from.as_deref(), state: state.as_deref() })
        }
        Command::Show { claim } => show(client, &claim),
        Command::Approve { claim, why } => decide(client, &claim, true, &why),
        Command::Reject { claim, why } => decide(client, &claim, false, &why),
        Command::BreakFence { claim, name, why } => break_fence(client, &claim, &name, &why),
        Command::Decide { verdict, to, from, dry_run, why } => {
            let wanted = Wanted { to: to.as_deref(), from: from.as_deref(), state: None };
            decide_many(client, wanted, verdict == "approve", &why, dry_run)
        }
    }
}

/// Which claims are meant.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted<'a> {
    /// Of machines that boot at this site.
    to: Option<&'a str>,
    /// Of machines at home at this site.
    from: Option<&'a str>,
    /// In this state.
    state: Option<&'a str>,
}

/// Lists claims, one per line.
fn list(client: &Client, wanted: Wanted<'_>) -> Result<String, Failure> {
    let mut query = vec!["limit=1000".to_string()];
    for (name, value) in [("to", wanted.to), ("from", wanted.from), ("state", wanted.state)] {
        query.extend(value.map(|value| format!("{name}={}", escaped(value))));
    }
    let claims = client.list("the claims cannot be listed", &format!("/migrations?{}", query.join("&")))?;
    Ok(claims.iter().map(line).collect())
}

/// Shows one claim, beside what is known of the machine.
fn show(client: &Client, claim: &str) -> Result<String, Failure> {
    let what = format!("claim {claim} cannot be shown");
    Ok(told(&client.get(&what, &format!("/migrations/{}", escaped(claim)))?))
}

/// Approves or rejects one claim.
fn decide(client: &Client, claim: &str, approves: bool, why: &str) -> Result<String, Failure> {
    let verb = if approves { "approve" } else { "reject" };
    let what = format!("claim {claim} was not decided");
    client.decide(&what, &format!("/migrations/{}/{verb}", escaped(claim)), why).map(|done| told(&done))
}

/// Breaks the fence of a move, by the name of the machine.
fn break_fence(client: &Client, claim: &str, name: &str, why: &str) -> Result<String, Failure> {
    let what = format!("the fence of claim {claim} stands");
    let path = format!("/migrations/{}/break-fence", escaped(claim));
    client.change(&what, "POST", &path, &json!({ "name": name, "why": why })).map(|done| told(&done))
}

/// Decides many open claims alike, or shows what that would do.
fn decide_many(
    client: &Client,
    wanted: Wanted<'_>,
    approves: bool,
    why: &str,
    preview: bool,
) -> Result<String, Failure> {
    let body = json!({
        "approve": approves, "to": wanted.to, "from": wanted.from, "why": why, "dry_run": preview,
    });
    let done = client.change("the claims were not decided", "POST", "/migrations/decide", &body)?;
    let items = done["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut text: String = items
        .iter()
        .map(|item| match item["why_not"].as_str() {
            Some(why) => format!("{}\tnot decided: {}\n", text(&item["claim"], "id"), shown(why)),
            None => line(&item["claim"]),
        })
        .collect();
    let verb = if preview { "would be decided" } else { "decided" };
    text += &format!("{} of {} {verb}\n", done["decided"], items.len());
    Ok(text)
}

fn line(claim: &Value) -> String {
    format!(
        "{}\t{}\t{}\t{} to {}\t{}\n",
        text(claim, "id"),
        text(claim, "state"),
        text(claim, "node"),
        text(claim, "from_name"),
        text(claim, "to_name"),
        text(claim, "reason"),
    )
}

fn told(claim: &Value) -> String {
    let mut told = line(claim);
    for (name, field) in [
        ("boots there since", "first_seen"),
        ("ends", "expires_at"),
        ("by", "policy_matched"),
        ("decided by", "decided_by"),
    ] {
        if !claim[field].is_null() {
            told += &format!("  {name}\t{}\n", text(claim, field));
        }
    }
    told += &format!("  seen there\t{}\n", shown(&claim["evidence"].to_string()));
    if claim["machine"].is_object() {
        told += &format!("  known\t{}\n", shown(&claim["machine"].to_string()));
    }
    if claim["fence"].is_object() {
        let state = if claim["fence"]["closed"] == true { "closed" } else { "open" };
        told += &format!("  fence\t{state}: {}\n", text(&claim["fence"], "reason"));
    }
    told
}

fn text(of: &Value, field: &str) -> String {
    match &of[field] {
        Value::String(text) => shown(text),
        other => other.to_string(),
    }
}

/// Some of it a stranger wrote: nothing in it moves the cursor of a terminal.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p8_a_claim_is_told_in_words_and_nothing_in_it_reaches_the_terminal_raw() {
        let claim = json!({
            "id": "6b9d", "state": "approved", "node": "93ea", "from_name": "lyon", "to_name": "bern",
            "reason": "it stands\u{1b}[2J there", "first_seen": "2026-11-21T02:18:52.325Z", "expires_at": null,
            "policy_matched": null, "decided_by": "ann", "evidence": { "serial": "1\u{7}2" },
            "machine": null, "fence": { "closed": true, "reason": "lyon may hold an order" },
        });
        expect_test::expect![[r#"
            6b9d	approved	93ea	lyon to bern	it stands�[2J there
              boots there since	2026-11-21T02:18:52.325Z
              decided by	ann
              seen there	{"serial":"1\u00072"}
              fence	closed: lyon may hold an order
        "#]]
        .assert_eq(&told(&claim));
    }
}

//! The quarantine on the command line: what sites sent that was not taken, in words.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    client::Client,
    failure::{Exit, Failure},
};

/// Lists items, one per line.
///
/// # Errors
/// When the server is not reached or refuses.
pub fn list(client: &Client, site: Option<&str>, denied: bool) -> Result<String, Failure> {
    let mut query = vec!["limit=1000".to_string()];
    query.extend(site.map(|site| format!("site={}", escaped(site))));
    query.extend(denied.then(|| "denied=true".to_string()));
    let items =
        client.list("the quarantine cannot be listed", &format!("/quarantine?{}", query.join("&")))?;
    Ok(items.iter().map(line).collect())
}

/// Shows what one item says.
///
/// # Errors
/// As [`list`].
pub fn show(client: &Client, item: u64) -> Result<String, Failure> {
    let what = format!("item {item} cannot be shown");
    Ok(told(&client.get(&what, &format!("/quarantine/{item}"))?))
}

/// Reads the bytes of one item, and writes them to a file if one is named.
///
/// # Errors
/// As [`list`]; and when the file cannot be written.
pub fn export(client: &Client, item: u64, to: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let what = format!("item {item} cannot be exported");
    let bytes = client.bytes(&what, &format!("/quarantine/{item}/bytes"))?;
    if let Some(path) = to {
        fs::write(path, &bytes).map_err(|error| {
            Failure::new(
                Exit::Running,
                what,
                format!("{} cannot be written: {error}", path.display()),
                "name a file in a folder that is there",
            )
        })?;
    }
    Ok(bytes)
}

/// Releases or dismisses one item.
///
/// # Errors
/// As [`list`].
pub fn decide(client: &Client, item: u64, decision: &str, why: &str) -> Result<String, Failure> {
    let what = format!("item {item} was not taken out");
    let done = client.decide(&what, &format!("/quarantine/{item}/{decision}"), why)?;
    let word = if decision == "release" { "released" } else { "dismissed" };
    Ok(format!("item {item} of {} is {word}\n", text(&done, "site_name")))
}

fn line(item: &Value) -> String {
    format!(
        "{}\t{}\t{}\t{} {}\t{}\t{}\n",
        item["item"],
        text(item, "at"),
        text(item, "site_name"),
        text(item, "kind"),
        text(item, "document"),
        verdict(item),
        text(item, "reason"),
    )
}

fn told(item: &Value) -> String {
    let mut told = format!(
        "item {} of {}, {}: {} bytes, digest {}\nfor {} {}\n{}: {}\n",
        item["item"],
        text(item, "site_name"),
        text(item, "at"),
        item["size"],
        text(item, "digest"),
        text(item, "kind"),
        text(item, "document"),
        verdict(item),
        text(item, "reason"),
    );
    if let Some(change) = item["change"].as_object() {
        let of = |field: &str| change.get(field).map(plain).unwrap_or_default();
        told += &format!(
            "change {}, number {} of actor {}, at {}\n",
            of("hash"),
            of("seq"),
            of("actor"),
            of("at")
        );
    }
    for register in item["registers"].as_array().into_iter().flatten() {
        told += &format!("  {} = {}\n", text(register, "path"), register["value"]);
        told += &format!(
            "    by {} at {}, {}, settings epoch {}",
            text(register, "by"),
            text(register, "site"),
            text(register, "at"),
            register["policy_epoch"]
        );
        let why = text(register, "why");
        told += &if why.is_empty() { "\n".to_string() } else { format!(", because: {why}\n") };
    }
    if item["entry"].is_object() {
        told += &format!("entry {}\n", item["entry"]);
    }
    if let Some(why) = item["unreadable"].as_str() {
        told += &format!("cannot be read further: {why}\n");
    }
    told
}

fn verdict(item: &Value) -> &'static str {
    if item["denied"] == true { "denied" } else { "unsound" }
}

pub(crate) fn text(value: &Value, field: &str) -> String {
    plain(&value[field])
}

/// Text as it is, without what could move the cursor of a terminal: some of it a stranger wrote.
fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A name in a query or path, RFC 3986 §2.1.
pub(crate) fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn h6_an_item_is_told_in_words_and_nothing_in_it_reaches_the_terminal_raw() {
        let item = json!({
            "item": 7, "site_name": "lyon", "at": "2026-11-20T08:00:00.000Z", "size": 213, "digest": "00ff",
            "kind": "node", "document": "0707", "denied": true, "reason": "not lyon's to write",
            "change": { "hash": "aa", "seq": 3, "actor": "bb", "at": "2026-11-20T07:59:00.000Z", "follows": [] },
            "registers": [{
                "path": "wanted", "value": { "wanted": "retired" }, "by": "bob\u{1b}[2J", "site": "02",
                "at": "2026-11-20T07:59:00.000Z", "why": "old", "policy_epoch": 1
            }],
            "entry": null, "unreadable": null,
        });
        expect_test::expect![[r#"
            7	2026-11-20T08:00:00.000Z	lyon	node 0707	denied	not lyon's to write
            item 7 of lyon, 2026-11-20T08:00:00.000Z: 213 bytes, digest 00ff
            for node 0707
            denied: not lyon's to write
            change aa, number 3 of actor bb, at 2026-11-20T07:59:00.000Z
              wanted = {"wanted":"retired"}
                by bob�[2J at 02, 2026-11-20T07:59:00.000Z, settings epoch 1, because: old
        "#]]
        .assert_eq(&format!("{}{}", line(&item), told(&item)));
        assert_eq!(escaped("lyon & co"), "lyon%20%26%20co");
    }
}

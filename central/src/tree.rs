//! Groups on the command line: which there are, which sites stand in them, whose machines a site knows, and the settings
//! of both.

use serde_json::{Value, json};
use sync::document::settings::Key;

use crate::{client::Client, desk::escaped, failure::Failure};

/// Lists groups by their paths, one per line, with the sites that stand in them or below.
///
/// # Errors
/// When the server is not reached or refuses; so below.
pub fn list(client: &Client) -> Result<String, Failure> {
    let groups = client.list("the groups cannot be listed", "/groups?limit=1000")?;
    let mut lines: Vec<String> = groups.iter().map(line).collect();
    lines.sort();
    Ok(lines.concat())
}

/// Makes the group that a path ends in; the groups before it are there.
///
/// # Errors
/// As [`list`].
pub fn create(client: &Client, path: &str, description: &str) -> Result<String, Failure> {
    let (parent, name) = path.rsplit_once('/').map_or((None, path), |(parent, name)| (Some(parent), name));
    let body = json!({ "name": name, "description": description, "parent": parent });
    client.change(&format!("group `{path}` was not made"), "POST", "/groups", &body).map(|made| line(&made))
}

/// Gives a group another name, or another place: below a group, or at the top.
///
/// # Errors
/// As [`list`].
pub fn edit(
    client: &Client,
    group: &str,
    name: Option<&str>,
    parent: Option<Option<&str>>,
    why: &str,
) -> Result<String, Failure> {
    let mut body = json!({ "why": why });
    if let Some(name) = name {
        body["name"] = json!(name);
    }
    if let Some(parent) = parent {
        body["parent"] = json!(parent);
    }
    let what = format!("group `{group}` was not changed");
    client.change(&what, "PATCH", &format!("/groups/{}", escaped(group)), &body).map(|changed| line(&changed))
}

/// Puts a site into a group, or takes it out of all.
///
/// # Errors
/// As [`list`].
pub fn place(client: &Client, site: &str, group: Option<&str>, why: &str) -> Result<String, Failure> {
    let what = format!("site `{site}` stays where it is");
    let path = format!("/sites/{}/group", escaped(site));
    let done = client.change(&what, "PUT", &path, &json!({ "group": group, "why": why }))?;
    let place = done["group_path"].as_str().map_or("in no group".into(), |path| format!("in {path}"));
    Ok(format!("site {} stands {place}\n", text(&done, "name")))
}

/// Says whose machines a site knows: those of a group and all below it, or of the whole fleet.
///
/// # Errors
/// As [`list`].
pub fn domain(client: &Client, site: &str, group: Option<&str>, why: &str) -> Result<String, Failure> {
    let what = format!("the directory of site `{site}` stays as it is");
    let path = format!("/sites/{}/directory_domain", escaped(site));
    let done = client.change(&what, "PUT", &path, &json!({ "group": group, "why": why }))?;
    let directory = &done["directory"];
    let of = match directory["domain"].as_str() {
        Some(path) => format!("{path}: {}", names(&directory["sites"])),
        None => "the whole fleet".into(),
    };
    Ok(format!("site {} hears of the machines of {of}\n", text(&done, "name")))
}

/// Changes what a site says of its settings, and shows what it follows then.
///
/// # Errors
/// As [`list`].
pub fn set_site(client: &Client, site: &str, change: &Change<'_>) -> Result<String, Failure> {
    let what = format!("the settings of site `{site}` were not changed");
    let path = format!("/sites/{}", escaped(site));
    client.change(&what, "PATCH", &path, &change.body()).map(|done| settings(&done))
}

/// Changes what a group says of the settings of the sites in it and below. Shows what such a site follows then.
///
/// # Errors
/// As [`list`].
pub fn set_group(client: &Client, group: &str, change: &Change<'_>) -> Result<String, Failure> {
    let what = format!("the settings of group `{group}` were not changed");
    let path = format!("/groups/{}", escaped(group));
    client.change(&what, "PATCH", &format!("{path}/settings"), &change.body())?;
    show_group(client, group)
}

/// Shows what a site follows, each setting with where it comes from.
///
/// # Errors
/// As [`list`].
pub fn show_site(client: &Client, site: &str) -> Result<String, Failure> {
    let what = format!("the settings of site `{site}` cannot be shown");
    client.get(&what, &format!("/sites/{}", escaped(site))).map(|site| settings(&site))
}

/// Shows what a site follows that stands in a group and says nothing itself.
///
/// # Errors
/// As [`list`].
pub fn show_group(client: &Client, group: &str) -> Result<String, Failure> {
    let what = format!("the settings of group `{group}` cannot be shown");
    let effective = client.get(&what, &format!("/groups/{}/effective", escaped(group)))?;
    Ok(table(&effective, &effective["origins"]))
}

/// Settings that somebody wants to change.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Settings and their values.
    pub said: &'a [(String, String)],
    /// Keys that are to come from above again.
    pub inherit: &'a [String],
    /// For the journal.
    pub why: &'a str,
}

impl Change<'_> {
    fn body(&self) -> Value {
        let mut body = json!({ "why": self.why, "inherit": self.inherit });
        for (key, value) in self.said {
            // Numbers and yes or no are no text.
            body[key] = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
        }
        body
    }
}

fn settings(site: &Value) -> String {
    let effective = &site["effective"];
    let epoch = &effective["epoch"];
    format!(
        "site {}, settings epoch {epoch}\n{}",
        text(site, "name"),
        table(effective, &site["settings_from"])
    )
}

fn table(effective: &Value, origins: &Value) -> String {
    let line = |key: &Key| {
        let value = &effective[key.as_str()];
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        let from = match origins[key.as_str()].as_str() {
            None => "default".to_string(),
            Some("site") => "its own".to_string(),
            Some(path) => format!("from {path}"),
        };
        format!("{key}\t{value}\t{from}\n")
    };
    Key::ALL.iter().map(line).collect()
}

fn line(group: &Value) -> String {
    format!("{}\t{}\t{}\n", text(group, "path"), text(group, "id"), names(&group["sites"]))
}

fn names(list: &Value) -> String {
    let names: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { "no sites".into() } else { names.join(", ") }
}

fn text(of: &Value, field: &str) -> String {
    of[field].as_str().unwrap_or("?").to_string()
}

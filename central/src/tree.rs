//! Groups on the command line: which there are, which sites stand in them, and whose machines a site knows.

use serde_json::{Value, json};

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

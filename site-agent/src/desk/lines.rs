//! What the agent answers, in lines for people: one per thing in a list, one and its facts for a thing alone.

use serde_json::Value;

/// What an answer is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A machine.
    Node,
    /// A task.
    Task,
    /// A proposal.
    Proposal,
    /// A claim.
    Claim,
}

impl Kind {
    /// Its line in a list.
    pub(super) fn line(self, of: &Value) -> String {
        let fields = match self {
            Kind::Node => vec![
                text(of, "id"),
                text(of, "phase"),
                joined(&of["macs"]),
                text(of, "hostname"),
                text(of, "wanted"),
            ],
            Kind::Task => vec![
                text(of, "id"),
                text(of, "state"),
                text(of, "node"),
                format!("{}@{}", text(of, "workflow"), of["version"]),
                text(of, "cause"),
            ],
            Kind::Proposal => vec![
                text(of, "id"),
                text(of, "state"),
                text(of, "action"),
                text(of, "at"),
                text(&of["outcome"], "reason"),
            ],
            Kind::Claim => vec![
                text(of, "id"),
                text(of, "state"),
                text(of, "node"),
                format!("{} to {}", text(of, "from_name"), text(of, "to_name")),
                text(of, "reason"),
            ],
        };
        fields.join("\t").trim_end().to_owned() + "\n"
    }

    /// Its line, and below it the facts that are there.
    pub(super) fn told(self, of: &Value) -> String {
        let facts: &[(&str, &str)] = match self {
            Kind::Node => &[
                ("address", "/address"),
                ("notes", "/notes"),
                ("tags", "/tags"),
                ("home", "/home"),
                ("state", "/state"),
                ("because", "/cause"),
                ("workflow", "/workflow"),
                ("task", "/task"),
                ("error", "/error"),
                ("disagreed about", "/contested"),
            ],
            Kind::Task => &[
                ("attempt", "/attempt"),
                ("ordered by", "/order/issued_by"),
                ("ordered until", "/order/not_after"),
                ("percent", "/progress/percent"),
                ("result", "/result"),
                ("parameters", "/parameters"),
                ("disagreed about", "/contested"),
            ],
            Kind::Proposal => &[
                ("asked for by", "/by"),
                ("because", "/why"),
                ("about", "/kind"),
                ("id", "/document"),
                ("wished", "/arguments"),
                ("rests on", "/rests_on"),
                ("ended by", "/outcome/by"),
                ("ended at", "/outcome/at"),
            ],
            Kind::Claim => &[
                ("boots there since", "/first_seen"),
                ("ends", "/expires_at"),
                ("said there", "/to_said"),
                ("said at home", "/from_said"),
                ("by", "/policy_matched"),
                ("decided by", "/decided_by"),
                ("seen there", "/evidence"),
                ("fence", "/fence/reason"),
            ],
        };
        let mut told = self.line(of);
        for (name, at) in facts {
            let found = of.pointer(at).map(plain).unwrap_or_default();
            if !found.is_empty() {
                told += &format!("  {name}\t{found}\n");
            }
        }
        told
    }
}

/// What is said of a proposal that was just made.
pub(super) fn waits(proposal: &Value) -> String {
    let id = text(proposal, "id");
    format!(
        "{id}\twaits for central: this site may not do it by itself\n  see how it ends with `holdfast-site \
         proposals show {id}`\n"
    )
}

fn text(of: &Value, field: &str) -> String {
    plain(&of[field])
}

fn joined(list: &Value) -> String {
    list.as_array().into_iter().flatten().map(plain).collect::<Vec<_>>().join(" ")
}

/// Text as it is, without what could move the cursor of a terminal: some of it a stranger wrote. Nothing for what
/// is not there.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A name in a query or path, RFC 3986 §2.1.
pub(super) fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn h6_what_the_agent_answers_is_told_in_lines_and_nothing_in_it_reaches_the_terminal_raw() {
        let node = json!({
            "id": "93ea", "phase": "installed", "macs": ["52:54:00:00:00:01", "52:54:00:00:00:02"],
            "hostname": "till-1\u{1b}[2J", "wanted": "keep", "address": "", "notes": "by the door\n", "tags": { "rack": "r7" },
            "home": "7ef3", "state": "installed", "cause": "reported", "workflow": null, "task": "f335",
            "error": null, "contested": [],
        });
        let task = json!({
            "id": "f335", "state": "installing", "node": "93ea", "workflow": "9e0f", "version": 2,
            "cause": "the machine asked for its go-ahead", "attempt": 1,
            "order": { "issued_by": "admin", "not_after": "2026-11-24T02:21:02.338Z" },
            "progress": { "percent": 40 }, "result": null, "parameters": {}, "contested": [],
        });
        let proposal = json!({
            "id": "5e96", "state": "refused", "action": "create_task", "at": "2026-11-21T02:20:11.000Z", "by": "admin",
            "why": "empty", "kind": null, "document": null, "arguments": { "node": "93ea" }, "rests_on": null,
            "outcome": { "by": "central", "at": "2026-11-21T02:31:40.118Z", "reason": "it is wanted `ignored`" },
        });
        let claim = json!({
            "id": "6b9d", "state": "open", "node": "93ea", "from_name": "lyon", "to_name": "bern", "reason": "",
            "first_seen": "2026-11-21T02:18:52.325Z", "expires_at": null, "to_said": null, "from_said": true,
            "policy_matched": null, "decided_by": null, "evidence": { "serial": "1\u{7}2" }, "fence": null,
        });
        let told = [
            Kind::Node.told(&node),
            Kind::Task.told(&task),
            Kind::Proposal.told(&proposal),
            Kind::Claim.told(&claim),
            waits(&proposal),
        ];
        expect![[r#"
            93ea	installed	52:54:00:00:00:01 52:54:00:00:00:02	till-1�[2J	keep
              notes	by the door�
              tags	{"rack":"r7"}
              home	7ef3
              state	installed
              because	reported
              task	f335
            f335	installing	93ea	9e0f@2	the machine asked for its go-ahead
              attempt	1
              ordered by	admin
              ordered until	2026-11-24T02:21:02.338Z
              percent	40
            5e96	refused	create_task	2026-11-21T02:20:11.000Z	it is wanted `ignored`
              asked for by	admin
              because	empty
              wished	{"node":"93ea"}
              ended by	central
              ended at	2026-11-21T02:31:40.118Z
            6b9d	open	93ea	lyon to bern
              boots there since	2026-11-21T02:18:52.325Z
              said at home	true
              seen there	{"serial":"1\u00072"}
            5e96	waits for central: this site may not do it by itself
              see how it ends with `holdfast-site proposals show 5e96`
        "#]]
        .assert_eq(&told.concat());
        assert_eq!(escaped("lyon & co"), "lyon%20%26%20co");
    }
}

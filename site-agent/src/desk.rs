//! What a branch admin asks for on the command line: machines, tasks, proposals and moves.
//!
//! A command becomes a [`Request`] of the agent's REST, and the agent decides as for everybody: it is done, or it
//! waits for central as a proposal, or it cannot be. `lines` writes what comes back.

mod lines;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::client::{Client, ClientError, Request, understood};
use lines::{Kind, escaped};

/// What can be asked for.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Looks at machines, changes what people decide about them, adopts unknown ones
    #[command(after_help = "\
Examples:
  holdfast-site nodes list
  holdfast-site nodes set 52:54:00:00:00:01 --hostname till-1 --tag rack=r7 --why 'new label'
  holdfast-site nodes set 52:54:00:00:00:01 --wanted reprovision --why 'new till'
  holdfast-site nodes adopt 52:54:00:00:00:09

A machine is named by its id or by one of its MAC addresses.")]
    Nodes {
        #[command(subcommand)]
        command: Nodes,
        #[command(flatten)]
        at: At,
    },
    /// Looks at tasks, orders installations, decides about them
    #[command(after_help = "\
Examples:
  holdfast-site tasks list --state ready
  holdfast-site tasks create 52:54:00:00:00:01 --workflow debian-12 --why 'the till is empty'
  holdfast-site tasks create 52:54:00:00:00:01 --workflow debian-12@3
  holdfast-site tasks cancel f3351fd0dd10523f64ca744058a0f0c1 --why 'the till stays'")]
    Tasks {
        #[command(subcommand)]
        command: Tasks,
        #[command(flatten)]
        at: At,
    },
    /// Looks at what this site asked of central, and how that ended
    Proposals {
        #[command(subcommand)]
        command: Proposals,
        #[command(flatten)]
        at: At,
    },
    /// Looks at claims to move machines here or away, gives or withholds this side's consent
    #[command(after_help = "\
Examples:
  holdfast-site migrations list
  holdfast-site migrations consent 93ea065b84c82c6db6c70e34dfe4b0cb --yes --why 'the till moved'")]
    Migrations {
        #[command(subcommand)]
        command: Migrations,
        #[command(flatten)]
        at: At,
    },
}

/// Where the agent is.
#[derive(clap::Args)]
pub struct At {
    /// Address of the agent; by default the one that it wrote into its data folder
    #[arg(long, global = true)]
    url: Option<String>,
}

/// Why, as every command takes it.
#[derive(clap::Args)]
pub struct Why {
    /// Why, for the journal and for central
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
}

/// About machines.
#[derive(clap::Subcommand)]
pub enum Nodes {
    /// Lists machines, one per line
    List,
    /// Shows one machine
    Show {
        /// Id or MAC address
        node: String,
    },
    /// Changes what people decide about a machine
    Set {
        /// Id or MAC address
        node: String,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        why: Why,
    },
    /// Makes an unknown machine one of this site
    Adopt {
        /// MAC address that it boots with
        mac: String,
        #[command(flatten)]
        why: Why,
    },
}

/// What changes; an empty text takes away.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
pub struct Change {
    /// Its name
    #[arg(long)]
    hostname: Option<String>,
    /// Its address within the site
    #[arg(long)]
    address: Option<String>,
    /// What is to be remembered of it
    #[arg(long, value_name = "TEXT")]
    notes: Option<String>,
    /// What is to become of it
    #[arg(long, value_parser = ["keep", "ignored", "reprovision", "deprovision", "retired"])]
    wanted: Option<String>,
    /// A tag, again for another one; without a value it is taken away
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = pair)]
    tags: Vec<(String, String)>,
}

/// About tasks.
#[derive(clap::Subcommand)]
pub enum Tasks {
    /// Lists tasks, one per line
    List {
        /// Only those of this machine: id or MAC address
        #[arg(long)]
        node: Option<String>,
        /// Only those in this state, as ready or installing
        #[arg(long)]
        state: Option<String>,
    },
    /// Shows one task
    Show {
        /// Id of the task
        task: String,
    },
    /// Orders an installation
    Create {
        /// Id or MAC address of the machine
        node: String,
        /// Name or id of the workflow, with a version if it is not to be the newest
        #[arg(long, value_name = "NAME[@VERSION]", value_parser = versioned)]
        workflow: (String, Option<u64>),
        /// A parameter of the workflow, again for another one
        #[arg(long = "parameter", value_name = "KEY=VALUE", value_parser = pair)]
        parameters: Vec<(String, String)>,
        #[command(flatten)]
        why: Why,
    },
    /// Approves a task that waits for it
    Approve(OneTask),
    /// Rejects a task that waits for approval
    Reject(OneTask),
    /// Withdraws a task before its first write
    Cancel(OneTask),
    /// Gives a failed task another attempt
    Retry(OneTask),
    /// Gives up an attempt after its first write
    Abort(OneTask),
}

/// A task that is decided about.
#[derive(clap::Args)]
pub struct OneTask {
    /// Id of the task
    task: String,
    #[command(flatten)]
    why: Why,
}

/// About proposals.
#[derive(clap::Subcommand)]
pub enum Proposals {
    /// Lists proposals, one per line
    List,
    /// Shows one proposal
    Show {
        /// Id of the proposal
        proposal: String,
    },
}

/// About claims.
#[derive(clap::Subcommand)]
pub enum Migrations {
    /// Lists claims, one per line
    List,
    /// Shows one claim
    Show {
        /// Id of the claim
        claim: String,
    },
    /// Gives or withholds the consent of this side
    Consent {
        /// Id of the claim
        claim: String,
        #[command(flatten)]
        answer: YesOrNo,
        #[command(flatten)]
        why: Why,
    },
}

/// Consent or none.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct YesOrNo {
    /// The machine may move
    #[arg(long)]
    yes: bool,
    /// It may not
    #[arg(long)]
    no: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let said = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    said.ok_or_else(|| "it is written as key=value, such as rack=r7".to_owned())
}

fn versioned(text: &str) -> Result<(String, Option<u64>), String> {
    match text.rsplit_once('@') {
        None => Ok((text.to_owned(), None)),
        Some((name, version)) => match version.parse() {
            Ok(version) => Ok((name.to_owned(), Some(version))),
            Err(_) => Err(format!("`{version}` is no version; write it as debian-12@3")),
        },
    }
}

/// What came of it.
pub struct Said {
    /// For people, to be printed.
    pub text: String,
    /// It is not done yet: central is asked.
    pub waits: bool,
}

impl Command {
    /// Where the agent is looked for, if not where it says.
    pub fn url(&self) -> Option<String> {
        let (Command::Nodes { at, .. }
        | Command::Tasks { at, .. }
        | Command::Proposals { at, .. }
        | Command::Migrations { at, .. }) = self;
        at.url.clone()
    }

    /// Of what kind the answer is, and what is asked of the agent: a list where the path ends in no id.
    fn request(&self) -> (Kind, Request) {
        match self {
            Command::Nodes { command, .. } => (Kind::Node, command.request()),
            Command::Tasks { command, .. } => (Kind::Task, command.request()),
            Command::Proposals { command, .. } => (Kind::Proposal, command.request()),
            Command::Migrations { command, .. } => (Kind::Claim, command.request()),
        }
    }

    fn is_list(&self) -> bool {
        matches!(
            self,
            Command::Nodes { command: Nodes::List, .. }
                | Command::Tasks { command: Tasks::List { .. }, .. }
                | Command::Proposals { command: Proposals::List, .. }
                | Command::Migrations { command: Migrations::List, .. }
        )
    }
}

impl Nodes {
    fn request(&self) -> Request {
        match self {
            Nodes::List => Request::get("/nodes", "the machines cannot be listed"),
            Nodes::Show { node } => {
                Request::get(at("nodes", node), format!("machine {node} cannot be shown"))
            }
            Nodes::Set { node, change, why } => Request {
                method: "PATCH",
                path: at("nodes", node),
                body: change.body(why),
                what: format!("machine {node} stays as it is"),
            },
            Nodes::Adopt { mac, why } => Request {
                method: "POST",
                path: "/nodes".into(),
                body: json!({ "mac": mac, "why": why.why }),
                what: format!("machine {mac} was not adopted"),
            },
        }
    }
}

impl Change {
    fn body(&self, why: &Why) -> Value {
        let Change { hostname, address, notes, wanted, tags } = self;
        let mut body = json!({ "why": why.why });
        let texts = [("hostname", hostname), ("address", address), ("notes", notes), ("wanted", wanted)];
        for (name, text) in texts {
            if let Some(text) = text {
                body[name] = text.as_str().into();
            }
        }
        if !tags.is_empty() {
            let value = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
            let tags: BTreeMap<&str, Option<String>> =
                tags.iter().map(|(key, text)| (key.as_str(), value(text))).collect();
            body["tags"] = json!(tags);
        }
        body
    }
}

impl Tasks {
    fn request(&self) -> Request {
        match self {
            Tasks::List { node, state } => {
                let filters = [("node", node), ("state", state)];
                let filters = filters
                    .iter()
                    .filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_deref()?))));
                let query = filters.collect::<Vec<_>>().join("&");
                let mark = if query.is_empty() { "" } else { "?" };
                Request::get(format!("/tasks{mark}{query}"), "the tasks cannot be listed")
            }
            Tasks::Show { task } => Request::get(at("tasks", task), format!("task {task} cannot be shown")),
            Tasks::Create { node, workflow: (workflow, version), parameters, why } => Request {
                method: "POST",
                path: "/tasks".into(),
                body: json!({
                    "node": node, "workflow": workflow, "version": version, "why": why.why,
                    "parameters": parameters.iter().cloned().collect::<BTreeMap<_, _>>(),
                }),
                what: format!("no installation of {node} was ordered"),
            },
            Tasks::Approve(task) => task.decide("approve", "was not approved"),
            Tasks::Reject(task) => task.decide("reject", "was not rejected"),
            Tasks::Cancel(task) => task.decide("cancel", "was not cancelled"),
            Tasks::Retry(task) => task.decide("retry", "gets no other attempt"),
            Tasks::Abort(task) => task.decide("abort", "was not given up"),
        }
    }
}

impl OneTask {
    fn decide(&self, verb: &str, not: &str) -> Request {
        let OneTask { task, why } = self;
        Request {
            method: "PUT",
            path: format!("{}/{verb}", at("tasks", task)),
            body: json!({ "why": why.why }),
            what: format!("task {task} {not}"),
        }
    }
}

impl Proposals {
    fn request(&self) -> Request {
        match self {
            Proposals::List => Request::get("/proposals", "the proposals cannot be listed"),
            Proposals::Show { proposal } => {
                Request::get(at("proposals", proposal), format!("proposal {proposal} cannot be shown"))
            }
        }
    }
}

impl Migrations {
    fn request(&self) -> Request {
        match self {
            Migrations::List => Request::get("/migrations", "the claims cannot be listed"),
            Migrations::Show { claim } => {
                Request::get(at("migrations", claim), format!("claim {claim} cannot be shown"))
            }
            Migrations::Consent { claim, answer, why } => Request {
                method: "POST",
                path: format!("{}/consent", at("migrations", claim)),
                body: json!({ "consents": answer.yes, "why": why.why }),
                what: format!("this side has said nothing about claim {claim}"),
            },
        }
    }
}

fn at(list: &str, id: &str) -> String {
    format!("/{list}/{}", escaped(id))
}

/// Asks the agent.
///
/// # Errors
/// When the agent is not reached or says no.
pub fn run(client: &Client, command: &Command) -> Result<Said, ClientError> {
    let (kind, request) = command.request();
    if command.is_list() {
        let items = client.list(&request.what, &request.path)?;
        return Ok(Said { text: items.iter().map(|item| kind.line(item)).collect(), waits: false });
    }
    let (status, text) = client.ask(&request)?;
    let shown: Value = understood(&text)?;
    Ok(match status {
        202 => Said { text: lines::waits(&shown), waits: true },
        _ => Said { text: kind.told(&shown), waits: false },
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use expect_test::expect;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn asked(line: &str) -> String {
        match Line::try_parse_from(std::iter::once("holdfast-site").chain(line.split(' '))) {
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
            Ok(Line { command }) => {
                let (_, Request { method, path, body, .. }) = command.request();
                let list = if command.is_list() { " page by page" } else { "" };
                format!("{method} {path} {body}{list}")
            }
        }
    }

    #[test]
    fn p5_what_is_typed_becomes_one_request_of_the_agents_rest() {
        let mut lines = String::new();
        for line in [
            "nodes list",
            "nodes show 52:54:00:00:00:01",
            "nodes show ../sites",
            "nodes set 52:54:00:00:00:01 --hostname till-1 --why label",
            "nodes set 93ea --wanted retired --notes= --tag rack=r7 --tag old=",
            "nodes set 93ea --address 10.0.0.7 --url http://127.0.0.1:1",
            "nodes adopt 52:54:00:00:00:09 --why new",
            "tasks list",
            "tasks list --node 52:54:00:00:00:01 --state ready",
            "tasks show f335",
            "tasks create 93ea --workflow debian-12 --why empty",
            "tasks create 93ea --workflow debian-12@3 --parameter disk=vda",
            "tasks approve f335",
            "tasks reject f335 --why no",
            "tasks cancel f335",
            "tasks retry f335",
            "tasks abort f335",
            "proposals list",
            "proposals show 5e96",
            "migrations list",
            "migrations show 6b9d",
            "migrations consent 6b9d --yes --why moved",
            "migrations consent 6b9d --no",
            "nodes set 93ea",
            "nodes set 93ea --wanted gone",
            "nodes set 93ea --tag rack",
            "tasks create 93ea",
            "tasks create 93ea --workflow debian-12@new",
            "migrations consent 6b9d",
            "migrations consent 6b9d --yes --no",
        ] {
            lines += &format!("{line}\n    {}\n", asked(line));
        }
        expect![[r#"
            nodes list
                GET /nodes null page by page
            nodes show 52:54:00:00:00:01
                GET /nodes/52%3A54%3A00%3A00%3A00%3A01 null
            nodes show ../sites
                GET /nodes/..%2Fsites null
            nodes set 52:54:00:00:00:01 --hostname till-1 --why label
                PATCH /nodes/52%3A54%3A00%3A00%3A00%3A01 {"hostname":"till-1","why":"label"}
            nodes set 93ea --wanted retired --notes= --tag rack=r7 --tag old=
                PATCH /nodes/93ea {"notes":"","tags":{"old":null,"rack":"r7"},"wanted":"retired","why":""}
            nodes set 93ea --address 10.0.0.7 --url http://127.0.0.1:1
                PATCH /nodes/93ea {"address":"10.0.0.7","why":""}
            nodes adopt 52:54:00:00:00:09 --why new
                POST /nodes {"mac":"52:54:00:00:00:09","why":"new"}
            tasks list
                GET /tasks null page by page
            tasks list --node 52:54:00:00:00:01 --state ready
                GET /tasks?node=52%3A54%3A00%3A00%3A00%3A01&state=ready null page by page
            tasks show f335
                GET /tasks/f335 null
            tasks create 93ea --workflow debian-12 --why empty
                POST /tasks {"node":"93ea","parameters":{},"version":null,"why":"empty","workflow":"debian-12"}
            tasks create 93ea --workflow debian-12@3 --parameter disk=vda
                POST /tasks {"node":"93ea","parameters":{"disk":"vda"},"version":3,"why":"","workflow":"debian-12"}
            tasks approve f335
                PUT /tasks/f335/approve {"why":""}
            tasks reject f335 --why no
                PUT /tasks/f335/reject {"why":"no"}
            tasks cancel f335
                PUT /tasks/f335/cancel {"why":""}
            tasks retry f335
                PUT /tasks/f335/retry {"why":""}
            tasks abort f335
                PUT /tasks/f335/abort {"why":""}
            proposals list
                GET /proposals null page by page
            proposals show 5e96
                GET /proposals/5e96 null
            migrations list
                GET /migrations null page by page
            migrations show 6b9d
                GET /migrations/6b9d null
            migrations consent 6b9d --yes --why moved
                POST /migrations/6b9d/consent {"consents":true,"why":"moved"}
            migrations consent 6b9d --no
                POST /migrations/6b9d/consent {"consents":false,"why":""}
            nodes set 93ea
                error: the following required arguments were not provided:
            nodes set 93ea --wanted gone
                error: invalid value 'gone' for '--wanted <WANTED>'
            nodes set 93ea --tag rack
                error: invalid value 'rack' for '--tag <KEY=VALUE>': it is written as key=value, such as rack=r7
            tasks create 93ea
                error: the following required arguments were not provided:
            tasks create 93ea --workflow debian-12@new
                error: invalid value 'debian-12@new' for '--workflow <NAME[@VERSION]>': `new` is no version; write it as debian-12@3
            migrations consent 6b9d
                error: the following required arguments were not provided:
            migrations consent 6b9d --yes --no
                error: the argument '--yes' cannot be used with '--no'
        "#]].assert_eq(&lines);
    }
}

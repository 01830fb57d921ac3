//! Machines that may be one, on the command line.

use serde_json::{Value, json};

use crate::{client::Client, desk::text, failure::Failure};

/// What can be asked.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Lists pairs of machines that may be one, or share an address or a host name, one per line
    List,
    /// Says that a machine is another interface of a machine
    Same {
        /// Id of the interface's node
        node: String,
        /// Id of the machine's node
        #[arg(long, value_name = "NODE")]
        of: String,
        /// Why, for the journal
        #[arg(long, value_name = "TEXT", default_value = "")]
        why: String,
    },
    /// Says that a machine is one of its own, whatever it has in common with another
    Apart {
        /// Id of the node
        node: String,
        /// Why, for the journal
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
        Command::List => {
            let items = client.list("the pairs cannot be listed", "/nodes/twins")?;
            Ok(items.iter().map(line).collect())
        }
        Command::Same { node, of, why } => say(client, &node, Some(&of), &why),
        Command::Apart { node, why } => say(client, &node, None, &why),
    }
}

fn say(client: &Client, node: &str, of: Option<&str>, why: &str) -> Result<String, Failure> {
    let what = format!("node {node} stays what it is");
    let body = json!({ "node": of, "why": why });
    let done = client.change(&what, "PUT", &format!("/nodes/{node}/alias_of"), &body)?;
    Ok(match done["alias_of"].as_str() {
        Some(of) => format!("node {} is another interface of node {of}\n", text(&done, "id")),
        None => format!("node {} is a machine of its own\n", text(&done, "id")),
    })
}

fn line(pair: &Value) -> String {
    let node = |place: usize| pair["nodes"][place].as_str().unwrap_or_default().to_string();
    format!("{}\t{}\t{}\t{}\n", node(0), node(1), text(pair, "what"), text(pair, "reason"))
}

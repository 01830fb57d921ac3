//! The main job on one machine: no root, nothing to install.
//!
//! `cargo demo` starts the shipped central and two shipped sites on loopback, plays the machines and the
//! wire, and tells what each side knows while the link of one site is down. `cargo demo -- --check` tells
//! the same story and asserts every step; `--fault NAME` plants one fault that the checks must find.

mod claims;
mod conflicts;
mod narrator;
mod story;

use clap::{Parser, ValueEnum};

use narrator::Narrator;

/// Shows what a branch office can do while central is out of reach.
#[derive(Parser)]
#[command(name = "demo", after_help = "Example: cargo demo -- --check")]
struct Arguments {
    /// Ends after the story, with the number of checks on the last line.
    #[arg(long)]
    check: bool,
    /// Plants one fault, which makes a check fail.
    #[arg(long, value_enum)]
    fault: Option<Fault>,
}

/// Faults that the checks find.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// What central acknowledges does not arrive at the site.
    LostAck,
    /// The site's disk goes back to before the go-ahead, and the machine asks again.
    DoubledGoAhead,
    /// A bit flips in a kernel on the site's disk.
    CorruptedBlob,
}

fn main() {
    let arguments = Arguments::parse();
    let mut narrator = Narrator::new();
    let ended = story::tell(&mut narrator, arguments.fault);
    match ended {
        Err(failed) => {
            println!("\nfailed: {failed}");
            std::process::exit(1);
        }
        Ok(running) => {
            if !arguments.check && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
                running.leave_open();
            }
            drop(running);
            println!("{} checks, all passed", narrator.checks());
        }
    }
}

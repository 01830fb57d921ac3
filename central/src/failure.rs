//! Errors for people: what happened, why, and what to do next.

use std::{error::Error, fmt};

/// How a program ends. The numbers are documented in `--help` and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 1: something failed while the program ran.
    Running = 1,
    /// 3: the configuration cannot be used.
    Config = 3,
    /// 4: an address cannot be listened on.
    Listen = 4,
    /// 5: the data folder cannot be used.
    Data = 5,
    /// 6: the server was not reached, or refused.
    Server = 6,
    /// 7: no backup was made, or none was restored.
    Backup = 7,
}

/// Three lines for the person at the keyboard, and a number for the script around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// How the program ends.
    pub exit: Exit,
    /// What happened.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub next: String,
}

impl Failure {
    /// Makes a failure from three sentences without full stops.
    pub fn new(exit: Exit, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Failure { exit, what: what.into(), why: why.into(), next: next.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { what, why, next, .. } = self;
        write!(f, "error: {what}\n  why: {why}\n  next: {next}")
    }
}

impl Error for Failure {}

/// An error with everything below it, on one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

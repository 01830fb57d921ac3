//! What went wrong in the lab, said to the person who reads a failed test.
//!
//! A test that returns `Err` prints the error's `Debug`, so `Debug` is the text for people too. There is one
//! type and no variants: nobody here decides anything by the kind of failure, everybody reads it.

use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter};
use std::io;

pub(crate) type Result<T> = std::result::Result<T, LabError>;

/// What happened, why, and where there is something to do about it, what to do next.
pub(crate) struct LabError {
    what: String,
    why: String,
    next: Option<String>,
}

impl LabError {
    /// `why` may hold many lines, such as the tail of a log; it is printed as it is.
    pub(crate) fn new(what: impl Into<String>, why: impl Display) -> Self {
        Self { what: what.into(), why: why.to_string(), next: None }
    }

    pub(crate) fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

/// Gives an I/O error the object it happened to, which the standard library leaves out.
pub(crate) trait Doing<T> {
    /// # Errors
    /// The same failure, with `what` in front of it.
    fn doing(self, what: impl Display) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|error| LabError::new(what.to_string(), error))
    }
}

impl Display for LabError {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{}\n  why: {}", self.what, self.why)?;
        match &self.next {
            Some(next) => write!(out, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl Debug for LabError {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, out)
    }
}

impl Error for LabError {}

//! What happened in a world, in words: the first thing that is read when a seed fails.

use std::{cell::RefCell, collections::VecDeque, fmt, rc::Rc};

use sync::time::Timestamp;

/// Lines that are kept; older ones are forgotten.
const KEPT: usize = 20_000;

/// Lines that are printed, unless `HOLDFAST_HISTORY` says another number.
const SHOWN: usize = 120;

/// A shared record: whoever holds a clone can still read it when the world is gone in a panic.
#[derive(Clone, Default)]
pub struct History {
    lines: Rc<RefCell<VecDeque<(Timestamp, String, String)>>>,
}

impl History {
    /// Adds a line about `who`.
    pub fn note(&self, at: Timestamp, who: &str, what: impl Into<String>) {
        let mut lines = self.lines.borrow_mut();
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back((at, who.to_string(), what.into()));
    }
}

impl fmt::Display for History {
    /// The newest lines, oldest first: true time, who, what.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines.borrow();
        let shown = std::env::var("HOLDFAST_HISTORY").ok().and_then(|number| number.parse().ok());
        let hidden = lines.len().saturating_sub(shown.unwrap_or(SHOWN));
        if hidden > 0 {
            writeln!(f, "({hidden} earlier lines are not shown)")?;
        }
        for (at, who, what) in lines.iter().skip(hidden) {
            writeln!(f, "{at} {who:<8} {what}")?;
        }
        Ok(())
    }
}

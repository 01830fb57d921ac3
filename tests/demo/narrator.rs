//! Tells the story and counts the checks.

use std::time::{Duration, Instant};

use serde_json::Value;

/// Prints what happens, with the seconds since the beginning.
pub(crate) struct Narrator {
    begun: Instant,
    checks: u32,
}

/// A check that failed: what should have held, and what was found.
#[derive(Debug)]
pub(crate) struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Narrator {
    pub(crate) fn new() -> Self {
        Narrator { begun: Instant::now(), checks: 0 }
    }

    pub(crate) fn checks(&self) -> u32 {
        self.checks
    }

    /// A new part of the story.
    pub(crate) fn part(&self, title: &str) {
        println!("\n{title}");
    }

    /// One sentence.
    pub(crate) fn tell(&self, text: &str) {
        println!("{:6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    /// Something must hold now.
    pub(crate) fn check(
        &mut self,
        what: &str,
        holds: bool,
        found: impl std::fmt::Display,
    ) -> Result<(), Failed> {
        if !holds {
            return Err(Failed(format!("{what} (found: {found})")));
        }
        self.checks += 1;
        println!("{:6.1} s  ✓ {what}", self.begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Something must come to hold.
    pub(crate) fn wait(
        &mut self,
        what: &str,
        patience: Duration,
        mut ask: impl FnMut() -> (bool, Value),
    ) -> Result<(), Failed> {
        let end = Instant::now() + patience;
        loop {
            let (holds, found) = ask();
            if holds || Instant::now() > end {
                return self.check(what, holds, found);
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
}

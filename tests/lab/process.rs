//! Programs that the lab runs: to their end (`run`), or beside the test until they are dropped (`Process`).
//!
//! A `Process` writes to one log file, is killed with the value that holds it, also when a test panics, and
//! then shows the tail of its log. Should the test process itself be killed, `setpriv` has asked the kernel to
//! take its children along; what then remains is swept up by the next `Net::new`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Doing, LabError, Result};

/// How often a condition is looked at again. A look is a small file read; 20 ms is the resolution of every
/// duration that the lab reports.
const POLL: Duration = Duration::from_millis(20);

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or does not end with status 0; then with its command line and standard error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().doing(format!("start `{shown}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let why = format!("it ended with {}: {}", output.status, said.trim());
        return Err(LabError::new(format!("`{shown}` failed"), why));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks at `probe` until it has an answer.
///
/// # Errors
/// The probe's own, at once; or that `what` had not come true within `deadline`.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if started.elapsed() >= deadline {
            let why = format!("waited {} s for it", deadline.as_secs());
            return Err(LabError::new(format!("no {what}"), why));
        }
        thread::sleep(POLL);
    }
}

/// Returns the last lines of a file, without the escape sequences that firmware draws its screen with, or an
/// empty text where there is no such file yet.
pub(crate) fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = plain_text(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].join("\n")
}

/// Turns console bytes into text: escape sequences and carriage returns leave, the rest stays in order.
pub(crate) fn plain_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            // `ESC [ parameters letter`, ECMA-48 §5.4; other escapes have a single character after them.
            '\u{1b}' if chars.next() == Some('[') => {
                let _ = chars.by_ref().find(|char| ('@'..='~').contains(char));
            }
            '\u{1b}' | '\r' => {}
            _ => plain.push(char),
        }
    }
    plain
}

/// A program that runs until this value is dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs going to the end of `log`. `name` is what failures call it.
    ///
    /// # Errors
    /// When the program cannot be started or the log not be opened.
    pub(crate) fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let open = || File::options().create(true).append(true).open(log);
        let output = open().doing(format!("open log {}", log.display()))?;
        let errors = open().doing(format!("open log {}", log.display()))?;
        let child = with_parent(command)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .doing(format!("start {name}: `{}`", shown(command)))?;
        Ok(Self { name: name.into(), child, log: log.into() })
    }

    /// Returns everything that the program has written so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub(crate) fn log(&self) -> Result<String> {
        let bytes = fs::read(&self.log).doing(format!("read the log of {}", self.name))?;
        Ok(plain_text(&bytes))
    }

    /// Waits until the log holds `text`.
    ///
    /// # Errors
    /// When the program ends first or `deadline` passes; with the tail of the log.
    pub(crate) fn wait_log(&mut self, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("`{text}` in the log of {}", self.name);
        wait_for(&what, deadline, || {
            let ended = self.ended()?;
            match (self.log()?.contains(text), ended) {
                (true, _) => Ok(Some(())),
                (false, None) => Ok(None),
                (false, Some(status)) => Err(LabError::new(
                    format!("no {what}"),
                    format!("{} ended with {status} after saying:\n{}", self.name, tail(&self.log)),
                )),
            }
        })
    }

    /// Returns how the program ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().doing(format!("ask after {}", self.name))
    }

    /// Asks the program to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it is still there at `deadline`; dropping the value kills it then.
    pub(crate) fn stop(mut self, deadline: Duration) -> Result<ExitStatus> {
        let pid = self.child.id().to_string();
        run(Command::new("busybox").args(["kill", "-TERM", &pid]))?;
        wait_for(&format!("end of {}", self.name), deadline, || self.child.try_wait().doing("wait"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill and nothing to say.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, tail(&self.log));
        }
    }
}

/// Returns the same command under `setpriv --pdeathsig`, so that it does not outlive a killed test process.
fn with_parent(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_text_loses_its_escape_sequences() {
        let bytes = b"\x1b[2J\x1b[01;01HiPXE\x1b[0;37m ok\r\n\x1bc next\xff";
        assert_eq!(plain_text(bytes), "iPXE ok\n next\u{fffd}");
    }

    #[test]
    fn a_failed_command_says_what_it_said() {
        let error = run(Command::new("busybox").args(["ls", "/no/such/place"])).unwrap_err();
        let expected = "`busybox ls /no/such/place` failed\n  why: it ended with exit status: 1: \
                        ls: /no/such/place: No such file or directory";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_process_can_be_asked_to_end() -> Result<()> {
        let folder = tempfile::tempdir().doing("make a folder")?;
        let script = "trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.05; done";
        let mut shell = Command::new("busybox");
        let log = folder.path().join("log");
        let mut process = Process::spawn("shell", shell.args(["sh", "-c", script]), &log)?;
        process.wait_log("ready", Duration::from_secs(5))?;
        assert_eq!(process.stop(Duration::from_secs(5))?.code(), Some(7));
        assert_eq!(tail(&log), "ready\nbye");
        Ok(())
    }

    #[test]
    fn waiting_for_words_ends_with_the_program() -> Result<()> {
        let folder = tempfile::tempdir().doing("make a folder")?;
        let mut shell = Command::new("busybox");
        let log = folder.path().join("log");
        let mut process = Process::spawn("shell", shell.args(["echo", "no luck"]), &log)?;
        let error = process.wait_log("ready", Duration::from_secs(60)).unwrap_err().to_string();
        let expected = "no `ready` in the log of shell\n  why: shell ended with exit status: 0 after saying:\n\
                        no luck";
        assert_eq!(error, expected);
        Ok(())
    }

    #[test]
    fn a_process_does_not_outlive_its_value() -> Result<()> {
        let folder = tempfile::tempdir().doing("make a folder")?;
        let mut command = Command::new("busybox");
        let mut process =
            Process::spawn("sleeper", command.args(["sleep", "600"]), &folder.path().join("log"))?;
        assert!(process.ended()?.is_none());
        let entry = PathBuf::from(format!("/proc/{}", process.child.id()));
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists());
        Ok(())
    }
}

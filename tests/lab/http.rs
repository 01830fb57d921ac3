//! An ordinary web server for the lab: busybox httpd over a folder.
//!
//! The baseline uses it because it is what an office without our product would use: files by name, HTTP/1.0,
//! HEAD and exact lengths. A program under `cgi-bin/` of the folder answers what is below its own path, which
//! is how the rehearsal plays a site.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::error::{Doing, Result};
use crate::network::Namespace;
use crate::process::{Process, wait_for};

/// A running server.
pub(crate) struct Web {
    _server: Process,
}

impl Web {
    /// Serves `folder` at `address:port` in `place`; returns when it answers.
    ///
    /// # Errors
    /// When it does not start, for instance because the port is taken.
    pub(crate) fn serve(place: &Namespace, address: &str, port: u16, folder: &Path) -> Result<Self> {
        let mut httpd = place.command("busybox");
        let listen = format!("{address}:{port}");
        httpd.args(["httpd", "-f", "-v", "-p", &listen, "-h"]).arg(folder);
        let log = folder.with_extension("log");
        let mut server = Process::spawn("httpd", &mut httpd, &log)?;
        wait_for(&format!("web server at {listen}"), Duration::from_secs(10), || {
            if server.ended()?.is_some() {
                let why = crate::process::tail(&log);
                return Err(crate::error::LabError::new("the web server ended at once", why));
            }
            Ok(place.http("HEAD", &format!("http://{listen}/"), &[], "").ok())
        })?;
        Ok(Self { _server: server })
    }
}

/// Puts a shell script under `cgi-bin/` of a served folder.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn place_script(folder: &Path, name: &str, script: &str) -> Result<()> {
    let cgi = folder.join("cgi-bin");
    fs::create_dir_all(&cgi).doing(format!("make {}", cgi.display()))?;
    let path = cgi.join(name);
    fs::write(&path, script).doing(format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).doing("make a script runnable")
}
